// Group commit: while one transaction is being written, everything that arrives gathers for the next one.
// Between two group commits one piece of other work (a checkpoint's sections, a projection) may be written.

import { setImmediate as nextTurn } from 'node:timers/promises';
import { TooMany } from './errors.ts';
import { MAX_UNCOMMITTED_BYTES, MAX_UNCOMMITTED_COMMANDS } from './limits.ts';
import type { Commit, HostRow, IdempotencyRow, JournalRow, Store } from './ports.ts';

/** One thing to commit: an executed command, or the birth, rebirth or end of a host. */
export interface Entry {
  host: string;
  journal: JournalRow | null;
  idempotency: IdempotencyRow[];
  upsertHost: HostRow | null;
  deleteHost: boolean;
  /** Called in the order of the entries, when the transaction is durable. */
  committed(): void;
  /** Called once when the entry's transaction failed or was never tried: whether it took effect is not known. */
  failed(error: Error): void;
}

export interface CommitterStats {
  commits: number;
  committed: number;
  waiting: number;
  failed: number;
}

export class Committer {
  private queue: Entry[] = [];
  private queuedBytes = 0;
  private writing = 0;
  private readonly tasks: (() => Promise<void>)[] = [];
  private running: Promise<void> | null = null;
  private readonly counted = { commits: 0, committed: 0, failed: 0 };

  /** `onFailure` hears of the hosts whose entries failed, after those entries did. */
  constructor(
    private readonly store: Store,
    private readonly onFailure: (hosts: string[], error: Error) => void,
  ) {}

  stats(): CommitterStats {
    return { ...this.counted, waiting: this.queue.length + this.writing };
  }

  /** Refuses with TooMany while too much is executed and not committed. */
  admit(): void {
    if (this.queue.length + this.writing >= MAX_UNCOMMITTED_COMMANDS)
      throw new TooMany('uncommitted commands', MAX_UNCOMMITTED_COMMANDS);
    if (this.queuedBytes >= MAX_UNCOMMITTED_BYTES) throw new TooMany('uncommitted bytes', MAX_UNCOMMITTED_BYTES);
  }

  enqueue(entry: Entry): void {
    this.queue.push(entry);
    this.queuedBytes += bytesOf(entry);
    this.start();
  }

  /** Runs a bounded piece of work while no group commit is being written. */
  between<T>(work: () => Promise<T>): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      this.tasks.push(async () => {
        try {
          resolve(await work());
        } catch (error) {
          reject(error);
        }
      });
      this.start();
    });
  }

  /** Forgets what a host has queued; whatever is being written meanwhile still ends. */
  drop(host: string, error: Error): void {
    const dropped = this.queue.filter((entry) => entry.host === host);
    if (dropped.length === 0) return;
    this.queue = this.queue.filter((entry) => entry.host !== host);
    for (const entry of dropped) {
      this.queuedBytes -= bytesOf(entry);
      entry.failed(error);
    }
  }

  /** Resolves when nothing is queued and nothing is being written. */
  async idle(): Promise<void> {
    while (this.running !== null) await this.running;
  }

  private start(): void {
    this.running ??= this.run().finally(() => {
      this.running = null;
      if (this.queue.length > 0 || this.tasks.length > 0) this.start();
    });
  }

  private async run(): Promise<void> {
    while (this.queue.length > 0 || this.tasks.length > 0) {
      // A store may block the event loop while it writes: let the requests that came in meanwhile join this commit.
      await nextTurn();
      if (this.queue.length > 0) await this.write(this.take());
      await this.tasks.shift()?.();
    }
  }

  /** Everything queued, up to an entry that deletes rows: those before it must be written before. */
  private take(): Entry[] {
    let end = this.queue.findIndex((entry, i) => i > 0 && entry.deleteHost);
    if (end === -1) end = this.queue.length;
    const batch = this.queue.splice(0, end);
    for (const entry of batch) this.queuedBytes -= bytesOf(entry);
    return batch;
  }

  private async write(batch: Entry[]): Promise<void> {
    this.writing = batch.length;
    try {
      await this.store.commit(merge(batch));
    } catch (error) {
      this.writing = 0;
      this.fail(batch, error as Error);
      return;
    }
    this.writing = 0;
    this.counted.commits++;
    this.counted.committed += batch.length;
    for (const entry of batch) entry.committed();
  }

  /** Nothing is undone: the hosts of the batch are loaded again, so what they queued since has no ground to stand on. */
  private fail(batch: Entry[], error: Error): void {
    this.counted.failed++;
    const hosts = [...new Set(batch.map((entry) => entry.host))];
    for (const entry of batch) entry.failed(error);
    for (const host of hosts) this.drop(host, error);
    this.onFailure(hosts, error);
  }
}

const bytesOf = (entry: Entry): number =>
  (entry.journal?.call.byteLength ?? 0) +
  entry.idempotency.reduce((sum, row) => sum + (row.answer?.byteLength ?? 0), 0);

/** One commit of many entries: of the same host or the same key the last row counts. */
function merge(batch: Entry[]): Commit {
  const commit: Commit = { deleteHosts: [], upsertHosts: [], journal: [], idempotency: [] };
  const hosts = new Map<string, HostRow>();
  const keys = new Map<string, IdempotencyRow>();
  for (const entry of batch) {
    if (entry.deleteHost) commit.deleteHosts.push(entry.host);
    if (entry.upsertHost !== null) hosts.set(entry.host, entry.upsertHost);
    if (entry.journal !== null) commit.journal.push(entry.journal);
    for (const row of entry.idempotency) keys.set(`${row.host}\0${row.key}`, row);
  }
  commit.upsertHosts.push(...hosts.values());
  commit.idempotency.push(...keys.values());
  return commit;
}
