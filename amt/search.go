package amt

import (
	"net/netip"
	"time"
)

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

// lose gives the current relay up and looks for another one.
func (s *session) lose(now time.Time, reason error) {
	s.link.event(Event{Kind: EventRelayLost, Relay: s.relay, Err: reason})
	s.abandon() // it may be there all the same
	for f := range s.handshakes {
		s.handshakes[f].down()
		s.handshakes[f].asking = false
	}
	s.nextLook = time.Time{}
	s.rediscover(now, s.index+1)
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
		s.consider(now, i, netip.AddrPortFrom(m.relay.WithZone(from.Addr().Zone()), from.Port()))
		return nil
	}
	return errUnexpected
}

// refused leaves a relay alone that takes no new gateways (RFC 7450 section
// 5.2.3.5, the L flag).
func (s *session) refused(now time.Time) {
	s.link.event(Event{Kind: EventRefused, Relay: s.relay, Err: ErrRefused})
	s.leaveAlone(now, s.relay, limitHoldDown, true)
	s.step++ // not at once
	s.lose(now, ErrRefused)
}
