// A driver like drivers/s390/cio/vfio_ccw_*.c: it translates a channel program, so it pins bursts of consecutive pages, each
// buffer in one call, and lets go of them when the I/O has ended. One program runs at a time.

import type { HostClient } from '../client.ts';
import { type GfnRange, type Listener, VendorDriver } from './vendor-driver.ts';

export interface VfioCcwBugs {
  /** Until July 2022: the handler looks for the first page of the range only, so it misses pins anywhere else in it. */
  startOnly: boolean;
}

export class VfioCcw extends VendorDriver {
  /** The pages of the running channel program; null while the subchannel is idle. */
  #program: number[] | null = null;

  constructor(
    client: HostClient,
    device: string,
    listener: Listener,
    private readonly bugs: VfioCcwBugs,
  ) {
    super(client, device, listener);
  }

  get busy(): boolean {
    return this.#program !== null;
  }

  pinned(): number[] {
    return this.#program ?? [];
  }

  /**
   * Start Subchannel: the channel program's own page is pinned, copied and unpinned; its data buffers stay pinned until the
   * I/O has ended. False if the subchannel is busy or a page can't be pinned; then nothing stays pinned.
   */
  startSubchannel(ccw: number, buffers: readonly GfnRange[]): Promise<boolean> {
    return this.locked(async () => {
      if (this.#program !== null || !(await this.pin([ccw]))) return false;
      await this.unpin([ccw]);
      this.#program = [];
      for (const { gfn, end } of buffers) {
        const pages = Array.from({ length: end - gfn }, (_, i) => gfn + i);
        if (!(await this.pin(pages))) {
          await this.#cpFree();
          return false;
        }
        this.#program.push(...pages);
      }
      return true;
    });
  }

  /** The I/O interrupt: the program has ended. */
  interrupt(): Promise<void> {
    return this.locked(async () => {
      await this.#cpFree();
    });
  }

  /** If the program has a page there, the subchannel is reset and all of it is freed, what lies outside the range too. */
  protected override async dmaUnmap({ gfn, end }: GfnRange, notification: string): Promise<number> {
    const last = this.bugs.startOnly ? gfn + 1 : end;
    const found = this.pinned().some((page) => gfn <= page && page < last);
    return found ? await this.#cpFree(notification) : 0;
  }

  override async close(): Promise<void> {
    await this.interrupt();
    await this.unregister();
    await this.client.closeDevice(this.device);
  }

  async #cpFree(notification?: string): Promise<number> {
    const pages = this.pinned();
    await this.unpin(pages, notification);
    this.#program = null;
    return pages.length;
  }
}
