//! The events that are sent: their ids, their bodies, their signatures.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use ulid::Ulid;

/// The secret of the service, of the peer and of the generator.
pub(crate) const SECRET: &str = "whsec_benchmark_only";
/// The path that both receive webhooks at.
pub(crate) const PATH: &str = "/webhooks/workos";

/// 2026-01-01, in milliseconds: event number n happens n milliseconds later, so that the order of ids is the
/// order of numbers.
const FIRST_EVENT_AT: u64 = 1_767_225_600_000;

/// One event. What it says is a function of its number and its organization, so that the database can be
/// compared with it later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) kind: Kind,
    pub(crate) workos_id: String,
    pub(crate) name: String,
    pub(crate) external_id: Option<String>,
    /// Milliseconds since 1970.
    at: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Created,
    Updated,
}

impl Event {
    pub(crate) fn new(
        number: u64,
        kind: Kind,
        workos_id: String,
        name: String,
        external_id: Option<String>,
    ) -> Self {
        let at = FIRST_EVENT_AT + number;
        Self {
            // Like a real one, it says nothing of its neighbours but the time.
            id: format!("event_{}", Ulid::from_parts(at, scatter(number))),
            kind,
            workos_id,
            name,
            external_id,
            at,
        }
    }

    /// The body, about as long as WorkOS's own. Without any white space: the peer's SDK signs what it
    /// serializes anew.
    pub(crate) fn body(&self) -> String {
        let Self {
            id,
            workos_id,
            name,
            ..
        } = self;
        let kind = match self.kind {
            Kind::Created => "created",
            Kind::Updated => "updated",
        };
        let external_id = match &self.external_id {
            Some(id) => format!("\"{id}\""),
            None => "null".to_owned(),
        };
        let at = chrono::DateTime::from_timestamp_millis(self.at.cast_signed())
            .unwrap_or_default()
            .format("%Y-%m-%dT%H:%M:%S%.3fZ");
        format!(
            r#"{{"object":"event","id":"{id}","event":"organization.{kind}","data":{{"object":"organization","id":"{workos_id}","name":"{name}","allow_profiles_outside_organization":false,"domains":[{{"object":"organization_domain","id":"org_domain_01EHWNCE74X7JSDV0X3SZ3KJNY","organization_id":"{workos_id}","domain":"example.com","state":"verified","verification_strategy":"dns","verification_token":"m5Oztg3jdK4NJLgs8uIlIprMw","created_at":"2026-01-01T00:00:00.000Z","updated_at":"2026-01-01T00:00:00.000Z"}}],"metadata":{{"tier":"diamond"}},"external_id":{external_id},"stripe_customer_id":null,"created_at":"2026-01-01T00:00:00.000Z","updated_at":"{at}"}},"created_at":"{at}","context":{{}}}}"#
        )
    }
}

/// The value of the `WorkOS-Signature` header, made now.
pub(crate) fn sign(body: &str) -> String {
    let t = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis());
    let mut mac =
        Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(format!("{t}.{body}").as_bytes());
    let mut header = format!("t={t}, v1=");
    let _ = write!(header, "{}", hex::encode(mac.finalize().into_bytes()));
    header
}

/// Spreads consecutive numbers over the whole range (the finalizer of `SplitMix64`): for the random part of
/// ids, which is what makes an index of them random, and for the choice of organizations.
pub(crate) fn scatter(number: u64) -> u128 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    u128::from(z ^ (z >> 31))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_ascend_with_numbers_and_bodies_are_events() {
        let event = |n| Event::new(n, Kind::Created, "org_1".into(), "Acme".into(), None);
        assert!(event(9).id < event(10).id);
        let body = event(1).body();
        use workos_sync::entities::organization::OrganizationEvent;
        let parsed = workos_sync::event::Event::parse(body.as_bytes()).unwrap();
        assert_eq!(parsed.id.as_str(), event(1).id);
        assert!(OrganizationEvent::decode(&parsed).is_ok());
    }
}
