package amt

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"example.com/mcast"
	"example.com/mcast/internal/amtrelay"
)

// burst is how many datagrams wait in the receive buffer when reading begins.
const burst = 1024

// A flood is a socket that sends the same datagram again and again.
type flood struct {
	c  *net.UDPConn
	to netip.AddrPort
	b  []byte
}

func (f *flood) send(t testing.TB) {
	for range burst {
		if _, err := f.c.WriteToUDPAddrPort(f.b, f.to); err != nil {
			t.Fatal(err)
		}
	}
}

// openTunnel makes a Gateway that has joined a channel at a relay on loopback,
// and a flood of its datagrams.
func openTunnel(t testing.TB, payload []byte) (*Gateway, *flood) {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	at := c.LocalAddr().(*net.UDPAddr).AddrPort()
	var mu sync.Mutex
	var gateway netip.AddrPort
	r := amtrelay.New(amtrelay.Config{Advertise: at.Addr()}, func(to netip.AddrPort, b []byte) {
		mu.Lock()
		gateway = to
		mu.Unlock()
		c.WriteToUDPAddrPort(b, to)
	})
	go r.Serve(c)
	g, err := Dial(t.Context(), at.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	if err := g.JoinSource(channelGroup, channelSource); err != nil {
		t.Fatal(err)
	}
	for len(r.Endpoints(time.Now())) == 0 {
		time.Sleep(time.Millisecond)
	}
	mu.Lock()
	defer mu.Unlock()
	packet := amtrelay.UDP(netip.AddrPortFrom(channelSource, 4711), netip.AddrPortFrom(channelGroup.Addr, 5000), 7, payload)
	return g, &flood{c, gateway, appendData(nil, packet)}
}

// openConn makes a Conn that takes the same datagrams without a tunnel.
func openConn(t testing.TB, payload []byte) (*mcast.Conn, *flood) {
	in, err := mcast.Listen("udp4", "127.0.0.1:0", &mcast.Config{Unicast: true, NoWatch: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return in, &flood{c, in.LocalAddr().(*net.UDPAddr).AddrPort(), payload}
}

// drainBurst reads a burst that waits in the receive buffer, and returns how
// long that took.
func drainBurst(t testing.TB, read func([]mcast.Message) (int, error), ms []mcast.Message) time.Duration {
	start := time.Now()
	for n := 0; n < burst; {
		k, err := read(ms)
		if err != nil {
			t.Fatal(err)
		}
		n += k
	}
	return time.Since(start)
}

func buffers() []mcast.Message {
	ms := make([]mcast.Message, batchSize)
	for i := range ms {
		ms[i].Buf = make([]byte, 2048)
	}
	return ms
}

const payloadSize = 1316

// BenchmarkReadBatch reads the same datagrams by turns from a Conn and out of a
// tunnel, and reports the medians, and how they relate.
func BenchmarkReadBatch(b *testing.B) {
	c, direct := openConn(b, make([]byte, payloadSize))
	g, tunnelled := openTunnel(b, make([]byte, payloadSize))
	ms := buffers()
	var conn, gateway []time.Duration
	for b.Loop() {
		direct.send(b)
		conn = append(conn, drainBurst(b, c.ReadBatch, ms))
		tunnelled.send(b)
		gateway = append(gateway, drainBurst(b, g.ReadBatch, ms))
	}
	median := func(d []time.Duration) float64 {
		slices.Sort(d)
		return float64(d[len(d)/2]) / burst
	}
	b.ReportMetric(median(conn), "conn-ns")
	b.ReportMetric(median(gateway), "gateway-ns")
	b.ReportMetric(median(gateway)/median(conn), "ratio")
}

// Neither the tunnel nor its readers allocate for a datagram.
func TestNoAllocs(t *testing.T) {
	g, f := openTunnel(t, make([]byte, payloadSize))
	ms := buffers()
	read := func() {
		f.send(t)
		drainBurst(t, g.ReadBatch, ms)
	}
	for range 5 { // all batches are made now
		read()
	}
	// What remains is for a socket that changes hands while this test waits for
	// a processor.
	if n := testing.AllocsPerRun(5, read); n > burst/10 {
		t.Errorf("%v allocations for %d datagrams", n, burst)
	}
}
