package mcast

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"example.com/mcast/internal/netif"
)

// A batch is counted by runs of one membership. Whatever the order of the
// datagrams, the counts are those of each by itself.
func TestSiftCounts(t *testing.T) {
	source := netip.MustParseAddr("10.0.0.1")
	blocked := netip.MustParseAddr("10.0.0.2")
	groups := []netip.Addr{netip.MustParseAddr("239.1.1.1"), netip.MustParseAddr("239.1.1.2"), netip.MustParseAddr("239.1.1.3")}
	unicast, strange := netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("239.9.9.9")
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		var l ledger
		counts := make(map[netip.Addr]*groupCounts)
		for i, g := range groups {
			h := &hearing{sourceFilter: sourceFilter{Exclude, []netip.Addr{blocked}}, ifname: "eth0"}
			if i < 2 { // one is not counted
				h.counts = new(groupCounts)
				counts[g] = h.counts
			}
			l.heard.put(groupIndex{g, 1}, h)
		}
		d := delivery{unicast: true}
		d.names.host = noHost{}
		type want struct{ received, bytes, filtered uint64 }
		wants := make(map[netip.Addr]want)
		var in, out int
		var kept []int // the N of each, in order
		ms := make([]Message, 1+r.IntN(40))
		for i := range ms {
			m := &ms[i]
			m.N, m.Index = 1+i, 1
			m.Group.Addr = append(groups, unicast, strange)[r.IntN(5)]
			if i > 0 && r.IntN(2) == 0 {
				m.Group.Addr = ms[i-1].Group.Addr
			}
			from := source
			if r.IntN(4) == 0 {
				from = blocked
			}
			m.Source = netip.AddrPortFrom(from, 5000)
			w := wants[m.Group.Addr]
			switch {
			case m.Group.Addr == unicast || m.Group.Addr.IsMulticast() && m.Group.Addr != strange && from == source:
				in++
				kept = append(kept, m.N)
				w.received, w.bytes = w.received+1, w.bytes+uint64(m.N)
			default:
				out++
				w.filtered++
			}
			wants[m.Group.Addr] = w
		}
		n := d.deliver(&l, ms)
		if s := d.stats(); n != in || s.Received != uint64(in) || s.Filtered != uint64(out) {
			t.Fatalf("seed %d: %d handed over, %+v, want %d and %d", seed, n, s, in, out)
		}
		for i, m := range ms[:n] {
			ifname := "eth0"
			if m.Group.Addr == unicast {
				ifname = "1"
			}
			if m.N != kept[i] || m.Group.Interface != ifname {
				t.Fatalf("seed %d: the %d. is %d by %q, want %d by %q", seed, i, m.N, m.Group.Interface, kept[i], ifname)
			}
		}
		for g, c := range counts {
			s, w := c.stats(), wants[g]
			if s.Received != w.received || s.Bytes != w.bytes || s.Filtered != w.filtered || s.Last.IsZero() != (w.received == 0) {
				t.Fatalf("seed %d: %v: %+v, want %+v", seed, g, s, w)
			}
		}
	}
}

// noHost has no interfaces.
type noHost struct{ netif.Host }

func (noHost) Name(int) (string, error) { return "", netif.ErrNotFound }
