package amt

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"example.com/mcast/internal/amtrelay"
)

// A world is a gateway's session and some relays, with a path in between and a
// clock that jumps to what happens next.
type world struct {
	t       testing.TB
	rnd     *rand.Rand
	now     time.Time
	queue   eventQueue
	session *session
	gateway netip.AddrPort // as the relays see it
	relays  map[netip.AddrPort]*amtrelay.Relay
	path    amtrelay.Path
	check   amtrelay.Checker
	events  []Event
	nonces  uint32
	traffic bool // a datagram has come
	got     map[string]int
	log     []string
}

type queued struct {
	at    time.Time
	order int
	do    func()
}

type eventQueue []queued

func (q eventQueue) Len() int { return len(q) }
func (q eventQueue) Less(i, j int) bool {
	return q[i].at.Before(q[j].at) || q[i].at.Equal(q[j].at) && q[i].order < q[j].order
}
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *eventQueue) Push(x any)   { *q = append(*q, x.(queued)) }
func (q *eventQueue) Pop() any     { old := *q; x := old[len(old)-1]; *q = old[:len(old)-1]; return x }

func newWorld(t testing.TB, seed uint64) *world {
	w := &world{
		t: t, rnd: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(1e9, 0), relays: make(map[netip.AddrPort]*amtrelay.Relay),
		gateway: netip.MustParseAddrPort("203.0.113.9:40000"), got: make(map[string]int),
	}
	w.session = &session{link: w}
	return w
}

func (w *world) after(d time.Duration, do func()) {
	heap.Push(&w.queue, queued{w.now.Add(d), len(w.log), do})
	w.log = append(w.log, "")
}

// run lets time pass.
func (w *world) run(d time.Duration) {
	end := w.now.Add(d)
	for {
		next := end
		if len(w.queue) > 0 && w.queue[0].at.Before(next) {
			next = w.queue[0].at
		}
		due := w.session.deadline()
		if !due.IsZero() && !due.After(next) {
			if due.After(w.now) {
				w.now = due
			}
			w.session.run(w.now)
			if again := w.session.deadline(); !again.IsZero() && !again.After(w.now) {
				w.t.Fatalf("run leaves the deadline %v behind", w.now.Sub(again))
			}
			continue
		}
		w.now = next
		if len(w.queue) == 0 || w.queue[0].at.After(next) {
			return
		}
		heap.Pop(&w.queue).(queued).do()
		if next == end && len(w.queue) > 0 && !w.queue[0].at.After(end) {
			continue
		}
		if next == end {
			return
		}
	}
}

// A relay at that address, which is also the one that is asked.
func (w *world) relay(addr string, cfg amtrelay.Config) *amtrelay.Relay {
	a := netip.MustParseAddrPort(addr)
	if !cfg.Advertise.IsValid() {
		cfg.Advertise = a.Addr()
	}
	r := amtrelay.New(cfg, func(to netip.AddrPort, b []byte) {
		for _, d := range w.path.Carry(w.rnd, b) {
			w.after(d.After, func() {
				if to == w.gateway {
					w.receive(a, d.B)
				}
			})
		}
	})
	w.relays[a] = r
	w.session.candidates = append(w.session.candidates, candidate{addr: a})
	return r
}

// receive is what the reading half of a tunnel does.
func (w *world) receive(from netip.AddrPort, b []byte) {
	packet, err := parseData(b)
	if err != nil {
		w.session.receive(w.now, from, b)
		return
	}
	if from != w.session.relay {
		return
	}
	d, err := parsePacket(packet)
	f := w.session.handshakes[familyOf(d.group)].filters[d.group]
	if err == nil && !f.none() && f.hears(d.source.Addr()) {
		w.traffic = true
		w.got[fmt.Sprint(d.source.Addr(), " ", d.group)]++
	}
}

func (w *world) send(to netip.AddrPort, b []byte) {
	w.check.Sent(w.now, to, b)
	from := w.gateway
	for _, d := range w.path.Carry(w.rnd, b) {
		w.after(d.After, func() {
			if r := w.relays[to]; r != nil {
				r.Receive(w.now, from, d.B)
			}
		})
	}
}

func (w *world) heard() bool {
	heard := w.traffic
	w.traffic = false
	return heard
}

func (w *world) event(e Event) { w.events = append(w.events, e) }

func (w *world) nonce() uint32 {
	w.nonces++
	return w.nonces * 2654435761
}

func (w *world) between(least, most time.Duration) time.Duration {
	return least + time.Duration(w.rnd.Int64N(int64(most-least)+1))
}

func (w *world) set(group netip.Addr, f sourceFilter) { w.session.set(w.now, group, f) }

// forward has all relays forward a datagram.
func (w *world) forward(source, group netip.Addr) {
	b := amtrelay.UDP(netip.AddrPortFrom(source, 1), netip.AddrPortFrom(group, 2), 9, []byte("x"))
	for _, r := range w.relays {
		r.Forward(w.now, b)
	}
}

// stream sends from a source to a group every 100 ms, for that time, and
// returns how many arrived in its last tenth, in which there are 10.
func (w *world) stream(source, group netip.Addr, d time.Duration) int {
	for range d / (100 * time.Millisecond) {
		if w.now = w.now.Truncate(0); d <= time.Second {
			break
		}
		w.forward(source, group)
		w.run(100 * time.Millisecond)
		d -= 100 * time.Millisecond
	}
	key := fmt.Sprint(source, " ", group)
	before := w.got[key]
	for range 10 {
		w.forward(source, group)
		w.run(100 * time.Millisecond)
	}
	return w.got[key] - before
}

func (w *world) kinds() (kinds []EventKind) {
	for _, e := range w.events {
		kinds = append(kinds, e.Kind)
	}
	w.events = nil
	return kinds
}

func (w *world) wantEvents(want ...EventKind) {
	w.t.Helper()
	if got := w.kinds(); !slices.Equal(got, want) {
		w.t.Errorf("events %v; want %v", got, want)
	}
}

func (w *world) wantHeard(source, group netip.Addr, within time.Duration) {
	w.t.Helper()
	if n := w.stream(source, group, within); n != 10 {
		w.t.Errorf("%v@%v: %d of the last 10 after %v", source, group, n, within)
	}
}

func (w *world) done() {
	w.t.Helper()
	for _, p := range w.check.Problems {
		w.t.Error(p)
	}
}

func include(sources ...netip.Addr) sourceFilter { return sourceFilter{sources: sources} }
func exclude(sources ...netip.Addr) sourceFilter {
	return sourceFilter{exclude: true, sources: sources}
}

func eachGroupFamily(t *testing.T, f func(t *testing.T, group, a, b netip.Addr, ipv6 bool)) {
	for _, ipv6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "IPv4", true: "IPv6"}[ipv6], func(t *testing.T) {
			f(t, groupNumber(ipv6, 1), sourceNumber(ipv6, 1), sourceNumber(ipv6, 2), ipv6)
		})
	}
}

const relay1, relay2 = "198.51.100.1:2268", "198.51.100.2:2268"

func TestSessionJoinAndLeave(t *testing.T) {
	eachGroupFamily(t, func(t *testing.T, group, a, b netip.Addr, _ bool) {
		w := newWorld(t, 1)
		r := w.relay(relay1, amtrelay.Config{})
		w.path.Delay = 10 * time.Millisecond
		w.run(time.Hour)
		if c := r.Counts(); c != (amtrelay.Counts{}) {
			t.Errorf("before the first request: %+v", c)
		}
		w.set(group, include(a))
		w.run(60 * time.Millisecond) // six ways of 10 ms
		w.wantHeard(a, group, time.Second)
		w.wantEvents(EventRelayFound, EventTunnelUp)
		w.set(group, include(a, b))
		w.run(10 * time.Millisecond)
		w.wantHeard(b, group, time.Second)
		w.set(group, include(b))
		w.run(3 * time.Second)
		before := r.Counts().Sent
		if w.forward(a, group); r.Counts().Sent != before {
			t.Error("the source that was left is still sent")
		}
		w.wantHeard(b, group, time.Second)
		w.set(group, exclude(b))
		w.wantHeard(a, group, 2*time.Second)
		w.set(group, sourceFilter{})
		w.run(3 * time.Second)
		before = r.Counts().Sent
		if w.forward(a, group); r.Counts().Sent != before || len(r.Endpoints(w.now)) != 0 {
			t.Error("the group that was left is still sent")
		}
		// Nothing is wanted: no more handshakes.
		w.run(5 * time.Minute)
		c := r.Counts()
		w.run(time.Hour)
		if r.Counts() != c || !w.session.idle() {
			t.Errorf("%+v, then %+v", c, r.Counts())
		}
		w.done()
	})
}

// An hour with refreshes only, and no datagram is lost.
func TestSessionRefresh(t *testing.T) {
	w := newWorld(t, 1)
	r := w.relay(relay1, amtrelay.Config{QueryInterval: 20 * time.Second})
	w.set(group4.Addr(), include(port4.Addr()))
	w.run(time.Second)
	for range 3600 {
		w.wantHeard(port4.Addr(), group4.Addr(), time.Second)
	}
	if c := r.Counts(); c.Requests < 175 || c.Requests > 185 || c.Discoveries != 1 {
		t.Errorf("%+v", c)
	}
	w.done()
}

func TestSessionFaults(t *testing.T) {
	for name, c := range map[string]struct {
		fault  func(w *world, r *amtrelay.Relay)
		within time.Duration // after the fault
	}{
		"restart": {func(w *world, r *amtrelay.Relay) { r.Restart() }, 20 * time.Second},
		"restart, the same key": {func(w *world, r *amtrelay.Relay) {
			r.Configure(func(c *amtrelay.Config) { c.KeepKey = true })
			r.Restart()
		}, 20 * time.Second},
		"down for 10 minutes": {func(w *world, r *amtrelay.Relay) {
			r.Configure(func(c *amtrelay.Config) { c.Down = true })
			r.Restart()
			w.run(10 * time.Minute)
			r.Configure(func(c *amtrelay.Config) { c.Down = false })
		}, 130 * time.Second},
		"NAT rebinding": {func(w *world, r *amtrelay.Relay) { w.gateway = netip.MustParseAddrPort("203.0.113.9:40001") }, 20 * time.Second},
		"NAT rebinding without G": {func(w *world, r *amtrelay.Relay) {
			r.Configure(func(c *amtrelay.Config) { c.HideAddress = true })
			w.gateway = netip.MustParseAddrPort("203.0.113.9:40001")
		}, 20 * time.Second},
		"a lossy path for 10 minutes": {func(w *world, r *amtrelay.Relay) {
			w.path = amtrelay.Path{Loss: 0.6, Double: 0.3, Damage: 0.3, Delay: 20 * time.Millisecond, Jitter: 2 * time.Second}
			w.run(10 * time.Minute)
			w.path = amtrelay.Path{}
		}, 130 * time.Second},
		"no path for an hour": {func(w *world, r *amtrelay.Relay) {
			w.path.Loss = 1
			w.run(time.Hour)
			w.path.Loss = 0
		}, 130 * time.Second},
		"refused for an hour": {func(w *world, r *amtrelay.Relay) {
			r.Configure(func(c *amtrelay.Config) { c.Limit, c.Down = true, true })
			r.Restart()
			w.run(10 * time.Minute)
			r.Configure(func(c *amtrelay.Config) { c.Down = false })
			w.run(50 * time.Minute)
			r.Configure(func(c *amtrelay.Config) { c.Limit = false })
		}, 10*time.Minute + 130*time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			eachGroupFamily(t, func(t *testing.T, group, a, _ netip.Addr, _ bool) {
				for seed := range uint64(20) {
					w := newWorld(t, seed)
					w.path.Delay = 10 * time.Millisecond
					r := w.relay(relay1, amtrelay.Config{})
					w.set(group, include(a))
					w.run(time.Second)
					w.wantHeard(a, group, 30*time.Second)
					c.fault(w, r)
					w.wantHeard(a, group, c.within)
					w.run(time.Minute)
					if n := len(r.Endpoints(w.now)); n != 1 && name != "NAT rebinding without G" {
						t.Errorf("%d endpoints", n)
					}
					w.done()
				}
			})
		})
	}
}

func TestSessionNewAddress(t *testing.T) {
	w := newWorld(t, 1)
	r := w.relay(relay1, amtrelay.Config{})
	for _, ipv6 := range []bool{false, true} {
		w.set(groupNumber(ipv6, 1), include(sourceNumber(ipv6, 1)))
	}
	w.run(time.Second)
	w.kinds()
	w.gateway = netip.MustParseAddrPort("203.0.113.10:50000")
	w.run(130 * time.Second)
	if got := r.Endpoints(w.now); len(got) != 1 || got[0] != w.gateway || r.Counts().Teardowns != 2 {
		t.Errorf("%v, %+v", got, r.Counts())
	}
	w.wantHeard(sourceNumber(false, 1), groupNumber(false, 1), time.Second)
	w.wantHeard(sourceNumber(true, 1), groupNumber(true, 1), time.Second)
	if e := w.events; len(e) == 0 || e[0].Kind != EventNewAddress || e[0].Address != w.gateway {
		t.Errorf("%+v", e)
	}
	w.done()
}

func TestSessionFailover(t *testing.T) {
	for name, fault := range map[string]func(*amtrelay.Config){
		"down":         func(c *amtrelay.Config) { c.Down = true },
		"no Query":     func(c *amtrelay.Config) { c.NoIGMP, c.NoMLD = true, true },
		"no Discovery": func(c *amtrelay.Config) { c.NoDiscovery = true },
		"L":            func(c *amtrelay.Config) { c.Limit = true },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			w.path.Delay = 10 * time.Millisecond
			r1 := w.relay(relay1, amtrelay.Config{})
			r2 := w.relay(relay2, amtrelay.Config{})
			r1.Configure(fault)
			w.set(group4.Addr(), include(port4.Addr()))
			w.wantHeard(port4.Addr(), group4.Addr(), 30*time.Second)
			if len(r1.Endpoints(w.now)) != 0 || len(r2.Endpoints(w.now)) != 1 {
				t.Error("not with the second relay")
			}
			w.done()
		})
	}
	t.Run("later", func(t *testing.T) {
		w := newWorld(t, 1)
		r1 := w.relay(relay1, amtrelay.Config{})
		w.relay(relay2, amtrelay.Config{})
		w.set(group4.Addr(), include(port4.Addr()))
		w.wantHeard(port4.Addr(), group4.Addr(), 2*time.Second)
		r1.Configure(func(c *amtrelay.Config) { c.Down = true })
		w.wantHeard(port4.Addr(), group4.Addr(), 30*time.Second)
		w.wantEvents(EventRelayFound, EventTunnelUp, EventRelayLost, EventRelayFound, EventTunnelUp)
		w.done()
	})
}

// A relay that brings nothing is left for another, and that one is told that
// the first is not wanted any more.
func TestSessionSilence(t *testing.T) {
	w := newWorld(t, 1)
	r1 := w.relay(relay1, amtrelay.Config{LargestInner: 1})
	r2 := w.relay(relay2, amtrelay.Config{})
	w.set(group4.Addr(), include(port4.Addr()))
	w.run(time.Second)
	w.wantHeard(port4.Addr(), group4.Addr(), 30*time.Second)
	w.run(3 * time.Second)
	if len(r1.Endpoints(w.now)) != 0 || len(r2.Endpoints(w.now)) != 1 {
		t.Error("not with the second relay")
	}
	// A source that pauses for an hour is heard when it goes on.
	for _, n := range []int{1, 2} {
		w := newWorld(t, 1)
		for i := range n {
			w.relay([]string{relay1, relay2}[i], amtrelay.Config{})
		}
		w.set(group4.Addr(), include(port4.Addr()))
		w.run(time.Hour)
		w.wantHeard(port4.Addr(), group4.Addr(), 10*time.Second)
		if asked := len(w.check.Problems); asked > 0 {
			t.Error(w.check.Problems)
		}
	}
	w.done()
}

func TestSessionUnreachable(t *testing.T) {
	w := newWorld(t, 1)
	r := w.relay(relay1, amtrelay.Config{})
	w.set(group4.Addr(), include(port4.Addr()))
	w.run(2 * time.Second)
	r.Restart()
	w.session.unreachable(w.now, netip.MustParseAddrPort(relay1))
	w.wantHeard(port4.Addr(), group4.Addr(), 1100*time.Millisecond)
	// Anybody can forge it: a thousand do no harm.
	for range 1000 {
		w.session.unreachable(w.now, netip.MustParseAddrPort(relay1))
		w.run(time.Millisecond)
	}
	w.wantHeard(port4.Addr(), group4.Addr(), time.Second)
	if c := r.Counts(); c.Requests > 10 || c.Discoveries != 1 {
		t.Errorf("%+v", c)
	}
	w.done()
}

// Relays as they were met in the field.
func TestSessionDeviations(t *testing.T) {
	for name, cfg := range map[string]amtrelay.Config{
		"by address":         {ByAddress: true},
		"no Teardown":        {NoTeardown: true},
		"Linux":              {LinuxFlags: true, HideAddress: true},
		"additive":           {Additive: true},
		"no empty record":    {EmptyRefused: true},
		"hides the address":  {HideAddress: true},
		"20 s":               {QueryInterval: 20 * time.Second, Robustness: 1},
		"anycast":            {Advertise: netip.MustParseAddr("198.51.100.7")},
		"robustness of 7":    {Robustness: 7},
		"interval of 1 hour": {QueryInterval: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			eachGroupFamily(t, func(t *testing.T, group, a, b netip.Addr, _ bool) {
				w := newWorld(t, 1)
				r := w.relay(relay1, cfg)
				if cfg.Advertise.IsValid() {
					w.relays[netip.AddrPortFrom(cfg.Advertise, Port)] = amtrelay.New(cfg, func(to netip.AddrPort, m []byte) {
						w.after(0, func() { w.receive(netip.AddrPortFrom(cfg.Advertise, Port), m) })
					})
				}
				w.set(group, include(a))
				w.wantHeard(a, group, 10*time.Second)
				w.set(group, include(a, b))
				w.wantHeard(b, group, 2*time.Second)
				r.Restart()
				w.wantHeard(a, group, 30*time.Second)
				w.gateway = netip.MustParseAddrPort("203.0.113.9:40001")
				w.wantHeard(a, group, 30*time.Second)
				w.set(group, sourceFilter{})
				w.run(3 * time.Second)
				if n := len(r.Endpoints(w.now)); n != 0 && !cfg.HideAddress && !cfg.NoTeardown {
					t.Errorf("%d endpoints after the leave", n)
				}
				w.done()
			})
		})
	}
}

func TestSessionClose(t *testing.T) {
	w := newWorld(t, 1)
	r := w.relay(relay1, amtrelay.Config{})
	for i := range 100 {
		for _, ipv6 := range []bool{false, true} {
			f := include()
			for j := range 100 {
				f.sources = append(f.sources, sourceNumber(ipv6, j))
			}
			f.exclude = i%2 == 0
			w.set(groupNumber(ipv6, i), f)
		}
	}
	w.run(10 * time.Second)
	if n := len(r.Wanted(w.now)); n != 200 {
		t.Fatalf("%d groups", n)
	}
	w.session.close()
	w.session = &session{link: w}
	w.run(3 * time.Second)
	if n := len(r.Endpoints(w.now)); n != 0 {
		t.Errorf("%v", r.Wanted(w.now))
	}
	w.done()
}
