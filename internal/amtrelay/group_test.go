package amtrelay

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// The tables of RFC 3376 sections 6.4.1 and 6.4.2: what a router forwards at
// once after a record, and after the time that a leave takes.
func TestGroup(t *testing.T) {
	a, b, c := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
	all := []netip.Addr{a, b, c}
	record := func(kind RecordType, sources ...netip.Addr) Record { return Record{Type: kind, Sources: sources} }
	for _, test := range []struct {
		name        string
		before      []Record
		record      Record
		soon, later []netip.Addr
	}{
		{"nothing, IS_IN", nil, record(IsInclude, a), []netip.Addr{a}, []netip.Addr{a}},
		{"nothing, ALLOW", nil, record(Allow, a, b), []netip.Addr{a, b}, []netip.Addr{a, b}},
		{"nothing, BLOCK", nil, record(Block, a), nil, nil},
		{"nothing, TO_EX", nil, record(ToExclude), all, all},
		{"INCLUDE, IS_IN", []Record{record(Allow, a)}, record(IsInclude, b), []netip.Addr{a, b}, []netip.Addr{a, b}},
		{"INCLUDE, ALLOW", []Record{record(Allow, a)}, record(Allow, b), []netip.Addr{a, b}, []netip.Addr{a, b}},
		{"INCLUDE, BLOCK", []Record{record(Allow, a, b)}, record(Block, a, c), []netip.Addr{a, b}, []netip.Addr{b}},
		{"INCLUDE, TO_IN", []Record{record(Allow, a)}, record(ToInclude, b), []netip.Addr{a, b}, []netip.Addr{b}},
		{"INCLUDE, IS_EX", []Record{record(Allow, a)}, record(IsExclude, a, b), []netip.Addr{a, c}, []netip.Addr{a, c}},
		{"INCLUDE, TO_EX", []Record{record(Allow, a)}, record(ToExclude, a, b), []netip.Addr{a, c}, []netip.Addr{c}},
		{"EXCLUDE, ALLOW", []Record{record(ToExclude, a, b)}, record(Allow, a), []netip.Addr{a, c}, []netip.Addr{a, c}},
		{"EXCLUDE, BLOCK", []Record{record(ToExclude, a)}, record(Block, b), []netip.Addr{b, c}, []netip.Addr{c}},
		{"EXCLUDE, IS_EX", []Record{record(ToExclude, a, b)}, record(IsExclude, b), []netip.Addr{a, c}, []netip.Addr{a, c}},
		{"EXCLUDE, TO_EX", []Record{record(ToExclude, a)}, record(ToExclude, b), all, []netip.Addr{a, c}},
		{"EXCLUDE, TO_IN", []Record{record(ToExclude, a)}, record(ToInclude, b), []netip.Addr{b, c}, []netip.Addr{b}},
		{"EXCLUDE, TO_IN of nothing", []Record{record(ToExclude)}, record(ToInclude), all, nil},
	} {
		now := time.Unix(1000, 0)
		g := &group{sources: make(map[netip.Addr]time.Time)}
		at := timers{now: now, member: 260 * time.Second, leave: 2 * time.Second}
		for _, r := range test.before {
			g.apply(at, r)
			g.expire(now)
		}
		g.apply(at, test.record)
		forwarded := func(after time.Duration) (list []netip.Addr) {
			g.expire(now.Add(after))
			for _, s := range all {
				if g.forwards(s) {
					list = append(list, s)
				}
			}
			return list
		}
		if got := forwarded(time.Second); !slices.Equal(got, test.soon) {
			t.Errorf("%s: forwards %v; want %v", test.name, got, test.soon)
		}
		if got := forwarded(3 * time.Second); !slices.Equal(got, test.later) {
			t.Errorf("%s: later forwards %v; want %v", test.name, got, test.later)
		}
		if got := forwarded(261 * time.Second); len(got) > 0 || !g.empty() {
			t.Errorf("%s: forwards %v without an end", test.name, got)
		}
	}
}
