// Requests against the service: group commit, reads, idempotency keys, parked operations, hosts as a whole, the stop.

import t from 'tap';
import { MAX_PFN_RUNS } from '../../src/kernel/limits.ts';
import { encode } from '../../src/service/codec.ts';
import { Committer } from '../../src/service/committer.ts';
import { DEFAULT_HOST_OPTIONS } from '../../src/service/host-options.ts';
import {
  JOURNAL_READ_ROWS,
  MAX_HOSTS,
  MAX_JOURNAL_PAGE_BYTES,
  MAX_LONG_POLL_MS,
  MAX_LONG_POLLS_PER_DEVICE,
  MAX_UNCOMMITTED_COMMANDS,
} from '../../src/service/limits.ts';
import type { Service } from '../../src/service/service.ts';
import { MemoryStore } from '../../src/store/memory-store.ts';
import {
  ack,
  FaultyStore,
  ManualClock,
  map,
  notifier,
  pin,
  settle,
  startService,
  stateOf,
  submit,
  unmap,
  unpin,
} from './bench.ts';

interface Bench {
  service: Service;
  store: FaultyStore;
  memory: MemoryStore;
  clock: ManualClock;
}

async function bench(t: { teardown(end: () => Promise<void>): unknown }): Promise<Bench> {
  const memory = new MemoryStore();
  await memory.open();
  const store = new FaultyStore(memory);
  const clock = new ManualClock();
  const service = await startService(store, { clock });
  t.teardown(() => service.stop());
  return { service, store, memory, clock };
}

const commits = ({ store }: Bench): number => store.calls.filter((call) => call === 'commit').length;
const signal = (): AbortSignal => new AbortController().signal;
const put = (task: string): Parameters<typeof submit>[1] => ({
  op: 'put_task',
  task,
  rlimit_memlock: 'unlimited',
  cap_ipc_lock: false,
  thread_of: null,
});
const opsOf = async (service: Service, host = 'default'): Promise<string[]> =>
  (await service.journal(host, 0, 1000)).items.map(({ op }) => op);

t.test('a new database gets the host "default" and no other', async (t) => {
  const { service, memory } = await bench(t);
  const [view, ...others] = await service.hosts();
  t.strictSame(others, []);
  t.match(view, { id: 'default', template: 'default', seq: 0, state: 'alive', quarantined: null });
  t.match(await memory.hosts(), [{ id: 'default' }]);
});

t.test(
  'commands that arrive while a commit is written share the next one, in the order of their execution',
  async (t) => {
    const b = await bench(t);
    const before = commits(b);
    const open = b.store.hold('commit');
    const first = submit(b.service, put('t0'));
    await settle();
    const others = Array.from({ length: 20 }, (_, i) => submit(b.service, put(`t${i + 1}`)));
    t.equal(await stateOf(Promise.race([first, ...others])), 'pending', 'nothing is answered before its commit');
    open();
    const seqs = (await Promise.all([first, ...others])).map(({ seq }) => seq);
    t.strictSame(
      seqs,
      Array.from({ length: 21 }, (_, i) => i + 1),
    );
    t.equal(commits(b) - before, 2);
    t.match(
      (await b.service.journal('default', 0, 100)).items.map(({ command }) => (command as { task: string }).task),
      Array.from({ length: 21 }, (_, i) => `t${i}`),
    );
  },
);

t.test('a read waits for the commit of what it can have seen, a refusal too', async (t) => {
  const { service, store } = await bench(t);
  const early = await service.read('default', (host) => host.seq);
  t.strictSame(early, { seq: 0, value: 0 });
  const open = store.hold('commit');
  const written = submit(service, put('t0'));
  await settle();
  const read = service.read('default', (host) => host.mm.tasks.has('t0'));
  const refused = service.read('default', (host) => {
    throw new RangeError(`${host.seq}`);
  });
  const view = service.host('default');
  t.equal(await stateOf(read), 'pending');
  t.equal(await stateOf(refused), 'pending');
  t.equal(await stateOf(view), 'pending');
  open();
  t.strictSame(await read, { seq: 1, value: true });
  await t.rejects(refused, { name: 'RangeError', message: '1' });
  t.match(await view, { seq: 1, counters: { tasks: 2 } });
  await written;
});

t.test('a refusal of the kernel is journaled and answered like any other outcome', async (t) => {
  const { service } = await bench(t);
  const refused = await submit(service, map(1n));
  t.match(refused, { seq: 1, outcome: { ret: -22, refusal: { errno: 'EINVAL' } } });
  const missing = await submit(service, { op: 'open_device', device: 'nobody' });
  t.match(missing, { seq: 2, outcome: { refusal: { errno: 'NOT_FOUND' } } });
  t.strictSame(await opsOf(service), ['map_dma', 'open_device']);
});

t.test('two requests with one key at once: one runs, both get its reply', async (t) => {
  const b = await bench(t);
  await submit(b.service, notifier());
  await submit(b.service, map(0n));
  const answers = await Promise.all(
    Array.from({ length: 5 }, (_, i) => submit(b.service, pin(1), { key: 'k', request_id: `try-${i}` })),
  );
  t.strictSame(
    answers.map(({ replayed }) => replayed),
    [false, true, true, true, true],
  );
  for (const answer of answers) t.match(answer, { seq: 3, request_id: 'try-0', outcome: { ret: 1 } });
  const later = await submit(b.service, pin(1), { key: 'k', request_id: 'try-9' });
  t.match(later, { seq: 3, request_id: 'try-0', replayed: true, outcome: answers[0]?.outcome });
  t.equal((await b.service.read('default', ({ vfio }) => vfio.pfns.count)).value, 1);
  t.strictSame(await opsOf(b.service), ['register_notifier', 'map_dma', 'pin_pages']);
});

t.test('the same key with another body is a mismatch, while the first runs and after it', async (t) => {
  const { service, store } = await bench(t);
  const open = store.hold('commit');
  const first = submit(service, put('t0'), { key: 'k', body: 1 });
  const second = submit(service, put('t1'), { key: 'k', body: 2 });
  await t.rejects(second, { name: 'IdempotencyMismatch', key: 'k' });
  t.equal(await stateOf(first), 'pending');
  open();
  await first;
  await t.rejects(submit(service, put('t1'), { key: 'k', body: 2 }), { name: 'IdempotencyMismatch' });
  t.strictSame(await opsOf(service), ['put_task']);
});

t.test('a request that has no right to a key does not keep the one that has from its reply', async (t) => {
  const { service, store } = await bench(t);
  await submit(service, put('t0'), { key: 'k', body: 1 });
  const open = store.hold('idempotency');
  const wrong = submit(service, put('t1'), { key: 'k', body: 2 });
  wrong.catch(() => undefined);
  const right = submit(service, put('t0'), { key: 'k', body: 1 });
  const alsoWrong = submit(service, put('t1'), { key: 'k', body: 3 });
  open();
  await t.rejects(wrong, { name: 'IdempotencyMismatch' });
  t.match(await right, { seq: 1, replayed: true });
  await t.rejects(alsoWrong, { name: 'IdempotencyMismatch' });
});

t.test(
  'refusals of the kernel and of unknown objects are kept under a key; a lookup that failed keeps nothing',
  async (t) => {
    const { service, store } = await bench(t);
    await submit(service, map(1n), { key: 'refused' });
    t.match(await submit(service, map(1n), { key: 'refused' }), { seq: 1, replayed: true, outcome: { ret: -22 } });
    store.failAt = store.calls.length + 1;
    await t.rejects(submit(service, put('t0'), { key: 'k' }), { name: 'HostUnavailable', reason: 'recovering' });
    t.match(await submit(service, put('t0'), { key: 'k' }), { seq: 2, replayed: false });
  },
);

t.test('an unmap with pins parks: its client waits, others go on, the end is kept under its key', async (t) => {
  const { service, memory } = await bench(t);
  for (const command of [notifier(), map(0n), pin(1, 2, 3)]) await submit(service, command);
  const waiting = submit(service, unmap(0n), { key: 'k', request_id: 'first' });
  t.equal(await stateOf(waiting), 'pending');
  const retry = submit(service, unmap(0n), { key: 'k' });
  t.equal(await stateOf(retry), 'pending');
  await submit(service, put('meanwhile'));
  const [notification] = await service.notifications('default', 'mdev0', 0, signal());
  t.match(notification, { id: 'notification-1', device: 'mdev0', iova: 0n, size: 65536n, attempt: 1, seq: 4 });
  await submit(service, unpin(1, 2, 3));
  t.match(await submit(service, ack('notification-1')), { outcome: { ret: 0, finished: ['unmap_dma-4'] } });
  const done = { seq: 4, request_id: 'first', operation: null, outcome: { ret: 0, fields: { size: 65536n } } };
  t.match(await waiting, { ...done, replayed: false });
  t.match(await retry, { ...done, replayed: true });
  t.match(await submit(service, unmap(0n), { key: 'k' }), { ...done, replayed: true });
  const [row] = await memory.hosts();
  t.strictSame(await memory.unansweredIdempotency('default', row?.generation ?? 0), []);
  t.match(await submit(service, ack('notification-1')), { outcome: { refusal: { errno: 'EBUSY' } } });
});

t.test('the end of an operation is shown to a retry after a restart no earlier than its commit', async (t) => {
  const { service: first, store } = await bench(t);
  for (const command of [notifier(), map(0n), pin(1)]) await submit(first, command);
  const parked = submit(first, unmap(0n), { key: 'k' });
  t.equal(await stateOf(parked), 'pending');
  const second = await startService(store);
  t.teardown(() => second.stop());
  await submit(second, unpin(1));
  const open = store.hold('commit');
  const acked = submit(second, ack('notification-1'));
  await settle();
  const retry = submit(second, unmap(0n), { key: 'k' });
  t.equal(await stateOf(retry), 'pending');
  open();
  t.match(await acked, { outcome: { finished: ['unmap_dma-4'] } });
  t.match(await retry, { seq: 4, replayed: true, outcome: { fields: { size: 65536n } } });
  parked.catch(() => undefined);
});

t.test('respond-async answers when the operation is parked, and that is the reply that the key keeps', async (t) => {
  const { service } = await bench(t);
  for (const command of [notifier(), map(0n), pin(1)]) await submit(service, command);
  const early = await submit(service, unmap(0n), { key: 'k', respond_async: true });
  t.match(early, { seq: 4, operation: 'unmap_dma-4', outcome: { parked: 'unmap_dma-4' } });
  await submit(service, unpin(1));
  await submit(service, ack('notification-1'));
  const retry = await submit(service, unmap(0n), { key: 'k', respond_async: true });
  t.match(retry, { ...early, replayed: true });
  t.match(await submit(service, put('t0'), { respond_async: true }), { operation: null });
});

t.test('an operation that is finished by a command of the same commit ends its client all the same', async (t) => {
  const { service, store } = await bench(t);
  for (const command of [notifier(), map(0n), pin(1)]) await submit(service, command);
  const open = store.hold('commit');
  const blocker = submit(service, put('t0'));
  await settle();
  const waiting = submit(service, unmap(0n), { key: 'k' });
  await settle();
  const freed = submit(service, unpin(1));
  const acked = submit(service, ack('notification-1'));
  open();
  await Promise.all([blocker, freed, acked]);
  t.match(await waiting, { seq: 5, outcome: { fields: { size: 65536n } } });
  t.match(await submit(service, unmap(0n), { key: 'k' }), { seq: 5, replayed: true });
});

t.test(
  'when a commit fails its hosts are loaded again, other hosts do not notice, nothing acknowledged is lost',
  async (t) => {
    const { service, store, clock } = await bench(t);
    await service.createHost('other', { ...DEFAULT_HOST_OPTIONS });
    await submit(service, put('kept'));
    const open = store.hold('commit');
    store.failAt = store.calls.length + 1;
    const failing = submit(service, put('lost'));
    await settle();
    const behind = submit(service, put('behind'));
    const reading = service.read('default', () => null);
    const other = submit(service, put('x'), {}, 'other');
    open();
    const unlucky: Promise<unknown>[] = [failing, behind, reading];
    for (const request of unlucky)
      await t.rejects(request, { name: 'HostUnavailable', reason: 'recovering', retry_after_s: 1 });
    t.match(await other, { seq: 1 });
    await settle();
    t.match((await service.read('default', ({ mm, seq }) => [seq, ...mm.tasks.keys()])).value, [1, 'qemu', 'kept']);
    t.match(await submit(service, put('lost')), { seq: 2 });
    t.equal(service.readiness().quarantined.length, 0);
    clock.advance(1000);
  },
);

t.test('a commit whose answer got lost has happened: the retried key gets its reply, nothing runs twice', async (t) => {
  const { service, store } = await bench(t);
  store.fate = 'after';
  store.failAt = store.calls.length + 2;
  await t.rejects(submit(service, put('t0'), { key: 'k', request_id: 'first' }), { name: 'HostUnavailable' });
  await settle();
  t.match(await submit(service, put('t0'), { key: 'k' }), { seq: 1, replayed: true, request_id: 'first' });
  t.strictSame(await opsOf(service), ['put_task']);
});

t.test('while the store keeps failing the host is 503 and tried again, then it is back', async (t) => {
  const { service, store, clock } = await bench(t);
  store.sticky = true;
  store.failAt = store.calls.length + 1;
  await t.rejects(submit(service, put('t0')), { name: 'HostUnavailable', reason: 'recovering' });
  for (let i = 0; i < 5; i++) {
    clock.advance(10_000);
    await settle();
    await t.rejects(submit(service, put('t0')), { name: 'HostUnavailable', reason: 'recovering' });
    await t.rejects(service.host('default'), { name: 'HostUnavailable', reason: 'recovering' });
    t.match(await service.hosts(), [{ id: 'default', state: 'recovering', counters: null }]);
  }
  store.failAt = 0;
  clock.advance(10_000);
  await settle();
  t.match(await submit(service, put('t0')), { seq: 1 });
});

t.test('too many uncommitted commands are refused before they are executed', async (t) => {
  const { service, store } = await bench(t);
  const open = store.hold('commit');
  const admitted = Array.from({ length: MAX_UNCOMMITTED_COMMANDS }, () => submit(service, put('t0')));
  await t.rejects(submit(service, put('one-more')), { name: 'TooMany', limit: MAX_UNCOMMITTED_COMMANDS });
  open();
  await Promise.all(admitted);
  t.match(await submit(service, put('one-more')), { seq: MAX_UNCOMMITTED_COMMANDS + 1 });
});

t.test('PUT of a host: made once, found again with the same options, refused with others', async (t) => {
  const { service } = await bench(t);
  const options = { ...DEFAULT_HOST_OPTIONS, dma_entry_limit: 7 };
  const [first, second] = await Promise.all([service.createHost('h', options), service.createHost('h', options)]);
  t.match(first, { created: true, view: { id: 'h', dma_entry_limit: 7, template: 'empty' } });
  t.match(second, { created: false, view: { id: 'h' } });
  await t.rejects(service.createHost('h', { ...options, ttl_s: 1 }), { name: 'HostExists' });
  await submit(service, { op: 'patch_host', dma_entry_limit: 9 }, {}, 'h');
  t.match(await service.createHost('h', options), { created: false, view: { dma_entry_limit: 9 } });
  t.strictSame(
    (await service.hosts()).map(({ id }) => id),
    ['default', 'h'],
  );
  await t.rejects(service.host('nobody'), { name: 'NoSuchHost', host: 'nobody' });
  await t.rejects(submit(service, put('t'), {}, 'nobody'), { name: 'NoSuchHost' });
});

t.test('hosts are isolated from each other', async (t) => {
  const { service } = await bench(t);
  await service.createHost('h', { ...DEFAULT_HOST_OPTIONS });
  await submit(service, put('only-here'), { key: 'k', body: 1 }, 'h');
  t.match(await submit(service, put('another'), { key: 'k', body: 2 }), { seq: 1, replayed: false });
  t.equal((await service.read('default', ({ mm }) => mm.tasks.has('only-here'))).value, false);
});

t.test('the list of hosts does without one that ends while it is read', async (t) => {
  const { service, store } = await bench(t);
  await service.createHost('other', DEFAULT_HOST_OPTIONS);
  const release = store.hold('commit');
  const running = submit(service, put('t0'));
  await settle();
  const listing = service.hosts();
  await settle();
  const deleting = service.deleteHost('default');
  await settle();
  release();
  await Promise.allSettled([running, deleting]);
  t.strictSame(
    (await listing).map(({ id }) => id),
    ['other'],
  );
});

t.test('the list of hosts shows one that is loaded again after a failed commit', async (t) => {
  const { service, store } = await bench(t);
  await service.createHost('other', DEFAULT_HOST_OPTIONS);
  const release = store.hold('commit');
  const running = submit(service, put('t0'));
  await settle();
  const listing = service.hosts();
  await settle();
  store.failAt = store.calls.length;
  release();
  await t.rejects(running, { name: 'HostUnavailable' });
  t.match(await listing, [
    { id: 'default', state: 'recovering' },
    { id: 'other', state: 'alive' },
  ]);
});

t.test('DELETE gives the leak report, ends who waits, and the id can be used again', async (t) => {
  const { service, memory } = await bench(t);
  for (const command of [notifier(), map(0n), pin(1, 2)]) await submit(service, command, { key: `k-${command.op}` });
  const [life] = await memory.hosts();
  const waiting = submit(service, unmap(0n));
  const polling = service.notifications('default', 'nobody', 0, signal());
  await t.rejects(polling, { name: 'NoSuchObject' });
  t.equal(await stateOf(waiting), 'pending');
  const deleting = service.deleteHost('default');
  const late = submit(service, put('t0'));
  t.match(await deleting, { references: 2, items: [{ device: 'mdev0', iova: 4096n, npage: 2, references: 1 }] });
  await t.rejects(waiting, { name: 'NoSuchHost' });
  await t.rejects(late, { name: 'NoSuchHost' });
  t.strictSame(await service.hosts(), []);
  t.strictSame(await memory.hosts(), []);
  await service.createHost('default', { ...DEFAULT_HOST_OPTIONS });
  t.match(await submit(service, put('t0'), { key: 'k-map_dma' }), { seq: 1, replayed: false });
  const [next] = await memory.hosts();
  t.ok((next?.generation ?? 0) > (life?.generation ?? 0), 'rows of the two lives can never mix');
  t.strictSame(await opsOf(service), ['put_task']);
});

t.test('a host that ends before its projection or checkpoint is written ends nothing else', async (t) => {
  const committer = new Committer(new MemoryStore(), () => {});
  const ended = committer.between(() => {
    throw new Error('the host ended');
  });
  await t.rejects(ended, { message: 'the host ended' });
  t.equal(await committer.between(async () => 'written'), 'written');
  await committer.idle();
});

t.test('reset makes the host anew: journal, keys and PATCHes are gone', async (t) => {
  const { service } = await bench(t);
  await submit(service, { op: 'patch_host', dma_entry_limit: 3 });
  for (const command of [notifier(), map(0n), pin(1)]) await submit(service, command, { key: command.op });
  const waiting = submit(service, unmap(0n));
  t.equal(await stateOf(waiting), 'pending');
  t.match(await service.resetHost('default'), { seq: 0, dma_entry_limit: 65535, counters: { mappings: 0, tasks: 1 } });
  await t.rejects(waiting, { name: 'HostUnavailable' });
  t.match(await submit(service, map(0n), { key: 'map_dma', body: 99 }), {
    seq: 1,
    replayed: false,
    outcome: { ret: 0 },
  });
  t.strictSame(await opsOf(service), ['map_dma']);
});

t.test('what was executed before a delete is committed before it, what comes after it is not mixed in', async (t) => {
  const { service, store, memory } = await bench(t);
  const batches: string[][] = [];
  const commit = memory.commit.bind(memory);
  memory.commit = (c) => {
    batches.push([
      ...c.deleteHosts.map((id) => `-${id}`),
      ...c.upsertHosts.map(({ id }) => `+${id}`),
      ...c.journal.map(({ op }) => op),
    ]);
    return commit(c);
  };
  const open = store.hold('commit');
  const blocker = submit(service, put('t0'));
  await settle();
  const last = submit(service, put('t1'));
  const resetting = service.resetHost('default');
  open();
  await Promise.all([blocker, last, resetting]);
  await service.deleteHost('default');
  t.strictSame(batches, [['put_task'], ['put_task'], ['-default', '+default'], ['-default']]);
});

t.test('a delete whose commit failed before its work leaves the host; after its work it is gone', async (t) => {
  const { service, store } = await bench(t);
  await submit(service, put('t0'));
  store.failAt = store.calls.length + 1;
  await t.rejects(service.deleteHost('default'), { name: 'HostUnavailable' });
  await settle();
  t.match(await service.host('default'), { seq: 1, counters: { tasks: 2 } });
  store.fate = 'after';
  store.failAt = store.calls.length + 1;
  await t.rejects(service.deleteHost('default'), { name: 'HostUnavailable' });
  await settle();
  await t.rejects(service.host('default'), { name: 'NoSuchHost' });
  store.failAt = store.calls.length + 1;
  await t.rejects(service.createHost('h', { ...DEFAULT_HOST_OPTIONS }), { name: 'HostUnavailable' });
  await settle();
  t.match(await service.createHost('h', { ...DEFAULT_HOST_OPTIONS }), { created: false });
});

t.test(
  'an untouched host is deleted after ttl_s; a list, or the sweep itself, is no touch; a waiting client is',
  async (t) => {
    const { service, clock } = await bench(t);
    const later = async (ms: number): Promise<string[]> => {
      clock.advance(ms);
      await settle();
      return (await service.hosts()).map(({ id }) => id as string);
    };
    await service.createHost('h', { ...DEFAULT_HOST_OPTIONS, ttl_s: 10 });
    t.strictSame(await later(9_000), ['default', 'h']);
    await service.host('h');
    t.strictSame(await later(9_000), ['default', 'h']);
    await submit(service, { op: 'patch_host', ttl_s: 20 }, {}, 'h');
    t.strictSame(await later(19_000), ['default', 'h']);
    await submit(service, { op: 'put_container', container: 'c' }, {}, 'h');
    await submit(service, { op: 'put_device_in_container', device: 'd', container: 'c', notifier: null }, {}, 'h');
    const gone = new AbortController();
    const polling = service.notifications('h', 'd', 60_000, gone.signal);
    t.strictSame(await later(40_000), ['default', 'h']);
    gone.abort();
    t.strictSame(await polling, []);
    t.strictSame(await later(1_000), ['default']);
  },
);

t.test('there is a most of hosts', async (t) => {
  const { service } = await bench(t);
  const made = Array.from({ length: MAX_HOSTS }, (_, i) => service.createHost(`h${i}`, { ...DEFAULT_HOST_OPTIONS }));
  const results = await Promise.allSettled(made);
  t.equal(results.filter(({ status }) => status === 'fulfilled').length, MAX_HOSTS - 1);
  t.match(results.at(-1), { status: 'rejected', reason: { name: 'TooMany', limit: MAX_HOSTS } });
});

t.test('a command that throws what is no answer is not journaled; the host is loaded again without it', async (t) => {
  const { service } = await bench(t);
  await submit(service, put('t0'));
  const broken = { op: 'mmap', task: 'qemu' } as unknown as Parameters<typeof submit>[1];
  await t.rejects(submit(service, broken), { name: 'TypeError' });
  await settle();
  t.match(await submit(service, put('t1')), { seq: 2 });
  t.strictSame(await opsOf(service), ['put_task', 'put_task']);
});

t.test('the journal is paged, says what was dropped, and shows commands with their digests', async (t) => {
  const memory = new MemoryStore();
  await memory.open();
  const service = await startService(memory, { journalKeep: 4 });
  t.teardown(() => service.stop());
  for (let i = 1; i <= 10; i++) await submit(service, put(`t${i}`), { request_id: `r${i}` });
  const page = await service.journal('default', 3, 2);
  t.match(page, { truncated: false, items: [{ n: 4, seq: 4, request_id: 'r4', op: 'put_task' }, { n: 5 }] });
  t.match(page.items[0]?.digest, /^[0-9a-f]{32}$/);
  t.match(page.items[0]?.command, { op: 'put_task', task: 't4', rlimit_memlock: 'unlimited' });
  await service.checkpoint('default');
  const kept = await service.journal('default', 0, 100);
  t.strictSame(
    kept.items.map(({ n }) => n),
    [7, 8, 9, 10],
  );
  t.equal(kept.truncated, true);
  t.equal((await service.journal('default', 6, 100)).truncated, false);
  t.match(await service.journal('default', 10, 100), { items: [], truncated: false });
});

t.test('a page of the journal ends early where its commands are large, and the next one goes on there', async (t) => {
  const { service } = await bench(t);
  await submit(service, put('t1'));
  const pfns: [number, number][] = Array.from({ length: MAX_PFN_RUNS }, (_, i) => [i * 513, 1]);
  const backing = { kind: 'pages', pfns } as const;
  const large = { op: 'mmap', task: 't1', addr: 0n, length: 1n, prot: 0, backing, noreplace: false } as const;
  for (let i = 0; i < 20; i++) await submit(service, large);
  const pages: number[][] = [];
  for (let since = 0; ; ) {
    const { items, truncated } = await service.journal('default', since, 1000);
    t.equal(truncated, false);
    const bytes = items.reduce((sum, { command }) => sum + encode(command).byteLength, 0);
    t.ok(bytes < MAX_JOURNAL_PAGE_BYTES + encode(large).byteLength, `${items.length} entries with ${bytes} bytes`);
    pages.push(items.map(({ n }) => n));
    if (items.length === 0) break;
    since = items.at(-1)?.n ?? 0;
  }
  t.ok(pages.length > 2);
  t.strictSame(
    pages.flat(),
    Array.from({ length: 21 }, (_, i) => i + 1),
  );
});

t.test('a page of the journal never passes over what is trimmed while it is read', async (t) => {
  const b = await bench(t);
  for (let i = 1; i <= 3 * JOURNAL_READ_ROWS; i++) await submit(b.service, put(`t${i}`));
  const read = b.store.journal.bind(b.store);
  b.store.journal = async (host, generation, since, limit) => {
    if (since === JOURNAL_READ_ROWS) await b.memory.trim(host, generation, 2 * JOURNAL_READ_ROWS, 10, 10_000);
    return read(host, generation, since, limit);
  };
  const { items } = await b.service.journal('default', 0, 1000);
  t.equal(items.length, JOURNAL_READ_ROWS);
  const next = await b.service.journal('default', JOURNAL_READ_ROWS, 1000);
  t.match(next, { truncated: true, items: [{ n: 2 * JOURNAL_READ_ROWS + 1 }] });
  t.equal(next.items.length, JOURNAL_READ_ROWS);
});

t.test('a stop lets running commits end, refuses what is new, leaves parked operations parked', async (t) => {
  const b = await bench(t);
  const { service, store, memory } = b;
  for (const command of [notifier(), map(0n), pin(1)]) await submit(service, command);
  const parked = submit(service, unmap(0n), { key: 'k' });
  t.equal(await stateOf(parked), 'pending');
  const open = store.hold('commit');
  const running = submit(service, put('t0'));
  await settle();
  const stopping = service.stop();
  t.equal(service.stop(), stopping, 'a second stop is the first one');
  t.match(service.readiness(), { ready: false, draining: true });
  await t.rejects(submit(service, put('t1')), { name: 'HostUnavailable', reason: 'draining' });
  await t.rejects(
    service.read('default', () => null),
    { name: 'HostUnavailable', reason: 'draining' },
  );
  await t.rejects(service.hosts(), { name: 'HostUnavailable', reason: 'draining' });
  await t.rejects(parked, { name: 'HostUnavailable', reason: 'draining' });
  t.equal(await stateOf(running), 'pending');
  open();
  t.match(await running, { seq: 5 });
  await stopping;
  t.equal(b.clock.pending, 0, 'no timer is left');
  await memory.open();
  const [row] = await memory.hosts();
  t.match(await memory.manifest('default', row?.generation ?? 0), { seq: 5 });
  t.equal(memory.projected('default')?.seq, 5);
});

t.test('a long poll ends after its time also where the clock is set back meanwhile', async (t) => {
  const memory = new MemoryStore();
  await memory.open();
  const clock = new ManualClock();
  const set = { back: 0 };
  const wall = { now: () => clock.now() - set.back, after: clock.after.bind(clock) };
  const service = await startService(memory, { clock: wall });
  t.teardown(() => service.stop());
  const polling = service.notifications('default', 'mdev0', 5_000, signal());
  t.equal(await stateOf(polling), 'pending');
  set.back = 3_600_000;
  clock.advance(5_000);
  t.equal(await stateOf(polling), 'resolved');
  t.strictSame(await polling, []);
});

t.test(
  'long polls: woken by the commit, ended by time, by the client and by the stop, bounded per device',
  async (t) => {
    const { service, store, clock } = await bench(t);
    for (const command of [notifier(), map(0n), pin(1)]) await submit(service, command);
    const woken = service.notifications('default', 'mdev0', 5_000, signal());
    const timed = service.notifications('default', 'mdev0', 10 * MAX_LONG_POLL_MS, signal());
    const client = new AbortController();
    const left = service.notifications('default', 'mdev0', 5_000, client.signal);
    client.abort();
    t.strictSame(await left, []);
    const open = store.hold('commit');
    const waiting = submit(service, unmap(0n));
    t.equal(await stateOf(woken), 'pending', 'nothing is delivered before its commit');
    t.equal(await stateOf(service.notifications('default', 'mdev0', 0, signal())), 'pending');
    open();
    t.match(await woken, [{ id: 'notification-1' }]);
    t.match(await timed, [{ id: 'notification-1' }]);
    await submit(service, unpin(1));
    await submit(service, ack('notification-1'));
    await waiting;
    const bounded = service.notifications('default', 'mdev0', 10 * MAX_LONG_POLL_MS, signal());
    t.equal(await stateOf(bounded), 'pending');
    clock.advance(MAX_LONG_POLL_MS);
    t.strictSame(await bounded, []);
    const many = Array.from({ length: MAX_LONG_POLLS_PER_DEVICE }, () =>
      service.notifications('default', 'mdev0', 5_000, signal()),
    );
    await t.rejects(service.notifications('default', 'mdev0', 5_000, signal()), { name: 'TooMany' });
    const stopped = service.stop();
    for (const poll of many) await t.rejects(poll, { name: 'HostUnavailable', reason: 'draining' });
    await stopped;
  },
);
