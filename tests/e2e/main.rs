//! The built program from the outside: its command line, its processes, its signals, its exit codes, and the
//! official WorkOS emulator on the other side.
//!
//! `make e2e` installs the emulator first. Everything but `emulator` runs without it.

#![expect(
    clippy::unwrap_used,
    reason = "to clippy, the helpers of tests are outside of tests"
)]

mod configuration;
mod database_url;
mod demo;
mod doctor;
mod emulator;
mod hardening;
mod healing;
mod interrupted;
mod lifecycle;
mod migrate;
mod operate;
#[cfg(feature = "otlp")]
mod otlp;
mod page;
mod pgbouncer;
mod private_database;
mod readme;
mod replay;
mod signing;
mod skew;
mod start;
mod support;
