-- What operators do: the pause, and the record of their actions.

-- One row, once there was a pause: nothing is applied or written back until then, in any replica (R49). Times are the
-- database's.
create table workos_sync.pause
(
    singleton boolean     not null default true,
    since     timestamptz not null,
    -- Null: it was ended by hand.
    until     timestamptz,
    reason    text,
    actor     text        not null,
    constraint pause_pkey primary key (singleton),
    constraint pause_singleton_check check (singleton)
);

-- Says whether there is a pause; if not, none begins before the end of the transaction that asks. For it holds a lock,
-- shared with all that apply, that whoever pauses waits for, once the pause is committed. Who is given the lock after
-- that sees the pause: each statement of a volatile function looks anew, whatever the statement around it has seen.
create function workos_sync.is_paused() returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog
as
$$
begin
    -- Not waited for: only whoever pauses is in the way. The first of the two integers is
    -- hashtext('workos-sync pause').
    if not pg_try_advisory_xact_lock_shared(-1907399135, 0) then
        return true;
    end if;
    return exists (select from workos_sync.pause where singleton and until > clock_timestamp());
end
$$;

-- Each action of an operator, for good.
create table workos_sync.operator_actions
(
    action_id bigint      not null generated always as identity,
    at        timestamptz not null default now(),
    -- The system's user, `token` or `loopback`.
    actor     text        not null,
    action    text        not null,
    -- What was selected: {"ids": […]}, the first hundred, or {"filter": {…}}.
    filter    jsonb,
    -- How many events it changed.
    count     bigint,
    reason    text,
    constraint operator_actions_pkey primary key (action_id),
    constraint operator_actions_action_check
        check (action in ('retry', 'discard', 'replay', 'pause', 'resume'))
);

select workos_sync.keep_private('table', 'workos_sync.pause');
select workos_sync.keep_private('function', 'workos_sync.is_paused()');
select workos_sync.keep_private('table', 'workos_sync.operator_actions');
select workos_sync.keep_private('sequence', 'workos_sync.operator_actions_action_id_seq');
