package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
)

// firstFD is the first descriptor that systemd passes on (sd_listen_fds(3)).
const firstFD = 3

// inherited returns the listeners that systemd opened for this process; none if
// it did not.
func inherited() ([]net.Listener, error) {
	pid, fds := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	// They are for this process alone.
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
	if pid != strconv.Itoa(os.Getpid()) || fds == "" {
		return nil, nil
	}
	n, err := strconv.Atoi(fds)
	if err != nil || n < 0 || n > 64 {
		return nil, fmt.Errorf("LISTEN_FDS is %q", fds)
	}
	return listenersAt(firstFD, n)
}

// listenersAt makes listeners of descriptors.
func listenersAt(first, n int) (ls []net.Listener, err error) {
	for fd := first; fd < first+n; fd++ {
		f := os.NewFile(uintptr(fd), "LISTEN_FD_"+strconv.Itoa(fd))
		l, err := net.FileListener(f) // a duplicate
		f.Close()
		if err != nil {
			for _, l := range ls {
				l.Close()
			}
			return nil, fmt.Errorf("descriptor %d of LISTEN_FDS is not a listener: %w", fd, err)
		}
		ls = append(ls, l)
	}
	return ls, nil
}

// notify tells systemd about this process (sd_notify(3)), if it asked for that.
func notify(state string) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	if name[0] != '/' && name[0] != '@' {
		return errors.New("NOTIFY_SOCKET is not a socket's address: " + name)
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte(state))
	return err
}
