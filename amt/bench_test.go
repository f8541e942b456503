package amt

import (
	"net"
	"net/netip"
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

func benchmarkReadBatch(b *testing.B, read func([]mcast.Message) (int, error), f *flood) {
	ms := make([]mcast.Message, batchSize)
	for i := range ms {
		ms[i].Buf = make([]byte, 2048)
	}
	b.ReportAllocs()
	b.StopTimer()
	for done := 0; done < b.N; {
		f.send(b)
		b.StartTimer()
		for n := 0; n < burst; {
			k, err := read(ms)
			if err != nil {
				b.Fatal(err)
			}
			n += k
		}
		b.StopTimer()
		done += burst
	}
}

const payloadSize = 1316

func BenchmarkReadBatchConn(b *testing.B) {
	c, f := openConn(b, make([]byte, payloadSize))
	benchmarkReadBatch(b, c.ReadBatch, f)
}

func BenchmarkReadBatchGateway(b *testing.B) {
	g, f := openTunnel(b, make([]byte, payloadSize))
	benchmarkReadBatch(b, g.ReadBatch, f)
}

// Neither the tunnel nor its readers allocate for a datagram.
func TestNoAllocs(t *testing.T) {
	g, f := openTunnel(t, make([]byte, payloadSize))
	ms := make([]mcast.Message, batchSize)
	for i := range ms {
		ms[i].Buf = make([]byte, 2048)
	}
	read := func() {
		f.send(t)
		for n := 0; n < burst; {
			k, err := g.ReadBatch(ms)
			if err != nil {
				t.Fatal(err)
			}
			n += k
		}
	}
	for range 5 { // all batches are made now
		read()
	}
	if n := testing.AllocsPerRun(5, read); n > burst/100 {
		t.Errorf("%v allocations for %d datagrams", n, burst)
	}
}
