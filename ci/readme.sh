#!/usr/bin/env bash
# Does what README.md says: builds its program and runs its two commands, as written there.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# block MARK prints the fenced block that follows the line MARK.
block() {
	awk -v mark="$1" '
		$0 == mark { found = 1; next }
		found && /^```/ { if (inside) exit; inside = 1; next }
		found && inside
	' README.md
}

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

block '<!-- ci/readme.sh builds this program. -->' >"$tmp/main.go"
[ -s "$tmp/main.go" ] || die "README.md has no program"
say "README.md's program"
go vet "$tmp/main.go"
empty "README.md's program is not formatted" gofmt -l "$tmp/main.go"

block '<!-- ci/readme.sh runs these commands. -->' >"$tmp/commands"
for command in 'go run ./examples/demo' 'go test ./...'; do
	grep -qxF "$command" "$tmp/commands" || die "README.md does not say: $command"
done
# No answer of an earlier run: what the kernel does is not in the test cache's key.
export GOFLAGS="${GOFLAGS-} -count=1"
while read -r command; do
	say "\$ $command"
	bash -c "$command" </dev/null
done <"$tmp/commands"
