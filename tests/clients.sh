#!/bin/sh
# Lints /openapi.json of a demo, generates three clients from it, compiles them strictly, and lets each send requests to the
# demo: clients.sh PROGRAM WORK. WORK/venv has the Python packages and Node.js.
set -eu
program=$(realpath "$1") work=$(realpath "$2")
# shellcheck source=tests/demo.sh
. "$(dirname "$0")/demo.sh"
cp "$(dirname "$0")"/clients/* "$work"
cd "$work"
export PATH="$work/node_modules/.bin:$work/venv/bin:$PATH"
npm install --silent --no-audit --no-fund
say() { echo "clients: $*"; }
python -c "import sys, urllib.request; sys.stdout.buffer.write(urllib.request.urlopen('$url/openapi.json').read())" >openapi.json
# The clients have the address of the documents.
sed -i "s|http://127.0.0.1:3000|$url|" ./*.ts ./*.mjs ./*.py

say "linters"
spectral lint --fail-severity hint --ruleset spectral.yaml openapi.json
redocly lint --config redocly.yaml openapi.json

say "openapi-typescript with openapi-fetch, and orval"
openapi-typescript openapi.json --output catalog.d.ts
orval --config orval.config.mjs
tsc
node built/openapi-fetch.js
node built/orval.js

say "openapi-python-client"
openapi-python-client generate --path openapi.json --meta none --output-path model_catalog_client --overwrite --fail-on-warning \
    --config openapi-python-client.yaml
mypy model_catalog_client openapi_python_client.py
python openapi_python_client.py
say "passed"
