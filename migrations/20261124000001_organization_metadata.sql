-- The search path of a role that is called as our schema begins with it; the application's table is never there.
select set_config('search_path', string_agg(quote_ident(schema), ','), true)
from unnest(current_schemas(false)) as schemas (schema)
where schema <> 'workos_sync';

-- The application's table. In a database whose application brought its own, only what is missing is added:
-- nothing is altered that is there, so that a role that doesn't own the table can run this too.
create table if not exists organization_metadata
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

do
$$
    declare
        columns text[] := array(select attname::text
                                from pg_attribute
                                where attrelid = 'organization_metadata'::regclass
                                  and attnum > 0
                                  and not attisdropped);
    begin
        if not 'workos_id' = any (columns) then
            alter table organization_metadata add column workos_id text;
        end if;
        if not 'workos_updated_at' = any (columns) then
            alter table organization_metadata add column workos_updated_at timestamptz;
        end if;
        if not 'workos_last_event_id' = any (columns) then
            alter table organization_metadata add column workos_last_event_id text;
        end if;
        if not 'disabled_at' = any (columns) then
            alter table organization_metadata add column disabled_at timestamptz;
        end if;
        if not 'updated_at' = any (columns) then
            alter table organization_metadata add column updated_at timestamptz not null default now();
        end if;

        -- Every event looks its row up by workos_id, and two rows of one organization would be two truths.
        -- Any unique index on the column alone will do, whatever the application called it.
        if not exists (select
                       from pg_index
                                join pg_attribute on attrelid = indrelid and attnum = indkey[0]
                       where indrelid = 'organization_metadata'::regclass
                         and indisunique
                         and indnkeyatts = 1
                         and attname = 'workos_id') then
            alter table organization_metadata
                add constraint organization_metadata_workos_id_key unique (workos_id);
        end if;
    end
$$;
