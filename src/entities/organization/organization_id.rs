//! The organization id of an organization that has none yet (R3). No I/O.

use uuid::Uuid;

use crate::event::{OrganizationId, WorkosId};

/// The namespace that is used unless another is configured: the `UUIDv5` of `speakeasy.com` in the DNS
/// namespace.
#[must_use]
pub fn default_namespace() -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_DNS, b"speakeasy.com")
}

/// Derives the organization id from the WorkOS organization id: the same input gives the same id on every
/// machine, for ever (R3).
#[must_use]
pub fn derive(namespace: &Uuid, workos_id: &WorkosId) -> OrganizationId {
    let id = Uuid::new_v5(namespace, workos_id.as_str().as_bytes());
    OrganizationId::from_database(id.hyphenated().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R3: known answers, computed with Python's `uuid.uuid5`.
    #[test]
    fn the_derived_id_is_the_same_on_every_machine() {
        assert_eq!(
            default_namespace().to_string(),
            "df708297-209f-5667-8ac5-74ec5d2582b7"
        );
        let id = WorkosId::new("org_01EHWNCE74X7JSDV0X3SZ3KJNY").unwrap();
        assert_eq!(
            derive(&default_namespace(), &id).as_str(),
            "ecb5ebb2-3157-545d-8c0a-aac9f5633ff3"
        );
    }
}
