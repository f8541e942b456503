package netif

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// A change is written "index name flags count", where the flags are "-", or
// of: u (up), c (carrier), 6 (IPv6), m (multicast); or "index gone"; or
// "moved" or "woke".
func parseChange(t testing.TB, s string) (c Change) {
	t.Helper()
	f := strings.Fields(s)
	switch {
	case s == "moved":
		return Change{Moved: true}
	case s == "woke":
		return Change{Woke: true}
	case len(f) == 2 && f[1] == "gone":
		c.Gone = true
		fmt.Sscan(f[0], &c.Index)
		return c
	case len(f) != 4:
		t.Fatalf("change %q", s)
	}
	fmt.Sscan(f[0], &c.Index)
	c.Name = f[1]
	has := func(flag string) bool { return strings.Contains(f[2], flag) }
	c.Up, c.Carrier, c.IPv6, c.Multicast = has("u"), has("c"), has("6"), has("m")
	fmt.Sscan(f[3], &c.Carriers)
	return c
}

// newsString is "came 2, up 2 since 5", where times are seconds, "renamed 2
// was eth0", and so on.
func newsString(news []News) string {
	var all []string
	for _, n := range news {
		s := n.Kind.String()
		if n.Interface.Index != 0 {
			s += fmt.Sprint(" ", n.Interface.Index)
		}
		if n.Was != "" {
			s += " was " + n.Was
		}
		if !n.Since.IsZero() {
			s += fmt.Sprint(" since ", n.Since.Unix())
		}
		all = append(all, s)
	}
	return strings.Join(all, ", ")
}

// What a State makes of changes, of which the n-th comes at second n.
func TestState(t *testing.T) {
	for _, test := range []struct{ changes, want string }{
		{"5 eth0 - 1", "came 5"},
		{"5 eth0 uc 1, 6 eth1 - 1", "came 5, came 6"},
		{"5 eth0 uc 2, 5 eth0 uc 2", "came 5"},
		{"5 eth0 uc 2, 5 eth0 - 3, 5 eth0 uc 4", "came 5, down 5, up 5 since 2"},
		{"5 eth0 - 1, 5 eth0 - 1, 5 eth0 uc 2", "came 5, up 5 since 1"},
		// An interface that comes up without a carrier announces to nobody.
		{"5 eth0 - 1, 5 eth0 u 1, 5 eth0 uc 2", "came 5, up 5 since 1, carrier back 5 since 2"},
		{"5 eth0 u 1, 5 eth0 u 1, 5 eth0 uc 2", "came 5, carrier back 5 since 1"},
		{"5 eth0 uc 2, 5 eth0 u 3, 5 eth0 uc 4", "came 5, carrier lost 5, carrier back 5 since 2"},
		// Lost and back before anybody looked.
		{"5 eth0 uc 2, 5 eth0 uc 4", "came 5, carrier lost 5, carrier back 5 since 2"},
		{"5 eth0 uc 0, 5 eth0 uc 2", "came 5, carrier lost 5, carrier back 5 since 2"},
		{"5 eth0 u 3, 5 eth0 u 5", "came 5"},
		{"5 eth0 - 3, 5 eth0 - 5", "came 5"},
		{"5 eth0 uc 2, 5 eth0 - 3, 5 eth0 uc 6", "came 5, down 5, up 5 since 2"},
		// Systems, and messages, that do not count.
		{"5 eth0 uc 2, 5 eth0 uc 0, 5 eth0 uc 2", "came 5"},
		{"5 eth0 uc 0, 5 eth0 u 0, 5 eth0 uc 0", "came 5, carrier lost 5, carrier back 5 since 2"},
		{"5 eth0 uc 2, 5 gone", "came 5, gone 5"},
		{"5 gone", ""},
		{"5 eth0 uc 2, 5 gone, 5 gone", "came 5, gone 5"},
		{"5 eth0 uc 2, 5 gone, 5 eth0 uc 2", "came 5, gone 5, came 5"},
		// Another one with the same index, the end of the first got lost.
		{"5 eth0 uc 8, 5 eth0 - 1, 5 eth0 uc 2", "came 5, gone 5, came 5, up 5 since 2"},
		{"5 eth0 uc 2, 5 lan0 uc 2", "came 5, renamed 5 was eth0"},
		{"5 eth0 uc 2, 5 lan0 - 3", "came 5, renamed 5 was eth0, down 5"},
		{"5 eth0 uc6 2, 5 eth0 uc 2, 5 eth0 uc6 2", "came 5, IPv6 lost 5, IPv6 back 5"},
		{"5 eth0 uc6 2, 5 eth0 - 3, 5 eth0 uc6 4", "came 5, down 5, IPv6 lost 5, up 5 since 2, IPv6 back 5"},
		{"5 eth0 uc 2, 5 eth0 ucm 2", "came 5, changed 5"},
		{"moved", "changed"},
		{"woke", "woke"},
	} {
		var s State
		var got []string
		for i, line := range strings.Split(test.changes, ", ") {
			if news := newsString(s.Apply([]Change{parseChange(t, line)}, time.Unix(int64(i+1), 0))); news != "" {
				got = append(got, news)
			}
		}
		if got := strings.Join(got, ", "); got != test.want {
			t.Errorf("%s: %s, want %s", test.changes, got, test.want)
		}
	}
	var s State
	got := newsString(s.Apply([]Change{{Moved: true}, {Woke: true}, {Moved: true}, parseChange(t, "5 eth0 uc 1")}, time.Unix(1, 0)))
	if want := "woke, came 5, changed"; got != want {
		t.Errorf("a batch: %s, want %s", got, want)
	}
	got = newsString(s.Apply([]Change{{Interface: Interface{Index: 5, Name: "eth0", Up: true, Carrier: true, Master: 3}}}, time.Unix(1, 0)))
	if want := "changed 5"; got != want {
		t.Errorf("a master: %s, want %s", got, want)
	}
}

// A change of a history, and when it was applied.
type historic struct {
	Change
	at time.Time
}

// oracle says what a change amounts to by going through all changes of the
// same interface before it.
func oracle(history []historic, c Change, now time.Time) string {
	if c.Gone || c.Moved || c.Woke {
		switch {
		case c.Gone && len(life(history, c.Index)) > 0:
			return fmt.Sprint("gone ", c.Index)
		case c.Moved:
			return "changed"
		case c.Woke:
			return "woke"
		}
		return ""
	}
	before := life(history, c.Index)
	count := 0
	for _, h := range before {
		if h.Carriers != 0 {
			count = h.Carriers
		}
	}
	if len(before) == 0 {
		return fmt.Sprint("came ", c.Index)
	}
	if c.Carriers != 0 && c.Carriers < count {
		return fmt.Sprintf("gone %d, came %d", c.Index, c.Index)
	}
	// since is when the last run of changes that are like that began.
	since := func(like func(Change) bool) int64 {
		at := now
		for _, h := range slices.Backward(before) {
			if !like(h.Change) {
				break
			}
			at = h.at
		}
		return at.Unix()
	}
	was := before[len(before)-1]
	var all []string
	say := func(yes bool, format string, args ...any) {
		if yes {
			all = append(all, fmt.Sprintf(format, args...))
		}
	}
	stayed := was.Up && c.Up
	flap := stayed && was.Carrier && c.Carrier && c.Carriers > count
	say(was.Name != c.Name, "renamed %d was %s", c.Index, was.Name)
	say(was.Up && !c.Up, "down %d", c.Index)
	say(!was.Up && c.Up, "up %d since %d", c.Index, since(func(c Change) bool { return !c.Up }))
	say(stayed && was.Carrier && !c.Carrier || flap, "carrier lost %d", c.Index)
	say(stayed && !was.Carrier && c.Carrier || flap, "carrier back %d since %d", c.Index, since(func(c Change) bool { return c.Up && !c.Carrier }))
	say(was.IPv6 && !c.IPv6, "IPv6 lost %d", c.Index)
	say(!was.IPv6 && c.IPv6, "IPv6 back %d", c.Index)
	say(was.Multicast != c.Multicast || was.Master != c.Master || was.Loopback != c.Loopback, "changed %d", c.Index)
	return strings.Join(all, ", ")
}

// life returns the changes of an interface since it came.
func life(history []historic, index int) (list []historic) {
	count := 0
	for _, h := range history {
		switch {
		case h.Index != index || h.Moved || h.Woke:
			continue
		case h.Gone || h.Carriers != 0 && h.Carriers < count:
			list, count = nil, 0
		}
		if !h.Gone {
			list, count = append(list, h), max(count, h.Carriers)
		}
	}
	return list
}

func TestStateRandom(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		var s State
		var history []historic
		var steps []string
		now := time.Unix(1, 0)
		for range 40 {
			now = now.Add(time.Second)
			c := Change{Interface: Interface{
				Index: 1 + r.IntN(3), Name: string(rune('a' + r.IntN(3))), Up: r.IntN(3) > 0, Carrier: r.IntN(2) > 0,
				Multicast: r.IntN(8) > 0, Loopback: r.IntN(20) == 0, Master: r.IntN(20) / 19, IPv6: r.IntN(4) > 0,
			}, Carriers: r.IntN(4)}
			switch r.IntN(20) {
			case 0:
				c = Change{Moved: true}
			case 1:
				c = Change{Woke: true}
			case 2, 3:
				c = Change{Interface: Interface{Index: c.Index}, Gone: true}
			}
			steps = append(steps, fmt.Sprintf("%+v", c))
			want := oracle(history, c, now)
			history = append(history, historic{c, now})
			if got := newsString(s.Apply([]Change{c}, now)); got != want {
				t.Fatalf("seed %d: %s, want %s\n%s", seed, got, want, strings.Join(steps, "\n"))
			}
			checkState(t, &s, history, seed)
		}
	}
}

// checkState compares a State with what was told last.
func checkState(t *testing.T, s *State, history []historic, seed uint64) {
	t.Helper()
	var want []Interface
	last := make(map[string]historic)
	for index := range 5 {
		l := life(history, index)
		ifi, ok := s.Interface(index)
		if ok != (len(l) > 0) {
			t.Fatalf("seed %d: interface %d: %v", seed, index, ok)
		}
		if !ok {
			continue
		}
		h := l[len(l)-1]
		want = append(want, h.Interface)
		if ifi != h.Interface {
			t.Fatalf("seed %d: %+v, want %+v", seed, ifi, h.Interface)
		}
		if h.at.After(last[h.Name].at) {
			last[h.Name] = h
		}
	}
	if got := s.Interfaces(); !slices.Equal(got, want) {
		t.Fatalf("seed %d: %+v, want %+v", seed, got, want)
	}
	for _, name := range []string{"a", "b", "c", "d"} {
		got, ok := s.Named(name)
		if want, is := last[name]; ok != is || got != want.Interface {
			t.Fatalf("seed %d: %s is %+v, want %+v", seed, name, got, want.Interface)
		}
	}
}

func TestKindString(t *testing.T) {
	for k := Came; k <= Woke; k++ {
		if s := k.String(); s == "" || strings.HasPrefix(s, "Kind") {
			t.Errorf("%d: %q", k, s)
		}
	}
	if s := Kind(11).String(); s != "Kind(11)" {
		t.Error(s)
	}
}

func TestOwner(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fe80::1")
	for _, test := range []struct {
		own  []ownAddress
		a    netip.Addr
		want int
	}{
		{nil, a, 0},
		{[]ownAddress{{a, 2, false}}, a, 2},
		{[]ownAddress{{a, 2, false}}, b, 0},
		{[]ownAddress{{a, 1, true}, {a, 2, false}, {a, 3, false}}, a, 2},
		{[]ownAddress{{a, 3, false}, {a, 1, true}}, a, 3},
		{[]ownAddress{{a, 1, true}, {a, 4, true}}, a, 1},
	} {
		if got := owner(test.own, test.a); got != test.want {
			t.Errorf("%v: %d, want %d", test.own, got, test.want)
		}
	}
}

// Each step says how much the two clocks advanced.
func TestNap(t *testing.T) {
	type step struct {
		stops, never time.Duration
		want         bool
	}
	const m, h = time.Minute, time.Hour
	for i, steps := range [][]step{
		{{0, 9 * h, false}}, // nothing to compare with
		{{0, 0, false}, {m, m, false}, {h, h, false}},
		{{0, 0, false}, {m, 2 * m, false}, {m, 2*m + 1, true}, {m, m, false}},
		{{5 * h, 9 * h, false}, {0, 2 * m, true}, {0, 2 * m, true}, {0, 0, false}},
		// Small gains do not add up.
		{{0, 0, false}, {h, h + m/2, false}, {h, h + m/2, false}, {h, h + m/2, false}},
		// Set back, and right again.
		{{0, 0, false}, {m, -h, false}, {m, m, false}, {m, h + 2*m, true}},
	} {
		var d napDetector
		var stops, never time.Duration
		for j, s := range steps {
			stops, never = stops+s.stops, never+s.never
			if got := d.slept(stops, never); got != s.want {
				t.Errorf("%d, step %d: %v", i, j, got)
			}
		}
	}
}

// socketHost is the host of a socket of this program, and closes it at the end.
func socketHost(t testing.TB) Host {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Skip("no socket:", err)
	}
	t.Cleanup(func() { c.Close() })
	raw, err := c.SyscallConn()
	if err != nil {
		t.Skip("no descriptor:", err)
	}
	return HostOf(raw)
}

// A host says of this machine what package net says.
func TestHost(t *testing.T) {
	h := socketHost(t)
	list, err := h.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	ifis, err := net.Interfaces()
	if err != nil {
		t.Skip("package net does not know either:", err)
	}
	if len(list) != len(ifis) {
		t.Errorf("%d interfaces, want %d", len(list), len(ifis))
	}
	for _, ifi := range ifis {
		if index, err := h.Index(ifi.Name); err != nil || index != ifi.Index {
			t.Errorf("%s: index %d (%v), want %d", ifi.Name, index, err, ifi.Index)
		}
		if name, err := h.Name(ifi.Index); err != nil || name != ifi.Name {
			t.Errorf("%d: %s (%v), want %s", ifi.Index, name, err, ifi.Name)
		}
		has := slices.ContainsFunc(list, func(i Interface) bool {
			return i.Index == ifi.Index && i.Name == ifi.Name && i.Up == (ifi.Flags&net.FlagUp != 0) &&
				i.Multicast == (ifi.Flags&net.FlagMulticast != 0) && i.Loopback == (ifi.Flags&net.FlagLoopback != 0)
		})
		if !has {
			t.Errorf("%+v is not among %+v", ifi, list)
		}
		for _, zone := range []string{ifi.Name, fmt.Sprint(ifi.Index)} {
			a := netip.MustParseAddr("fe80::1").WithZone(zone)
			if index, err := h.Route(a); err != nil || index != ifi.Index {
				t.Errorf("route to %v: %d (%v), want %d", a, index, err, ifi.Index)
			}
		}
		if index, err := h.Index(ifi.Name + ":1"); !errors.Is(err, ErrNotFound) {
			t.Errorf("index of an alias of %s: %d, %v", ifi.Name, index, err)
		}
		if a, ok := h.Address4(ifi.Index); ok {
			addrs, _ := ifi.Addrs()
			if !slices.ContainsFunc(addrs, func(x net.Addr) bool { return strings.HasPrefix(x.String(), a.String()+"/") }) {
				t.Errorf("%s has %v, of %v", ifi.Name, a, addrs)
			}
		}
	}
	for _, name := range []string{"", "no-such-if", "longer-than-any-name", "a\x00b"} {
		if index, err := h.Index(name); !errors.Is(err, ErrNotFound) || index != 0 {
			t.Errorf("index of %q: %d, %v", name, index, err)
		}
	}
	for _, index := range []int{0, -1, 1 << 30, -1 << 31} {
		if name, err := h.Name(index); !errors.Is(err, ErrNotFound) || name != "" {
			t.Errorf("name of %d: %q, %v", index, name, err)
		}
	}
	if _, err := h.Route(netip.Addr{}); err == nil {
		t.Error("there is a route to no address")
	}
	for _, zone := range []string{"no-such-if", "1073741823"} {
		if _, err := h.Route(netip.MustParseAddr("fe80::1%" + zone)); !errors.Is(err, ErrNotFound) {
			t.Errorf("zone %s, that there is not: %v", zone, err)
		}
	}
	if _, ok := h.Address4(-1); ok {
		t.Error("no interface has an address")
	}
	if _, ok := h.Limit("net.no.such.knob"); ok {
		t.Error("a limit that there is not")
	}
}

// A source tells all interfaces first, and ends when it is closed.
func TestWatch(t *testing.T) {
	h := socketHost(t)
	source, err := h.Watch()
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	changes, err := source.Read()
	if err != nil {
		t.Fatal(err)
	}
	var s State
	s.Apply(changes, time.Now())
	lo, ok := s.Interface(1)
	if list, err := h.Interfaces(); err == nil && len(list) > 0 && list[0].Index == 1 && (!ok || lo.Name != list[0].Name) {
		t.Errorf("%+v, want %+v", lo, list[0])
	}
	done := make(chan error)
	go func() {
		for {
			if _, err := source.Read(); err != nil {
				done <- err
				return
			}
		}
	}()
	if err := source.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	source.Close()
}
