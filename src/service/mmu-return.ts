// Return values of mmu notifier callbacks, as handlers send them: a number, the name of an errno, or yes and no.

import { ERRNO } from '../kernel/errno.ts';

/** The number that a handler's `ret` stands for ('EAGAIN': -11, true: 1); null where it is nothing of the kind. */
export function mmuReturnOf(value: unknown): number | null {
  if (typeof value === 'boolean') return Number(value);
  if (typeof value === 'string') return Object.hasOwn(ERRNO, value) ? -ERRNO[value as keyof typeof ERRNO] : null;
  return typeof value === 'number' && Number.isInteger(value) && Math.abs(value) < 2 ** 31 ? value + 0 : null;
}
