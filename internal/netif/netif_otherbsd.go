//go:build dragonfly || netbsd || openbsd

package netif

import (
	"errors"
	"os"
)

func openEvents() (*os.File, error) { return nil, errors.ErrUnsupported }

// carriers: what these systems tell of them is not known.
func carriers() map[int]bool { return nil }
