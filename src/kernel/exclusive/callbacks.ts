// What a driver of such a device does in its notifier: what it has mapped goes, unless the event is its own doing.

import type { ConsumerCallback } from '../consumer.ts';
import { ERRNO } from '../errno.ts';
import { TASK_SIZE_PAGES } from '../limits.ts';
import { getInterval } from '../mm/mmu-notifier/interval.ts';
import type { CallbackName } from '../mm/mmu-notifier/subscriptions.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps } from '../thread.ts';
import { deviceMutex, deviceOf, mappedWithin } from './device.ts';

/** What is invalidated, and what the callback then answers. `cur_seq` null: of a plain notifier. */
interface Invalidation {
  device: string;
  start: number;
  end: number;
  cur_seq: number | null;
}

export type CallbackStep =
  /** After the trylock of a range that may not block. */
  | { do: 'exclusive_try_invalidate'; at: Invalidation; cleanup?: true }
  | { do: 'exclusive_invalidate'; at: Invalidation; cleanup?: true };

const done = ({ cur_seq }: Invalidation): Step => ({ do: 'returned', value: cur_seq === null ? 0 : 1 });

const underMutex = (at: Invalidation): Step[] => [
  { do: 'lock', lock: deviceMutex(at.device), mode: 'W' },
  { do: 'exclusive_invalidate', at },
  { do: 'unlock', lock: deviceMutex(at.device), cleanup: true },
  done(at),
];

/**
 * Whoever asked for the pages is told too. Were it to store the sequence then, its read_retry() would always say that it has
 * collided: a driver with the filter does not. What has no owner nobody may ignore.
 */
const invalidate: ConsumerCallback = (host, _operation, notifier, { range, cur_seq, blockable }) => {
  const device = notifier.handler.kind === 'consumer' ? notifier.handler.of : '';
  const { start, end } = range ?? { start: 0, end: TASK_SIZE_PAGES };
  const at: Invalidation = { device, start, end, cur_seq };
  const own = range?.event === 'EXCLUSIVE' && range.owner === device;
  if (own && deviceOf(host, device).owner_filter) return [done(at)];
  if (blockable) return underMutex(at);
  return [
    { do: 'trylock', lock: deviceMutex(device), mode: 'W' },
    { do: 'exclusive_try_invalidate', at },
  ];
};

export const exclusiveCallbacks: Partial<Record<CallbackName, ConsumerCallback>> = {
  invalidate,
  invalidate_range_start: invalidate,
  release: invalidate,
};

export const callbackSteps: Handlers<CallbackStep> = {
  exclusive_try_invalidate(_host, operation, { at }) {
    if (operation.thread.returned === 0) {
      operation.thread.returned = at.cur_seq === null ? -ERRNO.EAGAIN : 0;
      return;
    }
    pushSteps(operation, [
      { do: 'exclusive_invalidate', at },
      { do: 'unlock', lock: deviceMutex(at.device), cleanup: true },
      done(at),
    ]);
  },

  exclusive_invalidate(host, _operation, { at }) {
    const device = deviceOf(host, at.device);
    if (at.cur_seq !== null) getInterval(host, device.notifier).invalidate_seq = at.cur_seq;
    for (const [page] of [...mappedWithin(device, at)]) device.mappings.delete(page);
  },
};
