package main

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
)

func TestProc(t *testing.T) {
	ms, versions := parseIGMP("Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n"+
		"1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n"+
		"4\teth0      :     2      V2\n\t\t\t\t010101E8     3 0:00000000\t\t0\n\t\t\t\t010000E0     1 0:00000000\t\t0\n", binary.LittleEndian)
	if len(ms) != 3 || versions[4] != 2 || ms[1] != (member{"eth0", 4, netip.MustParseAddr("232.1.1.1"), 3, 2}) {
		t.Errorf("%+v %v", ms, versions)
	}
	ms = parseIGMP6("4    eth0            ff020000000000000000000000000001     2 0000000C 0\n")
	if len(ms) != 1 || ms[0] != (member{"eth0", 4, netip.MustParseAddr("ff02::1"), 2, 0}) {
		t.Errorf("%+v", ms)
	}
	if n := longestFilter("Idx Device        MCA        SRC    INC    EXC\n  4   eth0 0xe8010101 0x0a000001          1          0\n  4   eth0 0xe8010101 0x0a000002          1          0\n  4   eth0 0xe8010102 0x0a000002          1          0\n"); n != 2 {
		t.Errorf("%d", n)
	}
	ss := parseUDP("   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n"+
		"  1: 00000000:1388 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 1 2 0000000000000000 7\n"+
		"  2: 0100000A:1389 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 1 2 0000000000000000 7\n"+
		"  3: 0100000A:1388 0100000A:0001 01 00000000:00000000 00:00000000 00000000  1000        0 1 2 0000000000000000 7\n", 5000, binary.LittleEndian)
	if len(ss) != 1 || ss[0] != (udpSocket{netip.MustParseAddrPort("0.0.0.0:5000"), 1000, 7}) {
		t.Errorf("%+v", ss)
	}
	if a, err := hexAddr("B80D0120000000000000000001000000", binary.LittleEndian); err != nil || a != netip.MustParseAddr("2001:db8::1") {
		t.Errorf("%v %v", a, err)
	}
	if a, err := hexAddr("E8010101", binary.BigEndian); err != nil || a != netip.MustParseAddr("232.1.1.1") {
		t.Errorf("%v %v", a, err)
	}
	counts := map[string]int64{}
	parseCounters("TcpExt: A IPReversePathFilter\nTcpExt: 1 9\nIpExt: B\nIpExt: 3\n", counts)
	if counts["TcpExt:IPReversePathFilter"] != 9 || counts["IpExt:B"] != 3 {
		t.Errorf("%v", counts)
	}
}

func TestParsePacket(t *testing.T) {
	ip4 := "4600 0028 0000 0000 0102 0000 0a000001 e0000016 94040000"
	ip6 := "60000000 0024 0001 fe80000000000000 0000000000000001 ff02000000000000 0000000000000016 3a00 0502 0000 0100"
	for _, tt := range []struct {
		name, hex string
		ok        bool
		port      uint16
		query     int
		report    int
		groups    string
	}{
		{"UDP", "4500 0020 0000 0000 0411 0000 0a000001 e8010101 0400 1388 000c 0000 01020304", true, 5000, 0, 0, ""},
		{"fragment", "4500 0020 0000 0001 0411 0000 0a000001 e8010101 0400 1388 000c 0000 01020304", false, 0, 0, 0, ""},
		{"TCP", "4500 0020 0000 0000 0406 0000 0a000001 e8010101 0400 1388 000c 0000 01020304", false, 0, 0, 0, ""},
		{"IGMPv1 query", ip4 + "1100 0000 00000000", true, 0, 1, 0, ""},
		{"IGMPv2 query", ip4 + "1164 0000 00000000", true, 0, 2, 0, ""},
		{"IGMPv3 query", ip4 + "1164 0000 00000000 00000000", true, 0, 3, 0, ""},
		{"IGMPv2 report", ip4 + "1600 0000 e8010101", true, 0, 0, 2, "232.1.1.1"},
		{"IGMPv3 report", ip4 + "2200 0000 00000001 05000001 e8010101 0a000001", true, 0, 0, 3, "232.1.1.1"},
		{"IGMPv3 leave", ip4 + "2200 0000 00000001 06000001 e8010101 0a000001", true, 0, 0, 3, ""},
		{"MLDv1 query", ip6 + "8200 0000 0000 0000" + strings.Repeat("00", 16), true, 0, 1, 0, ""},
		{"MLDv2 query", ip6 + "8200 0000 0000 0000" + strings.Repeat("00", 20), true, 0, 2, 0, ""},
		{"MLDv2 report", ip6 + "8f00 0000 0000 0001 04000000 ff3e0000000000000000000080000001", true, 0, 0, 2, "ff3e::8000:1"},
		{"short", "4500", false, 0, 0, 0, ""},
		{"nothing", "", false, 0, 0, 0, ""},
	} {
		b, err := hex.DecodeString(strings.ReplaceAll(tt.hex, " ", ""))
		if err != nil {
			t.Fatal(tt.name, err)
		}
		p, parsed := parsePacket(b)
		if parsed != tt.ok || parsed && (p.port != tt.port || p.query != tt.query || p.report != tt.report || list(p.groups) != tt.groups) {
			t.Errorf("%s: %+v %v", tt.name, p, parsed)
		}
		for n := range b { // cut short, it must not panic
			parsePacket(b[:n])
		}
	}
}

const nftText = `table inet fw { # handle 1
	set bad { # handle 4
		type ipv4_addr
		flags interval
		elements = { 239.1.1.0/24, 239.2.0.0/16,
			     239.3.0.0-239.3.0.9 }
	}

	chain raw { # handle 1
		type filter hook prerouting priority raw; policy accept;
		ip daddr 239.9.9.9 udp dport { 5000, 6000-6010 } counter packets 0 bytes 0 drop comment "x y" # handle 6
	}

	chain sub { # handle 2
		tcp dport 22 accept # handle 9
		ip daddr 239.4.0.0/16 accept # handle 9
		return # handle 10
	}

	chain in { # handle 3
		type filter hook input priority filter; policy POLICY;
		ct state established,related accept # handle 11
		iif "lo" accept # handle 12
		iifname "eth*" ip protocol igmp accept # handle 13
		meta l4proto { icmp, ipv6-icmp } accept # handle 22
		ip daddr @bad drop # handle 14
		jump sub # handle 15
		ip daddr 239.5.0.0/16 meta pkttype multicast reject with icmp port-unreachable # handle 16
		ip daddr 239.6.0.0/16 ip protocol vmap { tcp : jump sub, udp : drop } # handle 18
		ip daddr 239.7.0.0/16 limit rate 5/second udp dport 5000 drop # handle 24
		ip daddr 239.8.0.0/16 udp dport != 53 log prefix "a b" drop # handle 20
		ip daddr 239.77.0.0/16 fib saddr . iif oif missing drop # handle 21
		udp dport 5009 accept # handle 25
	}
}
`

func TestNFT(t *testing.T) {
	for _, tt := range []struct {
		group, policy string
		port          uint16
		want          string // "accept", or a part of the rule that drops
		sure          bool
	}{
		{"239.9.9.9", "accept", 5000, "239.9.9.9 udp dport", true},
		{"239.9.9.9", "accept", 6005, "239.9.9.9 udp dport", true},
		{"239.9.9.9", "accept", 5001, "accept", true},
		{"239.9.9.9", "accept", 0, "239.9.9.9 udp dport", false},
		{"239.1.1.1", "accept", 5001, "@bad", true},
		{"239.3.0.5", "accept", 5001, "@bad", true},
		{"239.4.1.1", "drop", 5001, "accept", true},
		{"239.5.1.1", "accept", 5001, "pkttype multicast", true},
		{"239.6.1.1", "accept", 5001, "vmap", true},
		{"239.7.1.1", "accept", 5000, "limit rate", false},
		{"239.7.1.1", "accept", 5001, "accept", true},
		{"239.8.1.1", "accept", 53, "accept", true},
		{"239.8.1.1", "accept", 54, "239.8.0.0/16", true},
		{"239.77.1.1", "accept", 54, "missing", false},
		{"239.99.1.1", "drop", 54, "policy drop", true},
		{"239.99.1.1", "drop", 5009, "accept", true},
		{"ff15::1", "drop", 54, "policy drop", true},
		{"ff15::1", "drop", 5009, "accept", true},
	} {
		f := sound()
		f.Group, f.Port = netip.MustParseAddr(tt.group), tt.port
		if f.Group.Is6() {
			f.Source = netip.MustParseAddr("2001:db8::1")
		}
		bs := checkFirewall(parseNFT(strings.Replace(nftText, "POLICY", tt.policy, 1)), f)
		got, sure := "accept", true
		if len(bs) > 0 {
			got, sure = bs[0].Rule, bs[0].Sure
		}
		if len(bs) > 1 || !strings.Contains(got, tt.want) || sure != tt.sure {
			t.Errorf("%+v: %+v", tt, bs)
		}
	}
	f := sound()
	f.Link.Name = "wlan0" // on which no rule accepts IGMP
	f.Port = 5009
	bs := checkFirewall(parseNFT(strings.Replace(nftText, "POLICY", "drop", 1)), f)
	if len(bs) != 1 || bs[0].What != "queries" || bs[0].Fix != "nft insert rule inet fw in ip daddr 224.0.0.1 meta l4proto igmp accept" {
		t.Errorf("%+v", bs)
	}
}

func TestIPTables(t *testing.T) {
	const text = `# Generated by iptables-save v1.8.9
*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING ! -s 10.0.0.0/8 -i eth+ -p udp -j DROP
COMMIT
*filter
:INPUT DROP [0:0]
:OUTPUT ACCEPT [0:0]
:sub - [0:0]
-A INPUT -p igmp -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -d 239.1.0.0/16 -p udp -m multiport --dports 5000,6000:6010 -j sub
-A INPUT -m pkttype --pkt-type multicast -m comment --comment "a b" -d 239.2.0.0/16 -j REJECT --reject-with icmp-port-unreachable
-A INPUT -d 239.3.0.0/16 -m u32 --u32 0x0=0x0 -j ACCEPT
-A OUTPUT -p igmp -d 224.0.0.22/32 -j DROP
-A sub -j LOG --log-prefix "x y"
-A sub -s 10.0.0.1/32 -j ACCEPT
COMMIT
`
	for _, tt := range []struct {
		group, source string
		port          uint16
		want          string
		sure          bool
	}{
		{"239.1.1.1", "10.0.0.1", 5000, "accept", true},
		{"239.1.1.1", "10.0.0.1", 6001, "accept", true},
		{"239.1.1.1", "10.0.0.2", 6001, "policy drop", true},
		{"239.1.1.1", "192.0.2.1", 5000, "PREROUTING", true},
		{"239.2.1.1", "10.0.0.1", 5000, "pkt-type", true},
		{"239.3.1.1", "10.0.0.1", 5000, "policy drop", false},
	} {
		f := sound()
		f.Group, f.Source, f.Port = netip.MustParseAddr(tt.group), netip.MustParseAddr(tt.source), tt.port
		bs := checkFirewall(parseIPTables(text, "iptables"), f)
		if n := len(bs); n == 0 || bs[n-1].What != "reports" || bs[n-1].Fix != "iptables -t filter -I OUTPUT -d 224.0.0.22 -p igmp -j ACCEPT" {
			t.Errorf("%+v: %+v", tt, bs)
			continue
		}
		got, sure := "accept", true
		if bs[0].What == "datagrams" {
			got, sure = bs[0].Rule, bs[0].Sure
		}
		if !strings.Contains(got, tt.want) || sure != tt.sure {
			t.Errorf("%+v: %+v", tt, bs)
		}
	}
}
