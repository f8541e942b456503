package mcast

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	poolWays = []poolWay{
		{"epoll", newEpollSockets, newFDAnchor, descriptorLimit},
		// As on other systems, but that their sockets for groups are few.
		{"net", newNetSockets, newFDAnchor, func() int { return 0 }},
	}
}

// TestPoolFewDescriptors joins more channels than the program may open files,
// and hears them all.
func TestPoolFewDescriptors(t *testing.T) {
	at := testSite(t)
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	few := was
	few.Cur = 200
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &was)
	p, port := at.pool(t, nil)
	const n = 600
	source := netip.MustParseAddr("127.0.0.1")
	channel := func(i int) Group { return Group{netip.AddrFrom4([4]byte{232, 5, byte(i >> 8), byte(i)}), loopback} }
	for i := range n {
		if err := p.JoinSource(channel(i), source); err != nil {
			t.Fatalf("channel %d: %v", i, err)
		}
	}
	if s := p.Sockets(); s != 100+(n-100)/hostSystem.perSocket {
		t.Errorf("%d sockets", s)
	}
	from := at.sender(t, source)
	ms := make([]Message, 16)
	for i := range ms {
		ms[i].Buf = make([]byte, 10)
	}
	p.SetReadDeadline(time.Now().Add(time.Minute))
	for i := 0; i < n; i += 7 {
		if _, err := from.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(channel(i).Addr, uint16(port))); err != nil {
			t.Fatal(err)
		}
		if got, err := p.ReadBatch(ms); err != nil || got != 1 || ms[0].Group != channel(i) {
			t.Fatalf("channel %d: %d, %+v, %v", i, got, ms[0], err)
		}
	}
	// Room that is left is used again.
	for i := 0; i < n; i += 2 {
		if err := p.Leave(channel(i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n / 2 {
		if err := p.JoinSource(channel(n+i), source); err != nil {
			t.Fatal(err)
		}
	}
	if s := p.Sockets(); s > 100+(n-100)/hostSystem.perSocket+10 {
		t.Errorf("%d sockets after half of the channels were changed", s)
	}
}

// TestPoolLeaksNothing: descriptors are closed with their memberships.
func TestPoolLeaksNothing(t *testing.T) {
	open := func() int {
		d, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(d)
	}
	at := testSite(t)
	source := netip.MustParseAddr("127.0.0.1")
	before := open()
	for range 20 {
		p, _ := at.pool(t, nil)
		for i := range 30 {
			if err := p.JoinSource(Group{netip.AddrFrom4([4]byte{232, 1, 1, byte(i)}), loopback}, source); err != nil {
				t.Fatal(err)
			}
		}
		p.Leave(Group{netip.AddrFrom4([4]byte{232, 1, 1, 1}), loopback})
		p.Close()
	}
	if after := open(); after > before+3 {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// TestPoolAllocates: ReadBatch allocates nothing.
func TestPoolAllocates(t *testing.T) {
	at := testSite(t)
	p, port := at.pool(t, nil)
	source := netip.MustParseAddr("127.0.0.1")
	from := at.sender(t, source)
	var to []netip.AddrPort
	for i := range 8 {
		g := Group{netip.AddrFrom4([4]byte{232, 1, 1, byte(i)}), loopback}
		if err := p.JoinSource(g, source); err != nil {
			t.Fatal(err)
		}
		to = append(to, netip.AddrPortFrom(g.Addr, uint16(port)))
	}
	ms := make([]Message, 16)
	for i := range ms {
		ms[i].Buf = make([]byte, 10)
	}
	buf := []byte("x")
	p.SetReadDeadline(time.Now().Add(time.Minute))
	if n := testing.AllocsPerRun(100, func() {
		for _, a := range to {
			from.WriteToUDPAddrPort(buf, a)
		}
		for got := 0; got < len(to); {
			n, err := p.ReadBatch(ms)
			if err != nil {
				t.Fatal(err)
			}
			got += n
		}
	}); n != 0 {
		t.Errorf("%v allocations for %d datagrams", n, len(to))
	}
}
