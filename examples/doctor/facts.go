package main

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Facts are all that the rules know. What a system does not tell, or not to
// this user, is left out, and Unseen says so.
type facts struct {
	System string     `json:"system"` // GOOS
	Group  netip.Addr `json:"group"`
	Source netip.Addr `json:"source,omitzero"` // invalid: any
	Port   uint16     `json:"port,omitempty"`  // 0: unknown
	Listen float64    `json:"listen_seconds"`

	Link    *link          `json:"interface"`          // nil: none was found
	Named   bool           `json:"interface_named"`    // by the user, not by the routing table
	NoRoute string         `json:"no_route,omitempty"` // why the routing table gave none
	Others  []string       `json:"others"`             // other interfaces that could hear
	Own     []netip.Addr   `json:"own_addresses"`
	indexes map[string]int // of interfaces
	Owner   string         `json:"source_on,omitempty"` // the interface of this host that has the source's address

	Routes      []route          `json:"routes"`            // back to the source, or to those seen
	Knobs       map[string]int   `json:"sysctls,omitempty"` // by name, as for sysctl(8)
	Members     []member         `json:"members"`           // of the group, on any interface, before the join
	Joined      int              `json:"joined"`            // memberships of the family on the host; -1: unknown
	Filters     int              `json:"filtered_sources"`  // the longest source list of a group; -1: unknown
	Version     int              `json:"version"`           // of IGMP or MLD that the interface speaks; 0: unknown
	Sockets     []udpSocket      `json:"sockets"`           // on the port, before the doctor's own
	Counts      map[string]int64 `json:"counters"`          // of the system, by which they grew meanwhile
	Blocked     []blocked        `json:"firewall"`          // what the firewall does to it
	Rules       bool             `json:"firewall_seen"`     // the firewall's rules could be read
	RulesHidden bool             `json:"firewall_hidden"`   // but not all of them

	Heard   heard      `json:"heard"`
	Witness *heard     `json:"heard_any_source,omitempty"` // nil: not tried
	Wire    *wire      `json:"wire,omitempty"`             // nil: not seen
	Around  []sighting `json:"around"`                     // after silence, on all interfaces
	Tunnels []tunnel   `json:"tunnels,omitempty"`          // after silence, by the relays to ask
	Unseen  []unseen   `json:"unseen"`
}

// A link is the interface.
type link struct {
	Index     int            `json:"index"`
	Name      string         `json:"name"`
	Up        bool           `json:"up"`
	Running   bool           `json:"running"` // it has a carrier
	Multicast bool           `json:"multicast"`
	Loopback  bool           `json:"loopback"`
	Addrs     []netip.Prefix `json:"addresses"`
	Kind      string         `json:"kind,omitempty"` // "bridge", "vlan", …
	Mode      string         `json:"mode,omitempty"` // of an ipvlan: "l2", "l3", "l3s"
	Master    string         `json:"master,omitempty"`
	Slave     string         `json:"port_of,omitempty"` // the master's kind: "bridge", "bond", …
}

// A route leads to a source.
type route struct {
	Source    netip.Addr `json:"source"`
	Interface []string   `json:"interfaces"` // several of a multipath route
	Gateway   netip.Addr `json:"gateway,omitzero"`
	None      string     `json:"none,omitempty"`    // why there is none
	Refused   bool       `json:"refused,omitempty"` // the kernel's own check of the source says no
}

// A member is a group that the host has joined.
type member struct {
	Interface string     `json:"interface"`
	Index     int        `json:"-"`
	Group     netip.Addr `json:"group"`
	Users     int        `json:"users"`
	Version   int        `json:"version,omitempty"`
}

// A udpSocket is somebody's socket.
type udpSocket struct {
	Local netip.AddrPort `json:"local"`
	UID   int            `json:"uid"`
	Drops int            `json:"drops"`
}

// Heard is what a socket heard.
type heard struct {
	Error    string        `json:"error,omitempty"` // of listening or joining
	Knob     string        `json:"limit,omitempty"` // the limit that the join ran into
	InUse    bool          `json:"in_use,omitempty"`
	Tried    bool          `json:"tried"`
	Received uint64        `json:"received"`
	Filtered uint64        `json:"filtered"`
	Dropped  uint64        `json:"dropped"`
	Buffer   int           `json:"read_buffer"`
	Sources  []sourceCount `json:"sources"`
}

type sourceCount struct {
	Source netip.Addr `json:"source"`
	Count  int        `json:"count"`
}

// Wire is what a capture on the interface saw.
type wire struct {
	Flows   []flow   `json:"flows"`   // of the group
	Queries []query  `json:"queries"` // of the family
	Reports []report `json:"reports"` // that this host sent of the group
}

type flow struct {
	Source netip.Addr `json:"source"`
	Port   uint16     `json:"port"`
	VLAN   int        `json:"vlan,omitempty"` // 0: untagged
	Sent   bool       `json:"sent,omitempty"` // by this host
	Count  int        `json:"count"`
}

type query struct {
	From    netip.Addr `json:"from"`
	Version int        `json:"version"`
	Sent    bool       `json:"sent,omitempty"`
}

type report struct {
	Version int `json:"version"`
}

// Unseen is what could not be looked at.
type unseen struct {
	What  string `json:"what"`
	Needs string `json:"needs"`
}

func (f *facts) miss(what, needs string) {
	f.Unseen = append(f.Unseen, unseen{what, needs})
}

func (f *facts) ssm() bool {
	b := f.Group.As16()
	return f.Group.Is4() && f.Group.As4()[0] == 232 || f.Group.Is6() && b[1]>>4 == 3 && b[2] == 0 && b[3] == 0
}

// linkLocal reports whether the group stays on its link (RFC 5771 section 4,
// RFC 4291 section 2.7).
func (f *facts) linkLocal() bool {
	return f.Group.IsLinkLocalMulticast() || f.Group.IsInterfaceLocalMulticast()
}

// protocol is IGMP or MLD, and its version that knows sources.
func (f *facts) protocol() (name string, version int) {
	if f.Group.Is6() {
		return "MLD", 2
	}
	return "IGMP", 3
}

func (f *facts) duration() time.Duration { return time.Duration(f.Listen * float64(time.Second)) }

// channel is what is to be heard, for people.
func (f *facts) channel() string {
	if f.Source.IsValid() {
		return f.Source.String() + "@" + f.Group.String()
	}
	return f.Group.String()
}

// wants reports whether the source is one that is to be heard.
func (f *facts) wants(source netip.Addr) bool {
	return !f.Source.IsValid() || f.Source == source.WithZone("")
}

// incoming returns the flows from elsewhere for which pred is true.
func (w *wire) incoming(pred func(flow) bool) (fs []flow) {
	if w == nil {
		return nil
	}
	for _, x := range w.Flows {
		if !x.Sent && pred(x) {
			fs = append(fs, x)
		}
	}
	return fs
}

// knob is the name of a sysctl of the interface, as sysctl(8) takes it: a dot
// in the interface's name is a slash.
func knob(family, ifname, name string) string {
	return "net." + family + ".conf." + strings.ReplaceAll(ifname, ".", "/") + "." + name
}

// maxKnob is the larger of the values for all and for the interface.
func (f *facts) maxKnob(family, name string) (n int, ok bool) {
	for _, of := range []string{"all", f.Link.Name} {
		if v, found := f.Knobs[knob(family, of, name)]; found {
			n, ok = max(n, v), true
		}
	}
	return n, ok
}

// has reports whether the interface has an address of the group's family, and
// whether one of its networks has the address.
func (l *link) has(is6 bool) bool {
	return slices.ContainsFunc(l.Addrs, func(p netip.Prefix) bool { return p.Addr().Is6() == is6 })
}

func (l *link) onLink(a netip.Addr) bool {
	return slices.ContainsFunc(l.Addrs, func(p netip.Prefix) bool { return p.Contains(a.WithZone("")) })
}
