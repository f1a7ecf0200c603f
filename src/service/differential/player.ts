// Plays the commands on one kernel. A handler is played when this kernel calls it, as the driver would do: not by the ids that
// the recording has, and not where this kernel does not call it.

import type { Command } from '../../kernel/command.ts';
import type { Host } from '../../kernel/host.ts';
import type { Notification, Outcome } from '../../kernel/outcome.ts';
import { type Profile, profileWith } from '../../kernel/profile.ts';
import { NOTIFY_DONE } from '../../kernel/vfio/notifier.ts';
import { MAX_HANDLER_COMMANDS } from '../limits.ts';
import { improvised, type Rule, SLOW_BUILTIN, type Step } from './improvise.ts';
import { executeAs, hostOf, type Item, itemAt, type Kernel } from './item.ts';
import { finish, joined, leaveOut, newObservation, type Observation, splatOf } from './observation.ts';
import { type Answer, CallKeys, isAnswer, type Recording } from './recording.ts';
import { translate, undoOf } from './translate.ts';

/** Something that had to be said in another form, left out, or answered by a rule: how often, and where first. */
export interface Note {
  position: number;
  times: number;
}

interface Script {
  /** Its notification on this kernel. */
  notification: string;
  steps: Step[];
}

const ALL = Number.MAX_SAFE_INTEGER;
const NOT_CALLED = 'its handler is not called';

export class Player {
  readonly host: Host;
  /** By position; whoever has compared one deletes it. */
  readonly seen = new Map<number, Observation>();
  /** By what was done. */
  readonly translated = new Map<string, Note>();
  readonly leftOut = new Map<string, Note>();
  readonly rules = new Map<Rule, Note & { call: Notification }>();
  /** Commands executed so far. */
  executed = 0;
  private readonly from: Profile;
  private readonly keys = new CallKeys();
  /** Notifications of this kernel by those of the recording. */
  private readonly counterparts = new Map<string, string>();
  /** Steps of handlers that this kernel has not called yet, by notification of the recording. */
  private readonly due = new Map<string, Step[]>();
  private readonly scripts: Script[] = [];
  /** Positions by seq on this kernel, and the first seq of each position. */
  private readonly positions = new Map<number, number>();
  private readonly seqs = new Map<number, number>();
  private readonly parked = new Map<string, Observation>();
  private readonly absentNotifiers = new Set<string>();
  private lastDmesg = 0;
  private lastTrace = 0;
  private extra = 0;

  constructor(
    private readonly recording: Recording,
    kernel: Kernel,
  ) {
    const { options } = recording.plan;
    this.host = hostOf(recording.plan, kernel);
    this.from = profileWith(options.profile, options.fixes);
    this.skipLogs();
  }

  /** Plays the command at a position, and what the handlers do that it lets this kernel call. Yields after each command. */
  *step(position: number): Generator<void> {
    const { command, notification } = itemAt(this.recording.plan, position);
    this.seen.set(position, newObservation());
    const inside = this.recording.named(notification, position);
    const answered = isAnswer(command) ? this.recording.named(command.notification, position) : null;
    const call = answered ?? inside;
    if (call === null) yield* this.perform(position, null, true);
    else if (this.counterparts.has(call.id))
      yield* this.perform(position, this.counterparts.get(inside?.id ?? '') ?? null, true);
    else this.due.set(call.id, [...(this.due.get(call.id) ?? []), { position, keep: true }]);
    yield* this.runScripts();
  }

  /** No command follows: what still waits for its handler to be called never comes. */
  end(): void {
    for (const steps of this.due.values())
      for (const { position } of steps) if (position !== null) this.leave(position, NOT_CALLED);
    this.due.clear();
  }

  private leave(position: number, reason: string): void {
    const seen = this.seen.get(position);
    if (seen !== undefined) leaveOut(seen, reason);
    this.note(this.leftOut, reason, position);
  }

  private note(notes: Map<string, Note>, what: string, position: number): void {
    const note = notes.get(what);
    if (note === undefined) notes.set(what, { position, times: 1 });
    else note.times++;
  }

  /** Handlers that were called: the one called last is played first, since the others wait for it. */
  private *runScripts(): Generator<void> {
    for (let script = this.scripts.at(-1); script !== undefined; script = this.scripts.at(-1)) {
      const step = script.steps.shift();
      if (script.steps.length === 0) this.scripts.pop();
      if (step === undefined) continue;
      if ('keep' in step) yield* this.perform(step.position, script.notification, step.keep);
      else yield* this.inHandler(script.notification, step);
    }
  }

  /** Executes the command of a position, in the form of this kernel. */
  private *perform(position: number, inside: string | null, keep: boolean): Generator<void> {
    const item = itemAt(this.recording.plan, position);
    const { command } = item;
    const seen = (keep ? this.seen.get(position) : undefined) ?? newObservation();
    if (isAnswer(command)) {
      const id = this.counterparts.get(this.recording.named(command.notification, position)?.id ?? '');
      const done = this.execute(item, position, { ...command, notification: id ?? 'notification-0' }, inside);
      if (id !== undefined && 'id' in done.fields) done.fields.id = command.notification;
      finish(seen, done);
      yield;
      return;
    }
    const said = this.inForm(command);
    if ('inexpressible' in said) {
      if (keep) this.leave(position, said.inexpressible);
      return;
    }
    if (said.how !== null && keep) this.note(this.translated, `${command.op}: ${said.how}`, position);
    const outcomes: Outcome[] = [];
    for (const part of said.commands) {
      const outcome = this.execute(item, position, this.renamed(part), inside);
      outcomes.push(outcome);
      yield;
      if (outcome.parked !== undefined) {
        seen.parked = true;
        this.parked.set(outcome.parked, seen);
        this.settle([outcome.parked]);
        return;
      }
      if (outcome.refusal !== undefined) break;
    }
    const entries = said.commands.map((part) => ('npage' in part ? part.npage : 0));
    finish(
      seen,
      outcomes.length === 1 && said.commands.length === 1 ? (outcomes[0] as Outcome) : joined(outcomes, entries),
    );
    yield* this.undo(item, position, said.commands.slice(0, outcomes.length - 1), outcomes, inside);
  }

  /** Takes back the parts before one that was refused. */
  private *undo(
    item: Item,
    position: number,
    before: readonly Command[],
    outcomes: readonly Outcome[],
    inside: string | null,
  ): Generator<void> {
    if (outcomes.at(-1)?.refusal === undefined) return;
    for (const part of before) {
      if (part.op !== 'pin_pages') continue;
      this.execute(item, position, undoOf(part), inside);
      yield;
    }
  }

  private inForm(command: Command): ReturnType<typeof translate> {
    if (command.op === 'unregister_notifier' && this.absentNotifiers.has(command.notifier))
      return { inexpressible: `notifier '${command.notifier}' could not be registered in this form` };
    const said = translate(command, this.from, this.host.profile);
    if ('inexpressible' in said && command.op === 'register_notifier')
      this.absentNotifiers.add(command.notifier.id ?? '');
    return said;
  }

  /** Ids that have a seq in them: the operation that the same command started here. */
  private renamed(command: Command): Command {
    const started = command.op === 'kill_operation' ? /^([a-z_]+)-(\d+)$/.exec(command.operation) : null;
    if (command.op !== 'kill_operation' || started === null) return command;
    return { ...command, operation: `${started[1]}-${this.seqs.get(Number(started[2])) ?? 0}` };
  }

  /** A step of a handler call that the recording does not have. */
  private *inHandler(notification: string, step: Exclude<Step, { keep: boolean }>): Generator<void> {
    const pending = this.host.vfio.notifications.get(notification);
    if (pending === undefined) return;
    const { device } = pending.notification;
    const { seq } = this.host;
    const item = {
      command: { op: 'patch_host' as const },
      notification: null,
      at: seq,
      request_id: `handler-${notification}`,
    };
    if ('unpin' in step) {
      this.execute(item, null, step.unpin, notification);
      yield;
      return;
    }
    const { answer } = step;
    const command: Command =
      answer.op === 'notification_timeout'
        ? { op: 'notification_timeout', notification }
        : {
            op: 'ack_notification',
            ret: NOTIFY_DONE,
            reason: 'ack',
            detail: null,
            ...(answer as Partial<Extract<Answer, { op: 'ack_notification' }>>),
            device,
            notification,
          };
    this.execute(item, null, command, null);
    yield;
  }

  /** Executes one command; what it logs and whom it calls belongs to the position, or to the unmap that it lets go on. */
  private execute(item: Item, position: number | null, command: Command, inside: string | null): Outcome {
    const { host } = this;
    const waiting = isAnswer(command) ? host.vfio.notifications.get(command.notification)?.operation : undefined;
    const unmap = waiting === undefined ? undefined : this.positions.get(host.operations.get(waiting)?.seq ?? -1);
    const outcome = executeAs(host, item, command, inside);
    this.executed++;
    if (position !== null) {
      this.positions.set(host.seq, position);
      if (!this.seqs.has(position)) this.seqs.set(position, host.seq);
    }
    this.readLogs(unmap ?? position);
    this.settle(outcome.finished);
    for (const id of outcome.emitted) this.called(id);
    return outcome;
  }

  private readLogs(position: number | null): void {
    const { dmesg, trace } = this.host;
    const seen = position === null ? undefined : this.seen.get(position);
    for (const entry of dmesg.since(this.lastDmesg, ALL).items) {
      const splat = splatOf(entry);
      if (splat !== null) seen?.splats.push(splat);
    }
    for (const { event, op, device, notifier, iova, size, attempt } of trace.since(this.lastTrace, ALL).items) {
      if (event !== 'notify') continue;
      const unmap = this.seen.get(this.positions.get(Number(/\d+$/.exec(op)?.[0])) ?? 0);
      unmap?.called.push({ device, notifier, iova, size, attempt } as Observation['called'][number]);
    }
    this.skipLogs();
  }

  private skipLogs(): void {
    this.lastDmesg = this.host.dmesg.next - 1;
    this.lastTrace = this.host.trace.next - 1;
  }

  private settle(finished: readonly string[]): void {
    for (const id of finished) {
      const seen = this.parked.get(id);
      const outcome = this.host.operations.get(id)?.outcome;
      if (seen === undefined || outcome === undefined || outcome === null) continue;
      finish(seen, outcome);
      this.parked.delete(id);
    }
  }

  /** This kernel calls a handler: it does what it did when it was recorded. */
  private called(id: string): void {
    const pending = this.host.vfio.notifications.get(id);
    if (pending === undefined) return;
    const unmap = this.positions.get(this.host.operations.get(pending.operation)?.seq ?? -1) ?? 0;
    const { notification } = pending;
    const same = this.recording.same(this.keys.next(unmap, notification));
    if (same !== null) {
      this.counterparts.set(same.id, id);
      const steps = this.due.get(same.id) ?? [];
      this.due.delete(same.id);
      this.scripts.push({ notification: id, steps });
      return;
    }
    if (pending.delivery.kind === 'builtin') this.scripts.push({ notification: id, steps: [SLOW_BUILTIN] });
    else this.improvise(unmap, notification);
  }

  /** Answers a call that was not recorded by the first rule that applies. */
  private improvise(unmap: number, notification: Notification): void {
    const { id } = notification;
    const { rule: habit, steps } = improvised(this.recording, this.host, unmap, notification);
    this.extra += steps.length;
    const rule = this.extra > MAX_HANDLER_COMMANDS ? 'left-waiting' : habit;
    const known = this.rules.get(rule);
    if (known === undefined) this.rules.set(rule, { position: unmap, times: 1, call: { ...notification } });
    else known.times++;
    if (rule !== 'left-waiting') this.scripts.push({ notification: id, steps });
  }
}
