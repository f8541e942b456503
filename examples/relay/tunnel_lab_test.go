//go:build linux

package main

import (
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"

	"example.com/mcast/examples/internal/looptest"
	"example.com/mcast/internal/amtrelay"
	"example.com/mcast/internal/netlab"
)

// A forwarding is a relay of AMT as a Writer: what it would hear of the source.
type forwarding struct {
	looptest.Relay
	source netip.Addr
	to     netip.AddrPort
}

func (w forwarding) Write(b []byte) (int, error) {
	w.Send(w.source.String(), w.to.Addr().String(), w.to.Port(), b)
	return len(b), nil
}

// A relay of AMT that is looked for, and found, brings the channel while the
// network does not: before its multicast comes, and when that has ended.
func TestLabAuto(t *testing.T) {
	t.Parallel()
	netlab.Run(t, func(l *netlab.Lab) {
		me, far := l.Local(), l.Host("far")
		l.Switch(me, far)
		r := looptest.NewAnycastRelay(l, amtrelay.Config{})
		src, to := far.Addr4("eth0"), netip.MustParseAddrPort("232.1.1.1:5000")
		group := to.Addr().String()
		p := startProgram(t, "-i", "eth0", "-amt", "auto", "-amt-after", "1ms", fmt.Sprintf("%v@%v", src, to))
		pl := mustPlay(t, fmt.Sprintf("%s/udp/%v@%v", p.url, src, to))
		plays := func(t *testing.T, what string) {
			t.Helper()
			before := pl.packets.Load()
			eventually(t, what, func() bool { return pl.packets.Load() > before+100 })
		}
		next := (&site{url: p.url}).eventsOf(t)
		live := func(t *testing.T, what string) {
			t.Helper()
			state, why := "", ""
			eventually(t, what, func() bool {
				for _, x := range next().Rows {
					state, why = x.State, x.Why
				}
				return state == "live" && why == ""
			})
		}
		tunnel := func() (stop func()) {
			return (&station{each: 5 * time.Millisecond}).run(t, func() (io.Writer, func()) { return forwarding{r, src, to}, func() {} })
		}
		r.Wait(group)
		stop := tunnel()
		plays(t, "by the tunnel")
		live(t, "by the tunnel")
		stop()
		(&station{each: 5 * time.Millisecond}).from(t, far, src, to)
		plays(t, "by the network")
		r.Wait()
		live(t, "by the network")

		me.Carrier("eth0", false)
		r.Wait(group)
		tunnel()
		plays(t, "by the tunnel again")
		live(t, "by the tunnel again, without eth0")
		me.Carrier("eth0", true)
		r.Wait()
		plays(t, "by the network again")
	})
}
