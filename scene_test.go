//go:build !plan9

package mcast_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.com/mcast"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// What the tests with real sockets share. They run on one interface: the
// loopback interface, or the one that the environment names, and once more in a
// lab. Nothing proves silence by waiting: what is sent last, and let through,
// proves that nothing else comes before it.

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
	var errs error
	candidates := p.senders
	p.senders = slices.DeleteFunc(slices.Clone(candidates), func(a netip.Addr) bool {
		err := p.probe(a)
		errs = errors.Join(errs, err)
		return err != nil
	})
	if errs != nil {
		if !six && runtime.GOOS == "linux" {
			t.Fatal(errs)
		}
		t.Logf("what %s is not sent from: %v", p.ifi.Name, errs)
	}
	if len(p.senders) == 0 {
		p.senders = candidates // they are good enough for requests
		p.silent = fmt.Sprintf("multicast does not work on %s: %v", p.ifi.Name, errs)
	}
	return p
}

// probe finds out whether a datagram from an address comes through, and from
// there, without the library.
func (p place) probe(from netip.Addr) error {
	group := p.asm(250).Addr
	r, err := net.ListenUDP(p.network(), nil)
	if err != nil {
		return err
	}
	defer r.Close()
	s, err := net.ListenUDP(p.network(), net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)))
	if err != nil {
		return err
	}
	defer s.Close()
	if to := (&net.UDPAddr{IP: group.AsSlice()}); p.six {
		err = errors.Join(ipv6.NewPacketConn(r).JoinGroup(p.ifi, to), ipv6.NewPacketConn(s).SetMulticastInterface(p.ifi))
	} else {
		err = errors.Join(ipv4.NewPacketConn(r).JoinGroup(p.ifi, to), ipv4.NewPacketConn(s).SetMulticastInterface(p.ifi))
	}
	if err == nil && onWine() {
		err = sendFrom(s, from)
	}
	if err != nil {
		return err
	}
	r.SetReadDeadline(time.Now().Add(3 * time.Second))
	if _, err := s.WriteToUDPAddrPort([]byte("probe"), netip.AddrPortFrom(group, uint16(localPort(r)))); err != nil {
		return err
	}
	_, as, err := r.ReadFromUDPAddrPort(make([]byte, 100))
	if err == nil && as.Addr().Unmap().WithZone("") != from {
		err = fmt.Errorf("what %v sends comes from %v", from, as)
	}
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
	return mcast.Group{Addr: a, Interface: p.ifi.Name}
}

func (p place) ssm(n int) mcast.Group {
	a := netip.AddrFrom4([4]byte{232, 77, byte(n >> 8), byte(n)})
	if p.six {
		a = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x3e, 12: 0x80, 13: 0x77, 14: byte(n >> 8), 15: byte(n)})
	}
	return mcast.Group{Addr: a, Interface: p.ifi.Name}
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
	if err := c.SetMulticastInterface(p.ifi.Name); err != nil {
		t.Fatal(err)
	}
	if !p.six && onWine() {
		if err := sendFrom(c, from); err != nil {
			t.Fatal(err)
		}
	}
	return &sender{c, netip.AddrPortFrom(from, uint16(localPort(c)))}
}

func onWine() bool { return os.Getenv("MCAST_TEST_WINE") != "" }

// sendFrom names an address, and with it an interface, to send to groups from.
// Wine takes the address that a socket is bound to for an interface.
func sendFrom(c syscall.Conn, from netip.Addr) error {
	if !from.Is4() {
		return nil
	}
	const ipMulticastIf = 9
	raw, err := c.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) {
			err = setInt(syscall.SetsockoptInt, fd, syscall.IPPROTO_IP, ipMulticastIf, int(int32(binary.LittleEndian.Uint32(from.AsSlice()))))
		})
	}
	return err
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
	for _, m := range s.c.Memberships() {
		if m.Group.Interface == s.p.ifi.Name && m.Index != s.p.ifi.Index {
			s.t.Errorf("membership %v has index %d, the interface %d", m, m.Index, s.p.ifi.Index)
		}
	}
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
			case m.Source != want.source || m.Group != want.group || m.Port != int(s.port) || m.Truncated:
				s.t.Errorf("heard %q from %v to %v port %d, truncated: %v", payload, m.Source, m.Group, m.Port, m.Truncated)
			case m.Group.Interface == s.p.ifi.Name && m.Index != s.p.ifi.Index:
				s.t.Errorf("heard %q by interface %d, want %d", payload, m.Index, s.p.ifi.Index)
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

// memberships sorts them as a Conn does.
func memberships(o map[mcast.Group]mcast.Membership) []mcast.Membership {
	return slices.SortedFunc(maps.Values(o), func(a, b mcast.Membership) int {
		if c := a.Group.Addr.Compare(b.Group.Addr); c != 0 {
			return c
		}
		return strings.Compare(a.Group.Interface, b.Group.Interface)
	})
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

func wantTimeout(t *testing.T, what string, err error) {
	t.Helper()
	var e net.Error
	var o *net.OpError
	if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &e) || !e.Timeout() || !errors.As(err, &o) {
		t.Errorf("%s: %v, want a timeout, of package net", what, err)
	}
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

// raceEnabled reports whether the race detector is built in, which allocates.
func raceEnabled() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
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

// allocsPerRun is testing.AllocsPerRun, which refuses to work in a test that
// runs beside others, as labs do: here it has the process to itself.
func allocsPerRun(runs int, f func()) float64 {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	f()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range runs {
		f()
	}
	runtime.ReadMemStats(&after)
	return float64((after.Mallocs - before.Mallocs) / uint64(runs))
}
