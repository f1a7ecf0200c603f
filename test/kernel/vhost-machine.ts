// A host with a vhost device whose ring lies in the first pages of a task, for the tests of vhost's metadata maps.

import type { Command } from '../../src/kernel/command.ts';
import { PAGE_SIZE } from '../../src/kernel/lib/u64.ts';
import type { Outcome } from '../../src/kernel/outcome.ts';
import type { Phase } from '../../src/kernel/phase.ts';
import type { Area, VhostDev, Vq } from '../../src/kernel/vhost/device.ts';
import { VIRTIO_F_ACCESS_PLATFORM, VIRTIO_RING_F_EVENT_IDX } from '../../src/kernel/vhost/device.ts';
import type { Switches, Variant } from '../../src/kernel/vhost/rules.ts';
import { Machine } from './machine.ts';
import { at, PageMachine } from './page-machine.ts';

export const EVENT_IDX = VIRTIO_RING_F_EVENT_IDX;
export const ACCESS_PLATFORM = VIRTIO_F_ACCESS_PLATFORM;
/** Pages of the areas of vq 0; those of vq 1 come 8 pages later. */
export const DESC = 0;
export const AVAIL = 1;
export const USED = 2;
/** Defects of the code that are said of a device once, whatever is tested. */
const ALWAYS = ['NO_SPECULATION_BARRIER', 'LEAKED_MAP', 'GRACE_PERIOD_IN_START'];

/** The profiles that have vhost's maps, as the rules name them. */
export const ERAS = [
  ['5.4', 'P53'],
  ['5.8', 'P58'],
  ['5.15', 'P515'],
  ['6.18', 'P614'],
] as const;

type Stopping = { stop_at?: Phase };

export interface Ring {
  profile?: string;
  variant?: Variant;
  switches?: Partial<Switches>;
  nvqs?: number;
  num?: number;
  features?: number;
  /** Where the areas of vq 0 begin. */
  desc?: bigint;
  /** The areas are not touched by their owner. */
  untouched?: boolean;
}

export class VhostMachine extends PageMachine {
  private seen = 0;

  constructor({
    profile = '5.15',
    variant = 'merged',
    switches = {},
    nvqs = 1,
    num = 8,
    features = 0,
    desc,
    untouched = false,
  }: Ring = {}) {
    super(new Machine({ profile }), ['A', 'B']);
    this.anon('A', 0, 24);
    this.run({ op: 'put_vhost_dev', dev: 'v', variant, nvqs, switches });
    this.run({ op: 'vhost_set_owner', dev: 'v', task: 'A' });
    this.run({ op: 'vhost_set_features', dev: 'v', task: 'A', features });
    for (let vq = 0; vq < nvqs; vq++) {
      this.setNum(num, vq);
      this.setAddr(8 * vq, vq, desc);
      this.backend(true, vq);
      if (!untouched) for (const page of [DESC, AVAIL, USED, USED + 1]) this.write('A', 8 * vq + page);
    }
    this.mark();
  }

  override mark(): void {
    super.mark();
    this.seen = this.host?.violations.next - 1;
  }

  get dev(): VhostDev {
    return this.host.consumers.vhost.devs.get('v') as VhostDev;
  }

  vq(n = 0): Vq {
    return this.dev.vqs[n] as Vq;
  }

  setNum(num: number, vq = 0, stopping: Stopping = {}): Outcome {
    return this.run({ op: 'vhost_set_vring_num', dev: 'v', vq, task: 'A', num, ...stopping });
  }

  /** The areas begin at three pages after each other. */
  setAddr(page: number, vq = 0, desc: bigint = at(page + DESC), stopping: Stopping = {}): Outcome {
    const [avail, used] = [at(page + AVAIL), at(page + USED)];
    return this.run({ op: 'vhost_set_vring_addr', dev: 'v', vq, task: 'A', flags: 0, desc, avail, used, ...stopping });
  }

  backend(active: boolean, vq = 0): Outcome {
    return this.run({ op: 'vhost_set_backend', dev: 'v', vq, task: 'A', active });
  }

  round(stopping: Stopping = {}, vq = 0): Outcome {
    return this.run({ op: 'vhost_round', dev: 'v', vq, ...stopping });
  }

  get(area: Area, off: number, length: number, stopping: Stopping = {}, vq = 0): Outcome {
    return this.run({ op: 'vhost_access', dev: 'v', vq, area, off, write: false, length, ...stopping });
  }

  put(area: Area, off: number, bytes: readonly number[], stopping: Stopping = {}, vq = 0): Outcome {
    const data = Buffer.from(bytes).toString('base64');
    return this.run({ op: 'vhost_access', dev: 'v', vq, area, off, write: true, data, ...stopping });
  }

  dontneed(page: number, npage: number, stopping: Stopping = {}, task = 'A'): Outcome {
    const length = BigInt(npage * PAGE_SIZE);
    return this.run({ op: 'madvise', task, addr: at(page), length, advice: 'DONTNEED', ...stopping });
  }

  invalidate(page: number, npage: number, stopping: Stopping = {}, blockable = true): Outcome {
    const { id: mm } = this.mm('A');
    const command: Command = {
      op: 'invalidate',
      mm,
      start: at(page),
      end: at(page + npage),
      event: 'CLEAR',
      blockable,
    };
    return this.run({ ...command, ...stopping });
  }

  fork(child = 'C'): Outcome {
    return this.run({ op: 'fork', task: 'A', child });
  }

  /** The areas that are mapped now. */
  mapped(vq = 0): Area[] {
    const { maps } = this.vq(vq);
    return (['desc', 'avail', 'used'] as const).filter((area) => maps[area] !== null);
  }

  /** Pages behind the map of an area. */
  behind(area: Area, vq = 0): number[] | undefined {
    return this.vq(vq).maps[area]?.pfns;
  }

  /** Violations since the mark; what is said of every device of the variant only where it is asked for. */
  codes(always = false): string[] {
    const { items } = this.host.violations.since(this.seen, 10_000);
    return items.map(({ code }) => code as string).filter((code) => always || !ALWAYS.includes(code));
  }
}
