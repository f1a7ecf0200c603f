// Results of a fault (enum vm_fault_reason), its flags (enum fault_flag), and what a fault is asked to do.

import type { MmId } from './mm.ts';

export const VM_FAULT_OOM = 0x1;
export const VM_FAULT_SIGBUS = 0x2;
export const VM_FAULT_HWPOISON = 0x10;
export const VM_FAULT_SIGSEGV = 0x40;
/** A handler mapped the page itself. */
export const VM_FAULT_NOPAGE = 0x100;
/** Nothing is mapped: the caller starts again. mmap_lock was dropped, but for FAULT_FLAG_RETRY_NOWAIT. */
export const VM_FAULT_RETRY = 0x400;
/** What fails an access for good. */
export const VM_FAULT_ERROR = VM_FAULT_OOM | VM_FAULT_SIGBUS | VM_FAULT_HWPOISON | VM_FAULT_SIGSEGV;

export const FAULT_FLAG_WRITE = 0x1;
export const FAULT_FLAG_ALLOW_RETRY = 0x4;
/** Drop no lock and do not wait; without ALLOW_RETRY it means nothing. */
export const FAULT_FLAG_RETRY_NOWAIT = 0x8;
export const FAULT_FLAG_KILLABLE = 0x10;
/** The second attempt: it waits, whatever the flags. */
export const FAULT_FLAG_TRIED = 0x20;
export const FAULT_FLAG_REMOTE = 0x80;
/** What the CPU's own fault asks for. */
export const FAULT_FLAG_DEFAULT = FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_KILLABLE;

/** One fault: where, what for, and how far it may wait. Precondition: mmap_lock is held for reading. */
export interface Fault {
  mm: MmId;
  page: number;
  write: boolean;
  flags: number;
}

/** fault_flag_allow_retry_first(). */
export const allowRetryFirst = (flags: number): boolean =>
  (flags & FAULT_FLAG_ALLOW_RETRY) !== 0 && (flags & FAULT_FLAG_TRIED) === 0;
