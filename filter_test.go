//go:build !plan9

package mcast

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestFilterBadRequests(t *testing.T) {
	g4, g6 := Group{netip.MustParseAddr("232.1.1.1"), "eth0"}, Group{netip.MustParseAddr("ff3e::8000:1"), "eth0"}
	s4, s6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("2001:db8::1")
	group := func(a string) Group { return Group{netip.MustParseAddr(a), "eth0"} }
	tests := []struct {
		name   string
		group  Group
		source netip.Addr
		want   error
		plain  bool // what is wrong is the group: bad for Join and Leave too
	}{
		{"zero group", Group{}, s4, ErrAddress, true},
		{"no group address", Group{Interface: "eth0"}, s4, ErrAddress, true},
		{"unicast group", group("10.1.1.1"), s4, ErrAddress, true},
		{"unicast group 6", group("2001:db8::2"), s6, ErrAddress, true},
		{"below the groups", group("223.255.255.255"), s4, ErrAddress, true},
		{"above the groups", group("240.0.0.0"), s4, ErrAddress, true},
		{"broadcast group", group("255.255.255.255"), s4, ErrAddress, true},
		{"unspecified group", group("0.0.0.0"), s4, ErrAddress, true},
		{"group with zone", group("ff02::1%eth0"), s6, ErrAddress, true},
		{"zero source", g4, netip.Addr{}, ErrAddress, false},
		{"zero source 6", g6, netip.Addr{}, ErrAddress, false},
		{"multicast source", g4, netip.MustParseAddr("232.2.2.2"), ErrAddress, false},
		{"multicast source 6", g6, netip.MustParseAddr("ff02::1"), ErrAddress, false},
		{"unspecified source", g4, netip.IPv4Unspecified(), ErrAddress, false},
		{"unspecified source 6", g6, netip.IPv6Unspecified(), ErrAddress, false},
		{"broadcast source", g4, netip.MustParseAddr("255.255.255.255"), ErrAddress, false},
		{"wrong family", g4, s6, ErrAddress, false},
		{"wrong family 6", g6, s4, ErrAddress, false},
		{"wrong family, mapped", g6, mapped(s4), ErrAddress, false},
	}
	var f Filter
	f.Apply(Request{OpJoinSource, g4, s4})
	f.Apply(Request{OpJoinSource, g6, s6})
	before := fmt.Sprint(f.Memberships())
	for _, tt := range tests {
		for op := range Op(numOps) {
			if !tt.plain && !op.takesSource() {
				continue
			}
			r := Request{op, tt.group, tt.source}
			err := f.Check(r)
			if got := matching(err, outOfOrder, cannotBe); len(got) != 1 || !errors.Is(err, tt.want) {
				t.Errorf("%s: %v: %v, want %v", tt.name, op, err, tt.want)
			}
			var e *OpError
			if f.Apply(r) == nil || !errors.As(err, &e) || e.Op != op.String() {
				t.Errorf("%s: %v: Apply takes it, or no OpError: %v", tt.name, op, err)
			}
		}
		for mode := range Mode(2) {
			m := Membership{Group: tt.group, Mode: mode, Sources: []netip.Addr{s4, tt.source}}
			if tt.group.Addr.Is6() {
				m.Sources[0] = s6
			}
			err := f.Set(m)
			var e *OpError
			if !errors.Is(err, tt.want) || !errors.As(err, &e) || e.Op != "SetFilter" {
				t.Errorf("%s: Set %v: %v, want an OpError with %v", tt.name, mode, err, tt.want)
			}
		}
		if f.Allows(tt.group, tt.source) {
			t.Errorf("%s: allowed", tt.name)
		}
	}
	for _, op := range []Op{numOps, 77, 255} {
		if err := f.Apply(Request{op, g4, s4}); !errors.Is(err, os.ErrInvalid) || len(matching(err, outOfOrder, cannotBe)) > 0 {
			t.Errorf("%v: %v, want os.ErrInvalid", op, err)
		}
	}
	if err := f.Set(Membership{Group: g4, Mode: 7, Sources: []netip.Addr{s4}}); !errors.Is(err, ErrMode) {
		t.Errorf("Set %v: %v, want ErrMode", Mode(7), err)
	}
	if got := fmt.Sprint(f.Memberships()); got != before {
		t.Errorf("bad requests changed %s to %s", before, got)
	}
}

// TestEveryInterface: "*" and single interfaces exclude each other, for each
// address by itself, whatever the request.
func TestEveryInterface(t *testing.T) {
	s, other := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	addr := netip.MustParseAddr("239.1.1.1")
	for _, tt := range []struct {
		joined  string
		refused []string
	}{
		{"*", []string{"", "eth0", "2", "**"}},
		{"eth0", []string{"*"}},
		{"", []string{"*"}},
	} {
		for _, first := range []Op{OpJoin, OpJoinSource} {
			var f Filter
			joined := Group{addr, tt.joined}
			if err := f.Apply(Request{first, joined, s}); err != nil {
				t.Fatal(err)
			}
			before := fmt.Sprint(f.Memberships())
			for _, ifname := range tt.refused {
				g := Group{addr, ifname}
				for op := range Op(numOps) {
					r := Request{op, g, s}
					err := f.Check(r)
					if got := matching(err, outOfOrder, cannotBe); !slices.Equal(got, []string{"ErrInterface"}) {
						t.Errorf("%v after %v of %v: %v, want ErrInterface", r, first, joined, err)
					}
					if e := f.Apply(r); e == nil || e.Error() != err.Error() {
						t.Errorf("%v after %v of %v: Check: %v, but Apply: %v", r, first, joined, err, e)
					}
					if err != nil && !strings.Contains(err.Error(), "leave it there") {
						t.Errorf("%v: %q does not say what to do", r, err)
					}
				}
				for _, m := range []Membership{{Group: g, Mode: Exclude}, {Group: g, Mode: Include, Sources: []netip.Addr{other}}, {Group: g}} {
					if err := f.Set(m); !errors.Is(err, ErrInterface) {
						t.Errorf("Set %v after %v of %v: %v, want ErrInterface", m, first, joined, err)
					}
				}
				if m, ok := f.Membership(g); ok || m.Group != g {
					t.Errorf("Membership(%v) = %v beside %v", g, m, joined)
				}
				if ifname != "*" && f.Allows(g, s) != (tt.joined == "*") {
					t.Errorf("Allows(%v, %v) = %v beside %v", g, s, f.Allows(g, s), joined)
				}
				if f.Allows(Group{addr.Next(), ifname}, s) {
					t.Errorf("another group is allowed on %q", ifname)
				}
			}
			if got := fmt.Sprint(f.Memberships()); got != before {
				t.Errorf("refused requests changed %v to %v", before, got)
			}
			// Another address is not concerned, and after Leave the other kind is
			// free to join.
			otherKind := Group{addr.Next(), tt.refused[0]}
			for _, r := range []Request{{Op: OpJoin, Group: otherKind}, {Op: OpLeave, Group: joined}, {Op: OpJoin, Group: Group{addr, tt.refused[0]}}} {
				if err := f.Apply(r); err != nil {
					t.Errorf("%v after %v of %v: %v", r, first, joined, err)
				}
			}
		}
	}
	// What is on one interface says nothing about another, and "*" is gone with
	// its Leave.
	var f Filter
	f.Apply(Request{Op: OpJoin, Group: Group{addr.Next(), "*"}})
	f.Apply(Request{OpJoinSource, Group{addr, "*"}, s})
	for _, ifname := range []string{"", "eth0", "7", "*"} {
		if !f.Allows(Group{addr, ifname}, s) || f.Allows(Group{addr, ifname}, other) {
			t.Errorf("on %q *'s filter does not hold", ifname)
		}
	}
	f.Apply(Request{Op: OpLeave, Group: Group{addr, "*"}})
	f.Apply(Request{OpJoinSource, Group{addr, "eth0"}, other})
	if f.Allows(Group{addr, "eth1"}, s) || f.Allows(Group{addr, "eth1"}, other) || !f.Allows(Group{addr, "eth0"}, other) {
		t.Error("a membership on * outlives its Leave, or one on eth0 holds on eth1")
	}
}

// TestMembershipsAreTheCallers: what the filter returned may be changed, and
// does not change any more by itself.
func TestMembershipsAreTheCallers(t *testing.T) {
	var f Filter
	g := Group{netip.MustParseAddr("232.1.1.1"), "eth0"}
	a, b, c, d := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3"), netip.MustParseAddr("10.0.0.4")
	for _, s := range []netip.Addr{b, a, d} {
		if err := f.Apply(Request{OpJoinSource, g, s}); err != nil {
			t.Fatal(err)
		}
	}
	one, _ := f.Membership(g)
	all := f.Memberships()
	for _, r := range []Request{{OpJoinSource, g, c}, {OpLeaveSource, g, a}, {OpLeaveSource, g, b}} {
		if err := f.Apply(r); err != nil {
			t.Fatal(err)
		}
	}
	want := []netip.Addr{a, b, d}
	if !slices.Equal(one.Sources, want) || !slices.Equal(all[0].Sources, want) {
		t.Errorf("what was returned changed from %v to %v and %v", want, one.Sources, all[0].Sources)
	}
	one, _ = f.Membership(g)
	all = f.Memberships()
	for _, m := range []Membership{one, all[0]} {
		for i := range m.Sources {
			m.Sources[i] = b
		}
		_ = append(m.Sources[:0], b, b)
	}
	all[0] = Membership{}
	if got, _ := f.Membership(g); !slices.Equal(got.Sources, []netip.Addr{c, d}) || !f.Allows(g, c) || !f.Allows(g, d) || f.Allows(g, b) || len(f.Memberships()) != 1 {
		t.Errorf("the caller's changes are the filter's: %v", got)
	}
}

// TestStatesAreKept: what states returned does not change when the memberships
// do.
func TestStatesAreKept(t *testing.T) {
	var f Filter
	a := netip.MustParseAddr("239.1.1.1")
	apply := func(op Op, ifname string) {
		if err := f.Apply(Request{Op: op, Group: Group{a, ifname}}); err != nil {
			t.Fatal(err)
		}
	}
	if on := f.states(a); len(on) != 0 {
		t.Errorf("a zero Filter has %v", on)
	}
	for _, ifname := range []string{"eth3", "eth1", "eth5"} {
		apply(OpJoin, ifname)
	}
	on := f.states(a)
	apply(OpLeave, "eth1")
	apply(OpJoin, "eth0")
	apply(OpLeave, "eth5")
	if want := []string{"eth1", "eth3", "eth5"}; !slices.Equal(interfacesOf(on), want) {
		t.Errorf("what was returned changed from %v to %v", want, interfacesOf(on))
	}
	if on, want := interfacesOf(f.states(a)), []string{"eth0", "eth3"}; !slices.Equal(on, want) {
		t.Errorf("interfaces = %v, want %v", on, want)
	}
}

// interfacesOf gives the interfaces of memberships.
func interfacesOf(on []state) (names []string) {
	for i := range on {
		names = append(names, on[i].ifname)
	}
	return names
}

// TestPropose: what was proposed and committed is what Apply and Set do, and
// what was only proposed is nothing.
func TestPropose(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	g := Group{netip.MustParseAddr("239.1.1.1"), "eth0"}
	for _, rules := range []*Rules{WindowsRules, UnixRules} {
		f, want := Filter{Rules: rules}, Filter{Rules: rules}
		for step, r := range gridRequests("Leave, JoinSource s, JoinSource s, JoinSource t, Join, LeaveSource s, LeaveSource t, LeaveSource t, "+
			"Join, Block s, Block s, Unblock t, Unblock s, Unblock s, Block t, Leave, Leave", g, a, b) {
			r.Group.Addr = mapped(r.Group.Addr)
			before, _ := f.Membership(g)
			proposed := r
			var p proposal
			err := f.propose(&p, &proposed)
			if now, _ := f.Membership(g); now.String() != before.String() {
				t.Fatalf("step %d: proposing %v changed %v to %v", step, r, before, now)
			}
			wanted := want.Apply(r)
			if fmt.Sprint(err) != fmt.Sprint(wanted) || proposed.Group != g || err != nil && p.states != nil {
				t.Fatalf("step %d: %v: proposed %v with %v, want %v", step, r, proposed, err, wanted)
			}
			if !p.had.equal(newSourceFilter(before.Mode, before.Sources)) {
				t.Fatalf("step %d: %v: had %v, want %v", step, r, p.had, before)
			}
			if err != nil {
				continue
			}
			f.commit(&p)
			now, _ := f.Membership(g)
			then, _ := want.Membership(g)
			if now.String() != then.String() || !p.next.equal(newSourceFilter(now.Mode, now.Sources)) {
				t.Fatalf("step %d: %v: %v with %v, want %v", step, r, now, p.next, then)
			}
		}
		for step, m := range []Membership{
			{Group: g, Mode: Include, Sources: []netip.Addr{b, a, a}},
			{Group: g, Mode: 7},
			{Group: Group{g.Addr, "*"}, Mode: Exclude},
			{Group: g, Mode: Exclude, Sources: []netip.Addr{a}},
			{Group: g, Mode: Include, Sources: []netip.Addr{g.Addr}},
			{Group: g},
		} {
			before, _ := f.Membership(g)
			proposed := m
			proposed.Group.Addr = mapped(g.Addr)
			var p proposal
			err := f.proposeSet(&p, &proposed)
			if now, _ := f.Membership(g); now.String() != before.String() {
				t.Fatalf("Set %d: proposing %v changed %v to %v", step, m, before, now)
			}
			wanted := want.Set(m)
			if (err == nil) != (wanted == nil) || err != nil && !strings.HasSuffix(wanted.Error(), ": "+err.Error()) || proposed.Group != m.Group {
				t.Fatalf("Set %d: %v: proposed %v with %v, want %v", step, m, proposed, err, wanted)
			}
			if err == nil && !p.had.equal(newSourceFilter(before.Mode, before.Sources)) {
				t.Fatalf("Set %d: %v: had %v, want %v", step, m, p.had, before)
			}
			if err != nil {
				continue
			}
			f.commit(&p)
			if now, then := fmt.Sprint(f.Memberships()), fmt.Sprint(want.Memberships()); now != then {
				t.Fatalf("Set %d: %v: %v, want %v", step, m, now, then)
			}
		}
	}
}

// TestFilterIgnoresConnFields: Index and Pending are a Conn's business.
func TestFilterIgnoresConnFields(t *testing.T) {
	var f Filter
	g := Group{netip.MustParseAddr("239.1.1.1"), "eth0"}
	if err := f.Set(Membership{Group: g, Mode: Exclude, Index: 7, Pending: true}); err != nil {
		t.Fatal(err)
	}
	m, ok := f.Membership(g)
	if !ok || m.Index != 0 || m.Pending || !f.Allows(g, netip.MustParseAddr("10.0.0.1")) {
		t.Errorf("Membership = %+v, %v", m, ok)
	}
	if ms := f.Memberships(); len(ms) != 1 || ms[0].Index != 0 || ms[0].Pending {
		t.Errorf("Memberships = %+v", ms)
	}
}

func TestZeroFilter(t *testing.T) {
	var f Filter
	g, s := Group{netip.MustParseAddr("232.1.1.1"), ""}, netip.MustParseAddr("10.0.0.1")
	if f.Allows(g, s) || f.Allows(Group{}, netip.Addr{}) || len(f.Memberships()) != 0 || f.Memberships() == nil {
		t.Error("the zero Filter has memberships, or none is nil")
	}
	if m, ok := f.Membership(g); ok || m.Group != g || m.Mode != Include || m.Sources != nil {
		t.Errorf("Membership = %v, %v", m, ok)
	}
	if err := f.Apply(Request{OpJoinSource, g, s}); err != nil || !f.Allows(g, s) {
		t.Errorf("JoinSource: %v; allowed %v", err, f.Allows(g, s))
	}
}

// TestMappedAndZones: to a filter an IPv4-mapped address is the IPv4 one, and
// a source's zone says nothing. Join and Leave ignore the source.
func TestMappedAndZones(t *testing.T) {
	var f Filter
	g, s := Group{netip.MustParseAddr("232.1.1.1"), "eth0"}, netip.MustParseAddr("10.0.0.1")
	if err := f.Apply(Request{OpJoinSource, Group{mapped(g.Addr), "eth0"}, mapped(s)}); err != nil {
		t.Fatal(err)
	}
	if err := f.Apply(Request{OpJoinSource, g, s}); !errors.Is(err, ErrJoined) {
		t.Errorf("again, not mapped: %v", err)
	}
	m, ok := f.Membership(Group{mapped(g.Addr), "eth0"})
	if !ok || m.Group != g || !slices.Equal(m.Sources, []netip.Addr{s}) || !f.Allows(g, s) || !f.Allows(Group{mapped(g.Addr), "eth0"}, mapped(s)) {
		t.Errorf("Membership = %v, %v", m, ok)
	}
	g6, s6 := Group{netip.MustParseAddr("ff3e::8000:1"), "eth0"}, netip.MustParseAddr("fe80::1")
	if err := f.Apply(Request{OpJoinSource, g6, s6.WithZone("eth0")}); err != nil {
		t.Fatal(err)
	}
	m, _ = f.Membership(g6)
	if !slices.Equal(m.Sources, []netip.Addr{s6}) || !f.Allows(g6, s6) || !f.Allows(g6, s6.WithZone("eth9")) {
		t.Errorf("%v", m)
	}
	if err := f.Set(Membership{Group: g6, Mode: Exclude, Sources: []netip.Addr{s6.WithZone("a"), s6.WithZone("b")}}); err != nil || f.Allows(g6, s6.WithZone("c")) {
		t.Errorf("Set with zones: %v", err)
	}
	if err := f.Apply(Request{OpLeave, g6, s}); err != nil {
		t.Errorf("Leave with a source of the other family: %v", err)
	}
	if err := f.Apply(Request{OpJoin, g6, netip.MustParseAddr("232.9.9.9")}); err != nil {
		t.Errorf("Join with a multicast source: %v", err)
	}
}

func TestFilterSet(t *testing.T) {
	g := Group{netip.MustParseAddr("239.1.1.1"), "eth0"}
	a, b, c := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
	var f Filter
	for _, tt := range []struct {
		mode    Mode
		sources []netip.Addr
		want    string
	}{
		{Include, nil, "239.1.1.1%eth0 INCLUDE{}"},
		{Include, []netip.Addr{c, a, c, a, mapped(a)}, "239.1.1.1%eth0 INCLUDE{10.0.0.1, 10.0.0.3}"},
		{Include, []netip.Addr{b}, "239.1.1.1%eth0 INCLUDE{10.0.0.2}"},
		{Exclude, []netip.Addr{b, b}, "239.1.1.1%eth0 EXCLUDE{10.0.0.2}"},
		{Exclude, nil, "239.1.1.1%eth0 EXCLUDE{}"},
		{Exclude, []netip.Addr{c}, "239.1.1.1%eth0 EXCLUDE{10.0.0.3}"},
		{Include, []netip.Addr{}, "239.1.1.1%eth0 INCLUDE{}"},
	} {
		given := slices.Clone(tt.sources)
		if err := f.Set(Membership{Group: g, Mode: tt.mode, Sources: given}); err != nil {
			t.Fatalf("Set %v %v: %v", tt.mode, tt.sources, err)
		}
		m, ok := f.Membership(g)
		if m.String() != tt.want || ok == (m.Mode == Include && len(m.Sources) == 0) || len(f.Memberships()) != map[bool]int{true: 1}[ok] {
			t.Errorf("Set %v %v: %v, %v, want %v", tt.mode, tt.sources, m, ok, tt.want)
		}
		if !slices.Equal(given, tt.sources) {
			t.Errorf("Set changed its argument %v to %v", tt.sources, given)
		}
		// What was returned and what was given is the caller's.
		for i := range m.Sources {
			m.Sources[i], given[i] = c.Next(), c.Next()
		}
		if m, _ := f.Membership(g); m.String() != tt.want {
			t.Errorf("the filter shares its sources: %v, want %v", m, tt.want)
		}
	}
	// A membership that was set goes on as one that was requested.
	f.Set(Membership{Group: g, Mode: Include, Sources: []netip.Addr{a, a}})
	if err := f.Apply(Request{OpLeaveSource, g, a}); err != nil {
		t.Error(err)
	}
	if _, ok := f.Membership(g); ok {
		t.Error("a source given twice must be left twice")
	}
}

func TestMembershipsSorted(t *testing.T) {
	var f Filter
	want := "[224.0.0.1 EXCLUDE{} 224.0.0.1%eth10 EXCLUDE{} 224.0.0.1%eth9 EXCLUDE{} 239.1.1.1%lo INCLUDE{9.0.0.1, 10.0.0.1} 239.1.1.2%* EXCLUDE{} ff02::1%eth3 EXCLUDE{}]"
	for _, r := range []Request{
		{Op: OpJoin, Group: Group{netip.MustParseAddr("ff02::1"), "eth3"}},
		{Op: OpJoin, Group: Group{netip.MustParseAddr("239.1.1.2"), "*"}},
		{Op: OpJoin, Group: Group{netip.MustParseAddr("224.0.0.1"), "eth10"}},
		{OpJoinSource, Group{netip.MustParseAddr("239.1.1.1"), "lo"}, netip.MustParseAddr("10.0.0.1")},
		{Op: OpJoin, Group: Group{netip.MustParseAddr("224.0.0.1"), "eth9"}},
		{OpJoinSource, Group{netip.MustParseAddr("239.1.1.1"), "lo"}, netip.MustParseAddr("9.0.0.1")},
		{Op: OpJoin, Group: Group{netip.MustParseAddr("224.0.0.1"), ""}},
	} {
		if err := f.Apply(r); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprint(f.Memberships()); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestFilterForgets: a filter that went through many channels has not grown
// by it.
func TestFilterForgets(t *testing.T) {
	var f Filter
	s := netip.MustParseAddr("10.0.0.1")
	for i := range 50_000 {
		g := Group{netip.AddrFrom4([4]byte{232, byte(i >> 16), byte(i >> 8), byte(i)}), "eth0"}
		for _, op := range []Op{OpJoinSource, OpLeaveSource} {
			if err := f.Apply(Request{op, g, s}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := len(f.emptied); n > 10_000 {
		t.Errorf("%d groups are remembered", n)
	}
	if f.len() != 0 || f.groups.live != 0 {
		t.Errorf("%d memberships of %d groups", f.len(), f.groups.live)
	}
	if n := len(f.groups.slots.Load().s); n > 64 {
		t.Errorf("%d slots for no groups", n)
	}
	// Of a few, each is remembered.
	var few Filter
	few.Rules = WindowsRules
	for i := range 100 {
		for _, op := range []Op{OpJoinSource, OpLeaveSource} {
			if err := few.Apply(Request{op, Group{netip.AddrFrom4([4]byte{232, 1, 1, byte(i)}), "eth0"}, s}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range 100 {
		r := Request{OpLeaveSource, Group{netip.AddrFrom4([4]byte{232, 1, 1, byte(i)}), "eth0"}, s}
		if err := few.Check(r); !errors.Is(err, syscall.Errno(10049)) {
			t.Errorf("%v after the last LeaveSource: %v, want 10049", r, err)
		}
	}
	// The last one is remembered, and a Leave makes it forgotten.
	f.Rules = WindowsRules
	g := Group{netip.MustParseAddr("232.1.1.1"), "eth0"}
	for _, op := range []Op{OpJoinSource, OpLeaveSource} {
		f.Apply(Request{op, g, s})
	}
	if err := f.Check(Request{OpLeaveSource, g, s}); !errors.Is(err, syscall.Errno(10049)) {
		t.Errorf("LeaveSource after the last LeaveSource: %v, want 10049", err)
	}
	f.Set(Membership{Group: g})
	if err := f.Check(Request{OpLeaveSource, g, s}); !errors.Is(err, syscall.Errno(10022)) {
		t.Errorf("LeaveSource after the filter was emptied by Set: %v, want 10022", err)
	}
}

func TestNames(t *testing.T) {
	for _, tt := range []struct {
		got  fmt.Stringer
		want string
	}{
		{Include, "INCLUDE"},
		{Exclude, "EXCLUDE"},
		{Mode(2), "Mode(2)"},
		{OpJoin, "Join"},
		{OpJoinSource, "JoinSource"},
		{OpBlock, "Block"},
		{OpUnblock, "Unblock"},
		{OpLeave, "Leave"},
		{OpLeaveSource, "LeaveSource"},
		{Op(6), "Op(6)"},
		{Op(255), "Op(255)"},
		{Membership{Group: Group{netip.MustParseAddr("ff02::1"), "eth3"}, Mode: Exclude}, "ff02::1%eth3 EXCLUDE{}"},
		{Membership{Group: Group{netip.MustParseAddr("239.1.1.1"), ""}, Pending: true}, "239.1.1.1 INCLUDE{} pending"},
		{Membership{Group{netip.MustParseAddr("239.1.1.1"), "*"}, Include, []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")}, 7, true}, "239.1.1.1%* INCLUDE{10.0.0.1, 10.0.0.2} pending"},
	} {
		if tt.got.String() != tt.want {
			t.Errorf("%T prints %q, want %q", tt.got, tt.got, tt.want)
		}
	}
}
