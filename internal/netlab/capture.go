package netlab

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A Capture sees every frame that one interface sends or receives, from the
// moment it was made until the test ends.
type Capture struct {
	host   *Host
	ifname string
	file   *os.File
	conn   syscall.RawConn

	mu      sync.Mutex
	buf     []byte
	closed  bool
	changed chan struct{} // closed and replaced when there is more
	frames  int
	reports []Report
	flows   map[Flow]int
	errs    []error // malformed frames
}

// Capture starts a capture on one of the host's interfaces.
func (h *Host) Capture(ifname string) *Capture {
	t := h.lab.T()
	t.Helper()
	c := &Capture{host: h, ifname: ifname, buf: make([]byte, 1<<16), changed: make(chan struct{}), flows: make(map[Flow]int)}
	index := h.Index(ifname)
	var err error
	h.Do(func() { c.file, err = openPacket(index) })
	if err == nil {
		c.conn, err = c.file.SyscallConn()
	}
	if err != nil {
		t.Fatalf("netlab: host %s: capture on %s: %v", h.name, ifname, err)
	}
	t.Cleanup(c.Close)
	go c.conn.Read(func(fd uintptr) bool { // called again whenever there may be more
		c.mu.Lock()
		defer c.mu.Unlock()
		c.drain(fd)
		return c.closed
	})
	return c
}

// drain takes the frames that are there.
func (c *Capture) drain(fd uintptr) {
	more := false
	for !c.closed {
		n, outgoing, ok := readPacket(fd, c.buf)
		if !ok {
			break
		}
		more = true
		c.frames++
		frame, err := ParseFrame(c.buf[:n])
		if err != nil {
			c.errs = append(c.errs, err)
		}
		if r := frame.Report; r != nil {
			r.Outgoing, r.Time = outgoing, time.Now()
			c.reports = append(c.reports, *r)
		}
		if frame.Flow != nil {
			c.flows[*frame.Flow]++
		}
	}
	if more {
		close(c.changed)
		c.changed = make(chan struct{})
	}
}

// now calls f when all that has crossed the wire until now is counted.
func (c *Capture) now(f func()) {
	c.conn.Control(func(fd uintptr) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.drain(fd)
		if n, err := lostPackets(fd); err == nil && n > 0 {
			c.errs = append(c.errs, fmt.Errorf("the capture lost %d frames", n))
		}
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

// wait calls f, at first and whenever something has come, until it returns
// true or the time is over.
func (c *Capture) wait(timeout time.Duration, f func() bool) bool {
	end := time.After(timeout)
	for {
		var ok bool
		var changed chan struct{}
		c.now(func() { ok, changed = f(), c.changed })
		if ok {
			return true
		}
		select {
		case <-changed:
		case <-end:
			c.now(func() { ok = f() })
			return ok
		}
	}
}

// Close ends the capture. What it has seen can still be asked for.
func (c *Capture) Close() {
	c.mu.Lock()
	closed := c.closed
	c.closed = true
	c.mu.Unlock()
	if !closed {
		c.file.Close()
	}
}

// Reset forgets everything seen so far. A report that a host sent shortly
// before may still follow: hosts repeat them, about a second later.
func (c *Capture) Reset() {
	c.now(func() { c.frames, c.reports, c.errs = 0, nil, nil; clear(c.flows) })
}

// Reports returns the IGMP and MLD messages seen, in order.
func (c *Capture) Reports() (reports []Report) {
	c.now(func() { reports = slices.Clone(c.reports) })
	return reports
}

// Records returns the group records of the reports seen, in order.
func (c *Capture) Records() []Record { return recordsOf(c.Reports()) }

func recordsOf(reports []Report) []Record {
	var records []Record
	for _, r := range reports {
		records = append(records, r.Records...)
	}
	return records
}

// Flows returns how many multicast UDP datagrams were seen.
func (c *Capture) Flows() (flows map[Flow]int) {
	c.now(func() { flows = maps.Clone(c.flows) })
	return flows
}

// Count returns how many UDP datagrams from source to group were seen; with
// the zero source, from any.
func (c *Capture) Count(source netip.Addr, group netip.AddrPort) (n int) {
	c.now(func() { n = c.count(source, group) })
	return n
}

func (c *Capture) count(source netip.Addr, group netip.AddrPort) (n int) {
	for f, k := range c.flows {
		if f.Group == group && (!source.IsValid() || f.Source == source) {
			n += k
		}
	}
	return n
}

// Errors returns what was wrong with frames seen, and that some were lost. A
// test that proves silence should ask.
func (c *Capture) Errors() (errs []error) {
	c.now(func() { errs = slices.Clone(c.errs) })
	return errs
}

// WaitReport waits until a message was seen, since the start or the last
// [Capture.Reset], for which pred is true.
func (c *Capture) WaitReport(pred func(Report) bool, timeout time.Duration) (report Report, ok bool) {
	ok = c.wait(timeout, func() bool {
		i := slices.IndexFunc(c.reports, pred)
		if i >= 0 {
			report = c.reports[i]
		}
		return i >= 0
	})
	return report, ok
}

// WaitRecord waits until a group record was seen, since the start or the last
// [Capture.Reset], for which pred is true.
func (c *Capture) WaitRecord(pred func(Record) bool, timeout time.Duration) (record Record, ok bool) {
	ok = c.wait(timeout, func() bool {
		records := recordsOf(c.reports)
		i := slices.IndexFunc(records, pred)
		if i >= 0 {
			record = records[i]
		}
		return i >= 0
	})
	return record, ok
}

// WantRecord fails the test unless that record, with exactly those sources,
// was or is seen within two seconds: a host repeats its reports within one.
func (c *Capture) WantRecord(t testing.TB, typ RecordType, group netip.Addr, sources ...netip.Addr) {
	t.Helper()
	if _, ok := c.WaitRecord(func(r Record) bool { return r.Is(typ, group, sources...) }, 2*time.Second); !ok {
		t.Fatalf("netlab: %v was not seen in this %v", Record{typ, group, sources}, c)
	}
}

// WaitCount waits until at least n UDP datagrams from source to group were
// seen, and returns how many there were.
func (c *Capture) WaitCount(source netip.Addr, group netip.AddrPort, n int, timeout time.Duration) (count int) {
	c.wait(timeout, func() bool { count = c.count(source, group); return count >= n })
	return count
}

// String lists what was seen.
func (c *Capture) String() string {
	var b strings.Builder
	c.now(func() {
		fmt.Fprintf(&b, "capture on %s %s: %d frames", c.host.name, c.ifname, c.frames)
		for _, r := range c.reports {
			fmt.Fprintf(&b, "\n\t%s %v", r.Time.Format("05.000"), r)
		}
		for f, n := range c.flows {
			fmt.Fprintf(&b, "\n\t%d datagrams %v", n, f)
		}
		for _, err := range c.errs {
			fmt.Fprintf(&b, "\n\terror: %v", err)
		}
	})
	return b.String()
}
