package mcast_test

import (
	"context"
	"expvar"
	"fmt"
	"log"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"example.com/mcast"
)

// Listen on a channel, here on loopback.
func ExampleListenChannel() {
	ch, err := mcast.ParseChannel("127.0.0.1@232.44.1.1%lo:5144")
	if err != nil {
		log.Fatal(err)
	}
	c, err := mcast.ListenChannel(ch, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	say(netip.MustParseAddrPort("232.44.1.1:5144"), "hello") // somebody sends
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	m := mcast.Message{Buf: make([]byte, 1500)}
	if err := c.ReadMessage(&m); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s on %v\n", m.Buf[:m.N], m.Channel())
	fmt.Println(m.Channel() == ch)
	// Output:
	// hello on 127.0.0.1@232.44.1.1%lo:5144
	// true
}

// A context ends the reader at once, for a graceful shutdown;
// signal.NotifyContext makes one that Ctrl-C ends.
func ExampleConn_Messages() {
	c := hello("239.44.1.2", "one", "two")
	defer c.Close()

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	for m, err := range c.Messages(ctx, 1500) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s\n", m.Buf[:m.N])
		if string(m.Buf[:m.N]) == "two" {
			stop() // or Ctrl-C
		}
	}
	fmt.Println(c.Stats().Received, "received")
	// Output:
	// one
	// two
	// 2 received
}

// Many datagrams with one call to the system, and no allocation.
func ExampleConn_ReadBatch() {
	c := hello("239.44.1.3", "one", "two", "three")
	defer c.Close()

	ms := make([]mcast.Message, 16)
	for i := range ms {
		ms[i].Buf = make([]byte, 1500)
	}
	for read := 0; read < 3; {
		n, err := c.ReadBatch(ms)
		if err != nil {
			log.Fatal(err)
		}
		for _, m := range ms[:n] {
			fmt.Printf("%s from %v\n", m.Buf[:m.N], m.Source.Addr())
		}
		read += n
	}
	// Output:
	// one from 127.0.0.1
	// two from 127.0.0.1
	// three from 127.0.0.1
}

// A whole filter at once, in place of one request for each source.
func ExampleConn_SetFilter() {
	c, err := mcast.Listen("udp4", ":0", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	group := mcast.Group{Addr: netip.MustParseAddr("239.44.1.4"), Interface: "lo"}
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	show := func(err error) { fmt.Println(c.Memberships(), err) }

	show(c.SetFilter(group, mcast.Include, a, b)) // these
	show(c.SetFilter(group, mcast.Exclude, b))    // all but this
	show(c.SetFilter(group, mcast.Exclude))       // all
	show(c.SetFilter(group, mcast.Include))       // none: leaves the group
	// Output:
	// [239.44.1.4%lo INCLUDE{10.0.0.1, 10.0.0.2}] <nil>
	// [239.44.1.4%lo EXCLUDE{10.0.0.2}] <nil>
	// [239.44.1.4%lo EXCLUDE{}] <nil>
	// [] <nil>
}

// Any number of channels, on any number of ports, read in one place.
func ExamplePool_On() {
	p, err := mcast.ListenPool("udp4", "", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer p.Close()
	source := netip.MustParseAddr("127.0.0.1")
	channels := map[mcast.Channel]string{}
	for i := range 3 {
		ch := mcast.Channel{
			Group:  mcast.Group{Addr: netip.AddrFrom4([4]byte{232, 44, 1, byte(50 + i)}), Interface: "lo"},
			Source: source,
			Port:   5150 + i,
		}
		if err := p.On(ch.Port).JoinSource(ch.Group, ch.Source); err != nil {
			log.Fatal(err)
		}
		channels[ch] = fmt.Sprint("program ", i)
	}
	say(netip.MustParseAddrPort("232.44.1.52:5152"), "news")

	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	for m, err := range p.Messages(ctx, 1500) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s of %s\n", m.Buf[:m.N], channels[m.Channel()])
		break
	}
	// Output:
	// news of program 2
}

// A socket with options of one's own.
func ExampleNew() {
	lc := net.ListenConfig{Control: func(network, address string, c syscall.RawConn) (err error) {
		control := func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1) }
		if e := c.Control(control); e != nil {
			return e
		}
		return err
	}}
	udp, err := lc.ListenPacket(context.Background(), "udp4", ":5146")
	if err != nil {
		log.Fatal(err)
	}
	c, err := mcast.New(udp.(*net.UDPConn), nil)
	if err != nil {
		udp.Close()
		log.Fatal(err)
	}
	defer c.Close() // and the socket
	err = c.Join(mcast.Group{Addr: netip.MustParseAddr("239.44.1.6"), Interface: "lo"})
	fmt.Println(c.Memberships(), err)
	// Output:
	// [239.44.1.6%lo EXCLUDE{}] <nil>
}

// Statistics for /debug/vars: expvar.Publish("multicast", vars) shows them
// there.
func ExampleConn_GroupStats() {
	c := hello("239.44.1.7", "one", "two")
	defer c.Close()
	vars := new(expvar.Map).Init()
	vars.Set("received", expvar.Func(func() any { return c.Stats().Received }))
	vars.Set("groups", expvar.Func(func() any {
		received := map[string]uint64{}
		for group, stats := range c.GroupStats() {
			received[group.String()] = stats.Received
		}
		return received
	}))

	m := mcast.Message{Buf: make([]byte, 1500)}
	for range 2 {
		if err := c.ReadMessage(&m); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println(vars)
	// Output:
	// {"groups": {"239.44.1.7%lo":2}, "received": 2}
}

// A test that needs no network: the loopback interface, with addresses of
// 127.0.0.0/8 as the sources.
func Example_loopback() {
	c, err := mcast.Listen("udp4", "239.44.1.8:0", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	group := mcast.Group{Addr: netip.MustParseAddr("239.44.1.8"), Interface: "lo"}
	if err := c.SetFilter(group, mcast.Exclude, netip.MustParseAddr("127.0.0.2")); err != nil {
		log.Fatal(err)
	}
	for _, from := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"} {
		sender, err := mcast.Listen("udp4", from+":0", nil)
		if err != nil {
			log.Fatal(err)
		}
		defer sender.Close()
		if err := sender.SetMulticastInterface("lo"); err != nil {
			log.Fatal(err)
		}
		if _, err := sender.WriteTo([]byte("hello"), c.LocalAddr()); err != nil {
			log.Fatal(err)
		}
	}
	var heard []netip.Addr
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	m := mcast.Message{Buf: make([]byte, 1500)}
	for !slices.Contains(heard, netip.MustParseAddr("127.0.0.3")) {
		if err := c.ReadMessage(&m); err != nil {
			log.Fatal(err)
		}
		heard = append(heard, m.Source.Addr())
	}
	fmt.Println(heard)
	// Output:
	// [127.0.0.1 127.0.0.3]
}

// hello opens a Conn on a group on loopback, and sends to it.
func hello(group string, texts ...string) *mcast.Conn {
	c, err := mcast.Listen("udp4", group+":0", &mcast.Config{GroupStats: true})
	if err != nil {
		log.Fatal(err)
	}
	if err := c.Join(mcast.Group{Addr: netip.MustParseAddr(group), Interface: "lo"}); err != nil {
		log.Fatal(err)
	}
	say(c.LocalAddr().(*net.UDPAddr).AddrPort(), texts...)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	return c
}

// say sends to a group from 127.0.0.1 on loopback.
func say(to netip.AddrPort, texts ...string) {
	c, err := mcast.Listen("udp4", "127.0.0.1:0", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if err := c.SetMulticastInterface("lo"); err != nil {
		log.Fatal(err)
	}
	for _, text := range texts {
		if _, err := c.WriteToUDPAddrPort([]byte(text), to); err != nil {
			log.Fatal(err)
		}
	}
}
