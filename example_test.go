package mcast_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/netip"
	"os"
	"os/signal"

	"example.com/mcast"
)

// Receive a source-specific channel until Ctrl-C.
func Example() {
	ch, err := mcast.ParseChannel("10.0.0.1@232.1.1.1%eth0:5000")
	if err != nil {
		log.Fatal(err)
	}
	c, err := mcast.ListenChannel(ch, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	for m, err := range c.Messages(ctx, 1500) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%v sent %q to %v\n", m.Source, m.Buf[:m.N], m.Group)
	}
}

func ExampleParseChannel() {
	for _, s := range []string{
		"10.0.0.1@232.1.1.1%eth0:5000",
		"fd00::1@[ff3e::8000:1]:5000",
		"239.1.1.1",
		"udp://@239.1.1.1:5000",
	} {
		ch, err := mcast.ParseChannel(s)
		if err != nil {
			log.Fatal(err)
		}
		if ch.Source.IsValid() {
			fmt.Println("group", ch.Group, "source", ch.Source, "port", ch.Port)
		} else {
			fmt.Println("group", ch.Group, "any source, port", ch.Port)
		}
	}
	// Output:
	// group 232.1.1.1%eth0 source 10.0.0.1 port 5000
	// group ff3e::8000:1 source fd00::1 port 5000
	// group 239.1.1.1 any source, port 0
	// group 239.1.1.1 any source, port 5000
}

func ExampleParseGroup() {
	_, err := mcast.ParseGroup("10.0.0.1")
	fmt.Println(errors.Is(err, mcast.ErrAddress))
	fmt.Println(err)
	// Output:
	// true
	// mcast: ParseGroup: unusable address: 10.0.0.1 is not a multicast address (224.0.0.0/4, ff00::/8)
}

func ExampleGroup_IsSSM() {
	for _, a := range []string{"232.1.1.1", "239.1.1.1", "ff3e::8000:1", "ff02::1"} {
		fmt.Println(a, mcast.Group{Addr: netip.MustParseAddr(a)}.IsSSM())
	}
	// Output:
	// 232.1.1.1 true
	// 239.1.1.1 false
	// ff3e::8000:1 true
	// ff02::1 false
}

// A group on every interface, those that come later too, as for the discovery
// of services. Message.Group names the interface that a datagram came in by.
func ExampleGroup_everyInterface() {
	c, err := mcast.Listen("udp4", ":5353", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if err := c.Join(mcast.Group{Addr: netip.MustParseAddr("224.0.0.251"), Interface: "*"}); err != nil {
		log.Fatal(err)
	}
	for m, err := range c.Messages(context.Background(), 9000) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(m.N, "bytes from", m.Source, "by", m.Group.Interface)
	}
}

// A Filter on its own says what a sequence of requests leads to.
func ExampleFilter() {
	group := mcast.Group{Addr: netip.MustParseAddr("239.1.1.1"), Interface: "eth0"}
	noisy, other := netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("10.0.0.1")

	var f mcast.Filter
	for _, r := range []mcast.Request{
		{Op: mcast.OpJoin, Group: group},
		{Op: mcast.OpBlock, Group: group, Source: noisy},
	} {
		if err := f.Apply(r); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println(f.Memberships())
	fmt.Println(f.Allows(group, noisy), f.Allows(group, other))
	// Output:
	// [239.1.1.1%eth0 EXCLUDE{10.0.0.9}]
	// false true
}

// The system's own documentation gives each refusal an error number, and the
// refusal says what to do instead.
func ExampleFilter_Check() {
	group := mcast.Group{Addr: netip.MustParseAddr("239.1.1.1")}
	f := mcast.Filter{Rules: mcast.WindowsRules}
	if err := f.Apply(mcast.Request{Op: mcast.OpJoin, Group: group}); err != nil {
		log.Fatal(err)
	}
	err := f.Check(mcast.Request{Op: mcast.OpLeaveSource, Group: group, Source: netip.MustParseAddr("10.0.0.9")})
	var refusal *mcast.OpError
	fmt.Println(errors.Is(err, mcast.ErrMode), errors.As(err, &refusal))
	fmt.Println(refusal.Op, refusal.Source, refusal.Group)
	// Output:
	// true true
	// LeaveSource 10.0.0.9 239.1.1.1
}

func ExampleFilter_Set() {
	group := mcast.Group{Addr: netip.MustParseAddr("232.1.1.1"), Interface: "eth0"}
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")

	var f mcast.Filter
	for _, sources := range [][]netip.Addr{{b, a, b}, {b}, nil} {
		if err := f.Set(mcast.Membership{Group: group, Mode: mcast.Include, Sources: sources}); err != nil {
			log.Fatal(err)
		}
		fmt.Println(f.Memberships())
	}
	// Output:
	// [232.1.1.1%eth0 INCLUDE{10.0.0.1, 10.0.0.2}]
	// [232.1.1.1%eth0 INCLUDE{10.0.0.2}]
	// []
}

// A request that is refused says why, to programs and to people.
func ExampleConn_Join() {
	c, err := mcast.Listen("udp4", ":0", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	err = c.Join(mcast.Group{Addr: netip.MustParseAddr("232.1.1.1"), Interface: "1"})
	switch {
	case errors.Is(err, mcast.ErrSSM):
		fmt.Println("source-specific: join it with a source")
	case errors.Is(err, mcast.ErrJoined):
		fmt.Println("nothing to do")
	case err != nil:
		log.Fatal(err)
	}
	fmt.Println(len(c.Memberships()), "memberships")
	// Output:
	// source-specific: join it with a source
	// 0 memberships
}

// One source of an any-source group is turned off and on again.
func ExampleConn_Block() {
	c, err := mcast.Listen("udp4", ":5000", nil)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	group := mcast.Group{Addr: netip.MustParseAddr("239.1.1.1"), Interface: "eth0"}
	noisy := netip.MustParseAddr("10.0.0.9")
	if err := c.Join(group); err != nil {
		log.Fatal(err)
	}
	if err := c.Block(group, noisy); err != nil {
		log.Fatal(err)
	}
	if err := c.Unblock(group, noisy); err != nil {
		log.Fatal(err)
	}
}

// A program that starts before its interface does.
func ExampleConfig_waitForInterface() {
	c, err := mcast.Listen("udp4", ":0", &mcast.Config{WaitForInterface: true})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if err := c.Join(mcast.Group{Addr: netip.MustParseAddr("239.1.1.1"), Interface: "vpn-of-example"}); err != nil {
		log.Fatal(err)
	}
	fmt.Println(c.Memberships())
	// Output:
	// [239.1.1.1%vpn-of-example EXCLUDE{} pending]
}

// What becomes of memberships while the program runs.
func ExampleConfig_onEvent() {
	cfg := &mcast.Config{OnEvent: func(e mcast.Event) {
		switch e.Kind {
		case mcast.EventDown:
			fmt.Println("nothing is heard by", e.Name, "until it is up again")
		case mcast.EventFailed:
			fmt.Println(e.Group, "is tried again:", e.Err)
		default:
			fmt.Println(e) // restored 232.1.1.1%eth0 on eth0 (7, was 2)
		}
	}}
	c, err := mcast.Listen("udp4", ":5000", cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
}
