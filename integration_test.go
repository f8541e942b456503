//go:build !plan9

package mcast_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"example.com/mcast"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
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
	{"New", testNew},
	{"OnePort", testOnePort},
	{"NoLeak", testNoLeak},
	{"SecondProcess", testSecondProcess},
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

func familyName(six bool) string {
	if six {
		return "IPv6"
	}
	return "IPv4"
}

// A place is an interface of this machine and the addresses to send from.
type place struct {
	six     bool
	ifi     *net.Interface
	senders []netip.Addr                                // some that datagrams can be sent from, to this interface
	silent  string                                      // why no datagrams can be sent, if so
	open    func(*testing.T, place, netip.Addr) *sender // opens a sender, if not on this machine
}

// thisPlace is the loopback interface, or what the environment says.
func thisPlace(t *testing.T, six bool) place {
	if by := os.Getenv("MCAST_EMULATED"); by != "" {
		t.Skip(by + " knows neither interfaces nor IP_MULTICAST_IF")
	}
	p := place{six: six}
	if i, err := strconv.Atoi(os.Getenv("MCAST_TEST_IFINDEX")); err == nil {
		if p.ifi, err = net.InterfaceByIndex(i); err != nil {
			t.Fatal(err)
		}
		for _, x := range []string{"_A", "_B"} {
			a, err := netip.ParseAddr(os.Getenv("MCAST_TEST_" + strings.ToUpper(familyName(six)) + x))
			if err != nil {
				t.Fatal(err)
			}
			p.senders = append(p.senders, a)
		}
	} else {
		ifis, err := net.Interfaces()
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(ifis, func(ifi net.Interface) bool {
			return ifi.Flags&(net.FlagLoopback|net.FlagUp) == net.FlagLoopback|net.FlagUp
		})
		if i < 0 {
			t.Skip("no loopback interface is up")
		}
		p.ifi = &ifis[i]
		candidates := []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"}
		if six {
			candidates = []string{"::1"}
		}
		for _, s := range candidates {
			c, err := net.ListenUDP(p.network(), &net.UDPAddr{IP: net.ParseIP(s)})
			if err != nil {
				t.Logf("%s cannot be sent from: %v", s, err)
				continue
			}
			c.Close()
			p.senders = append(p.senders, netip.MustParseAddr(s))
		}
		if len(p.senders) == 0 {
			t.Skipf("this machine has no %s", familyName(six))
		}
	}
	if err := p.probe(); err != nil {
		if !six && runtime.GOOS == "linux" {
			t.Fatal(err)
		}
		p.silent = fmt.Sprintf("multicast does not work on %s: %v", p.ifi.Name, err)
		t.Log(p.silent)
	}
	return p
}

// probe finds out whether a datagram comes through, without the library.
func (p place) probe() error {
	group := p.asm(250).Addr
	r, err := net.ListenUDP(p.network(), nil)
	if err != nil {
		return err
	}
	defer r.Close()
	s, err := net.ListenUDP(p.network(), net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.senders[0], 0)))
	if err != nil {
		return err
	}
	defer s.Close()
	if to := (&net.UDPAddr{IP: group.AsSlice()}); p.six {
		err = errors.Join(ipv6.NewPacketConn(r).JoinGroup(p.ifi, to), ipv6.NewPacketConn(s).SetMulticastInterface(p.ifi))
	} else {
		err = errors.Join(ipv4.NewPacketConn(r).JoinGroup(p.ifi, to), ipv4.NewPacketConn(s).SetMulticastInterface(p.ifi))
	}
	if err != nil {
		return err
	}
	r.SetReadDeadline(time.Now().Add(3 * time.Second))
	if _, err := s.WriteToUDPAddrPort([]byte("probe"), netip.AddrPortFrom(group, uint16(localPort(r)))); err != nil {
		return err
	}
	_, _, err = r.ReadFromUDPAddrPort(make([]byte, 100))
	return err
}

func localPort(c net.PacketConn) int { return c.LocalAddr().(*net.UDPAddr).Port }

func (p place) network() string {
	if p.six {
		return "udp6"
	}
	return "udp4"
}

// asm is the nth any-source group here, ssm the nth source-specific one.
func (p place) asm(n int) mcast.Group {
	a := netip.AddrFrom4([4]byte{239, 77, 1, byte(n)})
	if p.six {
		a = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x1e, 12: 0x77, 14: byte(n >> 8), 15: byte(n)})
	}
	return mcast.Group{Addr: a, Interface: p.ifi.Index}
}

func (p place) ssm(n int) mcast.Group {
	a := netip.AddrFrom4([4]byte{232, 77, byte(n >> 8), byte(n)})
	if p.six {
		a = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x3e, 12: 0x80, 13: 0x77, 14: byte(n >> 8), 15: byte(n)})
	}
	return mcast.Group{Addr: a, Interface: p.ifi.Index}
}

// source is the nth source: one that sends, or else one that nobody has.
func (p place) source(n int) netip.Addr {
	switch {
	case n < len(p.senders):
		return p.senders[n]
	case p.six:
		return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 14: byte(n >> 8), 15: byte(n)}) // RFC 3849
	}
	return netip.AddrFrom4([4]byte{198, 51, 100 + byte(n>>8), byte(n)}) // RFC 5737
}

// needsSenders skips a test where there are not as many.
func (p place) needsSenders(t *testing.T, n int) {
	t.Helper()
	if p.silent != "" {
		t.Skip(p.silent)
	}
	if len(p.senders) < n {
		t.Skipf("this needs %d addresses to send from, %s has %v", n, p.ifi.Name, p.senders)
	}
}

// port finds one that nobody uses, outside of the range that systems give out.
func (p place) port(t *testing.T) int {
	t.Helper()
	for range 1000 {
		port := 20000 + rand.IntN(10000)
		if c, err := net.ListenUDP(p.network(), &net.UDPAddr{Port: port}); err == nil {
			c.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// listen opens a Conn that is closed when the test ends.
func (p place) listen(t *testing.T, address string, cfg *mcast.Config) *mcast.Conn {
	t.Helper()
	c, err := mcast.Listen(p.network(), address, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// A sender sends from one address.
type sender struct {
	*mcast.Conn
	from netip.AddrPort
}

func (p place) sender(t *testing.T, from netip.Addr) *sender {
	t.Helper()
	if p.open != nil {
		return p.open(t, p, from)
	}
	c := p.listen(t, netip.AddrPortFrom(from, 0).String(), nil)
	if err := c.SetMulticastInterface(p.ifi.Index); err != nil {
		t.Fatal(err)
	}
	if !p.six && runtime.GOOS == "windows" {
		// Wine takes the address that a socket is bound to for an interface;
		// this names both.
		const ipMulticastIf = 9
		raw, err := c.SyscallConn()
		if err == nil {
			raw.Control(func(fd uintptr) {
				err = setInt(syscall.SetsockoptInt, fd, syscall.IPPROTO_IP, ipMulticastIf, int(int32(binary.LittleEndian.Uint32(from.AsSlice()))))
			})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return &sender{c, netip.AddrPortFrom(from, uint16(localPort(c)))}
}

// setInt calls a setsockopt, whatever a system has for descriptors.
func setInt[H ~int | ~uintptr](set func(H, int, int, int) error, fd uintptr, level, name, value int) error {
	return set(H(fd), level, name, value)
}

func (s *sender) send(t *testing.T, to netip.AddrPort, payload string) {
	t.Helper()
	if _, err := s.WriteToUDPAddrPort([]byte(payload), to); err != nil {
		t.Fatal(err)
	}
}

// A scene is a Conn under test and all that sends to it.
type scene struct {
	t       *testing.T
	p       place
	c       *mcast.Conn
	port    uint16
	senders []*sender
	groups  []mcast.Group // that are sent to
	fence   mcast.Group   // joined for any source; the zero Group if there is none
	sent    int

	patience time.Duration   // with what is to come; 0: 10 s
	resent   map[string]bool // not nil: what gets lost on the way is sent again
}

// scene makes one of a Conn; with a fence, it joins another group by which to
// know that nothing else comes.
func (p place) scene(t *testing.T, c *mcast.Conn, fence bool, groups ...mcast.Group) *scene {
	t.Helper()
	s := &scene{t: t, p: p, c: c, port: uint16(localPort(c)), groups: groups}
	if p.silent == "" {
		for _, from := range p.senders {
			s.senders = append(s.senders, p.sender(t, from))
		}
	}
	if fence {
		s.fence = p.asm(200)
		if err := c.Join(s.fence); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// allows is the rule of RFC 3376 section 3.2, as the tests have it.
func allows(ms []mcast.Membership, g mcast.Group, source netip.Addr) bool {
	source = source.WithZone("")
	for _, m := range ms {
		if m.Group == g {
			return slices.Contains(m.Sources, source) == (m.Mode == mcast.Include)
		}
	}
	return false
}

// check compares the memberships, here and in the system, with those wanted,
// and then what is heard of each group from each sender.
func (s *scene) check(want ...mcast.Membership) {
	s.t.Helper()
	s.state(want...)
	s.traffic(want...)
}

func (s *scene) state(want ...mcast.Membership) {
	s.t.Helper()
	checkState(s.t, s.c, slices.DeleteFunc(slices.Clone(s.groups), func(g mcast.Group) bool { return g == s.fence }), s.fence, want...)
}

func checkState(t *testing.T, c *mcast.Conn, groups []mcast.Group, fence mcast.Group, want ...mcast.Membership) {
	t.Helper()
	got := slices.DeleteFunc(c.Memberships(), func(m mcast.Membership) bool { return m.Group == fence })
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("memberships %v, want %v", got, want)
	}
	for _, g := range groups {
		m, err := c.SystemFilter(g)
		if errors.Is(err, errors.ErrUnsupported) {
			continue
		}
		if errors.Is(err, mcast.ErrAddress) && boundTo(c) != g.Addr && boundTo(c).IsMulticast() {
			continue
		}
		i := slices.IndexFunc(want, func(m mcast.Membership) bool { return m.Group == g })
		switch {
		case i < 0 && !errors.Is(err, mcast.ErrNotJoined):
			t.Errorf("the system has %v (%v), want none", m, err)
		case i >= 0 && (err != nil || m.String() != want[i].String()):
			t.Errorf("the system has %v (%v), want %v", m, err, want[i])
		}
	}
}

func boundTo(c *mcast.Conn) netip.Addr {
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
}

// An arrival is what a datagram is to look like.
type arrival struct {
	source netip.AddrPort
	group  mcast.Group
}

func (s *scene) traffic(want ...mcast.Membership) {
	s.t.Helper()
	if len(s.senders) == 0 {
		return
	}
	expected := make(map[string]arrival)
	for _, pass := range []bool{false, true} { // the forbidden ones first
		for _, g := range s.groups {
			for _, from := range s.senders {
				if allows(want, g, from.from.Addr()) == pass {
					s.send(from, g, pass, expected)
				}
			}
		}
	}
	if s.fence.Addr.IsValid() {
		s.send(s.senders[0], s.fence, true, expected)
	} else {
		// What was sent may be underway still, and the next filter let it in.
		defer time.Sleep(20 * time.Millisecond)
	}
	s.receive(expected)
}

func (s *scene) send(from *sender, g mcast.Group, heard bool, expected map[string]arrival) {
	s.t.Helper()
	s.sent++
	payload := fmt.Sprintf("%d: %v@%v", s.sent, from.from, g)
	_, err := from.WriteToUDPAddrPort([]byte(payload), netip.AddrPortFrom(g.Addr, s.port))
	// Windows may say that nobody listens.
	if err != nil && (heard || runtime.GOOS != "windows") {
		s.t.Fatal(err)
	}
	if heard {
		expected[payload] = arrival{from.from, g}
	}
}

// receive reads until all that was expected has come. The sources, and groups
// and interfaces, must be right, and nothing else may come.
func (s *scene) receive(expected map[string]arrival) {
	s.t.Helper()
	patience := s.patience
	if patience == 0 {
		patience = 10 * time.Second
	}
	s.c.SetReadDeadline(time.Now().Add(patience))
	tries := 0
	ms := make([]mcast.Message, 1+s.sent%4)
	for i := range ms {
		ms[i].Buf = make([]byte, 200)
	}
	for len(expected) > 0 {
		n, err := 1, error(nil)
		if len(ms) == 1 {
			err = s.c.ReadMessage(&ms[0])
		} else {
			n, err = s.c.ReadBatch(ms)
		}
		if s.resent != nil && tries < 5 && errors.Is(err, os.ErrDeadlineExceeded) {
			tries++
			s.t.Logf("lost on the way, sent again: %v", slices.Sorted(maps.Keys(expected)))
			for payload, a := range expected {
				for _, from := range s.senders {
					if from.from == a.source {
						s.resent[payload] = true
						from.send(s.t, netip.AddrPortFrom(a.group.Addr, s.port), payload)
					}
				}
			}
			s.c.SetReadDeadline(time.Now().Add(patience))
			continue
		}
		if err != nil {
			s.t.Fatalf("%v; still expected: %v", err, slices.Sorted(maps.Keys(expected)))
		}
		for _, m := range ms[:n] {
			payload := string(m.Buf[:m.N])
			want, ok := expected[payload]
			switch {
			case !ok && s.resent[payload]:
			case !ok:
				s.t.Errorf("heard %q, which the filter %v forbids", payload, s.c.Memberships())
			case m.Source != want.source || m.Group != want.group || m.Truncated:
				s.t.Errorf("heard %q from %v to %v, truncated: %v", payload, m.Source, m.Group, m.Truncated)
			}
			delete(expected, payload)
		}
	}
}

// request makes the request of that name; SetFilter's are "Include" and
// "Exclude".
func request(c *mcast.Conn, op string, g mcast.Group, sources ...netip.Addr) error {
	switch op {
	case "Join":
		return c.Join(g)
	case "JoinSource":
		return c.JoinSource(g, sources[0])
	case "Block":
		return c.Block(g, sources[0])
	case "Unblock":
		return c.Unblock(g, sources[0])
	case "Leave":
		return c.Leave(g)
	case "LeaveSource":
		return c.LeaveSource(g, sources[0])
	case "Include":
		return c.SetFilter(g, mcast.Include, sources...)
	case "Exclude":
		return c.SetFilter(g, mcast.Exclude, sources...)
	}
	panic(op)
}

// A step is a request and what is to come of it. Letters stand for sources:
// "ab" are the first two; a filter is "E" or "I" with its sources.
type step struct {
	op, sources string
	err         error
	filter      string
}

var allSteps = []step{
	{"Leave", "", mcast.ErrNotJoined, ""},
	{"Block", "a", mcast.ErrNotJoined, ""},
	{"Unblock", "a", mcast.ErrNotJoined, ""},
	{"LeaveSource", "a", mcast.ErrNotJoined, ""},
	{"Join", "", nil, "E"},
	{"Join", "", mcast.ErrJoined, "E"},
	{"JoinSource", "a", mcast.ErrMode, "E"},
	{"Unblock", "a", mcast.ErrNotBlocked, "E"},
	{"LeaveSource", "a", mcast.ErrMode, "E"},
	{"Block", "a", nil, "Ea"},
	{"Block", "a", mcast.ErrBlocked, "Ea"},
	{"Join", "", mcast.ErrJoined, "Ea"},
	{"JoinSource", "a", mcast.ErrMode, "Ea"},
	{"JoinSource", "b", mcast.ErrMode, "Ea"},
	{"LeaveSource", "a", mcast.ErrMode, "Ea"},
	{"Unblock", "b", mcast.ErrNotBlocked, "Ea"},
	{"Block", "b", nil, "Eab"},
	{"Block", "c", nil, "Eabc"},
	{"Unblock", "a", nil, "Ebc"},
	{"Unblock", "c", nil, "Eb"},
	{"Unblock", "b", nil, "E"},
	{"Unblock", "b", mcast.ErrNotBlocked, "E"},
	{"LeaveSource", "b", mcast.ErrMode, "E"},
	{"Block", "b", nil, "Eb"},
	{"Leave", "", nil, ""},
	{"Leave", "", mcast.ErrNotJoined, ""},
	{"JoinSource", "a", nil, "Ia"},
	{"JoinSource", "a", mcast.ErrJoined, "Ia"},
	{"Join", "", mcast.ErrMode, "Ia"},
	{"Block", "a", mcast.ErrMode, "Ia"},
	{"Block", "b", mcast.ErrMode, "Ia"},
	{"Unblock", "a", mcast.ErrMode, "Ia"},
	{"LeaveSource", "b", mcast.ErrNotJoined, "Ia"},
	{"JoinSource", "c", nil, "Iac"},
	{"JoinSource", "b", nil, "Iabc"},
	{"LeaveSource", "a", nil, "Ibc"},
	{"LeaveSource", "c", nil, "Ib"},
	{"LeaveSource", "b", nil, ""},
	{"LeaveSource", "b", mcast.ErrNotJoined, ""},
	{"Join", "", nil, "E"},
	{"Leave", "", nil, ""},
	{"JoinSource", "b", nil, "Ib"},
	{"JoinSource", "a", nil, "Iab"},
	{"Leave", "", nil, ""},

	{"Include", "", nil, ""},
	{"Include", "ba", nil, "Iab"},
	{"Include", "bb", nil, "Ib"},
	{"Exclude", "", nil, "E"},
	{"Exclude", "b", nil, "Eb"},
	{"Exclude", "ac", nil, "Eac"},
	{"Unblock", "c", nil, "Ea"},
	{"Include", "ac", nil, "Iac"},
	{"JoinSource", "b", nil, "Iabc"},
	{"Exclude", "", nil, "E"},
	{"Block", "c", nil, "Ec"},
	{"Include", "", nil, ""},
	{"Exclude", "ab", nil, "Eab"},
	{"Exclude", "", nil, "E"},
	{"Include", "c", nil, "Ic"},
	{"LeaveSource", "c", nil, ""},
	{"Exclude", "", nil, "E"},
	{"Leave", "", nil, ""},
}

func (p place) sources(letters string) (sources []netip.Addr) {
	for _, r := range letters {
		sources = append(sources, p.source(int(r-'a')))
	}
	return sources
}

func (p place) membership(g mcast.Group, filter string) []mcast.Membership {
	if filter == "" {
		return nil
	}
	m := mcast.Membership{Group: g, Sources: p.sources(filter[1:])}
	if filter[0] == 'E' {
		m.Mode = mcast.Exclude
	}
	slices.SortFunc(m.Sources, netip.Addr.Compare)
	return []mcast.Membership{m}
}

// run takes the steps on a group. Each is followed by the checks, a refused
// one too: it must have changed nothing.
func (s *scene) run(g mcast.Group, steps []step) {
	s.t.Helper()
	for i, step := range steps {
		err := request(s.c, step.op, g, s.p.sources(step.sources)...)
		if !errors.Is(err, step.err) {
			s.t.Fatalf("step %d %v: %v", i, step, err)
		}
		if step.err != nil {
			var e *mcast.OpError
			want := mcast.OpError{Op: step.op, Group: g}
			if step.sources != "" {
				want.Source = s.p.source(int(step.sources[0] - 'a'))
			}
			if !errors.As(err, &e) || e.Op != want.Op || e.Group != want.Group || e.Source != want.Source {
				s.t.Errorf("step %d %v: %#v", i, step, err)
			}
		}
		s.check(s.p.membership(g, step.filter)...)
		if s.t.Failed() {
			s.t.Fatalf("after step %d %v", i, step)
		}
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

func memberships(o map[mcast.Group]mcast.Membership) []mcast.Membership {
	return slices.SortedFunc(maps.Values(o), func(a, b mcast.Membership) int {
		if c := a.Group.Addr.Compare(b.Group.Addr); c != 0 {
			return c
		}
		return a.Group.Interface - b.Group.Interface
	})
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

func testListen(t *testing.T, p place) {
	g := p.asm(1)
	t.Run("udp", func(t *testing.T) {
		c, err := mcast.Listen("udp", netip.AddrPortFrom(g.Addr, uint16(p.port(t))).String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		p.scene(t, c, false, g).run(g, []step{{"JoinSource", "a", nil, "Ia"}, {"Leave", "", nil, ""}, {"Join", "", nil, "E"}})
	})
	t.Run("wildcard address", func(t *testing.T) {
		unspecified := map[bool]string{false: "0.0.0.0", true: "[::]"}[p.six]
		c, err := mcast.Listen("udp", fmt.Sprint(unspecified, ":", p.port(t)), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		p.scene(t, c, true, g).run(g, []step{{"JoinSource", "a", nil, "Ia"}, {"Leave", "", nil, ""}})
	})
	t.Run("zone", func(t *testing.T) {
		// The zone of the group stands for Interface 0.
		c := p.listen(t, fmt.Sprintf("[%v%%%d]:%d", g.Addr, g.Interface, p.port(t)), nil)
		if err := c.JoinSource(mcast.Group{Addr: g.Addr}, p.source(0)); err != nil {
			t.Fatal(err)
		}
		p.scene(t, c, false, g).check(p.membership(g, "Ia")...)
		if err := c.JoinSource(mcast.Group{Addr: g.Addr, Interface: g.Interface + 1000}, p.source(1)); !errors.Is(err, mcast.ErrInterface) {
			t.Errorf("another interface than the one bound: %v", err)
		}
	})
	t.Run("port 0", func(t *testing.T) {
		c := p.listen(t, ":0", nil)
		if localPort(c) == 0 {
			t.Errorf("LocalAddr %v", c.LocalAddr())
		}
		p.scene(t, c, true, g).run(g, []step{{"JoinSource", "a", nil, "Ia"}})
		c = p.listen(t, netip.AddrPortFrom(g.Addr, 0).String(), nil)
		if localPort(c) == 0 {
			t.Errorf("LocalAddr %v", c.LocalAddr())
		}
		p.scene(t, c, false, g).run(g, []step{{"JoinSource", "a", nil, "Ia"}})
	})
	t.Run("LocalAddr", func(t *testing.T) {
		port := p.port(t)
		c := p.listen(t, fmt.Sprint(":", port), nil)
		if a, ok := c.LocalAddr().(*net.UDPAddr); !ok || !a.IP.IsUnspecified() || a.Port != port {
			t.Errorf("LocalAddr %v", c.LocalAddr())
		}
		at := netip.AddrPortFrom(g.Addr, uint16(port))
		c = p.listen(t, at.String(), nil)
		if a := c.LocalAddr().String(); a != at.String() {
			t.Errorf("LocalAddr %v, want %v", a, at)
		}
		c = p.listen(t, netip.AddrPortFrom(p.senders0(t), 0).String(), nil)
		if a := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(); a != p.senders0(t) {
			t.Errorf("LocalAddr %v", a)
		}
	})
	t.Run("unicast", func(t *testing.T) {
		c := p.listen(t, netip.AddrPortFrom(p.senders0(t), 0).String(), nil)
		for _, err := range []error{c.Join(g), c.JoinSource(g, p.source(0)), c.SetFilter(g, mcast.Exclude)} {
			if !errors.Is(err, mcast.ErrAddress) || !strings.Contains(err.Error(), p.senders0(t).String()) {
				t.Error(err)
			}
		}
		checkState(t, c, []mcast.Group{}, mcast.Group{})
	})
	t.Run("no such zone", func(t *testing.T) {
		c, err := mcast.Listen(p.network(), fmt.Sprintf("[%v%%nosuch0]:5000", g.Addr), nil)
		if c != nil || !errors.Is(err, mcast.ErrInterface) || !strings.Contains(err.Error(), "nosuch0") {
			t.Errorf("%v, want ErrInterface", err)
		}
	})
	t.Run("refused", func(t *testing.T) {
		other := map[bool]string{false: "udp6", true: "udp4"}[p.six]
		tests := []struct {
			network, address string
			want             error
		}{
			{other, netip.AddrPortFrom(g.Addr, 5000).String(), mcast.ErrAddress},
			{"udp", ":5000", mcast.ErrAddress},
			{p.network(), "5000", mcast.ErrAddress},
			{p.network(), ":70000", mcast.ErrAddress},
			{p.network(), "nobody.invalid:5000", mcast.ErrAddress},
			{"tcp", ":5000", net.UnknownNetworkError("tcp")},
			{"", ":5000", net.UnknownNetworkError("")},
		}
		if p.six {
			tests = append(tests, struct {
				network, address string
				want             error
			}{"udp6", "[ff02::1234]:5000", mcast.ErrInterface})
		}
		for _, test := range tests {
			c, err := mcast.Listen(test.network, test.address, nil)
			var e *mcast.OpError
			if c != nil || !errors.Is(err, test.want) || !errors.As(err, &e) || e.Op != "Listen" {
				t.Errorf("Listen(%q, %q): %v, want %v", test.network, test.address, err, test.want)
			}
		}
	})
}

// senders0 is an address of this machine.
func (p place) senders0(t *testing.T) netip.Addr {
	t.Helper()
	if p.open == nil {
		return p.senders[0]
	}
	addrs, err := p.ifi.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if x, err := netip.ParsePrefix(a.String()); err == nil && x.Addr().Is6() == p.six && !x.Addr().IsLinkLocalUnicast() {
			return x.Addr()
		}
	}
	t.Fatal("no address")
	return netip.Addr{}
}

func testNew(t *testing.T, p place) {
	g := p.asm(1)
	t.Run("wraps", func(t *testing.T) {
		udp, err := net.ListenUDP(p.network(), nil)
		if err != nil {
			t.Fatal(err)
		}
		c, err := mcast.New(udp, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if c.LocalAddr().String() != udp.LocalAddr().String() {
			t.Errorf("LocalAddr %v, of the socket %v", c.LocalAddr(), udp.LocalAddr())
		}
		p.scene(t, c, true, g, p.ssm(1)).run(g, allSteps[:30])
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := udp.SetDeadline(time.Now()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the socket is not closed: %v", err)
		}
	})
	t.Run("unicast", func(t *testing.T) {
		udp, err := net.ListenUDP(p.network(), net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.senders0(t), 0)))
		if err != nil {
			t.Fatal(err)
		}
		c, err := mcast.New(udp, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Join(g); !errors.Is(err, mcast.ErrAddress) {
			t.Error(err)
		}
	})
	refused := func(name string, udp *net.UDPConn, want error) {
		c, err := mcast.New(udp, nil)
		var e *mcast.OpError
		if c != nil || !errors.Is(err, want) || !errors.As(err, &e) || e.Op != "New" {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	refused("nil", nil, mcast.ErrAddress)
	closed, err := net.ListenUDP(p.network(), nil)
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	refused("closed", closed, net.ErrClosed)
	connected, err := net.DialUDP(p.network(), nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.senders0(t), 9)))
	if err != nil {
		t.Fatal(err)
	}
	defer connected.Close()
	refused("connected", connected, mcast.ErrAddress)
	if c, err := mcast.New(new(net.UDPConn), nil); c != nil || err == nil {
		t.Errorf("the zero UDPConn: %v", err)
	}
	dual, err := net.ListenUDP("udp", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer dual.Close()
	if dual.LocalAddr().(*net.UDPAddr).IP.To4() == nil {
		refused("dual-stack", dual, mcast.ErrAddress)
	}
	// The sockets are as they were.
	for _, c := range []*net.UDPConn{connected, dual} {
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Error(err)
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

// drain forgets what is there already.
func drain(c *mcast.Conn) {
	m := mcast.Message{Buf: make([]byte, 2000)}
	for {
		c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if c.ReadMessage(&m) != nil {
			return
		}
	}
}

const envSecond = "MCAST_TEST_SECOND"

// TestSecond is the second process of testSecondProcess.
func TestSecond(t *testing.T) {
	spec := strings.Fields(os.Getenv(envSecond))
	if len(spec) == 0 {
		t.Skip("this is the second process of another test")
	}
	c, err := mcast.Listen(spec[0], ":"+spec[1], nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, s := range spec[2:] {
		g, source, err := mcast.ParseChannel(s)
		if err != nil {
			t.Fatal(err)
		}
		if source.IsValid() {
			err = c.JoinSource(g, source)
		} else {
			err = c.Join(g)
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
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %v %v %v@%v %v@%v", envSecond, p.network(), port,
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

func testUnicast(t *testing.T, p place) {
	p.needsSenders(t, 1)
	if p.open != nil {
		t.Skip("the senders are on another host")
	}
	here := p.senders[0]
	t.Run("dropped", func(t *testing.T) {
		s := p.scene(t, p.listen(t, ":0", nil), true)
		for range 3 {
			s.senders[0].send(t, netip.AddrPortFrom(here, s.port), "unicast")
		}
		s.check()
		if st := s.c.Stats(); st.Received != 1 || st.Filtered != 3 {
			t.Errorf("%+v, want 1 received and 3 filtered", st)
		}
	})
	t.Run("handed over", func(t *testing.T) {
		s := p.scene(t, p.listen(t, ":0", &mcast.Config{Unicast: true}), true)
		s.senders[0].send(t, netip.AddrPortFrom(here, s.port), "unicast")
		m := mcast.Message{Buf: make([]byte, 100)}
		s.c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if err := s.c.ReadMessage(&m); err != nil || string(m.Buf[:m.N]) != "unicast" || m.Group.Addr != here || m.Source != s.senders[0].from {
			t.Errorf("%+v, %v", m, err)
		}
		s.check()
		if st := s.c.Stats(); st.Received != 2 || st.Filtered != 0 {
			t.Errorf("%+v, want 2 received", st)
		}
	})
	t.Run("bound to a group", func(t *testing.T) {
		g := p.asm(1)
		c := p.listen(t, netip.AddrPortFrom(g.Addr, uint16(p.port(t))).String(), &mcast.Config{Unicast: true})
		s := p.scene(t, c, false, g)
		if err := c.Join(g); err != nil {
			t.Fatal(err)
		}
		// Where nobody listens, a system may say so.
		s.senders[0].WriteToUDPAddrPort([]byte("unicast"), netip.AddrPortFrom(here, s.port))
		s.check(p.membership(g, "E")...)
	})
	t.Run("bound to unicast", func(t *testing.T) {
		for _, unicast := range []bool{false, true} {
			c := p.listen(t, netip.AddrPortFrom(here, 0).String(), &mcast.Config{Unicast: unicast})
			p.sender(t, here).send(t, netip.AddrPortFrom(here, uint16(localPort(c))), "x")
			m := mcast.Message{Buf: make([]byte, 100)}
			if !unicast {
				for end := time.Now().Add(10 * time.Second); ; {
					c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
					if err := c.ReadMessage(&m); !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Fatalf("%+v, %v", m, err)
					}
					if c.Stats().Filtered == 1 {
						break
					} else if time.Now().After(end) {
						t.Fatal(c.Stats())
					}
				}
				continue
			}
			c.SetReadDeadline(time.Now().Add(10 * time.Second))
			if err := c.ReadMessage(&m); err != nil || m.Group.Addr != here {
				t.Errorf("%+v, %v", m, err)
			}
		}
	})
}

// Every datagram was received, or dropped for want of buffer.
func testOverflow(t *testing.T, p place) {
	p.needsSenders(t, 1)
	if runtime.GOOS != "linux" {
		t.Skip("only Linux counts what it drops")
	}
	g := p.asm(1)
	c := p.listen(t, ":0", &mcast.Config{ReadBuffer: 1 << 16})
	if err := c.Join(g); err != nil {
		t.Fatal(err)
	}
	from := p.sender(t, p.senders[0])
	const total = 1000
	payload := strings.Repeat("x", 1000)
	for range total {
		from.send(t, netip.AddrPortFrom(g.Addr, uint16(localPort(c))), payload)
	}
	m := mcast.Message{Buf: make([]byte, 2000)}
	var st mcast.Stats
	for end := time.Now().Add(10 * time.Second); ; {
		c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		for c.ReadMessage(&m) == nil {
			if m.N != len(payload) {
				t.Errorf("%d bytes", m.N)
			}
		}
		if st = c.Stats(); st.Received+st.Dropped == total {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%+v, want %d in all", st, total)
		}
	}
	if st.Dropped == 0 || st.Received == 0 || st.Filtered != 0 {
		t.Errorf("%+v", st)
	}
	c.Close()
	if after := c.Stats(); after != st {
		t.Errorf("%+v after Close, %+v before", after, st)
	}
}

func testReadBuffer(t *testing.T, p place) {
	granted := func(n int) (int, string) {
		var log strings.Builder
		c := p.listen(t, ":0", &mcast.Config{ReadBuffer: n, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		return c.Stats().ReadBuffer, log.String()
	}
	system, log := granted(-1)
	if log != "" {
		t.Errorf("logged %q, though nothing was asked for", log)
	}
	for _, n := range []int{1 << 16, 1 << 18, 0, 1 << 30} {
		got, log := granted(n)
		want := n
		if n == 0 {
			want = 4 << 20
		}
		if got == 0 {
			t.Skip("this system does not tell")
		}
		if warned := strings.Contains(log, "receive buffer is smaller"); warned != (got < want) {
			t.Errorf("asked for %d, granted %d, logged %q", n, got, log)
		}
		if got < want && got < system {
			t.Errorf("asked for %d, granted %d, less than the default %d", n, got, system)
		}
	}
}

// A witness is a Conn that hears all of a group: what it has, the others have.
func (s *scene) witness(g mcast.Group) func(from *sender, payload string) {
	s.t.Helper()
	w := s.p.listen(s.t, fmt.Sprint(":", s.port), nil)
	if err := w.Join(g); err != nil {
		s.t.Fatal(err)
	}
	return func(from *sender, payload string) {
		s.t.Helper()
		from.send(s.t, netip.AddrPortFrom(g.Addr, s.port), payload)
		m := mcast.Message{Buf: make([]byte, 100)}
		w.SetReadDeadline(time.Now().Add(10 * time.Second))
		if err := w.ReadMessage(&m); err != nil || string(m.Buf[:m.N]) != payload {
			s.t.Fatalf("%q, %v, want %q", m.Buf[:m.N], err, payload)
		}
	}
}

// A datagram that was there before the filter changed goes by the new filter.
func testQueued(t *testing.T, p place) {
	p.needsSenders(t, 1)
	g := p.asm(1)
	s := p.scene(t, p.listen(t, fmt.Sprint(":", p.port(t)), nil), true, g)
	queue := s.witness(g)
	for _, test := range [][3]string{
		{"Join", "", "Block a"},
		{"Join", "", "Leave"},
		{"Join", "", "Include"},
		{"Join", "", "Include b"},
		{"Join", "", "Exclude a"},
		{"JoinSource", "a", "LeaveSource a"},
		{"JoinSource", "a", "Leave"},
		{"JoinSource", "a", "Include b"},
		{"JoinSource", "a", "Exclude a"},
	} {
		if err := request(s.c, test[0], g, p.sources(test[1])...); err != nil {
			t.Fatal(test, err)
		}
		queue(s.senders[0], "queued")
		queue(s.senders[0], "queued")
		before := s.c.Stats()
		op, source, _ := strings.Cut(test[2], " ")
		if err := request(s.c, op, g, p.sources(source)...); err != nil {
			t.Fatal(test, err)
		}
		expected := make(map[string]arrival)
		s.send(s.senders[0], s.fence, true, expected)
		s.receive(expected)
		if after := s.c.Stats(); after.Filtered == before.Filtered || after.Received != before.Received+1 {
			t.Errorf("%v: before %+v, after %+v", test, before, after)
		}
		if err := s.c.SetFilter(g, mcast.Include); err != nil {
			t.Fatal(test, err)
		}
	}
	// And the other way round: who is let in hears what was there.
	if err := s.c.Join(g); err != nil {
		t.Fatal(err)
	}
	if err := s.c.Block(g, p.source(0)); err != nil {
		t.Fatal(err)
	}
	s.check(p.membership(g, "Ea")...)
}

func testSizes(t *testing.T, p place) {
	p.needsSenders(t, 1)
	g := p.asm(1)
	c := p.listen(t, ":0", nil)
	if err := c.Join(g); err != nil {
		t.Fatal(err)
	}
	from := p.sender(t, p.senders[0])
	to := netip.AddrPortFrom(g.Addr, uint16(localPort(c)))
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	data := make([]byte, 9200)
	for i := range data {
		data[i] = byte(i % 251)
	}
	for _, size := range []int{0, 1, 100, 1472, 1500, 9001, 9200} {
		for _, room := range []int{0, 1, 99, 100, 101, 1472, 9000, 9001, 65536} {
			n, cut := min(size, room), size > room
			whole := func(what string, got []byte, truncated bool) {
				t.Helper()
				if string(got) != string(data[:n]) || truncated != cut {
					t.Errorf("%s: %d bytes into %d: %d, truncated: %v", what, size, room, len(got), truncated)
				}
			}
			send := func() { from.send(t, to, string(data[:size])) }
			send()
			m := mcast.Message{Buf: make([]byte, room)}
			if err := c.ReadMessage(&m); err != nil {
				t.Fatal(err)
			}
			whole("ReadMessage", m.Buf[:m.N], m.Truncated)
			if m.Source != from.from || m.Group != g {
				t.Errorf("%d bytes into %d: %+v", size, room, m.Source)
			}

			send()
			ms := []mcast.Message{{Buf: make([]byte, room)}, {Buf: make([]byte, room)}}
			k, err := c.ReadBatch(ms)
			if err != nil || k != 1 {
				t.Fatal(k, err)
			}
			whole("ReadBatch", ms[0].Buf[:ms[0].N], ms[0].Truncated)

			checkErr := func(what string, err error) {
				t.Helper()
				if cut && !errors.Is(err, io.ErrShortBuffer) || !cut && err != nil {
					t.Errorf("%s: %d bytes into %d: %v", what, size, room, err)
				}
			}
			send()
			b := make([]byte, room)
			k, a, err := c.ReadFrom(b)
			checkErr("ReadFrom", err)
			whole("ReadFrom", b[:k], cut)
			if u, ok := a.(*net.UDPAddr); !ok || netip.AddrPortFrom(u.AddrPort().Addr().Unmap(), u.AddrPort().Port()) != from.from {
				t.Errorf("ReadFrom: %v", a)
			}
			send()
			k, ap, err := c.ReadFromUDPAddrPort(b)
			checkErr("ReadFromUDPAddrPort", err)
			whole("ReadFromUDPAddrPort", b[:k], cut)
			if ap != from.from {
				t.Errorf("ReadFromUDPAddrPort: %v", ap)
			}
		}
	}
}

// reads are the four ways to read.
var reads = map[string]func(*mcast.Conn) error{
	"ReadMessage": func(c *mcast.Conn) error { return c.ReadMessage(&mcast.Message{Buf: make([]byte, 100)}) },
	"ReadBatch": func(c *mcast.Conn) error {
		_, err := c.ReadBatch([]mcast.Message{{Buf: make([]byte, 100)}, {Buf: make([]byte, 100)}})
		return err
	},
	"ReadFrom":            func(c *mcast.Conn) error { _, _, err := c.ReadFrom(make([]byte, 100)); return err },
	"ReadFromUDPAddrPort": func(c *mcast.Conn) error { _, _, err := c.ReadFromUDPAddrPort(make([]byte, 100)); return err },
}

func wantTimeout(t *testing.T, what string, err error) {
	t.Helper()
	var e net.Error
	if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &e) || !e.Timeout() {
		t.Errorf("%s: %v, want a timeout", what, err)
	}
}

func testDeadline(t *testing.T, p place) {
	c := p.listen(t, ":0", nil)
	if err := c.Join(p.asm(1)); err != nil {
		t.Fatal(err)
	}
	for name, read := range reads {
		c.SetReadDeadline(time.Now().Add(-time.Second))
		wantTimeout(t, name+" past", read(c))
		c.SetDeadline(time.Now().Add(10 * time.Millisecond))
		wantTimeout(t, name, read(c))
		for _, set := range []func(time.Time) error{c.SetReadDeadline, c.SetDeadline} {
			c.SetReadDeadline(time.Time{})
			done := make(chan error, 3)
			for range cap(done) {
				go func() { done <- read(c) }()
			}
			time.Sleep(5 * time.Millisecond) // most will be in the read by now
			set(time.Now())
			for range cap(done) {
				wantTimeout(t, name+" under way", within(t, done))
			}
		}
	}
	c.SetDeadline(time.Time{})
	c.SetWriteDeadline(time.Now().Add(-time.Second))
	_, err := c.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(p.asm(1).Addr, uint16(localPort(c))))
	wantTimeout(t, "WriteToUDPAddrPort", err)
}

// within returns what comes, and fails the test if nothing does.
func within[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(20 * time.Second):
		buf := make([]byte, 1<<20)
		t.Fatalf("nothing happens\n%s", buf[:runtime.Stack(buf, true)])
	}
	return v
}

func testClose(t *testing.T, p place) {
	for name, read := range reads {
		c := p.listen(t, ":0", nil)
		g := p.asm(1)
		if err := errors.Join(c.Join(g), c.Block(g, p.source(0)), c.JoinSource(p.ssm(1), p.source(0))); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 4)
		for range cap(done) {
			go func() { done <- read(c) }()
		}
		time.Sleep(5 * time.Millisecond) // most will be in the read by now
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		for range cap(done) {
			if err := within(t, done); !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := read(c); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
		if ms := c.Memberships(); len(ms) != 0 {
			t.Errorf("memberships after Close: %v", ms)
		}
		for _, op := range allOps {
			var e *mcast.OpError
			want := op
			if op == "Include" || op == "Exclude" {
				want = "SetFilter"
			}
			if err := request(c, op, g, p.source(0)); !errors.Is(err, net.ErrClosed) || !errors.As(err, &e) || e.Op != want || e.Group != g {
				t.Errorf("%s after Close: %v", op, err)
			}
		}
		_, err := c.SystemFilter(g)
		_, wrote := c.WriteTo([]byte("x"), &net.UDPAddr{IP: g.Addr.AsSlice(), Port: 5000})
		_, ttl := c.MulticastTTL()
		for i, err := range []error{err, wrote, ttl, c.SetMulticastTTL(1), c.SetMulticastLoopback(true), c.SetMulticastInterface(p.ifi.Index), c.SetReadDeadline(time.Now())} {
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("call %d after Close: %v", i, err)
			}
		}
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Errorf("second Close: %v", err)
		}
		c.Stats()
		c.LocalAddr()
	}
}

// Eight readers hear each datagram once.
func testReaders(t *testing.T, p place) {
	p.needsSenders(t, 1)
	g := p.asm(1)
	c := p.listen(t, ":0", nil)
	if err := c.Join(g); err != nil {
		t.Fatal(err)
	}
	const total = 400
	var mu sync.Mutex
	heard := make(map[string]int)
	all := make(chan bool)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			ms := make([]mcast.Message, 1+i%4*3)
			for k := range ms {
				ms[k].Buf = make([]byte, 100)
			}
			for {
				n, err := 1, error(nil)
				switch i {
				case 0, 4:
					err = c.ReadMessage(&ms[0])
				case 1:
					ms[0].N, _, err = c.ReadFromUDPAddrPort(ms[0].Buf)
				default:
					n, err = c.ReadBatch(ms)
				}
				if err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Error(err)
					}
					return
				}
				mu.Lock()
				for _, m := range ms[:n] {
					heard[string(m.Buf[:m.N])]++
				}
				if len(heard) == total {
					select {
					case <-all:
					default:
						close(all)
					}
				}
				mu.Unlock()
			}
		})
	}
	from := p.sender(t, p.senders[0])
	for i := range total {
		from.send(t, netip.AddrPortFrom(g.Addr, uint16(localPort(c))), fmt.Sprint("datagram ", i))
	}
	within(t, all)
	c.Close()
	wg.Wait()
	for payload, n := range heard {
		if n != 1 {
			t.Errorf("%q was heard %d times", payload, n)
		}
	}
	if st := c.Stats(); st.Received != total {
		t.Errorf("%+v, want %d received", st, total)
	}
}

func testBatch(t *testing.T, p place) {
	t.Run("nothing to read into", func(t *testing.T) {
		c := p.listen(t, ":0", nil)
		for _, ms := range [][]mcast.Message{nil, {}} {
			var e *mcast.OpError
			if n, err := c.ReadBatch(ms); n != 0 || !errors.Is(err, os.ErrInvalid) || !errors.As(err, &e) || e.Op != "ReadBatch" {
				t.Errorf("%d, %v", n, err)
			}
		}
	})
	p.needsSenders(t, 1)
	g := p.asm(1)
	start := func(t *testing.T) (*scene, func(*sender, string)) {
		s := p.scene(t, p.listen(t, fmt.Sprint(":", p.port(t)), nil), true, g)
		if err := s.c.Join(g); err != nil {
			t.Fatal(err)
		}
		s.c.SetReadDeadline(time.Now().Add(20 * time.Second))
		return s, s.witness(g)
	}
	// batch makes messages, and a check that all buffers are still there.
	batch := func(n int) ([]mcast.Message, func(*testing.T)) {
		ms := make([]mcast.Message, n)
		count := make(map[*byte]int)
		for i := range ms {
			ms[i].Buf = make([]byte, 64)
			count[&ms[i].Buf[0]] = 1
		}
		return ms, func(t *testing.T) {
			t.Helper()
			now := make(map[*byte]int)
			for i := range ms {
				if len(ms[i].Buf) != 64 {
					t.Fatalf("message %d has a Buf of %d bytes", i, len(ms[i].Buf))
				}
				now[&ms[i].Buf[0]]++
			}
			if !maps.Equal(count, now) {
				t.Error("the buffers are not those that were given")
			}
		}
	}
	read := func(t *testing.T, s *scene, ms []mcast.Message, check func(*testing.T), want []string) {
		t.Helper()
		var got []string
		for len(got) < len(want) {
			n, err := s.c.ReadBatch(ms)
			if err != nil || n < 1 || n > len(ms) {
				t.Fatal(n, err, got)
			}
			check(t)
			for _, m := range ms[:n] {
				got = append(got, string(m.Buf[:m.N]))
				if !m.Source.IsValid() || !m.Group.Addr.IsValid() || m.Truncated {
					t.Errorf("%+v", m)
				}
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("heard %q, want %q", got, want)
		}
	}
	for _, size := range []int{1, 3, 8, 64, 1024, 1500} {
		t.Run(fmt.Sprint("in order ", size), func(t *testing.T) {
			s, queue := start(t)
			ms, check := batch(size)
			var want []string
			for i := range 100 {
				queue(s.senders[i%len(s.senders)], fmt.Sprint("datagram ", i))
				want = append(want, fmt.Sprint("datagram ", i))
			}
			read(t, s, ms, check, want)
		})
		t.Run(fmt.Sprint("filtered ", size), func(t *testing.T) {
			p.needsSenders(t, 2)
			s, queue := start(t)
			ms, check := batch(size)
			for round := range 3 {
				var want []string
				n := 0
				for i := range 100 {
					from := rand.IntN(2) // runs of any length
					if round == 2 {
						from = i / 50
					}
					payload := fmt.Sprintf("%d %d from %d", round, i, from)
					queue(s.senders[from], payload)
					if from == 0 {
						want = append(want, payload)
					} else {
						n++
					}
				}
				before := s.c.Stats().Filtered
				if err := s.c.Block(g, p.source(1)); err != nil {
					t.Fatal(err)
				}
				from := s.senders[0]
				from.send(t, netip.AddrPortFrom(s.fence.Addr, s.port), "fence")
				read(t, s, ms, check, append(want, "fence"))
				if f := s.c.Stats().Filtered - before; f != uint64(n) {
					t.Errorf("%d filtered, want %d", f, n)
				}
				if err := s.c.Unblock(g, p.source(1)); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	t.Run("all at once", func(t *testing.T) {
		if runtime.GOOS != "linux" {
			t.Skip("only Linux reads several datagrams at once")
		}
		s, queue := start(t)
		for i := range 40 {
			queue(s.senders[0], fmt.Sprint(i))
		}
		// The last one may still be on its way from the witness to here.
		ms, _ := batch(39)
		if n, err := s.c.ReadBatch(ms); n != len(ms) || err != nil {
			t.Errorf("%d datagrams, %v, want %d", n, err, len(ms))
		}
	})
}

// raceEnabled reports whether the race detector is built in, which allocates.
func raceEnabled() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

func testAllocs(t *testing.T, p place) {
	p.needsSenders(t, 1)
	if raceEnabled() {
		t.Skip("the race detector allocates")
	}
	g := p.asm(1)
	c := p.listen(t, ":0", nil)
	if err := errors.Join(c.Join(g), c.Block(g, p.source(1))); err != nil {
		t.Fatal(err)
	}
	from := p.sender(t, p.senders[0])
	to := netip.AddrPortFrom(g.Addr, uint16(localPort(c)))
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	payload := []byte("datagram")
	send := func() {
		if _, err := from.WriteToUDPAddrPort(payload, to); err != nil {
			t.Fatal(err)
		}
	}
	m := mcast.Message{Buf: make([]byte, 100)}
	ms := make([]mcast.Message, 8)
	for i := range ms {
		ms[i].Buf = make([]byte, 100)
	}
	base := 0.0
	if runtime.GOOS == "windows" { // package net allocates there
		raw, err := net.ListenUDP(p.network(), net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.senders[0], 0)))
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		oob := make([]byte, 256)
		self := netip.AddrPortFrom(p.senders[0], uint16(localPort(raw)))
		base = testing.AllocsPerRun(100, func() {
			if _, err := raw.WriteToUDPAddrPort(payload, self); err != nil {
				t.Fatal(err)
			}
			if _, _, _, _, err := raw.ReadMsgUDPAddrPort(m.Buf, oob); err != nil {
				t.Fatal(err)
			}
		})
	}
	for name, read := range map[string]func() error{
		"ReadMessage":         func() error { return c.ReadMessage(&m) },
		"ReadBatch":           func() error { _, err := c.ReadBatch(ms); return err },
		"ReadFromUDPAddrPort": func() error { _, _, err := c.ReadFromUDPAddrPort(m.Buf); return err },
	} {
		t.Run(name, func(t *testing.T) {
			n := testing.AllocsPerRun(100, func() {
				send()
				if err := read(); err != nil {
					t.Fatal(err)
				}
			})
			if n > base {
				t.Errorf("%v allocations, want %v", n, base)
			}
		})
	}
}

func testSending(t *testing.T, p place) {
	c := p.listen(t, ":0", nil)
	opError := func(what string, err, want error, op string) {
		t.Helper()
		var e *mcast.OpError
		if !errors.Is(err, want) || !errors.As(err, &e) || e.Op != op || !strings.Contains(err.Error(), op) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if ttl, err := c.MulticastTTL(); err != nil || ttl != 1 {
		t.Errorf("TTL %d, %v at first", ttl, err)
	}
	for _, ttl := range []int{0, 255, 7} {
		if err := c.SetMulticastTTL(ttl); err != nil {
			t.Error(err)
		}
		if got, err := c.MulticastTTL(); err != nil || got != ttl {
			t.Errorf("TTL %d, %v, want %d", got, err, ttl)
		}
	}
	for _, ttl := range []int{-1, 256, 1 << 30} {
		opError(fmt.Sprint("TTL ", ttl), c.SetMulticastTTL(ttl), os.ErrInvalid, "SetMulticastTTL")
		if got, err := c.MulticastTTL(); err != nil || got != 7 {
			t.Errorf("TTL %d, %v after a refusal", got, err)
		}
	}

	t.Run("no interface set", func(t *testing.T) {
		c := p.listen(t, ":0", nil)
		if i, err := c.MulticastInterface(); err != nil || i != 0 {
			t.Errorf("interface %d, %v at first", i, err)
		}
		if err := errors.Join(c.SetMulticastInterface(p.ifi.Index), c.SetMulticastInterface(0)); err != nil {
			t.Error(err)
		}
		if i, err := c.MulticastInterface(); err != nil || i != 0 {
			t.Errorf("interface %d, %v, want 0 again", i, err)
		}
	})
	if err := c.SetMulticastInterface(p.ifi.Index); err != nil {
		t.Error(err)
	}
	if i, err := c.MulticastInterface(); err != nil || i != p.ifi.Index {
		t.Errorf("interface %d, %v, want %d", i, err, p.ifi.Index)
	}
	for _, index := range []int{-1, 1 << 20} {
		opError(fmt.Sprint("interface ", index), c.SetMulticastInterface(index), mcast.ErrInterface, "SetMulticastInterface")
		if i, err := c.MulticastInterface(); err != nil || i != p.ifi.Index {
			t.Errorf("interface %d, %v after a refusal", i, err)
		}
	}

	if on, err := c.MulticastLoopback(); err != nil || !on {
		t.Errorf("loopback %v, %v at first", on, err)
	}
	for _, on := range []bool{false, true} {
		if err := c.SetMulticastLoopback(on); err != nil {
			t.Error(err)
		}
		if got, err := c.MulticastLoopback(); err != nil || got != on {
			t.Errorf("loopback %v, %v, want %v", got, err, on)
		}
	}

	p.needsSenders(t, 1)
	if p.open != nil {
		t.Skip("the senders are on another host")
	}
	g := p.asm(1)
	s := p.scene(t, p.listen(t, ":0", nil), true, g)
	if err := s.c.Join(g); err != nil {
		t.Fatal(err)
	}
	s.c.SetReadDeadline(time.Now().Add(10 * time.Second))
	to := netip.AddrPortFrom(g.Addr, s.port)
	from := s.senders[0]
	next := func(want string) {
		t.Helper()
		m := mcast.Message{Buf: make([]byte, 100)}
		if err := s.c.ReadMessage(&m); err != nil || string(m.Buf[:m.N]) != want || m.Source != from.from {
			t.Errorf("%q from %v, %v, want %q", m.Buf[:m.N], m.Source, err, want)
		}
	}
	if n, err := from.WriteTo([]byte("WriteTo"), net.UDPAddrFromAddrPort(to)); n != 7 || err != nil {
		t.Error(n, err)
	}
	next("WriteTo")
	if n, err := from.WriteToUDPAddrPort([]byte("AddrPort"), to); n != 8 || err != nil {
		t.Error(n, err)
	}
	next("AddrPort")
	if runtime.GOOS == "windows" {
		t.Skip("on Windows the loopback option is the receiver's")
	}
	if err := from.SetMulticastLoopback(false); err != nil {
		t.Fatal(err)
	}
	if p.ifi.Flags&net.FlagLoopback == 0 {
		from.send(t, to, "not looped back")
	}
	if err := from.SetMulticastLoopback(true); err != nil {
		t.Fatal(err)
	}
	from.send(t, to, "looped back")
	next("looped back")
}

func testBadInput(t *testing.T, p place) {
	g, h, a := p.asm(1), p.ssm(1), p.source(0)
	c := p.listen(t, fmt.Sprint(":", p.port(t)), nil)
	if err := errors.Join(c.Join(g), c.Block(g, p.source(2)), c.JoinSource(h, a)); err != nil {
		t.Fatal(err)
	}
	s := p.scene(t, c, true, g, h, p.asm(3), p.ssm(3))
	want := append(p.membership(h, "Ia"), p.membership(g, "Ec")...)
	slices.SortFunc(want, func(a, b mcast.Membership) int { return a.Group.Addr.Compare(b.Group.Addr) })
	s.check(want...)

	bad := func(name string, wantErr error, g mcast.Group, source netip.Addr, ops ...string) {
		t.Helper()
		for _, op := range ops {
			var err error
			if source.IsValid() || op == "Join" || op == "Leave" {
				err = request(c, op, g, source)
			} else {
				err = request(c, op, g, netip.Addr{})
			}
			opName := op
			if op == "Include" || op == "Exclude" {
				opName = "SetFilter"
			}
			var e *mcast.OpError
			if !errors.Is(err, wantErr) || !errors.As(err, &e) {
				t.Errorf("%s: %s: %v, want %v", name, op, err, wantErr)
				continue
			}
			if e.Op != opName || e.Group.Addr != g.Addr.Unmap().WithZone("") {
				t.Errorf("%s: %s: an error about %s %v: %v", name, op, e.Op, e.Group, err)
			}
			text := err.Error()
			wants := []string{"mcast: " + opName, wantErr.Error()}
			if g.Addr.IsValid() {
				wants = append(wants, g.Addr.Unmap().WithZone("").String())
			}
			if source.IsValid() && op != "Join" && op != "Leave" {
				if opName != "SetFilter" || strings.HasSuffix(name, "source") {
					wants = append(wants, source.Unmap().WithZone("").String())
				}
				if opName != "SetFilter" && e.Source != source.Unmap().WithZone("") {
					t.Errorf("%s: %s: an error about source %v: %v", name, op, e.Source, err)
				}
			}
			if g.Interface == p.ifi.Index {
				wants = append(wants, "%"+p.ifi.Name)
			}
			for _, w := range wants {
				if !strings.Contains(text, w) {
					t.Errorf("%s: %s: the text has no %q: %s", name, op, w, text)
				}
			}
			s.state(want...)
		}
	}
	withSource := []string{"JoinSource", "Block", "Unblock", "LeaveSource", "Include", "Exclude"}
	all := append([]string{"Join", "Leave"}, withSource...)
	addr := func(four, six string) netip.Addr {
		if p.six {
			return netip.MustParseAddr(six)
		}
		return netip.MustParseAddr(four)
	}
	on := func(a netip.Addr) mcast.Group { return mcast.Group{Addr: a, Interface: p.ifi.Index} }

	bad("unicast group", mcast.ErrAddress, on(addr("10.0.0.1", "2001:db8::9")), a, all...)
	bad("unspecified group", mcast.ErrAddress, on(addr("0.0.0.0", "::")), a, all...)
	bad("broadcast or loopback group", mcast.ErrAddress, on(addr("255.255.255.255", "::1")), a, all...)
	bad("zero group", mcast.ErrAddress, mcast.Group{}, a, all...)
	bad("no group", mcast.ErrAddress, on(netip.Addr{}), a, all...)
	other, otherSource := netip.MustParseAddr("ff1e::1:1"), netip.MustParseAddr("2001:db8::9")
	if p.six {
		other, otherSource = netip.MustParseAddr("239.1.1.1"), netip.MustParseAddr("10.0.0.1")
	}
	bad("group of the other family", mcast.ErrAddress, on(other), otherSource, all...)
	bad("source of the other family", mcast.ErrAddress, g, otherSource, withSource...)
	bad("multicast source", mcast.ErrAddress, g, addr("239.1.1.1", "ff1e::2"), withSource...)
	bad("unspecified source", mcast.ErrAddress, g, addr("0.0.0.0", "::"), withSource...)
	bad("zero source", mcast.ErrAddress, g, netip.Addr{}, withSource...)
	if !p.six {
		bad("broadcast source", mcast.ErrAddress, g, netip.MustParseAddr("255.255.255.255"), withSource...)
	}
	const none = 1 << 20
	bad("no such interface", mcast.ErrInterface, mcast.Group{Addr: p.asm(3).Addr, Interface: none}, a, "Join", "JoinSource", "Include", "Exclude")
	bad("negative interface", mcast.ErrInterface, mcast.Group{Addr: p.asm(3).Addr, Interface: -1}, a, all...)
	bad("not joined there", mcast.ErrNotJoined, mcast.Group{Addr: g.Addr, Interface: none}, a, "Block", "Unblock", "Leave", "LeaveSource")
	bad("source-specific group", mcast.ErrSSM, p.ssm(3), a, "Join", "Exclude")
	if p.six {
		for _, s := range []string{"ff32::1", "ff35::1", "ff3e::1", "ff3f::ffff:1"} {
			bad(s, mcast.ErrSSM, on(netip.MustParseAddr(s)), a, "Join")
		}
		bad("no such zone", mcast.ErrInterface, mcast.Group{Addr: p.asm(3).Addr.WithZone("nosuch0")}, a, "Join", "JoinSource", "Leave")
		bad("empty zone", mcast.ErrInterface, mcast.Group{Addr: p.asm(3).Addr.WithZone("0")}, a, "Join", "JoinSource", "Leave")
		bad("two interfaces", mcast.ErrInterface, mcast.Group{Addr: p.asm(3).Addr.WithZone(fmt.Sprint(none)), Interface: p.ifi.Index}, a, "Join", "JoinSource", "Leave")
		bad("two interfaces", mcast.ErrInterface, p.asm(3), a.WithZone(fmt.Sprint(none)), "JoinSource", "Include", "Exclude")
	} else {
		for _, s := range []string{"232.0.0.1", "232.255.255.255"} {
			bad(s, mcast.ErrSSM, on(netip.MustParseAddr(s)), a, "Join")
		}
	}
	if err := c.SetFilter(g, mcast.Mode(7), a); !errors.Is(err, mcast.ErrMode) {
		t.Errorf("a mode that does not exist: %v", err)
	}
	s.check(want...)

	// Other ways to write what is good.
	if err := c.SetFilter(mcast.Group{Addr: g.Addr}, mcast.Include); err != nil {
		t.Error(err)
	}
	if p.six {
		named := mcast.Group{Addr: g.Addr.WithZone(p.ifi.Name)}
		number := fmt.Sprint(p.ifi.Index)
		if err := errors.Join(c.Join(named), c.Block(mcast.Group{Addr: g.Addr}, p.source(0).WithZone(number)), c.Block(g, p.source(1).WithZone(number))); err != nil {
			t.Error(err)
		}
		if _, err := c.SystemFilter(named); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			t.Error(err)
		}
	} else {
		mapped := func(a netip.Addr) netip.Addr { return netip.AddrFrom16(a.As16()) }
		m := mcast.Group{Addr: mapped(g.Addr), Interface: g.Interface}
		if err := errors.Join(c.Join(m), c.Block(m, mapped(p.source(0))), c.Block(m, p.source(1))); err != nil {
			t.Error(err)
		}
		if _, err := c.SystemFilter(m); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			t.Error(err)
		}
	}
	want = append(p.membership(h, "Ia"), p.membership(g, "Eab")...)
	slices.SortFunc(want, func(a, b mcast.Membership) int { return a.Group.Addr.Compare(b.Group.Addr) })
	s.check(want...)
	if err := c.Leave(mcast.Group{Addr: g.Addr}); err != nil {
		t.Error(err)
	}
	s.check(p.membership(h, "Ia")...)
}

// limit reads one of Linux' variables; the test is skipped where there is none.
func limit(t *testing.T, knob string) int {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("these are Linux' limits")
	}
	b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(knob, ".", "/"))
	if err != nil {
		t.Skip(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func wantLimit(t *testing.T, what string, err error, knob string) {
	t.Helper()
	if !errors.Is(err, mcast.ErrLimit) || !strings.Contains(err.Error(), knob) {
		t.Errorf("%s: %v, want ErrLimit and %s", what, err, knob)
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

// Opening and closing leaves nothing behind.
func testOpenClose(t *testing.T, p place) {
	count := func() (goroutines, files int) {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			return runtime.NumGoroutine(), 0
		}
		return runtime.NumGoroutine(), len(entries)
	}
	cycle := func() {
		c, err := mcast.Listen(p.network(), ":0", nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(c.Join(p.asm(1)), c.JoinSource(p.ssm(1), p.source(0))); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	cycles := 1000
	if runtime.GOOS == "windows" || testing.Short() {
		cycles = 200
	}
	cycle()
	g0, f0 := count()
	for range cycles {
		cycle()
	}
	for range 100 { // failures, too
		if c, err := mcast.Listen(p.network(), "192.0.2.77:5000", nil); err == nil {
			c.Close()
			break
		}
		udp, err := net.ListenUDP(p.network(), nil)
		if err != nil {
			t.Fatal(err)
		}
		udp.Close()
		mcast.New(udp, nil)
	}
	g1, f1 := count()
	// A few may be those of the test itself.
	if g1 > g0+5 || f1 > f0+5 {
		t.Errorf("%d goroutines and %d files, before %d and %d", g1, f1, g0, f0)
	}
}
