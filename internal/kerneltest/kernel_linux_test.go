package kerneltest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The running kernel is the oracle of the Linux model: the same random requests go
// to both, byte for byte, and every answer must be the same.

// A realSocket is the kernel's socket behind the same seam as Socket.
type realSocket int

func newRealSocket(t *testing.T, ipv6 bool) realSocket {
	t.Helper()
	family := unix.AF_INET
	if ipv6 {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if ipv6 && err == unix.EAFNOSUPPORT {
		skip(t, "this kernel has no IPv6")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return realSocket(fd)
}

func (s realSocket) Setsockopt(level, name int, value []byte) error {
	return asError(s.call(unix.SYS_SETSOCKOPT, level, name, value, uintptr(len(value))))
}

func (s realSocket) Getsockopt(level, name int, value []byte) (int, error) {
	n := uint32(len(value))
	e := s.call(unix.SYS_GETSOCKOPT, level, name, value, uintptr(unsafe.Pointer(&n)))
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

func (s realSocket) call(trap uintptr, level, name int, value []byte, length uintptr) syscall.Errno {
	if value == nil {
		value = make([]byte, 1) // so that there is an address
	}
	_, _, e := unix.Syscall6(trap, uintptr(s), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(unsafe.SliceData(value))), length, 0)
	return e
}

// linuxHere returns a model of this machine with only the loopback interface.
func linuxHere(t *testing.T) *Kernel {
	t.Helper()
	k := Linux()
	k.Word = strconv.IntSize
	k.Order = binary.NativeEndian
	k.Interfaces = map[int]Interface{1: {Name: "lo", Up: true, Loopback: true, Addrs: []netip.Addr{
		netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1"),
	}}}
	k.Route = 0
	for path, field := range map[string]*int{
		"net/ipv4/igmp_max_memberships": &k.MaxMemberships,
		"net/ipv4/igmp_max_msf":         &k.MaxMSF4,
		"net/ipv6/mld_max_msf":          &k.MaxMSF6,
		"net/core/optmem_max":           &k.OptMem,
	} {
		text, err := os.ReadFile("/proc/sys/" + path)
		if err != nil {
			t.Logf("%v: taking the default of %s", err, path)
			continue
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		*field = n
	}
	return k
}

// A pair is a model socket and a kernel's, kept in step.
type pair struct {
	t     *testing.T
	model *Socket
	real  realSocket
	steps []string
	seed  string
}

func newPair(t *testing.T, k *Kernel, ipv6 bool) *pair {
	return &pair{t: t, model: k.Socket(ipv6), real: newRealSocket(t, ipv6)}
}

func (p *pair) fatalf(format string, args ...any) {
	p.t.Helper()
	p.t.Fatalf("%s\n%s\nsteps:\n%s", fmt.Sprintf(format, args...), p.seed, strings.Join(p.steps, "\n"))
}

// set sends a request to both and compares the answers.
func (p *pair) set(level, name int, value []byte) error {
	p.t.Helper()
	want := p.real.Setsockopt(level, name, value)
	got := p.model.Setsockopt(level, name, value)
	rs := p.model.Requests()
	p.steps = append(p.steps, rs[len(rs)-1].String())
	if got != want {
		p.fatalf("setsockopt %d/%d of %x\nmodel: %s, kernel: %s (%v)", level, name, value, answer(got), answer(want), want)
	}
	return got
}

// get asks both for a filter and compares the answers byte by byte.
func (p *pair) get(level, name int, value []byte) {
	p.t.Helper()
	got, want := slices.Clone(value), slices.Clone(value)
	m, gotErr := p.model.Getsockopt(level, name, got)
	n, wantErr := p.real.Getsockopt(level, name, want)
	if gotErr != wantErr || m != n || !slices.Equal(got[:m], want[:n]) {
		p.fatalf("getsockopt %d/%d of %x\nmodel:  %d %s %x\nkernel: %d %s %x", level, name, value,
			m, answer(gotErr), got, n, answer(wantErr), want)
	}
}

// check compares the state of one group.
func (p *pair) check(index int, group netip.Addr, room int) {
	p.t.Helper()
	value := lx{p.model.k}.filter(index, group, 0, make([]netip.Addr, room)...)
	p.get(levelOf(group), 48, value)
}

func levelOf(group netip.Addr) int {
	if group.Is4() {
		return levelIP
	}
	return levelIPv6
}

// lx lays out Linux requests.
type lx struct{ k *Kernel }

func (l lx) sockaddr(a netip.Addr) []byte {
	v := make([]byte, storage)
	if a.IsValid() {
		linux.putSockaddr(l.k, v, a)
	}
	return v
}

func (l lx) index(i int) []byte {
	v := make([]byte, l.k.Word/8)
	l.k.Order.PutUint32(v, uint32(i))
	return v
}

func (l lx) req(index int, as ...netip.Addr) []byte {
	v := l.index(index)
	for _, a := range as {
		v = append(v, l.sockaddr(a)...)
	}
	return v
}

func (l lx) filter(index int, group netip.Addr, mode uint32, sources ...netip.Addr) []byte {
	v := l.req(index, group)
	v = append(v, make([]byte, 8)...)
	l.k.Order.PutUint32(v[len(v)-8:], mode)
	l.k.Order.PutUint32(v[len(v)-4:], uint32(len(sources)))
	for _, a := range sources {
		v = append(v, l.sockaddr(a)...)
	}
	return v
}

func TestLinuxModelIsTheKernel(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "udp4", true: "udp6"}[ipv6], func(t *testing.T) {
			runs := 60
			if testing.Short() {
				runs = 20
			}
			if s := os.Getenv("KERNELTEST_SEED"); s != "" {
				n, err := strconv.ParseUint(s, 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				randomRun(t, ipv6, n)
				return
			}
			for range runs {
				randomRun(t, ipv6, rand.Uint64())
			}
		})
	}
}

func randomRun(t *testing.T, ipv6 bool, seed uint64) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 0))
	k := linuxHere(t)
	p := newPair(t, k, ipv6)
	p.seed = fmt.Sprintf("KERNELTEST_SEED=%d", seed)
	l := lx{k}

	// Few groups and sources meet each other often; many of them meet the limits.
	groups := 1 + rnd.IntN(3)
	if rnd.IntN(4) == 0 {
		groups = k.MaxMemberships + 3
	}
	sources := []int{2, 4, k.MaxMSF4 + 3, k.MaxMSF6 + 3}[rnd.IntN(4)]
	one := func(family6 bool, format4, format6 string, n int) netip.Addr {
		if family6 {
			return netip.MustParseAddr(fmt.Sprintf(format6, rnd.IntN(n)+1))
		}
		return netip.MustParseAddr(fmt.Sprintf(format4, rnd.IntN(n)+1))
	}
	for range 250 {
		six := ipv6 && rnd.IntN(3) > 0 // an AF_INET6 socket takes both levels
		level := map[bool]int{true: levelIPv6, false: levelIP}[six]
		group := one(six, "239.1.2.%d", "ff1e::%x", groups)
		source := one(six, "10.0.0.%d", "2001:db8::%x", sources)
		index := 1
		checkable := true
		switch rnd.IntN(60) { // once in a while something is wrong
		case 0:
			index = 1 << 20
		case 1:
			group = source
		case 2:
			source = group
		case 3:
			source = netip.IPv4Unspecified()
			if six {
				source = netip.IPv6Unspecified()
			}
		case 4:
			group, checkable = one(!six, "239.1.2.%d", "ff1e::%x", groups), false
		case 5:
			source = one(!six, "10.0.0.%d", "2001:db8::%x", sources)
		case 6:
			group, checkable = netip.Addr{}, false
		case 7:
			level, checkable = levelIP+levelIPv6-level, false
		}
		name, value := 42+rnd.IntN(7), []byte(nil)
		switch name {
		case 42, 45:
			value = l.req(index, group)
		case 43, 44, 46, 47:
			value = l.req(index, group, source)
		case 48:
			list := make([]netip.Addr, rnd.IntN(min(sources+2, 16)))
			for i := range list {
				list[i] = one(six, "10.0.0.%d", "2001:db8::%x", sources)
			}
			if len(list) > 0 {
				list[0] = source
			}
			mode := uint32(rnd.IntN(2))
			if rnd.IntN(30) == 0 {
				mode = 2
			}
			value = l.filter(index, group, mode, list...)
			// Claim more sources than there are. (For a 32-bit process a 64-bit kernel
			// compares the length with the claim before the claim with the limit.)
			if rnd.IntN(20) == 0 && k.Word == 64 {
				at := len(value) - len(list)*storage - 4
				k.Order.PutUint32(value[at:], uint32(len(list)+1+rnd.IntN(20)))
			}
			if rnd.IntN(40) == 0 {
				at := len(value) - len(list)*storage - 4
				k.Order.PutUint32(value[at:], ^uint32(0)-uint32(rnd.IntN(3)))
			}
		}
		if group.Is4() && source.Is4() && level == levelIP && rnd.IntN(4) == 0 {
			g, s, lo := group.AsSlice(), source.AsSlice(), []byte{127, 0, 0, 1}
			switch name {
			case 42, 45: // IP_ADD_MEMBERSHIP, IP_DROP_MEMBERSHIP: by address or index
				value = slices.Concat(g, lo)
				if rnd.IntN(2) == 0 {
					value = slices.Concat(g, []byte{0, 0, 0, 0}, l.index(index)[:4])
				}
				name = map[int]int{42: 35, 45: 36}[name]
			case 43, 44, 46, 47:
				value = slices.Concat(g, lo, s)
				name = map[int]int{43: 38, 44: 37, 46: 39, 47: 40}[name]
			case 48: // IP_MSFILTER
				value = slices.Concat(g, lo, l.index(rnd.IntN(3))[:4], l.index(1)[:4], s)
				name = 41
			}
		}
		if group.Is6() && level == levelIPv6 && rnd.IntN(4) == 0 && (name == 42 || name == 45) {
			value = slices.Concat(group.AsSlice(), l.index(index)[:4])
			name = map[int]int{42: 20, 45: 21}[name]
		}
		switch rnd.IntN(80) {
		case 0:
			value = value[:rnd.IntN(len(value))]
			if name == 48 && k.Word == 32 {
				value = value[:min(len(value), 100)] // see above
			}
			if (name == 35 || name == 36) && len(value) >= 8 {
				value = value[:7] // 8 would be an ip_mreq that leaves the interface to this machine's routes
			}
		case 1:
			value = append(value, make([]byte, 1+rnd.IntN(8))...)
		}
		p.set(level, name, value)
		if checkable && group.IsValid() && (ipv6 || group.Is4()) {
			p.check(1, group, rnd.IntN(sources+2))
		}
	}
	for g := range groups { // all the rest, lists in full
		p.check(1, netip.MustParseAddr(fmt.Sprintf("239.1.2.%d", g+1)), 200)
		if ipv6 {
			p.check(1, netip.MustParseAddr(fmt.Sprintf("ff1e::%x", g+1)), 200)
		}
	}
}

func TestLinuxModelGetsockopt(t *testing.T) {
	sinceLinux(t, 5, 13)
	k := linuxHere(t)
	p := newPair(t, k, true)
	l := lx{k}
	g4, g6 := netip.MustParseAddr("239.1.2.3"), netip.MustParseAddr("ff1e::1")
	unicast := netip.MustParseAddr("10.0.0.1")
	p.set(levelIP, 42, l.req(1, g4))
	p.set(levelIPv6, 42, l.req(1, g6))
	p.set(levelIPv6, 43, l.req(1, g6, netip.MustParseAddr("2001:db8::1")))
	for _, level := range []int{levelIP, levelIPv6} {
		for _, group := range []netip.Addr{g4, g6, unicast, {}} {
			for _, index := range []int{0, 1, 1 << 20} {
				p.get(level, 48, l.filter(index, group, 0))
				p.get(level, 48, l.filter(index, group, 0, unicast, unicast))
			}
		}
		p.get(level, 48, l.filter(1, g4, 0)[:100])
		p.get(level, 42, make([]byte, 300))
		p.get(level, 199, make([]byte, 4))
	}
	for _, index := range []int{0, 1} {
		p.set(levelIPv6, 48, l.filter(index, g4, 0))
		p.set(levelIPv6, 48, l.filter(index, g4, 1, unicast))
	}
	p.get(levelIP, 41, slices.Concat(g4.AsSlice(), []byte{127, 0, 0, 1}, make([]byte, 8)))
	p.get(levelIP, 41, slices.Concat(g4.AsSlice(), []byte{9, 9, 9, 9}, make([]byte, 8)))
}

func TestLinuxModelMulticastAll(t *testing.T) {
	k := linuxHere(t)
	for _, ipv6 := range []bool{false, true} {
		p := newPair(t, k, ipv6)
		for _, o := range []option{{levelIP, linuxIPMulticastAll}, {levelIPv6, linuxIPv6MulticastAll}} {
			for _, value := range []string{"", "\x00", "\x01", "\x01\x00\x00\x00", "\x00\x00\x00\x00", "\x02\x00\x00\x00", "\x00\x00\x00\x00\x00"} {
				p.set(o.level, int(o.number), []byte(value))
				p.get(o.level, int(o.number), make([]byte, 4))
			}
		}
		q := newPair(t, k, ipv6) // and what a new socket starts with
		q.get(levelIP, linuxIPMulticastAll, make([]byte, 4))
		q.get(levelIPv6, linuxIPv6MulticastAll, make([]byte, 4))
	}
}

// TestLinuxModelOptionMemory goes to the limits that only option memory sets.
func TestLinuxModelOptionMemory(t *testing.T) {
	sinceLinux(t, 5, 13)
	k := linuxHere(t)
	p := newPair(t, k, true)
	l := lx{k}
	source := netip.MustParseAddr("2001:db8::1")
	var err error
	n := 0
	for ; err == nil && n < 5000; n++ {
		group := netip.MustParseAddr(fmt.Sprintf("ff1e::%x", n+1))
		err = p.set(levelIPv6, 46, l.req(1, group, source))
	}
	if err != linuxENOMEM && err != linuxENOBUFS {
		p.fatalf("%d groups and %v", n, err)
	}
	t.Logf("%d source-specific IPv6 groups, then %s", n-1, answer(err))
	for range 3 { // what little is left
		p.set(levelIPv6, 42, l.req(1, netip.MustParseAddr(fmt.Sprintf("ff1e::1:%x", n))))
		p.set(levelIP, 46, l.req(1, netip.MustParseAddr(fmt.Sprintf("239.1.2.%d", n%200)), netip.MustParseAddr("10.0.0.1")))
		p.check(1, netip.MustParseAddr(fmt.Sprintf("239.1.2.%d", n%200)), 2)
		n++
	}
	p.set(levelIPv6, 48, l.filter(1, netip.MustParseAddr("ff1e::1"), 1, make([]netip.Addr, 40)...))
	p.check(1, netip.MustParseAddr("ff1e::1"), 50)
}

// TestLinuxModelDelivers sends datagrams on lo past two sockets, which get random
// requests, and compares who receives what.
func TestLinuxModelDelivers(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	k := linuxHere(t)
	l := lx{k}
	// Nobody else on the machine has joined these, or it would leak.
	mine := [4]byte{239, byte(rnd.Uint32()), byte(rnd.Uint32()), 1}
	groups := []netip.Addr{netip.AddrFrom4(mine), netip.AddrFrom4(mine).Next(), netip.MustParseAddr("224.0.0.1")}
	var sources []netip.Addr
	var senders []int
	for i := range 3 {
		sources = append(sources, netip.AddrFrom4([4]byte{127, 0, 0, byte(i + 1)}))
		fd := int(newRealSocket(t, false))
		if err := unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: 1}); err != nil {
			skip(t, "%v", err)
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: sources[i].As4()}); err != nil {
			skip(t, "%v", err)
		}
		senders = append(senders, fd)
	}
	pairs := []*pair{newPair(t, k, false), newPair(t, k, rnd.IntN(2) == 0)}
	port := 0
	for _, p := range pairs {
		p.seed = fmt.Sprint("seed ", seed)
		fd := int(p.real)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			t.Fatal(err)
		}
		var sa unix.Sockaddr = &unix.SockaddrInet4{Port: port}
		if p.model.ipv6 {
			sa = &unix.SockaddrInet6{Port: port}
		}
		if err := unix.Bind(fd, sa); err != nil {
			t.Fatal(err)
		}
		if here, err := unix.Getsockname(fd); err != nil {
			t.Fatal(err)
		} else if in, ok := here.(*unix.SockaddrInet4); ok {
			port = in.Port
		}
	}
	for round := range 300 {
		p := pairs[rnd.IntN(2)]
		group, source := groups[rnd.IntN(2)], sources[rnd.IntN(3)]
		switch name := 41 + rnd.IntN(8); name {
		case 41:
			value := make([]byte, 4)
			value[0], value[3] = byte(rnd.IntN(2)), 0
			if k.Order.Uint32(value) > 1 {
				continue // a big-endian machine
			}
			p.set(levelIP, linuxIPMulticastAll, value)
		case 42, 45:
			p.set(levelIP, name, l.req(1, group))
		case 48:
			p.set(levelIP, name, l.filter(1, group, uint32(rnd.IntN(2)), sources[:rnd.IntN(3)]...))
		default:
			p.set(levelIP, name, l.req(1, group, source))
		}
		payload := byte(round)
		for i, fd := range senders {
			for g, group := range groups {
				to := &unix.SockaddrInet4{Port: port, Addr: group.As4()}
				if err := unix.Sendto(fd, []byte{payload, byte(i), byte(g)}, 0, to); err != nil {
					skip(t, "%v", err)
				}
			}
		}
		for n, p := range pairs {
			var want, got []string
			for i, source := range sources {
				for g, group := range groups {
					if p.model.Delivers(1, group, source) {
						want = append(want, fmt.Sprint([]byte{payload, byte(i), byte(g)}))
					}
				}
			}
			buf := make([]byte, 16)
			for wait := 100; ; { // milliseconds, and only while something is missing
				m, _, err := unix.Recvfrom(int(p.real), buf, unix.MSG_DONTWAIT)
				if err == nil {
					got = append(got, fmt.Sprint(buf[:m]))
					continue
				}
				if len(got) >= len(want) || wait == 0 {
					break
				}
				wait--
				unix.Poll([]unix.PollFd{{Fd: int32(p.real), Events: unix.POLLIN}}, 1)
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				p.fatalf("socket %d received [round source group]\nkernel: %v\nmodel:  %v\nmemberships %v", n, got, want, p.model.Memberships())
			}
		}
	}
}

// sinceLinux skips a test where the kernel is older than the model: before 5.13
// getsockopt for IPv6 looked for the interface first.
func sinceLinux(t *testing.T, major, minor int) {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	var x, y int
	fmt.Sscanf(string(b), "%d.%d", &x, &y)
	if x < major || x == major && y < minor {
		t.Skipf("the model is of Linux %d.%d and later, this is %s", major, minor, b)
	}
}
