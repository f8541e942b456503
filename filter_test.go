//go:build !plan9

package mcast

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// The two documented tables and the state machine, once more, as a person
// reads them. Where a column tells whether the source of the request is in the
// filter, a cell has two halves: not in it / in it. A star marks what the
// documents leave open.

const windowsGrid = `
|             | fresh, or after Leave | after the last LeaveSource | EXCLUDE() after Join | EXCLUDE() after Unblock | EXCLUDE(X) s∉X / s∈X | INCLUDE(I) s∉I / s∈I |
| Join        | ok                    | ok                         | 10049                | 10049*                  | 10022                | 10049                |
| JoinSource  | ok                    | ok                         | 10049                | 10049*                  | 10022                | ok / 10049           |
| Block       | 10022                 | 10022*                     | ok                   | ok                      | ok / 10049           | 10022*               |
| Unblock     | 10022                 | 10022                      | 10022                | 10049                   | 10049* / ok          | 10022                |
| Leave       | 10022                 | 10022*                     | ok                   | ok                      | ok                   | ok                   |
| LeaveSource | 10022                 | 10049                      | 10022                | 10022*                  | 10022*               | 10049 / ok           |`

const unixGrid = `
|             | fresh, or after Leave | after the last LeaveSource | EXCLUDE() after Join | EXCLUDE() after Unblock | EXCLUDE(X) s∉X / s∈X | INCLUDE(I) s∉I / s∈I |
| Join        | ok                    | ok                         | EADDRINUSE           | EADDRINUSE*             | EADDRINUSE           | EADDRINUSE           |
| JoinSource  | ok                    | ok                         | EINVAL               | EINVAL*                 | EINVAL               | ok / EADDRNOTAVAIL   |
| Block       | EINVAL*               | EINVAL*                    | ok                   | ok                      | ok / EADDRNOTAVAIL   | EINVAL               |
| Unblock     | EINVAL*               | EINVAL*                    | EADDRNOTAVAIL*       | EADDRNOTAVAIL*          | EADDRNOTAVAIL / ok   | EINVAL               |
| Leave       | EADDRNOTAVAIL*        | EADDRNOTAVAIL*             | ok                   | ok                      | ok                   | ok                   |
| LeaveSource | EINVAL*               | EINVAL*                    | EINVAL               | EINVAL*                 | EINVAL               | EADDRNOTAVAIL / ok   |`

// An accepted request adds the source, takes it out, or leads to what is given.
const machineGrid = `
|             | fresh, or after Leave | after the last LeaveSource | EXCLUDE() after Join | EXCLUDE() after Unblock | EXCLUDE(X) s∉X / s∈X | INCLUDE(I) s∉I / s∈I |
| Join        | EXCLUDE()             | EXCLUDE()                  | ErrJoined            | ErrJoined               | ErrJoined            | ErrMode              |
| JoinSource  | INCLUDE(s)            | INCLUDE(s)                 | ErrMode              | ErrMode                 | ErrMode              | add / ErrJoined      |
| Block       | ErrNotJoined          | ErrNotJoined               | add                  | add                     | add / ErrBlocked     | ErrMode              |
| Unblock     | ErrNotJoined          | ErrNotJoined               | ErrNotBlocked        | ErrNotBlocked           | ErrNotBlocked / out  | ErrMode              |
| Leave       | ErrNotJoined          | ErrNotJoined               | none                 | none                    | none                 | none                 |
| LeaveSource | ErrNotJoined          | ErrNotJoined               | ErrMode              | ErrMode                 | ErrMode              | ErrNotJoined / out   |`

// What was requested before, in the order of the grids' columns with halves
// apart. s is the source that the request in question is about, t another.
var gridColumns = [8][]string{
	{"", "Join, Leave", "JoinSource s, Leave", "JoinSource t, Leave", "Join, Block s, Leave", "JoinSource s, LeaveSource s, Join, Leave"},
	{"JoinSource s, LeaveSource s", "JoinSource t, LeaveSource t", "JoinSource s, JoinSource t, LeaveSource s, LeaveSource t", "Join, Leave, JoinSource t, LeaveSource t"},
	{"Join", "JoinSource s, LeaveSource s, Join", "Join, Block s, Leave, Join"},
	{"Join, Block s, Unblock s", "Join, Block t, Unblock t", "Join, Block s, Block t, Unblock s, Unblock t"},
	{"Join, Block t", "Join, Block s, Block t, Unblock s"},
	{"Join, Block s", "Join, Block t, Block s", "Join, Block s, Unblock s, Block s"},
	{"JoinSource t", "JoinSource s, JoinSource t, LeaveSource s", "JoinSource s, LeaveSource s, JoinSource t"},
	{"JoinSource s", "JoinSource t, JoinSource s", "Join, Leave, JoinSource s"},
}

// parseGrid gives the cells by request and column, halves apart.
func parseGrid(t *testing.T, grid string) (cells [6][8]string) {
	t.Helper()
	for i, line := range strings.Split(strings.TrimSpace(grid), "\n")[1:] {
		row := strings.Split(strings.Trim(line, "|"), "|")
		if op := strings.TrimSpace(row[0]); op != Op(i).String() || len(row) != 7 {
			t.Fatalf("row %d is %q with %d cells, want %v with 7", i, op, len(row), Op(i))
		}
		for j, cell := range row[1:] {
			halves := strings.Split(strings.ReplaceAll(cell, "*", ""), "/")
			if j < 4 {
				cells[i][j] = strings.TrimSpace(halves[0])
			} else {
				cells[i][2*j-4] = strings.TrimSpace(halves[0])
				cells[i][2*j-3] = strings.TrimSpace(halves[len(halves)-1])
			}
		}
	}
	return cells
}

var (
	outOfOrder = map[string]error{
		"ErrJoined": ErrJoined, "ErrNotJoined": ErrNotJoined, "ErrBlocked": ErrBlocked, "ErrNotBlocked": ErrNotBlocked, "ErrMode": ErrMode,
	}
	cannotBe   = map[string]error{"ErrAddress": ErrAddress, "ErrInterface": ErrInterface, "ErrSSM": ErrSSM, "ErrLimit": ErrLimit}
	gridErrnos = map[string]error{
		"EADDRINUSE": syscall.EADDRINUSE, "EADDRNOTAVAIL": syscall.EADDRNOTAVAIL, "EINVAL": syscall.EINVAL,
		"10022": syscall.Errno(10022), "10049": syscall.Errno(10049),
	}
)

// matching names those of the errors that err is.
func matching(err error, of ...map[string]error) (names []string) {
	for _, m := range of {
		for name, e := range m {
			if errors.Is(err, e) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// gridRequests turns "Join, Block s" into requests.
func gridRequests(script string, g Group, s, t netip.Addr) (rs []Request) {
	for step := range strings.SplitSeq(script, ", ") {
		name, source, _ := strings.Cut(step, " ")
		for op := range Op(numOps) {
			if op.String() == name {
				rs = append(rs, Request{op, g, map[string]netip.Addr{"s": s, "t": t}[source]})
			}
		}
	}
	return rs
}

// TestConflictTables takes all 96 cells: 8 columns, 6 requests, 2 documents,
// each column by all its histories, in both families.
func TestConflictTables(t *testing.T) {
	machine := parseGrid(t, machineGrid)
	for _, doc := range []struct {
		rules *Rules
		grid  string
	}{{WindowsRules, windowsGrid}, {UnixRules, unixGrid}} {
		numbers := parseGrid(t, doc.grid)
		for op := range Op(numOps) {
			for column, scripts := range gridColumns {
				for _, script := range scripts {
					for _, six := range []bool{false, true} {
						testCell(t, doc.rules, op, script, six, numbers[op][column], machine[op][column])
					}
				}
			}
		}
	}
}

func testCell(t *testing.T, rules *Rules, op Op, script string, six bool, number, outcome string) {
	t.Helper()
	g, s, other := Group{netip.MustParseAddr("232.1.1.1"), 2}, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	if six {
		g.Addr, s, other = netip.MustParseAddr("ff3e::8000:1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	}
	at := fmt.Sprintf("%v: after %q: %v", rules, script, op)
	f := Filter{Rules: rules}
	// Neighbours that must not matter.
	for _, n := range []Request{{OpJoin, Group{g.Addr, 3}, s}, {OpJoinSource, Group{g.Addr.Next(), 2}, s}} {
		if err := f.Apply(n); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range gridRequests(script, g, s, other) {
		if err := f.Apply(r); err != nil {
			t.Fatalf("%s: cannot make the history: %v", at, err)
		}
	}
	r := Request{op, g, s}
	before := f.Memberships()
	had, member := f.Membership(g)
	err := f.Check(r)
	if got := f.Memberships(); !reflect.DeepEqual(got, before) {
		t.Errorf("%s: Check changed %v to %v", at, before, got)
	}
	if e := f.Apply(r); (e == nil) != (err == nil) || e != nil && e.Error() != err.Error() {
		t.Errorf("%s: Check: %v, but Apply: %v", at, err, e)
	}
	now, isMember := f.Membership(g)

	if number == "ok" {
		if err != nil {
			t.Errorf("%s: %v, want ok", at, err)
			return
		}
		want := map[string]Membership{
			"EXCLUDE()": {Group: g, Mode: Exclude}, "INCLUDE(s)": {Group: g, Mode: Include, Sources: []netip.Addr{s}}, "none": {Group: g},
			"add": {Group: g, Mode: had.Mode, Sources: append(slices.Clone(had.Sources), s)},
			"out": {Group: g, Mode: had.Mode, Sources: slices.DeleteFunc(slices.Clone(had.Sources), func(a netip.Addr) bool { return a == s })},
		}[outcome]
		slices.SortFunc(want.Sources, netip.Addr.Compare)
		if want.Group != g || now.String() != want.String() || isMember == want.none() {
			t.Errorf("%s: %v is now %v, want %v (%s)", at, had, now, want, outcome)
		}
		return
	}

	if got := matching(err, outOfOrder, cannotBe); !slices.Equal(got, []string{outcome}) {
		t.Errorf("%s: %v matches %v, want %v alone", at, err, got, outcome)
	}
	if got := matching(err, gridErrnos); !slices.Equal(got, []string{number}) {
		t.Errorf("%s: %v matches %v, want %v alone", at, err, got, number)
	}
	var e *OpError
	wantSource := s
	if op == OpJoin || op == OpLeave {
		wantSource = netip.Addr{}
	}
	if !errors.As(err, &e) || e.Op != op.String() || e.Group != g || e.Source != wantSource {
		t.Errorf("%s: %#v, want an OpError of %v, %v, %v", at, err, op, g, wantSource)
	}
	if got := f.Memberships(); !reflect.DeepEqual(got, before) || member != isMember {
		t.Errorf("%s: refused, but changed %v to %v", at, before, got)
	}
	// The text explains, and names only requests that this state takes.
	text := err.Error()
	_, advice, found := strings.Cut(text, outOfOrder[outcome].Error()+": ")
	if advice, _, _ = strings.Cut(advice, " ("); !found || len(advice) < 20 {
		t.Errorf("%s: %q explains nothing", at, text)
	}
	for use := range strings.FieldsFuncSeq(advice, func(r rune) bool { return r == ';' }) {
		_, named, ok := strings.Cut(use, "use ")
		if !ok {
			continue
		}
		named, _, _ = strings.Cut(named, " ")
		taken := false
		for _, source := range []netip.Addr{s, other, other.Next()} {
			taken = taken || slices.ContainsFunc(gridRequests(named, g, s, other), func(r Request) bool {
				return f.Check(Request{r.Op, g, source}) == nil
			})
		}
		if !taken {
			t.Errorf("%s: %q recommends %s, which is refused too", at, text, named)
		}
	}
	if mode := outcome == "ErrMode" || outcome == "ErrNotJoined" && !member; mode && !strings.Contains(advice, "use ") {
		t.Errorf("%s: %q does not say what to use instead", at, text)
	}
}

// TestRulesOfHost: without Rules the numbers are those of the system.
func TestRulesOfHost(t *testing.T) {
	want := "EADDRNOTAVAIL"
	if runtime.GOOS == "windows" {
		want = "10022"
	}
	var f Filter
	err := f.Apply(Request{Op: OpLeave, Group: Group{Addr: netip.MustParseAddr("239.1.1.1")}})
	if got := matching(err, gridErrnos); !slices.Equal(got, []string{want}) {
		t.Errorf("%v matches %v, want %s", err, got, want)
	}
	if UnixRules.String() == "" || UnixRules.String() == WindowsRules.String() {
		t.Errorf("rules are called %q and %q", UnixRules, WindowsRules)
	}
}

// An oracle is a filter as slow and obvious as can be.
type oracle map[Group]*oracleState

type oracleState struct {
	mode    Mode
	sources map[netip.Addr]bool
}

// apply gives the sentinel of a refusal.
func (o oracle) apply(r Request) error {
	s := o[r.Group]
	switch {
	case r.Group.Addr.Is4() != r.Source.Is4() && r.Op != OpJoin && r.Op != OpLeave:
		return ErrAddress
	case s == nil && r.Op == OpJoin:
		o[r.Group] = &oracleState{Exclude, map[netip.Addr]bool{}}
	case s == nil && r.Op == OpJoinSource:
		o[r.Group] = &oracleState{Include, map[netip.Addr]bool{r.Source: true}}
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

func (o oracle) set(m Membership) error {
	s := &oracleState{m.Mode, map[netip.Addr]bool{}}
	for _, source := range m.Sources {
		if source.Is4() != m.Group.Addr.Is4() {
			return ErrAddress
		}
		s.sources[source] = true
	}
	if o[m.Group] = s; m.Mode == Include && len(s.sources) == 0 {
		delete(o, m.Group)
	}
	return nil
}

func (o oracle) allows(g Group, source netip.Addr) bool {
	s := o[g]
	return s != nil && s.sources[source] == (s.mode == Include)
}

func (o oracle) membership(g Group) (Membership, bool) {
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

func (o oracle) memberships() []Membership {
	ms := make([]Membership, 0, len(o))
	for g := range o {
		m, _ := o.membership(g)
		ms = append(ms, m)
	}
	slices.SortFunc(ms, func(a, b Membership) int {
		if c := a.Group.Addr.Compare(b.Group.Addr); c != 0 {
			return c
		}
		return a.Group.Interface - b.Group.Interface
	})
	return ms
}

// What the requests of twins are about.
var (
	twinGroups, twinSources = func() (gs []Group, ss []netip.Addr) {
		for _, a := range []string{"232.1.1.1", "239.255.0.1", "ff3e::8000:1", "ff02::1234"} {
			for _, i := range []int{0, 1, 2} {
				gs = append(gs, Group{netip.MustParseAddr(a), i})
			}
		}
		for _, a := range []string{"10.0.0.1", "10.0.0.2", "192.0.2.1", "1.1.1.1", "2001:db8::1", "2001:db8::2", "fe80::1", "::1"} {
			ss = append(ss, netip.MustParseAddr(a))
		}
		return gs, ss
	}()
)

// twins are a Filter and an oracle that get the same requests.
type twins struct {
	f     Filter
	o     oracle
	steps []string
	tell  string // what makes the same steps again
}

func (w *twins) fatalf(t *testing.T, g Group, format string, args ...any) {
	t.Helper()
	var last []string
	for i, s := range slices.Backward(w.steps) {
		if strings.Contains(s, " "+g.String()+" ") {
			if last = append(last, fmt.Sprintf("%d: %s", i, s)); len(last) == 40 {
				break
			}
		}
	}
	slices.Reverse(last)
	t.Fatalf("%s: step %d: %s\nlast steps of %v:\n  %s", w.tell, len(w.steps)-1, fmt.Sprintf(format, args...), g, strings.Join(last, "\n  "))
}

// step makes one request of both, or sets the filter if set is true, and
// compares everything. The Filter gets addresses mapped or with a zone if odd.
func (w *twins) step(t *testing.T, r Request, set bool, m Membership, odd bool) {
	t.Helper()
	if w.o == nil {
		w.o = oracle{}
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
	if !errors.Is(got, want) {
		w.fatalf(t, g, "%s: got %v, want %v", w.steps[len(w.steps)-1], got, want)
	}
	if len(matching(got, outOfOrder, cannotBe)) > 1 {
		w.fatalf(t, g, "%v matches several errors", got)
	}
	for _, g := range twinGroups {
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
	for _, g := range twinGroups {
		var want []int
		for _, h := range twinGroups {
			if h.Addr == g.Addr && w.o[h] != nil {
				want = append(want, h.Interface)
			}
		}
		got := w.f.interfaces(g.Addr)
		if slices.Sort(got); !slices.Equal(got, want) {
			w.fatalf(t, g, "%v is joined on interfaces %v, want %v", g.Addr, got, want)
		}
	}
}

// mapped gives an IPv4 address its IPv6 form.
func mapped(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.AddrFrom16(a.As16())
	}
	return a
}

func TestFilterRandom(t *testing.T) {
	seeds, steps := 8, 30_000
	if testing.Short() {
		steps = 5_000
	}
	for seed := range uint64(seeds) {
		rng := rand.New(rand.NewPCG(seed, 2))
		w := twins{tell: fmt.Sprintf("seed %d", seed)}
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
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 3))
		var f Filter
		o := oracle{}
		for step := range 20_000 {
			// Grow, and after half of the steps shrink.
			g := Group{netip.AddrFrom4([4]byte{232, 0, 0, byte(rng.IntN(100))}), rng.IntN(3)}
			r := Request{Op(rng.IntN(numOps)), g, netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + rng.IntN(50))})}
			if r.Op == OpLeave && step < 10_000 && rng.IntN(8) > 0 {
				r.Op = OpJoinSource
			}
			if got, want := f.Apply(r), o.apply(r); !errors.Is(got, want) {
				t.Fatalf("seed %d, step %d: %v: got %v, want %v", seed, step, r, got, want)
			}
			for i := range 50 {
				s := netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + i)})
				if got, want := f.Allows(g, s), o.allows(g, s); got != want {
					t.Fatalf("seed %d, step %d: after %v: Allows(%v, %v) = %v", seed, step, r, g, s, got)
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
	f.Add([]byte{8*6 + joinSource, 4, 8*7 + joinSource, 4, 8*6 + leaveSource, 4})
	f.Fuzz(func(t *testing.T, data []byte) {
		w := twins{tell: fmt.Sprintf("%x", data)}
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
		g := Group{netip.AddrFrom4([4]byte{232, 1, byte(i >> 8), byte(i)}), 2}
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

func TestAllowsAllocates(t *testing.T) {
	var f Filter
	gs, source := manyMemberships(t, &f, 1000)
	six := Group{netip.MustParseAddr("ff3e::8000:1"), 2}
	f.Apply(Request{Op: OpJoin, Group: six})
	zoned := netip.MustParseAddr("fe80::1%eth0")
	i := 0
	if n := testing.AllocsPerRun(5000, func() {
		if !f.Allows(gs[i%len(gs)], source) || f.Allows(Group{gs[0].Addr, 3}, source) || !f.Allows(six, zoned) || !f.Allows(Group{mapped(gs[0].Addr), 2}, mapped(source)) {
			t.Error("wrong answer")
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
	ssm, asm := Group{netip.MustParseAddr("232.1.1.1"), 2}, Group{netip.MustParseAddr("239.1.1.1"), 2}
	good, bad := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	must := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	must(f.Apply(Request{OpJoinSource, ssm, good}))
	must(f.Apply(Request{Op: OpJoin, Group: asm}))
	must(f.Apply(Request{OpBlock, asm, bad}))

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
					if f.Allows(g, bad) || f.Allows(Group{g.Addr, 3}, good) {
						t.Errorf("Allows(%v, %v) became true", g, bad)
						return
					}
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
			must(f.Apply(Request{OpJoin, Group{netip.AddrFrom4([4]byte{239, 2, byte(round), byte(i)}), 2}, s}))
		}
		for i := range 100 {
			s := netip.AddrFrom4([4]byte{10, 0, 1, byte(i)})
			must(f.Apply(Request{OpLeaveSource, ssm, s}))
			must(f.Apply(Request{OpUnblock, asm, s}))
			must(f.Apply(Request{OpLeave, Group{netip.AddrFrom4([4]byte{239, 2, byte(round), byte(i)}), 2}, s}))
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
	g, s := Group{netip.MustParseAddr("232.1.1.1"), 2}, netip.MustParseAddr("10.0.0.1")
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

func TestFilterBadRequests(t *testing.T) {
	g4, g6 := Group{netip.MustParseAddr("232.1.1.1"), 2}, Group{netip.MustParseAddr("ff3e::8000:1"), 2}
	s4, s6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("2001:db8::1")
	group := func(a string) Group { return Group{netip.MustParseAddr(a), 2} }
	tests := []struct {
		name   string
		group  Group
		source netip.Addr
		want   error
		plain  bool // what is wrong is the group: bad for Join and Leave too
	}{
		{"zero group", Group{}, s4, ErrAddress, true},
		{"no group address", Group{Interface: 2}, s4, ErrAddress, true},
		{"unicast group", group("10.1.1.1"), s4, ErrAddress, true},
		{"unicast group 6", group("2001:db8::2"), s6, ErrAddress, true},
		{"below the groups", group("223.255.255.255"), s4, ErrAddress, true},
		{"above the groups", group("240.0.0.0"), s4, ErrAddress, true},
		{"broadcast group", group("255.255.255.255"), s4, ErrAddress, true},
		{"unspecified group", group("0.0.0.0"), s4, ErrAddress, true},
		{"group with zone", group("ff02::1%eth0"), s6, ErrAddress, true},
		{"negative interface", Group{g4.Addr, -1}, s4, ErrInterface, true},
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
	if strconv.IntSize == 64 {
		big := 1 << 31 % (1 << (strconv.IntSize - 1))
		tests = append(tests, struct {
			name   string
			group  Group
			source netip.Addr
			want   error
			plain  bool
		}{"no such index", Group{g4.Addr, big}, s4, ErrInterface, true})
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

func TestZeroFilter(t *testing.T) {
	var f Filter
	g, s := Group{netip.MustParseAddr("232.1.1.1"), 0}, netip.MustParseAddr("10.0.0.1")
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
	g, s := Group{netip.MustParseAddr("232.1.1.1"), 2}, netip.MustParseAddr("10.0.0.1")
	if err := f.Apply(Request{OpJoinSource, Group{mapped(g.Addr), 2}, mapped(s)}); err != nil {
		t.Fatal(err)
	}
	if err := f.Apply(Request{OpJoinSource, g, s}); !errors.Is(err, ErrJoined) {
		t.Errorf("again, not mapped: %v", err)
	}
	m, ok := f.Membership(Group{mapped(g.Addr), 2})
	if !ok || m.Group != g || !slices.Equal(m.Sources, []netip.Addr{s}) || !f.Allows(g, s) || !f.Allows(Group{mapped(g.Addr), 2}, mapped(s)) {
		t.Errorf("Membership = %v, %v", m, ok)
	}
	g6, s6 := Group{netip.MustParseAddr("ff3e::8000:1"), 2}, netip.MustParseAddr("fe80::1")
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
	g := Group{netip.MustParseAddr("239.1.1.1"), 2}
	a, b, c := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
	var f Filter
	for _, tt := range []struct {
		mode    Mode
		sources []netip.Addr
		want    string
	}{
		{Include, nil, "239.1.1.1%2 INCLUDE{}"},
		{Include, []netip.Addr{c, a, c, a, mapped(a)}, "239.1.1.1%2 INCLUDE{10.0.0.1, 10.0.0.3}"},
		{Include, []netip.Addr{b}, "239.1.1.1%2 INCLUDE{10.0.0.2}"},
		{Exclude, []netip.Addr{b, b}, "239.1.1.1%2 EXCLUDE{10.0.0.2}"},
		{Exclude, nil, "239.1.1.1%2 EXCLUDE{}"},
		{Exclude, []netip.Addr{c}, "239.1.1.1%2 EXCLUDE{10.0.0.3}"},
		{Include, []netip.Addr{}, "239.1.1.1%2 INCLUDE{}"},
	} {
		given := slices.Clone(tt.sources)
		if err := f.Set(Membership{Group: g, Mode: tt.mode, Sources: given}); err != nil {
			t.Fatalf("Set %v %v: %v", tt.mode, tt.sources, err)
		}
		m, ok := f.Membership(g)
		if m.String() != tt.want || ok == m.none() || len(f.Memberships()) != map[bool]int{true: 1}[ok] {
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
	want := "[224.0.0.1 EXCLUDE{} 224.0.0.1%9 EXCLUDE{} 224.0.0.1%10 EXCLUDE{} 239.1.1.1%1 INCLUDE{9.0.0.1, 10.0.0.1} ff02::1%3 EXCLUDE{}]"
	for _, r := range []Request{
		{Op: OpJoin, Group: Group{netip.MustParseAddr("ff02::1"), 3}},
		{Op: OpJoin, Group: Group{netip.MustParseAddr("224.0.0.1"), 10}},
		{OpJoinSource, Group{netip.MustParseAddr("239.1.1.1"), 1}, netip.MustParseAddr("10.0.0.1")},
		{Op: OpJoin, Group: Group{netip.MustParseAddr("224.0.0.1"), 9}},
		{OpJoinSource, Group{netip.MustParseAddr("239.1.1.1"), 1}, netip.MustParseAddr("9.0.0.1")},
		{Op: OpJoin, Group: Group{netip.MustParseAddr("224.0.0.1"), 0}},
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
		g := Group{netip.AddrFrom4([4]byte{232, byte(i >> 16), byte(i >> 8), byte(i)}), 2}
		for _, op := range []Op{OpJoinSource, OpLeaveSource} {
			if err := f.Apply(Request{op, g, s}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := len(f.emptied); n > 10_000 {
		t.Errorf("%d groups are remembered", n)
	}
	if n := len(f.byAddr); n != 0 {
		t.Errorf("%d groups have interfaces", n)
	}
	if n := len(f.groups.slots.Load().s); n > 64 {
		t.Errorf("%d slots for no groups", n)
	}
	// The last one is remembered, and a Leave makes it forgotten.
	f.Rules = WindowsRules
	g := Group{netip.MustParseAddr("232.1.1.1"), 2}
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
		{Membership{Group: Group{netip.MustParseAddr("ff02::1"), 3}, Mode: Exclude}, "ff02::1%3 EXCLUDE{}"},
	} {
		if tt.got.String() != tt.want {
			t.Errorf("%T prints %q, want %q", tt.got, tt.got, tt.want)
		}
	}
}
