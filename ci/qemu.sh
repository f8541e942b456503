#!/usr/bin/env bash
# The tests of the library on s390x, which is big-endian, and arm64, under qemu's user-mode emulation. It answers
# ENOPROTOOPT to MCAST_*, so these are the tests of the fallback to IP_* on a real socket.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
unset MCAST_LAB # qemu may lack what a lab needs of the kernel; without it a lab's tests are skipped
export MCAST_EMULATED=qemu # tests that cannot work there skip and say so
export CGO_ENABLED=0

emulated() { # GOARCH EMULATOR
	local failed=0
	GOARCH=$1 go test -exec "$2" -skip '^Example' . || failed=1 # they send by lo, which qemu cannot
	# Its tests of the kernel's control messages are not for an emulated one.
	GOARCH=$1 go test -exec "$2" -skip '^TestKernel' ./internal/cmsg || failed=1
	return $failed
}

failed=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
emulated s390x qemu-s390x-static >"$log" 2>&1 &
emulated arm64 qemu-aarch64-static || failed=1
wait $! || failed=1
cat "$log"
exit $failed
