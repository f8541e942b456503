package mcast

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/mcast/internal/netif"
	"golang.org/x/sys/unix"
)

// loopback is the loopback interface.
const loopback = "lo"

// loSender sends from a loopback address to groups, on lo.
func loSender(t testing.TB, from string) *Conn {
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
		from := loSender(t, s+":0")
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

type flowKey struct {
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
				hand(&Message{Source: d.Source, Group: d.Group, Port: d.Port, Index: d.Index, Time: d.Time, Truncated: d.Truncated}, b[50:][d.Offset:d.Offset+d.Size])
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
			byKey := map[flowKey]*flow{}
			for _, f := range joined {
				byKey[flowKey{f.from.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort(), f.to.Addr()}] = f
			}
			seed := rand.Uint64()
			rnd := rand.New(rand.NewPCG(seed, 1))
			const rounds = 60
			next := map[flowKey]uint32{}
			total, got := 0, 0
			read := v.read()
			hand := func(m *Message, b []byte) {
				k := flowKey{m.Source, m.Group.Addr}
				f := byKey[k]
				switch {
				case f == nil:
					t.Fatalf("seed %d: heard %v to %v, which is not joined", seed, m.Source, m.Group)
				case m.Group.Interface != loopback || m.Index != 1 || m.Port != port || m.Truncated:
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
	g, from := Group{netip.MustParseAddr("232.1.1.1"), loopback}, loSender(t, "127.0.0.1:0")
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
		if _, err := c.ledger.kernel.sock.getsockopt(levelIP, 8, b); err != nil {
			t.Fatal(err)
		}
		return binary.NativeEndian.Uint32(b) != 0
	}
	hears := func() {
		t.Helper()
		from := loSender(t, "127.0.0.1:0")
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
	// What is queued by now says nothing of where it came in.
	const early = 10
	from := loSender(t, "127.0.0.1:0")
	for i := range early {
		if _, err := from.WriteToUDPAddrPort([]byte{byte(i)}, netip.AddrPortFrom(g.Addr, uint16(port))); err != nil {
			t.Fatal(err)
		}
	}
	// The kernel knows no such interface, but it might have.
	c.host = extraInterface{c.host}
	c.ledger.kernel.host = c.host
	if err := c.JoinSource(Group{g.Addr, "extra0"}, s); err == nil || !asks() {
		t.Fatalf("a second interface: %v, IP_PKTINFO %v", err, asks())
	}
	c.SetReadDeadline(time.Now().Add(time.Minute))
	for i := range early {
		m := Message{Buf: make([]byte, 9)}
		if err := c.ReadMessage(&m); err != nil || m.Group != g || m.Index != 1 || m.Buf[0] != byte(i) {
			t.Fatalf("queued before the second interface: %+v, %v; want group %v", m, err, g)
		}
	}
	hears()
	if st := c.Stats(); st.Filtered != 0 {
		t.Errorf("%+v", st)
	}
}

// extraInterface is a host with one interface more than the kernel knows.
type extraInterface struct{ netif.Host }

func (h extraInterface) Index(name string) (int, error) {
	if name == "extra0" {
		return 12345, nil
	}
	return h.Host.Index(name)
}

// TestReaders: eight readers at once get each datagram once, while the filter
// of another group is changed all the time.
func TestReaders(t *testing.T) {
	for _, cfg := range []Config{{}, {GRO: true}} {
		c, port := listenOn(t, "udp4", "", &cfg)
		joined, _ := flows(t, c, port, 64)
		const each = 500
		var mu sync.Mutex
		count := map[flowKey]map[uint32]int{}
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
						k := flowKey{m.Source, m.Group.Addr}
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
