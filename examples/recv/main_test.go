package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/mcast"
	"example.com/mcast/examples/internal/cli"
	"example.com/mcast/examples/internal/looptest"
	"example.com/mcast/examples/internal/numbered"
	"example.com/mcast/examples/internal/rtp"
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
	return launch(t, append([]string{"-i", looptest.Interface(t).Name}, args...)...)
}

// launch does so wherever the arguments say.
func launch(t *testing.T, args ...string) *program {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	p := &program{looptest.NewBuffer(), looptest.NewBuffer(), cancel, make(chan int, 1)}
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

// Lines are those of -json.
type lines struct {
	joined  joinedReport
	seconds []report
	news    []newsReport
	ended   []endedReport
	summary report
}

func parseJSON(t *testing.T, s string) (x lines) {
	t.Helper()
	for sc := bufio.NewScanner(strings.NewReader(s)); sc.Scan(); {
		var kind struct{ Event string }
		err := json.Unmarshal(sc.Bytes(), &kind)
		read := func(v any) { err = json.Unmarshal(sc.Bytes(), v) }
		switch kind.Event {
		case "joined":
			read(&x.joined)
		case "second":
			x.seconds = append(x.seconds, report{})
			read(&x.seconds[len(x.seconds)-1])
		case "membership", "tunnel", "note":
			x.news = append(x.news, newsReport{})
			read(&x.news[len(x.news)-1])
		case "ended":
			x.ended = append(x.ended, endedReport{})
			read(&x.ended[len(x.ended)-1])
		case "summary":
			read(&x.summary)
		default:
			t.Errorf("a line of an unknown kind: %s", sc.Text())
		}
		if err != nil {
			t.Errorf("%v: %s", err, sc.Text())
		}
	}
	return x
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

	x := parseJSON(t, p.stdout.String())
	joined, seconds, summary := x.joined, x.seconds, x.summary
	on := group + "%" + looptest.Interface(t).Name
	if m := joined.Memberships; len(m) != 1 || m[0].Group != on || m[0].Port != int(port) || m[0].Mode != "EXCLUDE" || len(m[0].Sources) != 0 {
		t.Errorf("joined %+v", m)
	}
	const bytes = 5*17 + 3*19 + 12
	if summary.Datagrams != 9 || summary.Bytes != bytes || summary.missing() != "8 lost, 1 late, 1 duplicate" || summary.Event != "summary" || !slices.Equal(summary.Sources, []netip.Addr{looptest.Source}) {
		t.Errorf("summary %+v, %s", summary, summary.missing())
	}
	var got []string
	for _, s := range summary.Streams {
		if s.Group != on || s.Port != int(port) || s.Source.Addr() != looptest.Source {
			t.Errorf("stream %+v", s)
		}
		got = append(got, fmt.Sprintf("%s: %d datagrams, %s", s.Stream, s.Datagrams, s.missing()))
	}
	if want := []string{
		": 1 datagrams, - lost",
		"00000001: 3 datagrams, 7 lost, 0 late, 0 duplicate",
		"00000abc: 5 datagrams, 1 lost, 1 late, 1 duplicate",
	}; !slices.Equal(got, want) {
		t.Errorf("streams %q, want %q", got, want)
	}
	sum := uint64(0)
	for _, s := range seconds {
		sum += s.Datagrams
	}
	if sum > 9 {
		t.Errorf("the seconds have %d datagrams", sum)
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
	x := parseJSON(t, p.stdout.String())
	joined, summary := x.joined, x.summary
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

// What is in a file is kept when nothing can be joined.
func TestOutputAfterJoin(t *testing.T) {
	file := filepath.Join(t.TempDir(), "film")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	at := fmt.Sprintf("%s:%d", group, looptest.Port(t))
	if code := cli.Run(t.Context(), "recv", run, []string{"-i", looptest.Interface(t).Name, "-o", file, "-block", "0.0.0.0", at}, nil, &out, &out); code != 1 {
		t.Fatalf("exit code %d: %s", code, out.String())
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("%q, %v", b, err)
	}
}

// -rtp: without headers, in order, each once.
func TestOutputRTP(t *testing.T) {
	packet := func(seq uint16, payload string) []byte {
		return append(rtp.Header{Type: 96, Seq: seq, SSRC: 1}.Append(nil), payload...)
	}
	for _, scheme := range []string{"", "rtp://"} {
		port := looptest.Port(t)
		args := []string{"-n", "6", "-o", "-", scheme + fmt.Sprintf("%s:%d", group, port)}
		if scheme == "" {
			args = append(args, "-rtp")
		}
		p := start(t, args...)
		s := looptest.NewSender(t)
		for _, b := range [][]byte{packet(65534, "a"), packet(0, "c"), packet(65535, "b"), packet(0, "c"), packet(2, "e"), packet(1, "d")} {
			s.Send(group, port, b)
		}
		p.end(t)
		if p.stdout.String() != "abcde" || !strings.Contains(p.stderr.String(), "RTP, 0 lost, 2 late, 1 duplicate") {
			t.Errorf("%q: %s", p.stdout, p.stderr)
		}
	}
}

// What is held back for a packet that is missing is not lost at the end.
func TestOutputRTPEnd(t *testing.T) {
	port := looptest.Port(t)
	p := start(t, "-rtp", "-n", "2", "-o", "-", fmt.Sprintf("%s:%d", group, port))
	s := looptest.NewSender(t)
	for _, seq := range []uint16{1, 3} {
		s.Send(group, port, append(rtp.Header{Type: 96, Seq: seq}.Append(nil), fmt.Sprint(seq)...))
	}
	p.end(t)
	if p.stdout.String() != "13" {
		t.Errorf("%q: %s", p.stdout, p.stderr)
	}
}

// -n and -t with nothing heard is a failure, which scripts ask for.
func TestNothingHeard(t *testing.T) {
	at := fmt.Sprintf("%s:%d", group, looptest.Port(t))
	for _, tt := range []struct {
		args []string
		code int
	}{{[]string{"-n", "1", "-t", "1ms", at}, 1}, {[]string{at, "-t", "0.001", "-n", "5"}, 1}, {[]string{"-t", "1ms", at}, 0}} {
		var out, errs bytes.Buffer
		code := cli.Run(t.Context(), "recv", run, append([]string{"-i", looptest.Interface(t).Name}, tt.args...), nil, &out, &errs)
		if code != tt.code || (code == 1) != (errs.String() == "recv: nothing was heard\n") {
			t.Errorf("%q: exit code %d, %q", tt.args, code, errs.String())
		}
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("the disk is full") }

// What cannot be written is a failure, be it lines or payloads.
func TestFullDisk(t *testing.T) {
	port := looptest.Port(t)
	args := []string{"-i", looptest.Interface(t).Name, fmt.Sprintf("%s:%d", group, port)}
	var errs bytes.Buffer
	if code := cli.Run(t.Context(), "recv", run, args, nil, fullDisk{}, &errs); code != 1 || errs.String() != "recv: the disk is full\n" {
		t.Errorf("lines: exit code %d, %q", code, errs.String())
	}
	status, code := looptest.NewBuffer(), make(chan int)
	go func() { code <- cli.Run(t.Context(), "recv", run, append(args, "-o", "-"), nil, fullDisk{}, status) }()
	status.Wait(t, "joined")
	looptest.NewSender(t).Send(group, port, []byte("x"))
	if c := <-code; c != 1 || !strings.HasSuffix(status.String(), "recv: the disk is full\n") {
		t.Errorf("payloads: exit code %d, %q", c, status)
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

// All memberships are left.
func TestLeave(t *testing.T) {
	o, err := parse([]string{"-i", looptest.Interface(t).Name, group + ":5000", "127.0.0.1@" + channel + ":5000"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for i := range o.channels {
		o.channels[i].Port = int(looptest.Port(t))
	}
	conns, err := joinAll(t.Context(), o, new(display))
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
	lo := looptest.Interface(t).Name
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
		{at, "-t", "x"},
		{"-bind", "no-such-interface", at},
		{"-o", "x", at, "239.1.1.1:5000"},
		{"-t", "x", at},
		{"-amt", "", at},
		{"-amt-after", "1s", at},
		{"-amt", "auto", "-amt-after", "x", at},
		{"-amt", "127.0.0.1", "-i", lo, at},
		{"-amt", "127.0.0.1", "-bind", lo, at},
		{"-amt", "127.0.0.1", group + "%" + lo + ":5000"},
		{"-amt", "auto", "-amt-after", "0", "-i", lo, at},
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
