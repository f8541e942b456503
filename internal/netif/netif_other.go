//go:build !linux && !darwin && !freebsd && !dragonfly && !netbsd && !openbsd && !windows

package netif

import (
	"errors"
	"fmt"
	"runtime"
)

func watch() (Source, error) {
	return nil, fmt.Errorf("news of interfaces on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

func carriers() map[int]bool { return nil }
