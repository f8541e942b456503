//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/mcast"
	"example.com/mcast/examples/internal/cli"
	"example.com/mcast/internal/netlab"
	"golang.org/x/sys/unix"
)

// A result is what doctor said.
type result struct {
	code     int
	heard    bool
	findings []said
	facts    struct {
		Heard struct{ Received, Dropped uint64 }
		Wire  *struct{ Reports []report }
	}
	text string
}

type said struct {
	Severity, Rule, Text string
	Fix                  []string
}

func (r result) has(severity, rule, words string) bool {
	for _, x := range r.findings {
		if x.Severity == severity && x.Rule == rule && strings.Contains(x.Text, words) {
			return true
		}
	}
	return false
}

func (r result) want(t *testing.T, code int, severity, rule, words string) {
	t.Helper()
	if r.code != code || !r.has(severity, rule, words) {
		t.Errorf("exit code %d, want %d and a %s of rule %s: …%s…\n%s", r.code, code, severity, rule, words, r.text)
	}
}

// examine runs doctor on this thread, which is that of a lab's host.
func examine(t *testing.T, args ...string) (r result) {
	t.Helper()
	var out, errs strings.Builder
	r.code = cli.Run(context.Background(), "doctor", run, append([]string{"-json", "-t", "150ms"}, args...), nil, &out, &errs)
	var show struct {
		Heard    *bool
		Findings any
		Facts    any
	}
	show.Heard, show.Findings, show.Facts = &r.heard, &r.findings, &r.facts
	if err := json.Unmarshal([]byte(out.String()), &show); err != nil {
		t.Fatalf("%v: %s%s", err, out.String(), errs.String())
	}
	if (r.code == 0) != r.heard || r.code > 1 || r.heard != (r.facts.Heard.Received > 0) {
		t.Errorf("exit code %d, heard %v, %d datagrams", r.code, r.heard, r.facts.Heard.Received)
	}
	problems := slices.ContainsFunc(r.findings, func(x said) bool { return x.Severity == "problem" })
	if !r.heard && !problems {
		t.Errorf("exit code 1, and no problem is named: %s", out.String())
	}
	var b strings.Builder
	for _, x := range r.findings {
		if x.Severity != "ok" {
			fmt.Fprintf(&b, "%s %s: %s\n", x.Severity, x.Rule, x.Text)
		}
	}
	r.text = b.String() + errs.String()
	return r
}

// TestFaults plants each fault in a real kernel.
func TestFaults(t *testing.T) {
	netlab.Run(t, func(l *netlab.Lab) {
		me, far := l.Local(), l.Host("far")
		l.Switch(me, far)
		src, src6 := far.Addr4("eth0"), far.Addr6("eth0")
		to, to6 := netip.MustParseAddrPort("232.1.2.3:5000"), netip.MustParseAddrPort("[ff3e::8000:1]:5000")
		at, at6 := fmt.Sprintf("%v@%v", src, to), fmt.Sprintf("%v@%v", src6, to6)
		asm := netip.MustParseAddrPort("239.1.2.3:5000")

		l.Run("healthy", func(t *testing.T) {
			far.KeepSending(t, "eth0", src, to)
			far.KeepSending(t, "eth0", src6, to6)
			for _, args := range [][]string{{at}, {"-i", "eth0", at}, {at6}, {"-i", "eth0", fmt.Sprintf("%v@%v", src, to.Addr())}} {
				r := examine(t, args...)
				r.want(t, 0, "ok", "heard", "datagrams heard")
				r.want(t, 0, "ok", "report", "was reported")
				if strings.Contains(r.text, "problem") || r.facts.Heard.Received == 0 {
					t.Errorf("%q: %+v\n%s", args, r.facts, r.text)
				}
			}
		})
		l.Run("nobody sends", func(t *testing.T) {
			r := examine(t, at)
			r.want(t, 1, "problem", "heard", "is the sender sending")
			examine(t, "-i", "eth0", asm.String()).want(t, 1, "problem", "heard", "is the sender sending")
		})
		l.Run("another source", func(t *testing.T) {
			far.KeepSending(t, "eth0", src, asm)
			far.KeepSending(t, "eth0", src6, to6)
			examine(t, "-i", "eth0", "10.77.1.99@"+asm.String()).want(t, 1, "problem", "heard", "comes from "+src.String())
			examine(t, "-i", "eth0", "2001:db8::1@"+to6.String()).want(t, 1, "problem", "heard", "comes from "+src6.String())
		})
		l.Run("another port", func(t *testing.T) {
			far.KeepSending(t, "eth0", src, netip.AddrPortFrom(to.Addr(), 5001))
			examine(t, at).want(t, 1, "problem", "heard", "go to port 5001")
		})
		l.Run("any source of a channel", func(t *testing.T) {
			examine(t, "-i", "eth0", to.String()).want(t, 1, "problem", "ssm", "source-specific")
		})
		l.Run("down", func(t *testing.T) {
			me.Down("eth0")
			defer func() { me.Up("eth0"); me.Readdress("eth0") }()
			examine(t, "-i", "eth0", at).want(t, 1, "problem", "up", "eth0 is down")
		})
		l.Run("carrier", func(t *testing.T) {
			me.Carrier("eth0", false)
			defer me.Carrier("eth0", true)
			for deadline := time.Now().Add(2 * time.Second); me.Interface("eth0").Flags&32 != 0 && time.Now().Before(deadline); {
				time.Sleep(10 * time.Millisecond)
			}
			examine(t, "-i", "eth0", at).want(t, 1, "problem", "carrier", "no carrier")
		})
		l.Run("multicast flag", func(t *testing.T) {
			me.IP("link", "set", "dev", "eth0", "multicast", "off")
			defer me.IP("link", "set", "dev", "eth0", "multicast", "on")
			examine(t, "-i", "eth0", at).want(t, 1, "problem", "multicast", "lacks the MULTICAST flag")
		})
		l.Run("address", func(t *testing.T) {
			me.IP("-4", "addr", "flush", "dev", "eth0")
			defer me.Readdress("eth0")
			examine(t, "-i", "eth0", at).want(t, 1, "problem", "address", "no IPv4 address")
			me.Sysctl("net.ipv6.conf.eth0.disable_ipv6", "1")
			defer me.Sysctl("net.ipv6.conf.eth0.disable_ipv6", "0")
			examine(t, "-i", "eth0", at6).want(t, 1, "problem", "address", "IPv6 is disabled")
		})
		l.Run("no route", func(t *testing.T) {
			r := examine(t, "192.0.2.9@"+to.String())
			r.want(t, 1, "problem", "interface", "no route to 192.0.2.9")
		})
		l.Run("rp_filter", func(t *testing.T) {
			other := netip.MustParseAddr("192.0.2.1")
			far.KeepSending(t, "eth0", other, to)
			far.KeepSending(t, "eth0", other, asm)
			for _, name := range []string{"eth0", "all"} {
				elsewhere := name == "all"
				me.Sysctl("net.ipv4.conf."+name+".rp_filter", "1")
				words := "no route back"
				if elsewhere {
					l.Veth(me, "eth9", l.Host("nowhere"), "eth0")
					me.IP("route", "add", "192.0.2.0/24", "dev", "eth9")
					words = "leads to eth9, not to eth0"
				}
				examine(t, "-i", "eth0", "192.0.2.1@"+to.String()).want(t, 1, "problem", "rp_filter", words)
				examine(t, "-i", "eth0", asm.String()).want(t, 1, "problem", "rp_filter", words)
				if elsewhere { // the cure
					me.Sysctl("net.ipv4.conf.eth0.rp_filter", "2")
					examine(t, "-i", "eth0", "192.0.2.1@"+to.String()).want(t, 0, "note", "source", "leads to eth9, not to eth0")
				}
				me.Sysctl("net.ipv4.conf."+name+".rp_filter", "0")
				me.Sysctl("net.ipv4.conf.eth0.rp_filter", "0")
			}
			me.Delete("eth9")
		})
		l.Run("limit", func(t *testing.T) {
			was := me.ReadSysctl("net.ipv4.igmp_max_memberships")
			me.Sysctl("net.ipv4.igmp_max_memberships", "0")
			defer me.Sysctl("net.ipv4.igmp_max_memberships", was)
			examine(t, at).want(t, 1, "problem", "join", "net.ipv4.igmp_max_memberships")
		})
		l.Run("limit used", func(t *testing.T) {
			c, err := mcast.Listen("udp4", ":5000", &mcast.Config{NoWatch: true})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			for i := range 20 {
				if err := c.Join(mcast.Group{Addr: netip.AddrFrom4([4]byte{239, 9, 9, byte(i)}), Interface: "eth0"}); err != nil {
					t.Fatal(err)
				}
			}
			r := examine(t, at)
			r.want(t, 1, "note", "limits", "one socket may have 20")
			r.want(t, 1, "note", "members", "nobody but the doctor has joined 232.1.2.3")
			r.want(t, 1, "ok", "sockets", "listens on 0.0.0.0:5000")
		})
		l.Run("version", func(t *testing.T) {
			me.Sysctl("net.ipv4.conf.all.force_igmp_version", "2")
			defer me.Sysctl("net.ipv4.conf.all.force_igmp_version", "0")
			r := examine(t, at)
			r.want(t, 1, "problem", "version", "because net.ipv4.conf.all.force_igmp_version says so")
			r.want(t, 1, "ok", "report", "IGMPv2")
			me.Sysctl("net.ipv6.conf.eth0.force_mld_version", "1")
			defer me.Sysctl("net.ipv6.conf.eth0.force_mld_version", "0")
			examine(t, at6).want(t, 1, "problem", "version", "because net.ipv6.conf.eth0.force_mld_version says so")
		})
		l.Run("port in use", func(t *testing.T) {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if err := unix.Bind(fd, &unix.SockaddrInet4{Port: 5000}); err != nil {
				t.Fatal(err)
			}
			examine(t, at).want(t, 1, "problem", "join", "port 5000 is held by a program of user 0")
		})
		l.Run("bound to unicast", func(t *testing.T) {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			if err := unix.Bind(fd, &unix.SockaddrInet4{Port: 5000, Addr: me.Addr4("eth0").As4()}); err != nil {
				t.Fatal(err)
			}
			examine(t, at).want(t, 1, "note", "sockets", "bound to a unicast address")
		})
		l.Run("bridge port", func(t *testing.T) {
			me.IP("link", "add", "br9", "type", "bridge")
			me.IP("link", "set", "dev", "br9", "up")
			me.IP("link", "set", "dev", "eth0", "master", "br9")
			defer me.IP("link", "del", "dev", "br9")
			far.KeepSending(t, "eth0", src, to)
			r := examine(t, "-i", "eth0", at)
			r.want(t, 1, "problem", "port-of", "a port of the bridge br9")
		})
		l.Run("VLAN", func(t *testing.T) {
			l.Veth(me, "eth8", far, "eth8") // the switch does not forward tags
			sendFrames(t, far, "eth8", udpFrame{from: src, to: to, tag: 5}.bytes())
			examine(t, "-i", "eth8", at).want(t, 1, "note", "heard", "tag of VLAN 5") // the problem is that eth8 has no address
		})
		l.Run("link-local", func(t *testing.T) {
			examine(t, "-i", "eth0", "192.0.2.1@224.0.0.99:5000").want(t, 1, "problem", "scope", "no router forwards")
			examine(t, "ff02::99").want(t, 1, "note", "scope", "no interface was named")
		})
		testDamage(l, me, far)
		testAround(l, me, far)
		testKinds(l, me, far, src, to)
		l.Run("firewall", func(t *testing.T) { testFirewall(t, me, far, at, src, to) })
		l.Run("no rights", func(t *testing.T) {
			r := dropRights(t, func() result { return examine(t, at) })
			if r.facts.Wire != nil {
				t.Errorf("it captured\n%s", r.text)
			}
			far.KeepSending(t, "eth0", src, asm)
			r = dropRights(t, func() result { return examine(t, "-i", "eth0", "10.77.1.99@"+asm.String()) })
			r.want(t, 1, "problem", "heard", "comes from "+src.String())
		})
	})
}

// TestOlderQuerier: a switch that asks in IGMPv2.
func TestOlderQuerier(t *testing.T) {
	netlab.Run(t, func(l *netlab.Lab) {
		me, far := l.Local(), l.Host("far")
		sw := l.NewSwitch(netlab.SwitchConfig{IGMPVersion: 2, MLDVersion: 1}, me, far)
		at := far.Addr4("eth0").String() + "@232.1.2.3:5000"
		var r result
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
			sw.IP("link", "set", "dev", "br0", "type", "bridge", "mcast_querier", "0")
			sw.IP("link", "set", "dev", "br0", "type", "bridge", "mcast_querier", "1") // asks at once
			if r = examine(t, at); r.has("problem", "version", "querier") {
				break
			}
		}
		r.want(t, 1, "problem", "version", "eth0 speaks IGMPv2")
	})
}

func testFirewall(t *testing.T, me, far *netlab.Host, at string, src netip.Addr, to netip.AddrPort) {
	far.KeepSending(t, "eth0", src, to)
	tried := false
	if _, err := exec.LookPath("nft"); err == nil {
		tried = true
		me.Run("nft", "add table inet fw; add chain inet fw in { type filter hook input priority 0; policy accept; }; add rule inet fw in ip daddr 224.0.0.0/4 udp dport 5000 counter drop")
		r := examine(t, at)
		r.want(t, 1, "problem", "firewall", "drops the datagrams: nft table inet fw chain in: ip daddr 224.0.0.0/4 udp dport 5000")
		r.want(t, 1, "note", "heard", "none came to the socket")
		me.Run("sh", "-c", "nft insert rule inet fw in ip daddr 232.1.2.3 udp dport 5000 accept") // as it says
		examine(t, at).want(t, 0, "ok", "heard", "")
		me.Run("nft", "flush ruleset; add table ip fw; add chain ip fw out { type filter hook output priority 0; policy accept; }; add rule ip fw out ip protocol igmp drop")
		r = examine(t, at)
		if !r.has("problem", "firewall", "drops this host's reports") {
			t.Errorf("exit code %d\n%s", r.code, r.text)
		}
		me.Run("nft", "flush ruleset")
	}
	if _, err := exec.LookPath("iptables-legacy"); err == nil {
		tried = true
		lock := "XTABLES_LOCKFILE=" + t.TempDir() + "/lock"
		me.Run("env", lock, "iptables-legacy", "-P", "INPUT", "DROP") // beside nf_tables, where those are iptables' own
		_, err := os.ReadFile(procDir + "ip_tables_names")
		if r := examine(t, at); errors.Is(err, os.ErrPermission) { // root of a namespace may not read them all
			r.want(t, 1, "problem", "heard", "none came to the socket")
		} else {
			r.want(t, 1, "problem", "firewall", "drops the datagrams: iptables-legacy table ip filter chain INPUT: policy drop")
		}
		me.Run("env", lock, "iptables-legacy", "-P", "INPUT", "ACCEPT")
	}
	if _, err := exec.LookPath("iptables-nft"); err == nil {
		tried = true
		me.Run("iptables-nft", "-A", "INPUT", "-d", "232.1.2.3", "-p", "udp", "--dport", "5000", "-j", "DROP")
		r := examine(t, at)
		n := 0
		for _, x := range r.findings {
			if x.Rule == "firewall" && x.Severity == "problem" {
				n++
			}
		}
		if n != 1 { // nft and iptables both show it
			t.Errorf("%d findings of one rule:\n%s", n, r.text)
		}
		me.Run("iptables-nft", "-F", "INPUT")
	}
	if !tried {
		t.Skip("neither nft nor iptables is installed")
	}
}

// dropRights runs f on this thread without capabilities.
func dropRights(t *testing.T, f func() result) result {
	t.Helper()
	runtime.LockOSThread() // rights belong to it
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var was, none [2]unix.CapUserData
	if err := unix.Capget(&header, &was[0]); err != nil {
		t.Fatal(err)
	}
	for i := range none {
		none[i].Permitted = was[i].Permitted // to have them back
	}
	if err := unix.Capset(&header, &none[0]); err != nil {
		t.Fatal(err)
	}
	defer unix.Capset(&header, &was[0])
	return f()
}

// sendFrames sends frames until the test ends.
func sendFrames(t *testing.T, h *netlab.Host, ifname string, frames ...[]byte) {
	t.Helper()
	var fd, index int
	h.Do(func() {
		var err error
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		index = h.Index(ifname)
	})
	t.Cleanup(func() { unix.Close(fd) })
	netlab.Repeat(t, func() {
		for _, frame := range frames {
			if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
				t.Errorf("frames: %v", err)
			}
		}
	})
}

// A udpFrame is a datagram with whatever is to be wrong with it.
type udpFrame struct {
	from     netip.Addr
	to       netip.AddrPort
	tag      int
	badUDP   bool // its UDP checksum is wrong
	large    bool // so that it is looked at only when it is read
	badIP    bool // its IP header is wrong
	fragment int  // 1: the first of two fragments, 2: one that overlaps it
}

func checksum(b ...byte) uint16 {
	sum := 0
	for i, x := range b {
		sum += int(x) << (8 * (1 - i%2))
	}
	for sum>>16 > 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func (f udpFrame) bytes() []byte {
	be := binary.BigEndian
	udp := make([]byte, 8+32)
	if f.large {
		udp = make([]byte, 8+200)
	}
	be.PutUint16(udp, 4000)
	be.PutUint16(udp[2:], f.to.Port())
	be.PutUint16(udp[4:], uint16(len(udp)))
	pseudo := append(f.from.AsSlice(), f.to.Addr().AsSlice()...)
	pseudo = append(pseudo, 0, 17, 0, byte(len(udp)))
	sum := checksum(append(pseudo, udp...)...)
	if f.badUDP {
		sum ^= 0x5555
	}
	be.PutUint16(udp[6:], sum)

	g := f.to.Addr().AsSlice()
	mac := []byte{0x33, 0x33, g[len(g)-4], g[len(g)-3], g[len(g)-2], g[len(g)-1]}
	if len(g) == 4 {
		mac = []byte{1, 0, 0x5e, g[1] & 0x7f, g[2], g[3]}
	}
	frame := append(mac, 2, 0, 0, 0, 0, 1)
	if f.tag != 0 {
		frame = append(frame, 0x81, 0, byte(f.tag>>8), byte(f.tag))
	}
	offset, more := 0, uint16(0)
	switch f.fragment {
	case 1:
		more = 1
	case 2:
		offset, udp, more = 32, udp[16:], 1
	}
	if len(g) == 4 {
		ip := []byte{0x45, 0, 0, byte(20 + len(udp)), 0, 9, byte(more << 5), byte(offset / 8), 4, 17, 0, 0}
		ip = append(append(ip, f.from.AsSlice()...), g...)
		sum := checksum(ip...)
		if f.badIP {
			sum ^= 0x5555
		}
		be.PutUint16(ip[10:], sum)
		return append(append(append(frame, 8, 0), ip...), udp...)
	}
	next := byte(17)
	if f.fragment != 0 {
		next = 44
		udp = append([]byte{17, 0, byte(offset >> 8), byte(offset) | byte(more), 0, 0, 0, 9}, udp...)
	}
	ip := []byte{0x60, 0, 0, 0, 0, byte(len(udp)), next, 4}
	if f.badIP {
		ip[0] = 0x50
	}
	ip = append(append(ip, f.from.AsSlice()...), g...)
	return append(append(append(frame, 0x86, 0xdd), ip...), udp...)
}

// testDamage: what arrives, and is dropped before a socket has it.
func testDamage(l *netlab.Lab, me, far *netlab.Host) {
	l.Veth(me, "eth7", far, "eth7") // no switch stands between
	me.AddAddr("eth7", "10.70.0.1/24")
	me.AddAddr("eth7", "fd70::1/64")
	defer me.Delete("eth7")
	src, src6 := netip.MustParseAddr("10.70.0.2"), netip.MustParseAddr("fd70::2")
	to, to6 := netip.MustParseAddrPort("239.7.2.3:5000"), netip.MustParseAddrPort("[ff15::7:1]:5000")
	for _, tt := range []struct {
		name        string
		frames      []udpFrame
		rule, words string
		severity    string
	}{
		{"checksum", []udpFrame{{from: src, to: to, badUDP: true}}, "checksum", "arrived with a wrong UDP checksum", "problem"},
		{"checksum, large", []udpFrame{{from: src, to: to, badUDP: true, large: true}}, "checksum", "arrived with a wrong UDP checksum", "problem"},
		{"checksum, IPv6, large", []udpFrame{{from: src6, to: to6, badUDP: true, large: true}}, "checksum", "arrived with a wrong UDP checksum", "problem"},
		{"checksum, IPv6", []udpFrame{{from: src6, to: to6, badUDP: true}}, "checksum", "arrived with a wrong UDP checksum", "problem"},
		{"fragments", []udpFrame{{from: src, to: to, fragment: 1}, {from: src, to: to, fragment: 2}}, "packets", "from fragments", "note"},
		{"fragments, IPv6", []udpFrame{{from: src6, to: to6, fragment: 1}, {from: src6, to: to6, fragment: 2}}, "packets", "from fragments", "note"},
		{"header", []udpFrame{{from: src, to: to, badIP: true}}, "packets", "bad IP header", "note"},
		{"header, IPv6", []udpFrame{{from: src6, to: to6, badIP: true}}, "packets", "bad IP header", "note"},
		{"martian", []udpFrame{{from: netip.MustParseAddr("127.0.0.1"), to: to}}, "martian", "with the source 127.0.0.1", "problem"},
		{"martian, IPv6", []udpFrame{{from: netip.IPv6Loopback(), to: to6}}, "martian", "with the source ::1", "problem"},
		{"own address", []udpFrame{{from: netip.MustParseAddr("10.70.0.1"), to: to}}, "martian", "an address of this host", "problem"},
	} {
		l.Run(tt.name, func(t *testing.T) {
			var frames [][]byte
			for _, f := range tt.frames {
				frames = append(frames, f.bytes())
			}
			sendFrames(t, far, "eth7", frames...)
			r := examine(t, "-i", "eth7", tt.frames[0].to.String())
			r.want(t, 1, tt.severity, tt.rule, tt.words)
			if dropped := r.facts.Heard.Dropped; tt.frames[0].large && dropped == 0 {
				t.Error("the socket dropped none")
			}
			if tt.rule == "checksum" && (r.has("note", "buffer", "") || r.has("problem", "buffer", "")) {
				t.Errorf("a buffer is blamed:\n%s", r.text)
			}
		})
	}
	l.Run("sound frames", func(t *testing.T) { // so that the tests above prove what they say
		sendFrames(t, far, "eth7", udpFrame{from: src, to: to}.bytes(), udpFrame{from: src6, to: to6}.bytes())
		for _, to := range []netip.AddrPort{to, to6} {
			r := examine(t, "-i", "eth7", to.String())
			r.want(t, 0, "ok", "heard", "datagrams heard")
			for _, rule := range []string{"checksum", "packets", "martian", "buffer"} {
				if r.has("note", rule, "") || r.has("problem", rule, "") {
					t.Errorf("%v: %s", to, r.text)
				}
			}
		}
	})
}

// testAround: after silence, what arrives elsewhere.
func testAround(l *netlab.Lab, me, far *netlab.Host) {
	l.Veth(me, "eth6", far, "eth6")
	me.AddAddr("eth6", "10.60.0.1/24")
	me.AddAddr("eth6", "fd60::1/64")
	defer me.Delete("eth6")
	for _, is6 := range []bool{false, true} {
		src, to, instead := "10.60.0.2", netip.MustParseAddrPort("232.6.2.3:5000"), netip.MustParseAddrPort("232.6.2.4:5001")
		if is6 {
			src, to, instead = "fd60::2", netip.MustParseAddrPort("[ff3e::8006:1]:5000"), netip.MustParseAddrPort("[ff3e::8006:2]:5001")
		}
		from := netip.MustParseAddr(src)
		send := func(t *testing.T, to netip.AddrPort) {
			sendFrames(t, far, "eth6", udpFrame{from: from, to: to}.bytes())
		}
		l.Run("another interface", func(t *testing.T) {
			send(t, to)
			for _, args := range [][]string{{"-i", "eth0", src + "@" + to.String()}, {"-i", "eth0", netip.AddrPortFrom(netip.MustParseAddr(map[bool]string{false: "239.6.2.3", true: "ff15::6:1"}[is6]), 5000).String()}} {
				if !strings.Contains(args[2], "@") {
					send(t, netip.MustParseAddrPort(args[2]))
				}
				r := examine(t, args...)
				r.want(t, 1, "problem", "heard", "arrives on eth6, not on eth0")
				r = dropRights(t, func() result { return examine(t, args...) })
				r.want(t, 1, "problem", "heard", "arrives on eth6, not on eth0")
			}
		})
		l.Run("another group", func(t *testing.T) {
			send(t, instead)
			for _, on := range []string{"eth0", "eth6"} {
				examine(t, "-i", on, src+"@"+to.String()).want(t, 1, "problem", "heard", fmt.Sprintf("%s sends to %v, port 5001 (on eth6)", src, instead.Addr()))
			}
		})
		l.Run("the port", func(t *testing.T) {
			send(t, instead)
			r := examine(t, "-i", "eth6", netip.AddrPortFrom(to.Addr().Next().Next(), 5001).String())
			if !r.has("problem", "heard", fmt.Sprintf("for port 5001 is from %s to %v (on eth6)", src, instead.Addr())) && !r.has("note", "heard", fmt.Sprintf("for port 5001 is from %s to %v (on eth6)", src, instead.Addr())) {
				t.Errorf("%s", r.text)
			}
		})
	}
}

// device adds an interface, and skips the test where the kernel has no such
// kind.
func device(t *testing.T, h *netlab.Host, args ...string) {
	t.Helper()
	var out []byte
	var err error
	h.Do(func() {
		out, err = h.Command("ip", append([]string{"link", "add", "name"}, args...)...).CombinedOutput()
	})
	if err != nil {
		t.Skipf("this kernel has none: ip link add %s: %s", strings.Join(args, " "), bytes.TrimSpace(out))
	}
	t.Cleanup(func() { h.IP("link", "del", "dev", args[0]) })
}

// testKinds: interfaces that are special.
func testKinds(l *netlab.Lab, me, far *netlab.Host, src netip.Addr, to netip.AddrPort) {
	at := fmt.Sprintf("%v@%v", src, to)
	l.Run("VRF", func(t *testing.T) {
		device(t, me, "blue", "type", "vrf", "table", "10")
		me.IP("link", "set", "dev", "blue", "up")
		me.IP("link", "set", "dev", "eth0", "master", "blue")
		me.Readdress("eth0")
		defer func() { me.IP("link", "set", "dev", "eth0", "nomaster"); me.Readdress("eth0") }()
		far.KeepSending(t, "eth0", src, to)
		me.Sysctl("net.ipv4.udp_l3mdev_accept", "0")
		r := examine(t, "-i", "eth0", at)
		r.want(t, 1, "problem", "vrf", "only a socket that is bound to blue or eth0")
		r.want(t, 1, "ok", "source", "leads to eth0") // by the table of the VRF
		me.Sysctl("net.ipv4.udp_l3mdev_accept", "1")
		examine(t, "-i", "eth0", at).want(t, 0, "ok", "vrf", "any socket hears")
	})
	l.Run("ipvlan", func(t *testing.T) {
		device(t, me, "ipv0", "link", "eth0", "type", "ipvlan", "mode", "l3")
		me.IP("link", "set", "dev", "ipv0", "up")
		me.IP("addr", "add", "10.77.1.200/24", "dev", "ipv0")
		far.KeepSending(t, "eth0", src, to)
		examine(t, "-i", "ipv0", at).want(t, 1, "problem", "kind", "an ipvlan in mode l3")
	})
	l.Run("tunnel", func(t *testing.T) {
		mine, theirs := me.Addr4("eth0").String(), far.Addr4("eth0").String()
		device(t, me, "tun0", "type", "gre", "local", mine, "remote", theirs)
		device(t, far, "tun0", "type", "gre", "local", theirs, "remote", mine)
		for h, a := range map[*netlab.Host]string{me: "10.50.0.1/24", far: "10.50.0.2/24"} {
			h.IP("link", "set", "dev", "tun0", "multicast", "off", "up")
			h.IP("addr", "add", a, "dev", "tun0")
		}
		far.KeepSending(t, "tun0", netip.MustParseAddr("10.50.0.2"), to)
		examine(t, "-i", "tun0", "10.50.0.2@"+to.String()).want(t, 0, "note", "multicast", "delivers all the same")
	})
	l.Run("own source", func(t *testing.T) {
		r := examine(t, "-i", "eth0", fmt.Sprintf("%v@%v", me.Addr4("eth0"), to))
		r.want(t, 1, "problem", "heard", "by this host, whose address")
		if strings.Contains(r.text, "router") {
			t.Errorf("advice about routers:\n%s", r.text)
		}
	})
	l.Run("quoted", func(t *testing.T) {
		r := examine(t, "-i", "eth0", "[ff3e::8000:1]:5000")
		for _, x := range r.findings {
			for _, c := range x.Fix {
				if strings.Contains(strings.ReplaceAll(c, "'[ff3e::8000:1]:5000'", ""), "[") {
					t.Errorf("%s: a shell would read more into it: %s", x.Rule, c)
				}
			}
		}
	})
}
