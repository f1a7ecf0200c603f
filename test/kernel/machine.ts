// The default setup S of the conformance cases: one container, one group, one device, one listener, one task with 1024 pages.

import type { AddressRange, Call, Command, Delivery } from '../../src/kernel/command.ts';
import { createHost, execute } from '../../src/kernel/execute.ts';
import type { DmesgEntry, Host } from '../../src/kernel/host.ts';
import { violations } from '../../src/kernel/invariants.ts';
import type { Fields, Notification, Outcome } from '../../src/kernel/outcome.ts';
import { viewPage, viewTask } from '../../src/kernel/view/tasks.ts';
import { listMappings, listPfns } from '../../src/kernel/view/vfio.ts';

export const R = 1;
export const W = 2;
export const RW = 3;
/** Page-aligned address of 1024 anonymous writable pages with host pages H, H + 1, ... */
export const V = 0x10000000n;
export const H = 1000;
export const PAGE = 0x1000n;

export type Handler = (machine: Machine, notification: Notification) => number | undefined;

export class Machine {
  readonly host: Host;
  /** What the listeners were called with, in order. */
  readonly calls: Notification[] = [];
  /** Handlers by notifier id, run when a notification is emitted; a handler returns the callback's result (default NOTIFY_OK). */
  readonly handlers = new Map<string, Handler>();
  private clock = 0;

  constructor(options: { profile?: string; dma_entry_limit?: number; total_pages?: number; fixes?: string[] } = {}) {
    this.host = createHost(
      'test',
      {
        profile: '5.15',
        template: 'empty',
        dma_entry_limit: 65535,
        notifier_timeout_ms: 10_000,
        total_pages: 1 << 20,
        fixes: [],
        ttl_s: null,
        ...options,
      },
      0,
    );
  }

  call(command: Command, notification: string | null = null): Call {
    return { at: ++this.clock, request_id: `request-${this.clock}`, notification, command };
  }

  /** Executes one command, answers the notifications that it emits, and checks every invariant. Returns the final outcome. */
  run(command: Command, notification: string | null = null): Outcome {
    const outcome = this.start(command, notification);
    if (outcome.parked === undefined) return outcome;
    return this.host.operations.get(outcome.parked)?.outcome ?? outcome;
  }

  /** Like run(), but returns the command's own outcome, parked or not. */
  start(command: Command, notification: string | null = null): Outcome {
    const outcome = execute(this.host, this.call(command, notification));
    this.check();
    for (const id of outcome.emitted) this.deliver(id);
    return outcome;
  }

  private deliver(id: string): void {
    const pending = this.host.vfio.notifications.get(id);
    if (pending === undefined) return;
    const { notification } = pending;
    const handler = this.handlers.get(notification.notifier);
    if (handler === undefined) return;
    this.calls.push(notification);
    const ret = handler(this, notification) ?? 1;
    this.ack(id, notification.device, ret);
  }

  ack(notification: string, device: string, ret = 1): Outcome {
    return this.start({ op: 'ack_notification', device, notification, ret, reason: 'ack', detail: null });
  }

  check(): void {
    const found = violations(this.host);
    if (found.length > 0) throw new Error(`invariants: ${found.join('; ')}`);
  }

  // Short forms

  task(id: string, pages: number | 'unlimited' = 64, cap = false, thread_of: string | null = null): Outcome {
    const rlimit_memlock = pages === 'unlimited' ? pages : BigInt(pages) * PAGE;
    return this.run({ op: 'put_task', task: id, rlimit_memlock, cap_ipc_lock: cap, thread_of });
  }

  pages(task: string, addr: bigint, pfns: [number, number][], prot = RW): Outcome {
    const length = BigInt(pfns.reduce((sum, [, n]) => sum + n, 0)) * PAGE;
    return this.run({ op: 'mmap', task, addr, length, prot, backing: { kind: 'pages', pfns }, noreplace: false });
  }

  group(id: string, container: string): void {
    this.run({ op: 'put_group', group: id, kind: 'mdev' });
    this.run({ op: 'set_container', group: id, container, task: null });
  }

  /** Attaches an IOMMU-backed group in the name of a task. */
  iommuGroup(
    id: string,
    { container = 'C', task = 'T', reserved }: { container?: string; task?: string; reserved?: AddressRange[] } = {},
  ): Outcome {
    this.run({ op: 'put_group', group: id, kind: 'iommu', ...(reserved === undefined ? {} : { reserved }) });
    return this.run({ op: 'set_container', group: id, container, task });
  }

  device(id: string, group: string): void {
    this.run({ op: 'put_device', device: id, group });
    this.run({ op: 'open_device', device: id });
  }

  listen(device: string, id: string, delivery: Delivery = { kind: 'poll' }, priority = 0): Outcome {
    return this.run({ op: 'register_notifier', device, notifier: { id, events: 1, type: 0, priority, delivery } });
  }

  map(iova: bigint, size: bigint, flags = RW, { vaddr = V, task = 'T', container = 'C', argsz = 32 } = {}): Outcome {
    return this.run({ op: 'map_dma', container, task, iova, vaddr, size, flags, argsz });
  }

  unmapCommand(iova: bigint, size: bigint, { flags = 0, task = 'T' as string | null, container = 'C' } = {}): Command {
    return { op: 'unmap_dma', container, task, iova, size, flags, argsz: null, bitmap: null };
  }

  unmap(iova: bigint, size: bigint, options: Parameters<Machine['unmapCommand']>[2] = {}): Outcome {
    return this.run(this.unmapCommand(iova, size, options));
  }

  pin(iovas: bigint[], { prot = R, device = 'D1', notification = null as string | null } = {}): Outcome {
    return this.run({ op: 'pin_pages', device, ...this.entries(iovas), prot }, notification);
  }

  unpin(iovas: bigint[], { device = 'D1', notification = null as string | null } = {}): Outcome {
    return this.run({ op: 'unpin_pages', device, ...this.entries(iovas) }, notification);
  }

  /** The form of the profile: an array, or the range that the iovas must be. */
  private entries(iovas: bigint[]): { user_pfn: number[]; npage: number; contiguous?: { iova: bigint } } {
    if (this.host.profile.pinForm === 'user_pfn')
      return { user_pfn: iovas.map((iova) => Number(iova / PAGE)), npage: iovas.length };
    const first = iovas[0] as bigint;
    for (const [i, iova] of iovas.entries())
      if (iova !== first + BigInt(i) * PAGE) throw new Error('no contiguous range');
    return { user_pfn: [], npage: iovas.length, contiguous: { iova: first } };
  }

  /** locked_vm of a task in pages. */
  lv(task = 'T'): Fields[string] {
    return viewTask(this.host, task).locked_vm ?? null;
  }

  page(pfn: number): { pins: Fields[string]; dirty: Fields[string]; refs: Fields[string] } {
    const { pin_count, dirty, ref_count } = viewPage(this.host, pfn);
    return { pins: pin_count ?? null, dirty: dirty ?? null, refs: ref_count ?? null };
  }

  mappings(container = 'C'): [bigint, bigint][] {
    return listMappings(this.host, container, null, 1000).items.map(({ iova, size }) => [
      iova as bigint,
      size as bigint,
    ]);
  }

  /** [iova, pfn, ref_count] of the records of the mapping that starts at iova. */
  records(iova: bigint, container = 'C'): [bigint, number, number][] {
    return listPfns(this.host, container, iova, null, 1000).items.map((item) => [
      item.iova as bigint,
      item.pfn as number,
      item.ref_count as number,
    ]);
  }

  dmesg(kind: DmesgEntry['kind']): DmesgEntry[] {
    return this.host.dmesg.since(0, 10_000).items.filter((entry) => entry.kind === kind);
  }
}

/** A listener that unpins all that is pinned in the announced range, by the records themselves. */
export const unpinAll =
  (device = 'D1'): Handler =>
  (machine, { iova, id, container }) => {
    for (const [at, , references] of machine.records(iova, container))
      for (let n = 0; n < references; n++) machine.unpin([at], { device, notification: id });
    return 1;
  };

export interface Setup {
  profile?: string;
  v1?: boolean;
  dma_entry_limit?: number;
  limit?: number;
  fixes?: string[];
}

/** Setup S. */
export function setup(options: Setup = {}): Machine {
  const { v1: _v1, limit: _limit, ...host } = options;
  const machine = new Machine(host);
  machine.task('T', options.limit ?? 64);
  machine.pages('T', V, [[H, 1024]]);
  machine.run({ op: 'put_container', container: 'C' });
  machine.group('G1', 'C');
  machine.run({ op: 'set_iommu', container: 'C', type: options.v1 === true ? 1 : 3, task: 'T' });
  machine.device('D1', 'G1');
  machine.listen('D1', 'L1');
  machine.handlers.set('L1', unpinAll());
  return machine;
}
