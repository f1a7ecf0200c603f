// One host in memory and everything that happens to it, one command after the other: execute, journal, commit, then show.

import type { Call, Command } from '../kernel/command.ts';
import { execute } from '../kernel/execute.ts';
import type { Host } from '../kernel/host.ts';
import { isDetached } from '../kernel/operation.ts';
import type { MmuNotification, Notification, Outcome } from '../kernel/outcome.ts';
import { type Answer, answerOf, detachedAnswer, endingsOf, type RequestContext } from './answer.ts';
import type { Clock } from './clock.ts';
import { asStored, digestOf, encodeAnswer, encodeCall } from './codec.ts';
import type { Committer } from './committer.ts';
import { Delivery } from './delivery.ts';
import { HostUnavailable } from './errors.ts';
import { optionsToText, type StoredOptions } from './host-options.ts';
import { IdempotencyKeys, type Key } from './idempotency.ts';
import type { ServiceLog } from './log.ts';
import type { HostRow, IdempotencyRow, JournalRow, Store } from './ports.ts';
import { SEMANTICS_REVISION } from './revision.ts';
import { CommitWaits, OperationWaits } from './waits.ts';
import type { WebhookSender } from './webhook.ts';

/** What a host needs of its surroundings. */
export interface Surroundings {
  store: Store;
  committer: Committer;
  clock: Clock;
  webhooks: WebhookSender;
  log: ServiceLog;
  /** A command of the host is durable. */
  onCommitted(journalBytes: number): void;
  /** The host in memory can't be trusted any more: a command threw something that is no answer. */
  onBroken(error: Error): void;
}

interface Executed {
  answer: Answer;
  /** Operations that the command finished, or left where only another request lets them go on. */
  ended: { id: string; answer: Answer }[];
  idempotency: IdempotencyRow[];
  journal: JournalRow;
  /** The host's row where the command changed it. */
  row: HostRow | null;
}

export class HostActor {
  readonly delivery: Delivery;
  /** Time of the last request: what ttl_s counts from. */
  touched_at: number;
  private readonly keys: IdempotencyKeys;
  private readonly commits: CommitWaits;
  private readonly operations = new OperationWaits();
  private closed: Error | null = null;

  constructor(
    readonly host: Host,
    readonly row: Readonly<HostRow>,
    readonly options: StoredOptions,
    private readonly around: Surroundings,
  ) {
    this.touched_at = around.clock.now();
    this.commits = new CommitWaits(host.seq);
    this.keys = new IdempotencyKeys(
      (key) => this.lookUpKey(key),
      (operation) => this.operationEnd(operation),
    );
    this.delivery = new Delivery(host, row.generation, around, {
      committed: (seq) => this.commits.until(seq),
      submit: (command, request_id) => this.submitOwn(command, request_id),
    });
  }

  get id(): string {
    return this.row.id;
  }

  /** Position up to which the journal is durable. */
  get committed_seq(): number {
    return this.commits.committed;
  }

  get live(): boolean {
    return this.closed === null;
  }

  /** Whether somebody waits for one of its operations or notifications. */
  get awaited(): boolean {
    return this.operations.size > 0 || this.delivery.polls > 0;
  }

  /** A request for the host has come: its ttl_s begins anew. */
  touch(): void {
    this.touched_at = this.around.clock.now();
  }

  /** Resolves when everything up to `seq` is durable; rejects when the host is dropped before. */
  committed(seq: number): Promise<void> {
    return this.commits.until(seq);
  }

  /**
   * Executes a command, commits it, and waits for the operation it parked, unless the client wants to hear of that at once or
   * only another request lets it go on.
   * Also a client that hangs up has its command executed: nothing here looks at the connection.
   */
  submit(command: Command, context: RequestContext): Promise<Answer> {
    const { idempotency } = context;
    if (idempotency === null) return this.run(command, context);
    return this.keys.once(idempotency, () => this.run(command, context));
  }

  private async run(command: Command, context: RequestContext): Promise<Answer> {
    this.requireLive();
    this.around.committer.admit();
    const { request_id, notification, idempotency, respond_async } = context;
    // What is executed now is what recovery will decode.
    const call: Call = asStored({ at: this.around.clock.now(), request_id, notification, command });
    const { answer, durable } = this.execute(call, idempotency, respond_async);
    const { parked } = answer.outcome;
    if (parked === undefined || answer.operation !== null) {
      await durable;
      return answer;
    }
    // The wait begins before the commit: another command of the same commit may finish the operation.
    const [end] = await Promise.all([this.operations.until(parked), durable]);
    return end;
  }

  /** A command of the service itself (an answer to a notification, a timeout): never refused for want of room. */
  private async submitOwn(command: Command, request_id: string): Promise<void> {
    this.requireLive();
    const call: Call = asStored({ at: this.around.clock.now(), request_id, notification: null, command });
    await this.execute(call, null, true).durable;
  }

  /** Executes and enqueues; both in one go, so that the order of the journal is the order of execution. */
  private execute(call: Call, key: Key | null, respond_async: boolean): { answer: Answer; durable: Promise<void> } {
    const done = this.executeOrBreak(call, key, respond_async);
    const { answer, ended, journal } = done;
    this.delivery.forgetAnswered();
    const durable = new Promise<void>((resolve, reject) => {
      this.around.committer.enqueue({
        host: this.id,
        journal,
        idempotency: done.idempotency,
        upsertHost: done.row,
        deleteHost: false,
        committed: () => {
          this.commits.reach(answer.seq);
          for (const { id, answer: end } of ended) this.operations.end(id, end);
          this.delivery.deliver(answer.outcome.emitted);
          resolve();
          this.around.onCommitted(journal.call.byteLength);
        },
        failed: () => reject(new HostUnavailable(this.id, 'recovering', `host '${this.id}': the commit failed`)),
      });
    });
    return { answer, durable };
  }

  /** What a command did, as rows and answers. If anything in here throws, the host is not what its journal says. */
  private executeOrBreak(call: Call, key: Key | null, respond_async: boolean): Executed {
    try {
      const outcome = execute(this.host, call);
      const { parked = null, detached = [] } = outcome;
      const early = parked !== null && (respond_async || detached.includes(parked)) ? parked : null;
      const { seq } = this.host;
      const { request_id } = call;
      const profile = this.host.profile.name;
      const answer: Answer = { seq, outcome, operation: early, replayed: false, request_id, profile };
      const ended = endingsOf(this.host, outcome);
      const idempotency = key === null ? [] : [this.keyRow(key, answer)];
      for (const row of idempotency) this.keys.expect(row);
      for (const { id, answer: end } of ended) {
        const completed = this.keys.complete(id, end);
        if (completed !== null) idempotency.push(completed);
      }
      const journal = this.journalRow(call, outcome);
      return { answer, ended, idempotency, journal, row: this.changedRow(call, outcome) };
    } catch (error) {
      this.around.onBroken(error as Error);
      throw error;
    }
  }

  private journalRow(call: Call, outcome: Outcome): JournalRow {
    return {
      host: this.id,
      generation: this.row.generation,
      seq: this.host.seq,
      at: call.at,
      request_id: call.request_id,
      op: call.command.op,
      call: encodeCall(call),
      digest: digestOf(outcome),
      revision: SEMANTICS_REVISION,
    };
  }

  private keyRow({ key, body_hash }: Key, answer: Answer): IdempotencyRow {
    const { parked } = answer.outcome;
    const waits = parked !== undefined && answer.operation === null;
    return {
      host: this.id,
      generation: this.row.generation,
      key,
      body_hash,
      seq: answer.seq,
      operation: waits ? parked : null,
      answer: waits ? null : encodeAnswer(answer),
    };
  }

  /** The host's row with its new options, after a patch_host that was not refused. */
  private changedRow(call: Call, outcome: Outcome): HostRow | null {
    if (call.command.op !== 'patch_host' || outcome.refusal !== undefined) return null;
    this.options.current = this.host.options;
    return { ...this.row, options: optionsToText(this.options) };
  }

  /**
   * Runs a view over the host and waits until everything it can have seen is durable. The view returns data of its own: what
   * it leaves referring to the host may have changed by then. What it throws waits in the same way.
   */
  async read<T>(view: (host: Host) => T): Promise<{ seq: number; value: T }> {
    this.requireLive();
    const { seq } = this.host;
    try {
      const value = view(this.host);
      await this.commits.until(seq);
      return { seq, value };
    } catch (error) {
      await this.commits.until(seq);
      throw error;
    }
  }

  /** Goes on where an earlier life stopped: notifications are delivered again, waiting keys keep waiting. */
  resume(unanswered: IdempotencyRow[]): void {
    for (const row of unanswered) this.keys.expect(row);
    this.delivery.resume();
  }

  /** Stops what could go on for ever: deliveries, long polls, and the clients of parked operations, which stay parked. */
  endWaits(error: Error): void {
    this.delivery.close(error);
    this.operations.close(error);
  }

  /** Ends this life of the host in memory: whoever waits is told why. */
  close(error: Error): void {
    if (this.closed !== null) return;
    this.closed = error;
    this.endWaits(error);
    this.commits.close(error);
  }

  /** Waits for the first notifications of a device; see Delivery.poll(). */
  notifications(device: string, wait_ms: number, signal: AbortSignal): Promise<Notification[]> {
    this.requireLive();
    return this.delivery.poll(device, wait_ms, signal);
  }

  /** The same for the callbacks of an mm's notifiers. */
  mmuNotifications(mm: string, wait_ms: number, signal: AbortSignal): Promise<MmuNotification[]> {
    this.requireLive();
    return this.delivery.pollCallbacks(mm, wait_ms, signal);
  }

  private requireLive(): void {
    if (this.closed !== null) throw this.closed;
  }

  private async lookUpKey(key: string): Promise<IdempotencyRow | null> {
    this.requireLive();
    try {
      return await this.around.store.idempotency(this.id, this.row.generation, key);
    } catch (error) {
      this.around.log.warn({ err: error, host: this.id }, 'an idempotency key could not be looked up');
      throw new HostUnavailable(this.id, 'recovering', `host '${this.id}': the idempotency key could not be looked up`);
    }
  }

  private operationEnd(id: string): Promise<Answer> {
    const operation = this.host.operations.get(id);
    if (operation === undefined)
      return Promise.reject(new HostUnavailable(this.id, 'recovering', `operation ${id} has just ended: ask again`));
    const answer = answerOf(this.host, operation);
    if (isDetached(operation))
      return this.commits.until(this.host.seq).then(() => detachedAnswer(this.host, operation));
    const durable = operation.finished_seq !== null && operation.finished_seq <= this.commits.committed;
    return answer !== null && durable ? Promise.resolve(answer) : this.operations.until(id);
  }
}
