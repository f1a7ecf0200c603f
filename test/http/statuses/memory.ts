// Statuses of memory operations, mmu notifiers, files, locks and steps: successes, stops and waits, a full host, refusals.

import type { Test } from 'tap';
import type { Command } from '../../../src/kernel/command.ts';
import { MAX_PARKED_OPERATIONS } from '../../../src/kernel/limits.ts';
import { listening, mapped, POLL, type Step, UNMAP } from '../fixtures.ts';
import { app, type Case, client, machine, prepare, refusals } from './machine.ts';

const A = '0x7f0000000000';
const B = '0x7f0000001000';
const FILE = {
  addr: '0x620000000000',
  length: '0x4000',
  prot: ['READ', 'WRITE'],
  backing: { kind: 'file', file: 'f1' },
};

const plain = (id: string, callbacks: object = { invalidate_range_start: 'ok' }): Step => [
  'POST',
  '/mms/mm-1/notifiers',
  { id, kind: 'plain', callbacks },
];
const interval = (id: string): Step => [
  'POST',
  '/mms/mm-1/notifiers',
  { id, kind: 'interval', start: A, length: '0x10000' },
];
const got: Step = ['POST', '/mms/mm-1/get_notifier', { ops: 'kvm_ops', id: 'k1', callbacks: { release: 'ok' } }];
const touch = (addr: string, task = 'qemu'): Step => ['POST', `/tasks/${task}/access`, { addr, write: true }];
const file: Step = ['PUT', '/files/f1', { size: '0x4000' }];
const mapFile: Step = ['POST', '/tasks/qemu/mmap', FILE];
const gup: Step = ['POST', '/tasks/qemu/gup', { addr: B, npage: 1, flags: ['WRITE', 'PIN'], gup: 'g1' }];
const worker: Step = ['PUT', '/tasks/worker', { thread_of: 'qemu', rlimit_memlock: '0x40000000' }];
/** mmap_lock is held for writing from here on. Precondition: a page is mapped at A. */
const stopped: Step = [
  'POST',
  '/tasks/qemu/mprotect',
  { addr: A, length: '0x1000', prot: ['READ'], stop_at: 'before_start' },
];

/** The page that is mapped at an address. */
async function pfnAt(at: string, addr: string): Promise<string> {
  const { body } = await client.ask('GET', `${at}/tasks/qemu/pages?addr=${addr}`);
  return String((body.items as { pfn: number }[])[0]?.pfn);
}

/** Operations with the values that differ from their examples. */
interface Call {
  operationId: string;
  path?: Record<string, string>;
  body?: unknown;
}

/** All operations that wait while mmap_lock is held. */
const NEED_MMAP_LOCK: readonly Call[] = [
  { operationId: 'mmap' },
  { operationId: 'munmap', body: { addr: A, length: '0x1000' } },
  { operationId: 'mremap' },
  { operationId: 'mprotect' },
  { operationId: 'fork' },
  { operationId: 'madvise' },
  { operationId: 'mlock' },
  { operationId: 'clear_soft_dirty' },
  { operationId: 'migrate_vma' },
  { operationId: 'access', body: { addr: '0x7f0000005000', write: true } },
  { operationId: 'gup', body: { addr: A, npage: 1, flags: ['WRITE', 'GET'] } },
  { operationId: 'register_mmu_notifier', body: { kind: 'plain', callbacks: {} } },
  { operationId: 'get_mmu_notifier', body: { ops: 'other_ops', callbacks: {} } },
];

async function successful(t: Test): Promise<void> {
  const { host, at } = await machine();
  const ask = async (operationId: string, expected: number, { path = {}, body }: Omit<Call, 'operationId'> = {}) => {
    const reply = await client.example(operationId, { host, path, body });
    t.equal(reply.status, expected, `${operationId}: ${reply.text.slice(0, 300)}`);
    return reply;
  };
  await ask('register_mmu_notifier', 201);
  await prepare(at, interval('i1'), touch(A), touch(B), worker);
  for (const id of ['list_mms', 'get_mm', 'get_subscriptions', 'list_mmu_notifiers', 'get_mmu_notifier_state'])
    await ask(id, 200);
  await ask('list_mmu_notifications', 200);
  await ask('get_mmu_notifier', 201, { body: { ops: 'kvm_ops', id: 'k1', callbacks: { release: 'ok' } } });
  await ask('get_mmu_notifier', 200, { body: { ops: 'kvm_ops', callbacks: { release: 'ok' } } });
  await ask('put_mmu_notifier', 200, { path: { notifier: 'k1' } });
  for (const id of ['interval_read_begin', 'interval_read_retry', 'interval_check_retry', 'interval_set_seq'])
    await ask(id, 200, { path: { notifier: 'i1' } });
  for (const id of ['map_secondary', 'unmap_secondary', 'invalidate', 'mmu_call']) await ask(id, 200);
  await ask('access', 200);
  await ask('gup', 200);
  for (const id of ['list_gups', 'get_gup', 'put_gup', 'signal', 'lock', 'list_locks', 'unlock']) await ask(id, 200);
  for (const id of ['ksm_merge', 'mprotect', 'mlock', 'clear_soft_dirty']) await ask(id, 200);
  await ask('mlock', 200, { body: { addr: A, length: '0x1000', lock: false } });
  await ask('madvise', 200);
  await ask('put_file', 201);
  await ask('put_file', 200);
  await prepare(at, mapFile, touch(FILE.addr), [
    'POST',
    '/tasks/qemu/mprotect',
    { addr: A, length: '0x2000', prot: 3 },
  ]);
  for (const id of ['list_files', 'get_file']) await ask(id, 200);
  await ask('mkclean', 200, { path: { pfn: await pfnAt(at, FILE.addr) } });
  await ask('punch_hole', 200);
  await ask('truncate', 200);
  await prepare(at, touch('0x7f0000010000'), touch('0x7f0000011000'));
  await ask('migrate', 200, { path: { pfn: await pfnAt(at, '0x7f0000010000') } });
  await ask('reclaim', 200, { path: { pfn: await pfnAt(at, '0x7f0000011000') } });
  await ask('migrate_vma', 200);
  await ask('fork', 200);
  await ask('mremap', 200);
  await ask('oom_reap', 200);
  await ask('unregister_mmu_notifier', 200);
  for (const id of ['list_lock_order', 'list_violations']) await ask(id, 200);
}

async function waiting(t: Test): Promise<void> {
  for (const { operationId, path = {}, body } of NEED_MMAP_LOCK) {
    const { host, at } = await machine();
    await prepare(at, touch(A), stopped);
    const reply = await client.example(operationId, { host, path, body });
    t.match(
      reply,
      { status: 202, body: { ret: 0, state: 'blocked', blocked_on: 'mmap_lock:mm-1' } },
      `${operationId}: ${reply.text.slice(0, 200)}`,
    );
    t.notOk('preference-applied' in reply.headers, 'nobody has preferred it');
    await prepare(at, ['POST', '/operations/mprotect-2/resume', {}]);
    t.match((await client.ask('GET', String(reply.headers.location))).body, { state: 'done' }, operationId);
  }
}

/** Stops, and waits for other locks than mmap_lock. */
async function stops(t: Test): Promise<void> {
  const { host, at } = await machine();
  await prepare(at, interval('i1'), touch(A), touch(B), worker, file, mapFile, touch(FILE.addr), got, plain('n1'));
  await prepare(at, touch('0x7f0000010000'), touch('0x7f0000011000'));
  const reclaimed = await pfnAt(at, '0x7f0000010000');
  const migrated = await pfnAt(at, '0x7f0000011000');
  const cached = await pfnAt(at, FILE.addr);
  await prepare(at, gup);
  const stop_at = 'before_start';
  const calls: (Call & { state: string })[] = [
    { operationId: 'ksm_merge', body: { addr: A, with: { task: 'qemu', addr: B }, stop_at }, state: 'stopped' },
    { operationId: 'reclaim', path: { pfn: reclaimed }, body: { stop_at }, state: 'stopped' },
    { operationId: 'migrate', path: { pfn: migrated }, body: { stop_at }, state: 'stopped' },
    { operationId: 'mkclean', path: { pfn: cached }, body: { stop_at }, state: 'stopped' },
    { operationId: 'truncate', body: { size: '0x0', stop_at }, state: 'stopped' },
    { operationId: 'punch_hole', body: { offset: '0x0', length: '0x1000', stop_at }, state: 'stopped' },
    { operationId: 'oom_reap', body: { stop_at }, state: 'stopped' },
    { operationId: 'exit', path: { task: 'qemu' }, body: { stop_at }, state: 'stopped' },
    { operationId: 'invalidate', body: { start: A, end: B, event: 'UNMAP', stop_at: 'after_start' }, state: 'stopped' },
  ];
  for (const { operationId, path = {}, body, state } of calls) {
    const one = operationId === 'exit' ? await leaving() : { host, at };
    const reply = await client.example(operationId, { host: one.host, path, body });
    t.match(reply, { status: 202, body: { ret: 0, kind: operationId, state } }, `${operationId}: ${reply.text}`);
    await prepare(one.at, ['POST', `/operations/${reply.body.id}/resume`, {}]);
  }
}

/** A host whose task has one notifier, so that its exit has phases. */
async function leaving(): Promise<{ host: string; at: string }> {
  const made = await machine();
  await prepare(made.at, plain('n1'), touch(A));
  return made;
}

async function waitsOfOthers(t: Test): Promise<void> {
  const { host, at } = await machine({ notifier_timeout_ms: 600_000 });
  await prepare(at, worker, touch(B), gup, interval('i1'), plain('n1'), [
    'POST',
    '/tasks/worker/lock',
    { lock: 'mutex:vq' },
  ]);
  const held = await client.example('lock', { host });
  t.match(held, { status: 202, body: { state: 'blocked', blocked_on: 'mutex:vq' } });
  const pfn = await pfnAt(at, B);
  await prepare(at, ['POST', '/tasks/worker/lock', { lock: `page_lock:${pfn}` }]);
  const dirty = await client.ask('DELETE', `${at}/gups/g1?dirty=set_page_dirty_lock`);
  t.match(dirty, { status: 202, body: { kind: 'put_gup', blocked_on: `page_lock:${pfn}` } });
  await prepare(at, ['POST', '/mms/mm-1/invalidate', { start: A, end: B, event: 'UNMAP', stop_at: 'after_start' }]);
  const reader = await client.ask('POST', `${at}/mms/mm-1/notifiers/i1/read_begin`, {});
  t.match(reader, { status: 202, body: { kind: 'interval_read_begin', blocked_on: 'invalidate_seq:mm-1' } });
  const removal = await client.ask('DELETE', `${at}/mms/mm-1/notifiers/i1`);
  t.match(removal, { status: 202, body: { kind: 'remove_interval_notifier', state: 'blocked' } });
  const young = { id: 'young', kind: 'plain', callbacks: ['test_young'], delivery: { kind: 'poll' } };
  const other = await machine({ notifier_timeout_ms: 600_000 });
  const polled = { ...young, callbacks: ['test_young', 'alloc_notifier', 'free_notifier'] };
  await prepare(other.at, ['POST', '/mms/mm-1/notifiers', polled]);
  const headers = { prefer: 'respond-async' };
  const call = await client.example('mmu_call', { host: other.host, headers });
  t.match(call, { status: 202, headers: { 'preference-applied': 'respond-async' }, body: { phase: String } });
  const { body } = await client.ask('GET', `${other.at}/mms/mm-1/notifications`);
  const [{ id } = { id: '' }] = body.items as { id: string }[];
  const ack = `${other.at}/mms/mm-1/notifications/${id}/ack`;
  t.match(await client.ask('POST', ack.replace('mm-1', 'mm-9'), { ret: true }), { status: 404 });
  t.match(await client.ask('POST', ack, { ret: true }), { status: 200, body: { ret: 0, id } });
  t.match(await client.ask('POST', ack, { ret: 0 }), { status: 409, body: { errno: 'EBUSY' } });
  t.match((await client.ask('GET', String(call.headers.location))).body, { state: 'done', result: { ret: 1 } });
}

async function steps(t: Test): Promise<void> {
  const { at } = await machine();
  await prepare(at, plain('n1'), touch(A));
  const munmap = { addr: A, length: '0x2000', stop_at: 'before_start' };
  const begun = await client.ask('POST', `${at}/tasks/qemu/munmap`, munmap, { headers: { 'x-request-id': 'mine' } });
  t.match(begun, { status: 202, headers: { location: `${at}/operations/munmap-3` } });
  const step = (): ReturnType<typeof client.ask> => client.ask('POST', `${at}/operations/munmap-3/step`, {});
  t.match(await step(), {
    status: 200,
    body: {
      ret: 0,
      id: 'munmap-3',
      state: 'stopped',
      phase: 'after_start',
      task: 'qemu',
      mm: 'mm-1',
      request_id: 'mine',
      locks_held: [{ lock: 'mmap_lock:mm-1', mode: 'R' }],
      result: null,
      seq: 4,
    },
  });
  const resume = (body: object): ReturnType<typeof client.ask> =>
    client.ask('POST', `${at}/operations/munmap-3/resume`, body);
  t.match(await resume({ stop_at: 'sometime' }), { status: 400, body: { errors: [{ field: 'stop_at' }] } });
  t.match(await resume({ stop_at: 'before_end' }), { status: 200, body: { state: 'stopped', phase: 'before_end' } });
  const headers = { 'idempotency-key': 'last' };
  const last = await client.ask('POST', `${at}/operations/munmap-3/resume`, {}, { headers });
  t.match(last, { status: 200, body: { state: 'done', result: { ret: 0 }, seq: 6, finished_seq: 6 } });
  const replayed = await client.ask('POST', `${at}/operations/munmap-3/resume`, {}, { headers });
  t.match(replayed, { status: 200, headers: { 'idempotent-replayed': 'true' } });
  t.same(replayed.body, last.body);
  for (const reply of [await step(), await resume({})])
    t.match(reply, { status: 409, body: { errno: 'EBUSY', detail: /is done/ } });
  t.match(await client.ask('POST', `${at}/operations/munmap-99/step`, {}), { status: 404 });
  t.match(await client.ask('POST', `${at}/tasks/qemu/munmap`, { ...munmap, stop_at: 'soon' }), { status: 400 });
}

/** A host in which as many operations wait as it holds, while mmap_lock is held. */
async function crowded(): Promise<{ host: string; at: string; pfn: string }> {
  const made = await machine();
  const { host, at } = made;
  const invalid: Step = ['POST', '/containers/vfio0/unmap_dma', { ...UNMAP, flags: ['VADDR'] }];
  await prepare(at, mapped, listening(POLL), invalid, plain('n1'), interval('i1'), got, touch(A), touch(B), gup, file);
  await prepare(at, mapFile, touch(FILE.addr));
  const pfn = await pfnAt(at, FILE.addr);
  await prepare(at, stopped);
  const context = { request_id: 'crowd', notification: null, idempotency: null, respond_async: true };
  const pin: Command = { op: 'pin_pages', device: 'mdev0', user_pfn: [16], npage: 1, prot: 1 };
  const pins = Array.from({ length: MAX_PARKED_OPERATIONS - 1 }, () => app.service.submit(host, pin, context));
  await Promise.all(pins);
  return { ...made, pfn };
}

async function busy(t: Test): Promise<void> {
  const { host, pfn } = await crowded();
  const calls: readonly Call[] = [
    ...NEED_MMAP_LOCK,
    { operationId: 'exit' },
    { operationId: 'oom_reap' },
    { operationId: 'ksm_merge' },
    { operationId: 'put_gup' },
    { operationId: 'lock' },
    ...['mkclean', 'reclaim', 'migrate'].map((operationId) => ({ operationId, path: { pfn } })),
    { operationId: 'truncate' },
    { operationId: 'punch_hole' },
    { operationId: 'invalidate' },
    { operationId: 'mmu_call' },
    { operationId: 'unregister_mmu_notifier' },
    { operationId: 'put_mmu_notifier', path: { notifier: 'k1' } },
    { operationId: 'interval_read_begin', path: { notifier: 'i1' } },
  ];
  for (const { operationId, path = {}, body } of calls) {
    const reply = await client.example(operationId, { host, path, body });
    t.match(reply, { status: 409, body: { errno: 'EBUSY' } }, `${operationId}: ${reply.text.slice(0, 200)}`);
  }
}

const CASES: Case[] = [
  {
    operationId: 'unregister_mmu_notifier',
    status: 422,
    errno: 'EINVAL',
    before: [got],
    path: { notifier: 'k1' },
  },
  { operationId: 'put_file', status: 409, errno: 'EEXIST', before: [['PUT', '/files/f1', { size: '0x1' }]] },
  { operationId: 'put_file', status: 422, errno: 'EINVAL', body: { size: '0xffffffffffffffff' } },
  ...(['munmap', 'madvise', 'mprotect'] as const).map((operationId) => ({
    operationId,
    status: 422,
    errno: 'EINVAL',
    body: {
      addr: '0x7f0000000800',
      length: '0x1000',
      ...(operationId === 'madvise' ? { advice: 'DONTNEED' } : {}),
      ...(operationId === 'mprotect' ? { prot: [] } : {}),
    },
  })),
  {
    operationId: 'mremap',
    status: 422,
    errno: 'EINVAL',
    body: { addr: '0x7f0000000800', old_length: '0x1000', new_length: '0x1000', new_addr: '0x610000000000' },
  },
  { operationId: 'invalidate', status: 422, errno: 'EINVAL', body: { start: '0x800', end: B, event: 'UNMAP' } },
  {
    operationId: 'register_mmu_notifier',
    status: 422,
    errno: 'EOVERFLOW',
    body: { kind: 'interval', start: A, length: '0x0' },
  },
  {
    operationId: 'register_mmu_notifier',
    status: 422,
    errno: 'EINTR',
    body: { kind: 'plain', callbacks: {}, interrupted: true },
  },
  { operationId: 'register_mmu_notifier', status: 409, errno: 'EEXIST', before: [plain('n1')] },
  { operationId: 'access', status: 422, errno: 'EINVAL', body: { addr: A, write: true, length: '0x4' } },
];

export async function memoryStatuses(t: Test): Promise<void> {
  await t.test('2xx: every success, with the values of its example', successful);
  await t.test('202: what needs mmap_lock while it is held waits, and goes on when it is released', waiting);
  await t.test('202: what is asked to stop stops, and can be resumed', stops);
  await t.test('202: other locks, sequences, callbacks of clients', waitsOfOthers);
  await t.test('steps: from phase to phase, unknown phases, finished operations', steps);
  await t.test('409: a host in which MAX_PARKED_OPERATIONS wait', busy);
  await t.test('409, 422: one refusal of the emulated kernel for each', (t) => refusals(t, CASES));
}
