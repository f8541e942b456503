//go:build !linux && !darwin && !freebsd && !dragonfly && !netbsd && !openbsd && !windows

package mcast

import "errors"

// openHints: memberships are mended by Repair alone.
func openHints() (hintSource, error) { return nil, errors.ErrUnsupported }
