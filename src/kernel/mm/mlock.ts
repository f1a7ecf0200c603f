// Models mlock() and munlock() of mm/mlock.c, as far as the flag of the areas: nothing is charged, and nothing brought in.

import type { Command } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { hex, npageOf, pageNumberOf } from '../lib/u64.ts';
import { mmapLock } from '../lock.ts';
import type { Done } from '../outcome.ts';
import type { Handlers } from '../steps.ts';
import { runOperation } from '../thread.ts';
import { pageAlign } from './address.ts';
import { underLock } from './lock-steps.ts';
import { anyMm, type MmId } from './mm.ts';
import { printPage } from './page-table.ts';
import { requireMm } from './task.ts';
import { setVmaFlags, VM_DONTEXPAND, VM_IO, VM_LOCKED, VM_PFNMAP, vmaAt } from './vma.ts';

export type MlockStep = { do: 'mlock_vmas'; mm: MmId; start: number; end: number; lock: boolean; cleanup?: true };

export const mlockSteps: Handlers<MlockStep> = {
  mlock_vmas(host, _operation, { mm: id, start, end, lock }) {
    const mm = anyMm(host, id);
    for (let page = start; page < end; ) {
      const vma = vmaAt(mm, page);
      if (vma === null) throw new Errno('ENOMEM', `vaddr ${printPage(page)}: nothing is mapped`);
      const stop = Math.min(vma.end, end);
      const special = (vma.flags & (VM_IO | VM_PFNMAP | VM_DONTEXPAND)) !== 0;
      const flags = lock ? vma.flags | VM_LOCKED : vma.flags & ~VM_LOCKED;
      if (!special) setVmaFlags(host, mm, vma, { start: page, end: stop }, flags);
      page = stop;
    }
  },
};

/**
 * Marks the pages that [addr, addr + length) touches VM_LOCKED, or not; areas of device memory are passed over.
 * ESRCH: the task has exited. EINVAL: the end is before addr. EINTR: killed while it waited. ENOMEM: a hole, after what is before it;
 * MAX_MAP_COUNT.
 */
export function mlock(host: Host, command: Extract<Command, { op: 'mlock' }>): Done {
  const { task, addr, length, lock } = command;
  const { id: mm } = requireMm(host, task);
  const size = pageAlign(length + (addr & 0xfffn));
  const start = pageNumberOf(addr);
  if (size < length || addr + size >= 2n ** 64n)
    throw new Errno('EINVAL', `addr ${hex(addr)} + length ${hex(length)} is beyond 2^64`);
  if (size === 0n) return { ret: 0, fields: {} };
  const steps = underLock(mmapLock(mm), 'W', [{ do: 'mlock_vmas', mm, start, end: start + npageOf(size), lock }]);
  return runOperation(host, { kind: 'mlock', locals: { task, mm } }, steps, null);
}
