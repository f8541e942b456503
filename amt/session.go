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

// set replaces the filter of a group.
func (s *session) set(now time.Time, group netip.Addr, f sourceFilter) {
	h := &s.handshakes[familyOf(group)]
	h.set(group, f, h.robustness())
	if !h.up {
		h.down()
	} else if len(h.changes) > 0 {
		h.nextReport = now
	}
	if soon := now.Add(silenceFirst); !f.none() && s.nextLook.After(soon) {
		s.nextLook, s.silences = soon, 0 // something new is to be heard
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

// waiting reports whether an answer of a relay is awaited.
func (s *session) waiting() bool {
	return s.discovering || s.handshakes[0].asking || s.handshakes[1].asking
}

// fruitless reports whether all candidates have been asked in vain.
func (s *session) fruitless() bool { return s.discovering && s.round() > 0 }

// probe looks for a relay although there are no memberships.
func (s *session) probe(now time.Time) {
	s.probing = true
	s.start(now)
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

// run does all that is due.
func (s *session) run(now time.Time) {
	for next := s.deadline(); !next.IsZero() && !next.After(now); next = s.deadline() {
		s.runOnce(now)
	}
}

func (s *session) runOnce(now time.Time) {
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

// unreachable is told that a relay or the network refused what was sent to it
// (ICMP). It is a hint that anybody can forge.
func (s *session) unreachable(now time.Time, relay netip.AddrPort) {
	if relay != s.relay || s.discovering || now.Sub(s.known) < retryFirst {
		return // other candidates are asked anyway, and what just answered is there
	}
	for f := range s.handshakes {
		h := &s.handshakes[f]
		switch {
		case h.asking && (!h.up || h.tries > 1):
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
		s.silences, s.discovering = 0, false // no better relay is needed
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

// close leaves all groups. Repetitions follow at once: there is no later.
func (s *session) close() {
	for f := range s.handshakes {
		h := &s.handshakes[f]
		times := h.robustness()
		for _, group := range sortedKeys(h.filters) {
			h.set(group, sourceFilter{}, times)
		}
		for ; h.up && times > 0; times-- {
			s.report(h, h.changeRecords())
		}
	}
	for _, t := range s.teardowns {
		s.link.send(t.to, t.b)
	}
}
