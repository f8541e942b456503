//go:build !plan9

package mcast

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"strings"
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

// A gridCell is half of a cell of a grid.
type gridCell struct {
	text string
	star bool
}

// parseGrid gives the cells by request and column, halves apart. The star of a
// cell that is not halved is that of both halves.
func parseGrid(t *testing.T, grid string) (cells [6][8]gridCell) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(grid), "\n")[1:]
	if len(lines) != 6 {
		t.Fatalf("%d rows, want one for each request", len(lines))
	}
	for i, line := range lines {
		row := strings.Split(strings.Trim(line, "|"), "|")
		if op := strings.TrimSpace(row[0]); op != Op(i).String() || len(row) != 7 {
			t.Fatalf("row %d is %q with %d cells, want %v with 7", i, op, len(row), Op(i))
		}
		for j, cell := range row[1:] {
			var halves []gridCell
			for half := range strings.SplitSeq(cell, "/") {
				text, star := strings.CutSuffix(strings.TrimSpace(half), "*")
				halves = append(halves, gridCell{text, star})
			}
			switch {
			case j < 4 && len(halves) == 1:
				cells[i][j] = halves[0]
			case j >= 4 && len(halves) <= 2:
				cells[i][2*j-4], cells[i][2*j-3] = halves[0], halves[len(halves)-1]
			default:
				t.Fatalf("row %d: cell %q has %d halves", i, cell, len(halves))
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
						testCell(t, doc.rules, op, script, six, numbers[op][column].text, machine[op][column].text)
					}
				}
			}
		}
	}
}

func testCell(t *testing.T, rules *Rules, op Op, script string, six bool, number, outcome string) {
	t.Helper()
	g, s, other := Group{netip.MustParseAddr("232.1.1.1"), "eth0"}, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	if six {
		g.Addr, s, other = netip.MustParseAddr("ff3e::8000:1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	}
	at := fmt.Sprintf("%v: after %q: %v", rules, script, op)
	f := Filter{Rules: rules}
	// Neighbours that must not matter.
	for _, n := range []Request{{OpJoin, Group{g.Addr, "eth1"}, s}, {OpJoin, Group{g.Addr, ""}, s}, {OpJoinSource, Group{g.Addr.Next(), "eth0"}, s}, {OpJoinSource, Group{g.Addr.Next().Next(), "*"}, s}} {
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
		if want.Group != g || now.String() != want.String() || isMember == (want.Mode == Include && len(want.Sources) == 0) {
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

// The histories in the order of the grids' columns, halves apart.
var gridHistories = [8]history{fresh, lastLeaveSource, join, unblock, blockOther, blockThis, includeOther, includeThis}

// TestRulesRows compares the documents themselves with the grids, cell by cell,
// stars included: a refusal has one row, which is marked where the document
// leaves it open, and what is accepted has none.
func TestRulesRows(t *testing.T) {
	if numHistories != len(gridHistories) || numOps != 6 {
		t.Fatalf("%d histories and %d requests, the grids have 8 and 6", numHistories, numOps)
	}
	for _, doc := range []struct {
		rules *Rules
		grid  string
		stars int // of the grid, halves counted
	}{{WindowsRules, windowsGrid, 10}, {UnixRules, unixGrid, 13}} {
		grid, stars := parseGrid(t, doc.grid), 0
		for op := range Op(numOps) {
			for column, after := range gridHistories {
				cell := grid[op][column]
				at := fmt.Sprintf("%v: column %d: %v", doc.rules, column, op)
				var rows []rule
				for _, row := range doc.rules.rows {
					if row.follow == op && slices.Contains(row.after, after) {
						rows = append(rows, row)
					}
				}
				if cell.star {
					stars++
				}
				if cell.text == "ok" {
					if len(rows) != 0 || cell.star {
						t.Errorf("%s: is accepted, and has %d rows, star %v", at, len(rows), cell.star)
					}
					continue
				}
				if len(rows) != 1 {
					t.Errorf("%s: %d rows, want one", at, len(rows))
					continue
				}
				if rows[0].errno != gridErrnos[cell.text] || rows[0].open != cell.star {
					t.Errorf("%s: %v, open %v, want %s, star %v", at, rows[0].errno, rows[0].open, cell.text, cell.star)
				}
			}
		}
		if stars != doc.stars {
			t.Errorf("%v: %d stars, want %d", doc.rules, stars, doc.stars)
		}
	}
}

// TestRulesAfterSet: a filter that was set stands in the column of the requests
// that lead to the same.
func TestRulesAfterSet(t *testing.T) {
	g, s := Group{netip.MustParseAddr("239.1.1.1"), "eth0"}, netip.MustParseAddr("10.0.0.1")
	for _, tt := range []struct {
		mode    Mode
		sources []netip.Addr
		then    string
		op      Op
		want    string
	}{
		{Exclude, nil, "", OpUnblock, "10022"},
		{Exclude, []netip.Addr{s}, "Unblock s", OpUnblock, "10049"},
		{Exclude, []netip.Addr{s}, "", OpJoin, "10022"},
		{Exclude, []netip.Addr{s}, "Leave, Join", OpUnblock, "10022"},
		{Include, []netip.Addr{s}, "", OpJoinSource, "10049"},
		{Include, []netip.Addr{s}, "LeaveSource s", OpLeaveSource, "10049"},
		{Include, nil, "", OpLeaveSource, "10022"},
	} {
		f := Filter{Rules: WindowsRules}
		// What was before a Set does not matter.
		for _, r := range gridRequests("JoinSource s, LeaveSource s, Join, Block s, Unblock s", g, s, s) {
			if err := f.Apply(r); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Set(Membership{Group: g, Mode: tt.mode, Sources: tt.sources}); err != nil {
			t.Fatal(err)
		}
		for _, r := range gridRequests(tt.then, g, s, s) {
			if err := f.Apply(r); err != nil {
				t.Fatal(err)
			}
		}
		err := f.Check(Request{tt.op, g, s})
		if got := matching(err, gridErrnos); !slices.Equal(got, []string{tt.want}) {
			t.Errorf("%v%v, %q, %v: %v matches %v, want %s", tt.mode, tt.sources, tt.then, tt.op, err, got, tt.want)
		}
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
