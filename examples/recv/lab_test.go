//go:build linux

package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"example.com/mcast/internal/netlab"
)

// TestNews: what happens to memberships is told, and the TTL.
func TestNews(t *testing.T) {
	netlab.Run(t, func(l *netlab.Lab) {
		me, far := l.Local(), l.Host("far")
		l.Switch(me, far)
		src, to := far.Addr4("eth0"), netip.MustParseAddrPort("232.1.2.3:5000")
		at := fmt.Sprintf("%v@%v", src, to)

		l.Run("membership", func(t *testing.T) {
			for _, flag := range []string{"-json=false", "-json"} {
				p := launch(t, flag, "-i", "eth0", at)
				me.Delete("eth0")
				p.stdout.Wait(t, "pending 232.1.2.3%eth0")
				me.Recreate("eth0", false)
				p.stdout.Wait(t, "restored 232.1.2.3%eth0")
				p.interrupt()
				p.end(t)
				if flag != "-json" {
					continue
				}
				var kinds []string
				for _, n := range parseJSON(t, p.stdout.String()).news {
					kinds = append(kinds, n.Kind)
				}
				if s := strings.Join(kinds, " "); !strings.Contains(s, "pending") || !strings.Contains(s, "restored") {
					t.Errorf("%s", p.stdout)
				}
			}
		})
		l.Run("link down", func(t *testing.T) {
			p := launch(t, "-i", "eth0", at)
			me.Down("eth0")
			p.stdout.Wait(t, " down eth0")
			me.Up("eth0")
			me.Readdress("eth0")
			p.stdout.Wait(t, " up eth0")
			p.interrupt()
			p.end(t)
		})
		l.Run("TTL", func(t *testing.T) {
			p := launch(t, "-v", "-n", "1", "-i", "eth0", at)
			far.KeepSending(t, "eth0", src, to)
			p.end(t)
			if !strings.Contains(p.stdout.String(), ", TTL 4\n") {
				t.Error(p.stdout.String())
			}
		})
		l.Run("forced version", func(t *testing.T) {
			me.Sysctl("net.ipv4.conf.eth0.force_igmp_version", "2")
			me.Sysctl("net.ipv6.conf.all.force_mld_version", "1")
			six := fmt.Sprintf("%v@[ff3e::8000:1]:5000", far.Addr6("eth0"))
			p := launch(t, "-i", "eth0", at, six)
			p.stdout.Wait(t, "note: eth0 speaks IGMPv2, because net.ipv4.conf.eth0.force_igmp_version says so")
			p.stdout.Wait(t, "note: eth0 speaks MLDv1, because net.ipv6.conf.all.force_mld_version says so")
			p.interrupt()
			p.end(t)
			p = launch(t, "-i", "eth0", "239.1.2.3:5000", "[ff15::1]:5000", "-t", "0.1") // no channels
			p.end(t)
			me.Sysctl("net.ipv4.conf.eth0.force_igmp_version", "0")
			me.Sysctl("net.ipv6.conf.all.force_mld_version", "0")
			q := launch(t, "-i", "eth0", at, six, "-t", "0.1")
			q.end(t)
			for _, x := range []*program{p, q} {
				if strings.Contains(x.stdout.String(), "note:") {
					t.Error(x.stdout.String())
				}
			}
		})
		l.Run("bind", func(t *testing.T) {
			l.Veth(me, "eth1", far, "eth1")
			me.AddAddr("eth1", "10.99.0.1/24")
			far.AddAddr("eth1", "10.99.0.2/24")
			const group = "239.1.2.3"
			to := netip.MustParseAddrPort(group + ":5000")
			both := []string{group + "%eth0:5000", group + "%eth1:5000"}
			p := launch(t, append(both, "-json", "-n", "1", "-bind", "eth1")...)
			far.Send(t, "eth0", src, to, "by eth0")
			far.Send(t, "eth1", netip.MustParseAddr("10.99.0.2"), to, "by eth1")
			p.end(t)
			if s := parseJSON(t, p.stdout.String()).summary.Streams; len(s) != 1 || s[0].Group != group+"%eth1" {
				t.Errorf("%s", p.stdout)
			}
		})
	})
}

// TestVRF: nothing is heard in one, unless bound to it.
func TestVRF(t *testing.T) {
	netlab.Run(t, func(l *netlab.Lab) {
		me, far := l.Local(), l.Host("far")
		var err string
		me.Do(func() {
			if out, e := me.Command("ip", "link", "add", "name", "blue", "type", "vrf", "table", "10").CombinedOutput(); e != nil {
				err = strings.TrimSpace(string(out))
			}
		})
		if err != "" {
			t.Skipf("this kernel has no VRF: %s", err)
		}
		me.IP("link", "set", "dev", "blue", "up")
		l.Switch(me, far)
		me.IP("link", "set", "dev", "eth0", "master", "blue")
		me.Readdress("eth0")
		src, to := far.Addr4("eth0"), netip.MustParseAddrPort("232.1.2.3:5000")
		at := fmt.Sprintf("%v@%v", src, to)
		far.KeepSending(t, "eth0", src, to)
		for _, device := range []string{"", "eth0", "blue"} {
			args := []string{"-i", "eth0", at, "-json", "-t", "0.3"}
			if device != "" {
				args = []string{"-i", "eth0", at, "-json", "-n", "1", "-bind", device}
			}
			p := launch(t, args...)
			p.end(t)
			if n := parseJSON(t, p.stdout.String()).summary.Datagrams; (n > 0) != (device != "") {
				t.Errorf("bound to %q: %s", device, p.stdout)
			}
		}
	})
}
