package amt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/mcast"
	"example.com/mcast/internal/amtrelay"
)

var (
	channelGroup  = mcast.Group{Addr: netip.MustParseAddr("232.1.1.1")}
	channelSource = netip.MustParseAddr("10.1.0.2")
)

// bubble runs a test with a network whose clock is a fake one.
func bubble(t *testing.T, f func(t *testing.T, n *network)) {
	synctest.Test(t, func(t *testing.T) { f(t, newNetwork(1)) })
}

func closeAll(t *testing.T, n *network, gateways ...*Gateway) {
	t.Helper()
	for _, g := range gateways {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, p := range n.problems() {
		t.Error(p)
	}
	time.Sleep(time.Minute) // what is still on its way
}

func TestDial(t *testing.T) {
	for name, c := range map[string]struct {
		relay string
		cfg   amtrelay.Config
		want  error
	}{
		"an address":      {relay: "198.51.100.1"},
		"with a port":     {relay: relay1},
		"IPv6":            {relay: "2001:db8:1::1"},
		"IPv6 in []":      {relay: "[2001:db8:1::1]"},
		"IPv6 and a port": {relay: "[2001:db8:1::1]:2268"},
		"no IGMP":         {relay: relay1, cfg: amtrelay.Config{NoIGMP: true}},
		"no MLD":          {relay: relay1, cfg: amtrelay.Config{NoMLD: true}},
		"Linux":           {relay: relay1, cfg: amtrelay.Config{LinuxFlags: true, HideAddress: true}},
		"silent":          {relay: relay1, cfg: amtrelay.Config{Down: true}, want: ErrNoRelay},
		"refuses":         {relay: relay1, cfg: amtrelay.Config{Limit: true}, want: ErrRefused},
		"another port":    {relay: "198.51.100.1:2269", want: context.DeadlineExceeded},
		"nobody":          {relay: "198.51.100.77", want: ErrNoRelay},
		"a group":         {relay: "232.1.1.1", want: mcast.ErrAddress},
		"port 0":          {relay: "198.51.100.1:0", want: mcast.ErrAddress},
		"no port":         {relay: "relay.example.net:port", want: mcast.ErrAddress},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, n *network) {
				n.relay(relay1, c.cfg)
				n.relay("[2001:db8:1::1]:2268", c.cfg)
				g := n.gateway(t, nil)
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				err := g.dial(ctx, c.relay)
				if !errors.Is(err, c.want) {
					t.Fatalf("%v; want %v", err, c.want)
				}
				if err == nil {
					if relays := g.Relays(); len(relays) != 1 || !strings.Contains(c.relay, relays[0].Addr().String()) {
						t.Errorf("relays %v", relays)
					}
					closeAll(t, n, g)
				}
				g.Close()
				time.Sleep(time.Minute)
			})
		})
	}
	if _, err := Dial(t.Context(), relay1, &Config{Network: "tcp"}); !errors.As(err, new(net.UnknownNetworkError)) {
		t.Error(err)
	}
	if _, err := Dial(t.Context(), "", &Config{Ports: []int{0}}); !errors.Is(err, mcast.ErrAddress) {
		t.Error(err)
	}
	var e *mcast.OpError
	if _, err := Dial(t.Context(), relay1, &Config{Network: "udp6"}); !errors.Is(err, mcast.ErrAddress) || !errors.As(err, &e) || e.Op != "Dial" {
		t.Error(err)
	}
}

func TestReading(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		n.relay(relay1, amtrelay.Config{})
		g := n.dialled(t, &Config{Ports: []int{5000, 6000}}, relay1)
		if err := g.JoinSource(channelGroup, channelSource); err != nil {
			t.Fatal(err)
		}
		if ms := g.Memberships(); len(ms) != 1 || !ms[0].Pending {
			t.Errorf("%v", ms)
		}
		time.Sleep(time.Second)
		if ms := g.Memberships(); len(ms) != 1 || ms[0].Pending || ms[0].Group.Interface != Interface {
			t.Errorf("%v", ms)
		}
		send := func(port uint16, text string) {
			n.forward(amtrelay.UDP(netip.AddrPortFrom(channelSource, 4711), netip.AddrPortFrom(channelGroup.Addr, port), 9, []byte(text)))
			time.Sleep(time.Millisecond)
		}
		send(5000, "one")
		send(5001, "to another port")
		send(6000, "two")
		send(5000, "three, which is too long")
		m := mcast.Message{Buf: make([]byte, 5)}
		for _, want := range []mcast.Message{
			{N: 3, Port: 5000}, {N: 3, Port: 6000}, {N: 5, Port: 5000, Truncated: true},
		} {
			if err := g.ReadMessage(&m); err != nil {
				t.Fatal(err)
			}
			want.Buf, want.HopLimit, want.Source = m.Buf, 9, netip.AddrPortFrom(channelSource, 4711)
			want.Group = mcast.Group{Addr: channelGroup.Addr, Interface: Interface}
			if fmt.Sprintf("%+v", m) != fmt.Sprintf("%+v", want) {
				t.Errorf("%+v; want %+v", m, want)
			}
		}
		if s := g.Stats(); s.Received != 3 || s.Filtered != 1 || s.ReadBuffer == 0 {
			t.Errorf("%+v", s)
		}

		// Deadlines: of a read under way, one in the past, none.
		start := time.Now()
		g.SetReadDeadline(start.Add(3 * time.Second))
		if err := g.ReadMessage(&m); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if err := g.ReadMessage(&m); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		g.SetReadDeadline(time.Time{})
		time.AfterFunc(time.Second, func() { g.SetReadDeadline(time.Unix(1, 0)) })
		var netError net.Error
		if err := g.ReadMessage(&m); !errors.As(err, &netError) || !netError.Timeout() {
			t.Error(err)
		}
		g.SetReadDeadline(time.Now().Add(time.Hour))

		// Messages end with their context, and nobody else's reads.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var others sync.WaitGroup
		for range 3 {
			others.Go(func() {
				m := mcast.Message{Buf: make([]byte, 5)}
				if err := g.ReadMessage(&m); err != nil {
					t.Error(err)
				}
			})
		}
		for m, err := range g.Messages(ctx, 100) {
			t.Errorf("%v, %v", m, err)
		}
		for range 3 {
			send(5000, "x")
		}
		others.Wait()
		send(5000, "left")
		g.Leave(channelGroup)
		g.SetReadDeadline(time.Now().Add(time.Second))
		if err := g.ReadMessage(&m); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q after Leave, %v", m.Buf[:m.N], err)
		}
		g.SetReadDeadline(time.Time{})

		var reader sync.WaitGroup
		reader.Go(func() {
			for _, err := range g.Messages(context.Background(), 100) {
				if !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
			}
		})
		synctest.Wait()
		closeAll(t, n, g)
		reader.Wait()
		if _, err := g.ReadBatch(make([]mcast.Message, 1)); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		if err := g.SetReadDeadline(time.Now()); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
}

// What a program does not read fills the buffers, and the tunnel stays up all
// the same.
func TestNobodyReads(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		r := n.relay(relay1, amtrelay.Config{})
		g := n.dialled(t, nil, relay1)
		g.JoinSource(channelGroup, channelSource)
		time.Sleep(time.Second)
		for i := range 3600 * 10 {
			n.forward(udp(channelSource, channelGroup.Addr, i))
			time.Sleep(100 * time.Millisecond)
		}
		if c := r.Counts(); len(g.Relays()) != 1 || c.Requests > 40 || c.Discoveries != 1 {
			t.Errorf("%v, %+v", g.Relays(), c)
		}
		// Then it reads, and hears what is sent now.
		m := mcast.Message{Buf: make([]byte, 100)}
		g.SetReadDeadline(time.Now().Add(time.Minute))
		n.forward(udp(channelSource, channelGroup.Addr, 99999))
		for {
			if err := g.ReadMessage(&m); err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(string(m.Buf[:m.N]), " 99999") {
				break
			}
		}
		if s := g.Stats(); s.Unread == 0 || s.Received+s.Unread+s.Dropped != 36001 {
			t.Errorf("%+v", s)
		}
		closeAll(t, n, g)
	})
}

// The errors are those of a Conn, with the same words and numbers.
func TestRequestErrors(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		n.relay(relay1, amtrelay.Config{})
		g := n.dialled(t, nil, relay1)
		asm, ssm := mcast.Group{Addr: groupOf(false, 1)}, channelGroup
		source := channelSource
		for _, c := range []struct {
			name string
			err  error
			want error
		}{
			{"Join of SSM", g.Join(ssm), mcast.ErrSSM},
			{"SetFilter of SSM", g.SetFilter(ssm, mcast.Exclude), mcast.ErrSSM},
			{"Leave of nothing", g.Leave(asm), mcast.ErrNotJoined},
			{"Join", g.Join(asm), nil},
			{"Join again", g.Join(mcast.Group{Addr: asm.Addr, Interface: Interface}), mcast.ErrJoined},
			{"JoinSource of ASM", g.JoinSource(asm, source), mcast.ErrMode},
			{"Unblock", g.Unblock(asm, source), mcast.ErrNotBlocked},
			{"Block", g.Block(asm, source), nil},
			{"Block again", g.Block(asm, source), mcast.ErrBlocked},
			{"Unblock", g.Unblock(asm, source), nil},
			{"Leave", g.Leave(asm), nil},
			{"JoinSource", g.JoinSource(ssm, source), nil},
			{"JoinSource again", g.JoinSource(ssm, source), mcast.ErrJoined},
			{"JoinSource of the other family", g.JoinSource(ssm, port6.Addr()), mcast.ErrAddress},
			{"LeaveSource", g.LeaveSource(ssm, source), nil},
			{"LeaveSource again", g.LeaveSource(ssm, source), mcast.ErrNotJoined},
			{"an interface", g.Join(mcast.Group{Addr: asm.Addr, Interface: "eth0"}), mcast.ErrInterface},
			{"every interface", g.Join(mcast.Group{Addr: asm.Addr, Interface: "*"}), mcast.ErrInterface},
			{"unicast", g.Join(mcast.Group{Addr: source}), mcast.ErrAddress},
			{"no group", g.Join(mcast.Group{}), mcast.ErrAddress},
			{"link-local", g.Join(mcast.Group{Addr: netip.MustParseAddr("224.0.0.251")}), mcast.ErrAddress},
			{"link-local IPv6", g.Join(mcast.Group{Addr: netip.MustParseAddr("ff02::fb")}), mcast.ErrAddress},
		} {
			if !errors.Is(c.err, c.want) {
				t.Errorf("%s: %v; want %v", c.name, c.err, c.want)
			}
			var e *mcast.OpError
			if c.want != nil && (!errors.As(c.err, &e) || !strings.HasPrefix(c.name, e.Op) && !strings.Contains("Join", e.Op)) {
				t.Errorf("%s: %#v", c.name, c.err)
			}
		}
		var f mcast.Filter
		inFilter := mcast.Group{Addr: asm.Addr, Interface: Interface}
		want := f.Apply(mcast.Request{Op: mcast.OpBlock, Group: inFilter, Source: source})
		if got := g.Block(asm, source); got == nil || got.Error() != want.Error() {
			t.Errorf("%v; a Filter says %v", got, want)
		}
		closeAll(t, n, g)
		for name, err := range map[string]error{"Join": g.Join(asm), "SetFilter": g.SetFilter(asm, mcast.Exclude), "Repair": g.Repair(), "Close": g.Close()} {
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s after Close: %v", name, err)
			}
		}
		if ms := g.Memberships(); len(ms) != 0 {
			t.Errorf("%v after Close", ms)
		}
	})
}

func TestEvents(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		r := n.relay(relay1, amtrelay.Config{QueryInterval: 20 * time.Second})
		var mu sync.Mutex
		var kinds []EventKind
		var g *Gateway
		g = n.dialled(t, &Config{OnEvent: func(e Event) {
			mu.Lock()
			defer mu.Unlock()
			kinds = append(kinds, e.Kind)
			g.Memberships() // no lock is held
		}}, relay1)
		g.JoinSource(channelGroup, channelSource)
		time.Sleep(time.Second)
		n.rebind()
		time.Sleep(30 * time.Second)
		r.Configure(func(c *amtrelay.Config) { c.Down = true })
		time.Sleep(time.Minute)
		closeAll(t, n, g)
		if want := []EventKind{EventRelayFound, EventTunnelUp, EventNewAddress, EventRelayLost}; !slices.Equal(kinds, want) {
			t.Errorf("%v; want %v", kinds, want)
		}
	})
}

func TestRepair(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		r := n.relay(relay1, amtrelay.Config{QueryInterval: time.Hour})
		g := n.dialled(t, nil, relay1)
		g.JoinSource(channelGroup, channelSource)
		time.Sleep(time.Second)
		r.Restart()
		n.rebind()
		if err := g.Repair(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		if len(r.Endpoints(time.Now())) != 1 {
			t.Error("the relay does not know the Gateway")
		}
		closeAll(t, n, g)
		if len(r.Endpoints(time.Now())) != 0 {
			t.Error("the relay still knows the Gateway after Close")
		}
	})
}

// A Gateway without privileges or a relay model in the way: real sockets on
// loopback.
func TestLoopback(t *testing.T) {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	at := c.LocalAddr().(*net.UDPAddr).AddrPort()
	r := amtrelay.New(amtrelay.Config{Advertise: at.Addr()}, func(to netip.AddrPort, b []byte) { c.WriteToUDPAddrPort(b, to) })
	go r.Serve(c)
	g, err := Dial(t.Context(), at.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := g.JoinSource(channelGroup, channelSource); err != nil {
		t.Fatal(err)
	}
	for len(r.Endpoints(time.Now())) == 0 {
		time.Sleep(time.Millisecond)
	}
	for i := range 100 {
		r.Forward(time.Now(), udp(channelSource, channelGroup.Addr, i))
	}
	i := 0
	for m, err := range g.Messages(t.Context(), 100) {
		if err != nil || !strings.HasSuffix(string(m.Buf[:m.N]), fmt.Sprint(" ", i)) {
			t.Fatalf("%v, %v", m, err)
		}
		if i++; i == 100 {
			break
		}
	}
	if relays := g.Relays(); len(relays) != 1 || relays[0] != at {
		t.Errorf("%v; want %v", relays, at)
	}
}
