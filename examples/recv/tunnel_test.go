package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/mcast"
	"example.com/mcast/examples/internal/cli"
	"example.com/mcast/examples/internal/incoming"
	"example.com/mcast/examples/internal/looptest"
	"example.com/mcast/internal/amtrelay"
)

const far = "10.1.0.2" // a source behind the relay

// The tunnel alone: what was asked for, on its ports.
func TestTunnel(t *testing.T) {
	r := looptest.NewRelay(t, amtrelay.Config{})
	p := launch(t, "-json", "-n", "3", "-amt", r.Addr.String(), far+"@232.1.1.1:5000", "239.1.1.1:6000", "-block", "10.1.0.3")
	r.Wait("232.1.1.1", "239.1.1.1")
	r.Send(far, "232.1.1.1", 6000, []byte("not on that port"))
	r.Send(far, "239.1.1.1", 5000, []byte("not on that port"))
	r.Send("10.1.0.3", "239.1.1.1", 6000, []byte("blocked"))
	r.Send("10.1.0.3", "232.1.1.1", 5000, []byte("from another source"))
	r.Send(far, "232.1.1.1", 5000, datagram(1, 0, "x"))
	r.Send(far, "232.1.1.1", 5000, datagram(1, 2, "x"))
	r.Send("10.1.0.4", "239.1.1.1", 6000, []byte("x"))
	p.end(t)
	x := parseJSON(t, p.stdout.String())
	var got []string
	for _, m := range x.joined.Memberships {
		got = append(got, fmt.Sprintf("%s %d %s %v", m.Group, m.Port, m.Mode, m.Sources))
	}
	if want := []string{"232.1.1.1%amt 5000 INCLUDE [10.1.0.2]", "239.1.1.1%amt 6000 EXCLUDE [10.1.0.3]"}; !slices.Equal(got, want) {
		t.Errorf("joined %q, want %q", got, want)
	}
	got = nil
	for _, s := range x.summary.Streams {
		got = append(got, fmt.Sprintf("%s %d %v %d %s", s.Group, s.Port, s.Source, s.Datagrams, s.missing()))
	}
	if want := []string{"232.1.1.1%amt 5000 10.1.0.2:4711 2 1 lost, 0 late, 0 duplicate", "239.1.1.1%amt 6000 10.1.0.4:4711 1 - lost"}; !slices.Equal(got, want) {
		t.Errorf("heard %q, want %q", got, want)
	}
	if !slices.ContainsFunc(x.news, func(n newsReport) bool { return n.Event == "tunnel" && n.Kind == "tunnel up" }) {
		t.Errorf("%+v", x.news)
	}
	r.Wait() // all is left
}

// The network is silent at first, and then not.
func TestFallback(t *testing.T) {
	r := looptest.NewRelay(t, amtrelay.Config{})
	port := looptest.Port(t)
	p := start(t, "-amt", r.Addr.String(), "-amt-after", "1ms", "-o", "-", fmt.Sprintf("%s:%d", group, port))
	r.Wait(group)
	r.Send(far, group, port, []byte("tunnel 1, "))
	p.stdout.Wait(t, "tunnel 1, ")
	r.Send(far, group, port, []byte("tunnel 2, "))
	p.stdout.Wait(t, "tunnel 2, ")
	s := looptest.NewSender(t)
	s.Send(group, port, []byte("native 1, "))
	r.Send(far, group, port, []byte("maybe"))
	p.stdout.Wait(t, "native 1, ")
	r.Wait()
	s.Send(group, port, []byte("native 2, "))
	p.stdout.Wait(t, "native 2, ")
	r.Send(far, group, port, []byte("tunnel 4, "))
	s.Send(group, port, []byte("native 3"))
	p.stdout.Wait(t, "native 3")
	p.interrupt()
	p.end(t)
	if got := strings.Replace(p.stdout.String(), "maybe", "", 1); got != "tunnel 1, tunnel 2, native 1, native 2, native 3" || strings.HasSuffix(p.stdout.String(), "maybe") {
		t.Errorf("%q", p.stdout)
	}
	for _, want := range []string{
		"nothing of " + group + " in the network: trying a tunnel",
		"relay " + r.Addr.String() + ": tunnel up",
		group + " arrives from the network, by " + looptest.Interface(t).Name + ": left in the tunnel",
		group + "%amt port", group + "%" + looptest.Interface(t).Name + " port",
	} {
		if !strings.Contains(p.stderr.String(), want) {
			t.Errorf("nothing of %q: %s", want, p.stderr)
		}
	}
}

// At the end of the program the tunnel is left.
func TestFallbackEnds(t *testing.T) {
	r := looptest.NewRelay(t, amtrelay.Config{})
	p := start(t, "-amt", r.Addr.String(), "-amt-after", "1ms", group+fmt.Sprintf(":%d", looptest.Port(t)))
	r.Wait(group)
	p.interrupt()
	p.end(t)
	r.Wait()
}

// A relay that takes nobody ends a program that has nothing else.
func TestNoTunnel(t *testing.T) {
	r := looptest.NewRelay(t, amtrelay.Config{Limit: true})
	port := looptest.Port(t)
	var out, errs bytes.Buffer
	code := cli.Run(t.Context(), "recv", run, []string{"-amt", r.Addr.String(), far + "@232.1.1.1:5000"}, nil, &out, &errs)
	if code != 1 || !strings.HasPrefix(errs.String(), "recv: ") || !strings.Contains(errs.String(), "takes no new gateways") {
		t.Errorf("exit code %d, %q", code, errs.String())
	}
	p := start(t, "-amt", r.Addr.String(), "-amt-after", "1ms", "-n", "1", fmt.Sprintf("%s:%d", group, port))
	p.stdout.Wait(t, "no tunnel: ")
	looptest.NewSender(t).Send(group, port, []byte("x"))
	p.end(t)
}

func messages(ms ...string) (list []mcast.Message) {
	for _, m := range ms {
		ch, err := mcast.ParseChannel(m)
		if err != nil {
			panic(err)
		}
		list = append(list, mcast.Message{Buf: []byte(m), N: len(m), Group: ch.Group, Source: netip.AddrPortFrom(ch.Source, 4711)})
	}
	return list
}

// What the network brought is not taken from the tunnel from then on, the rest
// is, and each buffer stays where it can be used again.
func TestChoice(t *testing.T) {
	o, err := parse([]string{"-amt", "127.0.0.1", "-amt-after", "1h", "10.0.0.1@232.1.1.1:5000", "10.0.0.2@232.1.1.1:5000", "239.1.1.1:5000", "239.1.1.2:6000", "2001:db8::1@[ff3e::8000:1]:5000"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	f := newFallback(address{false, 5000}, o, new(display))
	var got []string
	note := func(ms []mcast.Message) error {
		for i := range ms {
			got = append(got, string(ms[i].Buf))
		}
		return nil
	}
	if got := f.missing(time.Now()); got != "" {
		t.Errorf("%s is missing at once", got)
	}
	a, b, c := "10.0.0.1@232.1.1.1", "10.0.0.2@232.1.1.1", "10.9.9.9@239.1.1.1"
	all := []string{a, b, "239.1.1.1"}
	for _, step := range []struct {
		name    string
		take    func([]mcast.Message, func([]mcast.Message) error) error
		ms      []string
		want    []string
		missing []string // an hour later, if it is not nil
	}{
		{"at first the network is waited for", f.tunnelled, []string{a, b, c}, nil, all},
		{"then the tunnel has all", f.tunnelled, []string{a, b, c}, []string{a, b, c}, nil},
		{"of what was asked for", f.tunnelled, []string{"10.0.0.1@239.1.1.2", "2001:db8::1@ff3e::8000:1", a}, []string{a}, nil},
		{"the network brings one", f.native, []string{b}, []string{b}, nil},
		{"the tunnel has the others", f.tunnelled, []string{b, a, b, c}, []string{a, c}, nil},
		{"the network brings a group, from any source", f.native, []string{"10.8.8.8@239.1.1.1", b}, []string{"10.8.8.8@239.1.1.1", b}, nil},
		{"which is one for the tunnel", f.tunnelled, []string{c, b, a}, []string{a}, nil},
		{"the network brings all", f.native, []string{a}, []string{a}, nil},
		{"the tunnel has nothing", f.tunnelled, []string{a, b, c}, nil, all},
		{"the network is silent again", f.tunnelled, []string{b, c}, []string{b, c}, nil},
		{"and brings one again", f.native, []string{b}, []string{b}, nil},
		{"which the tunnel has no more", f.tunnelled, []string{a, b, c}, []string{a, c}, nil},
	} {
		got = nil
		ms := messages(step.ms...)
		if err := step.take(ms, note); err != nil || !slices.Equal(got, step.want) {
			t.Errorf("%s: %q, %v; want %q", step.name, got, err, step.want)
		}
		var left []string
		for i := range ms {
			left = append(left, string(ms[i].Buf))
		}
		if slices.Sort(left); !slices.Equal(left, slices.Sorted(slices.Values(step.ms))) {
			t.Errorf("%s: of the buffers %q there are %q", step.name, step.ms, left)
		}
		if step.missing == nil {
			continue
		}
		if got := f.missing(time.Now().Add(time.Hour)); got != strings.Join(step.missing, ", ") {
			t.Errorf("%s: an hour later %s is missing, want %q", step.name, got, step.missing)
		}
	}
}

// Only what is missing is asked for in the tunnel, and when the network has
// ceased to bring it, again.
func TestMissing(t *testing.T) {
	r := looptest.NewRelay(t, amtrelay.Config{})
	o, err := parse([]string{"-amt", r.Addr.String(), "-amt-after", "1h", "10.0.0.1@232.1.1.1:5000", "239.1.1.1:5000", "239.1.1.2:5000", "-block", "10.0.0.3"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	f := newFallback(address{false, 5000}, o, &display{w: io.Discard})
	note := func([]mcast.Message) error { return nil }
	silent := func(m string) {
		f.mu.Lock()
		defer f.mu.Unlock()
		w, n := f.find(&messages(m)[0])
		if n == nil || n.Missing() {
			t.Fatalf("%s is missing already", m)
		}
		f.wishes[w] = incoming.NewNative(time.Hour, time.Now().Add(-time.Hour))
	}
	for _, m := range []string{"10.0.0.1@232.1.1.1", "10.9.9.9@239.1.1.2"} {
		silent(m)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.run(ctx, note) }()
	r.Wait("232.1.1.1", "239.1.1.2")
	f.native(messages("10.9.9.9@239.1.1.2", "10.0.0.1@232.1.1.1"), note)
	r.Wait()
	for _, m := range []string{"10.9.9.9@239.1.1.1", "10.9.9.9@239.1.1.2", "10.0.0.1@232.1.1.1"} {
		silent(m)
	}
	r.Wait("232.1.1.1", "239.1.1.1", "239.1.1.2")
	var got []string
	for _, m := range f.gateway.Load().Memberships() {
		got = append(got, fmt.Sprint(m))
	}
	if slices.Sort(got); len(got) != 3 || !strings.Contains(got[0], "10.0.0.1") || !strings.Contains(got[1], "10.0.0.3") || !strings.Contains(got[2], "10.0.0.3") {
		t.Errorf("%q", got)
	}
	f.native(messages("10.9.9.9@239.1.1.1", "10.9.9.9@239.1.1.2"), note)
	r.Wait("232.1.1.1")
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
	case <-time.After(looptest.Patience):
		t.Fatal("it does not end")
	}
	r.Wait()
}

// A relay that is looked for is the second choice; one that is named is the only
// one, unless told otherwise.
func TestAfter(t *testing.T) {
	for _, tt := range []struct {
		args string
		want time.Duration
	}{
		{"-amt auto", 5 * time.Second},
		{"-amt auto -amt-after 1m", time.Minute},
		{"-amt auto -amt-after 0", 0},
		{"-amt 127.0.0.1", 0},
		{"-amt 127.0.0.1 -amt-after 2", 2 * time.Second},
	} {
		o, err := parse(append(strings.Fields(tt.args), "239.1.1.1:5000"), io.Discard)
		if err != nil || o.after != tt.want {
			t.Errorf("%s: after %v, %v; want %v", tt.args, o.after, err, tt.want)
		}
	}
}

// While the network brings something no relay is asked.
func TestNetworkFirst(t *testing.T) {
	r := looptest.NewRelay(t, amtrelay.Config{})
	port := looptest.Port(t)
	p := start(t, "-amt", r.Addr.String(), "-amt-after", "1h", "-n", "1", fmt.Sprintf("%s:%d", group, port))
	looptest.NewSender(t).Send(group, port, []byte("x"))
	p.end(t)
	if c := r.Counts(); c != (amtrelay.Counts{}) || strings.Contains(p.stdout.String(), "tunnel") {
		t.Errorf("%+v: %s", c, p.stdout)
	}
}
