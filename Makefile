# Everything a fresh Debian or Ubuntu machine with Rust needs to run, test and work on workos-sync.
# Each target sets up what it needs; `make help` lists them.

SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

BINARY := target/debug/workos-sync
# The benchmark is a package of its own, with a lock file of its own, in the same target folder.
IN_BENCH := --manifest-path bench/Cargo.toml --target-dir target

.PHONY: help run demo test loom fuzz e2e faults faults-quick lint fmt bench bench-quick sqlx-prepare packages

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 14

demo: packages ## Look at the page: a private Postgres, a pretended WorkOS, and events that keep coming, some of them poison
	cargo build --locked --bin workos-sync --example demo
	@exec target/debug/examples/demo

run: packages ## Build, and serve on 127.0.0.1:8080 with a private Postgres in .workos-sync
	cargo build --locked
	@exec $(BINARY) serve

test: packages ## Unit, property and integration tests, on a throw-away Postgres unless DATABASE_URL is set
	cargo test --locked --lib --bins --test it --benches
	cargo test --locked --doc
	cargo test --locked $(IN_BENCH)

loom: ## Run the keyed mutex through the interleavings of its threads
	cargo test --locked --manifest-path loom/Cargo.toml

fuzz: ## Fuzz a target for a minute: make fuzz TARGET=signature (or envelope, slugify)
	scripts/fuzz $(TARGET)

e2e: packages ## Drive the built binary, with the official WorkOS emulator as client and API, and a browser (needs Node.js 20.20)
	@scripts/require-node
	@scripts/install-packages faketime pgbouncer chromium
	npm ci --prefix tests/e2e/emulator --no-audit --no-fund
	npm ci --prefix tests/e2e/browser --no-audit --no-fund
	cargo test --locked --test e2e
	cargo test --locked --features otlp --test e2e otlp::

faults: packages ## Break everything at random under load, 200 times, and look for what was lost (docs/reliability.md)
	@scripts/install-packages faketime
	cargo test --locked --test faults

faults-quick: packages ## The same in its short form
	@scripts/install-packages faketime
	FAULT_QUICK=1 cargo test --locked --test faults

lint: packages ## Formatting, clippy, docs, query data, dependencies: what CI wants clean
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo fmt --check --manifest-path bench/Cargo.toml
	cargo clippy --locked $(IN_BENCH) --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
	cargo check --locked --manifest-path fuzz/Cargo.toml --target-dir target
	scripts/check-queries
	scripts/check-dependencies

fmt: ## Format the code
	cargo fmt
	cargo fmt --manifest-path bench/Cargo.toml

bench: packages ## Benchmark the functions on an event's way, then the service; writes docs/benchmarks.md (needs Node.js 20.20)
	cargo bench --locked --bench functions
	scripts/bench --out docs/benchmarks.md

bench-quick: packages ## Benchmark the service in its short form, in a few minutes (needs Node.js 20.20)
	scripts/bench --quick

sqlx-prepare: packages ## Write the query data in .sqlx anew, after a change of a query or a migration
	@command -v cargo-sqlx >/dev/null || cargo install sqlx-cli@0.9.0 --locked --no-default-features -F rustls,postgres,sqlx-toml
	scripts/with-postgres bash -c 'cargo sqlx migrate run && cargo sqlx prepare -- --all-targets'

# A C compiler and linker for the build, Postgres's server programs for everything that runs.
packages:
	@scripts/install-packages
