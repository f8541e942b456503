#!/usr/bin/env bash
# ci/fuzz.sh [TIME]: runs each fuzz target for that long, 10,000 inputs by default.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
for m in $(modules); do
	# The list has the names of a package's targets, then "ok" and the package.
	(cd "$m" && go test -list '^Fuzz' ./...) | awk '/^Fuzz/ { f[n++] = $1 } /^ok/ { while (n > 0) print $2, f[--n] }' |
		while read -r package target; do
			say "$package $target"
			(cd "$m" && go test -run '^$' -fuzz "^$target\$" -fuzztime "${1:-10000x}" "$package" </dev/null)
		done
done
