//! What holds for any bytes: one property a fuzz target. A property panics where it doesn't hold.
//!
//! The fuzz targets share this file with `tests/it/properties.rs`, which needs no nightly compiler: there the
//! same properties see the corpus, mutations of it, and bytes of no sense at all.

use std::collections::HashSet;
use std::time::Duration;

use chrono::DateTime;
use secrecy::SecretString;
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use workos_sync::entities::organization::{Change, OrganizationEvent, slug};
use workos_sync::event::{Event, MAX_ID_BYTES, OrganizationId, WorkosId};
use workos_sync::signature;

/// The secret that the signatures of the corpus are made with.
const SECRET: &str = "secret";

/// R29, R30: a header, of several lines where it has carriage returns, and, after the first line break, a body. A
/// signature is good if, and only if, it is the one that a second implementation computes; and a good one is good for
/// one body and one time.
pub(crate) fn signature(input: &[u8]) {
    let (header, body) = split(input);
    let verdict = |header: &[u8], body: &[u8]| {
        let secrets = [SecretString::from(SECRET)];
        signature::verify(
            header.split(|byte| *byte == b'\r'),
            body,
            &secrets,
            Duration::ZERO,
            DateTime::UNIX_EPOCH,
        )
    };
    assert_eq!(verdict(header, body).is_ok(), is_signed(header, body));

    // The header's bytes choose when to sign, and what to falsify.
    let chosen = u64::from_le_bytes(Sha256::digest(header)[..8].try_into().unwrap());
    let t = (chosen >> 24).to_string();
    let v1 = hmac_sha256(&[t.as_bytes(), b".", body]);
    let header = |t: &[u8], v1: &[u8]| [b"t=", t, b", v1=", hex::encode(v1).as_bytes()].concat();
    assert_eq!(verdict(&header(t.as_bytes(), &v1), body), Ok(1));
    let falsified = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        let bit = usize::try_from(chosen & 0xff_ffff).unwrap() % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    };
    assert!(verdict(&header(t.as_bytes(), &falsified(&v1)), body).is_err());
    assert!(verdict(&header(&falsified(t.as_bytes()), &v1), body).is_err());
    if !body.is_empty() {
        assert!(verdict(&header(t.as_bytes(), &v1), &falsified(body)).is_err());
    }
}

/// Whether a header signs a body, read in another way than the service does.
fn is_signed(header: &[u8], body: &[u8]) -> bool {
    let Ok(header) = std::str::from_utf8(header) else {
        return false;
    };
    let values = |name: &str| -> Vec<&str> {
        let parts = header.split(['\r', ',']).map(str::trim);
        parts.filter_map(|part| part.strip_prefix(name)).collect()
    };
    let Some(t) = values("t=").first().copied() else {
        return false;
    };
    let v1 = hex::encode(hmac_sha256(&[t.as_bytes(), b".", body]));
    t.bytes().all(|byte| byte.is_ascii_digit())
        && t.parse::<u64>().is_ok()
        && values("v1=")
            .iter()
            .any(|value| value.eq_ignore_ascii_case(&v1))
}

/// HMAC by the book (RFC 2104), under [`SECRET`].
fn hmac_sha256(parts: &[&[u8]]) -> [u8; 32] {
    let pad = |with: u8| {
        let mut block = [with; 64];
        for (byte, key) in block.iter_mut().zip(SECRET.bytes()) {
            *byte ^= key;
        }
        block
    };
    let mut inner = Sha256::new_with_prefix(pad(0x36));
    for part in parts {
        inner.update(part);
    }
    Sha256::new_with_prefix(pad(0x5c))
        .chain_update(inner.finalize())
        .finalize()
        .into()
}

/// R30, R26: a body is an event if, and only if, `serde_json` finds an object with a usable `id` and `event` in
/// it, and they are the event's; as `data` of an event, it makes an organization only if it is one.
pub(crate) fn envelope(input: &[u8]) {
    let event = Event::parse(input);
    // Behind a byte order mark.
    let text = std::str::from_utf8(input.strip_prefix(b"\xef\xbb\xbf").unwrap_or(input)).ok();
    let value = text.and_then(|text| serde_json::from_str::<Value>(text).ok());
    let usable = |key: &str| {
        let text = value.as_ref()?.as_object()?.get(key)?.as_str()?;
        let usable = !text.is_empty() && text.len() <= MAX_ID_BYTES && !text.contains('\0');
        usable.then_some(text)
    };
    match &event {
        Ok(event) => {
            assert_eq!(Some(event.body), text);
            let raw = serde_json::from_str::<&RawValue>(event.body).unwrap();
            assert!(raw.get().starts_with('{'));
            // It refuses depths, numbers and surrogates in fields that an event doesn't need.
            if value.is_some() {
                assert_eq!(usable("id"), Some(event.id.as_str()));
                assert_eq!(usable("event"), Some(&*event.event_type));
            }
        }
        // It takes the last of two.
        Err(error) if error.to_string().contains("duplicate field") => {}
        Err(error) => assert!(
            usable("id").is_none() || usable("event").is_none(),
            "{error}"
        ),
    }
    organization(input);
}

fn organization(data: &[u8]) {
    for kind in ["created", "updated", "deleted"] {
        let envelope = format!(r#"{{"id":"event_1","event":"organization.{kind}","data":"#);
        let body = [envelope.as_bytes(), data, b"}"].concat();
        let Ok(event) = Event::parse(&body) else {
            continue;
        };
        let Ok(organization) = OrganizationEvent::decode(&event) else {
            continue;
        };
        assert_eq!(event.workos_id.as_ref(), Some(&organization.workos_id));
        let value = serde_json::from_slice::<Value>(&body).unwrap_or_default();
        if let Some(data) = value["data"].as_object() {
            assert_eq!(data["id"], organization.workos_id.as_str());
            match &organization.change {
                Change::Delete => assert_eq!(kind, "deleted"),
                Change::Upsert { name } => {
                    assert_ne!(kind, "deleted");
                    assert_eq!(data["name"], **name);
                    assert!(!name.contains('\0'));
                }
            }
            let given = data.get("external_id").and_then(Value::as_str);
            let given = given.filter(|id| OrganizationId::new(*id).is_ok());
            let external_id = organization.external_id.as_ref();
            assert_eq!(given, external_id.map(OrganizationId::as_str));
        }
    }
}

/// R8, R9: an id and, after the first line break, a name. Every slug has the shape of a slug and is its own slug;
/// the name's own comes first, and no two of the others are the same. (A name that ends as the organization's suffix
/// does can make its own slug return among them.) All of that holds for a short column too.
pub(crate) fn slugify(input: &[u8]) {
    let (id, name) = split(input);
    let (id, name) = (String::from_utf8_lossy(id), String::from_utf8_lossy(name));
    let (Ok(workos_id), Ok(organization_id)) = (WorkosId::new(&*id), OrganizationId::new(&*id))
    else {
        return;
    };
    for max_length in [slug::MAX_LENGTH, 10] {
        let base = slug::base(&name, &workos_id, max_length);
        let candidates: Vec<_> = slug::candidates(&base, &organization_id, max_length)
            .take(9)
            .collect();
        assert_eq!(candidates[0], base);
        let suffixed: HashSet<_> = candidates[1..].iter().collect();
        assert_eq!(suffixed.len(), 8, "{candidates:?}");
        for slug in &candidates {
            assert!((2..=max_length).contains(&slug.len()), "{slug:?}");
            let mut words = slug.split('-');
            let is_word = |word: &str| {
                let mut bytes = word.bytes();
                !word.is_empty() && bytes.all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9'))
            };
            assert!(words.all(is_word), "{slug:?}");
            assert_eq!(slug::base(slug, &workos_id, max_length), *slug);
        }
    }
}

/// What stands before the first line break, and what after it.
fn split(input: &[u8]) -> (&[u8], &[u8]) {
    let mut parts = input.splitn(2, |byte| *byte == b'\n');
    (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    )
}
