//go:build !plan9

package mcast_test

import (
	"errors"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"example.com/mcast"
)

func testClose(t *testing.T, p place) {
	for name, read := range reads {
		c := p.listen(t, ":0", nil)
		g := p.asm(1)
		if err := errors.Join(c.Join(g), c.Block(g, p.source(0)), c.JoinSource(p.ssm(1), p.source(0))); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 4)
		for range cap(done) {
			go func() { done <- read(c) }()
		}
		time.Sleep(5 * time.Millisecond) // most will be in the read by now
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		for range cap(done) {
			var e *net.OpError
			if err := within(t, done); !errors.Is(err, net.ErrClosed) || !errors.As(err, &e) || e.Op != "read" {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := read(c); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
		if ms := c.Memberships(); len(ms) != 0 {
			t.Errorf("memberships after Close: %v", ms)
		}
		for _, op := range allOps {
			var e *mcast.OpError
			want := op
			if op == "Include" || op == "Exclude" {
				want = "SetFilter"
			}
			if err := request(c, op, g, p.source(0)); !errors.Is(err, net.ErrClosed) || !errors.As(err, &e) || e.Op != want || e.Group != g {
				t.Errorf("%s after Close: %v", op, err)
			}
		}
		_, err := c.SystemFilter(g)
		_, wrote := c.WriteTo([]byte("x"), &net.UDPAddr{IP: g.Addr.AsSlice(), Port: 5000})
		_, ttl := c.MulticastTTL()
		for i, err := range []error{err, wrote, ttl, c.SetMulticastTTL(1), c.SetMulticastLoopback(true), c.SetMulticastInterface(p.ifi.Name), c.SetReadDeadline(time.Now())} {
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("call %d after Close: %v", i, err)
			}
		}
		_, raw := c.SyscallConn()
		for want, err := range map[string]error{
			"Close": c.Close(), "SetReadDeadline": c.SetReadDeadline(time.Now()), "SetWriteDeadline": c.SetWriteDeadline(time.Now()), "SyscallConn": raw,
		} {
			var e *mcast.OpError
			if err != nil && (!errors.Is(err, net.ErrClosed) || !errors.As(err, &e) || e.Op != want) {
				t.Errorf("%s after Close: %v", want, err)
			}
			if err == nil && want != "SyscallConn" {
				t.Errorf("%s after Close has no error", want)
			}
		}
		c.Stats()
		c.LocalAddr()
	}
	t.Run("while it closes", func(t *testing.T) {
		// Close waits for the program, which is being told something. Until it
		// is done there is no other answer than that it is closed.
		told, goOn := make(chan bool, 10), make(chan bool)
		c := p.listen(t, ":0", &mcast.Config{NoWatch: true, OnEvent: func(mcast.Event) { told <- true; <-goOn }})
		if err := errors.Join(c.Join(p.asm(1)), c.Repair()); err != nil { // which says that it was lost, and restored
			t.Fatal(err)
		}
		within(t, told)
		closed := make(chan error)
		go func() { closed <- c.Close() }()
		for len(c.Memberships()) > 0 {
			time.Sleep(time.Millisecond)
		}
		for _, op := range allOps {
			if err := request(c, op, p.asm(1), p.source(0)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s: %v", op, err)
			}
		}
		if err := c.Repair(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Repair: %v", err)
		}
		select {
		case err := <-closed:
			t.Errorf("Close did not wait: %v", err)
		default:
		}
		close(goOn)
		if err := within(t, closed); err != nil {
			t.Error(err)
		}
		if len(told) > 0 {
			t.Error("the program was told of more, after Close")
		}
	})
}

// Opening and closing leaves nothing behind.
func testOpenClose(t *testing.T, p place) {
	count := func() (goroutines, files int) {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			return runtime.NumGoroutine(), 0
		}
		return runtime.NumGoroutine(), len(entries)
	}
	cycle := func() {
		c, err := mcast.Listen(p.network(), ":0", nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(c.Join(p.asm(1)), c.JoinSource(p.ssm(1), p.source(0))); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	cycles := 1000
	if runtime.GOOS == "windows" || testing.Short() {
		cycles = 200
	}
	cycle()
	g0, f0 := count()
	for range cycles {
		cycle()
	}
	for range 100 { // failures, too
		if c, err := mcast.Listen(p.network(), "192.0.2.77:5000", nil); err == nil {
			c.Close()
			break
		}
		udp, err := net.ListenUDP(p.network(), nil)
		if err != nil {
			t.Fatal(err)
		}
		udp.Close()
		mcast.New(udp, nil)
	}
	g1, f1 := count()
	// A few may be those of the test itself.
	if g1 > g0+5 || f1 > f0+5 {
		t.Errorf("%d goroutines and %d files, before %d and %d", g1, f1, g0, f0)
	}
}
