// Models isolate_lru_page(): a page is taken off its list by one operation at a time, which then holds a reference of it.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { PAGES_IN_U64 } from '../lib/u64.ts';
import type { Step } from '../steps.ts';
import { KIND_ANON, KIND_FILE, KIND_KSM } from './page-frames.ts';

/** Kinds of pages that are on a list of the reclaimer. */
const ON_LRU: readonly number[] = [KIND_ANON, KIND_FILE, KIND_KSM];

/** Operations that isolate the page that they are about. */
const ISOLATING: readonly string[] = ['reclaim', 'migrate'];

/** EINVAL: no pfn. ENOENT: nobody uses the frame. */
export function requireUsedPage(host: Host, pfn: number): void {
  if (!Number.isSafeInteger(pfn) || pfn < 0 || pfn >= PAGES_IN_U64)
    throw new Errno('EINVAL', `pfn: ${pfn} is not between 0 and 2^52 - 1`);
  if (host.mm.pages.refcount(pfn) === 0) throw new Errno('ENOENT', `page ${pfn} is not in use`);
}

/**
 * EINVAL: no pfn. ENOENT: nobody uses the frame. EBUSY: the page is on no list (neither anonymous nor of a file), or another
 * operation has isolated it.
 */
export function requireIsolated(host: Host, pfn: number): void {
  requireUsedPage(host, pfn);
  if (!ON_LRU.includes(host.mm.pages.kind(pfn)))
    throw new Errno('EBUSY', `page ${pfn} is neither anonymous nor of a file: nothing moves or reclaims it`);
  for (const { id, kind, state, thread } of host.operations.values())
    if (state !== 'done' && ISOLATING.includes(kind) && thread?.pages.includes(pfn))
      throw new Errno('EBUSY', `page ${pfn} is isolated by ${id}`);
}

/** Steps with a reference of a page. */
export const isolateSteps = (pfn: number, steps: readonly Step[]): Step[] => [
  { do: 'get_page', pfn },
  ...steps,
  { do: 'put_page', pfn, cleanup: true },
];
