// Models vfio_pci_mmap_fault() and the other operations of an area that maps a BAR.

import { killHost } from '../bug.ts';
import type { VmaOps } from '../consumer.ts';
import { shouldFail } from '../fault-rule.ts';
import { type Host, trace } from '../host.ts';
import { addressOf, hex } from '../lib/u64.ts';
import { MAX_PAGE_TABLES } from '../limits.ts';
import { holds, mmapLock, release, tryAcquire } from '../lock.ts';
import {
  allowRetryFirst,
  FAULT_FLAG_ALLOW_RETRY,
  FAULT_FLAG_KILLABLE,
  FAULT_FLAG_RETRY_NOWAIT,
  type Fault,
  VM_FAULT_NOPAGE,
  VM_FAULT_OOM,
  VM_FAULT_RETRY,
  VM_FAULT_SIGBUS,
} from '../mm/fault-flags.ts';
import { anyMm, type MmId, type MmStruct } from '../mm/mm.ts';
import {
  missingPageTables,
  PTE_NONE,
  PTE_PRESENT,
  PTE_SPECIAL,
  PTE_TYPE_MASK,
  PTE_WRITE,
  PTE_YOUNG,
  setPte,
} from '../mm/page-table.ts';
import { waitsForPtl } from '../mm/ptl.ts';
import { VM_WRITE, type Vma, vmaAt } from '../mm/vma.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, type ThreadOperation } from '../thread.ts';
import { report } from '../violation.ts';
import { allowsFault, keepsVmaList, memoryLock, type VfioPciDevice, vmaLock } from './device.ts';
import { openDevice, zapVma } from './zap.ts';

export type FaultStep =
  /** Both locks are held, as the profile has it: refused, or populated. */
  | ({ do: 'vfio_pci_fault'; device: string; vma: number; cleanup?: true } & Fault)
  | ({ do: 'vfio_pci_populate'; device: string; vma: number; whole: boolean; cleanup?: true } & Fault)
  /** The area has been populated: it is listed, or zapped again. */
  | ({ do: 'vfio_pci_add_vma'; device: string; vma: number; cleanup?: true } & Fault)
  /** Of the historic variants: `locks` in order; each is taken, or the fault goes the way of a lock that is not free. */
  | ({ do: 'vfio_pci_lock_or_retry'; device: string; vma: number; locks: string[]; cleanup?: true } & Fault)
  /** A wait for `locks[0]` is over: with it, or killed. */
  | ({ do: 'vfio_pci_lock_waited'; device: string; vma: number; locks: string[]; cleanup?: true } & Fault)
  | { do: 'vfio_pci_close_vma'; device: string; mm: MmId; vma: number; cleanup: true };

const isListed = ({ vma_list }: VfioPciDevice, mm: MmId, vma: number): boolean =>
  vma_list.some((listed) => listed.mm === mm && listed.vma === vma);

/** Whether the zap would miss what is mapped in an area. */
function setUnaccounted(host: Host, mm: MmId, { ops }: Vma, unaccounted: boolean): void {
  if (ops === null || ops.unaccounted === unaccounted) return;
  ops.unaccounted = unaccounted;
  anyMm(host, mm).vmas.changed(host.seq);
}

/** Puts an area on the list. False: no memory for the entry. */
function listVma(host: Host, device: VfioPciDevice, mm: MmId, area: Vma, vma: number): boolean {
  const { start, end } = area;
  if (shouldFail(host, 'vma_list_alloc')) return false;
  device.vma_list.push({ mm, vma, start, end });
  setUnaccounted(host, mm, area, false);
  return true;
}

/** The locks of a fault, around its work. As merged, it waits for both, whatever the flags of the caller. */
function faultSteps(host: Host, device: VfioPciDevice, fault: Fault, vma: number): Step[] {
  const [memory, list] = [memoryLock(device), vmaLock(device)];
  const what = { device: device.id, vma, ...fault };
  const unlockAll: Step[] = [
    { do: 'unlock', lock: memory, cleanup: true },
    { do: 'unlock', lock: list, cleanup: true },
  ];
  if (device.spec.variant !== 'merged') {
    const locks = device.spec.variant === 'v1' ? [memory, list] : [list, memory];
    return [{ do: 'vfio_pci_lock_or_retry', locks, ...what }, ...unlockAll];
  }
  const lockList: Step[] = [
    { do: 'lock', lock: list, mode: 'W' },
    { do: 'phase', phase: 'after_vma_lock' },
  ];
  return [
    ...(keepsVmaList(host) ? lockList : []),
    { do: 'lock', lock: memory, mode: 'R' },
    { do: 'phase', phase: 'after_memory_lock' },
    { do: 'vfio_pci_fault', ...what },
    ...unlockAll,
  ];
}

export const vfioPciVmaOps: VmaOps = {
  fault(host, operation, fault, vma) {
    const { of, id } = vma.ops as NonNullable<Vma['ops']>;
    pushSteps(operation, faultSteps(host, openDevice(host, of), fault, id));
  },

  /** The new area is on no list: its next access faults and puts it there. */
  open: (host, { id }, vma) => (keepsVmaList(host) ? zapVma(id, vma) : []),

  close(host, { id: mm }, { ops, start, end }) {
    if (!keepsVmaList(host) || ops === null) return [];
    const device = openDevice(host, ops.of);
    for (const listed of device.vma_list)
      if (listed.mm === mm && listed.vma === ops.id) Object.assign(listed, { start, end });
    return [
      { do: 'lock', lock: vmaLock(device), mode: 'W', cleanup: true },
      { do: 'vfio_pci_close_vma', device: device.id, mm, vma: ops.id, cleanup: true },
      { do: 'unlock', lock: vmaLock(device), cleanup: true },
    ];
  },
};

/** What a fault of BAR memory installs: the host page at that place of the BAR, uncounted. */
function installEntry(host: Host, mm: MmStruct, vma: Vma, page: number): void {
  const write = (vma.flags & VM_WRITE) === 0 ? 0 : PTE_WRITE;
  setPte(host, mm, page, page - vma.origin, PTE_PRESENT | PTE_YOUNG | PTE_SPECIAL | write);
}

/** remap_pfn_range() finds an entry where it must find none: a fatal assertion of mm. */
function doubleMap(host: Host, operation: ThreadOperation, page: number): Error {
  const what = `${hex(addressOf(page))} is mapped already: two faults populate one area`;
  report(host, operation, 'FATAL_DOUBLE_MAP', what, []);
  const path = ['remap_pfn_range', 'vfio_pci_mmap_fault', 'handle_mm_fault'];
  return killHost(host, operation, 'remap_pte_range', what, path);
}

/** Maps all of an area, or one page. False: MAX_PAGE_TABLES. */
function populate(
  host: Host,
  operation: ThreadOperation,
  step: Extract<FaultStep, { do: 'vfio_pci_populate' }>,
): boolean {
  const mm = anyMm(host, step.mm);
  const vma = vmaAt(mm, step.page) as Vma;
  const { start, end } = step.whole ? vma : { start: step.page, end: step.page + 1 };
  if (host.mm.page_tables + missingPageTables(mm, start, end) > MAX_PAGE_TABLES) return false;
  for (let page = start; page < end; page++) {
    const isNone = (mm.page_table.flags(page) & PTE_TYPE_MASK) === PTE_NONE;
    if (!isNone && step.whole) throw doubleMap(host, operation, page);
    if (isNone) installEntry(host, mm, vma, page);
  }
  const pfn = start - vma.origin;
  trace(host, 'pte', operation.id, { change: 'set', addr: addressOf(start), pfn, npage: end - start });
  return true;
}

export const vfioPciFaultSteps: Handlers<FaultStep> = {
  vfio_pci_fault(host, operation, { do: _, cleanup: __, ...step }) {
    const { thread } = operation;
    const device = openDevice(host, step.device);
    const vma = vmaAt(anyMm(host, step.mm), step.page);
    thread.returned = VM_FAULT_SIGBUS;
    if (vma === null || !allowsFault(host, device)) return;
    const populating = { do: 'vfio_pci_populate', ...step } as const;
    const phase: Step = { do: 'phase', phase: 'before_populate' };
    if (host.profile.vfioPciFault === 'one-page') {
      pushSteps(operation, [phase, { ...populating, whole: false }]);
      return;
    }
    if (host.profile.vfioPciFault === 'whole-locked') {
      thread.returned = VM_FAULT_NOPAGE;
      if (isListed(device, step.mm, step.vma)) return;
      const listing = { do: 'vfio_pci_add_vma', ...step } as const;
      pushSteps(operation, [phase, { ...populating, whole: true }, listing]);
      return;
    }
    thread.returned = VM_FAULT_OOM;
    if (!listVma(host, device, step.mm, vma, step.vma)) return;
    const unlockList: Step = { do: 'unlock', lock: vmaLock(device), cleanup: true };
    pushSteps(operation, [unlockList, phase, { ...populating, whole: true }]);
  },

  vfio_pci_populate(host, operation, step) {
    const { mm, page, whole } = step;
    const vma = vmaAt(anyMm(host, mm), page) as Vma;
    const range = whole ? vma : { start: page, end: page + 1 };
    if (waitsForPtl(host, operation, { mm, start: range.start, end: range.end }, step)) return;
    // A zap that came after vma_lock was dropped has taken the area off the list, and waits for memory_lock.
    const unlisted = whole && !isListed(openDevice(host, step.device), mm, step.vma);
    if (host.profile.vfioPciFault === 'whole-unlocked' && unlisted) setUnaccounted(host, mm, vma, true);
    operation.thread.returned = populate(host, operation, step) ? VM_FAULT_NOPAGE : VM_FAULT_SIGBUS;
    pushSteps(operation, [{ do: 'phase', phase: 'after_populate' }]);
  },

  vfio_pci_add_vma(host, operation, { device, mm, page, vma }) {
    const { thread } = operation;
    const area = vmaAt(anyMm(host, mm), page) as Vma;
    const populated = thread.returned === VM_FAULT_NOPAGE;
    if (populated && listVma(host, openDevice(host, device), mm, area, vma)) return;
    const value = populated ? VM_FAULT_OOM : VM_FAULT_SIGBUS;
    pushSteps(operation, [...zapVma(mm, area), { do: 'returned', value }]);
  },

  vfio_pci_lock_or_retry(host, operation, { do: _, cleanup: __, locks, ...step }) {
    const [lock, ...rest] = locks;
    const again = { ...step, do: 'vfio_pci_lock_or_retry' } as const;
    if (lock === undefined) {
      pushSteps(operation, [{ ...step, do: 'vfio_pci_fault' }]);
      return;
    }
    const device = openDevice(host, step.device);
    const mode = lock === memoryLock(device) ? 'R' : 'W';
    if (tryAcquire(host, operation, lock, mode)) {
      pushSteps(operation, [{ ...again, locks: rest }]);
      return;
    }
    const { flags } = step;
    const v1 = device.spec.variant === 'v1';
    const killable = (flags & FAULT_FLAG_KILLABLE) !== 0 ? ({ killable: true } as const) : {};
    const isFirst = v1 ? (flags & FAULT_FLAG_ALLOW_RETRY) !== 0 : allowRetryFirst(flags);
    if (!isFirst && v1) {
      operation.thread.returned = VM_FAULT_SIGBUS;
      return;
    }
    if (!isFirst) {
      pushSteps(operation, [
        { do: 'lock', lock, mode, ...killable },
        { ...step, do: 'vfio_pci_lock_waited', locks },
      ]);
      return;
    }
    operation.thread.returned = VM_FAULT_RETRY;
    if ((flags & FAULT_FLAG_RETRY_NOWAIT) !== 0) return;
    // Nobody waits for one of these locks under the other, or under mmap_lock.
    for (const held of [memoryLock(device), vmaLock(device)])
      if (holds(operation, held)) release(host, operation, held);
    release(host, operation, mmapLock(step.mm));
    pushSteps(operation, [
      { do: 'lock', lock, mode, ...killable },
      { do: 'unlock', lock, cleanup: true },
      { do: 'returned', value: VM_FAULT_RETRY },
    ]);
  },

  vfio_pci_lock_waited(host, operation, { do: _, cleanup: __, locks, ...step }) {
    const [lock, ...rest] = locks as [string, ...string[]];
    if (holds(operation, lock)) {
      pushSteps(operation, [{ ...step, do: 'vfio_pci_lock_or_retry', locks: rest }]);
      return;
    }
    release(host, operation, mmapLock(step.mm));
    operation.thread.returned = VM_FAULT_RETRY;
  },

  vfio_pci_close_vma(host, _operation, { device, mm, vma }) {
    const { vma_list } = openDevice(host, device);
    const at = vma_list.findIndex((listed) => listed.mm === mm && listed.vma === vma);
    if (at >= 0) vma_list.splice(at, 1);
  },
};
