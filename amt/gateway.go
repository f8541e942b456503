package amt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"example.com/mcast"
)

// Interface is the Interface of the groups of a [Gateway].
const Interface = "amt"

// A Config has the options of a [Gateway]. A nil *Config and the zero Config
// are the defaults.
type Config struct {
	// Network says by what to reach relays: "udp4", "udp6", or "" for both. The
	// groups may be of either family all the same.
	Network string

	// Ports are those of the datagrams to hand over. None: all.
	Ports []int

	// ReadBuffer is the size of a tunnel's receive buffer to ask the system for,
	// as in [mcast.Config].
	ReadBuffer int

	// AnySource allows Join of a source-specific group, as in [mcast.Config].
	AnySource bool

	// Timestamps sets the Time of messages to when the kernel got the datagram,
	// where the system tells.
	Timestamps bool

	// Methods are the ways to find relays, in the order to try them, for a
	// Gateway that was dialled without one. None: those of RFC 8777,
	// ServiceDiscovery, Anycast and SourceRecord.
	Methods []Method

	// DNS are the servers to ask. None: the system's.
	DNS []netip.AddrPort

	// Domain is where ServiceDiscovery asks. "": the domains that the system
	// completes names with, where it tells (Unix).
	Domain string

	// OnEvent, if not nil, is called for each event of a tunnel: one call at a
	// time, without a lock held, and not after Close has returned. It may make
	// requests, but must not call Close, which waits for it.
	OnEvent func(Event)

	// Logger, if not nil, is told of events too.
	Logger *slog.Logger
}

// A Gateway receives multicast through AMT relays. It has the requests and the
// reading of an [mcast.Conn], and takes datagrams to any port.
//
// Group.Interface is "" or [Interface] in requests, and Interface in what is
// returned.
//
// All methods may be called concurrently. Requests return at once: a tunnel
// that is not up yet is told when it is, and [Gateway.Memberships] shows what
// is pending.
type Gateway struct {
	cfg      Config
	resolver *resolver
	listen   func(network string) (socket, error)

	mu      sync.Mutex // of requests and tunnels; held before a tunnel's
	filter  mcast.Filter
	tunnels []*tunnel
	owners  owners // of sources, if relays are found by source
	closed  chan struct{}
	running sync.WaitGroup

	inbox
	drains
	counters counters

	eventMu sync.Mutex
}

// Dial keeps a tunnel to a relay: "192.52.193.1", "[2001:3::1]:2268",
// "relay.example.net". It returns when a relay there takes memberships, or with
// ctx. Of the addresses that a name has, those that fail are replaced by
// others, then and later.
//
// With "", nothing is dialled yet: with the first request for a source, relays
// are looked for by Config.Methods, and each source that has other relays gets a
// tunnel of its own. An any-source Join then uses ServiceDiscovery and Anycast.
//
// The error is an [*mcast.OpError]: [mcast.ErrAddress] for what cannot be a
// relay, [ErrNoRelay] and that of ctx if none answers, [ErrRefused] if the only
// one takes no new gateways, [errors.ErrUnsupported] where there is no UDP, or
// what the system said.
func Dial(ctx context.Context, relay string, cfg *Config) (*Gateway, error) {
	g, err := newGateway(cfg)
	if err == nil {
		err = g.dial(ctx, relay)
	}
	if err != nil {
		return nil, &mcast.OpError{Op: "Dial", Err: err}
	}
	return g, nil
}

func newGateway(cfg *Config) (*Gateway, error) {
	switch runtime.GOOS {
	case "js", "wasip1", "plan9":
		return nil, fmt.Errorf("AMT on %s: %w", runtime.GOOS, errors.ErrUnsupported)
	}
	g := &Gateway{closed: make(chan struct{})}
	if cfg != nil {
		g.cfg = *cfg
	}
	if g.cfg.Logger == nil {
		g.cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if g.cfg.Methods == nil {
		g.cfg.Methods = defaultMethods
	}
	switch g.cfg.Network {
	case "", "udp4", "udp6":
	default:
		return nil, net.UnknownNetworkError(g.cfg.Network)
	}
	for _, p := range g.cfg.Ports {
		if p < 1 || p > 0xffff {
			return nil, fmt.Errorf("%w: %d is no port", mcast.ErrAddress, p)
		}
	}
	g.resolver = newResolver(g.cfg.DNS, g.cfg.Domain)
	g.listen = g.listenUDP
	g.inbox.init()
	return g, nil
}

// dial makes the one tunnel of a Gateway that was given a relay.
func (g *Gateway) dial(ctx context.Context, relay string) error {
	if relay == "" {
		g.owners.init()
		return nil
	}
	host, port, err := splitRelay(relay)
	if err != nil {
		return err
	}
	var lookup lookup = func(ctx context.Context) ([]candidate, error) { return g.relayAddresses(ctx, host, port) }
	candidates, err := lookup(ctx)
	if err != nil {
		return err
	}
	if _, err := netip.ParseAddr(host); err == nil {
		lookup = nil // it will never say anything else
	}
	g.mu.Lock()
	t := g.startTunnel(candidates, lookup, &g.filter)
	g.mu.Unlock()
	if err := t.probe(ctx); err != nil {
		g.Close()
		return err
	}
	return nil
}

// splitRelay takes a relay's port off, if it has one.
func splitRelay(relay string) (host string, port uint16, err error) {
	if a, err := netip.ParseAddrPort(relay); err == nil {
		return a.Addr().String(), a.Port(), nil
	}
	if _, err := netip.ParseAddr(strings.Trim(relay, "[]")); err == nil {
		return strings.Trim(relay, "[]"), Port, nil
	}
	host, service, err := net.SplitHostPort(relay)
	if err != nil {
		return relay, Port, nil
	}
	n, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("%w: %q: the port is a number up to 65535", mcast.ErrAddress, relay)
	}
	return host, uint16(n), nil
}

// relayAddresses returns where a relay with that name may be.
func (g *Gateway) relayAddresses(ctx context.Context, host string, port uint16) (candidates []candidate, err error) {
	addrs := []netip.Addr{}
	if a, e := netip.ParseAddr(host); e == nil {
		addrs = append(addrs, a.Unmap())
	} else if addrs, err = g.resolver.addresses(ctx, host); err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if usableRelay(a) && port != 0 {
			candidates = append(candidates, candidate{addr: netip.AddrPortFrom(a, port)})
		}
	}
	if candidates = g.reachable(candidates); len(candidates) == 0 {
		return nil, fmt.Errorf("%w: %s has no address that can be a relay's by %q", mcast.ErrAddress, host, g.cfg.Network)
	}
	return candidates, nil
}

// reachable leaves out the candidates that Config.Network does not reach.
func (g *Gateway) reachable(candidates []candidate) []candidate {
	return slices.DeleteFunc(candidates, func(c candidate) bool {
		return g.cfg.Network == "udp4" && !c.addr.Addr().Is4() || g.cfg.Network == "udp6" && !c.addr.Addr().Is6()
	})
}

// Join asks for a group from any source: EXCLUDE() in the terms of RFC 3376
// section 2.
//
// The error is that of [mcast.Conn.Join]; [mcast.ErrAddress] also for a group
// that never leaves its link.
func (g *Gateway) Join(group mcast.Group) error { return g.do(mcast.OpJoin, group, netip.Addr{}) }

// JoinSource asks for a channel, a group from one source. The error is that of
// [mcast.Conn.JoinSource], or of [Gateway.Join] for the group.
func (g *Gateway) JoinSource(group mcast.Group, source netip.Addr) error {
	return g.do(mcast.OpJoinSource, group, source)
}

// Block turns off one source of a group that was joined for any source. The
// error is that of [mcast.Conn.Block].
func (g *Gateway) Block(group mcast.Group, source netip.Addr) error {
	return g.do(mcast.OpBlock, group, source)
}

// Unblock turns a blocked source on again. The error is that of
// [mcast.Conn.Unblock].
func (g *Gateway) Unblock(group mcast.Group, source netip.Addr) error {
	return g.do(mcast.OpUnblock, group, source)
}

// Leave ends the membership of a group, with all its sources. The error is that
// of [mcast.Conn.Leave].
func (g *Gateway) Leave(group mcast.Group) error { return g.do(mcast.OpLeave, group, netip.Addr{}) }

// LeaveSource removes one source of a group. The error is that of
// [mcast.Conn.LeaveSource].
func (g *Gateway) LeaveSource(group mcast.Group, source netip.Addr) error {
	return g.do(mcast.OpLeaveSource, group, source)
}

func (g *Gateway) do(op mcast.Op, group mcast.Group, source netip.Addr) error {
	fail := func(err error) error {
		e := &mcast.OpError{Op: op.String(), Group: group, Err: err}
		if op != mcast.OpJoin && op != mcast.OpLeave {
			e.Source = source
		}
		return e
	}
	group, err := onTunnel(group)
	if err != nil {
		return fail(err)
	}
	source = source.Unmap()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isClosed() {
		return fail(net.ErrClosed)
	}
	r := mcast.Request{Op: op, Group: group, Source: source}
	if err := g.filter.Check(r); err != nil {
		return err
	}
	if op == mcast.OpJoin {
		if err := g.checkSSM(group); err != nil {
			return fail(err)
		}
	}
	if err := g.filter.Apply(r); err != nil {
		return err
	}
	g.share(group)
	return nil
}

// SetFilter replaces the filter of a group at once, whatever it was. The error
// is that of [mcast.Conn.SetFilter], or of [Gateway.Join] for the group.
func (g *Gateway) SetFilter(group mcast.Group, mode mcast.Mode, sources ...netip.Addr) error {
	fail := func(err error) error { return &mcast.OpError{Op: "SetFilter", Group: group, Err: err} }
	group, err := onTunnel(group)
	if err != nil {
		return fail(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isClosed() {
		return fail(net.ErrClosed)
	}
	if mode == mcast.Exclude {
		if err := g.checkSSM(group); err != nil {
			return fail(err)
		}
	}
	if err := g.filter.Set(mcast.Membership{Group: group, Mode: mode, Sources: sources}); err != nil {
		return err
	}
	g.share(group)
	return nil
}

// onTunnel gives a group the interface that all groups of a Gateway have.
func onTunnel(group mcast.Group) (mcast.Group, error) {
	if group.Interface != "" && group.Interface != Interface {
		return group, fmt.Errorf("%w: groups of a tunnel are on %q, not on %q", mcast.ErrInterface, Interface, group.Interface)
	}
	group.Interface = Interface
	if group.Addr = group.Addr.Unmap(); group.Addr.IsMulticast() && stayingGroup(group.Addr) {
		return group, fmt.Errorf("%w: %v never leaves its link, so no relay has it", mcast.ErrAddress, group.Addr)
	}
	return group, nil
}

// checkSSM refuses an any-source membership of a source-specific group, as a
// Conn does (RFC 4604 section 2.2.1).
func (g *Gateway) checkSSM(group mcast.Group) error {
	if g.cfg.AnySource || !group.IsSSM() {
		return nil
	}
	return fmt.Errorf("%w: %v is in a source-specific range (RFC 4607): use JoinSource, or Config.AnySource where relays map sources to groups", mcast.ErrSSM, group.Addr)
}

// share brings what was asked for of a group to the tunnels.
func (g *Gateway) share(group mcast.Group) {
	m, _ := g.filter.Membership(group)
	if g.owners.bySource == nil {
		for _, t := range g.tunnels { // there is one, which has it all
			t.set(m)
		}
		return
	}
	g.shareByOwner(m)
}

// Memberships returns the memberships, sorted by group. Those are pending of
// which no relay has been told yet.
func (g *Gateway) Memberships() []mcast.Membership {
	g.mu.Lock()
	defer g.mu.Unlock()
	ms := g.filter.Memberships()
	for i := range ms {
		ms[i].Pending = g.pending(ms[i])
	}
	return ms
}

func (g *Gateway) pending(m mcast.Membership) bool {
	for _, t := range g.tunnels {
		if _, has := t.filter.Membership(m.Group); has && t.isUp(familyOf(m.Group.Addr)) {
			return false
		}
	}
	return true
}

// Relays returns the relays that tunnels are up to.
func (g *Gateway) Relays() (relays []netip.AddrPort) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, t := range g.tunnels {
		if relay := t.relay.Load(); relay != nil && (t.isUp(0) || t.isUp(1)) && !slices.Contains(relays, *relay) {
			relays = append(relays, *relay)
		}
	}
	return relays
}

// Repair looks for relays anew and tells them all memberships, as is done by
// itself when a relay fails: for a program that knows that the network has
// changed.
func (g *Gateway) Repair() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.isClosed() {
		return &mcast.OpError{Op: "Repair", Err: net.ErrClosed}
	}
	for _, t := range g.tunnels {
		t.do(func(now time.Time) { t.session.restart(now) })
	}
	return nil
}

// Close leaves all groups and closes the tunnels. Reads that are under way
// return with [net.ErrClosed].
func (g *Gateway) Close() error {
	g.mu.Lock()
	if g.isClosed() {
		g.mu.Unlock()
		return &mcast.OpError{Op: "Close", Err: net.ErrClosed}
	}
	close(g.closed)
	g.owners.cancelAll()
	for _, t := range g.tunnels {
		t.close()
	}
	g.tunnels = nil
	g.mu.Unlock()
	g.running.Wait()
	for _, m := range g.filter.Memberships() {
		g.filter.Set(mcast.Membership{Group: m.Group})
	}
	return nil
}

func (g *Gateway) isClosed() bool {
	select {
	case <-g.closed:
		return true
	default:
		return false
	}
}

// notify tells the logger and the program of an event.
func (g *Gateway) notify(e Event) {
	g.eventMu.Lock()
	defer g.eventMu.Unlock()
	level := slog.LevelInfo
	if e.Err != nil {
		level = slog.LevelWarn
	}
	g.cfg.Logger.Log(context.Background(), level, "amt: "+e.Kind.String(), "relay", e.Relay, "address", e.Address, "error", e.Err)
	if g.cfg.OnEvent != nil && !g.isClosed() {
		g.cfg.OnEvent(e)
	}
}

// Stats are the counts of a [Gateway] since it was dialled.
type Stats struct {
	Received   uint64 // datagrams handed over
	Filtered   uint64 // datagrams that nobody asked for, or to other ports
	Dropped    uint64 // by the kernel for want of receive buffer; Linux only, 0 elsewhere
	Unread     uint64 // dropped because the program did not read while an answer of the relay was awaited
	ReadBuffer int    // bytes of receive buffer granted to a tunnel; 0: unknown

	// What came to the tunnels' sockets and was no use.
	Foreign    uint64 // from elsewhere than the relay
	Malformed  uint64 // of wrong version, type or length, not UDP, no usable addresses; cut datagrams
	Checksum   uint64 // with a wrong checksum
	Fragments  uint64 // datagrams of which not all parts came
	Unexpected uint64 // answers to nothing that was asked: late, doubled or forged
}

type counters struct {
	received, filtered, dropped, unread, foreign, malformed, checksum, fragments, unexpected atomic.Uint64
}

// Stats returns the counts so far. It may be called after Close.
func (g *Gateway) Stats() Stats {
	c := &g.counters
	s := Stats{
		Received: c.received.Load(), Filtered: c.filtered.Load(), Dropped: c.dropped.Load(), Unread: c.unread.Load(),
		Foreign: c.foreign.Load(), Malformed: c.malformed.Load(), Checksum: c.checksum.Load(),
		Fragments: c.fragments.Load(), Unexpected: c.unexpected.Load(),
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, t := range g.tunnels {
		t.mu.Lock()
		for _, d := range t.drains {
			if d != nil {
				kernel := d.socket.Stats()
				s.Dropped += kernel.Dropped
				s.ReadBuffer = kernel.ReadBuffer
			}
		}
		t.mu.Unlock()
	}
	return s
}

// countDrop counts a packet from a relay that is no use.
func (c *counters) countDrop(err error) {
	switch {
	case errors.Is(err, errChecksum):
		c.checksum.Add(1)
	case errors.Is(err, errUnexpected):
		c.unexpected.Add(1)
	case errors.Is(err, errIncomplete), errors.Is(err, errFragment): // the reassembler counts
	default:
		c.malformed.Add(1)
	}
}
