package mcast

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"
)

// A Message is a datagram that was received.
type Message struct {
	Buf       []byte         // room for the payload, given by the caller
	N         int            // bytes of payload in Buf
	Source    netip.AddrPort // the sender; a link-local IPv6 address has a zone
	Group     Group          // the address it was sent to, and the interface it came in by
	Truncated bool           // the datagram was longer than Buf; the rest is lost
}

// A receiver is the reading half of a [Conn]. One reader at a time is at the
// socket; the others wait for it, as they would inside the socket.
type receiver struct {
	turn sync.Mutex
	in   inbox // what the system's way of receiving needs, for the reader whose turn it is

	received, filtered atomic.Uint64
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
	for {
		n, err := c.receive(ms)
		if err != nil {
			return 0, readError(err)
		}
		if n = c.sift(ms[:n]); n > 0 {
			return n, nil
		}
	}
}

// sift moves the messages that are to be handed over to the front, counts
// both kinds, and returns how many there are.
func (c *Conn) sift(ms []Message) int {
	n := 0
	for i := range ms {
		if !c.lets(&ms[i]) {
			continue
		}
		if i != n {
			ms[n], ms[i] = ms[i], ms[n]
		}
		n++
	}
	c.received.Add(uint64(n))
	if n < len(ms) {
		c.filtered.Add(uint64(len(ms) - n))
	}
	return n
}

// lets reports whether a datagram is to be handed over.
func (c *Conn) lets(m *Message) bool {
	if m.Group.Addr.IsMulticast() {
		return c.filter.Allows(m.Group, m.Source.Addr())
	}
	// A socket that is bound to a group hears no unicast where the system can
	// bind it so; it is to be the same where it cannot.
	return c.cfg.Unicast && m.Group.Addr.IsValid() && !c.bound.Addr.IsValid()
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
