//go:build !linux

package mcast

import (
	"fmt"
	"net"
	"net/netip"
)

func (thisMachine) limit(string) (int, bool) { return 0, false }

func (thisMachine) route(to netip.Addr) (int, error) {
	if i, ok := owner(to); ok {
		return i, nil
	}
	return routeByDial(to)
}

// routeByDial finds the interface on systems that have no better way: a UDP
// socket connected to an address, which sends nothing, gets the local address
// that datagrams to there would carry.
func routeByDial(to netip.Addr) (int, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
	if err != nil {
		return 0, err
	}
	defer c.Close()
	local := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	if i, ok := owner(local.WithZone("")); ok {
		return i, nil
	}
	return 0, fmt.Errorf("no interface has the address %v", local)
}
