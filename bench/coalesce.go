//go:build linux && cgo

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"example.com/mcast"
)

var (
	rates = []int{10_000, 50_000, 100_000} // datagrams a second
	waits = []time.Duration{0, 50 * time.Microsecond, 100 * time.Microsecond, 200 * time.Microsecond, 500 * time.Microsecond, time.Millisecond}
)

// A stream is what a reader made of a steady stream.
type stream struct {
	cpu, mid, p99, longest float64 // ns: CPU time per datagram; from sending to receiving
	batch                  float64 // datagrams per read
	dropped                uint64
}

// coalesce measures Config.Coalesce: what each wait saves at each rate, and
// what it costs.
func coalesce(o *options, out *report) error {
	if !o.wants("coalesce", "read") {
		return nil
	}
	if runtime.NumCPU() < 2 {
		out.note("Config.Coalesce was not measured: the sender needs a processor to itself.")
		return nil
	}
	ch, err := channel4()
	if err != nil {
		return err
	}
	turns, each := max(1, min(o.rounds/130, 3)), 300*time.Millisecond
	if o.rounds < 10 {
		each = 20 * time.Millisecond
	}
	type cell struct {
		who  string
		rate int
		wait time.Duration
	}
	var cells []cell
	for _, r := range rates {
		for _, w := range waits {
			cells = append(cells, cell{"mcast Conn", r, w})
		}
	}
	for _, w := range []time.Duration{0, 200 * time.Microsecond, time.Millisecond} {
		cells = append(cells, cell{inPool, rates[len(rates)-1], w})
	}
	got := make(map[cell][]stream)
	for range turns {
		for _, i := range rand.Perm(len(cells)) {
			s, err := ch.stream(cells[i].who == inPool, cells[i].rate, cells[i].wait, each)
			if err != nil {
				return fmt.Errorf("%v: %w", cells[i], err)
			}
			got[cells[i]] = append(got[cells[i]], s)
		}
	}
	size, err := ch.charge(streamSize)
	if err != nil {
		return err
	}
	t := out.table(fmt.Sprintf("Config.Coalesce: CPU time per datagram of %d bytes, of the whole process but for the sender; time from sending to receiving", streamSize),
		"receiver", "datagrams a second", "Coalesce", "CPU, ns", "of no wait", "delay, µs: median", "99 %", "longest", "datagrams per read", "buffer, KiB", "dropped")
	late := false
	for _, c := range cells {
		mid := func(f func(stream) float64) float64 {
			var xs []float64
			for _, s := range got[c] {
				xs = append(xs, f(s))
			}
			return median(xs)
		}
		var cpu, base []float64
		dropped := uint64(0)
		for i, s := range got[c] {
			cpu = append(cpu, s.cpu)
			base = append(base, got[cell{c.who, c.rate, 0}][i].cpu)
			dropped += s.dropped
		}
		out.addPoint(fmt.Sprintf("%s, %s a second", strings.TrimPrefix(c.who, "mcast "), thousands(c.rate)), float64(c.wait.Microseconds()), ratioOf(cpu, base))
		delay := mid(func(s stream) float64 { return s.p99 })
		longest := mid(func(s stream) float64 { return s.longest })
		late = late || c.wait > 0 && delay > float64(2*c.wait+200*time.Microsecond)
		t.row(c.who, fmt.Sprint(c.rate), c.wait.String(),
			fmt.Sprintf("%.0f", median(cpu)), fmt.Sprintf("%.2f", ratioOf(cpu, base)),
			fmt.Sprintf("%.0f", mid(func(s stream) float64 { return s.mid })/1e3), fmt.Sprintf("%.0f", delay/1e3), fmt.Sprintf("%.0f", longest/1e3),
			fmt.Sprintf("%.1f", mid(func(s stream) float64 { return s.batch })),
			fmt.Sprintf("%.0f", longest*float64(c.rate)/1e9*float64(size)/1024),
			fmt.Sprint(dropped))
	}
	out.note("Config.Coalesce: the buffer is what came in during the longest delay; the kernel charges %d bytes for a datagram of %d.", size, streamSize)
	if late {
		out.note("Config.Coalesce: datagrams waited more than twice as long as was set.")
	}
	return nil
}

const streamSize = 1316

// A streamReader is a Conn or a Pool.
type streamReader interface {
	JoinSource(mcast.Group, netip.Addr) error
	ReadBatch([]mcast.Message) (int, error)
	ReadMessage(*mcast.Message) error
	SetReadDeadline(time.Time) error
	Stats() mcast.Stats
	Close() error
}

// open opens a Conn or a Pool.
func (ch channel) open(pool bool, address string, cfg *mcast.Config) (streamReader, error) {
	if pool {
		return mcast.ListenPool(ch.network(), address, cfg)
	}
	return mcast.Listen(ch.network(), address, cfg)
}

// stream receives a steady stream.
func (ch channel) stream(pool bool, rate int, wait, length time.Duration) (s stream, err error) {
	port, err := freePort()
	if err != nil {
		return s, err
	}
	cfg, address := &mcast.Config{ReadBuffer: readBuffer, Coalesce: wait}, fmt.Sprint(":", port)
	c, err := ch.open(pool, address, cfg)
	if err != nil {
		return s, err
	}
	defer c.Close()
	if err := c.JoinSource(ch.Group, ch.Source); err != nil {
		return s, err
	}
	from, err := ch.openQuietSender()
	if err != nil {
		return s, err
	}
	defer unix.Close(from)
	n := int(float64(rate) * length.Seconds())
	ms := make([]mcast.Message, 256)
	for i, b := range buffers(len(ms)) {
		ms[i].Buf = b
	}
	delays := make([]float64, 0, n)
	reads := 0
	runtime.GC()
	c.SetReadDeadline(time.Now().Add(length + 500*time.Millisecond)) // some may be lost

	start := processCPU()
	p, err := pace{
		first: netip.AddrPortFrom(ch.Group.Addr, uint16(port)), size: streamSize,
		interval: time.Second / time.Duration(rate), n: n,
	}.start(from)
	if err != nil {
		return s, err
	}
	for len(delays) < n && err == nil {
		var k int
		k, err = c.ReadBatch(ms)
		now := clock(unix.CLOCK_MONOTONIC)
		for i := range ms[:k] {
			delays = append(delays, float64(now-int64(binary.NativeEndian.Uint64(ms[i].Buf))))
		}
		reads++
	}
	if errors.Is(err, os.ErrDeadlineExceeded) && len(delays) > 0 {
		err = nil
	}
	sender, _, e := p.join()
	cpu := processCPU() - start - sender
	if err = errors.Join(err, e); err != nil {
		return s, err
	}
	got := float64(len(delays))
	slices.Sort(delays)
	return stream{
		cpu: float64(cpu) / got, mid: median(delays), p99: delays[len(delays)*99/100], longest: delays[len(delays)-1],
		batch: got / float64(reads), dropped: c.Stats().Dropped,
	}, nil
}

// openQuietSender is openSender for IPv4, without the runtime's poller: that
// would be woken whenever a datagram has been sent.
func (ch channel) openQuietSender() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := errors.Join(
		unix.Bind(fd, &unix.SockaddrInet4{Addr: ch.Source.As4()}),
		unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(ch.index)}),
	); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// charge is what a datagram takes of the receive buffer.
func (ch channel) charge(size int) (int, error) {
	c, err := ch.openReceiver()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	from, err := ch.openSender()
	if err != nil {
		return 0, err
	}
	defer from.Close()
	if err := withFD(from, func(fd int) error {
		return newSender(fd, netip.AddrPortFrom(ch.Group.Addr, uint16(portOf(c))), make([]byte, size)).send()
	}); err != nil {
		return 0, err
	}
	used := 0
	err = withFD(c, func(fd int) error {
		var info [9]uint32 // SK_MEMINFO_VARS
		length := uint32(unsafe.Sizeof(info))
		_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&length)), 0)
		if e != 0 {
			return os.NewSyscallError("getsockopt", e)
		}
		used = int(info[unix.SK_MEMINFO_RMEM_ALLOC])
		return nil
	})
	return used / datagrams, err
}
