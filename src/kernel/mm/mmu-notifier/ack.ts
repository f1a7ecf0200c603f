// The answers of clients to the callbacks of mmu notifiers: the thread that waited goes on.

import type { Command } from '../../command.ts';
import { NoSuchObject } from '../../errno.ts';
import { type Host, printk } from '../../host.ts';
import type { Done, PendingMmuNotification } from '../../outcome.ts';
import { runThreads, schedule } from '../../thread.ts';
import { answerNotification, defaultReturn } from './call.ts';
import type { CallbackName } from './subscriptions.ts';

/** The handler has returned. NOT_FOUND; EBUSY: it was answered already, or its time is over. */
export function ackMmuNotification(
  host: Host,
  { mm, notification, ret, reason, detail }: Extract<Command, { op: 'ack_mmu_notification' }>,
): Done {
  const number = Number(/^mmu-notification-([1-9]\d*)$/.exec(notification)?.[1] ?? Number.POSITIVE_INFINITY);
  const pending = host.mm.notifications.get(notification)?.notification;
  if (number >= host.mm.next_notification || (mm !== undefined && (pending?.mm ?? mm) !== mm))
    throw new NoSuchObject('notification', notification);
  if (reason === 'webhook_failed') printk(host, 'warning', `mmu notification ${notification}: ${detail}`);
  schedule(host, answerNotification(host, notification, ret));
  runThreads(host);
  return { ret: 0, fields: { id: notification } };
}

/** notifier_timeout_ms has passed: the kernel goes on as if the handler had returned what it returns by default. */
export function mmuNotificationTimeout(host: Host, id: string): Done {
  const { notification } = host.mm.notifications.get(id) as PendingMmuNotification;
  const { notifier, callback } = notification;
  printk(
    host,
    'warning',
    `mmu notifier ${notifier}: ${callback} was not answered in ${host.options.notifier_timeout_ms} ms`,
  );
  schedule(host, answerNotification(host, id, defaultReturn(callback as CallbackName)));
  runThreads(host);
  return { ret: 0, fields: {} };
}
