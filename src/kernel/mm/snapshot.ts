// The memory side of a host as sections of plain data, and back.

import type { HostSection } from '../snapshot.ts';
import type { MappedFile } from './file.ts';
import { type Layout, useLayout } from './layout.ts';
import { Mm, MmStruct } from './mm.ts';
import type { PageChunk } from './page-frames.ts';
import type { Leaf } from './page-table.ts';
import type { Task, ThreadGroup } from './task.ts';
import type { Vma } from './vma.ts';

const REST = 'mm';
const PAGES = 'mm/pages/';
const LEAF = 'mm/leaf/';
const BYTES = 'mm/bytes/';
const VMAS = 'mm/vmas/';
const FILE = 'mm/file/';
const LAYOUT = 'mm/layout/';

const MM_FIELDS = ['users', 'locked_vm', 'adjusted', 'pinned_vm', 'rss', 'has_pinned'] as const;
const PAGES_FIELDS = ['used', 'pinned', 'cursor', 'declared', 'zero_pfn'] as const;
const COUNTERS = ['page_tables', 'next_pid', 'next_mm', 'next_layout', 'contents'] as const;

/** Everything that is small: tasks and counters. */
interface Rest {
  total_pages: number;
  tasks: Task[];
  thread_groups: [string, ThreadGroup][];
  mms: ({ id: string } & Pick<MmStruct, (typeof MM_FIELDS)[number]>)[];
  pages: Pick<Mm['pages'], (typeof PAGES_FIELDS)[number]>;
  counters: Pick<Mm, (typeof COUNTERS)[number]>;
  warned: string[];
}

interface FlatFile {
  name: string;
  indices: Float64Array;
  pfns: Float64Array;
}

/** Immutable: its users are counted anew. */
type FlatLayout = Omit<Layout, 'users' | 'version'>;

type Flat<T> = Omit<T, 'version'>;

function pick<T extends object, K extends keyof T>(from: T, keys: readonly K[]): Pick<T, K> {
  return Object.fromEntries(keys.map((key) => [key, from[key]])) as Pick<T, K>;
}

const flatRest = (mm: Mm): Rest => ({
  total_pages: mm.total_pages,
  tasks: [...mm.tasks.values()],
  thread_groups: [...mm.thread_groups],
  mms: [...mm.mms.values()].map((each) => ({ id: each.id, ...pick(each, MM_FIELDS) })),
  pages: pick(mm.pages, PAGES_FIELDS),
  counters: pick(mm, COUNTERS),
  warned: [...mm.warned],
});

const withoutVersion = <T extends { version: number }>({ version: _, ...flat }: T): Flat<T> => flat;

const flatFile = ({ name, pages }: MappedFile): FlatFile => ({
  name,
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
  for (const [id, layout] of mm.layouts)
    yield { key: `${LAYOUT}${id}`, version: layout.version, data: () => flatLayout(layout) };
  for (const { id, vmas, page_table } of mm.mms.values()) {
    yield { key: `${VMAS}${id}`, version: vmas.version, data: () => vmas.areas };
    for (const [index, leaf] of page_table.leaves)
      yield { key: `${LEAF}${id}/${index}`, version: leaf.version, data: () => withoutVersion(leaf) };
  }
}

function getMm(mm: Mm, id: string, key: string): MmStruct {
  const found = mm.mms.get(id);
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
    const { name, indices, pfns } = data as FlatFile;
    const pages = new Map<number, number>();
    for (const [i, index] of indices.entries()) pages.set(index, pfns[i] as number);
    mm.files.set(name, { name, pages, version: 0 });
  } else if (key.startsWith(LAYOUT)) {
    mm.layouts.set(Number(key.slice(LAYOUT.length)), { ...(data as FlatLayout), users: 0, version: 0 });
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
  for (const task of rest.tasks) mm.tasks.set(task.id, task);
  for (const [leader, group] of rest.thread_groups) mm.thread_groups.set(leader, group);
  for (const { id, ...fields } of rest.mms) mm.mms.set(id, Object.assign(new MmStruct(id), fields));
  Object.assign(mm.pages, rest.pages);
  Object.assign(mm, rest.counters);
  for (const where of rest.warned) mm.warned.add(where);
  for (const [key, section] of data) restoreSection(mm, key, section);
  for (const { vmas } of mm.mms.values())
    for (const { layout } of vmas.areas) if (layout !== null) useLayout(mm, layout, 1);
  return mm;
}
