package mcast

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"maps"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"example.com/mcast/internal/netif"
)

// A Pool receives any number of groups and channels. Kernels limit the
// memberships of a socket, and with each one more its datagrams cost more, so a
// Pool spreads them over as many sockets as it takes, which it opens and closes
// as they are needed: one to a group where the system can bind to it. The zero
// Pool is not open.
//
// Its requests, and its promise, are those of a [Conn]. They are about groups
// on the port that it was opened with; [Pool.On] makes them on another one.
// Config.GRO has no effect, and Config.ReadBuffer is for each socket.
//
// All methods may be called concurrently. ReadBatch reads from all sockets, each
// in its turn, however busy another one is; one goroutine for each core may call
// it. Requests are carried out one after the other; readers never wait for them.
type Pool struct {
	*Members // on the port that the Pool was opened with

	cfg      *Config
	ipv6     bool
	host     netif.Host
	sockets  poolSockets
	delivery delivery
	late     atomic.Pointer[error] // of a socket that was read after others: for the next reader
	events   *events
	anchor   anchor

	namespace uint64 // the network namespace of the anchor

	mu     sync.Mutex
	ports  map[int]*Members
	shards []*shard // in the order in which they were opened
	gone   uint64   // Dropped of those that were closed
	warned bool     // the log has been told of wildcard sockets
	closed bool
}

// Members are the memberships of a [Pool] on one port. Its methods are those of
// a [Conn].
type Members struct {
	requests
	pool *Pool
	port int
	on   map[netip.Addr][]*shard // the sockets that have entries of a group
	wild []*shard                // those that are not bound to a group
	most int                     // sources that one socket was seen to refuse; 0: none

	// early are sockets that were opened before the request that needs them is
	// made again, since Config.Control is called with no lock held.
	early struct {
		sync.Mutex
		sockets []earlySocket
	}
}

type earlySocket struct {
	at  endpoint
	s   *shard
	err error
}

// noPort is the port of a Pool that was opened on none.
const noPort = -1

// A shard is one of a Pool's sockets. What a reader needs of it is together at the
// front: of many thousands, little is in the processor's caches.
type shard struct {
	*ledger
	id    int // under the lock of the sockets, as the next
	state shardState

	// On Linux.
	fd     int // of the socket
	origin origin
	its    ledger

	socket  poolSocket
	members *Members
	addr    netip.Addr // the group that it is bound to, if any
	unicast bool       // it is there for unicast datagrams
}

// A poolSocket is what a shard asks of a system's socket.
type poolSocket interface {
	drops() uint64
	close() error
}

// poolSockets wait for a Pool's sockets.
type poolSockets interface {
	// add opens the socket of a shard, with its ledger, and waits for it.
	add(s *shard, at endpoint, p *Pool) error
	// remove closes the socket of a shard, now or when its reader is done.
	remove(s *shard)
	// borrow gives a reader what it has to itself, until giveBack.
	borrow() poolReader
	giveBack(poolReader)
	// wake makes readers that wait return; the error that they get passes when
	// calm is called.
	wake()
	calm()
	setReadDeadline(t time.Time) error
	readBuffer() int
	close() error
}

// A poolReader is one reader at a Pool's sockets.
type poolReader interface {
	// next gives the reader some shards that have something to read, for ms.
	// Without any it waits, if it is the first of a batch, or returns none.
	// rested says that some time has passed since the one before.
	next(ms []Message, first, rested bool) (takes []take, waited bool, err error)
	// read reads what is there, from one after the other, into ms.
	read(takes []take, ms []Message)
	// release takes the shards back.
	release(takes []take)
}

// A take is a shard that a reader has, and what it has read from it.
type take struct {
	*shard
	n      int   // messages
	more   bool  // there may be more to read
	unread bool  // nothing was tried: there was no room
	err    error // in place of messages
}

// A shardState says who has a shard.
type shardState uint8

const (
	idle    shardState = iota // the system
	queued                    // the queue
	owned                     // a reader
	again                     // a reader, and something has come in since
	removed                   // nobody: to be closed by whoever has it
)

// An anchor is a socket that keeps a port, and answers for its host.
type anchor interface {
	raw() syscall.RawConn
	port() int
	close() error
}

// errWoken is what a reader gets that was woken by poolSockets.wake.
var errWoken = errors.New("woken")

// ListenPool opens a Pool on a port. The network is "udp4" or "udp6", the
// address ":5000"; ":0" has the system pick a port, which LocalAddr tells. With
// "" there is none: requests on the Pool itself are [ErrAddress], and
// [Pool.On] is used.
//
// The error is an [*OpError] with [ErrAddress], or what the system said.
func ListenPool(network, address string, cfg *Config) (*Pool, error) {
	p, err := listenPool(network, address, cfg)
	if err != nil {
		return nil, opError("ListenPool", Group{}, netip.Addr{}, err)
	}
	return p, nil
}

func listenPool(network, address string, cfg *Config) (*Pool, error) {
	at, err := parsePool(network, address)
	if err != nil {
		return nil, err
	}
	p := &Pool{ipv6: at.ipv6, cfg: cfg.withDefaults(), ports: make(map[int]*Members)}
	if p.sockets, err = newPoolSockets(p.cfg); err != nil {
		return nil, err
	}
	if p.anchor, err = newAnchor(at, p.cfg); err != nil {
		p.sockets.close()
		return nil, err
	}
	if at.port == 0 {
		at.port = p.anchor.port()
	}
	p.host = netif.HostOf(p.anchor.raw())
	p.namespace = p.host.Namespace()
	p.delivery.init(p.cfg, p.host, Group{})
	p.events = &events{cfg: p.cfg}
	p.Members = p.on(at.port)
	if p.cfg.Unicast && at.port != noPort {
		m := p.Members
		m.mu.Lock()
		err := m.hearUnicast()
		if err != nil {
			err = m.patiently(err, m.hearUnicast)
		}
		m.mu.Unlock()
		if err != nil {
			p.Close()
			return nil, err
		}
	}
	return p, nil
}

func parsePool(network, address string) (at endpoint, err error) {
	if address == "" {
		switch network {
		case "udp4", "udp6":
			return endpoint{ipv6: network == "udp6", port: noPort}, nil
		case "udp":
			return at, because(ErrAddress, `a Pool is of one family: use the network "udp4" or "udp6"`)
		}
		return at, net.UnknownNetworkError(network)
	}
	at, err = parseListen(network, address)
	if err == nil && (at.group.Addr.IsValid() || at.unicast.IsValid()) {
		err = because(ErrAddress, `a Pool listens on a port of every address, as in ":5000", not on %q`, address)
	}
	return at, err
}

// On returns the Pool's memberships on a port, 1 to 65535. It opens nothing.
func (p *Pool) On(port int) *Members {
	if p.sockets == nil {
		return new(Members)
	}
	if port < 1 || port > 65535 {
		port = noPort
	}
	return p.on(port)
}

func (p *Pool) on(port int) *Members {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.ports[port]
	if m == nil {
		m = &Members{pool: p, port: port, on: make(map[netip.Addr][]*shard)}
		m.init(hostSystem, p.host, endpoint{ipv6: p.ipv6}, p.cfg)
		m.sockets, m.events, m.noPort = m, p.events, port == noPort
		m.closed = p.closed
		p.ports[port] = m
	}
	return m
}

// orZero makes the zero Pool, which has no Members, answer as zero Members do.
func (m *Members) orZero() *Members {
	if m == nil {
		return new(Members)
	}
	return m
}

// Join is as for [Conn.Join].
func (m *Members) Join(g Group) error { return m.orZero().do(OpJoin, g, netip.Addr{}) }

// JoinSource is as for [Conn.JoinSource].
func (m *Members) JoinSource(g Group, source netip.Addr) error {
	return m.orZero().do(OpJoinSource, g, source)
}

// Block is as for [Conn.Block].
func (m *Members) Block(g Group, source netip.Addr) error { return m.orZero().do(OpBlock, g, source) }

// Unblock is as for [Conn.Unblock].
func (m *Members) Unblock(g Group, source netip.Addr) error {
	return m.orZero().do(OpUnblock, g, source)
}

// Leave is as for [Conn.Leave].
func (m *Members) Leave(g Group) error { return m.orZero().do(OpLeave, g, netip.Addr{}) }

// LeaveSource is as for [Conn.LeaveSource].
func (m *Members) LeaveSource(g Group, source netip.Addr) error {
	return m.orZero().do(OpLeaveSource, g, source)
}

// SetFilter is as for [Conn.SetFilter].
func (m *Members) SetFilter(g Group, mode Mode, sources ...netip.Addr) error {
	return m.orZero().set(g, mode, sources)
}

// Memberships is as for [Conn.Memberships].
func (m *Members) Memberships() []Membership { return m.orZero().memberships() }

// SystemFilter is as for [Conn.SystemFilter].
func (m *Members) SystemFilter(g Group) (Membership, error) { return m.orZero().system(g) }

// GroupStats is as for [Conn.GroupStats]. Dropped is counted where one socket
// serves the group alone.
func (m *Members) GroupStats() iter.Seq2[Group, GroupStats] {
	return func(yield func(Group, GroupStats) bool) {
		if m == nil || m.pool == nil {
			return
		}
		drops := m.dropsByGroup()
		for g, s := range m.groupStats() {
			s.Dropped = drops[g.Addr]
			if !yield(g, s) {
				return
			}
		}
	}
}

// dropsByGroup has what the kernel dropped of each group that has sockets of
// its own.
func (m *Members) dropsByGroup() map[netip.Addr]uint64 {
	p := m.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	drops := make(map[netip.Addr]uint64)
	for _, s := range p.shards {
		if s.members == m && s.addr.IsValid() {
			drops[s.addr] += s.socket.drops()
		}
	}
	return drops
}

// LocalAddr returns the port, on every address; port 0 if there is none.
func (m *Members) LocalAddr() net.Addr {
	m = m.orZero()
	at := endpoint{ipv6: m.ipv6, port: max(m.port, 0)}
	return net.UDPAddrFromAddrPort(at.addrPort(false))
}

// ledgers is for [holder].
func (m *Members) ledgers(group netip.Addr) []*ledger {
	var shards []*shard
	if group.IsValid() {
		shards = m.on[group]
	} else {
		shards = m.all()
	}
	ls := make([]*ledger, len(shards))
	for i, s := range shards {
		ls[i] = s.ledger
	}
	return ls
}

// all returns the sockets of the port.
func (m *Members) all() []*shard {
	m.pool.mu.Lock()
	defer m.pool.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(m.pool.shards), func(s *shard) bool { return s.members != m })
}

// hearings is for [holder].
func (m *Members) hearings(yield func(groupIndex, *hearing) bool) {
	for _, s := range m.all() {
		for at, h := range s.heard.all {
			if !yield(at, h) {
				return
			}
		}
	}
}

// reconcile is for [holder]. Each socket keeps what it has of the targets; what
// none has goes to one that has the membership already, then to one that has
// room, then to a new one. A kernel where one filter decides for all interfaces
// gets one interface a socket, so that no filter is wider than asked for.
func (m *Members) reconcile(group netip.Addr, targets []target) error {
	if m.pool.cfg.Unicast && len(targets) > 0 {
		if err := m.hearUnicast(); err != nil {
			for i := range targets {
				targets[i].err = err
			}
			return nil
		}
	}
	for _, s := range slices.Clone(m.on[group]) {
		if len(s.entries(group)) == 0 { // they were lost since
			m.track(s, group)
		}
	}
	on := slices.Clone(m.on[group])
	plans := make(map[*shard][]target, len(on)+1)
	missing := make([]sourceFilter, len(targets))
	for i := range targets {
		missing[i] = m.retain(group, on, targets[i], plans)
	}
	for i := range targets {
		t := &targets[i]
		t.err = nil
		if !missing[i].none() {
			t.err = m.assign(group, *t, missing[i], plans)
		}
	}
	// The others only shrink, or stay; and stay where a target has failed.
	var left error
	for _, s := range on {
		for i := range targets {
			t := &targets[i]
			if e := s.entry(groupIndex{group, t.index}); t.err != nil && e != nil && e.trust == exact && targetFor(plans[s], t.index) == nil {
				plans[s] = append(plans[s], e.kept())
			}
		}
		left = cmp.Or(left, s.reconcile(group, plans[s]))
		for _, part := range plans[s] {
			if t := targetFor(targets, part.index); t != nil && t.err == nil {
				t.err = part.err
			}
		}
	}
	for s := range plans {
		m.track(s, group)
	}
	for _, s := range on {
		m.track(s, group)
	}
	return left
}

// retain notes which parts of a target the sockets have already, and returns what
// none has.
func (m *Members) retain(group netip.Addr, on []*shard, t target, plans map[*shard][]target) sourceFilter {
	rest := t.filter
	for _, s := range on {
		e := s.entry(groupIndex{group, t.index})
		if e == nil || e.trust != exact || e.share.mode != t.filter.mode || rest.none() {
			continue
		}
		part := t
		if t.filter.mode == Include {
			part.filter.sources = common(e.share.sources, rest.sources)
			rest.sources = minus(rest.sources, part.filter.sources)
		} else if rest = (sourceFilter{}); !e.share.equal(t.filter) {
			// It changes, and may find no room: assign sees to that.
			return t.filter
		}
		if !part.filter.none() {
			plans[s] = append(plans[s], part)
		}
	}
	return rest
}

// assign finds room for what is missing of a target.
func (m *Members) assign(group netip.Addr, t target, missing sourceFilter, plans map[*shard][]target) error {
	var limit error
	for _, s := range m.candidates(group, t) {
		spent := s.spent != nil
		err := m.fill(s, group, t, &missing, plans)
		if missing.none() || !errors.Is(err, ErrLimit) || !spent && s.spent != nil {
			return err
		}
		limit = err
	}
	for {
		s, err := m.open(group, t)
		if err != nil {
			return errors.Join(limit, err)
		}
		before := len(missing.sources)
		err = m.fill(s, group, t, &missing, plans)
		if missing.none() {
			return nil
		}
		if !errors.Is(err, ErrLimit) || s.spent != nil || missing.mode == Exclude || len(missing.sources) == before {
			m.track(s, group)
			return err
		}
	}
}

// fill has a socket take as much of what is missing as it can. The error is
// about the rest.
func (m *Members) fill(s *shard, group netip.Addr, t target, missing *sourceFilter, plans map[*shard][]target) error {
	var before target // what it has now
	if e := s.entry(groupIndex{group, t.index}); e != nil && e.trust == exact {
		before = e.kept()
	}
	others := slices.DeleteFunc(slices.Clone(plans[s]), func(p target) bool { return p.index == t.index })
	var later []target // what has its turn later stays as it is until then
	for _, e := range s.entries(group) {
		if e.trust == exact && e.index != t.index && targetFor(others, e.index) == nil {
			later = append(later, e.kept())
		}
	}
	had := targetFor(plans[s], t.index)
	var kept []netip.Addr // of missing's kind, by the plan so far
	if had != nil {
		kept = had.filter.sources
	}
	try := func(f sourceFilter) error {
		part := t
		part.filter = f
		all := append(slices.Concat(others, later), part)
		s.reconcile(group, all)
		if err := all[len(all)-1].err; err != nil {
			return err
		}
		plans[s] = append(slices.Clip(others), part)
		return nil
	}
	var err error
	for n := m.fitting(len(kept), missing); ; n /= 2 {
		want := *missing
		if missing.mode == Include {
			want = newSourceFilter(Include, slices.Concat(kept, missing.sources[:n]))
		}
		if err = try(want); err == nil {
			if missing.mode == Exclude || n == len(missing.sources) {
				*missing = sourceFilter{}
				return nil
			}
			missing.sources = missing.sources[n:]
			return because(ErrLimit, "no room for more sources in one socket")
		}
		if !errors.Is(err, ErrLimit) || missing.mode == Exclude || n <= 1 || s.spent != nil {
			break
		}
		m.most = len(want.sources)
	}
	// As it was.
	back := slices.Concat(others, later)
	if !before.filter.none() {
		back = append(back, before)
	}
	s.reconcile(group, back)
	return err
}

// fitting guesses how many more sources a socket takes that has some.
func (m *Members) fitting(has int, missing *sourceFilter) int {
	n := len(missing.sources)
	for missing.mode == Include && m.most > 0 && n > 1 && has+n >= m.most {
		n /= 2
	}
	return n
}

// candidates returns the sockets that could take a target: first those that
// have some of it, then those that have room for one more membership.
func (m *Members) candidates(group netip.Addr, t target) (cs []*shard) {
	at := groupIndex{group, t.index}
	for _, s := range slices.Backward(m.on[group]) {
		if s.entry(at) != nil {
			cs = append(cs, s)
		}
	}
	free := m.on[group]
	if len(free) == 0 && (!m.canBind() || linkScoped(group)) {
		free = m.wild
	}
	for _, s := range slices.Backward(free) {
		if s.entry(at) == nil && s.spent == nil && s.size < m.platform.perSocket && !m.meets(s, group, t) {
			cs = append(cs, s)
		}
	}
	return cs
}

// meets reports whether a socket has another membership of the group, and its
// kernel would mix their filters up.
func (m *Members) meets(s *shard, group netip.Addr, t target) bool {
	return m.ipv6 && s.kernel.oneFilter && slices.ContainsFunc(s.entries(group), func(e *entry) bool { return e.member != t.member })
}

// track records whether a socket has entries of a group, and closes it when it
// has none at all.
func (m *Members) track(s *shard, addr netip.Addr) {
	on := m.on[addr]
	switch i := slices.Index(on, s); {
	case len(s.entries(addr)) > 0:
		if i < 0 {
			m.on[addr] = append(on, s)
		}
		return
	case i >= 0 && len(on) == 1:
		delete(m.on, addr)
	case i >= 0:
		m.on[addr] = slices.Delete(slices.Clone(on), i, i+1)
	}
	if s.size == 0 && !s.unicast {
		m.pool.remove(s)
	}
}

// boundSockets is how many sockets of all Pools are bound to a group.
var boundSockets atomic.Int64

// canBind reports whether one more group may have a socket of its own. Only half
// of the descriptors that the program may have go there; the other half serve
// 20 groups each.
func (m *Members) canBind() bool {
	return m.platform.ownSockets && boundSockets.Load() < int64(maxDescriptors()/2)
}

// open opens a socket for a group, bound to it if possible.
func (m *Members) open(group netip.Addr, t target) (*shard, error) {
	bind := m.canBind() && !linkScoped(group)
	s, err := m.add(group, bind)
	if err != nil && bind && outOfDescriptors(err) {
		// Others have them: share what there is.
		for _, w := range m.wild {
			if w.entry(groupIndex{group, t.index}) == nil && w.spent == nil && w.size < m.platform.perSocket && !m.meets(w, group, t) {
				return w, nil
			}
		}
	}
	if err != nil && outOfDescriptors(err) {
		return nil, &reason{kind: ErrLimit, cause: err, text: "no file descriptors for one more socket: raise RLIMIT_NOFILE (ulimit -n)"}
	}
	return s, err
}

// add opens a socket.
func (m *Members) add(group netip.Addr, bind bool) (*shard, error) {
	p := m.pool
	at := endpoint{ipv6: p.ipv6, port: m.port, namespace: p.namespace}
	if bind {
		at.group = Group{Addr: group}
	}
	open := m.socket
	if p.cfg.Control != nil {
		open = m.earlySocket
	}
	s, err := open(at)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shards = append(p.shards, s)
	if bind {
		boundSockets.Add(1)
		return s, nil
	}
	m.wild = append(m.wild, s)
	if m.platform.ownSockets && !p.warned && !m.canBind() {
		p.warned = true
		p.events.warn("mcast: too few file descriptors for a socket to each group: datagrams cost more", "descriptors", maxDescriptors())
	}
	return s, nil
}

// socket opens a socket, which the Pool does not count yet.
func (m *Members) socket(at endpoint) (*shard, error) {
	p := m.pool
	s := &shard{members: m, addr: at.group.Addr}
	err := p.sockets.add(s, at, p)
	if errors.Is(err, errElsewhere) {
		err = p.inside(func() error { return p.sockets.add(s, at, p) })
	}
	if err != nil {
		return nil, err
	}
	s.pooled = true
	return s, nil
}

// earlySocket gives what became of a socket that was opened early; if none was,
// it is to be, and the request to be made again.
func (m *Members) earlySocket(at endpoint) (*shard, error) {
	m.early.Lock()
	defer m.early.Unlock()
	i := slices.IndexFunc(m.early.sockets, func(e earlySocket) bool { return e.at == at })
	if i < 0 {
		// One more each time: one may be taken, and given up, for something else.
		return nil, &tooSoon{first: func(times int) {
			for range times {
				s, err := m.socket(at)
				m.early.Lock()
				m.early.sockets = append(m.early.sockets, earlySocket{at, s, err})
				m.early.Unlock()
			}
		}}
	}
	e := m.early.sockets[i]
	m.early.sockets = slices.Delete(m.early.sockets, i, i+1)
	return e.s, e.err
}

// tidy is for [holder].
func (m *Members) tidy() {
	m.early.Lock()
	defer m.early.Unlock()
	for _, e := range m.early.sockets {
		if e.err == nil {
			m.pool.sockets.remove(e.s)
		}
	}
	m.early.sockets = nil
}

// inside calls f in the network namespace that the Pool was opened in: its sockets
// belong there, whatever thread makes the request.
func (p *Pool) inside(f func() error) error {
	if h, ok := p.host.(interface{ Inside(f func() error) error }); ok {
		return h.Inside(f)
	}
	return f()
}

// hearUnicast opens a socket for unicast datagrams, once.
func (m *Members) hearUnicast() error {
	if slices.ContainsFunc(m.wild, func(s *shard) bool { return s.unicast }) {
		return nil
	}
	s, err := m.add(netip.Addr{}, false)
	if err == nil {
		s.unicast = true
	}
	return err
}

// remove closes a socket, after nothing else can find it.
func (p *Pool) remove(s *shard) {
	p.mu.Lock()
	// Look from the end: who opens last often closes first.
	i := len(p.shards) - 1
	for i >= 0 && p.shards[i] != s {
		i--
	}
	if i < 0 { // it has been
		p.mu.Unlock()
		return
	}
	p.shards = slices.Delete(p.shards, i, i+1)
	p.forget(s)
	p.mu.Unlock()
	p.sockets.remove(s)
}

// forget counts a socket as closed. Called with the lock.
func (p *Pool) forget(s *shard) {
	p.gone += s.socket.drops()
	if s.addr.IsValid() {
		boundSockets.Add(-1)
	} else {
		s.members.wild = slices.DeleteFunc(s.members.wild, func(x *shard) bool { return x == s })
	}
}

// everyPort returns the memberships on all ports.
func (p *Pool) everyPort() []*Members {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Values(p.ports))
}

// Repair is as for [Conn.Repair], for the memberships on all ports.
func (p *Pool) Repair() error {
	if p.sockets == nil {
		return opError("Repair", Group{}, netip.Addr{}, errNotOpen)
	}
	var qs []*requests
	for _, m := range p.everyPort() {
		qs = append(qs, &m.requests)
	}
	return repair(qs)
}

// ReadMessage reads one datagram, as ReadBatch does.
func (p *Pool) ReadMessage(m *Message) error {
	_, err := p.ReadBatch(unsafe.Slice(m, 1))
	return err
}

// ReadBatch reads datagrams that the filter lets through, from all sockets, as
// [Conn.ReadBatch] does. Message.Port tells the port.
func (p *Pool) ReadBatch(ms []Message) (int, error) {
	if err := checkRoom(ms); err != nil {
		return 0, opError("ReadBatch", Group{}, netip.Addr{}, err)
	}
	return p.readInto(ms, nil)
}

// readInto reads at least one datagram, or until done is closed.
func (p *Pool) readInto(ms []Message, done <-chan struct{}) (int, error) {
	if p.sockets == nil {
		return 0, readError(errNotOpen)
	}
	r := p.sockets.borrow()
	defer p.sockets.giveBack(r)
	if p.late.Load() != nil {
		if err := p.late.Swap(nil); err != nil {
			return 0, readError(*err)
		}
	}
	n, slept, rested := 0, false, false
	for n < len(ms) {
		takes, waited, err := r.next(ms[n:], n == 0, rested)
		rested = false
		if errors.Is(err, errWoken) {
			select {
			case <-done:
				return 0, context.Canceled
			default: // somebody else was meant, and is about to leave
				runtime.Gosched()
				continue
			}
		}
		if err != nil && n > 0 {
			break // the next read will find it
		}
		if err != nil {
			return 0, readError(err)
		}
		if len(takes) == 0 {
			break
		}
		r.read(takes, ms[n:])
		from := n
		var c counted
		for i := range takes {
			t := &takes[i]
			got := p.delivery.pick(t.ledger, ms[from:from+t.n], &c)
			for k := 0; n != from && k < got; k++ {
				ms[n+k], ms[from+k] = ms[from+k], ms[n+k]
			}
			n += got
			from += t.n
			if t.err != nil {
				err = t.err
			}
		}
		p.delivery.count(&c)
		r.release(takes)
		switch {
		case err != nil && n > 0:
			late := err // which is allocated here alone
			p.late.Store(&late)
			return n, nil
		case err != nil:
			return 0, readError(err)
		}
		if waited && !slept && n < len(ms) && p.cfg.Coalesce > 0 {
			slept, rested = true, true
			time.Sleep(p.cfg.Coalesce)
		}
	}
	return n, nil
}

// Messages is as for [Conn.Messages].
func (p *Pool) Messages(ctx context.Context, size int) iter.Seq2[*Message, error] {
	wake, calm := func() {}, func() {}
	if p.sockets != nil {
		wake, calm = p.sockets.wake, p.sockets.calm
	}
	return messages(ctx, size, func(m *Message, done <-chan struct{}) error {
		ms := unsafe.Slice(m, 1)
		if err := checkRoom(ms); err != nil {
			return opError("Messages", Group{}, netip.Addr{}, err)
		}
		_, err := p.readInto(ms, done)
		return err
	}, wake, calm)
}

// SetReadDeadline sets the deadline of reads, those under way too.
func (p *Pool) SetReadDeadline(t time.Time) error {
	err := errNotOpen
	if p.sockets != nil {
		err = p.sockets.setReadDeadline(t)
	}
	if err != nil {
		return opError("SetReadDeadline", Group{}, netip.Addr{}, err)
	}
	return nil
}

// Stats returns the sums over all sockets. ReadBuffer is that of one socket.
func (p *Pool) Stats() Stats {
	s := p.delivery.stats()
	if p.sockets == nil {
		return s
	}
	s.ReadBuffer = p.sockets.readBuffer()
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Dropped = p.gone
	for _, shard := range p.shards {
		s.Dropped += shard.socket.drops()
	}
	return s
}

// Sockets returns the number of sockets that are open.
func (p *Pool) Sockets() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.shards)
}

// Close closes all sockets, which ends the memberships. Reads that are under
// way return with [net.ErrClosed].
func (p *Pool) Close() error {
	if p.sockets == nil {
		return opError("Close", Group{}, netip.Addr{}, errNotOpen)
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return opError("Close", Group{}, netip.Addr{}, net.ErrClosed)
	}
	p.closed = true
	p.mu.Unlock()
	for _, m := range p.everyPort() { // wait for requests under way, take no new ones
		m.end()
	}
	p.mu.Lock()
	shards := p.shards
	p.shards = nil
	for _, s := range shards {
		p.forget(s)
	}
	p.mu.Unlock()
	for _, s := range slices.Backward(shards) { // kernels find the newest membership first
		p.sockets.remove(s)
	}
	err := p.sockets.close()
	p.anchor.close()
	p.events.end()
	return err
}

// outOfDescriptors reports whether the program, or the system, has no file
// descriptor left.
func outOfDescriptors(err error) bool {
	return errors.Is(err, syscall.EMFILE) || strings.Contains(err.Error(), "too many open files")
}
