# shellcheck shell=sh disable=SC2154,SC2034
# Sourced by scripts with PROGRAM: starts a demo on a free port, which ends with the script, and sets `url` to its address.
demo_log=$(mktemp)
CATALOG_ADDR=127.0.0.1:0 CATALOG_LOG=warn "$program" demo >"$demo_log" &
demo=$!
trap 'kill $demo; wait $demo || true; rm -f "$demo_log"' EXIT
until url=$(grep -om1 'http://127\.0\.0\.1:[0-9]*' "$demo_log"); do
    kill -0 $demo
    sleep 0.1
done
