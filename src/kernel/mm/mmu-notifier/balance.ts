// Whether every start that a notifier let pass is followed by one end: what subscribers that count invalidations live by.

import type { Host } from '../../host.ts';
import type { ThreadOperation } from '../../thread.ts';
import { report } from '../../violation.ts';
import { getMmuNotifier } from './call.ts';
import type { PlainNotifier, Subscriptions } from './subscriptions.ts';

/** A notifier without one of the two cannot count. */
function counting(host: Host, id: string): PlainNotifier | null {
  const notifier = getMmuNotifier(host, id);
  if (notifier.kind !== 'plain') return null;
  const { callbacks } = notifier;
  return callbacks.includes('invalidate_range_start') && callbacks.includes('invalidate_range_end') ? notifier : null;
}

export function countStart(host: Host, id: string): void {
  const notifier = counting(host, id);
  if (notifier !== null) notifier.open_starts++;
}

export function countEnd(host: Host, operation: ThreadOperation, id: string): void {
  const notifier = counting(host, id);
  if (notifier === null) return;
  notifier.open_starts--;
  if (notifier.open_starts < 0) reportUnbalanced(host, operation, notifier, 'more ends than starts that it let pass');
}

/** Whether a thread that unwinds has an end to tell: it may have stopped in the middle of the starts. */
export const isOwedAnEnd = (host: Host, id: string): boolean => (counting(host, id)?.open_starts ?? 1) > 0;

/** Once no range is between its start and its end. */
export function checkBalances(host: Host, operation: ThreadOperation, { list }: Subscriptions): void {
  for (const id of list) {
    const notifier = counting(host, id);
    if (notifier === null) continue;
    if (notifier.open_starts > 0)
      reportUnbalanced(host, operation, notifier, 'starts without an end, and no range is open');
    if (notifier.open_starts === 0) notifier.unbalanced = false;
  }
}

function reportUnbalanced(host: Host, operation: ThreadOperation, notifier: PlainNotifier, what: string): void {
  if (notifier.unbalanced) return;
  notifier.unbalanced = true;
  report(host, operation, 'UNBALANCED', `${notifier.id} has ${Math.abs(notifier.open_starts)} ${what}`, []);
}
