// What a careful Node.js team would write in place of workos-sync: Express, WorkOS's own SDK, a pool of `pg`.
//
// It does the same to the tables (fetch, then write; a slug that is chosen once; a guard by event id), in one transaction an event, and
// answers when that is committed. It has no inbox: what fails is WorkOS's to repeat. It records no intention to write the
// organization id back, so it does a little less than workos-sync for each creation.

import { createHash } from 'node:crypto';
import { WorkOS } from '@workos-inc/node';
import express from 'express';
import pg from 'pg';

const UNIQUE_VIOLATION = '23505';
const TRIES = 3;

const secret = process.env.WORKOS_WEBHOOK_SECRET;
const workos = new WorkOS('sk_not_used');
// As many connections as workos-sync takes.
const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 20 });

const slugify = (name) =>
  name
    .normalize('NFKD')
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '-')
    .replace(/^-+|-+$/g, '')
    .slice(0, 63) || 'organization';

// Statements have names, so that each connection prepares them once.
const FETCH = {
  name: 'fetch',
  text: `select organization.id, sync.last_event_id
         from (select $1::text as workos_id) as wanted
                left join organization_metadata organization on organization.workos_id = wanted.workos_id
                left join workos_sync.workos_organization_syncs sync on sync.workos_id = wanted.workos_id`,
};
const LOCK = {
  name: 'lock',
  text: 'select pg_advisory_xact_lock(hashtext($1))',
};
const UPDATE = {
  name: 'update',
  text: `update organization_metadata
         set name = $2, workos_updated_at = $3, workos_last_event_id = $4, updated_at = now()
         where id = $1`,
};
const FREE_SLUG = {
  name: 'free_slug',
  text: `select candidate
         from unnest($1::text[]) with ordinality as candidates (candidate, place)
         where not exists (select from organization_metadata where slug = candidate)
         order by place
         limit 1`,
};
const INSERT = {
  name: 'insert',
  text: `insert into organization_metadata (id, name, slug, workos_id, workos_updated_at, workos_last_event_id)
         values ($1, $2, $3, $4, $5, $6)`,
};
const ADVANCE = {
  name: 'advance',
  text: `insert into workos_sync.workos_organization_syncs (workos_id, last_event_id, last_event_updated_at, updated_at)
         values ($1, $2, $3, now())
         on conflict (workos_id) do update
           set last_event_id = excluded.last_event_id,
               last_event_updated_at = excluded.last_event_updated_at,
               updated_at = excluded.updated_at`,
};

async function apply(client, event) {
  const organization = event.data;
  // One writer at a time for each organization: the guard below must see the last one's cursor.
  await client.query({ ...LOCK, values: [organization.id] });
  const { rows } = await client.query({ ...FETCH, values: [organization.id] });
  const [found] = rows;
  if (found.last_event_id !== null && found.last_event_id >= event.id) return 'stale';

  if (found.id !== null) {
    await client.query({ ...UPDATE, values: [found.id, organization.name, organization.updatedAt, event.id] });
  } else {
    const base = slugify(organization.name);
    const digest = createHash('sha256').update(organization.id).digest('hex');
    await client.query({ ...LOCK, values: [base] });
    const candidates = [base, ...[6, 10, 16].map((length) => `${base.slice(0, 62 - length)}-${digest.slice(0, length)}`)];
    const free = await client.query({ ...FREE_SLUG, values: [candidates] });
    await client.query({
      ...INSERT,
      values: [
        organization.externalId ?? organization.id,
        organization.name,
        free.rows[0].candidate,
        organization.id,
        organization.updatedAt,
        event.id,
      ],
    });
  }
  await client.query({ ...ADVANCE, values: [organization.id, event.id, organization.updatedAt] });
  return found.id !== null ? 'updated' : 'created';
}

async function settle(event) {
  for (let attempt = 1; ; attempt++) {
    const client = await pool.connect();
    try {
      await client.query('begin');
      const outcome = await apply(client, event);
      await client.query('commit');
      return outcome;
    } catch (error) {
      await client.query('rollback');
      if (error.code !== UNIQUE_VIOLATION || attempt === TRIES) throw error;
    } finally {
      client.release();
    }
  }
}

const app = express();
app.disable('x-powered-by');
app.disable('etag');

app.get('/readyz', async (_request, response) => {
  await pool.query('select 1');
  response.json({ status: 'ok' });
});

app.post('/webhooks/workos', express.json({ limit: '1mb' }), async (request, response) => {
  let event;
  try {
    event = await workos.webhooks.constructEvent({
      payload: request.body,
      sigHeader: request.get('workos-signature') ?? '',
      secret,
    });
  } catch (error) {
    response.status(401).json({ error: error.message });
    return;
  }
  if (!event.event.startsWith('organization.')) {
    response.json({ event_id: event.id, status: 'ignored' });
    return;
  }
  const outcome = await settle(event);
  response.json({ event_id: event.id, status: 'processed', outcome });
});

const server = app.listen(Number(process.env.PORT), '127.0.0.1');
process.on('SIGTERM', () => {
  server.close(() => pool.end().then(() => process.exit(0)));
  server.closeAllConnections();
});
