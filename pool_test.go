package mcast

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// testInterface is the interface that tests of a Pool use, and its sources.
func testInterface(t testing.TB) (index int, sources []netip.Addr) {
	t.Helper()
	notEmulated(t)
	if name := os.Getenv("MCAST_TEST_IFACE"); name != "" {
		ifi, err := net.InterfaceByName(name)
		if err != nil {
			t.Fatal(err)
		}
		sources = []netip.Addr{netip.MustParseAddr(os.Getenv("MCAST_TEST_IPV4_A")), netip.MustParseAddr(os.Getenv("MCAST_TEST_IPV4_B"))}
		if os.Getenv("MCAST_TEST_WINE") != "" {
			sources = sources[:1] // Wine sends from the first address of an interface, whatever is bound
		}
		return ifi.Index, sources
	}
	ifis, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, ifi := range ifis {
		if ifi.Flags&net.FlagLoopback != 0 && ifi.Flags&net.FlagUp != 0 {
			sources := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
			if c, err := net.ListenPacket("udp4", "127.0.0.2:0"); err == nil {
				c.Close()
				sources = append(sources, netip.MustParseAddr("127.0.0.2"))
			}
			return ifi.Index, sources
		}
	}
	t.Skip("there is no loopback interface that is up")
	return 0, nil
}

// notEmulated skips a test that needs more of the system than an emulator has.
func notEmulated(t testing.TB) {
	t.Helper()
	if by := os.Getenv("MCAST_EMULATED"); by != "" {
		t.Skip(by + " knows neither interfaces nor IP_MULTICAST_IF")
	}
}

// freePort finds a port that nobody listens on, below those that systems give
// to sockets without one: such a socket must not take it before the test does.
func freePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 20000 + rand.IntN(10000)
		if c, err := net.ListenPacket("udp4", fmt.Sprintf(":%d", port)); err == nil {
			c.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

func listenPoolOn(t testing.TB, cfg *Config) (*Pool, int) {
	t.Helper()
	port := freePort(t)
	p, err := ListenPool("udp4", fmt.Sprintf(":%d", port), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p, port
}

func poolSender(t testing.TB, source netip.Addr, index int) *Conn {
	t.Helper()
	c, err := Listen("udp4", netip.AddrPortFrom(source, 0).String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetMulticastInterface(index); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestPool makes random requests on a Pool and on a Filter, which must agree,
// and lets all sources send to all groups, of which the Pool must hear just
// what the Filter allows: each once.
func TestPool(t *testing.T) {
	index, sources := testInterface(t)
	p, _ := listenPoolOn(t, &Config{AnySource: true})
	other := p.On(freePort(t))
	var senders []*Conn
	for _, s := range sources {
		senders = append(senders, poolSender(t, s, index))
	}
	far := []netip.Addr{}
	for i := range 14 { // more sources than one socket takes (net.ipv4.igmp_max_msf)
		far = append(far, netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + i)}))
	}
	var groups []Group
	for i := range 30 { // more groups than one socket takes
		groups = append(groups, Group{netip.AddrFrom4([4]byte{232, 7, byte(i), 1}), index})
	}
	members := []*Members{p.Members, other}
	want := []*Filter{{}, {}}
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 2))
	fence := Group{netip.MustParseAddr("232.8.8.8"), index}
	for _, m := range members {
		if err := m.JoinSource(fence, sources[0]); err != nil {
			t.Fatal(err)
		}
	}
	// The witness hears everything. What it has heard, all sockets have, or
	// never will: fences alone could overtake what another processor sends.
	witness := listenOnPorts(t, index, append(groups, fence), members[0].port, members[1].port)
	steps := 1500
	if testing.Short() {
		steps = 300
	}
	for step := range steps {
		i := rnd.IntN(2)
		m, f := members[i], want[i]
		g := groups[rnd.IntN(len(groups))]
		if rnd.IntN(3) == 0 {
			g = groups[rnd.IntN(3)] // to get large filters
		}
		all := append(slices.Clone(sources), far...)
		s := all[rnd.IntN(len(all))]
		op := Op(rnd.IntN(int(numOps)))
		if rnd.IntN(2) == 0 {
			op = OpJoinSource
		}
		var got, expect error
		var what string
		if rnd.IntN(20) == 0 {
			mode, some := Mode(rnd.IntN(2)), []netip.Addr{}
			for range rnd.IntN(14) {
				some = append(some, all[rnd.IntN(len(all))])
			}
			what = fmt.Sprint("SetFilter ", g, mode, some)
			if got = m.SetFilter(g, mode, some...); got == nil {
				expect = f.Set(Membership{Group: g, Mode: mode, Sources: some})
			}
		} else {
			r := Request{op, g, s}
			what = fmt.Sprint(r)
			if got, expect = m.do(op, g, s), f.Check(r); got == nil {
				expect = f.Apply(r)
			}
		}
		switch {
		case errors.Is(got, ErrLimit): // EXCLUDE cannot be spread over sockets
			if !strings.Contains(got.Error(), "igmp_max_msf") {
				t.Fatalf("seed %d step %d: %s: %v", seed, step, what, got)
			}
		case (got == nil) != (expect == nil) || got != nil && errors.Unwrap(got).Error() != errors.Unwrap(expect).Error():
			t.Fatalf("seed %d step %d: %s: %v, want %v", seed, step, what, got, expect)
		}
		have, _ := f.Membership(g)
		sys, err := m.SystemFilter(g)
		if have.none() != errors.Is(err, ErrNotJoined) || err == nil && sys.String() != have.String() {
			t.Fatalf("seed %d step %d: %s: system has %v, %v; want %v", seed, step, what, sys, err, have)
		}
		if step%10 != 0 {
			continue
		}
		// What is heard.
		expected := map[string]int{}
		sent := 0
		for k, from := range senders {
			for j := range members {
				for _, g := range groups {
					if rnd.IntN(4) != 0 && g != groups[0] {
						continue
					}
					to := netip.AddrPortFrom(g.Addr, uint16(members[j].port))
					if _, err := from.WriteToUDPAddrPort([]byte("x"), to); err != nil {
						t.Fatal(err)
					}
					sent++
					if want[j].Allows(g, sources[k]) {
						expected[fmt.Sprint(sources[k], to)]++
					}
				}
			}
		}
		hear(t, witness, sent)
		for j := range members {
			to := netip.AddrPortFrom(fence.Addr, uint16(members[j].port))
			if _, err := senders[0].WriteToUDPAddrPort([]byte("fence"), to); err != nil {
				t.Fatal(err)
			}
			expected[fmt.Sprint(sources[0], to)]++
		}
		hear(t, witness, len(members))
		total := 0
		for _, n := range expected {
			total += n
		}
		ms := make([]Message, 7)
		for i := range ms {
			ms[i].Buf = make([]byte, 10)
		}
		p.SetReadDeadline(time.Now().Add(time.Minute))
		for total > 0 {
			n, err := p.ReadBatch(ms)
			if err != nil {
				t.Fatalf("seed %d step %d: %v; still to come: %v", seed, step, err, expected)
			}
			for _, m := range ms[:n] {
				k := fmt.Sprint(m.Source.Addr(), netip.AddrPortFrom(m.Group.Addr, uint16(m.Port)))
				if expected[k]--; expected[k] < 0 || m.Group.Interface != index {
					t.Fatalf("seed %d step %d: heard %s, on %d", seed, step, k, m.Group.Interface)
				}
				total--
			}
		}
	}
	if os.Getenv("MCAST_TEST_WINE") == "" && poolBinds && p.Sockets() < 20 {
		t.Errorf("%d sockets for %d memberships", p.Sockets(), len(p.Memberships()))
	}
	for j, m := range members {
		if err := m.Leave(fence); err != nil {
			t.Fatal(err)
		}
		for _, x := range m.Memberships() {
			if err := m.Leave(x.Group); err != nil {
				t.Errorf("port %d: %v", j, err)
			}
		}
	}
	if n := p.Sockets(); n != 0 {
		t.Errorf("all is left, and %d sockets are open", n)
	}
}

// listenOnPorts opens a Pool that hears all of the groups on two ports.
func listenOnPorts(t *testing.T, index int, groups []Group, ports ...int) *Pool {
	t.Helper()
	p, err := ListenPool("udp4", fmt.Sprintf(":%d", ports[0]), &Config{AnySource: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	for _, port := range ports {
		for _, g := range groups {
			if err := p.On(port).Join(g); err != nil {
				t.Fatal(err)
			}
		}
	}
	return p
}

// hear reads n datagrams.
func hear(t *testing.T, p *Pool, n int) {
	t.Helper()
	ms := make([]Message, 16)
	for i := range ms {
		ms[i].Buf = make([]byte, 10)
	}
	p.SetReadDeadline(time.Now().Add(time.Minute))
	for n > 0 {
		got, err := p.ReadBatch(ms)
		if err != nil {
			t.Fatalf("%v; still to come: %d", err, n)
		}
		n -= got
	}
	if n < 0 {
		t.Fatalf("heard %d datagrams too many", -n)
	}
}

// TestPoolUnblocks: a deadline, and Close, end reads that wait.
func TestPoolUnblocks(t *testing.T) {
	index, sources := testInterface(t)
	p, _ := listenPoolOn(t, nil)
	if err := p.JoinSource(Group{netip.MustParseAddr("232.1.1.1"), index}, sources[0]); err != nil {
		t.Fatal(err)
	}
	read := func(n int) chan error {
		errs := make(chan error, n)
		for range n {
			go func() {
				m := Message{Buf: make([]byte, 10)}
				errs <- p.ReadMessage(&m)
			}()
		}
		return errs
	}
	errs := read(4)
	p.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	for range 4 {
		if err := <-errs; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("deadline: %v", err)
		}
	}
	p.SetReadDeadline(time.Time{})
	errs = read(4)
	time.Sleep(10 * time.Millisecond) // so that some wait; either way they must end
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	for range 4 {
		if err := <-errs; !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed: %v", err)
		}
	}
	if err := p.JoinSource(Group{netip.MustParseAddr("232.1.1.2"), index}, sources[0]); !errors.Is(err, net.ErrClosed) {
		t.Errorf("JoinSource on a closed Pool: %v", err)
	}
	if err := p.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
	if ms := p.Memberships(); len(ms) != 0 {
		t.Errorf("closed, with %v", ms)
	}
}

// TestPoolReaders: several readers get each datagram of many channels once,
// while channels come and go.
func TestPoolReaders(t *testing.T) {
	index, sources := testInterface(t)
	p, port := listenPoolOn(t, nil)
	from := poolSender(t, sources[0], index)
	const channels, each = 60, 40
	for i := range channels {
		if err := p.JoinSource(Group{netip.AddrFrom4([4]byte{232, 2, 1, byte(i)}), index}, sources[0]); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	count := map[string]int{}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			ms := make([]Message, 8)
			for i := range ms {
				ms[i].Buf = make([]byte, 20)
			}
			for {
				n, err := p.ReadBatch(ms)
				if err != nil {
					return
				}
				mu.Lock()
				for _, m := range ms[:n] {
					count[fmt.Sprint(m.Group.Addr, string(m.Buf[:m.N]))]++
				}
				mu.Unlock()
			}
		})
	}
	stop := make(chan struct{})
	var churn sync.WaitGroup
	churn.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			g := Group{netip.AddrFrom4([4]byte{232, 3, 1, byte(i)}), index}
			if err := p.JoinSource(g, sources[0]); err != nil {
				t.Error(err)
			}
			if err := p.LeaveSource(g, sources[0]); err != nil {
				t.Error(err)
			}
		}
	})
	heard := func() int { mu.Lock(); defer mu.Unlock(); return len(count) }
	for n := range each {
		for i := range channels {
			to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{232, 2, 1, byte(i)}), uint16(port))
			if _, err := from.WriteToUDPAddrPort(fmt.Append(nil, " ", n), to); err != nil {
				t.Fatal(err)
			}
		}
	}
	for deadline := time.Now().Add(time.Minute); heard() < channels*each && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	close(stop)
	churn.Wait()
	p.Close()
	wg.Wait()
	if len(count) != channels*each {
		t.Errorf("heard %d datagrams, want %d", len(count), channels*each)
	}
	for k, n := range count {
		if n != 1 {
			t.Errorf("%s came %d times", k, n)
		}
	}
}

// TestPoolCloseWhileReading closes Pools whose readers are busy.
func TestPoolCloseWhileReading(t *testing.T) {
	index, sources := testInterface(t)
	from := poolSender(t, sources[0], index)
	for range 30 {
		p, port := listenPoolOn(t, nil)
		group := netip.MustParseAddr("232.2.2.2")
		if err := p.JoinSource(Group{group, index}, sources[0]); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				m := Message{Buf: make([]byte, 20)}
				for p.ReadMessage(&m) == nil {
				}
			})
		}
		for range 50 {
			if _, err := from.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(group, uint16(port))); err != nil {
				t.Fatal(err)
			}
		}
		p.Close()
		wg.Wait()
	}
}

// TestPoolMany joins more channels than any kernel gives a socket.
func TestPoolMany(t *testing.T) {
	index, sources := testInterface(t)
	p, port := listenPoolOn(t, nil)
	n := 2000
	if testing.Short() || os.Getenv("MCAST_TEST_WINE") != "" {
		n = 200
	}
	channel := func(i int) Group { return Group{netip.AddrFrom4([4]byte{232, 5, byte(i >> 8), byte(i)}), index} }
	for i := range n {
		if err := p.JoinSource(channel(i), sources[0]); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(p.Memberships()); got != n {
		t.Fatalf("%d memberships, want %d", got, n)
	}
	from := poolSender(t, sources[0], index)
	p.SetReadDeadline(time.Now().Add(time.Minute))
	for _, i := range []int{0, n / 2, n - 1} {
		if _, err := from.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(channel(i).Addr, uint16(port))); err != nil {
			t.Fatal(err)
		}
		m := Message{Buf: make([]byte, 10)}
		if err := p.ReadMessage(&m); err != nil || m.Group != channel(i) || m.Source.Addr() != sources[0] {
			t.Fatalf("channel %d: %+v, %v", i, m, err)
		}
	}
}
