// What the profiles and their features look like over HTTP: forms of each era, IOMMU-backed groups, dirty log, bytes, faults, fixes.

import t from 'tap';
import { PROFILE_NAMES } from '../../src/kernel/profile.ts';
import { Client, startApp } from './client.ts';
import { listening, MAP, mapped, PIN, POLL, pinned, READ, type Step, prepare as send, UNMAP } from './fixtures.ts';

const app = await startApp();
const client = new Client(app);
t.teardown(() => app.close());
let hosts = 0;

const prepare = (at: string, ...steps: Step[]): Promise<void> => send(client, at, ...steps);

/** The base of the paths of a new host of the template. */
const machine = async (options: Record<string, unknown> = {}): Promise<{ at: string }> => ({
  at: await client.newHost(`h${++hosts}`, options),
});

t.test('every profile: the first mapping, what the container says of itself, and a pin in its form', async (t) => {
  const capabilities: Record<string, number[]> = { '4.10': [], '5.4': [], '5.8': [2], '5.15': [2, 3], '6.18': [2, 3] };
  t.same(Object.keys(capabilities).sort(), [...PROFILE_NAMES].sort());
  for (const profile of PROFILE_NAMES) {
    const { at } = await machine({ profile });
    await prepare(at, mapped, listening({ ...POLL, delivery: { kind: 'builtin', behavior: 'unpin_all' } }));
    const info = await client.ask('GET', `${at}/containers/vfio0/info`);
    t.same(
      (info.body.caps as { id: number }[]).map(({ id }) => id),
      capabilities[profile],
      profile,
    );
    const forms = [PIN, { iova: '0x10000', npage: 2, prot: 3 }];
    const [own, other] = profile === '6.18' ? forms.reverse() : forms;
    const pin = await client.ask('POST', `${at}/devices/mdev0/pin_pages`, own);
    t.match(pin, { status: 200, body: { ret: 2, phys_pfn: [Number, Number] } }, profile);
    t.match(await client.ask('POST', `${at}/devices/mdev0/pin_pages`, other), {
      status: 422,
      body: { errno: 'EOPNOTSUPP', profile, hint: /.+/ },
    });
    const log = await client.ask('POST', `${at}/containers/vfio0/dirty_pages`, { op: 'start' });
    if (['4.10', '5.4'].includes(profile)) t.match(log, { status: 422, body: { errno: 'ENOTTY' } }, profile);
    else t.equal(log.status, 200, profile);
    const read = await client.ask('POST', `${at}/devices/mdev0/dma_rw`, READ);
    if (['4.10', '5.4'].includes(profile)) t.match(read, { status: 422, body: { errno: 'EOPNOTSUPP' } }, profile);
    else t.match(read, { status: 200, body: { data: 'AAAAAA==' } }, profile);
    const unmap = await client.ask('POST', `${at}/containers/vfio0/unmap_dma`, UNMAP);
    t.match(unmap, { status: 200, body: { size: UNMAP.size, notifications: 1 } }, profile);
  }
});

t.test('exit of a first thread alone', async (t) => {
  const { at } = await machine();
  await prepare(
    at,
    ['PUT', '/tasks/worker', { thread_of: 'qemu', rlimit_memlock: '0x40000000' }],
    ['POST', '/tasks/qemu/exit', { thread_only: true }],
  );
  t.match((await client.ask('GET', `${at}/tasks/qemu`)).body, { alive: false, mm: null });
  t.match((await client.ask('GET', `${at}/tasks/worker`)).body, { alive: true, mm: String });
});

t.test('a host without a known defect of its profile', async (t) => {
  const made = await client.ask('PUT', '/v1/hosts/fixed', {
    profile: '4.10',
    fixes: ['zero_page_reference', 'end_of_space', 'end_of_space'],
  });
  t.match(made, { status: 201, body: { profile: '4.10', fixes: ['end_of_space', 'zero_page_reference'] } });
  const again = { profile: '4.10', fixes: ['end_of_space', 'zero_page_reference'] };
  t.equal((await client.ask('PUT', '/v1/hosts/fixed', again)).status, 200, 'their order means nothing');
  t.equal((await client.ask('PUT', '/v1/hosts/fixed', { profile: '4.10' })).status, 409);
  t.match(await client.ask('PUT', '/v1/hosts/other', { fixes: ['no_such_fix'] }), {
    status: 400,
    body: { errors: [{ field: 'fixes/0', message: /zero_page_reference/ }] },
  });
});

t.test('a fault rule lets the next call fail and is gone', async (t) => {
  const { at } = await machine();
  const rule = { point: 'record_alloc', call: 'pin_pages', nth: 2 };
  await prepare(at, mapped, listening(POLL), ['PUT', '/faults/f0', rule]);
  t.match((await client.ask('GET', `${at}/faults`)).body, { items: [{ id: 'f0', ...rule }], next_cursor: null });
  const pin = await client.ask('POST', `${at}/devices/mdev0/pin_pages`, PIN);
  t.match(pin, { status: 422, body: { errno: 'ENOMEM', at_index: 1 } });
  t.equal((await client.ask('GET', `${at}/faults/f0`)).status, 404);
  t.equal((await client.ask('DELETE', `${at}/faults/f0`)).status, 404);
  t.match(await client.ask('POST', `${at}/devices/mdev0/pin_pages`, PIN), { status: 200, body: { ret: 2 } });
});

t.test('dirty log, bytes behind iovas, and what an iommu group bounds', async (t) => {
  const { at } = await machine();
  await prepare(at, mapped, listening(POLL), ['POST', '/containers/vfio0/dirty_pages', { op: 'start' }]);
  t.match((await client.ask('GET', `${at}/containers/vfio0`)).body, { dirty_page_tracking: true });
  const write = { iova: '0x2ffe', write: true, data: Buffer.from([1, 2, 3, 4]).toString('base64') };
  t.match((await client.ask('POST', `${at}/devices/mdev0/dma_rw`, write)).body, { ret: 0, data: undefined });
  const read = await client.ask('POST', `${at}/devices/mdev0/dma_rw`, { iova: '0x3000', length: '2', task: 'qemu' });
  t.equal(read.body.data, Buffer.from([3, 4]).toString('base64'));
  const range = { iova: '0x0', size: '0x10000000', pgsize: '0x1000' };
  const log = await client.ask('POST', `${at}/containers/vfio0/dirty_pages`, { op: 'get', ...range });
  const bitmap = Buffer.from(String(log.body.bitmap), 'base64');
  t.equal(bitmap.length, 0x10000 / 8, 'as long as the range needs');
  t.equal(bitmap.readBigUInt64LE(0), 0b1100n);
  await prepare(at, pinned);
  const unmap = { ...UNMAP, flags: ['GET_DIRTY_BITMAP'], bitmap: { pgsize: '0x1000', size: '0x2000' } };
  await prepare(at, ['POST', '/devices/mdev0/unpin_pages', { user_pfn: PIN.user_pfn }]);
  const unmapped = await client.ask('POST', `${at}/containers/vfio0/unmap_dma`, unmap);
  t.match(unmapped.body, { ret: 0, size: '0x10000000' });
  t.equal(
    Buffer.from(String(unmapped.body.bitmap), 'base64').readBigUInt64LE(0),
    0b11n << 16n,
    'what was pinned since',
  );

  const group = {
    kind: 'iommu',
    reserved: [{ start: '0x4000', last: '0x4fff' }],
    aperture: { start: '0', last: '65535' },
  };
  await prepare(at, ['PUT', '/groups/40', group], ['POST', '/groups/40/set_container', { container: 'vfio0' }]);
  t.match((await client.ask('GET', `${at}/groups/40`)).body, {
    kind: 'iommu',
    reserved: [{ start: '0x4000', last: '0x4fff' }],
    aperture: { start: '0x0', last: '0xffff' },
  });
  const ranges = [
    { start: '0x0', end: '0x3fff' },
    { start: '0x5000', end: '0xffff' },
  ];
  t.match((await client.ask('GET', `${at}/containers/vfio0/info`)).body, {
    caps: [{ id: 2 }, { id: 3 }, { id: 1, name: 'IOVA_RANGE', iova_ranges: ranges }],
  });
  t.match(await client.ask('POST', `${at}/containers/vfio0/map_dma`, MAP), { status: 422, body: { errno: 'EINVAL' } });
  await prepare(at, ['POST', '/containers/vfio0/map_dma', { ...MAP, size: '0x4000' }]);
  t.match((await client.ask('GET', `${at}/containers/vfio0/mappings`)).body, {
    items: [{ iommu_mapped: true, npinned: 0 }],
  });
  t.match((await client.ask('GET', `${at}/tasks/qemu`)).body, { locked_vm: 4 });
});
