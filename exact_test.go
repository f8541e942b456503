//go:build !plan9

package mcast

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"time"
)

// An exactness is a book of numbered datagrams: each flow, a source and port to
// a group and port, counts for itself.
type exactness struct {
	ordered bool // one reader: the numbers of a flow must ascend

	mu    sync.Mutex
	want  map[exactFlow]map[int]bool
	last  map[exactFlow]int
	total int
	got   int
	wrong []string
}

type exactFlow struct {
	from netip.AddrPort
	to   Group
	port int
}

func newExact(ordered bool) *exactness {
	return &exactness{ordered: ordered, want: make(map[exactFlow]map[int]bool), last: make(map[exactFlow]int)}
}

// sent notes what was sent, and is to be heard.
func (e *exactness) sent(from *Conn, to Group, port, n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f := exactFlow{from.LocalAddr().(*net.UDPAddr).AddrPort(), to, port}
	f.from = netip.AddrPortFrom(f.from.Addr().Unmap(), f.from.Port())
	if e.want[f] == nil {
		e.want[f] = make(map[int]bool)
	}
	if _, heard := e.want[f][n]; !heard {
		e.want[f][n] = true
	}
	e.total++
}

// heard notes what was heard. It may be noted before it is noted as sent.
func (e *exactness) heard(m *Message) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f := exactFlow{m.Source, m.Group, m.Port}
	n, err := strconv.Atoi(string(m.Buf[:m.N]))
	if err != nil || m.Truncated {
		e.wrong = append(e.wrong, fmt.Sprintf("%v: %q, truncated %v", f, m.Buf[:m.N], m.Truncated))
		return
	}
	if e.want[f] == nil {
		e.want[f] = make(map[int]bool)
	}
	if last, ok := e.last[f]; ok && e.ordered && n <= last {
		e.wrong = append(e.wrong, fmt.Sprintf("%v: %d after %d", f, n, last))
	}
	e.last[f] = n
	if open, ok := e.want[f][n]; ok && !open {
		e.wrong = append(e.wrong, fmt.Sprintf("%v: %d came twice", f, n))
	}
	e.want[f][n] = false
	e.got++
}

// wait waits until as many were heard as were sent.
func (e *exactness) wait(t *testing.T) {
	t.Helper()
	for end := inTime(); ; time.Sleep(100 * time.Microsecond) {
		e.mu.Lock()
		got, total, wrong := e.got, e.total, len(e.wrong)
		e.mu.Unlock()
		switch {
		case wrong > 0 || got > total:
			e.check(t)
			return
		case got == total:
			return
		case time.Now().After(end):
			t.Fatalf("heard %d of %d", got, total)
		}
	}
}

// check fails the test for what is not exact.
func (e *exactness) check(t *testing.T) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, w := range e.wrong {
		t.Error(w)
	}
	if e.got != e.total {
		t.Errorf("heard %d, want %d", e.got, e.total)
	}
	for f, ns := range e.want {
		for n, open := range ns {
			if open {
				t.Errorf("%v: %d was not heard", f, n)
			}
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}
