// Models mmu_notifier_register() and mmu_notifier_unregister(): the notifier gets on its mm's list, and off it again.

import { killHost } from '../../bug.ts';
import type { Command } from '../../command.ts';
import { Errno } from '../../errno.ts';
import { shouldFail } from '../../fault-rule.ts';
import type { Host } from '../../host.ts';
import { MAX_NOTIFIERS } from '../../limits.ts';
import { type LockId, mmapLock } from '../../lock.ts';
import { mightWaitForEnd } from '../../lockdep.ts';
import type { Done } from '../../outcome.ts';
import type { Handlers, Step } from '../../steps.ts';
import { pushSteps, runOperation } from '../../thread.ts';
import { anyMm, getAnyMm, type MmId, mmdrop, mmgrab } from '../mm.ts';
import { anonVmaLock, iMmapLock } from '../rmap.ts';
import { getMmuNotifier } from './call.ts';
import { reportInCallback } from './rules.ts';
import { requireOutsideCallback, srcuReadLock } from './srcu.ts';
import { type CallbackName, newSubscriptions, type PlainNotifier } from './subscriptions.ts';

export type RegisterStep =
  /** __mmu_notifier_register(): `notifier` null, the mm is made ready for interval notifiers. Precondition: mmap_lock, W. */
  | { do: 'register'; mm: MmId; notifier: string | null; interrupted: boolean; cleanup?: true }
  | { do: 'registered'; mm: MmId; notifier: string | null; cleanup?: true }
  /** Forgets a notifier whose registration has failed. */
  | { do: 'forget_unregistered'; notifier: string; cleanup: true }
  | { do: 'unregister'; notifier: string; cleanup?: true }
  | { do: 'unlist'; notifier: string; cleanup?: true }
  | { do: 'unregistered'; notifier: string; cleanup?: true };

/** The id of a new notifier. EEXIST; ENOSPC: the host has MAX_NOTIFIERS. */
export function newNotifierId(host: Host, id: string | undefined): string {
  const { mmu_notifiers } = host.mm;
  if (mmu_notifiers.size >= MAX_NOTIFIERS)
    throw new Errno('ENOSPC', `mmu notifiers: the host has ${MAX_NOTIFIERS}, the most it can hold`);
  if (id !== undefined && mmu_notifiers.has(id)) throw new Errno('EEXIST', `mmu notifier '${id}' exists`);
  let made = id;
  while (made === undefined || mmu_notifiers.has(made)) made = `mmu-notifier-${host.mm.next_mmu_notifier++}`;
  return made;
}

/**
 * A callback that the profile's notifiers have.
 * EOPNOTSUPP: one of another era. EINVAL: arch_invalidate_secondary_tlbs together with start or end.
 */
export function requireCallbacks({ profile }: Host, callbacks: readonly CallbackName[]): void {
  const has = (callback: CallbackName): boolean => callbacks.includes(callback);
  const missing: CallbackName[] = [
    profile.invalidateRangeCallback ? 'arch_invalidate_secondary_tlbs' : 'invalidate_range',
    ...(profile.changePteCallback ? [] : (['change_pte'] as const)),
  ];
  const foreign = callbacks.find((callback) => callback === 'invalidate' || missing.includes(callback));
  if (foreign !== undefined)
    throw new Errno('EOPNOTSUPP', `callbacks: struct mmu_notifier_ops of ${profile.release} has no ${foreign}`);
  if (has('arch_invalidate_secondary_tlbs') && (has('invalidate_range_start') || has('invalidate_range_end')))
    throw new Errno('EINVAL', 'callbacks: arch_invalidate_secondary_tlbs together with start or end');
}

export const newPlainNotifier = (
  id: string,
  { mm, callbacks, handler }: Pick<PlainNotifier, 'mm' | 'callbacks' | 'handler'>,
  ops: string | null,
): PlainNotifier => ({
  kind: 'plain',
  id,
  mm,
  handler,
  callbacks: [...callbacks],
  grabbed: false,
  leaving: false,
  calls: {},
  mappings: new Map(),
  ops,
  users: 0,
  open_starts: 0,
  unbalanced: false,
});

/**
 * EOPNOTSUPP, EINVAL: the callbacks. ENOSPC: MAX_NOTIFIERS. EEXIST: the id is taken. BUG: the mm has no users. ENOMEM: the first registration finds no memory. EINTR: a signal is pending while all rmap
 * locks are taken.
 */
export function registerMmuNotifier(host: Host, command: Extract<Command, { op: 'register_mmu_notifier' }>): Done {
  const { mm: mmId, callbacks, interrupted = false, task } = command;
  const mm = getAnyMm(host, mmId).id;
  requireCallbacks(host, callbacks);
  const id = newNotifierId(host, command.id);
  host.mm.mmu_notifiers.set(id, newPlainNotifier(id, command, null));
  const lock = mmapLock(mm);
  const done = runOperation(
    host,
    { kind: 'register_mmu_notifier', locals: { task: task ?? null, mm } },
    [
      { do: 'lock', lock, mode: 'W' },
      { do: 'register', mm, notifier: id, interrupted },
      { do: 'unlock', lock, cleanup: true },
      { do: 'forget_unregistered', notifier: id, cleanup: true },
    ],
    null,
  );
  return { ...done, created: true };
}

/** The locks of all reverse mappings that lead to an mm, as mm_take_all_locks() takes them. */
function rmapLocks(host: Host, id: MmId): LockId[] {
  const { areas } = anyMm(host, id).vmas;
  const files = areas.flatMap(({ kind, file }) => (kind === 'file' && file !== null ? [iMmapLock(file)] : []));
  const anon = areas.flatMap(({ anon_vma }) => (anon_vma === null ? [] : [anonVmaLock(anon_vma)]));
  return [...new Set([...files, ...anon])];
}

/**
 * Unregisters a notifier, and waits until nobody is inside its callbacks.
 * EINVAL: it came from mmu_notifier_get(), or is an interval notifier. EBUSY: it is a consumer's, or is being unregistered. EDEADLK: called
 * inside a callback.
 */
export function unregisterMmuNotifier(
  host: Host,
  { id, task }: Extract<Command, { op: 'unregister_mmu_notifier' }>,
): Done {
  const notifier = getMmuNotifier(host, id);
  if (notifier.kind !== 'plain' || notifier.ops !== null)
    throw new Errno('EINVAL', `notifier '${id}' was not registered as a block`, {
      hint: notifier.kind === 'plain' ? 'put_mmu_notifier drops it' : 'remove_interval_notifier removes it',
    });
  if (notifier.handler.kind === 'consumer')
    throw new Errno('EBUSY', `notifier '${id}' belongs to ${notifier.handler.consumer} '${notifier.handler.of}'`);
  if (notifier.leaving || !notifier.grabbed)
    throw new Errno('EBUSY', `notifier '${id}' is being registered or unregistered`);
  return runOperation(
    host,
    { kind: 'unregister_mmu_notifier', locals: { task: task ?? null, mm: notifier.mm } },
    [{ do: 'unregister', notifier: id }, { do: 'synchronize_srcu' }, { do: 'unregistered', notifier: id }],
    null,
  );
}

export const registerSteps: Handlers<RegisterStep> = {
  register(host, operation, { mm: id, notifier, interrupted }) {
    const mm = anyMm(host, id);
    if (mm.users <= 0)
      throw killHost(host, operation, '__mmu_notifier_register', `mm-not-alive: ${id} has no users`, [
        'mmu_notifier_register',
      ]);
    if (mm.subscriptions === null && shouldFail(host, 'subscriptions_alloc'))
      throw new Errno('ENOMEM', `mm '${id}': no memory for its mmu_notifier_subscriptions`);
    if (interrupted)
      throw new Errno('EINTR', `a signal is pending while the locks of all mappings of '${id}' are taken`);
    const locks = rmapLocks(host, id);
    pushSteps(operation, [
      ...locks.map((lock): Step => ({ do: 'lock', lock, mode: 'W' })),
      { do: 'registered', mm: id, notifier },
      ...locks.map((lock): Step => ({ do: 'unlock', lock, cleanup: true })),
    ]);
  },

  registered(host, operation, { mm: id, notifier: notifierId }) {
    const mm = anyMm(host, id);
    mm.subscriptions ??= newSubscriptions();
    if (notifierId === null) {
      mm.subscriptions.has_itree = true;
      return;
    }
    const notifier = getMmuNotifier(host, notifierId) as PlainNotifier;
    mmgrab(mm);
    notifier.grabbed = true;
    notifier.users = 1;
    mm.subscriptions.list.unshift(notifierId);
    operation.thread.fields = { id: notifierId, users: 1 };
  },

  forget_unregistered(host, _operation, { notifier }) {
    if (host.mm.mmu_notifiers.get(notifier)?.grabbed === false) host.mm.mmu_notifiers.delete(notifier);
  },

  unregister(host, operation, { notifier: id }) {
    const notifier = getMmuNotifier(host, id) as PlainNotifier;
    const what = 'unregisters a notifier';
    if (!reportInCallback(host, operation, what)) mightWaitForEnd(host, operation, what);
    requireOutsideCallback(host, operation);
    notifier.leaving = true;
    if (anyMm(host, notifier.mm).subscriptions?.list.includes(id) !== true) return;
    pushSteps(operation, [{ do: 'unlist', notifier: id }]);
    if (!notifier.callbacks.includes('release')) return;
    srcuReadLock(host, operation);
    pushSteps(operation, [{ do: 'mmu_callback', notifier: id, callback: 'release', range: null, cur_seq: null }]);
  },

  unlist(host, _operation, { notifier: id }) {
    const list = anyMm(host, getMmuNotifier(host, id).mm).subscriptions?.list ?? [];
    if (list.includes(id)) list.splice(list.indexOf(id), 1);
  },

  unregistered(host, operation, { notifier: id }) {
    const { mm } = getMmuNotifier(host, id);
    operation.thread.fields = { id };
    host.mm.mmu_notifiers.delete(id);
    mmdrop(host, anyMm(host, mm));
  },
};
