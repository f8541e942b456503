// Package netif knows the interfaces of a machine, or of a network namespace
// of it: their names, addresses and routes, and what happens to them.
//
// A [Host] answers questions. Its [Source] tells of changes as the system
// does, and a [State] concludes from them what has happened.
//
// # What the systems tell
//
// Linux tells everything, by rtnetlink(7), and [Host] answers for the network
// namespace of the socket that it was made of, whatever thread asks.
//
// macOS and the BSDs hint at changes by a routing socket (route(4)); after each
// hint all interfaces are looked at. Carriers are told by a kernel event socket
// on macOS, and by routing messages on FreeBSD. OpenBSD, NetBSD and DragonFly
// tell of none.
//
// Windows hints by NotifyIpInterfaceChange. There an interface without a
// carrier is not up.
//
// On other systems there is no news: [Host.Watch] is [errors.ErrUnsupported].
package netif

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// An Interface is a network interface as the system describes it.
type Interface struct {
	Index     int
	Name      string
	Up        bool // administratively
	Carrier   bool // the link is there; true where the system does not tell
	Multicast bool // it takes memberships
	Loopback  bool
	Master    int  // the bridge or bond that it is a port of; 0: none, or not told
	IPv6      bool // IPv6 runs on it; true where the system does not tell. Without a carrier it may be out of date

	// IPv6Disabled says why IPv6 does not run: it is switched off, and memberships
	// are kept. Else they are gone with it.
	IPv6Disabled bool
}

// ErrNotFound is wrapped by errors of [Host.Index] and [Host.Name].
var ErrNotFound = errors.New("no such interface")

// A Host answers questions about the machine, or the network namespace, that
// a socket is on. Its methods may be called concurrently.
type Host interface {
	// Index gives the index of the interface with that name.
	// An error that is [ErrNotFound]: there is none.
	Index(name string) (int, error)
	// Name gives the name of the interface with that index.
	// An error that is [ErrNotFound]: there is none.
	Name(index int) (string, error)
	// Interfaces returns all interfaces, sorted by index.
	Interfaces() ([]Interface, error)
	// Address4 gives one of the interface's IPv4 addresses.
	Address4(index int) (netip.Addr, bool)
	// Route gives the interface that the routing table picks for an address.
	// For an address of this machine it is the interface that has it, and for
	// one with a zone that zone's.
	Route(to netip.Addr) (index int, err error)
	// DefaultRoutes returns the interfaces that have a default route, the
	// preferred one first. Other systems than Linux tell one at most.
	DefaultRoutes(ipv6 bool) []int
	// Limit reads a sysctl, on Linux.
	Limit(knob string) (n int, ok bool)
	// Namespace tells network namespaces apart. 0: there is only one, or the
	// system does not tell (Linux before 5.14).
	Namespace() uint64
	// Watch opens a source of news. Where the system has none, the error is
	// [errors.ErrUnsupported].
	Watch() (Source, error)
}

// HostOf returns the host that an open socket is on. It uses the socket for as
// long as it is used itself; the socket may be closed before a [Source] is.
func HostOf(raw syscall.RawConn) Host { return hostOf(raw) }

// A Source tells of changes of interfaces. One goroutine may read; Close may be
// called at any time.
type Source interface {
	// Read waits for changes. The first ones are all interfaces that there
	// are. After Close, the error is [os.ErrClosed] or [net.ErrClosed].
	Read() ([]Change, error)
	// Close makes Read return.
	Close() error
}

// A Change is news of one interface, or a reason to look at all.
type Change struct {
	Interface
	Gone     bool // only the Index is known
	Carriers int  // how often its carrier came or went; 0: not told
	Moved    bool // an address or a route changed, somewhere; there is no Interface
	Woke     bool // the machine slept, or its clock was set ahead, by more than a minute; there is no Interface
}

// A Kind says what [News] is about.
type Kind uint8

const (
	Came        Kind = iota // there is a new interface
	Gone                    // there is no such interface any more, though maybe another one of its index or name
	Renamed                 // it has another name
	Down                    // it was taken down
	Up                      // it was taken up
	CarrierLost             // the link went while the interface was up
	CarrierBack             // the link came while the interface was up
	IPv6Lost                // IPv6 ended on it
	IPv6Back                // IPv6 began on it
	Changed                 // anything else about it; with no Interface: an address or a route, somewhere
	Woke                    // see [Change.Woke]; there is no Interface
)

var kinds = [...]string{"came", "gone", "renamed", "down", "up", "carrier lost", "carrier back", "IPv6 lost", "IPv6 back", "changed", "woke"}

// String returns "came", "carrier lost", and so on.
func (k Kind) String() string {
	if int(k) < len(kinds) {
		return kinds[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// News is what a [State] concludes from changes.
type News struct {
	Kind      Kind
	Interface Interface // as it is now; of Gone, as it was
	Was       string    // of Renamed: the name before
	Since     time.Time // of Up and CarrierBack: since when it was without
}

// A State is what is known of the interfaces. The zero State knows none. It is
// not safe for concurrent use.
type State struct {
	known map[int]*known
	told  uint64 // changes
}

type known struct {
	Interface
	carriers      int
	told          uint64    // the change that said so
	down, without time.Time // since when it is down, and up without a carrier
}

// Apply takes in changes, in their order, and says what they amount to. Nothing
// is said about what stays as it was. At first every interface came.
func (s *State) Apply(changes []Change, now time.Time) []News {
	var news []News
	moved := false
	for _, c := range changes {
		switch {
		case c.Woke:
			news = append(news, News{Kind: Woke})
		case c.Moved:
			moved = true
		case c.Gone:
			if k := s.known[c.Index]; k != nil {
				delete(s.known, c.Index)
				news = append(news, News{Kind: Gone, Interface: k.Interface})
			}
		default:
			news = s.apply(news, c, now)
		}
	}
	if moved {
		news = append(news, News{Kind: Changed})
	}
	return news
}

func (s *State) apply(news []News, c Change, now time.Time) []News {
	s.told++
	k := s.known[c.Index]
	if k != nil && c.Carriers != 0 && c.Carriers < k.carriers {
		// What counts anew is another interface; the news of it got lost.
		news = append(news, News{Kind: Gone, Interface: k.Interface})
		k = nil
	}
	if k == nil {
		if s.known == nil {
			s.known = make(map[int]*known)
		}
		s.known[c.Index] = &known{Interface: c.Interface, carriers: c.Carriers, told: s.told, down: now, without: now}
		return append(news, News{Kind: Came, Interface: c.Interface})
	}
	was := k.Interface
	flapped := c.Carriers > k.carriers
	k.Interface, k.told = c.Interface, s.told
	if c.Carriers != 0 {
		k.carriers = c.Carriers
	}
	say := func(kind Kind, since time.Time) {
		news = append(news, News{Kind: kind, Interface: k.Interface, Since: since})
	}

	if k.Name != was.Name {
		news = append(news, News{Kind: Renamed, Interface: k.Interface, Was: was.Name})
	}
	switch {
	case was.Up && !k.Up:
		k.down = now
		say(Down, time.Time{})
	case !was.Up && k.Up:
		// What becomes of the carrier while an interface is down is no news.
		k.without = now
		say(Up, k.down)
	case !k.Up:
	case was.Carrier && !k.Carrier:
		k.without = now
		say(CarrierLost, time.Time{})
	case !was.Carrier && k.Carrier:
		say(CarrierBack, k.without)
	case k.Carrier && flapped:
		// A short loss is told as one change, with the count two higher.
		say(CarrierLost, time.Time{})
		say(CarrierBack, now)
	}
	switch {
	case was.IPv6 && !k.IPv6, was.IPv6Disabled && !k.IPv6Disabled && !k.IPv6:
		say(IPv6Lost, time.Time{})
	case !was.IPv6 && k.IPv6:
		say(IPv6Back, time.Time{})
	}
	if k.Multicast != was.Multicast || k.Loopback != was.Loopback || k.Master != was.Master {
		say(Changed, time.Time{})
	}
	return news
}

// Interface gives the interface with that index.
func (s *State) Interface(index int) (Interface, bool) {
	if k := s.known[index]; k != nil {
		return k.Interface, true
	}
	return Interface{}, false
}

// Named gives the interface with that name. If the news of a new owner of the
// name came before that of the old one's end, it is the new one.
func (s *State) Named(name string) (Interface, bool) {
	var last *known
	for _, k := range s.known {
		if k.Name == name && (last == nil || k.told > last.told) {
			last = k
		}
	}
	if last == nil {
		return Interface{}, false
	}
	return last.Interface, true
}

// Interfaces returns all interfaces, sorted by index.
func (s *State) Interfaces() []Interface {
	list := make([]Interface, 0, len(s.known))
	for k := range maps.Values(s.known) {
		list = append(list, k.Interface)
	}
	sortByIndex(list)
	return list
}

func sortByIndex(list []Interface) {
	slices.SortFunc(list, func(a, b Interface) int { return cmp.Compare(a.Index, b.Index) })
}

// zoneIndex gives the interface that a zone names, by its index or its name.
func zoneIndex(h Host, zone string) (int, error) {
	if index, err := strconv.Atoi(zone); err == nil {
		_, err := h.Name(index)
		return index, err
	}
	return h.Index(zone)
}

// An ownAddress is an address of this machine.
type ownAddress struct {
	addr  netip.Addr // without a zone
	index int
	lo    bool // the interface is a loopback
}

// owner gives the interface that has the address: if several have it, rather
// one that is no loopback. 0: none has.
func owner(own []ownAddress, a netip.Addr) int {
	index := 0
	for _, o := range own {
		if o.addr == a && !o.lo {
			return o.index
		}
		if o.addr == a && index == 0 {
			index = o.index
		}
	}
	return index
}

// nap is how far clocks may come apart before the machine is said to have slept.
const nap = time.Minute

// A napDetector compares the clock that stands still while a machine sleeps
// with one that does not.
type napDetector struct {
	begun bool
	apart time.Duration
}

// slept reports whether, since it was called last, the clock that never stops
// has gained more than a minute on the one that does. Small gains, by which a
// clock is disciplined, do not add up.
func (d *napDetector) slept(stops, never time.Duration) bool {
	gained := never - stops - d.apart
	woke := d.begun && gained > nap
	d.begun, d.apart = true, never-stops
	return woke
}
