package mcast

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// readBufferKnob is where the administrator allows more.
const readBufferKnob = "net.core.rmem_max"

// growReadBuffer sets the receive buffer, past net.core.rmem_max if the
// program may (CAP_NET_ADMIN).
func growReadBuffer(c *net.UDPConn, n int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, n)
	}); e != nil {
		return e
	}
	if err == nil {
		return nil
	}
	return c.SetReadBuffer(n)
}

// kernelDrops gives the number of datagrams that found the receive buffer
// full (SO_MEMINFO, Linux 4.12).
func kernelDrops(s socket) (uint64, error) {
	var info [9 * 4]byte // SK_MEMINFO_VARS
	n, err := s.getsockopt(unix.SOL_SOCKET, unix.SO_MEMINFO, info[:])
	if err != nil || n < len(info) {
		return 0, err
	}
	return uint64(binary.NativeEndian.Uint32(info[8*4:])), nil // SK_MEMINFO_DROPS
}

// An inbox has the headers of recvmmsg(2), made once and pointed at the
// caller's buffers for each call.
type inbox struct {
	raw     syscall.RawConn
	format  controlFormat
	ready   func(fd uintptr) bool // one recvmmsg, kept so as not to allocate it
	headers []mmsghdr
	iovs    []unix.Iovec
	names   []unix.RawSockaddrInet6 // large enough for IPv4
	control []byte                  // controlRoom for each
	n       int                     // messages asked for, then received
	err     error
	zones   map[uint32]zone
}

// mmsghdr is struct mmsghdr.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// controlRoom is room for one IP_PKTINFO or IPV6_PKTINFO and some to spare.
const controlRoom = 64

// maxBatch is the most that one recvmmsg takes (UIO_MAXIOV).
const maxBatch = 1024

type zone struct {
	name string
	seen time.Time
}

// prepare asks for the group and interface of each datagram.
func (c *Conn) prepare() (err error) {
	in := &c.in
	if in.raw, err = c.udp.SyscallConn(); err != nil {
		return err
	}
	in.format = c.kernel.controls()
	in.ready = in.recvmmsg
	return c.kernel.askForInfo(&in.format, c.ipv6)
}

func (in *inbox) recvmmsg(fd uintptr) bool {
	for {
		n, _, e := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&in.headers[0])), uintptr(in.n), 0, 0, 0)
		switch e {
		case 0:
			in.n, in.err = int(n), nil
			return true
		case unix.EAGAIN:
			return false
		case unix.EINTR:
		default:
			in.n, in.err = 0, e
			return true
		}
	}
}

// receive reads as many datagrams as are there into ms, at least one.
func (c *Conn) receive(ms []Message) (int, error) {
	in := &c.in
	in.point(ms[:min(len(ms), maxBatch)])
	err := in.raw.Read(in.ready)
	if err == nil && in.err != nil {
		err = &net.OpError{Op: "read", Net: "udp", Source: c.local, Err: in.err}
	}
	if err != nil {
		return 0, err
	}
	for i := range in.n {
		in.parse(i, &ms[i], c.ipv6)
	}
	return in.n, nil
}

// point makes the headers ready for the buffers of ms.
func (in *inbox) point(ms []Message) {
	in.n = len(ms)
	for i := len(in.headers); i < len(ms); i = len(in.headers) {
		in.grow(len(ms))
	}
	for i := range ms {
		h := &in.headers[i].hdr
		in.iovs[i].Base = unsafe.SliceData(ms[i].Buf)
		in.iovs[i].SetLen(len(ms[i].Buf))
		h.Namelen = unix.SizeofSockaddrInet6
		h.SetControllen(controlRoom)
	}
}

// grow makes headers for n messages.
func (in *inbox) grow(n int) {
	in.headers = make([]mmsghdr, n)
	in.iovs = make([]unix.Iovec, n)
	in.names = make([]unix.RawSockaddrInet6, n)
	in.control = make([]byte, n*controlRoom)
	for i := range in.headers {
		h := &in.headers[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&in.names[i]))
		h.Iov = &in.iovs[i]
		h.SetIovlen(1)
		h.Control = &in.control[i*controlRoom]
	}
}

// parse fills in m from the header of message i.
func (in *inbox) parse(i int, m *Message, ipv6 bool) {
	h := &in.headers[i]
	m.N = min(int(h.n), len(m.Buf))
	m.Truncated = h.hdr.Flags&unix.MSG_TRUNC != 0
	from := &in.names[i]
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&from.Port))[:])
	if ipv6 {
		a := netip.AddrFrom16(from.Addr)
		if from.Scope_id != 0 {
			a = a.WithZone(in.zone(from.Scope_id))
		}
		m.Source = netip.AddrPortFrom(a.Unmap(), port)
	} else {
		from := (*unix.RawSockaddrInet4)(unsafe.Pointer(from))
		m.Source = netip.AddrPortFrom(netip.AddrFrom4(from.Addr), port)
	}
	m.Group = in.format.parse(in.control[i*controlRoom:][:min(uint64(h.hdr.Controllen), controlRoom)], binary.NativeEndian, ipv6).group
}

// zone names an interface as package net does, and like it trusts a name for
// a minute.
func (in *inbox) zone(index uint32) string {
	z, ok := in.zones[index]
	if !ok || time.Since(z.seen) > time.Minute {
		z = zone{name: strconv.Itoa(int(index)), seen: time.Now()}
		if ifi, err := net.InterfaceByIndex(int(index)); err == nil {
			z.name = ifi.Name
		}
		if in.zones == nil {
			in.zones = make(map[uint32]zone)
		}
		in.zones[index] = z
	}
	return z.name
}
