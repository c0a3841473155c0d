//! What events do to organizations: resolve, create, update, delete (R1–R11, R13).

use chrono::DateTime;

use crate::support::event::{at, event_id, rfc3339};
use crate::support::logs::Logs;
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

/// R1, R33: two rows of one WorkOS organization are a dead letter that names both. Neither is guessed, and its neighbours
/// go on.
#[tokio::test(flavor = "multi_thread")]
async fn two_rows_of_one_organization_are_a_dead_letter_that_names_both() {
    let app = TestApp::new().await;
    app.execute(
        "alter table organization_metadata drop constraint organization_metadata_workos_id_key;
         insert into organization_metadata (id, name, slug, workos_id)
         values ('gone-2', 'Gone', 'gone', 'org_01EHWNCE74X7JSDV0X3SZ3KJNY'),
                ('live-1', 'Live', 'live', 'org_01EHWNCE74X7JSDV0X3SZ3KJNY')",
    )
    .await;
    let before = app.organizations().await;
    for event in [updated(1, ACME, "Acme"), deleted(2, ACME)] {
        app.record(&event).await;
        assert_eq!(app.apply(&created(3, OTHER, "Other")).await, "created");
        let row = app.inbox_row(event.event_id()).await;
        assert_eq!((row.status.as_str(), row.attempts), ("dead", 1));
        let error = row.last_error.unwrap();
        for part in [ACME, "gone-2", "live-1"] {
            assert!(error.contains(part), "{error}");
        }
    }
    let rows = app.organizations().await;
    assert_eq!(rows.len(), 3);
    assert!(before.iter().all(|row| rows.contains(row)), "{rows:?}");
    assert_eq!(app.cursor(ACME).await, None);
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

/// R6, R10, R12: a deleted predecessor and the successor that has its `external_id` end alike in whatever order their
/// events come, with or without a row that the application made before: the customer is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_predecessor_and_its_successor_end_alike_in_every_order() {
    let app = TestApp::new().await;
    app.execute(
        "insert into organization_metadata (id, name, slug)
         select 'made-before-' || n, 'Local', 'local-' || n from generate_series(0, 5) as n",
    )
    .await;
    let orders = [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ];
    for (place, order) in orders.iter().enumerate() {
        for id in [format!("made-before-{place}"), format!("new-{place}")] {
            let (old, new) = (format!("org_old_{id}"), format!("org_new_{id}"));
            let history = [
                created(1, &old, "Old").external_id(&id),
                deleted(2, &old).external_id(&id),
                created(3, &new, "New").external_id(&id),
            ];
            for event in order {
                // The inbox takes an id once; the prefix is no part of the order.
                let event = history[*event].clone();
                let event_id = event.event_id().replace("event_", &format!("{id}_"));
                app.apply(&event.id(&event_id)).await;
            }
            let rows = app.organizations().await;
            let row = rows.iter().find(|row| row.id == id).unwrap();
            assert_eq!(
                (row.name.as_str(), row.disabled_at),
                ("New", None),
                "{order:?}: {row:?}"
            );
            assert_eq!(row.workos_id, Some(new), "{order:?}: {row:?}");
            let newest = event_id(3).replace("event_", &format!("{id}_"));
            assert_eq!(row.workos_last_event_id, Some(newest), "{order:?}: {row:?}");
        }
    }
    assert_eq!(app.organizations().await.len(), 12);
}

/// R6: of two living organizations of one `external_id`, which WorkOS doesn't have within one environment, the newest
/// event decides whose the row is, in whatever order they come.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_living_organizations_the_newest_event_decides() {
    let app = TestApp::new().await;
    app.apply(&created(9, OTHER, "Newer").external_id("shared"))
        .await;
    assert_eq!(
        app.apply(&created(1, ACME, "Older").external_id("shared"))
            .await,
        "stale"
    );
    assert_eq!(app.organization().await.workos_id.as_deref(), Some(OTHER));
    // What is refused moves no cursor: the organization's next event may still be applied.
    assert_eq!(app.cursor(ACME).await, None);
    assert_eq!(
        app.apply(&updated(10, ACME, "Newest").external_id("shared"))
            .await,
        "linked"
    );
    let row = app.organization().await;
    assert_eq!(
        (row.name.as_str(), row.workos_id.as_deref()),
        ("Newest", Some(ACME))
    );
    assert_eq!(row.workos_last_event_id, Some(event_id(10)));
}

/// R6, R11: what was applied of an organization counts after its row was relinked away from it.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_event_of_a_predecessor_does_not_take_the_row_back() {
    let app = TestApp::new().await;
    app.apply(&created(5, OTHER, "Old").external_id("shared"))
        .await;
    app.apply(&created(7, ACME, "New").external_id("shared"))
        .await;
    for late in [updated(3, OTHER, "Older"), updated(6, OTHER, "Late")] {
        assert_eq!(app.apply(&late.external_id("shared")).await, "stale");
    }
    assert_eq!(app.organization().await.workos_id.as_deref(), Some(ACME));
    // Its deletion is no matter of the row any more.
    assert_eq!(
        app.apply(&deleted(8, OTHER).external_id("shared")).await,
        "tombstoned"
    );
    let row = app.organization().await;
    assert_eq!((row.name.as_str(), row.disabled_at), ("New", None));
}

/// R6: a relink names both organizations, and says that it clears the `disabled_at` that the deletion of the other one
/// had set.
#[tokio::test]
async fn a_relink_says_that_the_customer_is_back() {
    let logs = Logs::capture();
    let app = TestApp::new().await;
    app.apply(&created(1, OTHER, "Old").external_id("shared"))
        .await;
    app.apply(&deleted(2, OTHER).external_id("shared")).await;
    assert_eq!(app.organization().await.disabled_at, Some(at(2)));
    assert!(logs.at("WARN").is_empty(), "{:?}", logs.at("WARN"));
    app.apply(&created(3, ACME, "New").external_id("shared"))
        .await;
    assert_eq!(app.organization().await.disabled_at, None);
    let [warning] = &logs.at("WARN")[..] else {
        panic!("{:?}", logs.at("WARN"))
    };
    for part in [ACME, OTHER, "shared", "disabled_at", "is cleared"] {
        assert!(warning.contains(part), "{part}: {warning}");
    }
}

/// R6, R10: what the application disabled stays so, whatever comes from WorkOS; the log says since when.
#[tokio::test]
async fn what_the_application_disabled_stays_disabled() {
    let logs = Logs::capture();
    let app = TestApp::new().await;
    app.execute(
        "insert into organization_metadata (id, name, slug, disabled_at)
         values ('shared', 'Local', 'local', '2020-01-01Z')",
    )
    .await;
    for (event, outcome) in [
        (created(1, OTHER, "Old"), "linked"),
        (updated(2, OTHER, "Old 2"), "updated"),
        (deleted(3, OTHER), "disabled"),
        (created(4, ACME, "New"), "linked"),
    ] {
        assert_eq!(app.apply(&event.external_id("shared")).await, outcome);
        let disabled_at = app.organization().await.disabled_at.unwrap();
        assert_eq!(rfc3339(disabled_at), "2020-01-01T00:00:00.000Z");
    }
    let [linked, relinked] = &logs.at("WARN")[..] else {
        panic!("{:?}", logs.at("WARN"))
    };
    for warning in [linked, relinked] {
        assert!(warning.contains("disabled since 2020-01-01"), "{warning}");
    }
    assert!(linked.contains(OTHER), "{linked}");
    assert!(
        relinked.contains(OTHER) && relinked.contains(ACME),
        "{relinked}"
    );
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
/// is read as UTC; a date that is unreadable, or that Postgres can't hold, counts as absent.
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
            updated(5, ACME, "e").data("updated_at", "-9999-01-01 00:00:00"),
            Some(at(5)),
        ),
        (
            6,
            updated(6, ACME, "f").data("updated_at", 17).undated(),
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

/// R7: a date of a row that isn't finite, or that is beyond what can be read, counts as absent.
#[tokio::test(flavor = "multi_thread")]
async fn odd_dates_of_a_row_count_as_absent() {
    let app = TestApp::new().await;
    app.execute(
        "insert into organization_metadata (id, name, slug, workos_updated_at)
         values ('1', 'L', 'a', 'infinity'), ('2', 'L', 'b', '-infinity'), ('3', 'L', 'c', '294000-01-01Z')",
    )
    .await;
    for n in 1..=3 {
        let event = created(n, &format!("org_{n}"), "Linked").external_id(&n.to_string());
        assert_eq!(app.apply(&event).await, "linked", "row {n}");
    }
    for (row, n) in app.organizations().await.into_iter().zip(1..) {
        assert_eq!(
            (row.name.as_str(), row.workos_updated_at),
            ("Linked", Some(at(n)))
        );
    }
}

/// R7, R10: a row that is disabled for ever is not disabled again.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_disabled_for_ever_stays_so() {
    let app = TestApp::new().await;
    app.execute(
        "insert into organization_metadata (id, name, slug, disabled_at)
         values ('local', 'Local', 'local', 'infinity')",
    )
    .await;
    for (event, outcome) in [
        (created(1, ACME, "Acme"), "linked"),
        (deleted(2, ACME), "disabled"),
    ] {
        assert_eq!(app.apply(&event.external_id("local")).await, outcome);
    }
    let disabled_at: String =
        sqlx::query_scalar("select disabled_at::text from organization_metadata")
            .fetch_one(&app.db.pool)
            .await
            .unwrap();
    assert_eq!(disabled_at, "infinity");
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
    use workos_sync::entities::organization::slug;
    use workos_sync::event::OrganizationId;

    let app = TestApp::new().await;
    let slugs: Vec<_> = slug::candidates(
        "acme",
        &OrganizationId::new("acme-7").unwrap(),
        slug::MAX_LENGTH,
    )
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

/// R10: a deletion disables the row, at the time of the deletion; name and slug stay. It is final: every later event of
/// the organization is stale, whatever its id, and an application that clears `disabled_at` keeps it cleared.
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
    let late = [
        deleted(2, ACME),
        updated(4, ACME, "Back?"),
        deleted(5, ACME),
    ];
    for event in late {
        assert_eq!(app.apply(&event).await, "stale");
        assert_eq!(app.organization().await, row);
    }
    app.execute("update organization_metadata set disabled_at = null")
        .await;
    for event in [updated(6, ACME, "Back?"), deleted(7, ACME)] {
        assert_eq!(app.apply(&event).await, "stale");
        assert_eq!(app.organization().await.disabled_at, None);
    }
    assert_eq!(app.cursor(ACME).await, Some(event_id(3)));
}

/// R10, R11: a deletion applies whatever the cursor says; the cursor doesn't go back for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_applies_whatever_the_cursor_says() {
    let app = TestApp::new().await;
    app.apply(&updated(5, ACME, "Five")).await;
    assert_eq!(app.apply(&deleted(4, ACME)).await, "disabled");
    let row = app.organization().await;
    assert_eq!((row.name.as_str(), row.disabled_at), ("Five", Some(at(4))));
    assert_eq!(row.workos_last_event_id, Some(event_id(5)));
    assert_eq!(app.cursor(ACME).await, Some(event_id(5)));
    assert_eq!(app.apply(&updated(6, ACME, "Six")).await, "stale");
}

/// R10, R12: a deletion that overtakes the creation finds the row that the application made, as the creation would have,
/// by `external_id` or by the derived id: it is linked and disabled, and the creation changes nothing more.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_overtakes_the_creation_disables_the_row_of_the_application() {
    let app = TestApp::new().await;
    app.execute(
        "insert into organization_metadata (id, name, slug)
         values ('ecb5ebb2-3157-545d-8c0a-aac9f5633ff3', 'Local', 'derived'), ('signup', 'Local', 'signup')",
    )
    .await;
    let other = |event: EventBuilder| event.external_id("signup");
    assert_eq!(app.apply(&deleted(5, ACME)).await, "disabled");
    assert_eq!(app.apply(&other(deleted(6, OTHER))).await, "disabled");
    let rows = app.organizations().await;
    for (row, workos_id, n) in [(&rows[0], ACME, 5), (&rows[1], OTHER, 6)] {
        assert_eq!(
            (row.name.as_str(), row.workos_id.as_deref()),
            ("Local", Some(workos_id))
        );
        assert_eq!(row.disabled_at, Some(at(n)));
        assert_eq!(row.workos_last_event_id, Some(event_id(n)));
        assert_eq!(app.cursor(workos_id).await, Some(event_id(n)));
    }
    for late in [created(1, ACME, "Acme"), other(created(2, OTHER, "Other"))] {
        assert_eq!(app.apply(&late).await, "stale");
    }
    assert_eq!(app.organizations().await, rows);
}

/// R10, R26: the same where the creation came first and failed, and the deletion went past it.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_passes_a_failed_creation_disables_the_row_of_the_application() {
    let app = TestApp::new().await;
    app.execute(
        "insert into organization_metadata (id, name, slug) values ('signup', 'Local', 'signup');
         alter table organization_metadata add constraint no_acme check (name <> 'Acme')",
    )
    .await;
    let creation = created(1, ACME, "Acme").external_id("signup");
    assert_eq!(app.apply(&creation).await, "failed");
    let deletion = deleted(2, ACME).external_id("signup");
    assert_eq!(app.apply(&deletion).await, "disabled");
    let row = app.organization().await;
    assert_eq!(
        (row.workos_id.as_deref(), row.disabled_at),
        (Some(ACME), Some(at(2)))
    );
    app.execute("update webhook_events set status = 'pending' where status = 'failed'")
        .await;
    app.settle().await;
    let retried = app.inbox_row(&event_id(1)).await;
    assert_eq!(retried.outcome.as_deref(), Some("stale"), "{retried:?}");
    assert_eq!(app.organization().await, row);
}

/// R6, R10: a deletion takes no row that another organization has.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_takes_no_row_from_another_organization() {
    let app = TestApp::new().await;
    app.apply(&created(1, OTHER, "Other").external_id("shared"))
        .await;
    let row = app.organization().await;
    let deletion = deleted(2, ACME).external_id("shared");
    assert_eq!(app.apply(&deletion).await, "tombstoned");
    assert_eq!(app.organization().await, row);
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

/// R10, R12: an organization that is known to be deleted gets no row, and never has an active one: an unlinked row that one
/// of its events finds is linked and disabled, as of the deletion, and keeps its name.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_deleted_organization_finds_is_disabled() {
    let app = TestApp::new().await;
    app.apply(&deleted(5, ACME)).await;
    app.apply(&deleted(6, OTHER)).await;
    app.apply(&deleted(7, "org_third")).await;
    app.execute(
        "insert into organization_metadata (id, name, slug)
         values ('ecb5ebb2-3157-545d-8c0a-aac9f5633ff3', 'Local', 'derived'), ('signup', 'Local', 'signup')",
    )
    .await;
    let finds = [
        (created(1, ACME, "Late"), "disabled"),
        (updated(8, OTHER, "Late").external_id("signup"), "disabled"),
        (updated(9, "org_third", "Late"), "stale"),
        (
            updated(10, "org_third", "Late").external_id("signup"),
            "stale",
        ),
        (updated(11, OTHER, "Late").external_id("signup"), "stale"),
    ];
    for (event, outcome) in finds {
        assert_eq!(app.apply(&event).await, outcome, "{event:?}");
    }
    let rows = app.organizations().await;
    assert_eq!(rows.len(), 2);
    for (row, workos_id, deleted_at) in [(&rows[0], ACME, at(5)), (&rows[1], OTHER, at(6))] {
        assert_eq!(
            (row.name.as_str(), row.workos_id.as_deref()),
            ("Local", Some(workos_id))
        );
        assert_eq!(row.disabled_at, Some(deleted_at));
    }
    // R11: forward only.
    assert_eq!(app.cursor(ACME).await, Some(event_id(5)));
    assert_eq!(app.cursor(OTHER).await, Some(event_id(8)));
}

/// R14: a trigger of the application may assign the id: what is written to WorkOS is the one that the row has.
#[tokio::test(flavor = "multi_thread")]
async fn the_id_that_the_row_has_is_written_back() {
    let app = TestApp::new().await;
    app.execute(
        "create function assign() returns trigger language plpgsql as
             $$ begin new.id := 'tenant-of-' || new.slug; return new; end $$;
         create trigger assign before insert on organization_metadata
             for each row execute function assign()",
    )
    .await;
    assert_eq!(app.apply(&created(1, ACME, "Acme")).await, "created");
    assert_eq!(
        app.apply(&created(2, OTHER, "Other").external_id("o"))
            .await,
        "created"
    );
    let pushes: Vec<(String, String)> =
        sqlx::query_as("select workos_id, organization_id from external_id_pushes")
            .fetch_all(&app.db.pool)
            .await
            .unwrap();
    assert_eq!(pushes, [(ACME.to_owned(), "tenant-of-acme".to_owned())]);
    assert_eq!(app.apply(&updated(3, ACME, "Acme 2")).await, "updated");
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
