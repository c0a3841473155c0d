-- The outbox: organization ids that are to be written to WorkOS as external_id. A row is recorded in the
-- transaction that writes the organization, and delivered after it: a crash in between loses nothing.
create table workos_sync.external_id_pushes
(
    workos_id       text        not null,
    status          text        not null default 'pending',
    organization_id text        not null,
    attempts        integer     not null default 0,
    last_error      text,
    -- While pending: when it is due; a claim moves it ahead, so that it is taken up again if the claimant dies.
    next_attempt_at timestamptz not null,
    -- Grows with each recording: a delivery that was overtaken by a newer intention must not end it.
    revision        bigint      not null default 1,
    -- Since when the organization id waits, or waited until settled_at.
    created_at      timestamptz not null,
    settled_at      timestamptz,
    constraint external_id_pushes_pkey primary key (workos_id),
    -- conflict: WorkOS holds another external_id, which is never overwritten. rejected: WorkOS gave a final no.
    constraint external_id_pushes_status_check
        check (status in ('pending', 'done', 'conflict', 'rejected')),
    constraint external_id_pushes_settled_check
        check ((status = 'pending') = (settled_at is null))
);

create index external_id_pushes_due_idx on workos_sync.external_id_pushes (next_attempt_at)
    where status = 'pending';

-- How many there are that WorkOS doesn't take.
create index external_id_pushes_refused_idx on workos_sync.external_id_pushes (status)
    where status in ('conflict', 'rejected');

select workos_sync.keep_private('table', 'workos_sync.external_id_pushes');
