// Takes a device's notifications by asking for them: GET .../notifications, the handler, POST .../ack.

import { type Delivery, type HostClient, type Notification, type NotifyReturn, Refused } from '../client.ts';
import type { Listener } from './vendor-driver.ts';

/** How long the service holds a question open that it has nothing to answer. */
const WAIT_MS = 20_000;

export class PollListener implements Listener {
  readonly delivery: Delivery = { kind: 'poll' };
  readonly #stopped = new AbortController();
  #loop: Promise<void> = Promise.resolve();

  constructor(
    private readonly client: HostClient,
    private readonly device: string,
    private readonly onFailure: (error: unknown) => void,
  ) {}

  start(handler: (notification: Notification) => Promise<NotifyReturn>): void {
    this.#loop = this.#poll(handler).catch((error: unknown) => {
      if (!this.#stopped.signal.aborted) this.onFailure(error);
    });
  }

  async stop(): Promise<void> {
    this.#stopped.abort();
    await this.#loop;
  }

  async #poll(handler: (notification: Notification) => Promise<NotifyReturn>): Promise<void> {
    const { signal } = this.#stopped;
    while (!signal.aborted) {
      for (const notification of await this.client.notifications(this.device, WAIT_MS, signal)) {
        const ret = await handler(notification);
        await this.client.ack(notification, ret).catch((error: unknown) => {
          // The last ack that a container takes makes it dead (410); a late one (409) has been answered by the timeout.
          if (!(error instanceof Refused) || ![409, 410].includes(error.problem.status)) throw error;
        });
      }
    }
  }
}
