// Every status that the document promises is provoked, and every response on the way is checked against it.

import t from 'tap';
import { BODY_LIMIT } from '../../src/http/limits.ts';
import { MAX_DECLARED_PAGES, MAX_FAULTS, MAX_GROUPS, MAX_PARKED_OPERATIONS } from '../../src/kernel/limits.ts';
import { Client, exampleBody, type Reply, startApp } from './client.ts';
import {
  IGNORE,
  listening,
  MAP,
  mapped,
  PIN,
  POLL,
  pinned,
  READ,
  type Step,
  prepare as send,
  UNMAP,
} from './fixtures.ts';
import type { Operation } from './validate-response.ts';

const app = await startApp();
const client = new Client(app);
t.teardown(() => app.close());
const { operations } = client.document;

const inV1 = operations.filter(({ path }) => path.startsWith('/v1/'));
const hasHost = ({ path }: Operation): boolean => path.includes('{host}');
const documents = ({ operation }: Operation, status: number): boolean => String(status) in operation.responses;
let hosts = 0;

const prepare = (at: string, ...steps: Step[]): Promise<void> => send(client, at, ...steps);

/** A new host of the template, and the base of its paths. */
async function machine(options: Record<string, unknown> = {}): Promise<{ host: string; at: string }> {
  const host = `h${++hosts}`;
  return { host, at: await client.newHost(host, options) };
}

/** A host whose container vfio0 died of the BUG that an ignoring driver provokes. */
async function deadContainer(): Promise<{ host: string; at: string }> {
  const made = await machine();
  await prepare(made.at, mapped, listening(IGNORE), pinned);
  const { status } = await client.ask('POST', `${made.at}/containers/vfio0/unmap_dma`, UNMAP);
  if (status !== 410) throw new Error(`the container lives: ${status}`);
  return made;
}

/** A host where an unmap waits for a poll handler. */
async function waitingUnmap(): Promise<{ host: string; at: string; unmap: Reply }> {
  const made = await machine({ notifier_timeout_ms: 600_000 });
  await prepare(made.at, mapped, listening(POLL), pinned);
  const unmap = await client.ask('POST', `${made.at}/containers/vfio0/unmap_dma`, UNMAP, {
    headers: { prefer: 'respond-async' },
  });
  return { ...made, unmap };
}

const notificationOf = async (at: string): Promise<string> => {
  const { body } = await client.ask('GET', `${at}/devices/mdev0/notifications`);
  return String((body.items as { id: string }[])[0]?.id);
};

t.test('400: every operation refuses an unknown query parameter by name', async (t) => {
  for (const found of inV1) {
    const url = client.urlOf(found);
    const { status, body } = await client.ask(
      found.method.toUpperCase(),
      `${url}${url.includes('?') ? '&' : '?'}bogus=1`,
      exampleBody(found),
    );
    t.equal(status, 400, found.operation.operationId);
    t.match(body, { detail: /bogus/, errors: [{ in: 'query', field: 'bogus' }] });
  }
});

t.test('404: every operation on an unknown host names the host', async (t) => {
  for (const found of inV1.filter((each) => hasHost(each) && documents(each, 404))) {
    const { status, body } = await client.example(found.operation.operationId, { host: 'nowhere' });
    t.equal(status, 404, found.operation.operationId);
    t.match(body, { title: 'Not found', detail: "no host 'nowhere'" });
    t.notOk('errno' in body);
  }
});

t.test('413 and 415: a body that is too large or not JSON', async (t) => {
  const large = `{"x":"${'x'.repeat(BODY_LIMIT)}"}`;
  for (const { operation } of inV1.filter(({ operation }) => operation.requestBody !== undefined)) {
    const tooLarge = await client.example(operation.operationId, { host: 'default', raw: large });
    t.match(tooLarge, { status: 413, body: { limit: BODY_LIMIT } }, operation.operationId);
    const text = await client.example(operation.operationId, {
      raw: 'iova=0',
      headers: { 'content-type': 'application/x-www-form-urlencoded' },
    });
    t.match(text, { status: 415, body: { accept: 'application/json' } }, operation.operationId);
  }
});

t.test('401: every operation but the open ones wants the token, when one is set', async (t) => {
  const locked = await startApp({ API_TOKEN: 'secret-token' });
  const stranger = new Client(locked, client.document);
  t.teardown(() => locked.close());
  for (const { operation } of operations) {
    const { status, headers, body } = await stranger.example(operation.operationId);
    if (!documents({ operation } as Operation, 401)) t.equal(status, 200, operation.operationId);
    else
      t.match(
        { status, headers, body },
        { status: 401, headers: { 'www-authenticate': /^Bearer/ }, body: { title: /token/ } },
        operation.operationId,
      );
  }
  for (const page of ['/docs', '/openapi.json', '/docs/problems'])
    t.equal((await stranger.ask('GET', page)).status, 200, page);
  for (const authorization of ['Bearer secret-toke', 'Bearer secret-token2', 'Basic secret-token', 'Bearer'])
    t.equal(
      (await stranger.ask('GET', '/v1/hosts', undefined, { headers: { authorization } })).status,
      401,
      authorization,
    );
  for (const authorization of ['Bearer secret-token', 'bearer secret-token'])
    t.equal(
      (await stranger.ask('GET', '/v1/hosts', undefined, { headers: { authorization } })).status,
      200,
      authorization,
    );
  for (const seen of stranger.seen) client.seen.add(seen);
});

t.test('503: while draining, every operation under /v1 says when to try again', async (t) => {
  const draining = await startApp();
  const late = new Client(draining, client.document);
  await draining.service.stop();
  for (const { operation } of inV1) {
    const { status, headers, body } = await late.example(operation.operationId);
    t.match(
      { status, headers, body },
      { status: 503, headers: { 'retry-after': /^\d+$/ }, body: { reason: 'draining' } },
      operation.operationId,
    );
  }
  t.match(await late.ask('GET', '/readyz'), { status: 503, body: { ready: false, draining: true } });
  t.equal((await late.ask('GET', '/healthz')).status, 200);
  await draining.close();
  for (const seen of late.seen) client.seen.add(seen);
});

t.test('422: an idempotency key that was used with another request', async (t) => {
  const { host, at } = await machine();
  const headers = { 'idempotency-key': 'used' };
  await client.ask('POST', `${at}/tasks/qemu/adjust_locked_vm`, { delta: 1 }, { headers });
  for (const found of inV1.filter((each) => each.method === 'post' && documents(each, 422))) {
    if (found.operation.operationId === 'adjust_locked_vm') continue;
    const { status, body } = await client.example(found.operation.operationId, { host, headers });
    t.match({ status, body }, { status: 422, body: { type: /#idempotency-mismatch$/ } }, found.operation.operationId);
  }
  const { status } = await client.ask('POST', `${at}/tasks/qemu/adjust_locked_vm`, { delta: 2 }, { headers });
  t.equal(status, 422);
});

t.test('410: whatever changes a dead container', async (t) => {
  const { host, at } = await deadContainer();
  for (const found of inV1.filter((each) => documents(each, 410))) {
    const { operationId } = found.operation;
    const path = { notifier: 'n0', notification: 'notification-1' };
    const body = operationId === 'put_device' ? { container: 'vfio0' } : undefined;
    const device = operationId === 'put_device' ? 'mdev1' : 'mdev0';
    const { status, body: problem } = await client.example(operationId, { host, path: { ...path, device }, body });
    t.match({ status, problem }, { status: 410, problem: { errno: 'EIO', ret: -5 } }, operationId);
  }
  t.match((await client.ask('GET', `${at}/containers/vfio0`)).body, { dead: { text: /.+/, where: /.+/ } });
  t.equal((await client.ask('GET', `${at}/devices/mdev0`)).status, 200);
  const { body } = await client.ask('GET', `${at}/dmesg`);
  t.ok((body.items as { kind: string }[]).some(({ kind }) => kind === 'BUG'));
});

t.test('2xx: every success, with the values of its example', async (t) => {
  const { host, at } = await machine();
  await prepare(at, mapped, listening({ ...POLL, delivery: { kind: 'builtin', behavior: 'unpin_all' } }), pinned);
  const fresh = { notifier: 'n0', device: 'mdev1', container: 'vfio1', group: '27', task: 'other', pfn: '100' };
  const calls: [string, number, Record<string, string>?, unknown?][] = [
    ['put_container', 201, { container: fresh.container }],
    ['put_container', 200, { container: fresh.container }],
    ['put_group', 201, { group: fresh.group }],
    ['put_group', 200, { group: fresh.group }],
    ['put_task', 201, { task: fresh.task }],
    ['put_task', 200, { task: fresh.task }],
    ['put_page', 201],
    ['put_page', 200],
    ['list_mappings', 200],
    ['list_pfns', 200],
    ['get_tree', 200],
    ['unpin_pages', 200],
    ['pin_pages', 200],
    ['leaks', 200],
    ['list_notifiers', 200],
    ['get_notifier', 200],
    ['list_notifications', 200],
    ['unmap_dma', 200],
    ['map_dma', 200],
    ['dirty_pages', 200],
    ['dma_rw', 200],
    ['unregister_notifier', 200],
    ['register_notifier', 201],
    ['list_devices', 200],
    ['get_device', 200],
    ['list_containers', 200],
    ['get_container', 200],
    ['get_info', 200],
    ['check_extension', 200],
    ['list_groups', 200],
    ['get_group', 200],
    ['close_device', 200],
    ['unset_container', 200],
    ['set_container', 200],
    ['set_iommu', 200],
    ['open_device', 200],
    ['close_device', 200],
    ['close_group', 200],
    ['open_group', 200],
    ['put_device', 201, { device: fresh.device }],
    ['put_device', 200, { device: fresh.device }],
    ['close_container', 200, { container: fresh.container }],
    ['list_tasks', 200],
    ['get_task', 200],
    ['patch_task', 200],
    ['mmap', 200],
    ['put_page_contents', 201],
    ['put_page_contents', 200],
    ['get_page_contents', 200],
    ['put_fault', 201],
    ['put_fault', 200],
    ['list_faults', 200],
    ['get_fault', 200],
    ['delete_fault', 200],
    ['mprotect', 200],
    ['munmap', 200],
    ['adjust_locked_vm', 200],
    ['list_maps', 200],
    ['list_pages', 200],
    ['get_page', 200],
    ['list_host_pages', 200],
    ['exit', 200],
    ['list_operations', 200],
    ['dmesg', 200],
    ['trace', 200],
    ['journal', 200],
    ['invariants', 200],
    ['differential', 200],
    ['sync', 200],
    ['put_host', 201, { host: 'made' }],
    ['put_host', 200, { host: 'made' }],
    ['patch_host', 200],
    ['list_hosts', 200],
    ['get_host', 200],
    ['reset_host', 200],
    ['delete_host', 200, { host: 'made' }],
    ['healthz', 200],
    ['readyz', 200],
    ['metrics', 200],
  ];
  for (const [operationId, expected, path = {}, body] of calls) {
    const { status, text } = await client.example(operationId, { host, path, body });
    t.equal(status, expected, `${operationId}: ${text.slice(0, 300)}`);
  }
  const waiting = await waitingUnmap();
  t.equal((await client.ask('GET', String(waiting.unmap.headers.location))).status, 200);
  const text = await client.ask('GET', `${at}/dmesg?format=text`);
  t.match(text.headers['content-type'], /^text\/plain/);
});

t.test('202: what waits answers at once where the client prefers it, with its operation', async (t) => {
  const { at, unmap } = await waitingUnmap();
  const headers = { prefer: 'wait=5, Respond-Async; foo=1' };
  t.match(unmap, {
    status: 202,
    headers: { location: /\/operations\/unmap_dma-\d+$/, 'preference-applied': 'respond-async' },
    body: { ret: 0, state: 'blocked', phase: 'notify', seq: Number },
  });
  const unregister = await client.ask('DELETE', `${at}/devices/mdev0/notifiers/n0`, undefined, { headers });
  t.match(unregister, { status: 202, body: { kind: 'unregister_notifier', state: 'blocked' } });
  const register = await client.ask('POST', `${at}/devices/mdev0/notifiers`, { ...POLL, id: 'n2' }, { headers });
  t.match(register, { status: 202, body: { kind: 'register_notifier' } });
  const ack = await client.ask('POST', `${at}/devices/mdev0/notifications/${await notificationOf(at)}/ack`, {
    ret: 'NOTIFY_OK',
  });
  t.equal(ack.status, 200);

  const sleeping = await machine();
  await prepare(sleeping.at, mapped, listening(POLL), [
    'POST',
    '/containers/vfio0/unmap_dma',
    { ...UNMAP, flags: ['VADDR'] },
  ]);
  const pin = await client.ask('POST', `${sleeping.at}/devices/mdev0/pin_pages`, PIN, { headers });
  t.match(pin, { status: 202, body: { kind: 'pin_pages', state: 'blocked' } });
  const read = await client.ask('POST', `${sleeping.at}/devices/mdev0/dma_rw`, READ, { headers });
  t.match(read, { status: 202, body: { kind: 'dma_rw', state: 'blocked' } });
  await prepare(sleeping.at, ['PUT', '/groups/40', { kind: 'iommu' }]);
  const attach = await client.ask(
    'POST',
    `${sleeping.at}/groups/40/set_container`,
    { container: 'vfio0' },
    { headers },
  );
  t.match(attach, { status: 202, body: { kind: 'set_container', state: 'blocked', blocked_on: 'vaddr:vfio0' } });
  const again = await client.ask('POST', `${sleeping.at}/groups/40/set_container`, { container: 'vfio0' }, { headers });
  t.match(again, { status: 409, body: { errno: 'EBUSY' } });
  const kill = await client.ask('POST', `${attach.headers.location}/kill`, {});
  t.match(kill, { status: 200, body: { ret: 0, id: attach.body.id } });
  t.match((await client.ask('GET', String(attach.headers.location))).body, {
    state: 'done',
    problem: { errno: 'EFAULT', status: 422, op: 'set_container' },
  });
  t.match(await client.ask('POST', `${attach.headers.location}/kill`, {}), { status: 422, body: { errno: 'EINVAL' } });
  await prepare(sleeping.at, ['POST', '/containers/vfio0/map_dma', { ...MAP, flags: ['VADDR'] }]);
  t.match((await client.ask('GET', String(read.headers.location))).body, {
    state: 'done',
    result: { data: 'AAAAAA==' },
  });
  const done = await client.ask('GET', String(pin.headers.location));
  t.match(done.body, { state: 'done', result: { ret: 2, phys_pfn: [Number, Number] } });
});

t.test('a finished operation that was refused has the whole problem inside', async (t) => {
  const { at } = await machine();
  await prepare(at, mapped, listening(POLL), pinned);
  const unmap = await client.ask('POST', `${at}/containers/vfio0/unmap_dma`, UNMAP, {
    headers: { prefer: 'respond-async', 'x-request-id': 'mine' },
  });
  for (let attempt = 1; attempt <= 11; attempt++)
    await client.ask('POST', `${at}/devices/mdev0/notifications/${await notificationOf(at)}/ack`, {
      ret: 'NOTIFY_DONE',
    });
  const { body } = await client.ask('GET', String(unmap.headers.location));
  t.match(body, {
    state: 'done',
    problem: { status: 410, errno: 'EIO', ret: -5, op: 'unmap_dma', profile: '5.15', instance: 'mine' },
  });
  t.match((await client.ask('GET', `${at}/operations`)).body, { items: [{ problem: { errno: 'EIO' } }] });
});

interface Case {
  operationId: string;
  status: number;
  errno?: string;
  before?: Step[];
  path?: Record<string, string>;
  body?: unknown;
  headers?: Record<string, string>;
}

const closedContainer: Step = ['POST', '/containers/vfio0/close', {}];
const exited: Step = ['POST', '/tasks/qemu/exit', {}];
const TWO_RUNS = {
  addr: '0x600000000000',
  length: '0x2000',
  prot: ['READ'],
  backing: { kind: 'pages', pfns: [[5, 1]] },
};

/** One kernel refusal for every documented status that is not provoked above. */
const CASES: Case[] = [
  { operationId: 'map_dma', status: 409, errno: 'EEXIST', before: [mapped] },
  { operationId: 'map_dma', status: 422, errno: 'EINVAL', body: { ...MAP, size: '0' } },
  {
    operationId: 'unmap_dma',
    status: 422,
    errno: 'EINVAL',
    before: [mapped],
    body: { iova: '0x1000', size: '0x1000' },
  },
  { operationId: 'pin_pages', status: 413, errno: 'E2BIG', body: { ...PIN, user_pfn: new Array(513).fill(1) } },
  { operationId: 'pin_pages', status: 422, errno: 'EOPNOTSUPP', body: { iova: '0x0', npage: 1, prot: 1 } },
  { operationId: 'unpin_pages', status: 413, errno: 'E2BIG', body: { user_pfn: [1], npage: -1 } },
  { operationId: 'unpin_pages', status: 422, errno: 'EOPNOTSUPP', body: { iova: '0x0', npage: 1 } },
  { operationId: 'register_notifier', status: 422, errno: 'EINVAL', body: { ...POLL, events: 3 } },
  {
    operationId: 'unregister_notifier',
    status: 422,
    errno: 'ENOENT',
    before: [listening(POLL), ['DELETE', '/devices/mdev0/notifiers/n0']],
  },
  { operationId: 'put_device', status: 409, errno: 'EEXIST', body: { group: null } },
  {
    operationId: 'put_device',
    status: 422,
    errno: 'EBADF',
    before: [closedContainer],
    path: { device: 'mdev1' },
    body: { container: 'vfio0' },
  },
  { operationId: 'open_device', status: 422, errno: 'EBADF', before: [['POST', '/groups/26/close', {}]] },
  { operationId: 'close_device', status: 422, errno: 'EBADF', before: [['POST', '/devices/mdev0/close', {}]] },
  { operationId: 'put_container', status: 422, errno: 'EBADF', before: [closedContainer] },
  { operationId: 'get_info', status: 422, errno: 'EBADF', before: [closedContainer] },
  { operationId: 'check_extension', status: 422, errno: 'EBADF', before: [closedContainer] },
  { operationId: 'set_iommu', status: 422, errno: 'EINVAL' },
  { operationId: 'close_container', status: 422, errno: 'EBADF', before: [closedContainer] },
  {
    operationId: 'put_group',
    status: 409,
    errno: 'EEXIST',
    path: { group: '26' },
    body: { kind: 'iommu' },
  },
  {
    operationId: 'put_group',
    status: 413,
    errno: 'E2BIG',
    path: { group: '40' },
    body: { kind: 'iommu', reserved: new Array(65).fill({ start: '0', last: '0xfff' }) },
  },
  {
    operationId: 'put_group',
    status: 422,
    errno: 'EINVAL',
    path: { group: '40' },
    body: { kind: 'iommu', aperture: { start: '0x1000', last: '0xfff' } },
  },
  { operationId: 'dirty_pages', status: 422, errno: 'EINVAL', body: { op: 3 } },
  {
    operationId: 'dirty_pages',
    status: 422,
    errno: 'EINVAL',
    body: { op: 'get', iova: '0', size: '0x1000', pgsize: '0x1000' },
  },
  {
    operationId: 'dirty_pages',
    status: 413,
    errno: 'E2BIG',
    before: [['POST', '/containers/vfio0/dirty_pages', { op: 'start' }]],
    body: { op: 'get', iova: '0', size: '0x1000', pgsize: '0x1000', bitmap_size: '0x10000000' },
  },
  { operationId: 'dma_rw', status: 413, errno: 'E2BIG', body: { iova: '0', length: '0xffffffffffffffff' } },
  { operationId: 'dma_rw', status: 422, errno: 'EINVAL', body: { iova: '0x5000', write: true, data: 'AQI=' } },
  {
    operationId: 'put_fault',
    status: 409,
    errno: 'EEXIST',
    before: [['PUT', '/faults/f0', { point: 'charge', call: 'pin_pages', nth: 9 }]],
  },
  { operationId: 'put_fault', status: 422, errno: 'EINVAL', body: { point: 'charge', call: 'map_dma', nth: 0 } },
  {
    operationId: 'put_page_contents',
    status: 409,
    errno: 'EBUSY',
    before: [mapped, ['POST', '/devices/mdev0/dma_rw', { iova: '0x1000', write: true, data: 'AQI=' }]],
  },
  { operationId: 'open_group', status: 409, errno: 'EBUSY' },
  { operationId: 'close_group', status: 422, errno: 'EBADF', before: [['POST', '/groups/26/close', {}]] },
  { operationId: 'set_container', status: 422, errno: 'EINVAL' },
  { operationId: 'unset_container', status: 409, errno: 'EBUSY' },
  {
    operationId: 'unset_container',
    status: 422,
    errno: 'EINVAL',
    before: [['PUT', '/groups/99', {}]],
    path: { group: '99' },
  },
  { operationId: 'put_task', status: 409, errno: 'EEXIST', body: { cap_ipc_lock: true } },
  {
    operationId: 'put_task',
    status: 422,
    errno: 'ESRCH',
    before: [exited],
    path: { task: 'thread' },
    body: { thread_of: 'qemu' },
  },
  { operationId: 'patch_task', status: 422, errno: 'ESRCH', before: [exited] },
  {
    operationId: 'mmap',
    status: 409,
    errno: 'EEXIST',
    body: { ...TWO_RUNS, addr: '0x7f0000000000', backing: { kind: 'anon' }, noreplace: true },
  },
  { operationId: 'mmap', status: 422, errno: 'EINVAL', body: TWO_RUNS },
  { operationId: 'munmap', status: 422, errno: 'EINVAL', body: { addr: '0x1', length: '0x1000' } },
  {
    operationId: 'mprotect',
    status: 422,
    errno: 'ENOMEM',
    body: { addr: '0x600000000000', length: '0x1000', prot: ['READ'] },
  },
  { operationId: 'exit', status: 422, errno: 'ESRCH', before: [exited] },
  { operationId: 'adjust_locked_vm', status: 422, errno: 'ESRCH', before: [exited] },
  { operationId: 'list_pages', status: 422, errno: 'EINVAL' },
  { operationId: 'put_page', status: 409, errno: 'EEXIST', before: [['PUT', '/pages/100', { kind: 'device' }]] },
];

t.test('409, 413, 422: one refusal of the emulated kernel for each', async (t) => {
  for (const { operationId, status, errno, before = [], path = {}, body, headers } of CASES) {
    const { host, at } = await machine();
    await prepare(at, ...before);
    const reply =
      operationId === 'list_pages'
        ? await client.ask('GET', `${at}/tasks/qemu/pages?addr=0x7f0000000800`)
        : await client.example(operationId, { host, path, body, ...(headers === undefined ? {} : { headers }) });
    t.match(reply, { status, body: { errno, status, detail: /.{5}/ } }, `${operationId} ${status}`);
    t.ok(Number(reply.body.ret) < 0);
  }
});

t.test('409 of notifiers: a deadlock inside the handler, a late acknowledgement', async (t) => {
  const { at } = await waitingUnmap();
  const notification = await notificationOf(at);
  const headers = { 'x-notification': notification };
  const unregister = await client.ask('DELETE', `${at}/devices/mdev0/notifiers/n0`, undefined, { headers });
  t.match(unregister, { status: 409, body: { errno: 'EDEADLK', hint: /dmesg/ } });
  const register = await client.ask('POST', `${at}/devices/mdev0/notifiers`, { ...POLL, id: 'n3' }, { headers });
  t.match(register, { status: 409, body: { errno: 'EDEADLK' } });
  await prepare(
    at,
    ['POST', '/devices/mdev0/unpin_pages', { user_pfn: PIN.user_pfn }],
    ['POST', `/devices/mdev0/notifications/${notification}/ack`, { ret: 1 }],
  );
  const late = await client.ask('POST', `${at}/devices/mdev0/notifications/${notification}/ack`, { ret: 1 });
  t.match(late, { status: 409, body: { errno: 'EBUSY' } });
});

t.test('409 of an unmap inside a handler whose chain somebody else waits to change', async (t) => {
  const { at } = await machine({ notifier_timeout_ms: 600_000 });
  const second = { ...MAP, iova: '0x40000000', vaddr: '0x7f0010000000' };
  await prepare(at, mapped, ['POST', '/containers/vfio0/map_dma', second], listening(POLL), pinned);
  await prepare(at, ['POST', '/devices/mdev0/pin_pages', { ...PIN, user_pfn: [0x40000] }]);
  const patient = { headers: { prefer: 'respond-async' } };
  await client.ask('POST', `${at}/containers/vfio0/unmap_dma`, UNMAP, patient);
  t.equal((await client.ask('DELETE', `${at}/devices/mdev0/notifiers/n0`, undefined, patient)).status, 202);
  const nested = { ...UNMAP, iova: second.iova };
  const headers = { 'x-notification': await notificationOf(at) };
  t.match(await client.ask('POST', `${at}/containers/vfio0/unmap_dma`, nested, { headers }), {
    status: 409,
    body: { errno: 'EDEADLK' },
  });
  t.match((await client.ask('GET', `${at}/containers/vfio0/mappings`)).body, { items: [{}, { iova: second.iova }] });
});

t.test('422: the bounds of an emulated machine', async (t) => {
  const crowded = await machine();
  const context = { request_id: 'crowd', notification: null, idempotency: null, respond_async: false };
  const groups = Array.from({ length: MAX_GROUPS - 1 }, (_, i) =>
    app.service.submit(crowded.host, { op: 'put_group', group: `g${i}`, kind: 'mdev' }, context),
  );
  await Promise.all(groups);
  t.match(await client.example('put_group', { host: crowded.host, path: { group: 'one-more' } }), {
    status: 422,
    body: { errno: 'ENOSPC' },
  });

  const faults = Array.from({ length: MAX_FAULTS }, (_, i) =>
    app.service.submit(
      crowded.host,
      { op: 'put_fault', fault: `x${i}`, point: 'charge', call: 'map_dma', nth: 1 },
      context,
    ),
  );
  await Promise.all(faults);
  t.match(await client.example('put_fault', { host: crowded.host }), { status: 422, body: { errno: 'ENOSPC' } });

  // A million PUTs would do the same.
  await app.service.read(crowded.host, ({ mm }) => {
    mm.pages.declared = MAX_DECLARED_PAGES;
  });
  t.match(await client.example('put_page', { host: crowded.host }), { status: 422, body: { errno: 'ENOSPC' } });
});

t.test('409 of a pin that would have to wait where MAX_PARKED_OPERATIONS wait', async (t) => {
  const { at } = await machine();
  const invalid: Step = ['POST', '/containers/vfio0/unmap_dma', { ...UNMAP, flags: ['VADDR'] }];
  await prepare(at, mapped, listening(POLL), invalid);
  const pin = (): Promise<Reply> =>
    client.ask('POST', `${at}/devices/mdev0/pin_pages`, PIN, { headers: { prefer: 'respond-async' } });
  for (let waiting = 0; waiting < MAX_PARKED_OPERATIONS; waiting++) t.equal((await pin()).status, 202);
  t.match(await pin(), { status: 409, body: { errno: 'EBUSY', phys_pfn: [0, 0] } });
  const read = await client.ask('POST', `${at}/devices/mdev0/dma_rw`, READ);
  t.match(read, { status: 409, body: { errno: 'EBUSY', data: '' } });
});

t.test('409 of the dma_unmap op: a second one, and what would deadlock with a walk over the devices', async (t) => {
  const { at } = await machine({ profile: '6.18', notifier_timeout_ms: 600_000 });
  const op = { events: ['DMA_UNMAP'], delivery: { kind: 'poll' } };
  await prepare(
    at,
    mapped,
    ['POST', '/devices/mdev0/notifiers', { ...op, id: 'n0' }],
    ['POST', '/devices/mdev0/pin_pages', { iova: '0x1000', npage: 1, prot: ['READ'] }],
    ['PUT', '/devices/mdev1', { container: 'vfio0', notifier: { ...op, id: 'n1' } }],
    ['PUT', '/devices/mdev2', { group: 'mdev1' }],
    ['POST', '/devices/mdev2/notifiers', { ...op, id: 'n2' }],
    ['PUT', '/devices/mdev3', { group: 'mdev1', dma_unmap: false }],
  );
  t.match(await client.ask('POST', `${at}/devices/mdev0/notifiers`, { ...op, id: 'n3' }), {
    status: 409,
    body: { errno: 'EEXIST' },
  });
  t.match(await client.ask('POST', `${at}/devices/mdev3/notifiers`, op), {
    status: 422,
    body: { errno: 'EOPNOTSUPP' },
  });
  for (const older of [{ type: 'GROUP' }, { priority: 1 }])
    t.match(await client.ask('POST', `${at}/devices/mdev2/notifiers`, { ...op, ...older }), {
      status: 422,
      body: { errno: 'EOPNOTSUPP' },
    });
  t.match(await client.ask('POST', `${at}/devices/mdev0/pin_pages`, PIN), {
    status: 422,
    body: { errno: 'EOPNOTSUPP' },
  });
  const wrong = await client.ask('POST', `${at}/devices/mdev0/unpin_pages`, { iova: '0x1000', npage: 0 });
  t.match(wrong, { status: 200, body: { ret: 0, warnings: ['unpin-bad-count'] } });
  const unmap = await client.ask('POST', `${at}/containers/vfio0/unmap_dma`, UNMAP, {
    headers: { prefer: 'respond-async' },
  });
  t.equal(unmap.status, 202);
  for (const call of ['devices/mdev2/open', 'devices/mdev0/close'])
    t.match(await client.ask('POST', `${at}/${call}`, {}), { status: 409, body: { errno: 'EDEADLK', hint: /dmesg/ } });
});

t.test('404 and 409 of a differential run: an unknown host, a journal whose beginning was dropped', async (t) => {
  const profiles = ['5.15', '6.18'];
  const unknown = await client.ask('POST', '/v1/differential', { profiles, host: 'nowhere' });
  t.match(unknown, { status: 404, body: { detail: "no host 'nowhere'" } });
  const forgetful = await startApp({ JOURNAL_KEEP: '5' });
  t.teardown(() => forgetful.close());
  const other = new Client(forgetful, client.document);
  for (let delta = 1; delta <= 10; delta++)
    await other.ask('POST', '/v1/hosts/default/tasks/qemu/adjust_locked_vm', { delta });
  t.equal((await other.ask('POST', '/v1/differential', { profiles, host: 'default' })).status, 200);
  await forgetful.service.checkpoint('default');
  t.match(await other.ask('POST', '/v1/differential', { profiles, host: 'default' }), {
    status: 409,
    body: { type: /#journal-incomplete$/, detail: /the oldest that is kept is 6/ },
  });
  for (const seen of other.seen) client.seen.add(seen);
});

t.test('409 of hosts: the same id with other options', async (t) => {
  const { host } = await machine();
  t.match(await client.ask('PUT', `/v1/hosts/${host}`, { template: 'empty' }), {
    status: 409,
    body: { errno: 'EEXIST' },
  });
});

t.test('nothing that is documented was left out', async (t) => {
  const documented = operations.flatMap(({ operation }) =>
    Object.keys(operation.responses).map((status) => `${operation.operationId} ${status}`),
  );
  t.same(
    documented.filter((each) => !client.seen.has(each)),
    [],
  );
});
