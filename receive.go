package mcast

import (
	"context"
	"errors"
	"iter"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"example.com/mcast/internal/cmsg"
	"example.com/mcast/internal/netif"
)

// A Message is a datagram that was received, or with [Conn.WriteBatch] one that
// is to be sent.
type Message struct {
	Buf    []byte         // room for the payload, given by the caller
	N      int            // bytes of payload in Buf
	Source netip.AddrPort // the sender; a link-local IPv6 address has a zone

	// Group is the address that it was sent to, and the name of the interface
	// that it came in by: the string that Memberships shows, or where no name is
	// known the index in digits.
	Group Group

	Port      int       // the port it was sent to
	Index     int       // the index of the interface that it came in by
	HopLimit  int       // its TTL or hop limit, with Config.HopLimit; else 0
	Time      time.Time // when the kernel got it, with Config.Timestamps; else zero
	Truncated bool      // the datagram was longer than Buf; the rest is lost

	segment int // of several datagrams in one: the size of each but the last
}

// Channel returns the group, sender's address and port. A [Channel] or [Group]
// that was parsed without an interface, or with an index, never equals it: key
// maps by what Memberships shows.
func (m *Message) Channel() Channel {
	return Channel{Group: m.Group, Source: m.Source.Addr().WithZone(""), Port: m.Port}
}

// datagrams says how many datagrams a message has.
func (m *Message) datagrams() int { return cmsg.Count(m.N, m.segment) }

// A receiver is the reading half of a [Conn]. One reader at a time is at the
// socket; the others wait for it, as they would inside the socket.
type receiver struct {
	turn     turn
	deadline readDeadline
	reader   reader // the system's way of receiving, for the reader whose turn it is
	split    splitter
	origin   origin
	delivery delivery
}

// An origin is what a socket tells of every datagram that it hands out.
type origin struct {
	ipv6    bool
	port    int
	control *cmsg.Format

	// The group and interface of every datagram that says neither. They are set
	// once, while the socket hears but one membership; the index last.
	onlyAddr  netip.Addr
	onlyIndex atomic.Int32 // 0: not known
}

// stamp sets what a datagram's control messages say.
func (o *origin) stamp(m *Message, control []byte) {
	a := o.control.Parse(control, o.ipv6)
	m.Port, m.Time, m.HopLimit, m.segment = o.port, a.Time, a.HopLimit, a.Segment
	o.arrived(m, a.Dst, a.Index)
}

// arrived sets where a datagram came in. What was queued before the socket was
// told to say so comes with neither, or without the interface.
func (o *origin) arrived(m *Message, dst netip.Addr, index int) {
	if index == 0 {
		if only := o.onlyIndex.Load(); only != 0 && (!dst.IsValid() || dst == o.onlyAddr) {
			dst, index = o.onlyAddr, int(only)
		}
	}
	m.Group.Addr, m.Index = dst, index
}

// largest is more than any datagram has.
const largest = 1 << 16

// prepare asks the system to tell what a Conn wants to know of each datagram.
func (c *Conn) prepare(raw syscall.RawConn, port int) error {
	c.origin.port = port
	c.deadline.sock = c.udp
	c.delivery.init(c.cfg, c.host, c.bound)
	if err := c.reader.open(c.udp, raw); err != nil {
		return err
	}
	if err := c.ledger.prepare(&c.origin, c.cfg, c.bound); err != nil {
		return err
	}
	if c.ledger.noBusyPoll {
		warnBusyPoll(c.events)
	}
	if c.cfg.GRO && c.ledger.kernel.setOne(c.origin.control.Coalesce()) {
		c.split.on = true
	}
	return nil
}

// prepare sees to it that a socket keeps other sockets' groups out, and tells
// what is wanted of each datagram.
func (l *ledger) prepare(o *origin, cfg *Config, bound Group) error {
	k := &l.kernel
	o.ipv6, o.control = l.ipv6, k.control
	if o.control == nil {
		o.control = cmsg.None
	}
	if cfg.Timestamps {
		k.setOne(o.control.Timestamp())
	}
	if cfg.HopLimit {
		if err := k.setAll(o.control.HopLimit(l.ipv6)); err != nil {
			return err
		}
	}
	if cfg.BusyPoll != 0 && k.busyPoll != 0 {
		l.noBusyPoll = k.sock.setsockopt(k.control.SocketLevel, k.busyPoll, k.uint32(nil, busyPollMicroseconds(cfg.BusyPoll))) != nil
	}
	alone := k.hearOnlyOwn(l.ipv6)
	if !bound.Addr.Is4() || !bindsGroups || !alone {
		return k.setAll(o.control.PacketInfo(l.ipv6))
	}
	// While a socket that is bound to a group has but one membership, group and
	// interface are certain, and asking costs. IPv6 kernels do not look at the
	// interface of a membership.
	l.firstJoin = func(at groupIndex) error {
		if o.onlyIndex.Load() == 0 {
			o.onlyAddr = at.addr
			o.onlyIndex.Store(int32(at.index))
		}
		if o.onlyAddr == at.addr && int(o.onlyIndex.Load()) == at.index {
			return nil
		}
		return k.setAll(o.control.PacketInfo(false))
	}
	return nil
}

// busyPollMicroseconds is how long the system is to poll a network card for one
// look: the program looks again by itself.
func busyPollMicroseconds(d time.Duration) uint32 {
	const most = 50 // what Documentation/admin-guide/sysctl/net.rst of Linux recommends
	if d < 0 || d > most*time.Microsecond {
		return most
	}
	return uint32(max(1, d/time.Microsecond))
}

// noCardPolling is said once: it is the same for all sockets of a program.
var noCardPolling sync.Once

func warnBusyPoll(e *events) {
	noCardPolling.Do(func() {
		e.warn("mcast: network cards are not polled (SO_BUSY_POLL): it needs CAP_NET_ADMIN, or net.core.busy_read", "see", "Config.BusyPoll")
	})
}

// A delivery decides what is handed over, and counts it.
type delivery struct {
	unicast bool // datagrams that were sent to no group, too
	names   ifnames

	received, filtered, truncated atomic.Uint64
}

func (d *delivery) init(cfg *Config, h netif.Host, bound Group) {
	// A socket that is bound to a group hears no unicast where the system can
	// bind it so; it is to be the same where it cannot.
	d.unicast = cfg.Unicast && !bound.Addr.IsValid()
	d.names.host = h
}

func (d *delivery) stats() Stats {
	return Stats{Received: d.received.Load(), Filtered: d.filtered.Load(), Truncated: d.truncated.Load()}
}

// deliver moves the messages of a socket that are to be handed over to the front,
// counts all, and returns how many there are.
func (d *delivery) deliver(l *ledger, ms []Message) int {
	var c counted
	n := d.pick(l, ms, &c)
	d.count(&c)
	return n
}

// counted are datagrams that are not in a delivery's counts yet.
type counted struct{ received, filtered, truncated int }

func (d *delivery) count(c *counted) {
	if c.received > 0 {
		d.received.Add(uint64(c.received))
	}
	if c.filtered > 0 {
		d.filtered.Add(uint64(c.filtered))
	}
	if c.truncated > 0 {
		d.truncated.Add(uint64(c.truncated))
	}
}

// pick does what deliver does, but for counting them.
func (d *delivery) pick(l *ledger, ms []Message, c *counted) int {
	n := 0
	var t tally
	for i := range ms {
		m := &ms[i]
		if n > 0 && m.follows(&ms[n-1]) {
			// What let that one through lets this one through.
			m.Group.Interface = ms[n-1].Group.Interface
			t.count(t.of, m)
		} else if !d.admit(l, m, &t) {
			c.filtered += m.datagrams()
			continue
		}
		c.received += m.datagrams()
		if m.Truncated {
			c.truncated++
		}
		if i != n {
			ms[n], *m = *m, ms[n]
		}
		n++
	}
	t.flush()
	return n
}

// follows reports whether a datagram came from and to where another one did.
func (m *Message) follows(o *Message) bool {
	return m.Index == o.Index && m.Group.Addr == o.Group.Addr && m.Source.Addr() == o.Source.Addr()
}

// admit reports whether a datagram is to be handed over, and names the
// interface that it came in by.
func (d *delivery) admit(l *ledger, m *Message, t *tally) bool {
	source := m.Source.Addr()
	if h := l.heard.get(groupIndex{m.Group.Addr, m.Index}); h != nil {
		if !h.allows(source) {
			if h.counts != nil {
				h.counts.filtered.Add(uint64(m.datagrams()))
			}
			return false
		}
		m.Group.Interface = h.ifname
		t.count(h.counts, m)
	} else if d.unicast && m.Group.Addr.IsValid() && !m.Group.Addr.IsMulticast() {
		m.Group.Interface = d.names.name(m.Index)
		t.count(nil, m)
	} else {
		return false
	}
	if source.Is6() && source.IsLinkLocalUnicast() {
		m.Source = netip.AddrPortFrom(source.WithZone(m.Group.Interface), m.Source.Port())
	}
	return true
}

// A tally counts datagrams of one membership after the other: one clock and
// few atomic additions serve a batch.
type tally struct {
	of              *groupCounts // nil: of none, or of one that is not counted
	received, bytes uint64
	now             int64
}

func (t *tally) count(of *groupCounts, m *Message) {
	if t.of != of {
		t.flush()
		t.of = of
	}
	if of == nil {
		return
	}
	t.received += uint64(m.datagrams())
	t.bytes += uint64(m.N)
}

func (t *tally) flush() {
	if t.of == nil {
		return
	}
	if t.now == 0 {
		t.now = time.Now().UnixNano()
	}
	t.of.received.Add(t.received)
	t.of.bytes.Add(t.bytes)
	t.of.last.Store(t.now)
	t.of, t.received, t.bytes = nil, 0, 0
}

// ifnames knows the names of interfaces for about a second.
type ifnames struct {
	host  netif.Host
	mu    sync.Mutex
	asked time.Time
	of    map[int]string
}

func (n *ifnames) name(index int) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if now := time.Now(); now.Sub(n.asked) > time.Second {
		n.asked, n.of = now, make(map[int]string)
	}
	name, ok := n.of[index]
	if !ok {
		name = strconv.Itoa(index)
		if found, err := n.host.Name(index); err == nil {
			name = ifnameFor(found, index)
		}
		n.of[index] = name
	}
	return name
}

// A turn is a lock that can be given up waiting for.
type turn struct {
	taken   atomic.Bool
	waiting atomic.Int32
	once    sync.Once
	freed   chan struct{} // with room for one
}

// take waits for the turn, or until done is closed, which it then reports.
func (t *turn) take(done <-chan struct{}) bool {
	if t.taken.CompareAndSwap(false, true) {
		return true
	}
	t.once.Do(func() { t.freed = make(chan struct{}, 1) })
	t.waiting.Add(1)
	defer t.waiting.Add(-1)
	for !t.taken.CompareAndSwap(false, true) {
		select {
		case <-t.freed:
		case <-done:
			return false
		}
	}
	return true
}

func (t *turn) give() {
	t.taken.Store(false)
	if t.waiting.Load() > 0 {
		select {
		case t.freed <- struct{}{}:
		default: // somebody is being woken already
		}
	}
}

// A readDeadline is the deadline of a socket's reads, which can also be used to
// wake the reader: whoever set the deadline does not notice.
type readDeadline struct {
	sock interface{ SetReadDeadline(t time.Time) error }

	mu    sync.Mutex
	at    time.Time
	isSet atomic.Bool
	wakes atomic.Int32  // under way
	woken atomic.Uint64 // ever, and how often that was over
}

func (d *readDeadline) set(t time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = t
	d.isSet.Store(!t.IsZero())
	if d.wakes.Load() > 0 {
		return nil // when they are over
	}
	return d.sock.SetReadDeadline(t)
}

// wake makes the read that is under way return, and others until calm is
// called.
func (d *readDeadline) wake() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wakes.Add(1)
	d.woken.Add(1)
	d.sock.SetReadDeadline(time.Unix(1, 0))
}

func (d *readDeadline) calm() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.wakes.Add(-1) == 0 {
		d.sock.SetReadDeadline(d.at)
		// Last, so that whoever was woken since it began to read knows it.
		d.woken.Add(1)
	}
}

// expired reports whether the deadline is over.
func (d *readDeadline) expired() bool {
	if !d.isSet.Load() {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.at.IsZero() && !time.Now().Before(d.at)
}

// passed reports whether a read that ended by the deadline did so for no wake
// since a count of them.
func (d *readDeadline) passed(woken uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.wakes.Load() == 0 && d.woken.Load() == woken || !d.at.IsZero() && !time.Now().Before(d.at)
}

// ReadMessage reads the next datagram that the filter lets through into
// m.Buf, and sets the other fields. It allocates nothing.
//
// The error is that of the socket, a [*net.OpError]: it matches
// [os.ErrDeadlineExceeded] after the read deadline and [net.ErrClosed] after
// Close. A Buf without room is [os.ErrInvalid].
func (c *Conn) ReadMessage(m *Message) error {
	_, err := c.readBatch("ReadMessage", unsafe.Slice(m, 1), nil)
	return err
}

// ReadBatch reads datagrams that the filter lets through into the Bufs of ms,
// at least one and as many as are there, and returns how many. It allocates
// nothing; 8 to 32 messages are a good number. Beyond what it returns, the
// elements of ms are undefined but for their Bufs; these may have changed
// places among the elements.
//
// The error is that of the socket, as for ReadMessage.
func (c *Conn) ReadBatch(ms []Message) (int, error) { return c.readBatch("ReadBatch", ms, nil) }

func (c *Conn) readBatch(op string, ms []Message, done <-chan struct{}) (int, error) {
	if err := checkRoom(ms); err != nil {
		return 0, opError(op, Group{}, netip.Addr{}, err)
	}
	return c.readInto(ms, done)
}

// checkRoom refuses what nothing can be read into: it would lose datagrams.
func checkRoom(ms []Message) error {
	if len(ms) == 0 {
		return because(os.ErrInvalid, "there are no messages to read into")
	}
	for i := range ms {
		if len(ms[i].Buf) == 0 {
			return because(os.ErrInvalid, "message %d has no room: set its Buf", i)
		}
	}
	return nil
}

// readInto reads at least one datagram, or until done is closed.
func (c *Conn) readInto(ms []Message, done <-chan struct{}) (int, error) {
	if c.udp == nil {
		return 0, readError(errNotOpen)
	}
	if !c.turn.take(done) {
		return 0, context.Canceled
	}
	defer c.turn.give()
	if c.split.on {
		return c.readSplit(ms, done)
	}
	return c.readSome(ms, done)
}

// readSome reads at least one datagram, and after Config.Coalesce as many as
// have come by then.
func (c *Conn) readSome(ms []Message, done <-chan struct{}) (int, error) {
	for {
		woken := c.deadline.woken.Load()
		n, waited, err := c.receive(ms, true)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) && !c.deadline.passed(woken) {
				select {
				case <-done:
					return 0, context.Canceled
				default: // somebody else was meant, and is about to leave
					runtime.Gosched()
					continue
				}
			}
			return 0, readError(err)
		}
		n = c.delivery.deliver(&c.ledger, ms[:n])
		if n > 0 && n < len(ms) && waited && c.cfg.Coalesce > 0 {
			time.Sleep(c.cfg.Coalesce)
			// What is wrong now will be so at the next read.
			if more, _, err := c.receive(ms[n:], false); err == nil {
				n += c.delivery.deliver(&c.ledger, ms[n:n+more])
			}
		}
		if n > 0 {
			return n, nil
		}
	}
}

// A spinner counts how long a reader looks again for what has not come
// (Config.BusyPoll).
type spinner struct {
	limit   time.Duration // less than 0: for ever
	started time.Time
	looks   int
}

// on reports whether to look once more. Now and then it lets other goroutines
// run.
func (s *spinner) on() bool {
	if s.looks++; !s.due() {
		return true
	}
	if s.looks == 1 {
		if s.limit > 0 {
			s.started = time.Now()
		}
		return true
	}
	runtime.Gosched()
	return s.limit < 0 || time.Since(s.started) < s.limit
}

// due reports whether it is time for what need not be done at each look: some
// microseconds have passed.
func (s *spinner) due() bool { return s.looks%16 == 1 }

// readError makes an error one of package net, of the operation "read".
func readError(err error) error {
	var e *net.OpError
	if errors.As(err, &e) {
		e.Op = "read"
		return err
	}
	return &net.OpError{Op: "read", Net: "udp", Err: err}
}

// Messages yields the datagrams that the filter lets through, one after the
// other, each with up to size bytes. A message is valid until the next turn.
//
// It ends with the context, silently, and at once; no deadline is touched, and
// no other reader is. An error is yielded once, with a nil message, and ends it:
// that of the socket, as for ReadMessage. A break loses nothing that was not
// yielded.
func (c *Conn) Messages(ctx context.Context, size int) iter.Seq2[*Message, error] {
	wake, calm := func() {}, func() {}
	if c.udp != nil {
		wake, calm = c.deadline.wake, c.deadline.calm
	}
	return messages(ctx, size, func(m *Message, done <-chan struct{}) error {
		_, err := c.readBatch("Messages", unsafe.Slice(m, 1), done)
		return err
	}, wake, calm)
}

// messages yields what read reads, until the context ends, for which wake makes
// it return; calm ends that. Other readers would be woken, too, so wake is called
// only while it reads.
func messages(ctx context.Context, size int, read func(m *Message, done <-chan struct{}) error, wake, calm func()) iter.Seq2[*Message, error] {
	return func(yield func(*Message, error) bool) {
		const atWork, reading, ended = 0, 1, 2
		var state atomic.Int32
		woken := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			if state.Swap(ended) == reading {
				wake()
				close(woken)
			}
		})
		defer stop()
		var m Message
		buf := make([]byte, max(size, 0))
		for ctx.Err() == nil && state.CompareAndSwap(atWork, reading) {
			m = Message{Buf: buf}
			err := read(&m, ctx.Done())
			if !state.CompareAndSwap(reading, atWork) {
				<-woken
				calm()
			}
			if err != nil {
				if ctx.Err() == nil {
					yield(nil, err)
				}
				return
			}
			if !yield(&m, nil) {
				return
			}
		}
	}
}

// ReadFrom reads a datagram; see [net.PacketConn]. As with package net on Unix,
// what does not fit into b is cut, without an error, on every system;
// [Message].Truncated and [Stats].Truncated tell.
func (c *Conn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.ReadFromUDPAddrPort(b)
	if !from.IsValid() {
		return n, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), err
}

// ReadFromUDPAddrPort reads a datagram without allocating, as ReadFrom does.
func (c *Conn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	m := Message{Buf: b}
	if _, err := c.readInto(unsafe.Slice(&m, 1), nil); err != nil {
		return 0, netip.AddrPort{}, err
	}
	return m.N, m.Source, nil
}

// A splitter takes datagrams that the system coalesced (Config.GRO) apart.
type splitter struct {
	on    bool
	slots []Message // of largest bytes each
	rest  []Message // of slots: what has not been handed over yet
	at    int       // bytes of the first one that have been

	pieces []Message // of the slab that ReadSlab was given
}

// splitSlots is how many coalesced datagrams one call takes.
const splitSlots = 16

// readSplit reads at least one datagram, copied out of the system's larger
// ones. What has no place in ms is kept for the next call.
func (c *Conn) readSplit(ms []Message, done <-chan struct{}) (int, error) {
	s := &c.split
	if len(s.rest) == 0 {
		s.makeSlots()
		n, err := c.readSome(s.slots, done)
		if err != nil {
			return 0, err
		}
		s.rest = s.slots[:n]
	}
	n := 0
	for ; n < len(ms) && len(s.rest) > 0; n++ {
		payload, from := s.take()
		m := &ms[n]
		buf := m.Buf
		*m = *from
		m.Buf, m.N, m.segment = buf, copy(buf, payload), 0
		if m.N < len(payload) && !m.Truncated {
			m.Truncated = true
			c.delivery.truncated.Add(1)
		}
	}
	return n, nil
}

// take hands over the next datagram of the rest.
func (s *splitter) take() (payload []byte, from *Message) {
	from = &s.rest[0]
	payload, s.at = cmsg.Segment(from.Buf[:from.N], from.segment, s.at)
	if s.at >= from.N {
		s.rest, s.at = s.rest[1:], 0
	}
	return payload, from
}

// keep copies what is left of messages, whose buffers belong to somebody else,
// into slots, for the next call. The first one starts at a place within.
func (s *splitter) keep(ms []Message, at int) {
	s.makeSlots()
	for i := range ms {
		slot := &s.slots[i]
		buf := slot.Buf
		*slot = ms[i]
		slot.Buf = buf
		copy(buf, ms[i].Buf[:ms[i].N])
	}
	s.rest, s.at = s.slots[:len(ms)], at
}

func (s *splitter) makeSlots() {
	if s.slots == nil {
		s.slots = make([]Message, splitSlots)
		cut(s.slots, make([]byte, splitSlots*largest))
	}
}

// cut gives each message a piece of a slab.
func cut(ms []Message, slab []byte) {
	for i := range ms {
		ms[i].Buf = slab[i*largest:][:largest]
	}
}

// A Datagram is a datagram in a slab; see [Conn.ReadSlab]. Its fields are those
// of a [Message].
type Datagram struct {
	Offset, Size int // the payload is slab[Offset:Offset+Size]
	Source       netip.AddrPort
	Group        Group
	Port         int
	Index        int
	HopLimit     int
	Time         time.Time
	Truncated    bool
}

// ReadSlab reads datagrams as ReadBatch does, but leaves them where the system
// put them: the slab is cut into pieces of 64 KiB, at most 16 of them, and each
// takes one datagram, or with Config.GRO as many as were coalesced. It returns
// how many of ds it set, at least one. Only what finds no room in ds is copied,
// and kept for the next read. It allocates nothing else.
//
// The error is that of the socket, as for ReadMessage, or matches
// [os.ErrInvalid] for a slab of less than 64 KiB or no room in ds.
func (c *Conn) ReadSlab(slab []byte, ds []Datagram) (int, error) {
	if len(slab) < largest || len(ds) == 0 {
		return 0, opError("ReadSlab", Group{}, netip.Addr{}, because(os.ErrInvalid, "want a slab of 64 KiB or more, and room for a datagram"))
	}
	if c.udp == nil {
		return 0, readError(errNotOpen)
	}
	c.turn.take(nil)
	defer c.turn.give()
	s := &c.split
	if len(s.rest) > 0 {
		return s.refill(slab, ds), nil
	}
	pieces := min(len(slab)/largest, splitSlots)
	if !s.on {
		pieces = min(pieces, len(ds))
	}
	if s.pieces == nil {
		s.pieces = make([]Message, splitSlots)
	}
	ms := s.pieces[:pieces]
	cut(ms, slab)
	n, err := c.readSome(ms, nil)
	if err != nil {
		return 0, err
	}
	filled := 0
	for i := range ms[:n] {
		m := &ms[i]
		for at := 0; ; {
			if filled == len(ds) {
				s.keep(ms[i:n], at)
				return filled, nil
			}
			payload, end := cmsg.Segment(m.Buf[:m.N], m.segment, at)
			// The pieces reach to the end of the slab's capacity.
			ds[filled].set(m, cap(slab)-cap(payload), len(payload))
			filled++
			if at = end; at >= m.N {
				break
			}
		}
	}
	return filled, nil
}

// refill copies datagrams that were kept into a slab.
func (s *splitter) refill(slab []byte, ds []Datagram) int {
	n, offset := 0, 0
	for ; n < len(ds) && len(s.rest) > 0; n++ {
		first := &s.rest[0]
		if payload, _ := cmsg.Segment(first.Buf[:first.N], first.segment, s.at); len(payload) > len(slab)-offset {
			break
		}
		payload, from := s.take()
		ds[n].set(from, offset, copy(slab[offset:], payload))
		offset += len(payload)
	}
	return n
}

func (d *Datagram) set(m *Message, offset, size int) {
	*d = Datagram{
		Offset: offset, Size: size,
		Source: m.Source, Group: m.Group, Port: m.Port, Index: m.Index, HopLimit: m.HopLimit, Time: m.Time, Truncated: m.Truncated,
	}
}
