// Operations of the memory side that are stopped in the middle: their clients are answered, restarts change nothing.

import t from 'tap';
import type { Command } from '../../src/kernel/command.ts';
import type { Host } from '../../src/kernel/host.ts';
import { violations } from '../../src/kernel/invariants.ts';
import type { Phase } from '../../src/kernel/phase.ts';
import { sections } from '../../src/kernel/snapshot.ts';
import { digestOf, encode } from '../../src/service/codec.ts';
import type { Service } from '../../src/service/service.ts';
import { MemoryStore } from '../../src/store/memory-store.ts';
import { ManualClock, startService, submit } from './bench.ts';

const VADDR = 0x7f0000000000n;

async function bench(t: { teardown(end: () => Promise<void>): unknown }): Promise<{
  service: Service;
  store: MemoryStore;
}> {
  const store = new MemoryStore();
  await store.open();
  const service = await startService(store, { clock: new ManualClock() });
  t.teardown(() => service.stop());
  return { service, store };
}

const munmap = (stop_at?: Phase): Command => ({
  op: 'munmap',
  task: 'qemu',
  addr: VADDR,
  length: 0x2000n,
  ...(stop_at === undefined ? {} : { stop_at }),
});
const touch: Command = { op: 'access', task: 'qemu', addr: VADDR, write: true };
const step = (operation: string): Command => ({ op: 'step_operation', operation });
const resume = (operation: string, stop_at?: Phase): Command => ({
  op: 'resume_operation',
  operation,
  ...(stop_at === undefined ? {} : { stop_at }),
});

const operationOf = async (service: Service, id: string): Promise<{ state: string; phase: string } | undefined> => {
  const { value } = await service.read('default', ({ operations }) => ({ ...operations.get(id) }));
  return value as { state: string; phase: string };
};

t.test('an operation that stops answers its client at once, and that is the reply that the key keeps', async (t) => {
  const { service, store } = await bench(t);
  await submit(service, touch);
  const first = await submit(service, munmap('after_start'), { key: 'k', request_id: 'first' });
  t.match(first, {
    seq: 2,
    operation: 'munmap-2',
    outcome: { ret: 0, parked: 'munmap-2', detached: ['munmap-2'] },
  });
  t.match(await operationOf(service, 'munmap-2'), { state: 'stopped', phase: 'after_start' });
  const retry = await submit(service, munmap('after_start'), { key: 'k' });
  t.match(retry, { seq: 2, operation: 'munmap-2', replayed: true, request_id: 'first' });
  const done = await submit(service, resume('munmap-2'));
  t.match(done, { operation: null, outcome: { ret: 0, fields: { id: 'munmap-2', state: 'done' } } });
  t.match(await submit(service, munmap('after_start'), { key: 'k' }), { seq: 2, operation: 'munmap-2' });
  const [row] = await store.hosts();
  t.strictSame(await store.unansweredIdempotency('default', row?.generation ?? 0), []);
});

t.test('who waits for a lock is answered at once; the command that releases it ends the wait', async (t) => {
  const { service } = await bench(t);
  await submit(service, munmap('after_start'));
  const waits = await submit(service, { ...touch, addr: VADDR + 0x5000n } as Command);
  t.match(
    waits,
    { operation: null, outcome: { ret: 0, fields: { fault: 'NOPAGE' } } },
    'munmap has downgraded the lock',
  );
  const other = await submit(
    service,
    { op: 'munmap', task: 'qemu', addr: VADDR + 0x8000n, length: 0x1000n },
    { key: 'k' },
  );
  t.match(other, { operation: 'munmap-3', outcome: { parked: 'munmap-3', detached: ['munmap-3'] } });
  t.match(await operationOf(service, 'munmap-3'), { state: 'blocked', blocked_on: 'mmap_lock:mm-1' });
  t.match(await submit(service, resume('munmap-1')), { outcome: { finished: ['munmap-1', 'munmap-3'] } });
  t.match(await operationOf(service, 'munmap-3'), { state: 'done', outcome: { ret: 0 } });
  t.match(await submit(service, munmap(), { key: 'k', body: 0 }), { operation: 'munmap-3', replayed: true });
});

t.test('a step and a resume are refused where the operation is not stopped', async (t) => {
  const { service } = await bench(t);
  await submit(service, munmap('before_start'));
  await submit(service, step('munmap-1'));
  t.match(await operationOf(service, 'munmap-1'), { state: 'stopped', phase: 'after_start' });
  await submit(service, resume('munmap-1'));
  for (const command of [step('munmap-1'), resume('munmap-1')])
    t.match(await submit(service, command), { outcome: { refusal: { errno: 'EBUSY' } } });
  t.match(await submit(service, step('munmap-99')), { outcome: { refusal: { errno: 'NOT_FOUND' } } });
});

/** Everything that a host is, in one text; the order of its sections means nothing. */
const everything = (host: Host): string =>
  [...sections(host)]
    .map(({ key, data }) => `${key} ${Buffer.from(encode(data())).toString('base64')}`)
    .sort()
    .join('\n');

/** Runs a munmap from phase to phase; `between` may restart the service. */
async function stepThrough(
  service: Service,
  phase: Phase,
  between: (service: Service) => Promise<Service>,
): Promise<{ end: string; service: Service; stops: string[] }> {
  let now = service;
  const stops: string[] = [];
  for (const command of [touch, munmap(phase)]) await submit(now, command, { request_id: 'same' });
  for (;;) {
    now = await between(now);
    const operation = await operationOf(now, 'munmap-2');
    if (operation?.state !== 'stopped') break;
    stops.push(operation.phase);
    await submit(now, step('munmap-2'), { request_id: 'same' });
  }
  const { value } = await now.read('default', (host) => ({ end: everything(host), wrong: violations(host) }));
  t.strictSame(value.wrong, [], `the invariants hold after ${phase}`);
  return { end: value.end, service: now, stops };
}

t.test('restarts at every phase, with and without a checkpoint, change nothing', async (t) => {
  const reached = ['before_start', 'after_start', 'after_pte_clear', 'before_end', 'after_end'] as const;
  for (const phase of reached) {
    const plain = await bench(t);
    const { end, stops } = await stepThrough(plain.service, phase, async (service) => service);
    t.equal(stops[0], phase);
    for (const checkpoint of [true, false]) {
      const store = new MemoryStore();
      await store.open();
      const restarted = await stepThrough(await startService(store), phase, async (service) => {
        if (checkpoint) await service.checkpoint('default');
        // The older service is left as a killed process would leave it.
        return startService(store);
      });
      t.teardown(() => restarted.service.stop());
      t.strictSame(restarted.stops, stops);
      t.ok(
        restarted.end === end,
        `${phase}, ${checkpoint ? 'from the checkpoint' : 'from the journal'}: the same host`,
      );
    }
  }
});

/** Operations with their commands before, each stopped at its first phase. */
const OTHERS: readonly [string, Command[]][] = [
  [
    'mprotect',
    [touch, { op: 'mprotect', task: 'qemu', addr: VADDR, length: 0x1000n, prot: 1, stop_at: 'before_start' }],
  ],
  [
    'madvise',
    [touch, { op: 'madvise', task: 'qemu', addr: VADDR, length: 0x1000n, advice: 'DONTNEED', stop_at: 'before_start' }],
  ],
  ['fork', [touch, { op: 'fork', task: 'qemu', child: 'c', stop_at: 'before_start' }]],
  ['clear_soft_dirty', [touch, { op: 'clear_soft_dirty', task: 'qemu', stop_at: 'before_start' }]],
  [
    'access',
    [
      { op: 'access', task: 'qemu', addr: VADDR, write: false },
      { op: 'access', task: 'qemu', addr: VADDR, write: true, stop_at: 'before_start' },
    ],
  ],
];

for (const [kind, commands] of OTHERS)
  t.test(`a ${kind} that is stepped with a restart before each step ends as one without`, async (t) => {
    const run = async (restarts: boolean): Promise<{ end: string; steps: number }> => {
      const store = new MemoryStore();
      await store.open();
      let service = await startService(store);
      t.teardown(() => service.stop());
      for (const command of commands) await submit(service, command, { request_id: 'same' });
      let steps = 0;
      while ((await operationOf(service, `${kind}-2`))?.state === 'stopped') {
        if (restarts && steps % 2 === 0) await service.checkpoint('default');
        if (restarts) service = await startService(store);
        await submit(service, step(`${kind}-2`), { request_id: 'same' });
        steps++;
      }
      const { value } = await service.read('default', (host) => ({ end: everything(host), wrong: violations(host) }));
      t.strictSame(value.wrong, []);
      return { end: value.end, steps };
    };
    const plain = await run(false);
    const restarted = await run(true);
    t.ok(plain.steps >= 3, `${plain.steps} steps`);
    t.equal(restarted.steps, plain.steps);
    t.ok(restarted.end === plain.end, 'the same host');
  });

t.test('what an operation was left as is part of the digest of an outcome, where there is something', (t) => {
  const outcome = { ret: 0, fields: {}, finished: [], emitted: [] };
  const one = digestOf({ ...outcome, detached: ['munmap-1'] });
  t.notSame(one, digestOf(outcome));
  t.notSame(one, digestOf({ ...outcome, detached: ['munmap-2'] }));
  t.end();
});
