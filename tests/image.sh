#!/bin/sh
# Tests deploy/Dockerfile and deploy/compose/compose.yaml in the local Docker, with their real ports: builds and inspects
# the image, starts everything, sends requests through the balancer, and stops and kills a replica under load.
set -eu
cd "$(dirname "$0")/.."
# A separate project, so that existing containers are not affected. COMPOSE_FILE may list a further file.
export COMPOSE_PROJECT_NAME=model-catalog-test COMPOSE_FILE="${COMPOSE_FILE:-deploy/compose/compose.yaml}"
api=http://127.0.0.1:8080/api/models/flux-dev

say() { echo "image: $*"; }
fail() {
    say "$*" >&2
    docker compose ps --all >&2
    docker compose logs --tail 40 >&2
    exit 1
}
# until_ DESCRIPTION COMMAND...: waits up to a minute until the command succeeds.
until_() {
    what=$1
    shift
    tries=0
    until "$@" >/dev/null 2>&1; do
        tries=$((tries + 1))
        [ "$tries" -lt 300 ] || fail "timed out waiting until $what"
        sleep 0.2
    done
}
of() { docker inspect --format "$2" "$(docker compose ps --all --quiet "$1")"; }
healthy() { [ "$(of "$1" '{{.State.Health.Status}}')" = healthy ]; }
up_in_prometheus() {
    curl -fsS http://127.0.0.1:9090/api/v1/query -d query='sum(up{job="model-catalog"}) == 2' | grep -q '"value"'
}

docker compose build
[ "$(docker image inspect --format '{{.Config.User}}' model-catalog)" = 65532:65532 ] || fail "the image has an unexpected user"
docker run --rm --network none --read-only --cap-drop ALL model-catalog --version
say "$(docker image inspect --format '{{.Size}}' model-catalog) bytes"

load=$(mktemp -d)
asking=
trap '[ -z "$asking" ] || kill "$asking"; docker compose down --volumes >/dev/null 2>&1; rm -rf "$load"' EXIT
docker compose up --detach
for replica in catalog-a catalog-b; do until_ "$replica is healthy" healthy "$replica"; done
until_ "the balancer serves the sample" curl -fsS "$api"
until_ "Prometheus scrapes both replicas" up_in_prometheus
curl -fsS http://127.0.0.1:9090/api/v1/rules | grep -q '"name":"ModelCatalogNoReplicaReady"' || fail "the alert rules are not loaded"
say "everything is running"

touch "$load/answered" "$load/failed"
(while :; do
    if curl -fsS --max-time 10 "$api" 2>>"$load/failed" >/dev/null; then echo >>"$load/answered"; fi
done) &
asking=$!
flows() { [ "$(answered)" -gt 20 ]; }
answered() { wc -l <"$load/answered"; }
for how in stop kill; do
    until_ "requests flow" flows
    docker compose "$how" catalog-a
    code=$(of catalog-a '{{.State.ExitCode}}')
    [ "$how" = kill ] || [ "$code" = 0 ] || fail "a stopped replica exited with status $code"
    docker compose start catalog-a
    until_ "catalog-a is healthy" healthy catalog-a
done
kill "$asking"
asking=
[ -s "$load/failed" ] && fail "failed requests: $(cat "$load/failed")"
say "$(answered) requests succeeded while a replica was stopped and killed, none failed"
