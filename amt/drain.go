package amt

import (
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A drain is a socket of a tunnel, and decides who reads it. While nobody
// reads from the Gateway, a goroutine of its own does, because relays must be
// answered, and leaves the datagrams in the inbox. A reader takes the socket
// over if it is the only one, so that datagrams do not change hands.
type drain struct {
	tunnel *tunnel
	socket socket
	unread bool        // the last batch found no reader in time
	parts  reassembler // of whoever has the seat

	seat        atomic.Int32
	uses        atomic.Uint64 // by readers
	readerWaits atomic.Bool   // for the keeper to leave
	keeperWaits atomic.Bool   // for the reader to leave
	keeperLeft  chan struct{}
	readerLeft  chan struct{}

	mu    sync.Mutex
	armed time.Time // the deadline that the socket has
	woken bool      // or it has one in the past, to wake who reads it
}

// Who has the seat at a socket.
const (
	nobody = iota
	keeper
	reader
)

// seatKept is how long the seat is kept for a reader that has left: most come
// back at once.
const seatKept = 20 * time.Millisecond

func newDrain(t *tunnel, c socket) *drain {
	return &drain{tunnel: t, socket: c, keeperLeft: make(chan struct{}, 1), readerLeft: make(chan struct{}, 1)}
}

// wake makes the read that is under way return.
func (d *drain) wake() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.woken = true
	d.socket.SetReadDeadline(time.Unix(1, 0))
}

// arm sets the deadline of a read, unless it is to end before it began.
func (d *drain) arm(at time.Time, ended func() bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ended() {
		return false
	}
	if d.woken || !d.armed.Equal(at) {
		d.socket.SetReadDeadline(at)
		d.woken, d.armed = false, at
	}
	return true
}

// keep reads the socket while no reader does, until that is closed.
func (d *drain) keep() {
	b := d.tunnel.gateway.emptyBatch()
	timer := time.NewTimer(seatKept)
	defer timer.Stop()
	for open := true; open; {
		if d.seat.CompareAndSwap(nobody, keeper) {
			open = d.keepSeat(&b)
			d.seat.Store(nobody)
			signal(d.keeperLeft)
		}
		open = open && d.yield(timer)
	}
}

// yield waits until no reader has been at the socket for a while, and reports
// whether the tunnel is still open.
func (d *drain) yield(timer *time.Timer) bool {
	for {
		uses := d.uses.Load()
		d.keeperWaits.Store(true)
		if d.seat.Load() == reader {
			select {
			case <-d.readerLeft:
			case <-d.tunnel.ctx.Done():
				return false
			}
		}
		d.keeperWaits.Store(false)
		timer.Reset(seatKept)
		select {
		case <-timer.C:
		case <-d.tunnel.ctx.Done():
			return false
		}
		if d.uses.Load() == uses && d.seat.Load() != reader {
			return true
		}
	}
}

// keepSeat reads until a reader wants the socket, and reports whether that is
// still open.
func (d *drain) keepSeat(b **batch) bool {
	for d.arm(time.Time{}, d.readerWaits.Load) {
		if !d.read(*b) {
			return false
		}
		if len((*b).arrivals) > 0 {
			*b = d.deliver(*b)
		}
	}
	return true
}

// read reads a batch, and reports whether the socket is still open.
func (d *drain) read(b *batch) bool {
	b.tunnel, b.arrivals, b.next = d.tunnel, b.arrivals[:0], 0
	n, err := d.socket.ReadBatch(b.messages)
	switch {
	case err == nil:
		d.tunnel.unpackBatch(b, n, &d.parts)
	case errors.Is(err, os.ErrDeadlineExceeded):
	case errors.Is(err, net.ErrClosed):
		return false
	default:
		d.tunnel.failed(d.socket, err)
	}
	return true
}

// readDirectly has a reader read the socket into b. It reports whether b is
// filled, possibly with nothing; if not, something else is to be looked at
// first.
func (d *drain) readDirectly(b *batch, at time.Time, over, done <-chan struct{}) bool {
	d.uses.Add(1)
	if !d.seat.CompareAndSwap(nobody, reader) {
		return false
	}
	defer func() {
		d.seat.Store(nobody)
		if d.keeperWaits.Load() {
			signal(d.readerLeft)
		}
	}()
	ended := func() bool {
		select {
		case <-over:
		case <-done:
		default:
			return d.tunnel.gateway.sole.Load() != d
		}
		return true
	}
	return d.arm(at, ended) && d.read(b)
}

// drains are the sockets of all tunnels.
type drains struct {
	sole atomic.Pointer[drain] // the only one, if there is one

	drainMu sync.Mutex
	all     []*drain
}

// add has a socket read.
func (ds *drains) add(d *drain) {
	ds.drainMu.Lock()
	defer ds.drainMu.Unlock()
	ds.all = append(ds.all, d)
	ds.changed()
}

// remove is called before a socket is closed.
func (ds *drains) remove(d *drain) {
	ds.drainMu.Lock()
	defer ds.drainMu.Unlock()
	ds.all = slices.DeleteFunc(ds.all, func(other *drain) bool { return other == d })
	ds.changed()
}

func (ds *drains) changed() {
	var sole *drain
	if len(ds.all) == 1 {
		sole = ds.all[0]
	}
	if old := ds.sole.Swap(sole); old != nil && old != sole {
		old.wake()
	}
}

// wakeReader has a reader that is at the socket look around.
func (ds *drains) wakeReader() {
	if d := ds.sole.Load(); d != nil {
		d.wake()
	}
}
