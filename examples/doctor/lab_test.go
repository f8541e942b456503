//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
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
	findings []struct{ Severity, Rule, Text string }
	facts    struct {
		Heard struct{ Received uint64 }
		Wire  *struct{ Reports []report }
	}
	text string
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
		Findings any
		Facts    any
	}
	show.Findings, show.Facts = &r.findings, &r.facts
	if err := json.Unmarshal([]byte(out.String()), &show); err != nil {
		t.Fatalf("%v: %s%s", err, out.String(), errs.String())
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

// stream sends from another host until the test ends.
func stream(t *testing.T, h *netlab.Host, from netip.Addr, to netip.AddrPort) {
	t.Helper()
	s := h.Sender(t, "eth0", from, to)
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
				s.Send("x")
			}
		}
	}()
	t.Cleanup(func() { close(done); <-ended })
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
			stream(t, far, src, to)
			stream(t, far, src6, to6)
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
			stream(t, far, src, asm)
			stream(t, far, src6, to6)
			examine(t, "-i", "eth0", "10.77.1.99@"+asm.String()).want(t, 1, "problem", "heard", "comes from "+src.String())
			examine(t, "-i", "eth0", "2001:db8::1@"+to6.String()).want(t, 1, "problem", "heard", "comes from "+src6.String())
		})
		l.Run("another port", func(t *testing.T) {
			stream(t, far, src, netip.AddrPortFrom(to.Addr(), 5001))
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
			stream(t, far, other, to)
			stream(t, far, other, asm)
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
			stream(t, far, src, to)
			r := examine(t, "-i", "eth0", at)
			r.want(t, 1, "problem", "port-of", "a port of the bridge br9")
		})
		l.Run("VLAN", func(t *testing.T) {
			l.Veth(me, "eth8", far, "eth8") // the switch does not forward tags
			sendTagged(t, far, "eth8", src, to)
			examine(t, "-i", "eth8", at).want(t, 1, "note", "heard", "tag of VLAN 5") // the problem is that eth8 has no address
		})
		l.Run("link-local", func(t *testing.T) {
			examine(t, "-i", "eth0", "192.0.2.1@224.0.0.99:5000").want(t, 1, "problem", "scope", "no router forwards")
			examine(t, "ff02::99").want(t, 1, "note", "scope", "no interface was named")
		})
		l.Run("firewall", func(t *testing.T) { testFirewall(t, me, far, at, src, to) })
		l.Run("no rights", func(t *testing.T) {
			r := dropRights(t, func() result { return examine(t, at) })
			if r.facts.Wire != nil {
				t.Errorf("it captured\n%s", r.text)
			}
			stream(t, far, src, asm)
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
	stream(t, far, src, to)
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
		if _, err := exec.LookPath("iptables-save"); err == nil {
			tried = true
			lock := "XTABLES_LOCKFILE=" + t.TempDir() + "/lock"
			me.Run("env", lock, "iptables-legacy", "-P", "INPUT", "DROP")
			if r := examine(t, at); hidden(false) { // root of a namespace may not read them all
				r.want(t, 1, "problem", "heard", "none came to the socket")
			} else {
				r.want(t, 1, "problem", "firewall", "drops the datagrams: iptables table ip filter chain INPUT: policy drop")
			}
			me.Run("env", lock, "iptables-legacy", "-P", "INPUT", "ACCEPT")
		}
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

// sendTagged sends datagrams with a VLAN tag until the test ends.
func sendTagged(t *testing.T, h *netlab.Host, ifname string, from netip.Addr, to netip.AddrPort) {
	t.Helper()
	udp := []byte{0x13, 0x88, byte(to.Port() >> 8), byte(to.Port()), 0, 9, 0, 0, 'x'}
	ip := []byte{0x45, 0, 0, byte(20 + len(udp)), 0, 0, 0, 0, 4, 17, 0, 0}
	ip = append(append(append(ip, from.AsSlice()...), to.Addr().AsSlice()...), udp...)
	g := to.Addr().As4()
	frame := []byte{1, 0, 0x5e, g[1] & 0x7f, g[2], g[3], 2, 0, 0, 0, 0, 1, 0x81, 0, 0, 5, 8, 0}
	frame = append(frame, ip...)
	var fd, index int
	h.Do(func() {
		var err error
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		index = h.Index(ifname)
	})
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
				if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
					t.Errorf("tagged: %v", err)
				}
			}
		}
	}()
	t.Cleanup(func() { close(done); <-ended; unix.Close(fd) })
}
