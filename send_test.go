//go:build !plan9

package mcast_test

import (
	"errors"
	"example.com/mcast"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
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
