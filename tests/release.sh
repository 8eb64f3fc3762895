#!/bin/sh
# Installs the files of `make release` in bare roots and sends a first request to each: release.sh FILES WORK. Every server
# follows a demo that runs outside of its root.
set -eu
files=$(realpath "$1") work=$2
mkdir -p "$work"
work=$(realpath "$work")
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"
version=$(sed -n '/^version = /{s/.*"\(.*\)"/\1/p;q}' Cargo.toml)
say() { echo "release: $*"; }
fail() {
    tail -5 "$work"/*.log >&2 || true
    say "$*" >&2
    exit 1
}
# until_ DESCRIPTION COMMAND...: waits up to a minute until the command succeeds.
until_() {
    what=$1 tries=0
    shift
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ "$tries" -lt 600 ] || fail "timed out waiting until $what"
        sleep 0.1
    done
}
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
bare() { # bare SUITE PACKAGES
    [ -e "$work/$1.tar" ] || mmdebstrap --quiet --variant=minbase --include="$2" "$1" "$work/$1.tar" http://deb.debian.org/debian
}
# A fresh root, which the next one replaces.
root=$work/root
fresh() {
    rm -rf "$root" && mkdir "$root" && tar -C "$root" -xf "$work/$1.tar"
    started=$(date +%s.%N)
}
server='' demo='' container=''
cgroups=''
stop() {
    for pid in "$@"; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" || true
    done
}
trap 'stop $container $server $demo; rm -rf "$root"; [ -z "$cgroups" ] || find $cgroups -depth -type d -exec rmdir {} +' EXIT

(cd "$files" && sha256sum --quiet --check SHA256SUMS)
tar -C "$work" -xzf "$files"/*.tar.gz
program=$(echo "$work/model-catalog-$version"-*/bin/model-catalog)
newest=$(objdump -T "$program" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1)
[ "$newest" = GLIBC_2.28 ] || fail "the program needs $newest"
"$program" --version | grep -q "^model-catalog $version (commit [0-9a-f]" || fail "unexpected version: $("$program" --version)"
objdump -h "$program" | grep -q '\.dep-v0' || fail "the program does not list its crates for cargo audit"
upstream=127.0.0.1:$(free_port)
api=127.0.0.1:$(free_port)
"$program" demo --addr "$upstream" 2>"$work/demo.log" &
demo=$!
until_ "the demo serves" curl -fsS "http://$upstream/api/models/flux-dev"

# first_request NAME: waits for the answer of the server in the root.
first_request() {
    until_ "$1 serves" curl -fsS "http://$api/api/models/flux-dev"
    say "$1: first request $(echo "$(date +%s.%N) $started" | awk '{printf "%.1f", $1 - $2}') s after its installation began"
}
set -- "CATALOG_UPSTREAM=http://$upstream" "CATALOG_ADDR=$api"
# serve NAME PROGRAM SETTING...: runs a server in the root.
serve() {
    name=$1 installed=$2
    shift 2
    env -i "$@" "$(command -v chroot)" "$root" "$installed" serve 2>"$work/server.log" &
    server=$!
    first_request "$name"
    stop "$server"
}

bare bookworm systemd,python3-pip,rpm,ca-certificates
fresh bookworm
cp "$files"/*.whl "$root/tmp/"
chroot "$root" sh -c 'pip install --quiet --no-index --break-system-packages --root-user-action ignore /tmp/*.whl'
serve wheel /usr/local/bin/model-catalog "$@"

fresh bookworm
tar -C "$root/usr/local" --strip-components 1 -xzf "$files"/*.tar.gz
serve tarball /usr/local/bin/model-catalog "$@"

fresh bookworm
cp "$files"/*.rpm "$root/tmp/"
# No packages of Debian are in rpm's database.
chroot "$root" sh -c 'rpm --install --nodeps /tmp/*.rpm && rpm --verify --nodeps model-catalog'
serve rpm /usr/bin/model-catalog "$@"
chroot "$root" rpm --erase model-catalog

started=$(date +%s.%N)
rm -rf "$work/layout" "$work/bundle" && mkdir "$work/layout"
tar -C "$work/layout" -xf "$files"/*.oci.tar
umoci unpack --rootless --image "$work/layout:$version" "$work/bundle"
python3 - "$work/bundle/config.json" <<'END'
import json, sys
process = json.load(open(sys.argv[1]))["process"]
assert process["args"] == ["/usr/local/bin/model-catalog", "serve"], process
assert process["user"] == {"uid": 65532, "gid": 65532}, process
assert "CATALOG_SNAPSHOT_FILE=/var/lib/model-catalog/catalog.snapshot" in process["env"], process
END
env -i "$@" CATALOG_SNAPSHOT_FILE=/var/lib/model-catalog/catalog.snapshot \
    "$(command -v chroot)" --userspec=65532:65532 "$work/bundle/rootfs" /usr/local/bin/model-catalog serve 2>"$work/server.log" &
server=$!
until_ "the snapshot file is written" test -s "$work/bundle/rootfs/var/lib/model-catalog/catalog.snapshot"
first_request image
stop "$server"
server=''
rm -rf "$work/layout" "$work/bundle"

# The .deb in a container that systemd boots, with a cgroup of its own.
fresh bookworm
for hierarchy in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
    if [ -e "$hierarchy/cgroup.procs" ]; then
        mkdir "$hierarchy/model-catalog-$$" && cgroups="$cgroups $hierarchy/model-catalog-$$"
    fi
done
(for cgroup in $cgroups; do sh -c 'echo $PPID' >"$cgroup/cgroup.procs"; done
    exec systemd-nspawn --quiet --keep-unit --register=no --console=pipe --link-journal=no --resolv-conf=off --timezone=off \
        --machine="release-$$" --directory "$root" --boot systemd.unit=multi-user.target) >"$work/boot.log" 2>&1 </dev/null &
container=$!
init() { cat "/proc/$container/task/$container/children"; }
booted() { [ "$(cat "/proc/$(init | tr -d ' ')/comm")" = systemd ] && inside systemctl is-active --quiet multi-user.target; }
inside() { nsenter --target "$(init | tr -d ' ')" --mount --pid --uts --ipc --root --wd env PATH="$PATH" "$@"; }
until_ "the container has booted" booted
cp "$files"/*.deb "$root/root/"
started=$(date +%s.%N)
inside sh -c 'dpkg --install /root/*.deb' >/dev/null
inside systemctl is-enabled --quiet model-catalog && fail "the unit is enabled before there are settings"
printf '%s\n' "$@" >>"$root/etc/model-catalog/environment"
inside systemctl enable --quiet --now model-catalog
first_request deb
# An upgrade keeps the settings and restarts the server; a removal stops it.
before=$(inside systemctl show --property MainPID model-catalog)
inside sh -c 'dpkg --install /root/*.deb' >/dev/null
until_ "it serves after an upgrade" curl -fsS "http://$api/api/models/flux-dev"
[ "$(inside systemctl show --property MainPID model-catalog)" != "$before" ] || fail "an upgrade did not restart the server"
[ "$(stat -c %a "$root/etc/model-catalog/environment")" = 600 ] || fail "the settings can be read by others"
inside dpkg --remove model-catalog >/dev/null
curl -fsS "http://$api/livez" >/dev/null 2>&1 && fail "the server runs after its package was removed"
[ -e "$root/etc/model-catalog/environment" ] || fail "a removal deleted the settings"
stop "$container"
container=''

bare bullseye ca-certificates
fresh bullseye
tests/old_debian.sh "$program" "$root"
say "the installed servers answered"
