package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/mcast"
	"example.com/mcast/examples/internal/cli"
	"example.com/mcast/examples/internal/looptest"
	"example.com/mcast/examples/internal/numbered"
)

const (
	group   = "239.255.77.4"
	channel = "232.77.77.4"
)

// The test binary runs as the program itself where a test needs a process.
func TestMain(m *testing.M) {
	if os.Getenv("RECV_TEST_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

// A program is a recv that runs.
type program struct {
	stdout, stderr *looptest.Buffer
	interrupt      func()
	code           chan int
}

// start starts recv on the loopback interface, and waits until it has joined.
func start(t *testing.T, args ...string) *program {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	p := &program{looptest.NewBuffer(), looptest.NewBuffer(), cancel, make(chan int, 1)}
	args = append([]string{"-i", looptest.Interface(t).Name}, args...)
	go func() { p.code <- cli.Run(ctx, "recv", run, args, nil, p.stdout, p.stderr) }()
	status := p.stdout
	if i := slices.Index(args, "-o"); i >= 0 && args[i+1] == "-" {
		status = p.stderr
	}
	status.Wait(t, "joined")
	return p
}

// end waits until the program has ended well.
func (p *program) end(t *testing.T) {
	t.Helper()
	select {
	case code := <-p.code:
		if code != 0 {
			t.Fatalf("exit code %d: %s%s", code, p.stdout, p.stderr)
		}
	case <-time.After(looptest.Patience):
		t.Fatalf("it does not end: %s%s", p.stdout, p.stderr)
	}
}

// parseJSON returns the lines of -json.
func parseJSON(t *testing.T, s string) (joined joinedReport, seconds []report, summary report) {
	t.Helper()
	for sc := bufio.NewScanner(strings.NewReader(s)); sc.Scan(); {
		var kind struct{ Event string }
		var r report
		err := json.Unmarshal(sc.Bytes(), &kind)
		switch kind.Event {
		case "joined":
			err = json.Unmarshal(sc.Bytes(), &joined)
		case "second":
			err = json.Unmarshal(sc.Bytes(), &r)
			seconds = append(seconds, r)
		case "summary":
			err = json.Unmarshal(sc.Bytes(), &summary)
		default:
			t.Errorf("a line of an unknown kind: %s", sc.Text())
		}
		if err != nil {
			t.Errorf("%v: %s", err, sc.Text())
		}
	}
	return joined, seconds, summary
}

func datagram(stream uint32, seq uint64, payload string) []byte {
	return append(numbered.Header{Stream: stream, Seq: seq}.Append(nil), payload...)
}

func TestCounts(t *testing.T) {
	port := looptest.Port(t)
	p := start(t, "-json", "-n", "9", fmt.Sprintf("%s:%d", group, port))
	s := looptest.NewSender(t)
	for _, n := range []uint64{10, 11, 14, 13, 13} { // 12 is missing
		s.Send(group, port, datagram(0xabc, n, "x"))
	}
	for _, n := range []uint64{0, 1, 9} { // 2 to 8 are missing
		s.Send(group, port, datagram(1, n, "xyz"))
	}
	s.Send(group, port, []byte("not numbered"))
	p.end(t)

	joined, seconds, summary := parseJSON(t, p.stdout.String())
	on := group + "%" + looptest.Interface(t).Name
	if m := joined.Memberships; len(m) != 1 || m[0].Group != on || m[0].Port != int(port) || m[0].Mode != "EXCLUDE" || len(m[0].Sources) != 0 {
		t.Errorf("joined %+v", m)
	}
	want := counts{Datagrams: 9, Bytes: 5*17 + 3*19 + 12, Lost: 8, Late: 1, Duplicate: 1}
	if summary.counts != want || summary.Event != "summary" || !slices.Equal(summary.Sources, []netip.Addr{looptest.Source}) {
		t.Errorf("summary %+v, want %+v", summary, want)
	}
	var got []string
	for _, s := range summary.Streams {
		if s.Group != on || s.Port != int(port) || s.Source.Addr() != looptest.Source {
			t.Errorf("stream %+v", s)
		}
		got = append(got, fmt.Sprintf("%s: %d datagrams, %d lost, %d late, %d duplicate", s.Stream, s.Datagrams, s.Lost, s.Late, s.Duplicate))
	}
	if want := []string{
		": 1 datagrams, 0 lost, 0 late, 0 duplicate",
		"00000001: 3 datagrams, 7 lost, 0 late, 0 duplicate",
		"00000abc: 5 datagrams, 1 lost, 1 late, 1 duplicate",
	}; !slices.Equal(got, want) {
		t.Errorf("streams %q, want %q", got, want)
	}
	var sum counts
	for _, s := range seconds {
		sum.Datagrams += s.Datagrams
		sum.Lost += s.Lost
	}
	if sum.Datagrams > want.Datagrams {
		t.Errorf("the seconds have %+v, the summary has %+v", sum, want)
	}
}

// Each second there is a line.
func TestSeconds(t *testing.T) {
	port := looptest.Port(t)
	for _, tt := range []struct{ flag, line string }{{"-json=false", " 1 datagrams/s"}, {"-json", `"event":"second"`}} {
		p := start(t, tt.flag, fmt.Sprintf("%s:%d", group, port))
		looptest.NewSender(t).Send(group, port, []byte("hello"))
		p.stdout.Wait(t, looptest.Source.String())
		p.stdout.Wait(t, strings.TrimPrefix(tt.line, " 1"))
		p.interrupt()
		p.end(t)
	}
}

// -block is for groups that are joined for any source, not for channels.
func TestBlock(t *testing.T) {
	port := looptest.Port(t)
	p := start(t, "-json", "-n", "1", "-block", looptest.Source.String(), "-block", "192.0.2.1",
		fmt.Sprintf("%s:%d", group, port), fmt.Sprintf("%v@%s:%d", looptest.Source, channel, port))
	s := looptest.NewSender(t)
	s.Send(group, port, datagram(1, 0, ""))
	s.Send(channel, port, datagram(1, 1, ""))
	p.end(t)
	joined, _, summary := parseJSON(t, p.stdout.String())
	var got []string
	for _, m := range joined.Memberships {
		name, _, _ := strings.Cut(m.Group, "%")
		got = append(got, fmt.Sprint(name, m.Mode, m.Sources))
	}
	if want := []string{channel + "INCLUDE[127.0.0.1]", group + "EXCLUDE[127.0.0.1 192.0.2.1]"}; !slices.Equal(got, want) {
		t.Errorf("joined %q, want %q", got, want)
	}
	if len(summary.Streams) != 1 || !strings.HasPrefix(summary.Streams[0].Group, channel) {
		t.Errorf("heard %+v", summary.Streams)
	}
}

// Several ports are several sockets.
func TestPorts(t *testing.T) {
	a, b := looptest.Port(t), looptest.Port(t)
	p := start(t, "-n", "2", fmt.Sprintf("%s:%d", group, a), fmt.Sprintf("%s:%d", group, b), fmt.Sprintf("239.255.77.5:%d", b))
	s := looptest.NewSender(t)
	s.Send("239.255.77.5", a, []byte("nobody joined this")) // the group on the other port
	s.Send(group, a, []byte("one"))
	p.stdout.Wait(t, fmt.Sprintf("joined %s%%%s, port %d, from any source\n", group, looptest.Interface(t).Name, b))
	s.Send("239.255.77.5", b, []byte("two"))
	p.end(t)
	for _, want := range []string{"2 datagrams, 6 bytes in", fmt.Sprintf("port %d from 127.0.0.1:", a), fmt.Sprintf("port %d from 127.0.0.1:", b)} {
		if !strings.Contains(p.stdout.String(), want) {
			t.Errorf("nothing of %q: %s", want, p.stdout)
		}
	}
}

func TestOutput(t *testing.T) {
	const want = "one, two, three"
	file := filepath.Join(t.TempDir(), "payloads")
	for _, name := range []string{file, "-"} {
		port := looptest.Port(t)
		p := start(t, "-n", "3", "-o", name, fmt.Sprintf("%s:%d", group, port))
		s := looptest.NewSender(t)
		s.Send(group, port, datagram(7, 0, "one, "))
		s.Send(group, port, []byte("two, "))
		s.Send(group, port, datagram(7, 1, "three"))
		s.Send(group, port, datagram(7, 2, ", and more than -n"))
		p.end(t)
		got, status := p.stdout.String(), p.stderr.String()
		if name != "-" {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got, status = string(b), p.stdout.String()
		}
		if got != want || !strings.Contains(status, "3 datagrams") {
			t.Errorf("-o %s: %q, want %q; %s", name, got, want, status)
		}
	}
}

func TestDuration(t *testing.T) {
	p := start(t, "-t", "1ms", fmt.Sprintf("%s:%d", group, looptest.Port(t)))
	p.end(t)
	if !strings.Contains(p.stdout.String(), "\n0 datagrams, 0 bytes") {
		t.Error(p.stdout.String())
	}
}

// The program and its sender, end to end: what goes in comes out.
func TestSendToRecv(t *testing.T) {
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skipf("no go command to build the sender with (as under Wine): %v", err)
	}
	dir := t.TempDir()
	send, data, received := filepath.Join(dir, "send.exe"), filepath.Join(dir, "data"), filepath.Join(dir, "received")
	if out, err := exec.Command(goTool, "build", "-o", send, "example.com/mcast/examples/send").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := bytes.Repeat([]byte("0123456789abcdef-"), 1000)
	if err := os.WriteFile(data, want, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(data)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	port := looptest.Port(t)
	p := start(t, "-n", "34", "-o", received, fmt.Sprintf("%v@%s:%d", looptest.Source, channel, port))
	cmd := exec.Command(send, "-from", looptest.Source.String(), "-size", "516", "-rate", "2000", "-f", "-", fmt.Sprintf("%s:%d", channel, port))
	cmd.Stdin = f
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("sent 34 datagrams")) {
		t.Fatalf("%v\n%s", err, out)
	}
	p.end(t)
	got, err := os.ReadFile(received)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes arrived that are not the %d that were sent", len(got), len(want))
	}
	if !strings.Contains(p.stdout.String(), "0 lost, 0 late, 0 duplicate") {
		t.Error(p.stdout.String())
	}
}

func TestInterrupt(t *testing.T) {
	p := start(t, fmt.Sprintf("%s:%d", group, looptest.Port(t)))
	p.interrupt()
	p.end(t)
	if !strings.Contains(p.stdout.String(), "\n0 datagrams") {
		t.Error(p.stdout.String())
	}
}

// The same by a signal.
func TestSignal(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a process cannot be sent Ctrl-C here")
	}
	cmd := exec.Command(os.Args[0], "-i", looptest.Interface(t).Name, fmt.Sprintf("%s:%d", group, looptest.Port(t)))
	cmd.Env = append(os.Environ(), "RECV_TEST_MAIN=1")
	out := looptest.NewBuffer()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out.Wait(t, "joined")
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Error(err)
		cmd.Process.Kill()
	}
	if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), "\n0 datagrams") {
		t.Errorf("%v: %s", err, out)
	}
}

// All memberships are left.
func TestLeave(t *testing.T) {
	o, err := parse([]string{"-i", looptest.Interface(t).Name, group + ":5000", "127.0.0.1@" + channel + ":5000"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for i := range o.channels {
		o.channels[i].Port = int(looptest.Port(t))
	}
	conns, err := joinAll(o)
	if err != nil || len(conns) != 2 {
		t.Fatal(conns, err)
	}
	for _, c := range conns {
		defer c.Close()
	}
	if err := leaveAll(conns); err != nil {
		t.Error(err)
	}
	for _, c := range conns {
		if m := c.Memberships(); len(m) != 0 {
			t.Errorf("%v is still joined", m)
		}
	}
}

func TestFailures(t *testing.T) {
	at := fmt.Sprintf("%s:%d", group, looptest.Port(t))
	for _, args := range [][]string{
		{at, "127.0.0.1@" + at},                                     // ErrMode
		{"-block", "239.1.1.1", at},                                 // ErrAddress
		{"-o", t.TempDir(), at},                                     // a folder
		{"-block", "0.0.0.0", "-i", looptest.Interface(t).Name, at}, // ErrAddress
	} {
		var out, errs bytes.Buffer
		code := cli.Run(t.Context(), "recv", run, append([]string{"-i", looptest.Interface(t).Name}, args...), nil, &out, &errs)
		if code != 1 || strings.Count(errs.String(), "\n") != 1 || !strings.HasPrefix(errs.String(), "recv: ") {
			t.Errorf("%q: exit code %d, %q, %q", args, code, out.String(), errs.String())
		}
	}
}

func TestCommandLine(t *testing.T) {
	const at = group + ":5000"
	for _, args := range [][]string{
		{},
		{"-x", at},
		{group},
		{group + ":0"},
		{group + ":65536"},
		{group + ":http"},
		{"10.0.0.1:5000"},
		{"name:5000"},
		{"ff15::1:5000"},
		{"[ff15::1%no-such-interface]:5000"},
		{"x@" + at},
		{"::1@" + at},
		{"239.1.1.1@" + at},
		{"239.1.1.1%2147483647:5000"},
		{"http://" + at},
		{channel + ":5000"},
		{at, at},
		{"-i", "no-such-interface", at},
		{"-block", "x", at},
		{"-block", "::1", at},
		{"-block", "10.0.0.1", "10.0.0.1@" + at},
		{"-n", "-1", at},
		{"-t", "-1s", at},
		{"-t", "x", at},
	} {
		var out, errs bytes.Buffer
		code := cli.Run(t.Context(), "recv", run, args, nil, &out, &errs)
		if code != 2 || out.Len() != 0 || strings.Count(errs.String(), "\n") != 1 || !strings.HasPrefix(errs.String(), "recv: ") {
			t.Errorf("%q: exit code %d, %q, %q", args, code, out.String(), errs.String())
		}
	}
	var out, errs bytes.Buffer
	code := cli.Run(t.Context(), "recv", run, []string{"-h"}, nil, &out, &errs)
	if code != 0 || errs.Len() != 0 || !strings.HasPrefix(out.String(), "Usage: recv ") || !strings.Contains(out.String(), "-block") {
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
		args []string
		want mcast.Channel
	}{
		{[]string{"239.1.1.1:5000"}, mcast.Channel{Group: g("239.1.1.1", ""), Port: 5000}},
		{[]string{"239.1.1.1%" + lo.Name + ":5001"}, mcast.Channel{Group: g("239.1.1.1", lo.Name), Port: 5001}},
		{[]string{fmt.Sprintf("239.1.1.1%%%d:5001", lo.Index)}, mcast.Channel{Group: g("239.1.1.1", fmt.Sprint(lo.Index)), Port: 5001}},
		{[]string{"-i", lo.Name, "239.1.1.1:5001"}, mcast.Channel{Group: g("239.1.1.1", lo.Name), Port: 5001}},
		{[]string{"-i", lo.Name, "239.1.1.1%*:5001"}, mcast.Channel{Group: g("239.1.1.1", "*"), Port: 5001}},
		{[]string{"10.0.0.1@232.1.1.1:5000"}, mcast.Channel{Group: g("232.1.1.1", ""), Source: s4, Port: 5000}},
		{[]string{"[ff15::1%" + lo.Name + "]:5000"}, mcast.Channel{Group: g("ff15::1", lo.Name), Port: 5000}},
		{[]string{"2001:db8::1@[ff3e::8000:1]:5000"}, mcast.Channel{Group: g("ff3e::8000:1", ""), Source: s6, Port: 5000}},
		{[]string{"[2001:db8::1]@[ff3e::8000:1]:5000"}, mcast.Channel{Group: g("ff3e::8000:1", ""), Source: s6, Port: 5000}},
		{[]string{"udp://10.0.0.1@232.1.1.1:5000"}, mcast.Channel{Group: g("232.1.1.1", ""), Source: s4, Port: 5000}},
		{[]string{"udp://@239.1.1.1:5000"}, mcast.Channel{Group: g("239.1.1.1", ""), Port: 5000}},
	} {
		o, err := parse(tt.args, io.Discard)
		if err != nil || len(o.channels) != 1 || o.channels[0] != tt.want {
			t.Errorf("%q: %+v, %v", tt.args, o.channels, err)
		}
	}
}
