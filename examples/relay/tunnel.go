package main

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"example.com/mcast"
	"example.com/mcast/amt"
)

const (
	auto      = "auto"           // the relay that is looked for
	dialAgain = 30 * time.Second // after one that did not answer
)

// A fallback receives a channel from the network, or while that brings nothing
// through a tunnel of its own. Of the tunnel nothing is taken once the network
// has brought a datagram.
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
	tunnel   context.Context // ends with closed, or when the network has brought something
	leave    func()
	tasks    sync.WaitGroup
	gateway  atomic.Pointer[amt.Gateway] // nil: not dialled
	told     atomic.Bool                 // event was called

	mu        sync.Mutex
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
	f := &fallback{native: native, relay: relay, after: after, ch: ch, event: event, log: log, arrivals: make(chan arrival)}
	f.closed, f.close = context.WithCancel(context.Background())
	f.tunnel, f.leave = context.WithCancel(f.closed)
	if native != nil {
		f.tasks.Go(func() { f.read(f.closed, native.ReadBatch, false) })
	}
	f.tasks.Go(f.run)
	return f
}

// run waits, and dials until a relay answers. A viewer must not wait for that
// with the channel's lock.
func (f *fallback) run() {
	for wait := f.after; ; wait = dialAgain {
		select {
		case <-f.tunnel.Done():
			return
		case <-time.After(wait):
		}
		f.log.Info("trying a tunnel", "relay", f.relay)
		g, err := f.dial()
		if err == nil {
			f.gateway.Store(g)
			stop := context.AfterFunc(f.tunnel, func() { g.SetReadDeadline(time.Unix(1, 0)) }) // long ago: wakes the reader
			f.read(f.tunnel, g.ReadBatch, true)
			stop()
			g.Close()
			return
		}
		if f.tunnel.Err() == nil {
			f.log.Warn("no tunnel", "relay", f.relay, "error", err)
			f.tell(err)
		}
	}
}

// tell tells what is wrong, or that nothing is any more, as a Conn does.
func (f *fallback) tell(err error) {
	f.told.Store(true)
	e := mcast.Event{Kind: mcast.EventRestored, Group: f.ch.Group}
	if err != nil {
		e.Kind, e.Err = mcast.EventFailed, err
	}
	f.event(e)
}

// dial opens the tunnel and joins.
func (f *fallback) dial() (*amt.Gateway, error) {
	relay := f.relay
	if relay == auto {
		relay = ""
	}
	g, err := amt.Dial(f.tunnel, relay, &amt.Config{AnySource: true, Ports: []int{f.ch.Port}, Logger: f.log, OnEvent: func(e amt.Event) {
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
	group := mcast.Group{Addr: f.ch.Group.Addr}
	if f.ch.Source.IsValid() {
		err = g.JoinSource(group, f.ch.Source)
	} else {
		err = g.Join(group)
	}
	if err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// read hands over what arrives, one batch after the other.
func (f *fallback) read(ctx context.Context, readBatch func([]mcast.Message) (int, error), tunnelled bool) {
	ms := make([]mcast.Message, batch)
	for i := range ms {
		ms[i].Buf = make([]byte, 1<<16)
	}
	a := arrival{tunnelled: tunnelled, taken: make(chan struct{}, 1)}
	for {
		n, err := readBatch(ms)
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		a.ms, a.err = ms[:n], err
		select {
		case f.arrivals <- a:
			<-a.taken
		case <-ctx.Done():
			return
		}
	}
}

// ReadBatch returns datagrams of the network, or of the tunnel until there are
// such. ms has room for a batch.
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

func (f *fallback) take(ms []mcast.Message, a arrival) (n int) {
	switch {
	case a.tunnelled && f.tunnel.Err() != nil:
		return 0
	case !a.tunnelled && len(a.ms) > 0 && f.tunnel.Err() == nil:
		f.leave()
		if f.gateway.Load() != nil {
			f.log.Info("the network brings it: left the tunnel")
		}
		if f.told.Load() {
			f.tell(nil) // whatever was wrong with the tunnel
		}
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
	if g := f.gateway.Load(); g != nil && f.tunnel.Err() == nil {
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
		if g := f.gateway.Load(); g != nil {
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
	if g := f.gateway.Load(); g != nil {
		s := g.Stats()
		sum.Received += s.Received
		sum.Filtered += s.Filtered
		sum.Dropped += s.Dropped + s.Unread
		if f.tunnel.Err() == nil {
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
