//go:build darwin || freebsd || windows

package mcast

import (
	"net"
	"net/netip"
	"runtime"
	"syscall"
)

// A reader is what net.UDPConn.ReadMsgUDPAddrPort needs.
type reader struct {
	control [256]byte
	large   []byte
}

func (r *reader) open(*net.UDPConn, syscall.RawConn) error { return nil }

// msgTrunc is MSG_TRUNC in <sys/socket.h> of macOS and FreeBSD: the system cut
// the datagram. Windows has it elsewhere, and there it does not come to that.
const msgTrunc = 0x10

// receive reads one datagram, for which it always waits.
//
// On Windows a datagram longer than the buffer is WSAEMSGSIZE, and package net
// then drops the sender's address, so there it is read into a large enough one.
func (c *Conn) receive(ms []Message, wait bool) (n int, waited bool, err error) {
	if !wait {
		return 0, false, nil
	}
	m, r := &ms[0], &c.reader
	b := m.Buf
	if runtime.GOOS == "windows" && len(b) < largest {
		if r.large == nil {
			r.large = make([]byte, largest)
		}
		b = r.large
	}
	if c.cfg.BusyPoll != 0 {
		c.spin()
	}
	n, oobn, flags, from, err := c.udp.ReadMsgUDPAddrPort(b, r.control[:])
	if err != nil {
		return 0, false, err
	}
	m.N = min(n, len(m.Buf))
	if len(b) > len(m.Buf) {
		copy(m.Buf, b[:n])
	}
	m.Truncated = n > len(m.Buf) || flags&msgTrunc != 0
	m.Source = netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port())
	c.origin.stamp(m, r.control[:oobn])
	return 1, false, nil
}

// spin looks for a datagram again and again, as long as Config.BusyPoll says, or
// until reading would end anyway.
func (c *Conn) spin() {
	raw, err := c.udp.SyscallConn()
	if err != nil {
		return
	}
	woken := c.deadline.woken.Load()
	for spin := (spinner{limit: c.cfg.BusyPoll}); spin.on(); {
		ready := false
		err := raw.Control(func(fd uintptr) { ready = hasDatagram(fd, false) })
		if ready || err != nil || c.deadline.wakes.Load() > 0 || c.deadline.woken.Load() != woken || c.deadline.expired() {
			return
		}
	}
}

func (c *Conn) writeBatch(ms []Message) (int, error) { return c.writeEach(ms) }
