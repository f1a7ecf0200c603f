// Models the swap area and the swap cache: what became of anonymous pages that reclaim has unmapped.

import type { Host } from '../host.ts';
import { MAX_SWAP_SLOTS } from '../limits.ts';
import { isLockFree, pageLock } from '../lock.ts';
import { KIND_ANON, KIND_KSM } from './page-frames.ts';

export interface SwapSlot {
  slot: number;
  /** Entries of page tables that name it. */
  count: number;
  /** The page in the swap cache that holds what the slot holds; the cache has one reference of it. null: none. */
  pfn: number | null;
  /** What was written out, while no page is cached; null: zeros. */
  data: Uint8Array | null;
  /** seq of the last change. */
  version: number;
}

export class Swap {
  readonly slots = new Map<number, SwapSlot>();
  /** pfn -> slot: the swap cache. */
  readonly cache = new Map<number, number>();
  next_slot = 1;
}

export function slotOf(host: Host, slot: number): SwapSlot {
  const found = host.mm.swap.slots.get(slot);
  if (found === undefined) throw new Error(`swap slot ${slot} is missing`);
  return found;
}

export const inSwapCache = ({ mm: { swap } }: Host, pfn: number): boolean => swap.cache.has(pfn);

/** Models add_to_swap(): a slot for a page, and the page in the cache. False: MAX_SWAP_SLOTS are taken. */
export function addToSwap(host: Host, pfn: number): boolean {
  const { swap, pages } = host.mm;
  if (swap.slots.size >= MAX_SWAP_SLOTS) return false;
  const slot = swap.next_slot++;
  swap.slots.set(slot, { slot, count: 0, pfn, data: null, version: host.seq });
  swap.cache.set(pfn, slot);
  pages.get(pfn, host.seq);
  return true;
}

/** Models swap_duplicate(): one entry more names the slot. */
export function swapDuplicate(host: Host, slot: number): void {
  const found = slotOf(host, slot);
  found.count++;
  found.version = host.seq;
}

/** Models swap_free(): one entry less names the slot. */
export function swapFree(host: Host, slot: number): void {
  const found = slotOf(host, slot);
  found.count--;
  found.version = host.seq;
  if (found.count === 0 && found.pfn === null) host.mm.swap.slots.delete(slot);
}

/** Models free_swap_and_cache(): an entry goes for good, and with the last one the cached page that nobody maps. */
export function freeSwapAndCache(host: Host, slot: number): void {
  const { pfn } = slotOf(host, slot);
  swapFree(host, slot);
  if (pfn !== null) freeSwapCache(host, pfn);
}

/**
 * Models delete_from_swap_cache(). A slot that entries still name keeps what the page held.
 * Precondition: somebody else has a reference of the page, or nobody needs it.
 */
export function deleteFromSwapCache(host: Host, pfn: number): void {
  const { swap, pages } = host.mm;
  const slot = slotOf(host, swap.cache.get(pfn) as number);
  swap.cache.delete(pfn);
  slot.pfn = null;
  slot.version = host.seq;
  slot.data = slot.count === 0 ? null : (pages.bytes.get(pfn)?.data.slice() ?? null);
  if (slot.count === 0) swap.slots.delete(slot.slot);
  pages.put(pfn, host.seq);
}

/** Models try_to_free_swap(): a page that no entry waits for needs no slot; it is dirty from here on. */
export function tryToFreeSwap(host: Host, pfn: number): void {
  const { swap, pages } = host.mm;
  const slot = swap.cache.get(pfn);
  if (slot === undefined || slotOf(host, slot).count > 0) return;
  pages.setPteDirty(pfn, host.seq);
  deleteFromSwapCache(host, pfn);
}

/** Models free_swap_cache(): after an entry of the page has gone. Nothing for a page that is mapped or locked. */
export function freeSwapCache(host: Host, pfn: number): void {
  const { swap, pages } = host.mm;
  if (swap.cache.size === 0 || !swap.cache.has(pfn)) return;
  if (pages.mapcount(pfn) === 0 && isLockFree(host, pageLock(pfn), 'W')) tryToFreeSwap(host, pfn);
}

/** Models swapin_readahead() of one page: the cached page of a slot, read in where it is missing. ENOMEM: no page is left. */
export function readSwapPage(host: Host, slot: number): number {
  const { swap, pages } = host.mm;
  const found = slotOf(host, slot);
  if (found.pfn !== null) return found.pfn;
  const pfn = pages.alloc(KIND_ANON, host.seq);
  if (found.data !== null) pages.bytes.set(pfn, { data: found.data, version: host.seq });
  swap.cache.set(pfn, slot);
  found.pfn = pfn;
  found.data = null;
  found.version = host.seq;
  return pfn;
}

/** Models reuse_swap_page(): whether the page is of use to the one entry only that is being brought in. */
export const reuseSwapPage = (host: Host, pfn: number, slot: number): boolean =>
  host.mm.pages.kind(pfn) !== KIND_KSM && host.mm.pages.mapcount(pfn) + slotOf(host, slot).count <= 1;
