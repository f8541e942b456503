#!/usr/bin/env bash
# Known vulnerabilities in what the project calls. It asks vuln.go.dev.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
for m in $(modules); do
	(cd "$m" && go run $govulncheck ./...)
done
