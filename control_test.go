//go:build !plan9

package mcast

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

// controlSystems are the systems whose control messages are read.
var controlSystems = map[string]*platform{
	"linux-64-little": linuxPlatform(8, binary.LittleEndian),
	"linux-64-big":    linuxPlatform(8, binary.BigEndian),
	"linux-32-little": linuxPlatform(4, binary.LittleEndian),
	"linux-32-big":    linuxPlatform(4, binary.BigEndian),
	"darwin":          darwinPlatform(),
	"freebsd-64":      freebsdPlatform(8, 8),
	"freebsd-32":      freebsdPlatform(4, 4),
	"windows-64":      windowsPlatform(8),
	"windows-32":      windowsPlatform(4),
}

// TestControl reads messages written by hand, in the notation of
// testdata/golden: struct cmsghdr { cmsg_len, cmsg_level, cmsg_type }, the data,
// and fill. The group is 232.1.2.3 or ff3e::8000:1, the interface 3.
func TestControl(t *testing.T) {
	stamp := time.Unix(0x01020304, 5000)
	tests := []struct {
		system  string
		six     bool
		control string
		want    arrival // without the group, if it is the usual one
		none    bool    // there is no group
	}{
		// Linux: CMSG_ALIGN to a long (include/linux/socket.h). IP_PKTINFO 8 has
		// struct in_pktinfo { ipi_ifindex, ipi_spec_dst, ipi_addr },
		// IPV6_PKTINFO 50 struct in6_pktinfo { ipi6_addr, ipi6_ifindex }.
		{system: "linux-64-little", control: "1c00000000000000 00000000 08000000 03000000 7f000001 e8010203 @32"},
		{system: "linux-64-little", control: "1c00000000000000 00000000 08000000 03000000 7f000001 e8010203"}, // the last is not filled
		{system: "linux-64-little", six: true, control: "2400000000000000 29000000 32000000 ff3e0000000000000000000080000001 03000000 @40"},
		{system: "linux-64-big", control: "000000000000001c 00000000 00000008 00000003 7f000001 e8010203 @32"},
		{system: "linux-64-big", six: true, control: "0000000000000024 00000029 00000032 ff3e0000000000000000000080000001 00000003 @40"},
		{system: "linux-32-little", control: "18000000 00000000 08000000 03000000 7f000001 e8010203"},
		{system: "linux-32-little", six: true, control: "20000000 29000000 32000000 ff3e0000000000000000000080000001 03000000"},
		{system: "linux-32-big", control: "00000018 00000000 00000008 00000003 7f000001 e8010203"},
		// IP_TTL 2 before it, and IPV6_HOPLIMIT 52.
		{system: "linux-64-little", control: "1400000000000000 00000000 02000000 40000000 @24 1c00000000000000 00000000 08000000 03000000 7f000001 e8010203 @56"},
		{system: "linux-64-little", six: true, control: "1400000000000000 29000000 34000000 40000000 @24 2400000000000000 29000000 32000000 ff3e0000000000000000000080000001 03000000 @64"},
		// SO_TIMESTAMPNS_NEW 64 and _OLD 35 at SOL_SOCKET 1, UDP_GRO 104 at IPPROTO_UDP 17, each before and after.
		{
			system: "linux-64-little", want: arrival{time: stamp, segment: 1316},
			control: "2000000000000000 01000000 40000000 0403020100000000 8813000000000000 1c00000000000000 00000000 08000000 03000000 7f000001 e8010203 @64" +
				" 1400000000000000 11000000 68000000 24050000 @88",
		},
		{
			system: "linux-64-little", six: true, want: arrival{time: stamp, segment: 1316},
			control: "1400000000000000 11000000 68000000 24050000 @24 2400000000000000 29000000 32000000 ff3e0000000000000000000080000001 03000000 @64" +
				" 2000000000000000 01000000 23000000 0403020100000000 8813000000000000",
		},
		{system: "linux-32-little", want: arrival{time: stamp}, none: true, control: "14000000 01000000 23000000 04030201 88130000"},
		{system: "linux-32-little", want: arrival{time: stamp}, none: true, control: "1c000000 01000000 40000000 0403020100000000 8813000000000000"},
		{system: "linux-32-big", want: arrival{time: stamp}, none: true, control: "00000014 00000001 00000023 01020304 00001388"},

		// macOS: cmsg_len has 4 bytes, all is aligned to 4 (bsd/sys/socket.h). IP_PKTINFO 26, IPV6_PKTINFO 46;
		// SCM_TIMESTAMP 2 at SOL_SOCKET 0xffff has struct timeval { int64, int32 } and fill.
		{system: "darwin", control: "18000000 00000000 1a000000 03000000 7f000001 e8010203"},
		{system: "darwin", six: true, control: "20000000 29000000 2e000000 ff3e0000000000000000000080000001 03000000"},
		{
			system: "darwin", want: arrival{time: stamp},
			control: "1c000000 ffff0000 02000000 0403020100000000 05000000 00000000 18000000 00000000 1a000000 03000000 7f000001 e8010203",
		},
		// KAME: ff02::1 on interface 3 as ff02:3::1.
		{
			system: "darwin", six: true, want: arrival{group: Group{netip.MustParseAddr("ff02::1"), 3}},
			control: "20000000 29000000 2e000000 ff020003000000000000000000000001 03000000",
		},
		{
			system: "darwin", six: true, want: arrival{group: Group{netip.MustParseAddr("ff12::1"), 3}},
			control: "20000000 29000000 2e000000 ff120003000000000000000000000001 03000000",
		},
		{ // no scope that is bound to a link, nothing embedded
			system: "darwin", six: true, want: arrival{group: Group{netip.MustParseAddr("ff3e:3::1"), 3}},
			control: "20000000 29000000 2e000000 ff3e0003000000000000000000000001 03000000",
		},

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
		{system: "freebsd-64", six: true, control: "24000000 29000000 2e000000 @16 ff3e0000000000000000000080000001 03000000 @40"},
		{
			system:  "freebsd-32",
			control: "10000000 00000000 07000000 e8010203 42000000 00000000 14000000 3612 0300 @84",
		},
		{system: "freebsd-32", six: true, control: "20000000 29000000 2e000000 ff3e0000000000000000000080000001 03000000"},

		// Windows: cmsg_len is a SIZE_T (WSACMSGHDR in ws2def.h). IP_PKTINFO 19 has struct in_pktinfo
		// { ipi_addr, ipi_ifindex }, IPV6_PKTINFO 19 struct in6_pktinfo; UDP_COALESCED_INFO 3 at IPPROTO_UDP a DWORD.
		// https://learn.microsoft.com/en-us/windows/win32/api/ws2ipdef/ns-ws2ipdef-in_pktinfo
		{system: "windows-64", control: "1800000000000000 00000000 13000000 e8010203 03000000"},
		{system: "windows-64", six: true, control: "2400000000000000 29000000 13000000 ff3e0000000000000000000080000001 03000000 @40"},
		{
			system: "windows-64", want: arrival{segment: 1316},
			control: "1400000000000000 11000000 03000000 24050000 @24 1800000000000000 00000000 13000000 e8010203 03000000",
		},
		{system: "windows-32", control: "14000000 00000000 13000000 e8010203 03000000"},

		// Nothing of use: no message, one of the other family, one that is cut or lies about its length.
		{system: "linux-64-little", none: true, control: ""},
		{system: "linux-64-little", none: true, control: "1c00000000000000 00000000"},
		{system: "linux-64-little", none: true, control: "2400000000000000 29000000 32000000 ff3e0000000000000000000080000001 03000000 @40"},
		{system: "linux-64-little", none: true, six: true, control: "1c00000000000000 00000000 08000000 03000000 7f000001 e8010203 @32"},
		{system: "linux-64-little", none: true, control: "1c00000000000000 00000000 08000000 03000000 7f000001"},
		{system: "linux-64-little", none: true, control: "1800000000000000 00000000 08000000 03000000 7f000001 @32"},
		{system: "linux-64-little", none: true, control: "0000000000000000 00000000 08000000 03000000 7f000001 e8010203 @32"},
		{system: "linux-64-little", none: true, control: "0f00000000000000 00000000 08000000 03000000 7f000001 e8010203 @32"},
		{system: "linux-64-little", none: true, control: "ffffffffffffffff 00000000 08000000 03000000 7f000001 e8010203 @32"},
		{system: "darwin", none: true, control: "ffffffff 00000000 1a000000 03000000 7f000001 e8010203"},
		{system: "freebsd-64", none: true, control: "0c000000 00000000 07000000"},
	}
	for _, tt := range tests {
		p := controlSystems[tt.system]
		f := p.controls()
		if tt.want.group == (Group{}) && !tt.none {
			tt.want.group = Group{netip.MustParseAddr("232.1.2.3"), 3}
			if tt.six {
				tt.want.group.Addr = netip.MustParseAddr("ff3e::8000:1")
			}
		}
		if got := f.parse(goldenBytes(t, tt.control), p.order, tt.six); got != tt.want {
			t.Errorf("%s %s\n got %+v\nwant %+v", tt.system, tt.control, got, tt.want)
		}
	}
	for name := range controlSystems {
		found := false
		for _, tt := range tests {
			found = found || tt.system == name
		}
		if !found && name != "windows-32" {
			t.Errorf("%s is not tested", name)
		}
	}
}

// buildControl lays out what a system would say of a datagram.
func buildControl(p *platform, f controlFormat, g Group) (b []byte) {
	infos, level := f.ip, uint32(levelIP)
	if g.Addr.Is6() {
		infos, level = f.ipv6, levelIPv6
	}
	for _, info := range infos {
		data := make([]byte, info.size)
		if info.addr >= 0 {
			copy(data[info.addr:], g.Addr.AsSlice())
		}
		switch {
		case info.short:
			p.order.PutUint16(data[info.index:], uint16(g.Interface))
		case info.index >= 0:
			p.order.PutUint32(data[info.index:], uint32(g.Interface))
		}
		for len(b)%f.align != 0 {
			b = append(b, 0)
		}
		header := make([]byte, (f.word+8+f.align-1)/f.align*f.align)
		if n := len(header) + len(data); f.word == 8 {
			p.order.PutUint64(header, uint64(n))
		} else {
			p.order.PutUint32(header, uint32(n))
		}
		p.order.PutUint32(header[f.word:], level)
		p.order.PutUint32(header[f.word+4:], uint32(info.message))
		b = append(append(b, header...), data...)
	}
	return b
}

// FuzzControl: no bytes make the reading panic or loop, or are kept; and what
// a system says is read back, whatever else comes before and after.
func FuzzControl(f *testing.F) {
	f.Add([]byte{}, uint32(0xe8010203), uint16(3))
	f.Add([]byte{12, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0}, uint32(0xe0000001), uint16(0xffff))
	f.Add(bytes.Repeat([]byte{0xff}, 40), uint32(0xef010101), uint16(0))
	f.Add([]byte{0x14, 0, 0, 0, 0, 0, 0, 0, 0x11, 0, 0, 0, 0x68, 0, 0, 0, 0x24, 5, 0, 0, 0, 0, 0, 0}, uint32(0xffffffff), uint16(1))
	f.Fuzz(func(t *testing.T, junk []byte, group uint32, index uint16) {
		for name, p := range controlSystems {
			format := p.controls()
			for _, six := range []bool{false, true} {
				kept := bytes.Clone(junk)
				a := format.parse(junk, p.order, six)
				if !bytes.Equal(junk, kept) {
					t.Fatalf("%s: changed %x to %x", name, kept, junk)
				}
				if a.group.Addr.IsValid() && a.group.Addr.Is4() && six && !bytes.Contains(junk, []byte{0xff, 0xff}) {
					t.Fatalf("%s: %x has the group %v", name, junk, a.group)
				}

				g := Group{netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, group))), int(index)}
				if six {
					g.Addr = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x3e, 12: byte(group >> 24), 13: byte(group >> 16), 14: byte(group >> 8), 15: byte(group)})
				}
				control := buildControl(p, format, g)
				if got := format.parse(control, p.order, six); got != (arrival{group: g}) {
					t.Fatalf("%s: %x is %+v, want %v", name, control, got, g)
				}
				for len(control)%format.align != 0 {
					control = append(control, 0)
				}
				format.parse(append(control, junk...), p.order, six)
				for n := range control { // cut anywhere
					if got := format.parse(control[:n], p.order, six).group; got.Addr.IsValid() && got.Addr != g.Addr || got.Interface != 0 && got.Interface != g.Interface {
						t.Fatalf("%s: %d bytes of %x are %v", name, n, control, got)
					}
				}
			}
		}
	})
}

func TestControlAllocates(t *testing.T) {
	for name, p := range controlSystems {
		format := p.controls()
		for six, g := range goldenGroups {
			g.Interface = 3
			control := buildControl(p, format, g)
			var got arrival
			if n := testing.AllocsPerRun(100, func() { got = format.parse(control, p.order, six) }); n != 0 || got.group != g {
				t.Errorf("%s: %v allocations, %v, want 0, %v", name, n, got.group, g)
			}
		}
	}
}
