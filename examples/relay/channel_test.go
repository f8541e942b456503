package main

import (
	"errors"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"example.com/mcast"
	"example.com/mcast/examples/internal/looptest"
)

// A fake is a receiver whose datagrams the test makes.
type fake struct {
	ch    mcast.Channel
	event func(mcast.Event)
	in    chan []byte
	err   chan error
	end   chan struct{}

	mu      sync.Mutex
	pending bool
	stats   mcast.GroupStats
}

func (f *fake) ReadBatch(ms []mcast.Message) (int, error) {
	select {
	case b := <-f.in:
		m := &ms[0]
		m.N = copy(m.Buf, b)
		m.Truncated = m.N < len(b)
		m.Source = alice
		f.mu.Lock()
		defer f.mu.Unlock()
		f.stats.Received++
		f.stats.Bytes += uint64(m.N)
		f.stats.Last = time.Now()
		return 1, nil
	case err := <-f.err:
		return 0, err
	case <-f.end:
		return 0, net.ErrClosed
	}
}

func (f *fake) Memberships() []mcast.Membership {
	f.mu.Lock()
	defer f.mu.Unlock()
	g := f.ch.Group
	if g.Interface == "" {
		g.Interface = "eth0"
	}
	return []mcast.Membership{{Group: g, Pending: f.pending}}
}

func (f *fake) GroupStats() iter.Seq2[mcast.Group, mcast.GroupStats] {
	return func(yield func(mcast.Group, mcast.GroupStats) bool) {
		f.mu.Lock()
		s := f.stats
		f.mu.Unlock()
		yield(f.ch.Group, s)
	}
}

func (f *fake) Stats() mcast.Stats { return mcast.Stats{ReadBuffer: 4096, Dropped: 3} }
func (f *fake) Close() error       { close(f.end); return nil }

func (f *fake) happen(pending bool, e mcast.Event) {
	f.mu.Lock()
	f.pending = pending
	f.mu.Unlock()
	f.event(e)
}

// A network is where the channels of a relay come from, in a test.
type network struct {
	mu     sync.Mutex
	joined map[mcast.Channel]*fake
	joins  int
	err    error
}

func (n *network) open(ch mcast.Channel, event func(mcast.Event), _ *slog.Logger) (receiver, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.joins++
	if n.err != nil {
		return nil, n.err
	}
	f := &fake{ch: ch, event: event, in: make(chan []byte), err: make(chan error), end: make(chan struct{})}
	n.joined[ch] = f
	return f, nil
}

func (n *network) fake(t testing.TB, s string) *fake {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	f := n.joined[channelOf(t, s)]
	if f == nil {
		t.Fatalf("%s was never joined", s)
	}
	return f
}

func (n *network) fail(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.err = err
}

func (f *fake) closed() bool {
	select {
	case <-f.end:
		return true
	default:
		return false
	}
}

// newTestRelay makes a relay on a network of the test's own, with these
// channels.
func newTestRelay(t testing.TB, o options, channels ...string) (*relay, *network) {
	t.Helper()
	for _, s := range channels {
		o.given = append(o.given, entry{ch: channelOf(t, s), scheme: scheme(s)})
	}
	if o.viewers == 0 {
		o.viewers = 100
	}
	if o.channels == 0 {
		o.channels = 100
	}
	if o.patience == 0 {
		o.patience = looptest.Patience
	}
	if o.linger == 0 {
		o.linger = time.Hour
	}
	n := &network{joined: make(map[mcast.Channel]*fake)}
	r := newRelay(o, playlist{}, slog.New(slog.NewTextHandler(io.Discard, nil)))
	r.open = n.open
	t.Cleanup(r.close)
	return r, n
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(looptest.Patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func (r *relay) mustWatch(t testing.TB, s string) (*channel, *reception) {
	t.Helper()
	c, rx, err := r.watch(entry{ch: channelOf(t, s), scheme: "udp"})
	if err != nil {
		t.Fatal(err)
	}
	return c, rx
}

// One reception for all viewers, from the first until some time after the last.
func TestJoinLeave(t *testing.T) {
	r, n := newTestRelay(t, options{linger: 30 * time.Millisecond}, "239.1.1.1:5000")
	c, rx := r.mustWatch(t, "239.1.1.1:5000")
	for range 10 {
		again, same := r.mustWatch(t, "239.1.1.1:5000")
		if again != c || same != rx {
			t.Fatal("a second reception")
		}
		again.release()
	}
	f := n.fake(t, "239.1.1.1:5000")
	time.Sleep(3 * r.options.linger)
	if f.closed() {
		t.Fatal("left in spite of a viewer")
	}
	c.release()
	eventually(t, "left", f.closed)
	eventually(t, "not joined", func() bool { return !c.snapshot().joined })
	if n.joins != 1 {
		t.Errorf("%d joins", n.joins)
	}
	c, _ = r.mustWatch(t, "239.1.1.1:5000")
	defer c.release()
	if n.joins != 2 || n.fake(t, "239.1.1.1:5000").closed() {
		t.Errorf("%d joins", n.joins)
	}
}

// Who comes back in time finds the channel joined.
func TestLinger(t *testing.T) {
	r, n := newTestRelay(t, options{}, "239.1.1.1:5000")
	c, rx := r.mustWatch(t, "239.1.1.1:5000")
	c.release()
	c, same := r.mustWatch(t, "239.1.1.1:5000")
	if same != rx || n.joins != 1 {
		t.Error("joined again")
	}
	c.release()
	if s := c.snapshot(); !s.joined || s.viewers != 0 {
		t.Errorf("%+v", s)
	}
}

// A channel beyond the limit takes the place of one that nobody watches any
// more, or is refused.
func TestChannelLimit(t *testing.T) {
	r, n := newTestRelay(t, options{channels: 2}, "239.1.1.1:5000", "239.1.1.2:5000", "239.1.1.3:5000")
	r.mustWatch(t, "239.1.1.1:5000")
	c, _ := r.mustWatch(t, "239.1.1.2:5000")
	if _, _, err := r.watch(entry{ch: channelOf(t, "239.1.1.3:5000")}); !errors.Is(err, errBusy) {
		t.Fatal(err)
	}
	c.release()
	r.mustWatch(t, "239.1.1.3:5000")
	if !n.fake(t, "239.1.1.2:5000").closed() || n.fake(t, "239.1.1.1:5000").closed() {
		t.Error("the wrong one was left")
	}
	if _, _, err := r.watch(entry{ch: channelOf(t, "239.1.1.2:5000")}); !errors.Is(err, errBusy) {
		t.Error(err)
	}
}

// A join that fails leaves nothing behind, and the next viewer tries again.
func TestJoinFails(t *testing.T) {
	r, n := newTestRelay(t, options{channels: 1, rules: rules{prefixes: []netip.Prefix{netip.MustParsePrefix("239.9.0.0/16")}}}, "239.1.1.1:5000")
	n.fail(&mcast.OpError{Op: "Join", Err: mcast.ErrLimit})
	for _, s := range []string{"239.1.1.1:5000", "239.9.1.1:5000"} {
		if _, _, err := r.watch(entry{ch: channelOf(t, s)}); !errors.Is(err, mcast.ErrLimit) {
			t.Errorf("%s: %v", s, err)
		}
	}
	if cs := r.all(); len(cs) != 1 || cs[0].snapshot().failed != mcast.ErrLimit.Error() || r.joined != 0 {
		t.Errorf("%d channels, %d joined", len(cs), r.joined)
	}
	n.fail(nil)
	c, _ := r.mustWatch(t, "239.1.1.1:5000")
	if s := c.snapshot(); s.failed != "" || !s.joined {
		t.Errorf("%+v", s)
	}
}

// A channel that no list names is there while it is joined.
func TestUnlisted(t *testing.T) {
	r, _ := newTestRelay(t, options{linger: time.Nanosecond}, "239.1.1.1:5000")
	c, _ := r.mustWatch(t, "239.1.1.2:5000")
	if len(r.all()) != 2 {
		t.Errorf("%d channels", len(r.all()))
	}
	c.release()
	eventually(t, "removed", func() bool { return len(r.all()) == 1 })
	c, _ = r.mustWatch(t, "239.1.1.2:5000")
	if len(r.all()) != 2 || c.snapshot().viewers != 1 {
		t.Error("not there again")
	}
}

// Viewers that come and go at once, of more channels than there may be.
func TestRush(t *testing.T) {
	r, _ := newTestRelay(t, options{channels: 3, linger: time.Millisecond}, "239.1.1.1:5000")
	names := []string{"239.1.1.1:5000", "239.1.1.2:5000", "239.1.1.3:5000", "239.1.1.4:5000", "239.1.1.5:5000"}
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			for k := range 50 {
				ch, err := parseTarget(names[(i*7+k*3)%len(names)])
				if err != nil {
					t.Error(err)
				}
				c, rx, err := r.watch(entry{ch: ch})
				switch {
				case errors.Is(err, errBusy):
					continue
				case err != nil || rx == nil || c.ch != ch:
					t.Error(rx, err)
					return
				}
				r.mu.Lock()
				if r.joined > 3 || r.joined < 1 {
					t.Errorf("%d joined", r.joined)
				}
				r.mu.Unlock()
				c.snapshot()
				c.release()
			}
		})
	}
	all.Wait()
	eventually(t, "all left", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.joined == 0 && len(r.channels) == 1
	})
}

// What is wrong with a membership is remembered until it is mended.
func TestEvents(t *testing.T) {
	r, n := newTestRelay(t, options{}, "239.1.1.1%eth0:5000", "239.1.1.2:5000", "232.1.1.3:5000", "239.1.1.4:5000")
	c, rx := r.mustWatch(t, "239.1.1.1%eth0:5000")
	f := n.fake(t, "239.1.1.1%eth0:5000")
	now := time.Now()
	want := func(state, why string) {
		t.Helper()
		if s, w := stateOf(c, c.snapshot(), now); s != state || w != why {
			t.Errorf("%s: %s; want %s: %s", s, w, state, why)
		}
	}
	want("silent", "joined, and nothing comes")
	f.in <- []byte("x")
	eventually(t, "heard", func() bool { return c.snapshot().totals.datagrams == 1 })
	now = time.Now()
	want("live", "")
	g := c.ch.Group
	f.happen(false, mcast.Event{Kind: mcast.EventDown, Name: "eth0", Old: 5})
	want("down", "eth0 is down")
	f.happen(false, mcast.Event{Kind: mcast.EventUp, Name: "eth0", Old: 5})
	want("live", "")
	f.happen(true, mcast.Event{Kind: mcast.EventLost, Group: g, Name: "eth0", Old: 5})
	want("pending", "lost, and about to be made anew")
	f.happen(true, mcast.Event{Kind: mcast.EventPending, Group: g, Name: "eth0", Old: 5})
	want("pending", "there is no usable interface eth0")
	f.happen(true, mcast.Event{Kind: mcast.EventFailed, Group: g, Name: "eth0", Err: &mcast.OpError{Op: "Repair", Err: errors.New("no room")}})
	want("pending", "no room")
	f.happen(false, mcast.Event{Kind: mcast.EventRestored, Group: g, Name: "eth0", New: 6})
	want("live", "")
	now = now.Add(time.Minute)
	want("silent", "joined, and nothing comes")
	c, _ = r.mustWatch(t, "239.1.1.2:5000")
	n.fake(t, "239.1.1.2:5000").happen(true, mcast.Event{Kind: mcast.EventPending, Group: c.ch.Group})
	want("pending", "there is no interface for it")
	c, _ = r.mustWatch(t, "232.1.1.3:5000")
	want("silent", "routers want the source of such a group: SOURCE@GROUP")
	c = r.find[channelOf(t, "239.1.1.4:5000")]
	want("idle", "")
	_ = rx
}

// A reader survives errors that are not the end, and datagrams longer than it
// expected.
func TestReadErrors(t *testing.T) {
	r, n := newTestRelay(t, options{}, "239.1.1.1:5000")
	_, rx := r.mustWatch(t, "239.1.1.1:5000")
	f := n.fake(t, "239.1.1.1:5000")
	f.err <- errors.New("network is down")
	long := make([]byte, datagram+1)
	f.in <- long
	f.in <- long
	eventually(t, "published", func() bool { return rx.hub.live() == datagram+datagram+1 })
}

// What waits for a packet that is missing comes out without news.
func TestPublishExpires(t *testing.T) {
	r, n := newTestRelay(t, options{}, "239.1.1.1:5000")
	_, rx := r.mustWatch(t, "239.1.1.1:5000")
	f := n.fake(t, "239.1.1.1:5000")
	f.in <- rtpPacket(7, 1, []byte("one"))
	f.in <- rtpPacket(7, 3, []byte("three"))
	eventually(t, "published", func() bool { return rx.hub.live() == uint64(len("onethree")) })
	if s := rx.status().stream; s.lost != 1 {
		t.Errorf("%d lost", s.lost)
	}
}
