//go:build !plan9

package mcast

import (
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// What a request leaves pending is tried again without news, of which there is
// none of routes.
func TestRouteIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h, _ := newModelConn(t, onLinux, false, &Config{WaitForInterface: true})
		h.defaultRoute = 0
		c.must(c.Join(c.group("")))
		if ms := c.Memberships(); len(ms) != 1 || !ms[0].Pending {
			t.Fatalf("%v, want it pending", ms)
		}
		time.Sleep(time.Minute)
		h.setDefault(2)
		time.Sleep(3 * time.Second)
		if ms := c.Memberships(); len(ms) != 1 || ms[0].Pending || ms[0].Group.Interface != "eth0" {
			t.Errorf("%v, want it on eth0", ms)
		}
	})
}

// What could not be brought back after a request that failed is made again.
func TestFailureIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h, _ := newModelConn(t, onWindows, false, nil)
		c.must(c.Join(c.group("eth0")))
		for n := range 8 {
			if n != 1 { // the second, a Leave, succeeds
				h.kernel.FailCall(n+1, syscall.Errno(10055), false)
			}
		}
		if err := c.set(c.include("eth0", 1)); err == nil {
			t.Fatal("SetFilter succeeded")
		}
		if ms := c.Memberships(); len(ms) != 1 || ms[0].Mode != Exclude || !ms[0].Pending {
			t.Fatalf("%v, want what was asked for before, pending", ms)
		}
		time.Sleep(10 * time.Second)
		if ms := c.Memberships(); len(ms) != 1 || ms[0].Mode != Exclude || ms[0].Pending {
			t.Errorf("%v, want it held again", ms)
		}
	})
}
