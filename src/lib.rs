//! `workos-sync` keeps a Postgres table of organizations in step with `WorkOS`.
//!
//! The modules, in the order of an event's way: a request comes in ([`http`]), its signature is verified
//! ([`signature`]), its envelope read ([`event`]); the event is made durable and acknowledged, and waits
//! for its turn in its organization's lane ([`inbox`], one worker a lane: [`keyed_mutex`]), is decided and written ([`sync`]), and leaves an
//! intention to tell `WorkOS` the organization id ([`outbox`], [`workos`]). Around them: the database
//! ([`postgres`]), time ([`clock`]), the end of the process ([`shutdown`]), the log ([`telemetry`]), what is measured
//! ([`metrics`]), what asks `WorkOS` for what was missed ([`heal`]), what looks for mistakes of the setup ([`doctor`]), and what
//! starts it all ([`config`], [`dotenv`], [`cli`]).
//!
//! Arrows go one way: `cli → http → inbox → sync → event`; `sync` records in `outbox` and knows no more of it.

mod backoff;
pub mod cli;
pub mod clock;
pub mod config;
pub mod doctor;
pub mod dotenv;
pub mod event;
pub mod heal;
pub mod http;
pub mod inbox;
pub mod keyed_mutex;
pub mod metrics;
pub mod outbox;
mod panics;
pub mod postgres;
pub mod shutdown;
pub mod signature;
pub mod sync;
pub mod telemetry;
pub mod workos;
