package netif

import (
	"bytes"
	"encoding/binary"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Messages of rtnetlink(7). What makes no sense in one is left out.

var ne = binary.NativeEndian

// A message is what follows a struct nlmsghdr, and what that says.
type message struct {
	kind, flags uint16
	seq, port   uint32
	data        []byte
}

func messages(b []byte) iter.Seq[message] {
	return func(yield func(message) bool) {
		for len(b) >= unix.SizeofNlMsghdr {
			n := int(ne.Uint32(b))
			if n < unix.SizeofNlMsghdr || n > len(b) {
				return
			}
			m := message{ne.Uint16(b[4:]), ne.Uint16(b[6:]), ne.Uint32(b[8:]), ne.Uint32(b[12:]), b[unix.SizeofNlMsghdr:n]}
			b = b[min(len(b), (n+3)&^3):]
			if !yield(m) {
				return
			}
		}
	}
}

// failure is the error that an NLMSG_ERROR tells; 0: it is an acknowledgment.
func (m message) failure() unix.Errno {
	if len(m.data) < 4 {
		return unix.EBADMSG
	}
	return unix.Errno(-int32(ne.Uint32(m.data)))
}

const (
	nlaTypeMask          = 0x3fff // NLA_TYPE_MASK, linux/netlink.h; the rest are flags
	rtextFilterSkipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS, linux/rtnetlink.h
)

// attributes reads struct rtattr: length, type, then the value, padded to 4.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			n := int(ne.Uint16(b))
			if n < unix.SizeofRtAttr || n > len(b) {
				return
			}
			if !yield(ne.Uint16(b[2:])&nlaTypeMask, b[unix.SizeofRtAttr:n]) {
				return
			}
			b = b[min(len(b), (n+3)&^3):]
		}
	}
}

func uint32Of(value []byte) (n uint32) {
	if len(value) >= 4 {
		n = ne.Uint32(value)
	}
	return n
}

// request lays out a message to the kernel. body is the fixed part, of a
// multiple of four bytes.
func request(kind, flags uint16, seq uint32, body []byte, attrs ...[]byte) []byte {
	b := make([]byte, unix.SizeofNlMsghdr, 64)
	b = append(b, body...)
	for _, a := range attrs {
		b = append(b, a...)
	}
	ne.PutUint32(b, uint32(len(b)))
	ne.PutUint16(b[4:], kind)
	ne.PutUint16(b[6:], unix.NLM_F_REQUEST|flags)
	ne.PutUint32(b[8:], seq)
	return b
}

func attribute(kind uint16, value []byte) []byte {
	b := ne.AppendUint16(nil, uint16(unix.SizeofRtAttr+len(value)))
	b = append(ne.AppendUint16(b, kind), value...)
	return append(b, make([]byte, -len(b)&3)...)
}

// skipStatistics makes descriptions of links a good deal shorter.
func skipStatistics() []byte {
	return attribute(unix.IFLA_EXT_MASK, ne.AppendUint32(nil, rtextFilterSkipStats))
}

// linksRequest asks for all links.
func linksRequest(seq uint32) []byte {
	return request(unix.RTM_GETLINK, unix.NLM_F_DUMP, seq, make([]byte, unix.SizeofIfInfomsg), skipStatistics())
}

// linkRequest asks for one link.
func linkRequest(seq uint32, index int) []byte {
	body := make([]byte, unix.SizeofIfInfomsg)
	ne.PutUint32(body[4:], uint32(index))
	return request(unix.RTM_GETLINK, 0, seq, body, skipStatistics())
}

func addressesRequest(family byte) []byte {
	return request(unix.RTM_GETADDR, unix.NLM_F_DUMP, 1, []byte{unix.SizeofIfAddrmsg - 1: 0, 0: family})
}

// routeRequest asks for the route to an address.
func routeRequest(to netip.Addr) []byte {
	body := make([]byte, unix.SizeofRtMsg)
	body[0], body[1] = familyOf(to.Is6()), byte(to.BitLen())
	return request(unix.RTM_GETROUTE, 0, 1, body, attribute(unix.RTA_DST, to.AsSlice()))
}

// routesRequest asks for all routes.
func routesRequest(ipv6 bool) []byte {
	return request(unix.RTM_GETROUTE, unix.NLM_F_DUMP, 1, []byte{unix.SizeofRtMsg - 1: 0, 0: familyOf(ipv6)})
}

func familyOf(ipv6 bool) byte {
	if ipv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// A link is what RTM_NEWLINK says of an interface.
type link struct {
	Interface
	carriers int
	inet6    inet6
}

// inet6 is what it says of IPv6 on it.
type inet6 struct {
	told  bool // IPv6 runs on it, or did a moment ago
	ready bool // IF_READY
	// Since when it has run so, in hundredths of a second. The reachable and
	// retransmission times explain why stamp may have changed otherwise.
	stamp, reachable, retrans uint32
}

// RFC 8200 section 5.
const leastIPv6MTU = 1280

// In linux/ipv6.h and net/if_inet6.h.
const (
	devconfDisableIPv6 = 26
	ifReady            = 0x80000000
)

// parseLink reads RTM_NEWLINK and RTM_DELLINK: struct ifinfomsg (family, type,
// index, flags, change) and attributes. What IPv6 tells of a link (AF_INET6)
// is true of its index, name and IPv6 only. Bridges use the same messages, with
// their own family, for their ports: these are not ok.
func parseLink(m message) (l link, family byte, ok bool) {
	if len(m.data) < unix.SizeofIfInfomsg {
		return l, 0, false
	}
	family = m.data[0]
	if family != unix.AF_UNSPEC && family != unix.AF_INET6 {
		return l, family, false
	}
	flags := ne.Uint32(m.data[8:])
	l.Index = int(int32(ne.Uint32(m.data[4:])))
	l.Up, l.Carrier = flags&unix.IFF_UP != 0, flags&unix.IFF_LOWER_UP != 0
	l.Multicast, l.Loopback = flags&unix.IFF_MULTICAST != 0, flags&unix.IFF_LOOPBACK != 0
	mtu, families, disabled := uint32(leastIPv6MTU), false, false
	for kind, value := range attributes(m.data[unix.SizeofIfInfomsg:]) {
		switch {
		case kind == unix.IFLA_IFNAME:
			l.Name = string(bytes.TrimRight(value, "\x00"))
		case kind == unix.IFLA_CARRIER_CHANGES:
			l.carriers = int(uint32Of(value))
		case kind == unix.IFLA_MASTER:
			l.Master = int(uint32Of(value))
		case kind == unix.IFLA_MTU && len(value) >= 4:
			mtu = ne.Uint32(value)
		case kind == unix.IFLA_AF_SPEC && family == unix.AF_UNSPEC:
			families = true
			for of, value := range attributes(value) {
				if of == unix.AF_INET6 {
					l.inet6, disabled = parseInet6(value)
				}
			}
		case kind == unix.IFLA_PROTINFO && family == unix.AF_INET6:
			families = true
			l.inet6, disabled = parseInet6(value)
		}
	}
	// A kernel that tells of address families leaves out one that does not run.
	runs := (l.inet6.told || !families) && mtu >= leastIPv6MTU
	l.IPv6, l.IPv6Disabled = runs && !disabled, runs && disabled
	return l, family, l.Index > 0 && (l.Name != "" || m.kind == unix.RTM_DELLINK)
}

func parseInet6(b []byte) (i inet6, disabled bool) {
	i.told = true
	for kind, value := range attributes(b) {
		switch {
		case kind == unix.IFLA_INET6_FLAGS:
			i.ready = uint32Of(value)&ifReady != 0
		case kind == unix.IFLA_INET6_CONF && len(value) >= 4*devconfDisableIPv6+4:
			disabled = ne.Uint32(value[4*devconfDisableIPv6:]) != 0
		case kind == unix.IFLA_INET6_CACHEINFO && len(value) >= 16:
			// struct ifla_cacheinfo: longest packet, stamp, reachable, retrans.
			i.stamp, i.reachable, i.retrans = ne.Uint32(value[4:]), ne.Uint32(value[8:]), ne.Uint32(value[12:])
		}
	}
	return i, disabled
}

// restarted reports whether IPv6 ended and began between two descriptions of a
// link that both say that it runs. Its stamp changes then, but also when a
// router advertises other times; lost says that an address was removed, which
// that router does not do.
func (i inet6) restarted(was inet6, lost bool) bool {
	return i.ready && was.ready && i.stamp != was.stamp &&
		(lost || i.reachable == was.reachable && i.retrans == was.retrans)
}

// parseAddress reads RTM_NEWADDR and RTM_DELADDR: struct ifaddrmsg (family,
// prefix length, flags, scope, index) and attributes.
func parseAddress(m message) (o ownAddress, ok bool) {
	if len(m.data) < unix.SizeofIfAddrmsg {
		return o, false
	}
	o.index = int(int32(ne.Uint32(m.data[4:])))
	for kind, value := range attributes(m.data[unix.SizeofIfAddrmsg:]) {
		a, isAddr := netip.AddrFromSlice(value)
		switch {
		case !isAddr:
		case kind == unix.IFA_LOCAL:
			o.addr = a
		case kind == unix.IFA_ADDRESS && !o.addr.IsValid():
			o.addr = a // the peer's, where there is an IFA_LOCAL
		}
	}
	return o, o.index > 0 && o.addr.IsValid()
}

// A route is what RTM_NEWROUTE says.
type route struct {
	kind      byte // RTN_UNICAST, …
	isDefault bool
	metric    uint32
	out       []int // interfaces
}

// parseRoute reads struct rtmsg (family, destination's length, source's length,
// tos, table, protocol, scope, type, flags) and attributes.
func parseRoute(m message) (r route, ok bool) {
	if len(m.data) < unix.SizeofRtMsg {
		return r, false
	}
	r.kind, r.isDefault = m.data[7], m.data[1] == 0
	for kind, value := range attributes(m.data[unix.SizeofRtMsg:]) {
		switch kind {
		case unix.RTA_PRIORITY:
			r.metric = uint32Of(value)
		case unix.RTA_OIF:
			r.out = append(r.out, int(uint32Of(value)))
		case unix.RTA_MULTIPATH:
			// struct rtnexthop: length, flags, hops, interface.
			for len(value) >= unix.SizeofRtNexthop {
				n := int(ne.Uint16(value))
				if n < unix.SizeofRtNexthop || n > len(value) {
					break
				}
				r.out = append(r.out, int(ne.Uint32(value[4:])))
				value = value[min(len(value), (n+3)&^3):]
			}
		}
	}
	return r, true
}
