// Models the page-table locks: one for each page of entries. They are seen only where an operation stops while it holds one.

import type { Host } from '../host.ts';
import { addressOf, hex } from '../lib/u64.ts';
import type { LockId } from '../lock.ts';
import type { Step } from '../steps.ts';
import { pushSteps, type ThreadOperation } from '../thread.ts';
import type { MmId } from './mm.ts';
import { leafIndex, PTRS_PER_PTE } from './page-table.ts';

/** The lock of the page-table page that an entry is in. */
export const ptlOf = (mm: MmId, page: number): LockId => `ptl:${mm}:${hex(addressOf(leafIndex(page) * PTRS_PER_PTE))}`;

/**
 * A page-table lock of [start, end) under which somebody has stopped or waits; null: there is none. Whoever was just given one
 * has done nothing under it: what is done at once comes before that.
 */
export function busyPtl({ locks, operations }: Host, mm: MmId, start: number, end: number): LockId | null {
  if (locks.size === 0) return null;
  const prefix = `ptl:${mm}:`;
  const first = leafIndex(start) * PTRS_PER_PTE;
  for (const [id, { holders }] of locks) {
    if (!id.startsWith(prefix) || holders.every(({ by }) => operations.get(by)?.state === 'running')) continue;
    const page = Number(BigInt(id.slice(prefix.length)) >> 12n);
    if (page >= first && page < end) return id;
  }
  return null;
}

/** Steps under the lock of an entry. */
export const underPtl = (mm: MmId, page: number, steps: readonly Step[]): Step[] => [
  { do: 'lock', lock: ptlOf(mm, page), mode: 'W' },
  ...steps,
  { do: 'unlock', lock: ptlOf(mm, page), cleanup: true },
];

/**
 * Before a change of the entries of [start, end) that is made at once: true where the thread has to wait for a page-table
 * lock first; then `again` is done after it. A lock that the thread itself holds is no obstacle.
 */
export function waitsForPtl(
  host: Host,
  operation: ThreadOperation,
  { mm, start, end }: { mm: MmId; start: number; end: number },
  again: Step,
): boolean {
  const lock = busyPtl(host, mm, start, end);
  if (lock === null || operation.thread.held.some((held) => held.lock === lock)) return false;
  // Not taken: where several wait, each would find the next one holding it, for ever.
  pushSteps(operation, [{ do: 'pass_lock', lock }, again]);
  return true;
}
