package mcast

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// A Group is a multicast group on an interface. It is comparable: use it as a
// map key. The zero Group is invalid.
type Group struct {
	// Addr is the multicast address, unmapped and without a zone.
	Addr netip.Addr

	// Interface names the interface: "eth0", or in digits its index. A
	// membership belongs to the name. An index is turned into the name when the
	// request is made; an interface whose name is all digits, or "*", can be
	// reached by its index only.
	//
	// "" means the one membership that has this address, and is [ErrInterface]
	// if there are several. Where there is none and the request is a join, it
	// means the interface that the routing table picks: towards the source for
	// [Conn.JoinSource], because that is where the channel will arrive from
	// (RFC 4607 section 1), and towards the group for [Conn.Join]. Such a
	// membership follows the route when its interface goes.
	//
	// "*" means every interface that is up and takes multicast, those that come
	// later too: not loopback, unless there is nothing else, and not the ports
	// of a bridge or bond. Interfaces with a default route come first, so that a
	// limit of the system is reached by those that matter least. For one address
	// it excludes memberships on single interfaces, and they exclude it.
	Interface string
}

// ParseGroup parses a group such as "232.1.1.1%eth0", "ff3e::8000:1%2",
// "239.1.1.1%*" or "239.1.1.1". What follows the % is the Interface of the
// result. ParseGroup asks the system nothing, so the interface need not exist.
// A name that has one of % @ ] : in it is not parsed: set Interface to it.
//
// The error is an [*OpError] with [ErrAddress] if the address is not a
// multicast address and [ErrInterface] for an interface that cannot be.
func ParseGroup(s string) (Group, error) {
	g, err := parseGroup(s)
	if err != nil {
		return Group{}, &OpError{Op: "ParseGroup", Err: err}
	}
	return g, nil
}

func parseGroup(s string) (Group, error) {
	address, zone, hasZone := strings.Cut(s, "%")
	a, err := netip.ParseAddr(address)
	if err != nil {
		return Group{}, because(ErrAddress, "%q is not a multicast address", address)
	}
	g := Group{Addr: a.Unmap(), Interface: zone}
	if err := checkGroup(g); err != nil {
		return Group{}, err
	}
	if hasZone {
		if zone == "" {
			return Group{}, because(ErrInterface, "no interface behind the %%: name one, or leave out the %%")
		}
		if err := checkZone(zone); err != nil {
			return Group{}, err
		}
	}
	return g, nil
}

// checkZone returns nil if what stands behind a % can be an interface. Names
// that would not be read back are refused, lest a port be taken for one.
func checkZone(ifname string) error {
	if i := strings.IndexAny(ifname, "%@]:\x00"); i >= 0 {
		return because(ErrInterface, "%q is not read as an interface, because of the %q: set Group.Interface, or use ParseChannel for a group with a port", ifname, ifname[i])
	}
	_, _, err := parseIndex(ifname)
	return err
}

// parseIndex gives the index that an interface in digits is, and whether it is
// in digits.
func parseIndex(ifname string) (index int, digits bool, err error) {
	for i := range len(ifname) {
		if ifname[i] < '0' || ifname[i] > '9' {
			return 0, false, nil
		}
	}
	if ifname == "" {
		return 0, false, nil
	}
	n, err := strconv.ParseUint(ifname, 10, 31)
	switch {
	case err != nil:
		return 0, true, because(ErrInterface, "%s is not an interface index", ifname)
	case n == 0:
		return 0, true, because(ErrInterface, "interface indexes start at 1: leave out the interface to let the routing table choose")
	}
	return int(n), true, nil
}

// String returns the group as "239.1.1.1", or as "232.1.1.1%eth0" if it has an
// interface. [ParseGroup] reads it back, unless the interface's name has one of
// % @ ] : in it.
func (g Group) String() string {
	switch {
	case !g.Addr.IsValid():
		return "invalid group"
	case g.Interface != "":
		return g.Addr.String() + "%" + g.Interface
	}
	return g.Addr.String()
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

// linkScoped reports whether a group of that address is another one on each
// interface (RFC 4291 section 2.7): ff01 and ff02 with any flags.
func linkScoped(a netip.Addr) bool {
	return a.Is6() && (a.IsLinkLocalMulticast() || a.IsInterfaceLocalMulticast())
}

// A Channel is what a program listens to: a group from one source (RFC 4607),
// or from any, perhaps on a port. It is comparable: use it as a map key.
type Channel struct {
	Group  Group
	Source netip.Addr // the zero Addr: any source
	Port   int        // 0: not said
}

// ParseChannel parses a channel: source, group, interface and port, of which
// all but the group may be left out, as in
//
//	10.0.0.1@232.1.1.1%eth0:5000
//	fd00::1@[ff3e::8000:1%eth0]:5000
//	232.1.1.1
//
// or a URL of the forms that media players take, where the source may stand in
// brackets, and be behind sources= as well:
//
//	udp://10.0.0.1@232.1.1.1:5000
//	rtp://[fd00::1]@[ff3e::8000:1]:5000
//	udp://@239.1.1.1:5000
//	udp://232.1.1.1:5000?sources=10.0.0.1
//
// Other parameters of a URL are ignored. An IPv6 source may have a zone, which
// is the same as an interface behind the group. ParseChannel asks the system
// nothing.
//
// The errors are those of [ParseGroup], and [ErrAddress] if the source cannot
// be one of the group, or the port is none.
func ParseChannel(s string) (Channel, error) {
	ch, err := parseChannel(s)
	if err != nil {
		return Channel{}, &OpError{Op: "ParseChannel", Err: err}
	}
	return ch, nil
}

func parseChannel(s string) (ch Channel, err error) {
	sources := ""
	scheme, rest, isURL := strings.Cut(s, "://")
	if isURL {
		if scheme = strings.ToLower(scheme); scheme != "udp" && scheme != "rtp" {
			return ch, because(ErrAddress, "%q is not a channel: of URLs it takes udp:// and rtp://", s)
		}
		rest, query, _ := strings.Cut(rest, "?")
		s = strings.TrimSuffix(rest, "/")
		values, err := url.ParseQuery(query)
		if err != nil {
			return ch, because(ErrAddress, "%q has parameters that cannot be read: %v", s, err)
		}
		sources = values.Get("sources")
	}
	source, group, found := strings.Cut(s, "@")
	switch {
	case !found:
		source, group = "", s
	case source == "" && !isURL:
		return ch, because(ErrAddress, "no source before the @: give one, or leave out the @ to hear any source")
	}
	if source == "" {
		source = sources
	} else if sources != "" && sources != source {
		return ch, because(ErrAddress, "%s and %s: a channel has one source", source, sources)
	}
	host, port, err := splitPort(group)
	if err != nil {
		return ch, err
	}
	if ch.Group, err = parseGroup(host); err != nil {
		return Channel{}, err
	}
	ch.Port = port
	if source == "" {
		return ch, nil
	}
	bare := source
	if strings.HasPrefix(source, "[") && strings.HasSuffix(source, "]") {
		bare = source[1 : len(source)-1]
	}
	if ch.Source, err = netip.ParseAddr(bare); err != nil {
		return Channel{}, because(ErrAddress, "%q is not a source address", source)
	}
	ch.Group, ch.Source, err = unzone(ch.Group, ch.Source)
	if err == nil {
		err = checkSource(ch.Group.Addr, ch.Source)
	}
	if err == nil {
		err = checkZone(ch.Group.Interface)
	}
	if err != nil {
		return Channel{}, err
	}
	return ch, nil
}

// splitPort takes the port off a group: "232.1.1.1%eth0:5000",
// "[ff3e::8000:1%eth0]:5000". An IPv6 group with a port is in brackets.
func splitPort(s string) (host string, port int, err error) {
	digits, hasPort := "", false
	switch {
	case strings.HasPrefix(s, "["):
		var rest string
		var closed bool
		if host, rest, closed = strings.Cut(s[1:], "]"); !closed {
			return "", 0, because(ErrAddress, "%q has no ]", s)
		}
		if digits, hasPort = strings.CutPrefix(rest, ":"); !hasPort && rest != "" {
			return "", 0, because(ErrAddress, "%q: after the ] comes a colon and the port; the interface stands before it", s)
		}
	default:
		address, zone, _ := strings.Cut(s, "%")
		six := strings.Count(address, ":") > 1
		if six && strings.Contains(zone, ":") {
			return "", 0, because(ErrAddress, "%q: an IPv6 group with a port stands in brackets, [%s]:port", s, s[:strings.LastIndexByte(s, ':')])
		}
		host = s
		if i := strings.LastIndexByte(s, ':'); i >= 0 && !six {
			host, digits, hasPort = s[:i], s[i+1:], true
		}
	}
	if !hasPort {
		return host, 0, nil
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil {
		return "", 0, because(ErrAddress, "%q is not a port: one is a number up to 65535", digits)
	}
	return host, int(n), nil
}

// String returns the channel as "10.0.0.1@232.1.1.1%eth0:5000" or
// "fd00::1@[ff3e::8000:1%eth0]:5000". [ParseChannel] reads it back, with the
// same exception as [Group.String].
func (ch Channel) String() string {
	s := ch.Group.String()
	if ch.Port != 0 {
		if ch.Group.Addr.Is6() {
			s = "[" + s + "]"
		}
		s = fmt.Sprintf("%s:%d", s, ch.Port)
	}
	if ch.Source.IsValid() {
		s = ch.Source.String() + "@" + s
	}
	return s
}

// unzone unmaps the addresses, and turns their zones into the group's
// interface.
func unzone(g Group, source netip.Addr) (Group, netip.Addr, error) {
	zone, from := g.Addr.Zone(), source.Zone()
	if g.Addr.Is4() && zone == "" && source.Is4() {
		return g, source, nil
	}
	g.Addr, source = g.Addr.Unmap().WithZone(""), source.Unmap().WithZone("")
	for _, z := range []string{zone, from} {
		if z == "" {
			continue
		}
		if g.Interface != "" && g.Interface != z {
			return g, source, because(ErrInterface, "zone %q is not interface %s: name one interface", z, g.Interface)
		}
		g.Interface = z
	}
	return g, source, nil
}

// checkGroup returns nil if g can be joined: a multicast address (RFC 1112
// section 4, RFC 4291 section 2.7) without a zone.
func checkGroup(g Group) error {
	switch {
	case !g.Addr.IsValid():
		return because(ErrAddress, "the group has no address")
	case g.Addr.Zone() != "":
		return because(ErrAddress, "%v has a zone: give the interface as Group.Interface", g.Addr)
	case !g.Addr.IsMulticast():
		return because(ErrAddress, "%v is not a multicast address (224.0.0.0/4, ff00::/8)", g.Addr)
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
