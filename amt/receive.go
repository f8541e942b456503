package amt

import (
	"context"
	"iter"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"
	"unsafe"

	"example.com/mcast"
)

const (
	batchSize    = 32 // datagrams that are read at once
	batchesAhead = 4  // batches that may wait for a reader
	largest      = 1 << 16

	readerPatience = 200 * time.Millisecond
)

// A batch is what one read from a tunnel's socket brought.
type batch struct {
	tunnel   *tunnel
	messages []mcast.Message
	arrivals []arrival // datagrams for the reader; room for all messages
	header   ipHeader  // of the packet that is being looked at
	next     int       // of these
}

// An arrival is a datagram out of a tunnel. Its payload is in the messages of
// its batch.
type arrival struct {
	datagram
	time time.Time
}

func newBatch() *batch {
	b := &batch{messages: make([]mcast.Message, batchSize), arrivals: make([]arrival, 0, batchSize)}
	room := make([]byte, batchSize*largest)
	for i := range b.messages {
		b.messages[i].Buf = room[i*largest : (i+1)*largest : (i+1)*largest]
	}
	return b
}

// An inbox is where the tunnels leave datagrams for the readers. Whole batches
// change hands, so that nothing is copied but into the reader's buffers.
type inbox struct {
	full  chan *batch
	empty chan *batch

	turn     chan struct{} // of the one reader that takes batches
	current  *batch        // its, taken in part
	own      *batch        // what it reads from a socket itself
	deadline deadline
}

func (in *inbox) init() {
	in.full = make(chan *batch, batchesAhead)
	in.empty = make(chan *batch, batchesAhead+2) // and one each in the hands of a tunnel and a reader
	in.turn = make(chan struct{}, 1)
	in.deadline.init()
}

// failed handles an error of a socket that stays open.
func (t *tunnel) failed(c socket, err error) {
	relays, known := unreachableRelays(c)
	if !isUnreachable(err) {
		time.Sleep(10 * time.Millisecond) // whatever it is, it must not take a processor
		return
	}
	t.do(func(now time.Time) {
		if !known {
			relays = []netip.AddrPort{t.session.relay}
		}
		for _, relay := range relays {
			t.session.unreachable(now, relay)
		}
	})
}

// unpackBatch takes the datagrams out of the first n messages of a batch, and
// gives what else came to the session.
func (t *tunnel) unpackBatch(b *batch, n int, r *reassembler) {
	counters := &t.gateway.counters
	relay := t.relay.Load()
	heard := false
	for i := range b.messages[:n] {
		m := &b.messages[i]
		if m.Truncated {
			counters.malformed.Add(1)
			continue
		}
		packet, err := parseData(m.Buf[:m.N])
		if err != nil {
			if err := t.receive(m.Source, m.Buf[:m.N]); err != nil {
				counters.countDrop(err)
			}
			relay = t.relay.Load()
			continue
		}
		if relay == nil || m.Source != *relay {
			counters.foreign.Add(1)
			continue
		}
		last := len(b.arrivals)
		b.arrivals = b.arrivals[:last+1]
		a := &b.arrivals[last]
		if err := t.unpack(packet, &b.header, &a.datagram, r); err != nil {
			b.arrivals = b.arrivals[:last]
			counters.countDrop(err)
			continue
		}
		a.time = m.Time
		heard = heard || t.allows(a.group, a.source.Addr())
	}
	if heard {
		t.traffic.Store(true)
	}
}

// receive gives a message to the session.
func (t *tunnel) receive(from netip.AddrPort, b []byte) (err error) {
	t.do(func(now time.Time) { err = t.session.receive(now, from, b) })
	return err
}

// unpack checks a packet from the relay and fills in the datagram in it.
func (t *tunnel) unpack(packet []byte, h *ipHeader, d *datagram, r *reassembler) error {
	if err := h.parse(packet); err != nil {
		return err
	}
	if err := h.checkAddresses(); err != nil {
		return err
	}
	if h.fragmented {
		// Only what was asked for is kept.
		if !t.allows(h.destination, h.source) {
			t.gateway.counters.filtered.Add(1)
			return errIncomplete
		}
		dropped := r.dropped
		err := r.add(time.Now(), h)
		t.gateway.counters.fragments.Add(r.dropped - dropped)
		if err != nil {
			return err
		}
	}
	return h.parseUDP(d)
}

func (t *tunnel) allows(group, source netip.Addr) bool {
	return t.filter.Allows(mcast.Group{Addr: group, Interface: Interface}, source)
}

// deliver gives a batch to the readers and returns an empty one. Readers that
// are slow are waited for, so that the kernel's buffer fills. But not for long
// while an answer of the relay is awaited, which may be behind what is in that:
// then the batch is dropped, and others at once, until somebody reads.
func (d *drain) deliver(b *batch) *batch {
	t, g := d.tunnel, d.tunnel.gateway
	select {
	case g.full <- b:
		d.unread = false
		return g.emptyBatch()
	default:
	}
	t.blocked.Store(true)
	defer t.blocked.Store(false)
	var patience <-chan time.Time // for ever
	for {
		if t.waiting.Load() {
			if d.unread {
				break
			}
			patience = time.After(readerPatience)
		}
		select {
		case g.full <- b:
			d.unread = false
			return g.emptyBatch()
		case <-t.hurry:
			continue
		case <-patience:
			d.unread = true
		case <-t.ctx.Done():
		}
		break
	}
	g.counters.unread.Add(uint64(len(b.arrivals)))
	return b
}

func (in *inbox) emptyBatch() *batch {
	select {
	case b := <-in.empty:
		return b
	default:
		return newBatch() // until there are as many as are ever needed
	}
}

// recycle gives a batch back that has been read.
func (in *inbox) recycle(b *batch) {
	select {
	case in.empty <- b:
	default:
	}
}

// ReadMessage reads the next datagram that was asked for into m.Buf, and sets
// the other fields. It allocates nothing.
//
// The error is a [*net.OpError]: it matches [os.ErrDeadlineExceeded] after the
// read deadline and [net.ErrClosed] after Close.
func (g *Gateway) ReadMessage(m *mcast.Message) error {
	_, err := g.read(unsafe.Slice(m, 1), nil)
	return err
}

// ReadBatch reads datagrams that were asked for into the Bufs of ms, at least
// one and as many as are there, and returns how many. It allocates nothing.
//
// The error is that of ReadMessage.
func (g *Gateway) ReadBatch(ms []mcast.Message) (int, error) {
	if len(ms) == 0 {
		return 0, &mcast.OpError{Op: "ReadBatch", Err: os.ErrInvalid}
	}
	return g.read(ms, nil)
}

// Messages returns the datagrams that were asked for, with room for size bytes
// each, until ctx ends, which it does silently, or until an error, which it
// yields once. A message is valid until the next turn.
func (g *Gateway) Messages(ctx context.Context, size int) iter.Seq2[*mcast.Message, error] {
	return func(yield func(*mcast.Message, error) bool) {
		m := mcast.Message{Buf: make([]byte, size)}
		defer context.AfterFunc(ctx, g.wakeReader)()
		for {
			n, err := g.read(unsafe.Slice(&m, 1), ctx.Done())
			switch {
			case err != nil:
				yield(nil, err)
				return
			case n == 0 || !yield(&m, nil):
				return
			}
		}
	}
}

// SetReadDeadline sets the deadline of reads, those under way too.
func (g *Gateway) SetReadDeadline(t time.Time) error {
	if g.isClosed() {
		return readError(net.ErrClosed)
	}
	g.deadline.set(t)
	g.wakeReader()
	return nil
}

func readError(err error) error { return &net.OpError{Op: "read", Net: Interface, Err: err} }

// read fills ms. It returns 0 and no error when done is closed.
func (g *Gateway) read(ms []mcast.Message, done <-chan struct{}) (int, error) {
	for {
		over := g.deadline.over() // or replaced by another
		select {
		case <-g.closed:
			return 0, readError(net.ErrClosed)
		case <-done:
			return 0, nil
		default:
		}
		if g.deadline.passed() {
			return 0, readError(os.ErrDeadlineExceeded)
		}
		select {
		case g.turn <- struct{}{}:
			n := g.take(ms, over, done)
			<-g.turn
			if n > 0 {
				return n, nil
			}
		case <-over:
		case <-g.closed:
		case <-done:
		}
	}
}

// take fills ms from the batches that are there, and waits for one that has
// something for them, or for an end.
func (g *Gateway) take(ms []mcast.Message, over, done <-chan struct{}) (n int) {
	for n < len(ms) {
		if g.current == nil {
			select {
			case g.current = <-g.full:
			default:
				if n > 0 || !g.await(over, done) {
					return n
				}
			}
		}
		n += g.fill(ms[n:], g.current)
		if g.current.next == len(g.current.arrivals) {
			if g.current != g.own {
				g.recycle(g.current)
			}
			g.current = nil
		}
	}
	return n
}

// await waits for the next batch, and reports whether there is one. If not,
// the reader is to look again whether something has ended.
func (g *Gateway) await(over, done <-chan struct{}) bool {
	d := g.sole.Load()
	if d == nil {
		return g.awaitInbox(nil, over, done)
	}
	if g.own == nil {
		g.own = newBatch()
	}
	if d.readDirectly(g.own, g.deadline.time(), over, done) {
		g.current = g.own
		return true
	}
	d.readerWaits.Store(true)
	defer d.readerWaits.Store(false)
	if d.seat.Load() != keeper {
		return false
	}
	d.wake()
	return g.awaitInbox(d.keeperLeft, over, done)
}

// awaitInbox waits for a batch that a tunnel leaves, or for a seat.
func (g *Gateway) awaitInbox(keeperLeft, over, done <-chan struct{}) bool {
	select {
	case g.current = <-g.full:
		return true
	case <-keeperLeft:
	case <-over:
	case <-g.closed:
	case <-done:
	}
	return false
}

// fill hands over what was asked for of a batch.
func (g *Gateway) fill(ms []mcast.Message, b *batch) (n int) {
	t, filtered := b.tunnel, 0
	for ; n < len(ms) && b.next < len(b.arrivals); b.next++ {
		a := &b.arrivals[b.next]
		if !t.allows(a.group, a.source.Addr()) || !g.takesPort(int(a.port)) {
			filtered++
			continue
		}
		m := &ms[n]
		m.N = copy(m.Buf, a.payload)
		m.Truncated = m.N < len(a.payload)
		m.Source, m.Port, m.Time = a.source, int(a.port), a.time
		m.Group = mcast.Group{Addr: a.group, Interface: Interface}
		m.Index, m.HopLimit = 0, int(a.hopLimit)
		n++
	}
	if n > 0 {
		g.counters.received.Add(uint64(n))
	}
	if filtered > 0 {
		g.counters.filtered.Add(uint64(filtered))
	}
	return n
}

func (g *Gateway) takesPort(port int) bool {
	return len(g.cfg.Ports) == 0 || slices.Contains(g.cfg.Ports, port)
}

// A deadline is a time that readers can wait for, and that may change.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	at    time.Time
	ended chan struct{} // closed when it is over, or replaced by another
}

func (d *deadline) init() { d.ended = make(chan struct{}) }

// over returns a channel that is closed when the deadline is over or another
// one is set.
func (d *deadline) over() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ended
}

// time returns the deadline, the zero Time for none.
func (d *deadline) time() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.at
}

func (d *deadline) passed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.at.IsZero() && !time.Now().Before(d.at)
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	select {
	case <-d.ended:
	default:
		close(d.ended)
	}
	d.at, d.ended = t, make(chan struct{})
	if t.IsZero() {
		return
	}
	ended := d.ended
	if wait := time.Until(t); wait > 0 {
		d.timer = time.AfterFunc(wait, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.ended == ended {
				close(ended)
			}
		})
		return
	}
	close(ended)
}
