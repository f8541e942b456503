//go:build !linux

package netif

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// host is this machine, by package net.
type host struct{}

func hostOf(syscall.RawConn) Host { return host{} }

func (host) Index(name string) (int, error) {
	list, err := net.Interfaces()
	if err != nil {
		return 0, err
	}
	for _, ifi := range list {
		if ifi.Name == name {
			return ifi.Index, nil
		}
	}
	return 0, fmt.Errorf("%w: %q", ErrNotFound, name)
}

func (host) Name(index int) (string, error) {
	list, err := net.Interfaces()
	if err != nil {
		return "", err
	}
	for _, ifi := range list {
		if ifi.Index == index {
			return ifi.Name, nil
		}
	}
	return "", fmt.Errorf("%w: index %d", ErrNotFound, index)
}

func (host) Interfaces() ([]Interface, error) {
	list, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	carrier := carriers()
	all := make([]Interface, 0, len(list))
	for _, ifi := range list {
		has, told := carrier[ifi.Index]
		all = append(all, Interface{
			Index:     ifi.Index,
			Name:      ifi.Name,
			Up:        ifi.Flags&net.FlagUp != 0,
			Carrier:   has || !told,
			Multicast: ifi.Flags&net.FlagMulticast != 0,
			Loopback:  ifi.Flags&net.FlagLoopback != 0,
			IPv6:      true,
		})
	}
	sortByIndex(all)
	return all, nil
}

func (host) Address4(index int) (netip.Addr, bool) {
	for _, a := range addresses() {
		if a.index == index && a.addr.Is4() {
			return a.addr, true
		}
	}
	return netip.Addr{}, false
}

func (h host) Route(to netip.Addr) (int, error) {
	if to.Zone() != "" {
		return zoneIndex(h, to.Zone())
	}
	if !to.IsValid() {
		return 0, errors.New("route to no address")
	}
	to = to.Unmap()
	own := addresses()
	if index := owner(own, to); index != 0 {
		return index, nil
	}
	local, err := sourceFor(to)
	if err != nil {
		return 0, err
	}
	if local.Zone() != "" {
		// Package net may have the name from before the interface got another.
		if index, err := zoneIndex(h, local.Zone()); err == nil {
			return index, nil
		}
	}
	if index := owner(own, local.WithZone("")); index != 0 {
		return index, nil
	}
	return 0, fmt.Errorf("route to %v: no interface has the address %v", to, local)
}

// sourceFor gives the address that datagrams to another one would carry: that
// of a UDP socket which is connected there, and sends nothing.
func sourceFor(to netip.Addr) (netip.Addr, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	a, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok {
		return netip.Addr{}, errors.New("no local address")
	}
	return a.AddrPort().Addr().Unmap(), nil
}

// DefaultRoutes asks for the route to an address that only a default route
// leads to: of a root name server, to which nothing is sent.
func (h host) DefaultRoutes(ipv6 bool) []int {
	to := netip.AddrFrom4([4]byte{198, 41, 0, 4})
	if ipv6 {
		to = netip.MustParseAddr("2001:503:ba3e::2:30")
	}
	if index, err := h.Route(to); err == nil {
		return []int{index}
	}
	return nil
}

func (host) Limit(string) (int, bool) { return 0, false }

func (host) Namespace() uint64 { return 0 }

func (host) Watch() (Source, error) { return watch() }

func addresses() (all []ownAddress) {
	list, _ := net.Interfaces()
	for _, ifi := range list {
		addrs, _ := ifi.Addrs()
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				if addr, ok := netip.AddrFromSlice(n.IP); ok {
					all = append(all, ownAddress{addr.Unmap(), ifi.Index, ifi.Flags&net.FlagLoopback != 0})
				}
			}
		}
	}
	return all
}
