// Models get_user_pages() of one page for the kernel's own use, its fast form, and fixup_user_fault(). A page that is got is
// the last of `thread.pages`.

import { ERRNO } from '../errno.ts';
import type { Host } from '../host.ts';
import { holds, isDying, mmapLock } from '../lock.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, type ThreadOperation } from '../thread.ts';
import {
  FAULT_FLAG_ALLOW_RETRY,
  FAULT_FLAG_DEFAULT,
  FAULT_FLAG_RETRY_NOWAIT,
  FAULT_FLAG_TRIED,
  VM_FAULT_ERROR,
  VM_FAULT_HWPOISON,
  VM_FAULT_OOM,
  VM_FAULT_RETRY,
} from './fault-flags.ts';
import { anyMm, type MmId, type MmStruct } from './mm.ts';
import { isZeroPage } from './page.ts';
import { PTE_PRESENT, PTE_SPECIAL, PTE_TYPE_MASK, PTE_WRITE } from './page-table.ts';
import { waitsForPtl } from './ptl.ts';
import { VM_IO, VM_PFNMAP, VM_READ, VM_WRITE, vmaAt } from './vma.ts';

/** What is wanted of which page. `flags`: FAULT_FLAG_* of the next fault; `faults`: so far. */
interface Wanted {
  mm: MmId;
  page: number;
  write: boolean;
  flags: number;
  faults: number;
}

export type GupPageStep =
  /** `thread.returned`: 1, 0 where the caller does not want to wait and would have to, or a negative errno. */
  | ({ do: 'get_user_page'; cleanup?: true } & Wanted)
  | ({ do: 'user_page_faulted'; cleanup?: true } & Wanted)
  /** `thread.returned`: 0; 1 where mmap_lock was dropped meanwhile; or a negative errno. Precondition: mmap_lock is held. */
  | ({ do: 'fixup_user_fault'; unlocked: boolean; cleanup?: true } & Wanted)
  | ({ do: 'user_fault_fixed'; unlocked: boolean; cleanup?: true } & Wanted);

/** Faults of one page that come back without having made it suitable. */
const MAX_FAULTS_OF_PAGE = 1024;

/** get_user_pages_unlocked() of one page; `nowait`: FOLL_NOWAIT. */
export function getUserPage(mm: MmId, page: number, write: boolean, nowait: boolean): Step[] {
  const lock = mmapLock(mm);
  const flags = nowait ? FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_RETRY_NOWAIT : FAULT_FLAG_DEFAULT;
  return [
    { do: 'lock', lock, mode: 'R', killable: true },
    { do: 'get_user_page', mm, page, write, flags, faults: 0 },
    { do: 'unlock', lock, cleanup: true },
  ];
}

/** Whether an area lets a page be read or written (vma_is_valid). */
export const permits = ({ flags }: { flags: number }, write: boolean): boolean =>
  (flags & (write ? VM_WRITE : VM_READ)) !== 0;

export const isRemapped = ({ flags }: { flags: number }): boolean => (flags & (VM_IO | VM_PFNMAP)) !== 0;

function isSuitable({ page_table }: MmStruct, page: number, write: boolean): boolean {
  const wanted = write ? PTE_TYPE_MASK | PTE_WRITE : PTE_TYPE_MASK;
  return (page_table.flags(page) & wanted) === (write ? PTE_PRESENT | PTE_WRITE : PTE_PRESENT);
}

/** Takes one reference. False: the page is free, or its counter has overflowed. */
function grab(host: Host, { thread }: ThreadOperation, pfn: number): boolean {
  const { pages } = host.mm;
  if (pages.refcount(pfn) <= 0 && !isZeroPage(host, pfn)) return false;
  pages.get(pfn, host.seq);
  thread.pages.push(pfn);
  return true;
}

/** Models get_user_page_fast_only(FOLL_WRITE): what is there and writable now, without a lock or a fault. True: it is got. */
export function getUserPageFastOnly(host: Host, operation: ThreadOperation, mm: MmStruct, page: number): boolean {
  if ((mm.page_table.flags(page) & PTE_SPECIAL) !== 0 || !isSuitable(mm, page, true)) return false;
  return grab(host, operation, mm.page_table.pfn(page));
}

function errnoOf(fault: number): number {
  if ((fault & VM_FAULT_OOM) !== 0) return -ERRNO.ENOMEM;
  return (fault & VM_FAULT_HWPOISON) !== 0 ? -ERRNO.EHWPOISON : -ERRNO.EFAULT;
}

const again = (step: Wanted): Wanted => {
  const { mm, page, write, flags, faults } = step;
  return { mm, page, write, flags, faults };
};

export const gupPageSteps: Handlers<GupPageStep> = {
  get_user_page(host, operation, step) {
    const { mm: id, page, write, flags, faults } = step;
    const { thread } = operation;
    const mm = anyMm(host, id);
    const vma = vmaAt(mm, page);
    thread.returned = -ERRNO.EINTR;
    if (!holds(operation, mmapLock(id)) || isDying(host, operation)) return;
    thread.returned = -ERRNO.EFAULT;
    if (vma === null || isRemapped(vma) || !permits(vma, write) || faults >= MAX_FAULTS_OF_PAGE) return;
    if (waitsForPtl(host, operation, { mm: id, start: page, end: page + 1 }, step)) return;
    if (isSuitable(mm, page, write)) {
      thread.returned = grab(host, operation, mm.page_table.pfn(page)) ? 1 : -ERRNO.ENOMEM;
      return;
    }
    pushSteps(operation, [
      { do: 'fault', mm: id, page, write, flags },
      { do: 'user_page_faulted', ...again(step), faults: faults + 1 },
    ]);
  },

  user_page_faulted(_host, operation, step) {
    const { thread } = operation;
    const { returned } = thread;
    const lock = mmapLock(step.mm);
    if ((returned & VM_FAULT_ERROR) !== 0) thread.returned = errnoOf(returned);
    else if ((returned & VM_FAULT_RETRY) === 0) pushSteps(operation, [{ do: 'get_user_page', ...again(step) }]);
    else if (holds(operation, lock)) thread.returned = 0;
    else
      pushSteps(operation, [
        { do: 'lock', lock, mode: 'R', killable: true },
        { do: 'get_user_page', ...again(step), flags: step.flags | FAULT_FLAG_TRIED },
      ]);
  },

  fixup_user_fault(host, operation, step) {
    const { mm: id, page, write, flags, faults, unlocked } = step;
    const { thread } = operation;
    const vma = vmaAt(anyMm(host, id), page);
    thread.returned = -ERRNO.EFAULT;
    if (vma === null || !permits(vma, write) || faults >= MAX_FAULTS_OF_PAGE) return;
    thread.returned = -ERRNO.EINTR;
    if (isDying(host, operation)) return;
    pushSteps(operation, [
      { do: 'fault', mm: id, page, write, flags },
      { do: 'user_fault_fixed', ...again(step), faults: faults + 1, unlocked },
    ]);
  },

  user_fault_fixed(_host, operation, step) {
    const { thread } = operation;
    const { returned } = thread;
    if ((returned & VM_FAULT_ERROR) !== 0) thread.returned = errnoOf(returned);
    else if ((returned & VM_FAULT_RETRY) === 0) thread.returned = step.unlocked ? 1 : 0;
    else
      pushSteps(operation, [
        { do: 'lock', lock: mmapLock(step.mm), mode: 'R' },
        { do: 'fixup_user_fault', ...again(step), flags: step.flags | FAULT_FLAG_TRIED, unlocked: true },
      ]);
  },
};
