//go:build !plan9

package mcast

import (
	"errors"
	"syscall"
)

// The error numbers of the two documented tables. On each system package
// syscall has its own values for the names that Unix gave them.
var (
	eADDRINUSE    error = syscall.EADDRINUSE
	eADDRNOTAVAIL error = syscall.EADDRNOTAVAIL
	eINVAL        error = syscall.EINVAL

	wsaEINVAL        error = syscall.Errno(10022)
	wsaEADDRNOTAVAIL error = syscall.Errno(10049)
)

// errnoOf gives the system's number for an error, and 0 if it has none.
func errnoOf(err error) int {
	var e syscall.Errno
	if errors.As(err, &e) {
		return int(e)
	}
	return 0
}
