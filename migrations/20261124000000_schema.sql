-- Our own tables live in a schema of their own. It is there by now: the migrator's own table is in it.
--
-- Nobody but the owner has a right on what is made here, whatever the database grants by default (to the role of a
-- public key, on some hosts). What an operator grants later stays, so this is asked once, when a table is made.
create or replace function workos_sync.keep_private(kind text, name text) returns void
    language plpgsql
    set search_path = pg_catalog
as
$$
declare
    acl     aclitem[];
    owner   oid;
    grantee oid;
begin
    if kind = 'schema' then
        select nspacl, nspowner into strict acl, owner from pg_namespace where nspname = name;
    elsif kind = 'function' then
        -- Where nothing was granted, everybody may call it.
        select coalesce(proacl, acldefault('f', proowner)), proowner into strict acl, owner
        from pg_proc where oid = name::regprocedure;
    else
        select relacl, relowner into strict acl, owner from pg_class where oid = name::regclass;
    end if;
    for grantee in select distinct privilege.grantee from aclexplode(acl) as privilege where privilege.grantee <> owner
        loop
            execute format('revoke all on %s %s from %s', kind, name,
                           case grantee when 0 then 'public' else grantee::regrole::text end);
        end loop;
end
$$;

select workos_sync.keep_private('function', 'workos_sync.keep_private(text, text)');
select workos_sync.keep_private('schema', 'workos_sync');
select workos_sync.keep_private('table', 'workos_sync.migrations');
