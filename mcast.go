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
//	c, err := mcast.Listen("udp4", ":5000", nil)
//	if err != nil {
//		return err
//	}
//	defer c.Close()
//	group, source, err := mcast.ParseChannel("10.0.0.1@232.1.1.1%eth0")
//	if err != nil {
//		return err
//	}
//	if err := c.JoinSource(group, source); err != nil {
//		return err
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
// Systems lose memberships in silence: when an interface goes away and comes
// back, when it was down, when its carrier was. While there are memberships,
// interfaces are watched, and what was lost is made anew; Config.OnEvent and
// Config.Logger tell of it. Config.NoWatch turns that off; [Conn.Repair] does
// the same on request.
//
// # Many groups
//
// Kernels limit the memberships of a socket: Linux to 20 IPv4 groups and 10
// sources of each. A [Pool] makes the same requests over as many sockets as it
// takes.
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
// Some requests are answered by the size of a message in place of an error
// number, and succeed when they are made again; a request can take a second.
// A blocked source is still received by the socket, and dropped here. A program
// without the permission for the local network hears nothing (macOS 15).
//
// # Windows notes
//
// A Conn on a group is on the wildcard address. [Conn.SetMulticastLoopback] is
// the receiver's.
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
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
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
	// the system tells (Linux, macOS).
	Timestamps bool

	// GRO lets the system hand over several datagrams of a flow as one (UDP_GRO
	// on Linux, UDP_RECV_MAX_COALESCED_SIZE on Windows). They come out one
	// [Message] each, in order; ReadBatch copies them, [Conn.ReadSlab] does not.
	// Where the system cannot, this changes nothing.
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

	// NoWatch leaves memberships as the system has them. By default the
	// interfaces are watched while there are memberships, and what a change
	// loses is mended: a membership belongs to an interface's name. It is kept,
	// pending, while there is no such interface, and made anew with its whole
	// filter when there is one; one for which the routing table chose the
	// interface follows the route then. It is made anew, too, where the system
	// loses it in silence, after the interface or its carrier were down.
	NoWatch bool

	// OnEvent, if not nil, is called for each membership that is lost, pending
	// or restored: one call at a time, without a lock held, and not after Close
	// has returned. It may make requests, but must not call Close, which waits
	// for it.
	OnEvent func(Event)

	// Logger, if not nil, is told what the program cannot see from errors.
	Logger *slog.Logger
}

// A Conn is a UDP socket with memberships of multicast groups. It is a
// [net.PacketConn] and a [syscall.Conn].
//
// All methods may be called concurrently. Requests are carried out one after
// the other; readers never wait for them.
type Conn struct {
	requests
	udp     *net.UDPConn
	cfg     Config
	local   net.Addr
	p4      *ipv4.PacketConn // nil if IPv6
	p6      *ipv6.PacketConn // nil if IPv4
	sendOn  atomic.Int64     // what SetMulticastInterface set
	granted int              // receive buffer, bytes

	closing sync.Once
	dropped atomic.Uint64 // by the kernel, as of Close

	receiver
}

var (
	_ net.PacketConn = (*Conn)(nil)
	_ syscall.Conn   = (*Conn)(nil)
)

// Listen opens a UDP socket for memberships. The network is "udp4", "udp6", or
// "udp", which takes the family of the address. The address is a port on
// every group that will be joined, ":5000", or a group and a port,
// "232.1.1.1:5000" or "[ff3e::8000:1]:5000"; a zone names an interface.
//
// A Conn on a group refuses to join another one: it could never hear it. Where
// the system cannot bind to a group (Windows) the Conn does the same on a
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
	udp, err := open(at)
	if err != nil {
		return nil, err
	}
	c, err := wrap(udp, at, cfg)
	if err != nil {
		udp.Close()
	}
	return c, err
}

// An endpoint is what a socket is bound to: a group, a unicast address, or
// neither.
type endpoint struct {
	ipv6    bool
	group   Group
	unicast netip.Addr // with its zone
	port    int
}

// addrPort is the address to bind to; the group if the system can do that.
func (at endpoint) addrPort(groups bool) netip.AddrPort {
	a := netip.IPv4Unspecified()
	if at.ipv6 {
		a = netip.IPv6Unspecified()
	}
	switch {
	case at.unicast.IsValid():
		a = at.unicast
	case at.group.Addr.IsValid() && groups:
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
func (at endpoint) shared() bool { return at.port != 0 && !at.unicast.IsValid() }

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
	if g, err := parseGroup(host, theHost); err == nil {
		at.ipv6, at.group = g.Addr.Is6(), g
		if at.ipv6 && g.Interface == 0 && (g.Addr.IsLinkLocalMulticast() || g.Addr.IsInterfaceLocalMulticast()) {
			return at, because(ErrInterface, "%v is a different group on each interface: name one, as in [%v%%eth0]:%d", g.Addr, g.Addr, at.port)
		}
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

// New wraps a UDP socket, and closes it with the [Conn]. The socket must have
// no memberships yet, and must not be read from or written to elsewhere.
//
// The error is an [*OpError]: [ErrAddress] for a socket that is connected or
// takes both IPv4 and IPv6, and [net.ErrClosed] for a closed one. Then the
// socket is as it was.
func New(c *net.UDPConn, cfg *Config) (*Conn, error) {
	at, err := inspect(c)
	if err == nil {
		var conn *Conn
		if conn, err = wrap(c, at, cfg); err == nil {
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
	at.port, at.ipv6 = local.Port, local.IP.To4() == nil
	a := local.AddrPort().Addr().Unmap()
	switch {
	case a.IsMulticast():
		at.group, _, err = settle(Group{Addr: a}, netip.Addr{}, theHost)
	case !a.IsUnspecified():
		at.unicast = a
	case at.ipv6 && dualStack(raw):
		err = because(ErrAddress, `the socket takes both IPv4 and IPv6: use net.ListenUDP with "udp4" or "udp6"`)
	}
	return at, err
}

// wrap makes a Conn of a socket bound to at.
func wrap(udp *net.UDPConn, at endpoint, cfg *Config) (*Conn, error) {
	c := &Conn{udp: udp, local: udp.LocalAddr()}
	if cfg != nil {
		c.cfg = *cfg
	}
	if c.cfg.Logger == nil {
		c.cfg.Logger = slog.New(slog.DiscardHandler)
	}
	sock, err := newSocket(udp)
	if err != nil {
		return nil, err
	}
	c.ipv6, c.bound, c.unicast, c.anySource = at.ipv6, at.group, at.unicast, c.cfg.AnySource
	c.kernel = hostKernel(sock)
	c.noWatch, c.notify = c.cfg.NoWatch, c.cfg.notify
	c.hearUnicast = c.cfg.Unicast
	if local, ok := c.local.(*net.UDPAddr); ok && at.group.Addr.IsValid() {
		c.local = &net.UDPAddr{IP: at.group.Addr.AsSlice(), Port: local.Port, Zone: local.Zone}
	}
	if at.ipv6 {
		c.p6 = ipv6.NewPacketConn(udp)
	} else {
		c.p4 = ipv4.NewPacketConn(udp)
	}
	port := at.port
	if local, ok := udp.LocalAddr().(*net.UDPAddr); ok {
		port = local.Port
	}
	if err := c.prepare(port); err != nil {
		return nil, fmt.Errorf("group and interface of datagrams: %w", err)
	}
	c.setReadBuffer()
	return c, nil
}

// readBufferWanted is the size to ask for; less than 0: none.
func readBufferWanted(cfg *Config) int {
	if cfg.ReadBuffer == 0 {
		return 4 << 20
	}
	return cfg.ReadBuffer
}

// hostKernel is the kernel that the program runs on.
func hostKernel(sock socket) kernel {
	return kernel{platform: hostSystem, sock: sock, host: theHost, sleep: time.Sleep, guard: guard}
}

// notify tells the logger and the program of an event.
func (cfg *Config) notify(e Event) {
	level := slog.LevelWarn
	if e.Kind == EventRestored {
		level = slog.LevelInfo
	}
	cfg.Logger.Log(context.Background(), level, "mcast: membership "+e.Kind.String(), "group", e.Group.Addr, "interface", e.Name, "old", e.Old, "new", e.New, "error", e.Err)
	if cfg.OnEvent != nil {
		cfg.OnEvent(e)
	}
}

// setReadBuffer asks for a receive buffer and says if it got less.
func (c *Conn) setReadBuffer() {
	want := readBufferWanted(&c.cfg)
	if want > 0 {
		// Some systems refuse what is too much, others give what they can.
		for n := want; n >= 64<<10 && growReadBuffer(c.udp, n) != nil; n /= 2 {
		}
	}
	c.granted = readBuffer(c.udp)
	if want > 0 && c.granted < want {
		c.cfg.Logger.Warn("mcast: receive buffer is smaller than asked for", "asked", want, "granted", c.granted, "knob", readBufferKnob)
	}
}

// hostSystem is the platform that the program runs on.
var hostSystem = hostPlatform()

// Join makes the socket a member of a group on an interface, for any source:
// EXCLUDE() in the terms of RFC 3376 section 2. See [Group] for Interface 0.
//
// The error is an [*OpError]: [ErrJoined] if the group is joined already,
// [ErrMode] if sources of it are, [ErrSSM] for a source-specific group, which
// takes JoinSource, [ErrAddress], [ErrInterface], [ErrLimit], or what the
// system said. Then nothing has changed.
func (c *Conn) Join(g Group) error { return c.do(OpJoin, g, netip.Addr{}) }

// JoinSource makes the socket a member of a channel, a group from one source:
// it adds the source to INCLUDE (RFC 4607, RFC 3678 section 4.1.3). See [Group]
// for Interface 0.
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
// 4.1.1). A membership on an interface that is gone can be left too, by the
// index that the interface had.
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
// for Interface 0; a new INCLUDE goes towards its first source.
//
// The error is an [*OpError]: [ErrAddress], [ErrInterface], [ErrSSM], [ErrMode]
// for a mode that does not exist, [ErrLimit], or what the system said. Then
// nothing has changed; only where a system without a call for this lost the
// membership on the way, and could not restore it, is it gone, and Memberships
// shows so.
func (c *Conn) SetFilter(g Group, mode Mode, sources ...netip.Addr) error {
	return c.set(g, mode, sources)
}

// Memberships returns the memberships, sorted by group, then by interface. It
// does not wait for requests that are under way. After Close there are none.
func (c *Conn) Memberships() []Membership { return c.filter.Memberships() }

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
	Received   uint64 // datagrams handed over
	Filtered   uint64 // datagrams that came in and were dropped here, by the filter
	Dropped    uint64 // datagrams dropped by the kernel for want of buffer; Linux only, 0 elsewhere
	ReadBuffer int    // bytes of receive buffer granted, as the system counts (Linux: twice what one asks for); 0: unknown
}

// Stats returns the counts so far. It may be called after Close.
func (c *Conn) Stats() Stats {
	s := Stats{
		Received:   c.received.Load(),
		Filtered:   c.filtered.Load(),
		Dropped:    c.dropped.Load(),
		ReadBuffer: c.granted,
	}
	if n, err := kernelDrops(c.kernel.sock); err == nil {
		s.Dropped = n
	}
	return s
}

// Close closes the socket, which ends its memberships. Reads that are under
// way return with [net.ErrClosed].
func (c *Conn) Close() error {
	c.closing.Do(func() {
		if n, err := kernelDrops(c.kernel.sock); err == nil {
			c.dropped.Store(n)
		}
	})
	err := c.udp.Close()
	c.end()
	return err
}

// Repair makes all memberships anew where their interfaces are now, as is done
// by itself unless Config.NoWatch is set: left and joined again, with their
// whole filters, so that the network is told of them again. Those whose
// interface is gone are pending then. The error joins those of the memberships
// that could not be made.
func (c *Conn) Repair() error { return c.repair() }

// LocalAddr returns the address that the Conn listens on.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// SetDeadline sets the deadlines of reads and writes; see [net.Conn].
func (c *Conn) SetDeadline(t time.Time) error { return c.udp.SetDeadline(t) }

// SetReadDeadline sets the deadline of reads, those under way too.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.udp.SetReadDeadline(t) }

// SetWriteDeadline sets the deadline of writes.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.udp.SetWriteDeadline(t) }

// SyscallConn gives access to the socket. What it does to memberships, the
// Conn does not know of.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return c.udp.SyscallConn() }

// hearOnlyOwn tells a system that hands a socket the groups of all others not
// to, and reports whether it took that. Where it does not, the filter alone
// keeps them out.
func (k *kernel) hearOnlyOwn(ipv6 bool) bool {
	at, name := levelIP, k.allIP
	if ipv6 {
		at, name = levelIPv6, k.allIPv6
	}
	return name != 0 && k.sock.setsockopt(at, name, make([]byte, 4)) == nil
}
