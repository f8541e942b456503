package main

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"example.com/mcast"
	"example.com/mcast/examples/internal/incoming"
	"example.com/mcast/examples/internal/looptest"
	"example.com/mcast/internal/amtrelay"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func mustReadBatch(t *testing.T, r receiver, want string) {
	t.Helper()
	ms := messages(datagram)
	n, err := r.ReadBatch(ms)
	if err != nil || n != 1 || string(ms[0].Buf[:ms[0].N]) != want {
		t.Fatalf("%d datagrams, the first one %q, %v; want %q", n, ms[0].Buf[:ms[0].N], err, want)
	}
}

// A channel through a tunnel alone, for a viewer.
func TestTunnel(t *testing.T) {
	r := looptest.NewRelay(t, amtrelay.Config{})
	relay := newRelay(options{amt: r.Addr.String(), channels: 1, linger: time.Hour, given: []entry{{ch: channelOf(t, "10.1.0.2@232.1.1.1:5000")}}}, playlist{}, quiet)
	defer relay.close()
	c, _, err := relay.watch(relay.all()[0].entry)
	if err != nil {
		t.Fatal(err)
	}
	r.Wait("232.1.1.1")
	r.Send("10.1.0.2", "232.1.1.1", 5001, []byte("to another port"))
	r.Send("10.1.0.2", "232.1.1.1", 5000, []byte("hello"))
	eventually(t, "a datagram", func() bool { return c.snapshot().totals.datagrams == 1 })
	s := c.snapshot()
	if state, why := stateOf(c, s, s.totals.last); state != "live" || why != "" || s.totals.bytes != 5 || s.totals.filtered != 1 || s.status.membership.Group.Interface != "amt" || s.status.stats.ReadBuffer == 0 {
		t.Errorf("%s %s: %+v", state, why, s)
	}
	relay.close()
	r.Wait()
	if s := c.snapshot(); s.totals.datagrams != 1 {
		t.Errorf("%+v", s)
	}
}

// A relay that takes nobody is what is wrong with the channel.
func TestNoTunnel(t *testing.T) {
	r := looptest.NewRelay(t, amtrelay.Config{Limit: true})
	relay := newRelay(options{amt: r.Addr.String(), channels: 1, linger: time.Hour, given: []entry{{ch: channelOf(t, "239.1.1.1:5000")}}}, playlist{}, quiet)
	defer relay.close()
	c, _, err := relay.watch(relay.all()[0].entry)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a reason", func() bool {
		state, why := stateOf(c, c.snapshot(), time.Now())
		return state == "pending" && strings.Contains(why, "takes no new gateways")
	})
}

// The network is silent at first, and then not.
func TestFallback(t *testing.T) {
	r := looptest.NewRelay(t, amtrelay.Config{})
	ch := channelOf(t, "239.1.1.1:5000")
	n := &network{joined: make(map[mcast.Channel]*fake)}
	native, _ := n.open(ch, func(mcast.Event) {}, nil)
	f := newFallback(native, r.Addr.String(), 1, ch, func(mcast.Event) {}, quiet)
	r.Wait("239.1.1.1")
	r.Send("10.1.0.2", "239.1.1.1", 5000, []byte("tunnel"))
	mustReadBatch(t, f, "tunnel")
	if ms := f.Memberships(); len(ms) != 1 || ms[0].Group.Interface != "amt" {
		t.Errorf("%v", ms)
	}
	from := n.fake(t, "239.1.1.1:5000")
	from.in <- []byte("native")
	mustReadBatch(t, f, "native")
	r.Wait()
	if ms := f.Memberships(); len(ms) != 1 || ms[0].Group.Interface != "eth0" {
		t.Errorf("%v", ms)
	}
	from.in <- []byte("native again")
	mustReadBatch(t, f, "native again")
	for g, s := range f.GroupStats() {
		if g != ch.Group || s.Received != 3 || s.Bytes != 24 || s.Last.IsZero() {
			t.Errorf("%v %+v", g, s)
		}
	}
	if s := f.Stats(); s.ReadBuffer != 4096 || s.Dropped != 3 {
		t.Errorf("%+v", s)
	}
	want := errors.New("an error of the socket")
	from.err <- want
	if _, err := f.ReadBatch(messages(datagram)); !errors.Is(err, want) {
		t.Error(err)
	}
	f.Close()
	if _, err := f.ReadBatch(messages(datagram)); !errors.Is(err, net.ErrClosed) || !from.closed() {
		t.Error(err)
	}
}

// No relay is asked while the network brings something.
func TestNetworkFirst(t *testing.T) {
	r := looptest.NewRelay(t, amtrelay.Config{})
	ch := channelOf(t, "239.1.1.1:5000")
	n := &network{joined: make(map[mcast.Channel]*fake)}
	native, _ := n.open(ch, func(mcast.Event) {}, nil)
	f := newFallback(native, r.Addr.String(), time.Hour, ch, func(e mcast.Event) { t.Error(e) }, quiet)
	n.fake(t, "239.1.1.1:5000").in <- []byte("native")
	mustReadBatch(t, f, "native")
	f.Close()
	if c := r.Counts(); c != (amtrelay.Counts{}) {
		t.Errorf("%+v", c)
	}
}

// The network is silent again: the channel comes through the tunnel once more,
// and what is wrong with that is told while it is needed.
func TestSilentAgain(t *testing.T) {
	t.Parallel()
	r := looptest.NewRelay(t, amtrelay.Config{})
	for _, s := range []string{"239.1.1.1:5000", "10.1.0.2@232.1.1.1:5000"} {
		ch := channelOf(t, s)
		group := ch.Group.Addr.String()
		n := &network{joined: make(map[mcast.Channel]*fake)}
		native, _ := n.open(ch, func(mcast.Event) {}, nil)
		events := make(chan mcast.EventKind, 100)
		f := newFallback(native, r.Addr.String(), time.Hour, ch, func(e mcast.Event) { events <- e.Kind }, quiet)
		silent := func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.network.Missing() {
				t.Fatal("it is missing already")
			}
			f.network = incoming.NewNative(time.Hour, time.Now().Add(-time.Hour))
		}
		wantEvent := func(what string, want mcast.EventKind) {
			t.Helper()
			select {
			case k := <-events:
				if k != want {
					t.Errorf("%s: event %v, want %v", what, k, want)
				}
			case <-time.After(looptest.Patience):
				t.Fatalf("%s: no event", what)
			}
		}
		from := n.fake(t, s)
		for i := range 2 {
			silent()
			r.Wait(group)
			wantEvent("the tunnel is up", mcast.EventRestored)
			r.Send("10.1.0.2", group, 5000, []byte("tunnel"))
			mustReadBatch(t, f, "tunnel")
			if i == 1 {
				f.tell(errors.New("a fault"))
				wantEvent("something is wrong", mcast.EventFailed)
			}
			from.in <- []byte("native")
			mustReadBatch(t, f, "native")
			if i == 1 {
				wantEvent("the network brings it", mcast.EventRestored)
			}
			f.tell(errors.New("a fault"))
			r.Wait()
		}
		if s := f.Stats(); s.Received != 2 {
			t.Errorf("%+v", s)
		}
		f.Close()
		select {
		case k := <-events:
			t.Errorf("event %v", k)
		default:
		}
	}
}

// The network brings the channel while the relay is dialled: it is not joined in
// the tunnel, until it is missing again.
func TestBackWhileDialling(t *testing.T) {
	r := looptest.NewRelay(t, amtrelay.Config{})
	f := newFallback(nil, r.Addr.String(), time.Hour, channelOf(t, "239.1.1.1:5000"), func(e mcast.Event) {}, quiet)
	defer f.Close()
	g, err := f.dial()
	if err != nil {
		t.Fatal(err)
	}
	if ms := g.Memberships(); len(ms) != 0 {
		t.Errorf("%v", ms)
	}
	f.fall(time.Now().Add(time.Hour))
	r.Wait("239.1.1.1")
}

// Of the tunnel nothing is taken from the first datagram of the network on, even
// if it came before, nor while the network has time to bring one; what is too
// long is cut.
func TestTake(t *testing.T) {
	f := newFallback(nil, "", time.Hour, channelOf(t, "239.1.1.1:5000"), func(e mcast.Event) { t.Error(e) }, quiet)
	defer f.Close()
	of := func(tunnelled bool, text string) arrival {
		return arrival{tunnelled: tunnelled, ms: []mcast.Message{{Buf: []byte(text), N: len(text), Port: 5000, Source: netip.AddrPortFrom(looptest.Source, 1)}}}
	}
	ms := messages(4)
	f.fall(time.Now())
	if n := f.take(ms, of(true, "0")); n != 0 {
		t.Errorf("%d, %+v", n, ms[0])
	}
	f.fall(time.Now().Add(time.Hour))
	if n := f.take(ms, of(true, "12345")); n != 1 || string(ms[0].Buf[:ms[0].N]) != "1234" || !ms[0].Truncated || ms[0].Port != 5000 || f.Stats().Truncated != 1 {
		t.Errorf("%d, %+v", n, ms[0])
	}
	if n := f.take(ms, of(false, "6")); n != 1 || string(ms[0].Buf[:ms[0].N]) != "6" || ms[0].Truncated {
		t.Errorf("%d, %+v", n, ms[0])
	}
	if n := f.take(ms, of(true, "7")); n != 0 {
		t.Errorf("%d, %+v", n, ms[0])
	}
}
