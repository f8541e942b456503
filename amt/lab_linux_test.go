package amt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"example.com/mcast"
	"example.com/mcast/internal/amtrelay"
	"example.com/mcast/internal/netlab"
)

// A labRelay is the model relay on a host between the source and the NAT. It
// joins natively what its gateways want, and forwards that.
type labRelay struct {
	*amtrelay.Relay
	host *netlab.Host
	at   netip.AddrPort // for the NAT
	stop func()
}

// startLabRelay starts a relay that gateways reach at the address advertise.
func startLabRelay(t *testing.T, h *netlab.Host, at, advertise netip.Addr) *labRelay {
	t.Helper()
	r := &labRelay{host: h, at: netip.AddrPortFrom(at, Port)}
	var c *net.UDPConn
	var native [2]*mcast.Conn
	var err error
	h.Do(func() {
		if c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(r.at)); err != nil {
			return
		}
		for i, network := range []string{"udp4", "udp6"} {
			if native[i], err = mcast.Listen(network, ":5000", &mcast.Config{AnySource: true, NoWatch: true, HopLimit: true}); err != nil {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	r.Relay = amtrelay.New(amtrelay.Config{Advertise: advertise, QueryInterval: 2 * time.Second}, func(to netip.AddrPort, b []byte) { c.WriteToUDPAddrPort(b, to) })
	changed := make(chan struct{}, 1)
	done := make(chan struct{})
	r.OnChange = func() { signal(changed) }
	var running sync.WaitGroup
	running.Go(func() { r.Serve(c) })
	running.Go(func() { r.followWanted(t, native, changed, done) })
	for _, n := range native {
		running.Go(func() { r.forwardFrom(n) })
	}
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			close(done)
			c.Close()
			native[0].Close()
			native[1].Close()
			running.Wait()
		})
	}
	t.Cleanup(r.stop)
	return r
}

// followWanted joins and leaves what gateways want.
func (r *labRelay) followWanted(t *testing.T, native [2]*mcast.Conn, changed, done <-chan struct{}) {
	joined := make(map[netip.Addr]bool)
	for {
		still := make(map[netip.Addr]bool)
		for _, m := range r.Wanted(time.Now()) {
			mode := mcast.Include
			if m.Exclude {
				mode = mcast.Exclude
			}
			still[m.Group] = true
			if err := native[familyOf(m.Group)].SetFilter(mcast.Group{Addr: m.Group, Interface: "eth0"}, mode, m.Sources...); err != nil && !errors.Is(err, net.ErrClosed) { // it is being stopped
				t.Errorf("relay %s: %v", r.host.Name(), err)
			}
		}
		for g := range joined {
			if !still[g] {
				native[familyOf(g)].SetFilter(mcast.Group{Addr: g, Interface: "eth0"}, mcast.Include)
			}
		}
		joined = still
		select {
		case <-changed:
		case <-time.After(time.Second): // memberships run out, too
		case <-done:
			return
		}
	}
}

func (r *labRelay) forwardFrom(c *mcast.Conn) {
	m := mcast.Message{Buf: make([]byte, 1<<16)}
	for c.ReadMessage(&m) == nil {
		r.Forward(time.Now(), amtrelay.UDP(m.Source, netip.AddrPortFrom(m.Group.Addr, uint16(m.Port)), byte(m.HopLimit-1), m.Buf[:m.N]))
	}
}

// A labNAT translates what comes to an address of its inner side to a relay on
// the outer one, each client from a port of its own.
type labNAT struct {
	t     *testing.T
	host  *netlab.Host
	inner *net.UDPConn
	relay netip.AddrPort

	mu      sync.Mutex
	outer   map[netip.AddrPort]*net.UDPConn
	running sync.WaitGroup
}

func startLabNAT(t *testing.T, h *netlab.Host, at netip.Addr, relay netip.AddrPort) *labNAT {
	t.Helper()
	n := &labNAT{t: t, host: h, relay: relay, outer: make(map[netip.AddrPort]*net.UDPConn)}
	var err error
	h.Do(func() { n.inner, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, Port))) })
	if err != nil {
		t.Fatal(err)
	}
	n.running.Go(func() {
		b := make([]byte, 1<<16)
		for {
			k, from, err := n.inner.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if c := n.translate(from); c != nil {
				c.Write(b[:k])
			}
		}
	})
	t.Cleanup(func() {
		n.inner.Close()
		n.rebind()
		n.running.Wait()
	})
	return n
}

// translate returns the socket that a client has on the outer side.
func (n *labNAT) translate(from netip.AddrPort) *net.UDPConn {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c := n.outer[from]; c != nil {
		return c
	}
	var c *net.UDPConn
	var err error
	n.host.Do(func() { c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(n.relay)) })
	if err != nil {
		return nil
	}
	n.outer[from] = c
	n.running.Go(func() {
		b := make([]byte, 1<<16)
		for {
			k, err := c.Read(b)
			if err != nil {
				if opErr, ok := err.(*net.OpError); ok && opErr.Err == net.ErrClosed || !isUnreachable(err) {
					return
				}
				continue
			}
			n.inner.WriteToUDPAddrPort(b[:k], from)
		}
	})
	return c
}

// rebind forgets all clients: each gets another port.
func (n *labNAT) rebind() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for from, c := range n.outer {
		c.Close()
		delete(n.outer, from)
	}
}

// A labStream is a channel: datagrams with sequence numbers from a source that
// both relays hear, and what of them a Gateway hands over.
type labStream struct {
	group   netip.AddrPort
	source  netip.Addr
	senders []*netlab.Sender
	next    uint32

	mu   sync.Mutex
	seen map[uint32]int
	last uint32
	late int // came after one that was sent later
}

func (s *labStream) send(t *testing.T) {
	t.Helper()
	b := make([]byte, 1400)
	binary.BigEndian.PutUint32(b, s.next)
	s.next++
	for _, sender := range s.senders {
		if err := sender.Send(string(b)); err != nil {
			t.Fatal(err)
		}
	}
}

func (s *labStream) saw(n uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[n]++
	if n < s.last {
		s.late++
	}
	s.last = max(s.last, n)
}

// count returns how many numbers from first on were seen, and how many twice.
func (s *labStream) count(first uint32) (seen, twice, late int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, times := range s.seen {
		if n >= first {
			seen++
		}
		if times > 1 {
			twice++
		}
	}
	return seen, twice, s.late
}

// forget forgets what was seen, and returns the next number.
func (s *labStream) forget() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.seen)
	s.late = 0
	return s.next
}

// labStreams are one channel of IPv4 and one of IPv6.
type labStreams []*labStream

func (ss labStreams) send(t *testing.T, count int) {
	t.Helper()
	for range count {
		for _, s := range ss {
			s.send(t)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (ss labStreams) read(t *testing.T, g *Gateway) {
	for m, err := range g.Messages(context.Background(), 1<<16) {
		if err != nil {
			return
		}
		i := familyOf(m.Group.Addr)
		if s := ss[i]; m.Group.Addr != s.group.Addr() || m.Port != int(s.group.Port()) || m.Source.Addr() != s.source || m.HopLimit != 3 || m.N != 1400 {
			t.Errorf("%v: %d bytes, hop limit %d", m.Channel(), m.N, m.HopLimit)
		} else {
			s.saw(binary.BigEndian.Uint32(m.Buf))
		}
	}
}

// wantAll sends datagrams, each of which is to be seen once, in order.
func (ss labStreams) wantAll(t *testing.T, what string) {
	t.Helper()
	const count = 300
	var first [2]uint32
	for i, s := range ss {
		first[i] = s.forget()
	}
	ss.send(t, count)
	for end := time.Now().Add(5 * time.Second); ; {
		missing := false
		for i, s := range ss {
			seen, twice, late := s.count(first[i])
			missing = missing || seen < count
			if seen < count && time.Now().After(end) || twice > 0 || late > 0 {
				t.Errorf("%s: %v: %d of %d datagrams, %d of them twice, %d late", what, s.group, seen, count, twice, late)
				return
			}
		}
		if !missing {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// until sends until all streams are seen.
func (ss labStreams) until(t *testing.T, what string) {
	t.Helper()
	var first [2]uint32
	for i, s := range ss {
		first[i] = s.forget()
	}
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); {
		ss.send(t, 10)
		seen := 0
		for i, s := range ss {
			if n, _, _ := s.count(first[i]); n > 0 {
				seen++
			}
		}
		if seen == len(ss) {
			return
		}
	}
	t.Fatalf("%s: nothing is heard", what)
}

// A source, two relays, a NAT, and a gateway, each on a host of its own:
//
//	source ── relay1 ── nat ── local
//	      └── relay2 ──┘
func TestLab(t *testing.T) {
	netlab.Run(t, func(l *netlab.Lab) {
		source, nat, local := l.Host("source"), l.Host("nat"), l.Local()
		if !local.HasIPv6() {
			t.Skip("this kernel has no IPv6")
		}
		relayHosts := []*netlab.Host{l.Host("relay1"), l.Host("relay2")}
		for i, h := range relayHosts {
			out, in := fmt.Sprintf("eth%d", i), fmt.Sprintf("out%d", i)
			l.Veth(source, out, h, "eth0")
			l.Veth(h, "eth1", nat, in)
			h.AddAddr("eth0", fmt.Sprintf("10.1.%d.1/24", i))
			h.AddAddr("eth0", fmt.Sprintf("fd01:%d::1/64", i))
			h.AddAddr("eth1", fmt.Sprintf("198.51.%d.1/24", 100+i))
			h.AddAddr("eth1", fmt.Sprintf("fd51:%d::1/64", i))
			nat.AddAddr(in, fmt.Sprintf("198.51.%d.2/24", 100+i))
			nat.AddAddr(in, fmt.Sprintf("fd51:%d::2/64", i))
		}
		l.Veth(nat, "in", local, "eth0")
		local.AddAddr("eth0", "192.168.7.10/24")
		local.AddAddr("eth0", "fd07::10/64")
		for i := range relayHosts {
			nat.AddAddr("in", fmt.Sprintf("192.168.7.%d/24", i+1))
			nat.AddAddr("in", fmt.Sprintf("fd07::%d/64", i+1))
		}
		// A path MTU of 1300 on both sides of the NAT.
		local.IP("link", "set", "dev", "eth0", "mtu", "1300")
		nat.IP("link", "set", "dev", "in", "mtu", "1300")
		for i, h := range relayHosts {
			nat.IP("link", "set", "dev", fmt.Sprintf("out%d", i), "mtu", "1300")
			h.IP("link", "set", "dev", "eth1", "mtu", "1300")
		}

		for _, outside := range []bool{false, true} {
			l.Run(map[bool]string{false: "outside IPv4", true: "outside IPv6"}[outside], func(t *testing.T) {
				labTunnel(t, source, nat, relayHosts, outside)
			})
		}
	})
}

// labTunnel has a Gateway hear a channel of each family, through everything
// that can happen to a tunnel.
func labTunnel(t *testing.T, source, nat *netlab.Host, relayHosts []*netlab.Host, outside bool) {
	pick := func(four, six string) netip.Addr {
		if outside {
			return netip.MustParseAddr(six)
		}
		return netip.MustParseAddr(four)
	}
	streams := labStreams{
		{group: netip.MustParseAddrPort("232.7.7.7:5000"), source: netip.MustParseAddr("10.99.0.9"), seen: make(map[uint32]int)},
		{group: netip.MustParseAddrPort("[ff3e::8000:7]:5000"), source: netip.MustParseAddr("fd99::9"), seen: make(map[uint32]int)},
	}
	var relays []*labRelay
	var nats []*labNAT
	var candidates []candidate
	for i, h := range relayHosts {
		for _, s := range streams {
			s.senders = append(s.senders, source.Sender(t, fmt.Sprintf("eth%d", i), s.source, s.group))
		}
		// Advertised is where the gateway reaches the relay: at the NAT.
		inner := pick(fmt.Sprintf("192.168.7.%d", i+1), fmt.Sprintf("fd07::%d", i+1))
		r := startLabRelay(t, h, pick(fmt.Sprintf("198.51.%d.1", 100+i), fmt.Sprintf("fd51:%d::1", i)), inner)
		relays = append(relays, r)
		nats = append(nats, startLabNAT(t, nat, inner, r.at))
		candidates = append(candidates, candidate{addr: netip.AddrPortFrom(inner, Port)})
	}
	var mu sync.Mutex
	var events []EventKind
	g, err := newGateway(&Config{OnEvent: func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, e.Kind)
		t.Logf("%v %v %v %v", e.Kind, e.Relay, e.Address, e.Err)
	}})
	if err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	g.startTunnel(candidates, nil, &g.filter)
	g.mu.Unlock()
	var reader sync.WaitGroup
	defer reader.Wait()
	defer g.Close()
	reader.Go(func() { streams.read(t, g) })

	for _, s := range streams {
		if err := g.JoinSource(mcast.Group{Addr: s.group.Addr()}, s.source); err != nil {
			t.Fatal(err)
		}
	}
	streams.until(t, "joined")
	streams.wantAll(t, "joined")
	time.Sleep(2500 * time.Millisecond) // a refresh
	streams.wantAll(t, "after a refresh")

	nats[0].rebind()
	streams.until(t, "after NAT rebinding")
	time.Sleep(time.Second) // until the Teardown has come
	streams.wantAll(t, "after NAT rebinding")

	relays[0].Restart()
	streams.until(t, "after a restart of the relay")
	streams.wantAll(t, "after a restart of the relay")

	relays[0].stop()
	streams.until(t, "with the second relay")
	streams.wantAll(t, "with the second relay")
	if got := g.Relays(); len(got) != 1 || got[0] != candidates[1].addr {
		t.Errorf("relays %v; want %v", got, candidates[1].addr)
	}

	for _, s := range streams {
		if err := g.LeaveSource(mcast.Group{Addr: s.group.Addr()}, s.source); err != nil {
			t.Fatal(err)
		}
		s.forget()
	}
	streams.send(t, 50)
	for _, s := range streams {
		if seen, _, _ := s.count(0); seen > 0 {
			t.Errorf("%v: %d datagrams after the leave", s.group, seen)
		}
	}
	if st := g.Stats(); st.Malformed+st.Checksum+st.Foreign > 0 {
		t.Errorf("%+v", st)
	}
	for _, r := range relays {
		if c := r.Counts(); c.Malformed+c.BadReports > 0 {
			t.Errorf("relay %s: %+v", r.host.Name(), c)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for _, k := range []EventKind{EventRelayFound, EventTunnelUp, EventNewAddress, EventRelayLost} {
		if !slices.Contains(events, k) {
			t.Errorf("no event %q", k)
		}
	}
}
