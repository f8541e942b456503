// Package meter counts what one sender sends to one group and port, and finds
// out from the payload, where that has numbers, what is missing of it: those of
// examples/send, of RTP, and of MPEG transport streams.
package meter

import (
	"time"

	"example.com/mcast/examples/internal/mpegts"
	"example.com/mcast/examples/internal/numbered"
	"example.com/mcast/examples/internal/rtp"
)

// A Meter counts. The zero Meter is ready.
type Meter struct {
	Datagrams, Bytes uint64
	TS               mpegts.Counter // what is not in Packets is no transport stream

	numbers numbered.Counter // of examples/send
	count   uint64           // how many datagrams the sender says it sent
	ended   bool

	rtp      rtp.Counter
	isRTP    bool
	maybe    rtp.Header // of the last datagram, which looked like RTP
	hasMaybe bool

	jitter  rtp.Jitter
	timed   bool
	arrived time.Time // the last packet with a time
	stamp   uint32    // that it had, of RTP
	clock   mpegts.Clock
}

// Missing is what numbers tell.
type Missing struct {
	Lost      uint64 // missing so far
	Late      uint64 // came after a higher number
	Duplicate uint64
}

// Missing is known where datagrams have numbers.
func (m *Meter) Missing() (x Missing, known bool) {
	a, b := &m.numbers, &m.rtp
	return Missing{a.Lost + b.Lost, a.Late + b.Late, a.Duplicate + b.Duplicate}, a.Received+b.Received > 0
}

// Ended returns how many datagrams there were, if the sender said so.
func (m *Meter) Ended() (total uint64, ended bool) { return m.count, m.ended }

// Jitter is known where the payload has times (RFC 3550 section 6.4.1).
func (m *Meter) Jitter() (time.Duration, bool) { return m.jitter.Value(), m.timed }

// Format is "numbered" (by examples/send), "rtp", "rtp/ts", "ts" or "".
func (m *Meter) Format() string {
	ts := m.TS.Packets > 0
	switch {
	case m.numbers.Received > 0:
		return "numbered"
	case m.isRTP && ts:
		return "rtp/ts"
	case m.isRTP:
		return "rtp"
	case ts:
		return "ts"
	}
	return ""
}

// A Datagram is what a payload was found to be.
type Datagram struct {
	Payload []byte // without the header of examples/send
	End     bool   // no datagram of the stream, but its end
	IsRTP   bool   // Payload is Header and Content
	Header  rtp.Header
	Content []byte
}

// Count notes the arrival of a datagram.
func (m *Meter) Count(b []byte, arrived time.Time) (d Datagram) {
	h, payload, ok := numbered.Parse(b)
	if ok && h.End {
		m.numbers.End(h.Seq)
		m.count, m.ended = h.Seq, true
		return Datagram{End: true}
	}
	m.Datagrams++
	m.Bytes += uint64(len(b))
	if ok {
		m.numbers.Count(h.Seq)
		return Datagram{Payload: payload}
	}
	d.Payload = b
	if mpegts.Valid(b) {
		m.transport(b, arrived, true)
		return d
	}
	if d.Header, d.Content, ok = rtp.Parse(b); !ok {
		m.hasMaybe = false
		return d
	}
	ts := mpegts.Valid(d.Content)
	switch {
	case m.isRTP:
	case ts && d.Header.Type == rtp.PayloadTS || m.hasMaybe && follows(m.maybe, d.Header):
		m.isRTP = true
		if m.hasMaybe {
			m.rtp.Count(m.maybe) // now it is known that it was
		}
	default:
		m.maybe, m.hasMaybe = d.Header, true
		return d
	}
	d.IsRTP = true
	m.rtp.Count(d.Header)
	if ts {
		m.transport(d.Content, arrived, false)
	}
	if rate := rtp.Clock(d.Header.Type); rate > 0 {
		if m.timed {
			sent := time.Duration(int32(d.Header.Timestamp-m.stamp)) * time.Second / time.Duration(rate)
			m.jitter.Add(arrived.Sub(m.arrived), sent)
		}
		m.timed, m.arrived, m.stamp = true, arrived, d.Header.Timestamp
	}
	return d
}

// follows reports whether b is a packet after a: what only looks like RTP has
// no such headers twice (RFC 3550 appendix A.1).
func follows(a, b rtp.Header) bool {
	ahead := b.Seq - a.Seq
	return a.SSRC == b.SSRC && a.Type == b.Type && ahead > 0 && ahead < 100
}

// transport counts packets of a transport stream; timed: their clock is the only
// one that there is.
func (m *Meter) transport(b []byte, arrived time.Time, timed bool) {
	m.TS.Count(b)
	if !timed {
		return
	}
	for p := b; len(p) > 0; p = p[mpegts.Size:] {
		sent, has, goesOn := m.clock.Next(p[:mpegts.Size])
		if goesOn {
			m.jitter.Add(arrived.Sub(m.arrived), sent)
			m.timed = true
		}
		if has {
			m.arrived = arrived
		}
	}
}
