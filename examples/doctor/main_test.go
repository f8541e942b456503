package main

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"

	"example.com/mcast"
	"example.com/mcast/examples/internal/cli"
	"example.com/mcast/examples/internal/looptest"
	"example.com/mcast/internal/netlab"
)

func TestHears(t *testing.T) {
	const group = "239.255.77.9"
	port := looptest.Port(t)
	s := looptest.NewSender(t)
	netlab.Repeat(t, func() { s.Send(group, port, []byte("x")) })
	var out, errs bytes.Buffer
	code := cli.Run(t.Context(), "doctor", run, []string{"-t", "300ms", "-i", looptest.Interface(t).Name, fmt.Sprintf("%s:%d", group, port)}, nil, &out, &errs)
	if code != 0 || errs.Len() != 0 || !strings.Contains(out.String(), "heard in 300ms, from 127.0.0.1") {
		t.Errorf("exit code %d: %s%s", code, out.String(), errs.String())
	}
}

func TestCommandLine(t *testing.T) {
	const at = "239.1.1.1:5000"
	for _, args := range [][]string{
		{},
		{at, at},
		{"-x", at},
		{"239.1.1.1:0"},
		{"239.1.1.1:http"},
		{"10.0.0.1:5000"},
		{"name"},
		{"x@" + at},
		{"::1@" + at},
		{"-i", "no-such-interface", at},
		{"239.1.1.1%2147483647:5000"},
		{"-t", "0", at},
		{"-t", "x", at},
		{"-amt", "", at},
	} {
		var out, errs bytes.Buffer
		code := cli.Run(t.Context(), "doctor", run, args, nil, &out, &errs)
		if code != 2 || out.Len() != 0 || strings.Count(errs.String(), "\n") != 1 || !strings.HasPrefix(errs.String(), "doctor: ") {
			t.Errorf("%q: exit code %d, %q, %q", args, code, out.String(), errs.String())
		}
	}
	var out, errs bytes.Buffer
	code := cli.Run(t.Context(), "doctor", run, []string{"-h"}, nil, &out, &errs)
	if code != 0 || errs.Len() != 0 || !strings.HasPrefix(out.String(), "Usage: doctor ") || !strings.Contains(out.String(), "-json") {
		t.Errorf("-h: exit code %d, %q, %q", code, out.String(), errs.String())
	}
}

func TestParse(t *testing.T) {
	lo := looptest.Interface(t)
	g := func(s, ifname string) mcast.Group {
		return mcast.Group{Addr: netip.MustParseAddr(s), Interface: ifname}
	}
	s4, s6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("2001:db8::1")
	for _, tt := range []struct {
		s    string
		want mcast.Channel
	}{
		{"239.1.1.1", mcast.Channel{Group: g("239.1.1.1", "")}},
		{"232.1.1.1:5000", mcast.Channel{Group: g("232.1.1.1", ""), Port: 5000}},
		{"10.0.0.1@232.1.1.1%LO", mcast.Channel{Group: g("232.1.1.1", lo.Name), Source: s4}},
		{"10.0.0.1@232.1.1.1%LO:5000", mcast.Channel{Group: g("232.1.1.1", lo.Name), Source: s4, Port: 5000}},
		{"ff15::1", mcast.Channel{Group: g("ff15::1", "")}},
		{"[ff15::1%LO]", mcast.Channel{Group: g("ff15::1", lo.Name)}},
		{"[ff15::1%LO]:5000", mcast.Channel{Group: g("ff15::1", lo.Name), Port: 5000}},
		{"2001:db8::1@ff3e::8000:1", mcast.Channel{Group: g("ff3e::8000:1", ""), Source: s6}},
		{"[2001:db8::1]@[ff3e::8000:1]:5000", mcast.Channel{Group: g("ff3e::8000:1", ""), Source: s6, Port: 5000}},
		{"rtp://10.0.0.1@232.1.1.1:5000", mcast.Channel{Group: g("232.1.1.1", ""), Source: s4, Port: 5000}},
	} {
		o, err := parse([]string{strings.ReplaceAll(tt.s, "LO", lo.Name)}, io.Discard)
		index := 0
		if tt.want.Group.Interface != "" {
			index = lo.Index
		}
		if err != nil || o.Channel != tt.want || o.index != index {
			t.Errorf("%s: %+v, %v", tt.s, o, err)
		}
	}
}
