package mcast

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"example.com/mcast/internal/netif"
)

// An EventKind says what happened to a membership, or to an interface.
type EventKind uint8

const (
	// EventLost: the system lost the membership, in silence. It is made anew,
	// or pending, next.
	EventLost EventKind = iota
	// EventPending: the membership is asked for, and there is no interface for
	// it. It is made when there is.
	EventPending
	// EventRestored: the membership is held, after it was lost or pending.
	EventRestored
	// EventFailed: the membership could not be made, and why. It stays
	// pending, and is tried again. Of a membership on every interface: those
	// where it could not be made. With the zero Group: the interfaces cannot be
	// watched; it is tried again with later requests, and [Conn.Repair] is
	// there meanwhile.
	EventFailed
	// EventDown: an interface with memberships went down, or lost its carrier.
	// Nothing is heard by it meanwhile. Group is the zero Group.
	EventDown
	// EventUp: it is up again, with a carrier. Group is the zero Group.
	EventUp

	numEventKinds = iota
)

// String returns "lost", "pending", "restored", "failed", "down" or "up".
func (k EventKind) String() string {
	if k < numEventKinds {
		return [numEventKinds]string{"lost", "pending", "restored", "failed", "down", "up"}[k]
	}
	return fmt.Sprintf("EventKind(%d)", uint8(k))
}

// An Event tells what became of a membership without a request, or of an
// interface with memberships; see Config.OnEvent.
type Event struct {
	Kind  EventKind
	Group Group  // as the membership was joined; the zero Group: an interface is meant
	Name  string // the interface's name; "" if there is none, or several
	Old   int    // the index of the interface that the membership was on; 0: none
	New   int    // the index of the one that it is on; 0: none
	Err   error  // of EventFailed
}

// String returns "restored 232.1.1.1%eth0 on eth0 (2, was 5)" or "down eth0 (2)".
func (e Event) String() string {
	s := e.Kind.String()
	if e.Group.Addr.IsValid() {
		s += " " + e.Group.String()
		if e.Name != "" {
			s += " on"
		}
	}
	if e.Name != "" {
		s += " " + e.Name
	}
	switch {
	case e.New != 0 && e.Old != 0 && e.New != e.Old:
		s += fmt.Sprintf(" (%d, was %d)", e.New, e.Old)
	case e.New != 0:
		s += fmt.Sprintf(" (%d)", e.New)
	case e.Old != 0:
		s += fmt.Sprintf(" (%d)", e.Old)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// events are handed over to the logger and the program one at a time, by a
// goroutine that runs while there are some, without any lock held.
type events struct {
	cfg         *Config
	unwatchable atomic.Value // why the interfaces cannot be watched, as was told

	mu      sync.Mutex
	queue   []func()
	running chan struct{} // closed when the goroutine has ended; nil: there is none
	closed  bool
	down    map[int]bool // the interfaces that are told to be down
}

// event hands an event over.
func (q *events) event(e Event) { q.later(func() { q.cfg.notify(e) }) }

// link tells that an interface went down or came up: once, whether it, its carrier,
// or both are down.
func (q *events) link(kind EventKind, link netif.Interface) {
	q.mu.Lock()
	again := kind == EventDown && q.down[link.Index]
	if q.down == nil {
		q.down = make(map[int]bool)
	}
	q.down[link.Index] = kind == EventDown
	q.mu.Unlock()
	if !again {
		q.event(Event{Kind: kind, Name: link.Name, Old: link.Index, New: link.Index})
	}
}

// isDown reports whether an interface was told to be down.
func (q *events) isDown(index int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.down[index]
}

// forget is for an interface that has gone.
func (q *events) forget(index int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.down, index)
}

// log hands a warning over.
func (q *events) warn(text string, args ...any) {
	q.later(func() { q.cfg.Logger.Warn(text, args...) })
}

func (q *events) later(f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	q.queue = append(q.queue, f)
	if q.running == nil {
		q.running = make(chan struct{})
		go q.run(q.running)
	}
}

func (q *events) run(done chan struct{}) {
	defer close(done)
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.queue) > 0 {
		f := q.queue[0]
		q.queue = q.queue[1:]
		q.mu.Unlock()
		f()
		q.mu.Lock()
	}
	q.running = nil
}

// end drops what was not handed over, and waits for what is being.
func (q *events) end() {
	q.mu.Lock()
	running := q.running
	q.queue, q.closed = nil, true
	q.mu.Unlock()
	if running != nil {
		<-running
	}
}

// notify tells the logger and the program of an event.
func (cfg *Config) notify(e Event) {
	level := slog.LevelWarn
	if e.Kind == EventRestored || e.Kind == EventUp {
		level = slog.LevelInfo
	}
	args := []any{"interface", e.Name}
	what := "interface "
	if e.Group.Addr.IsValid() {
		what = "membership "
		args = append(args, "group", e.Group.Addr)
	}
	if e.Old != 0 {
		args = append(args, "old", e.Old)
	}
	if e.New != 0 {
		args = append(args, "new", e.New)
	}
	if e.Err != nil {
		args = append(args, "error", e.Err)
	}
	cfg.Logger.Log(context.Background(), level, "mcast: "+what+e.Kind.String(), args...)
	if cfg.OnEvent != nil {
		cfg.OnEvent(e)
	}
}

// An absence is what the program was told about a membership that is not held.
type absence struct {
	old     int
	ifname  string
	pending bool   // it was told that there is no interface
	failed  string // the last error that it was told, without the interfaces
	err     error  // the last one
	partly  bool   // a membership on every interface is held on some
}

// isAbsent reports whether the program was told that a membership is not held.
func (q *requests) isAbsent(g Group) bool {
	a, ok := q.absent[g]
	return ok && !a.partly
}

// lose tells that an entry was lost. A membership on every interface is lost with
// the last one.
func (q *requests) lose(addr netip.Addr, e *entry) {
	g := Group{addr, e.member}
	if q.isAbsent(g) || q.filter.state(g).none() || q.heldBeside(g, e.index) {
		return
	}
	q.setAbsent(g, absence{old: e.index, ifname: e.ifname})
	q.events.event(Event{Kind: EventLost, Group: g, Name: e.ifname, Old: e.index})
}

// loseElsewhere tells of entries that are left because there is no such interface
// any more, of which there is no news yet. It says nothing of a membership that a
// request has ended.
func (q *requests) loseElsewhere(addr netip.Addr, targets []target, ended Group) {
	for _, l := range q.sockets.ledgers(addr) {
		for _, e := range l.entries(addr) {
			if targetFor(targets, e.index) == nil && (Group{addr, e.member}) != ended {
				l.distrust(addr, e, stale)
				q.lose(addr, e)
			}
		}
	}
}

// heldBeside reports whether a membership is held on another interface as well.
func (q *requests) heldBeside(g Group, index int) bool {
	return slices.ContainsFunc(q.sockets.ledgers(g.Addr), func(l *ledger) bool {
		return slices.ContainsFunc(l.entries(g.Addr), func(e *entry) bool {
			return e.member == g.Interface && e.index != index && e.trust == exact
		})
	})
}

func (q *requests) setAbsent(g Group, a absence) {
	if q.absent == nil {
		q.absent = make(map[Group]absence)
	}
	q.absent[g] = a
	if q.watched != nil {
		q.watched.again()
	}
}

// again has the watcher try without news.
func (w *watcher) again() {
	select {
	case w.missing <- struct{}{}:
	default: // it has been told
	}
}

// emitChanges compares what is held of a group with what the program was told, and
// tells it what is new. targets has what could not be done.
func (q *requests) emitChanges(addr netip.Addr, targets []target) {
	on := q.filter.states(addr)
	for g := range q.absent {
		if g.Addr == addr && q.filter.state(g).none() {
			delete(q.absent, g)
		}
	}
	for i := range on {
		g := Group{addr, on[i].ifname}
		e := q.heldEntry(addr, &on[i])
		why, err := failure(targets, g.Interface)
		was, absent := q.absent[g]
		if e != nil && err == nil && !absent {
			continue
		}
		if e != nil && absent && !was.partly {
			q.events.event(Event{Kind: EventRestored, Group: g, Name: e.ifname, Old: was.old, New: e.index})
			delete(q.absent, g)
			was, absent = absence{}, false
		}
		soon, again := errors.AsType[*tooSoon](err)
		switch {
		case again && soon.first != nil && q.watched != nil: // whoever made the request may not wait for it
			q.watched.again()
		case again: // not yet
		case err != nil && was.failed != why:
			was.failed, was.err, was.partly = why, err, e != nil
			q.setAbsent(g, was)
			q.events.event(Event{Kind: EventFailed, Group: g, Name: nameOf(g, was.ifname), Old: was.old, Err: opError("Repair", g, netip.Addr{}, err)})
		case err != nil: // as before
		case e != nil && absent && len(targets) > 0: // held in part, and now whole
			delete(q.absent, g)
		case e == nil:
			q.emitPending(g)
		}
	}
}

// nameOf gives the name of a membership's interface.
func nameOf(g Group, last string) string {
	if g.Interface != "" && g.Interface != everyInterface {
		return g.Interface
	}
	return last
}

// failure joins what failed for a membership, each reason once; where it may have
// several interfaces, with those that it is about. why is the reasons alone.
func failure(targets []target, member string) (why string, err error) {
	var reasons []error
	var names [][]string
	for i := range targets {
		t := &targets[i]
		if t.member != member || t.err == nil {
			continue
		}
		i := slices.IndexFunc(reasons, func(e error) bool { return e.Error() == t.err.Error() })
		if i < 0 {
			i = len(reasons)
			reasons, names = append(reasons, t.err), append(names, nil)
		}
		names[i] = append(names[i], t.ifname)
	}
	if len(reasons) == 0 {
		return "", nil
	}
	why = errors.Join(reasons...).Error()
	if member == everyInterface {
		for i, e := range reasons {
			reasons[i] = fmt.Errorf("on %s: %w", strings.Join(names[i], ", "), e)
		}
	}
	return why, errors.Join(reasons...)
}

// heldEntry returns an entry that has a membership whole, or the first of
// several that have it together; nil if it is not held.
func (q *requests) heldEntry(addr netip.Addr, s *state) (first *entry) {
	var all sourceFilter
	for _, l := range q.sockets.ledgers(addr) {
		for _, e := range l.entries(addr) {
			if e.member != s.ifname || e.trust != exact {
				continue
			}
			if e.held.covers(s.sourceFilter) {
				return e
			}
			if first == nil || first.index == e.index {
				all = all.union(e.held)
				first = e
			}
		}
	}
	if first == nil || !all.covers(s.sourceFilter) {
		return nil
	}
	return first
}

// A watcher mends the memberships of all Conns and Pools in a network
// namespace. It runs while there are any that have or had memberships.
type watcher struct {
	namespace uint64
	source    netif.Source
	done      chan struct{} // closed when it has ended
	missing   chan struct{} // a membership is to be tried again without news
	members   map[*requests]struct{}

	links netif.State
	lost  losses
}

// losses are what news since the last mending says of the memberships on
// interfaces.
type losses struct {
	up      map[int]time.Time // since when it was down
	carrier map[int]bool
	ipv6    map[int]bool // IPv6 was off
	all     bool
}

// watchers are the program's, by namespace. The lock also guards their members.
var watchers struct {
	sync.Mutex
	of map[uint64]*watcher
}

// mending is held by who has the locks of several requests.
var mending sync.Mutex

const (
	settleTime  = 20 * time.Millisecond  // without news, before mending
	patience    = 200 * time.Millisecond // with news, before mending all the same
	mendingRest = 100 * time.Millisecond // between two mendings
	firstRetry  = 250 * time.Millisecond // after a mending that left something to try again
	lastRetry   = 30 * time.Second
	routeRetry  = 2 * time.Second // at most, where a route is to come
)

// watch has the interfaces watched. Where that is impossible, it is tried again
// at the next request.
func (q *requests) watch() {
	if q.watched != nil || q.cfg.NoWatch {
		return
	}
	w, err := watcherFor(q)
	switch {
	case err == nil:
		q.watched = w
		q.events.unwatchable.Store("")
		if q.unwatched {
			w.again()
		}
	case errors.Is(err, errors.ErrUnsupported): // Repair is all that there is
	case q.events.unwatchable.Swap(err.Error()) != err.Error():
		err = opError("Watch", Group{}, netip.Addr{}, fmt.Errorf("interfaces cannot be watched: %w", err))
		q.events.event(Event{Kind: EventFailed, Err: err})
	}
}

func watcherFor(q *requests) (*watcher, error) {
	watchers.Lock()
	defer watchers.Unlock()
	namespace := q.host.Namespace()
	w := watchers.of[namespace]
	if w == nil {
		source, err := q.host.Watch()
		if err != nil {
			return nil, err
		}
		first, err := source.Read()
		if err != nil {
			source.Close()
			return nil, err
		}
		w = &watcher{namespace: namespace, source: source, done: make(chan struct{}), missing: make(chan struct{}, 1), members: make(map[*requests]struct{})}
		w.links.Apply(first, time.Now())
		if watchers.of == nil {
			watchers.of = make(map[uint64]*watcher)
		}
		watchers.of[namespace] = w
		go w.run()
	}
	w.members[q] = struct{}{}
	return w, nil
}

// remove forgets a Conn or Pool, and ends the watcher with the last one.
func (w *watcher) remove(q *requests) {
	watchers.Lock()
	delete(w.members, q)
	last := len(w.members) == 0 && watchers.of[w.namespace] == w
	if last {
		delete(watchers.of, w.namespace)
		w.source.Close()
	}
	watchers.Unlock()
	if last {
		<-w.done
	}
}

func (w *watcher) all() []*requests {
	watchers.Lock()
	defer watchers.Unlock()
	qs := make([]*requests, 0, len(w.members))
	for q := range w.members {
		qs = append(qs, q)
	}
	return qs
}

// run reads news until the source is closed.
func (w *watcher) run() {
	news, stop := make(chan []netif.Change), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(news)
		for {
			changes, err := w.source.Read()
			if err != nil {
				w.ended(err)
				return
			}
			select {
			case news <- changes:
			case <-stop:
				return
			}
		}
	})
	defer close(w.done)
	defer wg.Wait()
	defer close(stop)

	timer := time.NewTimer(time.Hour)
	timer.Stop()
	var since time.Time // the first news that is not mended yet
	var next time.Time  // when the timer fires; zero: it does not
	var last time.Time  // the last mending
	retry, waits := firstRetry, 0
	for {
		select {
		case changes, ok := <-news:
			if !ok {
				return
			}
			now := time.Now()
			w.take(w.links.Apply(changes, now))
			if since.IsZero() {
				since, retry, waits = now, firstRetry, 0
			}
			wait := max(min(settleTime, patience-now.Sub(since)), mendingRest-now.Sub(last))
			next = now.Add(wait)
			timer.Reset(wait)
		case <-w.missing:
			if next.IsZero() {
				next = time.Now().Add(firstRetry)
				timer.Reset(firstRetry)
			}
		case <-timer.C:
			since, last, next = time.Time{}, time.Now(), time.Time{}
			select {
			case <-w.missing: // it is tried now
			default:
			}
			again := w.mend()
			wait := time.Duration(0)
			switch {
			case again.soon > 0 && waits < 2*mostWaits:
				waits++
				wait = again.soon
			case again.unrouted:
				wait = min(retry, routeRetry)
				retry = min(2*retry, lastRetry)
			case again.failed || again.soon > 0:
				wait = retry
				retry = min(2*retry, lastRetry)
			}
			if wait > 0 {
				next = time.Now().Add(wait)
				timer.Reset(wait)
			}
		}
	}
}

// ended tells everyone that there will be no more news, unless the source was
// closed.
func (w *watcher) ended(err error) {
	watchers.Lock()
	if watchers.of[w.namespace] == w { // else it has no members
		delete(watchers.of, w.namespace)
		w.source.Close()
	}
	watchers.Unlock()
	for _, q := range w.all() {
		q.mu.Lock()
		q.watched, q.unwatched = nil, true
		if q.events.unwatchable.Swap(err.Error()) != err.Error() {
			q.events.event(Event{Kind: EventFailed, Err: opError("Watch", Group{}, netip.Addr{}, err)})
		}
		q.mu.Unlock()
	}
}

// take does at once what cannot wait for mending, and notes the rest.
func (w *watcher) take(news []netif.News) {
	for _, n := range news {
		i := n.Interface.Index
		switch n.Kind {
		case netif.Gone:
			// An index that is in use again must not be left.
			w.each(func(q *requests) {
				q.release(i, "", past, true)
				q.events.forget(i)
			})
			closeGuards(i)
		case netif.Renamed:
			// It is another one, and has the old one's memberships.
			w.each(func(q *requests) {
				q.release(i, ifnameFor(n.Interface.Name, i), stale, true)
				q.events.forget(i)
			})
		case netif.IPv6Lost:
			lost := past
			if n.Interface.IPv6Disabled {
				lost = stale
			}
			w.each(func(q *requests) {
				if q.ipv6 {
					q.release(i, "", lost, false)
				}
			})
		case netif.Up:
			if w.lost.up == nil {
				w.lost.up = make(map[int]time.Time)
			}
			if _, ok := w.lost.up[i]; !ok { // the first of several
				w.lost.up[i] = n.Since
			}
		case netif.CarrierBack:
			if w.lost.carrier == nil {
				w.lost.carrier = make(map[int]bool)
			}
			w.lost.carrier[i] = true
		case netif.IPv6Back:
			if w.lost.ipv6 == nil {
				w.lost.ipv6 = make(map[int]bool)
			}
			w.lost.ipv6[i] = true
		case netif.Woke:
			w.lost.all = true
		}
		switch n.Kind {
		case netif.Down, netif.CarrierLost:
			w.emitLink(EventDown, n.Interface)
		case netif.Up, netif.CarrierBack:
			if n.Interface.Carrier {
				w.emitLink(EventUp, n.Interface)
			}
		}
	}
}

// emitLink tells each Conn and Pool, once, that an interface with memberships went
// down or came up.
func (w *watcher) emitLink(kind EventKind, link netif.Interface) {
	told := make(map[*events]bool)
	w.each(func(q *requests) {
		if !told[q.events] && (q.uses(link.Index) || q.events.isDown(link.Index)) {
			told[q.events] = true
			q.events.link(kind, link)
		}
	})
}

// each calls f for all requests, with their lock held.
func (w *watcher) each(f func(*requests)) {
	for _, q := range w.all() {
		q.mu.Lock()
		if !q.closed {
			f(q)
		}
		q.mu.Unlock()
	}
}

// A retry says what is to be tried again even without news.
type retry struct {
	failed   bool          // a join failed
	unrouted bool          // there is no route yet
	soon     time.Duration // a group was left too recently; 0: none was
	first    []func(int)   // to be called without a lock, before it is tried again at once; see tooSoon
}

func (r *retry) add(o retry) {
	r.failed, r.unrouted = r.failed || o.failed, r.unrouted || o.unrouted
	if r.soon == 0 || o.soon > 0 && o.soon < r.soon {
		r.soon = o.soon
	}
	r.first = append(r.first, o.first...)
}

// mend makes memberships agree with the interfaces.
func (w *watcher) mend() retry {
	lost := w.lost
	w.lost = losses{}
	return mend(w.all(), func(q *requests) {
		if q.unwatched { // nobody knows what has happened meanwhile
			q.unwatched = false
			q.refresh()
		}
		q.distrust(lost)
	})
}

// mend has requests hold what they are asked for.
func mend(qs []*requests, first func(*requests)) (again retry) {
	for tries := 1; ; tries++ {
		again = mendOnce(qs, first)
		if len(again.first) == 0 {
			return again
		}
		for _, f := range again.first {
			f(tries)
		}
		first = func(*requests) {}
	}
}

// mendOnce mends. A kernel announces a group again only after its last member
// left: all leave what is stale before any makes it anew.
func mendOnce(qs []*requests, first func(*requests)) (again retry) {
	mending.Lock()
	defer mending.Unlock()
	for _, q := range qs {
		q.mu.Lock()
	}
	for _, q := range qs {
		if !q.closed {
			first(q)
			q.leaveStale()
		}
	}
	for _, q := range qs {
		if !q.closed {
			again.add(q.reconcileAll())
		}
		if len(again.first) == 0 && q.patient == 0 {
			q.sockets.tidy()
		}
		q.mu.Unlock()
	}
	return again
}

// The rest are methods of requests that are called with q.mu held.

// release leaves the memberships on an interface, but those of the interface of
// that name, if there is one. gone says that they have none now.
func (q *requests) release(index int, but string, to trust, gone bool) {
	left := make(map[Group]bool)
	for _, l := range q.sockets.ledgers(netip.Addr{}) {
		l.each(func(addr netip.Addr, e *entry) {
			if e.index != index || but != "" && e.ifname == but {
				return
			}
			l.distrust(addr, e, to)
			q.lose(addr, e)
			// Whatever comes of it: there is nothing else that could be done.
			l.leave(addr, e)
			left[Group{addr, e.member}] = true
		})
	}
	for g := range left {
		if gone && q.isAbsent(g) {
			q.emitPending(g)
		}
	}
}

// emitPending tells, once, that a membership has no interface.
func (q *requests) emitPending(g Group) {
	was := q.absent[g]
	if was.pending {
		return
	}
	was.pending = true
	q.setAbsent(g, was)
	q.events.event(Event{Kind: EventPending, Group: g, Name: nameOf(g, was.ifname), Old: was.old})
}

// distrust marks the entries as stale that news says may be lost.
func (q *requests) distrust(lost losses) {
	for _, l := range q.sockets.ledgers(netip.Addr{}) {
		p := l.kernel.platform
		l.each(func(addr netip.Addr, e *entry) {
			// While an interface is down, or its IPv6 is off, Linux loses what is
			// changed in INCLUDE. The change may have come a little before the news.
			since, up := lost.up[e.index]
			loses := p.losesInclude && e.held.mode == Include
			changed := loses && started.Add(e.changed).After(since.Add(-time.Second))
			if lost.all || lost.carrier[e.index] || up && (p.upForgets || changed) || loses && l.ipv6 && lost.ipv6[e.index] {
				l.distrust(addr, e, stale)
				if e.trust != exact {
					q.lose(addr, e)
				}
			}
		})
	}
}

// leaveStale leaves what is to be made anew by reconcileAll.
func (q *requests) leaveStale() {
	for _, l := range q.sockets.ledgers(netip.Addr{}) {
		if l.spent != nil {
			continue
		}
		l.each(func(addr netip.Addr, e *entry) {
			if e.trust != exact {
				l.leave(addr, e)
			}
		})
	}
}

// reconcileAll has the sockets hold what is asked for.
func (q *requests) reconcileAll() (again retry) {
	for addr := range q.addrs() {
		targets, _ := q.targets(nil, addr, q.filter.states(addr), nil)
		q.loseElsewhere(addr, targets, Group{})
		again.failed = q.sockets.reconcile(addr, targets) != nil || again.failed
		q.publish(addr, targets)
		for _, t := range targets {
			var soon *tooSoon
			switch {
			case errors.As(t.err, &soon) && soon.first != nil:
				again.first = append(again.first, soon.first)
			case soon != nil:
				again.add(retry{soon: soon.wait})
			case t.err != nil:
				again.failed = true
			}
		}
		if a, ok := q.absent[Group{addr, ""}]; ok && a.pending {
			again.unrouted = true
		}
	}
	if q.follow != nil {
		q.follow()
	}
	return again
}

// addrs are the groups that are asked for, and those that are held.
func (q *requests) addrs() map[netip.Addr]struct{} {
	all := make(map[netip.Addr]struct{})
	for _, addr := range q.filter.addrs() {
		all[addr] = struct{}{}
	}
	for _, l := range q.sockets.ledgers(netip.Addr{}) {
		for addr := range l.groups.all {
			all[addr.Addr] = struct{}{}
		}
	}
	return all
}

// uses reports whether there are memberships on an interface.
func (q *requests) uses(index int) bool {
	for _, l := range q.sockets.ledgers(netip.Addr{}) {
		for _, es := range l.groups.all {
			if slices.ContainsFunc(es.all, func(e *entry) bool { return e.index == index }) {
				return true
			}
		}
	}
	return false
}

// refresh finds out, without news, what became of the interfaces: all entries
// are stale, and those whose interface is gone are past.
func (q *requests) refresh() {
	for _, l := range q.sockets.ledgers(netip.Addr{}) {
		l.each(func(addr netip.Addr, e *entry) {
			to := stale
			if !l.kernel.exists(e.index) {
				to = past
			}
			l.distrust(addr, e, to)
			if e.trust != exact {
				q.lose(addr, e)
			}
		})
	}
}

// repair makes all memberships of some requests anew, where their interfaces
// are now.
func repair(qs []*requests) error {
	for _, q := range qs {
		q.mu.Lock()
		opened, closed := q.opened, q.closed
		q.mu.Unlock()
		switch {
		case !opened:
			return opError("Repair", Group{}, netip.Addr{}, errNotOpen)
		case closed:
			return opError("Repair", Group{}, netip.Addr{}, net.ErrClosed)
		}
	}
	first := (*requests).refresh
	var errs []error
	for range 2 * mostWaits {
		again := mend(qs, first)
		errs = nil
		for _, q := range qs {
			q.mu.Lock()
			for g, a := range q.absent {
				if a.failed != "" {
					errs = append(errs, opError("Repair", g, netip.Addr{}, a.err))
				}
			}
			q.mu.Unlock()
		}
		if again.soon == 0 {
			break
		}
		time.Sleep(again.soon)
		first = func(*requests) {}
	}
	return errors.Join(errs...)
}

// end takes no requests any more, and forgets all memberships. The socket is
// closed next. Called without q.mu.
func (q *requests) end() (first bool) {
	q.mu.Lock()
	w := q.watched
	first = !q.closed
	if first {
		q.closed, q.watched, q.absent = true, nil, nil
		close(q.ending)
		for _, l := range q.sockets.ledgers(netip.Addr{}) {
			l.end(w != nil)
		}
		q.sockets.tidy()
		for _, m := range q.filter.Memberships() {
			q.filter.Set(Membership{Group: m.Group})
		}
	}
	q.mu.Unlock()
	if w != nil {
		w.remove(q)
	}
	return first
}
