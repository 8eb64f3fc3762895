#!/bin/sh
# Installs a Debian package unless one of the named programs is there: install.sh PACKAGE PROGRAM...
set -eu
package=$1
shift
for program in "$@"; do
    if command -v "$program" >/dev/null 2>&1; then exit 0; fi
done
if ! command -v apt-get >/dev/null 2>&1; then
    echo "$package is missing and there is no apt-get: install it with this system's package manager" >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then as_root=""
elif command -v sudo >/dev/null 2>&1; then as_root="sudo"
else
    echo "$package is missing: run 'apt-get install $package' as root (there is no sudo here)" >&2
    exit 1
fi
# A service that comes with a package would take a port, and nothing here needs it: Debian's own switch against that.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '$as_root rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
fi
echo "installing $package" >&2
$as_root apt-get update -qq
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null
