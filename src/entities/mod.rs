//! What is kept in step with WorkOS, each kind of thing in a module of its own.

pub mod guard;
pub mod organization;
mod outcome;

pub use outcome::Outcome;
