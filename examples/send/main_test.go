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
	"testing/iotest"
	"time"

	"example.com/mcast"
	"example.com/mcast/examples/internal/cli"
	"example.com/mcast/examples/internal/looptest"
	"example.com/mcast/examples/internal/mpegts"
	"example.com/mcast/examples/internal/numbered"
	"example.com/mcast/examples/internal/rtp"
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

// read returns the next datagram.
func (r receiver) read(t *testing.T) mcast.Message {
	t.Helper()
	r.SetReadDeadline(time.Now().Add(looptest.Patience))
	m := mcast.Message{Buf: make([]byte, 1<<16)}
	if err := r.ReadMessage(&m); err != nil {
		t.Fatal(err)
	}
	m.Buf = m.Buf[:m.N]
	return m
}

// next returns the next numbered datagram.
func (r receiver) next(t *testing.T) (numbered.Header, []byte, netip.Addr) {
	t.Helper()
	m := r.read(t)
	h, payload, ok := numbered.Parse(m.Buf)
	if !ok {
		t.Fatalf("a datagram without a number: %q", m.Buf)
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
	// The end, more than once.
	for range 3 {
		if h, _, _ := r.next(t); h != (numbered.Header{Stream: stream, Seq: 5, End: true}) {
			t.Errorf("not the end of 5: %+v", h)
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
		{"-bitrate", "x", to},
		{"-bitrate", "0", to},
		{"-bitrate", "1M", "-rate", "10", to},
		{"-raw", "-rtp", to},
		{"-raw", "rtp://" + to},
		{"-raw", "-size", "0", to},
		{"-ts", "x", "-f", "y", to},
		{"-ts", "x", "-rate", "10", to},
		{"-ts", "x", "-bitrate", "1M", to},
		{"-ts", "x", "-size", "187", to},
		{"-ts", "x", "-rtp", "-size", "199", to},
		{"-every", "x", to},
		{"-from", "10.0.0.1", "10.0.0.1@" + to},
		{group + "%*:5000"},
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
		{[]string{"239.1.1.1:5000", "-i", lo.Name}, mcast.Group{Addr: netip.MustParseAddr("239.1.1.1"), Interface: lo.Name}},
		{[]string{"127.0.0.9@239.1.1.1:5000"}, mcast.Group{Addr: netip.MustParseAddr("239.1.1.1"), Interface: lo.Name}},
		{[]string{"udp://@239.1.1.1:5000"}, mcast.Group{Addr: netip.MustParseAddr("239.1.1.1")}},
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

func TestDefaults(t *testing.T) {
	for _, tt := range []struct {
		args   []string
		format format
		size   int
	}{
		{nil, isNumbered, 1200},
		{[]string{"-raw"}, isRaw, 7 * 188},
		{[]string{"-rtp"}, isRTP, 12 + 7*188},
		{[]string{"-ts", "x"}, isRaw, 7 * 188},
		{[]string{"-ts", "x", "-rtp"}, isRTP, 12 + 7*188},
		{[]string{"-size", "500", "-rtp"}, isRTP, 500},
	} {
		o, err := parse(append(tt.args, "239.1.1.1:5000"), io.Discard)
		if err != nil || o.format != tt.format || o.size != tt.size {
			t.Errorf("%q: format %d, size %d, %v", tt.args, o.format, o.size, err)
		}
	}
	if o, err := parse([]string{"rtp://239.1.1.1:5000"}, io.Discard); err != nil || o.format != isRTP {
		t.Errorf("rtp://: %+v, %v", o, err)
	}
}

func TestBitrate(t *testing.T) {
	for s, want := range map[string]float64{"8M": 8e6, "500k": 5e5, "1.5G": 1.5e9, "1000": 1000, "1e6": 1e6} {
		if got, err := parseBitrate(s); err != nil || got != want {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	// What was sent decides when the next one is due.
	s := sender{options: options{bitrate: 8e6, rate: 100}}
	s.bytes.Store(2e6)
	if due := s.due(); due != 2*time.Second {
		t.Errorf("2 MB at 8 Mbit/s: %v", due)
	}
	s = sender{options: options{rate: 100}}
	s.sent.Store(50)
	if due := s.due(); due != time.Second/2 {
		t.Errorf("50 at 100 a second: %v", due)
	}
}

// -raw: what was read and nothing else, in datagrams that are full.
func TestRaw(t *testing.T) {
	r := newReceiver(t)
	in := iotest.OneByteReader(strings.NewReader("0123456789"))
	stdout, _, code := sendRun(t.Context(), in, "-from", "127.0.0.1", "-raw", "-size", "4", "-rate", "0", "-f", "-", r.to)
	if code != 0 || !strings.Contains(stdout, "sent 3 datagrams, 10 bytes") {
		t.Errorf("exit code %d, %q", code, stdout)
	}
	for _, want := range []string{"0123", "4567", "89"} {
		if m := r.read(t); string(m.Buf) != want {
			t.Errorf("%q, want %q", m.Buf, want)
		}
	}
}

func TestRTP(t *testing.T) {
	r := newReceiver(t)
	if stdout, stderr, code := sendRun(t.Context(), nil, "-from", "127.0.0.1", "-size", "100", "-rate", "0", "-n", "3", "rtp://"+r.to); code != 0 || !strings.Contains(stdout, "RTP, SSRC") {
		t.Fatalf("exit code %d, %q %q", code, stdout, stderr)
	}
	var first rtp.Header
	for n := range 3 {
		h, payload, ok := rtp.Parse(r.read(t).Buf)
		if n == 0 {
			first = h
		}
		if !ok || len(payload) != 88 || h.Type != 96 || h.Seq != first.Seq+uint16(n) || h.SSRC != first.SSRC {
			t.Errorf("%d: %+v, %d bytes, %v", n, h, len(payload), ok)
		}
	}
}

// film makes a transport stream with its clock in each packet, ms apart.
func film(packets, ms int) (b []byte) {
	for i := range packets {
		p := make([]byte, mpegts.Size)
		base := uint64(i*ms) * 90
		copy(p, []byte{0x47, 1, 0, 0x30 | byte(i)&15, 7, 0x10, byte(base >> 25), byte(base >> 17), byte(base >> 9), byte(base >> 1), byte(base&1) << 7})
		b = append(b, p...)
	}
	return b
}

// -ts: whole packets, no faster than their clock.
func TestTS(t *testing.T) {
	in := film(24, 2)
	file := filepath.Join(t.TempDir(), "film.ts")
	if err := os.WriteFile(file, in, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"", "rtp://"} {
		r := newReceiver(t)
		began := time.Now()
		_, stderr, code := sendRun(t.Context(), nil, "-from", "127.0.0.1", "-ts", file, to+r.to)
		if code != 0 {
			t.Fatalf("exit code %d, %q", code, stderr)
		}
		if took := time.Since(began); took < 42*time.Millisecond { // the last one of 3 is due then
			t.Errorf("42 ms of film took %v", took)
		}
		var got []byte
		for i, want := range []int{7, 7, 7, 3} {
			b := r.read(t).Buf
			if to != "" {
				h, payload, ok := rtp.Parse(b)
				if stamp := uint32(i * 7 * 2 * 90); !ok || h.Type != rtp.PayloadTS || h.Timestamp != stamp {
					t.Errorf("datagram %d: %+v %v, want timestamp %d", i, h, ok, stamp)
				}
				b = payload
			}
			if len(b) != want*mpegts.Size {
				t.Errorf("datagram %d has %d bytes", i, len(b))
			}
			got = append(got, b...)
		}
		if !bytes.Equal(got, in) {
			t.Error("what arrived is not the film")
		}
	}
	_, stderr, code := sendRun(t.Context(), strings.NewReader("text"), "-from", "127.0.0.1", "-ts", "-", newReceiver(t).to)
	if code != 1 || !strings.Contains(stderr, "no MPEG transport stream") {
		t.Errorf("text: exit code %d, %q", code, stderr)
	}
}

// There are lines while it sends.
func TestReports(t *testing.T) {
	r := newReceiver(t)
	ctx, cancel := context.WithCancel(t.Context())
	out := looptest.NewBuffer()
	code := make(chan int)
	go func() {
		code <- cli.Run(ctx, "send", run, []string{"-from", "127.0.0.1", "-every", "5ms", "-rate", "1000", r.to}, nil, out, out)
	}()
	out.Wait(t, " datagrams/s")
	cancel()
	if c := <-code; c != 0 {
		t.Errorf("exit code %d: %s", c, out)
	}
	stdout, _, _ := sendRun(t.Context(), nil, "-from", "127.0.0.1", "-every", "0", "-n", "2", r.to)
	if strings.Contains(stdout, "datagrams/s") {
		t.Errorf("-every 0: %s", stdout)
	}
}
