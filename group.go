package mcast

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// A Group is a multicast group on an interface. It is comparable: use it as a
// map key. The zero Group is invalid.
type Group struct {
	// Addr is the multicast address, unmapped and without a zone.
	Addr netip.Addr

	// Interface is the index of the interface, as in [net.Interface].
	//
	// In a request, 0 means the one membership that has this address, and is
	// [ErrInterface] if there are several. Where there is none and the request
	// is a join, it means the interface that the routing table picks: towards
	// the source for [Conn.JoinSource], because that is where the channel will
	// arrive from (RFC 4607 section 1), and towards the group for [Conn.Join].
	Interface int
}

// ParseGroup parses a group such as "232.1.1.1%eth0", "ff3e::8000:1%2" or
// "239.1.1.1". What follows the % is an interface's index, or the name of an
// interface that exists; without it, the Interface of the result is 0.
//
// The error is an [*OpError] with [ErrAddress] if the address is not a
// multicast address and [ErrInterface] if there is no such interface.
func ParseGroup(s string) (Group, error) {
	g, err := parseGroup(s, theHost)
	if err != nil {
		return Group{}, &OpError{Op: "ParseGroup", Err: err}
	}
	return g, nil
}

// ParseChannel parses a source-specific channel (RFC 4607) such as
// "10.0.0.1@232.1.1.1%eth0". Without a "S@" it parses a group, and the source
// is the zero [netip.Addr]. An IPv6 source may have a zone, which is the same
// as an interface behind the group.
//
// The errors are those of [ParseGroup], and [ErrAddress] if the source cannot
// be one of the group.
func ParseChannel(s string) (Group, netip.Addr, error) {
	g, source, err := parseChannel(s, theHost)
	if err != nil {
		return Group{}, netip.Addr{}, &OpError{Op: "ParseChannel", Err: err}
	}
	return g, source, nil
}

func parseChannel(s string, h host) (Group, netip.Addr, error) {
	left, right, found := strings.Cut(s, "@")
	if !found {
		g, err := parseGroup(s, h)
		return g, netip.Addr{}, err
	}
	g, err := parseGroup(right, h)
	if err != nil {
		return Group{}, netip.Addr{}, err
	}
	source, err := netip.ParseAddr(left)
	if err != nil {
		return Group{}, netip.Addr{}, because(ErrAddress, "%q is not a source address", left)
	}
	g, source, err = settle(g, source, h)
	if err == nil {
		err = checkSource(g.Addr, source)
	}
	return g, source, err
}

func parseGroup(s string, h host) (Group, error) {
	address, zone, hasZone := strings.Cut(s, "%")
	a, err := netip.ParseAddr(address)
	if err != nil {
		return Group{}, because(ErrAddress, "%q is not a multicast address", address)
	}
	g := Group{Addr: a.Unmap()}
	if err := checkGroup(g); err != nil {
		return Group{}, err
	}
	if hasZone {
		g.Interface, err = zoneIndex(zone, h)
	}
	return g, err
}

// zoneIndex gives the index of the interface that a zone names. A number is
// an index, whether that interface exists or not.
func zoneIndex(zone string, h host) (int, error) {
	if n, err := strconv.ParseUint(zone, 10, 31); err == nil {
		if n == 0 {
			return 0, because(ErrInterface, "interface indexes start at 1: leave out %%0 to let the routing table choose")
		}
		return int(n), nil
	}
	if zone == "" {
		return 0, because(ErrInterface, "no interface behind the %%: name one, or leave out the %%")
	}
	n, err := h.index(zone)
	if err != nil {
		return 0, &reason{kind: ErrInterface, cause: err, text: fmt.Sprintf("no interface is named %q", zone)}
	}
	return n, nil
}

// settle brings what a caller passed into the form that filters and kernels
// use: addresses unmapped, and zones turned into the group's interface.
func settle(g Group, source netip.Addr, h host) (Group, netip.Addr, error) {
	zone, from := g.Addr.Zone(), source.Zone()
	g.Addr, source = g.Addr.Unmap().WithZone(""), source.Unmap().WithZone("")
	for _, z := range []string{zone, from} {
		if z == "" {
			continue
		}
		n, err := zoneIndex(z, h)
		if err != nil {
			return g, source, err
		}
		if g.Interface != 0 && g.Interface != n {
			return g, source, because(ErrInterface, "zone %q is not interface %s: name one interface", z, h.name(g.Interface))
		}
		g.Interface = n
	}
	return g, source, nil
}

// String returns the group as "239.1.1.1", or as "232.1.1.1%2" if it has an
// interface. [ParseGroup] reads it back.
func (g Group) String() string {
	if !g.Addr.IsValid() {
		return "invalid group"
	}
	s := g.Addr.String()
	if g.Interface != 0 {
		s += "%" + strconv.Itoa(g.Interface)
	}
	return s
}

// IsSSM reports whether the address is in the ranges set aside for
// source-specific multicast, 232.0.0.0/8 and ff3x::/32 (RFC 4607 section 1).
func (g Group) IsSSM() bool {
	switch a := g.Addr.Unmap(); {
	case a.Is4():
		return a.As4()[0] == 232
	case a.Is6():
		b := a.As16()
		return b[0] == 0xff && b[1]>>4 == 3 && b[2] == 0 && b[3] == 0
	}
	return false
}

// checkGroup returns nil if g can be joined: a multicast address (RFC 1112
// section 4, RFC 4291 section 2.7) without a zone, and a possible interface.
func checkGroup(g Group) error {
	switch {
	case !g.Addr.IsValid():
		return because(ErrAddress, "the group has no address")
	case g.Addr.Zone() != "":
		return because(ErrAddress, "%v has a zone: give the interface as Group.Interface", g.Addr)
	case !g.Addr.IsMulticast():
		return because(ErrAddress, "%v is not a multicast address (224.0.0.0/4, ff00::/8)", g.Addr)
	case g.Interface < 0 || int64(g.Interface) > 1<<31-1:
		return because(ErrInterface, "%d is not an interface index", g.Interface)
	}
	return nil
}

// checkSource returns nil if source can send to group: a unicast address of
// the same family (RFC 3376 section 4.2.11, RFC 3810 section 5.2.11).
func checkSource(group, source netip.Addr) error {
	switch {
	case !source.IsValid():
		return because(ErrAddress, "the source has no address")
	case source.Is4() != group.Is4():
		return because(ErrAddress, "source %v and group %v are of different families", source, group)
	case source.IsMulticast():
		return because(ErrAddress, "source %v is a multicast address: sources are unicast", source)
	case source.IsUnspecified():
		return because(ErrAddress, "source %v is unspecified: use Join to hear any source", source)
	case source == broadcast:
		return because(ErrAddress, "source %v is the broadcast address: sources are unicast", source)
	}
	return nil
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})
