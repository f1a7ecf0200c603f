// Models the page table of one mm: leaves of 512 entries, as on x86-64, which exist only where something was mapped.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { printRange } from '../lib/u64.ts';
import { MAX_PAGE_TABLES } from '../limits.ts';
import type { MmStruct } from './mm.ts';

export const PTRS_PER_PTE = 512;
const SLOT_MASK = PTRS_PER_PTE - 1;

// An entry is two words: the low 32 bits of the pfn (or swap slot), then its high 20 bits above 12 bits of type and flags.
export const PTE_TYPE_MASK = 0xf;
export const PTE_NONE = 0;
export const PTE_PRESENT = 1;
export const PTE_SWAP = 2;
export const PTE_MIGRATION = 3;
export const PTE_DEVICE_EXCLUSIVE = 4;
export const PTE_DEVICE_PRIVATE = 5;
export const PTE_HWPOISON = 6;
export const PTE_WRITE = 1 << 4;
export const PTE_DIRTY = 1 << 5;
export const PTE_YOUNG = 1 << 6;
/** The page is not counted in refcount and mapcount: the zero page, and everything in a VM_PFNMAP area. */
export const PTE_SPECIAL = 1 << 7;
/** Written since clear_soft_dirty. */
export const PTE_SOFT_DIRTY = 1 << 8;
/** The anonymous page belongs to this entry alone (PG_anon_exclusive); kept in swap entries too. */
export const PTE_ANON_EXCLUSIVE = 1 << 9;
const FLAGS_MASK = 0xfff;
const LOW_WORD = 2 ** 32;

/** One page of page-table entries. */
export interface Leaf {
  /** 1024 words, two an entry. */
  words: Uint32Array;
  /** Entries that are not none. */
  used: number;
  /** seq of the last change. */
  version: number;
}

export class PageTable {
  /** By page number / 512. A leaf whose last entry goes is dropped. */
  readonly leaves = new Map<number, Leaf>();
  private last_index = -1;
  private last_leaf: Leaf | undefined;

  leaf(index: number): Leaf | undefined {
    if (index !== this.last_index) {
      this.last_leaf = this.leaves.get(index);
      this.last_index = index;
    }
    return this.last_leaf;
  }

  addLeaf(index: number, leaf: Leaf): void {
    this.leaves.set(index, leaf);
    this.last_index = -1;
  }

  deleteLeaf(index: number): void {
    this.leaves.delete(index);
    this.last_index = -1;
  }

  /** Type and flags of a page's entry; 0 where there is none. */
  flags(page: number): number {
    const leaf = this.leaf(leafIndex(page));
    return leaf === undefined ? PTE_NONE : (leaf.words[2 * (page & SLOT_MASK) + 1] as number) & FLAGS_MASK;
  }

  /** The pfn in a page's entry. Precondition: the entry is not none. */
  pfn(page: number): number {
    const leaf = this.leaf(leafIndex(page)) as Leaf;
    return pfnAt(leaf, page & SLOT_MASK);
  }
}

export const leafIndex = (page: number): number => Math.floor(page / PTRS_PER_PTE);

export const pfnAt = (leaf: Leaf, i: number): number =>
  ((leaf.words[2 * i + 1] as number) >>> 12) * LOW_WORD + (leaf.words[2 * i] as number);

export const flagsAt = (leaf: Leaf, i: number): number => (leaf.words[2 * i + 1] as number) & FLAGS_MASK;

/** Whether an entry counts in the resident set: a present page that has a struct page behind it. */
export const isResident = (flags: number): boolean => (flags & (PTE_TYPE_MASK | PTE_SPECIAL)) === PTE_PRESENT;

/** Whether an entry, or one of two, is neither none nor present: a fault on it is more than a look at the area. */
const isNonpresent = (flags: number): boolean => (flags & PTE_TYPE_MASK) > PTE_PRESENT;

/** The leaf of a page, made where it is missing. */
function pteAlloc(host: Host, mm: MmStruct, page: number): Leaf {
  const index = leafIndex(page);
  const leaf = mm.page_table.leaf(index);
  if (leaf !== undefined) return leaf;
  const fresh: Leaf = { words: new Uint32Array(2 * PTRS_PER_PTE), used: 0, version: host.seq };
  mm.page_table.addLeaf(index, fresh);
  host.mm.page_tables++;
  return fresh;
}

/** ENOMEM: `count` more leaves would be more than MAX_PAGE_TABLES. */
export function requirePageTables(host: Host, count: number): void {
  if (host.mm.page_tables + count > MAX_PAGE_TABLES)
    throw new Errno('ENOMEM', `${count} page tables more: the host has ${host.mm.page_tables} of ${MAX_PAGE_TABLES}`);
}

/** Leaves that [start, end) would add to an mm. */
export function missingPageTables(mm: MmStruct, start: number, end: number): number {
  const first = leafIndex(start);
  const last = leafIndex(end - 1);
  let missing = 0;
  for (let index = first; index <= last; index++) if (!mm.page_table.leaves.has(index)) missing++;
  return missing;
}

/**
 * Sets a page's entry, whatever it was.
 * Preconditions: requirePageTables() was asked; the caller settles the references of the old and of the new page.
 */
export function setPte(host: Host, mm: MmStruct, page: number, pfn: number, flags: number): void {
  const leaf = pteAlloc(host, mm, page);
  const at = 2 * (page & SLOT_MASK);
  const old = (leaf.words[at + 1] as number) & FLAGS_MASK;
  leaf.words[at] = pfn >>> 0;
  leaf.words[at + 1] = (Math.floor(pfn / LOW_WORD) * 4096 + flags) >>> 0;
  if ((old & PTE_TYPE_MASK) === PTE_NONE) leaf.used++;
  mm.rss += Number(isResident(flags)) - Number(isResident(old));
  if (isNonpresent(flags | old)) host.mm.nonpresent += Number(isNonpresent(flags)) - Number(isNonpresent(old));
  leaf.version = host.seq;
}

/** Replaces the flags of entry i of a leaf; its type stays. */
export function setPteFlags(host: Host, leaf: Leaf, i: number, flags: number): void {
  const word = leaf.words[2 * i + 1] as number;
  if ((word & FLAGS_MASK) === flags) return;
  leaf.words[2 * i + 1] = ((word & ~FLAGS_MASK) | flags) >>> 0;
  leaf.version = host.seq;
}

/** Makes entry i of the leaf at `index` none. The leaf goes with its last entry. */
export function clearPte(host: Host, mm: MmStruct, index: number, leaf: Leaf, i: number): void {
  const old = flagsAt(leaf, i);
  mm.rss -= Number(isResident(old));
  if (isNonpresent(old)) host.mm.nonpresent--;
  leaf.words[2 * i] = 0;
  leaf.words[2 * i + 1] = 0;
  leaf.used--;
  leaf.version = host.seq;
  if (leaf.used > 0) return;
  mm.page_table.deleteLeaf(index);
  host.mm.page_tables--;
}

/** Calls `visit` for every entry of [start, end) that is not none. `visit` may clear that entry. */
export function walkPageRange(
  mm: MmStruct,
  start: number,
  end: number,
  visit: (index: number, leaf: Leaf, i: number, page: number) => void,
): void {
  const first = leafIndex(start);
  const last = leafIndex(end - 1);
  const { leaves } = mm.page_table;
  const indices: number[] = [];
  if (last - first < leaves.size) for (let index = first; index <= last; index++) indices.push(index);
  else for (const index of leaves.keys()) if (index >= first && index <= last) indices.push(index);
  for (const index of indices) {
    const leaf = leaves.get(index);
    if (leaf === undefined) continue;
    const base = index * PTRS_PER_PTE;
    const from = Math.max(start - base, 0);
    const to = Math.min(end - base, PTRS_PER_PTE);
    for (let i = from; i < to; i++)
      if (((leaf.words[2 * i + 1] as number) & PTE_TYPE_MASK) !== PTE_NONE) visit(index, leaf, i, base + i);
  }
}

/** For messages. */
export const printPage = (page: number): string => printRange(page, 1);
