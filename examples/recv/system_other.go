//go:build !linux && !darwin

package main

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
)

// bindTo: there is nothing like it here.
func bindTo(string) func(network, address string, c syscall.RawConn) error {
	return func(string, string, syscall.RawConn) error {
		return fmt.Errorf("-bind on %s: %w", runtime.GOOS, errors.ErrUnsupported)
	}
}

// oldVersion is not known here.
func oldVersion(string, bool) string { return "" }
