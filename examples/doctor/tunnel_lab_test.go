//go:build linux

package main

import (
	"fmt"
	"testing"

	"example.com/mcast/examples/internal/looptest"
	"example.com/mcast/internal/amtrelay"
	"example.com/mcast/internal/netlab"
)

// TestLabAuto: a relay that is looked for, and found.
func TestLabAuto(t *testing.T) {
	netlab.Run(t, func(l *netlab.Lab) {
		me, far := l.Local(), l.Host("far")
		l.Switch(me, far)
		looptest.NewAnycastRelay(l, amtrelay.Config{})
		at := fmt.Sprintf("%v@232.1.2.3:5000", far.Addr4("eth0"))
		examine(t, "-i", "eth0", "-amt", "auto", at).want(t, 1, "note", "amt", "no multicast here; a relay answers at 192.52.193.1:2268")
	})
}
