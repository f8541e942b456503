#!/usr/bin/env bash
# The tests as windows/amd64 under Wine. $MCAST_WINETEST is a runner that does what Winsock does to the socket
# options of multicast, which Wine does not have; it takes the arguments of go test.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
runner=${MCAST_WINETEST:-../shared/wine/winetest}
if [ ! -x "$runner" ]; then
	[ "${CI-}" = true ] && die "no Wine-based runner at $runner"
	say "skipped: no Wine-based runner at $runner"
	exit 0
fi
"$runner" ./...
