package netif

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// openEvents opens a socket that tells of carriers. IFF_RUNNING is none here:
// it means that the interface's resources are allocated.
func openEvents() (*os.File, error) {
	return openSystemSocket(unix.AF_SYSTEM, sysprotoEvent, func(fd int) {
		// Where it fails, other events come too, and are read past.
		filter := [3]uint32{kevVendorApple, kevNetworkClass, kevDLSubclass} // struct kev_request
		//lint:ignore SA1019 x/sys has no wrapper for an ioctl with a struct of one's own.
		unix.Syscall(unix.SYS_IOCTL, uintptr(fd), siocSKEVFILT, uintptr(unsafe.Pointer(&filter)))
	})
}

// carriers: only events tell.
func carriers() map[int]bool { return nil }
