// Devices that have pages to themselves over HTTP: every success, what waits, every refusal, and the mail's story in requests.

import type { Test } from 'tap';
import type { Step } from '../fixtures.ts';
import { type Case, client, machine, prepare, refusals } from './machine.ts';

const DEV = '/exclusive_devices/gpu0';
const PAGE = '0x7f0000000000';
const range = { start: PAGE, length: '0x1000' };
const open: Step = ['PUT', DEV, { task: 'qemu' }];
const openPlain: Step = ['PUT', DEV, { task: 'qemu', kind: 'plain' }];
const made: Step = ['POST', `${DEV}/ranges`, { ...range, grant: 'g0' }];
const touch: Step = ['POST', '/tasks/qemu/access', { addr: PAGE, write: true }];
const exit: Step = ['POST', '/tasks/qemu/exit', {}];
const readOnly: Step = ['POST', '/tasks/qemu/mprotect', { addr: PAGE, length: '0x1000', prot: ['READ'] }];
/** A call that holds the grant's place until it is resumed. */
const stopped: Step = ['POST', `${DEV}/ranges`, { ...range, grant: 'g0', stop_at: 'after_gup' }];

const CASES: Case[] = [
  { operationId: 'put_exclusive_device', status: 409, errno: 'EEXIST', before: [openPlain] },
  {
    operationId: 'put_exclusive_device',
    status: 422,
    errno: 'EINVAL',
    body: { task: 'qemu', kind: 'plain', owner_filter: true },
  },
  { operationId: 'put_exclusive_device', status: 422, errno: 'ESRCH', before: [exit] },
  { operationId: 'put_exclusive_device', status: 422, errno: 'EOVERFLOW', body: { task: 'qemu', length: '0' } },
  { operationId: 'delete_exclusive_device', status: 409, errno: 'EBUSY', before: [open, made] },
  { operationId: 'make_device_exclusive', status: 409, errno: 'EEXIST', before: [open, made] },
  {
    operationId: 'make_device_exclusive',
    status: 413,
    errno: 'E2BIG',
    before: [open],
    body: { ...range, length: '0x401000' },
  },
  {
    operationId: 'make_device_exclusive',
    status: 422,
    errno: 'EFAULT',
    before: [open],
    body: { ...range, start: '0x1000' },
  },
  { operationId: 'make_device_exclusive', status: 422, errno: 'EFAULT', before: [open, readOnly] },
  {
    operationId: 'make_device_exclusive',
    status: 422,
    errno: 'EINVAL',
    before: [open],
    body: { ...range, length: '1' },
  },
  { operationId: 'make_device_exclusive', status: 422, errno: 'ESRCH', before: [open, exit] },
  { operationId: 'drop_exclusive_grant', status: 409, errno: 'EBUSY', before: [open, stopped] },
  { operationId: 'map_exclusive_grant', status: 409, errno: 'EBUSY', before: [open, stopped] },
  {
    operationId: 'map_exclusive_grant',
    status: 422,
    errno: 'EINVAL',
    before: [openPlain, made],
    body: { sequence: 1 },
  },
  {
    operationId: 'dmirror_exclusive',
    status: 409,
    errno: 'EBUSY',
    before: [open],
    body: { ...range, start: '0x1000' },
  },
  { operationId: 'dmirror_exclusive', status: 422, errno: 'EINVAL', before: [open, exit] },
  { operationId: 'check_exclusive', status: 422, errno: 'EPERM', before: [open, ['POST', `${DEV}/exclusive`, range]] },
  { operationId: 'mirror_range', status: 422, errno: 'EINVAL', before: [openPlain] },
  {
    operationId: 'mirror_range',
    status: 422,
    errno: 'EPERM',
    before: [open, readOnly],
    body: { ...range, fault: true, write: true },
  },
  {
    operationId: 'mirror_range',
    status: 422,
    errno: 'EFAULT',
    before: [open],
    body: { start: '0x1000', length: '0x1000', fault: true },
  },
  { operationId: 'device_access', status: 422, errno: 'EFAULT', before: [open] },
  { operationId: 'device_access', status: 422, errno: 'EINVAL', before: [open], body: { addr: PAGE, write: false } },
];

async function successes(t: Test): Promise<void> {
  const { host, at } = await machine();
  await prepare(at, touch);
  const calls: [string, number, unknown?][] = [
    ['put_exclusive_device', 201],
    ['put_exclusive_device', 200],
    ['list_exclusive_devices', 200],
    ['check_exclusive', 200],
    ['make_device_exclusive', 200],
    ['list_exclusive_grants', 200],
    ['get_exclusive_grant', 200],
    ['map_exclusive_grant', 200],
    ['list_device_mappings', 200],
    ['get_exclusive_device', 200],
    ['device_access', 200],
    ['device_access', 200, { addr: PAGE, write: false, length: '0x2' }],
    ['drop_exclusive_grant', 200],
    ['mirror_range', 200],
    ['dmirror_exclusive', 200],
    ['delete_exclusive_device', 200],
  ];
  for (const [operationId, expected, body] of calls) {
    const { status, text } = await client.example(operationId, { host, body });
    t.equal(status, expected, `${operationId}: ${text.slice(0, 300)}`);
  }
  t.equal((await client.example('get_exclusive_device', { host })).status, 404);
}

async function pages(t: Test): Promise<void> {
  const { at } = await machine();
  await prepare(
    at,
    open,
    ['POST', `${DEV}/exclusive`, { ...range, length: '0x3000' }],
    ['PUT', '/exclusive_devices/gpu1', { task: 'qemu' }],
  );
  const first = await client.ask('GET', `${at}${DEV}/mappings?limit=2`);
  t.match(first.body, { items: [{ addr: PAGE, access: 'atomic', stale: false }, {}], next_cursor: String });
  t.match((await client.ask('GET', `${at}${DEV}/mappings?cursor=${first.body.next_cursor}`)).body, {
    items: [{ addr: '0x7f0000002000' }],
    next_cursor: null,
  });
  const devices = await client.ask('GET', `${at}/exclusive_devices?limit=1`);
  t.match(devices.body, { items: [{ id: 'gpu0', mappings: 3 }], next_cursor: String });
  for (const grant of ['a', 'b'])
    await prepare(at, [
      'POST',
      `${DEV}/ranges`,
      { start: grant === 'a' ? PAGE : '0x7f0000001000', length: '0x1000', grant },
    ]);
  const grants = await client.ask('GET', `${at}${DEV}/grants?limit=1`);
  t.match((await client.ask('GET', `${at}${DEV}/grants?cursor=${grants.body.next_cursor}`)).body, {
    items: [{ id: 'b' }],
  });
}

/** The notifier of the device is the consumer's, and shown as such; the page table shows the entry. */
async function lookingIn(t: Test): Promise<void> {
  const { at } = await machine();
  await prepare(at, open, made);
  t.match((await client.ask('GET', `${at}/mms/mm-1/notifiers/exclusive-gpu0`)).body, {
    delivery: { kind: 'consumer', consumer: 'exclusive', of: 'gpu0' },
  });
  t.match(await client.ask('DELETE', `${at}/mms/mm-1/notifiers/exclusive-gpu0`), {
    status: 409,
    body: { errno: 'EBUSY' },
  });
  const { body } = await client.ask('GET', `${at}${DEV}/grants/g0`);
  const { pfn } = (body.slots as { pfn: number }[])[0] ?? {};
  t.match((await client.ask('GET', `${at}/pages/${pfn}`)).body, { ref_count: 2, mapcount: 0 });
  t.match((await client.ask('GET', `${at}/locks`)).body.items, [
    { id: `page_lock:${pfn}`, holders: [{ by: 'grant:gpu0/g0' }] },
  ]);
}

async function waiting(t: Test): Promise<void> {
  const { host, at } = await machine();
  await prepare(at, open, made);
  for (const [operationId, stop_at, body] of [
    ['map_exclusive_grant', 'before_insert', {}],
    ['make_device_exclusive', 'after_gup', { start: '0x7f0000002000', length: '0x1000' }],
    ['dmirror_exclusive', 'before_insert', { start: '0x7f0000003000', length: '0x1000' }],
    ['mirror_range', 'after_seq_snapshot', { start: '0x7f0000004000', length: '0x1000', fault: true }],
  ] as const) {
    const reply = await client.example(operationId, { host, body: { ...body, stop_at } });
    t.match(reply, { status: 202, body: { kind: operationId, state: 'stopped', phase: stop_at } }, operationId);
    t.match(await client.ask('POST', `${reply.headers.location}/resume`, {}), { status: 200, body: { state: 'done' } });
  }
  const access = await client.ask('POST', `${at}/tasks/qemu/access`, { addr: PAGE, write: false });
  t.match(access, { status: 202, body: { state: 'blocked', blocked_on: /^page_lock:/ } });
  t.match(await client.ask('POST', `${at}/tasks/qemu/fork`, { child: 'child' }), {
    status: 422,
    body: { errno: 'ENOMEM' },
  });
  await prepare(at, ['DELETE', `${DEV}/grants/g0`]);
  const { body: done } = await client.ask('GET', String(access.headers.location));
  t.match(done, { state: 'done', result: { ret: 0, fault: 'NOPAGE' } });
  const list = await client.ask('GET', `${at}${DEV}/grants`);
  for (const { id } of list.body.items as { id: string }[]) await prepare(at, ['DELETE', `${DEV}/grants/${id}`]);
  const unmap = await client.ask('POST', `${at}/tasks/qemu/munmap`, {
    addr: PAGE,
    length: '0x1000',
    stop_at: 'after_start',
  });
  t.equal(unmap.status, 202);
  const closing = await client.example('delete_exclusive_device', { host });
  t.match(closing, { status: 202, body: { blocked_on: 'invalidate_seq:mm-1' } });
  for (const operationId of ['dmirror_exclusive', 'mirror_range'])
    t.match(await client.example(operationId, { host }), { status: 409, body: { detail: /being closed/ } });
  const opening = await client.ask('PUT', `${at}/exclusive_devices/gpu1`, { task: 'qemu', kind: 'plain' });
  t.match(opening, { status: 202, body: { kind: 'put_exclusive_device', blocked_on: 'mmap_lock:mm-1' } });
  await prepare(at, ['POST', `/operations/${unmap.body.id}/resume`, {}]);
  t.equal((await client.example('get_exclusive_device', { host })).status, 404);
  t.equal((await client.ask('GET', `${at}/exclusive_devices/gpu1`)).status, 200);
}

/** What the mail of 18 May 2021 asks about, told by requests alone. */
async function story(t: Test): Promise<void> {
  const { at } = await machine();
  await prepare(
    at,
    touch,
    open,
    ['POST', `${DEV}/exclusive`, range],
    ['POST', `${DEV}/access`, { addr: PAGE, write: true, data: 'Kg==' }],
  );
  const fork = await client.ask('POST', `${at}/tasks/qemu/fork`, { child: 'child' });
  t.equal(fork.status, 200);
  t.match((await client.ask('GET', `${at}${DEV}/mappings`)).body.items, []);
  for (const task of ['qemu', 'child'])
    t.match(
      (await client.ask('POST', `${at}/tasks/${task}/access`, { addr: PAGE, write: false, length: '0x1' })).body,
      {
        data: 'Kg==',
      },
    );
  const { body } = await client.ask('GET', `${at}/trace?limit=1000`);
  const events = (body.items as { event: string; mmu_event?: string; owner?: string }[])
    .filter(({ event }) => event === 'invalidate_start')
    .map(({ mmu_event, owner }) => `${mmu_event} ${owner}`);
  t.strictSame(events, ['EXCLUSIVE gpu0', 'PROTECTION_PAGE null']);
  t.match((await client.ask('GET', `${at}/violations`)).body, { items: [] });
}

async function elsewhere(t: Test): Promise<void> {
  const { host } = await machine({ profile: '5.8' });
  for (const operationId of [
    'put_exclusive_device',
    'get_exclusive_device',
    'delete_exclusive_device',
    'make_device_exclusive',
    'list_exclusive_grants',
    'get_exclusive_grant',
    'drop_exclusive_grant',
    'map_exclusive_grant',
    'dmirror_exclusive',
    'check_exclusive',
    'mirror_range',
    'device_access',
    'list_device_mappings',
  ])
    t.match(await client.example(operationId, { host }), { status: 422, body: { errno: 'ENODEV' } }, operationId);
  t.match(await client.example('list_exclusive_devices', { host }), { status: 200, body: { items: [] } });
}

export async function exclusiveStatuses(t: Test): Promise<void> {
  await t.test('2xx: every success, with the values of its example', successes);
  await t.test('lists are paged', pages);
  await t.test('what it holds is seen elsewhere', lookingIn);
  await t.test('202: what stops, and what waits for a page, an invalidation or mmap_lock', waiting);
  await t.test('"Re: [PATCH v8 5/8] mm: Device exclusive memory access", 18 May 2021, in requests', story);
  await t.test('422: ENODEV before 5.15', elsewhere);
  await t.test('4xx: one refusal of the emulated kernel for each', (t) => refusals(t, CASES));
}
