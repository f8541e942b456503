package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/mcast"
	"example.com/mcast/examples/internal/cli"
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
	r.Send(far, group, port, []byte("tunnel 4, "))
	s.Send(group, port, []byte("native 2"))
	p.stdout.Wait(t, "native 2")
	p.interrupt()
	p.end(t)
	if got := strings.Replace(p.stdout.String(), "maybe", "", 1); got != "tunnel 1, tunnel 2, native 1, native 2" || strings.HasSuffix(p.stdout.String(), "maybe") {
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
	o, err := parse([]string{"-amt", "127.0.0.1", "-amt-after", "1ns", "10.0.0.1@232.1.1.1:5000", "10.0.0.2@232.1.1.1:5000", "239.1.1.1:5000", "239.1.1.2:6000", "2001:db8::1@[ff3e::8000:1]:5000"}, io.Discard)
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
	a, b, c := "10.0.0.1@232.1.1.1", "10.0.0.2@232.1.1.1", "10.9.9.9@239.1.1.1"
	for _, step := range []struct {
		name string
		take func([]mcast.Message, func([]mcast.Message) error) error
		ms   []string
		want []string
	}{
		{"at first the tunnel has all", f.tunnelled, []string{a, b, c}, []string{a, b, c}},
		{"of what was asked for", f.tunnelled, []string{"10.0.0.1@239.1.1.2", "2001:db8::1@ff3e::8000:1", a}, []string{a}},
		{"the network brings one", f.native, []string{b}, []string{b}},
		{"the tunnel has the others", f.tunnelled, []string{b, a, b, c}, []string{a, c}},
		{"the network brings a group, from any source", f.native, []string{"10.8.8.8@239.1.1.1", b}, []string{"10.8.8.8@239.1.1.1", b}},
		{"which is one for the tunnel", f.tunnelled, []string{c, b, a}, []string{a}},
		{"the network brings all", f.native, []string{a}, []string{a}},
		{"the tunnel has nothing", f.tunnelled, []string{a, b, c}, nil},
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
	}
	if f.options.after = 1; f.run(t.Context(), note) != nil { // nothing is missing: no relay is looked for
		t.Error(err)
	}
}

// Only what is missing is asked for in the tunnel.
func TestMissing(t *testing.T) {
	r := looptest.NewRelay(t, amtrelay.Config{})
	o, err := parse([]string{"-amt", r.Addr.String(), "-amt-after", "1ns", "10.0.0.1@232.1.1.1:5000", "239.1.1.1:5000", "239.1.1.2:5000"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	f := newFallback(address{false, 5000}, o, &display{w: io.Discard})
	note := func([]mcast.Message) error { return nil }
	f.native(messages("10.9.9.9@239.1.1.1"), note)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.run(ctx, note) }()
	r.Wait("232.1.1.1", "239.1.1.2")
	f.native(messages("10.9.9.9@239.1.1.2"), note)
	r.Wait("232.1.1.1")
	cancel()
	select {
	case <-done:
	case <-time.After(looptest.Patience):
		t.Fatal("it does not end")
	}
	r.Wait()
}
