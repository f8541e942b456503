package mcast

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"example.com/mcast/internal/netif"
)

// TestOldOptions: where a kernel does not know MCAST_*, IP_* does the same.
func TestOldOptions(t *testing.T) {
	c, port := listenOn(t, "udp4", "", nil)
	emulated := os.Getenv("MCAST_EMULATED") != ""
	c.ledger.kernel.noMcast = !emulated // emulators do not know them
	ssm, asm := Group{netip.MustParseAddr("232.1.1.1"), loopback}, Group{netip.MustParseAddr("239.1.1.1"), loopback}
	a, b := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	if emulated {
		c.host = loHost{c.host}
		c.ledger.kernel.host = c.host
	}
	users := func(g Group) bool {
		b, _ := os.ReadFile("/proc/net/igmp")
		a := g.Addr.As4()
		n := binary.NativeEndian.Uint32(a[:])
		if emulated { // the kernel's byte order, not the program's
			n = binary.LittleEndian.Uint32(a[:])
		}
		return bytes.Contains(b, fmt.Appendf(nil, "%08X", n))
	}
	if users(ssm) || users(asm) {
		t.Skip("something on this machine has joined the groups")
	}
	var from, from2 *Conn
	if !emulated {
		from, from2 = loSender(t, "127.0.0.1:0"), loSender(t, "127.0.0.2:0")
	}
	hears := func(g Group, first, second bool) {
		t.Helper()
		if emulated {
			return
		}
		for _, s := range []*Conn{from, from2} {
			if _, err := s.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(g.Addr, uint16(port))); err != nil {
				t.Fatal(err)
			}
		}
		for s, want := range map[netip.Addr]bool{a: first, b: second} {
			if c.filter.Allows(g, s) != want {
				t.Errorf("Allows(%v, %v) = %v", g, s, !want)
			}
		}
		m := Message{Buf: make([]byte, 9)}
		for range map[bool]int{true: 1}[first] + map[bool]int{true: 1}[second] {
			c.SetReadDeadline(time.Now().Add(time.Minute))
			if err := c.ReadMessage(&m); err != nil || m.Group != g {
				t.Fatalf("%+v, %v", m, err)
			}
		}
		want, _ := c.filter.Membership(g)
		if got, err := c.SystemFilter(g); err != nil || got.String() != want.String() {
			t.Errorf("the system has %v, %v; want %v", got, err, want)
		}
	}
	for _, step := range []struct {
		request       func() error
		g             Group
		first, second bool
	}{
		{func() error { return c.JoinSource(ssm, a) }, ssm, true, false},
		{func() error { return c.JoinSource(ssm, b) }, ssm, true, true},
		{func() error { return c.LeaveSource(ssm, a) }, ssm, false, true},
		{func() error { return c.Join(asm) }, asm, true, true},
		{func() error { return c.Block(asm, b) }, asm, true, false},
		{func() error { return c.Unblock(asm, b) }, asm, true, true},
	} {
		if emulated && step.g == asm {
			continue // qemu takes struct ip_mreqn to be 16 bytes long
		}
		if err := step.request(); err != nil {
			t.Fatal(err)
		}
		hears(step.g, step.first, step.second)
	}
	if !users(ssm) || !users(asm) && !emulated {
		t.Error("the kernel has no such groups on lo")
	}
	if emulated {
		c.Close()
	} else if err := errors.Join(c.LeaveSource(ssm, b), c.Leave(asm)); err != nil {
		t.Fatal(err)
	}
	if users(ssm) || users(asm) {
		t.Error("the groups are left, but not in the kernel")
	}
}

// loHost knows lo, where the system does not tell its interfaces.
type loHost struct{ netif.Host }

func (loHost) Address4(int) (netip.Addr, bool) { return netip.MustParseAddr("127.0.0.1"), true }

func (loHost) Index(name string) (int, error) {
	if name != "lo" {
		return 0, netif.ErrNotFound
	}
	return 1, nil
}

func (loHost) Name(index int) (string, error) {
	if index != 1 {
		return "", netif.ErrNotFound
	}
	return "lo", nil
}
