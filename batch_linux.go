package mcast

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An inbox has the headers of recvmmsg(2), made once and pointed at the
// caller's buffers for each call.
type inbox struct {
	headers []mmsghdr
	iovs    []unix.Iovec
	names   []unix.RawSockaddrInet6 // large enough for IPv4
	control []byte                  // controlRoom for each

	// quick says that the call takes a few microseconds at most, since it waits
	// for nothing: the scheduler need not be told of it.
	quick bool
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

// point makes the headers ready for the buffers of ms.
func (in *inbox) point(ms []Message) {
	if len(in.headers) < len(ms) {
		in.grow(len(ms))
	}
	room := 0
	for i := range ms {
		room += len(ms[i].Buf)
		in.iovs[i].Base = unsafe.SliceData(ms[i].Buf)
		in.iovs[i].SetLen(len(ms[i].Buf))
		h := &in.headers[i].hdr
		h.Namelen = unix.SizeofSockaddrInet6
		h.SetControllen(controlRoom)
	}
	in.quick = len(ms) <= 32 && room <= 1<<16
}

// recvmmsg reads as many datagrams as are there by that many headers, which
// point has made ready. Without any it returns EAGAIN.
func (in *inbox) recvmmsg(fd uintptr, first, count int) (int, syscall.Errno) {
	for {
		var n uintptr
		var e syscall.Errno
		if count == 1 { // for which the kernel has a shorter way
			n, _, e = unix.RawSyscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&in.headers[first].hdr)), unix.MSG_DONTWAIT)
			in.headers[first].n = uint32(n)
			n = 1
		} else if in.quick {
			n, _, e = unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&in.headers[first])), uintptr(count), unix.MSG_DONTWAIT, 0, 0)
		} else {
			n, _, e = unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&in.headers[first])), uintptr(count), unix.MSG_DONTWAIT, 0, 0)
		}
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
		m.Source = netip.AddrPortFrom(netip.AddrFrom16(from.Addr).Unmap(), port)
	} else {
		from := (*unix.RawSockaddrInet4)(unsafe.Pointer(from))
		m.Source = netip.AddrPortFrom(netip.AddrFrom4(from.Addr), port)
	}
	// Almost always there is the one message that was asked for, or the hop
	// limit after it.
	b := (*[controlRoom]byte)(in.control[i*controlRoom:])
	n := int(h.hdr.Controllen)
	const hops = 4 // bytes
	switch info4, info6 := unix.CmsgSpace(unix.SizeofInet4Pktinfo), unix.CmsgSpace(unix.SizeofInet6Pktinfo); {
	case !o.ipv6 && (n == info4 || n == info4+unix.CmsgSpace(hops) && isControl(b, info4, hops, unix.IPPROTO_IP, unix.IP_TTL)) &&
		isControl(b, 0, unix.SizeofInet4Pktinfo, unix.IPPROTO_IP, unix.IP_PKTINFO):
		m.Port, m.Time, m.HopLimit, m.segment = o.port, time.Time{}, 0, 0
		if n > info4 {
			m.HopLimit = int(binary.NativeEndian.Uint32(b[info4+unix.SizeofCmsghdr:]))
		}
		d := b[unix.SizeofCmsghdr:]
		o.arrived(m, netip.AddrFrom4([4]byte(d[8:])), int(int32(binary.NativeEndian.Uint32(d))))
	case o.ipv6 && (n == info6 || n == info6+unix.CmsgSpace(hops) && isControl(b, info6, hops, unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT)) &&
		isControl(b, 0, unix.SizeofInet6Pktinfo, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO):
		m.Port, m.Time, m.HopLimit, m.segment = o.port, time.Time{}, 0, 0
		if n > info6 {
			m.HopLimit = int(binary.NativeEndian.Uint32(b[info6+unix.SizeofCmsghdr:]))
		}
		d := b[unix.SizeofCmsghdr:]
		o.arrived(m, netip.AddrFrom16([16]byte(d)).Unmap(), int(int32(binary.NativeEndian.Uint32(d[16:]))))
	case n == 0:
		m.Port, m.Time, m.HopLimit, m.segment = o.port, time.Time{}, 0, 0
		o.arrived(m, netip.Addr{}, 0)
	default:
		o.stamp(m, b[:min(n, controlRoom)])
	}
}

// isControl reports whether b has a control message of that kind and size at a
// place.
func isControl(b *[controlRoom]byte, at, size int, level, kind int32) bool {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[at]))
	return int(h.Len) == unix.SizeofCmsghdr+size && h.Level == level && h.Type == kind
}

// A reader is what the reading half of a [Conn] needs of Linux.
type reader struct {
	writer writer
	raw    syscall.RawConn
	ready  func(fd uintptr) bool // kept, so as not to be allocated for each call
	in     inbox
	n      int
	errno  syscall.Errno
	wait   bool // for the first datagram
	waited bool
}

func (r *reader) open(_ *net.UDPConn, raw syscall.RawConn) error {
	r.raw = raw
	r.ready = r.recvmmsg()
	return nil
}

// recvmmsg gives the function that makes the system call.
func (r *reader) recvmmsg() func(fd uintptr) bool {
	return func(fd uintptr) bool {
		n, e := r.in.recvmmsg(fd, 0, r.n)
		if e == unix.EAGAIN && r.wait {
			r.waited = true
			return false
		}
		if e == unix.EAGAIN {
			e = 0
		}
		r.n, r.errno = n, e
		return true
	}
}

// receive reads as many datagrams as are there into ms, and if wait is set at
// least one.
func (c *Conn) receive(ms []Message, wait bool) (n int, waited bool, err error) {
	r := &c.reader
	ms = ms[:min(len(ms), maxBatch)]
	r.in.point(ms)
	r.n, r.errno, r.waited = 0, 0, false
	if busy := c.cfg.BusyPoll; busy != 0 && wait {
		err = r.spin(len(ms), busy)
	}
	if r.n == 0 && r.errno == 0 && err == nil {
		r.n, r.wait = len(ms), wait
		err = r.raw.Read(r.ready)
	}
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

// A writer has the headers of sendmmsg(2), made once.
type writer struct {
	mu       sync.Mutex
	headers  []mmsghdr
	iovs     []unix.Iovec            // one to a message
	names    []unix.RawSockaddrInet6 // large enough for IPv4
	control  [][]byte                // of headers
	send     func(fd uintptr) bool   // kept, so as not to be allocated for each call
	first, n int
	errno    syscall.Errno

	// Messages of one size and destination that follow one another are one
	// header, which the kernel takes apart (UDP_SEGMENT).
	probed   bool
	segments bool
	refused  int // from this size on it would not, since it is more than an MTU; 0: none
}

const (
	// maxSegments is the most that kernels take apart: UDP_MAX_SEGMENTS, which
	// was 64 before Linux 6.9.
	maxSegments = 64
	// maxPayload is the most that one header may have, with those of IPv6 and
	// UDP.
	maxPayload = 1<<16 - 1 - 40 - 8
)

// writeBatch sends messages by sendmmsg.
func (c *Conn) writeBatch(ms []Message) (int, error) {
	w := &c.reader.writer
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.send == nil {
		w.send = w.sendmmsg
	}
	if !w.probed {
		w.probed = true
		_, err := c.sock.getsockopt(unix.SOL_UDP, unix.UDP_SEGMENT, make([]byte, 4))
		w.segments = err == nil
	}
	for sent := 0; ; {
		batch := ms[sent:min(len(ms), sent+maxBatch)]
		headers, messages, bad := w.point(c, batch)
		for w.first, w.n = 0, headers; w.first < w.n; {
			if err := c.reader.raw.Write(w.send); err != nil {
				return sent + w.messages(w.first), err
			}
			if w.errno != 0 {
				break
			}
		}
		if w.first == w.n {
			if sent += messages; bad != nil || sent == len(ms) {
				return sent, bad
			}
			continue
		}
		sent += w.messages(w.first)
		if !w.refusedSegments(ms[sent].N) {
			return sent, os.NewSyscallError("sendmmsg", w.errno)
		}
	}
}

// messages is how many the first headers have.
func (w *writer) messages(headers int) (n int) {
	for i := range w.headers[:headers] {
		n += int(w.headers[i].hdr.Iovlen)
	}
	return n
}

// refusedSegments reports whether it was for what the header has to be taken
// apart into that the kernel refused it. Messages of that size are then sent
// one by one.
func (w *writer) refusedSegments(size int) bool {
	if w.headers[w.first].hdr.Iovlen == 1 {
		return false
	}
	switch w.errno {
	case unix.EINVAL, unix.EMSGSIZE, unix.EIO: // EIO: IPsec, or a card that makes no checksums
		w.refused = size
		return true
	}
	return false
}

// point makes headers ready for messages, and returns how many, and for how
// many messages; the error is about the next one.
func (w *writer) point(c *Conn, ms []Message) (headers, messages int, err error) {
	if len(w.headers) < len(ms) {
		w.headers = make([]mmsghdr, len(ms))
		w.iovs = make([]unix.Iovec, len(ms))
		w.names = make([]unix.RawSockaddrInet6, len(ms))
		w.control = make([][]byte, len(ms))
		for i := range w.headers {
			w.headers[i].hdr.Name = (*byte)(unsafe.Pointer(&w.names[i]))
		}
	}
	total := 0 // bytes of the last header
	for i := range ms {
		m := &ms[i]
		if err := m.checkSize(); err != nil {
			return headers, i, err
		}
		w.iovs[i].Base = unsafe.SliceData(m.Buf)
		w.iovs[i].SetLen(m.N)
		if headers > 0 {
			last := headers - 1
			h := &w.headers[last].hdr
			if w.joins(&ms[i-int(h.Iovlen)], &ms[i-1], m) && h.Iovlen < maxSegments && total+m.N <= maxPayload {
				if h.Iovlen == 1 {
					w.control[last], _ = c.origin.control.AppendSegment(w.control[last], ms[i-1].N)
					h.Control = unsafe.SliceData(w.control[last])
					h.SetControllen(len(w.control[last]))
				}
				h.SetIovlen(int(h.Iovlen) + 1)
				total += m.N
				continue
			}
		}
		if err := w.address(c, headers, m); err != nil {
			return headers, i, err
		}
		h := &w.headers[headers].hdr
		h.Iov = &w.iovs[i]
		h.SetIovlen(1)
		total = m.N
		headers++
	}
	return headers, len(ms), nil
}

// joins reports whether a message can be taken apart from those before it: the
// first of them, whose size all have, and the last, after which a shorter one
// may come.
func (w *writer) joins(first, last, m *Message) bool {
	size := first.N
	return w.segments && m.N > 0 && m.Port > 0 && // to port 0 nothing can be sent
		m.N <= size && last.N == size && (w.refused == 0 || size < w.refused) &&
		m.Port == first.Port && m.Group == first.Group
}

// address sets where a header goes to.
func (w *writer) address(c *Conn, i int, m *Message) error {
	a := m.Group.Addr
	if !a.IsValid() || a.Unmap().Is6() != c.ipv6 {
		return because(ErrAddress, "%v is not an address that this socket sends to", a)
	}
	name, h := &w.names[i], &w.headers[i].hdr
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&name.Port))[:], uint16(m.Port))
	if c.ipv6 {
		name.Family, name.Addr, name.Scope_id = unix.AF_INET6, a.As16(), 0
		if zone := a.Zone(); zone != "" {
			index, err := c.indexOf(zone)
			if err != nil {
				return err
			}
			name.Scope_id = uint32(index)
		}
		h.Namelen = unix.SizeofSockaddrInet6
	} else {
		to := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		to.Family, to.Addr = unix.AF_INET, a.Unmap().As4()
		h.Namelen = unix.SizeofSockaddrInet4
	}
	w.control[i] = w.control[i][:0]
	h.Control = nil
	h.SetControllen(0)
	if m.Group.Interface != "" {
		index, err := c.indexOf(m.Group.Interface)
		if err != nil {
			return err
		}
		w.control[i], _ = c.appendSend(w.control[i], index, netip.Addr{})
		h.Control = unsafe.SliceData(w.control[i])
		h.SetControllen(len(w.control[i]))
	}
	return nil
}

func (w *writer) sendmmsg(fd uintptr) bool {
	for {
		n, _, e := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&w.headers[w.first])), uintptr(w.n-w.first), unix.MSG_DONTWAIT, 0, 0)
		switch e {
		case 0:
			w.first, w.errno = w.first+int(n), 0
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			w.errno = e
			return true
		}
	}
}

// spin looks for datagrams again and again, for that long, or less than 0: until
// there are some. Each look is a Read of its own, which a deadline and Close end.
func (r *reader) spin(count int, limit time.Duration) error {
	spin := spinner{limit: limit}
	for {
		r.n, r.errno, r.wait = count, 0, false
		if err := r.raw.Read(r.ready); err != nil || r.n > 0 || r.errno != 0 {
			return err
		}
		if !spin.on() {
			return nil
		}
	}
}
