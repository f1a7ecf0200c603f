// Models remove_device_exclusive_entry() and restore_exclusive_pte() of mm/memory.c: a page that a device has to itself comes
// back when anybody else looks at it. What an unmap and a fork do with such an entry.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { holds, isLockFree, pageLock } from '../lock.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps } from '../thread.ts';
import type { EntryKind } from './entry-kinds.ts';
import type { Fault } from './fault-flags.ts';
import { tracePte } from './fault-steps.ts';
import { anyMm, type MmStruct } from './mm.ts';
import { invalidation } from './mmu-notifier/invalidation.ts';
import {
  PTE_DEVICE_EXCLUSIVE,
  PTE_DIRTY,
  PTE_PRESENT,
  PTE_TYPE_MASK,
  PTE_WRITE,
  PTE_YOUNG,
  printPage,
  setPte,
} from './page-table.ts';
import { underPtl } from './ptl.ts';
import { getPage } from './unmap-page.ts';
import { VM_WRITE, vmaAt } from './vma.ts';

export type ExclusiveEntryStep =
  /** After lock_page_or_retry: nothing where it says RETRY. */
  | { do: 'exclusive_entry_locked'; fault: Fault; pfn: number; cleanup?: true }
  | { do: 'restore_exclusive'; fault: Fault; pfn: number; cleanup?: true };

/** Flags that an entry keeps while a device has its page: all but the type and what the hardware sets. */
const KEPT = ~(PTE_TYPE_MASK | PTE_DIRTY | PTE_YOUNG);

/**
 * The entry that takes the place of a present one. Precondition: that is none by now, and not given back: its reference becomes
 * this one's. It does not count as a mapping.
 */
export function makeExclusiveEntry(host: Host, mm: MmStruct, page: number, pfn: number, flags: number): void {
  const { pages } = host.mm;
  pages.get(pfn, host.seq);
  pages.removeRmap(pfn, (flags & PTE_DIRTY) !== 0, host.seq);
  setPte(host, mm, page, pfn, (flags & KEPT) | PTE_DEVICE_EXCLUSIVE);
}

export const isExclusiveEntry = ({ page_table }: MmStruct, page: number, pfn: number): boolean =>
  (page_table.flags(page) & PTE_TYPE_MASK) === PTE_DEVICE_EXCLUSIVE && page_table.pfn(page) === pfn;

/**
 * The entry is present again, and old: what was writable is dirty, and writable where the area still is. Its reference becomes
 * the mapping's. Precondition: the page is locked, the entry is exclusive.
 */
function restoreExclusivePte(host: Host, mm: MmStruct, page: number, pfn: number): void {
  const { pages } = host.mm;
  const flags = mm.page_table.flags(page);
  const mayWrite = ((vmaAt(mm, page)?.flags ?? 0) & VM_WRITE) !== 0;
  const dirty = (flags & PTE_WRITE) === 0 ? 0 : PTE_DIRTY;
  const kept = flags & ~PTE_TYPE_MASK & (mayWrite ? -1 : ~PTE_WRITE);
  setPte(host, mm, page, pfn, kept | PTE_PRESENT | dirty);
  pages.addRmap(pfn, host.seq);
  pages.put(pfn, host.seq);
}

/** The entry has a reference of its page, and is no mapping of it. */
export const exclusiveEntry: EntryKind = {
  /** For a read as for a write. Old kernels have no reference of the page while they wait for its lock. */
  fault(host, operation, fault) {
    const { mm, page, flags } = fault;
    const pfn = anyMm(host, mm).page_table.pfn(page);
    const refers = host.profile.exclusiveFaultReference === 'taken';
    if (refers) getPage(host, operation, pfn);
    pushSteps(operation, [
      { do: 'lock_page_or_retry', mm, pfn, flags },
      { do: 'exclusive_entry_locked', fault, pfn },
      { do: 'unlock', lock: pageLock(pfn), cleanup: true },
      ...(refers ? [{ do: 'put_page', pfn, cleanup: true } as const] : []),
    ]);
  },

  drop: (host, pfn) => host.mm.pages.put(pfn, host.seq),

  /**
   * The page is restored for the parent, which both then share: nobody has it alone any more. The event of the fork itself has
   * told the device. EBUSY: the page is locked, as by a device that is about to use it.
   */
  fork(host, { parent, page, pfn }) {
    if (!isLockFree(host, pageLock(pfn), 'W'))
      throw new Errno('EBUSY', `vaddr ${printPage(page)}: page ${pfn} is locked while a device makes it its own`);
    restoreExclusivePte(host, parent, page, pfn);
    return false;
  },
};

export const exclusiveEntrySteps: Handlers<ExclusiveEntryStep> = {
  /** Nobody may ignore this event: it has no owner. The page is unlocked before the end. */
  exclusive_entry_locked(_host, operation, { fault, pfn }) {
    if (!holds(operation, pageLock(pfn))) return;
    const { mm, page } = fault;
    const range = { mm, start: page, end: page + 1, event: 'EXCLUSIVE', blockable: true, owner: null } as const;
    const change: Step[] = [
      ...underPtl(mm, page, [{ do: 'restore_exclusive', fault, pfn }]),
      { do: 'unlock', lock: pageLock(pfn), cleanup: true },
    ];
    pushSteps(operation, [...invalidation(range, change), { do: 'returned', value: 0 }]);
  },

  /** Where the entry has changed while the lock was waited for, the access looks again. */
  restore_exclusive(host, operation, { fault, pfn }) {
    const mm = anyMm(host, fault.mm);
    if (!isExclusiveEntry(mm, fault.page, pfn)) return;
    restoreExclusivePte(host, mm, fault.page, pfn);
    tracePte(host, operation, fault.page, 'set', pfn);
    pushSteps(operation, [{ do: 'phase', phase: 'after_pte_set' }]);
  },
};
