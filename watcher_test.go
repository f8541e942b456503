//go:build !plan9

package mcast

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.com/mcast/internal/netif"
)

// When the watcher runs, how often it mends, what it does when it cannot.

// A hundred changes a second become a few mendings.
func TestWatcherStorm(t *testing.T) {
	for _, gone := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c, h, _ := newModelConn(t, onLinux, false, nil)
			c.must(c.set(c.exclude("eth0")))
			for range 150 {
				if gone {
					h.remove(2)
				} else {
					h.setCarrier(2, false)
				}
				pause(10 * time.Millisecond)
				if gone {
					h.add(2, "eth0")
				} else {
					h.setCarrier(2, true)
				}
				pause(10 * time.Millisecond)
			}
			pause(time.Second)
			joins := 0
			for _, s := range c.told.take() {
				if strings.HasPrefix(s, "restored") {
					joins++
				}
			}
			if joins < 2 || joins > 32 {
				t.Errorf("gone: %v: %d joins in 3 s", gone, joins)
			}
			c.check(c.exclude("eth0"))
		})
	}
}

// What fails is tried again, but not often, and at once when there is news.
func TestWatcherRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h, _ := newModelConn(t, onLinux, false, nil)
		c.must(c.set(c.include("eth0", 1)))
		h.remove(2)
		pause(time.Second)
		var tries []time.Time
		end := c.failCalls(syscall.ENOMEM, func(int, int, int) bool {
			tries = append(tries, time.Now())
			return true
		})
		start := time.Now()
		h.add(7, "eth0")
		pause(time.Hour)
		if len(tries) < 100 {
			t.Fatalf("%d tries in an hour", len(tries))
		}
		// Some calls belong to one try.
		var rests []time.Duration
		last := start
		for _, at := range tries {
			if rest := at.Sub(last); rest > 0 {
				rests = append(rests, rest)
			}
			last = at
		}
		if n := len(rests); n < 110 || n > 140 || rests[0] > patience || rests[1] > time.Second || rests[n-1] > lastRetry || !slices.IsSorted(rests) {
			t.Errorf("%d tries in an hour, after %v …", n, rests[:min(n, 12)])
		}
		end()
		before := c.told.take()
		h.setCarrier(3, false) // any news
		pause(patience)
		c.check(c.include("eth0", 1))
		c.wantEvents(fmt.Sprint("after ", before), fmt.Sprintf("restored %v on eth0 (7, was 2)", c.group("eth0")))
	})
}

// A program that takes its time over events stops neither the mending of others nor
// its own requests, and may make any request but Close, which waits for it.
func TestWatcherSlowEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newModelHost(t, onLinux)
		block := make(chan struct{})
		var mu sync.Mutex
		var events []string
		var slow *modelConn
		slow = h.open(endpoint{}, &Config{OnEvent: func(e Event) {
			<-block
			mu.Lock()
			defer mu.Unlock()
			events = append(events, e.Kind.String())
			slow.Memberships()
			if err := slow.JoinSource(slow.group("eth0"), slow.source(2)); err != nil && !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
			if err := slow.Repair(); err != nil && !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		}})
		other := h.open(endpoint{}, nil)
		for _, c := range []*modelConn{slow, other} {
			c.must(c.set(c.include("eth0", 1)))
		}
		h.remove(2)
		pause(time.Second)
		for _, c := range []*modelConn{slow, other} {
			c.check(pending(c.include("eth0", 1)))
			c.must(c.JoinSource(c.group("eth0"), c.source(3)))
			c.check(pending(c.include("eth0", 1, 3)))
		}
		closed := false
		go func() {
			slow.Close()
			closed = true
		}()
		pause(2 * time.Second)
		if closed {
			t.Error("Close did not wait for an event")
		}
		close(block)
		synctest.Wait()
		if !closed {
			t.Error("Close still waits")
		}
		if fmt.Sprint(events) != "[down]" {
			t.Errorf("events %v: Close came after the first", events)
		}
		other.check(pending(other.include("eth0", 1, 3)))
	})
}

// Events come one after the other and in order, and end with Close.
func TestEventsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []int
		busy := false
		q := &events{cfg: (&Config{OnEvent: func(e Event) {
			if busy {
				t.Error("two at a time")
			}
			busy = true
			time.Sleep(time.Millisecond)
			busy = false
			got = append(got, e.Old)
		}}).withDefaults()}
		for i := range 100 {
			q.event(Event{Kind: EventLost, Old: i})
			time.Sleep(time.Duration(i%3) * 700 * time.Microsecond)
		}
		q.end()
		n := len(got)
		if n < 50 || !slices.IsSorted(got) {
			t.Errorf("%v", got)
		}
		q.event(Event{Kind: EventLost, Old: 100})
		q.warn("late")
		pause(time.Second)
		if len(got) != n {
			t.Error("an event after Close")
		}
		q.end()
	})
}

// The watcher runs while there are memberships that want one, one in a namespace,
// and nothing is left of it.
func TestWatcherRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hosts := []*modelHost{newModelHost(t, onLinux), newModelHost(t, onDarwin)}
		running := func(want ...bool) {
			t.Helper()
			synctest.Wait()
			for i, h := range hosts {
				h.mu.Lock()
				n := len(h.sources)
				h.mu.Unlock()
				if n > 1 || (n == 1) != want[i] {
					t.Errorf("%d sources of namespace %d, want one: %v", n, i, want[i])
				}
			}
		}
		for range 3 {
			quiet := hosts[0].open(endpoint{}, &Config{NoWatch: true})
			a, b, c := hosts[0].open(endpoint{}, nil), hosts[0].open(endpoint{ipv6: true}, nil), hosts[1].open(endpoint{}, nil)
			quiet.must(quiet.Join(quiet.group("eth0")))
			running(false, false)
			// A join that is refused needs no watcher either, but may have one.
			a.must(a.Join(a.group("eth0")))
			running(true, false)
			b.must(b.Join(b.group("eth0")))
			c.must(c.Join(c.group("eth0")))
			running(true, true)
			// An index means something else in another namespace.
			hosts[1].remove(2)
			pause(time.Second)
			a.check(a.exclude("eth0"))
			c.check(pending(c.exclude("eth0")))
			if got := a.told.take(); len(got) > 0 {
				t.Errorf("news of another namespace: %q", got)
			}
			hosts[1].add(2, "eth0")
			pause(time.Second)
			c.check(c.exclude("eth0"))
			a.Close()
			running(true, true)
			b.Close()
			running(false, true)
			c.Close()
			running(false, false)
			quiet.Close()
		}
		watchers.Lock()
		defer watchers.Unlock()
		for _, h := range hosts {
			if watchers.of[h.number] != nil {
				t.Error("a watcher is still known")
			}
		}
	})
}

// Without a watcher nothing is done until Repair.
func TestNoWatch(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, h, _ := newModelConn(t, y, ipv6, &Config{NoWatch: true})
		c.must(c.set(c.include("eth0", 1)))
		calls := h.kernel.Calls()
		h.remove(2)
		h.add(7, "eth0")
		pause(time.Hour)
		if n := h.kernel.Calls() - calls; n > 0 {
			t.Errorf("%d calls", n)
		}
		c.wantEvents("nobody looks")
		c.must(c.Repair())
		c.check(c.include("eth0", 1))
		c.wantEvents("repaired", fmt.Sprintf("lost %v on eth0 (2)", c.group("eth0")), fmt.Sprintf("restored %v on eth0 (7, was 2)", c.group("eth0")))
	})
}

// Interfaces that cannot be watched are told of once, and tried again at later
// requests; a system that has no news is nothing to tell of.
func TestUnwatchable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h, _ := newModelConn(t, onLinux, false, nil)
		h.noWatch = syscall.EMFILE
		c.must(c.set(c.include("eth0", 1)))
		c.must(c.JoinSource(c.group("eth0"), c.source(2)))
		pause(time.Hour)
		want := fmt.Sprintf("failed: mcast: Watch: interfaces cannot be watched: %v", error(syscall.EMFILE))
		c.wantEvents("no descriptors", want)
		h.noWatch = syscall.EPERM
		c.must(c.LeaveSource(c.group("eth0"), c.source(2)))
		c.must(c.JoinSource(c.group("eth0"), c.source(3)))
		c.wantEvents("another reason", fmt.Sprintf("failed: mcast: Watch: interfaces cannot be watched: %v", error(syscall.EPERM)))
		h.noWatch = nil
		c.must(c.LeaveSource(c.group("eth0"), c.source(3)))
		h.remove(2)
		pause(time.Second)
		c.check(pending(c.include("eth0", 1)))
		if got := c.told.take(); len(got) != 3 {
			t.Errorf("events %q", got)
		}

		other, without, _ := newModelConn(t, onLinux, false, nil)
		without.noWatch = errors.ErrUnsupported
		other.must(other.Join(other.group("eth0")))
		pause(time.Second)
		other.wantEvents("a system without news")
	})
}

// A failingHost has sources that end with an error when the test says.
type failingHost struct {
	*modelHost
	fail chan error
}

func (h failingHost) Watch() (netif.Source, error) {
	s, err := h.modelHost.Watch()
	return failingSource{s.(*modelSource), h.fail}, err
}

type failingSource struct {
	*modelSource
	fail chan error
}

func (s failingSource) Read() ([]netif.Change, error) {
	select {
	case err := <-s.fail:
		return nil, err
	case changes := <-s.news:
		return changes, nil
	case <-s.closed:
		return s.modelSource.Read()
	}
}

// News that ends with an error is told of, to all, and begins again at the next
// request.
func TestNewsEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newModelHost(t, onLinux)
		fail := make(chan error)
		var conns []*modelConn
		for range 2 {
			c := h.open(endpoint{}, nil)
			c.requests.host = failingHost{h, fail}
			c.must(c.set(c.include("eth0", 1)))
			conns = append(conns, c)
		}
		fail <- errors.New("no more news")
		pause(time.Minute)
		for _, c := range conns {
			c.wantEvents("the end of the news", "failed: mcast: Watch: no more news")
		}
		h.remove(2)
		pause(time.Minute)
		for _, c := range conns {
			c.wantEvents("nobody looks")
		}
		h.add(7, "eth0")
		conns[0].must(conns[0].JoinSource(conns[0].group("eth0"), conns[0].source(2)))
		h.mu.Lock()
		if n := len(h.sources); n != 1 {
			t.Errorf("%d sources after a request", n)
		}
		h.mu.Unlock()
		conns[1].must(conns[1].Repair())
		conns[1].check(conns[1].include("eth0", 1))
		for _, c := range conns {
			c.Close()
		}
		synctest.Wait()
		if n := len(h.sources); n != 0 {
			t.Errorf("%d sources in the end", n)
		}
	})
}
