//go:build !plan9

package mcast_test

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/mcast"
)

// What a message says of its datagram, and what is counted by membership.

// A Channel of a message is a key of what Memberships shows.
func testChannel(t *testing.T, p place) {
	p.needsSenders(t, 1)
	c := p.listen(t, fmt.Sprint(":", p.port(t)), nil)
	groups := []mcast.Group{p.asm(1), p.ssm(1), p.ssm(2)}
	if err := errors.Join(c.Join(groups[0]), c.JoinSource(groups[1], p.source(0)), c.JoinSource(groups[2], p.source(0))); err != nil {
		t.Fatal(err)
	}
	want := make(map[mcast.Channel]bool)
	for _, m := range c.Memberships() {
		want[mcast.Channel{Group: m.Group, Source: p.source(0), Port: localPort(c)}] = true
	}
	from := p.sender(t, p.source(0))
	for _, g := range groups {
		from.send(t, netip.AddrPortFrom(g.Addr, uint16(localPort(c))), g.String())
	}
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	for range groups {
		m := mcast.Message{Buf: make([]byte, 100)}
		if err := c.ReadMessage(&m); err != nil {
			t.Fatal(err)
		}
		ch := m.Channel()
		if !want[ch] || ch.Group.String() != string(m.Buf[:m.N]) {
			t.Errorf("%q is of %v, want one of %v", m.Buf[:m.N], ch, slices.Collect(maps.Keys(want)))
		}
		delete(want, ch)
		if back, err := mcast.ParseChannel(ch.String()); !strings.ContainsAny(p.ifi.Name, "%@]:") && (err != nil || back != ch) {
			t.Errorf("%v is read back as %v, %v", ch, back, err)
		}
		if m.Group.Interface != p.ifi.Name || m.Index != p.ifi.Index {
			t.Errorf("it came in by %q, %d, want %q, %d", m.Group.Interface, m.Index, p.ifi.Name, p.ifi.Index)
		}
	}
}

// A source's zone is the group's interface.
func TestMessageChannel(t *testing.T) {
	m := mcast.Message{
		Group:  mcast.Group{Addr: netip.MustParseAddr("ff02::1234"), Interface: "eth0"},
		Source: netip.MustParseAddrPort("[fe80::1%eth0]:4000"),
		Port:   5000,
	}
	want := mcast.Channel{Group: m.Group, Source: netip.MustParseAddr("fe80::1"), Port: 5000}
	if got := m.Channel(); got != want {
		t.Errorf("%v, want %v", got, want)
	}
	if got := new(mcast.Message).Channel(); got != (mcast.Channel{}) {
		t.Errorf("of the zero Message: %v", got)
	}
}

// Config.HopLimit tells the TTL or hop limit of each datagram, by each way to
// read.
func testHopLimit(t *testing.T, p place) {
	p.needsSenders(t, 1)
	for _, cfg := range []mcast.Config{{}, {HopLimit: true}, {HopLimit: true, Timestamps: true, GRO: true}} {
		c := p.listen(t, fmt.Sprint(":", p.port(t)), &cfg)
		bound := p.listen(t, netip.AddrPortFrom(p.asm(1).Addr, uint16(localPort(c))).String(), &cfg)
		if err := errors.Join(c.Join(p.asm(1)), bound.Join(p.asm(1))); err != nil {
			t.Fatal(err)
		}
		from := p.sender(t, p.source(0))
		to := netip.AddrPortFrom(p.asm(1).Addr, uint16(localPort(c)))
		for _, ttl := range []int{1, 7, 64, 255} {
			if err := from.SetMulticastTTL(ttl); err != nil {
				t.Fatal(err)
			}
			want := 0
			if cfg.HopLimit {
				want = ttl
			}
			for range 3 {
				from.send(t, to, "x")
			}
			for _, c := range []*mcast.Conn{c, bound} {
				c.SetReadDeadline(time.Now().Add(10 * time.Second))
				m := mcast.Message{Buf: make([]byte, 10), HopLimit: 99}
				if err := c.ReadMessage(&m); err != nil || m.HopLimit != want {
					t.Errorf("%+v: ReadMessage: hop limit %d, %v, want %d", cfg, m.HopLimit, err, want)
				}
				ms := []mcast.Message{{Buf: make([]byte, 10), HopLimit: 99}}
				if n, err := c.ReadBatch(ms); n != 1 || ms[0].HopLimit != want {
					t.Errorf("%+v: ReadBatch: hop limit %d, %v, want %d", cfg, ms[0].HopLimit, err, want)
				}
				ds := []mcast.Datagram{{HopLimit: 99}}
				if n, err := c.ReadSlab(make([]byte, 1<<16), ds); n != 1 || ds[0].HopLimit != want || ds[0].Index != p.ifi.Index || ds[0].Group != p.asm(1) {
					t.Errorf("%+v: ReadSlab: %+v, %v, want %d", cfg, ds[0], err, want)
				}
			}
		}
	}
}

func testGroupStats(t *testing.T, p place) {
	c := p.listen(t, ":0", nil)
	if err := c.Join(p.asm(1)); err != nil {
		t.Fatal(err)
	}
	for g := range c.GroupStats() {
		t.Errorf("%v is counted, which was not asked for", g)
	}
	for _, gro := range []bool{false, true} {
		s := p.scene(t, p.listen(t, fmt.Sprint(":", p.port(t)), &mcast.Config{GroupStats: true, GRO: gro}), true)
		g, h := p.asm(1), p.ssm(1)
		if err := errors.Join(s.c.Join(g), s.c.Block(g, p.source(1)), s.c.JoinSource(h, p.source(0))); err != nil {
			t.Fatal(err)
		}
		// As Memberships lists them; what was never heard has no Last.
		var groups []mcast.Group
		for g, st := range s.c.GroupStats() {
			groups = append(groups, g)
			if st != (mcast.GroupStats{}) {
				t.Errorf("%v: %+v at first", g, st)
			}
		}
		var want []mcast.Group
		for _, m := range s.c.Memberships() {
			want = append(want, m.Group)
		}
		if !slices.Equal(groups, want) {
			t.Errorf("counts of %v, want %v", groups, want)
		}
		for range s.c.GroupStats() {
			break
		}
		if p.silent != "" {
			continue
		}
		before := time.Now()
		expected := make(map[string]arrival)
		var bytes uint64
		for i := range 6 {
			for _, g := range []mcast.Group{g, h} {
				s.send(s.senders[0], g, true, expected)
				if g == h {
					bytes += uint64(len(fmt.Sprintf("%d: %v@%v", s.sent, s.senders[0].from, g)))
				}
			}
			if i == 2 {
				s.receive(expected)
			}
		}
		s.send(s.senders[0], s.fence, true, expected)
		s.receive(expected)
		// What was there before a source was turned off is filtered here.
		queue := s.witness(g)
		queue(s.senders[0], "queued")
		queue(s.senders[0], "queued")
		if err := s.c.Block(g, p.source(0)); err != nil {
			t.Fatal(err)
		}
		s.send(s.senders[0], s.fence, true, expected)
		s.receive(expected)
		all := maps.Collect(s.c.GroupStats())
		if st := all[g]; st.Received != 6 || st.Filtered != 2 || st.Dropped != 0 {
			t.Errorf("%v: %+v, want 6 received, 2 filtered", g, st)
		}
		if st := all[h]; st.Received != 6 || st.Bytes != bytes || st.Filtered != 0 || st.Last.Before(before.Add(-time.Second)) || st.Last.After(time.Now().Add(time.Second)) {
			t.Errorf("%v: %+v, want 6 received, %d bytes", h, st, bytes)
		}
		if st := all[s.fence]; st.Received != 2 {
			t.Errorf("the fence: %+v", st)
		}
		// They begin anew with a new membership, and not with a new filter.
		if err := errors.Join(s.c.SetFilter(g, mcast.Exclude), s.c.Leave(h), s.c.JoinSource(h, p.source(0))); err != nil {
			t.Fatal(err)
		}
		all = maps.Collect(s.c.GroupStats())
		if all[g].Received != 6 || all[h] != (mcast.GroupStats{}) {
			t.Errorf("%+v after other requests", all)
		}
		if err := s.c.Leave(g); err != nil {
			t.Fatal(err)
		}
		if all = maps.Collect(s.c.GroupStats()); len(all) != 2 {
			t.Errorf("%+v after a leave", all)
		}
		s.c.Close()
		for g := range s.c.GroupStats() {
			t.Errorf("%v is counted after Close", g)
		}
	}
}
