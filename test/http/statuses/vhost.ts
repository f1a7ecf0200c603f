// vhost devices over HTTP: every success, what waits, every refusal, and one mail's story told by requests alone.

import type { Test } from 'tap';
import type { Step } from '../fixtures.ts';
import { type Case, client, machine, prepare, refusals } from './machine.ts';

const DEV = '/vhost_devs/v0';
const VQ = `${DEV}/vqs/0`;
const opened: Step = ['PUT', DEV, { variant: 'fixed', nvqs: 2 }];
const owned: Step = ['POST', `${DEV}/set_owner`, { task: 'qemu' }];
const ADDR = { task: 'qemu', desc: '0x7f0000000000', avail: '0x7f0000001000', used: '0x7f0000002000' };
const ring: Step[] = [
  ['PUT', `${VQ}/num`, { task: 'qemu', num: 8 }],
  ['PUT', `${VQ}/addr`, ADDR],
  ['PUT', `${VQ}/backend`, { task: 'qemu', active: true }],
];
const touch = (addr: string): Step => ['POST', '/tasks/qemu/access', { addr, write: true }];
const touched: Step[] = ['0x7f0000000000', '0x7f0000001000', '0x7f0000002000'].map(touch);

/** Device v0 of qemu with a ring of 8 entries, its pages resident. */
const ready: Step[] = [opened, owned, ...ring, ...touched];

const CASES: Case[] = [
  { operationId: 'put_vhost_dev', status: 409, errno: 'EEXIST', before: [opened], body: { variant: 'merged' } },
  { operationId: 'put_vhost_dev', status: 422, errno: 'EINVAL', body: { nvqs: 0 } },
  { operationId: 'vhost_set_owner', status: 409, errno: 'EBUSY', before: [opened, owned] },
  {
    operationId: 'vhost_set_owner',
    status: 422,
    errno: 'EINTR',
    before: [opened, ['POST', '/tasks/qemu/signal', { fatal: false }]],
  },
  { operationId: 'vhost_set_features', status: 422, errno: 'EPERM', before: [opened] },
  {
    operationId: 'vhost_set_features',
    status: 422,
    errno: 'EOPNOTSUPP',
    before: [opened, owned],
    body: { task: 'qemu', features: 1 },
  },
  { operationId: 'vhost_set_vring_num', status: 409, errno: 'EBUSY', before: ready },
  {
    operationId: 'vhost_set_vring_num',
    status: 422,
    errno: 'EINVAL',
    before: [opened, owned],
    body: { task: 'qemu', num: 3 },
  },
  {
    operationId: 'vhost_set_vring_addr',
    status: 422,
    errno: 'EOPNOTSUPP',
    before: [opened, owned],
    body: { ...ADDR, flags: 2 },
  },
  {
    operationId: 'vhost_set_vring_addr',
    status: 422,
    errno: 'EINVAL',
    before: [opened, owned],
    body: { ...ADDR, avail: '0x7f0000001001' },
  },
  {
    operationId: 'vhost_set_backend',
    status: 422,
    errno: 'EFAULT',
    before: [opened, owned, ['PUT', `${VQ}/addr`, { ...ADDR, desc: '0xfffffffff000f000' }]],
  },
  { operationId: 'vhost_access', status: 422, errno: 'EPERM', before: [opened] },
  {
    operationId: 'vhost_access',
    status: 422,
    errno: 'EINVAL',
    before: ready,
    body: { area: 'used', off: 68, write: false, length: 1 },
  },
  {
    operationId: 'vhost_round',
    status: 422,
    errno: 'EFAULT',
    before: [...ready, ['POST', '/tasks/qemu/munmap', { addr: '0x7f0000000000', length: '0x3000' }]],
  },
];

/** A COW break of the worker's copy, inside whose callback calls are made. */
async function insideCallback(): Promise<{ at: string; host: string; notification: string }> {
  const { at, host } = await machine({ notifier_timeout_ms: 600_000 });
  const used = { addr: '0x7f0000002000', length: '0x1000' };
  await prepare(
    at,
    ...ready,
    ['POST', '/tasks/qemu/madvise', { ...used, advice: 'DONTNEED' }],
    ['POST', '/tasks/qemu/access', { addr: used.addr, write: false }],
  );
  const callbacks = ['invalidate_range_start'];
  const { body } = await client.ask('GET', `${at}/tasks/qemu`);
  await prepare(at, [
    'POST',
    `/mms/${body.mm}/notifiers`,
    { id: 'n1', kind: 'plain', callbacks, delivery: { kind: 'poll' } },
  ]);
  const write = await client.ask(
    'POST',
    `${at}${VQ}/access`,
    { area: 'used', off: 2, write: true, data: 'AQA=' },
    {
      headers: { prefer: 'respond-async' },
    },
  );
  if (write.status !== 202) throw new Error(write.text);
  const { body: waiting } = await client.ask('GET', `${at}/mms/${body.mm}/notifications`);
  return { at, host, notification: String((waiting.items as { id: string }[])[0]?.id) };
}

export async function vhostStatuses(t: Test): Promise<void> {
  await t.test('2xx: every success, with the values of its example', async (t) => {
    const { host, at } = await machine();
    const calls: [string, number, unknown?][] = [
      ['put_vhost_dev', 201],
      ['put_vhost_dev', 200],
      ['list_vhost_devs', 200],
      ['vhost_set_owner', 200],
      ['vhost_set_features', 200],
      ['vhost_set_vring_num', 200],
      ['vhost_set_vring_addr', 200],
      ['vhost_set_backend', 200],
      ['vhost_round', 200],
      ['vhost_access', 200],
      ['vhost_access', 200, { area: 'used', off: 2, write: false, length: 2 }],
      ['vhost_round', 200],
      ['get_vhost_dev', 200],
      ['list_vhost_vqs', 200],
      ['get_vhost_vq', 200],
      ['list_vhost_maps', 200],
    ];
    for (const [operationId, expected, body] of calls) {
      const { status, text } = await client.example(operationId, { host, body });
      t.equal(status, expected, `${operationId}: ${text.slice(0, 300)}`);
    }
    const { body: notifier } = await client.ask('GET', `${at}/mms/mm-1/notifiers/vhost-v0`);
    t.match(notifier, { delivery: { kind: 'consumer', consumer: 'vhost', of: 'v0' }, registered: true });
    t.match(await client.ask('DELETE', `${at}/mms/mm-1/notifiers/vhost-v0`), { status: 409, body: { errno: 'EBUSY' } });
    const paged = await client.ask('GET', `${at}${DEV}/vqs?limit=1`);
    t.match(paged.body, { items: [{ vq: 0 }], next_cursor: String });
    t.match((await client.ask('GET', `${at}${DEV}/vqs?cursor=${paged.body.next_cursor}`)).body, {
      items: [{ vq: 1 }],
      next_cursor: null,
    });
    t.equal((await client.ask('GET', `${at}${DEV}/vqs/2`)).status, 404);
    t.match((await client.example('vhost_set_vring_addr', { host, body: { ...ADDR, flags: ['LOG'] } })).status, 200);
    t.match((await client.ask('GET', `${at}${VQ}`)).body, {
      log: true,
      areas: [{ size: '0x80' }, { size: '0x16' }, { size: '0x46' }],
    });
    t.match((await client.example('close_vhost_dev', { host })).body, { ret: 0, leaked_maps: 0 });
    t.equal((await client.example('get_vhost_dev', { host })).status, 404);
  });

  await t.test('202: what stops inside a map, and what waits for it', async (t) => {
    const { host, at } = await machine();
    await prepare(at, ...ready, ['POST', `${VQ}/rounds`, {}]);
    const access = await client.ask('POST', `${at}${VQ}/access`, {
      area: 'used',
      off: 4,
      write: true,
      data: 'AQ==',
      stop_at: 'inside_map',
    });
    t.match(access, { status: 202, body: { kind: 'vhost_access', state: 'stopped', phase: 'inside_map' } });
    t.match((await client.ask('GET', `${at}${DEV}`)).body, {
      calls: 1,
      accessors: [{ vq: 0, area: 'used', revoked: false }],
    });
    for (const operationId of [
      'vhost_round',
      'vhost_set_features',
      'vhost_set_vring_num',
      'vhost_set_vring_addr',
      'vhost_set_backend',
    ])
      t.match(await client.example(operationId, { host }), {
        status: 202,
        body: { kind: operationId, state: 'blocked', blocked_on: 'mutex:vq:v0:0' },
      });
    t.match(await client.example('close_vhost_dev', { host }), { status: 409, body: { errno: 'EBUSY' } });
    const zap = await client.ask('POST', `${at}/tasks/qemu/madvise`, {
      addr: '0x7f0000002000',
      length: '0x1000',
      advice: 'DONTNEED',
    });
    t.match(zap, { status: 202, body: { state: 'blocked', blocked_on: 'vhost_ref:v0:0' } });
    t.match(await client.ask('POST', `${access.headers.location}/resume`, {}), {
      status: 200,
      body: { state: 'done' },
    });
    for (const { headers } of [access, zap])
      t.match((await client.ask('GET', String(headers.location))).body, { state: 'done', result: { ret: 0 } });
    t.match((await client.ask('GET', `${at}/violations`)).body, { items: [] });
  });

  await t.test('202: set_owner waits for mmap_lock, close for who is inside a callback', async (t) => {
    const { host, at } = await machine({ notifier_timeout_ms: 600_000 });
    await prepare(at, opened, touch('0x7f0000005000'));
    const unmap = { addr: '0x7f0000005000', length: '0x1000' };
    const stopped = await client.ask('POST', `${at}/tasks/qemu/munmap`, { ...unmap, stop_at: 'after_start' });
    t.equal(stopped.status, 202);
    t.match(await client.example('vhost_set_owner', { host }), { status: 202, body: { blocked_on: 'mmap_lock:mm-1' } });
    await prepare(at, ['POST', `/operations/${stopped.body.id}/resume`, {}]);
    t.match((await client.ask('GET', `${at}${DEV}`)).body, { mm: 'mm-1', notifier: 'vhost-v0' });
    const callbacks = ['invalidate_range_start'];
    await prepare(at, [
      'POST',
      '/mms/mm-1/notifiers',
      { id: 'n1', kind: 'plain', callbacks, delivery: { kind: 'poll' } },
    ]);
    const headers = { prefer: 'respond-async' };
    const inside = await client.ask(
      'POST',
      `${at}/tasks/qemu/munmap`,
      { addr: '0x7f0000006000', length: '0x1000' },
      { headers },
    );
    t.match(inside, { status: 202, body: { state: 'blocked' } });
    t.match(await client.example('close_vhost_dev', { host }), { status: 202, body: { blocked_on: 'srcu' } });
    t.match(await client.example('get_vhost_dev', { host }), { status: 422, body: { errno: 'EBADF' } });
    const { body } = await client.ask('GET', `${at}/mms/mm-1/notifications`);
    await prepare(at, ['POST', `/mms/mm-1/notifications/${(body.items as { id: string }[])[0]?.id}/ack`, { ret: 0 }]);
    t.equal((await client.example('get_vhost_dev', { host })).status, 404);
  });

  await t.test('409, 422: one refusal of the emulated kernel for each', (t) => refusals(t, CASES));

  await t.test('409: a call inside the callback that the worker waits for would deadlock', async (t) => {
    const { host, notification } = await insideCallback();
    const headers = { 'x-notification': notification };
    for (const operationId of [
      'vhost_set_features',
      'vhost_set_vring_num',
      'vhost_set_vring_addr',
      'vhost_set_backend',
      'vhost_round',
      'vhost_access',
    ])
      t.match(
        await client.example(operationId, { host, headers }),
        { status: 409, body: { errno: 'EDEADLK' } },
        operationId,
      );
  });

  await t.test('422 ENODEV: 4.10 has no such maps', async (t) => {
    const { host } = await machine({ profile: '4.10' });
    for (const operationId of [
      'put_vhost_dev',
      'get_vhost_dev',
      'vhost_set_owner',
      'vhost_set_features',
      'close_vhost_dev',
      'list_vhost_vqs',
      'get_vhost_vq',
      'list_vhost_maps',
      'vhost_set_vring_num',
      'vhost_set_vring_addr',
      'vhost_set_backend',
      'vhost_round',
      'vhost_access',
    ])
      t.match(await client.example(operationId, { host }), { status: 422, body: { errno: 'ENODEV' } }, operationId);
    t.match(await client.example('list_vhost_devs', { host }), { status: 200, body: { items: [] } });
  });

  await t.test('the defect of each start as merged, seen by requests alone', async (t) => {
    const { at } = await machine();
    await prepare(at, ['PUT', DEV, { variant: 'merged' }], owned, ...ring, ...touched, ['POST', `${VQ}/rounds`, {}]);
    const { body } = await client.ask('GET', `${at}${VQ}/maps`);
    t.match(body, {
      items: [{ area: 'desc', kva: /^0xffff8/ }, { area: 'avail' }, { area: 'used', written: [], stale: false }],
    });
    const access = await client.ask('POST', `${at}${VQ}/access`, {
      area: 'used',
      off: 4,
      write: true,
      data: 'AQ==',
      stop_at: 'inside_map',
    });
    const dontneed = { addr: '0x7f0000002000', length: '0x1000', advice: 'DONTNEED' };
    t.match((await client.ask('POST', `${at}/tasks/qemu/madvise`, dontneed)).body, {
      blocked_on: `rcu_read:${access.body.id}`,
    });
    await prepare(at, ['POST', `/operations/${access.body.id}/resume`, {}]);
    const found = (await client.ask('GET', `${at}/violations`)).body.items as { code: string }[];
    t.strictSame(found.map(({ code }) => code).sort(), [
      'GRACE_PERIOD_IN_START',
      'LEAKED_MAP',
      'NO_SPECULATION_BARRIER',
      'WRITE_AFTER_DIRTY',
    ]);
  });
}
