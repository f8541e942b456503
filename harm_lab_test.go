//go:build linux

package mcast

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.com/mcast/internal/netif"
	"example.com/mcast/internal/netlab"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// On the real kernel, no harm comes to others: what they joined on an interface
// stays theirs, when a membership of ours on an interface of the same index that
// has gone is mended, left, or ends with its socket.

// harmGroups are an any-source and a source-specific group of a family, two
// sources, and the address of the interface.
func harmGroups(six bool) (asm, ssm netip.Addr, a, b netip.Addr, own string) {
	if six {
		return netip.MustParseAddr("ff1e::77:1"), netip.MustParseAddr("ff3e::8077:1"), netip.MustParseAddr("fd88::11"), netip.MustParseAddr("fd88::12"), "fd88::1/64"
	}
	return netip.MustParseAddr("239.77.2.1"), netip.MustParseAddr("232.77.2.1"), netip.MustParseAddr("10.88.0.11"), netip.MustParseAddr("10.88.0.12"), "10.88.0.1/24"
}

// until polls until f has nothing to say against it.
func until(t *testing.T, f func() string) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		s := f()
		if s == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatal(s)
		}
	}
}

// An outsider is a socket that knows nothing of the library.
type outsider struct {
	*net.UDPConn
	six bool
	p4  *ipv4.PacketConn
	p6  *ipv6.PacketConn
}

func newOutsider(t *testing.T, six bool) *outsider {
	t.Helper()
	c, err := net.ListenUDP(endpoint{ipv6: six}.network(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &outsider{c, six, ipv4.NewPacketConn(c), ipv6.NewPacketConn(c)}
}

func (o *outsider) join(t *testing.T, index int, group, source netip.Addr) {
	t.Helper()
	ifi, g, s := &net.Interface{Index: index}, &net.UDPAddr{IP: group.AsSlice()}, &net.UDPAddr{IP: source.AsSlice()}
	var err error
	switch {
	case o.six && source.IsValid():
		err = o.p6.JoinSourceSpecificGroup(ifi, g, s)
	case o.six:
		err = o.p6.JoinGroup(ifi, g)
	case source.IsValid():
		err = o.p4.JoinSourceSpecificGroup(ifi, g, s)
	default:
		err = o.p4.JoinGroup(ifi, g)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// hears checks that what somebody sends to a group still comes through.
func (o *outsider) hears(t *testing.T, what string, from *netlab.Host, group, source netip.Addr) {
	t.Helper()
	port := uint16(o.LocalAddr().(*net.UDPAddr).Port)
	from.Send(t, "eth0", source, netip.AddrPortFrom(group, port), what)
	o.SetReadDeadline(time.Now().Add(3 * time.Second))
	b := make([]byte, 200)
	if n, _, err := o.ReadFromUDPAddrPort(b); err != nil || string(b[:n]) != what {
		t.Errorf("%s: the other socket hears nothing of %v: %q, %v", what, group, b[:n], err)
	}
}

// few has the process open no file more until the function that it returns is called.
func few(t *testing.T) (restore func()) {
	t.Helper()
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	less := was
	less.Cur = 0
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &less); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	}
}

// An insider is a Conn, or a Pool.
type insider interface {
	Join(Group) error
	JoinSource(Group, netip.Addr) error
	Leave(Group) error
	Memberships() []Membership
	Repair() error
	Close() error
}

func newInsider(t *testing.T, six, pool bool, cfg *Config) (insider, *requests) {
	t.Helper()
	network := endpoint{ipv6: six}.network()
	if pool {
		p, err := ListenPool(network, ":0", cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		return p, &p.Members.requests
	}
	c, err := Listen(network, ":0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, &c.requests
}

func TestLabHarm(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		local, peer := l.Local(), l.Host("peer")
		l.Veth(local, "va", peer, "eth0")
		again := map[string]func(){
			"device": func() { local.Recreate("va", true) },
			// The end of IPv6 on an interface is the end of its memberships too.
			"MTU": func() {
				local.IP("link", "set", "dev", "va", "mtu", "1200")
				local.IP("link", "set", "dev", "va", "mtu", "1500")
				local.Readdress("va")
			},
		}
		for _, six := range []bool{false, true} {
			if six && !local.HasIPv6() {
				continue
			}
			_, _, a, b, own := harmGroups(six)
			local.AddAddr("va", own)
			for _, x := range []netip.Addr{a, b} {
				peer.AddAddr("eth0", fmt.Sprintf("%v/%d", x, map[bool]int{false: 24, true: 64}[six]))
			}
			for _, pool := range []bool{false, true} {
				for made, anew := range again {
					for _, how := range []string{"leave", "mend", "repair", "close", "close with a guard that failed"} {
						if made == "MTU" && !six {
							continue
						}
						l.Run(fmt.Sprintf("%s/pool=%v/%s/%s", endpoint{ipv6: six}.network(), pool, made, how), func(t *testing.T) {
							h := harm{t: t, l: l, six: six, peer: peer, index: local.Index("va")}
							h.run(pool, how, anew)
						})
					}
				}
			}
		}
	})
}

type harm struct {
	t     *testing.T
	l     *netlab.Lab
	six   bool
	peer  *netlab.Host
	index int
}

func (h harm) run(pool bool, how string, anew func()) {
	t, local := h.t, h.l.Local()
	asm, ssm, a, b, _ := harmGroups(h.six)
	mine, q := newInsider(t, h.six, pool, nil)
	first, second := Group{asm, "va"}, Group{ssm, "va"}
	if err := errors.Join(mine.Join(first), mine.JoinSource(second, a), mine.JoinSource(second, b)); err != nil {
		t.Fatal(err)
	}

	// Nobody looks until the other one has joined, and nothing is made anew
	// before the test has had its turn.
	mending.Lock()
	q.mu.Lock()
	anew()
	if local.Index("va") != h.index {
		t.Fatal("it has another index")
	}
	other := newOutsider(t, h.six)
	other.join(t, h.index, asm, netip.Addr{})
	other.join(t, h.index, ssm, a)
	restore := func() {}
	if strings.HasPrefix(how, "close with") {
		restore = few(t)
	}
	q.mu.Unlock()
	past := func() (n int) {
		q.mu.Lock()
		defer q.mu.Unlock()
		for _, l := range q.sockets.ledgers(netip.Addr{}) {
			l.each(func(addr netip.Addr, e *entry) {
				if e.trust != exact {
					n++
				}
			})
		}
		return n
	}
	until(t, func() string {
		for _, m := range mine.Memberships() {
			if !m.Pending {
				return fmt.Sprint("nothing has been noticed: ", mine.Memberships())
			}
		}
		return ""
	})
	if n := past(); (n > 0) != strings.HasPrefix(how, "close with") {
		t.Errorf("%d memberships are not left", n)
	}
	restore()
	check := func(what string) {
		t.Helper()
		for _, g := range []netip.Addr{asm, ssm} {
			if n := local.Users("va", g); n < 1 {
				t.Errorf("%s: nobody is in %v by /proc/net", what, g)
			}
		}
		other.hears(t, what, h.peer, asm, b)
		other.hears(t, what, h.peer, ssm, a)
	}
	if how != "mend" && !strings.HasPrefix(how, "close") {
		check("left for mending")
	}
	closing := func() {
		t.Helper()
		ended := make(chan error, 1)
		go func() { ended <- mine.Close() }()
		until(t, func() string {
			q.mu.Lock()
			defer q.mu.Unlock()
			if !q.closed {
				return "it is not being closed"
			}
			return ""
		})
		mending.Unlock()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	switch how {
	case "leave":
		if err := errors.Join(mine.Leave(first), mine.Leave(second)); err != nil {
			t.Error(err)
		}
		check("left")
		mending.Unlock()
	case "mend", "repair":
		mending.Unlock()
		if how == "repair" {
			if err := mine.Repair(); err != nil {
				t.Error(err)
			}
		}
		until(t, func() string {
			for _, m := range mine.Memberships() {
				if m.Pending {
					return fmt.Sprint("not mended: ", mine.Memberships())
				}
			}
			return ""
		})
		check("mended")
		if err := errors.Join(mine.Leave(first), mine.Leave(second)); err != nil {
			t.Error(err)
		}
		check("mended and left")
	default:
		closing()
		check(how)
	}
	if err := mine.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	check("closed")

	// The guards end with their interface.
	guards.Lock()
	n := len(guards.open)
	guards.Unlock()
	if n == 0 {
		t.Error("no guard was needed: the test does not test it")
	}
	last, _ := newInsider(t, h.six, false, nil)
	if err := last.Join(Group{asm, "va"}); err != nil {
		t.Fatal(err)
	}
	local.Recreate("va", false)
	until(t, func() string {
		guards.Lock()
		defer guards.Unlock()
		if len(guards.open) > 0 {
			return fmt.Sprintf("%d guards are left", len(guards.open))
		}
		return ""
	})
	last.Close()
}

// Two network namespaces in one program, with interfaces of the same index: what
// happens in one is no news in the other.
func TestLabNamespaces(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		type groupIndex struct {
			*netlab.Host
			in     insider
			q      *requests
			mu     sync.Mutex
			events []Event
		}
		for _, six := range []bool{false, true} {
			if six && !l.Local().HasIPv6() {
				continue
			}
			asm, _, a, _, own := harmGroups(six)
			network := endpoint{ipv6: six}.network()
			var places [2]*groupIndex
			for i := range places {
				p := &groupIndex{Host: l.Host(fmt.Sprint(network, i))}
				places[i] = p
				p.IP("link", "add", "va", "index", "50", "type", "veth", "peer", "name", "vb", "index", "51")
				p.Up("va")
				p.Up("vb")
				p.AddAddr("va", own)
				p.Do(func() {
					p.in, p.q = newInsider(l.T(), six, i == 1, &Config{OnEvent: func(e Event) {
						p.mu.Lock()
						defer p.mu.Unlock()
						p.events = append(p.events, e)
					}})
				})
				if p.q.host.Namespace() == 0 {
					l.T().Skip("this kernel does not tell namespaces apart (Linux 5.14)")
				}
				if err := errors.Join(p.in.Join(Group{asm, "va"}), p.in.JoinSource(Group{asm.Next(), "va"}, a)); err != nil {
					l.T().Fatal(err)
				}
			}
			state := func(p *groupIndex, pending bool, index int) string {
				ms := p.in.Memberships()
				if len(ms) != 2 || ms[0].Pending != pending || ms[1].Pending != pending || ms[0].Index != index {
					return fmt.Sprintf("%s: memberships %v on %d, want pending: %v", p.Name(), ms, ms[0].Index, pending)
				}
				for _, g := range []netip.Addr{asm, asm.Next()} {
					if n := p.Users("va", g); n != map[bool]int{false: 1, true: 0}[pending] {
						return fmt.Sprintf("%s: %d users of %v", p.Name(), n, g)
					}
				}
				return ""
			}
			watchers.Lock()
			n := len(watchers.of)
			watchers.Unlock()
			if n != 2 {
				l.T().Errorf("%d watchers of two namespaces", n)
			}
			for i, p := range places {
				q := places[1-i]
				p.IP("link", "del", "dev", "va")
				until(l.T(), func() string { return state(p, true, 0) })
				index := []string{"60", "50"}[i]
				p.IP("link", "add", "va", "index", index, "type", "veth", "peer", "name", "vb", "index", "70")
				p.Up("va")
				p.Up("vb")
				want := []int{60, 50}[i]
				until(l.T(), func() string { return state(p, false, want) })
				if s := state(q, false, []int{60, 50}[1-i]); s != "" && i == 1 {
					l.T().Error(s)
				} else if s := state(q, false, 50); s != "" && i == 0 {
					l.T().Error(s)
				}
			}
			// The other one's turn told the first one nothing, and the other way round.
			for i, p := range places {
				p.mu.Lock()
				lost := 0
				for _, e := range p.events {
					if e.Kind == EventLost {
						lost++
						if e.Old != 50 && e.Old != []int{60, 50}[i] {
							l.T().Errorf("%v", e)
						}
					}
					if e.Kind == EventFailed {
						l.T().Errorf("%v", e)
					}
				}
				p.mu.Unlock()
				if lost < 2 {
					l.T().Errorf("%s: %v", p.Name(), p.events)
				}
				if err := p.in.Close(); err != nil {
					l.T().Error(err)
				}
				if u := p.Users("va", asm); u != 0 {
					l.T().Errorf("%d users in the end", u)
				}
			}
			watchers.Lock()
			n = len(watchers.of)
			watchers.Unlock()
			if n != 0 {
				l.T().Errorf("%d watchers are left", n)
			}
		}
	})
}

// A watcher that cannot be started, for want of descriptors, is told of once, and
// tried again with later requests.
func TestLabWatcherFails(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		t, local := l.T(), l.Local()
		l.Veth(local, "va", l.Host("peer"), "eth0")
		for _, pool := range []bool{false, true} {
			asm, ssm, a, b, _ := harmGroups(false)
			var mu sync.Mutex
			var events []Event
			var log strings.Builder
			cfg := &Config{
				OnEvent: func(e Event) {
					mu.Lock()
					defer mu.Unlock()
					events = append(events, e)
				},
				Logger: slog.New(slog.NewTextHandler(&log, nil)),
			}
			mine, q := newInsider(t, false, pool, cfg)
			var restore func()
			if pool { // it needs a descriptor for each group
				q.mu.Lock()
				q.host = noWatchHost{q.host}
				q.mu.Unlock()
				restore = func() {
					q.mu.Lock()
					q.host = q.host.(noWatchHost).Host
					q.mu.Unlock()
				}
			} else {
				restore = few(t)
			}
			err := errors.Join(mine.Join(Group{asm, "va"}), mine.JoinSource(Group{ssm, "va"}, a))
			restore()
			if err != nil {
				t.Fatal(err)
			}
			if n := local.Users("va", asm); n != 1 {
				t.Errorf("%d users: the join itself needs no watcher", n)
			}
			until(t, func() string {
				mu.Lock()
				defer mu.Unlock()
				if len(events) == 0 {
					return "nothing is told"
				}
				return ""
			})
			// A later request has it watched.
			if err := mine.JoinSource(Group{ssm, "va"}, b); err != nil {
				t.Fatal(err)
			}
			local.Recreate("va", false)
			until(t, func() string {
				if ms := mine.Memberships(); len(ms) != 2 || ms[0].Index != local.Index("va") || ms[1].Index != local.Index("va") {
					return fmt.Sprint("not mended: ", ms)
				}
				return ""
			})
			if err := mine.Close(); err != nil {
				t.Error(err)
			}
			failed := 0
			for i, e := range events {
				if e.Kind != EventFailed {
					continue
				}
				failed++
				if i != 0 || e.Group != (Group{}) || e.Name != "" || !errors.Is(e.Err, syscall.EMFILE) || !strings.Contains(e.Err.Error(), "watched") {
					t.Errorf("%v", e)
				}
			}
			if failed != 1 {
				t.Errorf("told %d times: %v", failed, events)
			}
			if s := log.String(); strings.Count(s, "failed") != 1 || strings.Contains(s, "<nil>") || !strings.Contains(s, "too many open files") {
				t.Errorf("logged:\n%s", s)
			}
		}
	})
}

// A noWatchHost has no descriptors left for a watcher.
type noWatchHost struct{ netif.Host }

func (noWatchHost) Watch() (netif.Source, error) {
	return nil, os.NewSyscallError("socket", syscall.EMFILE)
}

// What New is given stays what it was: memberships that are not the Conn's are
// neither taken nor dropped, and a socket for IPv4 on an AF_INET6 one is refused.
func TestLabNewOnOthers(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		t, local, peer := l.T(), l.Local(), l.Host("peer")
		l.Veth(local, "va", peer, "eth0")
		for _, six := range []bool{false, true} {
			if six && !local.HasIPv6() {
				continue
			}
			asm, ssm, a, b, own := harmGroups(six)
			local.AddAddr("va", own)
			other := newOutsider(t, six)
			index := local.Index("va")
			other.join(t, index, asm, netip.Addr{})
			other.join(t, index, ssm, a)
			c, err := New(other.UDPConn, nil)
			if err != nil {
				t.Fatal(err)
			}
			for what, test := range map[string]struct{ err, want error }{
				"Join":       {c.Join(Group{asm, "va"}), ErrJoined},
				"JoinSource": {c.JoinSource(Group{ssm, "va"}, a), ErrJoined},
				"another":    {c.JoinSource(Group{ssm, "va"}, b), ErrJoined},
				"SetFilter":  {c.SetFilter(Group{asm, "va"}, Exclude, a), ErrJoined},
				"Leave":      {c.Leave(Group{asm, "va"}), ErrNotJoined},
			} {
				if !errors.Is(test.err, test.want) {
					t.Errorf("%s: %v, want %v", what, test.err, test.want)
				}
				for _, g := range []netip.Addr{asm, ssm} {
					if n := local.Users("va", g); n != 1 {
						t.Errorf("%s: %d users of %v", what, n, g)
					}
				}
			}
			if ms := c.Memberships(); len(ms) > 0 {
				t.Errorf("memberships %v", ms)
			}
			// What is its own is its own.
			if err := errors.Join(c.Join(Group{asm.Next(), "va"}), c.Leave(Group{asm.Next(), "va"})); err != nil {
				t.Error(err)
			}
			// Mending leaves alone what is not the Conn's.
			if err := errors.Join(c.Join(Group{asm.Next(), "va"}), c.Repair()); err != nil {
				t.Error(err)
			}
			if n := local.Users("va", asm); n != 1 {
				t.Errorf("after Repair: %d users", n)
			}
			c.Close()
		}
		fd, err := syscall.Socket(syscall.AF_INET6, syscall.SOCK_DGRAM, 0)
		if err != nil {
			t.Skip("no IPv6: ", err)
		}
		sa := &syscall.SockaddrInet6{Port: 0}
		copy(sa.Addr[10:], []byte{0xff, 0xff, 239, 77, 2, 1})
		if err := syscall.Bind(fd, sa); err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "mapped")
		pc, err := net.FilePacketConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		if c, err := New(pc.(*net.UDPConn), nil); !errors.Is(err, ErrAddress) {
			t.Errorf("an AF_INET6 socket on an IPv4 group: %v, %v", c, err)
		}
	})
}

// What was queued at a socket that is bound to its group, before the same group
// was joined on a second interface, comes with the first one's name.
func TestLabQueuedBefore(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		t, local, peer := l.T(), l.Local(), l.Host("peer")
		l.Veth(local, "va", peer, "eth0")
		l.Veth(local, "vb", peer, "eth1")
		_, ssm, a, b, own := harmGroups(false)
		local.AddAddr("va", own)
		c, err := Listen("udp4", netip.AddrPortFrom(ssm, 21077).String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.JoinSource(Group{ssm, "va"}, a); err != nil {
			t.Fatal(err)
		}
		wire := local.Capture("va")
		to := netip.AddrPortFrom(ssm, 21077)
		peer.Send(t, "eth0", b, to, "forbidden")
		for i := range 10 {
			peer.Send(t, "eth0", a, to, fmt.Sprint(i))
		}
		if n := wire.WaitCount(a, to, 10, 5*time.Second); n != 10 {
			t.Fatalf("%d came", n)
		}
		if err := c.Join(Group{Addr: ssm, Interface: "vb"}); !errors.Is(err, ErrSSM) {
			t.Errorf("%v", err)
		}
		if err := c.JoinSource(Group{ssm, "vb"}, b); err != nil {
			t.Fatal(err)
		}
		peer.Send(t, "eth1", b, to, "last")
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		for i := range 11 {
			want, on := fmt.Sprint(i), "va"
			if i == 10 {
				want, on = "last", "vb"
			}
			m := Message{Buf: make([]byte, 20)}
			if err := c.ReadMessage(&m); err != nil || string(m.Buf[:m.N]) != want || m.Group != (Group{ssm, on}) || m.Index != local.Index(on) {
				t.Fatalf("%d: %q on %v (%d), %v", i, m.Buf[:m.N], m.Group, m.Index, err)
			}
		}
	})
}
