//go:build unix

package mcast

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"
)

// An edgePoller waits for a socket as kqueue does for Go: it reports a change,
// once, and not what is there already (golang/go#70373).
type edgePoller struct {
	syscall.RawConn
	edges  chan bool
	broken chan error // what goes wrong before all else
}

func (p *edgePoller) Read(ready func(fd uintptr) bool) error {
	select {
	case err := <-p.broken:
		return err
	default:
	}
	for {
		done := false
		if err := p.RawConn.Control(func(fd uintptr) { done = ready(fd) }); err != nil {
			return err
		}
		if done {
			return nil
		}
		if _, ok := <-p.edges; !ok {
			return net.ErrClosed
		}
	}
}

// edgePool is a Pool with one socket, which has joined group(1, 1), behind an
// edgePoller. It is not waited for yet.
func edgePool(t *testing.T) (p *Pool, poller *edgePoller, watch func(), send func(payload string)) {
	at := testSite(t)
	c, err := Listen(at.network(), ":0", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	g := at.group(1, 1)
	if err := c.JoinSource(g, at.sources[0]); err != nil {
		t.Fatal(err)
	}
	raw, err := c.udp.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	sockets, err := newNetSockets(nil)
	if err != nil {
		t.Fatal(err)
	}
	own := sockets.(*netSockets)
	poller = &edgePoller{raw, make(chan bool, 100), make(chan error, 10)}
	sock := &netSocket{Conn: c}
	s := &shard{ledger: &c.ledger, socket: sock}
	p = &Pool{sockets: own, cfg: (*Config)(nil).withDefaults()}
	watch = func() { own.wg.Go(func() { own.watch(s, sock, poller) }) }
	t.Cleanup(func() {
		close(poller.edges)
		own.remove(s)
		own.close()
	})
	from := at.sender(t, at.sources[0])
	send = func(payload string) { mustSend(t, from, g, c.origin.port, payload) }
	return p, poller, watch, send
}

func wantRead(t *testing.T, p *Pool, want string) {
	t.Helper()
	p.SetReadDeadline(inTime())
	m := Message{Buf: make([]byte, 100)}
	if err := p.ReadMessage(&m); err != nil || string(m.Buf[:m.N]) != want {
		t.Fatalf("read %q, %v, want %q", m.Buf[:m.N], err, want)
	}
}

// What is queued already, before the first wait and whenever a reader has left
// something, is found without news of it.
func TestNetSocketsQueued(t *testing.T) {
	p, poller, watch, send := edgePool(t)
	for i := range 5 {
		send(fmt.Sprint(i))
	}
	watch()
	for i := range 5 {
		wantRead(t, p, fmt.Sprint(i))
	}
	for i := range 5 {
		send(fmt.Sprint("new ", i))
		poller.edges <- true
		if i%2 == 0 {
			poller.edges <- true // news of nothing
		}
		wantRead(t, p, fmt.Sprint("new ", i))
	}
}

// An error that is not the end of a socket is told to a reader, and the socket
// is read all the same.
func TestNetSocketsErrors(t *testing.T) {
	p, poller, watch, send := edgePool(t)
	broken := []error{errors.New("broken"), syscall.ENOBUFS, errors.New("broken again")}
	for _, err := range broken {
		poller.broken <- err
	}
	send("queued")
	watch()
	m := Message{Buf: make([]byte, 100)}
	for _, want := range broken {
		p.SetReadDeadline(inTime())
		err := p.ReadMessage(&m)
		var e *net.OpError
		if !errors.Is(err, want) || !errors.As(err, &e) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	wantRead(t, p, "queued")
	send("new")
	poller.edges <- true
	wantRead(t, p, "new")
}

// A socket that was removed is forgotten, in whatever state it is.
func TestNetSocketsRemoved(t *testing.T) {
	p, poller, watch, send := edgePool(t)
	own := p.sockets.(*netSockets)
	send("queued")
	watch()
	var s *shard
	for end := inTime(); s == nil; time.Sleep(time.Millisecond) {
		own.mu.Lock()
		if len(own.queue) > 0 {
			s = own.queue[0]
		}
		own.mu.Unlock()
		if time.Now().After(end) {
			t.Fatal("nothing is queued")
		}
	}
	own.remove(s)
	p.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	m := Message{Buf: make([]byte, 100)}
	if err := p.ReadMessage(&m); err == nil {
		t.Errorf("read %q of a socket that was removed", m.Buf[:m.N])
	}
	poller.edges <- true
	ended := make(chan bool)
	go func() {
		own.wg.Wait()
		close(ended)
	}()
	soon(t, "the end of waiting for it", ended)
}
