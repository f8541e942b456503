package mcast

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// netSockets wait for a Pool's sockets with a goroutine for each, on any system.
// They are few there, since other systems than Linux let one have a thousand
// memberships and more.
type netSockets struct {
	mu       sync.Mutex
	change   *sync.Cond // of all below, and of shards' states
	queue    []*shard
	readers  []*netReader // that nobody has borrowed
	closed   bool
	granted  int
	wakes    int // of wake, less those of calm
	woken    int // ever
	deadline time.Time
	alarm    *time.Timer
	wg       sync.WaitGroup
}

// How Pools wait, keep a port, and know how many files the program may open, 0
// for any number: on Linux there are better ways.
var (
	newPoolSockets = newNetSockets
	newAnchor      = newNetAnchor
	maxDescriptors = func() int { return 0 }
)

func newNetSockets(*Config) (poolSockets, error) {
	p := new(netSockets)
	p.change = sync.NewCond(&p.mu)
	return p, nil
}

// netSocket is the socket of a Conn, of which the Pool uses the parts.
type netSocket struct {
	*Conn
	err error // of waiting for it, to be told to a reader
}

func (p *netSockets) add(s *shard, at endpoint, pool *Pool) error {
	udp, err := open(at, pool.cfg.Control)
	if err != nil {
		return err
	}
	own := *pool.cfg
	own.GRO, own.BusyPoll, own.NoWatch = false, 0, true
	c, err := wrap(udp, at, &own)
	if err != nil {
		udp.Close()
		return err
	}
	raw, err := udp.SyscallConn()
	if err != nil {
		udp.Close()
		return err
	}
	sock := &netSocket{Conn: c}
	s.ledger, s.socket = &c.ledger, sock
	p.mu.Lock()
	p.granted = int(c.granted.Load())
	p.mu.Unlock()
	p.wg.Go(func() { p.watch(s, sock, raw) })
	return nil
}

// watch puts a shard into the queue whenever it has something to read.
func (p *netSockets) watch(s *shard, sock *netSocket, raw syscall.RawConn) {
	for {
		tried := false
		err := raw.Read(func(fd uintptr) bool {
			// Pollers report a change: what is there already must be found here
			// (golang/go#70373).
			ready := hasDatagram(fd, tried)
			tried = true
			return ready
		})
		p.mu.Lock()
		if s.state == removed || errors.Is(err, net.ErrClosed) {
			p.mu.Unlock()
			return
		}
		sock.err = err
		s.state = queued
		p.queue = append(p.queue, s)
		p.change.Broadcast()
		for s.state != idle && s.state != removed {
			p.change.Wait()
		}
		p.mu.Unlock()
		if err != nil {
			time.Sleep(10 * time.Millisecond) // it may last
		}
	}
}

func (s *netSocket) drops() uint64 { return s.Stats().Dropped }

func (s *netSocket) close() error { return s.udp.Close() }

func (p *netSockets) remove(s *shard) {
	p.mu.Lock()
	s.state = removed
	p.change.Broadcast()
	p.mu.Unlock()
	s.socket.close()
}

// netReader is a poolReader.
type netReader struct {
	*netSockets
	takes [1]take
}

func (p *netSockets) borrow() poolReader {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.readers); n > 0 {
		r := p.readers[n-1]
		p.readers = p.readers[:n-1]
		return r
	}
	return &netReader{netSockets: p}
}

func (p *netSockets) giveBack(r poolReader) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.readers = append(p.readers, r.(*netReader))
}

func (r *netReader) read(takes []take, ms []Message) {
	t := &takes[0]
	sock := t.socket.(*netSocket)
	if t.err = sock.err; t.err != nil {
		return
	}
	// What came in may be nothing that can be read (a bad checksum).
	sock.udp.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	t.n, _, t.err = sock.receive(ms, true)
	sock.udp.SetReadDeadline(time.Time{})
	if errors.Is(t.err, os.ErrDeadlineExceeded) || errors.Is(t.err, net.ErrClosed) {
		t.n, t.err = 0, nil
	}
}

func (r *netReader) next(_ []Message, first, _ bool) (takes []take, waited bool, err error) {
	p := r.netSockets
	p.mu.Lock()
	defer p.mu.Unlock()
	woken := p.woken
	for {
		switch {
		case p.closed:
			return nil, waited, net.ErrClosed
		case !p.deadline.IsZero() && !time.Now().Before(p.deadline):
			return nil, waited, os.ErrDeadlineExceeded
		case first && (p.wakes > 0 || p.woken != woken):
			return nil, waited, errWoken
		}
		for len(p.queue) > 0 {
			s := p.queue[0]
			p.queue = p.queue[1:]
			if s.state != removed {
				s.state = owned
				r.takes[0] = take{shard: s}
				return r.takes[:], waited, nil
			}
		}
		if !first {
			return nil, waited, nil
		}
		waited = true
		p.change.Wait()
	}
}

func (r *netReader) release(takes []take) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := takes[0].shard; s.state == owned {
		s.state = idle
		r.change.Broadcast()
	}
}

func (p *netSockets) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wakes++
	p.woken++
	p.change.Broadcast()
}

func (p *netSockets) calm() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wakes--
}

func (p *netSockets) setReadDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return net.ErrClosed
	}
	if p.alarm != nil {
		p.alarm.Stop()
		p.alarm = nil
	}
	p.deadline = t
	if !t.IsZero() {
		p.alarm = time.AfterFunc(time.Until(t), func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.change.Broadcast()
		})
	}
	p.change.Broadcast()
	return nil
}

func (p *netSockets) readBuffer() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.granted
}

func (p *netSockets) close() error {
	p.mu.Lock()
	p.closed = true
	if p.alarm != nil {
		p.alarm.Stop()
	}
	p.change.Broadcast()
	p.mu.Unlock()
	p.wg.Wait()
	return nil
}

// netAnchor is an [anchor]; its socket is nil if no port is to be kept.
type netAnchor struct{ udp *net.UDPConn }

func newNetAnchor(at endpoint, cfg *Config) (anchor, error) {
	if at.port != 0 {
		return netAnchor{}, nil
	}
	at.reuse = true
	udp, err := open(at, cfg.Control)
	return netAnchor{udp}, err
}

func (a netAnchor) raw() syscall.RawConn {
	if a.udp == nil {
		return nil
	}
	raw, _ := a.udp.SyscallConn()
	return raw
}

func (a netAnchor) port() int { return a.udp.LocalAddr().(*net.UDPAddr).Port }

func (a netAnchor) close() error {
	if a.udp == nil {
		return nil
	}
	return a.udp.Close()
}
