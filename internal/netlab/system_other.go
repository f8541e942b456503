//go:build !linux

package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
)

// Run skips before it comes here.
var errNotLinux = fmt.Errorf("network namespaces are a Linux thing: %w", errors.ErrUnsupported)

func namespaceID() (string, error)                               { return "", errNotLinux }
func startChild(func() *exec.Cmd) (wait func() error, err error) { return nil, errNotLinux }
func killWithParent(*exec.Cmd)                                   {}
func threadID() int                                              { return -1 }
func newNamespace() error                                        { return errNotLinux }
func enterNamespace(*os.File) error                              { return errNotLinux }
func openPacket(int) (*os.File, error)                           { return nil, errNotLinux }
func readPacket(uintptr, []byte) (n int, outgoing, ok bool)      { return 0, false, false }
func lostPackets(uintptr) (int, error)                           { return 0, errNotLinux }
func openSender(int, netip.Addr) (*net.UDPConn, error)           { return nil, errNotLinux }
