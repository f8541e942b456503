package mcast

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

func TestSmoke(t *testing.T) {
	cfg := &Config{OnEvent: func(e Event) { fmt.Println("event", e) }, GroupStats: true, HopLimit: true}
	c, err := Listen("udp4", "232.1.1.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	g := Group{netip.MustParseAddr("232.1.1.1"), "lo"}
	src := netip.MustParseAddr("127.0.0.1")
	if err := c.JoinSource(g, src); err != nil {
		t.Fatal(err)
	}
	fmt.Println(c.Memberships(), c.LocalAddr())
	fmt.Println(c.SystemFilter(g))
	s, err := Listen("udp4", "127.0.0.1:0", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.SetMulticastInterface("lo"); err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(g.Addr, uint16(c.origin.port))
	s.WriteToUDPAddrPort([]byte("hello"), to)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	for m, err := range c.Messages(ctx, 100) {
		fmt.Println(m.Channel(), string(m.Buf[:m.N]), m.HopLimit, m.Index, err)
	}
	fmt.Println(c.Block(g, src), "\n", c.Join(g))
	fmt.Println(c.JoinSource(Group{g.Addr, ""}, netip.MustParseAddr("10.0.0.1")), c.Memberships())
	for g, s := range c.GroupStats() {
		fmt.Println(g, s)
	}
	fmt.Println(c.SetFilter(g, Include, src, netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")))
	fmt.Println(c.SystemFilter(g))
	fmt.Println(c.Leave(g), c.Memberships())
	fmt.Println(c.JoinSource(Group{g.Addr, "*"}, src), c.Memberships(), c.Repair())

	p, err := ListenPool("udp4", ":0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for i := range 25 {
		src := netip.AddrFrom4([4]byte{127, 0, 0, byte(i + 1)})
		if err := p.JoinSource(g, src); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Println(p.Memberships(), p.Sockets())
	to = netip.AddrPortFrom(g.Addr, uint16(p.port))
	s.WriteToUDPAddrPort([]byte("hello"), to)
	m := Message{Buf: make([]byte, 100)}
	fmt.Println(p.ReadMessage(&m), m.Channel())
	fmt.Println(p.SystemFilter(g))
	fmt.Println(p.SetFilter(g, Exclude, src), p.Memberships(), p.Sockets())
	fmt.Println(p.Leave(g), p.Memberships(), p.Sockets())
	ms := []Message{{Buf: []byte("one"), N: 3, Group: Group{g.Addr, "lo"}, Port: 5000}, {Buf: []byte("one"), N: 3, Group: Group{Addr: g.Addr}, Port: 5000}}
	fmt.Println(s.WriteBatch(ms))
	fmt.Println(s.WriteVia([]byte("x"), to, "lo", netip.MustParseAddr("127.0.0.3")))
}
