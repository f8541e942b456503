//go:build !plan9

package mcast

import "testing"

// Where memberships go that have no interface, or one that has several names.

// TestRouteOfSource: a membership that waits for a route goes where that to the source
// leads that is joined now.
func TestRouteOfSource(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, &Config{NoWatch: true, WaitForInterface: true})
		h.setRoute(c.source(1), 0)
		c.must(c.JoinSource(c.group(""), c.source(1)))
		c.check(pending(c.include("", 1)))
		h.setRoute(c.source(1), 2)
		h.setRoute(c.source(2), 3)
		c.must(c.JoinSource(c.group(""), c.source(2)))
		c.check(c.include("eth1", 1, 2))
	})
}

// TestRouteMeetsName: a routed membership never goes where the group has a
// membership of its own; when that is left, it does.
func TestRouteMeetsName(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		for _, s := range []int{1, 2} {
			c, h, _ := newModelConn(t, y, ipv6, quiet)
			c.must(c.JoinSource(c.group(""), c.source(1)))
			c.must(c.JoinSource(c.group("eth1"), c.source(s)))
			h.remove(2)
			h.defaultRoute = 3
			c.must(c.Repair())
			routed := pending(c.include("", 1))
			c.check(routed, c.include("eth1", s))
			c.refused(ErrInterface, "several", func() error { return c.Leave(c.group("")) })
			// Which is no matter of another one.
			h.add(7, "eth7")
			c.must(c.JoinSource(c.group("eth7"), c.source(3)))
			c.check(routed, c.include("eth1", s), c.include("eth7", 3))
			c.must(c.Leave(c.group("eth7")))
			c.must(c.Leave(c.group("eth1")))
			c.check(c.include("eth1", 1))
			c.must(c.LeaveSource(c.group("eth1"), c.source(1)))
			c.check()
		}
	})
}

// TestOtherName: Linux finds an interface by its alternative names, too. A join by
// one of them does not take what the group has there by another.
func TestOtherName(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, quiet)
		h.aliases = map[string]int{"alt1": 3, "zalt1": 3}
		c.must(c.JoinSource(c.group("eth1"), c.source(1)))
		for _, other := range []string{"alt1", "zalt1"} {
			c.refused(ErrInterface, "is another name of eth1, where the group has a membership of its own",
				func() error { return c.JoinSource(c.group(other), c.source(2)) },
				func() error { return c.Join(c.group(other)) },
				func() error { return c.SetFilter(c.group(other), Include, c.source(2)) })
			c.check(c.include("eth1", 1))
		}
		c.must(c.LeaveSource(c.group("eth1"), c.source(1)))
		c.must(c.JoinSource(c.group("alt1"), c.source(2)))
		c.check(c.include("alt1", 2))
	})
}
