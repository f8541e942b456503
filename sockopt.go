package mcast

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"example.com/mcast/internal/cmsg"
	"example.com/mcast/internal/netif"
)

// A platform is what a system's headers and habits say about the options for
// memberships: numbers, layouts and quirks, as data. It is complete on every
// system, so that each one's requests are laid out and tested on any.
type platform struct {
	name  string
	order binary.ByteOrder
	word  int // bytes in a pointer

	control *cmsg.Format // of its control messages

	// Socket addresses.
	hasLen  bool // the first byte is the length (4.4BSD)
	inet6   int  // AF_INET6
	storage int  // bytes in a sockaddr_storage
	align   int  // its alignment: where a group_req has the group

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
	fullRoom         int // how many sources the old and the new filter may have together; 0: as many as fit
	include, exclude uint32
	noEmptyFull      bool // a full filter without sources is not to be sent

	// Multicast per socket instead of per host: options to set to 0.
	allIP, allIPv6 int

	// The interface to send by: IP_MULTICAST_IF, which names it as IP_* does, or
	// by an ip_mreqn, and IPV6_MULTICAST_IF, an index. 0: not known here.
	multicastIf, multicastIf6 int
	mreqnIf                   bool // IP_MULTICAST_IF takes an ip_mreqn

	busyPoll int // SO_BUSY_POLL, at SOL_SOCKET; 0: none

	// A Pool puts so many memberships into a socket, and gives each group a
	// socket of its own, bound to it, if ownSockets is set: on Linux a wildcard
	// socket costs every datagram on its port 25 ns, and such a one nothing.
	perSocket  int
	ownSockets bool

	oneFilter    bool // of a group's memberships in IPv6, one decides for all interfaces
	byteCounts   bool // some IPv4 requests answer a byte count as an error number
	keepsGone    bool // a membership stays when its interface goes, and its index then means any
	losesInclude bool // what is changed in INCLUDE while the interface is down is lost
	upForgets    bool // memberships are not announced again when an interface comes up

	// rejoinAfter is how long a group that was left on an interface must rest
	// before any socket joins it there again.
	rejoinAfter time.Duration

	// spends is the error number that a request to make a membership answers
	// when it spoils the socket: it must never make another one. 0: none does.
	spends int

	// Error numbers.
	noOption []int // no such option
	noDevice []int // no such interface
	noMember []int // no such membership
	isMember []int // there is such a membership
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
		name: "linux", order: order, word: word, control: cmsg.Linux(word, order),
		inet6: 10, storage: 128, align: word,
		mcast:       ops(42, 46, 43, 44, 45, 47),
		ip:          ops(35, 39, 38, 37, 36, 40),
		ipv6:        ops(20, 0, 0, 0, 21, 0),
		interfaceIn: byMreqn, sourceLast: true,
		full: groupFilter, fullIP: 48, fullIPv6: 48, fullOldIP: 41,
		include: 1, exclude: 0, oneFilter: true, losesInclude: true,
		perSocket: 20, ownSockets: true, // net.ipv4.igmp_max_memberships
		allIP: 49, allIPv6: 29, multicastIf: 32, multicastIf6: 17, mreqnIf: true, busyPoll: 46,
		noOption: []int{92, 95},  // ENOPROTOOPT, EOPNOTSUPP
		noDevice: []int{19, 3},   // ENODEV, ESRCH: a full filter on an interface that is not the one joined
		noMember: []int{99, 22},  // EADDRNOTAVAIL, EINVAL
		isMember: []int{98},      // EADDRINUSE
		limits:   []int{105, 12}, // ENOBUFS, ENOMEM
	}
}

// darwinPlatform: bsd/netinet/in.h and bsd/netinet6/in6.h of XNU. group_req and
// group_source_req stand under #pragma pack(4).
func darwinPlatform() *platform {
	p := bsdPlatform("darwin", 8, 30)
	p.align = 4
	p.control = cmsg.Darwin()
	p.interfaceIn = byIndex
	p.byteCounts, p.keepsGone = true, true
	p.rejoinAfter = 50 * time.Millisecond
	return p
}

// freebsdPlatform: sys/netinet/in.h and sys/netinet6/in6.h. struct sockaddr_storage is
// aligned to 8 bytes, but on 386.
func freebsdPlatform(word, align int) *platform {
	p := bsdPlatform("freebsd", word, 28)
	p.align = align
	p.control = cmsg.FreeBSD(word, align)
	p.interfaceIn, p.mreqnIf = byAddress, true
	return p
}

// bsdPlatform has what macOS and FreeBSD share, from the same source-filter code.
func bsdPlatform(name string, word, inet6 int) *platform {
	return &platform{
		name: name, order: binary.LittleEndian, word: word,
		hasLen: true, inet6: inet6, storage: 128,
		mcast: ops(80, 82, 84, 85, 81, 83),
		ip:    ops(12, 70, 72, 73, 13, 71),
		ipv6:  ops(12, 0, 0, 0, 13, 0),
		full:  msfilterReq, fullIP: 74, fullIPv6: 74,
		fullRoom: 128, // net.inet.ip.mcast.maxsocksrc, net.inet6.ip6.mcast.maxsocksrc
		include:  1, exclude: 2, noEmptyFull: true,
		multicastIf: 9, multicastIf6: 9, perSocket: 1000,
		noOption: []int{42, 45, 102},    // ENOPROTOOPT, ENOTSUP, EOPNOTSUPP
		noDevice: []int{6, 19, 49},      // ENXIO, ENODEV, EADDRNOTAVAIL
		noMember: []int{49, 22},         // EADDRNOTAVAIL, EINVAL
		isMember: []int{48},             // EADDRINUSE
		spends:   28,                    // ENOSPC
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
		name: "windows", order: binary.LittleEndian, word: word, control: cmsg.Windows(word),
		inet6: 23, storage: 128, align: 8,
		mcast:   ops(41, 45, 43, 44, 42, 46),
		ip:      ops(12, 15, 17, 18, 13, 16),
		ipv6:    ops(12, 0, 0, 0, 13, 0),
		oldIPv4: true, interfaceIn: byIndex,
		full:    ioctlFilter,
		include: 0, exclude: 1, upForgets: true,
		multicastIf: 9, multicastIf6: 9, perSocket: 1000,
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
		multicastIf: 0x10, multicastIf6: 6, perSocket: 1000,
		noOption: []int{99, 122},     // ENOPROTOOPT, EOPNOTSUPP
		noDevice: []int{6, 19, 126},  // ENXIO, ENODEV, EADDRNOTAVAIL
		noMember: []int{126, 22, 2},  // EADDRNOTAVAIL, EINVAL, ENOENT
		limits:   []int{132, 12, 28}, // ENOBUFS, ENOMEM, ENOSPC
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
	family, size := 2, 16 // AF_INET
	if a.Is6() {
		family, size = p.inet6, 28
	}
	if p.hasLen {
		b[0], b[1] = byte(size), byte(family)
	} else {
		p.order.PutUint16(b, uint16(family))
	}
	if a.Is6() {
		*(*[16]byte)(b[8:]) = a.As16() // sin6_addr follows the flow label
	} else {
		*(*[4]byte)(b[4:]) = a.As4() // sin_addr follows the port
	}
}

// address reads what sockaddr laid out.
func (p *platform) address(b []byte, like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.AddrFrom4([4]byte(b[4:8]))
	}
	return netip.AddrFrom16([16]byte(b[8:24]))
}

// groupReq lays out a struct group_req, or group_source_req if the request is
// about a source (RFC 3678 section 5.1), in b if that is large enough.
func (p *platform) groupReq(b []byte, c change) []byte {
	group := p.align
	source := group + p.storage
	size := source
	if c.op.takesSource() {
		size += p.storage
	}
	b = zeroed(b, size)
	p.order.PutUint32(b, uint32(c.index))
	p.sockaddr(b[group:], c.addr)
	if c.op.takesSource() {
		p.sockaddr(b[source:], c.source)
	}
	return b
}

// mreq is a struct ip_mreq, ip_mreqn or ip_mreq_source (RFC 3678 section
// 4.1); address is one of the interface's.
func (p *platform) mreq(c change, address netip.Addr) []byte {
	group := c.addr.As4()
	var interf [4]byte
	if p.interfaceIn == byIndex {
		binary.BigEndian.PutUint32(interf[:], uint32(c.index))
	} else if address.Is4() {
		interf = address.As4()
	}
	switch b := group[:]; {
	case !c.op.takesSource() && p.interfaceIn == byMreqn:
		b = append(b, 0, 0, 0, 0)
		return p.uint32(b, uint32(c.index))
	case !c.op.takesSource():
		return append(b, interf[:]...)
	case p.sourceLast:
		return append(append(b, interf[:]...), c.source.AsSlice()...)
	default:
		return append(append(b, c.source.AsSlice()...), interf[:]...)
	}
}

// wantsAddress reports whether mreq needs an address of the interface.
func (p *platform) wantsAddress(op Op) bool {
	return p.interfaceIn == byAddress || p.interfaceIn == byMreqn && op.takesSource()
}

// mreq6 is a struct ipv6_mreq (RFC 3493 section 5.2).
func (p *platform) mreq6(c change) []byte {
	return p.uint32(c.addr.AsSlice(), uint32(c.index))
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

// fullReq lays out the full filter of a group on an interface, with room for n
// sources, in b if that is large enough; address is one of the interface's.
func (p *platform) fullReq(b []byte, l fullLayout, at groupIndex, f sourceFilter, address netip.Addr, n int) []byte {
	each := l.sourceSize(p)
	b = zeroed(b, l.sources+each*n)
	mode := p.include
	if f.mode == Exclude {
		mode = p.exclude
	}
	p.order.PutUint32(b[l.mode:], mode)
	p.order.PutUint32(b[l.count:], uint32(n))
	if l.socket {
		p.order.PutUint32(b[l.index:], uint32(at.index))
		p.sockaddr(b[l.group:], at.addr)
	} else {
		copy(b[l.group:], at.addr.AsSlice())
		if p.interfaceIn == byIndex {
			binary.BigEndian.PutUint32(b[l.iface:], uint32(at.index))
		} else {
			copy(b[l.iface:], address.AsSlice())
		}
	}
	for i, s := range f.sources {
		if to := b[l.sources+each*i:]; l.socket {
			p.sockaddr(to, s)
		} else {
			copy(to, s.AsSlice())
		}
	}
	return b
}

// parseFull reads the full filter of a group: its mode, the sources that are in
// b, and how many the system says there are.
func (p *platform) parseFull(l fullLayout, group netip.Addr, b []byte) (f sourceFilter, total int, ok bool) {
	if len(b) < l.sources {
		return f, 0, false
	}
	if p.order.Uint32(b[l.mode:]) == p.exclude {
		f.mode = Exclude
	}
	total = int(p.order.Uint32(b[l.count:]))
	each := l.sourceSize(p)
	for i := 0; i < total && l.sources+each*(i+1) <= len(b); i++ {
		if at := b[l.sources+each*i:]; l.socket {
			f.sources = append(f.sources, p.address(at, group))
		} else {
			f.sources = append(f.sources, netip.AddrFrom4([4]byte(at[:4])))
		}
	}
	return f, total, true
}

// zeroed gives n bytes of 0, in b if that is large enough.
func zeroed(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	b = b[:n]
	clear(b)
	return b
}

// nativeWord is the size of a pointer here.
const nativeWord = strconv.IntSize / 8

// A groupIndex is a group on an interface, as a kernel knows it.
type groupIndex struct {
	addr  netip.Addr
	index int
}

func (p groupIndex) hash() uint64 { return hashAddr(p.addr, uint64(p.index)<<32) }

// A change is a request as a kernel is told it.
type change struct {
	op     Op
	addr   netip.Addr
	index  int
	source netip.Addr // the zero Addr for OpJoin and OpLeave
}

// A socket is what the requests ask of a system. Errors are the system's own
// error numbers.
type socket interface {
	setsockopt(level, name int, value []byte) error
	getsockopt(level, name int, value []byte) (n int, err error) // reads and fills value
	ioctl(code uint32, in, out []byte) (n int, err error)
}

// A groupJoiner is a socket on a system without source filters, where all
// that can be done is to join and leave a group.
type groupJoiner interface {
	joinGroup(at groupIndex) error
	leaveGroup(at groupIndex) error
}

// A kernel tells a system what to do for a socket, in that system's terms.
type kernel struct {
	*platform
	sock socket
	host netif.Host

	// guard sees to it that others keep their membership of a group on an
	// interface, when one of a past interface with the same index is left.
	guard func(k *kernel, at groupIndex, held sourceFilter) error

	buf []byte // for one request at a time

	// Families of options that the system turned out not to have.
	noMcast, noIP bool
}

// send sends one request by the family of options that the system has: the
// other one is asked where the first is unknown. makes says that it makes a
// membership.
func (k *kernel) send(c change, makes bool) error {
	if j, ok := k.sock.(groupJoiner); ok {
		switch c.op {
		case OpJoin:
			return j.joinGroup(groupIndex{c.addr, c.index})
		case OpLeave:
			return j.leaveGroup(groupIndex{c.addr, c.index})
		}
		return errors.ErrUnsupported
	}
	if c.index == 0 {
		return because(ErrInterface, "the system is not asked to choose one")
	}
	tries := [2]*bool{&k.noMcast, &k.noIP}
	if k.oldIPv4 && c.addr.Is4() {
		tries[0], tries[1] = tries[1], tries[0]
	}
	err := error(errors.ErrUnsupported)
	for _, missing := range tries {
		if *missing {
			continue
		}
		name, value, e := k.layOut(c, missing == &k.noIP)
		if e != nil {
			return e
		}
		if name == 0 {
			continue
		}
		err = k.setsockopt(level(c.addr), name, value, makes)
		if err == nil || !slices.Contains(k.noOption, errnoOf(err)) {
			return err
		}
		*missing = true
	}
	return err
}

// layOut gives the option and its value in one of the two families; option 0
// if it has none for the request.
func (k *kernel) layOut(c change, old bool) (name int, value []byte, err error) {
	switch {
	case !old:
		k.buf = k.groupReq(k.buf, c)
		return k.mcast[c.op], k.buf, nil
	case c.addr.Is6():
		return k.ipv6[c.op], k.mreq6(c), nil
	}
	var a netip.Addr
	if k.wantsAddress(c.op) {
		if a, err = k.address4(c.index); err != nil {
			return 0, nil, err
		}
	} else if !k.fits(c.index) {
		return 0, nil, nil
	}
	return k.ip[c.op], k.mreq(c, a), nil
}

// fits reports whether 0.x.y.z has room for an index, where one is named so.
func (k *kernel) fits(index int) bool { return k.interfaceIn != byIndex || index < 1<<24 }

func (k *kernel) address4(index int) (netip.Addr, error) {
	a, ok := k.host.Address4(index)
	if !ok {
		return a, because(ErrInterface, "%s has no IPv4 address, which this system's options need", k.ifname(index))
	}
	return a, nil
}

// ifname gives an interface's name for a text.
func (k *kernel) ifname(index int) string { return ifnameOf(k.host, index) }

// ifnameOf gives the name of an interface, or the index in digits.
func ifnameOf(h netif.Host, index int) string {
	if name, err := h.Name(index); err == nil {
		return name
	}
	return strconv.Itoa(index)
}

// exists reports whether there is an interface of that index. Only a clear
// answer is a no.
func (k *kernel) exists(index int) bool {
	_, err := k.host.Name(index)
	return !errors.Is(err, netif.ErrNotFound)
}

// setsockopt sets an option. Some of macOS' IPv4 requests answer a byte count
// in place of an error number: 8+4n for each record of n sources of the report
// that they would send. The socket is as it was, and the same request succeeds
// when it is made again, at once or after the kernel's timers ran
// (https://github.com/libuv/libuv/issues/4263,
// https://bugs.openjdk.org/browse/JDK-8144003). What could be one is tried
// again, but not where ENOSPC is a limit: of a request that would make a
// membership, it has spent the socket.
func (k *kernel) setsockopt(level, name int, value []byte, limited bool) error {
	const atOnce, later = 4, 20 * time.Millisecond
	for try := 1; ; try++ {
		err := k.sock.setsockopt(level, name, value)
		if err == nil || !k.byteCounts || level != levelIP {
			return err
		}
		if e := errnoOf(err); e < 8 || e%4 != 0 || limited && e == k.spends {
			return err
		}
		if try == atOnce {
			return &tooSoon{wait: later, cause: err}
		}
	}
}

// crowded reports whether the sources of an old and a new filter have no room
// together.
func (k *kernel) crowded(from, to sourceFilter) bool {
	return k.fullRoom > 0 && len(from.sources)+len(minus(to.sources, from.sources)) > k.fullRoom
}

// sendFull replaces the filter of a membership by one call, by the older one
// where the first is unknown.
func (k *kernel) sendFull(at groupIndex, from, to sourceFilter) error {
	return k.eachFull(at, func(c fullCall, address netip.Addr) error {
		k.buf = k.fullReq(k.buf, c.layout, at, to, address, len(to.sources))
		if k.platform.full == ioctlFilter {
			_, err := k.sock.ioctl(c.set, k.buf, nil)
			return err
		}
		return k.setsockopt(level(at.addr), c.option, k.buf, k.crowded(from, to))
	})
}

// readFull asks for the filter of a membership; INCLUDE() is none.
func (k *kernel) readFull(at groupIndex) (f sourceFilter, err error) {
	err = k.eachFull(at, func(c fullCall, address netip.Addr) error {
		// The system says how many sources there are (Linux, Windows), or how
		// many it wrote (macOS, FreeBSD). Ask with more room until all fit.
		for room := 16; ; {
			value := k.fullReq(nil, c.layout, at, sourceFilter{}, address, room)
			var n int
			if k.platform.full == ioctlFilter {
				// The length that WSAIoctl returns is not to be relied upon:
				// Microsoft's own getipv4sourcefilter ignores it.
				_, err = k.sock.ioctl(c.get, value, value)
				n = len(value)
			} else {
				n, err = k.sock.getsockopt(level(at.addr), c.option, value)
			}
			if err != nil {
				return err
			}
			var total int
			var ok bool
			f, total, ok = k.parseFull(c.layout, at.addr, value[:min(n, len(value))])
			if !ok {
				return fmt.Errorf("%d bytes are no filter", n)
			}
			if total < room || total == room && k.platform.full != msfilterReq {
				slices.SortFunc(f.sources, netip.Addr.Compare)
				return nil
			}
			room = max(2*room, total)
		}
	})
	switch e := errnoOf(err); {
	case err == nil:
		return f, nil
	case slices.Contains(k.noMember, e):
		return sourceFilter{}, nil
	case slices.Contains(k.noDevice, e):
		return sourceFilter{}, &reason{kind: ErrInterface, cause: err, text: "there is no such interface any more"}
	}
	return sourceFilter{}, os.NewSyscallError("getsourcefilter", err)
}

// A fullCall is a way to get and set a full filter.
type fullCall struct {
	layout   fullLayout
	option   int
	get, set uint32
}

// fullCall gives one of the two ways; without numbers, if the system does not
// have it.
func (k *kernel) fullCall(at groupIndex, older bool) (c fullCall) {
	switch {
	case k.platform.full == noFull:
	case k.platform.full == ioctlFilter && !older:
		c.get, c.set = siocGetMSFilter, siocSetMSFilter
	case k.platform.full == ioctlFilter && at.addr.Is4() && k.fits(at.index):
		c.get, c.set = sioGetMulticastFilter, sioSetMulticastFilter
	case k.platform.full == ioctlFilter:
	case at.addr.Is6() && !older:
		c.option = k.fullIPv6
	case at.addr.Is4() && older:
		c.option = k.fullOldIP
	case at.addr.Is4():
		c.option = k.fullIP
	}
	c.layout = k.fullLayout(older)
	return c
}

// eachFull tries the ways that a system has until one is not unknown.
func (k *kernel) eachFull(at groupIndex, try func(fullCall, netip.Addr) error) error {
	older := k.platform.full == ioctlFilter && at.addr.Is4() // comes first
	for range 2 {
		c := k.fullCall(at, older)
		older = !older
		if c.option == 0 && c.set == 0 {
			continue
		}
		var a netip.Addr
		if !c.layout.socket && k.interfaceIn != byIndex {
			var err error
			if a, err = k.address4(at.index); err != nil {
				return err
			}
		}
		if err := try(c, a); !slices.Contains(k.noOption, errnoOf(err)) {
			return err
		}
	}
	return errors.ErrUnsupported
}

// hearOnlyOwn tells a system that hands a socket the groups of all others not
// to, and reports whether it took that. Where it does not, the filter alone
// keeps them out.
func (k *kernel) hearOnlyOwn(ipv6 bool) bool {
	at, name := levelIP, k.allIP
	if ipv6 {
		at, name = levelIPv6, k.allIPv6
	}
	return name != 0 && k.sock.setsockopt(at, name, make([]byte, 4)) == nil
}

// setAll sets options that belong together.
func (k *kernel) setAll(options []cmsg.Option) error {
	for _, o := range options {
		if err := k.sock.setsockopt(o.Level, o.Name, o.Value); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return nil
}

// setOne sets the first of several options that the system takes, and reports
// whether it took one.
func (k *kernel) setOne(options []cmsg.Option) bool {
	for _, o := range options {
		if k.sock.setsockopt(o.Level, o.Name, o.Value) == nil {
			return true
		}
	}
	return false
}

// gone reports whether the answer to a request says that there is no such
// membership, or no such interface any more.
func (k *kernel) gone(err error) bool {
	e := errnoOf(err)
	return slices.Contains(k.noMember, e) || slices.Contains(k.noDevice, e)
}

// A demand is what a request asked of a system, to explain why it refused.
type demand struct {
	at      groupIndex
	makes   bool // a membership
	full    bool // a whole filter at once
	members int  // of the socket, without this one
	sources int  // of the filter
	pool    bool // a Pool would have another socket for it
}

// explain turns a system's answer into an error that says what to do.
func (k *kernel) explain(d demand, err error) error {
	call := "setsockopt"
	if d.full {
		call = "setsourcefilter"
	}
	cause := os.NewSyscallError(call, err)
	var already *reason
	var soon *tooSoon
	if errors.As(err, &soon) {
		soon.cause = k.explain(d, soon.cause)
		return soon
	}
	switch e := errnoOf(err); {
	case err == nil:
		return nil
	case errors.As(err, &already) || errors.Is(err, net.ErrClosed):
		return err
	case errors.Is(err, errors.ErrUnsupported) || slices.Contains(k.noOption, e):
		return &reason{kind: errors.ErrUnsupported, cause: cause, text: k.name + " does not offer this for " + familyOf(d.at.addr)}
	case !k.exists(d.at.index):
		// Whatever the number: systems have several for it.
		return &reason{kind: ErrInterface, cause: cause, text: fmt.Sprintf("there is no interface %d", d.at.index)}
	case slices.Contains(k.limits, e):
		return &reason{kind: ErrLimit, cause: cause, text: k.knob(d)}
	case slices.Contains(k.noDevice, e):
		return &reason{kind: ErrInterface, cause: cause, text: fmt.Sprintf("%s takes no memberships now: see that it is up and has an address", k.ifname(d.at.index))}
	}
	return cause
}

func familyOf(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// knob says which limit stands in the way of one more group, or of so many
// sources in a filter, and where it is set.
func (k *kernel) knob(d demand) string {
	orPool := ""
	if d.pool {
		orPool = ", or use a Pool"
	}
	groups, msf, msfDefault, sysctl := "net.ipv4.igmp_max_memberships", "net.ipv4.igmp_max_msf", 10, "net.inet.ip"
	if d.at.addr.Is6() {
		groups, msf, msfDefault, sysctl = "", "net.ipv6.mld_max_msf", 64, "net.inet6.ip6"
	}
	switch {
	case k.name == "linux" && d.makes:
		if n, ok := k.host.Limit(groups); groups != "" && (!ok || d.members >= n) {
			return fmt.Sprintf("%d groups a socket: raise %s%s", d.members, groups, orPool)
		}
		return fmt.Sprintf("memory for %d groups a socket: raise net.core.optmem_max%s", d.members, orPool)
	case k.name == "linux":
		n, ok := k.host.Limit(msf)
		if !ok { // in a network namespace it cannot be read: what it is by default
			n = msfDefault
		}
		if d.sources > n {
			return fmt.Sprintf("%d sources in a filter: raise %s%s", d.sources, msf, orPool)
		}
		return fmt.Sprintf("memory for %d sources in a filter: raise net.core.optmem_max%s", d.sources, orPool)
	case k.hasLen && d.makes && d.sources > 0:
		return fmt.Sprintf("%d groups a socket, at most 4095 (IP_MAX_MEMBERSHIPS), or sources of the group in all sockets: %s.mcast.maxgrpsrc", d.members, sysctl)
	case k.hasLen && d.makes:
		return fmt.Sprintf("%d groups a socket: at most 4095 (IP_MAX_MEMBERSHIPS)%s", d.members, orPool)
	case k.hasLen && d.full:
		return fmt.Sprintf("%d sources set at once: %s.mcast.maxsocksrc", d.sources, sysctl)
	case k.hasLen:
		return fmt.Sprintf("%d sources in a filter: %s.mcast.maxgrpsrc", d.sources, sysctl)
	case d.makes:
		return fmt.Sprintf("%d groups a socket: spread them over several sockets%s", d.members, orPool)
	}
	return fmt.Sprintf("%d sources in a filter", d.sources)
}
