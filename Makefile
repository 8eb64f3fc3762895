# Everything a newcomer types. `make run` and `make test` install what a bare Debian lacks.
.PHONY: run test soak lint postgres test-tools

# A server of one's own (DATABASE_URL) or a private one with the sample catalog.
run: postgres
	cargo build --release
	@if [ -n "$$DATABASE_URL" ]; then exec target/release/model-catalog serve; else exec target/release/model-catalog demo; fi

test: postgres test-tools
	cargo test

# The long run: random writers under random faults, a few minutes of it.
soak: export SOAK_SECONDS ?= 240
soak: test-tools
	cargo test --test it soak:: -- --nocapture

lint:
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

# Postgres' server programs, from the system's packages when there are none.
postgres:
	@deploy/install.sh postgresql "$${PGBIN:-}/postgres" /usr/lib/postgresql/*/bin/postgres postgres

# What some tests put between the program and Postgres; installing starts nothing.
test-tools: postgres
	@deploy/install.sh pgbouncer pgbouncer /usr/sbin/pgbouncer
	@deploy/install.sh faketime faketime
