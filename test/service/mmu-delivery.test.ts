// Callbacks of mmu notifiers on their way to clients and back: polls, webhooks, timeouts, restarts, stops in the middle.

import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Webhook } from 'standardwebhooks';
import t from 'tap';
import type { Command, Delivery } from '../../src/kernel/command.ts';
import type { CallbackName } from '../../src/kernel/mm/mmu-notifier/subscriptions.ts';
import type { Phase } from '../../src/kernel/phase.ts';
import { systemClock } from '../../src/service/clock.ts';
import type { Service } from '../../src/service/service.ts';
import { MemoryStore } from '../../src/store/memory-store.ts';
import { ManualClock, settle, startService, stateOf, submit } from './bench.ts';

const VADDR = 0x7f0000000000n;
const SECRET = `whsec_${Buffer.from('a shared secret of 32 characters').toString('base64')}`;
type Teardown = { teardown(end: () => unknown): unknown };
type Handler = Exclude<Delivery, { kind: 'builtin' }>;

const register = (
  handler: Handler = { kind: 'poll' },
  callbacks: CallbackName[] = ['invalidate_range_start'],
): Command => ({ op: 'register_mmu_notifier', mm: 'mm-1', id: 'n1', callbacks, handler });
const munmap = (stop_at?: Phase): Command => ({
  op: 'munmap',
  task: 'qemu',
  addr: VADDR,
  length: 0x2000n,
  ...(stop_at === undefined ? {} : { stop_at }),
});
const ack = (n: number, ret = 0): Command => ({
  op: 'ack_mmu_notification',
  notification: `mmu-notification-${n}`,
  ret,
  reason: 'ack',
  detail: null,
});
const never = (): AbortSignal => new AbortController().signal;
const pollOf = (service: Service, wait_ms = 0) => service.mmuNotifications('default', 'mm-1', wait_ms, never());
const stateOfOperation = async (service: Service, id: string) =>
  (await service.read('default', ({ operations }) => ({ ...operations.get(id) }))).value;
const opsOf = async (service: Service): Promise<Command[]> =>
  (await service.journal('default', 0, 1000)).items.map(({ command }) => command);

async function bench(
  t: Teardown,
  handler?: Handler,
  clock = new ManualClock(),
): Promise<{ service: Service; store: MemoryStore; clock: ManualClock }> {
  const store = new MemoryStore();
  await store.open();
  const service = await startService(store, { clock });
  t.teardown(() => service.stop());
  await submit(service, register(handler));
  return { service, store, clock };
}

t.test('poll: the munmap waits in the callback, its client too, others go on; the answer ends both', async (t) => {
  const { service } = await bench(t);
  const polling = pollOf(service, 10_000);
  t.equal(await stateOf(polling), 'pending');
  const waiting = submit(service, munmap(), { key: 'k', request_id: 'first' });
  const [notification, ...others] = await polling;
  t.strictSame(others, []);
  t.strictSame(notification, {
    id: 'mmu-notification-1',
    mm: 'mm-1',
    notifier: 'n1',
    callback: 'invalidate_range_start',
    event: 'UNMAP',
    start: VADDR,
    end: VADDR + 0x2000n,
    blockable: true,
    owner: null,
    cur_seq: null,
    pfn: null,
    seq: 2,
  });
  t.equal(await stateOf(waiting), 'pending');
  await submit(service, { op: 'adjust_locked_vm', task: 'qemu', delta: 1 });
  t.match(await submit(service, ack(1)), { outcome: { ret: 0, finished: ['munmap-2'] } });
  t.match(await waiting, { seq: 2, operation: null, outcome: { ret: 0 } });
  t.match(await submit(service, munmap(), { key: 'k' }), { seq: 2, replayed: true, request_id: 'first' });
  t.strictSame(await pollOf(service), []);
  t.match(await submit(service, ack(1)), { outcome: { refusal: { errno: 'EBUSY' } } }, 'a late answer');
  t.match(await submit(service, ack(9)), { outcome: { refusal: { errno: 'NOT_FOUND' } } });
});

t.test('a client that waited in a callback is answered when its operation is stopped by the answer', async (t) => {
  const { service, store } = await bench(t);
  const waiting = submit(service, munmap('before_end'), { key: 'k', request_id: 'first' });
  t.equal(await stateOf(waiting), 'pending');
  const retry = submit(service, munmap('before_end'), { key: 'k' });
  t.match(await submit(service, ack(1)), { outcome: { detached: ['munmap-2'] } });
  const stopped = { seq: 2, operation: 'munmap-2', outcome: { ret: 0, parked: 'munmap-2' }, request_id: 'first' };
  t.match(await waiting, { ...stopped, replayed: false });
  t.match(await retry, { ...stopped, replayed: true });
  const [row] = await store.hosts();
  t.strictSame(await store.unansweredIdempotency('default', row?.generation ?? 0), []);
  const second = await startService(store);
  t.teardown(() => second.stop());
  t.match(await submit(second, munmap('before_end'), { key: 'k' }), { ...stopped, replayed: true });
  await submit(second, { op: 'resume_operation', operation: 'munmap-2' });
  t.match(await stateOfOperation(second, 'munmap-2'), { state: 'done', outcome: { ret: 0 } });
});

t.test('a step into a callback of a client does not wait for it', async (t) => {
  const { service } = await bench(t, undefined);
  await submit(service, munmap('before_start'));
  const stepped = await submit(service, { op: 'step_operation', operation: 'munmap-2' });
  t.match(stepped, { outcome: { fields: { state: 'blocked', blocked_on: 'notification:mmu-notification-1' } } });
  await submit(service, ack(1));
  t.match(await stateOfOperation(service, 'munmap-2'), { state: 'stopped', phase: 'after_start' });
});

t.test('when notifier_timeout_ms passes the kernel goes on, and a late answer is refused', async (t) => {
  const { service, clock } = await bench(t);
  const waiting = submit(service, munmap());
  await settle();
  clock.advance(9_999);
  t.equal(await stateOf(waiting), 'pending');
  clock.advance(1);
  t.match(await waiting, { outcome: { ret: 0 } });
  t.match((await opsOf(service)).at(-1), { op: 'notification_timeout', notification: 'mmu-notification-1' });
  t.match(await submit(service, ack(1)), { outcome: { refusal: { errno: 'EBUSY' } } });
  const { value } = await service.read('default', ({ dmesg }) => dmesg.since(0, 100).items.map(({ text }) => text));
  t.match(value.at(-1), /n1: invalidate_range_start was not answered in 10000 ms/);
});

t.test('an answer in time stops the timer; each callback has its own', async (t) => {
  const store = new MemoryStore();
  await store.open();
  const clock = new ManualClock();
  const service = await startService(store, { clock });
  t.teardown(() => service.stop());
  await submit(service, register({ kind: 'poll' }, ['invalidate_range_start', 'invalidate_range_end']));
  const waiting = submit(service, munmap());
  await settle();
  clock.advance(6_000);
  await submit(service, ack(1));
  await settle();
  clock.advance(6_000);
  t.match(await pollOf(service), [{ id: 'mmu-notification-2', callback: 'invalidate_range_end' }]);
  clock.advance(4_000);
  t.match(await waiting, { outcome: { ret: 0 } });
});

t.test('a restart in the middle of a callback delivers it again, with its full time', async (t) => {
  for (const checkpoint of [true, false]) {
    const { service: first, store, clock } = await bench(t);
    const waiting = submit(first, munmap(), { key: 'k' });
    waiting.catch(() => undefined);
    await settle();
    clock.advance(9_000);
    if (checkpoint) await first.checkpoint('default');
    const later = new ManualClock();
    const second = await startService(store, { clock: later });
    t.teardown(() => second.stop());
    t.match(await pollOf(second), [{ id: 'mmu-notification-1', notifier: 'n1' }]);
    const retry = submit(second, munmap(), { key: 'k' });
    later.advance(9_000);
    t.equal(await stateOf(retry), 'pending');
    await submit(second, ack(1));
    t.match(await retry, { seq: 2, replayed: true, outcome: { ret: 0 } }, checkpoint ? 'checkpoint' : 'journal');
  }
});

async function receiver(t: Teardown, answer: (body: string) => { status?: number; body: string }) {
  const received: { headers: Record<string, string>; body: string }[] = [];
  const server = createServer(async (request, response) => {
    let body = '';
    for await (const chunk of request) body += chunk;
    received.push({ headers: request.headers as Record<string, string>, body });
    const { status = 200, body: said } = answer(body);
    response.statusCode = status;
    response.end(said);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    server.closeAllConnections();
    return new Promise((resolve) => server.close(resolve));
  });
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`, received };
}

async function withWebhook(t: Teardown, url: string, callbacks?: CallbackName[]): Promise<Service> {
  const store = new MemoryStore();
  await store.open();
  const service = await startService(store, { clock: systemClock });
  t.teardown(() => service.stop());
  await submit(service, register({ kind: 'webhook', url, secret: SECRET }, callbacks));
  return service;
}

t.test('webhook: a signed POST of the callback; what it answers is what the callback returns', async (t) => {
  const hook = await receiver(t, () => ({ body: '{"ret": 0}' }));
  const service = await withWebhook(t, hook.url);
  t.match(await submit(service, munmap()), { outcome: { ret: 0 } });
  const [request, ...others] = hook.received;
  t.strictSame(others, []);
  const verified = new Webhook(SECRET).verify(request?.body ?? '', request?.headers ?? {});
  t.match(verified, {
    id: 'mmu-notification-1',
    mm: 'mm-1',
    notifier: 'n1',
    callback: 'invalidate_range_start',
    event: 'UNMAP',
    start: '0x7f0000000000',
    end: '0x7f0000002000',
    blockable: true,
    owner: null,
    cur_seq: null,
    seq: 2,
  });
  t.match((await opsOf(service)).at(-1), { op: 'ack_mmu_notification', ret: 0, reason: 'ack', detail: null });
});

for (const [what, body, ret] of [
  ['an errno by name', '{"ret": "EAGAIN"}', -11],
  ['a negative errno', '{"ret": -16}', -16],
  ['no body', '', 0],
] as const)
  t.test(`webhook: ${what} is ${ret}`, async (t) => {
    const hook = await receiver(t, () => ({ body }));
    const service = await withWebhook(t, hook.url);
    await submit(service, { op: 'oom_reap', task: 'qemu' });
    t.match(await opsOf(service), [{}, {}, { op: 'ack_mmu_notification', ret, reason: 'ack' }]);
  });

for (const [what, answer] of [
  ['a server error', { status: 500, body: '' }],
  ['a ret that is none', { body: '{"ret": "NOTIFY_OK"}' }],
] as const)
  t.test(`webhook: ${what} counts as a callback that did nothing, and dmesg says so`, async (t) => {
    const hook = await receiver(t, () => answer);
    const service = await withWebhook(t, hook.url);
    t.match(await submit(service, munmap()), { outcome: { ret: 0 } });
    t.match((await opsOf(service)).at(-1), { op: 'ack_mmu_notification', ret: 0, reason: 'webhook_failed' });
    const { value } = await service.read('default', ({ dmesg }) => dmesg.since(0, 100).items.map(({ text }) => text));
    t.match(value.at(-1), /mmu notification mmu-notification-1: the webhook answered/);
  });

t.test('the secret of a webhook is hidden in the journal', async (t) => {
  const { service } = await bench(t);
  await submit(service, {
    op: 'insert_interval_notifier',
    mm: 'mm-1',
    start: VADDR,
    length: 0x1000n,
    handler: { kind: 'webhook', url: 'http://127.0.0.1:1/', secret: SECRET },
  });
  const { items } = await service.journal('default', 0, 10);
  t.notMatch(
    JSON.stringify(items, (_, value) => (typeof value === 'bigint' ? `${value}` : value)),
    SECRET,
  );
  t.match(items.at(-1), { command: { handler: { kind: 'webhook', secret: '(hidden)' } } });
});

t.test('an mm that nobody knows has no notifications', async (t) => {
  const { service } = await bench(t);
  await t.rejects(service.mmuNotifications('default', 'mm-9', 0, never()), { name: 'NoSuchObject' });
});
