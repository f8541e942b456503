package main

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"example.com/mcast"
)

// Options are what the command line says.
type options struct {
	listen   string
	list     string
	linger   time.Duration // a channel is left that long after its last viewer
	viewers  int           // at most
	patience time.Duration // with a viewer that takes nothing
	channels int           // joined at most
	given    []entry
	rules    rules
	amt      string        // "auto": looked for, "": no tunnels
	after    time.Duration // of silence in the network; 0: only tunnels
}

// A relay has the channels, and joins them for their viewers.
type relay struct {
	rules
	options  options
	playlist playlist
	log      *slog.Logger
	open     func(mcast.Channel, func(mcast.Event), *slog.Logger) (receiver, error)
	started  time.Time
	counts   counters
	ending   chan struct{} // closed when the program is about to end

	mu       sync.Mutex
	channels []*channel // those that are listed, then others that are joined
	find     map[mcast.Channel]*channel
	joined   int
	closed   bool
}

// A channel is one of a relay's, joined or not.
type channel struct {
	entry
	relay  *relay
	listed bool
	log    *slog.Logger

	mu      sync.Mutex
	rx      *reception // nil: not joined
	viewers int
	leaving *time.Timer // nil: it has viewers, or is not joined
	gone    bool        // it is the relay's no more
	past    totals      // of receptions that are over
	failed  string      // why it could not be joined
}

var (
	errBusy   = errors.New("too many channels are being watched: see -channels")
	errClosed = errors.New("the relay is shutting down")
)

func newRelay(o options, list playlist, log *slog.Logger) *relay {
	r := &relay{options: o, rules: o.rules, playlist: list, log: log, open: listen, started: time.Now(), ending: make(chan struct{}), find: make(map[mcast.Channel]*channel)}
	if o.amt != "" {
		r.open = listenOr(o.amt, o.after)
	}
	for i := range o.given {
		r.playlist.add(&o.given[i])
	}
	for e := range r.playlist.entries {
		if e.ch.Group.Interface == "" {
			e.ch.Group.Interface = r.ifname
		}
		if r.find[e.ch] == nil {
			r.listed = append(r.listed, e.ch)
			r.add(*e).listed = true
		}
	}
	return r
}

// add adds a channel. Called with the lock, or before others know the relay.
func (r *relay) add(e entry) *channel {
	if e.name == "" {
		e.name = e.ch.String()
	}
	c := &channel{entry: e, relay: r, log: r.log.With("channel", e.ch.String())}
	r.find[e.ch] = c
	r.channels = append(r.channels, c)
	return c
}

// all returns the channels that there are now.
func (r *relay) all() []*channel {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*channel(nil), r.channels...)
}

// watch joins a channel for one more viewer, who calls release in the end.
func (r *relay) watch(e entry) (c *channel, rx *reception, err error) {
	for {
		r.mu.Lock()
		if c = r.find[e.ch]; c == nil {
			c = r.add(e)
		}
		r.mu.Unlock()
		if rx, err = c.watch(); rx != nil || err != nil {
			return c, rx, err
		}
		// It was removed in between.
	}
}

func (c *channel) watch() (*reception, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return nil, nil
	}
	if c.rx == nil {
		if err := c.join(); err != nil {
			if c.failed = ""; !errors.Is(err, errBusy) && !errors.Is(err, errClosed) {
				c.failed = err.Error()
				c.log.Warn("cannot join", "error", err)
			}
			c.removeUnlisted()
			return nil, err
		}
	}
	if c.leaving != nil {
		c.leaving.Stop()
		c.leaving = nil
	}
	c.viewers++
	return c.rx, nil
}

// join joins, if there may be one more channel. Called with the lock.
func (c *channel) join() error {
	r := c.relay
	if err := r.takePlace(); errors.Is(err, errBusy) {
		if !r.leaveOne(c) {
			return err
		}
		if err := r.takePlace(); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	rx, err := receive(c.ch, r.open, c.log)
	if err != nil {
		r.givePlace()
		var e *mcast.OpError
		if errors.As(err, &e) {
			return e.Err
		}
		return err
	}
	c.rx, c.failed = rx, ""
	c.log.Info("joined")
	return nil
}

func (r *relay) takePlace() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return errClosed
	case r.joined >= r.options.channels:
		return errBusy
	}
	r.joined++
	return nil
}

func (r *relay) givePlace() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.joined--
}

// leaveOne leaves a channel that has no viewers any more.
func (r *relay) leaveOne(but *channel) bool {
	for _, c := range r.all() {
		if c == but || !c.mu.TryLock() { // somebody is there
			continue
		}
		idle := c.rx != nil && c.viewers == 0
		if idle {
			c.leave()
		}
		c.mu.Unlock()
		if idle {
			return true
		}
	}
	return false
}

// release says that a viewer has gone.
func (c *channel) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.viewers--; c.viewers > 0 || c.rx == nil {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(c.relay.options.linger, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.leaving == timer {
			c.leave()
		}
	})
	c.leaving = timer
}

// leave leaves the channel. Called with the lock.
func (c *channel) leave() {
	if c.rx == nil {
		return
	}
	if c.leaving != nil {
		c.leaving.Stop()
		c.leaving = nil
	}
	c.past.add(c.rx.status()) // a Conn that is closed has no memberships
	c.rx.close()
	c.rx = nil
	c.relay.givePlace()
	c.log.Info("left")
	c.removeUnlisted()
}

// removeUnlisted removes a channel that nobody watches and no list names.
// Called with the lock.
func (c *channel) removeUnlisted() {
	if c.listed || c.rx != nil {
		return
	}
	c.gone = true
	r := c.relay
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.find, c.ch)
	for i, x := range r.channels {
		if x == c {
			r.channels = append(r.channels[:i:i], r.channels[i+1:]...)
			break
		}
	}
}

// close leaves all channels, and joins none any more.
func (r *relay) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	for _, c := range r.all() {
		c.mu.Lock()
		c.leave()
		c.mu.Unlock()
	}
}

// Totals are the counts of a channel since the program began.
type totals struct {
	datagrams, bytes, filtered, dropped, truncated uint64
	lost, lostTS, late, duplicate, others          uint64
	last                                           time.Time
}

func (t *totals) add(s status) {
	t.datagrams += s.group.Received
	t.bytes += s.group.Bytes
	t.filtered += s.group.Filtered
	t.dropped += s.stats.Dropped
	t.truncated += s.stats.Truncated
	t.lost += s.stream.lost
	t.lostTS += s.stream.lostTS
	t.late += s.stream.late
	t.duplicate += s.stream.duplicate
	t.others += s.stream.others
	if s.group.Last.After(t.last) {
		t.last = s.group.Last
	}
}

// A snapshot is what a channel is doing.
type snapshot struct {
	joined  bool
	viewers int
	failed  string
	status  status
	totals  totals
}

func (c *channel) snapshot() snapshot {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.snapshotLocked()
}

func (c *channel) snapshotLocked() snapshot {
	s := snapshot{joined: c.rx != nil, viewers: c.viewers, failed: c.failed, totals: c.past}
	if s.joined {
		s.status = c.rx.status()
		s.totals.add(s.status)
	}
	return s
}
