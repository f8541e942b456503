#!/usr/bin/env bash
# Compiles everything, tests too, for every system and runs go vet and staticcheck over it; checks the workflows.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
failed=0

# Both checkers for each system…
targets="linux/amd64 linux/386 darwin/arm64 windows/amd64 freebsd/amd64 openbsd/amd64 netbsd/amd64 dragonfly/amd64
	solaris/amd64 illumos/amd64 aix/ppc64 plan9/amd64 js/wasm wasip1/wasm android/arm64"
# …and go vet alone where only byte order or the width of a word are new.
vet_only="linux/arm64 linux/s390x windows/386 freebsd/386"
# A nested module is a tool of the project: for the systems it is worked on.
nested="linux/amd64 darwin/arm64 windows/amd64"

for m in $(modules); do
	if [ "$m" != . ]; then
		targets=$nested vet_only=
		go -C "$m" vet ./... || failed=1 # with cgo, where there is a compiler
	fi
	export CGO_ENABLED=0
	for t in $targets $vet_only; do
		GOOS=${t%/*} GOARCH=${t#*/} go -C "$m" vet ./... || {
			say "$m: go vet for $t"
			failed=1
		}
	done
	# One run for all systems: a function that only one of them uses is used.
	for t in $targets; do
		echo "${t%/*}_${t#*/}: GOOS=${t%/*} GOARCH=${t#*/}"
	done | (cd "$m" && go run $staticcheck -matrix ./...) || {
		say "$m: staticcheck"
		failed=1
	}
	unset CGO_ENABLED
done

go run $actionlint .github/workflows/*.yml || failed=1
exit $failed
