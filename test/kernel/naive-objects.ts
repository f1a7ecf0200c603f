// The naive model's containers, groups and devices, and the tasks' limits.

import { NaiveMemory, Refused } from './naive-mm.ts';
import type { Rules } from './naive-rules.ts';
import {
  done,
  type Milestone,
  type NaiveContainer,
  type NaiveDevice,
  type NaiveGroup,
  type NaiveIommu,
  type NaiveOp,
  type NaiveOutcome,
  newChain,
  type Of,
  walkOf,
} from './naive-types.ts';

/** What x86 reserves for interrupts, and how far an IOMMU reaches that says nothing else. */
const MSI: [bigint, bigint] = [0xfee00000n, 0xfeefffffn];
const REACH: [bigint, bigint] = [0n, 2n ** 48n - 1n];

export abstract class NaiveObjects {
  memory: NaiveMemory;
  containers = new Map<string, NaiveContainer>();
  groups = new Map<string, NaiveGroup>();
  devices = new Map<string, NaiveDevice>();
  seen = new Set<Milestone>();
  splats: string[] = [];
  private readonly warned = new Set<string>();

  constructor(
    private readonly dma_entry_limit: number,
    readonly rules: Rules,
  ) {
    this.memory = new NaiveMemory(rules);
  }

  /** A BUG of a container. */
  protected abstract kill(id: string): void;
  protected abstract newIommu(type: number, limit: number): NaiveIommu;
  /** A group joins the back end; an operation where it must wait first. */
  protected abstract attach(name: string, iommu: NaiveIommu, id: string, task: string | null): NaiveOp | null;
  protected abstract detach(iommu: NaiveIommu, id: string): void;
  protected abstract wakeVaddrWaiters(iommu: NaiveIommu): void;
  protected abstract listen(iommu: NaiveIommu, op: string): void;
  protected abstract unlisten(iommu: NaiveIommu, op: string): void;
  /** Old kernels hold group_lock for reading while an unmap waits; it is wanted for writing. */
  protected abstract lockGroups(container: string): void;

  protected splat(label: string): void {
    this.splats.push(label);
  }

  protected warnOnce(place: string, label: string): void {
    if (!this.warned.has(place)) this.splat(label);
    this.warned.add(place);
  }

  protected patchTask(c: Of<'patch_task'>): NaiveOutcome {
    const task = this.memory.task(c.task);
    const alive = [...this.memory.tasks.values()].some(({ leader, mm }) => leader === task.leader && mm !== null);
    if (!alive || (c.cap_ipc_lock !== undefined && task.mm === null)) throw new Refused('ESRCH');
    if (c.rlimit_memlock !== undefined) this.memory.limits.set(task.leader, c.rlimit_memlock);
    if (c.cap_ipc_lock !== undefined) task.cap = c.cap_ipc_lock;
    return done();
  }

  protected container(id: string): NaiveContainer {
    const container = this.containers.get(id);
    if (container === undefined) throw new Refused('NOT_FOUND');
    return container;
  }

  protected group(id: string): NaiveGroup {
    const group = this.groups.get(id);
    if (group === undefined) throw new Refused('NOT_FOUND');
    return group;
  }

  protected device(id: string): NaiveDevice {
    const device = this.devices.get(id);
    if (device === undefined) throw new Refused('NOT_FOUND');
    return device;
  }

  /** A mutating call on whatever hangs on a container that died is refused. */
  protected alive(id: string | null): void {
    if (id !== null && this.container(id).dead) throw new Refused('EIO');
  }

  protected fd(id: string): NaiveContainer {
    const container = this.container(id);
    if (container.dead) throw new Refused('EIO');
    if (!container.open) throw new Refused('EBADF');
    return container;
  }

  protected putContainer({ container }: Of<'put_container'>): NaiveOutcome {
    const existing = this.containers.get(container);
    const gone = existing !== undefined && !existing.open && existing.groups.length === 0 && !existing.dead;
    if (existing !== undefined && !gone) this.fd(container);
    else this.containers.set(container, { open: true, groups: [], iommu: null, dead: false });
    return done();
  }

  /** Whoever waits for a vaddr gives up; the iommu object stays while groups hold it. */
  protected closeContainer({ container: id }: Of<'close_container'>): NaiveOutcome {
    const container = this.fd(id);
    container.open = false;
    if (container.iommu !== null) {
      container.iommu.containerOpen = false;
      this.wakeVaddrWaiters(container.iommu);
    }
    return done();
  }

  protected putGroup({ group, kind, reserved, aperture }: Of<'put_group'>): NaiveOutcome {
    if (this.groups.has(group)) return done();
    if (kind === 'noiommu') throw new Error('noiommu groups are not in the model');
    const regions = reserved?.map(({ start, last }): [bigint, bigint] => [start, last]);
    this.groups.set(group, {
      kind,
      reserved: regions ?? (kind === 'iommu' ? [MSI] : []),
      aperture: aperture === undefined ? REACH : [aperture.start, aperture.last],
      open: true,
      container: null,
      users: 0,
      devices: [],
      chain: newChain(),
    });
    return done();
  }

  protected openGroup({ group: id }: Of<'open_group'>): NaiveOutcome {
    const group = this.group(id);
    this.alive(group.container);
    if (group.open || group.container !== null) throw new Refused('EBUSY');
    // Whatever is left on the chain of group notifiers is warned about and forgotten.
    if (this.rules.checksGroupChainAtOpen && group.chain.first !== null) {
      this.splat('group notifier chain not empty');
      group.chain = newChain();
    }
    group.open = true;
    return done();
  }

  /** With devices open, the binding outlives the file descriptor. */
  protected closeGroup({ group: id }: Of<'close_group'>): NaiveOutcome {
    const group = this.group(id);
    this.alive(group.container);
    if (!group.open) throw new Refused('EBADF');
    this.mayLeave(group);
    if (!this.rules.checksGroupChainAtOpen && group.chain.first !== null) this.splat('group notifier chain not empty');
    group.open = false;
    if (group.users > 0 && --group.users === 0) this.leave(id, group);
    return done();
  }

  protected setContainer(c: Of<'set_container'>): NaiveOutcome | NaiveOp {
    const group = this.group(c.group);
    this.container(c.container);
    this.alive(group.container);
    this.alive(c.container);
    if (!group.open) throw new Refused('EBADF');
    if (group.users > 0) throw new Refused('EINVAL');
    const container = this.fd(c.container);
    this.lockGroups(c.container);
    if (this.isAttaching(c.group)) throw new Refused('EBUSY');
    if (c.task !== null) this.memory.task(c.task);
    const waiting = container.iommu === null ? null : this.attach(c.container, container.iommu, c.group, c.task);
    if (waiting !== null) return waiting;
    this.bind(c.group, c.container);
    return done();
  }

  protected abstract isAttaching(group: string): boolean;

  protected bind(id: string, name: string): void {
    const group = this.group(id);
    group.container = name;
    group.users = 1;
    this.container(name).groups.push(id);
  }

  protected unsetContainer(c: Of<'unset_container'>): NaiveOutcome {
    const group = this.group(c.group);
    this.alive(group.container);
    if (!group.open) throw new Refused('EBADF');
    if (group.users === 0) throw new Refused('EINVAL');
    if (group.users > 1) throw new Refused('EBUSY');
    this.mayLeave(group);
    this.leave(c.group, group);
    return done();
  }

  /** Before the last user of a group goes, which takes the group out of its container. */
  private mayLeave({ users, container }: NaiveGroup): void {
    if (users === 1) this.lockGroups(container as string);
  }

  /** A group leaves its container; the last one takes the iommu object and all mappings with it. */
  protected leave(id: string, group: NaiveGroup): void {
    const name = group.container as string;
    const container = this.container(name);
    group.users = 0;
    if (container.iommu !== null) this.detach(container.iommu, id);
    group.container = null;
    container.groups = container.groups.filter((other) => other !== id);
    if (container.groups.length === 0 && container.iommu !== null) {
      const { chain, vaddrWait } = container.iommu;
      container.iommu = null;
      if (chain.readers.length + chain.queue.length + vaddrWait.length > 0) {
        this.splat('use-after-free');
        this.kill(name);
      }
    }
  }

  /** Numbers that VFIO_CHECK_EXTENSION answers 1 to while the container has no iommu object. */
  private get extensions(): number[] {
    const { answersNesting, answersUnmapAll, answersUpdateVaddr } = this.rules;
    const known = [1, 3];
    if (answersNesting) known.push(6);
    if (answersUnmapAll) known.push(9);
    if (answersUpdateVaddr === 'always') known.push(10);
    return known;
  }

  /** VFIO_CHECK_EXTENSION on an iommu object. */
  answersExtension(iommu: NaiveIommu, number: number): number {
    if (number === 10 && this.rules.answersUpdateVaddr === 'without mdev') return iommu.mdev.length === 0 ? 1 : 0;
    return this.extensions.includes(number) || number === 4 ? 1 : 0;
  }

  protected setIommu({ container: id, type, task }: Of<'set_iommu'>): NaiveOutcome {
    const container = this.fd(id);
    this.lockGroups(id);
    if (container.groups.length === 0 || container.iommu !== null) throw new Refused('EINVAL');
    if (!this.extensions.includes(type)) throw new Refused('ENODEV');
    if (type > 6) throw new Refused('EINVAL');
    const iommu = this.newIommu(type, this.rules.entryLimit ? this.dma_entry_limit : Number.MAX_SAFE_INTEGER);
    for (const group of container.groups) this.attach(id, iommu, group, task);
    container.iommu = iommu;
    return done();
  }

  protected putDevice({ device, group, dma_unmap }: Of<'put_device'>): NaiveOutcome {
    if (group !== null) this.group(group).devices.push(device);
    this.devices.set(device, { group, open: 0, mayListen: dma_unmap ?? true, op: null });
    return done();
  }

  protected openDevice({ device: id }: Of<'open_device'>): NaiveOutcome {
    const device = this.device(id);
    if (device.group === null) throw new Refused('ENODEV');
    const group = this.group(device.group);
    this.alive(group.container);
    if (!group.open) throw new Refused('EBADF');
    const { iommu } = this.user(group);
    if (device.open === 0 && device.op !== null) this.listen(iommu, device.op);
    group.users++;
    device.open++;
    return done();
  }

  protected closeDevice({ device: id }: Of<'close_device'>): NaiveOutcome {
    const device = this.device(id);
    const group = device.group === null ? null : this.group(device.group);
    this.alive(group?.container ?? null);
    if (device.open === 0 || group === null) throw new Refused('EBADF');
    if (device.open === 1 && device.op !== null) this.unlisten(this.user(group).iommu, device.op);
    this.mayLeave(group);
    device.open--;
    group.users--;
    if (group.users === 0) this.leave(device.group as string, group);
    return done();
  }

  protected iommuOf(id: string): NaiveIommu {
    const { iommu } = this.fd(id);
    if (iommu === null) throw new Refused('EINVAL');
    return iommu;
  }

  /** The container behind a group that a call through one of its devices works on. */
  protected user(group: NaiveGroup): { name: string; container: NaiveContainer; iommu: NaiveIommu } {
    const name = group.container;
    if (name === null) throw new Refused('EINVAL');
    const container = this.container(name);
    if (container.iommu === null) throw new Refused('EINVAL');
    return { name, container, iommu: container.iommu };
  }

  protected groupOf(id: string): NaiveGroup | null {
    const { group } = this.device(id);
    if (group === null) return null;
    this.alive(this.group(group).container);
    return this.group(group);
  }

  /** Pins of a container that a device's driver is not told of any more. */
  protected isListening(iommu: NaiveIommu): boolean {
    return walkOf(iommu.chain).blocks.length > 0;
  }
}
