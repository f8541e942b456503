#!/usr/bin/env bash
# The tests as windows/amd64 under Wine. $MCAST_WINETEST is a runner that does what Winsock does to the socket
# options of multicast, which Wine does not have; it takes the arguments of go test.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
runner=${MCAST_WINETEST:-$(compgen -G "../*/wine/winetest" | head -n 1 || true)}
if [ ! -x "$runner" ]; then
	[ "${CI-}" = true ] && die "no Wine-based runner: name one in MCAST_WINETEST"
	say "skipped: no Wine-based runner: name one in MCAST_WINETEST"
	exit 0
fi
"$runner" ./...
