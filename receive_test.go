//go:build !plan9

package mcast_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/mcast"
)

func testUnicast(t *testing.T, p place) {
	p.needsSenders(t, 1)
	if p.open != nil {
		t.Skip("the senders are on another host")
	}
	here := p.senders[0]
	t.Run("dropped", func(t *testing.T) {
		s := p.scene(t, p.listen(t, ":0", nil), true)
		for range 3 {
			s.senders[0].send(t, netip.AddrPortFrom(here, s.port), "unicast")
		}
		s.check()
		if st := s.c.Stats(); st.Received != 1 || st.Filtered != 3 {
			t.Errorf("%+v, want 1 received and 3 filtered", st)
		}
	})
	t.Run("handed over", func(t *testing.T) {
		s := p.scene(t, p.listen(t, ":0", &mcast.Config{Unicast: true}), true)
		s.senders[0].send(t, netip.AddrPortFrom(here, s.port), "unicast")
		m := mcast.Message{Buf: make([]byte, 100)}
		s.c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if err := s.c.ReadMessage(&m); err != nil || string(m.Buf[:m.N]) != "unicast" || m.Group.Addr != here || m.Source != s.senders[0].from {
			t.Errorf("%+v, %v", m, err)
		}
		s.check()
		if st := s.c.Stats(); st.Received != 2 || st.Filtered != 0 {
			t.Errorf("%+v, want 2 received", st)
		}
	})
	t.Run("bound to a group", func(t *testing.T) {
		g := p.asm(1)
		c := p.listen(t, netip.AddrPortFrom(g.Addr, uint16(p.port(t))).String(), &mcast.Config{Unicast: true})
		s := p.scene(t, c, false, g)
		if err := c.Join(g); err != nil {
			t.Fatal(err)
		}
		// Where nobody listens, a system may say so.
		s.senders[0].WriteToUDPAddrPort([]byte("unicast"), netip.AddrPortFrom(here, s.port))
		s.check(p.membership(g, "E")...)
	})
	t.Run("bound to unicast", func(t *testing.T) {
		for _, unicast := range []bool{false, true} {
			c := p.listen(t, netip.AddrPortFrom(here, 0).String(), &mcast.Config{Unicast: unicast})
			p.sender(t, here).send(t, netip.AddrPortFrom(here, uint16(localPort(c))), "x")
			m := mcast.Message{Buf: make([]byte, 100)}
			if !unicast {
				for end := time.Now().Add(10 * time.Second); ; {
					c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
					if err := c.ReadMessage(&m); !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Fatalf("%+v, %v", m, err)
					}
					if c.Stats().Filtered == 1 {
						break
					} else if time.Now().After(end) {
						t.Fatal(c.Stats())
					}
				}
				continue
			}
			c.SetReadDeadline(time.Now().Add(10 * time.Second))
			if err := c.ReadMessage(&m); err != nil || m.Group.Addr != here {
				t.Errorf("%+v, %v", m, err)
			}
		}
	})
}

// Every datagram was received, or dropped for want of buffer.
func testOverflow(t *testing.T, p place) {
	p.needsSenders(t, 1)
	if runtime.GOOS != "linux" {
		t.Skip("only Linux counts what it drops")
	}
	g := p.asm(1)
	c := p.listen(t, ":0", &mcast.Config{ReadBuffer: 1 << 16})
	if err := c.Join(g); err != nil {
		t.Fatal(err)
	}
	from := p.sender(t, p.senders[0])
	const total = 1000
	payload := strings.Repeat("x", 1000)
	for range total {
		from.send(t, netip.AddrPortFrom(g.Addr, uint16(localPort(c))), payload)
	}
	m := mcast.Message{Buf: make([]byte, 2000)}
	var st mcast.Stats
	for end := time.Now().Add(10 * time.Second); ; {
		c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		for c.ReadMessage(&m) == nil {
			if m.N != len(payload) {
				t.Errorf("%d bytes", m.N)
			}
		}
		if st = c.Stats(); st.Received+st.Dropped == total {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%+v, want %d in all", st, total)
		}
	}
	if st.Dropped == 0 || st.Received == 0 || st.Filtered != 0 {
		t.Errorf("%+v", st)
	}
	c.Close()
	if after := c.Stats(); after != st {
		t.Errorf("%+v after Close, %+v before", after, st)
	}
}

// A datagram that was there before the filter changed goes by the new filter.
func testQueued(t *testing.T, p place) {
	p.needsSenders(t, 1)
	g := p.asm(1)
	s := p.scene(t, p.listen(t, fmt.Sprint(":", p.port(t)), nil), true, g)
	queue := s.witness(g)
	for _, test := range [][3]string{
		{"Join", "", "Block a"},
		{"Join", "", "Leave"},
		{"Join", "", "Include"},
		{"Join", "", "Include b"},
		{"Join", "", "Exclude a"},
		{"JoinSource", "a", "LeaveSource a"},
		{"JoinSource", "a", "Leave"},
		{"JoinSource", "a", "Include b"},
		{"JoinSource", "a", "Exclude a"},
	} {
		if err := request(s.c, test[0], g, p.sources(test[1])...); err != nil {
			t.Fatal(test, err)
		}
		queue(s.senders[0], "queued")
		queue(s.senders[0], "queued")
		before := s.c.Stats()
		op, source, _ := strings.Cut(test[2], " ")
		if err := request(s.c, op, g, p.sources(source)...); err != nil {
			t.Fatal(test, err)
		}
		expected := make(map[string]arrival)
		s.send(s.senders[0], s.fence, true, expected)
		s.receive(expected)
		if after := s.c.Stats(); after.Filtered == before.Filtered || after.Received != before.Received+1 {
			t.Errorf("%v: before %+v, after %+v", test, before, after)
		}
		if err := s.c.SetFilter(g, mcast.Include); err != nil {
			t.Fatal(test, err)
		}
	}
	// And the other way round: who is let in hears what was there.
	if err := s.c.Join(g); err != nil {
		t.Fatal(err)
	}
	if err := s.c.Block(g, p.source(0)); err != nil {
		t.Fatal(err)
	}
	s.check(p.membership(g, "Ea")...)
}

// What does not fit is cut, which Truncated tells, and is no error, on every
// system: as with package net on Unix.
func testSizes(t *testing.T, p place) {
	p.needsSenders(t, 1)
	g := p.asm(1)
	c := p.listen(t, ":0", nil)
	if err := c.Join(g); err != nil {
		t.Fatal(err)
	}
	from := p.sender(t, p.senders[0])
	to := netip.AddrPortFrom(g.Addr, uint16(localPort(c)))
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	data := make([]byte, 9200)
	for i := range data {
		data[i] = byte(i % 251)
	}
	var received, truncated uint64
	for _, size := range []int{0, 1, 100, 1472, 1500, 9001, 9200} {
		for _, room := range []int{-1, 0, 1, 99, 100, 101, 1472, 9000, 9001, 65536} {
			buf := func() []byte {
				if room < 0 {
					return nil
				}
				return make([]byte, room)
			}
			n, cut := min(size, max(room, 0)), size > max(room, 0)
			send := func() {
				from.send(t, to, string(data[:size]))
				received++
				if cut {
					truncated++
				}
			}
			whole := func(what string, got []byte, err error) {
				t.Helper()
				if err != nil || string(got) != string(data[:n]) {
					t.Fatalf("%s: %d bytes into %d: %d, %v", what, size, room, len(got), err)
				}
				if st := c.Stats(); st.Received != received || st.Truncated != truncated {
					t.Errorf("%s: %d bytes into %d: %+v, want %d truncated of %d", what, size, room, st, truncated, received)
				}
			}
			b := buf()
			send()
			k, a, err := c.ReadFrom(b)
			whole("ReadFrom", b[:k], err)
			if u, ok := a.(*net.UDPAddr); !ok || netip.AddrPortFrom(u.AddrPort().Addr().Unmap(), u.AddrPort().Port()) != from.from {
				t.Errorf("ReadFrom: %v", a)
			}
			send()
			k, ap, err := c.ReadFromUDPAddrPort(b)
			whole("ReadFromUDPAddrPort", b[:k], err)
			if ap != from.from {
				t.Errorf("ReadFromUDPAddrPort: %v", ap)
			}

			m := mcast.Message{Buf: buf()}
			ms := []mcast.Message{{Buf: buf()}, {Buf: buf()}}
			if room <= 0 {
				wantNoRoom(t, "ReadMessage", c.ReadMessage(&m))
				_, err := c.ReadBatch(ms)
				wantNoRoom(t, "ReadBatch", err)
				continue
			}
			message := func(what string, m *mcast.Message, err error) {
				t.Helper()
				whole(what, m.Buf[:m.N], err)
				if m.Truncated != cut || m.Source != from.from || m.Group != g || m.Index != p.ifi.Index || m.Port != int(to.Port()) {
					t.Errorf("%s: %d bytes into %d: from %v to %v port %d by %d, truncated %v", what, size, room, m.Source, m.Group, m.Port, m.Index, m.Truncated)
				}
			}
			send()
			message("ReadMessage", &m, c.ReadMessage(&m))
			send()
			k, err = c.ReadBatch(ms)
			if k != 1 {
				t.Fatal(k, err)
			}
			message("ReadBatch", &ms[0], err)
			send()
			for m, err := range c.Messages(t.Context(), room) {
				message("Messages", m, err)
				break
			}
		}
	}
}

// wantNoRoom wants the error for messages that nothing can be read into.
func wantNoRoom(t *testing.T, op string, err error) {
	t.Helper()
	var e *mcast.OpError
	if !errors.Is(err, os.ErrInvalid) || !errors.As(err, &e) || e.Op != op {
		t.Errorf("%s without room: %v", op, err)
	}
}

// reads are the ways to read.
var reads = map[string]func(*mcast.Conn) error{
	"ReadMessage": func(c *mcast.Conn) error { return c.ReadMessage(&mcast.Message{Buf: make([]byte, 100)}) },
	"ReadBatch": func(c *mcast.Conn) error {
		_, err := c.ReadBatch([]mcast.Message{{Buf: make([]byte, 100)}, {Buf: make([]byte, 100)}})
		return err
	},
	"ReadSlab": func(c *mcast.Conn) error {
		_, err := c.ReadSlab(make([]byte, 1<<16), make([]mcast.Datagram, 2))
		return err
	},
	"ReadFrom":            func(c *mcast.Conn) error { _, _, err := c.ReadFrom(make([]byte, 100)); return err },
	"ReadFromUDPAddrPort": func(c *mcast.Conn) error { _, _, err := c.ReadFromUDPAddrPort(make([]byte, 100)); return err },
	"Messages":            func(c *mcast.Conn) error { return firstError(c.Messages(context.Background(), 100)) },
}

// firstError returns the error that ends an iteration. It comes alone, and
// nothing after it.
func firstError(messages iter.Seq2[*mcast.Message, error]) (first error) {
	for m, err := range messages {
		switch {
		case first != nil:
			return fmt.Errorf("%v, %v after %w", m, err, first)
		case err != nil && m != nil:
			return fmt.Errorf("%v comes with %w", m, err)
		}
		first = err
	}
	return first
}

func testDeadline(t *testing.T, p place) {
	c := p.listen(t, ":0", nil)
	if err := c.Join(p.asm(1)); err != nil {
		t.Fatal(err)
	}
	for name, read := range reads {
		c.SetReadDeadline(time.Now().Add(-time.Second))
		wantTimeout(t, name+" past", read(c))
		c.SetDeadline(time.Now().Add(10 * time.Millisecond))
		wantTimeout(t, name, read(c))
		for _, set := range []func(time.Time) error{c.SetReadDeadline, c.SetDeadline} {
			c.SetReadDeadline(time.Time{})
			done := make(chan error, 3)
			for range cap(done) {
				go func() { done <- read(c) }()
			}
			time.Sleep(5 * time.Millisecond) // most will be in the read by now
			set(time.Now())
			for range cap(done) {
				wantTimeout(t, name+" under way", within(t, done))
			}
		}
	}
	c.SetDeadline(time.Time{})
	c.SetWriteDeadline(time.Now().Add(-time.Second))
	_, err := c.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(p.asm(1).Addr, uint16(localPort(c))))
	wantTimeout(t, "WriteToUDPAddrPort", err)
}

// Eight readers hear each datagram once.
func testReaders(t *testing.T, p place) {
	p.needsSenders(t, 1)
	g := p.asm(1)
	c := p.listen(t, ":0", nil)
	if err := c.Join(g); err != nil {
		t.Fatal(err)
	}
	const total = 400
	var mu sync.Mutex
	heard := make(map[string]int)
	all := make(chan bool)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			ms := make([]mcast.Message, 1+i%4*3)
			for k := range ms {
				ms[k].Buf = make([]byte, 100)
			}
			for {
				n, err := 1, error(nil)
				switch i {
				case 0, 4:
					err = c.ReadMessage(&ms[0])
				case 1:
					ms[0].N, _, err = c.ReadFromUDPAddrPort(ms[0].Buf)
				default:
					n, err = c.ReadBatch(ms)
				}
				if err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Error(err)
					}
					return
				}
				mu.Lock()
				for _, m := range ms[:n] {
					heard[string(m.Buf[:m.N])]++
				}
				if len(heard) == total {
					select {
					case <-all:
					default:
						close(all)
					}
				}
				mu.Unlock()
			}
		})
	}
	from := p.sender(t, p.senders[0])
	for i := range total {
		from.send(t, netip.AddrPortFrom(g.Addr, uint16(localPort(c))), fmt.Sprint("datagram ", i))
	}
	within(t, all)
	c.Close()
	wg.Wait()
	for payload, n := range heard {
		if n != 1 {
			t.Errorf("%q was heard %d times", payload, n)
		}
	}
	if st := c.Stats(); st.Received != total {
		t.Errorf("%+v, want %d received", st, total)
	}
}

func testBatch(t *testing.T, p place) {
	t.Run("nothing to read into", func(t *testing.T) {
		c := p.listen(t, ":0", nil)
		for _, ms := range [][]mcast.Message{nil, {}, {{}}, {{Buf: make([]byte, 10)}, {}}} {
			n, err := c.ReadBatch(ms)
			if wantNoRoom(t, "ReadBatch", err); n != 0 {
				t.Errorf("%d read", n)
			}
		}
		wantNoRoom(t, "ReadMessage", c.ReadMessage(&mcast.Message{}))
		wantNoRoom(t, "Messages", firstError(c.Messages(t.Context(), 0)))
		for _, room := range [][2]int{{0, 1}, {1<<16 - 1, 1}, {1 << 16, 0}} {
			_, err := c.ReadSlab(make([]byte, room[0]), make([]mcast.Datagram, room[1]))
			wantNoRoom(t, "ReadSlab", err)
		}
	})
	p.needsSenders(t, 1)
	g := p.asm(1)
	start := func(t *testing.T) (*scene, func(*sender, string)) {
		s := p.scene(t, p.listen(t, fmt.Sprint(":", p.port(t)), nil), true, g)
		if err := s.c.Join(g); err != nil {
			t.Fatal(err)
		}
		s.c.SetReadDeadline(time.Now().Add(20 * time.Second))
		return s, s.witness(g)
	}
	// batch makes messages, and a check that all buffers are still there.
	batch := func(n int) ([]mcast.Message, func(*testing.T)) {
		ms := make([]mcast.Message, n)
		count := make(map[*byte]int)
		for i := range ms {
			ms[i].Buf = make([]byte, 64)
			count[&ms[i].Buf[0]] = 1
		}
		return ms, func(t *testing.T) {
			t.Helper()
			now := make(map[*byte]int)
			for i := range ms {
				if len(ms[i].Buf) != 64 {
					t.Fatalf("message %d has a Buf of %d bytes", i, len(ms[i].Buf))
				}
				now[&ms[i].Buf[0]]++
			}
			if !maps.Equal(count, now) {
				t.Error("the buffers are not those that were given")
			}
		}
	}
	read := func(t *testing.T, s *scene, ms []mcast.Message, check func(*testing.T), want []string) {
		t.Helper()
		var got []string
		for len(got) < len(want) {
			n, err := s.c.ReadBatch(ms)
			if err != nil || n < 1 || n > len(ms) {
				t.Fatal(n, err, got)
			}
			check(t)
			for _, m := range ms[:n] {
				got = append(got, string(m.Buf[:m.N]))
				if !m.Source.IsValid() || !m.Group.Addr.IsValid() || m.Truncated {
					t.Errorf("%+v", m)
				}
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("heard %q, want %q", got, want)
		}
	}
	for _, size := range []int{1, 3, 8, 64, 1024, 1500} {
		t.Run(fmt.Sprint("in order ", size), func(t *testing.T) {
			s, queue := start(t)
			ms, check := batch(size)
			var want []string
			for i := range 100 {
				queue(s.senders[i%len(s.senders)], fmt.Sprint("datagram ", i))
				want = append(want, fmt.Sprint("datagram ", i))
			}
			read(t, s, ms, check, want)
		})
		t.Run(fmt.Sprint("filtered ", size), func(t *testing.T) {
			p.needsSenders(t, 2)
			s, queue := start(t)
			ms, check := batch(size)
			for round := range 3 {
				var want []string
				n := 0
				for i := range 100 {
					from := rand.IntN(2) // runs of any length
					if round == 2 {
						from = i / 50
					}
					payload := fmt.Sprintf("%d %d from %d", round, i, from)
					queue(s.senders[from], payload)
					if from == 0 {
						want = append(want, payload)
					} else {
						n++
					}
				}
				before := s.c.Stats().Filtered
				if err := s.c.Block(g, p.source(1)); err != nil {
					t.Fatal(err)
				}
				from := s.senders[0]
				from.send(t, netip.AddrPortFrom(s.fence.Addr, s.port), "fence")
				read(t, s, ms, check, append(want, "fence"))
				if f := s.c.Stats().Filtered - before; f != uint64(n) {
					t.Errorf("%d filtered, want %d", f, n)
				}
				if err := s.c.Unblock(g, p.source(1)); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	t.Run("all at once", func(t *testing.T) {
		if runtime.GOOS != "linux" {
			t.Skip("only Linux reads several datagrams at once")
		}
		s, queue := start(t)
		for i := range 40 {
			queue(s.senders[0], fmt.Sprint(i))
		}
		// The last one may still be on its way from the witness to here.
		ms, _ := batch(39)
		if n, err := s.c.ReadBatch(ms); n != len(ms) || err != nil {
			t.Errorf("%d datagrams, %v, want %d", n, err, len(ms))
		}
	})
}

func testAllocs(t *testing.T, p place) {
	p.needsSenders(t, 1)
	if raceEnabled() {
		t.Skip("the race detector allocates")
	}
	g := p.asm(1)
	c := p.listen(t, ":0", nil)
	if err := errors.Join(c.Join(g), c.Block(g, p.source(1))); err != nil {
		t.Fatal(err)
	}
	from := p.sender(t, p.senders[0])
	to := netip.AddrPortFrom(g.Addr, uint16(localPort(c)))
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	payload := []byte("datagram")
	send := func() {
		if _, err := from.WriteToUDPAddrPort(payload, to); err != nil {
			t.Fatal(err)
		}
	}
	m := mcast.Message{Buf: make([]byte, 100)}
	ms := make([]mcast.Message, 8)
	for i := range ms {
		ms[i].Buf = make([]byte, 100)
	}
	base := 0.0
	if runtime.GOOS == "windows" { // package net allocates there
		raw, err := net.ListenUDP(p.network(), net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.senders[0], 0)))
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		oob := make([]byte, 256)
		self := netip.AddrPortFrom(p.senders[0], uint16(localPort(raw)))
		base = allocsPerRun(100, func() {
			if _, err := raw.WriteToUDPAddrPort(payload, self); err != nil {
				t.Fatal(err)
			}
			if _, _, _, _, err := raw.ReadMsgUDPAddrPort(m.Buf, oob); err != nil {
				t.Fatal(err)
			}
		})
	}
	for name, read := range map[string]func() error{
		"ReadMessage":         func() error { return c.ReadMessage(&m) },
		"ReadBatch":           func() error { _, err := c.ReadBatch(ms); return err },
		"ReadFromUDPAddrPort": func() error { _, _, err := c.ReadFromUDPAddrPort(m.Buf); return err },
	} {
		t.Run(name, func(t *testing.T) {
			n := allocsPerRun(100, func() {
				send()
				if err := read(); err != nil {
					t.Fatal(err)
				}
			})
			if n > base {
				t.Errorf("%v allocations, want %v", n, base)
			}
		})
	}
}
