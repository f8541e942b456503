package mcast

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// A Mode says how the sources of a membership are meant (RFC 3376 section 2).
type Mode uint8

const (
	Include Mode = iota // only these sources: source-specific
	Exclude             // all but these sources: any-source
)

// String returns "INCLUDE" or "EXCLUDE".
func (m Mode) String() string {
	switch m {
	case Include:
		return "INCLUDE"
	case Exclude:
		return "EXCLUDE"
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

// An Op is one of the six requests (RFC 3678 section 4.1).
type Op uint8

const (
	OpJoin Op = iota
	OpJoinSource
	OpBlock
	OpUnblock
	OpLeave
	OpLeaveSource
	numOps = iota
)

// String returns the name of the [Conn] method that makes the request.
func (op Op) String() string {
	if op < numOps {
		return [numOps]string{"Join", "JoinSource", "Block", "Unblock", "Leave", "LeaveSource"}[op]
	}
	return fmt.Sprintf("Op(%d)", uint8(op))
}

// takesSource reports whether the request is about one source.
func (op Op) takesSource() bool { return op != OpJoin && op != OpLeave }

// A Request asks for a change of a membership.
type Request struct {
	Op     Op
	Group  Group
	Source netip.Addr // OpJoin and OpLeave ignore it
}

// A Membership is a group with its source filter. INCLUDE without sources is
// no membership (RFC 3376 section 3.1).
type Membership struct {
	Group   Group // with the interface's name; "*" if it was joined on every interface
	Mode    Mode
	Sources []netip.Addr // sorted

	// Index is, of a Conn's membership, the index that the interface has now;
	// 0 if the membership is pending, or on every interface.
	Index int

	// Pending says that a Conn's membership is asked for, but not held by the
	// system: there is no such interface now, or the system refused it. It is
	// made as soon as it can be; nothing is heard meanwhile.
	Pending bool
}

// String returns the membership as "239.1.1.1%eth0 EXCLUDE{10.0.0.1}".
func (m Membership) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v %v{", m.Group, m.Mode)
	for i, s := range m.Sources {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(s.String())
	}
	b.WriteByte('}')
	if m.Pending {
		b.WriteString(" pending")
	}
	return b.String()
}

// A sourceFilter is what a membership lets through (RFC 3376 section 2). The
// zero sourceFilter is INCLUDE(), which is no membership. Its sources are
// sorted, and never change.
type sourceFilter struct {
	mode    Mode
	sources []netip.Addr
}

// newSourceFilter sorts the sources, and drops those that occur twice.
func newSourceFilter(mode Mode, sources []netip.Addr) sourceFilter {
	if len(sources) == 0 {
		return sourceFilter{mode: mode}
	}
	own := make([]netip.Addr, len(sources))
	sorted := true // as most lists are
	for i, s := range sources {
		if !s.Is4() {
			s = s.Unmap().WithZone("")
		}
		own[i] = s
		sorted = sorted && (i == 0 || own[i-1].Less(s))
	}
	if !sorted {
		slices.SortFunc(own, netip.Addr.Compare)
		own = slices.Compact(own)
	}
	return sourceFilter{mode, own}
}

func (f sourceFilter) none() bool { return f.mode == Include && len(f.sources) == 0 }

// has reports whether a source is listed.
func (f *sourceFilter) has(source netip.Addr) bool {
	if len(f.sources) <= 4 {
		return slices.Contains(f.sources, source)
	}
	_, found := slices.BinarySearchFunc(f.sources, source, netip.Addr.Compare)
	return found
}

func (f *sourceFilter) allows(source netip.Addr) bool { return f.has(source) == (f.mode == Include) }

// with is the filter with one more source in its list.
func (f sourceFilter) with(source netip.Addr) sourceFilter {
	i, _ := slices.BinarySearchFunc(f.sources, source, netip.Addr.Compare)
	sources := make([]netip.Addr, len(f.sources)+1)
	copy(sources, f.sources[:i])
	sources[i] = source
	copy(sources[i+1:], f.sources[i:])
	return sourceFilter{f.mode, sources}
}

// without is the filter with one source less in its list.
func (f sourceFilter) without(source netip.Addr) sourceFilter {
	i, found := slices.BinarySearchFunc(f.sources, source, netip.Addr.Compare)
	if !found {
		return f
	}
	if len(f.sources) == 1 {
		return sourceFilter{mode: f.mode}
	}
	sources := make([]netip.Addr, 0, len(f.sources)-1)
	return sourceFilter{f.mode, append(append(sources, f.sources[:i]...), f.sources[i+1:]...)}
}

func (f sourceFilter) equal(g sourceFilter) bool {
	return f.mode == g.mode && len(f.sources) == len(g.sources) &&
		(len(f.sources) == 0 || &f.sources[0] == &g.sources[0] || slices.Equal(f.sources, g.sources))
}

// covers reports whether f lets through all that g does.
func (f sourceFilter) covers(g sourceFilter) bool {
	switch {
	case f.equal(g):
		return true
	case f.mode == Include && g.mode == Exclude:
		return false
	case f.mode == Include:
		return len(minus(g.sources, f.sources)) == 0
	case g.mode == Include:
		return !slices.ContainsFunc(g.sources, f.has)
	}
	return len(minus(f.sources, g.sources)) == 0
}

// union lets through what either filter does (RFC 3376 section 3.2).
func (f sourceFilter) union(g sourceFilter) sourceFilter {
	switch {
	case f.none():
		return g
	case g.none():
		return f
	case f.mode == Include && g.mode == Include:
		return newSourceFilter(Include, slices.Concat(f.sources, g.sources))
	case f.mode == Include: // all but those blocked that are not in the other
		return sourceFilter{Exclude, minus(g.sources, f.sources)}
	case g.mode == Include:
		return sourceFilter{Exclude, minus(f.sources, g.sources)}
	}
	return sourceFilter{Exclude, common(f.sources, g.sources)}
}

// both lets through what each of the filters does.
func (f sourceFilter) both(g sourceFilter) sourceFilter {
	switch {
	case f.equal(g):
		return f
	case f.mode == Include && g.mode == Include:
		return sourceFilter{Include, common(f.sources, g.sources)}
	case f.mode == Include:
		return sourceFilter{Include, minus(f.sources, g.sources)}
	case g.mode == Include:
		return sourceFilter{Include, minus(g.sources, f.sources)}
	}
	return newSourceFilter(Exclude, slices.Concat(f.sources, g.sources))
}

// minus lists what is in a and not in b, both sorted.
func minus(a, b []netip.Addr) (rest []netip.Addr) {
	for _, s := range a {
		for len(b) > 0 && b[0].Less(s) {
			b = b[1:]
		}
		if len(b) == 0 || b[0] != s {
			rest = append(rest, s)
		}
	}
	return rest
}

// common lists what is in both, which are sorted.
func common(a, b []netip.Addr) []netip.Addr { return minus(a, minus(a, b)) }

// A Filter is the state machine behind a [Conn]: it holds the memberships that
// the requests made and decides which request may follow. It knows nothing of
// sockets and can be used on its own. To it an interface is a string and
// nothing more, but for "*": a membership on "*" is on every interface, and
// excludes memberships of its group on others, as they exclude it.
//
// A Filter answers alike on every system; only the error numbers in its
// refusals come from Rules. The zero Filter has no memberships and takes the
// rules of the system that the program runs on. Set Rules before the first
// use, and do not copy a Filter after that.
//
// All methods may be called concurrently. [Filter.Allows] takes no lock.
type Filter struct {
	Rules *Rules

	mu     sync.Mutex // held by all methods but Allows; requests of a socket take turns anyway
	groups table[groupAddr, states]
	size   int // how many memberships there are

	// emptied has the groups whose last source was left, a thing that
	// Windows' table tells from a Leave. It is bounded: see rememberEmptied.
	emptied map[Group]struct{}
}

// everyInterface is the Group.Interface of a membership on every interface.
const everyInterface = "*"

// A groupAddr is a group on whatever interface.
type groupAddr struct{ netip.Addr }

func (a groupAddr) hash() uint64 { return hashAddr(a.Addr, 0) }

// states are the memberships of one group, sorted by interface. They are
// replaced, never changed: readers take no lock.
type states struct {
	all []state
	one [1]state // what all most often is
}

func (on *states) list() []state {
	if on == nil {
		return nil
	}
	return on.all
}

// A state is one membership, or none.
type state struct {
	ifname string
	sourceFilter
	blocked bool // EXCLUDE only: a source has been blocked since the join
}

// after is the state that an accepted request leads to.
func (s state) after(r *Request) state {
	switch r.Op {
	case OpJoin:
		s.sourceFilter, s.blocked = sourceFilter{mode: Exclude}, false
	case OpJoinSource, OpBlock:
		s.sourceFilter, s.blocked = s.with(r.Source), r.Op == OpBlock
	case OpUnblock, OpLeaveSource:
		s.sourceFilter = s.without(r.Source)
	case OpLeave:
		s.sourceFilter = sourceFilter{}
	}
	return s
}

func (s *state) membership(addr netip.Addr) Membership {
	return Membership{Group: Group{addr, s.ifname}, Mode: s.mode, Sources: slices.Clone(s.sources)}
}

// Check returns nil if the request may follow the ones before it. Otherwise it
// returns an [*OpError] that says why not and what to do instead:
// [ErrJoined], [ErrNotJoined], [ErrBlocked], [ErrNotBlocked] or [ErrMode],
// each with the error number of the Rules, [ErrAddress] for a request that no
// filter could take, or [ErrInterface] for one on an interface beside "*", or
// on "*" beside an interface. Check changes nothing.
func (f *Filter) Check(r Request) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.check(&r)
	return err
}

// Apply makes the same check and then carries the request out in the filter.
func (f *Filter) Apply(r Request) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var p proposal
	err := f.propose(&p, &r)
	if err == nil {
		f.commit(&p)
	}
	return err
}

// A proposal is a filter as a request would have it.
type proposal struct {
	group     Group
	had, next state
	states    *states // of the group, with next in place of had; nil: none
	emptied   bool    // the last source is left
}

// propose checks a request, while nothing changes the filter. It brings the
// request's addresses into the form that the tables are keyed by.
func (f *Filter) propose(p *proposal, r *Request) (err error) {
	if p.had, err = f.check(r); err != nil {
		return err
	}
	p.group, p.next = r.Group, p.had.after(r)
	p.emptied = r.Op == OpLeaveSource && p.next.none()
	p.states = f.replaced(r.Group.Addr, &p.next)
	return nil
}

// commit makes the filter what was proposed, with the lock held.
func (f *Filter) commit(p *proposal) {
	if len(f.emptied) > 0 {
		delete(f.emptied, p.group)
	}
	if p.emptied && f.rules() == WindowsRules { // to others it is as any Leave
		f.rememberEmptied(p.group)
	}
	if !p.had.none() {
		f.size--
	}
	if !p.next.none() {
		f.size++
	}
	f.groups.put(groupAddr{p.group.Addr}, p.states)
}

// record is commit for the requests of a socket, which take turns.
func (f *Filter) record(p *proposal) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.commit(p)
}

// replaced returns the memberships of a group with one in the place of what is
// on its interface.
func (f *Filter) replaced(addr netip.Addr, s *state) *states {
	old := f.states(addr)
	i := 0
	for i < len(old) && old[i].ifname < s.ifname {
		i++
	}
	rest := old[i:]
	if len(rest) > 0 && rest[0].ifname == s.ifname {
		rest = rest[1:]
	}
	n := i + len(rest)
	if !s.none() {
		n++
	}
	if n == 0 {
		return nil
	}
	on := new(states)
	if on.all = on.one[:0]; n > 1 {
		on.all = make([]state, 0, n)
	}
	on.all = append(on.all, old[:i]...)
	if !s.none() {
		on.all = append(on.all, *s)
	}
	on.all = append(on.all, rest...)
	return on
}

// Set replaces the filter of a group at once, whatever it was (RFC 3678
// section 4.2). INCLUDE without sources ends the membership; sources that
// occur twice count once. The error is an [*OpError] with [ErrAddress],
// [ErrInterface] as for Check, or [ErrMode] for a mode that does not exist,
// and then nothing has changed.
func (f *Filter) Set(m Membership) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var p proposal
	if err := f.proposeSet(&p, &m); err != nil {
		return &OpError{Op: "SetFilter", Group: m.Group, Err: err}
	}
	f.commit(&p)
	return nil
}

// proposeSet does for Set what propose does for Apply.
func (f *Filter) proposeSet(p *proposal, m *Membership) (err error) {
	if p.next, err = f.checkSet(m); err != nil {
		return err
	}
	p.group, p.had = m.Group, f.state(m.Group)
	p.states = f.replaced(m.Group.Addr, &p.next)
	return nil
}

// checkSet returns the state that m is, or why it can be none.
func (f *Filter) checkSet(m *Membership) (s state, err error) {
	m.Group.Addr = m.Group.Addr.Unmap()
	if err := checkGroup(m.Group); err != nil {
		return s, err
	}
	if m.Mode > Exclude {
		return s, because(ErrMode, "%v is neither Include nor Exclude", m.Mode)
	}
	for _, source := range m.Sources {
		if err := checkSource(m.Group.Addr, source.Unmap()); err != nil {
			return s, err
		}
	}
	if err := f.checkBeside(m.Group); err != nil {
		return s, err
	}
	return state{m.Group.Interface, newSourceFilter(m.Mode, m.Sources), m.Mode == Exclude && len(m.Sources) > 0}, nil
}

// checkBeside refuses "*" beside other interfaces, and those beside it.
func (f *Filter) checkBeside(g Group) error {
	switch on := f.states(g.Addr); {
	case len(on) == 0:
	case g.Interface != everyInterface && on[0].ifname == everyInterface:
		return because(ErrInterface, "the group is joined on every interface (*): leave it there to choose single ones")
	case g.Interface == everyInterface && on[0].ifname != everyInterface:
		return because(ErrInterface, "the group is joined on single interfaces: leave it there to join it on every one (*)")
	}
	return nil
}

// Allows reports whether the filter lets a datagram through that came in by
// the group's interface: there is a membership there, or on "*", and the
// source is not blocked (EXCLUDE) or is one of those joined (INCLUDE). A zone
// of the source makes no difference. Allows takes no lock and allocates
// nothing.
func (f *Filter) Allows(g Group, source netip.Addr) bool {
	on := f.states(g.Addr.Unmap())
	for i := range on {
		if s := &on[i]; s.ifname == g.Interface || s.ifname == everyInterface {
			if source.Is6() {
				source = source.Unmap().WithZone("")
			}
			return s.allows(source)
		}
	}
	return false
}

// Membership returns the membership of a group on its interface, and whether
// there is one.
func (f *Filter) Membership(g Group) (Membership, bool) {
	g.Addr = g.Addr.Unmap()
	s := f.state(g)
	if s.none() {
		return Membership{Group: g}, false
	}
	return s.membership(g.Addr), true
}

// state returns the state of a group on its interface.
func (f *Filter) state(g Group) state { return stateOn(f.states(g.Addr), g.Interface) }

// stateOn returns the one on an interface.
func stateOn(on []state, ifname string) state {
	for i := range on {
		if on[i].ifname == ifname {
			return on[i]
		}
	}
	return state{ifname: ifname}
}

// states returns the memberships of a group, sorted by interface. The caller
// must not change them. It takes no lock.
func (f *Filter) states(addr netip.Addr) []state {
	return f.groups.get(groupAddr{addr}).list()
}

// Memberships returns all memberships, sorted by group, then by interface.
func (f *Filter) Memberships() []Membership {
	f.mu.Lock()
	defer f.mu.Unlock()
	ms := make([]Membership, 0, f.size)
	for addr, on := range f.groups.all {
		for i := range on.all {
			ms = append(ms, on.all[i].membership(addr.Addr))
		}
	}
	slices.SortFunc(ms, compareMemberships)
	return ms
}

func compareMemberships(a, b Membership) int {
	return cmp.Or(a.Group.Addr.Compare(b.Group.Addr), cmp.Compare(a.Group.Interface, b.Group.Interface))
}

// addrs lists the groups that have memberships, in no order.
func (f *Filter) addrs() []netip.Addr {
	f.mu.Lock()
	defer f.mu.Unlock()
	addrs := make([]netip.Addr, 0, f.groups.live)
	for addr := range f.groups.all {
		addrs = append(addrs, addr.Addr)
	}
	return addrs
}

// len returns the number of memberships.
func (f *Filter) len() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size
}

// rememberEmptied notes that the group's last source was left. A program that
// goes through channels for years must not grow by that, so beyond a number no
// program needs, another group is forgotten.
func (f *Filter) rememberEmptied(g Group) {
	if f.emptied == nil {
		f.emptied = make(map[Group]struct{})
	}
	if len(f.emptied) >= 4096 {
		for other := range f.emptied {
			delete(f.emptied, other)
			break
		}
	}
	f.emptied[g] = struct{}{}
}

// check is Check with the lock held. It brings the request's addresses into
// the form that the tables are keyed by, and returns the group's state.
func (f *Filter) check(r *Request) (state, error) {
	r.Group.Addr = r.Group.Addr.Unmap()
	s := f.state(r.Group)
	var err error
	switch {
	case r.Op >= numOps:
		err = because(os.ErrInvalid, "there is no such request")
	default:
		err = checkGroup(r.Group)
	}
	if err == nil && r.Op.takesSource() {
		r.Source = r.Source.Unmap().WithZone("")
		err = checkSource(r.Group.Addr, r.Source)
	}
	if err == nil {
		err = f.checkBeside(r.Group)
	}
	if err == nil {
		after := f.history(r, &s)
		v := machine[after][r.Op]
		if v.refused == nil {
			return s, nil
		}
		err = &reason{kind: v.refused, cause: f.rules().errno(after, r.Op), text: v.advice}
	}
	e := &OpError{Op: r.Op.String(), Group: r.Group, Err: err}
	if r.Op.takesSource() {
		e.Source = r.Source
	}
	return s, e
}

// history says which column of the tables a request is in.
func (f *Filter) history(r *Request, s *state) history {
	switch {
	case s.none():
		if _, ok := f.emptied[r.Group]; ok {
			return lastLeaveSource
		}
		return fresh
	case s.mode == Include:
		if r.Op.takesSource() && s.has(r.Source) {
			return includeThis
		}
		return includeOther
	case len(s.sources) > 0:
		if r.Op.takesSource() && s.has(r.Source) {
			return blockThis
		}
		return blockOther
	case s.blocked:
		return unblock
	}
	return join
}

func (f *Filter) rules() *Rules {
	switch {
	case f.Rules != nil:
		return f.Rules
	case runtime.GOOS == "windows":
		return WindowsRules
	}
	return UnixRules
}

// A history is what happened before to the group that a request is about, as
// far as the documented tables tell it apart.
type history uint8

const (
	fresh           history = iota // nothing, or a Leave
	lastLeaveSource                // LeaveSource of the last source
	join                           // Join: EXCLUDE()
	unblock                        // Join, and the Unblock of all that was blocked: EXCLUDE()
	blockOther                     // Block of other sources: EXCLUDE(X), s∉X
	blockThis                      // Block of this source, perhaps of others: EXCLUDE(X), s∈X
	includeOther                   // JoinSource of other sources: INCLUDE(I), s∉I
	includeThis                    // JoinSource of this source, perhaps of others: INCLUDE(I), s∈I
	numHistories    = iota
)

// The state machine: what a request does after each history. An empty verdict
// accepts the request; [Filter.Apply] says what it then becomes.
type verdict struct {
	refused error
	advice  string
}

var (
	ok = verdict{}

	joined       = verdict{ErrJoined, "one Join hears all sources of the group on this interface; use Block to turn a source off"}
	sourceJoined = verdict{ErrJoined, "this source is already in the filter; use LeaveSource to turn it off"}
	joinOnSSM    = verdict{ErrMode, "sources of this group are joined one by one; use Leave first to join them all"}
	sourceOnASM  = verdict{ErrMode, "the group is joined for any source, this one too; use Leave first to choose sources"}
	leaveOnASM   = verdict{ErrMode, "the group is joined for any source; use Block to turn off a source of an any-source group"}
	offOnASM     = verdict{ErrMode, "the group is joined for any source, and this one is turned off already; use Unblock to turn it on"}
	blockOnSSM   = verdict{ErrMode, "sources of this group are joined one by one; use LeaveSource to turn one off"}
	unblockOnSSM = verdict{ErrMode, "sources of this group are joined one by one; use JoinSource to turn one on"}
	unblockFirst = verdict{ErrMode, "the group is joined for any source and this one is blocked; use Unblock to turn it on"}

	notMember     = verdict{ErrNotJoined, "the group is not joined on this interface; use Join or JoinSource first"}
	notSource     = verdict{ErrNotJoined, "this source of the group is not joined on this interface; use JoinSource first"}
	sourceBlocked = verdict{ErrBlocked, "this source is already turned off; use Unblock to turn it on"}
	notBlocked    = verdict{ErrNotBlocked, "this source is not turned off; Unblock takes back an earlier Block"}
)

var machine = [numHistories][numOps]verdict{
	//               Join       JoinSource    Block          Unblock       Leave      LeaveSource
	fresh:           {ok, ok, notMember, notMember, notMember, notMember},
	lastLeaveSource: {ok, ok, notMember, notMember, notMember, notMember},
	join:            {joined, sourceOnASM, ok, notBlocked, ok, leaveOnASM},
	unblock:         {joined, sourceOnASM, ok, notBlocked, ok, leaveOnASM},
	blockOther:      {joined, sourceOnASM, ok, notBlocked, ok, leaveOnASM},
	blockThis:       {joined, unblockFirst, sourceBlocked, ok, ok, offOnASM},
	includeOther:    {joinOnSSM, ok, blockOnSSM, unblockOnSSM, ok, notSource},
	includeThis:     {joinOnSSM, sourceJoined, blockOnSSM, unblockOnSSM, ok, ok},
}

// Rules are a system's documentation of requests out of order: the error
// number for each previous and following request. A [Filter] under any Rules
// accepts and refuses the same requests; the number is what code written
// against the socket options looks for.
//
// What is refused on every system, and the numbers that Unix and Windows
// document for it (10022 is WSAEINVAL, 10049 WSAEADDRNOTAVAIL):
//
//	Join         on EXCLUDE()                           ErrJoined      EADDRINUSE     10049
//	             on EXCLUDE(X)                          ErrJoined      EADDRINUSE     10022
//	             on INCLUDE(I)                          ErrMode        EADDRINUSE     10049
//	JoinSource s on EXCLUDE()                           ErrMode        EINVAL         10049
//	             on EXCLUDE(X)                          ErrMode        EINVAL         10022
//	             on INCLUDE(I), s in I                  ErrJoined      EADDRNOTAVAIL  10049
//	Block s      without a membership                   ErrNotJoined   EINVAL         10022
//	             on EXCLUDE(X), s in X                  ErrBlocked     EADDRNOTAVAIL  10049
//	             on INCLUDE(I)                          ErrMode        EINVAL         10022
//	Unblock s    without a membership                   ErrNotJoined   EINVAL         10022
//	             on EXCLUDE(), nothing blocked so far   ErrNotBlocked  EADDRNOTAVAIL  10022
//	             on EXCLUDE(X), s not in X, or all gone ErrNotBlocked  EADDRNOTAVAIL  10049
//	             on INCLUDE(I)                          ErrMode        EINVAL         10022
//	Leave        without a membership                   ErrNotJoined   EADDRNOTAVAIL  10022
//	LeaveSource s without a membership                  ErrNotJoined   EINVAL         10022
//	             after the last source was left         ErrNotJoined   EINVAL         10049
//	             on EXCLUDE(X)                          ErrMode        EINVAL         10022
//	             on INCLUDE(I), s not in I              ErrNotJoined   EADDRNOTAVAIL  10049
//
// Both documents leave some of these open; the source says which, and what they
// were filled from.
type Rules struct {
	name string
	rows []rule
}

// String names the document.
func (r *Rules) String() string { return r.name }

// A rule is a row of a document: after one of the histories, the request is
// answered with the error number.
type rule struct {
	after  []history
	follow Op
	errno  error
	open   bool // the document leaves this row open: see the comment above it
}

const leftOpen = true

// errno returns the number for a refused request.
func (r *Rules) errno(after history, op Op) error {
	for _, row := range r.rows {
		if row.follow == op && slices.Contains(row.after, after) {
			return row.errno
		}
	}
	return nil
}

// WindowsRules is the table of "Multicast Socket Option Behavior", row by row
// in the page's order:
// https://learn.microsoft.com/en-us/windows/win32/winsock/multicast-socket-option-behavior
//
// Its words for the requests are IP_ADD_MEMBERSHIP (Join),
// IP_ADD_SOURCE_MEMBERSHIP (JoinSource), IP_BLOCK_SOURCE (Block),
// IP_UNBLOCK_SOURCE (Unblock), IP_DROP_MEMBERSHIP (Leave) and
// IP_DROP_SOURCE_MEMBERSHIP (LeaveSource).
var WindowsRules = &Rules{
	name: "Windows: Multicast Socket Option Behavior",
	rows: []rule{
		// Initial: IP_ADD_MEMBERSHIP.
		{after: []history{join}, follow: OpJoin, errno: wsaEADDRNOTAVAIL},
		{after: []history{join}, follow: OpJoinSource, errno: wsaEADDRNOTAVAIL},
		{after: []history{join}, follow: OpLeaveSource, errno: wsaEINVAL},
		{after: []history{join}, follow: OpUnblock, errno: wsaEINVAL},
		// Initial: IP_DROP_MEMBERSHIP; "any subsequent call", which by the
		// row's remark means any that needs a membership.
		{after: []history{fresh}, follow: OpBlock, errno: wsaEINVAL},
		{after: []history{fresh}, follow: OpUnblock, errno: wsaEINVAL},
		{after: []history{fresh}, follow: OpLeave, errno: wsaEINVAL},
		{after: []history{fresh}, follow: OpLeaveSource, errno: wsaEINVAL},
		// Initial: IP_ADD_SOURCE_MEMBERSHIP.
		{after: []history{includeOther, includeThis}, follow: OpJoin, errno: wsaEADDRNOTAVAIL},
		{after: []history{includeThis}, follow: OpJoinSource, errno: wsaEADDRNOTAVAIL},
		{after: []history{includeOther, includeThis}, follow: OpUnblock, errno: wsaEINVAL},
		// Initial: IP_DROP_SOURCE_MEMBERSHIP.
		{after: []history{lastLeaveSource}, follow: OpUnblock, errno: wsaEINVAL},
		{after: []history{lastLeaveSource, includeOther}, follow: OpLeaveSource, errno: wsaEADDRNOTAVAIL},
		// Initial: IP_BLOCK_SOURCE.
		{after: []history{blockThis}, follow: OpBlock, errno: wsaEADDRNOTAVAIL},
		{after: []history{blockOther, blockThis}, follow: OpJoinSource, errno: wsaEINVAL},
		{after: []history{blockOther, blockThis}, follow: OpJoin, errno: wsaEINVAL},
		// Initial: IP_UNBLOCK_SOURCE.
		{after: []history{unblock}, follow: OpUnblock, errno: wsaEADDRNOTAVAIL},

		// As after IP_ADD_MEMBERSHIP: an unblocked group is EXCLUDE() too.
		{after: []history{unblock}, follow: OpJoin, errno: wsaEADDRNOTAVAIL, open: leftOpen},
		{after: []history{unblock}, follow: OpJoinSource, errno: wsaEADDRNOTAVAIL, open: leftOpen},
		{after: []history{unblock, blockOther, blockThis}, follow: OpLeaveSource, errno: wsaEINVAL, open: leftOpen},
		// As after IP_UNBLOCK_SOURCE: sources were blocked, not this one.
		{after: []history{blockOther}, follow: OpUnblock, errno: wsaEADDRNOTAVAIL, open: leftOpen},
		// As after IP_DROP_MEMBERSHIP: there is no membership.
		{after: []history{lastLeaveSource}, follow: OpBlock, errno: wsaEINVAL, open: leftOpen},
		{after: []history{lastLeaveSource}, follow: OpLeave, errno: wsaEINVAL, open: leftOpen},
		// As IP_UNBLOCK_SOURCE, the other half of the pair.
		{after: []history{includeOther, includeThis}, follow: OpBlock, errno: wsaEINVAL, open: leftOpen},
	},
}

// UnixRules is the table of the MCAST_* options in the MLDv2 kit for KAME
// (H. Asaeda, mld-semantics), row by row in its order.
//
// Its words for the requests are MCAST_JOIN_GROUP (Join),
// MCAST_JOIN_SOURCE_GROUP (JoinSource), MCAST_BLOCK_SOURCE (Block),
// MCAST_UNBLOCK_SOURCE (Unblock), MCAST_LEAVE_GROUP (Leave) and
// MCAST_LEAVE_SOURCE_GROUP (LeaveSource).
var UnixRules = &Rules{
	name: "Unix: MCAST_* in the MLDv2 kit for KAME",
	rows: []rule{
		// Previous: MCAST_JOIN_GROUP.
		{after: []history{join}, follow: OpJoin, errno: eADDRINUSE},
		{after: []history{join}, follow: OpJoinSource, errno: eINVAL},
		{after: []history{join}, follow: OpLeaveSource, errno: eINVAL},
		// Previous: MCAST_JOIN_SOURCE_GROUP.
		{after: []history{includeOther, includeThis}, follow: OpJoin, errno: eADDRINUSE},
		{after: []history{includeThis}, follow: OpJoinSource, errno: eADDRNOTAVAIL},
		{after: []history{includeOther}, follow: OpLeaveSource, errno: eADDRNOTAVAIL},
		{after: []history{includeOther, includeThis}, follow: OpBlock, errno: eINVAL},
		{after: []history{includeOther, includeThis}, follow: OpUnblock, errno: eINVAL},
		// Previous: MCAST_BLOCK_SOURCE.
		{after: []history{blockOther, blockThis}, follow: OpJoin, errno: eADDRINUSE},
		{after: []history{blockOther, blockThis}, follow: OpJoinSource, errno: eINVAL},
		{after: []history{blockOther, blockThis}, follow: OpLeaveSource, errno: eINVAL},
		{after: []history{blockThis}, follow: OpBlock, errno: eADDRNOTAVAIL},
		{after: []history{blockOther}, follow: OpUnblock, errno: eADDRNOTAVAIL},

		// As after MCAST_BLOCK_SOURCE of another source.
		{after: []history{join, unblock}, follow: OpUnblock, errno: eADDRNOTAVAIL, open: leftOpen},
		// As after MCAST_JOIN_GROUP: an unblocked group is EXCLUDE() too.
		{after: []history{unblock}, follow: OpJoin, errno: eADDRINUSE, open: leftOpen},
		{after: []history{unblock}, follow: OpJoinSource, errno: eINVAL, open: leftOpen},
		{after: []history{unblock}, follow: OpLeaveSource, errno: eINVAL, open: leftOpen},
		// Without a membership: what Linux answers.
		{after: []history{fresh, lastLeaveSource}, follow: OpBlock, errno: eINVAL, open: leftOpen},
		{after: []history{fresh, lastLeaveSource}, follow: OpUnblock, errno: eINVAL, open: leftOpen},
		{after: []history{fresh, lastLeaveSource}, follow: OpLeave, errno: eADDRNOTAVAIL, open: leftOpen},
		{after: []history{fresh, lastLeaveSource}, follow: OpLeaveSource, errno: eINVAL, open: leftOpen},
	},
}
