package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// A severity says how bad a finding is.
type severity uint8

const (
	ok      severity = iota
	note             // it may matter
	problem          // it keeps datagrams away
)

func (s severity) String() string { return [...]string{"ok", "note", "problem"}[s] }

// MarshalText returns the text of String.
func (s severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// A finding is one sentence, and the commands that mend what it says.
type finding struct {
	Severity severity `json:"severity"`
	Rule     string   `json:"rule"`
	Text     string   `json:"text"`
	Fix      []string `json:"fix,omitempty"`
}

func say(s severity, fix []string, format string, args ...any) []finding {
	return []finding{{Severity: s, Text: fmt.Sprintf(format, args...), Fix: fix}}
}

func commands(cs ...string) []string { return cs }

// doctor is the command that looks at something else.
func (f *facts) doctor(ifname string, source netip.Addr, port uint16, flags ...string) string {
	g := f.Group.String()
	if port != 0 {
		g = netip.AddrPortFrom(f.Group, port).String()
	}
	if source.IsValid() {
		g = source.String() + "@" + g
	}
	return shell(slices.Concat([]string{"doctor"}, flags, []string{"-i", ifname, g})...)
}

// shell quotes the words of a command where a shell would see more in them, as
// in the brackets of an IPv6 address.
func shell(words ...string) string {
	for i, w := range words {
		if w == "" || strings.ContainsFunc(w, func(r rune) bool {
			return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-_./:@%+=,", r))
		}) {
			words[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}

// Rules look at the facts, one after the other.
var rules = []struct {
	name string
	// check may rely on a Link unless it is the first.
	check func(f *facts) []finding
}{
	{"interface", checkInterface},
	{"up", checkUp},
	{"carrier", checkCarrier},
	{"multicast", checkMulticast},
	{"address", checkAddress},
	{"port-of", checkPortOf},
	{"kind", checkKind},
	{"vrf", checkVRF},
	{"scope", checkScope},
	{"ssm", checkSSM},
	{"source", checkSource},
	{"rp_filter", checkReversePath},
	{"version", checkVersion},
	{"limits", checkLimits},
	{"join", checkJoin},
	{"members", checkMembers},
	{"sockets", checkSockets},
	{"firewall", checkRules},
	{"report", checkReport},
	{"querier", checkQuerier},
	{"buffer", checkBuffer},
	{"checksum", checkChecksum},
	{"packets", checkPackets},
	{"martian", checkMartian},
}

// diagnose applies all rules. That of what was heard is behind the others: where
// nothing was and another one has the reason, that is no problem of its own. The
// last one says what could be done about it.
func diagnose(f *facts) (all []finding) {
	add := func(name string, fs []finding) {
		for _, x := range fs {
			x.Rule = name
			all = append(all, x)
		}
	}
	for _, r := range rules {
		add(r.name, r.check(f))
		if f.Link == nil {
			add("amt", checkTunnels(f))
			return all
		}
	}
	explained := slices.ContainsFunc(all, func(x finding) bool { return x.Severity == problem })
	add("heard", checkHeard(f, explained))
	add("amt", checkTunnels(f))
	return all
}

func checkInterface(f *facts) []finding {
	if f.Link != nil {
		how := "as the routing table chose"
		if f.Named {
			how = "as asked for"
		}
		return say(ok, nil, "the interface is %s, %s", f.Link.Name, how)
	}
	dev := "IFACE"
	if len(f.Others) > 0 {
		dev = f.Others[0]
	}
	to := "224.0.0.0/4"
	if f.Group.Is6() {
		to = "ff00::/8 table local"
	}
	if f.Source.IsValid() {
		to = netip.PrefixFrom(f.Source, f.Source.BitLen()).String()
	}
	route := fmt.Sprintf("ip route add %s dev %s", to, dev)
	if f.Group.Is6() {
		route = fmt.Sprintf("ip -6 route add %s dev %s", to, dev)
	}
	fix := commands(f.doctor(dev, f.Source, f.Port))
	if f.System == "linux" {
		fix = append(fix, route)
	}
	return say(problem, fix, "no interface: %s; name one of %s, or add a route", cmp.Or(f.NoRoute, "there is none"), cmp.Or(strings.Join(f.Others, ", "), "this host's (none is up and fit for it)"))
}

// linuxOnly are commands for Linux; elsewhere there is none to give.
func (f *facts) linuxOnly(cs ...string) []string {
	if f.System == "linux" {
		return cs
	}
	return nil
}

func checkUp(f *facts) []finding {
	if f.Link.Up {
		return say(ok, nil, "%s is up", f.Link.Name)
	}
	return say(problem, f.linuxOnly("ip link set dev "+f.Link.Name+" up"), "%s is down: a join succeeds there, and nothing is heard", f.Link.Name)
}

func checkCarrier(f *facts) []finding {
	switch {
	case !f.Link.Up:
		return nil
	case f.Link.Running:
		return say(ok, nil, "%s has a carrier", f.Link.Name)
	}
	return say(problem, f.linuxOnly("ip -d link show dev "+f.Link.Name), "%s is up but has no carrier: look at the cable, and at the port at its other end", f.Link.Name)
}

func checkMulticast(f *facts) []finding {
	switch {
	case f.Link.Multicast:
		return say(ok, nil, "%s takes multicast", f.Link.Name)
	case f.Link.Loopback: // Linux's has no flag, and takes IPv4 multicast
		return nil
	case f.Heard.Received > 0: // as with many tunnels
		return say(note, f.linuxOnly("ip link set dev "+f.Link.Name+" multicast on"), "%s lacks the MULTICAST flag, and delivers all the same: it is there for programs that ask for it", f.Link.Name)
	}
	return say(problem, f.linuxOnly("ip link set dev "+f.Link.Name+" multicast on"), "%s lacks the MULTICAST flag: its driver need not receive groups, and nothing routes them there", f.Link.Name)
}

func checkAddress(f *facts) []finding {
	l := f.Link
	if n, _ := f.ownKnob("ipv6", "disable_ipv6"); n > 0 && f.Group.Is6() {
		return say(problem, commands("sysctl -w "+knob("ipv6", l.Name, "disable_ipv6")+"=0"), "IPv6 is disabled on %s", l.Name)
	}
	var of []netip.Prefix
	for _, p := range l.Addrs {
		if p.Addr().Is6() == f.Group.Is6() {
			of = append(of, p)
		}
	}
	if len(of) > 0 {
		return say(ok, nil, "%s has %s", l.Name, list(of))
	}
	fix := f.linuxOnly("ip addr add ADDRESS/LENGTH dev " + l.Name)
	if f.Group.Is6() {
		return say(problem, fix, "%s has no IPv6 address: its MLD reports come from ::, which routers and switches ignore", l.Name)
	}
	return say(problem, fix, "%s has no IPv4 address: its IGMP reports come from 0.0.0.0, which many switches and routers ignore", l.Name)
}

// ownKnob is the interface's own value of a sysctl.
func (f *facts) ownKnob(family, name string) (int, bool) {
	n, found := f.Knobs[knob(family, f.Link.Name, name)]
	return n, found
}

func checkPortOf(f *facts) []finding {
	l := f.Link
	switch {
	case l.Master == "" || l.Slave == "vrf":
		return nil
	case l.Slave == "bridge":
		return say(problem, commands(f.doctor(l.Master, f.Source, f.Port)), "%s is a port of the bridge %s, which takes what arrives there: join on %s", l.Name, l.Master, l.Master)
	}
	return say(problem, commands(f.doctor(l.Master, f.Source, f.Port)), "%s is a part of %s (%s), which takes what arrives there: join on %s", l.Name, l.Master, cmp.Or(l.Slave, "another interface"), l.Master)
}

// checkKind: interfaces that take no multicast, whatever their flags say.
func checkKind(f *facts) []finding {
	l := f.Link
	switch {
	case l.Kind == "ipvlan" && strings.HasPrefix(l.Mode, "l3"):
		s := problem
		if f.Heard.Received > 0 {
			s = note
		}
		return say(s, commands("ip link set dev "+l.Name+" type ipvlan mode l2"), "%s is an ipvlan in mode %s, which takes no multicast and sends none: mode l2 does", l.Name, l.Mode)
	case l.Kind == "vrf":
		return say(problem, nil, "%s is a VRF, in which nothing arrives by itself: join on one of its interfaces", l.Name)
	}
	return nil
}

// checkVRF: what arrives in a VRF is for sockets bound to it, unless a sysctl
// says otherwise (Documentation/networking/vrf.rst).
func checkVRF(f *facts) []finding {
	const accept = "net.ipv4.udp_l3mdev_accept" // for IPv6 too
	l := f.Link
	switch {
	case l.Slave != "vrf":
		return nil
	case f.Knobs[accept] == 1:
		return say(ok, nil, "%s is in the VRF %s, and any socket hears what arrives there (%s=1)", l.Name, l.Master, accept)
	}
	s := problem
	if f.Heard.Received > 0 {
		s = note
	}
	return say(s, commands("ip vrf exec "+l.Master+" PROGRAM", "sysctl -w "+accept+"=1"), "%s is in the VRF %s: only a socket that is bound to %s or %s (SO_BINDTODEVICE) hears what arrives there, or any if %s is 1", l.Name, l.Master, l.Master, l.Name, accept)
}

func checkScope(f *facts) (fs []finding) {
	if f.Link.Loopback {
		fs = append(fs, say(note, nil, "%s is the loopback interface: only what this host sends there is heard", f.Link.Name)...)
	}
	if !f.linkLocal() {
		return fs
	}
	if f.Group.Is6() && !f.Named {
		fs = append(fs, say(note, commands(f.doctor(f.Link.Name, f.Source, f.Port)), "%v is link-local, and no interface was named: there is one such group on each link", f.Group)...)
	}
	if f.Group.IsInterfaceLocalMulticast() {
		return append(fs, say(note, nil, "%v never leaves the host that sends to it", f.Group)...)
	}
	if f.Owner != "" {
		return fs
	}
	if f.Source.IsValid() && !f.Link.onLink(f.Source) && (f.Source.Is4() || !f.Source.IsLinkLocalUnicast()) {
		return append(fs, say(problem, nil, "no router forwards %v, and %v is not of a network on %s: send to another group", f.Group, f.Source, f.Link.Name)...)
	}
	return append(fs, say(note, nil, "%v is link-local: no router forwards it, so the sender must be on the link of %s", f.Group, f.Link.Name)...)
}

func checkSSM(f *facts) []finding {
	switch {
	case !f.ssm():
		return nil
	case f.Source.IsValid():
		return say(ok, nil, "%s is a channel, a group from one source (RFC 4607)", f.channel())
	}
	var fix []string
	if len(f.Heard.Sources) > 0 {
		fix = commands(f.doctor(f.Link.Name, f.Heard.Sources[0].Source, f.Port))
	} else if in := f.Wire.incoming(func(flow) bool { return true }); len(in) > 0 {
		fix = commands(f.doctor(f.Link.Name, in[0].Source, in[0].Port))
	}
	return say(problem, fix,
		"%v is source-specific (RFC 4607): routers ignore a join for any source; join the channel with its source", f.Group)
}

func checkSource(f *facts) (fs []finding) {
	if f.Owner != "" {
		fs = append(fs, say(note, nil, "%v is an address of this host, on %s: what arrives with it from the network is dropped, and its own datagrams are heard only if it sends them out of %s and loops them back (IP_MULTICAST_LOOP)", f.Source, f.Owner, f.Link.Name)...)
	}
	for _, r := range f.Routes {
		switch {
		case f.Owner != "" || r.Refused && f.rpFilter() > 0: // another rule says so
		case r.None != "":
			fs = append(fs, say(note, nil, "there is no route back to %v (%s)", r.Source, r.None)...)
		case !slices.Contains(r.Interface, f.Link.Name):
			fs = append(fs, say(note, nil, "the route back to %v leads to %s, not to %s: routers send a stream the way that leads back to its source, so it may arrive there", r.Source, strings.Join(r.Interface, " and "), f.Link.Name)...)
		case r.Gateway.IsValid():
			fs = append(fs, say(ok, nil, "the route back to %v leads to %s, by %v", r.Source, f.Link.Name, r.Gateway)...)
		default:
			fs = append(fs, say(ok, nil, "the route back to %v leads to %s", r.Source, f.Link.Name)...)
		}
	}
	return fs
}

// rpFilter is the value in effect, -1 if unknown.
func (f *facts) rpFilter() int {
	if n, found := f.maxKnob("ipv4", "rp_filter"); found {
		return n
	}
	return -1
}

// checkReversePath: Linux takes the larger of two values, 1 strict and 2 loose,
// so that 2 on the interface undoes 1 on all (ip-sysctl).
func checkReversePath(f *facts) (fs []finding) {
	value := f.rpFilter()
	if value < 0 || f.Group.Is6() {
		return nil
	}
	name := knob("ipv4", f.Link.Name, "rp_filter")
	loose := "sysctl -w " + name + "=2"
	kind := "strict"
	if value == 2 {
		kind = "loose"
	}
	for _, r := range f.Routes {
		route := fmt.Sprintf("ip route add %v dev %s", netip.PrefixFrom(r.Source, r.Source.BitLen()), f.Link.Name)
		switch {
		case !r.Refused || value == 0 || f.Owner != "":
		case !f.Link.has(false):
			fs = append(fs, say(problem, commands("ip addr add ADDRESS/LENGTH dev "+f.Link.Name), "%s reverse path filtering (rp_filter=%d) drops all that arrives on %s, which has no address", kind, value, f.Link.Name)...)
		case r.None != "":
			fs = append(fs, say(problem, commands(route), "%s reverse path filtering (rp_filter=%d) drops what %v sends: there is no route back to it", kind, value, r.Source)...)
		default:
			fs = append(fs, say(problem, commands(loose, route), "%s reverse path filtering (rp_filter=%d) drops what %v sends: the route back to it leads to %s, not to %s", kind, value, r.Source, strings.Join(r.Interface, " and "), f.Link.Name)...)
		}
	}
	n := f.Counts["TcpExt:IPReversePathFilter"]
	switch {
	case len(fs) > 0:
		return fs
	case n > 0 && value > 0:
		return say(problem, commands(loose), "%s reverse path filtering (rp_filter=%d) dropped %s meanwhile: the routes back to their sources lead elsewhere, or there are none", kind, value, count(n, "packet"))
	case value == 1 && len(f.Routes) == 0 && f.Heard.Received == 0:
		return say(note, commands(loose), "reverse path filtering is strict on %s: it drops sources to which the route does not lead back there", f.Link.Name)
	}
	return say(ok, nil, "reverse path filtering lets it through (rp_filter=%d)", value)
}

func checkVersion(f *facts) []finding {
	if f.Owner != "" {
		return nil // what is heard does not come through the network
	}
	protocol, want := f.protocol()
	family, name := "ipv4", "force_igmp_version"
	if f.Group.Is6() {
		family, name = "ipv6", "force_mld_version"
	}
	version, forced, by := f.Version, 0, ""
	for _, of := range []string{"all", f.Link.Name} {
		if v := f.Knobs[knob(family, of, name)]; v != 0 && (forced == 0 || v < forced) {
			forced, by = v, knob(family, of, name)
		}
	}
	if forced != 0 && (version == 0 || forced < version) {
		version = forced
	}
	old := netip.Addr{} // of an older querier
	if f.Wire != nil && forced == 0 {
		for _, q := range f.Wire.Queries {
			if q.Version < want && (version == 0 || q.Version <= version) {
				version, old = q.Version, q.From
				break
			}
		}
	}
	switch {
	case version == 0:
		return nil
	case version >= want:
		return say(ok, nil, "%s speaks %sv%d", f.Link.Name, protocol, version)
	}
	why, fix := fmt.Sprintf("because an older querier is on the network: make it speak %sv%d, or force this host", protocol, want),
		commands(fmt.Sprintf("sysctl -w %s=%d", knob(family, f.Link.Name, name), want))
	if old.IsValid() {
		why = fmt.Sprintf("because the querier %v does: make that one speak %sv%d, or force this host", old, protocol, want)
	}
	if forced == version {
		why, fix = "because "+by+" says so", commands("sysctl -w "+by+"=0")
	}
	switch {
	case f.Source.IsValid() && f.ssm():
		return say(problem, fix, "%s speaks %sv%d, whose reports name no sources, and routers ignore them for %v (RFC 4604): %s", f.Link.Name, protocol, version, f.Group, why)
	case f.Source.IsValid():
		return say(note, fix, "%s speaks %sv%d, whose reports name no sources: the network sends all of them, and only this host filters; %s", f.Link.Name, protocol, version, why)
	}
	return say(note, fix, "%s speaks %sv%d, %s", f.Link.Name, protocol, version, why)
}

func checkLimits(f *facts) (fs []finding) {
	memberships, msf := "net.ipv4.igmp_max_memberships", "net.ipv4.igmp_max_msf"
	if f.Group.Is6() {
		memberships, msf = "", "net.ipv6.mld_max_msf"
	}
	var limits []string
	for _, name := range []string{memberships, msf, "net.core.optmem_max", "net.core.rmem_max"} {
		if n, found := f.Knobs[name]; found {
			limits = append(limits, fmt.Sprintf("%s=%d", name, n))
		}
	}
	if n, found := f.Knobs[memberships]; found && f.Joined >= n && n > 0 {
		fs = append(fs, say(note, commands(fmt.Sprintf("sysctl -w %s=%d", memberships, max(2*f.Joined, 1000))), "this host has %s, and one socket may have %d (%s): a program that joins more on one gets ENOBUFS", count(f.Joined, "membership"), n, memberships)...)
	}
	if n, found := f.Knobs[msf]; found && f.Filters >= n {
		fs = append(fs, say(note, commands(fmt.Sprintf("sysctl -w %s=%d", msf, max(2*f.Filters, 1000))), "a group has a list of %s, and one socket may have %d (%s): a program that lists more on one gets ENOBUFS", count(f.Filters, "source"), n, msf)...)
	}
	if len(fs) == 0 && len(limits) > 0 {
		used := ""
		if f.Joined >= 0 {
			used = fmt.Sprintf("; all sockets together have %s, and at most %s to a group", count(f.Joined, "membership"), count(f.Filters, "source"))
		}
		fs = say(ok, nil, "limits of a socket: %s%s", strings.Join(limits, " "), used)
	}
	return fs
}

func checkJoin(f *facts) []finding {
	h := f.Heard
	switch {
	case h.Error == "":
		return say(ok, nil, "%s was joined", f.channel())
	case h.Knob != "":
		n := max(2*f.Knobs[h.Knob], 20)
		return say(problem, f.linuxOnly(fmt.Sprintf("sysctl -w %s=%d", h.Knob, n)), "the join failed at the limit %s: %s", h.Knob, h.Error)
	case h.InUse:
		who := "a program"
		if len(f.Sockets) > 0 {
			who = fmt.Sprintf("a program of user %d", f.Sockets[0].UID)
		}
		return say(problem, f.linuxOnly(fmt.Sprintf("ss -uanp 'sport = :%d'", f.Port)), "port %d is held by %s that does not share it (SO_REUSEADDR): no other program can listen there", f.Port, who)
	}
	return say(problem, nil, "it could not be joined: %s", h.Error)
}

// checkMembers: who else on this host has joined.
func checkMembers(f *facts) (fs []finding) {
	here, elsewhere := 0, []string{}
	for _, m := range f.Members {
		if m.Interface == f.Link.Name {
			here += m.Users
		} else {
			elsewhere = append(elsewhere, m.Interface)
		}
	}
	switch {
	case here > 0:
		fs = say(ok, nil, "%s of %v on %s were there before the doctor's", count(here, "membership"), f.Group, f.Link.Name)
	case len(elsewhere) > 0:
		fs = say(note, commands(f.doctor(elsewhere[0], f.Source, f.Port)), "programs on this host have joined %v on %s, none on %s", f.Group, strings.Join(elsewhere, " and "), f.Link.Name)
	case f.Joined >= 0 && slices.ContainsFunc(f.Sockets, func(s udpSocket) bool { return f.couldHear(s) }):
		fs = say(note, nil, "a program listens on port %d, and nobody but the doctor has joined %v: it must join, too", f.Port, f.Group)
	}
	return fs
}

// couldHear reports whether a socket is bound so that it could hear the group.
func (f *facts) couldHear(s udpSocket) bool {
	a := s.Local.Addr()
	return a.IsUnspecified() || a == f.Group
}

func checkSockets(f *facts) (fs []finding) {
	for _, s := range f.Sockets {
		switch a := s.Local.Addr(); {
		case a.IsMulticast() && a != f.Group:
		case !f.couldHear(s):
			fs = append(fs, say(note, nil, "a socket of user %d is bound to %v: a socket that is bound to a unicast address hears no group; bind it to %v or to the wildcard", s.UID, s.Local, f.Group)...)
		case s.Drops > 0:
			fs = append(fs, say(note, commands("sysctl -w net.core.rmem_max=16777216"), "the socket of user %d on %v has lost %s, for want of buffer or by wrong checksums, which the system counts in one: let it ask for more (SO_RCVBUF) and read faster", s.UID, s.Local, count(s.Drops, "datagram"))...)
		default:
			fs = append(fs, say(ok, nil, "a socket of user %d listens on %v", s.UID, s.Local)...)
		}
	}
	return fs
}

func checkRules(f *facts) (fs []finding) {
	if !f.Rules {
		return nil
	}
	for _, b := range f.Blocked {
		s, does := problem, "drops"
		if !b.Sure {
			s, does = note, "may drop"
		}
		what := map[string]string{"datagrams": "the datagrams", "queries": "queries, so that this host does not answer them", "reports": "this host's reports, so that nobody knows it has joined"}[b.What]
		fs = append(fs, say(s, commands(b.Fix), "the firewall %s %s: %s: %s", does, what, b.Where, b.Rule)...)
	}
	if len(fs) == 0 && !f.RulesHidden {
		return say(ok, nil, "the firewall lets the datagrams, queries and reports through")
	}
	return fs
}

// checkReport: does the network learn of the join?
func checkReport(f *facts) []finding {
	l := f.Link
	protocol, _ := f.protocol()
	if f.Wire == nil || f.Heard.Error != "" || !l.Up || !l.Running || l.Loopback || f.Group.IsInterfaceLocalMulticast() {
		return nil
	}
	for _, r := range f.Wire.Reports {
		return say(ok, nil, "the join was reported to the network (%sv%d)", protocol, r.Version)
	}
	reported, found := f.Knobs["net.ipv4.igmp_link_local_mcast_reports"]
	switch {
	case f.Group == netip.MustParseAddr("224.0.0.1") || f.Group == netip.MustParseAddr("ff02::1"):
		return nil // every host has it: RFC 3376 section 6, RFC 3810 section 6
	case f.Group.Is4() && f.linkLocal() && found && reported == 0:
		return say(note, commands("sysctl -w net.ipv4.igmp_link_local_mcast_reports=1"), "%v is not reported to the network, as net.ipv4.igmp_link_local_mcast_reports says: a switch should flood it", f.Group)
	case slices.ContainsFunc(f.Members, func(m member) bool { return m.Interface == l.Name }):
		return say(note, nil, "no report was seen: others on this host had joined before, and the network is told again only when it asks")
	case f.duration() < 500*time.Millisecond:
		return say(note, nil, "no report was seen in the short time")
	}
	s := problem
	if f.Owner != "" {
		s = note
	}
	return say(s, nil, "no %s report of the join left %s: something on this host holds it back, such as a firewall, so that no switch or router sends the group here", protocol, l.Name)
}

func checkQuerier(f *facts) []finding {
	if f.Wire == nil || f.Link.Loopback || f.Owner != "" {
		return nil
	}
	protocol, _ := f.protocol()
	for _, q := range f.Wire.Queries {
		return say(ok, nil, "the querier %v asks, in %sv%d", q.From, protocol, q.Version)
	}
	if f.Listen >= 125 {
		return say(note, nil, "no %s querier was heard in %v: switches that snoop forget who has joined; let one of them, or a router, be the querier", protocol, f.duration())
	}
	return say(note, commands(f.doctor(f.Link.Name, f.Source, f.Port, "-t", "130s")), "no %s query was heard in %v; queriers ask every two minutes or so, and without one, switches that snoop forget who has joined", protocol, f.duration())
}
