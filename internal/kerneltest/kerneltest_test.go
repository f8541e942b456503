//go:build !plan9

package kerneltest

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// bytesAt lays hexadecimal parts at their offsets into size zero bytes.
func bytesAt(size int, parts ...any) []byte {
	v := make([]byte, size)
	for i := 0; i < len(parts); i += 2 {
		b, err := hex.DecodeString(strings.ReplaceAll(parts[i+1].(string), " ", ""))
		if err != nil {
			panic(err)
		}
		copy(v[parts[i].(int):], b)
	}
	return v
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

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

// ask sends a request in the form that the system's programs use.
func ask(s *Socket, o op, index int, group, source netip.Addr) error {
	level, name, value := lay(s.k, o, index, group, source)
	return s.Setsockopt(level, name, value)
}

func lay(k *Kernel, o op, index int, group, source netip.Addr) (level, name int, value []byte) {
	want := groupReq
	if source.IsValid() {
		want = groupSource
	}
	level = levelIPv6
	if group.Is4() {
		level = levelIP
	}
	if group.Is4() && k.sys == windows {
		if want = mreq; source.IsValid() {
			want = mreqSource
		}
	}
	for at, m := range k.sys.options {
		if at.level != level || m.op != o || m.form != want {
			continue
		}
		if want == mreq || want == mreqSource {
			value = append(value, group.AsSlice()...)
			if source.IsValid() {
				value = append(value, source.AsSlice()...)
			}
			return level, int(at.number), append(value, 0, 0, 0, byte(index))
		}
		value = make([]byte, k.sys.group[k.Word])
		k.Order.PutUint32(value, uint32(index))
		value = appendSockaddr(k, value, group)
		if source.IsValid() {
			value = appendSockaddr(k, value, source)
		}
		return level, int(at.number), value
	}
	panic("no such option")
}

func appendSockaddr(k *Kernel, v []byte, a netip.Addr) []byte {
	v = append(v, make([]byte, storage)...)
	k.sys.putSockaddr(k, v[len(v)-storage:], a)
	return v
}

// setFull sets a full filter in the system's own way.
func setFull(s *Socket, index int, group netip.Addr, exclude bool, sources ...netip.Addr) error {
	k := s.k
	mode := k.sys.include
	if exclude {
		mode = k.sys.exclude
	}
	word := func(v []byte, n uint32) []byte {
		v = append(v, 0, 0, 0, 0)
		k.Order.PutUint32(v[len(v)-4:], n)
		return v
	}
	var v []byte
	switch k.sys {
	case darwin, freebsd:
		v = word(word(word(nil, uint32(index)), mode), uint32(len(sources)))
		v = append(v, make([]byte, k.layoutMSFilterReq().Group-len(v))...)
		v = appendSockaddr(k, v, group)
		v = append(v, make([]byte, k.layoutMSFilterReq().Size-len(v))...)
	default:
		v = word(nil, uint32(index))
		v = append(v, make([]byte, k.sys.group[k.Word]-4)...)
		v = appendSockaddr(k, v, group)
		v = word(word(v, mode), uint32(len(sources)))
	}
	for _, a := range sources {
		v = appendSockaddr(k, v, a)
	}
	level := levelIPv6
	if group.Is4() {
		level = levelIP
	}
	switch k.sys {
	case linux:
		return s.Setsockopt(level, 48, v)
	case windows:
		_, err := s.Ioctl(siocSMSFilter, v, nil)
		return err
	}
	return s.Setsockopt(level, 74, v)
}

var (
	g4, g6 = addr("239.1.2.3"), addr("ff3e::1")
	sa4    = []netip.Addr{addr("10.0.0.1"), addr("10.0.0.2"), addr("10.0.0.3")}
	sa6    = []netip.Addr{addr("2001:db8::1"), addr("2001:db8::2"), addr("2001:db8::3")}
)

// TestOutOfOrder walks through what each system answers to every request in every
// state, and what state is left. A cell is the answer, then the state: one of
// "-" no membership, "E" EXCLUDE(), "E1" EXCLUDE(s1), "I" INCLUDE(), "I1" and so on.
func TestOutOfOrder(t *testing.T) {
	// The requests that lead to a state, and then the one that is asked; a digit is
	// the source.
	states := []string{"-", "E", "E1", "Eu", "I1", "I12", "Il"}
	lead := map[string][]string{
		"-": {}, "E": {"join"}, "E1": {"join", "block1"}, "Eu": {"join", "block1", "unblock1"},
		"I1": {"source1"}, "I12": {"source1", "source2"}, "Il": {"source1", "drop1"},
	}
	requests := []string{"join", "source1", "source3", "block1", "block3", "unblock1", "unblock3", "leave", "drop1", "drop3"}
	tables := []struct {
		kernel func() *Kernel
		rows   string
	}{
		{Linux, `
		          -       E        E1       Eu       I1       I12      Il
		join      0,E     98,E     98,E1    98,E     98,I1    98,I12   0,E
		source1   0,I1    0,I1     22,E1    22,E     99,I1    99,I12   0,I1
		source3   0,I3    0,I3     22,E1    22,E     0,I13    0,I123   0,I3
		block1    22,-    0,E1     99,E1    0,E1     22,I1    22,I12   22,-
		block3    22,-    0,E3     0,E13    0,E3     22,I1    22,I12   22,-
		unblock1  22,-    99,E     0,E      99,E     22,I1    22,I12   22,-
		unblock3  22,-    99,E     99,E1    99,E     22,I1    22,I12   22,-
		leave     99,-    0,-      0,-      0,-      0,-      0,-      99,-
		drop1     22,-    99,I     22,E1    22,E     0,-      0,I2     22,-
		drop3     22,-    99,I     22,E1    22,E     99,I1    99,I12   22,-`},
		{Darwin, `
		          -       E        E1       Eu       I1       I12      Il
		join      0,E     48,E     48,E1    48,E     22,I1    22,I12   22,I
		source1   0,I1    22,E     22,E1    22,E     49,I1    49,I12   0,I1
		source3   0,I3    22,E     22,E1    22,E     0,I13    0,I123   0,I3
		block1    49,-    0,E1     49,E1    0,E1     22,I1    22,I12   22,I
		block3    49,-    0,E3     0,E13    0,E3     22,I1    22,I12   22,I
		unblock1  49,-    49,E     0,E      49,E     22,I1    22,I12   22,I
		unblock3  49,-    49,E     49,E1    49,E     22,I1    22,I12   22,I
		leave     49,-    0,-      0,-      0,-      0,-      0,-      0,-
		drop1     49,-    49,E     49,E1    49,E     0,I      0,I2     49,I
		drop3     49,-    49,E     49,E1    49,E     49,I1    49,I12   49,I`},
		{Windows, `
		          -       E        E1       Eu       I1       I12      Il
		join      0,E     10049,E  10022,E1 10049,E  10049,I1 10049,I12 0,E
		source1   0,I1    10049,E  10022,E1 10049,E  10049,I1 10049,I12 0,I1
		source3   0,I3    10049,E  10022,E1 10049,E  0,I13    0,I123   0,I3
		block1    10022,- 0,E1     10049,E1 0,E1     10022,I1 10022,I12 10022,-
		block3    10022,- 0,E3     0,E13    0,E3     10022,I1 10022,I12 10022,-
		unblock1  10022,- 10022,E  0,E      10049,E  10022,I1 10022,I12 10022,-
		unblock3  10022,- 10022,E  10049,E1 10049,E  10022,I1 10022,I12 10022,-
		leave     10022,- 0,-      0,-      0,-      0,-      0,-      10022,-
		drop1     10022,- 10022,E  10022,E1 10022,E  0,-      0,I2     10049,-
		drop3     10022,- 10022,E  10022,E1 10022,E  10049,I1 10049,I12 10049,-`},
	}
	tables = append(tables, tables[1])
	tables[3].kernel = FreeBSD
	do := func(s *Socket, group netip.Addr, r string) error {
		sources := sa6
		if group.Is4() {
			sources = sa4
		}
		o := map[string]op{
			"join": joinOp, "leave": leaveOp, "source": joinSourceOp, "drop": leaveSourceOp,
			"block": blockOp, "unblock": unblockOp,
		}[strings.TrimRight(r, "123")]
		var source netip.Addr
		if d := r[len(r)-1]; d <= '9' {
			source = sources[d-'1']
		}
		return ask(s, o, 2, group, source)
	}
	for _, tt := range tables {
		for _, group := range []netip.Addr{g4, g6} {
			lines := strings.Split(strings.TrimSpace(tt.rows), "\n")[1:]
			for i, line := range lines {
				cells := strings.Fields(line)
				if cells[0] != requests[i] || len(cells) != len(states)+1 {
					t.Fatalf("bad table: %q", line)
				}
				for j, state := range states {
					k := tt.kernel()
					k.Reports = false
					s := k.Socket(group.Is6())
					for _, r := range lead[state] {
						if err := do(s, group, r); err != nil {
							t.Fatalf("%s %s: %s: %s", k.sys.name, state, r, answer(err))
						}
					}
					var code syscall.Errno
					errors.As(do(s, group, requests[i]), &code)
					got := fmt.Sprintf("%d,%s", uintptr(code), state1(s))
					if got != cells[j+1] {
						t.Errorf("%s: %s in state %s: %s, want %s", k.sys.name, requests[i], state, got, cells[j+1])
					}
				}
			}
		}
	}
}

// state1 names the state of a socket's only membership as TestOutOfOrder does.
func state1(s *Socket) string {
	ms := s.Memberships()
	if len(ms) == 0 {
		return "-"
	}
	var name strings.Builder
	name.WriteString(map[bool]string{true: "E", false: "I"}[ms[0].Exclude])
	for _, a := range ms[0].Sources {
		b := a.AsSlice()
		name.WriteString(fmt.Sprint(b[len(b)-1]))
	}
	return name.String()
}

// expect fails unless err is the errno, 0 for none.
func expect(t *testing.T, err error, want syscall.Errno) {
	t.Helper()
	if err != asError(want) {
		t.Errorf("%s, want errno %d", answer(err), uintptr(want))
	}
}

func expectHarm(t *testing.T, k *Kernel, want string) {
	t.Helper()
	h := k.Harmed()
	if len(h) == 0 || !strings.Contains(h[len(h)-1], want) {
		t.Errorf("harms %q, want one with %q", h, want)
	}
}

func expectState(t *testing.T, s *Socket, want string) {
	t.Helper()
	if got := state1(s); got != want {
		t.Errorf("state %s, want %s\n%s", got, want, s.Log())
	}
}

func TestDarwinByteCounts(t *testing.T) {
	k := Darwin()
	k.Reports, k.ByteCounts = false, 2
	s := k.Socket(false)
	expect(t, ask(s, joinSourceOp, 2, g4, sa4[0]), 0)
	for range 2 {
		expect(t, ask(s, joinSourceOp, 2, g4, sa4[1]), 12)
		expectState(t, s, "I1")
	}
	expect(t, ask(s, joinSourceOp, 2, g4, sa4[1]), 0)
	expect(t, ask(s, leaveSourceOp, 2, g4, sa4[0]), 12)
	expectState(t, s, "I12")
	k.ByteCountStep = 8
	expect(t, ask(s, leaveSourceOp, 2, g4, sa4[0]), 16)
	expect(t, ask(s, leaveSourceOp, 2, g4, sa4[0]), 0)
	expectState(t, s, "I2")
	expect(t, setFull(s, 2, g4, false, sa4[0], sa4[2]), 8+8*3) // two new, one gone
	expectState(t, s, "I2")

	// Not on loopback, not for IPv6.
	expect(t, ask(s, joinSourceOp, 1, g4, sa4[0]), 0)
	expect(t, ask(s, joinSourceOp, 1, g4, sa4[1]), 0)
	s = k.Socket(true)
	expect(t, ask(s, joinSourceOp, 2, g6, sa6[0]), 0)
	expect(t, ask(s, joinSourceOp, 2, g6, sa6[1]), 0)
	if h := k.Harmed(); h != nil {
		t.Errorf("harmed %q", h)
	}
}

func TestBSDFullFilter(t *testing.T) {
	for _, k := range []*Kernel{Darwin(), FreeBSD()} {
		k.Reports = false
		s := k.Socket(false)
		expect(t, setFull(s, 2, g4, true, sa4...), bsdEADDRNOTAVAIL)
		expect(t, setFull(s, 0, g4, true, sa4...), bsdEADDRNOTAVAIL)
		expect(t, ask(s, joinSourceOp, 2, g4, sa4[0]), 0)
		expect(t, setFull(s, 2, g4, true, sa4[1], sa4[1]), 0)
		expectState(t, s, "E2")

		// Without sources only the mode is set, and the old entries lie in wait.
		expect(t, setFull(s, 2, g4, true), 0)
		expectHarm(t, k, "does not reset")
		expectState(t, s, "E2")
		expect(t, setFull(s, 2, g4, false), 0)
		expectState(t, s, "I")
		expect(t, ask(s, joinSourceOp, 2, g4, sa4[1]), bsdEADDRNOTAVAIL)

		many := make([]netip.Addr, 129)
		for i := range many {
			many[i] = netip.AddrFrom4([4]byte{10, 1, 0, byte(i)})
		}
		expect(t, setFull(s, 2, g4, false, many...), bsdENOBUFS)
		expect(t, setFull(s, 2, g4, false, many[:128]...), bsdENOSPC) // the old one counts
		expect(t, setFull(s, 2, g4, false, many[:127]...), 0)
		expect(t, setFull(s, 2, g4, false, many[1:129]...), bsdENOSPC)
		for i := range 512 {
			want := syscall.Errno(0)
			if i >= 512-127 {
				want = bsdENOSPC
			}
			expect(t, ask(s, joinSourceOp, 2, g4, netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)})), want)
		}

		// On macOS the number copied comes back, on FreeBSD the total.
		total := map[*system]string{darwin: "02000000", freebsd: "00020000"}[k.sys]
		v := bytesAt(152+2*128, 0, "02000000", 8, "02000000", 16, "10020000ef010203")
		n, err := s.Getsockopt(0, 74, v)
		if err != nil || n != len(v) || hex.EncodeToString(v[:12]) != "0200000001000000"+total ||
			hex.EncodeToString(v[152:160]) != "100200000a010000" {
			t.Errorf("get: %d %v %x", n, err, v)
		}
	}
}

func TestDarwinLimits(t *testing.T) {
	k := Darwin()
	s := k.Socket(true)
	for i := range 4096 {
		want := syscall.Errno(0)
		if i == 4095 {
			want = bsdETOOMANYREFS
		}
		b := g6.As16()
		b[13], b[14] = byte(i>>8), byte(i)
		expect(t, ask(s, joinOp, 2, netip.AddrFrom16(b), netip.Addr{}), want)
	}
	expect(t, ask(s, joinSourceOp, 3, g6, g6), bsdEINVAL) // a multicast source
}

func TestDarwinInterfaceGone(t *testing.T) {
	k := Darwin()
	s := k.Socket(false)
	expect(t, ask(s, joinOp, 2, g4, netip.Addr{}), 0)
	k.RemoveInterface(2)
	expect(t, ask(s, leaveOp, 2, g4, netip.Addr{}), bsdEADDRNOTAVAIL)
	expect(t, ask(s, joinOp, 2, g4, netip.Addr{}), bsdEADDRNOTAVAIL)
	expectState(t, s, "E")
	expect(t, s.Setsockopt(0, 13, bytesAt(8, 0, "ef010203")), 0)
	expectState(t, s, "-")
	if h := k.Harmed(); h != nil {
		t.Errorf("harmed %q", h)
	}
	expect(t, ask(s, joinOp, 3, g4, netip.Addr{}), 0)
	expect(t, s.Setsockopt(0, 13, bytesAt(8, 0, "ef010203")), 0)
	expectHarm(t, k, "names no interface")
}

func TestDarwinLastSource(t *testing.T) {
	k := Darwin()
	s := k.Socket(false)
	expect(t, ask(s, joinSourceOp, 2, g4, sa4[0]), 0)
	expect(t, ask(s, leaveSourceOp, 2, g4, sa4[0]), 0)
	expectHarm(t, k, "leaves INCLUDE() behind")
	expectState(t, s, "I")
	expect(t, ask(s, leaveOp, 2, g4, netip.Addr{}), 0)
	expectHarm(t, k, "other processes")
}

func TestDarwinDelivery(t *testing.T) {
	k := Darwin()
	a, b, c := k.Socket(false), k.Socket(true), k.Socket(true)
	expect(t, ask(a, joinOp, 2, g4, netip.Addr{}), 0)
	expect(t, ask(a, blockOp, 2, g4, sa4[0]), 0)
	expect(t, ask(b, joinSourceOp, 2, g6, sa6[0]), 0)
	delivers(t, a, 2, g4, sa4[0], true) // blocked, and delivered
	delivers(t, a, 3, g4, sa4[0], false)
	delivers(t, b, 2, g6, sa6[0], true)
	delivers(t, b, 2, g6, sa6[1], false)
	delivers(t, c, 2, g6, sa6[1], true) // before its first multicast option
	expect(t, ask(c, joinOp, 3, g6, netip.Addr{}), 0)
	expect(t, ask(c, leaveOp, 3, g6, netip.Addr{}), 0)
	delivers(t, c, 2, g6, sa6[1], false)
	k.DeliversBlocked = false
	delivers(t, a, 2, g4, sa4[0], false)
}

func delivers(t *testing.T, s *Socket, index int, group, source netip.Addr, want bool) {
	t.Helper()
	if got := s.Delivers(index, group, source); got != want {
		t.Errorf("Delivers(%d, %v, %v) = %v\n%s", index, group, source, got, s.Log())
	}
}

func TestLinuxDelivery(t *testing.T) {
	k := Linux()
	a, b, six := k.Socket(false), k.Socket(false), k.Socket(true)
	expect(t, ask(a, joinSourceOp, 2, g4, sa4[0]), 0)
	delivers(t, a, 2, g4, sa4[0], true)
	delivers(t, a, 2, g4, sa4[1], false)
	delivers(t, b, 2, g4, sa4[0], true) // what another socket joined
	delivers(t, b, 2, g4, sa4[1], false)
	delivers(t, b, 3, g4, sa4[0], false)
	delivers(t, six, 2, g4, sa4[0], false) // starts with IP_MULTICAST_ALL 0
	expect(t, b.Setsockopt(0, 49, bytesAt(4)), 0)
	delivers(t, b, 2, g4, sa4[0], false)

	c, d := k.Socket(true), k.Socket(true)
	expect(t, ask(c, joinOp, 2, g6, netip.Addr{}), 0)
	delivers(t, d, 2, g6, sa6[0], true)
	expect(t, d.Setsockopt(41, 29, bytesAt(4)), 0)
	delivers(t, d, 2, g6, sa6[0], false)
	expect(t, ask(d, joinOp, 3, g6, netip.Addr{}), 0)
	delivers(t, d, 2, g6, sa6[0], true) // inet6_mc_check has no interface
	k.NoIPv6MulticastAll = true
	expect(t, d.Setsockopt(41, 29, bytesAt(4)), 92)
	a.Close()
	delivers(t, six, 2, g4, sa4[0], false)
}

func TestLinuxDownAndUp(t *testing.T) {
	k := Linux()
	s := k.Socket(false)
	expect(t, ask(s, joinSourceOp, 2, g4, sa4[0]), 0)
	k.SetUp(2, false)
	delivers(t, s, 2, g4, sa4[0], false)
	expect(t, ask(s, joinSourceOp, 2, g4, sa4[1]), 0)
	k.SetUp(2, true)
	delivers(t, s, 2, g4, sa4[0], true)
	delivers(t, s, 2, g4, sa4[1], false) // lost, while getsockopt looks right
	expectState(t, s, "I12")
	expect(t, setFull(s, 2, g4, false, sa4[0], sa4[1]), 0)
	delivers(t, s, 2, g4, sa4[1], false)
	expect(t, ask(s, leaveOp, 2, g4, netip.Addr{}), 0)
	for _, a := range sa4[:2] {
		expect(t, ask(s, joinSourceOp, 2, g4, a), 0)
		delivers(t, s, 2, g4, a, true)
	}
}

func TestLinuxSameIndexAgain(t *testing.T) {
	k := Linux()
	s := k.Socket(false)
	eth0 := k.Interfaces[2]
	expect(t, ask(s, joinSourceOp, 2, g4, sa4[0]), 0)
	k.RemoveInterface(2)
	expect(t, ask(s, joinSourceOp, 2, g4, sa4[1]), 19)
	k.AddInterface(2, eth0)
	expectState(t, s, "I1")
	delivers(t, s, 2, g4, sa4[0], false) // the socket is a member, the device is not
	expect(t, setFull(s, 2, g4, false, sa4[1]), 3)
	expect(t, ask(s, leaveOp, 2, g4, netip.Addr{}), 0)
	expect(t, ask(s, joinSourceOp, 2, g4, sa4[0]), 0)
	delivers(t, s, 2, g4, sa4[0], true)
}

func TestLinuxHarm(t *testing.T) {
	k := Linux()
	s := k.Socket(false)
	expect(t, ask(s, joinOp, 0, g4, netip.Addr{}), 0)
	expectHarm(t, k, "index 0")
	expect(t, ask(s, joinSourceOp, 2, g4, sa4[0]), 0)
	expectHarm(t, k, "other mode")
	expectState(t, s, "I1")
	v := bytesAt(144, 0, "02000000", 8, "02000000ef010203", 140, "01000000")
	if n, err := s.Getsockopt(0, 48, v); n != 144 || err != nil {
		t.Errorf("get: %d %v", n, err)
	}
	expectHarm(t, k, "past the end")
	k.Route = 0
	expect(t, ask(s, joinOp, 0, addr("239.9.9.9"), netip.Addr{}), 19)

	// Leaving by an address that has gone: the membership outlives the socket.
	b := k.Socket(false)
	mreq := bytesAt(8, 0, "ef010204", 4, "c0000201")
	expect(t, s.Setsockopt(0, 35, mreq), 0)
	eth0 := k.Interfaces[2]
	eth0.Addrs = nil
	k.AddInterface(2, eth0)
	expect(t, s.Setsockopt(0, 36, mreq), 0)
	expectHarm(t, k, "leaks")
	s.Close()
	delivers(t, b, 2, addr("239.1.2.4"), sa4[0], true)
}

func TestLinuxMemory(t *testing.T) {
	// The membership is made, its list is not.
	k := Linux()
	k.ListFailures = 1
	s := k.Socket(false)
	expect(t, ask(s, joinSourceOp, 2, g4, sa4[0]), 105)
	expectState(t, s, "I")
	expect(t, ask(s, leaveOp, 2, g4, netip.Addr{}), 0)

	k.MaxMemberships = 1 << 20
	for n := 0; ; n++ {
		if err := ask(s, joinSourceOp, 2, netip.AddrFrom4([4]byte{232, 1, byte(n >> 8), byte(n)}), sa4[0]); err != nil {
			expect(t, err, 105)
			if n != 1170 { // observed, with net.core.optmem_max at 131072
				t.Errorf("%d memberships", n)
			}
			break
		}
	}
}

func TestWindows(t *testing.T) {
	k := Windows()
	s := k.Socket(false)
	expect(t, setFull(s, 2, g4, true, sa4...), 10022)
	expect(t, ask(s, joinOp, 9, g4, netip.Addr{}), 10049)
	k.SetUp(2, false)
	expect(t, ask(s, joinOp, 2, g4, netip.Addr{}), 10049)
	k.AddInterface(3, Interface{Name: "eth1", Up: true, Addrs: []netip.Addr{addr("169.254.1.1")}})
	expect(t, ask(s, joinOp, 3, g4, netip.Addr{}), 10049)
	k.SetUp(2, true)
	expect(t, ask(s, joinOp, 2, g4, netip.Addr{}), 0)
	if h := k.Harmed(); h != nil {
		t.Errorf("harmed %q", h)
	}
	expect(t, setFull(s, 2, g4, true, sa4[:2]...), 0)
	in := bytesAt(16, 0, "ef010203", 4, "00000002", 12, "01000000")
	out := make([]byte, 24)
	n, err := s.Ioctl(sioGetMulticastFilter, in, out)
	if err != nil || hex.EncodeToString(out[:n]) != "ef0102030000000201000000020000000a000001" {
		t.Errorf("get: %x %v", out[:n], err)
	}
	delivers(t, s, 2, g4, sa4[0], false)
	delivers(t, s, 2, g4, sa4[2], true)
	delivers(t, k.Socket(false), 2, g4, sa4[2], false)
	expect(t, setFull(s, 2, g4, false), 0)
	expectState(t, s, "-")
	k.FilterNeedsJoin = false
	expect(t, setFull(s, 2, g4, false, sa4...), 0)
	expectState(t, s, "I123")
	k.NoIoctl = true
	expect(t, setFull(s, 2, g4, false, sa4...), 10045)
	expect(t, s.Setsockopt(0, 41, bytesAt(136, 8, "02000000ef010203")), 10049)
	expectHarm(t, k, "interface 0")
}

func TestKnobs(t *testing.T) {
	for _, k := range []*Kernel{Linux(), Darwin(), FreeBSD(), Windows()} {
		e := k.sys.errno
		s := k.Socket(true)
		k.NoMCAST = true
		expect(t, ask(s, joinOp, 2, g6, netip.Addr{}), e.noProtoOpt)
		k.NoMCAST, k.NoMSFilter = false, true
		expect(t, ask(s, joinOp, 2, g6, netip.Addr{}), 0)
		if k.sys != windows {
			expect(t, setFull(s, 2, g6, true, sa6[0]), e.noProtoOpt)
			_, err := s.Ioctl(siocSMSFilter, make([]byte, 300), nil)
			expect(t, err, 25)
		}
		expect(t, s.Setsockopt(41, 999, nil), e.noProtoOpt)
		injected := errors.New("injected")
		k.Fault = func(level, name int, value []byte) error { return injected }
		if err := ask(s, leaveOp, 2, g6, netip.Addr{}); err != injected {
			t.Errorf("%s: %v", k.sys.name, err)
		}
		expectState(t, s, "E")
		k.Fault = nil
		s.Close()
		expect(t, ask(s, leaveOp, 2, g6, netip.Addr{}), e.badf)
	}
}
