// A driver like drivers/s390/crypto/vfio_ap_ops.c: while interrupts are enabled for its queue it keeps one page pinned, the
// one with the notification indicator byte (NIB) that the adapter writes.

import type { HostClient } from '../client.ts';
import { type GfnRange, type Listener, VendorDriver } from './vendor-driver.ts';

export interface VfioApBugs {
  /** Until November 2022: the handler unpins the page at the start of the range, not its own, and forgets nothing. */
  wrongPage: boolean;
}

export class VfioAp extends VendorDriver {
  /** saved_pfn of the queue: the gfn of its NIB; null while interrupts are disabled. */
  #saved: number | null = null;

  constructor(
    client: HostClient,
    device: string,
    listener: Listener,
    private readonly bugs: VfioApBugs,
  ) {
    super(client, device, listener);
  }

  get enabled(): boolean {
    return this.#saved !== null;
  }

  pinned(): number[] {
    return this.#saved === null ? [] : [this.#saved];
  }

  /** AQIC: the guest enables interrupts and says where the NIB is. A page that was given before is let go. */
  enableInterrupts(nib: number): Promise<boolean> {
    return this.locked(async () => {
      const old = this.pinned();
      if (!(await this.pin([nib]))) return false;
      this.#saved = nib;
      await this.unpin(old);
      return true;
    });
  }

  protected override async dmaUnmap({ gfn, end }: GfnRange, notification: string): Promise<number> {
    if (this.bugs.wrongPage) {
      await this.unpin([gfn], notification);
      return gfn === this.#saved ? 1 : 0;
    }
    const found = this.pinned().some((page) => gfn <= page && page < end);
    return found ? await this.#disableInterrupts(notification) : 0;
  }

  /** Resetting the queue disables its interrupts, which unpins; then the notifier goes. */
  override async close(): Promise<void> {
    await this.locked(() => this.#disableInterrupts());
    await this.unregister();
    await this.client.closeDevice(this.device);
  }

  async #disableInterrupts(notification?: string): Promise<number> {
    const pages = this.pinned();
    await this.unpin(pages, notification);
    this.#saved = null;
    return pages.length;
  }
}
