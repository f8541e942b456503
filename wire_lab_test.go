//go:build linux

package mcast_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/mcast"
	"example.com/mcast/internal/netlab"
)

// labPlace is an interface of the local host. The senders are on the host of
// the first one, out of its interface; without one they are the local host.
func labPlace(l *netlab.Lab, six bool, ifname string, from *netlab.Host, fromIf string, senders ...netip.Addr) place {
	p := place{six: six, ifi: l.Local().Interface(ifname), senders: senders}
	if from == nil {
		return p
	}
	index := from.Index(fromIf)
	p.open = func(t *testing.T, p place, a netip.Addr) *sender {
		var c *mcast.Conn
		var err error
		at := a
		if a.IsLinkLocalUnicast() && a.Is6() {
			at = a.WithZone(fmt.Sprint(index))
		}
		from.Do(func() {
			if c, err = mcast.Listen(p.network(), netip.AddrPortFrom(at, 0).String(), nil); err == nil {
				err = c.SetMulticastInterface(fromIf)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if at != a { // as it is seen here
			a = a.WithZone(p.ifi.Name)
		}
		return &sender{c, netip.AddrPortFrom(a, uint16(localPort(c)))}
	}
	return p
}

// All of the loopback tests, with a real interface: by itself, and with the
// senders at the other end of a cable.
func TestLabPlaces(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		peer := cable(l, "eth0", "peer")
		local := addrs("10.88.0.1", "10.88.0.2", "10.88.0.3", "fd88::1", "fd88::2", "fd88::3")
		for _, a := range local {
			if a.Is4() {
				l.Local().AddAddr("eth0", a.String()+"/24")
			} else if l.Local().HasIPv6() {
				l.Local().AddAddr("eth0", a.String()+"/64")
			}
		}
		eachFamily(l, func(t *testing.T, six bool) {
			here := labPlace(l, six, "eth0", nil, "", local[:3]...)
			if six {
				here.senders = local[3:]
			}
			if err := here.probe(here.source(0)); err != nil {
				t.Fatal(err)
			}
			remote := labPlace(l, six, "eth0", peer, "eth0", labSenders[six]...)
			for _, test := range placeTests {
				t.Run("here/"+test.name, func(t *testing.T) { test.f(t, here) })
				t.Run("cable/"+test.name, func(t *testing.T) { test.f(t, remote) })
			}
			if !six {
				l.Local().Sysctl("net.ipv4.igmp_max_memberships", "10000")
				t.Run("more groups", func(t *testing.T) { testMemory(t, here) })
			}
			for _, g := range []mcast.Group{here.asm(1), here.asm(200), here.ssm(1)} {
				if n := l.Local().Users("eth0", g.Addr); n != 0 {
					t.Errorf("%d users of %v are left", n, g)
				}
			}
		})
	})
}

func TestLabRandom(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		peer := cable(l, "eth0", "peer")
		eachFamily(l, func(t *testing.T, six bool) {
			p := labPlace(l, six, "eth0", peer, "eth0", labSenders[six]...)
			groups := []mcast.Group{p.asm(1), p.asm(2)}
			s := p.scene(t, p.listen(t, ":0", nil), true, groups...)
			s.random(200)
			s.c.Close()
			for _, g := range append(groups, s.fence) {
				if n := l.Local().Users("eth0", g.Addr); n != 0 {
					t.Errorf("%d users of %v after Close", n, g)
				}
			}
		})
	})
}

// What the requests make of the reports on the wire, of a switch that snoops
// on them, and of the datagrams that it then forwards.
func TestLabReports(t *testing.T) {
	t.Parallel()
	const (
		allow = netlab.AllowNewSources
		block = netlab.BlockOldSources
		toIn  = netlab.ChangeToIncludeMode
		toEx  = netlab.ChangeToExcludeMode
	)
	type report struct {
		typ     netlab.RecordType
		sources string
	}
	steps := []struct {
		op, sources string
		filter      string
		reports     []report // one of them; none: nothing is reported that was not before
	}{
		{"JoinSource", "a", "Ia", []report{{allow, "a"}}},
		{"JoinSource", "b", "Iab", []report{{allow, "b"}}},
		{"LeaveSource", "a", "Ib", []report{{block, "a"}}},
		{"LeaveSource", "b", "", []report{{block, "b"}}},
		// A change of mode is reported twice, the second time as it then is.
		{"Join", "", "E", []report{{toEx, ""}}},
		{"Block", "a", "Ea", []report{{block, "a"}, {toEx, "a"}}},
		{"Unblock", "a", "E", []report{{allow, "a"}, {toEx, ""}}},
		{"Block", "b", "Eb", []report{{block, "b"}, {toEx, "b"}}},
		{"Leave", "", "", []report{{toIn, ""}}},
		{"Include", "ab", "Iab", []report{{allow, "ab"}, {allow, "b"}, {toIn, "ab"}}},
		{"Exclude", "a", "Ea", []report{{toEx, "a"}}},
		{"Exclude", "b", "Eb", []report{{block, "b"}, {toEx, "b"}}},
		{"Include", "a", "Ia", []report{{toIn, "a"}}},
		{"JoinSource", "b", "Iab", []report{{allow, "b"}, {toIn, "ab"}}},
		{"Leave", "", "", []report{{block, "ab"}, {toIn, ""}}},
	}
	netlab.Run(t, func(l *netlab.Lab) {
		local, a, c := l.Local(), l.Host("a"), l.Host("c")
		sw := l.Switch(a, local, c)
		// Twice that, in hundredths of a second, and a leave has its effect.
		sw.IP("link", "set", "dev", "br0", "type", "bridge", "mcast_last_member_interval", "5")
		senders := map[bool][]netip.Addr{false: addrs("10.77.1.101", "10.77.1.102", "10.77.1.103"), true: addrs("fd77:1::101", "fd77:1::102", "fd77:1::103")}
		eachFamily(l, func(t *testing.T, six bool) {
			for _, x := range senders[six] {
				a.AddAddr("eth0", x.String()+map[bool]string{false: "/24", true: "/64"}[six])
			}
			p := labPlace(l, six, "eth0", a, "eth0", senders[six]...)
			g := p.asm(1)
			s := p.scene(t, p.listen(t, ":0", nil), true, g)
			// After a change a switch may stop forwarding once more, until the
			// report is repeated.
			s.resent, s.patience = make(map[string]bool), time.Second
			wire, silent := local.Capture("eth0"), c.Capture("eth0")
			defer func() {
				if t.Failed() {
					t.Logf("the switch has %v; %v", sw.MDB(), wire)
				}
			}()
			sw.WaitForwards(t, "local", s.fence.Addr, p.source(0), true)
			for i, step := range steps {
				wire.Reset()
				if err := request(s.c, step.op, g, p.sources(step.sources)...); err != nil {
					t.Fatal(step, err)
				}
				if _, ok := wire.WaitRecord(func(r netlab.Record) bool {
					return slices.ContainsFunc(step.reports, func(w report) bool { return r.Is(w.typ, g.Addr, p.sources(w.sources)...) })
				}, 2*time.Second); !ok {
					t.Fatalf("step %d %v: not reported: %v", i, step, wire)
				}
				want := p.membership(g, step.filter)
				for n := range 3 {
					sw.WaitForwards(t, "local", g.Addr, p.source(n), allows(want, g, p.source(n)))
				}
				if users := local.Users("eth0", g.Addr); users != len(want) {
					t.Errorf("step %d %v: %d users of the group", i, step, users)
				}
				s.check(want...)
				if t.Failed() {
					t.Fatalf("step %d %v: %v", i, step, wire)
				}
			}

			// Close ends what is left.
			ssm := p.ssm(1)
			if err := errors.Join(s.c.Join(g), s.c.Block(g, p.source(0)), s.c.JoinSource(ssm, p.source(1))); err != nil {
				t.Fatal(err)
			}
			s.groups = append(s.groups, ssm)
			for n := range 3 {
				sw.WaitForwards(t, "local", g.Addr, p.source(n), n != 0)
				sw.WaitForwards(t, "local", ssm.Addr, p.source(n), n == 1)
			}
			want := append(p.membership(g, "Ea"), p.membership(ssm, "Ib")...)
			slices.SortFunc(want, func(a, b mcast.Membership) int { return a.Group.Addr.Compare(b.Group.Addr) })
			s.check(want...)
			wire.Reset()
			if err := s.c.Close(); err != nil {
				t.Error(err)
			}
			wire.WantRecord(t, toIn, g.Addr)
			wire.WantRecord(t, block, ssm.Addr, p.source(1))
			for _, g := range []mcast.Group{g, ssm, s.fence} {
				if n := local.Users("eth0", g.Addr); n != 0 {
					t.Errorf("%d users of %v after Close", n, g)
				}
				sw.WaitForwards(t, "local", g.Addr, p.source(1), false)
				if n := silent.Count(netip.Addr{}, netip.AddrPortFrom(g.Addr, s.port)); n != 0 {
					t.Errorf("%d datagrams to %v came to a port that nobody joined on: %v", n, g, silent)
				}
			}
			for _, e := range append(wire.Errors(), silent.Errors()...) {
				t.Error(e)
			}
		})
	})
}

// With a querier of IGMPv2 or MLDv1 the network knows of no sources; the
// filter holds all the same.
func TestLabOldQuerier(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		local, a := l.Local(), l.Host("a")
		sw := l.NewSwitch(netlab.SwitchConfig{IGMPVersion: 2, MLDVersion: 1}, a, local)
		senders := map[bool][]netip.Addr{false: addrs("10.77.1.101", "10.77.1.102"), true: addrs("fd77:1::101", "fd77:1::102")}
		wire := local.Capture("eth0")
		sw.IP("link", "set", "dev", "br0", "type", "bridge", "mcast_querier", "0")
		sw.IP("link", "set", "dev", "br0", "type", "bridge", "mcast_querier", "1")
		eachFamily(l, func(t *testing.T, six bool) {
			query := netlab.IGMPQuery
			if six {
				query = netlab.MLDQuery
			}
			if _, ok := wire.WaitReport(func(r netlab.Report) bool { return r.Type == query }, 5*time.Second); !ok {
				t.Fatalf("nobody asks: %v", wire)
			}
			for _, x := range senders[six] {
				a.AddAddr("eth0", x.String()+map[bool]string{false: "/24", true: "/64"}[six])
			}
			p := labPlace(l, six, "eth0", a, "eth0", senders[six]...)
			for _, g := range []mcast.Group{p.ssm(1), p.asm(1)} {
				s := p.scene(t, p.listen(t, ":0", &mcast.Config{AnySource: true}), true, g)
				s.resent, s.patience = make(map[string]bool), time.Second
				sw.WaitForwards(t, "local", s.fence.Addr, p.source(0), true)
				if err := s.c.JoinSource(g, p.source(0)); err != nil {
					t.Fatal(err)
				}
				wire.WantRecord(t, netlab.ModeIsExclude, g.Addr) // which is how a v2 report is read
				for n := range 2 {
					sw.WaitForwards(t, "local", g.Addr, p.source(n), true)
				}
				s.check(p.membership(g, "Ia")...)
				s.run(g, []step{{"LeaveSource", "a", nil, ""}})
				// The leave may have the switch ask and forget: join anew, and wait.
				if err := s.c.Join(g); err != nil {
					t.Fatal(err)
				}
				sw.WaitForwards(t, "local", g.Addr, p.source(0), true)
				time.Sleep(100 * time.Millisecond)
				sw.WaitForwards(t, "local", g.Addr, p.source(0), true)
				s.run(g, []step{{"Block", "a", nil, "Ea"}, {"Include", "b", nil, "Ib"}, {"Exclude", "b", nil, "Eb"}, {"Unblock", "b", nil, "E"}})
				s.c.Close()
			}
		})
	})
}

// A group joined on two interfaces, and the same sources on both: by which
// interface a datagram came in decides.
func TestLabTwoInterfaces(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) { testTwoInterfaces(t, l, false) })
}

// The same with IPv6 filters that differ: Linux (net/ipv6/mcast.c,
// inet6_mc_check) takes the filter of the newest membership of a group for all
// interfaces, so that what another one lets through is lost in the kernel.
func TestLabTwoInterfacesDifferIPv6(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) { testTwoInterfaces(t, l, true) })
}

func testTwoInterfaces(t *testing.T, l *netlab.Lab, differ bool) {
	peers := []*netlab.Host{cable(l, "eth0", "p0"), cable(l, "eth1", "p1")}
	eachFamily(l, func(t *testing.T, six bool) {
		if differ && !six {
			return // it is in the other test
		}
		var places []place
		var senders [][]*sender
		for i, h := range peers {
			p := labPlace(l, six, fmt.Sprint("eth", i), h, "eth0", labSenders[six][:2]...)
			places = append(places, p)
			senders = append(senders, []*sender{p.sender(t, p.senders[0]), p.sender(t, p.senders[1])})
		}
		p := places[0]
		groups := []mcast.Group{p.asm(1), places[1].asm(1)}
		c := p.listen(t, ":0", nil)
		s := p.scene(t, c, true, groups...)
		if differ {
			s.patience = time.Second
		}
		check := func(filters ...string) {
			t.Helper()
			want := append(p.membership(groups[0], filters[0]), p.membership(groups[1], filters[1])...)
			if !differ {
				s.state(want...)
			} else if got := c.Memberships(); !slices.ContainsFunc(got, func(m mcast.Membership) bool { return m.Group == s.fence }) || fmt.Sprint(slices.DeleteFunc(got, func(m mcast.Membership) bool { return m.Group == s.fence })) != fmt.Sprint(want) {
				t.Errorf("memberships %v, want %v", got, want)
			} else {
				// The kernel has the union, on all.
				for i, g := range groups {
					all := union(want)
					if !slices.ContainsFunc(want, func(m mcast.Membership) bool { return m.Group == g }) {
						if m, err := c.SystemFilter(g); !errors.Is(err, mcast.ErrNotJoined) {
							t.Errorf("with %v the system has %v (%v)", want, m, err)
						}
						continue
					}
					all.Group = g
					if m, err := c.SystemFilter(g); err != nil || m.String() != all.String() || m.Index != places[i].ifi.Index {
						t.Errorf("with %v the system has %v (%v), want %v", want, m, err, all)
					}
				}
			}
			expected := make(map[string]arrival)
			for _, pass := range []bool{false, true} {
				for i, g := range groups {
					for _, from := range senders[i] {
						if allows(want, g, from.from.Addr()) == pass {
							s.send(from, g, pass, expected)
						}
					}
				}
			}
			s.send(senders[0][0], s.fence, true, expected)
			s.receive(expected)
		}
		filters := []string{"", "E", "Ea", "Eab", "Ia", "Ib", "Iab"}
		for _, zero := range filters {
			for _, one := range filters {
				if six && differ != (zero != "" && one != "" && zero != one) {
					continue
				}
				for i, f := range []string{zero, one} {
					mode := mcast.Include
					if strings.HasPrefix(f, "E") {
						mode = mcast.Exclude
					}
					if err := c.SetFilter(groups[i], mode, p.sources(strings.TrimLeft(f, "EI"))...); err != nil {
						t.Fatal(err)
					}
				}
				check(zero, one)
				// No interface is clear if there is one, and if there are two an error.
				anywhere := mcast.Group{Addr: groups[0].Addr}
				m, err := c.SystemFilter(anywhere)
				switch {
				case zero != "" && one != "":
					for _, op := range allOps {
						if err := request(c, op, anywhere, p.source(0)); !errors.Is(err, mcast.ErrInterface) {
							t.Errorf("%s on two interfaces: %v", op, err)
						}
					}
					if !errors.Is(err, mcast.ErrInterface) {
						t.Errorf("SystemFilter on two interfaces: %v", err)
					}
					check(zero, one)
				case zero == "" && one == "":
					if !errors.Is(err, mcast.ErrNotJoined) {
						t.Errorf("SystemFilter on none: %v", err)
					}
				case !differ && (err != nil || m.String() != append(p.membership(groups[0], zero), p.membership(groups[1], one)...)[0].String()):
					t.Errorf("SystemFilter: %v, %v", m, err)
				}
			}
		}
		if err := errors.Join(c.Leave(groups[0]), c.Leave(mcast.Group{Addr: groups[1].Addr})); err != nil {
			t.Error(err)
		}
		check("", "")
		for i := range groups {
			if n := l.Local().Users(fmt.Sprint("eth", i), groups[i].Addr); n != 0 {
				t.Errorf("%d users on eth%d", n, i)
			}
		}
	})
}

// union is what lets through all that any of the memberships does, source by
// source: a, b, and all others.
func union(ms []mcast.Membership) mcast.Membership {
	var all mcast.Membership
	var listed []netip.Addr
	for _, m := range ms {
		if m.Mode == mcast.Exclude {
			all.Mode = mcast.Exclude
		}
		listed = append(listed, m.Sources...)
	}
	slices.SortFunc(listed, netip.Addr.Compare)
	for _, source := range slices.Compact(listed) {
		passes := slices.ContainsFunc(ms, func(m mcast.Membership) bool { return slices.Contains(m.Sources, source) == (m.Mode == mcast.Include) })
		if passes == (all.Mode == mcast.Include) {
			all.Sources = append(all.Sources, source)
		}
	}
	return all
}

// Without an interface a join is where the routing table leads.
func TestLabNoInterface(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		local, p0, p1 := l.Local(), l.Host("p0"), l.Host("p1")
		l.Veth(local, "eth0", p0, "eth0")
		l.Veth(local, "eth1", p1, "eth0")
		local.AddAddr("eth0", "10.1.0.1/24")
		local.AddAddr("eth1", "10.2.0.1/24")
		local.IP("route", "add", "10.9.0.0/24", "via", "10.2.0.2", "dev", "eth1")
		local.IP("route", "add", "unreachable", "10.66.0.0/16")
		local.IP("route", "add", "blackhole", "10.67.0.0/16")
		if local.HasIPv6() {
			local.AddAddr("eth0", "fd01::1/64")
			local.AddAddr("eth1", "fd02::1/64")
			local.IP("-6", "route", "add", "fd09::/64", "via", "fd02::2", "dev", "eth1")
			local.IP("-6", "route", "add", "unreachable", "fd66::/64")
			local.IP("-6", "route", "add", "blackhole", "fd67::/64")
		}
		eachFamily(l, func(t *testing.T, six bool) {
			far, near, own, nowhere := addrs("10.9.0.5")[0], addrs("10.1.0.2")[0], addrs("10.2.0.1")[0], addrs("172.31.0.1", "10.66.0.1", "10.67.0.1")
			if six {
				far, near, own, nowhere = addrs("fd09::5")[0], addrs("fd01::2")[0], addrs("fd02::1")[0], addrs("2001:db8::1", "fd66::1", "fd67::1", "fe80::1")
			}
			p := labPlace(l, six, "eth1", p1, "eth0", far)
			p1.AddAddr("eth0", netip.PrefixFrom(far, far.BitLen()).String())
			c := p.listen(t, ":0", nil)
			want := func(what string, g mcast.Group, name string, err error) {
				t.Helper()
				ms := c.Memberships()
				if i := slices.IndexFunc(ms, func(m mcast.Membership) bool { return m.Group.Addr == g.Addr }); err != nil || i < 0 || ms[i].Group.Interface != name || ms[i].Index != local.Index(name) || ms[i].Pending {
					t.Errorf("%s: %v, memberships %v, want interface %s", what, err, ms, name)
				}
				if local.Users(name, g.Addr) != 1 {
					t.Errorf("%s: no user of %v on %s", what, g, name)
				}
			}
			zero := func(g mcast.Group) mcast.Group { return mcast.Group{Addr: g.Addr} }
			want("routed", p.ssm(1), "eth1", c.JoinSource(zero(p.ssm(1)), far))
			want("on the link", p.ssm(2), "eth0", c.JoinSource(zero(p.ssm(2)), near))
			want("own address", p.ssm(3), "eth1", c.JoinSource(zero(p.ssm(3)), own))
			want("full filter", p.ssm(4), "eth1", c.SetFilter(zero(p.ssm(4)), mcast.Include, far, near))
			// The one membership, even if the route points elsewhere.
			want("second source", p.ssm(1), "eth1", c.JoinSource(zero(p.ssm(1)), near))
			if err := c.LeaveSource(zero(p.ssm(1)), near); err != nil {
				t.Error(err)
			}
			if m, err := c.SystemFilter(zero(p.ssm(1))); err != nil || m.String() != (mcast.Membership{Group: p.ssm(1), Sources: []netip.Addr{far}}).String() {
				t.Errorf("%v, %v", m, err)
			}
			s := p.scene(t, c, true, p.ssm(1))
			s.traffic(mcast.Membership{Group: p.ssm(1), Sources: []netip.Addr{far}})

			before := fmt.Sprint(c.Memberships())
			for _, source := range nowhere {
				err := c.JoinSource(zero(p.ssm(5)), source)
				var e *mcast.OpError
				if !errors.Is(err, mcast.ErrInterface) || !errors.As(err, &e) || e.Op != "JoinSource" || e.Source != source || !strings.Contains(err.Error(), source.String()) {
					t.Errorf("no route to %v: %v", source, err)
				}
				if err := c.SetFilter(zero(p.ssm(5)), mcast.Include, source); !errors.Is(err, mcast.ErrInterface) {
					t.Errorf("no route to %v: SetFilter: %v", source, err)
				}
			}
			for _, err := range []error{c.Leave(zero(p.ssm(5))), c.LeaveSource(zero(p.ssm(5)), far), c.Block(zero(p.asm(5)), far), c.Unblock(zero(p.asm(5)), far)} {
				if !errors.Is(err, mcast.ErrNotJoined) {
					t.Errorf("not joined: %v", err)
				}
			}
			if !six {
				for _, err := range []error{c.Join(zero(p.asm(1))), c.SetFilter(zero(p.asm(1)), mcast.Exclude)} {
					if !errors.Is(err, mcast.ErrInterface) {
						t.Errorf("no route to the group: %v", err)
					}
				}
			}
			if after := fmt.Sprint(c.Memberships()); after != before {
				t.Errorf("memberships %v, want %v", after, before)
			}
			if six {
				local.IP("-6", "route", "add", "multicast", "ff1e::/16", "dev", "eth1", "table", "local")
			} else {
				local.IP("route", "add", "224.0.0.0/4", "dev", "eth1")
			}
			want("routed group", p.asm(1), "eth1", c.Join(zero(p.asm(1))))
			want("routed group", p.asm(2), "eth1", c.SetFilter(zero(p.asm(2)), mcast.Exclude, far))
			if err := errors.Join(c.Block(zero(p.asm(1)), far), c.Leave(zero(p.asm(1))), c.Leave(zero(p.asm(2)))); err != nil {
				t.Error(err)
			}
		})
	})
}

// Link-local sources, which have a zone, and groups, which are another one on
// each interface.
func TestLabLinkLocal(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		if !l.Local().HasIPv6() {
			t.Skip("this kernel has no IPv6")
		}
		// Names that no other host has: package net remembers them.
		peers := []*netlab.Host{cable(l, "near0", "p0"), cable(l, "near1", "p1")}
		extra := netip.MustParseAddr("fe80::77")
		for _, h := range peers {
			h.AddAddr("eth0", "fe80::77/64")
		}
		p := labPlace(l, true, "near0", peers[0], "eth0", peers[0].LinkLocal("eth0"), extra)
		if p.senders[0] == extra {
			for _, a := range peers[0].Addrs("eth0") {
				if a.Addr().IsLinkLocalUnicast() && a.Addr() != extra {
					p.senders[0] = a.Addr()
				}
			}
		}
		other := labPlace(l, true, "near1", peers[1], "eth0", extra)
		link := func(p place) mcast.Group {
			return mcast.Group{Addr: netip.MustParseAddr("ff02::77:1"), Interface: p.ifi.Name}
		}
		for _, g := range []mcast.Group{link(p), p.asm(1)} {
			l.Run("wildcard "+g.Addr.String(), func(t *testing.T) {
				p.scene(t, p.listen(t, ":0", nil), true, g).run(g, allSteps)
			})
			l.Run("group "+g.Addr.String(), func(t *testing.T) {
				c := p.listen(t, fmt.Sprintf("[%v%%%d]:%d", g.Addr, p.ifi.Index, p.port(t)), nil)
				p.scene(t, c, false, g).run(g, allSteps)
			})
		}
		l.Run("zones", func(t *testing.T) {
			g := link(p)
			c := p.listen(t, ":0", nil)
			s := p.scene(t, c, true, g)
			zone := fmt.Sprint(p.ifi.Index)
			if err := c.JoinSource(mcast.Group{Addr: g.Addr}, extra); !errors.Is(err, mcast.ErrInterface) {
				t.Errorf("a link-local source without an interface: %v", err)
			}
			if err := c.JoinSource(mcast.Group{Addr: g.Addr}, extra.WithZone(zone)); err != nil {
				t.Error(err)
			}
			s.check(p.membership(g, "Ib")...)
			if err := c.JoinSource(mcast.Group{Addr: g.Addr.WithZone("near0")}, p.source(0).WithZone("near0")); err != nil {
				t.Error(err)
			}
			s.check(p.membership(g, "Iab")...)
			if err := c.LeaveSource(g, extra.WithZone(fmt.Sprint(other.ifi.Index))); !errors.Is(err, mcast.ErrInterface) {
				t.Errorf("the source of another interface: %v", err)
			}
			if err := c.SetFilter(mcast.Group{Addr: g.Addr}, mcast.Exclude, extra.WithZone(zone)); err != nil {
				t.Error(err)
			}
			s.check(p.membership(g, "Eb")...)

			// The same address on another interface is another source.
			elsewhere := mcast.Group{Addr: g.Addr.Next(), Interface: other.ifi.Name}
			if err := c.JoinSource(elsewhere, extra); err != nil {
				t.Fatal(err)
			}
			from := other.sender(t, extra)
			expected := make(map[string]arrival)
			s.send(s.senders[1], g, false, expected)
			s.send(s.senders[1], mcast.Group{Addr: elsewhere.Addr, Interface: p.ifi.Name}, false, expected)
			s.send(from, link(other), false, expected)
			s.send(from, elsewhere, true, expected)
			s.send(s.senders[0], g, true, expected)
			s.send(s.senders[0], s.fence, true, expected)
			s.receive(expected)

			// What ReadFrom returns can be answered.
			s.c.SetReadDeadline(time.Now().Add(5 * time.Second))
			s.senders[0].send(t, netip.AddrPortFrom(g.Addr, s.port), "x")
			_, a, err := s.c.ReadFrom(make([]byte, 10))
			if u, ok := a.(*net.UDPAddr); err != nil || !ok || u.Zone != "near0" || u.AddrPort() != s.senders[0].from {
				t.Errorf("%v, %v", a, err)
			} else if _, err := s.c.WriteTo([]byte("y"), a); err != nil {
				t.Error(err)
			}
		})
	})
}

// Of one IPv6 group on two interfaces, one is deleted: what is joined on the other
// is heard, and can be changed, with Conn and Pool, and the system's filter is no
// wider than it.
func TestLabTwoInterfacesOneGoes(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		local := l.Local()
		peer, other := cable(l, "eth0", "p0"), l.Host("p1")
		l.Veth(local, "vb", other, "eth0")
		eachFamily(l, func(t *testing.T, six bool) {
			for _, pool := range []bool{false, true} {
				for _, left := range []bool{false, true} {
					w := watchOn(t, l, six, "eth0", peer, pool)
					g, there := w.group(1), numbered(six, 1, "vb")
					w.must(w.Join(w.group(90)), w.JoinSource(g, w.source('a')), w.Join(there))
					gone := w.of(there, "E")
					gone.Pending = true
					local.Delete("vb")
					w.waitEvent("vb is gone", func(e mcast.Event) bool { return e.Kind == mcast.EventPending && e.Group == there })
					want := sorted(w.of(g, "Ia"), w.of(w.group(90), "E"), gone)
					if left {
						w.must(w.Leave(there))
						want = sorted(w.of(g, "Ia"), w.of(w.group(90), "E"))
					}
					w.check(want...)
					change := func(filter string, err error) {
						t.Helper()
						w.must(err)
						for i := range want {
							if want[i].Group == g {
								want[i] = w.of(g, filter)
							}
						}
						if s := w.differs(want...); s != "" {
							t.Fatal(s)
						}
						w.hears(want...)
					}
					change("Iab", w.JoinSource(g, w.source('b')))
					change("Ib", w.LeaveSource(g, w.source('a')))
					change("Eab", w.SetFilter(g, mcast.Exclude, w.source('a'), w.source('b')))
					change("Eb", w.Unblock(g, w.source('a')))
					change("Ia", w.SetFilter(g, mcast.Include, w.source('a')))
					local.Recreate("vb", left)
					if !left {
						back := w.of(there, "E")
						eventually(t, func() string {
							for _, m := range w.Memberships() {
								if m.String() == back.String() && m.Index == local.Index("vb") && local.Users("vb", there.Addr) == 1 {
									return ""
								}
							}
							return fmt.Sprint("not made anew: ", w.Memberships())
						})
						w.hears(w.of(g, "Ia"), w.of(w.group(90), "E"))
					}
					w.must(w.Close())
					for _, name := range []string{"eth0", "vb"} {
						if n := local.Users(name, g.Addr); n != 0 {
							t.Errorf("%d users on %s in the end", n, name)
						}
					}
				}
			}
		})
	})
}

// A filter that the system has room for is set, whatever is on another interface:
// no larger one is needed on the way.
func TestLabTwoInterfacesLimit(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		peer, other := cable(l, "eth0", "p0"), l.Host("p1")
		l.Veth(l.Local(), "vb", other, "eth0")
		eachFamily(l, func(t *testing.T, six bool) {
			most := 10 // net.ipv4.igmp_max_msf
			if six {
				most = 64 // net.ipv6.mld_max_msf
			}
			sources := func(from int) (list []netip.Addr) {
				a := netip.MustParseAddr(map[bool]string{false: "198.51.100.1", true: "2001:db8::1"}[six])
				for range from {
					a = a.Next()
				}
				for range most {
					list = append(list, a)
					a = a.Next()
				}
				return list
			}
			w := watchOn(t, l, six, "eth0", peer, false)
			g, there := w.group(1), numbered(six, 1, "vb")
			// What was and what is to be have no room together.
			w.must(w.SetFilter(g, mcast.Include, sources(0)[:most-1]...), w.SetFilter(there, mcast.Include, sources(0)[:1]...))
			w.must(w.SetFilter(g, mcast.Include, sources(100)[:most-1]...))
			w.must(w.SetFilter(g, mcast.Include, sources(0)...), w.SetFilter(there, mcast.Include, sources(0)...))
			// One to the whole: their union is the whole again.
			w.must(w.SetFilter(there, mcast.Exclude))
			w.must(w.SetFilter(g, mcast.Include, sources(100)...))
			w.must(w.SetFilter(there, mcast.Include, sources(100)...))
			w.must(w.SetFilter(g, mcast.Include, sources(100)[:1]...))
			before := fmt.Sprint(w.Memberships())
			if six {
				// Here the union itself is too large.
				if err := w.SetFilter(g, mcast.Include, sources(300)...); !errors.Is(err, mcast.ErrLimit) {
					t.Errorf("a union of %d: %v", 2*most, err)
				}
				if after := fmt.Sprint(w.Memberships()); after != before {
					t.Errorf("after a refusal: %v, want %v", after, before)
				}
			}
			w.must(w.Leave(g), w.SetFilter(there, mcast.Include, sources(200)...))
			want := mcast.Membership{Group: there, Sources: sources(200)}
			if m, err := w.SystemFilter(there); err != nil || m.String() != want.String() {
				t.Errorf("the system has %v (%v)", m, err)
			}
		})
	})
}
