package mcast

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// netlinkLinks tells of links by rtnetlink(7). News of addresses is news of no
// link, but a reason to look at what is pending.
type netlinkLinks struct {
	f     *os.File
	known map[int]bool
	buf   []byte
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
	ne := binary.NativeEndian
	b := ne.AppendUint32(nil, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg)
	b = ne.AppendUint16(b, unix.RTM_GETLINK)
	b = ne.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	b = append(b, make([]byte, 8+unix.SizeofIfInfomsg)...)
	_, err := s.f.Write(b)
	return err
}

func (s *netlinkLinks) read() ([]linkChange, error) {
	// At first, and after the kernel had to drop news (ENOBUFS), all links come,
	// in several messages.
	full := len(s.known) == 0
	var all []linkChange
	for {
		n, err := s.f.Read(s.buf)
		if errors.Is(err, unix.ENOBUFS) {
			full, all = true, nil
			if err := s.dump(); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		changes, done, err := parseLinks(s.buf[:n])
		if err != nil {
			return nil, err
		}
		all = append(all, changes...)
		if full && !done {
			continue
		}
		if full {
			for i := range s.known {
				if !slices.ContainsFunc(all, func(c linkChange) bool { return c.index == i }) {
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

// parseLinks reads netlink messages; done says that a dump is complete.
func parseLinks(b []byte) (changes []linkChange, done bool, err error) {
	ms, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return nil, false, err
	}
	for _, m := range ms {
		switch m.Header.Type {
		case unix.NLMSG_DONE:
			done = true
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			// struct ifinfomsg: family, type, index, flags, change. Bridges use
			// the same messages, with their family, for their ports.
			if len(m.Data) < unix.SizeofIfInfomsg || m.Data[0] != unix.AF_UNSPEC {
				continue
			}
			c := linkChange{gone: m.Header.Type == unix.RTM_DELLINK}
			c.index = int(int32(binary.NativeEndian.Uint32(m.Data[4:])))
			flags := binary.NativeEndian.Uint32(m.Data[8:])
			c.up, c.running = flags&unix.IFF_UP != 0, flags&unix.IFF_LOWER_UP != 0
			attrs, err := syscall.ParseNetlinkRouteAttr(&m)
			if err != nil {
				return nil, false, err
			}
			for _, a := range attrs {
				switch {
				case a.Attr.Type == unix.IFLA_IFNAME:
					c.name = string(bytes.TrimRight(a.Value, "\x00"))
				case a.Attr.Type == unix.IFLA_CARRIER_CHANGES && len(a.Value) >= 4:
					c.changes = int(binary.NativeEndian.Uint32(a.Value))
				}
			}
			changes = append(changes, c)
		}
	}
	return changes, done, nil
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
	}
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
