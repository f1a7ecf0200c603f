// Random commands for the model-based test: few iovas, few pages, small limits, so that they meet.

import fc from 'fast-check';
import type { Command } from '../../src/kernel/command.ts';
import { READ, WRITE } from '../../src/kernel/command.ts';
import type { World } from './model-world.ts';
import { type NaiveMapping, type NaiveNotification, PAGE } from './naive-types.ts';

/** Where the tasks' memory lies; A and B have the same layout in address spaces of their own. */
export const ANON = 0x100000n;
export const LAID_OUT = 0x200000n;
export const READ_ONLY = 0x300000n;
const HOLE = 0x400000n;
const AREA_PAGES = 6n;
const FIRST_IOVA = 0x10n;
const IOVA_PAGES = 9;

export const PAGES = [
  { pfn: 104, kind: 'reserved' },
  { pfn: 110, kind: 'zero' },
] as const;

type Backing = Extract<Command, { op: 'mmap' }>['backing'];
/** The same host page at two addresses, and a reserved one. */
const MIXED: Backing = {
  kind: 'pages',
  pfns: [
    [100, 4],
    [101, 1],
    [104, 1],
  ],
};
const TWO_AND_ZERO: Backing = {
  kind: 'pages',
  pfns: [
    [105, 2],
    [110, 1],
  ],
};

export function* prepare(rlimitPages: number): Iterable<Command> {
  for (const { pfn, kind } of PAGES) yield { op: 'put_page', pfn, kind };
  for (const task of ['A', 'B']) {
    const rlimit_memlock = task === 'A' ? BigInt(rlimitPages) * PAGE : 'unlimited';
    yield { op: 'put_task', task, rlimit_memlock, cap_ipc_lock: false, thread_of: null };
    yield {
      op: 'mmap',
      task,
      addr: ANON,
      length: AREA_PAGES * PAGE,
      prot: READ | WRITE,
      backing: { kind: 'anon' },
      noreplace: true,
    };
    yield { op: 'mmap', task, addr: LAID_OUT, length: 6n * PAGE, prot: READ | WRITE, backing: MIXED, noreplace: true };
    yield { op: 'mmap', task, addr: READ_ONLY, length: 3n * PAGE, prot: READ, backing: TWO_AND_ZERO, noreplace: true };
  }
  yield { op: 'put_task', task: 'A1', rlimit_memlock: 'unlimited', cap_ipc_lock: true, thread_of: 'A' };
  for (const container of ['C', 'X']) yield { op: 'put_container', container };
  for (const [group, devices] of [
    ['G1', ['D1']],
    ['G2', ['D2']],
    ['G3', ['D3', 'D4']],
  ] as const) {
    yield { op: 'put_group', group, kind: 'mdev' };
    for (const device of devices) yield { op: 'put_device', device, group };
  }
  yield { op: 'put_device', device: 'D0', group: null };
}

/** What most runs begin with: a container in which pins are possible, and neighbouring mappings with pins in them. */
export function* assemble(type: number, mappings: number): Iterable<Command> {
  for (const group of ['G1', 'G2']) yield { op: 'set_container', group, container: 'C', task: null };
  yield { op: 'set_iommu', container: 'C', type, task: null };
  yield { op: 'open_device', device: 'D1' };
  yield { op: 'open_device', device: 'D2' };
  yield { op: 'register_notifier', device: 'D1', notifier: block('L0') };
  for (let i = 0n; i < mappings; i++) {
    const size = 2n * PAGE;
    const iova = FIRST_IOVA * PAGE + i * size;
    const flags = READ | WRITE;
    yield { op: 'map_dma', container: 'C', task: 'A', iova, vaddr: ANON + i * size, size, flags, argsz: 32 };
    yield { op: 'pin_pages', device: 'D1', user_pfn: [Number(iova / PAGE)], npage: 1, prot: READ };
  }
}

const PRIORITIES: Readonly<Record<string, number>> = { L0: 0, L1: 0, L2: 5 };
const block = (id: string, events = 1, type = 0) =>
  ({ id, events, type, priority: PRIORITIES[id] ?? 0, delivery: { kind: 'poll' } }) as const;

/** A command, or something that becomes one when it is known what waits. */
export type Recipe =
  | { do: 'command'; command: Command; inside: number | null }
  | { do: 'answer'; which: number; ret: number; times: number }
  | { do: 'time out'; which: number; times: number }
  | { do: 'unpin in handler'; which: number; all: boolean }
  | { do: 'handle'; which: number; attempt: number }
  | { do: 'pin what is mapped'; which: number; device: string; pages: number[] }
  | { do: 'unmap what is mapped'; which: number; task: string | null; inside: number | null }
  | { do: 'late ack'; back: number }
  | { do: 'checkpoint' | 'restart' };

const often = <T>(weight: number, arbitrary: fc.Arbitrary<T>) => ({ weight, arbitrary });
const task = fc.constantFrom('A', 'A', 'A', 'A1', 'B');
const device = fc.oneof(
  often(6, fc.constant('D1')),
  often(5, fc.constant('D2')),
  often(1, fc.constantFrom('D0', 'D3', 'D4')),
);
const container = fc.oneof(often(19, fc.constant('C')), often(1, fc.constant('X')));
const group = fc.oneof(often(9, fc.constantFrom('G1', 'G2')), often(1, fc.constant('G3')));
const listener = fc.constantFrom('L0', 'L0', 'L1', 'L2');
const iovaPage = fc.nat({ max: IOVA_PAGES - 1 }).map((i) => Number(FIRST_IOVA) + i);
const iova = iovaPage.map((page) => BigInt(page) * PAGE);
const npage = fc.oneof(often(8, fc.constantFrom(1, 2, 3, 4)), often(1, fc.constant(IOVA_PAGES)));
const prot = fc.constantFrom(READ, READ, READ | WRITE, READ | WRITE, WRITE, 0);
const vaddr = fc
  .tuple(fc.constantFrom(ANON, ANON, LAID_OUT, LAID_OUT, READ_ONLY, HOLE), fc.nat({ max: 3 }))
  .map(([area, i]) => area + BigInt(i) * PAGE);
const oddSize = fc.constantFrom(0n, 0x800n, 2n ** 64n - PAGE);
const user_pfn = fc.array(iovaPage, { minLength: 1, maxLength: 5 });
const counted = user_pfn.chain((pfns) =>
  fc
    .oneof(often(24, fc.constant(pfns.length)), often(1, fc.constantFrom(0, -1)))
    .map((n) => ({ user_pfn: pfns, npage: n })),
);
const inside = fc.oneof(often(3, fc.constant(null)), often(2, fc.nat({ max: 2 })));

const mapDma = fc.record({
  op: fc.constant('map_dma' as const),
  container,
  task,
  iova: fc.oneof(often(15, iova), often(1, fc.constant(0x10800n))),
  vaddr,
  size: fc.oneof(
    often(
      15,
      npage.map((n) => BigInt(n) * PAGE),
    ),
    often(1, oddSize),
  ),
  flags: fc.constantFrom(READ | WRITE, READ | WRITE, READ | WRITE, READ, WRITE, 0, 8),
  argsz: fc.oneof(often(30, fc.constant(32)), often(1, fc.constant(31))),
});

const unmapRange = fc.oneof(
  often(6, fc.record({ iova, size: npage.map((n) => BigInt(n) * PAGE), flags: fc.constant(0) })),
  often(4, fc.constant({ iova: FIRST_IOVA * PAGE, size: 0x20000n, flags: 0 })),
  often(2, fc.constant({ iova: 0n, size: 0n, flags: 2 })),
  often(1, fc.record({ iova, size: oddSize, flags: fc.constantFrom(0, 2, 8) })),
);
const unmapDma = fc
  .record({ container, task: fc.constantFrom(null, null, 'A', 'A', 'A1', 'B'), range: unmapRange })
  .map(({ container, task, range }) => ({
    op: 'unmap_dma' as const,
    container,
    task,
    ...range,
    argsz: null,
    bitmap: null,
  }));

const anonRange = fc
  .tuple(fc.nat({ max: 5 }), fc.integer({ min: 1, max: 4 }))
  .map(([i, n]) => ({ addr: ANON + BigInt(i) * PAGE, length: BigInt(n) * PAGE }));

const register = fc
  .record({
    device,
    listener,
    events: fc.constantFrom(1, 1, 1, 1, 1, 0, 3),
    type: fc.constantFrom(0, 0, 0, 0, 0, 1, 2),
  })
  .map(({ device, listener, events, type }) => ({
    op: 'register_notifier' as const,
    device,
    notifier: block(listener, events, type),
  }));
const unregister = fc.record({
  op: fc.constant('unregister_notifier' as const),
  device,
  notifier: listener,
  type: fc.constantFrom(null, null, 0, 0, 1, 2),
});

const memoryCommand: fc.Arbitrary<Command> = fc.oneof(
  often(
    3,
    anonRange.map((range) => ({ op: 'munmap' as const, task: 'A', ...range })),
  ),
  often(
    3,
    fc
      .tuple(anonRange, fc.constantFrom(READ, READ | WRITE))
      .map(([range, p]) => ({ op: 'mprotect' as const, task: 'A', ...range, prot: p })),
  ),
  often(
    3,
    fc
      .tuple(anonRange, fc.constantFrom(READ, READ | WRITE, READ | WRITE), fc.boolean())
      .map(([range, p, noreplace]) => ({
        op: 'mmap' as const,
        task: 'A',
        ...range,
        prot: p,
        backing: { kind: 'anon' as const },
        noreplace,
      })),
  ),
  often(
    1,
    fc.constant({
      op: 'mmap' as const,
      task: 'A',
      addr: LAID_OUT,
      length: 6n * PAGE,
      prot: READ | WRITE,
      backing: MIXED,
      noreplace: false,
    }),
  ),
  often(
    1,
    fc.record({
      op: fc.constant('put_page' as const),
      pfn: fc.constantFrom(100, 104, 120, 121),
      kind: fc.constantFrom('normal' as const, 'reserved' as const),
    }),
  ),
  often(
    3,
    fc
      .tuple(fc.constantFrom('A', 'B'), fc.constantFrom(0, 1, 2, 3, 8))
      .map(([id, pages]) => ({ op: 'patch_task' as const, task: id, rlimit_memlock: BigInt(pages) * PAGE + 7n })),
  ),
  often(
    1,
    fc
      .tuple(fc.constantFrom('A', 'A1'), fc.boolean())
      .map(([id, cap_ipc_lock]) => ({ op: 'patch_task' as const, task: id, cap_ipc_lock })),
  ),
  often(
    2,
    fc
      .tuple(fc.constantFrom('A', 'A1', 'B'), fc.integer({ min: -2, max: 2 }))
      .map(([id, delta]) => ({ op: 'adjust_locked_vm' as const, task: id, delta })),
  ),
  often(
    1,
    fc.constantFrom('A1', 'B', 'A').map((id) => ({ op: 'exit' as const, task: id })),
  ),
);

const lifeCommand: fc.Arbitrary<Command> = fc.oneof(
  often(2, fc.record({ op: fc.constant('open_device' as const), device })),
  often(3, fc.record({ op: fc.constant('close_device' as const), device })),
  often(2, fc.record({ op: fc.constant('set_container' as const), group, container, task: fc.constant(null) })),
  often(2, fc.record({ op: fc.constant('unset_container' as const), group })),
  often(
    2,
    fc.record({
      op: fc.constant('set_iommu' as const),
      container,
      type: fc.constantFrom(3, 3, 1, 9, 99),
      task: fc.constant(null),
    }),
  ),
  often(1, fc.record({ op: fc.constantFrom('open_group' as const, 'close_group' as const), group })),
  often(1, fc.record({ op: fc.constant('close_container' as const), container })),
  often(1, fc.record({ op: fc.constant('put_container' as const), container })),
);

const command: fc.Arbitrary<Command> = fc.oneof(
  often(18, mapDma),
  often(12, unmapDma),
  often(
    24,
    fc
      .tuple(device, counted, prot)
      .map(([d, entries, p]) => ({ op: 'pin_pages' as const, device: d, ...entries, prot: p })),
  ),
  often(
    8,
    fc.tuple(device, counted).map(([d, entries]) => ({ op: 'unpin_pages' as const, device: d, ...entries })),
  ),
  often(6, register),
  often(4, unregister),
  often(6, memoryCommand),
  often(2, lifeCommand),
);

const handlerReturn = fc.constantFrom(0, 0, 1, 1, 0x8001, 0x8002);
const times = fc.oneof(often(6, fc.constant(1)), often(2, fc.constantFrom(2, 12)));

export const recipe: fc.Arbitrary<Recipe> = fc.oneof(
  often(30, fc.record({ do: fc.constant('command' as const), command, inside })),
  often(5, fc.record({ do: fc.constant('answer' as const), which: fc.nat({ max: 2 }), ret: handlerReturn, times })),
  often(2, fc.record({ do: fc.constant('time out' as const), which: fc.nat({ max: 2 }), times })),
  often(5, fc.record({ do: fc.constant('unpin in handler' as const), which: fc.nat({ max: 2 }), all: fc.boolean() })),
  often(
    3,
    fc.record({ do: fc.constant('handle' as const), which: fc.nat({ max: 2 }), attempt: fc.constantFrom(1, 2, 2, 11) }),
  ),
  often(
    12,
    fc.record({
      do: fc.constant('pin what is mapped' as const),
      which: fc.nat({ max: 3 }),
      device: fc.constantFrom('D1', 'D2'),
      pages: fc.array(fc.nat({ max: 4 }), { minLength: 1, maxLength: 4 }),
    }),
  ),
  often(
    8,
    fc.record({
      do: fc.constant('unmap what is mapped' as const),
      which: fc.nat({ max: 3 }),
      task: fc.constantFrom(null, null, 'A', 'A1', 'B'),
      inside,
    }),
  ),
  often(1, fc.record({ do: fc.constant('late ack' as const), back: fc.nat({ max: 3 }) })),
  often(1, fc.constantFrom({ do: 'checkpoint' as const }, { do: 'restart' as const })),
);

/** Carries a recipe out; every command in it is compared. */
export function follow(world: World, recipe: Recipe): void {
  const waiting = [...world.model.pending.values()];
  const at = (which: number) => waiting[which % Math.max(1, waiting.length)];
  switch (recipe.do) {
    case 'command': {
      const notification = recipe.inside === null ? undefined : at(recipe.inside);
      world.step(recipe.command, notification === undefined ? null : `notification-${notification.n}`);
      return;
    }
    case 'answer':
    case 'time out': {
      let next = at(recipe.which);
      for (let i = 0; i < recipe.times && next !== undefined; i++) {
        const { n, device, op } = next;
        const id = `notification-${n}`;
        if (recipe.do === 'time out') world.step({ op: 'notification_timeout', notification: id });
        else
          world.step({
            op: 'ack_notification',
            device,
            notification: id,
            ret: recipe.ret,
            reason: 'ack',
            detail: null,
          });
        next = [...world.model.pending.values()].find((pending) => pending.op === op);
      }
      return;
    }
    case 'pin what is mapped': {
      const mapping = mappingAt(world, recipe.which);
      if (mapping === undefined) return;
      const first = Number(mapping.iova / PAGE);
      // An index beyond the mapping's end pins what lies behind it: often nothing, and then all is rolled back.
      const user_pfn = recipe.pages.map((page) => first + page);
      world.step({ op: 'pin_pages', device: recipe.device, user_pfn, npage: user_pfn.length, prot: mapping.prot });
      return;
    }
    case 'unmap what is mapped': {
      const mapping = mappingAt(world, recipe.which);
      if (mapping === undefined) return;
      const { iova, size } = mapping;
      const notification = recipe.inside === null ? undefined : at(recipe.inside);
      const command: Command = {
        op: 'unmap_dma',
        container: 'C',
        task: recipe.task,
        iova,
        size,
        flags: 0,
        argsz: null,
        bitmap: null,
      };
      world.step(command, notification === undefined ? null : `notification-${notification.n}`);
      return;
    }
    case 'checkpoint':
      world.checkpoint();
      return;
    case 'restart':
      world.restart();
      return;
    case 'handle':
      handle(world, at(recipe.which), recipe.attempt);
      return;
    case 'unpin in handler':
      unpinInHandler(world, at(recipe.which), recipe.all);
      return;
    case 'late ack': {
      const n = world.model.next - 1 - recipe.back;
      if (n < 1 || world.model.pending.has(n)) return;
      const notification = `notification-${n}`;
      world.step({ op: 'ack_notification', device: 'D1', notification, ret: 1, reason: 'ack', detail: null });
    }
  }
}

/** A driver that unpins everything at its n-th call for a mapping, as often as the unmap meets another mapping. */
function handle(world: World, first: NaiveNotification | undefined, attempt: number): void {
  let next = first;
  while (next !== undefined) {
    const { op, n, device } = next;
    if (next.attempt >= attempt) unpinInHandler(world, next, true);
    const notification = `notification-${n}`;
    world.step({ op: 'ack_notification', device, notification, ret: 1, reason: 'ack', detail: null });
    next = [...world.model.pending.values()].find((pending) => pending.op === op);
  }
}

function mappingAt(world: World, which: number): NaiveMapping | undefined {
  const maps = world.model.containers.get('C')?.iommu?.maps ?? [];
  return maps[which % Math.max(1, maps.length)];
}

/** What a good driver does: unpins what is pinned in the announced range, or only one reference of each page. */
function unpinInHandler(world: World, pending: ReturnType<World['model']['pending']['get']>, all: boolean): void {
  const iommu = world.model.containers.get(pending?.container ?? '')?.iommu;
  const mapping = iommu?.maps.find(({ iova }) => iova === pending?.iova);
  if (pending === undefined || mapping === undefined) return;
  const user_pfn = [...mapping.pins].flatMap(([iova, { ref_count }]) =>
    new Array<number>(all ? ref_count : 1).fill(Number(iova / PAGE)),
  );
  if (user_pfn.length === 0) return;
  world.step({ op: 'unpin_pages', device: 'D2', user_pfn, npage: user_pfn.length }, `notification-${pending.n}`);
}
