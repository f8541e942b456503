package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.com/mcast"
	"example.com/mcast/examples/internal/cli"
	"example.com/mcast/examples/internal/looptest"
	"example.com/mcast/examples/internal/numbered"
)

const group = "239.255.77.3"

// sendRun runs the program.
func sendRun(ctx context.Context, stdin io.Reader, args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	code = cli.Run(ctx, "send", run, args, stdin, &out, &errs)
	return out.String(), errs.String(), code
}

// A receiver hears the group on the loopback interface.
type receiver struct {
	*mcast.Conn
	to string // where to send
}

func newReceiver(t *testing.T) receiver {
	t.Helper()
	port := looptest.Port(t)
	c, err := mcast.Listen("udp4", fmt.Sprintf(":%d", port), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	g := mcast.Group{Addr: netip.MustParseAddr(group), Interface: cli.Name(looptest.Interface(t))}
	if err := c.Join(g); err != nil {
		t.Fatal(err)
	}
	return receiver{c, fmt.Sprintf("%s:%d", group, port)}
}

// next returns the next numbered datagram.
func (r receiver) next(t *testing.T) (numbered.Header, []byte, netip.Addr) {
	t.Helper()
	r.SetReadDeadline(time.Now().Add(looptest.Patience))
	m := mcast.Message{Buf: make([]byte, 1<<16)}
	if err := r.ReadMessage(&m); err != nil {
		t.Fatal(err)
	}
	h, payload, ok := numbered.Parse(m.Buf[:m.N])
	if !ok {
		t.Fatalf("a datagram without a number: %q", m.Buf[:m.N])
	}
	return h, payload, m.Source.Addr()
}

func TestNumbered(t *testing.T) {
	r := newReceiver(t)
	stdout, stderr, code := sendRun(t.Context(), nil, "-from", "127.0.0.1", "-rate", "0", "-n", "5", "-size", "100", r.to)
	if code != 0 || stderr != "" || !strings.Contains(stdout, "sent 5 datagrams, 500 bytes") {
		t.Fatalf("exit code %d, %q, %q", code, stdout, stderr)
	}
	var stream uint32
	for n := range uint64(5) {
		h, payload, from := r.next(t)
		if n == 0 {
			stream = h.Stream
		}
		if h.Seq != n || h.Stream != stream || len(payload) != 100-numbered.Size || from != looptest.Source {
			t.Errorf("datagram %d: %+v, %d bytes from %v", n, h, len(payload), from)
		}
	}
	if !strings.Contains(stdout, fmt.Sprintf("stream %08x\n", stream)) {
		t.Errorf("the stream is not %08x: %s", stream, stdout)
	}
}

func TestFrom(t *testing.T) {
	want := netip.MustParseAddr("127.0.0.2")
	if c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(want, 0))); err != nil {
		t.Skipf("no second loopback address here: %v", err)
	} else {
		c.Close()
	}
	r := newReceiver(t)
	if _, stderr, code := sendRun(t.Context(), nil, "-from", want.String(), "-n", "1", r.to); code != 0 {
		t.Fatalf("exit code %d, %q", code, stderr)
	}
	_, _, from := r.next(t)
	if wine := os.Getenv("MCAST_TEST_WINE"); wine != "" && from != want {
		t.Skipf("%s sends from %v in place of %v", wine, from, want)
	}
	if from != want {
		t.Errorf("the source is %v, want %v", from, want)
	}
}

// What is read arrives, cut into datagrams.
func TestInput(t *testing.T) {
	data := make([]byte, 10_000)
	for i := range data {
		data[i] = byte(i * i >> 3)
	}
	file := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{file, "-"} {
		r := newReceiver(t)
		stdout, stderr, code := sendRun(t.Context(), bytes.NewReader(data), "-from", "127.0.0.1", "-rate", "0", "-size", "1016", "-f", name, r.to)
		if code != 0 || !strings.Contains(stdout, "sent 10 datagrams, 10160 bytes") {
			t.Fatalf("-f %s: exit code %d, %q, %q", name, code, stdout, stderr)
		}
		var got []byte
		for n := range uint64(10) {
			h, payload, _ := r.next(t)
			if h.Seq != n || len(payload) > 1000 {
				t.Fatalf("-f %s: datagram %d: %+v, %d bytes", name, n, h, len(payload))
			}
			got = append(got, payload...)
		}
		if !bytes.Equal(got, data) {
			t.Errorf("-f %s: what arrived is not what was read", name)
		}
	}
}

// The count holds for input too.
func TestInputCount(t *testing.T) {
	r := newReceiver(t)
	stdout, _, code := sendRun(t.Context(), strings.NewReader("abcdef"), "-from", "127.0.0.1", "-size", "17", "-n", "2", "-f", "-", r.to)
	if code != 0 || !strings.Contains(stdout, "sent 2 datagrams, 34 bytes") {
		t.Errorf("exit code %d, %q", code, stdout)
	}
	for _, want := range []string{"a", "b"} {
		if _, payload, _ := r.next(t); string(payload) != want {
			t.Errorf("payload %q, want %q", payload, want)
		}
	}
}

// Ctrl-C ends it, be it while it waits for input or for the next datagram to
// be due.
func TestInterrupt(t *testing.T) {
	r := newReceiver(t)
	silent, w := io.Pipe()
	defer w.Close()
	for _, args := range [][]string{{"-f", "-", "-rate", "0"}, {"-rate", "0.001"}, {"-rate", "0"}} {
		ctx, cancel := context.WithCancel(t.Context())
		out := looptest.NewBuffer()
		code := make(chan int)
		go func() {
			code <- cli.Run(ctx, "send", run, append(args, "-from", "127.0.0.1", r.to), silent, out, out)
		}()
		out.Wait(t, "sending to")
		cancel()
		if c := <-code; c != 0 || !strings.Contains(out.String(), "sent ") {
			t.Errorf("%q: exit code %d, %q", args, c, out.String())
		}
	}
}

func TestFailures(t *testing.T) {
	r := newReceiver(t)
	broken := io.MultiReader(strings.NewReader("x"), failing{})
	for _, args := range [][]string{
		{"-f", "-", "-from", "127.0.0.1", r.to},
		{"-f", filepath.Join(t.TempDir(), "none"), r.to},
		{"-from", "203.0.113.77", "-n", "1", r.to}, // an address for documentation (RFC 5737)
	} {
		if os.Getenv("MCAST_TEST_WINE") != "" && args[0] == "-from" {
			continue // Wine takes any address
		}
		_, stderr, code := sendRun(t.Context(), broken, args...)
		if code != 1 || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "send: ") {
			t.Errorf("%q: exit code %d, %q", args, code, stderr)
		}
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the disk is on fire") }

func TestCommandLine(t *testing.T) {
	const to = group + ":5000"
	for _, args := range [][]string{
		{},
		{to, to},
		{"-x", to},
		{group},
		{group + ":0"},
		{group + ":65536"},
		{group + ":x"},
		{"10.0.0.1:5000"},
		{"name:5000"},
		{"ff15::1:5000"},
		{"[ff15::1%no-such-interface]:5000"},
		{"-i", "no-such-interface", to},
		{"-i", "", "-ttl", "256", to},
		{"-ttl", "-1", to},
		{"-rate", "-1", to},
		{"-rate", "NaN", to},
		{"-rate", "+Inf", to},
		{"-size", "15", to},
		{"-size", "16", "-f", "-", to},
		{"-size", "65508", to},
		{"-n", "-1", to},
		{"-from", "x", to},
		{"-from", "::1", to},
		{"-from", "239.1.1.1", to},
		{"-from", "0.0.0.0", to},
		{"-i", looptest.Interface(t).Name, "239.1.1.1%99999:5000"},
	} {
		stdout, stderr, code := sendRun(t.Context(), nil, args...)
		if code != 2 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "send: ") {
			t.Errorf("%q: exit code %d, %q, %q", args, code, stdout, stderr)
		}
	}
	stdout, stderr, code := sendRun(t.Context(), nil, "-h")
	if code != 0 || stderr != "" || !strings.HasPrefix(stdout, "Usage: send ") || !strings.Contains(stdout, "-rate") {
		t.Errorf("-h: exit code %d, %q, %q", code, stdout, stderr)
	}
}

func TestParse(t *testing.T) {
	lo := looptest.Interface(t)
	for _, tt := range []struct {
		args []string
		want mcast.Group
	}{
		{[]string{"239.1.1.1:5000"}, mcast.Group{Addr: netip.MustParseAddr("239.1.1.1")}},
		{[]string{"-i", fmt.Sprint(lo.Index), "239.1.1.1:5000"}, mcast.Group{Addr: netip.MustParseAddr("239.1.1.1"), Interface: lo.Name}},
		{[]string{"-from", "127.0.0.9", "239.1.1.1:5000"}, mcast.Group{Addr: netip.MustParseAddr("239.1.1.1"), Interface: lo.Name}},
		{[]string{"[ff3e::8000:1%" + lo.Name + "]:5000"}, mcast.Group{Addr: netip.MustParseAddr("ff3e::8000:1"), Interface: lo.Name}},
		{[]string{"-from", "2001:db8::1", "[ff3e::8000:1%" + lo.Name + "]:5000"}, mcast.Group{Addr: netip.MustParseAddr("ff3e::8000:1"), Interface: lo.Name}},
	} {
		o, err := parse(tt.args, io.Discard)
		if err != nil || o.group != tt.want || o.port != 5000 {
			t.Errorf("%q: %v port %d, %v", tt.args, o.group, o.port, err)
		}
	}
}
