// A naive model of a host of profile 5.15: maps, arrays and generators, written from the rules alone. It shares nothing with
// src/kernel but the form of commands. A call that sleeps is a generator that has yielded.

import type { Call, Command } from '../../src/kernel/command.ts';
import { READ, WRITE } from '../../src/kernel/command.ts';
import { ERRNO } from '../../src/kernel/errno.ts';
import { isReserved, MOD_2_64, NaiveMemory, type NaivePage, Refused } from './naive-mm.ts';

export interface NaiveMapping {
  iova: bigint;
  size: bigint;
  vaddr: bigint;
  prot: number;
  /** Thread-group leader. */
  task: string;
  cap: boolean;
  pins: Map<bigint, { page: NaivePage; ref_count: number }>;
}

/** The rw-lock of a chain, fair: a waiting writer holds off new readers. */
export interface NaiveChain {
  blocks: string[];
  readers: NaiveOp[];
  queue: { op: NaiveOp; write: boolean }[];
}

export interface NaiveIommu {
  type: number;
  limit: number;
  avail: number;
  maps: NaiveMapping[];
  chain: NaiveChain;
}

export interface NaiveContainer {
  open: boolean;
  groups: string[];
  iommu: NaiveIommu | null;
  dead: boolean;
}

export interface NaiveGroup {
  open: boolean;
  container: string | null;
  users: number;
  devices: string[];
  chain: NaiveChain;
}

export interface NaiveOutcome {
  ret: number;
  errno: string | null;
  /** Fields of the reply, of a refusal too, that the model answers for. */
  fields: Record<string, unknown>;
}

export interface NaiveNotification {
  n: number;
  op: NaiveOp;
  device: string;
  notifier: string;
  iova: bigint;
  size: bigint;
  container: string;
  attempt: number;
}

export interface NaiveOp {
  id: string;
  container: string;
  /** Number of the notification inside whose handler it was called. */
  inside: number | null;
  waits: 'notification' | 'lock' | null;
  run: Generator<'notification' | 'lock', NaiveOutcome, number>;
  done: NaiveOutcome | null;
  notified: number;
  kind: string;
}

export interface NaiveResult extends NaiveOutcome {
  parked: string | null;
  finished: { id: string; outcome: NaiveOutcome }[];
  emitted: NaiveNotification[];
}

/** What a long random run must have met at least once. */
export type Milestone =
  | 'rollback in the middle of a batch'
  | 'eleventh notification and BUG'
  | 'competing unmap inside a callback'
  | 'register waits for a callback'
  | 'unregister waits for a callback'
  | 'late ack'
  | 'restart whose range bisects'
  | 'ENOMEM of the limit'
  | 'nested call refused as a deadlock'
  | 'walk waits behind a writer';

type Of<O extends Command['op']> = Extract<Command, { op: O }>;
type Sleeping = Generator<'notification' | 'lock', NaiveOutcome, number>;

const PAGE = 4096n;
const isAligned = (value: bigint): boolean => value % PAGE === 0n;
const newChain = (): NaiveChain => ({ blocks: [], readers: [], queue: [] });
const done = (fields: Record<string, unknown> = {}, ret = 0): NaiveOutcome => ({ ret, errno: null, fields });

function refusedOutcome(error: unknown): NaiveOutcome {
  if (!(error instanceof Refused)) throw error;
  const at = error.at_index === undefined ? {} : { at_index: error.at_index };
  const number = error.errno === 'NOT_FOUND' ? ERRNO.ENOENT : ERRNO[error.errno as keyof typeof ERRNO];
  return { ret: -number, errno: error.errno, fields: { ...error.left, ...at } };
}

export class NaiveModel {
  memory = new NaiveMemory();
  containers = new Map<string, NaiveContainer>();
  groups = new Map<string, NaiveGroup>();
  devices = new Map<string, { group: string | null; open: number }>();
  blocks = new Map<string, { device: string; type: number; priority: number }>();
  /** Notifier calls that wait for their handler, by number. */
  pending = new Map<number, NaiveNotification>();
  next = 1;
  /** Operations that sleep, oldest first. */
  asleep: NaiveOp[] = [];
  seq = 0;
  seen = new Set<Milestone>();
  private finished: NaiveResult['finished'] = [];
  private emitted: NaiveNotification[] = [];

  constructor(private readonly dma_entry_limit: number) {}

  execute(call: Call): NaiveResult {
    this.seq++;
    this.finished = [];
    this.emitted = [];
    const inside = call.notification === null ? null : Number(call.notification.split('-')[1]);
    let outcome: NaiveOutcome;
    let parked: string | null = null;
    try {
      const reply = this.dispatch(call.command, inside);
      if ('run' in reply) parked = reply.id;
      outcome = 'run' in reply ? done() : reply;
    } catch (error) {
      outcome = refusedOutcome(error);
    }
    return { ...outcome, parked, finished: this.finished, emitted: this.emitted };
  }

  private dispatch(c: Command, inside: number | null): NaiveOutcome | NaiveOp {
    const { memory } = this;
    switch (c.op) {
      case 'put_task':
        memory.putTask(c.task, c.rlimit_memlock, c.cap_ipc_lock, c.thread_of);
        return done();
      case 'patch_task':
        return this.patchTask(c);
      case 'exit':
        memory.exit(c.task);
        return done();
      case 'adjust_locked_vm': {
        const mm = memory.live(c.task);
        mm.locked_vm = BigInt.asUintN(64, mm.locked_vm + BigInt(c.delta));
        return done();
      }
      case 'mmap': {
        if (c.backing.kind !== 'anon' && c.backing.kind !== 'pages') throw new Error('not in the model');
        const pfns =
          c.backing.kind === 'anon'
            ? null
            : c.backing.pfns.flatMap(([pfn, count]) => Array.from({ length: count }, (_, i) => pfn + i));
        memory.mmap(c.task, Number(c.addr / PAGE), Number(c.length / PAGE), c.prot, pfns, c.noreplace);
        return done();
      }
      case 'munmap':
        memory.munmap(c.task, Number(c.addr / PAGE), Number(c.length / PAGE));
        return done();
      case 'mprotect':
        memory.mprotect(c.task, Number(c.addr / PAGE), Number(c.length / PAGE), c.prot);
        return done();
      case 'put_page':
        memory.putPage(c.pfn, c.kind);
        return done();
      case 'put_container':
        return this.putContainer(c);
      case 'close_container':
        return this.closeContainer(c);
      case 'put_group':
        if (!this.groups.has(c.group))
          this.groups.set(c.group, { open: true, container: null, users: 0, devices: [], chain: newChain() });
        return done();
      case 'open_group':
        return this.openGroup(c);
      case 'close_group':
        return this.closeGroup(c);
      case 'set_container':
        return this.setContainer(c);
      case 'unset_container':
        return this.unsetContainer(c);
      case 'set_iommu':
        return this.setIommu(c);
      case 'put_device': {
        if (c.group !== null) this.group(c.group).devices.push(c.device);
        this.devices.set(c.device, { group: c.group, open: 0 });
        return done();
      }
      case 'open_device':
        return this.openDevice(c);
      case 'close_device':
        return this.closeDevice(c);
      case 'map_dma':
        return this.map(c);
      case 'unmap_dma':
        return this.unmap(c, inside);
      case 'pin_pages':
        return this.pin(c);
      case 'unpin_pages':
        return this.unpin(c);
      case 'register_notifier':
        return this.register(c, inside);
      case 'unregister_notifier':
        return this.unregister(c, inside);
      case 'ack_notification':
        return this.answer(c.notification, c.device, c.ret);
      case 'notification_timeout':
        return this.answer(c.notification, null, 0);
      default:
        throw new Error(`${c.op} is not in the model`);
    }
  }

  // Tasks, containers, groups, devices

  private patchTask(c: Of<'patch_task'>): NaiveOutcome {
    const task = this.memory.task(c.task);
    const alive = [...this.memory.tasks.values()].some(({ leader, mm }) => leader === task.leader && mm !== null);
    if (!alive || (c.cap_ipc_lock !== undefined && task.mm === null)) throw new Refused('ESRCH');
    if (c.rlimit_memlock !== undefined) this.memory.limits.set(task.leader, c.rlimit_memlock);
    if (c.cap_ipc_lock !== undefined) task.cap = c.cap_ipc_lock;
    return done();
  }

  private container(id: string): NaiveContainer {
    const container = this.containers.get(id);
    if (container === undefined) throw new Refused('NOT_FOUND');
    return container;
  }

  private group(id: string): NaiveGroup {
    const group = this.groups.get(id);
    if (group === undefined) throw new Refused('NOT_FOUND');
    return group;
  }

  private device(id: string): { group: string | null; open: number } {
    const device = this.devices.get(id);
    if (device === undefined) throw new Refused('NOT_FOUND');
    return device;
  }

  /** A mutating call on whatever hangs on a container that died is refused. */
  private alive(id: string | null): void {
    if (id !== null && this.container(id).dead) throw new Refused('EIO');
  }

  private fd(id: string): NaiveContainer {
    const container = this.container(id);
    if (container.dead) throw new Refused('EIO');
    if (!container.open) throw new Refused('EBADF');
    return container;
  }

  private putContainer({ container }: Of<'put_container'>): NaiveOutcome {
    if (this.containers.has(container)) this.fd(container);
    else this.containers.set(container, { open: true, groups: [], iommu: null, dead: false });
    return done();
  }

  private closeContainer({ container }: Of<'close_container'>): NaiveOutcome {
    this.fd(container).open = false;
    this.freeContainer(container);
    return done();
  }

  private freeContainer(id: string): void {
    const container = this.container(id);
    if (!container.open && container.groups.length === 0) this.containers.delete(id);
  }

  private openGroup({ group: id }: Of<'open_group'>): NaiveOutcome {
    const group = this.group(id);
    this.alive(group.container);
    if (group.open || group.container !== null) throw new Refused('EBUSY');
    // Whatever is left on the chain of group notifiers is warned about and forgotten.
    group.chain = newChain();
    group.open = true;
    return done();
  }

  /** With devices open, the binding outlives the file descriptor. */
  private closeGroup({ group: id }: Of<'close_group'>): NaiveOutcome {
    const group = this.group(id);
    this.alive(group.container);
    if (!group.open) throw new Refused('EBADF');
    group.open = false;
    if (group.users > 0 && --group.users === 0) this.leave(id, group);
    return done();
  }

  private setContainer(c: Of<'set_container'>): NaiveOutcome {
    const group = this.group(c.group);
    this.container(c.container);
    this.alive(group.container);
    this.alive(c.container);
    if (!group.open) throw new Refused('EBADF');
    if (group.users > 0) throw new Refused('EINVAL');
    const container = this.fd(c.container);
    group.container = c.container;
    group.users = 1;
    container.groups.push(c.group);
    return done();
  }

  private unsetContainer(c: Of<'unset_container'>): NaiveOutcome {
    const group = this.group(c.group);
    this.alive(group.container);
    if (!group.open) throw new Refused('EBADF');
    if (group.users === 0) throw new Refused('EINVAL');
    if (group.users > 1) throw new Refused('EBUSY');
    this.leave(c.group, group);
    return done();
  }

  /** A group leaves its container; the last one takes the iommu object and all mappings with it. */
  private leave(id: string, group: NaiveGroup): void {
    const name = group.container as string;
    const container = this.container(name);
    group.users = 0;
    group.container = null;
    container.groups = container.groups.filter((other) => other !== id);
    if (container.groups.length === 0 && container.iommu !== null) {
      const { chain } = container.iommu;
      container.iommu = null;
      if (chain.readers.length + chain.queue.length > 0) this.kill(name);
    }
    this.freeContainer(name);
  }

  private setIommu({ container: id, type }: Of<'set_iommu'>): NaiveOutcome {
    const container = this.fd(id);
    if (container.groups.length === 0 || container.iommu !== null) throw new Refused('EINVAL');
    if (![1, 3, 6, 9, 10].includes(type)) throw new Refused('ENODEV');
    if (type > 6) throw new Refused('EINVAL');
    const limit = this.dma_entry_limit;
    container.iommu = { type, limit, avail: limit, maps: [], chain: newChain() };
    return done();
  }

  private openDevice({ device: id }: Of<'open_device'>): NaiveOutcome {
    const device = this.device(id);
    if (device.group === null) throw new Refused('ENODEV');
    const group = this.group(device.group);
    this.alive(group.container);
    if (!group.open) throw new Refused('EBADF');
    this.user(group);
    group.users++;
    device.open++;
    return done();
  }

  private closeDevice({ device: id }: Of<'close_device'>): NaiveOutcome {
    const device = this.device(id);
    const group = device.group === null ? null : this.group(device.group);
    this.alive(group?.container ?? null);
    if (device.open === 0 || group === null) throw new Refused('EBADF');
    device.open--;
    group.users--;
    if (group.users === 0) this.leave(device.group as string, group);
    return done();
  }

  private iommuOf(id: string): NaiveIommu {
    const { iommu } = this.fd(id);
    if (iommu === null) throw new Refused('EINVAL');
    return iommu;
  }

  /** The container behind a group that a call through one of its devices works on. */
  private user(group: NaiveGroup): { name: string; container: NaiveContainer; iommu: NaiveIommu } {
    const name = group.container;
    if (name === null) throw new Refused('EINVAL');
    const container = this.container(name);
    if (container.iommu === null) throw new Refused('EINVAL');
    return { name, container, iommu: container.iommu };
  }

  // Mappings

  private map(c: Of<'map_dma'>): NaiveOutcome {
    this.container(c.container);
    const task = this.memory.task(c.task);
    const iommu = this.iommuOf(c.container);
    this.memory.live(c.task);
    const prot = c.flags & (READ | WRITE);
    if (c.argsz < 32 || c.flags > 3 || prot === 0) throw new Refused('EINVAL');
    if (c.size === 0n || ![c.iova, c.vaddr, c.size].every(isAligned)) throw new Refused('EINVAL');
    if (c.iova + c.size > MOD_2_64 || c.vaddr + c.size > MOD_2_64) throw new Refused('EINVAL');
    if (iommu.maps.some((m) => m.iova < c.iova + c.size && c.iova < m.iova + m.size)) throw new Refused('EEXIST');
    if (iommu.avail === 0) throw new Refused('ENOSPC');
    iommu.avail--;
    const { iova, size, vaddr } = c;
    iommu.maps.push({ iova, size, vaddr, prot, task: task.leader, cap: task.cap, pins: new Map() });
    iommu.maps.sort((a, b) => (a.iova < b.iova ? -1 : 1));
    return done();
  }

  private at(iommu: NaiveIommu, iova: bigint): NaiveMapping | undefined {
    return iommu.maps.find((m) => m.iova <= iova && iova < m.iova + m.size);
  }

  private remove(iommu: NaiveIommu, mapping: NaiveMapping): void {
    iommu.maps = iommu.maps.filter((other) => other !== mapping);
    iommu.avail++;
  }

  private unmap(c: Of<'unmap_dma'>, inside: number | null): NaiveOutcome | NaiveOp {
    this.container(c.container);
    if (c.task !== null) this.memory.task(c.task);
    const iommu = this.iommuOf(c.container);
    if (c.task !== null) this.memory.live(c.task);
    const all = (c.flags & 2) !== 0;
    if ((c.argsz ?? 24) < 24 || c.flags > 7 || (c.flags & 5) !== 0) throw new Refused('EINVAL');
    if (!isAligned(c.iova)) throw new Refused('EINVAL');
    if (all ? c.iova !== 0n || c.size !== 0n : c.size === 0n || !isAligned(c.size)) throw new Refused('EINVAL');
    const [start, end] = all ? [0n, MOD_2_64] : [c.iova, c.iova + c.size];
    if (end > MOD_2_64) throw new Refused('EINVAL');
    const lowest = iommu.maps.find((m) => m.iova < end && start < m.iova + m.size);
    const caller = c.task ?? lowest?.task ?? null;
    const request = { start, end, all, mm: caller === null ? null : this.memory.task(caller).mm };
    if (this.nestedWalkWouldDeadlock(iommu, request, inside)) {
      this.seen.add('nested call refused as a deadlock');
      throw new Refused('EDEADLK');
    }
    return this.start('unmap_dma', c.container, inside, (op) => this.unmapping(op, iommu, request));
  }

  /** The first pinned mapping that an unmap would meet, if it is not refused before; null when it would go through. */
  private firstStuck(iommu: NaiveIommu, r: { start: bigint; end: bigint; all: boolean; mm: unknown }): NaiveMapping | null {
    if (this.bisects(iommu, r)) return null;
    for (const m of iommu.maps.filter(({ iova, size }) => iova < r.end && r.start < iova + size)) {
      if (iommu.type === 1 && r.start > m.iova) return null;
      const { mm } = this.memory.task(m.task);
      if (mm === null || mm !== r.mm) return null;
      if (m.pins.size > 0) return m;
    }
    return null;
  }

  private bisects(iommu: NaiveIommu, { start, end, all }: { start: bigint; end: bigint; all: boolean }): boolean {
    if (iommu.type === 1 || all) return false;
    const [first, last] = [this.at(iommu, start), this.at(iommu, end - 1n)];
    return (first !== undefined && first.iova !== start) || (last !== undefined && last.iova + last.size !== end);
  }

  /** A nested unmap waits behind a writer who waits for the walk whose handler waits for the nested unmap. */
  private nestedWalkWouldDeadlock(
    iommu: NaiveIommu,
    request: { start: bigint; end: bigint; all: boolean; mm: unknown },
    inside: number | null,
  ): boolean {
    if (iommu.chain.queue.length === 0 || !this.isInsideWalkOf(iommu.chain, inside)) return false;
    return this.firstStuck(iommu, request) !== null;
  }

  private isInsideWalkOf(chain: NaiveChain, inside: number | null): boolean {
    for (let n = inside; n !== null; ) {
      const pending = this.pending.get(n);
      if (pending === undefined) return false;
      if (chain.readers.includes(pending.op)) return true;
      n = pending.op.inside;
    }
    return false;
  }

  private *unmapping(
    op: NaiveOp,
    iommu: NaiveIommu,
    request: { start: bigint; end: bigint; all: boolean; mm: unknown },
  ): Sleeping {
    let [size, last, retries] = [0n, null as NaiveMapping | null, 0];
    const { mm } = request;
    for (let restarted = false; ; restarted = true) {
      if (this.bisects(iommu, request)) {
        if (!restarted) throw new Refused('EINVAL');
        this.seen.add('restart whose range bisects');
        break;
      }
      let stuck: NaiveMapping | null = null;
      for (const m of iommu.maps.filter(({ iova, size }) => iova < request.end && request.start < iova + size)) {
        if (iommu.type === 1 && request.start > m.iova) break;
        const owner = this.memory.task(m.task).mm;
        if (owner === null || owner !== mm) break;
        if (m.pins.size > 0) {
          stuck = m;
          break;
        }
        this.remove(iommu, m);
        if (this.pending.size > 0 && op.inside === null && this.isBeingAnnounced(op, m))
          this.seen.add('competing unmap inside a callback');
        size += m.size;
      }
      if (stuck === null) break;
      if (stuck !== last) [last, retries] = [stuck, 0];
      else if (++retries > 10) {
        if (op.notified >= 11) this.seen.add('eleventh notification and BUG');
        this.kill(op.container);
        throw new Refused('EIO', { notifications: op.notified });
      }
      if (iommu.chain.blocks.length === 0) continue;
      yield* this.walk(op, iommu.chain, stuck, retries + 1);
      if (this.containers.get(op.container)?.dead) return done();
    }
    const warnings = size === 0n ? { warnings: ['NOTHING_UNMAPPED'] } : {};
    return done({ size: BigInt.asUintN(64, size), notifications: op.notified, ...warnings });
  }

  private isBeingAnnounced(op: NaiveOp, m: NaiveMapping): boolean {
    return [...this.pending.values()].some((pending) => pending.op !== op && pending.iova === m.iova);
  }

  /** Calls every block of the chain, under its lock for reading, until one answers with a stop value. */
  private *walk(op: NaiveOp, chain: NaiveChain, m: NaiveMapping, attempt: number): Generator<'notification' | 'lock', void, number> {
    const { iova, size } = m;
    if (chain.queue.length === 0) chain.readers.push(op);
    else {
      this.seen.add('walk waits behind a writer');
      chain.queue.push({ op, write: false });
      yield 'lock';
    }
    for (const notifier of [...chain.blocks]) {
      const { device } = this.blocks.get(notifier) as { device: string };
      const n = this.next++;
      const notification = { n, op, device, notifier, iova, size, container: op.container, attempt };
      op.notified++;
      this.pending.set(n, notification);
      this.emitted.push(notification);
      const ret = yield 'notification';
      if ((ret & 0x8000) !== 0) break;
    }
    chain.readers = chain.readers.filter((reader) => reader !== op);
    this.grant(chain);
  }

  /** Whoever waits for the lock gets it in order of arrival, before the one who dropped it goes on. */
  private grant(chain: NaiveChain): void {
    for (let head = chain.queue[0]; head !== undefined; head = chain.queue[0]) {
      if (head.op.done === null && head.write && chain.readers.length > 0) return;
      chain.queue.shift();
      if (head.op.done !== null) continue;
      if (!head.write) chain.readers.push(head.op);
      this.proceed(head.op, 0);
    }
  }

  /** A BUG: the container never answers again, and everything that sleeps in it is refused. */
  private kill(id: string): void {
    const container = this.containers.get(id);
    if (container !== undefined) container.dead = true;
    for (const [n, pending] of this.pending) if (pending.container === id) this.pending.delete(n);
    for (const op of this.asleep.filter((other) => other.container === id)) {
      const left = op.kind === 'unmap_dma' ? { notifications: op.notified } : {};
      this.finish(op, refusedOutcome(new Refused('EIO', left)));
    }
  }

  // Operations

  /** Runs a call that may sleep. */
  private start(kind: string, container: string, inside: number | null, make: (op: NaiveOp) => Sleeping): NaiveOutcome | NaiveOp {
    const inPending = inside !== null && this.pending.has(inside) ? inside : null;
    const op: NaiveOp = {
      id: `${kind}-${this.seq}`,
      kind,
      container,
      inside: inPending,
      waits: null,
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
  private proceed(op: NaiveOp, value: number): void {
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
    if (op.done === null) this.finish(op, outcome);
  }

  private finish(op: NaiveOp, outcome: NaiveOutcome): void {
    op.done = outcome;
    this.asleep = this.asleep.filter((other) => other !== op);
    this.finished.push({ id: op.id, outcome });
  }

  /** A handler has returned, or its time is up (device null). */
  private answer(id: string, device: string | null, ret: number): NaiveOutcome {
    if (device !== null) this.device(device);
    const n = Number(id.split('-')[1]);
    const pending = this.pending.get(n);
    if (pending === undefined) {
      if (device === null) return done();
      if (n >= this.next) throw new Refused('NOT_FOUND');
      this.seen.add('late ack');
      throw new Refused('EBUSY');
    }
    if (device !== null && pending.device !== device) throw new Refused('NOT_FOUND');
    this.pending.delete(n);
    this.proceed(pending.op, ret);
    return done();
  }

  // Notifier blocks

  private groupOf(id: string): NaiveGroup | null {
    const { group } = this.device(id);
    if (group === null) return null;
    this.alive(this.group(group).container);
    return this.group(group);
  }

  private register({ device, notifier: spec }: Of<'register_notifier'>, inside: number | null): NaiveOutcome | NaiveOp {
    const group = this.groupOf(device);
    const id = spec.id as string;
    let events = spec.events;
    const refuse = (errno: string) => new Refused(errno, { events_left: events });
    const clear = (): void => {
      events &= ~1;
      if (events !== 0) throw refuse('EINVAL');
    };
    if (events === 0) throw refuse('EINVAL');
    if (group === null) throw refuse('ENODEV');
    if (spec.type !== 0 && spec.type !== 1) throw refuse('EINVAL');
    if (spec.type === 1) clear();
    if (group.container === null || this.container(group.container).iommu === null) throw refuse('EINVAL');
    const { name, iommu } = this.user(group);
    if (spec.type === 0) clear();
    const chain = spec.type === 0 ? iommu.chain : group.chain;
    if (!this.isOnAnyChain(id)) this.blocks.set(id, { device, type: spec.type, priority: spec.priority });
    const reply = done({ id, events_left: events });
    try {
      return this.write('register_notifier', name, chain, inside, reply, () => this.insert(chain, id, spec.priority));
    } catch (error) {
      if (error instanceof Refused) Object.assign(error.left, { events_left: events });
      throw error;
    }
  }

  private isOnAnyChain(id: string): boolean {
    const chains = [...this.groups.values()].map(({ chain }) => chain);
    for (const { iommu } of this.containers.values()) if (iommu !== null) chains.push(iommu.chain);
    return chains.some(({ blocks }) => blocks.includes(id));
  }

  private insert(chain: NaiveChain, id: string, priority: number): void {
    for (const [at, other] of chain.blocks.entries()) {
      if (other === id) return;
      if ((this.blocks.get(other)?.priority ?? 0) < priority) {
        chain.blocks.splice(at, 0, id);
        return;
      }
    }
    chain.blocks.push(id);
  }

  private unregister({ device, notifier: id, type }: Of<'unregister_notifier'>, inside: number | null): NaiveOutcome | NaiveOp {
    this.device(device);
    const block = this.blocks.get(id);
    if (block === undefined) throw new Refused('NOT_FOUND');
    const group = this.groupOf(device);
    if (group === null) throw new Refused('ENODEV');
    const kind = type ?? block.type;
    if (kind !== 0 && kind !== 1) throw new Refused('EINVAL');
    const { name, iommu } = this.user(group);
    const chain = kind === 0 ? iommu.chain : group.chain;
    return this.write('unregister_notifier', name, chain, inside, done({ id }), () => {
      if (!chain.blocks.includes(id)) throw new Refused('ENOENT');
      chain.blocks = chain.blocks.filter((other) => other !== id);
    });
  }

  /** Changes a chain under its lock for writing. */
  private write(
    kind: 'register_notifier' | 'unregister_notifier',
    container: string,
    chain: NaiveChain,
    inside: number | null,
    reply: NaiveOutcome,
    change: () => void,
  ): NaiveOutcome | NaiveOp {
    if (this.isInsideWalkOf(chain, inside)) {
      this.seen.add('nested call refused as a deadlock');
      throw new Refused('EDEADLK');
    }
    const locked = this.locked.bind(this);
    return this.start(kind, container, inside, (op) => locked(op, kind, chain, reply, change));
  }

  private *locked(op: NaiveOp, kind: string, chain: NaiveChain, reply: NaiveOutcome, change: () => void): Sleeping {
    if (chain.readers.length + chain.queue.length > 0) {
      this.seen.add(kind === 'register_notifier' ? 'register waits for a callback' : 'unregister waits for a callback');
      chain.queue.push({ op, write: true });
      yield 'lock';
    }
    change();
    return reply;
  }

  // Pins

  private pin(c: Of<'pin_pages'>): NaiveOutcome {
    const zeros = { phys_pfn: c.user_pfn.map(() => 0) };
    const group = this.groupOf(c.device);
    const refuse = (errno: string, at?: number) => new Refused(errno, zeros, at);
    if (c.npage === 0) throw refuse('EINVAL');
    if (c.npage < 0 || c.npage > 512) throw refuse('E2BIG');
    if (group === null) throw refuse('ENODEV');
    if (group.devices.length > 1) throw refuse('EINVAL');
    if (group.container === null || this.container(group.container).iommu === null) throw refuse('EINVAL');
    const { iommu } = this.user(group);
    if (iommu.type === 1) throw refuse('EACCES');
    if (iommu.chain.blocks.length === 0) throw refuse('EINVAL');
    const pages: NaivePage[] = [];
    for (const [i, user_pfn] of c.user_pfn.slice(0, c.npage).entries()) {
      try {
        pages.push(this.pinOne(iommu, BigInt(user_pfn) * PAGE, c.prot));
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        if (i > 0) this.seen.add('rollback in the middle of a batch');
        for (const undo of c.user_pfn.slice(0, i)) this.unpinOne(iommu, BigInt(undo) * PAGE);
        throw refuse(error.errno, i);
      }
    }
    return done({ phys_pfn: pages }, c.npage);
  }

  private pinOne(iommu: NaiveIommu, iova: bigint, prot: number): NaivePage {
    const m = this.at(iommu, iova);
    if (m === undefined) throw new Refused('EINVAL');
    if ((m.prot & prot) !== prot) throw new Refused('EPERM');
    const record = m.pins.get(iova);
    if (record !== undefined) {
      record.ref_count++;
      return record.page;
    }
    const { mm } = this.memory.task(m.task);
    if (mm === null) throw new Refused('ENODEV');
    const write = (m.prot & WRITE) !== 0;
    const page = this.memory.gup(mm, Number((m.vaddr + iova - m.iova) / PAGE), write);
    if (page.kind === 'zero') page.pins--;
    if (!isReserved(page)) {
      try {
        this.memory.charge(mm, m.task, m.cap);
      } catch (error) {
        this.seen.add('ENOMEM of the limit');
        this.memory.put(page, write);
        throw error;
      }
    }
    m.pins.set(iova, { page, ref_count: 1 });
    return page;
  }

  private unpinOne(iommu: NaiveIommu, iova: bigint): boolean {
    const m = this.at(iommu, iova);
    if (m === undefined) return false;
    const record = m.pins.get(iova);
    if (record === undefined || --record.ref_count > 0) return true;
    m.pins.delete(iova);
    if (isReserved(record.page)) return true;
    this.memory.put(record.page, (m.prot & WRITE) !== 0);
    const { mm } = this.memory.task(m.task);
    if (mm !== null) this.memory.uncharge(mm);
    return true;
  }

  private unpin(c: Of<'unpin_pages'>): NaiveOutcome {
    this.device(c.device);
    const group = this.groupOf(c.device);
    if (c.npage === 0) throw new Refused('EINVAL');
    if (c.npage < 0 || c.npage > 512) throw new Refused('E2BIG');
    if (group === null) throw new Refused('ENODEV');
    const { iommu } = this.user(group);
    if (iommu.type === 1) throw new Refused('EACCES');
    let count = 0;
    for (const user_pfn of c.user_pfn.slice(0, c.npage)) {
      if (!this.unpinOne(iommu, BigInt(user_pfn) * PAGE)) break;
      count++;
    }
    if (count === 0) throw new Refused('EINVAL', {}, 0);
    return done({}, count);
  }
}
