package mpegts

import (
	"bufio"
	"errors"
	"io"
	"time"
)

// A Reader reads a transport stream and says when each of its packets is due,
// by the clock in it (PCR): in between, packets are evenly spread.
type Reader struct {
	in    *bufio.Reader
	err   error // after what is queued
	clock Clock

	started, synced bool // a packet was read; the next one begins where it ended

	packets []byte          // queued
	due     []time.Duration // of the first of them; the others wait for a clock value
	done    int             // of them have been handed over
	last    time.Duration   // when the last one that has a time is due
	spacing time.Duration   // of those before it; 0: not known yet
	since   int             // packets read since the last clock value
}

// Errors of a Reader.
var (
	ErrNotTS = errors.New("this is no MPEG transport stream: it has no packets of 188 bytes")
	ErrNoPCR = errors.New("the transport stream has no clock (PCR) to pace it by")
)

// maxQueue is how many bytes are read ahead for a clock value. The book wants
// one each 0.1 s.
const maxQueue = 4 << 20

// maxSkip is how many bytes of something else a stream may begin with.
const maxSkip = 64 << 10

// NewReader returns a Reader of a stream.
func NewReader(in io.Reader) *Reader { return &Reader{in: bufio.NewReaderSize(in, 1<<16)} }

// Next returns up to n packets, fewer only at the end, and when the first of
// them is due, after the first of all. They are valid until the next call. The
// error is io.EOF at the end, ErrNotTS, ErrNoPCR, or that of reading.
func (r *Reader) Next(n int) (b []byte, due time.Duration, err error) {
	for len(r.due)-r.done < n && r.err == nil {
		r.fill()
	}
	n = min(n, len(r.due)-r.done)
	if n == 0 {
		return nil, 0, r.err
	}
	b, due = r.packets[r.done*Size:(r.done+n)*Size], r.due[r.done]
	r.done += n
	return b, due, nil
}

// fill reads up to the next clock value that tells when the queued packets are
// due.
func (r *Reader) fill() {
	r.packets = append(r.packets[:0], r.packets[r.done*Size:]...)
	r.due = append(r.due[:0], r.due[r.done:]...)
	r.done = 0
	for {
		if r.err = r.read(); r.err != nil {
			if r.spacing > 0 {
				r.spread(r.untimed(), time.Duration(r.untimed())*r.spacing)
			} else if r.err == io.EOF {
				r.err = ErrNoPCR
			}
			return
		}
		r.since++
		elapsed, has, goesOn := r.clock.Next(r.packets[len(r.packets)-Size:])
		switch {
		case !has && len(r.packets) < maxQueue:
			continue
		case !has && r.spacing == 0:
			r.err = ErrNoPCR
			return
		case goesOn && elapsed > 0:
			first := r.spacing == 0
			r.spacing = max(elapsed/time.Duration(r.since), 1)
			if before := r.untimed() - r.since; before > 0 { // before the first clock value
				if first {
					r.last = -r.spacing
				}
				r.spread(before, time.Duration(before)*r.spacing)
			}
			r.spread(r.since, elapsed)
		case r.spacing > 0: // the clock begins anew, or is not there any more
			if !has {
				r.clock, r.since = Clock{}, 0
			}
			r.spread(r.untimed(), time.Duration(r.untimed())*r.spacing)
		}
		if has {
			r.since = 0
		}
		if r.untimed() == 0 {
			return
		}
	}
}

func (r *Reader) untimed() int { return len(r.packets)/Size - len(r.due) }

// spread gives the next n packets their times, evenly.
func (r *Reader) spread(n int, over time.Duration) {
	for i := range n {
		r.due = append(r.due, r.last+over*time.Duration(i+1)/time.Duration(n))
	}
	r.last += over
}

// read queues a packet. Where the stream is broken it looks for the next packet
// that another one follows.
func (r *Reader) read() error {
	for skipped := 0; ; skipped++ {
		n := Size
		if !r.synced {
			n++
		}
		b, err := r.in.Peek(n)
		switch {
		case len(b) < Size && err == io.EOF && !r.started, skipped > maxSkip && !r.started:
			return ErrNotTS
		case len(b) < Size:
			return err
		case b[0] == syncByte && (len(b) == Size || b[Size] == syncByte):
			r.packets = append(r.packets, b[:Size]...)
			r.in.Discard(Size)
			r.started, r.synced = true, true
			return nil
		}
		r.synced = false
		r.in.Discard(1)
	}
}
