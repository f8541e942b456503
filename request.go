package mcast

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
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

// requests takes a Conn's requests from what the caller passed to what the
// kernel is told, and records what it accepted: filter and kernel agree after
// each call.
type requests struct {
	filter    Filter
	kernel    kernel
	ipv6      bool       // the socket's family
	bound     Group      // the group the socket is bound to, if any
	unicast   netip.Addr // the unicast address it is bound to, if any
	anySource bool       // Config.AnySource

	// via carries requests out in place of the kernel, if it is not nil.
	via carrier

	// firstJoin, if not nil, is called before the system makes a membership.
	firstJoin func(Group) error

	mu     sync.Mutex // serialises requests; readers never take it
	closed bool
	routed netip.Addr // the address that the last request asked a route to, if it did

	// For mending; see watch.go.
	noWatch    bool // also for the sockets of a Pool: their Members are watched
	watched    bool
	wide       map[Group]bool   // where the kernel lets through more than it should; see share
	places     map[Group]*place // of every membership, but with via: of a Pool's sockets none
	events     []Event
	notify     func(Event)
	delivering chan struct{} // not nil while events are handed over, then closed
}

// A carrier carries out requests that the filter has accepted.
type carrier interface {
	request(r Request, had status, members int) error
	leave(g Group, alone bool) error
	release(m Membership, stale, alone bool) error
	setFull(had, to Membership, members int) (Membership, error)
	full(g Group) (Membership, error)
}

func (q *requests) carrier() carrier {
	if q.via != nil {
		return q.via
	}
	return &q.kernel
}

// do carries out one of the six requests.
func (q *requests) do(op Op, g Group, source netip.Addr) error {
	r := Request{Op: op, Group: g}
	if op.takesSource() {
		r.Source = source
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.request(&r); err != nil {
		return opError(op.String(), r.Group, r.Source, err)
	}
	return nil
}

func (q *requests) request(r *Request) (err error) {
	r.Group, r.Source, err = q.settle(r.Group, r.Source, r.Op)
	if err != nil {
		return err
	}
	had, on, members, err := q.filter.ask(*r)
	if err != nil {
		return err
	}
	if r.Op == OpJoin {
		if err := q.checkSSM(r.Group); err != nil {
			return err
		}
	}
	if had.pending {
		return q.record(*r)
	}
	switch {
	case q.shares(r.Group, had.member, on):
		err = q.share(after(q.filter.membership(r.Group), *r))
	case r.Op == OpLeave || r.Op == OpLeaveSource && had.sources == 1:
		// Kernels differ in what the last LeaveSource does (macOS keeps
		// INCLUDE(), Windows does not say). They agree on Leave.
		err = q.carrier().leave(r.Group, on == 1)
	default:
		if err = q.prepareFor(r.Group, had.member); err == nil {
			err = q.carrier().request(*r, had, members)
		}
	}
	if err != nil && !q.vanished(r.Group, had.member, err) {
		return err
	}
	return q.record(*r)
}

// record applies a request that was carried out.
func (q *requests) record(r Request) error {
	now, err := q.filter.apply(r)
	q.remember(r.Group, now, q.routed)
	return err
}

// vanished reports whether a request failed for want of the interface of a
// membership, which is pending from now on.
func (q *requests) vanished(g Group, had bool, err error) bool {
	if q.noWatch || !had || !errors.Is(err, ErrInterface) || q.kernel.host.exists(g.Interface) {
		return false
	}
	q.suspend(g)
	q.handOver()
	return true
}

// set replaces the filter of a group.
func (q *requests) set(g Group, mode Mode, sources []netip.Addr) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	m := Membership{Group: g, Mode: mode, Sources: slices.Clone(sources)}
	if err := q.replace(&m); err != nil {
		return opError("SetFilter", m.Group, netip.Addr{}, err)
	}
	return nil
}

func (q *requests) replace(m *Membership) (err error) {
	// Sources may bring a zone each, and for a new membership the first one
	// says where the routing table looks.
	op, first := OpJoin, netip.Addr{}
	for i, s := range m.Sources {
		var g Group
		if g, m.Sources[i], err = settle(m.Group, s, q.kernel.host); err != nil {
			return err
		}
		m.Group.Interface = g.Interface
	}
	if m.Mode == Include && len(m.Sources) > 0 {
		op, first = OpJoinSource, m.Sources[0]
	} else if m.none() {
		op = OpLeave
	}
	if m.Group, _, err = q.settle(m.Group, first, op); err != nil {
		return err
	}
	if err := checkMembership(*m); err != nil {
		return err
	}
	if m.Mode == Exclude {
		if err := q.checkSSM(m.Group); err != nil {
			return err
		}
	}
	slices.SortFunc(m.Sources, netip.Addr.Compare)
	m.Sources = slices.Compact(m.Sources)
	had, _ := q.filter.Membership(m.Group)
	now := *m
	switch {
	case had.Pending:
		now.Pending = !m.none()
	case (!had.none() || !m.none()) && q.shares(m.Group, !had.none(), q.filter.count(m.Group.Addr)):
		if err = q.share(*m); err != nil {
			now = had
		}
	case m.none():
		if !had.none() {
			err = q.carrier().leave(m.Group, q.filter.count(m.Group.Addr) == 1)
		}
		if err != nil {
			now = had
		}
	default:
		if err = q.prepareFor(m.Group, !had.none()); err != nil {
			return err
		}
		now, err = q.carrier().setFull(had, *m, q.filter.len())
	}
	if err != nil && q.vanished(m.Group, !had.none(), err) {
		now, err = *m, nil
		now.Pending = true
	}
	if err != nil && !now.none() { // had: nothing has changed
		return err
	}
	if err == nil || !had.none() {
		q.filter.Set(now) // all checked above
		q.remember(m.Group, q.filter.status(m.Group), q.routed)
	}
	return err
}

// shares reports whether a group, of which this socket has so many memberships
// with this one, has others in a kernel that applies the filter of one to what
// comes in by all interfaces.
func (q *requests) shares(g Group, had bool, on int) bool {
	if q.via != nil || !q.ipv6 || !q.kernel.oneFilter {
		return false
	}
	return had && on > 1 || !had && on > 0 || q.wide[g]
}

// share changes one of several memberships of a group where the kernel applies
// one filter to all. Each gets the union of all, so that none loses what it
// lets through; the read path tells the interfaces apart.
func (q *requests) share(m Membership) (err error) {
	var before, then []Membership
	had := Membership{Group: m.Group}
	for _, i := range q.filter.interfaces(m.Group.Addr) {
		switch x := q.filter.membership(Group{m.Group.Addr, i}); {
		case x.Pending:
		case i == m.Group.Interface:
			had, before = x, append(before, x)
		default:
			before, then = append(before, x), append(then, x)
		}
	}
	if !m.none() {
		then = append(then, m)
	}
	// On the way the others have both filters. What they have too much does no
	// harm, and so it is no error if they keep it.
	was, is := union(before), union(then)
	both := union([]Membership{was, is})
	var done []Group
	for _, x := range before {
		if x.Group == m.Group {
			continue
		}
		err := q.tell(x.Group, was, both)
		if err != nil && !errors.Is(err, ErrInterface) { // of an interface that is gone nothing is heard
			for _, g := range done {
				q.tell(g, both, was)
			}
			return err
		}
		if err == nil {
			done = append(done, x.Group)
		}
	}
	from, to := was, is
	if had.none() {
		from = Membership{}
	}
	if m.none() {
		to = Membership{}
	}
	if err = q.tell(m.Group, from, to); err != nil {
		is = was
	}
	for _, g := range done {
		q.tell(g, both, is)
	}
	return err
}

// tell replaces what the kernel has of a group.
func (q *requests) tell(g Group, from, to Membership) (err error) {
	from.Group, to.Group = g, g
	if to.none() {
		delete(q.wide, g)
		return q.kernel.leave(g, false)
	}
	if q.wide[g] {
		switch from, err = q.kernel.full(g); {
		case errors.Is(err, errors.ErrUnsupported): // start anew
			q.kernel.undo(g)
			from = Membership{Group: g}
		case err != nil:
			return q.kernel.explainFull(to, err)
		}
	}
	now, err := q.kernel.setFull(from, to, q.filter.len())
	switch {
	case err == nil:
		delete(q.wide, g)
	case now.none(): // not made, or lost on the way
		q.filter.Set(Membership{Group: g})
		delete(q.places, g)
		delete(q.wide, g)
	default:
		if q.wide == nil {
			q.wide = make(map[Group]bool)
		}
		q.wide[g] = true
	}
	return err
}

// union is the filter that lets through what any of the memberships does (RFC
// 3376 section 3.2).
func union(ms []Membership) (u Membership) {
	for _, m := range ms {
		both := func(s netip.Addr) bool { return slices.Contains(u.Sources, s) }
		switch {
		case u.none():
			u = Membership{Mode: m.Mode, Sources: slices.Clone(m.Sources)}
		case u.Mode == Include && m.Mode == Include:
			u.Sources = append(u.Sources, m.Sources...)
		case u.Mode == Include: // all but those blocked that are not in the other
			u = Membership{Mode: Exclude, Sources: slices.DeleteFunc(slices.Clone(m.Sources), both)}
		case m.Mode == Include:
			u.Sources = slices.DeleteFunc(u.Sources, func(s netip.Addr) bool { return slices.Contains(m.Sources, s) })
		default:
			u.Sources = slices.DeleteFunc(slices.Clone(m.Sources), func(s netip.Addr) bool { return !both(s) })
		}
	}
	slices.SortFunc(u.Sources, netip.Addr.Compare)
	u.Sources = slices.Compact(u.Sources)
	return u
}

// after is a membership after a request.
func after(m Membership, r Request) Membership {
	var f Filter
	f.Set(m)
	f.Apply(r)
	return f.membership(m.Group)
}

func (q *requests) prepareFor(g Group, had bool) error {
	if q.firstJoin == nil || had {
		return nil
	}
	return q.firstJoin(g)
}

// system asks the kernel for the filter of a group.
func (q *requests) system(g Group) (Membership, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	m, err := q.read(&g)
	if err != nil {
		return Membership{}, opError("SystemFilter", g, netip.Addr{}, err)
	}
	return m, nil
}

func (q *requests) read(g *Group) (m Membership, err error) {
	if *g, _, err = q.settle(*g, netip.Addr{}, OpLeave); err != nil {
		return m, err
	}
	if g.Interface != 0 && !q.filter.status(*g).pending {
		if m, err = q.carrier().full(*g); err != nil {
			return m, err
		}
	}
	if m.none() {
		return m, because(ErrNotJoined, "the system knows no membership of this group on this interface")
	}
	return m, nil
}

// settle brings what the caller passed into the form that filter and kernel
// use, with the interface that is meant, and checks what no filter can know.
func (q *requests) settle(g Group, source netip.Addr, op Op) (Group, netip.Addr, error) {
	if q.closed {
		return g, source, net.ErrClosed
	}
	g, source, err := settle(g, source, q.kernel.host)
	if err == nil {
		err = checkGroup(g)
	}
	if err == nil && op.takesSource() {
		err = checkSource(g.Addr, source)
	}
	if err != nil {
		return g, source, err
	}
	switch {
	case g.Addr.Is6() != q.ipv6:
		want := "udp4"
		if g.Addr.Is6() {
			want = "udp6"
		}
		return g, source, because(ErrAddress, "this socket is of the other family: open one with %q", want)
	case q.unicast.IsValid():
		return g, source, because(ErrAddress, "the socket is bound to %v and hears no groups: bind it to the group or to no address", q.unicast)
	case q.bound.Addr.IsValid() && q.bound.Addr != g.Addr:
		return g, source, because(ErrAddress, "the socket is bound to %v and hears no other group: open another one, or bind to no address", q.bound.Addr)
	case q.bound.Interface != 0 && g.Interface != 0 && q.bound.Interface != g.Interface:
		return g, source, because(ErrInterface, "the socket is bound to interface %s", q.kernel.host.name(q.bound.Interface))
	}
	q.routed = netip.Addr{}
	if g.Interface == 0 {
		g.Interface, err = q.choose(g.Addr, source, op)
	}
	return g, source, err
}

// choose gives the interface that 0 means; see [Group].Interface. It is 0 if
// the request needs a membership and there is none.
func (q *requests) choose(addr, source netip.Addr, op Op) (int, error) {
	switch on := q.filter.interfaces(addr); {
	case len(on) == 1:
		return on[0], nil
	case len(on) > 1:
		return 0, because(ErrInterface, "the group is joined on several interfaces: say which one")
	case op != OpJoin && op != OpJoinSource:
		return 0, nil
	case q.bound.Interface != 0:
		return q.bound.Interface, nil
	}
	to := addr
	if source.IsValid() {
		to = source
	}
	if to.IsLinkLocalUnicast() && to.Is6() {
		return 0, because(ErrInterface, "the link-local source %v may be on any interface: say which one", to)
	}
	q.routed = to
	i, err := q.kernel.host.route(to)
	if err != nil {
		return 0, &reason{kind: ErrInterface, cause: err, text: fmt.Sprintf("no route to %v picks an interface: name one", to)}
	}
	return i, nil
}

// checkSSM refuses an any-source membership of a source-specific group: hosts
// must not ask for it (RFC 4604 section 2.2.1), and routers ignore it.
func (q *requests) checkSSM(g Group) error {
	if q.anySource || !g.IsSSM() {
		return nil
	}
	return because(ErrSSM, "%v is in a source-specific range (RFC 4607): use JoinSource, or Config.AnySource where routers map sources to groups", g.Addr)
}

// opError wraps an error, once, in an OpError.
func opError(op string, g Group, source netip.Addr, err error) error {
	var e *OpError
	if errors.As(err, &e) {
		return err
	}
	return &OpError{Op: op, Group: g, Source: source, Err: err}
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
// interface is gone; alone is as for leave. A stale one must be gone before the index is used again:
// after that, leaving takes the membership of somebody else on the new interface
// away. Where that has happened, a guard takes the blow.
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
		return k.mcast[r.Op], k.groupReq(r), nil
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

// setFull replaces the membership had by m, which is one, and returns what the system then has:
// m, or after an error had, or nothing if that could not be brought back.
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
