package main

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"net"
	"sync"
	"time"

	"example.com/mcast"
	"example.com/mcast/amt"
	"example.com/mcast/examples/internal/incoming"
)

// A fallback receives a channel from the network, and through a tunnel of its own
// while the network does not bring it.
type fallback struct {
	native receiver // nil: there is only the tunnel
	relay  string
	after  time.Duration // of silence
	ch     mcast.Channel
	event  func(mcast.Event)
	log    *slog.Logger

	arrivals chan arrival
	closed   context.Context
	close    func()
	tasks    sync.WaitGroup

	telling sync.Mutex // while event is called
	told    bool       // it was, for what is wrong with the tunnel

	mu        sync.Mutex
	network   *incoming.Native
	gateway   *amt.Gateway     // nil: not dialled
	counts    mcast.GroupStats // of the tunnel
	truncated uint64           // here
}

// An arrival is what one of the readers read. It waits until that was taken.
type arrival struct {
	ms        []mcast.Message
	err       error
	tunnelled bool
	taken     chan struct{}
}

// listenOr returns what opens channels, by the network or through tunnels to a
// relay.
func listenOr(relay string, after time.Duration) func(mcast.Channel, func(mcast.Event), *slog.Logger) (receiver, error) {
	return func(ch mcast.Channel, event func(mcast.Event), log *slog.Logger) (receiver, error) {
		var native receiver
		if after > 0 {
			var err error
			if native, err = listen(ch, event, log); err != nil {
				return nil, err
			}
		}
		return newFallback(native, relay, after, ch, event, log), nil
	}
}

func newFallback(native receiver, relay string, after time.Duration, ch mcast.Channel, event func(mcast.Event), log *slog.Logger) *fallback {
	f := &fallback{
		native: native, relay: relay, after: after, ch: ch, event: event, log: log,
		arrivals: make(chan arrival), network: incoming.NewNative(after, time.Now()),
	}
	f.closed, f.close = context.WithCancel(context.Background())
	if native != nil {
		f.tasks.Go(func() { f.read(native.ReadBatch, false) })
	}
	f.tasks.Go(f.run)
	return f
}

// run sees to the tunnel while the network is silent. A viewer must not wait for
// that with the channel's lock.
func (f *fallback) run() {
	look := time.NewTicker(incoming.Look(f.after))
	defer look.Stop()
	var again time.Time // when to dial, after a relay that did not answer
	for {
		select {
		case <-f.closed.Done():
			if g, _ := f.tunnel(); g != nil {
				g.Close()
			}
			return
		case now := <-look.C:
			f.fall(now)
			if g, missing := f.tunnel(); g != nil || !missing || now.Before(again) {
				continue
			}
		}
		f.log.Info("trying a tunnel", "relay", f.relay)
		g, err := f.dial()
		if err == nil {
			f.tasks.Go(func() { f.read(g.ReadBatch, true) })
			continue
		}
		again = time.Now().Add(incoming.DialAgain)
		if f.closed.Err() == nil {
			f.log.Warn("no tunnel", "relay", f.relay, "error", err)
			f.tell(err)
		}
	}
}

// tunnel returns the tunnel, nil if nothing was dialled yet, and whether it is
// what the channel comes from: the network does not bring it.
func (f *fallback) tunnel() (g *amt.Gateway, missing bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gateway, f.network.Missing()
}

// fall joins in the tunnel, if there is one already, when the network has become
// silent.
func (f *fallback) fall(now time.Time) {
	f.mu.Lock()
	silent, g := f.network.Silent(now), f.gateway
	var err error
	if silent && g != nil {
		f.log.Info("the network is silent: joined in the tunnel")
		err = f.join(g)
	}
	f.mu.Unlock()
	if silent && g != nil && (err != nil || len(g.Relays()) > 0) {
		f.tell(err)
	}
}

// tell tells what is wrong with the tunnel, nil for nothing, as a Conn does.
// While the network brings the channel nothing is.
func (f *fallback) tell(wrong error) {
	f.telling.Lock()
	defer f.telling.Unlock()
	if _, missing := f.tunnel(); !missing {
		if !f.told {
			return
		}
		wrong = nil
	}
	f.told = wrong != nil
	e := mcast.Event{Kind: mcast.EventRestored, Group: f.ch.Group}
	if wrong != nil {
		e.Kind, e.Err = mcast.EventFailed, wrong
	}
	f.event(e)
}

// dial opens the tunnel, and joins in it unless the network brings the channel
// by now.
func (f *fallback) dial() (*amt.Gateway, error) {
	g, err := amt.Dial(f.closed, incoming.Relay(f.relay), &amt.Config{AnySource: true, Ports: []int{f.ch.Port}, Logger: f.log, OnEvent: func(e amt.Event) {
		switch e.Kind {
		case amt.EventTunnelUp:
			f.tell(nil)
		case amt.EventRelayLost, amt.EventRefused:
			f.tell(e.Err)
		}
	}})
	if err != nil {
		return nil, err
	}
	if err := f.use(g); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

func (f *fallback) use(g *amt.Gateway) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.network.Missing() {
		if err := f.join(g); err != nil {
			return err
		}
	}
	f.gateway = g
	return nil
}

// group is the channel's, in a tunnel.
func (f *fallback) group() mcast.Group { return mcast.Group{Addr: f.ch.Group.Addr} }

func (f *fallback) join(g *amt.Gateway) error {
	return incoming.Join(g, mcast.Channel{Group: f.group(), Source: f.ch.Source})
}

// read hands over what arrives, one batch after the other.
func (f *fallback) read(readBatch func([]mcast.Message) (int, error), tunnelled bool) {
	ms := make([]mcast.Message, batch)
	for i := range ms {
		ms[i].Buf = make([]byte, 1<<16)
	}
	a := arrival{tunnelled: tunnelled, taken: make(chan struct{}, 1)}
	for {
		n, err := readBatch(ms)
		if f.closed.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		a.ms, a.err = ms[:n], err
		select {
		case f.arrivals <- a:
			<-a.taken
		case <-f.closed.Done():
			return
		}
	}
}

// ReadBatch returns datagrams of the network, and of the tunnel while there are
// no such. ms has room for a batch.
func (f *fallback) ReadBatch(ms []mcast.Message) (int, error) {
	for {
		select {
		case <-f.closed.Done():
			return 0, net.ErrClosed
		case a := <-f.arrivals:
			n, err := f.take(ms, a), a.err
			a.taken <- struct{}{}
			if n > 0 || err != nil {
				return n, err
			}
		}
	}
}

// heard leaves the channel in the tunnel when the network brings it.
func (f *fallback) heard() {
	f.mu.Lock()
	back := f.network.Heard(time.Now())
	if back && f.gateway != nil {
		f.log.Info("the network brings it: left in the tunnel")
		f.gateway.Leave(f.group()) // it fails if the tunnel could not join it either
	}
	f.mu.Unlock()
	if back {
		f.tell(nil) // whatever was wrong with the tunnel
	}
}

func (f *fallback) take(ms []mcast.Message, a arrival) (n int) {
	if !a.tunnelled && len(a.ms) > 0 {
		f.heard()
	}
	if _, missing := f.tunnel(); a.tunnelled && !missing {
		return 0
	}
	n = min(len(ms), len(a.ms))
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range n {
		b := ms[i].Buf
		ms[i] = a.ms[i]
		ms[i].Buf, ms[i].N = b, copy(b, a.ms[i].Buf[:a.ms[i].N])
		ms[i].Truncated = ms[i].Truncated || ms[i].N < a.ms[i].N
		if a.tunnelled {
			f.counts.Received++
			f.counts.Bytes += uint64(ms[i].N)
			f.counts.Last = time.Now()
		}
		if ms[i].Truncated && !a.ms[i].Truncated {
			f.truncated++
		}
	}
	return n
}

// Memberships returns that of the tunnel while there is one, and that of the
// network otherwise.
func (f *fallback) Memberships() []mcast.Membership {
	if g, missing := f.tunnel(); g != nil && missing {
		return g.Memberships()
	}
	switch {
	case f.native != nil:
		return f.native.Memberships()
	case f.closed.Err() == nil:
		m := mcast.Membership{Group: mcast.Group{Addr: f.ch.Group.Addr, Interface: amt.Interface}, Pending: true}
		if !f.ch.Source.IsValid() {
			m.Mode = mcast.Exclude
		} else {
			m.Sources = append(m.Sources, f.ch.Source)
		}
		return []mcast.Membership{m}
	}
	return nil
}

// GroupStats yields the counts of the network and of the tunnel together.
func (f *fallback) GroupStats() iter.Seq2[mcast.Group, mcast.GroupStats] {
	return func(yield func(mcast.Group, mcast.GroupStats) bool) {
		f.mu.Lock()
		sum := f.counts
		f.mu.Unlock()
		if g, _ := f.tunnel(); g != nil {
			sum.Filtered += g.Stats().Filtered
		}
		if f.native != nil {
			for _, s := range f.native.GroupStats() {
				sum.Received += s.Received
				sum.Bytes += s.Bytes
				sum.Filtered += s.Filtered
				if s.Last.After(sum.Last) {
					sum.Last = s.Last
				}
			}
		}
		yield(f.ch.Group, sum)
	}
}

// Stats returns the counts of the network and of the tunnel together.
func (f *fallback) Stats() (sum mcast.Stats) {
	if f.native != nil {
		sum = f.native.Stats()
	}
	f.mu.Lock()
	sum.Truncated += f.truncated
	f.mu.Unlock()
	if g, missing := f.tunnel(); g != nil {
		s := g.Stats()
		sum.Received += s.Received
		sum.Filtered += s.Filtered
		sum.Dropped += s.Dropped + s.Unread
		if missing {
			sum.ReadBuffer = s.ReadBuffer
		}
	}
	return sum
}

// Close leaves the channel, in the network and in the tunnel.
func (f *fallback) Close() (err error) {
	f.close()
	if f.native != nil {
		err = f.native.Close()
	}
	f.tasks.Wait()
	return err
}
