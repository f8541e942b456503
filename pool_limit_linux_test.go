package mcast

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Pools and the number of files that a program may have open.

// fewFiles has the program open no more than n files in all.
func fewFiles(t *testing.T, n int) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	few := was
	few.Cur = uint64(n)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &was) })
}

// takeFiles opens files until there are but that many left to open.
func takeFiles(t *testing.T, left int) (giveBack func()) {
	t.Helper()
	var files []*os.File
	for {
		f, err := os.Open("/dev/null")
		if err != nil {
			if !errors.Is(err, syscall.EMFILE) {
				t.Fatal(err)
			}
			break
		}
		files = append(files, f)
	}
	if len(files) < left {
		t.Fatalf("there were but %d files left to open", len(files))
	}
	for range left {
		files[len(files)-1].Close()
		files = files[:len(files)-1]
	}
	return func() {
		for _, f := range files {
			f.Close()
		}
	}
}

// hearsChannels lets the source send to some channels, and hears them.
func hearsChannels(t *testing.T, at site, p *Pool, port int, channels ...Group) {
	t.Helper()
	from := at.sender(t, at.sources[0])
	defer from.Close()
	p.SetReadDeadline(inTime())
	m := Message{Buf: make([]byte, 10)}
	for _, g := range channels {
		mustSend(t, from, g, port, "x")
		if err := p.ReadMessage(&m); err != nil || m.Group != g {
			t.Fatalf("%v: %+v, %v", g, m, err)
		}
	}
}

// Two Pools under one limit share it: neither is refused for what the other
// has.
func TestPoolsShareDescriptors(t *testing.T) {
	at := testSite(t)
	fewFiles(t, 200)
	p, portP := at.pool(t, nil)
	q, portQ := at.pool(t, nil)
	for i := range 250 {
		for _, p := range []*Pool{p, q} {
			if err := p.JoinSource(at.group(1, i), at.sources[0]); err != nil {
				t.Fatalf("channel %d: %v", i, err)
			}
		}
	}
	if n := p.Sockets() + q.Sockets(); n < 100 || n > 100+2*(200/hostSystem.perSocket) {
		t.Errorf("%d and %d sockets", p.Sockets(), q.Sockets())
	}
	for i := 0; i < 250; i += 49 {
		hearsChannels(t, at, p, portP, at.group(1, i))
		hearsChannels(t, at, q, portQ, at.group(1, i))
	}
	// What one gives back, the other may have.
	p.Close()
	if n := boundSockets.Load(); n > int64(q.Sockets()) {
		t.Errorf("%d sockets count as bound to a group, and there are %d", n, q.Sockets())
	}
	before := q.Sockets()
	for i := range 20 {
		if err := q.JoinSource(at.group(2, i), at.sources[0]); err != nil {
			t.Fatal(err)
		}
	}
	if n := q.Sockets(); n != before+20 {
		t.Errorf("%d sockets for 20 channels more, %d before", n, before)
	}
}

// Where the program itself has taken the descriptors, channels share what
// sockets there are; where there is no room either, the error says what to
// raise, and nothing has changed.
func TestPoolOutOfDescriptors(t *testing.T) {
	at := testSite(t)
	fewFiles(t, 200)
	other, _ := at.pool(t, nil)
	for i := range 100 {
		if err := other.JoinSource(at.group(9, i), at.sources[0]); err != nil {
			t.Fatal(err)
		}
	}
	p, port := at.pool(t, nil)
	if err := p.JoinSource(at.group(1, 0), at.sources[0]); err != nil {
		t.Fatal(err)
	}
	if p.Members.wild == nil {
		t.Fatal("half of the descriptors are in use, and a channel has a socket of its own")
	}
	other.Close() // from here on the limit itself is no reason to share
	from := at.sender(t, at.sources[0])
	giveBack := takeFiles(t, 0)
	defer func() { giveBack() }()
	room := hostSystem.perSocket
	for i := 1; i < room; i++ {
		if err := p.JoinSource(at.group(1, i), at.sources[0]); err != nil {
			t.Fatalf("channel %d, for which there is room: %v", i, err)
		}
	}
	if n := p.Sockets(); n != 1 {
		t.Errorf("%d sockets", n)
	}
	for _, i := range []int{0, 7, room - 1} {
		mustSend(t, from, at.group(1, i), port, "x")
	}
	hear(t, p, 3)
	over := at.group(1, room)
	for _, err := range []error{p.JoinSource(over, at.sources[0]), p.SetFilter(over, Include, at.sources[0])} {
		var e *OpError
		if !errors.Is(err, ErrLimit) || !errors.Is(err, syscall.EMFILE) || !errors.As(err, &e) || !strings.Contains(err.Error(), "RLIMIT_NOFILE") {
			t.Errorf("without room: %v", err)
		}
	}
	if n := len(p.Memberships()); n != room || p.Sockets() != 1 {
		t.Errorf("%d memberships in %d sockets after refusals", n, p.Sockets())
	}
	giveBack()
	giveBack = func() {}
	if err := p.JoinSource(over, at.sources[0]); err != nil {
		t.Errorf("with descriptors again: %v", err)
	}
	if n := p.Sockets(); n != 2 {
		t.Errorf("%d sockets", n)
	}
	hearsChannels(t, at, p, port, over, at.group(1, 0))
}

// The descriptors end half-way through a request: it changes nothing.
func TestPoolDescriptorsHalfWay(t *testing.T) {
	at := testSite(t)
	for _, w := range poolWays {
		t.Run(w.name, func(t *testing.T) {
			w.use(t)
			fewFiles(t, 200)
			p, port := at.pool(t, nil)
			g := at.group(1, 1)
			sources := []netip.Addr{at.sources[0]}
			for i := range 75 { // for 8 sockets, where net.ipv4.igmp_max_msf is 10
				sources = append(sources, at.far(i+1))
			}
			if err := p.SetFilter(g, Include, sources[:3]...); err != nil {
				t.Fatal(err)
			}
			from := at.sender(t, at.sources[0])
			before, sockets := p.Memberships(), p.Sockets()
			files := openNow(t)
			for left := range 5 {
				giveBack := takeFiles(t, left)
				err := p.SetFilter(g, Include, sources...)
				giveBack()
				if err == nil {
					t.Skip("a socket takes as many sources here")
				}
				if !errors.Is(err, ErrLimit) || !errors.Is(err, syscall.EMFILE) {
					t.Errorf("%d descriptors left: %v", left, err)
				}
				if ms := p.Memberships(); len(ms) != 1 || ms[0].String() != before[0].String() || p.Sockets() != sockets {
					t.Errorf("%d descriptors left: %v in %d sockets, want %v in %d", left, ms, p.Sockets(), before, sockets)
				}
				if m, err := p.SystemFilter(g); err != nil || m.String() != before[0].String() {
					t.Errorf("%d descriptors left: the system has %v, %v, want %v", left, m, err, before)
				}
				if n := openNow(t); n > files {
					t.Errorf("%d descriptors left: %d are open, %d before", left, n, files)
				}
				mustSend(t, from, g, port, "x")
				hear(t, p, 1)
			}
			if err := p.SetFilter(g, Include, sources...); err != nil {
				t.Errorf("with descriptors again: %v", err)
			}
			slices.SortFunc(sources, netip.Addr.Compare)
			if m, err := p.SystemFilter(g); err != nil || !slices.Equal(m.Sources, sources) {
				t.Errorf("the system has %v, %v", m, err)
			}
			mustSend(t, from, g, port, "x")
			hear(t, p, 1)
		})
	}
}

// openNow is how many descriptors are open.
func openNow(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// ListenPool itself, without descriptors.
func TestListenPoolWithoutDescriptors(t *testing.T) {
	at := testSite(t)
	fewFiles(t, 100)
	before := openNow(t)
	for left := range 4 {
		giveBack := takeFiles(t, left)
		p, err := ListenPool(at.network(), ":0", &Config{Unicast: true})
		if err == nil {
			p.Close()
		}
		giveBack()
		var e *OpError
		if err == nil || !errors.Is(err, syscall.EMFILE) || !errors.As(err, &e) || e.Op != "ListenPool" {
			t.Errorf("%d left: %v", left, err)
		}
		if n := openNow(t); n > before {
			t.Errorf("%d left: %d are open, %d before", left, n, before)
		}
	}
}
