package netlab

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// A Sender sends multicast datagrams from one address out of one interface.
type Sender struct {
	c  *net.UDPConn
	to netip.AddrPort
}

// Sender returns a sender that is closed when the test ends. If the interface
// lacks the address, it gets it.
func (h *Host) Sender(t testing.TB, ifname string, from netip.Addr, to netip.AddrPort) *Sender {
	t.Helper()
	if !to.Addr().IsMulticast() || from.Is4() != to.Addr().Is4() {
		t.Fatalf("netlab: host %s: a sender from %v to %v", h.name, from, to)
	}
	has := false
	for _, p := range h.Addrs(ifname) {
		has = has || p.Addr() == from.WithZone("")
	}
	if !has {
		h.AddAddr(ifname, netip.PrefixFrom(from, from.BitLen()).String())
	}
	index := h.Index(ifname)
	var c *net.UDPConn
	var err error
	h.Do(func() { c, err = openSender(index, from.WithZone("")) })
	if err != nil {
		t.Fatalf("netlab: host %s: a sender from %v by %s: %v", h.name, from, ifname, err)
	}
	t.Cleanup(func() { c.Close() })
	return &Sender{c: c, to: to}
}

// Send sends each payload as one datagram.
func (s *Sender) Send(payloads ...string) error {
	for _, p := range payloads {
		if _, err := s.c.WriteToUDPAddrPort([]byte(p), s.to); err != nil {
			return err
		}
	}
	return nil
}

// Addr returns the address and port that the datagrams come from.
func (s *Sender) Addr() netip.AddrPort { return s.c.LocalAddr().(*net.UDPAddr).AddrPort() }

// Close closes the sender.
func (s *Sender) Close() error { return s.c.Close() }

// Send sends each payload as one datagram from an address of the host out of
// one of its interfaces, with a TTL of 4. If the interface lacks the address,
// it gets it.
func (h *Host) Send(t testing.TB, ifname string, from netip.Addr, to netip.AddrPort, payloads ...string) {
	t.Helper()
	s := h.Sender(t, ifname, from, to)
	defer s.Close()
	if err := s.Send(payloads...); err != nil {
		t.Fatalf("netlab: host %s: %v", h.name, err)
	}
}

// KeepSending sends a datagram every few milliseconds, as [Host.Send] does, until
// the test ends: a switch needs some time to learn who has joined.
func (h *Host) KeepSending(t testing.TB, ifname string, from netip.Addr, to netip.AddrPort) {
	t.Helper()
	s := h.Sender(t, ifname, from, to)
	Repeat(t, func() { s.Send("x") }) // fails while the interface is down
}

// Repeat calls f every few milliseconds until the test ends.
func Repeat(t testing.TB, f func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
				f()
			}
		}
	}()
	t.Cleanup(func() { close(done); <-ended })
}
