//go:build !plan9

package mcast_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/mcast"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

func testSending(t *testing.T, p place) {
	c := p.listen(t, ":0", nil)
	opError := func(what string, err, want error, op string) {
		t.Helper()
		var e *mcast.OpError
		if !errors.Is(err, want) || !errors.As(err, &e) || e.Op != op || !strings.Contains(err.Error(), op) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if ttl, err := c.MulticastTTL(); err != nil || ttl != 1 {
		t.Errorf("TTL %d, %v at first", ttl, err)
	}
	for _, ttl := range []int{0, 255, 7} {
		if err := c.SetMulticastTTL(ttl); err != nil {
			t.Error(err)
		}
		if got, err := c.MulticastTTL(); err != nil || got != ttl {
			t.Errorf("TTL %d, %v, want %d", got, err, ttl)
		}
	}
	for _, ttl := range []int{-1, 256, 1 << 30} {
		opError(fmt.Sprint("TTL ", ttl), c.SetMulticastTTL(ttl), os.ErrInvalid, "SetMulticastTTL")
		if got, err := c.MulticastTTL(); err != nil || got != 7 {
			t.Errorf("TTL %d, %v after a refusal", got, err)
		}
	}

	t.Run("no interface set", func(t *testing.T) {
		c := p.listen(t, ":0", nil)
		if name, err := c.MulticastInterface(); err != nil || name != "" {
			t.Errorf("interface %q, %v at first", name, err)
		}
		if err := errors.Join(c.SetMulticastInterface(p.ifi.Name), c.SetMulticastInterface("")); err != nil {
			t.Error(err)
		}
		if name, err := c.MulticastInterface(); err != nil || name != "" {
			t.Errorf("interface %q, %v, want none again", name, err)
		}
	})
	for _, ifname := range []string{p.ifi.Name, fmt.Sprint(p.ifi.Index)} {
		if err := c.SetMulticastInterface(ifname); err != nil {
			t.Error(err)
		}
		if name, err := c.MulticastInterface(); err != nil || name != p.ifi.Name {
			t.Errorf("interface %q, %v, want %q", name, err, p.ifi.Name)
		}
	}
	for _, ifname := range []string{"nosuch0", "*", "0", "1048576", "-1"} {
		opError("interface "+ifname, c.SetMulticastInterface(ifname), mcast.ErrInterface, "SetMulticastInterface")
		if name, err := c.MulticastInterface(); err != nil || name != p.ifi.Name {
			t.Errorf("interface %q, %v after a refusal", name, err)
		}
	}

	t.Run("set before New", func(t *testing.T) {
		if runtime.GOOS == "windows" || !p.six && runtime.GOOS == "linux" {
			t.Skip("the system does not tell it as it was set")
		}
		udp, err := net.ListenUDP(p.network(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if p.six {
			err = ipv6.NewPacketConn(udp).SetMulticastInterface(p.ifi)
		} else {
			err = ipv4.NewPacketConn(udp).SetMulticastInterface(p.ifi)
		}
		if err != nil {
			t.Fatal(err)
		}
		c, err := mcast.New(udp, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if name, err := c.MulticastInterface(); name != p.ifi.Name || err != nil {
			t.Errorf("interface %q, %v, want %q", name, err, p.ifi.Name)
		}
		if err := c.SetMulticastInterface(""); err != nil {
			t.Error(err)
		}
		if name, err := c.MulticastInterface(); name != "" || err != nil {
			t.Errorf("interface %q, %v, want none", name, err)
		}
	})
	if on, err := c.MulticastLoopback(); err != nil || !on {
		t.Errorf("loopback %v, %v at first", on, err)
	}
	for _, on := range []bool{false, true} {
		if err := c.SetMulticastLoopback(on); err != nil {
			t.Error(err)
		}
		if got, err := c.MulticastLoopback(); err != nil || got != on {
			t.Errorf("loopback %v, %v, want %v", got, err, on)
		}
	}

	p.needsSenders(t, 1)
	if p.open != nil {
		t.Skip("the senders are on another host")
	}
	g := p.asm(1)
	s := p.scene(t, p.listen(t, ":0", nil), true, g)
	if err := s.c.Join(g); err != nil {
		t.Fatal(err)
	}
	s.c.SetReadDeadline(time.Now().Add(10 * time.Second))
	to := netip.AddrPortFrom(g.Addr, s.port)
	from := s.senders[0]
	next := func(want string) {
		t.Helper()
		m := mcast.Message{Buf: make([]byte, 100)}
		if err := s.c.ReadMessage(&m); err != nil || string(m.Buf[:m.N]) != want || m.Source != from.from {
			t.Errorf("%q from %v, %v, want %q", m.Buf[:m.N], m.Source, err, want)
		}
	}
	if n, err := from.WriteTo([]byte("WriteTo"), net.UDPAddrFromAddrPort(to)); n != 7 || err != nil {
		t.Error(n, err)
	}
	next("WriteTo")
	if n, err := from.WriteToUDPAddrPort([]byte("AddrPort"), to); n != 8 || err != nil {
		t.Error(n, err)
	}
	next("AddrPort")
	if runtime.GOOS == "windows" {
		t.Skip("on Windows the loopback option is the receiver's")
	}
	if err := from.SetMulticastLoopback(false); err != nil {
		t.Fatal(err)
	}
	if p.ifi.Flags&net.FlagLoopback == 0 {
		from.send(t, to, "not looped back")
	}
	if err := from.SetMulticastLoopback(true); err != nil {
		t.Fatal(err)
	}
	from.send(t, to, "looped back")
	next("looped back")
}

// WriteVia sends one datagram by an interface, from an address, or both, and
// changes nothing for others. What the system cannot do is an error, and nothing
// is sent.
func testWriteVia(t *testing.T, p place) {
	p.needsSenders(t, 1)
	if p.open != nil {
		t.Skip("the senders are on another host")
	}
	c := p.listen(t, ":0", nil)
	if err := c.SetMulticastInterface(p.ifi.Name); err != nil {
		t.Fatal(err)
	}
	g := p.asm(1)
	s := p.scene(t, p.listen(t, ":0", &mcast.Config{Unicast: true}), true, g)
	if err := s.c.Join(g); err != nil {
		t.Fatal(err)
	}
	s.c.SetReadDeadline(time.Now().Add(20 * time.Second))
	group, here := netip.AddrPortFrom(g.Addr, s.port), netip.AddrPortFrom(p.senders[0], s.port)
	next := func(what, payload string, source netip.Addr, to netip.Addr) {
		t.Helper()
		m := mcast.Message{Buf: make([]byte, 100)}
		if err := s.c.ReadMessage(&m); err != nil || string(m.Buf[:m.N]) != payload {
			t.Fatalf("%s: heard %q, %v, want %q", what, m.Buf[:m.N], err, payload)
		}
		if source.IsValid() && m.Source != netip.AddrPortFrom(source, uint16(localPort(c))) || m.Group.Addr != to {
			t.Errorf("%s: from %v to %v, want from %v to %v", what, m.Source, m.Group, source, to)
		}
		if to.IsMulticast() && (m.Group != g || m.Index != p.ifi.Index) {
			t.Errorf("%s: came in by %v, %d", what, m.Group, m.Index)
		}
	}
	fence := 0
	silence := func(what string) {
		t.Helper()
		fence++
		s.senders[0].send(t, group, fmt.Sprint("fence ", fence))
		m := mcast.Message{Buf: make([]byte, 100)}
		if err := s.c.ReadMessage(&m); err != nil || string(m.Buf[:m.N]) != fmt.Sprint("fence ", fence) {
			t.Errorf("%s: heard %q, %v, want nothing", what, m.Buf[:m.N], err)
		}
	}
	var none netip.Addr
	number := fmt.Sprint(p.ifi.Index)
	sources := append([]netip.Addr{none}, p.senders...)
	if onWine() {
		sources = sources[:1] // it looks at no control messages of what is sent
	}
	for _, source := range sources {
		for _, ifname := range []string{"", p.ifi.Name, number} {
			for _, to := range []netip.AddrPort{group, here} {
				if onWine() && !p.six && to == group {
					continue // it takes the address that a socket is bound to for an interface
				}
				what := fmt.Sprintf("by %q from %v to %v", ifname, source, to)
				n, err := c.WriteVia([]byte(what), to, ifname, source)
				if errors.Is(err, errors.ErrUnsupported) && runtime.GOOS != "linux" && (ifname != "" || source.IsValid()) {
					t.Log(err)
					silence(what)
					continue
				}
				if n != len(what) || err != nil {
					t.Fatalf("%s: %d, %v", what, n, err)
				}
				next(what, what, source, to.Addr())
			}
		}
	}
	// Others are sent as before.
	if _, err := c.WriteToUDPAddrPort([]byte("as before"), group); err != nil {
		t.Error(err)
	}
	next("afterwards", "as before", none, g.Addr)
	if name, err := c.MulticastInterface(); name != p.ifi.Name || err != nil {
		t.Errorf("interface %q, %v afterwards", name, err)
	}

	other, otherGroup := netip.MustParseAddr("2001:db8::9"), netip.MustParseAddrPort("[ff1e::9]:5000")
	if p.six {
		other, otherGroup = netip.MustParseAddr("192.0.2.9"), netip.MustParseAddrPort("239.1.1.1:5000")
	}
	for what, test := range map[string]struct {
		to     netip.AddrPort
		ifname string
		from   netip.Addr
		want   error
	}{
		"no such interface":          {group, "nosuch0", none, mcast.ErrInterface},
		"no such index":              {group, "1048576", none, mcast.ErrInterface},
		"every interface":            {group, "*", none, mcast.ErrInterface},
		"a source of another family": {group, "", other, mcast.ErrAddress},
		"a group of another family":  {otherGroup, p.ifi.Name, none, mcast.ErrAddress},
		"no destination":             {netip.AddrPort{}, p.ifi.Name, none, mcast.ErrAddress},
		"an address of nobody":       {group, p.ifi.Name, p.source(7), nil},
	} {
		if test.want == nil && onWine() {
			continue
		}
		n, err := c.WriteVia([]byte("refused"), test.to, test.ifname, test.from)
		var e *net.OpError
		if n != 0 || err == nil || test.want != nil && !errors.Is(err, test.want) || !errors.As(err, &e) || e.Op != "write" {
			t.Errorf("%s: %d, %v, want %v", what, n, err, test.want)
		}
		silence(what)
	}
	c.SetWriteDeadline(time.Now().Add(-time.Second))
	_, err := c.WriteVia([]byte("late"), group, p.ifi.Name, none)
	wantTimeout(t, "WriteVia", err)
	c.Close()
	if _, err := c.WriteVia([]byte("closed"), group, p.ifi.Name, none); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func testWriteBatch(t *testing.T, p place) {
	p.needsSenders(t, 1)
	g, h := p.asm(1), p.asm(2)
	s := p.scene(t, p.listen(t, fmt.Sprint(":", p.port(t)), &mcast.Config{Unicast: true}), true, g, h)
	if err := s.c.Join(g); err != nil {
		t.Fatal(err)
	}
	s.c.SetReadDeadline(time.Now().Add(20 * time.Second))
	from := s.senders[0]
	next := func(want string, to netip.Addr) {
		t.Helper()
		m := mcast.Message{Buf: make([]byte, 2000)}
		if err := s.c.ReadMessage(&m); err != nil || string(m.Buf[:m.N]) != want || m.Source != from.from || m.Group.Addr != to {
			t.Fatalf("heard %q from %v to %v, %v, want %q to %v", m.Buf[:m.N], m.Source, m.Group, err, want, to)
		}
	}
	message := func(to netip.Addr, ifname, payload string) mcast.Message {
		return mcast.Message{
			Buf: []byte(payload + " and more"), N: len(payload), Group: mcast.Group{Addr: to, Interface: ifname}, Port: int(s.port),
			Source: netip.MustParseAddrPort("192.0.2.1:9"), Index: 77, Truncated: true,
		} // of no interest
	}
	for _, ms := range [][]mcast.Message{nil, {}} {
		if n, err := from.WriteBatch(ms); n != 0 || err != nil {
			t.Errorf("no messages: %d, %v", n, err)
		}
	}
	// Many, of which few are heard; more than one system call takes. Sizes and
	// destinations go together, and apart.
	for _, total := range []int{1, 2, 30, 1024, 1025, 2100} {
		var ms []mcast.Message
		var want []string
		for i := range total {
			payload := fmt.Sprint("datagram ", i, strings.Repeat("x", i/50%3))
			if i%20 == 0 || i > total-5 {
				want = append(want, payload)
				ms = append(ms, message(g.Addr, "", payload))
			} else {
				ms = append(ms, message(h.Addr, "", payload))
			}
		}
		if n, err := from.WriteBatch(ms); n != total || err != nil {
			t.Fatalf("%d of %d, %v", n, total, err)
		}
		for _, payload := range want {
			next(payload, g.Addr)
		}
	}
	// One flow, in order: the same size, a shorter one, none at all.
	var ms []mcast.Message
	var want []string
	for i, size := range []int{100, 100, 100, 40, 100, 0, 100, 100, 0, 0, 1400, 1400, 1400, 1, 100} {
		want = append(want, strings.Repeat(string(rune('a'+i)), size))
		ms = append(ms, message(g.Addr, "", want[i]))
	}
	if n, err := from.WriteBatch(ms); n != len(ms) || err != nil {
		t.Fatal(n, err)
	}
	for _, payload := range want {
		next(payload, g.Addr)
	}
	// Unicast, and by an interface.
	if p.open == nil {
		ms := []mcast.Message{message(p.senders[0], "", "unicast"), message(g.Addr, p.ifi.Name, "by name"), message(g.Addr, fmt.Sprint(p.ifi.Index), "by index"), message(p.senders[0], "", "again")}
		n, err := from.WriteBatch(ms)
		if n == 1 && errors.Is(err, errors.ErrUnsupported) && runtime.GOOS != "linux" {
			next("unicast", p.senders[0])
		} else if n != len(ms) || err != nil {
			t.Fatal(n, err)
		} else {
			next("unicast", p.senders[0])
			next("by name", g.Addr)
			next("by index", g.Addr)
			next("again", p.senders[0])
		}
	}
	// The error is about the next one: those before were sent, the rest not.
	other := netip.MustParseAddr("ff1e::9")
	if p.six {
		other = netip.MustParseAddr("239.1.1.1")
	}
	for what, bad := range map[string]struct {
		change func(*mcast.Message)
		want   error
	}{
		"more than there is":  {func(m *mcast.Message) { m.N = len(m.Buf) + 1 }, os.ErrInvalid},
		"beyond the capacity": {func(m *mcast.Message) { m.N = 1 << 20 }, os.ErrInvalid},
		"less than nothing":   {func(m *mcast.Message) { m.N = -1 }, os.ErrInvalid},
		"port -1":             {func(m *mcast.Message) { m.Port = -1 }, os.ErrInvalid},
		"port 65536":          {func(m *mcast.Message) { m.Port = 65536 + int(s.port) }, os.ErrInvalid},
		"no address":          {func(m *mcast.Message) { m.Group.Addr = netip.Addr{} }, mcast.ErrAddress},
		"another family":      {func(m *mcast.Message) { m.Group.Addr = other }, mcast.ErrAddress},
		"no such interface":   {func(m *mcast.Message) { m.Group.Interface = "nosuch0" }, mcast.ErrInterface},
		"every interface":     {func(m *mcast.Message) { m.Group.Interface = "*" }, mcast.ErrInterface},
		"too long":            {func(m *mcast.Message) { m.Buf = make([]byte, 1<<16); m.N = len(m.Buf) }, nil},
	} {
		for _, at := range []int{0, 1, 5, 1030} {
			ms = ms[:0]
			for i := range at + 3 {
				to := h.Addr
				if i+3 > at {
					to = g.Addr
				}
				ms = append(ms, message(to, "", fmt.Sprint(what, " ", i)))
			}
			bad.change(&ms[at])
			n, err := from.WriteBatch(ms)
			var e *net.OpError
			if n != at || err == nil || bad.want != nil && !errors.Is(err, bad.want) || !errors.As(err, &e) || e.Op != "write" {
				t.Fatalf("%s at %d: %d, %v, want %v", what, at, n, err, bad.want)
			}
			for i := max(at-2, 0); i < at; i++ {
				next(fmt.Sprint(what, " ", i), g.Addr)
			}
		}
	}
	s.check(p.membership(g, "E")...)

	t.Run("together", func(t *testing.T) {
		const writers, rounds, each = 4, 20, 8
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for r := range rounds {
					var ms []mcast.Message
					for i := range each {
						ms = append(ms, message(g.Addr, "", fmt.Sprint(w, " ", r*each+i)))
					}
					if n, err := from.WriteBatch(ms); n != each || err != nil {
						t.Error(n, err)
					}
				}
			})
		}
		wg.Wait()
		var last [writers]int
		for range writers * rounds * each {
			m := mcast.Message{Buf: make([]byte, 100)}
			if err := s.c.ReadMessage(&m); err != nil {
				t.Fatal(err)
			}
			var w, n int
			if _, err := fmt.Sscan(string(m.Buf[:m.N]), &w, &n); err != nil || n != last[w] {
				t.Fatalf("heard %q, %v, want %d", m.Buf[:m.N], err, last[w])
			}
			last[w]++
		}
	})
	t.Run("allocates", func(t *testing.T) {
		if runtime.GOOS != "linux" || raceEnabled() {
			t.Skip("only Linux sends many at once, and the race detector allocates")
		}
		ms := make([]mcast.Message, 40)
		for i := range ms {
			ms[i] = message(h.Addr, "", "nobody hears it")
		}
		if n := allocsPerRun(50, func() {
			if n, err := from.WriteBatch(ms); n != len(ms) || err != nil {
				t.Fatal(n, err)
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
	from.SetWriteDeadline(time.Now().Add(-time.Second))
	n, err := from.WriteBatch([]mcast.Message{message(g.Addr, "", "late")})
	if wantTimeout(t, "WriteBatch", err); n != 0 {
		t.Errorf("%d were sent late", n)
	}
	from.Close()
	if n, err := from.WriteBatch([]mcast.Message{message(g.Addr, "", "closed")}); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %d, %v", n, err)
	}
}
