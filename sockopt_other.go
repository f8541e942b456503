//go:build !linux && !darwin && !freebsd && !solaris && !windows

package mcast

import (
	"errors"
	"net"
	"runtime"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

func hostPlatform() *platform { return &platform{name: runtime.GOOS, perSocket: 1000} }

// joiningSocket joins and leaves groups where golang.org/x/net can; there is no
// portable way to ask for more.
type joiningSocket struct{ c *net.UDPConn }

func newSocket(c *net.UDPConn, _ syscall.RawConn) socket { return joiningSocket{c} }

func setsockopt(int, int, int, []byte) error        { return errors.ErrUnsupported }
func getsockopt(int, int, int, []byte) (int, error) { return 0, errors.ErrUnsupported }

func (s joiningSocket) setsockopt(int, int, []byte) error        { return errors.ErrUnsupported }
func (s joiningSocket) getsockopt(int, int, []byte) (int, error) { return 0, errors.ErrUnsupported }
func (s joiningSocket) ioctl(uint32, []byte, []byte) (int, error) {
	return 0, errors.ErrUnsupported
}

func (s joiningSocket) joinGroup(at groupIndex) error {
	return s.change(at, ipv4.NewPacketConn(s.c).JoinGroup, ipv6.NewPacketConn(s.c).JoinGroup)
}

func (s joiningSocket) leaveGroup(at groupIndex) error {
	return s.change(at, ipv4.NewPacketConn(s.c).LeaveGroup, ipv6.NewPacketConn(s.c).LeaveGroup)
}

func (s joiningSocket) change(at groupIndex, v4, v6 func(*net.Interface, net.Addr) error) error {
	ifi, err := net.InterfaceByIndex(at.index)
	if err != nil {
		return &reason{kind: ErrInterface, cause: err, text: "there is no such interface"}
	}
	do := v4
	if at.addr.Is6() {
		do = v6
	}
	err = do(ifi, &net.UDPAddr{IP: at.addr.AsSlice()})
	if err != nil && errnoOf(err) == 0 { // golang.org/x/net has a word of its own for this
		return errors.ErrUnsupported
	}
	return err
}
