//go:build linux && cgo

package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"example.com/mcast"
)

const (
	many  = 10000
	fewer = 2000

	inPool = "mcast Pool"
)

// groupAt is the group of a Pool's channel.
func groupAt(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{232, 78, byte(i >> 8), byte(i)})
}

// freePort finds a port that nobody listens on.
func freePort() (int, error) {
	c, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return portOf(c), nil
}

// pool measures many channels: joining and leaving them beside the same in C,
// then what their number does to a datagram.
func pool(o *options, out *report) error {
	ch, err := channel4()
	if err != nil {
		return err
	}
	n, some := many, fewer
	if o.rounds < 10 { // a test
		n, some = 400, 100
	}
	if !enoughDescriptors(n) {
		out.note("Many channels were not measured: a socket for each of %d needs %d file descriptors (ulimit -Hn).", n, 2*n)
		return nil
	}
	if o.wants("pool", "join") {
		if err := poolJoin(o, out, ch, n); err != nil {
			return err
		}
	}
	if o.wants("pool", "read") {
		return poolRead(o, out, ch, some, n)
	}
	return nil
}

// enoughDescriptors reports whether a Pool can have a socket for each of n
// groups: it takes half of what there is.
func enoughDescriptors(n int) bool {
	var r unix.Rlimit
	return unix.Getrlimit(unix.RLIMIT_NOFILE, &r) == nil && r.Cur >= uint64(2*n)
}

// A layout is a way to have many channels.
type layout struct {
	name    string
	sockets func() int
	join    func() error
	leave   func() error
}

func poolLayout(ch channel, n, port int) *layout {
	var p *mcast.Pool
	return &layout{
		name:    inPool,
		sockets: func() int { return p.Sockets() },
		join:    func() (err error) { p, err = openPool(ch, n, port); return err },
		leave:   func() error { return p.Close() },
	}
}

func openPool(ch channel, n, port int) (*mcast.Pool, error) {
	p, err := mcast.ListenPool(ch.network(), fmt.Sprint(":", port), &mcast.Config{ReadBuffer: readBuffer})
	if err != nil {
		return nil, err
	}
	for i := range n {
		if err := p.JoinSource(mcast.Group{Addr: groupAt(i), Interface: ch.Group.Interface}, ch.Source); err != nil {
			p.Close()
			return nil, err
		}
	}
	p.SetReadDeadline(deadline())
	return p, nil
}

func rawLayout(ch channel, n, each, port int, name string) *layout {
	var r *rawPool
	return &layout{
		name:    name,
		sockets: func() int { return n / each },
		join: func() error {
			r = newRawPool(n / each)
			return r.join(ch, n, each, port)
		},
		leave: func() error { defer r.free(); return r.leave() },
	}
}

// poolJoin measures joining and leaving.
func poolJoin(o *options, out *report, ch channel, n int) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	const (
		bound = "C, a socket to each, bound to it"
		wild  = "C, 20 to a wildcard socket"
	)
	layouts := []*layout{poolLayout(ch, n, port), rawLayout(ch, n, 1, port, bound), rawLayout(ch, n, 20, port, wild)}
	type numbers struct{ join, joinWall, leave, leaveWall, heap, slab, send []float64 }
	from, err := ch.openSender()
	if err != nil {
		return err
	}
	defer from.Close()
	var fd int
	if err := withFD(from, func(f int) error { fd = f; return nil }); err != nil {
		return err
	}
	// On the loopback interface the sender's thread takes a datagram all the way
	// to the sockets.
	to := subject{units: datagrams, run: newSender(fd, netip.AddrPortFrom(groupAt(n/2), uint16(port)), make([]byte, 64)).send}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	all := make(map[string]*numbers)
	sockets := make(map[string]int)
	rounds := max(1, min(o.rounds/80, 5))
	for round := range 1 + rounds {
		for _, i := range rand.Perm(len(layouts)) {
			l := layouts[i]
			settle()
			heap, slab := heapInUse(), slabInUse()
			join, joinWall, err := timed(l.join)
			if err != nil {
				return fmt.Errorf("%s: %w", l.name, err)
			}
			settle()
			heap, slab = heapInUse()-heap, slabInUse()-slab
			sockets[l.name] = l.sockets()
			send, err := to.turn()
			if err != nil {
				return err
			}
			leave, leaveWall, err := timed(l.leave)
			if err != nil {
				return fmt.Errorf("%s: %w", l.name, err)
			}
			if round == 0 { // to warm up
				continue
			}
			x := all[l.name]
			if x == nil {
				x = new(numbers)
				all[l.name] = x
			}
			x.join, x.joinWall = append(x.join, join), append(x.joinWall, joinWall)
			x.leave, x.leaveWall = append(x.leave, leave), append(x.leaveWall, leaveWall)
			x.heap, x.slab = append(x.heap, heap), append(x.slab, slab)
			x.send = append(x.send, send)
		}
	}
	t := out.table(fmt.Sprintf("Many channels: joining and closing %d, CPU time of the whole process; memory per channel in bytes; CPU time of sending a datagram to one of them, up to the sockets", n),
		"channels", "sockets", "join, ms of CPU", "wall", "of C, bound", "of C, wildcard", "close, ms of CPU", "wall", "Go heap", "kernel slabs", "delivery, ns per datagram")
	for _, l := range layouts {
		x := all[l.name]
		t.row(l.name, strconv.Itoa(sockets[l.name]),
			ms(x.join), ms(x.joinWall),
			fmt.Sprintf("%.2f", ratioOf(x.join, all[bound].join)), fmt.Sprintf("%.2f", ratioOf(x.join, all[wild].join)),
			ms(x.leave), ms(x.leaveWall),
			fmt.Sprintf("%.0f", max(0, median(x.heap)/float64(n))), fmt.Sprintf("%.0f", median(x.slab)/float64(n)),
			fmt.Sprintf("%.0f", median(x.send)))
	}
	for _, than := range []string{bound, wild} {
		out.atMost(fmt.Sprintf("Joining %d channels: of %s", n, than), ratioOf(all[inPool].join, all[than].join), 1.5)
	}
	out.atMost(fmt.Sprintf("Closing a Pool of %d channels: seconds", n), median(all[inPool].leaveWall)/1e9, 1)
	return nil
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func ratioOf(xs, to []float64) float64 { return times{"x": xs, "to": to}.ratio("x", "to") }

func ms(xs []float64) string { return fmt.Sprintf("%.0f", median(xs)/1e6) }

// timed gives the CPU time of the process and the wall time of f.
func timed(f func() error) (cpu, wall float64, err error) {
	start, at := processCPU(), time.Now()
	err = f()
	return float64(processCPU() - start), float64(time.Since(at)), err
}

// settle lets the collector and the kernel free what they have to.
func settle() {
	runtime.GC()
	runtime.GC()
	time.Sleep(50 * time.Millisecond)
}

func heapInUse() float64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// slabInUse is the kernel's, for the whole machine.
func slabInUse() float64 {
	b, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "Slab:" {
			kib, _ := strconv.ParseFloat(f[1], 64)
			return kib * 1024
		}
	}
	return 0
}

// poolRead measures what the number of channels does to a datagram.
func poolRead(o *options, out *report, ch channel, some, n int) (err error) {
	var closers []func()
	defer func() {
		for _, f := range closers {
			f()
		}
	}()
	from, err := ch.openSender()
	if err != nil {
		return err
	}
	closers = append(closers, func() { from.Close() })
	var fd int
	if err := withFD(from, func(f int) error { fd = f; return nil }); err != nil {
		return err
	}
	// to sends a load to one group, or to as many as there are of n.
	payload := make([]byte, 1316)
	one := func(group netip.Addr, port int) func() error {
		return newSender(fd, netip.AddrPortFrom(group, uint16(port)), payload).send
	}
	spread := func(n, port int) func() error {
		at, step := 0, max(1, n/datagrams)
		to := &unix.SockaddrInet4{Port: port}
		return func() error {
			at++ // other ones each time
			for i := range datagrams {
				to.Addr = groupAt((at + i*step) % n).As4()
				if err := unix.Sendto(fd, payload, 0, to); err != nil {
					return os.NewSyscallError("sendto", err)
				}
			}
			return nil
		}
	}
	const batch = 32
	messages := make([]mcast.Message, batch)
	for i, b := range buffers(batch) {
		messages[i].Buf = b
	}
	drain := func(read func([]mcast.Message) (int, error)) func() error {
		return func() error {
			for left := datagrams; left > 0; {
				n, err := read(messages)
				if err != nil {
					return err
				}
				left -= n
			}
			return nil
		}
	}

	var ss []subject
	for _, bound := range []bool{false, true} {
		c, err := ch.listen(bound, mcast.Config{})
		if err != nil {
			return err
		}
		closers = append(closers, func() { c.Close() })
		name := "mcast Conn"
		if bound {
			name += ", bound to the group"
		}
		ss = append(ss, subject{name: name, units: datagrams, prepare: one(ch.Group.Addr, portOf(c)), run: drain(c.ReadBatch)})
	}
	counts := []int{1, some, n}
	name := func(who string, n int, to string) string { return fmt.Sprintf("%s of %d, to %s", who, n, to) }
	add := func(who string, n, port int, run func() error) {
		ss = append(ss, subject{name: name(who, n, "one"), units: datagrams, prepare: one(groupAt(n/2), port), run: run})
		if n > 1 {
			ss = append(ss, subject{name: name(who, n, "all"), units: datagrams, prepare: spread(n, port), run: run})
		}
	}
	const inC = "C, epoll and recvmmsg"
	for _, n := range counts {
		port, err := freePort()
		if err != nil {
			return err
		}
		p, err := openPool(ch, n, port)
		if err != nil {
			return err
		}
		closers = append(closers, func() { p.Close() })
		add(inPool, n, port, drain(p.ReadBatch))
	}
	for _, n := range counts[:2] {
		port, err := freePort()
		if err != nil {
			return err
		}
		r := newRawPool(n)
		closers = append(closers, func() { r.leave(); r.free() })
		if err := r.join(ch, n, 1, port); err != nil {
			return err
		}
		add(inC, n, port, r.drain)
	}
	m, err := measure(o.rounds, ss)
	if err != nil {
		return err
	}

	t := out.table("Many channels: CPU time per datagram of 1316 bytes in ns, ReadBatch of 32",
		"receiver", "to one of its channels", "of one channel", "of C", "to all evenly", "of one channel", "of C")
	t.row("mcast Conn, 1 channel", fmt.Sprintf("%.0f", m.ns("mcast Conn")), fmt.Sprintf("%.2f", m.ratio("mcast Conn", name(inPool, 1, "one"))))
	t.row("mcast Conn, 1 channel, bound to the group", fmt.Sprintf("%.0f", m.ns("mcast Conn, bound to the group")), fmt.Sprintf("%.2f", m.ratio("mcast Conn, bound to the group", name(inPool, 1, "one"))))
	for _, who := range []string{inPool, inC} {
		for _, n := range counts {
			cells := []string{who + ", " + plural(n, "channel")}
			for _, to := range []string{"one", "all"} {
				x := name(who, n, to)
				if !m.has(x) {
					cells = append(cells, "", "", "")
					continue
				}
				cells = append(cells, fmt.Sprintf("%.0f", m.ns(x)), fmt.Sprintf("%.2f", m.ratio(x, name(who, 1, "one"))))
				if m.has(name(inC, n, to)) {
					cells = append(cells, fmt.Sprintf("%.2f", m.ratio(x, name(inC, n, to))))
				} else {
					cells = append(cells, "")
				}
			}
			if len(cells) > 1 && cells[1] != "" {
				t.row(cells...)
			}
		}
	}
	for _, to := range []string{"one", "all"} {
		what := fmt.Sprintf("A datagram to %s of %d channels: of one to a single channel", map[string]string{"one": "one", "all": "each"}[to], some)
		out.atMostBeside(what, m.ratio(name(inPool, some, to), name(inPool, 1, "one")), 1.3, m.ratio(name(inC, some, to), name(inC, 1, "one")))
		out.atMost(fmt.Sprintf("A datagram to %s of %d channels: of C", map[string]string{"one": "one", "all": "each"}[to], some), m.ratio(name(inPool, some, to), name(inC, some, to)), map[string]float64{"one": 1.10, "all": 1.25}[to])
	}
	for i := range ss {
		if ss[i].name == name(inPool, some, "all") {
			a, _, err := ss[i].allocations()
			if err != nil {
				return err
			}
			out.atMost("Allocations per datagram: mcast Pool.ReadBatch, 32", a, 0)
		}
	}
	return nil
}
