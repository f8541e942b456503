//go:build !plan9

package kerneltest

import (
	"net/netip"
	"syscall"
)

// BSD error numbers, sys/errno.h of XNU and FreeBSD alike.
const (
	bsdEFAULT        = syscall.Errno(14)
	bsdEINVAL        = syscall.Errno(22)
	bsdENOMEM        = syscall.Errno(12)
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
	dead:        5, // EIO
}

func bsdNumbers() map[option]meaning {
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
	options:      bsdNumbers(),
	inet6:        30,
	lenByte:      true,
	sourceSecond: true,
	indexAddress: true,
	group:        map[int]int{64: 4, 32: 4}, // #pragma pack(4)
	include:      1, exclude: 2,
	errno: bsdErrnos,
	model: bsdModel{},
	plain: darwinSettings,
}

// freebsd is FreeBSD 14, netinet/in.h and netinet6/in6.h.
var freebsd = &system{
	name:         "freebsd",
	options:      bsdNumbers(),
	inet6:        28,
	lenByte:      true,
	sourceSecond: true,
	mreqn:        true,
	group:        map[int]int{64: 8, 32: 4},
	include:      1, exclude: 2,
	errno: bsdErrnos,
	model: bsdModel{},
	plain: freebsdSettings,
}

// bsdModel is netinet/in_mcast.c and netinet6/in6_mcast.c, which XNU has from
// FreeBSD. What it answers is held against what XNU 11417 and FreeBSD 13 answered
// (TestVectors). Where the two differ the kernel's fields or the system's data say
// so.
type bsdModel struct{}

// options returns a socket's multicast options of a family, and makes them:
// inp_findmoptions. Until then an IPv6 socket filters nothing.
func (s *Socket) options(ipv4 bool) *bsdOptions {
	o := &s.bsd6
	if ipv4 {
		o = &s.bsd4
	}
	if *o == nil {
		*o = new(bsdOptions)
	}
	return *o
}

func (m bsdModel) set(s *Socket, r *request) syscall.Errno {
	if s.k.sys == darwin && r.form == mreq6 && r.group.Is4In6() {
		if e := m.mapped(s, r); e != 0 {
			return e
		}
	}
	d, e := m.named(s, r)
	if e != 0 {
		return e
	}
	o := s.options(r.ipv4)
	group := r.group
	if !r.ipv4 && d != nil && !r.unscoped {
		group = scoped(group, d)
	}
	i := o.find(d, group)
	if d == nil && i >= 0 && s.k.device(o.records[i].dev.index) == o.records[i].dev {
		// With a membership of an interface that has gone it is the one way to give it up.
		s.k.harm(Unaimed, "%s of %v names no interface and takes the membership of %d", r.name, r.group, o.records[i].dev.index)
	}
	switch r.op {
	case joinOp, joinSourceOp:
		return m.join(s, r, o, d, group, i)
	case leaveOp:
		return m.leave(s, r, o, i)
	case leaveSourceOp:
		return m.leaveSource(s, r, o, i)
	case blockOp, unblockOp:
		return m.block(s, r, o, i)
	default:
		return m.setFilter(s, r, o, i)
	}
}

// mapped makes an IPv4 request of an IPv6 one that has an IPv4 group:
// in6p_join_group of XNU.
func (m bsdModel) mapped(s *Socket, r *request) syscall.Errno {
	r.group, r.ipv4, r.form = r.group.Unmap(), true, mreq
	r.address = netip.IPv4Unspecified()
	if r.index == 0 {
		return 0
	}
	for _, a := range s.k.Interfaces[r.index].Addrs {
		if a.Is4() {
			r.index, r.address = 0, a
			return 0
		}
	}
	return bsdEADDRNOTAVAIL
}

// named finds the device that a request names, in the order of the checks that its
// kernel function makes. It is nil where the request goes on without one.
func (m bsdModel) named(s *Socket, r *request) (*device, syscall.Errno) {
	k := s.k
	join := r.op == joinOp || r.op == joinSourceOp
	multicastSource := !r.ipv4 && isMulticast(r.source)
	if r.op == filterOp {
		switch { // inp_set_source_filters
		case r.number > uint32(m.maxSources(k, r)):
			return nil, bsdENOBUFS
		case r.badMode, r.badGroup, !isMulticast(r.group):
			return nil, bsdEINVAL
		}
	}
	switch {
	case r.form == mreq || r.form == mreqSource:
		if join && !isMulticast(r.group) {
			return nil, bsdEINVAL
		}
		d := m.legacy(s, r)
		switch {
		case join && d == nil:
			return nil, bsdEADDRNOTAVAIL
		case !isMulticast(r.group):
			return nil, bsdEINVAL
		}
		return d, 0
	case r.badGroup, r.badSource, multicastSource && (join || r.op == leaveSourceOp):
		return nil, bsdEINVAL
	case !r.ipv4 && (r.op == leaveOp || r.op == leaveSourceOp || r.form == mreq6) && !isMulticast(r.group):
		return nil, bsdEINVAL
	case r.ipv4 && join && !isMulticast(r.group):
		return nil, bsdEINVAL
	}
	clearScope(&r.source, r.op)
	d := k.device(r.index)
	if r.index == 0 {
		k.harm(Unaimed, "%s of %v with interface 0", r.name, r.group)
		switch {
		case !r.ipv4 && (r.op == leaveOp || r.op == leaveSourceOp):
			// in6p_leave_group: an interface in the group's address, or the route.
			b := r.group.As16()
			r.unscoped = true
			if d = k.device(int(b[2])<<8 | int(b[3])); d == nil && b[2]|b[3] == 0 {
				d = k.device(k.Route)
			}
		case r.form == mreq6 && join:
			d = k.device(k.Route)
		default:
			return nil, bsdEADDRNOTAVAIL
		}
	}
	switch {
	case d == nil && r.index > 0 && r.index <= k.highest() && !isMulticast(r.group):
		return nil, bsdEINVAL // an interface that has gone; the group is looked at before it is missed
	case d == nil && k.sys == freebsd && r.index > 0 && r.index <= k.highest() && (r.op == blockOp || r.op == unblockOp):
		return nil, 0 // inp_block_unblock_source of FreeBSD does not miss it
	case d == nil:
		return nil, bsdEADDRNOTAVAIL
	case !isMulticast(r.group):
		return nil, bsdEINVAL
	}
	return d, 0
}

// legacy finds the device of an IP_* request. inp_leave_group: "Fallthrough with
// null ifp iff lookup fails, to preserve 4.4BSD mcast API idempotence".
func (m bsdModel) legacy(s *Socket, r *request) *device {
	k := s.k
	join := r.op == joinOp || r.op == joinSourceOp
	switch {
	case r.index != 0 && (k.sys == darwin || r.form == mreq && r.op == joinOp && r.size == 12):
		return k.device(r.index) // of FreeBSD's ip_mreqn only a join looks at the index
	case !r.address.IsUnspecified():
		return k.device(k.byAddress(r.address))
	case join:
		k.harm(Unaimed, "%s of %v with interface 0", r.name, r.group)
		return k.device(k.Route) // inp_lookup_mcast_ifp
	}
	return nil
}

// downcall counts a change and tells the network: inm_merge, igmp_change_state.
func (m bsdModel) downcall(s *Socket, r *request, rec *record, f *bsdFilter) syscall.Errno {
	k := s.k
	e := k.merge(rec, f)
	if e == 0 {
		e = k.changed(rec)
	}
	if e == 0 {
		e = m.byteCount(s, r, rec, f)
	}
	if k.spoiled(rec) && r.op != leaveOp {
		k.harm(Spoiled, "%s of %v%%%d before its last leave was reported", r.name, unscoped(rec.group), rec.dev.index)
	}
	return e
}

// done ends a request on a membership that there was before.
func (m bsdModel) done(s *Socket, r *request, rec *record, f *bsdFilter, e syscall.Errno) syscall.Errno {
	if e != 0 {
		f.rollback()
		return e
	}
	f.commit()
	f.reap()
	if f.mode[1] == include && len(f.listed()) == 0 {
		s.k.harm(LeftBehind, "%s of %v%%%d leaves INCLUDE() behind", r.name, unscoped(rec.group), rec.dev.index)
	}
	return 0
}

func (m bsdModel) join(s *Socket, r *request, o *bsdOptions, d *device, group netip.Addr, i int) syscall.Errno {
	k := s.k
	source := r.op == joinSourceOp
	if i >= 0 {
		f, rec := o.filters[i], o.records[i]
		switch {
		case source && f.mode[1] != include:
			return bsdEINVAL
		case source && f.entry(r.source) != nil:
			return bsdEADDRNOTAVAIL
		case !source && f.mode[1] == exclude:
			return bsdEADDRINUSE
		case !source:
			return bsdEINVAL
		}
		f.graft(r.source, include)
		return m.done(s, r, rec, f, m.downcall(s, r, rec, f))
	}
	if len(o.records) >= k.MaxMemberships {
		if k.sys == freebsd {
			return bsdENOMEM
		}
		return bsdETOOMANYREFS // imo_grow
	}
	f := o.slot()
	if k.sys == freebsd {
		f = newBSDFilter(exclude)
		o.filters[len(o.records)] = f
	}
	if len(f.entries) > 0 {
		k.panics("%s of %v%%%d on a socket whose last new membership was refused for its source", r.name, r.group, d.index)
		return bsdENOSPC
	}
	f.mode = [2]bsdMode{undefined, exclude}
	if source {
		f.mode[1] = include
		f.graft(r.source, include)
	}
	rec := k.acquire(d, group)
	e := k.merge(rec, f)
	if e == 0 {
		if e = k.changed(rec); e == 0 {
			e = m.byteCount(s, r, rec, nil)
		}
		if e != 0 {
			f.rollback()
		}
	}
	if k.spoiled(rec) {
		k.harm(Spoiled, "%s of %v%%%d before its last leave was reported", r.name, r.group, d.index)
	}
	if e != 0 {
		if k.sys == freebsd {
			k.release(rec) // XNU forgets it, and the host keeps the group
		}
		return e
	}
	f.commit()
	o.records = append(o.records, rec)
	return 0
}

func (m bsdModel) leave(s *Socket, r *request, o *bsdOptions, i int) syscall.Errno {
	if i < 0 {
		return bsdEADDRNOTAVAIL
	}
	m.drop(s.k, r.name, o, i)
	o.remove(i)
	return 0
}

// drop gives a membership up: in_leavegroup.
func (m bsdModel) drop(k *Kernel, name string, o *bsdOptions, i int) {
	f, rec := o.filters[i], o.records[i]
	if f.mode[0] == include && len(f.listed()) == 0 {
		k.harm(LeftBehind, "%s of %v%%%d releases INCLUDE(): other processes lose the group", name, unscoped(rec.group), rec.dev.index)
	}
	f.leave()
	k.merge(rec, f)
	k.changed(rec)
	k.release(rec)
}

// closed is ip_freemoptions.
func (m bsdModel) closed(s *Socket) {
	for _, o := range []*bsdOptions{s.bsd4, s.bsd6} {
		for i := range o.len() {
			m.drop(s.k, "close", o, i)
		}
	}
	s.bsd4, s.bsd6 = nil, nil
}

func (o *bsdOptions) len() int {
	if o == nil {
		return 0
	}
	return len(o.records)
}

func (m bsdModel) leaveSource(s *Socket, r *request, o *bsdOptions, i int) syscall.Errno {
	if i < 0 {
		return bsdEADDRNOTAVAIL
	}
	f, rec := o.filters[i], o.records[i]
	if f.mode[0] == exclude || f.entry(r.source) == nil {
		return bsdEADDRNOTAVAIL
	}
	f.graft(r.source, undefined)
	// "is_final = 0": the last source leaves INCLUDE() behind.
	return m.done(s, r, rec, f, m.downcall(s, r, rec, f))
}

func (m bsdModel) block(s *Socket, r *request, o *bsdOptions, i int) syscall.Errno {
	if i < 0 {
		return bsdEADDRNOTAVAIL
	}
	f, rec := o.filters[i], o.records[i]
	block := r.op == blockOp
	switch {
	case f.mode[0] != exclude:
		return bsdEINVAL
	case (f.entry(r.source) != nil) == block:
		return bsdEADDRNOTAVAIL
	case block:
		f.graft(r.source, f.mode[0])
	default:
		f.graft(r.source, undefined)
	}
	return m.done(s, r, rec, f, m.downcall(s, r, rec, f))
}

// setFilter is inp_set_source_filters. RFC 3678 section 4.2.1 would join; this does
// not.
func (m bsdModel) setFilter(s *Socket, r *request, o *bsdOptions, i int) syscall.Errno {
	if i < 0 {
		return bsdEADDRNOTAVAIL
	}
	f, rec := o.filters[i], o.records[i]
	f.mode[1] = include
	if r.exclude {
		f.mode[1] = exclude
	}
	if r.number == 0 && len(f.entries) > 0 {
		// "Apply any new source filters, if present": only the mode is set.
		s.k.harm(Hidden, "%s of %v%%%d with no sources does not reset the old ones", r.name, r.group, rec.dev.index)
	}
	if r.number > 0 {
		if !r.fits() {
			return bsdEFAULT // and the mode has changed
		}
		mode := f.mode[1]
		f.leave()
		f.mode[1] = mode
		for i, a := range r.sources {
			e := r.sourceFaults[i]
			switch {
			case e != 0:
			case a.Is6() && isMulticast(a):
				e = bsdEINVAL
			case f.entry(a) == nil && len(f.entries) == m.maxSources(s.k, r):
				e = bsdENOSPC // the old entries still count
			}
			if e != 0 {
				return m.done(s, r, rec, f, e)
			}
			clearScope(&a, r.op)
			f.graft(a, mode)
		}
	}
	return m.done(s, r, rec, f, m.downcall(s, r, rec, f))
}

// get is inp_get_source_filters. It writes into the memory that the request's
// pointer points to, which lies behind the request here.
func (m bsdModel) get(s *Socket, r *request, _, v []byte) (int, syscall.Errno) {
	k := s.k
	o := s.bsd6
	if r.ipv4 {
		o = s.bsd4
	}
	d := k.device(r.index)
	switch {
	case o == nil:
		return 0, bsdEADDRNOTAVAIL
	case r.short:
		return 0, bsdEINVAL
	case !r.ipv4 && (r.badGroup || !isMulticast(r.group)):
		return 0, bsdEINVAL
	case d == nil && r.ipv4 && k.sys == freebsd:
		return 0, bsdEINVAL
	case d == nil:
		if r.index == 0 {
			k.harm(Unaimed, "get %s of %v with interface 0", r.name, r.group)
		}
		return 0, bsdEADDRNOTAVAIL
	}
	group := r.group
	if !r.ipv4 {
		group = scoped(group, d)
	}
	i := o.find(d, group)
	if i < 0 {
		return 0, bsdEADDRNOTAVAIL
	}
	f := o.filters[i]
	if f.mode[1] == undefined {
		return 0, 35 // EAGAIN
	}
	var list []netip.Addr
	for _, e := range f.entries {
		if e.mode[0] == f.mode[0] {
			list = append(list, e.source)
		}
	}
	room := min(int(r.number), m.maxSources(k, r))
	if len(v) == r.header {
		room = 0 // no pointer
	}
	n := min(len(list), room)
	total, written := n, n
	if k.sys == freebsd {
		total, written = len(list), room // zeros are written past the last source
	}
	if r.header+written*storage > len(v) {
		return 0, bsdEFAULT
	}
	clear(v[r.header : r.header+written*storage])
	for i, a := range list[:n] {
		k.sys.putSockaddr(k, v[r.header+i*storage:], a)
	}
	k.Order.PutUint32(v[4:], uint32(f.mode[1]))
	k.Order.PutUint32(v[8:], uint32(total))
	if !r.ipv4 {
		copy(v[k.layoutMSFilterReq().Group+8:], group.AsSlice())
	}
	return r.header + n*storage, 0
}

func (bsdModel) maxSources(k *Kernel, r *request) int {
	if r.ipv4 {
		return k.MaxMSF4
	}
	return k.MaxMSF6
}

// byteCount answers as Kernel.ByteCounts says: with the bytes of a report as the
// errno a few times before the same call succeeds.
func (bsdModel) byteCount(s *Socket, r *request, rec *record, f *bsdFilter) syscall.Errno {
	k := s.k
	if k.ByteCounts == 0 || !r.ipv4 || f == nil || k.Interfaces[rec.dev.index].Loopback {
		return 0
	}
	held, n := 0, 0
	for _, e := range f.entries {
		if e.mode[0] == f.mode[0] {
			held++
		}
		if e.mode[0] != e.mode[1] {
			n++
		}
	}
	if n == 0 || held == 0 {
		return 0
	}
	a := attempt{r.op, channel{rec.dev.index, rec.group}, r.source}
	if s.counts[a] == k.ByteCounts {
		delete(s.counts, a)
		return 0
	}
	s.counts[a]++
	return syscall.Errno(8 + k.ByteCountStep*n)
}

// plain: an option that concerns IPv6 multicast makes the socket's options.
func (bsdModel) plain(s *Socket, o option, value []byte) syscall.Errno {
	if o.level == levelIPv6 && o.number >= 9 && o.number <= 11 {
		s.options(false)
	}
	return 0
}

func (m bsdModel) delivers(s *Socket, d *device, group, source netip.Addr) bool {
	// The host takes in a group that any socket joined, whatever the sources.
	plainGroup := group
	if group.Is6() {
		group = scoped(group, d)
	}
	if !allHosts(plainGroup) && s.k.record(d, group) == nil {
		return false
	}
	o := s.bsd4
	if group.Is6() {
		if o = s.bsd6; o == nil {
			return true // udp6_usrreq.c: without multicast options there is no filter
		}
	}
	if s.k.sys == darwin && plainGroup == allNodes[0] {
		return true // XNU udp_usrreq.c: INADDR_ALLHOSTS_GROUP is not filtered
	}
	// imo_multi_filter. An entry of the other mode drops its source; one of the mode
	// in force lets it pass, even where that mode is EXCLUDE.
	i := -1
	if o != nil {
		i = o.find(d, group)
	}
	if i < 0 {
		return false
	}
	f := o.filters[i]
	switch e := f.entry(source); {
	case e == nil:
		return f.mode[1] == exclude
	case e.mode[0] != f.mode[1]:
		return false
	default:
		return f.mode[1] == include || s.k.DeliversBlocked
	}
}

func (m bsdModel) memberships(s *Socket) (ms []Membership) {
	for _, o := range []*bsdOptions{s.bsd4, s.bsd6} {
		for i := range o.len() {
			f, rec := o.filters[i], o.records[i]
			ms = append(ms, Membership{
				Interface: rec.dev.index, Group: unscoped(rec.group), Exclude: f.mode[1] == exclude, Sources: f.listed(),
				Held: s.k.device(rec.dev.index) == rec.dev && rec.attached && !s.k.spoiled(rec),
			})
		}
	}
	return ms
}

// removed: the sockets keep their memberships.
func (bsdModel) removed(k *Kernel, d *device) {}

func (bsdModel) altered(k *Kernel, d *device, was, is Interface) {}

// scoped puts the interface into a link-local or interface-local group, as the
// kernel keeps it: in6_setscope.
func scoped(group netip.Addr, d *device) netip.Addr {
	b := group.As16()
	if b[0] == 0xff && (b[1]&0xf == 1 || b[1]&0xf == 2) {
		b[2], b[3] = byte(d.index>>8), byte(d.index)
	}
	return netip.AddrFrom16(b)
}

// unscoped takes it out again.
func unscoped(group netip.Addr) netip.Addr {
	if group.Is4() {
		return group
	}
	b := group.As16()
	if b[1]&0xf == 1 || b[1]&0xf == 2 {
		b[2], b[3] = 0, 0
	}
	return netip.AddrFrom16(b)
}

// clearScope is in6_clearscope of a source; a Block keeps what is there.
func clearScope(source *netip.Addr, o op) {
	if !source.Is6() || o == blockOp || o == unblockOp {
		return
	}
	if b := source.As16(); source.IsLinkLocalUnicast() {
		b[2], b[3] = 0, 0
		*source = netip.AddrFrom16(b)
	}
}
