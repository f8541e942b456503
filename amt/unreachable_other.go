//go:build !linux && !windows

package amt

import (
	"net/netip"
	"syscall"
)

// unreachableErrors are what a socket says that is not connected: nothing.
var unreachableErrors []error

func askForUnreachable(string, string, syscall.RawConn) error { return nil }

func unreachableRelays(socket) (relays []netip.AddrPort, known bool) { return nil, false }
