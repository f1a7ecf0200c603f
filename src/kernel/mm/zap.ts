// Models unmap_page_range(): entries of a page table go, and with them the references of the mapping.

import type { Host } from '../host.ts';
import { TASK_SIZE_PAGES } from '../limits.ts';
import type { Handlers } from '../steps.ts';
import { entryKindOf } from './entry-kinds.ts';
import { anyMm, type MmId, type MmStruct } from './mm.ts';
import {
  clearPte,
  flagsAt,
  isResident,
  type Leaf,
  PTE_DIRTY,
  PTE_PRESENT,
  PTE_TYPE_MASK,
  pfnAt,
  walkPageRange,
} from './page-table.ts';
import { waitsForPtl } from './ptl.ts';
import { freeSwapCache } from './swap.ts';
import { unlinkVmas } from './vma.ts';

export type ZapStep = { do: 'zap'; mm: MmId; start: number; end: number; cleanup?: true };

/** Clears one entry, whatever it is. */
export function zapEntry(host: Host, mm: MmStruct, index: number, leaf: Leaf, i: number): void {
  const flags = flagsAt(leaf, i);
  const pfn = pfnAt(leaf, i);
  clearPte(host, mm, index, leaf, i);
  if (isResident(flags)) {
    host.mm.pages.removeRmap(pfn, (flags & PTE_DIRTY) !== 0, host.seq);
    freeSwapCache(host, pfn);
  } else if ((flags & PTE_TYPE_MASK) !== PTE_PRESENT) entryKindOf(flags & PTE_TYPE_MASK).drop(host, pfn);
}

/** Clears every entry of [start, end). Pins of the pages stay. */
export function zapPageRange(host: Host, mm: MmStruct, start: number, end: number): void {
  walkPageRange(mm, start, end, (index, leaf, i) => zapEntry(host, mm, index, leaf, i));
}

export const zapSteps: Handlers<ZapStep> = {
  zap(host, operation, step) {
    if (!waitsForPtl(host, operation, step, step)) zapPageRange(host, anyMm(host, step.mm), step.start, step.end);
  },
};

/** Tears an address space down that nobody watches. */
export function exitMmap(host: Host, mm: MmStruct): void {
  unlinkVmas(host, mm, 0, mm.vmas.areas.length);
  zapPageRange(host, mm, 0, TASK_SIZE_PAGES);
}
