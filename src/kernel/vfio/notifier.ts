// Models the vfio notifier registration of drivers/vfio/vfio.c and the blocking chain of kernel/notifier.c.

import type { Command, Delivery, NotifierSpec } from '../command.ts';
import { Errno, NoSuchObject } from '../errno.ts';
import { type Host, splat, trace } from '../host.ts';
import { MAX_NOTIFIERS } from '../limits.ts';
import { mmuNotificationTimeout } from '../mm/mmu-notifier/ack.ts';
import { block, containerOf, type Operation, requireRoomForOperation, settle, startOperation } from '../operation.ts';
import type { Done, Notification } from '../outcome.ts';
import { softLockup } from './bug.ts';
import { getContainer } from './container.ts';
import { type Device, getDevice, groupOf } from './device.ts';
import { registerDevice, unregisterDevice } from './device-open.ts';
import { dropContainerUser, type Group, holdContainerUser, vfioGroupAddContainerUser } from './group.ts';
import type { Iommu } from './iommu.ts';
import { blocksOf, chainRegister, chainUnregister, EndlessChain, type NotifierChain } from './notifier-chain.ts';
import { continueUnmapLoop, continueUnmapWalk, startGrantedWalk } from './unmap-walk.ts';

export const NOTIFY_DONE = 0;
export const NOTIFY_OK = 1;
/** A callback result with this bit ends the walk: later blocks are not called. */
export const NOTIFY_STOP_MASK = 0x8000;
export const NOTIFY_STOP = 0x8001;
export const NOTIFY_BAD = 0x8002;

/** VFIO_IOMMU_NOTIFY and VFIO_GROUP_NOTIFY. */
const IOMMU_NOTIFY = 0;
const GROUP_NOTIFY = 1;

/** struct notifier_block of a driver: one object, whichever device it is registered through. */
export interface NotifierBlock {
  id: string;
  /** The device that it was registered through last. */
  device: string;
  type: number;
  priority: number;
  delivery: Delivery;
}

/** A notifier call whose handler has not answered. */
export interface PendingNotification {
  notification: Notification;
  /** The unmap that waits for it. */
  operation: string;
  delivery: Delivery;
  /** When it was emitted, in milliseconds since the epoch. */
  at: number;
}

/** Locals of a registration that waits for the chain's lock. */
export interface RegistrationLocals {
  container: string;
  /** Group of the calling device: one of its users while the call waits. */
  group: string;
  device: string;
  notifier: string;
}

type Register = Extract<Command, { op: 'register_notifier' }>;
type Unregister = Extract<Command, { op: 'unregister_notifier' }>;

function getNotifier(host: Host, id: string): NotifierBlock {
  const block = host.vfio.notifiers.get(id);
  if (block === undefined) throw new NoSuchObject('notifier', id);
  return block;
}

/**
 * vfio_register_notifier(). Fields: id, events_left (the caller's events word after the call, in refusals too).
 * EIO container dead; EINVAL events 0; ENODEV device without group; EINVAL type; EINVAL group without container or iommu;
 * EINVAL event bits left over; EDEADLK from inside a callback of the same chain; EBUSY it must wait and MAX_PARKED_OPERATIONS
 * do; ENOSPC MAX_NOTIFIERS.
 */
export function registerNotifier(host: Host, { device: id, notifier: spec }: Register): Done {
  const device = getDevice(host, id);
  const group = groupOf(host, device);
  if (host.profile.listener === 'dma_unmap') return setDmaUnmapOp(host, device, group, spec);
  const word = { events: spec.events };
  try {
    const { chain, bound } = chainToRegister(host, device, group, spec, word);
    requireMayWait(host, chain, 'register_notifier');
    const block = adoptBlock(host, device, spec);
    const done = { ret: 0, created: true, fields: { id: block.id, events_left: word.events } };
    return underChainLock(host, chain, 'register_notifier', block, bound, () => done);
  } catch (error) {
    if (error instanceof Errno) error.extra.left = { events_left: word.events };
    throw error;
  }
}

const clearBit0 = (events: number): number => (events % 2 === 0 ? events : events - 1);

/** The checks of vfio_register_notifier() down to the chain; clears the known bit of the caller's events word on the way. */
function chainToRegister(
  host: Host,
  device: Device,
  group: Group | null,
  spec: NotifierSpec,
  word: { events: number },
): { chain: NotifierChain; bound: Group } {
  if (spec.events === 0) throw new Errno('EINVAL', 'events is 0');
  if (group === null) throw new Errno('ENODEV', `device '${device.id}' belongs to no vfio group`);
  const leftOver = (): void => {
    word.events = clearBit0(word.events);
    if (word.events !== 0) throw new Errno('EINVAL', `events has unknown bits: ${word.events} is left over`);
  };
  if (spec.type === IOMMU_NOTIFY) {
    const { iommu } = requireContainerUser(host, group);
    leftOver();
    return { chain: iommu.notifier, bound: group };
  }
  if (spec.type === GROUP_NOTIFY) {
    leftOver();
    requireContainerUser(host, group);
    return { chain: group.notifier, bound: group };
  }
  throw new Errno('EINVAL', `type ${spec.type} is neither IOMMU (0) nor GROUP (1)`);
}

/** vfio_group_add_container_user() where only success matters: whatever it says is EINVAL. */
function requireContainerUser(host: Host, group: Group): { iommu: Iommu } {
  if (group.kind === 'noiommu') throw new Errno('EINVAL', `group '${group.id}' is noiommu: it has no notifiers`);
  return vfioGroupAddContainerUser(host, group);
}

/** The block that a registration names, made or, unless it is on a chain, initialised anew. */
function adoptBlock(host: Host, device: Device, spec: NotifierSpec): NotifierBlock {
  const { notifiers } = host.vfio;
  const id = spec.id ?? `notifier-${host.seq}`;
  const existing = notifiers.get(id);
  if (existing !== undefined && isRegistered(host, id)) return existing;
  if (existing === undefined && notifiers.size >= MAX_NOTIFIERS)
    throw new Errno('ENOSPC', `notifiers: the host has ${MAX_NOTIFIERS}, the most it can hold`);
  const block = { id, device: device.id, type: spec.type, priority: spec.priority, delivery: spec.delivery };
  notifiers.set(id, block);
  return block;
}

/** Whether a block is on any chain. */
export function isRegistered({ vfio }: Host, id: string): boolean {
  for (const { iommu } of vfio.containers.values())
    if (iommu !== null && blocksOf(iommu.notifier).includes(id)) return true;
  for (const { notifier } of vfio.groups.values()) if (blocksOf(notifier).includes(id)) return true;
  return false;
}

/**
 * From 6.0 on: the driver of a device gets its dma_unmap op, and is told of unmaps from now on if the device is open.
 * EOPNOTSUPP type or priority, or a driver that never has one; EEXIST it has one, or the id is another device's; EDEADLK.
 */
function setDmaUnmapOp(host: Host, device: Device, group: Group | null, spec: NotifierSpec): Done {
  if (spec.explicit === true || spec.type !== IOMMU_NOTIFY || spec.priority !== 0)
    throw new Errno('EOPNOTSUPP', 'type and priority are of notifier blocks, which this kernel does not have', {
      hint: 'from 6.0 on a driver has one dma_unmap op; leave type and priority away',
    });
  if (!device.dma_unmap) throw new Errno('EOPNOTSUPP', `the driver of device '${device.id}' has no dma_unmap op`);
  if (device.listener !== null)
    throw new Errno('EEXIST', `device '${device.id}' has a dma_unmap op: '${device.listener}'`);
  const owner = [...host.vfio.devices.values()].find(({ listener }) => listener !== null && listener === spec.id);
  if (owner !== undefined) throw new Errno('EEXIST', `'${spec.id}' is the dma_unmap op of device '${owner.id}'`);
  const { id } = adoptBlock(host, device, spec);
  device.listener = id;
  try {
    if (isListed(device, group)) {
      const { container, iommu } = vfioGroupAddContainerUser(host, group);
      registerDevice(host, container, iommu, device);
    }
  } catch (error) {
    device.listener = null;
    throw error;
  }
  return { ret: 0, created: true, fields: { id, events_left: 0 } };
}

/** Whether an op of the device would be on its container's list: it is open, and the back end keeps one. */
const isListed = (device: Device, group: Group | null): group is Group =>
  device.open_count > 0 && group !== null && group.kind !== 'noiommu';

/** Takes the op away again. ENOENT it is not the device's; EDEADLK. */
function clearDmaUnmapOp(host: Host, device: Device, group: Group | null, id: string): Done {
  if (device.listener !== id) throw new Errno('ENOENT', `notifier '${id}' is not registered`);
  if (isListed(device, group)) {
    const { container, iommu } = vfioGroupAddContainerUser(host, group);
    unregisterDevice(host, container, iommu, device);
  }
  device.listener = null;
  return { ret: 0, fields: { id } };
}

/**
 * vfio_unregister_notifier(). Waits until a running callback of the chain has returned.
 * EIO; ENODEV; EINVAL type; EINVAL group without container or iommu; EDEADLK from inside a callback; EBUSY as for a
 * registration; ENOENT not on the chain.
 */
export function unregisterNotifier(host: Host, { device: id, notifier, type }: Unregister): Done {
  const device = getDevice(host, id);
  const block = getNotifier(host, notifier);
  const group = groupOf(host, device);
  if (host.profile.listener === 'dma_unmap') return clearDmaUnmapOp(host, device, group, notifier);
  if (group === null) throw new Errno('ENODEV', `device '${id}' belongs to no vfio group`);
  const kind = type ?? block.type;
  if (kind !== IOMMU_NOTIFY && kind !== GROUP_NOTIFY)
    throw new Errno('EINVAL', `type ${kind} is neither IOMMU (0) nor GROUP (1)`);
  const { iommu } = requireContainerUser(host, group);
  const chain = kind === IOMMU_NOTIFY ? iommu.notifier : group.notifier;
  requireMayWait(host, chain, 'unregister_notifier');
  return underChainLock(host, chain, 'unregister_notifier', block, group, () => ({ ret: 0, fields: { id: notifier } }));
}

/** The operations whose callbacks the current call is made in, innermost first. */
export function enclosingOperations(host: Host): string[] {
  const enclosing: string[] = [];
  let notification = host.call.notification;
  while (notification !== null) {
    const pending = host.vfio.notifications.get(notification);
    if (pending === undefined) break;
    enclosing.push(pending.operation);
    notification = host.operations.get(pending.operation)?.notification ?? null;
  }
  return enclosing;
}

/** EDEADLK: the call is made inside a callback of a walk that holds the lock it needs, and nobody else can release it. */
export function refuseDeadlock(host: Host, chain: NotifierChain, wants: string): void {
  const holder = enclosingOperations(host).find((id) => chain.readers.includes(id));
  if (holder === undefined) return;
  const cycle = `${wants} waits for notifier->rwsem; ${holder} holds it and waits for ${host.call.notification}; its handler waits for ${wants}`;
  splat(host, 'DEADLOCK', 'blocking_notifier_chain_register', `listener-lock: ${cycle}`, [
    'blocking_notifier_call_chain',
    'vfio_dma_do_unmap',
  ]);
  throw new Errno('EDEADLK', `${wants} inside the handler of ${host.call.notification} would deadlock: ${cycle}`, {
    hint: 'let the handler return first; the cycle is in dmesg',
  });
}

const isFree = (chain: NotifierChain): boolean => chain.readers.length === 0 && chain.waiters.length === 0;

/** EDEADLK: the call would wait for itself. EBUSY: it would wait, and MAX_PARKED_OPERATIONS do. */
function requireMayWait(host: Host, chain: NotifierChain, wants: string): void {
  if (isFree(chain)) return;
  refuseDeadlock(host, chain, wants);
  requireRoomForOperation(host);
}

/** Takes the chain's lock for writing, changes the chain, and is done; or waits as an operation until the walkers are gone. */
function underChainLock(
  host: Host,
  chain: NotifierChain,
  kind: 'register_notifier' | 'unregister_notifier',
  notifier: NotifierBlock,
  group: Group,
  done: () => Done,
): Done {
  const container = group.container as string;
  if (isFree(chain)) {
    changeChain(host, chain, kind, notifier.id, container);
    return done();
  }
  const locals = { container, group: group.id, device: notifier.device, notifier: notifier.id };
  const operation = startOperation(host, { kind, locals });
  holdContainerUser(host, group.id);
  waitForChain(host, chain, operation);
  return { ...done(), parked: operation.id };
}

/** ENOENT. EIO: the chain is a loop, the caller spins for ever. */
function changeChain(
  host: Host,
  chain: NotifierChain,
  kind: 'register_notifier' | 'unregister_notifier',
  id: string,
  container: string,
): void {
  try {
    if (kind === 'register_notifier') chainRegister(host, chain, id);
    else chainUnregister(chain, id);
  } catch (error) {
    throw error instanceof EndlessChain ? softLockup(host, getContainer(host, container), kind) : error;
  }
}

/** Takes the chain's lock for reading. False: a writer waits, so the walk waits behind it. */
export function enterChain(host: Host, chain: NotifierChain, operation: Operation): boolean {
  if (chain.waiters.length === 0) {
    chain.readers.push(operation.id);
    return true;
  }
  waitForChain(host, chain, operation);
  return false;
}

function waitForChain(host: Host, chain: NotifierChain, operation: Operation): void {
  const lock = `notifier_chain:${containerOf(operation)}`;
  chain.waiters.push(operation.id);
  block(host, operation, 'wait_chain_lock', lock);
  trace(host, 'lock', operation.id, { lock, state: 'waits' });
}

/** Drops a reader's lock; when it was the last, those who wait get it in order of arrival. */
export function leaveChain(host: Host, chain: NotifierChain, operation: Operation): void {
  chain.readers = chain.readers.filter((id) => id !== operation.id);
  grantChain(host, chain);
}

const traceGranted = (host: Host, operation: Operation): void =>
  trace(host, 'lock', operation.id, { lock: `notifier_chain:${containerOf(operation)}`, state: 'granted' });

/**
 * Gives the lock to those who wait, in order of arrival, until one of them must go on waiting. A walk that is over at once
 * has dropped the lock again; its unmap goes on when all who got the lock after it have had it, the last one first.
 */
function grantChain(host: Host, chain: NotifierChain): void {
  const over: { operation: Extract<Operation, { kind: 'unmap_dma' }>; iommu: Iommu }[] = [];
  for (let id = chain.waiters[0]; id !== undefined; id = chain.waiters[0]) {
    const operation = host.operations.get(id);
    if (operation === undefined || operation.state === 'done') {
      chain.waiters.shift();
    } else if (operation.kind === 'unmap_dma') {
      chain.waiters.shift();
      chain.readers.push(id);
      traceGranted(host, operation);
      const iommu = host.vfio.containers.get(operation.locals.container)?.iommu as Iommu;
      if (!startGrantedWalk(host, operation)) continue;
      chain.readers = chain.readers.filter((reader) => reader !== id);
      over.push({ operation, iommu });
    } else if (operation.kind === 'register_notifier' || operation.kind === 'unregister_notifier') {
      if (chain.readers.length > 0) break;
      chain.waiters.shift();
      traceGranted(host, operation);
      const { kind, locals } = operation;
      settle(host, operation, (): Done => {
        changeChain(host, chain, kind, locals.notifier, locals.container);
        if (kind === 'unregister_notifier') return { ret: 0, fields: { id: locals.notifier } };
        return { ret: 0, created: true, fields: { id: locals.notifier, events_left: 0 } };
      });
      dropContainerUser(host, locals.group);
    } else break;
  }
  for (const { operation, iommu } of over.reverse()) continueUnmapLoop(host, operation, iommu);
}

/** The pending notification of a device. NOT_FOUND: never existed; EIO: container dead; EBUSY: answered already, or timed out. */
function getPending(host: Host, id: string, device: Device): PendingNotification {
  const pending = host.vfio.notifications.get(id);
  if (pending !== undefined && pending.notification.device === device.id) return pending;
  const number = /^notification-([1-9]\d*)$/.exec(id)?.[1];
  if (pending !== undefined || number === undefined || Number(number) >= host.vfio.next_notification)
    throw new NoSuchObject('notification', id);
  groupOf(host, device);
  throw new Errno('EBUSY', `notification '${id}' was answered already, timed out, or died with its container`, {
    hint: 'the kernel went on as if the handler had returned',
  });
}

/** The handler has returned `ret`; the walk goes on. NOT_FOUND; EIO; EBUSY late. */
export function ackNotification(host: Host, command: Extract<Command, { op: 'ack_notification' }>): Done {
  const pending = getPending(host, command.notification, getDevice(host, command.device));
  const operation = host.operations.get(pending.operation) as Operation;
  continueUnmapWalk(host, operation, {
    notification: command.notification,
    ret: command.ret,
    reason: command.reason,
    detail: command.detail,
  });
  return { ret: 0, fields: { id: command.notification } };
}

/** notifier_timeout_ms has passed: the kernel goes on as if the handler had returned NOTIFY_DONE, or a callback of an mmu notifier what it returns by default. Nothing when it was answered. */
export function notificationTimeout(
  host: Host,
  { notification }: Extract<Command, { op: 'notification_timeout' }>,
): Done {
  if (host.mm.notifications.has(notification)) return mmuNotificationTimeout(host, notification);
  const pending = host.vfio.notifications.get(notification);
  const operation = pending === undefined ? undefined : host.operations.get(pending.operation);
  if (operation !== undefined)
    continueUnmapWalk(host, operation, { notification, ret: NOTIFY_DONE, reason: 'timeout', detail: null });
  return { ret: 0, fields: {} };
}
