package netif

import (
	"net"
	"slices"
	"sync"
	"time"
)

// A hint is what a message of a system says. The zero hint says only that
// something changed.
type hint struct {
	index   int
	name    string // where there is no index
	gone    bool
	flags   bool // up is told
	up      bool
	carrier carrier
}

// carrier is what a hint says of the carrier.
type carrier uint8

const (
	carrierUntold carrier = iota
	carrierOff
	carrierOn
	carrierWent // an event, of which a list of all interfaces tells nothing
	carrierCame
)

// hintQueue is a source of hints: the system adds them, one goroutine reads.
type hintQueue struct {
	news chan struct{} // with room for one
	done chan struct{} // closed by close
	once sync.Once

	mu    sync.Mutex
	hints []hint
	err   error
}

func newHintQueue() *hintQueue {
	return &hintQueue{news: make(chan struct{}, 1), done: make(chan struct{})}
}

// most is how many hints are kept for a reader that does not read.
const most = 10_000

func (q *hintQueue) add(hints ...hint) {
	if len(hints) > 0 {
		q.put(hints, nil)
	}
}

// fail makes read return the error, after what was added before.
func (q *hintQueue) fail(err error) { q.put(nil, err) }

func (q *hintQueue) put(hints []hint, err error) {
	q.mu.Lock()
	if len(q.hints)+len(hints) > most {
		q.hints, hints = q.hints[:0], []hint{{}}
	}
	q.hints = append(q.hints, hints...)
	if q.err == nil {
		q.err = err
	}
	q.mu.Unlock()
	select {
	case q.news <- struct{}{}:
	default: // there is some already
	}
}

func (q *hintQueue) read() ([]hint, error) {
	for {
		q.mu.Lock()
		hints, err := q.hints, q.err
		q.hints = nil
		q.mu.Unlock()
		if len(hints) > 0 {
			return hints, nil
		}
		if err != nil {
			return nil, err
		}
		select {
		case <-q.done:
			return nil, net.ErrClosed
		case <-q.news:
		}
	}
}

func (q *hintQueue) close() { q.once.Do(func() { close(q.done) }) }

// lister makes a [Source] of hints: after each, it looks at all interfaces.
type lister struct {
	hints interface{ read() ([]hint, error) }
	list  func() ([]Interface, error)
	shut  func() error
	clock func() (stops, never time.Duration)

	nap      napDetector
	snapshot snapshot
	pending  []hint // that came while there was no list to be had
	begun    bool
}

var start = time.Now()

// wallClock gives the time since the program began twice: by the clock that
// stands still while the machine sleeps, where there is one, and by the time of
// day.
func wallClock() (stops, never time.Duration) {
	now := time.Now()
	return now.Sub(start), now.Round(0).Sub(start.Round(0))
}

func (l *lister) Close() error { return l.shut() }

func (l *lister) Read() ([]Change, error) {
	for {
		if l.begun {
			hints, err := l.hints.read()
			if err != nil {
				return nil, err
			}
			l.pending = append(l.pending, hints...)
		}
		list, err := l.list()
		for i := 0; err != nil && i < 10; i++ { // it may grow while it is read
			time.Sleep(10 * time.Millisecond)
			list, err = l.list()
		}
		if err != nil && !l.begun {
			return nil, err
		}
		woke := l.nap.slept(l.clock())
		var changes []Change
		if err == nil {
			changes = l.snapshot.changes(l.pending, list)
			l.pending, l.begun = nil, true
		}
		if woke {
			changes = append(changes, Change{Woke: true})
		}
		if err == nil || woke {
			return changes, nil
		}
	}
}

// A snapshot is what a source that goes by hints told last.
type snapshot struct {
	names map[int]string
	off   map[int]bool // those whose carrier went by an event
}

// changes puts hints and the list of all interfaces together. What a hint says
// came before what the list says, so that what ended and began between two
// looks is told.
func (s *snapshot) changes(hints []hint, list []Interface) []Change {
	var changes []Change
	if s.names == nil {
		s.names, s.off = make(map[int]string), make(map[int]bool)
	}
	now := make(map[int]Interface, len(list))
	for _, ifi := range list {
		now[ifi.Index] = ifi
	}
	moved := false
	for _, h := range hints {
		if h == (hint{}) {
			moved = true
			continue
		}
		index := h.index
		if index == 0 {
			index = s.index(h.name)
		}
		if _, told := s.names[index]; !told {
			continue
		}
		ifi, is := now[index]
		if h.gone || !is {
			changes = append(changes, Change{Interface: Interface{Index: index}, Gone: true})
			delete(s.names, index)
			delete(s.off, index)
			continue
		}
		if h.flags {
			ifi.Up = h.up
		}
		switch h.carrier {
		case carrierUntold:
		case carrierOff, carrierOn:
			ifi.Carrier = h.carrier == carrierOn
		case carrierWent:
			s.off[index] = true
		case carrierCame:
			if !s.off[index] {
				// It was without one, and nobody has said so.
				ifi.Carrier = false
				changes = append(changes, Change{Interface: ifi})
			}
			delete(s.off, index)
			ifi.Carrier = true
		}
		ifi.Carrier = ifi.Carrier && !s.off[index]
		changes = append(changes, Change{Interface: ifi})
	}
	for _, ifi := range list {
		ifi.Carrier = ifi.Carrier && !s.off[ifi.Index]
		s.names[ifi.Index] = ifi.Name
		changes = append(changes, Change{Interface: ifi})
	}
	var gone []int
	for index := range s.names {
		if _, is := now[index]; !is {
			gone = append(gone, index)
		}
	}
	slices.Sort(gone)
	for _, index := range gone {
		delete(s.names, index)
		delete(s.off, index)
		changes = append(changes, Change{Interface: Interface{Index: index}, Gone: true})
	}
	if moved {
		changes = append(changes, Change{Moved: true})
	}
	return changes
}

func (s *snapshot) index(name string) int {
	for index, is := range s.names {
		if is == name {
			return index
		}
	}
	return 0
}
