// What GETs show of memory: entries of page tables that are not present, flags of areas, locks of pages, held pages.

import t from 'tap';
import { Client, startApp } from './client.ts';
import { prepare } from './fixtures.ts';

const app = await startApp();
const client = new Client(app);
t.teardown(() => app.close());
let hosts = 0;
const A = '0x7f0000000000';

const machine = (): Promise<string> => client.newHost(`v${++hosts}`);
const itemOf = async (url: string): Promise<Record<string, unknown>> =>
  ((await client.ask('GET', url)).body.items as Record<string, unknown>[])[0] as Record<string, unknown>;

t.test('a page that was reclaimed is a swap entry; an access brings it back', async (t) => {
  const at = await machine();
  const page = (): Promise<Record<string, unknown>> => itemOf(`${at}/tasks/qemu/pages?addr=${A}`);
  t.match(await page(), { entry: 'none', flags: [], present: false, pfn: null });
  await prepare(client, at, ['POST', '/tasks/qemu/access', { addr: A, write: true }]);
  const mapped = await page();
  t.match(mapped, { entry: 'present', present: true, swap_slot: null, entry_pfn: null });
  t.ok((mapped.flags as string[]).includes('WRITE'));
  await prepare(client, at, ['POST', `/pages/${mapped.pfn}/reclaim`, {}]);
  t.match(await page(), { entry: 'swap', present: false, pfn: null, swap_slot: Number });
  await prepare(client, at, ['POST', '/tasks/qemu/access', { addr: A, write: true }]);
  t.match(await page(), { entry: 'present', swap_slot: null });
});

t.test('a page that migrates is a migration entry meanwhile, and its lock is held', async (t) => {
  const at = await machine();
  await prepare(client, at, ['POST', '/tasks/qemu/access', { addr: A, write: true }]);
  const { pfn } = await itemOf(`${at}/tasks/qemu/pages?addr=${A}`);
  const begun = await client.ask('POST', `${at}/pages/${pfn}/migrate`, { stop_at: 'after_end' });
  t.match(begun, { status: 202, body: { kind: 'migrate', state: 'stopped' } });
  t.match(await itemOf(`${at}/tasks/qemu/pages?addr=${A}`), { entry: 'migration', entry_pfn: pfn, present: false });
  t.match((await client.ask('GET', `${at}/pages/${pfn}`)).body, { locked_by: begun.body.id, mapcount: 0 });
  t.match(await itemOf(`${at}/locks`), { holders: [{ by: begun.body.id }] });
  await prepare(client, at, ['POST', `/operations/${begun.body.id}/resume`, {}]);
  t.match((await client.ask('GET', `${at}/pages/${pfn}`)).body, { locked_by: null, ref_count: 0 });
});

t.test('areas show that they are locked, or not for a child', async (t) => {
  const at = await machine();
  const range = { addr: A, length: '0x1000' };
  await prepare(
    client,
    at,
    ['POST', '/tasks/qemu/mlock', { ...range, lock: true }],
    ['POST', '/tasks/qemu/madvise', { ...range, advice: 'DONTFORK' }],
  );
  const { flags } = await itemOf(`${at}/tasks/qemu/maps`);
  t.ok((flags as string[]).includes('LOCKED') && (flags as string[]).includes('DONTCOPY'));
});

t.test('what is held by get_user_pages() is shown until it is released', async (t) => {
  const at = await machine();
  await prepare(client, at, ['POST', '/tasks/qemu/gup', { addr: A, npage: 2, flags: ['WRITE', 'PIN'], gup: 'g1' }]);
  const gup = (await client.ask('GET', `${at}/gups/g1`)).body;
  t.match(gup, { id: 'g1', mm: 'mm-1', addr: A, pinned: true, pfns: [Number, Number], busy: false });
  t.match(await itemOf(`${at}/tasks/qemu/pages?addr=${A}`), { pin_count: 1, ref_count: 1025 });
  t.equal((await client.ask('DELETE', `${at}/gups/g1`)).status, 200);
  t.equal((await client.ask('GET', `${at}/gups/g1`)).status, 404);
  t.match(await itemOf(`${at}/tasks/qemu/pages?addr=${A}`), { pin_count: 0, ref_count: 1 });
});
