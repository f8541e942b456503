//go:build linux

package main

import (
	"net/netip"
	"testing"

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
			keepSending(t, host, host.Addr4("eth0"), netip.MustParseAddrPort("239.1.2.3:5000"))
			p.stderr.Wait(t, "239.1.2.3 arrives from the network, by eth0: left in the tunnel")
			r.Wait()
			p.interrupt()
			p.end(t)
		})
	})
}
