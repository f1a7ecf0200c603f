// The naive model's containers, groups and devices, and the tasks' limits.

import { NaiveMemory, Refused } from './naive-mm.ts';
import {
  done,
  type NaiveContainer,
  type NaiveGroup,
  type NaiveIommu,
  type NaiveOutcome,
  newChain,
  type Of,
} from './naive-types.ts';

export abstract class NaiveObjects {
  memory = new NaiveMemory();
  containers = new Map<string, NaiveContainer>();
  groups = new Map<string, NaiveGroup>();
  devices = new Map<string, { group: string | null; open: number }>();

  constructor(private readonly dma_entry_limit: number) {}

  /** A BUG of a container. */
  protected abstract kill(id: string): void;

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

  protected device(id: string): { group: string | null; open: number } {
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

  protected closeContainer({ container }: Of<'close_container'>): NaiveOutcome {
    this.fd(container).open = false;
    return done();
  }

  protected openGroup({ group: id }: Of<'open_group'>): NaiveOutcome {
    const group = this.group(id);
    this.alive(group.container);
    if (group.open || group.container !== null) throw new Refused('EBUSY');
    // Whatever is left on the chain of group notifiers is warned about and forgotten.
    group.chain = newChain();
    group.open = true;
    return done();
  }

  /** With devices open, the binding outlives the file descriptor. */
  protected closeGroup({ group: id }: Of<'close_group'>): NaiveOutcome {
    const group = this.group(id);
    this.alive(group.container);
    if (!group.open) throw new Refused('EBADF');
    group.open = false;
    if (group.users > 0 && --group.users === 0) this.leave(id, group);
    return done();
  }

  protected setContainer(c: Of<'set_container'>): NaiveOutcome {
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

  protected unsetContainer(c: Of<'unset_container'>): NaiveOutcome {
    const group = this.group(c.group);
    this.alive(group.container);
    if (!group.open) throw new Refused('EBADF');
    if (group.users === 0) throw new Refused('EINVAL');
    if (group.users > 1) throw new Refused('EBUSY');
    this.leave(c.group, group);
    return done();
  }

  /** A group leaves its container; the last one takes the iommu object and all mappings with it. */
  protected leave(id: string, group: NaiveGroup): void {
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
  }

  protected setIommu({ container: id, type }: Of<'set_iommu'>): NaiveOutcome {
    const container = this.fd(id);
    if (container.groups.length === 0 || container.iommu !== null) throw new Refused('EINVAL');
    if (![1, 3, 6, 9, 10].includes(type)) throw new Refused('ENODEV');
    if (type > 6) throw new Refused('EINVAL');
    const limit = this.dma_entry_limit;
    container.iommu = { type, limit, avail: limit, maps: [], chain: newChain() };
    return done();
  }

  protected openDevice({ device: id }: Of<'open_device'>): NaiveOutcome {
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

  protected closeDevice({ device: id }: Of<'close_device'>): NaiveOutcome {
    const device = this.device(id);
    const group = device.group === null ? null : this.group(device.group);
    this.alive(group?.container ?? null);
    if (device.open === 0 || group === null) throw new Refused('EBADF');
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
}
