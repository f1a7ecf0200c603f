// Keeps the relational rows of one host up behind its journal, for people and SQL.

import type { Host } from '../kernel/host.ts';
import { projection } from '../kernel/projection.ts';
import type { Clock } from './clock.ts';
import type { Committer } from './committer.ts';
import { PROJECTION_DELAY_MS } from './limits.ts';
import type { ServiceLog } from './log.ts';
import type { HostRow, Store } from './ports.ts';

export interface ProjectedHost {
  readonly host: Host;
  readonly row: Readonly<HostRow>;
  readonly live: boolean;
  committed(seq: number): Promise<void>;
}

/** Before everything: also what the template made at seq 0 is newer. */
const NEVER = -1;

export class Projector {
  /** Seq that the rows are true for; what was written before a restart is written again. */
  private projected = NEVER;
  private cancel: (() => void) | null = null;
  private running: Promise<void> = Promise.resolve();

  constructor(
    private readonly of: ProjectedHost,
    private readonly around: { store: Store; committer: Committer; clock: Clock; log: ServiceLog },
  ) {}

  /** The host changed: its rows follow after a while, together with what changes until then. */
  schedule(): void {
    if (!this.of.live) return;
    this.cancel ??= this.around.clock.after(PROJECTION_DELAY_MS, () => {
      this.sync().catch((error: unknown) => {
        if (!this.of.live) return;
        this.around.log.warn({ err: error, host: this.of.row.id }, 'the projection was not written');
        this.schedule();
      });
    });
  }

  /** Brings the rows up to now; resolves with the seq that they are then true for. */
  async sync(): Promise<number> {
    this.cancel?.();
    this.cancel = null;
    const { seq } = this.of.host;
    while (this.projected < seq) {
      const next = this.running.catch(() => undefined).then(() => this.write(seq));
      this.running = next;
      await next;
    }
    return this.projected;
  }

  stop(): void {
    this.cancel?.();
    this.cancel = null;
  }

  /** Computes the rows at one seq and writes them when that is durable: SQL shows nothing that may be lost either. */
  private async write(wanted: number): Promise<void> {
    if (this.projected >= wanted) return;
    const { host, row } = this.of;
    const { seq } = host;
    const parts = projection(host, this.projected);
    await this.of.committed(seq);
    await this.around.committer.between(() => {
      if (!this.of.live) throw new Error(`host '${row.id}' ended before its projection`);
      return this.around.store.project(row.id, row.generation, seq, parts);
    });
    this.projected = seq;
  }
}
