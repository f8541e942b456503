package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"example.com/mcast"
	"example.com/mcast/examples/internal/numbered"
)

// An address is where a socket listens: the family and the port.
type address struct {
	ipv6 bool
	port int
}

// A conn is the socket of one family and port.
type conn struct {
	*mcast.Conn
	port int
}

// joinAll opens a socket for each family and port, and joins.
func joinAll(o options) (conns []conn, err error) {
	opened := map[address]*mcast.Conn{}
	for _, ch := range o.channels {
		at := address{ch.Group.Addr.Is6(), ch.Port}
		c := opened[at]
		if c == nil {
			network := "udp4"
			if at.ipv6 {
				network = "udp6"
			}
			if c, err = mcast.Listen(network, fmt.Sprintf(":%d", at.port), nil); err != nil {
				return conns, err
			}
			opened[at] = c
			conns = append(conns, conn{c, at.port})
		}
		if err := join(c, ch, o.block); err != nil {
			return conns, err
		}
	}
	return conns, nil
}

func join(c *mcast.Conn, ch mcast.Channel, block []netip.Addr) error {
	if ch.Source.IsValid() {
		return c.JoinSource(ch.Group, ch.Source)
	}
	if err := c.Join(ch.Group); err != nil {
		return err
	}
	for _, s := range block {
		if blocks(ch, s) {
			if err := c.Block(ch.Group, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// leaveAll leaves what was joined, the last first.
func leaveAll(conns []conn) error {
	var errs []error
	for _, c := range conns {
		for _, m := range slices.Backward(c.Memberships()) {
			errs = append(errs, c.Leave(m.Group))
		}
	}
	return errors.Join(errs...)
}

// receive reads from all sockets, and shows each second what came, until ctx
// is done, the time is over, or the monitor has seen enough.
func receive(ctx context.Context, conns []conn, m *monitor, duration time.Duration, show display) error {
	failed := make(chan error, len(conns))
	var readers sync.WaitGroup
	for _, c := range conns {
		readers.Go(func() {
			if err := c.read(m); !errors.Is(err, os.ErrDeadlineExceeded) {
				failed <- err
			}
		})
	}
	var over <-chan time.Time
	if duration > 0 {
		over = time.After(duration)
	}
	second := time.NewTicker(time.Second)
	defer second.Stop()
	var err error
	for going := true; going; {
		select {
		case <-second.C:
			show.second(m.second())
		case err = <-failed:
			going = false
		case <-ctx.Done():
			going = false
		case <-over:
			going = false
		case <-m.enough:
			going = false
		}
	}
	for _, c := range conns {
		c.SetReadDeadline(time.Unix(1, 0)) // long ago: wakes the reader
	}
	readers.Wait()
	return err
}

// read reads until the deadline or an error.
func (c conn) read(m *monitor) error {
	ms := make([]mcast.Message, 32)
	for i := range ms {
		ms[i].Buf = make([]byte, 1<<16) // no datagram is longer
	}
	for {
		n, err := c.ReadBatch(ms)
		if err != nil {
			return err
		}
		if err := m.note(ms[:n], c.port); err != nil {
			return err
		}
	}
}

// Counts are what is counted, of a second or in all.
type counts struct {
	Datagrams uint64 `json:"datagrams"`
	Bytes     uint64 `json:"bytes"`     // of payload, the header of send included
	Lost      int64  `json:"lost"`      // missing by their numbers; in a second, < 0 if missing ones came
	Late      int64  `json:"late"`      // came after a higher number
	Duplicate int64  `json:"duplicate"` //
	Dropped   uint64 `json:"dropped"`   // by the system, for want of buffer
	Filtered  uint64 `json:"filtered"`  // kept out by the filter
}

// A streamKey is a sender's stream to one group.
type streamKey struct {
	group    mcast.Group
	port     int
	source   netip.AddrPort
	numbered bool
	id       uint32 // if numbered
}

// A stream is what came of it.
type stream struct {
	datagrams, bytes uint64
	numbered.Counter // if numbered
}

// maxStreams keeps a network full of senders from filling the memory. Streams
// beyond it are in the totals only.
const maxStreams = 10000

// A monitor counts what all sockets receive, and writes the payloads.
type monitor struct {
	conns  []conn
	enough chan struct{} // closed when limit datagrams are there
	limit  uint64        // 0: none

	mu      sync.Mutex
	output  *bufio.Writer // or nil
	start   time.Time
	total   counts
	streams map[streamKey]*stream

	lap     time.Time // the second began
	before  counts    // the totals then
	sources map[netip.Addr]bool
}

func newMonitor(conns []conn, output io.Writer, limit uint64) *monitor {
	now := time.Now()
	m := &monitor{
		conns: conns, enough: make(chan struct{}), limit: limit,
		streams: map[streamKey]*stream{}, start: now, lap: now, sources: map[netip.Addr]bool{},
	}
	if output != nil {
		m.output = bufio.NewWriterSize(output, 1<<18)
	}
	return m
}

// note counts datagrams and writes their payloads.
func (m *monitor) note(ms []mcast.Message, port int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range ms {
		if m.limit > 0 && m.total.Datagrams == m.limit {
			break
		}
		payload := m.count(&ms[i], port)
		if m.limit > 0 && m.total.Datagrams == m.limit {
			close(m.enough)
		}
		if m.output != nil {
			m.output.Write(payload) // Flush tells of errors
		}
	}
	if m.output != nil {
		return m.output.Flush()
	}
	return nil
}

func (m *monitor) count(d *mcast.Message, port int) (payload []byte) {
	b := d.Buf[:d.N]
	h, payload, ok := numbered.Parse(b)
	k := streamKey{d.Group, port, d.Source, ok, h.Stream}
	s := m.streams[k]
	if s == nil {
		s = &stream{}
		if len(m.streams) < maxStreams {
			m.streams[k] = s
		}
	}
	m.total.Datagrams++
	m.total.Bytes += uint64(len(b))
	m.sources[d.Source.Addr()] = true
	s.datagrams++
	s.bytes += uint64(len(b))
	if ok {
		was := s.Counter
		s.Count(h.Seq)
		m.total.Lost += int64(s.Lost - was.Lost)
		m.total.Late += int64(s.Late - was.Late)
		m.total.Duplicate += int64(s.Duplicate - was.Duplicate)
	}
	return payload
}

// totals brings in what the sockets count. The lock is held.
func (m *monitor) totals() counts {
	m.total.Dropped, m.total.Filtered = 0, 0
	for _, c := range m.conns {
		s := c.Stats()
		m.total.Dropped += s.Dropped
		m.total.Filtered += s.Filtered
	}
	return m.total
}

// second returns what came since it was called last.
func (m *monitor) second() report {
	m.mu.Lock()
	defer m.mu.Unlock()
	now, t, b := time.Now(), m.totals(), m.before
	r := report{Event: "second", Time: now, counts: counts{
		Datagrams: t.Datagrams - b.Datagrams,
		Bytes:     t.Bytes - b.Bytes,
		Lost:      t.Lost - b.Lost,
		Late:      t.Late - b.Late,
		Duplicate: t.Duplicate - b.Duplicate,
		Dropped:   t.Dropped - b.Dropped,
		Filtered:  t.Filtered - b.Filtered,
	}}
	r.rates(now.Sub(m.lap))
	for s := range m.sources {
		r.Sources = append(r.Sources, s)
	}
	slices.SortFunc(r.Sources, netip.Addr.Compare)
	m.lap, m.before = now, t
	clear(m.sources)
	return r
}

// summary returns what came in all.
func (m *monitor) summary() report {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	r := report{Event: "summary", Time: now, counts: m.totals()}
	r.rates(now.Sub(m.start))
	for k, s := range m.streams {
		r.Streams = append(r.Streams, newStreamReport(k, s))
		if a := k.source.Addr(); !slices.Contains(r.Sources, a) {
			r.Sources = append(r.Sources, a)
		}
	}
	slices.SortFunc(r.Sources, netip.Addr.Compare)
	slices.SortFunc(r.Streams, func(a, b streamReport) int { return slices.Compare(a.order(), b.order()) })
	return r
}
