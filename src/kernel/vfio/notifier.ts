// Models the vfio notifier registration of drivers/vfio/vfio.c and the blocking chain of kernel/notifier.c.

import type { Command, Delivery, NotifierSpec } from '../command.ts';
import { Errno, NoSuchObject } from '../errno.ts';
import { type Host, splat, trace } from '../host.ts';
import { MAX_NOTIFIERS } from '../limits.ts';
import { block, type Operation, requireRoomForOperation, settle, startOperation } from '../operation.ts';
import type { Done, Notification } from '../outcome.ts';
import { type Device, getDevice, groupOf } from './device.ts';
import { dropContainerUser, type Group, holdContainerUser, vfioGroupAddContainerUser } from './group.ts';
import type { Iommu, NotifierChain } from './iommu.ts';
import { continueUnmapLoop, continueUnmapWalk, startGrantedWalk } from './unmap.ts';

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
    const { iommu } = vfioGroupAddContainerUser(host, group);
    leftOver();
    return { chain: iommu.notifier, bound: group };
  }
  if (spec.type === GROUP_NOTIFY) {
    leftOver();
    vfioGroupAddContainerUser(host, group);
    return { chain: group.notifier, bound: group };
  }
  throw new Errno('EINVAL', `type ${spec.type} is neither IOMMU (0) nor GROUP (1)`);
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
export function isRegistered(host: Host, id: string): boolean {
  for (const { iommu } of host.vfio.containers.values()) if (iommu?.notifier.blocks.includes(id)) return true;
  for (const { notifier } of host.vfio.groups.values()) if (notifier.blocks.includes(id)) return true;
  return false;
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
  if (group === null) throw new Errno('ENODEV', `device '${id}' belongs to no vfio group`);
  const kind = type ?? block.type;
  if (kind !== IOMMU_NOTIFY && kind !== GROUP_NOTIFY)
    throw new Errno('EINVAL', `type ${kind} is neither IOMMU (0) nor GROUP (1)`);
  const { iommu } = vfioGroupAddContainerUser(host, group);
  const chain = kind === IOMMU_NOTIFY ? iommu.notifier : group.notifier;
  requireMayWait(host, chain, 'unregister_notifier');
  return underChainLock(host, chain, 'unregister_notifier', block, group, () => ({ ret: 0, fields: { id: notifier } }));
}

/** Models notifier_chain_register(): by descending priority of the blocks, equal ones in order of registration. */
function chainRegister(host: Host, chain: NotifierChain, id: string): void {
  const { notifiers } = host.vfio;
  const priority = notifiers.get(id)?.priority ?? 0;
  let at = 0;
  for (; at < chain.blocks.length; at++) {
    const other = chain.blocks[at] as string;
    if (other === id) {
      splat(host, 'WARN', 'notifier_chain_register', `listener-registered-twice: double register of ${id}`, [
        'blocking_notifier_chain_register',
        'vfio_register_notifier',
      ]);
      return;
    }
    if (priority > (notifiers.get(other)?.priority ?? 0)) break;
  }
  chain.blocks.splice(at, 0, id);
}

/** Models notifier_chain_unregister(). ENOENT. */
function chainUnregister(chain: NotifierChain, id: string): void {
  const at = chain.blocks.indexOf(id);
  if (at < 0) throw new Errno('ENOENT', `notifier '${id}' is not registered`);
  chain.blocks.splice(at, 1);
}

/** The operations whose callbacks the current call is made in, innermost first. */
function enclosingOperations(host: Host): string[] {
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
  if (isFree(chain)) {
    changeChain(host, chain, kind, notifier.id);
    return done();
  }
  const locals = {
    container: group.container as string,
    group: group.id,
    device: notifier.device,
    notifier: notifier.id,
  };
  const operation = startOperation(host, { kind, locals });
  holdContainerUser(host, group.id);
  waitForChain(host, chain, operation);
  return { ...done(), parked: operation.id };
}

function changeChain(
  host: Host,
  chain: NotifierChain,
  kind: 'register_notifier' | 'unregister_notifier',
  id: string,
): void {
  if (kind === 'register_notifier') chainRegister(host, chain, id);
  else chainUnregister(chain, id);
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
  const lock = `notifier_chain:${operation.locals.container}`;
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
  trace(host, 'lock', operation.id, { lock: `notifier_chain:${operation.locals.container}`, state: 'granted' });

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
        changeChain(host, chain, kind, locals.notifier);
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

/** notifier_timeout_ms has passed: the kernel goes on as if the handler had returned NOTIFY_DONE. Nothing when it was answered. */
export function notificationTimeout(
  host: Host,
  { notification }: Extract<Command, { op: 'notification_timeout' }>,
): Done {
  const pending = host.vfio.notifications.get(notification);
  const operation = pending === undefined ? undefined : host.operations.get(pending.operation);
  if (operation !== undefined)
    continueUnmapWalk(host, operation, { notification, ret: NOTIFY_DONE, reason: 'timeout', detail: null });
  return { ret: 0, fields: {} };
}
