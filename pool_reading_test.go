//go:build !plan9

package mcast

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The reading half of TestPool.

// isQueued waits until a Pool has noticed that there is something to read in a
// group's socket, so that the test does not depend on when.
func isQueued(t *testing.T, p *Pool, g Group) {
	t.Helper()
	own, ok := p.sockets.(*netSockets)
	if !ok {
		return // it asks the system whenever it reads
	}
	p.Members.mu.Lock()
	s := p.Members.on[g.Addr][0]
	p.Members.mu.Unlock()
	for end := inTime(); ; time.Sleep(time.Millisecond) {
		own.mu.Lock()
		state := s.state
		own.mu.Unlock()
		switch {
		case state == queued:
			return
		case time.Now().After(end):
			t.Fatalf("there is something to read, and its socket is in state %d", state)
		}
	}
}

// A channel with much to read has its turn, and no more: an idle one that has
// one datagram is next, and the deadline and Close are heeded meanwhile.
func testPoolFair(t *testing.T, at site) {
	if at.ifi.Flags&net.FlagLoopback == 0 && os.Getenv("MCAST_TEST_WINE") != "" {
		t.Skip("the emulator delivers when it likes")
	}
	busy, idle := at.group(1, 1), at.group(1, 2)
	const many = 400
	open := func(t *testing.T) (p *Pool, send func(Group, string)) {
		p, port := at.pool(t, nil)
		from := at.sender(t, at.sources[0])
		if err := p.JoinSource(busy, at.sources[0]); err != nil {
			t.Fatal(err)
		}
		// Groups that share a socket are no matter of fairness.
		for i := 0; p.Sockets() == 1 && i < 50; i++ {
			if err := p.JoinSource(at.group(2, i), at.sources[0]); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.JoinSource(idle, at.sources[0]); err != nil {
			t.Fatal(err)
		}
		p.SetReadDeadline(inTime())
		return p, func(g Group, payload string) { mustSend(t, from, g, port, payload) }
	}
	t.Run("idle", func(t *testing.T) {
		p, send := open(t)
		if p.Members.on[busy.Addr][0] == p.Members.on[idle.Addr][0] {
			t.Skip("the groups share a socket here")
		}
		for range many {
			send(busy, "busy")
		}
		ms := makeMessages(4, 100)
		for round := range 5 {
			if n, err := p.ReadBatch(ms); n == 0 || err != nil {
				t.Fatal(n, err)
			}
			send(idle, "idle")
			isQueued(t, p, idle)
			for reads := 1; ; reads++ {
				n, err := p.ReadBatch(ms)
				if err != nil {
					t.Fatal(err)
				}
				if slices.ContainsFunc(ms[:n], func(m Message) bool { return m.Group == idle }) {
					break
				}
				if reads == 3 {
					t.Fatalf("round %d: after %d reads of %d the idle channel had no turn", round, reads, n)
				}
			}
		}
	})
	t.Run("deadline", func(t *testing.T) {
		p, send := open(t)
		for range many {
			send(busy, "busy")
		}
		ms := makeMessages(4, 100)
		if n, err := p.ReadBatch(ms); n == 0 || err != nil {
			t.Fatal(n, err)
		}
		isQueued(t, p, busy)
		p.SetReadDeadline(time.Now().Add(-time.Second))
		if n, err := p.ReadBatch(ms); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%d, %v, want a timeout", n, err)
		}
		p.SetReadDeadline(inTime())
		if n, err := p.ReadBatch(ms); n == 0 || err != nil {
			t.Errorf("%d, %v after the deadline was moved", n, err)
		}
	})
	t.Run("Close", func(t *testing.T) {
		p, send := open(t)
		for range many {
			send(busy, "busy")
		}
		ms := makeMessages(4, 100)
		if n, err := p.ReadBatch(ms); n == 0 || err != nil {
			t.Fatal(n, err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if n, err := p.ReadBatch(ms); n != 0 || !errors.Is(err, net.ErrClosed) {
			t.Errorf("%d, %v, want net.ErrClosed", n, err)
		}
	})
}

// What a reader finds while another one has its socket, or while none waits, is
// not forgotten.
func testPoolWakes(t *testing.T, at site) {
	p, port := at.pool(t, nil)
	from := at.sender(t, at.sources[0])
	g := at.group(1, 1)
	if err := p.JoinSource(g, at.sources[0]); err != nil {
		t.Fatal(err)
	}
	p.SetReadDeadline(inTime())
	got := make(chan int)
	const readers, rounds = 3, 300
	for range readers {
		go func() {
			m := Message{Buf: make([]byte, 10)}
			for p.ReadMessage(&m) == nil {
				got <- 1
			}
			got <- 0
		}()
	}
	for i := range rounds {
		// Some find a reader that waits, some one that reads, some both.
		for range 1 + i%3 {
			mustSend(t, from, g, port, "x")
		}
		for range 1 + i%3 {
			if soon(t, fmt.Sprint("round ", i), got) != 1 {
				t.Fatal("a reader ended")
			}
		}
	}
	p.Close()
	for range readers {
		soon(t, "the readers' end", got)
	}
}

// Readers that take turns keep their own buffers, of any size and number.
func testPoolBuffers(t *testing.T, at site) {
	p, port := at.pool(t, nil)
	from := at.sender(t, at.sources[0])
	var groups []Group
	for i := range 5 {
		groups = append(groups, at.group(1, i))
		if err := p.JoinSource(groups[i], at.sources[0]); err != nil {
			t.Fatal(err)
		}
	}
	p.SetReadDeadline(inTime())
	long := strings.Repeat("0123456789", 10)
	for round := range 60 {
		ms := makeMessages(1+round%7, 1+round*7%130)
		own := make(map[*byte]bool)
		for i := range ms {
			own[&ms[i].Buf[0]] = true
		}
		total := 1 + round%20
		for i := range total {
			mustSend(t, from, groups[i%len(groups)], port, long)
		}
		for got := 0; got < total; {
			n, err := p.ReadBatch(ms)
			if err != nil {
				t.Fatal(err)
			}
			got += n
			now := make(map[*byte]bool)
			for i := range ms {
				now[&ms[i].Buf[0]] = true
			}
			if !maps.Equal(own, now) {
				t.Fatal("the buffers are not those that were given")
			}
			for _, m := range ms[:n] {
				room := min(len(m.Buf), len(long))
				if string(m.Buf[:m.N]) != long[:room] || m.Truncated != (room < len(long)) {
					t.Fatalf("%q, truncated %v, in room for %d", m.Buf[:m.N], m.Truncated, room)
				}
			}
		}
	}
	if st := p.Stats(); st.Truncated == 0 || st.Truncated >= st.Received {
		t.Errorf("%+v", st)
	}
}

// Stats are of all sockets, those that are closed too.
func testPoolStats(t *testing.T, at site) {
	p, port := at.pool(t, &Config{GroupStats: true, ReadBuffer: 1 << 16})
	from := at.sender(t, at.sources[0])
	g, h := at.group(1, 1), at.group(1, 2)
	for _, g := range []Group{g, h} {
		if err := p.JoinSource(g, at.sources[0]); err != nil {
			t.Fatal(err)
		}
	}
	if st := p.Stats(); st.ReadBuffer < 1<<16 {
		t.Errorf("%+v", st)
	}
	const total = 500
	payload := strings.Repeat("x", 1000)
	for range total {
		mustSend(t, from, g, port, payload)
	}
	mustSend(t, from, h, port, "last")
	ms := makeMessages(16, 2000)
	p.SetReadDeadline(inTime())
	var st Stats
	if hostSystem.name != "linux" {
		t.Skip("only Linux counts what it drops")
	}
	for ; st.Received+st.Dropped < total+1; st = p.Stats() {
		n, err := p.ReadBatch(ms)
		if err != nil {
			t.Fatalf("%v; %+v", err, p.Stats())
		}
		for _, m := range ms[:n] {
			if m.Group != h && m.N != len(payload) {
				t.Errorf("%d bytes to %v", m.N, m.Group)
			}
		}
	}
	if st.Dropped == 0 || st.Received == 0 || st.Filtered != 0 {
		t.Errorf("%+v", st)
	}
	byGroup := maps.Collect(p.GroupStats())
	if len(byGroup) != 2 {
		t.Fatalf("%+v", byGroup)
	}
	dropped := byGroup[g].Dropped
	if !p.canBind() { // the socket has several groups
		if dropped != 0 {
			t.Errorf("dropped %d on a socket of several groups", dropped)
		}
		dropped = st.Dropped
	}
	if s := byGroup[g]; s.Received+dropped != total || s.Bytes != s.Received*1000 || s.Filtered != 0 || time.Since(s.Last) > time.Hour {
		t.Errorf("%v: %+v", g, s)
	}
	if s := byGroup[h]; s.Received != 1 || s.Bytes != 4 || s.Dropped != 0 {
		t.Errorf("%v: %+v", h, s)
	}
	if err := errors.Join(p.Leave(g), p.Leave(h)); err != nil {
		t.Error(err)
	}
	if after := p.Stats(); after != st {
		t.Errorf("%+v after all was left, %+v before", after, st)
	}
	for g := range p.GroupStats() {
		t.Errorf("%v was left", g)
	}
	p.Close()
	if after := p.Stats(); after != st {
		t.Errorf("%+v after Close, %+v before", after, st)
	}
}

// Config.Unicast hands over unicast datagrams to the Pool's port, and to those
// of On while they have memberships, each once.
func testPoolUnicast(t *testing.T, at site) {
	for name, cfg := range map[string]*Config{
		"off": {}, "on": {Unicast: true},
		"with Control": {Unicast: true, Control: func(string, string, syscall.RawConn) error { return nil }},
	} {
		t.Run(name, func(t *testing.T) {
			unicast := cfg.Unicast
			p, port := at.pool(t, cfg)
			other := at.port(t)
			from := at.sender(t, at.sources[0])
			unicastTo := func(port int, payload string) {
				// Where nobody listens, a system may say so.
				from.WriteToUDPAddrPort([]byte(payload), netip.AddrPortFrom(at.sources[0], uint16(port)))
			}
			// More groups than share a socket.
			fence := at.group(9, 9)
			for i := range 30 {
				if err := p.Join(Group{asmOf(at, i), at.ifi.Name}); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(p.JoinSource(fence, at.sources[0]), p.On(other).JoinSource(fence, at.sources[0])); err != nil {
				t.Fatal(err)
			}
			var want []string
			for i := range 5 {
				unicastTo(port, fmt.Sprint("here ", i))
				unicastTo(other, fmt.Sprint("there ", i))
				if unicast {
					want = append(want, fmt.Sprint("here ", i), fmt.Sprint("there ", i))
				}
			}
			mustSend(t, from, fence, port, "fence")
			mustSend(t, from, fence, other, "fence")
			want = append(want, "fence", "fence")
			p.SetReadDeadline(inTime())
			ms := makeMessages(3, 100)
			var got []string
			for len(got) < len(want) {
				n, err := p.ReadBatch(ms)
				if err != nil {
					t.Fatalf("%v after %q", err, got)
				}
				for _, m := range ms[:n] {
					payload := string(m.Buf[:m.N])
					got = append(got, payload)
					if payload == "fence" {
						continue
					}
					if want := map[bool]int{true: port, false: other}[strings.HasPrefix(payload, "here")]; m.Port != want || m.Group.Addr != at.sources[0] || m.Group.Interface == "" || m.Index == 0 {
						t.Errorf("%q: %+v", payload, m)
					}
				}
			}
			slices.Sort(want)
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Errorf("heard %q, want %q", got, want)
			}
		})
	}
}

// asmOf is an any-source group.
func asmOf(at site, i int) netip.Addr {
	if at.six {
		return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x1e, 14: 7, 15: byte(i)})
	}
	return netip.AddrFrom4([4]byte{239, 77, 7, byte(i)})
}

// A Pool hands over nothing that the system lets through and the filter does
// not: here somebody else has joined groups on its sockets.
func testPoolBehindItsBack(t *testing.T, at site) {
	if len(at.sources) < 2 {
		t.Skip("this needs two addresses to send from")
	}
	p, port := at.pool(t, nil)
	g, fence := at.group(1, 1), at.group(1, 9)
	if err := errors.Join(p.JoinSource(g, at.sources[0]), p.JoinSource(fence, at.sources[0])); err != nil {
		t.Fatal(err)
	}
	others := []Group{at.group(1, 2), {asmOf(at, 3), at.ifi.Name}}
	p.Members.mu.Lock()
	for _, s := range p.Members.all() {
		for _, e := range s.entries(g.Addr) {
			behind(t, &s.kernel, change{op: OpJoinSource, addr: g.Addr, source: at.sources[1], index: e.index})
		}
		// On a socket that is bound to a group they are not heard.
		behind(t, &s.kernel, change{op: OpJoinSource, addr: others[0].Addr, source: at.sources[0], index: at.ifi.Index})
		behind(t, &s.kernel, change{op: OpJoin, addr: others[1].Addr, index: at.ifi.Index})
	}
	p.Members.mu.Unlock()
	a, b := at.sender(t, at.sources[0]), at.sender(t, at.sources[1])
	const each = 5
	for range each {
		mustSend(t, b, g, port, "a source that was not joined")
		for _, o := range others {
			mustSend(t, a, o, port, "a group that was not joined")
		}
	}
	mustSend(t, a, g, port, "joined")
	mustSend(t, a, fence, port, "joined")
	p.SetReadDeadline(inTime())
	ms := makeMessages(4, 100)
	for got := 0; got < 2; {
		n, err := p.ReadBatch(ms)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range ms[:n] {
			if string(m.Buf[:m.N]) != "joined" {
				t.Errorf("heard %q from %v to %v", m.Buf[:m.N], m.Source, m.Group)
			}
		}
		got += n
	}
	if st := p.Stats(); st.Filtered < each {
		t.Errorf("%+v: the system let nothing through", st)
	}
}

// behind makes a request that the library does not know of.
func behind(t *testing.T, k *kernel, c change) {
	t.Helper()
	if err := k.send(c, c.op == OpJoin || c.op == OpJoinSource); err != nil {
		t.Fatal(err)
	}
}

// failingSockets have one socket to read, and then an error; or two, one of which
// has it.
type failingSockets struct {
	poolSockets
	s      *shard
	two    bool
	broken int // which of the two
	err    error
}

func (f *failingSockets) borrow() poolReader  { return f }
func (f *failingSockets) giveBack(poolReader) {}

func (f *failingSockets) next([]Message, bool, bool) ([]take, bool, error) {
	s := f.s
	f.s = nil
	switch {
	case s != nil && f.two:
		return []take{{shard: s}, {shard: s}}, false, nil
	case s != nil:
		return []take{{shard: s}}, false, nil
	case f.two:
		return nil, false, errors.New("nothing more")
	}
	return nil, false, f.err
}

func (f *failingSockets) read(takes []take, ms []Message) {
	ms[0].N = copy(ms[0].Buf, "read")
	ms[0].Group.Addr, ms[0].Index = netip.MustParseAddr("239.1.1.1"), 7
	ms[0].Source = netip.MustParseAddrPort("10.0.0.1:5000")
	if !f.two {
		takes[0].n = 1
		return
	}
	takes[f.broken].err = f.err
	takes[1-f.broken].n = 1
}

func (f *failingSockets) release([]take) {}

// A datagram that was read never comes with an error, with which it would be
// lost; the error comes next.
func TestPoolErrorAfterDatagram(t *testing.T) {
	broken := errors.New("broken")
	for i, err := range []error{os.ErrDeadlineExceeded, net.ErrClosed, broken, broken, broken} {
		l := &ledger{}
		l.heard.put(groupIndex{netip.MustParseAddr("239.1.1.1"), 7}, &hearing{sourceFilter: sourceFilter{mode: Exclude}, ifname: "eth7"})
		p := &Pool{sockets: &failingSockets{s: &shard{ledger: l}, two: i > 2, broken: i & 1, err: err}, cfg: (*Config)(nil).withDefaults()}
		ms := makeMessages(3, 10)
		if n, got := p.ReadBatch(ms); n != 1 || got != nil || string(ms[0].Buf[:ms[0].N]) != "read" {
			t.Errorf("%d, %v, want the datagram before %v", n, got, err)
		}
		n, got := p.ReadBatch(ms)
		var e *net.OpError
		if n != 0 || !errors.Is(got, err) || !errors.As(got, &e) {
			t.Errorf("%d, %v, want %v", n, got, err)
		}
	}
}

// A restingSockets has a datagram twice, the first one after a while, and notes how it
// is asked.
type restingSockets struct {
	failingSockets
	asked [][2]bool // first, rested
}

func (r *restingSockets) borrow() poolReader { return r }

func (r *restingSockets) next(_ []Message, first, rested bool) ([]take, bool, error) {
	if r.asked = append(r.asked, [2]bool{first, rested}); len(r.asked) > 2 {
		return nil, false, nil
	}
	return []take{{shard: r.s}}, len(r.asked) == 1, nil
}

// A Pool that coalesces asks once for what has come meanwhile.
func TestPoolRests(t *testing.T) {
	for _, coalesce := range []time.Duration{0, 1} {
		l := &ledger{}
		l.heard.put(groupIndex{netip.MustParseAddr("239.1.1.1"), 7}, &hearing{sourceFilter: sourceFilter{mode: Exclude}})
		r := &restingSockets{failingSockets: failingSockets{s: &shard{ledger: l}}}
		p := &Pool{sockets: r, cfg: (&Config{Coalesce: coalesce}).withDefaults()}
		n, err := p.ReadBatch(makeMessages(5, 10))
		want := [][2]bool{{true, false}, {false, coalesce > 0}, {false, false}}
		if n != 2 || err != nil || !slices.Equal(r.asked, want) {
			t.Errorf("%v: %d, %v, asked %v, want %v", coalesce, n, err, r.asked, want)
		}
	}
}

// Each datagram of interleaved channels and sources comes once, in order, to
// one reader, and once to several, beside requests and deadlines.
func testPoolExact(t *testing.T, at site) {
	for _, readers := range []int{1, 4} {
		for _, cfg := range []Config{
			{GRO: true},
			{GRO: true, Coalesce: time.Millisecond},
			{BusyPoll: 100 * time.Microsecond},
			{BusyPoll: -1},
		} {
			t.Run(fmt.Sprintf("%d readers, coalesce %v, busy %v", readers, cfg.Coalesce, cfg.BusyPoll), func(t *testing.T) {
				p, port := at.pool(t, &cfg)
				var froms []*Conn
				for _, s := range at.sources {
					froms = append(froms, at.sender(t, s))
				}
				other := at.port(t)
				const groups = 25
				each := 25
				if runtime.GOOS == "windows" || testing.Short() {
					each = 4
				}
				joined := func(g, s int) bool { return (g+s)%3 != 0 }
				exact := newExact(readers == 1)
				for g := range groups {
					for s, source := range at.sources {
						if !joined(g, s) {
							continue
						}
						if err := errors.Join(p.JoinSource(at.group(3, g), source), p.On(other).JoinSource(at.group(3, g), source)); err != nil {
							t.Fatal(err)
						}
					}
				}
				var wg sync.WaitGroup
				for r := range readers {
					wg.Go(func() {
						ms := makeMessages(1+5*r, 50)
						for {
							n, err := p.ReadBatch(ms)
							if errors.Is(err, os.ErrDeadlineExceeded) {
								continue
							}
							if err != nil {
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
							p.SetReadDeadline(time.Time{})
							return
						default:
						}
						p.SetReadDeadline(time.Now().Add(time.Duration(i%5-1) * time.Millisecond))
						g := at.group(4, i%10)
						if err := errors.Join(p.JoinSource(g, at.sources[0]), p.Leave(g)); err != nil {
							t.Error(err)
						}
						time.Sleep(100 * time.Microsecond)
					}
				})
				for n := range each {
					for g := range groups {
						for s, from := range froms {
							for _, port := range []int{port, other} {
								mustSend(t, from, at.group(3, g), port, fmt.Sprint(n))
								if joined(g, s) {
									exact.sent(from, at.group(3, g), port, n)
								}
							}
						}
					}
					exact.wait(t)
				}
				close(stop)
				beside.Wait()
				p.Close()
				wg.Wait()
				exact.check(t)
				if st := p.Stats(); st.Received != uint64(exact.total) || st.Dropped != 0 {
					t.Errorf("%+v, want %d received", st, exact.total)
				}
			})
		}
	}
}
