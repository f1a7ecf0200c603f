// Models mmput() and exit_mmap(): an address space is torn down after its last user, in the sight of those who watch it.

import type { Command } from '../command.ts';
import { consumerExits, isUserOfMm } from '../consumers.ts';
import type { Host } from '../host.ts';
import { TASK_SIZE_PAGES } from '../limits.ts';
import { deadlock } from '../lock.ts';
import type { MemoryOp, Operation } from '../operation.ts';
import type { Done } from '../outcome.ts';
import type { Phase } from '../phase.ts';
import type { Handlers } from '../steps.ts';
import { park, pushSteps, requireRoomToRun, runOperation } from '../thread.ts';
import { anyMm, type MmId, type MmStruct, mmdrop } from './mm.ts';
import { invalidation } from './mmu-notifier/invalidation.ts';
import { END_OF_SPACE } from './mmu-notifier/range.ts';
import { releaseSteps } from './mmu-notifier/release.ts';
import { exitThread, getTask, requireMm, threadGroupOf } from './task.ts';
import { unlinkVmas } from './vma.ts';

export type ExitStep =
  /** Waits for the operations that are inside the address space: each is one of its users until it ends. */
  | { do: 'exit_wait'; mm: MmId; cleanup?: true }
  | { do: 'exit_files'; mm: MmId; cleanup?: true }
  | { do: 'exit_mmap'; mm: MmId; cleanup: true }
  | { do: 'exit_done'; mm: MmId; cleanup: true }
  | { do: 'mmdrop'; mm: MmId; cleanup: true };

/** Operations that hold the users of an mm up; others, of notifiers, only keep the structure. */
const USERS: ReadonlySet<Operation['kind']> = new Set<Operation['kind'] | MemoryOp>([
  ...(['mmap', 'munmap', 'mprotect', 'mremap', 'madvise', 'mlock', 'clear_soft_dirty', 'oom_reap'] as const),
  ...(['fork', 'gup', 'access', 'pin_pages', 'map_dma', 'dma_rw'] as const),
]);

/** Operations that work in an address space now. */
export const operationsIn = ({ operations }: Host, mm: MmId): Operation[] =>
  [...operations.values()].filter(
    ({ state, kind, locals }) =>
      state !== 'done' && (USERS.has(kind) || isUserOfMm(kind)) && 'mm' in locals && locals.mm === mm,
  );

/** Tears an address space down that has just lost its last user: as a thread, which may be stopped and may have to wait. */
export function mmput(host: Host, task: string, mm: MmStruct, stop_at: Phase | null): Done {
  const { id } = mm;
  return runOperation(
    host,
    { kind: 'exit', locals: { task, mm: id } },
    [
      { do: 'exit_wait', mm: id },
      { do: 'exit_files', mm: id },
      ...releaseSteps(id),
      { do: 'exit_mmap', mm: id, cleanup: true },
      { do: 'exit_done', mm: id, cleanup: true },
    ],
    stop_at,
  );
}

export const exitSteps: Handlers<ExitStep> = {
  exit_wait(host, operation, step) {
    const [inside] = operationsIn(host, step.mm);
    if (inside === undefined) return;
    const { notification } = operation;
    if (notification !== null && inside.blocked_on === `notification:${notification}`)
      throw deadlock(host, operation, `operation:${inside.id}`, [
        `${inside.id} waits for the handler that makes this call`,
      ]);
    pushSteps(operation, [step]);
    park(host, operation, `operation:${inside.id}`);
  },

  exit_files: (host, operation, { mm }) => pushSteps(operation, consumerExits(host, mm)),

  exit_mmap(host, operation, { mm }) {
    if (anyMm(host, mm).vmas.areas.length === 0) return;
    const range = { mm, start: 0, end: END_OF_SPACE, event: 'UNMAP', blockable: true, owner: null } as const;
    pushSteps(
      operation,
      invalidation(range, [
        { do: 'zap', mm, start: 0, end: TASK_SIZE_PAGES, cleanup: true },
        { do: 'phase', phase: 'after_pte_clear' },
      ]),
    );
  },

  exit_done(host, operation, { mm: id }) {
    const mm = anyMm(host, id);
    pushSteps(operation, [...unlinkVmas(host, mm, 0, mm.vmas.areas.length), { do: 'mmdrop', mm: id, cleanup: true }]);
  },

  mmdrop(host, _operation, { mm }) {
    mmdrop(host, anyMm(host, mm));
  },
};

/**
 * Ends a thread made with `thread_of`, or a leader with `thread_only`, alone; else a whole process. Its address space goes with
 * the last of its tasks. ESRCH: it has exited. EBUSY: MAX_PARKED_OPERATIONS.
 */
export function exitTask(host: Host, command: Extract<Command, { op: 'exit' }>): Done {
  const task = getTask(host, command.task);
  requireMm(host, task.id);
  const ending =
    task.leader === task.id && command.thread_only !== true ? [...threadGroupOf(host, task).threads] : [task.id];
  requireRoomToRun(host, command.stop_at ?? null);
  let last: MmStruct | null = null;
  for (const id of ending) last = exitThread(host, id) ?? last;
  return last === null ? { ret: 0, fields: {} } : mmput(host, task.id, last, command.stop_at ?? null);
}
