//go:build !linux && !darwin && !freebsd && !solaris && !windows

package mcast

import (
	"errors"
	"net"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

func hostPlatform() *platform { return &platform{name: "this system"} }

// osSocket joins and leaves groups where golang.org/x/net can; there is no
// portable way to ask for more.
type osSocket struct{ c *net.UDPConn }

func newSocket(c *net.UDPConn) (socket, error) { return osSocket{c}, nil }

func (s osSocket) setsockopt(int, int, []byte) error        { return errors.ErrUnsupported }
func (s osSocket) getsockopt(int, int, []byte) (int, error) { return 0, errors.ErrUnsupported }
func (s osSocket) ioctl(uint32, []byte, []byte) (int, error) {
	return 0, errors.ErrUnsupported
}

func (s osSocket) joinGroup(g Group) error {
	return s.change(g, ipv4.NewPacketConn(s.c).JoinGroup, ipv6.NewPacketConn(s.c).JoinGroup)
}

func (s osSocket) leaveGroup(g Group) error {
	return s.change(g, ipv4.NewPacketConn(s.c).LeaveGroup, ipv6.NewPacketConn(s.c).LeaveGroup)
}

func (s osSocket) change(g Group, v4, v6 func(*net.Interface, net.Addr) error) error {
	ifi, err := net.InterfaceByIndex(g.Interface)
	if err != nil {
		return &reason{kind: ErrInterface, cause: err, text: "there is no such interface"}
	}
	do := v4
	if g.Addr.Is6() {
		do = v6
	}
	err = do(ifi, &net.UDPAddr{IP: g.Addr.AsSlice()})
	if err != nil && errnoOf(err) == 0 { // golang.org/x/net has a word of its own for this
		return errors.ErrUnsupported
	}
	return err
}
