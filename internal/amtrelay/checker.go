package amtrelay

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// A Checker sees what one socket of a gateway sends, before anything happens to
// it, and notes what no gateway may send.
type Checker struct {
	Problems []string

	last  map[exchange]time.Time // when a nonce was last sent
	kinds map[uint32]byte        // what it was used for
}

type exchange struct {
	kind  byte
	to    netip.AddrPort
	nonce uint32
}

func (c *Checker) problem(to netip.AddrPort, b []byte, format string, args ...any) {
	c.Problems = append(c.Problems, fmt.Sprintf("to %v: %s: % x", to, fmt.Sprintf(format, args...), b))
}

// Sent checks a message.
func (c *Checker) Sent(now time.Time, to netip.AddrPort, b []byte) {
	if c.last == nil {
		c.last, c.kinds = make(map[exchange]time.Time), make(map[uint32]byte)
	}
	// 40 and 8 are the headers of IPv6 and UDP; 1280 is what any path takes.
	if len(b)+40+8 > 1280 {
		c.problem(to, b, "%d bytes do not fit every path", len(b))
	}
	if len(b) < 8 {
		c.problem(to, b, "too short")
		return
	}
	switch kind := b[0]; kind {
	case relayDiscovery, requestMessage:
		c.asked(now, to, b)
	case membershipUpdate:
		if len(b) < 12 || b[1] != 0 {
			c.problem(to, b, "malformed update")
			return
		}
		if _, err := parseReport(b[12:]); err != nil {
			c.problem(to, b, "%v", err)
		}
	case teardownMessage:
		if len(b) != 30 || b[1] != 0 {
			c.problem(to, b, "malformed teardown")
		}
	default:
		c.problem(to, b, "not a message of a gateway")
	}
}

// asked checks a Relay Discovery or a Request: repeated no sooner than after a
// second, with a nonce that is not 0 and serves no other purpose.
func (c *Checker) asked(now time.Time, to netip.AddrPort, b []byte) {
	nonce := binary.BigEndian.Uint32(b[4:])
	e := exchange{b[0], to, nonce}
	last, again := c.last[e]
	// The Linux kernel's flag is tried when the one of the RFC was in vain.
	flags := b[1]
	if again && flags == 0x80 {
		flags = 0
	}
	switch {
	case len(b) != 8 || b[2] != 0 || b[3] != 0 || b[0] == relayDiscovery && flags != 0 || flags > 1 && flags != 0x80:
		c.problem(to, b, "malformed")
	case nonce == 0:
		c.problem(to, b, "nonce 0")
	case again && now.Sub(last) < time.Second:
		c.problem(to, b, "again after %v", now.Sub(last))
	case !again && c.kinds[nonce] != 0:
		c.problem(to, b, "the nonce was used before")
	}
	c.last[e], c.kinds[nonce] = now, b[0]
}
