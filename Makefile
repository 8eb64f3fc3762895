# Everything a newcomer types. `make run` and `make test` install what a bare Debian lacks.
.PHONY: run test test-api soak lint bench bench-scale bench-fanout bench-micro bench-peers postgres test-tools

# A server of one's own (DATABASE_URL) or a private one with the sample catalog.
run: postgres
	cargo build --release
	@if [ -n "$$DATABASE_URL" ]; then exec target/release/model-catalog serve; else exec target/release/model-catalog demo; fi

test: postgres test-tools
	cargo test

# Requests made up from /openapi.json, against the demo; not a part of `make test`, for it installs a hundred packages.
test-api: postgres
	@python3 -c 'import ensurepip' 2>/dev/null || deploy/install.sh python3-venv ensurepip
	cargo build
	[ -x target/schemathesis/bin/st ] || { python3 -m venv target/schemathesis && \
		target/schemathesis/bin/pip install --quiet schemathesis==4.32.5; }
	tests/api.sh target/schemathesis/bin/st target/debug/model-catalog

# The long run: random writers under random faults, a few minutes of it.
soak: export SOAK_SECONDS ?= 240
soak: test-tools
	cargo test --test it soak:: -- --nocapture

lint:
	@deploy/install.sh shellcheck shellcheck
	shellcheck deploy/*.sh deploy/machine/*.sh tests/*.sh
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

# The server and its peers under load, in turns; the table goes to benches/results/load.md. It takes about BENCH_ROUNDS
# (5) times 2.5 minutes; BENCH_SECONDS (4) is one run of wrk, BENCH_BURST and BENCH_IDLE (10000) count connections.
bench: postgres bench-peers
	cargo bench --bench load

# What size costs, up to a million models; the table goes to benches/results/scale.md. It takes some minutes.
bench-scale: postgres
	cargo bench --bench scale

# What two hundred replicas cost one Postgres; the table goes to benches/results/fanout.md. It takes about three minutes.
bench-fanout: postgres
	cargo bench --bench fanout

# The parts alone: look-up, batch, parse, delta, full build.
bench-micro:
	cargo bench --bench micro

# wrk is needed; a peer that can't be had is said to be missing in the table.
bench-peers:
	@deploy/install.sh wrk wrk
	-@deploy/install.sh nginx nginx /usr/sbin/nginx
	-@deploy/install.sh nodejs node && deploy/install.sh npm npm
	-@[ -d benches/peers/express/node_modules ] || npm ci --prefix benches/peers/express --silent --no-audit --no-fund

# Postgres' server programs, from the system's packages when there are none.
postgres:
	@deploy/install.sh postgresql "$${PGBIN:-}/postgres" /usr/lib/postgresql/*/bin/postgres postgres

# What some tests put around the program, and what machines download with; installing starts nothing.
test-tools: postgres
	@deploy/install.sh pgbouncer pgbouncer /usr/sbin/pgbouncer
	@deploy/install.sh faketime faketime
	@deploy/install.sh aria2 aria2c
	@deploy/install.sh curl curl
	@deploy/install.sh prometheus promtool
	@deploy/install.sh haproxy haproxy /usr/sbin/haproxy
	@deploy/install.sh systemd systemd-analyze
