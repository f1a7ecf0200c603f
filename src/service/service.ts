// The service: hosts by id, each an actor over one store. What http/ calls, and the order of start, reload and stop.

import type { Command, HostOptions } from '../kernel/command.ts';
import { createHost } from '../kernel/execute.ts';
import type { Host } from '../kernel/host.ts';
import type { MmuNotification, Notification } from '../kernel/outcome.ts';
import type { Answer, RequestContext } from './answer.ts';
import { type CheckpointSettings, defaultCheckpoints } from './checkpointer.ts';
import { type Clock, systemClock } from './clock.ts';
import { Committer, type CommitterStats } from './committer.ts';
import { type DifferentialSettings, runDifferential } from './differential/differential.ts';
import type { Plan } from './differential/item.ts';
import { planOfJournal, type RecordedOn } from './differential/journal-plan.ts';
import type { Report } from './differential/report.ts';
import { HostExists, HostUnavailable, NoSuchHost, TooMany } from './errors.ts';
import { copyOptions, DEFAULT_HOST_OPTIONS, optionsFromText, optionsToText, sameOptions } from './host-options.ts';
import { type HostView, hostView, type LeakReport, leakReport, type NotLoaded, notLoadedView } from './host-view.ts';
import { type JournalEntry, readJournal } from './journal.ts';
import { Lifecycles } from './lifecycles.ts';
import {
  DEFAULT_JOURNAL_KEEP,
  MAX_DIFFERENTIALS,
  MAX_HOSTS,
  MAX_WAITING_REQUESTS,
  STOP_BUDGET_MS,
  TTL_SWEEP_MS,
} from './limits.ts';
import { Loader } from './loader.ts';
import { type ServiceLog, silentLog } from './log.ts';
import type { HostRow, Store } from './ports.ts';
import type { Recovered } from './recovery.ts';
import { newborn, RunningHost } from './running-host.ts';
import { WebhookSender } from './webhook.ts';
import type { WebhookPolicy } from './webhook-policy.ts';

export interface ServiceSettings {
  /** Opened; stop() closes it. */
  store: Store;
  webhookPolicy: WebhookPolicy;
  clock?: Clock;
  log?: ServiceLog;
  checkpoints?: CheckpointSettings;
}

export interface Readiness {
  ready: boolean;
  draining: boolean;
  quarantined: { host: string; reason: string; revision: number }[];
}

export class Service {
  private readonly slots = new Map<string, RunningHost | NotLoaded>();
  private readonly lifecycles = new Lifecycles();
  private readonly store: Store;
  private readonly clock: Clock;
  private readonly log: ServiceLog;
  private readonly committer: Committer;
  private readonly webhooks: WebhookSender;
  private readonly checkpoints: CheckpointSettings;
  private readonly loader: Loader;
  private waiting = 0;
  /** Hosts that are being created. */
  private births = 0;
  private differentials = 0;
  private last_generation = 0;
  private started = false;
  private cancelSweep: () => void = () => {};
  private stopping: Promise<void> | null = null;

  constructor({ store, webhookPolicy, clock, log, checkpoints }: ServiceSettings) {
    this.store = store;
    this.clock = clock ?? systemClock;
    this.log = log ?? silentLog;
    this.committer = new Committer(store, (hosts, error) => {
      for (const id of hosts) this.lose(id, error);
    });
    this.webhooks = new WebhookSender(webhookPolicy, this.clock);
    this.checkpoints = checkpoints ?? defaultCheckpoints(DEFAULT_JOURNAL_KEEP);
    this.loader = new Loader(store, this.committer, this.clock, this.log);
  }

  /** Loads every host of the store; a store without any gets one, called 'default'. */
  async start(): Promise<void> {
    for (const row of await this.store.hosts()) {
      this.last_generation = Math.max(this.last_generation, row.generation);
      this.take(row.id, await this.loader.load(row));
    }
    if (this.slots.size === 0) await this.birth('default', { ...DEFAULT_HOST_OPTIONS, template: 'default' });
    this.started = true;
    this.sweepLater();
  }

  readiness(): Readiness {
    const quarantined = [...this.slots.values()].flatMap((slot) =>
      slot.state === 'quarantined' ? [{ host: slot.id, reason: slot.reason, revision: slot.revision }] : [],
    );
    const draining = this.stopping !== null;
    return { ready: this.started && !draining, draining, quarantined };
  }

  /** Numbers for the metrics page. */
  stats(): CommitterStats & { hosts: number; waiting_requests: number } {
    return { ...this.committer.stats(), hosts: this.slots.size, waiting_requests: this.waiting };
  }

  /** Makes a host, or finds the one that was made with the same options. HostExists: made with others. */
  createHost(id: string, options: HostOptions): Promise<{ created: boolean; view: HostView }> {
    return this.request(() =>
      this.lifecycles.run(id, async () => {
        const slot = this.slots.get(id);
        if (slot === undefined) return { created: true, view: hostView((await this.birth(id, options)).actor.host) };
        const { row } = slot;
        if (row === null) throw new HostUnavailable(id, 'recovering');
        if (!sameOptions(createdWith(row), options)) throw new HostExists(id);
        return { created: false, view: await this.view(slot) };
      }),
    );
  }

  /** All hosts, sorted by id. */
  hosts(): Promise<HostView[]> {
    return this.request(async () => {
      const views: HostView[] = [];
      for (const id of [...this.slots.keys()].sort()) {
        const view = await this.viewIfThere(id);
        if (view !== null) views.push(view);
      }
      return views;
    });
  }

  /** Also of a host that is quarantined: it is the only way to see that it is. */
  host(id: string): Promise<HostView> {
    return this.request(async () => {
      await this.lifecycles.ended(id);
      const slot = this.slotOf(id);
      if (slot.state === 'recovering') throw new HostUnavailable(id, 'recovering');
      if (slot.state === 'running') slot.actor.touch();
      return this.view(slot);
    });
  }

  /** Deletes a host with everything that was kept of it. */
  deleteHost(id: string): Promise<LeakReport> {
    return this.request(() => this.lifecycles.run(id, () => this.end(id)));
  }

  /** Makes a host anew from what created it; its journal, keys and logs begin again. */
  resetHost(id: string): Promise<HostView> {
    return this.request(() =>
      this.lifecycles.run(id, async () => {
        const slot = this.slotOf(id);
        const row = requireLoaded(slot);
        const reborn = this.prepare(id, createdWith(row), row.created_at);
        if (slot.state === 'running') slot.close(new HostUnavailable(id, 'recovering', `host '${id}' was reset`));
        await this.commitRow(id, reborn.row, true);
        return hostView(this.install(id, reborn).actor.host);
      }),
    );
  }

  /** Executes a command on a host and waits for its commit, and for the parked operation unless respond_async. */
  submit(host: string, command: Command, context: RequestContext): Promise<Answer> {
    return this.onHost(host, ({ actor }) => actor.submit(command, context));
  }

  /** Runs a pure view over the host and waits until everything it can have seen is committed. */
  read<T>(host: string, view: (host: Host) => T): Promise<{ seq: number; value: T }> {
    return this.onHost(host, ({ actor }) => actor.read(view));
  }

  journal(host: string, since: number, limit: number): Promise<{ items: JournalEntry[]; truncated: boolean }> {
    return this.onHost(host, ({ actor }) => readJournal(this.store, actor.row, actor.committed_seq, since, limit));
  }

  /** Long poll: the device's unanswered poll notifications as soon as there is one; [] after wait_ms. */
  notifications(host: string, device: string, wait_ms: number, signal: AbortSignal): Promise<Notification[]> {
    return this.onHost(host, ({ actor }) => actor.notifications(device, wait_ms, signal));
  }

  /** Long poll: the unanswered callbacks of an mm's notifiers that clients fetch. */
  mmuNotifications(host: string, mm: string, wait_ms: number, signal: AbortSignal): Promise<MmuNotification[]> {
    return this.onHost(host, ({ actor }) => actor.mmuNotifications(mm, wait_ms, signal));
  }

  /** Runs a host's journal, or commands that the client brings, under several profiles. No host is made or changed. */
  differential(source: Plan | RecordedOn, settings: DifferentialSettings): Promise<Report> {
    return this.request(async () => {
      if (this.differentials >= MAX_DIFFERENTIALS) throw new TooMany('differential runs', MAX_DIFFERENTIALS);
      this.differentials++;
      try {
        return await runDifferential('host' in source ? await this.recorded(source) : source, settings);
      } finally {
        this.differentials--;
      }
    });
  }

  private recorded({ host, until }: RecordedOn): Promise<Plan> {
    return this.onHost(host, ({ actor }) => planOfJournal(this.store, actor.row, actor.committed_seq, until));
  }

  /** Brings the relational rows of a host up to now. */
  sync(host: string): Promise<{ seq: number }> {
    return this.onHost(host, async ({ projector }) => ({ seq: await projector.sync() }));
  }

  /** Writes a checkpoint of a host now. */
  checkpoint(host: string): Promise<void> {
    return this.onHost(host, ({ checkpointer }) => checkpointer.checkpoint());
  }

  /** Refuses what is new, lets what is being committed end, leaves parked operations parked, checkpoints, closes the store. */
  stop(): Promise<void> {
    this.stopping ??= this.drain();
    return this.stopping;
  }

  private async drain(): Promise<void> {
    const end = this.clock.now() + STOP_BUDGET_MS;
    this.cancelSweep();
    this.loader.stop();
    const draining = new HostUnavailable(null, 'draining');
    for (const slot of this.slots.values()) if (slot.state === 'running') slot.actor.endWaits(draining);
    await Promise.all([this.lifecycles.idle(), this.loader.idle(), this.committer.idle()]);
    for (const slot of this.slots.values()) {
      if (slot.state !== 'running') continue;
      if (this.clock.now() < end) await this.leave(slot);
      slot.close(draining);
    }
    await this.committer.idle();
    await this.store.close();
  }

  /** What is not written now is written after the next start: from the journal, which is complete. */
  private async leave({ row, checkpointer, projector }: RunningHost): Promise<void> {
    try {
      await checkpointer.checkpoint();
      await projector.sync();
    } catch (error) {
      this.log.warn({ err: error, host: row.id }, 'a host was left without a last checkpoint');
    }
  }

  private async birth(id: string, options: HostOptions): Promise<RunningHost> {
    if (this.slots.size + this.births >= MAX_HOSTS) throw new TooMany('hosts', MAX_HOSTS);
    const born = this.prepare(id, options, this.clock.now());
    this.births++;
    try {
      await this.commitRow(id, born.row, false);
    } finally {
      this.births--;
    }
    return this.install(id, born);
  }

  private prepare(id: string, created_with: HostOptions, created_at: number): Recovered {
    const host = createHost(id, copyOptions(created_with), created_at);
    const options = { current: host.options, created_with: copyOptions(created_with) };
    this.last_generation = Math.max(this.last_generation + 1, this.clock.now());
    const row = { id, generation: this.last_generation, options: optionsToText(options), created_at };
    return newborn(host, row, options);
  }

  private async end(id: string): Promise<LeakReport> {
    const slot = this.slotOf(id);
    requireLoaded(slot);
    const report = leakReport(slot.state === 'running' ? slot.actor.host : null);
    if (slot.state === 'running') slot.close(new NoSuchHost(id));
    await this.commitRow(id, null, true);
    this.slots.delete(id);
    return report;
  }

  /** Commits the beginning or the end of a host's life; a failed one is loaded again, as any host whose commit failed. */
  private commitRow(host: string, upsertHost: HostRow | null, deleteHost: boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      const failed = () => reject(new HostUnavailable(host, 'recovering', `host '${host}': the commit failed`));
      const rows = { journal: null, idempotency: [], upsertHost, deleteHost };
      this.committer.enqueue({ host, ...rows, committed: resolve, failed });
    });
  }

  private take(id: string, loaded: Recovered | NotLoaded | null): void {
    if (loaded === null) this.slots.delete(id);
    else if ('state' in loaded) this.slots.set(id, loaded);
    else this.install(id, loaded);
  }

  private install(id: string, loaded: Recovered): RunningHost {
    const around = {
      store: this.store,
      committer: this.committer,
      clock: this.clock,
      webhooks: this.webhooks,
      log: this.log,
    };
    const running = new RunningHost(loaded, around, this.checkpoints, (error) => {
      this.committer.drop(id, error);
      this.lose(id, error);
    });
    this.slots.set(id, running);
    running.start();
    return running;
  }

  /** A host whose memory and store may differ: what is in memory is dropped, the store is asked what is true. */
  private lose(id: string, error: Error): void {
    this.log.error({ err: error, host: id }, 'a host is loaded again');
    const slot = this.slots.get(id);
    if (slot?.state === 'running') slot.close(new HostUnavailable(id, 'recovering'));
    if (slot?.state === 'recovering') return;
    this.slots.set(id, { id, state: 'recovering', row: slot?.row ?? null, reason: error.message, revision: 0 });
    this.loader.reload(id, (loaded) => this.take(id, loaded));
  }

  private async view(slot: RunningHost | NotLoaded): Promise<HostView> {
    if (slot.state !== 'running') return notLoadedView(slot);
    return (await slot.actor.read(hostView)).value;
  }

  /** Null where there is no such host any more. What ends it while it is looked at has it looked at again. */
  private async viewIfThere(id: string): Promise<HostView | null> {
    for (;;) {
      await this.lifecycles.ended(id);
      const slot = this.slots.get(id);
      if (slot === undefined) return null;
      try {
        return await this.view(slot);
      } catch (error) {
        if (!this.lifecycles.has(id) && this.slots.get(id) === slot) throw error;
      }
    }
  }

  private slotOf(id: string): RunningHost | NotLoaded {
    const slot = this.slots.get(id);
    if (slot === undefined) throw new NoSuchHost(id);
    return slot;
  }

  /** Work on a host that is served, after whatever is happening to the host as a whole. */
  private onHost<T>(id: string, work: (running: RunningHost) => Promise<T>): Promise<T> {
    return this.request(async () => {
      if (this.lifecycles.has(id)) await this.lifecycles.ended(id);
      const slot = this.slotOf(id);
      if (slot.state !== 'running') throw new HostUnavailable(id, slot.state);
      slot.actor.touch();
      return work(slot);
    });
  }

  private async request<T>(work: () => Promise<T>): Promise<T> {
    if (this.stopping !== null) throw new HostUnavailable(null, 'draining');
    if (this.waiting >= MAX_WAITING_REQUESTS) throw new TooMany('waiting requests', MAX_WAITING_REQUESTS);
    this.waiting++;
    try {
      return await work();
    } finally {
      this.waiting--;
    }
  }

  private sweepLater(): void {
    this.cancelSweep = this.clock.after(TTL_SWEEP_MS, () => {
      for (const slot of this.slots.values()) if (slot.state === 'running') this.deleteIfUntouched(slot);
      this.sweepLater();
    });
  }

  private deleteIfUntouched({ actor }: RunningHost): void {
    const { ttl_s } = actor.host.options;
    if (ttl_s === null || actor.awaited || this.lifecycles.has(actor.id)) return;
    if (this.clock.now() - actor.touched_at < ttl_s * 1000) return;
    this.log.info({ host: actor.id, ttl_s }, 'an untouched host is deleted');
    this.deleteHost(actor.id).catch((error: unknown) => {
      this.log.warn({ err: error, host: actor.id }, 'an untouched host was not deleted');
    });
  }
}

/** The row of a host that the store's word is known of. */
function requireLoaded(slot: RunningHost | NotLoaded): Readonly<HostRow> {
  if (slot.state === 'recovering' || slot.row === null) throw new HostUnavailable(slot.row?.id ?? null, 'recovering');
  return slot.row;
}

/** What PUT made a host with. HostUnavailable: that can't be read, only DELETE is left. */
function createdWith({ id, options }: Readonly<HostRow>): HostOptions {
  try {
    return optionsFromText(options).created_with;
  } catch {
    throw new HostUnavailable(id, 'quarantined');
  }
}
