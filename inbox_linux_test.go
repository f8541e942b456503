package mcast

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What parse takes a shorter way for must come out as the format has it, and
// what only looks alike must not take it.
func TestParseControl(t *testing.T) {
	message := func(level, kind int32, data []byte) []byte {
		b := make([]byte, unix.CmsgSpace(len(data)))
		if nativeWord == 8 {
			binary.NativeEndian.PutUint64(b, uint64(unix.CmsgLen(len(data))))
		} else {
			binary.NativeEndian.PutUint32(b, uint32(unix.CmsgLen(len(data))))
		}
		binary.NativeEndian.PutUint32(b[nativeWord:], uint32(level))
		binary.NativeEndian.PutUint32(b[nativeWord+4:], uint32(kind))
		copy(b[unix.CmsgLen(0):], data)
		return b
	}
	number := func(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }
	info4 := message(unix.IPPROTO_IP, unix.IP_PKTINFO, append(number(7), 127, 0, 0, 1, 239, 1, 1, 1))
	group6 := netip.MustParseAddr("ff3e::8000:1").As16()
	info6 := message(unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, append(group6[:], number(7)...))
	hops4 := message(unix.IPPROTO_IP, unix.IP_TTL, number(33))
	hops6 := message(unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT, number(33))
	other := message(unix.SOL_UDP, unix.UDP_GRO, number(500))
	type want struct{ index, hops, segment int }
	for _, v := range []struct {
		name    string
		ipv6    bool
		control [][]byte
		want
	}{
		{"nothing", false, nil, want{}},
		{"nothing, IPv6", true, nil, want{}},
		{"info", false, [][]byte{info4}, want{7, 0, 0}},
		{"info, IPv6", true, [][]byte{info6}, want{7, 0, 0}},
		{"info, hops", false, [][]byte{info4, hops4}, want{7, 33, 0}},
		{"info, hops, IPv6", true, [][]byte{info6, hops6}, want{7, 33, 0}},
		{"hops, info", false, [][]byte{hops4, info4}, want{7, 33, 0}},
		{"hops, info, IPv6", true, [][]byte{hops6, info6}, want{7, 33, 0}},
		{"hops", false, [][]byte{hops4}, want{0, 33, 0}},
		{"hops, IPv6", true, [][]byte{hops6}, want{0, 33, 0}},
		{"info, another", false, [][]byte{info4, other}, want{7, 0, 500}},
		{"info, another, IPv6", true, [][]byte{info6, other}, want{7, 0, 500}},
		{"info, hops, another", false, [][]byte{info4, hops4, other}, want{7, 33, 500}},
		{"info, hops, another, IPv6", true, [][]byte{info6, hops6, other}, want{7, 33, 500}},
		{"info, hops of the other family", false, [][]byte{info4, hops6}, want{7, 0, 0}},
		{"info, hops of the other family, IPv6", true, [][]byte{info6, hops4}, want{7, 0, 0}},
		{"info of the other family", false, [][]byte{info6}, want{}},
		{"info of the other family, IPv6", true, [][]byte{info4}, want{}},
	} {
		t.Run(v.name, func(t *testing.T) {
			o := origin{ipv6: v.ipv6, port: 5000, control: hostSystem.control}
			var in inbox
			ms := []Message{{Buf: make([]byte, 10)}, {Buf: make([]byte, 10)}}
			in.point(ms)
			n := 0
			for _, c := range v.control {
				n += copy(in.control[controlRoom+n:], c)
			}
			h := &in.headers[1]
			h.n = 3
			h.hdr.SetControllen(n)
			// What was there before.
			got := Message{Buf: ms[1].Buf, Time: time.Unix(1, 0), HopLimit: 99, Index: 98, Port: 97, segment: 96}
			in.parse(1, &got, &o)
			var byFormat Message
			o.stamp(&byFormat, in.control[controlRoom:][:n])
			if got.Group != byFormat.Group || got.Index != byFormat.Index || got.HopLimit != byFormat.HopLimit || got.segment != byFormat.segment || got.Port != 5000 || !got.Time.IsZero() {
				t.Errorf("%+v, want %+v", got, byFormat)
			}
			if (want{got.Index, got.HopLimit, got.segment}) != v.want {
				t.Errorf("%+v, want %+v", got, v.want)
			}
		})
	}
}
