//! o
mod store;
pub(crate) use store::record;
