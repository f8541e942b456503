package kerneltest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"example.com/mcast/internal/netlab"
)

// Which families a test is about.
var (
	bothFamilies = []bool{false, true}
	onlyIPv6     = []bool{true}
)

// onHost runs a test for each family on a host of its own with d0 (index 10) and d1
// (11), the two ends of a cable.
func onHost(t *testing.T, families []bool, f func(t *testing.T, h *netlab.Host, six bool)) {
	netlab.Run(t, func(l *netlab.Lab) {
		for _, six := range families {
			name := map[bool]string{false: "udp4", true: "udp6"}[six]
			h := l.Host(name)
			l.Run(name, func(t *testing.T) {
				h.Do(func() {
					ip(h, "link set lo up")
					cable(h)
					ip(h, "addr add 192.0.2.1/24 dev d0")
					f(t, h, six)
				})
			})
		}
	})
}

// cable makes d0 and d1, always with the same indexes.
func cable(h *netlab.Host) {
	ip(h, "link add d0 index 10 type veth peer name d1 index 11")
	ip(h, "link set d0 up")
	ip(h, "link set d1 up")
}

func ip(h *netlab.Host, args string) { h.IP(strings.Fields(args)...) }

// TestLinuxModelInterfaces deletes and restores interfaces under both.
func TestLinuxModelInterfaces(t *testing.T) {
	sinceLinux(t, 5, 13)
	onHost(t, bothFamilies, func(t *testing.T, h *netlab.Host, six bool) {
		k := linuxHere(t)
		d0 := Interface{Name: "d0", Up: true, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
		k.AddInterface(10, d0)
		k.AddInterface(11, Interface{Name: "d1", Up: true})
		l := lx{k}
		a := func(s4, s6 string) netip.Addr {
			if six {
				return netip.MustParseAddr(s6)
			}
			return netip.MustParseAddr(s4)
		}
		group, other := a("239.1.2.3", "ff1e::1"), a("239.1.2.4", "ff1e::2")
		s1, s2 := a("10.0.0.1", "2001:db8::1"), a("10.0.0.2", "2001:db8::2")
		level := levelOf(group)
		all := func(p *pair, index int) {
			p.t.Helper()
			p.set(level, 42, l.req(index, group))
			p.set(level, 43, l.req(index, group, s2))
			p.set(level, 44, l.req(index, group, s2))
			p.set(level, 46, l.req(index, group, s2))
			p.set(level, 47, l.req(index, group, s1))
			p.set(level, 48, l.filter(index, group, 1, s2))
			p.set(level, 48, l.filter(index, group, 0, s2))
			p.set(level, 48, l.filter(index, group, 0))
			p.check(index, group, 4)
		}
		p := newPair(t, k, six)
		q := newPair(t, k, six)
		p.set(level, 46, l.req(10, group, s1))
		p.set(level, 42, l.req(10, other))
		q.set(level, 42, l.req(10, group))
		ip(h, "link del d0")
		k.RemoveInterface(10)
		k.RemoveInterface(11) // the peer
		all(p, 10)
		all(q, 10)
		q.set(level, 45, l.req(10, group))
		q.set(level, 45, l.req(10, group))
		all(q, 10)
		// Back with the same index, while an entry of its former life is left.
		ip(h, "link add d0 index 10 type veth peer name d1 index 11")
		ip(h, "link set d0 up")
		k.AddInterface(10, d0)
		all(p, 10)
		all(q, 10)
		p.set(level, 45, l.req(10, other))
		p.set(level, 46, l.req(10, other, s1))
		p.check(10, other, 4)
		ip(h, "link set d0 down")
		k.SetUp(10, false)
		all(p, 10)
		all(q, 10)
	})
}

// TestLinuxModelDeliversIPv6 shows that an IPv6 membership on one interface lets
// the group in from another.
func TestLinuxModelDeliversIPv6(t *testing.T) {
	onHost(t, onlyIPv6, func(t *testing.T, h *netlab.Host, six bool) {
		k := linuxHere(t)
		k.AddInterface(10, Interface{Name: "d0", Up: true})
		k.AddInterface(11, Interface{Name: "d1", Up: true})
		l := lx{k}
		group := netip.MustParseAddr("ff15::77")
		member, other := newPair(t, k, true), newPair(t, k, true)
		if err := unix.SetsockoptInt(int(other.real), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			t.Fatal(err)
		}
		if err := unix.Bind(int(other.real), &unix.SockaddrInet6{Port: 7777}); err != nil {
			skip(t, "%v", err)
		}
		sender := int(newRealSocket(t, true))
		ip(h, "addr add 2001:db8::1/64 dev d0 nodad")
		source := netip.MustParseAddr("2001:db8::1")
		if err := unix.SetsockoptInt(sender, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, 10); err != nil {
			skip(t, "%v", err)
		}
		if err := unix.SetsockoptInt(sender, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 0); err != nil {
			skip(t, "%v", err)
		}
		hears := func() bool {
			if err := unix.Sendto(sender, []byte("x"), 0, &unix.SockaddrInet6{Port: 7777, Addr: group.As16()}); err != nil {
				skip(t, "%v", err)
			}
			unix.Poll([]unix.PollFd{{Fd: int32(other.real), Events: unix.POLLIN}}, 300)
			_, _, err := unix.Recvfrom(int(other.real), make([]byte, 8), unix.MSG_DONTWAIT)
			return err == nil
		}
		check := func(want bool) {
			t.Helper()
			if m := other.model.Delivers(11, group, source); hears() != want || m != want {
				other.fatalf("kernel: %v, model: %v", !want || m, m)
			}
		}
		check(false)
		member.set(levelIPv6, 42, l.req(11, group))
		check(true) // the leak
		value := make([]byte, 4)
		other.set(levelIPv6, linuxIPv6MulticastAll, value)
		check(false)
		other.set(levelIPv6, 42, l.req(10, group)) // not the interface it comes in by
		check(true)
		other.set(levelIPv6, 43, l.req(10, group, source))
		check(false)
	})
}

// users is how many memberships the model's device counts.
func users(k *Kernel, index int, group netip.Addr) int {
	if d := k.device(index); d != nil && d.groups[group] != nil {
		return d.groups[group].users
	}
	return 0
}

// close closes both sockets. The descriptor's number stays taken: the end of the test
// closes it once more.
func (p *pair) close() {
	p.t.Helper()
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	defer unix.Close(null)
	if err := unix.Dup3(null, int(p.real), unix.O_CLOEXEC); err != nil {
		p.t.Fatal(err)
	}
	p.model.Close()
}

// TestLinuxModelDevices makes random requests on three sockets while the interface
// goes and comes back under its index, down and up, and loses IPv6 and gets it back,
// and compares how many memberships the device counts: what one socket takes from
// another is seen nowhere else.
func TestLinuxModelDevices(t *testing.T) {
	sinceLinux(t, 5, 13)
	seed := rand.Uint64()
	if s := os.Getenv("KERNELTEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	onHost(t, bothFamilies, func(t *testing.T, h *netlab.Host, six bool) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		k := linuxHere(t)
		d0, d1 := Interface{Name: "d0", Up: true, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}, Interface{Name: "d1", Up: true}
		k.AddInterface(10, d0)
		k.AddInterface(11, d1)
		l := lx{k}
		one := func(v4, v6 string, n int) netip.Addr {
			if six {
				return netip.MustParseAddr(fmt.Sprintf(v6, 1+rnd.IntN(n)))
			}
			return netip.MustParseAddr(fmt.Sprintf(v4, 1+rnd.IntN(n)))
		}
		pairs := make([]*pair, 3)
		for i := range pairs {
			pairs[i] = newPair(t, k, six)
		}
		var steps []string
		note := func(format string, args ...any) {
			steps = append(steps, fmt.Sprintf(format, args...))
			for _, p := range pairs {
				p.seed = fmt.Sprintf("KERNELTEST_SEED=%d\nall steps:\n%s", seed, strings.Join(steps, "\n"))
			}
		}
		for range 400 {
			i := rnd.IntN(len(pairs))
			p, group, source := pairs[i], one("239.1.2.%d", "ff1e::%x", 2), one("10.0.0.%d", "2001:db8::%x", 3)
			level := levelOf(group)
			switch do := rnd.IntN(60); do {
			case 0:
				note("d0 is made anew")
				ip(h, "link del dev d0")
				k.RemoveInterface(10)
				k.RemoveInterface(11)
				cable(h)
				k.AddInterface(10, d0)
				k.AddInterface(11, d1)
			case 1, 2:
				note("d0 down, up: %v", do == 1)
				ip(h, "link set dev d0 "+map[bool]string{true: "up", false: "down"}[do == 1])
				k.SetUp(10, do == 1)
			case 3, 4:
				mtu := map[int]int{3: 1200, 4: 1500}[do]
				note("d0 mtu %d", mtu)
				ip(h, fmt.Sprint("link set dev d0 mtu ", mtu))
				k.SetMTU(10, mtu)
			case 5, 6:
				if six && k.Interfaces[10].hasIPv6() { // there is no such file otherwise
					note("d0 IPv6: %v", do == 6)
					h.Sysctl("net.ipv6.conf.d0.disable_ipv6", map[bool]string{true: "0", false: "1"}[do == 6])
					k.SetIPv6(10, do == 6)
				}
			case 7:
				note("close %d", i)
				p.close()
				pairs[i] = newPair(t, k, six)
			case 8, 9, 10, 11, 12, 13, 14, 15:
				mode, list := uint32(rnd.IntN(2)), []netip.Addr{source, one("10.0.0.%d", "2001:db8::%x", 3)}[:rnd.IntN(3)]
				note("filter %d %v %d %v", i, group, mode, list)
				p.set(level, 48, l.filter(10, group, mode, list...))
			default:
				name := []int{42, 42, 45, 43, 44, 46, 46, 47}[rnd.IntN(8)]
				note("%d %d %v %v", name, i, group, source)
				value := l.req(10, group)
				if name != 42 && name != 45 {
					value = l.req(10, group, source)
				}
				p.set(level, name, value)
			}
			for n := range 2 {
				group := netip.MustParseAddr(fmt.Sprintf("239.1.2.%d", n+1))
				if six {
					group = netip.MustParseAddr(fmt.Sprintf("ff1e::%x", n+1))
				}
				if got, want := users(k, 10, group), h.Users("d0", group); got != want {
					p.fatalf("the model counts %d memberships of %v on d0, the kernel %d", got, group, want)
				}
			}
		}
		t.Logf("harms: %d", len(k.Harms()))
	})
}
