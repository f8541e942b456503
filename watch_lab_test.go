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

// What happens to a device, and what becomes of memberships on it.
func TestLabWatchDevice(t *testing.T) {
	eachWatched(t, true, func(w *watched) {
		local, index := w.l.Local(), w.index()
		news := w.news()
		all := w.standard()
		w.join(all...)
		w.check(all...)

		local.Delete("eth0")
		w.become(allPending(all)...)
		local.Recreate("eth0", false)
		old := index
		index = w.index()
		w.check(all...)
		w.wantEvents("deleted and made again", news, all, old, index, "lpr")

		local.Recreate("eth0", false)
		old, index = index, w.index()
		w.check(all...)
		w.wantEvents("deleted and made again at once", news, all, old, index, "lpr")

		local.Recreate("eth0", true)
		w.check(all...)
		w.wantEvents("the same index", news, all, index, index, "lpr")

		away := w.l.Host("away" + fmt.Sprint(fences.Add(1)))
		local.Move("eth0", away)
		w.become(allPending(all)...)
		w.wantEvents("moved away", news, all, index, 0, "lp")
		away.Move("eth0", local)
		local.Up("eth0")
		local.Readdress("eth0")
		w.check(all...)
		w.wantEvents("moved back", news, all, index, index, "r")
	})
}

// Another name is another interface: a membership belongs to the name that it was
// joined by, and waits for it.
func TestLabWatchRename(t *testing.T) {
	eachWatched(t, true, func(w *watched) {
		local, index := w.l.Local(), w.index()
		news := w.news()
		all := w.standard()
		w.join(all...)
		w.check(all...)

		rename := func(from, to string) {
			local.Down(from)
			local.IP("link", "set", "dev", from, "name", to)
			local.Up(to)
		}
		rename("eth0", "lan0")
		w.become(allPending(all)...)
		w.wantEvents("renamed", news, all, index, 0, "lp")
		for _, m := range all {
			if n := local.Users("lan0", m.Group.Addr); n != 0 {
				w.t.Errorf("%v: %d users under the new name", m.Group, n)
			}
		}
		// The new one can be joined, beside what waits.
		lan := numbered(w.six, 5, "lan0")
		w.must(w.Join(lan))
		if n := local.Users("lan0", lan.Addr); n != 1 {
			w.t.Errorf("%d users of a group on the new name", n)
		}
		if err := w.Join(numbered(w.six, 5, "eth0")); !errors.Is(err, mcast.ErrInterface) {
			w.t.Errorf("a join by the old name: %v", err)
		}
		w.must(w.JoinSource(w.group(101), w.source('c')))
		rename("lan0", "eth0")
		local.Readdress("eth0")
		all = sorted(w.of(w.group(101), "Iabc"), w.of(w.group(1), "E"), w.of(w.group(2), "Ea"), w.of(w.group(90), "E"))
		waits := w.of(lan, "E")
		waits.Pending = true
		w.become(sorted(append(slices.Clone(all), waits)...)...)
		w.must(w.Leave(lan))
		w.check(all...)
		w.mu.Lock()
		w.events = slices.DeleteFunc(w.events, func(e mcast.Event) bool { return e.Name == "lan0" })
		w.mu.Unlock()
		w.wantEvents("renamed back", news, all, index, index, "r")
		w.must(w.Close())
		for _, m := range append(all, waits) {
			if n := local.Users("eth0", m.Group.Addr); n != 0 {
				w.t.Errorf("%v: %d users in the end", m.Group, n)
			}
		}
	})
}

// Two interfaces swap their names: each membership goes where its name is.
func TestLabWatchSwap(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		peers := []*netlab.Host{cable(l, "eth0", "p0"), cable(l, "eth1", "p1")}
		eachFamily(l, func(t *testing.T, six bool) {
			local := l.Local()
			w := watchOn(t, l, six, "eth0", peers[0], false)
			a, b := w.of(numbered(six, 1, "eth0"), "Ia"), w.of(numbered(six, 1, "eth1"), "E")
			w.join(a, b, w.of(w.group(90), "E"))
			for _, name := range []string{"eth0", "eth1"} {
				local.Down(name)
			}
			local.IP("link", "set", "dev", "eth0", "name", "tmp0")
			local.IP("link", "set", "dev", "eth1", "name", "eth0")
			local.IP("link", "set", "dev", "tmp0", "name", "eth1")
			for _, name := range []string{"eth0", "eth1"} {
				local.Up(name)
			}
			w.happened()
			// In IPv6 the system has the union on both.
			if !six {
				w.become(sorted(a, b, w.of(w.group(90), "E"))...)
			}
			for _, m := range []mcast.Membership{a, b} {
				i := slices.IndexFunc(w.Memberships(), func(x mcast.Membership) bool { return x.String() == m.String() })
				if i < 0 || w.Memberships()[i].Index != local.Index(m.Group.Interface) {
					t.Errorf("%v is not where its name is: %v", m, w.Memberships())
				}
				if n := local.Users(m.Group.Interface, m.Group.Addr); n != 1 {
					t.Errorf("%v: %d users", m, n)
				}
			}
			w.peer = peers[1] // whose cable has the name eth0 now
			for six, list := range labSenders {
				for _, x := range list {
					if six == w.six {
						w.peer.AddAddr("eth0", netip.PrefixFrom(x, x.BitLen()).String())
					}
				}
			}
			w.hears(w.of(numbered(six, 1, "eth0"), "Ia"), w.of(w.group(90), "E"))
			w.must(w.Close())
			peers[0], peers[1] = peers[1], peers[0]
		})
	})
}

// Down and up, with and without changes in between, and addresses that come
// and go.
func TestLabWatchDown(t *testing.T) {
	eachWatched(t, false, func(w *watched) {
		local, index := w.l.Local(), w.index()
		news := w.news()
		all := w.standard()
		wire := w.peer.Capture("eth0")
		defer wire.Close()
		w.join(all...)
		joined := time.Now()
		w.check(all...)
		// What is joined is announced twice, and what was changed in the second
		// before counts as changed while down, since the news may come late.
		time.Sleep(time.Until(joined.Add(2200 * time.Millisecond)))
		wire.Reset()
		addr := map[bool]string{false: "10.88.0.1/24", true: "fd88::1/64"}[w.six]
		local.IP("addr", "del", addr, "dev", "eth0")
		local.Readdress("eth0")
		w.nothingHappened("address removed and added")
		// A group joined later tells that there is nothing more to come.
		w.must(w.JoinSource(w.group(110), w.source('a')))
		wire.WantRecord(w.t, netlab.AllowNewSources, w.group(110).Addr, w.source('a'))
		for _, r := range wire.Records() {
			// For an IPv6 address the kernel repeats EXCLUDE, by itself. What makes
			// anew leaves first, in either family.
			if slices.ContainsFunc(all, func(m mcast.Membership) bool { return m.Group.Addr == r.Group }) &&
				(r.Type == netlab.ChangeToIncludeMode || r.Type == netlab.BlockOldSources || r.Group == w.group(101).Addr) {
				w.t.Errorf("announced for an address: %v", r)
			}
		}
		w.must(w.Leave(w.group(110)))
		w.check(all...)

		news.take()
		local.Down("eth0")
		local.Up("eth0")
		local.Readdress("eth0")
		w.check(all...)
		w.wantLinkEvents("down and up")
		news.take()

		local.Down("eth0")
		g, asm := w.group(101), w.group(2)
		w.must(w.JoinSource(g, w.source('c')), w.LeaveSource(g, w.source('a')), w.Block(asm, w.source('b')), w.Join(w.group(3)), w.JoinSource(w.group(102), w.source('a')))
		all = sorted(w.of(g, "Ibc"), w.of(w.group(1), "E"), w.of(asm, "Eab"), w.of(w.group(3), "E"), w.of(w.group(102), "Ia"), w.of(w.group(90), "E"))
		local.Up("eth0")
		local.Readdress("eth0")
		w.waitEvent("made anew", func(e mcast.Event) bool { return e.Group == g && e.Kind == mcast.EventRestored })
		w.check(all...)
		changed := sorted(w.of(g, "Ibc"), w.of(w.group(102), "Ia"))
		w.wantEvents("changed while down", news, changed, index, index, "lr")
	})
}

// wantLinkEvents checks that an interface went down and came up, as an event
// each, and that no membership is concerned but by its carrier.
func (w *watched) wantLinkEvents(what string) {
	w.t.Helper()
	index := w.index()
	down, up := 0, 0
	events := w.happened()
	for _, e := range events {
		switch {
		case e == (mcast.Event{Kind: mcast.EventDown, Name: w.ifname, Old: index, New: index}) && down == up:
			down++
		case e == (mcast.Event{Kind: mcast.EventUp, Name: w.ifname, Old: index, New: index}) && down == up+1:
			up++
		default:
			w.t.Errorf("%s: %v among %v", what, e, events)
		}
	}
	if down != 1 || up != 1 {
		w.t.Errorf("%s: %d times down, %d up: %v", what, down, up, events)
	}
}

// A switch that forgot: what was announced before is announced once more when
// the carrier is back, although nobody asks.
func TestLabWatchCarrier(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		local, source := l.Local(), l.Host("source")
		sw := l.Switch(local, source)
		sw.IP("link", "set", "dev", "br0", "type", "bridge", "mcast_querier", "0")
		forget := func() {
			sw.IP("link", "set", "dev", "br0", "type", "bridge", "mcast_snooping", "0")
			sw.IP("link", "set", "dev", "br0", "type", "bridge", "mcast_snooping", "1")
		}
		eachFamily(l, func(t *testing.T, six bool) {
			senders := addrs("10.77.1.101", "10.77.1.102")
			if six {
				senders = addrs("fd77:1::101", "fd77:1::102")
			}
			var conns []*watched
			for range 2 {
				conns = append(conns, watchOn(t, l, six, "eth0", source, false))
			}
			ssm, asm := numbered(six, 101, "eth0"), numbered(six, 1, "eth0")
			known := func(want bool) {
				t.Helper()
				sw.WaitForwards(t, "local", ssm.Addr, senders[0], want)
				sw.WaitForwards(t, "local", asm.Addr, senders[0], want)
			}
			hear := func() {
				t.Helper()
				for _, w := range conns {
					for _, g := range []mcast.Group{ssm, asm} {
						source.Send(t, "eth0", senders[0], netip.AddrPortFrom(g.Addr, w.port), "x")
						w.SetReadDeadline(time.Now().Add(10 * time.Second))
						m := mcast.Message{Buf: make([]byte, 10)}
						if err := w.ReadMessage(&m); err != nil || m.Group != g {
							t.Errorf("%v: %v, %v", g, m.Group, err)
						}
					}
				}
			}
			for _, w := range conns {
				w.must(w.JoinSource(ssm, senders[0]), w.Join(asm))
			}
			known(true)
			hear()

			local.Carrier("eth0", false)
			for _, w := range conns {
				w.waitEvent("no carrier", func(e mcast.Event) bool { return e.Kind == mcast.EventDown })
			}
			forget()
			known(false)
			wire := local.Capture("eth0")
			local.Carrier("eth0", true)
			known(true)
			hear()
			for _, w := range conns {
				for _, g := range []mcast.Group{ssm, asm} {
					w.waitEvent("announced again", func(e mcast.Event) bool { return e.Kind == mcast.EventRestored && e.Group == g })
				}
				w.become(sorted(w.of(asm, "E"), mcast.Membership{Group: ssm, Sources: senders[:1]})...)
				var kinds strings.Builder
				for _, e := range w.happened() {
					if e.Group == (mcast.Group{}) {
						kinds.WriteString(e.Kind.String() + " ")
					}
				}
				if kinds.String() != "down up " {
					t.Errorf("of the interface: %s", kinds.String())
				}
			}
			// Both left before either joined: a kernel says nothing of a group that
			// somebody else is in.
			for _, g := range []mcast.Group{ssm, asm} {
				var order strings.Builder
				for _, r := range wire.Reports() {
					for _, rec := range r.Records {
						if rec.Group == g.Addr && r.Outgoing {
							order.WriteString(fmt.Sprint(rec.Type, rec.Sources, " "))
						}
					}
				}
				if !strings.Contains(order.String(), netlab.AllowNewSources.String()) && !strings.Contains(order.String(), netlab.ChangeToExcludeMode.String()) {
					t.Errorf("%v is not announced: %s", g, order.String())
				}
			}
			wire.Close()

			// Joined before there is a carrier at all.
			for _, w := range conns {
				w.must(w.Leave(ssm), w.Leave(asm))
			}
			known(false)
			local.Carrier("eth0", false)
			forget()
			for _, w := range conns {
				w.must(w.JoinSource(ssm, senders[0]), w.Join(asm))
			}
			local.Carrier("eth0", true)
			known(true)
			hear()
			// The device comes back first, the carrier later.
			local.Down("eth0")
			local.Carrier("eth0", false)
			forget()
			local.Up("eth0")
			local.Readdress("eth0")
			for _, w := range conns {
				w.happened()
			}
			known(false)
			local.Carrier("eth0", true)
			known(true)
			hear()
			for _, w := range conns {
				w.must(w.Close())
			}
			for _, g := range []mcast.Group{ssm, asm} {
				if n := local.Users("eth0", g.Addr); n != 0 {
					t.Errorf("%d users of %v in the end", n, g)
				}
			}
		})
	})
}

// IPv6 ends on an interface while its link stays up, and begins again: what is
// asked for in between is heard too.
func TestLabWatchIPv6Off(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		local := l.Local()
		if !local.HasIPv6() {
			t.Skip("this kernel has no IPv6")
		}
		peer := cable(l, "eth0", "peer")
		for _, pool := range []bool{false, true} {
			for name, turn := range map[string]func(on bool){
				"MTU": func(on bool) {
					local.IP("link", "set", "dev", "eth0", "mtu", map[bool]string{false: "1200", true: "1500"}[on])
				},
				"disable_ipv6": func(on bool) {
					local.Sysctl("net.ipv6.conf.eth0.disable_ipv6", map[bool]string{false: "1", true: "0"}[on])
				},
			} {
				kind := map[bool]string{false: " Conn", true: " Pool"}[pool]
				l.Run(name+kind, func(t *testing.T) {
					w, four := watchOn(t, l, true, "eth0", peer, pool), watchOn(t, l, false, "eth0", peer, pool)
					all, all4 := w.standard(), four.standard()
					w.join(all...)
					four.join(all4...)
					w.check(all...)
					four.check(all4...)
					turn(false)
					w.waitEvent("IPv6 is off", func(e mcast.Event) bool { return e.Kind == mcast.EventLost && e.Group == w.group(101) })
					// A change that the kernel would lose.
					w.must(w.JoinSource(w.group(101), w.source('c')), w.Block(w.group(1), w.source('b')))
					all = sorted(w.of(w.group(101), "Iabc"), w.of(w.group(1), "Eb"), w.of(w.group(2), "Ea"), w.of(w.group(90), "E"))
					turn(true)
					local.Readdress("eth0")
					w.check(all...)
					four.nothingHappened("to IPv4")
					four.check(all4...)
					// And at once.
					turn(false)
					turn(true)
					local.Readdress("eth0")
					w.check(all...)
					w.must(w.Close(), four.Close())
					for _, m := range all {
						if n := local.Users("eth0", m.Group.Addr); n != 0 {
							t.Errorf("%v: %d users in the end", m.Group, n)
						}
					}
				})
			}
		}
	})
}

// Who joins on a new device before the watcher knows it has joined it once.
func TestLabWatchEager(t *testing.T) {
	eachWatched(t, true, func(w *watched) {
		local := w.l.Local()
		w.join(w.of(w.group(90), "E"))
		for i := range 5 {
			local.Recreate("eth0", i%2 == 0)
			g := w.group(10 + i)
			w.must(w.Join(g))
			w.check(sorted(w.of(g, "E"), w.of(w.group(90), "E"))...)
			w.happened()
			w.must(w.Leave(g))
			if n := local.Users("eth0", g.Addr); n != 0 && i%2 == 1 {
				w.t.Errorf("%d users of %v when it was left", n, g)
			}
		}
	})
}

// Requests on what is pending, by the name as before, and as many memberships as
// the kernel takes.
func TestLabWatchPending(t *testing.T) {
	eachWatched(t, true, func(w *watched) {
		local, index := w.l.Local(), w.index()
		all := w.standard()
		w.join(all...)
		local.Delete("eth0")
		w.become(allPending(all)...)
		g := w.group
		w.must(w.JoinSource(g(101), w.source('c')), w.LeaveSource(mcast.Group{Addr: g(101).Addr}, w.source('a')),
			w.Block(g(1), w.source('a')), w.Unblock(g(2), w.source('a')), w.SetFilter(g(2), mcast.Exclude, w.source('c')))
		for what, test := range map[string]struct{ err, want error }{
			"Join":         {w.Join(g(1)), mcast.ErrJoined},
			"JoinSource":   {w.JoinSource(g(101), w.source('b')), mcast.ErrJoined},
			"another mode": {w.JoinSource(g(1), w.source('b')), mcast.ErrMode},
			"Block":        {w.Block(g(1), w.source('a')), mcast.ErrBlocked},
			"Unblock":      {w.Unblock(g(1), w.source('b')), mcast.ErrNotBlocked},
			"LeaveSource":  {w.LeaveSource(g(101), w.source('a')), mcast.ErrNotJoined},
			// An index is another thing than a name: there is none such now.
			"by index": {w.Block(numbered(w.six, 1, fmt.Sprint(index)), w.source('b')), mcast.ErrInterface},
		} {
			var e *mcast.OpError
			if !errors.As(test.err, &e) || !errors.Is(test.err, test.want) {
				w.t.Errorf("%s out of order: %v, want %v", what, test.err, test.want)
			}
		}
		if err := w.Join(g(30)); !errors.Is(err, mcast.ErrInterface) {
			w.t.Errorf("a new membership on what is gone: %v", err)
		}
		now := sorted(w.of(g(101), "Ibc"), w.of(g(1), "Ea"), w.of(g(2), "Ec"), w.of(g(90), "E"))
		w.become(allPending(now)...)
		w.take()
		local.Recreate("eth0", false)
		w.check(now...)
		w.must(w.Block(numbered(w.six, 1, fmt.Sprint(w.index())), w.source('b')), w.Unblock(g(1), w.source('b')))
		w.check(now...)

		// What was left meanwhile does not come back.
		local.Delete("eth0")
		w.become(allPending(now)...)
		w.must(w.Leave(g(1)), w.SetFilter(g(2), mcast.Include), w.LeaveSource(g(101), w.source('b')), w.LeaveSource(g(101), w.source('c')))
		if err := w.Leave(g(1)); !errors.Is(err, mcast.ErrNotJoined) {
			w.t.Errorf("left twice: %v", err)
		}
		local.Recreate("eth0", false)
		w.check(w.of(w.group(90), "E"))
		for _, n := range []int{1, 2, 101} {
			if u := local.Users("eth0", g(n).Addr); u != 0 {
				w.t.Errorf("group %d: %d users", n, u)
			}
		}

		// 20 in all, three times: none is counted twice.
		many := []mcast.Membership{w.of(g(90), "E")}
		for i := range 19 {
			many = append(many, w.of(g(10+i), "E"))
		}
		w.join(many...)
		w.take()
		for i := range 3 {
			local.Recreate("eth0", i == 1)
			w.become(sorted(many...)...)
		}
		w.hears(many...)
		w.must(w.Leave(many[19].Group)) // room for the fence
		for _, e := range w.happened() {
			if e.Kind == mcast.EventFailed {
				w.t.Error(e)
			}
		}
	})
}

// What becomes of the sending half: the interface is set by its name, and is that
// again when it was made anew. A socket that is bound to a link-local group is not
// deaf then.
func TestLabWatchSender(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		local := l.Local()
		peer := cable(l, "eth0", "peer")
		eachFamily(l, func(t *testing.T, six bool) {
			w := watchOn(t, l, six, "eth0", peer, false)
			c := w.member.(*mcast.Conn)
			to := netip.AddrPortFrom(w.group(7).Addr, w.port)
			w.must(c.Join(w.group(90)), c.SetMulticastInterface(fmt.Sprint(w.index())))
			for round, same := range []bool{false, true, false} {
				wire := peer.Capture("eth0")
				// At once, too, once the memberships are there again.
				if n, err := c.WriteToUDPAddrPort([]byte("x"), to); n != 1 || err != nil {
					t.Errorf("round %d: %v", round, err)
				}
				if n := wire.WaitCount(netip.Addr{}, to, 1, 5*time.Second); n != 1 {
					t.Errorf("round %d: %d datagrams on the wire", round, n)
				}
				if name, err := c.MulticastInterface(); name != "eth0" || err != nil {
					t.Errorf("round %d: by %q, %v", round, name, err)
				}
				wire.Close()
				local.Recreate("eth0", same)
				w.happened()
			}
			local.Delete("eth0")
			w.happened()
			if name, err := c.MulticastInterface(); name != "eth0" || err != nil {
				t.Errorf("while it is gone: %q, %v", name, err)
			}
			if _, err := c.WriteToUDPAddrPort([]byte("x"), to); err == nil {
				t.Error("a datagram is sent by an interface that is gone")
			}
			local.Recreate("eth0", false)
			w.happened()
			if _, err := c.WriteToUDPAddrPort([]byte("x"), to); err != nil {
				t.Error(err)
			}
			w.must(c.Close())
			// Without a membership it is watched all the same.
			d, err := mcast.Listen(networkOf(six), ":0", nil)
			w.must(err, d.SetMulticastInterface("eth0"))
			defer d.Close()
			local.Recreate("eth0", false)
			eventually(t, func() string {
				if _, err := d.WriteToUDPAddrPort([]byte("x"), to); err != nil {
					return err.Error()
				}
				return ""
			})
			if err := d.SetMulticastInterface("nosuch"); !errors.Is(err, mcast.ErrInterface) {
				t.Errorf("no such interface: %v", err)
			}
			if name, err := d.MulticastInterface(); name != "eth0" || err != nil {
				t.Errorf("after a refusal: %q, %v", name, err)
			}
			w.must(d.SetMulticastInterface(""))
			if name, err := d.MulticastInterface(); name != "" || err != nil {
				t.Errorf("none: %q, %v", name, err)
			}

			if !six {
				return
			}
			port := labPort(t, true)
			for _, address := range []string{"ff12::1", "ff02::77:1", "ff32::8000:1"} {
				c, err := mcast.Listen("udp6", fmt.Sprintf("[%s%%eth0]:%d", address, port), nil)
				w.must(err)
				defer c.Close()
				g := mcast.Group{Addr: netip.MustParseAddr(address), Interface: "eth0"}
				w.must(c.JoinSource(g, w.source('a')))
				for round, same := range []bool{false, true, false} {
					peer.Send(t, "eth0", w.source('a'), netip.AddrPortFrom(g.Addr, port), fmt.Sprint(round))
					c.SetReadDeadline(time.Now().Add(10 * time.Second))
					m := mcast.Message{Buf: make([]byte, 10)}
					if err := c.ReadMessage(&m); err != nil || m.Group != g || string(m.Buf[:m.N]) != fmt.Sprint(round) {
						t.Errorf("bound to %v, made anew %d times: %v, %v", g, round, m.Group, err)
					}
					local.Recreate("eth0", same)
					eventually(t, func() string {
						if ms := c.Memberships(); len(ms) != 1 || ms[0].Pending || ms[0].Index != local.Index("eth0") || local.Users("eth0", g.Addr) != 1 {
							return fmt.Sprint("memberships ", ms)
						}
						return ""
					})
				}
				if a, ok := c.LocalAddr().(*net.UDPAddr); !ok || a.String() != fmt.Sprintf("[%s%%eth0]:%d", address, port) {
					t.Errorf("local address %v", c.LocalAddr())
				}
			}
		})
	})
}
