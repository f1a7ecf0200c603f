// A database of an older semantics revision: its checkpoints load, the rows behind them replay, and the hosts go on from there.

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import Database from 'better-sqlite3';
import t, { type Test } from 'tap';
import { type App, buildApp } from '../../src/app.ts';
import { SEMANTICS_REVISION } from '../../src/service/revision.ts';
import { readSettings } from '../../src/settings.ts';

const DATA = join(import.meta.dirname, '../data/revision-1');
const unzipped = (name: string): Buffer => gunzipSync(readFileSync(join(DATA, name)));

// biome-ignore lint/suspicious/noExplicitAny: replies are compared whole or by pattern
type Json = any;

/** An app on a copy of the stored database. */
async function startOnCopy(t: Test): Promise<{ app: App; file: string }> {
  const file = join(t.testdir(), 'emulator.db');
  writeFileSync(file, unzipped('emulator.db.gz'));
  const app = await buildApp(readSettings({ DATABASE_URL: `file:${file}`, LOG_LEVEL: 'silent' }, []));
  t.teardown(() => app.close());
  return { app, file };
}

async function ask(
  app: App,
  method: 'GET' | 'POST',
  url: string,
  body?: Json,
): Promise<{ status: number; body: Json }> {
  const reply = await app.http.inject({ method, url, ...(body === undefined ? {} : { payload: body }) });
  return { status: reply.statusCode, body: reply.json() };
}

/** Leak reports without the WARN that they quote, whose text may be improved. */
const withoutWarn = (reply: Json): Json =>
  reply.references === undefined ? reply : { ...reply, items: reply.items.map(({ warn: _, ...item }: Json) => item) };

t.test('revision 1: every host is as it was', async (t) => {
  const { app, file } = await startOnCopy(t);
  t.match((await ask(app, 'GET', '/readyz')).body, { ready: true, quarantined: [] });
  for (const [url, then] of Object.entries<Json>(JSON.parse(unzipped('shown.json.gz').toString()))) {
    const { status, body } = await ask(app, 'GET', url);
    t.equal(status, 200, url);
    t.has(withoutWarn(body), withoutWarn(then), `${url}: fields may have been added`);
  }
  const db = new Database(file, { readonly: true });
  const revisions = db.prepare('SELECT DISTINCT revision FROM journal').pluck().all();
  db.close();
  t.same(revisions, [1], 'the database is one of revision 1');
  t.ok(SEMANTICS_REVISION > 1);
});

t.test('revision 1: what waited goes on', async (t) => {
  const { app } = await startOnCopy(t);
  const at = '/v1/hosts/default';
  t.match(await ask(app, 'POST', `${at}/devices/mdev0/unpin_pages`, { user_pfn: [1, 1] }), { body: { ret: 2 } });
  t.equal((await ask(app, 'POST', `${at}/devices/mdev0/notifications/notification-1/ack`, { ret: 1 })).status, 200);
  t.match((await ask(app, 'GET', `${at}/operations/unmap_dma-15`)).body, {
    state: 'done',
    result: { ret: 0, size: '0x10000', notifications: 1 },
  });
  const vaddr = { task: 'qemu', iova: '0x200000', vaddr: '0x7f0000300000', size: '0x4000', flags: ['VADDR'] };
  t.equal((await ask(app, 'POST', `${at}/containers/vfio0/map_dma`, vaddr)).status, 200);
  t.match((await ask(app, 'GET', `${at}/operations/pin_pages-14`)).body, { state: 'done', result: { ret: 1 } });
  for (const host of ['default', 'old', 'new', 'rows'])
    t.match((await ask(app, 'GET', `/v1/hosts/${host}/invariants`)).body, { ok: true }, host);
});

t.test('revision 1: its rows mean what they meant, new ones what this release says', async (t) => {
  const { app } = await startOnCopy(t);
  const op = { events: 1, type: 'IOMMU', delivery: { kind: 'poll' } };
  const again = await app.http.inject({
    method: 'PUT',
    url: '/v1/hosts/new/devices/mdev2',
    payload: { container: 'vfio0', notifier: { ...op, id: 'n2' } },
  });
  t.match([again.statusCode, again.json()], [200, { id: 'mdev2' }], 'it was made with a type, and is the same');
  const fresh = await app.http.inject({
    method: 'PUT',
    url: '/v1/hosts/new/devices/mdev3',
    payload: { container: 'vfio0', notifier: { ...op, id: 'n3' } },
  });
  t.match([fresh.statusCode, fresh.json()], [422, { errno: 'EOPNOTSUPP' }]);
  t.match(await ask(app, 'POST', '/v1/hosts/old/tasks/worker/exec', {}), { status: 200, body: { ret: 0 } });
  t.match((await ask(app, 'GET', '/v1/hosts/old/invariants')).body, { ok: true });
});

t.test('revision 1: a checkpoint of this release takes its place', async (t) => {
  const { app, file } = await startOnCopy(t);
  await ask(app, 'POST', '/v1/hosts/old/tasks/qemu/exec', {});
  await app.close();
  const again = await buildApp(readSettings({ DATABASE_URL: `file:${file}`, LOG_LEVEL: 'silent' }, []));
  t.teardown(() => again.close());
  t.match((await ask(again, 'GET', '/readyz')).body, { ready: true, quarantined: [] });
  t.match((await ask(again, 'GET', '/v1/hosts/old/tasks/worker')).body, { alive: false });
  t.match((await ask(again, 'GET', '/v1/hosts/old/invariants')).body, { ok: true });
});
