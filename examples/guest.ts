// The guest's side of the three devices: between two changes of its memory map it gives each of them something to do, in
// memory that is mapped at that moment. All choices come from a seed.

import type { Kvmgt } from './drivers/kvmgt.ts';
import type { GfnRange } from './drivers/vendor-driver.ts';
import type { VfioAp } from './drivers/vfio-ap.ts';
import type { VfioCcw } from './drivers/vfio-ccw.ts';
import { type DmaCall, MAP_WRITE } from './qemu-trace.ts';
import type { Random } from './random.ts';

/** A mapping of the replay, with the call that will remove it. */
export interface GuestRegion extends GfnRange {
  writable: boolean;
  /** Index of the unmap call that removes it; null: it stays until the container closes. */
  removedBy: number | null;
}

export interface Devices {
  kvmgt: Kvmgt;
  ccw: VfioCcw;
  ap: VfioAp;
}

/** Pages that kvmgt's shadow page tables point to at one time. */
const SHADOWED = 48;
/** Pages of one data buffer of a channel program. */
const BUFFER_PAGES = 16;

/** Firmware works in the memory that it is about to remap: this part of the choices falls on regions that will go away. */
const PASSING = 0.75;

/** For each map call the region it makes; for each unmap call null. */
export function regionsOf(calls: readonly DmaCall[]): (GuestRegion | null)[] {
  return calls.map((call, index) => {
    if (call.op === 'unmap_dma') return null;
    const removedBy = calls.findIndex(
      (other, i) =>
        i > index &&
        other.op === 'unmap_dma' &&
        other.iova <= call.iova &&
        call.iova + call.size <= other.iova + other.size,
    );
    return {
      gfn: Number(call.iova >> 12n),
      end: Number((call.iova + call.size) >> 12n),
      writable: (call.flags & MAP_WRITE) !== 0,
      removedBy: removedBy < 0 ? null : removedBy,
    };
  });
}

export class Guest {
  readonly #shadowed: number[] = [];

  constructor(
    private readonly devices: Devices,
    private readonly random: Random,
  ) {}

  /** One turn of each device. */
  async turn(live: readonly GuestRegion[]): Promise<void> {
    await this.#graphics(live);
    await this.#channel(live);
    await this.#crypto(live);
  }

  /** Up to four pages come into the shadow page tables, some of them twice; old ones leave. */
  async #graphics(live: readonly GuestRegion[]): Promise<void> {
    const { kvmgt } = this.devices;
    for (let n = this.random.below(5); n > 0; n--) {
      const again = this.random.chance(0.2) ? this.random.pick(kvmgt.pinned()) : undefined;
      const gfn = again ?? this.#page(live);
      if (gfn !== undefined && (await kvmgt.shadow(gfn))) this.#shadowed.push(gfn);
    }
    const leave = Math.max(this.#shadowed.length - SHADOWED, this.random.below(2));
    for (const gfn of this.#shadowed.splice(0, leave)) await kvmgt.unshadow(gfn);
  }

  /** An I/O ends, another starts: a program page and one to three buffers, not all of them in the same region. */
  async #channel(live: readonly GuestRegion[]): Promise<void> {
    const { ccw } = this.devices;
    if (ccw.busy && this.random.chance(0.3)) await ccw.interrupt();
    if (ccw.busy) return;
    const program = this.#page(live);
    const buffers = Array.from({ length: 1 + this.random.below(3) }, () => this.#buffer(live)).filter(
      (buffer) => buffer !== undefined,
    );
    if (program !== undefined) await ccw.startSubchannel(program, buffers);
  }

  /**
   * Interrupts that were disabled because memory went away are enabled again, with the indicator byte elsewhere; now and then
   * the guest sets its queue up anew.
   */
  async #crypto(live: readonly GuestRegion[]): Promise<void> {
    const { ap } = this.devices;
    const anew = this.random.chance(0.2);
    const nib = this.#page(live, 1);
    if ((anew || !ap.enabled) && nib !== undefined) await ap.enableInterrupts(nib);
  }

  /** A writable region; one that will go away, if there is one, with the given probability. */
  #region(live: readonly GuestRegion[], probability: number): GuestRegion | undefined {
    const writable = live.filter((region) => region.writable);
    const passing = writable.filter((region) => region.removedBy !== null);
    return this.random.pick(passing.length > 0 && this.random.chance(probability) ? passing : writable);
  }

  #page(live: readonly GuestRegion[], probability = PASSING): number | undefined {
    const region = this.#region(live, probability);
    return region && region.gfn + this.random.below(region.end - region.gfn);
  }

  #buffer(live: readonly GuestRegion[]): GfnRange | undefined {
    const region = this.#region(live, PASSING);
    if (region === undefined) return undefined;
    const npage = Math.min(1 + this.random.below(BUFFER_PAGES), region.end - region.gfn);
    const gfn = region.gfn + this.random.below(region.end - region.gfn - npage + 1);
    return { gfn, end: gfn + npage };
  }
}
