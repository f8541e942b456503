package mcast

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// loopback is lo, which has index 1 in every network namespace.
const loopback = 1

// sender sends from a loopback address to groups, on lo.
func sender(t testing.TB, from string) *Conn {
	t.Helper()
	notEmulated(t)
	c, err := Listen("udp", from, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetMulticastInterface(loopback); err != nil {
		t.Fatal(err)
	}
	return c
}

// listenOn opens a Conn on a free port.
func listenOn(t testing.TB, network, host string, cfg *Config) (*Conn, int) {
	t.Helper()
	c, err := Listen(network, host+":0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, c.origin.port
}

// A flow is a numbered stream of datagrams from one source to one group.
type flow struct {
	from *Conn
	to   netip.AddrPort
	size int
	next uint32
}

// payload is the n-th datagram: its number, and bytes that depend on it.
func payload(n uint32, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(n) + byte(i)
	}
	if size >= 4 {
		binary.BigEndian.PutUint32(b, n)
	}
	return b
}

// send sends the flow's next datagrams, with segment set as one that the
// kernel takes apart (UDP_SEGMENT, udp(7)).
func (f *flow) send(t testing.TB, count int, segment bool) {
	t.Helper()
	if !segment {
		for range count {
			if _, err := f.from.WriteToUDPAddrPort(payload(f.next, f.size), f.to); err != nil {
				t.Fatal(err)
			}
			f.next++
		}
		return
	}
	var b []byte
	for range count {
		b = append(b, payload(f.next, f.size)...)
		f.next++
	}
	oob := make([]byte, unix.CmsgSpace(2))
	ne := binary.NativeEndian
	l := ne.AppendUint64(nil, uint64(unix.CmsgLen(2)))
	if nativeWord == 4 {
		l = ne.AppendUint32(nil, uint32(unix.CmsgLen(2)))
	}
	l = ne.AppendUint32(l, unix.IPPROTO_UDP)
	l = ne.AppendUint32(l, unix.UDP_SEGMENT)
	copy(oob, ne.AppendUint16(l, uint16(f.size)))
	if _, _, err := f.from.udp.WriteMsgUDPAddrPort(b, oob, f.to); err != nil {
		t.Fatal(err)
	}
}

// flows is 2 groups × 3 sources; the third source is not joined.
func flows(t testing.TB, c *Conn, port, size int) (joined, other []*flow) {
	for i, s := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"} {
		from := sender(t, s+":0")
		for _, g := range []string{"232.1.1.1", "232.1.1.2"} {
			f := &flow{from: from, to: netip.AddrPortFrom(netip.MustParseAddr(g), uint16(port)), size: size}
			if i == 2 {
				other = append(other, f)
				continue
			}
			joined = append(joined, f)
			if err := c.JoinSource(Group{f.to.Addr(), loopback}, netip.MustParseAddr(s)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return joined, other
}

type key struct {
	source netip.AddrPort
	group  netip.Addr
}

// TestExact sends numbered datagrams of interleaved sources and groups, and
// reads them in every mode: each one of those joined comes once, whole, in its
// flow's order, and no other.
func TestExact(t *testing.T) {
	type reading func(c *Conn, hand func(m *Message, payload []byte)) (int, error)
	batch := func(n, size int) reading {
		ms := make([]Message, n)
		for i := range ms {
			ms[i].Buf = make([]byte, size)
		}
		return func(c *Conn, hand func(*Message, []byte)) (int, error) {
			n, err := c.ReadBatch(ms)
			for i := range ms[:n] {
				hand(&ms[i], ms[i].Buf[:ms[i].N])
			}
			return n, err
		}
	}
	slab := func(pieces, room int) reading {
		b, ds := make([]byte, pieces*largest+100), make([]Datagram, room)
		return func(c *Conn, hand func(*Message, []byte)) (int, error) {
			n, err := c.ReadSlab(b[50:], ds)
			for _, d := range ds[:n] {
				hand(&Message{Source: d.Source, Group: d.Group, Port: d.Port, Time: d.Time, Truncated: d.Truncated}, b[50:][d.Offset:d.Offset+d.Size])
			}
			return n, err
		}
	}
	for _, v := range []struct {
		name    string
		cfg     Config
		read    func() reading
		segment bool
	}{
		{"one", Config{}, func() reading { return batch(1, 2000) }, false},
		{"batch", Config{}, func() reading { return batch(16, 2000) }, false},
		{"coalesce", Config{Coalesce: 2 * time.Millisecond}, func() reading { return batch(16, 2000) }, false},
		{"slab", Config{}, func() reading { return slab(4, 7) }, false},
		{"timestamps", Config{Timestamps: true}, func() reading { return batch(16, 2000) }, false},
		{"segmented", Config{}, func() reading { return batch(16, 2000) }, true},
		{"GRO one", Config{GRO: true}, func() reading { return batch(1, 2000) }, true},
		{"GRO batch", Config{GRO: true, Timestamps: true}, func() reading { return batch(16, 2000) }, true},
		{"GRO unsegmented", Config{GRO: true}, func() reading { return batch(16, 2000) }, false},
		{"GRO slab", Config{GRO: true}, func() reading { return slab(16, 1000) }, true},
		{"GRO slab, little room", Config{GRO: true}, func() reading { return slab(3, 5) }, true},
	} {
		t.Run(v.name, func(t *testing.T) {
			c, port := listenOn(t, "udp4", "", &v.cfg)
			joined, other := flows(t, c, port, 100)
			byKey := map[key]*flow{}
			for _, f := range joined {
				byKey[key{f.from.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort(), f.to.Addr()}] = f
			}
			seed := rand.Uint64()
			rnd := rand.New(rand.NewPCG(seed, 1))
			const rounds = 60
			next := map[key]uint32{}
			total, got := 0, 0
			read := v.read()
			hand := func(m *Message, b []byte) {
				k := key{m.Source, m.Group.Addr}
				f := byKey[k]
				switch {
				case f == nil:
					t.Fatalf("seed %d: heard %v to %v, which is not joined", seed, m.Source, m.Group)
				case m.Group.Interface != loopback || m.Port != port || m.Truncated:
					t.Fatalf("seed %d: message %+v", seed, m)
				case v.cfg.Timestamps != !m.Time.IsZero() || v.cfg.Timestamps && time.Since(m.Time).Abs() > time.Hour:
					t.Fatalf("time %v", m.Time)
				}
				if want := payload(next[k], f.size); string(b) != string(want) {
					t.Fatalf("seed %d: %v to %v: got % x, want % x", seed, m.Source, m.Group, b, want)
				}
				next[k]++
			}
			c.SetReadDeadline(time.Now().Add(time.Minute))
			for range rounds {
				for _, i := range rnd.Perm(len(joined)) {
					n := 1 + rnd.IntN(20)
					joined[i].send(t, n, v.segment)
					other[i%len(other)].send(t, n, v.segment)
					total += n
				}
				for got < total {
					n, err := read(c, hand)
					if err != nil {
						t.Fatalf("seed %d: %d of %d: %v", seed, got, total, err)
					}
					got += n
				}
			}
			s := c.Stats()
			if s.Received != uint64(total) || s.Dropped != 0 {
				t.Errorf("seed %d: stats %+v, sent %d", seed, s, total)
			}
		})
	}
}

// TestGROBoundaries: a last datagram that is shorter, empty datagrams, and ones
// longer than the caller's buffer.
func TestGROBoundaries(t *testing.T) {
	c, port := listenOn(t, "udp4", "", &Config{GRO: true})
	g, from := Group{netip.MustParseAddr("232.1.1.1"), loopback}, sender(t, "127.0.0.1:0")
	if err := c.JoinSource(g, netip.MustParseAddr("127.0.0.1")); err != nil {
		t.Fatal(err)
	}
	if !c.split.on {
		t.Skip("this kernel has no UDP_GRO")
	}
	to := netip.AddrPortFrom(g.Addr, uint16(port))
	f := &flow{from: from, to: to, size: 50}
	f.send(t, 3, true)
	from.WriteToUDPAddrPort(nil, to)
	from.WriteToUDPAddrPort([]byte("short"), to)
	from.WriteToUDPAddrPort(payload(9, 9000), to)
	c.SetReadDeadline(time.Now().Add(time.Minute))
	buf := make([]byte, 40)
	for i, want := range []struct {
		n   int
		cut bool
	}{{40, true}, {40, true}, {40, true}, {0, false}, {5, false}, {40, true}} {
		m := Message{Buf: buf}
		if err := c.ReadMessage(&m); err != nil {
			t.Fatal(err)
		}
		if m.N != want.n || m.Truncated != want.cut {
			t.Errorf("datagram %d: %d bytes, truncated %v; want %+v", i, m.N, m.Truncated, want)
		}
		if i == 0 && (len(c.split.rest) == 0 || c.split.rest[0].segment != 50) {
			var u unix.Utsname
			unix.Uname(&u)
			if release := unix.ByteSliceToString(u.Release[:]); release[0] < '5' || strings.HasPrefix(release, "5.10.") {
				t.Skip("a kernel this old takes segments apart before lo")
			}
			t.Error("the kernel did not coalesce")
		}
	}
	if s := c.Stats(); s.Received != 6 {
		t.Errorf("received %d datagrams, want 6", s.Received)
	}
}

// TestSolePacketInfo: a socket bound to a group does without IP_PKTINFO until
// a second interface could make the first one doubtful.
func TestSolePacketInfo(t *testing.T) {
	notEmulated(t)
	c, port := listenOn(t, "udp4", "232.1.1.1", nil)
	g, s := Group{netip.MustParseAddr("232.1.1.1"), loopback}, netip.MustParseAddr("127.0.0.1")
	asks := func() bool {
		b := make([]byte, 4)
		if _, err := c.kernel.sock.getsockopt(levelIP, 8, b); err != nil {
			t.Fatal(err)
		}
		return binary.NativeEndian.Uint32(b) != 0
	}
	hears := func() {
		t.Helper()
		from := sender(t, "127.0.0.1:0")
		if _, err := from.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(g.Addr, uint16(port))); err != nil {
			t.Fatal(err)
		}
		m := Message{Buf: make([]byte, 9)}
		c.SetReadDeadline(time.Now().Add(time.Minute))
		if err := c.ReadMessage(&m); err != nil || m.Group != g || m.Port != port {
			t.Fatalf("heard %+v, %v; want group %v", m, err, g)
		}
	}
	for range 2 { // leaving and joining the same again changes nothing
		if err := c.JoinSource(g, s); err != nil {
			t.Fatal(err)
		}
		hears()
		if asks() {
			t.Fatal("one membership, and IP_PKTINFO is on")
		}
		if err := c.Leave(g); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.JoinSource(g, s); err != nil {
		t.Fatal(err)
	}
	err := c.JoinSource(Group{g.Addr, 12345}, s) // no such interface, but it might have been
	if err == nil || !asks() {
		t.Fatalf("a second interface: %v, IP_PKTINFO %v", err, asks())
	}
	hears()
}

// TestReaders: eight readers at once get each datagram once, while the filter
// of another group is changed all the time.
func TestReaders(t *testing.T) {
	for _, cfg := range []Config{{}, {GRO: true}} {
		c, port := listenOn(t, "udp4", "", &cfg)
		joined, _ := flows(t, c, port, 64)
		const each = 500
		var mu sync.Mutex
		count := map[key]map[uint32]int{}
		var wg sync.WaitGroup
		var got atomic.Int64
		for r := range 8 {
			wg.Go(func() {
				ms := make([]Message, 1+r)
				for i := range ms {
					ms[i].Buf = make([]byte, 100)
				}
				for {
					n, err := c.ReadBatch(ms)
					if err != nil {
						return
					}
					mu.Lock()
					for _, m := range ms[:n] {
						k := key{m.Source, m.Group.Addr}
						if count[k] == nil {
							count[k] = map[uint32]int{}
						}
						count[k][binary.BigEndian.Uint32(m.Buf)]++
					}
					mu.Unlock()
					got.Add(int64(n))
				}
			})
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			g, s := Group{netip.MustParseAddr("232.9.9.9"), loopback}, netip.MustParseAddr("127.0.0.9")
			for got.Load() < int64(len(joined)*each) {
				c.JoinSource(g, s)
				c.LeaveSource(g, s)
			}
		}()
		for i := range each {
			for _, f := range joined {
				f.send(t, 1, false)
			}
			for deadline := time.Now().Add(time.Minute); got.Load() < int64((i+1)*len(joined)) && i%50 == 49; {
				if time.Now().After(deadline) {
					t.Fatalf("got %d of %d", got.Load(), (i+1)*len(joined))
				}
				time.Sleep(time.Millisecond)
			}
		}
		<-done
		c.Close()
		wg.Wait()
		for k, ns := range count {
			for n, times := range ns {
				if times != 1 {
					t.Errorf("%v: datagram %d came %d times", k, n, times)
				}
			}
			if len(ns) != each {
				t.Errorf("%v: %d datagrams, want %d", k, len(ns), each)
			}
		}
	}
}

// TestOldOptions: where a kernel does not know MCAST_*, IP_* does the same.
func TestOldOptions(t *testing.T) {
	c, port := listenOn(t, "udp4", "", nil)
	emulated := os.Getenv("MCAST_EMULATED") != ""
	c.kernel.noMcast = !emulated // emulators do not know them
	ssm, asm := Group{netip.MustParseAddr("232.1.1.1"), loopback}, Group{netip.MustParseAddr("239.1.1.1"), loopback}
	a, b := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	if emulated {
		c.kernel.host = loHost{c.kernel.host}
	}
	users := joinedByAnyone
	if emulated { // the kernel's byte order, not the program's
		users = func(g Group) bool {
			b, _ := os.ReadFile("/proc/net/igmp")
			a := g.Addr.As4()
			return bytes.Contains(b, fmt.Appendf(nil, "%02X%02X%02X%02X", a[3], a[2], a[1], a[0]))
		}
	}
	if users(ssm) || users(asm) {
		t.Skip("something on this machine has joined the groups")
	}
	var from, from2 *Conn
	if !emulated {
		from, from2 = sender(t, "127.0.0.1:0"), sender(t, "127.0.0.2:0")
	}
	hears := func(g Group, first, second bool) {
		t.Helper()
		if emulated {
			return
		}
		for _, s := range []*Conn{from, from2} {
			if _, err := s.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(g.Addr, uint16(port))); err != nil {
				t.Fatal(err)
			}
		}
		for s, want := range map[netip.Addr]bool{a: first, b: second} {
			if c.filter.Allows(g, s) != want {
				t.Errorf("Allows(%v, %v) = %v", g, s, !want)
			}
		}
		m := Message{Buf: make([]byte, 9)}
		for range map[bool]int{true: 1}[first] + map[bool]int{true: 1}[second] {
			c.SetReadDeadline(time.Now().Add(time.Minute))
			if err := c.ReadMessage(&m); err != nil || m.Group != g {
				t.Fatalf("%+v, %v", m, err)
			}
		}
		if got, err := c.SystemFilter(g); err != nil || got.String() != c.filter.membership(g).String() {
			t.Errorf("the system has %v, %v; want %v", got, err, c.filter.membership(g))
		}
	}
	for _, step := range []struct {
		request       func() error
		g             Group
		first, second bool
	}{
		{func() error { return c.JoinSource(ssm, a) }, ssm, true, false},
		{func() error { return c.JoinSource(ssm, b) }, ssm, true, true},
		{func() error { return c.LeaveSource(ssm, a) }, ssm, false, true},
		{func() error { return c.Join(asm) }, asm, true, true},
		{func() error { return c.Block(asm, b) }, asm, true, false},
		{func() error { return c.Unblock(asm, b) }, asm, true, true},
	} {
		if emulated && step.g == asm {
			continue // qemu takes struct ip_mreqn to be 16 bytes long
		}
		if err := step.request(); err != nil {
			t.Fatal(err)
		}
		hears(step.g, step.first, step.second)
	}
	if !users(ssm) || !users(asm) && !emulated {
		t.Error("the kernel has no such groups on lo")
	}
	if emulated {
		c.Close()
	} else if err := errors.Join(c.LeaveSource(ssm, b), c.Leave(asm)); err != nil {
		t.Fatal(err)
	}
	if users(ssm) || users(asm) {
		t.Error("the groups are left, but not in the kernel")
	}
}

// loHost knows lo, where the system does not tell its interfaces.
type loHost struct{ host }

func (loHost) address4(int) (netip.Addr, bool) { return netip.MustParseAddr("127.0.0.1"), true }
func (loHost) name(int) string                 { return "lo" }
func (loHost) exists(i int) bool               { return i == loopback }
