//go:build !plan9

package mcast

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.com/mcast/internal/kerneltest"
)

var (
	ledgerSteps = flag.Int("ledger.steps", 4000, "random steps of TestLedgerRandom, over all systems, families, Conns and Pools")
	ledgerSeed  = flag.Uint64("ledger.seed", 0, "of TestLedgerRandom; 0: another one each time")
)

// TestLedgerRandom makes random requests of a Conn, or of a Pool on two ports,
// beside a stranger's socket on the same host, while interfaces come and go and
// system calls fail. After each step:
//
//   - what is asked for is what an oracle says, and so was the answer;
//   - what is held is what the model kernel has, or the entry is stale;
//   - no harm was done to the kernel or the stranger.
//
// Now and then everything is mended, and some time later what is held and heard
// is what is asked for.
func TestLedgerRandom(t *testing.T) {
	seed := *ledgerSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	const stepsARun = 60
	kinds := 2 * 2 * len(fourSystems)
	runs := max(1, *ledgerSteps/(stepsARun*kinds))
	for _, pool := range []bool{false, true} {
		for _, y := range fourSystems {
			for _, ipv6 := range []bool{false, true} {
				name := map[bool]string{false: "Conn", true: "Pool"}[pool] + " " + y.name + " " + endpoint{ipv6: ipv6}.network()
				t.Run(name, func(t *testing.T) {
					for run := range runs {
						at := seed + uint64(run)
						synctest.Test(t, func(t *testing.T) {
							w := newLedgerWorld(t, y, ipv6, pool, at)
							for range stepsARun {
								w.step()
								if w.check(); t.Failed() {
									break
								}
							}
							if !t.Failed() {
								w.mend()
							}
							if t.Failed() {
								t.Fatalf("-ledger.seed=%d; steps:\n%s", at, strings.Join(w.steps, "\n"))
							}
						})
						if t.Failed() {
							return
						}
					}
				})
			}
		}
	}
}

// A ledgerWorld is a host with what runs on it.
type ledgerWorld struct {
	t    *testing.T
	rng  *rand.Rand
	host *modelHost
	ipv6 bool

	members []*requests   // of the Conn, or of the Pool's ports
	oracles []askedOracle // of each
	pool    *modelPool    // or
	conn    *modelConn

	stranger *kerneltest.Socket // of another program
	down     map[string]bool
	troubled bool // a call may fail
	steps    []string
}

// An askedOracle is what should be asked for: the sources of each membership that
// are on the list, by the group with the interface as the filter names it.
type askedOracle map[Group]*askedFilter

type askedFilter struct {
	exclude bool
	list    map[netip.Addr]bool
}

func (f *askedFilter) allows(s netip.Addr) bool { return f.list[s] == !f.exclude }

func newLedgerWorld(t *testing.T, y modelSystem, ipv6, pool bool, seed uint64) *ledgerWorld {
	w := &ledgerWorld{t: t, rng: rand.New(rand.NewPCG(seed, 7)), ipv6: ipv6, down: make(map[string]bool)}
	w.host = newModelHost(t, y)
	cfg := &Config{AnySource: true, WaitForInterface: w.rng.IntN(2) == 0}
	if w.rng.IntN(2) == 0 {
		// Then a Pool's sockets are opened without the lock.
		cfg.Control = func(string, string, syscall.RawConn) error { return nil }
	}
	if pool {
		w.pool = w.host.openPool(ipv6, cfg)
		w.members = []*requests{&w.pool.Members.requests, &w.pool.on(5001).requests}
	} else {
		w.conn = w.host.open(endpoint{ipv6: ipv6}, cfg)
		w.members = []*requests{&w.conn.requests}
	}
	for range w.members {
		w.oracles = append(w.oracles, make(askedOracle))
	}
	w.meetStranger()
	return w
}

func (w *ledgerWorld) group(n int) netip.Addr {
	if w.ipv6 {
		return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x0e, 14: 1, 15: byte(n)})
	}
	return netip.AddrFrom4([4]byte{239, 0, 1, byte(n)})
}

func (w *ledgerWorld) source(n int) netip.Addr {
	if w.ipv6 {
		return netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(n)})
	}
	return netip.AddrFrom4([4]byte{10, 0, 0, byte(n)})
}

const (
	ledgerGroups  = 3
	ledgerSources = 4
)

// meetStranger has another program join all groups on all interfaces. On Linux
// alone one program can take from another.
func (w *ledgerWorld) meetStranger() {
	if w.host.system.name != "linux" {
		return
	}
	w.stranger = w.host.kernel.Socket(w.ipv6)
	k := kernel{platform: w.host.system.platform, sock: modelSocket{w.stranger, w.host}, host: w.host}
	for index := range w.host.links {
		for n := range ledgerGroups {
			k.send(change{op: OpJoin, addr: w.group(n), index: index}, true)
		}
	}
}

// step does something at random.
func (w *ledgerWorld) step() {
	switch n := w.rng.IntN(24); {
	case n < 13:
		w.request()
	case n < 16:
		w.set()
	case n < 20:
		w.link()
	case n == 20:
		calls := 1 + w.rng.IntN(4)
		w.note("call %d from here fails", calls)
		errno := syscall.Errno([]int{5, 12, 55, 105}[w.rng.IntN(4)])
		if w.host.system.platform.name == "windows" {
			errno = 10055
		}
		w.host.kernel.FailCall(calls, errno, false)
		w.troubled = true
	case n == 21:
		w.note("Repair")
		if w.pool != nil {
			w.pool.Repair()
		} else {
			w.conn.Repair()
		}
	case n == 22:
		d := time.Duration(w.rng.IntN(int(time.Second)))
		w.note("%v go by", d)
		time.Sleep(d)
	default:
		w.mend()
	}
}

func (w *ledgerWorld) note(format string, args ...any) {
	w.steps = append(w.steps, fmt.Sprintf(format, args...))
}

// somewhere picks one of those that make requests, a group, and the name by
// which the filter knows the interface that is meant; known is false where that
// cannot be said.
func (w *ledgerWorld) somewhere() (q *requests, o askedOracle, asked Group, key Group, known bool) {
	i := w.rng.IntN(len(w.members))
	q, o = w.members[i], w.oracles[i]
	addr := w.group(w.rng.IntN(ledgerGroups))
	ifname := []string{"eth0", "eth0", "eth1", "eth1", "", "*", "2", "3"}[w.rng.IntN(8)]
	asked, key = Group{addr, ifname}, Group{addr, ifname}
	if index, digits, _ := parseIndex(ifname); digits {
		l, ok := w.host.links[index]
		if !ok {
			return q, o, asked, key, false
		}
		key.Interface = l.Name
	}
	on := o.on(addr)
	if slices.Contains(on, "") && !slices.Contains(on, key.Interface) && routedTo(q, addr) == "" {
		// It is about to be somewhere: only its own name is sure to mean it.
		asked.Interface, key.Interface = "", ""
	}
	switch {
	case key.Interface == "" && len(on) == 1:
		key.Interface = on[0]
	case key.Interface == "" && len(on) > 1:
		return q, o, asked, key, false
	case key.Interface != "" && slices.Contains(on, "") && !slices.Contains(on, key.Interface) && routedTo(q, addr) == key.Interface:
		key.Interface = "" // where it is, only the ledger knows
	}
	every := slices.Contains(on, everyInterface)
	if every != (key.Interface == everyInterface) && len(on) > 0 {
		return q, o, asked, key, false
	}
	return q, o, asked, key, true
}

func (o askedOracle) on(addr netip.Addr) (on []string) {
	for g := range o {
		if g.Addr == addr {
			on = append(on, g.Interface)
		}
	}
	return on
}

// request makes one of the six requests.
func (w *ledgerWorld) request() {
	q, o, asked, key, known := w.somewhere()
	op, source := Op(w.rng.IntN(numOps)), w.source(1+w.rng.IntN(ledgerSources))
	want := o.refusal(op, key, source)
	if !known {
		want = ErrInterface
	}
	err := q.do(op, asked, source)
	w.note("%v %v %v: %v", op, asked, source, err)
	w.answer(want, o[key] == nil, err)
	if err == nil && known {
		o.apply(op, key, source)
	}
}

// set makes a SetFilter request.
func (w *ledgerWorld) set() {
	q, o, asked, key, known := w.somewhere()
	f := &askedFilter{exclude: w.rng.IntN(2) == 0, list: make(map[netip.Addr]bool)}
	var sources []netip.Addr
	for n := range ledgerSources {
		if w.rng.IntN(2) == 0 {
			sources = append(sources, w.source(1+n))
			f.list[w.source(1+n)] = true
		}
	}
	mode := Include
	if f.exclude {
		mode = Exclude
	}
	var want error
	if !known {
		want = ErrInterface
	}
	err := q.set(asked, mode, sources)
	w.note("SetFilter %v %v %v: %v", asked, mode, sources, err)
	w.answer(want, o[key] == nil, err)
	switch {
	case err != nil || !known:
	case !f.exclude && len(f.list) == 0:
		delete(o, key)
	default:
		o[key] = f
	}
}

// answer checks the answer to a request. What is not refused may still fail for
// want of an interface, if it makes a membership, or because a call failed.
func (w *ledgerWorld) answer(want error, makes bool, err error) {
	w.t.Helper()
	var refused bool
	for _, sentinel := range []error{ErrJoined, ErrNotJoined, ErrBlocked, ErrNotBlocked, ErrMode} {
		if errors.Is(err, sentinel) {
			refused = true
			if sentinel != want {
				w.t.Errorf("%v, want %v", err, want)
			}
		}
	}
	switch {
	case want != nil && err == nil:
		w.t.Errorf("accepted, want %v", want)
	case want != nil && want != ErrInterface && !refused:
		w.t.Errorf("%v, want %v", err, want)
	case want == nil && err != nil && !w.troubled && !(makes && errors.Is(err, ErrInterface)):
		w.t.Errorf("%v, want success", err)
	}
}

// refusal says what a request is refused with, by the table.
func (o askedOracle) refusal(op Op, g Group, source netip.Addr) error {
	f := o[g]
	switch {
	case f == nil && (op == OpJoin || op == OpJoinSource):
		return nil
	case f == nil:
		return ErrNotJoined
	case op == OpLeave:
		return nil
	case f.exclude:
		switch {
		case op == OpJoin:
			return ErrJoined
		case op == OpBlock && f.list[source]:
			return ErrBlocked
		case op == OpUnblock && !f.list[source]:
			return ErrNotBlocked
		case op == OpBlock || op == OpUnblock:
			return nil
		}
		return ErrMode
	case op == OpJoinSource && f.list[source]:
		return ErrJoined
	case op == OpLeaveSource && !f.list[source]:
		return ErrNotJoined
	case op == OpJoinSource || op == OpLeaveSource:
		return nil
	}
	return ErrMode
}

func (o askedOracle) apply(op Op, g Group, source netip.Addr) {
	switch op {
	case OpJoin:
		o[g] = &askedFilter{exclude: true, list: make(map[netip.Addr]bool)}
	case OpJoinSource:
		if o[g] == nil {
			o[g] = &askedFilter{list: make(map[netip.Addr]bool)}
		}
		o[g].list[source] = true
	case OpBlock:
		o[g].list[source] = true
	case OpUnblock:
		delete(o[g].list, source)
	case OpLeaveSource:
		if delete(o[g].list, source); len(o[g].list) == 0 {
			delete(o, g)
		}
	case OpLeave:
		delete(o, g)
	}
}

// link does something to one of two interfaces.
func (w *ledgerWorld) link() {
	ifname := []string{"eth0", "eth1"}[w.rng.IntN(2)]
	index, err := w.host.Index(ifname)
	if err != nil {
		w.recreate(ifname)
		return
	}
	switch n := w.rng.IntN(10); n {
	case 0:
		w.note("%s is deleted", ifname)
		w.leaveStranger()
		w.host.remove(index)
	case 1:
		w.note("%s is deleted, and made again with the same index", ifname)
		w.leaveStranger()
		w.host.remove(index)
		w.host.add(index, ifname)
		w.meetStranger()
	case 2:
		w.note("%s is deleted, and made again with another index", ifname)
		w.leaveStranger()
		w.host.remove(index)
		w.recreate(ifname)
	case 3, 4:
		w.note("%s down or up", ifname)
		w.down[ifname] = !w.down[ifname]
		w.host.setUp(index, !w.down[ifname])
	case 5:
		w.note("%s without a carrier, and with one", ifname)
		w.host.setCarrier(index, false)
		w.host.setCarrier(index, true)
	case 6:
		w.note("%s has another MTU, and its own again", ifname)
		w.leaveStranger()
		w.host.setMTU(index, 1000)
		w.host.setMTU(index, 1500)
		w.meetStranger()
	case 7:
		w.note("%s without IPv6, and with it", ifname)
		w.leaveStranger()
		w.host.setIPv6(index, false)
		w.host.setIPv6(index, true)
		w.meetStranger()
	case 8:
		w.note("the machine slept")
		w.host.wake()
	case 9:
		w.host.setDefault(2 + w.rng.IntN(3))
		w.note("the default route is by %d", w.host.defaultRoute)
	}
}

// leaveStranger ends the other program, which knows nothing of what comes.
func (w *ledgerWorld) leaveStranger() {
	if w.stranger != nil {
		w.stranger.Close()
	}
}

func (w *ledgerWorld) recreate(ifname string) {
	index := 100 + w.rng.IntN(20)
	for w.host.links[index].Index != 0 {
		index++
	}
	w.note("%s is made, with index %d", ifname, index)
	w.down[ifname] = false
	w.host.add(index, ifname)
	w.meetStranger()
}

// check checks what must always hold.
func (w *ledgerWorld) check() {
	w.t.Helper()
	synctest.Wait()
	for i, q := range w.members {
		w.compare(q, w.oracles[i])
		q.mu.Lock()
		for _, l := range q.sockets.ledgers(netip.Addr{}) {
			if s := disagreement(l, w.socketOf(l)); s != "" {
				w.t.Error(s)
			}
		}
		q.mu.Unlock()
	}
	if harm := w.host.kernel.Harmed(); len(harm) > 0 {
		w.t.Errorf("harm: %v", harm)
	}
}

// compare compares what is asked for with the oracle.
func (w *ledgerWorld) compare(q *requests, o askedOracle) {
	w.t.Helper()
	got := make(map[Group]string)
	for _, m := range q.filter.Memberships() {
		got[m.Group] = fmt.Sprint(m.Mode, m.Sources)
	}
	want := make(map[Group]string)
	for g, f := range o {
		mode := Include
		if f.exclude {
			mode = Exclude
		}
		want[g] = fmt.Sprint(mode, slices.SortedFunc(maps.Keys(f.list), netip.Addr.Compare))
	}
	if !maps.Equal(got, want) {
		w.t.Errorf("asked for %v, want %v", got, want)
	}
}

func (w *ledgerWorld) socketOf(l *ledger) *kerneltest.Socket {
	return l.kernel.sock.(modelSocket).Socket
}

// mend brings all interfaces back, lets time go by, and checks that then what is
// held and heard is what is asked for.
func (w *ledgerWorld) mend() {
	w.t.Helper()
	w.note("all is well again")
	for _, ifname := range []string{"eth0", "eth1"} {
		if _, err := w.host.Index(ifname); err != nil {
			w.recreate(ifname)
		}
		index, _ := w.host.Index(ifname)
		w.host.setUp(index, true)
		w.down[ifname] = false
	}
	index, _ := w.host.Index("eth0")
	w.host.setDefault(index)
	for range 10 { // calls that were to fail have failed
		w.host.kernel.Socket(w.ipv6).Getsockopt(0, 0, nil)
	}
	w.troubled = false
	time.Sleep(2 * time.Minute)
	w.check()
	for i, q := range w.members {
		for addr := range ledgerGroups {
			w.compareHeard(i, q, w.group(addr))
		}
		q.mu.Lock()
		for _, l := range q.sockets.ledgers(netip.Addr{}) {
			w.compareHeld(l)
		}
		q.mu.Unlock()
		for _, m := range q.memberships() {
			if m.Pending && m.Group.Interface != "" {
				w.t.Errorf("%v", m)
			}
		}
	}
}

// compareHeld checks that the interfaces have what the socket has, too.
func (w *ledgerWorld) compareHeld(l *ledger) {
	w.t.Helper()
	held := make(map[groupIndex]bool)
	for _, m := range w.socketOf(l).Memberships() {
		// BSDs also keep what was joined on an interface that has gone.
		held[groupIndex{m.Group, m.Interface}] = held[groupIndex{m.Group, m.Interface}] || m.Held
	}
	l.each(func(addr netip.Addr, e *entry) {
		if e.trust != exact || !held[groupIndex{addr, e.index}] {
			w.t.Errorf("%v%%%d is not to be relied on: %v", addr, e.index, e.trust)
		}
	})
}

// compareHeard checks who is heard on each interface.
func (w *ledgerWorld) compareHeard(port int, q *requests, group netip.Addr) {
	w.t.Helper()
	o := w.oracles[port]
	for _, ifname := range []string{"eth0", "eth1"} {
		index, _ := w.host.Index(ifname)
		f := o[Group{group, ifname}]
		if f == nil {
			f = o[Group{group, everyInterface}]
		}
		if f == nil && o[Group{group, ""}] != nil && routedTo(q, group) == ifname {
			f = o[Group{group, ""}]
		}
		for n := range ledgerSources + 1 {
			source := w.source(1 + n)
			want := 0
			if f != nil && f.allows(source) {
				want = 1
			}
			if got := w.hears(port, index, group, source); got != want {
				w.t.Errorf("%v from %v on %s is heard %d times, want %d", group, source, ifname, got, want)
			}
		}
	}
	// A membership without an interface is somewhere, unless the route leads to
	// where the group has another one.
	if routed := o[Group{group, ""}]; routed != nil && o[Group{group, "eth0"}] == nil && routedTo(q, group) == "" {
		w.t.Errorf("%v is nowhere, and the route leads to eth0", group)
	}
}

func routedTo(q *requests, group netip.Addr) string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.routedTo(group)
}

func (w *ledgerWorld) hears(port, index int, group, source netip.Addr) int {
	if w.pool != nil {
		return w.pool.hears(w.pool.on(5000+port), index, group, source)
	}
	if w.conn.hears(index, group, source) {
		return 1
	}
	return 0
}

// A ledger forgets groups that were left.
func TestLedgerForgets(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		c, _, _ := newModelConn(t, y, ipv6, quiet)
		l := &c.Conn.ledger
		for range 3 {
			c.must(c.set(c.include("eth0", 1)))
			c.must(c.Join(c.group("eth1")))
			if l.groups.live != 1 || l.size != 2 {
				t.Errorf("%d groups, %d entries", l.groups.live, l.size)
			}
			c.must(c.Leave(c.group("eth0")))
			c.must(c.Leave(c.group("eth1")))
			if l.groups.live != 0 || l.size != 0 || len(c.addrs()) != 0 {
				t.Errorf("%d groups, %d entries, %d addresses when all were left", l.groups.live, l.size, len(c.addrs()))
			}
		}
	})
}
