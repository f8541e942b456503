//go:build linux && cgo

package main

/*
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

static int64_t monotonic(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

// latency_receive reads datagrams and notes how long each was under way, until
// there are as many as wanted, or none came for half a second. A socket that
// does not block is read again and again.
static int latency_receive(int fd, int spin, int64_t *delays, int want) {
	unsigned char payload[2048];
	struct sockaddr_in name;
	struct iovec iov = { payload, sizeof payload };
	struct { _Alignas(struct cmsghdr) unsigned char b[64]; } control;
	struct msghdr m = { .msg_name = &name, .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control };
	int n = 0;
	int64_t limit = monotonic() + 500000000;
	for (unsigned looks = 0; n < want; looks++) {
		m.msg_namelen = sizeof name;
		m.msg_controllen = sizeof control;
		ssize_t k = recvmsg(fd, &m, spin ? MSG_DONTWAIT : 0);
		if (k < 0 && errno == EAGAIN) {
			if (!spin || (looks % 1024 == 0 && monotonic() > limit))
				break;
			continue;
		}
		if (k < 0 && errno == EINTR)
			continue;
		if (k < 0)
			return -errno;
		int64_t at = monotonic(), sent;
		memcpy(&sent, payload, sizeof sent);
		delays[n++] = at - sent;
		limit = at + 500000000;
	}
	return n;
}
*/
import "C"

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"example.com/mcast"
)

const (
	latencyRate = 10_000 // datagrams a second
	latencySize = 64

	cSpins     = "C: recvmsg that does not sleep (MSG_DONTWAIT in a loop)"
	cBlocks    = "C: recvmsg, blocking"
	connBlocks = "mcast Conn, blocking"
	poolBlocks = "mcast Pool, blocking"
	netBlocks  = "net ReadMsgUDPAddrPort, blocking"
	connSpins  = "mcast Conn, BusyPoll"
	poolSpins  = "mcast Pool, BusyPoll"
	idleSpins  = "mcast Conn, BusyPoll, an idle GOMAXPROCS"
)

// A latencyReader receives n datagrams from a port, which it says in time, and
// notes how long each was under way, in ns.
type latencyReader struct {
	name string
	read func(ch channel, send func(port int) error, n int) ([]int64, error)
}

var latencyReaders = []latencyReader{
	{cSpins, latencyC(true)},
	// As its documentation says: the runtime has no more processors than readers.
	{connSpins, latencyMcast(false, -1, 1)},
	{poolSpins, latencyMcast(true, -1, 1)},
	{idleSpins, latencyMcast(false, -1, 2)},
	{cBlocks, latencyC(false)},
	{connBlocks, latencyMcast(false, 0, 2)},
	{poolBlocks, latencyMcast(true, 0, 2)},
	{netBlocks, latencyNet},
}

// latency measures how long a datagram takes from one program's clock to the
// other's.
func latency(o *options, out *report) error {
	if !o.wants("latency", "read") {
		return nil
	}
	if runtime.NumCPU() < 2 {
		out.note("Latency was not measured: the sender needs a processor to itself.")
		return nil
	}
	ch, err := channel4()
	if err != nil {
		return err
	}
	turns, each := max(1, min(o.rounds/8, 50)), 1000
	if o.rounds < 10 { // a test
		each = 200
	}
	from, err := ch.openQuietSender()
	if err != nil {
		return err
	}
	defer unix.Close(from)
	mids, highs := make(times), make(times)
	all := make(map[string][]int64)
	for range turns {
		for _, i := range rand.Perm(len(latencyReaders)) {
			r := latencyReaders[i]
			var p pacer
			runtime.GC()
			delays, err := r.read(ch, func(port int) (err error) {
				p, err = pace{
					first: netip.AddrPortFrom(ch.Group.Addr, uint16(port)), size: latencySize,
					interval: time.Second / latencyRate, n: each,
				}.start(from)
				return err
			}, each)
			if p.p != nil {
				_, _, e := p.join()
				err = errors.Join(err, e)
			}
			if err == nil && len(delays) < each*9/10 {
				err = fmt.Errorf("%d of %d datagrams came", len(delays), each)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
			all[r.name] = append(all[r.name], delays...)
			slices.Sort(delays)
			mids[r.name] = append(mids[r.name], float64(delays[len(delays)/2]))
			highs[r.name] = append(highs[r.name], float64(delays[len(delays)*99/100]))
		}
	}
	t := out.table(fmt.Sprintf("Latency: %s datagrams of %d bytes a second, paced, from the sender's clock to the reader's, in µs", thousands(latencyRate), latencySize),
		"receiver", "median", "of C", "99 %", "of C", "in its quietest turn: median", "99 %")
	for _, r := range latencyReaders {
		to := cBlocks
		if slices.Contains([]string{connSpins, poolSpins, idleSpins, cSpins}, r.name) {
			to = cSpins
		}
		us := func(ns float64) string { return fmt.Sprintf("%.1f", ns/1e3) }
		t.row(r.name, us(mids.ns(r.name)), fmt.Sprintf("%.2f", mids.ratio(r.name, to)), us(highs.ns(r.name)), fmt.Sprintf("%.2f", highs.ratio(r.name, to)),
			us(slices.Min(mids[r.name])), us(slices.Min(highs[r.name])))
		out.latencies = append(out.latencies, series{r.name, all[r.name]})
		out.headline("Latency, median and 99 %, µs: "+r.name, us(mids.ns(r.name))+", "+us(highs.ns(r.name)))
	}
	// Of an idle machine no turn differs much from another.
	if m := highs[cSpins]; median(m) > 4*slices.Min(m) {
		out.noisy = true
		out.note("Latency: C's loop needed a processor that others had: its 99 %% was %s µs at best, and %s µs in the middle.", fmt.Sprintf("%.1f", slices.Min(m)/1e3), fmt.Sprintf("%.1f", median(m)/1e3))
	}
	for _, name := range []string{connSpins, poolSpins} {
		out.atMost("Latency: "+name+": median, of C's loop", mids.ratio(name, cSpins), 1.3)
		out.atMost("Latency: "+name+": 99 %, of C's loop", highs.ratio(name, cSpins), 2)
	}
	for _, name := range []string{connBlocks, poolBlocks} {
		out.atMost("Latency: "+name+": median, of C's blocking recvmsg", mids.ratio(name, cBlocks), 1.25)
	}
	return nil
}

func latencyC(spin bool) func(channel, func(int) error, int) ([]int64, error) {
	return func(ch channel, send func(int) error, n int) ([]int64, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, os.NewSyscallError("socket", err)
		}
		defer unix.Close(fd)
		join := option{unix.MCAST_JOIN_SOURCE_GROUP, groupSourceReq(ch.index, ch.Group.Addr, ch.Source)}
		if err := errors.Join(
			unix.Bind(fd, &unix.SockaddrInet4{}),
			ch.askForInfo(fd),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, readBuffer),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 500_000}),
			join.set(fd),
		); err != nil {
			return nil, err
		}
		at, err := unix.Getsockname(fd)
		if err != nil {
			return nil, os.NewSyscallError("getsockname", err)
		}
		delays := make([]int64, n)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := send(at.(*unix.SockaddrInet4).Port); err != nil {
			return nil, err
		}
		got := C.latency_receive(C.int(fd), cBool(spin), (*C.int64_t)(unsafe.Pointer(&delays[0])), C.int(n))
		if got < 0 {
			return nil, os.NewSyscallError("recvmsg", syscall.Errno(-got))
		}
		return delays[:got], nil
	}
}

func latencyMcast(pool bool, busy time.Duration, processors int) func(channel, func(int) error, int) ([]int64, error) {
	return func(ch channel, send func(int) error, n int) ([]int64, error) {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(processors))
		cfg := &mcast.Config{ReadBuffer: readBuffer, BusyPoll: busy}
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		c, err := ch.open(pool, fmt.Sprint(":", port), cfg)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		if err := c.JoinSource(ch.Group, ch.Source); err != nil {
			return nil, err
		}
		m := mcast.Message{Buf: make([]byte, room)}
		return timeEach(port, send, n, c.SetReadDeadline, func() ([]byte, error) {
			err := c.ReadMessage(&m)
			return m.Buf, err
		})
	}
}

func latencyNet(ch channel, send func(int) error, n int) ([]int64, error) {
	c, err := ch.openReceiver()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := withFD(c, ch.askForInfo); err != nil {
		return nil, err
	}
	b, oob := make([]byte, room), make([]byte, 64)
	return timeEach(portOf(c), send, n, c.SetReadDeadline, func() ([]byte, error) {
		_, _, _, _, err := c.ReadMsgUDPAddrPort(b, oob)
		return b, err
	})
}

// timeEach reads datagrams one by one.
func timeEach(port int, send func(int) error, n int, setDeadline func(time.Time) error, read func() ([]byte, error)) ([]int64, error) {
	delays := make([]int64, 0, n)
	clock := newMonotonic()
	setDeadline(time.Now().Add(time.Second/latencyRate*time.Duration(n) + 500*time.Millisecond)) // some may be lost
	if err := send(port); err != nil {
		return nil, err
	}
	for len(delays) < n {
		b, err := read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return nil, err
		}
		delays = append(delays, clock.now()-int64(binary.NativeEndian.Uint64(b)))
	}
	return delays, nil
}

// A monotonic tells CLOCK_MONOTONIC without a system call.
type monotonic struct {
	start time.Time
	at    int64
}

func newMonotonic() (m monotonic) {
	best := time.Hour
	for range 100 {
		before := time.Now()
		at := clock(unix.CLOCK_MONOTONIC)
		if took := time.Since(before); took < best {
			best, m.start, m.at = took, before, at-int64(took)/2
		}
	}
	return m
}

func (m *monotonic) now() int64 { return m.at + int64(time.Since(m.start)) }

func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%s,%03d", thousands(n/1000), n%1000)
}
