//go:build !plan9

package kerneltest

import (
	"net/netip"
	"slices"
	"syscall"
)

// Windows Sockets error codes, winsock2.h.
const (
	wsaEBADF         = syscall.Errno(10038) // WSAENOTSOCK
	wsaEFAULT        = syscall.Errno(10014)
	wsaEINVAL        = syscall.Errno(10022)
	wsaENOPROTOOPT   = syscall.Errno(10042)
	wsaEOPNOTSUPP    = syscall.Errno(10045)
	wsaEADDRNOTAVAIL = syscall.Errno(10049)
)

// The full-state ioctls, ws2ipdef.h and mstcpip.h.
const (
	sioGetMulticastFilter = 0x8004747C
	sioSetMulticastFilter = 0x8004747D
	siocSMSFilter         = 0x8004747E
	siocGMSFilter         = 0x8004747F
)

// windows is Windows as ws2ipdef.h numbers it.
var windows = &system{
	name:         "windows",
	inet6:        23,
	indexAddress: true,
	dual:         true,                      // "Dual-Stack Sockets for IPv6 Winsock Applications"
	group:        map[int]int{64: 8, 32: 8}, // SOCKADDR_STORAGE holds an __int64
	include:      0, exclude: 1,             // MULTICAST_MODE_TYPE
	sourceSecond: true,
	errno: errnos{
		short:       wsaEFAULT, // setsockopt: "the optlen parameter is too small"
		badf:        wsaEBADF,
		noProtoOpt:  wsaENOPROTOOPT,
		otherFamily: wsaENOPROTOOPT, // assumed
		otherGet:    wsaENOPROTOOPT,
		noIoctl:     wsaEOPNOTSUPP,
		dead:        10050, // WSAENETDOWN
	},
	model: windowsModel{},
	options: mcastOptions(map[option]meaning{
		{levelIP, 12}:                  {"IP_ADD_MEMBERSHIP", joinOp, mreq},
		{levelIP, 13}:                  {"IP_DROP_MEMBERSHIP", leaveOp, mreq},
		{levelIP, 15}:                  {"IP_ADD_SOURCE_MEMBERSHIP", joinSourceOp, mreqSource},
		{levelIP, 16}:                  {"IP_DROP_SOURCE_MEMBERSHIP", leaveSourceOp, mreqSource},
		{levelIP, 17}:                  {"IP_BLOCK_SOURCE", blockOp, mreqSource},
		{levelIP, 18}:                  {"IP_UNBLOCK_SOURCE", unblockOp, mreqSource},
		{levelIPv6, 12}:                {"IPV6_ADD_MEMBERSHIP", joinOp, mreq6},
		{levelIPv6, 13}:                {"IPV6_DROP_MEMBERSHIP", leaveOp, mreq6},
		{ioctl, sioGetMulticastFilter}: {"SIO_GET_MULTICAST_FILTER", filterOp, ipFilter},
		{ioctl, sioSetMulticastFilter}: {"SIO_SET_MULTICAST_FILTER", filterOp, ipFilter},
		{ioctl, siocGMSFilter}:         {"SIOCGMSFILTER", filterOp, groupFilter},
		{ioctl, siocSMSFilter}:         {"SIOCSMSFILTER", filterOp, groupFilter},
	}, 41, 42, 45, 46, 43, 44),
	plain: windowsSettings,
}

// windowsModel is the page "Multicast Socket Option Behavior" of the Windows
// Sockets documentation, whose two tables answer a request by the one before it.
// Their gaps are filled from the nearest row.
type windowsModel struct{}

func (m windowsModel) set(s *Socket, r *request) syscall.Errno {
	k := s.k
	mcast := r.form == groupReq || r.form == groupSource
	if mcast && r.ipv4 && !k.NoIP {
		// FFmpeg, libuv and the JDK agree.
		k.harm(Unreliable, "%s of %v: for IPv4 only the IP_* options work reliably", r.name, r.group)
	}
	switch {
	case r.badGroup, r.badSource, r.op == filterOp && (r.badMode || r.badSources):
		return wsaEINVAL // assumed
	case r.op == filterOp && !r.fits():
		return wsaEFAULT
	case !isMulticast(r.group):
		return wsaEINVAL // assumed; a source is not validated, also assumed
	}
	d := m.named(s, r)
	if d == nil {
		return k.UnknownInterface
	}
	c := channel{d.index, r.group}
	e := s.find(d.index, r.group)
	if r.op == filterOp {
		return m.setFilter(s, r, d, e)
	}

	answer := m.answer(r, e, s.emptied[c])
	if answer != 0 {
		return answer
	}
	if e == nil && m.unusable(k, d, r.ipv4) {
		return wsaEADDRNOTAVAIL // reported for an interface that is down or without an address
	}
	if e == nil {
		delete(s.emptied, c)
		e = s.add(&entry{channel: c, dev: d, exclude: r.op == joinOp})
	}
	e.unblocked = r.op == unblockOp
	switch r.op {
	case joinSourceOp, blockOp:
		e.sources = append(e.sources, r.source)
	case unblockOp:
		e.sources = without(e.sources, r.source)
	case leaveOp:
		s.remove(e)
	case leaveSourceOp:
		if e.sources = without(e.sources, r.source); len(e.sources) == 0 {
			// Not documented: by RFC 3376 section 3.1 INCLUDE() is no membership.
			s.remove(e)
			s.emptied[c] = true
		}
	}
	return 0
}

// answer is the documentation's table, 0 for what it allows.
func (windowsModel) answer(r *request, e *entry, emptied bool) syscall.Errno {
	listed := e != nil && slices.Contains(e.sources, r.source)
	switch {
	case e == nil && (r.op == joinOp || r.op == joinSourceOp):
		return 0
	case e == nil && r.op == leaveSourceOp && emptied:
		return wsaEADDRNOTAVAIL
	case e == nil:
		return wsaEINVAL
	case r.op == leaveOp:
		return 0
	case !e.exclude: // INCLUDE(I)
		switch {
		case r.op == joinOp, r.op == joinSourceOp && listed, r.op == leaveSourceOp && !listed:
			return wsaEADDRNOTAVAIL
		case r.op == blockOp, r.op == unblockOp:
			return wsaEINVAL
		}
	case r.op == leaveSourceOp:
		return wsaEINVAL
	case r.op == joinOp, r.op == joinSourceOp:
		if len(e.sources) > 0 {
			return wsaEINVAL
		}
		return wsaEADDRNOTAVAIL
	case r.op == blockOp && listed:
		return wsaEADDRNOTAVAIL
	case r.op == unblockOp && !listed:
		if len(e.sources) > 0 || e.unblocked {
			return wsaEADDRNOTAVAIL
		}
		return wsaEINVAL
	}
	return 0
}

func without(list []netip.Addr, a netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(list), func(x netip.Addr) bool { return x == a })
}

// setFilter is RFC 3678 section 4.2.1 and 5.2.1.
func (m windowsModel) setFilter(s *Socket, r *request, d *device, e *entry) syscall.Errno {
	switch {
	case e == nil && (s.k.FilterNeedsJoin || !r.exclude && len(r.sources) == 0):
		return wsaEINVAL
	case e == nil && m.unusable(s.k, d, r.ipv4):
		return wsaEADDRNOTAVAIL
	case e == nil:
		e = s.add(&entry{channel: channel{d.index, r.group}, dev: d})
	case !r.exclude && len(r.sources) == 0:
		s.remove(e)
		return 0
	}
	e.exclude, e.sources, e.unblocked = r.exclude, nil, false
	for _, a := range r.sources {
		if !slices.Contains(e.sources, a) {
			e.sources = append(e.sources, a)
		}
	}
	return 0
}

// named finds the device that a request names, nil if there is none.
func (windowsModel) named(s *Socket, r *request) *device {
	k := s.k
	switch {
	case r.index != 0:
		return k.device(r.index)
	case r.address.IsValid() && !r.address.IsUnspecified():
		return k.device(k.byAddress(r.address))
	}
	k.harm(Unaimed, "%s of %v with interface 0", r.name, r.group)
	if r.form == groupReq || r.form == groupSource || r.form == groupFilter {
		return nil // "doesn't seem to work": FFmpeg, libavformat/udp.c
	}
	return k.device(k.Route) // IP_ADD_MEMBERSHIP: "the default IPv4 multicast interface"
}

// unusable reports whether an interface refuses a join.
func (windowsModel) unusable(k *Kernel, d *device, ipv4 bool) bool {
	i := k.Interfaces[d.index]
	if !i.Up {
		return true
	}
	linkLocal := false
	for _, a := range i.Addrs {
		if a.Is4() && !a.IsLinkLocalUnicast() {
			return false
		}
		linkLocal = linkLocal || a.Is4()
	}
	return ipv4 && linkLocal
}

func (m windowsModel) get(s *Socket, r *request, in, out []byte) (int, syscall.Errno) {
	exclude, sources, e := m.filter(s, r)
	if e != 0 {
		return 0, e
	}
	return s.k.sys.encode(s.k, r, in, out, exclude, sources)
}

func (m windowsModel) filter(s *Socket, r *request) (bool, []netip.Addr, syscall.Errno) {
	if r.badGroup || !isMulticast(r.group) {
		return false, nil, wsaEINVAL
	}
	d := m.named(s, r)
	if d == nil {
		return false, nil, s.k.UnknownInterface
	}
	e := s.find(d.index, r.group)
	if e == nil {
		return false, nil, wsaEINVAL
	}
	return e.exclude, e.sources, 0
}

func (windowsModel) plain(s *Socket, o option, value []byte) syscall.Errno {
	if o == (option{levelUDP, 3}) && s.k.Order.Uint32(value) != 0 {
		// microsoft/msquic#4955, quinn-rs/quinn#2041: drivers that glue datagrams together
		// without saying where one ends.
		s.k.harm(Glued, "UDP_RECV_MAX_COALESCED_SIZE is %d", s.k.Order.Uint32(value))
	}
	return 0
}

// delivers: a socket hears only what it joined, filtered.
func (windowsModel) delivers(s *Socket, d *device, group, source netip.Addr) bool {
	e := s.find(d.index, group)
	return e != nil && e.allows(source)
}

func (windowsModel) memberships(s *Socket) (ms []Membership) {
	for _, e := range s.entries {
		ms = append(ms, Membership{Interface: e.index, Group: e.group, Exclude: e.exclude, Sources: e.sources, Held: !e.silent})
	}
	return ms
}

func (windowsModel) closed(s *Socket) {}

// removed: an interface takes its memberships with it (assumed).
func (windowsModel) removed(k *Kernel, d *device) {
	for _, s := range k.sockets {
		s.entries = slices.DeleteFunc(s.entries, func(e *entry) bool { return e.dev == d })
	}
}

// altered: an interface that is up again has its memberships, but nobody is told of
// them (Microsoft Q258875).
func (windowsModel) altered(k *Kernel, d *device, was, is Interface) {
	for _, s := range k.sockets {
		for _, e := range s.entries {
			e.silent = e.silent || e.dev == d && !was.Up && is.Up
		}
	}
}
