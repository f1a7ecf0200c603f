// Models one attempt of oom_reap_task_mm() of mm/oom_kill.c: memory is taken from a process that is still dying.

import type { Command } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { mmapLock } from '../lock.ts';
import type { Done } from '../outcome.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, runOperation } from '../thread.ts';
import { canMadvLruVma } from './madvise.ts';
import { anyMm, type MmId } from './mm.ts';
import type { MmuRange } from './mmu-notifier/range.ts';
import { requireMm } from './task.ts';
import { findVma, VM_SHARED } from './vma.ts';

export type OomReapStep =
  /** mmap_lock was asked for. EAGAIN: it is taken. */
  | { do: 'oom_reap_begin'; mm: MmId; cleanup?: true }
  /** The next area from `page` on; `refused`: areas whose notifiers could not be told without waiting. */
  | { do: 'oom_reap_vmas'; mm: MmId; page: number; refused: number; cleanup?: true }
  | { do: 'oom_reap_vma'; range: MmuRange; refused: number; cleanup?: true };

export const oomReapSteps: Handlers<OomReapStep> = {
  oom_reap_begin(host, operation, { mm: id }) {
    if (operation.thread.returned === 0) throw new Errno('EAGAIN', `mmap_lock of mm '${id}' is taken: retry later`);
    anyMm(host, id).unstable = true;
    pushSteps(operation, [{ do: 'oom_reap_vmas', mm: id, page: 0, refused: 0 }]);
  },

  oom_reap_vmas(host, operation, { mm: id, page, refused }) {
    const vma = findVma(anyMm(host, id), page);
    if (vma === null) {
      operation.thread.fields = { refused };
      if (refused > 0)
        throw new Errno('EAGAIN', `${refused} areas of mm '${id}' are left: a notifier would have had to wait`, {
          hint: 'retry later',
        });
      return;
    }
    const { start, end, kind, flags } = vma;
    if (!canMadvLruVma(vma) || (kind !== 'anon' && (flags & VM_SHARED) !== 0)) {
      pushSteps(operation, [{ do: 'oom_reap_vmas', mm: id, page: end, refused }]);
      return;
    }
    const range: MmuRange = { mm: id, start, end, event: 'UNMAP', blockable: false, owner: null };
    pushSteps(operation, [
      { do: 'phase', phase: 'before_start' },
      { do: 'invalidate_start', range },
      { do: 'oom_reap_vma', range, refused },
    ]);
  },

  /** Where the start was refused the area is left alone, and nobody is told of an end. */
  oom_reap_vma(_host, operation, { range, refused }) {
    const { mm, start, end } = range;
    if (operation.thread.returned !== 0) {
      pushSteps(operation, [{ do: 'oom_reap_vmas', mm, page: end, refused: refused + 1 }]);
      return;
    }
    const change: Step[] = [
      { do: 'phase', phase: 'after_start' },
      { do: 'zap', mm, start, end },
      { do: 'phase', phase: 'after_pte_clear' },
      { do: 'phase', phase: 'before_end' },
      { do: 'invalidate_end', range, only_end: false, cleanup: true },
      { do: 'phase', phase: 'after_end' },
      { do: 'oom_reap_vmas', mm, page: end, refused },
    ];
    pushSteps(operation, change);
  },
};

/**
 * Takes the pages of all anonymous and private areas; shared files, locked areas and device memory stay.
 * ESRCH: the task has exited. EAGAIN: mmap_lock is taken; or a notifier refused a range that may not wait, and its area is left.
 */
export function oomReap(host: Host, { task, stop_at }: Extract<Command, { op: 'oom_reap' }>): Done {
  const { id: mm } = requireMm(host, task);
  const lock = mmapLock(mm);
  return runOperation(
    host,
    { kind: 'oom_reap', locals: { task: null, mm } },
    [
      { do: 'trylock', lock, mode: 'R' },
      { do: 'oom_reap_begin', mm },
      { do: 'unlock', lock, cleanup: true },
    ],
    stop_at ?? null,
  );
}
