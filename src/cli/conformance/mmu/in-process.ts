// The in-process backend of mmu notifier traces: commands go straight to the kernel, state is read from it.

import type { Command, HostOptions } from '../../../kernel/command.ts';
import { createHost, execute } from '../../../kernel/execute.ts';
import type { Host } from '../../../kernel/host.ts';
import { hex } from '../../../kernel/lib/u64.ts';
import type { MmuNotifier } from '../../../kernel/mm/mmu-notifier/subscriptions.ts';
import { getOperation } from '../../../kernel/operation.ts';
import type { MmuNotification, Outcome } from '../../../kernel/outcome.ts';
import { LAYOUT, TASK } from './layout.ts';
import type { MmuBackend, MmuMachine, PendingCallback, Returned, Standing } from './machine.ts';
import { splatOf } from './observe.ts';
import type { State } from './trace.ts';

export class MmuInProcess implements MmuBackend {
  async begin(options: HostOptions): Promise<MmuMachine> {
    return new KernelMachine(createHost('conformance', options, 0));
  }
}

class KernelMachine implements MmuMachine {
  readonly task = TASK;
  readonly mm: string;
  private lastSplat = 0;

  constructor(private readonly host: Host) {
    const [task] = LAYOUT.map((command) => this.execute(command, null));
    this.mm = task?.fields.mm as string;
  }

  private execute(command: Command, notification: string | null): Outcome {
    return execute(this.host, {
      at: this.host.seq,
      request_id: `call-${this.host.seq + 1}`,
      notification,
      command,
    });
  }

  async call(command: Command, inside: string | null): Promise<Returned | string> {
    const outcome = this.execute(command, inside);
    return outcome.parked ?? returned(outcome);
  }

  async standing(id: string): Promise<Standing> {
    const { outcome, state, blocked_on } = getOperation(this.host, id);
    if (outcome !== null) return { state: 'done', returned: returned(outcome) };
    if (state === 'stopped') return { state };
    const notification = /^notification:(.+)$/.exec(blocked_on ?? '')?.[1] ?? '';
    const pending = this.host.mm.notifications.get(notification)?.notification;
    return { state: 'blocked', callback: pending === undefined ? null : shown(pending) };
  }

  async pending(): Promise<{ operation: string; callback: PendingCallback }[]> {
    return [...this.host.mm.notifications.values()].map(({ operation, notification }) => ({
      operation,
      callback: shown(notification),
    }));
  }

  async splats(): ReturnType<MmuMachine['splats']> {
    const { items } = this.host.dmesg.since(this.lastSplat, Number.MAX_SAFE_INTEGER);
    this.lastSplat = items.at(-1)?.n ?? this.lastSplat;
    return items.flatMap(splatOf);
  }

  async state(): Promise<State> {
    const { mm } = this.host;
    const found = mm.mms.get(this.mm) ?? mm.zombies.get(this.mm);
    const notifiers = [...mm.mmu_notifiers.values()];
    const users = Object.fromEntries(notifiers.flatMap(usersOf));
    const subs = found?.subscriptions ?? null;
    if (subs === null) return { mm_count: found?.count ?? 0, subscriptions: false, users };
    return {
      mm_count: found?.count ?? 0,
      subscriptions: true,
      has_intervals: subs.has_itree,
      seq: subs.invalidate_seq,
      active_ranges: subs.active_invalidate_ranges,
      listeners: [...subs.list],
      intervals: [...subs.intervals],
      deferred: [...subs.deferred],
      interval_seq: Object.fromEntries(notifiers.flatMap(sequenceOf)),
      users,
    };
  }

  async end(): Promise<void> {}
}

const usersOf = (notifier: MmuNotifier): [string, number][] =>
  notifier.kind === 'plain' && notifier.ops !== null ? [[notifier.id, notifier.users]] : [];

const sequenceOf = (notifier: MmuNotifier): [string, number][] =>
  notifier.kind === 'interval' ? [[notifier.id, notifier.invalidate_seq]] : [];

const returned = ({ ret, refusal, fields }: Outcome): Returned => ({
  ret,
  errno: refusal?.errno ?? null,
  fields: fields as Returned['fields'],
});

const shown = ({
  id,
  notifier,
  callback,
  event,
  start,
  end,
  blockable,
  cur_seq,
}: MmuNotification): PendingCallback => ({
  id,
  notifier,
  callback,
  event,
  start: start === null ? null : hex(start),
  end: end === null ? null : hex(end),
  blockable,
  cur_seq,
});
