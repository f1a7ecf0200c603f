// Models handle_mm_fault() as steps: where a fault tells notifiers or waits for a lock, it can be stopped in the middle.

import { vmaOpsOf } from '../consumers.ts';
import { Errno } from '../errno.ts';
import { type Host, trace } from '../host.ts';
import { addressOf } from '../lib/u64.ts';
import { isLockFree, mmapLock } from '../lock.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, type ThreadOperation } from '../thread.ts';
import { waitsForFilePage } from './entry-fault.ts';
import { entryKindOf } from './entry-kinds.ts';
import { ANON_ENTRY, handleMmFault, isReusable, maybeWritable } from './fault.ts';
import { VM_FAULT_OOM, VM_FAULT_SIGBUS, VM_FAULT_SIGSEGV } from './fault-flags.ts';
import { anyMm, type MmId, type MmStruct } from './mm.ts';
import { invalidation } from './mmu-notifier/invalidation.ts';
import { isWatched } from './mmu-notifier/range.ts';
import { copyPage } from './page-bytes.ts';
import { KIND_ANON } from './page-frames.ts';
import {
  clearPte,
  type Leaf,
  leafIndex,
  PTE_DIRTY,
  PTE_NONE,
  PTE_PRESENT,
  PTE_SPECIAL,
  PTE_TYPE_MASK,
  PTE_WRITE,
  PTRS_PER_PTE,
  setPte,
} from './page-table.ts';
import { busyPtl, ptlOf, waitsForPtl } from './ptl.ts';
import { freeSwapCache } from './swap.ts';
import { anonVmaPrepare, VM_PFNMAP, VM_READ, VM_SHARED, VM_WRITE, type Vma, vmaAt } from './vma.ts';

export type FaultStep =
  /** Brings a page in; `thread.returned`: 0 or a result of the fault. Precondition: mmap_lock is held. */
  | { do: 'fault'; mm: MmId; page: number; write: boolean; flags?: number; force?: true; cleanup?: true }
  | { do: 'cow_copy'; mm: MmId; page: number; cleanup?: true }
  | { do: 'cow_clear'; mm: MmId; page: number; from: number; to: number; flags: number; cleanup?: true }
  | { do: 'cow_set'; mm: MmId; page: number; from: number; to: number; flags: number; cleanup?: true }
  | { do: 'fault_done'; cleanup?: true };

/** Where a CPU, or GUP in its name, may not go: what the fault returns; 0: it may. */
function accessError(vma: Vma | null, write: boolean): number {
  if (vma === null) return VM_FAULT_SIGSEGV;
  return (vma.flags & (write ? VM_WRITE : VM_READ)) === 0 ? VM_FAULT_SIGSEGV : 0;
}

/** Whether a write to a present, read-only entry puts a copy in its place. */
export function breaksCow(host: Host, mm: MmStruct, vma: Vma, page: number): boolean {
  const flags = mm.page_table.flags(page);
  if ((flags & PTE_TYPE_MASK) !== PTE_PRESENT || (flags & PTE_WRITE) !== 0) return false;
  if ((vma.flags & (VM_PFNMAP | VM_SHARED)) !== 0) return false;
  return (flags & PTE_SPECIAL) !== 0 || !isReusable(host, flags, mm.page_table.pfn(page));
}

/**
 * Whether what GUP does with a page takes a thread: somebody is told of it, or it may have to wait. Where not, all of it is
 * done at once.
 */
export function takesThread(host: Host, mm: MmStruct, page: number, write: boolean): boolean {
  if (!isLockFree(host, mmapLock(mm.id), 'R') || busyPtl(host, mm.id, page, page + 1) !== null) return true;
  const type = mm.page_table.flags(page) & PTE_TYPE_MASK;
  if (type !== PTE_NONE && type !== PTE_PRESENT) return vmaAt(mm, page) !== null;
  if (type === PTE_NONE && (vmaAt(mm, page)?.ops ?? null) !== null) return true;
  const vma = write && isWatched(mm) ? vmaAt(mm, page) : null;
  return vma !== null && (vma.flags & VM_WRITE) !== 0 && breaksCow(host, mm, vma, page);
}

/** A fault that tells nobody, at once. */
function faultAtOnce(
  host: Host,
  operation: ThreadOperation,
  { mm, vma, page, write, force }: { mm: MmStruct; vma: Vma; page: number; write: boolean; force: boolean },
): void {
  try {
    handleMmFault(host, mm, vma, page, write, force);
    operation.thread.returned = 0;
  } catch (error) {
    if (!(error instanceof Errno)) throw error;
    operation.thread.returned = error.errno === 'ENOMEM' ? VM_FAULT_OOM : VM_FAULT_SIGBUS;
    trace(host, 'fault', operation.id, { error: error.message });
  }
}

/** An entry of the page table changes between phases that can be watched. */
export const tracePte = (host: Host, operation: ThreadOperation, page: number, change: string, pfn: number): void =>
  trace(host, 'pte', operation.id, { change, addr: addressOf(page), pfn });

/** Makes an entry none. Precondition: it is not; the caller settles the page's references. */
export function clearPteAt(host: Host, operation: ThreadOperation, mm: MmStruct, page: number): void {
  const index = leafIndex(page);
  tracePte(host, operation, page, 'clear', mm.page_table.pfn(page));
  clearPte(host, mm, index, mm.page_table.leaf(index) as Leaf, page - index * PTRS_PER_PTE);
}

export const faultSteps: Handlers<FaultStep> = {
  fault(host, operation, step) {
    const { mm: id, page, write } = step;
    const mm = anyMm(host, id);
    const vma = vmaAt(mm, page);
    const force = step.force === true;
    const error = force && vma !== null ? 0 : accessError(vma, write);
    operation.thread.returned = error;
    if (vma === null || error !== 0) return;
    if (waitsForPtl(host, operation, { mm: id, start: page, end: page + 1 }, step)) return;
    const type = mm.page_table.flags(page) & PTE_TYPE_MASK;
    if (type !== PTE_NONE && type !== PTE_PRESENT)
      entryKindOf(type).fault(host, operation, { mm: id, page, write, flags: step.flags ?? 0 });
    else if (type === PTE_NONE && vma.ops !== null)
      vmaOpsOf(vma.ops.consumer).fault(host, operation, { mm: id, page, write, flags: step.flags ?? 0 }, vma);
    else if (waitsForFilePage(host, operation, mm, vma, step)) return;
    else if (write && breaksCow(host, mm, vma, page)) pushSteps(operation, [{ do: 'cow_copy', mm: id, page }]);
    else faultAtOnce(host, operation, { mm, vma, page, write, force });
  },

  /** wp_page_copy(): the copy is made before anybody is told. */
  cow_copy(host, operation, { mm: id, page }) {
    const { page_table } = anyMm(host, id);
    const { pages } = host.mm;
    const flags = page_table.flags(page);
    const from = page_table.pfn(page);
    let to: number;
    try {
      to = pages.alloc(KIND_ANON, host.seq);
    } catch (error) {
      if (!(error instanceof Errno)) throw error;
      operation.thread.returned = VM_FAULT_OOM;
      return;
    }
    operation.thread.pages.push(to);
    if ((flags & PTE_SPECIAL) === 0) {
      copyPage(host, from, to);
      pages.get(from, host.seq);
      operation.thread.pages.push(from);
    }
    const range = { mm: id, start: page, end: page + 1, event: 'CLEAR', blockable: true, owner: null } as const;
    const change: Step[] = [
      { do: 'lock', lock: ptlOf(id, page), mode: 'W' },
      { do: 'cow_clear', mm: id, page, from, to, flags },
      { do: 'unlock', lock: ptlOf(id, page), cleanup: true },
    ];
    pushSteps(operation, [
      ...invalidation(range, change, true),
      ...((flags & PTE_SPECIAL) === 0 ? [{ do: 'put_page', pfn: from, cleanup: true } as const] : []),
      { do: 'put_page', pfn: to, cleanup: true },
      { do: 'fault_done' },
    ]);
  },

  /** Where the entry has changed meanwhile, the copy is dropped and the access looks again. */
  cow_clear(host, operation, { mm: id, page, from, to, flags }) {
    const mm = anyMm(host, id);
    if (mm.page_table.flags(page) !== flags || mm.page_table.pfn(page) !== from) return;
    clearPteAt(host, operation, mm, page);
    pushSteps(operation, [
      { do: 'phase', phase: 'after_pte_clear' },
      { do: 'invalidate_range', mm: id, start: page, end: page + 1 },
      { do: 'change_pte', mm: id, page, pfn: to },
      { do: 'cow_set', mm: id, page, from, to, flags, cleanup: true },
      { do: 'phase', phase: 'after_pte_set' },
    ]);
  },

  cow_set(host, operation, { mm: id, page, from, to, flags }) {
    const { pages } = host.mm;
    const mm = anyMm(host, id);
    const vma = vmaAt(mm, page);
    if (vma !== null) anonVmaPrepare(host, mm, vma);
    setPte(host, mm, page, to, vma === null ? ANON_ENTRY : maybeWritable(vma, ANON_ENTRY));
    tracePte(host, operation, page, 'set', to);
    pages.addRmap(to, host.seq);
    if ((flags & PTE_SPECIAL) !== 0) return;
    pages.removeRmap(from, (flags & PTE_DIRTY) !== 0, host.seq);
    freeSwapCache(host, from);
  },

  fault_done(_host, operation) {
    operation.thread.returned = 0;
  },
};
