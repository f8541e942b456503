package main

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
)

var (
	source = netip.MustParseAddr("10.0.0.1")
	other  = netip.MustParseAddr("10.0.0.2")
	own    = netip.MustParsePrefix("10.0.0.9/24")
)

// sound are facts with which nothing is wrong, as on Linux as root.
func sound() *facts {
	return &facts{
		System: "linux", Group: netip.MustParseAddr("232.1.1.1"), Source: source, Port: 5000, Listen: 3,
		Link:  &link{Index: 2, Name: "eth0", Up: true, Running: true, Multicast: true, Addrs: []netip.Prefix{own}},
		Named: true, Others: []string{"eth1"},
		Routes: []route{{Source: source, Interface: []string{"eth0"}}},
		Knobs: map[string]int{
			"net.ipv4.conf.all.rp_filter": 0, "net.ipv4.conf.eth0.rp_filter": 1,
			"net.ipv4.igmp_max_memberships": 20, "net.ipv4.igmp_max_msf": 10, "net.core.optmem_max": 131072, "net.core.rmem_max": 212992,
		},
		Version: 3, Counts: map[string]int64{}, Rules: true,
		Heard: heard{Tried: true, Received: 7, Sources: []sourceCount{{source, 7}}},
		Wire: &wire{
			Flows:   []flow{{Source: source, Port: 5000, Count: 7}},
			Queries: []query{{From: other, Version: 3}},
			Reports: []report{{Version: 3}},
		},
	}
}

// deaf are sound facts, but nothing is heard or sent.
func deaf() *facts {
	f := sound()
	f.Heard = heard{Tried: true}
	f.Wire.Flows = nil
	return f
}

// toIPv6 makes it about an IPv6 channel.
func toIPv6(f *facts) {
	f.Group, f.Source = netip.MustParseAddr("ff3e::8000:1"), netip.MustParseAddr("2001:db8::1")
	f.Link.Addrs = []netip.Prefix{netip.MustParsePrefix("fe80::9/64")}
	f.Knobs = map[string]int{"net.ipv6.mld_max_msf": 64}
	f.Version, f.Routes, f.Wire.Queries = 0, nil, nil
}

func TestSound(t *testing.T) {
	for _, change := range []func(*facts){func(*facts) {}, toIPv6} {
		f := sound()
		change(f)
		for _, x := range diagnose(f) {
			if x.Severity == problem {
				t.Errorf("%v: %s: %s", f.Group, x.Rule, x.Text)
			}
		}
	}
}

func TestRules(t *testing.T) {
	for _, tt := range []struct {
		rule   string
		s      severity
		words  string
		fix    string
		change func(f *facts)
	}{
		{"interface", problem, "no route to 10.0.0.1; name one of eth1", "ip route add 10.0.0.1/32 dev eth1", func(f *facts) { f.Link, f.NoRoute = nil, "there is no route to 10.0.0.1" }},
		{"up", problem, "eth0 is down", "ip link set dev eth0 up", func(f *facts) { f.Link.Up = false }},
		{"carrier", problem, "has no carrier", "", func(f *facts) { f.Link.Running = false }},
		{"multicast", problem, "MULTICAST flag", "ip link set dev eth0 multicast on", func(f *facts) { *f = *deaf(); f.Link.Multicast = false }},
		{"multicast", note, "delivers all the same", "ip link set dev eth0 multicast on", func(f *facts) { f.Link.Multicast = false }},
		{"kind", problem, "an ipvlan in mode l3", "type ipvlan mode l2", func(f *facts) { *f = *deaf(); f.Link.Kind, f.Link.Mode = "ipvlan", "l3" }},
		{"kind", problem, "an ipvlan in mode l3s", "type ipvlan mode l2", func(f *facts) { *f = *deaf(); f.Link.Kind, f.Link.Mode = "ipvlan", "l3s" }},
		{"kind", problem, "eth0 is a VRF", "", func(f *facts) { *f = *deaf(); f.Link.Kind = "vrf" }},
		{"vrf", problem, "only a socket that is bound to blue or eth0", "ip vrf exec blue PROGRAM\nsysctl -w net.ipv4.udp_l3mdev_accept=1", func(f *facts) { *f = *deaf(); f.Link.Master, f.Link.Slave = "blue", "vrf" }},
		{"vrf", ok, "any socket hears", "", func(f *facts) {
			f.Link.Master, f.Link.Slave = "blue", "vrf"
			f.Knobs["net.ipv4.udp_l3mdev_accept"] = 1
		}},
		{"address", problem, "no IPv4 address", "ip addr add", func(f *facts) { f.Link.Addrs = []netip.Prefix{netip.MustParsePrefix("fe80::1/64")} }},
		{"address", problem, "no IPv6 address", "ip addr add", func(f *facts) { toIPv6(f); f.Link.Addrs = nil }},
		{"address", problem, "IPv6 is disabled", "sysctl -w net.ipv6.conf.eth0.disable_ipv6=0", func(f *facts) { toIPv6(f); f.Knobs["net.ipv6.conf.eth0.disable_ipv6"] = 1 }},
		{"port-of", problem, "a port of the bridge br0", "doctor -i br0 10.0.0.1@232.1.1.1:5000", func(f *facts) { f.Link.Master, f.Link.Slave = "br0", "bridge" }},
		{"port-of", problem, "a part of bond0 (bond)", "doctor -i bond0", func(f *facts) { f.Link.Master, f.Link.Slave = "bond0", "bond" }},
		{"scope", note, "loopback", "", func(f *facts) { f.Link.Loopback = true }},
		{"scope", note, "no router forwards it", "", func(f *facts) { f.Group = netip.MustParseAddr("224.0.0.251") }},
		{"scope", problem, "172.16.0.1 is not of a network on eth0", "", func(f *facts) {
			f.Group, f.Source = netip.MustParseAddr("224.0.0.251"), netip.MustParseAddr("172.16.0.1")
		}},
		{"scope", note, "no interface was named", "doctor -i eth0 '2001:db8::1@[ff02::fb]:5000'", func(f *facts) { toIPv6(f); f.Group, f.Named = netip.MustParseAddr("ff02::fb"), false }},
		{"ssm", problem, "source-specific", "doctor -i eth0 10.0.0.1@232.1.1.1:5000", func(f *facts) { f.Source = netip.Addr{} }},
		{"source", note, "is an address of this host, on eth1", "", func(f *facts) { f.Owner = "eth1" }},
		{"source", note, "leads to eth1, not to eth0", "", func(f *facts) { f.Routes[0].Interface = []string{"eth1"} }},
		{"source", note, "no route back to 10.0.0.1", "", func(f *facts) { f.Routes = []route{{Source: source, None: "network is unreachable"}} }},
		{"source", ok, "by 10.0.0.2", "", func(f *facts) { f.Routes[0].Gateway = other }},
		{"rp_filter", problem, "leads to eth1, not to eth0", "sysctl -w net.ipv4.conf.eth0.rp_filter=2", func(f *facts) { f.Routes = []route{{Source: source, Interface: []string{"eth1"}, Refused: true}} }},
		{"rp_filter", problem, "there is no route back to it", "ip route add 10.0.0.1/32 dev eth0", func(f *facts) { f.Routes = []route{{Source: source, None: "unreachable", Refused: true}} }},
		{"rp_filter", problem, "loose reverse path filtering (rp_filter=2)", "ip addr add", func(f *facts) {
			f.Knobs["net.ipv4.conf.all.rp_filter"], f.Link.Addrs = 2, nil
			f.Routes = []route{{Source: source, None: "unreachable", Refused: true}}
		}},
		{"rp_filter", problem, "dropped 9 packets meanwhile", "sysctl -w net.ipv4.conf.eth0/5.rp_filter=2", func(f *facts) {
			f.Link.Name, f.Knobs["net.ipv4.conf.eth0/5.rp_filter"] = "eth0.5", 1
			f.Counts["TcpExt:IPReversePathFilter"] = 9
		}},
		{"rp_filter", note, "is strict on eth0", "", func(f *facts) { f.Source, f.Routes, f.Heard = netip.Addr{}, nil, heard{} }},
		{"rp_filter", ok, "rp_filter=0", "", func(f *facts) { f.Knobs["net.ipv4.conf.eth0.rp_filter"] = 0; f.Routes[0].Refused = true }},
		{"version", problem, "because net.ipv4.conf.all.force_igmp_version says so", "sysctl -w net.ipv4.conf.all.force_igmp_version=0", func(f *facts) { f.Version = 2; f.Knobs["net.ipv4.conf.all.force_igmp_version"] = 2 }},
		{"version", problem, "the querier 10.0.0.2 does", "sysctl -w net.ipv4.conf.eth0.force_igmp_version=3", func(f *facts) { f.Version = 2; f.Wire.Queries[0].Version = 2 }},
		{"version", problem, "because an older querier", "", func(f *facts) { f.Version, f.Wire = 2, nil }},
		{"version", note, "only this host filters", "", func(f *facts) { f.Version = 2; f.Group = netip.MustParseAddr("239.1.1.1") }},
		{"version", problem, "MLDv1", "sysctl -w net.ipv6.conf.eth0.force_mld_version=0", func(f *facts) { toIPv6(f); f.Knobs["net.ipv6.conf.eth0.force_mld_version"] = 1 }},
		{"limits", note, "this host has 25 memberships, and one socket may have 20", "sysctl -w net.ipv4.igmp_max_memberships=1000", func(f *facts) { f.Joined = 25 }},
		{"limits", note, "list of 10 sources", "sysctl -w net.ipv4.igmp_max_msf=1000", func(f *facts) { f.Filters = 10 }},
		{"join", problem, "limit net.core.optmem_max", "sysctl -w net.core.optmem_max=262144", func(f *facts) { f.Heard = heard{Error: "x", Knob: "net.core.optmem_max"} }},
		{"join", problem, "held by a program of user 33", "ss -uanp", func(f *facts) { f.Heard = heard{Error: "x", InUse: true}; f.Sockets = []udpSocket{{UID: 33}} }},
		{"join", problem, "could not be joined: x", "", func(f *facts) { f.Heard = heard{Error: "x"} }},
		{"members", ok, "2 memberships", "", func(f *facts) { f.Members = []member{{Interface: "eth0", Users: 2}} }},
		{"members", note, "joined 232.1.1.1 on eth1, none on eth0", "doctor -i eth1", func(f *facts) { f.Members = []member{{Interface: "eth1", Users: 2}} }},
		{"members", note, "nobody but the doctor", "", func(f *facts) { f.Sockets = []udpSocket{{Local: netip.MustParseAddrPort("0.0.0.0:5000")}} }},
		{"sockets", note, "bound to a unicast address", "", func(f *facts) { f.Sockets = []udpSocket{{Local: netip.MustParseAddrPort("10.0.0.9:5000")}} }},
		{"sockets", note, "lost 3 datagrams", "sysctl -w net.core.rmem_max", func(f *facts) {
			f.Sockets = []udpSocket{{Local: netip.MustParseAddrPort("232.1.1.1:5000"), Drops: 3}}
		}},
		{"firewall", problem, "drops the datagrams: W: R", "F", func(f *facts) { f.Blocked = []blocked{{"datagrams", "W", "R", true, "F"}} }},
		{"firewall", note, "may drop this host's reports", "", func(f *facts) { f.Blocked = []blocked{{"reports", "W", "R", false, "F"}} }},
		{"firewall", ok, "lets", "", func(*facts) {}},
		{"report", problem, "no IGMP report", "", func(f *facts) { f.Wire.Reports = nil }},
		{"report", note, "others on this host", "", func(f *facts) { f.Wire.Reports, f.Members = nil, []member{{Interface: "eth0", Users: 1}} }},
		{"report", note, "igmp_link_local_mcast_reports", "", func(f *facts) {
			f.Wire.Reports, f.Group, f.Knobs["net.ipv4.igmp_link_local_mcast_reports"] = nil, netip.MustParseAddr("224.0.0.251"), 0
		}},
		{"querier", ok, "10.0.0.2 asks, in IGMPv3", "", func(*facts) {}},
		{"querier", note, "no IGMP query was heard in 3s", "doctor -t 130s -i eth0 10.0.0.1@232.1.1.1:5000", func(f *facts) { f.Wire.Queries = nil }},
		{"querier", note, "no IGMP querier", "", func(f *facts) { f.Wire.Queries, f.Listen = nil, 130 }},
		{"buffer", note, "dropped 1 datagram for want of buffer", "rmem_max", func(f *facts) { f.Heard.Dropped = 1; f.Counts["Udp:RcvbufErrors"] = 1 }},
		{"buffer", note, "dropped 1 datagram, for want of buffer (0 bytes) or because of wrong checksums", "rmem_max", func(f *facts) {
			f.Heard.Dropped = 1
			f.Counts["Udp:RcvbufErrors"], f.Counts["Udp:InCsumErrors"] = 1, 1
		}},
		{"checksum", note, "1 datagram with a wrong UDP checksum", "", func(f *facts) { f.Counts["Udp:InCsumErrors"] = 1 }},
		{"checksum", problem, "2 datagrams arrived with a wrong UDP checksum", "", func(f *facts) { *f = *deaf(); f.Heard.Dropped = 2; f.Counts["Udp:InCsumErrors"] = 2 }},
		{"checksum", problem, "2 datagrams arrived with a wrong UDP checksum", "", func(f *facts) {
			*f = *deaf()
			toIPv6(f)
			f.Heard.Dropped, f.Counts["Udp6InCsumErrors"] = 2, 2
		}},
		{"checksum", problem, "2 datagrams arrived with a wrong UDP checksum", "", func(f *facts) { f.Heard.Received = 0; f.Counts["Udp:InCsumErrors"] = 2 }},
		{"checksum", note, "2 datagrams with a wrong UDP checksum", "", func(f *facts) { *f = *deaf(); f.Counts["Udp:InCsumErrors"] = 2 }},
		{"packets", note, "fragments", "", func(f *facts) { f.Counts["Ip:ReasmFails"] = 1 }},
		{"packets", note, "fragments", "", func(f *facts) { toIPv6(f); f.Counts["Ip6ReasmFails"] = 1 }},
		{"packets", note, "bad IP header", "", func(f *facts) { f.Counts["Ip:InHdrErrors"] = 1 }},
		{"packets", note, "bad IP header", "", func(f *facts) { toIPv6(f); f.Counts["Ip6InHdrErrors"] = 1 }},
		{"martian", problem, "with the source 127.0.0.1, which no host takes", "", func(f *facts) {
			*f = *deaf()
			f.Source = netip.Addr{}
			f.Wire.Flows = []flow{{Source: netip.MustParseAddr("127.0.0.1"), Port: 5000, Count: 4}}
		}},
		{"martian", problem, "with the source ::1, which no host takes", "", func(f *facts) {
			*f = *deaf()
			toIPv6(f)
			f.Wire.Flows = []flow{{Source: netip.MustParseAddr("::1"), Port: 5000, Count: 4}}
		}},
		{"martian", problem, "another host has the address too", "", func(f *facts) {
			*f = *deaf()
			f.Own = []netip.Addr{source}
			f.Wire.Flows = []flow{{Source: source, Port: 5000, Count: 4}}
		}},
		{"martian", note, "with the source 0.0.0.0", "", func(f *facts) {
			f.Wire.Flows = append(f.Wire.Flows, flow{Source: netip.MustParseAddr("0.0.0.0"), Port: 5000, Count: 4})
		}},
		{"heard", ok, "7 datagrams heard in 3s, from 10.0.0.1", "", func(*facts) {}},
		{"heard", problem, "nothing sent to 232.1.1.1 arrived", "", func(f *facts) { *f = *deaf() }},
		{"heard", note, "nothing was heard", "", func(f *facts) { *f = *deaf(); f.Link.Running = false }},
		{"heard", problem, "4 datagrams from 10.0.0.1 arrived on eth0, and none", "", func(f *facts) { *f = *deaf(); f.Wire.Flows = []flow{{Source: source, Port: 5000, Count: 4}} }},
		{"heard", problem, "tag of VLAN 7", "type vlan id 7", func(f *facts) {
			*f = *deaf()
			f.Wire.Flows = []flow{{Source: source, Port: 5000, VLAN: 7, Count: 4}}
		}},
		{"heard", problem, "go to port 5001, not to 5000", "doctor -i eth0 10.0.0.1@232.1.1.1:5001", func(f *facts) { *f = *deaf(); f.Wire.Flows = []flow{{Source: source, Port: 5001, Count: 4}} }},
		{"heard", problem, "comes from 10.0.0.2, not from 10.0.0.1", "doctor -i eth0 10.0.0.2@232.1.1.1:5000", func(f *facts) { *f = *deaf(); f.Wire.Flows = []flow{{Source: other, Port: 5000, Count: 4}} }},
		{"heard", problem, "comes from 10.0.0.2, not from 10.0.0.1", "", func(f *facts) {
			*f = *deaf()
			f.Wire, f.Witness = nil, &heard{Received: 1, Sources: []sourceCount{{other, 1}}}
		}},
		{"heard", problem, "arrives on eth1 and eth2, not on eth0", "doctor -i eth1 10.0.0.1@232.1.1.1:5000", func(f *facts) {
			*f = *deaf()
			f.Around = []sighting{{"eth1", source, f.Group, 5000, 9}, {"eth2", source, f.Group, 5000, 8}, {"eth2", source, f.Group, 5001, 8}}
		}},
		{"heard", problem, "10.0.0.1 sends to 232.1.1.2, port 5001 (on eth0), not to 232.1.1.1", "doctor -i eth0 10.0.0.1@232.1.1.2:5001", func(f *facts) {
			*f = *deaf()
			f.Around = []sighting{{"eth0", source, netip.MustParseAddr("232.1.1.2"), 5001, 9}}
		}},
		{"heard", problem, "for port 5000 is from 10.0.0.2 to 239.1.1.2 (on eth1): is that meant?", "doctor -i eth1 239.1.1.2:5000", func(f *facts) {
			*f = *deaf()
			f.Around = []sighting{{"eth1", other, netip.MustParseAddr("239.1.1.2"), 5000, 9}}
		}},
		{"heard", problem, "does a program on this host send, and by lo", "", func(f *facts) { *f = *deaf(); f.Link.Loopback, f.Link.Name = true, "lo" }},
		{"heard", problem, "by this host, whose address 10.0.0.1 is", "", func(f *facts) { *f = *deaf(); f.Owner = "eth0" }},
		{"heard", problem, "takes more rights", "", func(f *facts) { *f = *deaf(); f.Wire = nil }},
		{"heard", problem, "name the port", "", func(f *facts) { *f = *deaf(); f.Wire, f.Port, f.Heard.Tried = nil, 0, false }},
		{"heard", problem, "only this host sends", "", func(f *facts) {
			*f = *deaf()
			f.Wire.Flows = []flow{{Source: other, Port: 5000, Sent: true, Count: 4}}
		}},
	} {
		f := sound()
		tt.change(f)
		found := false
		var all []string
		for _, x := range diagnose(f) {
			all = append(all, x.Severity.String()+" "+x.Rule+": "+x.Text+" "+strings.Join(x.Fix, "; "))
			found = found || x.Rule == tt.rule && x.Severity == tt.s && strings.Contains(x.Text, tt.words) &&
				(tt.fix == "" || strings.Contains(strings.Join(x.Fix, "\n"), tt.fix))
		}
		if !found {
			t.Errorf("no %v of rule %s with %q and %q:\n%s", tt.s, tt.rule, tt.words, tt.fix, strings.Join(all, "\n"))
		}
	}
}

// What is there is said; what is not, is not.
func TestSilent(t *testing.T) {
	for _, tt := range []struct {
		rule, words string
		change      func(f *facts)
	}{
		{"buffer", "", func(f *facts) { f.Heard.Dropped = 2; f.Counts["Udp:InCsumErrors"] = 2 }}, // no buffer helps
		{"firewall", "", func(f *facts) { f.RulesHidden = true }},                                // nobody knows that it lets all through
		{"heard", "router", func(f *facts) { *f = *deaf(); f.Owner = "eth0" }},                   // the host's own source needs none
		{"heard", "router", func(f *facts) { *f = *deaf(); f.Link.Loopback = true }},
		{"querier", "", func(f *facts) { f.Wire.Queries, f.Owner = nil, "eth0" }},
		{"version", "", func(f *facts) { f.Version, f.Owner = 2, "eth0" }},
		{"martian", "", func(f *facts) { f.Link.Loopback = true; f.Wire.Flows[0].Source = netip.MustParseAddr("127.0.0.1") }},
		{"kind", "", func(f *facts) { f.Link.Kind, f.Link.Mode = "ipvlan", "l2" }},
	} {
		f := sound()
		tt.change(f)
		for _, x := range diagnose(f) {
			if x.Rule == tt.rule && strings.Contains(x.Text, tt.words) {
				t.Errorf("%s: %s", tt.rule, x.Text)
			}
		}
	}
}

func TestShell(t *testing.T) {
	for want, words := range map[string][]string{
		"doctor -i eth0 10.0.0.1@232.1.1.1:5000": {"doctor", "-i", "eth0", "10.0.0.1@232.1.1.1:5000"},
		"doctor 'fd00::1@[ff3e::1%eth0]:5000'":   {"doctor", "fd00::1@[ff3e::1%eth0]:5000"},
		`x 'a b' 'it'\''s' '*' ''`:               {"x", "a b", "it's", "*", ""},
	} {
		if got := shell(words...); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func TestShow(t *testing.T) {
	f := deaf()
	f.miss("the firewall", "root")
	f.Link.Up = false
	var b bytes.Buffer
	show(&b, f, diagnose(f))
	for _, s := range []string{"10.0.0.1@232.1.1.1, port 5000 on eth0\n", "\nproblem  eth0 is down", "\n             ip link set dev eth0 up\n", "\nunseen   the firewall: that takes root\n"} {
		if !strings.Contains(b.String(), s) {
			t.Errorf("%q is not in\n%s", s, b.String())
		}
	}
	b.Reset()
	showJSON(&b, f, diagnose(f))
	var x struct {
		Findings []struct{ Severity, Rule, Text string }
		Facts    struct{ Group string }
	}
	if err := json.Unmarshal(b.Bytes(), &x); err != nil || len(x.Findings) == 0 || x.Facts.Group != "232.1.1.1" {
		t.Errorf("%v: %s", err, b.String())
	}
}
