//go:build !plan9

package mcast

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
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A messenger is a Conn or a Pool.
type messenger interface {
	Messages(ctx context.Context, size int) iter.Seq2[*Message, error]
	ReadMessage(m *Message) error
	ReadBatch(ms []Message) (int, error)
	SetReadDeadline(t time.Time) error
	Join(g Group) error
	JoinSource(g Group, source netip.Addr) error
	Stats() Stats
	Close() error
}

var _, _ messenger = (*Conn)(nil), (*Pool)(nil)

// eachMessenger runs a test with a Conn, one that takes datagrams apart, and
// Pools that wait in each way. They have joined group(1, 1).
func eachMessenger(t *testing.T, cfg Config, test func(t *testing.T, c messenger, send func(payload string))) {
	at := testSite(t)
	run := func(name string, open func(t *testing.T) (messenger, int)) {
		t.Run(name, func(t *testing.T) {
			c, port := open(t)
			g, from := at.group(1, 1), at.sender(t, at.sources[0])
			if err := c.JoinSource(g, at.sources[0]); err != nil {
				t.Fatal(err)
			}
			test(t, c, func(payload string) { mustSend(t, from, g, port, payload) })
		})
	}
	conn := func(cfg Config) func(t *testing.T) (messenger, int) {
		return func(t *testing.T) (messenger, int) {
			c, err := Listen(at.network(), ":0", &cfg)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			return c, c.origin.port
		}
	}
	run("Conn", conn(cfg))
	apart := cfg
	apart.GRO = true
	run("Conn GRO", conn(apart))
	for _, w := range poolWays {
		run("Pool "+w.name, func(t *testing.T) (messenger, int) {
			w.use(t)
			return at.pool(t, &cfg)
		})
	}
}

// soon returns what comes, and fails the test if nothing does.
func soon[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(time.Minute):
		buf := make([]byte, 1<<20)
		t.Fatalf("%s: nothing happens\n%s", what, buf[:runtime.Stack(buf, true)])
	}
	return v
}

// A heardOne is what one turn of Messages was about.
type heardOne struct {
	payload string
	err     error
}

// iterate yields what Messages does, from a goroutine; the channel is closed
// when Messages ends.
func iterate(ctx context.Context, c messenger) <-chan heardOne {
	heard := make(chan heardOne)
	go func() {
		defer close(heard)
		for m, err := range c.Messages(ctx, 100) {
			if err != nil {
				heard <- heardOne{err: err}
				continue // it must end by itself
			}
			heard <- heardOne{payload: string(m.Buf[:m.N])}
		}
	}()
	return heard
}

func wantEnd(t *testing.T, heard <-chan heardOne) {
	t.Helper()
	if h := soon(t, "the end of Messages", heard); h != (heardOne{}) {
		t.Errorf("heard %q, %v, want the end", h.payload, h.err)
	}
}

func TestMessages(t *testing.T) {
	eachMessenger(t, Config{}, func(t *testing.T, c messenger, send func(string)) {
		type stringKey string
		for name, ctx := range map[string]func() (context.Context, func()){
			"cancel": func() (context.Context, func()) { return context.WithCancel(t.Context()) },
			"cause": func() (context.Context, func()) {
				ctx, cancel := context.WithCancelCause(t.Context())
				return context.WithValue(ctx, stringKey("k"), 1), func() { cancel(errors.New("why")) }
			},
			"timeout": func() (context.Context, func()) {
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
				return ctx, func() { <-ctx.Done(); cancel() }
			},
		} {
			t.Run(name, func(t *testing.T) {
				ctx, end := ctx()
				heard := iterate(ctx, c)
				if name != "timeout" {
					for i := range 3 {
						send(fmt.Sprint("datagram ", i))
						if h := soon(t, "a datagram", heard); h.payload != fmt.Sprint("datagram ", i) || h.err != nil {
							t.Errorf("heard %q, %v", h.payload, h.err)
						}
					}
				}
				end()
				wantEnd(t, heard)
				// Once more, though there is something to read.
				send("left")
				wantEnd(t, iterate(ctx, c))
				m := Message{Buf: make([]byte, 100)}
				c.SetReadDeadline(inTime())
				if err := c.ReadMessage(&m); err != nil || string(m.Buf[:m.N]) != "left" {
					t.Errorf("what was left is %q, %v", m.Buf[:m.N], err)
				}
				c.SetReadDeadline(time.Time{})
			})
		}
	})
}

// A context that ends while nobody reads, because the program is at work on a
// message, is no matter of other readers.
func TestMessagesBusyBody(t *testing.T) {
	eachMessenger(t, Config{}, func(t *testing.T, c messenger, send func(string)) {
		ctx, cancel := context.WithCancel(t.Context())
		at, goOn, ended := make(chan bool), make(chan bool), make(chan bool)
		go func() {
			defer close(ended)
			for m, err := range c.Messages(ctx, 100) {
				if err != nil || string(m.Buf[:m.N]) != "first" {
					t.Errorf("heard %q, %v", m.Buf[:m.N], err)
				}
				at <- true
				<-goOn
			}
		}()
		send("first")
		soon(t, "the first message", at)
		cancel()
		for i := range 3 {
			read := make(chan string)
			go func() {
				m := Message{Buf: make([]byte, 100)}
				if err := c.ReadMessage(&m); err != nil {
					t.Error(err)
				}
				read <- string(m.Buf[:m.N])
			}()
			if i > 0 { // once when it is there already
				time.Sleep(5 * time.Millisecond)
			}
			send("another")
			if s := soon(t, "another reader", read); s != "another" {
				t.Errorf("read %q", s)
			}
		}
		close(goOn)
		soon(t, "the end of Messages", ended)
	})
}

// The user's deadline is as it was, and is heeded.
func TestMessagesDeadline(t *testing.T) {
	eachMessenger(t, Config{}, func(t *testing.T, c messenger, send func(string)) {
		m := Message{Buf: make([]byte, 100)}
		var mayFail error
		endOne := func() {
			ctx, cancel := context.WithCancel(t.Context())
			heard := iterate(ctx, c)
			time.Sleep(time.Millisecond) // so that it may be reading
			cancel()
			if h := soon(t, "the end of Messages", heard); h != (heardOne{}) && !errors.Is(h.err, mayFail) {
				t.Errorf("heard %q, %v, want the end", h.payload, h.err)
			}
		}
		// None.
		endOne()
		send("no deadline")
		if err := c.ReadMessage(&m); err != nil || string(m.Buf[:m.N]) != "no deadline" {
			t.Errorf("%q, %v", m.Buf[:m.N], err)
		}
		// One to come.
		c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		endOne()
		if err := c.ReadMessage(&m); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after the deadline: %v", err)
		}
		// One that is over: an error, once.
		heard := iterate(t.Context(), c)
		if h := soon(t, "the deadline", heard); !errors.Is(h.err, os.ErrDeadlineExceeded) {
			t.Errorf("heard %q, %v", h.payload, h.err)
		}
		wantEnd(t, heard)
		// Taken back.
		c.SetReadDeadline(time.Time{})
		endOne()
		send("no deadline")
		if err := c.ReadMessage(&m); err != nil || string(m.Buf[:m.N]) != "no deadline" {
			t.Errorf("%q, %v", m.Buf[:m.N], err)
		}
		// Set while others end: it must hold in the end.
		mayFail = os.ErrDeadlineExceeded
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 20 {
					endOne()
				}
			})
		}
		for range 20 {
			c.SetReadDeadline(inTime())
			c.SetReadDeadline(time.Time{})
			runtime.Gosched()
		}
		c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		wg.Wait()
		if err := c.ReadMessage(&m); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after the deadline: %v", err)
		}
	})
}

// Messages allocates nothing for a datagram.
func TestMessagesAllocates(t *testing.T) {
	if raceEnabled() {
		t.Skip("the race detector allocates")
	}
	eachMessenger(t, Config{}, func(t *testing.T, c messenger, send func(string)) {
		if runtime.GOOS == "windows" || strings.HasSuffix(t.Name(), "Pool_net") {
			t.Skip("package net allocates")
		}
		next, stop := iter.Pull2(c.Messages(t.Context(), 100))
		defer stop()
		read := func() {
			if m, err, ok := next(); m == nil || err != nil || !ok {
				t.Fatal(m, err)
			}
		}
		send("first")
		read()
		for range 51 {
			send("datagram")
		}
		if n := testing.AllocsPerRun(50, read); n > 0 {
			t.Errorf("%v allocations", n)
		}
	})
}

// Close is an error, yielded once, with a nil message.
func TestMessagesClose(t *testing.T) {
	eachMessenger(t, Config{}, func(t *testing.T, c messenger, _ func(string)) {
		var all []<-chan heardOne
		for range 3 {
			all = append(all, iterate(t.Context(), c), iterate(context.Background(), c))
		}
		time.Sleep(5 * time.Millisecond) // most will be reading by now
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		for _, heard := range append(all, iterate(t.Context(), c)) {
			h := soon(t, "Close", heard)
			var e *net.OpError
			if !errors.Is(h.err, net.ErrClosed) || !errors.As(h.err, &e) || e.Op != "read" {
				t.Errorf("heard %q, %v", h.payload, h.err)
			}
			wantEnd(t, heard)
		}
		for m, err := range c.Messages(t.Context(), 100) {
			if m != nil || err == nil {
				t.Errorf("%v, %v", m, err)
			}
			break // is allowed there too
		}
	})
}

// A break loses nothing that was not yielded, whatever the body does with the
// message.
func TestMessagesBreak(t *testing.T) {
	eachMessenger(t, Config{Coalesce: time.Millisecond}, func(t *testing.T, c messenger, send func(string)) {
		const total = 50
		for i := range total {
			send(fmt.Sprint(i))
		}
		for i := 0; i < total; {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			for m, err := range c.Messages(ctx, 100) {
				if err != nil {
					t.Fatal(err)
				}
				if len(m.Buf) != 100 || m.Truncated {
					t.Errorf("%d bytes of room, truncated %v", len(m.Buf), m.Truncated)
				}
				if got := string(m.Buf[:m.N]); got != fmt.Sprint(i) {
					t.Fatalf("heard %q, want %d", got, i)
				}
				i++
				*m = Message{Buf: m.Buf[:1]}
				if i%3 == 0 || i == total {
					break
				}
			}
			cancel()
		}
	})
}

// Several iterations at once, which end at any time beside readers that do not:
// each datagram comes once, and none is lost.
func TestMessagesTogether(t *testing.T) {
	eachMessenger(t, Config{}, func(t *testing.T, c messenger, send func(string)) {
		total, longest := 1000, 300*time.Microsecond
		if runtime.GOOS == "windows" { // ending a read takes its time there
			total, longest = 200, 3*time.Millisecond
		}
		var mu sync.Mutex
		heard := make(map[string]int)
		note := func(m *Message) {
			mu.Lock()
			defer mu.Unlock()
			heard[string(m.Buf[:m.N])]++
		}
		count := func() int {
			mu.Lock()
			defer mu.Unlock()
			return len(heard)
		}
		var stop atomic.Bool
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for !stop.Load() {
					ctx, cancel := context.WithTimeout(context.Background(), rand.N(longest))
					for m, err := range c.Messages(ctx, 100) {
						if err != nil {
							if !stop.Load() || !errors.Is(err, net.ErrClosed) {
								t.Error(err)
							}
							cancel()
							return
						}
						note(m)
					}
					cancel()
				}
			})
		}
		wg.Go(func() {
			m := Message{Buf: make([]byte, 100)}
			for {
				err := c.ReadMessage(&m)
				if err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Error(err)
					}
					return
				}
				note(&m)
			}
		})
		for i := range total {
			send(fmt.Sprint(i))
			if i%50 == 49 {
				for end := inTime(); count() <= i; time.Sleep(100 * time.Microsecond) {
					if time.Now().After(end) {
						t.Fatalf("%d of %d were heard", count(), i+1)
					}
				}
			}
		}
		stop.Store(true)
		c.Close()
		wg.Wait()
		for payload, n := range maps.All(heard) {
			if n != 1 {
				t.Errorf("%q came %d times", payload, n)
			}
		}
		if st := c.Stats(); st.Received != uint64(total) {
			t.Errorf("%+v, want %d received", st, total)
		}
	})
}

// A deadlineSocket notes the deadline that it has.
type deadlineSocket struct{ at time.Time }

func (s *deadlineSocket) SetReadDeadline(t time.Time) error {
	s.at = t
	return nil
}

// A reader that a wake-up ended, whenever it began to read, is not told of a
// deadline unless there is one that is over; and the user's deadline is back when
// the last wake-up is.
func TestReadDeadline(t *testing.T) {
	past, future := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	for _, user := range []time.Time{{}, past, future} {
		var s deadlineSocket
		d := readDeadline{sock: &s}
		if err := d.set(user); err != nil || !s.at.Equal(user) {
			t.Fatal(err, s.at)
		}
		before := d.woken.Load()
		if !d.passed(before) {
			t.Error("nobody was woken, and a read that ended did not end by the deadline")
		}
		d.wake()
		during := d.woken.Load()
		d.wake()
		second := d.woken.Load()
		for range 2 {
			if !s.at.Before(time.Now()) {
				t.Errorf("woken, with the deadline %v", s.at)
			}
			for _, began := range []uint64{before, during, second} {
				if got := d.passed(began); got != user.Equal(past) {
					t.Errorf("deadline %v, while readers are woken: passed %v", user, got)
				}
			}
			d.calm()
		}
		if !s.at.Equal(user) {
			t.Errorf("the deadline is %v, want %v", s.at, user)
		}
		for _, began := range []uint64{before, during, second} {
			if got := d.passed(began); got != user.Equal(past) {
				t.Errorf("deadline %v, after readers were woken: passed %v", user, got)
			}
		}
		if !d.passed(d.woken.Load()) {
			t.Error("a read that began since ends by the deadline")
		}
		if d.expired() != user.Equal(past) {
			t.Errorf("deadline %v: expired %v", user, d.expired())
		}
		// Set while readers are woken, it holds afterwards.
		d.wake()
		if d.set(future); s.at.Equal(future) {
			t.Error("a reader that was to be woken is not")
		}
		if d.calm(); !s.at.Equal(future) {
			t.Errorf("the deadline is %v, want %v", s.at, future)
		}
	}
}
