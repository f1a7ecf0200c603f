// Models vhost_dev_set_owner() and vhost_dev_cleanup(): whose memory the rings are in, and who is told of its invalidations.

import { Errno } from '../errno.ts';
import { type Host, printk } from '../host.ts';
import { mmapLock } from '../lock.ts';
import { newNotifierId, newPlainNotifier } from '../mm/mmu-notifier/register.ts';
import { getTask, requireMm } from '../mm/task.ts';
import type { Done } from '../outcome.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, requireRoomToRun, runOperation } from '../thread.ts';
import { report } from '../violation.ts';
import { callbacksOfVariant, recount } from './callbacks.ts';
import { beginCall, devOf, getDev, ownerMm, resetDev, type VhostDev, vqMutex } from './device.ts';
import { adoptMaps, uninitMaps } from './maps.ts';
import type { VhostCommand } from './vhost.ts';

export type OwnerStep =
  /** Registers the device's notifier; `must`: a failure is the ioctl's. Precondition: mmap_lock of its mm, W. */
  | { do: 'vhost_register'; dev: string; task: string; must: boolean; cleanup?: true }
  | { do: 'vhost_registered'; dev: string; notifier: string; cleanup?: true }
  | { do: 'vhost_unregister'; dev: string; cleanup?: true }
  | { do: 'vhost_unregistered'; dev: string; cleanup?: true }
  | { do: 'vhost_owned'; dev: string; cleanup: true }
  | { do: 'vhost_disowned'; dev: string; cleanup: true }
  | { do: 'vhost_closed'; dev: string; cleanup: true };

/** The device, for its owner. ESRCH: the task has exited. EPERM: it is not the owner. */
export function asOwner(host: Host, id: string, task: string): VhostDev {
  const dev = getDev(host, id);
  const { id: mm } = requireMm(host, task);
  if (dev.mm !== mm)
    throw new Errno('EPERM', `task '${task}' does not own vhost device '${id}'`, {
      hint: dev.mm === null ? 'set_owner comes first' : 'its owner is a task of another address space',
    });
  return dev;
}

/** Registers the notifier of a device. EINTR: a signal is pending. */
export const registration = (dev: VhostDev, task: string, must: boolean, cleanup: boolean): Step[] => {
  const always = cleanup ? ({ cleanup: true } as const) : {};
  const lock = mmapLock(dev.mm as string);
  return [
    { do: 'lock', lock, mode: 'W', ...always },
    { do: 'vhost_register', dev: dev.id, task, must, ...always },
    { do: 'unlock', lock, cleanup: true },
  ];
};

/**
 * VHOST_SET_OWNER: the notifier of the caller's mm is registered before anything is mapped.
 * ENODEV. ESRCH: the task has exited. EBUSY: it has an owner. ENOSPC: MAX_NOTIFIERS. EINTR: a signal is pending.
 */
export function setOwner(
  host: Host,
  { dev: id, task, stop_at }: Extract<VhostCommand, { op: 'vhost_set_owner' }>,
): Done {
  const dev = getDev(host, id);
  const { id: mm } = requireMm(host, task);
  if (dev.mm !== null) throw new Errno('EBUSY', `vhost device '${id}' has an owner`);
  beginCall(host, dev, stop_at);
  dev.mm = mm;
  return runOperation(
    host,
    { kind: 'vhost_set_owner', locals: { task, mm } },
    [
      ...registration(dev, task, true, false),
      { do: 'vhost_owned', dev: id, cleanup: true },
      { do: 'vhost_put', dev: id, cleanup: true },
    ],
    stop_at ?? null,
  );
}

/** vhost_dev_cleanup(): the maps go first, the notifier late. ENODEV. EBUSY: a call of the device is under way. */
export function closeVhostDev(host: Host, { dev: id }: Extract<VhostCommand, { op: 'close_vhost_dev' }>): Done {
  const dev = getDev(host, id);
  if (dev.calls > 0) throw new Errno('EBUSY', `vhost device '${id}': ${dev.calls} calls are under way`);
  requireRoomToRun(host, null);
  dev.closing = true;
  return runOperation(
    host,
    { kind: 'close_vhost_dev', locals: { task: null, mm: dev.mm } },
    [...cleanUp(dev), { do: 'vhost_closed', dev: id, cleanup: true }],
    null,
  );
}

const cleanUp = (dev: VhostDev): Step[] => [
  ...dev.vqs.flatMap((_vq, n): Step[] => {
    const lock = vqMutex(dev.id, n);
    return [{ do: 'lock', lock, mode: 'W' }, ...uninitMaps(dev, n), { do: 'unlock', lock, cleanup: true }];
  }),
  { do: 'vhost_unregister', dev: dev.id },
];

/** The owner exits, and closes its devices: they can be owned anew, as if just opened. */
export const exitOwner = (host: Host, mm: string): Step[] =>
  [...host.consumers.vhost.devs.values()].flatMap((dev) =>
    dev.mm === mm && !dev.closing ? [...cleanUp(dev), { do: 'vhost_disowned', dev: dev.id, cleanup: true }] : [],
  );

export const ownerSteps: Handlers<OwnerStep> = {
  vhost_register(host, operation, { dev: id, task, must }) {
    const dev = devOf(host, id);
    const mm = ownerMm(host, dev);
    if (mm === null || mm.users <= 0) return;
    if (getTask(host, task).signal_pending) {
      const text = `the notifier of vhost device '${id}' is not registered: a signal is pending`;
      if (must) throw new Errno('EINTR', text);
      report(host, operation, 'REGISTRATION_IGNORED', text, []);
      return;
    }
    const wanted = `vhost-${id}`;
    const notifier = newNotifierId(host, host.mm.mmu_notifiers.has(wanted) ? undefined : wanted);
    const handler = { kind: 'consumer', consumer: 'vhost', of: id } as const;
    const callbacks = callbacksOfVariant(dev);
    host.mm.mmu_notifiers.set(notifier, newPlainNotifier(notifier, { mm: mm.id, callbacks, handler }, null));
    pushSteps(operation, [
      { do: 'register', mm: mm.id, notifier, interrupted: false },
      { do: 'forget_unregistered', notifier, cleanup: true },
      { do: 'vhost_registered', dev: id, notifier },
    ]);
  },

  vhost_registered(host, _operation, { dev: id, notifier }) {
    const dev = devOf(host, id);
    if (!host.mm.mmu_notifiers.has(notifier)) return;
    dev.notifier = notifier;
    adoptMaps(host, dev);
  },

  /** mmu_notifier_unregister(), whether or not it was registered: as merged, nobody knows. */
  vhost_unregister(host, operation, { dev: id }) {
    const { notifier, switches, mm } = devOf(host, id);
    if (notifier !== null)
      pushSteps(operation, [
        { do: 'unregister', notifier },
        { do: 'synchronize_srcu' },
        { do: 'unregistered', notifier },
        { do: 'vhost_unregistered', dev: id },
      ]);
    else if (switches.registration_result === 'ignored' && mm !== null)
      report(
        host,
        operation,
        'USE_AFTER_FREE',
        `vhost device ${id} unregisters a notifier that is not registered: mm_count is dropped once too often`,
        [],
      );
  },

  vhost_unregistered(host, _operation, { dev: id }) {
    const dev = devOf(host, id);
    dev.notifier = null;
    if (dev.switches.count !== 'recorded') return;
    dev.open = [];
    for (const n of dev.vqs.keys()) recount(dev, n);
  },

  vhost_owned(host, operation, { dev: id }) {
    const dev = devOf(host, id);
    if (dev.notifier === null) dev.mm = null;
    else operation.thread.fields = { id, notifier: dev.notifier, mm: dev.mm };
  },

  vhost_disowned(host, operation, { dev: id }) {
    resetDev(devOf(host, id));
    operation.thread.fields = {};
  },

  vhost_closed(host, operation, { dev: id }) {
    const { devs } = host.consumers.vhost;
    const dev = devOf(host, id);
    dev.closing = false;
    if (operation.thread.error !== null) return;
    if (dev.leaked_maps > 0)
      printk(host, 'warning', `vhost device ${id}: ${dev.leaked_maps} structures of maps are never freed`);
    devs.delete(id);
    operation.thread.fields = { id, leaked_maps: dev.leaked_maps };
  },
};
