// Models try_to_unmap() and try_to_migrate() of mm/rmap.c: every entry that maps a page goes, with one event for each.

import { type Host, trace } from '../host.ts';
import { addressOf } from '../lib/u64.ts';
import { pageLock } from '../lock.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, type ThreadOperation } from '../thread.ts';
import { clearPteAt } from './fault-steps.ts';
import { anyMm, type MmId } from './mm.ts';
import { invalidation } from './mmu-notifier/invalidation.ts';
import { KIND_FILE } from './page-frames.ts';
import {
  isResident,
  PTE_DIRTY,
  PTE_MIGRATION,
  PTE_SWAP,
  PTE_TYPE_MASK,
  PTE_WRITE,
  PTE_YOUNG,
  setPte,
} from './page-table.ts';
import { underPtl } from './ptl.ts';
import { inMm, rmapLocks, rmapOf, under } from './rmap.ts';
import { swapDuplicate } from './swap.ts';

/** What takes the place of an entry: nothing, the slot that holds the page, or a mark that it is on its way. */
export type Replacement = 'none' | 'swap' | 'migration';

export type UnmapStep =
  /** Precondition: the page is locked. */
  | { do: 'try_to_unmap'; pfn: number; by: Replacement; cleanup?: true }
  | { do: 'unmap_each'; pfn: number; by: Replacement; cleanup?: true }
  | { do: 'unmap_one'; pfn: number; by: Replacement; mm: MmId; page: number; cleanup?: true }
  | { do: 'set_entry'; pfn: number; by: Replacement; mm: MmId; page: number; flags: number; cleanup?: true }
  /** Takes a reference that the thread holds until `put_page`. */
  | { do: 'get_page'; pfn: number; cleanup?: true };

/** Flags that an entry keeps while its page is away: all but what the hardware sets, and the type. */
const AWAY = ~(PTE_TYPE_MASK | PTE_DIRTY | PTE_YOUNG);

/** Takes one more reference, for the thread. */
export function getPage(host: Host, { thread }: ThreadOperation, pfn: number): void {
  host.mm.pages.get(pfn, host.seq);
  thread.pages.push(pfn);
}

/** Steps on a locked page, which the thread waits for. */
export const underPageLock = (pfn: number, steps: readonly Step[]): Step[] => [
  { do: 'lock', lock: pageLock(pfn), mode: 'W' },
  ...steps,
  { do: 'unlock', lock: pageLock(pfn), cleanup: true },
];

export const unmapSteps: Handlers<UnmapStep> = {
  get_page: (host, operation, { pfn }) => getPage(host, operation, pfn),

  try_to_unmap(host, operation, { pfn, by }) {
    if (host.mm.pages.mapcount(pfn) === 0) return;
    pushSteps(operation, under(rmapLocks(host, pfn), 'R', [{ do: 'unmap_each', pfn, by }]));
  },

  unmap_each(host, operation, { pfn, by }) {
    const pairs = rmapOf(host, pfn).flatMap(({ mm, page }) =>
      inMm(
        host,
        mm,
        invalidation(
          { mm, start: page, end: page + 1, event: 'CLEAR', blockable: true, owner: null },
          underPtl(mm, page, [{ do: 'unmap_one', pfn, by, mm, page }]),
        ),
      ),
    );
    pushSteps(operation, pairs);
  },

  /**
   * The entry goes, and its reference; a dirty one leaves its mark on the page first. What it pointed to may be freed before
   * the end where it is anonymous and not only moved: secondary TLBs are told under the lock.
   */
  unmap_one(host, operation, { pfn, by, mm: id, page }) {
    const mm = anyMm(host, id);
    const { pages } = host.mm;
    const flags = mm.page_table.flags(page);
    if (!isResident(flags) || mm.page_table.pfn(page) !== pfn) return;
    clearPteAt(host, operation, mm, page);
    pages.removeRmap(pfn, (flags & PTE_DIRTY) !== 0, host.seq);
    const tells = by !== 'migration' && pages.kind(pfn) !== KIND_FILE;
    pushSteps(operation, [
      { do: 'phase', phase: 'after_pte_clear' },
      ...(by === 'none' ? [] : [{ do: 'set_entry', pfn, by, mm: id, page, flags } as const]),
      ...(tells ? [{ do: 'invalidate_range', mm: id, start: page, end: page + 1 } as const] : []),
      ...(by === 'none' ? [] : [{ do: 'phase', phase: 'after_pte_set' } as const]),
    ]);
  },

  set_entry(host, operation, { pfn, by, mm: id, page, flags }) {
    const mm = anyMm(host, id);
    if (by === 'swap') {
      const slot = host.mm.swap.cache.get(pfn) as number;
      swapDuplicate(host, slot);
      setPte(host, mm, page, slot, (flags & AWAY & ~PTE_WRITE) | PTE_SWAP);
      trace(host, 'pte', operation.id, { change: 'swap', addr: addressOf(page), entry: slot });
    } else {
      setPte(host, mm, page, pfn, (flags & AWAY) | PTE_MIGRATION);
      trace(host, 'pte', operation.id, { change: 'migration', addr: addressOf(page), entry: pfn });
    }
  },
};
