//! Races, each forced by a second connection that holds a lock or keeps a transaction open: the service is
//! seen to wait where the race is, then the other lets go (R18–R22, R24).

use std::sync::Arc;
use std::time::Duration;

use sqlx::{Postgres, Transaction};
use workos_sync::inbox::Recorded;

use crate::support::app::Options;
use crate::support::event::{at, event_id};
use crate::support::logs::Logs;
use crate::support::{EventBuilder, TestApp, TestDatabase, created, deleted, eventually, updated};

const ACME: &str = "org_01EHWNCE74X7JSDV0X3SZ3KJNY";
const OTHER: &str = "org_01EHWNFTAFCF3CQAE5A9Q0P1YB";
const THIRD: &str = "org_01EHWNGGQW8J0N5PZ5E4XVT3RC";

/// The id that is derived for [`ACME`].
const ACME_ID: &str = "ecb5ebb2-3157-545d-8c0a-aac9f5633ff3";

const ORGANIZATION_LOCK: &str = "select pg_advisory_xact_lock(1061423321, hashtext($1))";
const SLUG_LOCK: &str = "select pg_advisory_xact_lock(hashtext($1))";

/// Somebody else's transaction.
async fn outsider(db: &TestDatabase) -> Transaction<'static, Postgres> {
    db.pool.begin().await.unwrap()
}

async fn run(transaction: &mut Transaction<'static, Postgres>, sql: &'static str) {
    sqlx::raw_sql(sql)
        .execute(&mut **transaction)
        .await
        .unwrap();
}

async fn hold(db: &TestDatabase, lock: &'static str, key: &str) -> Transaction<'static, Postgres> {
    let mut transaction = outsider(db).await;
    sqlx::query(lock)
        .bind(key)
        .execute(&mut *transaction)
        .await
        .unwrap();
    transaction
}

/// Waits until this many sessions wait for a lock.
async fn blocked(db: &TestDatabase, sessions: i64) {
    eventually(
        &format!("{sessions} sessions wait for a lock"),
        async || db.blocked_sessions().await == sessions,
    )
    .await;
}

/// The sessions that wait for a lock.
async fn waiting_sessions(db: &TestDatabase) -> Vec<i32> {
    sqlx::query_scalar(
        "select pid from pg_stat_activity
         where datname = current_database() and wait_event_type = 'Lock'",
    )
    .fetch_all(&db.pool)
    .await
    .unwrap()
}

/// How many sessions wait for an organization's lock.
async fn waiting_for_organizations(db: &TestDatabase) -> i64 {
    sqlx::query_scalar(
        "select count(*) from pg_locks
         where locktype = 'advisory' and classid = 1061423321 and objsubid = 2 and not granted
           and database = (select oid from pg_database where datname = current_database())",
    )
    .fetch_one(&db.pool)
    .await
    .unwrap()
}

/// Each with a place for two organizations that wait for longer than a moment.
async fn two_replicas() -> (TestApp, TestApp) {
    let db = Arc::new(TestDatabase::new().await);
    let options = || Options {
        max_connections: 20,
        ..Options::default()
    };
    (
        TestApp::on(Arc::clone(&db), options()),
        TestApp::on(db, options()),
    )
}

/// The event was applied at the first attempt, however often that started over: a race never shows as `failed`.
async fn assert_applied(app: &TestApp, event_id: &str, outcome: &str) {
    let row = app.inbox_row(event_id).await;
    assert_eq!(
        (row.status.as_str(), row.outcome.as_deref(), row.attempts),
        ("processed", Some(outcome), 1),
        "{event_id}: {row:?}"
    );
    assert_eq!((row.last_error, row.next_attempt_at), (None, None));
}

/// Records an event that runs into what the other transaction holds, lets the other commit, and waits until
/// the event is settled.
async fn race(app: &TestApp, event: &EventBuilder, other: Transaction<'static, Postgres>) {
    app.record(event).await;
    blocked(&app.db, 1).await;
    other.commit().await.unwrap();
    app.settle().await;
}

/// R18: an organization's events wait for its lock; those of the others don't.
#[tokio::test(flavor = "multi_thread")]
async fn an_organization_waits_for_its_own_lock_alone() {
    let app = TestApp::new().await;
    let lock = hold(&app.db, ORGANIZATION_LOCK, ACME).await;
    app.record(&created(1, ACME, "Acme")).await;
    blocked(&app.db, 1).await;
    app.record(&created(2, OTHER, "Other")).await;
    app.record(&updated(3, OTHER, "Other 2")).await;
    eventually("the other organization is processed", async || {
        app.inbox_row(&event_id(3)).await.outcome.as_deref() == Some("updated")
    })
    .await;
    assert_eq!(app.inbox_row(&event_id(1)).await.status, "pending");
    eventually("the organization comes again", async || {
        waiting_for_organizations(&app.db).await == 1
    })
    .await;
    lock.commit().await.unwrap();
    app.settle().await;
    assert_applied(&app, &event_id(1), "created").await;
}

/// R18: one writer at a time for an organization, within a process (which spends no connection on the wait)
/// and across processes; different organizations at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn one_writer_for_an_organization_and_many_in_all() {
    let (app, replica) = two_replicas().await;
    let acme = hold(&app.db, SLUG_LOCK, "acme").await;
    let other = hold(&app.db, SLUG_LOCK, "other").await;
    app.record(&created(1, ACME, "Acme")).await;
    app.record(&created(2, OTHER, "Other")).await;
    // Both are in the middle of their transaction.
    blocked(&app.db, 2).await;
    app.record(&updated(3, ACME, "Acme 3")).await;
    replica.record(&updated(4, ACME, "Acme 4")).await;
    blocked(&app.db, 3).await;
    // The third is the replica; the process itself has the second event of the organization wait in memory.
    eventually("one session waits for the organization", async || {
        waiting_for_organizations(&app.db).await == 1
    })
    .await;
    assert!(app.organizations().await.is_empty());
    other.commit().await.unwrap();
    eventually("the other organization is processed", async || {
        app.inbox_row(&event_id(2)).await.status == "processed"
    })
    .await;
    // The others go on waiting: in a batch for a moment, then alone, which is a wait begun anew.
    blocked(&app.db, 2).await;
    acme.commit().await.unwrap();
    app.settle().await;
    replica.settle().await;
    for (n, outcome) in [
        (1, "created"),
        (2, "created"),
        (3, "updated"),
        (4, "updated"),
    ] {
        assert_applied(&app, &event_id(n), outcome).await;
    }
}

/// R18: the locks of organizations and of slugs live in different key spaces: held with the same hash, even
/// with the same 64 bits, one is never taken for the other.
#[tokio::test(flavor = "multi_thread")]
async fn the_lock_of_a_slug_is_never_that_of_an_organization() {
    let app = TestApp::new().await;
    let organization_hash = hold(&app.db, SLUG_LOCK, ACME).await;
    let organization_bits = hold(
        &app.db,
        "select pg_advisory_xact_lock((1061423321::bigint << 32) | (hashtext($1)::bigint & 4294967295))",
        ACME,
    )
    .await;
    let slug_hash = hold(&app.db, ORGANIZATION_LOCK, "acme").await;
    let slug_bits = hold(
        &app.db,
        "select pg_advisory_xact_lock((hashtext($1)::bigint >> 32)::integer, hashtext($1))",
        "acme",
    )
    .await;
    assert_eq!(app.apply(&created(1, ACME, "Acme")).await, "created");
    for transaction in [organization_hash, organization_bits, slug_hash, slug_bits] {
        transaction.rollback().await.unwrap();
    }
    // The locks that do count, to show that the hashes above are the right ones.
    let organization = hold(&app.db, ORGANIZATION_LOCK, ACME).await;
    race(&app, &updated(2, ACME, "Acme 2"), organization).await;
    let slug = hold(&app.db, SLUG_LOCK, "acme").await;
    race(&app, &created(3, OTHER, "Acme"), slug).await;
}

/// R18: an organization whose slug hashes as its own id does not wait for itself.
#[tokio::test(flavor = "multi_thread")]
async fn an_organization_whose_slug_is_its_id_does_not_wait_for_itself() {
    let app = TestApp::new().await;
    assert_eq!(app.apply(&created(1, "acme", "Acme")).await, "created");
    assert_eq!(app.organization().await.slug, "acme");
}

/// R22: two replicas, one organization: each event is applied once, whoever recorded it.
#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_apply_each_event_once() {
    let (app, replica) = two_replicas().await;
    let lock = hold(&app.db, ORGANIZATION_LOCK, ACME).await;
    for n in 1..=6 {
        let event = updated(n, ACME, &format!("Acme {n}"));
        let (first, second) = if n % 2 == 0 {
            (&app, &replica)
        } else {
            (&replica, &app)
        };
        assert_eq!(first.record(&event).await, Recorded::Accepted);
        assert_eq!(second.record(&event).await, Recorded::Duplicate);
    }
    blocked(&app.db, 2).await;
    lock.commit().await.unwrap();
    tokio::join!(app.settle(), replica.settle());
    assert_applied(&app, &event_id(1), "created").await;
    for n in 2..=6 {
        assert_applied(&app, &event_id(n), "updated").await;
    }
    assert_eq!(app.organization().await.name, "Acme 6");
}

/// R22, R24: what a replica recorded and did not get to is found by another's sweep.
#[tokio::test(flavor = "multi_thread")]
async fn the_events_of_a_dead_replica_are_found() {
    let (app, replica) = two_replicas().await;
    app.shutdown.cancel();
    app.record(&created(1, ACME, "Acme")).await;
    app.settle().await;
    assert_eq!(app.inbox_row(&event_id(1)).await.status, "pending");
    // Recorded by a process that died before it could wake anything.
    sqlx::query(
        "insert into webhook_events (event_id, event_type, organization_id, payload)
         values ($1, 'organization.updated', $2, $3::json)",
    )
    .bind(event_id(2))
    .bind(ACME)
    .bind(updated(2, ACME, "Acme 2").body())
    .execute(&app.db.pool)
    .await
    .unwrap();
    assert_eq!(replica.inbox.sweep().await.unwrap(), 1);
    replica.settle().await;
    assert_applied(&replica, &event_id(1), "created").await;
    assert_applied(&replica, &event_id(2), "updated").await;
}

/// R22, R25: a process that dies in the middle of an event leaves nothing of it, and the claim goes with its
/// connection.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_in_the_hands_of_a_dying_process_is_applied_by_another() {
    let (app, replica) = two_replicas().await;
    let slug = hold(&app.db, SLUG_LOCK, "acme").await;
    // A process, as far as tasks and connections go: they end with its runtime.
    let process = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let event = created(1, ACME, "Acme");
    let doomed = process
        .spawn(async move {
            app.record(&event).await;
            // Until it comes again, to wait for longer: the pause of a poll.
            while app.inbox.load().paused == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            app
        })
        .await
        .unwrap();
    blocked(&replica.db, 1).await;
    process.shutdown_background();
    // The server notices when the dead one's wait is over, which may be before the replica's begins.
    let dead = waiting_sessions(&replica.db).await;
    assert_eq!(replica.inbox.sweep().await.unwrap(), 1);
    eventually("the replica waits", async || {
        let waiting = waiting_sessions(&replica.db).await;
        waiting.iter().any(|session| !dead.contains(session))
    })
    .await;
    slug.commit().await.unwrap();
    replica.settle().await;
    assert_applied(&replica, &event_id(1), "created").await;
    assert_eq!(replica.organizations().await.len(), 1);
    drop(doomed);
}

/// R22, R24: an event that another transaction holds is passed over; the others of its lane go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_locked_event_is_passed_over() {
    let app = TestApp::new().await;
    let lane = hold(&app.db, ORGANIZATION_LOCK, ACME).await;
    for n in 1..=3 {
        app.record(&updated(n, ACME, &format!("Acme {n}"))).await;
    }
    blocked(&app.db, 1).await;
    let first = hold(
        &app.db,
        "select from webhook_events where event_id = $1 for update",
        &event_id(1),
    )
    .await;
    lane.commit().await.unwrap();
    eventually("the later events are processed", async || {
        app.inbox_row(&event_id(3)).await.status == "processed"
    })
    .await;
    assert_eq!(app.inbox_row(&event_id(1)).await.status, "pending");
    first.rollback().await.unwrap();
    app.settle().await;
    for (n, outcome) in [(1, "stale"), (2, "created"), (3, "updated")] {
        assert_applied(&app, &event_id(n), outcome).await;
    }
    assert_eq!(app.organization().await.name, "Acme 3");
}

/// R24: events of one organization that wait are applied in the order of their ids, not of their arrival: in
/// any other order some of them would be stale.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_events_are_applied_in_the_order_of_their_ids() {
    let app = TestApp::new().await;
    let lock = hold(&app.db, ORGANIZATION_LOCK, ACME).await;
    for n in [5, 2, 6, 1, 4, 3] {
        let event = updated(n, ACME, &format!("Acme {n}"));
        // The prefix is no part of the order.
        let prefix = if n % 2 == 0 { "evt_" } else { "event_" };
        let event = event.id(&event_id(n).replace("event_", prefix));
        app.record(&event).await;
    }
    blocked(&app.db, 1).await;
    lock.commit().await.unwrap();
    app.settle().await;
    for n in 1..=6 {
        let prefix = if n % 2 == 0 { "evt_" } else { "event_" };
        let outcome = if n == 1 { "created" } else { "updated" };
        assert_applied(&app, &event_id(n).replace("event_", prefix), outcome).await;
    }
    assert_eq!(app.organization().await.name, "Acme 6");
}

/// R19: the INSERT waits for another's of the same id, which commits: retried at once, on the update path.
#[tokio::test(flavor = "multi_thread")]
async fn an_insert_that_meets_its_id_becomes_an_update() {
    let app = TestApp::new().await;
    let mut other = outsider(&app.db).await;
    run(
        &mut other,
        "insert into organization_metadata (id, name, slug) values ('shared', 'Local', 'local')",
    )
    .await;
    race(&app, &created(1, ACME, "Acme").external_id("shared"), other).await;
    assert_applied(&app, &event_id(1), "linked").await;
    let row = app.organization().await;
    assert_eq!((row.name.as_str(), row.slug.as_str()), ("Acme", "local"));
    assert_eq!(row.workos_id.as_deref(), Some(ACME));
}

/// R19, R21: the same, but the other thinks better of it: the INSERT goes through.
#[tokio::test(flavor = "multi_thread")]
async fn an_insert_goes_through_when_the_other_of_its_id_is_rolled_back() {
    let app = TestApp::new().await;
    let mut other = outsider(&app.db).await;
    run(
        &mut other,
        "insert into organization_metadata (id, name, slug) values ('shared', 'Local', 'local')",
    )
    .await;
    app.record(&created(1, ACME, "Acme").external_id("shared"))
        .await;
    blocked(&app.db, 1).await;
    other.rollback().await.unwrap();
    app.settle().await;
    assert_applied(&app, &event_id(1), "created").await;
    let row = app.organization().await;
    assert_eq!((row.id.as_str(), row.slug.as_str()), ("shared", "acme"));
}

/// R19: two WorkOS organizations of one `external_id`, in two replicas, both decided to insert: the second
/// meets the primary key and takes the update path.
#[tokio::test(flavor = "multi_thread")]
async fn two_organizations_of_one_external_id_share_the_row() {
    let (app, replica) = two_replicas().await;
    let first = hold(&app.db, SLUG_LOCK, "acme").await;
    let second = hold(&app.db, SLUG_LOCK, "umbrella").await;
    app.record(&created(2, ACME, "Acme").external_id("shared"))
        .await;
    replica
        .record(&created(1, OTHER, "Umbrella").external_id("shared"))
        .await;
    // Both have looked, and found nothing.
    blocked(&app.db, 2).await;
    second.commit().await.unwrap();
    eventually("the other organization is in", async || {
        app.inbox_row(&event_id(1)).await.status == "processed"
    })
    .await;
    first.commit().await.unwrap();
    // The replica doesn't look for it: it would come to the rescue if this process gave up.
    app.settle().await;
    assert_applied(&app, &event_id(1), "created").await;
    assert_applied(&app, &event_id(2), "linked").await;
    let row = app.organization().await;
    assert_eq!((row.id.as_str(), row.slug.as_str()), ("shared", "umbrella"));
    assert_eq!(
        (row.name.as_str(), row.workos_id.as_deref()),
        ("Acme", Some(ACME))
    );
    assert_eq!(app.cursor(ACME).await, Some(event_id(2)));
    assert_eq!(app.cursor(OTHER).await, Some(event_id(1)));
}

/// R6, R19: the same with nothing to order them, many times over: whoever is first, the newer one has the row.
#[tokio::test(flavor = "multi_thread")]
async fn organizations_of_one_external_id_at_the_same_time() {
    let (app, replica) = two_replicas().await;
    for n in 0..10 {
        let shared = format!("shared-{n}");
        let [first, second] = [2 * n + 1, 2 * n + 2]
            .map(|n| created(n, &format!("org_{n}"), &format!("Name {n}")).external_id(&shared));
        tokio::join!(app.record(&first), replica.record(&second));
        tokio::join!(app.settle(), replica.settle());
        let mut outcomes = Vec::new();
        for event in [first, second] {
            let row = app.inbox_row(event.event_id()).await;
            assert_eq!((row.attempts, row.last_error), (1, None));
            outcomes.extend(row.outcome);
        }
        let one_by_one = [["created", "linked"], ["stale", "created"]];
        assert!(
            one_by_one.iter().any(|expected| outcomes == *expected),
            "{outcomes:?}"
        );
    }
    let rows = app.organizations().await;
    assert_eq!(rows.len(), 10);
    for row in rows {
        let n: u64 = row.id.replace("shared-", "").parse().unwrap();
        assert_eq!(row.workos_id, Some(format!("org_{}", 2 * n + 2)));
    }
}

/// R20: organizations of one name wait for each other at the slug's lock, and all get in.
#[tokio::test(flavor = "multi_thread")]
async fn organizations_of_one_name_wait_for_each_other() {
    let (app, replica) = two_replicas().await;
    let lock = hold(&app.db, SLUG_LOCK, "acme").await;
    app.record(&created(1, ACME, "Acme")).await;
    app.record(&created(2, OTHER, "ACME!")).await;
    replica.record(&created(3, THIRD, "acme")).await;
    blocked(&app.db, 3).await;
    lock.commit().await.unwrap();
    tokio::join!(app.settle(), replica.settle());
    for n in 1..=3 {
        assert_applied(&app, &event_id(n), "created").await;
    }
    let mut slugs: Vec<_> = app
        .organizations()
        .await
        .into_iter()
        .map(|row| row.slug)
        .collect();
    slugs.sort_unstable();
    slugs.dedup();
    assert_eq!(slugs.len(), 3, "{slugs:?}");
    assert_eq!(slugs[0], "acme");
    assert!(slugs[1..].iter().all(|slug| slug.starts_with("acme-")));
}

/// R21: a signup that takes the slug without our lock and commits: a suffix is chosen, at once.
#[tokio::test(flavor = "multi_thread")]
async fn an_insert_that_meets_its_slug_takes_a_suffix() {
    let app = TestApp::new().await;
    let mut other = outsider(&app.db).await;
    run(
        &mut other,
        "insert into organization_metadata (id, name, slug) values ('local', 'Local', 'acme')",
    )
    .await;
    race(&app, &created(1, ACME, "Acme"), other).await;
    assert_applied(&app, &event_id(1), "created").await;
    let rows = app.organizations().await;
    assert_eq!(rows.len(), 2);
    let row = &rows[0];
    assert_eq!(row.workos_id.as_deref(), Some(ACME));
    assert!(row.slug.starts_with("acme-"), "{}", row.slug);
    assert_eq!(
        (rows[1].id.as_str(), rows[1].name.as_str()),
        ("local", "Local")
    );
}

/// R21: the same, rolled back: the base slug is free after all.
#[tokio::test(flavor = "multi_thread")]
async fn an_insert_keeps_its_slug_when_the_other_is_rolled_back() {
    let app = TestApp::new().await;
    let mut other = outsider(&app.db).await;
    run(
        &mut other,
        "insert into organization_metadata (id, name, slug) values ('local', 'Local', 'acme')",
    )
    .await;
    app.record(&created(1, ACME, "Acme")).await;
    blocked(&app.db, 1).await;
    other.rollback().await.unwrap();
    app.settle().await;
    assert_applied(&app, &event_id(1), "created").await;
    assert_eq!(app.organization().await.slug, "acme");
}

/// R21: one conflict after the other: every slug that is tried turns out to be taken, and the event still needs
/// no second attempt.
#[tokio::test(flavor = "multi_thread")]
async fn conflict_after_conflict_is_no_failure() {
    use workos_sync::entities::organization::slug;
    use workos_sync::event::OrganizationId;

    let app = TestApp::new().await;
    let slugs: Vec<_> = slug::candidates(
        "acme",
        &OrganizationId::new(ACME_ID).unwrap(),
        slug::MAX_LENGTH,
    )
    .take(4)
    .collect();
    let mut others = Vec::new();
    for slug in &slugs[..3] {
        let insert = "insert into organization_metadata (id, name, slug) values ($1, 'Local', $1)";
        others.push(hold(&app.db, insert, slug).await);
    }
    app.record(&created(1, ACME, "Acme")).await;
    for mut other in others {
        let xid: String = sqlx::query_scalar("select pg_current_xact_id()::xid::text")
            .fetch_one(&mut *other)
            .await
            .unwrap();
        eventually("the service waits for this very transaction", async || {
            sqlx::query_scalar(
                "select exists (select from pg_locks where transactionid = $1::xid and not granted)",
            )
            .bind(&xid)
            .fetch_one(&app.db.pool)
            .await
            .unwrap()
        })
        .await;
        other.commit().await.unwrap();
    }
    app.settle().await;
    assert_applied(&app, &event_id(1), "created").await;
    let rows = app.organizations().await;
    assert!(
        rows.iter()
            .any(|row| row.id == ACME_ID && row.slug == slugs[3]),
        "{rows:?}"
    );
}

/// R21: a signup flow that links the organization itself, at the same time: the row it made is updated.
#[tokio::test(flavor = "multi_thread")]
async fn an_insert_that_meets_its_workos_id_becomes_an_update() {
    let app = TestApp::new().await;
    let mut other = outsider(&app.db).await;
    run(
        &mut other,
        "insert into organization_metadata (id, name, slug, workos_id)
         values ('signup', 'Signup', 'signup', 'org_01EHWNCE74X7JSDV0X3SZ3KJNY')",
    )
    .await;
    race(&app, &created(1, ACME, "Acme"), other).await;
    assert_applied(&app, &event_id(1), "updated").await;
    let row = app.organization().await;
    assert_eq!(
        (row.id.as_str(), row.name.as_str(), row.slug.as_str()),
        ("signup", "Acme", "signup")
    );
}

/// R21: a local UPDATE that our UPDATE waits for: the later writer wins what WorkOS owns, and nothing else of
/// the other's is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_local_update_in_between_loses_nothing() {
    let app = TestApp::new().await;
    app.execute("alter table organization_metadata add column plan text not null default 'free'")
        .await;
    app.apply(&created(1, ACME, "Acme")).await;
    let mut other = outsider(&app.db).await;
    run(
        &mut other,
        "update organization_metadata
         set plan = 'gold', slug = 'chosen-by-us', disabled_at = to_timestamp(1800000000), name = 'Ours'",
    )
    .await;
    race(&app, &updated(2, ACME, "Acme 2"), other).await;
    assert_applied(&app, &event_id(2), "updated").await;
    let row = app.organization().await;
    assert_eq!(
        (row.name.as_str(), row.slug.as_str(), row.disabled_at),
        ("Acme 2", "chosen-by-us", Some(at(0)))
    );
    assert_eq!(row.workos_last_event_id, Some(event_id(2)));
    let plan: String = sqlx::query_scalar("select plan from organization_metadata")
        .fetch_one(&app.db.pool)
        .await
        .unwrap();
    assert_eq!(plan, "gold");
}

/// R21: the same for a deletion: what the application disabled before keeps its time.
#[tokio::test(flavor = "multi_thread")]
async fn a_local_update_during_a_deletion_loses_nothing() {
    let app = TestApp::new().await;
    app.apply(&created(1, ACME, "Acme")).await;
    let mut other = outsider(&app.db).await;
    run(
        &mut other,
        "update organization_metadata
         set slug = 'chosen-by-us', disabled_at = to_timestamp(1800000000)",
    )
    .await;
    race(&app, &deleted(2, ACME), other).await;
    assert_applied(&app, &event_id(2), "disabled").await;
    let row = app.organization().await;
    assert_eq!(
        (row.name.as_str(), row.slug.as_str(), row.disabled_at),
        ("Acme", "chosen-by-us", Some(at(0)))
    );
    assert_eq!(row.workos_last_event_id, Some(event_id(2)));
}

/// R19, R21: the row is unlinked between our fetch and our write: started over, it is found by its id.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_unlinked_in_between_is_linked_again() {
    let app = TestApp::new().await;
    app.apply(&created(1, ACME, "Acme")).await;
    let mut other = outsider(&app.db).await;
    run(
        &mut other,
        "update organization_metadata set workos_id = null, workos_last_event_id = null",
    )
    .await;
    race(&app, &updated(2, ACME, "Acme 2"), other).await;
    assert_applied(&app, &event_id(2), "linked").await;
    let row = app.organization().await;
    assert_eq!(
        (row.name.as_str(), row.workos_id.as_deref()),
        ("Acme 2", Some(ACME))
    );
}

/// R6, R21: the row is relinked between our fetch and our write. It isn't overwritten unseen: started over, the
/// organization either gets a row of its own, or takes its row back with a warning that names both.
#[tokio::test]
async fn a_row_that_is_relinked_in_between_is_not_overwritten_unseen() {
    let logs = Logs::capture();
    let app = TestApp::new().await;
    app.apply(&created(1, ACME, "Acme").external_id("first"))
        .await;
    let mut other = outsider(&app.db).await;
    let relink = "update organization_metadata set workos_id = 'org_01EHWNFTAFCF3CQAE5A9Q0P1YB'
                  where workos_id = 'org_01EHWNCE74X7JSDV0X3SZ3KJNY'";
    run(&mut other, relink).await;
    race(&app, &updated(2, ACME, "Acme 2"), other).await;
    assert_applied(&app, &event_id(2), "created").await;
    let rows = app.organizations().await;
    assert_eq!(
        (rows[0].id.as_str(), rows[0].workos_id.as_deref()),
        (ACME_ID, Some(ACME))
    );
    assert_eq!(
        (
            rows[1].id.as_str(),
            rows[1].name.as_str(),
            rows[1].workos_id.as_deref()
        ),
        ("first", "Acme", Some(OTHER))
    );
    assert!(logs.at("WARN").is_empty(), "{:?}", logs.at("WARN"));

    app.execute("delete from organization_metadata where id = 'first'")
        .await;
    let mut other = outsider(&app.db).await;
    run(&mut other, relink).await;
    race(&app, &updated(3, ACME, "Acme 3"), other).await;
    assert_applied(&app, &event_id(3), "linked").await;
    let row = app.organization().await;
    assert_eq!(
        (row.name.as_str(), row.workos_id.as_deref()),
        ("Acme 3", Some(ACME))
    );
    let warnings = logs.at("WARN");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains(ACME) && warnings[0].contains(OTHER));
}

/// R11, R21: somebody else moves the row's cursor between our fetch and our write: started over, the event is stale. The
/// row stays as the newer event left it.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_whose_cursor_moves_in_between_is_decided_again() {
    let app = TestApp::new().await;
    app.apply(&created(1, ACME, "Acme").external_id("shared"))
        .await;
    // As another organization's event meanwhile: it may find its own organization's, a newer one, or a relink.
    for (n, event) in [
        (3, updated(2, ACME, "Acme 2")),
        (5, created(4, OTHER, "Other").external_id("shared")),
    ] {
        let newer = "update organization_metadata set name = 'Newer', workos_last_event_id = $1";
        let other = hold(&app.db, newer, &event_id(n)).await;
        race(&app, &event, other).await;
        assert_applied(&app, event.event_id(), "stale").await;
        let row = app.organization().await;
        assert_eq!(
            (row.name.as_str(), row.workos_id.as_deref()),
            ("Newer", Some(ACME))
        );
        assert_eq!(row.workos_last_event_id, Some(event_id(n)));
    }
}

/// R6, R10, R11: the predecessor's deletion is applied between the successor's fetch and its write: started over, the
/// successor sees it, and clears what it set.
#[tokio::test(flavor = "multi_thread")]
async fn a_predecessor_that_is_deleted_in_between_leaves_an_active_row() {
    let (app, replica) = two_replicas().await;
    app.apply(&created(1, OTHER, "Old").external_id("shared"))
        .await;
    let row = hold(
        &app.db,
        "select from organization_metadata where id = $1 for update",
        "shared",
    )
    .await;
    app.record(&deleted(2, OTHER).external_id("shared")).await;
    blocked(&app.db, 1).await;
    replica
        .record(&created(3, ACME, "New").external_id("shared"))
        .await;
    blocked(&app.db, 2).await;
    row.commit().await.unwrap();
    tokio::join!(app.settle(), replica.settle());
    let row = app.organization().await;
    assert_eq!(
        (row.name.as_str(), row.workos_id.as_deref(), row.disabled_at),
        ("New", Some(ACME), None)
    );
    assert_applied(&app, &event_id(3), "linked").await;
}

/// R1, R21: the row gets another id between our fetch and our write: it is found by its `workos_id`.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_whose_id_changes_in_between_is_found_again() {
    let app = TestApp::new().await;
    app.apply(&created(1, ACME, "Acme")).await;
    let mut other = outsider(&app.db).await;
    run(&mut other, "update organization_metadata set id = 'moved'").await;
    race(&app, &updated(2, ACME, "Acme 2"), other).await;
    assert_applied(&app, &event_id(2), "updated").await;
    let row = app.organization().await;
    assert_eq!((row.id.as_str(), row.name.as_str()), ("moved", "Acme 2"));
}

/// R21: the row goes between our fetch and our write: it is created again.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_deleted_in_between_is_created_again() {
    let app = TestApp::new().await;
    app.apply(&created(1, ACME, "Acme")).await;
    let mut other = outsider(&app.db).await;
    run(&mut other, "delete from organization_metadata").await;
    race(&app, &updated(2, ACME, "Acme 2"), other).await;
    assert_applied(&app, &event_id(2), "created").await;
    let row = app.organization().await;
    assert_eq!((row.name.as_str(), row.slug.as_str()), ("Acme 2", "acme-2"));
}

/// R10, R21: the row goes while its deletion waits for it: the deletion is remembered. It is unlinked: started over, the
/// deletion finds it by its id.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_whose_row_changes_in_between_is_decided_again() {
    let app = TestApp::new().await;
    app.apply(&created(1, ACME, "Acme")).await;
    let mut other = outsider(&app.db).await;
    run(&mut other, "delete from organization_metadata").await;
    race(&app, &deleted(2, ACME), other).await;
    assert_applied(&app, &event_id(2), "tombstoned").await;
    assert_eq!(app.cursor(ACME).await, Some(event_id(2)));
    assert!(app.organizations().await.is_empty());

    app.apply(&created(3, OTHER, "Other")).await;
    let mut other = outsider(&app.db).await;
    run(
        &mut other,
        "update organization_metadata set workos_id = null",
    )
    .await;
    race(&app, &deleted(4, OTHER), other).await;
    assert_applied(&app, &event_id(4), "disabled").await;
    let row = app.organization().await;
    assert_eq!(
        (row.workos_id.as_deref(), row.disabled_at),
        (Some(OTHER), Some(at(4)))
    );
}

/// R26: a deadlock with somebody else's transaction is started over at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadlock_is_started_over() {
    let app = TestApp::new().await;
    app.apply(&created(1, ACME, "Acme")).await;
    let mut other = outsider(&app.db).await;
    // Whoever looks for deadlocks first is the victim: not this one.
    run(&mut other, "set local deadlock_timeout = '1min'").await;
    run(
        &mut other,
        "select from workos_organization_syncs for update",
    )
    .await;
    // Holds the row, and waits for the cursor.
    app.record(&updated(2, ACME, "Acme 2")).await;
    blocked(&app.db, 1).await;
    run(
        &mut other,
        "update organization_metadata set slug = 'chosen-by-us'",
    )
    .await;
    other.commit().await.unwrap();
    app.settle().await;
    assert_applied(&app, &event_id(2), "updated").await;
    let row = app.organization().await;
    assert_eq!(
        (row.name.as_str(), row.slug.as_str()),
        ("Acme 2", "chosen-by-us")
    );
}

/// R26: a database whose default isolation is stricter than ours: what it calls a failure to serialize must
/// not show.
#[tokio::test]
async fn the_default_isolation_of_the_database_does_not_matter() {
    let logs = Logs::capture();
    let db = Arc::new(TestDatabase::new().await);
    sqlx::raw_sql(
        "do $$ begin
            execute format('alter database %I set default_transaction_isolation = serializable', current_database());
         end $$",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let app = TestApp::on(Arc::clone(&db), Options::default());
    let replica = TestApp::on(db, Options::default());
    let lock = hold(&app.db, ORGANIZATION_LOCK, ACME).await;
    app.record(&created(1, ACME, "Acme")).await;
    replica.record(&updated(2, ACME, "Acme 2")).await;
    blocked(&app.db, 2).await;
    lock.commit().await.unwrap();
    tokio::join!(app.settle(), replica.settle());
    assert_applied(&app, &event_id(1), "created").await;
    assert_applied(&app, &event_id(2), "updated").await;
    assert!(logs.at("ERROR").is_empty(), "{:?}", logs.at("ERROR"));
}
