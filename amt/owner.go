package amt

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"example.com/mcast"
)

// owners says which tunnel brings a source, in a Gateway that finds relays by
// source (RFC 8777). The zero Addr stands for any source.
type owners struct {
	bySource map[netip.Addr]*owner
	byGroup  map[netip.Addr][]netip.Addr // the sources that a group needs
}

// An owner is the tunnel of a source.
type owner struct {
	tunnel *tunnel // nil while relays are looked for
	groups map[netip.Addr]bool
	cancel context.CancelFunc
}

func (o *owners) init() {
	o.bySource, o.byGroup = make(map[netip.Addr]*owner), make(map[netip.Addr][]netip.Addr)
}

func (o *owners) cancelAll() {
	for _, owner := range o.bySource {
		owner.cancel()
	}
}

// shareByOwner brings a membership to the tunnels, to each its sources.
func (g *Gateway) shareByOwner(m mcast.Membership) {
	group, needs := m.Group.Addr, m.Sources
	if m.Mode == mcast.Exclude {
		needs = []netip.Addr{{}}
	}
	for _, source := range needs {
		o := g.owners.bySource[source]
		if o == nil {
			o = g.findOwner(source)
		}
		o.groups[group] = true
	}
	for _, source := range g.owners.byGroup[group] {
		if !slices.Contains(needs, source) {
			g.release(source, group)
		}
	}
	if g.owners.byGroup[group] = needs; len(needs) == 0 {
		delete(g.owners.byGroup, group)
	}
	for _, t := range g.tunnels {
		part := mcast.Membership{Group: m.Group, Mode: mcast.Include}
		if m.Mode == mcast.Exclude {
			if g.owners.bySource[netip.Addr{}].tunnel == t {
				part = m
			}
		} else {
			for _, source := range m.Sources {
				if g.owners.bySource[source].tunnel == t {
					part.Sources = append(part.Sources, source)
				}
			}
		}
		t.filter.Set(part)
		t.set(part)
	}
}

// release notes that a group needs a source no more.
func (g *Gateway) release(source, group netip.Addr) {
	o := g.owners.bySource[source]
	if delete(o.groups, group); len(o.groups) == 0 {
		o.cancel()
		delete(g.owners.bySource, source)
	}
}

// findOwner begins to look for the relays of a source.
func (g *Gateway) findOwner(source netip.Addr) *owner {
	ctx, cancel := context.WithCancel(context.Background())
	o := &owner{groups: make(map[netip.Addr]bool), cancel: cancel}
	g.owners.bySource[source] = o
	lookup := func(ctx context.Context) ([]candidate, error) {
		found, err := g.resolver.discover(ctx, g.cfg.Methods, source)
		if found = g.reachable(found); len(found) > 0 {
			err = nil
		}
		return found, err
	}
	g.running.Go(func() {
		defer cancel()
		for n := 1; ; n++ {
			found, err := lookup(ctx)
			if len(found) > 0 {
				g.assign(source, o, found, lookup)
				return
			}
			if ctx.Err() != nil {
				return
			}
			if n == 1 {
				if err == nil {
					err = ErrNoRelay
				}
				g.notify(Event{Kind: EventRelayLost, Err: fmt.Errorf("no relay of %v is known: %w", source, err)})
			}
			select {
			case <-time.After(doubled(lookupInterval/16, n, 10*lookupInterval)):
			case <-ctx.Done():
				return
			}
		}
	})
	return o
}

// assign gives a source the tunnel to these relays, a new one if need be.
func (g *Gateway) assign(source netip.Addr, o *owner, found []candidate, lookup lookup) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isClosed() || g.owners.bySource[source] != o {
		return
	}
	i := slices.IndexFunc(g.tunnels, func(t *tunnel) bool { return sameCandidates(t.candidates, found) })
	if i >= 0 {
		o.tunnel = g.tunnels[i]
	} else {
		o.tunnel = g.startTunnel(found, lookup, new(mcast.Filter))
	}
	for group := range o.groups {
		m, _ := g.filter.Membership(mcast.Group{Addr: group, Interface: Interface})
		g.shareByOwner(m)
	}
}

// retire ends a tunnel that nobody needs, and reports whether it did.
func (g *Gateway) retire(t *tunnel) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, o := range g.owners.bySource {
		if o.tunnel == t {
			return false
		}
	}
	if g.isClosed() {
		return true
	}
	g.tunnels = slices.DeleteFunc(g.tunnels, func(other *tunnel) bool { return other == t })
	t.close()
	return true
}
