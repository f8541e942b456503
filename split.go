package mcast

import (
	"net/netip"
	"os"
	"time"
)

// A splitter takes datagrams that the system coalesced (Config.GRO) apart.
type splitter struct {
	on    bool
	slots []Message // of largest bytes each
	rest  []Message // of slots: what has not been handed over yet
	at    int       // bytes of the first one that have been

	pieces []Message // of the slab that ReadSlab was given
}

// splitSlots is how many coalesced datagrams one call takes.
const splitSlots = 16

// datagrams says how many datagrams a message has.
func (m *Message) datagrams() int {
	if m.segment <= 0 || m.N <= m.segment {
		return 1
	}
	return (m.N + m.segment - 1) / m.segment
}

// next gives the payload that starts at a place, and where the one behind it
// does.
func (m *Message) next(at int) (payload []byte, end int) {
	end = m.N
	if m.segment > 0 {
		end = min(m.N, at+m.segment)
	}
	return m.Buf[at:end], end
}

// readSplit reads at least one datagram, copied out of the system's larger
// ones. What has no place in ms is kept for the next call.
func (c *Conn) readSplit(ms []Message) (int, error) {
	s := &c.split
	if len(s.rest) == 0 {
		s.makeSlots()
		n, err := c.readSome(s.slots)
		if err != nil {
			return 0, err
		}
		s.rest = s.slots[:n]
	}
	n := 0
	for ; n < len(ms) && len(s.rest) > 0; n++ {
		payload, from := s.take()
		m := &ms[n]
		m.N = copy(m.Buf, payload)
		m.Truncated = from.Truncated || m.N < len(payload)
		m.Source, m.Group, m.Port, m.Time, m.segment = from.Source, from.Group, from.Port, from.Time, 0
	}
	return n, nil
}

// take hands over the next datagram of the rest.
func (s *splitter) take() (payload []byte, from *Message) {
	from = &s.rest[0]
	payload, s.at = from.next(s.at)
	if s.at >= from.N {
		s.rest, s.at = s.rest[1:], 0
	}
	return payload, from
}

// keep copies what is left of messages, whose buffers belong to somebody else,
// into slots, for the next call. The first one starts at a place within.
func (s *splitter) keep(ms []Message, at int) {
	s.makeSlots()
	for i := range ms {
		slot := &s.slots[i]
		buf := slot.Buf
		*slot = ms[i]
		slot.Buf = buf
		copy(buf, ms[i].Buf[:ms[i].N])
	}
	s.rest, s.at = s.slots[:len(ms)], at
}

func (s *splitter) makeSlots() {
	if s.slots == nil {
		s.slots = make([]Message, splitSlots)
		cut(s.slots, make([]byte, splitSlots*largest))
	}
}

// cut gives each message a piece of a slab.
func cut(ms []Message, slab []byte) {
	for i := range ms {
		ms[i].Buf = slab[i*largest:][:largest]
	}
}

// A Datagram is a datagram in a slab; see [Conn.ReadSlab]. Its fields are those
// of a [Message].
type Datagram struct {
	Offset, Size int // the payload is slab[Offset:Offset+Size]
	Source       netip.AddrPort
	Group        Group
	Port         int
	Time         time.Time
	Truncated    bool
}

// ReadSlab reads datagrams as ReadBatch does, but leaves them where the system
// put them: the slab is cut into pieces of 64 KiB, at most 16 of them, and each
// takes one datagram, or with Config.GRO as many as were coalesced. It returns
// how many of ds it set, at least one. Only what finds no room in ds is copied,
// and kept for the next read. It allocates nothing else.
//
// The error is that of the socket, as for ReadMessage, or matches
// [os.ErrInvalid] for a slab of less than 64 KiB or no room in ds.
func (c *Conn) ReadSlab(slab []byte, ds []Datagram) (int, error) {
	if len(slab) < largest || len(ds) == 0 {
		return 0, opError("ReadSlab", Group{}, netip.Addr{}, because(os.ErrInvalid, "want a slab of 64 KiB or more, and room for a datagram"))
	}
	c.turn.Lock()
	defer c.turn.Unlock()
	s := &c.split
	if len(s.rest) > 0 {
		return s.refill(slab, ds), nil
	}
	pieces := min(len(slab)/largest, splitSlots)
	if !s.on {
		pieces = min(pieces, len(ds))
	}
	if s.pieces == nil {
		s.pieces = make([]Message, splitSlots)
	}
	ms := s.pieces[:pieces]
	cut(ms, slab)
	n, err := c.readSome(ms)
	if err != nil {
		return 0, err
	}
	filled := 0
	for i := range ms[:n] {
		m := &ms[i]
		for at := 0; ; {
			if filled == len(ds) {
				s.keep(ms[i:n], at)
				return filled, nil
			}
			payload, end := m.next(at)
			// The pieces reach to the end of the slab's capacity.
			ds[filled].set(m, cap(slab)-cap(payload), len(payload))
			filled++
			if at = end; at >= m.N {
				break
			}
		}
	}
	return filled, nil
}

// refill copies datagrams that were kept into a slab.
func (s *splitter) refill(slab []byte, ds []Datagram) int {
	n, offset := 0, 0
	for ; n < len(ds) && len(s.rest) > 0; n++ {
		if payload, _ := s.rest[0].next(s.at); len(payload) > len(slab)-offset {
			break
		}
		payload, from := s.take()
		ds[n].set(from, offset, copy(slab[offset:], payload))
		offset += len(payload)
	}
	return n
}

func (d *Datagram) set(m *Message, offset, size int) {
	*d = Datagram{
		Offset: offset, Size: size,
		Source: m.Source, Group: m.Group, Port: m.Port, Time: m.Time, Truncated: m.Truncated,
	}
}
