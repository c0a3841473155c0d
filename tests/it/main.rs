//! Everything that needs Postgres or a socket: one binary, a module a theme, a database for each test.

#![expect(
    clippy::unwrap_used,
    reason = "to clippy, the helpers of tests are outside of tests"
)]

mod admin;
mod admin_api;
mod architecture;
mod batches;
mod bugs;
mod connections;
mod convergence;
mod doctor;
mod documents;
mod embed;
mod entities;
mod failures;
mod heal;
mod health;
mod host_table;
mod inbox;
mod listener;
mod log_lines;
mod matrix;
mod metrics;
mod migrations;
mod notify;
mod operate;
mod ops;
mod organizations;
mod outbox;
mod packaging;
mod pause;
mod pooler;
mod properties;
mod races;
mod shapes;
mod shared;
mod snapshots;
mod support;
mod webhook;
mod workos;
mod workos_lists;
