#!/usr/bin/env bash
# Prints the path of a nats-server that is new enough for the client (2.10), and builds one first when
# there is none: with Go, from the Go module proxy, into ~/.cache/nats-server.
#
#   integration/nats-server.sh
#
# NATS_SERVER names another binary; NATS_VERSION (2.12.2) another version.
set -euo pipefail

version=${NATS_VERSION:-2.12.2}
cache=${NATS_CACHE:-$HOME/.cache/nats-server}/$version

new_enough() { # new_enough BINARY
  local found
  found=$("$1" --version 2>/dev/null | grep -o '[0-9]*\.[0-9]*' | head -n 1) || return 1
  [ "${found%.*}" -gt 2 ] || { [ "${found%.*}" -eq 2 ] && [ "${found#*.}" -ge 10 ]; }
}

if [ -n "${NATS_SERVER:-}" ]; then
  echo "$NATS_SERVER"
  exit
fi
if [ -x "$cache/nats-server" ]; then
  echo "$cache/nats-server"
  exit
fi
if command -v nats-server >/dev/null 2>&1 && new_enough nats-server; then
  command -v nats-server
  exit
fi
command -v go >/dev/null 2>&1 || PATH="/usr/local/go/bin:$PATH"
command -v go >/dev/null 2>&1 || {
  echo "nats-server 2.10 or later is missing, and so is Go to build it with: install one of them" >&2
  exit 1
}
echo "building nats-server $version" >&2
mkdir -p "$cache"
# Built beside its place and moved there: two may be at it.
building=$(mktemp -d "$cache/building.XXXXXX")
trap 'rm -rf "$building"' EXIT
GOBIN=$building GOFLAGS=-mod=mod go install "github.com/nats-io/nats-server/v2@v$version" >&2
mv "$building/nats-server" "$cache/nats-server"
echo "$cache/nats-server"
