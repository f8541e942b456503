// Package looptest is what the tests of the example programs have in common:
// multicast on the loopback interface.
package looptest

import (
	"bytes"
	"net"
	"net/netip"
	"os/exec"
	"sync"
	"testing"
	"time"

	"example.com/mcast"
	"example.com/mcast/examples/internal/cli"
)

// Patience is how long tests wait for what must come.
const Patience = time.Minute

// Source is the address that every machine has to send from.
var Source = netip.MustParseAddr("127.0.0.1")

// Interface returns the loopback interface.
func Interface(t testing.TB) net.Interface {
	t.Helper()
	ifis, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, ifi := range ifis {
		if ifi.Flags&net.FlagLoopback != 0 && ifi.Flags&net.FlagUp != 0 {
			return ifi
		}
	}
	t.Fatal("there is no loopback interface")
	panic("unreachable")
}

// Peer returns where another program is, and skips the test where it is not
// installed.
func Peer(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	return path
}

// ports are those that Port has returned.
var ports sync.Map

// Port returns a UDP port that nobody has, another one each time.
func Port(t testing.TB) uint16 {
	t.Helper()
	for {
		c, err := net.ListenPacket("udp4", ":0")
		if err != nil {
			t.Fatal(err)
		}
		port := uint16(c.LocalAddr().(*net.UDPAddr).Port)
		c.Close()
		if _, again := ports.LoadOrStore(port, true); !again {
			return port
		}
	}
}

// A Buffer is written by a program and searched by a test meanwhile.
type Buffer struct {
	mu      sync.Mutex
	written sync.Cond
	b       bytes.Buffer
	over    bool
}

// NewBuffer returns an empty Buffer.
func NewBuffer() *Buffer {
	b := &Buffer{}
	b.written.L = &b.mu
	return b
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.written.Broadcast()
	return b.b.Write(p)
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Wait waits until s has been written.
func (b *Buffer) Wait(t testing.TB, s string) {
	t.Helper()
	timer := time.AfterFunc(Patience, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.over = true
		b.written.Broadcast()
	})
	defer timer.Stop()
	b.mu.Lock()
	defer b.mu.Unlock()
	for !bytes.Contains(b.b.Bytes(), []byte(s)) {
		if b.over {
			t.Fatalf("%q was not written, but\n%s", s, b.b.String())
		}
		b.written.Wait()
	}
}

// A Sender sends to groups on the loopback interface, from [Source].
type Sender struct {
	t testing.TB
	c *mcast.Conn
}

// NewSender opens a Sender for the length of the test.
func NewSender(t testing.TB) Sender {
	t.Helper()
	c, err := mcast.Listen("udp4", net.JoinHostPort(Source.String(), "0"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetMulticastInterface(cli.Name(Interface(t))); err != nil {
		t.Fatal(err)
	}
	return Sender{t, c}
}

// Send sends a datagram.
func (s Sender) Send(group string, port uint16, b []byte) {
	s.t.Helper()
	if _, err := s.c.WriteToUDPAddrPort(b, netip.AddrPortFrom(netip.MustParseAddr(group), port)); err != nil {
		s.t.Fatal(err)
	}
}
