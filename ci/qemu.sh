#!/usr/bin/env bash
# The tests of the library on s390x, which is big-endian, and arm64, under qemu's user-mode emulation. It answers
# ENOPROTOOPT to MCAST_*, so these are the tests of the fallback to IP_* on a real socket.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
unset MCAST_LAB # qemu may lack what a lab needs of the kernel; without it a lab's tests are skipped
export MCAST_EMULATED=qemu # tests that cannot work there skip and say so
failed=0
for t in s390x:qemu-s390x-static arm64:qemu-aarch64-static; do
	CGO_ENABLED=0 GOARCH=${t%:*} go test -exec "${t#*:}" -skip '^Example' . || failed=1 # they send by lo, which qemu cannot
	# Its tests of the kernel's control messages are not for an emulated one.
	CGO_ENABLED=0 GOARCH=${t%:*} go test -exec "${t#*:}" -skip '^TestKernel' ./internal/cmsg || failed=1
done
exit $failed
