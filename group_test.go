package mcast

import (
	"errors"
	"net"
	"net/netip"
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

// checkParseError checks that an error is an OpError that matches want alone,
// and that its text has says in it.
func checkParseError(t *testing.T, op, input string, err, want error, says string) {
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
	text, found := strings.CutPrefix(err.Error(), "mcast: "+op+": "+want.Error()+": ")
	if !found || text == "" || !strings.Contains(text, says) {
		t.Errorf("%s(%q): the text is %q, want %q in it", op, input, err, says)
	}
}

func TestParseGroup(t *testing.T) {
	for _, tt := range []struct {
		in    string
		addr  string
		iface string
		out   string // if not in
	}{
		{in: "239.1.1.1", addr: "239.1.1.1"},
		{in: "224.0.0.0", addr: "224.0.0.0"},
		{in: "239.255.255.255", addr: "239.255.255.255"},
		{in: "232.1.1.1%eth0", addr: "232.1.1.1", iface: "eth0"},
		{in: "232.1.1.1%2", addr: "232.1.1.1", iface: "2"},
		{in: "232.1.1.1%2147483647", addr: "232.1.1.1", iface: "2147483647"},
		{in: "239.1.1.1%*", addr: "239.1.1.1", iface: "*"},
		{in: "ff02::fb%*", addr: "ff02::fb", iface: "*"},
		{in: "ff3e::8000:1%2", addr: "ff3e::8000:1", iface: "2"},
		{in: "ff02::1", addr: "ff02::1"},
		{in: "FF02:0::1", addr: "ff02::1", out: "ff02::1"},
		{in: "::ffff:239.1.1.1%eth0", addr: "239.1.1.1", iface: "eth0", out: "239.1.1.1%eth0"},
		// Whether there is such an interface, nobody is asked.
		{in: "239.1.1.1%no such interface", addr: "239.1.1.1", iface: "no such interface"},
		{in: "ff02::1%Ethernet 2", addr: "ff02::1", iface: "Ethernet 2"},
		{in: "239.1.1.1%Local Area Connection* 2", addr: "239.1.1.1", iface: "Local Area Connection* 2"},
		{in: "239.1.1.1%-1", addr: "239.1.1.1", iface: "-1"},
		{in: "239.1.1.1%eth0.100", addr: "239.1.1.1", iface: "eth0.100"},
		{in: "239.1.1.1%0x2", addr: "239.1.1.1", iface: "0x2"},
		{in: "239.1.1.1%[", addr: "239.1.1.1", iface: "["},
	} {
		g, err := ParseGroup(tt.in)
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
	for _, tt := range []struct {
		in   string
		want error
		says string
	}{
		{"", ErrAddress, "is not a multicast address"},
		{"%2", ErrAddress, "is not a multicast address"},
		{"239.1.1", ErrAddress, `"239.1.1" is not a multicast address`},
		{"239.1.1.256", ErrAddress, "is not a multicast address"},
		{"239.1.1.1:5000", ErrAddress, "is not a multicast address"},
		{" 239.1.1.1", ErrAddress, `" 239.1.1.1"`},
		{"[ff02::1]", ErrAddress, "is not a multicast address"},
		{"group.example", ErrAddress, "is not a multicast address"},
		{"10.0.0.1@232.1.1.1", ErrAddress, "is not a multicast address"},
		{"10.0.0.1", ErrAddress, "10.0.0.1 is not a multicast address (224.0.0.0/4, ff00::/8)"},
		{"10.0.0.1%2", ErrAddress, "10.0.0.1 is not"},
		{"0.0.0.0", ErrAddress, "(224.0.0.0/4"},
		{"223.255.255.255", ErrAddress, "(224.0.0.0/4"},
		{"240.0.0.0", ErrAddress, "(224.0.0.0/4"},
		{"255.255.255.255", ErrAddress, "(224.0.0.0/4"},
		{"::", ErrAddress, "ff00::/8)"},
		{"2001:db8::1%2", ErrAddress, "ff00::/8)"},
		{"fe80::1%eth0", ErrAddress, "ff00::/8)"},
		{"fe80::1%", ErrAddress, "ff00::/8)"},
		{"::ffff:10.0.0.1", ErrAddress, "(224.0.0.0/4"},
		{"::239.1.1.1", ErrAddress, "ff00::/8)"},

		{"239.1.1.1%", ErrInterface, "name one, or leave out the %"},
		{"ff02::1%", ErrInterface, "name one, or leave out the %"},
		{"239.1.1.1%0", ErrInterface, "leave out the interface to let the routing table choose"},
		{"ff02::1%000", ErrInterface, "indexes start at 1"},
		{"239.1.1.1%2147483648", ErrInterface, "2147483648 is not an interface index"},
		{"239.1.1.1%99999999999999999999", ErrInterface, "is not an interface index"},
		// Names that would not be read back, or not as this.
		{"ff02::1%1%2", ErrInterface, `because of the '%': set Group.Interface`},
		{"239.1.1.1%eth0:5000", ErrInterface, "use ParseChannel for a group with a port"},
		{"239.1.1.1%veth0@if3", ErrInterface, "set Group.Interface"},
		{"ff02::1%eth0]", ErrInterface, "set Group.Interface"},
		{"ff02::1%eth0\x00", ErrInterface, "set Group.Interface"},
		{"ff02::1%\x00", ErrInterface, "set Group.Interface"},
		{"239.1.1.1%:", ErrInterface, "set Group.Interface"},
	} {
		g, err := ParseGroup(tt.in)
		if checkParseError(t, "ParseGroup", tt.in, err, tt.want, tt.says); g != (Group{}) {
			t.Errorf("ParseGroup(%q) = %v beside an error", tt.in, g)
		}
	}
}

// parsedChannels are all forms of a channel, with what they mean and how that
// is printed.
var parsedChannels = []struct {
	in, source, group, iface string // source "": any
	port                     int
	out                      string // if not in
}{
	// The forms of the documentation.
	{in: "10.0.0.1@232.1.1.1%eth0:5000", source: "10.0.0.1", group: "232.1.1.1", iface: "eth0", port: 5000},
	{in: "fd00::1@[ff3e::8000:1%eth0]:5000", source: "fd00::1", group: "ff3e::8000:1", iface: "eth0", port: 5000},
	{in: "232.1.1.1", group: "232.1.1.1"},
	{in: "udp://10.0.0.1@232.1.1.1:5000", source: "10.0.0.1", group: "232.1.1.1", port: 5000, out: "10.0.0.1@232.1.1.1:5000"},
	{in: "rtp://[fd00::1]@[ff3e::8000:1]:5000", source: "fd00::1", group: "ff3e::8000:1", port: 5000, out: "fd00::1@[ff3e::8000:1]:5000"},
	{in: "udp://@239.1.1.1:5000", group: "239.1.1.1", port: 5000, out: "239.1.1.1:5000"},
	{in: "udp://232.1.1.1:5000?sources=10.0.0.1", source: "10.0.0.1", group: "232.1.1.1", port: 5000, out: "10.0.0.1@232.1.1.1:5000"},

	// Parts left out.
	{in: "10.0.0.1@232.1.1.1", source: "10.0.0.1", group: "232.1.1.1"},
	{in: "10.0.0.1@232.1.1.1:5000", source: "10.0.0.1", group: "232.1.1.1", port: 5000},
	{in: "10.0.0.1@232.1.1.1%7", source: "10.0.0.1", group: "232.1.1.1", iface: "7"},
	{in: "10.0.0.1@239.1.1.1%*:1", source: "10.0.0.1", group: "239.1.1.1", iface: "*", port: 1},
	{in: "239.1.1.1:65535", group: "239.1.1.1", port: 65535},
	{in: "239.1.1.1%eth0", group: "239.1.1.1", iface: "eth0"},
	{in: "239.1.1.1%eth0:5000", group: "239.1.1.1", iface: "eth0", port: 5000},
	{in: "239.1.1.1%2:5000", group: "239.1.1.1", iface: "2", port: 5000},
	{in: "239.1.1.1%Ethernet 2:5000", group: "239.1.1.1", iface: "Ethernet 2", port: 5000},
	{in: "239.1.1.1%eth0?x=1:5000", group: "239.1.1.1", iface: "eth0?x=1", port: 5000}, // no URL
	{in: "ff02::1", group: "ff02::1"},
	{in: "ff02::1%eth0", group: "ff02::1", iface: "eth0"},
	{in: "[ff02::1]", group: "ff02::1", out: "ff02::1"},
	{in: "[ff02::1%eth0]", group: "ff02::1", iface: "eth0", out: "ff02::1%eth0"},
	{in: "[ff02::1]:5000", group: "ff02::1", port: 5000},
	{in: "[ff02::1%[]:5000", group: "ff02::1", iface: "[", port: 5000},
	{in: "fd00::1@ff3e::8000:1", source: "fd00::1", group: "ff3e::8000:1"},
	{in: "fd00::1@ff3e::8000:1%2", source: "fd00::1", group: "ff3e::8000:1", iface: "2"},
	{in: "fd00::1@[ff3e::8000:1%*]:5000", source: "fd00::1", group: "ff3e::8000:1", iface: "*", port: 5000},
	{in: "::1@ff3e::1", source: "::1", group: "ff3e::1"},
	{in: "127.0.0.1@239.1.1.1", source: "127.0.0.1", group: "239.1.1.1"},
	// Brackets where none are needed, and other forms of the same.
	{in: "[10.0.0.1]@232.1.1.1", source: "10.0.0.1", group: "232.1.1.1", out: "10.0.0.1@232.1.1.1"},
	{in: "[10.0.0.1]@[232.1.1.1%eth0]:5000", source: "10.0.0.1", group: "232.1.1.1", iface: "eth0", port: 5000, out: "10.0.0.1@232.1.1.1%eth0:5000"},
	{in: "[fd00::1]@ff3e::8000:1", source: "fd00::1", group: "ff3e::8000:1", out: "fd00::1@ff3e::8000:1"},
	{in: "::ffff:10.0.0.1@232.1.1.1", source: "10.0.0.1", group: "232.1.1.1", out: "10.0.0.1@232.1.1.1"},
	{in: "10.0.0.1@::ffff:232.1.1.1%eth0", source: "10.0.0.1", group: "232.1.1.1", iface: "eth0", out: "10.0.0.1@232.1.1.1%eth0"},
	{in: "[::ffff:232.1.1.1]:5000", group: "232.1.1.1", port: 5000, out: "232.1.1.1:5000"},
	{in: "FD00:0::1@[FF3E::8000:1]:05000", source: "fd00::1", group: "ff3e::8000:1", port: 5000, out: "fd00::1@[ff3e::8000:1]:5000"},
	// A zone of the source is the interface.
	{in: "fe80::1%eth0@ff32::1", source: "fe80::1", group: "ff32::1", iface: "eth0", out: "fe80::1@ff32::1%eth0"},
	{in: "fe80::1%3@ff32::1%3", source: "fe80::1", group: "ff32::1", iface: "3", out: "fe80::1@ff32::1%3"},
	{in: "[fe80::1%eth0]@[ff32::1%eth0]:5000", source: "fe80::1", group: "ff32::1", iface: "eth0", port: 5000, out: "fe80::1@[ff32::1%eth0]:5000"},
	{in: "rtp://[fe80::1%eth0]@[ff32::1]:5000", source: "fe80::1", group: "ff32::1", iface: "eth0", port: 5000, out: "fe80::1@[ff32::1%eth0]:5000"},

	// More URLs.
	{in: "udp://239.1.1.1", group: "239.1.1.1", out: "239.1.1.1"},
	{in: "udp://239.1.1.1:5000/", group: "239.1.1.1", port: 5000, out: "239.1.1.1:5000"},
	{in: "RTP://@[ff02::1%eth0]:5000", group: "ff02::1", iface: "eth0", port: 5000, out: "[ff02::1%eth0]:5000"},
	{in: "rtp://@239.1.1.1%eth0:5000", group: "239.1.1.1", iface: "eth0", port: 5000, out: "239.1.1.1%eth0:5000"},
	{in: "udp://@239.1.1.1:5000?pkt_size=1316&ttl=4", group: "239.1.1.1", port: 5000, out: "239.1.1.1:5000"},
	{in: "udp://@232.1.1.1:5000/?ttl=4&sources=10.0.0.1", source: "10.0.0.1", group: "232.1.1.1", port: 5000, out: "10.0.0.1@232.1.1.1:5000"},
	{in: "udp://10.0.0.1@232.1.1.1:5000?sources=10.0.0.1", source: "10.0.0.1", group: "232.1.1.1", port: 5000, out: "10.0.0.1@232.1.1.1:5000"},
	{in: "udp://[ff3e::8000:1]:5000?sources=fd00::1", source: "fd00::1", group: "ff3e::8000:1", port: 5000, out: "fd00::1@[ff3e::8000:1]:5000"},
	{in: "udp://[ff3e::8000:1]:5000?sources=[fd00::1]", source: "fd00::1", group: "ff3e::8000:1", port: 5000, out: "fd00::1@[ff3e::8000:1]:5000"},
	{in: "udp://@239.1.1.1:5000?sources=", group: "239.1.1.1", port: 5000, out: "239.1.1.1:5000"},
}

func TestParseChannel(t *testing.T) {
	for _, tt := range parsedChannels {
		want := Channel{Group: Group{netip.MustParseAddr(tt.group), tt.iface}, Port: tt.port}
		if tt.source != "" {
			want.Source = netip.MustParseAddr(tt.source)
		}
		ch, err := ParseChannel(tt.in)
		if err != nil || ch != want {
			t.Errorf("ParseChannel(%q) = %#v, %v, want %#v", tt.in, ch, err, want)
			continue
		}
		if tt.out == "" {
			tt.out = tt.in
		}
		if got := ch.String(); got != tt.out {
			t.Errorf("ParseChannel(%q) prints %q, want %q", tt.in, got, tt.out)
		}
		if again, err := ParseChannel(ch.String()); err != nil || again != ch {
			t.Errorf("ParseChannel(%q) = %v, %v, want %v", ch, again, err, ch)
		}
	}
	for _, tt := range []struct {
		in   string
		want error
		says string
	}{
		{"", ErrAddress, "is not a multicast address"},
		{"@", ErrAddress, "leave out the @"},
		{"@232.1.1.1", ErrAddress, "leave out the @ to hear any source"},
		{"@232.1.1.1:5000", ErrAddress, "leave out the @ to hear any source"},
		{"10.0.0.1@", ErrAddress, "is not a multicast address"},
		{":5000", ErrAddress, `"" is not a multicast address`},
		{"10.0.0.1", ErrAddress, "10.0.0.1 is not a multicast address"},
		{"source@232.1.1.1", ErrAddress, `"source" is not a source address`},
		{"[]@232.1.1.1", ErrAddress, `"[]" is not a source address`},
		{"[10.0.0.12@232.1.1.1", ErrAddress, `"[10.0.0.12" is not a source address`},
		{"10.0.0.1]@232.1.1.1", ErrAddress, `"10.0.0.1]" is not a source address`},
		{"10.0.0.1:80@232.1.1.1", ErrAddress, "is not a source address"},
		{"232.1.1.1@10.0.0.1", ErrAddress, "10.0.0.1 is not a multicast address"},
		{"10.0.0.1@232.1.1.1@2", ErrAddress, `"232.1.1.1@2" is not a multicast address`},
		{"10.0.0.1@10.0.0.2@232.1.1.1", ErrAddress, "is not a multicast address"},
		{"10.0.0.1%2@232.1.1.1", ErrAddress, "is not a source address"},
		{"2001:db8::1@232.1.1.1", ErrAddress, "of different families"},
		{"10.0.0.1@ff3e::1", ErrAddress, "of different families"},
		{"::ffff:10.0.0.1@ff3e::1", ErrAddress, "of different families"},
		{"0.0.0.0@232.1.1.1", ErrAddress, "use Join to hear any source"},
		{"::@ff3e::1", ErrAddress, "use Join to hear any source"},
		{"255.255.255.255@232.1.1.1", ErrAddress, "sources are unicast"},
		{"232.2.2.2@232.1.1.1", ErrAddress, "sources are unicast"},
		{"ff02::1@ff3e::1", ErrAddress, "sources are unicast"},
		{"10.0.0.1@232.1.1.1%0", ErrInterface, "leave out the interface"},
		{"10.0.0.1@232.1.1.1%0:5000", ErrInterface, "leave out the interface"},
		{"10.0.0.1@232.1.1.1%", ErrInterface, "leave out the %"},
		{"10.0.0.1@232.1.1.1%:5000", ErrInterface, "leave out the %"},
		{"10.0.0.1@232.1.1.1%veth0@if3:5000", ErrInterface, "set Group.Interface"},
		{"232.1.1.1%eth0:1:5000", ErrInterface, "set Group.Interface"},
		{"fe80::1%3@ff32::1%4", ErrInterface, `zone "3" is not interface 4: name one interface`},
		{"fe80::1%eth0@[ff32::1%eth1]:5000", ErrInterface, "name one interface"},
		{"fe80::1%0@ff32::1", ErrInterface, "leave out the interface"},
		{"fe80::1%2147483648@ff32::1", ErrInterface, "is not an interface index"},
		{"fe80::1%a:b@ff32::1", ErrInterface, "set Group.Interface"},

		{"232.1.1.1:", ErrAddress, "is not a port: one is a number up to 65535"},
		{"232.1.1.1:65536", ErrAddress, `"65536" is not a port`},
		{"232.1.1.1:-1", ErrAddress, `"-1" is not a port`},
		{"232.1.1.1:+1", ErrAddress, `"+1" is not a port`},
		{"232.1.1.1:rtp", ErrAddress, `"rtp" is not a port`},
		{"[ff02::1]:", ErrAddress, "is not a port"},
		{"[ff02::1]:65536", ErrAddress, `"65536" is not a port`},
		{"232.1.1.1:5000%eth0", ErrAddress, `"5000%eth0" is not a port`},
		{"[ff02::1", ErrAddress, `"[ff02::1" has no ]`},
		{"[ff02::1]5000", ErrAddress, "after the ] comes a colon"},
		{"[ff02::1]%eth0:5000", ErrAddress, "the interface stands before it"},
		{"ff02::1%eth0:5000", ErrAddress, "stands in brackets, [ff02::1%eth0]:port"},
		{"ff02::1]:5000", ErrAddress, "is not a multicast address"},

		{"http://232.1.1.1:5000", ErrAddress, "of URLs it takes udp:// and rtp://"},
		{"://232.1.1.1:5000", ErrAddress, "of URLs it takes udp:// and rtp://"},
		{"udp://", ErrAddress, "is not a multicast address"},
		{"udp://232.1.1.1:5000/path", ErrAddress, `"5000/path" is not a port`},
		{"udp://10.0.0.1@232.1.1.1:5000?sources=10.0.0.2", ErrAddress, "10.0.0.1 and 10.0.0.2: a channel has one source"},
		{"udp://232.1.1.1:5000?sources=10.0.0.1,10.0.0.2", ErrAddress, `"10.0.0.1,10.0.0.2" is not a source address`},
		{"udp://232.1.1.1:5000?sources=%zz", ErrAddress, "has parameters that cannot be read"},
		{"udp://232.1.1.1:5000?sources=fd00::1", ErrAddress, "of different families"},
	} {
		ch, err := ParseChannel(tt.in)
		if checkParseError(t, "ParseChannel", tt.in, err, tt.want, tt.says); ch != (Channel{}) {
			t.Errorf("ParseChannel(%q) = %v beside an error", tt.in, ch)
		}
	}
}

func TestGroupString(t *testing.T) {
	for want, g := range map[string]Group{
		"invalid group":      {},
		"239.1.1.1":          {netip.MustParseAddr("239.1.1.1"), ""},
		"232.1.1.1%eth0":     {netip.MustParseAddr("232.1.1.1"), "eth0"},
		"232.1.1.1%2":        {netip.MustParseAddr("232.1.1.1"), "2"},
		"239.1.1.1%*":        {netip.MustParseAddr("239.1.1.1"), "*"},
		"ff3e::8000:1%wlan0": {netip.MustParseAddr("ff3e::8000:1"), "wlan0"},
	} {
		if got := g.String(); got != want {
			t.Errorf("%#v prints %q, want %q", g, got, want)
		}
	}
	if got := (Group{Interface: "eth0"}).String(); got != "invalid group" {
		t.Errorf("a group without address prints %q", got)
	}
	// Comparable, and the interface counts.
	m := map[Group]int{{netip.MustParseAddr("232.1.1.1"), "eth0"}: 1}
	if m[Group{netip.MustParseAddr("232.1.1.1"), "eth" + string('0')}] != 1 || m[Group{netip.MustParseAddr("232.1.1.1"), "eth1"}] != 0 {
		t.Error("a Group is no good as a map key")
	}
}

func TestChannelString(t *testing.T) {
	g4, g6 := netip.MustParseAddr("232.1.1.1"), netip.MustParseAddr("ff3e::8000:1")
	s4, s6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	for _, tt := range []struct {
		ch   Channel
		want string
	}{
		{Channel{}, "invalid group"},
		{Channel{Group: Group{g4, ""}}, "232.1.1.1"},
		{Channel{Group{g4, "*"}, s4, 0}, "10.0.0.1@232.1.1.1%*"},
		{Channel{Group{g4, "eth0"}, netip.Addr{}, 5000}, "232.1.1.1%eth0:5000"},
		{Channel{Group{g4, "eth0"}, s4, 5000}, "10.0.0.1@232.1.1.1%eth0:5000"},
		{Channel{Group{g6, ""}, s6, 0}, "fd00::1@ff3e::8000:1"},
		{Channel{Group{g6, "eth0"}, s6, 0}, "fd00::1@ff3e::8000:1%eth0"},
		{Channel{Group{g6, ""}, netip.Addr{}, 5000}, "[ff3e::8000:1]:5000"},
		{Channel{Group{g6, "eth0"}, s6, 5000}, "fd00::1@[ff3e::8000:1%eth0]:5000"},
	} {
		if got := tt.ch.String(); got != tt.want {
			t.Errorf("%#v prints %q, want %q", tt.ch, got, tt.want)
		}
	}
	m := map[Channel]int{{Group{g4, "eth0"}, s4, 5000}: 1}
	if m[Channel{Group{g4, "eth0"}, s4, 5000}] != 1 || m[Channel{Group{g4, "eth0"}, s4, 5001}] != 0 || m[Channel{Group: Group{g4, "eth0"}, Port: 5000}] != 0 {
		t.Error("a Channel is no good as a map key")
	}
}

// TestIsSSM takes both ends of each range (RFC 4607 section 1).
func TestIsSSM(t *testing.T) {
	for a, want := range map[string]bool{
		"231.255.255.255": false, "232.0.0.0": true, "232.255.255.255": true, "233.0.0.0": false, "224.0.0.1": false,
		"::ffff:232.1.1.1": true, "::ffff:239.1.1.1": false,
		"ff2f:ffff::1": false, "ff30::": true, "ff3f::1": true, "ff3f:0:ffff::1": true, "ff3e::8000:1": true,
		"ff3f:1::1": false, "ff3f:100::1": false, "ff3e:30::1": false, "ff40::1": false, "ff02::1": false, "ff7e::1": false,
		"fe30::1": false, "2001:db8::1": false, "232::1": false,
	} {
		if got := (Group{Addr: netip.MustParseAddr(a)}).IsSSM(); got != want {
			t.Errorf("%s: IsSSM = %v, want %v", a, got, want)
		}
	}
	if (Group{}).IsSSM() || (Group{Interface: "232"}).IsSSM() {
		t.Error("the zero Group is source-specific")
	}
}

// TestLinkScoped takes both neighbours of each scope (RFC 4291 section 2.7).
func TestLinkScoped(t *testing.T) {
	for a, want := range map[string]bool{
		"ff00::1": false, "ff01::1": true, "ff02::1": true, "ff03::1": false, "ff05::1": false, "ff0e::1": false,
		"ff11::1": true, "ff12::1": true, "ff13::1": false, "ff31::1": true, "ff32::1": true, "ff3e::1": false, "fff2::1": true,
		"fe80::1": false, "224.0.0.1": false, "239.255.0.1": false, "::ffff:224.0.0.251": false,
	} {
		if got := linkScoped(netip.MustParseAddr(a).Unmap()); got != want {
			t.Errorf("%s: linkScoped = %v, want %v", a, got, want)
		}
	}
}

func TestParseIndex(t *testing.T) {
	for _, tt := range []struct {
		in     string
		index  int
		digits bool
		bad    bool
	}{
		{"", 0, false, false},
		{"eth0", 0, false, false},
		{"*", 0, false, false},
		{"1a", 0, false, false},
		{"a1", 0, false, false},
		{"-1", 0, false, false},
		{"+1", 0, false, false},
		{"٣", 0, false, false}, // a digit elsewhere
		{"1", 1, true, false},
		{"02", 2, true, false},
		{"2147483647", 1<<31 - 1, true, false},
		{"0", 0, true, true},
		{"00", 0, true, true},
		{"2147483648", 0, true, true},
		{"99999999999999999999", 0, true, true},
	} {
		index, digits, err := parseIndex(tt.in)
		if index != tt.index || digits != tt.digits || (err != nil) != tt.bad || err != nil && !errors.Is(err, ErrInterface) {
			t.Errorf("parseIndex(%q) = %d, %v, %v, want %d, %v, error %v", tt.in, index, digits, err, tt.index, tt.digits, tt.bad)
		}
	}
}

// TestUnzone: zones become the interface, and must agree with it. What is not
// valid stays so.
func TestUnzone(t *testing.T) {
	for _, tt := range []struct {
		group, iface, source string
		want                 string // "!": ErrInterface
	}{
		{"ff02::1", "", "fe80::1", ""},
		{"ff02::1", "5", "fe80::1", "5"},
		{"ff02::1%lo", "", "fe80::1", "lo"},
		{"ff02::1%lo", "lo", "fe80::1%lo", "lo"},
		{"ff02::1%lo", "lo", "fe80::1", "lo"},
		{"ff02::1", "", "fe80::1%5", "5"},
		{"ff02::1", "5", "fe80::1%5", "5"},
		{"ff02::1%eth0", "", "fe80::1%eth0", "eth0"},
		{"ff02::1", "4", "fe80::1%5", "!"},
		{"ff02::1%4", "", "fe80::1%5", "!"},
		{"ff02::1%4", "5", "fe80::1", "!"},
		{"ff02::1%4", "5", "fe80::1%5", "!"},
		{"239.1.1.1", "eth0", "10.0.0.1", "eth0"},
		{"::ffff:239.1.1.1", "eth0", "10.0.0.1", "eth0"},
		{"239.1.1.1", "", "::ffff:10.0.0.1", ""},
		{"::ffff:239.1.1.1%lo", "", "::ffff:10.0.0.1", "lo"},
	} {
		g, s, err := unzone(Group{netip.MustParseAddr(tt.group), tt.iface}, netip.MustParseAddr(tt.source))
		wantGroup, wantSource := netip.MustParseAddr("ff02::1"), netip.MustParseAddr("fe80::1")
		if !strings.HasPrefix(tt.group, "ff02") {
			wantGroup, wantSource = netip.MustParseAddr("239.1.1.1"), netip.MustParseAddr("10.0.0.1")
		}
		switch {
		case tt.want == "!":
			if !errors.Is(err, ErrInterface) {
				t.Errorf("%+v: %v, want ErrInterface", tt, err)
			}
		case err != nil || g != Group{wantGroup, tt.want} || s != wantSource:
			t.Errorf("%+v: %v, %v, %v", tt, g, s, err)
		}
	}
	if g, s, err := unzone(Group{netip.MustParseAddr("ff02::1%lo"), ""}, netip.Addr{}); err != nil || g != (Group{netip.MustParseAddr("ff02::1"), "lo"}) || s.IsValid() {
		t.Errorf("without a source: %v, %v, %v", g, s, err)
	}
	if g, s, err := unzone(Group{}, netip.MustParseAddr("10.0.0.1")); err != nil || g != (Group{}) || s != netip.MustParseAddr("10.0.0.1") {
		t.Errorf("without a group: %v, %v, %v", g, s, err)
	}
}

// checkParsed holds for all that was parsed.
func checkParsed(t *testing.T, input string, g Group) {
	t.Helper()
	if !g.Addr.IsMulticast() || g.Addr.Zone() != "" || g.Addr.Is4In6() || checkGroup(g) != nil {
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
	for _, s := range []string{"", "239.1.1.1", "232.1.1.1%2", "ff3e::8000:1%lo", "10.0.0.1", "::ffff:239.1.1.1%1", "ff02::1%%", "239.1.1.1%*", "239.1.1.1%eth0:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		g, err := ParseGroup(s)
		ch, err2 := ParseChannel(s)
		if err != nil {
			checkRefused(t, "ParseGroup", s, err)
			if g != (Group{}) || err2 == nil && !ch.Source.IsValid() && ch.Port == 0 && !strings.ContainsAny(s, "[:") {
				t.Fatalf("%q: %v beside an error, ParseChannel %v", s, g, err2)
			}
			return
		}
		checkParsed(t, s, g)
		if err2 != nil || ch != (Channel{Group: g}) {
			t.Fatalf("%q: a group to ParseGroup, %#v, %v to ParseChannel", s, ch, err2)
		}
	})
}

func FuzzParseChannel(f *testing.F) {
	for _, tt := range parsedChannels {
		f.Add(tt.in)
	}
	for _, s := range []string{"", "@", "fe80::1%0@ff35::1", "fe80::1%lo@ff35::1%eth0", "udp://232.1.1.1?sources=%zz", "[", "[]", "232.1.1.1:0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ch, err := ParseChannel(s)
		if err != nil {
			if checkRefused(t, "ParseChannel", s, err); ch != (Channel{}) {
				t.Fatalf("%q: %v beside an error", s, ch)
			}
			return
		}
		checkParsed(t, s, ch.Group)
		if ch.Port < 0 || ch.Port > 65535 {
			t.Fatalf("%q: port %d", s, ch.Port)
		}
		if s := ch.Source; s.IsValid() && (s.Is4() != ch.Group.Addr.Is4() || s.Zone() != "" || s.Is4In6() || checkSource(ch.Group.Addr, s) != nil) {
			t.Fatalf("%q: %v is no usable source", s, s)
		}
		if !strings.Contains(s, "://") && ch.Source.IsValid() != strings.Contains(s, "@") {
			t.Fatalf("%q: source %v", s, ch.Source)
		}
		if again, err := ParseChannel(ch.String()); err != nil || again != ch {
			t.Fatalf("%q: %q is read back as %#v, %v", s, ch, again, err)
		}
		// What parses, a filter takes.
		var filter Filter
		r := Request{OpJoinSource, ch.Group, ch.Source}
		if !ch.Source.IsValid() {
			r.Op = OpJoin
		}
		if err := filter.Apply(r); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
	})
}
