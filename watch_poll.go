//go:build !linux

package mcast

import (
	"net"
	"time"
)

// guard: what a stale leave does to others on other systems is not known.
var guard func(Membership)

func closeGuards([]int) {}

// snapshotLinks makes a linkSource of a system's hints that something changed:
// after each, it looks at all interfaces.
type snapshotLinks struct {
	hints hintSource
	first bool
	known map[int]bool
}

// A hintSource waits for a hint, which may say already what happened to which
// link.
type hintSource interface {
	read() ([]linkHint, error)
	close()
}

func openLinks() (linkSource, error) {
	hints, err := openHints()
	if err != nil {
		return nil, err
	}
	return &snapshotLinks{hints: hints, first: true, known: make(map[int]bool)}, nil
}

func (s *snapshotLinks) close() { s.hints.close() }

func (s *snapshotLinks) read() ([]linkChange, error) {
	var hints []linkHint
	if !s.first {
		var err error
		if hints, err = s.hints.read(); err != nil {
			return nil, err
		}
	}
	ifis, err := net.Interfaces()
	for i := 0; err != nil && i < 10; i++ { // the list may grow while it is read
		time.Sleep(10 * time.Millisecond)
		ifis, err = net.Interfaces()
	}
	if err != nil && s.first {
		return nil, err
	}
	s.first = false
	if err != nil {
		return nil, nil // until there is the next hint
	}
	return s.changes(hints, ifis), nil
}

// changes puts hints and the interfaces together.
func (s *snapshotLinks) changes(hints []linkHint, ifis []net.Interface) (changes []linkChange) {
	names := make(map[int]string)
	for _, ifi := range ifis {
		names[ifi.Index] = ifi.Name
	}
	for _, h := range hints {
		if h.look || !s.known[h.index] {
			continue
		}
		c := linkChange{gone: h.gone}
		c.index, c.name, c.up, c.running = h.index, names[h.index], h.up, h.running
		if c.name == "" {
			c.gone = true
		}
		changes = append(changes, c)
	}
	for _, ifi := range ifis {
		c := linkChange{}
		c.index, c.name = ifi.Index, ifi.Name
		c.up, c.running = ifi.Flags&net.FlagUp != 0, ifi.Flags&net.FlagRunning != 0
		changes = append(changes, c)
		s.known[ifi.Index] = true
	}
	for i := range s.known {
		if _, ok := names[i]; !ok {
			delete(s.known, i)
			changes = append(changes, linkChange{link: link{index: i}, gone: true})
		}
	}
	return changes
}

// currentLinks is what a source tells first.
func currentLinks() (*links, error) {
	ifis, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	s := snapshotLinks{known: make(map[int]bool)}
	l := new(links)
	l.apply(s.changes(nil, ifis), time.Now())
	l.settle()
	return l, nil
}
