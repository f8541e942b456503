package looptest

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"example.com/mcast/internal/amtrelay"
)

// A Relay is a relay of AMT on the loopback interface.
type Relay struct {
	*amtrelay.Relay
	Addr netip.AddrPort
	t    testing.TB
}

// NewRelay opens a Relay for the length of the test.
func NewRelay(t testing.TB, cfg amtrelay.Config) Relay {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: Source.AsSlice()})
	if err != nil {
		t.Fatal(err)
	}
	at := c.LocalAddr().(*net.UDPAddr).AddrPort()
	cfg.Advertise = Source
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
