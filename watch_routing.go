package mcast

import "encoding/binary"

// A linkHint is what a message of the system says of a link.
type linkHint struct {
	index       int
	gone        bool
	up, running bool
	look        bool // it says only that something changed
}

// Routing messages of macOS, FreeBSD and DragonFly (route(4), <net/route.h>),
// which have the same numbers for these. OpenBSD and NetBSD have not.
const (
	rtmNewAddr    = 0xc
	rtmDelAddr    = 0xd
	rtmIfInfo     = 0xe
	rtmIfAnnounce = 0x11 // FreeBSD and DragonFly; macOS has none

	ifUp      = 0x1
	ifRunning = 0x40
	departure = 1 // IFAN_DEPARTURE
)

// parseRouting reads routing messages: if_msghdr is length, version, type,
// addresses, flags, index; if_announcemsghdr is length, version, type, index,
// name, what.
func parseRouting(b []byte, order binary.ByteOrder, announces bool) (hints []linkHint) {
	for len(b) >= 4 {
		n := int(order.Uint16(b))
		if n < 4 || n > len(b) {
			break
		}
		m := b[:n]
		b = b[n:]
		switch kind := m[3]; {
		case kind == rtmIfInfo && n >= 14:
			flags := order.Uint32(m[8:])
			hints = append(hints, linkHint{index: int(order.Uint16(m[12:])), up: flags&ifUp != 0, running: flags&ifRunning != 0})
		case kind == rtmIfAnnounce && announces && n >= 24:
			if order.Uint16(m[22:]) == departure {
				hints = append(hints, linkHint{index: int(order.Uint16(m[4:])), gone: true})
			} else {
				hints = append(hints, linkHint{look: true})
			}
		case kind == rtmNewAddr || kind == rtmDelAddr:
			hints = append(hints, linkHint{look: true})
		}
	}
	return hints
}
