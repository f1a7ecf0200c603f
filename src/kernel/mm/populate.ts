// Lays out an area page by page at mmap time: the backings 'pages' and 'pfnmap'.

import type { Backing } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { READ_ENTRY, WRITE_ENTRY, ZERO_ENTRY } from './fault.ts';
import { type Layout, layoutState } from './layout.ts';
import type { MmStruct } from './mm.ts';
import {
  chunkIndex,
  KIND_DEVICE,
  KIND_NONE,
  KIND_NORMAL,
  KIND_REMOVED,
  KIND_RESERVED,
  KIND_ZERO,
  MAX_MAPCOUNT,
  PG_CLAIMED,
} from './page-frames.ts';
import {
  missingPageTables,
  PTE_PRESENT,
  PTE_SPECIAL,
  PTE_WRITE,
  PTE_YOUNG,
  requirePageTables,
  setPte,
} from './page-table.ts';
import { VM_WRITE, type Vma } from './vma.ts';

/** Calls `visit` for each page of a layout, in address order. */
function eachPage(layout: Layout, visit: (pfn: number, index: number) => void): void {
  let index = 0;
  for (const [run, first] of layout.pfns.entries()) {
    const start = index;
    for (const end = layout.ends[run] as number; index < end; index++) visit(first + (index - start), index);
  }
}

/**
 * Whether the layout can be mapped whole at `start`.
 * ENOMEM: MAX_PAGE_TABLES; MAX_PAGE_CHUNKS; a page to be `counted` is mapped MAX_MAPCOUNT times.
 * EINVAL: a page to be `counted` has no struct page, or none any more.
 */
export function requireRoom(host: Host, mm: MmStruct, layout: Layout, start: number, counted: boolean): void {
  const { pages } = host.mm;
  const npage = layout.ends.at(-1) ?? 0;
  requirePageTables(host, missingPageTables(mm, start, start + npage));
  const missing = new Set<number>();
  let chunk = -1;
  eachPage(layout, (pfn) => {
    if (chunkIndex(pfn) !== chunk) {
      chunk = chunkIndex(pfn);
      if (!pages.chunks.has(chunk)) missing.add(chunk);
    }
    if (!counted) return;
    if (pages.kind(pfn) === KIND_DEVICE)
      throw new Errno('EINVAL', `page ${pfn} has no struct page: it can be mapped by a 'pfnmap' backing only`);
    if (pages.kind(pfn) === KIND_REMOVED)
      throw new Errno('EINVAL', `page ${pfn} has no struct page: its device was removed`);
    if (pages.mapcount(pfn) >= MAX_MAPCOUNT)
      throw new Errno('ENOMEM', `page ${pfn} is mapped ${MAX_MAPCOUNT} times, the most a page can be`);
  });
  pages.requireChunks(missing.size);
}

/** Maps each page of a 'pages' area, as after a write where it may be written; a zero page read-only and uncounted. */
export function populatePages(host: Host, mm: MmStruct, vma: Vma, layout: Layout): void {
  const { pages } = host.mm;
  const entry = (vma.flags & VM_WRITE) === 0 ? READ_ENTRY : WRITE_ENTRY;
  eachPage(layout, (pfn, index) => {
    const zero = pages.kind(pfn) === KIND_ZERO;
    if (!zero) pages.addRmap(pfn, host.seq);
    setPte(host, mm, vma.start + index, pfn, zero ? ZERO_ENTRY : entry);
  });
}

/** Maps what is present in a 'pfnmap' area, and decides the kind of pages that are not decided yet. */
export function populatePfnmap(
  host: Host,
  mm: MmStruct,
  vma: Vma,
  layout: Layout,
  { struct_page, reserved }: Extract<Backing, { kind: 'pfnmap' }>,
): void {
  const { pages } = host.mm;
  const undecided = struct_page ? (reserved ? KIND_RESERVED : KIND_NORMAL) : KIND_DEVICE;
  const writable = (vma.flags & VM_WRITE) === 0 ? 'r' : 'rw';
  eachPage(layout, (pfn, index) => {
    const kind = pages.kind(pfn);
    if (!pages.isKept(pfn)) pages.keep(pfn, kind === KIND_NONE ? undecided : kind, PG_CLAIMED, host.seq);
    const state = layoutState(layout, index) ?? writable;
    if (state !== 'rw' && state !== 'r') return;
    const write = state === 'rw' ? PTE_WRITE : 0;
    setPte(host, mm, vma.start + index, pfn, PTE_PRESENT | PTE_YOUNG | PTE_SPECIAL | write);
  });
}
