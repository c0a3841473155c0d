//! The functions on an event's way that touch no database: what an event costs before Postgres.

use std::sync::LazyLock;
use std::time::Duration;

use chrono::{DateTime, Utc};
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use secrecy::SecretString;
use workos_sync::entities::organization::decide::{
    Found, OrganizationRow, SyncCursor, candidate_id, decide,
};
use workos_sync::entities::organization::precision::RowPrecision;
use workos_sync::entities::organization::{OrganizationEvent, organization_id, slug};
use workos_sync::event::{Event, EventId, OrganizationId, WorkosId};
use workos_sync::keyed_mutex::KeyedMutex;
use workos_sync::signature;

const KILOBYTE: usize = 1_024;
const MEGABYTE: usize = 1_024 * 1_024;

static SECRETS: LazyLock<[SecretString; 1]> = LazyLock::new(|| ["whsec_benchmark".into()]);

fn main() {
    divan::main();
}

/// An `organization.updated` of about so many bytes, most of them in a field that isn't used.
fn body(bytes: usize) -> String {
    let padding = "x".repeat(bytes.saturating_sub(300));
    format!(
        r#"{{"id":"event_01HXYZ0000000000000000000A","event":"organization.updated","created_at":"2026-01-01T00:00:00.000Z","data":{{"object":"organization","id":"org_01EHWNCE74X7JSDV0X3SZ3KJNY","name":"Acme, Inc.","external_id":null,"updated_at":"2026-01-01T00:00:00.000Z","metadata":{{"note":"{padding}"}}}}}}"#
    )
}

#[divan::bench(args = [KILOBYTE, MEGABYTE])]
fn verify(bencher: Bencher<'_, '_>, bytes: usize) {
    let body = body(bytes);
    let now = DateTime::<Utc>::UNIX_EPOCH;
    let header = signature::sign(&SECRETS[0], body.as_bytes(), now);
    bencher.counter(BytesCount::of_str(&body)).bench(|| {
        let header = Some(header.as_bytes());
        signature::verify(
            header,
            black_box(body.as_bytes()),
            &*SECRETS,
            Duration::ZERO,
            now,
        )
    });
}

#[divan::bench(args = [KILOBYTE, MEGABYTE])]
fn parse_envelope(bencher: Bencher<'_, '_>, bytes: usize) {
    let body = body(bytes);
    bencher
        .counter(BytesCount::of_str(&body))
        .bench(|| Event::parse(black_box(body.as_bytes())).map(|event| event.id));
}

#[divan::bench]
fn decode_and_decide(bencher: Bencher<'_, '_>) {
    let body = body(KILOBYTE);
    let envelope = Event::parse(body.as_bytes()).expect("the body above is an event");
    let namespace = organization_id::default_namespace();
    let last = EventId::from_database("event_01HXYZ00000000000000000000".to_owned());
    let found = Found {
        by_workos_id: Some(OrganizationRow {
            id: OrganizationId::from_database("acme".to_owned()),
            workos_id: None,
            last_event_id: Some(last.clone()),
            updated_at: None,
            disabled_at: None,
            precision: RowPrecision::FULL,
        }),
        cursor: Some(SyncCursor {
            last_event_id: last,
            last_event_updated_at: None,
            deleted_at: None,
            deletion_is_inferred: false,
        }),
        ..Found::default()
    };
    bencher.bench(|| {
        let event =
            OrganizationEvent::decode(&envelope).expect("the data above are an organization");
        let candidate = candidate_id(&event, &namespace);
        black_box(decide(black_box(&found), candidate, &event));
    });
}

#[divan::bench(args = ["Acme, Inc.", "Café Zoë", "北京市海淀区中关村大街"])]
fn slugify(name: &str) -> String {
    let workos_id = WorkosId::from_database("org_01EHWNCE74X7JSDV0X3SZ3KJNY".to_owned());
    slug::base(black_box(name), &workos_id, slug::MAX_LENGTH)
}

#[divan::bench]
fn first_suffix(bencher: Bencher<'_, '_>) {
    let id = OrganizationId::from_database("ecb5ebb2-3157-545d-8c0a-aac9f5633ff3".to_owned());
    bencher.bench(|| slug::candidates(black_box("acme"), &id, slug::MAX_LENGTH).nth(1));
}

/// Threads try the lock of one key, or of a million in turn.
#[divan::bench(args = [1, 1_000_000], threads = [1, 4])]
fn keyed_mutex(bencher: Bencher<'_, '_>, keys: u64) {
    let mutex = KeyedMutex::default();
    bencher
        .with_inputs(|| fastrand::u64(..keys))
        .bench_values(|key| {
            drop(mutex.try_lock(&key));
        });
}
