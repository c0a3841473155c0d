# As `rust-version` in Cargo.toml; a test compares the two.
ARG RUST_VERSION=1.95

FROM rust:${RUST_VERSION}-bookworm AS builder
WORKDIR /build

# Writes the list of dependencies into the binary, for scanners (`cargo audit bin`, Trivy, Grype).
RUN cargo install cargo-auditable --version 0.7.7 --locked

# The dependencies, in a layer that only a change of these files throws away. Cargo wants every target
# that Cargo.toml names to exist, so each is an empty stub. `cargo clean` forgets what the stubs became:
# COPY keeps modification times, and Cargo would take an older source for one it has already compiled.
COPY Cargo.toml Cargo.lock build.rs sqlx.toml ./
COPY private-postgres private-postgres
RUN mkdir -p src benches tests/it tests/e2e tests/faults \
    && touch src/lib.rs benches/functions.rs tests/it/main.rs tests/e2e/main.rs tests/faults/main.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo auditable build --release --locked \
    && cargo clean --release --package workos-sync

COPY migrations migrations
COPY .sqlx .sqlx
COPY src src
# What `--version` tells: there is no repository here.
ARG REVISION=
ENV WORKOS_SYNC_REVISION=${REVISION}
# --frozen is --locked and offline: what isn't in the layer above fails here instead of being fetched again
# at every build. The SQL macros read .sqlx, and want no database.
RUN cargo auditable build --release --frozen


# Of the same Debian as the builder: the binary is linked to its glibc.
FROM debian:bookworm-slim

# For TLS to WorkOS and to Postgres. The package and not a copied bundle: an image built on this one can add
# a private authority with update-ca-certificates.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*

COPY --from=builder /build/target/release/workos-sync /usr/local/bin/workos-sync

# A number, because Kubernetes' runAsNonRoot can't tell what a name stands for. It owns no file and needs no
# writable one: the root file system can be read-only.
USER 10001:10001

# The default, loopback, can't be reached from outside a container.
ENV LISTEN_ADDR=0.0.0.0:8080
EXPOSE 8080

# Stops within SHUTDOWN_GRACE_SECONDS (25) plus a moment to close connections. Docker kills after 10 s unless
# told otherwise: `docker stop -t 30`; Kubernetes' 30 s are enough.
STOPSIGNAL SIGTERM

# For Docker and Compose; Kubernetes ignores it, and probes GET /healthz (alive) and GET /readyz (may have traffic).
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["workos-sync", "health"]

ENTRYPOINT ["workos-sync"]

# Last, because they change with every build.
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="workos-sync" \
      org.opencontainers.image.description="Keeps a Postgres table of organizations in step with WorkOS" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
