//go:build !plan9

package mcast

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"example.com/mcast/internal/cmsg"
)

// What a system cannot do for one datagram is an error, and nothing is sent:
// here the formats of systems that cannot.
func TestWriteViaUnsupported(t *testing.T) {
	at := testSite(t)
	c, err := Listen(at.network(), ":0", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	g, source := at.group(1, 1), at.sources[0]
	if err := c.JoinSource(g, source); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(inTime())
	from := at.sender(t, source)
	to := netip.AddrPortFrom(g.Addr, uint16(c.origin.port))
	for name, test := range map[string]struct {
		format            *cmsg.Format
		ifname, addr, all bool // what it can do
	}{
		"none":    {cmsg.None, false, false, false},
		"macOS":   {cmsg.Darwin(), false, false, false},
		"FreeBSD": {cmsg.FreeBSD(8, 8), false, true, false},
		"Linux":   {cmsg.Linux(8, binary.NativeEndian), true, true, true},
		"Windows": {cmsg.Windows(8), true, true, true},
	} {
		for _, via := range []struct {
			ifname string
			addr   netip.Addr
			can    bool
		}{
			{at.ifi.Name, netip.Addr{}, test.ifname},
			{"", source, test.addr},
			{at.ifi.Name, source, test.all},
		} {
			if via.can {
				continue // it is this system's format or nonsense here
			}
			what := fmt.Sprintf("%s: by %q from %v", name, via.ifname, via.addr)
			own := from.origin.control
			from.origin.control = test.format
			n, err := from.WriteVia([]byte("unsupported"), to, via.ifname, via.addr)
			from.origin.control = own
			var e *net.OpError
			if n != 0 || !errors.Is(err, errors.ErrUnsupported) || !errors.As(err, &e) || e.Op != "write" {
				t.Errorf("%s: %d, %v, want errors.ErrUnsupported", what, n, err)
			}
			mustSend(t, from, g, c.origin.port, what)
			m := Message{Buf: make([]byte, 100)}
			if err := c.ReadMessage(&m); err != nil || string(m.Buf[:m.N]) != what {
				t.Errorf("%s: heard %q, %v", what, m.Buf[:m.N], err)
			}
		}
	}
}

// writeEach, for systems that send one at a time, answers as sendmmsg does.
func TestWriteEach(t *testing.T) {
	at := testSite(t)
	c, err := Listen(at.network(), ":0", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	g := at.group(1, 1)
	if err := c.JoinSource(g, at.sources[0]); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(inTime())
	from := at.sender(t, at.sources[0])
	message := func(payload string) Message {
		return Message{Buf: []byte(payload + "..."), N: len(payload), Group: Group{Addr: g.Addr}, Port: c.origin.port}
	}
	for i, bad := range []func(*Message){
		func(m *Message) { m.N = len(m.Buf) + 1 },
		func(m *Message) { m.N = -1 },
		func(m *Message) { m.Port = 65536 + c.origin.port },
		func(m *Message) { m.Port = -1 },
		func(m *Message) { m.Group.Addr = netip.Addr{} },
		func(m *Message) { m.Group.Interface = "nosuch0" },
	} {
		ms := []Message{message("first"), message("second"), message("third"), message("fourth")}
		bad(&ms[2])
		if n, err := from.writeEach(ms); n != 2 || err == nil {
			t.Errorf("bad message %d: %d, %v", i, n, err)
		}
		if n, err := from.writeEach(ms[:2]); n != 2 || err != nil {
			t.Error(n, err)
		}
		for _, want := range []string{"first", "second", "first", "second"} {
			m := Message{Buf: make([]byte, 100)}
			if err := c.ReadMessage(&m); err != nil || string(m.Buf[:m.N]) != want {
				t.Errorf("heard %q, %v, want %q", m.Buf[:m.N], err, want)
			}
		}
	}
}
