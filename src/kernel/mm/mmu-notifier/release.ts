// Models __mmu_notifier_release(): the last user of an address space is gone, and everybody who watches it is told.

import { splat } from '../../host.ts';
import type { Handlers, Step } from '../../steps.ts';
import { pushSteps } from '../../thread.ts';
import { anyMm, type MmId } from '../mm.ts';
import { intersecting, itreeInvEnd, itreeInvStart } from './interval.ts';
import { END_OF_SPACE, type MmuRange, plainWith } from './range.ts';
import { srcuReadLock } from './srcu.ts';

export type ReleaseStep =
  | { do: 'release_notifiers'; mm: MmId; cleanup?: true }
  | { do: 'release_intervals'; mm: MmId; subs: string[]; at: number; seq: number; cleanup?: true }
  | { do: 'release_plain'; mm: MmId; subs: string[]; at: number; cleanup?: true }
  | { do: 'empty_list'; mm: MmId; cleanup?: true };

/** What the exit of an address space does before it unmaps anything. Precondition: it has no users. */
export const releaseSteps = (mm: MmId): Step[] => [{ do: 'release_notifiers', mm }];

const releaseRange = (mm: MmId): MmuRange => ({
  mm,
  start: 0,
  end: END_OF_SPACE,
  event: 'RELEASE',
  blockable: true,
  owner: null,
});

export const releaseHandlers: Handlers<ReleaseStep> = {
  release_notifiers(host, operation, { mm: id }) {
    const { subscriptions: subs } = anyMm(host, id);
    if (subs === null) return;
    const steps: Step[] = [];
    if (subs.has_itree) {
      const calls = intersecting(host, subs, 0, END_OF_SPACE);
      itreeInvStart(subs, calls.length > 0);
      subs.active.push({ operation: operation.id, start: 0, end: END_OF_SPACE, counted: true });
      steps.push({ do: 'release_intervals', mm: id, subs: calls, at: 0, seq: subs.invalidate_seq });
    }
    pushSteps(operation, [...steps, { do: 'release_plain', mm: id, subs: [], at: -1 }]);
  },

  release_intervals(host, operation, { mm: id, subs: calls, at, seq }) {
    const before = calls[at - 1];
    if (before !== undefined && operation.thread.returned === 0)
      splat(host, 'WARN', 'mn_itree_release', `interval-refused-release: ${before} refused the release of its mm`, [
        '__mmu_notifier_release',
      ]);
    const next = calls[at];
    if (next !== undefined) {
      pushSteps(operation, [
        { do: 'mmu_callback', notifier: next, callback: 'invalidate', range: releaseRange(id), cur_seq: seq },
        { do: 'release_intervals', mm: id, subs: calls, at: at + 1, seq },
      ]);
      return;
    }
    const { subscriptions: subs } = anyMm(host, id);
    if (subs === null) return;
    const active = subs.active.findIndex((range) => range.operation === operation.id && range.end === END_OF_SPACE);
    subs.active.splice(active, 1);
    itreeInvEnd(host, subs);
  },

  /** `at` -1: the list is looked at now. */
  release_plain(host, operation, { mm: id, subs: calls, at }) {
    const { subscriptions: subs } = anyMm(host, id);
    if (subs === null || subs.list.length === 0) return;
    if (at < 0) {
      pushSteps(operation, [{ do: 'synchronize_srcu' }]);
      srcuReadLock(host, operation);
      pushSteps(operation, [{ do: 'release_plain', mm: id, subs: plainWith(host, subs, ['release']), at: 0 }]);
      return;
    }
    const next = calls.findIndex((notifier, i) => i >= at && subs.list.includes(notifier));
    if (next < 0) {
      pushSteps(operation, [{ do: 'empty_list', mm: id }]);
      return;
    }
    pushSteps(operation, [
      { do: 'mmu_callback', notifier: calls[next] as string, callback: 'release', range: null, cur_seq: null },
      { do: 'release_plain', mm: id, subs: calls, at: next + 1 },
    ]);
  },

  empty_list(host, _operation, { mm: id }) {
    anyMm(host, id).subscriptions?.list.splice(0);
  },
};
