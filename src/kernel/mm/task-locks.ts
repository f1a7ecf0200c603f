// Locks that a task holds between two of its calls: mutexes of drivers, and locks of pages.

import type { Command } from '../command.ts';
import { Errno } from '../errno.ts';
import { type Host, splat, trace } from '../host.ts';
import { MAX_TASK_LOCKS } from '../limits.ts';
import { keepLocks, type LockId, releaseHolder } from '../lock.ts';
import type { Done } from '../outcome.ts';
import type { Handlers } from '../steps.ts';
import { runOperation, runThreads } from '../thread.ts';
import { KIND_DEVICE, KIND_ZERO } from './page-frames.ts';
import { getTask, requireMm, type Task } from './task.ts';

export type TaskLockStep = {
  /** What the thread holds stays with its task. */
  do: 'keep_locks';
  task: string;
  cleanup?: true;
};

const PAGE_LOCK = 'page_lock:';

/** The page that a lock is about; null: it is no page lock. */
const pfnOf = (lock: LockId): number | null =>
  lock.startsWith(PAGE_LOCK) ? Number(lock.slice(PAGE_LOCK.length)) : null;

/** Pages whose locks a task holds, and of which it has a reference each. */
export const pagesLockedBy = ({ locks }: Task): number[] =>
  locks.map(({ lock }) => pfnOf(lock)).filter((pfn) => pfn !== null);

/** EINVAL: neither `mutex:<name>` nor `page_lock:<pfn>` of a page that is in use and has a struct page. */
function requireTaskLock(host: Host, lock: LockId): void {
  if (/^mutex:./.test(lock)) return;
  if (!/^page_lock:(0|[1-9]\d{0,15})$/.test(lock))
    throw new Errno('EINVAL', `lock: '${lock}' is neither mutex:<name> nor page_lock:<pfn>`);
  const pfn = pfnOf(lock) as number;
  const { pages } = host.mm;
  const kind = pages.kind(pfn);
  if (pages.refcount(pfn) <= 0 || kind === KIND_DEVICE || kind === KIND_ZERO)
    throw new Errno('EINVAL', `lock: page ${pfn} is not in use, or has no lock of its own`);
}

/**
 * A task takes a lock and keeps it until it releases it or exits; whoever locks a page has a reference of it.
 * ESRCH: the task has exited. EINVAL: no such lock. ENOSPC: MAX_TASK_LOCKS. EDEADLK: it would wait for itself.
 */
export function lockByTask(host: Host, { task, lock, stop_at }: Extract<Command, { op: 'lock' }>): Done {
  requireMm(host, task);
  requireTaskLock(host, lock);
  const { length } = getTask(host, task).locks;
  if (length >= MAX_TASK_LOCKS)
    throw new Errno('ENOSPC', `lock: task '${task}' holds ${length} locks, the most it can (${MAX_TASK_LOCKS})`);
  const pfn = pfnOf(lock);
  return runOperation(
    host,
    { kind: 'lock', locals: { task, mm: null } },
    [
      ...(pfn === null ? [] : [{ do: 'get_page', pfn } as const]),
      { do: 'lock', lock, mode: 'W' },
      { do: 'keep_locks', task },
      ...(pfn === null ? [] : [{ do: 'put_page', pfn, cleanup: true } as const]),
    ],
    stop_at ?? null,
  );
}

function releaseOfTask(host: Host, task: Task, lock: LockId): void {
  task.locks.splice(
    task.locks.findLastIndex((held) => held.lock === lock),
    1,
  );
  trace(host, 'lock', `task:${task.id}`, { lock, mode: 'W', state: 'released' });
  releaseHolder(host, lock, `task:${task.id}`);
  const pfn = pfnOf(lock);
  if (pfn !== null) host.mm.pages.put(pfn, host.seq);
}

/** EINVAL: the task does not hold the lock. */
export function unlockByTask(host: Host, command: Extract<Command, { op: 'unlock' }>): Done {
  const task = getTask(host, command.task);
  if (!task.locks.some(({ lock }) => lock === command.lock))
    throw new Errno('EINVAL', `lock: task '${task.id}' does not hold ${command.lock}`);
  releaseOfTask(host, task, command.lock);
  runThreads(host);
  return { ret: 0, fields: {} };
}

/** Models debug_check_no_locks_held(): what an exiting task still holds is reported and released. The caller runs the threads. */
export function releaseTaskLocks(host: Host, task: Task): void {
  if (task.locks.length === 0) return;
  const held = task.locks.map(({ lock }) => lock);
  splat(host, 'WARN', 'debug_check_no_locks_held', `${task.id} exits with locks held: ${held.join(', ')}`, ['do_exit']);
  for (const lock of held.reverse()) releaseOfTask(host, task, lock);
}

export const taskLockSteps: Handlers<TaskLockStep> = {
  /** The references of locked pages go over to the task. Where it has exited meanwhile nothing is kept. */
  keep_locks(host, operation, { task: id }) {
    const task = getTask(host, id);
    const { thread } = operation;
    for (const { lock } of thread.held) {
      const pfn = pfnOf(lock);
      if (pfn !== null) thread.pages.splice(thread.pages.lastIndexOf(pfn), 1);
    }
    keepLocks(host, operation, id);
    if (task.mm === null) releaseTaskLocks(host, task);
  },
};
