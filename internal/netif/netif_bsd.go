//go:build darwin || freebsd || dragonfly || netbsd || openbsd

package netif

import (
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// watch reads hints from a routing socket, and on macOS from a kernel event
// socket.
func watch() (Source, error) {
	format := routingFormats[runtime.GOOS]
	routing, err := openSystemSocket(unix.AF_ROUTE, unix.AF_UNSPEC, nil)
	if err != nil {
		return nil, err
	}
	q := newHintQueue()
	files := []*os.File{routing}
	var wg sync.WaitGroup
	wg.Go(func() {
		pump(q, routing, func(b []byte) []hint { return parseRouting(b, binary.NativeEndian, format) })
	})
	// Without it carriers are not told, but all else is.
	if events, err := openEvents(); err == nil {
		files = append(files, events)
		wg.Go(func() {
			pump(q, events, func(b []byte) []hint { return parseKernelEvents(b, binary.NativeEndian) })
		})
	}
	return &lister{hints: q, list: host{}.Interfaces, clock: wallClock, shut: func() error {
		q.close()
		for _, f := range files {
			f.Close()
		}
		wg.Wait()
		return nil
	}}, nil
}

// pump moves what a socket tells to a queue until it is closed.
func pump(q *hintQueue, f *os.File, parse func([]byte) []hint) {
	buf := make([]byte, 64<<10)
	for {
		n, err := f.Read(buf)
		switch {
		case err == nil:
			q.add(parse(buf[:n])...)
		case errors.Is(err, unix.ENOBUFS):
			q.add(hint{}) // something was lost
		default:
			q.fail(err)
			return
		}
	}
}

// openSystemSocket opens a socket to the system, and hands it to setup if there
// is one. No program that is started meanwhile gets it.
func openSystemSocket(family, protocol int, setup func(fd int)) (*os.File, error) {
	syscall.ForkLock.RLock()
	fd, err := unix.Socket(family, unix.SOCK_RAW, protocol)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setnonblock", err)
	}
	if setup != nil {
		setup(fd)
	}
	return os.NewFile(uintptr(fd), "system"), nil
}
