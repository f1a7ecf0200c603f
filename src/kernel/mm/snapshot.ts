// The memory side of a host as sections of plain data, and back.

import type { PendingMmuNotification } from '../outcome.ts';
import type { HostSection } from '../snapshot.ts';
import type { MappedFile } from './file.ts';
import type { Gup } from './gup-steps.ts';
import { type Layout, useLayout } from './layout.ts';
import { Mm, MmStruct } from './mm.ts';
import type { Srcu } from './mmu-notifier/srcu.ts';
import type { MmuNotifier } from './mmu-notifier/subscriptions.ts';
import { KIND_ANON, type PageChunk } from './page-frames.ts';
import { flagsAt, isResident, type Leaf, PTRS_PER_PTE, pfnAt } from './page-table.ts';
import type { SwapSlot } from './swap.ts';
import type { Task, ThreadGroup } from './task.ts';
import type { Vma } from './vma.ts';

const REST = 'mm';
const PAGES = 'mm/pages/';
const LEAF = 'mm/leaf/';
const BYTES = 'mm/bytes/';
const VMAS = 'mm/vmas/';
const FILE = 'mm/file/';
const LAYOUT = 'mm/layout/';
const SWAP = 'mm/swap/';

const MM_FIELDS = [
  'users',
  'count',
  'subscriptions',
  'locked_vm',
  'adjusted',
  'pinned_vm',
  'rss',
  'has_pinned',
  'write_protect_seq',
  'unstable',
] as const;
const PAGES_FIELDS = ['used', 'pinned', 'cursor', 'declared', 'zero_pfn'] as const;
/** Missing in checkpoints of revision 1. */
const LATER_PAGES_FIELDS = ['pins_released', 'mmio_end'] as const;
const COUNTERS = ['page_tables', 'next_pid', 'next_mm', 'next_layout', 'next_notification', 'contents'] as const;
/** Missing in checkpoints of revision 1. */
const LATER_COUNTERS = ['nonpresent', 'next_anon_vma', 'next_vma', 'next_gup'] as const;

/** What tasks of checkpoints of revision 1 lack. */
const TASK_DEFAULTS = { signal_pending: false, fatal_signal_pending: false };

type FlatMm = { id: string } & Pick<MmStruct, (typeof MM_FIELDS)[number]>;

/** Everything that is small: tasks and counters. */
interface Rest {
  total_pages: number;
  tasks: Task[];
  thread_groups: [string, ThreadGroup][];
  mms: FlatMm[];
  /** Missing in checkpoints of revision 1, as the two below. */
  zombies?: FlatMm[];
  mmu_notifiers?: MmuNotifier[];
  notifications?: PendingMmuNotification[];
  gups?: Gup[];
  pages: Pick<Mm['pages'], (typeof PAGES_FIELDS)[number]> &
    Partial<Pick<Mm['pages'], (typeof LATER_PAGES_FIELDS)[number]>>;
  srcu?: Srcu;
  next_mmu_notifier?: number;
  counters: Pick<Mm, (typeof COUNTERS)[number]> & Partial<Pick<Mm, (typeof LATER_COUNTERS)[number]>>;
  warned: string[];
  /** Missing in checkpoints of revision 1. */
  next_slot?: number;
}

interface FlatFile {
  name: string;
  indices: Float64Array;
  pfns: Float64Array;
  /** Missing in checkpoints of revision 1, as all below. */
  size?: bigint | null;
  made?: bigint | null;
  stored?: Map<number, Uint8Array>;
}

/** Immutable: its users are counted anew. */
type FlatLayout = Omit<Layout, 'users' | 'version'>;

type Flat<T> = Omit<T, 'version'>;

function pick<T extends object, K extends keyof T>(from: T, keys: readonly K[]): Pick<T, K> {
  return Object.fromEntries(keys.map((key) => [key, from[key]])) as Pick<T, K>;
}

const flatMm = (mm: MmStruct): FlatMm => ({ id: mm.id, ...pick(mm, MM_FIELDS) });

const flatRest = (mm: Mm): Rest => ({
  total_pages: mm.total_pages,
  tasks: [...mm.tasks.values()],
  thread_groups: [...mm.thread_groups],
  mms: [...mm.mms.values()].map(flatMm),
  zombies: [...mm.zombies.values()].map(flatMm),
  mmu_notifiers: [...mm.mmu_notifiers.values()],
  notifications: [...mm.notifications.values()],
  gups: [...mm.gups.values()],
  pages: pick(mm.pages, [...PAGES_FIELDS, ...LATER_PAGES_FIELDS]),
  srcu: mm.srcu,
  next_mmu_notifier: mm.next_mmu_notifier,
  counters: pick(mm, [...COUNTERS, ...LATER_COUNTERS]),
  warned: [...mm.warned],
  next_slot: mm.swap.next_slot,
});

const withoutVersion = <T extends { version: number }>({ version: _, ...flat }: T): Flat<T> => flat;

const flatFile = ({ name, pages, size, made, stored }: MappedFile): FlatFile => ({
  name,
  size,
  made,
  stored,
  indices: Float64Array.from(pages.keys()),
  pfns: Float64Array.from(pages.values()),
});

const flatLayout = ({ pfns, ends, states }: Layout): FlatLayout => ({ pfns, ends, states });

/** All of the memory side: what grows with memory knows the seq of its last change. */
export function* mmSections(mm: Mm): Iterable<HostSection> {
  yield { key: REST, version: null, data: () => flatRest(mm) };
  for (const [index, chunk] of mm.pages.chunks)
    yield { key: `${PAGES}${index}`, version: chunk.version, data: () => withoutVersion(chunk) };
  for (const [pfn, { data, version }] of mm.pages.bytes) yield { key: `${BYTES}${pfn}`, version, data: () => data };
  for (const file of mm.files.values())
    yield { key: `${FILE}${file.name}`, version: file.version, data: () => flatFile(file) };
  for (const slot of mm.swap.slots.values())
    yield { key: `${SWAP}${slot.slot}`, version: slot.version, data: () => withoutVersion(slot) };
  for (const [id, layout] of mm.layouts)
    yield { key: `${LAYOUT}${id}`, version: layout.version, data: () => flatLayout(layout) };
  for (const { id, vmas, page_table } of [...mm.mms.values(), ...mm.zombies.values()]) {
    yield { key: `${VMAS}${id}`, version: vmas.version, data: () => vmas.areas };
    for (const [index, leaf] of page_table.leaves)
      yield { key: `${LEAF}${id}/${index}`, version: leaf.version, data: () => withoutVersion(leaf) };
  }
}

function getMm(mm: Mm, id: string, key: string): MmStruct {
  const found = mm.mms.get(id) ?? mm.zombies.get(id);
  if (found === undefined) throw new Error(`section '${key}' belongs to no mm`);
  return found;
}

/** Puts one section back where it came from. Keys of other parts of the host are passed over. */
function restoreSection(mm: Mm, key: string, data: unknown): void {
  if (key.startsWith(PAGES)) {
    mm.pages.chunks.set(Number(key.slice(PAGES.length)), { ...(data as Flat<PageChunk>), version: 0 });
  } else if (key.startsWith(BYTES)) {
    mm.pages.bytes.set(Number(key.slice(BYTES.length)), { data: data as Uint8Array, version: 0 });
  } else if (key.startsWith(FILE)) {
    const { name, indices, pfns, size = null, made = null, stored = new Map() } = data as FlatFile;
    const pages = new Map<number, number>();
    for (const [i, index] of indices.entries()) pages.set(index, pfns[i] as number);
    mm.files.set(name, { name, pages, size, made, stored, version: 0 });
  } else if (key.startsWith(LAYOUT)) {
    mm.layouts.set(Number(key.slice(LAYOUT.length)), { ...(data as FlatLayout), users: 0, version: 0 });
  } else if (key.startsWith(SWAP)) {
    const slot = { ...(data as Flat<SwapSlot>), version: 0 };
    mm.swap.slots.set(slot.slot, slot);
    if (slot.pfn !== null) mm.swap.cache.set(slot.pfn, slot.slot);
  } else if (key.startsWith(VMAS)) {
    getMm(mm, key.slice(VMAS.length), key).vmas.areas = data as Vma[];
  } else if (key.startsWith(LEAF)) {
    const [id, index] = key.slice(LEAF.length).split('/') as [string, string];
    getMm(mm, id, key).page_table.addLeaf(Number(index), { ...(data as Flat<Leaf>), version: 0 });
  }
}

/** The memory side from the sections of a host by key; it takes the data over. */
export function restoreMm(data: ReadonlyMap<string, unknown>): Mm {
  const rest = data.get(REST) as Rest | undefined;
  if (rest === undefined) throw new Error(`the section '${REST}' is missing`);
  const mm = new Mm(rest.total_pages);
  // In the order of their own fields, so that the next checkpoint finds them unchanged.
  for (const task of rest.tasks) mm.tasks.set(task.id, Object.assign({}, task, { locks: [], ...TASK_DEFAULTS }, task));
  for (const [leader, group] of rest.thread_groups) mm.thread_groups.set(leader, group);
  for (const { id, ...fields } of rest.mms) mm.mms.set(id, Object.assign(new MmStruct(id), fields));
  for (const { id, ...fields } of rest.zombies ?? []) mm.zombies.set(id, Object.assign(new MmStruct(id), fields));
  for (const notifier of rest.mmu_notifiers ?? []) mm.mmu_notifiers.set(notifier.id, notifier);
  for (const pending of rest.notifications ?? []) mm.notifications.set(pending.notification.id, pending);
  for (const gup of rest.gups ?? []) mm.gups.set(gup.id, gup);
  if (rest.srcu !== undefined) mm.srcu = rest.srcu;
  mm.next_mmu_notifier = rest.next_mmu_notifier ?? 1;
  Object.assign(mm.pages, rest.pages);
  Object.assign(mm, rest.counters);
  mm.swap.next_slot = rest.next_slot ?? 1;
  for (const where of rest.warned) mm.warned.add(where);
  for (const [key, section] of data) restoreSection(mm, key, section);
  for (const { vmas, page_table } of [...mm.mms.values(), ...mm.zombies.values()])
    for (const vma of vmas.areas) {
      if (vma.layout !== null) useLayout(mm, vma.layout, 1);
      if (vma.ops === undefined) vma.ops = null;
      if (vma.anon_vma === undefined) vma.anon_vma = hasAnonPage(mm, page_table, vma) ? mm.next_anon_vma++ : null;
    }
  return mm;
}

/** Whether an area of a checkpoint of revision 1, which says nothing of it, has anonymous pages. */
function hasAnonPage({ pages }: Mm, page_table: MmStruct['page_table'], { start, end }: Vma): boolean {
  for (const [index, leaf] of page_table.leaves)
    for (let i = 0; i < PTRS_PER_PTE; i++) {
      const page = index * PTRS_PER_PTE + i;
      if (page >= start && page < end && isResident(flagsAt(leaf, i)) && pages.kind(pfnAt(leaf, i)) === KIND_ANON)
        return true;
    }
  return false;
}
