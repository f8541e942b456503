//go:build !linux

package mcast

import "net/netip"

func (thisMachine) limit(string) (int, bool) { return 0, false }

func (thisMachine) route(to netip.Addr) (int, error) {
	if i, ok := owner(to); ok {
		return i, nil
	}
	return routeByDial(to)
}
