//go:build !plan9

package mcast

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.com/mcast/internal/kerneltest"
)

// TestFailedJoinSparesOthers: what undoes a failed join names an interface that
// does not exist, and macOS' IP_DROP_MEMBERSHIP takes that for any.
func TestFailedJoinSparesOthers(t *testing.T) {
	eachModel(t, []modelSystem{onDarwin, withoutMCAST(onDarwin)}, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, quiet)
		c.must(c.Join(c.group("eth0")))
		h.add(7, "eth7")
		h.kernel.RemoveInterface(7) // the host does not know yet
		for _, request := range c.joins(c.group("eth7")) {
			if err := request(); err == nil {
				t.Error("joined on an interface that is gone")
			}
		}
		c.check(c.exclude("eth0"))
	})
}

// TestFailedJoinLeavesNothing: Linux leaves INCLUDE() behind when it has no
// memory for the first source.
func TestFailedJoinLeavesNothing(t *testing.T) {
	eachModel(t, []modelSystem{onLinux, withoutMCAST(onLinux), withoutFull(onLinux)}, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, quiet)
		for _, request := range []func() error{
			func() error { return c.JoinSource(c.group("eth0"), c.source(1)) },
			func() error { return c.SetFilter(c.group("eth0"), Include, c.sources(1, 2)...) },
		} {
			h.kernel.ListFailures = 1
			if err := request(); !errors.Is(err, ErrLimit) {
				t.Errorf("%v, want ErrLimit", err)
			}
			c.check()
		}
		c.must(c.JoinSource(c.group("eth0"), c.source(1)))
		c.check(c.include("eth0", 1))
		// Nor is what was to be replaced lost.
		c.must(c.set(c.exclude("eth0")))
		h.kernel.ListFailures = 1
		if y.noFull {
			h.kernel.ListFailures = 2 // it is tried twice
		}
		if err := c.set(c.include("eth0", 1)); !errors.Is(err, ErrLimit) {
			t.Errorf("SetFilter: %v, want ErrLimit", err)
		}
		c.check(c.exclude("eth0"))
	})
}

// TestFailedSetKeepsHistory: a SetFilter that fails changes not even the number
// of the next refusal, which tells by what came before.
func TestFailedSetKeepsHistory(t *testing.T) {
	eachModel(t, []modelSystem{onWindows}, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, _, _ := newModelConn(t, y, ipv6, quiet)
		g, s := c.group("eth0"), c.source(1)
		for _, tt := range []struct {
			before []Op
			then   Op
		}{
			{[]Op{OpJoinSource, OpLeaveSource}, OpLeaveSource},
			{[]Op{OpJoin, OpBlock, OpUnblock}, OpUnblock},
		} {
			for _, op := range tt.before {
				c.must(c.request(op, g, s))
			}
			end := c.failCalls(10055, func(_, level, name int) bool { return !y.leaves(level, name) }) // WSAENOBUFS
			if err := c.set(c.include("eth0", 2, 3)); !errors.Is(err, ErrLimit) {
				t.Errorf("SetFilter: %v", err)
			}
			end()
			if err := c.request(tt.then, g, s); !errors.Is(err, syscall.Errno(10049)) {
				t.Errorf("%v and a failed SetFilter, then %v: %v, want 10049", tt.before, tt.then, err)
			}
		}
	})
}

// TestLimits meets each limit and reads what to do about it.
func TestLimits(t *testing.T) {
	type meet func(c *modelConn) error
	groups := func(n int) meet {
		return func(c *modelConn) error {
			for i := range n {
				g := Group{c.addr(fmt.Sprintf("239.2.%d.%d", i>>8, i&255), fmt.Sprintf("ff1e::2:%x", i+1)), "eth0"}
				if err := c.JoinSource(g, c.source(1)); err != nil {
					return err
				}
			}
			return nil
		}
	}
	sources := func(n int) meet {
		return func(c *modelConn) error {
			for i := range n {
				if err := c.JoinSource(c.group("eth0"), c.source(i+1)); err != nil {
					return err
				}
			}
			return nil
		}
	}
	full := func(n int) meet { return func(c *modelConn) error { return c.set(c.include("eth0", upTo(n)...)) } }
	after := func(calls int, errno syscall.Errno, f meet) meet {
		return func(c *modelConn) error {
			defer c.failCalls(errno, func(call, level, name int) bool { return call >= calls && !onWindows.leaves(level, name) })()
			return f(c)
		}
	}
	little := onLinux.with("with little memory", func(k *kerneltest.Kernel) { k.OptMem = 1000 })
	few := onDarwin.with("with 20 sources", func(k *kerneltest.Kernel) { k.MaxGroup = 20 })
	for _, tt := range []struct {
		y    modelSystem
		ipv6 bool
		what string
		meet meet
		ok   int // memberships or sources that there is room for; -1: some
		want string
	}{
		{onLinux, false, "groups", groups(21), 20, "20 groups a socket: raise net.ipv4.igmp_max_memberships, or use a Pool"},
		{onLinux, true, "groups", groups(547), 546, "memory for 546 groups a socket: raise net.core.optmem_max, or use a Pool"},
		{onLinux, false, "sources", sources(11), 10, "11 sources in a filter: raise net.ipv4.igmp_max_msf, or use a Pool"},
		{onLinux, true, "sources", sources(65), 64, "65 sources in a filter: raise net.ipv6.mld_max_msf, or use a Pool"},
		{onLinux, false, "full", full(11), 0, "11 sources in a filter: raise net.ipv4.igmp_max_msf, or use a Pool"},
		{onLinux, true, "full", full(65), 0, "65 sources in a filter: raise net.ipv6.mld_max_msf, or use a Pool"},
		{little, false, "groups", groups(20), -1, "groups a socket: raise net.core.optmem_max"},
		{little, true, "sources", sources(64), -1, "sources in a filter: raise net.core.optmem_max"},
		{onDarwin.with("with 3 groups", func(k *kerneltest.Kernel) { k.MaxMemberships = 3 }), false, "groups", groups(4), 3, "3 groups a socket"},
		{few, false, "sources", sources(21), 20, "21 sources in a filter: net.inet.ip.mcast.maxgrpsrc"},
		{few, true, "sources", sources(21), 20, "21 sources in a filter: net.inet6.ip6.mcast.maxgrpsrc"},
		{onDarwin, false, "full", full(129), 0, "129 sources set at once: net.inet.ip.mcast.maxsocksrc"},
		{onDarwin, true, "full", full(129), 0, "129 sources set at once: net.inet6.ip6.mcast.maxsocksrc"},
		{onFreeBSD, false, "full", full(129), 0, "129 sources set at once: net.inet.ip.mcast.maxsocksrc"},
		{onWindows, false, "groups", after(5, 10055, groups(6)), 5, "5 groups a socket: spread them over several sockets, or use a Pool"},
		{onWindows, true, "sources", after(5, 10055, sources(6)), 5, "6 sources in a filter"},
		{onWindows, true, "full", after(1, 10055, full(6)), 0, "6 sources in a filter"},
	} {
		t.Run(fmt.Sprintf("%s %s %v", tt.y.name, tt.what, tt.ipv6), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, _, s := newModelConn(t, tt.y, tt.ipv6, quiet)
				err := tt.meet(c)
				if !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v, want ErrLimit: %s", err, tt.want)
				}
				n := 0
				for _, has := range c.Memberships() {
					if tt.what == "groups" {
						n++
					} else {
						n += len(has.Sources)
					}
				}
				if tt.ok >= 0 && n != tt.ok {
					t.Errorf("%d memberships or sources, want %d", n, tt.ok)
				}
				if wrong := disagreement(&c.Conn.ledger, s); wrong != "" {
					t.Error(wrong)
				}
			})
		})
	}
}

// TestByteCounts: macOS is asked again, a few times.
func TestByteCounts(t *testing.T) {
	for counts := range 25 {
		synctest.Test(t, func(t *testing.T) {
			y := onDarwin.with("", func(k *kerneltest.Kernel) { k.Reports, k.ByteCounts = false, counts })
			c, _, _ := newModelConn(t, y, false, quiet)
			c.must(c.JoinSource(c.group("eth0"), c.source(1)))
			now := c.include("eth0", 1)
			for _, to := range []Membership{c.include("eth0", 1, 2), c.include("eth0", 3, 4)} {
				start := time.Now()
				var err error
				calls := len(c.sent(func() { err = c.set(to) }))
				switch {
				case err == nil && calls == counts+1:
					now = to
				case counts > 9 && errnoOf(err) >= 8 && errnoOf(err)%4 == 0: // given up
				default:
					t.Errorf("%d byte counts: %v after %d calls\n%s", counts, err, calls, c.log())
				}
				if took := time.Since(start); took > 2*time.Second || counts >= 4 && took == 0 {
					t.Errorf("%d byte counts take %v", counts, took)
				}
				c.check(now)
			}
			// A join that is given up leaves nothing.
			other := Group{netip.MustParseAddr("239.1.2.9"), "eth0"}
			if err := c.SetFilter(other, Include, c.sources(1, 2)...); err == nil {
				c.must(c.Leave(other))
			} else if counts <= 9 {
				t.Errorf("%d byte counts: %v", counts, err)
			}
			c.check(now)
		})
	}
	// No other system's numbers are taken for byte counts, nor IPv6 ones.
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		if y.name == "darwin" && !ipv6 {
			return
		}
		c, _, _ := newModelConn(t, y, ipv6, quiet)
		defer c.failCalls(12, func(_, level, name int) bool { return !y.leaves(level, name) })()
		start := time.Now()
		if err := c.Join(c.group("eth0")); !errors.Is(err, syscall.Errno(12)) || time.Since(start) > 0 {
			t.Errorf("Join: %v after %v", err, time.Since(start))
		}
		if n := strings.Count(c.log(), "errno 12"); n != 1 {
			t.Errorf("tried %d times", n)
		}
	})
}

// TestFallbacks: an option that a system does not have is asked for once, and
// then the other family of options is used.
func TestFallbacks(t *testing.T) {
	noMCAST := func(k *kerneltest.Kernel) { k.NoMCAST = true }
	for _, tt := range []struct {
		y            modelSystem
		ipv6         bool
		first, later string
	}{
		{onLinux, false, "MCAST_JOIN_SOURCE_GROUP", "MCAST_JOIN_SOURCE_GROUP"},
		{onLinux.with("", noMCAST), false, "MCAST_JOIN_SOURCE_GROUP! IP_ADD_SOURCE_MEMBERSHIP", "IP_ADD_SOURCE_MEMBERSHIP"},
		{onDarwin.with("", noMCAST), false, "MCAST_JOIN_SOURCE_GROUP! IP_ADD_SOURCE_MEMBERSHIP", "IP_ADD_SOURCE_MEMBERSHIP"},
		{onFreeBSD.with("", noMCAST), false, "MCAST_JOIN_SOURCE_GROUP! IP_ADD_SOURCE_MEMBERSHIP", "IP_ADD_SOURCE_MEMBERSHIP"},
		{onWindows, false, "IP_ADD_SOURCE_MEMBERSHIP", "IP_ADD_SOURCE_MEMBERSHIP"},
		{onWindows.with("", func(k *kerneltest.Kernel) { k.NoIP = true }), false, "IP_ADD_SOURCE_MEMBERSHIP! MCAST_JOIN_SOURCE_GROUP", "MCAST_JOIN_SOURCE_GROUP"},
		{onWindows, true, "MCAST_JOIN_SOURCE_GROUP", "MCAST_JOIN_SOURCE_GROUP"},
	} {
		c, _, _ := newModelConn(t, tt.y, tt.ipv6, quiet)
		for i, want := range []string{tt.first, tt.later, tt.later} {
			g := Group{c.group("").Addr.Next(), []string{"lo", "eth0", "eth1"}[i]}
			if got := requestNames(c.sent(func() { c.must(c.JoinSource(g, c.source(1))) })); got != want {
				t.Errorf("%s: JoinSource %d sends %s, want %s", tt.y.name, i, got, want)
			}
		}
		if wrong := disagreement(&c.Conn.ledger, c.socket); wrong != "" {
			t.Error(wrong)
		}
	}
	// IPv6 has no older options for sources, only for groups.
	for _, y := range fourSystems {
		c, _, _ := newModelConn(t, y.with("", noMCAST), true, quiet)
		c.must(c.Join(c.group("eth0")))
		other := Group{netip.MustParseAddr("ff1e::4"), "eth1"}
		for _, err := range []error{
			c.Block(c.group("eth0"), c.source(1)),
			c.JoinSource(other, c.source(1)),
			c.JoinSource(other, c.source(1)),
		} {
			if !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("%s: %v, want ErrUnsupported", y.name, err)
			}
		}
		c.check(c.exclude("eth0"))
		c.must(c.Leave(c.group("eth0")))
		c.check()
	}
}

// TestWindowsOptions: IP_* with an index for an address for IPv4, MCAST_* for
// IPv6, and for an index that such an address has no room for.
func TestWindowsOptions(t *testing.T) {
	all := func(c *modelConn, g Group) []kerneltest.Request {
		return c.sent(func() {
			c.must(c.Join(g))
			c.must(c.Block(g, c.source(1)))
			c.must(c.Unblock(g, c.source(1)))
			c.must(c.Leave(g))
			c.must(c.JoinSource(g, c.source(1)))
			c.must(c.JoinSource(g, c.source(2)))
			c.must(c.LeaveSource(g, c.source(2)))
			c.must(c.SetFilter(g, Exclude, c.sources(3)...))
			c.must(c.SetFilter(g, Include))
		})
	}
	c, h, _ := newModelConn(t, onWindows, false, quiet)
	h.add(0x010203, "eth9")
	rs := all(c, c.group("eth9"))
	if got, want := requestNames(rs), "IP_ADD_MEMBERSHIP IP_BLOCK_SOURCE IP_UNBLOCK_SOURCE IP_DROP_MEMBERSHIP "+
		"IP_ADD_SOURCE_MEMBERSHIP IP_ADD_SOURCE_MEMBERSHIP IP_DROP_SOURCE_MEMBERSHIP SIO_SET_MULTICAST_FILTER IP_DROP_MEMBERSHIP"; got != want {
		t.Errorf("sent %s, want %s", got, want)
	}
	for _, r := range rs {
		if r.Address != netip.AddrFrom4([4]byte{0, 1, 2, 3}) {
			t.Errorf("%v: names the interface by %v", r, r.Address)
		}
	}
	c.check()

	c, _, _ = newModelConn(t, onWindows, true, quiet)
	for _, r := range all(c, c.group("eth1")) {
		if !strings.HasPrefix(r.Name, "MCAST_") && r.Name != "SIOCSMSFILTER" {
			t.Errorf("sent %v", r)
		}
	}
	c.check()
}

// TestWindowsFullFilterFails: its numbers for IPv6 are known from a header alone,
// so that single requests are there whatever it answers.
func TestWindowsFullFilterFails(t *testing.T) {
	eachModel(t, []modelSystem{onWindows}, func(t *testing.T, y modelSystem, ipv6 bool) {
		for _, errno := range []syscall.Errno{10014, 10022, 10045, 10049, 10055} {
			c, _, _ := newModelConn(t, y, ipv6, quiet)
			for _, from := range c.filters() {
				for _, to := range c.filters() {
					c.must(c.set(from))
					end := c.failCalls(errno, func(_, level, _ int) bool { return level == -1 })
					c.must(c.set(to))
					end()
					c.checkIs(to)
				}
			}
		}
	})
}

// TestLeaveGone leaves a membership whose interface is gone.
func TestLeaveGone(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		for _, others := range []bool{false, true} {
			c, h, s := newModelConn(t, y, ipv6, quiet)
			c.must(c.set(c.include("eth0", 1, 2)))
			var rest []Membership
			if others {
				c.must(c.Join(c.group("eth1")))
				rest = append(rest, c.exclude("eth1"))
			}
			h.remove(2)
			sent := c.sent(func() { c.must(c.Leave(c.group("eth0"))) })
			switch {
			case y.name == "darwin" && ipv6:
				if len(sent) > 0 {
					t.Errorf("sent %v", sent)
				}
			case y.name == "darwin":
				// It is the oldest, which that request ends.
				if len(sent) != 1 || sent[0].Name != "IP_DROP_MEMBERSHIP" || sent[0].Address != netip.IPv4Unspecified() || sent[0].Err != nil {
					t.Errorf("sent %v, want IP_DROP_MEMBERSHIP by 0.0.0.0", sent)
				}
			case len(sent) != 1 || !strings.HasSuffix(sent[0].Name, "_GROUP") && sent[0].Name != "IP_DROP_MEMBERSHIP":
				t.Errorf("sent %v", sent)
			}
			c.check(rest...)
			if _, kept := inKernel(s)[groupIndex{c.group("").Addr, 2}]; kept && (y.name == "linux" || y.name == "windows" || y.name == "darwin" && !ipv6) {
				t.Error("the kernel has it still")
			}
		}
		// A younger one must stay: the request would end the other.
		c, h, _ := newModelConn(t, y, ipv6, quiet)
		c.must(c.Join(c.group("eth1")))
		c.must(c.set(c.include("eth0", 1, 2)))
		h.remove(2)
		if sent := c.sent(func() { c.must(c.Leave(c.group("eth0"))) }); y.name == "darwin" && len(sent) > 0 {
			t.Errorf("sent %v", sent)
		}
		c.check(c.exclude("eth1"))
	})
}

// TestLongFilters: a filter with more sources than there is room for at first
// is asked for again, and Linux is never told of room that there is not.
func TestLongFilters(t *testing.T) {
	var systems []modelSystem
	for _, y := range []modelSystem{onLinux, withoutMCAST(onLinux), onDarwin, onFreeBSD, onWindows} {
		systems = append(systems, y.with("with 200 sources", func(k *kerneltest.Kernel) { k.MaxMSF4, k.MaxMSF6 = 200, 200 }))
	}
	eachModel(t, systems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, _, _ := newModelConn(t, y, ipv6, quiet)
		for _, n := range []int{1, 15, 16, 17, 31, 32, 33, 64, 65, 150} {
			for _, want := range []Membership{c.include("eth0", upTo(n)...), c.exclude("eth0", upTo(n)...)} {
				c.must(c.set(want))
				sent := c.sent(func() { c.check(want) })
				if n < 16 && len(sent) > 2 || len(sent) > 6 {
					t.Errorf("%d calls for %d sources", len(sent), n)
				}
			}
		}
	})
}

// TestAnswersOfOthers: a join that the system says is one already was made by
// somebody else, whom undoing it would harm.
func TestAnswersOfOthers(t *testing.T) {
	eachModel(t, []modelSystem{onLinux, onDarwin, onFreeBSD}, func(t *testing.T, y modelSystem, ipv6 bool) {
		h := newModelHost(t, y)
		socket := h.kernel.Socket(ipv6)
		theirs := h.wrap(socket, endpoint{ipv6: ipv6}, quiet)
		theirs.must(theirs.Join(theirs.group("eth0")))
		c := h.wrap(socket, endpoint{ipv6: ipv6}, quiet)
		sent := c.sent(func() {
			if err := c.Join(c.group("eth0")); !errors.Is(err, ErrJoined) || !strings.Contains(err.Error(), "it was not made here") {
				t.Errorf("Join: %v, want ErrJoined", err)
			}
		})
		if slices.ContainsFunc(sent, func(r kerneltest.Request) bool { return y.leaves(r.Level, int(r.Number)) }) {
			t.Errorf("sent %s", requestNames(sent))
		}
		theirs.check(theirs.exclude("eth0"))
	})
}

// hostWithLittleRoom has room for two sources of a group on an interface, and a
// Conn that has both.
func hostWithLittleRoom(t *testing.T, y modelSystem, ipv6 bool) (*modelHost, *modelConn) {
	if y.name == "darwin" {
		y = y.with("with 2 sources of a group", func(k *kerneltest.Kernel) { k.MaxGroup = 2 })
	}
	h := newModelHost(t, y)
	first := h.open(endpoint{ipv6: ipv6}, nil)
	first.must(first.set(first.include("eth0", 1, 2)))
	return h, first
}

// noRoom has the next call find no room for a third one. On FreeBSD, where what
// the kernel does then is undefined, it is but said so.
func (c *modelConn) noRoom(y modelSystem) (end func() bool) {
	if y.name == "darwin" {
		return func() bool { return true }
	}
	return c.failCalls(28, func(call, _, _ int) bool { return call == 0 })
}

// TestSpentSocket: a join that macOS answers with ENOSPC has spoiled the socket
// for new memberships: another one would panic the kernel.
func TestSpentSocket(t *testing.T) {
	eachModel(t, []modelSystem{onDarwin, onFreeBSD}, func(t *testing.T, y modelSystem, ipv6 bool) {
		h, first := hostWithLittleRoom(t, y, ipv6)
		c := h.open(endpoint{ipv6: ipv6}, nil)
		c.must(c.JoinSource(c.group("eth1"), c.source(1)))
		other := c.group("eth0")
		other.Addr = other.Addr.Next()
		c.must(c.Join(other))
		end := c.noRoom(y)
		sent := c.sent(func() {
			if err := c.JoinSource(c.group("eth0"), c.source(3)); !errors.Is(err, ErrLimit) || !errors.Is(err, syscall.Errno(28)) {
				t.Errorf("JoinSource: %v, want ErrLimit", err)
			}
		})
		end()
		if len(sent) != 1 {
			t.Errorf("sent %v, want one request", sent)
		}
		// Not this one, nor any other one.
		c.refused(ErrLimit, "can make no membership any more: open another one", func() error { return c.JoinSource(c.group("eth0"), c.source(1)) })
		third := c.group("eth1")
		third.Addr = third.Addr.Prev()
		c.refused(ErrLimit, "can make no membership any more", c.joins(third)...)

		// What it has goes on, through changes of it, Repair and news, which must
		// not leave it in order to join again.
		held := func(ms ...Membership) {
			t.Helper()
			c.check(append(ms, Membership{Group: other, Mode: Exclude, Index: 2})...)
		}
		held(c.include("eth1", 1))
		c.must(c.JoinSource(c.group("eth1"), c.source(2)))
		c.must(c.LeaveSource(c.group("eth1"), c.source(1)))
		held(c.include("eth1", 2))
		c.must(c.Repair())
		held(c.include("eth1", 2))
		h.setCarrier(3, false)
		h.setCarrier(3, true)
		h.wake()
		time.Sleep(time.Minute)
		held(c.include("eth1", 2))
		c.must(c.Leave(other))
		c.check(c.include("eth1", 2))

		// Others on the host join as ever.
		fresh := h.open(endpoint{ipv6: ipv6}, nil)
		fresh.must(fresh.JoinSource(fresh.group("eth0"), fresh.source(1)))
		fresh.must(fresh.Join(third))
		first.check(first.include("eth0", 1, 2))
	})
}

// TestSpentSocketOfPool: the Pool opens another socket, but does not take the
// request there, which would spend that as well.
func TestSpentSocketOfPool(t *testing.T) {
	eachModel(t, []modelSystem{onDarwin, onFreeBSD}, func(t *testing.T, y modelSystem, ipv6 bool) {
		h, first := hostWithLittleRoom(t, y, ipv6)
		p := h.openPool(ipv6, nil)
		first.must(p.JoinSource(first.group("eth1"), first.source(1)))
		end := first.noRoom(y)
		if err := p.JoinSource(first.group("eth0"), first.source(3)); !errors.Is(err, ErrLimit) {
			t.Errorf("JoinSource: %v, want ErrLimit", err)
		}
		end()
		if n := p.Sockets(); n != 1 {
			t.Errorf("%d sockets, want 1", n)
		}
		other := first.group("eth0")
		other.Addr = other.Addr.Next()
		first.must(p.Join(other))
		if n := p.Sockets(); n != 2 {
			t.Errorf("%d sockets, want 2", n)
		}
		for g, want := range map[Group]int{first.group("eth1"): 1, other: 1} {
			if n := p.hears(p.Members, first.index(g.Interface), g.Addr, first.source(1)); n != want {
				t.Errorf("%v is heard by %d sockets", g, n)
			}
		}
	})
}

// TestRejoin: on macOS a group that any socket of the program left is not joined
// again at once, on that interface; the wait holds up no other group.
func TestRejoin(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		const gap = 50 * time.Millisecond
		// joins are when the kernel got requests to make a membership of a group.
		var joins []time.Duration
		start := time.Now()
		watch := func(h *modelHost) {
			p := y.platform
			h.kernel.Fault = func(level, name int, value []byte) error {
				for _, op := range []Op{OpJoin, OpJoinSource} {
					if name == p.mcast[op] || level == levelIP && name == p.ip[op] {
						joins = append(joins, time.Since(start))
					}
				}
				return nil
			}
		}
		h := newModelHost(t, y)
		a, b := h.open(endpoint{ipv6: ipv6}, quiet), h.open(endpoint{ipv6: ipv6}, quiet)
		p := h.openPool(ipv6, quiet)
		g, s := a.group("eth0"), a.source(1)
		for name, again := range map[string]func(){
			"the same Conn":   func() { a.must(a.Join(g)) },
			"another Conn":    func() { b.must(b.Join(g)) },
			"a Pool":          func() { a.must(p.Join(g)) },
			"SetFilter":       func() { a.must(a.SetFilter(g, Include, s, b.source(2))) },
			"after Close":     func() { c := h.open(endpoint{ipv6: ipv6}, quiet); c.must(c.Join(g)); c.Close() },
			"by another name": func() { a.must(a.Join(a.group("2"))) },
		} {
			time.Sleep(time.Second)
			c := h.open(endpoint{ipv6: ipv6}, quiet)
			c.must(c.JoinSource(g, s))
			if name == "after Close" {
				c.Close()
			} else {
				c.must(c.Leave(g))
			}
			start, joins = time.Now(), nil
			watch(h)
			again()
			h.kernel.Fault = nil
			if len(joins) == 0 || y.name == "darwin" && joins[0] < gap || y.name != "darwin" && joins[0] != 0 || joins[0] > 2*gap {
				t.Errorf("%s joins after %v", name, joins)
			}
			for _, x := range []*modelConn{a, b} {
				x.Leave(g)
			}
			p.Leave(g)
		}

		// Other groups, and the group elsewhere, do not wait.
		time.Sleep(time.Second)
		a.must(a.Join(g))
		a.must(a.Leave(g))
		start = time.Now()
		a.must(a.Join(a.group("eth1")))
		other := g
		other.Addr = other.Addr.Next()
		a.must(a.Join(other))
		waiting := make(chan error)
		go func() { waiting <- a.Join(g) }()
		synctest.Wait()
		third := other
		third.Addr = third.Addr.Next()
		a.must(a.Join(third))
		if took := time.Since(start); took > 0 {
			t.Errorf("others waited %v", took)
		}
		a.must(<-waiting)
		a.check(a.exclude("eth0"), a.exclude("eth1"), Membership{Group: other, Mode: Exclude, Index: 2}, Membership{Group: third, Mode: Exclude, Index: 2})

		// The wait ends with Close.
		b.must(b.Join(g))
		b.must(b.Leave(g))
		start = time.Now()
		go func() { waiting <- b.Join(g) }()
		synctest.Wait()
		if y.name != "darwin" {
			b.must(<-waiting)
			return
		}
		b.Close()
		if err := <-waiting; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Join during Close: %v", err)
		}
		if took := time.Since(start); took > 0 {
			t.Errorf("Close waited %v", took)
		}
	})
}

// TestRepairWaits: Repair leaves and joins again, with what macOS needs in
// between.
func TestRepairWaits(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, quiet)
		other := h.open(endpoint{ipv6: ipv6}, quiet)
		c.must(c.set(c.include("eth0", 1, 2)))
		other.must(other.set(other.exclude("eth0", 1)))
		c.must(c.Join(c.group("eth1")))
		sent := c.sent(func() { c.must(c.Repair()) })
		if !slices.ContainsFunc(sent, func(r kerneltest.Request) bool { return y.leaves(r.Level, int(r.Number)) }) {
			t.Errorf("Repair leaves nothing: %s", requestNames(sent))
		}
		c.check(c.include("eth0", 1, 2), c.exclude("eth1"))
		other.check(other.exclude("eth0", 1))
	})
}

// A plainSocket is of a system without any of the options.
type plainSocket struct {
	modelSocket
	joined map[groupIndex]bool
}

func (s plainSocket) joinGroup(at groupIndex) error  { s.joined[at] = true; return nil }
func (s plainSocket) leaveGroup(at groupIndex) error { delete(s.joined, at); return nil }

// TestJoinsOnly: a system without source filters joins and leaves groups.
func TestJoinsOnly(t *testing.T) {
	y := modelSystem{name: "plain", kernel: kerneltest.Linux, platform: &platform{name: "this system", perSocket: 1000}}
	eachModel(t, []modelSystem{y}, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, _, _ := newModelConn(t, y, ipv6, quiet)
		s := plainSocket{joined: make(map[groupIndex]bool)}
		c.Conn.ledger.kernel.sock = s
		has := func(want ...Membership) {
			t.Helper()
			if got := fmt.Sprint(c.Memberships()); got != fmt.Sprint(want) || len(s.joined) != len(want) {
				t.Errorf("memberships %s, joined %v, want %v", got, s.joined, want)
			}
		}
		unsupported := func(errs ...error) {
			t.Helper()
			for _, err := range errs {
				if !errors.Is(err, errors.ErrUnsupported) {
					t.Errorf("%v, want ErrUnsupported", err)
				}
			}
		}
		unsupported(c.JoinSource(c.group("eth0"), c.source(1)), c.set(c.include("eth0", 1)), c.set(c.exclude("eth0", 1)))
		has()
		c.must(c.set(c.exclude("eth0")))
		has(c.exclude("eth0"))
		unsupported(c.Block(c.group("eth0"), c.source(1)), c.set(c.exclude("eth0", 1)), c.set(c.include("eth0", 1)))
		_, err := c.SystemFilter(c.group("eth0"))
		unsupported(err)
		has(c.exclude("eth0"))
		c.must(c.Leave(c.group("eth0")))
		has()
	})
}
