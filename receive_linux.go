package mcast

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// readBufferKnob is where the administrator allows more.
const readBufferKnob = "net.core.rmem_max"

// growReadBuffer sets the receive buffer.
func growReadBuffer(c *net.UDPConn, n int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) { err = forceReadBuffer(int(fd), n) }); e != nil {
		return e
	}
	return err
}

// forceReadBuffer sets the receive buffer, past net.core.rmem_max if the program
// may (CAP_NET_ADMIN).
func forceReadBuffer(fd, n int) error {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, n) == nil {
		return nil
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, n))
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
	headers []mmsghdr
	iovs    []unix.Iovec
	names   []unix.RawSockaddrInet6 // large enough for IPv4
	control []byte                  // controlRoom for each
	zones   map[uint32]zone
}

// mmsghdr is struct mmsghdr.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// controlRoom is room for IPV6_PKTINFO, a time and UDP_GRO, and some to spare.
const controlRoom = 128

// maxBatch is the most that one recvmmsg takes (UIO_MAXIOV).
const maxBatch = 1024

type zone struct {
	name string
	seen time.Time
}

// point makes the headers ready for the buffers of ms.
func (in *inbox) point(ms []Message) {
	if len(in.headers) < len(ms) {
		in.grow(len(ms))
	}
	for i := range ms {
		in.iovs[i].Base = unsafe.SliceData(ms[i].Buf)
		in.iovs[i].SetLen(len(ms[i].Buf))
		h := &in.headers[i].hdr
		h.Namelen = unix.SizeofSockaddrInet6
		h.SetControllen(controlRoom)
	}
}

// recvmmsg reads as many datagrams as are there by that many headers, which
// point has made ready. Without any it returns EAGAIN.
func (in *inbox) recvmmsg(fd uintptr, first, count int) (int, syscall.Errno) {
	for {
		n, _, e := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&in.headers[first])), uintptr(count), unix.MSG_DONTWAIT, 0, 0)
		switch e {
		case 0:
			return int(n), 0
		case unix.EINTR:
		default:
			return 0, e
		}
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
func (in *inbox) parse(i int, m *Message, o *origin) {
	h := &in.headers[i]
	m.N = min(int(h.n), len(m.Buf))
	m.Truncated = h.hdr.Flags&unix.MSG_TRUNC != 0
	from := &in.names[i]
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&from.Port))[:])
	if o.ipv6 {
		a := netip.AddrFrom16(from.Addr)
		if from.Scope_id != 0 {
			a = a.WithZone(in.zone(from.Scope_id))
		}
		m.Source = netip.AddrPortFrom(a.Unmap(), port)
	} else {
		from := (*unix.RawSockaddrInet4)(unsafe.Pointer(from))
		m.Source = netip.AddrPortFrom(netip.AddrFrom4(from.Addr), port)
	}
	// Almost always there is the one message that was asked for.
	b := (*[controlRoom]byte)(in.control[i*controlRoom:])
	switch n := int(h.hdr.Controllen); {
	case n == unix.CmsgSpace(unix.SizeofInet4Pktinfo) && !o.ipv6 && isControl(b, unix.SizeofInet4Pktinfo, unix.IPPROTO_IP, unix.IP_PKTINFO):
		d := b[unix.SizeofCmsghdr:]
		m.Group = Group{Addr: netip.AddrFrom4([4]byte(d[8:])), Interface: int(int32(binary.NativeEndian.Uint32(d)))}
		m.Port, m.Time, m.segment = o.port, time.Time{}, 0
	case n == unix.CmsgSpace(unix.SizeofInet6Pktinfo) && o.ipv6 && isControl(b, unix.SizeofInet6Pktinfo, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO):
		d := b[unix.SizeofCmsghdr:]
		m.Group = Group{Addr: netip.AddrFrom16([16]byte(d)).Unmap(), Interface: int(int32(binary.NativeEndian.Uint32(d[16:])))}
		m.Port, m.Time, m.segment = o.port, time.Time{}, 0
	default:
		o.stamp(m, b[:min(n, controlRoom)])
	}
}

// isControl reports whether b begins with a control message of that kind and
// size.
func isControl(b *[controlRoom]byte, size int, level, kind int32) bool {
	h := (*unix.Cmsghdr)(unsafe.Pointer(b))
	return int(h.Len) == unix.SizeofCmsghdr+size && h.Level == level && h.Type == kind
}

// A reader is what the reading half of a [Conn] needs of Linux.
type reader struct {
	raw    syscall.RawConn
	ready  func(fd uintptr) bool // kept, so as not to be allocated for each call
	in     inbox
	n      int
	errno  syscall.Errno
	wait   bool // for the first datagram
	waited bool
}

func (r *reader) open(c *net.UDPConn) (err error) {
	r.raw, err = c.SyscallConn()
	r.ready = r.recvmmsg()
	return err
}

// recvmmsg gives the function that makes the system call. A processor that
// comes back from the kernel has forgotten where its callers are, so each
// function in between costs; this one has none.
func (r *reader) recvmmsg() func(fd uintptr) bool {
	return func(fd uintptr) bool {
		var n uintptr
		var e syscall.Errno
		for {
			if r.n == 1 { // for which the kernel has a shorter way, too short to tell the scheduler
				n, _, e = unix.RawSyscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&r.in.headers[0].hdr)), unix.MSG_DONTWAIT)
				r.in.headers[0].n = uint32(n)
				n = 1
			} else {
				n, _, e = unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.in.headers[0])), uintptr(r.n), unix.MSG_DONTWAIT, 0, 0)
			}
			switch {
			case e == 0:
				r.n, r.errno = int(n), 0
				return true
			case e == unix.EINTR:
			case e != unix.EAGAIN:
				r.n, r.errno = 0, e
				return true
			case r.wait:
				r.waited = true
				return false
			default:
				r.n, r.errno = 0, 0
				return true
			}
		}
	}
}

// receive reads as many datagrams as are there into ms, and if wait is set at
// least one.
func (c *Conn) receive(ms []Message, wait bool) (n int, waited bool, err error) {
	r := &c.reader
	ms = ms[:min(len(ms), maxBatch)]
	r.in.point(ms)
	r.n, r.errno, r.wait, r.waited = len(ms), 0, wait, false
	err = r.raw.Read(r.ready)
	if err == nil && r.errno != 0 {
		err = &net.OpError{Op: "read", Net: "udp", Source: c.local, Err: os.NewSyscallError("recvmmsg", r.errno)}
	}
	if err != nil {
		return 0, r.waited, err
	}
	for i := range r.n {
		r.in.parse(i, &ms[i], &c.origin)
	}
	return r.n, r.waited, nil
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
