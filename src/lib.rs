//! `workos-sync` keeps a Postgres table of organizations in step with `WorkOS`.
pub mod clock;
pub mod event;
pub mod keyed_mutex;
pub mod outbox;
pub mod postgres;
pub mod signature;
pub mod sync;
