# Everything a fresh Debian or Ubuntu machine with Rust needs to run, test and work on workos-sync.
# Each target sets up what it needs; `make help` lists them.

SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

BINARY := target/debug/workos-sync

.PHONY: help run test e2e faults faults-quick lint fmt bench bench-quick sqlx-prepare packages

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 14

run: packages ## Build, and serve on 127.0.0.1:8080 with a private Postgres in .workos-sync
	cargo build --locked
	@exec $(BINARY) serve

test: packages ## Unit, property and integration tests, on a throw-away Postgres unless DATABASE_URL is set
	cargo test --locked --lib --bins --test it --benches

e2e: packages ## Drive the built binary, with the official WorkOS emulator as client and API (needs Node.js 20.20)
	@scripts/require-node
	npm ci --prefix tests/e2e/emulator --no-audit --no-fund
	cargo test --locked --test e2e

faults: packages ## Break everything at random under load, 200 times, and look for what was lost (docs/reliability.md)
	cargo test --locked --test faults

faults-quick: packages ## The same in its short form
	FAULT_QUICK=1 cargo test --locked --test faults

lint: packages ## Formatting, clippy, docs, query data, dependencies: what CI wants clean
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
	scripts/check-versions
	scripts/check-queries
	scripts/check-dependencies

fmt: ## Format the code
	cargo fmt

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
