package amt

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"example.com/mcast"
	"example.com/mcast/internal/amtrelay"
)

// A network joins the sockets of Gateways to model relays, without a kernel:
// inside of a synctest bubble its clock is a fake one.
type network struct {
	mu      sync.Mutex
	rnd     *rand.Rand
	path    amtrelay.Path
	relays  map[netip.AddrPort]*amtrelay.Relay
	sockets map[netip.AddrPort]*memorySocket // by the address that the NAT gives them
	ports   uint16
	nat     byte // changes with each rebinding
}

func newNetwork(seed uint64) *network {
	return &network{
		rnd: rand.New(rand.NewPCG(seed, 2)), relays: make(map[netip.AddrPort]*amtrelay.Relay),
		sockets: make(map[netip.AddrPort]*memorySocket), ports: 10000, nat: 1,
	}
}

// relay adds a relay.
func (n *network) relay(addr string, cfg amtrelay.Config) *amtrelay.Relay {
	a := netip.MustParseAddrPort(addr)
	if !cfg.Advertise.IsValid() {
		cfg.Advertise = a.Addr()
	}
	r := amtrelay.New(cfg, func(to netip.AddrPort, b []byte) { n.toGateway(a, to, b) })
	n.relays[a] = r
	return r
}

// carry has a message arrive, if it does.
func (n *network) carry(b []byte, arrive func(b []byte)) {
	n.mu.Lock()
	list := n.path.Carry(n.rnd, b)
	n.mu.Unlock()
	for _, d := range list {
		// Even without a delay: a relay sends with its lock held.
		time.AfterFunc(d.After, func() { arrive(d.B) })
	}
}

func (n *network) toGateway(from, to netip.AddrPort, b []byte) {
	n.carry(b, func(b []byte) { n.arrive(from, to, b) })
}

// arrive puts a message into the socket that has the address now.
func (n *network) arrive(from, to netip.AddrPort, b []byte) {
	n.mu.Lock()
	s := n.sockets[to]
	n.mu.Unlock()
	if s == nil {
		return
	}
	select {
	case s.in <- packet{from, b}:
	default: // the receive buffer is full
		s.mu.Lock()
		s.dropped++
		s.mu.Unlock()
	}
}

// rebind gives all sockets other addresses, as a NAT does that has lost its
// state.
func (n *network) rebind() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nat++
	old := n.sockets
	n.sockets = make(map[netip.AddrPort]*memorySocket)
	for _, s := range old {
		n.bind(s)
	}
}

func (n *network) bind(s *memorySocket) {
	n.ports++
	a := netip.AddrFrom4([4]byte{203, 0, 113, n.nat})
	if s.ipv6 {
		a = netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 14: 1, 15: n.nat})
	}
	s.external = netip.AddrPortFrom(a, n.ports)
	n.sockets[s.external] = s
}

// addresses returns those of all sockets.
func (n *network) addresses() (list []netip.AddrPort) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for a := range n.sockets {
		list = append(list, a)
	}
	return list
}

func (n *network) listen(network string) (socket, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := &memorySocket{network: n, ipv6: network == "udp6", in: make(chan packet, 4096), closed: make(chan struct{})}
	s.deadline.init()
	n.bind(s)
	return s, nil
}

// problems returns what no gateway may send, and was sent.
func (n *network) problems() (list []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.sockets {
		s.mu.Lock()
		list = append(list, s.check.Problems...)
		s.mu.Unlock()
	}
	return list
}

// forward has all relays forward a packet.
func (n *network) forward(b []byte) {
	for _, r := range n.relays {
		r.Forward(time.Now(), b)
	}
}

type packet struct {
	from netip.AddrPort
	b    []byte
}

// A memorySocket is a socket of a Gateway in a network.
type memorySocket struct {
	network  *network
	ipv6     bool
	in       chan packet
	closed   chan struct{}
	deadline deadline
	external netip.AddrPort

	mu      sync.Mutex
	check   amtrelay.Checker
	dropped uint64
}

func (s *memorySocket) ReadBatch(ms []mcast.Message) (n int, err error) {
	put := func(p packet) {
		m := &ms[n]
		m.N = copy(m.Buf, p.b)
		m.Source, m.Truncated = p.from, m.N < len(p.b)
		n++
	}
	for n == 0 {
		over := s.deadline.over()
		if s.deadline.passed() {
			return 0, os.ErrDeadlineExceeded
		}
		select {
		case p := <-s.in:
			put(p)
		case <-s.closed:
			return 0, net.ErrClosed
		case <-over:
		}
	}
	for n < len(ms) {
		select {
		case p := <-s.in:
			put(p)
		default:
			return n, nil
		}
	}
	return n, nil
}

func (s *memorySocket) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	select {
	case <-s.closed:
		return 0, net.ErrClosed
	default:
	}
	if to.Addr().Is6() != s.ipv6 {
		return 0, errors.New("a relay of the other family")
	}
	s.mu.Lock()
	s.check.Sent(time.Now(), to, b)
	s.mu.Unlock()
	s.network.mu.Lock()
	from := s.external
	s.network.mu.Unlock()
	s.network.carry(b, func(b []byte) {
		if r := s.network.relays[to]; r != nil {
			r.Receive(time.Now(), from, b)
		}
	})
	return len(b), nil
}

func (s *memorySocket) Stats() mcast.Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return mcast.Stats{Dropped: s.dropped, ReadBuffer: 4096}
}

func (s *memorySocket) SetReadDeadline(t time.Time) error {
	s.deadline.set(t)
	return nil
}

func (s *memorySocket) Close() error {
	close(s.closed)
	return nil
}

// gateway makes a Gateway in the network, before it dials.
func (n *network) gateway(t testing.TB, cfg *Config) *Gateway {
	t.Helper()
	g, err := newGateway(cfg)
	if err != nil {
		t.Fatal(err)
	}
	g.listen = n.listen
	return g
}

// dialled makes a Gateway with a tunnel to these relays, and closes it at the
// end of the test.
func (n *network) dialled(t testing.TB, cfg *Config, relays ...string) *Gateway {
	t.Helper()
	g := n.gateway(t, cfg)
	var candidates []candidate
	for _, r := range relays {
		candidates = append(candidates, candidate{addr: netip.MustParseAddrPort(r)})
	}
	g.mu.Lock()
	g.startTunnel(candidates, nil, &g.filter)
	g.mu.Unlock()
	return g
}

// udp is a packet of a source to a group, that says what it is.
func udp(source, group netip.Addr, number int) []byte {
	return amtrelay.UDP(netip.AddrPortFrom(source, 4711), netip.AddrPortFrom(group, 5000), 7, fmt.Appendf(nil, "%v %v %d", source, group, number))
}
