//go:build !plan9

package mcast

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"example.com/mcast/internal/netif"
)

// quiet is a Config of tests that tell of changes themselves.
var quiet = &Config{NoWatch: true}

// request makes one of the six requests.
func (c *modelConn) request(op Op, g Group, source netip.Addr) error {
	switch op {
	case OpJoin:
		return c.Join(g)
	case OpJoinSource:
		return c.JoinSource(g, source)
	case OpBlock:
		return c.Block(g, source)
	case OpUnblock:
		return c.Unblock(g, source)
	case OpLeave:
		return c.Leave(g)
	}
	return c.LeaveSource(g, source)
}

// refused checks that requests fail as they should, each with one OpError, and
// that the kernel heard nothing of them.
func (c *modelConn) refused(kind error, what string, requests ...func() error) {
	c.t.Helper()
	for i, request := range requests {
		var err error
		sent := c.sent(func() { err = request() })
		var e *OpError
		if !errors.As(err, &e) || !errors.Is(err, kind) || !strings.Contains(err.Error(), what) {
			c.t.Errorf("request %d: %v, want %v: %s", i, err, kind, what)
		} else if strings.Count(err.Error(), "mcast: ") != 1 {
			c.t.Errorf("request %d: %v: wrapped twice", i, err)
		}
		if len(sent) > 0 {
			c.t.Errorf("request %d: %v, but the kernel was told %v", i, err, sent)
		}
	}
}

// joins are the requests that would make a membership of a group.
func (c *modelConn) joins(g Group) []func() error {
	return []func() error{
		func() error { return c.Join(g) },
		func() error { return c.JoinSource(g, c.source(1)) },
		func() error { return c.SetFilter(g, Include, c.source(1)) },
		func() error { return c.SetFilter(g, Exclude) },
	}
}

// others are the requests that need a membership.
func (c *modelConn) others(g Group) []func() error {
	return []func() error{
		func() error { return c.Block(g, c.source(1)) },
		func() error { return c.Unblock(g, c.source(1)) },
		func() error { return c.Leave(g) },
		func() error { return c.LeaveSource(g, c.source(1)) },
		func() error { _, err := c.SystemFilter(g); return err },
	}
}

// TestSixRequests is the way of each request that is accepted.
func TestSixRequests(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, _, _ := newModelConn(t, y, ipv6, nil)
		g, s := c.group("eth0"), c.source
		c.check()
		c.must(c.Join(g))
		c.check(c.exclude("eth0"))
		c.must(c.Block(g, s(1)))
		c.must(c.Block(g, s(2)))
		c.check(c.exclude("eth0", 1, 2))
		c.must(c.Unblock(g, s(1)))
		c.check(c.exclude("eth0", 2))
		c.must(c.Unblock(g, s(2)))
		c.check(c.exclude("eth0"))
		c.must(c.Leave(g))
		c.check()
		c.must(c.JoinSource(g, s(2)))
		c.must(c.JoinSource(g, s(1)))
		c.check(c.include("eth0", 1, 2))
		c.must(c.LeaveSource(g, s(2)))
		c.check(c.include("eth0", 1))
		c.must(c.JoinSource(c.group("eth1"), s(3)))
		c.check(c.include("eth0", 1), c.include("eth1", 3))
		c.must(c.LeaveSource(g, s(1)))
		c.check(c.include("eth1", 3))
		c.must(c.Leave(c.group("eth1")))
		c.check()
		if events := c.told.take(); len(events) > 0 {
			t.Errorf("events of requests: %v", events)
		}
	})
}

// TestRefusedRequests makes every request that the state refuses: neither the
// filter nor the kernel changes, and the number is the one of the rules.
func TestRefusedRequests(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, quiet)
		g := c.group("eth0")
		for _, at := range []Membership{{}, c.exclude("eth0"), c.exclude("eth0", 1), c.exclude("eth0", 1, 2), c.include("eth0", 1), c.include("eth0", 1, 2)} {
			filter := Filter{Rules: h.rules()}
			var want []Membership
			if at.Group != (Group{}) {
				c.must(c.set(at))
				if err := filter.Set(at); err != nil {
					t.Fatal(err)
				}
				want = append(want, at)
			}
			for op := range Op(numOps) {
				for _, n := range []int{1, 3} {
					request := Request{op, g, c.source(n)}
					verdict := filter.Check(request)
					if verdict == nil {
						continue
					}
					for _, kind := range []error{ErrJoined, ErrNotJoined, ErrBlocked, ErrNotBlocked, ErrMode, wsaEINVAL, wsaEADDRNOTAVAIL, eADDRINUSE, eADDRNOTAVAIL, eINVAL} {
						if errors.Is(verdict, kind) {
							c.refused(kind, "mcast: "+op.String()+" ", func() error { return c.request(op, g, c.source(n)) })
						}
					}
					c.check(want...)
				}
			}
			if len(want) > 0 {
				c.must(c.Leave(g))
			}
		}
	})
}

// TestRequestErrors: what no membership could be made of is refused before
// anything else, and the error says what was asked.
func TestRequestErrors(t *testing.T) {
	eachModel(t, []modelSystem{onLinux, onWindows}, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, quiet)
		unicast, other := c.addr("192.0.2.9", "2001:db8::9"), c.addr("ff1e::3", "239.1.2.3")
		for _, g := range []Group{{}, {Interface: "eth0"}, {Addr: unicast, Interface: "eth0"}, {Addr: other, Interface: "eth0"}} {
			what := "unusable address"
			if g.Addr == other {
				what = fmt.Sprintf("open one with %q", map[bool]string{false: "udp6", true: "udp4"}[ipv6])
			}
			source := func() error {
				if g.Addr == other {
					return c.JoinSource(g, c.addr("2001:db8::9", "192.0.2.9"))
				}
				return c.JoinSource(g, c.source(1))
			}
			c.refused(ErrAddress, what, func() error { return c.Join(g) }, func() error { return c.Leave(g) }, source)
			c.refused(ErrAddress, "", c.joins(g)...)
			c.refused(ErrAddress, "", c.others(g)...)
		}
		g := c.group("eth0")
		group := c.addr("224.1.1.1", "ff02::1")
		bad := []netip.Addr{{}, c.addr("0.0.0.0", "::"), group, c.addr("2001:db8::1", "10.0.0.1")}
		if !ipv6 {
			bad = append(bad, netip.MustParseAddr("255.255.255.255"))
		}
		for _, s := range bad {
			for _, op := range []Op{OpJoinSource, OpBlock, OpUnblock, OpLeaveSource} {
				c.refused(ErrAddress, "mcast: "+op.String()+" ", func() error { return c.request(op, g, s) })
			}
			c.refused(ErrAddress, "mcast: SetFilter ", func() error { return c.SetFilter(g, Exclude, c.source(1), s) })
		}
		c.refused(ErrMode, "", func() error { return c.SetFilter(g, 2, c.source(1)) })
		for _, ifname := range []string{"eth7", "77", "0", "99999999999", "eth0 "} {
			c.refused(ErrInterface, ifname, c.joins(c.group(ifname))[:1]...)
			c.refused(ErrInterface, "", c.joins(c.group(ifname))...)
		}

		err := c.JoinSource(c.group("eth7"), c.source(1))
		var e *OpError
		if !errors.As(err, &e) || e.Op != "JoinSource" || e.Group != c.group("eth7") || e.Source != c.source(1) || !errors.Is(err, netif.ErrNotFound) {
			t.Errorf("%#v", err)
		}
		if err := c.Join(c.group("eth7")); !errors.As(err, &e) || e.Source.IsValid() {
			t.Errorf("Join has a source: %v", err)
		}
		h.remove(2)
		c.refused(ErrInterface, `there is no interface "eth0"`, c.joins(g)...)
		c.check()
	})
}

// TestMappedAddresses are those of their family.
func TestMappedAddresses(t *testing.T) {
	c, _, _ := newModelConn(t, onLinux, false, quiet)
	six := func(a netip.Addr) netip.Addr { return netip.AddrFrom16(a.As16()) }
	g := c.group("eth0")
	mapped := Group{six(g.Addr), "eth0"}
	c.must(c.JoinSource(mapped, six(c.source(1))))
	c.check(c.include("eth0", 1))
	c.must(c.SetFilter(mapped, Exclude, six(c.source(1)), c.source(1), c.source(2)))
	c.check(c.exclude("eth0", 1, 2))
	c.must(c.Leave(mapped))
	c.check()
}

// TestSourcesAreTheCallers: SetFilter takes sources in whatever form, and leaves them
// so.
func TestSourcesAreTheCallers(t *testing.T) {
	c, h, _ := newModelConn(t, onLinux, false, quiet)
	h.setRoute(c.source(2), 3)
	given := []netip.Addr{mapped(c.source(2)), c.source(1)}
	sources := slices.Clone(given)
	c.must(c.SetFilter(c.group(""), Include, sources...)) // towards the first
	c.check(c.include("eth1", 1, 2))
	if !slices.Equal(sources, given) {
		t.Errorf("%v became %v", given, sources)
	}
	c, _, _ = newModelConn(t, onLinux, true, quiet)
	given = []netip.Addr{c.source(3), c.source(2).WithZone("eth1"), c.source(1).WithZone("3")}
	sources = slices.Clone(given)
	c.must(c.SetFilter(c.group(""), Include, sources...))
	c.check(c.include("eth1", 1, 2, 3))
	if !slices.Equal(sources, given) {
		t.Errorf("%v became %v", given, sources)
	}
}

// TestSSM: any source of a source-specific group is not to be had, unless the
// network is said to know the sources.
func TestSSM(t *testing.T) {
	eachModel(t, []modelSystem{onLinux}, func(t *testing.T, y modelSystem, ipv6 bool) {
		for _, any := range []bool{false, true} {
			c, _, _ := newModelConn(t, y, ipv6, &Config{NoWatch: true, AnySource: any})
			g := Group{c.addr("232.1.2.3", "ff3e::8000:1"), "eth0"}
			asm := []func() error{
				func() error { return c.Join(g) },
				func() error { return c.SetFilter(g, Exclude) },
				func() error { return c.SetFilter(g, Exclude, c.source(1)) },
			}
			if !any {
				c.refused(ErrSSM, "use JoinSource", asm...)
			} else {
				for _, request := range asm {
					c.must(request())
					c.must(c.Leave(g))
				}
			}
			c.must(c.JoinSource(g, c.source(1)))
			// That the mode is wrong comes first.
			c.refused(ErrMode, "", func() error { return c.Join(g) })
			c.must(c.SetFilter(g, Include, c.sources(2, 3)...))
			c.must(c.SetFilter(g, Include))
			c.check()
		}
	})
}

// TestDigits: an index is turned into a name when the request is made.
func TestDigits(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, quiet)
		c.must(c.Join(c.group("2")))
		c.check(c.exclude("eth0"))
		c.refused(ErrJoined, "%eth0", func() error { return c.Join(c.group("eth0")) }, func() error { return c.Join(c.group("2")) })
		c.must(c.Block(c.group("eth0"), c.source(1)))
		c.must(c.Unblock(c.group("2"), c.source(1)))
		if m, err := c.SystemFilter(c.group("2")); err != nil || m.Group != c.group("eth0") {
			t.Errorf("SystemFilter: %v, %v", m, err)
		}
		c.must(c.Leave(c.group("0002")))
		c.check()

		// Names that would be taken for something else are shown as indexes.
		h.add(7, "12")
		h.add(8, "*")
		h.add(12, "eth9")
		for index, shown := range map[string]string{"7": "7", "8": "8", "12": "eth9"} {
			c.must(c.Join(c.group(index)))
			m := c.exclude("")
			m.Group.Interface = shown
			fmt.Sscan(index, &m.Index)
			c.check(m)
			c.must(c.Block(c.group(index), c.source(1)))
			c.must(c.Leave(c.group(shown)))
		}
	})
}

// TestDigitsOfPending: an index that no interface has is ErrInterface, even
// while a membership that was made with it is pending.
func TestDigitsOfPending(t *testing.T) {
	c, h, _ := newModelConn(t, onLinux, false, &Config{NoWatch: true, WaitForInterface: true})
	c.must(c.Join(c.group("2")))
	h.remove(2)
	c.must(c.Repair())
	c.check(pending(c.exclude("eth0")))
	c.refused(ErrInterface, `there is no interface "2"`, c.joins(c.group("2"))...)
	c.refused(ErrInterface, `there is no interface "2"`, c.others(c.group("2"))...)
	c.must(c.Leave(c.group("eth0")))
	c.check()
}

// TestNamesAreAskedForNow: a Group means the interface that has the name when
// the request is made.
func TestNamesAreAskedForNow(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, quiet)
		g := c.group("eth0")
		h.rename(2, "old")
		h.rename(3, "eth0")
		c.must(c.JoinSource(g, c.source(1)))
		c.check(c.include("eth0", 1))
		if m := c.Memberships()[0]; m.Index != 3 {
			t.Errorf("joined on %d, want 3", m.Index)
		}
	})
}

// TestRouted: without an interface, a request means the one membership that
// there is, or the one that the routing table picks.
func TestRouted(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, quiet)
		g, s := c.group(""), c.source(1)
		h.routes = map[netip.Addr]int{g.Addr: 3, c.source(1): 1, c.source(2): 0}

		c.must(c.JoinSource(g, s)) // towards the source
		c.check(c.include("lo", 1))
		c.must(c.JoinSource(g, c.source(2))) // where it is
		c.check(c.include("lo", 1, 2))
		c.must(c.LeaveSource(g, s))
		c.check(c.include("lo", 2))
		if got, err := c.SystemFilter(g); err != nil || got.Group != c.group("lo") {
			t.Errorf("SystemFilter: %v, %v", got, err)
		}
		c.must(c.Leave(g))
		c.must(c.Join(g)) // towards the group
		c.check(c.exclude("eth1"))
		c.must(c.Block(g, s))
		c.must(c.Unblock(g, s))
		c.must(c.SetFilter(g, Include))
		c.check()
		c.must(c.SetFilter(g, Include, s)) // towards the first source
		c.check(c.include("lo", 1))
		c.must(c.SetFilter(g, Include))
		h.routes[c.source(4)] = 3
		c.must(c.SetFilter(g, Include, c.source(4), s)) // as it was passed
		c.check(c.include("eth1", 1, 4))
		c.must(c.SetFilter(g, Include))
		c.must(c.SetFilter(g, Exclude, c.source(2))) // towards the group
		c.check(c.exclude("eth1", 2))
		c.must(c.Leave(g))

		h.asked = nil
		c.refused(ErrNotJoined, "", c.others(g)...)
		if len(h.asked) > 0 {
			t.Errorf("routes asked for: %v", h.asked)
		}

		// No route.
		h.routes[g.Addr] = 0
		c.refused(ErrInterface, "no route to "+g.Addr.String(), func() error { return c.Join(g) }, func() error { return c.SetFilter(g, Exclude) })
		c.refused(errNoRoute, "no route to "+c.source(2).String(), func() error { return c.JoinSource(g, c.source(2)) }, func() error { return c.SetFilter(g, Include, c.source(2)) })
		c.check()

		// Several.
		c.must(c.Join(c.group("eth0")))
		c.must(c.Join(c.group("eth1")))
		c.refused(ErrInterface, "joined on several interfaces", c.joins(g)...)
		c.refused(ErrInterface, "joined on several interfaces", c.others(g)...)
		c.must(c.Leave(c.group("eth0")))
		c.must(c.Block(g, s))
		c.check(c.exclude("eth1", 1))
	})
}

// TestRoutedByName: a membership that was routed is also meant by the name of
// the interface that it is on, and another one may be beside it.
func TestRoutedByName(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, _, _ := newModelConn(t, y, ipv6, quiet)
		c.must(c.Join(c.group("")))
		c.check(c.exclude("eth0"))
		c.refused(ErrJoined, "", func() error { return c.Join(c.group("eth0")) }, func() error { return c.Join(c.group("2")) })
		c.must(c.Block(c.group("eth0"), c.source(1)))
		c.must(c.Block(c.group("2"), c.source(2)))
		c.check(c.exclude("eth0", 1, 2))
		c.must(c.Join(c.group("eth1")))
		c.check(c.exclude("eth0", 1, 2), c.exclude("eth1"))
		c.refused(ErrInterface, "several", func() error { return c.Unblock(c.group(""), c.source(1)) })
		c.must(c.Unblock(c.group("eth0"), c.source(1)))
		c.must(c.Block(c.group("eth1"), c.source(3)))
		c.check(c.exclude("eth0", 2), c.exclude("eth1", 3))
		c.must(c.Leave(c.group("eth0")))
		c.check(c.exclude("eth1", 3))
		c.must(c.SetFilter(c.group("eth1"), Include))
		c.check()
	})
}

// TestLinkLocalSource may be on any interface.
func TestLinkLocalSource(t *testing.T) {
	c, _, _ := newModelConn(t, onLinux, true, quiet)
	s := netip.MustParseAddr("fe80::9")
	c.refused(ErrInterface, "fe80::9 may be on any interface",
		func() error { return c.JoinSource(c.group(""), s) },
		func() error { return c.SetFilter(c.group(""), Include, s) })
	c.must(c.JoinSource(c.group(""), s.WithZone("eth1")))
	c.check(Membership{Group: c.group("eth1"), Mode: Include, Sources: []netip.Addr{s}, Index: 3})
	c.must(c.LeaveSource(c.group(""), s))
	c.check()
}

// TestZonesOfRequests: a zone is an interface, of the group or of a source.
func TestZonesOfRequests(t *testing.T) {
	c, _, _ := newModelConn(t, onLinux, true, quiet)
	g, s := c.group(""), c.source(1)
	zoned := func(zone, ifname string) Group { return Group{g.Addr.WithZone(zone), ifname} }
	for _, ok := range []struct {
		g Group
		s netip.Addr
	}{
		{zoned("eth1", ""), s},
		{zoned("3", "3"), s},
		{zoned("3", "eth1"), s},
		{zoned("eth1", "3"), s},
		{g, s.WithZone("3")},
		{c.group("eth1"), s.WithZone("eth1")},
		{c.group("3"), s.WithZone("eth1")},
		{zoned("3", ""), s.WithZone("eth1")},
	} {
		c.must(c.JoinSource(ok.g, ok.s))
		c.check(c.include("eth1", 1))
		c.must(c.LeaveSource(ok.g, ok.s))
		c.must(c.SetFilter(ok.g, Exclude, ok.s))
		c.check(c.exclude("eth1", 1))
		c.must(c.Leave(ok.g))
	}
	for _, bad := range []struct {
		g Group
		s netip.Addr
	}{
		{zoned("eth1", "eth0"), s},
		{zoned("eth7", ""), s},
		{zoned("0", ""), s},
		{c.group("eth0"), s.WithZone("3")},
		{zoned("eth0", ""), s.WithZone("eth1")},
	} {
		c.refused(ErrInterface, "",
			func() error { return c.JoinSource(bad.g, bad.s) },
			func() error { return c.SetFilter(bad.g, Include, bad.s) })
	}
	c.refused(ErrInterface, "", func() error { return c.SetFilter(g, Include, s.WithZone("2"), s.WithZone("3")) })
	c.check()
}

// TestBoundRequests: a socket hears its group on its interface, or with a
// unicast address nothing.
func TestBoundRequests(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		h := newModelHost(t, y)
		first := h.open(endpoint{ipv6: ipv6}, quiet)
		bound := h.open(endpoint{ipv6: ipv6, group: first.group("eth1")}, quiet)
		other := Group{Addr: bound.addr("239.9.9.9", "ff1e::9")}
		bound.refused(ErrAddress, "hears no other group", bound.joins(other)...)
		other.Interface = "eth1"
		bound.refused(ErrAddress, "hears no other group", bound.joins(other)...)
		bound.refused(ErrInterface, "bound to interface eth1", bound.joins(bound.group("eth0"))...)
		bound.refused(ErrInterface, "bound to interface eth1", bound.joins(bound.group("*"))...)
		bound.must(bound.SetFilter(bound.group("eth0"), Include)) // there is none to leave
		bound.must(bound.Join(bound.group("")))
		bound.check(bound.exclude("eth1"))
		bound.must(bound.Leave(bound.group("")))
		bound.must(bound.JoinSource(bound.group("3"), bound.source(1)))
		bound.check(bound.include("eth1", 1))
		bound.must(bound.Leave(bound.group("eth1")))
		if len(h.asked) > 0 {
			t.Errorf("routes asked for: %v", h.asked)
		}

		// Bound to a group, on any interface.
		bound = h.open(endpoint{ipv6: ipv6, group: first.group("")}, quiet)
		bound.refused(ErrAddress, "hears no other group", bound.joins(other)...)
		bound.must(bound.JoinSource(bound.group("eth0"), bound.source(1)))
		bound.must(bound.JoinSource(bound.group("eth1"), bound.source(2)))
		bound.check(bound.include("eth0", 1), bound.include("eth1", 2))

		unicast := h.open(endpoint{ipv6: ipv6, unicast: first.addr("192.0.2.1", "2001:db8::1")}, quiet)
		unicast.refused(ErrAddress, "hears no groups", unicast.joins(unicast.group("eth0"))...)
		unicast.refused(ErrAddress, "hears no groups", unicast.others(unicast.group("eth0"))...)
	})
}

// TestWaitForInterface: where no interface is usable yet, the membership is
// pending, and made when there is one.
func TestWaitForInterface(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		for _, wait := range []bool{false, true} {
			c, h, _ := newModelConn(t, y, ipv6, &Config{NoWatch: true, WaitForInterface: wait})
			g := c.group("eth7")
			h.routes[g.Addr] = 0
			if !wait {
				c.refused(ErrInterface, `there is no interface "eth7"`, c.joins(g)...)
				c.refused(ErrInterface, "no route", func() error { return c.Join(c.group("")) })
				c.check()
				continue
			}
			sent := c.sent(func() {
				c.must(c.Join(g))
				c.check(pending(c.exclude("eth7")))
				c.must(c.Block(g, c.source(1)))
				c.must(c.Block(g, c.source(2)))
				c.must(c.Unblock(g, c.source(1)))
				c.check(pending(c.exclude("eth7", 2)))
				c.refused(ErrJoined, "", func() error { return c.Join(g) })
				c.refused(ErrMode, "", func() error { return c.JoinSource(g, c.source(1)) })
				c.refused(ErrNotJoined, "", func() error { _, err := c.SystemFilter(g); return err })
				c.must(c.SetFilter(g, Include, c.sources(3, 4)...))
				c.must(c.LeaveSource(g, c.source(4)))
				c.check(pending(c.include("eth7", 3)))
				c.must(c.Leave(g))
				c.check()
				// Digits are turned into a name, and there is none.
				c.refused(ErrInterface, `there is no interface "7"`, c.joins(c.group("7"))...)
				c.must(c.SetFilter(g, Include, c.sources(1, 2)...))
			})
			if len(sent) > 0 {
				t.Errorf("the kernel was told %v", sent)
			}
			h.add(7, "eth7")
			c.must(c.Repair())
			c.check(c.include("eth7", 1, 2))
			c.must(c.Leave(g))

			// No route.
			c.must(c.Join(c.group("")))
			c.check(pending(c.exclude("")))
			delete(h.routes, g.Addr)
			c.must(c.Repair())
			c.check(c.exclude("eth0"))
			c.must(c.Leave(c.group("eth0")))

			// Other errors are told as ever.
			h.kernel.FailCall(1, syscall.Errno(y.platform.limits[0]), false)
			if err := c.Join(c.group("eth1")); !errors.Is(err, ErrLimit) {
				t.Errorf("Join: %v, want ErrLimit", err)
			}
			c.check()
		}
	})
}

// TestDownInterface: Windows joins nothing on an interface that is down.
func TestDownInterface(t *testing.T) {
	eachModel(t, []modelSystem{onWindows}, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, quiet)
		h.setUp(2, false)
		if err := c.Join(c.group("eth0")); !errors.Is(err, ErrInterface) || !strings.Contains(err.Error(), "eth0 takes no memberships now") {
			t.Errorf("Join: %v, want ErrInterface", err)
		}
		c.check()
		w := h.open(endpoint{ipv6: ipv6}, &Config{NoWatch: true, WaitForInterface: true})
		w.must(w.Join(w.group("eth0")))
		w.check(pending(w.exclude("eth0")))
		h.setUp(2, true)
		w.must(w.Repair())
		w.check(w.exclude("eth0"))
	})
}

// TestGoneInterface: requests by name go on while the interface is away, and
// what is asked for by then is made when it is back, with whatever index.
func TestGoneInterface(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		for _, index := range []int{2, 9} {
			c, h, _ := newModelConn(t, y, ipv6, quiet)
			g := c.group("eth0")
			c.must(c.SetFilter(g, Include, c.sources(1, 2)...))
			h.remove(2)
			c.must(c.Repair())
			c.check(pending(c.include("eth0", 1, 2)))
			c.must(c.JoinSource(g, c.source(3)))
			c.must(c.LeaveSource(g, c.source(1)))
			c.refused(ErrJoined, "", func() error { return c.JoinSource(g, c.source(2)) })
			c.check(pending(c.include("eth0", 2, 3)))
			c.must(c.SetFilter(g, Exclude, c.source(4)))
			c.check(pending(c.exclude("eth0", 4)))
			h.add(index, "eth0")
			c.must(c.Repair())
			c.check(c.exclude("eth0", 4))
			c.must(c.Leave(g))
			c.check()
		}
	})
}

// TestRequestsOfWhatWaits: a membership that could not be made anew takes
// requests, and is made with all of them when it can be.
func TestRequestsOfWhatWaits(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, _, _ := newModelConn(t, y, ipv6, quiet)
		g := c.group("eth0")
		c.must(c.set(c.include("eth0", 1)))
		end := c.failCalls(syscall.Errno(y.platform.limits[0]), func(_, level, name int) bool { return !y.leaves(level, name) })
		var e *OpError
		if err := c.Repair(); !errors.Is(err, ErrLimit) || !errors.As(err, &e) || e.Op != "Repair" || e.Group != g {
			t.Errorf("Repair: %v, want ErrLimit", err)
		}
		c.check(pending(c.include("eth0", 1)))
		c.must(c.JoinSource(g, c.source(2)))
		c.must(c.LeaveSource(g, c.source(1)))
		c.must(c.JoinSource(g, c.source(3)))
		c.check(pending(c.include("eth0", 2, 3)))
		if _, err := c.SystemFilter(g); !errors.Is(err, ErrNotJoined) {
			t.Errorf("SystemFilter: %v, want ErrNotJoined", err)
		}
		// A new one is refused as ever.
		if err := c.Join(c.group("eth1")); !errors.Is(err, ErrLimit) {
			t.Errorf("Join: %v, want ErrLimit", err)
		}
		end()
		c.must(c.Repair())
		c.check(c.include("eth0", 2, 3))
	})
}

// TestCountsOfRequests: a membership's counts begin with it.
func TestCountsOfRequests(t *testing.T) {
	c, _, _ := newModelConn(t, onLinux, false, &Config{NoWatch: true, GroupStats: true})
	g := c.group("eth0")
	counts := func() (n int, received uint64) {
		for of, s := range c.GroupStats() {
			if of != g {
				t.Errorf("counts of %v", of)
			}
			n, received = n+1, s.Received
		}
		return n, received
	}
	c.must(c.Join(g))
	receive := func() {
		c.delivery.deliver(&c.Conn.ledger, []Message{{Group: Group{Addr: g.Addr}, Index: 2, Source: netip.AddrPortFrom(c.source(1), 5000)}})
	}
	for range 3 {
		receive()
	}
	if n, received := counts(); n != 1 || received != 3 {
		t.Errorf("%d memberships, %d datagrams, want 1 and 3", n, received)
	}
	c.must(c.Block(g, c.source(2)))
	c.must(c.Repair())
	receive()
	if _, received := counts(); received != 4 {
		t.Errorf("%d datagrams after a Block and a Repair, want 4", received)
	}
	c.must(c.Leave(g))
	c.must(c.Join(g))
	if n, received := counts(); n != 1 || received != 0 {
		t.Errorf("%d memberships, %d datagrams after a new join", n, received)
	}
}

// TestRequestsAfterClose: none is taken any more, and the kernel hears of none.
func TestRequestsAfterClose(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, _, s := newModelConn(t, y, ipv6, nil)
		g := c.group("eth0")
		c.must(c.JoinSource(g, c.source(1)))
		c.Close()
		if ms := c.Memberships(); len(ms) > 0 || ms == nil {
			t.Errorf("memberships after Close: %#v, want none", ms)
		}
		for op := range Op(numOps) {
			c.refused(net.ErrClosed, "", func() error { return c.request(op, g, c.source(1)) })
		}
		c.refused(net.ErrClosed, "", c.joins(g)...)
		c.refused(net.ErrClosed, "", c.others(g)...)
		c.refused(net.ErrClosed, "", c.Repair)
		if held := inKernel(s); len(held) > 0 {
			t.Errorf("the kernel still has %v", held)
		}
		if admits(&c.Conn.delivery, &c.Conn.ledger, 2, g.Addr, c.source(1)) {
			t.Error("what was queued is still admitted")
		}
	})
}

// TestZeroRequests: a Conn or Pool that was never opened answers.
func TestZeroRequests(t *testing.T) {
	h := newModelHost(t, onLinux)
	zero := &modelConn{Conn: new(Conn), t: t, host: h, kernel: h.kernel, socket: h.kernel.Socket(false)}
	g := zero.group("eth0")
	for op := range Op(numOps) {
		zero.refused(os.ErrInvalid, "it was not opened", func() error { return zero.request(op, g, zero.source(1)) })
		var m Members
		zero.refused(os.ErrInvalid, "it was not opened", func() error { return m.do(op, g, zero.source(1)) })
	}
	zero.refused(os.ErrInvalid, "it was not opened", zero.joins(g)...)
	zero.refused(os.ErrInvalid, "it was not opened", zero.others(g)...)
	zero.refused(os.ErrInvalid, "it was not opened", zero.Repair, new(Pool).Repair)
	if ms := zero.Memberships(); len(ms) > 0 {
		t.Errorf("memberships: %v", ms)
	}
}

// TestPoolWithoutPort: requests are for On.
func TestPoolWithoutPort(t *testing.T) {
	h := newModelHost(t, onLinux)
	c := h.open(endpoint{}, quiet)
	p := h.openPool(false, quiet)
	m := p.on(noPort)
	for op := range Op(numOps) {
		c.refused(ErrAddress, "use On(port)", func() error { return m.do(op, c.group("eth0"), c.source(1)) })
	}
	if err := p.on(5001).Join(c.group("eth0")); err != nil {
		t.Error(err)
	}
}

// TestRequestsConcurrently: all agree, whoever asks.
func TestRequestsConcurrently(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		if y.name == "darwin" {
			return // its requests wait for each other's leaves, and its 4-byte answers sleep
		}
		c, _, s := newModelConn(t, y, ipv6, nil)
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(i), 5))
				for range 200 {
					g := c.group([]string{"lo", "eth0", "eth1"}[rng.IntN(3)])
					if rng.IntN(5) == 0 {
						c.SetFilter(g, Mode(rng.IntN(2)), c.sources(1+rng.IntN(4))...)
					} else {
						c.request(Op(rng.IntN(numOps)), g, c.source(1+rng.IntN(4)))
					}
					c.SystemFilter(g)
					c.Memberships()
				}
			})
		}
		wg.Wait()
		if wrong := disagreement(&c.Conn.ledger, s); wrong != "" {
			t.Error(wrong)
		}
		c.check(c.Memberships()...)
	})
}
