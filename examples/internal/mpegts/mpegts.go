// Package mpegts reads what matters of MPEG transport streams (ISO/IEC 13818-1,
// also Rec. ITU-T H.222.0): which packets are missing, and when each is due.
package mpegts

import "time"

// Size is the length of a packet.
const Size = 188

// PerDatagram is how many packets players expect in a datagram.
const PerDatagram = 7

const (
	syncByte = 0x47
	nullPID  = 0x1fff
)

// Valid reports whether b is one or more whole packets.
func Valid(b []byte) bool {
	if len(b) == 0 || len(b)%Size != 0 {
		return false
	}
	for i := 0; i < len(b); i += Size {
		if b[i] != syncByte {
			return false
		}
	}
	return true
}

// PID is the number of the stream that a packet belongs to (section 2.4.3.2).
func PID(p []byte) uint16 { return uint16(p[1]&0x1f)<<8 | uint16(p[2]) }

// discontinuity reports whether the packet says that its counter and clock may
// begin anew (section 2.4.3.5).
func discontinuity(p []byte) bool { return p[3]&0x20 != 0 && p[4] > 0 && p[5]&0x80 != 0 }

// PCR is the clock in a packet, if it has one, in ticks of 27 MHz, which begin
// anew after clockCycle.
func PCR(p []byte) (ticks int64, ok bool) {
	if p[3]&0x20 == 0 || p[4] < 7 || p[5]&0x10 == 0 {
		return 0, false
	}
	base := int64(p[6])<<25 | int64(p[7])<<17 | int64(p[8])<<9 | int64(p[9])<<1 | int64(p[10])>>7
	return base*300 + int64(p[10]&1)<<8 + int64(p[11]), true
}

const clockCycle = 300 << 33

// between is the time from one clock value to a later one. It is false if that
// is no time that packets are apart: 0.1 s at most, by the book (section
// 2.7.2), and more by experience.
func between(from, to int64) (time.Duration, bool) {
	ticks := (to - from + clockCycle) % clockCycle
	if ticks >= 27_000_000 {
		return 0, false
	}
	return time.Duration(ticks) * 1000 / 27, true
}

// A Counter finds out from continuity counters what is missing. The zero
// Counter is ready.
type Counter struct {
	Packets         uint64
	Lost            uint64 // packets, at the least: the counters have 4 bits
	Discontinuities uint64 // places where some are missing
	Errors          uint64 // packets that a modem or the like marked as broken

	last *[1 << 13]uint8 // by PID: the counter, and flags
}

const (
	seen     = 0x10 // there was a packet
	repeated = 0x20 // it came twice, which may be
)

// Count notes the arrival of one or more packets, which are Valid.
func (c *Counter) Count(b []byte) {
	if c.last == nil {
		c.last = new([1 << 13]uint8)
	}
	for ; len(b) >= Size; b = b[Size:] {
		c.packet(b[:Size])
	}
}

// packet follows section 2.4.3.3.
func (c *Counter) packet(p []byte) {
	c.Packets++
	if p[1]&0x80 != 0 {
		c.Errors++
		return
	}
	pid := PID(p)
	if pid == nullPID {
		return
	}
	last, n := &c.last[pid], p[3]&15
	was, payload := *last, p[3]&0x10 != 0
	switch next := (was + 1) & 15; {
	case was&seen == 0 || discontinuity(p):
	case !payload: // it does not count
		return
	case n == next:
	case n == was&15 && was&repeated == 0:
		*last |= repeated
		return
	default:
		c.Discontinuities++
		c.Lost += uint64((n - next) & 15)
	}
	*last = n | seen
	if !payload {
		// Its counter is that of the last one with a payload.
		*last |= repeated
	}
}

// A Clock follows the clock of a stream: that of the first PID that has one.
type Clock struct {
	started bool
	pid     uint16
	last    int64
}

// Next reads a packet. It returns whether that has the clock, and if it goes on
// from the one before, the time since.
func (c *Clock) Next(p []byte) (since time.Duration, has, goesOn bool) {
	ticks, has := PCR(p)
	if !has || p[1]&0x80 != 0 || c.started && PID(p) != c.pid {
		return 0, false, false
	}
	was := *c
	*c = Clock{true, PID(p), ticks}
	if was.started && !discontinuity(p) {
		since, goesOn = between(was.last, ticks)
	}
	return since, true, goesOn
}
