//go:build linux && cgo

package main

import (
	"fmt"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"example.com/mcast"
)

// send measures WriteBatch beside that of golang.org/x/net. Where nobody has
// joined the group the kernel drops the datagrams when they have taken the whole
// way out; else it also puts them into the receiver's buffer.
func send(o *options, out *report) error {
	if !o.wants("send", "WriteBatch") {
		return nil
	}
	ch, err := channel4()
	if err != nil {
		return err
	}
	const size = 1316
	xnet, err := ch.openSender()
	if err != nil {
		return err
	}
	defer xnet.Close()
	c, err := mcast.Listen(ch.network(), netip.AddrPortFrom(ch.Source, 0).String(), nil)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetMulticastInterface(ch.Group.Interface); err != nil {
		return err
	}
	port := portOf(c)
	p4 := ipv4.NewPacketConn(xnet)
	const ours, ofXnet, again = "mcast WriteBatch, 64", "x/net WriteBatch, 64", "x/net WriteBatch, 64, again"
	receiver, err := ch.listen(true, mcast.Config{})
	if err != nil {
		return err
	}
	defer receiver.Close()
	kinds := []struct {
		name string
		to   func(i int) netip.AddrPort
		most float64 // what the ratio may be
	}{
		{"to one group", func(int) netip.AddrPort { return netip.AddrPortFrom(groupAt(0), uint16(port)) }, 0.5}, // the kernel cuts it (UDP_SEGMENT)
		{"to one group that is received", func(int) netip.AddrPort { return netip.AddrPortFrom(ch.Group.Addr, uint16(portOf(receiver))) }, 0.5},
		{"to two groups in turn", func(i int) netip.AddrPort { return netip.AddrPortFrom(groupAt(i%2), uint16(port)) }, 1},
	}
	raw, err := receiver.SyscallConn()
	if err != nil {
		return err
	}
	b := make([]byte, room)
	readAll := func(fd uintptr) {
		for e := unix.Errno(0); e == 0; {
			_, _, e = unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
		}
	}
	drain := func() error { return raw.Control(readAll) } // allocates nothing
	var ss []subject
	payload := make([]byte, size)
	for _, k := range kinds {
		ms := make([]mcast.Message, datagrams)
		xs := make([]ipv4.Message, datagrams)
		for i := range ms {
			to := k.to(i)
			ms[i] = mcast.Message{Buf: payload, N: size, Group: mcast.Group{Addr: to.Addr()}, Port: int(to.Port())}
			xs[i] = ipv4.Message{Buffers: [][]byte{payload}, Addr: net.UDPAddrFromAddrPort(to)}
		}
		byXnet := func() error {
			for left := xs; len(left) > 0; {
				n, err := p4.WriteBatch(left, 0)
				if err != nil {
					return err
				}
				left = left[n:]
			}
			return nil
		}
		ss = append(ss,
			subject{name: ours + ", " + k.name, units: datagrams, prepare: drain, run: func() error {
				n, err := c.WriteBatch(ms)
				if err == nil && n != len(ms) {
					err = fmt.Errorf("%d of %d were sent", n, len(ms))
				}
				return err
			}},
			subject{name: ofXnet + ", " + k.name, units: datagrams, prepare: drain, run: byXnet},
			subject{name: again + ", " + k.name, units: datagrams, prepare: drain, run: byXnet})
	}
	m, err := measure(o.rounds, ss)
	if err != nil {
		return err
	}
	t := out.table(fmt.Sprintf("Sending: CPU time per datagram of %s bytes in ns, by a loopback interface", thousands(size)),
		"sender", "ns", "of x/net", "allocs")
	for i := range ss {
		k := kinds[i/3]
		a, _, err := ss[i].allocations()
		if err != nil {
			return err
		}
		r := m.ratio(ss[i].name, ofXnet+", "+k.name)
		t.row(ss[i].name, fmt.Sprintf("%.0f", m.ns(ss[i].name)), fmt.Sprintf("%.2f", r), fmt.Sprintf("%.2g", a))
		switch i % 3 {
		case 0:
			out.atMost(ss[i].name+": of x/net", r, k.most)
			out.atMost("Allocations per datagram: "+ss[i].name, a, 0)
			out.headline("`WriteBatch` of 64, "+k.name+", beside x/net's", fmt.Sprintf("%.2f", r))
		case 2:
			out.null("x/net WriteBatch beside itself, "+k.name, r)
		}
	}
	return nil
}
