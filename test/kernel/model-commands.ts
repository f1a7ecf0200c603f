// Random commands for the model-based test: few iovas, few pages, small limits, so that they meet.

import fc from 'fast-check';
import type { Command } from '../../src/kernel/command.ts';
import { READ, WRITE } from '../../src/kernel/command.ts';
import type { Rules } from './naive-rules.ts';
import { PAGE } from './naive-types.ts';

/** Where the tasks' memory lies; A and B have the same layout in address spaces of their own. */
export const ANON = 0x100000n;
export const LAID_OUT = 0x200000n;
export const READ_ONLY = 0x300000n;
const HOLE = 0x400000n;
/** Device memory, in an area that may be written and in one that may not. */
const DEVICE = 0x500000n;
const READ_ONLY_DEVICE = 0x600000n;
/** The last iova pages of the space. */
const TOP_IOVA = 2n ** 52n - 6n;
const AREA_PAGES = 6n;
const FIRST_IOVA = 0x10n;
const IOVA_PAGES = 9;

export const PAGES = [
  { pfn: 104, kind: 'reserved' },
  { pfn: 110, kind: 'zero' },
  { pfn: 200, kind: 'device' },
  { pfn: 201, kind: 'reserved' },
  { pfn: 202, kind: 'reserved' },
  { pfn: 203, kind: 'reserved' },
  { pfn: 204, kind: 'normal' },
  { pfn: 205, kind: 'reserved' },
  { pfn: 210, kind: 'device' },
  { pfn: 211, kind: 'reserved' },
  { pfn: 212, kind: 'reserved' },
] as const;
/** Every state that a page of device memory can be in before its first use. */
const PTES = ['rw', 'rw', 'r', 'lazy', 'lazy-retry', 'sigbus'] as const;
const READ_ONLY_PTES = ['r', 'r', 'lazy'] as const;

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
    const device = { kind: 'pfnmap', struct_page: true, reserved: true } as const;
    for (const [addr, prot, pfn, ptes] of [
      [DEVICE, READ | WRITE, 200, PTES],
      [READ_ONLY_DEVICE, READ, 210, READ_ONLY_PTES],
    ] as const) {
      const length = BigInt(ptes.length) * PAGE;
      yield { op: 'mmap', task, addr, length, prot, backing: { ...device, pfn, ptes: [...ptes] }, noreplace: true };
    }
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
  yield { op: 'put_group', group: 'H1', kind: 'iommu' };
  yield {
    op: 'put_group',
    group: 'H2',
    kind: 'iommu',
    reserved: [RESERVED],
    aperture: { start: 0n, last: 0xffffffffn },
  };
  yield { op: 'put_device', device: 'E1', group: 'H1' };
}

/** Of the second IOMMU-backed group: the last of the few iova pages. */
const RESERVED = { start: 0x18000n, last: 0x18fffn };

const often = <T>(weight: number, arbitrary: fc.Arbitrary<T>) => ({ weight, arbitrary });

/** What a run begins with. */
export interface Beginning {
  dma_entry_limit: number;
  rlimitPages: number;
  /** Type of the back end; 0: nothing is assembled. */
  type: number;
  /** Mappings with a pin in each. */
  mappings: number;
  /** An IOMMU-backed group is there: after the mappings, before them, or alone. */
  iommu: 'none' | 'late' | 'early' | 'alone';
  /** One more mapping, which ends at 2^64. */
  top: boolean;
}

export const beginningsOf = ({ vaddrUpdate }: Rules): fc.Arbitrary<Beginning> =>
  fc.record({
    dma_entry_limit: fc.constantFrom(2, 3, 8, 8),
    rlimitPages: fc.constantFrom(0, 2, 3, 64, 64),
    type: fc.oneof({ weight: 12, arbitrary: fc.constant(3) }, { weight: 1, arbitrary: fc.constantFrom(0, 1, 6) }),
    mappings: fc.constantFrom(0, 0, 1, 2, 3, 5),
    iommu: fc.oneof(
      often(8, fc.constant('none' as const)),
      often(3, fc.constantFrom('late' as const, 'early' as const)),
      // Only in a container without mdev group does it let a vaddr be invalid.
      often(vaddrUpdate === 'refuses' ? 3 : 1, fc.constant('alone' as const)),
    ),
    top: fc.constantFrom(false, false, false, false, true),
  });

/** What most runs begin with: a container in which pins are possible, and neighbouring mappings with pins in them. */
export function* assemble(begin: Beginning, rules: Rules): Iterable<Command> {
  const { type, mappings, iommu, top } = begin;
  const mdev = iommu !== 'alone';
  const bind = (group: string): Command => ({ op: 'set_container', group, container: 'C', task: null });
  if (iommu === 'early' || iommu === 'alone') yield bind('H1');
  if (mdev) for (const group of ['G1', 'G2']) yield bind(group);
  yield { op: 'set_iommu', container: 'C', type, task: null };
  for (const device of mdev ? ['D1', 'D2'] : ['E1']) yield { op: 'open_device', device };
  for (const [device, id] of mdev
    ? ([
        ['D1', 'L0'],
        ['D2', 'L1'],
      ] as const)
    : ([['E1', 'L0']] as const))
    if (id === 'L0' || rules.deviceIsListener)
      yield { op: 'register_notifier', device, notifier: { ...block(id), priority: 0 } };
  if (top) yield mapping(TOP_IOVA * PAGE + 3n * PAGE, ANON + 3n * PAGE, 3n * PAGE);
  for (let i = 0n; i < mappings; i++) {
    const size = i < 3n ? 2n * PAGE : PAGE;
    const iova = FIRST_IOVA * PAGE + (i < 3n ? 2n * i : i + 3n) * PAGE;
    yield mapping(iova, ANON + (i < 3n ? i : 1n) * 2n * PAGE, size);
    if (mdev) yield pinCommand(rules, 'D1', [iova], READ);
  }
  if (iommu === 'late') yield bind('H1');
}

const mapping = (iova: bigint, vaddr: bigint, size: bigint): Command => ({
  op: 'map_dma',
  ...{ container: 'C', task: 'A', iova, vaddr, size, flags: READ | WRITE, argsz: 32 },
});

/** What names pages: an array, or as many from the first one on. */
const entries = ({ takesArrays }: Rules, iovas: readonly bigint[], npage = iovas.length) =>
  takesArrays
    ? { user_pfn: iovas.map((iova) => Number(iova / PAGE)), npage }
    : { user_pfn: [], npage, contiguous: { iova: iovas[0] ?? 0n } };

export const pinCommand = (
  rules: Rules,
  device: string,
  iovas: readonly bigint[],
  prot: number,
  npage?: number,
): Command => ({
  op: 'pin_pages',
  device,
  ...entries(rules, iovas, npage),
  prot,
});

export const unpinCommand = (rules: Rules, device: string, iovas: readonly bigint[], npage?: number): Command => ({
  op: 'unpin_pages',
  device,
  ...entries(rules, iovas, npage),
});

const PRIORITIES: Readonly<Record<string, number>> = { L0: 0, L1: 0, L2: 5 };
const block = (id: string, events = 1, type = 0) =>
  ({ id, events, type, priority: PRIORITIES[id] ?? 0, delivery: { kind: 'poll' } }) as const;

/** A command, or something that becomes one when it is known what waits and which form a pin has. */
export type Recipe =
  | { do: 'command'; command: Command; inside: number | null }
  | { do: 'pin'; device: string; iovas: bigint[]; offset: bigint; npage: number | null; prot: number }
  | { do: 'unpin'; device: string; iovas: bigint[]; offset: bigint; npage: number | null; inside: number | null }
  | { do: 'answer'; which: number; ret: number; times: number }
  | { do: 'time out'; which: number; times: number }
  | { do: 'unpin in handler'; which: number; all: boolean }
  | { do: 'handle'; which: number; attempt: number }
  | { do: 'pin what is mapped'; which: number; device: string; pages: number[] }
  | { do: 'unmap what is mapped'; which: number; task: string | null; flags: number; inside: number | null }
  | { do: 'give a vaddr'; which: number; task: string; vaddr: bigint }
  | { do: 'get bitmap'; which: number; more: number }
  | { do: 'fail'; point: 'record_alloc' | 'charge'; call: 'pin_pages' | 'unpin_pages' | 'unmap_dma'; nth: number }
  | {
      do: 'move bytes';
      which: number;
      device: string;
      at: bigint;
      length: number;
      byte: number | null;
      task: string | null;
    }
  | { do: 'bind' | 'unbind'; group: string; device: string | null }
  | { do: 'tear down' }
  | { do: 'straddle the end'; which: number }
  | { do: 'kill'; which: number }
  | { do: 'late ack'; back: number }
  | { do: 'checkpoint' | 'restart' };

const task = fc.constantFrom('A', 'A', 'A', 'A1', 'B');
const device = fc.oneof(
  often(6, fc.constant('D1')),
  often(4, fc.constant('D2')),
  often(1, fc.constant('E1')),
  often(1, fc.constantFrom('D0', 'D3', 'D4')),
);
const container = fc.oneof(often(19, fc.constant('C')), often(1, fc.constant('X')));
const group = fc.oneof(
  often(6, fc.constantFrom('G1', 'G2')),
  often(1, fc.constant('G3')),
  often(2, fc.constant('H1')),
  often(1, fc.constant('H2')),
);
const listener = fc.constantFrom('L0', 'L0', 'L1', 'L2');
const lowIova = fc.nat({ max: IOVA_PAGES - 1 }).map((i) => (FIRST_IOVA + BigInt(i)) * PAGE);
const topIova = fc.nat({ max: 5 }).map((i) => (TOP_IOVA + BigInt(i)) * PAGE);
const iova = fc.oneof(often(24, lowIova), often(1, topIova));
const npage = fc.oneof(often(8, fc.constantFrom(1, 2, 3, 4)), often(1, fc.constant(IOVA_PAGES)));
const prot = fc.constantFrom(READ, READ, READ | WRITE, READ | WRITE, WRITE, 0);
const vaddr = fc
  .tuple(
    fc.oneof(
      often(5, fc.constantFrom(ANON, LAID_OUT)),
      often(5, fc.constantFrom(READ_ONLY, HOLE, DEVICE, READ_ONLY_DEVICE)),
    ),
    fc.nat({ max: 3 }),
  )
  .map(([area, i]) => area + BigInt(i) * PAGE);
const oddSize = fc.constantFrom(0n, 0x800n, 2n ** 64n - PAGE);
const iovas = fc.array(iova, { minLength: 1, maxLength: 5 });
/** How many pages the call says that it names; null: as many as it does. */
const said = fc.oneof(often(24, fc.constant(null)), often(1, fc.constantFrom(0, -1, 513)));
const offset = fc.constantFrom(0n, 0n, 0n, 0n, 0x10n, 0x800n);
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
  flags: fc.constantFrom(READ | WRITE, READ | WRITE, READ | WRITE, READ | WRITE, READ, READ, WRITE, 0, 8, 4),
  argsz: fc.oneof(often(30, fc.constant(32)), often(1, fc.constant(31))),
});

const unmapRange = fc.oneof(
  often(6, fc.record({ iova, size: npage.map((n) => BigInt(n) * PAGE), flags: fc.constant(0) })),
  often(4, fc.constant({ iova: FIRST_IOVA * PAGE, size: 0x20000n, flags: 0 })),
  often(2, fc.constant({ iova: 0n, size: 0n, flags: 2 })),
  often(1, fc.record({ iova, size: oddSize, flags: fc.constantFrom(0, 2, 8) })),
  often(1, fc.record({ iova, size: npage.map((n) => BigInt(n) * PAGE), flags: fc.constantFrom(4, 1) })),
);
const unmapDma = fc
  .record({ container, task: fc.constantFrom(null, null, 'A', 'A', 'A1', 'B'), range: unmapRange })
  .map(({ container, task, range }) => ({
    op: 'unmap_dma' as const,
    container,
    task,
    ...range,
    argsz: null,
    bitmap: (range.flags & 1) === 0 ? null : { pgsize: PAGE, size: 8n },
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
    2,
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
    fc
      .constantFrom(['A1', false], ['B', false], ['A', true], ['A', false])
      .map(([id, thread_only]) => ({ op: 'exit' as const, task: id as string, thread_only: thread_only as boolean })),
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

const dirtyPages: fc.Arbitrary<Command> = fc.oneof(
  often(
    4,
    fc.constantFrom(1, 1, 2, 8).map((flags) => ({
      op: 'dirty_pages' as const,
      ...{ container: 'C', flags, argsz: null, range: null, task: null },
    })),
  ),
  often(
    3,
    fc
      .record({ iova, size: npage.map((n) => BigInt(n) * PAGE), pgsize: fc.constantFrom(PAGE, PAGE, PAGE, 0x2000n) })
      .map((range) => ({
        op: 'dirty_pages' as const,
        ...{ container: 'C', flags: 4, argsz: null, range: { ...range, bitmap_size: 8n }, task: null },
      })),
  ),
);

/** Lengths that stay in a page, cross one, or fill one. */
const dmaRw: fc.Arbitrary<Command> = fc
  .record({
    device,
    page: iova,
    at: fc.constantFrom(0n, 0n, 0x10n, 0xff8n),
    length: fc.constantFrom(0, 16, 16, 4096, 4112),
    write: fc.boolean(),
    task: fc.constantFrom(null, null, null, 'A', 'B'),
    byte: fc.nat({ max: 255 }),
  })
  .map(({ device, page, at, length, write, task, byte }) => ({
    op: 'dma_rw' as const,
    ...{ device, iova: page + at, length, write, task },
    data: write ? Buffer.alloc(length, byte).toString('base64') : null,
  }));

const command: fc.Arbitrary<Command> = fc.oneof(
  often(20, mapDma),
  often(13, unmapDma),
  often(6, register),
  often(4, unregister),
  often(8, memoryCommand),
  often(3, lifeCommand),
  often(5, dirtyPages),
  often(2, dmaRw),
);

const handlerReturn = fc.constantFrom(0, 0, 1, 1, 0x8001, 0x8002);
const times = fc.oneof(often(6, fc.constant(1)), often(2, fc.constantFrom(2, 12)));
const which = fc.nat({ max: 3 });
const failing = fc.oneof(
  fc.record({ point: fc.constant('record_alloc' as const), call: fc.constant('pin_pages' as const) }),
  fc.record({
    point: fc.constant('charge' as const),
    call: fc.constantFrom('pin_pages' as const, 'pin_pages' as const, 'unpin_pages' as const, 'unmap_dma' as const),
  }),
);
const as = <N extends string>(name: N) => fc.constant(name);

export const recipesOf = ({ unmapFlags }: Rules): fc.Arbitrary<Recipe> =>
  fc.oneof(
    often(23, fc.record({ do: as('command'), command, inside })),
    often(8, fc.record({ do: as('pin'), device, iovas, offset, npage: said, prot })),
    often(5, fc.record({ do: as('unpin'), device, iovas, offset, npage: said, inside })),
    often(5, fc.record({ do: as('answer'), which, ret: handlerReturn, times })),
    often(2, fc.record({ do: as('time out'), which, times })),
    often(5, fc.record({ do: as('unpin in handler'), which, all: fc.boolean() })),
    often(3, fc.record({ do: as('handle'), which, attempt: fc.constantFrom(1, 2, 2, 11) })),
    often(
      12,
      fc.record({
        do: as('pin what is mapped'),
        which,
        device: fc.constantFrom('D1', 'D1', 'D2', 'D2', 'E1'),
        pages: fc.array(fc.nat({ max: 4 }), { minLength: 1, maxLength: 4 }),
      }),
    ),
    often(
      8,
      fc.record({
        do: as('unmap what is mapped'),
        which,
        task: fc.constantFrom(null, null, 'A', 'A1', 'B'),
        flags: fc.constantFrom(0, 0, 0, ...(unmapFlags === 7 ? [0, 0, 4, 4, 1] : [0, 0, 0, 1])),
        inside,
      }),
    ),
    often(2, fc.record({ do: as('give a vaddr'), which, task, vaddr })),
    often(2, fc.record({ do: as('get bitmap'), which, more: fc.nat({ max: 3 }) })),
    often(
      2,
      fc
        .tuple(failing, fc.integer({ min: 1, max: 4 }))
        .map(([{ point, call }, nth]) => ({ do: 'fail' as const, point, call, nth })),
    ),
    often(
      3,
      fc.record({
        do: as('move bytes'),
        which,
        device: fc.constantFrom('D1', 'D2', 'D2'),
        at: fc.constantFrom(0n, 0n, 0x10n, 0xff8n),
        length: fc.constantFrom(16, 16, 4096, 4112, 8208),
        byte: fc.oneof(fc.constant(null), fc.integer({ min: 1, max: 255 })),
        task: fc.constantFrom(null, null, null, 'A', 'A', 'B'),
      }),
    ),
    often(
      2,
      fc
        .tuple(
          fc.constantFrom('bind' as const, 'bind' as const, 'unbind' as const),
          fc.constantFrom(['H1', 'E1'], ['H1', null], ['H1', 'E1'], ['H2', null], ['G2', 'D2'], ['G1', 'D1']),
        )
        .map(([what, [group, device]]) => ({ do: what, group: group as string, device: device as string | null })),
    ),
    often(
      1,
      fc.oneof(
        often(3, fc.constant({ do: 'checkpoint' as const })),
        often(1, fc.constant({ do: 'tear down' as const })),
      ),
    ),
    often(2, fc.record({ do: as('straddle the end'), which })),
    often(1, fc.record({ do: as('kill'), which })),
    often(1, fc.record({ do: as('late ack'), back: fc.nat({ max: 3 }) })),
    often(1, fc.constantFrom({ do: 'checkpoint' as const }, { do: 'restart' as const })),
  );
