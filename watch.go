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
	name    string
	chosen  netip.Addr // the address that was routed; the zero Addr: the caller named the interface
	changed time.Time  // the last change of an INCLUDE filter
	dead    bool       // its interface is gone: release it before anything else
	renew   bool       // to be left and joined again
}

// A link is an interface as the system describes it.
type link struct {
	index       int
	name        string
	up, running bool
	changes     int // how often its carrier came or went; 0: the system does not count
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
	downAt   time.Time // when it was last seen to go down
	lost     bool      // its carrier, while it was up
	cameUp   bool      // since the last mending
	carrier  bool      // came back since the last mending
	replaced bool      // the index was gone in between
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
		if s == nil {
			l.known[c.index] = &linkState{link: c.link, replaced: true}
			continue
		}
		switch {
		case s.up && !c.up:
			s.downAt, s.lost = now, false
		case !s.up && c.up:
			// The kernel announces its memberships by itself.
			s.cameUp, s.lost = true, false
		case s.up && s.running && !c.running:
			s.lost = true
		case s.up && c.running && (s.lost || s.running && c.changes > s.changes):
			// A short loss is told as one change, with the count two higher.
			s.carrier, s.lost = true, false
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
		s.cameUp, s.carrier, s.replaced = false, false, false
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
}

var theWatcher watcher

const (
	settleTime  = 20 * time.Millisecond  // without news, before mending
	patience    = 200 * time.Millisecond // with news, before mending all the same
	mendingRest = 100 * time.Millisecond // between two mendings
	firstRetry  = 250 * time.Millisecond // after a mending that left something to try again
	lastRetry   = 30 * time.Second
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
	w.source, w.done = source, make(chan struct{})
	var l links
	if first, err := source.read(); err == nil {
		l.apply(first, time.Now())
		w.learn(&l)
	}
	l.settle()
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
		w.known.Clear()
	}
	w.mu.Unlock()
	if done != nil {
		<-done
	}
}

// name gives the name of an interface.
func (w *watcher) name(index int, h host) string {
	if n, ok := w.known.Load(index); ok {
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
	wg.Add(1)
	go func() {
		defer wg.Done()
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
	}()
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
			}
			if since.IsZero() {
				since, retry = now, firstRetry
			}
			wait := min(settleTime, patience-now.Sub(since))
			timer.Reset(max(wait, mendingRest-now.Sub(last)))
		case <-timer.C:
			since, last = time.Time{}, time.Now()
			if again := w.mend(l); again {
				timer.Reset(retry)
				retry = min(2*retry, lastRetry)
			}
		}
	}
}

// each calls f for all requests, with their lock held, and then hands over the
// events.
func (w *watcher) each(f func(*requests)) {
	qs := w.all()
	for _, q := range qs {
		q.mu.Lock()
		if !q.closed {
			f(q)
		}
		q.mu.Unlock()
	}
	for _, q := range qs {
		q.deliver()
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
// even without news.
func (w *watcher) mend(l *links) (again bool) {
	qs := w.all()
	// A kernel announces a group again only after the last socket has left it:
	// all leave before any joins.
	for _, q := range qs {
		q.mu.Lock()
	}
	for _, q := range qs {
		if !q.closed {
			q.leaveForMending(l)
		}
	}
	for _, q := range qs {
		if !q.closed {
			again = q.joinAfterMending(l) || again
		}
	}
	for _, q := range qs {
		q.mu.Unlock()
	}
	l.settle()
	for _, q := range qs {
		q.deliver()
	}
	return again
}

// The rest are methods of requests that the watcher calls, with q.mu held.

// remember notes where a membership belongs, after a request changed it. If the
// routing table chose the interface, it was for the address chosen.
func (q *requests) remember(g Group, chosen netip.Addr) {
	m, ok := q.filter.Membership(g)
	if !ok {
		delete(q.places, g)
		return
	}
	p := q.places[g]
	if p == nil {
		if q.places == nil {
			q.places = make(map[Group]*place)
		}
		theWatcher.add(q)
		p = &place{name: theWatcher.name(g.Interface, q.kernel.host), chosen: chosen}
		q.places[g] = p
	}
	if m.Mode == Include {
		p.changed = time.Now()
	}
}

// event notes an event, to be handed over by deliver.
func (q *requests) event(kind EventKind, g Group, p *place, old int, err error) {
	e := Event{Kind: kind, Group: g, Old: old, Name: p.name, Err: err}
	if kind == EventRestored || kind == EventLost && !p.dead {
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
	p.dead = true
	// Whatever comes of it: there is nothing else that could be done.
	q.carrier().release(m, true)
	q.filter.setPending(g, true)
	q.event(EventLost, g, p, g.Interface, nil)
	q.event(EventPending, g, p, g.Interface, nil)
}

// leaveForMending leaves what is to be joined again.
func (q *requests) leaveForMending(l *links) {
	for g, p := range q.places {
		m, ok := q.filter.Membership(g)
		s := l.known[g.Interface]
		switch {
		case !ok || m.Pending || s == nil:
			continue
		case s.replaced && s.name != p.name:
			// The index belongs to another interface now.
			q.suspend(g)
			continue
		}
		p.name = s.name // it may have been renamed
		// While an interface is down, Linux loses what is changed in INCLUDE.
		// The change may have come a little before the news.
		lost := s.cameUp && m.Mode == Include && p.changed.After(s.downAt.Add(-time.Second))
		if lost || s.carrier || s.replaced || p.renew {
			q.renew(g, p, m, s.replaced)
		}
	}
}

// renew leaves a membership, to be joined again by joinAfterMending.
func (q *requests) renew(g Group, p *place, m Membership, stale bool) {
	q.carrier().release(m, stale)
	q.filter.setPending(g, true)
	p.renew, p.dead = false, false
	q.event(EventLost, g, p, g.Interface, nil)
}

// joinAfterMending makes pending memberships anew whose interfaces are there.
func (q *requests) joinAfterMending(l *links) (again bool) {
	for _, m := range q.filter.Memberships() {
		p := q.places[m.Group]
		if !m.Pending || p == nil {
			continue
		}
		to := l.index(p.name)
		if to == 0 && p.chosen.IsValid() {
			to, _ = q.kernel.host.route(p.chosen)
			again = again || to == 0
		}
		if to == 0 {
			continue
		}
		if err := q.resume(m, p, to); err != nil {
			q.event(EventFailed, m.Group, p, m.Group.Interface, err)
			again = true
		}
	}
	return again
}

// resume makes a pending membership on an interface.
func (q *requests) resume(m Membership, p *place, index int) error {
	old := m.Group
	m.Group.Interface, m.Pending = index, false
	if have, ok := q.filter.Membership(m.Group); ok && !have.Pending && m.Group != old {
		// The caller has joined it there already.
		q.filter.Set(Membership{Group: old})
		delete(q.places, old)
		return nil
	}
	nothing := Membership{Group: m.Group}
	err := q.prepareFor(m.Group, nothing)
	if err == nil {
		_, err = q.carrier().setFull(nothing, m, q.filter.len())
	}
	if err != nil {
		return opError("Repair", m.Group, netip.Addr{}, err)
	}
	if m.Group != old {
		q.filter.Set(Membership{Group: old})
		delete(q.places, old)
		p.name = theWatcher.name(index, q.kernel.host)
		q.places[m.Group] = p
	}
	p.dead = false
	q.filter.Set(m)
	q.event(EventRestored, m.Group, p, old.Interface, nil)
	return nil
}

// deliver hands over the events. No lock is held that a request takes, and
// after stopEvents none is handed over.
func (q *requests) deliver() {
	q.delivery.Lock()
	defer q.delivery.Unlock()
	for {
		q.mu.Lock()
		events := q.events
		q.events = nil
		closed := q.closed
		q.mu.Unlock()
		if closed || len(events) == 0 {
			return
		}
		for _, e := range events {
			if q.notify != nil {
				q.notify(e)
			}
		}
	}
}

// end takes no requests any more, forgets all memberships, and waits for an
// event that is being handed over, and for the watcher if this was the last.
// Called without q.mu.
func (q *requests) end() {
	q.mu.Lock()
	watched := q.watched
	q.closed, q.watched, q.places = true, false, nil
	for _, m := range q.filter.Memberships() {
		q.filter.Set(Membership{Group: m.Group})
	}
	q.mu.Unlock()
	q.delivery.Lock()
	defer q.delivery.Unlock()
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
	if q.closed {
		q.mu.Unlock()
		return opError("Repair", Group{}, netip.Addr{}, net.ErrClosed)
	}
	var gone []int
	for g, p := range q.places {
		if s := l.known[g.Interface]; s == nil || s.name != p.name && l.index(p.name) != 0 {
			gone = append(gone, g.Interface)
		}
		p.renew = true
	}
	q.release(gone)
	q.leaveForMending(l)
	q.joinAfterMending(l)
	var errs []error
	for _, e := range q.events {
		errs = append(errs, e.Err)
	}
	q.mu.Unlock()
	q.deliver()
	return errors.Join(errs...)
}
