package main

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// rtnetlink asks the kernel one question (rtnetlink(7)) and returns the
// answers of that kind.
func rtnetlink(kind, answer uint16, body []byte) ([]syscall.NetlinkMessage, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	ne := binary.NativeEndian
	b := ne.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	b = ne.AppendUint16(b, kind)
	b = ne.AppendUint16(b, unix.NLM_F_REQUEST)
	b = ne.AppendUint32(b, 1) // sequence
	b = ne.AppendUint32(b, 0) // port
	if err := unix.Sendto(fd, append(b, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("sendto", err)
	}
	in := make([]byte, 64<<10)
	n, _, err := unix.Recvfrom(fd, in, 0)
	if err != nil {
		return nil, os.NewSyscallError("recvfrom", err)
	}
	all, err := syscall.ParseNetlinkMessage(in[:n])
	if err != nil {
		return nil, err
	}
	var ms []syscall.NetlinkMessage
	for _, m := range all {
		switch {
		case m.Header.Type == unix.NLMSG_ERROR && len(m.Data) >= 4:
			if e := int32(ne.Uint32(m.Data)); e != 0 {
				return nil, syscall.Errno(-e)
			}
		case m.Header.Type == answer:
			ms = append(ms, m)
		}
	}
	return ms, nil
}

func attr(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%unix.RTA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// attrs reads attributes one after the other.
func attrs(b []byte) map[uint16][]byte {
	as := map[uint16][]byte{}
	for len(b) >= unix.SizeofRtAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			break
		}
		as[binary.NativeEndian.Uint16(b[2:])&^unix.NLA_F_NESTED] = b[unix.SizeofRtAttr:n]
		b = b[min(len(b), (n+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1)):]
	}
	return as
}

func family(a netip.Addr) byte {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// lookUp finds the route to an address: the interfaces it leads to, several of
// a multipath route, and a gateway. The table is that of a VRF, if one is given.
func lookUp(to netip.Addr, vrf int) (indexes []int, gateway netip.Addr, local bool, err error) {
	for _, flags := range []uint32{unix.RTM_F_FIB_MATCH, 0} { // Linux 4.13, and all
		b := []byte{family(to), byte(to.BitLen()), 0, 0, 0, 0, 0, 0}
		b = binary.NativeEndian.AppendUint32(b, flags)
		b = attr(b, unix.RTA_DST, to.AsSlice())
		if vrf != 0 {
			b = attr(b, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(vrf)))
		}
		var ms []syscall.NetlinkMessage
		if ms, err = rtnetlink(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, b); err != nil {
			continue
		}
		for _, m := range ms {
			if len(m.Data) < unix.SizeofRtMsg {
				continue
			}
			as := attrs(m.Data[unix.SizeofRtMsg:])
			local = local || m.Data[7] == unix.RTN_LOCAL
			if v := as[unix.RTA_OIF]; len(v) >= 4 {
				indexes = append(indexes, int(binary.NativeEndian.Uint32(v)))
			}
			gateway, _ = netip.AddrFromSlice(as[unix.RTA_GATEWAY])
			// struct rtnexthop: length, flags, hops, index, and attributes
			for hops := as[unix.RTA_MULTIPATH]; len(hops) >= 8; {
				indexes = append(indexes, int(binary.NativeEndian.Uint32(hops[4:])))
				n := (int(binary.NativeEndian.Uint16(hops)) + 3) &^ 3
				if n < 8 || n > len(hops) {
					break
				}
				hops = hops[n:]
			}
		}
		if len(indexes) > 0 {
			return indexes, gateway, local, nil
		}
	}
	if err == nil {
		err = errors.New("the route names no interface")
	}
	return nil, netip.Addr{}, false, err
}

// refused asks the kernel what it would do with a datagram from the source to
// the group, which is joined, that came in by the interface. The answer of the
// reverse path filter is EXDEV, or EINVAL on newer kernels, which is also that
// of other checks of the source. IPv4 has one.
func refused(source, group netip.Addr, index int) bool {
	b := []byte{unix.AF_INET, 32, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	b = attr(b, unix.RTA_DST, group.AsSlice())
	b = attr(b, unix.RTA_SRC, source.AsSlice())
	b = attr(b, unix.RTA_IIF, binary.NativeEndian.AppendUint32(nil, uint32(index)))
	_, err := rtnetlink(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, b)
	return errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL)
}

// readLink finds out what kind of interface it is, and what it is a port of.
func readLink(l *link) {
	as := linkAttrs(l.Index)
	info := attrs(as[unix.IFLA_LINKINFO])
	l.Kind, l.Slave = cString(info[unix.IFLA_INFO_KIND]), cString(info[unix.IFLA_INFO_SLAVE_KIND])
	if v := attrs(info[unix.IFLA_INFO_DATA])[iflaIPVLANMode]; l.Kind == "ipvlan" && len(v) >= 2 {
		if mode := int(binary.NativeEndian.Uint16(v)); mode < len(ipvlanModes) {
			l.Mode = ipvlanModes[mode]
		}
	}
	if v := as[unix.IFLA_MASTER]; len(v) >= 4 {
		l.Master = interfaceName(int(binary.NativeEndian.Uint32(v)))
	}
}

// From <linux/if_link.h>.
const iflaIPVLANMode = 1

var ipvlanModes = [...]string{"l2", "l3", "l3s"}

func linkAttrs(index int) map[uint16][]byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	ms, err := rtnetlink(unix.RTM_GETLINK, unix.RTM_NEWLINK, b)
	if err != nil || len(ms) == 0 || len(ms[0].Data) < unix.SizeofIfInfomsg {
		return nil
	}
	return attrs(ms[0].Data[unix.SizeofIfInfomsg:])
}

func cString(b []byte) string { return unix.ByteSliceToString(b) }

func interfaceName(index int) string {
	if ifi, err := net.InterfaceByIndex(index); err == nil {
		return ifi.Name
	}
	return strconv.Itoa(index)
}
