//go:build !plan9

package mcast

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// What news of interfaces does to memberships, on models of four systems' kernels
// and of their hosts.

func TestEventString(t *testing.T) {
	g := Group{netip.MustParseAddr("232.1.1.1"), "eth0"}
	every := Group{g.Addr, "*"}
	for want, e := range map[string]Event{
		"lost 232.1.1.1%eth0 on eth0 (2)":                  {Kind: EventLost, Group: g, Old: 2, Name: "eth0"},
		"pending 232.1.1.1%eth0 on eth0 (2)":               {Kind: EventPending, Group: g, Old: 2, Name: "eth0"},
		"pending 232.1.1.1":                                {Kind: EventPending, Group: Group{Addr: g.Addr}},
		"restored 232.1.1.1%eth0 on eth0 (2, was 5)":       {Kind: EventRestored, Group: g, Old: 5, New: 2, Name: "eth0"},
		"restored 232.1.1.1%eth0 on eth0 (2)":              {Kind: EventRestored, Group: g, Old: 2, New: 2, Name: "eth0"},
		"failed 232.1.1.1%eth0 on eth0 (2): out of memory": {Kind: EventFailed, Group: g, Old: 2, Name: "eth0", Err: errors.New("out of memory")},
		"failed 232.1.1.1%*: out of memory":                {Kind: EventFailed, Group: every, Err: errors.New("out of memory")},
		"failed: no news":                                  {Kind: EventFailed, Err: errors.New("no news")},
		"down eth0 (2)":                                    {Kind: EventDown, Name: "eth0", Old: 2, New: 2},
		"up eth0 (2)":                                      {Kind: EventUp, Name: "eth0", Old: 2, New: 2},
	} {
		if e.String() != want {
			t.Errorf("%q, want %q", e, want)
		}
	}
	if s := EventKind(numEventKinds).String(); s != "EventKind(6)" {
		t.Error(s)
	}
}

// The log tells what events tell, at the level that it deserves, and nothing that
// is no news.
func TestEventsLogged(t *testing.T) {
	g := Group{netip.MustParseAddr("232.1.1.1"), "eth0"}
	for want, e := range map[string]Event{
		`level=WARN msg="mcast: membership lost" interface=eth0 group=232.1.1.1 old=2`:                     {Kind: EventLost, Group: g, Old: 2, Name: "eth0"},
		`level=WARN msg="mcast: membership failed" interface=eth0 group=232.1.1.1 old=2 error="no memory"`: {Kind: EventFailed, Group: g, Old: 2, Name: "eth0", Err: errors.New("no memory")},
		`level=INFO msg="mcast: membership restored" interface=eth0 group=232.1.1.1 old=2 new=3`:           {Kind: EventRestored, Group: g, Old: 2, New: 3, Name: "eth0"},
		`level=WARN msg="mcast: interface down" interface=eth0 old=2 new=2`:                                {Kind: EventDown, Old: 2, New: 2, Name: "eth0"},
		`level=INFO msg="mcast: interface up" interface=eth0 old=2 new=2`:                                  {Kind: EventUp, Old: 2, New: 2, Name: "eth0"},
		`level=WARN msg="mcast: membership pending" interface=eth0 group=232.1.1.1`:                        {Kind: EventPending, Group: g, Name: "eth0"},
	} {
		var b strings.Builder
		var told []Event
		noTime := func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
		cfg := Config{
			Logger:  slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{ReplaceAttr: noTime})),
			OnEvent: func(e Event) { told = append(told, e) },
		}
		cfg.notify(e)
		if b.String() != want+"\n" {
			t.Errorf("logged %q, want %q", b.String(), want)
		}
		if !slices.Equal(told, []Event{e}) {
			t.Errorf("told %v, want %v", told, e)
		}
		cfg.OnEvent = nil // which it need not have
		cfg.notify(e)
		if b.String() != want+"\n"+want+"\n" {
			t.Errorf("logged %q without OnEvent", b.String())
		}
	}
}

// pause lets time go by in a bubble, and everybody else act.
func pause(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// wantEvents compares what a Conn was told with what it should have been.
func (c *modelConn) wantEvents(what string, want ...string) {
	c.t.Helper()
	synctest.Wait()
	if got := c.told.take(); !slices.Equal(got, want) {
		c.t.Errorf("%s: events %q, want %q\n%s", what, got, want, c.log())
	}
}

// another is a membership of a second group.
func (c *modelConn) another(m Membership) Membership {
	m.Group.Addr = m.Group.Addr.Next()
	return m
}

// A membership follows the name of its interface, whatever index it has.
func TestMendingFollowsName(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, nil)
		both := func() []Membership { return []Membership{c.include("eth0", 1, 2), c.another(c.exclude("eth0", 3))} }
		waiting := func() []Membership { return []Membership{pending(both()[0]), pending(both()[1])} }
		for _, m := range both() {
			c.must(c.set(m))
		}
		a, b := both()[0].Group, both()[1].Group
		lost := func(index int) []string {
			return []string{
				fmt.Sprintf("down eth0 (%d)", index),
				fmt.Sprintf("lost %v on eth0 (%d)", a, index), fmt.Sprintf("pending %v on eth0 (%d)", a, index),
				fmt.Sprintf("lost %v on eth0 (%d)", b, index), fmt.Sprintf("pending %v on eth0 (%d)", b, index),
			}
		}
		restored := func(old, index int) []string {
			was := ""
			if old != index {
				was = fmt.Sprintf(", was %d", old)
			}
			return []string{fmt.Sprintf("restored %v on eth0 (%d%s)", a, index, was), fmt.Sprintf("restored %v on eth0 (%d%s)", b, index, was)}
		}
		same := func(what string, want []string) {
			t.Helper()
			synctest.Wait()
			got := c.told.take()
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("%s: events %q, want %q", what, got, want)
			}
		}
		h.remove(2)
		pause(time.Second)
		same("removed", lost(2))
		c.check(waiting()...)

		// A name that does not return costs nothing, whatever else happens.
		calls := h.kernel.Calls()
		h.setCarrier(3, false)
		h.setCarrier(3, true)
		pause(time.Hour)
		if n := h.kernel.Calls() - calls; n > 0 {
			t.Errorf("%d calls for what is pending", n)
		}
		same("elsewhere", nil)

		// Another index, and more than one life.
		old := 2
		for _, index := range []int{7, 8, 8, 2} {
			h.add(index, "eth0")
			pause(time.Second)
			same("added", restored(old, index))
			c.check(both()...)
			h.remove(index)
			pause(time.Second)
			same("removed again", lost(index))
			c.check(waiting()...)
			old = index
		}
		// All at once.
		h.add(9, "eth0")
		pause(time.Second)
		same("added", restored(2, 9))
		h.remove(9)
		h.add(9, "eth0")
		pause(time.Second)
		same("made anew at once", append(lost(9), restored(9, 9)...))
		c.check(both()...)
		h.remove(9)
		h.add(10, "eth0")
		pause(time.Second)
		same("made anew at once with another index", append(lost(9), restored(9, 10)...))
		c.check(both()...)
	})
}

// A new name is another interface.
func TestMendingRenamed(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, nil)
		g := c.group("eth0")
		c.must(c.set(c.include("eth0", 1)))
		h.rename(2, "lan0")
		pause(time.Second)
		c.wantEvents("renamed", fmt.Sprintf("lost %v on eth0 (2)", g), fmt.Sprintf("pending %v on eth0 (2)", g))
		c.check(pending(c.include("eth0", 1)))
		c.must(c.set(c.exclude("lan0", 2)))
		c.check(pending(c.include("eth0", 1)), c.exclude("lan0", 2))
		h.rename(2, "eth0")
		pause(time.Second)
		c.wantEvents("renamed back", fmt.Sprintf("lost %v on lan0 (2)", c.group("lan0")), fmt.Sprintf("pending %v on lan0 (2)", c.group("lan0")),
			fmt.Sprintf("restored %v on eth0 (2)", g))
		c.check(c.include("eth0", 1), pending(c.exclude("lan0", 2)))
		// A name that another interface takes over at once.
		h.rename(2, "old0")
		h.add(7, "eth0")
		pause(time.Second)
		c.check(c.include("eth0", 1), pending(c.exclude("lan0", 2)))
	})
}

// Two interfaces come back with the indexes swapped.
func TestMendingSwapped(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		for _, atOnce := range []bool{false, true} {
			c, h, _ := newModelConn(t, y, ipv6, nil)
			c.must(c.set(c.include("eth0", 1, 2)))
			c.must(c.set(c.include("eth1", 3)))
			h.remove(2)
			h.remove(3)
			if !atOnce {
				pause(time.Second)
				c.check(pending(c.include("eth0", 1, 2)), pending(c.include("eth1", 3)))
			}
			h.add(3, "eth0")
			if !atOnce {
				pause(time.Second)
				c.check(c.include("eth0", 1, 2), pending(c.include("eth1", 3)))
			}
			h.add(2, "eth1")
			pause(time.Second)
			c.check(c.include("eth0", 1, 2), c.include("eth1", 3))
		}
	})
}

// Requests on what is pending go to the filter alone.
func TestMendingRequests(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, nil)
		g := c.group("eth0")
		c.must(c.set(c.include("eth0", 1, 2)))
		h.remove(2)
		pause(time.Second)
		c.told.take()
		calls := h.kernel.Calls()
		c.must(c.JoinSource(g, c.source(3)))
		c.must(c.LeaveSource(Group{Addr: g.Addr}, c.source(1)))
		for what, test := range map[string]struct{ err, want error }{
			"Join": {c.Join(g), ErrMode}, "Block": {c.Block(g, c.source(3)), ErrMode}, "Unblock": {c.Unblock(g, c.source(3)), ErrMode},
			"JoinSource": {c.JoinSource(g, c.source(3)), ErrJoined}, "LeaveSource": {c.LeaveSource(g, c.source(1)), ErrNotJoined},
		} {
			if !errors.Is(test.err, test.want) {
				t.Errorf("%s: %v, want %v", what, test.err, test.want)
			}
		}
		c.check(pending(c.include("eth0", 2, 3)))
		c.must(c.set(c.exclude("eth0")))
		c.must(errors.Join(c.Block(g, c.source(1)), c.Block(g, c.source(2)), c.Unblock(g, c.source(1))))
		c.check(pending(c.exclude("eth0", 2)))
		if _, err := c.SystemFilter(g); !errors.Is(err, ErrNotJoined) {
			t.Errorf("SystemFilter: %v", err)
		}
		c.must(c.Leave(g))
		c.check()
		if err := c.Block(g, c.source(1)); !errors.Is(err, ErrNotJoined) {
			t.Error(err)
		}
		if n := h.kernel.Calls() - calls; n > 0 {
			t.Errorf("the kernel was called %d times\n%s", n, c.log())
		}
		h.add(7, "eth0")
		pause(time.Second)
		c.wantEvents("what was left does not come back")
		c.check()
	})
}

// A program that joins before the news has come has joined once.
func TestMendingEager(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, nil)
		c.must(c.set(c.include("eth0", 1)))
		h.remove(2)
		pause(time.Second)
		h.add(7, "eth0")
		c.must(c.JoinSource(c.group("eth0"), c.source(3)))
		c.check(c.include("eth0", 1, 3))
		calls := h.kernel.Calls()
		pause(time.Minute)
		if n := h.kernel.Calls() - calls; n > 0 {
			t.Errorf("%d calls for what is there\n%s", n, c.log())
		}
		c.check(c.include("eth0", 1, 3))
		if got := c.told.take(); got[len(got)-1] != fmt.Sprintf("restored %v on eth0 (7, was 2)", c.group("eth0")) {
			t.Errorf("events %q", got)
		}
	})
}

// What failed is told once, and tried again; nothing is left behind meanwhile.
func TestMendingFails(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, nil)
		g := c.group("eth0")
		c.must(c.set(c.include("eth0", 1, 2)))
		h.remove(2)
		pause(time.Second)
		c.told.take()
		end := c.failCalls(syscall.Errno(4242), func(int, int, int) bool { return true })
		h.add(7, "eth0")
		pause(time.Hour)
		c.told.mu.Lock()
		var e *OpError
		if len(c.told.all) != 1 || c.told.all[0].Kind != EventFailed || !errors.As(c.told.all[0].Err, &e) || e.Op != "Repair" || e.Group != g || !errors.Is(e, syscall.Errno(4242)) {
			t.Errorf("events %v", c.told.all)
		}
		c.told.all = nil
		c.told.mu.Unlock()
		if err := c.Repair(); !errors.Is(err, syscall.Errno(4242)) && (err == nil || !strings.Contains(err.Error(), "4242")) {
			t.Errorf("Repair: %v", err)
		}
		if !end() {
			t.Error("nothing was tried")
		}
		c.check(pending(c.include("eth0", 1, 2)))
		c.wantEvents("as before")
		pause(lastRetry)
		c.wantEvents("it works again", fmt.Sprintf("restored %v on eth0 (7, was 2)", g))
		c.check(c.include("eth0", 1, 2))
	})
}

// tells records which of the requests a kernel gets leave, and which join.
func (c *modelConn) tells() (order func() string) {
	p := c.platform
	var b strings.Builder
	c.kernel.Fault = func(level, name int, _ []byte) error {
		joins := level != levelIPv6 && (name == p.ip[OpJoin] || name == p.ip[OpJoinSource]) || name == p.mcast[OpJoin] || name == p.mcast[OpJoinSource]
		switch {
		case c.host.system.leaves(level, name):
			b.WriteByte('l')
		case joins:
			b.WriteByte('j')
		}
		return nil
	}
	return func() string {
		defer b.Reset()
		return b.String()
	}
}

// A kernel announces a group again only after its last member left: all sockets of
// the program leave before any joins, when a carrier is back, the machine woke, and
// on Windows when an interface is up.
func TestMendingAnnounces(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		h := newModelHost(t, y)
		var conns []*modelConn
		for range 3 {
			conns = append(conns, h.open(endpoint{ipv6: ipv6}, nil))
		}
		pool := h.openPool(ipv6, nil)
		c := conns[0]
		for _, c := range conns {
			c.must(c.set(c.exclude("eth0")))
		}
		m := pool.on(5000)
		c.must(m.Join(c.group("eth0")))
		pause(10 * time.Second)
		order := c.tells()
		expect := func(what string, again bool) {
			t.Helper()
			pause(time.Second)
			want := ""
			if again {
				want = "lllljjjj"
			}
			if got := order(); got != want {
				t.Errorf("%s: %q, want %q", what, got, want)
			}
			for _, c := range conns {
				c.check(c.exclude("eth0"))
			}
			if n := pool.hears(m, 2, c.group("").Addr, c.source(1)); n != 1 {
				t.Errorf("%s: %d sockets of the Pool hear", what, n)
			}
		}
		h.setCarrier(2, false)
		pause(time.Second)
		h.setCarrier(2, true)
		// FreeBSD and macOS tell of carriers in other ways; the model tells of all.
		expect("a carrier", true)
		h.wake()
		expect("after sleep", true)
		h.setUp(2, false)
		pause(time.Second)
		h.setUp(2, true)
		expect("down and up", y.platform.upForgets)
		h.setCarrier(3, false)
		h.setCarrier(3, true)
		expect("the carrier of another interface", false)
	})
}

// While an interface is down, or its IPv6 is off, Linux loses what is changed in
// INCLUDE; what was joined long before it keeps.
func TestMendingDown(t *testing.T) {
	for _, way := range []string{"down", "IPv6"} {
		eachModel(t, []modelSystem{onLinux}, func(t *testing.T, y modelSystem, ipv6 bool) {
			if way == "IPv6" && !ipv6 {
				return
			}
			for _, changed := range []bool{false, true} {
				c, h, _ := newModelConn(t, y, ipv6, nil)
				turn := h.setUp
				if way == "IPv6" {
					turn = h.setIPv6
				}
				c.must(c.set(c.include("eth0", 1)))
				c.must(c.set(c.another(c.exclude("eth0"))))
				pause(time.Minute)
				turn(2, false)
				pause(time.Minute)
				want := []Membership{c.include("eth0", 1), c.another(c.exclude("eth0"))}
				if changed {
					c.must(c.JoinSource(want[0].Group, c.source(2)))
					c.must(c.Block(want[1].Group, c.source(2)))
					want = []Membership{c.include("eth0", 1, 2), c.another(c.exclude("eth0", 2))}
				}
				pause(time.Minute)
				turn(2, true)
				pause(time.Minute)
				got := c.told.take()
				again := []string{"down eth0 (2)", "up eth0 (2)"}
				if changed {
					again = append(again, fmt.Sprintf("lost %v on eth0 (2)", want[0].Group), fmt.Sprintf("restored %v on eth0 (2)", want[0].Group))
				}
				if way == "down" && !slices.Equal(got, again) {
					t.Errorf("changed: %v: events %q, want %q", changed, got, again)
				}
				c.check(want...)
				c.Close()
			}
		})
	}
}

// So does an EXCLUDE that becomes an INCLUDE meanwhile, and one that was.
func TestMendingDownMode(t *testing.T) {
	eachModel(t, []modelSystem{onLinux}, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, nil)
		c.must(c.set(c.exclude("eth0")))
		c.must(c.set(c.another(c.include("eth0", 1))))
		pause(time.Minute)
		h.setUp(2, false)
		pause(time.Minute)
		c.must(c.set(c.include("eth0", 1)))
		c.must(c.set(c.another(c.exclude("eth0"))))
		pause(time.Minute)
		h.setUp(2, true)
		pause(time.Minute)
		g := c.group("eth0")
		c.wantEvents("up again", "down eth0 (2)", "up eth0 (2)", fmt.Sprintf("lost %v on eth0 (2)", g), fmt.Sprintf("restored %v on eth0 (2)", g))
		c.check(c.include("eth0", 1), c.another(c.exclude("eth0")))
	})
}

// What changed a little before the news that an interface is down may have changed
// after it went down.
func TestMendingDownLate(t *testing.T) {
	eachModel(t, []modelSystem{onLinux}, func(t *testing.T, y modelSystem, ipv6 bool) {
		for _, before := range []time.Duration{500 * time.Millisecond, 1500 * time.Millisecond} {
			c, h, _ := newModelConn(t, y, ipv6, nil)
			g := c.group("eth0")
			c.must(c.set(c.include("eth0", 1)))
			pause(time.Minute)
			c.must(c.JoinSource(g, c.source(2)))
			pause(before)
			h.setUp(2, false)
			pause(time.Minute)
			h.setUp(2, true)
			pause(time.Minute)
			want := []string{"down eth0 (2)", "up eth0 (2)"}
			if before < time.Second {
				want = append(want, fmt.Sprintf("lost %v on eth0 (2)", g), fmt.Sprintf("restored %v on eth0 (2)", g))
			}
			c.wantEvents(before.String(), want...)
			c.check(c.include("eth0", 1, 2))
			c.Close()
		}
	})
}

// A membership that was left while it was not held is told of no more.
func TestAbsentForgotten(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, quiet)
		c.must(c.set(c.include("eth0", 1)))
		h.remove(2)
		c.must(c.Repair())
		c.check(pending(c.include("eth0", 1)))
		g := c.group("eth0")
		c.wantEvents("gone", fmt.Sprintf("lost %v on eth0 (2)", g), fmt.Sprintf("pending %v on eth0 (2)", g))
		c.must(c.Leave(g))
		if len(c.absent) != 0 {
			t.Errorf("%v", c.absent)
		}
		h.add(2, "eth0")
		c.must(c.set(c.include("eth0", 1)))
		c.check(c.include("eth0", 1))
		c.wantEvents("joined again")
	})
}

// An MTU that IPv6 cannot run with ends its memberships, whatever they are.
func TestMendingMTU(t *testing.T) {
	eachModel(t, []modelSystem{onLinux}, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, nil)
		c.must(c.set(c.include("eth0", 1)))
		c.must(c.set(c.another(c.exclude("eth0", 2))))
		for _, atOnce := range []bool{true, false} {
			h.setMTU(2, 1200)
			if !atOnce {
				pause(time.Minute)
				if ms := c.Memberships(); ms[0].Pending != ipv6 || ms[1].Pending != ipv6 {
					t.Errorf("memberships %v", ms)
				}
				c.must(c.JoinSource(c.group("eth0"), c.source(3)))
			}
			h.setMTU(2, 1500)
			pause(time.Minute)
			want := c.include("eth0", 1)
			if !atOnce {
				want = c.include("eth0", 1, 3)
			}
			c.check(want, c.another(c.exclude("eth0", 2)))
		}
		got := len(c.told.take())
		if (got > 0) != ipv6 {
			t.Errorf("%d events", got)
		}
	})
}

// An interface with memberships that goes down and comes up is told of once, and
// one without is not.
func TestLinkEvents(t *testing.T) {
	eachModel(t, []modelSystem{onLinux, onFreeBSD}, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, nil)
		c.must(c.set(c.exclude("eth0")))
		c.must(c.set(c.another(c.exclude("eth0"))))
		pause(time.Minute)
		links := func(what string, want ...string) {
			t.Helper()
			pause(time.Minute)
			got := slices.DeleteFunc(c.told.take(), func(s string) bool { return strings.Contains(s, "%") })
			if !slices.Equal(got, want) {
				t.Errorf("%s: events %q, want %q", what, got, want)
			}
		}
		h.setUp(2, false)
		links("down", "down eth0 (2)")
		h.setUp(2, true)
		links("up", "up eth0 (2)")
		h.setCarrier(2, false)
		links("no carrier", "down eth0 (2)")
		h.setCarrier(2, true)
		links("a carrier", "up eth0 (2)")
		h.setUp(3, false)
		h.setUp(3, true)
		h.setCarrier(3, false)
		links("another one")
		// Up is not yet a carrier.
		h.setUp(2, false)
		h.setCarrier(2, false)
		links("down", "down eth0 (2)")
		h.setUp(2, true)
		links("up without a carrier")
		h.setCarrier(2, true)
		links("and with one", "up eth0 (2)")
		// Without a carrier, and then taken down: that is known.
		h.setCarrier(2, false)
		links("no carrier", "down eth0 (2)")
		h.setUp(2, false)
		links("down as well")
		h.setUp(2, true)
		links("not there yet")
		h.setCarrier(2, true)
		links("back", "up eth0 (2)")
	})
}

// What the routing table chose follows it.
func TestMendingRoute(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, nil)
		g := c.group("")
		c.must(c.JoinSource(g, c.source(1)))
		c.check(c.include("eth0", 1))
		h.setRoute(c.source(1), 0)
		pause(time.Minute)
		c.check(c.include("eth0", 1)) // it stays where it is
		c.wantEvents("no route, but an interface")
		h.remove(2)
		pause(time.Minute)
		waits := pending(c.include("", 1))
		waits.Group = g
		c.check(waits)
		c.wantEvents("gone", "down eth0 (2)", fmt.Sprintf("lost %v on eth0 (2)", g), fmt.Sprintf("pending %v on eth0 (2)", g))
		// No news tells of a route: it is looked for now and then.
		h.mu.Lock()
		h.routes[c.source(1)] = 3
		h.mu.Unlock()
		pause(lastRetry)
		c.check(c.include("eth1", 1))
		c.wantEvents("a route", fmt.Sprintf("restored %v on eth1 (3, was 2)", g))
	})
}

// A membership on every interface is lost with the last of them; a part that the
// system has no room for is told once, whatever becomes of the others.
func TestMendingEvery(t *testing.T) {
	eachModel(t, []modelSystem{onLinux}, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, nil)
		g := c.group("*")
		links := func() []string {
			pause(time.Minute)
			return slices.DeleteFunc(c.told.take(), func(s string) bool { return strings.HasPrefix(s, "down") || strings.HasPrefix(s, "up") })
		}
		c.must(c.Join(g))
		h.remove(3)
		if got := links(); len(got) > 0 {
			t.Errorf("one of two is gone: %q", got)
		}
		h.remove(2)
		h.setUp(1, false)
		got := links()
		if len(got) < 2 || got[0] != fmt.Sprintf("lost %v on eth0 (2)", g) || !strings.HasPrefix(got[len(got)-1], "pending ") && !strings.HasPrefix(got[len(got)-1], "lost ") {
			t.Errorf("the last is gone: %q", got)
		}
		if ms := c.Memberships(); len(ms) != 1 || !ms[0].Pending {
			t.Errorf("memberships %v", ms)
		}
		h.add(7, "eth0")
		if got := links(); len(got) == 0 || !strings.HasPrefix(got[len(got)-1], fmt.Sprintf("restored %v on eth0 (7", g)) {
			t.Errorf("one has come: %q", got)
		}
		if ipv6 {
			return
		}
		for i := range 30 { // Linux takes 20
			h.add(100+i, fmt.Sprintf("v%02d", i))
		}
		got = links()
		if len(got) != 1 || !strings.HasPrefix(got[0], "failed ") || !strings.Contains(got[0], "v29") {
			t.Errorf("no room for all: %q", got)
		}
		h.remove(100)
		h.add(200, "w00")
		h.remove(200)
		if got := links(); len(got) > 0 {
			t.Errorf("as before: %q", got)
		}
	})
}
