package mcast

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
)

// WriteTo sends b to addr, a [*net.UDPAddr]; see [net.PacketConn].
func (c *Conn) WriteTo(b []byte, addr net.Addr) (int, error) { return c.udp.WriteTo(b, addr) }

// WriteToUDPAddrPort sends b to addr. It allocates nothing.
func (c *Conn) WriteToUDPAddrPort(b []byte, addr netip.AddrPort) (int, error) {
	return c.udp.WriteToUDPAddrPort(b, addr)
}

// SetMulticastInterface sets the interface that datagrams to groups are sent
// from; 0 leaves it to the routing table. The error is an [*OpError] with
// [ErrInterface], or what the system said.
func (c *Conn) SetMulticastInterface(index int) error {
	err := c.setMulticastInterface(index)
	if err != nil {
		return opError("SetMulticastInterface", Group{}, netip.Addr{}, err)
	}
	c.sendOn.Store(int64(index))
	return nil
}

func (c *Conn) setMulticastInterface(index int) error {
	var ifi *net.Interface
	if index != 0 {
		var err error
		if ifi, err = net.InterfaceByIndex(index); err != nil {
			return &reason{kind: ErrInterface, cause: err, text: fmt.Sprintf("there is no interface %d", index)}
		}
	}
	switch {
	case c.ipv6:
		return c.p6.SetMulticastInterface(ifi)
	case runtime.GOOS == "windows":
		// golang.org/x/net names the interface by an address, which it may
		// not have; 0.x.y.z is an index.
		// https://learn.microsoft.com/en-us/windows/win32/winsock/ipproto-ip-socket-options
		const ipMulticastIf = 9
		return os.NewSyscallError("setsockopt", c.kernel.sock.setsockopt(levelIP, ipMulticastIf, []byte{0, byte(index >> 16), byte(index >> 8), byte(index)}))
	}
	return c.p4.SetMulticastInterface(ifi)
}

// MulticastInterface returns the index of the interface that datagrams to
// groups are sent from, and 0 if the routing table chooses.
func (c *Conn) MulticastInterface() (int, error) {
	if i := c.sendOn.Load(); i != 0 {
		return int(i), nil
	}
	var ifi *net.Interface
	var err error
	if c.ipv6 {
		ifi, err = c.p6.MulticastInterface()
	} else if runtime.GOOS != "windows" { // there it is not read back as it was set
		ifi, err = c.p4.MulticastInterface()
	}
	if errors.Is(err, net.ErrClosed) {
		return 0, opError("MulticastInterface", Group{}, netip.Addr{}, err)
	}
	if err != nil || ifi == nil { // 0 is no interface to golang.org/x/net
		return 0, nil
	}
	return ifi.Index, nil
}

// SetMulticastTTL sets the time to live (IPv4) or the hop limit (IPv6) of
// datagrams to groups, 0 to 255. Systems start with 1, the local network.
func (c *Conn) SetMulticastTTL(ttl int) (err error) {
	switch {
	case ttl < 0 || ttl > 255:
		err = because(os.ErrInvalid, "a TTL is 0 to 255, not %d", ttl)
	case c.ipv6:
		err = c.p6.SetMulticastHopLimit(ttl)
	default:
		err = c.p4.SetMulticastTTL(ttl)
	}
	if err != nil {
		return opError("SetMulticastTTL", Group{}, netip.Addr{}, err)
	}
	return nil
}

// MulticastTTL returns the time to live or hop limit of datagrams to groups.
func (c *Conn) MulticastTTL() (ttl int, err error) {
	if c.ipv6 {
		ttl, err = c.p6.MulticastHopLimit()
	} else {
		ttl, err = c.p4.MulticastTTL()
	}
	if err != nil {
		return 0, opError("MulticastTTL", Group{}, netip.Addr{}, err)
	}
	return ttl, nil
}

// SetMulticastLoopback says whether sockets on this machine hear what this one
// sends to groups; at first they do. On Windows the option belongs to the
// receiver: it says whether this socket hears what this machine sends. Set it
// on both.
// https://learn.microsoft.com/en-us/windows/win32/winsock/ip-multicast-2
func (c *Conn) SetMulticastLoopback(on bool) (err error) {
	if c.ipv6 {
		err = c.p6.SetMulticastLoopback(on)
	} else {
		err = c.p4.SetMulticastLoopback(on)
	}
	if err != nil {
		return opError("SetMulticastLoopback", Group{}, netip.Addr{}, err)
	}
	return nil
}

// MulticastLoopback returns what SetMulticastLoopback set.
func (c *Conn) MulticastLoopback() (on bool, err error) {
	if c.ipv6 {
		on, err = c.p6.MulticastLoopback()
	} else {
		on, err = c.p4.MulticastLoopback()
	}
	if err != nil {
		return false, opError("MulticastLoopback", Group{}, netip.Addr{}, err)
	}
	return on, nil
}
