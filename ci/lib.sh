# What the scripts in this folder share; they source it. Bash 3.2 (macOS) is enough.
# shellcheck shell=bash
set -euo pipefail
export LC_ALL=C

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

# The checkers, pinned. The build cache keeps what `go run` built.
staticcheck=honnef.co/go/tools/cmd/staticcheck@v0.8.2
gofumpt=mvdan.cc/gofumpt@v0.12.0
actionlint=github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
govulncheck=golang.org/x/vuln/cmd/govulncheck@v1.9.0

say() { printf '%s\n' "$*" >&2; }
die() {
	say "${0##*/}: $*"
	exit 1
}

# modules prints the folders of all modules of the project, the root first.
modules() { find . -name go.mod -not -path '*/testdata/*' | sort | sed 's,/go\.mod$,,'; }

# empty COMPLAINT COMMAND...: the command must succeed and print nothing on stdout.
empty() {
	local name=$1 out
	shift
	if ! out=$("$@") || [ -n "$out" ]; then
		say "$out"
		say "${0##*/}: $name"
		return 1
	fi
}
