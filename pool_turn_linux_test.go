package mcast

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A turnTest is a Pool whose groups have a socket each, and what has each of them
// its turn.
type turnTest struct {
	*Pool
	t     *testing.T
	at    site
	own   *epollSockets
	port  int
	from  *Conn
	shard []*shard // by number of the group
}

func newTurnTest(t *testing.T, groups int, cfg *Config) *turnTest {
	at := testSite(t)
	p, port := at.pool(t, cfg)
	w := &turnTest{Pool: p, t: t, at: at, own: p.sockets.(*epollSockets), port: port, from: at.sender(t, at.sources[0])}
	for i := range groups {
		if err := p.JoinSource(w.group(i), at.sources[0]); err != nil {
			t.Fatal(err)
		}
		w.shard = append(w.shard, p.Members.on[w.group(i).Addr]...)
	}
	if len(w.shard) != groups || p.Sockets() != groups {
		t.Fatalf("%d sockets for %d groups", p.Sockets(), groups)
	}
	p.SetReadDeadline(inTime())
	return w
}

func (w *turnTest) group(i int) Group { return w.at.group(5, i) }

func (w *turnTest) send(i int, payload string) {
	w.t.Helper()
	mustSend(w.t, w.from, w.group(i), w.port, payload)
}

// numbers tells which groups shards are of.
func (w *turnTest) numbers(shards []*shard) (is []int) {
	for _, s := range shards {
		is = append(is, slices.Index(w.shard, s))
	}
	return is
}

func (w *turnTest) want(what string, shards []*shard, want ...int) {
	w.t.Helper()
	if got := w.numbers(shards); !slices.Equal(got, want) {
		w.t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// queue is what waits for a reader.
func (w *turnTest) queue() []*shard { return w.own.queue[w.own.head:] }

func (w *turnTest) states(state shardState, is ...int) {
	w.t.Helper()
	for _, i := range is {
		if s := w.shard[i]; s.state != state {
			w.t.Errorf("group %d is in state %d, want %d", i, s.state, state)
		}
	}
}

// next gives a reader up to 16 shards, and has it read them.
func (w *turnTest) next(r *epollReader, ms []Message) []take {
	w.t.Helper()
	r.most = len(r.taken)
	takes, _, err := r.next(ms, true, false)
	if err != nil {
		w.t.Fatal(err)
	}
	r.read(takes, ms)
	return takes
}

func (w *turnTest) borrow() *epollReader {
	r := w.own.borrow().(*epollReader)
	w.t.Cleanup(func() { w.own.giveBack(r) })
	return r
}

func shardsOf(takes []take) (shards []*shard) {
	for i := range takes {
		shards = append(shards, takes[i].shard)
	}
	return shards
}

func between(from, to int) (is []int) {
	for i := from; i < to; i++ {
		is = append(is, i)
	}
	return is
}

// TestPoolTurn: those that find no room stay first, in their order; those that have
// more to read are last.
func TestPoolTurn(t *testing.T) {
	for _, groups := range []int{10, 20} { // fewer and more than a reader takes
		w := newTurnTest(t, groups, nil)
		for i := range groups {
			w.send(i, "first")
			w.send(i, "second")
		}
		r := w.borrow()
		takes := w.next(r, makeMessages(3, 10))
		taken := min(groups, 16)
		w.want("taken", shardsOf(takes), between(0, taken)...)
		if takes[0].n != 2 || takes[0].more || takes[1].n != 1 || !takes[1].more || takes[2].n != 0 || !takes[2].unread {
			t.Errorf("read %+v", takes[:3])
		}
		w.states(owned, between(0, taken)...)
		r.release(takes)
		w.want("queue", w.queue(), append(between(2, groups), 1)...)
		w.states(idle, 0)
		w.states(queued, between(1, groups)...)
		if r.most != 1 {
			t.Errorf("the next turn takes %d", r.most)
		}
		// As many as there is room for, one after the other.
		var order []*shard
		for len(w.queue()) > 0 {
			takes, _, err := r.next(makeMessages(1, 10), true, false)
			if err != nil {
				t.Fatal(err)
			}
			r.read(takes, makeMessages(1, 10))
			order = append(order, takes[0].shard)
			r.release(takes)
		}
		// Each is found to be empty only when it is read once more.
		w.want("order", order[:groups-1], append(between(2, groups), 1)...)
		w.states(idle, between(0, groups)...)
	}
}

// TestPoolTurnGrows: a reader that has room takes twice as many each time.
func TestPoolTurnGrows(t *testing.T) {
	w := newTurnTest(t, 40, nil)
	r := w.borrow()
	var sizes []int
	for i := range 40 {
		w.send(i, "x")
	}
	w.own.mu.Lock()
	w.own.look(r)
	w.own.mu.Unlock()
	for len(w.queue()) > 0 {
		ms := makeMessages(50, 10)
		takes, _, err := r.next(ms, true, false)
		if err != nil {
			t.Fatal(err)
		}
		r.read(takes, ms)
		sizes = append(sizes, len(takes))
		r.release(takes)
	}
	if want := []int{1, 2, 4, 8, 16, 9}; !slices.Equal(sizes, want) {
		t.Errorf("took %v, want %v", sizes, want)
	}
}

// TestPoolTurnNews: what comes in while a reader has a socket is not forgotten.
func TestPoolTurnNews(t *testing.T) {
	w := newTurnTest(t, 3, nil)
	for i := range 3 {
		w.send(i, "x")
	}
	r, other := w.borrow(), w.borrow()
	takes := w.next(r, makeMessages(5, 10))
	if r.fresh != 2 {
		t.Errorf("%d headers are as they were, want 2 of 5", r.fresh)
	}
	w.send(1, "new")
	if takes, _, err := other.next(makeMessages(5, 10), false, true); len(takes) > 0 || err != nil {
		t.Fatalf("%d shards for another reader, %v", len(takes), err)
	}
	w.states(again, 1)
	r.release(takes)
	w.want("queue", w.queue(), 1)
	w.states(idle, 0, 2)
	ms := makeMessages(5, 10)
	if n, err := w.ReadBatch(ms); n != 1 || err != nil || string(ms[0].Buf[:ms[0].N]) != "new" {
		t.Errorf("%d, %v, %q", n, err, ms[0].Buf[:ms[0].N])
	}
}

// TestPoolTurnRings: a reader that waits is woken for what another one leaves, and
// only then.
func TestPoolTurnRings(t *testing.T) {
	w := newTurnTest(t, 3, nil)
	w.own.waiting.Add(1)
	defer w.own.waiting.Add(-1)
	rung := func() bool {
		var b [8]byte
		_, err := unix.Read(w.own.bell, b[:])
		return err == nil
	}
	for _, test := range []struct {
		what string
		room int
		want bool
	}{
		{"all is read", 10, false},
		{"one has more", 2, true},
		{"one had no turn", 1, true},
	} {
		w.send(0, "x")
		if test.room > 1 {
			w.send(0, "y")
		} else {
			w.send(1, "x")
		}
		r := w.borrow()
		takes := w.next(r, makeMessages(test.room, 10))
		if test.room == 1 {
			takes[0].more = false // it is about the other one
		}
		r.release(takes)
		if got := rung(); got != test.want {
			t.Errorf("%s: rung: %v, want %v", test.what, got, test.want)
		}
		for len(w.queue()) > 0 {
			r.release(w.next(r, makeMessages(10, 10)))
		}
		rung()
	}
}

// TestPoolTurnRemoved: a socket that is closed while a reader has it is closed by
// the reader, whether it has had its turn or not, once.
func TestPoolTurnRemoved(t *testing.T) {
	w := newTurnTest(t, 6, nil)
	for i := range 6 {
		w.send(i, "x")
	}
	r := w.borrow()
	takes := w.next(r, makeMessages(2, 10))
	for _, i := range []int{0, 3, 5} {
		if err := w.Leave(w.group(i)); err != nil {
			t.Fatal(err)
		}
	}
	w.states(removed, 0, 3, 5)
	for _, i := range []int{0, 3, 5} {
		if w.own.byID[w.shard[i].id] != w.shard[i] {
			t.Errorf("the socket of group %d is forgotten while it is in use", i)
		}
	}
	if n := len(w.own.free); n != 0 {
		t.Errorf("%d numbers are free", n)
	}
	r.release(takes)
	w.want("queue", w.queue(), 2, 4, 1)
	for _, i := range []int{0, 3, 5} {
		s := w.shard[i]
		if w.own.byID[s.id] != nil || !slices.Contains(w.own.free, s.id) {
			t.Errorf("the socket of group %d is not forgotten", i)
		}
		if _, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_TYPE); err == nil {
			t.Errorf("the socket of group %d is open", i)
		}
	}
	if n := len(w.own.free); n != 3 {
		t.Errorf("%d numbers are free, want 3", n)
	}
}

// TestPoolTurnRests: after a rest what has come meanwhile has its turn.
func TestPoolTurnRests(t *testing.T) {
	w := newTurnTest(t, 2, nil)
	w.send(0, "x")
	r := w.borrow()
	ms := makeMessages(5, 10)
	takes := w.next(r, ms)
	r.release(takes)
	w.send(1, "x")
	if takes, _, err := r.next(ms[1:], false, false); len(takes) != 0 || err != nil {
		t.Errorf("%d shards without a rest, %v", len(takes), err)
	}
	takes, _, err := r.next(ms[1:], false, true)
	if err != nil {
		t.Fatal(err)
	}
	w.want("after a rest", shardsOf(takes), 1)
	r.release(takes)
}

// TestPoolErrorOfOne: what is wrong with a socket loses nothing that was read from
// others, and comes next, for as long as it lasts.
func TestPoolErrorOfOne(t *testing.T) {
	for broken := range 3 {
		w := newTurnTest(t, 3, nil)
		for i := range 3 {
			w.send(i, fmt.Sprint(i))
		}
		s := w.shard[broken]
		fd := s.fd
		s.fd = -1
		w.own.readers = append(w.own.readers, w.own.borrow().(*epollReader))
		w.own.readers[0].most = 16
		ms := makeMessages(10, 10)
		n, err := w.ReadBatch(ms)
		if n != 2 || err != nil || ms[0].Group != w.group((broken+1)%3) && ms[0].Group != w.group((broken+2)%3) {
			t.Errorf("%d is broken: %d, %v", broken, n, err)
		}
		for range 2 {
			n, err := w.ReadBatch(ms)
			if e := (*net.OpError)(nil); n != 0 || !errors.Is(err, unix.EBADF) || !errors.As(err, &e) {
				t.Errorf("%d is broken: %d, %v", broken, n, err)
			}
		}
		s.fd = fd
		if n, err := w.ReadBatch(ms); n != 1 || err != nil || ms[0].Group != w.group(broken) {
			t.Errorf("%d was broken: %d, %v", broken, n, err)
		}
	}
}

// TestPoolSifts: between datagrams that the filter keeps out, each that it lets
// through comes once, whole and in order, into a Buf of its own, however many
// messages there are to read into.
func TestPoolSifts(t *testing.T) {
	for _, cfg := range []Config{{}, {BusyPoll: -1}, {Timestamps: true, HopLimit: true}} {
		w := newTurnTest(t, 12, &cfg)
		if len(w.at.sources) < 2 {
			t.Skip("this needs two addresses to send from")
		}
		stranger := w.at.sender(t, w.at.sources[1])
		for i, s := range w.shard {
			behind(t, &s.kernel, change{op: OpJoinSource, addr: w.group(i).Addr, source: w.at.sources[1], index: w.at.ifi.Index})
		}
		for _, size := range []int{1, 2, 3, 5, 4, 33, 32, 7, 1100, 2000, 6} {
			want := map[Group][]string{}
			received, strange := 0, 0
			for n := range 6 {
				for i := range w.shard {
					if (i+n)%3 == 0 {
						mustSend(t, stranger, w.group(i), w.port, "strange")
						strange++
					}
					if (i*n)%4 == 1 {
						continue
					}
					payload := fmt.Sprintf("%d of %d", n, i)
					w.send(i, payload)
					want[w.group(i)] = append(want[w.group(i)], payload)
					received++
				}
			}
			before := w.Stats()
			got := map[Group][]string{}
			ms := makeMessages(size, 20)
			for _, r := range w.own.readers {
				r.most = 1 // so that there are several turns
			}
			for left := received; left > 0; {
				n, err := w.ReadBatch(ms)
				if err != nil {
					t.Fatal(err)
				}
				for i := range ms[:n] {
					m := &ms[i]
					got[m.Group] = append(got[m.Group], string(m.Buf[:m.N]))
					if m.Source.Addr() != w.at.sources[0] || m.Port != w.port || m.Index != w.at.ifi.Index || m.Time.IsZero() == cfg.Timestamps {
						t.Errorf("%+v", m)
					}
					m.N, m.Group, m.Source = 0, Group{}, netip.AddrPort{}
				}
				for i := range ms {
					ms[i].Buf[0] = byte(i)
				}
				for i := range ms {
					if ms[i].Buf[0] != byte(i) {
						t.Fatalf("%d of %d: message %d has the Buf of another", n, size, i)
					}
				}
				left -= n
			}
			if !maps.EqualFunc(got, want, slices.Equal) {
				t.Errorf("%+v, %d messages: got\n %v, want\n %v", cfg, size, got, want)
			}
			// What is left may be strange alone.
			w.send(0, "end")
			if n, err := w.ReadBatch(ms); n != 1 || err != nil || !bytes.HasPrefix(ms[0].Buf, []byte("end")) {
				t.Errorf("%d, %v, %q", n, err, ms[0].Buf[:ms[0].N])
			}
			after := w.Stats()
			if in, out := after.Received-before.Received, after.Filtered-before.Filtered; in != uint64(received+1) || out > uint64(strange) {
				t.Errorf("%d messages: %d received, %d filtered, want %d and up to %d", size, in, out, received+1, strange)
			}
		}
		if st := w.Stats(); st.Filtered == 0 || st.Dropped != 0 {
			t.Errorf("%+v", st)
		}
	}
}

// TestPoolTurnClose: sockets that are removed, and a Pool that is closed, while
// readers have several at a time, are closed all the same, once.
func TestPoolTurnClose(t *testing.T) {
	for round := range 10 {
		w := newTurnTest(t, 20, &Config{BusyPoll: time.Duration(-(round & 1))})
		var readers sync.WaitGroup
		for r := range 3 {
			readers.Go(func() {
				ms := makeMessages(1+2*r, 10)
				for {
					if _, err := w.ReadBatch(ms); err != nil {
						if !errors.Is(err, net.ErrClosed) {
							t.Error(err)
						}
						return
					}
				}
			})
		}
		for n := range 10 {
			for i := range 20 {
				w.send(i, "x")
			}
			if err := w.Leave(w.group(n)); err != nil {
				t.Fatal(err)
			}
		}
		w.Close()
		readers.Wait()
		for i, s := range w.own.byID {
			if s != nil {
				t.Errorf("the socket of group %d is not forgotten", w.numbers([]*shard{s})[0])
			}
			if !slices.Contains(w.own.free, i) {
				t.Errorf("number %d is not free", i)
			}
		}
		if len(w.own.free) != len(w.own.byID) {
			t.Errorf("%d numbers of %d are free", len(w.own.free), len(w.own.byID))
		}
	}
}

// TestPoolSpinEnds: a reader that looks again for ever heeds a deadline, and a wake,
// that come meanwhile.
func TestPoolSpinEnds(t *testing.T) {
	w := newTurnTest(t, 1, &Config{BusyPoll: -1})
	for _, at := range []func() time.Time{
		func() time.Time { return time.Now().Add(20 * time.Millisecond) },
		func() time.Time { return time.Now().Add(-time.Second) },
	} {
		w.SetReadDeadline(time.Time{})
		ended := make(chan error)
		go func() {
			_, err := w.ReadBatch(makeMessages(1, 10))
			ended <- err
		}()
		for !w.own.spinning.Load() {
			time.Sleep(time.Millisecond)
		}
		w.SetReadDeadline(at())
		if err := soon(t, "the end of a read", ended); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v, want the deadline", err)
		}
	}
	w.SetReadDeadline(time.Time{})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() {
		for _, err := range w.Messages(ctx, 10) {
			ended <- err
		}
		ended <- nil
	}()
	for !w.own.spinning.Load() {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := soon(t, "the end of Messages", ended); err != nil {
		t.Error(err)
	}
}
