//! The runs of the commands that ask WorkOS for everything: where each stands, and what came of it.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, query, query_as, query_scalar};

use super::Progress;
use super::intake::Tally;

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// R41
    Backfill,
    /// R43
    Reconcile,
    /// R40
    CatchUp,
}

impl Kind {
    /// The kind as the database and the command line have it.
    #[must_use]
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Backfill => "backfill",
            Self::Reconcile => "reconcile",
            Self::CatchUp => "catch_up",
        }
    }
}

/// A run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) id: i64,
    pub(super) after: Option<String>,
    pub(super) boundary: Option<DateTime<Utc>>,
    pub(super) pages: i64,
    pub(super) seen: i64,
    /// Of a backfill: there was no linked row when it began.
    pub(super) is_whole: bool,
}

/// What is recorded of a run that has done its work.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ending {
    /// Whether the mirror may be trusted for it (R45).
    pub(super) is_whole: bool,
    /// The differences that are left.
    pub(super) drift: i64,
}

impl Run {
    /// How far it is.
    pub(super) const fn progress(&self) -> Progress {
        Progress {
            pages: self.pages,
            seen: self.seen,
        }
    }
}

/// The run of this kind that was broken off.
pub(super) async fn broken_off(
    connection: &mut PgConnection,
    kind: Kind,
) -> Result<Option<Run>, sqlx::Error> {
    query_as!(
        Run,
        r#"
        select run_id as id, after, boundary, pages, seen, is_whole
        from workos_sync.runs
        where kind = $1
          and status = 'running'
        order by run_id desc
        limit 1
        "#,
        kind.as_str(),
    )
    .fetch_optional(connection)
    .await
}

/// Begins a run; those of its kind that were broken off are given up.
pub(super) async fn begin(
    connection: &mut PgConnection,
    kind: Kind,
    is_whole: bool,
    boundary: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Result<Run, sqlx::Error> {
    query!(
        r#"
        update workos_sync.runs
        set status   = 'abandoned',
            ended_at = $2
        where kind = $1
          and status = 'running'
        "#,
        kind.as_str(),
        now,
    )
    .execute(&mut *connection)
    .await?;
    query_as!(
        Run,
        r#"
        insert into workos_sync.runs (kind, started_at, is_whole, boundary)
        values ($1, $2, $3, $4)
        returning run_id as id, after, boundary, pages, seen, is_whole
        "#,
        kind.as_str(),
        now,
        is_whole,
        boundary,
    )
    .fetch_one(connection)
    .await
}

/// A page of a run is done.
pub(super) async fn turn_page(
    connection: &mut PgConnection,
    run: &Run,
    tally: &Tally,
) -> Result<(), sqlx::Error> {
    query!(
        r#"
        update workos_sync.runs
        set after    = $2,
            boundary = $3,
            pages    = $4,
            seen     = $5,
            created  = created + $6,
            updated  = updated + $7,
            linked   = linked + $8,
            disabled = disabled + $9,
            stale    = stale + $10,
            dead     = dead + $11,
            failed   = failed + $12
        where run_id = $1
        "#,
        run.id,
        run.after,
        run.boundary,
        run.pages,
        run.seen,
        tally.created,
        tally.updated,
        tally.linked,
        tally.disabled,
        tally.stale,
        tally.dead,
        tally.unsettled,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// What the pages of a run came to.
pub(super) async fn tally(
    connection: &mut PgConnection,
    run_id: i64,
) -> Result<Tally, sqlx::Error> {
    query_as!(
        Tally,
        r#"
        select created, updated, linked, disabled, stale, dead, failed as unsettled
        from workos_sync.runs
        where run_id = $1
        "#,
        run_id,
    )
    .fetch_one(connection)
    .await
}

/// The poll begins where a backfill began, if it has no position yet (R41).
pub(super) async fn begin_poll_at(
    connection: &mut PgConnection,
    boundary: Option<DateTime<Utc>>,
) -> Result<(), sqlx::Error> {
    query!(
        "update workos_sync.event_poll set position = $1 where position is null",
        boundary,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// A run has ended; what it has seen is forgotten.
pub(super) async fn end(
    connection: &mut PgConnection,
    run_id: i64,
    status: &str,
    ending: Ending,
    now: DateTime<Utc>,
) -> Result<(), sqlx::Error> {
    let Ending { is_whole, drift } = ending;
    query!(
        r#"
        update workos_sync.runs
        set status   = $2,
            is_whole = $3,
            drift    = $4,
            after    = null,
            ended_at = $5
        where run_id = $1
        "#,
        run_id,
        status,
        is_whole,
        drift,
        now,
    )
    .execute(&mut *connection)
    .await?;
    query!(
        "delete from workos_sync.run_organizations where run_id = $1",
        run_id,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// What a run that was broken off has seen is forgotten.
pub(super) async fn forget_others(
    connection: &mut PgConnection,
    run_id: i64,
) -> Result<(), sqlx::Error> {
    query!(
        "delete from workos_sync.run_organizations where run_id < $1",
        run_id,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// A run has seen these organizations, each named once, with the snapshots that mend those that differ.
pub(super) async fn see(
    connection: &mut PgConnection,
    run_id: i64,
    workos_ids: &[&str],
    snapshots: &[Option<&str>],
) -> Result<(), sqlx::Error> {
    query!(
        r#"
        insert into workos_sync.run_organizations (run_id, workos_id, snapshot)
        select $1, workos_id, snapshot
        from unnest($2::text[], $3::text[]) as seen (workos_id, snapshot)
        on conflict (run_id, workos_id) do update
            set snapshot = excluded.snapshot
        "#,
        run_id,
        workos_ids as _,
        snapshots as _,
    )
    .execute(connection)
    .await
    .map(drop)
}

/// Those of the organizations that a run hasn't seen.
pub(super) async fn unseen(
    connection: &mut PgConnection,
    run_id: i64,
    workos_ids: &[&str],
) -> Result<Vec<String>, sqlx::Error> {
    query_scalar!(
        r#"
        select workos_id as "workos_id!"
        from unnest($2::text[]) as asked (workos_id)
        where not exists (select
                          from workos_sync.run_organizations as seen
                          where seen.run_id = $1
                            and seen.workos_id = asked.workos_id)
          and not exists (select
                          from workos_sync.workos_organization_syncs as sync
                          where sync.workos_id = asked.workos_id
                            and sync.deleted_at is not null)
        "#,
        run_id,
        workos_ids as _,
    )
    .fetch_all(connection)
    .await
}

/// Those of the organizations that a reconcile found to be gone before.
pub(super) async fn found_gone(
    connection: &mut PgConnection,
    workos_ids: &[&str],
) -> Result<Vec<String>, sqlx::Error> {
    query_scalar!(
        r#"
        select workos_id
        from workos_sync.workos_organization_syncs
        where workos_id = any ($1)
          and deletion_is_inferred
        "#,
        workos_ids as _,
    )
    .fetch_all(connection)
    .await
}

/// The snapshots that mend what differs, behind an organization; at most `limit`.
pub(super) async fn snapshots_after(
    connection: &mut PgConnection,
    run_id: i64,
    after: &str,
    limit: i64,
) -> Result<Vec<(String, String)>, sqlx::Error> {
    let records = query!(
        r#"
        select workos_id, snapshot as "snapshot!"
        from workos_sync.run_organizations
        where run_id = $1
          and workos_id > $2
          and snapshot is not null
        order by workos_id
        limit $3
        "#,
        run_id,
        after,
        limit,
    )
    .fetch_all(connection)
    .await?;
    Ok(records
        .into_iter()
        .map(|record| (record.workos_id, record.snapshot))
        .collect())
}
