//go:build !plan9

package kerneltest

import (
	"net/netip"
	"slices"
	"syscall"
)

// BSD error numbers, sys/errno.h of XNU and FreeBSD alike.
const (
	bsdEFAULT        = syscall.Errno(14)
	bsdEINVAL        = syscall.Errno(22)
	bsdENOTTY        = syscall.Errno(25)
	bsdENOSPC        = syscall.Errno(28)
	bsdENOPROTOOPT   = syscall.Errno(42)
	bsdEAFNOSUPPORT  = syscall.Errno(47)
	bsdEADDRINUSE    = syscall.Errno(48)
	bsdEADDRNOTAVAIL = syscall.Errno(49)
	bsdENOBUFS       = syscall.Errno(55)
	bsdETOOMANYREFS  = syscall.Errno(59)
)

var bsdErrnos = errnos{
	short:       bsdEINVAL, // sooptcopyin
	badf:        9,
	noProtoOpt:  bsdENOPROTOOPT,
	otherFamily: bsdEINVAL, // ip_output.c ip_ctloutput, ip6_output.c ip6_ctloutput
	otherGet:    bsdEINVAL,
	noIoctl:     bsdENOTTY,
}

func bsdOptions() map[option]meaning {
	return mcastOptions(map[option]meaning{
		{levelIP, 12}:   {"IP_ADD_MEMBERSHIP", joinOp, mreq},
		{levelIP, 13}:   {"IP_DROP_MEMBERSHIP", leaveOp, mreq},
		{levelIP, 70}:   {"IP_ADD_SOURCE_MEMBERSHIP", joinSourceOp, mreqSource},
		{levelIP, 71}:   {"IP_DROP_SOURCE_MEMBERSHIP", leaveSourceOp, mreqSource},
		{levelIP, 72}:   {"IP_BLOCK_SOURCE", blockOp, mreqSource},
		{levelIP, 73}:   {"IP_UNBLOCK_SOURCE", unblockOp, mreqSource},
		{levelIP, 74}:   {"IP_MSFILTER", filterOp, msfilterReq},
		{levelIPv6, 12}: {"IPV6_JOIN_GROUP", joinOp, mreq6},
		{levelIPv6, 13}: {"IPV6_LEAVE_GROUP", leaveOp, mreq6},
		{levelIPv6, 74}: {"IPV6_MSFILTER", filterOp, msfilterReq},
	}, 80, 81, 82, 83, 84, 85)
}

// darwin is macOS: XNU 11417, netinet/in.h and netinet6/in6.h.
var darwin = &system{
	name:         "darwin",
	options:      bsdOptions(),
	inet6:        30,
	lenByte:      true,
	sourceSecond: true,
	indexAddress: true,
	group:        map[int]int{64: 4, 32: 4}, // #pragma pack(4)
	include:      1, exclude: 2,
	errno: bsdErrnos,
	model: bsdModel{},
	plain: map[option]string{
		{levelIP, 3}: "IP_TOS", {levelIP, 4}: "IP_TTL", {levelIP, 7}: "IP_RECVDSTADDR",
		{levelIP, 9}: "IP_MULTICAST_IF", {levelIP, 10}: "IP_MULTICAST_TTL",
		{levelIP, 11}: "IP_MULTICAST_LOOP", {levelIP, 20}: "IP_RECVIF",
		{levelIP, 24}: "IP_RECVTTL", {levelIP, 25}: "IP_BOUND_IF", {levelIP, 26}: "IP_PKTINFO",
		{levelIP, 27}: "IP_RECVTOS", {levelIP, 66}: "IP_MULTICAST_IFINDEX",
		{levelIPv6, 4}: "IPV6_UNICAST_HOPS", {levelIPv6, 9}: "IPV6_MULTICAST_IF",
		{levelIPv6, 10}: "IPV6_MULTICAST_HOPS", {levelIPv6, 11}: "IPV6_MULTICAST_LOOP",
		{levelIPv6, 27}: "IPV6_V6ONLY", {levelIPv6, 35}: "IPV6_RECVTCLASS",
		{levelIPv6, 36}: "IPV6_TCLASS", {levelIPv6, 37}: "IPV6_RECVHOPLIMIT",
		{levelIPv6, 61}: "IPV6_RECVPKTINFO", {levelIPv6, 125}: "IPV6_BOUND_IF",
	},
}

// freebsd is FreeBSD 14, netinet/in.h and netinet6/in6.h.
var freebsd = &system{
	name:         "freebsd",
	options:      bsdOptions(),
	inet6:        28,
	lenByte:      true,
	sourceSecond: true,
	mreqn:        true,
	group:        map[int]int{64: 8, 32: 4},
	include:      1, exclude: 2,
	errno: bsdErrnos,
	model: bsdModel{},
	plain: map[option]string{
		{levelIP, 3}: "IP_TOS", {levelIP, 4}: "IP_TTL", {levelIP, 7}: "IP_RECVDSTADDR",
		{levelIP, 9}: "IP_MULTICAST_IF", {levelIP, 10}: "IP_MULTICAST_TTL",
		{levelIP, 11}: "IP_MULTICAST_LOOP", {levelIP, 20}: "IP_RECVIF",
		{levelIP, 65}: "IP_RECVTTL", {levelIP, 68}: "IP_RECVTOS",
		{levelIPv6, 4}: "IPV6_UNICAST_HOPS", {levelIPv6, 9}: "IPV6_MULTICAST_IF",
		{levelIPv6, 10}: "IPV6_MULTICAST_HOPS", {levelIPv6, 11}: "IPV6_MULTICAST_LOOP",
		{levelIPv6, 27}: "IPV6_V6ONLY", {levelIPv6, 36}: "IPV6_RECVPKTINFO",
		{levelIPv6, 37}: "IPV6_RECVHOPLIMIT", {levelIPv6, 57}: "IPV6_RECVTCLASS",
		{levelIPv6, 61}: "IPV6_TCLASS",
	},
}

// bsdModel is netinet/in_mcast.c and netinet6/in6_mcast.c, which XNU has from
// FreeBSD. Where the two differ the kernel's fields or the system's data say so.
type bsdModel struct{}

func (m bsdModel) set(s *Socket, r *request) syscall.Errno {
	if r.op == filterOp {
		switch { // inp_set_source_filters
		case r.number > uint32(m.maxSources(s.k, r)):
			return bsdENOBUFS
		case r.badMode:
			return bsdEINVAL
		}
	}
	if r.badGroup || r.badSource || !isMulticast(r.group) || r.source.Is6() && r.source.IsMulticast() {
		return bsdEINVAL // inp_join_group; an IPv4 source is never validated
	}
	d, e := m.named(s, r)
	if e != 0 {
		return e
	}
	s.options6 = s.options6 || !r.ipv4
	switch entry := m.find(s, d, r.group); r.op {
	case joinOp, joinSourceOp:
		return m.join(s, r, d, entry)
	case leaveOp:
		return m.leave(s, r, entry)
	case leaveSourceOp:
		return m.leaveSource(s, r, entry)
	case blockOp, unblockOp:
		return m.block(s, r, entry)
	default:
		return m.setFilter(s, r, entry)
	}
}

// named finds the device that a request names. It is nil where the request may go
// on without one: it then takes any interface's membership.
func (m bsdModel) named(s *Socket, r *request) (*device, syscall.Errno) {
	k := s.k
	byAddress := r.address.IsValid() && !r.address.IsUnspecified()
	var d *device
	switch {
	case r.index != 0:
		d = k.device(r.index)
	case byAddress:
		d = k.device(k.byAddress(r.address))
	case r.op == joinOp || r.op == joinSourceOp:
		k.harm("%s of %v with interface 0", r.name, r.group)
		if r.form == mreq || r.form == mreqSource || r.form == mreq6 {
			d = k.device(k.Route) // inp_lookup_mcast_ifp
		}
	default:
		// The one way to give up the membership of an interface that has gone. With
		// nothing gone it takes whichever membership comes first.
		gone := slices.ContainsFunc(s.entries, func(e *entry) bool {
			return e.group == r.group && k.device(e.index) != e.dev
		})
		if r.op != leaveOp || r.form == groupReq || !gone {
			k.harm("%s of %v with interface 0", r.name, r.group)
		}
	}
	// inp_leave_group: "Fallthrough with null ifp iff lookup fails, to preserve 4.4BSD
	// mcast API idempotence". The protocol-independent options do not fall through.
	legacy := r.form == mreq || r.form == mreqSource || r.form == mreq6 && r.index == 0
	join := r.op == joinOp || r.op == joinSourceOp
	if d == nil && (join || !legacy) {
		return nil, bsdEADDRNOTAVAIL
	}
	return d, 0
}

// find is imo_match_group: it compares interfaces, not indexes.
func (bsdModel) find(s *Socket, d *device, group netip.Addr) *entry {
	for _, e := range s.entries {
		if e.group == group && (d == nil || e.dev == d) {
			return e
		}
	}
	return nil
}

func (m bsdModel) join(s *Socket, r *request, d *device, e *entry) syscall.Errno {
	source := r.op == joinSourceOp
	switch {
	case e == nil && s.count(r.ipv4) >= s.k.MaxMemberships:
		return bsdETOOMANYREFS // imo_grow
	case e == nil && source && m.full(s.k, d, r.group, r.source):
		return bsdENOSPC
	case e == nil:
		e = s.add(&entry{channel: channel{d.index, r.group}, dev: d, exclude: !source})
		if source {
			e.sources = []netip.Addr{r.source}
		}
		return 0
	case source && e.exclude:
		return bsdEINVAL
	case source && m.listed(e, r.source):
		return bsdEADDRNOTAVAIL
	case !source && e.exclude:
		return bsdEADDRINUSE
	case !source:
		return bsdEINVAL
	case m.full(s.k, d, r.group, r.source):
		return bsdENOSPC
	}
	if n := m.byteCount(s, r, e, 1); n != 0 {
		return n
	}
	e.sources = append(e.sources, r.source)
	return 0
}

func (m bsdModel) leave(s *Socket, r *request, e *entry) syscall.Errno {
	if e == nil {
		return bsdEADDRNOTAVAIL
	}
	if !e.exclude && len(e.sources) == 0 {
		s.k.harm("%s of %v%%%d releases INCLUDE(): other processes lose the group", r.name, r.group, e.index)
	}
	s.remove(e)
	return 0
}

func (m bsdModel) leaveSource(s *Socket, r *request, e *entry) syscall.Errno {
	if e == nil || e.exclude || !slices.Contains(e.sources, r.source) {
		return bsdEADDRNOTAVAIL
	}
	if len(e.sources) == 1 {
		// XNU in_mcast.c, "is_final = 0": the membership stays as INCLUDE().
		s.k.harm("%s of the last source of %v%%%d leaves INCLUDE() behind", r.name, r.group, e.index)
	} else if n := m.byteCount(s, r, e, 1); n != 0 {
		return n
	}
	e.sources = without(e.sources, r.source)
	return 0
}

func (m bsdModel) block(s *Socket, r *request, e *entry) syscall.Errno {
	block := r.op == blockOp
	switch {
	case e == nil:
		return bsdEADDRNOTAVAIL
	case !e.exclude:
		return bsdEINVAL
	case m.listed(e, r.source) == block:
		return bsdEADDRNOTAVAIL
	case block && m.full(s.k, e.dev, r.group, r.source):
		return bsdENOSPC
	}
	if block {
		if n := m.byteCount(s, r, e, 1); n != 0 {
			return n
		}
		e.sources = append(e.sources, r.source)
		return 0
	}
	e.sources, e.other = without(e.sources, r.source), without(e.other, r.source)
	return 0
}

func (m bsdModel) setFilter(s *Socket, r *request, e *entry) syscall.Errno {
	if e == nil {
		return bsdEADDRNOTAVAIL // RFC 3678 section 4.2.1 would join; XNU does not
	}
	if r.number == 0 {
		// XNU in_mcast.c, "Apply any new source filters, if present": only the mode is
		// set. The entries keep the mode they were made in.
		if len(e.sources)+len(e.other) > 0 {
			s.k.harm("%s of %v%%%d with no sources does not reset the old ones", r.name, r.group, e.index)
		}
		if r.exclude != e.exclude {
			e.exclude, e.sources, e.other = r.exclude, e.other, e.sources
		}
		return 0
	}
	if !r.fits() {
		return bsdEFAULT
	}
	if r.badSources {
		return bsdEAFNOSUPPORT // of the family; a wrong length would be EINVAL
	}
	var list []netip.Addr
	n, changed := len(e.sources)+len(e.other), 0
	for _, a := range r.sources {
		if slices.Contains(list, a) {
			continue // "duplicate entries in the msfr_nsrcs vector are ignored"
		}
		if !m.listed(e, a) {
			// imf_get_source: the old entries still count, and only reaching the limit
			// is refused, not being past it.
			if n == m.maxSources(s.k, r) {
				return bsdENOSPC
			}
			if m.full(s.k, e.dev, r.group, a) {
				return bsdENOSPC
			}
			n++
			changed++
		}
		list = append(list, a)
	}
	for _, a := range e.sources {
		if !slices.Contains(list, a) {
			changed++
		}
	}
	if n := m.byteCount(s, r, e, changed); n != 0 {
		return n
	}
	e.exclude, e.sources, e.other = r.exclude, list, nil
	return 0
}

// filter is inp_get_source_filters.
func (m bsdModel) filter(s *Socket, r *request) (bool, []netip.Addr, syscall.Errno) {
	d := s.k.device(r.index)
	switch {
	case r.badGroup, !isMulticast(r.group):
		return false, nil, bsdEINVAL
	case r.index == 0:
		s.k.harm("get %s of %v with interface 0", r.name, r.group)
		return false, nil, bsdEADDRNOTAVAIL
	case d == nil:
		return false, nil, bsdEADDRNOTAVAIL
	}
	e := m.find(s, d, r.group)
	if e == nil {
		return false, nil, bsdEADDRNOTAVAIL
	}
	sources := slices.Clone(e.sources)
	slices.SortFunc(sources, netip.Addr.Compare) // they are in a tree
	return e.exclude, sources, 0
}

func (bsdModel) maxSources(k *Kernel, r *request) int {
	if r.ipv4 {
		return k.MaxMSF4
	}
	return k.MaxMSF6
}

// listed is imo_match_source: the mode of an entry does not matter.
func (bsdModel) listed(e *entry, source netip.Addr) bool {
	return slices.Contains(e.sources, source) || slices.Contains(e.other, source)
}

// full reports whether the group on the device has all the sources that it may
// have, of all sockets together, and this is a new one: inm_get_source.
func (bsdModel) full(k *Kernel, d *device, group, source netip.Addr) bool {
	known := make(map[netip.Addr]bool)
	for _, e := range k.members(d, group) {
		for _, a := range slices.Concat(e.sources, e.other) {
			known[a] = true
		}
	}
	return !known[source] && len(known) >= k.MaxGroup
}

// byteCount answers as macOS does where IGMPv3 sends a state change report: with
// the bytes of the report (8+4n or 8+8n for n sources) as the errno, the socket's
// filter rolled back, and the same call succeeding in the end. Seen with XNU's
// igmp.c run in userspace and reported as libuv #4263 and JDK-8144003. A first
// source does not meet it, nor does a filter that n sources of change leave alone.
func (bsdModel) byteCount(s *Socket, r *request, e *entry, n int) syscall.Errno {
	k := s.k
	if !r.ipv4 || n == 0 || len(e.sources) == 0 || k.Interfaces[e.index].Loopback {
		return 0
	}
	a := attempt{r.op, e.channel, r.source}
	if s.counts[a] == k.ByteCounts {
		delete(s.counts, a)
		return 0
	}
	s.counts[a]++
	return syscall.Errno(8 + k.ByteCountStep*n)
}

func without(list []netip.Addr, a netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(list), func(x netip.Addr) bool { return x == a })
}

// plain: an option that concerns IPv6 multicast makes the socket's in6p_moptions.
func (bsdModel) plain(s *Socket, o option, value []byte) syscall.Errno {
	if o.level == levelIPv6 && o.number >= 9 && o.number <= 11 {
		s.options6 = true
	}
	return 0
}

func (m bsdModel) delivers(s *Socket, d *device, group, source netip.Addr) bool {
	// The host takes in a group that any socket joined, whatever the sources.
	if !allHosts(group) && len(s.k.members(d, group)) == 0 {
		return false
	}
	if group.Is6() && !s.options6 {
		return true // udp6_usrreq.c: without multicast options there is no filter
	}
	if s.k.sys == darwin && group == allNodes[0] {
		return true // XNU udp_usrreq.c: INADDR_ALLHOSTS_GROUP is not filtered
	}
	// imo_multi_filter. An entry of the other mode drops its source; one of the mode
	// in force lets it pass, even where that mode is EXCLUDE.
	e := m.find(s, d, group)
	switch {
	case e == nil, slices.Contains(e.other, source):
		return false
	case e.exclude:
		return s.k.DeliversBlocked || e.allows(source)
	}
	return e.allows(source)
}

// removed: the sockets keep their memberships.
func (bsdModel) removed(k *Kernel, index int) {}

func (bsdModel) changed(k *Kernel, d *device, up bool) {}
