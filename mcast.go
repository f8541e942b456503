// Package mcast receives multicast, source-specific (SSM) or any-source
// (ASM), on Linux, macOS and Windows alike. Its promise: what you joined is
// what you get, on every system.
//
// A [Conn] wraps a UDP socket. [Conn.JoinSource] joins a channel, a group from
// one source (RFC 4607), and [Conn.Join] a group from any source, from which
// [Conn.Block] takes sources out again. [Conn.ReadMessage] hands over a
// datagram only if the filter built from these requests (RFC 3376 section 2)
// lets its interface, group and source through.
//
//	ch, err := mcast.ParseChannel("10.0.0.1@232.1.1.1%eth0:5000")
//	if err != nil {
//		return err
//	}
//	c, err := mcast.ListenChannel(ch, nil)
//	if err != nil {
//		return err
//	}
//	defer c.Close()
//	for m, err := range c.Messages(ctx, 1500) {
//		…
//	}
//
// # Requests
//
// A group on an interface has no membership, EXCLUDE(X), all sources but those
// in X, or INCLUDE(I), the sources in I alone. Each request is checked against
// that before the system hears of it:
//
//	               no membership   EXCLUDE(X)                INCLUDE(I)
//	Join           EXCLUDE()       ErrJoined                 ErrMode
//	JoinSource s   INCLUDE(s)      ErrMode                   adds s, or ErrJoined
//	Block s        ErrNotJoined    adds s, or ErrBlocked     ErrMode
//	Unblock s      ErrNotJoined    removes s, or ErrNotBlocked  ErrMode
//	Leave          ErrNotJoined    no membership             no membership
//	LeaveSource s  ErrNotJoined    ErrMode                   removes s, or ErrNotJoined
//
// A request that is refused or fails changes nothing, neither the filter nor
// the system. The error is an [*OpError]. A refusal also matches the error
// number that the system's documentation has for it ([UnixRules],
// [WindowsRules]), so that code written against the socket options keeps
// working.
//
// # Memberships that survive
//
// A membership belongs to the name of an interface. Systems lose memberships in
// silence: when the interface goes away and comes back, when it was down, when
// its carrier was, when the machine slept. While there are memberships,
// interfaces are watched, and what was lost is made anew; while there is no
// such interface the membership is pending. Config.OnEvent and Config.Logger
// tell of it. Config.NoWatch turns that off; [Conn.Repair] does the same on
// request. With Config.WaitForInterface a program may start before its
// interface does. [Group].Interface says how to join on every interface, or
// where the routing table leads.
//
// # Many groups
//
// Kernels limit the memberships of a socket: Linux to 20 IPv4 groups and 10
// sources of each. A [Pool] makes the same requests over as many sockets as it
// takes.
//
// # Coming from golang.org/x/net
//
//	ipv4.NewPacketConn(c)            New(c, nil)
//	p.JoinGroup(ifi, group)          c.Join(Group{addr, ifi.Name})
//	p.LeaveGroup(ifi, group)         c.Leave(Group{addr, ifi.Name})
//	p.JoinSourceSpecificGroup        c.JoinSource(Group{addr, ifi.Name}, source)
//	p.LeaveSourceSpecificGroup       c.LeaveSource(Group{addr, ifi.Name}, source)
//	p.ExcludeSourceSpecificGroup     c.Block(Group{addr, ifi.Name}, source)
//	p.IncludeSourceSpecificGroup     c.Unblock(Group{addr, ifi.Name}, source)
//	p.JoinGroup(nil, group)          c.Join(Group{Addr: addr})
//	for all interfaces: p.JoinGroup  c.Join(Group{addr, "*"})
//	p.SetControlMessage, p.ReadFrom  c.ReadMessage: Message.Group, Index, HopLimit
//	p.ReadBatch, p.WriteBatch        c.ReadBatch, c.WriteBatch
//	p.WriteTo(b, &ControlMessage{})  c.WriteVia(b, to, ifname, source)
//	p.SetMulticastInterface(ifi)     c.SetMulticastInterface(ifi.Name)
//
// What differs: a Conn hands over multicast only, unless Config.Unicast is set.
// Join of a source-specific group is [ErrSSM]. A socket that is bound to a
// unicast address hears no groups, and says so. Control messages and the
// options for them belong to the Conn. Requests out of order are refused alike
// on every system, with the old error numbers. [Listen] sets the options for
// sharing a port; a socket for [New] gets them in [net.ListenConfig].
//
// # Containers
//
// A container often has no route to groups and no default route: a request
// without an interface then finds "no route". Name the interface, eth0 in most,
// or "*". Multicast from outside reaches a container only on the host's network
// or a macvlan or ipvlan interface; a bridge network does not route it.
//
// # Linux notes
//
// Where a group is joined on several interfaces in IPv6, the kernel applies the
// filter of one to what comes in by all. Each then gets the union of the
// group's filters, which is what [Conn.SystemFilter] shows and the network is
// told; what is handed over is exact all the same. A Conn for each interface
// avoids it.
//
// The kernel drops what the routing table does not expect on an interface, if
// net.ipv4.conf.*.rp_filter is 1.
//
// # macOS notes
//
// Some IPv4 requests are answered by the size of a message in place of an error
// number, and succeed when they are made again. What such a try announced is
// never taken back while the group is joined: routers and switches may be asked
// for more than the filter lets through, or, after a filter was replaced, for
// less; leaving the group and joining it again mends that. A group that is left
// and joined again rests for 50 ms in between, since the system would forget
// it otherwise; the request waits. A blocked source is still received by the
// socket, and dropped here. A program without the permission for the local
// network hears nothing (macOS 15).
//
// # Windows notes
//
// A Conn on a group is on the wildcard address. [Conn.SetMulticastLoopback] is
// the receiver's. Config.GRO has no effect: drivers are known that glue
// datagrams together without saying so.
//
// # Other systems
//
// On Solaris and illumos [Conn.SystemFilter] is not to be had, and
// [Conn.SetFilter] makes single requests. OpenBSD, NetBSD, DragonFly and AIX
// can join and leave groups, but not choose sources. Plan 9, js and wasip1 can
// do neither. What a system cannot do is an error that matches
// [errors.ErrUnsupported].
package mcast

import (
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"example.com/mcast/internal/netif"
)

// A Config has the options of a [Conn]. A nil *Config and the zero Config are
// the defaults.
type Config struct {
	// ReadBuffer is the size of the socket's receive buffer to ask the system
	// for, in bytes. 0 asks for 4 MiB; less than 0 leaves the system's default.
	// What was granted is in [Stats], and logged if it is less.
	ReadBuffer int

	// Unicast also hands over datagrams that were sent to a unicast or the
	// broadcast address. By default they are dropped.
	Unicast bool

	// AnySource allows Join of a source-specific group, for networks whose
	// routers map such groups to sources (RFC 4604 section 2.2.3). By default
	// that is [ErrSSM].
	AnySource bool

	// Timestamps sets [Message].Time to when the kernel got the datagram, where
	// the system tells (Linux, macOS, FreeBSD).
	Timestamps bool

	// HopLimit sets [Message].HopLimit to the TTL or hop limit of each datagram.
	HopLimit bool

	// GroupStats counts by membership; see [Conn.GroupStats].
	GroupStats bool

	// GRO lets the system hand over several datagrams of a flow as one (UDP_GRO
	// on Linux). They come out one [Message] each, in order; ReadBatch copies
	// them, [Conn.ReadSlab] does not. Elsewhere this changes nothing.
	GRO bool

	// Coalesce makes a reader that was woken for less than it has room for wait
	// that long, once, for more, on Linux, where one call reads many. At high
	// rates this saves a Pool most of the cost of a datagram, for that much
	// delay, which may be rounded up to a millisecond. A Conn saves less: its
	// socket is in the poller of Go's runtime, which wakes for each datagram all
	// the same. The receive buffer must hold what comes in the meantime: 100,000
	// datagrams a second for 1 ms are 100, and Linux counts 2,304 bytes for one
	// of up to 1,400.
	Coalesce time.Duration

	// BusyPoll makes a reader that finds nothing look again for that long before
	// it sleeps; less than 0: for ever. A datagram is then handed over some
	// microseconds after it came, instead of some tens; it costs a processor for
	// as long, and helps only where there is one to spare. Of several readers
	// one looks at a time. On Linux the socket also asks the network card by
	// itself (SO_BUSY_POLL), where the program may (CAP_NET_ADMIN). A Pool looks
	// again on Linux only. There the sockets of a Pool leave the runtime's poller
	// alone; that of a Conn wakes one of its threads for each datagram, which is
	// to be had on a third processor only, or by a GOMAXPROCS that leaves none
	// idle.
	BusyPoll time.Duration

	// WaitForInterface makes a join with no usable interface yet no error: there
	// is none of that name, it takes no memberships because it is down or has no
	// address, or no route picks one. The membership is pending until there is;
	// with NoWatch, until Repair.
	WaitForInterface bool

	// Control, if not nil, is called for each socket before it is bound, as
	// [net.ListenConfig].Control is; a Pool's during a join, with no lock held.
	// [New] does not call it.
	Control func(network, address string, c syscall.RawConn) error

	// NoWatch leaves memberships as the system has them. By default the
	// interfaces are watched while there are memberships, and what a change
	// loses is mended: a membership belongs to an interface's name. It is kept,
	// pending, while there is no such interface, and made anew with its whole
	// filter when there is one; one for which the routing table chose the
	// interface follows the route then. It is made anew, too, where the system
	// loses it in silence, after the interface or its carrier were down, or the
	// machine slept.
	NoWatch bool

	// OnEvent, if not nil, is called for each membership that is lost, pending
	// or restored, and for each interface with memberships that goes down or
	// comes up: one call at a time, without a lock held, and not after Close has
	// returned. It may make requests, but must not call Close, which waits for
	// it.
	OnEvent func(Event)

	// Logger, if not nil, is told what the program cannot see from errors.
	Logger *slog.Logger
}

// withDefaults is a copy of a Config that may be nil.
func (cfg *Config) withDefaults() *Config {
	var own Config
	if cfg != nil {
		own = *cfg
	}
	if own.Logger == nil {
		own.Logger = slog.New(slog.DiscardHandler)
	}
	return &own
}

// readBuffer is the size to ask for; less than 0: none.
func (cfg *Config) readBuffer() int {
	if cfg.ReadBuffer == 0 {
		return 4 << 20
	}
	return cfg.ReadBuffer
}

// A Conn is a UDP socket with memberships of multicast groups. It is a
// [net.PacketConn] and a [syscall.Conn]. The zero Conn is not open.
//
// All methods may be called concurrently. Requests are carried out one after
// the other; readers never wait for them.
type Conn struct {
	requests
	udp     *net.UDPConn
	sock    socket
	ledger  ledger
	local   net.Addr
	granted atomic.Int64  // receive buffer, bytes
	dropped atomic.Uint64 // by the kernel, as of Close

	receiver
	sender
}

var (
	_ net.PacketConn = (*Conn)(nil)
	_ syscall.Conn   = (*Conn)(nil)
)

// oneSocket is the holder of a Conn.
type oneSocket [1]*ledger

func (s *oneSocket) ledgers(netip.Addr) []*ledger { return s[:] }

func (s *oneSocket) reconcile(group netip.Addr, targets []target) error {
	return s[0].reconcile(group, targets)
}

func (s *oneSocket) hearings(yield func(groupIndex, *hearing) bool) { s[0].heard.all(yield) }

func (s *oneSocket) tidy() {}

// Listen opens a UDP socket for memberships. The network is "udp4", "udp6", or
// "udp", which takes the family of the address. The address is a port on
// every group that will be joined, ":5000", or a group and a port,
// "232.1.1.1:5000" or "[ff3e::8000:1]:5000"; a zone names an interface.
// "224.0.0.0:5353" and "[ff02::]:5353" mean every group, as in package net.
//
// A Conn on a group refuses to join another one: it could never hear it. Where
// the system cannot bind to a group (Windows), or would tie the socket to an
// interface's index (link-local IPv6 groups), the Conn does the same on a
// wildcard socket. A Conn on a unicast address is for sending from there; it
// refuses all joins.
//
// Several programs may listen on one port, unless it is 0. IPv6 sockets are for
// IPv6 only.
//
// The error is an [*OpError]: [ErrAddress] or [ErrInterface] for an address
// that cannot be listened on, or what the system said.
func Listen(network, address string, cfg *Config) (*Conn, error) {
	c, err := listen(network, address, cfg)
	if err != nil {
		return nil, opError("Listen", Group{}, netip.Addr{}, err)
	}
	return c, nil
}

func listen(network, address string, cfg *Config) (*Conn, error) {
	at, err := parseListen(network, address)
	if err != nil {
		return nil, err
	}
	return openConn(at, cfg)
}

// openConn opens a socket bound to at.
func openConn(at endpoint, cfg *Config) (*Conn, error) {
	cfg = cfg.withDefaults()
	udp, err := open(at, cfg.Control)
	if err != nil {
		return nil, err
	}
	c, err := wrap(udp, at, cfg)
	if err != nil {
		udp.Close()
	}
	return c, err
}

// ListenChannel opens a socket for a channel, and joins it: Listen on its
// group and port, then JoinSource, or Join if it has no source.
//
// The error is an [*OpError]: that of [Listen], [Conn.JoinSource] or
// [Conn.Join]; [ErrAddress] if the channel has no port.
func ListenChannel(ch Channel, cfg *Config) (*Conn, error) {
	c, err := listenChannel(ch, cfg)
	if err != nil {
		return nil, opError("ListenChannel", ch.Group, ch.Source, err)
	}
	return c, nil
}

func listenChannel(ch Channel, cfg *Config) (*Conn, error) {
	g, _, err := unzone(ch.Group, netip.Addr{})
	if err == nil {
		err = checkGroup(g)
	}
	if err != nil {
		return nil, err
	}
	if ch.Port < 1 || ch.Port > 65535 {
		return nil, because(ErrAddress, "the channel has no port: say which, as in %v", Channel{ch.Group, ch.Source, 5000})
	}
	at := endpoint{ipv6: g.Addr.Is6(), group: Group{Addr: g.Addr}, port: ch.Port}
	c, err := openConn(at, cfg)
	if err != nil {
		return nil, err
	}
	if ch.Source.IsValid() {
		err = c.JoinSource(ch.Group, ch.Source)
	} else {
		err = c.Join(ch.Group)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// An endpoint is what a socket is bound to: a group, a unicast address, or
// neither.
type endpoint struct {
	ipv6    bool
	group   Group
	unicast netip.Addr // with its zone
	port    int
	reuse   bool // others may listen there even if the system picks the port

	namespace uint64 // the network namespace that the socket must be in; 0: any
}

// errElsewhere is what a socket in another network namespace is refused with.
var errElsewhere = errors.New("the socket is in another network namespace")

// addrPort is the address to bind to; the group if the system can do that.
func (at endpoint) addrPort(groups bool) netip.AddrPort {
	a := netip.IPv4Unspecified()
	if at.ipv6 {
		a = netip.IPv6Unspecified()
	}
	switch {
	case at.unicast.IsValid():
		a = at.unicast
	case at.group.Addr.IsValid() && groups && !linkScoped(at.group.Addr):
		a = at.group.Addr
	}
	return netip.AddrPortFrom(a, uint16(at.port))
}

// network is "udp4" or "udp6".
func (at endpoint) network() string {
	if at.ipv6 {
		return "udp6"
	}
	return "udp4"
}

// shared reports whether others may listen there too.
func (at endpoint) shared() bool { return (at.port != 0 || at.reuse) && !at.unicast.IsValid() }

func parseListen(network, address string) (at endpoint, err error) {
	if network != "udp4" && network != "udp6" && network != "udp" {
		return at, net.UnknownNetworkError(network)
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return at, &reason{kind: ErrAddress, cause: err, text: `want "group:port" or ":port"`}
	}
	if at.port, err = net.LookupPort(network, service); err != nil {
		return at, &reason{kind: ErrAddress, cause: err, text: "the port is a number up to 65535"}
	}
	if host == "" {
		if network == "udp" {
			return at, because(ErrAddress, `%q has no address that tells IPv4 from IPv6: use the network "udp4" or "udp6"`, address)
		}
		at.ipv6 = network == "udp6"
		return at, nil
	}
	if host == "224.0.0.0" || host == "ff02::" { // as in package net
		at.ipv6 = host == "ff02::"
	} else if g, err := parseGroup(host); err == nil {
		if g.Interface == everyInterface {
			return at, because(ErrInterface, "a socket is not bound to every interface: leave out the %%*")
		}
		at.ipv6, at.group = g.Addr.Is6(), g
	} else if errors.Is(err, ErrInterface) {
		return at, err
	} else {
		a, err := netip.ParseAddr(host)
		if err != nil {
			return at, because(ErrAddress, "%q is not an address", host)
		}
		if a = a.Unmap(); !a.IsUnspecified() {
			at.unicast = a
		}
		at.ipv6 = a.Is6()
	}
	if network != "udp" && network != at.network() {
		return at, because(ErrAddress, "%v is not an address of %s", host, network)
	}
	return at, nil
}

// New wraps a UDP socket, and closes it with the [Conn]. The socket must not be
// read from or written to elsewhere. Memberships that it has already stay as
// they are and are not the Conn's: it hands over nothing of them, joining such a
// group is [ErrJoined], and leaving it [ErrNotJoined].
//
// The error is an [*OpError]: [ErrAddress] for a socket that is connected or
// takes both IPv4 and IPv6, and [net.ErrClosed] for a closed one. Then the
// socket is as it was.
func New(c *net.UDPConn, cfg *Config) (*Conn, error) {
	at, err := inspect(c)
	if err == nil {
		var conn *Conn
		if conn, err = wrap(c, at, cfg.withDefaults()); err == nil {
			conn.ledger.others = true
			return conn, nil
		}
	}
	return nil, opError("New", Group{}, netip.Addr{}, err)
}

// inspect finds out what a socket is bound to.
func inspect(c *net.UDPConn) (at endpoint, err error) {
	if c == nil {
		return at, because(ErrAddress, "no socket")
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return at, err
	}
	if err := raw.Control(func(uintptr) {}); err != nil {
		return at, err
	}
	if c.RemoteAddr() != nil {
		return at, because(ErrAddress, "the socket is connected to %v and hears nobody else: use net.ListenUDP", c.RemoteAddr())
	}
	local, _ := c.LocalAddr().(*net.UDPAddr)
	if local == nil {
		return at, because(ErrAddress, "the socket is not bound: use net.ListenUDP")
	}
	both := false
	at.port = local.Port
	at.ipv6, both = familyOfSocket(raw, local.IP.To4() == nil)
	a := local.AddrPort().Addr().Unmap()
	switch {
	case at.ipv6 && (a.Is4() || both && a.IsUnspecified()):
		err = because(ErrAddress, `the socket takes both IPv4 and IPv6: use net.ListenUDP with "udp4" or "udp6"`)
	case a.IsMulticast():
		at.group.Addr, at.group.Interface = a.WithZone(""), a.Zone()
	case !a.IsUnspecified():
		at.unicast = a
	}
	return at, err
}

// wrap makes a Conn of a socket bound to at.
func wrap(udp *net.UDPConn, at endpoint, cfg *Config) (*Conn, error) {
	raw, err := udp.SyscallConn()
	if err != nil {
		return nil, err
	}
	c := &Conn{udp: udp, local: udp.LocalAddr(), sock: newSocket(udp, raw)}
	c.init(hostSystem, netif.HostOf(raw), at, cfg)
	if c.bound.Interface != "" {
		// As in a request.
		if c.bound.Interface, err = c.canonical(c.bound.Interface); err != nil {
			return nil, err
		}
		if _, err := c.locate(nil, c.bound, sourceFilter{}, netip.Addr{}); err != nil && !cfg.WaitForInterface {
			return nil, err
		}
	}
	c.ledger = newLedger(hostSystem, c.sock, c.host, at.ipv6)
	c.sockets = &oneSocket{&c.ledger}
	c.events = &events{cfg: cfg}
	local, ok := c.local.(*net.UDPAddr)
	if ok {
		at.port = local.Port
		if at.group.Addr.IsValid() {
			c.local = &net.UDPAddr{IP: at.group.Addr.AsSlice(), Port: local.Port, Zone: at.group.Interface}
		}
	}
	c.sender.open(udp, at.ipv6)
	c.follow = c.followSender
	if err := c.prepare(raw, at.port); err != nil {
		return nil, fmt.Errorf("group and interface of datagrams: %w", err)
	}
	c.askForReadBuffer(cfg.readBuffer())
	return c, nil
}

// init sets what does not change.
func (q *requests) init(p *platform, h netif.Host, at endpoint, cfg *Config) {
	q.platform, q.host, q.cfg = p, h, cfg
	q.ipv6, q.bound, q.to = at.ipv6, at.group, at.unicast
	q.opened, q.ending = true, make(chan struct{})
}

func newLedger(p *platform, sock socket, h netif.Host, ipv6 bool) ledger {
	return ledger{ipv6: ipv6, kernel: kernel{platform: p, sock: sock, host: h, guard: guard}}
}

// askForReadBuffer asks for a receive buffer and says if it got less.
func (c *Conn) askForReadBuffer(want int) {
	if want > 0 {
		// Some systems refuse what is too much, others give what they can.
		for n := want; n >= 64<<10 && growReadBuffer(c.udp, n) != nil; n /= 2 {
		}
	}
	granted := readBuffer(c.udp)
	c.granted.Store(int64(granted))
	if want > 0 && granted < want {
		c.events.warn("mcast: receive buffer is smaller than asked for", "asked", want, "granted", granted, "knob", readBufferKnob)
	}
}

// SetReadBuffer asks the system for a receive buffer of that many bytes, as
// Config.ReadBuffer does; [Stats] has what was granted.
func (c *Conn) SetReadBuffer(bytes int) error {
	var err error
	switch {
	case c.udp == nil:
		err = errNotOpen
	case bytes <= 0:
		err = because(os.ErrInvalid, "a buffer has at least one byte, not %d", bytes)
	default:
		if err = growReadBuffer(c.udp, bytes); err == nil {
			c.granted.Store(int64(readBuffer(c.udp)))
			return nil
		}
	}
	return opError("SetReadBuffer", Group{}, netip.Addr{}, err)
}

// hostSystem is the platform that the program runs on.
var hostSystem = hostPlatform()

// Join makes the socket a member of a group on an interface, for any source:
// EXCLUDE() in the terms of RFC 3376 section 2. See [Group] for
// what its Interface means.
//
// The error is an [*OpError]: [ErrJoined] if the group is joined already,
// [ErrMode] if sources of it are, [ErrSSM] for a source-specific group, which
// takes JoinSource, [ErrAddress], [ErrInterface], [ErrLimit], or what the
// system said. Then nothing has changed.
func (c *Conn) Join(g Group) error { return c.do(OpJoin, g, netip.Addr{}) }

// JoinSource makes the socket a member of a channel, a group from one source:
// it adds the source to INCLUDE (RFC 4607, RFC 3678 section 4.1.3). See [Group]
// for what its Interface means.
//
// The error is an [*OpError]: [ErrJoined] if this source is joined already,
// [ErrMode] if the group is for any source, [ErrAddress], [ErrInterface],
// [ErrLimit], or what the system said. Then nothing has changed.
func (c *Conn) JoinSource(g Group, source netip.Addr) error { return c.do(OpJoinSource, g, source) }

// Block turns off one source of a group that was joined for any source: it
// adds the source to EXCLUDE (RFC 3678 section 4.1.2).
//
// The error is an [*OpError]: [ErrNotJoined] if the group is not joined,
// [ErrBlocked] if the source is off already, [ErrMode] if sources were joined
// one by one, [ErrAddress], [ErrInterface], [ErrLimit], or what the system
// said. Then nothing has changed.
func (c *Conn) Block(g Group, source netip.Addr) error { return c.do(OpBlock, g, source) }

// Unblock turns a blocked source on again: it removes the source from EXCLUDE
// (RFC 3678 section 4.1.2).
//
// The error is an [*OpError]: [ErrNotJoined] if the group is not joined,
// [ErrNotBlocked] if the source is not off, [ErrMode] if sources were joined
// one by one, [ErrAddress], [ErrInterface], or what the system said. Then
// nothing has changed.
func (c *Conn) Unblock(g Group, source netip.Addr) error { return c.do(OpUnblock, g, source) }

// Leave ends the membership of a group, with all its sources (RFC 3678 section
// 4.1.1). A membership on an interface that is gone can be left too, by its name.
//
// The error is an [*OpError]: [ErrNotJoined] if there is no membership,
// [ErrAddress], [ErrInterface], or what the system said. Then nothing has
// changed.
func (c *Conn) Leave(g Group) error { return c.do(OpLeave, g, netip.Addr{}) }

// LeaveSource removes one source from INCLUDE (RFC 3678 section 4.1.3). With
// the last one the membership ends.
//
// The error is an [*OpError]: [ErrNotJoined] if the source is not joined,
// [ErrMode] if the group is for any source, [ErrAddress], [ErrInterface], or
// what the system said. Then nothing has changed.
func (c *Conn) LeaveSource(g Group, source netip.Addr) error { return c.do(OpLeaveSource, g, source) }

// SetFilter replaces the filter of a group at once, whatever it was (RFC 3678
// section 4.2): Include with sources, Exclude with or without, or Include
// without sources to leave. Sources that occur twice count once. See [Group]
// for what its Interface means; a new INCLUDE goes towards its first source.
//
// The error is an [*OpError]: [ErrAddress], [ErrInterface], [ErrSSM], [ErrMode]
// for a mode that does not exist, [ErrLimit], or what the system said. Then
// nothing has changed; only where a system without a call for this lost the
// membership on the way, and could not restore it, is it pending, and tried
// again.
func (c *Conn) SetFilter(g Group, mode Mode, sources ...netip.Addr) error {
	return c.set(g, mode, sources)
}

// Memberships returns the memberships, sorted by group, then by interface. It
// does not wait for requests that are under way. After Close there are none.
func (c *Conn) Memberships() []Membership { return c.memberships() }

// SystemFilter asks the system for the filter of a group (RFC 3678 sections
// 4.2.2 and 5.2.2). It is there for diagnosis: the answer is that of
// Memberships, unless something other than this Conn has changed the socket.
//
// The error is an [*OpError]: [ErrNotJoined] when the system knows of no
// membership, [ErrAddress], [ErrInterface], [errors.ErrUnsupported], or what
// the system said.
func (c *Conn) SystemFilter(g Group) (Membership, error) { return c.system(g) }

// Stats are the counts of a [Conn] since it was opened.
type Stats struct {
	Received  uint64 // datagrams handed over
	Filtered  uint64 // datagrams that came in and were dropped here, by the filter
	Truncated uint64 // datagrams handed over that were longer than the buffer

	// Dropped is how many datagrams the kernel dropped: for want of buffer, or
	// because of a wrong checksum, which it does not tell apart. Linux only, 0
	// elsewhere.
	Dropped uint64

	ReadBuffer int // bytes of receive buffer granted, as the system counts (Linux: twice what one asks for); 0: unknown
}

// Stats returns the counts so far. It may be called after Close.
func (c *Conn) Stats() Stats {
	s := c.delivery.stats()
	s.Dropped, s.ReadBuffer = c.dropped.Load(), int(c.granted.Load())
	if c.sock != nil {
		if n, err := kernelDrops(c.sock); err == nil {
			s.Dropped = n
		}
	}
	return s
}

// GroupStats are the counts of one membership since it was joined.
type GroupStats struct {
	Received uint64    // datagrams handed over
	Bytes    uint64    // of payload in them
	Filtered uint64    // datagrams that came in by its interface and were dropped, by their source
	Dropped  uint64    // datagrams dropped by the kernel, where a Pool has a socket for this group alone; else 0
	Last     time.Time // when the last one was handed over
}

// GroupStats yields the counts of each membership, as Memberships lists them, if
// Config.GroupStats is set.
func (c *Conn) GroupStats() iter.Seq2[Group, GroupStats] { return c.groupStats() }

func (q *requests) groupStats() iter.Seq2[Group, GroupStats] {
	return func(yield func(Group, GroupStats) bool) {
		shown := q.shown()
		keys := slices.SortedFunc(maps.Keys(shown), func(a, b Group) int {
			return compareMemberships(shown[a], shown[b])
		})
		for _, key := range keys {
			if c := q.counts.find(key); c != nil && !yield(shown[key].Group, c.stats()) {
				return
			}
		}
	}
}

// groupCounts are the counts of one membership, while it is being read.
type groupCounts struct {
	received, bytes, filtered atomic.Uint64
	last                      atomic.Int64 // nanoseconds since 1970; 0: never
}

func (c *groupCounts) stats() GroupStats {
	s := GroupStats{Received: c.received.Load(), Bytes: c.bytes.Load(), Filtered: c.filtered.Load()}
	if last := c.last.Load(); last != 0 {
		s.Last = time.Unix(0, last)
	}
	return s
}

// countsOf has the counts of each membership, by the group that the filter has
// it by.
type countsOf struct {
	mu sync.Mutex
	of map[Group]*groupCounts
}

// forGroup returns the counts of a membership, from 0 if it is a new one.
func (c *countsOf) forGroup(g Group) *groupCounts {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of[g] == nil {
		if c.of == nil {
			c.of = make(map[Group]*groupCounts)
		}
		c.of[g] = new(groupCounts)
	}
	return c.of[g]
}

func (c *countsOf) find(g Group) *groupCounts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.of[g]
}

// drop forgets the counts of a membership that has ended.
func (c *countsOf) drop(g Group) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.of, g)
}

// Close closes the socket, which ends its memberships. Reads that are under
// way return with [net.ErrClosed]; so do all methods that return an error from
// then on, a second Close too.
func (c *Conn) Close() error {
	if c.udp == nil {
		return opError("Close", Group{}, netip.Addr{}, errNotOpen)
	}
	if c.end() {
		if n, err := kernelDrops(c.sock); err == nil {
			c.dropped.Store(n)
		}
	}
	err := c.udp.Close()
	c.events.end()
	return ofSocket("Close", err)
}

// ofSocket wraps an error of the socket.
func ofSocket(op string, err error) error {
	if err == nil {
		return nil
	}
	return opError(op, Group{}, netip.Addr{}, err)
}

// Repair makes all memberships anew where their interfaces are now, as is done
// by itself unless Config.NoWatch is set: left and joined again, with their
// whole filters, so that the network is told of them again. Those whose
// interface is gone are pending then. The error joins those of the memberships
// that could not be made.
func (c *Conn) Repair() error { return repair([]*requests{&c.requests}) }

// LocalAddr returns the address that the Conn listens on.
func (c *Conn) LocalAddr() net.Addr {
	if c.udp == nil {
		return &net.UDPAddr{}
	}
	return c.local
}

// SetDeadline sets the deadlines of reads and writes; see [net.Conn].
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline sets the deadline of reads, those under way too.
func (c *Conn) SetReadDeadline(t time.Time) error {
	if c.udp == nil {
		return opError("SetReadDeadline", Group{}, netip.Addr{}, errNotOpen)
	}
	return ofSocket("SetReadDeadline", c.deadline.set(t))
}

// SetWriteDeadline sets the deadline of writes.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	if c.udp == nil {
		return opError("SetWriteDeadline", Group{}, netip.Addr{}, errNotOpen)
	}
	return ofSocket("SetWriteDeadline", c.udp.SetWriteDeadline(t))
}

// SyscallConn gives access to the socket. What it does to memberships, the
// Conn does not know of.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	if c.udp == nil {
		return nil, opError("SyscallConn", Group{}, netip.Addr{}, errNotOpen)
	}
	raw, err := c.udp.SyscallConn()
	return raw, ofSocket("SyscallConn", err)
}
