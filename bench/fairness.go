//go:build linux && cgo

package main

/*
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { fair_batch = 32, fair_room = 2048, fair_events = 64 };

// fair_receive reads from the sockets of an epoll, one batch each in turn, until
// the time is over. Of what comes in by the first socket it only counts how much
// there is; of the others it notes how long each was under way.
static int fair_receive(int epoll, int *fds, int64_t until, int64_t *delays, int room, int *got, int64_t *busy) {
	static struct mmsghdr h[fair_batch];
	static struct iovec iov[fair_batch];
	static struct sockaddr_in name[fair_batch];
	static unsigned char buf[fair_batch * fair_room];
	struct epoll_event ev[fair_events];
	struct timespec t;
	for (int i = 0; i < fair_batch; i++) {
		iov[i] = (struct iovec){ buf + i * fair_room, fair_room };
		h[i].msg_hdr = (struct msghdr){ .msg_name = &name[i], .msg_iov = &iov[i], .msg_iovlen = 1 };
	}
	*got = *busy = 0;
	for (;;) {
		int ready = epoll_wait(epoll, ev, fair_events, 20);
		if (ready < 0 && errno != EINTR)
			return errno;
		for (int k = 0; k < ready; k++) {
			for (int i = 0; i < fair_batch; i++)
				h[i].msg_hdr.msg_namelen = sizeof name[i];
			int n = recvmmsg(fds[ev[k].data.u32], h, fair_batch, MSG_DONTWAIT, NULL);
			if (n < 0)
				continue;
			clock_gettime(CLOCK_MONOTONIC, &t);
			int64_t at = t.tv_sec * 1000000000LL + t.tv_nsec, sent;
			if (ev[k].data.u32 == 0) {
				*busy += n;
				continue;
			}
			for (int i = 0; i < n && *got < room; i++) {
				memcpy(&sent, buf + i * fair_room, sizeof sent);
				delays[(*got)++] = at - sent;
			}
		}
		clock_gettime(CLOCK_MONOTONIC, &t);
		if (t.tv_sec * 1000000000LL + t.tv_nsec > until)
			return 0;
	}
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
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"example.com/mcast"
)

const (
	fairChannels = 64  // of which the first is the busy one
	fairRate     = 100 // datagrams a second to each of the others
	fairSize     = 64
)

// A fairReader reads fairChannels until the time is over, and returns how long
// the datagrams of all but the first channel were under way, and how many came
// by the first.
type fairReader struct {
	name string
	open func(ch channel, port int) (fairReading, error)
}

type fairReading struct {
	read  func(until time.Time) (delays []int64, busy int, err error)
	close func()
}

// A fairRun is what a reader made of one turn.
type fairRun struct {
	mid, high float64 // ns that datagrams of the other channels were under way
	lost      int     // of them
	busy      float64 // datagrams a second of the busy channel
}

// fairness measures what one busy channel does to the others of a Pool.
func fairness(o *options, out *report) error {
	if !o.wants("fairness", "read") {
		return nil
	}
	ch, err := channel4()
	if err != nil {
		return err
	}
	turns, length := max(1, min(o.rounds/40, 7)), 500*time.Millisecond
	if o.rounds < 10 {
		length = 50 * time.Millisecond
	}
	const inC = "C, epoll and recvmmsg, 1 reader"
	readers := []fairReader{{inC, fairC}, {inPool + ", 1 reader", fairPool(1)}, {inPool + ", 2 readers", fairPool(2)}}
	const quiet, both, alone = "quiet", "both", "alone"
	got := make(map[[2]string][]fairRun)
	for range turns {
		for _, i := range rand.Perm(len(readers)) {
			for _, load := range []string{quiet, both, alone} {
				r, err := ch.fairTurn(readers[i], load != quiet, load != alone, length)
				if err != nil {
					return fmt.Errorf("%s: %w", readers[i].name, err)
				}
				k := [2]string{readers[i].name, load}
				got[k] = append(got[k], r)
			}
		}
	}
	t := out.table(fmt.Sprintf("Fairness: one channel at full speed beside %d of %d datagrams a second each; the time that the others' datagrams were under way, in µs", fairChannels-1, fairRate),
		"receiver", "without the busy one: median", "99 %", "with it: median", "99 %", "99 %, of without", "lost", "busy channel, datagrams a second", "of what it has alone")
	for _, r := range readers {
		list := func(load string, f func(fairRun) float64) (xs []float64) {
			for _, x := range got[[2]string{r.name, load}] {
				xs = append(xs, f(x))
			}
			return xs
		}
		mid := func(x fairRun) float64 { return x.mid }
		high := func(x fairRun) float64 { return x.high }
		busy := func(x fairRun) float64 { return x.busy }
		lost := 0
		for _, x := range got[[2]string{r.name, both}] {
			lost += x.lost
		}
		us := func(xs []float64) string { return fmt.Sprintf("%.0f", median(xs)/1e3) }
		later, share := ratioOf(list(both, high), list(quiet, high)), ratioOf(list(both, busy), list(alone, busy))
		t.row(r.name, us(list(quiet, mid)), us(list(quiet, high)), us(list(both, mid)), us(list(both, high)), fmt.Sprintf("%.1f", later),
			fmt.Sprint(lost), thousands(int(median(list(both, busy)))), fmt.Sprintf("%.2f", share))
		if r.name == inC {
			continue
		}
		what := "Fairness: " + r.name + ": "
		cLater := ratioOf(fairList(got[[2]string{inC, both}], high), fairList(got[[2]string{inC, quiet}], high))
		cShare := ratioOf(fairList(got[[2]string{inC, both}], busy), fairList(got[[2]string{inC, alone}], busy))
		out.atMost(what+"datagrams of the others that were lost", float64(lost), 0)
		out.atMostBeside(what+"99 % delay of the others, of that without the busy one", later, 5, cLater)
		out.atLeastBeside(what+"throughput of the busy one, of what it has alone", share, 0.9, cShare)
		out.headline(fmt.Sprintf("%s, %d channels, one of them at full speed: 99 %% delay of the others, beside a Pool without the busy one", r.name, fairChannels), fmt.Sprintf("%.1f ×, %d lost", later, lost))
	}
	return nil
}

func fairList(runs []fairRun, f func(fairRun) float64) (xs []float64) {
	for _, x := range runs {
		xs = append(xs, f(x))
	}
	return xs
}

// fairTurn sends to the busy channel, to the others, or to both, while a reader
// reads.
func (ch channel) fairTurn(r fairReader, busy, others bool, length time.Duration) (run fairRun, err error) {
	port, err := freePort()
	if err != nil {
		return run, err
	}
	reading, err := r.open(ch, port)
	if err != nil {
		return run, err
	}
	defer reading.close()
	runtime.GC()
	var senders [2]pacer // to the busy one, to the others
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	start := func(i int, p pace) error {
		from, err := ch.openQuietSender()
		if err != nil {
			return err
		}
		fds = append(fds, from)
		p.first = netip.AddrPortFrom(groupAt(i), uint16(port))
		p.size = fairSize
		senders[i], err = p.start(from)
		return err
	}
	if busy {
		err = start(0, pace{})
	}
	n := int(length.Seconds() * fairRate * (fairChannels - 1))
	if others && err == nil {
		// This one sleeps: there may be no processor for it.
		err = start(1, pace{groups: fairChannels - 1, interval: time.Second / (fairRate * (fairChannels - 1)), n: n, sleeps: true})
	}
	var delays []int64
	count, begun := 0, time.Now()
	if err == nil {
		delays, count, err = reading.read(begun.Add(length + 100*time.Millisecond))
	}
	took := time.Since(begun)
	sent := 0
	for i, p := range senders {
		if p.p != nil {
			p.stop()
			_, k, e := p.join()
			if err = errors.Join(err, e); i == 1 {
				sent = k
			}
		}
	}
	if err != nil {
		return run, err
	}
	run.busy = float64(count) / took.Seconds()
	run.lost = sent - len(delays)
	if len(delays) > 0 {
		slices.Sort(delays)
		run.mid, run.high = float64(delays[len(delays)/2]), float64(delays[len(delays)*99/100])
	}
	return run, nil
}

func fairPool(readers int) func(channel, int) (fairReading, error) {
	return func(ch channel, port int) (fairReading, error) {
		p, err := openPool(ch, fairChannels, port)
		if err != nil {
			return fairReading{}, err
		}
		first := groupAt(0)
		read := func(until time.Time) (delays []int64, busy int, err error) {
			p.SetReadDeadline(until)
			var mu sync.Mutex
			var done sync.WaitGroup
			for range readers {
				done.Go(func() {
					ms := make([]mcast.Message, 32)
					for i, b := range buffers(len(ms)) {
						ms[i].Buf = b
					}
					own := make([]int64, 0, 1<<16)
					count, clock := 0, newMonotonic()
					for {
						n, e := p.ReadBatch(ms)
						if e != nil {
							mu.Lock()
							if !errors.Is(e, os.ErrDeadlineExceeded) {
								err = errors.Join(err, e)
							}
							delays, busy = append(delays, own...), busy+count
							mu.Unlock()
							return
						}
						now := clock.now()
						for i := range ms[:n] {
							if m := &ms[i]; m.Group.Addr == first {
								count++
							} else {
								own = append(own, now-int64(binary.NativeEndian.Uint64(m.Buf)))
							}
						}
					}
				})
			}
			done.Wait()
			return delays, busy, err
		}
		return fairReading{read, func() { p.Close() }}, nil
	}
}

// fairC reads one batch of each socket that is ready, by a level-triggered
// epoll.
func fairC(ch channel, port int) (r fairReading, err error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return r, os.NewSyscallError("epoll_create1", err)
	}
	var fds []C.int
	r.close = func() {
		for _, fd := range fds {
			unix.Close(int(fd))
		}
		unix.Close(epoll)
	}
	for i := range fairChannels {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			r.close()
			return r, os.NewSyscallError("socket", err)
		}
		fds = append(fds, C.int(fd))
		join := option{unix.MCAST_JOIN_SOURCE_GROUP, groupSourceReq(ch.index, groupAt(i), ch.Source)}
		if err := errors.Join(
			unix.Bind(fd, &unix.SockaddrInet4{Addr: groupAt(i).As4(), Port: port}),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, readBuffer),
			join.set(fd),
			unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}),
		); err != nil {
			r.close()
			return r, err
		}
	}
	r.read = func(until time.Time) ([]int64, int, error) {
		delays := make([]int64, 1<<16)
		var got C.int
		var busy C.int64_t
		end := clock(unix.CLOCK_MONOTONIC) + int64(time.Until(until))
		e := C.fair_receive(C.int(epoll), &fds[0], C.int64_t(end), (*C.int64_t)(unsafe.Pointer(&delays[0])), C.int(len(delays)), &got, &busy)
		if e != 0 {
			return nil, 0, os.NewSyscallError("epoll_wait", syscall.Errno(e))
		}
		return delays[:got], int(busy), nil
	}
	return r, nil
}
