package mcast

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// A sender is the sending half of a [Conn].
type sender struct {
	p4 *ipv4.PacketConn // nil if IPv6
	p6 *ipv6.PacketConn // nil if IPv4

	out struct {
		mu     sync.Mutex
		ifname string // what SetMulticastInterface set
		index  int    // that it had then
	}
}

func (s *sender) open(udp *net.UDPConn, six bool) {
	if six {
		s.p6 = ipv6.NewPacketConn(udp)
	} else {
		s.p4 = ipv4.NewPacketConn(udp)
	}
}

// writeError makes an error one of package net, of the operation "write".
func writeError(err error) error {
	var e *net.OpError
	if errors.As(err, &e) {
		return err
	}
	return &net.OpError{Op: "write", Net: "udp", Err: err}
}

// WriteTo sends b to addr, a [*net.UDPAddr]; see [net.PacketConn].
func (c *Conn) WriteTo(b []byte, addr net.Addr) (int, error) {
	if c.udp == nil {
		return 0, writeError(errNotOpen)
	}
	if a, ok := addr.(*net.UDPAddr); ok && a != nil && a.Zone != "" {
		return c.WriteToUDPAddrPort(b, a.AddrPort())
	}
	return c.udp.WriteTo(b, addr)
}

// WriteToUDPAddrPort sends b to addr. It allocates nothing, unless addr has a
// zone.
func (c *Conn) WriteToUDPAddrPort(b []byte, addr netip.AddrPort) (int, error) {
	if c.udp == nil {
		return 0, writeError(errNotOpen)
	}
	addr, err := c.zoned(addr)
	if err != nil {
		return 0, writeError(err)
	}
	return c.udp.WriteToUDPAddrPort(b, addr)
}

// zoned puts the index of a zone in place of its name, which package net would
// look up in a list that may be a minute old.
func (c *Conn) zoned(a netip.AddrPort) (netip.AddrPort, error) {
	zone := a.Addr().Zone()
	if zone == "" {
		return a, nil
	}
	index, err := c.indexOf(zone)
	return netip.AddrPortFrom(a.Addr().WithZone(strconv.Itoa(index)), a.Port()), err
}

// WriteVia sends one datagram by an interface, "" for the one that it would
// take anyway, and from an address of this machine, the zero Addr for the one
// that it would have anyway (RFC 3542 section 6; IP_PKTINFO). It changes
// nothing for other datagrams.
//
// What the system cannot do for one datagram is an error that matches
// [errors.ErrUnsupported], and nothing is sent: on macOS both, on FreeBSD an
// interface for IPv4. [ErrInterface] says that there is no such interface, and
// [ErrAddress] that the addresses are of the other family. The error is a
// [*net.OpError].
func (c *Conn) WriteVia(b []byte, to netip.AddrPort, ifname string, from netip.Addr) (int, error) {
	n, err := c.writeVia(b, to, ifname, from)
	if err != nil {
		return n, writeError(err)
	}
	return n, nil
}

func (c *Conn) writeVia(b []byte, to netip.AddrPort, ifname string, from netip.Addr) (int, error) {
	if c.udp == nil {
		return 0, errNotOpen
	}
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	if zone := from.Zone(); ifname == "" {
		ifname = zone // the address is one of that interface
	} else if zone != "" && zone != ifname {
		return 0, because(ErrInterface, "%v is not an address of %s", from, ifname)
	}
	from = from.Unmap().WithZone("")
	if !to.Addr().IsValid() || to.Addr().Is6() != c.ipv6 || from.IsValid() && from.Is6() != c.ipv6 {
		return 0, because(ErrAddress, "to %v from %v: the socket is of %s", to, from, map[bool]string{false: "IPv4", true: "IPv6"}[c.ipv6])
	}
	index, err := c.indexOf(ifname)
	if err == nil {
		to, err = c.zoned(to)
	}
	if err != nil {
		return 0, err
	}
	if index == 0 && !from.IsValid() {
		return c.udp.WriteToUDPAddrPort(b, to)
	}
	control, ok := c.appendSend(nil, index, from)
	if !ok {
		return 0, fmt.Errorf("%s cannot choose this for one datagram: %w", c.platform.name, errors.ErrUnsupported)
	}
	if _, _, err := c.udp.WriteMsgUDPAddrPort(b, control, to); err != nil {
		return 0, err
	}
	return len(b), nil // whole, or not at all
}

// appendSend appends what picks an interface, and an address to send from. A
// socket that is bound to an address sends from there by any interface: systems
// take an IP_PKTINFO that has no address for one that has them choose it.
func (c *Conn) appendSend(b []byte, index int, from netip.Addr) ([]byte, bool) {
	if !from.IsValid() && index != 0 && c.requests.to.IsValid() {
		if b, ok := c.origin.control.AppendSend(b, c.ipv6, index, c.requests.to); ok {
			return b, true
		}
	}
	return c.origin.control.AppendSend(b, c.ipv6, index, from)
}

// indexOf gives the index of an interface that is named, 0 for "".
func (c *Conn) indexOf(ifname string) (int, error) {
	if ifname == "" {
		return 0, nil
	}
	if ifname == everyInterface {
		return 0, because(ErrInterface, "a datagram is sent by one interface: name it")
	}
	on, err := c.locate(nil, Group{Interface: ifname}, sourceFilter{}, netip.Addr{})
	if err != nil {
		return 0, err
	}
	return on[0].Index, nil
}

// WriteBatch sends datagrams, by one system call for many where there is such a
// call (sendmmsg on Linux): of each message Buf[:N], to Group.Addr, which may be
// unicast, and Port, by Group.Interface if that is named. Source is ignored. It
// returns how many were sent; the error is about the next one. It allocates
// nothing on Linux, unless interfaces are named.
//
// Datagrams of one size that follow one another to one destination are handed
// to the system as one where it can take them apart (UDP_SEGMENT on Linux).
//
// The error is a [*net.OpError]: see [Conn.WriteVia].
func (c *Conn) WriteBatch(ms []Message) (int, error) {
	if c.udp == nil {
		return 0, writeError(errNotOpen)
	}
	if len(ms) == 0 {
		return 0, nil
	}
	n, err := c.writeBatch(ms)
	if err != nil {
		return n, writeError(err)
	}
	return n, nil
}

// checkSize refuses a message that cannot be sent as it is.
func (m *Message) checkSize() error {
	if m.N < 0 || m.N > len(m.Buf) || m.Port < 0 || m.Port > 65535 {
		return because(os.ErrInvalid, "a message of %d bytes, in a Buf of %d, for port %d", m.N, len(m.Buf), m.Port)
	}
	return nil
}

// writeEach sends datagrams one by one.
func (c *Conn) writeEach(ms []Message) (int, error) {
	for i := range ms {
		m := &ms[i]
		if err := m.checkSize(); err != nil {
			return i, err
		}
		if _, err := c.writeVia(m.Buf[:m.N], netip.AddrPortFrom(m.Group.Addr, uint16(m.Port)), m.Group.Interface, netip.Addr{}); err != nil {
			return i, err
		}
	}
	return len(ms), nil
}

// SetMulticastInterface sets the interface that datagrams to groups are sent
// from, by name or, in digits, by index; "" leaves it to the routing table. It
// belongs to the name: when the interface is made anew, it is set again, unless
// Config.NoWatch is set.
//
// The error is an [*OpError] with [ErrInterface], or what the system said.
func (c *Conn) SetMulticastInterface(name string) error {
	if err := c.setMulticastInterface(name); err != nil {
		return opError("SetMulticastInterface", Group{}, netip.Addr{}, err)
	}
	return nil
}

func (c *Conn) setMulticastInterface(name string) error {
	if c.udp == nil {
		return errNotOpen
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	index, err := c.indexOf(name)
	if err == nil {
		name, err = c.canonical(name)
	}
	if err == nil {
		err = c.sendBy(index)
	}
	if err != nil {
		return err
	}
	c.out.mu.Lock()
	c.out.ifname, c.out.index = name, index
	c.out.mu.Unlock()
	if name != "" {
		c.watch()
	}
	return nil
}

// followSender sets the interface for sending again when it was made anew.
// Called with the lock of requests held.
func (c *Conn) followSender() {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if c.out.ifname == "" {
		return
	}
	index, err := c.indexOf(c.out.ifname)
	if err != nil || index == c.out.index {
		return
	}
	if c.sendBy(index) == nil {
		c.out.index = index
	}
}

// sendBy tells the system what interface to send by; 0: what the routing table
// says.
func (c *Conn) sendBy(index int) error {
	p := c.platform
	if p.multicastIf == 0 {
		return c.sendByNet(index)
	}
	if c.ipv6 {
		return os.NewSyscallError("setsockopt", c.sock.setsockopt(levelIPv6, p.multicastIf6, p.uint32(nil, uint32(index))))
	}
	value := make([]byte, 4, 12)
	switch {
	case p.interfaceIn == byIndex:
		binary.BigEndian.PutUint32(value, uint32(index))
	case p.mreqnIf: // group, address, index
		value = p.uint32(value[:8], uint32(index))
	case index != 0:
		a, err := c.ledger.kernel.address4(index)
		if err != nil {
			return err
		}
		copy(value, a.AsSlice())
	}
	return os.NewSyscallError("setsockopt", c.sock.setsockopt(levelIP, p.multicastIf, value))
}

// sendByNet does the same on systems whose numbers are not known here.
func (c *Conn) sendByNet(index int) error {
	var ifi *net.Interface
	if index != 0 {
		var err error
		if ifi, err = net.InterfaceByIndex(index); err != nil {
			return err
		}
	}
	if c.ipv6 {
		return c.p6.SetMulticastInterface(ifi)
	}
	return c.p4.SetMulticastInterface(ifi)
}

// MulticastInterface returns the name of the interface that datagrams to groups
// are sent from, as SetMulticastInterface set it; "" leaves it to the routing
// table.
func (c *Conn) MulticastInterface() (string, error) {
	if c.udp == nil {
		return "", opError("MulticastInterface", Group{}, netip.Addr{}, errNotOpen)
	}
	c.out.mu.Lock()
	name := c.out.ifname
	c.out.mu.Unlock()
	if name != "" {
		return name, nil
	}
	// What was set before the socket was given to New.
	var ifi *net.Interface
	var err error
	if c.ipv6 {
		ifi, err = c.p6.MulticastInterface()
	} else if runtime.GOOS != "windows" { // there it is not read back as it was set
		ifi, err = c.p4.MulticastInterface()
	}
	if errors.Is(err, net.ErrClosed) {
		return "", opError("MulticastInterface", Group{}, netip.Addr{}, err)
	}
	if err != nil || ifi == nil { // 0 is no interface to golang.org/x/net
		return "", nil
	}
	return ifnameFor(ifi.Name, ifi.Index), nil
}

// SetMulticastTTL sets the time to live (IPv4) or the hop limit (IPv6) of
// datagrams to groups, 0 to 255. Systems start with 1, the local network.
func (c *Conn) SetMulticastTTL(ttl int) (err error) {
	switch {
	case c.udp == nil:
		err = errNotOpen
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
	switch {
	case c.udp == nil:
		err = errNotOpen
	case c.ipv6:
		ttl, err = c.p6.MulticastHopLimit()
	default:
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
	switch {
	case c.udp == nil:
		err = errNotOpen
	case c.ipv6:
		err = c.p6.SetMulticastLoopback(on)
	default:
		err = c.p4.SetMulticastLoopback(on)
	}
	if err != nil {
		return opError("SetMulticastLoopback", Group{}, netip.Addr{}, err)
	}
	return nil
}

// MulticastLoopback returns what SetMulticastLoopback set.
func (c *Conn) MulticastLoopback() (on bool, err error) {
	switch {
	case c.udp == nil:
		err = errNotOpen
	case c.ipv6:
		on, err = c.p6.MulticastLoopback()
	default:
		on, err = c.p4.MulticastLoopback()
	}
	if err != nil {
		return false, opError("MulticastLoopback", Group{}, netip.Addr{}, err)
	}
	return on, nil
}
