// One emulated Linux machine: all of its state, as data. Nothing outside this object influences what a command does.

import type { Call, HostOptions } from './command.ts';
import { type Counters, countersOf } from './command-trace.ts';
import { type ConsumerStates, newConsumerStates } from './consumers.ts';
import { type FaultRule, takeFaults } from './fault-rule.ts';
import { Log } from './lib/log.ts';
import { KEPT_DMESG, KEPT_TRACE, KEPT_VIOLATIONS } from './limits.ts';
import type { Lock, LockId } from './lock.ts';
import { type Lockdep, newLockdep } from './lockdep.ts';
import { Mm } from './mm/mm.ts';
import type { Operation } from './operation.ts';
import { type Profile, profileWith } from './profile.ts';
import type { Step } from './steps.ts';
import type { ThreadOperation } from './thread.ts';
import { Vfio } from './vfio/vfio.ts';
import type { Violation } from './violation.ts';

export interface DmesgEntry {
  /** Own counter of the kernel log, from 1. */
  n: number;
  /** Position in the journal of the command that logged it. */
  seq: number;
  /** Milliseconds since the epoch. */
  at: number;
  level: 'emerg' | 'err' | 'warning' | 'notice' | 'info';
  text: string;
  kind: 'WARN' | 'BUG' | 'DEADLOCK' | null;
  /** Name of the kernel function that raised it. */
  where: string | null;
  request_id: string;
}

export interface TraceEntry {
  /** Own counter of the trace, from 1. */
  n: number;
  seq: number;
  at: number;
  request_id: string;
  /** What happened; docs/reference/trace.md has a section for each. */
  event: string;
  /** The operation or command it belongs to. */
  op: string;
  [field: string]: string | number | boolean | bigint | null | string[];
}

export interface Bug {
  text: string;
  where: string;
  seq: number;
  at: number;
}

export class Host {
  /** Position in the journal of the command that is being executed, or was executed last. */
  seq = 0;
  /** Its settings as they are now: patch_host changes them. */
  readonly options: HostOptions;
  readonly operations = new Map<string, Operation>();
  dmesg = new Log<DmesgEntry>(KEPT_DMESG);
  trace = new Log<TraceEntry>(KEPT_TRACE);
  violations = new Log<Violation>(KEPT_VIOLATIONS);
  /** Locks that are held or waited for between two commands. */
  readonly locks = new Map<LockId, Lock>();
  lockdep: Lockdep = newLockdep();
  /** What each consumer of the memory knows. */
  consumers: ConsumerStates = newConsumerStates();
  /** Failures that a later call is to meet, by id. */
  readonly faults = new Map<string, FaultRule>();
  /** The BUG of mm that killed the whole host. */
  dead: Bug | null = null;

  /** The call that is being executed. */
  call: Call;
  /** Operations started and finished, and notifications emitted, by the call that is being executed. */
  started: Operation[] = [];
  finished: string[] = [];
  emitted: string[] = [];
  /** Threads that can go on, in the order in which they became able to. */
  runnable: ThreadOperation[] = [];
  /** What the opening of new areas takes, before the thread that made them goes on. */
  opened: Step[] = [];
  /** Steps that threads have taken in this call. */
  steps = 0;
  /** Operations that this call left stopped, or waiting for a lock. */
  detached: string[] = [];
  /** Counters as the trace has shown them; null: made from the host as it is at the next command. */
  counters: Counters | null = null;
  /** The rules that hold for the call that is being executed, each with the attempts it has still to let pass. */
  failing: { point: FaultRule['point']; left: number }[] = [];

  constructor(
    readonly id: string,
    options: HostOptions,
    readonly created_at: number,
    readonly mm = new Mm(options.total_pages),
    readonly vfio = new Vfio(),
    readonly profile: Profile = profileWith(options.profile, options.fixes),
  ) {
    this.options = { ...options };
    vfio.dmas.hides_end_of_space = this.profile.endOfSpace === 'hidden';
    this.call = {
      at: created_at,
      request_id: 'boot',
      notification: null,
      command: { op: 'patch_host' },
    };
  }

  /** Starts the next command of the journal: everything that changes from here on belongs to it. */
  begin(call: Call): void {
    this.seq++;
    this.call = call;
    this.started = [];
    this.finished = [];
    this.emitted = [];
    this.opened = [];
    this.detached = [];
    this.steps = 0;
    this.counters ??= countersOf(this);
    this.failing = takeFaults(this.faults, call.command);
    this.vfio.setVersion(this.seq);
  }
}

/** Adds a line to the kernel log. */
export function printk(host: Host, level: DmesgEntry['level'], text: string): void {
  appendDmesg(host, level, text, null, null);
}

function appendDmesg(
  host: Host,
  level: DmesgEntry['level'],
  text: string,
  kind: DmesgEntry['kind'],
  where: string | null,
): void {
  const { at, request_id } = host.call;
  host.dmesg.append({ n: 0, seq: host.seq, at, level, text, kind, where, request_id }, host.seq);
}

/**
 * Adds a splat in the kernel's form: one entry of several lines, with the function that raised it, the path of calls that
 * led there (innermost first) and the request that caused it.
 */
export function splat(
  host: Host,
  kind: 'WARN' | 'BUG' | 'DEADLOCK',
  where: string,
  what: string,
  path: readonly string[],
): void {
  const head = {
    WARN: `WARNING: at ${where}: ${what}`,
    BUG: `kernel BUG at ${where}: ${what}`,
    DEADLOCK: `WARNING: possible recursive locking or circular wait at ${where}: ${what}`,
  }[kind];
  const lines = [
    '------------[ cut here ]------------',
    head,
    `CPU: 0 Comm: ${host.call.command.op} Not tainted ${host.profile.release} #1 vfio-mdev-emulator`,
    'Call Trace:',
    ...[where, ...path].map((frame) => ` ${frame}`),
    `Request: ${host.call.request_id} seq ${host.seq}`,
    '---[ end trace ]---',
  ];
  appendDmesg(host, kind === 'BUG' ? 'emerg' : 'warning', lines.join('\n'), kind, where);
}

/** Adds an entry to the trace of operations, phases, notifier calls and lock events. */
export function trace(
  host: Host,
  event: string,
  op: string,
  fields: Record<string, string | number | boolean | bigint | null | string[]> = {},
): void {
  const { at, request_id } = host.call;
  host.trace.append({ n: 0, seq: host.seq, at, request_id, event, op, ...fields }, host.seq);
}
