//! s
pub mod decide; pub mod organization_id; pub mod slug;
