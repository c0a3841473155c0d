//! `workos-sync` keeps a Postgres table of organizations in step with `WorkOS`.
