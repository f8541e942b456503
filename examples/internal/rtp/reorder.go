package rtp

import (
	"math/bits"
	"time"
)

// A Reorderer puts packets in the order of their sequence numbers, and drops
// those that came before. It holds packets back for one that is missing, but
// not more than Packets of them, nor for longer than Wait; one that comes later
// than that is dropped.
type Reorderer struct {
	Packets int           // at most 1000; 0: hold none back
	Wait    time.Duration // 0: as long as Packets allows

	Late, Duplicate uint64 // dropped

	started bool
	ssrc    uint32
	next    uint16    // what comes next
	again   int       // where a sender that has begun anew goes on; -1: none has
	held    []slot    // by sequence number, modulo the length, a power of two
	n       int       // of them are taken
	since   time.Time // the oldest of them came
	gone    [128]bool // by sequence number likewise: what was handed over, of the last ones
}

type slot struct {
	taken bool
	at    time.Time
	b     []byte
}

// maxHeld bounds Packets: more is no order any more.
const maxHeld = 1000

func (r *Reorderer) size() int { return min(max(r.Packets, 0), maxHeld) }

// Push takes a packet, which is copied if it is held back, and hands over the
// payloads that are next.
func (r *Reorderer) Push(h Header, payload []byte, now time.Time, hand func(payload []byte)) {
	switch {
	case !r.started || h.SSRC != r.ssrc:
		r.restart(h, hand)
	default:
		r.Expire(now, hand)
	}
	ahead := h.Seq - r.next
	if back := -ahead; ahead >= maxDropout && back > maxMisorder {
		// Far away: a sender that has begun anew, if the next one is there too.
		if int(h.Seq) != r.again {
			r.again = int(h.Seq + 1)
			r.Late++
			return
		}
		r.restart(h, hand)
		ahead = 0
	} else if ahead >= maxDropout {
		if *r.wasHanded(h.Seq) {
			r.Duplicate++
		} else {
			r.Late++
		}
		return
	}
	r.again = -1
	if int(ahead) > r.size() { // too far to wait for what is between
		for int(ahead) > r.size() {
			r.step(hand)
			ahead = h.Seq - r.next
		}
		r.drain(hand)
		if ahead = h.Seq - r.next; ahead >= maxDropout { // it was held back itself
			r.Duplicate++
			return
		}
	}
	if ahead == 0 {
		r.pass(payload, hand)
		r.drain(hand)
		return
	}
	s := r.slot(h.Seq)
	if s.taken {
		r.Duplicate++
		return
	}
	if r.n == 0 {
		r.since = now
	}
	s.taken, s.at, s.b = true, now, append(s.b[:0], payload...)
	r.n++
}

// Expire gives up on what has been waited for too long. Push does that too; call
// it when Deadline is over and nothing has come.
func (r *Reorderer) Expire(now time.Time, hand func(payload []byte)) {
	for r.n > 0 && r.Wait > 0 && now.Sub(r.since) >= r.Wait {
		for !r.slot(r.next).taken {
			r.step(hand)
		}
		r.drain(hand)
	}
}

// Deadline is when Expire is to be called; the zero Time: nothing is held back.
func (r *Reorderer) Deadline() time.Time {
	if r.n == 0 || r.Wait <= 0 {
		return time.Time{}
	}
	return r.since.Add(r.Wait)
}

// Flush hands over all that is held back.
func (r *Reorderer) Flush(hand func(payload []byte)) {
	for r.n > 0 {
		r.step(hand)
	}
}

func (r *Reorderer) restart(h Header, hand func([]byte)) {
	r.Flush(hand)
	if r.held == nil {
		r.held = make([]slot, 1<<bits.Len(uint(r.size())))
	}
	clear(r.gone[:])
	r.started, r.ssrc, r.next, r.again = true, h.SSRC, h.Seq, -1
}

// drain hands over what follows without a gap.
func (r *Reorderer) drain(hand func([]byte)) {
	if r.n == 0 {
		return
	}
	for r.slot(r.next).taken {
		r.step(hand)
	}
	r.since = time.Time{}
	for i := range r.held {
		if s := &r.held[i]; s.taken && (r.since.IsZero() || s.at.Before(r.since)) {
			r.since = s.at
		}
	}
}

func (r *Reorderer) slot(seq uint16) *slot      { return &r.held[int(seq)&(len(r.held)-1)] }
func (r *Reorderer) wasHanded(seq uint16) *bool { return &r.gone[int(seq)&(len(r.gone)-1)] }

// step goes on by one, be it there or not.
func (r *Reorderer) step(hand func([]byte)) {
	s := r.slot(r.next)
	if !s.taken {
		*r.wasHanded(r.next) = false
		r.next++
		return
	}
	s.taken = false
	r.n--
	r.pass(s.b, hand)
}

func (r *Reorderer) pass(payload []byte, hand func([]byte)) {
	*r.wasHanded(r.next) = true
	r.next++
	hand(payload)
}
