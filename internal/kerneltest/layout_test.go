//go:build !plan9

package kerneltest

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestLayouts sends requests written down by hand from each system's headers:
// 239.1.2.3 or ff3e::1 on interface 2, source 10.0.0.1 or 2001:db8::1.
func TestLayouts(t *testing.T) {
	const (
		v4, v6 = "ef010203", "ff3e0000000000000000000000000001"
		s4, s6 = "0a000001", "20010db8000000000000000000000001"
	)
	be := func() *Kernel { k := Linux(); k.Order = binary.BigEndian; return k }
	w32 := func(f func() *Kernel) func() *Kernel {
		return func() *Kernel { k := f(); k.Word = 32; return k }
	}
	for _, tt := range []struct {
		name       string
		kernel     func() *Kernel
		level, opt int
		value      []byte
		want       string // decoded, without the answer
		first      bool   // works on a fresh socket
		shorter    syscall.Errno
	}{
		{
			name: "linux", kernel: Linux, level: 0, opt: 42, first: true, shorter: 22,
			value: bytesAt(136, 0, "02000000", 8, "0200 0000", 12, v4), want: "MCAST_JOIN_GROUP 239.1.2.3%2 []",
		},
		{
			name: "linux 32", kernel: w32(Linux), level: 0, opt: 42, first: true, shorter: 22,
			value: bytesAt(132, 0, "02000000", 4, "0200 0000", 8, v4), want: "MCAST_JOIN_GROUP 239.1.2.3%2 []",
		},
		{
			name: "linux big-endian", kernel: be, level: 0, opt: 42, first: true, shorter: 22,
			value: bytesAt(136, 0, "00000002", 8, "0002 0000", 12, v4), want: "MCAST_JOIN_GROUP 239.1.2.3%2 []",
		},
		{
			name: "linux IPv6", kernel: Linux, level: 41, opt: 46, first: true, shorter: 22,
			value: bytesAt(264, 0, "02000000", 8, "0a00", 16, v6, 136, "0a00", 144, s6),
			want:  "MCAST_JOIN_SOURCE_GROUP ff3e::1%2 [2001:db8::1]",
		},
		{
			name: "linux ip_mreqn", kernel: Linux, level: 0, opt: 35, first: true,
			value: bytesAt(12, 0, v4, 8, "02000000"), want: "IP_ADD_MEMBERSHIP 239.1.2.3%2 (by 0.0.0.0) []",
		},
		{
			name: "linux ip_mreq", kernel: Linux, level: 0, opt: 35, first: true, shorter: 22,
			value: bytesAt(8, 0, v4, 4, "c0000201"), want: "IP_ADD_MEMBERSHIP 239.1.2.3%0 (by 192.0.2.1) []",
		},
		{
			name: "linux ip_mreq_source", kernel: Linux, level: 0, opt: 39, first: true, shorter: 22,
			value: bytesAt(12, 0, v4, 4, "c0000201", 8, s4),
			want:  "IP_ADD_SOURCE_MEMBERSHIP 239.1.2.3%0 (by 192.0.2.1) [10.0.0.1]",
		},
		{
			name: "linux ipv6_mreq", kernel: Linux, level: 41, opt: 20, first: true, shorter: 22,
			value: bytesAt(20, 0, v6, 16, "02000000"), want: "IPV6_ADD_MEMBERSHIP ff3e::1%2 []",
		},
		{
			name: "linux group_filter", kernel: Linux, level: 0, opt: 48, shorter: 22,
			value: bytesAt(272, 0, "02000000", 8, "02000000", 12, v4, 136, "01000000", 140, "01000000", 144, "02000000", 148, s4),
			want:  "MCAST_MSFILTER 239.1.2.3%2 [10.0.0.1]",
		},
		{
			name: "linux 32 group_filter", kernel: w32(Linux), level: 0, opt: 48, shorter: 22,
			value: bytesAt(268, 0, "02000000", 4, "02000000", 8, v4, 136, "01000000", 140, "02000000", 144, s4),
			want:  "MCAST_MSFILTER 239.1.2.3%2 exclude [10.0.0.1]",
		},
		{
			name: "linux ip_msfilter", kernel: Linux, level: 0, opt: 41, shorter: 22,
			value: bytesAt(20, 0, v4, 4, "c0000201", 8, "00000000", 12, "01000000", 16, s4),
			want:  "IP_MSFILTER 239.1.2.3%0 (by 192.0.2.1) exclude [10.0.0.1]",
		},

		{
			name: "darwin", kernel: Darwin, level: 0, opt: 80, first: true, shorter: 22,
			value: bytesAt(132, 0, "02000000", 4, "1002 0000", 8, v4), want: "MCAST_JOIN_GROUP 239.1.2.3%2 []",
		},
		{
			name: "darwin IPv6", kernel: Darwin, level: 41, opt: 82, first: true, shorter: 22,
			value: bytesAt(260, 0, "02000000", 4, "1c1e", 12, v6, 132, "1c1e", 140, s6),
			want:  "MCAST_JOIN_SOURCE_GROUP ff3e::1%2 [2001:db8::1]",
		},
		{
			name: "darwin ip_mreq, index", kernel: Darwin, level: 0, opt: 12, first: true, shorter: 22,
			value: bytesAt(8, 0, v4, 4, "00000002"), want: "IP_ADD_MEMBERSHIP 239.1.2.3%2 (by 0.0.0.2) []",
		},
		{
			name: "darwin ip_mreq_source", kernel: Darwin, level: 0, opt: 70, first: true, shorter: 22,
			value: bytesAt(12, 0, v4, 4, s4, 8, "00000002"),
			want:  "IP_ADD_SOURCE_MEMBERSHIP 239.1.2.3%2 (by 0.0.0.2) [10.0.0.1]",
		},
		{
			name: "darwin ipv6_mreq", kernel: Darwin, level: 41, opt: 12, first: true, shorter: 22,
			value: bytesAt(20, 0, v6, 16, "02000000"), want: "IPV6_JOIN_GROUP ff3e::1%2 []",
		},
		{
			name: "darwin __msfilterreq", kernel: Darwin, level: 0, opt: 74, shorter: 14,
			value: bytesAt(280, 0, "02000000", 4, "02000000", 8, "01000000", 16, "10020000", 20, v4, 152, "10020000", 156, s4),
			want:  "IP_MSFILTER 239.1.2.3%2 exclude [10.0.0.1]",
		},
		{
			name: "darwin IPv6 __msfilterreq", kernel: Darwin, level: 41, opt: 74, shorter: 14,
			value: bytesAt(280, 0, "02000000", 4, "01000000", 8, "01000000", 16, "1c1e", 24, v6, 152, "1c1e", 160, s6),
			want:  "IPV6_MSFILTER ff3e::1%2 [2001:db8::1]",
		},

		{
			name: "freebsd", kernel: FreeBSD, level: 0, opt: 80, first: true, shorter: 22,
			value: bytesAt(136, 0, "02000000", 8, "1002 0000", 12, v4), want: "MCAST_JOIN_GROUP 239.1.2.3%2 []",
		},
		{
			name: "freebsd IPv6", kernel: FreeBSD, level: 41, opt: 82, first: true, shorter: 22,
			value: bytesAt(264, 0, "02000000", 8, "1c1c", 16, v6, 136, "1c1c", 144, s6),
			want:  "MCAST_JOIN_SOURCE_GROUP ff3e::1%2 [2001:db8::1]",
		},
		{
			name: "freebsd ip_mreqn", kernel: FreeBSD, level: 0, opt: 12, first: true,
			value: bytesAt(12, 0, v4, 8, "02000000"), want: "IP_ADD_MEMBERSHIP 239.1.2.3%2 (by 0.0.0.0) []",
		},
		{
			name: "freebsd 386 __msfilterreq", kernel: w32(FreeBSD), level: 0, opt: 74, shorter: 14,
			value: bytesAt(272, 0, "02000000", 4, "01000000", 8, "01000000", 12, "10020000", 16, v4, 144, "10020000", 148, s4),
			want:  "IP_MSFILTER 239.1.2.3%2 [10.0.0.1]",
		},

		{
			name: "windows ip_mreq, index", kernel: Windows, level: 0, opt: 12, first: true, shorter: 10014,
			value: bytesAt(8, 0, v4, 4, "00000002"), want: "IP_ADD_MEMBERSHIP 239.1.2.3%2 (by 0.0.0.2) []",
		},
		{
			name: "windows ip_mreq_source", kernel: Windows, level: 0, opt: 15, first: true, shorter: 10014,
			value: bytesAt(12, 0, v4, 4, s4, 8, "00000002"),
			want:  "IP_ADD_SOURCE_MEMBERSHIP 239.1.2.3%2 (by 0.0.0.2) [10.0.0.1]",
		},
		{
			name: "windows IPv6", kernel: Windows, level: 41, opt: 45, first: true, shorter: 10014,
			value: bytesAt(264, 0, "02000000", 8, "1700", 16, v6, 136, "1700", 144, s6),
			want:  "MCAST_JOIN_SOURCE_GROUP ff3e::1%2 [2001:db8::1]",
		},
		{
			name: "windows 32", kernel: w32(Windows), level: 41, opt: 41, first: true, shorter: 10014,
			value: bytesAt(136, 0, "02000000", 8, "1700", 16, v6), want: "MCAST_JOIN_GROUP ff3e::1%2 []",
		},
		{
			name: "windows ip_msfilter", kernel: Windows, level: ioctl, opt: 0x7D, shorter: 10014,
			value: bytesAt(20, 0, v4, 4, "00000002", 8, "01000000", 12, "01000000", 16, s4),
			want:  "SIO_SET_MULTICAST_FILTER 239.1.2.3%2 (by 0.0.0.2) exclude [10.0.0.1]",
		},
		{
			name: "windows group_filter", kernel: Windows, level: ioctl, opt: 0x7E, shorter: 10014,
			value: bytesAt(272, 0, "02000000", 8, "1700", 16, v6, 136, "00000000", 140, "01000000", 144, "1700", 152, s6),
			want:  "SIOCSMSFILTER ff3e::1%2 [2001:db8::1]",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := tt.kernel()
			send := func(value []byte) (*Socket, error) {
				s := k.Socket(tt.level == 41 || strings.Contains(tt.want, "ff3e"))
				if !tt.first {
					group := addr("239.1.2.3")
					if s.ipv6 {
						group = addr("ff3e::1")
					}
					if err := ask(s, joinOp, 2, group, netip.Addr{}); err != nil {
						t.Fatal(err)
					}
				}
				if tt.level == ioctl {
					_, err := s.Ioctl(0x80047400|uint32(tt.opt), value, nil)
					return s, err
				}
				return s, s.Setsockopt(tt.level, tt.opt, value)
			}
			s, err := send(tt.value)
			rs := s.Requests()
			if got := rs[len(rs)-1].String(); err != nil || got != tt.want+": ok" {
				t.Errorf("got %q, want %q", got, tt.want+": ok")
			}
			if ms := s.Memberships(); len(ms) != 1 || ms[0].Interface != 2 {
				t.Errorf("memberships %v", ms)
			}
			if tt.shorter != 0 {
				if _, err := send(tt.value[:len(tt.value)-1]); err != tt.shorter {
					t.Errorf("a byte short: %s, want %d", answer(err), tt.shorter)
				}
			}
			// Another system's family, and on BSD another length, is no group.
			if strings.Contains(tt.want, "MCAST_JOIN") {
				at := k.sys.group[k.Word]
				for i := range 2 {
					wrong := slices.Clone(tt.value)
					wrong[at+i] ^= 0x40
					if _, err := send(wrong); err == nil {
						t.Errorf("byte %d of the sockaddr is not looked at", i)
					}
				}
			}
		})
	}
}
