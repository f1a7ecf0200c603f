// What every vendor driver of the demo has in common: it registers a notifier when its device is opened, is called for each
// vfio_dma that is about to go, and pins and unpins by page frame number of the guest (gfn).

import { type Delivery, type HostClient, type Notification, type NotifyReturn, Refused } from '../client.ts';

/** Entries in one call of vfio_pin_pages() or vfio_unpin_pages(). */
export const PIN_PAGES_MAX_ENTRIES = 512;

/** A range of guest page frames, `end` exclusive. */
export interface GfnRange {
  gfn: number;
  end: number;
}

export interface DriverStats {
  pin_calls: number;
  pinned_pages: number;
  unpin_calls: number;
  unpinned_pages: number;
  /** Refused pins by errno. */
  refused: Record<string, number>;
  /** Calls of the handler, and those of them that found pages of the driver in the range. */
  notifications: number;
  notifications_that_unpinned: number;
  /** Highest attempt that the handler was called with. */
  most_attempts: number;
}

/** How notifications reach the driver. `stop` returns when the handler is not running any more. */
export interface Listener {
  readonly delivery: Delivery;
  start(handler: (notification: Notification) => Promise<NotifyReturn>): void;
  stop(): Promise<void>;
}

export abstract class VendorDriver {
  readonly stats: DriverStats = {
    pin_calls: 0,
    pinned_pages: 0,
    unpin_calls: 0,
    unpinned_pages: 0,
    refused: {},
    notifications: 0,
    notifications_that_unpinned: 0,
    most_attempts: 0,
  };
  /** Set when the handler failed in a way that the driver has no answer to. */
  failure: unknown = null;

  #locked: Promise<unknown> = Promise.resolve();

  constructor(
    protected readonly client: HostClient,
    readonly device: string,
    protected readonly listener: Listener,
  ) {}

  /** The notifier block's name. */
  get notifier(): string {
    return `${this.device}-nb`;
  }

  /** Gfns that the driver believes it has pinned; one that it pinned twice is here twice. */
  abstract pinned(): number[];

  /** Lets go of what lies in the range of a vfio_dma; returns how many pages it unpinned. Called with the lock held. */
  protected abstract dmaUnmap(range: GfnRange, notification: string): Promise<number>;

  /** open_device: registers the notifier, then the device is open. */
  async open(): Promise<void> {
    this.listener.start((notification) => this.#notifierCall(notification));
    await this.client.registerNotifier(this.device, this.notifier, this.listener.delivery);
    await this.client.openDevice(this.device);
  }

  /** close_device. What it unpins, and when, is the driver's own. */
  abstract close(): Promise<void>;

  /** The end of close_device: nobody calls the handler after it. */
  protected async unregister(): Promise<void> {
    await this.client.unregisterNotifier(this.device, this.notifier);
    await this.listener.stop();
  }

  /** Stops listening without a word to the kernel: for a container that is dead. */
  abandon(): Promise<void> {
    return this.listener.stop();
  }

  /** The driver's own lock: what it keeps about its pins changes under it only. */
  protected locked<Result>(body: () => Promise<Result>): Promise<Result> {
    const result = this.#locked.then(body);
    this.#locked = result.catch(() => {});
    return result;
  }

  /** vfio_pin_pages(): all of the gfns or none. False if the kernel refused; the errno is counted. */
  protected async pin(gfns: number[]): Promise<boolean> {
    this.stats.pin_calls++;
    try {
      await this.client.pinPages(this.device, gfns, ['READ', 'WRITE']);
    } catch (error) {
      if (!(error instanceof Refused) || error.problem.status === 410) throw error;
      this.stats.refused[error.errno] = (this.stats.refused[error.errno] ?? 0) + 1;
      return false;
    }
    this.stats.pinned_pages += gfns.length;
    return true;
  }

  /** vfio_unpin_pages(), in calls of at most PIN_PAGES_MAX_ENTRIES. `notification` is set inside a handler. */
  protected async unpin(gfns: readonly number[], notification?: string): Promise<void> {
    for (let i = 0; i < gfns.length; i += PIN_PAGES_MAX_ENTRIES) {
      const batch = gfns.slice(i, i + PIN_PAGES_MAX_ENTRIES);
      const done = await this.client.unpinPages(this.device, batch, notification);
      this.stats.unpin_calls++;
      this.stats.unpinned_pages += done;
    }
  }

  async #notifierCall(notification: Notification): Promise<NotifyReturn> {
    this.stats.notifications++;
    this.stats.most_attempts = Math.max(this.stats.most_attempts, notification.attempt);
    const gfn = Number(BigInt(notification.iova) >> 12n);
    const end = gfn + Number(BigInt(notification.size) >> 12n);
    try {
      const unpinned = await this.locked(() => this.dmaUnmap({ gfn, end }, notification.id));
      if (unpinned > 0) this.stats.notifications_that_unpinned++;
      return 'NOTIFY_OK';
    } catch (error) {
      this.failure ??= error;
      return 'NOTIFY_BAD';
    }
  }
}
