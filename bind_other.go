//go:build !unix && !windows

package mcast

import (
	"net"
	"syscall"
)

const bindsGroups = false

func open(at endpoint) (*net.UDPConn, error) {
	return net.ListenUDP(at.network(), net.UDPAddrFromAddrPort(at.addrPort(bindsGroups)))
}

func dualStack(syscall.RawConn) bool { return false }

func readBuffer(*net.UDPConn) int { return 0 }
