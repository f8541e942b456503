package cmsg_test

import (
	"bytes"
	"math"
	"net/netip"
	"strconv"
	"testing"

	"example.com/mcast/internal/cmsg"
)

func format(t *testing.T, system string) *cmsg.Format {
	t.Helper()
	if system == "none" {
		return cmsg.None
	}
	f, ok := formats[system]
	if !ok {
		t.Fatalf("no format %s", system)
	}
	return f
}

// TestAppendSend checks messages against ones written by hand. The interface is
// 3, the address 192.0.2.1 or 2001:db8::1.
func TestAppendSend(t *testing.T) {
	const none = "none" // the system has no such message
	tests := []struct {
		system           string
		ipv6             bool
		index, from, all string // with an interface, with an address, with both
	}{
		// struct in_pktinfo { ipi_ifindex, ipi_spec_dst, ipi_addr }, struct in6_pktinfo { ipi6_addr, ipi6_ifindex }
		{
			system: "linux-64-little",
			index:  "1c00000000000000 00000000 08000000 03000000 00000000 00000000 @32",
			from:   "1c00000000000000 00000000 08000000 00000000 c0000201 00000000 @32",
			all:    "1c00000000000000 00000000 08000000 03000000 c0000201 00000000 @32",
		},
		{
			system: "linux-64-little", ipv6: true,
			index: "2400000000000000 29000000 32000000 00000000000000000000000000000000 03000000 @40",
			from:  "2400000000000000 29000000 32000000 20010db8000000000000000000000001 00000000 @40",
			all:   "2400000000000000 29000000 32000000 20010db8000000000000000000000001 03000000 @40",
		},
		{
			system: "linux-64-big",
			index:  "000000000000001c 00000000 00000008 00000003 00000000 00000000 @32",
			from:   "000000000000001c 00000000 00000008 00000000 c0000201 00000000 @32",
			all:    "000000000000001c 00000000 00000008 00000003 c0000201 00000000 @32",
		},
		{
			system: "linux-32-little",
			index:  "18000000 00000000 08000000 03000000 00000000 00000000",
			from:   "18000000 00000000 08000000 00000000 c0000201 00000000",
			all:    "18000000 00000000 08000000 03000000 c0000201 00000000",
		},
		{
			system: "linux-32-big", ipv6: true,
			index: "00000020 00000029 00000032 00000000000000000000000000000000 00000003",
			from:  "00000020 00000029 00000032 20010db8000000000000000000000001 00000000",
			all:   "00000020 00000029 00000032 20010db8000000000000000000000001 00000003",
		},
		{system: "darwin", index: none, from: none, all: none},
		{system: "darwin", ipv6: true, index: none, from: none, all: none},
		// IP_SENDSRCADDR 7: in_addr
		{system: "freebsd-64", index: none, from: "14000000 00000000 07000000 @16 c0000201 @24", all: none},
		{system: "freebsd-386", index: none, from: "10000000 00000000 07000000 c0000201", all: none},
		{
			system: "freebsd-64", ipv6: true,
			index: "24000000 29000000 2e000000 @16 00000000000000000000000000000000 03000000 @40",
			from:  "24000000 29000000 2e000000 @16 20010db8000000000000000000000001 00000000 @40",
			all:   "24000000 29000000 2e000000 @16 20010db8000000000000000000000001 03000000 @40",
		},
		// struct in_pktinfo { ipi_addr, ipi_ifindex }
		{
			system: "windows-64",
			index:  "1800000000000000 00000000 13000000 00000000 03000000",
			from:   "1800000000000000 00000000 13000000 c0000201 00000000",
			all:    "1800000000000000 00000000 13000000 c0000201 03000000",
		},
		{
			system: "windows-64", ipv6: true,
			index: "2400000000000000 29000000 13000000 00000000000000000000000000000000 03000000 @40",
			from:  "2400000000000000 29000000 13000000 20010db8000000000000000000000001 00000000 @40",
			all:   "2400000000000000 29000000 13000000 20010db8000000000000000000000001 03000000 @40",
		},
		{
			system: "windows-32",
			index:  "14000000 00000000 13000000 00000000 03000000",
			from:   "14000000 00000000 13000000 c0000201 00000000",
			all:    "14000000 00000000 13000000 c0000201 03000000",
		},
		{system: none, index: none, from: none, all: none},
		{system: none, ipv6: true, index: none, from: none, all: none},
	}
	for _, tt := range tests {
		f := format(t, tt.system)
		from := netip.MustParseAddr("192.0.2.1")
		if tt.ipv6 {
			from = netip.MustParseAddr("2001:db8::1")
		}
		check := func(index int, from netip.Addr, want string) {
			t.Helper()
			for _, before := range []string{"", "before, 16 bytes"} {
				wantOK := want != none
				wantBytes := []byte(before)
				if wantOK {
					wantBytes = append(wantBytes, hexBytes(t, want)...)
				}
				if got, ok := f.AppendSend([]byte(before), tt.ipv6, index, from); ok != wantOK || !bytes.Equal(got, wantBytes) {
					t.Errorf("%s, %d, %v: %x, %v, want %x, %v", tt.system, index, from, got, ok, wantBytes, wantOK)
				}
			}
		}
		check(3, netip.Addr{}, tt.index)
		check(0, from, tt.from)
		check(3, from, tt.all)
		check(0, netip.Addr{}, "") // nothing asked, nothing said
		check(-1, netip.Addr{}, none)
		if tooLarge := uint64(math.MaxInt32 + 1); strconv.IntSize == 64 {
			check(int(tooLarge), netip.Addr{}, none)
		}
		// A message for the other family would be taken for something else.
		if tt.ipv6 {
			check(0, netip.MustParseAddr("192.0.2.1"), none)
			check(0, netip.MustParseAddr("::ffff:192.0.2.1"), none)
			check(0, from.WithZone("eth0"), tt.from)
		} else {
			check(0, netip.MustParseAddr("2001:db8::1"), none)
			check(0, netip.MustParseAddr("::ffff:192.0.2.1"), tt.from)
		}
	}
}

// TestSendParse: where a message that is sent has the layout of one that was
// received, what it says is read back.
func TestSendParse(t *testing.T) {
	from := map[bool]netip.Addr{false: netip.MustParseAddr("192.0.2.1"), true: netip.MustParseAddr("2001:db8::1")}
	for name, f := range formats {
		for ipv6, from := range from {
			for _, index := range []int{0, 1, 0x01020304, math.MaxInt32} {
				b, ok := f.AppendSend(nil, ipv6, index, from)
				want := cmsg.Info{Dst: from, Index: index}
				switch {
				case name == "darwin", name[:4] == "free" && !ipv6 && index != 0:
					want, ok = cmsg.Info{}, !ok
				case name[:4] == "linu" && !ipv6: // what is sent from one field arrives in another
					want.Dst = netip.IPv4Unspecified()
				}
				if got := f.Parse(b, ipv6); !ok || got != want {
					t.Errorf("%s: %x is %+v, want %+v", name, b, got, want)
				}
				// Another message may follow at once.
				if twice, _ := f.AppendSend(b, ipv6, index, from); f.Parse(twice, ipv6) != want || len(twice) != 2*len(b) {
					t.Errorf("%s: %x is %+v, want %+v", name, twice, f.Parse(twice, ipv6), want)
				}
			}
		}
	}
}

func TestAppendSegment(t *testing.T) {
	tests := []struct {
		system string
		size   int
		want   string // "": not ok
	}{
		// UDP_SEGMENT 103 at IPPROTO_UDP 17: a __u16 (include/uapi/linux/udp.h)
		{"linux-64-little", 1316, "1200000000000000 11000000 67000000 2405 @24"},
		{"linux-64-big", 1316, "0000000000000012 00000011 00000067 0524 @24"},
		{"linux-32-little", 1316, "0e000000 11000000 67000000 2405 @16"},
		{"linux-32-big", 1316, "0000000e 00000011 00000067 0524 @16"},
		{"linux-64-little", 1, "1200000000000000 11000000 67000000 0100 @24"},
		{"linux-64-little", 65535, "1200000000000000 11000000 67000000 ffff @24"},
		{"linux-64-little", 65536, ""},
		{"linux-64-little", 0, ""},
		{"linux-64-little", -1, ""},
		{"darwin", 1316, ""},
		{"freebsd-64", 1316, ""},
		{"windows-64", 1316, ""},
		{"none", 1316, ""},
	}
	for _, tt := range tests {
		want := append([]byte{1, 2}, hexBytes(t, tt.want)...)
		if got, ok := format(t, tt.system).AppendSegment([]byte{1, 2}, tt.size); ok != (tt.want != "") || !bytes.Equal(got, want) {
			t.Errorf("%s, %d: %x, %v, want %x", tt.system, tt.size, got, ok, want)
		}
	}
}

// TestAppendInPlace: what is behind a slice with room for the message may be
// anything, and is overwritten without an allocation.
func TestAppendInPlace(t *testing.T) {
	from := netip.MustParseAddr("192.0.2.1")
	f := formats["linux-64-little"]
	want, _ := f.AppendSend(nil, false, 3, from)
	want, _ = f.AppendSegment(want, 1316)
	room := bytes.Repeat([]byte{0xff}, len(want))
	var got []byte
	n := testing.AllocsPerRun(10, func() {
		for i := range room {
			room[i] = 0xff
		}
		got, _ = f.AppendSend(room[:0], false, 3, from)
		got, _ = f.AppendSegment(got, 1316)
	})
	if n != 0 || !bytes.Equal(got, want) {
		t.Errorf("%v allocations, %x, want 0, %x", n, got, want)
	}
}
