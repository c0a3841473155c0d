-- What was applied of each WorkOS organization. Apart from organization_metadata, because it must outlive a
-- row (relinked, removed by the application) and exist before one (the tombstone of a deletion that arrived
-- before everything else). Never cleaned up: 100 bytes an organization.
create table workos_sync.workos_organization_syncs
(
    workos_id             text        not null,
    last_event_id         text        not null,
    -- Stands in for the id's order where only one of two ids has a ULID.
    last_event_updated_at timestamptz,
    deleted_at            timestamptz,
    updated_at            timestamptz not null,
    constraint workos_organization_syncs_pkey primary key (workos_id)
)
    -- As in organization_metadata.
    with (fillfactor = 90);

select workos_sync.keep_private('table', 'workos_sync.workos_organization_syncs');
