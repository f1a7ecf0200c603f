// Models what a BUG outside of any container leaves behind: the machine does not answer any more.

import { ERRNO, Errno } from './errno.ts';
import { type Host, splat } from './host.ts';
import { finishOperation, type Operation } from './operation.ts';
import type { Outcome } from './outcome.ts';

/** EIO: the host died of a BUG. */
export function requireLiveHost({ dead }: Host): void {
  if (dead !== null)
    throw new Errno('EIO', `the host is dead: ${dead.text}`, { hint: 'see dmesg; reset the host or use another one' });
}

/**
 * Raises a BUG: a splat, the host dead, and every operation but the one that hit it ended with EIO. The error is what that
 * one ends with.
 */
export function killHost(host: Host, by: Operation, where: string, what: string, path: readonly string[]): Errno {
  splat(host, 'BUG', where, what, path);
  const text = `BUG at ${where}: ${what}`;
  host.dead = { text, where, seq: host.seq, at: host.call.at };
  host.mm.notifications.clear();
  host.vfio.notifications.clear();
  host.runnable = [];
  // Nobody waits any more, and whoever held a lock but the one that hit it never gives it back.
  for (const lock of host.locks.values()) {
    lock.waiters = [];
    lock.holders = lock.holders.filter((holder) => holder.by === by.id);
  }
  const refusal = { errno: 'EIO', detail: `the host died: ${text}`, hint: 'see dmesg; reset the host' } as const;
  const outcome: Outcome = { ret: -ERRNO.EIO, fields: {}, refusal, finished: [], emitted: [] };
  for (const operation of [...host.operations.values()])
    if (operation.state !== 'done' && operation !== by) finishOperation(host, operation, outcome);
  return new Errno('EIO', refusal.detail, { hint: refusal.hint });
}
