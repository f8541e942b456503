package amt

import (
	"net/netip"
	"syscall"

	"golang.org/x/sys/windows"
)

// unreachableErrors are what a socket says after an ICMP message.
var unreachableErrors = []error{windows.WSAECONNRESET, windows.WSAENETRESET}

func askForUnreachable(string, string, syscall.RawConn) error { return nil }

func unreachableRelays(socket) (relays []netip.AddrPort, known bool) { return nil, false }
