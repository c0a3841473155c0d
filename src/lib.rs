//! `workos-sync` keeps a Postgres table of organizations in step with `WorkOS`.
pub mod clock; pub mod event; pub mod keyed_mutex; pub mod signature; pub mod sync;
