//go:build linux

package mcast

import (
	"net/netip"
	"testing"

	"example.com/mcast/internal/netlab"
)

// TestLabPool runs the tests of a Pool on a real interface, with IPv6 too, which
// loopback interfaces seldom route groups by.
func TestLabPool(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		l.Veth(l.Local(), "eth0", l.Host("peer"), "eth0")
		sources := map[bool][]netip.Addr{
			false: {netip.MustParseAddr("10.88.0.1"), netip.MustParseAddr("10.88.0.2")},
			true:  {netip.MustParseAddr("fd88::1"), netip.MustParseAddr("fd88::2")},
		}
		for _, six := range []bool{false, true} {
			l.Run(endpoint{ipv6: six}.network(), func(t *testing.T) {
				if six && !l.Local().HasIPv6() {
					t.Skip("this kernel has no IPv6")
				}
				for _, a := range sources[six] {
					l.Local().AddAddr("eth0", netip.PrefixFrom(a, map[bool]int{false: 24, true: 64}[six]).String())
				}
				at := site{six: six, ifi: l.Local().Interface("eth0"), sources: sources[six]}
				for _, w := range poolWays {
					t.Run(w.name, func(t *testing.T) { w.runAll(t, at) })
				}
				for i := range 3 {
					if n := l.Local().Users("eth0", at.group(1, i).Addr); n != 0 {
						t.Errorf("%d users of %v are left", n, at.group(1, i))
					}
				}
			})
		}
	})
}
