//go:build !plan9

package mcast

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"testing"
	"time"
)

// notEmulated skips a test that needs more of the system than an emulator has.
func notEmulated(t testing.TB) {
	t.Helper()
	if by := os.Getenv("MCAST_EMULATED"); by != "" {
		t.Skip(by + " knows neither interfaces nor IP_MULTICAST_IF")
	}
}

// A site is an interface of this machine, and addresses of it that datagrams to
// groups can be sent from.
type site struct {
	six     bool
	ifi     *net.Interface
	sources []netip.Addr
}

// testSite is the loopback interface with IPv4, or the one that the environment
// names.
func testSite(t testing.TB) site {
	t.Helper()
	notEmulated(t)
	if name := os.Getenv("MCAST_TEST_IFACE"); name != "" {
		ifi, err := net.InterfaceByName(name)
		if err != nil {
			t.Fatal(err)
		}
		s := site{ifi: ifi, sources: []netip.Addr{netip.MustParseAddr(os.Getenv("MCAST_TEST_IPV4_A")), netip.MustParseAddr(os.Getenv("MCAST_TEST_IPV4_B"))}}
		if os.Getenv("MCAST_TEST_WINE") != "" {
			s.sources = s.sources[:1] // Wine sends from the first address of an interface, whatever is bound
		}
		return s
	}
	ifis, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, ifi := range ifis {
		if ifi.Flags&net.FlagLoopback == 0 || ifi.Flags&net.FlagUp == 0 {
			continue
		}
		s := site{ifi: &ifi}
		for _, a := range []string{"127.0.0.1", "127.0.0.2"} {
			if c, err := net.ListenPacket("udp4", a+":0"); err == nil {
				c.Close()
				s.sources = append(s.sources, netip.MustParseAddr(a))
			}
		}
		if len(s.sources) > 0 {
			return s
		}
	}
	t.Skip("there is no loopback interface that is up")
	return site{}
}

func (s site) network() string { return endpoint{ipv6: s.six}.network() }

// group is a source-specific group, one of 256 × 256.
func (s site) group(i, j int) Group {
	a := netip.AddrFrom4([4]byte{232, 7, byte(i), byte(j)})
	if s.six {
		a = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x3e, 12: 0x80, 13: 7, 14: byte(i), 15: byte(j)})
	}
	return Group{a, s.ifi.Name}
}

// far is a source that nobody has.
func (s site) far(n int) netip.Addr {
	if s.six {
		return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 15: byte(n)}) // RFC 3849
	}
	return netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}) // RFC 5737
}

// sender opens a socket to send from an address to groups on the interface.
func (s site) sender(t testing.TB, from netip.Addr) *Conn {
	t.Helper()
	c, err := Listen(s.network(), netip.AddrPortFrom(from, 0).String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetMulticastInterface(s.ifi.Name); err != nil {
		t.Fatal(err)
	}
	return c
}

// port finds a port that nobody listens on, below those that systems give to
// sockets without one: such a socket must not take it before the test does.
func (s site) port(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 20000 + rand.IntN(10000)
		if c, err := net.ListenPacket(s.network(), fmt.Sprintf(":%d", port)); err == nil {
			c.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

// pool opens a Pool on a port.
func (s site) pool(t testing.TB, cfg *Config) (*Pool, int) {
	t.Helper()
	port := s.port(t)
	p, err := ListenPool(s.network(), fmt.Sprintf(":%d", port), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p, port
}

func mustSend(t testing.TB, from *Conn, g Group, port int, payload string) {
	t.Helper()
	if _, err := from.WriteToUDPAddrPort([]byte(payload), netip.AddrPortFrom(g.Addr, uint16(port))); err != nil {
		t.Fatal(err)
	}
}

// makeMessages makes messages with room.
func makeMessages(n, room int) []Message {
	ms := make([]Message, n)
	for i := range ms {
		ms[i].Buf = make([]byte, room)
	}
	return ms
}

// inTime is when a test gives up: no test waits that long, unless it fails.
func inTime() time.Time { return time.Now().Add(time.Minute) }

// raceEnabled reports whether the race detector is built in, which allocates.
func raceEnabled() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}
