//go:build !linux && !darwin && !freebsd && !windows

package mcast

import (
	"errors"
	"net"
	"net/netip"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// A reader is what net.UDPConn.ReadMsgUDPAddrPort needs.
type reader struct {
	control [256]byte
	large   []byte
}

// open asks for the group and interface of each datagram. A system that does
// not tell has no joins either; it may still be sent from.
func (r *reader) open(c *net.UDPConn, _ syscall.RawConn) error {
	ipv4.NewPacketConn(c).SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true)
	ipv6.NewPacketConn(c).SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true)
	return nil
}

// receive reads one datagram, for which it always waits. There is room for more
// than the buffer takes, to tell what was cut.
func (c *Conn) receive(ms []Message, wait bool) (n int, waited bool, err error) {
	if !wait {
		return 0, false, nil
	}
	m, r := &ms[0], &c.reader
	if r.large == nil {
		r.large = make([]byte, largest)
	}
	n, oobn, _, from, err := c.udp.ReadMsgUDPAddrPort(r.large, r.control[:])
	if err != nil {
		return 0, false, err
	}
	m.N = copy(m.Buf, r.large[:n])
	m.Truncated = n > len(m.Buf)
	m.Source = netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port())
	m.Group.Addr, m.Index = arrival(r.control[:oobn], c.ipv6)
	m.Port, m.HopLimit, m.segment, m.Time = c.origin.port, 0, 0, time.Time{}
	return 1, false, nil
}

// arrival reads where a datagram was sent to, and by what interface it came.
func arrival(control []byte, six bool) (dst netip.Addr, index int) {
	if six {
		var m ipv6.ControlMessage
		if m.Parse(control) == nil {
			dst, _ = netip.AddrFromSlice(m.Dst)
			index = m.IfIndex
		}
		return dst, index
	}
	var m ipv4.ControlMessage
	if m.Parse(control) == nil {
		dst, _ = netip.AddrFromSlice(m.Dst.To4())
		index = m.IfIndex
	}
	return dst, index
}

// readBufferKnob is where the administrator allows more, if there is such a
// place.
var readBufferKnob = map[string]string{"netbsd": "kern.sbmax", "dragonfly": "kern.ipc.maxsockbuf"}[runtime.GOOS]

func growReadBuffer(c *net.UDPConn, n int) error { return c.SetReadBuffer(n) }

// kernelDrops: the system does not count them for a socket.
func kernelDrops(socket) (uint64, error) { return 0, errors.ErrUnsupported }

// guard: what leaving on an interface that is gone does to others is not known.
func guard(*kernel, groupIndex, sourceFilter) error { return nil }

func closeGuards(int) {}

func (c *Conn) writeBatch(ms []Message) (int, error) { return c.writeEach(ms) }
