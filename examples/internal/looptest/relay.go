package looptest

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"example.com/mcast/internal/amtrelay"
	"example.com/mcast/internal/netlab"
)

// A Relay is a relay of AMT, on the loopback interface or in a lab.
type Relay struct {
	*amtrelay.Relay
	Addr netip.AddrPort
	t    testing.TB
}

// NewRelay opens a Relay on the loopback interface for the length of the test.
func NewRelay(t testing.TB, cfg amtrelay.Config) Relay {
	t.Helper()
	return newRelay(t, netip.AddrPortFrom(Source, 0), cfg)
}

// NewAnycastRelay opens a Relay for the length of a lab, on a host of its own
// behind eth9 of the local one. It is the one that is found where relays are
// looked for (RFC 7450 section 7.1).
func NewAnycastRelay(l *netlab.Lab, cfg amtrelay.Config) (r Relay) {
	l.T().Helper()
	const anycast = "192.52.193.1"
	me, host := l.Local(), l.Host("anycast")
	l.Veth(me, "eth9", host, "eth0")
	me.AddAddr("eth9", "198.51.100.1/24")
	host.AddAddr("eth0", "198.51.100.2/24")
	host.AddAddr("lo", anycast+"/32")
	me.IP("route", "add", anycast, "via", "198.51.100.2")
	host.Do(func() {
		r = newRelay(l.T(), netip.AddrPortFrom(netip.MustParseAddr(anycast), amtrelay.Port), cfg)
	})
	return r
}

func newRelay(t testing.TB, at netip.AddrPort, cfg amtrelay.Config) Relay {
	t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Advertise, at = at.Addr(), c.LocalAddr().(*net.UDPAddr).AddrPort()
	r := Relay{amtrelay.New(cfg, func(to netip.AddrPort, b []byte) { c.WriteToUDPAddrPort(b, to) }), at, t}
	served := make(chan struct{})
	go func() { defer close(served); r.Serve(c) }()
	t.Cleanup(func() { c.Close(); <-served })
	return r
}

// Wait waits until these groups are wanted, and no other.
func (r Relay) Wait(groups ...string) {
	r.t.Helper()
	slices.Sort(groups)
	for end := time.Now().Add(Patience); ; time.Sleep(time.Millisecond) {
		var wanted []string
		for _, m := range r.Wanted(time.Now()) {
			wanted = append(wanted, m.Group.String())
		}
		if slices.Sort(wanted); slices.Equal(wanted, groups) {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("the relay is asked for %q, not for %q", wanted, groups)
		}
	}
}

// Send forwards a datagram to those who want it.
func (r Relay) Send(source, group string, port uint16, b []byte) {
	from := netip.AddrPortFrom(netip.MustParseAddr(source), 4711)
	r.Forward(time.Now(), amtrelay.UDP(from, netip.AddrPortFrom(netip.MustParseAddr(group), port), 9, b))
}
