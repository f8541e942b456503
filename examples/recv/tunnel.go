package main

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"example.com/mcast"
	"example.com/mcast/amt"
	"example.com/mcast/examples/internal/incoming"
)

// dial opens a tunnel, or what will be one.
func dial(ctx context.Context, at address, o options, show *display) (*amt.Gateway, error) {
	return amt.Dial(ctx, incoming.Relay(o.relay), &amt.Config{Ports: []int{at.port}, Timestamps: true, OnEvent: func(e amt.Event) {
		text := "relay " + e.Relay.String() + ": " + e.Kind.String()
		if e.Address.IsValid() {
			text += ", which sees this host as " + e.Address.String()
		}
		if e.Err != nil {
			text += ": " + e.Err.Error()
		}
		show.tunnel(e.Kind.String(), "%s", text)
	}})
}

// keptBy is what a tunnel kept from us.
func keptBy(g *amt.Gateway) (dropped, filtered uint64) {
	s := g.Stats()
	return s.Dropped + s.Unread, s.Filtered
}

// A wish is a channel, or a group from any source, whatever the interface:
// a tunnel has none.
type wish struct{ group, source netip.Addr }

func (w wish) channel() mcast.Channel {
	return mcast.Channel{Group: mcast.Group{Addr: w.group}, Source: w.source}
}

// A fallback receives through a tunnel what the network does not bring, while it
// does not.
type fallback struct {
	at      address
	options options
	show    *display
	gateway atomic.Pointer[amt.Gateway] // nil: not dialled

	mu     sync.Mutex                // also held while datagrams are counted, so that their order is that of the readers
	wishes map[wish]*incoming.Native // those of this receiver
}

func newFallback(at address, o options, show *display) *fallback {
	f := &fallback{at: at, options: o, show: show, wishes: map[wish]*incoming.Native{}}
	for _, ch := range o.channels {
		if at == (address{ch.Group.Addr.Is6(), ch.Port}) {
			f.wishes[wish{ch.Group.Addr, ch.Source}] = incoming.NewNative(o.after, time.Now())
		}
	}
	return f
}

func (f *fallback) kept() (dropped, filtered uint64) {
	if f == nil || f.gateway.Load() == nil {
		return 0, 0
	}
	return keptBy(f.gateway.Load())
}

// find returns what a datagram is of, and nil if nobody asked for it. The lock
// is held.
func (f *fallback) find(m *mcast.Message) (wish, *incoming.Native) {
	w := wish{m.Group.Addr, m.Source.Addr().WithZone("")}
	if f.wishes[w] == nil {
		w.source = netip.Addr{}
	}
	return w, f.wishes[w]
}

// native takes datagrams from the network. What they are of is not taken from
// the tunnel any more.
func (f *fallback) native(ms []mcast.Message, note func([]mcast.Message) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, now := f.gateway.Load(), time.Now()
	for i := range ms {
		w, n := f.find(&ms[i])
		if n == nil || !n.Heard(now) || g == nil {
			continue
		}
		// It fails if the tunnel could not join it either.
		if w.source.IsValid() {
			g.LeaveSource(w.channel().Group, w.source)
		} else {
			g.Leave(w.channel().Group)
		}
		f.show.tunnel("native", "%v arrives from the network, by %s: left in the tunnel", w.channel(), ms[i].Group.Interface)
	}
	return note(ms)
}

// tunnelled takes datagrams from the tunnel, and drops those of what the network
// brings.
func (f *fallback) tunnelled(ms []mcast.Message, note func([]mcast.Message) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for i := range ms {
		if _, of := f.find(&ms[i]); of != nil && of.Missing() {
			ms[n], ms[i] = ms[i], ms[n] // no buffer is lost
			n++
		}
	}
	return note(ms[:n])
}

// run waits until the network is silent, and from then on receives through a
// tunnel what is missing, until ctx ends.
func (f *fallback) run(ctx context.Context, note func([]mcast.Message) error) error {
	look := time.NewTicker(incoming.Look(f.options.after))
	defer look.Stop()
	g := f.open(ctx, look.C)
	if g == nil {
		return nil
	}
	defer g.Close()
	ended := make(chan error, 1)
	go func() {
		ended <- read(g, func(ms []mcast.Message) error { return f.tunnelled(ms, note) })
	}()
	for {
		select {
		case now := <-look.C:
			f.rejoin(g, now)
		case <-ctx.Done():
			g.SetReadDeadline(longAgo)
			return <-ended
		case err := <-ended:
			return err
		}
	}
}

// open dials when something is missing, until a relay answers, and joins what is
// missing then. It returns nil if ctx ends before.
func (f *fallback) open(ctx context.Context, look <-chan time.Time) *amt.Gateway {
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-look:
			missing := f.missing(now)
			if missing == "" {
				continue
			}
			f.show.tunnel("fallback", "nothing of %s in the network: trying a tunnel", missing)
		}
		g, err := dial(ctx, f.at, f.options, f.show)
		if err == nil {
			f.use(g)
			return g
		}
		if ctx.Err() == nil {
			f.show.tunnel("failed", "no tunnel: %v; again in %v", err, incoming.DialAgain)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(incoming.DialAgain):
		}
	}
}

// missing says what the network does not bring.
func (f *fallback) missing(now time.Time) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var texts []string
	for w, n := range f.wishes {
		n.Silent(now)
		if n.Missing() {
			texts = append(texts, w.channel().String())
		}
	}
	slices.Sort(texts)
	return strings.Join(texts, ", ")
}

// use joins in a new tunnel what is missing.
func (f *fallback) use(g *amt.Gateway) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gateway.Store(g)
	for w, n := range f.wishes {
		if n.Missing() {
			f.join(g, w)
		}
	}
}

// rejoin joins in the tunnel what the network does not bring any more.
func (f *fallback) rejoin(g *amt.Gateway, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for w, n := range f.wishes {
		if n.Silent(now) {
			f.show.tunnel("fallback", "nothing of %v in the network any more: joined in the tunnel", w.channel())
			f.join(g, w)
		}
	}
}

func (f *fallback) join(g *amt.Gateway, w wish) {
	if err := join(g, w.channel(), f.options.block); err != nil {
		f.show.tunnel("failed", "in the tunnel: %v", err)
	}
}
