//go:build !plan9

package mcast

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// goldenPlatforms are the systems of testdata/golden, whose README.txt tells
// the format. Several may share a file.
var goldenPlatforms = map[string][]*platform{
	"linux-64-little": {linuxPlatform(8, binary.LittleEndian)},
	"linux-64-big":    {linuxPlatform(8, binary.BigEndian)},
	"linux-32-little": {linuxPlatform(4, binary.LittleEndian)},
	"linux-32-big":    {linuxPlatform(4, binary.BigEndian)},
	"darwin":          {darwinPlatform()},
	"freebsd-64":      {freebsdPlatform(8, 8)},
	"freebsd-386":     {freebsdPlatform(4, 4)},
	"freebsd-arm":     {freebsdPlatform(4, 8)},
	"windows":         {windowsPlatform(8), windowsPlatform(4)},
	"solaris":         {solarisPlatform(8, binary.LittleEndian)},
}

var (
	goldenGroups = map[bool]Group{
		false: {netip.MustParseAddr("232.1.2.3"), 0x00010203},
		true:  {netip.MustParseAddr("ff3e::8000:1"), 0x00010203},
	}
	goldenSources = map[bool][]netip.Addr{
		false: {netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("10.0.0.10")},
		true:  {netip.MustParseAddr("2001:db8::9"), netip.MustParseAddr("2001:db8::a")},
	}
)

// goldenHost has the one interface.
type goldenHost struct{ host }

func (goldenHost) name(index int) string { return strconv.Itoa(index) }
func (goldenHost) exists(int) bool       { return true }
func (goldenHost) address4(int) (netip.Addr, bool) {
	return netip.MustParseAddr("192.0.2.7"), true
}

// goldenSocket notes what the system is told, knows no option that unknown
// says so of, and answers all questions with answer.
type goldenSocket struct {
	told    []goldenCall
	unknown func(call goldenCall) syscall.Errno
	answer  []byte
}

type goldenCall struct {
	how    string // "0" or "41", the level, or "ioctl"
	number uint32
	value  []byte
}

func (s *goldenSocket) note(how string, number uint32, value []byte) error {
	c := goldenCall{how, number, bytes.Clone(value)}
	s.told = append(s.told, c)
	if s.unknown != nil {
		if e := s.unknown(c); e != 0 {
			return e
		}
	}
	return nil
}

func (s *goldenSocket) setsockopt(level, name int, value []byte) error {
	return s.note(strconv.Itoa(level), uint32(name), value)
}

func (s *goldenSocket) getsockopt(level, name int, value []byte) (int, error) {
	if err := s.note(strconv.Itoa(level), uint32(name), value); err != nil {
		return 0, err
	}
	copy(value, s.answer)
	return len(value), nil
}

func (s *goldenSocket) ioctl(code uint32, in, out []byte) (int, error) {
	if err := s.note("ioctl", code, in); err != nil {
		return 0, err
	}
	return copy(out, s.answer), nil
}

// last gives the last thing told, and forgets.
func (s *goldenSocket) last() (c goldenCall) {
	if len(s.told) > 0 {
		c = s.told[len(s.told)-1]
	}
	s.told = nil
	return c
}

// goldenBytes reads a value: hexadecimal, and @136 for zeros up to there.
func goldenBytes(t *testing.T, text string) (b []byte) {
	t.Helper()
	for word := range strings.FieldsSeq(text) {
		if at, ok := strings.CutPrefix(word, "@"); ok {
			n, err := strconv.Atoi(at)
			if err != nil || n < len(b) {
				t.Fatalf("%s comes after %d bytes in %q", word, len(b), text)
			}
			b = append(b, make([]byte, n-len(b))...)
			continue
		}
		more, err := hex.DecodeString(word)
		if err != nil {
			t.Fatalf("%q in %q: %v", word, text, err)
		}
		b = append(b, more...)
	}
	return b
}

// goldenHex prints bytes so that a difference can be found.
func goldenHex(b []byte) string {
	var s strings.Builder
	for i := 0; i < len(b); i += 4 {
		word := b[i:min(i+4, len(b))]
		if i > 0 && i+4 < len(b) && bytes.Equal(word, make([]byte, len(word))) {
			continue
		}
		fmt.Fprintf(&s, " %d:%x", i, word)
	}
	return fmt.Sprintf("%d bytes,%s", len(b), s.String())
}

func goldenOp(name string) (Op, bool) {
	for op := range Op(numOps) {
		if op.String() == name {
			return op, true
		}
	}
	return 0, false
}

func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/golden/*.txt")
	if err != nil || len(files) != len(goldenPlatforms)+1 {
		t.Errorf("%d files, %v; want one for each of %d systems and the README", len(files), err, len(goldenPlatforms))
	}
	for name, platforms := range goldenPlatforms {
		text, err := os.ReadFile("testdata/golden/" + name + ".txt")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range platforms {
			t.Run(fmt.Sprintf("%s %d", name, p.word), func(t *testing.T) { testGolden(t, p, string(text)) })
		}
	}
}

func testGolden(t *testing.T, p *platform, text string) {
	covered := map[string]int{}
	for i, line := range strings.Split(strings.ReplaceAll(text, "\r", ""), "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		left, right, ok := strings.Cut(line, "|")
		words := strings.Fields(left)
		if !ok || len(words) < 4 {
			t.Fatalf("line %d: %q", i+1, line)
		}
		kind, how, rest, value := words[0], words[1], words[2:], goldenBytes(t, right)
		if strings.HasPrefix(kind, "full") {
			covered[kind]++
			goldenFull(t, p, kind, how, rest, value)
			continue
		}
		for _, word := range rest {
			name, number, _ := strings.Cut(word, "=")
			op, ok := goldenOp(name)
			n, err := strconv.Atoi(number)
			if !ok || err != nil {
				t.Fatalf("line %d: %q", i+1, word)
			}
			covered[kind+" "+name]++
			goldenRequest(t, p, kind, op, goldenCall{how, uint32(n), value})
		}
	}
	// Nothing is left out, and nothing is there that has no line.
	for op := range Op(numOps) {
		for _, kind := range []string{"mcast4", "mcast6", "ip", "ipv6"} {
			want := 1
			if kind == "ipv6" && op.takesSource() {
				want = 0
			}
			if n := covered[fmt.Sprint(kind, " ", op)]; n != want {
				t.Errorf("%s %v has %d lines, want %d", kind, op, n, want)
			}
		}
		if (p.ipv6[op] != 0) == op.takesSource() {
			t.Errorf("%v: IPV6_* option %d", op, p.ipv6[op])
		}
	}
	if has := p.full != noFull; (covered["full4"] > 0) != has || (covered["full6"] > 0) != has {
		t.Errorf("full filters: there are %v, but lines are %v", has, covered)
	}
	if p.full == noFull {
		k := kernel{platform: p, sock: &goldenSocket{}, host: goldenHost{}}
		m := Membership{Group: goldenGroups[false], Mode: Exclude}
		if err := k.sendFull(m); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("full filter: %v, want ErrUnsupported", err)
		}
		if _, err := k.full(m.Group); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("reading a full filter: %v, want ErrUnsupported", err)
		}
	}
}

// goldenRequest makes a request of a system that has only this kind of
// options, by its answer and not by what the kernel type knows beforehand.
func goldenRequest(t *testing.T, p *platform, kind string, op Op, want goldenCall) {
	t.Helper()
	six := strings.HasSuffix(kind, "6")
	r := Request{op, goldenGroups[six], goldenSources[six][0]}
	s := &goldenSocket{unknown: func(c goldenCall) syscall.Errno {
		if c.how != want.how || int(c.number) != int(want.number) {
			return syscall.Errno(p.noOption[0])
		}
		return 0
	}}
	k := kernel{platform: p, sock: s, host: goldenHost{}}
	if err := k.option(r); err != nil {
		t.Errorf("%s %v: %v; asked for %v", kind, op, err, s.told)
		return
	}
	tries := len(s.told)
	if got := s.last(); !bytes.Equal(got.value, want.value) {
		t.Errorf("%s %v, option %d\n got %s\nwant %s", kind, op, want.number, goldenHex(got.value), goldenHex(want.value))
	}
	// Windows' IPv4 goes by IP_* first, all else by MCAST_*. What is unknown
	// is not asked for again.
	first := strings.HasPrefix(kind, "mcast")
	if p.name == "windows" && !six {
		first = !first
	}
	if want := map[bool]int{true: 1, false: 2}[first]; tries != want {
		t.Errorf("%s %v: %d tries, want %d", kind, op, tries, want)
	}
	if err := k.option(r); err != nil || len(s.told) != 1 {
		t.Errorf("%s %v again: %v, %d tries", kind, op, err, len(s.told))
	}
}

// goldenFull sets a full filter and reads it back.
func goldenFull(t *testing.T, p *platform, kind, how string, words []string, value []byte) {
	t.Helper()
	set, get := words[0], words[0]
	base := 10
	if how == "ioctl" {
		set, get, base = strings.TrimPrefix(words[0], "set="), strings.TrimPrefix(words[1], "get="), 16
	}
	setNumber, err1 := strconv.ParseUint(set, base, 32)
	getNumber, err2 := strconv.ParseUint(get, base, 32)
	if err1 != nil || err2 != nil {
		t.Fatalf("%s: %v", kind, words)
	}
	six := strings.Contains(kind, "6")
	m := Membership{Group: goldenGroups[six], Sources: goldenSources[six]}
	if words[len(words)-1] == "EXCLUDE" {
		m.Mode = Exclude
	}
	s := &goldenSocket{answer: value, unknown: func(c goldenCall) syscall.Errno {
		if uint64(c.number) != setNumber && uint64(c.number) != getNumber {
			return syscall.Errno(p.noOption[0])
		}
		return 0
	}}
	tries := 1
	if strings.HasSuffix(kind, "b") {
		tries = 2
	}
	k := kernel{platform: p, sock: s, host: goldenHost{}}
	err := k.sendFull(m)
	n := len(s.told)
	if got := s.last(); err != nil || n != tries || got.how != how || uint64(got.number) != setNumber || !bytes.Equal(got.value, value) {
		t.Errorf("%s %v: %v; %d tries, want %d; %s %d\n got %s\nwant %s", kind, m, err, n, tries, got.how, got.number, goldenHex(got.value), goldenHex(value))
	}
	back, err := k.full(m.Group)
	n = len(s.told)
	asked := s.last()
	if err != nil || back.String() != m.String() || n != tries || asked.how != how || uint64(asked.number) != getNumber {
		t.Errorf("%s: read back as %v, %v by %s %d, want %v", kind, back, err, asked.how, asked.number, m)
	}
	// The question says which group and interface, and has room for more.
	if len(asked.value) <= len(value) {
		t.Errorf("%s: %d bytes are room for no more than %d", kind, len(asked.value), len(value))
	}
	l := p.fullLayout(len(value) < 100)
	for _, at := range []int{l.index, l.iface, l.group} {
		if at >= 0 && !bytes.Equal(asked.value[at:at+4], value[at:at+4]) {
			t.Errorf("%s: the question has %x at %d, want %x", kind, asked.value[at:at+4], at, value[at:at+4])
		}
	}
}

// TestFullAsksAgain: when a system has more sources than there was room
// for, or than it returned, it is asked again.
func TestFullAsksAgain(t *testing.T) {
	for name, platforms := range goldenPlatforms {
		p := platforms[0]
		if p.full == noFull {
			continue
		}
		for _, n := range []int{0, 1, 15, 16, 17, 40, 300} {
			g := goldenGroups[true]
			m := Membership{Group: g, Mode: Exclude}
			for i := range n {
				m.Sources = append(m.Sources, netip.AddrFrom16([16]byte{0: 0x20, 13: 1, 14: byte(i >> 8), 15: byte(i)}))
			}
			l := p.fullLayout(false)
			whole := p.fullReq(l, m, netip.Addr{}, n)
			s := &goldenSocket{answer: whole}
			k := kernel{platform: p, sock: shrinking{s, p, l}, host: goldenHost{}}
			got, err := k.full(g)
			if err != nil || got.String() != m.String() {
				t.Errorf("%s: of %d sources %d are read, %v %v", name, n, len(got.Sources), got.Mode, err)
			}
			if len(s.told) > 8 {
				t.Errorf("%s: %d sources take %d questions", name, n, len(s.told))
			}
		}
	}
}

// shrinking is a system that writes no more than there is room for. macOS and
// FreeBSD then say how many they wrote, the others how many there are.
type shrinking struct {
	*goldenSocket
	p *platform
	l fullLayout
}

func (s shrinking) fill(value []byte) int {
	room := int(s.p.order.Uint32(value[s.l.count:]))
	total := int(s.p.order.Uint32(s.answer[s.l.count:]))
	n := min(room, total)
	size := copy(value[:s.l.sources+n*s.l.sourceSize(s.p)], s.answer)
	if s.p.full == msfilterReq {
		s.p.order.PutUint32(value[s.l.count:], uint32(n))
		return len(value)
	}
	return size
}

func (s shrinking) getsockopt(level, name int, value []byte) (int, error) {
	s.note(strconv.Itoa(level), uint32(name), value)
	return s.fill(value), nil
}

func (s shrinking) ioctl(code uint32, in, out []byte) (int, error) {
	s.note("ioctl", code, in)
	copy(out, in)
	return s.fill(out), nil
}

// TestParseFullShort: what is too short or lies about its length does no harm.
func TestParseFullShort(t *testing.T) {
	for name, platforms := range goldenPlatforms {
		for _, p := range platforms {
			for _, old := range []bool{false, true} {
				l, g := p.fullLayout(old), goldenGroups[!old]
				value := p.fullReq(l, Membership{Group: g, Mode: Include, Sources: goldenSources[!old]}, netip.MustParseAddr("192.0.2.7"), 2)
				for n := range len(value) {
					m, total, ok := p.parseFull(l, g, value[:n])
					if ok != (n >= l.sources) || ok && (total != 2 || len(m.Sources) != (n-l.sources)/l.sourceSize(p)) {
						t.Fatalf("%s: %d of %d bytes: %v, %d, %v", name, n, len(value), m, total, ok)
					}
				}
				p.order.PutUint32(value[l.count:], 1<<30)
				if m, total, ok := p.parseFull(l, g, value); !ok || total != 1<<30 || len(m.Sources) != 2 {
					t.Errorf("%s: a count of 1<<30: %v, %d, %v", name, m, total, ok)
				}
			}
		}
	}
}

// TestGroupReqSizes has the sizes of RFC 3678's structs side by side.
func TestGroupReqSizes(t *testing.T) {
	for _, tt := range []struct {
		system              string
		groupReq, sourceReq int
		full                int // without sources
	}{
		{"linux-64-little", 136, 264, 144},
		{"linux-32-little", 132, 260, 140},
		{"darwin", 132, 260, 152},
		{"freebsd-64", 136, 264, 152},
		{"freebsd-386", 132, 260, 144},
		{"freebsd-arm", 136, 264, 152},
		{"windows", 136, 264, 144},
		{"solaris", 260, 516, 0},
	} {
		for _, p := range goldenPlatforms[tt.system] {
			r := Request{OpJoin, goldenGroups[false], goldenSources[false][0]}
			join := len(p.groupReq(r))
			r.Op = OpJoinSource
			source, full := len(p.groupReq(r)), 0
			if p.full != noFull {
				full = len(p.fullReq(p.fullLayout(false), Membership{Group: r.Group}, netip.Addr{}, 0))
			}
			if join != tt.groupReq || source != tt.sourceReq || full != tt.full {
				t.Errorf("%s: %d, %d, %d bytes, want %d, %d, %d", tt.system, join, source, full, tt.groupReq, tt.sourceReq, tt.full)
			}
		}
	}
}

// TestOptionFallback has what the two families of options cannot say.
func TestOptionFallback(t *testing.T) {
	r := Request{OpJoinSource, goldenGroups[false], goldenSources[false][0]}
	all := func(p *platform) func(goldenCall) syscall.Errno {
		return func(goldenCall) syscall.Errno { return syscall.Errno(p.noOption[len(p.noOption)-1]) }
	}
	for name, platforms := range goldenPlatforms {
		p := platforms[0]
		// A system that knows neither is asked twice, then no more.
		s := &goldenSocket{unknown: all(p)}
		k := kernel{platform: p, sock: s, host: goldenHost{}}
		if err := k.option(r); !slices.Contains(p.noOption, errnoOf(err)) || len(s.told) != 2 {
			t.Errorf("%s: %v after %d tries, want an answer of the system after 2", name, err, len(s.told))
		}
		if err := k.option(r); !errors.Is(err, errors.ErrUnsupported) || len(s.told) != 2 {
			t.Errorf("%s: asked again: %v after %d tries", name, err, len(s.told))
		}
		// IPv6 has no other options for a source.
		s = &goldenSocket{unknown: all(p)}
		k = kernel{platform: p, sock: s, host: goldenHost{}}
		if k.option(Request{OpBlock, goldenGroups[true], goldenSources[true][0]}) == nil || len(s.told) != 1 {
			t.Errorf("%s: Block of IPv6 without MCAST_*: %d tries, want 1", name, len(s.told))
		}
		// The kernel is not asked to choose an interface.
		s = &goldenSocket{}
		k = kernel{platform: p, sock: s, host: goldenHost{}}
		if err := k.option(Request{OpJoin, Group{r.Group.Addr, 0}, r.Source}); !errors.Is(err, ErrInterface) || len(s.told) != 0 {
			t.Errorf("%s: interface 0: %v after %d tries", name, err, len(s.told))
		}
	}
	// 0.x.y.z has room for 24 bits.
	s := &goldenSocket{}
	k := kernel{platform: windowsPlatform(8), sock: s, host: goldenHost{}}
	if err := k.option(Request{OpJoin, Group{r.Group.Addr, 1 << 24}, r.Source}); err != nil || len(s.told) != 1 || s.told[0].number != 41 {
		t.Errorf("Windows, interface 1<<24: %v, %v, want MCAST_JOIN_GROUP", err, s.told)
	}
	if err := k.option(Request{OpJoin, Group{r.Group.Addr, 1<<24 - 1}, r.Source}); err != nil || s.last().number != 12 {
		t.Errorf("Windows, interface 1<<24 - 1: %v, want IP_ADD_MEMBERSHIP", err)
	}
}
