// What scripted callbacks do, step by step: each action is something that a real driver did, rightly or wrongly.

import type { Host } from '../../host.ts';
import { type LockId, pageLock } from '../../lock.ts';
import { mightReclaim, mightSleep } from '../../lockdep.ts';
import type { Handlers, Step } from '../../steps.ts';
import { pushSteps, type ThreadOperation } from '../../thread.ts';
import { anyMm } from '../mm.ts';
import { isResident } from '../page-table.ts';
import { type CallbackFrame, getMmuNotifier } from './call.ts';
import type { Action } from './subscriptions.ts';

export type ScriptStep = { do: 'script_action'; notifier: string; action: Action; cleanup?: true };

export const actionStep = (action: Action, notifier: string): Step => ({ do: 'script_action', notifier, action });

/** Puts steps behind all actions of the callback, right before it returns. */
function pushBeforeReturn({ thread }: ThreadOperation, step: Step): void {
  const at = thread.steps.findLastIndex(({ do: name }) => name === 'mmu_callback_return');
  thread.steps.splice(at + 1, 0, step);
}

/** A thread does not end with a lock that no later callback has released. */
function unlockAtTheEnd({ thread }: ThreadOperation, lock: LockId): void {
  thread.steps.unshift({ do: 'unlock', lock, cleanup: true });
}

/** The page that the notifier's mm maps at an address now; null: none that is counted. */
function pageAt(host: Host, notifier: string, page: number): number | null {
  const { page_table } = anyMm(host, getMmuNotifier(host, notifier).mm);
  return isResident(page_table.flags(page)) ? page_table.pfn(page) : null;
}

export const scriptSteps: Handlers<ScriptStep> = {
  script_action(host, operation, { notifier: id, action }) {
    const notifier = getMmuNotifier(host, id);
    const frame = operation.thread.callbacks.at(-1) as CallbackFrame;
    switch (action.action) {
      case 'lock':
        if (action.hold) unlockAtTheEnd(operation, action.lock);
        else pushBeforeReturn(operation, { do: 'unlock', lock: action.lock, cleanup: true });
        pushSteps(operation, [{ do: 'lock', lock: action.lock, mode: 'W' }]);
        return;
      case 'unlock':
        pushSteps(operation, [{ do: 'unlock', lock: action.lock, cleanup: true }]);
        return;
      case 'sleep':
        mightSleep(host, operation, 'sleeps');
        return;
      case 'alloc':
        mightReclaim(host, operation);
        return;
      case 'dirty_lock': {
        const pfn = pageAt(host, id, action.page);
        if (pfn === null) return;
        pushSteps(operation, [
          { do: 'lock', lock: pageLock(pfn), mode: 'W' },
          { do: 'set_page_dirty', pfn },
          { do: 'unlock', lock: pageLock(pfn), cleanup: true },
        ]);
        return;
      }
      case 'dirty': {
        const pfn = pageAt(host, id, action.page);
        if (pfn !== null) pushSteps(operation, [{ do: 'set_page_dirty', pfn }]);
        return;
      }
      case 'drop':
        for (const page of notifier.mappings.keys())
          if (frame.range !== null && page >= frame.range.start && page < frame.range.end)
            notifier.mappings.delete(page);
        return;
      case 'set_seq':
        if (notifier.kind === 'interval' && frame.cur_seq !== null) notifier.invalidate_seq = frame.cur_seq;
        return;
    }
  },
};
