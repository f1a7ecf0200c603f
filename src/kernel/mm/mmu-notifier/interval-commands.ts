// Models mmu_interval_notifier_insert(), _remove() and the calls of a reader, as commands.

import type { Command } from '../../command.ts';
import { Errno } from '../../errno.ts';
import type { Host } from '../../host.ts';
import { hex, U64_MAX } from '../../lib/u64.ts';
import { mmapLock } from '../../lock.ts';
import { mightLock, mightWaitForEnd } from '../../lockdep.ts';
import type { Done } from '../../outcome.ts';
import type { Handlers, Step } from '../../steps.ts';
import { pushSteps, runOperation } from '../../thread.ts';
import { anyMm, getAnyMm, type MmId } from '../mm.ts';
import { getInterval } from './interval.ts';
import { newNotifierId } from './register.ts';
import { reportInCallback } from './rules.ts';
import type { IntervalNotifier } from './subscriptions.ts';

export type IntervalCommandStep =
  | { do: 'prepare_itree'; mm: MmId; cleanup?: true }
  | { do: 'require_interval'; notifier: string; length: bigint; cleanup?: true }
  | { do: 'may_wait_for_end'; what: string; removes: boolean; cleanup?: true };

/** ENODEV: the profile has none. */
function requireIntervals({ profile }: Host): void {
  if (!profile.intervalNotifiers) throw new Errno('ENODEV', `${profile.release} has no interval notifiers`);
}

/**
 * ENODEV: the profile has none. ENOSPC: MAX_NOTIFIERS. EEXIST: the id is taken. What a registration answers where the mm has had no interval notifier. EOVERFLOW:
 * length 0, or start + length passes the end of the space. EINVAL and a WARN: the mm is dead.
 */
export function insertIntervalNotifier(
  host: Host,
  { mm: mmId, id: wanted, start, length, handler, task }: Extract<Command, { op: 'insert_interval_notifier' }>,
): Done {
  requireIntervals(host);
  const mm = getAnyMm(host, mmId).id;
  const notifier = newIntervalNotifier(newNotifierId(host, wanted), { mm, start, length, handler });
  host.mm.mmu_notifiers.set(notifier.id, notifier);
  const locals = { task: task ?? null, mm };
  const done = runOperation(
    host,
    { kind: 'insert_interval_notifier', locals },
    insertSteps(notifier, length, []),
    null,
  );
  return { ...done, created: true };
}

export const newIntervalNotifier = (
  id: string,
  { mm, start, length, handler }: Pick<IntervalNotifier, 'mm' | 'start' | 'handler'> & { length: bigint },
): IntervalNotifier => ({
  kind: 'interval',
  id,
  mm,
  handler,
  grabbed: false,
  leaving: false,
  calls: {},
  mappings: new Map(),
  start,
  last: start + length - 1n,
  invalidate_seq: 0,
});

/** mmu_interval_notifier_insert(), and what the caller does once it has succeeded. */
export const insertSteps = ({ id, mm }: IntervalNotifier, length: bigint, then: readonly Step[]): Step[] => [
  { do: 'prepare_itree', mm },
  { do: 'require_interval', notifier: id, length },
  { do: 'insert_interval', notifier: id },
  ...then,
  { do: 'forget_unregistered', notifier: id, cleanup: true },
];

/** mmu_interval_notifier_remove(). */
export const removeSteps = (notifier: string): Step[] => [
  { do: 'may_wait_for_end', what: 'removes an interval notifier', removes: true },
  { do: 'remove_interval', notifier },
];

function requireIdle(notifier: IntervalNotifier): void {
  if (notifier.leaving || !notifier.grabbed)
    throw new Errno('EBUSY', `notifier '${notifier.id}' is being inserted or removed`);
}

/** May wait until the running invalidations end. EINVAL: no interval notifier. EBUSY: it is a consumer's, or is being removed. EDEADLK. */
export function removeIntervalNotifier(
  host: Host,
  { id, task }: Extract<Command, { op: 'remove_interval_notifier' }>,
): Done {
  requireIntervals(host);
  const notifier = getInterval(host, id);
  if (notifier.handler.kind === 'consumer')
    throw new Errno('EBUSY', `notifier '${id}' belongs to ${notifier.handler.consumer} '${notifier.handler.of}'`);
  requireIdle(notifier);
  return runOperation(
    host,
    { kind: 'remove_interval_notifier', locals: { task: task ?? null, mm: notifier.mm } },
    removeSteps(id),
    null,
  );
}

/** Fields: sequence. Waits while the range that the notifier saw last may still be open. EINVAL; EBUSY; EDEADLK. */
export function intervalReadBegin(host: Host, { mm, id, task }: Extract<Command, { op: 'interval_read_begin' }>): Done {
  requireIntervals(host);
  const notifier = getInterval(host, id, mm);
  requireIdle(notifier);
  return runOperation(
    host,
    { kind: 'interval_read_begin', locals: { task: task ?? null, mm: notifier.mm } },
    [
      { do: 'may_wait_for_end', what: 'begins to read', removes: false },
      { do: 'read_begin', notifier: id },
    ],
    null,
  );
}

/** ret 1: it has collided, and starts again. Both hold what the reader saw against what the callback has stored since. */
export function intervalReadRetry(
  host: Host,
  { mm, id, sequence }: Extract<Command, { op: 'interval_read_retry' | 'interval_check_retry' }>,
): Done {
  requireIntervals(host);
  return { ret: getInterval(host, id, mm).invalidate_seq === sequence ? 0 : 1, fields: {} };
}

/** What a callback does under its user lock. */
export function intervalSetSeq(host: Host, { mm, id, sequence }: Extract<Command, { op: 'interval_set_seq' }>): Done {
  requireIntervals(host);
  getInterval(host, id, mm).invalidate_seq = sequence;
  return { ret: 0, fields: {} };
}

export const intervalCommandSteps: Handlers<IntervalCommandStep> = {
  /** The first interval notifier of an mm registers: it takes mmap_lock, the others might. */
  prepare_itree(host, operation, { mm: id }) {
    const lock = mmapLock(id);
    mightLock(host, operation, lock);
    if (anyMm(host, id).subscriptions?.has_itree === true) return;
    pushSteps(operation, [
      { do: 'lock', lock, mode: 'W' },
      { do: 'register', mm: id, notifier: null, interrupted: false },
      { do: 'unlock', lock, cleanup: true },
    ]);
  },

  require_interval(host, _operation, { notifier: id, length }) {
    const { start, last } = getInterval(host, id);
    if (length === 0n) throw new Errno('EOVERFLOW', 'length: 0x0');
    if (last > U64_MAX)
      throw new Errno('EOVERFLOW', `start ${hex(start)} + length ${hex(length)} passes the end of the space`);
  },

  may_wait_for_end(host, operation, { what, removes }) {
    if (removes && reportInCallback(host, operation, what)) return;
    mightWaitForEnd(host, operation, what);
  },
};
