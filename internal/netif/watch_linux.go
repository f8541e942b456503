package netif

import (
	"errors"
	"io"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// groups are the news that a source is told: of links, of what IPv6 says of
// them, and of addresses.
const groups = unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | 1<<(unix.RTNLGRP_IPV6_IFINFO-1)

// source tells of links by rtnetlink(7).
type source struct {
	f       netlinkFile
	port    uint32 // its address, which answers have in their header
	buf     []byte
	links   links
	dumping bool
	number  uint32 // of the last dump that was asked for; answers have it too

	alarm *os.File // a timerfd; nil: there is none
	woke  atomic.Bool
	wg    sync.WaitGroup
}

// netlinkFile is what a source uses of its socket.
type netlinkFile interface {
	io.ReadWriteCloser
	SetReadDeadline(time.Time) error
}

// watch takes over a socket.
func watch(fd int) (Source, error) {
	var port uint32
	name, err := unix.Getsockname(fd)
	if sa, ok := name.(*unix.SockaddrNetlink); ok {
		port = sa.Pid
	}
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("getsockname", err)
	}
	s, err := newSource(os.NewFile(uintptr(fd), "netlink"), port)
	if err != nil {
		return nil, err
	}
	if alarm, err := newAlarm(); err == nil {
		s.alarm = alarm
		s.wg.Go(func() { listen(alarm, clocks, s.wake) })
	}
	return s, nil
}

// newSource closes the file if it fails.
func newSource(f netlinkFile, port uint32) (*source, error) {
	s := &source{f: f, port: port, buf: make([]byte, 64<<10), links: make(links)}
	if err := s.dump(); err != nil {
		f.Close()
		return nil, err
	}
	return s, nil
}

func (s *source) Close() error {
	err := s.f.Close()
	if s.alarm != nil {
		s.alarm.Close()
	}
	s.wg.Wait()
	return err
}

// wake makes Read return the news that the machine woke.
func (s *source) wake() {
	s.woke.Store(true)
	s.f.SetReadDeadline(time.Unix(1, 0))
}

// dump asks for all links.
func (s *source) dump() error {
	s.dumping = true
	s.number++
	_, err := s.f.Write(linksRequest(s.number))
	return err
}

// Read returns news. At first, and after the kernel had to drop news
// (ENOBUFS), all links come, in several messages.
func (s *source) Read() ([]Change, error) {
	full, again := s.dumping, false
	overrun := false
	var b batch
	for {
		n, err := s.f.Read(s.buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			s.f.SetReadDeadline(time.Time{})
			if s.woke.Swap(false) {
				b.woke = true
			}
			if b.woke && !full {
				return s.finish(&b, false, false), nil
			}
			continue
		case errors.Is(err, unix.ENOBUFS):
			full, overrun = true, true
			if s.dumping {
				again = true // the kernel does one at a time
			} else if err := s.dump(); err != nil {
				return nil, err
			}
			continue
		case err != nil:
			return nil, err
		}
		b.add(s.buf[:n], s.number, s.port)
		switch {
		case b.err != nil:
			return nil, b.err
		case full && !b.done:
			continue
		case full && (again || b.interrupted):
			again = false
			b.done, b.interrupted, b.begun = false, false, false
			if err := s.dump(); err != nil {
				return nil, err
			}
			continue
		}
		if full {
			s.dumping = false
		}
		if changes := s.finish(&b, full, overrun); len(changes) > 0 || full {
			return changes, nil
		}
		b = batch{}
	}
}

func (s *source) finish(b *batch, full, overrun bool) []Change {
	changes := s.links.apply(b, full, overrun)
	for index := range b.ask {
		// IPv6 may have been switched off, of which there is no message but this.
		// An error of the socket shows when it is read.
		s.f.Write(linkRequest(0, index))
	}
	if b.woke {
		changes = append(changes, Change{Woke: true})
	}
	return changes
}

// A batch is what was read since Read returned last.
type batch struct {
	updates     []update
	ask         map[int]bool // links to ask for, as IPv6 addresses of theirs were removed
	moved, woke bool

	begun       bool // the dump has,
	done        bool // and is complete,
	interrupted bool // but links changed in the meantime
	err         error
}

// An update is what one message says.
type update struct {
	link
	family  byte // AF_UNSPEC; AF_INET6: only of IPv6
	gone    bool
	address bool // an IPv6 address of that link was removed, nothing else
	dumped  bool // since the dump began
}

// add reads netlink messages. What makes no sense, it leaves out.
func (b *batch) add(buf []byte, dump, port uint32) {
	for m := range messages(buf) {
		// News that another program's request led to has the number of that.
		own := m.seq == dump && m.port == port
		if own && !b.begun {
			// What came before the dump is older than it.
			b.begun = true
			for i := range b.updates {
				b.updates[i].dumped = false
			}
		}
		if own && m.flags&unix.NLM_F_DUMP_INTR != 0 {
			b.interrupted = true
		}
		switch m.kind {
		case unix.NLMSG_DONE:
			b.done = b.done || own
		case unix.NLMSG_ERROR:
			if errno := m.failure(); own && errno != 0 {
				b.err = os.NewSyscallError("netlink", errno)
			}
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			if l, family, ok := parseLink(m); ok {
				b.updates = append(b.updates, update{link: l, family: family, gone: m.kind == unix.RTM_DELLINK, dumped: true})
			}
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			b.moved = true
			if o, ok := parseAddress(m); ok && o.addr.Is6() && m.kind == unix.RTM_DELADDR {
				if b.ask == nil {
					b.ask = make(map[int]bool)
				}
				b.ask[o.index] = true
				b.updates = append(b.updates, update{link: link{Interface: Interface{Index: o.index}}, address: true})
			}
		}
	}
}

// links are those that a source has told of.
type links map[int]*toldLink

type toldLink struct {
	link
	lost bool // an IPv6 address of it, since IPv6 began
}

// apply says what a batch amounts to. After a dump (full) what was not in it
// is gone. overrun says that messages were lost: IPv6 may have ended meanwhile
// on whatever began it since.
func (ls links) apply(b *batch, full, overrun bool) []Change {
	var changes []Change
	seen := make(map[int]bool)
	for _, u := range b.updates {
		k := ls[u.Index]
		switch {
		case u.address:
			if k != nil {
				k.lost = true
			}
			continue
		case u.family == unix.AF_INET6 && k == nil:
			continue
		case u.family == unix.AF_INET6:
			l := k.link
			l.IPv6, l.IPv6Disabled, l.inet6 = u.IPv6 && !u.gone, u.IPv6Disabled && !u.gone, u.inet6
			u.link = l
		case u.gone:
			delete(ls, u.Index)
			changes = append(changes, Change{Interface: Interface{Index: u.Index}, Gone: true})
			continue
		case k == nil || u.carriers != 0 && u.carriers < k.carriers:
			k = &toldLink{link: u.link} // it is new; see [State]
			ls[u.Index] = k
		}
		if u.dumped {
			seen[u.Index] = true
		}
		if k.IPv6 && u.IPv6 && (u.inet6.restarted(k.inet6, k.lost) || overrun && u.inet6.stamp != k.inet6.stamp) {
			off := k.Interface
			// An MTU that IPv6 cannot run with would have been told.
			off.IPv6, off.IPv6Disabled = false, !overrun
			changes = append(changes, Change{Interface: off, Carriers: k.carriers})
		}
		if u.inet6.stamp != k.inet6.stamp {
			k.lost = false
		}
		k.link = u.link
		changes = append(changes, Change{Interface: u.Interface, Carriers: u.carriers})
	}
	if full {
		for index := range ls {
			if !seen[index] {
				delete(ls, index)
				changes = append(changes, Change{Interface: Interface{Index: index}, Gone: true})
			}
		}
	}
	if b.moved {
		changes = append(changes, Change{Moved: true})
	}
	return changes
}

// newAlarm opens a timer that tells when the clock is set, which a system does
// when it wakes (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET). It never expires.
func newAlarm() (*os.File, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	var spec unix.ItimerSpec
	spec.Value = unix.NsecToTimespec(math.MaxInt32 * int64(time.Second))
	if err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &spec, nil); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("timerfd_settime", err)
	}
	return os.NewFile(uintptr(fd), "timerfd"), nil
}

// times are three clocks: one that stands still while the machine sleeps, one
// that does not, and the time of day.
type times struct{ monotonic, boot, wall time.Duration }

func clocks() times {
	read := func(id int32) time.Duration {
		var ts unix.Timespec
		if unix.ClockGettime(id, &ts) != nil {
			return 0
		}
		return time.Duration(ts.Nano())
	}
	return times{read(unix.CLOCK_MONOTONIC), read(unix.CLOCK_BOOTTIME), read(unix.CLOCK_REALTIME)}
}

// listen calls wake when the machine has slept. A virtual machine that was
// stopped has not, by its own clocks, but its time of day is set ahead.
func listen(alarm interface{ Read([]byte) (int, error) }, now func() times, wake func()) {
	var asleep, stopped napDetector
	slept := func() bool {
		t := now()
		a, b := asleep.slept(t.monotonic, t.boot), stopped.slept(t.monotonic, t.wall)
		return a || b
	}
	slept()
	buf := make([]byte, 8)
	for {
		_, err := alarm.Read(buf)
		if err != nil && !errors.Is(err, unix.ECANCELED) {
			return // it is closed
		}
		if slept() {
			wake()
		}
	}
}
