package mcast

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// A ledger is what the kernel holds for one socket: what it was last told
// about memberships, and took. Only what a system call answered changes it,
// and news that makes an entry stale.
type ledger struct {
	// heard is what the read path looks datagrams up in, without a lock: this
	// socket's share of what was asked for.
	heard table[groupIndex, hearing]

	kernel kernel
	ipv6   bool
	pooled bool // of a Pool, which has other sockets for what finds no room here
	others bool // the socket may have memberships that are not in the ledger

	groups table[groupAddr, entries]
	size   int   // how many entries there are
	spent  error // not nil: why the socket may make no membership any more

	noBusyPoll bool // Config.BusyPoll is set, and the system does not poll network cards for it

	// firstJoin, if not nil, is called before the kernel makes a membership.
	firstJoin func(groupIndex) error
}

// An entry is one membership of a socket.
type entry struct {
	index  int
	ifname string       // of the interface
	member string       // the Group.Interface of the membership that it is for
	held   sourceFilter // what the kernel holds; it may be wider than asked for
	share  sourceFilter // what was asked for of this socket
	trust  trust
	// changed is when the sources of an INCLUDE last changed, since started.
	changed time.Duration
}

// entries are those of one group, in the order of joining.
type entries struct {
	all []*entry
	one [1]*entry // what all most often is
	its entry
}

// started is when the program did. A time since then is had for half the price of
// one by the clock on the wall.
var started = time.Now()

// kept is the target that leaves an entry as it is.
func (e *entry) kept() target {
	return target{index: e.index, ifname: e.ifname, member: e.member, filter: e.share}
}

// A trust says how far an entry is to be relied on.
type trust uint8

const (
	exact trust = iota // the kernel holds what the entry says
	stale              // the kernel may have lost it in silence
	past               // its interface has gone: the index may be another's by now
)

// A hearing is what a socket hands over of a group on an interface.
type hearing struct {
	sourceFilter
	ifname string
	counts *groupCounts
	one    [1]netip.Addr // what sources most often are: found without looking elsewhere
	member string        // the Group.Interface of the membership
}

// A target is what one socket should hold of a group on one interface.
type target struct {
	index  int
	ifname string
	member string // the Group.Interface of the membership that it is for
	filter sourceFilter

	// held is for reconcile: the union of all, where one filter decides for all
	// interfaces. err is its answer.
	held sourceFilter
	err  error
}

// tooSoon is the error of a request that is to be made again: of a join after a
// while, see platform.rejoinAfter; because of what the system answered, which is
// the cause, see kernel.setsockopt; or after a function was called, with how often
// that was so, which wants no lock held.
type tooSoon struct {
	wait  time.Duration
	cause error
	first func(times int) // nil: there is none
}

func (e *tooSoon) Error() string { return fmt.Sprintf("to be tried again in %v", e.wait) }

// mostWaits is how often a request is made again that the system answers so.
const mostWaits = 5

// entries returns those of a group.
func (l *ledger) entries(addr netip.Addr) []*entry {
	if es := l.groups.get(groupAddr{addr}); es != nil {
		return es.all
	}
	return nil
}

func (l *ledger) entry(at groupIndex) *entry {
	for _, e := range l.entries(at.addr) {
		if e.index == at.index {
			return e
		}
	}
	return nil
}

// reconcile brings what the kernel holds of a group to the targets, by the
// shortest requests that lead there without opening wider than both ends
// allow. It is the only code that talks to a kernel about memberships. What
// failed is in the targets; the error is a [*leaveError], about what is no target
// and could not be left.
func (l *ledger) reconcile(addr netip.Addr, targets []target) (err error) {
	var all sourceFilter
	for i := range targets {
		targets[i].held, targets[i].err = targets[i].filter, nil
		all = all.union(targets[i].filter)
	}
	if l.ipv6 && l.kernel.oneFilter && len(targets) > 1 {
		for i := range targets {
			targets[i].held = all
		}
	}
	for _, e := range slices.Backward(l.entries(addr)) { // leaving one moves none of those before it
		t := targetFor(targets, e.index)
		if t != nil && t.filter.none() { // of an entry that nobody asked for
			t = nil
		}
		if t != nil && (e.trust == exact || l.spent != nil) {
			continue
		}
		switch failed := l.leave(addr, e); {
		case failed == nil:
		case t != nil:
			t.err = failed
		case err == nil:
			err = &leaveError{e.member, failed}
		}
	}
	for i := range targets {
		t := &targets[i]
		if t.err != nil || t.filter.none() {
			continue
		}
		t.err = l.reach(addr, t)
		// That a filter has no room is another matter.
		for errors.Is(t.err, ErrLimit) && t.member == everyInterface && l.entry(groupIndex{addr, t.index}) == nil && l.giveWay(addr, targets[i+1:], t.err) {
			t.err = l.reach(addr, t)
		}
	}
	return err
}

// giveWay ends the least useful part of a membership on every interface, for the
// sake of one that finds no room.
func (l *ledger) giveWay(addr netip.Addr, less []target, limit error) bool {
	for i := range slices.Backward(less) {
		t := &less[i]
		if e := l.entry(groupIndex{addr, t.index}); e != nil && t.member == everyInterface && t.err == nil && l.spent == nil && l.leave(addr, e) == nil {
			t.err = limit
			return true
		}
	}
	return false
}

// A leaveError says that a membership could not be left.
type leaveError struct {
	member string
	err    error
}

func (e *leaveError) Error() string { return e.err.Error() }
func (e *leaveError) Unwrap() error { return e.err }

func targetFor(targets []target, index int) *target {
	for i := range targets {
		if targets[i].index == index {
			return &targets[i]
		}
	}
	return nil
}

// reach brings one entry to its target.
func (l *ledger) reach(addr netip.Addr, t *target) error {
	at := groupIndex{addr, t.index}
	e := l.entry(at)
	if e == nil {
		var err error
		if e, err = l.make(at, t.held); err != nil {
			return err
		}
	} else if e.trust != exact {
		return l.spent
	} else if err := l.change(at, e, t.held); err != nil {
		if e.trust != stale || l.spent != nil || l.leave(addr, e) != nil {
			return err
		}
		// The kernel had lost it.
		if e, err = l.make(at, t.held); err != nil {
			return err
		}
	}
	e.ifname, e.member, e.share = t.ifname, t.member, t.filter
	return nil
}

// make makes a membership.
func (l *ledger) make(at groupIndex, to sourceFilter) (*entry, error) {
	if l.spent != nil {
		return nil, l.spent
	}
	if wait := leaves.wait(l, at); wait > 0 {
		return nil, &tooSoon{wait: wait}
	}
	if l.others {
		if f, err := l.kernel.readFull(at); err == nil && !f.none() {
			return nil, notMadeHere(nil)
		}
	}
	if l.firstJoin != nil {
		if err := l.firstJoin(at); err != nil {
			return nil, err
		}
	}
	// A full filter needs a membership to replace, so begin with as little as
	// a single request can say.
	c := change{op: OpJoin, addr: at.addr, index: at.index}
	held := sourceFilter{mode: Exclude}
	if to.mode == Include {
		c.op, c.source = OpJoinSource, to.sources[0]
		held = sourceFilter{Include, to.sources[:1]}
	}
	if err := l.kernel.send(c, true); err != nil {
		d := demand{at: at, makes: true, members: l.size, sources: len(held.sources), pool: !l.pooled}
		errno := errnoOf(err)
		err = l.kernel.explain(d, err)
		var soon *tooSoon
		switch {
		case errors.As(err, &soon):
			if slices.Contains(l.kernel.isMember, errnoOf(soon.cause)) { // or a byte count
				soon.cause = notMadeHere(soon.cause)
			}
		case errno == 0:
		case errno == l.kernel.spends:
			l.spent = &reason{kind: ErrLimit, cause: err, text: "this socket can make no membership any more: open another one"}
		case slices.Contains(l.kernel.limits, errno):
			// Linux may have made the membership before it ran out of memory
			// for the source.
			l.undo(at)
		case slices.Contains(l.kernel.isMember, errno):
			return nil, notMadeHere(err)
		}
		return nil, err
	}
	e := l.add(at, held)
	if err := l.change(at, e, to); err != nil {
		// What is to be tried again goes on from here.
		var soon *tooSoon
		if !errors.As(err, &soon) && l.undo(at) {
			l.forget(at.addr, e)
		}
		return nil, err
	}
	return e, nil
}

func notMadeHere(cause error) error {
	return &reason{kind: ErrJoined, cause: cause, text: "the socket has this membership already, and it was not made here: leave it where it was made"}
}

// add notes a new membership.
func (l *ledger) add(at groupIndex, held sourceFilter) (e *entry) {
	es := l.groups.get(groupAddr{at.addr})
	if es == nil {
		es = new(entries)
		es.all, e = es.one[:0], &es.its
		l.groups.put(groupAddr{at.addr}, es)
	} else {
		e = new(entry)
	}
	*e = entry{index: at.index, held: held, changed: time.Since(started)}
	es.all = append(es.all, e)
	l.size++
	return e
}

// undo leaves what is left of a join that failed, and reports whether nothing
// is left.
func (l *ledger) undo(at groupIndex) bool {
	if l.kernel.keepsGone && !l.kernel.exists(at.index) {
		return false // the system takes the index for any interface
	}
	err := l.kernel.send(change{op: OpLeave, addr: at.addr, index: at.index}, false)
	if err == nil {
		leaves.record(l, at)
	}
	return err == nil || l.kernel.gone(err)
}

// change replaces the filter of an exact entry.
func (l *ledger) change(at groupIndex, e *entry, to sourceFilter) error {
	if e.held.equal(to) {
		return nil
	}
	if e.held.mode == Include || to.mode == Include {
		e.changed = time.Since(started)
	}
	c, single := step(at, e.held, to)
	var err error
	if single {
		err = l.kernel.send(c, false)
		if err == nil {
			e.held = to
			return nil
		}
	} else if err = l.replace(at, e, to); err == nil {
		return nil
	}
	if l.kernel.gone(err) {
		lost := stale
		if !l.kernel.exists(at.index) {
			lost = past
		}
		l.distrust(at.addr, e, lost)
	}
	d := demand{at: at, full: !single, members: l.size, sources: len(to.sources), pool: !l.pooled && to.mode == Include}
	return l.kernel.explain(d, err)
}

// step gives the single request that leads from one filter to another, if one
// does.
func step(at groupIndex, from, to sourceFilter) (c change, single bool) {
	if from.mode != to.mode {
		return c, false
	}
	c = change{addr: at.addr, index: at.index}
	switch len(to.sources) - len(from.sources) {
	case 1:
		more := minus(to.sources, from.sources)
		if len(more) != 1 {
			return c, false
		}
		c.op, c.source = OpJoinSource, more[0]
		if to.mode == Exclude {
			c.op = OpBlock
		}
		return c, true
	case -1:
		less := minus(from.sources, to.sources)
		if len(less) != 1 {
			return c, false
		}
		c.op, c.source = OpLeaveSource, less[0]
		if to.mode == Exclude {
			c.op = OpUnblock
		}
		return c, true
	}
	return c, false
}

// replace replaces the filter of an entry at once, where the system can, and
// else by single requests. The entry says what there is then.
func (l *ledger) replace(at groupIndex, e *entry, to sourceFilter) error {
	k := &l.kernel
	err := l.replaceFull(at, e, to)
	// Windows' numbers for IPv6 are known from a header alone. Single requests
	// lead to the same filter, if it is one that the system can hold.
	if errors.Is(err, errors.ErrUnsupported) || err != nil && k.platform.full == ioctlFilter {
		err = l.walk(at, e, to, k.gone(err))
	}
	return err
}

func (l *ledger) replaceFull(at groupIndex, e *entry, to sourceFilter) error {
	k := &l.kernel
	full := func(f sourceFilter) error {
		err := k.sendFull(at, e.held, f)
		if err == nil {
			e.held = f
		}
		return err
	}
	if len(to.sources) > 0 && len(e.held.sources) > 1 && k.crowded(e.held, to) {
		if err := full(e.held.roomFor(to, k.fullRoom)); err != nil {
			return err
		}
	}
	if !k.noEmptyFull || len(to.sources) > 0 {
		return full(to)
	}
	// EXCLUDE() is EXCLUDE(s) less s. One that is there already needs no room.
	s := e.held.sources[0]
	if err := full(sourceFilter{Exclude, []netip.Addr{s}}); err != nil {
		return err
	}
	err := k.send(change{op: OpUnblock, addr: at.addr, index: at.index, source: s}, false)
	if err == nil {
		e.held = to
	}
	return err
}

// roomFor is the filter that goes in between where the old sources count until
// the new ones are in, at most n together. It lets nothing through that neither
// filter does, but where n old ones leave no other way than one of them.
func (f sourceFilter) roomFor(to sourceFilter, n int) sourceFilter {
	switch both := common(f.sources, to.sources); {
	case len(both) > 0 && f.mode == to.mode:
		return sourceFilter{f.mode, both}
	case len(both) > 0:
		return sourceFilter{Include, both}
	case f.mode == Include || to.mode == Exclude:
		return sourceFilter{f.mode, f.sources[:1]}
	case len(f.sources) < n:
		return sourceFilter{Include, to.sources[:1]}
	}
	return sourceFilter{Include, f.sources[:1]}
}

// walk replaces the filter of an entry by single requests. Sources are added
// before others are removed, so that INCLUDE never becomes empty, which would
// end it, and EXCLUDE never opens wider than either end. lost says that the
// system may not have the membership: a JoinSource would then make another one.
func (l *ledger) walk(at groupIndex, e *entry, to sourceFilter, lost bool) error {
	send := func(op Op, source netip.Addr) error {
		return l.kernel.send(change{op: op, addr: at.addr, index: at.index, source: source}, op == OpJoin || op == OpJoinSource && e.held.none())
	}
	add, remove := OpJoinSource, OpLeaveSource
	if to.mode == Exclude {
		add, remove = OpBlock, OpUnblock
	}
	if e.held.mode != to.mode || lost {
		if err := send(OpLeave, netip.Addr{}); err != nil && !(lost && l.kernel.gone(err)) {
			return err
		}
		leaves.record(l, at)
		e.held, e.trust = sourceFilter{}, stale // until it is there again
		if to.mode == Exclude {
			if err := send(OpJoin, netip.Addr{}); err != nil {
				return err
			}
			e.held = sourceFilter{mode: Exclude}
		}
	}
	for _, s := range minus(to.sources, e.held.sources) {
		if err := send(add, s); err != nil {
			return err
		}
		e.held = sourceFilter{to.mode, e.held.with(s).sources}
	}
	for _, s := range minus(e.held.sources, to.sources) {
		if err := send(remove, s); err != nil {
			return err
		}
		e.held = e.held.without(s)
	}
	e.trust = exact
	return nil
}

// leave ends a membership. It succeeds where the system no longer has it.
func (l *ledger) leave(addr netip.Addr, e *entry) error {
	k := &l.kernel
	at := groupIndex{addr, e.index}
	if e.trust == past && k.exists(e.index) {
		// The index is in use again: leaving would take the membership of
		// whoever joined there.
		if err := k.guard(k, at, e.held); err != nil {
			return err
		}
	}
	var err error
	if k.keepsGone && (e.trust == past || !k.exists(e.index)) {
		l.leaveGone(addr, e)
	} else {
		err = k.send(change{op: OpLeave, addr: addr, index: e.index}, false)
	}
	if err != nil && !k.gone(err) {
		return k.explain(demand{at: at}, err)
	}
	leaves.record(l, at)
	l.forget(addr, e)
	return nil
}

// leaveGone releases a membership on an interface that went away by the one
// request that macOS has for it, an IP_DROP_MEMBERSHIP without interface. That
// ends the group's oldest membership, so it must be this one; else it stays,
// deaf, until the socket is closed.
func (l *ledger) leaveGone(addr netip.Addr, e *entry) {
	k := &l.kernel
	if l.entries(addr)[0] == e && addr.Is4() {
		k.setsockopt(levelIP, k.ip[OpLeave], k.mreq(change{op: OpLeave, addr: addr}, netip.Addr{}), false)
	}
}

// forget drops an entry that the kernel no longer has.
func (l *ledger) forget(addr netip.Addr, e *entry) {
	l.heard.put(groupIndex{addr, e.index}, nil)
	es := l.groups.get(groupAddr{addr})
	i := slices.Index(es.all, e)
	if es.all = slices.Delete(es.all, i, i+1); len(es.all) == 0 {
		l.groups.put(groupAddr{addr}, nil)
	}
	l.size--
}

// distrust notes that the kernel may not hold an entry any more. Nothing is
// heard of it until it is made anew.
func (l *ledger) distrust(addr netip.Addr, e *entry, t trust) {
	if t == stale && l.spent != nil {
		return // it could not be made anew
	}
	e.trust = max(e.trust, t)
	l.heard.put(groupIndex{addr, e.index}, nil)
}

// publish lets the read path hear what a socket holds of what is asked for of a
// group, whatever could not be narrowed.
func (l *ledger) publish(addr netip.Addr, asked []state, counts func(member string) *groupCounts) {
	for _, e := range l.entries(addr) {
		at := groupIndex{addr, e.index}
		share := e.share.both(stateOn(asked, e.member).sourceFilter)
		if e.trust != exact || share.none() || !e.held.covers(share) {
			l.heard.put(at, nil)
			continue
		}
		var c *groupCounts
		if counts != nil {
			c = counts(e.member)
		}
		if h := l.heard.get(at); h != nil && h.equal(share) && h.ifname == e.ifname && h.member == e.member && h.counts == c {
			continue
		}
		h := &hearing{sourceFilter: share, ifname: e.ifname, member: e.member, counts: c}
		if len(h.sources) == 1 {
			h.one = [1]netip.Addr(h.sources)
			h.sources = h.one[:]
		}
		l.heard.put(at, h)
	}
}

// each calls f for every entry; f may forget it.
func (l *ledger) each(f func(netip.Addr, *entry)) {
	for addr, es := range l.groups.all {
		for _, e := range slices.Clone(es.all) {
			f(addr.Addr, e)
		}
	}
}

// end says that the socket is about to be closed, which leaves all groups: the
// memberships of others that this would take are guarded first. Where interfaces
// were not watched, another name of an index says that the interface has gone.
func (l *ledger) end(watched bool) {
	l.each(func(addr netip.Addr, e *entry) {
		at := groupIndex{addr, e.index}
		if !watched && ifnameFor(l.kernel.ifname(e.index), e.index) != e.ifname {
			e.trust = past
		}
		if e.trust == past && l.kernel.exists(e.index) {
			l.kernel.guard(&l.kernel, at, e.held)
		}
		leaves.record(l, at)
		l.heard.put(at, nil)
	})
	l.groups, l.size = table[groupAddr, entries]{}, 0
}

// leaves are the groups that any socket of the program left lately, on systems
// where a join that follows at once would be lost: the record of a group
// belongs to the host, not to the socket.
var leaves recentLeaves

type recentLeaves struct {
	mu   sync.Mutex
	last map[leftGroup]time.Time
}

type leftGroup struct {
	groupIndex
	namespace uint64
}

func (r *recentLeaves) record(l *ledger, at groupIndex) {
	if l.kernel.rejoinAfter == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	for g, t := range r.last {
		if now.Sub(t) > l.kernel.rejoinAfter {
			delete(r.last, g)
		}
	}
	if r.last == nil {
		r.last = make(map[leftGroup]time.Time)
	}
	r.last[leftGroup{at, l.kernel.host.Namespace()}] = now
}

// wait says how long a group must not be joined yet.
func (r *recentLeaves) wait(l *ledger, at groupIndex) time.Duration {
	if l.kernel.rejoinAfter == 0 {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	left, ok := r.last[leftGroup{at, l.kernel.host.Namespace()}]
	if !ok {
		return 0
	}
	return l.kernel.rejoinAfter - time.Since(left)
}
