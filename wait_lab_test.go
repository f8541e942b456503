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

// Config.WaitForInterface: what has no interface yet waits for it, whether there
// is none of that name or no route picks one; with NoWatch, until Repair.
func TestLabWait(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		local, far := l.Local(), l.Host("far")
		eachFamily(l, func(t *testing.T, six bool) {
			source, family := addrs("10.99.0.1")[0], "-4"
			if six {
				source, family = addrs("fd99::1")[0], "-6"
			}
			for _, pool := range []bool{false, true} {
				for _, watch := range []bool{true, false} {
					what := fmt.Sprintf("pool: %v, watched: %v", pool, watch)
					name := "vpn" + fmt.Sprint(fences.Add(1))
					w := &watched{t: t, l: l, six: six, pool: pool, ifname: name, peer: far}
					w.open(&mcast.Config{WaitForInterface: true, NoWatch: !watch})
					// Without the option, each is an error, and nothing is kept.
					strict := &watched{t: t, l: l, six: six, pool: pool, ifname: name, peer: far}
					strict.open(&mcast.Config{})
					named, routed := w.group(1), numbered(six, 101, "")
					for _, err := range []error{
						strict.Join(named), strict.JoinSource(w.group(101), source), strict.SetFilter(named, mcast.Exclude),
						strict.JoinSource(routed, source), strict.SetFilter(routed, mcast.Include, source),
					} {
						if !errors.Is(err, mcast.ErrInterface) {
							t.Errorf("%s: without waiting: %v", what, err)
						}
					}
					if ms := strict.Memberships(); len(ms) > 0 {
						t.Errorf("%s: without waiting: %v", what, ms)
					}
					// What can never be is an error all the same.
					for _, g := range []mcast.Group{numbered(six, 1, "4711"), numbered(six, 1, "0"), numbered(!six, 1, name)} {
						if err := w.Join(g); !errors.Is(err, mcast.ErrInterface) && !errors.Is(err, mcast.ErrAddress) {
							t.Errorf("%s: %v: %v", what, g, err)
						}
					}

					w.must(w.Join(named), w.Block(named, source), w.JoinSource(routed, source))
					if err := w.Join(named); !errors.Is(err, mcast.ErrJoined) {
						t.Errorf("%s: twice: %v", what, err)
					}
					pending := func(ms ...mcast.Membership) []mcast.Membership { return allPending(sorted(ms...)) }
					on := func(g mcast.Group, mode mcast.Mode) mcast.Membership {
						return mcast.Membership{Group: g, Mode: mode, Sources: []netip.Addr{source}}
					}
					if s := w.differs(pending(on(named, mcast.Exclude), on(routed, mcast.Include))...); s != "" {
						t.Errorf("%s: %s", what, s)
					}
					for _, g := range []mcast.Group{named, routed} {
						w.waitEvent(what, func(e mcast.Event) bool { return e.Kind == mcast.EventPending && e.Group == g })
					}

					// The interface comes, and the route later.
					l.Veth(local, name, far, name)
					addr := map[bool]string{false: "10.88.0.1/24", true: "fd88::1/64"}[six]
					local.AddAddr(name, addr)
					if !watch {
						if s := w.differs(pending(on(named, mcast.Exclude), on(routed, mcast.Include))...); s != "" {
							t.Errorf("%s: before Repair: %s", what, s)
						}
						w.must(w.Repair())
					}
					w.become(sorted(on(named, mcast.Exclude), allPending([]mcast.Membership{on(routed, mcast.Include)})[0])...)
					local.IP(family, "route", "add", source.String(), "dev", name)
					if !watch {
						w.must(w.Repair())
					}
					there := numbered(six, 101, name)
					w.become(sorted(on(named, mcast.Exclude), on(there, mcast.Include))...)
					for _, g := range []mcast.Group{named, routed} {
						w.waitEvent(what, func(e mcast.Event) bool {
							return e == mcast.Event{Kind: mcast.EventRestored, Group: g, Name: name, New: local.Index(name)}
						})
					}
					far.Send(t, name, source, netip.AddrPortFrom(there.Addr, w.port), "x")
					w.SetReadDeadline(time.Now().Add(10 * time.Second))
					m := mcast.Message{Buf: make([]byte, 10)}
					if err := w.ReadMessage(&m); err != nil || m.Group != there || m.Index != local.Index(name) {
						t.Errorf("%s: %v, %v", what, m.Group, err)
					}
					var failed []mcast.Event
					for _, e := range w.take() {
						// Repair, or a carrier that comes later, has what is there made anew.
						if e.Kind == mcast.EventFailed {
							failed = append(failed, e)
						}
					}
					if len(failed) > 0 {
						t.Errorf("%s: %v", what, failed)
					}
					// By its name, and by none.
					more := addrs("10.99.0.2", "fd99::2")[map[bool]int{false: 0, true: 1}[six]]
					w.must(w.JoinSource(routed, more), w.LeaveSource(there, more), w.Leave(named), w.Leave(there))
					if ms := w.Memberships(); len(ms) > 0 {
						t.Errorf("%s: left: %v", what, ms)
					}
					for _, g := range []mcast.Group{named, there} {
						if n := local.Users(name, g.Addr); n != 0 {
							t.Errorf("%s: %d users of %v in the end", what, n, g)
						}
					}
					w.must(w.Close(), strict.Close())
					local.Delete(name)
				}
			}
		})
	})
}

// A request that waits may be taken back, and one that was refused by its limit
// is none that waits.
func TestLabWaitChanged(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		eachFamily(l, func(t *testing.T, six bool) {
			w := &watched{t: t, l: l, six: six, ifname: "later" + networkOf(six)[3:], peer: l.Host("p" + networkOf(six)[3:])}
			w.open(&mcast.Config{WaitForInterface: true})
			g := w.group(101)
			w.must(w.JoinSource(g, w.source('a')), w.JoinSource(g, w.source('b')), w.Join(w.group(1)), w.Join(w.group(2)))
			w.must(w.LeaveSource(g, w.source('a')), w.Leave(w.group(1)), w.SetFilter(w.group(2), mcast.Exclude, w.source('c')))
			l.Veth(l.Local(), w.ifname, w.peer, "eth0")
			w.become(sorted(w.of(w.group(2), "Ec"), w.of(g, "Ib"))...)
			if n := l.Local().Users(w.ifname, w.group(1).Addr); n != 0 {
				t.Errorf("%d users of what was left", n)
			}
			// An interface that is there takes what it takes.
			if !six {
				for i := range 18 {
					w.must(w.Join(w.group(20 + i)))
				}
				before := fmt.Sprint(w.Memberships())
				if err := w.Join(w.group(50)); !errors.Is(err, mcast.ErrLimit) {
					t.Errorf("the 21st: %v", err)
				}
				if after := fmt.Sprint(w.Memberships()); after != before {
					t.Errorf("after a refusal: %v, want %v", after, before)
				}
			}
		})
	})
}

// What the routing table chose follows it, but never onto an interface where the
// group has a membership of its own.
func TestLabWatchRoute(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		local := l.Local()
		peers := []*netlab.Host{cable(l, "eth0", "p0"), cable(l, "eth1", "p1")}
		eachFamily(l, func(t *testing.T, six bool) {
			source, family := addrs("10.99.0.1")[0], "-4"
			if six {
				source, family = addrs("fd99::1")[0], "-6"
			}
			route := func(verb, dev string) { local.IP(family, "route", verb, source.String(), "dev", dev) }
			route("add", "eth0")
			w := watchOn(t, l, six, "eth0", peers[0], false)
			g := numbered(six, 101, "")
			named := numbered(six, 102, "eth0")
			w.must(w.JoinSource(g, source), w.JoinSource(named, source))
			on := func(ifname string) mcast.Membership {
				return mcast.Membership{Group: numbered(six, 101, ifname), Sources: []netip.Addr{source}}
			}
			nowhere, stays := on(""), mcast.Membership{Group: named, Sources: []netip.Addr{source}}
			nowhere.Pending = true
			w.become(sorted(on("eth0"), stays)...)
			hear := func(ifname string, from *netlab.Host) {
				t.Helper()
				from.Send(t, "eth0", source, netip.AddrPortFrom(g.Addr, w.port), ifname)
				w.SetReadDeadline(time.Now().Add(10 * time.Second))
				m := mcast.Message{Buf: make([]byte, 10)}
				if err := w.ReadMessage(&m); err != nil || m.Group != on(ifname).Group {
					t.Errorf("on %s: %v, %v", ifname, m.Group, err)
				}
			}
			hear("eth0", peers[0])
			// No route, and then another one.
			gone := stays
			local.Delete("eth0")
			gone.Pending = true
			w.become(sorted(nowhere, gone)...)
			route("add", "eth1")
			w.become(sorted(on("eth1"), gone)...)
			hear("eth1", peers[1])
			// It stays where it is, and what has a name goes back there.
			local.Recreate("eth0", false)
			w.become(sorted(on("eth1"), stays)...)
			// A route that is moved already.
			route("replace", "eth0")
			local.Delete("eth1")
			w.become(sorted(on("eth0"), stays)...)
			hear("eth0", peers[0])
			local.Recreate("eth1", false)
			var kinds strings.Builder
			events := w.happened()
			for _, e := range events {
				if e.Group.Addr == g.Addr {
					kinds.WriteString(fmt.Sprint(e.Kind.String()[:1], strings.TrimPrefix(e.Name, "eth"), " "))
				}
			}
			// A carrier that comes later has it made anew, where it is.
			got := strings.ReplaceAll(strings.ReplaceAll(kinds.String(), "r1 l1 r1 ", "r1 "), "r0 l0 r0 ", "r0 ")
			if got != "l0 p0 r1 l1 p1 r0 " {
				t.Errorf("events %s: %v", kinds.String(), events)
			}

			// A membership of its own is on the interface that the route leads to.
			w.must(w.Leave(on("eth0").Group), w.SetFilter(named, mcast.Include))
			plain := numbered(six, 3, "")
			ownPlain := mcast.Membership{Group: numbered(six, 3, "eth1"), Sources: []netip.Addr{source}}
			w.must(w.JoinSource(plain, source), w.JoinSource(ownPlain.Group, source))
			was := mcast.Membership{Group: numbered(six, 3, "eth0"), Sources: []netip.Addr{source}}
			w.become(sorted(was, ownPlain)...)
			if err := w.JoinSource(plain, w.source('a')); !errors.Is(err, mcast.ErrInterface) {
				t.Errorf("one of two: %v", err)
			}
			w.take()
			local.Delete("eth0")
			route("replace", "eth1")
			waits := mcast.Membership{Group: plain, Sources: []netip.Addr{source}, Pending: true}
			eventually(t, func() string {
				if ms := w.Memberships(); fmt.Sprint(ms) != fmt.Sprint(sorted(waits, ownPlain)) || ms[0].Index != 0 || ms[1].Index != local.Index("eth1") {
					return fmt.Sprintf("memberships %v, want %v", ms, sorted(waits, ownPlain))
				}
				return ""
			})
			w.waitEvent("it is pending and says so", func(e mcast.Event) bool { return e.Kind == mcast.EventPending && e.Group == plain })
			if m, err := w.SystemFilter(ownPlain.Group); err != nil || m.String() != ownPlain.String() {
				t.Errorf("its own: %v, %v", m, err)
			}
			// When that is left, there is room.
			w.must(w.Leave(ownPlain.Group))
			w.happened()
			w.become(mcast.Membership{Group: ownPlain.Group, Sources: []netip.Addr{source}})
			w.must(w.Close())
			local.Recreate("eth0", false)
			route("del", "eth1")
			for _, name := range []string{"eth0", "eth1"} {
				for _, n := range []int{3, 101, 102} {
					if u := local.Users(name, numbered(six, n, "").Addr); u != 0 {
						t.Errorf("group %d: %d users on %s in the end", n, u, name)
					}
				}
			}
		})
	})
}

// Digits are an index, and mean the name that it has when the request is made.
func TestLabDigits(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		local := l.Local()
		peer := cable(l, "eth0", "peer")
		other := l.Host("other")
		l.Veth(local, "77", other, "eth0")
		eachFamily(l, func(t *testing.T, six bool) {
			w := watchOn(t, l, six, "eth0", peer, false)
			old := w.index()
			digits := numbered(six, 1, fmt.Sprint(old))
			w.must(w.Join(digits), w.Join(w.group(90)))
			want := sorted(w.of(w.group(1), "E"), w.of(w.group(90), "E"))
			w.check(want...)
			if err := w.Join(w.group(1)); !errors.Is(err, mcast.ErrJoined) {
				t.Errorf("by name what was joined by index: %v", err)
			}
			w.must(w.Block(w.group(1), w.source('a')), w.Unblock(digits, w.source('a')))
			// It belongs to the name: the index means nothing any more.
			local.Recreate("eth0", false)
			w.check(want...)
			for what, err := range map[string]error{"Leave": w.Leave(digits), "Join": w.Join(numbered(six, 2, fmt.Sprint(old))), "Block": w.Block(digits, w.source('a'))} {
				if !errors.Is(err, mcast.ErrInterface) {
					t.Errorf("%s by an index that nobody has: %v", what, err)
				}
			}
			w.must(w.Block(numbered(six, 1, fmt.Sprint(w.index())), w.source('b')), w.Unblock(w.group(1), w.source('b')))
			w.must(w.Leave(w.group(1)))

			// An interface whose name is all digits is reached by its index.
			index := local.Index("77")
			named := numbered(six, 4, "77")
			if err := w.Join(named); !errors.Is(err, mcast.ErrInterface) {
				t.Errorf("77 is an index, and nobody has it: %v", err)
			}
			byIndex := numbered(six, 4, fmt.Sprint(index))
			w.must(w.Join(byIndex))
			ms := w.Memberships()
			if i := slices.IndexFunc(ms, func(m mcast.Membership) bool { return m.Group == byIndex }); i < 0 || ms[i].Index != index || ms[i].Pending {
				t.Errorf("memberships %v", ms)
			}
			if n := local.Users("77", byIndex.Addr); n != 1 {
				t.Errorf("%d users on 77", n)
			}
			other.Send(t, "eth0", w.source('a'), netip.AddrPortFrom(byIndex.Addr, w.port), "x")
			w.SetReadDeadline(time.Now().Add(10 * time.Second))
			m := mcast.Message{Buf: make([]byte, 10)}
			if err := w.ReadMessage(&m); err != nil || m.Group != byIndex || m.Index != index {
				t.Errorf("%v, %d, %v", m.Group, m.Index, err)
			}
			w.must(w.Leave(byIndex))
		})
	})
}

// A device that is gone takes no requests that are new to it; without a watcher
// what was joined there stays asked for, and can be left.
func TestLabDeviceGone(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		local := l.Local()
		eachFamily(l, func(t *testing.T, six bool) {
			name := networkOf(six)[3:]
			peer := l.Host("ip" + name)
			l.Veth(local, "gone"+name, peer, "eth0")
			l.Veth(local, "kept"+name, peer, "eth1")
			w := &watched{t: t, l: l, six: six, ifname: "gone" + name, peer: peer}
			w.open(&mcast.Config{NoWatch: true})
			ssm, asm, stays := w.group(101), w.group(1), numbered(six, 9, "kept"+name)
			w.must(w.JoinSource(ssm, w.source('a')), w.JoinSource(ssm, w.source('b')), w.Join(asm), w.Block(asm, w.source('a')), w.Join(stays))
			var more []mcast.Group
			for i := range 17 { // with the others, all that Linux takes of IPv4
				more = append(more, w.group(i+20))
				w.must(w.Join(more[i]))
			}
			local.Delete(w.ifname)
			before := fmt.Sprint(w.Memberships())
			refused := func(what string, err error) {
				t.Helper()
				var e *mcast.OpError
				if !errors.Is(err, mcast.ErrInterface) || !errors.As(err, &e) || e.Group.Interface != w.ifname || !strings.Contains(err.Error(), w.ifname) {
					t.Errorf("%s: %v, want ErrInterface", what, err)
				}
				if after := fmt.Sprint(w.Memberships()); after != before {
					t.Errorf("%s: memberships %v, want %v", what, after, before)
				}
			}
			refused("Join", w.Join(w.group(3)))
			refused("JoinSource", w.JoinSource(w.group(103), w.source('a')))
			refused("SetFilter", w.SetFilter(w.group(103), mcast.Include, w.source('a')))
			// What was joined is changed, and waits.
			w.must(w.JoinSource(ssm, w.source('c')), w.LeaveSource(ssm, w.source('a')), w.Block(asm, w.source('b')), w.Unblock(asm, w.source('a')))
			has := func(want mcast.Membership) {
				t.Helper()
				for _, m := range w.Memberships() {
					if m.Group == want.Group && (m.String() != want.String() || m.Index != 0) {
						t.Errorf("%v on %d, want %v", m, m.Index, want)
					}
				}
			}
			has(allPending([]mcast.Membership{w.of(ssm, "Ibc")})[0])
			has(allPending([]mcast.Membership{w.of(asm, "Eb")})[0])

			w.must(w.Leave(ssm), w.SetFilter(asm, mcast.Include))
			for _, g := range more {
				w.must(w.Leave(g))
			}
			if ms := w.Memberships(); fmt.Sprint(ms) != fmt.Sprint([]mcast.Membership{w.of(stays, "E")}) {
				t.Errorf("memberships %v", ms)
			}
			if err := w.Leave(ssm); !errors.Is(err, mcast.ErrNotJoined) {
				t.Errorf("left already: %v", err)
			}
			// The system has let them go: there is room for as many.
			for i := range 19 {
				w.must(w.Join(numbered(six, i+20, "kept"+name)))
			}
			// The last source, too, and with Close.
			d := &watched{t: t, l: l, six: six, ifname: "next" + name, peer: peer}
			l.Veth(local, d.ifname, peer, "eth2")
			d.open(&mcast.Config{NoWatch: true})
			d.must(d.JoinSource(d.group(101), d.source('a')), d.Join(d.group(1)))
			local.Delete(d.ifname)
			d.must(d.LeaveSource(d.group(101), d.source('a')), d.Close())
			// Its name may come back, and is then another interface.
			l.Veth(local, w.ifname, peer, "eth0")
			w.must(w.Leave(numbered(six, 20, "kept"+name)), w.Join(w.group(1)))
			if n := local.Users(w.ifname, w.group(1).Addr); n != 1 {
				t.Errorf("%d users on the interface that came back", n)
			}
			if _, err := net.InterfaceByName(d.ifname); err == nil {
				t.Errorf("%s is there", d.ifname)
			}
		})
	})
}
