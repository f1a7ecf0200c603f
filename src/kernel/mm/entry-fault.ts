// Models do_swap_page(), migration_entry_wait() and the page locks of filemap_fault(): faults that take more than an entry, and
// what an unmap and a fork do with entries that name a swap slot or a page on its way.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { holds, isLockFree, pageLock } from '../lock.ts';
import type { Handlers } from '../steps.ts';
import { pushSteps, type ThreadOperation } from '../thread.ts';
import type { EntryKind, ForkedEntry } from './entry-kinds.ts';
import { allowRetryFirst, type Fault, VM_FAULT_OOM } from './fault-flags.ts';
import { tracePte } from './fault-steps.ts';
import { anyMm, type MmId, type MmStruct } from './mm.ts';
import { KIND_KSM } from './page-frames.ts';
import {
  PTE_ANON_EXCLUSIVE,
  PTE_DIRTY,
  PTE_NONE,
  PTE_PRESENT,
  PTE_SOFT_DIRTY,
  PTE_SWAP,
  PTE_TYPE_MASK,
  PTE_WRITE,
  PTE_YOUNG,
  setPte,
} from './page-table.ts';
import { underPtl } from './ptl.ts';
import {
  deleteFromSwapCache,
  freeSwapAndCache,
  readSwapPage,
  reuseSwapPage,
  slotOf,
  swapDuplicate,
  swapFree,
  tryToFreeSwap,
} from './swap.ts';
import { getPage } from './unmap-page.ts';
import { isCowMapping, VM_LOCKED, VM_SHARED, VM_WRITE, type Vma, vmaAt } from './vma.ts';

interface SwapIn {
  mm: MmId;
  page: number;
  write: boolean;
  slot: number;
  pfn: number;
}

export type EntryFaultStep =
  /** After lock_page_or_retry: nothing where it says RETRY. */
  { do: 'swap_locked'; at: SwapIn; cleanup?: true } | { do: 'swap_in'; at: SwapIn; cleanup?: true };

/** null: no memory; the fault ends with VM_FAULT_OOM. */
function orOom<T>(operation: ThreadOperation, make: () => T): T | null {
  try {
    return make();
  } catch (error) {
    if (!(error instanceof Errno)) throw error;
    operation.thread.returned = VM_FAULT_OOM;
    return null;
  }
}

/** The page is read in, locked, and mapped where the entry still names the slot. */
function swapFault(host: Host, operation: ThreadOperation, { mm, page, write, flags }: Fault): void {
  const slot = anyMm(host, mm).page_table.pfn(page);
  const pfn = orOom(operation, () => readSwapPage(host, slot));
  if (pfn === null) return;
  getPage(host, operation, pfn);
  pushSteps(operation, [
    { do: 'lock_page_or_retry', mm, pfn, flags },
    { do: 'swap_locked', at: { mm, page, write, slot, pfn } },
    { do: 'unlock', lock: pageLock(pfn), cleanup: true },
    { do: 'put_page', pfn, cleanup: true },
  ]);
}

/** Flags of the entry of a page that was brought back, and whether the page leaves the swap cache with it. */
function swappedFlags(
  host: Host,
  vma: Vma | null,
  flags: number,
  { write, slot, pfn }: Omit<SwapIn, 'mm' | 'page'>,
): [number, boolean] {
  const kept = (flags & ~(PTE_TYPE_MASK | PTE_WRITE)) | PTE_PRESENT | PTE_YOUNG;
  const written = write ? PTE_DIRTY | PTE_SOFT_DIRTY : 0;
  const own = (flags & PTE_ANON_EXCLUSIVE) !== 0 && host.mm.pages.kind(pfn) !== KIND_KSM;
  if (host.profile.anonReuse === 'exclusive' && own) {
    const mayWrite = vma !== null && (vma.flags & VM_WRITE) !== 0 ? PTE_WRITE : 0;
    return [kept | mayWrite | written, false];
  }
  const reuse = write && reuseSwapPage(host, pfn, slot);
  return reuse ? [kept | PTE_WRITE | written | PTE_ANON_EXCLUSIVE, true] : [kept & ~PTE_ANON_EXCLUSIVE, false];
}

/**
 * do_swap_page() with the page at hand: the entry names the page again. A write to a page that is of use to nobody else takes
 * it out of the swap area; where an entry knows that the page is its own, it is writable at once. Nobody is told.
 */
function mapSwapPage(host: Host, mm: MmStruct, page: number, at: Omit<SwapIn, 'mm' | 'page'>): void {
  const vma = vmaAt(mm, page);
  const { pfn, slot, write } = at;
  const [flags, leaves] = swappedFlags(host, vma, mm.page_table.flags(page), at);
  host.mm.pages.addRmap(pfn, host.seq);
  setPte(host, mm, page, pfn, flags);
  swapFree(host, slot);
  const writable = write && (flags & PTE_WRITE) !== 0;
  if (leaves) deleteFromSwapCache(host, pfn);
  else if (writable || (vma !== null && (vma.flags & VM_LOCKED) !== 0)) tryToFreeSwap(host, pfn);
}

/**
 * Brings a swapped-out page back on the path that neither stops nor waits. False: the entry names no slot, or the page is
 * locked. ENOMEM: no page is left.
 */
export function swapInAtOnce(host: Host, mm: MmStruct, page: number, write: boolean): boolean {
  if ((mm.page_table.flags(page) & PTE_TYPE_MASK) !== PTE_SWAP) return false;
  const slot = mm.page_table.pfn(page);
  const pfn = readSwapPage(host, slot);
  if (!isLockFree(host, pageLock(pfn), 'W')) return false;
  mapSwapPage(host, mm, page, { pfn, slot, write });
  return true;
}

/** The page of a file that a fault on an entry locks; null: none, or none that is cached yet. */
function filePageOf(host: Host, { page_table }: MmStruct, vma: Vma, page: number, write: boolean): number | null {
  if (vma.kind !== 'file') return null;
  const flags = page_table.flags(page);
  if ((flags & PTE_TYPE_MASK) === PTE_NONE)
    return host.mm.files.get(vma.file as string)?.pages.get(page - vma.origin) ?? null;
  const mkwrite = write && (flags & PTE_WRITE) === 0 && (vma.flags & VM_SHARED) !== 0;
  return mkwrite ? page_table.pfn(page) : null;
}

/** True where a fault needs a page of a file that somebody has locked: the fault waits, as far as its flags let it. */
export function waitsForFilePage(
  host: Host,
  operation: ThreadOperation,
  { id: mm, page_table }: MmStruct,
  vma: Vma,
  { page, write, flags = 0 }: { page: number; write: boolean; flags?: number },
): boolean {
  const pfn = filePageOf(host, anyMm(host, mm), vma, page, write);
  if (pfn === null || isLockFree(host, pageLock(pfn), 'W')) return false;
  // page_mkwrite() waits with mmap_lock held, whatever the flags.
  const mkwrite = (page_table.flags(page) & PTE_TYPE_MASK) !== PTE_NONE;
  if (!mkwrite && allowRetryFirst(flags)) pushSteps(operation, [{ do: 'lock_page_or_retry', mm, pfn, flags }]);
  else
    pushSteps(operation, [
      { do: 'pass_lock', lock: pageLock(pfn) },
      { do: 'fault', mm, page, write, flags },
    ]);
  return true;
}

/** Where the area is copied on write, nobody has the page alone any more. */
function forkShared(host: Host, { parent, child, vma, page, flags, pfn }: ForkedEntry): void {
  const shared = isCowMapping(vma.flags) ? flags & ~(PTE_WRITE | PTE_ANON_EXCLUSIVE) : flags;
  if (shared !== flags) setPte(host, parent, page, pfn, shared);
  setPte(host, child, page, pfn, shared);
}

export const swapEntry: EntryKind = {
  fault: swapFault,
  drop: freeSwapAndCache,
  fork(host, entry) {
    swapDuplicate(host, entry.pfn);
    forkShared(host, entry);
    return true;
  },
};

/** The entry holds nothing: the page is looked after by who moves it. */
export const migrationEntry: EntryKind = {
  /** migration_entry_wait(): with mmap_lock held, whatever the flags; then the access looks again. */
  fault(host, operation, fault) {
    const lock = pageLock(anyMm(host, fault.mm).page_table.pfn(fault.page));
    pushSteps(operation, [
      { do: 'pass_lock', lock },
      { do: 'fault', ...fault },
    ]);
  },
  drop: () => undefined,
  fork(host, entry) {
    forkShared(host, entry);
    return true;
  },
};

export const entryFaultSteps: Handlers<EntryFaultStep> = {
  swap_locked(_host, operation, { at }) {
    if (holds(operation, pageLock(at.pfn))) pushSteps(operation, underPtl(at.mm, at.page, [{ do: 'swap_in', at }]));
  },

  /** Where the entry or the cached page has changed while the lock was waited for, the access looks again. */
  swap_in(host, operation, { at }) {
    const { page, slot, pfn } = at;
    const mm = anyMm(host, at.mm);
    operation.thread.returned = 0;
    const named = (mm.page_table.flags(page) & PTE_TYPE_MASK) === PTE_SWAP && mm.page_table.pfn(page) === slot;
    if (!named || slotOf(host, slot).pfn !== pfn) return;
    mapSwapPage(host, mm, page, at);
    tracePte(host, operation, page, 'set', pfn);
  },
};
