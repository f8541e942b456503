package mcast

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// netlinkLinks tells of links by rtnetlink(7). News of addresses is news of no
// link, but a reason to look at what is pending.
type netlinkLinks struct {
	f       *os.File
	known   map[int]bool
	buf     []byte
	dumping bool
	number  uint32 // of the last dump asked for
}

func openLinks() (linkSource, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	s := &netlinkLinks{f: os.NewFile(uintptr(fd), "netlink"), known: make(map[int]bool), buf: make([]byte, 64<<10)}
	err = unix.Bind(fd, &unix.SockaddrNetlink{
		Family: unix.AF_NETLINK,
		Groups: unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR,
	})
	if err == nil {
		err = s.dump()
	}
	if err != nil {
		s.f.Close()
		return nil, err
	}
	return s, nil
}

func (s *netlinkLinks) close() { s.f.Close() }

// dump asks for all links.
func (s *netlinkLinks) dump() error {
	s.dumping = true
	s.number++
	ne := binary.NativeEndian
	b := ne.AppendUint32(nil, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg)
	b = ne.AppendUint16(b, unix.RTM_GETLINK)
	b = ne.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	b = ne.AppendUint32(b, s.number)
	b = append(b, make([]byte, 4+unix.SizeofIfInfomsg)...)
	_, err := s.f.Write(b)
	return err
}

// read returns news. At first, and after the kernel had to drop news (ENOBUFS),
// all links come, in several messages.
func (s *netlinkLinks) read() ([]linkChange, error) {
	var all []linkChange
	seen := make(map[int]bool) // since the dump was asked for
	full, again, begun := s.dumping, false, false
	for {
		n, err := s.f.Read(s.buf)
		if errors.Is(err, unix.ENOBUFS) {
			full = true
			if s.dumping {
				again = true // the kernel does one at a time
			} else if err := s.dump(); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		news := parseLinks(s.buf[:n], s.number)
		if news.own && !begun {
			// What came before the dump is older than it: news of links that
			// are gone since may be among it, and that they are may be lost.
			begun = true
			for i := range seen {
				s.known[i] = true
			}
			clear(seen)
		}
		all = append(all, news.changes...)
		for _, c := range news.changes {
			seen[c.index] = true
		}
		again = again || news.interrupted
		switch {
		case news.err != nil:
			return nil, news.err
		case full && !news.done:
			continue
		case full && again:
			again, begun = false, false
			if err := s.dump(); err != nil {
				return nil, err
			}
			continue
		case full:
			s.dumping = false
			for i := range s.known {
				if !seen[i] {
					all = append(all, linkChange{link: link{index: i}, gone: true})
				}
			}
		}
		for _, c := range all {
			if c.gone {
				delete(s.known, c.index)
			} else {
				s.known[c.index] = true
			}
		}
		return all, nil
	}
}

// linkNews is what a netlink message says.
type linkNews struct {
	changes     []linkChange
	own         bool // some of it is of the dump,
	done        bool // which is complete,
	interrupted bool // but links changed in the meantime,
	err         error
}

// parseLinks reads netlink messages. What makes no sense, it leaves out.
func parseLinks(b []byte, dump uint32) (news linkNews) {
	ms, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return news
	}
	for _, m := range ms {
		own := m.Header.Seq == dump
		news.own = news.own || own
		if own && m.Header.Flags&unix.NLM_F_DUMP_INTR != 0 {
			news.interrupted = true
		}
		switch m.Header.Type {
		case unix.NLMSG_DONE:
			news.done = news.done || m.Header.Seq == dump
		case unix.NLMSG_ERROR:
			if len(m.Data) >= 4 && m.Header.Seq == dump {
				if e := int32(binary.NativeEndian.Uint32(m.Data)); e < 0 {
					news.err = os.NewSyscallError("netlink", syscall.Errno(-e))
				}
			}
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			if c, ok := parseLink(m); ok {
				news.changes = append(news.changes, c)
			}
		}
	}
	return news
}

// parseLink reads struct ifinfomsg, family, type, index, flags, change, and the
// attributes behind it. Bridges use the same messages, with their family, for
// their ports.
func parseLink(m syscall.NetlinkMessage) (c linkChange, ok bool) {
	if len(m.Data) < unix.SizeofIfInfomsg || m.Data[0] != unix.AF_UNSPEC {
		return c, false
	}
	c.gone = m.Header.Type == unix.RTM_DELLINK
	c.index = int(int32(binary.NativeEndian.Uint32(m.Data[4:])))
	flags := binary.NativeEndian.Uint32(m.Data[8:])
	c.up, c.running = flags&unix.IFF_UP != 0, flags&unix.IFF_LOWER_UP != 0
	// struct rtattr: length, type, then the value, padded to 4 bytes.
	for b := m.Data[unix.SizeofIfInfomsg:]; len(b) >= unix.SizeofRtAttr; {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			return c, false
		}
		value := b[unix.SizeofRtAttr:n]
		switch binary.NativeEndian.Uint16(b[2:]) {
		case unix.IFLA_IFNAME:
			c.name = string(bytes.TrimRight(value, "\x00"))
		case unix.IFLA_CARRIER_CHANGES:
			if len(value) >= 4 {
				c.changes = int(binary.NativeEndian.Uint32(value))
			}
		}
		b = b[min(len(b), (n+3)&^3):]
	}
	return c, c.index > 0 && (c.gone || c.name != "")
}

// currentLinks is what a source tells first.
func currentLinks() (*links, error) {
	s, err := openLinks()
	if err != nil {
		return nil, err
	}
	defer s.close()
	changes, err := s.read()
	if err != nil {
		return nil, err
	}
	l := new(links)
	l.apply(changes, time.Now())
	l.settle()
	return l, nil
}

// guard joins what others have joined on an interface whose index a stale
// membership of ours has, on a socket that stays open: when the stale one is
// left, the kernel takes it from the count of this one and not of theirs.
func guard(m Membership) {
	if !joinedByAnyone(m.Group) {
		return
	}
	family := unix.AF_INET
	if m.Group.Addr.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	k := hostKernel(&fdSocket{fd: fd})
	m.Pending = false
	if _, err := k.setFull(Membership{Group: m.Group}, m, 0); err != nil {
		unix.Close(fd)
		return
	}
	guards.Lock()
	defer guards.Unlock()
	guards.open = append(guards.open, openGuard{fd, m.Group.Interface})
}

// guards are the sockets of guard. They can be closed when their interface is
// gone in its turn.
var guards struct {
	sync.Mutex
	open []openGuard
}

type openGuard struct{ fd, index int }

// closeGuards closes guards on interfaces that are gone.
func closeGuards(gone []int) {
	guards.Lock()
	defer guards.Unlock()
	guards.open = slices.DeleteFunc(guards.open, func(g openGuard) bool {
		if !slices.Contains(gone, g.index) || theHost.exists(g.index) {
			return false
		}
		unix.Close(g.fd)
		return true
	})
}

// joinedByAnyone reports whether the kernel has a group on an interface
// (/proc/net/igmp, /proc/net/igmp6).
func joinedByAnyone(g Group) bool {
	if g.Addr.Is6() {
		b, _ := os.ReadFile("/proc/net/igmp6")
		for line := range strings.Lines(string(b)) {
			// index, device, group, users, …
			f := strings.Fields(line)
			if len(f) > 2 && f[0] == fmt.Sprint(g.Interface) && f[2] == fmt.Sprintf("%x", g.Addr.As16()) {
				return true
			}
		}
		return false
	}
	b, _ := os.ReadFile("/proc/net/igmp")
	a := g.Addr.As4()
	want := fmt.Sprintf("%08X", binary.NativeEndian.Uint32(a[:]))
	index := ""
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case line[0] != '\t' && line[0] != ' ': // index, device, …
			index = f[0]
		case index == fmt.Sprint(g.Interface) && f[0] == want:
			return true
		}
	}
	return false
}
