package main

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/mcast/examples/internal/cli"
	"example.com/mcast/examples/internal/looptest"
	"example.com/mcast/internal/amtrelay"
)

func TestAsk(t *testing.T) {
	const far = "10.1.0.2"
	r := looptest.NewRelay(t, amtrelay.Config{})
	for _, tt := range []struct {
		f    facts
		port uint16
	}{
		{facts{Group: netip.MustParseAddr("232.1.1.1"), Source: netip.MustParseAddr(far), Port: 5000}, 5000},
		{facts{Group: netip.MustParseAddr("232.1.1.1")}, 6000}, // as the doctor listens: from any source, to any port
		{facts{Group: netip.MustParseAddr("239.1.1.1")}, 6000},
	} {
		got := make(chan tunnel)
		go func() { got <- tt.f.ask(t.Context(), r.Addr.String(), looptest.Patience) }()
		r.Wait(tt.f.Group.String())
		if tt.f.Port != 0 {
			r.Send(far, tt.f.Group.String(), 4999, []byte("to another port"))
			r.Send("10.1.0.3", tt.f.Group.String(), 5000, []byte("from another source"))
		}
		r.Send(far, tt.f.Group.String(), tt.port, []byte("x"))
		want := tunnel{Asked: r.Addr.String(), Relay: r.Addr, Source: netip.MustParseAddr(far), Port: tt.port}
		if x := <-got; x != want {
			t.Errorf("%+v, want %+v", x, want)
		}
		r.Wait() // it is left
	}
}

// Relays that cannot help.
func TestAskInVain(t *testing.T) {
	r, full := looptest.NewRelay(t, amtrelay.Config{}), looptest.NewRelay(t, amtrelay.Config{Limit: true})
	for _, tt := range []struct {
		group, relay, err string
		at                netip.AddrPort
	}{
		{"232.1.1.1", r.Addr.String(), "", r.Addr},
		{"232.1.1.1", full.Addr.String(), "takes no new gateways", netip.AddrPort{}},
		{"224.0.0.251", r.Addr.String(), "unusable address", netip.AddrPort{}},
		{"232.1.1.1", "232.1.1.1", "unusable address", netip.AddrPort{}},
	} {
		f := facts{Group: netip.MustParseAddr(tt.group), Source: source}
		x := f.ask(t.Context(), tt.relay, time.Millisecond)
		if x.Asked != tt.relay || x.Relay != tt.at || x.Source.IsValid() || !strings.Contains(x.Error, tt.err) || (x.Error == "") != (tt.err == "") {
			t.Errorf("%s of %s: %+v", tt.group, tt.relay, x)
		}
	}
}

// Relays are asked after silence only, and only those that are named.
func TestAskAll(t *testing.T) {
	r := looptest.NewRelay(t, amtrelay.Config{})
	o, err := parse([]string{"-amt", r.Addr.String(), "239.1.1.1"}, io.Discard)
	if err != nil || !slices.Equal(o.relays, []string{r.Addr.String()}) {
		t.Fatalf("%+v, %v", o, err)
	}
	if o, err := parse([]string{"239.1.1.1"}, io.Discard); err != nil || o.relays != nil {
		t.Errorf("%+v, %v", o, err)
	}
	f := sound()
	f.askAll(t.Context(), o.relays, time.Millisecond)
	if c := r.Counts(); f.Tunnels != nil || c != (amtrelay.Counts{}) {
		t.Errorf("%+v; the relay was asked: %+v", f.Tunnels, c)
	}
	f = deaf()
	f.askAll(t.Context(), o.relays, time.Millisecond)
	if len(f.Tunnels) != 1 || f.Tunnels[0].Relay != r.Addr {
		t.Errorf("%+v", f.Tunnels)
	}
}

// The whole program: that a relay answers changes neither the problem nor the
// exit code.
func TestTunnel(t *testing.T) {
	r := looptest.NewRelay(t, amtrelay.Config{})
	var out, errs bytes.Buffer
	args := []string{"-t", "1ms", "-i", looptest.Interface(t).Name, "-amt", r.Addr.String(), fmt.Sprintf("239.255.77.10:%d", looptest.Port(t))}
	code := cli.Run(t.Context(), "doctor", run, args, nil, &out, &errs)
	if code != 1 || !strings.Contains(out.String(), "no multicast here; a relay answers at "+r.Addr.String()) || !strings.Contains(out.String(), "\nproblem ") {
		t.Errorf("exit code %d: %s%s", code, out.String(), errs.String())
	}
}

func TestCheckTunnels(t *testing.T) {
	relay := netip.MustParseAddrPort("192.0.2.1:2268")
	for _, tt := range []struct {
		tunnel
		words, fix string
		change     func(*facts)
	}{
		{tunnel{Asked: "r", Relay: relay, Source: source, Port: 5000}, "no multicast here; a relay answers at 192.0.2.1:2268, and brings what 10.0.0.1 sends", "recv -amt 192.0.2.1:2268 10.0.0.1@232.1.1.1:5000", func(*facts) {}},
		{tunnel{Asked: "r", Relay: relay, Source: source, Port: 6000}, "a relay answers", "recv -amt 192.0.2.1:2268 10.0.0.1@232.1.1.1:6000", func(f *facts) { f.Source, f.Port = netip.Addr{}, 0 }},
		{tunnel{Asked: "r", Relay: relay, Source: source, Port: 6000}, "a relay answers", "recv -amt 192.0.2.1:2268 239.1.1.1:6000", func(f *facts) { f.Group, f.Source, f.Port = netip.MustParseAddr("239.1.1.1"), netip.Addr{}, 0 }},
		{tunnel{Asked: "r", Relay: relay, Source: netip.MustParseAddr("2001:db8::1"), Port: 5000}, "a relay answers", "recv -amt 192.0.2.1:2268 '2001:db8::1@[ff3e::8000:1]:5000'", toIPv6},
		{tunnel{Asked: "r", Relay: relay}, "a relay answers at 192.0.2.1:2268, but brings nothing of 10.0.0.1@232.1.1.1 in 3s either", "", func(*facts) {}},
		{tunnel{Asked: "r", Error: "no relay"}, "no multicast here, and no tunnel by the relay r: no relay", "", func(*facts) {}},
		{tunnel{Asked: "r", Relay: relay}, "a relay answers", "", func(f *facts) { f.Link = nil }},
	} {
		f := deaf()
		tt.change(f)
		f.Tunnels = []tunnel{tt.tunnel}
		all := diagnose(f)
		i := slices.IndexFunc(all, func(x finding) bool { return x.Rule == "amt" })
		if i != len(all)-1 || all[i].Severity != note || !strings.Contains(all[i].Text, tt.words) || strings.Join(all[i].Fix, "\n") != tt.fix {
			t.Errorf("%+v: %+v", tt.tunnel, all)
		}
		if !slices.ContainsFunc(all, func(x finding) bool { return x.Severity == problem }) {
			t.Errorf("no problem in %+v", all)
		}
	}
}
