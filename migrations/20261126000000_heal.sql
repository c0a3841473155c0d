-- What finds missed events: the poll of events, the runs of backfill and reconcile, and whether the mirror may be
-- trusted.

-- A deletion that no event told, but reconcile found, is lifted by what WorkOS made later.
alter table workos_sync.workos_organization_syncs
    add column deletion_is_inferred boolean not null default false;

-- The poll of events: one row. All times but the position are the database's.
create table workos_sync.event_poll
(
    singleton            boolean not null default true,
    -- WorkOS's time: where the next round begins. Null until there was one.
    position        timestamptz,
    -- The round that is under way, or was broken off: where it goes on, up to when it reads, and the position that it
    -- leaves behind.
    round_after     text,
    round_until     timestamptz,
    round_leaves    timestamptz,
    -- Who polls, until when; and when the next round is due.
    lease_owner     text,
    lease_until     timestamptz,
    next_at         timestamptz,
    last_answer_at  timestamptz,
    last_drained_at timestamptz,
    -- The last time that more than WorkOS promises to keep had to be read.
    gap_at          timestamptz,
    -- Up to when missed deliveries are counted.
    counted_until   timestamptz,
    -- EVENTS_POLL_SECONDS of the last start of serve; 0: it doesn't poll.
    poll_seconds    integer,
    constraint event_poll_pkey primary key (singleton),
    constraint event_poll_singleton_check check (singleton)
);

insert into workos_sync.event_poll default values;

-- Each run of a command that asks WorkOS for everything.
create table workos_sync.runs
(
    run_id     bigint      not null generated always as identity,
    kind       text        not null,
    status     text        not null default 'running',
    started_at timestamptz not null,
    ended_at   timestamptz,
    -- Where it goes on after a kill.
    after      text,
    -- WorkOS's time before which it has seen everything: a poll begins there.
    boundary   timestamptz,
    -- Of a backfill: there was no linked row when it began. Of a reconcile: it ended in step, or mended all.
    is_whole   boolean     not null default false,
    pages      bigint      not null default 0,
    seen       bigint      not null default 0,
    created    bigint      not null default 0,
    updated    bigint      not null default 0,
    linked     bigint      not null default 0,
    disabled   bigint      not null default 0,
    stale      bigint      not null default 0,
    dead       bigint      not null default 0,
    failed     bigint      not null default 0,
    drift      bigint      not null default 0,
    constraint runs_pkey primary key (run_id),
    constraint runs_kind_check check (kind in ('backfill', 'reconcile', 'catch_up')),
    constraint runs_status_check check (status in ('running', 'complete', 'failed', 'abandoned')),
    constraint runs_ended_check check ((status = 'running') = (ended_at is null))
);

create index runs_kind_idx on workos_sync.runs (kind, run_id);

-- What a reconcile has seen so far; its rows go with its end. A run that a crash of the server breaks off is not gone on
-- with, so they need no log.
create unlogged table workos_sync.run_organizations
(
    run_id    bigint not null,
    workos_id text   not null,
    -- The snapshot that mends what differs; null where nothing does.
    snapshot  text,
    constraint run_organizations_pkey primary key (run_id, workos_id)
);

-- When the last delivery came: one row, written every 10 seconds at most.
create table workos_sync.last_webhook
(
    singleton boolean     not null default true,
    at   timestamptz not null,
    constraint last_webhook_pkey primary key (singleton),
    constraint last_webhook_singleton_check check (singleton)
);

-- The events that no delivery has brought.
create index webhook_events_undelivered_idx on workos_sync.webhook_events (received_at)
    where source = 'events_api' and delivered_at is null;

-- What isn't applied, and may be missing from its organization: of each, the newest is at the end.
create index webhook_events_unapplied_idx on workos_sync.webhook_events (organization_id, event_order)
    where status in ('failed', 'dead', 'discarded')
        and event_type in ('organization.created', 'organization.updated', 'organization.deleted',
                           'organization.snapshot');

select workos_sync.keep_private('table', 'workos_sync.event_poll');
select workos_sync.keep_private('table', 'workos_sync.runs');
select workos_sync.keep_private('sequence', 'workos_sync.runs_run_id_seq');
select workos_sync.keep_private('table', 'workos_sync.run_organizations');
select workos_sync.keep_private('table', 'workos_sync.last_webhook');

-- May the mirror be trusted, and what is missing? One row.
create view workos_sync.status as
with poll as (select position, last_answer_at, last_drained_at, gap_at, coalesce(poll_seconds, 60) as poll_seconds
              from workos_sync.event_poll),
     whole as (select max(started_at) filter (where kind = 'backfill' and status = 'complete' and is_whole)
                          as backfill_began,
                      max(ended_at) filter (where kind = 'backfill' and status = 'complete')  as backfill_at,
                      max(started_at) filter (where kind = 'reconcile' and status = 'complete' and is_whole)
                          as reconcile_began,
                      max(ended_at) filter (where kind = 'reconcile' and status = 'complete' and is_whole)
                          as in_step_at,
                      max(ended_at) filter (where kind = 'reconcile' and status = 'complete') as reconcile_at
               from workos_sync.runs),
     pending as (select count(*) as count, min(received_at) as oldest
                 from (select received_at from workos_sync.webhook_events where status = 'pending' limit 100000) as few),
     failed as (select count(*) as count, min(received_at) as oldest
                from (select received_at from workos_sync.webhook_events where status = 'failed' limit 100000) as few),
     dead as (select count(*) as count
              from (select from workos_sync.webhook_events where status = 'dead' limit 100000) as few),
     pushes as (select count(*) as count
                from (select from workos_sync.external_id_pushes where status = 'pending' limit 100000) as few),
     pause as (select max(since) as since, max(until) as until, max(reason) as reason
               from workos_sync.pause
               where until > clock_timestamp()),
     -- By webhook_events_unapplied_idx, each organization once: an event without an id says nothing of any, and never will.
     unapplied as (select organization_id, max(event_order) as newest
                   from workos_sync.webhook_events
                   where status in ('failed', 'dead', 'discarded')
                     and organization_id is not null
                     and event_type in ('organization.created', 'organization.updated', 'organization.deleted',
                                        'organization.snapshot')
                   group by organization_id),
     missing as (select exists (select
                                from unapplied
                                         left join workos_sync.workos_organization_syncs as sync
                                                   on sync.workos_id = unapplied.organization_id
                                where sync.deleted_at is null
                                  and (sync.workos_id is null
                                    -- Both sort by their ULIDs, a snapshot's a minute early; an id without one counts as newer.
                                    or unapplied.newest > upper(right(sync.last_event_id, 26)) collate "C"
                                    )) as is_so),
     -- Materialized: it is asked for twice.
     reasons as materialized (select array_remove(array [
         case
             when coalesce(backfill_began, '-infinity') <= coalesce(gap_at, '-infinity')
                 and coalesce(reconcile_began, '-infinity') <= coalesce(gap_at, '-infinity')
                 then 'no reconcile has ended in step'
                          || case when gap_at is null then ', and no backfill is complete of an empty table'
                                  else ' since the poll had a gap' end
             end,
         case
             when poll_seconds = 0 and coalesce(in_step_at, '-infinity') < now() - interval '24 hours'
                 then 'the poll is off, and no reconcile has ended in step for 24 hours'
             when poll_seconds > 0 and coalesce(last_drained_at, '-infinity')
                 < now() - greatest(interval '10 minutes', 3 * poll_seconds * interval '1 second')
                 then 'the poll has not read all events recently'
             end,
         case
             when least(pending.oldest, failed.oldest) < now() - interval '1 minute'
                 then 'an event has waited to be applied for more than a minute'
             end,
         case when missing.is_so then 'a failed, dead or discarded event is newer than what was applied of its organization' end
         ], null) as list
                 from poll, whole, pending, failed, missing)
select reasons.list = '{}'                  as trusted,
       reasons.list                         as reasons,
       (select at from workos_sync.last_webhook) as last_webhook_at,
       poll.last_answer_at                  as last_poll_at,
       poll.last_drained_at                 as last_drained_poll_at,
       whole.backfill_at                    as last_backfill_at,
       whole.reconcile_at                   as last_reconcile_at,
       pending.count                        as pending,
       failed.count                         as failed,
       dead.count                           as dead,
       pushes.count                         as pushes,
       least(pending.oldest, failed.oldest) as oldest_unapplied_at,
       pause.since                          as paused_since,
       pause.until                          as paused_until,
       pause.reason                         as pause_reason
from poll, whole, pending, failed, dead, pushes, reasons, pause;

select workos_sync.keep_private('table', 'workos_sync.status');
