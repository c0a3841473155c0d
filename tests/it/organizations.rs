//! What events do to organizations: resolve, create, update, delete (R1–R11, R13).

use chrono::DateTime;

use crate::support::event::{at, event_id, rfc3339};
use crate::support::{EventBuilder, NOW, TestApp, created, deleted, updated};

const ACME: &str = "org_01EHWNCE74X7JSDV0X3SZ3KJNY";
const OTHER: &str = "org_01EHWNFTAFCF3CQAE5A9Q0P1YB";

/// R3, R4: nothing found, no `external_id`: a row with the derived id.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_organization_gets_the_derived_id() {
    let app = TestApp::new().await;
    assert_eq!(app.apply(&created(1, ACME, "Acme, Inc.")).await, "created");
    let row = app.organization().await;
    assert_eq!(row.id, "ecb5ebb2-3157-545d-8c0a-aac9f5633ff3");
    assert_eq!(
        (row.name.as_str(), row.slug.as_str()),
        ("Acme, Inc.", "acme-inc")
    );
    assert_eq!(row.workos_id.as_deref(), Some(ACME));
    assert_eq!(row.workos_updated_at, Some(at(1)));
    assert_eq!(row.workos_last_event_id, Some(event_id(1)));
    assert_eq!(row.disabled_at, None);
}

/// R2: nothing found, an `external_id`: it is the organization id. An empty one counts as none.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_organization_with_an_external_id_gets_that() {
    let app = TestApp::new().await;
    assert_eq!(
        app.apply(&updated(1, ACME, "Acme").external_id("acme-42"))
            .await,
        "created"
    );
    assert_eq!(app.organization().await.id, "acme-42");
    assert_eq!(
        app.apply(&created(1, OTHER, "Other").id("event_x").external_id(""))
            .await,
        "created"
    );
    assert_eq!(app.organizations().await.len(), 2);
    assert!(
        app.organizations()
            .await
            .iter()
            .all(|row| !row.id.is_empty())
    );
}

/// R1, R5: found by `workos_id`: what WorkOS owns is updated. The slug stays, though the name asks for
/// another that a sibling has: the collision that began it all.
#[tokio::test(flavor = "multi_thread")]
async fn a_rename_into_a_siblings_slug_changes_the_name_alone() {
    let app = TestApp::new().await;
    app.apply(&created(1, ACME, "Acme")).await;
    app.apply(&created(2, OTHER, "Umbrella")).await;
    assert_eq!(app.apply(&updated(3, OTHER, "Acme")).await, "updated");
    let rows = app.organizations().await;
    let row = rows
        .iter()
        .find(|row| row.workos_id.as_deref() == Some(OTHER))
        .unwrap();
    assert_eq!((row.name.as_str(), row.slug.as_str()), ("Acme", "umbrella"));
    assert_eq!(row.workos_updated_at, Some(at(3)));
    assert_eq!(row.workos_last_event_id, Some(event_id(3)));
}

/// R5: columns that WorkOS doesn't own, ours and the application's, are left alone on a table that has more
/// of them.
#[tokio::test(flavor = "multi_thread")]
async fn columns_of_the_application_are_left_alone() {
    let app = TestApp::new().await;
    app.execute(
        "alter table organization_metadata add column plan text not null default 'free',
                                           add column \"Weird Name\" jsonb",
    )
    .await;
    app.apply(&created(1, ACME, "Acme")).await;
    app.execute(
        "update organization_metadata
         set plan = 'gold', \"Weird Name\" = '[1]', slug = 'chosen-by-us', disabled_at = '2020-01-01Z'",
    )
    .await;
    assert_eq!(app.apply(&updated(2, ACME, "Acme 2")).await, "updated");
    let row: (String, String, String, String, DateTime<chrono::Utc>) = sqlx::query_as(
        "select name, plan, \"Weird Name\"::text, slug, disabled_at from organization_metadata",
    )
    .fetch_one(&app.db.pool)
    .await
    .unwrap();
    let disabled = "2020-01-01T00:00:00Z".parse().unwrap();
    assert_eq!(
        row,
        (
            "Acme 2".into(),
            "gold".into(),
            "[1]".into(),
            "chosen-by-us".into(),
            disabled
        )
    );
}

/// R2: a row of the application's own is linked by `external_id`; R3: or by the derived id.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_the_application_is_linked() {
    let app = TestApp::new().await;
    app.execute(
        "insert into organization_metadata (id, name, slug)
         values ('local-1', 'Before', 'before'),
                ('ecb5ebb2-3157-545d-8c0a-aac9f5633ff3', 'Derived', 'derived')",
    )
    .await;
    assert_eq!(
        app.apply(&created(1, OTHER, "After").external_id("local-1"))
            .await,
        "linked"
    );
    assert_eq!(
        app.apply(&created(1, ACME, "Acme").id("event_y")).await,
        "linked"
    );
    let rows = app.organizations().await;
    assert_eq!(rows.len(), 2);
    assert_eq!(
        (rows[1].name.as_str(), rows[1].slug.as_str()),
        ("After", "before")
    );
    assert_eq!(rows[1].workos_id.as_deref(), Some(OTHER));
    assert_eq!(
        (rows[0].name.as_str(), rows[0].slug.as_str()),
        ("Acme", "derived")
    );
}

/// R6: a row found by `workos_id` keeps its organization id, whatever `external_id` says.
#[tokio::test(flavor = "multi_thread")]
async fn a_linked_row_is_never_remapped() {
    let app = TestApp::new().await;
    app.apply(&created(1, ACME, "Acme").external_id("one"))
        .await;
    assert_eq!(
        app.apply(&updated(2, ACME, "Acme 2").external_id("two"))
            .await,
        "updated"
    );
    let row = app.organization().await;
    assert_eq!((row.id.as_str(), row.name.as_str()), ("one", "Acme 2"));
}

/// R6: a row that is linked to another organization is relinked, though its cursor, the other's, is newer.
#[tokio::test(flavor = "multi_thread")]
async fn a_relink_ignores_the_cursor_of_the_predecessor() {
    let app = TestApp::new().await;
    app.apply(&created(9, OTHER, "Old").external_id("shared"))
        .await;
    assert_eq!(
        app.apply(&created(1, ACME, "New").external_id("shared"))
            .await,
        "linked"
    );
    let row = app.organization().await;
    assert_eq!(
        (row.name.as_str(), row.workos_id.as_deref()),
        ("New", Some(ACME))
    );
    assert_eq!(row.workos_last_event_id, Some(event_id(1)));
    // The guard goes on by the new organization's own cursor.
    let again = updated(1, ACME, "Again").id(&event_id(1).replace("event_", "evt_"));
    assert_eq!(app.apply(&again).await, "stale");
}

/// R6, R11: what was applied of an organization counts after its row was relinked away from it.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_event_of_a_predecessor_does_not_take_the_row_back() {
    let app = TestApp::new().await;
    app.apply(&created(5, OTHER, "Old").external_id("shared"))
        .await;
    app.apply(&created(7, ACME, "New").external_id("shared"))
        .await;
    assert_eq!(
        app.apply(&updated(3, OTHER, "Older").external_id("shared"))
            .await,
        "stale"
    );
    assert_eq!(app.organization().await.workos_id.as_deref(), Some(ACME));
}

/// R7, R11: older events and repetitions change nothing; the cursor never goes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_stale_event_changes_nothing() {
    let app = TestApp::new().await;
    app.apply(&updated(5, ACME, "Five")).await;
    let before = app.organization().await;
    // The same ULID behind another prefix is the same place in the order.
    let again = updated(5, ACME, "Five again").id(&event_id(5).replace("event_", "evt_"));
    for event in [created(4, ACME, "Four"), again] {
        assert_eq!(app.apply(&event).await, "stale");
        assert_eq!(app.organization().await, before);
        assert_eq!(app.cursor(ACME).await, Some(event_id(5)));
    }
    app.apply(&updated(6, ACME, "Six")).await;
    assert_eq!(app.cursor(ACME).await, Some(event_id(6)));
}

/// R7: without a cursor, the timestamps decide.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_without_a_cursor_is_guarded_by_its_time() {
    let app = TestApp::new().await;
    app.execute(
        "insert into organization_metadata (id, name, slug, workos_id, workos_updated_at)
         values ('local', 'Local', 'local', 'org_01EHWNCE74X7JSDV0X3SZ3KJNY', to_timestamp(1800000005))",
    )
    .await;
    assert_eq!(app.apply(&updated(4, ACME, "Four")).await, "stale");
    assert_eq!(app.apply(&updated(5, ACME, "Five")).await, "updated");
}

/// R7: an odd id can't freeze a row: where only one of two ids has a ULID, the timestamps decide.
#[tokio::test(flavor = "multi_thread")]
async fn an_odd_event_id_does_not_freeze_a_row() {
    let app = TestApp::new().await;
    app.apply(&updated(5, ACME, "Five")).await;
    assert_eq!(
        app.apply(&updated(4, ACME, "Old sample").id("wh_123"))
            .await,
        "stale"
    );
    assert_eq!(
        app.apply(&updated(6, ACME, "Sample").id("wh_124")).await,
        "updated"
    );
    assert_eq!(app.apply(&updated(7, ACME, "Seven")).await, "updated");
    assert_eq!(app.organization().await.name, "Seven");
}

/// R7: a payload without `updated_at` counts as updated when the event was made; the form of WorkOS's samples
/// is read as UTC; an unreadable date counts as absent.
#[tokio::test(flavor = "multi_thread")]
async fn dates_are_read_in_every_form_that_workos_uses() {
    let app = TestApp::new().await;
    for (n, event, expected) in [
        (1, updated(1, ACME, "a").without("updated_at"), Some(at(1))),
        (
            2,
            updated(2, ACME, "b").data("updated_at", "2023-04-28 20:05:31.093"),
            Some("2023-04-28T20:05:31.093Z".parse().unwrap()),
        ),
        (
            3,
            updated(3, ACME, "c").data("updated_at", "2023-04-28T22:05:31.093123456+02:00"),
            Some("2023-04-28T20:05:31.093123Z".parse().unwrap()),
        ),
        (
            4,
            updated(4, ACME, "d").data("updated_at", "yesterday"),
            Some(at(4)),
        ),
        (
            5,
            updated(5, ACME, "e").data("updated_at", 17).undated(),
            None,
        ),
    ] {
        app.apply(&event).await;
        assert_eq!(
            app.organization().await.workos_updated_at,
            expected,
            "event {n}"
        );
    }
}

/// R8: a name without letters never fails the event.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_without_letters_gets_the_slug_of_its_workos_id() {
    let app = TestApp::new().await;
    assert_eq!(app.apply(&created(1, ACME, "!!!")).await, "created");
    assert_eq!(
        app.organization().await.slug,
        "org-01ehwnce74x7jsdv0x3sz3kjny"
    );
}

/// R9: the suffix of a taken slug is a function of the organization id, so that a replay chooses the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_taken_slug_gets_the_same_suffix_again() {
    let app = TestApp::new().await;
    app.apply(&created(1, ACME, "Acme")).await;
    app.apply(&created(2, OTHER, "Acme").external_id("other"))
        .await;
    let slug = app
        .organizations()
        .await
        .into_iter()
        .find(|row| row.id == "other")
        .unwrap()
        .slug;
    assert!(slug.starts_with("acme-") && slug.len() == 11, "{slug}");
    app.execute("delete from organization_metadata where id = 'other'")
        .await;
    app.apply(&updated(3, OTHER, "Acme").external_id("other"))
        .await;
    assert!(
        app.organizations()
            .await
            .iter()
            .any(|row| row.id == "other" && row.slug == slug)
    );
}

/// R9: taken suffixes are lengthened until one is free.
#[tokio::test(flavor = "multi_thread")]
async fn a_taken_suffix_is_lengthened() {
    use workos_sync::event::OrganizationId;
    use workos_sync::sync::slug;

    let app = TestApp::new().await;
    let slugs: Vec<_> = slug::candidates("acme", &OrganizationId::new("acme-7").unwrap())
        .take(8)
        .collect();
    for taken in &slugs[..7] {
        sqlx::query("insert into organization_metadata (id, name, slug) values ($1, 'x', $1)")
            .bind(taken)
            .execute(&app.db.pool)
            .await
            .unwrap();
    }
    assert_eq!(
        app.apply(&created(1, ACME, "Acme").external_id("acme-7"))
            .await,
        "created"
    );
    let row = app
        .organizations()
        .await
        .into_iter()
        .find(|row| row.id == "acme-7")
        .unwrap();
    assert_eq!(row.slug, slugs[7]);
}

/// R10: a deletion disables the row, at the time of the deletion; the slug stays, and nothing that comes from
/// WorkOS clears it.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_disables_the_row_for_good() {
    let app = TestApp::new().await;
    app.apply(&created(1, ACME, "Acme")).await;
    assert_eq!(app.apply(&deleted(3, ACME)).await, "disabled");
    let row = app.organization().await;
    assert_eq!((row.disabled_at, row.slug.as_str()), (Some(at(3)), "acme"));
    assert_eq!(
        row.name, "Acme",
        "a deletion sets disabled_at and the cursor, nothing else"
    );
    assert_eq!(row.workos_last_event_id, Some(event_id(3)));
    assert_eq!(app.apply(&deleted(2, ACME)).await, "stale");
    assert_eq!(app.apply(&updated(4, ACME, "Back?")).await, "updated");
    assert_eq!(app.organization().await.disabled_at, Some(at(3)));
}

/// R10: a stale deletion changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_stale_deletion_changes_nothing() {
    let app = TestApp::new().await;
    app.apply(&created(5, ACME, "Acme")).await;
    assert_eq!(app.apply(&deleted(4, ACME)).await, "stale");
    assert_eq!(app.organization().await.disabled_at, None);
}

/// R10: the deletion of an unknown organization leaves a tombstone: what is older doesn't bring it back.
#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_keeps_a_late_creation_out() {
    let app = TestApp::new().await;
    assert_eq!(app.apply(&deleted(5, ACME)).await, "tombstoned");
    assert_eq!(app.cursor(ACME).await, Some(event_id(5)));
    for late in [created(1, ACME, "Acme"), updated(4, ACME, "Acme")] {
        assert_eq!(app.apply(&late).await, "stale");
    }
    assert!(app.organizations().await.is_empty());
}

/// R10, R12: an organization that is known to be deleted never has an active row, whatever comes later.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_deleted_organization_gets_is_born_disabled() {
    let app = TestApp::new().await;
    app.execute("insert into organization_metadata (id, name, slug) values ('local', 'L', 'l')")
        .await;
    app.apply(&deleted(5, ACME)).await;
    app.apply(&deleted(5, OTHER).id(&event_id(6))).await;
    assert_eq!(app.apply(&updated(7, ACME, "Acme")).await, "created");
    assert_eq!(
        app.apply(&updated(8, OTHER, "Other").external_id("local"))
            .await,
        "linked"
    );
    for row in app.organizations().await {
        assert!(row.disabled_at.is_some(), "{row:?}");
    }
}

/// R11: the cursor moves in the transaction of the write: it isn't there when the write isn't.
#[tokio::test(flavor = "multi_thread")]
async fn the_cursor_is_rolled_back_with_the_write() {
    let app = TestApp::new().await;
    app.execute("alter table organization_metadata add constraint no_acme check (name <> 'Acme')")
        .await;
    assert_eq!(app.apply(&created(1, ACME, "Acme")).await, "failed");
    assert_eq!(app.cursor(ACME).await, None);
    assert!(app.organizations().await.is_empty());
    let pushes: i64 = sqlx::query_scalar("select count(*) from external_id_pushes")
        .fetch_one(&app.db.pool)
        .await
        .unwrap();
    assert_eq!(pushes, 0);
}

/// R13: types that are not handled are recorded and acknowledged; the organization that they name is kept.
#[tokio::test(flavor = "multi_thread")]
async fn other_types_are_ignored() {
    let app = TestApp::new().await;
    let membership = EventBuilder::new(1, "organization_membership.created", "om_1")
        .data("organization_id", ACME);
    assert_eq!(app.apply(&membership).await, "ignored");
    let row = app.inbox_row(membership.event_id()).await;
    assert_eq!(row.organization_id.as_deref(), Some(ACME));
    assert_eq!(row.processed_at, Some(NOW));
    let user = EventBuilder::new(2, "user.created", "user_1");
    assert_eq!(app.apply(&user).await, "ignored");
    assert_eq!(app.inbox_row(user.event_id()).await.organization_id, None);
    let odd = r#"{"id":"event_odd","event":"some.thing","data":[1,{"organization_id":5}],"created_at":7}"#;
    assert_eq!(
        app.deliver(odd).await.assert(200).json()["status"],
        "ignored"
    );
}

/// R13: nulls, new types and new fields in what isn't used never fail an event.
#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_used_is_decoded() {
    let app = TestApp::new().await;
    let event = created(1, ACME, "Acme")
        .without("object")
        .data("domains", 7)
        .data("metadata", serde_json::Value::Null)
        .data("stripe_customer_id", serde_json::json!({"new": ["shape"]}))
        .data("created_at", false)
        .data("a_new_field", rfc3339(NOW));
    assert_eq!(app.apply(&event).await, "created");
    // A deletion needs no name and no external_id.
    let deletion = deleted(2, ACME).without("name").data("external_id", 5);
    assert_eq!(app.apply(&deletion).await, "disabled");
    // A lone surrogate in a field that isn't used is JSON all the same.
    let body = created(3, OTHER, "Other")
        .body()
        .replace(r#""metadata":{}"#, r#""metadata":{"x":"\ud800"}"#);
    assert_eq!(
        app.deliver(&body).await.assert(200).json()["status"],
        "accepted"
    );
    app.settle().await;
    assert_eq!(
        app.inbox_row(&event_id(3)).await.outcome.as_deref(),
        Some("created")
    );
}
