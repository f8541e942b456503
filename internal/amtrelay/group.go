package amtrelay

import (
	"net/netip"
	"time"
)

// A RecordType is the type of a group record: RFC 3376 section 4.2.12.
type RecordType byte

// The types of group records.
const (
	IsInclude RecordType = iota + 1
	IsExclude
	ToInclude
	ToExclude
	Allow
	Block
)

// A Record is what a report says about one group.
type Record struct {
	Type    RecordType
	Group   netip.Addr
	Sources []netip.Addr
}

// A group is a router's state of one group for one gateway: RFC 3376 section
// 6.2. In INCLUDE, sources are forwarded until their time. In EXCLUDE, so are
// all others, while those with the zero Time are blocked.
type group struct {
	exclude bool
	until   time.Time // of EXCLUDE
	sources map[netip.Addr]time.Time
}

// timers are for how long a report holds, and how soon a leave takes effect.
type timers struct {
	now           time.Time
	member, leave time.Duration
}

func (g *group) empty() bool { return !g.exclude && len(g.sources) == 0 }

func (g *group) forwards(source netip.Addr) bool {
	t, listed := g.sources[source]
	if g.exclude {
		return !listed || !t.IsZero()
	}
	return listed
}

// expire does what timers do when they end: section 6.5.
func (g *group) expire(now time.Time) {
	over := g.exclude && !now.Before(g.until)
	for s, t := range g.sources {
		switch {
		case t.IsZero() && over:
			delete(g.sources, s)
		case t.IsZero() || now.Before(t):
		case g.exclude && !over:
			g.sources[s] = time.Time{}
		default:
			delete(g.sources, s)
		}
	}
	if over {
		g.exclude = false
	}
}

// lower has a source end soon, as if it had been asked for in vain.
func (g *group) lower(t timers, source netip.Addr) {
	if old, ok := g.sources[source]; ok && !old.IsZero() && old.After(t.now.Add(t.leave)) {
		g.sources[source] = t.now.Add(t.leave)
	}
}

// apply does what section 6.4 says of a record.
func (g *group) apply(t timers, r Record) {
	listed := make(map[netip.Addr]bool)
	for _, s := range r.Sources {
		listed[s] = true
	}
	until := t.now.Add(t.member)
	switch r.Type {
	case IsInclude, Allow, ToInclude:
		for s := range listed {
			g.sources[s] = until
		}
		if r.Type != ToInclude {
			return
		}
		for s := range g.sources {
			if !listed[s] {
				g.lower(t, s)
			}
		}
		if g.exclude {
			g.until = t.now.Add(t.leave)
		}
	case IsExclude, ToExclude:
		for s := range g.sources {
			if !listed[s] {
				delete(g.sources, s)
			}
		}
		for s := range listed {
			if _, ok := g.sources[s]; !ok && g.exclude {
				g.sources[s] = until
			} else if !ok {
				g.sources[s] = time.Time{}
			}
			if r.Type == ToExclude {
				g.lower(t, s)
			}
		}
		g.exclude, g.until = true, until
	case Block:
		for s := range listed {
			if _, ok := g.sources[s]; !ok && g.exclude {
				g.sources[s] = g.until
			}
			g.lower(t, s)
		}
	}
}

// applyAdditive is what a relay does that reads records as requests of an
// older interface.
func (g *group) applyAdditive(t timers, r Record) {
	switch {
	case r.Type == ToInclude && len(r.Sources) > 0:
		r.Type = IsInclude
	case r.Type == ToExclude && len(r.Sources) > 0:
		r.Type = Block
	}
	g.apply(t, r)
}
