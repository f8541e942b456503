package mcast

import (
	"encoding/binary"
	"net/netip"
	"strconv"
)

// A platform is what a system's headers and habits say about the options for
// memberships: numbers, layouts and quirks, as data. It is complete on every
// system, so that each one's requests are laid out and tested on any.
type platform struct {
	name  string
	order binary.ByteOrder
	word  int // bytes in a pointer

	// Control messages.
	controlAlign int // what they are aligned to

	// Socket addresses.
	socketLevel int  // SOL_SOCKET
	hasLen      bool // the first byte is the length (4.4BSD)
	inet6       int  // AF_INET6
	storage     int  // bytes in a sockaddr_storage
	align       int  // its alignment: where a group_req has the group

	// Options, numbered by Op. All zero: this system has none.
	mcast [numOps]int // MCAST_*, at level IPPROTO_IP or IPPROTO_IPV6
	ip    [numOps]int // IP_*, at level IPPROTO_IP
	ipv6  [numOps]int // IPV6_*, at level IPPROTO_IPV6: any-source only

	oldIPv4     bool    // IP_* comes before MCAST_* for IPv4
	interfaceIn ipField // how IP_* names an interface
	sourceLast  bool    // ip_mreq_source is group, interface, source

	// The full filter.
	full             fullFilter
	fullIP, fullIPv6 int // options that get and set it
	fullOldIP        int // the older one for IPv4, a struct ip_msfilter
	include, exclude uint32
	noEmptyFull      bool // a full filter without sources is not to be sent

	// Multicast per socket instead of per host: options to set to 0.
	allIP, allIPv6 int

	oneFilter  bool // of a group's memberships in IPv6, one decides for all interfaces
	byteCounts bool // some IPv4 requests answer a byte count as an error number
	keepsGone  bool // a membership stays when its interface goes, and its index then means any

	// Error numbers.
	noOption []int // no such option
	noDevice []int // no such interface
	noMember []int // no such membership
	limits   []int // out of something
}

// An ipField is how an IP_* option names an interface.
type ipField uint8

const (
	byIndex   ipField = iota // 0.x.y.z is an index, in network order
	byMreqn                  // ip_mreqn has an index; ip_mreq_source wants an address
	byAddress                // an address
)

// A fullFilter is how a system takes and gives a whole filter (RFC 3678
// sections 4.2 and 5.2 name functions, not options).
type fullFilter uint8

const (
	noFull      fullFilter = iota
	groupFilter            // struct group_filter in an option
	msfilterReq            // struct __msfilterreq, which has a pointer to the sources
	ioctlFilter            // struct ip_msfilter or group_filter in an ioctl
)

const (
	levelIP   = 0  // IPPROTO_IP
	levelIPv6 = 41 // IPPROTO_IPV6
)

func level(addr netip.Addr) int {
	if addr.Is4() {
		return levelIP
	}
	return levelIPv6
}

// linuxPlatform: include/uapi/linux/in.h and in6.h. Words of 4 bytes are aligned to 4,
// and struct __kernel_sockaddr_storage as a pointer.
func linuxPlatform(word int, order binary.ByteOrder) *platform {
	return &platform{
		name: "linux", order: order, word: word, controlAlign: word, socketLevel: 1,
		inet6: 10, storage: 128, align: word,
		mcast:       ops(42, 46, 43, 44, 45, 47),
		ip:          ops(35, 39, 38, 37, 36, 40),
		ipv6:        ops(20, 0, 0, 0, 21, 0),
		interfaceIn: byMreqn, sourceLast: true,
		full: groupFilter, fullIP: 48, fullIPv6: 48, fullOldIP: 41,
		include: 1, exclude: 0, oneFilter: true,
		allIP: 49, allIPv6: 29,
		noOption: []int{92, 95},  // ENOPROTOOPT, EOPNOTSUPP
		noDevice: []int{19, 3},   // ENODEV, ESRCH: a full filter on an interface that is not the one joined
		noMember: []int{99, 22},  // EADDRNOTAVAIL, EINVAL
		limits:   []int{105, 12}, // ENOBUFS, ENOMEM
	}
}

// darwinPlatform: bsd/netinet/in.h and bsd/netinet6/in6.h of XNU. group_req and
// group_source_req stand under #pragma pack(4).
func darwinPlatform() *platform {
	p := bsdPlatform("darwin", 8, 30)
	p.align = 4
	p.byteCounts, p.keepsGone = true, true
	p.interfaceIn = byIndex
	return p
}

// freebsdPlatform: sys/netinet/in.h and sys/netinet6/in6.h. struct sockaddr_storage is
// aligned to 8 bytes, but on 386.
func freebsdPlatform(word, align int) *platform {
	p := bsdPlatform("freebsd", word, 28)
	p.align = align
	p.interfaceIn = byAddress
	return p
}

// bsdPlatform has what macOS and FreeBSD share, from the same source-filter code.
func bsdPlatform(name string, word, inet6 int) *platform {
	return &platform{
		name: name, order: binary.LittleEndian, word: word, controlAlign: word, socketLevel: 0xffff,
		hasLen: true, inet6: inet6, storage: 128,
		mcast: ops(80, 82, 84, 85, 81, 83),
		ip:    ops(12, 70, 72, 73, 13, 71),
		ipv6:  ops(12, 0, 0, 0, 13, 0),
		full:  msfilterReq, fullIP: 74, fullIPv6: 74,
		include: 1, exclude: 2, noEmptyFull: true,
		noOption: []int{42, 45, 102},    // ENOPROTOOPT, ENOTSUP, EOPNOTSUPP
		noDevice: []int{6, 19, 49},      // ENXIO, ENODEV, EADDRNOTAVAIL
		noMember: []int{49, 22},         // EADDRNOTAVAIL, EINVAL
		limits:   []int{55, 12, 28, 59}, // ENOBUFS, ENOMEM, ENOSPC, ETOOMANYREFS
	}
}

// windowsPlatform: ws2ipdef.h and ws2tcpip.h; "IPPROTO_IP socket options" and
// "IPPROTO_IPV6 socket options",
// https://learn.microsoft.com/en-us/windows/win32/winsock/ipproto-ip-socket-options
// https://learn.microsoft.com/en-us/windows/win32/winsock/ipproto-ipv6-socket-options
// and for the full filter "SIO_SET_MULTICAST_FILTER" and "SIOCSMSFILTER" in
// https://learn.microsoft.com/en-us/windows/win32/winsock/winsock-ioctls
func windowsPlatform(word int) *platform {
	return &platform{
		name: "windows", order: binary.LittleEndian, word: word, controlAlign: word, socketLevel: 0xffff,
		inet6: 23, storage: 128, align: 8,
		mcast:   ops(41, 45, 43, 44, 42, 46),
		ip:      ops(12, 15, 17, 18, 13, 16),
		ipv6:    ops(12, 0, 0, 0, 13, 0),
		oldIPv4: true, interfaceIn: byIndex,
		full:    ioctlFilter,
		include: 0, exclude: 1,
		noOption: []int{10042, 10045}, // WSAENOPROTOOPT, WSAEOPNOTSUPP
		noDevice: []int{10049},        // WSAEADDRNOTAVAIL
		noMember: []int{10049, 10022}, // WSAEADDRNOTAVAIL, WSAEINVAL
		limits:   []int{10055},        // WSAENOBUFS
	}
}

// Windows' ioctls for the full filter, ws2tcpip.h.
const (
	sioGetMulticastFilter = 0x8004747C // struct ip_msfilter
	sioSetMulticastFilter = 0x8004747D
	siocSetMSFilter       = 0x8004747E // struct group_filter
	siocGetMSFilter       = 0x8004747F
)

// solarisPlatform: usr/src/uts/common/netinet/in.h of illumos. struct sockaddr_storage
// has 256 bytes, and the requests stand under #pragma pack(4). As in
// golang.org/x/net, there is no full filter.
func solarisPlatform(word int, order binary.ByteOrder) *platform {
	return &platform{
		name: "solaris", order: order, word: word,
		inet6: 26, storage: 256, align: 4,
		mcast:       ops(0x29, 0x2d, 0x2b, 0x2c, 0x2a, 0x2e),
		ip:          ops(0x13, 0x17, 0x15, 0x16, 0x14, 0x18),
		ipv6:        ops(9, 0, 0, 0, 10, 0),
		interfaceIn: byAddress,
		noOption:    []int{99, 122},     // ENOPROTOOPT, EOPNOTSUPP
		noDevice:    []int{6, 19, 126},  // ENXIO, ENODEV, EADDRNOTAVAIL
		noMember:    []int{126, 22, 2},  // EADDRNOTAVAIL, EINVAL, ENOENT
		limits:      []int{132, 12, 28}, // ENOBUFS, ENOMEM, ENOSPC
	}
}

// ops numbers options as the constants of [Op] do.
func ops(join, joinSource, block, unblock, leave, leaveSource int) [numOps]int {
	return [numOps]int{
		OpJoin: join, OpJoinSource: joinSource, OpBlock: block,
		OpUnblock: unblock, OpLeave: leave, OpLeaveSource: leaveSource,
	}
}

// sockaddr lays an address out at b.
func (p *platform) sockaddr(b []byte, a netip.Addr) {
	family, size, at := 2, 16, 4 // AF_INET; sin_addr follows the port
	if a.Is6() {
		family, size, at = p.inet6, 28, 8 // sin6_addr follows the flow label
	}
	if p.hasLen {
		b[0], b[1] = byte(size), byte(family)
	} else {
		p.order.PutUint16(b, uint16(family))
	}
	copy(b[at:], a.AsSlice())
}

// address reads what sockaddr laid out.
func (p *platform) address(b []byte, like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.AddrFrom4([4]byte(b[4:8]))
	}
	return netip.AddrFrom16([16]byte(b[8:24]))
}

// groupReq is a struct group_req, or group_source_req if the request is about
// a source (RFC 3678 section 5.1).
func (p *platform) groupReq(r Request) []byte { return p.groupReqIn(nil, r) }

// groupReqIn does the same in a buffer, if it is large enough.
func (p *platform) groupReqIn(b []byte, r Request) []byte {
	group := p.align
	source := group + p.storage
	size := source
	if r.Op.takesSource() {
		size += p.storage
	}
	if b = b[:min(size, cap(b))]; len(b) < size {
		b = make([]byte, size)
	}
	clear(b)
	p.order.PutUint32(b, uint32(r.Group.Interface))
	p.sockaddr(b[group:], r.Group.Addr)
	if r.Op.takesSource() {
		p.sockaddr(b[source:], r.Source)
	}
	return b
}

// mreq is a struct ip_mreq, ip_mreqn or ip_mreq_source (RFC 3678 section
// 4.1); address is one of the interface's.
func (p *platform) mreq(r Request, address netip.Addr) []byte {
	group := r.Group.Addr.As4()
	var interf [4]byte
	if p.interfaceIn == byIndex {
		binary.BigEndian.PutUint32(interf[:], uint32(r.Group.Interface))
	} else if address.Is4() {
		interf = address.As4()
	}
	switch b := group[:]; {
	case !r.Op.takesSource() && p.interfaceIn == byMreqn:
		b = append(b, 0, 0, 0, 0)
		return p.uint32(b, uint32(r.Group.Interface))
	case !r.Op.takesSource():
		return append(b, interf[:]...)
	case p.sourceLast:
		return append(append(b, interf[:]...), r.Source.AsSlice()...)
	default:
		return append(append(b, r.Source.AsSlice()...), interf[:]...)
	}
}

// wantsAddress reports whether mreq needs an address of the interface.
func (p *platform) wantsAddress(op Op) bool {
	return p.interfaceIn == byAddress || p.interfaceIn == byMreqn && op.takesSource()
}

// mreq6 is a struct ipv6_mreq (RFC 3493 section 5.2).
func (p *platform) mreq6(r Request) []byte {
	return p.uint32(r.Group.Addr.AsSlice(), uint32(r.Group.Interface))
}

func (p *platform) uint32(b []byte, v uint32) []byte {
	var u [4]byte
	p.order.PutUint32(u[:], v)
	return append(b, u[:]...)
}

// A fullLayout is where a full filter has its parts; -1: not at all.
type fullLayout struct {
	index, iface, group, mode, count, sources int
	socket                                    bool // addresses are sockaddr_storages, not 4 bytes
}

// fullLayout gives the layout of struct group_filter, __msfilterreq, or with
// old ip_msfilter.
func (p *platform) fullLayout(old bool) fullLayout {
	switch {
	case old: // imsf_multiaddr, imsf_interface, imsf_fmode, imsf_numsrc, imsf_slist
		return fullLayout{group: 0, iface: 4, mode: 8, count: 12, sources: 16, index: -1}
	case p.full == msfilterReq:
		// msfr_ifindex, msfr_fmode, msfr_nsrcs, msfr_group, msfr_srcs. In
		// place of the last, a pointer, the sources follow the struct here;
		// whoever makes the call puts it in.
		group := 16 // 12, aligned; macOS has a field to fill that gap
		if p.align == 4 && p.name == "freebsd" {
			group = 12
		}
		size := group + p.storage + p.word
		size += -size & (max(p.word, p.align) - 1)
		return fullLayout{index: 0, mode: 4, count: 8, group: group, sources: size, socket: true, iface: -1}
	default: // gf_interface, gf_group, gf_fmode, gf_numsrc, gf_slist
		mode := p.align + p.storage
		return fullLayout{index: 0, group: p.align, mode: mode, count: mode + 4, sources: mode + 8, socket: true, iface: -1}
	}
}

func (l fullLayout) sourceSize(p *platform) int {
	if l.socket {
		return p.storage
	}
	return 4
}

// fullReq lays out a full filter with room for n sources.
func (p *platform) fullReq(l fullLayout, m Membership, address netip.Addr, n int) []byte {
	each := l.sourceSize(p)
	b := make([]byte, l.sources+each*n)
	mode := p.include
	if m.Mode == Exclude {
		mode = p.exclude
	}
	p.order.PutUint32(b[l.mode:], mode)
	p.order.PutUint32(b[l.count:], uint32(n))
	if l.socket {
		p.order.PutUint32(b[l.index:], uint32(m.Group.Interface))
		p.sockaddr(b[l.group:], m.Group.Addr)
	} else {
		copy(b[l.group:], m.Group.Addr.AsSlice())
		if p.interfaceIn == byIndex {
			binary.BigEndian.PutUint32(b[l.iface:], uint32(m.Group.Interface))
		} else {
			copy(b[l.iface:], address.AsSlice())
		}
	}
	for i, s := range m.Sources {
		if at := b[l.sources+each*i:]; l.socket {
			p.sockaddr(at, s)
		} else {
			copy(at, s.AsSlice())
		}
	}
	return b
}

// parseFull reads a full filter: its mode, the sources that are in b, and how
// many the system says there are.
func (p *platform) parseFull(l fullLayout, g Group, b []byte) (m Membership, total int, ok bool) {
	if len(b) < l.sources {
		return m, 0, false
	}
	m = Membership{Group: g, Mode: Include}
	if p.order.Uint32(b[l.mode:]) == p.exclude {
		m.Mode = Exclude
	}
	total = int(p.order.Uint32(b[l.count:]))
	each := l.sourceSize(p)
	for i := 0; i < total && l.sources+each*(i+1) <= len(b); i++ {
		if at := b[l.sources+each*i:]; l.socket {
			m.Sources = append(m.Sources, p.address(at, g.Addr))
		} else {
			m.Sources = append(m.Sources, netip.AddrFrom4([4]byte(at[:4])))
		}
	}
	return m, total, true
}

// nativeWord is the size of a pointer here.
const nativeWord = strconv.IntSize / 8
