// Return values of a notifier handler by the names of include/linux/notifier.h, as handlers send them.

import { NOTIFY_BAD, NOTIFY_DONE, NOTIFY_OK, NOTIFY_STOP } from '../kernel/vfio/notifier.ts';

export const NOTIFY_RETURNS: Readonly<Record<string, number>> = { NOTIFY_DONE, NOTIFY_OK, NOTIFY_BAD, NOTIFY_STOP };

/** The number that a name or a number (an int of C) stands for; null where it is neither. */
export function notifyReturnOf(value: unknown): number | null {
  if (typeof value === 'string') return Object.hasOwn(NOTIFY_RETURNS, value) ? (NOTIFY_RETURNS[value] ?? null) : null;
  return typeof value === 'number' && Number.isInteger(value) && Math.abs(value) < 2 ** 31 ? value : null;
}
