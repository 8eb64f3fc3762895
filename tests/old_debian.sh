#!/bin/sh
# `pull` in a root of Debian 11, the oldest that Debian's mirrors still have: old_debian.sh PROGRAM ROOT
set -eu
program=$1 root=$2
cp "$program" "$root/usr/local/bin/model-catalog"
# The catalog and the hub are one file server outside of it.
work=$(mktemp -d)
server=
trap 'kill $server 2>/dev/null; rm -rf "$work"' EXIT
mkdir -p "$work/api/models" && echo 'a model' >"$work/file"
python3 -c '
import functools, hashlib, http.server, json, sys
class Handler(http.server.SimpleHTTPRequestHandler):
    def do_POST(self):
        port = self.server.server_port
        model = {"id": "a", "download_url": f"http://127.0.0.1:{port}/file", "hash": hashlib.sha256(b"a model\n").hexdigest(),
                 "auth_required": False, "save_path": "checkpoints/a"}
        body = json.dumps({"models": [model], "not_found": [], "missing_dependencies": []}).encode()
        self.send_response(200), self.send_header("content-length", str(len(body))), self.end_headers()
        self.wfile.write(body)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=sys.argv[1]))
open(sys.argv[1] + "/port", "w").write(str(server.server_port))
server.serve_forever()' "$work" 2>/dev/null &
server=$!
until [ -s "$work/port" ]; do sleep 0.1; done
rm -rf "$root/tmp/models"
env -i PATH=/usr/local/bin:/usr/bin:/bin MACHINE_MODELS_NEEDED=a MODELS_DIR=/tmp/models MACHINE_MODELS_STRICT=1 \
    CATALOG_URL="http://127.0.0.1:$(cat "$work/port")" \
    "$(command -v chroot)" "$root" /usr/local/bin/model-catalog pull -- cat /tmp/models/checkpoints/a
