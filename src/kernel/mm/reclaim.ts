// Models shrink_page_list() of mm/vmscan.c for one page: unmap it, and free it if nobody else needs it.

import type { Command } from '../command.ts';
import type { Host } from '../host.ts';
import { pageLock } from '../lock.ts';
import type { Done } from '../outcome.ts';
import type { Handlers } from '../steps.ts';
import { pushSteps, runOperation, type ThreadOperation } from '../thread.ts';
import { dropFromCache, getFile, keyOfPage } from './file.ts';
import { isolateSteps, requireIsolated } from './isolate.ts';
import { anyMm } from './mm.ts';
import { maybeDmaPinned } from './page.ts';
import { KIND_FILE } from './page-frames.ts';
import { PTE_DIRTY } from './page-table.ts';
import { rmapOf } from './rmap.ts';
import { addToSwap, deleteFromSwapCache, inSwapCache } from './swap.ts';

export type ReclaimStep =
  | { do: 'reclaim_page'; pfn: number; cleanup?: true }
  | { do: 'reclaim_free'; pfn: number; cleanup?: true };

/** Why a page was kept. */
type Kept = 'locked' | 'pinned' | 'no_swap' | 'mapped' | 'dirty' | 'referenced';

function keep({ thread }: ThreadOperation, kept: Kept): void {
  thread.ret = 0;
  thread.fields = { freed: false, kept };
}

/** MADV_FREE has made every entry clean, and nobody has written since: the bytes may be lost. */
const isLazyFree = (host: Host, pfn: number): boolean =>
  !host.mm.pages.needsWriteback(pfn) &&
  rmapOf(host, pfn).every(({ mm, page }) => (anyMm(host, mm).page_table.flags(page) & PTE_DIRTY) === 0);

/**
 * Reclaims one page. Answers 1 where it was freed; otherwise 0, and `kept` says why: locked, pinned (refused before anything is
 * unmapped), no_swap, mapped, dirty (a page of a file that has to be written back first), referenced.
 * EINVAL, ENOENT, EBUSY as requireIsolated().
 */
export function reclaim(host: Host, { pfn, stop_at }: Extract<Command, { op: 'reclaim' }>): Done {
  requireIsolated(host, pfn);
  return runOperation(
    host,
    { kind: 'reclaim', locals: { task: null, mm: null } },
    isolateSteps(pfn, [
      { do: 'trylock', lock: pageLock(pfn), mode: 'W' },
      { do: 'reclaim_page', pfn },
      { do: 'unlock', lock: pageLock(pfn), cleanup: true },
    ]),
    stop_at ?? null,
  );
}

export const reclaimSteps: Handlers<ReclaimStep> = {
  reclaim_page(host, operation, { pfn }) {
    if (operation.thread.returned === 0) {
      keep(operation, 'locked');
      return;
    }
    const file = host.mm.pages.kind(pfn) === KIND_FILE;
    const lazy = !file && !inSwapCache(host, pfn) && isLazyFree(host, pfn);
    if (!file && !lazy && !inSwapCache(host, pfn)) {
      if (host.profile.reclaimOfPinned === 'refused' && maybeDmaPinned(host, pfn)) {
        keep(operation, 'pinned');
        return;
      }
      if (!addToSwap(host, pfn)) {
        keep(operation, 'no_swap');
        return;
      }
    }
    pushSteps(operation, [
      { do: 'try_to_unmap', pfn, by: file || lazy ? 'none' : 'swap' },
      { do: 'reclaim_free', pfn },
    ]);
  },

  /** Models __remove_mapping(): only the cache and the reclaimer may still have references. */
  reclaim_free(host, operation, { pfn }) {
    const { pages } = host.mm;
    if (pages.mapcount(pfn) > 0) {
      keep(operation, 'mapped');
      return;
    }
    const key = keyOfPage(host, pfn);
    if (key !== null && pages.needsWriteback(pfn)) {
      keep(operation, 'dirty');
      return;
    }
    const cached = key !== null || inSwapCache(host, pfn);
    if (pages.refcount(pfn) !== (cached ? 2 : 1)) {
      keep(operation, 'referenced');
      return;
    }
    if (key !== null) dropFromCache(host, getFile(host, key.file), key.index);
    else if (inSwapCache(host, pfn)) deleteFromSwapCache(host, pfn);
    operation.thread.ret = 1;
    operation.thread.fields = { freed: true, kept: null };
  },
};
