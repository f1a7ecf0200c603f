// A naive model of a host of profile 5.15: maps, arrays and generators, written from the rules alone. It shares nothing with
// src/kernel but the form of commands. Here: the switch, mappings, pins and notifier blocks.

import type { Call, Command } from '../../src/kernel/command.ts';
import { READ, WRITE } from '../../src/kernel/command.ts';
import { isReserved, MOD_2_64, type NaivePage, Refused } from './naive-mm.ts';
import { NaiveOperations, refusedOutcome } from './naive-operations.ts';
import {
  done,
  type NaiveChain,
  type NaiveIommu,
  type NaiveMapping,
  type NaiveOp,
  type NaiveOutcome,
  type NaiveResult,
  newChain,
  type Of,
  PAGE,
  type Sleeping,
} from './naive-types.ts';

const isAligned = (value: bigint): boolean => value % PAGE === 0n;

export class NaiveModel extends NaiveOperations {
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
  private firstStuck(
    iommu: NaiveIommu,
    r: { start: bigint; end: bigint; all: boolean; mm: unknown },
  ): NaiveMapping | null {
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
      if (stuck !== last) {
        if (retries > 0) this.seen.add('tries counted anew for another mapping');
        [last, retries] = [stuck, 0];
      } else if (++retries > 10) {
        if (op.notified >= 11) this.seen.add('eleventh notification and BUG');
        this.kill(op.container);
        throw new Refused('EIO', { notifications: op.notified });
      }
      if (iommu.chain.blocks.length === 0) continue;
      yield* this.walk(op, iommu.chain, stuck, retries + 1);
      // What the walk held up may have been the last user of the last group.
      const container = this.containers.get(op.container);
      if (!container?.dead && container?.iommu !== iommu) this.kill(op.container);
      if (this.containers.get(op.container)?.dead) return done();
    }
    const warnings = size === 0n ? { warnings: ['NOTHING_UNMAPPED'] } : {};
    return done({ size: BigInt.asUintN(64, size), notifications: op.notified, ...warnings });
  }

  private isBeingAnnounced(op: NaiveOp, m: NaiveMapping): boolean {
    return [...this.pending.values()].some((pending) => pending.op !== op && pending.iova === m.iova);
  }

  // Notifier blocks

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
    if (!this.isOnAnyChain(id) && !this.isInsideWalkOf(chain, inside))
      this.blocks.set(id, { device, type: spec.type, priority: spec.priority });
    const reply = done({ id, events_left: events });
    try {
      return this.write('register_notifier', name, this.device(device).group as string, chain, inside, reply, () =>
        this.insert(chain, id, spec.priority),
      );
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

  private unregister(
    { device, notifier: id, type }: Of<'unregister_notifier'>,
    inside: number | null,
  ): NaiveOutcome | NaiveOp {
    this.device(device);
    const block = this.blocks.get(id);
    if (block === undefined) throw new Refused('NOT_FOUND');
    const group = this.groupOf(device);
    if (group === null) throw new Refused('ENODEV');
    const kind = type ?? block.type;
    if (kind !== 0 && kind !== 1) throw new Refused('EINVAL');
    const { name, iommu } = this.user(group);
    const chain = kind === 0 ? iommu.chain : group.chain;
    return this.write(
      'unregister_notifier',
      name,
      this.device(device).group as string,
      chain,
      inside,
      done({ id }),
      () => {
        if (!chain.blocks.includes(id)) throw new Refused('ENOENT');
        chain.blocks = chain.blocks.filter((other) => other !== id);
      },
    );
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
