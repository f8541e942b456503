package mcast

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// limit reads a sysctl.
func (thisMachine) limit(knob string) (int, bool) {
	b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(knob, ".", "/"))
	if err != nil {
		return 0, false
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	return n, err == nil
}

// route asks the routing table (RTM_GETROUTE, rtnetlink(7)). An address of
// this machine is routed to lo; what it sends to a group leaves by, and comes
// back from, the interface that has the address.
func (thisMachine) route(to netip.Addr) (int, error) {
	answer, err := getRoute(to)
	if err != nil {
		return 0, err
	}
	index := 0
	for _, m := range answer {
		if m.Header.Type != unix.RTM_NEWROUTE || len(m.Data) < unix.SizeofRtMsg {
			continue
		}
		if m.Data[7] == unix.RTN_LOCAL {
			if i, ok := owner(to); ok {
				return i, nil
			}
		}
		attrs, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return 0, err
		}
		for _, a := range attrs {
			if a.Attr.Type == unix.RTA_OIF && len(a.Value) >= 4 {
				index = int(binary.NativeEndian.Uint32(a.Value))
			}
		}
	}
	if index == 0 {
		return 0, errors.New("the route names no interface")
	}
	return index, nil
}

func getRoute(to netip.Addr) ([]syscall.NetlinkMessage, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, routeRequest(to), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("sendto", err)
	}
	b := make([]byte, 8<<10)
	n, _, err := unix.Recvfrom(fd, b, 0)
	if err != nil {
		return nil, os.NewSyscallError("recvfrom", err)
	}
	ms, err := syscall.ParseNetlinkMessage(b[:n])
	if err != nil {
		return nil, err
	}
	for _, m := range ms {
		if m.Header.Type != unix.NLMSG_ERROR || len(m.Data) < 4 {
			continue
		}
		if e := int32(binary.NativeEndian.Uint32(m.Data)); e != 0 {
			return nil, fmt.Errorf("route to %v: %w", to, syscall.Errno(-e))
		}
	}
	return ms, nil
}

// routeRequest is struct nlmsghdr, struct rtmsg, and the attribute RTA_DST.
func routeRequest(to netip.Addr) []byte {
	family, dst := byte(unix.AF_INET), to.AsSlice()
	if to.Is6() {
		family = unix.AF_INET6
	}
	ne := binary.NativeEndian
	length := unix.SizeofNlMsghdr + unix.SizeofRtMsg + unix.SizeofRtAttr + len(dst)
	b := ne.AppendUint32(nil, uint32(length))
	b = ne.AppendUint16(b, unix.RTM_GETROUTE)
	b = ne.AppendUint16(b, unix.NLM_F_REQUEST)
	b = ne.AppendUint32(b, 1) // sequence
	b = ne.AppendUint32(b, 0) // port
	b = append(b, family, byte(to.BitLen()), 0, 0, 0, 0, 0, 0)
	b = ne.AppendUint32(b, 0) // flags
	b = ne.AppendUint16(b, uint16(unix.SizeofRtAttr+len(dst)))
	b = ne.AppendUint16(b, unix.RTA_DST)
	return append(b, dst...)
}
