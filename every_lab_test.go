//go:build linux

package mcast_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/mcast"
	"example.com/mcast/internal/netlab"
)

// everyOf is a group on every interface.
func everyOf(six bool, n int) mcast.Group { return numbered(six, n, "*") }

// onInterfaces waits until a group has a user on each of some interfaces, and on
// no other one.
func onInterfaces(t *testing.T, l *netlab.Lab, g netip.Addr, want ...string) {
	t.Helper()
	slices.Sort(want)
	eventually(t, func() string {
		members := l.Local().IGMP
		if g.Is6() {
			members = l.Local().IGMP6
		}
		var got []string
		for _, m := range members() {
			if m.Group == g {
				got = append(got, m.Device)
				if m.Users != 1 {
					return fmt.Sprintf("%v on %s has %d users", g, m.Device, m.Users)
				}
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Sprintf("%v is on %v, want %v", g, got, want)
		}
		return ""
	})
}

// A group on every interface, those that come later too, but not the ports of a
// bridge, nor loopback; each datagram names its interface.
func TestLabEvery(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		local := l.Local()
		peers := map[string]*netlab.Host{"eth0": cable(l, "eth0", "p0"), "eth1": cable(l, "eth1", "p1")}
		eachFamily(l, func(t *testing.T, six bool) {
			for _, pool := range []bool{false, true} {
				w := watchOn(t, l, six, "eth0", peers["eth0"], pool)
				g, ssm := everyOf(six, 1), everyOf(six, 101)
				w.must(w.Join(g), w.Block(g, w.source('b')), w.JoinSource(ssm, w.source('a')))
				want := sorted(w.of(g, "Eb"), w.of(ssm, "Ia"))
				state := func(on ...string) {
					t.Helper()
					onInterfaces(t, l, g.Addr, on...)
					onInterfaces(t, l, ssm.Addr, on...)
					ms := w.Memberships()
					if fmt.Sprint(ms) != fmt.Sprint(want) || ms[0].Index != 0 || ms[1].Index != 0 {
						t.Errorf("memberships %v, want %v", ms, want)
					}
					for _, name := range on {
						for _, m := range want {
							m.Group.Interface = name
							if s, err := w.SystemFilter(m.Group); err != nil || s.String() != m.String() || s.Index != local.Index(name) {
								t.Errorf("the system has %v (%v), want %v", s, err, m)
							}
						}
					}
				}
				hear := func(name string) {
					t.Helper()
					from := peers[name]
					for _, letter := range "bca" {
						for _, to := range []mcast.Group{ssm, g} {
							from.Send(t, "eth0", w.source(letter), netip.AddrPortFrom(to.Addr, w.port), fmt.Sprintf("%c%v", letter, to.Addr))
						}
					}
					var got []string
					w.SetReadDeadline(time.Now().Add(10 * time.Second))
					for range 3 {
						m := mcast.Message{Buf: make([]byte, 100)}
						if err := w.ReadMessage(&m); err != nil || m.Group.Interface != name || m.Index != local.Index(name) {
							t.Fatalf("by %s: %v (%d), %v", name, m.Group, m.Index, err)
						}
						got = append(got, string(m.Buf[:m.N]))
					}
					slices.Sort(got)
					if expected := []string{"a" + ssm.Addr.String(), "a" + g.Addr.String(), "c" + g.Addr.String()}; !sameStrings(got, expected) {
						t.Errorf("by %s: heard %v, want %v", name, got, expected)
					}
				}
				state("eth0", "eth1")
				hear("eth0")
				hear("eth1")

				// A name beside it, and it beside a name.
				for _, err := range []error{w.Join(numbered(six, 1, "eth0")), w.JoinSource(numbered(six, 101, "eth1"), w.source('c')), w.Leave(numbered(six, 1, "eth0"))} {
					if err == nil || !errors.Is(err, mcast.ErrInterface) {
						t.Errorf("an interface beside all: %v", err)
					}
				}
				named := numbered(six, 2, "eth0")
				w.must(w.Join(named))
				if err := w.Join(everyOf(six, 2)); !errors.Is(err, mcast.ErrInterface) {
					t.Errorf("all beside an interface: %v", err)
				}
				w.must(w.Leave(named))
				if _, err := w.SystemFilter(g); !errors.Is(err, mcast.ErrInterface) {
					t.Errorf("SystemFilter of all: %v", err)
				}
				// Without an interface the one that there is.
				w.must(w.Unblock(mcast.Group{Addr: g.Addr}, w.source('b')), w.Block(mcast.Group{Addr: g.Addr}, w.source('b')))
				state("eth0", "eth1")

				// One comes later, a bridge has ports, one is down.
				p2 := l.Host("late" + fmt.Sprint(fences.Add(1)))
				l.Veth(local, "late", p2, "eth0")
				peers["late"] = p2
				local.AddAddr("late", map[bool]string{false: "10.88.0.9/24", true: "fd88::9/64"}[six])
				local.IP("link", "add", "br9", "type", "bridge")
				local.IP("link", "add", "port9", "type", "veth", "peer", "name", "far9")
				local.IP("link", "set", "dev", "port9", "master", "br9")
				local.IP("link", "set", "dev", "port9", "up")
				local.IP("link", "set", "dev", "br9", "up")
				state("eth0", "eth1", "late", "br9")
				local.IP("link", "set", "dev", "far9", "up")
				state("eth0", "eth1", "late", "br9", "far9")
				hear("late")
				// A port that is none any more, and one that becomes one.
				local.IP("link", "set", "dev", "port9", "nomaster")
				state("eth0", "eth1", "late", "br9", "far9", "port9")
				local.IP("link", "set", "dev", "far9", "master", "br9")
				state("eth0", "eth1", "late", "br9", "port9")
				local.IP("link", "del", "dev", "port9")
				local.IP("link", "del", "dev", "br9")
				local.Delete("late")
				state("eth0", "eth1")
				// It is never lost as long as it is held somewhere.
				for _, e := range w.happened() {
					if e.Kind == mcast.EventPending || e.Kind == mcast.EventFailed {
						t.Errorf("events: %v", e)
					}
				}
				// A change of the filter reaches all.
				w.must(w.JoinSource(ssm, w.source('c')), w.LeaveSource(ssm, w.source('a')), w.SetFilter(g, mcast.Exclude))
				want = sorted(w.of(g, "E"), w.of(ssm, "Ic"))
				state("eth0", "eth1")
				w.must(w.Leave(g), w.LeaveSource(ssm, w.source('c')))
				onInterfaces(t, l, g.Addr)
				onInterfaces(t, l, ssm.Addr)
				w.must(w.Close())
			}
		})
	})
}

func sameStrings(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

// Where there is no other interface, every interface is loopback; and where none
// is up, it is an error, or waits.
func TestLabEveryAlone(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		local := l.Local()
		eachFamily(l, func(t *testing.T, six bool) {
			w := watchOn(t, l, six, "lo", nil, false)
			g := everyOf(six, 1)
			w.must(w.Join(g))
			onInterfaces(t, l, g.Addr, "lo")
			name := "first" + networkOf(six)[3:]
			l.Veth(local, name, l.Host(name), "eth0")
			onInterfaces(t, l, g.Addr, name)
			local.Delete(name)
			onInterfaces(t, l, g.Addr, "lo")
			w.must(w.Leave(g))
			local.Down("lo")
			if err := w.Join(g); !errors.Is(err, mcast.ErrInterface) {
				t.Errorf("none is up: %v", err)
			}
			waits := &watched{t: t, l: l, six: six, ifname: "lo"}
			waits.open(&mcast.Config{WaitForInterface: true})
			w.must(waits.Join(g))
			if ms := waits.Memberships(); len(ms) != 1 || !ms[0].Pending || ms[0].Group != g {
				t.Errorf("memberships %v", ms)
			}
			local.Up("lo")
			onInterfaces(t, l, g.Addr, "lo")
			waits.waitEvent("there is one", func(e mcast.Event) bool { return e.Kind == mcast.EventRestored && e.Group == g })
			if ms := waits.Memberships(); len(ms) != 1 || ms[0].Pending {
				t.Errorf("memberships %v", ms)
			}
			w.must(waits.Close())
		})
	})
}

// A logBook keeps what is logged.
type logBook struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *logBook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *logBook) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *logBook) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// Linux takes 20 IPv4 groups a socket: those with a default route come first, and
// what finds no room is told as one event.
func TestLabEveryLimit(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		local, far := l.Local(), l.Host("far")
		var names []string
		for i := range 24 {
			name := fmt.Sprintf("v%02d", i)
			local.IP("link", "add", name, "index", fmt.Sprint(1000+i), "type", "veth", "peer", "name", "w"+name, "index", fmt.Sprint(2000+i))
			local.IP("link", "set", "dev", "w"+name, "up") // its carrier
			local.IP("link", "set", "dev", "w"+name, "multicast", "off")
			local.IP("link", "set", "dev", name, "up")
			names = append(names, name)
		}
		l.Veth(local, "uplink", far, "eth0")
		local.AddAddr("uplink", "10.5.0.1/24")
		local.IP("route", "add", "default", "via", "10.5.0.2", "dev", "uplink")
		var book logBook
		w := &watched{t: l.T(), l: l, ifname: "uplink", peer: far}
		w.open(&mcast.Config{Logger: book.logger()})
		g := everyOf(false, 1)
		w.must(w.Join(g))
		onInterfaces(l.T(), l, g.Addr, append(names[:19:19], "uplink")...)
		if ms := w.Memberships(); len(ms) != 1 || ms[0].Pending || ms[0].Group != g {
			l.T().Errorf("memberships %v", ms)
		}
		// The same is found again with each piece of news, and told once.
		for range 2 {
			local.IP("link", "add", "extra", "index", "3000", "type", "veth", "peer", "name", "wextra")
			local.IP("link", "set", "dev", "extra", "up")
			local.IP("link", "del", "dev", "extra")
		}
		w.waitEvent("what finds no room", func(e mcast.Event) bool { return e.Kind == mcast.EventFailed })
		// One fewer makes room for one more.
		local.IP("link", "del", "dev", "v00")
		onInterfaces(l.T(), l, g.Addr, append(names[1:20:20], "uplink")...)
		var failed int
		events := w.take()
		for _, e := range events {
			switch {
			case e.Kind == mcast.EventFailed && e.Group == g && errors.Is(e.Err, mcast.ErrLimit):
				failed++
			case e.Kind == mcast.EventFailed || e.Kind == mcast.EventPending:
				l.T().Errorf("%v", e)
			}
		}
		if failed != 1 {
			l.T().Errorf("told %d times: %v", failed, events)
		}
		if s := book.String(); strings.Count(s, "membership failed") != 1 || strings.Contains(s, "<nil>") {
			l.T().Errorf("logged:\n%s", s)
		}
		// What an uplink brings later has its place: the last one gives way.
		local.Delete("uplink")
		onInterfaces(l.T(), l, g.Addr, names[1:21]...)
		local.Recreate("uplink", false)
		local.IP("route", "add", "default", "via", "10.5.0.2", "dev", "uplink")
		onInterfaces(l.T(), l, g.Addr, append(names[1:20:20], "uplink")...)
		// A named group finds no room, and harms nothing.
		if err := w.Join(numbered(false, 2, "uplink")); !errors.Is(err, mcast.ErrLimit) {
			l.T().Errorf("one more: %v", err)
		}
		onInterfaces(l.T(), l, g.Addr, append(names[1:20:20], "uplink")...)
		w.must(w.Leave(g))
		onInterfaces(l.T(), l, g.Addr)

		// A Pool has room for all.
		p := watchOn(l.T(), l, false, "uplink", far, true)
		p.must(p.Join(g))
		onInterfaces(l.T(), l, g.Addr, append(names[1:], "uplink")...)
		p.must(p.Close())
		onInterfaces(l.T(), l, g.Addr)
	})
}
