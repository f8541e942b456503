#!/usr/bin/env bash
# Installs what the other scripts use and the machine lacks. Debian and Ubuntu; elsewhere it does nothing.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
command -v apt-get >/dev/null || exit 0

want=
need() { # COMMAND PACKAGE...
	command -v "$1" >/dev/null || want="$want ${*:2}"
}
PATH=$PATH:/usr/sbin:/sbin
need ip iproute2
need gcc gcc libc6-dev # for -race
need qemu-s390x-static qemu-user-static
need iptables-legacy iptables # examples/doctor reads the rules of both kinds
command -v google-chrome >/dev/null || need chromium chromium # examples/relay has a page
need nft nftables
# Peers of the examples.
need ffmpeg ffmpeg
need tshark tshark
need iperf iperf
need socat socat
[ -n "$want" ] || exit 0

sudo=
[ "$(id -u)" = 0 ] || sudo="sudo"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() {
	# shellcheck disable=SC2086 # lists of words
	$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
		-o DPkg::Lock::Timeout=300 $want >"$log" 2>&1 </dev/null
}
say "installing$want"
install || { $sudo apt-get update >/dev/null 2>&1 </dev/null && install; } || {
	tail -n 20 "$log" >&2
	die "cannot install$want"
}
