//go:build !linux || !cgo

// Bench measures the library beside C, the standard library and
// golang.org/x/net. It needs Linux and cgo.
package main

import "log"

func main() { log.Fatal("bench: needs Linux and a C compiler (CGO_ENABLED=1)") }
