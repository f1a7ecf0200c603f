// Forced interleavings: all orders in which the steps of several actors can meet, each run on the kernel and on the naive model.

import t, { type Test } from 'tap';
import type { Command } from '../../src/kernel/command.ts';
import { READ, WRITE } from '../../src/kernel/command.ts';
import { World } from './model-world.ts';
import { PAGE } from './naive-types.ts';

t.setTimeout(240_000);

/** One step of an actor. */
type Step = (world: World) => void;
/** The steps of one actor keep their order; those of different actors meet in every order. */
type Actors = Readonly<Record<string, readonly [string, Step][]>>;

const VADDR = 0x100000n;
const A = { iova: 0x10000n, size: 4n * PAGE };
const B = { iova: 0x14000n, size: 2n * PAGE };

/** A container with two devices, two listeners, mapping A with two pinned pages (one of them twice) and mapping B with one. */
function world(): World {
  const made = new World(8);
  const prepared: Command[] = [
    { op: 'put_task', task: 'T', rlimit_memlock: 4n * PAGE, cap_ipc_lock: false, thread_of: null },
    {
      op: 'mmap',
      task: 'T',
      addr: VADDR,
      length: 8n * PAGE,
      prot: READ | WRITE,
      backing: { kind: 'anon' },
      noreplace: true,
    },
    { op: 'put_container', container: 'C' },
    { op: 'put_group', group: 'G', kind: 'mdev' },
    { op: 'put_device', device: 'D', group: 'G' },
    { op: 'set_container', group: 'G', container: 'C', task: null },
    { op: 'set_iommu', container: 'C', type: 3, task: null },
    { op: 'open_device', device: 'D' },
    { op: 'register_notifier', device: 'D', notifier: block('L1', 0) },
    { op: 'map_dma', container: 'C', task: 'T', ...A, vaddr: VADDR, flags: READ | WRITE, argsz: 32 },
    { op: 'map_dma', container: 'C', task: 'T', ...B, vaddr: VADDR + A.size, flags: READ | WRITE, argsz: 32 },
    { op: 'pin_pages', device: 'D', user_pfn: [0x10, 0x11, 0x10, 0x14], npage: 4, prot: READ },
  ];
  for (const command of prepared) made.prepare(command);
  return made;
}

const block = (id: string, priority: number) =>
  ({ id, events: 1, type: 0, priority, delivery: { kind: 'poll' } }) as const;

const command =
  (what: Command): Step =>
  (world) =>
    void world.step(what);
const unmap = (range: { iova: bigint; size: bigint }, task: string | null = null): Step =>
  command({ op: 'unmap_dma', container: 'C', task, ...range, flags: 0, argsz: null, bitmap: null });
const pin = (user_pfn: number[]): Step =>
  command({ op: 'pin_pages', device: 'D', user_pfn, npage: user_pfn.length, prot: READ });
const unpin = (user_pfn: number[]): Step =>
  command({ op: 'unpin_pages', device: 'D', user_pfn, npage: user_pfn.length });

const iommuOf = (world: World) => world.model.containers.get('C')?.iommu;
const first = (world: World) => world.model.pending.values().next().value;

/** A good driver: unpins what is pinned in the announced mapping, in its handler; what is in A when nothing is announced. */
const unpinAll: Step = (world) => {
  const pending = first(world);
  const { iova } = pending ?? A;
  const pins =
    iommuOf(world)?.maps.find((mapping) => mapping.iova === iova)?.pins ?? new Map<bigint, { ref_count: number }>();
  const user_pfn = [...pins].flatMap(([at, { ref_count }]) => new Array<number>(ref_count).fill(Number(at / PAGE)));
  if (user_pfn.length === 0) user_pfn.push(Number(iova / PAGE));
  const notification = pending === undefined ? null : `notification-${pending.n}`;
  world.step({ op: 'unpin_pages', device: 'D', user_pfn, npage: user_pfn.length }, notification);
};

const answer = (world: World, n: number, ret: number): void =>
  void world.step({
    op: 'ack_notification',
    device: 'D',
    notification: `notification-${n}`,
    ret,
    reason: 'ack',
    detail: null,
  });

/** Answers the notification that waits, or answers the last one a second time. */
const ack =
  (ret = 1): Step =>
  (world) =>
    answer(world, first(world)?.n ?? world.model.next - 1, ret);
/** Answers the very first notification, whatever has become of it. */
const ackOfTheFirst: Step = (world) => answer(world, 1, 0);

const timeout: Step = (world) =>
  void world.step({ op: 'notification_timeout', notification: `notification-${first(world)?.n ?? 1}` });
const restart: Step = (world) => world.restart();

/** Every order of the steps of all actors. */
function* ordersOf(actors: Actors): Iterable<[string, Step][]> {
  const names = Object.keys(actors);
  const total = names.reduce((sum, name) => sum + (actors[name]?.length ?? 0), 0);
  const taken = new Map<string, number>(names.map((name) => [name, 0]));
  const order: [string, Step][] = [];
  function* extend(): Iterable<[string, Step][]> {
    if (order.length === total) yield order;
    for (const name of names) {
      const at = taken.get(name) as number;
      const step = actors[name]?.[at];
      if (step === undefined) continue;
      order.push(step);
      taken.set(name, at + 1);
      yield* extend();
      taken.set(name, at);
      order.pop();
    }
  }
  yield* extend();
}

/** Lets every call that still sleeps come back: the handlers unpin and return; one that would not end is a failure. */
function drain(world: World): void {
  for (let i = 0; world.model.pending.size > 0; i++) {
    if (i > 100) throw new Error('an unmap does not end');
    unpinAll(world);
    ack()(world);
  }
  if (world.model.asleep.length > 0) throw new Error('a call sleeps and nobody will wake it');
}

interface Seen {
  orders: number;
  /** Runs by what had happened at their end. */
  ends: Map<string, number>;
}

/** Runs every order, drains, and counts. `ending` says in words how a run ended. */
function runAll(t: Test, actors: Actors, ending: (world: World) => string[]): Seen {
  const seen: Seen = { orders: 0, ends: new Map() };
  let before: [string, Step][] = [];
  for (const order of ordersOf(actors)) {
    const made = world();
    const known = order.findIndex((step, i) => step !== before[i]);
    before = [...order];
    try {
      for (const [i, [, step]] of order.entries()) {
        // The states along the beginning that this order shares with the one before were compared there.
        made.comparing = i >= known;
        step(made);
      }
      drain(made);
    } catch (error) {
      t.fail(`${order.map(([name]) => name).join(', ')}: ${(error as Error).message}`);
      return seen;
    }
    seen.orders++;
    for (const end of [...ending(made), ...made.model.seen]) seen.ends.set(end, (seen.ends.get(end) ?? 0) + 1);
  }
  t.comment(`${seen.orders} orders; ${[...seen.ends].map(([end, runs]) => `${end}: ${runs}`).join('; ')}`);
  return seen;
}

const lockedVm = (world: World) => world.model.memory.tasks.get('T')?.mm?.locked_vm;

/** What is left of the mappings and charges at the end. */
function remains(made: World): string[] {
  const iommu = iommuOf(made);
  const pins = iommu?.maps.reduce((sum, { pins }) => sum + pins.size, 0) ?? 0;
  return [
    `${iommu?.maps.length ?? 0} mappings left`,
    `${made.model.next - 1} notifications`,
    ...(lockedVm(made) === BigInt(pins) ? [] : ['charge is not the number of pins']),
  ];
}

t.test(
  'interleavings: unmap, callback, pin, late answer, timeout and restart, all 10,080 orders of 8 steps',
  async (t) => {
    const { orders, ends } = runAll(
      t,
      {
        unmapper: [['unmap', unmap(A)]],
        handler: [
          ['unpin in handler', unpinAll],
          ['ack', ack()],
        ],
        pinner: [
          ['pin', pin([0x10, 0x12])],
          ['unpin', unpin([0x12, 0x10])],
        ],
        late: [['late answer', ackOfTheFirst]],
        clock: [['timeout', timeout]],
        service: [['restart', restart]],
      },
      remains,
    );
    t.equal(orders, 10_080);
    t.equal(ends.get('1 mappings left'), orders, 'A is gone in every order, B stays');
    t.equal(ends.get('charge is not the number of pins'), undefined, 'the charge is one for each pin that is left');
    for (const end of [
      '0 notifications',
      '1 notifications',
      '2 notifications',
      '3 notifications',
      'late ack',
      'restart of the service inside an unmap',
    ])
      t.ok((ends.get(end) ?? 0) > 0, end);
  },
);

t.test('interleavings: two unmaps, their handlers, a registration, an unregistration and a restart', async (t) => {
  const { orders, ends } = runAll(
    t,
    {
      one: [['unmap A', unmap(A)]],
      two: [['unmap both', unmap({ iova: A.iova, size: A.size + B.size }, 'T')]],
      handler: [
        ['unpin in handler', unpinAll],
        ['ack of the oldest', ack()],
      ],
      driver: [
        ['register L2', command({ op: 'register_notifier', device: 'D', notifier: block('L2', 5) })],
        ['unregister L2', command({ op: 'unregister_notifier', device: 'D', notifier: 'L2', type: 0 })],
      ],
      service: [['restart', restart]],
    },
    remains,
  );
  t.equal(orders, 1260);
  for (const end of [
    '0 mappings left',
    'register waits for a callback',
    'unregister waits for a callback',
    'walk waits behind a writer',
    'competing unmap inside a callback',
    'restart of the service inside an unmap',
  ])
    t.ok((ends.get(end) ?? 0) > 0, end);
});

t.test('interleavings: what other threads do to the range while its handler runs', async (t) => {
  const straddling = { iova: B.iova + PAGE, size: 2n * PAGE };
  const map: Command = {
    op: 'map_dma',
    container: 'C',
    task: 'T',
    ...straddling,
    vaddr: VADDR,
    flags: READ,
    argsz: 32,
  };
  const { orders, ends } = runAll(
    t,
    {
      unmapper: [['unmap both', unmap({ iova: A.iova, size: A.size + B.size })]],
      handler: [
        ['unpin in handler', unpinAll],
        ['ack', ack()],
      ],
      competitor: [
        ['unmap B', unmap(B)],
        ['map across the end', command(map)],
      ],
      pinner: [['pin', pin([0x14])]],
      clock: [['timeout', timeout]],
    },
    remains,
  );
  t.equal(orders, 1260);
  for (const end of [
    'restart whose range bisects',
    'competing unmap inside a callback',
    '0 mappings left',
    '2 mappings left',
  ])
    t.ok((ends.get(end) ?? 0) > 0, end);
});

t.test('interleavings: the task exits, the last device closes and the group leaves while a handler runs', async (t) => {
  const { orders, ends } = runAll(
    t,
    {
      unmapper: [['unmap A', unmap(A)]],
      handler: [
        ['ack without unpinning', ack(0x8001)],
        ['late answer', ackOfTheFirst],
      ],
      mm: [['exit', command({ op: 'exit', task: 'T' })]],
      life: [
        ['close', command({ op: 'close_device', device: 'D' })],
        ['unset', command({ op: 'unset_container', group: 'G' })],
      ],
      service: [['restart', restart]],
    },
    (made) => [
      made.model.containers.get('C')?.dead ? 'dead' : 'alive',
      `${iommuOf(made)?.maps.length ?? 'no'} mappings left`,
    ],
  );
  t.equal(orders, 1260);
  for (const end of ['dead', 'alive', 'no mappings left', 'late ack']) t.ok((ends.get(end) ?? 0) > 0, end);
});

t.test(
  'interleavings: a handler that never unpins is called 11 times, then BUG, wherever the service restarts',
  async (t) => {
    for (let at = 0; at <= 11; at++) {
      const made = world();
      unmap(A)(made);
      let notified = 0;
      for (; made.model.pending.size > 0; notified++) {
        if (notified === at) made.restart();
        if (notified % 2 === 0) timeout(made);
        else ack(0)(made);
      }
      made.restart();
      t.equal(notified, 11, `restart before answer ${at + 1}`);
      t.equal(made.model.containers.get('C')?.dead, true);
      const dead = made.step({
        op: 'map_dma',
        container: 'C',
        task: 'T',
        iova: 0x80000n,
        size: PAGE,
        vaddr: VADDR,
        flags: READ,
        argsz: 32,
      });
      t.equal(dead.outcome.refusal?.errno, 'EIO', 'the container never answers again');
      t.equal(made.host.dmesg.since(0, 100).items.filter(({ kind }) => kind === 'BUG').length, 1, 'one BUG');
    }
  },
);

t.test(
  'interleavings: two mappings, each unpinned at its 11th call: 22 calls and success, restarted in between',
  async (t) => {
    const made = world();
    unmap({ iova: A.iova, size: A.size + B.size })(made);
    const calls: [bigint, number][] = [];
    for (let pending = first(made); pending !== undefined; pending = first(made)) {
      calls.push([pending.iova, pending.attempt]);
      if (pending.attempt === 11) unpinAll(made);
      if (pending.attempt % 4 === 0) made.restart();
      ack()(made);
    }
    const expected = [A.iova, B.iova].flatMap((iova) => Array.from({ length: 11 }, (_, i) => [iova, i + 1]));
    t.same(calls, expected);
    const [operation] = made.host.operations.values();
    t.equal(operation?.outcome?.ret, 0);
    t.equal(operation?.outcome?.fields.size, A.size + B.size);
    t.equal(operation?.outcome?.fields.notifications, 22);
    t.equal(lockedVm(made), 0n);
  },
);
