//go:build !plan9

package mcast

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"example.com/mcast/internal/netif"
)

// BenchmarkSift is what a datagram costs beside being received, with 1,000
// groups: the same one again, or another each time.
func BenchmarkSift(b *testing.B) {
	var f Filter
	gs, source := manyMemberships(b, &f, 1000)
	var l ledger
	for _, g := range gs {
		l.heard.put(groupIndex{g.Addr, 2}, &hearing{sourceFilter: f.state(g).sourceFilter, ifname: "eth0", member: "eth0"})
	}
	var d delivery
	var counted tally
	ms := make([]Message, 1<<12)
	for i := range ms {
		ms[i] = Message{Source: netip.AddrPortFrom(source, 5000), Group: Group{Addr: gs[rand.IntN(len(gs))].Addr}, Index: 2}
	}
	b.Run("same", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if !d.admit(&l, &ms[0], &counted) {
				b.Fatal("not let through")
			}
		}
	})
	b.Run("random", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if !d.admit(&l, &ms[i&(len(ms)-1)], &counted) {
				b.Fatal("not let through")
			}
		}
	})
}

// BenchmarkAllows is the same question to a Filter on its own, by name.
func BenchmarkAllows(b *testing.B) {
	var f Filter
	gs, source := manyMemberships(b, &f, 1000)
	random := make([]Group, 1<<12)
	for i := range random {
		random[i] = gs[rand.IntN(len(gs))]
	}
	b.Run("same", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if !f.Allows(gs[0], source) {
				b.Fatal("not allowed")
			}
		}
	})
	b.Run("random", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if !f.Allows(random[i&(len(random)-1)], source) {
				b.Fatal("not allowed")
			}
		}
	})
	b.Run("unknown", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			g := random[i&(len(random)-1)]
			if g.Interface = "eth1"; f.Allows(g, source) {
				b.Fatal("allowed")
			}
		}
	})
	b.Run("every", func(b *testing.B) { // joined on every interface
		var f Filter
		for _, g := range gs {
			g.Interface = "*"
			if err := f.Apply(Request{OpJoinSource, g, source}); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if !f.Allows(random[i&(len(random)-1)], source) {
				b.Fatal("not allowed")
			}
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for i := rand.IntN(len(random)); pb.Next(); i++ {
				if !f.Allows(random[i&(len(random)-1)], source) {
					b.Fatal("not allowed")
				}
			}
		})
	})
}

func BenchmarkCheck(b *testing.B) {
	var f Filter
	gs, source := manyMemberships(b, &f, 1000)
	b.Run("accepted", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if err := f.Check(Request{Op: OpLeave, Group: gs[i%len(gs)]}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("refused", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if f.Check(Request{Op: OpJoin, Group: gs[i%len(gs)]}) == nil {
				b.Fatal("accepted")
			}
		}
	})
	_ = source
}

// BenchmarkApply joins a channel and leaves it, beside 1,000 others.
func BenchmarkApply(b *testing.B) {
	var f Filter
	_, source := manyMemberships(b, &f, 1000)
	g := Group{netip.MustParseAddr("232.9.9.9"), "eth0"}
	b.ReportAllocs()
	for b.Loop() {
		for _, op := range []Op{OpJoinSource, OpLeaveSource} {
			if err := f.Apply(Request{op, g, source}); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// A deafSocket takes every request and does nothing.
type deafSocket struct{}

func (deafSocket) setsockopt(int, int, []byte) error             { return nil }
func (deafSocket) getsockopt(int, int, []byte) (int, error)      { return 0, nil }
func (deafSocket) ioctl(uint32, []byte, []byte) (n int, e error) { return 0, nil }

// A fixedHost has one interface.
type fixedHost struct{ netif.Host }

func (fixedHost) Index(string) (int, error) { return 2, nil }
func (fixedHost) Name(int) (string, error)  { return "eth0", nil }
func (fixedHost) Namespace() uint64         { return 1 }

// BenchmarkRequests is what a pair of requests costs beside the system calls,
// with 1,000 memberships that are not asked about.
func BenchmarkRequests(b *testing.B) {
	p := linuxPlatform(8, binary.LittleEndian)
	c := new(Conn)
	c.init(p, fixedHost{}, endpoint{}, &Config{NoWatch: true})
	c.ledger = newLedger(p, deafSocket{}, c.host, false)
	c.sockets = &oneSocket{&c.ledger}
	c.events = &events{cfg: c.cfg}
	do := func(b *testing.B, err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	source := netip.MustParseAddr("10.0.0.1")
	var even, odd []netip.Addr
	for i := range 20 {
		a := netip.AddrFrom4([4]byte{10, 0, 1, byte(i)})
		if i%2 == 0 {
			even = append(even, a)
		} else {
			odd = append(odd, a)
		}
	}
	for i := range 1000 {
		do(b, c.JoinSource(Group{netip.AddrFrom4([4]byte{232, 9, byte(i >> 8), byte(i)}), "eth0"}, source))
	}
	g := Group{netip.MustParseAddr("232.1.1.1"), "eth0"}
	b.Run("JoinSource", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			do(b, c.JoinSource(g, source))
			do(b, c.LeaveSource(g, source))
		}
	})
	b.Run("SetFilter", func(b *testing.B) {
		b.ReportAllocs()
		do(b, c.JoinSource(g, source))
		for b.Loop() {
			do(b, c.SetFilter(g, Include, even...))
			do(b, c.SetFilter(g, Include, odd...))
		}
		do(b, c.Leave(g))
	})
	g = Group{netip.MustParseAddr("239.1.1.1"), "eth0"}
	b.Run("Block", func(b *testing.B) {
		b.ReportAllocs()
		do(b, c.Join(g))
		for b.Loop() {
			do(b, c.Block(g, source))
			do(b, c.Unblock(g, source))
		}
		do(b, c.Leave(g))
	})
}
