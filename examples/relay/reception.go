package main

import (
	"errors"
	"iter"
	"log/slog"
	"net"
	"sync"
	"time"

	"example.com/mcast"
)

// Each channel has a Conn of its own, not a share of a Pool: then one that is
// busy fills its own receive buffer alone and is read by its own goroutine, the
// kernel's drops are counted by channel, an event says which channel it is about
// (two channels may have one group on two ports), and several sources of a group
// are independent of each other. What a Pool saves, sockets and system calls for
// thousands of memberships, is nothing here: each channel that is joined has
// viewers, and they cost far more.

// A receiver is what channels come from: a [mcast.Conn], or with -amt a fallback.
type receiver interface {
	ReadBatch(ms []mcast.Message) (int, error)
	Memberships() []mcast.Membership
	GroupStats() iter.Seq2[mcast.Group, mcast.GroupStats]
	Stats() mcast.Stats
	Close() error
}

// listen opens a channel. A program that relays runs for years: it may start
// before its interface does, and outlive it.
func listen(ch mcast.Channel, event func(mcast.Event), log *slog.Logger) (receiver, error) {
	return mcast.ListenChannel(ch, &mcast.Config{
		WaitForInterface: true,
		AnySource:        true, // many lists have groups of 232/8 without a source
		GroupStats:       true,
		Coalesce:         coalesce,
		OnEvent:          event,
		Logger:           log,
	})
}

const (
	pace     = 20 * time.Millisecond // pieces are handed to viewers that often
	coalesce = 2 * time.Millisecond  // datagrams are read together that come within that

	batch    = 32      // datagrams read at once
	datagram = 9 << 10 // bytes of them; one that is longer is cut, and the next ones are not
	minPiece = 8 << 10 // bytes
	maxPiece = 64 << 10
	hubSize  = 4 << 20 // bytes that are kept for slow viewers
)

// A reception receives a channel while it has viewers.
type reception struct {
	conn receiver
	hub  *hub
	log  *slog.Logger

	stop  chan struct{}
	tasks sync.WaitGroup

	mu     sync.Mutex
	stream *stream
	pieces [][]byte // not published yet; the last one is not full
	usual  int      // bytes that were published last
	why    string   // what the last event says is wrong
	down   string   // the interface that is down
}

// receive joins a channel.
func receive(ch mcast.Channel, open func(mcast.Channel, func(mcast.Event), *slog.Logger) (receiver, error), log *slog.Logger) (*reception, error) {
	r := &reception{hub: newHub(hubSize), log: log, stop: make(chan struct{})}
	r.stream = newStream(r.append)
	var err error
	if r.conn, err = open(ch, r.event, log); err != nil {
		return nil, err
	}
	r.tasks.Go(r.read)
	r.tasks.Go(r.publish)
	return r, nil
}

// close leaves the channel. Its viewers read what is there, and end.
func (r *reception) close() {
	close(r.stop)
	if err := r.conn.Close(); err != nil {
		r.log.Warn("cannot leave", "error", err)
	}
	r.tasks.Wait()
	r.hub.close()
}

// event remembers what is wrong with the membership.
func (r *reception) event(e mcast.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch e.Kind {
	case mcast.EventDown:
		r.down = e.Name
	case mcast.EventUp:
		r.down = ""
	case mcast.EventRestored:
		r.why, r.down = "", ""
	case mcast.EventPending:
		r.why = "there is no interface for it"
		if e.Name != "" {
			r.why = "there is no usable interface " + e.Name
		}
		r.down = ""
	case mcast.EventFailed:
		var op *mcast.OpError
		if r.why = e.Err.Error(); errors.As(e.Err, &op) {
			r.why = op.Err.Error()
		}
	case mcast.EventLost:
		r.why = "lost, and about to be made anew"
	}
}

// read takes what arrives, until the end.
func (r *reception) read() {
	room := datagram
	ms := messages(room)
	for {
		n, err := r.conn.ReadBatch(ms)
		now := time.Now()
		grow := false
		r.mu.Lock()
		for i := range ms[:n] {
			m := &ms[i]
			grow = grow || m.Truncated
			r.stream.datagram(m.Buf[:m.N], m.Source, now)
		}
		r.mu.Unlock()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			r.log.Warn("reading", "error", err)
			select {
			case <-r.stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
		if grow && room < 1<<16 {
			room = 1 << 16
			ms = messages(room)
		}
	}
}

func messages(room int) []mcast.Message {
	ms := make([]mcast.Message, batch)
	slab := make([]byte, batch*room)
	for i := range ms {
		ms[i].Buf = slab[i*room : (i+1)*room : (i+1)*room]
	}
	return ms
}

// append adds to the piece that is being filled. Called with the lock.
func (r *reception) append(payload []byte) {
	n := len(r.pieces)
	if n == 0 || len(r.pieces[n-1])+len(payload) > cap(r.pieces[n-1]) {
		size := minPiece
		if n == 0 {
			size = min(max(r.usual+r.usual/4, minPiece), maxPiece)
		}
		r.pieces = append(r.pieces, make([]byte, 0, max(size, len(payload))))
		n++
	}
	r.pieces[n-1] = append(r.pieces[n-1], payload...)
}

// publish hands pieces to the viewers, at its own pace: waking hundreds of them
// for each datagram would take the time that reading needs.
func (r *reception) publish() {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for {
		select {
		case <-r.stop:
			return
		case now := <-tick.C:
			r.mu.Lock()
			r.stream.expire(now)
			pieces := r.pieces
			r.pieces, r.usual = nil, 0
			for _, b := range pieces {
				r.usual += len(b)
			}
			r.mu.Unlock()
			r.hub.publish(pieces...)
		}
	}
}

// A status is what a reception is doing.
type status struct {
	membership mcast.Membership
	stats      mcast.Stats
	group      mcast.GroupStats
	stream     streamCounts
	why, down  string
}

func (r *reception) status() (s status) {
	if ms := r.conn.Memberships(); len(ms) > 0 {
		s.membership = ms[0]
	}
	for _, g := range r.conn.GroupStats() {
		s.group = g
	}
	s.stats = r.conn.Stats()
	r.mu.Lock()
	defer r.mu.Unlock()
	s.stream, s.why, s.down = r.stream.counts, r.why, r.down
	return s
}
