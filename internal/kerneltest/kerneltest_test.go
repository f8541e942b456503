//go:build !plan9

package kerneltest

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
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

func delivers(t *testing.T, s *Socket, index int, group, source netip.Addr, want bool) {
	t.Helper()
	if got := s.Delivers(index, group, source); got != want {
		t.Errorf("Delivers(%d, %v, %v) = %v\n%s", index, group, source, got, s.Log())
	}
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
