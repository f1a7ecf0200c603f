// Models a write of 4 to /proc/PID/clear_refs: which pages are written from now on is found out by faults.

import type { Command } from '../command.ts';
import type { Host } from '../host.ts';
import { TASK_SIZE_PAGES } from '../limits.ts';
import { mmapLock } from '../lock.ts';
import type { Done } from '../outcome.ts';
import type { Handlers } from '../steps.ts';
import { runOperation } from '../thread.ts';
import { underLock } from './lock-steps.ts';
import { anyMm, type MmId, type MmStruct } from './mm.ts';
import { invalidation } from './mmu-notifier/invalidation.ts';
import { END_OF_SPACE } from './mmu-notifier/range.ts';
import { maybeDmaPinned } from './page.ts';
import {
  flagsAt,
  PTE_PRESENT,
  PTE_SOFT_DIRTY,
  PTE_SPECIAL,
  PTE_SWAP,
  PTE_TYPE_MASK,
  PTE_WRITE,
  pfnAt,
  setPteFlags,
  walkPageRange,
} from './page-table.ts';
import { waitsForPtl } from './ptl.ts';
import { requireMm } from './task.ts';
import { isCowMapping, VM_PFNMAP } from './vma.ts';

export type SoftDirtyStep = { do: 'clear_soft_dirty'; mm: MmId; start: number; end: number; cleanup?: true };

/** Models clear_soft_dirty() for every entry outside of device memory. */
function clearSoftDirtyOf(host: Host, mm: MmStruct): void {
  for (const vma of mm.vmas.areas) {
    if ((vma.flags & VM_PFNMAP) !== 0) continue;
    const passesPinned = host.profile.softDirtyPinned === 'passed-over' && mm.has_pinned && isCowMapping(vma.flags);
    walkPageRange(mm, vma.start, vma.end, (_index, leaf, i) => {
      const flags = flagsAt(leaf, i);
      const type = flags & PTE_TYPE_MASK;
      if (type === PTE_SWAP) setPteFlags(host, leaf, i, flags & ~PTE_SOFT_DIRTY);
      if (type !== PTE_PRESENT) return;
      if (passesPinned && (flags & PTE_SPECIAL) === 0 && maybeDmaPinned(host, pfnAt(leaf, i))) return;
      setPteFlags(host, leaf, i, flags & ~(PTE_WRITE | PTE_SOFT_DIRTY));
    });
  }
}

export const softDirtySteps: Handlers<SoftDirtyStep> = {
  clear_soft_dirty(host, operation, step) {
    if (!waitsForPtl(host, operation, step, step)) clearSoftDirtyOf(host, anyMm(host, step.mm));
  },
};

/** ESRCH: the task has exited. EINTR: killed while it waited. */
export function clearSoftDirty(host: Host, { task, stop_at }: Extract<Command, { op: 'clear_soft_dirty' }>): Done {
  const { id: mm } = requireMm(host, task);
  const range = { mm, start: 0, end: END_OF_SPACE, event: 'SOFT_DIRTY', blockable: true, owner: null } as const;
  const steps = underLock(
    mmapLock(mm),
    'W',
    invalidation(range, [
      { do: 'clear_soft_dirty', mm, start: 0, end: TASK_SIZE_PAGES },
      { do: 'phase', phase: 'after_pte_set' },
    ]),
  );
  return runOperation(host, { kind: 'clear_soft_dirty', locals: { task, mm } }, steps, stop_at ?? null);
}
