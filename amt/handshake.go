package amt

import (
	"net/netip"
	"time"
)

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
	tries   int
	nextTry time.Time

	flags     byte // of the Request that was answered last; 0: none
	sentFlags byte // of the last Request

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

func (h *handshake) robustness() int { return max(h.querier.robustness, 1) }

// abandon tells the current relay that nothing is wanted any more.
func (s *session) abandon() {
	for f := range s.handshakes {
		if h := &s.handshakes[f]; h.up {
			s.report(h, h.leaveRecords())
		}
	}
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
		h.sentFlags = max(h.flags, requestMLD)
		// The Linux kernel's relay is silent to the P flag of the RFC and speaks
		// IPv4 outside; other relays take its flag for a Request for IGMP.
		if h.tries >= requestTries && h.tries%2 == 1 && s.relay.Addr().Is4() {
			h.sentFlags ^= requestMLD | requestMLDLinux
		}
	}
	s.link.send(s.relay, request{h.sentFlags, h.nonce}.append(nil))
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
		s.request(now, h) // the relay is there, and perhaps does not do this family
	default:
		s.lose(now, errSilent)
	}
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
			if h.sentFlags == requestMLDLinux {
				// It was taken for a Request for IGMP.
				h.flags, h.nextTry = requestMLD, now.Add(retryFirst)
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

// answered makes a handshake complete, and tells the relay the memberships.
func (s *session) answered(now time.Time, f int, m query, q generalQuery) {
	h := &s.handshakes[f]
	moved := s.gateway.IsValid() && m.gateway.IsValid() && m.gateway != s.gateway
	if moved {
		s.tearDown(now)
	}
	wasUp, first := h.up, !s.up()
	h.asking, h.up, h.mac, h.macNonce, h.querier = false, true, m.mac, m.nonce, q
	h.flags, h.refresh = h.sentFlags, now.Add(q.interval)
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
