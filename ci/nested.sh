#!/usr/bin/env bash
# Runs the tests of the modules inside the project's: go test ./... does not enter them.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
for m in $(modules); do
	[ "$m" = . ] && continue
	say "$m"
	(cd "$m" && go test ./...)
done
