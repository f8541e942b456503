//go:build !plan9

package kerneltest

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A Kernel is one model host: its system, limits, interfaces, and how the sockets
// on it interact. Set the exported fields before opening a socket; afterwards use
// the methods, which are safe for concurrent use.
type Kernel struct {
	// Word is the size of a pointer in bits, 64 or 32, and Order the byte order of
	// integers: both decide how requests are laid out.
	Word  int
	Order binary.ByteOrder

	// Interfaces are the host's interfaces by index. Once a socket is open, change
	// them with AddInterface, RemoveInterface and SetUp.
	Interfaces map[int]Interface

	// Route is the index that a request with no interface is routed to; 0: no
	// route.
	Route int

	MaxMemberships int // groups a socket, IPv4
	MaxMSF4        int // sources in one IPv4 filter of a socket
	MaxMSF6        int // sources in one IPv6 filter of a socket
	MaxGroup       int // macOS, FreeBSD: sources of one group on one interface, all sockets together
	OptMem         int // Linux: bytes of option memory a socket (net.core.optmem_max)

	NoMCAST    bool // MCAST_* are unknown: ENOPROTOOPT
	NoIP       bool // the IP_* source options are unknown: ENOPROTOOPT
	NoMSFilter bool // the full-state options are unknown: ENOPROTOOPT
	NoIoctl    bool // Windows: the full-state ioctls are unknown: WSAEOPNOTSUPP

	// NoIPv6MulticastAll: a Linux before 4.20, without IPV6_MULTICAST_ALL.
	NoIPv6MulticastAll bool

	// ListFailures is how many of the next source lists Linux fails to allocate. A
	// JoinSource that began a membership leaves it behind as INCLUDE() (observed).
	ListFailures int

	// Reports: macOS tells the network of changes, by IGMPv3 and MLDv2. Most of its
	// byte counts and all of its spoiled groups come from there.
	Reports bool

	// TimerDelay is how long it takes until another thread of macOS has reported a
	// change for the first time.
	TimerDelay time.Duration

	// RepeatReport says after how many runs of the report code, one a second and one
	// with each change, a macOS host repeats a report: the kernel draws 1 to 3 for
	// each interface at each run. nil: 1.
	RepeatReport func() int

	// ByteCounts, if not 0, is how often macOS answers an IPv4 join, block or leave
	// of a further source with a byte count in place of an errno, before the same
	// call succeeds, whatever Reports does. ByteCountStep is what each source adds to
	// the 8: 4 or 8.
	ByteCounts    int
	ByteCountStep int

	// DeliversBlocked: a blocked source is delivered all the same.
	DeliversBlocked bool

	// FilterNeedsJoin: Windows refuses a full filter for a group that was not
	// joined before. RFC 3678 leaves it open and so do the vendor's pages.
	FilterNeedsJoin bool

	// UnknownInterface is what Windows answers where there is no such interface.
	UnknownInterface syscall.Errno

	// IoctlLength, if not nil, is told how many bytes an ioctl of Windows wrote and
	// says what the ioctl answers as their number.
	IoctlLength func(n int) int

	// MSFilterReq is the layout of BSD's struct __msfilterreq.
	MSFilterReq struct{ Group, Pointer, Size int }

	// Fault is asked before a request is looked at. If it returns an error, that is
	// the answer and nothing else happens. An ioctl has level -1.
	Fault func(level, name int, value []byte) error

	// FaultAfter is asked when a request has succeeded and had its effect. If it
	// returns an error, that is the answer. See also FailCall.
	FaultAfter func(level, name int, value []byte) error

	sys *system

	mu      sync.Mutex
	devices map[int]*device
	serial  int // devices there ever were
	known   int // the highest index there ever was
	sockets []*Socket
	harms   []Harm
	dead    bool // panicked
	calls   int
	failing []failure

	records  []*record // BSD: newest first
	detached []*record // BSD: to be released when the run of the timers ends
	timers   timers
	sent     []Report
}

// An Interface is one network interface of a model host.
type Interface struct {
	Name     string
	Addrs    []netip.Addr
	Up       bool
	Loopback bool
	MTU      int  // 0: 1500. Under 1280 Linux has no IPv6 there
	NoIPv6   bool // Linux: disable_ipv6
}

// A device is one life of an interface: an interface that is removed and comes
// back, even with the same index, is another device.
type device struct {
	index    int
	serial   int // counts up
	loopback bool
	groups   map[netip.Addr]*linuxGroup // Linux: what the device receives
}

// A Socket is a UDP socket on a model host.
type Socket struct {
	k       *Kernel
	ipv6    bool
	closed  bool
	entries []*entry // newest first
	plain   map[option][]byte
	log     []Request

	bsd4, bsd6 *bsdOptions // BSD: nil until a multicast option of the family was set

	counts  map[attempt]int  // macOS: byte counts answered
	emptied map[channel]bool // Windows: left by the last LeaveSource

	spare bool // see Spare
}

// Spare says that nobody misses what is taken from this socket: on Linux its
// membership, where it has the same filter, takes the loss that another one would
// have. Call it before the socket joins.
func (s *Socket) Spare() { s.spare = true }

// A channel is what a membership is found by.
type channel struct {
	index int
	group netip.Addr
}

// An attempt is one call that macOS answers with a byte count a few times.
type attempt struct {
	op op
	channel
	source netip.Addr
}

// An entry is one membership in a socket's list.
type entry struct {
	channel
	dev     *device
	address netip.Addr // how the interface was named, if by address
	exclude bool
	sources []netip.Addr // in the kernel's order

	alloc bool // Linux: there is a list, though it may be empty
	room  int  // Linux: entries there is memory for
	spare bool // Linux: of a spare socket

	unblocked bool // Windows: the last request was Unblock
	silent    bool // Windows: not announced since the interface is up again
}

// allows is the rule of RFC 3376 section 3.1 for one filter.
func (e *entry) allows(source netip.Addr) bool {
	return slices.Contains(e.sources, source) != e.exclude
}

// A Membership is one entry of a kernel's own list of a socket's memberships.
type Membership struct {
	Interface int
	Group     netip.Addr
	Exclude   bool
	Sources   []netip.Addr // sorted; a duplicate is listed twice

	// Held: the interface is still the one that was joined, receives all that this
	// membership asks for, or will when it is up, and the network is told so.
	Held bool
}

func (m Membership) String() string {
	mode := "INCLUDE"
	if m.Exclude {
		mode = "EXCLUDE"
	}
	return fmt.Sprintf("%v%%%d %s%v", m.Group, m.Interface, mode, m.Sources)
}

// A Request is one option a socket received.
type Request struct {
	Name      string     // the option's own name, or level/number for others
	Get       bool       // asked for, not set
	Level     int        // -1 for an ioctl
	Number    uint32     // the option's number, or the ioctl's code
	Value     []byte     // the bytes received
	Interface int        // the index named; 0: none
	Address   netip.Addr // the address the interface was named by, in IP_* options
	Group     netip.Addr // not valid for options without a group
	Exclude   bool       // the mode, of full-state requests
	Sources   []netip.Addr
	Err       error // the answer
}

func (r Request) String() string {
	var b strings.Builder
	if r.Get {
		b.WriteString("get ")
	}
	b.WriteString(r.Name)
	if r.Group.IsValid() {
		fmt.Fprintf(&b, " %v%%%d", r.Group, r.Interface)
		if r.Address.IsValid() {
			fmt.Fprintf(&b, " (by %v)", r.Address)
		}
		if r.Exclude {
			b.WriteString(" exclude")
		}
		fmt.Fprintf(&b, " %v", r.Sources)
	} else {
		fmt.Fprintf(&b, " %x", r.Value[:min(len(r.Value), 32)])
	}
	fmt.Fprintf(&b, ": %s", answer(r.Err))
	return b.String()
}

// answer prints an error by number: the machine's names are not the model's.
func answer(err error) string {
	if errno, ok := err.(syscall.Errno); ok {
		return fmt.Sprintf("errno %d", uintptr(errno))
	}
	if err == nil {
		return "ok"
	}
	return err.Error()
}

func newKernel(sys *system) *Kernel {
	addrs := func(ss ...string) (as []netip.Addr) {
		for _, s := range ss {
			as = append(as, netip.MustParseAddr(s))
		}
		return as
	}
	return &Kernel{
		Word:  64,
		Order: binary.LittleEndian,
		Interfaces: map[int]Interface{
			1: {Name: "lo", Addrs: addrs("127.0.0.1", "::1"), Up: true, Loopback: true},
			2: {Name: "eth0", Addrs: addrs("192.0.2.1", "fe80::2"), Up: true},
			3: {Name: "eth1", Addrs: addrs("198.51.100.1", "fe80::3"), Up: true},
		},
		Route: 2,
		sys:   sys,
	}
}

// Linux returns a host as Linux 6.18 with its default limits.
func Linux() *Kernel {
	k := newKernel(linux)
	k.MaxMemberships = 20 // net.ipv4.igmp_max_memberships
	k.MaxMSF4 = 10        // net.ipv4.igmp_max_msf
	k.MaxMSF6 = 64        // net.ipv6.mld_max_msf
	k.OptMem = 131072     // net.core.optmem_max
	return k
}

// Darwin returns a host as macOS 15: XNU 11417.
func Darwin() *Kernel {
	k := newKernel(darwin)
	k.MaxMemberships = 4095 // IP_MAX_MEMBERSHIPS
	k.MaxMSF4 = 128         // net.inet.ip.mcast.maxsocksrc
	k.MaxMSF6 = 128
	k.MaxGroup = 512 // net.inet.ip.mcast.maxgrpsrc
	k.Reports = true
	k.TimerDelay = 10 * time.Millisecond
	k.ByteCountStep = 4
	k.DeliversBlocked = true
	return k
}

// FreeBSD returns a host as FreeBSD 13 and 14.
func FreeBSD() *Kernel {
	k := newKernel(freebsd)
	k.MaxMemberships = 4095
	k.MaxMSF4 = 128
	k.MaxMSF6 = 128
	k.MaxGroup = 512
	k.DeliversBlocked = true // imo_multi_filter is XNU's, line for line
	return k
}

// Windows returns a host as the Windows Sockets documentation describes it.
func Windows() *Kernel {
	k := newKernel(windows)
	k.FilterNeedsJoin = true
	k.UnknownInterface = wsaEADDRNOTAVAIL
	return k
}

// Socket opens a UDP socket: AF_INET6 or AF_INET.
func (k *Kernel) Socket(ipv6 bool) *Socket {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := &Socket{
		k:       k,
		ipv6:    ipv6,
		plain:   make(map[option][]byte),
		counts:  make(map[attempt]int),
		emptied: make(map[channel]bool),
	}
	k.sockets = append(k.sockets, s)
	return s
}

// AddInterface adds an interface, or changes the one with that index.
func (k *Kernel) AddInterface(index int, i Interface) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.Interfaces == nil {
		k.Interfaces = make(map[int]Interface)
	}
	was, ok := k.Interfaces[index]
	d := k.device(index)
	k.Interfaces[index] = i
	k.known = max(k.known, index)
	if ok {
		k.sys.model.altered(k, d, was, i)
	}
}

// RemoveInterface deletes an interface. An interface added later with the same
// index is another one.
func (k *Kernel) RemoveInterface(index int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.device(index)
	delete(k.Interfaces, index)
	delete(k.devices, index)
	k.known = max(k.known, index)
	if d != nil {
		k.sys.model.removed(k, d)
	}
}

// SetUp takes an interface up or down.
func (k *Kernel) SetUp(index int, up bool) {
	k.alter(index, func(i *Interface) { i.Up = up })
}

// SetMTU sets an interface's MTU.
func (k *Kernel) SetMTU(index, mtu int) {
	k.alter(index, func(i *Interface) { i.MTU = mtu })
}

// SetIPv6 is Linux' disable_ipv6 of an interface.
func (k *Kernel) SetIPv6(index int, on bool) {
	k.alter(index, func(i *Interface) { i.NoIPv6 = !on })
}

func (k *Kernel) alter(index int, change func(*Interface)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	was, ok := k.Interfaces[index]
	if !ok {
		return
	}
	d := k.device(index)
	is := was
	change(&is)
	k.Interfaces[index] = is
	k.sys.model.altered(k, d, was, is)
}

// device returns the device with that index, nil if there is none. Devices come
// into being in the order of their indexes.
func (k *Kernel) device(index int) *device {
	if _, ok := k.Interfaces[index]; !ok {
		return nil
	}
	if k.devices[index] == nil {
		if k.devices == nil {
			k.devices = make(map[int]*device)
		}
		for _, at := range slices.Sorted(maps.Keys(k.Interfaces)) {
			if k.devices[at] == nil {
				k.serial++
				k.devices[at] = &device{index: at, serial: k.serial, loopback: k.Interfaces[at].Loopback}
			}
		}
	}
	return k.devices[index]
}

// highest is the highest index that there ever was.
func (k *Kernel) highest() int {
	n := k.known
	for index := range k.Interfaces {
		n = max(n, index)
	}
	return n
}

// byAddress returns the index of the interface that has the address, 0 if none.
func (k *Kernel) byAddress(a netip.Addr) int {
	for _, index := range slices.Sorted(maps.Keys(k.Interfaces)) {
		if slices.Contains(k.Interfaces[index].Addrs, a) {
			return index
		}
	}
	return 0
}

// Setsockopt answers as the system's setsockopt. An error is a [syscall.Errno] with
// the modelled system's number, or what Fault returned.
func (s *Socket) Setsockopt(level, name int, value []byte) error {
	_, err := s.call(option{level, uint32(name)}, false, value, nil)
	return err
}

// Getsockopt answers as the system's getsockopt, reading from value what the
// option takes as input; n is how many bytes of value are valid on return.
func (s *Socket) Getsockopt(level, name int, value []byte) (n int, err error) {
	return s.call(option{level, uint32(name)}, true, value, value)
}

// Ioctl answers as Windows' WSAIoctl. Other systems answer ENOTTY.
func (s *Socket) Ioctl(code uint32, in, out []byte) (n int, err error) {
	get := code == sioGetMulticastFilter || code == siocGMSFilter
	return s.call(option{ioctl, code}, get, in, out)
}

// call is the one way in: fault injection, decoding, the model, the log.
func (s *Socket) call(o option, get bool, in, out []byte) (n int, err error) {
	k := s.k
	r, errno := k.sys.decode(k, o, get, in)
	value := bytes.Clone(in)
	if k.Fault != nil {
		err = k.Fault(o.level, int(o.number), in)
	}
	k.mu.Lock()
	late := k.fails(&err)
	if err == nil {
		n, err = s.answer(r, errno, in, out)
		if err == nil {
			err = late
		}
	}
	if k.FaultAfter != nil && err == nil {
		k.mu.Unlock()
		err = k.FaultAfter(o.level, int(o.number), value)
		k.mu.Lock()
	}
	defer k.mu.Unlock()
	entry := Request{
		Name: r.name, Get: get, Level: o.level, Number: o.number, Value: value,
		Interface: r.index, Address: r.address, Group: r.group, Exclude: r.exclude, Err: err,
	}
	if r.source.IsValid() {
		entry.Sources = []netip.Addr{r.source}
	} else if !get {
		entry.Sources = slices.Clone(r.sources)
	}
	s.log = append(s.log, entry)
	return n, err
}

func (s *Socket) answer(r request, errno syscall.Errno, in, out []byte) (n int, err error) {
	k := s.k
	e := k.sys.errno
	foreign := r.level == levelIPv6 && !s.ipv6 || r.level == levelIP && s.ipv6 && !k.sys.dual
	switch {
	case s.closed:
		return 0, e.badf
	case k.dead:
		return 0, e.dead
	case r.level == ioctl && (r.form == plain || r.form == unknown || k.NoIoctl):
		return 0, e.noIoctl
	case foreign && r.get:
		return 0, e.otherGet
	case foreign:
		return 0, e.otherFamily
	case r.form == unknown,
		r.form != plain && k.NoMCAST && strings.HasPrefix(r.name, "MCAST_"),
		r.form == mreqSource && k.NoIP,
		r.op == filterOp && k.NoMSFilter && r.level != ioctl:
		return 0, e.noProtoOpt
	case errno != 0 && !(r.short && r.get && k.sys.lenByte):
		return 0, errno // BSD looks first whether the socket has options at all
	case r.form == plain && !r.get:
		return 0, asError(s.setPlain(r, in))
	case r.form == plain:
		return s.getPlain(r, out)
	case r.get:
		n, errno = k.sys.model.get(s, &r, in, out)
		if r.level == ioctl && k.IoctlLength != nil && errno == 0 {
			n = k.IoctlLength(n)
		}
		return n, asError(errno)
	}
	return 0, asError(k.sys.model.set(s, &r))
}

func asError(e syscall.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

// find returns the newest entry that matches; index 0 matches any.
func (s *Socket) find(index int, group netip.Addr) *entry {
	for _, e := range s.entries {
		if e.group == group && (index == 0 || e.index == index) {
			return e
		}
	}
	return nil
}

// add puts a new entry in front.
func (s *Socket) add(e *entry) *entry {
	s.entries = slices.Insert(s.entries, 0, e)
	return e
}

func (s *Socket) remove(e *entry) {
	s.entries = slices.DeleteFunc(s.entries, func(x *entry) bool { return x == e })
}

// count is how many groups of the family the socket has joined.
func (s *Socket) count(ipv4 bool) (n int) {
	for _, e := range s.entries {
		if e.group.Is4() == ipv4 {
			n++
		}
	}
	return n
}

// Delivers reports whether this kernel would hand a datagram, sent by source to
// group and arriving on the interface, to this socket bound to the wildcard: what
// the kernel leaks and fails to drop included. Memberships of all the host's
// sockets decide it.
func (s *Socket) Delivers(ifindex int, group, source netip.Addr) bool {
	group, source = group.Unmap().WithZone(""), source.Unmap().WithZone("")
	k := s.k
	k.mu.Lock()
	defer k.mu.Unlock()
	d := k.device(ifindex)
	if s.closed || d == nil || !k.Interfaces[ifindex].Up || group.Is6() && !s.ipv6 {
		return false
	}
	return k.sys.model.delivers(s, d, group, source)
}

// Memberships returns the kernel's own list, sorted by interface and group: wrong
// states and entries of interfaces that went away included.
func (s *Socket) Memberships() []Membership {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	ms := s.k.sys.model.memberships(s)
	for i := range ms {
		ms[i].Sources = slices.Clone(ms[i].Sources)
		slices.SortFunc(ms[i].Sources, netip.Addr.Compare)
	}
	slices.SortStableFunc(ms, func(a, b Membership) int {
		return cmp.Or(cmp.Compare(a.Interface, b.Interface), a.Group.Compare(b.Group))
	})
	return ms
}

// Requests returns every option the socket received, in order, with its answer.
func (s *Socket) Requests() []Request {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	return slices.Clone(s.log)
}

// Log returns Requests as text, one line each.
func (s *Socket) Log() string {
	var b strings.Builder
	for _, r := range s.Requests() {
		fmt.Fprintln(&b, r)
	}
	return b.String()
}

// Close closes the socket and gives up its memberships.
func (s *Socket) Close() {
	s.k.mu.Lock()
	defer s.k.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	s.k.sys.model.closed(s)
	s.entries = nil
	s.k.sockets = slices.DeleteFunc(s.k.sockets, func(x *Socket) bool { return x == s })
}
