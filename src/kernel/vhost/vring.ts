// Models vhost_vring_ioctl() and what else is set of a virtqueue: its size, its addresses, its features, its backend.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { hex } from '../lib/u64.ts';
import { accessOk } from '../mm/user-copy.ts';
import type { Done } from '../outcome.ts';
import type { Handlers, Step } from '../steps.ts';
import { runOperation } from '../thread.ts';
import { report } from '../violation.ts';
import { recount } from './callbacks.ts';
import {
  AREAS,
  areaSize,
  beginCall,
  devOf,
  getVq,
  setupUaddrs,
  type VhostDev,
  VIRTIO_F_ACCESS_PLATFORM,
  VIRTIO_RING_F_EVENT_IDX,
  type Vq,
  vqMutex,
  vqOf,
} from './device.ts';
import { underMmuLock, uninitMaps } from './maps.ts';
import { asOwner, registration as registrationSteps } from './owner.ts';
import type { VhostCommand } from './vhost.ts';

/** VHOST_VRING_F_LOG. */
const VHOST_VRING_F_LOG = 1;
/** Largest ring. */
const MAX_NUM = 0xffff;

/** What an ioctl changes of a vq. */
type Change = { to: 'num'; num: number } | { to: 'addr'; flags: number; desc: bigint; avail: bigint; used: bigint };

export type VringStep =
  | { do: 'vhost_change'; dev: string; vq: number; change: Change; cleanup?: true }
  | { do: 'vhost_setup_uaddr'; dev: string; vq: number; cleanup?: true }
  | { do: 'vhost_features'; dev: string; features: number; cleanup?: true }
  | { do: 'vhost_backend'; dev: string; vq: number; active: boolean; cleanup?: true }
  | { do: 'vhost_answer'; dev: string; vq: number; cleanup?: true };

/** Changes a vq under its mutex. */
function change(
  host: Host,
  dev: VhostDev,
  { op, vq: n, task, stop_at }: Extract<VhostCommand, { op: 'vhost_set_vring_num' | 'vhost_set_vring_addr' }>,
  what: Change,
): Done {
  const lock = vqMutex(dev.id, n);
  const { registration, failed_ioctl, registration_result } = dev.switches;
  const anew = registration === 'per_ioctl';
  const moved = failed_ioctl === 'sets_uaddr' ? ({ cleanup: true } as const) : {};
  beginCall(host, dev, stop_at);
  return runOperation(
    host,
    { kind: op, locals: { task, mm: dev.mm } },
    [
      { do: 'lock', lock, mode: 'W' },
      ...(anew ? [{ do: 'vhost_unregister', dev: dev.id } as const] : []),
      ...uninitMaps(dev, n),
      ...(anew ? [{ do: 'phase', phase: 'after_unregister' } as const] : []),
      ...underMmuLock(dev, n, [
        { do: 'vhost_change', dev: dev.id, vq: n, change: what },
        { do: 'vhost_setup_uaddr', dev: dev.id, vq: n, ...moved },
      ]),
      ...(anew ? registrationSteps(dev, task, registration_result === 'checked', true) : []),
      { do: 'unlock', lock, cleanup: true },
      { do: 'vhost_put', dev: dev.id, cleanup: true },
      { do: 'vhost_answer', dev: dev.id, vq: n },
    ],
    stop_at ?? null,
  );
}

/**
 * VHOST_SET_VRING_NUM.
 * ENODEV. ESRCH, EPERM: the caller. EBUSY: it has a backend. EINVAL: num is 0, no power of two, or above 0xffff. EINTR, where
 * the notifier is registered anew and that is looked at.
 */
export function setVringNum(host: Host, command: Extract<VhostCommand, { op: 'vhost_set_vring_num' }>): Done {
  const dev = asOwner(host, command.dev, command.task);
  getVq(dev, command.vq);
  return change(host, dev, command, { to: 'num', num: command.num });
}

/**
 * VHOST_SET_VRING_ADDR.
 * ENODEV. ESRCH, EPERM: the caller. EOPNOTSUPP: unknown flags. EINVAL: avail is not 2-aligned, used not 4-aligned; with a backend,
 * an area beyond TASK_SIZE. EINTR, as setVringNum().
 */
export function setVringAddr(host: Host, command: Extract<VhostCommand, { op: 'vhost_set_vring_addr' }>): Done {
  const { flags, desc, avail, used } = command;
  const dev = asOwner(host, command.dev, command.task);
  getVq(dev, command.vq);
  return change(host, dev, command, { to: 'addr', flags, desc, avail, used });
}

/** vq_access_ok(): whether the areas lie where user addresses do. Nobody looks whether anything is there. */
const areUserAddresses = (dev: VhostDev, num: number, at: Pick<Vq, 'desc' | 'avail' | 'used'>): boolean =>
  AREAS.every((area) => accessOk(at[area], BigInt(areaSize(dev, area, num))));

/** VHOST_SET_FEATURES. ENODEV. ESRCH, EPERM: the caller. EOPNOTSUPP: a feature that is not modelled. */
export function setFeatures(host: Host, command: Extract<VhostCommand, { op: 'vhost_set_features' }>): Done {
  const { features } = command;
  const dev = asOwner(host, command.dev, command.task);
  const known = [
    0,
    VIRTIO_RING_F_EVENT_IDX,
    VIRTIO_F_ACCESS_PLATFORM,
    VIRTIO_RING_F_EVENT_IDX + VIRTIO_F_ACCESS_PLATFORM,
  ];
  if (!known.includes(features))
    throw new Errno(
      'EOPNOTSUPP',
      `features: 0x${features.toString(16)} has bits other than EVENT_IDX and ACCESS_PLATFORM`,
    );
  beginCall(host, dev, undefined);
  const locks = [...dev.vqs.keys()].map((n) => vqMutex(dev.id, n));
  return runOperation(
    host,
    { kind: 'vhost_set_features', locals: { task: command.task, mm: dev.mm } },
    [
      ...locks.map((lock): Step => ({ do: 'lock', lock, mode: 'W' })),
      { do: 'vhost_features', dev: dev.id, features },
      ...locks.map((lock): Step => ({ do: 'unlock', lock, cleanup: true })),
      { do: 'vhost_put', dev: dev.id, cleanup: true },
    ],
    null,
  );
}

/** VHOST_NET_SET_BACKEND. ENODEV. ESRCH, EPERM: the caller. EFAULT: an area beyond TASK_SIZE. */
export function setBackend(host: Host, command: Extract<VhostCommand, { op: 'vhost_set_backend' }>): Done {
  const { vq: n, active, task } = command;
  const dev = asOwner(host, command.dev, task);
  getVq(dev, n);
  const lock = vqMutex(dev.id, n);
  beginCall(host, dev, undefined);
  return runOperation(
    host,
    { kind: 'vhost_set_backend', locals: { task, mm: dev.mm } },
    [
      { do: 'lock', lock, mode: 'W' },
      { do: 'vhost_backend', dev: dev.id, vq: n, active },
      { do: 'unlock', lock, cleanup: true },
      { do: 'vhost_put', dev: dev.id, cleanup: true },
    ],
    null,
  );
}

function requireValid(dev: VhostDev, n: number, vq: Vq, what: Change): void {
  if (what.to === 'num') {
    const { num } = what;
    if (vq.backend) throw new Errno('EBUSY', `vq ${n} has a backend`);
    const isPowerOfTwo = Number.isSafeInteger(num) && num > 0 && num <= MAX_NUM && (num & (num - 1)) === 0;
    if (!isPowerOfTwo) throw new Errno('EINVAL', `num: ${num} is no power of two from 1 to ${MAX_NUM}`);
    return;
  }
  const { flags, avail, used } = what;
  if ((flags & ~VHOST_VRING_F_LOG) !== 0)
    throw new Errno('EOPNOTSUPP', `flags: 0x${flags.toString(16)} has unknown bits`);
  if (avail % 2n !== 0n) throw new Errno('EINVAL', `avail: ${hex(avail)} is not aligned to 2`);
  if (used % 4n !== 0n) throw new Errno('EINVAL', `used: ${hex(used)} is not aligned to 4`);
  if (vq.backend && !areUserAddresses(dev, vq.num, what))
    throw new Errno('EINVAL', 'desc, avail, used: an area is beyond the addresses of user space');
}

export const vringSteps: Handlers<VringStep> = {
  vhost_change(host, _operation, { dev: id, vq: n, change: what }) {
    const dev = devOf(host, id);
    const vq = vqOf(host, id, n);
    requireValid(dev, n, vq, what);
    if (what.to === 'num') vq.num = what.num;
    else {
      const { desc, avail, used, flags } = what;
      Object.assign(vq, { desc, avail, used, log: (flags & VHOST_VRING_F_LOG) !== 0 });
    }
  },

  vhost_setup_uaddr(host, operation, { dev: id, vq: n }) {
    const dev = devOf(host, id);
    const vq = vqOf(host, id, n);
    const before = AREAS.map((area) => ({ ...vq.uaddrs[area] }));
    setupUaddrs(dev, vq);
    vq.prefetched = { desc: null, avail: null, used: null };
    if (dev.switches.count === 'recorded') recount(dev, n);
    if (operation.thread.error === null) return;
    const moved = AREAS.filter(
      (area, i) => vq.uaddrs[area].addr !== before[i]?.addr || vq.uaddrs[area].size !== before[i]?.size,
    );
    if (moved.length > 0)
      report(
        host,
        operation,
        'UADDR_OF_FAILED_IOCTL',
        `the ${moved.join(', ')} of vhost device ${id} vq ${n} move although the ioctl is refused`,
        [],
      );
  },

  vhost_features(host, operation, { dev: id, features }) {
    devOf(host, id).features = features;
    operation.thread.fields = { id, features };
  },

  vhost_backend(host, operation, { dev: id, vq: n, active }) {
    const dev = devOf(host, id);
    const vq = vqOf(host, id, n);
    if (active && !areUserAddresses(dev, vq.num, vq))
      throw new Errno('EFAULT', `vq ${n}: an area is beyond the addresses of user space`);
    vq.backend = active;
    operation.thread.fields = { id, vq: n, backend: active };
  },

  vhost_answer(host, operation, { dev: id, vq: n }) {
    const { num, desc, avail, used } = vqOf(host, id, n);
    operation.thread.fields = { id, vq: n, num, desc, avail, used };
  },
};
