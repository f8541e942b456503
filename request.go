package mcast

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
)

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

	hearUnicast bool // Config.Unicast

	// via carries requests out in place of the kernel, if it is not nil.
	via carrier

	// firstJoin, if not nil, is called before the system makes a membership.
	firstJoin func(Group) error

	mu     sync.Mutex // serialises requests; readers never take it
	closed bool
	routed netip.Addr // the address that the last request asked a route to, if it did

	// For mending; see watch.go.
	part       bool // of a Pool, whose Members remember and are watched
	noWatch    bool
	watched    bool
	wide       map[Group]bool   // where the kernel lets through more than it should; see share
	places     map[Group]*place // of every membership
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
		q.record(*r)
		return nil
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
	q.record(*r)
	return nil
}

// record applies a request that was carried out.
func (q *requests) record(r Request) {
	q.remember(r.Group, q.filter.apply(r), q.routed)
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
