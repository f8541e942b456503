//go:build !linux && !darwin && !freebsd && !windows

package mcast

import (
	"net/netip"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// An inbox is what net.UDPConn.ReadMsgUDPAddrPort needs.
type inbox struct {
	control [256]byte
	large   []byte
}

// prepare asks for the group and interface of each datagram. A system that
// does not tell has no joins either; it may still be sent from.
func (c *Conn) prepare() error {
	if c.ipv6 {
		c.p6.SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true)
	} else {
		c.p4.SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true)
	}
	return nil
}

// receive reads one datagram. There is room for more than the buffer takes, to
// tell what was cut.
func (c *Conn) receive(ms []Message) (int, error) {
	m, in := &ms[0], &c.in
	if in.large == nil {
		in.large = make([]byte, 1<<16)
	}
	n, oobn, _, from, err := c.udp.ReadMsgUDPAddrPort(in.large, in.control[:])
	if err != nil {
		return 0, err
	}
	m.N = copy(m.Buf, in.large[:n])
	m.Truncated = n > len(m.Buf)
	m.Source = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	m.Group = in.group(in.control[:oobn], c.ipv6)
	return 1, nil
}

func (in *inbox) group(control []byte, six bool) (g Group) {
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
