#!/usr/bin/env bash
# ci/fuzz.sh [COUNT]: runs each fuzz target with that many inputs, "10000x" by
# default. A time ("30s") is taken, too, but what runs when it is over may fail
# with "context deadline exceeded", and no input (https://go.dev/issue/75804).
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
for m in $(modules); do
	# The list has the names of a package's targets, then "ok" and the package.
	(cd "$m" && go test -list '^Fuzz' ./...) | awk '/^Fuzz/ { f[n++] = $1 } /^ok/ { while (n > 0) print $2, f[--n] }' |
		while read -r package target; do
			say "$package $target"
			# Making an interesting input shorter may take a minute, in which nothing else is tried.
			(cd "$m" && go test -run '^$' -fuzz "^$target\$" -fuzztime "${1:-10000x}" -fuzzminimizetime 100x "$package" </dev/null)
		done
done
