//go:build !plan9

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

// A poolWay is a way for a Pool to wait for its sockets.
type poolWay struct {
	name           string
	sockets        func(*Config) (poolSockets, error)
	anchor         func(endpoint, *Config) (anchor, error)
	maxDescriptors func() int
}

// poolWays are those that this system can do: the one that all can, and on Linux
// its own.
var poolWays = []poolWay{{"net", newNetSockets, newNetAnchor, func() int { return 0 }}}

// use has Pools wait that way until the test ends.
func (w poolWay) use(t testing.TB) {
	sockets, anchor, descriptors := newPoolSockets, newAnchor, maxDescriptors
	t.Cleanup(func() { newPoolSockets, newAnchor, maxDescriptors = sockets, anchor, descriptors })
	newPoolSockets, newAnchor, maxDescriptors = w.sockets, w.anchor, w.maxDescriptors
}

// poolTests are run each way, on the loopback interface and in a lab.
var poolTests = []struct {
	name string
	f    func(*testing.T, site)
}{
	{"Random", testPoolRandom},
	{"Unblocks", testPoolUnblocks},
	{"Readers", testPoolReaders},
	{"CloseWhileReading", testPoolCloseWhileReading},
	{"Many", testPoolMany},
	{"AnyPort", testPoolAnyPort},
	{"NoPort", testPoolNoPort},
	{"OnBesideClose", testPoolOnBesideClose},
	{"Control", testPoolControl},
	{"Tells", testPoolTells},
	{"Logger", testPoolLogger},
	{"Fair", testPoolFair},
	{"Wakes", testPoolWakes},
	{"Buffers", testPoolBuffers},
	{"Stats", testPoolStats},
	{"Unicast", testPoolUnicast},
	{"BehindItsBack", testPoolBehindItsBack},
	{"Exact", testPoolExact},
}

func TestPool(t *testing.T) {
	s := testSite(t)
	for _, w := range poolWays {
		t.Run(w.name, func(t *testing.T) { w.runAll(t, s) })
	}
}

func (w poolWay) runAll(t *testing.T, s site) {
	for _, test := range poolTests {
		t.Run(test.name, func(t *testing.T) {
			w.use(t)
			test.f(t, s)
		})
	}
}

// testPoolRandom makes random requests on a Pool and on a Filter, which must agree,
// and lets all sources send to all groups, of which the Pool must hear just
// what the Filter allows: each once.
func testPoolRandom(t *testing.T, at site) {
	sources := at.sources
	p, _ := at.pool(t, &Config{AnySource: true})
	other := p.On(at.port(t))
	var senders []*Conn
	for _, s := range sources {
		senders = append(senders, at.sender(t, s))
	}
	far := []netip.Addr{}
	for i := range 14 { // more sources than one socket takes (net.ipv4.igmp_max_msf)
		far = append(far, at.far(1+i))
	}
	var groups []Group
	for i := range 30 { // more groups than one socket takes
		groups = append(groups, at.group(i, 1))
	}
	members := []*Members{p.Members, other}
	want := []*Filter{{}, {}}
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 2))
	fence := at.group(88, 8)
	for _, m := range members {
		if err := m.JoinSource(fence, sources[0]); err != nil {
			t.Fatal(err)
		}
	}
	// The witness hears everything. What it has heard, all sockets have, or
	// never will: fences alone could overtake what another processor sends.
	witness := listenOnPorts(t, at, append(groups, fence), members[0].port, members[1].port)
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
			if !strings.Contains(got.Error(), "_max_msf") {
				t.Fatalf("seed %d step %d: %s: %v", seed, step, what, got)
			}
		case (got == nil) != (expect == nil) || got != nil && errors.Unwrap(got).Error() != errors.Unwrap(expect).Error():
			t.Fatalf("seed %d step %d: %s: %v, want %v", seed, step, what, got, expect)
		}
		have, joined := f.Membership(g)
		sys, err := m.SystemFilter(g)
		if joined == errors.Is(err, ErrNotJoined) || err == nil && sys.String() != have.String() {
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
				if expected[k]--; expected[k] < 0 || m.Group.Interface != at.ifi.Name || m.Index != at.ifi.Index {
					t.Fatalf("seed %d step %d: heard %s, on %d", seed, step, k, m.Index)
				}
				total--
			}
		}
	}
	if members[0].canBind() && p.Sockets() < 20 {
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
func listenOnPorts(t *testing.T, at site, groups []Group, ports ...int) *Pool {
	t.Helper()
	p, err := ListenPool(at.network(), fmt.Sprintf(":%d", ports[0]), &Config{AnySource: true})
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

// testPoolUnblocks: a deadline, and Close, end reads that wait.
func testPoolUnblocks(t *testing.T, at site) {
	sources := at.sources
	p, _ := at.pool(t, nil)
	if err := p.JoinSource(at.group(1, 1), sources[0]); err != nil {
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
	if err := p.JoinSource(at.group(1, 2), sources[0]); !errors.Is(err, net.ErrClosed) {
		t.Errorf("JoinSource on a closed Pool: %v", err)
	}
	if err := p.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
	if ms := p.Memberships(); len(ms) != 0 {
		t.Errorf("closed, with %v", ms)
	}
}

// testPoolReaders: several readers get each datagram of many channels once,
// while channels come and go.
func testPoolReaders(t *testing.T, at site) {
	sources := at.sources
	p, port := at.pool(t, nil)
	from := at.sender(t, sources[0])
	const channels, each = 60, 40
	for i := range channels {
		if err := p.JoinSource(at.group(21, i), sources[0]); err != nil {
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
			g := at.group(31, i&255)
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
			to := netip.AddrPortFrom(at.group(21, i).Addr, uint16(port))
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

// testPoolCloseWhileReading closes Pools whose readers are busy.
func testPoolCloseWhileReading(t *testing.T, at site) {
	sources := at.sources
	from := at.sender(t, sources[0])
	for range 30 {
		p, port := at.pool(t, nil)
		group := at.group(22, 2).Addr
		if err := p.JoinSource(Group{group, at.ifi.Name}, sources[0]); err != nil {
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

// testPoolMany joins more channels than any kernel gives a socket.
func testPoolMany(t *testing.T, at site) {
	sources := at.sources
	p, port := at.pool(t, nil)
	n := 2000
	if testing.Short() || os.Getenv("MCAST_TEST_WINE") != "" {
		n = 200
	}
	channel := func(i int) Group { return at.group(50+i>>8, i&255) }
	for i := range n {
		if err := p.JoinSource(channel(i), sources[0]); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(p.Memberships()); got != n {
		t.Fatalf("%d memberships, want %d", got, n)
	}
	from := at.sender(t, sources[0])
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
