//go:build !linux

package mcast

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// sockets waits for a Pool's sockets with a goroutine for each: they are few,
// since other systems let one have a thousand memberships and more.
type sockets struct {
	mu       sync.Mutex
	change   *sync.Cond // of all below, and of shards' states
	queue    []*shard
	closed   bool
	granted  int
	deadline time.Time
	alarm    *time.Timer
}

type scratch struct{}

// A shardState says who has a shard.
type shardState uint8

const (
	idle    shardState = iota // its goroutine
	queued                    // the queue
	owned                     // a reader
	removed                   // nobody
)

const (
	poolBinds = false
	perSocket = 1000
)

func (p *sockets) maxDescriptors() int { return 0 }

func (p *sockets) open() error {
	p.change = sync.NewCond(&p.mu)
	return nil
}

// connSocket is the socket of a Conn, of which the Pool uses the parts.
type connSocket struct {
	*Conn
	raw syscall.RawConn
}

func (p *sockets) add(s *shard, at endpoint, cfg *Config) error {
	udp, err := open(at)
	if err != nil {
		return err
	}
	own := *cfg
	own.Unicast, own.GRO, own.NoWatch = false, false, true
	own.AnySource = true // Members has checked that
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
	c.part = true
	s.requests, s.socket = &c.requests, connSocket{c, raw}
	p.mu.Lock()
	p.granted = c.granted
	p.mu.Unlock()
	go p.watch(s, raw)
	return nil
}

// watch puts a shard into the queue whenever it has something to read.
func (p *sockets) watch(s *shard, raw syscall.RawConn) {
	for {
		ready := false
		err := raw.Read(func(uintptr) bool {
			was := ready
			ready = true
			return was // true when the system says that there is something
		})
		p.mu.Lock()
		if err != nil || s.state == removed {
			p.mu.Unlock()
			return
		}
		s.state = queued
		p.queue = append(p.queue, s)
		p.change.Broadcast()
		for s.state != idle && s.state != removed {
			p.change.Wait()
		}
		p.mu.Unlock()
	}
}

func (s connSocket) read(_ *scratch, ms []Message) (n int, more bool, err error) {
	// What came in may be nothing that can be read (a bad checksum).
	s.udp.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	n, _, err = s.receive(ms, true)
	s.udp.SetReadDeadline(time.Time{})
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
		return 0, false, nil
	}
	return n, false, err
}

func (s connSocket) drops() uint64 { return s.Stats().Dropped }

func (s connSocket) close() error { return s.Conn.Close() }

func (p *sockets) remove(s *shard) {
	p.mu.Lock()
	s.state = removed
	p.change.Broadcast()
	p.mu.Unlock()
	s.socket.close()
}

// next returns a shard that has something to read, and gives it to the caller.
// Without one it waits, or returns nil.
func (p *sockets) next(_ *scratch, wait bool) (s *shard, waited bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if p.closed {
			return nil, waited, net.ErrClosed
		}
		if !p.deadline.IsZero() && !time.Now().Before(p.deadline) {
			return nil, waited, &net.OpError{Op: "read", Net: "udp", Err: os.ErrDeadlineExceeded}
		}
		for len(p.queue) > 0 {
			s, p.queue = p.queue[0], p.queue[1:]
			if s.state != removed {
				s.state = owned
				return s, waited, nil
			}
		}
		if !wait {
			return nil, waited, nil
		}
		waited = true
		p.change.Wait()
	}
}

// release takes a shard back from its reader.
func (p *sockets) release(s *shard, _ bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.state == owned {
		s.state = idle
		p.change.Broadcast()
	}
}

func (p *sockets) borrow() *scratch { return nil }

func (p *sockets) giveBack(*scratch) {}

func (p *sockets) setReadDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
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

func (p *sockets) readBuffer() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.granted
}

func (p *sockets) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.alarm != nil {
		p.alarm.Stop()
	}
	p.change.Broadcast()
	return nil
}
