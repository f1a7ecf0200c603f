// The run that the commands were written for: which handler calls there were, what each handler did, and what it answered.

import type { Command } from '../../kernel/command.ts';
import type { Host } from '../../kernel/host.ts';
import { npageOf, pageNumberOf } from '../../kernel/lib/u64.ts';
import type { Notification } from '../../kernel/outcome.ts';
import { ledgerRuns } from '../../kernel/vfio/ledger.ts';
import { executeAs, hostOf, itemAt, type Plan } from './item.ts';

/** One call of a handler outside the kernel, as it was recorded. */
export interface HandlerCall {
  /** Id of its notification in the recording. */
  id: string;
  /** Position of the unmap that called it. */
  unmap: number;
  device: string;
  notifier: string;
  iova: bigint;
  size: bigint;
  attempt: number;
  /** Position of the command during which it was called. */
  called: number;
  /** Positions of the commands that were executed inside it, in order. */
  inside: number[];
  /** Position of the command that ended it: an ack or a timeout. null: the recording ends before. */
  answer: number | null;
}

export type Answer = Extract<Command, { op: 'ack_notification' | 'notification_timeout' }>;

export const isAnswer = (command: Command): command is Answer =>
  command.op === 'ack_notification' || command.op === 'notification_timeout';

/** What names a handler call in any run: the unmap, the listener, the mapping, the attempt, and which of equal ones it is. */
export class CallKeys {
  private readonly seen = new Map<string, number>();

  next(unmap: number, { device, notifier, iova, attempt }: Notification): string {
    const key = `${unmap} ${notifier} ${device} ${iova} ${attempt}`;
    const n = (this.seen.get(key) ?? 0) + 1;
    this.seen.set(key, n);
    return `${key} ${n}`;
  }
}

/** What a listener did in the calls that it answered. */
interface Habit {
  /** Nothing but unpins, and afterwards its device had nothing pinned in the announced range. */
  clean: boolean;
}

export class Recording {
  private readonly habits = new Map<string, Habit>();
  private readonly byId = new Map<string, HandlerCall>();
  private readonly byKey = new Map<string, HandlerCall>();
  private readonly byListener = new Map<string, HandlerCall[]>();

  constructor(readonly plan: Plan) {}

  add(key: string, call: HandlerCall): void {
    this.byId.set(call.id, call);
    this.byKey.set(key, call);
    const listener = `${call.notifier} ${call.device}`;
    const calls = this.byListener.get(listener);
    if (calls === undefined) this.byListener.set(listener, [call]);
    else calls.push(call);
  }

  /** A handler is about to return. */
  answered({ notifier, device, inside }: HandlerCall, left: number): void {
    const isClean = left === 0 && inside.every((position) => itemAt(this.plan, position).command.op === 'unpin_pages');
    const key = `${notifier} ${device}`;
    const habit = this.habits.get(key);
    if (habit === undefined) this.habits.set(key, { clean: isClean });
    else habit.clean &&= isClean;
  }

  /** Whether a listener unpinned all that its device had pinned in the announced range, in every call that it answered. */
  alwaysUnpinsAll({ notifier, device }: Notification): boolean {
    return this.habits.get(`${notifier} ${device}`)?.clean === true;
  }

  /** The call that an item at a position names by its notification; null: there was none by then. */
  named(id: string | null, position: number): HandlerCall | null {
    const call = id === null ? undefined : this.byId.get(id);
    return call === undefined || call.called >= position ? null : call;
  }

  /** The call of the same key. */
  same(key: string): HandlerCall | null {
    return this.byKey.get(key) ?? null;
  }

  /**
   * How the same driver would answer a call that was not recorded: as it did for this mapping in this unmap at the attempt
   * before, or else as it did for a mapping that overlaps this one, in the unmap nearest to this one. null: never.
   */
  alike(unmap: number, { device, notifier, iova, size, attempt }: Notification): HandlerCall | null {
    let best: HandlerCall | null = null;
    let least = Number.POSITIVE_INFINITY;
    for (const call of this.byListener.get(`${notifier} ${device}`) ?? []) {
      if (call.answer === null || call.iova >= iova + size || iova >= call.iova + call.size) continue;
      const earlier = call.attempt <= attempt;
      const distance =
        Math.abs(call.unmap - unmap) * 100 + (earlier ? attempt - call.attempt : 50 + call.attempt - attempt);
      if (distance < least) {
        least = distance;
        best = call;
      }
    }
    return best;
  }
}

/** Runs the commands under the profile they were written for, and writes down the handler calls. Yields after each command. */
export function* record(plan: Plan): Generator<void, Recording> {
  const recording = new Recording(plan);
  const host = hostOf(plan, { profile: plan.options.profile, behaviours: {} });
  const keys = new CallKeys();
  for (const [i, item] of plan.items.entries()) {
    const position = i + 1;
    const { command } = item;
    const answered = isAnswer(command) && isPending(host, command) ? command.notification : null;
    recording.named(item.notification, position)?.inside.push(position);
    const answering = recording.named(answered, position);
    if (answering !== null) recording.answered(answering, referencesIn(host, answering));
    const { emitted } = executeAs(host, item, command, item.notification);
    if (answering !== null && !host.vfio.notifications.has(answering.id)) answering.answer = position;
    for (const id of emitted) noteCall(host, recording, keys, id, position);
    yield;
  }
  return recording;
}

/** Pages that the device of a call has pinned in its range. */
function referencesIn(host: Host, { id, device, iova, size }: HandlerCall): number {
  const container = host.vfio.notifications.get(id)?.notification.container;
  const iommu = host.vfio.containers.get(container ?? '')?.iommu ?? null;
  return iommu === null ? 0 : ledgerRuns(iommu, device, pageNumberOf(iova), npageOf(size)).length;
}

function isPending(host: Host, command: Answer): boolean {
  const pending = host.vfio.notifications.get(command.notification);
  if (pending === undefined) return false;
  return command.op === 'notification_timeout' || pending.notification.device === command.device;
}

function noteCall(host: Host, recording: Recording, keys: CallKeys, id: string, called: number): void {
  const pending = host.vfio.notifications.get(id);
  const unmap = pending === undefined ? undefined : host.operations.get(pending.operation)?.seq;
  if (pending === undefined || unmap === undefined) return;
  const { device, notifier, iova, size, attempt } = pending.notification;
  const key = keys.next(unmap, pending.notification);
  recording.add(key, {
    id,
    unmap,
    device,
    notifier,
    iova,
    size,
    attempt,
    called,
    inside: [],
    answer: null,
  });
}

/** What a handler returned, and why the service said so. */
export function returnOf(recording: Recording, { answer }: HandlerCall): Answer | null {
  if (answer === null) return null;
  const { command } = itemAt(recording.plan, answer);
  return isAnswer(command) ? command : null;
}
