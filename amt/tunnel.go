package amt

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/mcast"
)

// A socket is what a tunnel needs of an [mcast.Conn].
type socket interface {
	ReadBatch(ms []mcast.Message) (int, error)
	SetReadDeadline(t time.Time) error
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
	Stats() mcast.Stats
	Close() error
}

// listenUDP opens a socket for a tunnel.
func (g *Gateway) listenUDP(network string) (socket, error) {
	c, err := mcast.Listen(network, ":0", &mcast.Config{
		ReadBuffer: g.cfg.ReadBuffer, Timestamps: g.cfg.Timestamps, Unicast: true, NoWatch: true, Logger: g.cfg.Logger,
		Control: askForUnreachable,
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// A tunnel is a session with its sockets, one for each family of relays. Each
// tunnel has its own, so that a relay takes each for a gateway.
type tunnel struct {
	gateway    *Gateway
	filter     *mcast.Filter // what this tunnel is to bring
	candidates []candidate   // that it was made for
	lookup     lookup

	relay   atomic.Pointer[netip.AddrPort] // from which datagrams are taken
	waiting atomic.Bool                    // an answer of a relay is awaited
	traffic atomic.Bool                    // a datagram was heard
	blocked atomic.Bool                    // there are more than are read

	mu        sync.Mutex
	session   session
	drains    [2]*drain // of the sockets, IPv4 and IPv6
	sendError error     // the last one
	events    []Event   // not yet told
	probed    chan error
	looking   bool      // lookup is under way
	looked    time.Time // when it last ended
	idleSince time.Time
	closed    bool

	wake  chan struct{} // the session's deadline may be another one
	hurry chan struct{} // waiting has become true

	ctx    context.Context // until the tunnel is closed
	cancel context.CancelFunc
}

// A lookup finds the candidates of a tunnel. It is nil if they cannot change.
type lookup func(ctx context.Context) ([]candidate, error)

// lookupInterval is the least time between two lookups for a tunnel.
const lookupInterval = time.Minute

// startTunnel makes a tunnel. The Gateway's lock is held.
func (g *Gateway) startTunnel(candidates []candidate, lookup lookup, filter *mcast.Filter) *tunnel {
	t := &tunnel{
		gateway: g, filter: filter, lookup: lookup, candidates: slices.Clone(candidates), looked: time.Now(),
		wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1),
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.session = session{link: t, candidates: candidates, nonces: make([]uint32, len(candidates))}
	g.tunnels = append(g.tunnels, t)
	g.running.Go(t.run)
	return t
}

// do calls f with the session, and sees to what that leads to.
func (t *tunnel) do(f func(now time.Time)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		f(time.Now())
		t.publish()
		signal(t.wake)
	}
}

// publish tells the readers what the session has become.
func (t *tunnel) publish() {
	if relay := t.session.relay; relay.IsValid() {
		if old := t.relay.Load(); old == nil || *old != relay {
			t.relay.Store(&relay)
		}
		if !t.session.discovering {
			t.closeSocket(1 - familyOf(relay.Addr())) // no relay is asked there
		}
	}
	waiting := t.session.waiting()
	if t.waiting.Swap(waiting) != waiting && waiting {
		signal(t.hurry)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// set replaces the filter of a group.
func (t *tunnel) set(m mcast.Membership) {
	t.do(func(now time.Time) {
		t.session.set(now, m.Group.Addr, sourceFilter{m.Mode == mcast.Exclude, m.Sources})
	})
}

func (t *tunnel) isUp(family int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.session.handshakes[family].up
}

// probe waits until a relay takes memberships.
func (t *tunnel) probe(ctx context.Context) error {
	probed := make(chan error, 1)
	t.do(func(now time.Time) {
		t.probed = probed
		t.session.probe(now)
	})
	select {
	case err := <-probed:
		return err
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	err := context.Cause(ctx)
	if t.sendError != nil {
		err = errors.Join(err, t.sendError)
	}
	return fmt.Errorf("%w answers at %v: %w", ErrNoRelay, t.candidates[0].addr, err)
}

// run has the session do what is due, and tells what happened.
func (t *tunnel) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-t.wake:
		case <-t.ctx.Done():
			return
		}
		t.mu.Lock()
		now := time.Now()
		t.session.run(now)
		t.publish()
		next := t.session.deadline()
		events := t.events
		t.events = nil
		retire := t.retireAt(now)
		t.lookAgain(now)
		t.mu.Unlock()

		for _, e := range events {
			t.gateway.notify(e)
		}
		if !retire.IsZero() {
			if !now.Before(retire) && t.gateway.retire(t) {
				return
			}
			if next.IsZero() || retire.Before(next) {
				next = retire
			}
		}
		wait := time.Hour
		if !next.IsZero() {
			wait = next.Sub(now)
		}
		timer.Reset(wait)
	}
}

// retireAt returns when a tunnel that nobody needs is to end, zero for not at
// all. The one of a Gateway that was given a relay stays.
func (t *tunnel) retireAt(now time.Time) time.Time {
	switch {
	case !t.session.idle() || t.filter == &t.gateway.filter:
		t.idleSince = time.Time{}
		return time.Time{}
	case t.idleSince.IsZero():
		t.idleSince = now
	}
	return t.idleSince.Add(relayKnown)
}

// lookAgain looks the candidates up anew when none of them is any good.
func (t *tunnel) lookAgain(now time.Time) {
	if t.lookup == nil || t.looking || !t.session.fruitless() || now.Sub(t.looked) < lookupInterval {
		return
	}
	t.looking = true
	t.gateway.running.Go(func() {
		found, err := t.lookup(t.ctx)
		t.do(func(now time.Time) {
			t.looking, t.looked = false, now
			if err == nil && len(found) > 0 && !sameCandidates(found, t.session.candidates) {
				t.session.setCandidates(now, found)
			}
		})
	})
}

// sameCandidates reports whether two lists have the same candidates.
func sameCandidates(a, b []candidate) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(c candidate) bool { return !slices.Contains(b, c) })
}

// close leaves all groups.
func (t *tunnel) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.session.close()
	t.closed = true
	t.cancel()
	for family := range t.drains {
		t.closeSocket(family)
	}
}

// closeSocket closes the socket to relays of a family, if there is one.
func (t *tunnel) closeSocket(family int) {
	if d := t.drains[family]; d != nil {
		t.drains[family] = nil
		t.gateway.counters.dropped.Add(d.socket.Stats().Dropped)
		t.gateway.drains.remove(d)
		d.socket.Close()
	}
}

// The rest is the session's link.

func (t *tunnel) send(to netip.AddrPort, b []byte) {
	c, err := t.socket(familyOf(to.Addr()))
	if err == nil {
		if _, err = c.WriteToUDPAddrPort(b, to); isUnreachable(err) {
			// The system told of something earlier, and sent nothing.
			_, err = c.WriteToUDPAddrPort(b, to)
		}
	}
	t.sendError = err
}

// socket returns the socket to relays of a family, and opens it if need be.
func (t *tunnel) socket(family int) (socket, error) {
	if d := t.drains[family]; d != nil {
		return d.socket, nil
	}
	c, err := t.gateway.listen([...]string{"udp4", "udp6"}[family])
	if err != nil {
		return nil, err
	}
	d := newDrain(t, c)
	t.drains[family] = d
	t.gateway.drains.add(d)
	t.gateway.running.Go(d.keep)
	return c, nil
}

func (t *tunnel) heard() bool { return t.traffic.Swap(false) || t.blocked.Load() }

func (t *tunnel) event(e Event) {
	t.events = append(t.events, e)
	signal(t.wake)
	if t.probed == nil {
		return
	}
	switch {
	case e.Kind == EventTunnelUp:
		t.probed <- nil
	case e.Kind == EventRefused && len(t.session.candidates) == 1:
		t.probed <- fmt.Errorf("%v: %w", e.Relay, ErrRefused)
	default:
		return
	}
	t.probed = nil
}

func (t *tunnel) nonce() uint32 {
	for {
		var b [4]byte
		rand.Read(b[:])
		if n := binary.BigEndian.Uint32(b[:]); n != 0 { // a relay is silent to 0
			return n
		}
	}
}

func (t *tunnel) between(least, most time.Duration) time.Duration {
	return least + time.Duration(mathrand.Int64N(int64(most-least)+1))
}

// isUnreachable reports whether an error of a socket is what an ICMP message
// said.
func isUnreachable(err error) bool {
	return err != nil && slices.ContainsFunc(unreachableErrors, func(e error) bool { return errors.Is(err, e) })
}
