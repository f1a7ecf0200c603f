// A naive model of a host: maps, arrays and generators, written from the rules alone. It shares nothing with src/kernel but the
// form of commands. Here: the switch. naive-rules: what differs between kernels. naive-mm: memory. naive-objects, -operations,
// -mappings, -domain, -unmap, -notifiers, -pins: a class a subject, each built on the one before.

import type { Call, Command } from '../../src/kernel/command.ts';
import { Refused } from './naive-mm.ts';
import { refusedOutcome } from './naive-operations.ts';
import { NaivePins } from './naive-pins.ts';
import { done, type NaiveOp, type NaiveOutcome, type NaiveResult, type Of, PAGE } from './naive-types.ts';

const pagesOf = (runs: [number, number][]): number[] =>
  runs.flatMap(([pfn, count]) => Array.from({ length: count }, (_, i) => pfn + i));

export class NaiveModel extends NaivePins {
  private readonly faults = new Map<string, { body: string; point: string; call: string; nth: number }>();

  execute(call: Call): NaiveResult {
    this.seq++;
    this.finished = [];
    this.emitted = [];
    this.splats = [];
    this.failing = [];
    for (const [id, { point, call: op, nth }] of this.faults) {
      if (op !== call.command.op) continue;
      this.failing.push({ point, left: nth });
      this.faults.delete(id);
    }
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
    return { ...outcome, parked, finished: this.finished, emitted: this.emitted, splats: this.splats };
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
        memory.exit(c.task, c.thread_only === true);
        return done();
      case 'adjust_locked_vm':
        memory.adjust(c.task, c.delta);
        return done();
      case 'mmap':
        this.mmap(c);
        return done();
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
        return this.putGroup(c);
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
      case 'put_device':
        return this.putDevice(c);
      case 'open_device':
        return this.openDevice(c);
      case 'close_device':
        return this.closeDevice(c);
      case 'map_dma':
        return this.map(c);
      case 'unmap_dma':
        return this.unmap(c, inside);
      case 'dirty_pages':
        return this.dirtyPages(c);
      case 'dma_rw':
        return this.dmaRw(c);
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
      case 'kill_operation':
        return this.killOperation(c.operation);
      case 'put_fault':
        return this.putFault(c);
      default:
        throw new Error(`${c.op} is not in the model`);
    }
  }

  private mmap({ task, addr, length, prot, backing, noreplace }: Of<'mmap'>): void {
    const at = Number(addr / PAGE);
    const npage = Number(length / PAGE);
    if (backing.kind === 'anon') this.memory.mmap(task, at, npage, prot, null, noreplace);
    else if (backing.kind === 'pages') this.memory.mmap(task, at, npage, prot, pagesOf(backing.pfns), noreplace);
    else if (backing.kind === 'pfnmap' && backing.pfn !== undefined && backing.ptes !== undefined)
      this.memory.mmapDevice(task, at, prot, backing.pfn, backing.ptes);
    else throw new Error('not in the model');
  }

  /** The n-th attempt of the next call of one operation fails. */
  private putFault({ fault, point, call, nth }: Of<'put_fault'>): NaiveOutcome {
    const body = `${point} ${call} ${nth}`;
    const set = this.faults.get(fault);
    if (set !== undefined && set.body !== body) throw new Refused('EEXIST');
    this.faults.set(fault, { body, point, call, nth });
    return done({ id: fault, point, call, nth });
  }
}
