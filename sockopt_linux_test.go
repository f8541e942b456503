package mcast

import (
	"encoding/binary"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLinuxNumbers compares with the kernel's headers, as golang.org/x/sys
// has them for each architecture.
func TestLinuxNumbers(t *testing.T) {
	p := hostPlatform()
	f := p.control
	for _, tt := range []struct {
		name      string
		got, want int
	}{
		{"MCAST_JOIN_GROUP", p.mcast[OpJoin], unix.MCAST_JOIN_GROUP},
		{"MCAST_JOIN_SOURCE_GROUP", p.mcast[OpJoinSource], unix.MCAST_JOIN_SOURCE_GROUP},
		{"MCAST_BLOCK_SOURCE", p.mcast[OpBlock], unix.MCAST_BLOCK_SOURCE},
		{"MCAST_UNBLOCK_SOURCE", p.mcast[OpUnblock], unix.MCAST_UNBLOCK_SOURCE},
		{"MCAST_LEAVE_GROUP", p.mcast[OpLeave], unix.MCAST_LEAVE_GROUP},
		{"MCAST_LEAVE_SOURCE_GROUP", p.mcast[OpLeaveSource], unix.MCAST_LEAVE_SOURCE_GROUP},
		{"IP_ADD_MEMBERSHIP", p.ip[OpJoin], unix.IP_ADD_MEMBERSHIP},
		{"IP_ADD_SOURCE_MEMBERSHIP", p.ip[OpJoinSource], unix.IP_ADD_SOURCE_MEMBERSHIP},
		{"IP_BLOCK_SOURCE", p.ip[OpBlock], unix.IP_BLOCK_SOURCE},
		{"IP_UNBLOCK_SOURCE", p.ip[OpUnblock], unix.IP_UNBLOCK_SOURCE},
		{"IP_DROP_MEMBERSHIP", p.ip[OpLeave], unix.IP_DROP_MEMBERSHIP},
		{"IP_DROP_SOURCE_MEMBERSHIP", p.ip[OpLeaveSource], unix.IP_DROP_SOURCE_MEMBERSHIP},
		{"IPV6_JOIN_GROUP", p.ipv6[OpJoin], unix.IPV6_JOIN_GROUP},
		{"IPV6_LEAVE_GROUP", p.ipv6[OpLeave], unix.IPV6_LEAVE_GROUP},
		{"MCAST_MSFILTER", p.fullIP, unix.MCAST_MSFILTER},
		{"MCAST_MSFILTER", p.fullIPv6, unix.MCAST_MSFILTER},
		{"IP_MSFILTER", p.fullOldIP, unix.IP_MSFILTER},
		{"MCAST_INCLUDE", int(p.include), unix.MCAST_INCLUDE},
		{"MCAST_EXCLUDE", int(p.exclude), unix.MCAST_EXCLUDE},
		{"IP_MULTICAST_ALL", p.allIP, unix.IP_MULTICAST_ALL},
		{"IPV6_MULTICAST_ALL", p.allIPv6, unix.IPV6_MULTICAST_ALL},
		{"IP_MULTICAST_IF", p.multicastIf, unix.IP_MULTICAST_IF},
		{"IPV6_MULTICAST_IF", p.multicastIf6, unix.IPV6_MULTICAST_IF},
		{"AF_INET6", p.inet6, unix.AF_INET6},
		{"IPPROTO_IP", levelIP, unix.IPPROTO_IP},
		{"IPPROTO_IPV6", levelIPv6, unix.IPPROTO_IPV6},
		{"struct ip_mreqn", len(p.mreq(change{op: OpJoin, addr: goldenPlaces[false].addr}, goldenAddress)), unix.SizeofIPMreqn},
		{"struct ipv6_mreq", len(p.mreq6(change{op: OpJoin, addr: goldenPlaces[true].addr})), unix.SizeofIPv6Mreq},
		{"IP_PKTINFO", f.PacketInfo(false)[0].Name, unix.IP_PKTINFO},
		{"IPV6_RECVPKTINFO", f.PacketInfo(true)[0].Name, unix.IPV6_RECVPKTINFO},
		{"IP_RECVTTL", f.HopLimit(false)[0].Name, unix.IP_RECVTTL},
		{"IPV6_RECVHOPLIMIT", f.HopLimit(true)[0].Name, unix.IPV6_RECVHOPLIMIT},
		{"SOL_SOCKET", f.SocketLevel, unix.SOL_SOCKET},
		{"SOL_SOCKET of times", f.Timestamp()[0].Level, unix.SOL_SOCKET},
		{"SO_TIMESTAMPNS_NEW", f.Timestamp()[0].Name, unix.SO_TIMESTAMPNS_NEW},
		{"SO_TIMESTAMPNS", f.Timestamp()[1].Name, unix.SO_TIMESTAMPNS},
		{"UDP_GRO", f.Coalesce()[0].Name, unix.UDP_GRO},
	} {
		if tt.got != tt.want {
			t.Errorf("%s is %d, want %d", tt.name, tt.got, tt.want)
		}
	}
	if p.word != nativeWord || p.order.Uint32([]byte{1, 2, 3, 4}) != binary.NativeEndian.Uint32([]byte{1, 2, 3, 4}) {
		t.Errorf("%d bytes a word, order %v", p.word, p.order)
	}
}

// TestLinuxErrnos: the numbers differ between architectures (MIPS).
func TestLinuxErrnos(t *testing.T) {
	p := hostPlatform()
	for _, tt := range []struct {
		name string
		list []int
		want []syscall.Errno
	}{
		{"noOption", p.noOption, []syscall.Errno{unix.ENOPROTOOPT, unix.EOPNOTSUPP}},
		{"noDevice", p.noDevice, []syscall.Errno{unix.ENODEV, unix.ESRCH}},
		{"noMember", p.noMember, []syscall.Errno{unix.EADDRNOTAVAIL, unix.EINVAL}},
		{"isMember", p.isMember, []syscall.Errno{unix.EADDRINUSE}},
		{"limits", p.limits, []syscall.Errno{unix.ENOBUFS, unix.ENOMEM}},
	} {
		for _, e := range tt.want {
			if !slices.Contains(tt.list, int(e)) {
				t.Errorf("%s is %v, which has no %d (%v)", tt.name, tt.list, int(e), e)
			}
		}
		if len(tt.list) != len(tt.want) {
			t.Errorf("%s is %v, want %d numbers", tt.name, tt.list, len(tt.want))
		}
	}
}
