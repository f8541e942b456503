package amt

import (
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

var unreachableErrors = []error{unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EPROTO, unix.EACCES}

// askForUnreachable has the system tell what ICMP says of datagrams that were
// sent, although the socket is not connected (IP_RECVERR, ip(7)).
func askForUnreachable(network, _ string, c syscall.RawConn) error {
	level, name := unix.IPPROTO_IP, unix.IP_RECVERR
	if network == "udp6" {
		level, name = unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	}
	var err error
	if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, name, 1) }); e != nil {
		return e
	}
	return os.NewSyscallError("setsockopt", err)
}

// unreachableRelays returns where the datagrams were sent to that ICMP told of,
// and whether the system says that.
func unreachableRelays(c socket) (relays []netip.AddrPort, known bool) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return nil, false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil, false
	}
	raw.Control(func(fd uintptr) {
		var b [1]byte
		for {
			_, _, _, to, err := unix.Recvmsg(int(fd), b[:], nil, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			if err != nil {
				return
			}
			switch to := to.(type) {
			case *unix.SockaddrInet4:
				relays = append(relays, netip.AddrPortFrom(netip.AddrFrom4(to.Addr), uint16(to.Port)))
			case *unix.SockaddrInet6:
				relays = append(relays, netip.AddrPortFrom(netip.AddrFrom16(to.Addr), uint16(to.Port)))
			}
		}
	})
	return relays, true
}
