//go:build !plan9

package mcast

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Opening and closing a Pool, its ports, and what it tells.

// ":0" has the system pick a port, which is the Pool's, and nobody else's who
// asks for any.
func testPoolAnyPort(t *testing.T, at site) {
	var ports []int
	for range 5 {
		p, err := ListenPool(at.network(), ":0", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		a, ok := p.LocalAddr().(*net.UDPAddr)
		if !ok || a.Port == 0 || !a.IP.IsUnspecified() {
			t.Fatalf("LocalAddr %v", p.LocalAddr())
		}
		ports = append(ports, a.Port)
		if b := p.On(a.Port); b != p.Members {
			t.Error("On of that port are other Members")
		}
		if err := p.JoinSource(at.group(1, 1), at.sources[0]); err != nil {
			t.Fatal(err)
		}
		// Other programs may join in.
		c, err := Listen(at.network(), fmt.Sprint(":", a.Port), nil)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		from := at.sender(t, at.sources[0])
		mustSend(t, from, at.group(1, 1), a.Port, "x")
		m := Message{Buf: make([]byte, 10)}
		p.SetReadDeadline(inTime())
		if err := p.ReadMessage(&m); err != nil || m.Port != a.Port || m.Group != at.group(1, 1) {
			t.Errorf("%+v, %v", m, err)
		}
		if err := p.Leave(at.group(1, 1)); err != nil {
			t.Error(err)
		}
		// The port is kept without memberships, too.
		if c, err := net.ListenPacket(at.network(), fmt.Sprint(":", a.Port)); err == nil {
			c.Close()
			t.Errorf("port %d is not kept", a.Port)
		}
	}
	for i, p := range ports {
		for _, q := range ports[:i] {
			if p == q {
				t.Errorf("two Pools have port %d", p)
			}
		}
	}
}

// "" is no port: On is used.
func testPoolNoPort(t *testing.T, at site) {
	p, err := ListenPool(at.network(), "", &Config{Unicast: true, GroupStats: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	g, s := at.group(1, 1), at.sources[0]
	_, system := p.SystemFilter(g)
	for i, err := range []error{
		p.Join(g), p.JoinSource(g, s), p.Block(g, s), p.Unblock(g, s), p.Leave(g), p.LeaveSource(g, s), p.SetFilter(g, Include, s), system,
		p.On(0).JoinSource(g, s), p.On(-1).JoinSource(g, s), p.On(65536).JoinSource(g, s),
	} {
		var e *OpError
		if !errors.Is(err, ErrAddress) || !errors.As(err, &e) || !strings.Contains(err.Error(), "On(") {
			t.Errorf("request %d: %v", i, err)
		}
	}
	if a := p.LocalAddr().(*net.UDPAddr); a.Port != 0 {
		t.Errorf("LocalAddr %v", a)
	}
	if n := p.Sockets(); n != 0 {
		t.Errorf("%d sockets", n)
	}
	port := at.port(t)
	if err := p.On(port).JoinSource(g, s); err != nil {
		t.Fatal(err)
	}
	mustSend(t, at.sender(t, s), g, port, "x")
	m := Message{Buf: make([]byte, 10)}
	p.SetReadDeadline(inTime())
	if err := p.ReadMessage(&m); err != nil || m.Port != port || m.Group != g {
		t.Errorf("%+v, %v", m, err)
	}
	if a := p.On(port).LocalAddr().(*net.UDPAddr); a.Port != port {
		t.Errorf("LocalAddr %v, want port %d", a, port)
	}
	if err := p.Repair(); err != nil {
		t.Error(err)
	}
	if ms := p.Memberships(); len(ms) != 0 {
		t.Errorf("memberships on no port: %v", ms)
	}
}

func TestListenPoolRefuses(t *testing.T) {
	for _, test := range []struct {
		network, address string
		want             error
	}{
		{"udp", ":5000", ErrAddress},
		{"udp", "", ErrAddress},
		{"tcp", "", net.UnknownNetworkError("tcp")},
		{"tcp4", ":5000", net.UnknownNetworkError("tcp4")},
		{"udp4", "5000", ErrAddress},
		{"udp4", ":70000", ErrAddress},
		{"udp4", "239.1.1.1:5000", ErrAddress},
		{"udp4", "127.0.0.1:5000", ErrAddress},
		{"udp6", "[::1]:5000", ErrAddress},
		{"udp6", "0.0.0.0:5000", ErrAddress},
	} {
		p, err := ListenPool(test.network, test.address, nil)
		var e *OpError
		if p != nil || !errors.Is(err, test.want) || !errors.As(err, &e) || e.Op != "ListenPool" {
			t.Errorf("ListenPool(%q, %q): %v, want %v", test.network, test.address, err, test.want)
		}
	}
}

// On beside Close: the Pool is closed, and with it what On returns at any time.
func testPoolOnBesideClose(t *testing.T, at site) {
	for range 20 {
		p, port := at.pool(t, nil)
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				for k := range 60 {
					m := p.On(1 + (port+i*60+k)%65535)
					switch err := m.JoinSource(at.group(1, i), at.sources[0]); {
					case errors.Is(err, net.ErrClosed):
						return
					case err != nil && !errors.Is(err, syscall.EADDRINUSE) && !errors.Is(err, os.ErrPermission):
						t.Error(err)
					}
					p.Stats()
					p.Sockets()
				}
			})
		}
		time.Sleep(time.Millisecond)
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if n := p.Sockets(); n != 0 {
			t.Errorf("%d sockets after Close", n)
		}
		for _, m := range []*Members{p.Members, p.On(port), p.On(1 + port%65535), p.On(0)} {
			g, s := at.group(1, 1), at.sources[0]
			_, system := m.SystemFilter(g)
			for i, err := range []error{m.Join(g), m.JoinSource(g, s), m.Block(g, s), m.Unblock(g, s), m.Leave(g), m.LeaveSource(g, s), m.SetFilter(g, Include, s), system} {
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("request %d after Close: %v", i, err)
				}
			}
			if ms := m.Memberships(); len(ms) != 0 {
				t.Errorf("memberships after Close: %v", ms)
			}
		}
		for i, err := range []error{p.SetReadDeadline(time.Now()), p.SetReadDeadline(time.Time{}), p.Repair(), p.Close()} {
			var e *OpError
			if !errors.Is(err, net.ErrClosed) || !errors.As(err, &e) {
				t.Errorf("call %d after Close: %v", i, err)
			}
		}
	}
}

// Config.Control is called for each socket, once, before it is bound, with no lock
// held: it may make requests itself. Its error ends the join.
func testPoolControl(t *testing.T, at site) {
	var calls atomic.Int64
	var p *Pool
	var refuse, inside atomic.Bool
	enough := errors.New("enough")
	port, otherPort := at.port(t), at.port(t)
	cfg := &Config{Control: func(network, address string, c syscall.RawConn) error {
		if inside.Load() {
			return nil
		}
		calls.Add(1)
		a, err := netip.ParseAddrPort(address)
		if network != at.network() || err != nil || int(a.Port()) != port && int(a.Port()) != otherPort || !a.Addr().IsMulticast() && !a.Addr().IsUnspecified() {
			t.Errorf("Control(%q, %q)", network, address)
		}
		if err := c.Control(func(fd uintptr) {}); err != nil {
			t.Error(err)
		}
		if p != nil {
			p.Stats()
			p.Sockets()
			p.Memberships()
			for range p.GroupStats() {
			}
			p.SetReadDeadline(time.Now().Add(-time.Second))
			if err := p.ReadMessage(&Message{Buf: make([]byte, 10)}); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error(err)
			}
			inside.Store(true)
			g := at.group(3, 1)
			if err := errors.Join(p.JoinSource(g, at.sources[0]), p.LeaveSource(g, at.sources[0]), p.Repair()); err != nil {
				t.Error(err)
			}
			inside.Store(false)
		}
		if refuse.Load() {
			return enough
		}
		return nil
	}}
	p, err := ListenPool(at.network(), fmt.Sprint(":", port), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for i := range 45 {
		if err := p.JoinSource(at.group(1, i), at.sources[0]); err != nil {
			t.Fatal(err)
		}
		if n := p.Sockets(); int64(n) != calls.Load() {
			t.Fatalf("%d sockets, and Control was called %d times", n, calls.Load())
		}
	}
	refuse.Store(true)
	m, sockets := p.On(otherPort), p.Sockets()
	for range 2 {
		err := m.JoinSource(at.group(2, 1), at.sources[0])
		var e *OpError
		if !errors.Is(err, enough) || !errors.As(err, &e) || e.Op != "JoinSource" {
			t.Errorf("JoinSource: %v, want what Control says", err)
		}
		if ms := m.Memberships(); len(ms) != 0 || p.Sockets() != sockets {
			t.Errorf("%v, in %d sockets, %d before", ms, p.Sockets(), sockets)
		}
	}
	refuse.Store(false)
	if err := m.JoinSource(at.group(2, 1), at.sources[0]); err != nil {
		t.Error(err)
	}
}

// The program is told one thing at a time, however many ports a Pool has, and
// no lock is held meanwhile: it may ask anything.
func testPoolTells(t *testing.T, at site) {
	const ports = 5
	var at1, most, told atomic.Int64
	var p *Pool
	ask := func() {
		p.Sockets()
		p.Stats()
		p.Memberships()
		p.On(1).Memberships()
		for _, m := range p.everyPort() {
			m.LocalAddr()
		}
	}
	enter := func() {
		n := at1.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		told.Add(1)
		ask()
		time.Sleep(time.Millisecond) // so that others may come
		at1.Add(-1)
	}
	port := at.port(t)
	cfg := &Config{
		NoWatch: true,
		OnEvent: func(Event) { enter() },
		Logger:  slog.New(handlerFunc(func(slog.Record) { ask() })),
	}
	p, err := ListenPool(at.network(), fmt.Sprint(":", port), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var members []*Members
	for i := range ports {
		m := p.On(1024 + (port+i)%60000)
		members = append(members, m)
		if err := m.JoinSource(at.group(1, i), at.sources[0]); err != nil {
			t.Fatal(err)
		}
	}
	// As if the system had lost them all.
	var wg sync.WaitGroup
	for _, m := range members {
		wg.Go(func() {
			if err := repair([]*requests{&m.requests}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for end := inTime(); told.Load() < 2*ports; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d events", told.Load())
		}
	}
	if n := most.Load(); n != 1 {
		t.Errorf("%d events at a time", n)
	}
	// Nothing comes after Close.
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	n := told.Load()
	time.Sleep(5 * time.Millisecond)
	if told.Load() != n || at1.Load() != 0 {
		t.Error("an event came after Close")
	}
}

// handlerFunc is a [slog.Handler].
type handlerFunc func(slog.Record)

func (f handlerFunc) Enabled(context.Context, slog.Level) bool { return true }
func (f handlerFunc) WithAttrs([]slog.Attr) slog.Handler       { return f }
func (f handlerFunc) WithGroup(string) slog.Handler            { return f }

func (f handlerFunc) Handle(_ context.Context, r slog.Record) error {
	f(r)
	return nil
}

// A Pool's Logger is called without a lock, too.
func testPoolLogger(t *testing.T, at site) {
	was := maxDescriptors
	maxDescriptors = func() int { return 0 }
	defer func() { maxDescriptors = was }()
	logged := make(chan string, 100)
	var p *Pool
	opened := make(chan bool)
	cfg := &Config{Logger: slog.New(handlerFunc(func(r slog.Record) {
		<-opened
		p.Sockets()
		p.Memberships()
		p.Stats()
		logged <- r.Message
	}))}
	p, err := ListenPool(at.network(), fmt.Sprint(":", at.port(t)), cfg)
	close(opened)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	joined := make(chan bool)
	go func() {
		defer close(joined)
		for i := range 3 {
			if err := p.JoinSource(at.group(1, i), at.sources[0]); err != nil {
				t.Error(err)
			}
		}
	}()
	soon(t, "joins", joined)
	if !hostSystem.ownSockets {
		return // there is nothing to warn of
	}
	if s := soon(t, "the warning", logged); !strings.Contains(s, "descriptors") {
		t.Errorf("logged %q", s)
	}
}
