// Models the interval notifiers of mm/mmu_notifier.c: the sequence protocol by which a reader sees that it collided.

import { Errno } from '../../errno.ts';
import { type Host, splat } from '../../host.ts';
import { addressOf } from '../../lib/u64.ts';
import { cycleThrough, deadlock } from '../../lock.ts';
import type { Handlers } from '../../steps.ts';
import { park, pushSteps, schedule, type ThreadOperation } from '../../thread.ts';
import { anyMm, type MmId, mmdrop, mmgrab } from '../mm.ts';
import { getMmuNotifier } from './call.ts';
import { endOf } from './range.ts';
import type { IntervalNotifier, Subscriptions } from './subscriptions.ts';

/** What an operation waits for that sleeps until invalidate_seq of an mm changes. */
export const SEQ_WAIT = 'invalidate_seq:';

export type IntervalStep =
  | { do: 'insert_interval'; notifier: string; cleanup?: true }
  | { do: 'remove_interval'; notifier: string; cleanup?: true }
  | { do: 'interval_removed'; notifier: string; cleanup?: true }
  | { do: 'read_begin'; notifier: string; cleanup?: true }
  /** Sleeps until invalidate_seq is another; where it never will be, the cycle has a name. */
  | { do: 'wait_seq'; mm: MmId; seq: number; cleanup?: true };

export function getInterval(host: Host, id: string, mm?: string): IntervalNotifier {
  const notifier = getMmuNotifier(host, id, mm);
  if (notifier.kind !== 'interval') throw new Errno('EINVAL', `notifier '${id}' is no interval notifier`);
  return notifier;
}

export const isInvalidating = ({ invalidate_seq }: Subscriptions): boolean => invalidate_seq % 2 === 1;

/** Interval notifiers that the pages [start, end) intersect, in the order of the tree. */
export const intersecting = (host: Host, subs: Subscriptions, start: number, end: number): string[] =>
  subs.intervals.filter((id) => {
    const interval = getInterval(host, id);
    return interval.start < endOf({ end }) && interval.last >= addressOf(start);
  });

/** mn_itree_inv_start_range(): the sequence becomes odd as soon as a tracked range is hit. */
export function itreeInvStart(subs: Subscriptions, hits: boolean): void {
  subs.active_invalidate_ranges++;
  if (hits && !isInvalidating(subs)) subs.invalidate_seq++;
}

/** mn_itree_inv_end(): the last end of an odd sequence makes it even, lets in and out what waited, and wakes the readers. */
export function itreeInvEnd(host: Host, subs: Subscriptions): void {
  subs.active_invalidate_ranges--;
  if (subs.active_invalidate_ranges > 0 || !isInvalidating(subs)) return;
  subs.invalidate_seq++;
  for (const id of subs.deferred.splice(0)) {
    if (subs.intervals.includes(id)) subs.intervals.splice(subs.intervals.indexOf(id), 1);
    else insertInTree(host, subs, id);
  }
  for (const id of subs.waiting.splice(0)) schedule(host, host.operations.get(id) as ThreadOperation);
}

/** Behind those that start at the same byte. */
function insertInTree(host: Host, subs: Subscriptions, id: string): void {
  const { start } = getInterval(host, id);
  const at = subs.intervals.findIndex((other) => getInterval(host, other).start > start);
  subs.intervals.splice(at < 0 ? subs.intervals.length : at, 0, id);
}

/** Operations whose ranges are between start and end. */
export const invalidatorsOf = (host: Host, mm: MmId): string[] =>
  (anyMm(host, mm).subscriptions?.active ?? []).filter(({ counted }) => counted).map(({ operation }) => operation);

const subscriptionsOf = (host: Host, { mm }: IntervalNotifier): Subscriptions =>
  anyMm(host, mm).subscriptions as Subscriptions;

/** Whether those who keep the tree may still be told of something; EINVAL and a WARN where not. */
function requireLiveMm(host: Host, { mm: id, id: notifier }: IntervalNotifier): void {
  const mm = anyMm(host, id);
  const dead = host.profile.intervalInsertTest === 'mm_users' ? mm.users <= 0 : mm.count <= 0;
  if (!dead) return;
  splat(host, 'WARN', '__mmu_interval_notifier_insert', `insert-into-dead-mm: ${notifier} into ${id}`, [
    'mmu_interval_notifier_insert',
  ]);
  throw new Errno('EINVAL', `mm '${id}' has ${mm.users} users: it is not alive`);
}

export const intervalSteps: Handlers<IntervalStep> = {
  insert_interval(host, operation, { notifier: id }) {
    const notifier = getInterval(host, id);
    requireLiveMm(host, notifier);
    const subs = subscriptionsOf(host, notifier);
    mmgrab(anyMm(host, notifier.mm));
    notifier.grabbed = true;
    operation.thread.fields = { id };
    if (subs.active_invalidate_ranges === 0) {
      notifier.invalidate_seq = subs.invalidate_seq - 1;
      insertInTree(host, subs, id);
      return;
    }
    if (isInvalidating(subs)) subs.deferred.unshift(id);
    else {
      subs.invalidate_seq++;
      insertInTree(host, subs, id);
    }
    notifier.invalidate_seq = subs.invalidate_seq;
  },

  /** What would wait for ever is refused before anything has happened. */
  remove_interval(host, operation, { notifier: id }) {
    const notifier = getInterval(host, id);
    const subs = subscriptionsOf(host, notifier);
    const inTree = subs.intervals.includes(id);
    if (isInvalidating(subs) && inTree) {
      requireEnd(host, operation, notifier.mm);
      subs.deferred.unshift(id);
      pushSteps(operation, [
        { do: 'wait_seq', mm: notifier.mm, seq: subs.invalidate_seq },
        { do: 'interval_removed', notifier: id },
      ]);
    } else {
      const list = inTree ? subs.intervals : subs.deferred;
      list.splice(list.indexOf(id), 1);
      pushSteps(operation, [{ do: 'interval_removed', notifier: id }]);
    }
    notifier.leaving = true;
  },

  interval_removed(host, operation, { notifier: id }) {
    operation.thread.fields = { id };
    const { mm } = getInterval(host, id);
    host.mm.mmu_notifiers.delete(id);
    mmdrop(host, anyMm(host, mm));
  },

  read_begin(host, operation, { notifier: id }) {
    const notifier = getInterval(host, id);
    const seq = notifier.invalidate_seq;
    operation.thread.fields = { sequence: seq };
    if (seq === subscriptionsOf(host, notifier).invalidate_seq)
      pushSteps(operation, [{ do: 'wait_seq', mm: notifier.mm, seq }]);
  },

  wait_seq(host, operation, { mm, seq }) {
    const subs = anyMm(host, mm).subscriptions;
    if (subs === null || subs.invalidate_seq !== seq) return;
    requireEnd(host, operation, mm);
    subs.waiting.push(operation.id);
    park(host, operation, `${SEQ_WAIT}${mm}`);
  },
};

/** EDEADLK: the invalidations of the mm wait for this call, or one has left its count raised for ever. */
function requireEnd(host: Host, operation: ThreadOperation, mm: MmId): void {
  const invalidators = invalidatorsOf(host, mm);
  const counted = anyMm(host, mm).subscriptions?.active_invalidate_ranges ?? 0;
  const why = 'waits-for-the-end-of-an-invalidation-that-never-comes';
  if (counted > invalidators.length)
    throw deadlock(host, operation, `${SEQ_WAIT}${mm}`, [
      why,
      `${counted} ranges are counted, of which ${invalidators.length} can end`,
    ]);
  const cycle = cycleThrough(host, operation, invalidators);
  if (cycle !== null) throw deadlock(host, operation, `${SEQ_WAIT}${mm}`, [why, ...cycle]);
}
