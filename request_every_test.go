//go:build !plan9

package mcast

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.com/mcast/internal/kerneltest"
)

// TestEvery: a membership on "*" is one membership, held on every interface
// that is up and takes multicast.
func TestEvery(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, quiet)
		g := c.group("*")
		// on has the kernel hold the filter on these interfaces, and nowhere else.
		on := func(m Membership, indexes ...int) {
			t.Helper()
			want := map[groupIndex]sourceFilter{}
			for _, i := range indexes {
				want[groupIndex{g.Addr, i}] = newSourceFilter(m.Mode, m.Sources)
			}
			if got := c.kept(); !slices.Equal(got, filterTexts(want)) {
				t.Fatalf("the kernel has %v, want %v\n%s", got, filterTexts(want), c.log())
			}
			for i := 1; i < 10; i++ {
				for _, s := range c.sources(1, 2, 3) {
					f, held := want[groupIndex{g.Addr, i}]
					if got := c.hears(i, g.Addr, s); got != (held && f.allows(s)) {
						t.Fatalf("%v from %v on %d is heard: %v", g, s, i, got)
					}
				}
			}
			m.Group, m.Index = g, 0
			if got := c.Memberships(); len(indexes) > 0 && (len(got) != 1 || shownAs(got[0]) != shownAs(m)) || len(indexes) == 0 && len(got) > 0 {
				t.Fatalf("memberships %v, want %v", got, m)
			}
		}
		c.must(c.Join(g))
		on(c.exclude(""), 2, 3)
		c.must(c.Block(g, c.source(1)))
		on(c.exclude("", 1), 2, 3)
		c.must(c.Block(c.group(""), c.source(2))) // the one membership
		c.must(c.Unblock(g, c.source(1)))
		on(c.exclude("", 2), 2, 3)
		c.refused(ErrJoined, "", func() error { return c.Join(g) }, func() error { return c.Join(c.group("")) })

		// It excludes memberships of its address on names.
		c.refused(ErrInterface, "*", c.joins(c.group("eth0"))...)
		c.refused(ErrInterface, "*", func() error { return c.Block(c.group("2"), c.source(1)) })
		other := c.group("eth0")
		other.Addr = c.addr("239.1.2.4", "ff1e::4")
		c.must(c.Join(other))
		c.refused(ErrInterface, "", func() error { other.Interface = "*"; return c.Join(other) })
		other.Interface = "eth0"
		c.must(c.Leave(other))

		// What the system has is of an interface.
		c.refused(ErrInterface, "on every interface", func() error { _, err := c.SystemFilter(g); return err })
		for _, ifname := range []string{"eth0", "eth1", "3"} {
			want := c.exclude(strings.Replace(ifname, "3", "eth1", 1), 2)
			if m, err := c.SystemFilter(c.group(ifname)); err != nil || shownAs(m) != shownAs(want) {
				t.Errorf("SystemFilter(%s) = %v, %v, want %v", ifname, m, err, want)
			}
		}
		c.refused(ErrNotJoined, "", func() error { _, err := c.SystemFilter(c.group("lo")); return err })

		// Interfaces that come and go, and one whose name is an index of another.
		h.add(8, "3")
		c.must(c.Repair())
		ms := []Message{{Group: Group{Addr: g.Addr}, Index: 8, Source: netip.AddrPortFrom(c.source(1), 5000)}}
		if n := c.delivery.deliver(&c.Conn.ledger, ms); n != 1 || ms[0].Group.Interface != "8" {
			t.Errorf("heard on %q, want 8", ms[0].Group.Interface)
		}
		h.remove(8)
		h.add(7, "eth7")
		c.must(c.Repair())
		on(c.exclude("", 2), 2, 3, 7)
		h.remove(3)
		c.must(c.Repair())
		on(c.exclude("", 2), 2, 7)
		c.must(c.SetFilter(g, Include, c.sources(1, 3)...))
		on(c.include("", 1, 3), 2, 7)
		c.must(c.LeaveSource(g, c.source(1)))
		on(c.include("", 3), 2, 7)
		c.must(c.LeaveSource(g, c.source(3)))
		on(Membership{})

		c.must(c.JoinSource(g, c.source(1)))
		c.must(c.JoinSource(g, c.source(2)))
		on(c.include("", 1, 2), 2, 7)
		c.must(c.Leave(g))
		on(Membership{})
	})
}

// TestEveryRenamed: what comes in by an interface has the name that a request found it
// by, though nothing else has changed.
func TestEveryRenamed(t *testing.T) {
	c, h, _ := newModelConn(t, onLinux, false, quiet)
	every := c.group(everyInterface)
	c.must(c.Join(every))
	at := groupIndex{every.Addr, 2}
	for _, name := range []string{"eth0", "lan0"} {
		h.rename(2, name)
		c.must(c.SetFilter(every, Exclude))
		if heard := c.Conn.ledger.heard.get(at); heard == nil || heard.ifname != name {
			t.Errorf("heard by %+v, want %s", heard, name)
		}
	}
}

// TestEveryFollows: with the interfaces watched, those that come are joined and
// those that go down are not left behind.
func TestEveryFollows(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, s := newModelConn(t, y, ipv6, nil)
		c.must(c.JoinSource(c.group("*"), c.source(1)))
		h.add(7, "eth7")
		h.add(8, "eth8")
		time.Sleep(2 * time.Second)
		h.remove(8)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		for i, want := range map[int]bool{1: false, 2: true, 3: true, 7: true, 8: false} {
			if got := c.hears(i, c.group("").Addr, c.source(1)); got != want {
				t.Errorf("heard on %d: %v, want %v", i, got, want)
			}
		}
		if wrong := disagreement(&c.Conn.ledger, s); wrong != "" {
			t.Error(wrong)
		}
	})
}

// TestEveryChooses: ports of a bridge, loopback beside others, and what is down
// or takes no multicast are not meant.
func TestEveryChooses(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, s := newModelConn(t, y, ipv6, &Config{NoWatch: true, WaitForInterface: true})
		for i, name := range []string{"port", "down", "nomulticast", "br0", "noipv6"} {
			h.add(10+i, name)
		}
		h.change(10, func(l *modelLink) { l.Master = 13 })
		h.change(11, func(l *modelLink) { l.Up = false })
		h.change(12, func(l *modelLink) { l.Multicast = false })
		if y.name == "linux" {
			h.setIPv6(14, false)
		}
		on := func(want ...int) {
			t.Helper()
			var got []int
			for _, r := range s.Requests() {
				if r.Group.IsValid() && r.Err == nil {
					got = append(got, r.Interface)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("joined on %v, want %v", got, want)
			}
		}
		h.defaultRoute = 3 // comes first
		c.must(c.Join(c.group("*")))
		if y.name == "linux" && ipv6 {
			on(3, 2, 13)
		} else {
			on(3, 2, 13, 14)
		}
		c.must(c.Leave(c.group("*")))

		for _, i := range []int{2, 3, 13, 14} {
			h.remove(i)
		}
		c, _ = h.open(endpoint{ipv6: ipv6}, quiet), s
		s = c.socket
		c.must(c.Join(c.group("*")))
		on(1) // nothing else

		h.remove(1)
		c = h.open(endpoint{ipv6: ipv6}, quiet)
		c.refused(ErrInterface, "no interface is up and takes multicast", c.joins(c.group("*"))...)
		c.check()
		c = h.open(endpoint{ipv6: ipv6}, &Config{NoWatch: true, WaitForInterface: true})
		c.must(c.Join(c.group("*")))
		c.check(pending(c.exclude("*")))
		h.add(20, "eth20")
		c.must(c.Repair())
		if !c.hears(20, c.group("").Addr, c.source(1)) {
			t.Error("not heard when there is an interface")
		}
	})
}

// TestEveryAtLimit: the system's limit keeps out the least useful interfaces,
// and the program is told so once. Only where no interface takes it, a join is
// an error.
func TestEveryAtLimit(t *testing.T) {
	y := onLinux.with("20 groups", func(*kerneltest.Kernel) {})
	eachModel(t, []modelSystem{y}, func(t *testing.T, y modelSystem, ipv6 bool) {
		if ipv6 {
			return // there is no such limit
		}
		c, h, s := newModelConn(t, y, ipv6, quiet)
		for i := range 25 {
			h.add(10+i, fmt.Sprint("veth", i))
		}
		h.defaultRoute = 30
		c.must(c.Join(c.group("*")))
		synctest.Wait()
		held := inKernel(s)
		if _, ok := held[groupIndex{c.group("").Addr, 30}]; len(held) != 20 || !ok {
			t.Errorf("held on %d interfaces, the one with the default route: %v", len(held), ok)
		}
		events := c.told.take()
		if len(events) != 1 || !strings.HasPrefix(events[0], "failed 239.1.2.3%*") || !strings.Contains(events[0], "igmp_max_memberships") {
			t.Errorf("events: %v", events)
		}
		// It is whole all the same.
		if ms := c.Memberships(); len(ms) != 1 || ms[0].Pending {
			t.Errorf("memberships: %v", ms)
		}
		c.must(c.Block(c.group("*"), c.source(1)))
		if got := len(inKernel(s)); got != 20 {
			t.Errorf("held on %d interfaces after a Block", got)
		}
		for at, f := range inKernel(s) {
			if !f.equal(sourceFilter{Exclude, c.sources(1)}) {
				t.Errorf("%v has %v", at, f)
			}
		}
		if wrong := disagreement(&c.Conn.ledger, s); wrong != "" {
			t.Error(wrong)
		}
		// One that is of more use pushes out one that is of least.
		h.add(60, "wan")
		h.defaultRoute = 60
		c.must(c.Block(c.group("*"), c.source(2)))
		held = inKernel(s)
		if f := held[groupIndex{c.group("").Addr, 60}]; len(held) != 20 || !f.equal(sourceFilter{Exclude, c.sources(1, 2)}) {
			t.Errorf("held on %d interfaces, by the new default route %v", len(held), f)
		}
		second := Group{netip.MustParseAddr("239.1.2.4"), "*"}
		if err := c.Join(second); !errors.Is(err, ErrLimit) {
			t.Errorf("Join with no room at all: %v, want ErrLimit", err)
		}
		c.must(c.Leave(c.group("*")))
		c.check()
	})
}

// TestEveryFails: where a request fails on one interface, the others have it
// all the same; where it fails on all, nothing has changed.
func TestEveryFails(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, s := newModelConn(t, y, ipv6, quiet)
		g := c.group("*")
		limit := syscall.Errno(y.platform.limits[0])
		h.kernel.Fault = func(level, name int, value []byte) error {
			for _, op := range []Op{OpJoin, OpJoinSource, OpBlock} {
				if name == y.platform.mcast[op] || name == y.platform.ip[op] && level == levelIP {
					return limit
				}
			}
			return nil
		}
		if err := c.Join(g); !errors.Is(err, ErrLimit) {
			t.Errorf("Join: %v, want ErrLimit", err)
		}
		c.check()
		fault := h.kernel.Fault
		h.kernel.Fault = nil
		c.must(c.Join(g))
		h.kernel.Fault = fault
		if err := c.Block(g, c.source(1)); !errors.Is(err, ErrLimit) {
			t.Errorf("Block: %v, want ErrLimit", err)
		}
		h.kernel.Fault = nil
		if ms := c.Memberships(); len(ms) != 1 || ms[0].String() != g.String()+" EXCLUDE{}" {
			t.Errorf("memberships: %v", ms)
		}
		for _, i := range []int{2, 3} {
			if f := inKernel(s)[groupIndex{g.Addr, i}]; !f.equal(sourceFilter{mode: Exclude}) {
				t.Errorf("the kernel has %v on %d", f, i)
			}
		}
		// One interface that refuses a source still has the rest.
		end := c.failCalls(limit, func(call, _, _ int) bool { return call == 0 })
		c.must(c.Block(g, c.source(1)))
		end()
		for range 2 {
			for _, i := range []int{2, 3} {
				if c.hears(i, g.Addr, c.source(1)) || !c.hears(i, g.Addr, c.source(2)) {
					t.Errorf("on %d a blocked source is heard, or another one is not", i)
				}
			}
			c.must(c.Repair())
		}
		if f := inKernel(s)[groupIndex{g.Addr, 2}]; !f.equal(sourceFilter{Exclude, c.sources(1)}) {
			t.Errorf("the kernel has %v", f)
		}
		// What is no longer asked for is not heard where it could not be ended.
		c.must(c.SetFilter(g, Include, c.source(1)))
		end = c.failCalls(limit, func(call, _, _ int) bool { return call == 0 })
		c.must(c.SetFilter(g, Include, c.sources(2, 3)...))
		end()
		if c.hears(2, g.Addr, c.source(1)) || c.hears(3, g.Addr, c.source(1)) || !c.hears(3, g.Addr, c.source(2)) {
			t.Error("source 1 is heard, or 2 is not")
		}
		c.must(c.Repair())
		if !c.hears(2, g.Addr, c.source(2)) || !c.hears(3, g.Addr, c.source(3)) || c.hears(2, g.Addr, c.source(1)) {
			t.Error("sources 2 and 3 are not heard after Repair, or 1 is")
		}
	})
}
