//go:build linux && cgo

package main

import (
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/net/ipv4"

	"example.com/mcast"
)

// send measures WriteBatch beside that of golang.org/x/net. Nobody has joined
// the groups: the kernel drops the datagrams when they have taken the whole way
// out.
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
	kinds := []struct {
		name string
		to   func(i int) netip.Addr
	}{
		{"to one group", func(int) netip.Addr { return groupAt(0) }},
		{"to two groups in turn", func(i int) netip.Addr { return groupAt(i % 2) }},
	}
	var ss []subject
	payload := make([]byte, size)
	for _, k := range kinds {
		ms := make([]mcast.Message, datagrams)
		xs := make([]ipv4.Message, datagrams)
		for i := range ms {
			to := netip.AddrPortFrom(k.to(i), uint16(port))
			ms[i] = mcast.Message{Buf: payload, N: size, Group: mcast.Group{Addr: to.Addr()}, Port: port}
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
			subject{name: ours + ", " + k.name, units: datagrams, run: func() error {
				n, err := c.WriteBatch(ms)
				if err == nil && n != len(ms) {
					err = fmt.Errorf("%d of %d were sent", n, len(ms))
				}
				return err
			}},
			subject{name: ofXnet + ", " + k.name, units: datagrams, run: byXnet},
			subject{name: again + ", " + k.name, units: datagrams, run: byXnet})
	}
	m, err := measure(o.rounds, ss)
	if err != nil {
		return err
	}
	t := out.table(fmt.Sprintf("Sending: CPU time per datagram of %s bytes in ns, as far as a loopback interface where nobody has joined", thousands(size)),
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
			most := 1.0
			if i == 0 {
				most = 0.5 // the kernel cuts it (UDP_SEGMENT)
			}
			out.atMost(ss[i].name+": of x/net", r, most)
			out.atMost("Allocations per datagram: "+ss[i].name, a, 0)
			out.headline("`WriteBatch` of 64, "+k.name+", beside x/net's", fmt.Sprintf("%.2f", r))
		case 2:
			out.null("x/net WriteBatch beside itself, "+k.name, r)
		}
	}
	return nil
}
