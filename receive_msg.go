//go:build darwin || freebsd || windows

package mcast

import "runtime"

// An inbox is what net.UDPConn.ReadMsgUDPAddrPort needs.
type inbox struct {
	format  controlFormat
	control [256]byte
	large   []byte
}

// prepare asks for the group and interface of each datagram.
func (c *Conn) prepare() error {
	c.in.format = c.kernel.controls()
	return c.kernel.askForInfo(&c.in.format, c.ipv6)
}

// msgTrunc is MSG_TRUNC in <sys/socket.h> of macOS and FreeBSD: the system cut
// the datagram. Windows has it elsewhere, and there it does not come to that.
const msgTrunc = 0x10

// largest is more than any datagram has.
const largest = 1 << 16

// receive reads one datagram.
//
// On Windows a datagram longer than the buffer is WSAEMSGSIZE, and package net
// then drops the sender's address, so there it is read into a large enough one.
func (c *Conn) receive(ms []Message) (int, error) {
	m, in := &ms[0], &c.in
	b := m.Buf
	if runtime.GOOS == "windows" && len(b) < largest {
		if in.large == nil {
			in.large = make([]byte, largest)
		}
		b = in.large
	}
	n, oobn, flags, from, err := c.udp.ReadMsgUDPAddrPort(b, in.control[:])
	if err != nil {
		return 0, err
	}
	m.N = min(n, len(m.Buf))
	if len(b) > len(m.Buf) {
		copy(m.Buf, b[:n])
	}
	m.Truncated = n > len(m.Buf) || flags&msgTrunc != 0
	m.Source = from
	m.Group = in.format.parse(in.control[:oobn], c.kernel.order, c.ipv6).group
	return 1, nil
}
