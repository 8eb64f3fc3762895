#!/bin/sh
# Installs a Debian package unless one of the programs exists: install.sh PACKAGE PROGRAM...
set -eu
package=$1
shift
for program in "$@"; do
    if command -v "$program" >/dev/null 2>&1; then exit 0; fi
done
if ! command -v apt-get >/dev/null 2>&1; then
    echo "$package is not installed, and there is no apt-get: install it with the package manager of this system" >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then as_root=""
elif command -v sudo >/dev/null 2>&1; then as_root="sudo"
else
    echo "$package is not installed, and there is no sudo: run 'apt-get install $package' as root" >&2
    exit 1
fi
# Keeps packages from starting their services, which are not needed and would occupy ports.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '$as_root rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
fi
echo "installing $package" >&2
$as_root apt-get update -qq
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null
