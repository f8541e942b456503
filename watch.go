package mcast

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// An EventKind says what happened to a membership.
type EventKind uint8

const (
	// EventLost: the system lost the membership, in silence. It is made anew,
	// or pending, next.
	EventLost EventKind = iota
	// EventPending: the membership's interface is gone. It is kept, and made
	// anew when an interface of that name is there again.
	EventPending
	// EventRestored: the membership is back.
	EventRestored
	// EventFailed: the membership could not be made anew, and why. It stays
	// pending, and is tried again.
	EventFailed
)

// String returns "lost", "pending", "restored" or "failed".
func (k EventKind) String() string {
	if int(k) < 4 {
		return [...]string{"lost", "pending", "restored", "failed"}[k]
	}
	return fmt.Sprintf("EventKind(%d)", uint8(k))
}

// An Event tells of a membership that the system lost; see Config.OnEvent.
type Event struct {
	Kind  EventKind
	Group Group  // as in Memberships after the event
	Old   int    // the interface that it was on
	New   int    // the interface that it is on; 0: none
	Name  string // the interface's name
	Err   error  // of EventFailed
}

// String returns "restored 232.1.1.1 on eth0 (2, was 5)".
func (e Event) String() string {
	s := fmt.Sprintf("%v %v on %s", e.Kind, e.Group.Addr, e.Name)
	switch {
	case e.New != 0 && e.New != e.Old:
		s += fmt.Sprintf(" (%d, was %d)", e.New, e.Old)
	case e.Old != 0:
		s += fmt.Sprintf(" (%d)", e.Old)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// A place is where a membership belongs: an interface's name, whatever index
// that has, or if the routing table chose it, where routes to an address lead.
type place struct {
	group   Group // as the filter has it
	name    string
	chosen  netip.Addr // the address that was routed; the zero Addr: the caller named the interface
	changed time.Time  // the last change of an INCLUDE filter
}

// A link is an interface as the system describes it.
type link struct {
	index       int
	name        string
	up, running bool
	changes     int // how often its carrier came or went; 0: the system did not say
}

// A linkChange is news of a link.
type linkChange struct {
	link
	gone bool // only the index is known
}

// A linkSource is a system's way to tell of changes.
type linkSource interface {
	// read waits for news. The first ones are all links that there are.
	read() ([]linkChange, error)
	// close makes read return.
	close()
}

// links is what is known of the machine's interfaces, and what happened to
// them since the last mending.
type links struct {
	known map[int]*linkState
}

type linkState struct {
	link
	downAt  time.Time // when it was last seen to go down
	cameUp  bool      // since the last mending
	carrier bool      // came, while it was up, since the last mending
}

// apply takes in news, and reports the indexes that are gone.
func (l *links) apply(changes []linkChange, now time.Time) (gone []int) {
	if l.known == nil {
		l.known = make(map[int]*linkState)
	}
	for _, c := range changes {
		s := l.known[c.index]
		if c.gone {
			if s != nil {
				delete(l.known, c.index)
				gone = append(gone, c.index)
			}
			continue
		}
		if s != nil && c.changes != 0 && c.changes < s.changes {
			// What counts anew is another interface; the news of it got lost.
			gone = append(gone, c.index)
			s = nil
		}
		if s == nil {
			l.known[c.index] = &linkState{link: c.link}
			continue
		}
		if c.changes == 0 {
			c.changes = s.changes
		}
		switch {
		case s.up && !c.up:
			s.downAt = now
		case !s.up && c.up:
			// The kernel announces its memberships by itself.
			s.cameUp = true
		case s.up && c.running && (!s.running || c.changes > s.changes):
			// What was announced without a carrier, nobody has heard. A short
			// loss is told as one change, with the count two higher.
			s.carrier = true
		}
		s.link = c.link
	}
	return gone
}

// index finds the interface of a name.
func (l *links) index(name string) int {
	for i, s := range l.known {
		if s.name == name {
			return i
		}
	}
	return 0
}

// settle forgets what happened.
func (l *links) settle() {
	for _, s := range l.known {
		s.cameUp, s.carrier = false, false
	}
}

// The watcher mends the memberships of all Conns and Pools in the program. It
// runs while there are any that have or had memberships.
type watcher struct {
	mu      sync.Mutex // before a requests.mu never, after it only for moments
	members map[*requests]struct{}
	source  linkSource
	done    chan struct{} // closed when it has ended

	known sync.Map // of index to name, for requests

	mending sync.Mutex // one watcher may begin before the one before it has ended
}

var theWatcher watcher

const (
	settleTime  = 20 * time.Millisecond  // without news, before mending
	patience    = 200 * time.Millisecond // with news, before mending all the same
	mendingRest = 100 * time.Millisecond // between two mendings
	firstRetry  = 250 * time.Millisecond // after a mending that left something to try again
	lastRetry   = 30 * time.Second
	routeRetry  = 2 * time.Second // at most, where a route is to come
)

// add takes in the memberships of a Conn or Pool, and starts the watcher if it
// is the first. Called with q.mu held.
func (w *watcher) add(q *requests) {
	if q.watched || q.noWatch {
		return
	}
	q.watched = true
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.members == nil {
		w.members = make(map[*requests]struct{})
	}
	w.members[q] = struct{}{}
	if w.source != nil {
		return
	}
	source, err := openLinks()
	if err != nil {
		return // Repair is still there
	}
	first, err := source.read()
	if err != nil {
		source.close()
		return
	}
	w.source, w.done = source, make(chan struct{})
	var l links
	l.apply(first, time.Now())
	w.learn(&l)
	go w.run(source, w.done, &l)
}

// remove forgets a Conn or Pool, and ends the watcher with the last one.
func (w *watcher) remove(q *requests) {
	w.mu.Lock()
	delete(w.members, q)
	var done chan struct{}
	if len(w.members) == 0 && w.source != nil {
		w.source.close()
		w.source, done = nil, w.done
	}
	w.mu.Unlock()
	if done == nil {
		return
	}
	<-done
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.source == nil {
		w.known.Clear()
	}
}

// name gives the name of an interface.
func (w *watcher) name(index int, h host) string {
	if n, ok := w.known.Load(index); ok && h == theHost {
		return n.(string)
	}
	return h.name(index)
}

// learn makes the names of links known to requests.
func (w *watcher) learn(l *links) {
	for i, s := range l.known {
		if n, ok := w.known.Load(i); !ok || n != s.name {
			w.known.Store(i, s.name)
		}
	}
	w.known.Range(func(i, _ any) bool {
		if l.known[i.(int)] == nil {
			w.known.Delete(i)
		}
		return true
	})
}

// run reads news until the source is closed.
func (w *watcher) run(source linkSource, done chan struct{}, l *links) {
	news, stop := make(chan []linkChange), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(news)
		for {
			changes, err := source.read()
			if err != nil {
				return
			}
			select {
			case news <- changes:
			case <-stop:
				return
			}
		}
	})
	defer close(done)
	defer wg.Wait()
	defer close(stop)

	timer := time.NewTimer(time.Hour)
	timer.Stop()
	var since time.Time // the first news that is not mended yet
	var last time.Time  // the last mending
	retry := firstRetry
	for {
		select {
		case changes, ok := <-news:
			if !ok {
				return
			}
			now := time.Now()
			gone := l.apply(changes, now)
			w.learn(l)
			if len(gone) > 0 {
				// At once: an index that is in use again must not be left.
				w.each(func(q *requests) { q.release(gone) })
				closeGuards(gone)
			}
			if since.IsZero() {
				since, retry = now, firstRetry
			}
			wait := min(settleTime, patience-now.Sub(since))
			timer.Reset(max(wait, mendingRest-now.Sub(last)))
		case <-timer.C:
			since, last = time.Time{}, time.Now()
			switch failed, unrouted := w.mend(l); {
			case unrouted:
				timer.Reset(min(retry, routeRetry))
				retry = min(2*retry, lastRetry)
			case failed:
				timer.Reset(retry)
				retry = min(2*retry, lastRetry)
			}
		}
	}
}

// each calls f for all requests, with their lock held.
func (w *watcher) each(f func(*requests)) {
	for _, q := range w.all() {
		q.mu.Lock()
		if !q.closed {
			f(q)
			q.handOver()
		}
		q.mu.Unlock()
	}
}

func (w *watcher) all() []*requests {
	w.mu.Lock()
	defer w.mu.Unlock()
	qs := make([]*requests, 0, len(w.members))
	for q := range w.members {
		qs = append(qs, q)
	}
	return qs
}

// mend makes memberships agree with the links. It reports whether to try again
// even without news: a join failed, or there is no route yet.
func (w *watcher) mend(l *links) (failed, unrouted bool) {
	w.mending.Lock() // who takes the locks of several requests must be alone
	defer w.mending.Unlock()
	qs := w.all()
	// A kernel announces a group again only after the last socket has left it:
	// all leave before any joins.
	for _, q := range qs {
		q.mu.Lock()
	}
	for _, q := range qs {
		if !q.closed {
			q.leaveForMending(l, false)
		}
	}
	for _, q := range qs {
		if !q.closed {
			errs, none := q.joinAfterMending(l)
			failed, unrouted = failed || len(errs) > 0, unrouted || none
			q.handOver()
		}
		q.mu.Unlock()
	}
	l.settle()
	return failed, unrouted
}

// The rest are methods of requests that the watcher calls, with q.mu held.

// remember notes where a membership belongs, after a request changed it. If the
// routing table chose the interface, it was for the address chosen.
func (q *requests) remember(g Group, m status, chosen netip.Addr) {
	if q.part {
		return
	}
	if !m.member {
		delete(q.places, g)
		return
	}
	p := q.places[g]
	if p == nil {
		if q.places == nil {
			q.places = make(map[Group]*place)
		}
		theWatcher.add(q)
		p = &place{group: g, name: theWatcher.name(g.Interface, q.kernel.host), chosen: chosen}
		q.places[g] = p
	}
	if m.mode == Include {
		p.changed = time.Now()
	}
}

// event notes an event, to be handed over by deliver.
func (q *requests) event(kind EventKind, g Group, p *place, old int, err error) {
	e := Event{Kind: kind, Group: g, Old: old, Name: p.name, Err: err}
	if kind == EventRestored {
		e.New = g.Interface
	}
	q.events = append(q.events, e)
}

// release leaves the memberships of interfaces that are gone, and marks them as
// pending.
func (q *requests) release(gone []int) {
	for g := range q.places {
		if slices.Contains(gone, g.Interface) {
			q.suspend(g)
		}
	}
}

// suspend makes a membership pending.
func (q *requests) suspend(g Group) {
	p := q.places[g]
	m, ok := q.filter.Membership(g)
	if !ok || m.Pending || p == nil {
		return
	}
	// Whatever comes of it: there is nothing else that could be done.
	q.carrier().release(m, true, q.filter.count(g.Addr) == 1)
	q.filter.setPending(g, true)
	q.event(EventLost, g, p, g.Interface, nil)
	q.event(EventPending, g, p, g.Interface, nil)
}

// leaveForMending leaves what is to be joined again by joinAfterMending: what
// was lost, or everything. A membership whose index was gone is pending since
// then, so that this one is on the interface that has the index now.
func (q *requests) leaveForMending(l *links, everything bool) {
	for g, p := range q.places {
		had, s := q.filter.status(g), l.known[g.Interface]
		if !had.member || had.pending || s == nil {
			continue
		}
		p.name = s.name // it may have been renamed
		// While an interface is down, Linux loses what is changed in INCLUDE.
		// The change may have come a little before the news.
		lost := s.cameUp && had.mode == Include && p.changed.After(s.downAt.Add(-time.Second))
		if lost || s.carrier || everything {
			q.carrier().release(q.filter.membership(g), false, false)
			q.filter.setPending(g, true)
			q.event(EventLost, g, p, g.Interface, nil)
		}
	}
}

// joinAfterMending makes pending memberships anew whose interfaces are there.
// unrouted says that one follows the routing table and that has no route for
// it, of which there is no news.
func (q *requests) joinAfterMending(l *links) (errs []error, unrouted bool) {
	var pending []*place
	for _, m := range q.filter.Memberships() {
		if p := q.places[m.Group]; m.Pending && p != nil {
			pending = append(pending, p)
		}
	}
	for _, p := range pending {
		to := l.index(p.name)
		if to == 0 && p.chosen.IsValid() {
			to, _ = q.kernel.host.route(p.chosen)
			unrouted = unrouted || to == 0
		}
		if to == 0 {
			continue
		}
		err := q.resume(p, to)
		if errors.Is(err, net.ErrClosed) {
			break // it is about to end
		}
		if err != nil {
			q.event(EventFailed, p.group, p, p.group.Interface, err)
			errs = append(errs, err)
		}
	}
	return errs, unrouted
}

// resume makes a pending membership on an interface.
func (q *requests) resume(p *place, index int) error {
	old, g := p.group, Group{p.group.Addr, index}
	if have := q.filter.status(g); g != old && have.member && !have.pending {
		// The caller has joined it there already.
		q.forget(old)
		q.event(EventRestored, g, p, old.Interface, nil)
		return nil
	}
	m := q.filter.membership(old)
	m.Group, m.Pending = g, false
	err := q.prepareFor(g, false)
	if err == nil && q.shares(g, false, q.filter.count(g.Addr)-1) {
		err = q.share(m)
	} else if err == nil {
		_, err = q.carrier().setFull(Membership{Group: g}, m, q.filter.len())
	}
	if err != nil {
		return opError("Repair", g, netip.Addr{}, err)
	}
	if g != old {
		q.forget(old)
		if other := q.places[g]; other != nil {
			// It waits for the interface that had this index before.
			x := q.filter.membership(g)
			x.Group = old
			q.filter.Set(x)
			q.places[old], other.group = other, old
		}
		q.places[g], p.group = p, g
		p.name = theWatcher.name(index, q.kernel.host)
	}
	q.filter.Set(m)
	q.event(EventRestored, g, p, old.Interface, nil)
	return nil
}

// forget drops a pending membership.
func (q *requests) forget(g Group) {
	q.filter.Set(Membership{Group: g})
	delete(q.places, g)
}

// handOver has the events handed over, if there are any, by a goroutine of its
// own: the program may take its time.
func (q *requests) handOver() {
	if len(q.events) == 0 || q.delivering != nil {
		return
	}
	q.delivering = make(chan struct{})
	go func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.deliver()
	}()
}

// deliver hands over the events, without the lock. Whoever calls it has set
// delivering, so that there is one at a time.
func (q *requests) deliver() {
	defer func() {
		close(q.delivering)
		q.delivering, q.events = nil, nil
	}()
	for len(q.events) > 0 && !q.closed {
		e := q.events[0]
		q.events = q.events[1:]
		func() {
			q.mu.Unlock()
			defer q.mu.Lock()
			if q.notify != nil {
				q.notify(e)
			}
		}()
	}
}

// end takes no requests any more, forgets all memberships, and waits for an
// event that is being handed over, and for the watcher if this was the last.
// Called without q.mu.
func (q *requests) end() {
	q.mu.Lock()
	watched, delivering := q.watched, q.delivering
	q.closed, q.watched, q.places = true, false, nil
	for _, m := range q.filter.Memberships() {
		q.filter.Set(Membership{Group: m.Group})
	}
	q.mu.Unlock()
	if delivering != nil {
		<-delivering
	}
	if watched {
		theWatcher.remove(q)
	}
}

// repair mends without news: every membership is made anew where its
// interface is now.
func (q *requests) repair() error {
	l, err := currentLinks()
	if err != nil {
		return opError("Repair", Group{}, netip.Addr{}, err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return opError("Repair", Group{}, netip.Addr{}, net.ErrClosed)
	}
	var gone []int
	for g, p := range q.places {
		if s := l.known[g.Interface]; s == nil || s.name != p.name && l.index(p.name) != 0 {
			gone = append(gone, g.Interface)
		}
	}
	q.release(gone)
	q.leaveForMending(l, true)
	errs, _ := q.joinAfterMending(l)
	if len(q.events) > 0 && q.delivering == nil {
		q.delivering = make(chan struct{})
		q.deliver()
	}
	return errors.Join(errs...)
}
