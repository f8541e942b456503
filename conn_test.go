//go:build !plan9

package mcast_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/mcast"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

func testListen(t *testing.T, p place) {
	g := p.asm(1)
	t.Run("udp", func(t *testing.T) {
		c, err := mcast.Listen("udp", netip.AddrPortFrom(g.Addr, uint16(p.port(t))).String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		p.scene(t, c, false, g).run(g, []step{{"JoinSource", "a", nil, "Ia"}, {"Leave", "", nil, ""}, {"Join", "", nil, "E"}})
	})
	t.Run("wildcard address", func(t *testing.T) {
		unspecified := map[bool]string{false: "0.0.0.0", true: "[::]"}[p.six]
		c, err := mcast.Listen("udp", fmt.Sprint(unspecified, ":", p.port(t)), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		p.scene(t, c, true, g).run(g, []step{{"JoinSource", "a", nil, "Ia"}, {"Leave", "", nil, ""}})
	})
	t.Run("zone", func(t *testing.T) {
		// The zone of the group stands for no interface.
		c := p.listen(t, fmt.Sprintf("[%v%%%s]:%d", g.Addr, g.Interface, p.port(t)), nil)
		if err := c.JoinSource(mcast.Group{Addr: g.Addr}, p.source(0)); err != nil {
			t.Fatal(err)
		}
		p.scene(t, c, false, g).check(p.membership(g, "Ia")...)
		for _, other := range []string{g.Interface + "x", "*", "1000000"} {
			if err := c.JoinSource(mcast.Group{Addr: g.Addr, Interface: other}, p.source(1)); !errors.Is(err, mcast.ErrInterface) {
				t.Errorf("another interface than the one bound: %v", err)
			}
		}
		if got := c.Memberships()[0].Group; got != g {
			t.Errorf("Memberships has %v", got)
		} else if err := c.JoinSource(got, p.source(1)); err != nil {
			t.Errorf("what Memberships shows: %v", err)
		}
		// An index does as well.
		c = p.listen(t, fmt.Sprintf("[%v%%%d]:%d", g.Addr, p.ifi.Index, p.port(t)), nil)
		if err := c.JoinSource(mcast.Group{Addr: g.Addr}, p.source(0)); err != nil {
			t.Fatal(err)
		}
		p.scene(t, c, false, g).check(p.membership(g, "Ia")...)
	})
	t.Run("port 0", func(t *testing.T) {
		c := p.listen(t, ":0", nil)
		if localPort(c) == 0 {
			t.Errorf("LocalAddr %v", c.LocalAddr())
		}
		p.scene(t, c, true, g).run(g, []step{{"JoinSource", "a", nil, "Ia"}})
		c = p.listen(t, netip.AddrPortFrom(g.Addr, 0).String(), nil)
		if localPort(c) == 0 {
			t.Errorf("LocalAddr %v", c.LocalAddr())
		}
		p.scene(t, c, false, g).run(g, []step{{"JoinSource", "a", nil, "Ia"}})
	})
	t.Run("LocalAddr", func(t *testing.T) {
		port := p.port(t)
		c := p.listen(t, fmt.Sprint(":", port), nil)
		if a, ok := c.LocalAddr().(*net.UDPAddr); !ok || !a.IP.IsUnspecified() || a.Port != port {
			t.Errorf("LocalAddr %v", c.LocalAddr())
		}
		at := netip.AddrPortFrom(g.Addr, uint16(port))
		c = p.listen(t, at.String(), nil)
		if a := c.LocalAddr().String(); a != at.String() {
			t.Errorf("LocalAddr %v, want %v", a, at)
		}
		c = p.listen(t, netip.AddrPortFrom(p.senders0(t), 0).String(), nil)
		if a := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(); a != p.senders0(t) {
			t.Errorf("LocalAddr %v", a)
		}
	})
	t.Run("unicast", func(t *testing.T) {
		c := p.listen(t, netip.AddrPortFrom(p.senders0(t), 0).String(), nil)
		for _, err := range []error{c.Join(g), c.JoinSource(g, p.source(0)), c.SetFilter(g, mcast.Exclude)} {
			if !errors.Is(err, mcast.ErrAddress) || !strings.Contains(err.Error(), p.senders0(t).String()) {
				t.Error(err)
			}
		}
		checkState(t, c, []mcast.Group{}, mcast.Group{})
	})
	if p.six {
		t.Run("link-local group", func(t *testing.T) {
			// The socket is not bound to it: that would tie it to an index.
			g := mcast.Group{Addr: netip.MustParseAddr("ff02::77:1"), Interface: p.ifi.Name}
			for _, zone := range []string{"", "%" + p.ifi.Name} {
				c := p.listen(t, fmt.Sprintf("[%v%s]:%d", g.Addr, zone, p.port(t)), nil)
				s := p.scene(t, c, false, g, p.asm(2))
				s.run(g, []step{{"JoinSource", "a", nil, "Ia"}, {"Leave", "", nil, ""}, {"Join", "", nil, "E"}})
				if err := c.Join(p.asm(2)); !errors.Is(err, mcast.ErrAddress) {
					t.Errorf("another group than the one listened on: %v", err)
				}
			}
		})
	}
	t.Run("no such zone", func(t *testing.T) {
		c, err := mcast.Listen(p.network(), fmt.Sprintf("[%v%%nosuch0]:5000", g.Addr), nil)
		if c != nil || !errors.Is(err, mcast.ErrInterface) || !strings.Contains(err.Error(), "nosuch0") {
			t.Errorf("%v, want ErrInterface", err)
		}
	})
	t.Run("refused", func(t *testing.T) {
		other := map[bool]string{false: "udp6", true: "udp4"}[p.six]
		tests := []struct {
			network, address string
			want             error
		}{
			{other, netip.AddrPortFrom(g.Addr, 5000).String(), mcast.ErrAddress},
			{"udp", ":5000", mcast.ErrAddress},
			{p.network(), "5000", mcast.ErrAddress},
			{p.network(), ":70000", mcast.ErrAddress},
			{p.network(), "nobody.invalid:5000", mcast.ErrAddress},
			{"tcp", ":5000", net.UnknownNetworkError("tcp")},
			{"", ":5000", net.UnknownNetworkError("")},
		}
		every := map[bool]string{false: "239.1.1.1%*", true: "ff1e::1%*"}[p.six]
		tests = append(tests, struct {
			network, address string
			want             error
		}{p.network(), "[" + every + "]:5000", mcast.ErrInterface})
		for _, test := range tests {
			c, err := mcast.Listen(test.network, test.address, nil)
			var e *mcast.OpError
			if c != nil || !errors.Is(err, test.want) || !errors.As(err, &e) || e.Op != "Listen" {
				t.Errorf("Listen(%q, %q): %v, want %v", test.network, test.address, err, test.want)
			}
		}
	})
}

func testNew(t *testing.T, p place) {
	g := p.asm(1)
	t.Run("wraps", func(t *testing.T) {
		udp, err := net.ListenUDP(p.network(), nil)
		if err != nil {
			t.Fatal(err)
		}
		c, err := mcast.New(udp, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if c.LocalAddr().String() != udp.LocalAddr().String() {
			t.Errorf("LocalAddr %v, of the socket %v", c.LocalAddr(), udp.LocalAddr())
		}
		p.scene(t, c, true, g, p.ssm(1)).run(g, allSteps[:30])
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := udp.SetDeadline(time.Now()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the socket is not closed: %v", err)
		}
	})
	t.Run("unicast", func(t *testing.T) {
		udp, err := net.ListenUDP(p.network(), net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.senders0(t), 0)))
		if err != nil {
			t.Fatal(err)
		}
		c, err := mcast.New(udp, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Join(g); !errors.Is(err, mcast.ErrAddress) {
			t.Error(err)
		}
	})
	refused := func(name string, udp *net.UDPConn, want error) {
		c, err := mcast.New(udp, nil)
		var e *mcast.OpError
		if c != nil || !errors.Is(err, want) || !errors.As(err, &e) || e.Op != "New" {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	refused("nil", nil, mcast.ErrAddress)
	closed, err := net.ListenUDP(p.network(), nil)
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	refused("closed", closed, net.ErrClosed)
	connected, err := net.DialUDP(p.network(), nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.senders0(t), 9)))
	if err != nil {
		t.Fatal(err)
	}
	defer connected.Close()
	refused("connected", connected, mcast.ErrAddress)
	if c, err := mcast.New(new(net.UDPConn), nil); c != nil || err == nil {
		t.Errorf("the zero UDPConn: %v", err)
	}
	dual, err := net.ListenUDP("udp", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer dual.Close()
	if dual.LocalAddr().(*net.UDPAddr).IP.To4() == nil {
		refused("dual-stack", dual, mcast.ErrAddress)
	}
	// The sockets are as they were.
	for _, c := range []*net.UDPConn{connected, dual} {
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Error(err)
		}
	}
}

func testReadBuffer(t *testing.T, p place) {
	granted := func(n int) (*mcast.Conn, chan string) {
		log := make(chan string, 10)
		c := p.listen(t, ":0", &mcast.Config{ReadBuffer: n, Logger: slog.New(slog.NewTextHandler(lines(log), nil))})
		return c, log
	}
	c, log := granted(-1)
	system := c.Stats().ReadBuffer
	if c.Close(); len(log) > 0 {
		t.Errorf("logged %q, though nothing was asked for", <-log)
	}
	for _, n := range []int{1 << 16, 1 << 18, 0, 1 << 30} {
		c, log := granted(n)
		got, want := c.Stats().ReadBuffer, n
		if n == 0 {
			want = 4 << 20
		}
		if got == 0 {
			t.Skip("this system does not tell")
		}
		if got < want {
			if line := within(t, log); !strings.Contains(line, "receive buffer is smaller") || !strings.Contains(line, fmt.Sprint("granted=", got)) {
				t.Errorf("asked for %d, granted %d, logged %q", n, got, line)
			}
		}
		if c.Close(); len(log) > 0 {
			t.Errorf("asked for %d, granted %d, logged %q", n, got, <-log)
		}
		if got < want && got < system {
			t.Errorf("asked for %d, granted %d, less than the default %d", n, got, system)
		}
	}
}

// lines is a writer that sends what is written.
type lines chan<- string

func (l lines) Write(b []byte) (int, error) {
	l <- string(b)
	return len(b), nil
}

func testBadInput(t *testing.T, p place) {
	g, h, a := p.asm(1), p.ssm(1), p.source(0)
	c := p.listen(t, fmt.Sprint(":", p.port(t)), nil)
	if err := errors.Join(c.Join(g), c.Block(g, p.source(2)), c.JoinSource(h, a)); err != nil {
		t.Fatal(err)
	}
	s := p.scene(t, c, true, g, h, p.asm(3), p.ssm(3))
	want := append(p.membership(h, "Ia"), p.membership(g, "Ec")...)
	slices.SortFunc(want, func(a, b mcast.Membership) int { return a.Group.Addr.Compare(b.Group.Addr) })
	s.check(want...)

	bad := func(name string, wantErr error, g mcast.Group, source netip.Addr, ops ...string) {
		t.Helper()
		for _, op := range ops {
			var err error
			if source.IsValid() || op == "Join" || op == "Leave" {
				err = request(c, op, g, source)
			} else {
				err = request(c, op, g, netip.Addr{})
			}
			opName := op
			if op == "Include" || op == "Exclude" {
				opName = "SetFilter"
			}
			var e *mcast.OpError
			if !errors.Is(err, wantErr) || !errors.As(err, &e) {
				t.Errorf("%s: %s: %v, want %v", name, op, err, wantErr)
				continue
			}
			if e.Op != opName || e.Group.Addr != g.Addr.Unmap().WithZone("") {
				t.Errorf("%s: %s: an error about %s %v: %v", name, op, e.Op, e.Group, err)
			}
			text := err.Error()
			wants := []string{"mcast: " + opName, wantErr.Error()}
			if g.Addr.IsValid() {
				wants = append(wants, g.Addr.Unmap().WithZone("").String())
			}
			if source.IsValid() && op != "Join" && op != "Leave" {
				if opName != "SetFilter" || strings.HasSuffix(name, "source") {
					wants = append(wants, source.Unmap().WithZone("").String())
				}
				if opName != "SetFilter" && e.Source != source.Unmap().WithZone("") {
					t.Errorf("%s: %s: an error about source %v: %v", name, op, e.Source, err)
				}
			}
			if g.Interface == p.ifi.Name && g.Addr.IsValid() {
				wants = append(wants, "%"+p.ifi.Name)
			}
			for _, w := range wants {
				if !strings.Contains(text, w) {
					t.Errorf("%s: %s: the text has no %q: %s", name, op, w, text)
				}
			}
			s.state(want...)
		}
	}
	withSource := []string{"JoinSource", "Block", "Unblock", "LeaveSource", "Include", "Exclude"}
	all := append([]string{"Join", "Leave"}, withSource...)
	addr := func(four, six string) netip.Addr {
		if p.six {
			return netip.MustParseAddr(six)
		}
		return netip.MustParseAddr(four)
	}
	on := func(a netip.Addr) mcast.Group { return mcast.Group{Addr: a, Interface: p.ifi.Name} }

	bad("unicast group", mcast.ErrAddress, on(addr("10.0.0.1", "2001:db8::9")), a, all...)
	bad("unspecified group", mcast.ErrAddress, on(addr("0.0.0.0", "::")), a, all...)
	bad("broadcast or loopback group", mcast.ErrAddress, on(addr("255.255.255.255", "::1")), a, all...)
	bad("zero group", mcast.ErrAddress, mcast.Group{}, a, all...)
	bad("no group", mcast.ErrAddress, on(netip.Addr{}), a, all...)
	other, otherSource := netip.MustParseAddr("ff1e::1:1"), netip.MustParseAddr("2001:db8::9")
	if p.six {
		other, otherSource = netip.MustParseAddr("239.1.1.1"), netip.MustParseAddr("10.0.0.1")
	}
	bad("group of the other family", mcast.ErrAddress, on(other), otherSource, all...)
	bad("source of the other family", mcast.ErrAddress, g, otherSource, withSource...)
	bad("multicast source", mcast.ErrAddress, g, addr("239.1.1.1", "ff1e::2"), withSource...)
	bad("unspecified source", mcast.ErrAddress, g, addr("0.0.0.0", "::"), withSource...)
	bad("zero source", mcast.ErrAddress, g, netip.Addr{}, withSource...)
	if !p.six {
		bad("broadcast source", mcast.ErrAddress, g, netip.MustParseAddr("255.255.255.255"), withSource...)
	}
	const none = "nosuch0"
	bad("no such interface", mcast.ErrInterface, mcast.Group{Addr: p.asm(3).Addr, Interface: none}, a, "Join", "JoinSource", "Include", "Exclude")
	for _, ifname := range []string{"0", "1048576", "99999999999999999999"} {
		bad("no such index", mcast.ErrInterface, mcast.Group{Addr: p.asm(3).Addr, Interface: ifname}, a, all...)
		bad("no such index", mcast.ErrInterface, mcast.Group{Addr: g.Addr, Interface: ifname}, a, all...)
	}
	bad("every interface beside one", mcast.ErrInterface, mcast.Group{Addr: g.Addr, Interface: "*"}, a, "Join", "JoinSource", "Include", "Exclude")
	bad("not joined there", mcast.ErrNotJoined, mcast.Group{Addr: g.Addr, Interface: none}, a, "Block", "Unblock", "Leave", "LeaveSource")
	bad("source-specific group", mcast.ErrSSM, p.ssm(3), a, "Join", "Exclude")
	if p.six {
		for _, s := range []string{"ff32::1", "ff35::1", "ff3e::1", "ff3f::ffff:1"} {
			bad(s, mcast.ErrSSM, on(netip.MustParseAddr(s)), a, "Join")
		}
		bad("no such zone", mcast.ErrInterface, mcast.Group{Addr: p.asm(3).Addr.WithZone("nosuch0")}, a, "Join", "JoinSource")
		bad("no such zone", mcast.ErrNotJoined, mcast.Group{Addr: p.asm(3).Addr.WithZone("nosuch0")}, a, "Leave")
		bad("empty zone", mcast.ErrInterface, mcast.Group{Addr: p.asm(3).Addr.WithZone("0")}, a, "Join", "JoinSource", "Leave")
		bad("two interfaces", mcast.ErrInterface, mcast.Group{Addr: p.asm(3).Addr.WithZone(fmt.Sprint(none)), Interface: p.ifi.Name}, a, "Join", "JoinSource", "Leave")
		bad("two interfaces", mcast.ErrInterface, p.asm(3), a.WithZone(fmt.Sprint(none)), "JoinSource", "Include", "Exclude")
	} else {
		for _, s := range []string{"232.0.0.1", "232.255.255.255"} {
			bad(s, mcast.ErrSSM, on(netip.MustParseAddr(s)), a, "Join")
		}
	}
	if err := c.SetFilter(g, mcast.Mode(7), a); !errors.Is(err, mcast.ErrMode) {
		t.Errorf("a mode that does not exist: %v", err)
	}
	s.check(want...)

	// Other ways to write what is good.
	if err := c.SetFilter(mcast.Group{Addr: g.Addr}, mcast.Include); err != nil {
		t.Error(err)
	}
	if p.six {
		named := mcast.Group{Addr: g.Addr.WithZone(p.ifi.Name)}
		number := fmt.Sprint(p.ifi.Index)
		if err := errors.Join(c.Join(named), c.Block(mcast.Group{Addr: g.Addr}, p.source(0).WithZone(number)), c.Block(g, p.source(1).WithZone(number))); err != nil {
			t.Error(err)
		}
		if _, err := c.SystemFilter(named); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			t.Error(err)
		}
	} else {
		mapped := func(a netip.Addr) netip.Addr { return netip.AddrFrom16(a.As16()) }
		m := mcast.Group{Addr: mapped(g.Addr), Interface: g.Interface}
		if err := errors.Join(c.Join(m), c.Block(m, mapped(p.source(0))), c.Block(m, p.source(1))); err != nil {
			t.Error(err)
		}
		if _, err := c.SystemFilter(m); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			t.Error(err)
		}
	}
	want = append(p.membership(h, "Ia"), p.membership(g, "Eab")...)
	slices.SortFunc(want, func(a, b mcast.Membership) int { return a.Group.Addr.Compare(b.Group.Addr) })
	s.check(want...)
	if err := c.Leave(mcast.Group{Addr: g.Addr}); err != nil {
		t.Error(err)
	}
	s.check(p.membership(h, "Ia")...)
}

// "224.0.0.0:port" and "[ff02::]:port" are the wildcard, as in package net.
func testWildcards(t *testing.T, p place) {
	host := map[bool]string{false: "224.0.0.0", true: "[ff02::]"}[p.six]
	for _, network := range []string{"udp", p.network()} {
		c, err := mcast.Listen(network, fmt.Sprint(host, ":", p.port(t)), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if a := c.LocalAddr().(*net.UDPAddr); !a.IP.IsUnspecified() {
			t.Errorf("LocalAddr %v", a)
		}
		g := p.asm(1)
		s := p.scene(t, c, true, g, p.asm(2))
		s.run(g, []step{{"JoinSource", "a", nil, "Ia"}, {"Leave", "", nil, ""}, {"Join", "", nil, "E"}})
		if err := c.Join(p.asm(2)); err != nil {
			t.Errorf("a second group: %v", err)
		}
	}
}

func testListenChannel(t *testing.T, p place) {
	for _, test := range []struct {
		ch     mcast.Channel
		filter string
	}{
		{mcast.Channel{Group: p.ssm(1), Source: p.source(0)}, "Ia"},
		{mcast.Channel{Group: p.asm(1), Source: p.source(1)}, "Ib"},
		{mcast.Channel{Group: p.asm(1)}, "E"},
	} {
		test.ch.Port = p.port(t)
		// As it is written, too.
		ch, err := mcast.ParseChannel(test.ch.String())
		if strings.ContainsAny(p.ifi.Name, "%@]:") {
			ch, err = test.ch, nil
		}
		if err != nil || ch != test.ch {
			t.Fatalf("%v, %v, want %v", ch, err, test.ch)
		}
		c, err := mcast.ListenChannel(ch, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		g := test.ch.Group
		if a := c.LocalAddr().(*net.UDPAddr).AddrPort(); a != netip.AddrPortFrom(g.Addr, uint16(ch.Port)) {
			t.Errorf("LocalAddr %v", a)
		}
		s := p.scene(t, c, false, g, p.asm(9), p.ssm(9))
		s.check(p.membership(g, test.filter)...)
		if err := c.Join(p.asm(9)); !errors.Is(err, mcast.ErrAddress) {
			t.Errorf("another group: %v", err)
		}
	}
	here := mcast.Channel{Group: p.asm(1), Source: p.source(0), Port: p.port(t)}
	with := func(change func(*mcast.Channel)) mcast.Channel {
		ch := here
		change(&ch)
		return ch
	}
	for i, test := range []struct {
		ch   mcast.Channel
		want error
	}{
		{with(func(ch *mcast.Channel) { ch.Port = 0 }), mcast.ErrAddress},
		{with(func(ch *mcast.Channel) { ch.Port = 65536 }), mcast.ErrAddress},
		{with(func(ch *mcast.Channel) { ch.Port = -1 }), mcast.ErrAddress},
		{with(func(ch *mcast.Channel) { ch.Group.Addr = p.source(0) }), mcast.ErrAddress},
		{with(func(ch *mcast.Channel) { ch.Group = mcast.Group{} }), mcast.ErrAddress},
		{with(func(ch *mcast.Channel) { ch.Source = p.asm(2).Addr }), mcast.ErrAddress},
		{with(func(ch *mcast.Channel) { ch.Group.Interface = "nosuch0" }), mcast.ErrInterface},
		{with(func(ch *mcast.Channel) { ch.Group, ch.Source = p.ssm(1), netip.Addr{} }), mcast.ErrSSM},
		{mcast.Channel{}, mcast.ErrAddress},
	} {
		c, err := mcast.ListenChannel(test.ch, nil)
		var e *mcast.OpError
		if c != nil || !errors.Is(err, test.want) || !errors.As(err, &e) {
			t.Errorf("channel %d: %v, want %v", i, err, test.want)
		}
		// Nothing is left that would be in the way.
		if udp, err := net.ListenUDP(p.network(), &net.UDPAddr{Port: here.Port}); err != nil {
			t.Errorf("channel %d: %v", i, err)
		} else {
			udp.Close()
		}
	}
	// The configuration is that of Listen.
	called := 0
	c, err := mcast.ListenChannel(here, &mcast.Config{Control: func(string, string, syscall.RawConn) error { called++; return nil }})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if called != 1 {
		t.Errorf("Control was called %d times", called)
	}
}

// Config.Control is called once, before the socket is bound, and may end it.
func testControl(t *testing.T, p place) {
	port := p.port(t)
	for _, address := range []string{fmt.Sprint(":", port), netip.AddrPortFrom(p.asm(1).Addr, uint16(port)).String(), netip.AddrPortFrom(p.senders0(t), 0).String()} {
		var calls []string
		cfg := &mcast.Config{Control: func(network, address string, c syscall.RawConn) error {
			calls = append(calls, network+" "+address)
			bound := true
			if err := c.Control(func(fd uintptr) { bound = isBound(fd) }); err != nil {
				t.Error(err)
			}
			if bound {
				t.Error("the socket is bound already")
			}
			return nil
		}}
		c := p.listen(t, address, cfg)
		if len(calls) != 1 {
			t.Fatalf("%s: Control was called %d times: %q", address, len(calls), calls)
		}
		network, at, _ := strings.Cut(calls[0], " ")
		a, err := netip.ParseAddrPort(at)
		if network != p.network() || err != nil {
			t.Errorf("%s: Control was called with %q", address, calls[0])
		}
		switch want := c.LocalAddr().(*net.UDPAddr).AddrPort(); {
		case a.Addr().IsUnspecified() && runtime.GOOS == "windows": // where no socket is bound to a group
		case a.Addr() != want.Addr().Unmap() && !(a.Addr().IsUnspecified() && want.Addr().IsUnspecified()):
			t.Errorf("%s: Control was called with %q", address, calls[0])
		}
	}
	stop := errors.New("stop")
	port = p.port(t)
	c, err := mcast.Listen(p.network(), fmt.Sprint(":", port), &mcast.Config{Control: func(string, string, syscall.RawConn) error { return stop }})
	var e *mcast.OpError
	if c != nil || !errors.Is(err, stop) || !errors.As(err, &e) || e.Op != "Listen" {
		t.Errorf("Listen: %v, want what Control says", err)
	}
	if udp, err := net.ListenUDP(p.network(), &net.UDPAddr{Port: port}); err != nil {
		t.Errorf("the port is taken: %v", err)
	} else {
		udp.Close()
	}
	// New does not call it.
	udp, err := net.ListenUDP(p.network(), nil)
	if err != nil {
		t.Fatal(err)
	}
	c, err = mcast.New(udp, &mcast.Config{Control: func(string, string, syscall.RawConn) error { return stop }})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func testSetReadBuffer(t *testing.T, p place) {
	c := p.listen(t, ":0", &mcast.Config{ReadBuffer: 1 << 16})
	before := c.Stats().ReadBuffer
	if before == 0 {
		t.Skip("this system does not tell")
	}
	if err := c.SetReadBuffer(1 << 17); err != nil {
		t.Fatal(err)
	}
	if after := c.Stats().ReadBuffer; after < before || after < 1<<17 {
		t.Errorf("%d bytes are granted, %d before", after, before)
	}
	for _, n := range []int{0, -1} {
		was := c.Stats().ReadBuffer
		var e *mcast.OpError
		if err := c.SetReadBuffer(n); !errors.Is(err, os.ErrInvalid) || !errors.As(err, &e) || e.Op != "SetReadBuffer" {
			t.Errorf("SetReadBuffer(%d): %v", n, err)
		}
		if now := c.Stats().ReadBuffer; now != was {
			t.Errorf("%d bytes after a refusal, %d before", now, was)
		}
	}
	c.Close()
	if err := c.SetReadBuffer(1 << 17); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// A socket that has memberships already keeps them, and its Conn has nothing to
// do with them: it hands over nothing of them, and undoes none.
func testNewWithMemberships(t *testing.T, p place) {
	udp, err := net.ListenUDP(p.network(), &net.UDPAddr{Port: p.port(t)})
	if err != nil {
		t.Fatal(err)
	}
	theirs, ours := p.asm(1), p.asm(2)
	join := func(g mcast.Group, leave bool) error {
		to := &net.UDPAddr{IP: g.Addr.AsSlice()}
		switch four, six := ipv4.NewPacketConn(udp), ipv6.NewPacketConn(udp); {
		case p.six && leave:
			return six.LeaveGroup(p.ifi, to)
		case p.six:
			return six.JoinGroup(p.ifi, to)
		case leave:
			return four.LeaveGroup(p.ifi, to)
		default:
			return four.JoinGroup(p.ifi, to)
		}
	}
	if err := join(theirs, false); err != nil {
		t.Fatal(err)
	}
	c, err := mcast.New(udp, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := p.scene(t, c, true, ours, theirs)
	// SystemFilter speaks of what the Conn has asked for.
	s.groups = []mcast.Group{ours}
	hears := func(want ...mcast.Membership) {
		t.Helper()
		s.state(want...)
		s.groups = append(s.groups, theirs)
		s.traffic(want...)
		s.groups = s.groups[:1]
	}
	hears()
	if err := c.Join(ours); err != nil {
		t.Fatal(err)
	}
	hears(p.membership(ours, "E")...)
	for range 2 {
		for name, test := range map[string]struct {
			err  error
			want error
		}{
			"Join":              {c.Join(theirs), mcast.ErrJoined},
			"JoinSource":        {c.JoinSource(theirs, p.source(0)), mcast.ErrJoined},
			"SetFilter INCLUDE": {c.SetFilter(theirs, mcast.Include, p.source(0)), mcast.ErrJoined},
			"SetFilter EXCLUDE": {c.SetFilter(theirs, mcast.Exclude), mcast.ErrJoined},
			"Block":             {c.Block(theirs, p.source(0)), mcast.ErrNotJoined},
			"Leave":             {c.Leave(theirs), mcast.ErrNotJoined},
			"LeaveSource":       {c.LeaveSource(theirs, p.source(0)), mcast.ErrNotJoined},
			"nothing":           {c.SetFilter(theirs, mcast.Include), nil},
		} {
			if !errors.Is(test.err, test.want) {
				t.Errorf("%s: %v, want %v", name, test.err, test.want)
			}
			if test.want == mcast.ErrJoined && !strings.Contains(test.err.Error(), "not made here") {
				t.Errorf("%s: it does not say whose the membership is: %v", name, test.err)
			}
		}
		hears(p.membership(ours, "E")...)
		if err := c.Repair(); err != nil { // makes anew what is the Conn's
			t.Error(err)
		}
	}
	// It is there still: it can be left once, where it was made.
	if err := join(theirs, true); err != nil {
		t.Errorf("their membership was undone: %v", err)
	}
	if err := c.JoinSource(theirs, p.source(0)); err != nil {
		t.Errorf("after they left: %v", err)
	}
	s.groups = []mcast.Group{ours, theirs}
	s.check(memberships(map[mcast.Group]mcast.Membership{ours: p.membership(ours, "E")[0], theirs: p.membership(theirs, "Ia")[0]})...)
}

// A socket of IPv6 that is bound to an IPv4 group is for IPv4.
func testNewMapped(t *testing.T, p place) {
	if p.six || runtime.GOOS == "windows" {
		t.Skip("this is about IPv4 groups, and systems that bind to them")
	}
	udp := mappedSocket(t, p.asm(1).Addr)
	defer udp.Close()
	c, err := mcast.New(udp, nil)
	var e *mcast.OpError
	if c != nil || !errors.Is(err, mcast.ErrAddress) || !errors.As(err, &e) || e.Op != "New" {
		t.Errorf("%v, want ErrAddress", err)
	}
	if err := udp.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Errorf("the socket is not as it was: %v", err)
	}
}
