//go:build !plan9

package mcast

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"
)

// An exactness is a book of numbered datagrams: each flow, a source and port to
// a group and port, counts for itself.
type exactness struct {
	ordered bool // one reader: the numbers of a flow must ascend

	mu    sync.Mutex
	want  map[exactFlow]map[int]bool
	last  map[exactFlow]int
	total int
	got   int
	wrong []string
}

type exactFlow struct {
	from netip.AddrPort
	to   Group
	port int
}

func newExact(ordered bool) *exactness {
	return &exactness{ordered: ordered, want: make(map[exactFlow]map[int]bool), last: make(map[exactFlow]int)}
}

// sent notes what was sent, and is to be heard.
func (e *exactness) sent(from *Conn, to Group, port, n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f := exactFlow{from.LocalAddr().(*net.UDPAddr).AddrPort(), to, port}
	f.from = netip.AddrPortFrom(f.from.Addr().Unmap(), f.from.Port())
	if e.want[f] == nil {
		e.want[f] = make(map[int]bool)
	}
	if _, heard := e.want[f][n]; !heard {
		e.want[f][n] = true
	}
	e.total++
}

// heard notes what was heard. It may be noted before it is noted as sent.
func (e *exactness) heard(m *Message) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f := exactFlow{m.Source, m.Group, m.Port}
	n, err := strconv.Atoi(string(m.Buf[:m.N]))
	if err != nil || m.Truncated {
		e.wrong = append(e.wrong, fmt.Sprintf("%v: %q, truncated %v", f, m.Buf[:m.N], m.Truncated))
		return
	}
	if e.want[f] == nil {
		e.want[f] = make(map[int]bool)
	}
	if last, ok := e.last[f]; ok && e.ordered && n <= last {
		e.wrong = append(e.wrong, fmt.Sprintf("%v: %d after %d", f, n, last))
	}
	e.last[f] = n
	if open, ok := e.want[f][n]; ok && !open {
		e.wrong = append(e.wrong, fmt.Sprintf("%v: %d came twice", f, n))
	}
	e.want[f][n] = false
	e.got++
}

// wait waits until as many were heard as were sent.
func (e *exactness) wait(t *testing.T) {
	t.Helper()
	for end := inTime(); ; time.Sleep(100 * time.Microsecond) {
		e.mu.Lock()
		got, total, wrong := e.got, e.total, len(e.wrong)
		e.mu.Unlock()
		switch {
		case wrong > 0 || got > total:
			e.check(t)
			return
		case got == total:
			return
		case time.Now().After(end):
			t.Fatalf("heard %d of %d", got, total)
		}
	}
}

// check fails the test for what is not exact.
func (e *exactness) check(t *testing.T) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, w := range e.wrong {
		t.Error(w)
	}
	if e.got != e.total {
		t.Errorf("heard %d, want %d", e.got, e.total)
	}
	for f, ns := range e.want {
		for n, open := range ns {
			if open {
				t.Errorf("%v: %d was not heard", f, n)
			}
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}

// TestConnExact: each datagram of interleaved groups and sources comes once, in
// every mode, to one reader in order, beside requests and deadlines.
func TestConnExact(t *testing.T) {
	at := testSite(t)
	for _, cfg := range []Config{
		{},
		{GRO: true},
		{Coalesce: time.Millisecond},
		{GRO: true, Coalesce: time.Millisecond},
		{BusyPoll: 100 * time.Microsecond},
		{GRO: true, Timestamps: true, HopLimit: true, GroupStats: true},
	} {
		for _, bound := range []bool{false, true} {
			for _, readers := range []int{1, 5} {
				name := fmt.Sprintf("GRO %v, coalesce %v, busy %v, counts %v, bound %v, %d readers", cfg.GRO, cfg.Coalesce, cfg.BusyPoll, cfg.GroupStats, bound, readers)
				t.Run(name, func(t *testing.T) { testConnExact(t, at, cfg, bound, readers) })
			}
		}
	}
}

func testConnExact(t *testing.T, at site, cfg Config, bound bool, readers int) {
	groups := []Group{at.group(5, 0), at.group(5, 1), at.group(5, 2)}
	address := ":0"
	if bound {
		groups = groups[:1]
		address = netip.AddrPortFrom(groups[0].Addr, 0).String()
	}
	c, err := Listen(at.network(), address, &cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	port := c.origin.port
	joined := func(g, s int) bool { return (g+s)%3 != 2 }
	var froms []*Conn
	for s, source := range at.sources {
		froms = append(froms, at.sender(t, source))
		for g := range groups {
			if !joined(g, s) {
				continue
			}
			if err := c.JoinSource(groups[g], source); err != nil {
				t.Fatal(err)
			}
		}
	}
	exact := newExact(readers == 1)
	var wg sync.WaitGroup
	for r := range readers {
		wg.Go(func() {
			ms, slab, ds := makeMessages(1+5*r, 50), make([]byte, 3*largest), make([]Datagram, 7)
			for turn := 0; ; turn++ {
				n, err := 1, error(nil)
				switch (turn + r) % 4 {
				case 0:
					err = c.ReadMessage(&ms[0])
				case 1:
					ctx, cancel := context.WithTimeout(context.Background(), time.Duration(turn%7)*100*time.Microsecond)
					for m, e := range c.Messages(ctx, 50) {
						if err = e; e == nil {
							exact.heard(m)
						}
					}
					cancel()
					n = 0
				case 2:
					var k int
					k, err = c.ReadSlab(slab, ds)
					n = 0
					for _, d := range ds[:k] {
						exact.heard(&Message{Buf: slab[d.Offset:][:d.Size], N: d.Size, Source: d.Source, Group: d.Group, Port: d.Port})
					}
				default:
					n, err = c.ReadBatch(ms)
				}
				if errors.Is(err, os.ErrDeadlineExceeded) {
					continue
				}
				if err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Error(err)
					}
					return
				}
				for i := range ms[:n] {
					exact.heard(&ms[i])
				}
			}
		})
	}
	stop := make(chan bool)
	var beside sync.WaitGroup
	beside.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				c.SetReadDeadline(time.Time{})
				return
			default:
			}
			c.SetReadDeadline(time.Now().Add(time.Duration(i%5-1) * time.Millisecond))
			// Sources that are none of those that send.
			g, far := groups[i%len(groups)], at.far(1+i%3)
			err := errors.Join(c.JoinSource(g, far), c.LeaveSource(g, far))
			if !bound {
				err = errors.Join(err, c.JoinSource(at.group(6, i%9), at.sources[0]), c.Leave(at.group(6, i%9)))
			}
			if err != nil {
				t.Error(err)
			}
			time.Sleep(100 * time.Microsecond)
		}
	})
	total := 150
	if runtime.GOOS == "windows" || testing.Short() {
		total = 30
	}
	for n := 0; n < total; {
		for range 10 {
			for g := range groups {
				for s, from := range froms {
					mustSend(t, from, groups[g], port, fmt.Sprint(n))
					if joined(g, s) {
						exact.sent(from, groups[g], port, n)
					}
				}
			}
			n++
		}
		exact.wait(t)
	}
	close(stop)
	beside.Wait()
	c.Close()
	wg.Wait()
	exact.check(t)
	if st := c.Stats(); st.Received != uint64(exact.total) || st.Dropped != 0 || st.Truncated != 0 {
		t.Errorf("%+v, want %d received", st, exact.total)
	}
}
