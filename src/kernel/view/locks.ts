// What GETs show of locks, of the order in which they were taken, and of violated contracts. Pure: nothing here changes a host.

import type { Host } from '../host.ts';
import { type Lock, lockClass } from '../lock.ts';
import type { Fields } from '../outcome.ts';
import type { Violation, ViolationCode } from '../violation.ts';
import { byId, type Listed, listed } from './page.ts';

const showLock = ({ id, holders, waiters }: Lock): Fields => ({
  id,
  class: lockClass(id),
  holders: holders.map((holder) => ({ ...holder })),
  waiters: waiters.map((waiter) => ({ ...waiter })),
});

/** Locks that somebody holds or waits for, by id. */
export const listLocks = (host: Host, after: string | null, limit: number): Listed<string> =>
  listed(byId(host.locks, after), limit, ({ id }) => id, showLock);

/** Orders in which classes of locks have been taken, by `<held>><taken>`. */
export const listLockOrder = (host: Host, after: string | null, limit: number): Listed<string> => {
  const edges = [...host.lockdep.edges].map(([id, edge]) => [id, { id, ...edge }] as const);
  return listed(
    byId(new Map(edges), after),
    limit,
    ({ id }) => id,
    ({ held, taken, path, seq }) => ({ held, taken, path, seq }),
  );
};

/** Violations numbered above `since`, of one code where one is given. */
export function violationsSince(
  host: Host,
  since: number,
  limit: number,
  code: ViolationCode | null,
): { items: Violation[]; truncated: boolean } {
  const { items, truncated } = host.violations.since(since, code === null ? limit : Number.POSITIVE_INFINITY);
  return { items: items.filter((item) => code === null || item.code === code).slice(0, limit), truncated };
}
