#!/usr/bin/env bash
# The library's tests with 32-bit structures. A 64-bit Linux on amd64 runs them as they are.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
CGO_ENABLED=0 GOARCH=386 go test . ./amt/... ./internal/...
