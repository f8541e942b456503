//go:build !unix && !windows

package mcast_test

// isBound reports whether a socket has a port: there is no way to ask.
func isBound(uintptr) bool { return false }
