package main

import (
	"errors"

	"golang.org/x/sys/windows"
)

// A port that is held exclusively answers WSAEACCES:
// https://learn.microsoft.com/en-us/windows/win32/winsock/using-so-reuseaddr-and-so-exclusiveaddruse
func isInUse(err error) bool {
	return errors.Is(err, windows.WSAEADDRINUSE) || errors.Is(err, windows.WSAEACCES)
}
