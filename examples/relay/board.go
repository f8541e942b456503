package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"slices"
	"sync"
	"time"

	"example.com/mcast/amt"
)

const (
	historyLength = 300             // samples, one a second: what plots show
	silentAfter   = 3 * time.Second // a channel that was not heard for that long is silent
)

// A history is the rate of a channel in the last minutes.
type history []sample

// A sample is a time, in seconds, and Mbit/s.
type sample [2]float64

// A board is what the page shows. Each second it looks at all channels.
type board struct {
	relay *relay

	mu    sync.Mutex
	tick  int64 // of the last look
	now   time.Time
	rows  map[*channel]*rowState
	order []int64 // the rows' numbers
	set   int64   // the tick at which there last were other channels
	next  int64
	more  chan struct{} // closed at the next look
}

// A row is what the page knows of a channel. A pointer that is nil says that it
// cannot be known.
type row struct {
	ID        int64    `json:"id"`
	Name      string   `json:"name"`
	Path      string   `json:"path"`
	Group     string   `json:"group"`
	Source    string   `json:"source"` // "": any
	From      string   `json:"from"`   // who sends, if any source may
	Interface string   `json:"interface"`
	State     string   `json:"state"`
	Why       string   `json:"why"`
	Viewers   int      `json:"viewers"`
	Mbits     *float64 `json:"mbits"`
	Datagrams *float64 `json:"datagrams"` // a second
	Lost      *uint64  `json:"lost"`
	Unit      string   `json:"unit"` // of what is lost
	Dropped   uint64   `json:"dropped"`
	Heard     int64    `json:"heard"` // seconds; 0: never
	History   history  `json:"history,omitempty"`
}

type rowState struct {
	row
	changed          int64 // the tick
	at               time.Time
	datagrams, bytes uint64 // as of then
	joined           bool
	history          history
}

func newBoard(r *relay) *board {
	return &board{relay: r, rows: make(map[*channel]*rowState), more: make(chan struct{})}
}

// look makes the rows anew.
func (b *board) look(now time.Time) {
	channels := b.relay.all()
	shots := make([]snapshot, len(channels))
	for i, c := range channels {
		shots[i] = c.snapshot()
	}
	b.mu.Lock()
	b.tick++
	b.now = now
	old := b.order
	b.order = nil
	here := make(map[*channel]bool, len(channels))
	for i, c := range channels {
		here[c] = true
		st := b.rows[c]
		if st == nil {
			b.next++
			st = &rowState{row: row{ID: b.next}, changed: b.tick}
			b.rows[c] = st
		}
		b.order = append(b.order, st.ID)
		if was := st.row; st.update(c, shots[i], now) || !was.equal(&st.row) {
			st.changed = b.tick
		}
	}
	for c := range b.rows {
		if !here[c] {
			delete(b.rows, c)
		}
	}
	if !slices.Equal(old, b.order) {
		b.set = b.tick
	}
	more := b.more
	b.more = make(chan struct{})
	b.mu.Unlock()
	close(more)
}

func (r *row) equal(other *row) bool {
	a, _ := json.Marshal(r)
	b, _ := json.Marshal(other)
	return bytes.Equal(a, b)
}

// update makes a row anew, and reports whether it has one more sample.
func (st *rowState) update(c *channel, s snapshot, now time.Time) (sampled bool) {
	id := st.ID
	st.row = row{
		ID: id, Name: c.name, Path: c.relay.path(&c.entry), Group: fmt.Sprintf("%v:%d", c.ch.Group.Addr, c.ch.Port),
		Interface: c.ch.Group.Interface, Viewers: s.viewers, Dropped: s.totals.dropped,
	}
	if c.ch.Group.Addr.Is6() {
		st.Group = fmt.Sprintf("[%v]:%d", c.ch.Group.Addr, c.ch.Port)
	}
	if c.ch.Source.IsValid() {
		st.Source = c.ch.Source.String()
	}
	if !s.totals.last.IsZero() {
		st.Heard = s.totals.last.Unix()
	}
	st.State, st.Why = stateOf(c, s, now)
	if s.joined {
		if g := s.status.membership.Group.Interface; g != "" {
			st.Interface = g
		}
		if from := s.status.stream.from; from.IsValid() && !c.ch.Source.IsValid() {
			st.From = from.WithZone("").String()
		}
	}
	if s.totals.datagrams > 0 && (s.status.stream.rtp || s.totals.lost > 0) {
		st.Lost, st.Unit = &s.totals.lost, "RTP packets"
	} else if s.totals.datagrams > 0 && (s.status.stream.ts || s.totals.lostTS > 0) {
		st.Lost, st.Unit = &s.totals.lostTS, "TS packets"
	}
	seconds := now.Sub(st.at).Seconds()
	if s.joined && st.joined && seconds > 0 {
		mbits := round(float64(s.totals.bytes-st.bytes) * 8 / 1e6 / seconds)
		datagrams := math.Round(float64(s.totals.datagrams-st.datagrams) / seconds)
		st.Mbits, st.Datagrams = &mbits, &datagrams
		st.history = append(st.history, sample{float64(now.Unix()), mbits})
		if len(st.history) > historyLength {
			st.history = slices.Delete(st.history, 0, len(st.history)-historyLength)
		}
		sampled = true
	}
	st.at, st.joined, st.datagrams, st.bytes = now, s.joined, s.totals.datagrams, s.totals.bytes
	return sampled
}

func round(f float64) float64 { return math.Round(f*1000) / 1000 }

// stateOf says in a word what a channel is doing, and what is wrong.
func stateOf(c *channel, s snapshot, now time.Time) (state, why string) {
	m := s.status.membership
	switch {
	case !s.joined && s.failed != "":
		return "failed", s.failed
	case !s.joined:
		return "idle", ""
	case m.Pending && s.status.why == "":
		return "pending", "there is no usable interface for it"
	case m.Pending:
		return "pending", s.status.why
	case s.status.down != "" && m.Group.Interface != amt.Interface: // which needs none
		return "down", s.status.down + " is down"
	case now.Sub(s.status.group.Last) < silentAfter:
		return "live", s.status.why // a membership on every interface may lack some
	case c.ch.Group.IsSSM() && !c.ch.Source.IsValid():
		return "silent", "routers want the source of such a group: SOURCE@GROUP"
	case s.status.group.Filtered > 0 && s.status.group.Received == 0:
		return "silent", "only other sources send to it"
	}
	return "silent", "joined, and nothing comes"
}

// An update is what an open page gets.
type update struct {
	Now     int64   `json:"now"`
	Viewers int64   `json:"viewers"`
	Limit   int     `json:"limit"`
	Order   []int64 `json:"order,omitempty"`
	Rows    []row   `json:"rows"`
}

// since returns what has changed since a look, all of it since 0, and when there
// is more.
func (b *board) since(tick int64) (u update, now int64, more <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	u = update{Now: b.now.Unix(), Viewers: b.relay.counts.viewers.Load(), Limit: b.relay.options.viewers, Rows: []row{}}
	if b.set > tick || tick == 0 {
		u.Order = append([]int64{}, b.order...)
	}
	for _, st := range b.rows {
		if st.changed <= tick && tick > 0 {
			continue
		}
		r := st.row
		if tick == 0 {
			r.History = slices.Clone(st.history)
		} else if i := slices.IndexFunc(st.history, func(s sample) bool { return s[0] > float64(b.now.Unix()-(b.tick-tick)) }); i >= 0 {
			r.History = slices.Clone(st.history[i:])
		}
		u.Rows = append(u.Rows, r)
	}
	slices.SortFunc(u.Rows, func(x, y row) int { return int(x.ID - y.ID) })
	return u, b.tick, b.more
}

// run looks each second, until the context ends.
func (b *board) run(done <-chan struct{}) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	b.look(time.Now())
	for {
		select {
		case <-done:
			return
		case now := <-t.C:
			b.look(now)
		}
	}
}

// serve sends server-sent events.
func (b *board) serve(w http.ResponseWriter, req *http.Request) {
	counts := &b.relay.counts
	if counts.pages.Add(1) > pageViewers {
		counts.pages.Add(-1)
		w.Header().Set("Retry-After", "5")
		http.Error(w, "too many open pages", http.StatusServiceUnavailable)
		return
	}
	defer counts.pages.Add(-1)
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	rc := http.NewResponseController(w)
	var tick int64
	for {
		u, now, more := b.since(tick)
		tick = now
		data, err := json.Marshal(u)
		if err != nil {
			return
		}
		rc.SetWriteDeadline(time.Now().Add(viewerTime))
		if _, err := fmt.Fprintf(w, "data: %s\n\n", data); err != nil {
			return
		}
		if err := rc.Flush(); err != nil {
			return
		}
		select {
		case <-more:
		case <-req.Context().Done():
			return
		case <-b.relay.ending:
			return
		}
	}
}
