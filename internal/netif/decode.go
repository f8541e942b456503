package netif

import (
	"bytes"
	"encoding/binary"
	"strconv"
)

// What systems other than Linux send, as bytes: it is read, and tested, on all
// systems.

// Routing messages of macOS, FreeBSD and DragonFly (route(4)), which have the
// same numbers for these.
const (
	rtmNewAddr    = 0x0c // RTM_NEWADDR, <net/route.h>
	rtmDelAddr    = 0x0d // RTM_DELADDR
	rtmIfInfo     = 0x0e // RTM_IFINFO
	rtmIfAnnounce = 0x11 // RTM_IFANNOUNCE, FreeBSD and DragonFly; macOS has none

	bsdIfUp       = 0x1 // IFF_UP, <net/if.h>
	linkStateDown = 1   // LINK_STATE_DOWN, FreeBSD's <net/if.h>
	linkStateUp   = 2   // LINK_STATE_UP
	departure     = 1   // IFAN_DEPARTURE
)

// routingFormat is what differs between systems.
type routingFormat struct {
	known     bool // else all that is no news of a route is a reason to look
	announces bool // RTM_IFANNOUNCE
	linkState int  // where RTM_IFINFO has ifm_data.ifi_link_state; 0: nowhere
}

// FreeBSD's struct if_msghdr: length, version, type (2, 1, 1 bytes), addresses,
// flags (4 each), index (2), padding, and struct if_data at 16 on all machines,
// which begins with type, physical, addrlen, hdrlen, link_state (1 each).
var routingFormats = map[string]routingFormat{
	"darwin":    {known: true},
	"ios":       {known: true},
	"freebsd":   {known: true, announces: true, linkState: 20},
	"dragonfly": {known: true, announces: true},
}

// lastRouteMessage is RTM_MISS: the messages up to it are about routes, on all
// of these systems.
const lastRouteMessage = 0x07

// parseRouting reads routing messages. struct if_announcemsghdr is length,
// version, type, index (2 bytes), name (16), what (2).
func parseRouting(b []byte, order binary.ByteOrder, format routingFormat) (hints []hint) {
	for len(b) >= 4 {
		n := int(order.Uint16(b))
		if n < 4 || n > len(b) {
			break
		}
		m := b[:n]
		b = b[n:]
		switch kind := m[3]; {
		case !format.known && kind > lastRouteMessage, kind == rtmNewAddr, kind == rtmDelAddr:
			hints = append(hints, hint{})
		case !format.known:
		case kind == rtmIfInfo && n >= 14:
			h := hint{index: int(order.Uint16(m[12:])), flags: true, up: order.Uint32(m[8:])&bsdIfUp != 0}
			if at := format.linkState; at != 0 && at < n {
				h.carrier = carrierOfState(m[at])
			}
			hints = append(hints, h)
		case kind == rtmIfAnnounce && format.announces && n >= 24:
			h := hint{}
			if order.Uint16(m[22:]) == departure {
				h = hint{index: int(order.Uint16(m[4:])), gone: true}
			}
			hints = append(hints, h)
		}
	}
	return hints
}

// carrierOfState is what FreeBSD's link state says.
func carrierOfState(state byte) carrier {
	switch state {
	case linkStateDown:
		return carrierOff
	case linkStateUp:
		return carrierOn
	}
	return carrierUntold
}

// Kernel events of macOS: <sys/kern_event.h>, <sys/sys_domain.h>,
// <net/net_kev.h>.
const (
	sysprotoEvent   = 1
	kevVendorApple  = 1
	kevNetworkClass = 1
	kevDLSubclass   = 2
	kevDLIfDetached = 11
	kevDLLinkOff    = 12
	kevDLLinkOn     = 13
	siocSKEVFILT    = 0x800c6502 // _IOW('e', 2, struct kev_request), three uint32
)

// parseKernelEvents reads struct kern_event_msg: total_size, vendor_code,
// kev_class, kev_subclass, id, event_code (4 bytes each), and for this class
// struct net_event_data of <net/if.h>: if_family, if_unit (4 each) and if_name
// (16), which is the name without its number.
func parseKernelEvents(b []byte, order binary.ByteOrder) (hints []hint) {
	for len(b) >= 24 {
		n := int(order.Uint32(b))
		if n < 24 || n > len(b) {
			break
		}
		m := b[:n]
		b = b[n:]
		if order.Uint32(m[4:]) != kevVendorApple || order.Uint32(m[8:]) != kevNetworkClass || order.Uint32(m[12:]) != kevDLSubclass || n < 48 {
			continue
		}
		name, _, _ := bytes.Cut(m[32:48], []byte{0})
		h := hint{name: string(name) + strconv.FormatUint(uint64(order.Uint32(m[28:])), 10)}
		switch order.Uint32(m[20:]) {
		case kevDLIfDetached:
			h.gone = true
		case kevDLLinkOff:
			h.carrier = carrierWent
		case kevDLLinkOn:
			h.carrier = carrierCame
		default:
			continue
		}
		hints = append(hints, h)
	}
	return hints
}

// ipInterfaceRowIndex is where MIB_IPINTERFACE_ROW has its InterfaceIndex:
// behind Family, padding, and InterfaceLuid, a ULONG64 at 8 on all machines.
// https://learn.microsoft.com/en-us/windows/win32/api/netioapi/ns-netioapi-mib_ipinterface_row
const ipInterfaceRowIndex = 16

// rowInterface gives the interface of a row that begins with these bytes.
func rowInterface(row *[ipInterfaceRowIndex + 4]byte, order binary.ByteOrder) int {
	return int(order.Uint32(row[ipInterfaceRowIndex:]))
}
