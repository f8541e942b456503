package cmsg_test

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"example.com/mcast/internal/cmsg"
)

// parseTests are control messages written by hand: struct cmsghdr { cmsg_len,
// cmsg_level, cmsg_type }, the data, and fill. Unless it says otherwise the
// address is 232.1.2.3 or ff3e::8000:1, and the interface 3.
var parseTests = []struct {
	system  string
	ipv6    bool
	control string
	want    cmsg.Info // without address and interface, if they are the usual ones
	none    bool      // there is neither
}{
	// Linux: CMSG_ALIGN to a long (include/linux/socket.h). IP_PKTINFO 8 has
	// struct in_pktinfo { ipi_ifindex, ipi_spec_dst, ipi_addr },
	// IPV6_PKTINFO 50 struct in6_pktinfo { ipi6_addr, ipi6_ifindex }.
	{system: "linux-64-little", control: "1c00000000000000 00000000 08000000 03000000 7f000001 e8010203 @32"},
	{system: "linux-64-little", control: "1c00000000000000 00000000 08000000 03000000 7f000001 e8010203"}, // the last is not filled
	{system: "linux-64-little", ipv6: true, control: "2400000000000000 29000000 32000000 ff3e0000000000000000000080000001 03000000 @40"},
	{system: "linux-64-big", control: "000000000000001c 00000000 00000008 00000003 7f000001 e8010203 @32"},
	{system: "linux-64-big", ipv6: true, control: "0000000000000024 00000029 00000032 ff3e0000000000000000000080000001 00000003 @40"},
	{system: "linux-32-little", control: "18000000 00000000 08000000 03000000 7f000001 e8010203"},
	{system: "linux-32-little", ipv6: true, control: "20000000 29000000 32000000 ff3e0000000000000000000080000001 03000000"},
	{system: "linux-32-big", control: "00000018 00000000 00000008 00000003 7f000001 e8010203"},
	// IP_TTL 2 before it, and IPV6_HOPLIMIT 52: an int.
	{
		system: "linux-64-little", want: cmsg.Info{HopLimit: 64},
		control: "1400000000000000 00000000 02000000 40000000 @24 1c00000000000000 00000000 08000000 03000000 7f000001 e8010203 @56",
	},
	{
		system: "linux-64-little", ipv6: true, want: cmsg.Info{HopLimit: 255},
		control: "1400000000000000 29000000 34000000 ff000000 @24 2400000000000000 29000000 32000000 ff3e0000000000000000000080000001 03000000 @64",
	},
	{system: "linux-32-big", want: cmsg.Info{HopLimit: 1}, none: true, control: "00000010 00000000 00000002 00000001"},
	// SO_TIMESTAMPNS_NEW 64 and _OLD 35 at SOL_SOCKET 1, UDP_GRO 104 at IPPROTO_UDP 17, each before and after.
	{
		system: "linux-64-little", want: cmsg.Info{Time: stamp, Segment: 1316},
		control: "2000000000000000 01000000 40000000 0403020100000000 8813000000000000 1c00000000000000 00000000 08000000 03000000 7f000001 e8010203 @64" +
			" 1400000000000000 11000000 68000000 24050000 @88",
	},
	{
		system: "linux-64-little", ipv6: true, want: cmsg.Info{Time: stamp, Segment: 1316},
		control: "1400000000000000 11000000 68000000 24050000 @24 2400000000000000 29000000 32000000 ff3e0000000000000000000080000001 03000000 @64" +
			" 2000000000000000 01000000 23000000 0403020100000000 8813000000000000",
	},
	{system: "linux-64-big", want: cmsg.Info{Time: stamp}, none: true, control: "0000000000000020 00000001 00000040 0000000001020304 0000000000001388"},
	{system: "linux-32-little", want: cmsg.Info{Time: stamp}, none: true, control: "14000000 01000000 23000000 04030201 88130000"},
	{system: "linux-32-little", want: cmsg.Info{Time: stamp}, none: true, control: "1c000000 01000000 40000000 0403020100000000 8813000000000000"},
	{system: "linux-32-big", want: cmsg.Info{Time: stamp}, none: true, control: "00000014 00000001 00000023 01020304 00001388"},
	{system: "linux-mips", want: cmsg.Info{Time: stamp}, none: true, control: "00000014 0000ffff 00000023 01020304 00001388"},
	{system: "linux-mips", none: true, control: "00000014 00000001 00000023 01020304 00001388"},
	// The year 1901 on a 32-bit system, before the epoch.
	{system: "linux-32-little", want: cmsg.Info{Time: time.Unix(-1<<31, 1)}, none: true, control: "14000000 01000000 23000000 00000080 01000000"},
	// IPv4 on an IPv6 socket: ::ffff:232.1.2.3.
	{
		system: "linux-64-little", ipv6: true, want: cmsg.Info{Dst: netip.MustParseAddr("232.1.2.3"), Index: 3},
		control: "2400000000000000 29000000 32000000 00000000000000000000ffffe8010203 03000000 @40",
	},
	// Linux embeds no interface: ff02:3::1 is meant.
	{
		system: "linux-64-little", ipv6: true, want: cmsg.Info{Dst: netip.MustParseAddr("ff02:3::1"), Index: 3},
		control: "2400000000000000 29000000 32000000 ff020003000000000000000000000001 03000000 @40",
	},
	// An interface of more than 16 bits.
	{
		system: "linux-64-little", want: cmsg.Info{Dst: netip.MustParseAddr("232.1.2.3"), Index: 0x01020304},
		control: "1c00000000000000 00000000 08000000 04030201 7f000001 e8010203 @32",
	},

	// macOS: cmsg_len has 4 bytes, all is aligned to 4 (bsd/sys/socket.h). IP_PKTINFO 26, IPV6_PKTINFO 46;
	// SCM_TIMESTAMP 2 at SOL_SOCKET 0xffff has struct timeval { int64, int32 } and fill.
	{system: "darwin", control: "18000000 00000000 1a000000 03000000 7f000001 e8010203"},
	{system: "darwin", ipv6: true, control: "20000000 29000000 2e000000 ff3e0000000000000000000080000001 03000000"},
	{
		system: "darwin", want: cmsg.Info{Time: stamp},
		control: "1c000000 ffff0000 02000000 0403020100000000 05000000 00000000 18000000 00000000 1a000000 03000000 7f000001 e8010203",
	},
	// IP_RECVTTL 24 has one byte and its fill, IPV6_HOPLIMIT 47 an int.
	{
		system: "darwin", want: cmsg.Info{HopLimit: 255},
		control: "0d000000 00000000 18000000 ff000000 18000000 00000000 1a000000 03000000 7f000001 e8010203",
	},
	{system: "darwin", want: cmsg.Info{HopLimit: 4}, none: true, control: "0d000000 00000000 18000000 04ffffff"}, // the fill may be anything
	{
		system: "darwin", ipv6: true, want: cmsg.Info{HopLimit: 4},
		control: "10000000 29000000 2f000000 04000000 20000000 29000000 2e000000 ff3e0000000000000000000080000001 03000000",
	},
	// KAME: ff02::1 on interface 3 as ff02:3::1.
	{
		system: "darwin", ipv6: true, want: cmsg.Info{Dst: netip.MustParseAddr("ff02::1"), Index: 3},
		control: "20000000 29000000 2e000000 ff020003000000000000000000000001 03000000",
	},
	{
		system: "darwin", ipv6: true, want: cmsg.Info{Dst: netip.MustParseAddr("ff12::1"), Index: 3},
		control: "20000000 29000000 2e000000 ff120003000000000000000000000001 03000000",
	},
	{
		system: "darwin", ipv6: true, want: cmsg.Info{Dst: netip.MustParseAddr("ff01::1"), Index: 3},
		control: "20000000 29000000 2e000000 ff010003000000000000000000000001 03000000",
	},
	{
		system: "darwin", ipv6: true, want: cmsg.Info{Dst: netip.MustParseAddr("fe80::1"), Index: 0x102},
		control: "20000000 29000000 2e000000 fe800102000000000000000000000001 02010000",
	},
	{ // no scope that is bound to a link, nothing embedded
		system: "darwin", ipv6: true, want: cmsg.Info{Dst: netip.MustParseAddr("ff3e:3::1"), Index: 3},
		control: "20000000 29000000 2e000000 ff3e0003000000000000000000000001 03000000",
	},
	{ // another interface's number: not embedded
		system: "darwin", ipv6: true, want: cmsg.Info{Dst: netip.MustParseAddr("ff02:4::1"), Index: 3},
		control: "20000000 29000000 2e000000 ff020004000000000000000000000001 03000000",
	},
	{
		system: "darwin", ipv6: true, want: cmsg.Info{Dst: netip.MustParseAddr("232.1.2.3"), Index: 3},
		control: "20000000 29000000 2e000000 00000000000000000000ffffe8010203 03000000",
	},

	{ // IPv4 embeds nothing, and stays IPv4
		system: "darwin", want: cmsg.Info{Dst: netip.MustParseAddr("224.0.0.1")},
		control: "18000000 00000000 1a000000 00000000 7f000001 e0000001",
	},
	// No more than is needed of a struct: its fill and its end may be missing.
	{system: "darwin", none: true, want: cmsg.Info{Time: stamp}, control: "18000000 ffff0000 02000000 0403020100000000 05000000"},
	{system: "freebsd-64", control: "14000000 00000000 14000000 @16 3612 0300 @24 14000000 00000000 07000000 @40 e8010203 @48"},

	// FreeBSD: cmsg_len has 4 bytes, aligned to a long (sys/sys/socket.h). IP_RECVDSTADDR 7 has an in_addr,
	// IP_RECVIF 20 a struct sockaddr_dl { sdl_len, sdl_family, sdl_index … }, in either order.
	{
		system:  "freebsd-64",
		control: "14000000 00000000 07000000 @16 e8010203 @24 46000000 00000000 14000000 @40 3612 0300 @96",
	},
	{
		system:  "freebsd-64",
		control: "18000000 00000000 14000000 @16 0812 0300 06000000 @24 14000000 00000000 07000000 @40 e8010203 @48",
	},
	{system: "freebsd-64", ipv6: true, control: "24000000 29000000 2e000000 @16 ff3e0000000000000000000080000001 03000000 @40"},
	{
		system:  "freebsd-386",
		control: "10000000 00000000 07000000 e8010203 42000000 00000000 14000000 3612 0300 @84",
	},
	{system: "freebsd-386", ipv6: true, control: "20000000 29000000 2e000000 ff3e0000000000000000000080000001 03000000"},
	{
		system:  "freebsd-arm",
		control: "10000000 00000000 07000000 e8010203 42000000 00000000 14000000 3612 0300 @84",
	},
	{
		system: "freebsd-64", ipv6: true, want: cmsg.Info{Dst: netip.MustParseAddr("ff02::1"), Index: 3},
		control: "24000000 29000000 2e000000 @16 ff020003000000000000000000000001 03000000 @40",
	},
	// IP_RECVTTL 65 has one byte, IPV6_HOPLIMIT 47 an int.
	{
		system: "freebsd-64", want: cmsg.Info{Dst: netip.MustParseAddr("232.1.2.3"), HopLimit: 255},
		control: "11000000 00000000 41000000 @16 ff @24 14000000 00000000 07000000 @40 e8010203 @48",
	},
	{system: "freebsd-64", ipv6: true, none: true, want: cmsg.Info{HopLimit: 64}, control: "14000000 29000000 2f000000 @16 40000000 @24"},
	{system: "freebsd-386", none: true, want: cmsg.Info{HopLimit: 64}, control: "0d000000 00000000 41000000 40"},
	// SCM_TIMESTAMP 2 has struct timeval { time_t, long }: time_t has 4 bytes on 386 alone.
	{system: "freebsd-64", none: true, want: cmsg.Info{Time: stamp}, control: "20000000 ffff0000 02000000 @16 0403020100000000 0500000000000000"},
	{system: "freebsd-386", none: true, want: cmsg.Info{Time: stamp}, control: "14000000 ffff0000 02000000 04030201 05000000"},
	{system: "freebsd-arm", none: true, want: cmsg.Info{Time: stamp}, control: "1c000000 ffff0000 02000000 0403020100000000 05000000 00000000"},

	// Windows: cmsg_len is a SIZE_T (WSACMSGHDR in ws2def.h). IP_PKTINFO 19 has struct in_pktinfo
	// { ipi_addr, ipi_ifindex }, IPV6_PKTINFO 19 struct in6_pktinfo.
	// https://learn.microsoft.com/en-us/windows/win32/api/ws2ipdef/ns-ws2ipdef-in_pktinfo
	{system: "windows-64", control: "1800000000000000 00000000 13000000 e8010203 03000000"},
	{system: "windows-64", ipv6: true, control: "2400000000000000 29000000 13000000 ff3e0000000000000000000080000001 03000000 @40"},
	{system: "windows-32", control: "14000000 00000000 13000000 e8010203 03000000"},
	{system: "windows-32", ipv6: true, control: "20000000 29000000 13000000 ff3e0000000000000000000080000001 03000000"},
	// IP_TTL 4 and IPV6_HOPLIMIT 21 have an int.
	{
		system: "windows-64", want: cmsg.Info{HopLimit: 128},
		control: "1800000000000000 00000000 13000000 e8010203 03000000 1400000000000000 00000000 04000000 80000000 @48",
	},
	{
		system: "windows-64", ipv6: true, want: cmsg.Info{HopLimit: 128},
		control: "1400000000000000 29000000 15000000 80000000 @24 2400000000000000 29000000 13000000 ff3e0000000000000000000080000001 03000000 @64",
	},
	{system: "windows-32", none: true, want: cmsg.Info{HopLimit: 1}, control: "10000000 00000000 04000000 01000000"},
	// UDP_COALESCED_INFO 3 at IPPROTO_UDP is not asked for, and not read.
	{
		system:  "windows-64",
		control: "1400000000000000 11000000 03000000 24050000 @24 1800000000000000 00000000 13000000 e8010203 03000000",
	},

	// Nothing of use: no message, one of the other family, one that is cut or lies about its length.
	{system: "linux-64-little", none: true, control: ""},
	{system: "linux-64-little", none: true, control: "1c00000000000000 00000000"},
	{system: "linux-64-little", none: true, control: "2400000000000000 29000000 32000000 ff3e0000000000000000000080000001 03000000 @40"},
	{system: "linux-64-little", none: true, ipv6: true, control: "1c00000000000000 00000000 08000000 03000000 7f000001 e8010203 @32"},
	{system: "linux-64-little", none: true, control: "1c00000000000000 00000000 08000000 03000000 7f000001"},
	{system: "linux-64-little", none: true, control: "1800000000000000 00000000 08000000 03000000 7f000001 @32"},
	{system: "linux-64-little", none: true, control: "0000000000000000 00000000 08000000 03000000 7f000001 e8010203 @32"},
	{system: "linux-64-little", none: true, control: "0f00000000000000 00000000 08000000 03000000 7f000001 e8010203 @32"},
	{system: "linux-64-little", none: true, control: "ffffffffffffffff 00000000 08000000 03000000 7f000001 e8010203 @32"},
	{system: "linux-64-little", none: true, control: "1c00000001000000 00000000 08000000 03000000 7f000001 e8010203 @32"},
	{system: "darwin", none: true, control: "ffffffff 00000000 1a000000 03000000 7f000001 e8010203"},
	{system: "freebsd-64", none: true, control: "0c000000 00000000 07000000"},
	// Data that are too short, and numbers that no kernel gives.
	{system: "linux-64-little", none: true, ipv6: true, control: "2300000000000000 29000000 32000000 ff3e0000000000000000000080000001 03000000 @40"},
	{system: "linux-64-little", none: true, control: "1300000000000000 00000000 02000000 40000000 @24"},
	{system: "linux-64-little", none: true, control: "1300000000000000 11000000 68000000 24050000 @24"},
	{system: "linux-64-little", none: true, control: "1f00000000000000 01000000 40000000 0403020100000000 8813000000000000"},
	{system: "linux-64-little", none: true, control: "1400000000000000 00000000 02000000 00010000 @24"},
	{system: "linux-64-little", none: true, control: "1400000000000000 00000000 02000000 ffffffff @24"},
	{system: "linux-64-little", none: true, control: "1400000000000000 11000000 68000000 ffffffff @24"},
	{
		system: "linux-64-little", want: cmsg.Info{Dst: netip.MustParseAddr("232.1.2.3")},
		control: "1c00000000000000 00000000 08000000 ffffffff 7f000001 e8010203 @32",
	},
	{system: "darwin", none: true, control: "0c000000 00000000 18000000"},
	{system: "freebsd-64", none: true, control: "13000000 00000000 14000000 @16 0812 0300 @24"},
	// The right number at another level.
	{system: "linux-64-little", none: true, control: "1400000000000000 01000000 68000000 24050000 @24"},
	{system: "linux-64-little", none: true, control: "1400000000000000 02000000 68000000 24050000 @24"},
	{system: "linux-64-little", none: true, control: "1400000000000000 11000000 02000000 40000000 @24"},
	{system: "windows-64", none: true, control: "1400000000000000 11000000 00000000 24050000 @24"},
	{system: "none", none: true, control: "10000000 00000000 00000000 01000000 10000000 11000000 00000000 01000000"},
	{system: "none", none: true, ipv6: true, control: "10000000 29000000 00000000 01000000"},
}

var stamp = time.Unix(0x01020304, 5000)

func TestParse(t *testing.T) {
	tested := map[string]bool{}
	for _, tt := range parseTests {
		f, ok := formats[tt.system]
		if tt.system == "none" {
			f, ok = cmsg.None, true
		}
		if !ok {
			t.Fatalf("no format %s", tt.system)
		}
		tested[tt.system] = true
		if !tt.want.Dst.IsValid() && !tt.none {
			tt.want.Dst, tt.want.Index = netip.MustParseAddr("232.1.2.3"), 3
			if tt.ipv6 {
				tt.want.Dst = netip.MustParseAddr("ff3e::8000:1")
			}
		}
		if got := f.Parse(hexBytes(t, tt.control), tt.ipv6); got != tt.want {
			t.Errorf("%s %s\n got %+v\nwant %+v", tt.system, tt.control, got, tt.want)
		}
	}
	for name := range formats {
		if !tested[name] {
			t.Errorf("%s is not tested", name)
		}
	}
}

// FuzzParse: no bytes make the reading panic or loop, or are changed; and what
// it tells keeps to what the fields of an Info say. What is cut anywhere tells
// nothing else than the whole. (Bytes that follow may tell something else.)
func FuzzParse(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{12, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0})
	f.Add(bytes.Repeat([]byte{0xff}, 40))
	for _, tt := range parseTests {
		if b, err := fromHex(tt.control); err == nil {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		kept := bytes.Clone(b)
		for name, format := range formats {
			for _, ipv6 := range []bool{false, true} {
				info := format.Parse(b, ipv6)
				switch {
				case info.Index < 0, info.Segment < 0, info.HopLimit < 0, info.HopLimit > 255:
					t.Fatalf("%s: %x has a number that is none: %+v", name, b, info)
				case info.Dst.Is4In6(), info.Dst.Zone() != "", info.Dst.Is6() && !ipv6:
					t.Fatalf("%s: %x has the address %v", name, b, info.Dst)
				}
			}
		}
		if !bytes.Equal(b, kept) {
			t.Fatalf("changed %x to %x", kept, b)
		}
		for _, ipv6 := range []bool{false, true} {
			if info := cmsg.None.Parse(b, ipv6); info != (cmsg.Info{}) {
				t.Fatalf("none: %x is %+v", b, info)
			}
		}
	})
}

// TestParseCut cuts messages anywhere: what is left tells what the whole does,
// or nothing.
func TestParseCut(t *testing.T) {
	for _, tt := range parseTests {
		f, ok := formats[tt.system]
		if !ok {
			continue
		}
		b := hexBytes(t, tt.control)
		whole := f.Parse(b, tt.ipv6)
		for n := range b {
			got := f.Parse(b[:n], tt.ipv6)
			if got.Dst.IsValid() && got.Dst != whole.Dst || got.Index != 0 && got.Index != whole.Index ||
				!got.Time.IsZero() && got.Time != whole.Time || got.HopLimit != 0 && got.HopLimit != whole.HopLimit ||
				got.Segment != 0 && got.Segment != whole.Segment {
				t.Errorf("%s: %d bytes of %s\n got %+v\nwant %+v, or less", tt.system, n, tt.control, got, whole)
			}
		}
	}
}

func TestParseAllocates(t *testing.T) {
	for _, tt := range parseTests {
		f, ok := formats[tt.system]
		if !ok {
			continue
		}
		b := hexBytes(t, tt.control)
		var info cmsg.Info
		if n := testing.AllocsPerRun(10, func() { info = f.Parse(b, tt.ipv6) }); n != 0 {
			t.Errorf("%s: %v allocations for %+v, want 0", tt.system, n, info)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	for _, name := range []string{"linux-64-little", "freebsd-64"} {
		for _, tt := range parseTests[:] {
			if tt.system != name || tt.ipv6 {
				continue
			}
			control, err := fromHex(tt.control)
			if err != nil {
				b.Fatal(err)
			}
			f := formats[name]
			b.Run(name, func(b *testing.B) {
				for b.Loop() {
					f.Parse(control, false)
				}
			})
			break
		}
	}
}
