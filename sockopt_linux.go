package mcast

import (
	"encoding/binary"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

func hostPlatform() *platform {
	p := linuxPlatform(nativeWord, binary.NativeEndian)
	// MIPS has numbers of its own.
	p.socketLevel = unix.SOL_SOCKET
	p.noOption = []int{int(unix.ENOPROTOOPT), int(unix.EOPNOTSUPP)}
	p.noMember = []int{int(unix.EADDRNOTAVAIL), int(unix.EINVAL)}
	p.limits = []int{int(unix.ENOBUFS), int(unix.ENOMEM)}
	return p
}

func setsockopt(fd, level, name int, value []byte) error {
	_, _, e := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(unsafe.Pointer(unsafe.SliceData(value))), uintptr(len(value)), 0)
	if e != 0 {
		return e
	}
	return nil
}

func getsockopt(fd, level, name int, value []byte) (int, error) {
	return plainGetsockopt(unix.SYS_GETSOCKOPT, fd, level, name, value)
}

// socketFor makes a UDP socket that does not block.
func socketFor(family int) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	return fd, os.NewSyscallError("socket", err)
}
