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
)

// What the program is told of its memberships: all that is new, once, and what
// Repair answers.

// Of several interfaces each reason is told once, with those that it is about.
func TestFailureReasons(t *testing.T) {
	room, memory := errors.New("no room"), errors.New("no memory")
	targets := []target{
		{ifname: "a", member: "*", err: room},
		{ifname: "b", member: "*"},
		{ifname: "c", member: "*", err: memory},
		{ifname: "d", member: "*", err: errors.New("no room")},
		{ifname: "e", member: "e", err: memory},
		{ifname: "f", member: "f"},
	}
	for member, want := range map[string]struct{ why, text string }{
		"*": {"no room\nno memory", "on a, d: no room\non c: no memory"},
		"e": {"no memory", "no memory"},
		"f": {},
		"g": {},
	} {
		why, err := failure(targets, member)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if why != want.why || text != want.text {
			t.Errorf("%s: %q, %q, want %q, %q", member, why, text, want.why, want.text)
		}
	}
}

// severalSockets are those of a Pool, for what only looks at them.
type severalSockets struct {
	holder
	all []*ledger
}

func (s severalSockets) ledgers(netip.Addr) []*ledger { return s.all }

// A membership is held by an entry that has all of it, or by several of one
// interface that have it together.
func TestHeldEntry(t *testing.T) {
	addr := netip.MustParseAddr("239.1.2.3")
	sources := []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")}
	part := func(index int, member string, s ...netip.Addr) entry {
		return entry{index: index, member: member, held: newSourceFilter(Include, s)}
	}
	lost := part(2, "*", sources...)
	lost.trust = stale
	for name, test := range map[string]struct {
		sockets [][]entry
		want    int // the index; 0: it is not held
	}{
		"none":                       {},
		"one":                        {[][]entry{{part(2, "*", sources...)}}, 2},
		"a part of it":               {[][]entry{{part(2, "*", sources[:2]...)}}, 0},
		"together":                   {[][]entry{{part(2, "*", sources[:2]...)}, {part(2, "*", sources[1:]...)}}, 2},
		"together, after others":     {[][]entry{{part(2, "*", sources[:2]...)}, {part(3, "*", sources[2])}, {part(2, "*", sources[2])}}, 2},
		"on different interfaces":    {[][]entry{{part(2, "*", sources[:2]...), part(3, "*", sources[1:]...)}}, 0},
		"the second has all":         {[][]entry{{part(2, "*", sources[:2]...), part(3, "*", sources...)}}, 3},
		"what is lost does not help": {[][]entry{{lost}, {part(3, "*", sources[:2]...)}}, 0},
		"nor what is of another one": {[][]entry{{part(2, "eth0", sources...)}}, 0},
	} {
		var s severalSockets
		for _, es := range test.sockets {
			l := new(ledger)
			for _, e := range es {
				*l.add(groupIndex{addr, e.index}, e.held) = e
			}
			s.all = append(s.all, l)
		}
		q := &requests{sockets: s}
		got := 0
		if e := q.heldEntry(addr, &state{ifname: "*", sourceFilter: newSourceFilter(Include, sources)}); e != nil {
			got = e.index
		}
		if got != test.want {
			t.Errorf("%s: held on %d, want %d", name, got, test.want)
		}
	}
}

// A membership on one interface is lost though the group is joined on another one,
// and of those on every interface the last counts, even if all are lost at once.
func TestLostOfSeveral(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, nil)
		g := c.group("eth0")
		c.must(c.set(c.exclude("eth0")))
		c.must(c.set(c.exclude("eth1")))
		h.remove(2)
		pause(time.Second)
		c.wantEvents("one of two", "down eth0 (2)", fmt.Sprintf("lost %v on eth0 (2)", g), fmt.Sprintf("pending %v on eth0 (2)", g))
		c.check(pending(c.exclude("eth0")), c.exclude("eth1"))
		c.Close()

		c, h, _ = newModelConn(t, y, ipv6, quiet)
		g = c.group("*")
		c.must(c.Join(g))
		c.must(c.Repair())
		c.wantEvents("all at once", fmt.Sprintf("lost %v on eth1 (3)", g), fmt.Sprintf("restored %v on eth0 (2, was 3)", g))
		if y.name == "windows" {
			return // which has no membership on what is down
		}
		for index := 1; index <= 3; index++ {
			h.setUp(index, false)
		}
		mend([]*requests{&c.requests}, func(*requests) {})
		c.wantEvents("all are down", fmt.Sprintf("lost %v on eth1 (3)", g), fmt.Sprintf("pending %v on eth1 (3)", g))
		h.setUp(3, true)
		c.must(c.Repair())
		c.wantEvents("one is up", fmt.Sprintf("restored %v on eth1 (3)", g))
	})
}

// That an interface has gone may be found by a request, before there is news.
func TestLostFoundByRequest(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, quiet)
		g := c.group("eth0")
		c.must(c.set(c.include("eth0", 1)))
		c.must(c.set(c.another(c.include("eth0", 1))))
		h.remove(2)
		c.must(c.JoinSource(g, c.source(2)))
		c.wantEvents("a request", fmt.Sprintf("lost %v on eth0 (2)", g), fmt.Sprintf("pending %v on eth0 (2)", g))
		c.must(c.Leave(c.another(c.include("eth0")).Group))
		c.wantEvents("the end of what was lost")
		c.check(pending(c.include("eth0", 1, 2)))
	})
}

// What the system does not let go of is lost once, and never heard.
func TestLostOnce(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, nil)
		g := c.group("eth0")
		c.must(c.set(c.exclude("eth0")))
		end := c.failCalls(4242, func(_, level, name int) bool { return y.leaves(level, name) })
		for range 3 {
			h.wake()
			pause(time.Minute)
		}
		got := c.told.take()
		if len(got) != 2 || got[0] != fmt.Sprintf("lost %v on eth0 (2)", g) || !strings.HasPrefix(got[1], fmt.Sprintf("failed %v on eth0 (2): ", g)) {
			t.Errorf("events %q", got)
		}
		if c.hears(2, g.Addr, c.source(1)) {
			t.Error("what is lost is heard")
		}
		if !end() {
			t.Error("nothing was left")
		}
		pause(lastRetry)
		c.wantEvents("it works again", fmt.Sprintf("restored %v on eth0 (2)", g))
		c.check(c.exclude("eth0"))
	})
}

// What a join that failed left behind is nothing to tell of, and goes: with its
// interface, or when it can be left.
func TestLeftBehind(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		for _, news := range []string{"another interface", "woke", "gone"} {
			c, h, _ := newModelConn(t, y, ipv6, nil)
			// The first request succeeds, and none after it.
			end := c.failCalls(4242, func(call, _, _ int) bool { return call > 0 })
			if err := c.set(c.include("eth0", 1, 2, 3)); err == nil {
				t.Fatal("SetFilter succeeded")
			}
			if n := c.entries(); n != 1 {
				t.Fatalf("%d are left behind, want 1", n)
			}
			if news == "woke" {
				h.wake()
				pause(time.Second)
			}
			end()
			if news == "another interface" {
				h.setCarrier(3, false)
			}
			if news == "gone" { // and somebody else has the group on another one of that index
				theirs := h.open(endpoint{ipv6: ipv6}, quiet)
				c.requests.mu.Lock() // the news has to wait
				h.remove(2)
				h.add(2, "eth0")
				theirs.must(theirs.set(theirs.include("eth0", 1)))
				c.requests.mu.Unlock()
				pause(time.Second)
				theirs.check(theirs.include("eth0", 1))
			}
			pause(lastRetry)
			if n := c.entries(); n != 0 {
				t.Errorf("%s: %d are left behind\n%s", news, n, c.log())
			}
			got := slices.DeleteFunc(c.told.take(), func(s string) bool { return strings.HasPrefix(s, "down") || strings.HasPrefix(s, "up") })
			if len(got) > 0 {
				t.Errorf("events %q", got)
			}
			c.check()
			c.Close()
		}
	})
}

// What never was held is pending under the name that it was asked for by, if it
// has one.
func TestPendingEvents(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, &Config{WaitForInterface: true})
		h.setDefault(0)
		named, routed, every := c.group("eth7"), c.another(c.exclude("")).Group, c.group("*")
		every.Addr = every.Addr.Prev()
		for i := 1; i <= 3; i++ {
			h.remove(i)
		}
		c.must(errors.Join(c.Join(named), c.Join(routed), c.Join(every)))
		c.wantEvents("joined", fmt.Sprintf("pending %v on eth7", named), fmt.Sprintf("pending %v", routed), fmt.Sprintf("pending %v", every))
		pause(time.Minute)
		c.wantEvents("as before")
	})
}

// Where one filter decides for all interfaces, one that cannot be narrowed when
// another has gone is told of once, whatever else is requested.
func TestFailedWide(t *testing.T) {
	eachModel(t, []modelSystem{onLinux}, func(t *testing.T, y modelSystem, ipv6 bool) {
		if !ipv6 {
			return
		}
		c, h, _ := newModelConn(t, y, ipv6, quiet)
		c.must(c.set(c.include("eth0", 1)))
		c.must(c.set(c.include("eth1", 2)))
		end := c.failCalls(4242, func(_, level, name int) bool { return !y.leaves(level, name) })
		h.remove(3)
		again := func() { mend([]*requests{&c.requests}, func(*requests) {}) }
		again()
		g := c.group("eth1")
		synctest.Wait()
		want := []string{fmt.Sprintf("lost %v on eth1 (3)", g), fmt.Sprintf("failed %v on eth0: ", c.group("eth0")), fmt.Sprintf("pending %v on eth1 (3)", g)}
		got := c.told.take()
		if len(got) != 3 || got[0] != want[0] || !strings.HasPrefix(got[1], want[1]) || got[2] != want[2] {
			t.Errorf("events %q, want %q", got, want)
		}
		c.must(c.JoinSource(g, c.source(3)))
		again()
		c.wantEvents("as before")
		end()
		again()
		c.wantEvents("narrowed")
		c.check(c.include("eth0", 1), pending(c.include("eth1", 2, 3)))
	})
}

// What was left while it waited is forgotten: Repair has nothing to say of it, and
// a new join is no return of it.
func TestFailedIsLeft(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, _, _ := newModelConn(t, y, ipv6, quiet)
		g := c.group("eth0")
		c.must(c.set(c.include("eth0", 1)))
		end := c.failCalls(4242, func(_, level, name int) bool { return !y.leaves(level, name) })
		err := c.Repair()
		if err == nil {
			t.Fatal("Repair succeeded")
		}
		c.wantEvents("failed", fmt.Sprintf("lost %v on eth0 (2)", g), fmt.Sprintf("failed %v on eth0 (2): %v", g, err))
		end()
		c.must(c.Leave(g))
		c.must(c.Repair())
		c.must(c.Join(g))
		c.wantEvents("another one")
		c.check(c.exclude("eth0"))
	})
}

// A membership on every interface that comes back in part is told of so, and
// Repair says what is missing, until nothing is.
func TestRestoredInPart(t *testing.T) {
	eachModel(t, []modelSystem{onLinux, onFreeBSD}, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, _, _ := newModelConn(t, y, ipv6, quiet)
		g := c.group("*")
		refuse := func(indexes ...byte) {
			c.kernel.Fault = func(_, name int, value []byte) error {
				if name == y.platform.mcast[OpJoin] && slices.Contains(indexes, value[0]) {
					return syscall.Errno(4242)
				}
				return nil
			}
		}
		told := func(what string, want ...string) {
			t.Helper()
			synctest.Wait()
			got := c.told.take()
			if len(got) != len(want) {
				t.Fatalf("%s: events %q, want %q", what, got, want)
			}
			for i := range got {
				if !strings.HasPrefix(got[i], strings.ReplaceAll(want[i], "*", g.String())) {
					t.Errorf("%s: events %q, want %q", what, got, want)
				}
			}
		}
		fails := func(err error, where string) {
			t.Helper()
			if err == nil || !strings.Contains(err.Error(), ": on "+where+": ") || !errors.Is(err, syscall.Errno(4242)) {
				t.Errorf("Repair: %v, want it on %s", err, where)
			}
		}
		again := func() { mend([]*requests{&c.requests}, func(*requests) {}) }
		c.must(c.Join(g))
		refuse(2)
		for range 2 {
			fails(c.Repair(), "eth0")
			told("in part", "lost * on eth1 (3)", "restored * on eth1 (3)", "failed *: ")
			if ms := c.Memberships(); len(ms) != 1 || ms[0].Pending {
				t.Errorf("memberships %v", ms)
			}
			again()
			told("as before")
		}
		refuse(2, 3)
		fails(c.Repair(), "eth0, eth1")
		told("on none", "lost * on eth1 (3)", "failed * on eth1 (3): ")
		again()
		told("as before")
		// That one still fails is told again.
		refuse(2)
		again()
		told("in part", "restored * on eth1 (3)", "failed *: ")
		refuse()
		again()
		c.must(c.Repair())
		told("whole", "lost * on eth0 (2)", "restored * on eth0 (2)")
		refuse(3)
		fails(c.Repair(), "eth1")
		told("in part", "lost * on eth1 (3)", "restored * on eth0 (2, was 3)", "failed *: ")
		// What is whole again, and then is not, is news.
		refuse()
		again()
		c.requests.mu.Lock()
		l := &c.Conn.ledger
		l.distrust(g.Addr, l.entry(groupIndex{g.Addr, 3}), stale)
		c.requests.mu.Unlock()
		refuse(3)
		again()
		told("in part", "failed *: ")
	})
}
