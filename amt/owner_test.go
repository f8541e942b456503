package amt

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/mcast"
	"example.com/mcast/internal/amtrelay"
	"golang.org/x/net/dns/dnsmessage"
)

// A memoryDNS is a connection to a dnsServer that has no socket. It is a
// net.PacketConn, by which package net tells datagrams from a stream.
type memoryDNS struct {
	net.PacketConn
	server  *dnsServer
	answers chan []byte
	ended   chan struct{}
	once    sync.Once
}

func (s *dnsServer) dial(context.Context, string, string) (net.Conn, error) {
	return &memoryDNS{server: s, answers: make(chan []byte, 10), ended: make(chan struct{})}, nil
}

func (c *memoryDNS) Write(b []byte) (int, error) {
	for _, a := range c.server.answer(b, true) {
		c.answers <- a
	}
	return len(b), nil
}

func (c *memoryDNS) Read(b []byte) (int, error) {
	select {
	case a := <-c.answers:
		return copy(b, a), nil
	case <-c.ended:
		return 0, os.ErrDeadlineExceeded
	}
}

func (c *memoryDNS) Close() error { c.once.Do(func() { close(c.ended) }); return nil }

func (c *memoryDNS) SetDeadline(t time.Time) error {
	time.AfterFunc(time.Until(t), func() { c.Close() })
	return nil
}
func (c *memoryDNS) SetReadDeadline(t time.Time) error  { return c.SetDeadline(t) }
func (c *memoryDNS) SetWriteDeadline(t time.Time) error { return nil }
func (c *memoryDNS) LocalAddr() net.Addr                { return &net.UDPAddr{} }
func (c *memoryDNS) RemoteAddr() net.Addr               { return &net.UDPAddr{} }

// undialled makes a Gateway that finds relays by source.
func (n *network) undialled(t *testing.T, s *dnsServer, methods ...Method) *Gateway {
	t.Helper()
	g := n.gateway(t, &Config{DNS: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}, Domain: "example.net", Methods: methods})
	g.resolver.dial = s.dial
	if err := g.dial(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	return g
}

// wantFrom reads what is there and checks that it is each of these once.
func wantFrom(t *testing.T, g *Gateway, sources ...netip.Addr) {
	t.Helper()
	want := make(map[netip.Addr]int)
	for _, s := range sources {
		want[s]++
	}
	m := mcast.Message{Buf: make([]byte, 100)}
	for {
		g.SetReadDeadline(time.Now().Add(time.Second))
		err := g.ReadMessage(&m)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		want[m.Source.Addr()]--
	}
	for s, n := range want {
		if n != 0 {
			t.Errorf("%v: %d too few", s, n)
		}
	}
}

func TestRelaysBySource(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		r1, r2 := n.relay(relay1, amtrelay.Config{}), n.relay(relay2, amtrelay.Config{})
		s := &dnsServer{records: make(map[string][]dnsmessage.Resource)}
		a, b, c := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
		s.relay(reverseName(a), 1, 0x01, 198, 51, 100, 1)
		s.relay(reverseName(b), 1, 0x81, 198, 51, 100, 2) // needs no Discovery
		s.relay(reverseName(c), 1, 0x01, 198, 51, 100, 1)
		g := n.undialled(t, s, SourceRecord)
		group := channelGroup
		for _, source := range []netip.Addr{a, b, c} {
			if err := g.JoinSource(group, source); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		if c1, c2 := r1.Counts(), r2.Counts(); len(g.Relays()) != 2 || c1.Discoveries != 1 || c2.Discoveries != 0 {
			t.Errorf("%v, %+v, %+v", g.Relays(), c1, c2)
		}
		for _, source := range []netip.Addr{a, b, c} {
			n.forward(udp(source, group.Addr, 1)) // both relays would
		}
		wantFrom(t, g, a, b, c)

		// A source that is left is told to its relay; a relay that nobody needs
		// is done with.
		if err := g.LeaveSource(group, b); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		if len(r1.Endpoints(time.Now())) != 1 || len(r2.Endpoints(time.Now())) != 0 {
			t.Errorf("%v and %v", r1.Wanted(time.Now()), r2.Wanted(time.Now()))
		}
		time.Sleep(5 * time.Minute)
		if len(g.Relays()) != 1 {
			t.Errorf("%v", g.Relays())
		}
		if err := g.JoinSource(group, b); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		n.forward(udp(b, group.Addr, 2))
		wantFrom(t, g, b)
		closeAll(t, n, g)
		if len(r1.Endpoints(time.Now()))+len(r2.Endpoints(time.Now())) != 0 {
			t.Error("the relays still know the Gateway")
		}
	})
}

// One socket to two relays would bring everything twice.
func TestRelaysOverlap(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		n.relay(relay1, amtrelay.Config{})
		s := &dnsServer{records: make(map[string][]dnsmessage.Resource)}
		a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
		// Different places to look at, and one relay at the end of both.
		s.relay(reverseName(a), 1, 0x01, 198, 51, 100, 1)
		s.relay(reverseName(b), 1, 0x01, 198, 51, 100, 1)
		s.relay(reverseName(b), 2, 0x01, 198, 51, 100, 7)
		g := n.undialled(t, s, SourceRecord)
		other := mcast.Group{Addr: groupOf(false, 1)}
		for _, source := range []netip.Addr{a, b} {
			g.JoinSource(channelGroup, source)
			g.JoinSource(other, source)
		}
		time.Sleep(time.Second)
		for _, group := range []mcast.Group{channelGroup, other} {
			n.forward(udp(a, group.Addr, 1))
			n.forward(udp(b, group.Addr, 1))
		}
		wantFrom(t, g, a, a, b, b)
		g.LeaveSource(other, a)
		time.Sleep(3 * time.Second)
		for _, group := range []mcast.Group{channelGroup, other} {
			n.forward(udp(a, group.Addr, 2))
			n.forward(udp(b, group.Addr, 2))
		}
		wantFrom(t, g, a, b, b)
		closeAll(t, n, g)
	})
}

func TestRelaysOfTheDomain(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		n.relay(relay1, amtrelay.Config{})
		n.relay("192.52.193.1:2268", amtrelay.Config{Advertise: netip.MustParseAddr("198.51.100.2")})
		anycasted := n.relay(relay2, amtrelay.Config{})
		s := &dnsServer{records: make(map[string][]dnsmessage.Resource)}
		g := n.undialled(t, s, defaultMethods...)
		any, source := mcast.Group{Addr: groupOf(false, 1)}, netip.MustParseAddr("10.0.0.1")
		if err := g.Join(any); err != nil {
			t.Fatal(err)
		}
		if err := g.Block(any, source); err != nil {
			t.Fatal(err)
		}
		if err := g.JoinSource(channelGroup, source); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if got := g.Relays(); len(got) != 1 || got[0] != netip.MustParseAddrPort(relay2) {
			t.Errorf("%v", got)
		}
		if c := anycasted.Counts(); c.Discoveries != 0 {
			t.Errorf("%+v", c)
		}
		n.forward(udp(source, any.Addr, 1))
		n.forward(udp(channelSource, any.Addr, 1))
		n.forward(udp(source, channelGroup.Addr, 1))
		wantFrom(t, g, source, channelSource)
		closeAll(t, n, g)
	})
}

// The record appears, and the DNS server answers, later than asked.
func TestRelaysLater(t *testing.T) {
	bubble(t, func(t *testing.T, n *network) {
		n.relay(relay1, amtrelay.Config{})
		s := &dnsServer{records: make(map[string][]dnsmessage.Resource), silent: 100}
		var events []string
		var mu sync.Mutex
		g := n.undialled(t, s, SourceRecord)
		g.cfg.OnEvent = func(e Event) {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, e.Kind.String()+" "+strings.Join(strings.Fields(errorText(e.Err)), " "))
		}
		source := netip.MustParseAddr("10.0.0.1")
		g.JoinSource(channelGroup, source)
		time.Sleep(time.Hour)
		s.mu.Lock()
		s.silent = 0
		s.mu.Unlock()
		s.relay(reverseName(source), 1, 0x01, 198, 51, 100, 77) // nobody is there
		time.Sleep(12 * time.Minute)
		if len(g.Relays()) != 0 {
			t.Errorf("%v", g.Relays())
		}
		s.mu.Lock()
		clear(s.records)
		s.mu.Unlock()
		s.relay(reverseName(source), 1, 0x01, 198, 51, 100, 1)
		time.Sleep(5 * time.Minute)
		n.forward(udp(source, channelGroup.Addr, 1))
		wantFrom(t, g, source)
		synctest.Wait()
		mu.Lock()
		if len(events) != 3 || !strings.HasPrefix(events[0], "relay lost no relay of 10.0.0.1 is known: ") {
			t.Errorf("%q", events)
		}
		mu.Unlock()
		closeAll(t, n, g)

		// Close ends what is still looked for.
		g = n.undialled(t, s, SourceRecord)
		g.JoinSource(channelGroup, netip.MustParseAddr("10.0.0.9"))
		closeAll(t, n, g)
	})
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
