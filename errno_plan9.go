package mcast

import "syscall"

// Plan 9 has words instead of error numbers.
var (
	eADDRINUSE    error = syscall.NewError("address in use")
	eADDRNOTAVAIL error = syscall.NewError("address not available")
	eINVAL        error = syscall.EINVAL

	wsaEINVAL        error = syscall.NewError("WSAEINVAL")
	wsaEADDRNOTAVAIL error = syscall.NewError("WSAEADDRNOTAVAIL")
)

func errnoOf(error) int { return 0 }
