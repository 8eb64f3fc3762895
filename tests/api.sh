#!/bin/sh
# Runs schemathesis, which generates requests from /openapi.json, against the demo: api.sh SCHEMATHESIS PROGRAM
set -eu
schemathesis=$(realpath "$1") program=$2 config=$(realpath "$(dirname "$0")/schemathesis.toml")
# shellcheck source=tests/demo.sh
. "$(dirname "$0")/demo.sh"
# It leaves files in the working directory.
cd "$(dirname "$schemathesis")"
# By default schemathesis skips the path of the document itself.
"$schemathesis" --config-file "$config" run "$url/openapi.json" --include-path-regex / --seed 1
