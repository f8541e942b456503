#!/usr/bin/env bash
# Runs the tests of the modules inside the project's: go test ./... does not enter them.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
for m in $(modules); do
	[ "$m" = . ] && continue
	say "$m"
	# What a module's tests run may be outside of it, where the cache of results does not look.
	(cd "$m" && go test -count=1 ./...)
done
