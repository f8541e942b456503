package main

import (
	"net/netip"
	"testing"
	"time"
)

// A board shows rates over time, as they were.
func TestBoardRates(t *testing.T) {
	r, n := newTestRelay(t, options{}, "239.1.1.1:5000")
	b := newBoard(r)
	now := start
	b.look(now)
	c, _ := r.mustWatch(t, "239.1.1.1:5000")
	f := n.fake(t, "239.1.1.1:5000")
	second := func(datagrams int) row {
		f.mu.Lock()
		f.stats.Received += uint64(datagrams)
		f.stats.Bytes += uint64(datagrams) * 1250
		f.mu.Unlock()
		now = now.Add(time.Second)
		b.look(now)
		return b.rows[c].row
	}
	if r := second(5); r.Mbits != nil || r.Datagrams != nil {
		t.Errorf("a rate without a time: %+v", r)
	}
	for i, n := range []int{100, 0, 300} {
		r := second(n)
		if r.Mbits == nil || *r.Mbits != float64(n)/100 || *r.Datagrams != float64(n) {
			t.Errorf("second %d: %+v", i, r)
		}
	}
	want := history{{float64(now.Unix() - 2), 1}, {float64(now.Unix() - 1), 0}, {float64(now.Unix()), 3}}
	u, tick, _ := b.since(0)
	if h := u.Rows[0].History; len(h) != 3 || h[0] != want[0] || h[1] != want[1] || h[2] != want[2] {
		t.Errorf("%v, want %v", h, want)
	}
	second(200)
	if u, _, _ = b.since(tick); len(u.Rows) != 1 || len(u.Rows[0].History) != 1 || u.Rows[0].History[0][1] != 2 {
		t.Errorf("since then: %+v", u)
	}
	for range historyLength {
		second(1)
	}
	if h := b.rows[c].history; len(h) != historyLength || h[0][0] != float64(now.Unix()-historyLength+1) {
		t.Errorf("%d samples from %v", len(h), h[0])
	}
}

// Channels that come and go.
func TestBoardSet(t *testing.T) {
	r, _ := newTestRelay(t, options{rules: rules{prefixes: []netip.Prefix{netip.MustParsePrefix("239.9.0.0/16")}}}, "239.1.1.1:5000")
	b := newBoard(r)
	b.look(start)
	u, tick, more := b.since(0)
	if len(u.Order) != 1 || len(u.Rows) != 1 {
		t.Fatalf("%+v", u)
	}
	b.look(start.Add(time.Second))
	<-more
	if u, tick, _ = b.since(tick); u.Order != nil || len(u.Rows) != 0 {
		t.Errorf("nothing new: %+v", u)
	}
	c, _ := r.mustWatch(t, "239.9.1.1:5000")
	b.look(start.Add(2 * time.Second))
	if u, tick, _ = b.since(tick); len(u.Order) != 2 || len(u.Rows) != 1 || u.Rows[0].ID != u.Order[1] || u.Rows[0].State == "idle" {
		t.Errorf("one more: %+v", u)
	}
	c.mu.Lock()
	c.leave()
	c.mu.Unlock()
	b.look(start.Add(3 * time.Second))
	if u, _, _ = b.since(tick); len(u.Order) != 1 || len(u.Rows) != 0 || len(b.rows) != 1 {
		t.Errorf("one less: %+v", u)
	}
}
