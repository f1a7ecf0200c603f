// A driver like drivers/gpu/drm/i915/gvt/kvmgt.c: it shadows the guest's graphics page tables, so it pins single pages, read
// and write, keeps every one in its own cache by gfn, and lets go of a page when the last shadow entry is gone or the guest's
// memory goes away.

import type { HostClient } from '../client.ts';
import { type GfnRange, type Listener, VendorDriver } from './vendor-driver.ts';

export interface KvmgtBugs {
  /** close_device without emptying the cache: the pins outlive the device, the last group leaves with them (WARN, leak). */
  closeWithoutUnpin: boolean;
}

export class Kvmgt extends VendorDriver {
  /** gfn -> shadow entries that use it (the kref of gvt_dma); vfio sees one pin whatever the count. */
  readonly #cache = new Map<number, number>();

  constructor(
    client: HostClient,
    device: string,
    listener: Listener,
    private readonly bugs: KvmgtBugs,
  ) {
    super(client, device, listener);
  }

  pinned(): number[] {
    return [...this.#cache.keys()];
  }

  /** The guest writes a page-table entry that points to gfn. Returns false if the page can't be pinned. */
  shadow(gfn: number): Promise<boolean> {
    return this.locked(async () => {
      const users = this.#cache.get(gfn);
      if (users === undefined && !(await this.pin([gfn]))) return false;
      this.#cache.set(gfn, (users ?? 0) + 1);
      return true;
    });
  }

  /** The guest clears one such entry. Without one, nothing happens: the handler has been faster. */
  unshadow(gfn: number): Promise<void> {
    return this.locked(async () => {
      const users = this.#cache.get(gfn);
      if (users === undefined) return;
      if (users > 1) this.#cache.set(gfn, users - 1);
      else await this.#drop(gfn);
    });
  }

  /** Every cached gfn of the range goes, whatever its count: the guest's memory is not there any more. */
  protected override async dmaUnmap({ gfn, end }: GfnRange, notification: string): Promise<number> {
    const cached = [...this.#cache.keys()].filter((entry) => gfn <= entry && entry < end);
    for (const entry of cached) await this.#drop(entry, notification);
    return cached.length;
  }

  /** As up to 5.17: the notifier goes first, then the cache. An unmap in between would find pins that nobody answers for. */
  override async close(): Promise<void> {
    await this.unregister();
    if (!this.bugs.closeWithoutUnpin)
      await this.locked(async () => {
        for (const gfn of [...this.#cache.keys()]) await this.#drop(gfn);
      });
    await this.client.closeDevice(this.device);
  }

  async #drop(gfn: number, notification?: string): Promise<void> {
    await this.unpin([gfn], notification);
    this.#cache.delete(gfn);
  }
}
