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
)

// auto is the relay that is looked for.
const auto = "auto"

// dialAgain is how long a relay is left alone that did not answer.
const dialAgain = 30 * time.Second

// dial opens a tunnel, or what will be one.
func dial(ctx context.Context, at address, o options, show *display) (*amt.Gateway, error) {
	relay := o.relay
	if relay == auto {
		relay = ""
	}
	return amt.Dial(ctx, relay, &amt.Config{Ports: []int{at.port}, Timestamps: true, OnEvent: func(e amt.Event) {
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

// A fallback receives through a tunnel what the network does not bring.
type fallback struct {
	at      address
	options options
	show    *display
	gateway atomic.Pointer[amt.Gateway] // nil: not dialled

	mu      sync.Mutex    // also held while datagrams are counted, so that their order is that of the readers
	missing map[wish]bool // what the network has not brought so far
}

func newFallback(at address, o options, show *display) *fallback {
	f := &fallback{at: at, options: o, show: show, missing: map[wish]bool{}}
	for _, ch := range o.channels {
		if at == (address{ch.Group.Addr.Is6(), ch.Port}) {
			f.missing[wish{ch.Group.Addr, ch.Source}] = true
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

// find returns what of the missing a datagram is of. The lock is held.
func (f *fallback) find(m *mcast.Message) (wish, bool) {
	w := wish{m.Group.Addr, m.Source.Addr().WithZone("")}
	if !f.missing[w] {
		w.source = netip.Addr{}
	}
	return w, f.missing[w]
}

// native takes datagrams from the network. What they are of is not taken from
// the tunnel any more.
func (f *fallback) native(ms []mcast.Message, note func([]mcast.Message) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	g := f.gateway.Load()
	for i := range ms {
		w, missing := f.find(&ms[i])
		if !missing {
			continue
		}
		delete(f.missing, w)
		if g == nil {
			continue
		}
		// It fails if the tunnel could not join it either.
		if w.source.IsValid() {
			g.LeaveSource(w.channel().Group, w.source)
		} else {
			g.Leave(w.channel().Group)
		}
		f.show.tunnel("native", "%v arrives from the network, by %s: left in the tunnel", w.channel(), ms[i].Group.Interface)
		if len(f.missing) == 0 {
			g.SetReadDeadline(longAgo) // ends the tunnel
		}
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
		if _, missing := f.find(&ms[i]); missing {
			ms[n], ms[i] = ms[i], ms[n] // no buffer is lost
			n++
		}
	}
	return note(ms[:n])
}

// run waits for the network, and then receives through a tunnel what is missing,
// until nothing is, or ctx ends.
func (f *fallback) run(ctx context.Context, note func([]mcast.Message) error) error {
	for wait := f.options.after; ; wait = dialAgain {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		f.mu.Lock()
		texts := make([]string, 0, len(f.missing))
		for w := range f.missing {
			texts = append(texts, w.channel().String())
		}
		f.mu.Unlock()
		if len(texts) == 0 {
			return nil
		}
		slices.Sort(texts)
		f.show.tunnel("fallback", "nothing of %s in the network: trying a tunnel", strings.Join(texts, ", "))
		g, err := dial(ctx, f.at, f.options, f.show)
		if err == nil {
			defer g.Close()
			return f.receive(ctx, g, note)
		}
		if ctx.Err() == nil {
			f.show.tunnel("failed", "no tunnel: %v; again in %v", err, dialAgain)
		}
	}
}

// receive receives through a tunnel.
func (f *fallback) receive(ctx context.Context, g *amt.Gateway, note func([]mcast.Message) error) error {
	defer context.AfterFunc(ctx, func() { g.SetReadDeadline(longAgo) })()
	f.mu.Lock()
	f.gateway.Store(g)
	for w := range f.missing {
		if err := join(g, w.channel(), f.options.block); err != nil {
			f.show.tunnel("failed", "in the tunnel: %v", err)
		}
	}
	over := len(f.missing) == 0 // meanwhile
	f.mu.Unlock()
	if over {
		return nil
	}
	return read(g, func(ms []mcast.Message) error { return f.tunnelled(ms, note) })
}
