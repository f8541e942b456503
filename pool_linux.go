package mcast

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// epollSockets wait for a Pool's sockets with epoll(7), under the runtime's
// poller: no goroutine or thread waits for a socket. A socket is reported once
// for each time that something comes in (EPOLLET); what a reader leaves in it is
// in the queue. The epoll with the sockets is inside another, which is armed
// only while a reader waits: else each datagram would wake a thread of the
// runtime.
type epollSockets struct {
	epoll *os.File // has sockets in it while a reader waits
	raw   syscall.RawConn
	inner int // has all sockets in it
	bell  int // an eventfd in epoll: wakes a reader for what is in the queue

	mu      sync.Mutex
	byID    []*shard
	free    []int    // indexes in byID
	queue   []*shard // from head on
	head    int
	readers []*epollReader // that nobody has borrowed
	closed  bool

	granted  atomic.Int64
	deadline readDeadline
	waiting  atomic.Int32  // readers that found the queue empty
	busy     time.Duration // Config.BusyPoll
	spinning atomic.Bool   // a reader looks again and again
}

// An epollReader is a [poolReader].
type epollReader struct {
	p *epollSockets
	inbox
	events  [64]unix.EpollEvent
	taken   [16]take
	most    int // of taken, at the next turn
	fresh   int // how many headers, the last ones, are ready since the last turn
	total   int // how many there are
	found   []take
	err     error
	touched int // so that touch is not for nothing
	waited  bool
	ready   func(fd uintptr) bool // kept, so as not to be allocated for each call
}

const bellID = -1

func init() {
	newPoolSockets, newAnchor, maxDescriptors = newEpollSockets, newFDAnchor, descriptorLimit
}

func newEpollSockets(cfg *Config) (poolSockets, error) {
	p := &epollSockets{busy: cfg.BusyPoll}
	if err := p.open(); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *epollSockets) open() (err error) {
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
	p.epoll = os.NewFile(uintptr(outer), "epoll")
	p.deadline.sock = p.epoll
	p.raw, err = p.epoll.SyscallConn()
	return err
}

// descriptorLimit is how many files the program may open.
func descriptorLimit() int {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil {
		return 1024
	}
	return int(min(r.Cur, 1<<30))
}

// fdAnchor is an [anchor] that is not in the runtime's poller.
type fdAnchor struct{ fd, picked int }

// newFDAnchor makes an unbound socket, or one that has the system pick a port.
func newFDAnchor(at endpoint, cfg *Config) (anchor, error) {
	if at.port != 0 {
		family := unix.AF_INET
		if at.ipv6 {
			family = unix.AF_INET6
		}
		fd, err := socketFor(family)
		return fdAnchor{fd: fd}, err
	}
	fd, err := bindSocket(at, cfg.Control)
	if err != nil {
		return nil, err
	}
	// Not before: the system would pick a port that another one shares.
	if err := share(fd); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setsockopt", err)
	}
	// It hears nothing that matters.
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0)
	k := kernel{platform: hostSystem, sock: newRawSocket(descriptor(fd))}
	k.hearOnlyOwn(at.ipv6)
	a := fdAnchor{fd: fd}
	sa, err := unix.Getsockname(fd)
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		a.picked = sa.Port
	case *unix.SockaddrInet6:
		a.picked = sa.Port
	}
	return a, os.NewSyscallError("getsockname", err)
}

func (a fdAnchor) raw() syscall.RawConn { return descriptor(a.fd) }
func (a fdAnchor) port() int            { return a.picked }
func (a fdAnchor) close() error         { return unix.Close(a.fd) }

// fdSocket is a socket that is not in the runtime's poller: it would be woken
// for every datagram.
type fdSocket struct {
	*rawSocket
	fd int
}

func (s *fdSocket) drops() uint64 {
	n, _ := kernelDrops(s)
	return n
}

func (s *fdSocket) close() error { return unix.Close(s.fd) }

func (p *epollSockets) add(s *shard, at endpoint, pool *Pool) error {
	fd, err := bindSocket(at, pool.cfg.Control)
	if err != nil {
		return err
	}
	sock := &fdSocket{rawSocket: newRawSocket(descriptor(fd)), fd: fd}
	s.its = newLedger(hostSystem, sock, pool.host, at.ipv6)
	l := &s.its
	s.ledger, s.socket, s.fd = l, sock, fd
	s.origin.port = at.port
	if want := pool.cfg.readBuffer(); want > 0 {
		forceReadBuffer(fd, want)
	}
	if p.granted.Load() == 0 {
		n, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
		p.granted.Store(int64(n))
	}
	if err := l.prepare(&s.origin, pool.cfg, at.group); err != nil {
		unix.Close(fd)
		return err
	}
	if l.noBusyPoll {
		warnBusyPoll(pool.events)
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

func (p *epollSockets) control(f func() error) (err error) {
	if e := p.raw.Control(func(uintptr) { err = f() }); e != nil {
		return net.ErrClosed
	}
	return err
}

func (p *epollSockets) remove(s *shard) {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := s.state
	s.state = removed
	if was == idle {
		p.forget(s)
	}
}

// forget closes a socket; epoll forgets it by itself.
func (p *epollSockets) forget(s *shard) {
	s.socket.close()
	p.byID[s.id] = nil
	p.free = append(p.free, s.id)
}

func (r *epollReader) read(takes []take, ms []Message) {
	ms = ms[:min(len(ms), maxBatch)]
	first := r.total - len(ms) // of the headers, which next has made ready
	n := 0
	for i := range takes {
		t := &takes[i]
		room := len(ms) - n
		if room == 0 {
			t.unread, r.most = true, 1
			continue
		}
		var e syscall.Errno
		t.n, e = r.recvmmsg(uintptr(t.fd), first+n, room)
		n += t.n
		t.more = t.n == room
		if e != 0 && e != unix.EAGAIN {
			t.more, t.err = true, &net.OpError{Op: "read", Net: "udp", Err: os.NewSyscallError("recvmmsg", e)}
		}
	}
	r.fresh = len(ms) - n
	if len(takes) > 1 {
		for i := range takes {
			r.touched += takes[i].touch()
		}
	}
	n = 0
	for i := range takes {
		t := &takes[i]
		for range t.n {
			r.parse(first+n, &ms[n], &t.origin)
			n++
		}
	}
}

func (r *epollReader) next(ms []Message, first, rested bool) (takes []take, waited bool, err error) {
	p := r.p
	if first && p.deadline.expired() {
		return nil, false, os.ErrDeadlineExceeded
	}
	if ms = ms[:min(len(ms), maxBatch)]; r.fresh != len(ms) { // else the headers are ready since the last turn
		r.point(ms)
		r.total, r.fresh = len(ms), len(ms)
	}
	woken := p.deadline.woken.Load()
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, false, net.ErrClosed
	}
	if rested || first && p.head < len(p.queue) {
		// Those that have become ready meanwhile have their turn too, however
		// much the others have.
		p.look(r)
	}
	takes = r.take()
	p.mu.Unlock()
	if len(takes) > 0 || !first {
		return takes, false, nil
	}
	r.found, r.err, r.waited = nil, nil, false
	if p.busy != 0 && p.spinning.CompareAndSwap(false, true) {
		takes, err = r.spin(woken)
		p.spinning.Store(false)
		if len(takes) > 0 || err != nil {
			return takes, false, err
		}
	}
	p.waiting.Add(1)
	err = p.raw.Read(r.ready)
	p.waiting.Add(-1)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && !p.deadline.passed(woken):
		return nil, true, errWoken
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, true, os.ErrDeadlineExceeded
	case err != nil:
		return nil, true, net.ErrClosed
	}
	return r.found, r.waited, r.err
}

// take gives the reader the first shards of the queue. Several at a time cost less
// than each alone, but those that find no room have waited for nothing. Called with
// the lock.
func (r *epollReader) take() []take {
	n := 0
	for n < r.most {
		s := r.p.pop()
		if s == nil {
			break
		}
		r.taken[n] = take{shard: s}
		n++
	}
	r.most = min(2*r.most, len(r.taken))
	return r.taken[:n]
}

// spin looks for a shard again and again, as long as Config.BusyPoll says.
func (r *epollReader) spin(woken uint64) (takes []take, err error) {
	p := r.p
	for spin := (spinner{limit: p.busy}); spin.on(); {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, net.ErrClosed
		}
		if takes = r.take(); len(takes) == 0 {
			p.look(r)
			takes = r.take()
		}
		p.mu.Unlock()
		switch {
		case len(takes) > 0:
			return takes, nil
		case p.deadline.wakes.Load() > 0 || p.deadline.woken.Load() != woken:
			return nil, errWoken
		case spin.due() && p.deadline.expired():
			return nil, os.ErrDeadlineExceeded
		}
	}
	return nil, nil
}

// look puts those that are ready now into the queue. Called with the lock.
func (p *epollSockets) look(r *epollReader) (n int, err syscall.Errno) {
	n, err = epollNow(p.inner, r.events[:])
	ready := r.events[:max(n, 0)]
	for _, ev := range ready {
		if ev.Fd != bellID {
			p.arrived(p.byID[ev.Fd])
		}
	}
	return n, err
}

// touch reads what reading from a shard will need of it. Of many thousands,
// little is in the processor's caches; of several one after the other it fetches
// all at the same time.
func (s *shard) touch() (sum int) {
	if c := s.heard.first.few[0].Load(); c != nil {
		sum = c.key.index
		if h := c.value.Load(); h != nil && h.one[0].Is4() && h.ifname == "" {
			sum++
		}
	}
	return sum
}

// poll looks for a shard in the queue, then in epoll. Before it says that there
// is none, it has the runtime woken, once, when there is.
func (p *epollSockets) poll(r *epollReader, outer int) bool {
	if r.waited { // and was woken: enough of that, while inner is still ready
		epollNow(outer, r.events[:1])
	}
	for {
		p.mu.Lock()
		if r.found = r.take(); len(r.found) > 0 {
			p.mu.Unlock()
			return true
		}
		n, err := p.look(r)
		p.mu.Unlock()
		if err != 0 {
			r.err = os.NewSyscallError("epoll_wait", err)
			return true
		}
		if n <= 0 {
			r.waited = true
			if err := p.arm(outer); err != nil {
				r.err = os.NewSyscallError("epoll_ctl", err)
				return true
			}
			return false
		}
	}
}

// arm has the runtime woken, once, when there is something in inner, or at once
// if there is by now.
func (p *epollSockets) arm(outer int) error {
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
func (p *epollSockets) arrived(s *shard) {
	switch {
	case s == nil: // closed since
	case s.state == idle:
		p.push(s)
	case s.state == owned:
		s.state = again
	}
}

// push puts a shard at the end of the queue.
func (p *epollSockets) push(s *shard) {
	if p.head > 0 && len(p.queue) == cap(p.queue) { // make room in place
		n := copy(p.queue, p.queue[p.head:])
		clear(p.queue[n:])
		p.queue, p.head = p.queue[:n], 0
	}
	s.state = queued
	p.queue = append(p.queue, s)
}

// pop gives the first shard of the queue to the caller.
func (p *epollSockets) pop() *shard {
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

func (r *epollReader) release(takes []take) {
	p := r.p
	p.mu.Lock()
	defer p.mu.Unlock()
	unread := len(takes)
	for unread > 0 && takes[unread-1].unread {
		unread--
	}
	left := unread < len(takes)
	p.pushFront(takes[unread:])
	for _, t := range takes[:unread] {
		switch {
		case t.state == removed:
			p.forget(t.shard)
		case t.more || t.state == again:
			p.push(t.shard)
			left = true
		default:
			t.state = idle
		}
	}
	if left {
		p.ring()
	}
}

// pushFront puts shards that had no turn back to where they were.
func (p *epollSockets) pushFront(takes []take) {
	for _, t := range slices.Backward(takes) {
		if t.state == removed {
			p.forget(t.shard)
			continue
		}
		t.state = queued
		if p.head > 0 {
			p.head--
			p.queue[p.head] = t.shard
		} else {
			p.queue = slices.Insert(p.queue, 0, t.shard)
		}
	}
}

// ring wakes a reader that waits.
func (p *epollSockets) ring() {
	if p.waiting.Load() > 0 && !p.closed {
		var one [8]byte
		binary.NativeEndian.PutUint64(one[:], 1)
		unix.Write(p.bell, one[:])
	}
}

func (p *epollSockets) borrow() poolReader {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.readers); n > 0 {
		r := p.readers[n-1]
		p.readers = p.readers[:n-1]
		r.fresh = 0
		return r
	}
	r := &epollReader{p: p, most: 1}
	r.ready = func(epoll uintptr) bool { return p.poll(r, int(epoll)) }
	return r
}

// giveBack takes back what a reader borrowed. If it leaves something in the
// queue, another one that waits takes over.
func (p *epollSockets) giveBack(r poolReader) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.readers = append(p.readers, r.(*epollReader))
	if p.head < len(p.queue) {
		p.ring()
	}
}

func (p *epollSockets) wake() { p.deadline.wake() }
func (p *epollSockets) calm() { p.deadline.calm() }

func (p *epollSockets) setReadDeadline(t time.Time) error {
	if err := p.deadline.set(t); err != nil {
		return net.ErrClosed
	}
	return nil
}

func (p *epollSockets) readBuffer() int { return int(p.granted.Load()) }

func (p *epollSockets) close() error {
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
