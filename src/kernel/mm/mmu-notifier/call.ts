// Calls one callback of an mmu notifier: runs its script, or tells its client and waits for the answer.

import { consumerOf } from '../../consumers.ts';
import { Errno, NoSuchObject } from '../../errno.ts';
import { type Host, trace } from '../../host.ts';
import { addressOf } from '../../lib/u64.ts';
import { locksOf } from '../../lock.ts';
import type { MmuNotification } from '../../outcome.ts';
import type { Handlers } from '../../steps.ts';
import { park, pushSteps, type ThreadOperation } from '../../thread.ts';
import { countEnd, countStart } from './balance.ts';
import { endOf, type MmuRange } from './range.ts';
import { actionStep } from './script.ts';
import type { CallbackName, MmuNotifier } from './subscriptions.ts';

/** Callbacks that run, or may run, under a spinlock, or from SRCU with bottom halves off: whoever is inside may not sleep. */
const ATOMIC: readonly CallbackName[] = [
  'invalidate_range',
  'change_pte',
  'clear_flush_young',
  'clear_young',
  'test_young',
  'arch_invalidate_secondary_tlbs',
  'free_notifier',
];

/** A callback that a thread is inside. */
export interface CallbackFrame {
  notifier: string;
  callback: CallbackName;
  range: MmuRange | null;
  cur_seq: number | null;
  blockable: boolean;
  atomic: boolean;
}

export type CallbackStep =
  | {
      do: 'mmu_callback';
      notifier: string;
      callback: CallbackName;
      /** null: `release` and the like, which are about no range. */
      range: MmuRange | null;
      cur_seq: number | null;
      pfn?: number | null;
      cleanup?: true;
    }
  | { do: 'mmu_callback_return'; notifier: string; callback: CallbackName; returns: number | null; cleanup: true };

/** `mm`: whose it has to be, where that is said. */
export function getMmuNotifier(host: Host, id: string, mm?: string): MmuNotifier {
  const notifier = host.mm.mmu_notifiers.get(id);
  if (notifier === undefined || (mm !== undefined && notifier.mm !== mm)) throw new NoSuchObject('mmu notifier', id);
  return notifier;
}

export const callbackSteps: Handlers<CallbackStep> = {
  mmu_callback(host, operation, step) {
    const { notifier: id, callback, range, cur_seq, pfn = null } = step;
    const notifier = getMmuNotifier(host, id);
    const { thread } = operation;
    const held = locksOf(host, operation).map(({ lock }) => lock);
    trace(host, 'notify', operation.id, {
      notifier: id,
      callback,
      phase: operation.phase,
      mm: notifier.mm,
      mmu_event: range?.event ?? null,
      start: range === null ? null : addressOf(range.start),
      end: range === null ? null : endOf(range),
      blockable: range?.blockable ?? true,
      owner: range?.owner ?? null,
      cur_seq,
      locks_held: held,
    });
    notifier.calls[callback] = (notifier.calls[callback] ?? 0) + 1;
    const atomic = ATOMIC.includes(callback);
    thread.callbacks.push({ notifier: id, callback, range, cur_seq, blockable: range?.blockable ?? true, atomic });
    thread.returned = 0;
    if (notifier.handler.kind === 'script') {
      const script = notifier.handler.scripts[callback];
      pushSteps(operation, [
        ...(script?.actions ?? []).map((action) => actionStep(action, id)),
        {
          do: 'mmu_callback_return',
          notifier: id,
          callback,
          returns: script?.returns ?? defaultReturn(callback),
          cleanup: true,
        },
      ]);
      return;
    }
    pushSteps(operation, [{ do: 'mmu_callback_return', notifier: id, callback, returns: null, cleanup: true }]);
    if (notifier.handler.kind === 'consumer') {
      const carryOut = consumerOf(notifier.handler.consumer).callbacks[callback];
      const frame = thread.callbacks.at(-1) as CallbackFrame;
      if (carryOut !== undefined) pushSteps(operation, carryOut(host, operation, notifier, frame, pfn));
      return;
    }
    notify(host, operation, notifier, callback, { range, cur_seq, pfn });
  },

  mmu_callback_return(host, operation, { notifier, callback, returns }) {
    const { thread } = operation;
    if (returns !== null) thread.returned = returns;
    if (callback === 'invalidate_range_start' && thread.returned === 0) countStart(host, notifier);
    if (callback === 'invalidate_range_end') countEnd(host, operation, notifier);
    thread.callbacks.pop();
    trace(host, 'notify_return', operation.id, { notifier, callback, ret: thread.returned });
  },
};

/** `invalidate` answers true; everything else 0. */
export const defaultReturn = (callback: CallbackName): number => (callback === 'invalidate' ? 1 : 0);

function notify(
  host: Host,
  operation: ThreadOperation,
  notifier: MmuNotifier,
  callback: CallbackName,
  { range, cur_seq, pfn }: { range: MmuRange | null; cur_seq: number | null; pfn: number | null },
): void {
  const { mm } = host;
  const notification: MmuNotification = {
    id: `mmu-notification-${mm.next_notification++}`,
    mm: notifier.mm,
    notifier: notifier.id,
    callback,
    event: range?.event ?? null,
    start: range === null ? null : addressOf(range.start),
    end: range === null ? null : endOf(range),
    blockable: range?.blockable ?? true,
    owner: range?.owner ?? null,
    cur_seq,
    pfn,
    seq: host.seq,
  };
  mm.notifications.set(notification.id, {
    notification,
    delivery: notifier.handler as Exclude<MmuNotifier['handler'], { kind: 'script' | 'consumer' }>,
    operation: operation.id,
  });
  host.emitted.push(notification.id);
  park(host, operation, `notification:${notification.id}`);
}

/** The handler has returned, or its time is over. */
export function answerNotification(host: Host, id: string, ret: number): ThreadOperation {
  const pending = host.mm.notifications.get(id);
  if (pending === undefined) throw new Errno('EBUSY', `notification '${id}' was answered already, or timed out`);
  host.mm.notifications.delete(id);
  const operation = host.operations.get(pending.operation) as ThreadOperation;
  operation.thread.returned = ret;
  return operation;
}
