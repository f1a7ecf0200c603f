// Models __mmu_notifier_invalidate_range_start() and _end() of mm/mmu_notifier.c: who is told of a range, in which order.

import { quietConsumers } from '../../consumers.ts';
import { ERRNO } from '../../errno.ts';
import { type Host, printk, splat, trace } from '../../host.ts';
import { addressOf, PAGES_IN_U64, U64_MAX } from '../../lib/u64.ts';
import { mightInvalidate, mightSleep } from '../../lockdep.ts';
import type { Handlers } from '../../steps.ts';
import { pushSteps, type ThreadOperation } from '../../thread.ts';
import { report } from '../../violation.ts';
import { anyMm, type MmId, type MmStruct } from '../mm.ts';
import { checkBalances, isOwedAnEnd } from './balance.ts';
import { getMmuNotifier } from './call.ts';
import { intersecting, itreeInvEnd, itreeInvStart } from './interval.ts';
import { checkSecondaries } from './secondary.ts';
import { srcuReadLock } from './srcu.ts';
import type { CallbackName, Subscriptions } from './subscriptions.ts';

export const MMU_EVENTS = [
  'UNMAP',
  'CLEAR',
  'PROTECTION_VMA',
  'PROTECTION_PAGE',
  'SOFT_DIRTY',
  'RELEASE',
  'MIGRATE',
  'EXCLUSIVE',
] as const;
export type MmuEvent = (typeof MMU_EVENTS)[number];

/** struct mmu_notifier_range, in whole pages; `end` is exclusive. */
export interface MmuRange {
  mm: MmId;
  start: number;
  end: number;
  event: MmuEvent;
  blockable: boolean;
  /** Who may ignore its own event; null: nobody. */
  owner: string | null;
}

/** `subs`: who is called, in order; `at`: the next of them. */
export type RangeStep =
  | { do: 'invalidate_start'; range: MmuRange; cleanup?: true }
  | { do: 'start_intervals'; range: MmuRange; subs: string[]; at: number; seq: number; cleanup?: true }
  | { do: 'start_plain'; range: MmuRange; subs: string[]; at: number; ret: number; cleanup?: true }
  | { do: 'started'; range: MmuRange; ret: number; cleanup?: true }
  | { do: 'invalidate_end'; range: MmuRange; only_end: boolean; cleanup?: true }
  | { do: 'end_plain'; range: MmuRange; subs: string[]; at: number; only_end: boolean; cleanup?: true }
  | { do: 'ended'; range: MmuRange; cleanup?: true }
  | { do: 'invalidate_range'; mm: MmId; start: number; end: number; cleanup?: true }
  | { do: 'change_pte'; mm: MmId; page: number; pfn: number; cleanup?: true }
  | {
      do: 'call_each';
      mm: MmId;
      subs: string[];
      at: number;
      callback: CallbackName;
      range: MmuRange;
      pfn: number | null;
      /** What the young callbacks have answered so far. */
      young: number;
      cleanup?: true;
    };

/** One past the last page of an address space; printed as its last byte, ULONG_MAX, as the kernel has it. */
export const END_OF_SPACE = PAGES_IN_U64;

/** The end of a range as the kernel has it. */
export const endOf = ({ end }: { end: number }): bigint => (end === END_OF_SPACE ? U64_MAX : addressOf(end));

const printed = ({
  mm,
  start,
  end,
  event,
  blockable,
  owner,
}: MmuRange): Record<string, string | bigint | boolean | null> => ({
  mm,
  mmu_event: event,
  start: addressOf(start),
  end: endOf({ end }),
  blockable,
  owner,
});

const subscriptionsOf = (host: Host, mm: MmId): Subscriptions | null => anyMm(host, mm).subscriptions;

/** Plain notifiers of an mm that have one of the callbacks, in calling order. */
export const plainWith = (host: Host, subs: Subscriptions, callbacks: readonly string[]): string[] =>
  subs.list.filter((id) => {
    const notifier = getMmuNotifier(host, id);
    return notifier.kind === 'plain' && notifier.callbacks.some((callback) => callbacks.includes(callback));
  });

/** Whether somebody is told of what happens to an mm. */
export const isWatched = ({ subscriptions }: MmStruct): boolean =>
  subscriptions !== null && (subscriptions.list.length > 0 || subscriptions.has_itree);

const indexOfActive = (subs: Subscriptions | null, { id }: ThreadOperation, { start, end }: MmuRange): number =>
  subs?.active.findIndex((active) => active.operation === id && active.start === start && active.end === end) ?? -1;

const isActive = (subs: Subscriptions | null, operation: ThreadOperation, range: MmuRange): boolean =>
  indexOfActive(subs, operation, range) >= 0;

/** The range is not between its start and its end any more. */
function takeActive(host: Host, operation: ThreadOperation, range: MmuRange): void {
  const subs = subscriptionsOf(host, range.mm);
  const at = indexOfActive(subs, operation, range);
  if (subs === null || at < 0) return;
  subs.active.splice(at, 1);
  if (subs.active.length > 0) return;
  checkBalances(host, operation, subs);
  quietConsumers(host, operation, range.mm);
}

/** The range does not count in active_invalidate_ranges any more: it ends before it has begun. */
function undoCount(host: Host, operation: ThreadOperation, range: MmuRange): void {
  const subs = subscriptionsOf(host, range.mm);
  const active = subs?.active[indexOfActive(subs, operation, range)];
  if (subs === null || active?.counted !== true) return;
  active.counted = false;
  itreeInvEnd(host, subs);
}

/** What callbacks under the page-table lock are told: no event, and nobody may sleep. */
const underPtl = (mm: MmId, start: number, end: number): MmuRange => ({
  mm,
  start,
  end,
  event: 'CLEAR',
  blockable: false,
  owner: null,
});

/** Calls one callback of every plain notifier that has it. `thread.returned`: what the young callbacks answer together. */
export function callEach(
  host: Host,
  operation: ThreadOperation,
  callback: CallbackName,
  { mm, start, end }: { mm: MmId; start: number; end: number },
  pfn: number | null,
): void {
  operation.thread.returned = 0;
  const subs = subscriptionsOf(host, mm);
  if (subs === null) return;
  const range = underPtl(mm, start, end);
  const calls = plainWith(host, subs, [callback]);
  if (calls.length === 0) return;
  srcuReadLock(host, operation);
  pushSteps(operation, [{ do: 'call_each', mm: range.mm, subs: calls, at: 0, callback, range, pfn, young: 0 }]);
}

/** What a start callback returned: 0, or an error that the kernel, and the contract, make something of. */
function afterStart(host: Host, operation: ThreadOperation, { blockable }: MmuRange, id: string): number {
  const ret = operation.thread.returned;
  if (ret === 0) return 0;
  const path = ['__mmu_notifier_invalidate_range_start'];
  const context = blockable ? '' : 'non-';
  printk(host, 'info', `${id}.invalidate_range_start callback failed with ${ret} in ${context}blockable context.`);
  if (blockable || ret !== -ERRNO.EAGAIN) {
    const text = `${id} answers ${ret} to a start that ${blockable ? 'may block' : 'may only answer -EAGAIN'}`;
    report(host, operation, 'BAD_ERRNO', text, []);
    if (host.profile.badStartWarning)
      splat(
        host,
        'WARN',
        'mn_hlist_invalidate_range_start',
        `callback-failed-in-blockable-or-with-odd-error: ${text}`,
        path,
      );
  }
  const notifier = getMmuNotifier(host, id);
  if (
    host.profile.failedStart === 'ends-all' &&
    notifier.kind === 'plain' &&
    notifier.callbacks.includes('invalidate_range_end')
  ) {
    const text = `${id} fails a start and has invalidate_range_end`;
    report(host, operation, 'FALLIBLE_WITH_END', text, []);
    splat(host, 'WARN', 'mn_hlist_invalidate_range_start', `failing-start-but-has-end: ${text}`, path);
  }
  return ret;
}

/** A failing start of a range that may not block ends the calls; `thread.returned` is then -EAGAIN, otherwise 0. */
export const rangeSteps: Handlers<RangeStep> = {
  invalidate_start(host, operation, { range }) {
    trace(host, 'invalidate_start', operation.id, printed(range));
    if (range.blockable) mightSleep(host, operation, 'calls mmu_notifier_invalidate_range_start()');
    mightInvalidate(host, operation);
    const subs = subscriptionsOf(host, range.mm);
    const calls = subs === null || !subs.has_itree ? null : intersecting(host, subs, range.start, range.end);
    if (subs !== null && calls !== null) itreeInvStart(subs, calls.length > 0);
    const seq = subs?.invalidate_seq ?? 0;
    subs?.active.push({ operation: operation.id, start: range.start, end: range.end, counted: calls !== null });
    pushSteps(operation, [{ do: 'start_intervals', range, subs: calls ?? [], at: 0, seq }]);
  },

  start_intervals(host, operation, { range, subs: calls, at, seq }) {
    const subs = subscriptionsOf(host, range.mm);
    const before = calls[at - 1];
    if (before !== undefined && operation.thread.returned === 0) {
      if (range.blockable)
        splat(
          host,
          'WARN',
          'mn_itree_invalidate',
          `interval-refused-blockable: ${before} refused a range that may block`,
          ['__mmu_notifier_invalidate_range_start'],
        );
      else {
        undoCount(host, operation, range);
        pushSteps(operation, [{ do: 'started', range, ret: -ERRNO.EAGAIN }]);
        return;
      }
    }
    const next = calls[at];
    if (next !== undefined) {
      pushSteps(operation, [
        { do: 'mmu_callback', notifier: next, callback: 'invalidate', range, cur_seq: seq },
        { do: 'start_intervals', range, subs: calls, at: at + 1, seq },
      ]);
      return;
    }
    const plain = subs === null ? [] : plainWith(host, subs, ['invalidate_range_start']);
    if (subs === null || subs.list.length === 0) {
      pushSteps(operation, [{ do: 'started', range, ret: 0 }]);
      return;
    }
    srcuReadLock(host, operation);
    pushSteps(operation, [{ do: 'start_plain', range, subs: plain, at: 0, ret: 0 }]);
  },

  start_plain(host, operation, { range, subs: calls, at, ret: before }) {
    const subs = subscriptionsOf(host, range.mm) as Subscriptions;
    const called = calls[at - 1];
    const ret = called === undefined ? before : afterStart(host, operation, range, called) || before;
    const next = calls[at];
    if (next !== undefined) {
      const again = { do: 'start_plain', range, subs: calls, at: at + 1, ret } as const;
      if (!subs.list.includes(next)) {
        operation.thread.returned = 0;
        pushSteps(operation, [again]);
      } else
        pushSteps(operation, [
          { do: 'mmu_callback', notifier: next, callback: 'invalidate_range_start', range, cur_seq: null },
          again,
        ]);
      return;
    }
    const failed = ret !== 0 && host.profile.failedStart === 'ends-all';
    if (failed)
      pushSteps(operation, [
        ...plainWith(host, subs, ['invalidate_range_end']).map(
          (notifier) =>
            ({ do: 'mmu_callback', notifier, callback: 'invalidate_range_end', range, cur_seq: null }) as const,
        ),
        { do: 'started', range, ret },
      ]);
    else pushSteps(operation, [{ do: 'started', range, ret }]);
  },

  started(host, operation, { range, ret }) {
    // A caller that may block does not look at the result: its range goes on to its end.
    operation.thread.returned = range.blockable ? 0 : ret;
    if (operation.thread.returned !== 0) {
      if (!host.profile.failedStartKeepsCount) undoCount(host, operation, range);
      takeActive(host, operation, range);
    }
    trace(host, 'invalidate_started', operation.id, { ...printed(range), ret });
  },

  invalidate_end(host, operation, { range, only_end }) {
    const subs = subscriptionsOf(host, range.mm);
    if (operation.thread.error !== null && !isActive(subs, operation, range)) return;
    trace(host, 'invalidate_end', operation.id, { ...printed(range), only_end });
    if (range.blockable) mightSleep(host, operation, 'calls mmu_notifier_invalidate_range_end()');
    pushSteps(operation, [{ do: 'ended', range }]);
    const active = subs?.active[indexOfActive(subs, operation, range)];
    if (subs === null || active === undefined) return;
    mightInvalidate(host, operation);
    if (active.counted) itreeInvEnd(host, subs);
    active.counted = false;
    if (subs.list.length === 0) return;
    srcuReadLock(host, operation);
    const calls = plainWith(host, subs, ['invalidate_range_end', 'invalidate_range']);
    pushSteps(operation, [{ do: 'end_plain', range, subs: calls, at: 0, only_end }]);
  },

  end_plain(host, operation, { range, subs: calls, at, only_end }) {
    const id = calls[at];
    if (id === undefined) return;
    const again = { do: 'end_plain', range, subs: calls, at: at + 1, only_end } as const;
    const notifier = getMmuNotifier(host, id);
    if (notifier.kind !== 'plain' || !subscriptionsOf(host, range.mm)?.list.includes(id)) {
      pushSteps(operation, [again]);
      return;
    }
    const has = (callback: 'invalidate_range' | 'invalidate_range_end'): boolean =>
      notifier.callbacks.includes(callback);
    const range_call = {
      do: 'mmu_callback',
      notifier: id,
      callback: 'invalidate_range',
      range,
      cur_seq: null,
    } as const;
    const end_call = {
      do: 'mmu_callback',
      notifier: id,
      callback: 'invalidate_range_end',
      range,
      cur_seq: null,
    } as const;
    const tells = operation.thread.error === null || isOwedAnEnd(host, id);
    const invalidates = !only_end && has('invalidate_range') && host.profile.invalidateRangeCallback;
    pushSteps(operation, [
      ...(invalidates ? [range_call] : []),
      ...(has('invalidate_range_end') && tells ? [end_call] : []),
      again,
    ]);
  },

  ended(host, operation, { range }) {
    takeActive(host, operation, range);
    trace(host, 'invalidate_ended', operation.id, printed(range));
    checkSecondaries(host, operation, range);
  },

  invalidate_range(host, operation, { mm, start, end }) {
    const callback = secondaryTlbCallback(host);
    callEach(host, operation, callback, { mm, start, end }, null);
  },

  change_pte(host, operation, { mm, page, pfn }) {
    if (host.profile.changePteCallback)
      callEach(host, operation, 'change_pte', { mm, start: page, end: page + 1 }, pfn);
  },

  call_each(host, operation, { mm, subs: calls, at, callback, range, pfn, young: before }) {
    const { thread } = operation;
    const young = at === 0 || !YOUNG.includes(callback) ? before : before | thread.returned;
    const listed = subscriptionsOf(host, mm)?.list ?? [];
    const next = calls.findIndex((id, i) => i >= at && listed.includes(id));
    thread.returned = young;
    if (next < 0 || (callback === 'test_young' && young !== 0)) return;
    pushSteps(operation, [
      { do: 'mmu_callback', notifier: calls[next] as string, callback, range, cur_seq: null, pfn },
      { do: 'call_each', mm, subs: calls, at: next + 1, callback, range, pfn, young },
    ]);
  },
};

/** Callbacks that answer whether a page was used. */
const YOUNG: readonly CallbackName[] = ['clear_flush_young', 'clear_young', 'test_young'];

/** The callback by which secondary TLBs are told, under the page-table lock. */
export const secondaryTlbCallback = ({ profile }: Host): CallbackName =>
  profile.invalidateRangeCallback ? 'invalidate_range' : 'arch_invalidate_secondary_tlbs';
