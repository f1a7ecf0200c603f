// How calls of the naive model sleep and are woken: a call is a generator, and it sleeps where it has yielded.

import { ERRNO } from '../../src/kernel/errno.ts';
import { Refused } from './naive-mm.ts';
import { NaiveObjects } from './naive-objects.ts';
import {
  done,
  type NaiveChain,
  type NaiveIommu,
  type NaiveMapping,
  type NaiveNotification,
  type NaiveOp,
  type NaiveOutcome,
  type NaiveResult,
  type Sleeping,
  type Waits,
  walkOf,
} from './naive-types.ts';

export function refusedOutcome(error: unknown): NaiveOutcome {
  if (!(error instanceof Refused)) throw error;
  const at = error.at_index === undefined ? {} : { at_index: error.at_index };
  const number = error.errno === 'NOT_FOUND' ? ERRNO.ENOENT : ERRNO[error.errno as keyof typeof ERRNO];
  return { ret: -number, errno: error.errno, fields: { ...error.left, ...at } };
}

export abstract class NaiveOperations extends NaiveObjects {
  blocks = new Map<string, { device: string; type: number; priority: number }>();
  /** Notifier calls that wait for their handler, by number. */
  pending = new Map<number, NaiveNotification>();
  next = 1;
  /** Operations that sleep, oldest first. */
  asleep: NaiveOp[] = [];
  seq = 0;
  protected finished: NaiveResult['finished'] = [];
  protected emitted: NaiveNotification[] = [];

  protected isInsideWalkOf(chain: NaiveChain, inside: number | null): boolean {
    for (let n = inside; n !== null; ) {
      const pending = this.pending.get(n);
      if (pending === undefined) return false;
      if (chain.readers.includes(pending.op)) return true;
      n = pending.op.inside;
    }
    return false;
  }

  protected refuseDeadlock(label = 'listener-lock'): never {
    this.seen.add('nested call refused as a deadlock');
    this.splat(label);
    throw new Refused('EDEADLK');
  }

  protected lockGroups(container: string): void {
    if (!this.rules.groupLockAroundCalls) return;
    if (!this.asleep.some((op) => op.kind === 'unmap_dma' && op.container === container)) return;
    this.seen.add('attach or detach beside an unmap');
    this.refuseDeadlock('group-lock');
  }

  /** Calls every block of the chain, under its lock for reading, until one answers with a stop value. */
  protected *walk(op: NaiveOp, chain: NaiveChain, m: NaiveMapping, attempt: number): Generator<Waits, void, number> {
    const { iova, size } = m;
    if (chain.queue.length === 0) chain.readers.push(op);
    else {
      this.seen.add('walk waits behind a writer');
      chain.queue.push({ op, write: false });
      yield 'lock';
    }
    const { blocks } = walkOf(chain);
    let stopped = false;
    for (const notifier of blocks) {
      const { device } = this.blocks.get(notifier) as { device: string };
      const n = this.next++;
      const notification = { n, op, device, notifier, iova, size, container: op.container, attempt };
      op.notified++;
      this.pending.set(n, notification);
      this.emitted.push(notification);
      const ret = yield 'notification';
      stopped = !this.rules.deviceIsListener && (ret & 0x8000) !== 0;
      if (stopped) break;
    }
    if (!stopped && walkOf(chain).endless) {
      this.loop(op.container);
      return;
    }
    chain.readers = chain.readers.filter((reader) => reader !== op);
    this.grant(chain);
  }

  /** Somebody walks a chain that a double registration has closed to a loop. */
  protected loop(container: string): void {
    this.seen.add('a chain closed to a loop is walked');
    this.splat('soft-lockup');
    this.kill(container);
  }

  /** Whoever waits for the lock gets it in order of arrival, before the one who dropped it goes on. */
  protected grant(chain: NaiveChain): void {
    for (let head = chain.queue[0]; head !== undefined; head = chain.queue[0]) {
      if (head.op.done === null && head.write && chain.readers.length > 0) return;
      chain.queue.shift();
      if (head.op.done !== null) continue;
      if (!head.write) chain.readers.push(head.op);
      this.proceed(head.op, 0);
    }
  }

  /** A BUG: the container never answers again, and everything that sleeps in it is refused. */
  protected kill(id: string): void {
    const container = this.containers.get(id);
    if (container !== undefined) container.dead = true;
    for (const [n, pending] of this.pending) if (pending.container === id) this.pending.delete(n);
    for (const op of this.asleep.filter((other) => other.container === id)) {
      const left = op.kind === 'unmap_dma' ? { notifications: op.notified } : {};
      this.finish(op, refusedOutcome(new Refused('EIO', left)));
      if (op.holds !== null) this.group(op.holds).users--;
    }
  }

  /** Runs a call that may sleep. */
  protected start(
    kind: string,
    container: string,
    inside: number | null,
    make: (op: NaiveOp) => Sleeping,
  ): NaiveOutcome | NaiveOp {
    const inPending = inside !== null && this.pending.has(inside) ? inside : null;
    const op: NaiveOp = {
      id: `${kind}-${this.seq}`,
      kind,
      container,
      inside: inPending,
      waits: null,
      holds: null,
      run: undefined as unknown as Sleeping,
      done: null,
      notified: 0,
    };
    op.run = make(op);
    const step = op.run.next(0);
    if (step.done) return step.value;
    op.waits = step.value;
    this.asleep.push(op);
    return op;
  }

  /** Lets an operation that slept run on. */
  protected proceed(op: NaiveOp, value: number): void {
    op.waits = null;
    let outcome: NaiveOutcome;
    try {
      const step = op.run.next(value);
      if (!step.done) {
        op.waits = step.value;
        return;
      }
      outcome = step.value;
    } catch (error) {
      outcome = refusedOutcome(error);
    }
    if (op.done !== null) return;
    this.finish(op, outcome);
    if (op.holds === null) return;
    const group = this.group(op.holds);
    group.users--;
    if (group.users === 0) this.leave(op.holds, group);
  }

  protected finish(op: NaiveOp, outcome: NaiveOutcome): void {
    op.done = outcome;
    this.asleep = this.asleep.filter((other) => other !== op);
    this.finished.push({ id: op.id, outcome });
  }

  /** A call of a device sleeps: it is one of the users of the device's group until it returns. */
  protected hold(op: NaiveOp, group: string): void {
    if (op.holds !== null) return;
    op.holds = group;
    this.group(group).users++;
  }

  // Waits for a vaddr

  /** KILLED where a fatal signal arrives meanwhile. */
  static readonly KILLED = -1;

  protected *sleepForVaddr(iommu: NaiveIommu, op: NaiveOp): Generator<Waits, void, number> {
    iommu.vaddrWait.push(op);
    const value = yield 'vaddr';
    if (value === NaiveOperations.KILLED || !iommu.containerOpen) throw new Refused('EFAULT');
  }

  protected wakeVaddrWaiters(iommu: NaiveIommu): void {
    const woken = iommu.vaddrWait;
    iommu.vaddrWait = [];
    for (const op of woken) if (op.done === null) this.proceed(op, 0);
  }

  /** A fatal signal. */
  protected killOperation(id: string): NaiveOutcome {
    const op = this.asleep.find((other) => other.id === id);
    const iommu = op === undefined ? null : (this.containers.get(op.container)?.iommu ?? null);
    if (op === undefined || iommu === null || !iommu.vaddrWait.includes(op)) throw new Refused('EINVAL');
    iommu.vaddrWait = iommu.vaddrWait.filter((waiting) => waiting !== op);
    this.proceed(op, NaiveOperations.KILLED);
    return done();
  }

  protected isAttaching(group: string): boolean {
    return this.asleep.some((op) => this.attaching.get(op) === group);
  }

  /** Which group an operation is attaching. */
  protected readonly attaching = new WeakMap<NaiveOp, string>();

  /** A handler has returned, or its time is up (device null). */
  protected answer(id: string, device: string | null, ret: number): NaiveOutcome {
    if (device !== null) this.device(device);
    const n = Number(id.split('-')[1]);
    const pending = this.pending.get(n);
    if (pending === undefined) {
      if (device === null) return done();
      if (n < 1 || n >= this.next) throw new Refused('NOT_FOUND');
      this.seen.add('late ack');
      const group = this.device(device).group;
      if (group !== null) this.alive(this.group(group).container);
      throw new Refused('EBUSY');
    }
    if (device !== null && pending.device !== device) throw new Refused('NOT_FOUND');
    this.pending.delete(n);
    this.proceed(pending.op, ret);
    return done();
  }

  /** Changes a chain under its lock for writing. */
  protected write(
    kind: 'register_notifier' | 'unregister_notifier',
    container: string,
    group: string,
    chain: NaiveChain,
    inside: number | null,
    reply: NaiveOutcome,
    change: () => void,
  ): NaiveOutcome | NaiveOp {
    if (this.isInsideWalkOf(chain, inside)) this.refuseDeadlock();
    const locked = this.locked.bind(this);
    return this.start(kind, container, inside, (op) => locked(op, kind, group, chain, reply, change));
  }

  /** While it waits it is one of the users of its device's group. */
  protected *locked(
    op: NaiveOp,
    kind: string,
    group: string,
    chain: NaiveChain,
    reply: NaiveOutcome,
    change: () => void,
  ): Sleeping {
    if (chain.readers.length + chain.queue.length > 0) {
      this.seen.add(kind === 'register_notifier' ? 'register waits for a callback' : 'unregister waits for a callback');
      chain.queue.push({ op, write: true });
      this.hold(op, group);
      yield 'lock';
    }
    change();
    return reply;
  }
}
