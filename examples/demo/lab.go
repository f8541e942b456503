package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"example.com/mcast"
	"example.com/mcast/examples/internal/cli"
)

// A lab has senders and receivers on one interface.
type lab struct {
	ipv6     bool
	ifi      net.Interface
	port     uint16
	note     string
	groups   [numGroups]mcast.Group
	fence    mcast.Group
	senders  [numSenders]sender
	receiver *mcast.Conn // it is all about this one
	witness  *mcast.Conn // hears everything
	run      [8]byte     // tells this lab's datagrams from others
	round    uint32

	// patience is how long datagrams that must come are waited for. Nothing
	// else is waited for by the clock: see listen.
	patience time.Duration
}

// A sender has an address to send from. Without a Conn it is silent.
type sender struct {
	*mcast.Conn
	addr netip.Addr // without a zone
	why  string     // it is silent
}

// findLab builds a lab on the given interface, or on the first that will do,
// the loopback interface before others. The error says why there is none.
func findLab(ctx context.Context, ipv6 bool, on *net.Interface, port uint16) (*lab, error) {
	var try []net.Interface
	if on != nil {
		try = append(try, *on)
	} else {
		all, err := net.Interfaces()
		if err != nil {
			return nil, err
		}
		var others []net.Interface
		for _, ifi := range all {
			switch {
			case ifi.Flags&net.FlagUp == 0:
			case ifi.Flags&net.FlagLoopback != 0:
				try = append(try, ifi)
			case ifi.Flags&net.FlagMulticast != 0 && len(others) < 3:
				others = append(others, ifi)
			}
		}
		try = append(try, others...)
	}
	var errs []error
	for _, ifi := range try {
		l, err := newLab(ctx, ipv6, ifi, port)
		if err == nil {
			if errs != nil {
				l.note = fmt.Sprintf(" (not on %v)", list(errs))
			}
			return l, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", ifi.Name, err))
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) == 0 {
		return nil, errors.New("there is no interface for it")
	}
	return nil, list(errs)
}

// A list of errors, in one line.
type list []error

func (l list) Error() string { return strings.ReplaceAll(errors.Join(l...).Error(), "\n", "; ") }

func newLab(ctx context.Context, ipv6 bool, ifi net.Interface, port uint16) (l *lab, err error) {
	l = &lab{ipv6: ipv6, ifi: ifi, port: port, patience: 10 * time.Second}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	rand.Read(l.run[:])
	addrs := l.addresses()
	if len(addrs) == 0 {
		return nil, fmt.Errorf("it has no %s address", family(ipv6))
	}
	l.chooseGroups()
	if l.port == 0 {
		if l.port, err = freePort(l.network()); err != nil {
			return nil, err
		}
	}
	at := ":" + strconv.Itoa(int(l.port))
	if l.receiver, err = mcast.Listen(l.network(), at, nil); err != nil {
		return nil, err
	}
	if l.witness, err = mcast.Listen(l.network(), at, &mcast.Config{AnySource: true}); err != nil {
		return nil, err
	}
	for _, g := range l.groups {
		if err := l.witness.Join(g); err != nil {
			return nil, err
		}
	}
	if err := l.receiver.Join(l.fence); err != nil {
		return nil, err
	}
	return l, l.findSenders(ctx, addrs)
}

// local reports whether datagrams stay on the machine by themselves.
func (l *lab) local() bool { return l.ifi.Flags&net.FlagLoopback != 0 }

func (l *lab) network() string {
	if l.ipv6 {
		return "udp6"
	}
	return "udp4"
}

// addresses are those that senders may have, with their zones. All of
// 127.0.0.0/8 is this machine, but on some systems only 127.0.0.1 is there.
func (l *lab) addresses() (addrs []netip.Addr) {
	if l.local() && !l.ipv6 {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3")}
	}
	all, _ := l.ifi.Addrs()
	for _, x := range all {
		p, err := netip.ParsePrefix(x.String())
		if a := p.Addr(); err == nil && a.Is6() == l.ipv6 {
			if a.Is6() && a.IsLinkLocalUnicast() {
				a = a.WithZone(l.ifi.Name)
			}
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// chooseGroups takes groups that are for such use. Where IPv6 datagrams might
// leave the machine it takes some of interface-local scope (RFC 4291 section
// 2.7), of which the network is not even told.
func (l *lab) chooseGroups() {
	addrs := [...]string{"239.255.77.1", "232.77.77.1", "239.255.77.2"}
	switch {
	case l.ipv6 && l.local():
		addrs = [...]string{"ff15::77:1", "ff3e::8077:1", "ff15::77:2"}
	case l.ipv6:
		addrs = [...]string{"ff11::77:1", "ff31::8077:1", "ff11::77:2"}
	}
	for i, g := range []*mcast.Group{&l.groups[anySource], &l.groups[ssm], &l.fence} {
		*g = mcast.Group{Addr: netip.MustParseAddr(addrs[i]), Interface: cli.Name(l.ifi)}
	}
}

// freePort finds a port that nobody has. Port 0 will not do: it is no port
// that two sockets can share.
func freePort(network string) (uint16, error) {
	c, err := net.ListenPacket(network, ":0")
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return uint16(c.LocalAddr().(*net.UDPAddr).Port), nil
}

// findSenders makes senders of the addresses from which the witness hears
// something. The others are silent: requests can name them all the same.
func (l *lab) findSenders(ctx context.Context, addrs []netip.Addr) error {
	var speak, silent []sender
	var first error
	for _, a := range addrs {
		if len(speak) == numSenders || ctx.Err() != nil {
			break
		}
		s := sender{addr: a.WithZone("")}
		err := l.open(&s, a)
		if err == nil {
			speak = append(speak, s)
			continue
		}
		s.why = err.Error()
		silent = append(silent, s)
		if first == nil {
			first = err
		}
	}
	if len(speak) == 0 {
		return first
	}
	// Addresses for documentation (RFC 5737, RFC 3849) are nobody's, unless
	// this is a laboratory.
	nobody := []string{"192.0.2.2", "198.51.100.2", "203.0.113.2"}
	if l.ipv6 {
		nobody = []string{"2001:db8::2", "2001:db8:0:1::2", "2001:db8:0:2::2"}
	}
	for _, s := range nobody {
		if a := netip.MustParseAddr(s); !slices.Contains(addrs, a) {
			silent = append(silent, sender{addr: a, why: "there is no other address"})
		}
	}
	copy(l.senders[:], append(speak, silent...))
	return nil
}

// open gives a sender its socket and tries whether it can be heard.
func (l *lab) open(s *sender, a netip.Addr) error {
	c, err := mcast.Listen(l.network(), net.JoinHostPort(a.String(), "0"), nil)
	if err != nil {
		return errors.Unwrap(err) // without the address, which is shown already
	}
	s.Conn = c
	err = c.SetMulticastInterface(cli.Name(l.ifi))
	if err == nil && !l.local() {
		err = c.SetMulticastTTL(0)
	}
	if err == nil {
		l.round++
		err = l.send(s, l.groups[anySource], datagram{l.round, onTrial})
	}
	if err == nil {
		var from netip.Addr
		err = l.read(l.witness, time.Now().Add(2*time.Second), func(a arrival) bool {
			from = a.from
			return a.round == l.round
		})
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			err = errors.New("what it sends to a group is not delivered")
		case err == nil && from != s.addr:
			err = fmt.Errorf("what it sends to a group is delivered as from %v", from)
		}
	}
	if err != nil {
		c.Close()
		s.Conn = nil
	}
	return err
}

func (l *lab) close() {
	for _, s := range l.senders {
		if s.Conn != nil {
			s.Close()
		}
	}
	for _, c := range []*mcast.Conn{l.receiver, l.witness} {
		if c != nil {
			c.Close()
		}
	}
}

// describe shows who and what the letters stand for.
func (l *lab) describe(w io.Writer) {
	fmt.Fprintf(w, "%s on %s, port %d%s\n", family(l.ipv6), l.ifi.Name, l.port, l.note)
	for g, about := range [numGroups]string{anySource: "any-source", ssm: "source-specific (RFC 4607)"} {
		fmt.Fprintf(w, "  group  %s  %-22v %s\n", groupNames[g], l.groups[g].Addr, about)
	}
	for i, s := range l.senders {
		about := "sends to both"
		if s.Conn == nil {
			about = "silent: " + s.why
		}
		fmt.Fprintf(w, "  sender %s  %-22v %s\n", senderNames[i], s.addr, about)
	}
}

// speak returns the senders that are not silent.
func (l *lab) speak() (in set) {
	for i, s := range l.senders {
		in[i] = s.Conn != nil
	}
	return in
}

// ask makes a request of the receiver.
func (l *lab) ask(r request) error {
	g := l.groups[r.group]
	var sources []netip.Addr
	for i, in := range members(r.sources) {
		if in {
			sources = append(sources, l.senders[i].addr)
		}
	}
	if r.sources == "G" {
		sources = append(sources, l.groups[anySource].Addr)
	}
	switch r.verb {
	case "":
		return nil
	case "Join":
		return l.receiver.Join(g)
	case "JoinSource":
		return l.receiver.JoinSource(g, sources[0])
	case "Block":
		return l.receiver.Block(g, sources[0])
	case "Unblock":
		return l.receiver.Unblock(g, sources[0])
	case "Leave":
		return l.receiver.Leave(g)
	case "LeaveSource":
		return l.receiver.LeaveSource(g, sources[0])
	case "SetFilter":
		return l.receiver.SetFilter(g, r.mode, sources...)
	}
	panic("the script has an unknown request: " + r.verb)
}

// filters returns the receiver's filters, but for the fence's.
func (l *lab) filters() (f filters) {
	for _, m := range l.receiver.Memberships() {
		if m.Group == l.fence {
			continue
		}
		g := max(0, slices.Index(l.groups[:], m.Group)) // an unknown group spoils the first
		f[g] += l.letters(m)
	}
	return f
}

// system returns the filter that the system says the receiver has.
func (l *lab) system(group int) string {
	m, err := l.receiver.SystemFilter(l.groups[group])
	switch {
	case errors.Is(err, mcast.ErrNotJoined):
		return "-"
	case err != nil:
		return err.Error()
	}
	return l.letters(m)
}

func (l *lab) letters(m mcast.Membership) string {
	var in set
	for _, a := range m.Sources {
		i := slices.IndexFunc(l.senders[:], func(s sender) bool { return s.addr == a })
		if i < 0 {
			return m.String()
		}
		in[i] = true
	}
	return m.Mode.String() + "{" + in.String() + "}"
}

// listen has all senders send to both groups and returns whom the receiver
// heard, and what was odd about it. The error is for a lab that does not work.
//
// Those who should be heard are waited for. That nobody else is heard, no wait
// can show; so when the witness has heard all that was sent, one more datagram
// is sent, to a group that the receiver always has, the fence. A socket gets
// what is sent on its own machine in order: what has not come before the fence
// does not come. A late datagram of an earlier round was under way while the
// filter changed, and may be heard or not.
func (l *lab) listen(want hearing) (heard hearing, odd []string, err error) {
	l.round++
	for i := range l.senders {
		for _, g := range l.groups {
			if s := &l.senders[i]; s.Conn != nil {
				if err := l.send(s, g, datagram{l.round, byte(i)}); err != nil {
					return heard, nil, err
				}
			}
		}
	}
	deadline := time.Now().Add(l.patience)
	var sent, known hearing
	for g := range sent {
		sent[g] = l.speak()
	}
	err = l.read(l.witness, deadline, func(a arrival) bool {
		if g := slices.Index(l.groups[:], a.group); g >= 0 && a.round == l.round {
			known[g][a.sender] = true
		}
		return known == sent
	})
	if err != nil {
		return heard, nil, fmt.Errorf("not all that was sent arrived on this machine, so the promise cannot be tried: %w", err)
	}
	if err := l.send(&l.senders[0], l.fence, datagram{l.round, 0}); err != nil {
		return heard, nil, err
	}
	fenced := false
	err = l.read(l.receiver, deadline, func(a arrival) bool {
		if a.round != l.round {
			return false // late
		}
		g := slices.Index(l.groups[:], a.group)
		switch {
		case a.group == l.fence:
			fenced = true
		case g < 0:
			odd = append(odd, fmt.Sprintf("something was heard on %v", a.group))
		case a.from != l.senders[a.sender].addr:
			odd = append(odd, fmt.Sprintf("%s was heard as %v", senderNames[a.sender], a.from))
		case heard[g][a.sender]:
			odd = append(odd, fmt.Sprintf("%s was heard twice on %s", senderNames[a.sender], groupNames[g]))
		default:
			heard[g][a.sender] = true
		}
		return fenced && heard.includes(want)
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = nil // someone is missing; see judge
		if !fenced {
			odd = append(odd, fmt.Sprintf("%v, joined all along, was not heard", l.fence))
		}
	}
	return heard, odd, err
}

// includes reports whether all of want is in h.
func (h hearing) includes(want hearing) bool {
	for g := range want {
		for i := range want[g] {
			if want[g][i] && !h[g][i] {
				return false
			}
		}
	}
	return true
}

// A datagram says in which round it was sent, and by whom. On the wire the
// lab's number is before it.
type datagram struct {
	round  uint32
	sender byte // an index, or onTrial
}

const (
	onTrial      = numSenders // not a sender yet
	datagramSize = 8 + 4 + 1
)

func (l *lab) send(s *sender, g mcast.Group, d datagram) error {
	b := append(binary.BigEndian.AppendUint32(slices.Clone(l.run[:]), d.round), d.sender)
	to := g.Addr
	if to.Is6() && (to.IsInterfaceLocalMulticast() || to.IsLinkLocalMulticast()) {
		to = to.WithZone(l.ifi.Name)
	}
	_, err := s.WriteToUDPAddrPort(b, netip.AddrPortFrom(to, l.port))
	return err
}

// An arrival is a datagram of this lab that was received.
type arrival struct {
	datagram
	from  netip.Addr // without a zone
	group mcast.Group
}

// read reads the lab's datagrams until done is true of one.
func (l *lab) read(c *mcast.Conn, deadline time.Time, done func(arrival) bool) error {
	if err := c.SetReadDeadline(deadline); err != nil {
		return err
	}
	m := mcast.Message{Buf: make([]byte, 64)}
	for {
		if err := c.ReadMessage(&m); err != nil {
			return err
		}
		b := m.Buf[:m.N]
		if len(b) != datagramSize || [8]byte(b) != l.run {
			continue // not ours
		}
		a := arrival{datagram{binary.BigEndian.Uint32(b[8:]), b[12]}, m.Source.Addr().WithZone(""), m.Group}
		if done(a) {
			return nil
		}
	}
}
