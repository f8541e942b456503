//go:build linux && cgo

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"example.com/mcast"
)

// A channel is where the datagrams come from and go to: a source-specific
// group on an interface of this machine, which they do not leave.
type channel struct {
	mcast.Channel
	index int // of the interface
}

// channel4 and channel6 are on the loopback interface.
func channel4() (channel, error) { return findChannel("127.0.0.1@232.77.1.1%lo") }
func channel6() (channel, error) { return findChannel("::1@[ff3e::8000:4d01%lo]") }

func findChannel(s string) (ch channel, err error) {
	if ch.Channel, err = mcast.ParseChannel(s); err != nil {
		return ch, err
	}
	ifi, err := net.InterfaceByName(ch.Group.Interface)
	if err != nil {
		return ch, err
	}
	ch.index = ifi.Index
	if ch.ipv6() && !ownNamespace {
		return ch, errors.New("without a network namespace of its own there is no route to IPv6 groups on the loopback interface")
	}
	return ch, nil
}

func (ch channel) ipv6() bool { return ch.Group.Addr.Is6() }

func (ch channel) network() string {
	if ch.ipv6() {
		return "udp6"
	}
	return "udp4"
}

// openSender opens a socket that sends from the channel's source.
func (ch channel) openSender() (*net.UDPConn, error) {
	c, err := net.ListenUDP(ch.network(), net.UDPAddrFromAddrPort(netip.AddrPortFrom(ch.Source, 0)))
	if err != nil {
		return nil, err
	}
	if ch.ipv6() {
		err = withFD(c, func(fd int) error {
			return errors.Join(
				unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, ch.index),
				unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 1))
		})
	} else {
		err = withFD(c, func(fd int) error {
			return errors.Join(
				unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(ch.index)}),
				unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 1))
		})
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// withFD calls f with the socket's descriptor, which stays the socket's.
func withFD(c *net.UDPConn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) { err = f(int(fd)) }); e != nil {
		return e
	}
	return err
}

const readBuffer = 4 << 20 // asked for, by every receiver

// openReceiver opens a socket of package net that has joined the channel.
func (ch channel) openReceiver() (*net.UDPConn, error) {
	c, err := net.ListenUDP(ch.network(), nil)
	if err != nil {
		return nil, err
	}
	ifi := &net.Interface{Index: ch.index}
	group, source := &net.UDPAddr{IP: ch.Group.Addr.AsSlice()}, &net.UDPAddr{IP: ch.Source.AsSlice()}
	if ch.ipv6() {
		err = ipv6.NewPacketConn(c).JoinSourceSpecificGroup(ifi, group, source)
	} else {
		err = ipv4.NewPacketConn(c).JoinSourceSpecificGroup(ifi, group, source)
	}
	c.SetReadBuffer(readBuffer)
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// askForInfo asks for the group and the interface of each datagram.
func (ch channel) askForInfo(fd int) error {
	if ch.ipv6() {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
}

// askForHops asks for the hop limit of each datagram.
func (ch channel) askForHops(fd int) error {
	if ch.ipv6() {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVTTL, 1)
}

// A datagram is what a receiver made of one.
type datagram struct {
	source netip.AddrPort
	group  netip.Addr
	index  int
	n      int
}

// A receiver reads a full load of datagrams.
type receiver struct {
	port  int
	drain func() error
	seen  func() datagram // the last one, as far as this receiver tells
	close func()
}

// The names that the targets refer to.
const (
	inC             = "C recvmmsg, 16"
	inCAgain        = "C recvmmsg, 16, again"
	mcastBatch      = "mcast ReadBatch, 16"
	mcastMessage    = "mcast ReadMessage"
	xnetBatch       = "x/net ReadBatch, 16, and Parse"
	xnetFrom        = "x/net ReadFrom, with control message"
	netMsg          = "net ReadMsgUDPAddrPort, parsed by hand"
	netFrom         = "net ReadFromUDPAddrPort (no group)"
	mcastFrom       = "mcast ReadFromUDPAddrPort (no group)"
	mcastBatchShort = "mcast ReadBatch, 8"
	mcastBatchLong  = "mcast ReadBatch, 32"
	mcastBatchBound = "mcast ReadBatch, 16, bound to the group"
	mcastBatchTTL   = "mcast ReadBatch, 16, HopLimit"
	mcastBatchStats = "mcast ReadBatch, 16, GroupStats"
	inCTTL          = "C recvmmsg, 16, with the hop limit"
	inCSingle       = "C recvmmsg, 1"
)

// A receiverType opens a receiver.
type receiverType struct {
	name string
	open func(ch channel) (receiver, error)
	ipv6 bool // measured with IPv6 too
}

var receiverTypes = []receiverType{
	{inC, cBatch(16, false), true},
	{inCAgain, cBatch(16, false), true},
	{inCTTL, cBatch(16, true), true},
	{mcastBatchShort, readBatch(8, false, mcast.Config{}), false},
	{mcastBatch, readBatch(16, false, mcast.Config{}), true},
	{mcastBatchLong, readBatch(32, false, mcast.Config{}), false},
	{mcastBatchBound, readBatch(16, true, mcast.Config{}), true},
	{mcastBatchTTL, readBatch(16, false, mcast.Config{HopLimit: true}), true},
	{mcastBatchStats, readBatch(16, false, mcast.Config{GroupStats: true}), true},
	{xnetBatch, xnetReadBatch, true},
	{inCSingle, cBatch(1, false), true},
	{mcastMessage, readMessage, true},
	{netMsg, netReadMsg, true},
	{xnetFrom, xnetReadFrom, true},
	{mcastFrom, readFrom, true},
	{netFrom, netReadFrom, true},
}

func cBatch(batch int, hops bool) func(channel) (receiver, error) {
	return func(ch channel) (r receiver, err error) {
		c, err := ch.openReceiver()
		if err != nil {
			return r, err
		}
		var in *cReceiver
		if err := withFD(c, func(fd int) error {
			in = newCReceiver(fd, ch.ipv6(), batch)
			if !hops {
				return ch.askForInfo(fd)
			}
			return errors.Join(ch.askForInfo(fd), ch.askForHops(fd))
		}); err != nil {
			return r, err
		}
		return receiver{
			port:  portOf(c),
			drain: in.drain,
			seen:  in.seen,
			close: func() { in.close(); c.Close() },
		}, nil
	}
}

// listen opens a Conn that has joined the channel, and is perhaps bound to its
// group, so that it can hear no other.
func (ch channel) listen(bound bool, cfg mcast.Config) (*mcast.Conn, error) {
	address := ":0"
	if bound {
		address = netip.AddrPortFrom(ch.Group.Addr, 0).String()
	}
	cfg.ReadBuffer = readBuffer
	c, err := mcast.Listen(ch.network(), address, &cfg)
	if err != nil {
		return nil, err
	}
	if err := c.JoinSource(ch.Group, ch.Source); err != nil {
		c.Close()
		return nil, err
	}
	c.SetReadDeadline(deadline())
	return c, nil
}

func readBatch(batch int, bound bool, cfg mcast.Config) func(channel) (receiver, error) {
	return func(ch channel) (r receiver, err error) {
		c, err := ch.listen(bound, cfg)
		if err != nil {
			return r, err
		}
		ms := make([]mcast.Message, batch)
		bufs := buffers(batch)
		for i := range ms {
			ms[i].Buf = bufs[i]
		}
		last := 0
		return receiver{
			port: portOf(c),
			drain: func() error {
				for left := datagrams; left > 0; {
					n, err := c.ReadBatch(ms)
					if err != nil {
						return err
					}
					left -= n
					last = n - 1
				}
				return nil
			},
			seen:  func() datagram { return ofMessage(&ms[last]) },
			close: func() { c.Close() },
		}, nil
	}
}

func ofMessage(m *mcast.Message) datagram {
	return datagram{m.Source, m.Group.Addr, m.Index, m.N}
}

func readMessage(ch channel) (r receiver, err error) {
	c, err := ch.listen(false, mcast.Config{})
	if err != nil {
		return r, err
	}
	m := mcast.Message{Buf: buffers(1)[0]}
	return receiver{
		port: portOf(c),
		drain: func() error {
			for range datagrams {
				if err := c.ReadMessage(&m); err != nil {
					return err
				}
			}
			return nil
		},
		seen:  func() datagram { return ofMessage(&m) },
		close: func() { c.Close() },
	}, nil
}

func readFrom(ch channel) (r receiver, err error) {
	c, err := ch.listen(false, mcast.Config{})
	if err != nil {
		return r, err
	}
	b := buffers(1)[0]
	var d datagram
	return receiver{
		port: portOf(c),
		drain: func() (err error) {
			for range datagrams {
				if d.n, d.source, err = c.ReadFromUDPAddrPort(b); err != nil {
					return err
				}
			}
			return nil
		},
		seen:  func() datagram { return d },
		close: func() { c.Close() },
	}, nil
}

func netReadFrom(ch channel) (r receiver, err error) {
	c, err := ch.openReceiver()
	if err != nil {
		return r, err
	}
	c.SetReadDeadline(deadline())
	b := buffers(1)[0]
	var d datagram
	return receiver{
		port: portOf(c),
		drain: func() (err error) {
			for range datagrams {
				if d.n, d.source, err = c.ReadFromUDPAddrPort(b); err != nil {
					return err
				}
			}
			return nil
		},
		seen:  func() datagram { return d },
		close: func() { c.Close() },
	}, nil
}

// netReadMsg reads with the standard library alone. The control message is
// taken apart by hand, the fastest way there is, for it is the only one.
func netReadMsg(ch channel) (r receiver, err error) {
	c, err := ch.openReceiver()
	if err != nil {
		return r, err
	}
	c.SetReadDeadline(deadline())
	if err := withFD(c, ch.askForInfo); err != nil {
		return r, err
	}
	b, oob := buffers(1)[0], make([]byte, 64)
	header := unix.CmsgLen(0)
	var d datagram
	return receiver{
		port: portOf(c),
		drain: func() error {
			for range datagrams {
				n, oobn, _, from, err := c.ReadMsgUDPAddrPort(b, oob)
				if err != nil {
					return err
				}
				d.n, d.source = n, from
				switch info := oob[header:oobn]; {
				case ch.ipv6() && len(info) >= unix.SizeofInet6Pktinfo:
					d.group = netip.AddrFrom16([16]byte(info))
					d.index = int(binary.NativeEndian.Uint32(info[16:]))
				case !ch.ipv6() && len(info) >= unix.SizeofInet4Pktinfo:
					d.group = netip.AddrFrom4([4]byte(info[8:]))
					d.index = int(binary.NativeEndian.Uint32(info))
				}
			}
			return nil
		},
		seen:  func() datagram { return d },
		close: func() { c.Close() },
	}, nil
}

func xnetReadBatch(ch channel) (r receiver, err error) {
	c, err := ch.openReceiver()
	if err != nil {
		return r, err
	}
	c.SetReadDeadline(deadline())
	const batch = 16
	ms := make([]ipv4.Message, batch) // the same type as ipv6.Message
	bufs := buffers(batch)
	var read func(ms []ipv4.Message, flags int) (int, error)
	var parse func(oob []byte) (net.IP, int, error)
	var oob func() []byte
	if ch.ipv6() {
		const flags = ipv6.FlagDst | ipv6.FlagInterface
		p := ipv6.NewPacketConn(c)
		if err := p.SetControlMessage(flags, true); err != nil {
			return r, err
		}
		var cm ipv6.ControlMessage
		read = p.ReadBatch
		oob = func() []byte { return ipv6.NewControlMessage(flags) }
		parse = func(b []byte) (net.IP, int, error) {
			err := cm.Parse(b)
			return cm.Dst, cm.IfIndex, err
		}
	} else {
		const flags = ipv4.FlagDst | ipv4.FlagInterface
		p := ipv4.NewPacketConn(c)
		if err := p.SetControlMessage(flags, true); err != nil {
			return r, err
		}
		var cm ipv4.ControlMessage
		read = p.ReadBatch
		oob = func() []byte { return ipv4.NewControlMessage(flags) }
		parse = func(b []byte) (net.IP, int, error) {
			err := cm.Parse(b)
			return cm.Dst, cm.IfIndex, err
		}
	}
	for i := range ms {
		ms[i].Buffers = [][]byte{bufs[i]}
		ms[i].OOB = oob()
	}
	var d struct {
		from  net.Addr
		group net.IP
		index int
		n     int
	}
	return receiver{
		port: portOf(c),
		drain: func() error {
			for left := datagrams; left > 0; {
				n, err := read(ms, 0)
				if err != nil {
					return err
				}
				for i := range ms[:n] {
					m := &ms[i]
					d.from, d.n = m.Addr, m.N
					if d.group, d.index, err = parse(m.OOB[:m.NN]); err != nil {
						return err
					}
				}
				left -= n
			}
			return nil
		},
		seen:  func() datagram { return ofNet(d.from, d.group, d.index, d.n) },
		close: func() { c.Close() },
	}, nil
}

func xnetReadFrom(ch channel) (r receiver, err error) {
	c, err := ch.openReceiver()
	if err != nil {
		return r, err
	}
	c.SetReadDeadline(deadline())
	b := buffers(1)[0]
	var (
		n     int
		from  net.Addr
		group net.IP
		index int
		drain func() error
	)
	if ch.ipv6() {
		p := ipv6.NewPacketConn(c)
		if err := p.SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true); err != nil {
			return r, err
		}
		drain = func() (err error) {
			var cm *ipv6.ControlMessage
			for range datagrams {
				if n, cm, from, err = p.ReadFrom(b); err != nil {
					return err
				}
				group, index = cm.Dst, cm.IfIndex
			}
			return nil
		}
	} else {
		p := ipv4.NewPacketConn(c)
		if err := p.SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true); err != nil {
			return r, err
		}
		drain = func() (err error) {
			var cm *ipv4.ControlMessage
			for range datagrams {
				if n, cm, from, err = p.ReadFrom(b); err != nil {
					return err
				}
				group, index = cm.Dst, cm.IfIndex
			}
			return nil
		}
	}
	return receiver{
		port:  portOf(c),
		drain: drain,
		seen:  func() datagram { return ofNet(from, group, index, n) },
		close: func() { c.Close() },
	}, nil
}

func ofNet(from net.Addr, group net.IP, index, n int) (d datagram) {
	d.source = from.(*net.UDPAddr).AddrPort()
	d.source = netip.AddrPortFrom(d.source.Addr().Unmap(), d.source.Port())
	d.group, _ = netip.AddrFromSlice(group)
	d.group, d.index, d.n = d.group.Unmap(), index, n
	return d
}

// buffers gives n buffers, one after the other from the start of a page, as
// the C receiver has them.
func buffers(n int) [][]byte {
	b, err := unix.Mmap(-1, 0, n*room, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_POPULATE)
	if err != nil {
		b = make([]byte, n*room)
	}
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = b[i*room:][:room:room]
	}
	return bufs
}

// deadline is far enough not to matter, and near enough for a lost datagram
// to be an error and not the end of all output.
func deadline() time.Time { return time.Now().Add(2 * time.Minute) }

func portOf(c interface{ LocalAddr() net.Addr }) int { return c.LocalAddr().(*net.UDPAddr).Port }

// A load is one combination of family and size.
type load struct {
	title string
	channel
	size int
}

// subjects opens the receivers and gives them as subjects; done closes them.
func (l load) subjects(types []receiverType) (ss []subject, done func(), err error) {
	var closers []func()
	closeAll := func() {
		for _, f := range closers {
			f()
		}
	}
	defer func() {
		if err != nil {
			closeAll()
		}
	}()
	out, err := l.openSender()
	if err != nil {
		return nil, nil, err
	}
	closers = append(closers, func() { out.Close() })
	payload := make([]byte, l.size)
	var fd int
	if err := withFD(out, func(f int) error { fd = f; return nil }); err != nil {
		return nil, nil, err
	}
	for _, t := range types {
		if l.ipv6() && !t.ipv6 {
			continue
		}
		r, err := t.open(l.channel)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", t.name, err)
		}
		closers = append(closers, r.close)
		s := newSender(fd, netip.AddrPortFrom(l.Group.Addr, uint16(r.port)), payload)
		// All receivers must see the same.
		if err := errors.Join(s.send(), r.drain()); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", t.name, err)
		}
		want := datagram{netip.AddrPortFrom(l.Source, uint16(portOf(out))), l.Group.Addr, l.index, l.size}
		got := r.seen()
		if t.name == mcastFrom || t.name == netFrom {
			got.group, got.index = want.group, want.index
			got.source = netip.AddrPortFrom(got.source.Addr().Unmap(), got.source.Port())
		}
		if t.name == netMsg {
			got.source = netip.AddrPortFrom(got.source.Addr().Unmap(), got.source.Port())
		}
		if got != want {
			return nil, nil, fmt.Errorf("%s: received %v, want %v", t.name, got, want)
		}
		ss = append(ss, subject{name: t.name, units: datagrams, prepare: s.send, run: r.drain})
	}
	return ss, closeAll, nil
}

// receive measures all receivers.
func receive(o *options, out *report) error {
	wanted := false
	var types []receiverType
	for _, t := range receiverTypes {
		w := o.wants("receive", t.name)
		if wanted = wanted || w; w || t.name == inC || t.name == inCAgain {
			types = append(types, t)
		}
	}
	if !wanted {
		return nil
	}
	v4, err := channel4()
	if err != nil {
		return err
	}
	loads := []load{{"IPv4, 64 bytes", v4, 64}, {"IPv4, 1316 bytes", v4, 1316}}
	if v6, err := channel6(); err == nil {
		loads = append(loads, load{"IPv6, 64 bytes", v6, 64})
	} else {
		out.note("IPv6 was not measured: %v.", err)
	}
	all := make([]times, len(loads))
	allocs := make(map[string][2]float64)
	for i, l := range loads {
		ss, done, err := l.subjects(types)
		if err != nil && l.ipv6() {
			out.note("IPv6 was not measured: %v.", err)
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", l.title, err)
		}
		all[i], err = measure(o.rounds, ss)
		for j := range ss {
			if i > 0 || err != nil {
				break
			}
			var a [2]float64
			if a[0], a[1], err = ss[j].allocations(); err == nil {
				allocs[ss[j].name] = a
			}
		}
		done()
		if err != nil {
			return fmt.Errorf("%s: %w", l.title, err)
		}
	}

	t := out.table("Receive: CPU time per datagram in ns, and as a multiple of C's", "receiver")
	for i, l := range loads {
		if all[i] != nil {
			t.columns(l.title, "of C")
		}
	}
	t.columns("allocs", "bytes")
	for _, r := range types {
		row := []string{r.name}
		for _, m := range all {
			switch {
			case m.has(r.name):
				row = append(row, fmt.Sprintf("%.0f", m.ns(r.name)), fmt.Sprintf("%.2f", m.ratio(r.name, inC)))
			case m != nil:
				row = append(row, "", "")
			}
		}
		a := allocs[r.name]
		t.row(append(row, fmt.Sprintf("%.2g", a[0]), fmt.Sprintf("%.0f", a[1]))...)
	}

	for i, l := range loads {
		m := all[i]
		if m == nil {
			continue
		}
		out.null(l.title+": C beside C", m.ratio(inCAgain, inC))
		if m.has(mcastBatch) {
			out.atMost(l.title+": "+mcastBatch+", of C", m.ratio(mcastBatch, inC), 1.08)
			out.headline("`ReadBatch` of 16, "+l.title+", beside C's recvmmsg", fmt.Sprintf("%.2f", m.ratio(mcastBatch, inC)))
		}
		if m.has(mcastBatchBound) {
			out.atMost(l.title+": "+mcastBatchBound+", of C", m.ratio(mcastBatchBound, inC), 1.05)
		}
		if m.has(mcastBatchStats, mcastBatch) {
			out.atMost(l.title+": "+mcastBatchStats+", of without", m.ratio(mcastBatchStats, mcastBatch), 1.05)
		}
		if m.has(mcastBatchTTL, mcastBatch, inCTTL) {
			out.atMostBeside(l.title+": "+mcastBatchTTL+", of without", m.ratio(mcastBatchTTL, mcastBatch), 1.05, m.ratio(inCTTL, inC))
		}
		if m.has(mcastBatch, xnetBatch) && i == 0 {
			out.headline("x/net's `ReadBatch` and `ControlMessage.Parse`, beside C's recvmmsg", fmt.Sprintf("%.2f", m.ratio(xnetBatch, inC)))
		}
		// What C itself would reach says whether a machine can meet the target.
		for _, than := range []struct {
			name  string
			least float64
		}{{xnetBatch, 1.25}, {xnetFrom, 3.5}} {
			if m.has(mcastBatch, than.name) {
				what := fmt.Sprintf("%s: times as fast as %s", l.title, than.name)
				out.atLeastBeside(what, m.ratio(than.name, mcastBatch), than.least, m.ratio(than.name, inC))
			}
		}
		if m.has(mcastMessage, netMsg) {
			out.atMost(l.title+": "+mcastMessage+", of "+netMsg, m.ratio(mcastMessage, netMsg), 1.00)
		}
	}
	for _, name := range []string{mcastBatchShort, mcastBatch, mcastBatchLong, mcastMessage, mcastFrom} {
		if a, ok := allocs[name]; ok {
			out.atMost("Allocations per datagram: "+name, a[0], 0)
		}
	}
	return nil
}
