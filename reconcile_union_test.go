//go:build !plan9

package mcast

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"

	"example.com/mcast/internal/kerneltest"
)

// On Linux the filter of a group's first IPv6 membership decides for all
// interfaces, so that each has the union of all. The read path is exact.

// TestUnion: several interfaces with filters of their own.
func TestUnion(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, _, _ := newModelConn(t, y, ipv6, quiet)
		for _, step := range []struct {
			to   Membership
			want []Membership
		}{
			{c.include("eth0", 1), []Membership{c.include("eth0", 1)}},
			{c.include("eth1", 2), []Membership{c.include("eth0", 1), c.include("eth1", 2)}},
			{c.include("eth1", 2, 3), []Membership{c.include("eth0", 1), c.include("eth1", 2, 3)}},
			{c.exclude("lo", 1, 4), []Membership{c.include("eth0", 1), c.include("eth1", 2, 3), c.exclude("lo", 1, 4)}},
			{c.exclude("lo", 1, 3, 4), []Membership{c.include("eth0", 1), c.include("eth1", 2, 3), c.exclude("lo", 1, 3, 4)}},
			{c.include("eth1"), []Membership{c.include("eth0", 1), c.exclude("lo", 1, 3, 4)}},
			{c.exclude("eth0"), []Membership{c.exclude("eth0"), c.exclude("lo", 1, 3, 4)}},
			{c.include("lo"), []Membership{c.exclude("eth0")}},
			{c.include("lo", 3), []Membership{c.exclude("eth0"), c.include("lo", 3)}},
			{c.include("eth0"), []Membership{c.include("lo", 3)}},
			{c.include("lo"), nil},
		} {
			c.must(c.set(step.to))
			c.check(step.want...)
		}
	})
}

// TestUnionOfRequests: single requests lead to single requests of each
// interface.
func TestUnionOfRequests(t *testing.T) {
	eachModel(t, []modelSystem{onLinux}, func(t *testing.T, y modelSystem, ipv6 bool) {
		if !ipv6 {
			return
		}
		c, _, _ := newModelConn(t, y, ipv6, quiet)
		e0, e1 := c.group("eth0"), c.group("eth1")
		c.must(c.JoinSource(e0, c.source(1)))
		for _, step := range []struct {
			request func() error
			want    string
		}{
			{func() error { return c.JoinSource(e1, c.source(1)) }, "MCAST_JOIN_SOURCE_GROUP"},
			{func() error { return c.JoinSource(e1, c.source(2)) }, "MCAST_JOIN_SOURCE_GROUP MCAST_JOIN_SOURCE_GROUP"},
			{func() error { return c.JoinSource(e0, c.source(2)) }, ""},
			{func() error { return c.LeaveSource(e1, c.source(2)) }, ""},
			{func() error { return c.LeaveSource(e0, c.source(2)) }, "MCAST_LEAVE_SOURCE_GROUP MCAST_LEAVE_SOURCE_GROUP"},
			{func() error { return c.Leave(e1) }, "MCAST_LEAVE_GROUP"},
			{func() error { return c.Leave(e0) }, "MCAST_LEAVE_GROUP"},
		} {
			if got := requestNames(c.sent(func() { c.must(step.request()) })); got != step.want {
				t.Errorf("sent %s, want %s", got, step.want)
			}
			c.check(c.Memberships()...)
		}
	})
}

// TestUnionNeverMore: SetFilter on one of two interfaces is not to fail for a
// union that neither the old nor the new filters need.
func TestUnionNeverMore(t *testing.T) {
	y := onLinux.with("with 4 sources", func(k *kerneltest.Kernel) { k.MaxMSF6 = 4 })
	eachModel(t, []modelSystem{y}, func(t *testing.T, y modelSystem, ipv6 bool) {
		if !ipv6 {
			return
		}
		c, _, _ := newModelConn(t, y, ipv6, quiet)
		c.must(c.set(c.include("eth0", 1, 2)))
		c.must(c.set(c.include("eth1", 3, 4)))
		c.must(c.set(c.include("eth1", 5, 6)))
		c.check(c.include("eth0", 1, 2), c.include("eth1", 5, 6))
		c.must(c.set(c.include("eth1", 1, 2, 7, 8)))
		c.check(c.include("eth0", 1, 2), c.include("eth1", 1, 2, 7, 8))
		c.must(c.set(c.exclude("eth0", 1, 2, 3, 4)))
		c.check(c.exclude("eth0", 1, 2, 3, 4), c.include("eth1", 1, 2, 7, 8))
		// One that it does need.
		c.must(c.set(c.include("eth0", 1, 2)))
		if err := c.set(c.include("eth1", 3, 4, 5)); !errors.Is(err, ErrLimit) {
			t.Errorf("a union of five: %v, want ErrLimit", err)
		}
		c.check(c.include("eth0", 1, 2), c.include("eth1", 1, 2, 7, 8))
		if err := c.JoinSource(c.group("eth0"), c.source(9)); !errors.Is(err, ErrLimit) {
			t.Errorf("a union of five: %v, want ErrLimit", err)
		}
		c.check(c.include("eth0", 1, 2), c.include("eth1", 1, 2, 7, 8))
	})
}

// TestUnionWithoutInterface: one of the interfaces is gone, known or not; the
// others' filters are no union any more, and not to be edited as if they were.
func TestUnionWithoutInterface(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		for _, known := range []string{"by a Repair", "by a Leave", "not"} {
			c, h, _ := newModelConn(t, y, ipv6, quiet)
			c.must(c.JoinSource(c.group("eth0"), c.source(1)))
			c.must(c.Join(c.group("eth1")))
			h.remove(3)
			gone := pending(c.exclude("eth1"))
			rest := []Membership{gone}
			switch known {
			case "by a Repair":
				c.must(c.Repair())
			case "by a Leave":
				c.must(c.Leave(c.group("eth1")))
				rest = nil
			}
			c.must(c.JoinSource(c.group("eth0"), c.source(2)))
			if known == "not" {
				c.must(c.Repair())
			}
			c.check(slices.Concat([]Membership{c.include("eth0", 1, 2)}, rest)...)
			c.must(c.LeaveSource(c.group("eth0"), c.source(1)))
			c.check(slices.Concat([]Membership{c.include("eth0", 2)}, rest)...)
			if known != "by a Leave" {
				h.add(9, "eth1")
				c.must(c.Repair())
				c.check(c.include("eth0", 2), c.exclude("eth1"))
			}
		}
	})
}

// TestUnionFails: where one interface cannot follow, no membership changes.
func TestUnionFails(t *testing.T) {
	eachModel(t, []modelSystem{onLinux}, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, _, _ := newModelConn(t, y, ipv6, quiet)
		c.must(c.set(c.include("eth0", 1)))
		c.must(c.set(c.include("eth1", 2)))
		for failing := range 3 {
			end := c.failCalls(syscall.Errno(105), func(call, _, _ int) bool { return call == failing })
			err := c.set(c.exclude("eth1", 3))
			if met := end(); met != (err != nil) || err != nil && !errors.Is(err, ErrLimit) {
				t.Errorf("failing call %d: %v", failing, err)
			}
			if err != nil {
				c.check(c.include("eth0", 1), c.include("eth1", 2))
			} else {
				c.check(c.include("eth0", 1), c.exclude("eth1", 3))
			}
		}
	})
}

// TestUnionStaysWide: where nothing could be narrowed, the ledger knows, the
// read path is exact, and the next request sets it right.
func TestUnionStaysWide(t *testing.T) {
	eachModel(t, []modelSystem{onLinux}, func(t *testing.T, y modelSystem, ipv6 bool) {
		if !ipv6 {
			return
		}
		c, _, s := newModelConn(t, y, ipv6, quiet)
		g := c.group("eth0")
		c.must(c.set(c.include("eth0", 1)))
		c.must(c.set(c.exclude("eth1")))
		// Leaving eth1 narrows eth0, which fails and fails again.
		end := c.failCalls(syscall.Errno(105), func(_, level, name int) bool { return !y.leaves(level, name) })
		err := c.Leave(c.group("eth1"))
		end()
		if wrong := disagreement(&c.Conn.ledger, s); wrong != "" {
			t.Fatal(wrong)
		}
		if !c.hears(2, g.Addr, c.source(1)) || c.hears(2, g.Addr, c.source(2)) {
			t.Error("what is heard on eth0 is not source 1")
		}
		if err != nil {
			c.must(c.Leave(c.group("eth1")))
		}
		c.must(c.JoinSource(g, c.source(2)))
		c.check(c.include("eth0", 1, 2))
	})
}

// TestIndexTakenOver: the index of an interface that went is in use again, and
// somebody else has the group there. What ends the old membership, news, a
// request, Repair or Close, is not to take theirs.
func TestIndexTakenOver(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		for _, tt := range []struct {
			name string
			end  func(c *modelConn) error
			want func(c *modelConn) []Membership
		}{
			{"Leave", func(c *modelConn) error { return c.Leave(c.group("eth0")) }, func(c *modelConn) []Membership { return nil }},
			{
				"JoinSource", func(c *modelConn) error { return c.JoinSource(c.group("eth0"), c.source(3)) },
				func(c *modelConn) []Membership { return []Membership{c.include("eth0", 1, 3)} },
			},
			{
				"SetFilter", func(c *modelConn) error { return c.set(c.exclude("eth0", 2)) },
				func(c *modelConn) []Membership { return []Membership{c.exclude("eth0", 2)} },
			},
			{"Repair", func(c *modelConn) error { return c.Repair() }, func(c *modelConn) []Membership { return []Membership{c.include("eth0", 1)} }},
			{"Close", func(c *modelConn) error { c.Close(); return nil }, func(c *modelConn) []Membership { return nil }},
		} {
			h := newModelHost(t, y)
			c, theirs := h.open(endpoint{ipv6: ipv6}, quiet), h.open(endpoint{ipv6: ipv6}, quiet)
			c.must(c.set(c.include("eth0", 1)))
			h.remove(2)
			// What the watcher does at once.
			c.mu.Lock()
			for _, e := range c.Conn.ledger.entries(c.group("").Addr) {
				c.Conn.ledger.distrust(c.group("").Addr, e, past)
			}
			c.mu.Unlock()
			h.add(2, "eth0")
			theirs.must(theirs.set(theirs.include("eth0", 1)))
			c.must(tt.end(c))
			if !theirs.hears(2, theirs.group("").Addr, theirs.source(1)) {
				t.Errorf("%s: others do not hear any more", tt.name)
			}
			c.check(tt.want(c)...)
			theirs.check(theirs.include("eth0", 1))
		}
	})
}

// TestLostInSilence: the interface went and another one has its index and name,
// without a word to the program. Where the kernel then does not know the
// membership, it is made anew, whole. (Linux says that all is well; only news, or
// Repair, helps there.)
func TestLostInSilence(t *testing.T) {
	eachModel(t, []modelSystem{onDarwin, onFreeBSD, onWindows}, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, quiet)
		c.must(c.set(c.include("eth0", 1, 2)))
		h.remove(2)
		h.add(2, "eth0")
		c.must(c.set(c.include("eth0", 1, 2, 3, 4)))
		c.check(c.include("eth0", 1, 2, 3, 4))
	})
}

// TestUnclearAnswers: that the system cannot say what interfaces there are, for
// want of descriptors for example, ends no membership.
func TestUnclearAnswers(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		for _, ifname := range []string{"eth0", "", "*"} {
			c, h, s := newModelConn(t, y, ipv6, quiet)
			g := c.group(ifname)
			c.must(c.set(Membership{Group: g, Mode: Exclude, Sources: c.sources(1)}))
			before := filterTexts(inKernel(s))
			shown := fmt.Sprint(c.Memberships())
			h.unclear = syscall.EMFILE
			if err := c.Join(c.group("eth1")); err == nil {
				t.Errorf("%q: joined on an interface that was not found", ifname)
			}
			mend([]*requests{&c.requests}, func(*requests) {})
			h.unclear = nil
			if got := fmt.Sprint(c.Memberships()); got != shown {
				t.Errorf("%q: memberships %s, were %s", ifname, got, shown)
			}
			if got := filterTexts(inKernel(s)); !slices.Equal(got, before) {
				t.Errorf("%q: the kernel has %v, had %v", ifname, got, before)
			}
		}
	})
}

// TestLeaveFails: what cannot be left cannot be made anew; Repair says so.
func TestLeaveFails(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, _, _ := newModelConn(t, y, ipv6, quiet)
		c.must(c.set(c.include("eth0", 1)))
		limit := syscall.Errno(y.platform.limits[0])
		end := c.failCalls(limit, func(_, level, name int) bool { return y.leaves(level, name) })
		if err := c.Repair(); !errors.Is(err, limit) {
			t.Errorf("Repair: %v, want %v", err, limit)
		}
		if ms := c.Memberships(); len(ms) != 1 || !ms[0].Pending {
			t.Errorf("memberships: %v", ms)
		}
		if err := c.Leave(c.group("eth0")); !errors.Is(err, ErrLimit) {
			t.Errorf("Leave of what could not be left before: %v, want ErrLimit", err)
		}
		if ms := c.Memberships(); len(ms) != 1 || !ms[0].Pending {
			t.Errorf("memberships: %v", ms)
		}
		end()
		c.must(c.Repair())
		c.check(c.include("eth0", 1))
		// Nor does a Leave that fails change anything.
		end = c.failCalls(limit, func(_, level, name int) bool { return y.leaves(level, name) })
		if err := c.Leave(c.group("eth0")); !errors.Is(err, ErrLimit) {
			t.Errorf("Leave: %v, want ErrLimit", err)
		}
		end()
		c.check(c.include("eth0", 1))
		c.must(c.Leave(c.group("eth0")))
		c.check()
	})
}
