//go:build !unix && !windows

package mcast

import (
	"context"
	"errors"
	"net"
	"syscall"
)

// These systems have words instead of error numbers, or no sockets.
var (
	eADDRINUSE    = errors.New("address in use")
	eADDRNOTAVAIL = errors.New("address not available")
	eINVAL        = errors.New("invalid argument")

	wsaEINVAL        = errors.New("WSAEINVAL")
	wsaEADDRNOTAVAIL = errors.New("WSAEADDRNOTAVAIL")
)

func errnoOf(error) int { return 0 }

const bindsGroups = false

// A control is Config.Control.
type control = func(network, address string, c syscall.RawConn) error

func open(at endpoint, control control) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: control}
	c, err := lc.ListenPacket(context.Background(), at.network(), at.addrPort(bindsGroups).String())
	if err != nil {
		return nil, err
	}
	udp, ok := c.(*net.UDPConn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return udp, nil
}

func familyOfSocket(_ syscall.RawConn, six bool) (ipv6, both bool) { return six, false }

func readBuffer(*net.UDPConn) int { return 0 }

// hasDatagram reports whether a socket has something to read: the system said so
// if it was asked before.
func hasDatagram(_ uintptr, asked bool) bool { return asked }
