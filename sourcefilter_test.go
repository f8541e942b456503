package mcast

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// A sourceSet is a filter as slow and obvious as can be: which of some sources
// it lets through, and whether it does so with all others.
type sourceSet struct {
	allowed map[netip.Addr]bool
	others  bool
}

// someSources are all that a sourceSet tells apart, in both families.
var someSources = func() (ss []netip.Addr) {
	for i := range 9 {
		ss = append(ss, netip.AddrFrom4([4]byte{10, 0, byte(i % 2), byte(i + 1)}))
	}
	return append(ss, netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("fe80::1"), netip.MustParseAddr("::1"))
}()

func newSourceSet(mode Mode, sources []netip.Addr) sourceSet {
	set := sourceSet{map[netip.Addr]bool{}, mode == Exclude}
	for _, s := range someSources {
		set.allowed[s] = slices.Contains(sources, s) == (mode == Include)
	}
	return set
}

// check compares a filter with a set, and its form with what it must be:
// sorted, each source once.
func (set sourceSet) check(t *testing.T, at string, f sourceFilter) {
	t.Helper()
	if set.others != (f.mode == Exclude) {
		t.Fatalf("%s: %v, want others allowed: %v", at, f, set.others)
	}
	if !slices.IsSortedFunc(f.sources, netip.Addr.Compare) || len(slices.Compact(slices.Clone(f.sources))) != len(f.sources) {
		t.Fatalf("%s: %v is not sorted, or has a source twice", at, f)
	}
	var listed []netip.Addr
	for _, s := range someSources {
		if set.allowed[s] != set.others {
			listed = append(listed, s)
		}
		if f.allows(s) != set.allowed[s] || f.has(s) != (set.allowed[s] != set.others) {
			t.Fatalf("%s: %v allows %v: %v, lists it: %v, want %v", at, f, s, f.allows(s), f.has(s), set.allowed[s])
		}
	}
	slices.SortFunc(listed, netip.Addr.Compare)
	if !slices.Equal(f.sources, listed) {
		t.Fatalf("%s: lists %v, want %v", at, f.sources, listed)
	}
	if f.none() != (!set.others && len(listed) == 0) {
		t.Fatalf("%s: none of %v is %v", at, f, f.none())
	}
}

// pick chooses sources at random, in no order, some twice.
func pick(rng *rand.Rand) (ss []netip.Addr) {
	for range rng.IntN(2 * len(someSources)) {
		ss = append(ss, someSources[rng.IntN(len(someSources))])
	}
	if rng.IntN(2) == 0 {
		ss = ss[:min(len(ss), 3)]
	}
	return ss
}

// mapped gives an IPv4 address its IPv6 form.
func mapped(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.AddrFrom16(a.As16())
	}
	return a
}

func TestSourceFilterRandom(t *testing.T) {
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 6))
		for step := range 5000 {
			mode1, mode2, list1, list2 := Mode(rng.IntN(2)), Mode(rng.IntN(2)), pick(rng), pick(rng)
			f, g := newSourceFilter(mode1, list1), newSourceFilter(mode2, list2)
			if rng.IntN(4) == 0 { // otherwise they are hardly ever equal
				mode2, list2, g = mode1, slices.Clone(list1), newSourceFilter(mode1, list1)
			}
			at := fmt.Sprintf("seed %d, step %d: %v%v and %v%v", seed, step, mode1, list1, mode2, list2)
			setF, setG := newSourceSet(mode1, list1), newSourceSet(mode2, list2)
			setF.check(t, at+": new", f)
			setG.check(t, at+": new", g)

			union, intersection := sourceSet{map[netip.Addr]bool{}, setF.others || setG.others}, sourceSet{map[netip.Addr]bool{}, setF.others && setG.others}
			covers, equal := setF.others || !setG.others, setF.others == setG.others
			for _, s := range someSources {
				union.allowed[s] = setF.allowed[s] || setG.allowed[s]
				intersection.allowed[s] = setF.allowed[s] && setG.allowed[s]
				covers = covers && (setF.allowed[s] || !setG.allowed[s])
				equal = equal && setF.allowed[s] == setG.allowed[s]
			}
			union.check(t, at+": union", f.union(g))
			intersection.check(t, at+": both", f.both(g))
			if f.covers(g) != covers {
				t.Fatalf("%s: covers is %v", at, !covers)
			}
			if f.equal(g) != equal {
				t.Fatalf("%s: equal is %v", at, !equal)
			}

			var less, both []netip.Addr
			for _, s := range f.sources {
				if slices.Contains(list2, s) {
					both = append(both, s)
				} else {
					less = append(less, s)
				}
			}
			if got := minus(f.sources, g.sources); !slices.Equal(got, less) {
				t.Fatalf("%s: minus is %v, want %v", at, got, less)
			}
			if got := common(f.sources, g.sources); !slices.Equal(got, both) {
				t.Fatalf("%s: common is %v, want %v", at, got, both)
			}

			s := someSources[rng.IntN(len(someSources))]
			without := newSourceSet(mode1, slices.DeleteFunc(slices.Clone(list1), func(a netip.Addr) bool { return a == s }))
			without.check(t, fmt.Sprintf("%s: without %v", at, s), f.without(s))
			if !f.has(s) {
				newSourceSet(mode1, append(slices.Clone(list1), s)).check(t, fmt.Sprintf("%s: with %v", at, s), f.with(s))
			}
			// None of this changed what it was made of.
			setF.check(t, at+": afterwards", f)
			setG.check(t, at+": afterwards", g)
		}
	}
}

// TestSourceFilterForm: the form of a source makes no difference, and a list
// that was given is neither changed nor kept.
func TestSourceFilterForm(t *testing.T) {
	a, b, link := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fe80::1")
	given := []netip.Addr{b, mapped(a), a, link.WithZone("eth1"), link.WithZone("eth0"), b}
	before := slices.Clone(given)
	f := newSourceFilter(Include, given)
	if !slices.Equal(given, before) {
		t.Errorf("changed its argument to %v", given)
	}
	given[0] = netip.MustParseAddr("10.0.0.3")
	if want := []netip.Addr{a, b, link}; !slices.Equal(f.sources, want) {
		t.Errorf("%v, want %v", f.sources, want)
	}
	if f := newSourceFilter(Exclude, []netip.Addr{}); f.sources != nil || f.mode != Exclude || f.none() {
		t.Errorf("EXCLUDE() is %#v", f)
	}
	if f := (sourceFilter{}); !f.none() || f.allows(a) || !f.equal(newSourceFilter(Include, nil)) {
		t.Errorf("the zero sourceFilter is %#v", f)
	}
}

// TestSourceFilterKept: what was made of a filter shares no room with another
// that was made of it.
func TestSourceFilterKept(t *testing.T) {
	f := newSourceFilter(Include, someSources[2:6])
	g, h := f.with(someSources[0]), f.with(someSources[1])
	i, j := f.without(someSources[3]), f.without(someSources[4])
	k, l := i.with(someSources[7]), i.with(someSources[8])
	for _, tt := range []struct {
		f    sourceFilter
		want []int
	}{{f, []int{2, 3, 4, 5}}, {g, []int{0, 2, 3, 4, 5}}, {h, []int{1, 2, 3, 4, 5}}, {i, []int{2, 4, 5}}, {j, []int{2, 3, 5}}, {k, []int{2, 4, 5, 7}}, {l, []int{2, 4, 5, 8}}} {
		var want []netip.Addr
		for _, n := range tt.want {
			want = append(want, someSources[n])
		}
		newSourceSet(Include, want).check(t, fmt.Sprint(tt.want), tt.f)
	}
}

// Filters that have some of their sources in the same place are no more equal than
// others.
func TestSourceFilterPlaces(t *testing.T) {
	for _, mode := range []Mode{Include, Exclude} {
		all := newSourceFilter(mode, someSources[:3])
		some := sourceFilter{mode, all.sources[:2]} // in the same place
		if all.equal(some) || some.equal(all) || !some.equal(newSourceFilter(mode, some.sources)) {
			t.Errorf("%v and %v: equal %v, %v", all, some, all.equal(some), some.equal(all))
		}
		if all.covers(some) != (mode == Include) || some.covers(all) != (mode == Exclude) {
			t.Errorf("%v and %v: covers %v, %v", all, some, all.covers(some), some.covers(all))
		}
	}
}
