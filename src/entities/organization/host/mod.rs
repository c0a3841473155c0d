//! The application's table, `organization_metadata`: where it is, what it is, and whether it can work (R32 to R34).
//!
//! It is looked at, not believed in: what the catalog says of it is read once, said in sentences, and read again when
//! a statement fails for what the table is.

mod catalog;
mod check;
mod make;
mod table;

pub use catalog::LookupError;
pub(super) use make::make;
pub use table::{Column, Finding, HostTable, Key, Kind, NAME, Rows, Severity, UniqueIndex, Value};
