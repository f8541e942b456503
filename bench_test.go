//go:build !plan9

package mcast

import (
	"math/rand/v2"
	"net/netip"
	"testing"
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
