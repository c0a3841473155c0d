-- The application's table, where it has none. In the first schema of the search path.
create table organization_metadata
(
    -- Text, because the application chooses it: a signup flow's id, or the UUIDv5 of the WorkOS id.
    id                   text        not null,
    name                 text        not null,
    slug                 text        not null,
    -- Null until an event links the row: the application may create organizations first.
    workos_id            text,
    workos_updated_at    timestamptz,
    workos_last_event_id text,
    disabled_at          timestamptz,
    created_at           timestamptz not null default now(),
    updated_at           timestamptz not null default now(),
    constraint organization_metadata_pkey primary key (id),
    constraint organization_metadata_slug_key unique (slug),
    constraint organization_metadata_workos_id_key unique (workos_id)
)
    -- Updates touch no indexed column: with room on its page, a row's next version needs no index entries.
    with (fillfactor = 90);
