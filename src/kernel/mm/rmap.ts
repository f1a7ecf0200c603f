// Models mm/rmap.c: who maps a page. Found by walking areas and page tables, which costs nothing while nobody asks.
//
// The order is fixed. A page of a file: the areas of the file as in its i_mmap tree (by their first page in the file, then
// by the age of the mm, then by address). Any other page: by the age of the mm, then by address. Entries whose area is
// already off the list of its mm, as in the middle of a munmap, come last.

import type { Host } from '../host.ts';
import type { LockId, LockMode } from '../lock.ts';
import type { Handlers, Step } from '../steps.ts';
import { keyOfPage } from './file.ts';
import { anyMm, type MmId, type MmStruct, mmdrop, mmgrab } from './mm.ts';
import { KIND_FILE } from './page-frames.ts';
import {
  flagsAt,
  type Leaf,
  PTE_DEVICE_EXCLUSIVE,
  PTE_MIGRATION,
  PTE_PRESENT,
  PTE_SPECIAL,
  PTE_TYPE_MASK,
  PTRS_PER_PTE,
  pfnAt,
} from './page-table.ts';
import { type Vma, vmaAt } from './vma.ts';

/** An entry that maps a page. `vma` null: its area is being unmapped. */
export interface Mapping {
  mm: MmId;
  page: number;
  vma: Vma | null;
}

export const iMmapLock = (file: string): LockId => `i_mmap:${file}`;
export const anonVmaLock = (root: number): LockId => `anon_vma:${root}`;

/** All address spaces, the oldest first, with those that are being torn down. */
export const everyMm = ({ mm: { mms, zombies } }: Host): MmStruct[] => [...mms.values(), ...zombies.values()];

/** Areas of a file that contain one of its pages [first, end), in the order of i_mmap. */
export function areasOf(host: Host, file: string, first: number, end: number): { mm: MmStruct; vma: Vma }[] {
  const found: { mm: MmStruct; vma: Vma }[] = [];
  for (const mm of everyMm(host))
    for (const vma of mm.vmas.areas)
      if (vma.file === file && vma.start - vma.origin < end && vma.end - vma.origin > first) found.push({ mm, vma });
  return found.sort((a, b) => a.vma.start - a.vma.origin - (b.vma.start - b.vma.origin));
}

/** Entries of one mm that are of a type and name a page, by address; at most `most`. */
function entriesIn(mm: MmStruct, pfn: number, type: number, most: number): number[] {
  const found: number[] = [];
  const { leaves } = mm.page_table;
  for (const index of [...leaves.keys()].sort((a, b) => a - b)) {
    const leaf = leaves.get(index) as Leaf;
    for (let i = 0; i < PTRS_PER_PTE && found.length < most; i++)
      if ((flagsAt(leaf, i) & (PTE_TYPE_MASK | PTE_SPECIAL)) === type && pfnAt(leaf, i) === pfn)
        found.push(index * PTRS_PER_PTE + i);
    if (found.length >= most) break;
  }
  return found;
}

function entriesOf(host: Host, pfn: number, type: number, most: number): Mapping[] {
  const found: Mapping[] = [];
  for (const mm of everyMm(host)) {
    if (found.length >= most) break;
    for (const page of entriesIn(mm, pfn, type, most - found.length))
      found.push({ mm: mm.id, page, vma: vmaAt(mm, page) });
  }
  return found;
}

const maps = ({ page_table }: MmStruct, page: number, pfn: number): boolean =>
  (page_table.flags(page) & (PTE_TYPE_MASK | PTE_SPECIAL)) === PTE_PRESENT && page_table.pfn(page) === pfn;

/** Every entry that maps a page, in the order above. The walk ends when mapcount entries are found. */
export function rmapOf(host: Host, pfn: number): Mapping[] {
  const most = host.mm.pages.mapcount(pfn);
  if (most === 0) return [];
  const key = host.mm.pages.kind(pfn) === KIND_FILE ? keyOfPage(host, pfn) : null;
  if (key === null) return entriesOf(host, pfn, PTE_PRESENT, most);
  const found: Mapping[] = [];
  for (const { mm, vma } of areasOf(host, key.file, key.index, key.index + 1)) {
    const page = vma.origin + key.index;
    if (maps(mm, page, pfn)) found.push({ mm: mm.id, page, vma });
  }
  if (found.length >= most) return found;
  const known = new Set(found.map(({ mm, page }) => `${mm} ${page}`));
  const rest = entriesOf(host, pfn, PTE_PRESENT, most).filter(({ mm, page }) => !known.has(`${mm} ${page}`));
  return [...found, ...rest];
}

/** Every migration entry that stands for a page. */
export const migrationEntriesOf = (host: Host, pfn: number): Mapping[] =>
  entriesOf(host, pfn, PTE_MIGRATION, Number.POSITIVE_INFINITY);

/** Every device-exclusive entry that stands for a page. */
export const exclusiveEntriesOf = (host: Host, pfn: number): Mapping[] =>
  entriesOf(host, pfn, PTE_DEVICE_EXCLUSIVE, Number.POSITIVE_INFINITY);

/**
 * The locks that keep the reverse map of a page as it is. A file has its i_mmap. Anonymous memory has the anon_vma of its areas,
 * which forked areas share; a page merged by KSM may have several.
 */
export function rmapLocks(host: Host, pfn: number): LockId[] {
  const key = host.mm.pages.kind(pfn) === KIND_FILE ? keyOfPage(host, pfn) : null;
  if (key !== null) return [iMmapLock(key.file)];
  const roots = [...rmapOf(host, pfn), ...migrationEntriesOf(host, pfn)].map(({ vma }) => vma?.anon_vma ?? null);
  return [...new Set(roots.filter((root) => root !== null).map(anonVmaLock))];
}

export type RmapStep =
  /** The structure of an mm stays until `mmdrop`, whoever exits meanwhile. */
  { do: 'mmgrab'; mm: MmId; cleanup?: true } | { do: 'mmdrop'; mm: MmId; cleanup: true };

/** Steps in an address space that the thread is no user of, and that may be torn down in their middle: it is kept from now on. */
export function inMm(host: Host, mm: MmId, steps: readonly Step[]): Step[] {
  mmgrab(anyMm(host, mm));
  return [...steps, { do: 'mmdrop', mm, cleanup: true }];
}

export const rmapSteps: Handlers<RmapStep> = {
  mmgrab: (host, _operation, { mm }) => mmgrab(anyMm(host, mm)),
  mmdrop: (host, _operation, { mm }) => mmdrop(host, anyMm(host, mm)),
};

/** Steps under locks, which are released in the end however the steps end. */
export const under = (locks: readonly LockId[], mode: LockMode, steps: readonly Step[]): Step[] => [
  ...locks.map((lock) => ({ do: 'lock', lock, mode }) as const),
  ...steps,
  ...[...locks].reverse().map((lock) => ({ do: 'unlock', lock, cleanup: true }) as const),
];
