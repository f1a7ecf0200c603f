// Models munmap() of mm/mmap.c: the areas go first, then, between a start and an end, the entries of the page table.

import type { Command } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { hex, isPageAligned, npageOf, pageNumberOf } from '../lib/u64.ts';
import { TASK_SIZE } from '../limits.ts';
import { mmapLock } from '../lock.ts';
import type { Done } from '../outcome.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, runOperation } from '../thread.ts';
import { pageAlign } from './address.ts';
import { underLock } from './lock-steps.ts';
import { anyMm, type MmId } from './mm.ts';
import { type PageRange, requireSplit } from './mmap.ts';
import { invalidation } from './mmu-notifier/invalidation.ts';
import { requireMm } from './task.ts';
import { isolateRange, unlinkVmas } from './vma.ts';

/** Takes the areas of the range off the list; what follows is left out where there are none. */
export type MunmapStep = {
  do: 'detach_vmas';
  mm: MmId;
  start: number;
  end: number;
  downgrade: boolean;
  cleanup?: true;
};

/** EINVAL: addr is not page aligned; the range is beyond TASK_SIZE; length 0. */
export function munmapRange(addr: bigint, length: bigint): PageRange {
  if (!isPageAligned(addr)) throw new Errno('EINVAL', `addr: ${hex(addr)} is not page aligned`);
  if (addr > TASK_SIZE || length > TASK_SIZE - addr)
    throw new Errno('EINVAL', `addr ${hex(addr)} + length ${hex(length)} is beyond TASK_SIZE ${hex(TASK_SIZE)}`);
  if (length === 0n) throw new Errno('EINVAL', 'length: 0x0');
  const start = pageNumberOf(addr);
  return { start, end: start + npageOf(pageAlign(length)) };
}

/**
 * What unmapping a range takes; `downgrade`: mmap_lock is needed for writing no longer than the areas are. ENOMEM: MAX_MAP_COUNT.
 * Precondition: mmap_lock is held for writing.
 */
export const unmapSteps = (mm: MmId, { start, end }: PageRange, downgrade: boolean): Step[] => [
  { do: 'detach_vmas', mm, start, end, downgrade },
];

/**
 * Unmaps [addr, addr + length); holes in it are no error.
 * ESRCH: the task has exited. EINVAL, as munmapRange(). EINTR: killed while it waited. ENOMEM: MAX_MAP_COUNT.
 */
export function munmap(host: Host, { task, addr, length, stop_at }: Extract<Command, { op: 'munmap' }>): Done {
  const { id: mm } = requireMm(host, task);
  const range = munmapRange(addr, length);
  const steps = underLock(mmapLock(mm), 'W', unmapSteps(mm, range, true));
  return runOperation(host, { kind: 'munmap', locals: { task, mm } }, steps, stop_at ?? null);
}

export const munmapSteps: Handlers<MunmapStep> = {
  detach_vmas(host, operation, { mm: id, start, end, downgrade }) {
    const mm = anyMm(host, id);
    requireSplit(mm, { start, end });
    const [first, past] = isolateRange(host, mm, { start, end }, 'unmap');
    if (first === past) return;
    const closing = unlinkVmas(host, mm, first, past);
    pushSteps(operation, [
      ...(downgrade ? [{ do: 'downgrade', lock: mmapLock(id) } as const] : []),
      ...invalidation({ mm: id, start, end, event: 'UNMAP', blockable: true, owner: null }, [
        { do: 'zap', mm: id, start, end, cleanup: true },
        { do: 'phase', phase: 'after_pte_clear' },
      ]),
      ...closing,
    ]);
  },
};
