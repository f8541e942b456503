package mcast

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
	Group   Group
	Mode    Mode
	Sources []netip.Addr // sorted

	// Pending: the interface is gone, and the membership waits for it; see
	// Config.NoWatch. Nothing is heard meanwhile.
	Pending bool
}

// String returns the membership as "239.1.1.1%2 EXCLUDE{10.0.0.1}".
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

// none reports whether m is no membership at all.
func (m Membership) none() bool { return m.Mode == Include && len(m.Sources) == 0 }

// A Filter is the state machine behind a [Conn]: it holds the memberships that
// the requests made and decides which request may follow. It knows nothing of
// sockets and can be used on its own. To it every interface, 0 too, is just a
// number.
//
// A Filter answers alike on every system; only the error numbers in its
// refusals come from Rules. The zero Filter has no memberships and takes the
// rules of the system that the program runs on. Set Rules before the first
// use, and do not copy a Filter after that.
//
// All methods may be called concurrently. [Filter.Allows] takes no lock.
type Filter struct {
	Rules *Rules

	mu     sync.Mutex // held by all but Allows
	groups table[state]
	byAddr map[netip.Addr][]int // the interfaces of each group's memberships

	// emptied has the groups whose last source was left, a thing that
	// Windows' table tells from a Leave. It is bounded: see forget.
	emptied map[Group]struct{}
}

// A state is the filter of one membership. Readers see the mode and the
// sources; the rest is for the state machine.
type state struct {
	mode    Mode
	sources table[struct{}] // keyed by a Group that has the source as Addr
	pending atomic.Bool
	blocked bool // EXCLUDE only: a source has been blocked since the join
}

func (s *state) has(source netip.Addr) bool { return s.sources.get(Group{Addr: source}) != nil }
func (s *state) add(source netip.Addr)      { s.sources.put(Group{Addr: source}, &present) }
func (s *state) remove(source netip.Addr)   { s.sources.put(Group{Addr: source}, nil) }

var present struct{}

func (s *state) membership(g Group) Membership {
	m := Membership{Group: g, Mode: s.mode, Pending: s.pending.Load()}
	if n := s.sources.live; n > 0 {
		m.Sources = make([]netip.Addr, 0, n)
	}
	for k := range s.sources.all {
		m.Sources = append(m.Sources, k.Addr)
	}
	slices.SortFunc(m.Sources, netip.Addr.Compare)
	return m
}

// Check returns nil if the request may follow the ones before it. Otherwise it
// returns an [*OpError] that says why not and what to do instead:
// [ErrJoined], [ErrNotJoined], [ErrBlocked], [ErrNotBlocked] or [ErrMode],
// each with the error number of the Rules, or [ErrAddress] or [ErrInterface]
// for a request that no filter could take. Check changes nothing.
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
	s, err := f.check(&r)
	if err == nil {
		f.enact(r, s)
	}
	return err
}

// apply carries out a request that ask has accepted, in the form that settle
// gives it, and returns what the membership then is.
func (f *Filter) apply(r Request) status {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.enact(r, f.groups.get(r.Group))
	return f.groups.get(r.Group).status()
}

// enact carries out a request in the state of its group.
func (f *Filter) enact(r Request, s *state) {
	switch g := r.Group; r.Op {
	case OpJoin:
		f.put(g, &state{mode: Exclude})
	case OpJoinSource:
		if s == nil {
			s = &state{mode: Include}
			s.add(r.Source)
			f.put(g, s)
			break
		}
		s.add(r.Source)
	case OpBlock:
		s.add(r.Source)
		s.blocked = true
	case OpUnblock:
		s.remove(r.Source)
	case OpLeave:
		f.put(g, nil)
	case OpLeaveSource:
		if s.sources.live == 1 {
			f.put(g, nil)
			f.remember(g)
			break
		}
		s.remove(r.Source)
	}
}

// ask is Check, and returns what the membership is, on how many interfaces the
// group has one, and how many there are in all.
func (f *Filter) ask(r Request) (had status, on, members int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, err := f.check(&r)
	return s.status(), len(f.byAddr[r.Group.Addr]), f.groups.live, err
}

// Set replaces the filter of a group at once, whatever it was (RFC 3678
// section 4.2). INCLUDE without sources ends the membership; sources that
// occur twice count once. The error is an [*OpError] with [ErrAddress],
// [ErrInterface], or [ErrMode] for a mode that does not exist, and then
// nothing has changed.
func (f *Filter) Set(m Membership) error {
	if err := checkMembership(m); err != nil {
		return &OpError{Op: "SetFilter", Group: m.Group, Err: err}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	m.Group.Addr = m.Group.Addr.Unmap()
	if m.none() {
		f.put(m.Group, nil)
		return nil
	}
	s := &state{mode: m.Mode, blocked: m.Mode == Exclude && len(m.Sources) > 0}
	s.pending.Store(m.Pending)
	s.sources.reserve(len(m.Sources))
	for _, source := range m.Sources {
		s.add(source.Unmap().WithZone(""))
	}
	f.put(m.Group, s)
	return nil
}

// setPending marks a membership as pending, or no longer so.
func (f *Filter) setPending(g Group, pending bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.groups.get(g); s != nil {
		s.pending.Store(pending)
	}
}

// checkMembership returns why m can be no filter, or nil.
func checkMembership(m Membership) error {
	m.Group.Addr = m.Group.Addr.Unmap()
	if err := checkGroup(m.Group); err != nil {
		return err
	}
	if m.Mode > Exclude {
		return because(ErrMode, "%v is neither Include nor Exclude", m.Mode)
	}
	for _, source := range m.Sources {
		if err := checkSource(m.Group.Addr, source.Unmap()); err != nil {
			return err
		}
	}
	return nil
}

// Allows reports whether the filter lets a datagram through that came in by
// the group's interface: there is a membership, and the source is not blocked
// (EXCLUDE) or is one of those joined (INCLUDE). A zone of the source makes no
// difference. Allows takes no lock and allocates nothing.
func (f *Filter) Allows(g Group, source netip.Addr) bool {
	g.Addr = g.Addr.Unmap()
	s := f.groups.get(g)
	if s == nil || s.pending.Load() {
		return false
	}
	if source.Is6() {
		source = source.Unmap().WithZone("")
	}
	return s.has(source) == (s.mode == Include)
}

// Membership returns the membership of a group on its interface, and whether
// there is one.
func (f *Filter) Membership(g Group) (Membership, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g.Addr = g.Addr.Unmap()
	s := f.groups.get(g)
	if s == nil {
		return Membership{Group: g}, false
	}
	return s.membership(g), true
}

// membership returns the membership of a group, INCLUDE() if there is none.
func (f *Filter) membership(g Group) Membership {
	m, _ := f.Membership(g)
	return m
}

// Memberships returns all memberships, sorted by group, then by interface.
func (f *Filter) Memberships() []Membership {
	f.mu.Lock()
	defer f.mu.Unlock()
	ms := make([]Membership, 0, f.groups.live)
	for g, s := range f.groups.all {
		ms = append(ms, s.membership(g))
	}
	slices.SortFunc(ms, func(a, b Membership) int {
		if c := a.Group.Addr.Compare(b.Group.Addr); c != 0 {
			return c
		}
		return a.Group.Interface - b.Group.Interface
	})
	return ms
}

// A status is a membership without its sources.
type status struct {
	member  bool
	mode    Mode
	sources int
	pending bool
}

// status returns the status of a group's membership.
func (f *Filter) status(g Group) status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.groups.get(g).status()
}

func (s *state) status() status {
	if s == nil {
		return status{}
	}
	return status{true, s.mode, s.sources.live, s.pending.Load()}
}

// count returns the number of interfaces on which the group has a membership.
func (f *Filter) count(addr netip.Addr) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.byAddr[addr])
}

// interfaces returns the interfaces on which the group has a membership.
func (f *Filter) interfaces(addr netip.Addr) []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.byAddr[addr])
}

// len returns the number of memberships, pending ones too.
func (f *Filter) len() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.groups.live
}

// put records the state of a group, nil for no membership.
func (f *Filter) put(g Group, s *state) {
	was := f.groups.get(g) != nil
	f.groups.put(g, s)
	delete(f.emptied, g)
	switch on := f.byAddr[g.Addr]; {
	case s != nil && !was:
		if f.byAddr == nil {
			f.byAddr = make(map[netip.Addr][]int)
		}
		f.byAddr[g.Addr] = append(on, g.Interface)
	case s == nil && was && len(on) == 1:
		delete(f.byAddr, g.Addr)
	case s == nil && was:
		f.byAddr[g.Addr] = slices.DeleteFunc(on, func(i int) bool { return i == g.Interface })
	}
}

// remember notes that the group's last source was left. A program that goes
// through channels for years must not grow by that, so beyond a number no
// program needs, another group is forgotten.
func (f *Filter) remember(g Group) {
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
func (f *Filter) check(r *Request) (*state, error) {
	refuse := func(err error) error {
		e := &OpError{Op: r.Op.String(), Group: r.Group, Err: err}
		if r.Op.takesSource() {
			e.Source = r.Source
		}
		return e
	}
	if r.Op >= numOps {
		return nil, refuse(because(os.ErrInvalid, "there is no such request"))
	}
	r.Group.Addr = r.Group.Addr.Unmap()
	if err := checkGroup(r.Group); err != nil {
		return nil, refuse(err)
	}
	if r.Op.takesSource() {
		r.Source = r.Source.Unmap().WithZone("")
		if err := checkSource(r.Group.Addr, r.Source); err != nil {
			return nil, refuse(err)
		}
	}
	s := f.groups.get(r.Group)
	after := f.history(r, s)
	if v := machine[after][r.Op]; v.refused != nil {
		return s, refuse(&reason{kind: v.refused, cause: f.rules().errno(after, r.Op), text: v.advice})
	}
	return s, nil
}

// history says which column of the tables a request is in.
func (f *Filter) history(r *Request, s *state) history {
	switch {
	case s == nil:
		if _, ok := f.emptied[r.Group]; ok {
			return lastLeaveSource
		}
		return fresh
	case s.mode == Include:
		if r.Op.takesSource() && s.has(r.Source) {
			return includeThis
		}
		return includeOther
	case s.sources.live > 0:
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
		{after: []history{unblock}, follow: OpJoinSource, errno: wsaEADDRNOTAVAIL},

		// As after IP_ADD_MEMBERSHIP: an unblocked group is EXCLUDE() too.
		{after: []history{unblock}, follow: OpJoin, errno: wsaEADDRNOTAVAIL, open: leftOpen},
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
