// The naive model's notifier blocks (up to 5.19), and the dma_unmap ops of devices (from 6.0 on).

import { Refused } from './naive-mm.ts';
import {
  done,
  type NaiveChain,
  type NaiveIommu,
  type NaiveOp,
  type NaiveOutcome,
  type Of,
  walkOf,
} from './naive-types.ts';
import { NaiveUnmap } from './naive-unmap.ts';

export abstract class NaiveNotifiers extends NaiveUnmap {
  protected register(c: Of<'register_notifier'>, inside: number | null): NaiveOutcome | NaiveOp {
    const { device, notifier: spec } = c;
    const group = this.groupOf(device);
    if (this.rules.deviceIsListener) return this.setOp(c);
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
        this.link(name, chain, id),
      );
    } catch (error) {
      if (error instanceof Refused) Object.assign(error.left, { events_left: events });
      throw error;
    }
  }

  private isOnAnyChain(id: string): boolean {
    const chains = [...this.groups.values()].map(({ chain }) => chain);
    for (const { iommu } of this.containers.values()) if (iommu !== null) chains.push(iommu.chain);
    return chains.some((chain) => walkOf(chain).blocks.includes(id));
  }

  /** By descending priority, after those of its own. Old kernels link a block that is there already once more. */
  private link(container: string, chain: NaiveChain, id: string): void {
    const { doubleRegister } = this.rules;
    const { blocks, endless } = walkOf(chain);
    const priority = (block: string): number => this.blocks.get(block)?.priority ?? 0;
    const found = blocks.findIndex((block) => priority(block) < priority(id));
    const passed = found < 0 ? blocks : blocks.slice(0, found);
    if (passed.includes(id)) {
      this.seen.add('double registration');
      if (doubleRegister === 'refused') {
        this.splat('listener-registered-twice');
        return;
      }
      if (doubleRegister === 'one WARN') this.warnOnce('notifier_chain_register', 'listener-registered-twice');
    }
    if (found < 0 && endless) this.stuck(container);
    chain.next.set(id, found < 0 ? null : (blocks[found] as string));
    const before = passed.at(-1);
    if (before === undefined) chain.first = id;
    else chain.next.set(before, id);
  }

  private stuck(container: string): never {
    this.loop(container);
    throw new Refused('EIO');
  }

  protected unregister(
    { device, notifier: id, type }: Of<'unregister_notifier'>,
    inside: number | null,
  ): NaiveOutcome | NaiveOp {
    this.device(device);
    const block = this.blocks.get(id);
    if (block === undefined) throw new Refused('NOT_FOUND');
    const group = this.groupOf(device);
    if (this.rules.deviceIsListener) return this.clearOp(device, id);
    if (group === null) throw new Refused('ENODEV');
    const kind = type ?? block.type;
    if (kind !== 0 && kind !== 1) throw new Refused('EINVAL');
    const { name, iommu } = this.user(group);
    const chain = kind === 0 ? iommu.chain : group.chain;
    const of = this.device(device).group as string;
    return this.write('unregister_notifier', name, of, chain, inside, done({ id }), () => this.unlink(name, chain, id));
  }

  private unlink(container: string, chain: NaiveChain, id: string): void {
    const { blocks, endless } = walkOf(chain);
    const at = blocks.indexOf(id);
    if (at < 0 && endless) this.stuck(container);
    if (at < 0) throw new Refused('ENOENT');
    const after = chain.next.get(id) ?? null;
    if (at === 0) chain.first = after;
    else chain.next.set(blocks[at - 1] as string, after);
  }

  // From 6.0 on

  private setOp({ device: id, notifier: spec }: Of<'register_notifier'>): NaiveOutcome {
    const device = this.device(id);
    const name = spec.id as string;
    if (spec.type !== 0 || spec.priority !== 0 || !device.mayListen) throw new Refused('EOPNOTSUPP');
    if (device.op !== null || [...this.devices.values()].some(({ op }) => op === name)) throw new Refused('EEXIST');
    if (!this.isOnAnyChain(name)) this.blocks.set(name, { device: id, type: 0, priority: 0 });
    const group = device.group === null ? null : this.group(device.group);
    if (device.open > 0 && group !== null) this.listen(this.user(group).iommu, name);
    device.op = name;
    return done({ id: name, events_left: 0 });
  }

  private clearOp(id: string, name: string): NaiveOutcome {
    const device = this.device(id);
    if (device.op !== name) throw new Refused('ENOENT');
    const group = device.group === null ? null : this.group(device.group);
    if (device.open > 0 && group !== null) this.unlisten(this.user(group).iommu, name);
    device.op = null;
    return done({ id: name });
  }

  /** The device that was opened last is told first. The lock of the list can't be had while somebody is being told. */
  protected listen({ chain }: NaiveIommu, op: string): void {
    if (!this.rules.deviceIsListener) return;
    if (chain.readers.length > 0) this.refuseDeadlock();
    chain.next.set(op, chain.first);
    chain.first = op;
  }

  protected unlisten(iommu: NaiveIommu, op: string): void {
    const { chain } = iommu;
    const { blocks } = walkOf(chain);
    if (!blocks.includes(op)) return;
    if (chain.readers.length > 0) this.refuseDeadlock();
    const left = blocks.filter((other) => other !== op);
    chain.first = left[0] ?? null;
    chain.next = new Map(left.map((block, i) => [block, left[i + 1] ?? null]));
  }
}
