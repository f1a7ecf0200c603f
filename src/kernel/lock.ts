// Locks that threads of the emulated kernel hold while they are stopped or wait: who holds each, and who waits for it.

import { consumerWaits } from './consumers.ts';
import { Errno } from './errno.ts';
import { type Host, splat, trace } from './host.ts';
import { lockdepAcquire } from './lockdep.ts';
import type { CallbackFrame } from './mm/mmu-notifier/call.ts';
import { invalidatorsOf, SEQ_WAIT } from './mm/mmu-notifier/interval.ts';
import { readersBefore } from './mm/mmu-notifier/srcu.ts';
import type { Operation } from './operation.ts';
import { park, schedule, type ThreadOperation } from './thread.ts';
import { report } from './violation.ts';

/** R: shared with other readers. W: exclusive; the only mode of mutexes, page locks and spinlocks. */
export type LockMode = 'R' | 'W';

/** `<class>:<what it guards>`, such as 'mmap_lock:mm-1', 'page_lock:42', 'mutex:vq0'. */
export type LockId = string;

/** `<id of an operation>`, or `task:<id>` or `grant:<id>` where a task or a grant of a device holds a lock between two calls. */
export type HolderId = string;

export interface HeldLock {
  lock: LockId;
  mode: LockMode;
}

/** A lock that somebody holds or waits for; others are not in the table. */
export interface Lock {
  id: LockId;
  holders: { by: HolderId; mode: LockMode }[];
  /** In order of arrival. A writer that waits holds off later readers, as in an rwsem. `passes`: it only waits, and takes nothing. */
  waiters: { by: string; mode: LockMode; killable?: true; passes?: true }[];
}

export const mmapLock = (mm: string): LockId => `mmap_lock:${mm}`;
export const pageLock = (pfn: number): LockId => `page_lock:${pfn}`;
export const lockClass = (lock: LockId): string =>
  lock.startsWith('mutex:') || lock.startsWith('spinlock:') ? lock : lock.slice(0, lock.indexOf(':'));

/** Classes under which nobody may sleep. */
const isSpinning = (lock: LockId): boolean =>
  lock.startsWith('ptl:') || lock.startsWith('spinlock:') || lock.startsWith('rcu_read:');

/** Whoever holds one of these may not sleep. */
export const inAtomic = (host: Host, operation: ThreadOperation): boolean =>
  locksOf(host, operation).some(({ lock }) => isSpinning(lock));

const fits = (lock: Lock, mode: LockMode): boolean =>
  mode === 'W' ? lock.holders.length === 0 : lock.holders.every((holder) => holder.mode === 'R');

/** Whether the lock could be had at once. */
export function isLockFree({ locks }: Host, id: LockId, mode: LockMode): boolean {
  const lock = locks.get(id);
  return lock === undefined || (fits(lock, mode) && lock.waiters.length === 0);
}

/** Locks that a thread holds: its own, those of the task that runs it, and those of the thread in whose callback it was called. */
export function locksOf(
  host: Host,
  operation: Pick<ThreadOperation, 'thread' | 'locals' | 'notification'>,
): HeldLock[] {
  const { thread, locals } = operation;
  const task = 'task' in locals && locals.task !== null ? host.mm.tasks.get(locals.task) : undefined;
  return [...enclosingLocks(host, operation.notification), ...(task?.locks ?? []), ...thread.held];
}

/** The thread that waits for the handler in which a call is made. */
function enclosingThread(host: Host, notification: string | null): ThreadOperation | null {
  const pending = notification === null ? undefined : host.mm.notifications.get(notification);
  const outer = pending === undefined ? undefined : host.operations.get(pending.operation);
  return outer?.thread === undefined ? null : (outer as ThreadOperation);
}

function enclosingLocks(host: Host, notification: string | null): HeldLock[] {
  const outer = enclosingThread(host, notification);
  return outer === null ? [] : locksOf(host, outer);
}

/** Callbacks that a thread is inside, outermost first, those of the threads in whose callbacks it was called among them. */
export function callbacksOf(
  host: Host,
  { thread, notification }: Pick<ThreadOperation, 'thread' | 'notification'>,
): CallbackFrame[] {
  const outer = enclosingThread(host, notification);
  return [...(outer === null ? [] : callbacksOf(host, outer)), ...thread.callbacks];
}

/**
 * Takes a lock, or parks the thread until it is handed over. False: parked; the thread owns the lock when it goes on, unless
 * it waits killably and a fatal signal comes first.
 * EDEADLK: the thread would wait for itself.
 */
export function acquire(host: Host, operation: ThreadOperation, id: LockId, mode: LockMode, killable = false): boolean {
  lockdepAcquire(host, operation, id, mode);
  if (isLockFree(host, id, mode)) {
    take(host, operation, id, mode);
    return true;
  }
  if (killable && isDying(host, operation)) return false;
  waitFor(host, operation, id, killable ? { by: operation.id, mode, killable } : { by: operation.id, mode });
  return false;
}

/**
 * Waits until nobody has a lock, and does not take it: several that wait so all go on, and look again. True: it is free now.
 * EDEADLK: the thread would wait for itself.
 */
export function pass(host: Host, operation: ThreadOperation, id: LockId): boolean {
  lockdepAcquire(host, operation, id, 'W');
  if (isLockFree(host, id, 'W')) return true;
  waitFor(host, operation, id, { by: operation.id, mode: 'W', passes: true });
  return false;
}

function waitFor(host: Host, operation: ThreadOperation, id: LockId, waiter: Lock['waiters'][number]): void {
  const lock = host.locks.get(id) as Lock;
  const cycle = cycleThrough(
    host,
    operation,
    lock.holders.map(({ by }) => by),
  );
  if (cycle !== null) throw deadlock(host, operation, id, cycle);
  lock.waiters.push(waiter);
  trace(host, 'lock', operation.id, { lock: id, mode: waiter.mode, state: 'waits' });
  park(host, operation, id);
}

/** Whether the task that runs an operation has a fatal signal pending. */
export function isDying(host: Host, { locals }: Pick<Operation, 'locals'>): boolean {
  const task = 'task' in locals && locals.task !== null ? host.mm.tasks.get(locals.task) : undefined;
  return task?.fatal_signal_pending ?? false;
}

/** A thread that waits for a lock gives up: it goes on without it. Nothing where it waits for none. */
export function stopWaiting(host: Host, operation: ThreadOperation): void {
  const lock = operation.blocked_on === null ? undefined : host.locks.get(operation.blocked_on);
  const at = lock?.waiters.findIndex(({ by }) => by === operation.id) ?? -1;
  if (lock === undefined || at < 0) return;
  lock.waiters.splice(at, 1);
  trace(host, 'lock', operation.id, { lock: lock.id, state: 'given_up' });
  schedule(host, operation);
  handOver(host, lock);
}

/** A fatal signal ends the killable waits of a task. */
export function killWaits(host: Host, task: string): void {
  for (const operation of operationsOf(host, `task:${task}`)) {
    const lock = operation.blocked_on === null ? undefined : host.locks.get(operation.blocked_on);
    const waits = lock?.waiters.some(({ by, killable }) => by === operation.id && killable === true);
    if (waits === true) stopWaiting(host, operation as ThreadOperation);
  }
}

/** Takes a lock if it is free (trylock). A trylock cannot deadlock, so it orders nothing. */
export function tryAcquire(host: Host, operation: ThreadOperation, id: LockId, mode: LockMode): boolean {
  if (!isLockFree(host, id, mode)) {
    trace(host, 'lock', operation.id, { lock: id, mode, state: 'busy' });
    return false;
  }
  take(host, operation, id, mode);
  return true;
}

function take(host: Host, operation: ThreadOperation, id: LockId, mode: LockMode): void {
  const lock = host.locks.get(id) ?? { id, holders: [], waiters: [] };
  host.locks.set(id, lock);
  lock.holders.push({ by: operation.id, mode });
  operation.thread.held.push({ lock: id, mode });
  trace(host, 'lock', operation.id, { lock: id, mode, state: 'held' });
}

/** Whether the thread itself holds a lock. */
export const holds = ({ thread }: ThreadOperation, id: LockId): boolean => thread.held.some(({ lock }) => lock === id);

/** Releases a lock of the thread. Precondition: it holds it. */
export function release(host: Host, operation: ThreadOperation, id: LockId): void {
  const { held } = operation.thread;
  const at = held.findLastIndex(({ lock }) => lock === id);
  if (at < 0) throw new Error(`${operation.id} does not hold ${id}`);
  held.splice(at, 1);
  trace(host, 'lock', operation.id, { lock: id, state: 'released' });
  releaseHolder(host, id, operation.id);
}

/** Takes a holder off a lock and hands the lock to those who wait, in order of arrival. */
export function releaseHolder(host: Host, id: LockId, by: HolderId): void {
  const lock = host.locks.get(id);
  const at = lock?.holders.findIndex((holder) => holder.by === by) ?? -1;
  if (lock === undefined || at < 0) throw new Error(`${by} is no holder of ${id}`);
  lock.holders.splice(at, 1);
  handOver(host, lock);
}

/** Makes a lock that is held for writing one that is held for reading (mmap_write_downgrade). */
export function downgrade(host: Host, operation: ThreadOperation, id: LockId): void {
  const lock = host.locks.get(id) as Lock;
  for (const holder of lock.holders) if (holder.by === operation.id) holder.mode = 'R';
  for (const held of operation.thread.held) if (held.lock === id) held.mode = 'R';
  trace(host, 'lock', operation.id, { lock: id, mode: 'R', state: 'downgraded' });
  handOver(host, lock);
}

function handOver(host: Host, lock: Lock): void {
  for (let first = lock.waiters[0]; first !== undefined && fits(lock, first.mode); first = lock.waiters[0]) {
    lock.waiters.shift();
    const operation = host.operations.get(first.by) as ThreadOperation;
    if (first.passes !== true) take(host, operation, lock.id, first.mode);
    schedule(host, operation);
  }
  if (lock.holders.length === 0 && lock.waiters.length === 0) host.locks.delete(lock.id);
}

/** Locks of an operation become locks of its task: it keeps them between two calls. */
export function keepLocks(host: Host, operation: ThreadOperation, task: string): void {
  for (const { lock: id, mode } of operation.thread.held.splice(0)) {
    const by = `task:${task}`;
    for (const holder of (host.locks.get(id) as Lock).holders) if (holder.by === operation.id) holder.by = by;
    host.mm.tasks.get(task)?.locks.push({ lock: id, mode });
  }
}

/** A lock of an operation gets another holder, which keeps it between two calls. Precondition: the operation holds it for writing. */
export function handLockTo(host: Host, { id, thread }: ThreadOperation, lock: LockId, by: HolderId): void {
  thread.held.splice(
    thread.held.findLastIndex((held) => held.lock === lock),
    1,
  );
  for (const holder of (host.locks.get(lock) as Lock).holders) if (holder.by === id) holder.by = by;
}

/** Operations and tasks that a waiting operation waits for. */
function waitsFor(host: Host, operation: Operation): string[] {
  const on = operation.blocked_on;
  if (on === null) return [];
  const lock = host.locks.get(on);
  if (lock !== undefined) return lock.holders.map(({ by }) => by);
  if (on.startsWith('operation:')) return [on.slice('operation:'.length)];
  if (on === 'srcu') return readersBefore(host, operation.id);
  if (on.startsWith(SEQ_WAIT)) return invalidatorsOf(host, on.slice(SEQ_WAIT.length));
  if (!on.startsWith('notification:')) return consumerWaits(host, on);
  const notification = on.slice('notification:'.length);
  return [...host.operations.values()]
    .filter((inner) => inner.state !== 'done' && inner.notification === notification)
    .map(({ id }) => id);
}

/** Operations that run on behalf of a holder: itself, or all of a task's. */
function operationsOf(host: Host, holder: HolderId): Operation[] {
  if (!holder.startsWith('task:')) {
    const operation = host.operations.get(holder);
    return operation === undefined ? [] : [operation];
  }
  const task = holder.slice('task:'.length);
  return [...host.operations.values()].filter(
    ({ state, locals }) => state !== 'done' && 'task' in locals && locals.task === task,
  );
}

/** The way from those whom an operation would wait for back to itself; null: somebody can still go on. */
export function cycleThrough(host: Host, wanting: ThreadOperation, holders: readonly HolderId[]): string[] | null {
  const seen = new Set<string>();
  const { locals } = wanting;
  const itself = 'task' in locals && locals.task !== null ? `task:${locals.task}` : wanting.id;
  const back = (holder: HolderId): string[] | null => {
    if (holder === wanting.id || holder === itself) return [holder];
    for (const operation of operationsOf(host, holder)) {
      if (seen.has(operation.id)) continue;
      seen.add(operation.id);
      for (const next of waitsFor(host, operation)) {
        const rest = back(next);
        if (rest !== null) return [`${holder} waits for ${operation.blocked_on}`, ...rest];
      }
    }
    return null;
  };
  const enclosing = enclosingOf(host, wanting);
  for (const by of holders) {
    if (enclosing.includes(by)) return [`${by} comes first and waits for the handler that makes this call`];
    const way = back(by);
    if (way !== null) return way;
  }
  return null;
}

/** The operations, and the tasks that run them, in whose callbacks a call is made. */
export function enclosingOf(host: Host, operation: Operation): HolderId[] {
  const found: HolderId[] = [];
  let { notification } = operation;
  while (notification !== null) {
    const pending = host.mm.notifications.get(notification);
    const outer = pending === undefined ? undefined : host.operations.get(pending.operation);
    if (outer === undefined) break;
    found.push(outer.id);
    if ('task' in outer.locals && outer.locals.task !== null) found.push(`task:${outer.locals.task}`);
    notification = outer.notification;
  }
  return found;
}

/** Reports that an operation would wait for ever; the error it ends with. */
export function deadlock(host: Host, operation: ThreadOperation, on: string, cycle: readonly string[]): Errno {
  const what = `${operation.id} waits for ${on}: ${cycle.join('; ')}`;
  splat(host, 'DEADLOCK', operation.kind, what, []);
  report(host, operation, 'DEADLOCK', what, []);
  return new Errno('EDEADLK', what, { hint: 'the operation was ended; the cycle is in dmesg and under violations' });
}
