//go:build !plan9

package mcast_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/mcast"
)

// These tests run real sockets on one interface: the loopback interface, or
// the one that the environment names, and once more in a lab (lab_test.go).
// Nothing proves silence by waiting: what is sent last, and let through,
// proves that nothing else comes before it.
var placeTests = []struct {
	name string
	f    func(*testing.T, place)
}{
	{"Requests", testRequests},
	{"SourceSpecific", testSourceSpecific},
	{"Random", testRandom},
	{"Listen", testListen},
	{"Wildcards", testWildcards},
	{"ListenChannel", testListenChannel},
	{"Control", testControl},
	{"SetReadBuffer", testSetReadBuffer},
	{"New", testNew},
	{"NewWithMemberships", testNewWithMemberships},
	{"NewMapped", testNewMapped},
	{"OnePort", testOnePort},
	{"NoLeak", testNoLeak},
	{"SecondProcess", testSecondProcess},
	{"Channel", testChannel},
	{"HopLimit", testHopLimit},
	{"GroupStats", testGroupStats},
	{"Unicast", testUnicast},
	{"Overflow", testOverflow},
	{"ReadBuffer", testReadBuffer},
	{"Queued", testQueued},
	{"Sizes", testSizes},
	{"Deadline", testDeadline},
	{"Close", testClose},
	{"Readers", testReaders},
	{"Batch", testBatch},
	{"Allocs", testAllocs},
	{"Sending", testSending},
	{"WriteVia", testWriteVia},
	{"WriteBatch", testWriteBatch},
	{"BadInput", testBadInput},
	{"Limits", testLimits},
	{"Memory", testMemory},
	{"Concurrent", testConcurrent},
	{"OpenClose", testOpenClose},
}

func TestLoopback(t *testing.T) {
	for _, six := range []bool{false, true} {
		t.Run(familyName(six), func(t *testing.T) {
			p := thisPlace(t, six)
			for _, test := range placeTests {
				t.Run(test.name, func(t *testing.T) { test.f(t, p) })
			}
		})
	}
}

func testRequests(t *testing.T, p place) {
	t.Run("wildcard", func(t *testing.T) {
		s := p.scene(t, p.listen(t, fmt.Sprint(":", p.port(t)), nil), true, p.asm(1), p.asm(2), p.ssm(1))
		s.run(p.asm(1), allSteps)
	})
	t.Run("group", func(t *testing.T) {
		g := p.asm(1)
		s := p.scene(t, p.listen(t, netip.AddrPortFrom(g.Addr, uint16(p.port(t))).String(), nil), false, g, p.asm(2))
		s.run(g, allSteps)
	})
	t.Run("AnySource", func(t *testing.T) {
		g := p.ssm(1)
		s := p.scene(t, p.listen(t, fmt.Sprint(":", p.port(t)), &mcast.Config{AnySource: true}), true, g, p.ssm(2))
		s.run(g, allSteps)
	})
}

func testSourceSpecific(t *testing.T, p place) {
	g := p.ssm(1)
	s := p.scene(t, p.listen(t, fmt.Sprint(":", p.port(t)), nil), true, g, p.ssm(2))
	s.run(g, []step{
		{"Join", "", mcast.ErrSSM, ""},
		{"JoinSource", "a", nil, "Ia"},
		{"Join", "", mcast.ErrMode, "Ia"},
		{"JoinSource", "b", nil, "Iab"},
		{"LeaveSource", "a", nil, "Ib"},
		{"Include", "ac", nil, "Iac"},
		{"Leave", "", nil, ""},
		{"Include", "ab", nil, "Iab"},
	})
	for _, sources := range []string{"", "a"} {
		var e *mcast.OpError
		if err := request(s.c, "Exclude", g, p.sources(sources)...); !errors.Is(err, mcast.ErrSSM) || !errors.As(err, &e) || e.Op != "SetFilter" || e.Group != g {
			t.Errorf("SetFilter EXCLUDE{%s}: %v", sources, err)
		}
		s.check(p.membership(g, "Iab")...)
	}
}

// Random steps: what is heard and what the system says is what an oracle that
// knows nothing of the library's state machine expects.
func testRandom(t *testing.T, p place) {
	s := p.scene(t, p.listen(t, fmt.Sprint(":", p.port(t)), nil), true, p.asm(1), p.asm(2))
	s.random(60)
}

// oracle answers a request as the table in the package documentation does.
func oracle(o map[mcast.Group]mcast.Membership, op string, g mcast.Group, sources ...netip.Addr) error {
	m, joined := o[g]
	var source netip.Addr
	if len(sources) > 0 {
		source = sources[0]
	}
	has := slices.Contains(m.Sources, source)
	add := func() {
		m.Sources = append(slices.Clone(m.Sources), source)
		slices.SortFunc(m.Sources, netip.Addr.Compare)
		o[g] = m
	}
	remove := func() {
		m.Sources = slices.DeleteFunc(slices.Clone(m.Sources), func(a netip.Addr) bool { return a == source })
		o[g] = m
	}
	switch exclude := m.Mode == mcast.Exclude; op {
	case "Include", "Exclude":
		m = mcast.Membership{Group: g}
		if op == "Exclude" {
			m.Mode = mcast.Exclude
		}
		for _, source = range sources {
			if !slices.Contains(m.Sources, source) {
				add()
			}
		}
		o[g] = m
		if op == "Include" && len(sources) == 0 {
			delete(o, g)
		}
	case "Join":
		switch {
		case joined && exclude:
			return mcast.ErrJoined
		case joined:
			return mcast.ErrMode
		}
		o[g] = mcast.Membership{Group: g, Mode: mcast.Exclude}
	case "JoinSource":
		switch {
		case joined && exclude:
			return mcast.ErrMode
		case has:
			return mcast.ErrJoined
		}
		m.Group = g
		add()
	case "Block", "Unblock":
		switch {
		case !joined:
			return mcast.ErrNotJoined
		case !exclude:
			return mcast.ErrMode
		case op == "Block" && has:
			return mcast.ErrBlocked
		case op == "Unblock" && !has:
			return mcast.ErrNotBlocked
		case has:
			remove()
		default:
			add()
		}
	case "Leave":
		if !joined {
			return mcast.ErrNotJoined
		}
		delete(o, g)
	case "LeaveSource":
		switch {
		case joined && exclude:
			return mcast.ErrMode
		case !has:
			return mcast.ErrNotJoined
		}
		if remove(); len(m.Sources) == 0 {
			delete(o, g)
		}
	}
	return nil
}

var allOps = []string{"Join", "JoinSource", "Block", "Unblock", "Leave", "LeaveSource", "Include", "Exclude"}

func (s *scene) random(steps int) {
	s.t.Helper()
	seed := rand.Uint64()
	s.t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	o := make(map[mcast.Group]mcast.Membership)
	var done []string
	for range steps {
		op, g := allOps[rnd.IntN(len(allOps))], s.groups[rnd.IntN(len(s.groups))]
		var sources []netip.Addr
		if op == "Include" || op == "Exclude" {
			for range rnd.IntN(4) {
				sources = append(sources, s.p.source(rnd.IntN(3)))
			}
		} else if op != "Join" && op != "Leave" {
			sources = append(sources, s.p.source(rnd.IntN(3)))
		}
		done = append(done, fmt.Sprintln(op, g, sources))
		want, err := oracle(o, op, g, sources...), request(s.c, op, g, sources...)
		if !errors.Is(err, want) {
			s.t.Errorf("%v, want %v", err, want)
		}
		s.check(memberships(o)...)
		if s.t.Failed() {
			s.t.Fatalf("seed %d, after\n%s", seed, strings.Join(done, ""))
		}
	}
}

// Several Conns on one port, each with its own filter, on a group or on none.
func testOnePort(t *testing.T, p place) {
	port := p.port(t)
	g, h := p.asm(1), p.asm(2)
	groups := []mcast.Group{g, h, p.ssm(1)}
	var scenes []*scene
	for range 3 {
		scenes = append(scenes, p.scene(t, p.listen(t, fmt.Sprint(":", port), nil), true, groups...))
	}
	bound := p.scene(t, p.listen(t, netip.AddrPortFrom(g.Addr, uint16(port)).String(), nil), false, groups...)
	scenes = append(scenes, bound)
	requests := []struct {
		scene  int
		g      mcast.Group
		op     string
		source string
	}{
		{0, g, "Join", ""},
		{1, g, "JoinSource", "a"},
		{2, h, "Join", ""},
		{3, g, "JoinSource", "b"},
		{0, g, "Block", "a"},
		{1, p.ssm(1), "JoinSource", "b"},
		{2, h, "Block", "b"},
		{3, g, "JoinSource", "a"},
		{3, g, "LeaveSource", "b"},
		{0, g, "Leave", ""},
		{1, g, "Leave", ""},
		{2, p.ssm(1), "JoinSource", "a"},
	}
	oracles := make([]map[mcast.Group]mcast.Membership, len(scenes))
	for i := range oracles {
		oracles[i] = make(map[mcast.Group]mcast.Membership)
	}
	for i, r := range requests {
		if err := errors.Join(oracle(oracles[r.scene], r.op, r.g, p.sources(r.source)...), request(scenes[r.scene].c, r.op, r.g, p.sources(r.source)...)); err != nil {
			t.Fatal(i, err)
		}
		for k, s := range scenes {
			// What the others send and hear comes to this one too.
			s.state(memberships(oracles[k])...)
		}
		if p.silent != "" {
			continue
		}
		expected := make([]map[string]arrival, len(scenes))
		for k := range scenes {
			expected[k] = make(map[string]arrival)
		}
		for _, group := range append(slices.Clone(groups), scenes[0].fence) {
			for _, from := range scenes[0].senders {
				bound.sent++
				payload := fmt.Sprintf("%d: %v@%v", bound.sent, from.from, group)
				from.WriteToUDPAddrPort([]byte(payload), netip.AddrPortFrom(group.Addr, uint16(port)))
				for k, s := range scenes {
					if group == s.fence || allows(memberships(oracles[k]), group, from.from.Addr()) {
						expected[k][payload] = arrival{from.from, group}
					}
				}
			}
		}
		for k, s := range scenes {
			s.receive(expected[k])
		}
		if t.Failed() {
			t.Fatalf("after %v", requests[:i+1])
		}
	}
	if err := bound.c.Join(h); !errors.Is(err, mcast.ErrAddress) || !strings.Contains(err.Error(), g.Addr.String()) {
		t.Errorf("another group than the one bound: %v", err)
	}
	bound.state(memberships(oracles[3])...)
}

// The groups and sources of other sockets do not come in.
func testNoLeak(t *testing.T, p place) {
	port := p.port(t)
	groups := []mcast.Group{p.asm(1), p.asm(2), p.asm(3), p.ssm(1)}
	s := p.scene(t, p.listen(t, fmt.Sprint(":", port), nil), true, groups...)
	bound := p.scene(t, p.listen(t, netip.AddrPortFrom(groups[0].Addr, uint16(port)).String(), nil), false, groups...)

	// A socket of package net, and Conns with other filters for the same groups.
	raw, err := net.ListenMulticastUDP(p.network(), p.ifi, &net.UDPAddr{IP: p.asm(2).Addr.AsSlice(), Port: port})
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	other := p.listen(t, fmt.Sprint(":", port), nil)
	if err := errors.Join(other.Join(p.asm(1)), other.Join(p.asm(3)), other.JoinSource(p.ssm(1), p.source(0)), other.JoinSource(p.ssm(1), p.source(1))); err != nil {
		t.Fatal(err)
	}
	// Nothing was ever joined on one of them, but for the fence.
	s.check()
	bound.check()
	if err := errors.Join(s.c.JoinSource(p.asm(1), p.source(0)), s.c.JoinSource(p.ssm(1), p.source(1)), bound.c.Join(p.asm(1)), bound.c.Block(p.asm(1), p.source(0))); err != nil {
		t.Fatal(err)
	}
	want := []mcast.Membership{{Group: p.ssm(1), Sources: p.sources("b")}, {Group: p.asm(1), Sources: p.sources("a")}}
	slices.SortFunc(want, func(a, b mcast.Membership) int { return a.Group.Addr.Compare(b.Group.Addr) })
	s.check(want...)
	drain(bound.c)
	bound.check(p.membership(p.asm(1), "Ea")...)
	drain(s.c)
	if err := errors.Join(s.c.Leave(p.asm(1)), s.c.Leave(p.ssm(1))); err != nil {
		t.Fatal(err)
	}
	s.check()
}

const envSecond = "MCAST_TEST_SECOND"

// TestSecond is the second process of testSecondProcess. What it is to do is
// separated by lines: names of interfaces may have spaces in them.
func TestSecond(t *testing.T) {
	if os.Getenv(envSecond) == "" {
		t.Skip("this is the second process of another test")
	}
	spec := strings.Split(os.Getenv(envSecond), "\n")
	c, err := mcast.Listen(spec[0], ":"+spec[1], nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, s := range spec[2:] {
		ch, err := mcast.ParseChannel(s)
		if err != nil {
			t.Fatal(err)
		}
		if ch.Source.IsValid() {
			err = c.JoinSource(ch.Group, ch.Source)
		} else {
			err = c.Join(ch.Group)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin) // until the other process is done
}

func testSecondProcess(t *testing.T, p place) {
	p.needsSenders(t, 1)
	exe, err := os.Executable()
	if err != nil {
		t.Skipf("no second process: %v", err)
	}
	port := p.port(t)
	groups := []mcast.Group{p.asm(1), p.asm(2), p.ssm(1)}
	s := p.scene(t, p.listen(t, fmt.Sprint(":", port), nil), true, groups...)
	cmd := exec.Command(exe, "-test.run=^TestSecond$", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s\n%d\n%v\n%v\n%v@%v\n%v@%v", envSecond, p.network(), port,
		p.asm(1), p.asm(2), p.source(0), p.ssm(1), p.source(1), p.ssm(1)), "GORACE=atexit_sleep_ms=20")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("no second process: %v", err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && strings.TrimSpace(lines.Text()) != "ready" {
		t.Log(lines.Text())
	}
	s.check()
	if err := errors.Join(s.c.JoinSource(p.ssm(1), p.source(1)), s.c.Join(p.asm(1)), s.c.Block(p.asm(1), p.source(0))); err != nil {
		t.Fatal(err)
	}
	want := append(p.membership(p.ssm(1), "Ib"), p.membership(p.asm(1), "Ea")...)
	slices.SortFunc(want, func(a, b mcast.Membership) int { return a.Group.Addr.Compare(b.Group.Addr) })
	s.check(want...)
	if err := errors.Join(s.c.Leave(p.ssm(1)), s.c.Leave(p.asm(1))); err != nil {
		t.Fatal(err)
	}
	s.check()
	in.Close()
	io.Copy(io.Discard, out)
	if err := cmd.Wait(); err != nil {
		t.Errorf("the second process: %v", err)
	}
}

func testLimits(t *testing.T, p place) {
	if !p.six {
		t.Run("groups", func(t *testing.T) {
			const knob = "net.ipv4.igmp_max_memberships"
			n := limit(t, knob)
			if n > 100 {
				t.Skipf("%s is %d", knob, n)
			}
			c := p.listen(t, ":0", nil)
			var groups []mcast.Group
			var want []mcast.Membership
			for i := range n {
				if err := c.Join(p.asm(i + 1)); err != nil {
					t.Fatal(err)
				}
				groups = append(groups, p.asm(i+1))
				want = append(want, mcast.Membership{Group: p.asm(i + 1), Mode: mcast.Exclude})
			}
			over, channel := p.asm(n+1), p.ssm(1)
			wantLimit(t, "Join", c.Join(over), knob)
			wantLimit(t, "JoinSource", c.JoinSource(over, p.source(0)), knob)
			wantLimit(t, "JoinSource", c.JoinSource(channel, p.source(0)), knob)
			wantLimit(t, "SetFilter", c.SetFilter(over, mcast.Include, p.sources("abc")...), knob)
			wantLimit(t, "SetFilter", c.SetFilter(over, mcast.Exclude, p.sources("abc")...), knob)
			checkState(t, c, append(groups, over, channel), mcast.Group{}, want...)
			s := p.scene(t, c, false, append(groups, over)...)
			s.traffic(want...)
			if err := errors.Join(c.Leave(groups[0]), c.JoinSource(over, p.source(0))); err != nil {
				t.Error(err)
			}
			s.check(append(want[1:], mcast.Membership{Group: over, Sources: p.sources("a")})...)
		})
	}
	t.Run("sources", func(t *testing.T) {
		knob := "net.ipv4.igmp_max_msf"
		if p.six {
			knob = "net.ipv6.mld_max_msf"
		}
		n := limit(t, knob)
		if n > 200 || n < 3 {
			t.Skipf("%s is %d", knob, n)
		}
		var sources []netip.Addr
		for i := range n + 1 {
			sources = append(sources, p.source(i))
		}
		slices.SortFunc(sources[:n], netip.Addr.Compare)
		over := sources[n]
		c := p.listen(t, ":0", nil)
		g, h, empty := p.asm(1), p.asm(2), p.asm(3)
		if err := c.Join(h); err != nil {
			t.Fatal(err)
		}
		for _, a := range sources[:n] {
			if err := errors.Join(c.JoinSource(g, a), c.Block(h, a)); err != nil {
				t.Fatal(err)
			}
		}
		s := p.scene(t, c, false, g, h, empty)
		want := []mcast.Membership{{Group: g, Sources: sources[:n]}, {Group: h, Mode: mcast.Exclude, Sources: sources[:n]}}
		s.state(want...)
		wantLimit(t, "JoinSource", c.JoinSource(g, over), knob)
		wantLimit(t, "Block", c.Block(h, over), knob)
		s.state(want...)
		for _, mode := range []mcast.Mode{mcast.Include, mcast.Exclude} {
			for _, group := range s.groups {
				wantLimit(t, fmt.Sprint("SetFilter ", group, mode), c.SetFilter(group, mode, sources...), knob)
				s.state(want...)
			}
		}
		s.traffic(want...)
		if err := errors.Join(c.LeaveSource(g, sources[0]), c.JoinSource(g, over), c.Unblock(h, sources[0]), c.Block(h, over)); err != nil {
			t.Error(err)
		}
	})
}

// Option memory runs out: of IPv4 where a lab has raised the limit of groups.
func testMemory(t *testing.T, p place) {
	const knob = "net.core.optmem_max"
	if n := limit(t, knob); n > 1<<18 {
		t.Skipf("%s is %d", knob, n)
	}
	if !p.six {
		if n := limit(t, "net.ipv4.igmp_max_memberships"); n < 5000 {
			t.Skipf("net.ipv4.igmp_max_memberships is %d, which is reached first", n)
		}
	}
	c := p.listen(t, ":0", nil)
	for _, channels := range []bool{true, false} {
		join := func(i int) (mcast.Group, error) {
			if channels {
				return p.ssm(i), c.JoinSource(p.ssm(i), p.source(0))
			}
			return p.ssm(i), c.SetFilter(p.ssm(i), mcast.Include, p.sources("abc")...)
		}
		n := len(c.Memberships())
		for {
			g, err := join(n)
			if err == nil {
				n++
				if n == 5000 {
					t.Skipf("%d groups fit into %s", n, knob)
				}
				continue
			}
			// A network namespace shows no mld_max_msf; 3 are below any.
			name := map[bool]string{true: "knob for channels", false: "knob for filters"}[channels]
			t.Run(name, func(t *testing.T) { wantLimit(t, "the last one", err, knob) })
			if m, err := c.SystemFilter(g); !errors.Is(err, mcast.ErrNotJoined) {
				t.Errorf("the system has %v (%v) of a request that failed", m, err)
			}
			break
		}
		t.Logf("%d memberships", n)
		ms := c.Memberships()
		if len(ms) != n {
			t.Errorf("%d memberships, want %d", len(ms), n)
		}
		for _, m := range ms {
			if got, err := c.SystemFilter(m.Group); err != nil || got.String() != m.String() {
				t.Errorf("the system has %v (%v), want %v", got, err, m)
			}
		}
		s := p.scene(t, c, false, p.ssm(0), p.ssm(n-1), p.ssm(n))
		s.traffic(c.Memberships()...)
		// There is room again after a leave.
		if err := c.Leave(p.ssm(n - 1)); err != nil {
			t.Error(err)
		}
		if _, err := join(n - 1); err != nil {
			t.Error(err)
		}
		// For the next round: some room, but not enough.
		if err := c.Leave(p.ssm(n - 1)); err != nil {
			t.Error(err)
		}
	}
}

// Requests, readers and a Close at the same time.
func testConcurrent(t *testing.T, p place) {
	groups := []mcast.Group{p.asm(1), p.asm(2)}
	sentinels := []error{mcast.ErrJoined, mcast.ErrNotJoined, mcast.ErrBlocked, mcast.ErrNotBlocked, mcast.ErrMode}
	run := func(t *testing.T, closeIt bool) {
		c := p.listen(t, ":0", nil)
		port := uint16(localPort(c))
		var requests, others sync.WaitGroup
		var stop atomic.Bool
		if p.silent == "" {
			from := p.sender(t, p.senders[0])
			others.Go(func() {
				for i := 0; !stop.Load(); i++ {
					from.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(groups[i%2].Addr, port))
					time.Sleep(100 * time.Microsecond)
				}
			})
		}
		for range 3 {
			others.Go(func() {
				ms := []mcast.Message{{Buf: make([]byte, 100)}, {Buf: make([]byte, 100)}}
				for {
					n, err := c.ReadBatch(ms)
					if err != nil {
						if !errors.Is(err, net.ErrClosed) {
							t.Error(err)
						}
						return
					}
					for _, m := range ms[:n] {
						if !slices.Contains(groups, m.Group) {
							t.Errorf("%+v", m)
						}
					}
				}
			})
		}
		var accepted [4]atomic.Int64
		for i := range accepted {
			requests.Go(func() {
				for k := range 300 {
					if closeIt && i == 0 && k == 100 {
						if err := c.Close(); err != nil {
							t.Error(err)
						}
					}
					err := request(c, allOps[rand.IntN(len(allOps))], groups[rand.IntN(2)], p.source(rand.IntN(3)))
					switch {
					case err == nil:
						accepted[i].Add(1)
					case closeIt && errors.Is(err, net.ErrClosed):
					case !slices.ContainsFunc(sentinels, func(s error) bool { return errors.Is(err, s) }):
						t.Error(err)
					}
					c.Memberships()
					c.Stats()
					if k%10 == 0 {
						c.SystemFilter(groups[0])
					}
				}
			})
		}
		requests.Wait()
		if closeIt {
			if ms := c.Memberships(); len(ms) != 0 {
				t.Errorf("memberships after Close: %v", ms)
			}
		} else {
			s := p.scene(t, c, false, groups...)
			s.state(c.Memberships()...)
			c.Close()
		}
		stop.Store(true)
		others.Wait()
		for i := range accepted {
			if accepted[i].Load() == 0 && !closeIt {
				t.Error("no request was accepted")
			}
		}
	}
	t.Run("requests", func(t *testing.T) { run(t, false) })
	t.Run("Close", func(t *testing.T) { run(t, true) })

	// Each goroutine has a source of its own: all succeed.
	t.Run("sources", func(t *testing.T) {
		s := p.scene(t, p.listen(t, ":0", nil), true, groups...)
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				for range 20 {
					if err := errors.Join(s.c.JoinSource(groups[0], p.source(i)), s.c.LeaveSource(groups[0], p.source(i)), s.c.JoinSource(groups[0], p.source(i))); err != nil {
						t.Error(err)
					}
					if err := s.c.LeaveSource(groups[0], p.source(i)); err != nil {
						t.Error(err)
					}
				}
				if err := s.c.JoinSource(groups[0], p.source(i)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		s.check(p.membership(groups[0], "Iabcdef")...)
	})
}
