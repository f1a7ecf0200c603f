// What the mmu_notifier contract forbids a callback to do, whether or not it would wait for ever this time.

import type { Host } from '../../host.ts';
import { callbacksOf } from '../../lock.ts';
import type { ThreadOperation } from '../../thread.ts';
import { report } from '../../violation.ts';

/** Callbacks may not wait for the end of callbacks. True: it is reported. */
export function reportInCallback(host: Host, operation: ThreadOperation, what: string): boolean {
  const inner = callbacksOf(host, operation).at(-1);
  if (inner === undefined) return false;
  report(host, operation, 'WAIT_UNDER_CALLBACK_LOCK', `${inner.notifier}.${inner.callback} ${what}`, []);
  return true;
}
