// Models __lock_page_or_retry() of mm/filemap.c: how a fault waits for the lock of a page, as far as its flags let it.

import { holds, mmapLock, pageLock, release, tryAcquire } from '../lock.ts';
import type { Handlers } from '../steps.ts';
import { pushSteps } from '../thread.ts';
import { allowRetryFirst, FAULT_FLAG_KILLABLE, FAULT_FLAG_RETRY_NOWAIT, VM_FAULT_RETRY } from './fault-flags.ts';
import type { MmId } from './mm.ts';

export type PageLockStep =
  /**
   * `thread.returned`: 0 where the thread has the page lock, VM_FAULT_RETRY where not. A first attempt that may retry drops
   * mmap_lock to wait (RETRY_NOWAIT: it does neither) and comes back without the page lock; any other waits for it, and drops
   * mmap_lock only where a fatal signal ends the wait.
   */
  | { do: 'lock_page_or_retry'; mm: MmId; pfn: number; flags: number; cleanup?: true }
  | { do: 'page_lock_waited'; mm: MmId; pfn: number; cleanup?: true }
  | { do: 'returned'; value: number; cleanup?: true };

export const pageLockSteps: Handlers<PageLockStep> = {
  lock_page_or_retry(host, operation, { mm, pfn, flags }) {
    const lock = pageLock(pfn);
    operation.thread.returned = 0;
    if (tryAcquire(host, operation, lock, 'W')) return;
    const killable = (flags & FAULT_FLAG_KILLABLE) !== 0 ? ({ killable: true } as const) : {};
    if (!allowRetryFirst(flags)) {
      pushSteps(operation, [
        { do: 'lock', lock, mode: 'W', ...killable },
        { do: 'page_lock_waited', mm, pfn },
      ]);
      return;
    }
    operation.thread.returned = VM_FAULT_RETRY;
    if ((flags & FAULT_FLAG_RETRY_NOWAIT) !== 0) return;
    release(host, operation, mmapLock(mm));
    pushSteps(operation, [
      { do: 'lock', lock, mode: 'W', ...killable },
      { do: 'unlock', lock, cleanup: true },
      { do: 'returned', value: VM_FAULT_RETRY },
    ]);
  },

  page_lock_waited(host, operation, { mm, pfn }) {
    operation.thread.returned = 0;
    if (holds(operation, pageLock(pfn))) return;
    release(host, operation, mmapLock(mm));
    operation.thread.returned = VM_FAULT_RETRY;
  },

  returned(_host, operation, { value }) {
    operation.thread.returned = value;
  },
};
