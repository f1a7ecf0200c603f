// Which host pages lie behind an area that was laid out page by page, and what a driver's fault handler does for each.

import type { PfnmapPte, PfnRuns } from '../command.ts';
import { Errno } from '../errno.ts';
import { PAGES_IN_U64 } from '../lib/u64.ts';
import { MAX_EAGER_PAGES, MAX_PFN_RUNS } from '../limits.ts';
import type { Mm } from './mm.ts';

export const PTE_STATES: readonly PfnmapPte[] = ['rw', 'r', 'lazy', 'lazy-retry', 'sigbus'];

/** Immutable, but for its users. */
export interface Layout {
  /** First pfn of each run. */
  pfns: Float64Array;
  /** Number of pages up to the end of each run, ascending. */
  ends: Float64Array;
  /** Index into PTE_STATES for each page; null: all present with the permission of the area. */
  states: Uint8Array | null;
  /** Areas that name it; it goes with the last one. */
  users: number;
  /** seq at which it was made. */
  version: number;
}

/**
 * The runs as a layout of `npage` pages.
 * EINVAL: a run outside the pfns 0 .. 2^52 - 1 or without pages; counts that don't add up to npage; `ptes` of another length.
 * E2BIG: more than MAX_PFN_RUNS runs. ENOMEM: more than MAX_EAGER_PAGES pages.
 */
export function makeLayout(runs: PfnRuns, ptes: readonly PfnmapPte[] | null, npage: number, version: number): Layout {
  if (runs.length > MAX_PFN_RUNS) throw new Errno('E2BIG', `pfns: ${runs.length} runs, the limit is ${MAX_PFN_RUNS}`);
  const pfns = new Float64Array(runs.length);
  const ends = new Float64Array(runs.length);
  let sum = 0;
  for (const [i, [pfn, count]] of runs.entries()) {
    const sane = Number.isSafeInteger(pfn) && Number.isSafeInteger(count) && pfn >= 0 && count > 0;
    if (!sane || pfn + count > PAGES_IN_U64)
      throw new Errno('EINVAL', `pfns[${i}]: [${pfn}, ${count}] is no run of pages between 0 and 2^52 - 1`, {
        at_index: i,
      });
    sum += count;
    pfns[i] = pfn;
    ends[i] = sum;
  }
  if (sum !== npage) throw new Errno('EINVAL', `pfns: ${sum} pages for a length of ${npage} pages`);
  if (ptes !== null && ptes.length !== npage)
    throw new Errno('EINVAL', `ptes: ${ptes.length} states for a length of ${npage} pages`);
  if (npage > MAX_EAGER_PAGES)
    throw new Errno('ENOMEM', `length: ${npage} pages laid out at once, the limit is ${MAX_EAGER_PAGES}`);
  const states = ptes === null ? null : Uint8Array.from(ptes, (state) => PTE_STATES.indexOf(state));
  return { pfns, ends, states, users: 0, version };
}

/** The pfn of page `index` of a layout. */
export function layoutPfn(layout: Layout, index: number): number {
  const { pfns, ends } = layout;
  let low = 0;
  let high = ends.length - 1;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((ends[middle] as number) <= index) low = middle + 1;
    else high = middle;
  }
  const start = low === 0 ? 0 : (ends[low - 1] as number);
  return (pfns[low] as number) + (index - start);
}

/** The state of page `index`; null where the permission of the area decides. */
export const layoutState = (layout: Layout, index: number): PfnmapPte | null =>
  layout.states === null ? null : (PTE_STATES[layout.states[index] as number] as PfnmapPte);

export function getLayout(mm: Mm, id: number): Layout {
  const layout = mm.layouts.get(id);
  if (layout === undefined) throw new Error(`layout ${id} is missing`);
  return layout;
}

/** One area more or less names a layout. */
export function useLayout(mm: Mm, id: number, delta: 1 | -1): void {
  const layout = getLayout(mm, id);
  layout.users += delta;
  if (layout.users === 0) mm.layouts.delete(id);
}
