// Loads hosts from the store: all of them at the start, and one after a failed commit, for as long as it takes.

import type { Clock } from './clock.ts';
import type { Committer } from './committer.ts';
import type { NotLoaded } from './host-view.ts';
import { MAX_RELOAD_PAUSE_MS, RELOAD_PAUSE_MS, START_LOAD_TRIES } from './limits.ts';
import type { ServiceLog } from './log.ts';
import type { HostRow, Store } from './ports.ts';
import { Quarantined, type Recovered, recoverHost } from './recovery.ts';
import { SEMANTICS_REVISION } from './revision.ts';

export class Loader {
  private readonly reloads = new Set<Promise<void>>();
  private readonly pauses = new Set<() => void>();
  private stopped = false;

  constructor(
    private readonly store: Store,
    private readonly committer: Committer,
    private readonly clock: Clock,
    private readonly log: ServiceLog,
  ) {}

  /** The host of a row, or why it is quarantined. */
  async load(row: HostRow): Promise<Recovered | NotLoaded> {
    for (let tries = 1; ; tries++) {
      try {
        return await this.recover(row);
      } catch (error) {
        this.log.error({ err: error, host: row.id }, 'a host could not be read');
        if (tries === START_LOAD_TRIES) return this.quarantine(row, error as Error, SEMANTICS_REVISION);
        await this.pause(RELOAD_PAUSE_MS);
      }
    }
  }

  /**
   * Finds out what the store knows of a host after a commit of unknown fate, and hands it over; null: there is no such host.
   * Tries until it is told or the service stops.
   */
  reload(id: string, found: (loaded: Recovered | NotLoaded | null) => void): void {
    const work = this.reloadUntilTold(id, found).finally(() => this.reloads.delete(work));
    this.reloads.add(work);
  }

  private async reloadUntilTold(id: string, found: (loaded: Recovered | NotLoaded | null) => void): Promise<void> {
    for (let ms = RELOAD_PAUSE_MS; !this.stopped; ms = Math.min(2 * ms, MAX_RELOAD_PAUSE_MS)) {
      try {
        // Between two commits: the one that is being written may hold rows of this host.
        const rows = await this.committer.between(() => this.store.hosts());
        const row = rows.find((host) => host.id === id);
        found(row === undefined ? null : await this.recover(row));
        return;
      } catch (error) {
        this.log.error({ err: error, host: id }, 'a host could not be loaded again');
        await this.pause(ms);
      }
    }
  }

  /** Ends the tries that wait. */
  stop(): void {
    this.stopped = true;
    for (const wake of this.pauses) wake();
  }

  async idle(): Promise<void> {
    while (this.reloads.size > 0) await Promise.all(this.reloads);
  }

  private async recover(row: HostRow): Promise<Recovered | NotLoaded> {
    try {
      return await recoverHost(this.store, row);
    } catch (error) {
      if (!(error instanceof Quarantined)) throw error;
      return this.quarantine(row, error, error.revision);
    }
  }

  private quarantine(row: HostRow, error: Error, revision: number): NotLoaded {
    this.log.error({ err: error, host: row.id, revision }, 'a host is quarantined');
    return { id: row.id, state: 'quarantined', row, reason: error.message, revision };
  }

  private pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const wake = (): void => {
        cancel();
        this.pauses.delete(wake);
        resolve();
      };
      const cancel = this.clock.after(ms, wake);
      this.pauses.add(wake);
    });
  }
}
