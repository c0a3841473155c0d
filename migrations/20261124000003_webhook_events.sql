-- The inbox: every accepted event, durable before it is acknowledged.
create table workos_sync.webhook_events
(
    event_id        text        not null,
    -- Text and a CHECK, not an ENUM: easier to evolve.
    status          text        not null default 'pending',
    outcome         text,
    event_type      text        not null,
    -- The WorkOS organization id; null where the event names none.
    organization_id text,
    attempts        integer     not null default 0,
    -- Of the attempts, those that a rule of the application refused; of a dead letter, 0: retried, it has as many
    -- tries as a new event.
    refusals        integer     not null default 0,
    last_error      text,
    -- What failed, short, and equal for equal failures: `check:name_is_short`, `decode:data.name`.
    cause           text,
    -- Of a stale event: the cursor and the time that refused it.
    compared        jsonb,
    received_at     timestamptz not null default now(),
    processed_at    timestamptz,
    -- When a failed event is pending again.
    next_attempt_at timestamptz,
    source          text        not null default 'webhook',
    -- When a delivery brought an event that was stored from elsewhere before.
    delivered_at    timestamptz,
    -- To be decided again by an operator's wish: an id that equals the cursor is fresh then.
    replayed        boolean     not null default false,
    -- The last action of an operator that changed it, in operator_actions.
    action_id       bigint,
    -- json keeps the text as it came. jsonb would refuse "\u0000", and refuse it at the door, where the
    -- sender would repeat it for three days; so it is a dead letter that an operator can read.
    payload         json        not null,
    -- Events of one lane are processed one after the other. An event without an organization has a lane of
    -- its own. Plain, so that another kind of lane rewrites no rows.
    lane            text collate "C" not null,
    -- Sorts as event ids are compared: by the ULID behind the last underscore, else by the whole id.
    event_order     text collate "C" not null,
    constraint webhook_events_pkey primary key (event_id),
    constraint webhook_events_status_check
        check (status in ('pending', 'processed', 'ignored', 'failed', 'dead', 'discarded')),
    constraint webhook_events_outcome_check
        check (outcome in ('created', 'updated', 'linked', 'disabled', 'stale', 'tombstoned')),
    constraint webhook_events_processed_check
        check (status <> 'processed' or (outcome is not null and processed_at is not null)),
    constraint webhook_events_failed_check
        check (status <> 'failed' or next_attempt_at is not null)
);

-- The service fills lane and event_order itself; a row that somebody inserts by hand needs neither.
create function workos_sync.fill_by_hand() returns trigger
    language plpgsql
    set search_path = pg_catalog
as
$$
declare
    ulid text collate "C" := upper(right(new.event_id, 26));
begin
    new.lane := coalesce(new.lane, nullif(new.organization_id, ''), new.event_id);
    new.event_order := coalesce(new.event_order, case
        when (length(new.event_id) = 26 or substr(new.event_id, length(new.event_id) - 26, 1) = '_')
            and ulid < '8'
            and ltrim(ulid, '0123456789ABCDEFGHJKMNPQRSTVWXYZ') = ''
            then ulid
        else new.event_id
        end);
    return new;
end
$$;

select workos_sync.keep_private('function', 'workos_sync.fill_by_hand()');

create trigger fill_by_hand
    before insert
    on workos_sync.webhook_events
    for each row
    when (new.lane is null or new.event_order is null)
execute function workos_sync.fill_by_hand();

-- The next event of a lane, and the lanes that have one: only what is due is in it.
create index webhook_events_lane_idx on workos_sync.webhook_events (lane, event_order)
    where status = 'pending';

-- The events that wait for their next attempt.
create index webhook_events_next_attempt_at_idx on workos_sync.webhook_events (next_attempt_at)
    where status = 'failed';

-- Retention, and an operator's lists, newest first: the latest, or those of a period. An event enters this and the next
-- index only once, when it is decided; before that, webhook_events_lane_idx has it.
create index webhook_events_received_at_idx on workos_sync.webhook_events (received_at)
    where status <> 'pending';

-- The events of an organization, newest first.
create index webhook_events_organization_idx on workos_sync.webhook_events (organization_id, received_at)
    where status <> 'pending' and organization_id is not null;

-- What failed or was given up, newest first, and counted by cause. What is simply applied never enters it.
create index webhook_events_status_idx on workos_sync.webhook_events (status, received_at) include (cause)
    where status in ('failed', 'dead', 'discarded');

-- The events of a cause, newest first: what never failed isn't in it.
create index webhook_events_cause_idx on workos_sync.webhook_events (cause, received_at)
    where cause is not null;

-- What went wrong at each attempt: the first ten and the last ten of an event, for as long as the event.
create table workos_sync.event_attempts
(
    event_id text        not null,
    attempt  integer     not null,
    at       timestamptz not null,
    cause    text        not null,
    error    text        not null,
    constraint event_attempts_pkey primary key (event_id, attempt),
    constraint event_attempts_event_id_fkey
        foreign key (event_id) references workos_sync.webhook_events (event_id) on delete cascade
);

select workos_sync.keep_private('table', 'workos_sync.webhook_events');
select workos_sync.keep_private('table', 'workos_sync.event_attempts');
