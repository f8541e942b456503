#!/usr/bin/env bash
# The tests under the race detector.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
CGO_ENABLED=1 go test -race ./...
