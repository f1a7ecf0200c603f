// A test bench for the service: a clock that stands still until it is moved, a store that fails on demand, short requests.

import type { Command } from '../../src/kernel/command.ts';
import type { Answer, RequestContext } from '../../src/service/answer.ts';
import type { CheckpointSettings } from '../../src/service/checkpointer.ts';
import type { Clock } from '../../src/service/clock.ts';
import type { Store } from '../../src/service/ports.ts';
import { Service } from '../../src/service/service.ts';
import { WebhookPolicy } from '../../src/service/webhook-policy.ts';

/** Time that moves only when it is told to. */
export class ManualClock implements Clock {
  private readonly timers = new Set<{ at: number; run: () => void }>();

  constructor(private time = 1_700_000_000_000) {}

  now(): number {
    return this.time;
  }

  after(ms: number, run: () => void): () => void {
    const timer = { at: this.time + ms, run };
    this.timers.add(timer);
    return () => this.timers.delete(timer);
  }

  /** Timers that are still to run. */
  get pending(): number {
    return this.timers.size;
  }

  /** Moves the time on; what was due runs in the order of its time. */
  advance(ms: number): void {
    const end = this.time + ms;
    for (;;) {
      const due = [...this.timers].filter(({ at }) => at <= end).sort((a, b) => a.at - b.at)[0];
      if (due === undefined) break;
      this.timers.delete(due);
      this.time = Math.max(this.time, due.at);
      due.run();
    }
    this.time = end;
  }
}

/** How a call of the store fails: before it has done anything, or after all of it, when the answer gets lost. */
export type Fate = 'before' | 'after';

/** The methods of a store that a test may look at or fail. */
export type StoreCall = Exclude<keyof Store, 'open' | 'close'>;

/** A store whose n-th call fails, once or from then on; also counts the calls and lets a test hold a commit back. */
export class FaultyStore implements Store {
  calls: StoreCall[] = [];
  /** Number of the call that fails, from 1; 0: none. */
  failAt = 0;
  sticky = false;
  fate: Fate = 'before';
  fired = 0;
  /** Calls of these methods wait until the gate opens. */
  private gate: { method: StoreCall; opened: Promise<void> } | null = null;

  constructor(readonly inner: Store) {}

  /** Holds calls of a method back; the returned function lets them go. */
  hold(method: StoreCall): () => void {
    let open = (): void => {};
    const opened = new Promise<void>((resolve) => {
      open = resolve;
    });
    this.gate = { method, opened };
    return () => {
      this.gate = null;
      open();
    };
  }

  private async call<T>(method: StoreCall, work: () => Promise<T>): Promise<T> {
    this.calls.push(method);
    const n = this.calls.length;
    if (this.gate?.method === method) await this.gate.opened;
    const fails = this.failAt > 0 && (this.sticky ? n >= this.failAt : n === this.failAt);
    if (fails) this.fired++;
    if (fails && this.fate === 'before') throw new Error(`store call ${n} (${method}) fails before its work`);
    const result = await work();
    if (fails) throw new Error(`store call ${n} (${method}) fails after its work`);
    return result;
  }

  open = (): Promise<void> => this.inner.open();
  close = (): Promise<void> => this.inner.close();
  hosts: Store['hosts'] = () => this.call('hosts', () => this.inner.hosts());
  commit: Store['commit'] = (...a) => this.call('commit', () => this.inner.commit(...a));
  journal: Store['journal'] = (...a) => this.call('journal', () => this.inner.journal(...a));
  oldestJournalSeq: Store['oldestJournalSeq'] = (...a) =>
    this.call('oldestJournalSeq', () => this.inner.oldestJournalSeq(...a));
  idempotency: Store['idempotency'] = (...a) => this.call('idempotency', () => this.inner.idempotency(...a));
  unansweredIdempotency: Store['unansweredIdempotency'] = (...a) =>
    this.call('unansweredIdempotency', () => this.inner.unansweredIdempotency(...a));
  writeSections: Store['writeSections'] = (...a) => this.call('writeSections', () => this.inner.writeSections(...a));
  writeManifest: Store['writeManifest'] = (...a) => this.call('writeManifest', () => this.inner.writeManifest(...a));
  manifest: Store['manifest'] = (...a) => this.call('manifest', () => this.inner.manifest(...a));
  trim: Store['trim'] = (...a) => this.call('trim', () => this.inner.trim(...a));
  project: Store['project'] = (...a) => this.call('project', () => this.inner.project(...a));

  async *sections(...a: Parameters<Store['sections']>): ReturnType<Store['sections']> {
    await this.call('sections', async () => {});
    yield* this.inner.sections(...a);
  }
}

export interface BenchSettings {
  clock?: Clock;
  journalKeep?: number;
  checkpoints?: Partial<CheckpointSettings>;
  allow?: string[];
}

/** A started service over an open store, with a clock that stands still unless one is given. */
export async function startService(store: Store, settings: BenchSettings = {}): Promise<Service> {
  const { clock = new ManualClock(), journalKeep = 1_000_000, checkpoints = {}, allow = [] } = settings;
  const service = new Service({
    store,
    clock,
    webhookPolicy: new WebhookPolicy(allow),
    checkpoints: { commands: 1_000_000, bytes: 2 ** 40, journalKeep, ...checkpoints },
  });
  await service.start();
  return service;
}

let requests = 0;

/** The context of a request; a key is given together with a number that stands for its body. */
export function context(
  extra: { key?: string; body?: number; respond_async?: boolean; notification?: string; request_id?: string } = {},
): RequestContext {
  const { key, body = 0, respond_async = false, notification = null, request_id = `request-${++requests}` } = extra;
  const idempotency = key === undefined ? null : { key, body_hash: new Uint8Array(32).fill(body) };
  return { request_id, notification, idempotency, respond_async };
}

export const submit = (
  service: Service,
  command: Command,
  extra: Parameters<typeof context>[0] = {},
  host = 'default',
): Promise<Answer> => service.submit(host, command, context(extra));

export const map = (iova: bigint, npage = 16): Command => ({
  op: 'map_dma',
  container: 'vfio0',
  task: 'qemu',
  iova,
  vaddr: 0x7f0000000000n + iova,
  size: BigInt(npage) * 4096n,
  flags: 3,
  argsz: 32,
});

export const unmap = (iova: bigint, npage = 16): Command => ({
  op: 'unmap_dma',
  container: 'vfio0',
  task: null,
  iova,
  size: BigInt(npage) * 4096n,
  flags: 0,
  argsz: null,
  bitmap: null,
});

export const pin = (...user_pfn: number[]): Command => ({
  op: 'pin_pages',
  device: 'mdev0',
  user_pfn,
  npage: user_pfn.length,
  prot: 3,
});

export const unpin = (...user_pfn: number[]): Command => ({
  op: 'unpin_pages',
  device: 'mdev0',
  user_pfn,
  npage: user_pfn.length,
});

export const notifier = (
  delivery: Extract<Command, { op: 'register_notifier' }>['notifier']['delivery'] = { kind: 'poll' },
): Command => ({
  op: 'register_notifier',
  device: 'mdev0',
  notifier: { id: 'n1', events: 1, type: 0, priority: 0, delivery },
});

export const ack = (notification: string, ret = 1): Command => ({
  op: 'ack_notification',
  device: 'mdev0',
  notification,
  ret,
  reason: 'ack',
  detail: null,
});

/** Lets everything happen that waits for nothing but its turn. */
export async function settle(turns = 10): Promise<void> {
  for (let i = 0; i < turns; i++) await new Promise((resolve) => setImmediate(resolve));
}

/** Pending, or how a promise ended, looked at without waiting for more than a few turns. */
export async function stateOf(promise: Promise<unknown>): Promise<string> {
  let state = 'pending';
  promise.then(
    () => {
      state = 'resolved';
    },
    (error: Error) => {
      state = error.name;
    },
  );
  await settle();
  return state;
}
