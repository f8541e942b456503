//go:build !plan9

package mcast

import (
	"errors"
	"slices"
	"strings"
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
		time.Sleep(70 * time.Second) // not just before a try that is late
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
		synctest.Wait()
		if told := c.told.take(); len(told) != 1 || !strings.HasPrefix(told[0], "failed 239.1.2.3%eth0 on eth0: ") {
			t.Errorf("events %q, want why it is pending", told)
		}
		time.Sleep(10 * time.Second)
		if ms := c.Memberships(); len(ms) != 1 || ms[0].Mode != Exclude || ms[0].Pending {
			t.Errorf("%v, want it held again", ms)
		}
	})
}

// A request that the system wants to be made again is, a few times.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, _ := newModelConn(t, onLinux, false, quiet)
		for fails := range mostWaits + 2 {
			refused := errors.New("refused")
			again := &tooSoon{wait: time.Second, cause: refused}
			requests := 0
			start := time.Now()
			c.mu.Lock()
			err := c.patiently(again, func() error {
				if requests++; requests > fails {
					return nil
				}
				return again
			})
			c.mu.Unlock()
			wantErr, want := error(nil), fails+1
			if fails >= mostWaits {
				wantErr, want = refused, mostWaits
			}
			if err != wantErr || requests != want || time.Since(start) != time.Duration(want)*time.Second {
				t.Errorf("%d failures: %v after %d requests and %v, want %v after %d", fails, err, requests, time.Since(start), wantErr, want)
			}
		}
	})
}

// A change of a Pool's membership on every interface is one request for each:
// none is left and joined again.
func TestPoolEveryInterfaceStays(t *testing.T) {
	eachModel(t, fourSystems, func(t *testing.T, y modelSystem, ipv6 bool) {
		h := newModelHost(t, y)
		p := h.openPool(ipv6, nil)
		c := h.open(endpoint{ipv6: ipv6}, nil) // for its addresses
		every := c.group(everyInterface)
		c.must(p.Join(every))
		made := joins(p)
		c.must(p.Block(every, c.source(1)))
		c.must(p.SetFilter(every, Exclude, c.sources(1, 2, 3)...))
		c.must(p.Unblock(every, c.source(2)))
		if y.name != "windows" { // which has leave and join for it
			c.must(p.SetFilter(every, Include, c.sources(1, 2)...))
			c.must(p.JoinSource(every, c.source(3)))
			c.must(p.LeaveSource(every, c.source(1)))
		}
		if n := joins(p); n != made {
			t.Errorf("%d joins and leaves, want the first %d alone", n, made)
		}
		if ms := p.Memberships(); len(ms) != 1 || ms[0].Pending {
			t.Errorf("%v", ms)
		}
	})
}

// joins counts what makes and ends memberships of a Pool's sockets.
func joins(p *modelPool) (n int) {
	for _, s := range p.all() {
		for _, r := range s.socket.(modelPoolSocket).Requests() {
			if strings.Contains(r.Name, "LEAVE_GROUP") || strings.Contains(r.Name, "DROP_MEMBERSHIP") ||
				strings.Contains(r.Name, "JOIN_GROUP") || strings.Contains(r.Name, "ADD_MEMBERSHIP") {
				n++
			}
		}
	}
	return n
}

// Down and up are told each time, though nothing is held on the interface while it
// is down.
func TestDownAndUpAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, h, _ := newModelConn(t, onLinux, false, nil)
		c.must(c.Join(c.group(everyInterface)))
		for range 3 {
			h.setUp(3, false)
			time.Sleep(time.Second)
			h.setUp(3, true)
			time.Sleep(time.Second)
		}
		told := c.told.take()
		for _, kind := range []string{"down eth1", "up eth1"} {
			if n := len(slices.DeleteFunc(slices.Clone(told), func(s string) bool { return !strings.HasPrefix(s, kind) })); n != 3 {
				t.Errorf("%s is told %d times, want 3: %q", kind, n, told)
			}
		}
	})
}
