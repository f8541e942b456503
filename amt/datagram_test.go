package amt

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"
	"time"

	"example.com/mcast/internal/amtrelay"
)

var (
	port4  = netip.MustParseAddrPort("10.1.0.2:4711")
	port6  = netip.MustParseAddrPort("[2001:db8::2]:4711")
	group4 = netip.MustParseAddrPort("232.1.1.1:5000")
	group6 = netip.MustParseAddrPort("[ff3e::8000:1]:5000")
)

// parsePacket is what happens to a packet that is not a fragment.
func parsePacket(b []byte) (datagram, error) {
	var h ipHeader
	err := h.parse(b)
	if err == nil {
		err = h.checkAddresses()
	}
	if err == nil && h.fragmented {
		err = errIncomplete
	}
	var d datagram
	if err == nil {
		err = h.parseUDP(&d)
	}
	return d, err
}

func TestDatagram(t *testing.T) {
	payload := []byte("the quick brown fox jumps over the lazy dog")
	for _, a := range [][2]netip.AddrPort{{port4, group4}, {port6, group6}} {
		for n := range payload {
			b := amtrelay.UDP(a[0], a[1], 9, payload[:n])
			d, err := parsePacket(append(b, 0xff))
			if err != nil || d.source != a[0] || d.group != a[1].Addr() || d.port != a[1].Port() || d.hopLimit != 9 || !bytes.Equal(d.payload, payload[:n]) {
				t.Fatalf("%+v, %v", d, err)
			}
			for i := range b {
				if _, err := parsePacket(b[:i]); err == nil {
					t.Fatalf("%d of %d bytes were taken", i, len(b))
				}
			}
		}
		b := amtrelay.UDP(a[0], a[1], 9, payload)
		for i := range b {
			for bit := range 8 {
				broken := bytes.Clone(b)
				broken[i] ^= 1 << bit
				d, err := parsePacket(broken)
				// Nothing covers an IPv6 header but its addresses and length.
				if harmless := a[0].Addr().Is6() && i < 8; err == nil && !harmless {
					t.Errorf("bit %d of byte %d changed: %+v", bit, i, d)
				}
			}
		}
	}
}

func TestDatagramRefused(t *testing.T) {
	at := func(b []byte, i int, c ...byte) []byte {
		copy(b[i:], c)
		if b[0]>>4 == 4 {
			b[10], b[11] = 0, 0
			s := checksum(onesSum(0, b[:20]))
			b[10], b[11] = byte(s>>8), byte(s)
		}
		return b
	}
	udp := func(s, g string) []byte {
		return amtrelay.UDP(netip.MustParseAddrPort(s), netip.MustParseAddrPort(g), 1, []byte("x"))
	}
	for _, c := range []struct {
		name string
		b    []byte
		want error
	}{
		{"nothing", nil, errPacket},
		{"version 5", []byte{0x50, 0}, errPacket},
		{"unicast", udp("10.0.0.1:1", "10.0.0.2:1"), errDestination},
		{"link-local", udp("10.0.0.1:1", "224.0.0.5:1"), errDestination},
		{"link-local IPv6", udp("[2001:db8::1]:1", "[ff02::5]:1"), errDestination},
		{"interface-local IPv6", udp("[2001:db8::1]:1", "[ff01::5]:1"), errDestination},
		{"reserved scope", udp("[2001:db8::1]:1", "[ff30::5]:1"), errDestination},
		{"from a group", udp("232.0.0.1:1", "232.1.1.1:1"), errSource},
		{"from nobody", udp("0.0.0.0:1", "232.1.1.1:1"), errSource},
		{"from all", udp("255.255.255.255:1", "232.1.1.1:1"), errSource},
		{"from itself", udp("127.0.0.1:1", "232.1.1.1:1"), errSource},
		{"from nobody, IPv6", udp("[::]:1", "[ff3e::1]:1"), errSource},
		{"TCP", at(udp("10.0.0.1:1", "232.1.1.1:1"), 9, 6), errProtocol},
		{"no checksum in IPv6", at(udp("[2001:db8::1]:1", "[ff3e::1]:1"), 46, 0, 0), errChecksum},
		{"UDP length 7", at(udp("10.0.0.1:1", "232.1.1.1:1"), 24, 0, 7), errPacket},
		{"UDP length 99", at(udp("10.0.0.1:1", "232.1.1.1:1"), 24, 0, 99), errPacket},
	} {
		if _, err := parsePacket(c.b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v; want %v", c.name, err, c.want)
		}
	}
	// Without a checksum, which IPv4 allows.
	if _, err := parsePacket(at(udp("10.0.0.1:1", "232.1.1.1:1"), 26, 0, 0)); err != nil {
		t.Errorf("IPv4 without a checksum: %v", err)
	}
}

func TestExtensionHeaders(t *testing.T) {
	b := amtrelay.UDP(port6, group6, 9, []byte("x"))
	with := func(kind byte, ext ...byte) []byte {
		c := append(bytes.Clone(b[:40]), ext...)
		c = append(c, b[40:]...)
		c[6], c[5] = kind, b[5]+byte(len(ext))
		return c
	}
	for _, good := range [][]byte{
		with(protocolHopByHop, protocolUDP, 0, 1, 4, 0, 0, 0, 0),
		with(protocolDestination, protocolUDP, 0, 1, 4, 0, 0, 0, 0),
		with(protocolHopByHop, protocolDestination, 0, 1, 4, 0, 0, 0, 0, protocolUDP, 0, 1, 4, 0, 0, 0, 0),
		with(protocolRouting, protocolUDP, 0, 4, 0, 0, 0, 0, 0),
		with(protocolFragment, protocolUDP, 0, 0, 0, 0, 0, 0, 1),
	} {
		if d, err := parsePacket(good); err != nil || string(d.payload) != "x" {
			t.Errorf("%x: %v", good[40:], err)
		}
	}
	for _, bad := range [][]byte{
		with(protocolHopByHop, protocolUDP, 9, 1, 4, 0, 0, 0, 0),
		with(protocolRouting, protocolUDP, 0, 4, 1, 0, 0, 0, 0),
		with(protocolFragment, protocolUDP, 0, 0, 9, 0, 0, 0, 1),
	} {
		if _, err := parsePacket(bad); err == nil {
			t.Errorf("%x was taken", bad[40:])
		}
	}
}

func FuzzDatagram(f *testing.F) {
	f.Add(amtrelay.UDP(port4, group4, 9, []byte("payload")))
	f.Add(amtrelay.UDP(port6, group6, 9, []byte("payload")))
	for _, b := range amtrelay.Fragments(amtrelay.UDP(port6, group6, 9, make([]byte, 40)), 1, 16) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var h ipHeader
		if h.parse(b) != nil || h.checkAddresses() != nil {
			return
		}
		if h.fragmented {
			new(reassembler).add(time.Unix(0, 0), &h)
			return
		}
		var d datagram
		if h.parseUDP(&d) != nil {
			return
		}
		if !d.group.IsMulticast() || !d.source.Addr().IsValid() || len(d.payload) > len(b)-28 {
			t.Fatalf("%+v", d)
		}
		// What is taken is what a sender would make of it.
		again, err := parsePacket(amtrelay.UDP(d.source, netip.AddrPortFrom(d.group, d.port), d.hopLimit, d.payload))
		if err != nil || !bytes.Equal(again.payload, d.payload) {
			t.Fatalf("%v", err)
		}
	})
}

func TestChecksum(t *testing.T) {
	b := make([]byte, 100)
	for i := range b {
		b[i] = byte(i*i + 7)
	}
	for n := range b {
		var slow uint32
		for i, c := range b[:n] {
			if i%2 == 0 {
				slow += uint32(c) << 8
			} else {
				slow += uint32(c)
			}
		}
		for slow > 0xffff {
			slow = slow>>16 + slow&0xffff
		}
		if got := checksum(onesSum(0, b[:n])); got != ^uint16(slow) {
			t.Fatalf("%d bytes: %#x; want %#x", n, got, ^uint16(slow))
		}
	}
	// All ones: every addition carries.
	ones := bytes.Repeat([]byte{0xff}, 64)
	if got := checksum(onesSum(1<<64-1, ones)); got != 0 {
		t.Fatalf("%#x", got)
	}
}

func BenchmarkChecksum(b *testing.B) {
	p := make([]byte, 1316)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		onesSum(0, p)
	}
}
