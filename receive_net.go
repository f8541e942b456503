//go:build !linux && !darwin && !freebsd && !windows

package mcast

import (
	"net"
	"net/netip"
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
func (r *reader) open(c *net.UDPConn) error {
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
	m.Source = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	m.Group = group(r.control[:oobn], c.ipv6)
	m.Port, m.segment, m.Time = c.origin.port, 0, time.Time{}
	return 1, false, nil
}

func group(control []byte, six bool) (g Group) {
	if six {
		var m ipv6.ControlMessage
		if m.Parse(control) == nil {
			g.Addr, _ = netip.AddrFromSlice(m.Dst)
			g.Interface = m.IfIndex
		}
		return g
	}
	var m ipv4.ControlMessage
	if m.Parse(control) == nil {
		g.Addr, _ = netip.AddrFromSlice(m.Dst.To4())
		g.Interface = m.IfIndex
	}
	return g
}
