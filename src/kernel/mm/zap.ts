// Models zap_page_range() and exit_mmap(): entries of a page table go, and with them the references of the mapping.

import type { Host } from '../host.ts';
import { TASK_SIZE_PAGES } from '../limits.ts';
import type { MmStruct } from './mm.ts';
import { clearPte, flagsAt, isResident, PTE_DIRTY, pfnAt, walkPageRange } from './page-table.ts';
import { unlinkVmas } from './vma.ts';

/** Clears every entry of [start, end). Pins of the pages stay. */
export function zapPageRange(host: Host, mm: MmStruct, start: number, end: number): void {
  const { pages } = host.mm;
  walkPageRange(mm, start, end, (index, leaf, i) => {
    const flags = flagsAt(leaf, i);
    const pfn = pfnAt(leaf, i);
    clearPte(host, mm, index, leaf, i);
    if (isResident(flags)) pages.removeRmap(pfn, (flags & PTE_DIRTY) !== 0, host.seq);
  });
}

/** Tears an address space down. */
export function exitMmap(host: Host, mm: MmStruct): void {
  unlinkVmas(host, mm, 0, mm.vmas.areas.length);
  zapPageRange(host, mm, 0, TASK_SIZE_PAGES);
}
