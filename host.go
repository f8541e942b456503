package mcast

import (
	"net"
	"net/netip"
	"strconv"
)

// A host tells about the interfaces and routes of the machine that a socket
// is on. Tests of other systems' request paths bring their own.
type host interface {
	index(name string) (int, error)
	name(index int) string // the index in digits, if there is no name
	exists(index int) bool
	address4(index int) (netip.Addr, bool)      // one of the interface's IPv4 addresses
	route(to netip.Addr) (index int, err error) // where the routing table sends it
	limit(knob string) (n int, ok bool)         // the value of a sysctl
}

// theHost is the machine that the program runs on.
var theHost host = thisMachine{}

type thisMachine struct{}

func (thisMachine) index(name string) (int, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return 0, err
	}
	return ifi.Index, nil
}

func (thisMachine) name(index int) string {
	if ifi, err := net.InterfaceByIndex(index); err == nil {
		return ifi.Name
	}
	return strconv.Itoa(index)
}

func (thisMachine) exists(index int) bool {
	_, err := net.InterfaceByIndex(index)
	return err == nil
}

func (thisMachine) address4(index int) (netip.Addr, bool) {
	ifi, err := net.InterfaceByIndex(index)
	if err != nil {
		return netip.Addr{}, false
	}
	addrs, _ := ifi.Addrs()
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
			return p.Addr(), true
		}
	}
	return netip.Addr{}, false
}

// owner gives the interface that has the address.
func owner(a netip.Addr) (index int, ok bool) {
	ifis, _ := net.Interfaces()
	for _, ifi := range ifis {
		addrs, _ := ifi.Addrs()
		for _, x := range addrs {
			if p, err := netip.ParsePrefix(x.String()); err == nil && p.Addr() == a {
				return ifi.Index, true
			}
		}
	}
	return 0, false
}
