//go:build !plan9

package mcast

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// A filterOracle is a filter as slow and obvious as can be.
type filterOracle map[Group]*filterOracleState

type filterOracleState struct {
	mode    Mode
	sources map[netip.Addr]bool
}

// excluded reports whether the group has memberships that exclude one on that
// interface: "*" beside others, or others beside "*".
func (o filterOracle) excluded(g Group) bool {
	for h := range o {
		if h.Addr == g.Addr && (h.Interface == "*") != (g.Interface == "*") {
			return true
		}
	}
	return false
}

// apply gives the sentinel of a refusal.
func (o filterOracle) apply(r Request) error {
	s := o[r.Group]
	switch {
	case r.Group.Addr.Is4() != r.Source.Is4() && r.Op != OpJoin && r.Op != OpLeave:
		return ErrAddress
	case o.excluded(r.Group):
		return ErrInterface
	case s == nil && r.Op == OpJoin:
		o[r.Group] = &filterOracleState{Exclude, map[netip.Addr]bool{}}
	case s == nil && r.Op == OpJoinSource:
		o[r.Group] = &filterOracleState{Include, map[netip.Addr]bool{r.Source: true}}
	case s == nil:
		return ErrNotJoined
	case r.Op == OpLeave:
		delete(o, r.Group)
	case s.mode == Exclude:
		switch on := s.sources[r.Source]; {
		case r.Op == OpJoin:
			return ErrJoined
		case r.Op == OpJoinSource || r.Op == OpLeaveSource:
			return ErrMode
		case r.Op == OpBlock && on:
			return ErrBlocked
		case r.Op == OpUnblock && !on:
			return ErrNotBlocked
		case r.Op == OpBlock:
			s.sources[r.Source] = true
		default:
			delete(s.sources, r.Source)
		}
	default:
		switch on := s.sources[r.Source]; {
		case r.Op == OpJoin || r.Op == OpBlock || r.Op == OpUnblock:
			return ErrMode
		case r.Op == OpJoinSource && on:
			return ErrJoined
		case r.Op == OpLeaveSource && !on:
			return ErrNotJoined
		case r.Op == OpJoinSource:
			s.sources[r.Source] = true
		default:
			delete(s.sources, r.Source)
			if len(s.sources) == 0 {
				delete(o, r.Group)
			}
		}
	}
	return nil
}

func (o filterOracle) set(m Membership) error {
	s := &filterOracleState{m.Mode, map[netip.Addr]bool{}}
	for _, source := range m.Sources {
		if source.Is4() != m.Group.Addr.Is4() {
			return ErrAddress
		}
		s.sources[source] = true
	}
	if o.excluded(m.Group) {
		return ErrInterface
	}
	if o[m.Group] = s; m.Mode == Include && len(s.sources) == 0 {
		delete(o, m.Group)
	}
	return nil
}

func (o filterOracle) allows(g Group, source netip.Addr) bool {
	s := o[g]
	if s == nil {
		s = o[Group{g.Addr, "*"}]
	}
	return s != nil && s.sources[source] == (s.mode == Include)
}

func (o filterOracle) membership(g Group) (Membership, bool) {
	m := Membership{Group: g}
	s := o[g]
	if s != nil {
		m.Mode = s.mode
		for source := range s.sources {
			m.Sources = append(m.Sources, source)
		}
		slices.SortFunc(m.Sources, netip.Addr.Compare)
	}
	return m, s != nil
}

func (o filterOracle) memberships() []Membership {
	ms := make([]Membership, 0, len(o))
	for g := range o {
		m, _ := o.membership(g)
		ms = append(ms, m)
	}
	slices.SortFunc(ms, func(a, b Membership) int {
		if c := a.Group.Addr.Compare(b.Group.Addr); c != 0 {
			return c
		}
		return strings.Compare(a.Group.Interface, b.Group.Interface)
	})
	return ms
}

// An interface that no request is about.
const elsewhere = "wlan0"

// What the requests of twins are about.
var (
	twinGroups, twinSources = func() (gs []Group, ss []netip.Addr) {
		for _, a := range []string{"232.1.1.1", "239.255.0.1", "ff3e::8000:1", "ff02::1234"} {
			for _, ifname := range []string{"", "eth0", "eth1", "*"} {
				gs = append(gs, Group{netip.MustParseAddr(a), ifname})
			}
		}
		for _, a := range []string{"10.0.0.1", "10.0.0.2", "192.0.2.1", "1.1.1.1", "2001:db8::1", "2001:db8::2", "fe80::1", "::1"} {
			ss = append(ss, netip.MustParseAddr(a))
		}
		return gs, ss
	}()

	// Where datagrams come in.
	twinPlaces = func() []Group {
		gs := slices.Clone(twinGroups)
		for _, g := range twinGroups {
			if g.Interface == "*" {
				gs = append(gs, Group{g.Addr, elsewhere})
			}
		}
		return gs
	}()
)

// twins are a Filter and a filterOracle that get the same requests.
type twins struct {
	f     Filter
	o     filterOracle
	steps []string
	from  string // what makes the same steps again
}

func (w *twins) fatalf(t *testing.T, g Group, format string, args ...any) {
	t.Helper()
	var last []string
	a := g.Addr.String()
	for i, s := range slices.Backward(w.steps) {
		if strings.Contains(s, " "+a+" ") || strings.Contains(s, " "+a+"%") { // "*" concerns the others
			if last = append(last, fmt.Sprintf("%d: %s", i, s)); len(last) == 40 {
				break
			}
		}
	}
	slices.Reverse(last)
	t.Fatalf("%s: step %d: %s\nlast steps of %s:\n  %s", w.from, len(w.steps)-1, fmt.Sprintf(format, args...), a, strings.Join(last, "\n  "))
}

// step makes one request of both, or sets the filter if set is true, and
// compares everything. The Filter gets addresses mapped or with a zone if odd.
func (w *twins) step(t *testing.T, r Request, set bool, m Membership, odd bool) {
	t.Helper()
	if w.o == nil {
		w.o = filterOracle{}
	}
	var got, want error
	g := r.Group
	if set {
		g = m.Group
		w.steps = append(w.steps, fmt.Sprintf("Set %v %v%v", m.Group, m.Mode, m.Sources))
		want = w.o.set(m)
		if odd {
			m.Group.Addr, m.Sources = mapped(m.Group.Addr), slices.Clone(m.Sources)
			for i, s := range m.Sources {
				m.Sources[i] = mapped(s)
			}
		}
		got = w.f.Set(m)
	} else {
		w.steps = append(w.steps, fmt.Sprintf("%v %v %v", r.Op, r.Group, r.Source))
		want = w.o.apply(r)
		if odd {
			r.Group.Addr, r.Source = mapped(r.Group.Addr), mapped(r.Source)
			if r.Source.Is6() && !r.Source.Is4In6() {
				r.Source = r.Source.WithZone("eth0")
			}
		}
		check := w.f.Check(r)
		if got = w.f.Apply(r); (got == nil) != (check == nil) {
			w.fatalf(t, g, "Check: %v, but Apply: %v", check, got)
		}
	}
	if !errors.Is(got, want) || (got == nil) != (want == nil) {
		w.fatalf(t, g, "%s: got %v, want %v", w.steps[len(w.steps)-1], got, want)
	}
	if len(matching(got, outOfOrder, cannotBe)) > 1 {
		w.fatalf(t, g, "%v matches several errors", got)
	}
	for _, g := range twinPlaces {
		for _, s := range twinSources {
			if s.Is4() != g.Addr.Is4() {
				continue
			}
			if got, want := w.f.Allows(g, s), w.o.allows(g, s); got != want {
				w.fatalf(t, g, "Allows(%v, %v) = %v, want %v", g, s, got, want)
			}
		}
	}
	got1, ok1 := w.f.Membership(g)
	want1, ok2 := w.o.membership(g)
	if ok1 != ok2 || got1.String() != want1.String() {
		w.fatalf(t, g, "Membership(%v) = %v, %v, want %v, %v", g, got1, ok1, want1, ok2)
	}
	if len(w.steps)%64 == 0 {
		w.compareAll(t, g)
	}
}

func (w *twins) compareAll(t *testing.T, g Group) {
	t.Helper()
	got, want := w.f.Memberships(), w.o.memberships()
	if fmt.Sprint(got) != fmt.Sprint(want) || w.f.len() != len(want) {
		w.fatalf(t, g, "%d Memberships:\n %v, want\n %v", w.f.len(), got, want)
	}
	addrs := map[netip.Addr]bool{}
	for _, m := range want {
		addrs[m.Group.Addr] = true
	}
	for _, a := range w.f.addrs() {
		if !addrs[a] {
			w.fatalf(t, g, "addrs has %v twice, or without a membership", a)
		}
		delete(addrs, a)
	}
	if len(addrs) > 0 {
		w.fatalf(t, g, "addrs does not have %v", addrs)
	}
	for _, g := range twinGroups {
		var want []string
		for _, h := range twinGroups {
			if h.Addr == g.Addr && w.o[h] != nil {
				want = append(want, h.Interface)
			}
		}
		slices.Sort(want)
		if got := interfacesOf(w.f.states(g.Addr)); !slices.Equal(got, want) {
			w.fatalf(t, g, "%v is joined on interfaces %v, want %v", g.Addr, got, want)
		}
	}
}

func TestFilterRandom(t *testing.T) {
	seeds, steps := 8, 15_000
	if testing.Short() {
		steps = 3_000
	}
	for seed := range uint64(seeds) {
		rng := rand.New(rand.NewPCG(seed, 2))
		w := twins{from: fmt.Sprintf("seed %d", seed)}
		source := func(g Group) netip.Addr {
			i := rng.IntN(4)
			if g.Addr.Is6() != (rng.IntN(100) == 0) { // now and then of the other family
				i += 4
			}
			return twinSources[i]
		}
		for range steps {
			g := twinGroups[rng.IntN(len(twinGroups))]
			odd := rng.IntN(8) == 0
			if rng.IntN(20) == 0 {
				m := Membership{Group: g, Mode: Mode(rng.IntN(2))}
				for range rng.IntN(5) {
					m.Sources = append(m.Sources, source(g))
				}
				w.step(t, Request{}, true, m, odd)
				continue
			}
			w.step(t, Request{Op(rng.IntN(numOps)), g, source(g)}, false, Membership{}, odd)
		}
		w.compareAll(t, Group{})
	}
}

// TestFilterRandomMany has more groups and sources than the tables of a filter
// start with.
func TestFilterRandomMany(t *testing.T) {
	const steps = 10_000
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 3))
		var f Filter
		o := filterOracle{}
		for step := range steps {
			// Grow, and after half of the steps shrink.
			g := Group{netip.AddrFrom4([4]byte{232, 0, 0, byte(rng.IntN(100))}), []string{"eth0", "eth1", "eth2"}[rng.IntN(3)]}
			if g.Addr.As4()[3] < 10 {
				g.Interface = "*"
			}
			r := Request{Op(rng.IntN(numOps)), g, netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + rng.IntN(50))})}
			if r.Op == OpLeave && step < steps/2 && rng.IntN(8) > 0 {
				r.Op = OpJoinSource
			}
			if got, want := f.Apply(r), o.apply(r); !errors.Is(got, want) {
				t.Fatalf("seed %d, step %d: %v: got %v, want %v", seed, step, r, got, want)
			}
			for i := range 50 {
				s := netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + i)})
				for _, g := range []Group{g, {g.Addr, elsewhere}} {
					if got, want := f.Allows(g, s), o.allows(g, s); got != want {
						t.Fatalf("seed %d, step %d: after %v: Allows(%v, %v) = %v", seed, step, r, g, s, got)
					}
				}
			}
			if step%1000 == 0 {
				if got, want := fmt.Sprint(f.Memberships()), fmt.Sprint(o.memberships()); got != want {
					t.Fatalf("seed %d, step %d: got\n%s, want\n%s", seed, step, got, want)
				}
			}
		}
	}
}

// FuzzFilter reads its input two bytes at a time: the group and the request,
// and the source, or the mode and the sources for Set.
func FuzzFilter(f *testing.F) {
	const join, joinSource, block, unblock, leave, leaveSource, set, setOdd = 0, 1, 2, 3, 4, 5, 6, 7
	f.Add([]byte{join, 0, block, 1, block, 2, unblock, 1, unblock, 2, leave, 0})
	f.Add([]byte{joinSource, 0, joinSource, 1, leaveSource, 0, leaveSource, 1, joinSource, 0})
	f.Add([]byte{set, 0x83, unblock, 0, unblock, 1, setOdd, 0x03, leaveSource, 0, leaveSource, 1, set, 0})
	f.Add([]byte{8*8 + joinSource, 4, 8*9 + joinSource, 4, 8*8 + leaveSource, 4})
	f.Add([]byte{8*3 + join, 0, 8*1 + join, 0, 8*3 + leave, 0, 8*1 + join, 0, 8*3 + set, 0x81, 8*1 + leave, 0, 8*3 + joinSource, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		w := twins{from: fmt.Sprintf("%x", data)}
		data = data[:min(len(data), 512)]
		for ; len(data) >= 2; data = data[2:] {
			g, what, arg := twinGroups[int(data[0]>>3)%len(twinGroups)], data[0]&7, data[1]
			of := twinSources[:4]
			if g.Addr.Is6() {
				of = twinSources[4:]
			}
			if what < numOps {
				source := of[arg&3]
				if arg&0x40 != 0 {
					source = twinSources[arg&7]
				}
				w.step(t, Request{Op(what), g, source}, false, Membership{}, arg&0x80 != 0)
				continue
			}
			m := Membership{Group: g, Mode: Mode(arg >> 7)}
			for i, s := range of {
				if arg>>i&1 != 0 {
					m.Sources = append(m.Sources, s)
				}
			}
			if arg&0x10 != 0 {
				m.Sources = append(m.Sources, m.Sources...)
			}
			w.step(t, Request{}, true, m, what == setOdd)
		}
		w.compareAll(t, Group{})
	})
}

// manyMemberships fills a filter with n groups, half of them of each mode, and
// gives pairs that it allows and some that it does not.
func manyMemberships(tb testing.TB, f *Filter, n int) (gs []Group, source netip.Addr) {
	tb.Helper()
	source = netip.MustParseAddr("10.0.0.1")
	for i := range n {
		g := Group{netip.AddrFrom4([4]byte{232, 1, byte(i >> 8), byte(i)}), "eth0"}
		gs = append(gs, g)
		r := Request{OpJoinSource, g, source}
		if i%2 == 1 {
			r = Request{Op: OpJoin, Group: g}
		}
		if err := f.Apply(r); err != nil {
			tb.Fatal(err)
		}
	}
	return gs, source
}

func TestNoAllocs(t *testing.T) {
	var f Filter
	gs, source := manyMemberships(t, &f, 1000)
	six, everywhere := Group{netip.MustParseAddr("ff3e::8000:1"), "eth0"}, Group{netip.MustParseAddr("224.0.0.251"), "*"}
	for _, g := range []Group{six, everywhere} {
		if err := f.Apply(Request{Op: OpJoin, Group: g}); err != nil {
			t.Fatal(err)
		}
	}
	zoned := netip.MustParseAddr("fe80::1%eth0")
	i := 0
	if n := testing.AllocsPerRun(5000, func() {
		if !f.Allows(gs[i%len(gs)], source) || f.Allows(Group{gs[0].Addr, "eth1"}, source) || !f.Allows(six, zoned) || !f.Allows(Group{mapped(gs[0].Addr), "eth0"}, mapped(source)) {
			t.Error("wrong answer")
		}
		if !f.Allows(Group{everywhere.Addr, "eth7"}, source) {
			t.Error("wrong answer on an interface of *")
		}
		i++
	}); n != 0 {
		t.Errorf("Allows allocates %v times", n)
	}
}

// TestAllowsConcurrently: what is joined all along is never seen as not
// allowed, and what never was is never seen as allowed, whatever else goes on.
func TestAllowsConcurrently(t *testing.T) {
	var f Filter
	ssm, asm := Group{netip.MustParseAddr("232.1.1.1"), "eth0"}, Group{netip.MustParseAddr("239.1.1.1"), "eth0"}
	good, bad := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	must := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	must(f.Apply(Request{OpJoinSource, ssm, good}))
	must(f.Apply(Request{Op: OpJoin, Group: asm}))
	must(f.Apply(Request{OpBlock, asm, bad}))
	everywhere := netip.MustParseAddr("224.0.0.251")
	must(f.Set(Membership{Group: Group{everywhere, "*"}, Mode: Exclude, Sources: []netip.Addr{bad}}))

	var done atomic.Bool
	var readers sync.WaitGroup
	started := make(chan struct{}, 4)
	for range cap(started) {
		readers.Go(func() {
			for first := true; !done.Load() || first; first = false {
				for _, g := range []Group{ssm, asm} {
					if !f.Allows(g, good) {
						t.Errorf("Allows(%v, %v) became false", g, good)
						return
					}
					if f.Allows(g, bad) || f.Allows(Group{g.Addr, "eth1"}, good) {
						t.Errorf("Allows(%v, %v) became true", g, bad)
						return
					}
				}
				if g := (Group{everywhere, "eth5"}); !f.Allows(g, good) || f.Allows(g, bad) {
					t.Errorf("Allows(%v) became another, or in between", g)
					return
				}
				if first {
					started <- struct{}{}
				}
				runtime.Gosched()
			}
		})
	}
	for range cap(started) {
		<-started
	}
	for round := range 40 {
		for i := range 100 {
			s := netip.AddrFrom4([4]byte{10, 0, 1, byte(i)})
			must(f.Apply(Request{OpJoinSource, ssm, s}))
			must(f.Apply(Request{OpBlock, asm, s}))
			must(f.Apply(Request{OpJoin, Group{netip.AddrFrom4([4]byte{239, 2, byte(round), byte(i)}), "eth0"}, s}))
			must(f.Apply(Request{OpJoin, Group{netip.AddrFrom4([4]byte{239, 3, byte(round), byte(i)}), "*"}, s}))
			must(f.Apply(Request{OpBlock, Group{everywhere, "*"}, s}))
		}
		for i := range 100 {
			s := netip.AddrFrom4([4]byte{10, 0, 1, byte(i)})
			must(f.Apply(Request{OpLeaveSource, ssm, s}))
			must(f.Apply(Request{OpUnblock, asm, s}))
			must(f.Apply(Request{OpLeave, Group{netip.AddrFrom4([4]byte{239, 2, byte(round), byte(i)}), "eth0"}, s}))
			must(f.Apply(Request{OpLeave, Group{netip.AddrFrom4([4]byte{239, 3, byte(round), byte(i)}), "*"}, s}))
			must(f.Apply(Request{OpUnblock, Group{everywhere, "*"}, s}))
		}
		// Refusals, and replacing the whole filter, a mode at a time.
		if f.Apply(Request{OpJoinSource, ssm, good}) == nil || f.Apply(Request{OpBlock, asm, bad}) == nil {
			t.Error("accepted what is there already")
		}
		must(f.Set(Membership{Group: ssm, Mode: Exclude, Sources: []netip.Addr{bad}}))
		must(f.Set(Membership{Group: asm, Mode: Include, Sources: []netip.Addr{good}}))
		must(f.Set(Membership{Group: ssm, Mode: Include, Sources: []netip.Addr{good}}))
		must(f.Set(Membership{Group: asm, Mode: Exclude, Sources: []netip.Addr{bad}}))
	}
	done.Store(true)
	readers.Wait()
}

// TestFilterConcurrentRequests: of many that ask for the same, one gets it.
func TestFilterConcurrentRequests(t *testing.T) {
	var f Filter
	g, s := Group{netip.MustParseAddr("232.1.1.1"), "eth0"}, netip.MustParseAddr("10.0.0.1")
	var won [numOps]atomic.Int32
	for _, op := range []Op{OpJoinSource, OpLeaveSource, OpJoin, OpBlock, OpUnblock, OpLeave} {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if f.Apply(Request{op, g, s}) == nil {
					won[op].Add(1)
				}
				f.Memberships()
				f.Membership(g)
			})
		}
		wg.Wait()
		if n := won[op].Load(); n != 1 {
			t.Errorf("%d of 8 %vs were accepted, want 1", n, op)
		}
	}
}
