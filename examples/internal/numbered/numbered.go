// Package numbered is the format of the datagrams that examples/send sends and
// examples/recv counts.
//
// A datagram starts with 16 bytes, big endian, and the payload follows:
//
//	0  4 bytes  "mcn1"
//	4  4 bytes  the stream: a number that each run of send draws at random
//	8  8 bytes  the datagram's number in the stream, from 0
//
// One that begins with "mcne" ends its stream, and says with its number how
// many there were before it.
package numbered

import "encoding/binary"

// Size is the length of the header.
const Size = 16

const (
	magic = "mcn1"
	end   = "mcne"
)

// A Header says which datagram of which stream this is.
type Header struct {
	Stream uint32
	Seq    uint64
	End    bool // there is no datagram Seq, nor later ones
}

// Append appends the header to b.
func (h Header) Append(b []byte) []byte {
	if h.End {
		b = append(b, end...)
	} else {
		b = append(b, magic...)
	}
	b = binary.BigEndian.AppendUint32(b, h.Stream)
	return binary.BigEndian.AppendUint64(b, h.Seq)
}

// Parse splits a datagram into header and payload. It is false for one that
// has no such header.
func Parse(b []byte) (h Header, payload []byte, ok bool) {
	if len(b) < Size || string(b[:4]) != magic && string(b[:4]) != end {
		return h, b, false
	}
	h.End = string(b[:4]) == end
	h.Stream = binary.BigEndian.Uint32(b[4:])
	h.Seq = binary.BigEndian.Uint64(b[8:])
	return h, b[Size:], true
}

// A Counter finds out from the numbers of one stream what is missing. It
// starts with the first number that it sees. The zero Counter is ready.
type Counter struct {
	Received  uint64
	Lost      uint64 // missing so far
	Late      uint64 // came after a higher number
	Duplicate uint64

	started     bool
	first, next uint64
	seen        uint64 // bit i: number next-1-i was here
}

// Restart makes the next number the first one of a new sequence.
func (c *Counter) Restart() { c.started = false }

// End notes that there were so many datagrams, so that those missing at the
// tail are known to be. Without any before it, it tells nothing: it may be the
// end of what was over before.
func (c *Counter) End(total uint64) {
	if !c.started || total <= c.next {
		return
	}
	gap := total - c.next
	c.Lost += gap
	c.seen <<= gap // gap ≥ 64 leaves nothing
	c.next = total
}

// Count notes the arrival of a datagram.
func (c *Counter) Count(seq uint64) {
	if !c.started {
		c.started, c.first, c.next, c.seen = true, seq, seq, 0
	}
	c.Received++
	if seq >= c.next {
		gap := seq - c.next
		c.Lost += gap
		c.seen = c.seen<<(gap+1) | 1 // gap ≥ 63 leaves nothing
		if gap == 1<<64-1 {
			c.seen = 1
		}
		c.next = seq + 1
		return
	}
	switch age := c.next - 1 - seq; {
	case age < 64 && c.seen&(1<<age) != 0:
		c.Duplicate++
	case age < 64 && seq >= c.first:
		c.seen |= 1 << age
		c.Lost--
		c.Late++
	default: // too old to tell a late one from a duplicate, or before the first
		c.Late++
	}
}
