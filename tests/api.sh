#!/bin/sh
# Runs schemathesis, which generates requests from /openapi.json, against the demo: api.sh SCHEMATHESIS PROGRAM
set -eu
schemathesis=$(realpath "$1") program=$2 config=$(realpath "$(dirname "$0")/schemathesis.toml")
work=$(mktemp -d)
CATALOG_ADDR=127.0.0.1:0 CATALOG_LOG=warn "$program" demo >"$work/demo" &
demo=$!
trap 'kill $demo; wait $demo || true; rm -rf "$work"' EXIT
until url=$(grep -om1 'http://127\.0\.0\.1:[0-9]*' "$work/demo"); do
    kill -0 $demo
    sleep 0.1
done
cd "$work"
# By default schemathesis skips the path of the document itself.
"$schemathesis" --config-file "$config" run "$url/openapi.json" --include-path-regex / --seed 1
