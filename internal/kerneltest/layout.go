//go:build !plan9

package kerneltest

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"syscall"
)

// Option levels are the protocol numbers, the same everywhere. An ioctl is kept
// beside them under a level of its own.
const (
	levelIP   = 0
	levelIPv6 = 41
	ioctl     = -1
)

type option struct {
	level  int
	number uint32
}

// An op is what a request asks for, however it is laid out.
type op uint8

const (
	joinOp op = iota + 1
	leaveOp
	joinSourceOp
	leaveSourceOp
	blockOp
	unblockOp
	filterOp
)

func (o op) String() string {
	return [...]string{"?", "Join", "Leave", "JoinSource", "LeaveSource", "Block", "Unblock", "full filter"}[o]
}

// A form is how a request is laid out.
type form uint8

const (
	plain       form = iota // no membership: kept and forgotten
	unknown                 // no such option
	mreq                    // struct ip_mreq or ip_mreqn
	mreqSource              // struct ip_mreq_source
	mreq6                   // struct ipv6_mreq
	groupReq                // struct group_req, RFC 3678 section 5.1.1
	groupSource             // struct group_source_req, RFC 3678 section 5.1.1
	groupFilter             // struct group_filter, RFC 3678 section 5.2.2
	ipFilter                // struct ip_msfilter, RFC 3678 section 4.2.1
	msfilterReq             // BSD's struct __msfilterreq, sources appended
)

// A meaning is what an option number stands for.
type meaning struct {
	name string
	op   op
	form form
}

// A system is what tells one system's requests from another's, as data.
type system struct {
	name    string
	options map[option]meaning
	plain   map[option]setting

	inet6        uint16 // AF_INET6; AF_INET is 2 everywhere
	lenByte      bool   // sockaddr begins with its length
	sourceSecond bool   // ip_mreq_source: group, source, interface
	mreqn        bool   // ip_mreqn is understood
	indexAddress bool   // an interface address 0.x.y.z is an index
	fixedExact   bool   // source requests of the IPv4 level must have their exact size
	dual         bool   // IP options work on AF_INET6 sockets

	// group is where group_req's sockaddr begins, by the size of a pointer.
	group map[int]int

	include, exclude uint32

	errno errnos
	model model
}

// errnos are a system's numbers for what is common to all of them.
type errnos struct {
	short       syscall.Errno // a value too short
	badf        syscall.Errno
	noProtoOpt  syscall.Errno
	otherFamily syscall.Errno // an option of the other address family's level
	otherGet    syscall.Errno // the same, asked for
	noIoctl     syscall.Errno
	dead        syscall.Errno // nothing answers after a panic; EIO or its like
}

// A model is what a system does with decoded requests. Its methods are called with
// the kernel locked.
type model interface {
	set(s *Socket, r *request) syscall.Errno
	get(s *Socket, r *request, in, out []byte) (n int, e syscall.Errno)
	plain(s *Socket, o option, value []byte) syscall.Errno
	delivers(s *Socket, d *device, group, source netip.Addr) bool
	memberships(s *Socket) []Membership
	closed(s *Socket)                                // a socket gives up what it has
	removed(k *Kernel, d *device)                    // an interface is gone
	altered(k *Kernel, d *device, was, is Interface) // an interface is another way than before
}

// A request is a decoded option.
type request struct {
	option
	meaning
	get     bool
	ipv4    bool // of the IPv4 level, or about an IPv4 group
	index   int
	address netip.Addr // the interface's, valid in forms that name it so
	group   netip.Addr
	source  netip.Addr
	exclude bool
	badMode bool
	sources []netip.Addr
	number  uint32 // sources claimed, or room for
	size    int    // of the value
	header  int    // of the value, before its sources

	badGroup   bool // its sockaddr has another family or length
	badSource  bool
	badSources bool

	short        bool            // BSD: too short to be read
	unscoped     bool            // BSD: a group that no interface was put into
	sourceFaults []syscall.Errno // BSD: what is wrong with each source
}

// decode reads a request. Its error is what the system answers to a value that
// cannot be read; the rest is the model's to judge, in the order it judges.
func (y *system) decode(k *Kernel, o option, get bool, v []byte) (r request, e syscall.Errno) {
	r = request{option: o, get: get, ipv4: o.level != levelIPv6, size: len(v)}
	var ok bool
	if r.meaning, ok = y.options[o]; !ok {
		var known setting
		known, ok = y.plain[o]
		r.name = known.name
		if !ok {
			r.name = fmt.Sprintf("option %d/%d", o.level, o.number)
		}
		if !ok {
			r.form = unknown
		}
		return r, 0
	}
	if get && r.op != filterOp {
		r.form = unknown // memberships are not readable one by one
		return r, 0
	}

	group := y.group[k.Word]
	need, exact := 0, false
	switch r.form {
	case mreq:
		need = 8
	case mreqSource:
		need, exact = 12, y.fixedExact
	case mreq6:
		need = 20
	case groupReq:
		need = group + storage
	case groupSource:
		need, exact = group+2*storage, y.fixedExact && o.level == levelIP
	case groupFilter:
		need = group + storage + 8
	case ipFilter:
		need = 16
	case msfilterReq:
		need = k.layoutMSFilterReq().Size
	}
	if len(v) < need || exact && len(v) != need {
		r.short = true
		return r, y.errno.short
	}

	word := func(at int) uint32 { return k.Order.Uint32(v[at:]) }
	ipv4 := func(at int) netip.Addr { return netip.AddrFrom4([4]byte(v[at:])) }
	var mode uint32
	switch r.form {
	case mreq:
		r.group, r.address = ipv4(0), ipv4(4)
		if y.mreqn && len(v) >= 12 {
			r.index = int(int32(word(8)))
		}
	case mreqSource:
		r.group, r.address, r.source = ipv4(0), ipv4(4), ipv4(8)
		if y.sourceSecond {
			r.address, r.source = r.source, r.address
		}
	case mreq6:
		r.group, r.index = netip.AddrFrom16([16]byte(v)), int(int32(word(16)))
	case groupReq:
		r.index = int(int32(word(0)))
		r.group, ok = y.sockaddr(k, r.ipv4, v[group:])
		r.badGroup = !ok
	case groupSource:
		r.index = int(int32(word(0)))
		r.group, ok = y.sockaddr(k, r.ipv4, v[group:])
		r.badGroup = !ok
		r.source, ok = y.sockaddr(k, r.ipv4, v[group+storage:])
		r.badSource = !ok
	case groupFilter:
		r.index = int(int32(word(0)))
		if o.level == ioctl { // the one place where the level does not say which family
			r.ipv4 = y.family(k, v[group:]) == inet
		}
		r.group, ok = y.sockaddr(k, r.ipv4, v[group:])
		r.badGroup = !ok
		mode, r.number = word(group+storage), word(group+storage+4)
		r.header = need
		r.readSources(y, k, v)
	case ipFilter:
		r.group, r.address = ipv4(0), ipv4(4)
		mode, r.number = word(8), word(12)
		r.header = need
		for i := 0; i < int(min(r.number, 1<<20)) && 16+4*i+4 <= len(v) && !get; i++ {
			r.sources = append(r.sources, ipv4(16+4*i))
		}
	case msfilterReq:
		l := k.layoutMSFilterReq()
		r.index, mode, r.number = int(int32(word(0))), word(4), word(8)
		r.group, ok = y.sockaddr(k, r.ipv4, v[l.Group:])
		r.badGroup = !ok
		r.header = need
		r.readSources(y, k, v)
	}
	if r.op == filterOp {
		r.exclude = mode == y.exclude
		r.badMode = mode != y.exclude && mode != y.include
	}
	if y.indexAddress && r.address.IsValid() && r.index == 0 {
		// XNU in.c ip_multicast_if; Windows, "IPPROTO_IP Socket Options": "any IP address
		// in the 0.x.x.x block is treated as an interface index, in network order".
		if b := r.address.As4(); b[0] == 0 {
			r.index = int(binary.BigEndian.Uint32(b[:]))
		}
	}
	return r, 0
}

// fits reports whether the value has room for the sources it claims.
func (r *request) fits() bool {
	each := uint64(storage)
	if r.form == ipFilter {
		each = 4
	}
	return uint64(r.header)+each*uint64(r.number) <= uint64(r.size)
}

func (r *request) readSources(y *system, k *Kernel, v []byte) {
	if r.get || !r.fits() {
		return
	}
	for i := range int(r.number) {
		a, ok := y.sockaddr(k, r.ipv4, v[r.header+i*storage:])
		if !ok {
			r.badSources = true
		}
		r.sources = append(r.sources, a)
		fault := syscall.Errno(0)
		switch at := v[r.header+i*storage:]; {
		case ok:
		case y.family(k, at) != y.familyOf(r.ipv4):
			fault = bsdEAFNOSUPPORT
		default:
			fault = bsdEINVAL
		}
		r.sourceFaults = append(r.sourceFaults, fault)
	}
}

const (
	storage = 128 // sizeof(struct sockaddr_storage), everywhere
	inet    = 2
)

func (y *system) family(k *Kernel, v []byte) uint16 {
	if y.lenByte {
		return uint16(v[1])
	}
	return k.Order.Uint16(v)
}

func (y *system) familyOf(ipv4 bool) uint16 {
	if ipv4 {
		return inet
	}
	return y.inet6
}

// sockaddr reads a sockaddr_in or sockaddr_in6. The address is read even where the
// family or the length is another: not every kernel looks at them.
func (y *system) sockaddr(k *Kernel, ipv4 bool, v []byte) (a netip.Addr, ok bool) {
	family, length := y.inet6, byte(28)
	if ipv4 {
		family, length = inet, 16
	}
	ok = y.family(k, v) == family && (!y.lenByte || v[0] == length)
	if ipv4 {
		return netip.AddrFrom4([4]byte(v[4:])), ok
	}
	return netip.AddrFrom16([16]byte(v[8:])), ok
}

func (y *system) putSockaddr(k *Kernel, v []byte, a netip.Addr) {
	clear(v[:storage])
	family, length := y.inet6, byte(28)
	if a.Is4() {
		family, length = inet, 16
	}
	if y.lenByte {
		v[0], v[1] = length, byte(family)
	} else {
		k.Order.PutUint16(v, family)
	}
	if a.Is4() {
		copy(v[4:], a.AsSlice())
	} else {
		copy(v[8:], a.AsSlice())
	}
}

// encode writes a filter into the value that asked for it: as many sources as it
// had room for.
func (y *system) encode(k *Kernel, r *request, in, v []byte, exclude bool, sources []netip.Addr) (int, syscall.Errno) {
	if len(v) < r.header {
		return 0, y.errno.short
	}
	if r.level == ioctl {
		copy(v, in[:r.header]) // an ioctl answers in another buffer
	}
	each := storage
	if r.form == ipFilter {
		each = 4
	}
	n := min(len(sources), int(r.number), (len(v)-r.header)/each)
	mode, number := y.include, uint32(len(sources)) // RFC 3678 section 4.2.2: the total
	if exclude {
		mode = y.exclude
	}
	at := r.header - 8
	k.Order.PutUint32(v[at:], mode)
	k.Order.PutUint32(v[at+4:], number)
	for i, a := range sources[:n] {
		to := v[r.header+i*each:]
		if each == 4 {
			copy(to, a.AsSlice())
		} else {
			y.putSockaddr(k, to, a)
		}
	}
	return r.header + n*each, 0
}

// layoutMSFilterReq returns the offsets in struct __msfilterreq. macOS pads before
// the group on every machine; FreeBSD leaves it to the compiler, which on 386
// aligns a sockaddr_storage to 4.
func (k *Kernel) layoutMSFilterReq() (l struct{ Group, Pointer, Size int }) {
	switch {
	case k.MSFilterReq.Size != 0:
		return k.MSFilterReq
	case k.Word == 64:
		l.Group, l.Pointer, l.Size = 16, 144, 152
	case k.sys == darwin:
		l.Group, l.Pointer, l.Size = 16, 144, 148
	default:
		l.Group, l.Pointer, l.Size = 12, 140, 144
	}
	return l
}

// mcastOptions are the protocol-independent options of RFC 3678 section 5, which
// have the same numbers at both levels.
func mcastOptions(into map[option]meaning, join, leave, joinSource, leaveSource, block, unblock uint32) map[option]meaning {
	for _, level := range []int{levelIP, levelIPv6} {
		into[option{level, join}] = meaning{"MCAST_JOIN_GROUP", joinOp, groupReq}
		into[option{level, leave}] = meaning{"MCAST_LEAVE_GROUP", leaveOp, groupReq}
		into[option{level, joinSource}] = meaning{"MCAST_JOIN_SOURCE_GROUP", joinSourceOp, groupSource}
		into[option{level, leaveSource}] = meaning{"MCAST_LEAVE_SOURCE_GROUP", leaveSourceOp, groupSource}
		into[option{level, block}] = meaning{"MCAST_BLOCK_SOURCE", blockOp, groupSource}
		into[option{level, unblock}] = meaning{"MCAST_UNBLOCK_SOURCE", unblockOp, groupSource}
	}
	return into
}

// isMulticast is what kernels ask of a group: a mapped IPv4 one is none of IPv6.
func isMulticast(a netip.Addr) bool {
	if a.Is6() {
		return a.As16()[0] == 0xff
	}
	return a.IsValid() && a.IsMulticast()
}
