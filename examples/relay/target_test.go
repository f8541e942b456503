package main

import (
	"errors"
	"net/netip"
	"testing"

	"example.com/mcast"
)

func channelOf(t testing.TB, s string) mcast.Channel {
	t.Helper()
	ch, err := parseTarget(s)
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

func TestParseTarget(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"232.1.1.1:5000", "232.1.1.1:5000"},
		{"@239.1.1.1:5000", "239.1.1.1:5000"},
		{"10.0.0.1@232.1.1.1:5000", "10.0.0.1@232.1.1.1:5000"},
		{"10.0.0.1@232.1.1.1%eth0:5000", "10.0.0.1@232.1.1.1%eth0:5000"},
		{"232.1.1.1:5000/", "232.1.1.1:5000"},
		{"232.1.1.1:5000?sources=10.0.0.1", "10.0.0.1@232.1.1.1:5000"},
		{"239.1.1.1", "239.1.1.1:1234"},
		{"udp://@239.1.1.1:5000?pkt_size=1316", "239.1.1.1:5000"},
		{"RTP://10.0.0.1@239.1.1.1:5000", "10.0.0.1@239.1.1.1:5000"},
		{"[ff3e::8000:1]:5000", "[ff3e::8000:1]:5000"},
		{"fd00::1@[ff3e::8000:1%eth0]:5000", "fd00::1@[ff3e::8000:1%eth0]:5000"},
		{"[fd00::1]@[ff3e::8000:1]:5000", "fd00::1@[ff3e::8000:1]:5000"},
	} {
		if ch, err := parseTarget(tt.in); err != nil || ch.String() != tt.want {
			t.Errorf("%q: %v %v, want %v", tt.in, ch, err, tt.want)
		}
	}
	for _, s := range []string{"", "10.0.0.1:5000", "239.1.1.1:65536", "239.1.1.1:x", "http://239.1.1.1:5000", "10.0.0.1@10.0.0.2:5000", "fd00::1@239.1.1.1:5000", "239.1.1.1:5000/x", "x@239.1.1.1:5000"} {
		if ch, err := parseTarget(s); err == nil {
			t.Errorf("%q is %v", s, ch)
		}
	}
}

func TestParsePrefix(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"239.1.2.3", "239.1.2.3/32"},
		{"239.1.2.3/16", "239.1.0.0/16"},
		{"224.0.0.0/4", "224.0.0.0/4"},
		{"ff3e::/32", "ff3e::/32"},
		{"ff00::/8", "ff00::/8"},
	} {
		if p, err := parsePrefix(tt.in); err != nil || p.String() != tt.want {
			t.Errorf("%q: %v %v, want %v", tt.in, p, err, tt.want)
		}
	}
	for _, s := range []string{"", "x", "10.0.0.0/8", "224.0.0.0/3", "0.0.0.0/0", "ff00::/7", "::/0", "ff02::1%eth0", "239.1.1.1/33"} {
		if p, err := parsePrefix(s); err == nil {
			t.Errorf("%q is %v", s, p)
		}
	}
}

// What requests may join, and as what.
func TestResolve(t *testing.T) {
	listed := []mcast.Channel{
		channelOf(t, "10.0.0.1@232.1.1.1%eth0:5000"),
		channelOf(t, "239.1.1.1%eth0:5000"),
		channelOf(t, "10.0.0.1@232.1.1.2:5000"), channelOf(t, "10.0.0.2@232.1.1.2:5000"),
		channelOf(t, "10.0.0.1@232.1.1.3%eth0:5000"), channelOf(t, "10.0.0.1@232.1.1.3%eth1:5000"),
		channelOf(t, "239.1.1.4:5000"), channelOf(t, "10.0.0.1@239.1.1.4:5000"),
	}
	allow := []netip.Prefix{netip.MustParsePrefix("239.7.0.0/16"), netip.MustParsePrefix("232.1.1.0/24")}
	for _, tt := range []struct {
		in         string
		want       string // "": refused
		wantAllow  string // with -allow and -i eth7
		wantAllow2 string // with -allow alone, where that is another one
	}{
		{in: "10.0.0.1@232.1.1.1:5000", want: "10.0.0.1@232.1.1.1%eth0:5000", wantAllow: "10.0.0.1@232.1.1.1%eth0:5000"},
		{in: "10.0.0.1@232.1.1.1%eth0:5000", want: "10.0.0.1@232.1.1.1%eth0:5000", wantAllow: "10.0.0.1@232.1.1.1%eth0:5000"},
		{in: "232.1.1.1:5000", want: "10.0.0.1@232.1.1.1%eth0:5000", wantAllow: "10.0.0.1@232.1.1.1%eth0:5000"},
		{in: "10.0.0.9@232.1.1.1:5000", wantAllow: "10.0.0.9@232.1.1.1%eth7:5000", wantAllow2: "10.0.0.9@232.1.1.1:5000"},
		{in: "232.1.1.1:5001", wantAllow: "232.1.1.1%eth7:5001", wantAllow2: "232.1.1.1:5001"},
		{in: "10.0.0.1@232.1.1.1%eth1:5000"},
		{in: "10.0.0.1@232.1.1.1%*:5000"},
		{in: "239.1.1.1:5000", want: "239.1.1.1%eth0:5000", wantAllow: "239.1.1.1%eth0:5000"},
		{in: "10.0.0.1@239.1.1.1:5000"},
		{in: "239.1.1.2:5000"},
		{in: "10.0.0.2@232.1.1.2:5000", want: "10.0.0.2@232.1.1.2:5000", wantAllow: "10.0.0.2@232.1.1.2:5000"},
		{in: "232.1.1.2:5000", wantAllow: "232.1.1.2%eth7:5000", wantAllow2: "232.1.1.2:5000"}, // which of the two?
		{in: "10.0.0.1@232.1.1.3:5000"}, // which of the two?
		{in: "10.0.0.1@232.1.1.3%eth1:5000", want: "10.0.0.1@232.1.1.3%eth1:5000", wantAllow: "10.0.0.1@232.1.1.3%eth1:5000"},
		{in: "239.1.1.4:5000", want: "239.1.1.4:5000", wantAllow: "239.1.1.4:5000"},
		{in: "239.7.1.1:5000", wantAllow: "239.7.1.1%eth7:5000", wantAllow2: "239.7.1.1:5000"},
		{in: "239.7.1.1%eth7:5000", wantAllow: "239.7.1.1%eth7:5000", wantAllow2: "refused"},
		{in: "239.7.1.1%eth0:5000"},
		{in: "239.7.1.1%*:5000"},
		{in: "239.8.1.1:5000"},
		{in: "[ff3e::8000:1]:5000"},
	} {
		check := func(what string, r rules, want string) {
			ch, err := r.resolve(channelOf(t, tt.in))
			switch {
			case want == "" && !errors.Is(err, errForbidden):
				t.Errorf("%s, %s: %v %v, want it refused", tt.in, what, ch, err)
			case want != "" && (err != nil || ch.String() != want):
				t.Errorf("%s, %s: %v %v, want %v", tt.in, what, ch, err, want)
			}
		}
		check("listed", rules{listed: listed}, tt.want)
		check("-allow -i", rules{listed: listed, prefixes: allow, ifname: "eth7"}, tt.wantAllow)
		switch tt.wantAllow2 {
		case "":
			tt.wantAllow2 = tt.wantAllow
		case "refused":
			tt.wantAllow2 = ""
		}
		check("-allow", rules{listed: listed, prefixes: allow}, tt.wantAllow2)
	}
}

// The path of a listed channel leads to it, without its interface if that will
// do.
func TestPath(t *testing.T) {
	r := rules{listed: []mcast.Channel{
		channelOf(t, "10.0.0.1@232.1.1.1%eth0:5000"), channelOf(t, "fd00::1@[ff3e::8000:1]:5000"),
		channelOf(t, "239.1.1.1%eth0:5000"), channelOf(t, "239.1.1.1%eth1:5000"),
	}}
	for i, want := range []string{"/udp/10.0.0.1@232.1.1.1:5000", "/udp/fd00::1@%5Bff3e::8000:1%5D:5000", "/udp/239.1.1.1%25eth0:5000", "/udp/239.1.1.1%25eth1:5000"} {
		if got := pathOf("udp", r.short(r.listed[i])); got != want {
			t.Errorf("%v is at %s, want %s", r.listed[i], got, want)
		}
		if ch, err := r.resolve(r.short(r.listed[i])); err != nil || ch != r.listed[i] {
			t.Errorf("%s leads to %v %v, not to %v", want, ch, err, r.listed[i])
		}
	}
}
