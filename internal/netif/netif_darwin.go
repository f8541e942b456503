package netif

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// openEvents opens a socket that tells of carriers. IFF_RUNNING is none here:
// it means that the interface's resources are allocated.
func openEvents() (*os.File, error) {
	return openSystemSocket(unix.AF_SYSTEM, sysprotoEvent, func(fd int) error {
		filter := [3]uint32{kevVendorApple, kevNetworkClass, kevDLSubclass} // struct kev_request
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), siocSKEVFILT, uintptr(unsafe.Pointer(&filter)))
		if errno != 0 {
			return os.NewSyscallError("SIOCSKEVFILT", errno)
		}
		return nil
	})
}

// carriers: only events tell.
func carriers() map[int]bool { return nil }
