package amt

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/mcast"
	"example.com/mcast/internal/amtrelay"
)

// randomSteps is how many steps TestRandom takes in all.
func randomSteps(t *testing.T) int {
	s := os.Getenv("MCAST_AMT_STEPS")
	if s == "" {
		return 3000
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("MCAST_AMT_STEPS: %v", err)
	}
	return n
}

// stepsInBubble are taken with one Gateway; then another seed begins.
const stepsInBubble = 250

// Random requests and random faults: what is asked for is heard when the faults
// have been over for the protocol's own time, and nothing else ever is.
func TestRandom(t *testing.T) {
	for seed := range uint64((randomSteps(t) + stepsInBubble - 1) / stepsInBubble) {
		var r *randomRun
		ok := t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r = newRandomRun(t, seed)
				r.run()
			})
		})
		if !ok {
			for _, line := range r.log {
				t.Log(line)
			}
			t.FailNow()
		}
	}
}

// A randomRun is a Gateway with two relays.
type randomRun struct {
	t       *testing.T
	rnd     *rand.Rand
	net     *network
	relays  []*amtrelay.Relay
	gateway *Gateway
	log     []string
	start   time.Time
	number  int
	refused bool // a relay has set L since the last calm

	mu    sync.Mutex
	model map[netip.Addr]*modelFilter // what was asked for
	heard map[string]int
	wrong []string
}

// A modelFilter is a membership in the most obvious form.
type modelFilter struct {
	exclude bool
	sources map[netip.Addr]bool
}

func (f *modelFilter) hears(s netip.Addr) bool { return f != nil && f.sources[s] != f.exclude }

func newRandomRun(t *testing.T, seed uint64) *randomRun {
	r := &randomRun{
		t: t, rnd: rand.New(rand.NewPCG(seed, 3)), net: newNetwork(seed), start: time.Now(),
		model: make(map[netip.Addr]*modelFilter), heard: make(map[string]int),
	}
	interval := []time.Duration{0, 20 * time.Second, 5 * time.Second}[r.rnd.IntN(3)]
	cfg := amtrelay.Config{QueryInterval: interval, HideAddress: r.rnd.IntN(4) == 0, KeepKey: r.rnd.IntN(4) == 0, NoTeardown: r.rnd.IntN(4) == 0}
	addrs := []string{relay1, "[2001:db8:1::1]:2268"}
	for _, a := range addrs {
		r.relays = append(r.relays, r.net.relay(a, cfg))
	}
	r.note("relays %+v", cfg)
	r.gateway = r.net.dialled(t, &Config{OnEvent: func(e Event) { r.note("event %v %v %v %v", e.Kind, e.Relay, e.Address, e.Err) }}, addrs...)
	return r
}

func (r *randomRun) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = append(r.log, fmt.Sprintf("%12v ", time.Since(r.start))+fmt.Sprintf(format, args...))
}

func (r *randomRun) run() {
	t := r.t
	var reader sync.WaitGroup
	reader.Go(r.read)
	for step := range stepsInBubble {
		r.step()
		r.traffic(2)
		time.Sleep(time.Duration(r.rnd.Int64N(int64(3 * time.Second))))
		synctest.Wait()
		if step%25 == 24 {
			r.calm()
		}
		if r.failed() {
			break
		}
	}
	r.gateway.Close()
	reader.Wait()
	time.Sleep(time.Hour) // timers of the network
	for _, p := range r.net.problems() {
		t.Error(p)
	}
	for _, w := range r.wrong {
		t.Error(w)
	}
}

func (r *randomRun) failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.t.Failed() || len(r.wrong) > 0
}

// read checks each datagram against what was asked for at that moment.
func (r *randomRun) read() {
	ms := make([]mcast.Message, 8)
	for i := range ms {
		ms[i].Buf = make([]byte, 200)
	}
	for {
		n, err := r.gateway.ReadBatch(ms)
		if err != nil {
			return
		}
		r.mu.Lock()
		for _, m := range ms[:n] {
			text := string(m.Buf[:m.N])
			var number int
			key := fmt.Sprintf("%v %v", m.Source.Addr(), m.Group.Addr)
			// An IPv6 hop limit that was damaged on the way cannot be told.
			if _, err := fmt.Sscanf(text, key+" %d", &number); err != nil || m.Group.Interface != Interface || m.Port != 5000 || m.HopLimit != 7 && m.Group.Addr.Is4() {
				r.wrong = append(r.wrong, fmt.Sprintf("%v: %q from %v to %v", time.Since(r.start), text, m.Source, m.Group))
			}
			if !r.model[m.Group.Addr].hears(m.Source.Addr()) {
				r.wrong = append(r.wrong, fmt.Sprintf("%v: nobody asked for %q", time.Since(r.start), text))
			}
			r.heard[key]++
		}
		r.mu.Unlock()
	}
}

// traffic has every source send to every group, and strangers too.
func (r *randomRun) traffic(times int) {
	for range times {
		for _, ipv6 := range []bool{false, true} {
			for g := range 3 {
				for s := range 3 {
					r.number++
					r.net.forward(udp(sourceNumber(ipv6, s), groupOf(ipv6, g), r.number))
				}
			}
		}
		for _, to := range r.net.addresses() {
			r.stranger(to)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// groupOf gives groups that may be joined for any source.
func groupOf(ipv6 bool, i int) netip.Addr {
	if ipv6 {
		return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x0e, 15: byte(i)})
	}
	return netip.AddrFrom4([4]byte{239, 1, 1, byte(i)})
}

// stranger sends what a gateway must not take: from an address that is no
// relay's, or from a relay's, but nothing that was asked for.
func (r *randomRun) stranger(to netip.AddrPort) {
	ipv6 := r.rnd.IntN(2) == 0
	group, source := groupOf(ipv6, r.rnd.IntN(3)), sourceNumber(ipv6, r.rnd.IntN(3))
	lie := amtrelay.UDP(netip.AddrPortFrom(source, 1), netip.AddrPortFrom(group, 5000), 7, []byte("a lie"))
	from := netip.MustParseAddrPort("198.51.100.66:2268")
	relay := netip.MustParseAddrPort(relay1)
	if to.Addr().Is6() {
		from, relay = netip.MustParseAddrPort("[2001:db8:6::6]:2268"), netip.MustParseAddrPort("[2001:db8:1::1]:2268")
	}
	switch r.rnd.IntN(7) {
	case 0:
		r.net.arrive(from, to, appendData(nil, lie))
	case 1: // another port of the relay
		r.net.arrive(netip.AddrPortFrom(relay.Addr(), 2269), to, appendData(nil, lie))
	case 2: // a wrong checksum
		lie[len(lie)-1] ^= 1
		r.net.arrive(relay, to, appendData(nil, lie))
	case 3: // a group and a source that nobody asks for
		lie = amtrelay.UDP(netip.AddrPortFrom(sourceNumber(ipv6, 100), 1), netip.AddrPortFrom(groupOf(ipv6, 100), 5000), 7, []byte("a lie"))
		r.net.arrive(relay, to, appendData(nil, lie))
	case 4: // forged messages with other nonces
		r.net.arrive(relay, to, advertisement{1, netip.MustParseAddr("198.51.100.66")}.append(nil))
		r.net.arrive(relay, to, query{nonce: 1, packet: amtrelay.GeneralQuery(ipv6, 2, time.Second)}.append(nil))
	case 5:
		b := make([]byte, r.rnd.IntN(60))
		for i := range b {
			b[i] = byte(r.rnd.Uint32())
		}
		r.net.arrive(relay, to, b)
	case 6: // in a version that does not exist
		b := appendData(nil, lie)
		b[0] |= 0x10
		r.net.arrive(relay, to, b)
	}
}

func (r *randomRun) step() {
	switch r.rnd.IntN(8) {
	case 0:
		r.fault()
	default:
		r.request()
	}
}

// fault changes the network or a relay.
func (r *randomRun) fault() {
	i := r.rnd.IntN(len(r.relays))
	relay := r.relays[i]
	switch r.rnd.IntN(8) {
	case 0:
		r.note("relay %d restarts", i)
		relay.Restart()
	case 1:
		down := r.rnd.IntN(2) == 0
		r.note("relay %d down: %v", i, down)
		relay.Configure(func(c *amtrelay.Config) { c.Down = down })
	case 2:
		r.note("NAT rebinding")
		r.net.rebind()
	case 3:
		if r.rnd.IntN(4) == 0 {
			r.note("relay %d refuses", i)
			r.refused = true
			relay.Configure(func(c *amtrelay.Config) { c.Limit = true })
		}
	case 4:
		no := r.rnd.IntN(2) == 0
		r.note("relay %d answers no Discovery: %v", i, no)
		relay.Configure(func(c *amtrelay.Config) { c.NoDiscovery = no })
	default:
		path := amtrelay.Path{
			Loss: r.rnd.Float64() / 2, Double: r.rnd.Float64() / 2, Damage: r.rnd.Float64() / 2,
			Delay: time.Duration(r.rnd.Int64N(int64(200 * time.Millisecond))), Jitter: time.Duration(r.rnd.Int64N(int64(2 * time.Second))),
		}
		if r.rnd.IntN(10) == 0 {
			path.Loss = 1
		}
		r.note("path %+v", path)
		r.net.mu.Lock()
		r.net.path = path
		r.net.mu.Unlock()
	}
}

// request makes a random request, of the Gateway and of the model.
func (r *randomRun) request() {
	ipv6 := r.rnd.IntN(2) == 0
	group, source := groupOf(ipv6, r.rnd.IntN(3)), sourceNumber(ipv6, r.rnd.IntN(3))
	g := mcast.Group{Addr: group}
	r.mu.Lock()
	f := r.model[group]
	next := &modelFilter{sources: make(map[netip.Addr]bool)}
	if f != nil {
		next.exclude = f.exclude
		maps.Copy(next.sources, f.sources)
	}
	legal := false
	var do func() error
	var what string
	switch op := r.rnd.IntN(7); op {
	case 0:
		what, legal, next = "Join", f == nil, &modelFilter{exclude: true, sources: map[netip.Addr]bool{}}
		do = func() error { return r.gateway.Join(g) }
	case 1, 2:
		what, legal = "JoinSource", f == nil || !f.exclude && !f.sources[source]
		next.sources[source] = true
		do = func() error { return r.gateway.JoinSource(g, source) }
	case 3:
		what, legal = "Block", f != nil && f.exclude && !f.sources[source]
		next.sources[source] = true
		do = func() error { return r.gateway.Block(g, source) }
	case 4:
		what, legal = "LeaveSource", f != nil && !f.exclude && f.sources[source]
		delete(next.sources, source)
		do = func() error { return r.gateway.LeaveSource(g, source) }
		if f != nil && f.exclude {
			what, legal = "Unblock", f.sources[source]
			do = func() error { return r.gateway.Unblock(g, source) }
		}
	case 5:
		what, legal, next = "Leave", f != nil, nil
		do = func() error { return r.gateway.Leave(g) }
	case 6:
		what, legal = "SetFilter", true
		next = &modelFilter{exclude: r.rnd.IntN(2) == 0, sources: map[netip.Addr]bool{}}
		mode := mcast.Include
		if next.exclude {
			mode = mcast.Exclude
		}
		var sources []netip.Addr
		for s := range 3 {
			if r.rnd.IntN(2) == 0 {
				sources = append(sources, sourceNumber(ipv6, s))
				next.sources[sourceNumber(ipv6, s)] = true
			}
		}
		do = func() error { return r.gateway.SetFilter(g, mode, sources...) }
	}
	if next != nil && !next.exclude && len(next.sources) == 0 {
		next = nil
	}
	// Nothing is in the air, so there is no moment in between.
	if legal {
		if next == nil {
			delete(r.model, group)
		} else {
			r.model[group] = next
		}
	}
	r.mu.Unlock()
	err := do()
	if err == nil {
		r.note("%s %v %v: %v", what, group, source, next)
	}
	if (err == nil) != legal {
		r.t.Errorf("%s %v %v: %v, but it is legal: %v", what, group, source, err, legal)
	}
}

// calm ends all faults, waits, and checks that all that was asked for is heard,
// each datagram once.
func (r *randomRun) calm() {
	r.net.mu.Lock()
	r.net.path = amtrelay.Path{Delay: 20 * time.Millisecond}
	r.net.mu.Unlock()
	for _, relay := range r.relays {
		relay.Configure(func(c *amtrelay.Config) { c.Down, c.Limit, c.NoDiscovery = false, false, false })
	}
	// The longest times after which a Discovery is repeated and silence is
	// noticed, and what three Requests take.
	within := retryMost + silenceMost + 15*time.Second
	if r.refused {
		within += limitHoldDown
		r.refused = false
	}
	r.note("calm")
	for end := time.Now().Add(within); time.Now().Before(end); {
		r.traffic(1)
		time.Sleep(900 * time.Millisecond)
	}
	synctest.Wait()
	r.mu.Lock()
	before := maps.Clone(r.heard)
	r.mu.Unlock()
	r.traffic(10)
	time.Sleep(time.Second)
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, group := range slices.SortedFunc(maps.Keys(r.model), netip.Addr.Compare) {
		f := r.model[group]
		for s := range 3 {
			source := sourceNumber(group.Is6(), s)
			key := fmt.Sprintf("%v %v", source, group)
			want := 0
			if f.hears(source) {
				want = 10
			}
			if got := r.heard[key] - before[key]; got != want {
				r.wrong = append(r.wrong, fmt.Sprintf("%v: %d of %d datagrams from %v to %v", time.Since(r.start), got, want, source, group))
			}
		}
	}
}
