package amtrelay

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Port is the UDP port of relays, RFC 7450 section 7.2.
const Port = 2268

// A Config is how a relay behaves. It may be changed with [Relay.Configure].
type Config struct {
	Advertise     netip.Addr    // the address in Advertisements
	QueryInterval time.Duration // 125 s if 0
	Robustness    int           // 2 if 0
	Limit         bool          // L: no new gateways
	HideAddress   bool          // no G flag
	Down          bool          // nothing is received

	// Deviations.
	NoDiscovery   bool // Discovery is not answered
	NoIGMP, NoMLD bool // Requests of that family are not answered
	NoTeardown    bool // Teardown is an unknown type
	ByAddress     bool // gateways are known by their IP address only, their port is the last one seen
	KeepKey       bool // the MAC outlives a restart
	LinuxFlags    bool // P, L and G are at the other end of their bytes, and other bits are refused
	Additive      bool // IS_IN and TO_IN add sources, TO_EX{S} is a leave of S
	EmptyRefused  bool // an MLDv2 report with a single record without sources is refused
	LargestInner  int  // longer packets are dropped; 0: none are
}

// A Relay is a model of a relay. Its methods may be called concurrently; send
// and OnChange are called with a lock held and must not call it.
type Relay struct {
	OnChange func() // what is wanted of the network may have changed

	send func(to netip.AddrPort, b []byte)

	mu        sync.Mutex
	cfg       Config
	key       [32]byte
	endpoints map[netip.AddrPort]*endpoint
	counts    Counts
}

// Counts are of the messages that a relay took, by type, and of those that it
// did not.
type Counts struct {
	Discoveries, Requests, Updates, Teardowns int
	Malformed                                 int // wrong version, type, length or reserved bits
	WrongMAC                                  int
	BadReports                                int
	Sent                                      int // Multicast Data
}

// An endpoint is a gateway, as RFC 7450 section 5.3.3 has it: an address and a
// port with memberships.
type endpoint struct {
	to     netip.AddrPort
	groups map[netip.Addr]*group
}

// New returns a relay that sends by that function.
func New(cfg Config, send func(to netip.AddrPort, b []byte)) *Relay {
	r := &Relay{cfg: cfg, send: send}
	r.reset()
	rand.Read(r.key[:])
	return r
}

func (r *Relay) reset() { r.endpoints = make(map[netip.AddrPort]*endpoint) }

// Configure changes the configuration.
func (r *Relay) Configure(f func(*Config)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.cfg)
}

// Restart forgets all gateways, and the key.
func (r *Relay) Restart() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reset()
	if !r.cfg.KeepKey {
		rand.Read(r.key[:])
	}
	r.changed()
}

// Counts returns the counts so far.
func (r *Relay) Counts() Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts
}

func (r *Relay) changed() {
	if r.OnChange != nil {
		r.OnChange()
	}
}

// Serve has the relay receive from a socket until that is closed.
func (r *Relay) Serve(c *net.UDPConn) {
	b := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		r.Receive(time.Now(), netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), b[:n])
	}
}

// The types of messages, RFC 7450 section 5.1.
const (
	relayDiscovery     = 1
	relayAdvertisement = 2
	requestMessage     = 3
	membershipQuery    = 4
	membershipUpdate   = 5
	multicastData      = 6
	teardownMessage    = 7
)

// Receive takes a message.
func (r *Relay) Receive(now time.Time, from netip.AddrPort, b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cfg.Down {
		return
	}
	if len(b) < 8 || b[0]>>4 != 0 {
		r.counts.Malformed++
		return
	}
	switch kind := b[0]; {
	case kind == relayDiscovery && len(b) == 8:
		r.discovery(from, b)
	case kind == requestMessage && len(b) == 8:
		r.request(from, b)
	case kind == membershipUpdate && len(b) > 12:
		r.update(now, from, b)
	case kind == teardownMessage && len(b) == 30 && !r.cfg.NoTeardown:
		r.teardown(b)
	default:
		r.counts.Malformed++
	}
}

func (r *Relay) discovery(from netip.AddrPort, b []byte) {
	if r.cfg.NoDiscovery || [4]byte(b[4:]) == [4]byte{} {
		return
	}
	r.counts.Discoveries++
	m := append([]byte{relayAdvertisement, 0, 0, 0}, b[4:8]...)
	r.send(from, append(m, r.cfg.Advertise.AsSlice()...))
}

// pFlag returns which family a Request is for.
func (r *Relay) pFlag(flags byte) (ipv6, ok bool) {
	if r.cfg.LinuxFlags {
		return flags == 0x80, flags&0x7f == 0
	}
	return flags&1 != 0, true // reserved bits are ignored
}

func (r *Relay) request(from netip.AddrPort, b []byte) {
	ipv6, ok := r.pFlag(b[1])
	if !ok {
		r.counts.Malformed++
		return
	}
	if [4]byte(b[4:]) == [4]byte{} || ipv6 && r.cfg.NoMLD || !ipv6 && r.cfg.NoIGMP {
		return
	}
	r.counts.Requests++
	flags := byte(0)
	limit, fields := byte(0x02), byte(0x01)
	if r.cfg.LinuxFlags {
		limit, fields = 0x40, 0x80
	}
	if r.cfg.Limit {
		flags |= limit
	}
	if !r.cfg.HideAddress {
		flags |= fields
	}
	mac := r.mac(from, b[4:8])
	m := append([]byte{membershipQuery, flags}, mac[:]...)
	m = append(m, b[4:8]...)
	m = append(m, GeneralQuery(ipv6, r.robustness(), r.interval())...)
	if !r.cfg.HideAddress {
		m = append(m, gatewayFields(from)...)
	}
	r.send(from, m)
}

func gatewayFields(a netip.AddrPort) []byte {
	b := make([]byte, 18)
	binary.BigEndian.PutUint16(b, a.Port())
	addr := a.Addr().AsSlice()
	copy(b[18-len(addr):], addr)
	return b
}

func (r *Relay) interval() time.Duration {
	if r.cfg.QueryInterval == 0 {
		return 125 * time.Second
	}
	return r.cfg.QueryInterval
}

func (r *Relay) robustness() int {
	if r.cfg.Robustness == 0 {
		return 2
	}
	return r.cfg.Robustness
}

// mac is the Response MAC, of what RFC 7450 section 5.3.5 says.
func (r *Relay) mac(gateway netip.AddrPort, nonce []byte) [6]byte {
	h := hmac.New(sha256.New, r.key[:])
	if r.cfg.ByAddress {
		gateway = netip.AddrPortFrom(gateway.Addr(), 0)
	}
	h.Write(gatewayFields(gateway))
	h.Write(nonce)
	return [6]byte(h.Sum(nil))
}

// key under which an endpoint is kept.
func (r *Relay) endpointKey(from netip.AddrPort) netip.AddrPort {
	if r.cfg.ByAddress {
		return netip.AddrPortFrom(from.Addr(), 0)
	}
	return from
}

func (r *Relay) update(now time.Time, from netip.AddrPort, b []byte) {
	mac := r.mac(from, b[8:12])
	if !hmac.Equal(mac[:], b[2:8]) {
		r.counts.WrongMAC++
		return
	}
	records, err := parseReport(b[12:])
	if err == nil && r.cfg.EmptyRefused && len(records) == 1 && len(records[0].Sources) == 0 && records[0].Group.Is6() {
		err = errReport
	}
	if err != nil {
		r.counts.BadReports++
		return
	}
	r.counts.Updates++
	key := r.endpointKey(from)
	e := r.endpoints[key]
	if e == nil {
		e = &endpoint{groups: make(map[netip.Addr]*group)}
		r.endpoints[key] = e
	}
	e.to = from
	t := timers{now: now, member: time.Duration(r.robustness())*r.interval() + 10*time.Second, leave: 2 * time.Second}
	for _, record := range records {
		g := e.groups[record.Group]
		if g == nil {
			g = &group{sources: make(map[netip.Addr]time.Time)}
			e.groups[record.Group] = g
		}
		g.expire(now)
		if r.cfg.Additive {
			g.applyAdditive(t, record)
		} else {
			g.apply(t, record)
		}
		if g.empty() {
			delete(e.groups, record.Group)
		}
	}
	r.changed()
}

func (r *Relay) teardown(b []byte) {
	port, addr := binary.BigEndian.Uint16(b[12:]), netip.AddrFrom16([16]byte(b[14:]))
	if [12]byte(b[14:]) == [12]byte{} {
		addr = netip.AddrFrom4([4]byte(b[26:]))
	}
	gateway := netip.AddrPortFrom(addr, port)
	mac := r.mac(gateway, b[8:12])
	if !hmac.Equal(mac[:], b[2:8]) {
		r.counts.WrongMAC++
		return
	}
	r.counts.Teardowns++
	delete(r.endpoints, r.endpointKey(gateway))
	r.changed()
}

// Forward sends an IP packet to the gateways that want it.
func (r *Relay) Forward(now time.Time, packet []byte) {
	source, destination, ok := addresses(packet)
	if !ok {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cfg.Down || r.cfg.LargestInner > 0 && len(packet) > r.cfg.LargestInner {
		return
	}
	for _, e := range r.endpoints {
		g := e.groups[destination]
		if g == nil {
			continue
		}
		if g.expire(now); g.forwards(source) {
			r.counts.Sent++
			r.send(e.to, append([]byte{multicastData, 0}, packet...))
		}
	}
}

// A Membership is what gateways want of one group.
type Membership struct {
	Group   netip.Addr
	Exclude bool
	Sources []netip.Addr // INCLUDE: these; EXCLUDE: those that nobody wants
}

// Wanted returns what all gateways together want, by group.
func (r *Relay) Wanted(now time.Time) (wanted []Membership) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.endpoints {
		for addr, g := range e.groups {
			if g.expire(now); g.empty() {
				continue
			}
			i := slices.IndexFunc(wanted, func(m Membership) bool { return m.Group == addr })
			if i < 0 {
				i = len(wanted)
				wanted = append(wanted, Membership{Group: addr})
			}
			m := &wanted[i]
			m.Exclude = m.Exclude || g.exclude // the filter of the gateways does the rest
			for s := range g.sources {
				if !g.exclude && !slices.Contains(m.Sources, s) {
					m.Sources = append(m.Sources, s)
				}
			}
		}
	}
	for i := range wanted {
		if wanted[i].Exclude {
			wanted[i].Sources = nil
		}
		slices.SortFunc(wanted[i].Sources, netip.Addr.Compare)
	}
	slices.SortFunc(wanted, func(a, b Membership) int { return a.Group.Compare(b.Group) })
	return wanted
}

// Endpoints returns the addresses of the gateways that have memberships.
func (r *Relay) Endpoints(now time.Time) (list []netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.endpoints {
		for _, g := range e.groups {
			if g.expire(now); !g.empty() {
				list = append(list, e.to)
				break
			}
		}
	}
	slices.SortFunc(list, netip.AddrPort.Compare)
	return list
}
