package netif

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// changesString is "en0 2", "en0 2 down", "en0 2 without", "gone 2", …
func changesString(changes []Change) string {
	var all []string
	for _, c := range changes {
		switch {
		case c.Gone:
			all = append(all, fmt.Sprint("gone ", c.Index))
		case c.Moved:
			all = append(all, "moved")
		case c.Woke:
			all = append(all, "woke")
		case !c.Up:
			all = append(all, c.Name+" down")
		case !c.Carrier:
			all = append(all, c.Name+" without")
		default:
			all = append(all, c.Name)
		}
	}
	return strings.Join(all, ", ")
}

// listOf makes interfaces 1, 2, … of names. "": there is none with that index.
// A name with a "-" is that of one that has no carrier.
func listOf(names ...string) (list []Interface) {
	for i, name := range names {
		if name != "" {
			name, off := strings.CutSuffix(name, "-")
			list = append(list, Interface{Index: i + 1, Name: name, Up: true, Carrier: !off})
		}
	}
	return list
}

// Hints and the list of all interfaces put together, on one system.
func TestSnapshot(t *testing.T) {
	var s snapshot
	up, down := hint{index: 2, flags: true, up: true}, hint{index: 2, flags: true}
	for i, step := range []struct {
		hints []hint
		list  []Interface
		want  string
	}{
		{nil, listOf("lo0", "en0"), "lo0, en0"},
		{[]hint{{}}, listOf("lo0", "en0"), "lo0, en0, moved"},
		{[]hint{{}, {}}, listOf("lo0", "en0"), "lo0, en0, moved"},
		// Down and up before anybody looked.
		{[]hint{down, up}, listOf("lo0", "en0"), "en0 down, en0, lo0, en0"},
		{[]hint{{index: 9, flags: true, up: true}}, listOf("lo0", "en0"), "lo0, en0"},
		{nil, listOf("lo0", "en0", "en1"), "lo0, en0, en1"},
		{nil, listOf("lo0", "", "en1"), "lo0, en1, gone 2"},
		{[]hint{{index: 2, gone: true}}, listOf("lo0", "", "en1"), "lo0, en1"},
		{nil, listOf("lo0", "en0"), "lo0, en0, gone 3"},
		// Another one with the same index.
		{[]hint{{index: 2, gone: true}}, listOf("lo0", "en0"), "gone 2, lo0, en0"},
		// A hint of what is gone by now.
		{[]hint{up}, listOf("lo0"), "gone 2, lo0"},
		{nil, listOf("lo0", "en0"), "lo0, en0"},

		// States of the carrier, which a list tells too.
		{[]hint{{index: 2, flags: true, up: true, carrier: carrierOff}, {index: 2, flags: true, up: true, carrier: carrierOn}}, listOf("lo0", "en0"), "en0 without, en0, lo0, en0"},
		{[]hint{{index: 2, flags: true, up: true, carrier: carrierOff}}, listOf("lo0", "en0-"), "en0 without, lo0, en0 without"},
		{[]hint{{index: 2, flags: true, up: true, carrier: carrierOn}}, listOf("lo0", "en0"), "en0, lo0, en0"},

		// Events, of which it does not.
		{[]hint{{name: "en0", carrier: carrierWent}}, listOf("lo0", "en0"), "en0 without, lo0, en0 without"},
		{[]hint{up}, listOf("lo0", "en0"), "en0 without, lo0, en0 without"},
		{[]hint{{name: "en9", carrier: carrierCame}}, listOf("lo0", "en0"), "lo0, en0 without"},
		{[]hint{{name: "en0", carrier: carrierCame}}, listOf("lo0", "en0"), "en0, lo0, en0"},
		{[]hint{{name: "en0", carrier: carrierCame}}, listOf("lo0", "en0"), "en0 without, en0, lo0, en0"},
		{[]hint{{name: "en0", carrier: carrierWent}, {name: "en0", carrier: carrierCame}}, listOf("lo0", "en0"), "en0 without, en0, lo0, en0"},
		{[]hint{{name: "en0", carrier: carrierWent}, {name: "en0", gone: true}}, listOf("lo0", "en0"), "en0 without, gone 2, lo0, en0"},
		{[]hint{{name: "en0", carrier: carrierWent}}, listOf("lo0", "en0"), "en0 without, lo0, en0 without"},
		{nil, listOf("lo0"), "lo0, gone 2"},
		{nil, listOf("lo0", "en0"), "lo0, en0"},
		{nil, nil, "gone 1, gone 2"},
	} {
		if got := changesString(s.changes(step.hints, step.list)); got != step.want {
			t.Errorf("step %d: %s, want %s", i, got, step.want)
		}
	}
}

func TestHintQueue(t *testing.T) {
	q := newHintQueue()
	q.add()
	q.add(hint{index: 1}, hint{index: 2})
	q.add(hint{index: 3})
	want := []hint{{index: 1}, {index: 2}, {index: 3}}
	if got, err := q.read(); err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	go q.add(hint{index: 4})
	if got, err := q.read(); err != nil || !slices.Equal(got, []hint{{index: 4}}) {
		t.Errorf("%v, %v", got, err)
	}
	// Nobody reads: what is left says to look.
	for range most + 1 {
		q.add(hint{index: 1})
	}
	if got, err := q.read(); err != nil || !slices.Equal(got, []hint{{}}) {
		t.Errorf("%d hints, %v", len(got), err)
	}
	broken := errors.New("broken")
	q.add(hint{index: 5})
	q.fail(broken)
	q.fail(net.ErrClosed)
	if got, err := q.read(); err != nil || len(got) != 1 {
		t.Errorf("%v, %v", got, err)
	}
	for range 2 {
		if got, err := q.read(); err != broken || got != nil {
			t.Errorf("%v, %v", got, err)
		}
	}

	q = newHintQueue()
	go q.close()
	if _, err := q.read(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	q.close()
}

func TestLister(t *testing.T) {
	q := newHintQueue()
	var stops, never time.Duration
	var list []Interface
	var failures int
	l := &lister{hints: q, shut: func() error { q.close(); return nil }}
	l.clock = func() (time.Duration, time.Duration) { return stops, never }
	l.list = func() ([]Interface, error) {
		if failures > 0 {
			failures--
			return nil, errors.New("it grows")
		}
		return list, nil
	}
	read := func(want string) {
		t.Helper()
		if changes, err := l.Read(); err != nil || changesString(changes) != want {
			t.Errorf("%s, %v, want %s", changesString(changes), err, want)
		}
	}
	failures = 20
	if _, err := l.Read(); err == nil {
		t.Error("there was no list")
	}
	failures, list = 2, listOf("lo0", "en0")
	read("lo0, en0")
	q.add(hint{})
	read("lo0, en0, moved")
	stops, never = time.Hour, 2*time.Hour
	q.add(hint{})
	read("lo0, en0, moved, woke")
	q.add(hint{})
	read("lo0, en0, moved")
	// There is no list, but that the machine woke is told, and no hint forgotten.
	failures, never = 11, 9*time.Hour
	q.add(hint{index: 2, gone: true})
	read("woke")
	q.add(hint{})
	read("gone 2, lo0, en0, moved")
	l.Close()
	if _, err := l.Read(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

func TestWallClock(t *testing.T) {
	stops, never := wallClock()
	if d := never - stops; d > time.Hour || d < -time.Hour {
		t.Errorf("%v and %v", stops, never)
	}
}
