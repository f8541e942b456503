#!/usr/bin/env bash
# Formatting: gofmt and gofumpt, go.mod and go.sum tidy, nothing left for go fix to modernize.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
failed=0
check() { empty "$@" || failed=1; }

check "not formatted: gofmt -w" gofmt -l .
check "not formatted: go run $gofumpt -w" go run $gofumpt -l .
for m in $(modules); do
	check "$m: go mod tidy" go -C "$m" mod tidy -diff
	check "$m: go fix" go -C "$m" fix -diff ./...
done
exit $failed
