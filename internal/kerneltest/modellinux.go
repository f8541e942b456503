//go:build !plan9

package kerneltest

import (
	"maps"
	"net/netip"
	"slices"
	"syscall"
)

// Linux error numbers, asm-generic/errno.h.
const (
	linuxESRCH         = syscall.Errno(3)
	linuxENOMEM        = syscall.Errno(12)
	linuxENODEV        = syscall.Errno(19)
	linuxEINVAL        = syscall.Errno(22)
	linuxENOPROTOOPT   = syscall.Errno(92)
	linuxEADDRINUSE    = syscall.Errno(98)
	linuxEADDRNOTAVAIL = syscall.Errno(99)
	linuxENOBUFS       = syscall.Errno(105)
)

const (
	linuxIPMulticastAll   = 49
	linuxIPv6MulticastAll = 29
)

// linux is Linux as its uapi/linux/in.h and in6.h number it.
var linux = &system{
	name:       "linux",
	inet6:      10,
	mreqn:      true,
	dual:       true,
	fixedExact: true, // observed; ipv6_sockglue.c takes a longer one
	group:      map[int]int{64: 8, 32: 4},
	include:    1, exclude: 0,
	errno: errnos{
		short:       linuxEINVAL,
		badf:        9,
		noProtoOpt:  linuxENOPROTOOPT,
		otherFamily: linuxENOPROTOOPT, // ip_sockglue.c: level != SOL_IP
		otherGet:    95,               // observed: EOPNOTSUPP
		noIoctl:     25,
		dead:        5,
	},
	model: linuxModel{},
	options: mcastOptions(map[option]meaning{
		{levelIP, 35}:   {"IP_ADD_MEMBERSHIP", joinOp, mreq},
		{levelIP, 36}:   {"IP_DROP_MEMBERSHIP", leaveOp, mreq},
		{levelIP, 37}:   {"IP_UNBLOCK_SOURCE", unblockOp, mreqSource},
		{levelIP, 38}:   {"IP_BLOCK_SOURCE", blockOp, mreqSource},
		{levelIP, 39}:   {"IP_ADD_SOURCE_MEMBERSHIP", joinSourceOp, mreqSource},
		{levelIP, 40}:   {"IP_DROP_SOURCE_MEMBERSHIP", leaveSourceOp, mreqSource},
		{levelIP, 41}:   {"IP_MSFILTER", filterOp, ipFilter},
		{levelIP, 48}:   {"MCAST_MSFILTER", filterOp, groupFilter},
		{levelIPv6, 20}: {"IPV6_ADD_MEMBERSHIP", joinOp, mreq6},
		{levelIPv6, 21}: {"IPV6_DROP_MEMBERSHIP", leaveOp, mreq6},
		{levelIPv6, 48}: {"MCAST_MSFILTER", filterOp, groupFilter},
	}, 42, 45, 46, 47, 43, 44),
	plain: linuxSettings,
}

// linuxModel is net/ipv4/igmp.c and net/ipv6/mcast.c, observed on Linux 6.18 and
// held against the running kernel by this package's tests.
type linuxModel struct{}

// named is the interface that a request names: ip_mc_find_dev and ip6_mc_find_dev.
// The index is 0 and the device nil where there is none.
func (linuxModel) named(k *Kernel, r *request) (index int, d *device) {
	switch {
	case r.index != 0:
		return r.index, k.device(r.index)
	case r.address.IsValid() && !r.address.IsUnspecified():
		index = k.byAddress(r.address)
	case r.ipv4:
		index = k.Route
	default:
		// Observed: the first interface that is up. lo has no ff00::/8 route.
		for _, i := range slices.Sorted(maps.Keys(k.Interfaces)) {
			if k.Interfaces[i].Up && !k.Interfaces[i].Loopback {
				index = i
				break
			}
		}
	}
	return index, k.device(index)
}

func (m linuxModel) set(s *Socket, r *request) syscall.Errno {
	k := s.k
	byAddress := r.address.IsValid() && !r.address.IsUnspecified()
	if r.index == 0 && !byAddress {
		k.harm(Unaimed, "%s of %v with interface index 0", r.name, r.group)
	}
	if r.index == 0 && byAddress && r.op == leaveOp {
		k.harm(Leaked, "%s of %v names its interface by the address %v: if that is gone, the membership leaks", r.name, r.group, r.address)
	}
	switch {
	case r.form == groupReq && r.badGroup && r.ipv4:
		return linuxEINVAL // ip_sockglue.c
	case r.form == groupReq && r.badGroup,
		r.form == groupSource && (r.badGroup || r.badSource):
		return linuxEADDRNOTAVAIL
	}
	switch r.op {
	case joinOp:
		_, e := m.join(s, r, true)
		return e
	case leaveOp:
		return m.leave(s, r)
	case joinSourceOp:
		index, e := m.join(s, r, false)
		if e != 0 && e != linuxEADDRINUSE {
			return e
		}
		if r.ipv4 && r.form == groupSource {
			r.index = index // ip_sockglue.c: gsr_interface = mreq.imr_ifindex
		}
		return m.source(s, r, true, false)
	case leaveSourceOp:
		return m.source(s, r, false, false)
	case blockOp:
		return m.source(s, r, true, true)
	case unblockOp:
		return m.source(s, r, false, true)
	}
	return m.setFilter(s, r)
}

// join is __ip_mc_join_group and __ipv6_sock_mc_join, whose checks come in
// different order.
func (m linuxModel) join(s *Socket, r *request, exclude bool) (index int, e syscall.Errno) {
	if !isMulticast(r.group) {
		return 0, linuxEINVAL
	}
	index, d := m.named(s.k, r)
	wanted := index
	if !r.ipv4 {
		wanted = r.index // 0 finds any interface's
	}
	if r.ipv4 && d == nil {
		return index, linuxENODEV
	}
	if s.find(wanted, r.group) != nil {
		return index, linuxEADDRINUSE
	}
	if r.ipv4 && s.count(true) >= s.k.MaxMemberships {
		return index, linuxENOBUFS
	}
	entry := &entry{channel: channel{index, r.group}, dev: d, exclude: exclude, spare: s.spare}
	if !m.allocate(s, m.size(entry)) {
		if r.ipv4 {
			return index, linuxENOBUFS
		}
		return index, linuxENOMEM
	}
	if d == nil {
		return index, linuxENODEV
	}
	if !r.ipv4 && !s.k.Interfaces[index].hasIPv6() {
		return index, linuxEINVAL // observed
	}
	if r.address.IsValid() && !r.address.IsUnspecified() {
		entry.address = r.address
	}
	s.add(entry)
	d.hold(entry)
	return index, 0
}

// leave is ip_mc_leave_group and ipv6_sock_mc_drop.
func (m linuxModel) leave(s *Socket, r *request) syscall.Errno {
	if !r.ipv4 && !isMulticast(r.group) {
		return linuxEINVAL
	}
	index, d := r.index, (*device)(nil)
	if r.ipv4 {
		index, d = m.named(s.k, r)
		if index == 0 && !r.address.IsValid() || index == 0 && r.address.IsUnspecified() {
			return linuxENODEV
		}
	}
	for _, e := range s.entries {
		if e.group != r.group {
			continue
		}
		if index != 0 && e.index != index {
			continue
		}
		if index == 0 && r.ipv4 && e.address != r.address {
			continue
		}
		s.remove(e)
		// Observed, 4.4 to 7.2: the device of an IPv4 membership is found as the request
		// names it. By an address that has gone it is not found: the socket's entry goes,
		// and the device's membership stays after close.
		if !r.ipv4 {
			d = s.k.device(e.index)
		}
		s.k.drop(d, e, r.name)
		return 0
	}
	return linuxEADDRNOTAVAIL
}

// source is ip_mc_source and ip6_mc_source.
func (m linuxModel) source(s *Socket, r *request, add, exclude bool) syscall.Errno {
	if !isMulticast(r.group) {
		return linuxEINVAL
	}
	index, d := m.named(s.k, r)
	if d == nil || !r.ipv4 && !s.k.Interfaces[index].hasIPv6() {
		return linuxENODEV
	}
	if !r.ipv4 {
		index = r.index // observed: 0 edits whichever membership comes first
	}
	e := s.find(index, r.group)
	if e == nil {
		return linuxEINVAL
	}
	s.k.claims(d, e, r.name)
	if e.exclude != exclude {
		s.k.harm(WrongMode, "%v %v of %v%%%d in the other mode, %v", r.op, r.source, r.group, e.index, modeOf(e))
		if e.alloc {
			return linuxEINVAL
		}
		// Observed: without a list the mode switches first, whether or not the
		// request then succeeds.
		d.add(e.group, exclude, nil, false)
		d.del(e.group, e.exclude, nil, false)
		e.exclude = exclude
	}
	at := slices.Index(e.sources, r.source)
	if !add {
		if at < 0 {
			return linuxEADDRNOTAVAIL
		}
		if len(e.sources) == 1 && !exclude {
			s.remove(e) // RFC 3376 section 3.1: INCLUDE() is no membership
			s.k.drop(d, e, r.name)
			return 0
		}
		d.del(e.group, exclude, []netip.Addr{r.source}, true)
		e.sources = slices.Delete(e.sources, at, at+1)
		return 0
	}
	if e.alloc && len(e.sources) >= m.maxSources(s.k, r) {
		return linuxENOBUFS // before it looks for a duplicate
	}
	if !e.alloc || len(e.sources) == e.room {
		const block = 10 // IP_SFBLOCK
		if !m.allocate(s, m.listSize(e, e.room+block)) || m.fails(s.k) {
			return linuxENOBUFS
		}
		e.alloc = true
		e.room += block
	}
	if at >= 0 {
		return linuxEADDRNOTAVAIL
	}
	e.sources = append(e.sources, r.source) // never validated
	d.add(e.group, exclude, []netip.Addr{r.source}, true)
	return 0
}

func modeOf(e *entry) string {
	if e.exclude {
		return "EXCLUDE"
	}
	return "INCLUDE"
}

// setFilter is ip_mc_msfilter and ip6_mc_msfilter, with the checks of the option
// code before them.
func (m linuxModel) setFilter(s *Socket, r *request) syscall.Errno {
	switch {
	case r.size > s.k.OptMem,
		int64(r.number) > int64(m.maxSources(s.k, r)):
		return linuxENOBUFS
	case !r.fits():
		return linuxEINVAL
	case r.ipv4 && r.form == groupFilter && (r.badGroup || r.badSources):
		return linuxEADDRNOTAVAIL // observed: IPv6 does not look at the families
	case !isMulticast(r.group), r.badMode:
		return linuxEINVAL
	}
	index, d := m.named(s.k, r)
	if d == nil || !r.ipv4 && !s.k.Interfaces[index].hasIPv6() {
		return linuxENODEV
	}
	if !r.exclude && len(r.sources) == 0 {
		r.index = index
		return m.leave(s, r)
	}
	if !r.ipv4 {
		index = r.index
	}
	e := s.find(index, r.group)
	if e == nil {
		return linuxEINVAL
	}
	if n := len(r.sources); n > 0 {
		if !m.allocate(s, m.listSize(e, n)) || m.fails(s.k) {
			return linuxENOBUFS
		}
	}
	s.k.claims(d, e, r.name)
	if err := d.add(e.group, r.exclude, r.sources, false); err != 0 && len(r.sources) > 0 {
		// Observed: the entry is of an interface that has come back with its old index,
		// and the new device knows nothing of the group.
		return err
	}
	d.del(e.group, e.exclude, e.sources, false)
	// Observed: duplicates are kept, and EXCLUDE() takes the list itself away.
	e.exclude, e.sources = r.exclude, r.sources
	e.alloc, e.room = len(r.sources) > 0, len(r.sources)
	return 0
}

func (m linuxModel) get(s *Socket, r *request, in, out []byte) (int, syscall.Errno) {
	exclude, sources, e := m.filter(s, r)
	if e != 0 {
		return 0, e
	}
	return s.k.sys.encode(s.k, r, in, out, exclude, sources)
}

// filter is ip_mc_gsfget, ip_mc_msfget and ip6_mc_msfget.
func (m linuxModel) filter(s *Socket, r *request) (bool, []netip.Addr, syscall.Errno) {
	if !r.fits() {
		s.k.harm(Overrun, "%s asks for %d sources of %v in %d bytes: the kernel writes past the end", r.name, r.number, r.group, r.size)
	}
	switch {
	case r.badGroup && r.ipv4:
		return false, nil, linuxEINVAL
	case r.badGroup:
		return false, nil, linuxEADDRNOTAVAIL // ipv6_sockglue.c
	case !isMulticast(r.group):
		return false, nil, linuxEINVAL
	}
	index := r.index
	if r.form == ipFilter {
		var d *device
		if index, d = m.named(s.k, r); d == nil {
			return false, nil, linuxENODEV
		}
	}
	if index == 0 {
		s.k.harm(Unaimed, "get %s of %v with interface index 0", r.name, r.group)
		return false, nil, linuxEADDRNOTAVAIL
	}
	e := s.find(index, r.group)
	if e == nil {
		return false, nil, linuxEADDRNOTAVAIL
	}
	return e.exclude, e.sources, 0
}

func (linuxModel) maxSources(k *Kernel, r *request) int {
	if r.ipv4 {
		return k.MaxMSF4
	}
	return k.MaxMSF6
}

// size is sizeof(struct ip_mc_socklist) or ipv6_mc_socklist on a 64-bit machine:
// with listSize, 1170 source-specific IPv4 memberships fit into 131072 bytes and
// 546 of IPv6, as observed.
func (linuxModel) size(e *entry) int {
	if e.group.Is4() {
		return 48
	}
	return 56
}

// listSize is IP_SFLSIZE and IP6_SFLSIZE.
func (linuxModel) listSize(e *entry, room int) int {
	if e.group.Is4() {
		return 24 + 4*room
	}
	return 24 + 16*room
}

// allocate reports whether option memory is to be had: sock_kmalloc.
func (m linuxModel) allocate(s *Socket, size int) bool {
	used := 0
	for _, e := range s.entries {
		used += m.size(e)
		if e.alloc {
			used += m.listSize(e, e.room)
		}
	}
	return size <= s.k.OptMem && used+size < s.k.OptMem
}

// fails takes one of the failures that were asked for.
func (linuxModel) fails(k *Kernel) bool {
	if k.ListFailures == 0 {
		return false
	}
	k.ListFailures--
	return true
}

// plain checks the options that decide what is delivered.
func (linuxModel) plain(s *Socket, o option, value []byte) syscall.Errno {
	switch o {
	case option{levelIP, linuxIPMulticastAll}:
		if v, ok := boolean(s.k, value); !ok || v > 1 {
			return linuxEINVAL
		}
	case option{levelIPv6, linuxIPv6MulticastAll}:
		if s.k.NoIPv6MulticastAll {
			return linuxENOPROTOOPT // before Linux 4.20
		}
		if len(value) < 4 {
			return linuxEINVAL
		}
	}
	return 0
}

// boolean reads an int, or a byte where there is no room for an int.
func boolean(k *Kernel, value []byte) (v uint32, ok bool) {
	switch {
	case len(value) >= 4:
		return k.Order.Uint32(value), true
	case len(value) >= 1:
		return uint32(value[0]), true
	}
	return 0, false
}

// multicastAll is the socket's IP_MULTICAST_ALL or IPV6_MULTICAST_ALL. Observed:
// an AF_INET6 socket starts with the IPv4 one at 0, every other at 1.
func (s *Socket) multicastAll(level int) bool {
	name := uint32(linuxIPMulticastAll)
	if level == levelIPv6 {
		name = linuxIPv6MulticastAll
	}
	if value, ok := s.plain[option{level, name}]; ok {
		v, _ := boolean(s.k, value)
		return v != 0
	}
	return !s.ipv6 || level == levelIPv6
}

func (linuxModel) delivers(s *Socket, d *device, group, source netip.Addr) bool {
	// First the host: a datagram is taken in if any socket wants it. All systems are
	// always in the all-hosts groups (RFC 1112 section 4, RFC 4291 section 2.7.1).
	if group.Is6() && (s.k.Interfaces[d.index].NoIPv6 || !s.k.Interfaces[d.index].hasIPv6()) {
		return false
	}
	if g := d.groups[group]; !allHosts(group) && (g == nil || !g.allows(source)) {
		return false
	}
	// Then the socket: ip_mc_sf_allow and inet6_mc_check. The latter has no interface
	// to compare: a membership on any interface decides.
	index, level := d.index, levelIP
	if group.Is6() {
		index, level = 0, levelIPv6
	}
	if e := s.find(index, group); e != nil {
		return e.allows(source)
	}
	return s.multicastAll(level)
}

var allNodes = []netip.Addr{
	netip.MustParseAddr("224.0.0.1"),
	netip.MustParseAddr("ff01::1"),
	netip.MustParseAddr("ff02::1"),
}

func allHosts(group netip.Addr) bool { return slices.Contains(allNodes, group) }

func (linuxModel) memberships(s *Socket) (ms []Membership) {
	for _, e := range s.entries {
		d := s.k.device(e.index)
		ms = append(ms, Membership{Interface: e.index, Group: e.group, Exclude: e.exclude, Sources: e.sources, Held: d.holds(e)})
	}
	return ms
}

// closed is ip_mc_drop_socket and ipv6_sock_mc_close: from the newest to the oldest.
func (linuxModel) closed(s *Socket) {
	for _, e := range s.entries {
		s.k.drop(s.k.device(e.index), e, "close")
	}
}

// removed: the sockets' entries stay and count (observed).
func (linuxModel) removed(k *Kernel, d *device) {}

// altered models what was observed of links that go down and up, of disable_ipv6,
// which does the same to IPv6, and of an MTU that leaves IPv6 no room, which takes
// all IPv6 memberships off the device for good.
func (linuxModel) altered(k *Kernel, d *device, was, is Interface) {
	ipv6 := func(group netip.Addr) bool { return group.Is6() }
	for _, part := range []struct {
		in      func(netip.Addr) bool
		was, is bool
	}{
		{netip.Addr.Is4, was.Up, is.Up},
		{ipv6, was.Up && !was.NoIPv6, is.Up && !is.NoIPv6},
	} {
		switch {
		case part.was && !part.is:
			d.lower(part.in)
		case !part.was && part.is:
			d.raise(part.in)
		}
	}
	if was.hasIPv6() && !is.hasIPv6() {
		maps.DeleteFunc(d.groups, func(group netip.Addr, _ *linuxGroup) bool { return group.Is6() })
	}
}
