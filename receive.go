package mcast

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"
)

// A Message is a datagram that was received.
type Message struct {
	Buf       []byte         // room for the payload, given by the caller
	N         int            // bytes of payload in Buf
	Source    netip.AddrPort // the sender; a link-local IPv6 address has a zone
	Group     Group          // the address it was sent to, and the interface it came in by
	Port      int            // the port it was sent to
	Time      time.Time      // when the kernel got it, with Config.Timestamps; else zero
	Truncated bool           // the datagram was longer than Buf; the rest is lost

	segment int // of several datagrams in one: the size of each but the last
}

// A receiver is the reading half of a [Conn]. One reader at a time is at the
// socket; the others wait for it, as they would inside the socket.
type receiver struct {
	turn   sync.Mutex
	reader reader // the system's way of receiving, for the reader whose turn it is
	split  splitter
	origin origin

	counts
}

// An origin is what a socket tells of every datagram that it hands out.
type origin struct {
	ipv6     bool
	port     int
	order    binary.ByteOrder
	controls controlFormat

	// only is the group and interface of every datagram that says neither. It
	// is set once, while the socket hears but one membership.
	only atomic.Pointer[Group]
}

// stamp sets what a datagram's control messages say.
func (o *origin) stamp(m *Message, control []byte) {
	a := o.controls.parse(control, o.order, o.ipv6)
	if !a.group.Addr.IsValid() {
		if only := o.only.Load(); only != nil {
			a.group = *only
		}
	}
	m.Group, m.Port, m.Time, m.segment = a.group, o.port, a.time, a.segment
}

// largest is more than any datagram has.
const largest = 1 << 16

// prepare asks the system to tell what a Conn wants to know of each datagram.
func (c *Conn) prepare(port int) error {
	o := &c.origin
	o.ipv6, o.port, o.order, o.controls = c.ipv6, port, c.kernel.order, c.kernel.controls()
	if err := c.reader.open(c.udp); err != nil {
		return err
	}
	if c.cfg.Timestamps {
		c.kernel.askForTime(&o.controls)
	}
	if c.cfg.GRO && c.kernel.askForGRO(&o.controls) {
		c.split.on = true
	}
	return c.prepareOrigin(o)
}

// prepareOrigin keeps other sockets' groups out, and sees to it that group and
// interface of each datagram are known.
func (q *requests) prepareOrigin(o *origin) error {
	alone := q.kernel.hearOnlyOwn(q.ipv6)
	if !q.bound.Addr.Is4() || !bindsGroups || !alone {
		return q.kernel.askForInfo(&o.controls, q.ipv6)
	}
	// While a socket that is bound to a group has but one membership, both are
	// certain, and asking costs. IPv6 kernels do not look at the interface of a
	// membership.
	q.firstJoin = func(g Group) error {
		if o.only.CompareAndSwap(nil, &g) || *o.only.Load() == g {
			return nil
		}
		return q.kernel.askForInfo(&o.controls, false)
	}
	return nil
}

// ReadMessage reads the next datagram that the filter lets through into
// m.Buf, and sets the other fields. It allocates nothing.
//
// The error is that of the socket: it matches [os.ErrDeadlineExceeded] after
// the read deadline and [net.ErrClosed] after Close.
func (c *Conn) ReadMessage(m *Message) error {
	_, err := c.readBatch("ReadMessage", unsafe.Slice(m, 1))
	return err
}

// ReadBatch reads datagrams that the filter lets through into the Bufs of ms,
// at least one and as many as are there, and returns how many. It allocates
// nothing; 8 to 32 messages are a good number. Beyond what it returns, the
// elements of ms are undefined but for their Bufs; these may have changed
// places among the elements.
//
// The error is that of the socket, as for ReadMessage.
func (c *Conn) ReadBatch(ms []Message) (int, error) { return c.readBatch("ReadBatch", ms) }

func (c *Conn) readBatch(op string, ms []Message) (int, error) {
	if len(ms) == 0 {
		return 0, opError(op, Group{}, netip.Addr{}, because(os.ErrInvalid, "there are no messages to read into"))
	}
	c.turn.Lock()
	defer c.turn.Unlock()
	if c.split.on {
		return c.readSplit(ms)
	}
	return c.readSome(ms)
}

// readSome reads at least one datagram, and after Config.Coalesce as many as
// have come by then.
func (c *Conn) readSome(ms []Message) (int, error) {
	for {
		n, waited, err := c.receive(ms, true)
		if err != nil {
			return 0, readError(err)
		}
		n = c.sift(ms[:n], &c.counts)
		if n > 0 && n < len(ms) && waited && c.cfg.Coalesce > 0 {
			time.Sleep(c.cfg.Coalesce)
			// What is wrong now will be so at the next read.
			if more, _, err := c.receive(ms[n:], false); err == nil {
				n += c.sift(ms[n:n+more], &c.counts)
			}
		}
		if n > 0 {
			return n, nil
		}
	}
}

// counts are of the datagrams that came in, by what became of them.
type counts struct{ received, filtered atomic.Uint64 }

// sift moves the messages that are to be handed over to the front, counts
// both kinds, and returns how many there are.
func (q *requests) sift(ms []Message, c *counts) int {
	n, in, out := 0, 0, 0
	for i := range ms {
		m := &ms[i]
		if !q.lets(m) {
			out += m.datagrams()
			continue
		}
		in += m.datagrams()
		if i != n {
			ms[n], *m = *m, ms[n]
		}
		n++
	}
	c.received.Add(uint64(in))
	if out > 0 {
		c.filtered.Add(uint64(out))
	}
	return n
}

// lets reports whether a datagram is to be handed over.
func (q *requests) lets(m *Message) bool {
	if m.Group.Addr.IsMulticast() {
		return q.filter.Allows(m.Group, m.Source.Addr())
	}
	// A socket that is bound to a group hears no unicast where the system can
	// bind it so; it is to be the same where it cannot.
	return q.hearUnicast && m.Group.Addr.IsValid() && !q.bound.Addr.IsValid()
}

// readError gives an error of package net the operation's name.
func readError(err error) error {
	var e *net.OpError
	if errors.As(err, &e) {
		e.Op = "read"
	}
	return err
}

// ReadFrom reads a datagram; see [net.PacketConn]. A datagram longer than b is
// cut, and the error then matches [io.ErrShortBuffer].
func (c *Conn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.ReadFromUDPAddrPort(b)
	if !from.IsValid() {
		return n, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), err
}

// ReadFromUDPAddrPort reads a datagram without allocating. A datagram longer
// than b is cut, and the error then matches [io.ErrShortBuffer].
func (c *Conn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	m := Message{Buf: b}
	if err := c.ReadMessage(&m); err != nil {
		return 0, netip.AddrPort{}, err
	}
	if m.Truncated {
		return m.N, m.Source, opError("ReadFrom", m.Group, m.Source.Addr().WithZone(""), &reason{
			kind: io.ErrShortBuffer, text: fmt.Sprintf("the datagram is longer than %d bytes", len(b)),
		})
	}
	return m.N, m.Source, nil
}
