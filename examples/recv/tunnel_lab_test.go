//go:build linux

package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"example.com/mcast/examples/internal/looptest"
	"example.com/mcast/internal/amtrelay"
	"example.com/mcast/internal/netlab"
)

// TestFallbackPending: no route leads anywhere at first, as in many containers.
func TestFallbackPending(t *testing.T) {
	netlab.Run(t, func(l *netlab.Lab) {
		me, host := l.Local(), l.Host("far")
		l.Switch(me, host)
		l.Run("any source", func(t *testing.T) {
			r := looptest.NewRelay(t, amtrelay.Config{})
			p := launch(t, "-amt", r.Addr.String(), "-amt-after", "1ms", "-o", "-", "239.1.2.3:5000")
			p.stderr.Wait(t, "joined 239.1.2.3, port 5000, from any source, pending")
			r.Wait("239.1.2.3")
			r.Send(far, "239.1.2.3", 5000, []byte("tunnel"))
			p.stdout.Wait(t, "tunnel")
			me.IP("route", "add", "224.0.0.0/4", "dev", "eth0")
			host.KeepSending(t, "eth0", host.Addr4("eth0"), netip.MustParseAddrPort("239.1.2.3:5000"))
			p.stderr.Wait(t, "239.1.2.3 arrives from the network, by eth0: left in the tunnel")
			r.Wait()
			p.interrupt()
			p.end(t)
		})
	})
}

// TestAuto: a relay that is looked for, and found, while the network brings
// nothing: before its multicast comes, and when that has ended.
func TestAuto(t *testing.T) {
	netlab.Run(t, func(l *netlab.Lab) {
		me, host := l.Local(), l.Host("far")
		l.Switch(me, host)
		r := looptest.NewAnycastRelay(l, amtrelay.Config{})
		src, to := host.Addr4("eth0"), netip.MustParseAddrPort("232.1.2.3:5000")
		tunnel := func(text string) { r.Send(src.String(), to.Addr().String(), to.Port(), []byte(text)) }
		p := launch(t, "-amt", "auto", "-amt-after", "1ms", "-o", "-", fmt.Sprintf("%v@%v", src, to))
		native := host.Sender(t, "eth0", src, to)
		// A switch needs some time to learn who has joined.
		nativeUntil := func(news string, times int) {
			t.Helper()
			for end := time.Now().Add(looptest.Patience); strings.Count(p.stderr.String(), news) < times; time.Sleep(time.Millisecond) {
				native.Send("native, ")
				if time.Now().After(end) {
					t.Fatalf("nothing of %q: %s", news, p.stderr)
				}
			}
		}
		p.stderr.Wait(t, fmt.Sprintf("nothing of %v@232.1.2.3 in the network: trying a tunnel", src))
		p.stderr.Wait(t, "relay 192.52.193.1:2268: tunnel up")
		r.Wait("232.1.2.3")
		tunnel("tunnel 1, ")
		p.stdout.Wait(t, "tunnel 1, ")
		nativeUntil("arrives from the network, by eth0: left in the tunnel", 1)
		tunnel("dropped") // the relay does not know yet that it is left
		r.Wait()

		me.Carrier("eth0", false)
		p.stderr.Wait(t, fmt.Sprintf("nothing of %v@232.1.2.3 in the network any more: joined in the tunnel", src))
		r.Wait("232.1.2.3")
		tunnel("tunnel 2, ")
		p.stdout.Wait(t, "tunnel 2, ")
		me.Carrier("eth0", true)
		nativeUntil("arrives from the network, by eth0: left in the tunnel", 2)
		r.Wait()
		p.interrupt()
		p.end(t)
		if out := p.stdout.String(); strings.Contains(out, "dropped") {
			t.Error(out)
		}
	})
}
