// Package rtp reads and writes the headers of RTP (RFC 3550), counts what is
// missing, and puts packets back in order.
package rtp

import (
	"encoding/binary"
	"time"

	"example.com/mcast/examples/internal/numbered"
)

// HeaderSize is the length of a header without contributing sources and
// extension, as Append makes it.
const HeaderSize = 12

// PayloadTS is the payload type of MPEG transport streams (RFC 3551 section 6).
const PayloadTS = 33

// A Header is what matters of a packet's header (RFC 3550 section 5.1).
type Header struct {
	Marker    bool
	Type      uint8 // of the payload
	Seq       uint16
	Timestamp uint32
	SSRC      uint32 // says whose sequence and clock these are
}

// Append appends the header to b.
func (h Header) Append(b []byte) []byte {
	second := h.Type & 0x7f
	if h.Marker {
		second |= 0x80
	}
	b = append(b, 2<<6, second)
	b = binary.BigEndian.AppendUint16(b, h.Seq)
	b = binary.BigEndian.AppendUint32(b, h.Timestamp)
	return binary.BigEndian.AppendUint32(b, h.SSRC)
}

// Parse splits a packet into header and payload, without contributing sources,
// extension and padding. It is false for what cannot be RTP; RTCP is not
// (RFC 5761 section 4).
func Parse(b []byte) (h Header, payload []byte, ok bool) {
	if len(b) < HeaderSize || b[0]>>6 != 2 {
		return h, nil, false
	}
	h.Marker, h.Type = b[1]&0x80 != 0, b[1]&0x7f
	if h.Type >= 64 && h.Type < 96 { // RTCP's types
		return h, nil, false
	}
	h.Seq = binary.BigEndian.Uint16(b[2:])
	h.Timestamp = binary.BigEndian.Uint32(b[4:])
	h.SSRC = binary.BigEndian.Uint32(b[8:])
	payload = b[HeaderSize:]
	if n := 4 * int(b[0]&15); n <= len(payload) { // contributing sources
		payload = payload[n:]
	} else {
		return h, nil, false
	}
	if b[0]&0x10 != 0 { // extension
		if len(payload) < 4 {
			return h, nil, false
		}
		n := 4 + 4*int(binary.BigEndian.Uint16(payload[2:]))
		if n > len(payload) {
			return h, nil, false
		}
		payload = payload[n:]
	}
	if b[0]&0x20 != 0 { // padding, whose last byte is its length
		if len(payload) == 0 {
			return h, nil, false
		}
		n := int(payload[len(payload)-1])
		if n == 0 || n > len(payload) {
			return h, nil, false
		}
		payload = payload[:len(payload)-n]
	}
	return h, payload, true
}

// Clock is the rate of a payload type's timestamps, in Hz, where the type alone
// tells it (RFC 3551 section 6); else 0.
func Clock(payloadType uint8) int {
	switch payloadType {
	case 0, 3, 4, 5, 7, 8, 9, 12, 13, 15, 18:
		return 8000
	case 6:
		return 16000
	case 10, 11:
		return 44100
	case 16:
		return 11025
	case 17:
		return 22050
	case 14, 25, 26, 28, 31, 32, PayloadTS, 34:
		return 90000
	}
	return 0
}

// What RFC 3550 appendix A.1 allows before it suspects that the sender has
// begun anew.
const (
	maxDropout  = 3000
	maxMisorder = 100
)

// A Counter finds out from sequence numbers what is missing (RFC 3550 appendix
// A.1). The zero Counter is ready.
type Counter struct {
	numbered.Counter

	started bool
	last    uint64 // the highest number, extended beyond 16 bits
	ssrc    uint32
	again   int // where a sender that has begun anew goes on; -1: none has
}

// Count notes the arrival of a packet.
func (c *Counter) Count(h Header) {
	if !c.started || h.SSRC != c.ssrc {
		c.restart(h)
		return
	}
	ahead := h.Seq - uint16(c.last)
	switch back := -ahead; {
	case ahead < maxDropout:
		c.last += uint64(ahead)
		c.Counter.Count(c.last)
	case back <= maxMisorder:
		c.Counter.Count(c.last - uint64(back))
		return
	case int(h.Seq) == c.again:
		c.restart(h)
		return
	default:
		c.Received++
		c.again = int(h.Seq + 1)
		return
	}
	c.again = -1
}

func (c *Counter) restart(h Header) {
	c.started, c.ssrc, c.again = true, h.SSRC, -1
	c.last = 1<<32 + uint64(h.Seq) // so that there are numbers before it
	c.Counter.Restart()
	c.Counter.Count(c.last)
}

// A Jitter is the mean deviation of arrivals from the distance at which they
// were sent (RFC 3550 section 6.4.1).
type Jitter struct{ mean float64 }

// Add notes two packets, one after the other: what was between them when they
// arrived, and when they were sent.
func (j *Jitter) Add(arrived, sent time.Duration) {
	d := float64(arrived - sent)
	if d < 0 {
		d = -d
	}
	j.mean += (d - j.mean) / 16
}

// Value is the jitter.
func (j *Jitter) Value() time.Duration { return time.Duration(j.mean) }
