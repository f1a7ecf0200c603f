// Steps that every operation of the memory side is made of: locks, phases, marks on pages.

import { Errno, type ErrnoName } from '../errno.ts';
import type { Host } from '../host.ts';
import { acquire, downgrade, holds, type LockId, type LockMode, pass, release, tryAcquire } from '../lock.ts';
import type { Fields } from '../outcome.ts';
import type { Phase } from '../phase.ts';
import type { Handlers, Step } from '../steps.ts';
import { enterPhase, type ThreadOperation } from '../thread.ts';

export type LockStep =
  /** `killable`: a fatal signal ends the wait, and the thread goes on without the lock. */
  | { do: 'lock'; lock: LockId; mode: LockMode; killable?: true; cleanup?: true }
  /** Waits until nobody has the lock, and does not take it. */
  | { do: 'pass_lock'; lock: LockId; cleanup?: true }
  /** EINTR: a killable wait for the lock was ended by a signal. */
  | { do: 'require_lock'; lock: LockId; cleanup?: true }
  /** `thread.returned`: 1 where the lock was free, 0 where not. */
  | { do: 'trylock'; lock: LockId; mode: LockMode; cleanup?: true }
  /** Nothing where the thread does not hold it. */
  | { do: 'unlock'; lock: LockId; cleanup: true }
  /** The operation is refused. */
  | { do: 'fail'; errno: ErrnoName; detail: string; cleanup?: true }
  | { do: 'downgrade'; lock: LockId; cleanup?: true }
  | { do: 'phase'; phase: Phase; fields?: Fields; cleanup?: true }
  | { do: 'set_page_dirty'; pfn: number; cleanup?: true }
  /** Drops a reference that the thread holds; nothing where it holds none. */
  | { do: 'put_page'; pfn: number; cleanup: true };

/** mmap_write_lock_killable() and mmap_read_lock_killable(), around steps. EINTR. */
export const underLock = (lock: LockId, mode: LockMode, steps: readonly Step[]): Step[] => [
  { do: 'lock', lock, mode, killable: true },
  { do: 'require_lock', lock },
  ...steps,
  { do: 'unlock', lock, cleanup: true },
];

export const lockSteps: Handlers<LockStep> = {
  lock: (host, operation, { lock, mode, killable }) => void acquire(host, operation, lock, mode, killable),
  pass_lock: (host, operation, { lock }) => void pass(host, operation, lock),
  require_lock(_host, operation, { lock }) {
    if (!holds(operation, lock)) throw new Errno('EINTR', `${operation.id} was killed while it waited for ${lock}`);
  },
  trylock(host, operation, { lock, mode }) {
    operation.thread.returned = tryAcquire(host, operation, lock, mode) ? 1 : 0;
  },
  unlock(host: Host, operation: ThreadOperation, { lock }) {
    if (holds(operation, lock)) release(host, operation, lock);
  },
  fail(_host, _operation, { errno, detail }) {
    throw new Errno(errno, detail);
  },
  downgrade: (host, operation, { lock }) => downgrade(host, operation, lock),
  phase: (host, operation, { phase, fields }) => enterPhase(host, operation, phase, fields ?? {}),
  put_page(host, { thread }, { pfn }) {
    const at = thread.pages.lastIndexOf(pfn);
    if (at < 0) return;
    thread.pages.splice(at, 1);
    host.mm.pages.put(pfn, host.seq);
  },
  set_page_dirty: (host, _operation, { pfn }) => host.mm.pages.setDirty(pfn, host.seq),
};
