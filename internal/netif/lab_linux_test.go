package netif

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/mcast/internal/netlab"
	"golang.org/x/sys/unix"
)

// labSocket opens a socket on a host of a lab.
func labSocket(t *testing.T, on *netlab.Host) Host {
	t.Helper()
	var c *net.UDPConn
	var err error
	on.Do(func() { c, err = net.ListenUDP("udp4", nil) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	return HostOf(raw)
}

// A host answers for the namespace of its socket, whatever namespace the
// thread that asks is in.
func TestLabHost(t *testing.T) {
	netlab.Run(t, func(l *netlab.Lab) {
		t := l.T()
		local, a, b := l.Local(), l.Host("a"), l.Host("b")
		l.Veth(a, "eth0", b, "eth0")
		l.Veth(a, "eth1", b, "eth1")
		local.IP("link", "add", "here", "type", "veth", "peer", "name", "there")
		a.AddAddr("eth0", "10.1.0.1/24")
		a.AddAddr("eth1", "10.2.0.1/24")
		a.AddAddr("lo", "10.9.9.9/32")
		a.AddAddr("lo", "10.1.0.1/32") // as eth0 has
		a.IP("link", "add", "br0", "type", "bridge")
		a.IP("link", "add", "port", "type", "veth", "peer", "name", "end")
		a.IP("link", "set", "dev", "port", "master", "br0")
		h := labSocket(t, a)
		eth0, eth1 := a.Index("eth0"), a.Index("eth1")

		if h.Namespace() == 0 {
			t.Skip("this kernel does not tell namespaces apart (Linux 5.14)")
		}
		if here := labSocket(t, local); here.Namespace() == h.Namespace() || here.Namespace() == 0 {
			t.Errorf("namespaces %d and %d", here.Namespace(), h.Namespace())
		}
		check := func(t *testing.T) {
			if index, err := h.Index("eth1"); err != nil || index != eth1 {
				t.Errorf("eth1: %d, %v", index, err)
			}
			if name, err := h.Name(eth1); err != nil || name != "eth1" {
				t.Errorf("%d: %s, %v", eth1, name, err)
			}
			if _, err := h.Index("here"); !errors.Is(err, ErrNotFound) {
				t.Errorf("an interface of another namespace: %v", err)
			}
			list, err := h.Interfaces()
			var names []string
			master := 0
			for _, ifi := range list {
				names = append(names, ifi.Name)
				if ifi.Name == "port" {
					master = ifi.Master
				}
				if ifi.Name == "eth0" && (!ifi.Up || !ifi.Carrier || !ifi.Multicast || ifi.Loopback || !ifi.IPv6) || ifi.Name == "lo" && !ifi.Loopback || ifi.Name == "end" && ifi.Up {
					t.Errorf("%+v", ifi)
				}
			}
			slices.Sort(names)
			if want := []string{"br0", "end", "eth0", "eth1", "lo", "port"}; err != nil || !slices.Equal(names, want) {
				t.Errorf("%v, %v, want %v", names, err, want)
			}
			if br0, _ := h.Index("br0"); master != br0 || br0 == 0 {
				t.Errorf("the port's master is %d, want %d", master, br0)
			}
			if a, ok := h.Address4(eth1); !ok || a.String() != "10.2.0.1" {
				t.Errorf("address of eth1: %v, %v", a, ok)
			}
			if a, ok := h.Address4(master); ok {
				t.Errorf("address of br0: %v", a)
			}
			if n, ok := h.Limit("net.ipv4.igmp_max_msf"); !ok || n != 77 {
				t.Errorf("limit %d, %v", n, ok)
			}
			for to, want := range map[string]int{
				"10.1.0.1": eth0, "10.2.0.1": eth1, "10.1.0.7": eth0, "10.2.0.7": eth1, "::ffff:10.2.0.7": eth1,
				"10.9.9.9": 1, "127.0.0.1": 1, "127.0.0.2": 1,
				"fe80::7%eth1": eth1, "fe80::1%" + fmt.Sprint(eth1): eth1, "fe80::1%eth0": eth0, "ff02::1%eth1": eth1,
			} {
				if index, err := h.Route(netip.MustParseAddr(to)); err != nil || index != want {
					t.Errorf("route to %s: %d, %v, want %d", to, index, err, want)
				}
			}
			if index, err := h.Route(netip.MustParseAddr("10.77.0.1")); !errors.Is(err, unix.ENETUNREACH) {
				t.Errorf("there is a route: %d, %v", index, err)
			}
			if index, err := h.Route(netip.MustParseAddr("fe80::1%eth9")); !errors.Is(err, ErrNotFound) {
				t.Errorf("there is a route: %d, %v", index, err)
			}
			if d := h.DefaultRoutes(false); d != nil {
				t.Errorf("default routes %v", d)
			}
		}
		a.Sysctl("net.ipv4.igmp_max_msf", "77")
		// Two interfaces with the same link-local address.
		a.AddAddr("eth0", "fe80::1/64")
		a.AddAddr("eth1", "fe80::1/64")
		l.Run("here", func(t *testing.T) { a.Do(func() { check(t) }) })
		l.Run("from elsewhere", check)

		l.Run("default routes", func(t *testing.T) {
			a.IP("route", "add", "default", "via", "10.1.0.7", "dev", "eth0", "metric", "200")
			a.IP("route", "add", "default", "via", "10.2.0.7", "dev", "eth1", "metric", "100")
			if d := h.DefaultRoutes(false); !slices.Equal(d, []int{eth1, eth0}) {
				t.Errorf("%v, want %v", d, []int{eth1, eth0})
			}
			if d := h.DefaultRoutes(true); d != nil {
				t.Errorf("%v", d)
			}
			a.IP("route", "flush", "0/0")
			a.IP("route", "add", "default", "nexthop", "via", "10.2.0.7", "dev", "eth1", "nexthop", "via", "10.1.0.7", "dev", "eth0")
			a.IP("-6", "route", "add", "default", "via", "fe80::9", "dev", "eth1")
			a.IP("-6", "route", "add", "unreachable", "default", "metric", "9999")
			a.IP("route", "add", "unreachable", "10.66.0.0/16")
			a.IP("-6", "route", "add", "blackhole", "2001:db8:66::/48")
			if d := h.DefaultRoutes(false); !slices.Equal(d, []int{eth1, eth0}) {
				t.Errorf("%v, want %v", d, []int{eth1, eth0})
			}
			if d := h.DefaultRoutes(true); !slices.Equal(d, []int{eth1}) {
				t.Errorf("%v, want %d", d, eth1)
			}
			for _, to := range []string{"10.66.0.1", "2001:db8:66::1"} {
				if index, err := h.Route(netip.MustParseAddr(to)); err == nil {
					t.Errorf("route to %s: %d", to, index)
				}
			}
		})

		l.Run("news", func(t *testing.T) {
			s, err := h.Watch()
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			changes, err := s.Read()
			if err != nil {
				t.Fatal(err)
			}
			var state State
			state.Apply(changes, time.Now())
			if _, ok := state.Named("here"); ok || len(state.Interfaces()) != 6 {
				t.Errorf("%+v", state.Interfaces())
			}
		})

		// The threads are back where they were.
		var names []string
		ifis, _ := net.Interfaces()
		for _, ifi := range ifis {
			names = append(names, ifi.Name)
		}
		if !slices.Contains(names, "here") || slices.Contains(names, "eth0") {
			t.Errorf("the test is elsewhere: %v", names)
		}

		l.Run("without privileges", func(t *testing.T) {
			done := make(chan error)
			go func() {
				// This thread ends with the goroutine.
				runtime.LockOSThread()
				header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
				var none [2]unix.CapUserData
				if err := unix.Capset(&header, &none[0]); err != nil {
					t.Error(err)
				}
				_, err := h.Watch()
				if index, err := h.Index("eth1"); err != nil || index != eth1 {
					t.Errorf("eth1: %d, %v", index, err)
				}
				done <- err
			}()
			if err := <-done; !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "another network namespace") {
				t.Error(err)
			}
		})
	})
}

// follow reads news until some match, and returns all that came.
func follow(t *testing.T, s Source, state *State, until func(News) bool) (all []News) {
	t.Helper()
	for {
		changes, err := s.Read()
		if err != nil {
			t.Fatal(err)
		}
		news := state.Apply(changes, time.Now())
		all = append(all, news...)
		if slices.ContainsFunc(news, until) {
			return all
		}
	}
}

// What a kernel tells, as State has it.
func TestLabNews(t *testing.T) {
	netlab.Run(t, func(l *netlab.Lab) {
		local, far := l.Local(), l.Host("far")
		l.Veth(local, "eth0", far, "far0")
		s, err := labSocket(l.T(), local).Watch()
		if err != nil {
			l.T().Fatal(err)
		}
		defer s.Close()
		var state State
		marks := 0
		// Each step is over when an interface came that it makes at its end: the
		// news of what it does has all come then, but for that of a carrier.
		step := func(name string, f func(), want ...Kind) {
			l.Run(name, func(t *testing.T) {
				index := 0
				if ifi, ok := state.Named("eth0"); ok {
					index = ifi.Index
				}
				f()
				var news []News
				if len(want) > 0 && want[len(want)-1] == CarrierBack {
					// The kernel tells of a carrier when it has the time.
					news = follow(t, s, &state, func(n News) bool { return n.Kind == CarrierBack && n.Interface.Name == "eth0" })
				}
				marks++
				mark := fmt.Sprint("mark", marks)
				local.IP("link", "add", mark, "index", fmt.Sprint(5000+marks), "type", "veth", "peer", "name", "peer-"+mark, "index", fmt.Sprint(6000+marks))
				var got []Kind
				news = append(news, follow(t, s, &state, func(n News) bool { return n.Kind == Came && n.Interface.Name == mark })...)
				for _, n := range news {
					if (n.Interface.Index == index || n.Interface.Name == "eth0") && n.Kind != Changed {
						got = append(got, n.Kind)
					}
				}
				if !slices.Equal(got, want) {
					t.Errorf("%v, want %v", got, want)
				}
				if ifi, ok := state.Named("eth0"); ok && (!ifi.Up || !ifi.Carrier || !ifi.IPv6) {
					t.Errorf("in the end: %+v", ifi)
				}
			})
		}
		disable := func(v string) { local.Sysctl("net/ipv6/conf/eth0/disable_ipv6", v) }
		mtu := func(v string) { local.IP("link", "set", "dev", "eth0", "mtu", v) }
		step("at first", func() {}, Came)
		step("nothing", func() {})
		step("down and up", func() { local.Down("eth0"); local.Up("eth0") }, Down, Up)
		step("carrier", func() { far.Down("far0"); far.Up("far0") }, CarrierLost, CarrierBack)
		step("IPv6 off and on", func() { disable("1"); time.Sleep(30 * time.Millisecond); disable("0") }, IPv6Lost, IPv6Back)
		step("again", func() { time.Sleep(30 * time.Millisecond); disable("1"); disable("0") }, IPv6Lost, IPv6Back)
		step("MTU", func() { mtu("1279"); mtu("1500") }, IPv6Lost, IPv6Back)
		step("MTU that is enough", func() { mtu("1280"); mtu("1500") })
		step("renamed", func() {
			local.Down("eth0")
			local.IP("link", "set", "dev", "eth0", "name", "lan0")
			local.IP("link", "set", "dev", "lan0", "name", "eth0")
			local.Up("eth0")
		}, Down, Renamed, Renamed, Up)
		step("made anew", func() { local.Recreate("eth0", false) }, Down, Gone, Came, Up, CarrierBack)
		step("made anew with its index", func() { local.Recreate("eth0", true) }, Down, Gone, Came, Up, CarrierBack)
		step("moved away", func() { local.Move("eth0", far) }, Down, Gone)

		// IPv6 that is off stays off.
		l.Run("IPv6 off", func(t *testing.T) {
			local.IP("link", "add", "eth2", "type", "veth", "peer", "name", "eth3")
			local.Up("eth3")
			local.Up("eth2")
			follow(t, s, &state, func(n News) bool { return n.Interface.Name == "eth2" && n.Interface.Carrier })
			local.Sysctl("net/ipv6/conf/eth2/disable_ipv6", "1")
			follow(t, s, &state, func(n News) bool { return n.Interface.Name == "eth2" && n.Kind == IPv6Lost })
			local.Sysctl("net/ipv6/conf/eth2/disable_ipv6", "0")
			follow(t, s, &state, func(n News) bool { return n.Interface.Name == "eth2" && n.Kind == IPv6Back })
		})
		l.Run("an address", func(t *testing.T) {
			local.AddAddr("eth2", "10.5.0.1/24")
			follow(t, s, &state, func(n News) bool { return n.Kind == Changed && n.Interface == Interface{} })
		})
		l.Run("a master", func(t *testing.T) {
			local.IP("link", "add", "br0", "type", "bridge")
			local.IP("link", "set", "dev", "eth2", "master", "br0")
			follow(t, s, &state, func(n News) bool { return n.Interface.Name == "eth2" && n.Interface.Master == local.Index("br0") })
			local.IP("link", "set", "dev", "eth2", "nomaster")
			follow(t, s, &state, func(n News) bool { return n.Interface.Name == "eth2" && n.Interface.Master == 0 })
		})
	})
}

// When the kernel has more news than room for them, all links are looked at
// again, and nothing that is there is taken for gone.
func TestLabOverrun(t *testing.T) {
	netlab.Run(t, func(l *netlab.Lab) {
		local := l.Local()
		local.IP("link", "add", "stays", "index", "1000", "type", "veth", "peer", "name", "p0")
		local.IP("link", "add", "goes", "index", "1001", "type", "veth", "peer", "name", "p1")
		local.Up("p0")
		local.Up("stays")
		s, err := labSocket(t, local).Watch()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		var state State
		first, err := s.Read()
		if err != nil {
			t.Fatal(err)
		}
		state.Apply(first, time.Now())
		raw, err := s.(*source).f.(interface {
			SyscallConn() (syscall.RawConn, error)
		}).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1) })
		for round := range 3 {
			local.IP("link", "add", "comes", "type", "veth", "peer", "name", "p2")
			for range 20 {
				local.IP("link", "set", "dev", "comes", "up")
				local.IP("link", "set", "dev", "comes", "down")
			}
			switch round {
			case 1:
				local.IP("link", "del", "dev", "goes")
			case 2:
				time.Sleep(30 * time.Millisecond)
				local.Sysctl("net/ipv6/conf/stays/disable_ipv6", "1")
				local.Sysctl("net/ipv6/conf/stays/disable_ipv6", "0")
			}
			local.IP("link", "del", "dev", "comes")
			local.IP("link", "set", "dev", "stays", "alias", fmt.Sprint("round ", round))
			last := fmt.Sprint("last", round)
			local.IP("link", "add", last, "type", "veth", "peer", "name", fmt.Sprint("end", round))
			news := follow(t, s, &state, func(n News) bool { return n.Kind == Came && n.Interface.Name == last })
			has := func(kind Kind) bool {
				return slices.ContainsFunc(news, func(n News) bool { return n.Kind == kind && n.Interface.Index == 1000 })
			}
			if has(Gone) || has(IPv6Lost) != (round == 2) || has(IPv6Back) != (round == 2) {
				t.Errorf("round %d: %s", round, newsString(news))
			}
			stays, _ := state.Named("stays")
			_, goes := state.Named("goes")
			_, comes := state.Named("comes")
			_, p2 := state.Named("p2")
			if stays.Index != 1000 || goes != (round == 0) || comes || p2 {
				t.Errorf("round %d: %+v", round, state.Interfaces())
			}
		}
	})
}

func TestIndexAllocations(t *testing.T) {
	h := socketHost(t)
	if n := testing.AllocsPerRun(100, func() { h.Index("lo") }); n > 3 {
		t.Errorf("Index makes %v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() { h.Name(1) }); n > 4 {
		t.Errorf("Name makes %v allocations", n)
	}
}
