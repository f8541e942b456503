package amt

import (
	"errors"
	"net/netip"
	"time"
)

// Timers and counts of RFC 7450 section 5.2.2.4, of RFC 8777 section 2.5, and
// of IGMPv3 (RFC 3376 section 8.11).
const (
	retryFirst      = time.Second       // the least time before a message is repeated
	retryMost       = 120 * time.Second // the longest such time
	requestTries    = 3                 // Requests without an answer, then the relay is lost
	relayKnown      = defaultInterval   // after that long without a Query, a relay is looked for anew
	silenceFirst    = 4 * time.Second   // subscribed, and nothing heard
	silenceMost     = 120 * time.Second
	silencePatience = 2                // times, then another relay is tried
	limitHoldDown   = 10 * time.Minute // a relay that set the L flag is left alone for that long
	silentHoldLeast = 3 * time.Minute  // one that brought nothing, for some time between these
	silentHoldMost  = 10 * time.Minute
	reportInterval  = time.Second // repetitions of a report follow within that time
	pathSize        = 1280        // bytes that any path takes (RFC 8200 section 5)
	reportSize      = pathSize - 40 - 8 - updateHeader
)

// What a relay is lost for.
var (
	errSilent      = errors.New("the relay does not answer")
	errUnreachable = errors.New("the relay is unreachable")
	errNothing     = errors.New("the relay brings nothing")
	errUnexpected  = errors.New("an answer to nothing that was asked")
	errLimit       = errors.New("the relay takes no new gateways")
)

// A link is how a session reaches the world.
type link interface {
	// send sends a message to a relay, and never waits.
	send(to netip.AddrPort, b []byte)
	// heard reports whether a datagram has come since it was last asked.
	heard() bool
	// event is told what happens. It must not call the session.
	event(Event)
	// nonce returns a number that nobody can guess, and never 0.
	nonce() uint32
	// between returns some time from the least to the most.
	between(least, most time.Duration) time.Duration
}

// A session is the gateway's half of RFC 7450 for one tunnel (section 5.2.3).
// It is pure logic: it is told the time, and calls its link. It has no lock.
//
// It looks for a relay among candidates while there are memberships, or while
// it is probing, then makes a handshake for each family of groups, and another
// one whenever the relay's query interval is over.
type session struct {
	link       link
	candidates []candidate
	probing    bool // a relay is wanted although there are no memberships

	// Discovery. At each step one candidate is asked; all may still answer.
	discovering bool
	step        int       // since the last Query
	asked       int       // steps of this search
	turn        int       // whose turn it is
	nonces      []uint32  // of the candidates, 0 if not asked yet
	nextStep    time.Time // when to take it
	silent      *found    // answered, but is to be left alone if there is another

	relay      netip.AddrPort // the current relay; zero: none yet
	index      int            // the candidate that led to it
	gateway    netip.AddrPort // where it sees this gateway; zero: it does not tell
	known      time.Time      // when it was found, or sent a Query
	handshakes [2]handshake   // for IPv4 and IPv6 groups
	teardowns  []repetition
	holdDown   map[netip.AddrPort]holdDown

	// Whether the tunnel brings anything.
	silences int // looks that found nothing
	nextLook time.Time
}

// found is a relay that a candidate led to.
type found struct {
	index int
	relay netip.AddrPort
}

// A holdDown is how long a relay is left alone: for good, because it refused,
// or if there is another one, because it brought nothing.
type holdDown struct {
	until   time.Time
	refused bool
}

// A handshake is what a session has with its relay for one family of groups.
type handshake struct {
	memberships

	up       bool   // the relay takes memberships
	mac      mac    // of the last Query
	macNonce uint32 // that belongs to it
	querier  generalQuery
	refresh  time.Time // when the next Request is due, while it is up

	asking  bool // a Request is unanswered
	nonce   uint32
	flags   byte // of the Request
	tries   int
	nextTry time.Time

	nextReport time.Time // of changes
}

// down notes that the relay knows no memberships: the next Query is answered
// with all there are.
func (h *handshake) down() { h.up, h.changes = false, nil }

// subscribed reports whether there is anything to be said to a relay.
func (h *handshake) subscribed() bool { return len(h.filters) > 0 || len(h.changes) > 0 }

// A repetition is a message that is sent several times.
type repetition struct {
	to    netip.AddrPort
	b     []byte
	times int
	next  time.Time
}

// set replaces the filter of a group.
func (s *session) set(now time.Time, group netip.Addr, f sourceFilter) {
	h := &s.handshakes[familyOf(group)]
	h.set(group, f, h.robustness())
	if !h.up {
		h.down()
	} else if len(h.changes) > 0 {
		h.nextReport = now
	}
	s.start(now)
	s.run(now)
}

func familyOf(group netip.Addr) int {
	if group.Is6() {
		return 1
	}
	return 0
}

func (h *handshake) robustness() int { return max(h.querier.robustness, 1) }

// wanted reports whether a handshake of that family is needed.
func (s *session) wanted(family int) bool {
	return s.probing || s.handshakes[family].subscribed()
}

func (s *session) subscribed() bool {
	return len(s.handshakes[0].filters)+len(s.handshakes[1].filters) > 0
}

// idle reports whether nothing is wanted and nothing left to be said.
func (s *session) idle() bool {
	return !s.wanted(0) && !s.wanted(1) && len(s.teardowns) == 0
}

// up reports whether the relay takes memberships of any family.
func (s *session) up() bool { return s.handshakes[0].up || s.handshakes[1].up }

// probe looks for a relay although there are no memberships.
func (s *session) probe(now time.Time) {
	s.probing = true
	s.start(now)
	s.run(now)
}

// setCandidates replaces the places to look for relays at.
func (s *session) setCandidates(now time.Time, candidates []candidate) {
	s.candidates = candidates
	s.nonces = make([]uint32, len(candidates))
	s.turn, s.index = 0, 0
	for i, c := range candidates {
		if c.addr == s.relay {
			s.index = i
		}
	}
	if s.discovering {
		s.nextStep = now
	}
	s.start(now)
	s.run(now)
}

// restart looks for a relay anew, because the network may have changed.
func (s *session) restart(now time.Time) {
	s.step = 0
	if !s.idle() {
		s.rediscover(now, s.index)
	}
	s.run(now)
}

// start begins what is missing for what is wanted.
func (s *session) start(now time.Time) {
	for f := range s.handshakes {
		h := &s.handshakes[f]
		if !s.wanted(f) || h.up || h.asking || s.discovering {
			continue
		}
		if !s.relay.IsValid() || now.Sub(s.known) > relayKnown {
			s.rediscover(now, s.index)
			return
		}
		s.ask(now, h)
	}
	if s.subscribed() && s.up() && s.nextLook.IsZero() {
		s.look(now)
	}
}

// deadline returns when run is to be called, the zero Time for never.
func (s *session) deadline() (next time.Time) {
	sooner := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	if s.discovering && len(s.candidates) > 0 {
		sooner(s.nextStep)
	}
	for f := range s.handshakes {
		h := &s.handshakes[f]
		if h.asking {
			sooner(h.nextTry)
		} else if h.up {
			sooner(h.refresh)
		}
		if h.up && len(h.changes) > 0 {
			sooner(h.nextReport)
		}
	}
	for _, t := range s.teardowns {
		sooner(t.next)
	}
	sooner(s.nextLook)
	return next
}

// run does what is due.
func (s *session) run(now time.Time) {
	due := func(t time.Time) bool { return !t.IsZero() && !now.Before(t) }
	if s.discovering && len(s.candidates) > 0 && due(s.nextStep) {
		s.discover(now)
	}
	for f := range s.handshakes {
		h := &s.handshakes[f]
		switch {
		case h.asking && due(h.nextTry):
			s.retry(now, f)
		case !h.asking && h.up && due(h.refresh):
			h.up = s.wanted(f)
			if h.up {
				s.ask(now, h)
			}
		}
		if h.up && len(h.changes) > 0 && due(h.nextReport) {
			s.report(h, h.changeRecords())
			h.nextReport = now.Add(s.link.between(0, reportInterval))
		}
	}
	for i := 0; i < len(s.teardowns); {
		t := &s.teardowns[i]
		if due(t.next) {
			s.link.send(t.to, t.b)
			t.next = now.Add(s.link.between(0, reportInterval))
			t.times--
		}
		if t.times > 0 {
			i++
			continue
		}
		s.teardowns = append(s.teardowns[:i], s.teardowns[i+1:]...)
	}
	if due(s.nextLook) {
		s.look(now)
	}
}

// backOff is the time before a message is repeated for the nth time: RFC 7450
// section 5.2.3.4.3, and likewise for Requests.
func (s *session) backOff(n int) time.Duration {
	return s.link.between(retryFirst, doubled(retryFirst, n, retryMost))
}

func doubled(d time.Duration, n int, most time.Duration) time.Duration {
	for ; n > 0 && d < most; n-- {
		d *= 2
	}
	return min(d, most)
}

// rediscover starts the search for a relay, at that candidate. The relay that
// there is keeps bringing what it brings until another one is found.
func (s *session) rediscover(now time.Time, first int) {
	if s.discovering {
		return
	}
	s.discovering, s.turn, s.asked, s.silent = true, first, 0, nil
	s.nonces = make([]uint32, len(s.candidates))
	for f := range s.handshakes {
		s.handshakes[f].asking = false
	}
	s.nextStep = now
	if s.step > 0 { // the search before has found nothing that works
		s.nextStep = now.Add(s.backOff(s.round()))
	}
}

// round is how often all candidates have been asked.
func (s *session) round() int { return s.step / max(len(s.candidates), 1) }

// discover asks the next candidate. With several, the others are not waited
// for any longer than a second in the first round (RFC 8777 section 2.4).
func (s *session) discover(now time.Time) {
	if s.asked >= len(s.candidates) && s.silent != nil {
		s.choose(now, s.silent.index, s.silent.relay)
		return
	}
	i := s.turn % len(s.candidates)
	c := s.candidates[i]
	s.turn++
	s.asked++
	s.step++
	s.nextStep = now.Add(s.backOff(s.round()))
	if c.direct {
		s.consider(now, i, c.addr)
		return
	}
	if s.nonces[i] == 0 {
		s.nonces[i] = s.link.nonce()
	}
	s.link.send(c.addr, discovery{s.nonces[i]}.append(nil))
}

// consider chooses a relay that has been found, unless it is to be left alone.
func (s *session) consider(now time.Time, i int, relay netip.AddrPort) {
	switch held := s.heldDown(now, relay); {
	case held == nil:
		s.choose(now, i, relay)
	case !held.refused:
		s.silent = &found{i, relay}
	}
}

// heldDown returns for how long a relay is left alone, nil if it is not.
func (s *session) heldDown(now time.Time, relay netip.AddrPort) *holdDown {
	held, ok := s.holdDown[relay]
	if !ok {
		return nil
	}
	if !now.Before(held.until) {
		delete(s.holdDown, relay)
		return nil
	}
	return &held
}

// leaveAlone keeps a relay from being chosen for a time.
func (s *session) leaveAlone(now time.Time, relay netip.AddrPort, d time.Duration, refused bool) {
	if s.holdDown == nil {
		s.holdDown = make(map[netip.AddrPort]holdDown)
	}
	for r := range s.holdDown {
		s.heldDown(now, r) // forgets what is over
	}
	s.holdDown[relay] = holdDown{now.Add(d), refused}
}

// choose makes a relay the current one.
func (s *session) choose(now time.Time, i int, relay netip.AddrPort) {
	s.discovering, s.index = false, i
	if relay != s.relay || !s.up() {
		s.link.event(Event{Kind: EventRelayFound, Relay: relay})
	}
	if relay != s.relay {
		s.abandon()
		s.relay, s.gateway = relay, netip.AddrPort{}
		for f := range s.handshakes {
			h := &s.handshakes[f]
			h.down()
			h.querier, h.flags = generalQuery{}, 0
		}
	}
	s.known = now
	for f := range s.handshakes {
		if s.wanted(f) {
			s.ask(now, &s.handshakes[f])
		}
	}
}

// abandon tells the current relay that nothing is wanted any more.
func (s *session) abandon() {
	for f := range s.handshakes {
		if h := &s.handshakes[f]; h.up {
			s.report(h, h.leaveRecords())
		}
	}
}

// lose gives the current relay up and looks for another one.
func (s *session) lose(now time.Time, reason error) {
	s.link.event(Event{Kind: EventRelayLost, Relay: s.relay, Err: reason})
	for f := range s.handshakes {
		s.handshakes[f].down()
	}
	s.nextLook = time.Time{}
	s.rediscover(now, s.index+1)
}

// ask starts a handshake: RFC 7450 section 5.2.3.5.
func (s *session) ask(now time.Time, h *handshake) {
	h.asking, h.nonce, h.tries = true, s.link.nonce(), 0
	s.request(now, h)
}

// request sends a Request, or repeats it, with the same nonce.
func (s *session) request(now time.Time, h *handshake) {
	h.tries++
	h.nextTry = now.Add(s.backOff(h.tries))
	if h == &s.handshakes[1] {
		switch {
		case h.flags == 0:
			h.flags = requestMLD
		case h.tries == requestTries && s.relay.Addr().Is4():
			// The Linux kernel's relay is silent to the P flag of the RFC and speaks
			// IPv4 outside; other relays take its flag for a Request for IGMP.
			h.flags ^= requestMLD | requestMLDLinux
		}
	}
	s.link.send(s.relay, request{h.flags, h.nonce}.append(nil))
}

// retry repeats a Request, or gives the relay up.
func (s *session) retry(now time.Time, f int) {
	h, other := &s.handshakes[f], &s.handshakes[1-f]
	switch {
	case h.tries < requestTries:
		s.request(now, h)
	case !h.subscribed() && other.asking:
		h.asking = false // the other family may be the one that the relay has
	case other.up && !h.up:
		// The relay is there, and does not do this family; perhaps later.
		h.tries = requestTries - 1
		s.request(now, h)
		h.nextTry = now.Add(retryMost)
	default:
		s.lose(now, errSilent)
	}
}

// unreachable is told that a relay or the network refused what was sent to it
// (ICMP). It is a hint that anybody can forge.
func (s *session) unreachable(now time.Time, relay netip.AddrPort) {
	if relay.IsValid() && relay != s.relay || s.discovering || !s.relay.IsValid() {
		return // other candidates are asked anyway
	}
	for f := range s.handshakes {
		h := &s.handshakes[f]
		switch {
		case h.asking && !h.up:
			s.step++ // not at once
			s.lose(now, errUnreachable)
			return
		case h.up && !h.asking:
			s.ask(now, h)
		}
	}
}

// look is the check that a subscribed tunnel brings something (RFC 8777 section
// 2.5). If not, a new handshake shows a relay that is gone or forgot, and an
// address that changed; after that, another relay may do better.
func (s *session) look(now time.Time) {
	first, heard := s.nextLook.IsZero(), s.link.heard()
	switch {
	case !s.subscribed() || !s.up():
		s.nextLook = time.Time{}
		return
	case heard:
		s.silences = 0
	case !first && !s.discovering:
		s.silences++
	}
	s.nextLook = now.Add(s.link.between(silenceFirst, doubled(silenceFirst, s.silences, silenceMost)))
	switch {
	case heard || first || s.discovering:
	case s.silences < silencePatience:
		for f := range s.handshakes {
			if h := &s.handshakes[f]; h.up && !h.asking && s.wanted(f) {
				s.ask(now, h)
			}
		}
	case s.alternative(now):
		s.leaveAlone(now, s.relay, s.link.between(silentHoldLeast, silentHoldMost), false)
		s.lose(now, errNothing)
	default:
		s.rediscover(now, s.index)
	}
}

// alternative reports whether another candidate may be tried.
func (s *session) alternative(now time.Time) bool {
	for i, c := range s.candidates {
		if i != s.index && s.heldDown(now, c.addr) == nil {
			return true
		}
	}
	return false
}

// receive takes a message other than Multicast Data.
func (s *session) receive(now time.Time, from netip.AddrPort, b []byte) error {
	kind, err := messageType(b)
	if err != nil {
		return err
	}
	switch kind {
	case typeAdvertisement:
		err = s.advertised(now, from, b)
	case typeQuery:
		err = s.queried(now, from, b)
	default:
		err = errType
	}
	s.run(now)
	return err
}

// advertised handles a Relay Advertisement: RFC 7450 section 5.2.3.4.
func (s *session) advertised(now time.Time, from netip.AddrPort, b []byte) error {
	m, err := parseAdvertisement(b)
	if err != nil {
		return err
	}
	if !s.discovering {
		return errUnexpected
	}
	for i, c := range s.candidates {
		if c.addr != from || s.nonces[i] == 0 || s.nonces[i] != m.nonce {
			continue
		}
		if !usableRelay(m.relay) || m.relay.Is4() != from.Addr().Is4() {
			return errAddress
		}
		s.consider(now, i, netip.AddrPortFrom(m.relay, from.Port()))
		return nil
	}
	return errUnexpected
}

// queried handles a Membership Query: RFC 7450 section 5.2.3.5.
func (s *session) queried(now time.Time, from netip.AddrPort, b []byte) error {
	m, err := parseQuery(b)
	if err != nil {
		return err
	}
	if from != s.relay {
		return errUnexpected
	}
	for f := range s.handshakes {
		h := &s.handshakes[f]
		if !h.asking || h.nonce != m.nonce {
			continue
		}
		q, err := parseGeneralQuery(m.packet, f == 1)
		if err != nil {
			if h.flags == requestMLDLinux {
				h.flags = requestMLD // it was taken for a Request for IGMP
			}
			return err
		}
		if m.limit && !(s.up() && s.subscribed()) {
			s.refused(now)
			return nil
		}
		s.answered(now, f, m, q)
		return nil
	}
	return errUnexpected
}

// refused leaves a relay alone that takes no new gateways (RFC 7450 section
// 5.2.3.5, the L flag).
func (s *session) refused(now time.Time) {
	s.link.event(Event{Kind: EventRefused, Relay: s.relay})
	s.leaveAlone(now, s.relay, limitHoldDown, true)
	s.step++ // not at once
	s.lose(now, errLimit)
}

// answered makes a handshake complete, and tells the relay the memberships.
func (s *session) answered(now time.Time, f int, m query, q generalQuery) {
	h := &s.handshakes[f]
	moved := s.gateway.IsValid() && m.gateway.IsValid() && m.gateway != s.gateway
	if moved {
		s.tearDown(now)
	}
	wasUp, first := h.up, !s.up()
	h.asking, h.up, h.mac, h.macNonce, h.querier = false, true, m.mac, m.nonce, q
	h.refresh = now.Add(q.interval)
	s.known, s.step = now, 0
	s.probing = false
	if m.gateway.IsValid() {
		s.gateway = m.gateway
	}
	switch {
	case moved:
		s.link.event(Event{Kind: EventNewAddress, Relay: s.relay, Address: m.gateway})
	case first:
		s.link.event(Event{Kind: EventTunnelUp, Relay: s.relay, Address: m.gateway})
	}
	if wasUp && !moved && s.silences == 0 {
		s.report(h, h.currentRecords())
	} else {
		// A relay that knows nothing of this gateway, or not at this address, or
		// has forgotten.
		h.noteAll(h.robustness())
		h.nextReport = now
	}
	if other := &s.handshakes[1-f]; moved && other.up {
		other.down() // its memberships were torn down too
		s.ask(now, other)
	}
	s.start(now)
}

// tearDown ends what the relay sends to the gateway's former address, with what
// was valid there: RFC 7450 section 5.2.3.7.
func (s *session) tearDown(now time.Time) {
	for f := range s.handshakes {
		if h := &s.handshakes[f]; h.up {
			m := teardown{h.mac, h.macNonce, s.gateway}
			s.teardowns = append(s.teardowns, repetition{to: s.relay, b: m.append(nil), times: h.robustness(), next: now})
			return
		}
	}
}

// report sends records in Membership Updates: RFC 7450 section 5.2.3.6.
func (s *session) report(h *handshake, records []record) {
	for _, packet := range reports(records, h == &s.handshakes[1], reportSize) {
		s.link.send(s.relay, update{h.mac, h.macNonce, packet}.append(nil))
	}
}

// close leaves all groups. Repetitions follow at once: there is no later.
func (s *session) close() {
	times := 1
	for f := range s.handshakes {
		times = max(times, s.handshakes[f].robustness())
	}
	for range times {
		for f := range s.handshakes {
			if h := &s.handshakes[f]; h.up {
				s.report(h, h.changeRecords())
			}
		}
		s.abandon()
		for _, t := range s.teardowns {
			s.link.send(t.to, t.b)
		}
	}
}
