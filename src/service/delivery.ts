// Brings the notifications of one host to their handlers after their commit, and the handlers' answers back as commands.

import { createHash } from 'node:crypto';
import type { Command, Delivery as Way } from '../kernel/command.ts';
import { NoSuchObject } from '../kernel/errno.ts';
import type { Host } from '../kernel/host.ts';
import { hex } from '../kernel/lib/u64.ts';
import { defaultReturn } from '../kernel/mm/mmu-notifier/call.ts';
import type { CallbackName } from '../kernel/mm/mmu-notifier/subscriptions.ts';
import type { MmuNotification, Notification } from '../kernel/outcome.ts';
import { NOTIFY_DONE, NOTIFY_OK } from '../kernel/vfio/notifier.ts';
import type { Clock } from './clock.ts';
import { HostUnavailable, TooMany } from './errors.ts';
import { MAX_LONG_POLL_MS, MAX_LONG_POLLS_PER_DEVICE } from './limits.ts';
import type { ServiceLog } from './log.ts';
import { mmuReturnOf } from './mmu-return.ts';
import { notifyReturnOf } from './notify-return.ts';
import type { WebhookMessage, WebhookResult, WebhookSender } from './webhook.ts';

/** What a handler returned, and why. */
interface Answered {
  ret: number;
  reason: 'ack' | 'webhook_failed' | 'slow_builtin';
  detail: string | null;
}

/** Who polls for notifications: the driver of a device, or whoever watches an mm. */
interface Mailbox<T> {
  /** 'device' or 'mm'. */
  kind: string;
  id: string;
  exists: () => boolean;
  unanswered: () => T[];
}

export interface DeliveryHost {
  /** Resolves when everything up to `seq` is durable. */
  committed(seq: number): Promise<void>;
  /** Executes and commits a command of the service's own. */
  submit(command: Command, request_id: string): Promise<void>;
}

export class Delivery {
  /** Calls that wait for a handler or for their time, by notification: each entry calls its own off. */
  private readonly outstanding = new Map<string, () => void>();
  /** Clients that wait for a notification, by mailbox; null tells them that there is something, an error that there never will be. */
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
      const dma = this.host.vfio.notifications.get(id);
      const mmu = this.host.mm.notifications.get(id);
      if (dma !== undefined) this.deliverDmaUnmap(dma.notification, dma.delivery);
      else if (mmu !== undefined) this.deliverCallback(mmu.notification, mmu.delivery);
    }
  }

  private deliverDmaUnmap(notification: Notification, delivery: Way): void {
    const { id } = notification;
    const answer = (answered: Answered): void =>
      this.submit(
        { op: 'ack_notification', device: notification.device, notification: id, ...answered },
        `handler-${id}`,
      );
    const message = { body: dmaUnmapOnTheWire(notification), retOf: notifyReturnOf, empty: NOTIFY_OK };
    if (delivery.kind === 'builtin') this.answerSlowly(id, delivery.delay_ms, answer);
    else if (delivery.kind === 'webhook')
      this.callWebhook(id, { ...delivery, ...message }, (result) => answer(ackOf(result, NOTIFY_DONE)));
    else this.offer(id, `device ${notification.device}`);
  }

  private deliverCallback(notification: MmuNotification, delivery: Exclude<Way, { kind: 'builtin' }>): void {
    const { id, callback } = notification;
    const returns = defaultReturn(callback as CallbackName);
    const message = { body: callbackOnTheWire(notification), retOf: mmuReturnOf, empty: returns };
    if (delivery.kind === 'poll') this.offer(id, `mm ${notification.mm}`);
    else
      this.callWebhook(id, { ...delivery, ...message }, (result) => {
        const { ret, detail } = ackOf(result, returns);
        const reason = detail === null ? 'ack' : 'webhook_failed';
        this.submit({ op: 'ack_mmu_notification', notification: id, ret, reason, detail }, `handler-${id}`);
      });
  }

  /** Delivers all that wait for an answer, again, with their full time before them. */
  resume(): void {
    this.deliver([...this.host.vfio.notifications.keys(), ...this.host.mm.notifications.keys()]);
  }

  private isPending(id: string): boolean {
    return this.host.vfio.notifications.has(id) || this.host.mm.notifications.has(id);
  }

  /** Calls off what a command has answered, or ended in another way. */
  forgetAnswered(): void {
    for (const [id, callOff] of this.outstanding) {
      if (this.isPending(id)) continue;
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
  private answerSlowly(id: string, delay_ms: number, answer: (answered: Answered) => void): void {
    const cancel = this.around.clock.after(delay_ms, () => {
      answer({ ret: NOTIFY_OK, reason: 'slow_builtin', detail: null });
    });
    this.outstanding.set(id, cancel);
  }

  private offer(id: string, mailbox: string): void {
    this.outstanding.set(id, this.startTimer(id));
    for (const tell of this.waiting.get(mailbox) ?? []) tell(null);
  }

  private callWebhook(
    id: string,
    message: Omit<WebhookMessage, 'id'>,
    returned: (result: WebhookResult) => void,
  ): void {
    const controller = new AbortController();
    const stopTimer = this.startTimer(id);
    this.outstanding.set(id, () => {
      stopTimer();
      controller.abort();
    });
    const identified = { ...message, id: `msg_${this.identityOf(id)}` };
    void this.around.webhooks.send(identified, controller.signal).then((result) => {
      if (!controller.signal.aborted) returned(result);
    });
  }

  /** After notifier_timeout_ms the emulated kernel goes on as if the handler had returned. */
  private startTimer(id: string): () => void {
    return this.around.clock.after(this.host.options.notifier_timeout_ms, () => {
      this.submit({ op: 'notification_timeout', notification: id }, `timeout-${id}`);
    });
  }

  /** Whatever stops it (a failed commit, a stop) also has the notification delivered again. */
  private submit(command: Command & { notification: string }, request_id: string): void {
    if (this.closed !== null || !this.isPending(command.notification)) return;
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
  poll(device: string, wait_ms: number, signal: AbortSignal): Promise<Notification[]> {
    const { vfio } = this.host;
    const unanswered = (): Notification[] =>
      polled(vfio.notifications.values()).filter((notification) => notification.device === device);
    const mailbox = { kind: 'device', id: device, exists: () => vfio.devices.has(device), unanswered };
    return this.take(mailbox, wait_ms, signal);
  }

  /** The same for the callbacks of an mm's notifiers. NoSuchObject: no such mm. */
  pollCallbacks(id: string, wait_ms: number, signal: AbortSignal): Promise<MmuNotification[]> {
    const { mm } = this.host;
    const unanswered = (): MmuNotification[] =>
      polled(mm.notifications.values()).filter((notification) => notification.mm === id);
    const exists = (): boolean => mm.mms.has(id) || mm.zombies.has(id);
    return this.take({ kind: 'mm', id, exists, unanswered }, wait_ms, signal);
  }

  private async take<T>(mailbox: Mailbox<T>, wait_ms: number, signal: AbortSignal): Promise<T[]> {
    const { kind, id, exists, unanswered } = mailbox;
    const most = Math.min(wait_ms, MAX_LONG_POLL_MS);
    const end = this.around.clock.now() + most;
    for (let over = false; ; ) {
      if (this.closed !== null) throw this.closed;
      const { seq } = this.host;
      if (!exists()) {
        await this.actor.committed(seq);
        throw new NoSuchObject(kind, id);
      }
      const found = unanswered();
      // Timers count on where the clock is set back.
      const left = over ? 0 : Math.min(end - this.around.clock.now(), most);
      if (found.length > 0 || left <= 0 || signal.aborted) {
        await this.actor.committed(seq);
        return found;
      }
      over = await this.untilTold(`${kind} ${id}`, left, signal);
    }
  }

  /** Resolves when a notification came to the mailbox, the client has gone, or, with true, the time is over. */
  private untilTold(mailbox: string, ms: number, signal: AbortSignal): Promise<boolean> {
    const clients = this.waiting.get(mailbox) ?? new Set();
    if (clients.size >= MAX_LONG_POLLS_PER_DEVICE)
      return Promise.reject(new TooMany(`clients waiting for notifications of ${mailbox}`, MAX_LONG_POLLS_PER_DEVICE));
    this.waiting.set(mailbox, clients);
    return new Promise((resolve, reject) => {
      let over = false;
      const tell = (error: Error | null): void => {
        cancel();
        signal.removeEventListener('abort', gone);
        clients.delete(tell);
        if (clients.size === 0 && this.waiting.get(mailbox) === clients) this.waiting.delete(mailbox);
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
  private identityOf(id: string): string {
    const of = `${this.host.id}\0${this.generation}\0${id}`;
    return createHash('sha256').update(of).digest('hex').slice(0, 32);
  }
}

/** Copies of the notifications that a client fetches itself. */
const polled = <T extends object>(pending: Iterable<{ notification: T; delivery: Way }>): T[] =>
  [...pending].filter(({ delivery }) => delivery.kind === 'poll').map(({ notification }) => ({ ...notification }));

function ackOf(result: WebhookResult, onFailure: number): Answered {
  if ('ret' in result) return { ret: result.ret, reason: 'ack', detail: null };
  return { ret: onFailure, reason: 'webhook_failed', detail: result.failure };
}

/** The notification as the HTTP contract prints it. */
function dmaUnmapOnTheWire({ id, device, notifier, event, iova, size, container, attempt, seq }: Notification): object {
  return { id, device, notifier, event, iova: hex(iova), size: hex(size), container, attempt, seq };
}

/** A callback as the HTTP contract prints it. */
function callbackOnTheWire(notification: MmuNotification): object {
  const { start, end } = notification;
  return { ...notification, start: start === null ? null : hex(start), end: end === null ? null : hex(end) };
}
