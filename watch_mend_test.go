//go:build !plan9

package mcast

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// What is mended where news comes late, or the system's answers are in the way.

// unheard has f change the host without news of it.
func (h *modelHost) unheard(f func()) {
	h.mu.Lock()
	sources := h.sources
	h.sources = nil
	h.mu.Unlock()
	f()
	h.mu.Lock()
	h.sources = sources
	h.mu.Unlock()
}

// News of an interface that has gone comes when its index is in use again, and
// somebody else has the group there.
func TestMendingLate(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		for _, name := range []string{"eth0", "new0"} {
			h := newModelHost(t, y)
			c, theirs := h.open(endpoint{ipv6: ipv6}, nil), h.open(endpoint{ipv6: ipv6}, quiet)
			c.must(c.set(c.include("eth0", 1)))
			c.mu.Lock() // the news has to wait
			h.remove(2)
			h.add(2, name)
			theirs.must(theirs.set(theirs.include(name, 1)))
			c.mu.Unlock()
			synctest.Wait()
			if n := c.entries(); n > 0 {
				t.Errorf("%d entries of what has gone, before anything is mended", n)
			}
			pause(time.Second)
			if name == "eth0" {
				c.check(c.include("eth0", 1))
			} else {
				c.check(pending(c.include("eth0", 1)))
			}
			theirs.check(theirs.include(name, 1))
		}
	})
}

// What was joined by the new name before the news of it came stays.
func TestMendingRenamedLate(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		for _, name := range []string{"lan0", "5"} { // an interface by the name "5" has to be called "2"
			c, h, _ := newModelConn(t, y, ipv6, nil)
			c.must(c.set(c.another(c.exclude("eth0"))))
			h.unheard(func() { h.rename(2, name) })
			g := c.group("2")
			c.must(c.Join(g))
			h.change(2, func(*modelLink) {})
			g.Interface = ifnameFor(name, 2)
			a := c.another(c.exclude("eth0")).Group
			pause(time.Second)
			c.wantEvents(name, fmt.Sprintf("lost %v on eth0 (2)", a), fmt.Sprintf("pending %v on eth0 (2)", a))
			c.check(Membership{Group: g, Mode: Exclude, Index: 2}, pending(c.another(c.exclude("eth0"))))
			c.Close()
		}
		// What was told of the old name is not continued by the new one.
		c, h, _ := newModelConn(t, y, ipv6, nil)
		g := c.group("eth0")
		c.must(c.set(c.exclude("eth0")))
		h.setUp(2, false)
		h.rename(2, "lan0")
		h.setUp(2, true)
		pause(time.Second)
		c.wantEvents("renamed while it was down", "down eth0 (2)", fmt.Sprintf("lost %v on eth0 (2)", g), fmt.Sprintf("pending %v on eth0 (2)", g))
	})
}

// When IPv6 ends on an interface, its memberships are left: those that the system
// keeps, as it is switched off, and not those that it has forgotten, where others
// have joined again meanwhile.
func TestMendingIPv6(t *testing.T) {
	eachModel(t, []modelSystem{onLinux}, func(t *testing.T, y modelSystem, ipv6 bool) {
		if !ipv6 {
			return
		}
		h := newModelHost(t, y)
		c, theirs := h.open(endpoint{ipv6: ipv6}, nil), h.open(endpoint{ipv6: ipv6}, quiet)
		g := c.group("eth0")
		c.must(c.set(c.exclude("eth0")))
		c.mu.Lock()
		h.setMTU(2, 1200)
		h.setMTU(2, 1500)
		theirs.must(theirs.set(theirs.exclude("eth0")))
		c.mu.Unlock()
		pause(time.Second)
		c.wantEvents("IPv6 was away", fmt.Sprintf("lost %v on eth0 (2)", g), fmt.Sprintf("restored %v on eth0 (2)", g))
		c.check(c.exclude("eth0"))
		theirs.check(theirs.exclude("eth0"))

		calls := h.kernel.Calls()
		h.setIPv6(2, false)
		h.setIPv6(2, true)
		pause(time.Minute)
		c.wantEvents("IPv6 was off", fmt.Sprintf("lost %v on eth0 (2)", g), fmt.Sprintf("restored %v on eth0 (2)", g))
		if n := h.kernel.Calls() - calls; n != 2 {
			t.Errorf("%d calls, want a leave and a join\n%s", n, c.log())
		}
		c.check(c.exclude("eth0"))
	})
}

// IPv6 that comes back has only what changed in INCLUDE made anew.
func TestMendingIPv6Back(t *testing.T) {
	eachModel(t, []modelSystem{onLinux}, func(t *testing.T, y modelSystem, ipv6 bool) {
		if !ipv6 {
			return
		}
		c, h, _ := newModelConn(t, y, ipv6, nil)
		h.setIPv6(2, false)
		pause(time.Second)
		c.must(c.set(c.include("eth0", 1)))
		c.must(c.set(c.another(c.exclude("eth0"))))
		g := c.group("eth0")
		pause(time.Minute)
		c.wantEvents("joined while it is off")
		h.setIPv6(2, true)
		pause(time.Second)
		c.wantEvents("on again", fmt.Sprintf("lost %v on eth0 (2)", g), fmt.Sprintf("restored %v on eth0 (2)", g))
		c.check(c.include("eth0", 1), c.another(c.exclude("eth0")))
	})
}

// Only Linux loses what changes about when an interface goes down, and of several
// times that it was down each counts.
func TestMendingDownTwice(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		for before, again := range map[time.Duration]bool{500 * time.Millisecond: true, 2 * time.Second: false} {
			c, h, _ := newModelConn(t, y, ipv6, nil)
			c.must(c.set(c.include("eth0", 1)))
			pause(before)
			h.setUp(2, false)
			pause(time.Minute)
			calls := h.kernel.Calls()
			h.setUp(2, true)
			pause(time.Minute)
			again = again && y.platform.losesInclude || y.platform.upForgets
			if n := h.kernel.Calls() - calls; (n > 0) != again {
				t.Errorf("changed %v before it went down: %d calls, want some: %v\n%s", before, n, again, c.log())
			}
			c.check(c.include("eth0", 1))
			c.Close()
		}
		if y.name != "linux" {
			return
		}
		c, h, _ := newModelConn(t, y, ipv6, nil)
		c.must(c.set(c.include("eth0", 1)))
		pause(time.Minute)
		h.setUp(2, false)
		pause(time.Second)
		c.must(c.JoinSource(c.group("eth0"), c.source(2)))
		pause(time.Minute)
		for _, up := range []bool{true, false, true} {
			h.setUp(2, up)
			synctest.Wait()
		}
		pause(time.Minute)
		c.check(c.include("eth0", 1, 2))
	})
}

// What stays, because the socket can make nothing anew, is not lost.
func TestMendingSpent(t *testing.T) {
	eachModel(t, []modelSystem{onDarwin, onFreeBSD}, func(t *testing.T, y modelSystem, ipv6 bool) {
		h, _ := hostWithLittleRoom(t, y, ipv6)
		c := h.open(endpoint{ipv6: ipv6}, nil)
		c.must(c.JoinSource(c.group("eth1"), c.source(1)))
		c.must(c.Join(c.another(c.exclude("eth1")).Group))
		pause(time.Second)
		// One that could not be left, before the socket was spent.
		end := c.failCalls(4242, func(_, level, name int) bool { return y.leaves(level, name) })
		h.wake()
		pause(time.Second)
		end()
		c.told.take()
		l := &c.Conn.ledger
		c.mu.Lock()
		l.spent = errors.New("spent")
		sent := c.sent(c.leaveStale)
		for _, e := range l.entries(c.group("").Addr) {
			e.trust = exact
		}
		for _, e := range l.entries(c.another(c.exclude("eth1")).Group.Addr) {
			e.trust = exact
		}
		c.mu.Unlock()
		if len(sent) > 0 {
			t.Errorf("a spent socket leaves: %v", sent)
		}
		pause(lastRetry)
		c.told.take()
		h.wake()
		pause(time.Second)
		c.Repair()
		synctest.Wait()
		if got := c.told.take(); slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "lost") }) {
			t.Errorf("events %q", got)
		}
		// But with its interface it is.
		g := c.group("eth1")
		h.rename(3, "lan0")
		synctest.Wait()
		if got := c.told.take(); !slices.Contains(got, fmt.Sprintf("lost %v on eth1 (3)", g)) || !slices.Contains(got, fmt.Sprintf("pending %v on eth1 (3)", g)) {
			t.Errorf("renamed: events %q", got)
		}
	})
}

// Repair finds that an interface has gone, and cannot leave; its index is in use
// again by the next Repair. Nor does Close take what is others' then.
func TestRepairIndexTakenOver(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		for _, repair := range []bool{true, false} {
			h := newModelHost(t, y)
			c, theirs := h.open(endpoint{ipv6: ipv6}, quiet), h.open(endpoint{ipv6: ipv6}, quiet)
			c.must(c.set(c.include("eth0", 1)))
			h.remove(2)
			if repair {
				end := c.failCalls(4242, func(int, int, int) bool { return true })
				c.Repair()
				end()
			}
			h.add(2, "new0")
			theirs.must(theirs.set(theirs.include("new0", 1)))
			if repair {
				c.Repair()
			}
			c.Close()
			theirs.check(theirs.include("new0", 1))
		}
	})
}

// What could not be left is left when that is possible, and one group that fails
// among others that do not is made anew then; nobody tells of that.
func TestMendingTriesAgain(t *testing.T) {
	eachModel(t, []modelSystem{onLinux}, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, nil)
		g := c.group("*")
		g.Addr = g.Addr.Prev()
		c.must(c.Join(g))
		m := c.group("eth0")
		for range 8 { // others, that do not fail
			m.Addr = m.Addr.Next()
			c.must(c.Join(m))
		}
		end := c.failCalls(4242, func(_, level, name int) bool { return y.leaves(level, name) })
		h.setUp(3, false)
		pause(time.Hour)
		if !end() {
			t.Fatal("nothing was left")
		}
		pause(lastRetry)
		if n := c.entries(); n != 1+8 {
			t.Errorf("%d entries, want those of eth0 alone\n%s", n, c.log())
		}
	})
}
