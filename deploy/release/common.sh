#!/usr/bin/env bash
# What the scripts of a release share. They source it.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# Prints the version in Cargo.toml, which is also that of the chart.
version() { sed -n 's/^version = "\(.*\)"$/\1/p' "$root/Cargo.toml" | head -n 1; }

# digest_of TEXT : prints the first digest in what a client has printed or written.
digest_of() {
    local found
    found=$(grep -o 'sha256:[0-9a-f]\{64\}' <<<"$1" | head -n 1)
    [ -n "$found" ] || fail "no digest in: $1"
    echo "$found"
}
