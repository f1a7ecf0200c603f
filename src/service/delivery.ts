// Brings the notifications of one host to their handlers after their commit, and the handlers' answers back as commands.

import { createHash } from 'node:crypto';
import type { Command } from '../kernel/command.ts';
import { NoSuchObject } from '../kernel/errno.ts';
import type { Host } from '../kernel/host.ts';
import type { Notification } from '../kernel/outcome.ts';
import { NOTIFY_DONE, NOTIFY_OK } from '../kernel/vfio/notifier.ts';
import type { Clock } from './clock.ts';
import { HostUnavailable, TooMany } from './errors.ts';
import { MAX_LONG_POLL_MS, MAX_LONG_POLLS_PER_DEVICE } from './limits.ts';
import type { ServiceLog } from './log.ts';
import type { WebhookResult, WebhookSender } from './webhook.ts';

type Ack = Extract<Command, { op: 'ack_notification' }>;

export interface DeliveryHost {
  /** Resolves when everything up to `seq` is durable. */
  committed(seq: number): Promise<void>;
  /** Executes and commits a command of the service's own. */
  submit(command: Command, request_id: string): Promise<void>;
}

export class Delivery {
  /** Calls that wait for a handler or for their time, by notification: each entry calls its own off. */
  private readonly outstanding = new Map<string, () => void>();
  /** Clients that wait for a notification, by device; null tells them that there is something, an error that there never will be. */
  private readonly waiting = new Map<string, Set<(error: Error | null) => void>>();
  private closed: Error | null = null;

  constructor(
    private readonly host: Host,
    private readonly generation: number,
    private readonly around: { clock: Clock; webhooks: WebhookSender; log: ServiceLog },
    private readonly actor: DeliveryHost,
  ) {}

  /** Number of clients that wait for notifications. */
  get polls(): number {
    let count = 0;
    for (const clients of this.waiting.values()) count += clients.size;
    return count;
  }

  /** Starts the delivery of notifications whose commit is durable; one that was answered meanwhile is passed over. */
  deliver(ids: Iterable<string>): void {
    if (this.closed !== null) return;
    for (const id of ids) {
      const pending = this.host.vfio.notifications.get(id);
      if (pending === undefined) continue;
      const { notification, delivery } = pending;
      if (delivery.kind === 'builtin') this.answerSlowly(notification, delivery.delay_ms);
      else if (delivery.kind === 'webhook') this.callWebhook(notification, delivery);
      else this.offer(notification);
    }
  }

  /** Delivers all that wait for an answer, again, with their full time before them. */
  resume(): void {
    this.deliver([...this.host.vfio.notifications.keys()]);
  }

  /** Calls off what a command has answered, or ended in another way. */
  forgetAnswered(): void {
    for (const [id, callOff] of this.outstanding) {
      if (this.host.vfio.notifications.has(id)) continue;
      this.outstanding.delete(id);
      callOff();
    }
  }

  close(error: Error): void {
    this.closed = error;
    for (const callOff of this.outstanding.values()) callOff();
    this.outstanding.clear();
    for (const clients of this.waiting.values()) for (const tell of clients) tell(error);
    this.waiting.clear();
  }

  /** The builtin 'slow': the kernel side unpins when the answer comes. */
  private answerSlowly(notification: Notification, delay_ms: number): void {
    const cancel = this.around.clock.after(delay_ms, () => {
      this.answer(notification, { ret: NOTIFY_OK, reason: 'slow_builtin', detail: null });
    });
    this.outstanding.set(notification.id, cancel);
  }

  private offer(notification: Notification): void {
    this.outstanding.set(notification.id, this.startTimer(notification));
    for (const tell of this.waiting.get(notification.device) ?? []) tell(null);
  }

  private callWebhook(notification: Notification, { url, secret }: { url: string; secret: string }): void {
    const controller = new AbortController();
    const stopTimer = this.startTimer(notification);
    this.outstanding.set(notification.id, () => {
      stopTimer();
      controller.abort();
    });
    const id = `msg_${this.identityOf(notification)}`;
    void this.around.webhooks.send({ url, secret, id, notification }, controller.signal).then((result) => {
      if (!controller.signal.aborted) this.answer(notification, ackOf(result));
    });
  }

  /** After notifier_timeout_ms the emulated kernel goes on as if the handler had returned. */
  private startTimer({ id }: Notification): () => void {
    return this.around.clock.after(this.host.options.notifier_timeout_ms, () => {
      this.submit({ op: 'notification_timeout', notification: id }, `timeout-${id}`);
    });
  }

  private answer({ id, device }: Notification, { ret, reason, detail }: Pick<Ack, 'ret' | 'reason' | 'detail'>): void {
    this.submit({ op: 'ack_notification', device, notification: id, ret, reason, detail }, `handler-${id}`);
  }

  /** Whatever stops it (a failed commit, a stop) also has the notification delivered again. */
  private submit(command: Command & { notification: string }, request_id: string): void {
    if (this.closed !== null || !this.host.vfio.notifications.has(command.notification)) return;
    this.actor.submit(command, request_id).catch((error: unknown) => {
      if (error instanceof HostUnavailable) return;
      this.around.log.error(
        { err: error, host: this.host.id, request_id },
        'an answer to a notification was not taken',
      );
    });
  }

  /**
   * Notifications of a device that are to be fetched and not answered; waits for the first one at most `wait_ms`, then gives [].
   * NoSuchObject: no such device. TooMany: more than MAX_LONG_POLLS_PER_DEVICE wait.
   */
  async poll(device: string, wait_ms: number, signal: AbortSignal): Promise<Notification[]> {
    const most = Math.min(wait_ms, MAX_LONG_POLL_MS);
    const end = this.around.clock.now() + most;
    for (let over = false; ; ) {
      if (this.closed !== null) throw this.closed;
      const { seq } = this.host;
      if (!this.host.vfio.devices.has(device)) {
        await this.actor.committed(seq);
        throw new NoSuchObject('device', device);
      }
      const found = this.unanswered(device);
      // Timers count on where the clock is set back.
      const left = over ? 0 : Math.min(end - this.around.clock.now(), most);
      if (found.length > 0 || left <= 0 || signal.aborted) {
        await this.actor.committed(seq);
        return found;
      }
      over = await this.untilTold(device, left, signal);
    }
  }

  private unanswered(device: string): Notification[] {
    const found: Notification[] = [];
    for (const { notification, delivery } of this.host.vfio.notifications.values())
      if (notification.device === device && delivery.kind === 'poll') found.push({ ...notification });
    return found;
  }

  /** Resolves when a notification of the device was delivered, the client has gone, or, with true, the time is over. */
  private untilTold(device: string, ms: number, signal: AbortSignal): Promise<boolean> {
    const clients = this.waiting.get(device) ?? new Set();
    if (clients.size >= MAX_LONG_POLLS_PER_DEVICE)
      return Promise.reject(new TooMany(`clients waiting for notifications of '${device}'`, MAX_LONG_POLLS_PER_DEVICE));
    this.waiting.set(device, clients);
    return new Promise((resolve, reject) => {
      let over = false;
      const tell = (error: Error | null): void => {
        cancel();
        signal.removeEventListener('abort', gone);
        clients.delete(tell);
        if (clients.size === 0 && this.waiting.get(device) === clients) this.waiting.delete(device);
        if (error === null) resolve(over);
        else reject(error);
      };
      const gone = (): void => tell(null);
      const cancel = this.around.clock.after(ms, () => {
        over = true;
        tell(null);
      });
      signal.addEventListener('abort', gone, { once: true });
      clients.add(tell);
    });
  }

  /** The same for every delivery of one notification, and for no other notification of any host. */
  private identityOf({ id }: Notification): string {
    const of = `${this.host.id}\0${this.generation}\0${id}`;
    return createHash('sha256').update(of).digest('hex').slice(0, 32);
  }
}

function ackOf(result: WebhookResult): Pick<Ack, 'ret' | 'reason' | 'detail'> {
  if ('ret' in result) return { ret: result.ret, reason: 'ack', detail: null };
  return { ret: NOTIFY_DONE, reason: 'webhook_failed', detail: result.failure };
}
