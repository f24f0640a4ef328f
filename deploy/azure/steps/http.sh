#!/usr/bin/env bash
# What identity-token and docker-credential-acr-identity share.

# A program that asked for a token prints what is on its output.
fail() {
    echo "$(basename "$0"): $*"
    exit 1
}

# post URL NAME=VALUE... : what the address answers to the form; NAME@FILE sends a file's text.
post() {
    local url=$1 form=() field
    shift
    for field in "$@"; do form+=(--data-urlencode "$field"); done
    curl --silent --show-error --fail-with-body --max-time 30 "${form[@]}" "$url" 2>&1
}

# token NAME JSON : the text of that name. Tokens hold no quotes.
token() {
    local found
    found=$(tr -d '\n' <<<"$2" | sed -n "s/.*\"$1\" *: *\"\([^\"]*\)\".*/\1/p")
    [ -n "$found" ] && printf '%s\n' "$found"
}
