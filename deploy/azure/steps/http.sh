#!/usr/bin/env bash
# Functions that identity-token and docker-credential-acr-identity share.

# The client that asks for a token shows what the program prints to its output.
fail() {
    echo "$(basename "$0"): $*"
    exit 1
}

# post URL NAME=VALUE... : sends the form, and prints the answer. NAME@FILE sends the text of a file.
post() {
    local url=$1 form=() field
    shift
    for field in "$@"; do form+=(--data-urlencode "$field"); done
    curl --silent --show-error --fail-with-body --max-time 30 "${form[@]}" "$url" 2>&1
}

# token NAME JSON : prints the text of that name. Tokens contain no quotes.
token() {
    local found
    found=$(tr -d '\n' <<<"$2" | sed -n "s/.*\"$1\" *: *\"\([^\"]*\)\".*/\1/p")
    [ -n "$found" ] && printf '%s\n' "$found"
}
