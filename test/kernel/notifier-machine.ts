// A host with one task, whose address space is watched: for the tests of src/kernel/mm/mmu-notifier.

import { type Command, READ, WRITE } from '../../src/kernel/command.ts';
import { createHost, execute } from '../../src/kernel/execute.ts';
import type { Host, TraceEntry } from '../../src/kernel/host.ts';
import { violations } from '../../src/kernel/invariants.ts';
import type { MmStruct } from '../../src/kernel/mm/mm.ts';
import type {
  Action,
  CallbackName,
  IntervalNotifier,
  PlainNotifier,
  Script,
  Subscriptions,
} from '../../src/kernel/mm/mmu-notifier/subscriptions.ts';
import type { Operation } from '../../src/kernel/operation.ts';
import type { MmuNotification, Outcome } from '../../src/kernel/outcome.ts';
import type { Phase } from '../../src/kernel/phase.ts';

export const MM = 'mm-1';
export const RW = READ | WRITE;
/** Address of the n-th page of the task's memory. */
export const at = (n: number): bigint => 0x10000000n + BigInt(n) * 0x1000n;
export const bytes = (npage: number): bigint => BigInt(npage) * 0x1000n;

export type Scripts = Partial<Record<CallbackName, Partial<Script>>>;
type Returned = Outcome & { errno: string | null };

export const START_END: CallbackName[] = ['invalidate_range_start', 'invalidate_range_end'];
export const lock = (name: string, hold = false): Action => ({ action: 'lock', lock: name, hold });

export class NotifierMachine {
  readonly host: Host;

  constructor(profile = '5.15', fixes: string[] = []) {
    const rest = { dma_entry_limit: 65535, notifier_timeout_ms: 1000, total_pages: 1 << 20, ttl_s: null };
    this.host = createHost('test', { profile, template: 'empty', fixes, ...rest }, 0);
    this.run({ op: 'put_task', task: 'T', rlimit_memlock: 'unlimited', cap_ipc_lock: false, thread_of: null });
    this.run({
      op: 'mmap',
      task: 'T',
      addr: at(0),
      length: bytes(64),
      prot: RW,
      backing: { kind: 'anon' },
      noreplace: true,
    });
  }

  /** Executes one command and checks every invariant. */
  run(command: Command, notification: string | null = null): Returned {
    const { seq } = this.host;
    const outcome = execute(this.host, { at: seq, request_id: `request-${seq}`, notification, command });
    const found = violations(this.host);
    if (found.length > 0) throw new Error(`invariants after ${command.op}: ${found.join('; ')}`);
    return { ...outcome, errno: outcome.refusal?.errno ?? null };
  }

  plain(id: string, callbacks: CallbackName[], scripts: Scripts = {}): Returned {
    return this.run({ op: 'register_mmu_notifier', mm: MM, id, callbacks, handler: scripted(scripts) });
  }

  /** A notifier whose callbacks wait for ack(). */
  client(id: string, callbacks: CallbackName[]): Returned {
    return this.run({ op: 'register_mmu_notifier', mm: MM, id, callbacks, handler: { kind: 'poll' } });
  }

  /** An interval notifier over pages; by default one that stores the sequence and answers true. */
  interval(id: string, first: number, npage: number, scripts: Scripts = OBEDIENT): Returned {
    const [start, length] = [at(first), bytes(npage)];
    return this.run({ op: 'insert_interval_notifier', mm: MM, id, start, length, handler: scripted(scripts) });
  }

  get(ops: string, scripts: Scripts = {}, rest: { interrupted?: boolean; alloc_fails?: boolean } = {}): Returned {
    const callbacks: CallbackName[] = ['release', 'alloc_notifier', 'free_notifier'];
    return this.run({ op: 'get_mmu_notifier', mm: MM, ops, callbacks, handler: scripted(scripts), ...rest });
  }

  invalidate(first: number, npage: number, rest: { blockable?: boolean; stop_at?: Phase } = {}): Returned {
    const range = { start: at(first), end: at(first + npage) };
    return this.run({ op: 'invalidate', mm: MM, ...range, event: 'CLEAR', blockable: true, ...rest });
  }

  /** A range that stays open; the id of its operation. */
  start(first: number, npage: number): string {
    return this.invalidate(first, npage, { stop_at: 'after_start' }).parked as string;
  }

  end(operation: string): Outcome | null {
    this.run({ op: 'resume_operation', operation });
    return this.operation(operation).outcome;
  }

  access(page: number, write: boolean, stop_at?: Phase): Returned {
    return this.run({ op: 'access', task: 'T', addr: at(page), write, ...(stop_at === undefined ? {} : { stop_at }) });
  }

  munmap(first: number, npage: number): Returned {
    return this.run({ op: 'munmap', task: 'T', addr: at(first), length: bytes(npage) });
  }

  read(id: string): Returned {
    return this.run({ op: 'interval_read_begin', id });
  }

  retry(id: string, sequence: number): number {
    return this.run({ op: 'interval_read_retry', id, sequence }).ret;
  }

  /** The only callback that waits for its client. */
  get waiting(): MmuNotification {
    const [pending, another] = [...this.host.mm.notifications.values()];
    if (pending === undefined || another !== undefined) throw new Error('not one callback waits');
    return pending.notification;
  }

  ack(ret = 0): Returned {
    const { id: notification } = this.waiting;
    return this.run({ op: 'ack_mmu_notification', notification, ret, reason: 'ack', detail: null });
  }

  operation(id: string): Operation {
    const operation = this.host.operations.get(id);
    if (operation === undefined) throw new Error(`no operation ${id}`);
    return operation;
  }

  get mm(): MmStruct {
    const mm = this.host.mm.mms.get(MM) ?? this.host.mm.zombies.get(MM);
    if (mm === undefined) throw new Error('the mm is gone');
    return mm;
  }

  get subs(): Subscriptions {
    if (this.mm.subscriptions === null) throw new Error('nobody has registered');
    return this.mm.subscriptions;
  }

  /** invalidate_seq, active ranges, and the sequence of an interval notifier. */
  sequence(id: string): [seq: number, active: number, own: number] {
    const { invalidate_seq } = this.host.mm.mmu_notifiers.get(id) as IntervalNotifier;
    return [this.subs.invalidate_seq, this.subs.active_invalidate_ranges, invalidate_seq];
  }

  calls(id: string): PlainNotifier['calls'] {
    return this.host.mm.mmu_notifiers.get(id)?.calls ?? {};
  }

  trace(since = 0): TraceEntry[] {
    return this.host.trace.since(since, 100_000).items;
  }

  /** Callbacks in order, as 'N1.invalidate_range_start'. */
  called(since = 0): string[] {
    return this.trace(since).flatMap(({ event, notifier, callback }) =>
      event === 'notify' ? [`${notifier}.${callback}`] : [],
    );
  }

  /** Number of the last entry of the trace: what called() and trace() look at after it. */
  get now(): number {
    return this.host.trace.next - 1;
  }

  get codes(): string[] {
    return this.host.violations.since(0, 10_000).items.map(({ code }) => code);
  }

  splats(kind: 'WARN' | 'BUG' | 'DEADLOCK'): string[] {
    return this.host.dmesg.since(0, 10_000).items.flatMap((entry) => (entry.kind === kind ? [entry.text] : []));
  }
}

/** What an interval notifier has to do. */
export const OBEDIENT: Scripts = { invalidate: { actions: [{ action: 'set_seq' }], returns: 1 } };

export function scripted(scripts: Scripts): { kind: 'script'; scripts: Partial<Record<CallbackName, Script>> } {
  const full = Object.entries(scripts).map(([name, { actions = [], returns = 0 }]) => [name, { actions, returns }]);
  return { kind: 'script', scripts: Object.fromEntries(full) };
}
