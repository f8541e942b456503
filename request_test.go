//go:build !plan9

package mcast

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.com/mcast/internal/kerneltest"
)

// Every system's requests are made here, byte for byte, of a model of its kernel.

// A requestSystem is a kernel and how the library speaks to it.
type requestSystem struct {
	name     string
	kernel   func() *kerneltest.Kernel
	platform *platform
	change   func(*kerneltest.Kernel) // nil: the kernel as it is

	only4  bool // without MCAST_* there are no sources in IPv6
	noRead bool // there is no full filter, so that SystemFilter is unsupported
}

var (
	onLinux   = requestSystem{name: "linux", kernel: kerneltest.Linux, platform: linuxPlatform(8, binary.LittleEndian)}
	onDarwin  = requestSystem{name: "darwin", kernel: kerneltest.Darwin, platform: darwinPlatform()}
	onFreeBSD = requestSystem{name: "freebsd", kernel: kerneltest.FreeBSD, platform: freebsdPlatform(8, 8)}
	onWindows = requestSystem{name: "windows", kernel: kerneltest.Windows, platform: windowsPlatform(8)}

	fourSystems = []requestSystem{onLinux, onDarwin, onFreeBSD, onWindows}
)

// with is the system with something changed.
func (y requestSystem) with(what string, change func(*kerneltest.Kernel)) requestSystem {
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

func withoutMCAST(y requestSystem) requestSystem {
	y = y.with("without MCAST", func(k *kerneltest.Kernel) { k.NoMCAST = true })
	y.only4 = true
	return y
}

func withoutFull(y requestSystem) requestSystem {
	y = y.with("without full filter", func(k *kerneltest.Kernel) { k.NoMSFilter, k.NoIoctl = true, true })
	y.noRead = true
	return y
}

// requestSystems are all there is a model of.
func requestSystems() []requestSystem {
	word32 := func(k *kerneltest.Kernel) { k.Word = 32 }
	big := func(k *kerneltest.Kernel) { k.Order = binary.BigEndian }
	on := func(y requestSystem, p *platform, what string, change func(*kerneltest.Kernel)) requestSystem {
		y.platform = p
		return y.with(what, change)
	}
	linux32be := on(onLinux, linuxPlatform(4, binary.BigEndian), "32-bit", word32).with("big-endian", big)
	return []requestSystem{
		onLinux,
		on(onLinux, linuxPlatform(4, binary.LittleEndian), "32-bit", word32),
		on(onLinux, linuxPlatform(8, binary.BigEndian), "big-endian", big),
		linux32be,
		onLinux.with("4.19", func(k *kerneltest.Kernel) { k.NoIPv6MulticastAll = true }),
		withoutMCAST(onLinux),
		withoutMCAST(linux32be),
		withoutFull(onLinux),
		onDarwin,
		onDarwin.with("with 8n bytes", func(k *kerneltest.Kernel) { k.ByteCounts, k.ByteCountStep = 5, 8 }),
		withoutMCAST(onDarwin),
		withoutFull(onDarwin),
		onFreeBSD,
		on(onFreeBSD, freebsdPlatform(4, 4), "386", word32),
		withoutMCAST(onFreeBSD),
		onWindows,
		on(onWindows, windowsPlatform(4), "32-bit", word32),
		onWindows.with("without join first", func(k *kerneltest.Kernel) { k.FilterNeedsJoin = false }),
		onWindows.with("without IP", func(k *kerneltest.Kernel) { k.NoIP = true }),
		withoutFull(onWindows),
	}
}

// eachSystem runs a test for each system and family.
func eachSystem(t *testing.T, systems []requestSystem, test func(t *testing.T, y requestSystem, ipv6 bool)) {
	t.Helper()
	for _, y := range systems {
		for _, ipv6 := range []bool{false, true} {
			if ipv6 && y.only4 {
				continue
			}
			t.Run(y.name+map[bool]string{false: " udp4", true: " udp6"}[ipv6], func(t *testing.T) {
				t.Parallel()
				test(t, y, ipv6)
			})
		}
	}
}

// A kernelModel is the requests of one socket and the kernel that they reach.
type kernelModel struct {
	*requests
	t     *testing.T
	y     requestSystem
	k     *kerneltest.Kernel
	sock  *kerneltest.Socket
	host  *modelHost
	calls int             // of the kernel, by fault's count
	slept []time.Duration // between tries

	// fault, if not nil, is asked for the answer of each call.
	fault func(call, level, name int) error
}

// modelSocket is a model's socket behind the library's seam.
type modelSocket struct{ *kerneltest.Socket }

func (s modelSocket) setsockopt(level, name int, value []byte) error {
	return s.Setsockopt(level, name, value)
}

func (s modelSocket) getsockopt(level, name int, value []byte) (int, error) {
	return s.Getsockopt(level, name, value)
}

func (s modelSocket) ioctl(code uint32, in, out []byte) (int, error) { return s.Ioctl(code, in, out) }

// A modelHost has the interfaces of a model. Everything is routed to eth0 but
// what routes says; 0 is no route.
type modelHost struct {
	k      *kerneltest.Kernel
	routes map[netip.Addr]int
	asked  []netip.Addr // by route
	blind  bool         // no limit can be read
}

func (h *modelHost) index(name string) (int, error) {
	for i, ifi := range h.k.Interfaces {
		if ifi.Name == name {
			return i, nil
		}
	}
	return 0, errors.New("no such interface")
}

func (h *modelHost) name(index int) string {
	if ifi, ok := h.k.Interfaces[index]; ok {
		return ifi.Name
	}
	return strconv.Itoa(index)
}

func (h *modelHost) exists(index int) bool { _, ok := h.k.Interfaces[index]; return ok }

func (h *modelHost) address4(index int) (netip.Addr, bool) {
	for _, a := range h.k.Interfaces[index].Addrs {
		if a.Is4() {
			return a, true
		}
	}
	return netip.Addr{}, false
}

var errNoRoute = errors.New("network is unreachable")

func (h *modelHost) route(to netip.Addr) (int, error) {
	h.asked = append(h.asked, to)
	i, ok := h.routes[to]
	switch {
	case !ok:
		return 2, nil
	case i == 0:
		return 0, errNoRoute
	}
	return i, nil
}

func (h *modelHost) limit(knob string) (int, bool) {
	n, ok := map[string]int{
		"net.ipv4.igmp_max_memberships": h.k.MaxMemberships,
		"net.ipv4.igmp_max_msf":         h.k.MaxMSF4,
		"net.ipv6.mld_max_msf":          h.k.MaxMSF6,
		"net.core.optmem_max":           h.k.OptMem,
	}[knob]
	return n, ok && !h.blind
}

// newModel opens a socket on a model of the system.
func newModel(t *testing.T, y requestSystem, ipv6 bool) *kernelModel {
	t.Helper()
	k := y.kernel()
	if y.change != nil {
		y.change(k)
	}
	m := &kernelModel{t: t, y: y, k: k, host: &modelHost{k: k}}
	k.Fault = func(level, name int, _ []byte) error {
		m.calls++
		if m.fault != nil {
			return m.fault(m.calls, level, name)
		}
		return nil
	}
	m.sock, m.requests = m.open(ipv6)
	return m
}

// open opens a socket; there may be others on the same host.
func (m *kernelModel) open(ipv6 bool) (*kerneltest.Socket, *requests) {
	s := m.k.Socket(ipv6)
	q := &requests{ipv6: ipv6, noWatch: true}
	q.filter.Rules = UnixRules
	if m.y.platform.name == "windows" {
		q.filter.Rules = WindowsRules
	}
	q.kernel.platform, q.kernel.sock, q.kernel.host = m.y.platform, modelSocket{s}, m.host
	q.kernel.sleep = func(d time.Duration) { m.slept = append(m.slept, d) }
	q.kernel.hearOnlyOwn(ipv6)
	return s, q
}

// during counts the calls that f makes of the kernel.
func (m *kernelModel) during(f func()) int {
	before := m.calls
	f()
	return m.calls - before
}

// sent are the calls that f makes of the kernel.
func (m *kernelModel) sent(f func()) []kerneltest.Request {
	before := len(m.sock.Requests())
	f()
	return m.sock.Requests()[before:]
}

// optionNames are the options of requests, with a mark for those that failed.
func optionNames(rs []kerneltest.Request) string {
	var out []string
	for _, r := range rs {
		name := r.Name
		if r.Get {
			name = "get " + name
		}
		if r.Err != nil {
			name += "!"
		}
		out = append(out, name)
	}
	return strings.Join(out, ", ")
}

// must fails the test if err is not nil.
func (m *kernelModel) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatalf("%v\n%s", err, m.log())
	}
}

// log is what the kernel was told.
func (m *kernelModel) log() string {
	lines := strings.SplitAfter(m.sock.Log(), "\n")
	lines = slices.DeleteFunc(lines, func(s string) bool { return strings.HasPrefix(s, "get ") })
	return "the kernel was told:\n" + strings.Join(lines[max(0, len(lines)-40):], "")
}

// inKernel are the memberships that the kernel has.
func (m *kernelModel) inKernel() []Membership {
	var ms []Membership
	for _, x := range m.sock.Memberships() {
		mode := Include
		if x.Exclude {
			mode = Exclude
		}
		ms = append(ms, Membership{Group: Group{x.Group, x.Interface}, Mode: mode, Sources: x.Sources})
	}
	sortMemberships(ms)
	return ms
}

func sortMemberships(ms []Membership) {
	slices.SortStableFunc(ms, func(a, b Membership) int {
		if c := a.Group.Addr.Compare(b.Group.Addr); c != 0 {
			return c
		}
		return a.Group.Interface - b.Group.Interface
	})
}

func equalMembership(a, b Membership) bool {
	return a.Group == b.Group && a.Mode == b.Mode && slices.Equal(a.Sources, b.Sources)
}

func equalMemberships(a, b []Membership) bool { return slices.EqualFunc(a, b, equalMembership) }

// told is what the kernel is told of memberships: theirs, or where it takes one
// of a group's for all interfaces the union of all, source by source.
func (y requestSystem) told(ms []Membership, ipv6 bool) (told []Membership) {
	if y.platform.name != "linux" || !ipv6 {
		return ms
	}
	for _, m := range ms {
		of := func(other Membership) bool { return other.Group.Addr == m.Group.Addr }
		var listed []netip.Addr
		mode := Include
		for _, o := range ms {
			if of(o) {
				listed = append(listed, o.Sources...)
				mode = max(mode, o.Mode)
			}
		}
		slices.SortFunc(listed, netip.Addr.Compare)
		u := Membership{Group: m.Group, Mode: mode}
		for _, s := range slices.Compact(listed) {
			anyLets := slices.ContainsFunc(ms, func(o Membership) bool {
				return of(o) && slices.Contains(o.Sources, s) == (o.Mode == Include)
			})
			if anyLets == (mode == Include) {
				u.Sources = append(u.Sources, s)
			}
		}
		told = append(told, u)
	}
	return told
}

// disagree says what filter and kernel do not agree on, and what harm was done.
func (m *kernelModel) disagree() string {
	if f, k := m.y.told(m.filter.Memberships(), m.ipv6), m.inKernel(); !equalMemberships(f, k) {
		return fmt.Sprintf("filter %v\nkernel %v", f, k)
	}
	if harm := m.k.Harmed(); len(harm) > 0 {
		return "harm: " + strings.Join(harm, "; ")
	}
	return ""
}

// check fails the test unless the memberships are want, in filter and kernel.
func (m *kernelModel) check(want ...Membership) {
	m.t.Helper()
	sortMemberships(want)
	if s := m.disagree(); s != "" {
		m.t.Fatalf("%s\n%s", s, m.log())
	}
	if got := fmt.Sprint(m.filter.Memberships()); got != fmt.Sprint(want) {
		m.t.Fatalf("memberships %s, want %v\n%s", got, want, m.log())
	}
	for _, w := range want {
		if got, err := m.system(w.Group); !m.y.noRead && (err != nil || got.String() != w.String()) {
			m.t.Fatalf("SystemFilter %v, %v, want %v\n%s", got, err, w, m.log())
		}
	}
}

// an address or its counterpart of the other family.
func (m *kernelModel) addr(v4, v6 string) netip.Addr {
	if m.ipv6 {
		return netip.MustParseAddr(v6)
	}
	return netip.MustParseAddr(v4)
}

// group is a group that is not source-specific.
func (m *kernelModel) group(index int) Group { return Group{m.addr("239.1.2.3", "ff1e::3"), index} }

// source is the nth source.
func (m *kernelModel) source(n int) netip.Addr {
	return m.addr(fmt.Sprintf("10.0.%d.%d", n>>8, n&255), fmt.Sprintf("2001:db8:1::%x", n))
}

func (m *kernelModel) sources(ns ...int) (as []netip.Addr) {
	for _, n := range ns {
		as = append(as, m.source(n))
	}
	return as
}

// upTo is 1, 2 … n.
func upTo(n int) (ns []int) {
	for i := range n {
		ns = append(ns, i+1)
	}
	return ns
}

// isLeave reports whether an option ends a membership.
func (m *kernelModel) isLeave(level, name int) bool {
	p := m.y.platform
	return name == p.mcast[OpLeave] || level == levelIP && name == p.ip[OpLeave] || level == levelIPv6 && name == p.ipv6[OpLeave]
}

// A requestOracle is the state machine as its table says, for the requests of
// one socket.
type requestOracle struct {
	machine, numbers [6][8]string
	groups           map[Group]*requestState
	emptied          map[Group]bool // by the last LeaveSource
}

type requestState struct {
	Membership
	blocked bool // a Block since the Join
	life    int  // of the interface, when the membership was made
}

func newRequestOracle(t *testing.T, rules *Rules) *requestOracle {
	t.Helper()
	grid := unixGrid
	if rules == WindowsRules {
		grid = windowsGrid
	}
	return &requestOracle{
		machine: parseGrid(t, machineGrid), numbers: parseGrid(t, grid),
		groups: map[Group]*requestState{}, emptied: map[Group]bool{},
	}
}

// column is where the tables have the answer.
func (o *requestOracle) column(g Group, source netip.Addr) int {
	s := o.groups[g]
	listed := s != nil && slices.Contains(s.Sources, source)
	switch {
	case s == nil && o.emptied[g]:
		return 1
	case s == nil:
		return 0
	case s.Mode == Include && listed:
		return 7
	case s.Mode == Include:
		return 6
	case listed:
		return 5
	case len(s.Sources) > 0:
		return 4
	case s.blocked:
		return 3
	}
	return 2
}

// answer is what the tables say: the outcome, and the number of a refusal.
func (o *requestOracle) answer(op Op, g Group, source netip.Addr) (outcome, number string) {
	c := o.column(g, source)
	return o.machine[op][c], o.numbers[op][c]
}

// apply carries an accepted request out.
func (o *requestOracle) apply(op Op, g Group, source netip.Addr) {
	outcome, _ := o.answer(op, g, source)
	s := o.groups[g]
	delete(o.emptied, g)
	switch outcome {
	case "EXCLUDE()":
		o.groups[g] = &requestState{Membership: Membership{Group: g, Mode: Exclude}}
	case "INCLUDE(s)":
		o.groups[g] = &requestState{Membership: Membership{Group: g, Mode: Include, Sources: []netip.Addr{source}}}
	case "add":
		s.Sources = append(slices.Clone(s.Sources), source)
		slices.SortFunc(s.Sources, netip.Addr.Compare)
		s.blocked = s.blocked || op == OpBlock
	case "out":
		s.Sources = slices.DeleteFunc(slices.Clone(s.Sources), func(a netip.Addr) bool { return a == source })
		if s.none() {
			delete(o.groups, g)
			o.emptied[g] = true
		}
	case "none":
		delete(o.groups, g)
	default:
		panic(outcome)
	}
}

func (o *requestOracle) set(m Membership) {
	m.Sources = slices.Clone(m.Sources)
	slices.SortFunc(m.Sources, netip.Addr.Compare)
	m.Sources = slices.Compact(m.Sources)
	delete(o.emptied, m.Group)
	if m.none() {
		delete(o.groups, m.Group)
		return
	}
	life := 0
	if s := o.groups[m.Group]; s != nil {
		life = s.life
	}
	o.groups[m.Group] = &requestState{Membership: m, blocked: m.Mode == Exclude && len(m.Sources) > 0, life: life}
}

func (o *requestOracle) allows(g Group, source netip.Addr) bool {
	s := o.groups[g]
	return s != nil && slices.Contains(s.Sources, source) == (s.Mode == Include)
}

func (o *requestOracle) memberships() []Membership {
	ms := []Membership{}
	for _, s := range o.groups {
		ms = append(ms, s.Membership)
	}
	sortMemberships(ms)
	return ms
}

// on are the interfaces on which the group is joined.
func (o *requestOracle) on(addr netip.Addr) (is []int) {
	for g := range o.groups {
		if g.Addr == addr {
			is = append(is, g.Interface)
		}
	}
	return is
}

// A requestRun makes random requests of a model and of the oracle.
type requestRun struct {
	faulty bool // calls fail
	*kernelModel
	o       *requestOracle
	rng     *rand.Rand
	seed    uint64
	history []string

	groups  []netip.Addr
	good    []netip.Addr // sources
	bad     []netip.Addr // not sources
	indexes []int        // interfaces

	checked int
}

const absent = 77 // no interface

func newRequestRun(t *testing.T, y requestSystem, ipv6 bool, seed uint64) *requestRun {
	t.Helper()
	x := &requestRun{kernelModel: newModel(t, y, ipv6), seed: seed, rng: rand.New(rand.NewPCG(seed, 4)), indexes: []int{1, 2, 3}}
	x.o = newRequestOracle(t, x.filter.Rules)
	parse := func(ss ...string) (as []netip.Addr) {
		for _, s := range ss {
			as = append(as, netip.MustParseAddr(s))
		}
		return as
	}
	// Among the sources are those that the library itself has a use for.
	if ipv6 {
		x.groups = parse("ff1e::1", "ff02::1234", "ff3e::8000:1")
		x.good = parse("2001:db8::1", "2001:db8::2", "2001:db8::3", "fe80::9", "2001:db8::bad")
		x.bad = append(parse("::", "ff1e::1", "10.0.0.1"), netip.Addr{})
		x.host.routes = map[netip.Addr]int{x.good[1]: 3, x.good[4]: 0, x.groups[1]: 1}
	} else {
		x.groups = parse("239.1.1.1", "224.0.0.251", "232.1.1.1")
		x.good = parse("192.0.2.1", "10.0.0.2", "10.0.0.3", "169.254.0.9", "10.66.6.6")
		x.bad = append(parse("0.0.0.0", "224.0.0.1", "255.255.255.255", "2001:db8::1"), netip.Addr{})
		x.host.routes = map[netip.Addr]int{x.good[1]: 3, x.good[4]: 0, x.groups[1]: 1}
	}
	x.anySource = seed%2 == 0

	// Another program on the host hears everything, which is what leaks.
	_, other := x.open(ipv6)
	other.anySource = true
	for _, a := range x.groups {
		for _, i := range x.indexes {
			x.must(other.do(OpJoin, Group{a, i}, netip.Addr{}))
		}
	}
	return x
}

func (x *requestRun) fatalf(format string, args ...any) {
	x.t.Helper()
	x.t.Fatalf("seed %d, step %d: %s\nrequests:\n  %s\n%s", x.seed, len(x.history), fmt.Sprintf(format, args...),
		strings.Join(x.history[max(0, len(x.history)-40):], "\n  "), x.log())
}

func pickOf[T any](rng *rand.Rand, of []T) T { return of[rng.IntN(len(of))] }

// A wish is a random request, as it is made and as it is meant.
type wish struct {
	op      Op // numOps: SetFilter
	mode    Mode
	g       Group
	sources []netip.Addr

	asGroup   Group // what the caller passes
	asSources []netip.Addr

	defects []string // of which one is the error, whatever the state
}

func (w *wish) String() string {
	if w.op == numOps {
		return fmt.Sprintf("SetFilter %v %v %v", w.asGroup, w.mode, w.asSources)
	}
	return fmt.Sprintf("%v %v %v", w.op, w.asGroup, w.asSources)
}

// none reports whether the wish is for no membership.
func (w *wish) none() bool {
	return w.op == OpLeave || w.op == numOps && w.mode == Include && len(w.sources) == 0
}

func (w *wish) defect(name string) { w.defects = append(w.defects, name) }

func (x *requestRun) wish() *wish {
	rng := x.rng
	w := &wish{op: Op(rng.IntN(numOps)), g: Group{pickOf(rng, x.groups), pickOf(rng, x.indexes)}}
	if rng.IntN(6) == 0 {
		w.op = numOps
	}
	switch rng.IntN(24) {
	case 0, 1, 2, 3:
		w.g.Interface = 0
	case 4:
		w.g.Interface = absent
	case 5:
		w.g.Addr = pickOf(rng, x.bad) // some of these are groups
	}
	n := 0
	switch {
	case w.op == numOps:
		n = rng.IntN(4)
		if w.mode = Mode(rng.IntN(2)); rng.IntN(40) == 0 {
			w.mode = 2
			w.defect("ErrMode")
		}
	case w.op.takesSource():
		n = 1
	}
	for range n {
		if s := pickOf(rng, x.good); rng.IntN(30) > 0 {
			w.sources = append(w.sources, s)
			continue
		}
		w.sources = append(w.sources, pickOf(rng, x.bad))
		w.defect("ErrAddress")
	}
	if a := w.g.Addr; !a.IsMulticast() || a.Is6() != x.ipv6 {
		w.defect("ErrAddress")
	}

	// As callers pass it: mapped, or with a zone in place of the interface.
	w.asGroup, w.asSources = w.g, slices.Clone(w.sources)
	if rng.IntN(8) == 0 {
		w.asGroup.Addr = mapped(w.g.Addr)
		for i, s := range w.sources {
			w.asSources[i] = mapped(s)
		}
	}
	if i := w.g.Interface; i != 0 && len(w.defects) == 0 && x.ipv6 && rng.IntN(4) == 0 {
		zone := x.host.name(i)
		if rng.IntN(2) == 0 {
			zone = strconv.Itoa(i)
		}
		if len(w.sources) == 0 || rng.IntN(2) == 0 {
			w.asGroup.Addr = w.g.Addr.WithZone(zone)
		} else {
			at := rng.IntN(len(w.sources))
			w.asSources[at] = w.sources[at].WithZone(zone)
		}
		w.asGroup.Interface = rng.IntN(2) * i
	}

	// The interface that 0 means.
	if w.g.Interface == 0 {
		switch on := x.o.on(w.g.Addr); {
		case len(on) == 1:
			w.g.Interface = on[0]
		case len(on) > 1:
			w.defect("ErrInterface")
		case w.none() || w.op != OpJoin && w.op != OpJoinSource && w.op != numOps:
		default:
			to := w.g.Addr
			if w.op == OpJoinSource || w.op == numOps && w.mode == Include {
				to = w.sources[0]
			}
			i, routed := x.host.routes[to]
			if !routed {
				i = 2
			}
			if i == 0 || to.Is6() && to.IsLinkLocalUnicast() {
				w.defect("ErrInterface")
			}
			w.g.Interface = i
		}
	}
	if w.op == numOps && w.mode == Exclude && w.g.IsSSM() && !x.anySource {
		w.defect("ErrSSM")
	}
	return w
}

// expect gives the names of the errors of which one must come, and the number
// that it must have; none if the request is accepted.
func (x *requestRun) expect(w *wish) (want []string, number string) {
	if len(w.defects) > 0 || w.op == numOps {
		return w.defects, ""
	}
	var source netip.Addr
	if w.op.takesSource() {
		source = w.sources[0]
	}
	outcome, number := x.o.answer(w.op, w.g, source)
	if strings.HasPrefix(outcome, "Err") {
		return []string{outcome}, number
	}
	if w.op == OpJoin && w.g.IsSSM() && !x.anySource {
		return []string{"ErrSSM"}, ""
	}
	return nil, ""
}

// make makes the request.
func (x *requestRun) make(w *wish) error {
	x.history = append(x.history, w.String())
	if w.op == numOps {
		return x.requests.set(w.asGroup, w.mode, w.asSources)
	}
	var source netip.Addr
	if w.op.takesSource() {
		source = w.asSources[0]
	}
	return x.do(w.op, w.asGroup, source)
}

// carriedOut tells the oracle.
func (x *requestRun) carriedOut(w *wish) {
	if w.op == numOps {
		x.o.set(Membership{Group: w.g, Mode: w.mode, Sources: w.sources})
		return
	}
	var source netip.Addr
	if w.op.takesSource() {
		source = w.sources[0]
	}
	x.o.apply(w.op, w.g, source)
}

// refused checks the answer to a request that must be refused, without a word
// to the kernel.
func (x *requestRun) refused(w *wish, err error, want []string, number string, calls int) {
	x.t.Helper()
	var e *OpError
	name := "SetFilter"
	if w.op != numOps {
		name = w.op.String()
	}
	if !errors.As(err, &e) || e.Op != name {
		x.fatalf("%v: %v, want an OpError that is one of %v", w, err, want)
	}
	if kinds := matching(err, outOfOrder, cannotBe); len(kinds) != 1 || !slices.Contains(want, kinds[0]) {
		x.fatalf("%v: %v is %v, want one of %v", w, err, kinds, want)
	}
	if number != "" && !errors.Is(err, gridErrnos[number]) {
		x.fatalf("%v: %v, want errno %s", w, err, number)
	}
	if calls != 0 {
		x.fatalf("%v: %v, but the kernel heard of it", w, err)
	}
}

// agree checks that oracle, filter and kernel have the same memberships, and
// that what the filter lets through arrives.
func (x *requestRun) agree(g Group) {
	x.t.Helper()
	want := x.o.memberships()
	if got := x.filter.Memberships(); !equalMemberships(got, want) {
		x.fatalf("filter %v\nwant   %v", got, want)
	}
	if got, want := x.inKernel(), x.y.told(want, x.ipv6); !equalMemberships(got, want) && !(x.faulty && x.wider(got, want)) {
		x.fatalf("kernel %v\nwant   %v", got, want)
	}
	if harm := x.k.Harmed(); len(harm) > 0 {
		x.fatalf("harm: %s", strings.Join(harm, "; "))
	}
	x.checked++
	if g.Interface != 0 && g.Addr.IsMulticast() && g.Addr.Is6() == x.ipv6 {
		x.read(g)
	}
	if x.checked%16 == 0 {
		for _, a := range x.groups {
			for _, i := range x.indexes {
				x.read(Group{a, i})
			}
		}
	}
	x.delivered()
}

// delivered checks what arrives: all that is allowed, and, behind the filter of
// the read path, nothing else.
func (x *requestRun) delivered() {
	x.t.Helper()
	for _, a := range x.groups {
		for _, i := range x.indexes {
			g := Group{a, i}
			for _, s := range x.good {
				want := x.o.allows(g, s)
				if got := x.filter.Allows(g, s); got != want {
					x.fatalf("Allows(%v, %v) = %v", g, s, got)
				}
				if want && !x.sock.Delivers(i, a, s) {
					x.fatalf("the kernel drops %v from %v", g, s)
				}
			}
		}
	}
}

// wider reports whether the kernel has the wanted memberships, and filters that
// let through what is wanted and more. Where one of a group's filters is for all
// interfaces, that is what a narrowing that failed leaves behind.
func (x *requestRun) wider(got, want []Membership) bool {
	return x.y.platform.name == "linux" && x.ipv6 && slices.EqualFunc(got, want, func(g, w Membership) bool {
		lets := func(m Membership, s netip.Addr) bool { return slices.Contains(m.Sources, s) == (m.Mode == Include) }
		for _, s := range append(slices.Clone(x.good), netip.MustParseAddr("2001:db8:ffff::1")) {
			if lets(w, s) && !lets(g, s) {
				return false
			}
		}
		return g.Group == w.Group
	})
}

// read compares what the kernel says of a group.
func (x *requestRun) read(g Group) {
	x.t.Helper()
	got, err := x.system(g)
	s := x.o.groups[g]
	switch {
	case x.y.noRead && errors.Is(err, errors.ErrUnsupported):
	case s == nil && g.Interface == absent && errors.Is(err, ErrInterface): // which has no address to name it by
	case s == nil && errors.Is(err, ErrNotJoined):
	case s != nil && err == nil && x.faulty && x.y.platform.name == "linux" && x.ipv6: // may be wider
	case s != nil && err == nil && slices.ContainsFunc(x.y.told(x.o.memberships(), x.ipv6), func(m Membership) bool { return equalMembership(m, got) }):
	default:
		x.fatalf("SystemFilter(%v) = %v, %v, want %v", g, got, err, s)
	}
}

// step makes a request that nothing stands in the way of.
func (x *requestRun) step() {
	x.t.Helper()
	w := x.wish()
	want, number := x.expect(w)
	knew := [2]bool{x.requests.kernel.noMcast, x.requests.kernel.noIP}
	had := x.o.groups[w.g]
	x.slept = nil
	var err error
	calls := x.during(func() { err = x.make(w) })
	switch {
	case len(want) > 0:
		x.refused(w, err, want, number, calls)
	case w.g.Interface == absent && !w.none():
		if kinds := matching(err, outOfOrder, cannotBe); !slices.Equal(kinds, []string{"ErrInterface"}) {
			x.fatalf("%v: %v, want ErrInterface", w, err)
		}
	case err != nil:
		x.fatalf("%v: %v", w, err)
	default:
		x.carriedOut(w)
		calls -= len(x.slept)
		most := 1
		if on := len(x.o.on(w.g.Addr)); x.y.platform.name == "linux" && x.ipv6 && (on > 1 || on == 1 && x.o.groups[w.g] == nil) {
			most = 2 * (on + 1) // all of the group's
		}
		if x.faulty && x.y.platform.name == "linux" && x.ipv6 {
			most = 100 // what a fault left too wide is set right
		}
		if w.op == numOps {
			if had == nil {
				most++
			}
			if x.y.platform.noEmptyFull {
				most++
			}
		}
		if calls > most && knew == [2]bool{x.requests.kernel.noMcast, x.requests.kernel.noIP} && !x.y.noRead && !x.y.only4 || w.op != numOps && calls == 0 && most == 1 {
			x.fatalf("%v takes %d calls", w, calls)
		}
	}
	x.agree(w.g)
}

// end leaves all and closes.
func (x *requestRun) end() {
	x.t.Helper()
	for _, r := range x.sock.Requests() {
		by4 := r.Address.IsValid() && !r.Address.IsUnspecified()
		if r.Group.IsValid() && r.Interface == 0 && !by4 && r.Group.IsMulticast() {
			x.fatalf("the kernel chooses an interface: %v", r)
		}
	}
	for _, m := range x.o.memberships() {
		x.history = append(x.history, fmt.Sprintf("Leave %v", m.Group))
		x.must(x.do(OpLeave, m.Group, netip.Addr{}))
		x.o.apply(OpLeave, m.Group, netip.Addr{})
		x.agree(m.Group)
	}
	if left := x.inKernel(); len(left) > 0 {
		x.fatalf("left behind: %v", left)
	}
	x.closed = true
	x.sock.Close()
	for op := range Op(numOps) {
		if err := x.do(op, Group{x.groups[0], 2}, x.good[0]); !errors.Is(err, net.ErrClosed) {
			x.fatalf("%v after Close: %v", op, err)
		}
	}
}

// randomRequests runs steps for each system, a socket for a few of them.
func randomRequests(t *testing.T, systems []requestSystem, steps int, run func(*requestRun, int)) {
	t.Helper()
	if testing.Short() {
		steps = min(steps, 600)
	}
	const each = 150
	eachSystem(t, systems, func(t *testing.T, y requestSystem, ipv6 bool) {
		n := steps / each
		if y.change != nil { // a variation of a system
			n = max(1, n/4)
		}
		for seed := range uint64(n) {
			x := newRequestRun(t, y, ipv6, seed)
			run(x, each)
		}
	})
}

// TestRequestsRandom is the promise: filter and kernel agree after every call,
// nothing that is joined is dropped, and nothing else comes through.
func TestRequestsRandom(t *testing.T) {
	randomRequests(t, requestSystems(), 3000, func(x *requestRun, steps int) {
		for range steps {
			x.step()
		}
		x.end()
	})
}

// troubled makes a request in trouble: it may fail, but then nothing has
// changed. Only a SetFilter may have lost the membership, if lossy is true.
func (x *requestRun) troubled(lossy bool, allowed func(error) bool) {
	x.t.Helper()
	w := x.wish()
	want, number := x.expect(w)
	had := x.o.groups[w.g]
	x.slept = nil
	var err error
	calls := x.during(func() { err = x.make(w) })
	if len(x.slept) > 6*calls {
		x.fatalf("%v sleeps %d times for %d calls", w, len(x.slept), calls)
	}
	x.fault, x.k.ListFailures = nil, 0
	switch {
	case len(want) > 0:
		x.refused(w, err, want, number, calls)
	case err == nil && w.g.Interface == absent && !w.none():
		x.fatalf("%v: there is no such interface", w)
	case err == nil:
		x.carriedOut(w)
	case w.g.Interface == absent:
	case !allowed(err):
		x.fatalf("%v: %v", w, err)
	default:
		x.history[len(x.history)-1] += " failed: " + err.Error()
		if _, still := x.filter.Membership(w.g); had != nil && !still && lossy && w.op == numOps {
			delete(x.o.groups, w.g)
		}
	}
	x.agree(w.g)
}

// errnosOf are answers that a system may come up with at any time.
func errnosOf(p *platform) []int {
	switch p.name {
	case "linux":
		return []int{105, 12, 22, 98, 1, 19, 14} // ENOBUFS ENOMEM EINVAL EADDRINUSE EPERM ENODEV EFAULT
	case "windows":
		return []int{10055, 10022, 10048, 10050, 10014} // WSAENOBUFS WSAEINVAL WSAEADDRINUSE WSAENETDOWN WSAEFAULT
	}
	return []int{55, 12, 22, 48, 1, 19, 28, 14, 16}
}

// plan arms a fault: of the nth call, or of all from there on. A Leave does not
// meet one that means there is nothing to leave, and is not kept from undoing
// what failed before it.
func (x *requestRun) plan() (errno int, forGood bool) {
	errno = pickOf(x.rng, errnosOf(x.y.platform))
	n, forGood := 1+x.rng.IntN(3), x.rng.IntN(3) == 0
	start := x.calls
	p := x.y.platform
	x.fault = func(call, level, name int) error {
		gone := slices.Contains(p.noMember, errno) || slices.Contains(p.noDevice, errno)
		switch at := call - start; {
		case x.isLeave(level, name) && (gone || at > 1), at < n, at > n && !forGood:
			return nil
		}
		return syscall.Errno(errno)
	}
	return errno, forGood
}

// TestRequestsWithFaults has calls fail at random.
func TestRequestsWithFaults(t *testing.T) {
	randomRequests(t, requestSystems(), 1500, func(x *requestRun, steps int) {
		x.faulty = true
		if x.y.noRead && x.ipv6 && x.y.platform.name == "linux" {
			return // no such kernel; a fault while two memberships change could end one
		}
		for range steps {
			switch n := x.rng.IntN(4); {
			case n == 0:
				x.step()
				continue
			case n == 1 && x.y.platform.name == "linux":
				x.k.ListFailures = 1 + x.rng.IntN(2)
				x.troubled(x.y.noRead, func(err error) bool { return errors.Is(err, ErrLimit) })
				continue
			}
			errno, forGood := x.plan()
			x.troubled(forGood, func(err error) bool {
				limit := slices.Contains(x.y.platform.limits, errno)
				return errors.Is(err, syscall.Errno(errno)) && (errors.Is(err, ErrLimit) == limit)
			})
		}
		x.end()
	})
}

// TestRequestsAtLimits is a random run on systems with little room.
func TestRequestsAtLimits(t *testing.T) {
	var small []requestSystem
	for _, y := range requestSystems() {
		if y.platform.name == "windows" {
			continue // documents no limits
		}
		small = append(small, y.with("with small limits", func(k *kerneltest.Kernel) {
			k.MaxMSF4, k.MaxMSF6, k.MaxGroup = 2, 3, 3
			if y.platform.name == "linux" {
				k.OptMem = 1000
			}
			// The other program on the host needs nine.
			k.MaxMemberships = 9
		}))
	}
	limited := 0
	var mu sync.Mutex
	t.Cleanup(func() {
		if limited == 0 {
			t.Error("no limit was met")
		}
	})
	randomRequests(t, small, 2400, func(x *requestRun, steps int) {
		x.k.MaxMemberships = 4
		for range steps {
			x.troubled(x.y.noRead, func(err error) bool {
				mu.Lock()
				defer mu.Unlock()
				limited++
				return errors.Is(err, ErrLimit)
			})
		}
		x.end()
	})
}

// TestRequestsWhileInterfacesComeAndGo removes interfaces and brings them back
// with the same index, which makes them other ones.
func TestRequestsWhileInterfacesComeAndGo(t *testing.T) {
	randomRequests(t, fourSystems, 1500, func(x *requestRun, steps int) {
		away, lives := map[int]kerneltest.Interface{}, map[int]int{}
		for range steps {
			i := pickOf(x.rng, x.indexes)
			switch ifi, isAway := away[i]; {
			case x.rng.IntN(6) > 0:
				x.onMoving(away, lives)
			case isAway:
				x.history = append(x.history, fmt.Sprintf("interface %d is back", i))
				x.k.AddInterface(i, ifi)
				delete(away, i)
			default:
				x.history = append(x.history, fmt.Sprintf("interface %d goes", i))
				away[i] = x.k.Interfaces[i]
				lives[i]++
				x.k.RemoveInterface(i)
			}
		}
		for _, m := range x.o.memberships() {
			x.must(x.do(OpLeave, m.Group, netip.Addr{}))
		}
		x.sock.Close()
	})
}

// onMoving makes a request on a host whose interfaces come and go.
func (x *requestRun) onMoving(away map[int]kerneltest.Interface, lives map[int]int) {
	x.t.Helper()
	w := x.wish()
	want, number := x.expect(w)
	s := x.o.groups[w.g]
	_, gone := away[w.g.Interface]
	gone = gone || w.g.Interface == absent
	stale := gone || s != nil && s.life != lives[w.g.Interface]
	var err error
	calls := x.during(func() { err = x.make(w) })
	switch {
	case len(want) > 0:
		x.zoneless(w, func() { x.refused(w, err, want, number, calls) }, err)
	case err == nil:
		if gone && s == nil && !w.none() {
			x.fatalf("%v: there is no such interface", w)
		}
		x.carriedOut(w)
		if s == nil && x.o.groups[w.g] != nil {
			x.o.groups[w.g].life = lives[w.g.Interface]
		}
	case w.none():
		x.fatalf("%v: %v, want it to be left", w, err)
	case !stale:
		x.zoneless(w, func() { x.fatalf("%v: %v", w, err) }, err)
	case gone && !errors.Is(err, ErrInterface):
		x.fatalf("%v: %v, want ErrInterface", w, err)
	}
	if harm := x.k.Harmed(); len(harm) > 0 {
		x.fatalf("harm: %s", strings.Join(harm, "; "))
	}
	now := x.o.memberships()
	if got := x.filter.Memberships(); !equalMemberships(got, now) {
		x.fatalf("filter %v\nwant   %v", got, now)
	}

	// The kernel has what was joined on an interface that is still the same, and
	// it is heard.
	inKernel := x.inKernel()
	for g, s := range x.o.groups {
		if s.life != lives[g.Interface] {
			continue
		}
		if x.y.platform.name == "linux" && x.ipv6 && len(x.o.on(g.Addr)) > 1 {
			continue // they have the union, also of those whose interface is gone
		}
		if !slices.ContainsFunc(inKernel, func(m Membership) bool { return equalMembership(m, s.Membership) }) {
			x.fatalf("the kernel has %v, not %v", inKernel, s)
		}
		for _, source := range x.good {
			oneOnly := x.y.platform.name != "linux" || !x.ipv6 || len(x.o.on(g.Addr)) == 1
			if x.o.allows(g, source) && oneOnly && !x.sock.Delivers(g.Interface, g.Addr, source) {
				x.fatalf("the kernel drops %v from %v", g, source)
			}
		}
	}
	// What it has besides is of an interface that went.
	for _, m := range inKernel {
		if s := x.o.groups[m.Group]; s == nil && lives[m.Group.Interface] == 0 {
			x.fatalf("left behind: %v", m)
		}
	}
	if x.y.platform.name == "linux" && !x.ipv6 && !equalMemberships(inKernel, now) {
		x.fatalf("kernel %v\nfilter %v", inKernel, now)
	}
}

// zoneless runs f, unless the request names an interface by a name that is away.
func (x *requestRun) zoneless(w *wish, f func(), err error) {
	x.t.Helper()
	named := strings.Contains(w.String(), "%eth") || strings.Contains(w.String(), "%lo")
	if !named || !errors.Is(err, ErrInterface) {
		f()
	}
}

// include and exclude are memberships of group on interface 2.
func (m *kernelModel) include(ns ...int) Membership {
	return Membership{Group: m.group(2), Mode: Include, Sources: m.sources(ns...)}
}

func (m *kernelModel) exclude(ns ...int) Membership {
	return Membership{Group: m.group(2), Mode: Exclude, Sources: m.sources(ns...)}
}

// become makes the filter of group on interface 2 the one given.
func (m *kernelModel) become(to Membership) error {
	return m.requests.set(to.Group, to.Mode, to.Sources)
}

// TestLastSourceLeavesGroup: no system hears a LeaveSource of the last source.
func TestLastSourceLeavesGroup(t *testing.T) {
	eachSystem(t, fourSystems, func(t *testing.T, y requestSystem, ipv6 bool) {
		m := newModel(t, y, ipv6)
		g := m.group(2)
		m.must(m.do(OpJoinSource, g, m.source(1)))
		m.must(m.do(OpJoinSource, g, m.source(2)))
		got := optionNames(m.sent(func() {
			m.must(m.do(OpLeaveSource, g, m.source(1)))
			m.must(m.do(OpLeaveSource, g, m.source(2)))
		}))
		want := map[string]string{"darwin": "MCAST_LEAVE_SOURCE_GROUP!, "}[y.platform.name] + "MCAST_LEAVE_SOURCE_GROUP, MCAST_LEAVE_GROUP"
		if ipv6 {
			want = strings.TrimPrefix(want, "MCAST_LEAVE_SOURCE_GROUP!, ")
		} else if y.platform.name == "windows" {
			want = "IP_DROP_SOURCE_MEMBERSHIP, IP_DROP_MEMBERSHIP"
		}
		if got != want {
			t.Errorf("sent %s, want %s", got, want)
		}
		m.check()
	})
}

// TestNeverInOtherMode: what Linux answers by switching modes, it does not see.
func TestNeverInOtherMode(t *testing.T) {
	eachSystem(t, fourSystems, func(t *testing.T, y requestSystem, ipv6 bool) {
		m := newModel(t, y, ipv6)
		g := m.group(2)
		for _, at := range []Membership{m.exclude(), m.exclude(1), m.include(1)} {
			m.must(m.become(at))
			ops := []Op{OpJoin, OpJoinSource, OpLeaveSource}
			if at.Mode == Include {
				ops = []Op{OpJoin, OpBlock, OpUnblock}
			}
			for _, op := range ops {
				for _, n := range []int{1, 2} {
					n := m.during(func() {
						if err := m.do(op, g, m.source(n)); !errors.Is(err, ErrMode) && !errors.Is(err, ErrJoined) {
							t.Errorf("%v on %v: %v", op, at, err)
						}
					})
					if n != 0 {
						t.Errorf("%v on %v takes %d calls", op, at, n)
					}
				}
			}
			m.check(at)
			m.must(m.do(OpLeave, g, netip.Addr{}))
		}
		m.check()
	})
}

// TestSetFilterCalls counts what SetFilter sends: one call, where there is a
// membership to replace.
func TestSetFilterCalls(t *testing.T) {
	eachSystem(t, fourSystems, func(t *testing.T, y requestSystem, ipv6 bool) {
		m := newModel(t, y.with("without byte counts", func(k *kerneltest.Kernel) { k.ByteCounts = 0 }), ipv6)
		for _, tt := range []struct {
			from, to Membership
			want     int
			empty    bool // a filter without sources is to be sent, which macOS and FreeBSD take two calls for
		}{
			{m.include(), m.include(), 0, false},
			{m.include(), m.include(1), 1, false},
			{m.include(), m.include(1, 2, 3), 2, false},
			{m.include(), m.exclude(), 1, false},
			{m.include(), m.exclude(1, 2), 2, false},
			{m.include(1), m.include(1), 0, false},
			{m.include(1), m.include(2, 3), 1, false},
			{m.include(1, 2), m.exclude(), 1, true},
			{m.include(1), m.exclude(1, 2), 1, false},
			{m.include(1, 2), m.include(), 1, false},
			{m.exclude(), m.include(1, 2), 1, false},
			{m.exclude(1, 2), m.include(3), 1, false},
			{m.exclude(1), m.exclude(), 1, true},
			{m.exclude(1), m.exclude(2, 3), 1, false},
			{m.exclude(1), m.include(), 1, false},
		} {
			m.must(m.become(tt.from))
			var sent []kerneltest.Request
			got := m.during(func() { sent = m.sent(func() { m.must(m.become(tt.to)) }) })
			if want := tt.want; got != want && !(tt.empty && y.platform.noEmptyFull && got == 2) {
				t.Errorf("%v to %v: %d calls, want %d: %s", tt.from, tt.to, got, want, optionNames(sent))
			}
			for _, r := range sent {
				if strings.HasSuffix(r.Name, "MSFILTER") && len(r.Sources) == 0 && y.platform.noEmptyFull {
					t.Errorf("%v to %v: an empty list is sent", tt.from, tt.to)
				}
			}
			if tt.to.none() {
				m.check()
			} else {
				m.check(tt.to)
			}
			m.must(m.become(m.include()))
		}
	})
}

// TestSetFilterSteps fails each of the single requests that replace a filter.
func TestSetFilterSteps(t *testing.T) {
	var without []requestSystem
	for _, y := range fourSystems {
		without = append(without, withoutFull(y))
	}
	eachSystem(t, without, func(t *testing.T, y requestSystem, ipv6 bool) {
		m := newModel(t, y, ipv6)
		all := []Membership{m.include(), m.include(1), m.include(1, 2), m.include(2, 3), m.exclude(), m.exclude(1), m.exclude(2, 3)}
		for _, from := range all {
			for _, to := range all {
				for failing := 1; ; failing++ {
					m.must(m.become(from))
					start, met := m.calls, false
					m.fault = func(call, level, name int) error {
						if call-start == failing {
							met = true
							return syscall.Errno(y.platform.limits[0])
						}
						return nil
					}
					err := m.become(to)
					m.fault = nil
					now := from
					if err == nil {
						now = to // the failing call was none that was made, or there was another way
					} else if !errors.Is(err, ErrLimit) {
						t.Fatalf("%v to %v, failing call %d: %v", from, to, failing, err)
					}
					if now.none() {
						m.check()
					} else {
						m.check(now)
					}
					m.must(m.become(m.include()))
					if !met {
						break
					}
				}
			}
		}
	})
}

// TestSetFilterRollback fails the second of the calls that make EXCLUDE() on
// macOS and FreeBSD, and then what would bring the old filter back, too.
func TestSetFilterRollback(t *testing.T) {
	eachSystem(t, []requestSystem{onDarwin, onFreeBSD}, func(t *testing.T, y requestSystem, ipv6 bool) {
		for _, failing := range []int{1, 2} {
			m := newModel(t, y.with("without byte counts", func(k *kerneltest.Kernel) { k.ByteCounts = 0 }), ipv6)
			m.must(m.become(m.include(1, 2)))
			start := m.calls
			m.fault = func(call, level, name int) error {
				if n := call - start; n > 1 && n <= 1+failing && !m.isLeave(level, name) {
					return syscall.Errno(55) // ENOBUFS
				}
				return nil
			}
			err := m.become(m.exclude())
			m.fault = nil
			if !errors.Is(err, ErrLimit) {
				t.Errorf("%d calls fail: %v", failing, err)
			}
			if failing == 1 {
				m.check(m.include(1, 2))
			} else if s := m.disagree(); s != "" {
				t.Errorf("%d calls fail: %s\n%s", failing, s, m.log())
			}
		}
	})
}

// TestExcludeNothingOfFullFilter: a filter that has all the sources it may have
// has no room for one more, which EXCLUDE() must not need.
func TestExcludeNothingOfFullFilter(t *testing.T) {
	eachSystem(t, []requestSystem{onDarwin, onFreeBSD}, func(t *testing.T, y requestSystem, ipv6 bool) {
		m := newModel(t, y.with("with 3 sources", func(k *kerneltest.Kernel) { k.MaxMSF4, k.MaxMSF6 = 3, 3 }), ipv6)
		m.must(m.become(m.exclude(1, 2, 3)))
		if err := m.become(m.exclude()); err != nil {
			t.Fatalf("%v\n%s", err, m.log())
		}
		m.check(m.exclude())
	})
}

// TestSetFilterFailsAndNothingChanges: not even the error number of the next
// refusal, which tells by what came before.
func TestSetFilterFailsAndNothingChanges(t *testing.T) {
	eachSystem(t, []requestSystem{onWindows}, func(t *testing.T, y requestSystem, ipv6 bool) {
		m := newModel(t, y, ipv6)
		g, s := m.group(2), m.source(1)
		for _, tt := range []struct {
			before []Op
			then   Op
		}{
			{[]Op{OpJoinSource, OpLeaveSource}, OpLeaveSource},
			{[]Op{OpJoin, OpBlock, OpUnblock}, OpUnblock},
		} {
			for _, op := range tt.before {
				m.must(m.do(op, g, s))
			}
			m.fault = func(int, int, int) error { return syscall.Errno(10055) } // WSAENOBUFS
			if err := m.become(m.include(2, 3)); !errors.Is(err, ErrLimit) {
				t.Errorf("SetFilter: %v", err)
			}
			m.fault = nil
			if err := m.do(tt.then, g, s); !errors.Is(err, syscall.Errno(10049)) {
				t.Errorf("%v and a failed SetFilter, then %v: %v, want 10049", tt.before, tt.then, err)
			}
		}
	})
}

// TestStepsBringBack: Linux may leave INCLUDE() behind where it has no memory
// for a source. That is no reason to lose the membership that was to be replaced.
func TestStepsBringBack(t *testing.T) {
	eachSystem(t, []requestSystem{withoutFull(onLinux)}, func(t *testing.T, y requestSystem, ipv6 bool) {
		m := newModel(t, y, ipv6)
		m.must(m.become(m.exclude()))
		m.k.ListFailures = 1
		if err := m.become(m.include(1)); !errors.Is(err, ErrLimit) {
			t.Fatalf("SetFilter: %v", err)
		}
		m.check(m.exclude())
	})
}

// TestFailedJoinSparesOthers: what undoes a failed join names an interface that
// does not exist, and macOS' IP_DROP_MEMBERSHIP takes that for any.
func TestFailedJoinSparesOthers(t *testing.T) {
	eachSystem(t, []requestSystem{onDarwin, withoutMCAST(onDarwin)}, func(t *testing.T, y requestSystem, ipv6 bool) {
		m := newModel(t, y, ipv6)
		m.must(m.do(OpJoin, m.group(2), netip.Addr{}))
		if err := m.do(OpJoin, m.group(absent), netip.Addr{}); !errors.Is(err, ErrInterface) {
			t.Errorf("Join on interface %d: %v", absent, err)
		}
		if err := m.requests.set(m.group(absent), Include, m.sources(1, 2)); !errors.Is(err, ErrInterface) {
			t.Errorf("SetFilter on interface %d: %v", absent, err)
		}
		m.check(m.exclude())
	})
}

// TestFailedJoinLeavesNothing: Linux leaves INCLUDE() behind when it has no
// memory for the first source.
func TestFailedJoinLeavesNothing(t *testing.T) {
	eachSystem(t, []requestSystem{onLinux, withoutMCAST(onLinux)}, func(t *testing.T, y requestSystem, ipv6 bool) {
		m := newModel(t, y, ipv6)
		m.k.ListFailures = 1
		if err := m.do(OpJoinSource, m.group(2), m.source(1)); !errors.Is(err, ErrLimit) {
			t.Errorf("JoinSource: %v", err)
		}
		m.check()
		m.k.ListFailures = 1
		if err := m.become(m.include(1, 2)); !errors.Is(err, ErrLimit) {
			t.Errorf("SetFilter: %v", err)
		}
		m.check()
		m.must(m.do(OpJoinSource, m.group(2), m.source(1)))
		m.check(m.include(1))
	})
}

// TestLimits meets each limit and reads what to do about it.
func TestLimits(t *testing.T) {
	type meet func(m *kernelModel) error
	groups := func(n int) meet {
		return func(m *kernelModel) error {
			for i := range n {
				g := Group{m.addr(fmt.Sprintf("239.2.0.%d", i+1), fmt.Sprintf("ff1e::2:%x", i+1)), 2}
				if err := m.do(OpJoinSource, g, m.source(1)); err != nil {
					return err
				}
			}
			return nil
		}
	}
	sources := func(n int) meet {
		return func(m *kernelModel) error {
			for i := range n {
				if err := m.do(OpJoinSource, m.group(2), m.source(i+1)); err != nil {
					return err
				}
			}
			return nil
		}
	}
	full := func(n int) meet { return func(m *kernelModel) error { return m.become(m.include(upTo(n)...)) } }
	little := onLinux.with("with little memory", func(k *kerneltest.Kernel) { k.OptMem = 1000 })
	faulty := func(f meet, errno, at int) meet {
		return func(m *kernelModel) error {
			m.fault = func(call, level, name int) error {
				if call >= at && !m.isLeave(level, name) {
					return syscall.Errno(errno)
				}
				return nil
			}
			return f(m)
		}
	}
	tests := []struct {
		y    requestSystem
		ipv6 bool
		what string
		meet meet
		ok   int // memberships or sources that there is room for
		want string
	}{
		{onLinux, false, "groups", groups(21), 20, "20 groups a socket: net.ipv4.igmp_max_memberships"},
		{onLinux, true, "groups", groups(547), 546, "memory for 546 groups a socket: net.core.optmem_max"},
		{onLinux, false, "sources", sources(11), 10, "11 sources in a filter: net.ipv4.igmp_max_msf"},
		{onLinux, true, "sources", sources(65), 64, "65 sources in a filter: net.ipv6.mld_max_msf"},
		{onLinux, false, "full", full(11), 0, "11 sources in a filter: net.ipv4.igmp_max_msf"},
		{onLinux, true, "full", full(65), 0, "65 sources in a filter: net.ipv6.mld_max_msf"},
		{little, false, "groups", groups(20), -1, "groups a socket: net.core.optmem_max"},
		{little, true, "sources", sources(64), -1, "sources in a filter: net.core.optmem_max"},
		{onDarwin.with("with 3 groups", func(k *kerneltest.Kernel) { k.MaxMemberships = 3 }), false, "groups", groups(4), 3, "3 groups a socket: at most 4095 (IP_MAX_MEMBERSHIPS)"},
		{onDarwin.with("with 20 sources", func(k *kerneltest.Kernel) { k.MaxGroup = 20 }), false, "sources", sources(21), 20, "21 sources in a filter: net.inet.ip.mcast.maxgrpsrc"},
		{onDarwin.with("with 20 sources", func(k *kerneltest.Kernel) { k.MaxGroup = 20 }), true, "sources", sources(21), 20, "21 sources in a filter: net.inet6.ip6.mcast.maxgrpsrc"},
		{onDarwin, false, "full", full(129), 0, "129 sources set at once: net.inet.ip.mcast.maxsocksrc"},
		{onDarwin, true, "full", full(129), 0, "129 sources set at once: net.inet6.ip6.mcast.maxsocksrc"},
		{onFreeBSD, false, "full", full(129), 0, "129 sources set at once: net.inet.ip.mcast.maxsocksrc"},
		{onWindows, false, "groups", faulty(groups(6), 10055, 6), 5, "5 groups a socket: spread them over several sockets"},
		{onWindows, true, "sources", faulty(sources(6), 10055, 6), 5, "6 sources in a filter"},
		{onWindows, true, "full", faulty(full(6), 10055, 2), 0, "6 sources in a filter"},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s %s %v", tt.y.name, tt.what, tt.ipv6), func(t *testing.T) {
			m := newModel(t, tt.y, tt.ipv6)
			err := tt.meet(m)
			if !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want ErrLimit: %s", err, tt.want)
			}
			n := 0
			for _, has := range m.filter.Memberships() {
				if tt.what == "groups" {
					n++
				} else {
					n += len(has.Sources)
				}
			}
			if tt.ok >= 0 && n != tt.ok {
				t.Errorf("%d memberships or sources, want %d", n, tt.ok)
			}
			if s := m.disagree(); s != "" {
				t.Error(s)
			}
			// Where a limit cannot be read, the first suspect is named.
			if m.host.blind = true; tt.y.name == "linux" && !tt.ipv6 {
				if err := tt.meet(m); !errors.Is(err, ErrLimit) && !errors.Is(err, ErrJoined) {
					t.Error(err)
				}
			}
		})
	}
}

// TestByteCounts: macOS is asked again, a few times.
func TestByteCounts(t *testing.T) {
	for counts := range 9 {
		y := onDarwin.with("", func(k *kerneltest.Kernel) { k.ByteCounts = counts })
		m := newModel(t, y, false)
		m.must(m.become(m.include(1)))
		for _, try := range []func() error{
			func() error { return m.do(OpJoinSource, m.group(2), m.source(2)) },
			func() error { return m.become(m.include(3, 4)) },
		} {
			before := fmt.Sprint(m.filter.Memberships())
			m.slept = nil
			calls := 0
			var err error
			calls = m.during(func() { err = try() })
			var sum time.Duration
			for _, d := range m.slept {
				sum += d
			}
			switch {
			case err == nil && calls == counts+1:
			case err != nil && counts > 5 && calls == len(m.slept)+1 && fmt.Sprint(m.filter.Memberships()) == before:
			default:
				t.Errorf("%d byte counts: %v after %d calls\n%s", counts, err, calls, m.log())
			}
			if s := m.disagree(); s != "" {
				t.Error(s)
			}
			if sum > 2*time.Second || counts == 5 && sum < 500*time.Millisecond {
				t.Errorf("%d byte counts: waits %v in all", counts, sum)
			}
		}
	}
	// No other system's numbers are taken for byte counts, nor IPv6 ones.
	eachSystem(t, []requestSystem{onDarwin, onFreeBSD, onLinux, onWindows}, func(t *testing.T, y requestSystem, ipv6 bool) {
		m := newModel(t, y, ipv6)
		if y.name == "darwin" && !ipv6 {
			return
		}
		m.fault = func(int, int, int) error { return syscall.Errno(12) }
		if err := m.do(OpJoin, m.group(2), netip.Addr{}); !errors.Is(err, syscall.Errno(12)) || len(m.slept) > 0 {
			t.Errorf("Join: %v after %d waits", err, len(m.slept))
		}
	})
}

// TestFallbacks: an option that a system does not have is asked for once, and
// then the other family of options is used.
func TestFallbacks(t *testing.T) {
	noMCAST := func(k *kerneltest.Kernel) { k.NoMCAST = true }
	for _, tt := range []struct {
		y            requestSystem
		ipv6         bool
		first, later string
	}{
		{onLinux, false, "MCAST_JOIN_SOURCE_GROUP", "MCAST_JOIN_SOURCE_GROUP"},
		{onLinux.with("", noMCAST), false, "MCAST_JOIN_SOURCE_GROUP!, IP_ADD_SOURCE_MEMBERSHIP", "IP_ADD_SOURCE_MEMBERSHIP"},
		{onDarwin.with("", noMCAST), false, "MCAST_JOIN_SOURCE_GROUP!, IP_ADD_SOURCE_MEMBERSHIP", "IP_ADD_SOURCE_MEMBERSHIP"},
		{onFreeBSD.with("", noMCAST), false, "MCAST_JOIN_SOURCE_GROUP!, IP_ADD_SOURCE_MEMBERSHIP", "IP_ADD_SOURCE_MEMBERSHIP"},
		{onWindows, false, "IP_ADD_SOURCE_MEMBERSHIP", "IP_ADD_SOURCE_MEMBERSHIP"},
		{onWindows.with("", func(k *kerneltest.Kernel) { k.NoIP = true }), false, "IP_ADD_SOURCE_MEMBERSHIP!, MCAST_JOIN_SOURCE_GROUP", "MCAST_JOIN_SOURCE_GROUP"},
		{onWindows, true, "MCAST_JOIN_SOURCE_GROUP", "MCAST_JOIN_SOURCE_GROUP"},
	} {
		m := newModel(t, tt.y, tt.ipv6)
		for i, want := range []string{tt.first, tt.later, tt.later} {
			g := Group{m.group(0).Addr.Next(), i + 1}
			got := optionNames(m.sent(func() { m.must(m.do(OpJoinSource, g, m.source(1))) }))
			if got != want {
				t.Errorf("%s: JoinSource %d sends %s, want %s", tt.y.name, i, got, want)
			}
		}
		if s := m.disagree(); s != "" {
			t.Error(s)
		}
	}
	// IPv6 has no older options for sources, only for groups.
	for _, y := range fourSystems {
		m := newModel(t, y.with("", noMCAST), true)
		m.must(m.do(OpJoin, m.group(2), netip.Addr{}))
		other := Group{netip.MustParseAddr("ff1e::4"), 3}
		for _, err := range []error{
			m.do(OpBlock, m.group(2), m.source(1)),
			m.do(OpJoinSource, other, m.source(1)),
			m.do(OpJoinSource, other, m.source(1)),
		} {
			if !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("%s: %v, want ErrUnsupported", y.name, err)
			}
		}
		m.must(m.do(OpLeave, m.group(2), netip.Addr{}))
		if ms := m.inKernel(); len(ms) > 0 {
			t.Errorf("%s: left behind: %v", y.name, ms)
		}
	}
}

// TestWindowsOptions: IP_* with an index for an address for IPv4, MCAST_* for
// IPv6, and for an index that such an address has no room for.
func TestWindowsOptions(t *testing.T) {
	m := newModel(t, onWindows, false)
	all := func(g Group) []kerneltest.Request {
		return m.sent(func() {
			m.must(m.do(OpJoin, g, netip.Addr{}))
			m.must(m.do(OpBlock, g, m.source(1)))
			m.must(m.do(OpUnblock, g, m.source(1)))
			m.must(m.do(OpLeave, g, netip.Addr{}))
			m.must(m.do(OpJoinSource, g, m.source(1)))
			m.must(m.do(OpJoinSource, g, m.source(2)))
			m.must(m.do(OpLeaveSource, g, m.source(2)))
			m.must(m.requests.set(g, Exclude, m.sources(3)))
			m.must(m.requests.set(g, Include, nil))
		})
	}
	const index = 0x010203
	m.k.AddInterface(index, kerneltest.Interface{Name: "eth9", Up: true, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.9")}})
	rs := all(m.group(index))
	if got, want := optionNames(rs), "IP_ADD_MEMBERSHIP, IP_BLOCK_SOURCE, IP_UNBLOCK_SOURCE, IP_DROP_MEMBERSHIP, "+
		"IP_ADD_SOURCE_MEMBERSHIP, IP_ADD_SOURCE_MEMBERSHIP, IP_DROP_SOURCE_MEMBERSHIP, SIO_SET_MULTICAST_FILTER, IP_DROP_MEMBERSHIP"; got != want {
		t.Errorf("sent %s, want %s", got, want)
	}
	for _, r := range rs {
		if r.Address != netip.AddrFrom4([4]byte{0, 1, 2, 3}) {
			t.Errorf("%v: names the interface by %v", r, r.Address)
		}
	}
	m.check()

	m = newModel(t, onWindows, true)
	for _, r := range all(m.group(3)) {
		if !strings.HasPrefix(r.Name, "MCAST_") && r.Name != "SIOCSMSFILTER" {
			t.Errorf("sent %v", r)
		}
	}
	m.check()
}

// TestWindowsLargeIndex: an index from 1<<24 on, laid out as an address, would be
// the address of some other interface.
func TestWindowsLargeIndex(t *testing.T) {
	const large = 1<<24 + 5 // 1.0.0.5
	m := newModel(t, onWindows, false)
	up := func(addr string) kerneltest.Interface {
		return kerneltest.Interface{Up: true, Addrs: []netip.Addr{netip.MustParseAddr(addr)}}
	}
	m.k.AddInterface(large, up("192.0.2.9"))
	m.k.AddInterface(4, up("1.0.0.5"))
	m.must(m.do(OpJoinSource, m.group(4), m.source(1)))
	m.must(m.do(OpJoin, m.group(large), netip.Addr{}))
	m.must(m.do(OpBlock, m.group(large), m.source(2)))
	if got, err := m.system(m.group(large)); err != nil || got.Mode != Exclude {
		t.Errorf("SystemFilter on interface 1<<24+5: %v, %v", got, err)
	}
	m.must(m.requests.set(m.group(large), Include, m.sources(3, 4)))
	for _, r := range m.sock.Requests() {
		if r.Group.IsValid() && r.Interface != 4 && r.Interface != large {
			t.Errorf("%v, laid out as the address %v", r, r.Address)
		}
	}
	want := fmt.Sprint([]Membership{{Group: m.group(4), Mode: Include, Sources: m.sources(1)}, {Group: m.group(large), Mode: Include, Sources: m.sources(3, 4)}})
	if got := fmt.Sprint(m.inKernel()); got != want || fmt.Sprint(m.filter.Memberships()) != want {
		t.Errorf("kernel %s\nfilter %v\nwant   %s", got, m.filter.Memberships(), want)
	}
}

// TestLeaveGone leaves a membership whose interface is gone.
func TestLeaveGone(t *testing.T) {
	eachSystem(t, fourSystems, func(t *testing.T, y requestSystem, ipv6 bool) {
		for _, others := range []bool{false, true} {
			m := newModel(t, y, ipv6)
			m.must(m.become(m.include(1, 2)))
			if others {
				m.must(m.do(OpJoin, m.group(3), netip.Addr{}))
			}
			m.k.RemoveInterface(2)
			sent := m.sent(func() { m.must(m.do(OpLeave, m.group(2), netip.Addr{})) })
			var kept []Membership
			switch {
			case y.name == "darwin" && (others || ipv6):
				kept = []Membership{m.include(1, 2)}
				if len(sent) > 0 {
					t.Errorf("sent %v", sent)
				}
			case y.name == "darwin":
				if len(sent) != 1 || sent[0].Name != "IP_DROP_MEMBERSHIP" || sent[0].Address != netip.IPv4Unspecified() {
					t.Errorf("sent %v, want IP_DROP_MEMBERSHIP by 0.0.0.0", sent)
				}
			case y.name == "freebsd":
				kept = []Membership{m.include(1, 2)}
			}
			var want []Membership
			if others {
				want = []Membership{{Group: m.group(3), Mode: Exclude}}
			}
			if got := fmt.Sprint(m.filter.Memberships()); got != fmt.Sprint(want) {
				t.Errorf("filter %s, want %v", got, want)
			}
			want = append(kept, want...)
			if got := fmt.Sprint(m.inKernel()); got != fmt.Sprint(want) {
				t.Errorf("kernel %s, want %v", got, want)
			}
			if harm := m.k.Harmed(); len(harm) > 0 {
				t.Error(harm)
			}
		}
	})
}

// TestGoneInterface: what needs the interface says that it is gone.
func TestGoneInterface(t *testing.T) {
	eachSystem(t, []requestSystem{onLinux, onDarwin, onFreeBSD}, func(t *testing.T, y requestSystem, ipv6 bool) {
		m := newModel(t, y, ipv6)
		m.must(m.become(m.include(1, 2)))
		m.k.RemoveInterface(2)
		for _, err := range []error{
			m.do(OpJoinSource, m.group(2), m.source(3)),
			m.do(OpLeaveSource, m.group(2), m.source(1)),
			m.become(m.include(3)),
			m.become(m.exclude(3)),
		} {
			if !errors.Is(err, ErrInterface) || !strings.Contains(fmt.Sprint(err), "there is no interface 2") {
				t.Errorf("%v, want ErrInterface", err)
			}
		}
		if got, want := fmt.Sprint(m.filter.Memberships()), fmt.Sprint([]Membership{m.include(1, 2)}); got != want {
			t.Errorf("filter %s, want %s", got, want)
		}
	})
}

// TestDownInterface: Windows joins nothing on an interface that is down.
func TestDownInterface(t *testing.T) {
	m := newModel(t, onWindows, false)
	m.k.SetUp(2, false)
	if err := m.do(OpJoin, m.group(2), netip.Addr{}); !errors.Is(err, ErrInterface) || !strings.Contains(err.Error(), "eth0 takes no memberships now") {
		t.Errorf("Join: %v, want ErrInterface", err)
	}
	m.check()
}

// TestLongFilters: a filter with more sources than there is room for at first
// is asked for again, and Linux is never told of room that there is not.
func TestLongFilters(t *testing.T) {
	var systems []requestSystem
	for _, y := range []requestSystem{onLinux, withoutMCAST(onLinux), onDarwin, onFreeBSD, onWindows} {
		systems = append(systems, y.with("with 200 sources", func(k *kerneltest.Kernel) {
			k.MaxMSF4, k.MaxMSF6, k.ByteCounts = 200, 200, 0
		}))
	}
	eachSystem(t, systems, func(t *testing.T, y requestSystem, ipv6 bool) {
		m := newModel(t, y, ipv6)
		for _, n := range []int{1, 15, 16, 17, 31, 32, 33, 64, 65, 150} {
			for _, want := range []Membership{m.include(upTo(n)...), m.exclude(upTo(n)...)} {
				m.must(m.become(want))
				calls := m.during(func() { m.check(want) })
				if most := 6; calls > most || n < 16 && calls > 2 {
					t.Errorf("%d calls for %d sources", calls, n)
				}
			}
		}
	})
}

// TestInterface0 takes the interface that 0 means.
func TestInterface0(t *testing.T) {
	eachSystem(t, fourSystems, func(t *testing.T, y requestSystem, ipv6 bool) {
		m := newModel(t, y, ipv6)
		g, s := m.group(0), m.source(1)
		on := func(i int, ms ...Membership) {
			t.Helper()
			for j := range ms {
				ms[j].Group.Interface = i
			}
			m.check(ms...)
		}
		m.host.routes = map[netip.Addr]int{g.Addr: 3, m.source(1): 1, m.source(2): 0}

		m.must(m.do(OpJoinSource, g, s)) // towards the source
		on(1, m.include(1))
		m.must(m.do(OpJoinSource, g, m.source(2))) // the one that there is
		on(1, m.include(1, 2))
		m.must(m.do(OpLeaveSource, g, s))
		on(1, m.include(2))
		if got, err := m.system(g); err != nil || got.Group.Interface != 1 {
			t.Errorf("SystemFilter: %v, %v", got, err)
		}
		m.must(m.do(OpLeave, g, netip.Addr{}))
		m.must(m.do(OpJoin, g, netip.Addr{})) // towards the group
		on(3, m.exclude())
		m.must(m.do(OpBlock, g, s))
		m.must(m.do(OpUnblock, g, s))
		m.must(m.requests.set(g, Include, nil))
		on(3)
		m.must(m.requests.set(g, Include, m.sources(1))) // towards the first source
		on(1, m.include(1))
		m.must(m.requests.set(g, Include, nil))
		m.must(m.requests.set(g, Exclude, m.sources(2))) // towards the group
		on(3, m.exclude(2))
		m.must(m.do(OpLeave, g, netip.Addr{}))
		m.host.asked = nil
		for _, op := range []Op{OpBlock, OpUnblock, OpLeave, OpLeaveSource} {
			if err := m.do(op, g, s); !errors.Is(err, ErrNotJoined) {
				t.Errorf("%v: %v, want ErrNotJoined", op, err)
			}
		}
		if _, err := m.system(g); !errors.Is(err, ErrNotJoined) || len(m.host.asked) > 0 {
			t.Errorf("SystemFilter: %v, routes asked for: %v", err, m.host.asked)
		}

		// No route.
		m.host.routes[g.Addr] = 0
		for _, err := range []error{
			m.do(OpJoinSource, g, m.source(2)),
			m.do(OpJoin, g, netip.Addr{}),
			m.requests.set(g, Include, m.sources(2)),
			m.requests.set(g, Exclude, nil),
		} {
			var e *OpError
			if !errors.Is(err, ErrInterface) || !errors.Is(err, errNoRoute) || !errors.As(err, &e) || e.Group != g {
				t.Errorf("%v, want ErrInterface", err)
			}
		}
		m.check()

		// Several.
		m.must(m.do(OpJoin, m.group(2), netip.Addr{}))
		m.must(m.do(OpJoin, m.group(3), netip.Addr{}))
		for op := range Op(numOps) {
			if err := m.do(op, g, s); !errors.Is(err, ErrInterface) {
				t.Errorf("%v: %v, want ErrInterface", op, err)
			}
		}
		if err := m.requests.set(g, Include, nil); !errors.Is(err, ErrInterface) {
			t.Errorf("SetFilter: %v, want ErrInterface", err)
		}
		if _, err := m.system(g); !errors.Is(err, ErrInterface) {
			t.Errorf("SystemFilter: %v, want ErrInterface", err)
		}
		m.must(m.do(OpLeave, m.group(2), netip.Addr{}))
		m.must(m.do(OpBlock, g, s))
		on(3, m.exclude(1))
	})
}

// TestLinkLocalSource may be on any interface.
func TestLinkLocalSource(t *testing.T) {
	m := newModel(t, onLinux, true)
	s := netip.MustParseAddr("fe80::9")
	if err := m.do(OpJoinSource, m.group(0), s); !errors.Is(err, ErrInterface) {
		t.Errorf("JoinSource: %v, want ErrInterface", err)
	}
	if err := m.requests.set(m.group(0), Include, []netip.Addr{s}); !errors.Is(err, ErrInterface) {
		t.Errorf("SetFilter: %v, want ErrInterface", err)
	}
	m.must(m.do(OpJoinSource, m.group(0), s.WithZone("eth1")))
	m.check(Membership{Group: m.group(3), Mode: Include, Sources: []netip.Addr{s}})
}

// TestZonesOfRequests: a zone is an interface, of the group or of a source.
func TestZonesOfRequests(t *testing.T) {
	m := newModel(t, onLinux, true)
	g, s := m.group(0), m.source(1)
	zoned := func(zone string, i int) Group { return Group{g.Addr.WithZone(zone), i} }
	for _, ok := range []struct {
		g Group
		s netip.Addr
	}{
		{zoned("eth1", 0), s},
		{zoned("3", 3), s},
		{g, s.WithZone("3")},
		{m.group(3), s.WithZone("eth1")},
		{zoned("3", 0), s.WithZone("eth1")},
	} {
		m.must(m.do(OpJoinSource, ok.g, ok.s))
		m.check(Membership{Group: m.group(3), Mode: Include, Sources: []netip.Addr{s}})
		m.must(m.do(OpLeaveSource, ok.g, ok.s))
		m.must(m.requests.set(ok.g, Exclude, []netip.Addr{ok.s}))
		m.check(Membership{Group: m.group(3), Mode: Exclude, Sources: []netip.Addr{s}})
		m.must(m.do(OpLeave, ok.g, netip.Addr{}))
	}
	for _, bad := range []struct {
		g Group
		s netip.Addr
	}{
		{zoned("eth1", 2), s},
		{zoned("eth7", 0), s},
		{zoned("0", 0), s},
		{m.group(2), s.WithZone("3")},
		{zoned("eth0", 0), s.WithZone("eth1")},
	} {
		if err := m.do(OpJoinSource, bad.g, bad.s); !errors.Is(err, ErrInterface) {
			t.Errorf("JoinSource %v %v: %v, want ErrInterface", bad.g, bad.s, err)
		}
		if err := m.requests.set(bad.g, Include, []netip.Addr{bad.s}); !errors.Is(err, ErrInterface) {
			t.Errorf("SetFilter %v %v: %v, want ErrInterface", bad.g, bad.s, err)
		}
	}
	if err := m.requests.set(g, Include, []netip.Addr{s.WithZone("2"), s.WithZone("3")}); !errors.Is(err, ErrInterface) {
		t.Errorf("SetFilter with two zones: %v, want ErrInterface", err)
	}
	m.check()
}

// TestBoundSocket hears its group on its interface, or with a unicast address
// nothing.
func TestBoundSocket(t *testing.T) {
	m := newModel(t, onLinux, false)
	m.bound = m.group(3)
	other := Group{netip.MustParseAddr("239.9.9.9"), 3}
	for _, tt := range []struct {
		g    Group
		want error
	}{{other, ErrAddress}, {Group{Addr: other.Addr}, ErrAddress}, {m.group(2), ErrInterface}} {
		for _, err := range []error{
			m.do(OpJoin, tt.g, netip.Addr{}), m.do(OpJoinSource, tt.g, m.source(1)), m.requests.set(tt.g, Exclude, nil),
		} {
			if !errors.Is(err, tt.want) {
				t.Errorf("%v: %v, want %v", tt.g, err, tt.want)
			}
		}
	}
	m.must(m.do(OpJoin, m.group(0), netip.Addr{}))
	m.check(Membership{Group: m.group(3), Mode: Exclude})
	if len(m.host.asked) > 0 {
		t.Errorf("routes asked for: %v", m.host.asked)
	}

	m = newModel(t, onLinux, false)
	m.unicast = netip.MustParseAddr("192.0.2.1")
	six := netip.MustParseAddr("ff1e::1")
	for _, err := range []error{
		m.do(OpJoin, m.group(2), netip.Addr{}), m.requests.set(m.group(2), Include, m.sources(1)),
		m.do(OpJoin, Group{six, 2}, netip.Addr{}),
	} {
		if !errors.Is(err, ErrAddress) {
			t.Errorf("%v, want ErrAddress", err)
		}
	}
	if m.calls != 1 { // IP_MULTICAST_ALL
		t.Errorf("%d calls", m.calls)
	}
}

// TestOtherFamily says which network to open.
func TestOtherFamily(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		m, other := newModel(t, onLinux, ipv6), newModel(t, onLinux, !ipv6)
		err := m.do(OpJoinSource, other.group(2), other.source(1))
		if want := fmt.Sprintf("%q", endpoint{ipv6: !ipv6}.network()); !errors.Is(err, ErrAddress) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want ErrAddress and %s", err, want)
		}
		m.check()
	}
}

// TestHearOnlyOwn: Linux is told not to hand over what other sockets joined;
// without the option the filter does it alone.
func TestHearOnlyOwn(t *testing.T) {
	for _, old := range []bool{false, true} {
		eachSystem(t, []requestSystem{onLinux.with(fmt.Sprintf("4.19 %v", old), func(k *kerneltest.Kernel) { k.NoIPv6MulticastAll = old })}, func(t *testing.T, y requestSystem, ipv6 bool) {
			m := newModel(t, y, ipv6)
			_, other := m.open(ipv6)
			m.must(other.do(OpJoin, m.group(2), netip.Addr{}))
			if got, want := m.sock.Delivers(2, m.group(2).Addr, m.source(1)), old && ipv6; got != want {
				t.Errorf("the kernel leaks: %v, want %v", got, want)
			}
			if m.filter.Allows(m.group(2), m.source(1)) {
				t.Error("the filter leaks")
			}
		})
	}
}

// TestRequestsConcurrently: filter and kernel agree, whoever asks.
func TestRequestsConcurrently(t *testing.T) {
	m := newModel(t, onLinux, true)
	m.k.Fault = nil // it counts calls without a lock
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 5))
			for range 300 {
				g := m.group(1 + rng.IntN(3))
				if rng.IntN(5) == 0 {
					m.requests.set(g, Mode(rng.IntN(2)), m.sources(1+rng.IntN(4)))
				} else {
					m.do(Op(rng.IntN(numOps)), g, m.source(1+rng.IntN(4)))
				}
				m.system(g)
			}
		})
	}
	wg.Wait()
	if s := m.disagree(); s != "" {
		t.Error(s)
	}
}

// A plainSocket is of a system without any of the options.
type plainSocket struct {
	modelSocket
	joined map[Group]bool
}

func (s plainSocket) joinGroup(g Group) error  { s.joined[g] = true; return nil }
func (s plainSocket) leaveGroup(g Group) error { delete(s.joined, g); return nil }

// TestJoinsOnly: a system without source filters joins and leaves groups.
func TestJoinsOnly(t *testing.T) {
	eachSystem(t, []requestSystem{{name: "plain", kernel: kerneltest.Linux, platform: &platform{name: "this system"}}}, func(t *testing.T, y requestSystem, ipv6 bool) {
		m := newModel(t, y, ipv6)
		s := plainSocket{joined: map[Group]bool{}}
		m.requests.kernel.sock = s
		has := func(want ...Membership) {
			t.Helper()
			if got := fmt.Sprint(m.filter.Memberships()); got != fmt.Sprint(want) || len(s.joined) != len(want) {
				t.Errorf("memberships %s, joined %v, want %v", got, s.joined, want)
			}
		}
		unsupported := func(errs ...error) {
			t.Helper()
			for _, err := range errs {
				if !errors.Is(err, errors.ErrUnsupported) {
					t.Errorf("%v, want ErrUnsupported", err)
				}
			}
		}
		unsupported(m.do(OpJoinSource, m.group(2), m.source(1)), m.become(m.include(1)), m.become(m.exclude(1)))
		has()
		m.must(m.become(m.exclude()))
		has(m.exclude())
		unsupported(m.do(OpBlock, m.group(2), m.source(1)), m.become(m.exclude(1)), m.become(m.include(1)))
		_, err := m.system(m.group(2))
		unsupported(err)
		has(m.exclude())
		m.must(m.do(OpLeave, m.group(2), netip.Addr{}))
		has()
	})
}
