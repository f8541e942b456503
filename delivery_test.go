//go:build !plan9

package mcast

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"example.com/mcast/internal/netif"
)

// The decision what is handed over.

// namesHost knows eth1 and eth2 by name, and one interface that is called "3".
type namesHost struct{ netif.Host }

func (namesHost) Name(index int) (string, error) {
	if name, ok := map[int]string{1: "eth1", 2: "eth2", 3: "3"}[index]; ok {
		return name, nil
	}
	return "", netif.ErrNotFound
}

// TestAdmit goes through all combinations of what a socket was joined to, what
// it is bound to, Config.Unicast, and what a datagram says of itself. What is to
// come of them is written down here once more, in other words.
func TestAdmit(t *testing.T) {
	for _, six := range []bool{false, true} {
		t.Run(fmt.Sprint("IPv6 ", six), func(t *testing.T) { testAdmit(t, six) })
	}
}

func testAdmit(t *testing.T, six bool) {
	addr := func(four, six6 string) netip.Addr {
		if six {
			return netip.MustParseAddr(six6)
		}
		return netip.MustParseAddr(four)
	}
	g, h := addr("239.1.1.1", "ff1e::1"), addr("239.1.1.2", "ff1e::2")
	link := addr("224.0.0.1", "ff02::1")
	here, other := addr("10.0.0.1", "fd00::1"), addr("10.0.0.2", "fd00::2")
	s1, s2 := addr("10.0.0.11", "fd00::11"), addr("10.0.0.12", "fd00::12")
	local := addr("169.254.0.11", "fe80::11")
	var none netip.Addr

	include := func(sources ...netip.Addr) sourceFilter { return newSourceFilter(Include, sources) }
	exclude := func(sources ...netip.Addr) sourceFilter { return newSourceFilter(Exclude, sources) }
	filters := map[string]map[groupIndex]sourceFilter{
		"nothing":                {},
		"g on eth1, any source":  {{g, 1}: exclude()},
		"g on eth1, not s1":      {{g, 1}: exclude(s1)},
		"g on eth1, s1":          {{g, 1}: include(s1)},
		"g on eth1 s1, eth2 s2":  {{g, 1}: include(s1), {g, 2}: include(s2)},
		"g and link":             {{g, 1}: exclude(), {link, 2}: include(local, s1)},
		"g on eth2, many blocks": {{g, 2}: exclude(s1, here, other, local, addr("10.9.9.1", "fd00::91"), addr("10.9.9.2", "fd00::92"))},
	}
	bounds := map[string]Group{
		"wildcard":    {},
		"on g":        {Addr: g},
		"on g%eth1":   {Addr: g, Interface: "eth1"},
		"on another":  {Addr: h},
		"on link%two": {Addr: link, Interface: "eth2"},
	}
	combinations := 0
	for filterName, joined := range filters {
		for boundName, bound := range bounds {
			for _, unicast := range []bool{false, true} {
				for _, counting := range []bool{false, true} {
					var d delivery
					d.init(&Config{Unicast: unicast}, namesHost{}, bound)
					l := &ledger{ipv6: six}
					counts := make(map[groupIndex]*groupCounts)
					for at, f := range joined {
						h := &hearing{sourceFilter: f, ifname: "eth" + strconv.Itoa(at.index)}
						if counting {
							counts[at] = new(groupCounts)
							h.counts = counts[at]
						}
						l.heard.put(at, h)
					}
					for _, dst := range []netip.Addr{none, g, h, link, here, other, addr("255.255.255.255", "::")} {
						for _, index := range []int{0, 1, 2, 3, 4} {
							for _, source := range []netip.Addr{s1, s2, local, here} {
								combinations++
								m := Message{N: 3, Source: netip.AddrPortFrom(source, 4000), Group: Group{Addr: dst, Interface: "from before"}, Index: index}
								var counted tally
								got := d.admit(l, &m, &counted)
								counted.flush()

								f, member := joined[groupIndex{dst, index}]
								want, name := false, ""
								switch {
								case member:
									listed := slices.Contains(f.sources, source)
									want, name = listed && f.mode == Include || !listed && f.mode == Exclude, fmt.Sprint("eth", index)
								case !dst.IsValid(), dst.IsMulticast():
								case unicast && boundName == "wildcard":
									want, name = true, fmt.Sprint(index)
									if index == 1 || index == 2 {
										name = fmt.Sprint("eth", index)
									}
								}
								what := fmt.Sprintf("joined %s, bound %s, Unicast %v: from %v to %v by %d", filterName, boundName, unicast, source, dst, index)
								if got != want {
									t.Fatalf("%s: admitted %v, want %v", what, got, want)
								}
								if c := counts[groupIndex{dst, index}]; c != nil {
									in, out := c.received.Swap(0), c.filtered.Swap(0)
									if in+out != 1 || (in == 1) != want || c.bytes.Swap(0) != 3*in {
										t.Errorf("%s: counted %d in and %d out", what, in, out)
									}
								}
								if !want {
									continue
								}
								if m.Group != (Group{dst, name}) || m.Index != index {
									t.Errorf("%s: came in by %v, %d, want %q", what, m.Group, m.Index, name)
								}
								from := source
								if six && source == local {
									from = local.WithZone(name)
								}
								if m.Source != netip.AddrPortFrom(from, 4000) {
									t.Errorf("%s: comes from %v, want %v", what, m.Source, from)
								}
							}
						}
					}
				}
			}
		}
	}
	if want := len(filters) * len(bounds) * 2 * 2 * 7 * 5 * 4; combinations != want {
		t.Errorf("%d combinations, want %d", combinations, want)
	}
}

// TestSift: what is handed over comes to the front, in order; what is not stays
// behind with its buffer; all are counted, each datagram of a coalesced one.
func TestSift(t *testing.T) {
	g := netip.MustParseAddr("239.1.1.1")
	yes, no := netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:1")
	l := &ledger{}
	l.heard.put(groupIndex{g, 1}, &hearing{sourceFilter: newSourceFilter(Include, []netip.Addr{yes.Addr()}), ifname: "eth1"})
	for bits := range 1 << 6 {
		var d delivery
		d.init(&Config{}, namesHost{}, Group{})
		ms := makeMessages(6, 10)
		var want []byte
		in, out, cut := uint64(0), uint64(0), uint64(0)
		for i := range ms {
			m := &ms[i]
			m.Buf[0], m.N, m.Source, m.Group.Addr, m.Index = byte(i), 9, no, g, 1
			if i%3 == 1 {
				m.segment = 4 // 4, 4 and 1 bytes
			}
			m.Truncated = i%2 == 0
			if bits>>i&1 == 0 {
				out += uint64(m.datagrams())
				continue
			}
			m.Source = yes
			want = append(want, byte(i))
			in += uint64(m.datagrams())
			if m.Truncated {
				cut++
			}
		}
		n := d.deliver(l, ms)
		var got []byte
		seen := make(map[byte]bool)
		for i := range ms {
			if seen[ms[i].Buf[0]] = true; i < n {
				got = append(got, ms[i].Buf[0])
			}
		}
		if !slices.Equal(got, want) || len(seen) != len(ms) {
			t.Errorf("%06b: %v came to the front, want %v; %d buffers", bits, got, want, len(seen))
		}
		if st := d.stats(); st != (Stats{Received: in, Filtered: out, Truncated: cut}) {
			t.Errorf("%06b: %+v, want %d, %d and %d", bits, st, in, out, cut)
		}
	}
}

// TestSiftMixed: datagrams of several groups, interfaces and sources, in any
// order, are each handed over, named and counted as if they had come alone.
func TestSiftMixed(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 3))
	g, h := netip.MustParseAddr("ff1e::1"), netip.MustParseAddr("ff02::2")
	sources := []netip.AddrPort{netip.MustParseAddrPort("[fd00::1]:1"), netip.MustParseAddrPort("[fd00::1]:2"), netip.MustParseAddrPort("[fd00::2]:1"), netip.MustParseAddrPort("[fe80::1]:1")}
	for round := range 2000 {
		counts, l := make(map[groupIndex]*groupCounts), &ledger{ipv6: true}
		for _, at := range []groupIndex{{g, 1}, {g, 2}, {h, 1}, {h, 2}} {
			var some []netip.Addr
			for _, s := range sources {
				if rnd.IntN(2) == 0 {
					some = append(some, s.Addr())
				}
			}
			if rnd.IntN(4) == 0 {
				continue
			}
			hear := &hearing{sourceFilter: newSourceFilter(Mode(rnd.IntN(2)), some), ifname: fmt.Sprint("eth", at.index)}
			if rnd.IntN(3) > 0 {
				counts[at] = new(groupCounts)
				hear.counts = counts[at]
			}
			l.heard.put(at, hear)
		}
		var together, alone delivery
		together.init(&Config{Unicast: rnd.IntN(2) == 0}, namesHost{}, Group{})
		alone.init(&Config{Unicast: together.unicast}, namesHost{}, Group{})
		ms := makeMessages(1+rnd.IntN(12), 2)
		for i := range ms {
			ms[i].Buf[0], ms[i].N = byte(i), 1+rnd.IntN(2)
			ms[i].Source, ms[i].Index = sources[rnd.IntN(len(sources))], 1+rnd.IntN(2)
			ms[i].Group.Addr = []netip.Addr{g, h, netip.MustParseAddr("fd00::9")}[rnd.IntN(3)]
			ms[i].Group.Interface = []string{"eth1", "eth2", "old"}[rnd.IntN(3)] // of what was there before
			if i > 0 && rnd.IntN(2) == 0 {
				buf, n := ms[i].Buf, ms[i].N
				ms[i] = ms[i-1]
				ms[i].Buf, ms[i].N = buf, n
			}
		}
		var want []string
		show := func(m *Message) string {
			return fmt.Sprint(m.Buf[0], m.N, m.Source, m.Group, m.Index)
		}
		type sums struct{ received, bytes, filtered uint64 }
		wantCounts := make(map[groupIndex]sums)
		for _, m := range ms {
			var none tally
			at := groupIndex{m.Group.Addr, m.Index}
			c := wantCounts[at]
			if hear := l.heard.get(at); hear != nil && hear.allows(m.Source.Addr()) {
				c.received++
				c.bytes += uint64(m.N)
			} else if hear != nil {
				c.filtered++
			}
			wantCounts[at] = c
			uncounted := &ledger{ipv6: true}
			if hear := l.heard.get(at); hear != nil {
				uncounted.heard.put(at, &hearing{sourceFilter: hear.sourceFilter, ifname: hear.ifname})
			}
			if alone.admit(uncounted, &m, &none) {
				want = append(want, show(&m))
			}
		}
		var got []string
		n := together.deliver(l, ms)
		for i := range ms[:n] {
			got = append(got, show(&ms[i]))
		}
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d round %d: %q, want %q", seed, round, got, want)
		}
		for at, c := range counts {
			if have := (sums{c.received.Load(), c.bytes.Load(), c.filtered.Load()}); have != wantCounts[at] {
				t.Fatalf("seed %d round %d: %v: counted %+v, want %+v", seed, round, at, have, wantCounts[at])
			}
		}
	}
}

// TestArrived: a datagram that was queued before its socket was told to say so
// says nothing of where it came in, or not the interface.
func TestArrived(t *testing.T) {
	g, h := netip.MustParseAddr("239.1.1.1"), netip.MustParseAddr("10.0.0.1")
	for _, test := range []struct {
		only  *groupIndex
		dst   netip.Addr
		index int
		want  groupIndex
	}{
		{nil, netip.Addr{}, 0, groupIndex{}},
		{nil, g, 0, groupIndex{g, 0}},
		{nil, g, 3, groupIndex{g, 3}},
		{&groupIndex{g, 2}, netip.Addr{}, 0, groupIndex{g, 2}},
		{&groupIndex{g, 2}, g, 0, groupIndex{g, 2}},
		{&groupIndex{g, 2}, g, 3, groupIndex{g, 3}},
		{&groupIndex{g, 2}, h, 0, groupIndex{h, 0}},
		{&groupIndex{g, 2}, h, 3, groupIndex{h, 3}},
	} {
		var o origin
		if test.only != nil {
			o.onlyAddr = test.only.addr
			o.onlyIndex.Store(int32(test.only.index))
		}
		m := Message{Group: Group{Addr: h}, Index: 9}
		o.arrived(&m, test.dst, test.index)
		if got := (groupIndex{m.Group.Addr, m.Index}); got != test.want {
			t.Errorf("only %v: %v, %d came in at %v, want %v", test.only, test.dst, test.index, got, test.want)
		}
	}
}

// A coalescing Conn hands over nothing that the system lets through and the
// filter does not, neither what comes at once nor what comes in the meantime.
// Somebody else has joined groups on its socket.
func TestBehindItsBack(t *testing.T) {
	at := testSite(t)
	if len(at.sources) < 2 {
		t.Skip("this needs two addresses to send from")
	}
	for _, cfg := range []Config{{}, {Coalesce: 20 * time.Millisecond}, {GRO: true, Coalesce: 20 * time.Millisecond}} {
		c, err := Listen(at.network(), ":0", &cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		g, fence, channel, group := at.group(1, 1), at.group(1, 9), at.group(1, 2), Group{asmOf(at, 3), at.ifi.Name}
		if err := errors.Join(c.JoinSource(g, at.sources[0]), c.JoinSource(fence, at.sources[0])); err != nil {
			t.Fatal(err)
		}
		k := &c.ledger.kernel
		behind(t, k, change{op: OpJoinSource, addr: g.Addr, source: at.sources[1], index: at.ifi.Index})
		behind(t, k, change{op: OpJoinSource, addr: channel.Addr, source: at.sources[0], index: at.ifi.Index})
		behind(t, k, change{op: OpJoin, addr: group.Addr, index: at.ifi.Index})
		a, b := at.sender(t, at.sources[0]), at.sender(t, at.sources[1])
		port := c.origin.port
		heard := make(chan []string)
		go func() {
			var all []string
			ms := makeMessages(30, 100)
			c.SetReadDeadline(inTime())
			for !slices.Contains(all, "fence") {
				n, err := c.ReadBatch(ms)
				if err != nil {
					t.Error(err)
					break
				}
				for _, m := range ms[:n] {
					all = append(all, string(m.Buf[:m.N]))
				}
			}
			heard <- all
		}()
		time.Sleep(5 * time.Millisecond) // so that the reader sleeps, and then coalesces
		mustSend(t, a, g, port, "joined")
		for range 3 {
			mustSend(t, b, g, port, "a source that was not joined")
			mustSend(t, a, channel, port, "a channel that was not joined")
			time.Sleep(time.Millisecond)
			mustSend(t, a, group, port, "a group that was not joined")
		}
		mustSend(t, a, g, port, "joined")
		mustSend(t, a, fence, port, "fence")
		if all := soon(t, "the reader", heard); !slices.Equal(all, []string{"joined", "joined", "fence"}) {
			t.Errorf("%+v: heard %q", cfg, all)
		}
		if st := c.Stats(); st.Filtered != 9 || st.Received != 3 {
			t.Errorf("%+v: %+v: the system let something else through than was meant", cfg, st)
		}
	}
}

// A reader that looks again lets others run, and looks at the clock, now and then.
func TestSpinner(t *testing.T) {
	for _, limit := range []time.Duration{1, -1} {
		s := spinner{limit: limit}
		looks, due := 0, 0
		for s.on() && looks < 1000 {
			if looks++; looks == 1 {
				time.Sleep(20 * time.Millisecond) // longer than any system's clock takes to go on
			}
			if s.due() {
				due++
			}
		}
		want := [2]int{16, 1} // the next one is after the limit
		if limit < 0 {
			want = [2]int{1000, 63}
		}
		if got := [2]int{looks, due}; got != want {
			t.Errorf("limit %d: %d looks and times that are due, want %d", limit, got, want)
		}
	}
}
