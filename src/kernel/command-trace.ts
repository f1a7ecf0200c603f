// What the trace says at the end of each command: who made it, how it ended, and which counters it has changed.

import type { Command } from './command.ts';
import { type Host, trace } from './host.ts';
import type { MmId } from './mm/mm.ts';
import type { Outcome } from './outcome.ts';

/** Counters as the trace has shown them last. */
export interface Counters {
  pinned: number;
  locked_vm: Map<MmId, number>;
}

/** As they are now: between two commands that is what the trace has shown last. */
export const countersOf = ({ mm }: Host): Counters => ({
  pinned: mm.pages.pinned,
  locked_vm: new Map([...mm.mms.values()].map(({ id, locked_vm }) => [id, locked_vm])),
});

/** Host pages that are pinned, and the pages charged to each mm, where the command has changed them. */
function traceCounters(host: Host, op: string, counters: Counters): void {
  const { pinned } = host.mm.pages;
  if (pinned !== counters.pinned) {
    counters.pinned = pinned;
    trace(host, 'counter', op, { counter: 'pinned_pages', mm: null, value: pinned });
  }
  for (const { id, locked_vm } of host.mm.mms.values()) {
    if ((counters.locked_vm.get(id) ?? 0) === locked_vm) continue;
    counters.locked_vm.set(id, locked_vm);
    trace(host, 'counter', op, { counter: 'locked_vm', mm: id, value: locked_vm });
  }
}

const named = (command: Command, field: 'task' | 'device' | 'container'): string | null =>
  field in command ? ((command as { [key: string]: unknown })[field] as string | null) : null;

export function traceCommand(host: Host, command: Command, { ret, refusal, parked }: Partial<Outcome>): void {
  const { op } = command;
  if (host.counters !== null) traceCounters(host, op, host.counters);
  trace(host, 'operation', op, {
    ret: ret ?? 0,
    errno: refusal?.errno ?? null,
    parked: parked ?? null,
    task: named(command, 'task'),
    device: named(command, 'device'),
  });
}
