package mcast

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"
)

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
	joinGroup(g Group) error
	leaveGroup(g Group) error
}

// A kernel tells a system what to do for a socket, in that system's terms.
type kernel struct {
	*platform
	sock  socket
	host  host
	sleep func(time.Duration)

	// guard, if not nil, makes the membership on a socket of its own, for good,
	// if others have it too.
	guard func(Membership)

	buf [264]byte // for one request at a time

	// Families of options that the system turned out not to have.
	noMcast, noIP bool
}

// request carries out a request that the filter has accepted, other than a
// leave. had is the membership before it, members the number of all. When it
// fails, nothing has changed.
func (k *kernel) request(r Request, had status, members int) error {
	err := k.option(r)
	if err == nil {
		return nil
	}
	if !had.member {
		// Linux may have made the membership before it ran out of memory for
		// the source. There is nothing to leave otherwise.
		k.undo(r.Group)
	}
	return k.explain(r, had, members, err)
}

// leave ends a membership; alone says that the group has no other one. It
// succeeds where the system no longer has it.
func (k *kernel) leave(g Group, alone bool) error {
	// macOS keeps the membership of an interface that went away, but takes its
	// index for any interface.
	if k.keepsGone && !k.host.exists(g.Interface) {
		k.leaveGone(g, alone)
		return nil
	}
	r := Request{Op: OpLeave, Group: g}
	err := k.option(r)
	if err == nil {
		return nil
	}
	if e := errnoOf(err); slices.Contains(k.noMember, e) || slices.Contains(k.noDevice, e) {
		return nil
	}
	return k.explain(r, status{}, 0, err)
}

// leaveGone releases a membership on an interface that went away by the one
// request that macOS has for it, an IP_DROP_MEMBERSHIP without interface. That
// ends the group's first membership, so it must be the only one; else this one
// stays, deaf, until the socket is closed.
func (k *kernel) leaveGone(g Group, alone bool) {
	if alone && g.Addr.Is4() {
		k.setsockopt(levelIP, k.ip[OpLeave], k.mreq(Request{Op: OpLeave, Group: Group{Addr: g.Addr}}, netip.Addr{}))
	}
}

// release ends a membership that may have been lost. It is stale if its
// interface is gone; alone is as for leave. A stale one must be left before the
// index is used again: after that, leaving takes the membership of somebody
// else on the new interface away. Where that has happened, a guard takes the
// blow.
func (k *kernel) release(m Membership, stale, alone bool) error {
	if stale && k.guard != nil && k.host.exists(m.Group.Interface) {
		k.guard(m)
	}
	return k.leave(m.Group, alone)
}

// option sends one request by the family of options that the system has: the
// other one is asked where the first is unknown.
func (k *kernel) option(r Request) error {
	if j, ok := k.sock.(groupJoiner); ok {
		switch r.Op {
		case OpJoin:
			return j.joinGroup(r.Group)
		case OpLeave:
			return j.leaveGroup(r.Group)
		}
		return errors.ErrUnsupported
	}
	if r.Group.Interface == 0 {
		return because(ErrInterface, "the system is not asked to choose one")
	}
	tries := []*bool{&k.noMcast, &k.noIP}
	if k.oldIPv4 && r.Group.Addr.Is4() {
		tries[0], tries[1] = tries[1], tries[0]
	}
	err := error(errors.ErrUnsupported)
	for _, missing := range tries {
		if *missing {
			continue
		}
		name, value, e := k.layOut(r, missing == &k.noIP)
		if e != nil {
			return e
		}
		if name == 0 {
			continue
		}
		err = k.setsockopt(level(r.Group.Addr), name, value)
		if err == nil || !slices.Contains(k.noOption, errnoOf(err)) {
			return err
		}
		*missing = true
	}
	return err
}

// layOut gives the option and its value in one of the two families; option 0
// if it has none for the request.
func (k *kernel) layOut(r Request, old bool) (name int, value []byte, err error) {
	switch {
	case !old:
		return k.mcast[r.Op], k.groupReqIn(k.buf[:0], r), nil
	case r.Group.Addr.Is6():
		return k.ipv6[r.Op], k.mreq6(r), nil
	}
	var a netip.Addr
	if k.wantsAddress(r.Op) {
		if a, err = k.address(r.Group.Interface); err != nil {
			return 0, nil, err
		}
	} else if !k.fits(r.Group.Interface) {
		return 0, nil, nil
	}
	return k.ip[r.Op], k.mreq(r, a), nil
}

// fits reports whether 0.x.y.z has room for an index, where one is named so.
func (k *kernel) fits(index int) bool { return k.interfaceIn != byIndex || index < 1<<24 }

func (k *kernel) address(index int) (netip.Addr, error) {
	a, ok := k.host.address4(index)
	if !ok {
		return a, because(ErrInterface, "%s has no IPv4 address, which this system's options need", k.host.name(index))
	}
	return a, nil
}

// setsockopt sets an option. Some of macOS' IPv4 requests answer a byte count,
// 8+4n or 8+8n for n sources, in place of an error number; the request was
// rolled back, and succeeds when it is made again, at once or within about a
// second (https://github.com/libuv/libuv/issues/4263,
// https://bugs.openjdk.org/browse/JDK-8144003).
func (k *kernel) setsockopt(level, name int, value []byte) error {
	wait := time.Duration(0)
	for {
		err := k.sock.setsockopt(level, name, value)
		if err == nil || !k.byteCounts || level != levelIP {
			return err
		}
		if e := errnoOf(err); e < 8 || e%4 != 0 || wait > time.Second {
			return err
		}
		k.sleep(wait)
		wait = 2*wait + 20*time.Millisecond
	}
}

// setFull replaces the membership had by m, which is one, and returns what the
// system then has: m, or after an error had, or nothing if that could not be
// brought back.
func (k *kernel) setFull(had, m Membership, members int) (Membership, error) {
	nothing := Membership{Group: m.Group}
	// A full filter needs a membership to replace. To make one, start with as
	// little of m as a single request can say.
	at := had
	if had.none() {
		first := steps(nothing, m)[0]
		at = Membership{Group: m.Group, Mode: m.Mode}
		if m.Mode == Include {
			at.Sources = m.Sources[:1]
		}
		if err := k.request(first, status{}, members); err != nil {
			return nothing, err
		}
	}
	if at.Mode == m.Mode && slices.Equal(at.Sources, m.Sources) {
		return m, nil
	}
	at, err := k.replaceFull(at, m)
	// Windows' numbers for IPv6 are known from a header alone. Single requests
	// lead to the same filter, if it is one that the system can hold.
	if errors.Is(err, errors.ErrUnsupported) || err != nil && k.platform.full == ioctlFilter {
		at, err = k.setSteps(at, m)
	}
	if err == nil {
		return m, nil
	}
	if had.none() {
		k.undo(m.Group)
		at = nothing
	}
	return at, k.explainFull(m, err)
}

// undo leaves what is left of a join that failed.
func (k *kernel) undo(g Group) {
	if k.keepsGone && !k.host.exists(g.Interface) {
		return // the system takes the index for any interface
	}
	k.option(Request{Op: OpLeave, Group: g})
}

// replaceFull replaces the filter of a membership by one call, or by two where
// the system ignores an empty list, and returns what it then is.
func (k *kernel) replaceFull(at, m Membership) (Membership, error) {
	if !k.noEmptyFull || len(m.Sources) > 0 {
		if err := k.sendFull(m); err != nil {
			return at, err
		}
		return m, nil
	}
	// EXCLUDE() is EXCLUDE(s) less s. One that is there already needs no room;
	// at is neither empty nor m.
	s := at.Sources[0]
	if err := k.sendFull(Membership{Group: m.Group, Mode: Exclude, Sources: []netip.Addr{s}}); err != nil {
		return at, err
	}
	err := k.option(Request{Op: OpUnblock, Group: m.Group, Source: s})
	if err == nil {
		return m, nil
	}
	if k.sendFull(at) != nil {
		k.undo(m.Group)
		at = Membership{Group: m.Group}
	}
	return at, err
}

// sendFull sends a full filter, by the older call where the first is unknown.
func (k *kernel) sendFull(m Membership) error {
	return k.eachFull(m.Group, func(c fullCall, address netip.Addr) error {
		value := k.fullReq(c.layout, m, address, len(m.Sources))
		if k.platform.full == ioctlFilter {
			_, err := k.sock.ioctl(c.set, value, nil)
			return err
		}
		return k.setsockopt(level(m.Group.Addr), c.option, value)
	})
}

// full asks for the full filter of a group; INCLUDE() is no membership.
func (k *kernel) full(g Group) (m Membership, err error) {
	none := Membership{Group: g}
	err = k.eachFull(g, func(c fullCall, address netip.Addr) error {
		// The system says how many sources there are (Linux, Windows), or how
		// many it wrote (macOS, FreeBSD). Ask with more room until all fit.
		for room := 16; ; {
			value := k.fullReq(c.layout, none, address, room)
			var n int
			if k.platform.full == ioctlFilter {
				n, err = k.sock.ioctl(c.get, value, value)
			} else {
				n, err = k.sock.getsockopt(level(g.Addr), c.option, value)
			}
			if err != nil {
				return err
			}
			var total int
			var ok bool
			m, total, ok = k.parseFull(c.layout, g, value[:min(n, len(value))])
			if !ok {
				return fmt.Errorf("%d bytes are no filter", n)
			}
			if total < room || total == room && k.platform.full != msfilterReq {
				slices.SortFunc(m.Sources, netip.Addr.Compare)
				return nil
			}
			room = max(2*room, total)
		}
	})
	switch e := errnoOf(err); {
	case err == nil:
		return m, nil
	case slices.Contains(k.noMember, e):
		return none, nil
	case slices.Contains(k.noDevice, e):
		return none, &reason{kind: ErrInterface, cause: err, text: "there is no such interface any more"}
	}
	return none, os.NewSyscallError("getsourcefilter", err)
}

// A fullCall is a way to get and set a full filter.
type fullCall struct {
	layout   fullLayout
	option   int
	get, set uint32
}

// eachFull tries the ways that a system has until one is not unknown.
func (k *kernel) eachFull(g Group, try func(fullCall, netip.Addr) error) error {
	var calls []fullCall
	newer, older := k.fullLayout(false), k.fullLayout(true)
	switch {
	case k.platform.full == noFull:
	case k.platform.full == ioctlFilter:
		if g.Addr.Is4() && k.fits(g.Interface) {
			calls = append(calls, fullCall{layout: older, get: sioGetMulticastFilter, set: sioSetMulticastFilter})
		}
		calls = append(calls, fullCall{layout: newer, get: siocGetMSFilter, set: siocSetMSFilter})
	case g.Addr.Is6():
		calls = append(calls, fullCall{layout: newer, option: k.fullIPv6})
	default:
		calls = append(calls, fullCall{layout: newer, option: k.fullIP})
		if k.fullOldIP != 0 {
			calls = append(calls, fullCall{layout: older, option: k.fullOldIP})
		}
	}
	for _, c := range calls {
		var a netip.Addr
		if !c.layout.socket && k.interfaceIn != byIndex {
			var err error
			if a, err = k.address(g.Interface); err != nil {
				return err
			}
		}
		if err := try(c, a); !slices.Contains(k.noOption, errnoOf(err)) {
			return err
		}
	}
	return errors.ErrUnsupported
}

// setSteps replaces a membership by single requests, for systems without full
// filters, and returns what the system then has.
func (k *kernel) setSteps(from, to Membership) (Membership, error) {
	return walk(from, to, func(r Request, had Membership) error {
		err := k.option(r)
		if err != nil && had.none() {
			k.undo(r.Group)
		}
		return err
	})
}

// walk replaces a membership by single requests. It returns what there is then:
// to, or after an error from, or nothing if that could not be brought back. do
// is also told the membership before each request.
func walk(from, to Membership, do func(r Request, had Membership) error) (Membership, error) {
	var at Filter
	at.Set(from)
	walkTo := func(to Membership) error {
		now, _ := at.Membership(to.Group)
		for _, r := range steps(now, to) {
			had, _ := at.Membership(to.Group)
			if err := do(r, had); err != nil {
				return err
			}
			at.Apply(r)
		}
		return nil
	}
	err := walkTo(to)
	if err == nil {
		return to, nil
	}
	if walkTo(from) != nil {
		do(Request{Op: OpLeave, Group: from.Group}, from)
		return Membership{Group: from.Group}, err
	}
	return from, err
}

// steps lists the requests that lead from one membership to another. Sources
// are added before others are removed, so that INCLUDE never becomes empty,
// which would end it, and EXCLUDE never opens wider than either end.
func steps(from, to Membership) (rs []Request) {
	step := func(op Op, source netip.Addr) {
		rs = append(rs, Request{Op: op, Group: to.Group, Source: source})
	}
	has := from.Sources
	if from.Mode != to.Mode || to.none() {
		if !from.none() {
			step(OpLeave, netip.Addr{})
		}
		if to.Mode == Exclude {
			step(OpJoin, netip.Addr{})
		}
		has = nil
	}
	add, remove := OpJoinSource, OpLeaveSource
	if to.Mode == Exclude {
		add, remove = OpBlock, OpUnblock
	}
	for _, s := range to.Sources {
		if !slices.Contains(has, s) {
			step(add, s)
		}
	}
	for _, s := range has {
		if !slices.Contains(to.Sources, s) {
			step(remove, s)
		}
	}
	return rs
}

// explain turns a system's answer to a request into an error that says what
// to do.
func (k *kernel) explain(r Request, had status, members int, err error) error {
	e := errnoOf(err)
	cause := os.NewSyscallError("setsockopt", err)
	var already *reason
	switch {
	case errors.As(err, &already) || errors.Is(err, net.ErrClosed):
		return err
	case errors.Is(err, errors.ErrUnsupported) || slices.Contains(k.noOption, e):
		return &reason{kind: errors.ErrUnsupported, cause: cause, text: k.name + " does not offer this for " + familyOf(r.Group.Addr)}
	case slices.Contains(k.limits, e):
		return &reason{kind: ErrLimit, cause: cause, text: k.knob(r.Group.Addr, !had.member, members, had.sources+1, false)}
	case slices.Contains(k.noDevice, e) && !k.host.exists(r.Group.Interface):
		return &reason{kind: ErrInterface, cause: cause, text: fmt.Sprintf("there is no interface %d", r.Group.Interface)}
	case slices.Contains(k.noDevice, e):
		return &reason{kind: ErrInterface, cause: cause, text: fmt.Sprintf("%s takes no memberships now: see that it is up and has an address", k.host.name(r.Group.Interface))}
	}
	return cause
}

// explainFull does the same for a full filter.
func (k *kernel) explainFull(m Membership, err error) error {
	if slices.Contains(k.limits, errnoOf(err)) {
		return &reason{kind: ErrLimit, cause: os.NewSyscallError("setsourcefilter", err), text: k.knob(m.Group.Addr, false, 0, len(m.Sources), true)}
	}
	return k.explain(Request{Group: m.Group}, status{member: true, sources: len(m.Sources)}, 0, err)
}

func familyOf(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// knob says which limit stands in the way of one more group, or of so many
// sources in a filter, and where it is set.
func (k *kernel) knob(a netip.Addr, newGroup bool, members, sources int, full bool) string {
	groups, msf, memory := "net.ipv4.igmp_max_memberships", "net.ipv4.igmp_max_msf", "net.core.optmem_max"
	if a.Is6() {
		groups, msf = "", "net.ipv6.mld_max_msf"
	}
	what := map[bool]string{true: "net.inet.ip", false: "net.inet6.ip6"}[a.Is4()]
	switch {
	case k.name == "linux" && newGroup:
		if n, ok := k.host.limit(groups); groups != "" && (!ok || members >= n) {
			return fmt.Sprintf("%d groups a socket: %s", members, groups)
		}
		return fmt.Sprintf("memory for %d groups a socket: %s", members, memory)
	case k.name == "linux":
		n, ok := k.host.limit(msf)
		if !ok { // in a network namespace it cannot be read: what it is by default
			n = map[bool]int{true: 10, false: 64}[a.Is4()]
		}
		if sources > n {
			return fmt.Sprintf("%d sources in a filter: %s", sources, msf)
		}
		return fmt.Sprintf("memory for %d sources in a filter: %s", sources, memory)
	case k.hasLen && newGroup:
		return fmt.Sprintf("%d groups a socket: at most 4095 (IP_MAX_MEMBERSHIPS)", members)
	case k.hasLen && full:
		return fmt.Sprintf("%d sources set at once: %s.mcast.maxsocksrc", sources, what)
	case k.hasLen:
		return fmt.Sprintf("%d sources in a filter: %s.mcast.maxgrpsrc", sources, what)
	case newGroup:
		return fmt.Sprintf("%d groups a socket: spread them over several sockets", members)
	}
	return fmt.Sprintf("%d sources in a filter", sources)
}
