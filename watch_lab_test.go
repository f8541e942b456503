//go:build linux

package mcast_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/mcast"
	"example.com/mcast/internal/netlab"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// A member is what these tests watch: a Conn, or a Pool with its Members.
type member interface {
	Join(mcast.Group) error
	JoinSource(mcast.Group, netip.Addr) error
	Block(mcast.Group, netip.Addr) error
	Unblock(mcast.Group, netip.Addr) error
	Leave(mcast.Group) error
	LeaveSource(mcast.Group, netip.Addr) error
	SetFilter(mcast.Group, mcast.Mode, ...netip.Addr) error
	Memberships() []mcast.Membership
	SystemFilter(mcast.Group) (mcast.Membership, error)
	ReadBatch([]mcast.Message) (int, error)
	SetReadDeadline(time.Time) error
	LocalAddr() net.Addr
	Repair() error
	Close() error
}

// A watched is a member on an interface that things happen to, at the end of a
// cable from a host that sends.
type watched struct {
	member
	t      *testing.T
	l      *netlab.Lab
	six    bool
	ifname string
	peer   *netlab.Host
	port   uint16
	sent   int

	mu     sync.Mutex
	events []mcast.Event
}

// watchOn opens one; its OnEvent records.
func watchOn(t *testing.T, l *netlab.Lab, six bool, ifname string, peer *netlab.Host, pool bool) *watched {
	t.Helper()
	w := &watched{t: t, l: l, six: six, ifname: ifname, peer: peer}
	w.open(&mcast.Config{}, pool)
	return w
}

func (w *watched) open(cfg *mcast.Config, pool bool) {
	w.t.Helper()
	onEvent := cfg.OnEvent
	cfg.OnEvent = func(e mcast.Event) {
		w.mu.Lock()
		w.events = append(w.events, e)
		w.mu.Unlock()
		if onEvent != nil {
			onEvent(e)
		}
	}
	p := place{six: w.six}
	w.port = uint16(p.port(w.t))
	var err error
	if pool {
		w.member, err = mcast.ListenPool(p.network(), fmt.Sprint(":", w.port), cfg)
	} else {
		w.member, err = mcast.Listen(p.network(), fmt.Sprint(":", w.port), cfg)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { w.Close() })
}

func (w *watched) index() int { w.t.Helper(); return w.l.Local().Index(w.ifname) }

// group is the nth group on the interface as it is now; those from 100 on are
// source-specific.
func (w *watched) group(n int) mcast.Group {
	w.t.Helper()
	return numbered(w.six, n, w.index())
}

func numbered(six bool, n, index int) mcast.Group {
	p := place{six: six, ifi: &net.Interface{Index: index}}
	if n >= 100 {
		return p.ssm(n)
	}
	return p.asm(n)
}

func (w *watched) source(letter rune) netip.Addr {
	if i := int(letter - 'a'); i < 3 {
		return labSenders[w.six][i]
	}
	return place{six: w.six}.source(int(letter - 'a'))
}

// of is a membership: "E", "Eab", "Ia".
func (w *watched) of(g mcast.Group, filter string) mcast.Membership {
	m := mcast.Membership{Group: g}
	if filter[0] == 'E' {
		m.Mode = mcast.Exclude
	}
	for _, c := range filter[1:] {
		m.Sources = append(m.Sources, w.source(c))
	}
	return m
}

func (w *watched) must(errs ...error) {
	w.t.Helper()
	if err := errors.Join(errs...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *watched) join(ms ...mcast.Membership) {
	w.t.Helper()
	for _, m := range ms {
		w.must(w.SetFilter(m.Group, m.Mode, m.Sources...))
	}
}

// eventually polls until f has nothing to say against it.
func eventually(t *testing.T, f func() string) {
	t.Helper()
	end := time.Now().Add(15 * time.Second)
	for {
		s := f()
		if s == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatal(s)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// users is how many memberships there are in a group, by the interface.
func (w *watched) users(g mcast.Group) int {
	ifi, err := net.InterfaceByIndex(g.Interface)
	if err != nil {
		return 0
	}
	return w.l.Local().Users(ifi.Name, g.Addr)
}

// differs says in what the memberships, or what the system has of them, differ
// from those wanted.
func (w *watched) differs(want ...mcast.Membership) string {
	got := w.Memberships()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		return fmt.Sprintf("memberships %v, want %v", got, want)
	}
	for _, m := range want {
		s, err := w.SystemFilter(m.Group)
		switch {
		case m.Pending && !errors.Is(err, mcast.ErrNotJoined):
			return fmt.Sprintf("the system has %v (%v) of %v", s, err, m)
		case !m.Pending && (err != nil || s.String() != m.String()):
			return fmt.Sprintf("the system has %v (%v), want %v", s, err, m)
		case !m.Pending && w.users(m.Group) == 0:
			return fmt.Sprintf("%v: the interface does not know the group", m)
		}
	}
	return ""
}

func (w *watched) become(want ...mcast.Membership) {
	w.t.Helper()
	eventually(w.t, func() string { return w.differs(want...) })
}

// hears sends of each group, and of one that nobody joined, from each source,
// and checks what comes through. The group of the fence must be joined.
func (w *watched) hears(want ...mcast.Membership) {
	w.t.Helper()
	index := w.index()
	fence := numbered(w.six, 90, index)
	groups := []netip.Addr{numbered(w.six, 60, index).Addr}
	for _, m := range want {
		if m.Group != fence {
			groups = append(groups, m.Group.Addr)
		}
	}
	slices.SortFunc(groups, netip.Addr.Compare)
	type datagram struct{ from, to netip.Addr }
	expected, resent := make(map[string]datagram), make(map[string]bool)
	post := func(payload string, d datagram) {
		w.t.Helper()
		w.peer.Send(w.t, "eth0", d.from, netip.AddrPortFrom(d.to, w.port), payload)
	}
	send := func(d datagram, heard bool) {
		w.t.Helper()
		w.sent++
		payload := fmt.Sprintf("%d: %v@%v", w.sent, d.from, d.to)
		if heard {
			expected[payload] = d
		}
		post(payload, d)
	}
	live := slices.DeleteFunc(slices.Clone(want), func(m mcast.Membership) bool { return m.Pending })
	for _, pass := range []bool{false, true} {
		for _, g := range slices.Compact(groups) {
			for _, from := range labSenders[w.six] {
				if allows(live, mcast.Group{Addr: g, Interface: index}, from) == pass {
					send(datagram{from, g}, pass)
				}
			}
		}
	}
	send(datagram{labSenders[w.six][0], fence.Addr}, true)
	ms := make([]mcast.Message, 8)
	for i := range ms {
		ms[i].Buf = make([]byte, 200)
	}
	w.SetReadDeadline(time.Now().Add(time.Second))
	for tries := 0; len(expected) > 0; {
		n, err := w.ReadBatch(ms)
		if errors.Is(err, os.ErrDeadlineExceeded) && tries < 15 {
			// A carrier that came a little later had all joined once more.
			tries++
			for payload, d := range expected {
				resent[payload] = true
				post(payload, d)
			}
			w.SetReadDeadline(time.Now().Add(time.Second))
			continue
		}
		if err != nil {
			w.t.Fatalf("%v; not heard, with %v: %v", err, want, expected)
		}
		for _, m := range ms[:n] {
			payload := string(m.Buf[:m.N])
			if _, ok := expected[payload]; !ok && !resent[payload] || m.Group.Interface != index {
				w.t.Errorf("heard %q on %v, with %v", payload, m.Group, want)
			}
			delete(expected, payload)
		}
	}
}

// check waits for the memberships and then hears.
func (w *watched) check(want ...mcast.Membership) {
	w.t.Helper()
	w.become(want...)
	w.hears(want...)
}

// take returns the events so far, and forgets them.
func (w *watched) take() []mcast.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	events := w.events
	w.events = nil
	return events
}

// happened returns the events so far and those of what happened to interfaces
// so far: it makes one more thing happen, and waits for what that brings.
func (w *watched) happened() (events []mcast.Event) {
	w.t.Helper()
	name := "fence" + strings.ToLower(familyName(w.six))
	far := w.l.Host(fmt.Sprint("f", fences.Add(1)))
	w.l.Veth(w.l.Local(), name, far, "eth0")
	g := numbered(w.six, 91, w.l.Local().Index(name))
	w.must(w.Join(g))
	w.l.Local().Recreate(name, false)
	now := w.l.Local().Index(name)
	eventually(w.t, func() string {
		events = append(events, w.take()...)
		if slices.ContainsFunc(events, func(e mcast.Event) bool { return e.Group.Addr == g.Addr && e.New == now }) {
			return ""
		}
		return fmt.Sprint("no event of the fence: ", events)
	})
	w.must(w.Leave(numbered(w.six, 91, now)))
	w.l.Local().Delete(name)
	return slices.DeleteFunc(events, func(e mcast.Event) bool { return e.Group.Addr == g.Addr })
}

var fences atomic.Int32

func (w *watched) nothingHappened(what string) {
	w.t.Helper()
	if events := w.happened(); len(events) > 0 {
		w.t.Errorf("%s: %v", what, events)
	}
}

// wantEvents checks what happened to each of the groups: the kinds, by their
// first letters, and from where to where.
func (w *watched) wantEvents(what string, groups []mcast.Membership, old, index int, pattern string) {
	w.t.Helper()
	events := w.happened()
	for _, m := range groups {
		var got strings.Builder
		for _, e := range events {
			if e.Group.Addr != m.Group.Addr {
				continue
			}
			got.WriteString(e.Kind.String()[:1])
			wantOld, wantNew := old, 0
			if e.Kind == mcast.EventRestored {
				wantNew = index
				if e.Old == index {
					wantOld = index // announced once more
				}
			} else if strings.Contains(got.String(), "r") {
				wantOld = index
			}
			if e.Old != wantOld || e.New != wantNew || e.Name != w.ifname || (e.Err != nil) != (e.Kind == mcast.EventFailed) {
				w.t.Errorf("%s: %+v, want it from %d to %d", what, e, wantOld, wantNew)
			}
		}
		// The carrier may come later than the interface, and on a slow machine
		// more than once.
		trimmed := got.String()
		for pattern != "" && trimmed != pattern && strings.HasSuffix(trimmed, "lr") {
			trimmed = strings.TrimSuffix(trimmed, "lr")
		}
		if trimmed != pattern {
			w.t.Errorf("%s: %v: events %q, want %q", what, m.Group.Addr, got.String(), pattern)
		}
	}
}

func sorted(ms ...mcast.Membership) []mcast.Membership {
	slices.SortFunc(ms, func(a, b mcast.Membership) int { return a.Group.Addr.Compare(b.Group.Addr) })
	return ms
}

// standard are an INCLUDE, two EXCLUDE, and the fence, on the interface as it
// is now or with another index.
func (w *watched) standard(index int) []mcast.Membership {
	g := func(n int) mcast.Group { return numbered(w.six, n, index) }
	return sorted(w.of(g(101), "Iab"), w.of(g(1), "E"), w.of(g(2), "Ea"), w.of(g(90), "E"))
}

func allPending(ms []mcast.Membership) []mcast.Membership {
	ms = slices.Clone(ms)
	for i := range ms {
		ms[i].Pending = true
	}
	return ms
}

// eachWatched runs a test with a Conn and a Pool in both families, at the end
// of a cable.
func eachWatched(t *testing.T, pools bool, f func(w *watched)) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		peer := cable(l, "eth0", "peer")
		eachFamily(l, func(t *testing.T, six bool) {
			for _, pool := range []bool{false, true} {
				if pool && !pools {
					continue
				}
				kind := map[bool]string{false: "Conn", true: "Pool"}[pool]
				l.Run(kind, func(t *testing.T) { f(watchOn(t, l, six, "eth0", peer, pool)) })
			}
		})
	})
}

// What happens to a device, and what becomes of memberships on it.
func TestLabWatchDevice(t *testing.T) {
	eachWatched(t, true, func(w *watched) {
		local, index := w.l.Local(), w.index()
		all := w.standard(index)
		w.join(all...)
		w.check(all...)

		local.Delete("eth0")
		w.become(allPending(all)...)
		local.Recreate("eth0", false)
		old := index
		index = w.index()
		all = w.standard(index)
		w.check(all...)
		w.wantEvents("deleted and made again", all, old, index, "lpr")

		local.Recreate("eth0", false)
		old, index = index, w.index()
		all = w.standard(index)
		w.check(all...)
		w.wantEvents("deleted and made again at once", all, old, index, "lpr")

		local.Recreate("eth0", true)
		w.check(all...)
		w.wantEvents("the same index", all, index, index, "lpr")

		away := w.l.Host("away" + fmt.Sprint(fences.Add(1)))
		local.Move("eth0", away)
		w.become(allPending(all)...)
		away.Move("eth0", local)
		local.Up("eth0")
		local.Readdress("eth0")
		w.check(all...)
		if events := w.happened(); len(events) < 3*len(all) {
			w.t.Errorf("moved: %v", events)
		}

		local.Down("eth0")
		local.IP("link", "set", "dev", "eth0", "name", "lan0")
		local.Up("lan0")
		w.ifname = "lan0"
		w.check(all...)
		local.Down("lan0")
		local.IP("link", "set", "dev", "lan0", "name", "eth0")
		local.Up("eth0")
		local.Readdress("eth0")
		w.ifname = "eth0"
		w.check(all...)
		w.happened()

		local.Down("eth0")
		local.Up("eth0")
		local.Readdress("eth0")
		w.check(all...)
	})
}

// Down and up, with and without changes in between, and addresses that come
// and go.
func TestLabWatchDown(t *testing.T) {
	eachWatched(t, false, func(w *watched) {
		local, index := w.l.Local(), w.index()
		all := w.standard(index)
		w.join(all...)
		w.check(all...)
		time.Sleep(2200 * time.Millisecond) // what is joined is announced twice
		// The wire tells what is announced, and a group joined later that there
		// is nothing more to come.
		wire := w.peer.Capture("eth0")
		defer wire.Close()
		addr := map[bool]string{false: "10.88.0.1/24", true: "fd88::1/64"}[w.six]
		local.IP("addr", "del", addr, "dev", "eth0")
		local.Readdress("eth0")
		w.nothingHappened("address removed and added")
		w.must(w.JoinSource(w.group(110), w.source('a')))
		wire.WantRecord(w.t, netlab.AllowNewSources, w.group(110).Addr, w.source('a'))
		for _, r := range wire.Records() {
			// For an IPv6 address the kernel repeats EXCLUDE, by itself.
			if (r.Group == w.group(101).Addr || !w.six && r.Group != w.group(110).Addr) && r.Group != w.group(91).Addr && slices.ContainsFunc(all, func(m mcast.Membership) bool { return m.Group.Addr == r.Group }) {
				w.t.Errorf("announced for an address: %v", r)
			}
		}
		w.must(w.Leave(w.group(110)))
		w.check(all...)

		local.Down("eth0")
		local.Up("eth0")
		local.Readdress("eth0")
		w.check(all...)
		w.nothingHappened("down and up")

		local.Down("eth0")
		g, asm := w.group(101), w.group(2)
		w.must(w.JoinSource(g, w.source('c')), w.LeaveSource(g, w.source('a')), w.Block(asm, w.source('b')), w.Join(w.group(3)), w.JoinSource(w.group(102), w.source('a')))
		all = sorted(w.of(g, "Ibc"), w.of(w.group(1), "E"), w.of(asm, "Eab"), w.of(w.group(3), "E"), w.of(w.group(102), "Ia"), w.of(w.group(90), "E"))
		local.Up("eth0")
		local.Readdress("eth0")
		eventually(w.t, func() string {
			w.mu.Lock()
			defer w.mu.Unlock()
			if !slices.ContainsFunc(w.events, func(e mcast.Event) bool { return e.Group == g && e.Kind == mcast.EventRestored }) {
				return fmt.Sprint("not made anew: ", w.events)
			}
			return ""
		})
		w.check(all...)
		changed := sorted(w.of(g, "Ibc"), w.of(w.group(102), "Ia"))
		w.wantEvents("changed while down", changed, index, index, "lr")
	})
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
			index := local.Index("eth0")
			ssm, asm := numbered(six, 101, index), numbered(six, 1, index)
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
						if err := w.member.(*mcast.Conn).ReadMessage(&m); err != nil || m.Group != g {
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
			forget()
			known(false)
			local.Carrier("eth0", true)
			known(true)
			hear()
			for _, w := range conns {
				eventually(t, func() string {
					w.mu.Lock()
					defer w.mu.Unlock()
					if len(w.events) < 4 {
						return fmt.Sprint("events ", w.events)
					}
					return ""
				})
				w.become(sorted(w.of(asm, "E"), mcast.Membership{Group: ssm, Sources: senders[:1]})...)
			}

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

// plainMember is a socket of somebody else's, in a group on the interface.
func (w *watched) plainMember(g mcast.Group) *net.UDPConn {
	w.t.Helper()
	c, err := net.ListenUDP(place{six: w.six}.network(), &net.UDPAddr{Port: int(place{six: w.six}.port(w.t))})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	ifi, to := &net.Interface{Index: g.Interface}, &net.UDPAddr{IP: g.Addr.AsSlice()}
	if w.six {
		err = ipv6.NewPacketConn(c).JoinGroup(ifi, to)
	} else {
		err = ipv4.NewPacketConn(c).JoinGroup(ifi, to)
	}
	w.must(err)
	return c
}

// A group on a device that is made again with the same index is somebody
// else's, too: the end of the membership on the old device is not theirs.
func TestLabWatchOthers(t *testing.T) {
	eachWatched(t, true, func(w *watched) {
		local := w.l.Local()
		all := w.standard(w.index())
		w.join(all...)
		w.check(all...)
		for round := range 6 {
			local.Recreate("eth0", true)
			// At once, which is often before the watcher has looked.
			g := w.group(1)
			other := w.plainMember(g)
			w.check(all...)
			w.happened()
			port := uint16(localPort(other))
			hears := func(what string) {
				w.t.Helper()
				if local.Users("eth0", g.Addr) < 1 {
					w.t.Fatalf("round %d: %s: no users", round, what)
				}
				w.peer.Send(w.t, "eth0", w.source('c'), netip.AddrPortFrom(g.Addr, port), "x")
				other.SetReadDeadline(time.Now().Add(10 * time.Second))
				if _, _, err := other.ReadFromUDPAddrPort(make([]byte, 10)); err != nil {
					w.t.Fatalf("round %d: %s: the other socket hears nothing: %v", round, what, err)
				}
			}
			hears("made anew")
			w.must(w.Leave(g))
			hears("left")
			w.must(w.Join(g))
			other.Close()
			w.check(all...)
		}
	})
}

// Who joins on a new device before the watcher knows it has joined it once.
func TestLabWatchEager(t *testing.T) {
	eachWatched(t, false, func(w *watched) {
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

// Requests on what is pending, and as many memberships as the kernel takes.
func TestLabWatchPending(t *testing.T) {
	eachWatched(t, true, func(w *watched) {
		local, index := w.l.Local(), w.index()
		all := w.standard(index)
		w.join(all...)
		local.Delete("eth0")
		w.become(allPending(all)...)
		g := func(n int) mcast.Group { return numbered(w.six, n, index) }
		w.must(w.JoinSource(g(101), w.source('c')), w.LeaveSource(mcast.Group{Addr: g(101).Addr}, w.source('a')),
			w.Block(g(1), w.source('a')), w.Unblock(g(2), w.source('a')), w.SetFilter(g(2), mcast.Exclude, w.source('c')))
		for what, err := range map[string]error{
			"Join": w.Join(g(1)), "JoinSource": w.JoinSource(g(101), w.source('b')), "another mode": w.JoinSource(g(1), w.source('b')),
			"Block": w.Block(g(1), w.source('a')), "Unblock": w.Unblock(g(1), w.source('b')), "LeaveSource": w.LeaveSource(g(101), w.source('a')),
		} {
			var e *mcast.OpError
			if !errors.As(err, &e) || errors.Is(err, mcast.ErrInterface) {
				w.t.Errorf("%s out of order: %v", what, err)
			}
		}
		if err := w.Join(g(30)); !errors.Is(err, mcast.ErrInterface) {
			w.t.Errorf("a new membership on what is gone: %v", err)
		}
		now := func(index int) []mcast.Membership {
			return sorted(w.of(numbered(w.six, 101, index), "Ibc"), w.of(numbered(w.six, 1, index), "Ea"), w.of(numbered(w.six, 2, index), "Ec"), w.of(numbered(w.six, 90, index), "E"))
		}
		w.become(allPending(now(index))...)
		w.take()
		local.Recreate("eth0", false)
		w.check(now(w.index())...)

		// What was left meanwhile does not come back.
		index = w.index()
		local.Delete("eth0")
		w.become(allPending(now(index))...)
		w.must(w.Leave(g(1)), w.SetFilter(g(2), mcast.Include), w.LeaveSource(g(101), w.source('b')), w.LeaveSource(g(101), w.source('c')))
		if err := w.Leave(g(1)); !errors.Is(err, mcast.ErrNotJoined) {
			w.t.Errorf("left twice: %v", err)
		}
		local.Recreate("eth0", false)
		w.check(w.of(w.group(90), "E"))
		for _, n := range []int{1, 2, 101} {
			if u := local.Users("eth0", w.group(n).Addr); u != 0 {
				w.t.Errorf("group %d: %d users", n, u)
			}
		}

		// 20 in all, three times: none is counted twice.
		many := []mcast.Membership{w.of(w.group(90), "E")}
		for i := range 19 {
			many = append(many, w.of(w.group(10+i), "E"))
		}
		w.join(many...)
		for i := range 3 {
			local.Recreate("eth0", i == 1)
			for i := range many {
				many[i].Group.Interface = w.index()
			}
			w.become(sorted(many...)...)
		}
		w.hears(many...)
		for _, e := range w.happenedFull(many[len(many)-1].Group) {
			if e.Kind == mcast.EventFailed {
				w.t.Error(e)
			}
		}
	})
}

// happenedFull is happened where there is no room for the fence but that of g.
func (w *watched) happenedFull(g mcast.Group) []mcast.Event {
	w.t.Helper()
	w.must(w.Leave(g))
	return w.happened()
}

// What the routing table chose follows it.
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
			g := numbered(six, 101, 0)
			named := numbered(six, 102, local.Index("eth0"))
			w.must(w.JoinSource(g, source), w.JoinSource(named, source))
			on := func(ifname string) mcast.Membership {
				return mcast.Membership{Group: mcast.Group{Addr: g.Addr, Interface: local.Index(ifname)}, Sources: []netip.Addr{source}}
			}
			stays := mcast.Membership{Group: named, Sources: []netip.Addr{source}}
			w.become(on("eth0"), stays)
			hear := func(ifname string, from *netlab.Host) {
				t.Helper()
				from.Send(t, "eth0", source, netip.AddrPortFrom(g.Addr, w.port), ifname)
				w.SetReadDeadline(time.Now().Add(10 * time.Second))
				m := mcast.Message{Buf: make([]byte, 10)}
				if err := w.member.(*mcast.Conn).ReadMessage(&m); err != nil || m.Group.Interface != local.Index(ifname) {
					t.Errorf("on %s: %v, %v", ifname, m.Group, err)
				}
			}
			hear("eth0", peers[0])
			// No route, and then another one.
			was, old := on("eth0"), stays
			local.Delete("eth0")
			was.Pending, old.Pending = true, true
			w.become(was, old)
			route("add", "eth1")
			w.become(on("eth1"), old)
			hear("eth1", peers[1])
			// It stays where it is, and what has a name goes back there.
			local.Recreate("eth0", false)
			stays.Group.Interface = local.Index("eth0")
			w.become(on("eth1"), stays)
			// A route that is moved already.
			route("replace", "eth0")
			local.Delete("eth1")
			w.become(on("eth0"), stays)
			hear("eth0", peers[0])
			local.Recreate("eth1", false)
			events := w.happened()
			var kinds strings.Builder
			for _, e := range events {
				if e.Group.Addr == g.Addr {
					kinds.WriteString(fmt.Sprint(e.Kind.String()[:1], e.Name[3:], " "))
				}
			}
			if !strings.HasPrefix(kinds.String(), "l0 p0 r1 ") || !strings.Contains(kinds.String(), "l1 p1 r0 ") {
				t.Errorf("events %s: %v", kinds.String(), events)
			}
			w.must(w.Close())
			route("del", "eth0")
		})
	})
}

// watcherLeft says what is left of the watcher.
func watcherLeft(fds int) string {
	buf := make([]byte, 1<<20)
	stacks := string(buf[:runtime.Stack(buf, true)])
	for _, what := range []string{".(*watcher)", ".(*netlinkLinks)", ".(*requests)"} {
		if strings.Contains(stacks, what) {
			return "a goroutine is left:\n" + stacks
		}
	}
	if n := openFiles(); n > fds {
		return fmt.Sprintf("%d descriptors, %d before", n, fds)
	}
	return ""
}

func openFiles() int {
	list, _ := os.ReadDir("/proc/self/fd")
	return len(list)
}

// Nothing is left after the last Close, whatever is being mended.
func TestLabWatchClose(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		peer := cable(l, "eth0", "peer")
		local := l.Local()
		mcast.ParseGroup("239.1.1.1%eth0") // what package net opens for good
		eachFamily(l, func(t *testing.T, six bool) {
			fds, goroutines := openFiles(), runtime.NumGoroutine()
			for round := range 15 {
				var ws []*watched
				for i := range 4 {
					w := &watched{t: t, l: l, six: six, ifname: "eth0", peer: peer}
					var closed atomic.Bool
					w.open(&mcast.Config{OnEvent: func(e mcast.Event) {
						if closed.Load() {
							t.Error("an event after Close")
						}
						switch e.Kind {
						case mcast.EventPending:
							w.Block(e.Group, w.source('b'))
							w.Unblock(e.Group, w.source('a'))
						case mcast.EventRestored:
							w.SystemFilter(e.Group)
							if round%3 == 0 {
								w.Repair()
							}
						}
						w.Memberships()
					}}, i == 3)
					w.join(w.standard(w.index())...)
					defer func() { closed.Store(true) }()
					ws = append(ws, w)
				}
				done := make(chan bool)
				go func() {
					defer close(done)
					time.Sleep(time.Duration(round*8) * time.Millisecond)
					for _, w := range ws {
						if err := w.Close(); err != nil {
							t.Error(err)
						}
						if ms := w.Memberships(); len(ms) > 0 {
							t.Errorf("memberships after Close: %v", ms)
						}
					}
				}()
				local.Recreate("eth0", round%2 == 0)
				local.Carrier("eth0", false)
				local.Carrier("eth0", true)
				<-done
				eventually(t, func() string { return watcherLeft(fds) })
				for _, w := range ws {
					for _, e := range w.take() {
						if e.Kind == mcast.EventFailed {
							t.Error(e)
						}
					}
				}
			}
			if n := runtime.NumGoroutine(); n > goroutines {
				t.Errorf("%d goroutines, %d before", n, goroutines)
			}
		})
	})
}

// Without a watcher, Repair does the same on request.
func TestLabRepair(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		peer := cable(l, "eth0", "peer")
		local := l.Local()
		eachFamily(l, func(t *testing.T, six bool) {
			for _, pool := range []bool{false, true} {
				fds := openFiles()
				w := &watched{t: t, l: l, six: six, ifname: "eth0", peer: peer}
				w.open(&mcast.Config{NoWatch: true}, pool)
				index := w.index()
				all := w.standard(index)
				w.join(all...)
				w.hears(all...)
				if s := watcherLeft(fds + 100); s != "" {
					t.Error(s)
				}
				w.must(w.Repair())
				if s := w.differs(all...); s != "" {
					t.Error(s)
				}
				w.hears(all...)
				w.take()
				local.Delete("eth0")
				w.must(w.Repair())
				if s := w.differs(allPending(all)...); s != "" {
					t.Error(s)
				}
				if n := len(w.take()); n != 2*len(all) {
					t.Errorf("%d events", n)
				}
				for _, same := range []bool{false, true} {
					local.Recreate("eth0", same)
					all = w.standard(w.index())
					w.must(w.Repair())
					if s := w.differs(all...); s != "" {
						t.Error(s)
					}
					w.hears(all...)
				}
				// Repaired once is enough.
				w.take()
				local.Down("eth0")
				local.Up("eth0")
				local.Readdress("eth0")
				w.must(w.JoinSource(w.group(110), w.source('a')), w.Leave(w.group(110)), w.Close())
				if events := w.take(); len(events) > 0 {
					t.Error(events)
				}
				if err := w.Repair(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("after Close: %v", err)
				}
			}
		})
	})
}

// A hundred changes a second.
func TestLabWatchStorm(t *testing.T) {
	eachWatched(t, true, func(w *watched) {
		local := w.l.Local()
		all := w.standard(w.index())
		w.join(all...)
		start := time.Now()
		changes := 0
		for time.Since(start) < 2*time.Second {
			w.peer.Down("eth0")
			w.peer.Up("eth0")
			changes += 2
			if changes%40 == 0 {
				local.Down("eth0")
				local.Up("eth0")
			}
		}
		w.peer.Readdress("eth0")
		local.Readdress("eth0")
		w.check(all...)
		cycles := make(map[mcast.Group]int)
		for _, e := range w.happened() {
			switch e.Kind {
			case mcast.EventLost:
				cycles[e.Group]++
			case mcast.EventRestored:
			default:
				w.t.Error(e)
			}
		}
		for g, n := range cycles {
			// One in each 100 ms, and what was done in check.
			if limit := int(time.Since(start)/(100*time.Millisecond)) + 1; n > limit {
				w.t.Errorf("%v: %d times for %d changes, at most %d", g, n, changes, limit)
			}
		}
		w.t.Logf("%d changes: %v", changes, cycles)
	})
}

// Random faults and requests; after each, what is live is in the kernel and
// heard, and nothing else is. MCAST_LONG=1 makes a thousand steps.
func TestLabWatchRandom(t *testing.T) {
	steps := 60
	if os.Getenv("MCAST_LONG") == "1" {
		steps = 1000
	}
	seed := uint64(time.Now().UnixNano())
	if n, err := strconv.ParseUint(os.Getenv("MCAST_SEED"), 10, 64); err == nil {
		seed = n
	}
	eachWatched(t, true, func(w *watched) {
		w.t.Logf("MCAST_SEED=%d", seed)
		r := randomWatch{watched: w, rng: rand.New(rand.NewPCG(seed, 1)), filters: make(map[int]string)}
		r.host = w.l.Host(fmt.Sprint("away", fences.Add(1)))
		w.join(w.of(w.group(90), "E"))
		r.index = w.index()
		for i := range steps {
			what := r.step()
			r.history = append(r.history, what)
			if i%4 > 0 && r.rng.IntN(2) == 0 {
				continue // the next one comes before this one is mended
			}
			r.check()
			if w.t.Failed() {
				w.t.Fatalf("MCAST_SEED=%d, after: %s", seed, strings.Join(r.history[max(0, len(r.history)-25):], ", "))
			}
		}
		r.restore()
		r.check()
		if w.t.Failed() {
			w.t.Fatalf("MCAST_SEED=%d, after: %s", seed, strings.Join(r.history[max(0, len(r.history)-25):], ", "))
		}
		w.must(w.Close())
		for n := range r.filters {
			if u := w.l.Local().Users("eth0", w.group(n).Addr); u != 0 {
				w.t.Errorf("group %d: %d users in the end", n, u)
			}
		}
	})
}

type randomWatch struct {
	*watched
	rng     *rand.Rand
	host    *netlab.Host // where the interface is when it is away
	index   int          // that it has, or had
	gone    string       // "", "away", "deleted"
	down    bool
	dark    bool           // without a carrier
	filters map[int]string // of each group, "" for none
	history []string
}

// restore brings the interface back, up, and with a carrier.
func (r *randomWatch) restore() {
	r.t.Helper()
	local := r.l.Local()
	switch r.gone {
	case "away":
		r.host.Move("eth0", local)
		r.gone, r.down = "", true
	case "deleted":
		local.Recreate("eth0", r.rng.IntN(2) == 0)
		r.gone, r.down, r.dark = "", false, false
	}
	if r.down {
		local.Up("eth0")
		local.Readdress("eth0")
	}
	if r.dark {
		local.Carrier("eth0", true)
	}
	r.down, r.dark = false, false
	r.index = r.watched.index()
}

func (r *randomWatch) step() string {
	r.t.Helper()
	local := r.l.Local()
	switch n := r.rng.IntN(12); {
	case n == 0 && r.gone == "":
		local.Delete("eth0")
		r.gone = "deleted"
		return "deleted"
	case n == 1 && r.gone == "":
		local.Move("eth0", r.host)
		r.gone = "away"
		return "moved away"
	case n == 2 && r.gone == "":
		same := r.rng.IntN(2) == 0
		local.Recreate("eth0", same)
		r.down, r.dark, r.index = false, false, r.watched.index()
		return fmt.Sprintf("made again, same index: %v", same)
	case n == 3 && r.gone == "" && !r.down:
		local.Down("eth0")
		r.down = true
		return "down"
	case n == 4 && r.gone == "" && !r.dark:
		local.Carrier("eth0", false)
		r.dark = true
		return "without a carrier"
	case n <= 5:
		r.restore()
		return fmt.Sprint("restored as ", r.index)
	}
	group := []int{1, 2, 101, 102}[r.rng.IntN(4)]
	filter := []string{"", "E", "Ea", "Eab", "Ia", "Iab", "Ibc", "Ic"}[r.rng.IntN(8)]
	if group >= 100 && strings.HasPrefix(filter, "E") {
		filter = "Ib"
	}
	g := mcast.Group{Addr: numbered(r.six, group, 0).Addr}
	if r.filters[group] == "" {
		if filter == "" {
			return "nothing"
		}
		g.Interface = r.index
	}
	m := r.of(g, "I")
	if filter != "" {
		m = r.of(g, filter)
	}
	err := r.SetFilter(g, m.Mode, m.Sources...)
	if err != nil {
		// A new membership needs its interface.
		if r.filters[group] == "" && r.gone != "" && errors.Is(err, mcast.ErrInterface) {
			return fmt.Sprintf("%d cannot become %s", group, filter)
		}
		r.t.Errorf("group %d, %q to %q: %v", group, r.filters[group], filter, err)
	}
	r.filters[group] = filter
	return fmt.Sprintf("%d becomes %q", group, filter)
}

func (r *randomWatch) check() {
	r.t.Helper()
	var want []mcast.Membership
	groups := []int{1, 2, 90, 101, 102}
	r.filters[90] = "E"
	for _, n := range groups {
		if f := r.filters[n]; f != "" {
			m := r.of(numbered(r.six, n, r.index), f)
			m.Pending = r.gone != ""
			want = append(want, m)
		}
	}
	sorted(want...)
	eventually(r.t, func() string {
		// What was not mended while the interface was there for a moment has
		// the index from before.
		for i, m := range r.Memberships() {
			if r.gone != "" && i < len(want) {
				want[i].Group.Interface = m.Group.Interface
			}
		}
		return r.differs(want...)
	})
	for _, n := range groups {
		if r.filters[n] == "" && r.gone == "" {
			g := numbered(r.six, n, r.index)
			eventually(r.t, func() string {
				if u := r.users(g); u != 0 {
					return fmt.Sprintf("%d users of %v, which is not joined", u, g)
				}
				return ""
			})
		}
	}
	if r.gone == "" && !r.down && !r.dark {
		r.hears(want...)
	}
}
