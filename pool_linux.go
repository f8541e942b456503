package mcast

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sockets waits for a Pool's sockets with epoll(7), under the runtime's poller:
// no goroutine or thread waits for a socket. A socket is reported once for each
// time that something comes in (EPOLLET); what a reader leaves in it is in the
// queue. The epoll with the sockets is inside another, which is armed only while
// a reader waits: else each datagram would wake a thread of the runtime.
type sockets struct {
	epoll *os.File // has sockets in it while a reader waits
	raw   syscall.RawConn
	inner int // has all sockets in it
	bell  int // an eventfd in epoll: wakes a reader for what is in the queue

	mu      sync.Mutex
	byID    []*shard
	free    []int    // indexes in byID
	queue   []*shard // from head on
	head    int
	scratch []*scratch
	closed  bool
	granted int

	descriptors int // that the program may have

	waiting atomic.Int32 // readers that found the queue empty
}

// scratch is what a reader has to itself.
type scratch struct {
	inbox
	events [64]unix.EpollEvent
	fresh  int // how many headers, the last ones, are ready since the last socket
	total  int // how many there are
	found  *shard
	err    error
	waited bool
	ready  func(fd uintptr) bool
}

// A shardState says who has a shard.
type shardState uint8

const (
	idle    shardState = iota // epoll
	queued                    // the queue
	owned                     // a reader
	again                     // a reader, and something has come in since
	removed                   // nobody: to be closed by whoever has it
)

const bellID = -1

func (p *sockets) open() (err error) {
	fds := [3]int{-1, -1, -1}
	defer func() {
		if err != nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
	}()
	for i := range 2 {
		if fds[i], err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
			return os.NewSyscallError("epoll_create1", err)
		}
	}
	if fds[2], err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	outer := fds[0]
	p.inner, p.bell = fds[1], fds[2]
	bell := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: bellID}
	off := unix.EpollEvent{Events: unix.EPOLLONESHOT}
	if err = unix.EpollCtl(p.inner, unix.EPOLL_CTL_ADD, p.bell, &bell); err == nil {
		err = unix.EpollCtl(outer, unix.EPOLL_CTL_ADD, p.inner, &off)
	}
	if err == nil {
		err = unix.SetNonblock(outer, true) // os.NewFile then gives it to the runtime's poller
	}
	if err != nil {
		return os.NewSyscallError("epoll_ctl", err)
	}
	p.descriptors = 1024
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) == nil {
		p.descriptors = int(min(r.Cur, 1<<30))
	}
	p.epoll = os.NewFile(uintptr(outer), "epoll")
	p.raw, err = p.epoll.SyscallConn()
	return err
}

// poolBinds: each group gets a socket of its own, since a wildcard socket costs
// every datagram on its port 25 ns, and this one nothing.
const poolBinds = true

// perSocket is how many memberships share a socket: what Linux allows by default
// (net.ipv4.igmp_max_memberships).
const perSocket = 20

// maxDescriptors is how many files the program may open.
func (p *sockets) maxDescriptors() int { return p.descriptors }

// fdSocket is a socket that is not in the runtime's poller: it would be woken
// for every datagram.
type fdSocket struct {
	fd     int
	origin origin
}

func (s *fdSocket) setsockopt(level, name int, value []byte) error {
	return setsockopt(s.fd, level, name, value)
}

func (s *fdSocket) getsockopt(level, name int, value []byte) (int, error) {
	return getsockopt(s.fd, level, name, value)
}

func (s *fdSocket) ioctl(uint32, []byte, []byte) (int, error) { return 0, unix.ENOTTY }

func (s *fdSocket) read(in *scratch, ms []Message) (n int, more bool, err error) {
	ms = ms[:min(len(ms), maxBatch)]
	if in.fresh != len(ms) { // else the headers are ready since the last socket
		in.point(ms)
		in.total = len(ms)
	}
	first := in.total - len(ms)
	n, e := in.recvmmsg(uintptr(s.fd), first, len(ms))
	in.fresh = len(ms) - n
	switch e {
	case 0:
	case unix.EAGAIN:
		return 0, false, nil
	default:
		return 0, true, &net.OpError{Op: "read", Net: "udp", Err: os.NewSyscallError("recvmmsg", e)}
	}
	for i := range n {
		in.parse(first+i, &ms[i], &s.origin)
	}
	return n, n == len(ms), nil
}

func (s *fdSocket) drops() uint64 {
	n, _ := kernelDrops(s)
	return n
}

func (s *fdSocket) close() error { return unix.Close(s.fd) }

// add opens the socket of a shard and waits for it.
func (p *sockets) add(s *shard, at endpoint, cfg *Config) error {
	fd, err := bindSocket(at)
	if err != nil {
		return err
	}
	sock := &fdSocket{fd: fd}
	s.socket = sock
	s.requests = &requests{
		kernel: hostKernel(sock), part: true, noWatch: true,
		ipv6: at.ipv6, bound: at.group, anySource: true, // Members has checked that
	}
	if err := p.prepare(s, sock, at, cfg); err != nil {
		unix.Close(fd)
		return err
	}
	p.mu.Lock()
	if n := len(p.free); n > 0 {
		s.id, p.free = p.free[n-1], p.free[:n-1]
		p.byID[s.id] = s
	} else {
		s.id = len(p.byID)
		p.byID = append(p.byID, s)
	}
	p.mu.Unlock()
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(s.id)}
	if err := p.control(func() error { return unix.EpollCtl(p.inner, unix.EPOLL_CTL_ADD, fd, &ev) }); err != nil {
		p.remove(s)
		return os.NewSyscallError("epoll_ctl", err)
	}
	return nil
}

func (p *sockets) control(f func() error) (err error) {
	if e := p.raw.Control(func(uintptr) { err = f() }); e != nil {
		return net.ErrClosed
	}
	return err
}

// prepare sets a socket's options before it hears anything.
func (p *sockets) prepare(s *shard, sock *fdSocket, at endpoint, cfg *Config) error {
	o := &sock.origin
	o.ipv6, o.port, o.order, o.controls = at.ipv6, at.port, hostSystem.order, hostSystem.controls()
	if cfg.Timestamps {
		s.kernel.askForTime(&o.controls)
	}
	if want := readBufferWanted(cfg); want > 0 {
		forceReadBuffer(sock.fd, want)
	}
	if p.granted == 0 {
		p.granted, _ = unix.GetsockoptInt(sock.fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	}
	return s.prepareOrigin(o)
}

// remove closes the socket of a shard, now or when its reader is done.
func (p *sockets) remove(s *shard) {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := s.state
	s.state = removed
	if was == idle {
		p.forget(s)
	}
}

// forget closes a socket; epoll forgets it by itself.
func (p *sockets) forget(s *shard) {
	s.socket.close()
	p.byID[s.id] = nil
	p.free = append(p.free, s.id)
}

// next returns a shard that has something to read, and gives it to the caller.
// Without one it waits, or returns nil.
func (p *sockets) next(in *scratch, wait bool) (s *shard, waited bool, err error) {
	p.mu.Lock()
	s = p.pop()
	closed := p.closed
	p.mu.Unlock()
	if closed {
		return nil, false, net.ErrClosed
	}
	if s != nil || !wait {
		return s, false, nil
	}
	in.found, in.err, in.waited = nil, nil, false
	p.waiting.Add(1)
	err = p.raw.Read(in.ready)
	p.waiting.Add(-1)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, true, &net.OpError{Op: "read", Net: "udp", Err: os.ErrDeadlineExceeded}
	case err != nil:
		return nil, true, net.ErrClosed
	}
	return in.found, in.waited, in.err
}

// poll looks for a shard in the queue, then in epoll. Before it says that there
// is none, it has the runtime woken, once, when there is.
func (p *sockets) poll(in *scratch, outer int) bool {
	if in.waited { // and was woken: enough of that, while inner is still ready
		epollNow(outer, in.events[:1])
	}
	p.mu.Lock()
	in.found = p.pop()
	p.mu.Unlock()
	for in.found == nil {
		n, err := epollNow(p.inner, in.events[:])
		if err != 0 {
			in.err = os.NewSyscallError("epoll_wait", err)
			return true
		}
		if n == 0 {
			in.waited = true
			if err := p.arm(outer); err != nil {
				in.err = os.NewSyscallError("epoll_ctl", err)
				return true
			}
			return false
		}
		p.mu.Lock()
		for _, ev := range in.events[:n] {
			if ev.Fd != bellID {
				p.arrived(p.byID[ev.Fd])
			}
		}
		in.found = p.pop()
		p.mu.Unlock()
	}
	return true
}

// arm has the runtime woken, once, when there is something in inner, or at once
// if there is by now.
func (p *sockets) arm(outer int) error {
	on := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT}
	return unix.EpollCtl(outer, unix.EPOLL_CTL_MOD, p.inner, &on)
}

// epollNow is epoll_wait(2) without waiting.
func epollNow(epoll int, events []unix.EpollEvent) (int, syscall.Errno) {
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
		if e != unix.EINTR {
			return int(n), e
		}
	}
}

// arrived notes that a shard has something to read.
func (p *sockets) arrived(s *shard) {
	switch {
	case s == nil: // closed since
	case s.state == idle:
		p.push(s)
	case s.state == owned:
		s.state = again
	}
}

// push puts a shard at the end of the queue.
func (p *sockets) push(s *shard) {
	if p.head > 0 && len(p.queue) == cap(p.queue) { // make room in place
		n := copy(p.queue, p.queue[p.head:])
		clear(p.queue[n:])
		p.queue, p.head = p.queue[:n], 0
	}
	s.state = queued
	p.queue = append(p.queue, s)
}

// pop gives the first shard of the queue to the caller.
func (p *sockets) pop() *shard {
	for p.head < len(p.queue) {
		s := p.queue[p.head]
		p.queue[p.head] = nil
		if p.head++; p.head == len(p.queue) {
			p.queue, p.head = p.queue[:0], 0
		}
		if s.state != removed {
			s.state = owned
			return s
		}
		p.forget(s)
	}
	return nil
}

// release takes a shard back from its reader.
func (p *sockets) release(s *shard, more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case s.state == removed:
		p.forget(s)
	case more || s.state == again:
		p.push(s)
		p.ring()
	default:
		s.state = idle
	}
}

// ring wakes a reader that waits.
func (p *sockets) ring() {
	if p.waiting.Load() > 0 && !p.closed {
		var one [8]byte
		binary.NativeEndian.PutUint64(one[:], 1)
		unix.Write(p.bell, one[:])
	}
}

func (p *sockets) borrow() *scratch {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.scratch); n > 0 {
		in := p.scratch[n-1]
		p.scratch = p.scratch[:n-1]
		in.fresh = 0
		return in
	}
	in := new(scratch)
	in.ready = func(epoll uintptr) bool { return p.poll(in, int(epoll)) }
	return in
}

// giveBack takes back what a reader borrowed. If it leaves something in the
// queue, another one that waits takes over.
func (p *sockets) giveBack(in *scratch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.scratch = append(p.scratch, in)
	if p.head < len(p.queue) {
		p.ring()
	}
}

func (p *sockets) setReadDeadline(t time.Time) error { return p.epoll.SetReadDeadline(t) }

func (p *sockets) readBuffer() int { return p.granted }

func (p *sockets) close() error {
	p.mu.Lock()
	p.closed = true
	for p.pop() != nil { // all are removed by now
	}
	p.mu.Unlock()
	err := p.epoll.Close() // waits for readers, which want the lock
	p.mu.Lock()
	defer p.mu.Unlock()
	unix.Close(p.bell)
	unix.Close(p.inner)
	return err
}
