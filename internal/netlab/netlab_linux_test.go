package netlab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// family is what differs between IPv4 and IPv6.
type family struct {
	name    string
	network string
	level   int
	group   netip.Addr
	addr    func(h *Host, ifname string) netip.Addr
	members func(h *Host) []Member
	filters func(h *Host) []SourceFilter
}

var families = []family{
	{"IPv4", "udp4", unix.IPPROTO_IP, netip.MustParseAddr("232.1.2.3"), (*Host).Addr4, (*Host).IGMP, (*Host).SourceFilters},
	{"IPv6", "udp6", unix.IPPROTO_IPV6, netip.MustParseAddr("ff3e::8000:1"), (*Host).Addr6, (*Host).IGMP6, (*Host).SourceFilters6},
}

// groupSourceReq is a struct group_source_req (RFC 3678 section 5.1), or
// without a source a struct group_req.
func groupSourceReq(index int, addrs ...netip.Addr) string {
	align := strconv.IntSize / 8
	b := make([]byte, align+128*len(addrs))
	binary.NativeEndian.PutUint32(b, uint32(index))
	for i, a := range addrs {
		sa := b[align+128*i:]
		if a.Is4() {
			binary.NativeEndian.PutUint16(sa, unix.AF_INET)
			copy(sa[4:], a.AsSlice())
		} else {
			binary.NativeEndian.PutUint16(sa, unix.AF_INET6)
			copy(sa[8:], a.AsSlice())
		}
	}
	return string(b)
}

// socket is a raw receiver on a host: what these tests are about must not
// depend on the package that uses them.
type socket struct {
	*net.UDPConn
	t     *testing.T
	level int
}

func listen(t *testing.T, h *Host, fam family, port uint16) *socket {
	t.Helper()
	var c *net.UDPConn
	var err error
	h.Do(func() { c, err = net.ListenUDP(fam.network, &net.UDPAddr{Port: int(port)}) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &socket{c, t, fam.level}
}

func (s *socket) option(name int, value string) {
	s.t.Helper()
	rc, err := s.SyscallConn()
	if err != nil {
		s.t.Fatal(err)
	}
	rc.Control(func(fd uintptr) { err = unix.SetsockoptString(int(fd), s.level, name, value) })
	if err != nil {
		s.t.Fatalf("option %d: %v", name, err)
	}
}

// receive returns the next datagram, "" if there is none in time.
func (s *socket) receive(timeout time.Duration) string {
	s.t.Helper()
	s.SetReadDeadline(time.Now().Add(timeout))
	buf := make([]byte, 2000)
	n, _, err := s.ReadFromUDPAddrPort(buf)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		s.t.Fatal(err)
	}
	return string(buf[:n])
}

func TestSwitch(t *testing.T) {
	Run(t, func(l *Lab) {
		a, b, c := l.Host("a"), l.Host("b"), l.Host("c")
		sw := l.Switch(a, b, c)
		for _, fam := range families {
			l.Run(fam.name, func(t *testing.T) {
				source, group := fam.addr(a, "eth0"), netip.AddrPortFrom(fam.group, 5000)
				other := fam.addr(c, "eth0")
				index := b.Index("eth0")
				wireA, wireB, wireC := a.Capture("eth0"), b.Capture("eth0"), c.Capture("eth0")
				port := sw.Capture("b")

				// The kernel joins only groups of interfaces.
				sock := listen(t, b, fam, group.Port())
				sock.option(unix.MCAST_JOIN_SOURCE_GROUP, groupSourceReq(index, group.Addr(), source))
				wireB.WantRecord(t, AllowNewSources, group.Addr(), source)
				if _, ok := port.WaitReport(func(r Report) bool {
					return !r.Outgoing && slices.ContainsFunc(r.Records, func(r Record) bool { return r.Is(AllowNewSources, group.Addr(), source) })
				}, 2*time.Second); !ok {
					t.Errorf("the report does not come in by the port: %v", port)
				}
				if n := b.Users("eth0", group.Addr()); n != 1 {
					t.Errorf("%d users of the group on b", n)
				}
				if n := a.Users("eth0", group.Addr()); n != 0 {
					t.Errorf("%d users of the group on a", n)
				}
				if want := (SourceFilter{index, "eth0", group.Addr(), source, 1, 0}); !slices.Contains(fam.filters(b), want) {
					t.Errorf("source filters on b %v, want %v", fam.filters(b), want)
				}
				sw.WaitMDB(t, func(entries []MDBEntry) bool {
					return slices.ContainsFunc(entries, func(e MDBEntry) bool {
						return e.Port == "b" && e.Group == group.Addr() && e.Source == source && !e.Blocked
					})
				})
				sw.WaitForwards(t, "b", group.Addr(), source, true)
				sw.WaitForwards(t, "b", group.Addr(), other, false)
				sw.WaitForwards(t, "c", group.Addr(), source, false)

				a.Send(t, "eth0", source, group, "one", "two")
				c.Send(t, "eth0", other, group, "not joined")
				for _, want := range []string{"one", "two"} {
					if got := sock.receive(2 * time.Second); got != want {
						t.Errorf("received %q, want %q", got, want)
					}
				}
				if n := wireB.WaitCount(source, group, 2, time.Second); n != 2 {
					t.Errorf("%d datagrams came to b: %v", n, wireB)
				}
				if got := sock.receive(100 * time.Millisecond); got != "" {
					t.Errorf("received %q as well", got)
				}
				if n := wireC.Count(source, group); n != 0 {
					t.Errorf("%d datagrams came to a port that nobody joined on: %v", n, wireC)
				}
				if n := wireA.Count(other, group) + wireB.Count(other, group); n != 0 {
					t.Errorf("%d datagrams came from a source that nobody joined: %v", n, wireB)
				}
				if n := wireA.Count(netip.Addr{}, group); n != 2 {
					t.Errorf("a sent %d datagrams: %v", n, wireA)
				}
				for _, w := range []*Capture{wireA, wireB, wireC, port} {
					if errs := w.Errors(); errs != nil {
						t.Error(errs)
					}
				}

				wireB.Reset()
				sock.option(unix.MCAST_LEAVE_SOURCE_GROUP, groupSourceReq(index, group.Addr(), source))
				wireB.WantRecord(t, BlockOldSources, group.Addr(), source)
				if n := b.Users("eth0", group.Addr()); n != 0 {
					t.Errorf("%d users of the group on b after it left", n)
				}
				sw.WaitForwards(t, "b", group.Addr(), source, false)

				// An any-source member that blocks one source.
				anyGroup := netip.MustParseAddr("239.1.2.3")
				if group.Addr().Is6() {
					anyGroup = netip.MustParseAddr("ff1e::3")
				}
				sock.option(unix.MCAST_JOIN_GROUP, groupSourceReq(index, anyGroup))
				wireB.WantRecord(t, ChangeToExcludeMode, anyGroup)
				sock.option(unix.MCAST_BLOCK_SOURCE, groupSourceReq(index, anyGroup, source))
				// Shortly after the join, its own report is sent again with the source in it.
				if _, ok := wireB.WaitRecord(func(r Record) bool {
					return r.Is(BlockOldSources, anyGroup, source) || r.Is(ChangeToExcludeMode, anyGroup, source)
				}, 2*time.Second); !ok {
					t.Errorf("the block was not reported: %v", wireB)
				}
				entries := sw.WaitMDB(t, func(entries []MDBEntry) bool {
					return slices.ContainsFunc(entries, func(e MDBEntry) bool {
						return e.Port == "b" && e.Group == anyGroup && e.Source == source && e.Blocked
					})
				})
				if Forwards(entries, "b", anyGroup, source) || !Forwards(entries, "b", anyGroup, other) {
					t.Errorf("the switch does not block what is blocked, or more: %v", entries)
				}
			})
		}
	})
}

// The hosts are joined by a cable: what one sends the other gets.
func TestVeth(t *testing.T) {
	Run(t, func(l *Lab) {
		// One of the hosts is where this goroutine is.
		a, b := l.Local(), l.Host("b")
		l.Veth(a, "eth0", b, "eth1")
		a.AddAddr("eth0", "192.0.2.1/24")
		b.AddAddr("eth1", "192.0.2.2/24")
		a.AddAddr("eth0", "2001:db8::1/64")
		if _, err := net.InterfaceByName("eth0"); err != nil {
			t.Errorf("the local host is not local: %v", err)
		}
		if _, err := net.InterfaceByName("eth1"); err == nil {
			t.Error("b's interface is on the local host")
		}
		if got, want := a.Addr4("eth0"), netip.MustParseAddr("192.0.2.1"); got != want {
			t.Errorf("address %v, want %v", got, want)
		}
		if got, want := a.Addr6("eth0"), netip.MustParseAddr("2001:db8::1"); got != want {
			t.Errorf("address %v, want %v", got, want)
		}
		if a.Index("eth0") == b.Index("eth1") {
			t.Error("two interfaces with one index")
		}

		// A host's variables are its own.
		b.Sysctl("net.ipv4.igmp_max_memberships", "7")
		if got := b.ReadSysctl("net/ipv4/igmp_max_memberships"); got != "7" {
			t.Errorf("igmp_max_memberships of b is %s", got)
		}
		if got := a.ReadSysctl("net.ipv4.igmp_max_memberships"); got == "7" {
			t.Error("igmp_max_memberships of a has changed too")
		}

		// Link-local, and a source that the host does not have.
		wire := b.Capture("eth1")
		group := netip.MustParseAddrPort("[ff02::1234]:5000")
		a.Send(t, "eth0", a.LinkLocal("eth0"), group, "x")
		if n := wire.WaitCount(a.LinkLocal("eth0"), group, 1, time.Second); n != 1 {
			t.Errorf("%d datagrams: %v", n, wire)
		}
		group = netip.MustParseAddrPort("239.1.1.1:5000")
		sender := a.Sender(t, "eth0", netip.MustParseAddr("198.51.100.9"), group)
		for range 3 {
			if err := sender.Send("y"); err != nil {
				t.Fatal(err)
			}
		}
		if n := wire.WaitCount(sender.Addr().Addr(), group, 3, time.Second); n != 3 {
			t.Errorf("%d datagrams: %v", n, wire)
		}

		l.Run("keep sending", func(t *testing.T) {
			a.KeepSending(t, "eth0", netip.MustParseAddr("198.51.100.10"), group)
			if n := wire.WaitCount(netip.MustParseAddr("198.51.100.10"), group, 3, 10*time.Second); n < 3 {
				t.Errorf("%d datagrams: %v", n, wire)
			}
		})

		// IGMPv2 on request, read as the record that it stands for.
		b.Sysctl("net.ipv4.conf.eth1.force_igmp_version", "2")
		sock := listen(t, b, families[0], 5000)
		sock.option(unix.MCAST_JOIN_GROUP, groupSourceReq(b.Index("eth1"), group.Addr()))
		wire.WantRecord(t, ModeIsExclude, group.Addr())
		if !slices.ContainsFunc(wire.Reports(), func(r Report) bool { return r.Type == IGMPv2Report && r.Outgoing }) {
			t.Error(wire)
		}
		if i := slices.IndexFunc(b.IGMP(), func(m Member) bool { return m.Device == "eth1" && m.Version == 2 }); i < 0 {
			t.Error(b.IGMP())
		}

		cmd := b.Command("sleep", "60")
		b.Start(cmd)
		if out := b.Run("ip", "-br", "link"); !strings.Contains(out, "eth1@") {
			t.Error(out)
		}
	})
}

// Without snooping, and until there is a querier, a switch floods.
func TestFlood(t *testing.T) {
	Run(t, func(l *Lab) {
		for i, cfg := range []SwitchConfig{{NoSnooping: true}, {NoQuerier: true}, {}} {
			a, b := l.Host(fmt.Sprint("a", i)), l.Host(fmt.Sprint("b", i))
			sw := l.NewSwitch(cfg, a, b)
			for _, fam := range families {
				wire, before := b.Capture("eth0"), a.Capture("eth0")
				flow := Flow{fam.addr(a, "eth0"), netip.AddrPortFrom(fam.group, 5000)}
				a.Send(t, "eth0", flow.Source, flow.Group, "x")
				if n := before.WaitCount(flow.Source, flow.Group, 1, time.Second); n != 1 {
					t.Errorf("%+v: %v", cfg, before)
				}
				want := 1
				if cfg == (SwitchConfig{}) {
					want = 0
					time.Sleep(50 * time.Millisecond)
				}
				wire.WaitCount(flow.Source, flow.Group, want, time.Second)
				if n := wire.Flows()[flow]; n != want {
					t.Errorf("%+v: %d datagrams of %v, want %d: %v", cfg, n, flow, want, wire)
				}
				if s := before.String(); !strings.Contains(s, "1 datagrams "+flow.String()) {
					t.Error(s)
				}
				if want == 0 && slices.ContainsFunc(sw.MDB(), func(e MDBEntry) bool { return strings.Contains(e.String(), fam.group.String()) }) {
					t.Error(sw.MDB())
				}
			}
		}
	})
}

func TestIGMPv2Querier(t *testing.T) {
	Run(t, func(l *Lab) {
		a := l.Host("a")
		sw := l.NewSwitch(SwitchConfig{Name: "old", IGMPVersion: 2, MLDVersion: 1}, a)
		wire := a.Capture("eth0")
		for _, typ := range []ReportType{IGMPQuery, MLDQuery} {
			// A new querier asks soon: it sends its second query after a quarter
			// of the query interval, which is made short here.
			sw.IP("link", "set", "dev", "br0", "type", "bridge", "mcast_querier", "0")
			sw.IP("link", "set", "dev", "br0", "type", "bridge", "mcast_querier", "1")
			r, ok := wire.WaitReport(func(r Report) bool { return r.Type == typ }, 5*time.Second)
			if want := map[ReportType]int{IGMPQuery: 2, MLDQuery: 1}[typ]; !ok || r.Query.Version != want || r.Query.MaxResponse != time.Second || !r.Query.Group.IsUnspecified() {
				t.Errorf("%v, want a general query of version %d, to be answered within a second: %v", r, want, wire)
			}
		}
	})
}

func TestFaults(t *testing.T) {
	Run(t, func(l *Lab) {
		a, b := l.Host("a"), l.Host("b")
		sw := l.Switch(a, b)
		index, addr4, addr6 := a.Index("eth0"), a.Addr4("eth0"), a.Addr6("eth0")
		running := func() bool { return a.Interface("eth0").Flags&net.FlagRunning != 0 }

		// Sent from b, and back at a: the switch does not know of a's group.
		check := func(what string) {
			t.Helper()
			wire := a.Capture("eth0")
			defer wire.Close()
			group := netip.MustParseAddrPort("224.0.0.200:5000") // link-local: always flooded
			if !poll(5*time.Second, func() bool {
				b.Send(t, "eth0", b.Addr4("eth0"), group, "x")
				return wire.WaitCount(b.Addr4("eth0"), group, 1, 50*time.Millisecond) > 0
			}) {
				t.Errorf("%s: nothing comes through: %v", what, wire)
			}
		}
		check("at first")

		a.Carrier("eth0", false)
		if !poll(2*time.Second, func() bool { return !running() }) {
			t.Error("carrier off: still running")
		}
		a.Carrier("eth0", true)
		if !poll(2*time.Second, running) {
			t.Error("carrier on: not running")
		}
		check("carrier back")

		a.Down("eth0")
		if addrs := a.Addrs("eth0"); slices.ContainsFunc(addrs, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
			t.Errorf("down: %v", addrs)
		}
		a.Up("eth0")
		a.Readdress("eth0")
		if a.Addr6("eth0") != addr6 {
			t.Error("the IPv6 address is not back")
		}
		check("up again")

		c := l.Host("c")
		a.Move("eth0", c)
		if c.Index("eth0") != index {
			t.Errorf("moved: index %d, was %d", c.Index("eth0"), index)
		}
		c.Move("eth0", a)
		if addrs := a.Addrs("eth0"); len(addrs) != 0 {
			t.Errorf("moved: %v", addrs)
		}
		a.Up("eth0")
		a.Readdress("eth0")
		if a.Addr4("eth0") != addr4 || a.Addr6("eth0") != addr6 {
			t.Errorf("moved and back: %v", a.Addrs("eth0"))
		}
		check("moved and back")

		a.Delete("eth0")
		a.Do(func() {
			if _, err := net.InterfaceByName("eth0"); err == nil {
				t.Error("deleted, and still there")
			}
		})
		a.Recreate("eth0", true)
		if a.Index("eth0") != index || a.Addr4("eth0") != addr4 {
			t.Errorf("recreated: index %d, was %d; %v", a.Index("eth0"), index, a.Addrs("eth0"))
		}
		sw.waitForwarding("a")
		check("recreated")
		a.Recreate("eth0", false)
		if a.Index("eth0") == index {
			t.Error("recreated with the old index")
		}
		check("recreated with a new index")
	})
}

// A host survives a function that ends its goroutine, as t.Fatal does.
func TestDo(t *testing.T) {
	Run(t, func(l *Lab) {
		a, b := l.Host("a"), l.Host("b")
		id := func() string {
			ns, err := namespaceID()
			if err != nil {
				t.Fatal(err)
			}
			return ns
		}
		var nsA, nsB, again string
		a.Do(func() {
			nsA = id()
			a.Do(func() { again = id() })
			b.Do(func() { nsB = id() })
		})
		if here := id(); nsA == nsB || nsA == here || nsB == here || again != nsA {
			t.Errorf("namespaces %s %s %s %s", here, nsA, again, nsB)
		}
		l.Local().Do(func() {
			if ns := id(); ns != id() || ns == nsA {
				t.Errorf("the local host is in %s", ns)
			}
		})

		done := make(chan bool)
		go func() {
			defer close(done)
			a.Do(func() { runtime.Goexit() })
			t.Error("Do has returned")
		}()
		<-done
		a.Do(func() { again = id() })
		if again != nsA {
			t.Errorf("namespace %s after Goexit, was %s", again, nsA)
		}
		func() {
			defer func() {
				if s := fmt.Sprint(recover()); !strings.Contains(s, "oops") || !strings.Contains(s, "host a") {
					t.Errorf("recovered %q", s)
				}
			}()
			a.Do(func() { panic("oops") })
		}()
		a.Do(func() { again = id() })
		if again != nsA {
			t.Errorf("namespace %s after a panic, was %s", again, nsA)
		}
		l.Run("fatal", func(t *testing.T) {
			t.Cleanup(func() { a.IP("link") })
			a.Do(func() { t.SkipNow() })
			t.Error("Do has returned")
		})
	})
}

// TestOutcome is what TestRun runs.
func TestOutcome(t *testing.T) {
	outcome := os.Getenv("NETLAB_OUTCOME")
	if outcome == "" {
		t.Skip("this is for TestRun")
	}
	Run(t, func(l *Lab) {
		a := l.Host("a")
		switch outcome {
		case "pass":
			t.Log("all is well")
		case "fail":
			a.Do(func() { t.Fatal("on purpose") })
		case "ip":
			a.IP("link", "show", "dev", "eth0")
		case "subtest":
			l.Run("sub", func(t *testing.T) { a.IP("link", "show", "dev", "eth0") })
			l.Run("other", func(t *testing.T) { a.IP("link", "show") })
		case "skip":
			t.Skip("no mood")
		case "panic":
			panic("on purpose")
		case "exit":
			os.Exit(0)
		case "hang":
			select {}
		}
	})
}

func TestRun(t *testing.T) {
	if os.Getenv(envChild) != "" {
		t.Fatal("in the lab")
	}
	tests := []struct {
		outcome string
		ok      bool
		want    string
		args    string
		env     string
	}{
		{"pass", true, "--- PASS: TestOutcome", "", ""},
		{"pass", true, "all is well", "", ""},
		{"fail", false, "on purpose", "", ""},
		{"ip", false, `Device "eth0" does not exist`, "", ""},
		{"subtest", false, "| --- FAIL: TestOutcome", "", ""},
		{"subtest", false, "|     --- PASS: TestOutcome/other", "", ""},
		{"subtest", true, "|     --- PASS: TestOutcome/other", "-test.run=TestOutcome/other", ""},
		{"skip", true, "--- SKIP: TestOutcome", "", ""},
		{"skip", true, "no mood", "", ""},
		{"panic", false, "panic: on purpose", "", ""},
		{"exit", false, "the test did not run", "", ""},
		{"hang", false, "| panic: test timed out", "-test.timeout=2s", ""},
		// Set by hand, without a namespace of its own.
		{"pass", false, "this is no lab", "", envChild + "=child"},
	}
	for _, test := range tests {
		t.Run(strings.TrimSpace(test.outcome+" "+test.env), func(t *testing.T) {
			out, err := runOutcome(t, strings.Fields(test.args), append(strings.Fields(test.env), "NETLAB_OUTCOME="+test.outcome))
			if ok := err == nil; ok != test.ok || !strings.Contains(out, test.want) {
				if test.ok && strings.Contains(out, "netlab: no lab") {
					t.Skipf("%s", out)
				}
				t.Errorf("%v, want %q:\n%s", err, test.want, out)
			}
		})
	}
}

// runOutcome runs TestOutcome, as a test that is not in a lab.
func runOutcome(t *testing.T, args, env []string) (string, error) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, append([]string{"-test.v", "-test.run=^TestOutcome$"}, args...)...)
	cmd.Env = append(os.Environ(), envChild+"=", envRequire+"=", "GORACE=atexit_sleep_ms=20")
	cmd.Env = append(cmd.Env, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// In a lab one is root and may forbid what a lab is made of.
func TestUnavailable(t *testing.T) {
	Run(t, func(l *Lab) {
		forbid := func(what string) {
			if err := os.WriteFile("/proc/sys/user/max_"+what+"_namespaces", []byte("0"), 0); err != nil {
				t.Skip(err)
			}
		}
		check := func(what string, ok bool, want string, env ...string) {
			t.Helper()
			out, err := runOutcome(t, nil, append(env, "NETLAB_OUTCOME=pass"))
			if (err == nil) != ok || !strings.Contains(out, want) {
				t.Errorf("%s: %v, want %q:\n%s", what, err, want, out)
			}
		}
		check("a lab in a lab", true, "--- PASS")
		forbid("user")
		check("root without user namespaces", true, "--- PASS")
		forbid("net")
		check("no namespaces", true, "--- SKIP")
		check("no namespaces", false, "no user namespaces for this user", envRequire+"=require")
	})
}
