// Models what lockdep knows: in which order classes of locks have been taken, and which orders contradict each other.

import { type Host, printk } from './host.ts';
import { MAX_LOCKDEP_ENTRIES } from './limits.ts';
import { callbacksOf, inAtomic, type LockId, type LockMode, lockClass, locksOf } from './lock.ts';
import type { CallbackName } from './mm/mmu-notifier/subscriptions.ts';
import type { ThreadOperation } from './thread.ts';
import { report, type ViolationCode } from './violation.ts';

/** Pseudo classes: an allocation that may reclaim memory, the callbacks of a range, and the wait for the end of a range. */
export const FS_RECLAIM = 'fs_reclaim';
export const NOTIFIER_START = 'mmu_notifier_invalidate_range_start';
export const NOTIFIER_WAIT = 'mmu_interval_notifier_wait';

/** Callbacks between whose call and return the pseudo class NOTIFIER_START is held. */
const RANGE_CALLBACKS: readonly CallbackName[] = ['invalidate_range_start', 'invalidate_range_end', 'invalidate'];

/** How one class came to be taken under another. */
export interface LockEdge {
  held: string;
  taken: string;
  /** Where it happened first: operation, phase, callback. */
  path: string;
  seq: number;
}

export interface Lockdep {
  /** By `<held>><taken>`. */
  edges: Map<string, LockEdge>;
  /** Contradictions that have been reported: each set of classes once for each code. */
  reported: Set<string>;
}

const taught = (held: string, taken: string, path: string): [string, LockEdge] => [
  `${held}>${taken}`,
  { held, taken, path, seq: 0 },
];

/** The kernel teaches it that reclaim may run the callbacks of a range, and that who waits for the end waits for them. */
export const newLockdep = (): Lockdep => ({
  edges: new Map([
    taught(FS_RECLAIM, NOTIFIER_START, 'reclaim unmaps pages'),
    taught(NOTIFIER_WAIT, NOTIFIER_START, 'a range ends after its callbacks'),
  ]),
  reported: new Set(),
});

/** Where a thread is, in one line. */
export function whereabouts(host: Host, operation: ThreadOperation): string {
  const inside = callbacksOf(host, operation).map(({ notifier, callback }) => ` in ${notifier}.${callback}`);
  return `${operation.id} ${operation.phase}${inside.join('')}`;
}

/** Classes that a thread holds now, the callbacks of a range that it is inside among them. */
function classesHeld(host: Host, operation: ThreadOperation): Set<string> {
  const held = new Set(locksOf(host, operation).map(({ lock }) => lockClass(lock)));
  if (callbacksOf(host, operation).some(({ callback }) => RANGE_CALLBACKS.includes(callback))) held.add(NOTIFIER_START);
  return held;
}

/** Before a lock is waited for: what the thread may not do here, and what the order contradicts. */
export function lockdepAcquire(host: Host, operation: ThreadOperation, lock: LockId, mode: LockMode): void {
  const spinning = lock.startsWith('ptl:') || lock.startsWith('spinlock:');
  if (!spinning) mightSleep(host, operation, `takes ${lock}`);
  const inner = callbacksOf(host, operation).at(-1);
  const cls = lockClass(lock);
  const recursive = inner !== undefined && locksOf(host, operation).some((held) => held.lock === lock);
  if (recursive) {
    const text = `${inner.notifier}.${inner.callback} takes ${lock}, which its own thread holds`;
    reportOnce(host, operation, 'SELF_RECURSION', [cls], text, [whereabouts(host, operation)]);
    return;
  }
  if (mode === 'R' && locksOf(host, operation).some((held) => held.lock === lock && held.mode === 'R'))
    reportOnce(
      host,
      operation,
      'RECURSIVE_READ_LOCK',
      [cls],
      `${lock} is taken for reading by a thread that reads under it: a writer that comes between stops both for ever`,
      [whereabouts(host, operation)],
    );
  noteOrder(host, operation, cls);
}

/** might_lock(): the thread may take it here. */
export const mightLock = (host: Host, operation: ThreadOperation, lock: LockId): void =>
  noteOrder(host, operation, lockClass(lock));

/** An allocation that may reclaim memory. */
export function mightReclaim(host: Host, operation: ThreadOperation): void {
  mightSleep(host, operation, 'allocates memory (GFP_KERNEL)');
  noteOrder(host, operation, FS_RECLAIM);
}

/** The callbacks of a range are about to be called, or would be if there were any. */
export const mightInvalidate = (host: Host, operation: ThreadOperation): void =>
  noteOrder(host, operation, NOTIFIER_START);

/** The thread waits, or would, for the end of an invalidation. */
export function mightWaitForEnd(host: Host, operation: ThreadOperation, what: string): void {
  mightSleep(host, operation, what);
  noteOrder(host, operation, NOTIFIER_WAIT);
}

/** The thread is about to do something that sleeps. */
export function mightSleep(host: Host, operation: ThreadOperation, what: string): void {
  const callbacks = callbacksOf(host, operation);
  const inner = callbacks.at(-1);
  const who = inner === undefined ? operation.kind : `${inner.notifier}.${inner.callback}`;
  const where = whereabouts(host, operation);
  if (inAtomic(host, operation) || callbacks.some(({ atomic }) => atomic))
    report(host, operation, 'SLEEP_IN_ATOMIC', `${who} ${what} where it may not sleep`, [where]);
  else if (callbacks.some(({ blockable }) => !blockable))
    report(host, operation, 'SLEEP_IN_NONBLOCK', `${who} ${what} in a range that is not blockable`, [where]);
}

/** The classes a thread holds come before the one it takes. A new order can contradict others: the shortest cycle is reported. */
function noteOrder(host: Host, operation: ThreadOperation, taken: string): void {
  const { edges } = host.lockdep;
  let shortest: LockEdge[] | null = null;
  for (const held of classesHeld(host, operation)) {
    if (held === taken) continue;
    const key = `${held}>${taken}`;
    if (edges.has(key)) continue;
    if (edges.size >= MAX_LOCKDEP_ENTRIES) {
      const text = `lockdep: MAX_LOCKDEP_ENTRIES (${MAX_LOCKDEP_ENTRIES}) orders of locks are known, new ones are not noted`;
      if (!host.mm.warned.has(text)) printk(host, 'warning', text);
      host.mm.warned.add(text);
      break;
    }
    const edge = { held, taken, path: whereabouts(host, operation), seq: host.seq };
    edges.set(key, edge);
    const back = wayBetween(edges, taken, held);
    if (back !== null && (shortest === null || back.length + 1 < shortest.length)) shortest = [edge, ...back];
  }
  if (shortest !== null) reportContradiction(host, operation, shortest);
}

/** What a cycle of orders violates: `[0]` is the order that closed it. */
function codeOf(cycle: readonly LockEdge[]): ViolationCode {
  const classes = cycle.map(({ taken }) => taken);
  if (classes.includes(FS_RECLAIM)) return 'RECLAIM_UNDER_NOTIFIER_LOCK';
  if (classes.includes(NOTIFIER_WAIT)) return 'WAIT_UNDER_CALLBACK_LOCK';
  return classes.includes(NOTIFIER_START) && classes.length === 2 ? 'SELF_RECURSION' : 'LOCK_INVERSION';
}

function reportContradiction(host: Host, operation: ThreadOperation, cycle: readonly LockEdge[]): void {
  const code = codeOf(cycle);
  const [closing, ...back] = cycle as [LockEdge, ...LockEdge[]];
  const under = (pseudo: string): string => cycle.find(({ taken }) => taken === pseudo)?.held ?? '';
  const what = {
    RECLAIM_UNDER_NOTIFIER_LOCK: `memory is allocated with reclaim under ${under(FS_RECLAIM)}, which callbacks of a range take`,
    WAIT_UNDER_CALLBACK_LOCK: `the end of an invalidation is waited for under ${under(NOTIFIER_WAIT)}, which its callbacks take`,
    SELF_RECURSION: `a range is invalidated under ${under(NOTIFIER_START)}, which callbacks of a range take`,
    LOCK_INVERSION: `${closing.taken} is taken under ${closing.held}; elsewhere ${closing.held} is taken after ${closing.taken}`,
  }[code as 'LOCK_INVERSION'];
  const printed = ({ held, taken, path, seq }: LockEdge): string => `${held} -> ${taken} (${path}, seq ${seq})`;
  const classes = cycle.map(({ taken }) => taken).filter((taken) => taken !== NOTIFIER_START);
  reportOnce(host, operation, code, classes, what, [printed(closing), back.map(printed).join('; ')]);
}

/** Like lockdep, which says a thing once. */
function reportOnce(
  host: Host,
  operation: ThreadOperation,
  code: ViolationCode,
  classes: readonly string[],
  text: string,
  paths: readonly string[],
): void {
  const key = `${code} ${[...classes].sort().join(' ')}`;
  if (host.lockdep.reported.has(key)) return;
  host.lockdep.reported.add(key);
  report(host, operation, code, text, paths);
}

/** The shortest chain of orders from one class to another; null: none. */
export function wayBetween(edges: ReadonlyMap<string, LockEdge>, from: string, to: string): LockEdge[] | null {
  const ways: { at: string; way: LockEdge[] }[] = [{ at: from, way: [] }];
  const seen = new Set([from]);
  for (let next = ways.shift(); next !== undefined; next = ways.shift()) {
    for (const edge of edges.values()) {
      if (edge.held !== next.at || seen.has(edge.taken)) continue;
      const way = [...next.way, edge];
      if (edge.taken === to) return way;
      seen.add(edge.taken);
      ways.push({ at: edge.taken, way });
    }
  }
  return null;
}
