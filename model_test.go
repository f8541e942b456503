//go:build !plan9

package mcast

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.com/mcast/internal/kerneltest"
	"example.com/mcast/internal/netif"
)

// Here a Conn or a Pool makes its requests of a model of any system's kernel,
// on a host whose interfaces come and go as the test says. The model's time is
// that of the test, which in a test of eachModel is a bubble of package
// synctest: waiting takes no time there.

// A modelSystem is a kernel, and how the library speaks to it.
type modelSystem struct {
	name     string
	kernel   func() *kerneltest.Kernel
	platform *platform
	change   func(*kerneltest.Kernel) // nil: the kernel as it is
	only4    bool                     // it has no sources in IPv6
	noFull   bool                     // it has no full filter
}

var (
	onLinux   = modelSystem{name: "linux", kernel: kerneltest.Linux, platform: linuxPlatform(8, binary.LittleEndian)}
	onDarwin  = modelSystem{name: "darwin", kernel: kerneltest.Darwin, platform: darwinPlatform()}
	onFreeBSD = modelSystem{name: "freebsd", kernel: kerneltest.FreeBSD, platform: freebsdPlatform(8, 8)}
	onWindows = modelSystem{name: "windows", kernel: kerneltest.Windows, platform: windowsPlatform(8)}

	fourSystems = []modelSystem{onLinux, onDarwin, onFreeBSD, onWindows}
)

// with is the system with something changed.
func (y modelSystem) with(what string, change func(*kerneltest.Kernel)) modelSystem {
	first := y.change
	y.name += " " + what
	y.change = func(k *kerneltest.Kernel) {
		if first != nil {
			first(k)
		}
		change(k)
	}
	return y
}

// eachModel runs a test for each system and family, in a bubble. No test may do
// harm to the system.
func eachModel(t *testing.T, systems []modelSystem, test func(t *testing.T, y modelSystem, ipv6 bool)) {
	t.Helper()
	for _, y := range systems {
		for _, ipv6 := range []bool{false, true} {
			if ipv6 && y.only4 {
				continue
			}
			t.Run(y.name+" "+endpoint{ipv6: ipv6}.network(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { test(t, y, ipv6) })
			})
		}
	}
}

// A modelHost is the host of a model kernel. It keeps the kernel in step with
// its interfaces, and tells of them what the real system would.
type modelHost struct {
	t      *testing.T
	system modelSystem
	kernel *kerneltest.Kernel
	number uint64 // of the namespace

	// Where the routing table leads; 0: nowhere. What is not in routes goes by
	// defaultRoute.
	routes       map[netip.Addr]int
	defaultRoute int

	aliases map[string]int // other names of interfaces, by which they are found

	blind   bool  // no limit can be read
	noWatch error // why the interfaces cannot be watched, if not nil
	unclear error // what all questions are answered with, if not nil

	mu      sync.Mutex
	links   map[int]modelLink
	asked   []netip.Addr // by Route
	sources []*modelSource
	now     time.Time // the kernel's
}

// A modelLink is an interface of a modelHost.
type modelLink struct {
	netif.Interface
	addrs    []netip.Addr
	carriers int // how often the carrier came or went
	mtu      int
	noIPv6   bool // disable_ipv6
}

var modelNamespaces atomic.Uint64

// newModelHost returns a host with the interfaces lo, eth0 and eth1, 1 to 3, of
// which eth0 has the default route.
func newModelHost(t *testing.T, y modelSystem) *modelHost {
	t.Helper()
	h := &modelHost{
		t: t, system: y, kernel: y.kernel(), number: 1<<60 + modelNamespaces.Add(1), now: time.Now(),
		routes: make(map[netip.Addr]int), defaultRoute: 2, links: make(map[int]modelLink),
	}
	if y.change != nil {
		y.change(h.kernel)
	}
	for index, i := range h.kernel.Interfaces {
		h.links[index] = modelLink{addrs: i.Addrs, carriers: 1, mtu: 1500, Interface: netif.Interface{
			Index: index, Name: i.Name, Up: i.Up, Carrier: true, Multicast: !i.Loopback, Loopback: i.Loopback, IPv6: true,
		}}
	}
	t.Cleanup(func() {
		if harm := h.kernel.Harmed(); len(harm) > 0 {
			t.Errorf("harm: %s", strings.Join(harm, "\n      "))
		}
	})
	return h
}

// tick has the kernel's time go as far as the test's.
func (h *modelHost) tick() {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	h.kernel.Advance(now.Sub(h.now))
	h.now = now
}

// add adds an interface that is up, has a carrier and addresses.
func (h *modelHost) add(index int, name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.put(modelLink{
		addrs: []netip.Addr{
			netip.AddrFrom4([4]byte{10, byte(index >> 16), byte(index >> 8), byte(index)}),
			netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 13: byte(index >> 16), 14: byte(index >> 8), 15: byte(index)}),
		},
		carriers: 1, mtu: 1500,
		Interface: netif.Interface{Index: index, Name: name, Up: true, Carrier: true, Multicast: true, IPv6: true},
	})
}

// remove takes an interface away, which goes down first.
func (h *modelHost) remove(index int) {
	h.change(index, func(l *modelLink) { l.Up = false })
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.links, index)
	h.kernel.RemoveInterface(index)
	h.tell(netif.Change{Interface: netif.Interface{Index: index}, Gone: true})
}

func (h *modelHost) rename(index int, name string) {
	h.change(index, func(l *modelLink) { l.Name = name })
}

func (h *modelHost) setUp(index int, up bool) {
	h.change(index, func(l *modelLink) { l.Up = up })
}

func (h *modelHost) setCarrier(index int, carrier bool) {
	h.change(index, func(l *modelLink) {
		l.Carrier = carrier
		l.carriers++
	})
}

func (h *modelHost) setMTU(index, mtu int) {
	h.change(index, func(l *modelLink) { l.mtu, l.IPv6 = mtu, mtu >= 1280 && !l.noIPv6 })
}

func (h *modelHost) setIPv6(index int, on bool) {
	h.change(index, func(l *modelLink) { l.noIPv6, l.IPv6Disabled, l.IPv6 = !on, !on, on && l.mtu >= 1280 })
}

// setRoute has the routing table lead somewhere else; 0: nowhere.
func (h *modelHost) setRoute(to netip.Addr, index int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.routes[to] = index
	h.tell(netif.Change{Moved: true})
}

// setDefault has the default route lead somewhere else, of which there is no news;
// 0: nowhere.
func (h *modelHost) setDefault(index int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.defaultRoute = index
}

// wake is the end of a sleep.
func (h *modelHost) wake() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tell(netif.Change{Woke: true})
}

func (h *modelHost) change(index int, change func(*modelLink)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if l, ok := h.links[index]; ok {
		change(&l)
		h.put(l)
	}
}

// put has an interface be as l says, in the kernel too.
func (h *modelHost) put(l modelLink) {
	h.links[l.Index] = l
	i := kerneltest.Interface{Name: l.Name, Addrs: l.addrs, Up: l.Up, Loopback: l.Loopback, MTU: l.mtu, NoIPv6: l.noIPv6}
	switch old, ok := h.kernel.Interfaces[l.Index]; {
	case !ok, old.Name != i.Name:
		h.kernel.AddInterface(l.Index, i)
	default:
		up := i.Up
		if h.system.platform.name == "windows" {
			up = up && l.Carrier
		}
		h.kernel.SetUp(l.Index, up)
		h.kernel.SetMTU(l.Index, i.MTU)
		h.kernel.SetIPv6(l.Index, !i.NoIPv6)
	}
	h.tell(h.told(l))
}

// told is what the system tells of an interface.
func (h *modelHost) told(l modelLink) netif.Change {
	c := netif.Change{Interface: l.Interface}
	switch h.system.platform.name {
	case "linux":
		c.Carriers = l.carriers
	case "windows": // without a carrier it is not up
		c.Up, c.Carrier = l.Up && l.Carrier, true
	}
	if h.system.platform.name != "linux" {
		c.IPv6 = true
	}
	return c
}

func (h *modelHost) tell(c netif.Change) {
	for _, s := range h.sources {
		s.news <- []netif.Change{c}
	}
}

// guard does on a model of Linux what the library's guard does on Linux: it
// makes the same membership on a socket that stays open.
func (h *modelHost) guard(_ *kernel, at groupIndex, held sourceFilter) error {
	if h.system.platform.name != "linux" {
		return nil
	}
	s := h.kernel.Socket(at.addr.Is6())
	s.Spare()
	l := newLedger(h.system.platform, modelSocket{s, h}, h, at.addr.Is6())
	_, err := l.make(at, held)
	return err
}

// The methods of [netif.Host].

func (h *modelHost) Index(name string) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.unclear != nil {
		return 0, h.unclear
	}
	for _, index := range slices.Sorted(maps.Keys(h.links)) {
		if h.links[index].Name == name || h.aliases[name] == index {
			return index, nil
		}
	}
	return 0, fmt.Errorf("%q: %w", name, netif.ErrNotFound)
}

func (h *modelHost) Name(index int) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.unclear != nil {
		return "", h.unclear
	}
	if l, ok := h.links[index]; ok {
		return l.Name, nil
	}
	return "", fmt.Errorf("%d: %w", index, netif.ErrNotFound)
}

func (h *modelHost) Interfaces() (all []netif.Interface, _ error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.unclear != nil {
		return nil, h.unclear
	}
	for _, index := range slices.Sorted(maps.Keys(h.links)) {
		all = append(all, h.told(h.links[index]).Interface)
	}
	return all, nil
}

func (h *modelHost) Address4(index int) (netip.Addr, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range h.links[index].addrs {
		if a.Is4() {
			return a, true
		}
	}
	return netip.Addr{}, false
}

var errNoRoute = errors.New("network is unreachable")

func (h *modelHost) Route(to netip.Addr) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.unclear != nil {
		return 0, h.unclear
	}
	h.asked = append(h.asked, to)
	index, ok := h.routes[to]
	if !ok {
		index = h.defaultRoute
	}
	if l, ok := h.links[index]; !ok || !l.Up {
		return 0, errNoRoute
	}
	return index, nil
}

func (h *modelHost) DefaultRoutes(bool) []int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.defaultRoute == 0 {
		return nil
	}
	return []int{h.defaultRoute}
}

func (h *modelHost) Limit(knob string) (int, bool) {
	if h.blind {
		return 0, false
	}
	n, ok := map[string]int{
		"net.ipv4.igmp_max_memberships": h.kernel.MaxMemberships,
		"net.ipv4.igmp_max_msf":         h.kernel.MaxMSF4,
		"net.ipv6.mld_max_msf":          h.kernel.MaxMSF6,
		"net.core.optmem_max":           h.kernel.OptMem,
	}[knob]
	return n, ok
}

func (h *modelHost) Namespace() uint64 { return h.number }

func (h *modelHost) Watch() (netif.Source, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.noWatch != nil {
		return nil, h.noWatch
	}
	s := &modelSource{host: h, news: make(chan []netif.Change, 1000), closed: make(chan struct{})}
	var first []netif.Change
	for _, index := range slices.Sorted(maps.Keys(h.links)) {
		first = append(first, h.told(h.links[index]))
	}
	s.news <- first
	h.sources = append(h.sources, s)
	return s, nil
}

// A modelSource has the news of a modelHost.
type modelSource struct {
	host   *modelHost
	news   chan []netif.Change
	closed chan struct{}
}

func (s *modelSource) Read() ([]netif.Change, error) {
	select {
	case changes := <-s.news:
		return changes, nil
	case <-s.closed:
		return nil, os.ErrClosed
	}
}

func (s *modelSource) Close() error {
	s.host.mu.Lock()
	defer s.host.mu.Unlock()
	if i := slices.Index(s.host.sources, s); i >= 0 {
		s.host.sources = slices.Delete(s.host.sources, i, i+1)
		close(s.closed)
	}
	return nil
}

// A modelSocket is a model's socket behind the library's seam.
type modelSocket struct {
	*kerneltest.Socket
	host *modelHost
}

func (s modelSocket) setsockopt(level, name int, value []byte) error {
	s.host.tick()
	return s.Setsockopt(level, name, value)
}

func (s modelSocket) getsockopt(level, name int, value []byte) (int, error) {
	s.host.tick()
	return s.Getsockopt(level, name, value)
}

func (s modelSocket) ioctl(code uint32, in, out []byte) (int, error) {
	s.host.tick()
	return s.Ioctl(code, in, out)
}

// A modelConn is a Conn on a model's socket. It reads nothing.
type modelConn struct {
	*Conn
	t      *testing.T
	host   *modelHost
	kernel *kerneltest.Kernel
	socket *kerneltest.Socket

	told *modelEvents
}

// modelEvents are those that a program was told.
type modelEvents struct {
	mu  sync.Mutex
	all []Event
}

func (e *modelEvents) note(what Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, what)
}

// take returns the events since it was called last, in words.
func (e *modelEvents) take() (words []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, what := range e.all {
		words = append(words, what.String())
	}
	e.all = nil
	return words
}

// newModelConn opens a Conn on a host of its own.
func newModelConn(t *testing.T, y modelSystem, ipv6 bool, cfg *Config) (*modelConn, *modelHost, *kerneltest.Socket) {
	t.Helper()
	h := newModelHost(t, y)
	c := h.open(endpoint{ipv6: ipv6}, cfg)
	return c, h, c.socket
}

// withNotes is a Config that also notes the events.
func withNotes(cfg *Config) (*Config, *modelEvents) {
	told := new(modelEvents)
	own := cfg.withDefaults()
	theirs := own.OnEvent
	own.OnEvent = func(e Event) {
		told.note(e)
		if theirs != nil {
			theirs(e)
		}
	}
	return own, told
}

func (h *modelHost) rules() *Rules {
	if h.system.platform.name == "windows" {
		return WindowsRules
	}
	return UnixRules
}

// open opens a Conn as wrap does, bound to at.
func (h *modelHost) open(at endpoint, cfg *Config) *modelConn {
	h.t.Helper()
	return h.wrap(h.kernel.Socket(at.ipv6), at, cfg)
}

// wrap makes a Conn of a socket that may have been used before.
func (h *modelHost) wrap(socket *kerneltest.Socket, at endpoint, cfg *Config) *modelConn {
	h.t.Helper()
	own, told := withNotes(cfg)
	c := &modelConn{Conn: new(Conn), t: h.t, host: h, kernel: h.kernel, socket: socket, told: told}
	c.sock = modelSocket{socket, h}
	c.init(h.system.platform, h, at, own)
	c.filter.Rules = h.rules()
	c.Conn.ledger = newLedger(h.system.platform, c.sock, h, at.ipv6)
	c.Conn.ledger.kernel.guard = h.guard
	c.sockets = &oneSocket{&c.Conn.ledger}
	c.events = &events{cfg: own}
	c.delivery.init(own, h, at.group)
	if err := c.Conn.ledger.prepare(&c.origin, own, at.group); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(c.Close)
	return c
}

// Close closes the Conn, once.
func (c *modelConn) Close() {
	if c.end() {
		c.host.tick()
		c.socket.Close()
		c.Conn.events.end()
	}
}

// hears reports whether a datagram would be handed over: by the kernel, and by
// the read path.
func (c *modelConn) hears(index int, group, source netip.Addr) bool {
	return c.socket.Delivers(index, group, source) && admits(&c.Conn.delivery, &c.Conn.ledger, index, group, source)
}

func admits(d *delivery, l *ledger, index int, group, source netip.Addr) bool {
	m := &Message{Group: Group{Addr: group}, Index: index, Source: netip.AddrPortFrom(source, 5000)}
	return d.admit(l, m, new(tally))
}

// A modelPool is a Pool on a model's sockets. It reads nothing.
type modelPool struct {
	*Pool
	host *modelHost
	told *modelEvents
}

// openPool opens a Pool on port 5000.
func (h *modelHost) openPool(ipv6 bool, cfg *Config) *modelPool {
	h.t.Helper()
	own, told := withNotes(cfg)
	p := &Pool{ipv6: ipv6, cfg: own, host: h, ports: make(map[int]*Members), events: &events{cfg: own}, anchor: modelAnchor{}}
	p.sockets = &modelPoolSockets{host: h}
	p.delivery.init(own, h, Group{})
	m := &modelPool{p, h, told}
	p.Members = m.on(5000)
	h.t.Cleanup(func() { p.Close() })
	return m
}

// on is [Pool.On] for the model's system.
func (p *modelPool) on(port int) *Members {
	m := p.Pool.on(port)
	m.platform, m.filter.Rules = p.host.system.platform, p.host.rules()
	return m
}

// hears counts how many of the sockets on a port would hand a datagram over.
func (p *modelPool) hears(m *Members, index int, group, source netip.Addr) (n int) {
	for _, s := range m.all() {
		bound := !s.addr.IsValid() || s.addr == group
		if bound && s.socket.(modelPoolSocket).Delivers(index, group, source) && admits(&p.Pool.delivery, s.ledger, index, group, source) {
			n++
		}
	}
	return n
}

// modelPoolSockets open a Pool's sockets on a model.
type modelPoolSockets struct {
	poolSockets // the methods for reading, which nobody calls
	host        *modelHost
	fail        error // of the next sockets that are opened
}

func (p *modelPoolSockets) add(s *shard, at endpoint, pool *Pool) error {
	if p.fail != nil {
		return p.fail
	}
	sock := p.host.kernel.Socket(at.ipv6)
	l := newLedger(p.host.system.platform, modelSocket{sock, p.host}, p.host, at.ipv6)
	l.kernel.guard = p.host.guard
	s.ledger, s.socket = &l, modelPoolSocket{sock, p.host}
	return l.prepare(new(origin), pool.cfg, at.group)
}

func (p *modelPoolSockets) remove(s *shard) { s.socket.close() }
func (p *modelPoolSockets) close() error    { return nil }

type modelPoolSocket struct {
	*kerneltest.Socket
	host *modelHost
}

func (s modelPoolSocket) drops() uint64 { return 0 }

func (s modelPoolSocket) close() error {
	s.host.tick()
	s.Close()
	return nil
}

type modelAnchor struct{}

func (modelAnchor) raw() syscall.RawConn { return nil }
func (modelAnchor) port() int            { return 5000 }
func (modelAnchor) close() error         { return nil }

// inKernel is what the kernel holds for a socket: by group, index and filter.
// On the BSDs one of an interface that is gone may stand beside another.
func inKernel(s *kerneltest.Socket) map[groupIndex]sourceFilter {
	held := make(map[groupIndex]sourceFilter)
	for _, m := range s.Memberships() {
		mode := Include
		if m.Exclude {
			mode = Exclude
		}
		at := groupIndex{m.Group, m.Interface}
		if _, both := held[at]; !both || m.Held {
			held[at] = newSourceFilter(mode, m.Sources)
		}
	}
	return held
}

// disagreement says where a ledger's exact entries are not what the kernel has,
// or the kernel has what is in no entry; "" if nowhere. What the kernel keeps
// of interfaces that are gone does not count.
func disagreement(l *ledger, s *kerneltest.Socket) string {
	var wrong []string
	held := inKernel(s)
	l.each(func(addr netip.Addr, e *entry) {
		at := groupIndex{addr, e.index}
		if f, ok := held[at]; e.trust == exact && (!ok || !f.equal(e.held)) {
			wrong = append(wrong, fmt.Sprintf("%v%%%d: the ledger says %v, the kernel %v", addr, e.index, e.held, f))
		}
		delete(held, at)
	})
	for _, m := range s.Memberships() {
		at := groupIndex{m.Group, m.Interface}
		if f, ok := held[at]; ok && m.Held {
			wrong = append(wrong, fmt.Sprintf("%v%%%d: the kernel has %v, the ledger nothing", at.addr, at.index, f))
		}
	}
	slices.Sort(wrong)
	return strings.Join(wrong, "\n")
}
