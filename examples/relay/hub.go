package main

import (
	"sort"
	"sync"
)

// A hub keeps the last pieces of a stream for any number of viewers, each of
// which reads at its own pace. Whoever publishes never waits for one.
type hub struct {
	size int // bytes to keep

	mu     sync.Mutex
	pieces []piece
	kept   int
	end    uint64        // where the next piece begins
	more   chan struct{} // closed when there is more, or the end
	ended  bool
}

// A piece is whole datagrams. Nobody changes it: viewers share it.
type piece struct {
	at uint64 // its place in the stream, in bytes
	b  []byte
}

func newHub(size int) *hub { return &hub{size: size, more: make(chan struct{})} }

// publish appends pieces, and drops the oldest.
func (h *hub) publish(pieces ...[]byte) {
	if len(pieces) == 0 {
		return
	}
	h.mu.Lock()
	for _, b := range pieces {
		h.pieces = append(h.pieces, piece{h.end, b})
		h.end += uint64(len(b))
		h.kept += len(b)
	}
	for h.kept > h.size && len(h.pieces) > 1 {
		h.kept -= len(h.pieces[0].b)
		h.pieces[0].b = nil
		h.pieces = h.pieces[1:]
	}
	woken := h.more
	if h.ended {
		woken = nil
	} else {
		h.more = make(chan struct{})
	}
	h.mu.Unlock()
	if woken != nil {
		close(woken) // many may wait: not under the lock
	}
}

// close ends the stream: its viewers read what is there, and then end.
func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.ended {
		h.ended = true
		close(h.more)
	}
}

// live is where the stream is now.
func (h *hub) live() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.end
}

// read returns the piece at a place of the stream. Where it is kept no more, it
// is the newest one instead: whoever is that slow goes on with what is live, and
// skipped says how many bytes that costs. Without a piece there is none yet, and
// more tells when to look again; nil: there will be none.
func (h *hub) read(at uint64) (b []byte, skipped uint64, more <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if at >= h.end {
		if h.ended {
			return nil, 0, nil
		}
		return nil, 0, h.more
	}
	i := 0
	if at < h.pieces[0].at {
		i = len(h.pieces) - 1
		skipped = h.pieces[i].at - at
	} else {
		i = sort.Search(len(h.pieces), func(i int) bool { return h.pieces[i].at > at }) - 1
	}
	return h.pieces[i].b, skipped, h.more
}
