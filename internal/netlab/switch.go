package netlab

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// A Switch is a host with a bridge, br0, that snoops on IGMP and MLD and asks
// for reports: a group goes to the ports that want it.
type Switch struct {
	*Host
	net   int // the number in its hosts' addresses
	ports int
}

// SwitchConfig says what a switch is to be like. The zero value is what
// [Lab.Switch] makes.
type SwitchConfig struct {
	Name        string // "sw1", "sw2", …
	IGMPVersion int    // of its queries, 2 or 3; 0: 3
	MLDVersion  int    // of its queries, 1 or 2; 0: 2
	NoQuerier   bool   // it asks nothing: it floods until somebody else does
	NoSnooping  bool   // it floods
}

// Switch makes a switch and connects the hosts to it: see [Switch.Connect].
func (l *Lab) Switch(hosts ...*Host) *Switch {
	l.T().Helper()
	return l.NewSwitch(SwitchConfig{}, hosts...)
}

// NewSwitch is [Lab.Switch] for one with special properties.
func (l *Lab) NewSwitch(cfg SwitchConfig, hosts ...*Host) *Switch {
	t := l.T()
	t.Helper()
	l.mu.Lock()
	l.switches++
	s := &Switch{net: l.switches}
	l.mu.Unlock()
	if cfg.Name == "" {
		cfg.Name = fmt.Sprintf("sw%d", s.net)
	}
	if cfg.IGMPVersion == 0 {
		cfg.IGMPVersion = 3
	}
	if cfg.MLDVersion == 0 {
		cfg.MLDVersion = 2
	}
	snooping := "1"
	if cfg.NoSnooping {
		snooping = "0"
	}
	s.Host = l.Host(cfg.Name)
	if _, err := s.run("ip", "link", "add", "name", "br0", "index", fmt.Sprint(l.newIndex()), "type", "bridge",
		"mcast_snooping", snooping,
		"mcast_igmp_version", fmt.Sprint(cfg.IGMPVersion), "mcast_mld_version", fmt.Sprint(cfg.MLDVersion),
		"mcast_last_member_interval", "25", // twice that, and a leave has its effect
		"mcast_query_response_interval", "10"); err != nil {
		unavailable(t, err)
	}
	// The sender of MLD queries. The address that the kernel gives the bridge
	// comes with the first port only.
	if s.HasIPv6() {
		s.IP("addr", "add", "fe80::1/64", "dev", "br0", "nodad")
	}
	s.Up("br0")
	for _, h := range hosts {
		s.Connect(h, "eth0")
	}
	if !cfg.NoQuerier {
		// Once it is the querier, a bridge floods for one query response
		// interval: hosts may still have to answer (net/bridge/br_multicast.c,
		// delay_time). So that one is short, a tenth of a second, and the one
		// that is told to hosts later is a second.
		s.IP("link", "set", "dev", "br0", "type", "bridge", "mcast_querier", "1")
		time.Sleep(150 * time.Millisecond)
	}
	s.IP("link", "set", "dev", "br0", "type", "bridge", "mcast_query_response_interval", "100")
	return s
}

// Connect joins an interface of the host, which it makes, to a new port of
// the switch, which is named after the host (or "host-eth1" if it has one
// already). The interface gets the addresses 10.77.S.P/24 and fd77:S::P/64,
// in which S is the number of the switch and P that of the port.
func (s *Switch) Connect(h *Host, ifname string) {
	l := s.lab
	t := l.T()
	t.Helper()
	s.ports++
	port := h.name
	if _, _, ok := l.find(s.Host, port); ok {
		port += "-" + ifname
	}
	if len(port) > 15 {
		t.Fatalf("netlab: %q is too long for the name of a port", port)
	}
	k := &link{ends: [2]*end{
		{host: h, name: ifname, index: l.newIndex(), addrs: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(s.net), byte(s.ports)}), 24),
		}},
		{host: s.Host, name: port, index: l.newIndex(), master: "br0"},
	}}
	if h.HasIPv6() {
		a := netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x77, 3: byte(s.net), 15: byte(s.ports)})
		k.ends[0].addrs = append(k.ends[0].addrs, netip.PrefixFrom(a, 64))
	}
	l.add(k)
	s.waitForwarding(port)
}

// waitForwarding waits until the bridge uses the port.
func (s *Switch) waitForwarding(port string) {
	t := s.lab.T()
	t.Helper()
	var out string
	if !poll(5*time.Second, func() bool {
		out = s.Run("bridge", "-j", "link", "show", "dev", port)
		var links []struct{ State string }
		return json.Unmarshal([]byte(out), &links) == nil && len(links) == 1 && links[0].State == "forwarding"
	}) {
		t.Fatalf("netlab: switch %s: port %s does not forward: %s", s.name, port, out)
	}
}

// poll calls f until it returns true or the time is over.
func poll(timeout time.Duration, f func() bool) bool {
	for end := time.Now().Add(timeout); ; time.Sleep(20 * time.Millisecond) {
		if f() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

// An MDBEntry is an entry of a switch's multicast database.
type MDBEntry struct {
	Port    string     // that the group goes to; "br0" is the switch itself
	Group   netip.Addr // invalid if it is a MAC address
	Source  netip.Addr // the zero Addr in an entry for all sources, (*,G)
	Mode    string     // "include" or "exclude"; "" of a host that speaks no source filters
	Sources []netip.Addr
	Blocked bool     // an (S,G) that does not go to the port
	Flags   []string // as bridge(8) prints them
}

func (e MDBEntry) String() string {
	source := "*"
	if e.Source.IsValid() {
		source = e.Source.String()
	}
	return fmt.Sprintf("%s: (%s,%v) %s %v %v", e.Port, source, e.Group, e.Mode, e.Sources, e.Flags)
}

// ParseMDB parses what "bridge -d -j mdb show" prints.
func ParseMDB(text []byte) ([]MDBEntry, error) {
	var dump []struct {
		MDB []struct {
			Port       string `json:"port"`
			Grp        string `json:"grp"`
			Src        string `json:"src"`
			FilterMode string `json:"filter_mode"`
			SourceList []struct {
				Address string `json:"address"`
			} `json:"source_list"`
			Flags []string `json:"flags"`
		} `json:"mdb"`
	}
	if err := json.Unmarshal(text, &dump); err != nil {
		return nil, err
	}
	var entries []MDBEntry
	for _, d := range dump {
		for _, m := range d.MDB {
			e := MDBEntry{Port: m.Port, Mode: m.FilterMode, Flags: m.Flags, Blocked: slices.Contains(m.Flags, "blocked")}
			e.Group, _ = netip.ParseAddr(m.Grp)
			var err error
			if m.Src != "" {
				if e.Source, err = netip.ParseAddr(m.Src); err != nil {
					return nil, err
				}
			}
			for _, s := range m.SourceList {
				a, err := netip.ParseAddr(s.Address)
				if err != nil {
					return nil, err
				}
				e.Sources = append(e.Sources, a)
			}
			e.Sources = sorted(e.Sources)
			entries = append(entries, e)
		}
	}
	return entries, nil
}

// MDB returns the switch's multicast database.
func (s *Switch) MDB() []MDBEntry {
	t := s.lab.T()
	t.Helper()
	out := s.Run("bridge", "-d", "-j", "mdb", "show")
	entries, err := ParseMDB([]byte(out))
	if err != nil {
		t.Fatalf("netlab: switch %s: %v\n%s", s.name, err, out)
	}
	return entries
}

// WaitMDB waits until pred is true for the switch's multicast database, which
// it returns, and fails the test if it is not within five seconds.
func (s *Switch) WaitMDB(t testing.TB, pred func([]MDBEntry) bool) []MDBEntry {
	t.Helper()
	var entries []MDBEntry
	if !poll(5*time.Second, func() bool { entries = s.MDB(); return pred(entries) }) {
		t.Fatalf("netlab: switch %s: what was waited for is not in its database:\n%v", s.name, entries)
	}
	return entries
}

// WaitForwards waits until the switch sends the group from that source to the
// port, or until it does not, and fails the test if that takes longer than
// five seconds. The zero source stands for any one that is not listed.
func (s *Switch) WaitForwards(t testing.TB, port string, group, source netip.Addr, want bool) {
	t.Helper()
	var entries []MDBEntry
	if !poll(5*time.Second, func() bool { entries = s.MDB(); return Forwards(entries, port, group, source) == want }) {
		t.Fatalf("netlab: switch %s: (%v,%v) to port %s: not %v:\n%v", s.name, source, group, port, want, entries)
	}
}

// Forwards reports whether by those entries the group from that source goes
// to the port.
func Forwards(entries []MDBEntry, port string, group, source netip.Addr) bool {
	forwards := false
	for _, e := range entries {
		if e.Port != port || e.Group != group {
			continue
		}
		switch {
		case e.Source.IsValid() && e.Source == source:
			return !e.Blocked // the more specific entry decides
		case !e.Source.IsValid() && e.Mode != "include":
			forwards = true
		}
	}
	return forwards
}
