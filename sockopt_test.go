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

	"example.com/mcast/internal/netif"
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
	goldenPlaces = map[bool]groupIndex{
		false: {netip.MustParseAddr("232.1.2.3"), 0x00010203},
		true:  {netip.MustParseAddr("ff3e::8000:1"), 0x00010203},
	}
	goldenSources = map[bool][]netip.Addr{
		false: {netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("10.0.0.10")},
		true:  {netip.MustParseAddr("2001:db8::9"), netip.MustParseAddr("2001:db8::a")},
	}
	goldenAddress = netip.MustParseAddr("192.0.2.7")
)

// unknownOptions are what a system answers to an option that it does not know:
// errno.h of Linux, XNU, FreeBSD and illumos, winerror.h.
var unknownOptions = map[string][]syscall.Errno{
	"linux":   {92, 95},       // ENOPROTOOPT, EOPNOTSUPP
	"darwin":  {42, 45, 102},  // ENOPROTOOPT, ENOTSUP, EOPNOTSUPP
	"freebsd": {42, 45},       // ENOPROTOOPT, EOPNOTSUPP
	"windows": {10042, 10045}, // WSAENOPROTOOPT, WSAEOPNOTSUPP
	"solaris": {99, 122},      // ENOPROTOOPT, EOPNOTSUPP
}

// goldenHost has every interface, with one address.
type goldenHost struct{ netif.Host }

func (goldenHost) Name(index int) (string, error)  { return strconv.Itoa(index), nil }
func (goldenHost) Address4(int) (netip.Addr, bool) { return goldenAddress, true }

// goldenSocket notes what the system is told, answers with an error where
// refuse says so, and all questions with answer.
type goldenSocket struct {
	told   []goldenCall
	refuse func(goldenCall) syscall.Errno
	answer []byte
}

type goldenCall struct {
	how    string // "0" or "41", the level, or "ioctl"
	number uint32
	value  []byte
}

func (s *goldenSocket) note(how string, number uint32, value []byte) error {
	c := goldenCall{how, number, bytes.Clone(value)}
	s.told = append(s.told, c)
	if s.refuse != nil {
		if e := s.refuse(c); e != 0 {
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

// kernelOf is a platform's kernel behind a socket.
func kernelOf(p *platform, s socket) *kernel {
	return &kernel{platform: p, sock: s, host: goldenHost{}}
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
		s := &goldenSocket{}
		if err := kernelOf(p, s).sendFull(goldenPlaces[false], sourceFilter{}, sourceFilter{mode: Exclude}); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("full filter: %v, want ErrUnsupported", err)
		}
		if _, err := kernelOf(p, s).readFull(goldenPlaces[false]); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("reading a full filter: %v, want ErrUnsupported", err)
		}
		if len(s.told) > 0 {
			t.Errorf("the system was told %v", s.told)
		}
	}
}

// goldenRequest makes a request of a system that has only this kind of
// options, by its answer and not by what the kernel type knows beforehand.
func goldenRequest(t *testing.T, p *platform, kind string, op Op, want goldenCall) {
	t.Helper()
	six := strings.HasSuffix(kind, "6")
	at := goldenPlaces[six]
	c := change{op, at.addr, at.index, goldenSources[six][0]}
	for _, unknown := range unknownOptions[p.name] {
		s := &goldenSocket{refuse: func(c goldenCall) syscall.Errno {
			if c.how != want.how || c.number != want.number {
				return unknown
			}
			return 0
		}}
		k := kernelOf(p, s)
		if err := k.send(c, true); err != nil {
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
		if err := k.send(c, true); err != nil || len(s.told) != 1 {
			t.Errorf("%s %v again: %v, %d tries", kind, op, err, len(s.told))
		}
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
	at, f := goldenPlaces[six], sourceFilter{Include, goldenSources[six]}
	if words[len(words)-1] == "EXCLUDE" {
		f.mode = Exclude
	}
	s := &goldenSocket{answer: value, refuse: func(c goldenCall) syscall.Errno {
		if uint64(c.number) != setNumber && uint64(c.number) != getNumber {
			return unknownOptions[p.name][0]
		}
		return 0
	}}
	tries := 1
	if strings.HasSuffix(kind, "b") {
		tries = 2
	}
	k := kernelOf(p, s)
	err := k.sendFull(at, sourceFilter{}, f)
	n := len(s.told)
	if got := s.last(); err != nil || n != tries || got.how != how || uint64(got.number) != setNumber || !bytes.Equal(got.value, value) {
		t.Errorf("%s %v: %v; %d tries, want %d; %s %d\n got %s\nwant %s", kind, f, err, n, tries, got.how, got.number, goldenHex(got.value), goldenHex(value))
	}
	back, err := k.readFull(at)
	n = len(s.told)
	asked := s.last()
	if err != nil || !back.equal(f) || n != tries || asked.how != how || uint64(asked.number) != getNumber {
		t.Errorf("%s: read back as %v, %v by %s %d, want %v", kind, back, err, asked.how, asked.number, f)
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

// TestFullAsksAgain: when a system has more sources than there was room for, or
// than it returned, it is asked again.
func TestFullAsksAgain(t *testing.T) {
	for name, platforms := range goldenPlatforms {
		p := platforms[0]
		if p.full == noFull {
			continue
		}
		at := goldenPlaces[true]
		for _, n := range []int{0, 1, 15, 16, 17, 40, 300} {
			want := sourceFilter{mode: Exclude}
			for i := range n {
				want.sources = append(want.sources, netip.AddrFrom16([16]byte{0: 0x20, 13: 1, 14: byte(i >> 8), 15: byte(i)}))
			}
			l := p.fullLayout(false)
			s := &goldenSocket{answer: p.fullReq(nil, l, at, want, netip.Addr{}, n)}
			got, err := kernelOf(p, shrinking{s, p, l}).readFull(at)
			if err != nil || !got.equal(want) {
				t.Errorf("%s: of %d sources %d are read, %v %v", name, n, len(got.sources), got.mode, err)
			}
			most := 8
			if n < 16 || n == 16 && p.full != msfilterReq { // there was room for 16
				most = 1
			}
			if len(s.told) > most {
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

// ioctl says nothing of use about the length, as WSAIoctl.
func (s shrinking) ioctl(code uint32, in, out []byte) (int, error) {
	s.note("ioctl", code, in)
	copy(out, in)
	s.fill(out)
	return 1, nil
}

// TestReadFullSorts: kernels list the sources in the order of their requests.
func TestReadFullSorts(t *testing.T) {
	p := goldenPlatforms["linux-64-little"][0]
	at, a := goldenPlaces[false], goldenSources[false]
	s := &goldenSocket{answer: p.fullReq(nil, p.fullLayout(false), at, sourceFilter{Include, []netip.Addr{a[1], a[0]}}, netip.Addr{}, 2)}
	if f, err := kernelOf(p, s).readFull(at); err != nil || !f.equal(sourceFilter{Include, a}) {
		t.Errorf("%v, %v, want %v", f, err, a)
	}
}

// TestParseFullShort: what is too short or lies about its length does no harm.
func TestParseFullShort(t *testing.T) {
	for name, platforms := range goldenPlatforms {
		for _, p := range platforms {
			for _, old := range []bool{false, true} {
				l, at := p.fullLayout(old), goldenPlaces[!old]
				value := p.fullReq(nil, l, at, sourceFilter{Include, goldenSources[!old]}, goldenAddress, 2)
				for n := range len(value) {
					f, total, ok := p.parseFull(l, at.addr, value[:n])
					if ok != (n >= l.sources) || ok && (total != 2 || len(f.sources) != (n-l.sources)/l.sourceSize(p)) {
						t.Fatalf("%s: %d of %d bytes: %v, %d, %v", name, n, len(value), f, total, ok)
					}
				}
				p.order.PutUint32(value[l.count:], 1<<30)
				if f, total, ok := p.parseFull(l, at.addr, value); !ok || total != 1<<30 || len(f.sources) != 2 {
					t.Errorf("%s: a count of 1<<30: %v, %d, %v", name, f, total, ok)
				}
			}
		}
	}
	// What the system gives back is no longer than what it says.
	p := linuxPlatform(8, binary.LittleEndian)
	if _, err := kernelOf(p, &tooShort{}).readFull(goldenPlaces[false]); err == nil {
		t.Error("3 bytes are taken for a filter")
	}
}

type tooShort struct{ goldenSocket }

func (*tooShort) getsockopt(int, int, []byte) (int, error) { return 3, nil }

// TestGroupReqSizes has the sizes of RFC 3678's structs side by side, and what
// was in the buffer before is gone.
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
			at, source := goldenPlaces[false], goldenSources[false][0]
			used := func() []byte { return bytes.Repeat([]byte{0xee}, 600) }
			join := p.groupReq(used(), change{op: OpJoin, addr: at.addr, index: at.index})
			joinSource := p.groupReq(used(), change{OpJoinSource, at.addr, at.index, source})
			var full []byte
			if p.full != noFull {
				full = p.fullReq(used(), p.fullLayout(false), at, sourceFilter{}, netip.Addr{}, 0)
			}
			if len(join) != tt.groupReq || len(joinSource) != tt.sourceReq || len(full) != tt.full {
				t.Errorf("%s: %d, %d, %d bytes, want %d, %d, %d", tt.system, len(join), len(joinSource), len(full), tt.groupReq, tt.sourceReq, tt.full)
			}
			if bytes.Contains(slices.Concat(join, joinSource, full), []byte{0xee}) {
				t.Errorf("%s: a request has what was in the buffer before", tt.system)
			}
		}
	}
}

// TestOptionFallback has what the two families of options cannot say.
func TestOptionFallback(t *testing.T) {
	at, source := goldenPlaces[false], goldenSources[false][0]
	c := change{OpJoinSource, at.addr, at.index, source}
	for name, platforms := range goldenPlatforms {
		p := platforms[0]
		unknown := unknownOptions[p.name][1]
		all := func(goldenCall) syscall.Errno { return unknown }
		// A system that knows neither is asked twice, then no more.
		s := &goldenSocket{refuse: all}
		k := kernelOf(p, s)
		if err := k.send(c, true); !errors.Is(err, unknown) || len(s.told) != 2 {
			t.Errorf("%s: %v after %d tries, want an answer of the system after 2", name, err, len(s.told))
		}
		if err := k.send(c, true); !errors.Is(err, errors.ErrUnsupported) || len(s.told) != 2 {
			t.Errorf("%s: asked again: %v after %d tries", name, err, len(s.told))
		}
		// IPv6 has no other options for a source.
		s = &goldenSocket{refuse: all}
		if kernelOf(p, s).send(change{OpBlock, goldenPlaces[true].addr, 3, goldenSources[true][0]}, false) == nil || len(s.told) != 1 {
			t.Errorf("%s: Block of IPv6 without MCAST_*: %d tries, want 1", name, len(s.told))
		}
		// The kernel is not asked to choose an interface.
		s = &goldenSocket{}
		if err := kernelOf(p, s).send(change{op: OpJoin, addr: at.addr}, true); !errors.Is(err, ErrInterface) || len(s.told) != 0 {
			t.Errorf("%s: interface 0: %v after %d tries", name, err, len(s.told))
		}
	}
	// 0.x.y.z has room for 24 bits.
	s := &goldenSocket{}
	k := kernelOf(windowsPlatform(8), s)
	if err := k.send(change{op: OpJoin, addr: at.addr, index: 1 << 24}, true); err != nil || len(s.told) != 1 || s.told[0].number != 41 {
		t.Errorf("Windows, interface 1<<24: %v, %v, want MCAST_JOIN_GROUP", err, s.told)
	}
	if err := k.send(change{op: OpJoin, addr: at.addr, index: 1<<24 - 1}, true); err != nil || s.last().number != 12 {
		t.Errorf("Windows, interface 1<<24 - 1: %v, want IP_ADD_MEMBERSHIP", err)
	}
	full := sourceFilter{Exclude, goldenSources[false]}
	if err := k.sendFull(groupIndex{at.addr, 1 << 24}, sourceFilter{}, full); err != nil || s.last().number != 0x8004747E {
		t.Errorf("Windows, a full filter on interface 1<<24: %v, want SIOCSMSFILTER", err)
	}
}

// TestNumbers has what is in no other test by its number, once more, from the
// headers that sockopt.go names.
func TestNumbers(t *testing.T) {
	for _, tt := range []struct {
		p                                              *platform
		allIP, allIPv6, multicastIf, multicastIf6      int
		spends                                         int
		noOption, noDevice, noMember, isMember, limits []int
	}{
		{
			// IP_MULTICAST_ALL, IPV6_MULTICAST_ALL, IP_MULTICAST_IF, IPV6_MULTICAST_IF; ENODEV ESRCH,
			// EADDRNOTAVAIL EINVAL, EADDRINUSE, ENOBUFS ENOMEM.
			onLinux.platform, 49, 29, 32, 17, 0,
			[]int{92, 95},
			[]int{19, 3},
			[]int{99, 22},
			[]int{98},
			[]int{105, 12},
		},
		{
			// ENOSPC; ENXIO ENODEV EADDRNOTAVAIL, EADDRNOTAVAIL EINVAL, EADDRINUSE, ENOBUFS ENOMEM ENOSPC
			// ETOOMANYREFS.
			onDarwin.platform, 0, 0, 9, 9, 28,
			[]int{42, 45, 102},
			[]int{6, 19, 49},
			[]int{49, 22},
			[]int{48},
			[]int{55, 12, 28, 59},
		},
		{
			onFreeBSD.platform, 0, 0, 9, 9, 28,
			[]int{42, 45, 102},
			[]int{6, 19, 49},
			[]int{49, 22},
			[]int{48},
			[]int{55, 12, 28, 59},
		},
		{
			// WSAEADDRNOTAVAIL, WSAEADDRNOTAVAIL WSAEINVAL, WSAENOBUFS.
			onWindows.platform, 0, 0, 9, 9, 0,
			[]int{10042, 10045},
			[]int{10049},
			[]int{10049, 10022},
			nil,
			[]int{10055},
		},
		{
			// ENXIO ENODEV EADDRNOTAVAIL, EADDRNOTAVAIL EINVAL ENOENT, ENOBUFS ENOMEM ENOSPC.
			solarisPlatform(8, binary.LittleEndian), 0, 0, 0x10, 6, 0,
			[]int{99, 122},
			[]int{6, 19, 126},
			[]int{126, 22, 2},
			nil,
			[]int{132, 12, 28},
		},
	} {
		p := tt.p
		if got, want := []int{p.allIP, p.allIPv6, p.multicastIf, p.multicastIf6, p.spends}, []int{tt.allIP, tt.allIPv6, tt.multicastIf, tt.multicastIf6, tt.spends}; !slices.Equal(got, want) {
			t.Errorf("%s: %d, want %d", p.name, got, want)
		}
		for _, list := range []struct {
			name      string
			got, want []int
		}{
			{"noOption", p.noOption, tt.noOption},
			{"noDevice", p.noDevice, tt.noDevice},
			{"noMember", p.noMember, tt.noMember},
			{"isMember", p.isMember, tt.isMember},
			{"limits", p.limits, tt.limits},
		} {
			if !slices.Equal(list.got, list.want) {
				t.Errorf("%s: %s is %d, want %d", p.name, list.name, list.got, list.want)
			}
		}
	}
}
