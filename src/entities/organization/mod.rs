//! Organizations: what an event of theirs does to the application's table (R1–R13, R19–R21).
//!
//! *Fetch, then write*: a pure INSERT on the create path, a pure UPDATE on the update path, a slug that is
//! chosen once and never touched again, and a guard that makes stale and repeated events harmless. The
//! decision is [`mod@decide`], without I/O; [`Decided`] is the I/O around it, for one event or for many at once.
//!
//! What each kind of event comes to is a table in `docs/design.md`.

mod apply;
mod current;
pub mod decide;
mod error;
mod event;
pub mod host;
mod ledger;
pub mod mirror;
mod notify;
pub mod organization_id;
pub mod precision;
pub mod schema;
pub mod slug;
pub mod statements;
mod store;

pub use apply::{Choices, Decided, decide, preview};
pub use current::Host;
pub use error::{ApplyError, ColumnTooShort, NotAUuid, SlugRefused, TwoRows, Write};
pub use event::{Change, OrganizationEvent, OrganizationEventType};
