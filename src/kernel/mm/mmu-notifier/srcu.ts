// Models the srcu domain of mm/mmu_notifier.c: nobody frees a notifier while a thread may be inside one of its callbacks.

import type { Host } from '../../host.ts';
import { cycleThrough, deadlock, enclosingOf } from '../../lock.ts';
import type { Handlers } from '../../steps.ts';
import { park, pushSteps, schedule, type ThreadOperation } from '../../thread.ts';
import { freeNotifier } from './get.ts';

/** One that waits for a grace period: until all who were readers when it began have left. */
interface GracePeriod {
  /** Operation that sleeps; null where `notifier` is to be freed. */
  operation: string | null;
  notifier: string | null;
  /** Operations, once for each read section. */
  readers: string[];
}

export interface Srcu {
  /** Operations that walk a list of notifiers, once for each walk. */
  readers: string[];
  waiting: GracePeriod[];
  /** Notifiers that have been freed after one. */
  freed: number;
}

export const newSrcu = (): Srcu => ({ readers: [], waiting: [], freed: 0 });

export type SrcuStep = { do: 'srcu_read_unlock'; cleanup: true } | { do: 'synchronize_srcu'; cleanup?: true };

/** What the thread does until `srcu_read_unlock` is one read section. Push its steps after this. */
export function srcuReadLock(host: Host, operation: ThreadOperation): void {
  host.mm.srcu.readers.push(operation.id);
  pushSteps(operation, [{ do: 'srcu_read_unlock', cleanup: true }]);
}

/** call_srcu(): the notifier is freed after a grace period. */
export function callSrcu(host: Host, notifier: string): void {
  const { readers, waiting } = host.mm.srcu;
  if (readers.length === 0) freeNotifier(host, notifier);
  else waiting.push({ operation: null, notifier, readers: [...readers] });
}

/** Operations that a sleeper waits for. */
export const readersBefore = ({ mm: { srcu } }: Host, operation: string): string[] =>
  srcu.waiting.find((period) => period.operation === operation)?.readers ?? [];

/** EDEADLK: a callback waits for its own end. Nothing has happened yet. */
export function requireOutsideCallback(host: Host, operation: ThreadOperation): void {
  const { readers } = host.mm.srcu;
  const around = enclosingOf(host, operation).find((id) => readers.includes(id));
  if (around !== undefined)
    throw deadlock(host, operation, 'srcu', [
      'grace-period-inside-a-callback',
      `${around} waits for the handler that makes this call`,
    ]);
}

export const srcuSteps: Handlers<SrcuStep> = {
  srcu_read_unlock(host, { id }) {
    const { srcu } = host.mm;
    srcu.readers.splice(srcu.readers.lastIndexOf(id), 1);
    for (const { readers } of srcu.waiting) if (readers.includes(id)) readers.splice(readers.lastIndexOf(id), 1);
    const over = srcu.waiting.filter(({ readers }) => readers.length === 0);
    srcu.waiting = srcu.waiting.filter(({ readers }) => readers.length > 0);
    for (const { operation, notifier } of over) {
      if (notifier !== null) freeNotifier(host, notifier);
      else schedule(host, host.operations.get(operation as string) as ThreadOperation);
    }
  },

  synchronize_srcu(host, operation) {
    const { readers, waiting } = host.mm.srcu;
    if (readers.length === 0) return;
    const cycle = cycleThrough(host, operation, readers);
    if (cycle !== null) throw deadlock(host, operation, 'srcu', ['grace-period-inside-a-callback', ...cycle]);
    waiting.push({ operation: operation.id, notifier: null, readers: [...readers] });
    park(host, operation, 'srcu');
  },
};
