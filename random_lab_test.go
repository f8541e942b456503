//go:build linux

package mcast_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"example.com/mcast"
	"example.com/mcast/internal/netlab"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// watcherLeft says what is left of the watcher.
func watcherLeft(fds int) string {
	buf := make([]byte, 1<<20)
	stacks := string(buf[:runtime.Stack(buf, true)])
	for _, what := range []string{".(*watcher)", "netif.(*source)", ".(*requests)"} {
		if strings.Contains(stacks, what) {
			return "a goroutine is left:\n" + stacks
		}
	}
	if n := openFiles(); n > fds {
		return fmt.Sprintf("%d descriptors, %d before", n, fds)
	}
	return ""
}

// Nothing is left after the last Close, whatever is being mended.
func TestLabWatchClose(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		peer := cable(l, "eth0", "peer")
		local := l.Local()
		eachFamily(l, func(t *testing.T, six bool) {
			fds, goroutines := openFiles(), runtime.NumGoroutine()
			for round := range 15 {
				var ws []*watched
				var ends []*atomic.Bool // set when Close has returned
				for i := range 4 {
					w := &watched{t: t, l: l, six: six, pool: i == 3, ifname: "eth0", peer: peer}
					closed := new(atomic.Bool)
					w.open(&mcast.Config{OnEvent: func(e mcast.Event) {
						if closed.Load() {
							t.Error("an event after Close")
						}
						switch e.Kind {
						case mcast.EventPending:
							w.Block(e.Group, w.source('b'))
							w.Unblock(e.Group, w.source('a'))
						case mcast.EventRestored:
							w.SystemFilter(e.Group)
							if round%3 == 0 {
								w.Repair()
							}
						}
						w.Memberships()
					}})
					w.join(w.standard()...)
					ws, ends = append(ws, w), append(ends, closed)
				}
				done := make(chan bool)
				go func() {
					defer close(done)
					time.Sleep(time.Duration(round*8) * time.Millisecond)
					for i, w := range ws {
						if err := w.Close(); err != nil {
							t.Error(err)
						}
						ends[i].Store(true)
						if ms := w.Memberships(); len(ms) > 0 {
							t.Errorf("memberships after Close: %v", ms)
						}
					}
				}()
				local.Recreate("eth0", round%2 == 0)
				local.Carrier("eth0", false)
				local.Carrier("eth0", true)
				<-done
				eventually(t, func() string { return watcherLeft(fds) })
				for _, w := range ws {
					for _, e := range w.take() {
						if e.Kind == mcast.EventFailed {
							t.Error(e)
						}
					}
				}
			}
			// One that has done its last thing may not be counted out yet.
			eventually(t, func() string {
				if n := runtime.NumGoroutine(); n > goroutines {
					buf := make([]byte, 1<<20)
					return fmt.Sprintf("%d goroutines, %d before:\n%s", n, goroutines, buf[:runtime.Stack(buf, true)])
				}
				return ""
			})
		})
	})
}

// Without a watcher, Repair does the same on request.
func TestLabRepair(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		peer := cable(l, "eth0", "peer")
		local := l.Local()
		eachFamily(l, func(t *testing.T, six bool) {
			for _, pool := range []bool{false, true} {
				fds := openFiles()
				w := &watched{t: t, l: l, six: six, pool: pool, ifname: "eth0", peer: peer}
				w.open(&mcast.Config{NoWatch: true})
				all := w.standard()
				w.join(all...)
				w.hears(all...)
				if s := watcherLeft(fds + 100); s != "" {
					t.Error(s)
				}
				w.must(w.Repair())
				if s := w.differs(all...); s != "" {
					t.Error(s)
				}
				w.hears(all...)
				// Events follow the call. Each is lost, and then restored.
				restored := func() {
					t.Helper()
					last := make(map[mcast.Group]mcast.EventKind)
					eventually(t, func() string {
						for _, e := range w.take() {
							last[e.Group] = e.Kind
						}
						for _, m := range all {
							if kind, ok := last[m.Group]; !ok || kind != mcast.EventRestored {
								return fmt.Sprintf("%v is not restored: %v", m.Group, last)
							}
						}
						return ""
					})
				}
				restored()
				local.Delete("eth0")
				w.must(w.Repair())
				if s := w.differs(allPending(all)...); s != "" {
					t.Error(s)
				}
				// Each is lost, and then pending.
				var events []mcast.Event
				eventually(t, func() string {
					if events = append(events, w.take()...); len(events) < 2*len(all) {
						return fmt.Sprintf("%d events: %v", len(events), events)
					}
					return ""
				})
				for i, e := range events {
					if want := []mcast.EventKind{mcast.EventLost, mcast.EventPending}[i/len(all)%2]; len(events) != 2*len(all) || e.Kind != want || e.Name != "eth0" || e.Old == 0 || e.New != 0 {
						t.Errorf("%d events, the %d. %+v", len(events), i, e)
					}
				}
				for _, same := range []bool{false, true} {
					local.Recreate("eth0", same)
					w.must(w.Repair())
					if s := w.differs(all...); s != "" {
						t.Error(s)
					}
					w.hears(all...)
					restored()
				}
				// Repaired once is enough.
				local.Down("eth0")
				local.Up("eth0")
				local.Readdress("eth0")
				w.must(w.JoinSource(w.group(110), w.source('a')), w.Leave(w.group(110)), w.Close())
				if events := w.take(); len(events) > 0 {
					t.Error(events)
				}
				if err := w.Repair(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("after Close: %v", err)
				}
			}
		})
	})
}

// A hundred changes a second.
func TestLabWatchStorm(t *testing.T) {
	eachWatched(t, true, func(w *watched) {
		local := w.l.Local()
		all := w.standard()
		w.join(all...)
		start := time.Now()
		changes := 0
		for time.Since(start) < 2*time.Second {
			w.peer.Down("eth0")
			w.peer.Up("eth0")
			changes += 2
			if changes%40 == 0 {
				local.Down("eth0")
				local.Up("eth0")
			}
		}
		w.peer.Readdress("eth0")
		local.Readdress("eth0")
		w.check(all...)
		cycles := make(map[mcast.Group]int)
		for _, e := range w.happened() {
			switch e.Kind {
			case mcast.EventLost:
				cycles[e.Group]++
			case mcast.EventRestored, mcast.EventDown, mcast.EventUp:
			default:
				w.t.Error(e)
			}
		}
		for g, n := range cycles {
			// One in each 100 ms, and what was done in check.
			if limit := int(time.Since(start)/(100*time.Millisecond)) + 1; n > limit {
				w.t.Errorf("%v: %d times for %d changes, at most %d", g, n, changes, limit)
			}
		}
		w.t.Logf("%d changes: %v", changes, cycles)
	})
}

// Random faults and requests; after each, what is live is in the kernel and
// heard, and nothing else is. MCAST_LONG=1 makes a thousand steps.
func TestLabWatchRandom(t *testing.T) {
	steps := 60
	if os.Getenv("MCAST_LONG") == "1" {
		steps = 1000
	}
	seed := uint64(time.Now().UnixNano())
	if n, err := strconv.ParseUint(os.Getenv("MCAST_SEED"), 10, 64); err == nil {
		seed = n
	}
	eachWatched(t, true, func(w *watched) {
		w.t.Logf("MCAST_SEED=%d", seed)
		r := randomWatch{watched: w, rng: rand.New(rand.NewPCG(seed, 1)), filters: make(map[int]string)}
		r.host = w.l.Host(fmt.Sprint("away", fences.Add(1)))
		w.join(w.of(w.group(90), "E"))
		for i := range steps {
			what := r.step()
			r.history = append(r.history, what)
			if i%4 > 0 && r.rng.IntN(2) == 0 {
				continue // the next one comes before this one is mended
			}
			r.check()
			if w.t.Failed() {
				w.t.Fatalf("MCAST_SEED=%d, after: %s", seed, strings.Join(r.history[max(0, len(r.history)-25):], ", "))
			}
		}
		r.restore()
		r.check()
		if w.t.Failed() {
			w.t.Fatalf("MCAST_SEED=%d, after: %s", seed, strings.Join(r.history[max(0, len(r.history)-25):], ", "))
		}
		w.must(w.Close())
		for n := range r.filters {
			if u := w.l.Local().Users("eth0", w.group(n).Addr); u != 0 {
				w.t.Errorf("group %d: %d users in the end", n, u)
			}
		}
	})
}

type randomWatch struct {
	*watched
	rng     *rand.Rand
	host    *netlab.Host // where the interface is when it is away
	gone    string       // "", "away", "deleted"
	down    bool
	dark    bool           // without a carrier
	filters map[int]string // of each group, "" for none
	history []string
}

// restore brings the interface back, up, and with a carrier.
func (r *randomWatch) restore() {
	r.t.Helper()
	local := r.l.Local()
	switch r.gone {
	case "away":
		r.host.Move("eth0", local)
		r.gone, r.down = "", true
	case "deleted":
		local.Recreate("eth0", r.rng.IntN(2) == 0)
		r.gone, r.down, r.dark = "", false, false
	}
	if r.down {
		local.Up("eth0")
		local.Readdress("eth0")
	}
	if r.dark {
		local.Carrier("eth0", true)
	}
	r.down, r.dark = false, false
}

func (r *randomWatch) step() string {
	r.t.Helper()
	local := r.l.Local()
	switch n := r.rng.IntN(12); {
	case n == 0 && r.gone == "":
		local.Delete("eth0")
		r.gone = "deleted"
		return "deleted"
	case n == 1 && r.gone == "":
		local.Move("eth0", r.host)
		r.gone = "away"
		return "moved away"
	case n == 2 && r.gone == "":
		same := r.rng.IntN(2) == 0
		local.Recreate("eth0", same)
		r.down, r.dark = false, false
		return fmt.Sprintf("made again, same index: %v", same)
	case n == 3 && r.gone == "" && !r.down:
		local.Down("eth0")
		r.down = true
		return "down"
	case n == 4 && r.gone == "" && !r.dark:
		local.Carrier("eth0", false)
		r.dark = true
		return "without a carrier"
	case n <= 5:
		r.restore()
		return fmt.Sprint("restored as ", r.index())
	}
	group := []int{1, 2, 101, 102}[r.rng.IntN(4)]
	filter := []string{"", "E", "Ea", "Eab", "Ia", "Iab", "Ibc", "Ic"}[r.rng.IntN(8)]
	if group >= 100 && strings.HasPrefix(filter, "E") {
		filter = "Ib"
	}
	g := numbered(r.six, group, "")
	if r.filters[group] == "" {
		if filter == "" {
			return "nothing"
		}
		g.Interface = r.ifname
	}
	m := r.of(g, "I")
	if filter != "" {
		m = r.of(g, filter)
	}
	err := r.SetFilter(g, m.Mode, m.Sources...)
	if err != nil {
		// A new membership needs its interface.
		if r.filters[group] == "" && r.gone != "" && errors.Is(err, mcast.ErrInterface) {
			return fmt.Sprintf("%d cannot become %s", group, filter)
		}
		r.t.Errorf("group %d, %q to %q: %v", group, r.filters[group], filter, err)
	}
	r.filters[group] = filter
	return fmt.Sprintf("%d becomes %q", group, filter)
}

func (r *randomWatch) check() {
	r.t.Helper()
	var want []mcast.Membership
	groups := []int{1, 2, 90, 101, 102}
	r.filters[90] = "E"
	for _, n := range groups {
		if f := r.filters[n]; f != "" {
			m := r.of(r.group(n), f)
			m.Pending = r.gone != ""
			want = append(want, m)
		}
	}
	sorted(want...)
	r.become(want...)
	for _, n := range groups {
		if r.filters[n] == "" && r.gone == "" {
			g := r.group(n)
			eventually(r.t, func() string {
				if u := r.l.Local().Users(r.ifname, g.Addr); u != 0 {
					return fmt.Sprintf("%d users of %v, which is not joined", u, g)
				}
				return ""
			})
		}
	}
	if r.gone == "" && !r.down && !r.dark {
		r.hears(want...)
	}
}

// A group on a device that is made again with the same index is somebody else's,
// too: the end of the membership on the old device is not theirs, whenever they
// join.
func TestLabWatchOthers(t *testing.T) {
	eachWatched(t, true, func(w *watched) {
		local := w.l.Local()
		all := w.standard()
		w.join(all...)
		w.check(all...)
		for round := range 6 {
			local.Recreate("eth0", true)
			// At once, which is often before the watcher has looked.
			g := w.group(1)
			other := w.outsider(g)
			w.check(all...)
			w.happened()
			hears := func(what string) {
				w.t.Helper()
				if local.Users("eth0", g.Addr) < 1 {
					w.t.Fatalf("round %d: %s: no users", round, what)
				}
				port := uint16(other.LocalAddr().(*net.UDPAddr).Port)
				w.peer.Send(w.t, "eth0", w.source('c'), netip.AddrPortFrom(g.Addr, port), "x")
				other.SetReadDeadline(time.Now().Add(10 * time.Second))
				if _, _, err := other.ReadFromUDPAddrPort(make([]byte, 10)); err != nil {
					w.t.Fatalf("round %d: %s: the other socket hears nothing: %v", round, what, err)
				}
			}
			hears("made anew")
			w.must(w.Leave(g))
			hears("left")
			w.must(w.Join(g))
			other.Close()
			w.check(all...)
		}
	})
}

// outsider is a socket of somebody else's, in a group.
func (w *watched) outsider(g mcast.Group) *net.UDPConn {
	w.t.Helper()
	c, err := net.ListenUDP(networkOf(w.six), nil)
	w.must(err)
	w.t.Cleanup(func() { c.Close() })
	ifi, to := w.l.Local().Interface(g.Interface), &net.UDPAddr{IP: g.Addr.AsSlice()}
	if w.six {
		err = ipv6.NewPacketConn(c).JoinGroup(ifi, to)
	} else {
		err = ipv4.NewPacketConn(c).JoinGroup(ifi, to)
	}
	w.must(err)
	return c
}
