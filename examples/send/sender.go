package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"example.com/mcast"
	"example.com/mcast/examples/internal/mpegts"
	"example.com/mcast/examples/internal/numbered"
	"example.com/mcast/examples/internal/rtp"
)

// A sender sends the datagrams of one stream.
type sender struct {
	*mcast.Conn
	options
	to      netip.AddrPort
	next    numbered.Header // of RTP, the SSRC is the stream's number
	first   uint16          // of RTP, the first sequence number
	started time.Time
	base    time.Time // what is due at 0 is due then
	buf     []byte

	sent, bytes atomic.Uint64
}

func newSender(c *mcast.Conn, o options) *sender {
	now := time.Now()
	s := &sender{Conn: c, options: o, to: destination(o), started: now, base: now}
	var random [6]byte
	rand.Read(random[:])
	s.next.Stream = binary.BigEndian.Uint32(random[:])
	s.first = binary.BigEndian.Uint16(random[4:])
	return s
}

// sendAll sends until the input ends, the count is reached or ctx is done.
func (s *sender) sendAll(ctx context.Context, in io.Reader) error {
	room := s.size - s.format.header()
	zeros := make([]byte, room)
	var chunks <-chan chunk
	if in != nil {
		done := make(chan struct{})
		defer close(done)
		read := cut(in, room, s.format != isNumbered)
		if s.ts {
			read = transport(in, room/mpegts.Size)
		}
		chunks = readAll(read, done)
	}
	for s.count == 0 || s.sent.Load() < s.count {
		if !s.ts && !s.wait(ctx, s.due()) {
			return nil
		}
		payload := zeros
		at := time.Since(s.started)
		if in != nil {
			select {
			case c := <-chunks:
				if c.err == io.EOF {
					return nil
				} else if c.err != nil {
					return c.err
				}
				payload = c.b
				if s.ts {
					at = c.due
					// What comes through a pipe begins when it does, and after a
					// pause nothing is made up for.
					if now := time.Now(); s.sent.Load() == 0 || now.Sub(s.base.Add(at)) > time.Second {
						s.base = now.Add(-at)
					}
					if !s.wait(ctx, at) {
						return nil
					}
				}
			case <-ctx.Done():
				return nil
			}
		}
		if err := s.send(ctx, payload, at); err != nil {
			return err
		}
	}
	return nil
}

// frame puts the header before a payload that belongs to a time since the start.
func (s *sender) frame(payload []byte, at time.Duration) []byte {
	b := s.buf[:0]
	switch s.format {
	case isNumbered:
		b = s.next.Append(b)
	case isRTP:
		h := rtp.Header{Type: 96, Seq: s.first + uint16(s.next.Seq), SSRC: s.next.Stream} // 96: whatever both ends agree on
		h.Timestamp = uint32(at * 9 / 100_000)                                            // 90 kHz
		if mpegts.Valid(payload) {
			h.Type = rtp.PayloadTS
		}
		b = h.Append(b)
	}
	s.buf = append(b, payload...)
	return s.buf
}

// send sends one datagram. It is patient with a system that is out of
// buffers, or whose interface is just coming up.
func (s *sender) send(ctx context.Context, payload []byte, at time.Duration) error {
	b := s.frame(payload, at)
	for try := 0; ; try++ {
		_, err := s.WriteToUDPAddrPort(b, s.to)
		if err == nil {
			s.next.Seq++
			s.sent.Add(1)
			s.bytes.Add(uint64(len(b)))
			return nil
		}
		if try == 100 || ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// end says that the stream has ended, more than once, because a datagram may be
// lost: so a receiver knows what is missing at the tail.
func (s *sender) end() {
	if s.format != isNumbered || s.next.Seq == 0 {
		return
	}
	s.next.End = true
	for range 3 {
		time.Sleep(10 * time.Millisecond) // what was sent before arrives before
		s.WriteToUDPAddrPort(s.next.Append(nil), s.to)
	}
}

// due is when the next datagram is, after the start.
func (s *sender) due() time.Duration {
	switch {
	case s.bitrate > 0:
		return time.Duration(float64(s.bytes.Load()) * 8 / s.bitrate * float64(time.Second))
	case s.rate > 0:
		return time.Duration(float64(s.sent.Load()) / s.rate * float64(time.Second))
	}
	return 0
}

// wait waits until a time after the base. It is false when ctx is done.
func (s *sender) wait(ctx context.Context, due time.Duration) bool {
	if wait := time.Until(s.base.Add(due)); wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
	return ctx.Err() == nil
}

// report says each so often what was sent since, until stop is called.
func (s *sender) report(w io.Writer, every time.Duration) (stop func()) {
	if every <= 0 {
		return func() {}
	}
	done := make(chan struct{})
	var ended sync.WaitGroup
	ended.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		before, sent, bytes := s.started, uint64(0), uint64(0)
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			now, n, b := time.Now(), s.sent.Load(), s.bytes.Load()
			seconds := now.Sub(before).Seconds()
			fmt.Fprintf(w, "%s %8.0f datagrams/s %9.3f Mbit/s\n", now.Format(time.TimeOnly), float64(n-sent)/seconds, float64(b-bytes)*8/1e6/seconds)
			before, sent, bytes = now, n, b
		}
	})
	return func() {
		close(done)
		ended.Wait()
	}
}

// A chunk is a piece of the input, or why there is none.
type chunk struct {
	b   []byte
	due time.Duration // of a transport stream
	err error
}

// cut reads pieces of at most size bytes, each as soon as there is something;
// whole ones, but for the last, are as long as they may be.
func cut(in io.Reader, size int, whole bool) func() chunk {
	least := 1
	if whole {
		least = size
	}
	var err error
	return func() chunk {
		if err != nil {
			return chunk{err: err}
		}
		b, n := make([]byte, size), 0
		for n < least && err == nil {
			var more int
			more, err = in.Read(b[n:])
			n += more
		}
		if n == 0 {
			return chunk{err: err}
		}
		return chunk{b: b[:n]}
	}
}

// transport reads n packets of a transport stream at a time.
func transport(in io.Reader, n int) func() chunk {
	r := mpegts.NewReader(in)
	return func() chunk {
		b, due, err := r.Next(n)
		return chunk{append([]byte(nil), b...), due, err}
	}
}

// readAll reads until done is closed. A read cannot be interrupted, so that it
// goes on for itself.
func readAll(read func() chunk, done <-chan struct{}) <-chan chunk {
	chunks := make(chan chunk, 16)
	go func() {
		for {
			c := read()
			select {
			case chunks <- c:
			case <-done:
				return
			}
			if c.err != nil {
				return
			}
		}
	}()
	return chunks
}
