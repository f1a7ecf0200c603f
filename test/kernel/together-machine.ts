// One process whose pages are shared by all that live with them: a guest's memory, a ring of vhost, a BAR, pins of a mediated
// device, devices that take pages to themselves. Random commands over them, for the tests that stop operations at their phases.

import type { Command } from '../../src/kernel/command.ts';
import { FAULT_FLAG_DEFAULT } from '../../src/kernel/mm/fault-flags.ts';
import { FOLL_GET, FOLL_PIN, FOLL_WRITE } from '../../src/kernel/mm/gup-flags.ts';
import { KIND_ANON, KIND_FILE, KIND_KSM, KIND_ZERO } from '../../src/kernel/mm/page-frames.ts';
import { flagsAt, isResident, PTRS_PER_PTE, pfnAt } from '../../src/kernel/mm/page-table.ts';
import type { Outcome } from '../../src/kernel/outcome.ts';
import { PHASES, type Phase } from '../../src/kernel/phase.ts';
import type { ProfileName } from '../../src/kernel/profile.ts';
import type { ViolationCode } from '../../src/kernel/violation.ts';
import { type Machine, RW, setup } from './machine.ts';
import { at, bytes } from './page-machine.ts';
import { bar, SPEC } from './vfio-pci-machine.ts';

/** Pages of the process: anonymous memory with the ring in its first four, a shared file, the BAR; the areas of vq 1. */
export const ANON = 8;
export const FILE = ANON;
export const BAR = 12;
export const BAR_PAGES = 4;
export const SPAN = BAR + BAR_PAGES;
/** First gfn of the guest's memory; the BAR is a slot of its own, far behind. */
const GFN = 0x100;
const BAR_GFN = 0x1000;
const IOVA = 0x10000n;
const VMS = ['V', 'W'] as const;
/** Devices that can have pages to themselves. */
const DEVICES = ['gpu', 'npu'] as const;
/** The test driver of such devices looks at no sequence before it maps: what it maps may be gone already. */
const UNSEQUENCED = 'hmm';

type Weighted = [weight: number, make: () => Command];

/** `vm`, `vhost`, ...: what the host has. The second vm belongs to the other process. */
export class TogetherRun {
  readonly m: Machine;
  readonly log: string[] = [];
  readonly withVhost: boolean;
  readonly withPci: boolean;
  readonly withExclusive: boolean;
  /** Where the sequence stood before a grant was asked for, by device and grant. */
  private readonly sequences = new Map<string, number>();
  private grants = 0;

  constructor(
    readonly seed: number,
    private readonly random: (n: number) => number,
    readonly profile: ProfileName,
    private readonly observe: (run: TogetherRun, command: Command, outcome: Outcome) => void,
  ) {
    // A start that one refuses would leave the sequence of interval notifiers odd for ever.
    this.m = setup({ profile, fixes: ['failed_start_count'] });
    const { vhostMetadata, vfioPciMemoryGate, deviceExclusive } = this.m.host.profile;
    this.withExclusive = deviceExclusive;
    this.withVhost = vhostMetadata;
    this.withPci = vfioPciMemoryGate;
    for (const task of ['A', 'B']) this.m.task(task);
    this.m.task('A2', 64, false, 'A');
    this.run({ op: 'put_file', file: 'f', size: bytes(BAR - FILE) });
    if (this.withPci) this.run({ op: 'put_vfio_pci', device: 'nic', ...SPEC, bars: [bar(bytes(BAR_PAGES))] });
    for (const task of ['A', 'B']) this.lay(task);
    this.openVhost();
    const space = { start: 0n, length: 2n ** 64n - 4096n };
    for (const [i, device] of this.withExclusive ? [...DEVICES, UNSEQUENCED].entries() : [])
      this.run({ op: 'put_exclusive_device', device, task: 'A', kind: 'interval', owner_filter: i === 0, ...space });
    for (const [i, vm] of VMS.entries()) this.openVm(vm, i === 0 ? 'A' : 'B');
    for (let page = 0; page < BAR; page++) this.run({ op: 'access', task: 'A', addr: at(page), write: true });
    this.m.map(IOVA, bytes(SPAN), RW, { vaddr: at(0), task: 'A' });
  }

  pick<T>(from: readonly T[]): T {
    return from[this.random(from.length)] as T;
  }

  chance(percent: number): boolean {
    return this.random(100) < percent;
  }

  private lay(task: string): void {
    this.run(this.mmapAnon(task));
    this.run(this.mmapFile(task));
    if (this.withPci) this.run(this.mmapBar(task));
  }

  private mmapAnon(task: string): Command {
    const backing = { kind: 'anon' } as const;
    return { op: 'mmap', task, addr: at(0), length: bytes(ANON), prot: RW, backing, noreplace: false };
  }

  private mmapFile(task: string): Command {
    const backing = { kind: 'file', file: 'f', pgoff: 0, shared: true } as const;
    return { op: 'mmap', task, addr: at(FILE), length: bytes(BAR - FILE), prot: RW, backing, noreplace: false };
  }

  private mmapBar(task: string, stopping: { stop_at?: Phase } = {}): Command {
    const range = { addr: at(BAR), length: bytes(BAR_PAGES), region: 0, offset: 0n };
    return { op: 'vfio_pci_mmap', device: 'nic', task, ...range, prot: RW, shared: true, ...stopping };
  }

  private openVhost(): void {
    if (!this.withVhost) return;
    const variant = this.pick(['fixed', 'spinlock'] as const);
    this.run({ op: 'put_vhost_dev', dev: 'net', variant, nvqs: 1, switches: {} });
    this.run({ op: 'vhost_set_owner', dev: 'net', task: 'A' });
    this.run({ op: 'vhost_set_vring_num', dev: 'net', vq: 0, task: 'A', num: 8 });
    this.run(this.ring(0));
    this.run({ op: 'vhost_set_backend', dev: 'net', vq: 0, task: 'A', active: true });
  }

  private ring(page: number): Command {
    const [desc, avail, used] = [at(page), at(page + 1), at(page + 2)];
    return { op: 'vhost_set_vring_addr', dev: 'net', vq: 0, task: 'A', flags: 0, desc, avail, used };
  }

  private openVm(vm: string, task: string): void {
    this.run({ op: 'put_vm', vm, task });
    this.run(this.slot(vm, 0, GFN, 0, BAR));
    if (this.withPci) this.run(this.slot(vm, 1, BAR_GFN, BAR, BAR_PAGES));
  }

  private slot(
    vm: string,
    slot: number,
    gfn: number,
    page: number,
    npage: number,
    rest: { flags?: number } = {},
  ): Command {
    const where = { guest_phys_addr: bytes(gfn), memory_size: bytes(npage), userspace_addr: at(page) };
    return { op: 'set_memory_region', vm, slot, flags: 0, ...where, ...rest };
  }

  /** Executes a command; the machine checks every invariant after it. */
  run(command: Command): Outcome {
    this.log.push(
      JSON.stringify(command, (_key, value) => (typeof value === 'bigint' ? `0x${value.toString(16)}` : value)),
    );
    const outcome = this.m.start(command);
    this.observe(this, command, outcome);
    const { host } = this.m;
    for (const operation of host.operations.values())
      if (operation.state === 'done' && operation.outcome !== null && operation.finished_seq === host.seq)
        this.observe(this, { op: operation.kind } as Command, operation.outcome);
    return outcome;
  }

  /** Violations of the base rule by those who keep it: a mapping made in a window, or left behind an end. */
  broken(): { code: ViolationCode; text: string; operation: string }[] {
    const { items } = this.m.host.violations.since(0, 100_000);
    return items.filter(({ code, text }) => {
      const breaks = code === 'STALE_SECONDARY' || code === 'SPTE_IN_WINDOW';
      return breaks && !text.startsWith(`exclusive-${UNSEQUENCED} `);
    });
  }

  stopping(): { stop_at?: Phase } {
    return this.chance(60) ? { stop_at: this.pick(PHASES) } : {};
  }

  /** A page that some page table names, or that a file caches. */
  private anyPfn(): number {
    const { mm } = this.m.host;
    const pfns: number[] = [];
    for (const { page_table } of mm.mms.values())
      for (const leaf of page_table.leaves.values())
        for (let i = 0; i < PTRS_PER_PTE; i++) if (isResident(flagsAt(leaf, i))) pfns.push(pfnAt(leaf, i));
    for (const file of mm.files.values()) pfns.push(...file.pages.values());
    const own = pfns.filter((pfn) => [KIND_ANON, KIND_FILE, KIND_KSM].includes(mm.pages.kind(pfn)));
    return own.length === 0 ? 1 : this.pick(own);
  }

  private memory(task: string): Weighted[] {
    const page = this.random(BAR);
    const addr = at(page);
    const length = bytes(1 + this.random(Math.min(4, BAR - page)));
    const stopping = this.stopping();
    const pfn = this.anyPfn();
    const merged = { task: this.pick(['A', 'B']), addr: at(this.random(ANON)) };
    return [
      [14, () => ({ op: 'access', task, addr, write: this.chance(60), flags: FAULT_FLAG_DEFAULT, ...stopping })],
      [4, () => ({ op: 'munmap', task, addr, length, ...stopping })],
      [5, () => (this.chance(50) ? this.mmapAnon(task) : this.mmapFile(task))],
      [5, () => ({ op: 'madvise', task, addr, length, advice: this.pick(['DONTNEED', 'FREE']), ...stopping })],
      [4, () => ({ op: 'mprotect', task, addr, length, prot: this.pick([1, 3, 3]), ...stopping })],
      [6, () => ({ op: 'migrate', pfn, ...stopping })],
      [5, () => ({ op: 'reclaim', pfn, ...stopping })],
      [4, () => ({ op: 'mkclean', pfn, ...stopping })],
      [6, () => ({ op: 'ksm_merge', task, addr: at(this.random(ANON)), with: merged, ...stopping })],
      [2, () => ({ op: 'truncate', file: 'f', size: bytes(this.random(BAR - FILE + 1)), ...stopping })],
      [1, () => ({ op: 'punch_hole', file: 'f', offset: bytes(1), length: bytes(2), ...stopping })],
      [1, () => ({ op: 'clear_soft_dirty', task, ...stopping })],
      [1, () => ({ op: 'migrate_vma', task, addr, length: bytes(1), owner: 'gpu', ...stopping })],
      [
        1,
        () => ({
          op: 'mremap',
          task,
          addr,
          old_length: bytes(1),
          new_length: bytes(1),
          new_addr: at(SPAN + page),
          ...stopping,
        }),
      ],
      [2, () => ({ op: 'fork', task, child: this.pick(['C', 'D', 'E', 'F']), ...stopping })],
      [1, () => ({ op: 'oom_reap', task: this.pick(['A', 'B', 'B']), ...stopping })],
      [1, () => ({ op: 'exit', task: this.pick(['A2', 'B', 'C', 'D', 'E']), ...stopping })],
      [
        3,
        () => ({
          op: 'gup',
          task,
          addr,
          npage: 1,
          flags: this.pick([FOLL_GET, FOLL_PIN]) | this.pick([0, FOLL_WRITE]),
        }),
      ],
      [
        4,
        () => ({
          op: 'put_gup',
          gup: this.anyGup(),
          dirty: this.pick(['no', 'set_page_dirty', 'set_page_dirty_lock']),
        }),
      ],
      [3, () => ({ op: 'lock', task: 'A2', lock: `page_lock:${pfn}` })],
      [5, () => this.unlock('A2')],
      [5, () => this.pinOrUnpin(page)],
    ];
  }

  private kvm(): Weighted[] {
    const vm = this.pick(VMS);
    const gfn = this.withPci && this.chance(25) ? BAR_GFN + this.random(BAR_PAGES) : GFN + this.random(BAR);
    const stopping = this.stopping();
    const made = this.m.host.consumers.kvm.vms.get(vm);
    const map = this.pick([...(made?.maps.keys() ?? []), 'none']);
    return [
      [24, () => ({ op: 'vcpu_fault', vm, gfn, write: this.chance(60), async_pf: this.chance(25), ...stopping })],
      [3, () => ({ op: 'vcpu_map', vm, gfn, ...stopping })],
      [4, () => ({ op: 'vcpu_unmap', vm, map, dirty: this.chance(50) })],
      [2, () => ({ op: 'refresh_pfn_cache', vm, cache: this.pick(['c', 'd']), gfn, ...stopping })],
      [1, () => ({ op: 'delete_pfn_cache', vm, cache: this.pick(['c', 'd']) })],
      [1, () => ({ ...this.slot(vm, 0, GFN, 0, 0), ...stopping })],
      [2, () => ({ ...this.slot(vm, 0, GFN, 0, BAR), ...stopping })],
      [1, () => ({ ...this.slot(vm, 0, GFN, 0, BAR, { flags: 1 }), ...stopping })],
      [1, () => ({ ...this.slot(vm, 0, GFN + 0x800, 0, BAR), ...stopping })],
    ];
  }

  private vhost(): Weighted[] {
    const stopping = this.stopping();
    const area = this.pick(['desc', 'avail', 'used'] as const);
    const ring = { dev: 'net', vq: 0 };
    const bytesIn = this.chance(50) ? { write: false, length: 4 } : { write: true, data: 'AQIDBA==' };
    return [
      [8, () => ({ op: 'vhost_round', ...ring, ...stopping })],
      [7, () => ({ op: 'vhost_access', ...ring, area, off: 0, ...bytesIn, ...stopping })],
      [1, () => ({ ...this.ring(this.pick([0, 0, 1, 4])), ...stopping })],
      [1, () => ({ op: 'vhost_set_backend', ...ring, task: 'A', active: this.chance(70) })],
      [1, () => ({ op: 'vhost_set_vring_num', ...ring, task: 'A', num: 8, ...stopping })],
    ];
  }

  /** Two devices: one looks away from its own events, the other does not. */
  private exclusive(): Weighted[] {
    const device = this.pick(DEVICES);
    const page = this.random(ANON);
    const range = { start: at(page), length: bytes(1 + this.random(Math.min(3, ANON - page))) };
    const stopping = this.stopping();
    const grants = this.m.host.consumers.exclusive.devices.get(device)?.grants;
    const grant = this.pick([...(grants?.keys() ?? []), 'none']);
    const sequence = this.sequences.get(`${device} ${grant}`) ?? 0;
    const write = this.chance(50);
    const data = write ? { data: 'AQIDBA==' } : { length: 4 };
    return [
      [4, () => this.makeExclusive(device, range, stopping)],
      [4, () => ({ op: 'map_exclusive_grant', device, grant, sequence, ...stopping })],
      [5, () => ({ op: 'drop_exclusive_grant', device, grant })],
      [3, () => ({ op: 'dmirror_exclusive', device: UNSEQUENCED, ...range, ...stopping })],
      [3, () => ({ op: 'mirror_range', device, ...range, fault: this.chance(70), write, ...stopping })],
      [2, () => ({ op: 'device_access', device, addr: at(page), write, ...data })],
      [1, () => ({ op: 'check_exclusive', device: UNSEQUENCED, ...range })],
    ];
  }

  /** As a driver does it: the sequence first, which decides later whether the device may map what it was given. */
  private makeExclusive(
    device: string,
    range: { start: bigint; length: bigint },
    stopping: { stop_at?: Phase },
  ): Command {
    const grant = `g${this.grants++}`;
    const { fields, parked } = this.run({ op: 'interval_read_begin', id: `exclusive-${device}` });
    // One that waits has its sequence when it is too late for this grant: another that never is.
    this.sequences.set(`${device} ${grant}`, parked === undefined ? (fields.sequence as number) : 0);
    return { op: 'make_device_exclusive', device, grant, ...range, ...stopping };
  }

  private pci(task: string): Weighted[] {
    const stopping = this.stopping();
    const device = 'nic';
    const addr = at(BAR + this.random(BAR_PAGES));
    const flags = FAULT_FLAG_DEFAULT;
    const read = { region: 0, write: false, pos: bytes(this.random(BAR_PAGES)), count: 4 };
    return [
      [6, () => ({ op: 'access', task, addr, write: this.chance(50), flags, ...stopping })],
      [
        4,
        () => ({ op: 'vfio_pci_config_write', device, offset: 4, count: 2, value: this.pick([1, 3, 3]), ...stopping }),
      ],
      [1, () => ({ op: 'vfio_pci_reset', device, by: 'ioctl', ...stopping })],
      [1, () => ({ op: 'vfio_pci_hot_reset', devices: [device], ...stopping })],
      [1, () => ({ op: 'vfio_pci_set_power_state', device, state: this.pick([0, 3]), ...stopping })],
      [1, () => ({ op: 'vfio_pci_rw', device, ...read, ...stopping })],
      [1, () => this.mmapBar(task, stopping)],
      [1, () => ({ op: 'munmap', task, addr, length: bytes(1), ...stopping })],
      [1, () => ({ op: 'madvise', task, addr, length: bytes(1), advice: 'DONTNEED' })],
    ];
  }

  private command(): Command {
    const task = this.pick(['A', 'A', 'A', 'A2', 'B', this.m.host.mm.tasks.has('C') ? 'C' : 'A']);
    const all = [
      ...this.memory(task),
      ...this.kvm(),
      ...(this.withVhost ? this.vhost() : []),
      ...(this.withPci ? this.pci(task) : []),
      ...(this.withExclusive ? this.exclusive() : []),
    ];
    let left = this.random(all.reduce((sum, [weight]) => sum + weight, 0));
    for (const [weight, make] of all) {
      if (left < weight) return make();
      left -= weight;
    }
    throw new Error('no command');
  }

  private unlock(task: string): Command {
    const held = this.m.host.mm.tasks.get(task)?.locks ?? [];
    return { op: 'unlock', task, lock: held.length === 0 ? 'mutex:none' : this.pick(held).lock };
  }

  private anyGup(): string {
    return this.pick([...this.m.host.mm.gups.keys(), 'none']);
  }

  private pinOrUnpin(page: number): Command {
    const iova = IOVA + bytes(page);
    const array = this.m.host.profile.pinForm === 'user_pfn';
    const entries = array
      ? { user_pfn: [Number(iova >> 12n)], npage: 1 }
      : { user_pfn: [], npage: 1, contiguous: { iova } };
    if (this.chance(50)) return { op: 'unpin_pages', device: 'D1', ...entries };
    return { op: 'pin_pages', device: 'D1', ...entries, prot: this.pick([1, 3]) };
  }

  private stopped(): string[] {
    return [...this.m.host.operations.values()].filter(({ state }) => state === 'stopped').map(({ id }) => id);
  }

  private openGrants(): { device: string; grant: string }[] {
    const devices = [...this.m.host.consumers.exclusive.devices.values()];
    return devices.flatMap(({ id: device, grants }) => [...grants.keys()].map((grant) => ({ device, grant })));
  }

  step(): void {
    const stopped = this.stopped();
    if (stopped.length > 0 && this.chance(stopped.length * 12)) {
      const operation = this.pick(stopped);
      const resume = { op: 'resume_operation', operation, ...this.stopping() } as const;
      this.run(this.chance(70) ? { op: 'step_operation', operation } : resume);
      return;
    }
    this.run(this.command());
  }

  /** Everything that was stopped goes on, everything that is held is released: nothing may be left waiting. */
  quiesce(): void {
    for (let round = 0; round < 300; round++) {
      const [operation] = this.stopped();
      const holder = [...this.m.host.mm.tasks.values()].find(({ locks }) => locks.length > 0);
      const grant = this.openGrants()[round % Math.max(1, this.openGrants().length)];
      if (operation !== undefined) this.run({ op: 'resume_operation', operation });
      else if (grant !== undefined) this.run({ op: 'drop_exclusive_grant', ...grant });
      else if (holder !== undefined) this.run({ op: 'unlock', task: holder.id, lock: holder.locks[0]?.lock as string });
      else break;
    }
    const open = [...this.m.host.operations.values()].filter(({ state }) => state !== 'done');
    if (open.length > 0)
      throw new Error(`left: ${open.map(({ id, blocked_on }) => `${id} on ${blocked_on}`).join(', ')}`);
    if (this.m.host.locks.size > 0) throw new Error(`locks left: ${[...this.m.host.locks.keys()].join(', ')}`);
  }

  /** Every consumer goes, every task ends, the file is emptied: nothing may be left in use. */
  tearDown(): void {
    const { mm, consumers } = this.m.host;
    this.m.run(this.m.unmapCommand(IOVA, bytes(SPAN), { task: 'A' }));
    for (const { id: vm, maps } of consumers.kvm.vms.values()) {
      for (const map of [...maps.keys()]) this.run({ op: 'vcpu_unmap', vm, map, dirty: false });
      this.run({ op: 'delete_vm', vm });
    }
    if (this.withVhost) this.run({ op: 'close_vhost_dev', dev: 'net' });
    for (const device of [...consumers.exclusive.devices.keys()]) this.run({ op: 'delete_exclusive_device', device });
    for (const { id, mm: of } of [...mm.tasks.values()].reverse()) if (of !== null) this.run({ op: 'exit', task: id });
    this.run({ op: 'truncate', file: 'f', size: 0n });
    for (const gup of [...mm.gups.keys()]) this.run({ op: 'put_gup', gup, dirty: 'no' });
    const { pages, swap, mms, zombies, mmu_notifiers } = mm;
    for (const pfn of [...swap.cache.keys()]) this.run({ op: 'reclaim', pfn });
    const left = {
      slots: swap.slots.size,
      pages: pages.used,
      pinned: pages.pinned,
      mms: mms.size + zombies.size,
      notifiers: mmu_notifiers.size,
      vms: consumers.kvm.vms.size,
      // Old kernels never drop a reference of the zero page.
      leaked: [...consumers.kvm.leaked.keys()].filter((pfn) => pages.kind(pfn) !== KIND_ZERO).length,
    };
    if (Object.values(left).some((count) => count > 0)) throw new Error(`left: ${JSON.stringify(left)}`);
  }
}
