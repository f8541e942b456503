//go:build !plan9

package mcast

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.com/mcast/internal/netif"
)

// What the watcher tries again, and when; time is that of a bubble. And how it
// begins and ends.

// tries has calls fail, all that which says so of, and notes when they are made. The
// function that it returns gives how long after one another they were, those at one
// time as one, since it was called last.
func (c *modelConn) tries(errno syscall.Errno, which func(level, name int) bool) (rests func() []time.Duration, end func() bool) {
	var mu sync.Mutex
	var at []time.Time
	end = c.failCalls(errno, func(_, level, name int) bool {
		if !which(level, name) {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); len(at) == 0 || at[len(at)-1] != now {
			at = append(at, now)
		}
		return true
	})
	return func() (rests []time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		for i := 1; i < len(at); i++ {
			rests = append(rests, at[i].Sub(at[i-1]))
		}
		at = nil
		return rests
	}, end
}

func anyCall(int, int) bool { return true }

// News is acted on when no more of it comes, whatever was lost by it; and where it
// goes on coming, not at every piece.
func TestWatcherSettles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h, _ := newModelConn(t, onLinux, false, nil)
		c.must(c.set(c.exclude("eth0")))
		pause(time.Second)
		h.unheard(func() { h.add(7, "eth0") })
		h.remove(2)
		pause(settleTime)
		c.check(c.exclude("eth0"))
		pause(time.Second)
		c.told.take()
		const turns = 100
		for i := range turns {
			h.setCarrier(7, i%2 == 1)
			pause(settleTime * 3 / 2)
		}
		restored := 0
		for _, s := range c.told.take() {
			if strings.HasPrefix(s, "restored") {
				restored++
			}
		}
		if most := int(turns*settleTime*3/2/mendingRest) + 1; restored == 0 || restored > most {
			t.Errorf("mended %d times, want at most %d", restored, most)
		}
	})
}

// After news, what fails is tried again as soon, and as often, as at first.
func TestWatcherBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h, _ := newModelConn(t, onLinux, false, nil)
		c.must(c.set(c.include("eth0", 1)))
		pause(time.Second)
		h.remove(2)
		pause(time.Second)
		rests, _ := c.tries(syscall.ENOMEM, anyCall)
		h.add(7, "eth0")
		pause(time.Hour)
		want := []time.Duration{firstRetry, 2 * firstRetry, 4 * firstRetry, 8 * firstRetry}
		for range 2 {
			if got := rests(); len(got) < 100 || !slices.Equal(got[:4], want) {
				t.Errorf("tried again after %v, want %v", got[:min(len(got), 4)], want)
			}
			h.setCarrier(3, false) // any news
			pause(time.Hour)
		}
	})
}

// Another reason each time is no cause for haste.
func TestWatcherOtherReasons(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h, _ := newModelConn(t, onLinux, false, nil)
		c.must(c.set(c.include("eth0", 1)))
		h.remove(2)
		pause(time.Second)
		n := 0
		c.kernel.Fault = func(int, int, []byte) error {
			n++
			return syscall.Errno(4000 + n)
		}
		h.add(7, "eth0")
		pause(time.Hour)
		if n < 110 || n > 140 {
			t.Errorf("%d tries in an hour", n)
		}
	})
}

// A membership that the routing table chose, and that fails on its interface, waits
// for no route.
func TestWatcherRoutedFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h, _ := newModelConn(t, onLinux, false, nil)
		c.must(c.JoinSource(c.group(""), c.source(1)))
		pause(time.Second)
		rests, _ := c.tries(syscall.ENOMEM, func(level, name int) bool { return !onLinux.leaves(level, name) })
		h.wake()
		pause(time.Hour)
		if n := len(rests()); n < 110 || n > 140 {
			t.Errorf("%d tries in an hour", n)
		}
	})
}

// What is to be tried again at once is, a few times, and then as what fails.
func TestWatcherSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h, _ := newModelConn(t, onDarwin, false, nil)
		c.must(c.set(c.include("eth0", 1)))
		h.remove(2)
		pause(time.Second)
		rests, end := c.tries(12, anyCall) // a count of bytes
		h.add(7, "eth0")
		pause(time.Hour)
		soon := slices.Repeat([]time.Duration{20 * time.Millisecond}, 2*mostWaits)
		want := append(soon, firstRetry, 2*firstRetry, 4*firstRetry)
		for range 2 {
			got := rests()
			if n := len(got); n < 110 || n > 150 || !slices.Equal(got[:len(want)], want) {
				t.Errorf("%d tries in an hour, after %v", n, got[:min(n, 16)])
			}
			h.setCarrier(3, false)
			pause(time.Hour)
		}
		end()
		pause(lastRetry)
		c.check(c.include("eth0", 1))
	})
}

// A route is looked for soon, and then less often, at first and after other news.
func TestWatcherLooksForRoute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h, _ := newModelConn(t, onLinux, false, &Config{WaitForInterface: true})
		c.must(c.Join(c.another(c.exclude("eth1")).Group))
		h.wake()
		pause(time.Minute)
		h.setDefault(0)
		c.must(c.Join(c.group("")))
		pause(firstRetry + firstRetry/2)
		h.setDefault(2)
		pause(firstRetry)
		if ms := c.Memberships(); ms[0].Pending {
			t.Errorf("%v, want it on eth0", ms)
		}
		c.must(c.Leave(c.group("")))
		h.setDefault(0)
		c.must(c.Join(c.group("")))
		h.mu.Lock()
		h.asked = nil
		h.mu.Unlock()
		pause(10 * time.Minute)
		h.mu.Lock()
		n := len(h.asked)
		h.mu.Unlock()
		if n < 290 || n > 310 {
			t.Errorf("looked for a route %d times in ten minutes", n)
		}
		// More that waits does not put off what waits already.
		c.must(c.Leave(c.group("")))
		pause(time.Minute)
		c.must(c.Join(c.group("")))
		h.setDefault(2)
		g := c.group("eth7")
		for range 5 {
			pause(firstRetry * 2 / 3)
			g.Addr = g.Addr.Next()
			c.must(c.JoinSource(g, c.source(1)))
		}
		i := slices.IndexFunc(c.Memberships(), func(m Membership) bool { return m.Group.Addr == c.group("").Addr })
		if c.Memberships()[i].Pending {
			t.Error("it still waits")
		}
	})
}

// What several Conns and Pools want tried again is wanted of the watcher.
func TestRetryAdd(t *testing.T) {
	for _, test := range []struct{ a, b, want retry }{
		{retry{}, retry{}, retry{}},
		{retry{failed: true}, retry{unrouted: true}, retry{failed: true, unrouted: true}},
		{retry{soon: 2}, retry{soon: 3}, retry{soon: 2}},
		{retry{soon: 2}, retry{failed: true}, retry{failed: true, soon: 2}},
	} {
		for range 2 {
			r := test.a
			r.add(test.b)
			if fmt.Sprint(r) != fmt.Sprint(test.want) {
				t.Errorf("%v and %v: %v, want %v", test.a, test.b, r, test.want)
			}
			test.a, test.b = test.b, test.a
		}
	}
}

// News that begins again finds what has become of memberships meanwhile, once, and
// its next end is told again.
func TestNewsBeginsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newModelHost(t, onLinux)
		fail := make(chan error)
		c := h.open(endpoint{}, nil)
		c.requests.host = failingHost{h, fail}
		c.must(c.set(c.include("eth0", 1)))
		ended := "failed: mcast: Watch: no more news"
		was := 2
		for _, index := range []int{7, 7, 8} {
			fail <- errors.New("no more news")
			pause(time.Minute)
			h.remove(was)
			h.add(index, "eth0")
			pause(time.Minute)
			c.wantEvents("no news", ended)
			c.must(c.Join(c.another(c.exclude("eth1")).Group))
			pause(time.Second)
			g := c.group("eth0")
			got := c.told.take()
			if !slices.Contains(got, fmt.Sprintf("lost %v on eth0 (%d)", g, was)) ||
				!slices.Contains(got, Event{Kind: EventRestored, Group: g, Name: "eth0", Old: was, New: index}.String()) {
				t.Errorf("events %q", got)
			}
			was = index
			c.must(c.Leave(c.another(c.exclude("eth1")).Group))
			c.check(c.include("eth0", 1))
			calls := h.kernel.Calls()
			h.setCarrier(1, false)
			pause(time.Minute)
			if n := h.kernel.Calls() - calls; n > 0 {
				t.Errorf("%d calls for news of another interface\n%s", n, c.log())
			}
		}
	})
}

// A source whose first news cannot be read is closed.
func TestNewsCannotBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newModelHost(t, onLinux)
		c := h.open(endpoint{}, nil)
		c.requests.host = brokenHost{h}
		c.must(c.set(c.include("eth0", 1)))
		c.wantEvents("no news", "failed: mcast: Watch: interfaces cannot be watched: no news")
		h.mu.Lock()
		if n := len(h.sources); n > 0 {
			t.Errorf("%d sources are open", n)
		}
		h.mu.Unlock()
	})
}

// A brokenHost has sources that tell nothing.
type brokenHost struct{ *modelHost }

func (h brokenHost) Watch() (netif.Source, error) {
	s, err := h.modelHost.Watch()
	return brokenSource{s}, err
}

type brokenSource struct{ netif.Source }

func (brokenSource) Read() ([]netif.Change, error) { return nil, errors.New("no news") }

// Close waits for the watcher whose last member it was.
func TestWatcherEnds(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			c, _, _ := newModelConn(t, onLinux, false, nil)
			c.must(c.set(c.exclude("eth0")))
			w := c.watched
			c.Close()
			select {
			case <-w.done:
			default:
				t.Fatal("the watcher still runs after Close")
			}
		})
	}
}

// A Pool is told of an interface once, and of news that has ended, however many
// ports it has.
func TestPoolIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newModelHost(t, onLinux)
		p := h.openPool(false, nil)
		fail := make(chan error)
		g := Group{netip.MustParseAddr("239.1.2.3"), "eth0"}
		for _, port := range []int{5000, 5001, 5002} {
			m := p.on(port)
			m.requests.host = failingHost{h, fail}
			if err := m.Join(g); err != nil {
				t.Fatal(err)
			}
		}
		pause(time.Second)
		p.told.take()
		h.setUp(2, false)
		pause(time.Second)
		h.setUp(2, true)
		pause(time.Second)
		fail <- errors.New("no more news")
		pause(time.Second)
		want := []string{"down eth0 (2)", "up eth0 (2)", "failed: mcast: Watch: no more news"}
		if got := p.told.take(); !slices.Equal(got, want) {
			t.Errorf("events %q, want %q", got, want)
		}
	})
}
