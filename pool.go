package mcast

import (
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"
)

// A Pool receives any number of groups and channels. Kernels limit the
// memberships of a socket, and with each one more its datagrams cost more, so a
// Pool spreads them over as many sockets as it takes, which it opens and closes
// as they are needed: one to a group where the system can bind to it.
//
// Its requests, and its promise, are those of a [Conn]. They are about groups
// on the port that it was opened with; [Pool.On] makes them on another one.
// Config.GRO has no effect, and Config.ReadBuffer is for each socket.
//
// All methods may be called concurrently. ReadBatch reads from all sockets; one
// goroutine for each core may call it. Requests are carried out one after the
// other; readers never wait for them.
type Pool struct {
	*Members // on the port that the Pool was opened with

	cfg     Config
	ipv6    bool
	sockets sockets
	counts

	mu     sync.Mutex
	ports  map[int]*Members
	shards []*shard // in the order in which they were opened
	bound  int      // how many of them are bound to a group
	gone   uint64   // Dropped of those that were closed
	wide   bool     // the log has been told of wildcard sockets
	closed bool
}

// Members are the memberships of a [Pool] on one port. Its methods are those of
// a [Conn].
type Members struct {
	requests
	pool *Pool
	port int
	on   map[netip.Addr][]*shard // the sockets that have memberships of a group
	wild []*shard                // those that are not bound to a group
}

// A shard is one of a Pool's sockets.
type shard struct {
	*requests
	socket  poolSocket
	members *Members
	addr    netip.Addr // the group that it is bound to, if any

	// Under the lock of sockets.
	id    int
	state shardState
}

// A poolSocket is what a shard asks of a system's sockets.
type poolSocket interface {
	// read reads what is there, and reports whether there may be more.
	read(in *scratch, ms []Message) (n int, more bool, err error)
	drops() uint64
	close() error
}

// ListenPool opens a Pool on a port. The network is "udp4" or "udp6", the
// address ":5000".
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
	at, err := parseListen(network, address)
	switch {
	case err != nil:
		return nil, err
	case at.group.Addr.IsValid() || at.unicast.IsValid() || at.port == 0:
		return nil, because(ErrAddress, `a Pool listens on a port of every address, as in ":5000", not on %q`, address)
	}
	p := &Pool{ipv6: at.ipv6, ports: make(map[int]*Members)}
	if cfg != nil {
		p.cfg = *cfg
	}
	if p.cfg.Logger == nil {
		p.cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if err := p.sockets.open(); err != nil {
		return nil, err
	}
	p.Members = p.On(at.port)
	return p, nil
}

// On returns the Pool's memberships on a port. It opens nothing.
func (p *Pool) On(port int) *Members {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.ports[port]
	if m == nil {
		m = &Members{pool: p, port: port, on: make(map[netip.Addr][]*shard)}
		m.requests.ipv6, m.requests.anySource = p.ipv6, p.cfg.AnySource
		m.requests.kernel.host, m.requests.via = theHost, m
		m.requests.closed = p.closed
		m.requests.noWatch, m.requests.notify = p.cfg.NoWatch, p.cfg.notify
		p.ports[port] = m
	}
	return m
}

// Join is as for [Conn.Join].
func (m *Members) Join(g Group) error { return m.do(OpJoin, g, netip.Addr{}) }

// JoinSource is as for [Conn.JoinSource].
func (m *Members) JoinSource(g Group, source netip.Addr) error { return m.do(OpJoinSource, g, source) }

// Block is as for [Conn.Block].
func (m *Members) Block(g Group, source netip.Addr) error { return m.do(OpBlock, g, source) }

// Unblock is as for [Conn.Unblock].
func (m *Members) Unblock(g Group, source netip.Addr) error { return m.do(OpUnblock, g, source) }

// Leave is as for [Conn.Leave].
func (m *Members) Leave(g Group) error { return m.do(OpLeave, g, netip.Addr{}) }

// LeaveSource is as for [Conn.LeaveSource].
func (m *Members) LeaveSource(g Group, source netip.Addr) error {
	return m.do(OpLeaveSource, g, source)
}

// SetFilter is as for [Conn.SetFilter].
func (m *Members) SetFilter(g Group, mode Mode, sources ...netip.Addr) error {
	return m.set(g, mode, sources)
}

// Memberships is as for [Conn.Memberships].
func (m *Members) Memberships() []Membership { return m.filter.Memberships() }

// SystemFilter is as for [Conn.SystemFilter].
func (m *Members) SystemFilter(g Group) (Membership, error) { return m.system(g) }

// LocalAddr returns the port, on every address.
func (m *Members) LocalAddr() net.Addr {
	at := endpoint{ipv6: m.ipv6, port: m.port}
	return net.UDPAddrFromAddrPort(at.addrPort(false))
}

// request carries out a request on one of the group's sockets, and on one more
// if that has no room.
func (m *Members) request(r Request, _ status, _ int) error {
	on := m.holding(r.Group)
	if r.Op == OpJoin || r.Op == OpJoinSource {
		var err error
		for _, s := range slices.Backward(append(m.free(r.Group), on...)) {
			if err = m.tell(s, r); !errors.Is(err, ErrLimit) {
				return err
			}
		}
		s, e := m.add(r.Group.Addr)
		if e != nil {
			return errors.Join(err, e)
		}
		return m.tell(s, r)
	}
	for _, s := range on {
		now, _ := s.filter.Membership(r.Group)
		if r.Op != OpLeaveSource || slices.Contains(now.Sources, r.Source) {
			return m.tell(s, r)
		}
	}
	return because(ErrNotJoined, "no socket has this membership")
}

// leave ends a membership on all sockets that have it.
func (m *Members) leave(g Group, _ bool) error {
	for _, s := range slices.Backward(m.holding(g)) {
		if err := m.tell(s, Request{Op: OpLeave, Group: g}); err != nil {
			return err
		}
	}
	return nil
}

// release ends a membership that may have been lost, on all sockets that have it.
func (m *Members) release(x Membership, stale, _ bool) (err error) {
	for _, s := range slices.Backward(m.holding(x.Group)) {
		part, _ := s.filter.Membership(x.Group)
		err = errors.Join(err, s.kernel.release(part, stale, s.filter.count(x.Group.Addr) == 1))
		s.filter.Set(Membership{Group: x.Group})
		m.note(s, x.Group.Addr)
	}
	return err
}

// setFull replaces a membership at once where one socket has or will have all
// of it, and else by single requests.
func (m *Members) setFull(had, to Membership, _ int) (Membership, error) {
	on := m.holding(to.Group)
	if had.none() {
		if on = m.free(to.Group); len(on) == 0 {
			s, err := m.add(to.Group.Addr)
			if err != nil {
				return had, err
			}
			on = []*shard{s}
		}
		on = on[:1]
	}
	if len(on) == 1 {
		s := on[0]
		err := s.replace(&Membership{Group: to.Group, Mode: to.Mode, Sources: slices.Clone(to.Sources)})
		now, _ := s.filter.Membership(to.Group)
		m.note(s, to.Group.Addr)
		if !errors.Is(err, ErrLimit) || to.Mode == Exclude {
			return now, err
		}
	}
	return walk(had, to, func(r Request, had Membership) error {
		if r.Op == OpLeave {
			return m.leave(r.Group, false)
		}
		return m.request(r, status{}, 0)
	})
}

// full puts together what the system says of a membership on each socket.
func (m *Members) full(g Group) (Membership, error) {
	all := Membership{Group: g}
	for _, s := range m.holding(g) {
		part, err := s.kernel.full(g)
		if err != nil {
			return all, err
		}
		all.Mode = part.Mode
		all.Sources = append(all.Sources, part.Sources...)
	}
	slices.SortFunc(all.Sources, netip.Addr.Compare)
	return all, nil
}

// holding returns the sockets that have a membership.
func (m *Members) holding(g Group) (has []*shard) {
	for _, s := range m.on[g.Addr] {
		if s.filter.status(g).member {
			has = append(has, s)
		}
	}
	return has
}

// free returns the sockets that could take a membership that they do not have.
func (m *Members) free(g Group) (free []*shard) {
	on := m.on[g.Addr]
	if len(on) == 0 && !m.pool.canBind() {
		on = m.wild
	}
	for _, s := range on {
		if !s.filter.status(g).member && s.filter.len() < perSocket {
			free = append(free, s)
		}
	}
	return free
}

// tell makes a request on a socket.
func (m *Members) tell(s *shard, r Request) error {
	err := s.request(&r)
	m.note(s, r.Group.Addr)
	return err
}

// note records whether a socket has memberships of a group, and closes it when
// it has none at all.
func (m *Members) note(s *shard, addr netip.Addr) {
	on := m.on[addr]
	switch i := slices.Index(on, s); {
	case s.filter.count(addr) > 0:
		if i < 0 {
			m.on[addr] = append(on, s)
		}
		return
	case i >= 0 && len(on) == 1:
		delete(m.on, addr)
	case i >= 0:
		m.on[addr] = slices.Delete(on, i, i+1)
	}
	if s.filter.len() == 0 {
		m.pool.remove(s)
	}
}

// canBind reports whether one more group may have a socket of its own. Only half
// of the descriptors that the program may have go there; the other half serve
// 20 groups each.
func (p *Pool) canBind() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return poolBinds && p.bound < p.sockets.maxDescriptors()/2
}

// add opens a socket for a group, bound to it if possible.
func (m *Members) add(addr netip.Addr) (*shard, error) {
	p := m.pool
	at := endpoint{ipv6: p.ipv6, port: m.port}
	bind := p.canBind() && !addr.IsLinkLocalMulticast() && !addr.IsInterfaceLocalMulticast()
	if bind {
		at.group = Group{Addr: addr}
	}
	s := &shard{members: m, addr: at.group.Addr}
	if err := p.sockets.add(s, at, &p.cfg); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shards = append(p.shards, s)
	if bind {
		p.bound++
		return s, nil
	}
	m.wild = append(m.wild, s)
	if poolBinds && !p.wide && p.bound >= p.sockets.maxDescriptors()/2 {
		p.wide = true
		p.cfg.Logger.Warn("mcast: too few file descriptors for a socket to each group: datagrams cost more", "groups", p.bound, "descriptors", p.sockets.maxDescriptors())
	}
	return s, nil
}

// remove closes a socket, after nothing else can find it.
func (p *Pool) remove(s *shard) {
	p.mu.Lock()
	p.gone += s.socket.drops()
	if s.addr.IsValid() {
		p.bound--
	} else {
		s.members.wild = slices.DeleteFunc(s.members.wild, func(x *shard) bool { return x == s })
	}
	// Look from the end: who opens last often closes first.
	for i := len(p.shards) - 1; i >= 0; i-- {
		if p.shards[i] == s {
			p.shards = slices.Delete(p.shards, i, i+1)
			break
		}
	}
	p.mu.Unlock()
	p.sockets.remove(s)
}

// Repair is as for [Conn.Repair], for the memberships on all ports.
func (p *Pool) Repair() error {
	p.mu.Lock()
	ports := slices.Collect(maps.Values(p.ports))
	p.mu.Unlock()
	var errs []error
	for _, m := range ports {
		errs = append(errs, m.repair())
	}
	return errors.Join(errs...)
}

// ReadMessage reads one datagram, as ReadBatch does.
func (p *Pool) ReadMessage(m *Message) error {
	ms := [1]Message{*m}
	_, err := p.ReadBatch(ms[:])
	*m = ms[0]
	return err
}

// ReadBatch reads datagrams that the filter lets through, from all sockets, as
// [Conn.ReadBatch] does. Message.Port tells the port.
func (p *Pool) ReadBatch(ms []Message) (int, error) {
	if len(ms) == 0 {
		return 0, opError("ReadBatch", Group{}, netip.Addr{}, because(os.ErrInvalid, "there are no messages to read into"))
	}
	in := p.sockets.borrow()
	defer p.sockets.giveBack(in)
	n, slept := 0, false
	for n < len(ms) {
		s, waited, err := p.sockets.next(in, n == 0)
		if err != nil {
			return n, readError(err)
		}
		if s == nil {
			break
		}
		got, more, err := s.socket.read(in, ms[n:])
		n += s.sift(ms[n:n+got], &p.counts)
		p.sockets.release(s, more)
		if err != nil && n == 0 {
			return 0, readError(err)
		}
		if waited && !slept && n < len(ms) && p.cfg.Coalesce > 0 {
			slept = true
			time.Sleep(p.cfg.Coalesce)
		}
	}
	return n, nil
}

// SetReadDeadline sets the deadline of reads, those under way too.
func (p *Pool) SetReadDeadline(t time.Time) error { return p.sockets.setReadDeadline(t) }

// Stats returns the sums over all sockets. ReadBuffer is that of one socket.
func (p *Pool) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Stats{Received: p.received.Load(), Filtered: p.filtered.Load(), Dropped: p.gone, ReadBuffer: p.sockets.readBuffer()}
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
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return opError("Close", Group{}, netip.Addr{}, net.ErrClosed)
	}
	p.closed = true
	ports := p.ports
	p.mu.Unlock()
	for _, m := range ports { // wait for requests under way, take no new ones
		m.end()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range slices.Backward(p.shards) { // kernels find the newest membership first
		p.gone += s.socket.drops()
		p.sockets.remove(s)
	}
	p.shards = nil
	return p.sockets.close()
}
