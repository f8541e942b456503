package amt

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"example.com/mcast/internal/amtrelay"
)

// A relay whose port is closed is replaced as soon as the kernel says so.
func TestUnreachableRelay(t *testing.T) {
	for _, network := range []string{"udp4", "udp6"} {
		t.Run(network, func(t *testing.T) {
			var conns []*net.UDPConn
			var candidates []candidate
			for range 2 {
				ip := net.IPv4(127, 0, 0, 1)
				if network == "udp6" {
					ip = net.IPv6loopback
				}
				c, err := net.ListenUDP(network, &net.UDPAddr{IP: ip})
				if err != nil {
					t.Skip(err)
				}
				defer c.Close()
				at := c.LocalAddr().(*net.UDPAddr).AddrPort()
				r := amtrelay.New(amtrelay.Config{Advertise: at.Addr(), QueryInterval: time.Second}, func(to netip.AddrPort, b []byte) { c.WriteToUDPAddrPort(b, to) })
				go r.Serve(c)
				conns = append(conns, c)
				candidates = append(candidates, candidate{addr: at})
			}
			var mu sync.Mutex
			var lost error
			up := make(chan netip.AddrPort, 10)
			g, err := newGateway(&Config{OnEvent: func(e Event) {
				mu.Lock()
				defer mu.Unlock()
				switch e.Kind {
				case EventTunnelUp:
					up <- e.Relay
				case EventRelayLost:
					lost = e.Err
				}
			}})
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			g.mu.Lock()
			g.startTunnel(candidates, nil, &g.filter)
			g.mu.Unlock()
			group := channelGroup
			source := channelSource
			if network == "udp6" {
				group.Addr, source = group6.Addr(), port6.Addr()
			}
			if err := g.JoinSource(group, source); err != nil {
				t.Fatal(err)
			}
			if relay := <-up; relay != candidates[0].addr {
				t.Fatalf("%v is up; want %v", relay, candidates[0].addr)
			}
			conns[0].Close()
			if relay := <-up; relay != candidates[1].addr {
				t.Errorf("%v is up; want %v", relay, candidates[1].addr)
			}
			mu.Lock()
			defer mu.Unlock()
			if !errors.Is(lost, errUnreachable) {
				t.Errorf("lost because %v; want %v", lost, errUnreachable)
			}
		})
	}
}
