# Everything a newcomer types. `make run` and `make test` install what a bare Debian lacks.
.PHONY: run test test-api test-image test-manifests soak deploys slow-clients fuzz coverage supply-chain lint \
	bench bench-scale bench-fanout bench-micro bench-peers bench-pull pull-kills dist test-dist postgres test-tools

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

# The image and compose.yaml in this machine's Docker, for a few minutes on ports 8080, 9090 and 3333.
test-image:
	tests/image.sh

# The Kubernetes manifests against Kubernetes' own schemas, those of an old version and of a new one; they come from PyPI.
test-manifests:
	@deploy/install.sh kubernetes-client kubectl
	@python3 -c 'import ensurepip' 2>/dev/null || deploy/install.sh python3-venv ensurepip
	@mkdir -p target/manifests
	[ -x target/manifests/venv/bin/kubernetes-validate ] || { python3 -m venv target/manifests/venv && \
		target/manifests/venv/bin/pip install --quiet kubernetes-validate==1.37.0; }
	kubectl kustomize deploy/kubernetes > target/manifests/all.yaml
	# The tool wants a name where the server makes one.
	sed 's/generateName: \(.*\)-$$/name: \1/' deploy/kubernetes/migrate.yaml > target/manifests/migrate.yaml
	for version in 1.27 1.37; do target/manifests/venv/bin/kubernetes-validate --strict --kubernetes-version $$version \
		target/manifests/all.yaml target/manifests/migrate.yaml || exit 1; done

# The long run: random writers under random faults, a few minutes of it.
soak: export SOAK_SECONDS ?= 240
soak: test-tools
	cargo test --test it soak:: -- --nocapture

# Replicas restarted in turn behind HAProxy under load; `make test` does it ten times.
deploys: export DEPLOY_RESTARTS ?= 50
deploys: test-tools
	cargo test --test it rolling:: -- --nocapture

# Two hundred pulls killed at random; `make test` does it with ten. About seven minutes.
pull-kills: test-tools
	cargo test --test it machine::kills::two_hundred -- --ignored --nocapture

# What two thousand slow clients cost the others.
slow-clients: test-tools
	cargo test --release --test it hostile::figures -- --ignored --nocapture

# Each target for FUZZ_SECONDS, on stable Rust: the flags are what cargo-fuzz passes, without a sanitizer. What is found
# is printed with its input and left in target/fuzz; `cargo fuzz run --sanitizer none TARGET` does the same.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS = batch segment snapshot_file row request
FUZZ_HOST = $(shell rustc -vV | sed -n 's/^host: //p')
fuzz: export CARGO_TARGET_DIR = target/fuzz
fuzz: export RUSTFLAGS = --cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares
fuzz:
	@deploy/install.sh g++ g++
	cargo build --release --manifest-path fuzz/Cargo.toml --target $(FUZZ_HOST)
	@set -e; for target in $(FUZZ_TARGETS); do \
		mkdir -p target/fuzz/corpus/$$target; \
		echo "fuzzing $$target for $(FUZZ_SECONDS) s"; \
		target/fuzz/$(FUZZ_HOST)/release/$$target -max_total_time=$(FUZZ_SECONDS) -timeout=5 -rss_limit_mb=1024 \
			-artifact_prefix=target/fuzz/ -print_final_stats=1 \
			target/fuzz/corpus/$$target fuzz/seeds/$$target > target/fuzz/$$target.log 2>&1 \
			|| { tail -40 target/fuzz/$$target.log; exit 1; }; \
		grep -E "number_of_executed_units|^Done" target/fuzz/$$target.log; \
	done

# What all tests together never run, by line, from the program's own processes too. The tools are those of rustc's LLVM.
LLVM = $(shell rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
coverage: export CARGO_TARGET_DIR = target/coverage
coverage: export RUSTFLAGS = -Cinstrument-coverage
coverage: export LLVM_PROFILE_FILE = $(CURDIR)/target/coverage/profiles/%m-%p.profraw
coverage: postgres test-tools
	@deploy/install.sh llvm-$(LLVM) llvm-cov-$(LLVM)
	rm -rf target/coverage/profiles default_*.profraw
	# What ran is told even if a test fails.
	-cargo test
	# What commands that were started without any variable wrote where they stood.
	find . -maxdepth 1 -name 'default_*.profraw' -exec mv -t target/coverage/profiles {} +
	llvm-profdata-$(LLVM) merge -sparse target/coverage/profiles/*.profraw -o target/coverage/all.profdata
	llvm-cov-$(LLVM) report --instr-profile target/coverage/all.profdata --sources src \
		target/coverage/debug/model-catalog \
		$$(ls target/coverage/debug/deps/it-* target/coverage/debug/deps/model_catalog-* | sed '/\.d$$/d; s/^/--object /') \
		| tee target/coverage/report.txt

# Licences, sources and known holes of all dependencies, and dependencies that nothing uses. The tools take minutes to
# build, so this is not part of `make lint`; the list of known holes needs GitHub.
supply-chain: export PATH := $(CURDIR)/target/tools/bin:$(PATH)
supply-chain:
	@command -v cargo-deny > /dev/null || cargo install --locked --root target/tools cargo-deny
	@command -v cargo-machete > /dev/null || cargo install --locked --root target/tools cargo-machete
	cargo deny check --hide-inclusion-graph licenses bans sources
	@if cargo deny fetch db 2> /dev/null; then cargo deny check advisories; \
		else echo "known holes: skipped, the list at github.com can't be reached"; fi
	cargo machete

lint:
	@deploy/install.sh shellcheck shellcheck
	shellcheck deploy/*.sh tests/*.sh
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

# `pull` beside aria2c, curl and Python's requests; the table goes to benches/results/pull.md. It needs 16 GiB of memory, or
# a smaller BENCH_PULL_MIB (2048); BENCH_ROUNDS is 3. About ten minutes.
bench-pull:
	@deploy/install.sh nginx nginx /usr/sbin/nginx
	@deploy/install.sh aria2 aria2c
	@deploy/install.sh curl curl
	@python3 -c 'import requests' 2>/dev/null || deploy/install.sh python3-requests none
	cargo build --release
	PATH="$$PATH:/usr/sbin" python3 benches/pull.py

# The program for machines older than this one: glibc 2.28 and newer (Debian 10, Ubuntu 20.04, RHEL 8), linked by zig, which
# comes from PyPI as cargo-zigbuild does. It goes to target/dist/model-catalog.
DIST_TARGET = $(shell rustc -vV | sed -n 's/^host: //p')
dist:
	@python3 -c 'import ensurepip' 2>/dev/null || deploy/install.sh python3-venv ensurepip
	@mkdir -p target/dist
	[ -x target/dist/venv/bin/cargo-zigbuild ] || { python3 -m venv target/dist/venv && \
		target/dist/venv/bin/pip install --quiet cargo-zigbuild==0.24.1 ziglang==0.17.1; }
	PATH="$(CURDIR)/target/dist/venv/bin:$$PATH" cargo zigbuild --release --locked --target $(DIST_TARGET).2.28
	cp target/$(DIST_TARGET)/release/model-catalog target/dist/model-catalog

# What `make dist` built, in a bare Debian 11 from Debian's mirror; needs root.
test-dist: dist
	@deploy/install.sh debootstrap debootstrap /usr/sbin/debootstrap
	@deploy/install.sh binutils objdump
	PATH="$$PATH:/usr/sbin" tests/dist.sh target/dist/model-catalog target/dist/debian11

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

# What some tests put around the program, the browser for its page, and what machines download with; installing starts nothing.
test-tools: postgres
	@deploy/install.sh pgbouncer pgbouncer /usr/sbin/pgbouncer
	@deploy/install.sh faketime faketime
	@deploy/install.sh aria2 aria2c
	@deploy/install.sh curl curl
	@deploy/install.sh prometheus promtool
	@deploy/install.sh haproxy haproxy /usr/sbin/haproxy
	@deploy/install.sh systemd systemd-analyze
	@deploy/install.sh systemd-container systemd-nspawn
	@deploy/install.sh chromium-driver chromedriver
