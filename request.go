package mcast

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"example.com/mcast/internal/netif"
)

// requests takes a Conn's requests, or those of a Pool on one port, from what
// the caller passed to what the kernel is told, and records what was accepted.
type requests struct {
	filter   Filter // what is asked for
	host     netif.Host
	platform *platform
	cfg      *Config
	few      [1]target  // of a request, most often; so as not to be allocated for each
	ipv6     bool       // the socket's family
	bound    Group      // the group the socket is bound to, if any
	to       netip.Addr // the unicast address it is bound to, if any
	noPort   bool       // of a Pool that has none

	// sockets hold the memberships.
	sockets holder

	mu      sync.Mutex // serialises requests; readers never take it
	opened  bool       // else it is the zero Conn or Pool
	closed  bool
	patient int           // requests that are to be made again
	ending  chan struct{} // closed with it

	counts countsOf

	// For mending; see watch.go.
	watched   *watcher
	unwatched bool              // the news ended for a while
	absent    map[Group]absence // the memberships that the program was told are not held
	events    *events
	// follow, if not nil, is called after the interfaces have changed.
	follow func()
}

// A holder is the socket of a Conn, or those of a Pool on one port.
type holder interface {
	// ledgers returns those that have an entry of a group; of any, if it is the
	// zero Addr.
	ledgers(group netip.Addr) []*ledger
	// reconcile brings what the sockets hold of a group to the targets, as
	// [ledger.reconcile] does for one socket.
	reconcile(group netip.Addr, targets []target) error
	// hearings calls yield for all that is heard. It takes no lock that a
	// request holds.
	hearings(yield func(groupIndex, *hearing) bool)
	// tidy ends what was prepared for a request, and not needed then.
	tidy()
}

// do carries out one of the six requests.
func (q *requests) do(op Op, g Group, source netip.Addr) error {
	if !op.takesSource() {
		source = netip.Addr{}
	}
	r := Request{Op: op, Group: g, Source: source}
	q.mu.Lock()
	defer q.mu.Unlock()
	var err error
	if r.Group, r.Source, err = q.resolve(g, source, op); err == nil {
		if err = q.request(&r); err != nil {
			again := r // which is not allocated if all goes well
			err = q.patiently(err, func() error { return q.request(&again) })
		}
	}
	if err != nil {
		return opError(op.String(), r.Group, r.Source, err)
	}
	return nil
}

// request carries out a request in the form that resolve gives it.
func (q *requests) request(r *Request) error {
	a := attempt{towards: r.Source}
	if err := q.filter.propose(&a.proposal, r); err != nil {
		return err
	}
	if r.Op == OpJoin {
		if err := q.checkSSM(r.Group); err != nil {
			return err
		}
	}
	return q.carryOut(&a)
}

// set replaces the filter of a group.
func (q *requests) set(g Group, mode Mode, sources []netip.Addr) error {
	m := Membership{Group: g, Mode: mode, Sources: sources}
	q.mu.Lock()
	defer q.mu.Unlock()
	towards, err := q.resolveSet(&m)
	if err == nil {
		if err = q.replace(&m, towards); err != nil {
			again := m
			err = q.patiently(err, func() error { return q.replace(&again, towards) })
		}
	}
	if err != nil {
		return opError("SetFilter", m.Group, netip.Addr{}, err)
	}
	return nil
}

// resolveSet does for a whole filter what resolve does for a request. For a new
// membership the first source says where the routing table looks.
func (q *requests) resolveSet(m *Membership) (towards netip.Addr, err error) {
	op := OpJoin
	given := true // they are the caller's, and stay as they are
	for i, s := range m.Sources {
		if s.Is4() || s.Zone() == "" && !s.Is4In6() {
			continue
		}
		if given {
			m.Sources, given = slices.Clone(m.Sources), false
		}
		if m.Group, m.Sources[i], err = q.unzone(m.Group, s); err != nil {
			return towards, err
		}
	}
	switch {
	case m.Mode == Include && len(m.Sources) > 0:
		op, towards = OpJoinSource, m.Sources[0]
	case m.Mode == Include:
		op = OpLeave
	}
	m.Group, _, err = q.resolve(m.Group, towards, op)
	return towards, err
}

// replace carries out a request that resolveSet has resolved.
func (q *requests) replace(m *Membership, towards netip.Addr) error {
	a := attempt{towards: towards}
	if err := q.filter.proposeSet(&a.proposal, m); err != nil {
		return err
	}
	if m.Mode == Exclude {
		if err := q.checkSSM(m.Group); err != nil {
			return err
		}
	}
	if a.had.none() && a.next.none() {
		return nil
	}
	return q.carryOut(&a)
}

// patiently makes a request again, with the lock held, as long as the answer says
// so. It waits without the lock: other groups are not held up. The wait ends with
// Close.
func (q *requests) patiently(err error, request func() error) error {
	waited, refused, prepared := false, 0, 0
	defer func() {
		if waited && q.patient == 0 {
			q.sockets.tidy()
		}
	}()
	for ; ; err = request() {
		soon, again := errors.AsType[*tooSoon](err)
		if again && soon.cause != nil {
			if refused++; refused > mostWaits {
				err, soon = soon.cause, nil
			}
		}
		if soon == nil {
			if err != nil && waited {
				q.reconcileAll() // some of it may have been done
			}
			return err
		}
		q.patient++
		q.mu.Unlock()
		if soon.first != nil {
			prepared++
			soon.first(prepared)
		}
		timer := time.NewTimer(soon.wait)
		select {
		case <-timer.C:
		case <-q.ending:
		}
		timer.Stop()
		q.mu.Lock()
		q.patient--
		if waited = true; q.closed {
			return net.ErrClosed
		}
	}
}

// An attempt is a proposal that is to be carried out. A new membership without an
// interface goes where the source is routed, if there is one.
type attempt struct {
	proposal
	towards netip.Addr
}

// carryOut has the sockets hold what is proposed, and records it. If they cannot,
// they are to hold what they held.
func (q *requests) carryOut(a *attempt) error {
	g := a.group
	if !a.next.none() {
		q.watch()
	}
	targets, err := q.targets(q.few[:0], g.Addr, a.states.list(), a)
	if err == nil || !a.had.none() {
		ended := g
		if !a.next.none() {
			ended = Group{}
		}
		q.loseElsewhere(g.Addr, targets, ended)
		if failed := q.failure(g, targets, q.sockets.reconcile(g.Addr, targets)); failed != nil {
			err = failed
		}
	}
	if err != nil {
		waits := errors.Is(err, ErrInterface) && (!a.had.none() || q.cfg.WaitForInterface) // for the interface
		already := !a.had.none() && q.isAbsent(g)
		if _, again := errors.AsType[*tooSoon](err); again {
			return err // as it is: there is nothing to be taken back
		} else if a.next.none() || !waits && !already {
			back, _ := q.targets(nil, g.Addr, q.filter.states(g.Addr), nil)
			q.sockets.reconcile(g.Addr, back)
			q.publish(g.Addr, back)
			return err
		}
	}
	q.filter.record(&a.proposal)
	if a.next.none() && q.cfg.GroupStats {
		q.counts.drop(g)
	}
	if err != nil || g.Interface != everyInterface {
		targets = nil // the program knows
	}
	q.publish(g.Addr, targets)
	return nil
}

// failure says what of a reconciliation a request has to fail for.
func (q *requests) failure(g Group, targets []target, left error) error {
	if leaving, ok := errors.AsType[*leaveError](left); ok && leaving.member == g.Interface {
		return leaving.err
	}
	held := slices.ContainsFunc(targets, func(t target) bool { return t.member == g.Interface && t.err == nil })
	for i := range targets {
		t := &targets[i]
		if t.err == nil {
			continue
		}
		_, again := errors.AsType[*tooSoon](t.err)
		switch {
		case again:
			return t.err
		case t.member == everyInterface && held:
			// One interface is enough.
		case t.member == g.Interface:
			return t.err
		case q.shares() && !errors.Is(t.err, ErrInterface):
			// The filter of another interface may decide for this one.
			return t.err
		}
	}
	return nil
}

// shares reports whether memberships of one group can get in each other's way.
func (q *requests) shares() bool { return q.ipv6 && q.platform.oneFilter }

// publish lets the read path hear what is held of a group now, and tells the
// program what has become of its memberships. targets has what failed.
func (q *requests) publish(addr netip.Addr, targets []target) {
	asked := q.filter.states(addr)
	var counts func(member string) *groupCounts
	if q.cfg.GroupStats {
		counts = func(member string) *groupCounts { return q.counts.forGroup(Group{addr, member}) }
	}
	for _, l := range q.sockets.ledgers(addr) {
		l.publish(addr, asked, counts)
	}
	q.emitChanges(addr, targets)
}

// targets appends what the sockets should hold of a group with those memberships,
// on the interfaces that there are now. err says why the one that an attempt is
// about is on none.
func (q *requests) targets(targets []target, addr netip.Addr, on []state, a *attempt) (_ []target, err error) {
	add := func(s *state) {
		var e error
		if targets, e = q.addTargets(targets, addr, s, a); e != nil {
			err = e
		}
	}
	// A new one comes after those that are there: its name may be another one of
	// their interface. The routed one comes last; it must not meet them.
	var added *state
	for i := range on {
		switch s := &on[i]; {
		case s.ifname == "":
		case a != nil && a.had.none() && s.ifname == a.group.Interface:
			added = s
		default:
			add(s)
		}
	}
	if added != nil {
		add(added)
	}
	if len(on) > 0 && on[0].ifname == "" {
		add(&on[0])
	}
	return targets, err
}

func (q *requests) addTargets(targets []target, addr netip.Addr, s *state, a *attempt) (_ []target, err error) {
	g := Group{addr, s.ifname}
	asked := a != nil && a.group.Interface == s.ifname
	var towards netip.Addr
	if asked {
		towards = a.towards
	}
	var one [1]netif.Interface // most often
	at, e := q.locate(one[:0], g, s.sourceFilter, towards)
	if e != nil && !errors.Is(e, ErrInterface) {
		at = q.where(g) // no clear answer: it stays
	}
	if asked {
		err = e
	}
	for _, link := range at {
		switch other := targetFor(targets, link.Index); {
		case other == nil:
			targets = append(targets, target{index: link.Index, ifname: link.Name, member: g.Interface, filter: s.sourceFilter})
		case asked && g.Interface == "":
			err = because(ErrInterface, "the route leads to %s, where the group has a membership of its own", link.Name)
		case asked:
			err = because(ErrInterface, "%s is another name of %s, where the group has a membership of its own", link.Name, other.ifname)
		}
	}
	return targets, err
}

// where says where a membership is held.
func (q *requests) where(g Group) (on []netif.Interface) {
	for _, l := range q.sockets.ledgers(g.Addr) {
		for _, e := range l.entries(g.Addr) {
			if e.member == g.Interface && e.trust == exact {
				on = append(on, netif.Interface{Index: e.index, Name: e.ifname})
			}
		}
	}
	return on
}

// locate appends to on where a membership belongs now. [ErrInterface] is a clear
// answer: nowhere.
func (q *requests) locate(on []netif.Interface, g Group, f sourceFilter, towards netip.Addr) ([]netif.Interface, error) {
	switch g.Interface {
	case everyInterface:
		return q.everywhere()
	case "":
		link, err := q.route(g, f, towards)
		if err != nil {
			return nil, err
		}
		return append(on, link), nil
	}
	index, digits, err := parseIndex(g.Interface)
	switch {
	case err != nil:
		return nil, err
	case !digits:
		index, err = q.host.Index(g.Interface)
	default:
		_, err = q.host.Name(index)
	}
	if err != nil {
		return nil, noInterface(g.Interface, err)
	}
	return append(on, netif.Interface{Index: index, Name: g.Interface}), nil
}

func noInterface(ifname string, cause error) error {
	if !errors.Is(cause, netif.ErrNotFound) {
		return fmt.Errorf("interface %q: %w", ifname, cause)
	}
	return &reason{kind: ErrInterface, cause: cause, text: fmt.Sprintf("there is no interface %q", ifname)}
}

// route says where a membership without an interface belongs: where it is, as
// long as that interface is there, or else where the routing table leads.
func (q *requests) route(g Group, f sourceFilter, towards netip.Addr) (link netif.Interface, err error) {
	for _, l := range q.sockets.ledgers(g.Addr) {
		for _, e := range l.entries(g.Addr) {
			if e.member == "" && e.trust != past {
				// Only a clear answer says that it is not there.
				if name, err := q.ifname(e.index); err == nil && name == e.ifname || err != nil && !errors.Is(err, netif.ErrNotFound) {
					return netif.Interface{Index: e.index, Name: e.ifname}, nil
				}
			}
		}
	}
	tries := f.sources
	switch {
	case f.mode == Exclude:
		tries = []netip.Addr{g.Addr}
	case towards.IsValid():
		tries = []netip.Addr{towards}
	}
	for _, to := range tries {
		if link.Index, err = q.host.Route(to); err == nil {
			if link.Name, err = q.ifname(link.Index); err == nil {
				return link, nil
			}
		}
	}
	return link, &reason{kind: ErrInterface, cause: err, text: fmt.Sprintf("no route to %v picks an interface: name one", tries[0])}
}

// ifname gives the name by which a membership of an interface is known: its
// index in digits, if the name would be taken for something else.
func (q *requests) ifname(index int) (string, error) {
	name, err := q.host.Name(index)
	if err != nil {
		return "", err
	}
	return ifnameFor(name, index), nil
}

func ifnameFor(name string, index int) string {
	if _, digits, _ := parseIndex(name); digits || name == "" || name == everyInterface {
		return strconv.Itoa(index)
	}
	return name
}

// everywhere lists the interfaces that "*" means, the most useful first.
func (q *requests) everywhere() ([]netif.Interface, error) {
	all, err := q.host.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("listing the interfaces: %w", err)
	}
	all = slices.Clone(all)
	usable := func(loopback bool) []netif.Interface {
		return slices.DeleteFunc(slices.Clone(all), func(i netif.Interface) bool {
			return !i.Up || !i.Multicast && !loopback || i.Loopback != loopback || i.Master != 0 || q.ipv6 && !i.IPv6
		})
	}
	on := usable(false)
	if len(on) == 0 {
		on = usable(true)
	}
	if len(on) == 0 {
		return nil, because(ErrInterface, "no interface is up and takes multicast")
	}
	first := q.host.DefaultRoutes(q.ipv6)
	slices.SortStableFunc(on, func(a, b netif.Interface) int {
		rank := func(i netif.Interface) int {
			if n := slices.Index(first, i.Index); n >= 0 {
				return n
			}
			return len(first)
		}
		return rank(a) - rank(b)
	})
	for i := range on {
		on[i].Name = ifnameFor(on[i].Name, on[i].Index)
	}
	return on, nil
}

// resolve brings what the caller passed into the form that the filter is keyed
// by, and checks what no filter can know.
func (q *requests) resolve(g Group, source netip.Addr, op Op) (Group, netip.Addr, error) {
	switch {
	case !q.opened:
		return g, source, errNotOpen
	case q.closed:
		return g, source, net.ErrClosed
	case q.noPort:
		return g, source, because(ErrAddress, "the Pool has no port of its own: use On(port)")
	}
	g, source, err := q.unzone(g, source)
	if err == nil {
		err = checkGroup(g)
	}
	if err == nil && op.takesSource() {
		err = checkSource(g.Addr, source)
	}
	if err == nil {
		err = q.checkSocket(g)
	}
	if err != nil {
		return g, source, err
	}
	g.Interface, err = q.canonical(g.Interface)
	if err != nil {
		return g, source, err
	}
	g.Interface, err = q.choose(g, source, op)
	if err == nil && q.bound.Interface != "" && g.Interface != q.bound.Interface && (op == OpJoin || op == OpJoinSource) {
		err = because(ErrInterface, "the socket is bound to interface %s", q.bound.Interface)
	}
	return g, source, err
}

// errNotOpen is what a zero Conn or Pool answers.
var errNotOpen = because(os.ErrInvalid, "it was not opened: use Listen, New or ListenPool")

// unzone is [unzone], where a zone may be another name of the interface.
func (q *requests) unzone(g Group, source netip.Addr) (Group, netip.Addr, error) {
	if g.Addr.Zone() != "" || source.Zone() != "" {
		if name, err := q.canonical(g.Interface); err == nil {
			g.Interface = name
		}
		for _, a := range []*netip.Addr{&g.Addr, &source} {
			if z, err := q.canonical(a.Zone()); err == nil && z != "" {
				*a = a.WithZone(z)
			}
		}
	}
	return unzone(g, source)
}

// canonical gives the name of an interface that is named by its index.
func (q *requests) canonical(ifname string) (string, error) {
	index, digits, err := parseIndex(ifname)
	if err != nil || !digits {
		return ifname, err
	}
	name, err := q.ifname(index)
	if err != nil {
		return ifname, noInterface(ifname, err)
	}
	return name, nil
}

// checkSocket refuses groups that the socket could never hear.
func (q *requests) checkSocket(g Group) error {
	switch {
	case g.Addr.Is6() != q.ipv6:
		want := "udp4"
		if g.Addr.Is6() {
			want = "udp6"
		}
		return because(ErrAddress, "this socket is of the other family: open one with %q", want)
	case q.to.IsValid():
		return because(ErrAddress, "the socket is bound to %v and hears no groups: bind it to the group or to no address", q.to)
	case q.bound.Addr.IsValid() && q.bound.Addr != g.Addr:
		return because(ErrAddress, "the socket is bound to %v and hears no other group: open another one, or bind to no address", q.bound.Addr)
	}
	return nil
}

// choose gives the membership that is meant, as the filter names it; see
// [Group].Interface.
func (q *requests) choose(g Group, source netip.Addr, op Op) (string, error) {
	on := q.filter.states(g.Addr)
	if g.Interface != "" {
		// A routed membership is meant by the name of the interface that it is
		// on, too.
		if len(on) > 0 && on[0].ifname == "" && q.filter.state(g).none() && q.routedTo(g.Addr) == g.Interface {
			return "", nil
		}
		return g.Interface, nil
	}
	switch {
	case len(on) == 1:
		return on[0].ifname, nil
	case len(on) > 1:
		return "", because(ErrInterface, "the group is joined on several interfaces: say which one")
	case op != OpJoin && op != OpJoinSource:
		return "", nil
	case q.bound.Interface != "":
		return q.bound.Interface, nil
	case source.Is6() && source.IsLinkLocalUnicast():
		return "", because(ErrInterface, "the link-local source %v may be on any interface: say which one", source)
	}
	return "", nil
}

// routedTo names the interface that a membership without one is on, or was on
// until a moment ago, while it is made anew.
func (q *requests) routedTo(addr netip.Addr) string {
	for _, l := range q.sockets.ledgers(addr) {
		for _, e := range l.entries(addr) {
			if e.member == "" && e.trust != past {
				return e.ifname
			}
		}
	}
	if a, ok := q.absent[Group{addr, ""}]; ok && !a.pending {
		return a.ifname
	}
	return ""
}

// checkSSM refuses an any-source membership of a source-specific group: hosts
// must not ask for it (RFC 4604 section 2.2.1), and routers ignore it.
func (q *requests) checkSSM(g Group) error {
	if q.cfg.AnySource || !g.IsSSM() {
		return nil
	}
	return because(ErrSSM, "%v is in a source-specific range (RFC 4607): use JoinSource, or Config.AnySource where routers map sources to groups", g.Addr)
}

// memberships lists what is asked for, with where it is held.
func (q *requests) memberships() []Membership {
	ms := make([]Membership, 0, q.filter.len())
	for _, m := range q.shown() {
		ms = append(ms, m)
	}
	slices.SortFunc(ms, compareMemberships)
	return ms
}

// shown has each membership as the program sees it, by the group that the
// filter has it by.
func (q *requests) shown() map[Group]Membership {
	ms := make(map[Group]Membership)
	for _, m := range q.filter.Memberships() {
		key := m.Group
		m.Pending = true
		ms[key] = m
	}
	if q.sockets == nil {
		return ms
	}
	held := make(map[Group]sourceFilter)
	for at, h := range q.sockets.hearings {
		key := Group{at.addr, h.member}
		m, ok := ms[key]
		if !ok {
			continue
		}
		// Sockets of a Pool may each hold some of its sources.
		held[key] = held[key].union(h.sourceFilter)
		m.Pending = !held[key].covers(sourceFilter{m.Mode, m.Sources})
		if key.Interface != everyInterface {
			m.Index, m.Group.Interface = at.index, h.ifname
		}
		ms[key] = m
	}
	return ms
}

// system asks the kernel for the filter of a group.
func (q *requests) system(g Group) (Membership, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	m := Membership{Group: g}
	if err := q.readSystem(&m); err != nil {
		return Membership{}, opError("SystemFilter", m.Group, netip.Addr{}, err)
	}
	return m, nil
}

func (q *requests) readSystem(m *Membership) (err error) {
	if m.Group, _, err = q.resolve(m.Group, netip.Addr{}, OpLeave); err != nil {
		return err
	}
	if m.Group.Interface == everyInterface {
		return because(ErrInterface, "the group is joined on every interface: say which one")
	}
	var all sourceFilter
	for _, l := range q.sockets.ledgers(m.Group.Addr) {
		for _, e := range l.entries(m.Group.Addr) {
			if e.trust != exact || e.member != m.Group.Interface && e.ifname != m.Group.Interface {
				continue
			}
			f, err := l.kernel.readFull(groupIndex{m.Group.Addr, e.index})
			if err != nil {
				return err
			}
			all, m.Index = all.union(f), e.index
			m.Group.Interface = e.ifname
		}
	}
	if all.none() {
		return because(ErrNotJoined, "the system knows no membership of this group on this interface")
	}
	m.Mode, m.Sources = all.mode, slices.Clone(all.sources)
	return nil
}

// opError wraps an error, once, in an OpError.
func opError(op string, g Group, source netip.Addr, err error) error {
	var e *OpError
	if errors.As(err, &e) {
		return err
	}
	return &OpError{Op: op, Group: g, Source: source, Err: err}
}
