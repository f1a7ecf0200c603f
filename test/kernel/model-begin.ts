// What the model-based runs begin with: memory of every kind, objects, and mostly a container in which pins are possible.

import fc from 'fast-check';
import type { Command } from '../../src/kernel/command.ts';
import { READ, WRITE } from '../../src/kernel/command.ts';
import type { Rules } from './naive-rules.ts';
import { PAGE } from './naive-types.ts';

/** Where the tasks' memory lies; A and B have the same layout in address spaces of their own. */
export const ANON = 0x100000n;
export const LAID_OUT = 0x200000n;
export const READ_ONLY = 0x300000n;
export const HOLE = 0x400000n;
/** Device memory, in an area that may be written and in one that may not. */
export const DEVICE = 0x500000n;
export const READ_ONLY_DEVICE = 0x600000n;
/** The last iova pages of the space. */
export const TOP_IOVA = 2n ** 52n - 6n;
const AREA_PAGES = 6n;
export const FIRST_IOVA = 0x10n;
export const IOVA_PAGES = 9;

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
export const MIXED: Backing = {
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

export function* prepare({ rlimitPages, cap }: Beginning): Iterable<Command> {
  for (const { pfn, kind } of PAGES) yield { op: 'put_page', pfn, kind };
  for (const task of ['A', 'B']) {
    const rlimit_memlock = task === 'A' ? BigInt(rlimitPages) * PAGE : 'unlimited';
    yield { op: 'put_task', task, rlimit_memlock, cap_ipc_lock: cap && task === 'A', thread_of: null };
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

export const often = <T>(weight: number, arbitrary: fc.Arbitrary<T>) => ({ weight, arbitrary });

/** What a run begins with. */
export interface Beginning {
  dma_entry_limit: number;
  rlimitPages: number;
  /** Task A has CAP_IPC_LOCK. */
  cap: boolean;
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
    cap: fc.constantFrom(false, false, false, true),
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
  // What the tasks may do now is not what they might when they mapped.
  if (iommu === 'late') yield { op: 'patch_task', task: 'A', cap_ipc_lock: !begin.cap };
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
export const block = (id: string, events = 1, type = 0) =>
  ({ id, events, type, priority: PRIORITIES[id] ?? 0, delivery: { kind: 'poll' } }) as const;
