// Contracts that were violated: as data for programs, and in the kernel log as the kernel would print it.

import { type Host, splat } from './host.ts';
import { callbacksOf, locksOf } from './lock.ts';
import type { ThreadOperation } from './thread.ts';

/** In the words of the mmu_notifier contract; each has a page in the reference. */
export const VIOLATION_CODES = [
  'SLEEP_IN_ATOMIC',
  'SLEEP_IN_NONBLOCK',
  'BAD_ERRNO',
  'FALLIBLE_WITH_END',
  'LOCK_INVERSION',
  'SELF_RECURSION',
  'RECLAIM_UNDER_NOTIFIER_LOCK',
  'WAIT_UNDER_CALLBACK_LOCK',
  'UNBALANCED',
  'SPTE_IN_WINDOW',
  'STALE_SECONDARY',
  'RECURSIVE_READ_LOCK',
  'FATAL_DOUBLE_MAP',
  'MMIO_DISABLED',
  'DEADLOCK',
  'USE_AFTER_FREE',
  'WRITE_TO_PROTECTED',
  'ACCESSOR_IN_REVOKED_MAP',
  'COUNTER_DRIFT',
  'LOST_DIRTY',
  'WRITE_AFTER_DIRTY',
  'LEAKED_MAP',
  'GRACE_PERIOD_IN_START',
  'NEEDLESS_EAGAIN',
  'REGISTRATION_IGNORED',
  'UADDR_OF_FAILED_IOCTL',
  'UNCHECKED_PAGE',
  'NO_SPECULATION_BARRIER',
] as const;

export type ViolationCode = (typeof VIOLATION_CODES)[number];

export interface Violation {
  /** Own counter, from 1. */
  n: number;
  seq: number;
  at: number;
  request_id: string;
  code: ViolationCode;
  text: string;
  /** The operation that did it, and the phase it was in. */
  operation: string;
  phase: string;
  /** Notifier and callback that it was inside; null: none. */
  notifier: string | null;
  callback: string | null;
  locks_held: string[];
  /** The paths that conflict, where there are two. */
  paths: string[];
}

/** Records a violation. A deadlock has its splat already. */
export function report(
  host: Host,
  operation: ThreadOperation,
  code: ViolationCode,
  text: string,
  paths: readonly string[],
): void {
  const { at, request_id } = host.call;
  const inner = callbacksOf(host, operation).at(-1);
  host.violations.append(
    {
      n: 0,
      seq: host.seq,
      at,
      request_id,
      code,
      text,
      operation: operation.id,
      phase: operation.phase,
      notifier: inner?.notifier ?? null,
      callback: inner?.callback ?? null,
      locks_held: locksOf(host, operation).map(({ lock }) => lock),
      paths: [...paths],
    },
    host.seq,
  );
  if (code !== 'DEADLOCK') splat(host, 'WARN', inner?.callback ?? operation.kind, `${code}: ${text}`, paths);
}
