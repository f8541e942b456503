package mcast

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
)

// loopbackName gives the name and the index of the machine's loopback.
func loopbackName(tb testing.TB) (string, int) {
	tb.Helper()
	ifis, err := net.Interfaces()
	if err != nil {
		tb.Skipf("cannot list the interfaces: %v", err)
	}
	for _, ifi := range ifis {
		if ifi.Flags&net.FlagLoopback != 0 {
			return ifi.Name, ifi.Index
		}
	}
	tb.Skip("the machine has no loopback interface")
	return "", 0
}

// checkParseError checks that an error is an OpError that matches want alone.
func checkParseError(t *testing.T, op, input string, err, want error) {
	t.Helper()
	var e *OpError
	if !errors.As(err, &e) || e.Op != op || e.Group != (Group{}) || e.Source.IsValid() {
		t.Errorf("%s(%q): %#v, want an OpError without group and source", op, input, err)
		return
	}
	n := 0
	for _, kind := range []error{ErrAddress, ErrInterface, ErrSSM, ErrLimit, ErrJoined, ErrNotJoined, ErrMode} {
		if errors.Is(err, kind) {
			n++
		}
	}
	if n != 1 || !errors.Is(err, want) {
		t.Errorf("%s(%q): %v, want %v", op, input, err, want)
	}
	if !strings.HasPrefix(err.Error(), "mcast: "+op+": ") {
		t.Errorf("%s(%q): the text is %q", op, input, err)
	}
}

func TestParseGroup(t *testing.T) {
	lo, index := loopbackName(t)
	for _, tt := range []struct {
		in    string
		addr  string
		iface int
		want  error
		out   string // if not in
	}{
		{in: "239.1.1.1", addr: "239.1.1.1"},
		{in: "224.0.0.0", addr: "224.0.0.0"},
		{in: "239.255.255.255", addr: "239.255.255.255"},
		{in: "232.1.1.1%2", addr: "232.1.1.1", iface: 2},
		{in: "232.1.1.1%2147483647", addr: "232.1.1.1", iface: 1<<31 - 1},
		{in: "232.1.1.1%02", addr: "232.1.1.1", iface: 2, out: "232.1.1.1%2"},
		{in: "ff3e::8000:1%2", addr: "ff3e::8000:1", iface: 2},
		{in: "ff02::1", addr: "ff02::1"},
		{in: "FF02:0::1", addr: "ff02::1", out: "ff02::1"},
		{in: "::ffff:239.1.1.1%3", addr: "239.1.1.1", iface: 3, out: "239.1.1.1%3"},
		{in: "239.1.1.1%" + lo, addr: "239.1.1.1", iface: index, out: "239.1.1.1%" + strconv.Itoa(index)},
		{in: "ff3e::1%" + lo, addr: "ff3e::1", iface: index, out: "ff3e::1%" + strconv.Itoa(index)},

		{in: "", want: ErrAddress},
		{in: "%2", want: ErrAddress},
		{in: "239.1.1", want: ErrAddress},
		{in: "239.1.1.256", want: ErrAddress},
		{in: "239.1.1.1:5000", want: ErrAddress},
		{in: " 239.1.1.1", want: ErrAddress},
		{in: "[ff02::1]", want: ErrAddress},
		{in: "group.example", want: ErrAddress},
		{in: "10.0.0.1@232.1.1.1", want: ErrAddress},
		{in: "10.0.0.1", want: ErrAddress},
		{in: "10.0.0.1%2", want: ErrAddress},
		{in: "0.0.0.0", want: ErrAddress},
		{in: "223.255.255.255", want: ErrAddress},
		{in: "240.0.0.0", want: ErrAddress},
		{in: "255.255.255.255", want: ErrAddress},
		{in: "::", want: ErrAddress},
		{in: "2001:db8::1%2", want: ErrAddress},
		{in: "fe80::1%" + lo, want: ErrAddress},
		{in: "::ffff:10.0.0.1", want: ErrAddress},
		{in: "::239.1.1.1", want: ErrAddress},

		{in: "239.1.1.1%", want: ErrInterface},
		{in: "239.1.1.1%0", want: ErrInterface},
		{in: "ff02::1%000", want: ErrInterface},
		{in: "239.1.1.1%-1", want: ErrInterface},
		{in: "239.1.1.1%+1", want: ErrInterface},
		{in: "239.1.1.1%2147483648", want: ErrInterface},
		{in: "239.1.1.1%99999999999999999999", want: ErrInterface},
		{in: "239.1.1.1%no such interface", want: ErrInterface},
		{in: "ff02::1%1%2", want: ErrInterface},
		{in: "ff02::1%\x00", want: ErrInterface},
	} {
		g, err := ParseGroup(tt.in)
		if tt.want != nil {
			if checkParseError(t, "ParseGroup", tt.in, err, tt.want); g != (Group{}) {
				t.Errorf("ParseGroup(%q) = %v beside an error", tt.in, g)
			}
			continue
		}
		if want := (Group{netip.MustParseAddr(tt.addr), tt.iface}); err != nil || g != want {
			t.Errorf("ParseGroup(%q) = %v, %v, want %v", tt.in, g, err, want)
			continue
		}
		if tt.out == "" {
			tt.out = tt.in
		}
		if got := g.String(); got != tt.out {
			t.Errorf("ParseGroup(%q) prints %q, want %q", tt.in, got, tt.out)
		}
		if again, err := ParseGroup(g.String()); err != nil || again != g {
			t.Errorf("ParseGroup(%q) = %v, %v, want %v", g, again, err, g)
		}
	}
}

func TestParseChannel(t *testing.T) {
	lo, index := loopbackName(t)
	for _, tt := range []struct {
		in     string
		group  Group
		source string // "" for the zero Addr
		want   error
	}{
		{in: "10.0.0.1@232.1.1.1", group: Group{netip.MustParseAddr("232.1.1.1"), 0}, source: "10.0.0.1"},
		{in: "10.0.0.1@232.1.1.1%7", group: Group{netip.MustParseAddr("232.1.1.1"), 7}, source: "10.0.0.1"},
		{in: "10.0.0.1@239.1.1.1%" + lo, group: Group{netip.MustParseAddr("239.1.1.1"), index}, source: "10.0.0.1"},
		{in: "127.0.0.1@239.1.1.1", group: Group{netip.MustParseAddr("239.1.1.1"), 0}, source: "127.0.0.1"},
		{in: "2001:db8::1@ff3e::8000:1%2", group: Group{netip.MustParseAddr("ff3e::8000:1"), 2}, source: "2001:db8::1"},
		{in: "fe80::1%3@ff32::1", group: Group{netip.MustParseAddr("ff32::1"), 3}, source: "fe80::1"},
		{in: "fe80::1%3@ff32::1%3", group: Group{netip.MustParseAddr("ff32::1"), 3}, source: "fe80::1"},
		{in: "fe80::1%" + lo + "@ff32::1%" + strconv.Itoa(index), group: Group{netip.MustParseAddr("ff32::1"), index}, source: "fe80::1"},
		{in: "::ffff:10.0.0.1@232.1.1.1", group: Group{netip.MustParseAddr("232.1.1.1"), 0}, source: "10.0.0.1"},
		{in: "::1@ff3e::1", group: Group{netip.MustParseAddr("ff3e::1"), 0}, source: "::1"},
		{in: "239.1.1.1", group: Group{netip.MustParseAddr("239.1.1.1"), 0}},
		{in: "ff02::1%" + lo, group: Group{netip.MustParseAddr("ff02::1"), index}},

		{in: "", want: ErrAddress},
		{in: "@", want: ErrAddress},
		{in: "10.0.0.1@", want: ErrAddress},
		{in: "@232.1.1.1", want: ErrAddress},
		{in: "10.0.0.1", want: ErrAddress},
		{in: "source@232.1.1.1", want: ErrAddress},
		{in: "232.1.1.1@10.0.0.1", want: ErrAddress},
		{in: "10.0.0.1@232.1.1.1@2", want: ErrAddress},
		{in: "10.0.0.1@10.0.0.2@232.1.1.1", want: ErrAddress},
		{in: "10.0.0.1%2@232.1.1.1", want: ErrAddress},
		{in: "2001:db8::1@232.1.1.1", want: ErrAddress},
		{in: "10.0.0.1@ff3e::1", want: ErrAddress},
		{in: "::ffff:10.0.0.1@ff3e::1", want: ErrAddress},
		{in: "0.0.0.0@232.1.1.1", want: ErrAddress},
		{in: "::@ff3e::1", want: ErrAddress},
		{in: "255.255.255.255@232.1.1.1", want: ErrAddress},
		{in: "232.2.2.2@232.1.1.1", want: ErrAddress},
		{in: "ff02::1@ff3e::1", want: ErrAddress},
		{in: "10.0.0.1@232.1.1.1%0", want: ErrInterface},
		{in: "10.0.0.1@232.1.1.1%", want: ErrInterface},
		{in: "10.0.0.1@232.1.1.1%no such interface", want: ErrInterface},
		{in: "fe80::1%no such interface@ff32::1", want: ErrInterface},
		{in: "fe80::1%3@ff32::1%4", want: ErrInterface},
	} {
		g, source, err := ParseChannel(tt.in)
		if tt.want != nil {
			if checkParseError(t, "ParseChannel", tt.in, err, tt.want); g != (Group{}) || source != (netip.Addr{}) {
				t.Errorf("ParseChannel(%q) = %v, %v beside an error", tt.in, g, source)
			}
			continue
		}
		var want netip.Addr
		if tt.source != "" {
			want = netip.MustParseAddr(tt.source)
		}
		if err != nil || g != tt.group || source != want {
			t.Errorf("ParseChannel(%q) = %v, %v, %v, want %v, %v", tt.in, g, source, err, tt.group, want)
		}
	}
}

func TestGroupString(t *testing.T) {
	for want, g := range map[string]Group{
		"invalid group":  {},
		"239.1.1.1":      {netip.MustParseAddr("239.1.1.1"), 0},
		"232.1.1.1%2":    {netip.MustParseAddr("232.1.1.1"), 2},
		"ff3e::8000:1%2": {netip.MustParseAddr("ff3e::8000:1"), 2},
	} {
		if got := g.String(); got != want {
			t.Errorf("%#v prints %q, want %q", g, got, want)
		}
	}
	if got := (Group{Interface: 2}).String(); got != "invalid group" {
		t.Errorf("a group without address prints %q", got)
	}
	// Comparable, and the interface counts.
	m := map[Group]int{{netip.MustParseAddr("232.1.1.1"), 2}: 1}
	if m[Group{netip.MustParseAddr("232.1.1.1"), 2}] != 1 || m[Group{netip.MustParseAddr("232.1.1.1"), 3}] != 0 {
		t.Error("a Group is no good as a map key")
	}
}

// TestIsSSM takes both ends of each range (RFC 4607 section 1).
func TestIsSSM(t *testing.T) {
	for a, want := range map[string]bool{
		"231.255.255.255": false, "232.0.0.0": true, "232.255.255.255": true, "233.0.0.0": false, "224.0.0.1": false,
		"::ffff:232.1.1.1": true, "::ffff:239.1.1.1": false,
		"ff2f:ffff::1": false, "ff30::": true, "ff3f::1": true, "ff3f:0:ffff::1": true, "ff3e::8000:1": true,
		"ff3f:1::1": false, "ff3e:30::1": false, "ff40::1": false, "ff02::1": false, "ff7e::1": false,
		"fe30::1": false, "2001:db8::1": false, "232::1": false,
	} {
		if got := (Group{Addr: netip.MustParseAddr(a)}).IsSSM(); got != want {
			t.Errorf("%s: IsSSM = %v, want %v", a, got, want)
		}
	}
	if (Group{}).IsSSM() || (Group{Interface: 232}).IsSSM() {
		t.Error("the zero Group is source-specific")
	}
}

// TestSettle: zones become the interface, and must agree with it.
func TestSettle(t *testing.T) {
	lo, index := loopbackName(t)
	for _, tt := range []struct {
		group  string
		iface  int
		source string
		want   int // -1: ErrInterface
	}{
		{"ff02::1", 0, "fe80::1", 0},
		{"ff02::1", 5, "fe80::1", 5},
		{"ff02::1%" + lo, 0, "fe80::1", index},
		{"ff02::1%" + lo, index, "fe80::1%" + lo, index},
		{"ff02::1", 0, "fe80::1%5", 5},
		{"ff02::1", 5, "fe80::1%5", 5},
		{"ff02::1", 4, "fe80::1%5", -1},
		{"ff02::1%4", 0, "fe80::1%5", -1},
		{"ff02::1%4", 5, "fe80::1", -1},
		{"ff02::1%no such interface", 0, "fe80::1", -1},
	} {
		g, s, err := settle(Group{netip.MustParseAddr(tt.group), tt.iface}, netip.MustParseAddr(tt.source), theHost)
		switch {
		case tt.want < 0:
			if !errors.Is(err, ErrInterface) {
				t.Errorf("%+v: %v, want ErrInterface", tt, err)
			}
		case err != nil || g != Group{netip.MustParseAddr("ff02::1"), tt.want} || s != netip.MustParseAddr("fe80::1"):
			t.Errorf("%+v: %v, %v, %v", tt, g, s, err)
		}
	}
}

// checkParsed holds for all that was parsed.
func checkParsed(t *testing.T, input string, g Group) {
	t.Helper()
	if !g.Addr.IsMulticast() || g.Addr.Zone() != "" || g.Addr.Is4In6() || g.Interface < 0 || checkGroup(g) != nil {
		t.Fatalf("%q: %#v is no usable group", input, g)
	}
	if again, err := ParseGroup(g.String()); err != nil || again != g {
		t.Fatalf("%q: %v is read back as %v, %v", input, g, again, err)
	}
}

// checkRefused holds for all errors of parsing.
func checkRefused(t *testing.T, op, input string, err error) {
	t.Helper()
	if errors.Is(err, ErrAddress) == errors.Is(err, ErrInterface) {
		t.Fatalf("%q: %v is not one of ErrAddress and ErrInterface", input, err)
	}
	var e *OpError
	if !errors.As(err, &e) || e.Op != op {
		t.Fatalf("%q: %#v is no OpError of %s", input, err, op)
	}
}

func FuzzParseGroup(f *testing.F) {
	for _, s := range []string{"", "239.1.1.1", "232.1.1.1%2", "ff3e::8000:1%lo", "10.0.0.1", "::ffff:239.1.1.1%1", "ff02::1%%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		g, err := ParseGroup(s)
		channel, source, err2 := ParseChannel(s)
		if err != nil {
			checkRefused(t, "ParseGroup", s, err)
			if g != (Group{}) || err2 == nil && !source.IsValid() {
				t.Fatalf("%q: %v beside an error, ParseChannel %v", s, g, err2)
			}
			return
		}
		checkParsed(t, s, g)
		if err2 != nil || channel != g || source.IsValid() {
			t.Fatalf("%q: a group to ParseGroup, %v, %v, %v to ParseChannel", s, channel, source, err2)
		}
	})
}

func FuzzParseChannel(f *testing.F) {
	for _, s := range []string{"", "@", "10.0.0.1@232.1.1.1%2", "fe80::1%lo@ff35::1", "::ffff:1.2.3.4@232.1.1.1", "239.1.1.1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		g, source, err := ParseChannel(s)
		if err != nil {
			if checkRefused(t, "ParseChannel", s, err); g != (Group{}) || source != (netip.Addr{}) {
				t.Fatalf("%q: %v, %v beside an error", s, g, source)
			}
			return
		}
		checkParsed(t, s, g)
		text := g.String()
		if source.IsValid() {
			if source.Is4() != g.Addr.Is4() || source.Zone() != "" || source.Is4In6() || checkSource(g.Addr, source) != nil {
				t.Fatalf("%q: %v is no usable source", s, source)
			}
			text = source.String() + "@" + text
		}
		if source.IsValid() != strings.Contains(s, "@") {
			t.Fatalf("%q: source %v", s, source)
		}
		if g2, s2, err := ParseChannel(text); err != nil || g2 != g || s2 != source {
			t.Fatalf("%q: %q is read back as %v, %v, %v", s, text, g2, s2, err)
		}
		// What parses, a filter takes.
		var filter Filter
		r := Request{OpJoinSource, g, source}
		if !source.IsValid() {
			r.Op = OpJoin
		}
		if err := filter.Apply(r); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
	})
}
