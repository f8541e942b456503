package netlab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// namespaceID names the network namespace of this thread, such as "net:[4026531840]".
func namespaceID() (string, error) { return os.Readlink("/proc/thread-self/ns/net") }

// startChild starts the command in namespaces of its own: it is root in them,
// and the user who started it elsewhere.
func startChild(command func() *exec.Cmd) (wait func() error, err error) {
	cmd := command()
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
	if err = cmd.Start(); err == nil {
		return cmd.Wait, nil
	}
	if os.Geteuid() == 0 {
		// A machine without user namespaces: root can do without.
		cmd = command()
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
		if cmd.Start() == nil {
			return cmd.Wait, nil
		}
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOSPC) {
		return nil, fmt.Errorf("no user namespaces for this user (user.max_user_namespaces, "+
			"kernel.apparmor_restrict_unprivileged_userns, a container's seccomp profile): %w", err)
	}
	return nil, err
}

// killWithParent has the kernel end a command with the thread that started it.
func killWithParent(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
}

func threadID() int { return unix.Gettid() }

// newNamespace moves this thread into a new network namespace.
func newNamespace() error {
	return os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWNET))
}

// enterNamespace moves this thread into a network namespace.
func enterNamespace(ns *os.File) error {
	return os.NewSyscallError("setns", unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET))
}

// openPacket opens a socket that gets a copy of every frame of an interface
// (packet(7)). It does not make the interface promiscuous: that would show.
func openPacket(index int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// As much as the machine allows.
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<20)
	// Only from here on, and from one interface only.
	all := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL})
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return os.NewFile(uintptr(fd), "packet"), nil
}

// readPacket reads a frame that is there. ok is false if there is none.
func readPacket(fd uintptr, buf []byte) (n int, outgoing, ok bool) {
	for {
		n, from, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
		if err == unix.EINTR || err == unix.ENETDOWN {
			continue // ENETDOWN is reported once when the interface goes down
		}
		if err != nil {
			return 0, false, false
		}
		ll, _ := from.(*unix.SockaddrLinklayer)
		return n, ll != nil && ll.Pkttype == unix.PACKET_OUTGOING, true
	}
}

// lostPackets returns how many frames the socket had no room for since the
// last call.
func lostPackets(fd uintptr) (int, error) {
	stats, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0, os.NewSyscallError("getsockopt", err)
	}
	return int(stats.Drops), nil
}

// senderTTL is enough for a lab with routers.
const senderTTL = 4

// openSender opens a socket that sends multicast from that address out of
// that interface.
func openSender(index int, from netip.Addr) (*net.UDPConn, error) {
	network, zone := "udp4", ""
	if from.Is6() {
		network = "udp6"
		if from.IsLinkLocalUnicast() {
			zone = fmt.Sprint(index)
		}
	}
	c, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(netip.AddrPortFrom(from.WithZone(zone), 0)))
	if err != nil {
		return nil, err
	}
	rc, err := c.SyscallConn()
	if err == nil {
		if e := rc.Control(func(fd uintptr) {
			if from.Is6() {
				if err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, index); err == nil {
					err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, senderTTL)
				}
				return
			}
			if err = unix.SetsockoptIPMreqn(int(fd), unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(index)}); err == nil {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, senderTTL)
			}
		}); e != nil {
			err = e
		} else {
			err = os.NewSyscallError("setsockopt", err)
		}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}
