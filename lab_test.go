//go:build linux

package mcast_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"example.com/mcast"
	"example.com/mcast/internal/netif"
	"example.com/mcast/internal/netlab"
)

// What the tests in labs share. The receivers are on the lab's local host:
// readers, and what looks at interfaces, may run on any goroutine there.

func addrs(s ...string) (list []netip.Addr) {
	for _, s := range s {
		list = append(list, netip.MustParseAddr(s))
	}
	return list
}

var labSenders = map[bool][]netip.Addr{
	false: addrs("10.88.0.11", "10.88.0.12", "10.88.0.13"),
	true:  addrs("fd88::11", "fd88::12", "fd88::13"),
}

// cable joins the local host to a new one by a veth pair, with addresses on
// both ends; the other end has the senders' addresses.
func cable(l *netlab.Lab, ifname, name string) *netlab.Host {
	h := l.Host(name)
	l.Veth(l.Local(), ifname, h, "eth0")
	l.Local().AddAddr(ifname, "10.88.0.1/24")
	if h.HasIPv6() {
		l.Local().AddAddr(ifname, "fd88::1/64")
	}
	for six, list := range labSenders {
		for _, a := range list {
			if !six {
				h.AddAddr("eth0", a.String()+"/24")
			} else if h.HasIPv6() {
				h.AddAddr("eth0", a.String()+"/64")
			}
		}
	}
	return h
}

// eachFamily runs a subtest for each family that the kernel speaks.
func eachFamily(l *netlab.Lab, f func(t *testing.T, six bool)) {
	for _, six := range []bool{false, true} {
		l.Run(map[bool]string{false: "IPv4", true: "IPv6"}[six], func(t *testing.T) {
			if six && !l.Local().HasIPv6() {
				t.Skip("this kernel has no IPv6")
			}
			f(t, six)
		})
	}
}

func networkOf(six bool) string {
	if six {
		return "udp6"
	}
	return "udp4"
}

// numbered is the nth group of a lab, "" for no interface; those from 100 on are
// source-specific.
func numbered(six bool, n int, ifname string) mcast.Group {
	var a netip.Addr
	switch {
	case six && n >= 100:
		a = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x3e, 12: 0x80, 13: 0x77, 15: byte(n)})
	case six:
		a = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x1e, 12: 0x77, 15: byte(n)})
	case n >= 100:
		a = netip.AddrFrom4([4]byte{232, 77, 0, byte(n)})
	default:
		a = netip.AddrFrom4([4]byte{239, 77, 1, byte(n)})
	}
	return mcast.Group{Addr: a, Interface: ifname}
}

// labPort finds a port that nobody uses, outside of the range that systems give out.
func labPort(t *testing.T, six bool) uint16 {
	t.Helper()
	for range 1000 {
		port := 20000 + rand.IntN(10000)
		if c, err := net.ListenUDP(networkOf(six), &net.UDPAddr{Port: port}); err == nil {
			c.Close()
			return uint16(port)
		}
	}
	t.Fatal("no free port")
	return 0
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
	ReadMessage(*mcast.Message) error
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
	pool   bool
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
	w := &watched{t: t, l: l, six: six, pool: pool, ifname: ifname, peer: peer}
	w.open(&mcast.Config{})
	return w
}

func (w *watched) open(cfg *mcast.Config) {
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
	if w.six && cfg.Control == nil {
		// Then a Pool opens its sockets without the lock, and tries again.
		cfg.Control = func(string, string, syscall.RawConn) error { return nil }
	}
	w.port = labPort(w.t, w.six)
	var err error
	if w.pool {
		w.member, err = mcast.ListenPool(networkOf(w.six), fmt.Sprint(":", w.port), cfg)
	} else {
		w.member, err = mcast.Listen(networkOf(w.six), fmt.Sprint(":", w.port), cfg)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { w.Close() })
}

// index is that of the interface now.
func (w *watched) index() int { w.t.Helper(); return w.l.Local().Index(w.ifname) }

// group is the nth group on the interface.
func (w *watched) group(n int) mcast.Group { return numbered(w.six, n, w.ifname) }

// source is that of a letter: the first three send.
func (w *watched) source(letter rune) netip.Addr {
	n := int(letter - 'a')
	switch {
	case n < 3:
		return labSenders[w.six][n]
	case w.six:
		return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 15: byte(n)}) // RFC 3849
	}
	return netip.AddrFrom4([4]byte{198, 51, 100, byte(n)}) // RFC 5737
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

// sorted is the order of Memberships.
func sorted(ms ...mcast.Membership) []mcast.Membership {
	slices.SortFunc(ms, func(a, b mcast.Membership) int {
		if c := a.Group.Addr.Compare(b.Group.Addr); c != 0 {
			return c
		}
		return strings.Compare(a.Group.Interface, b.Group.Interface)
	})
	return ms
}

// standard are an INCLUDE, two EXCLUDE, and the fence.
func (w *watched) standard() []mcast.Membership {
	return sorted(w.of(w.group(101), "Iab"), w.of(w.group(1), "E"), w.of(w.group(2), "Ea"), w.of(w.group(90), "E"))
}

func allPending(ms []mcast.Membership) []mcast.Membership {
	ms = slices.Clone(ms)
	for i := range ms {
		ms[i].Pending = true
	}
	return ms
}

// differs says in what the memberships, or what the system has of them, differ
// from those wanted. What is not pending has the index of its interface, and is
// known to the interface.
func (w *watched) differs(want ...mcast.Membership) string {
	got := w.Memberships()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		return fmt.Sprintf("memberships %v, want %v", got, want)
	}
	for i, m := range want {
		s, err := w.SystemFilter(m.Group)
		if m.Pending {
			if !errors.Is(err, mcast.ErrNotJoined) || got[i].Index != 0 {
				return fmt.Sprintf("the system has %v (%v) of %v, on index %d", s, err, m, got[i].Index)
			}
			continue
		}
		ifi, e := net.InterfaceByName(m.Group.Interface)
		switch {
		case e != nil:
			return fmt.Sprintf("%v: %v", m, e)
		case err != nil || s.String() != m.String() || s.Index != ifi.Index:
			return fmt.Sprintf("the system has %v on %d (%v), want %v on %d", s, s.Index, err, m, ifi.Index)
		case got[i].Index != ifi.Index:
			return fmt.Sprintf("%v is said to be on index %d, want %d", m, got[i].Index, ifi.Index)
		case w.l.Local().Users(ifi.Name, m.Group.Addr) == 0:
			return fmt.Sprintf("%v: the interface does not know the group", m)
		}
	}
	return ""
}

func (w *watched) become(want ...mcast.Membership) {
	w.t.Helper()
	eventually(w.t, func() string { return w.differs(want...) })
}

// send has the cable's other end send.
func (w *watched) send(from, group netip.Addr, payload string) {
	w.t.Helper()
	w.peer.Send(w.t, "eth0", from, netip.AddrPortFrom(group, w.port), payload)
}

// hears sends of each group, and of one that nobody joined, from each source,
// and checks what comes through. The group of the fence must be joined.
func (w *watched) hears(want ...mcast.Membership) {
	w.t.Helper()
	index := w.index()
	fence := w.group(90)
	groups := []netip.Addr{w.group(60).Addr}
	for _, m := range want {
		if m.Group != fence {
			groups = append(groups, m.Group.Addr)
		}
	}
	slices.SortFunc(groups, netip.Addr.Compare)
	type datagram struct{ from, to netip.Addr }
	expected, resent := make(map[string]datagram), make(map[string]bool)
	send := func(d datagram, heard bool) {
		w.t.Helper()
		w.sent++
		payload := fmt.Sprintf("%d: %v@%v", w.sent, d.from, d.to)
		if heard {
			expected[payload] = d
		}
		w.send(d.from, d.to, payload)
	}
	heard := func(g, source netip.Addr) bool {
		for _, m := range want {
			if m.Group.Addr == g && m.Group.Interface == w.ifname && !m.Pending {
				return slices.Contains(m.Sources, source) == (m.Mode == mcast.Include)
			}
		}
		return false
	}
	for _, pass := range []bool{false, true} {
		for _, g := range slices.Compact(groups) {
			for _, from := range labSenders[w.six] {
				if heard(g, from) == pass {
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
				w.send(d.from, d.to, payload)
			}
			w.SetReadDeadline(time.Now().Add(time.Second))
			continue
		}
		if err != nil {
			w.t.Fatalf("%v; not heard, with %v: %v", err, want, expected)
		}
		for _, m := range ms[:n] {
			payload := string(m.Buf[:m.N])
			d, ok := expected[payload]
			if !ok && !resent[payload] || ok && m.Group.Addr != d.to || m.Group.Interface != w.ifname || m.Index != index {
				w.t.Errorf("heard %q on %v (%d), with %v", payload, m.Group, m.Index, want)
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

// waitEvent waits for an event, which it leaves among the others.
func (w *watched) waitEvent(what string, pred func(mcast.Event) bool) {
	w.t.Helper()
	eventually(w.t, func() string {
		w.mu.Lock()
		defer w.mu.Unlock()
		if slices.ContainsFunc(w.events, pred) {
			return ""
		}
		return fmt.Sprintf("%s: not among the events %v", what, w.events)
	})
}

var fences atomic.Int32

// happened returns the events so far and those of what happened to interfaces
// so far: it makes one more thing happen, and waits for what that brings.
func (w *watched) happened() (events []mcast.Event) {
	w.t.Helper()
	local, name := w.l.Local(), fmt.Sprint("fence", fences.Add(1))
	g := numbered(w.six, 91, name)
	add := func() { local.IP("link", "add", name, "type", "veth", "peer", "name", name+"p") }
	add()
	w.must(w.Join(g))
	local.IP("link", "del", "dev", name)
	add()
	eventually(w.t, func() string {
		events = append(events, w.take()...)
		if slices.ContainsFunc(events, func(e mcast.Event) bool { return e.Group == g && e.Kind == mcast.EventRestored }) {
			return ""
		}
		return fmt.Sprint("no event of the fence: ", events)
	})
	w.must(w.Leave(g))
	local.IP("link", "del", "dev", name)
	return slices.DeleteFunc(events, func(e mcast.Event) bool { return e.Group.Addr == g.Addr || e.Name == name })
}

func (w *watched) nothingHappened(what string) {
	w.t.Helper()
	if events := w.happened(); len(events) > 0 {
		w.t.Errorf("%s: %v", what, events)
	}
}

// A linkNews counts what the system tells of an interface, beside the library.
// Carriers come when they come: how often decides how often a membership may be
// made anew.
type linkNews struct {
	w      *watched
	source netif.Source
	mu     sync.Mutex
	counts map[string]int
	seen   map[string]bool
}

// news begins to count.
func (w *watched) news() *linkNews {
	w.t.Helper()
	c, err := net.ListenUDP(networkOf(w.six), nil)
	w.must(err)
	raw, err := c.SyscallConn()
	w.must(err)
	n := &linkNews{w: w, counts: make(map[string]int), seen: make(map[string]bool)}
	n.source, err = netif.HostOf(raw).Watch()
	w.must(err, c.Close())
	first, err := n.source.Read()
	w.must(err)
	var state netif.State
	state.Apply(first, time.Now())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			changes, err := n.source.Read()
			if err != nil {
				return
			}
			n.mu.Lock()
			for _, x := range state.Apply(changes, time.Now()) {
				n.counts[x.Interface.Name+" "+x.Kind.String()]++
				n.seen[x.Interface.Name] = true
			}
			n.mu.Unlock()
		}
	}()
	w.t.Cleanup(func() { n.source.Close(); <-ended })
	return n
}

// take returns the counts until now, and begins anew.
func (n *linkNews) take() map[string]int {
	n.w.t.Helper()
	mark := fmt.Sprint("mark", fences.Add(1))
	n.w.l.Local().IP("link", "add", mark, "type", "veth", "peer", "name", mark+"p")
	n.w.l.Local().IP("link", "del", "dev", mark)
	eventually(n.w.t, func() string {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.seen[mark] {
			return ""
		}
		return "the test's own source does not tell"
	})
	n.mu.Lock()
	defer n.mu.Unlock()
	counts := n.counts
	n.counts = make(map[string]int)
	return counts
}

// wantEvents checks what happened to each of the groups: the kinds, by their
// first letters, and from where to where. What comes up, or gets a carrier,
// after it was there may be made anew once more each time that it does.
func (w *watched) wantEvents(what string, n *linkNews, groups []mcast.Membership, old, index int, pattern string) {
	w.t.Helper()
	events := w.happened()
	counts := n.take()
	for _, m := range groups {
		extra := counts[w.ifname+" carrier back"]
		if m.Mode == mcast.Include {
			extra += counts[w.ifname+" up"]
		}
		var got strings.Builder
		for _, e := range events {
			if e.Group.Addr != m.Group.Addr {
				continue
			}
			wantOld, wantNew := old, 0
			if strings.Contains(got.String(), "r") {
				wantOld = index // once more
			}
			got.WriteString(e.Kind.String()[:1])
			if e.Kind == mcast.EventRestored {
				wantNew = index
			}
			if e.Group != m.Group || e.Old != wantOld || e.New != wantNew || e.Name != w.ifname || e.Err != nil {
				w.t.Errorf("%s: %+v, want it from %d to %d", what, e, wantOld, wantNew)
			}
		}
		rest, ok := strings.CutPrefix(got.String(), pattern)
		if !ok || rest != strings.Repeat("lr", len(rest)/2) || len(rest)/2 > extra {
			w.t.Errorf("%s: %v: events %q, want %q, and at most %d times \"lr\" (%v)", what, m.Group, got.String(), pattern, extra, counts)
		}
	}
	// An interface goes down and comes up in turns, once each.
	var last mcast.EventKind
	for _, e := range events {
		if e.Group != (mcast.Group{}) {
			if e.Kind != mcast.EventRestored {
				last = e.Kind // one that comes anew may be up at once
			}
			continue
		}
		switch {
		case e.Kind != mcast.EventDown && e.Kind != mcast.EventUp || e.Name != w.ifname || e.Err != nil:
			w.t.Errorf("%s: %+v", what, e)
		case e.Kind == last:
			w.t.Errorf("%s: twice %v in %v", what, e, events)
		}
		last = e.Kind
	}
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

// openFiles counts the descriptors of the process.
func openFiles() int {
	list, _ := os.ReadDir("/proc/self/fd")
	return len(list)
}
