// Models mmu_notifier_get() and mmu_notifier_put(): one notifier for each ops table and mm, counted, freed after a grace period.

import type { Command } from '../../command.ts';
import { ERRNO, Errno, type ErrnoName } from '../../errno.ts';
import type { Host } from '../../host.ts';
import { mmapLock } from '../../lock.ts';
import { newOperation } from '../../operation.ts';
import type { Done } from '../../outcome.ts';
import type { Handlers } from '../../steps.ts';
import { newThread, pushSteps, runOperation, schedule, type ThreadOperation } from '../../thread.ts';
import { anyMm, getAnyMm, type MmId, mmdrop } from '../mm.ts';
import { getMmuNotifier } from './call.ts';
import { newNotifierId, newPlainNotifier, requireCallbacks } from './register.ts';
import { callSrcu } from './srcu.ts';
import type { CallbackName, PlainNotifier } from './subscriptions.ts';

/** UINT_MAX: users that one notifier can have. */
export const MAX_NOTIFIER_USERS = 2 ** 32 - 1;

export type GetStep =
  | {
      do: 'get_notifier';
      mm: MmId;
      ops: string;
      /** The id that alloc_notifier gives it; null: any. */
      id: string | null;
      callbacks: CallbackName[];
      handler: PlainNotifier['handler'];
      interrupted: boolean;
      alloc_fails: boolean;
      cleanup?: true;
    }
  | { do: 'notifier_allocated'; notifier: string; interrupted: boolean; cleanup?: true }
  /** Frees at once a notifier whose registration has failed. */
  | { do: 'free_unregistered'; notifier: string; cleanup: true }
  | { do: 'put_notifier'; notifier: string; cleanup?: true }
  | { do: 'notifier_freed'; notifier: string; cleanup: true };

/**
 * The notifier of an ops table in an mm; made by alloc_notifier where there is none. Fields: id, users.
 * EOPNOTSUPP, EINVAL: the callbacks. ENOSPC: MAX_NOTIFIERS. EEXIST: the id is taken. EOVERFLOW: MAX_NOTIFIER_USERS. ENOMEM, or what else alloc_notifier
 * answers. BUG: the mm has no users. EINTR.
 */
export function getOpsNotifier(host: Host, command: Extract<Command, { op: 'get_mmu_notifier' }>): Done {
  const { ops, callbacks, handler, interrupted = false, alloc_fails = false, task } = command;
  const mm = getAnyMm(host, command.mm).id;
  requireCallbacks(host, callbacks);
  const lock = mmapLock(mm);
  const done = runOperation(
    host,
    { kind: 'get_mmu_notifier', locals: { task: task ?? null, mm } },
    [
      { do: 'lock', lock, mode: 'W' },
      { do: 'get_notifier', mm, ops, id: command.id ?? null, callbacks, handler, interrupted, alloc_fails },
      { do: 'unlock', lock, cleanup: true },
    ],
    null,
  );
  return { ...done, created: done.fields.users === 1 };
}

/** Drops one user; the last one takes the notifier off its list. EINVAL: not from mmu_notifier_get(). EBUSY: it has no users. */
export function putMmuNotifier(host: Host, { mm, id, task }: Extract<Command, { op: 'put_mmu_notifier' }>): Done {
  const notifier = getMmuNotifier(host, id, mm);
  if (notifier.kind !== 'plain' || notifier.ops === null)
    throw new Errno('EINVAL', `notifier '${id}' did not come from mmu_notifier_get()`);
  if (notifier.users === 0) throw new Errno('EBUSY', `notifier '${id}' has no users: it is being made or freed`);
  return runOperation(
    host,
    { kind: 'put_mmu_notifier', locals: { task: task ?? null, mm: notifier.mm } },
    [{ do: 'put_notifier', notifier: id }],
    null,
  );
}

/** mmu_notifier_free_srcu(), in a thread of the kernel. Its operation has a number of its own: one command may free several. */
export function freeNotifier(host: Host, id: string): void {
  const { mm, callbacks } = getMmuNotifier(host, id) as PlainNotifier;
  const steps = newThread([
    ...(callbacks.includes('free_notifier')
      ? [{ do: 'mmu_callback', notifier: id, callback: 'free_notifier', range: null, cur_seq: null } as const]
      : []),
    { do: 'notifier_freed', notifier: id, cleanup: true },
  ]);
  const operation = newOperation(host, { kind: 'free_mmu_notifier', locals: { task: null, mm } }, steps);
  schedule(host, {
    ...operation,
    id: `free_mmu_notifier-${++host.mm.srcu.freed}`,
    notification: null,
  } as ThreadOperation);
}

const errnoNameOf = (ret: number): ErrnoName =>
  (Object.keys(ERRNO) as ErrnoName[]).find((name) => ERRNO[name] === -ret) ?? 'ENOMEM';

export const getSteps: Handlers<GetStep> = {
  get_notifier(host, operation, { mm, ops, id: wanted, callbacks, handler, interrupted, alloc_fails }) {
    const { thread } = operation;
    const list = anyMm(host, mm).subscriptions?.list ?? [];
    const found = list.map((other) => getMmuNotifier(host, other) as PlainNotifier).find((other) => other.ops === ops);
    if (found !== undefined) {
      if (found.users === MAX_NOTIFIER_USERS)
        throw new Errno('EOVERFLOW', `notifier '${found.id}' of ${ops} has ${found.users} users, the most it can have`);
      found.users++;
      thread.fields = { id: found.id, users: found.users };
      return;
    }
    const id = newNotifierId(host, wanted ?? undefined);
    host.mm.mmu_notifiers.set(id, newPlainNotifier(id, { mm, callbacks, handler }, ops));
    thread.returned = alloc_fails ? -ERRNO.ENOMEM : 0;
    const asks = callbacks.includes('alloc_notifier') && !(alloc_fails && handler.kind === 'script');
    pushSteps(operation, [
      ...(asks
        ? [{ do: 'mmu_callback', notifier: id, callback: 'alloc_notifier', range: null, cur_seq: null } as const]
        : []),
      { do: 'notifier_allocated', notifier: id, interrupted },
      { do: 'forget_unregistered', notifier: id, cleanup: true },
    ]);
  },

  notifier_allocated(host, operation, { notifier: id, interrupted }) {
    const { returned } = operation.thread;
    const { mm, ops } = getMmuNotifier(host, id) as PlainNotifier;
    if (returned < 0) throw new Errno(errnoNameOf(returned), `alloc_notifier of ${ops} answers ${returned}`);
    pushSteps(operation, [
      { do: 'register', mm, notifier: id, interrupted },
      { do: 'free_unregistered', notifier: id, cleanup: true },
    ]);
  },

  free_unregistered(host, operation, { notifier: id }) {
    const notifier = getMmuNotifier(host, id) as PlainNotifier;
    if (notifier.grabbed || host.dead !== null || !notifier.callbacks.includes('free_notifier')) return;
    pushSteps(operation, [{ do: 'mmu_callback', notifier: id, callback: 'free_notifier', range: null, cur_seq: null }]);
  },

  put_notifier(host, operation, { notifier: id }) {
    const notifier = getMmuNotifier(host, id) as PlainNotifier;
    notifier.users--;
    operation.thread.fields = { id, users: notifier.users };
    if (notifier.users > 0) return;
    notifier.leaving = true;
    const list = anyMm(host, notifier.mm).subscriptions?.list ?? [];
    if (list.includes(id)) list.splice(list.indexOf(id), 1);
    callSrcu(host, id);
  },

  notifier_freed(host, _operation, { notifier: id }) {
    const { mm } = getMmuNotifier(host, id);
    host.mm.mmu_notifiers.delete(id);
    mmdrop(host, anyMm(host, mm));
  },
};
