//go:build linux && cgo

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ownNamespace says that the network is the program's own: no datagram and no
// report of a membership leaves it.
var ownNamespace bool

// inNamespace is set in the environment of the program that runs in one.
const inNamespace = "MCAST_BENCH_NAMESPACE"

// enterNamespace runs the program again in a network namespace of its own, and
// ends with it. There it makes ready the loopback interface and returns. Where
// there can be no such namespace it returns too; IPv4 goes by the loopback
// interface then as it is.
func enterNamespace() error {
	if os.Getenv(inNamespace) != "" {
		if err := setUpLoopback(); err != nil {
			return fmt.Errorf("the namespace's loopback interface: %w", err)
		}
		ownNamespace = true
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// A user who may not make one may do so as root of a user namespace; root
	// stays as it is, since the size of buffers depends on that.
	for _, flags := range []uintptr{unix.CLONE_NEWNET, unix.CLONE_NEWNET | unix.CLONE_NEWUSER} {
		cmd := exec.Command(self, os.Args[1:]...)
		cmd.Env = append(os.Environ(), inNamespace+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: unix.SIGKILL}
		if flags&unix.CLONE_NEWUSER != 0 {
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
		}
		err := cmd.Run()
		var exit *exec.ExitError
		if err == nil || errors.As(err, &exit) {
			os.Exit(cmd.ProcessState.ExitCode())
		}
	}
	return nil
}

// setUpLoopback takes the loopback interface up, and adds a route to IPv6
// groups by it.
func setUpLoopback() error {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	up, err := unix.NewIfreq(lo.Name)
	if err != nil {
		return err
	}
	up.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, up); err != nil {
		return os.NewSyscallError("ioctl SIOCSIFFLAGS", err)
	}
	// struct in6_rtmsg of <linux/ipv6_route.h>
	route := struct {
		dst, src, gateway [16]byte
		kind              uint32
		dstLen, srcLen    uint16
		metric            uint32
		info              uint
		flags             uint32
		index             int32
	}{
		// Another kind of route by this interface would refuse datagrams.
		kind: unix.RTN_LOCAL, flags: unix.RTF_UP | unix.RTF_LOCAL,
		dst: netip.MustParseAddr("ff00::").As16(), dstLen: 8, index: int32(lo.Index),
	}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCADDRT, uintptr(unsafe.Pointer(&route))); e != 0 {
		return os.NewSyscallError("ioctl SIOCADDRT", e)
	}
	return nil
}
