//go:build !plan9

package mcast

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/mcast/internal/kerneltest"
)

// filters are memberships of group on eth0 in each state, none of them first.
func (c *modelConn) filters() []Membership {
	return []Membership{
		c.include("eth0"),
		c.include("eth0", 1), c.include("eth0", 2), c.include("eth0", 1, 2), c.include("eth0", 2, 3), c.include("eth0", 1, 2, 3),
		c.exclude("eth0"),
		c.exclude("eth0", 1), c.exclude("eth0", 1, 2), c.exclude("eth0", 2, 3), c.exclude("eth0", 1, 2, 3),
	}
}

func filterOf(m Membership) sourceFilter { return newSourceFilter(m.Mode, m.Sources) }

// checkIs is check, where INCLUDE() is no membership.
func (c *modelConn) checkIs(m Membership) {
	c.t.Helper()
	if filterOf(m).none() {
		c.check()
	} else {
		c.check(m)
	}
}

// neverWider has a request lead from one filter of group on eth0 to another, and
// fails if the kernel ever lets through what neither of both does.
func (c *modelConn) neverWider(from, to sourceFilter, request func()) {
	c.t.Helper()
	at, both := groupIndex{c.group("").Addr, 2}, from.union(to)
	c.kernel.FaultAfter = func(int, int, []byte) error {
		if f := inKernel(c.socket)[at]; !both.covers(f) {
			c.t.Errorf("%v to %v by way of %v", from, to, f)
		}
		return nil
	}
	request()
	c.kernel.FaultAfter = nil
}

// TestEveryFilterToEvery leads from each filter to each, on all systems, by no
// more calls than it takes.
func TestEveryFilterToEvery(t *testing.T) {
	eachModel(t, slices.Concat(fourSystems, moreSystems()), func(t *testing.T, y modelSystem, ipv6 bool) {
		c, _, _ := newModelConn(t, y, ipv6, quiet)
		for _, from := range c.filters() {
			for _, to := range c.filters() {
				c.must(c.set(from))
				a, b := filterOf(from), filterOf(to)
				var sent []kerneltest.Request
				lead := func() { sent = c.sent(func() { c.must(c.set(to)) }) }
				if begins := a.none() && b.mode == Exclude || y.noFull && a.mode != b.mode; begins {
					lead() // a single Join is EXCLUDE()
				} else {
					c.neverWider(a, b, lead)
				}
				c.checkIs(to)

				most := 1
				switch {
				case a.equal(b):
					most = 0
				case a.none() && len(b.sources) > btoi(b.mode == Include):
					most = 2 // a full filter replaces what is there
				case b.mode == Exclude && len(b.sources) == 0 && len(a.sources) > btoi(a.mode == Exclude) && y.platform.noEmptyFull:
					most = 2
				}
				failed := 0
				for _, r := range sent {
					if r.Err != nil {
						failed++
					}
					if strings.HasSuffix(r.Name, "MSFILTER") && len(r.Sources) == 0 && y.platform.noEmptyFull {
						t.Errorf("%v to %v: an empty list is sent", from, to)
					}
				}
				if calls := len(sent) - failed; calls > most && !y.noFull {
					t.Errorf("%v to %v: %d calls, want %d: %s", from, to, calls, most, requestNames(sent))
				}
				if failed > 0 && slices.ContainsFunc(fourSystems, func(z modelSystem) bool { return z.name == y.name && y.name != "darwin" }) {
					t.Errorf("%v to %v: %s", from, to, requestNames(sent))
				}
				c.must(c.set(c.include("eth0")))
				c.check()
			}
		}
	})
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestEveryCallFails fails each of the calls that lead from one filter to
// another: then nothing has changed.
func TestEveryCallFails(t *testing.T) {
	systems := append(slices.Clone(fourSystems), withoutFull(onLinux), withoutFull(onFreeBSD), withoutFull(onWindows))
	eachModel(t, systems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, _, _ := newModelConn(t, y, ipv6, quiet)
		limit := syscall.Errno(y.platform.limits[0])
		for _, from := range c.filters() {
			for _, to := range c.filters() {
				for failing := 0; ; failing++ {
					c.must(c.set(from))
					end := c.failCalls(limit, func(call, _, _ int) bool { return call == failing })
					err := c.set(to)
					met := end()
					now := from
					if err == nil {
						now = to // none of its calls failed, or there was another way
					} else if !errors.Is(err, ErrLimit) || !errors.Is(err, limit) || !met {
						t.Fatalf("%v to %v, failing call %d: %v", from, to, failing, err)
					}
					c.checkIs(now)
					if !met {
						break
					}
					c.must(c.set(c.include("eth0")))
				}
			}
		}
	})
}

// TestNothingBringsItBack fails all calls but leaves from the nth on: what the
// kernel then has, the ledger says, the membership is still asked for, and
// Repair makes it.
func TestNothingBringsItBack(t *testing.T) {
	systems := append(slices.Clone(fourSystems), withoutFull(onLinux), withoutFull(onFreeBSD), withoutFull(onWindows))
	eachModel(t, systems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, _, s := newModelConn(t, y, ipv6, quiet)
		limit := syscall.Errno(y.platform.limits[0])
		for _, from := range c.filters()[1:] {
			for _, to := range c.filters() {
				for first := range 3 {
					c.must(c.set(from))
					end := c.failCalls(limit, func(call, level, name int) bool { return call >= first && !y.leaves(level, name) })
					err := c.set(to)
					end()
					now := from
					if err == nil {
						now = to
					} else if !errors.Is(err, ErrLimit) {
						t.Fatalf("%v to %v: %v", from, to, err)
					}
					if wrong := disagreement(&c.Conn.ledger, s); wrong != "" {
						t.Fatalf("%v to %v: %s\n%s", from, to, wrong, c.log())
					}
					if ms := c.Memberships(); err != nil && (len(ms) != 1 || !filterOf(ms[0]).equal(filterOf(from))) {
						t.Fatalf("%v to %v: %v is asked for", from, to, ms)
					}
					allowed := filterOf(now)
					for _, n := range []int{1, 2, 3, 4} {
						if c.hears(2, c.group("").Addr, c.source(n)) && !allowed.allows(c.source(n)) {
							t.Fatalf("%v to %v: source %d is heard", from, to, n)
						}
					}
					c.must(c.Repair())
					c.checkIs(now)
					c.must(c.set(c.include("eth0")))
				}
			}
		}
	})
}

// TestLastSourceLeavesGroup: no system hears a LeaveSource of the last source.
func TestLastSourceLeavesGroup(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, _, _ := newModelConn(t, y, ipv6, quiet)
		g := c.group("eth0")
		c.must(c.JoinSource(g, c.source(1)))
		c.must(c.JoinSource(g, c.source(2)))
		got := c.sent(func() {
			c.must(c.LeaveSource(g, c.source(1)))
			c.must(c.LeaveSource(g, c.source(2)))
		})
		got = slices.DeleteFunc(got, func(r kerneltest.Request) bool { return r.Err != nil && y.name == "darwin" })
		want := "MCAST_LEAVE_SOURCE_GROUP MCAST_LEAVE_GROUP"
		if y.name == "windows" && !ipv6 {
			want = "IP_DROP_SOURCE_MEMBERSHIP IP_DROP_MEMBERSHIP"
		}
		if requestNames(got) != want {
			t.Errorf("sent %s, want %s", requestNames(got), want)
		}
		c.check()
	})
}

// TestExcludeNothingOfFullFilter: a filter that has all the sources it may have
// has no room for one more, which EXCLUDE() must not need.
func TestExcludeNothingOfFullFilter(t *testing.T) {
	eachModel(t, []modelSystem{onDarwin, onFreeBSD}, func(t *testing.T, y modelSystem, ipv6 bool) {
		y = y.with("with 3 sources", func(k *kerneltest.Kernel) { k.MaxMSF4, k.MaxMSF6 = 3, 3 })
		for _, mode := range []Mode{Include, Exclude} {
			c, _, _ := newModelConn(t, y, ipv6, quiet)
			from := c.exclude("eth0", 1, 2, 3)
			from.Mode = mode
			c.must(c.set(from))
			c.must(c.set(c.exclude("eth0")))
			c.check(c.exclude("eth0"))
		}
	})
}

// TestReplaceFullFilter: macOS counts the old sources until the new ones are
// in, so that many make room first, by way of a few.
func TestReplaceFullFilter(t *testing.T) {
	span := func(from, to int) (ns []int) {
		for n := from; n <= to; n++ {
			ns = append(ns, n)
		}
		return ns
	}
	tests := []struct {
		from, to []int
		calls    int
	}{
		{span(1, 64), span(65, 128), 1}, // 128 in all
		{span(1, 64), span(65, 129), 2},
		{span(1, 100), span(101, 200), 2},
		{span(1, 100), span(51, 150), 2},
		{span(1, 100), span(101, 129), 2},
		{span(1, 128), span(2, 128), 1},
		{span(1, 128), span(1, 127), 1},
		{span(1, 100), span(2, 101), 1},
		{span(1, 1), span(2, 128), 1},
		{span(1, 128), span(101, 227), 2},
		{span(1, 100), span(100, 227), 2},
		{span(1, 127), span(200, 326), 2},
	}
	eachModel(t, []modelSystem{onDarwin, onFreeBSD}, func(t *testing.T, y modelSystem, ipv6 bool) {
		y = y.with("without reports", func(k *kerneltest.Kernel) { k.Reports = false })
		c, _, _ := newModelConn(t, y, ipv6, quiet)
		for _, tt := range tests {
			for _, modes := range [][2]Mode{{Include, Include}, {Exclude, Exclude}, {Include, Exclude}, {Exclude, Include}} {
				from, to := c.include("eth0", tt.from...), c.include("eth0", tt.to...)
				from.Mode, to.Mode = modes[0], modes[1]
				c.must(c.set(from))
				name := fmt.Sprintf("%v of %d to %v of %d", from.Mode, len(tt.from), to.Mode, len(tt.to))
				var err error
				var sent []kerneltest.Request
				c.neverWider(filterOf(from), filterOf(to), func() {
					sent = c.sent(func() { err = c.set(to) })
				})
				if err != nil {
					t.Errorf("%s: %v", name, err)
				} else if f := inKernel(c.socket)[groupIndex{c.group("").Addr, 2}]; !f.equal(filterOf(to)) {
					t.Errorf("%s: the kernel has %v", name, f)
				}
				if len(sent) > tt.calls && (from.Mode == to.Mode || len(sent) > 2) {
					t.Errorf("%s: %s, want %d calls", name, requestNames(sent), tt.calls)
				}
				c.must(c.Leave(c.group("eth0")))
			}
		}
		// No other way than by one that neither lets through.
		c.must(c.set(c.exclude("eth0", span(1, 128)...)))
		c.must(c.set(c.include("eth0", span(201, 327)...)))
		if f := inKernel(c.socket)[groupIndex{c.group("").Addr, 2}]; !f.equal(newSourceFilter(Include, c.sources(span(201, 327)...))) {
			t.Errorf("the kernel has %v", f)
		}
		// Where there is none at all, nothing changes, and no time is lost.
		before := time.Now()
		if err := c.set(c.include("eth0", span(1, 128)...)); !errors.Is(err, ErrLimit) {
			t.Errorf("127 to 128 others: %v, want ErrLimit", err)
		}
		c.check(c.include("eth0", span(201, 327)...))
		if waited := time.Since(before); waited > 0 {
			t.Errorf("waited %v", waited)
		}
	})
}

// TestEntryOfNobody: an entry that no membership is left for, since a join failed
// half-way and could not be taken back, is left, and not by its last source: the
// BSDs would keep INCLUDE() of it.
func TestEntryOfNobody(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, _, _ := newModelConn(t, y, ipv6, quiet)
		c.must(c.set(c.include("eth0", 1)))
		l, at := &c.Conn.ledger, groupIndex{c.group("").Addr, 2}
		e := l.entry(at)
		e.share = sourceFilter{}
		if err := l.reconcile(at.addr, []target{e.kept()}); err != nil {
			t.Error(err)
		}
		if f, ok := inKernel(c.socket)[at]; ok || l.entry(at) != nil || l.size != 0 {
			t.Errorf("the kernel holds %v, the ledger %d entries", f, l.size)
		}
	})
}
