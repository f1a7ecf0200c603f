// A device that can have pages of a process to itself: its notifier, what it has mapped, and the pages that it is being given.

import { Errno, NoSuchObject } from '../errno.ts';
import type { Host } from '../host.ts';
import { hex, isPageAligned, npageOf, pageNumberOf } from '../lib/u64.ts';
import { MAX_EXCLUSIVE_DEVICES, MAX_EXCLUSIVE_PAGES } from '../limits.ts';
import { type LockId, mmapLock } from '../lock.ts';
import type { MmId } from '../mm/mm.ts';
import { insertSteps, newIntervalNotifier, removeSteps } from '../mm/mmu-notifier/interval-commands.ts';
import { newNotifierId, newPlainNotifier } from '../mm/mmu-notifier/register.ts';
import type { SecondaryMapping } from '../mm/mmu-notifier/subscriptions.ts';
import { requireMm } from '../mm/task.ts';
import type { Done, Fields } from '../outcome.ts';
import type { Handlers, Step } from '../steps.ts';
import { runOperation } from '../thread.ts';
import type { ExclusiveCommand } from './exclusive.ts';

/** What the device may do with a page that it has mapped. `atomic`: also what needs the page for itself. */
export type DeviceAccess = 'read' | 'write' | 'atomic';

export interface DeviceMapping {
  pfn: number;
  access: DeviceAccess;
  /** It was made after read_retry() had said that nothing has happened since. */
  checked: boolean;
}

/** Why a device was not given a page that GUP has found. */
export type Reason = 'page_locked' | 'not_anon' | 'replaced' | 'still_mapped';

/** One page of a call. Granted: its lock and one reference are held. */
export interface Slot {
  page: number;
  pfn: number;
  granted: boolean;
  reason: Reason | null;
  /** The entry that was asked for was writable, and stands for the device now. */
  valid: boolean;
  /** An entry of the page was not present: the walk has ended there. */
  failed: boolean;
}

/** What one call of make_device_exclusive_range() gave. */
export interface Grant {
  id: string;
  slots: Slot[];
  /** The call goes on: the operation itself holds the locks and the references. */
  busy: boolean;
}

export interface ExclusiveDevice {
  id: string;
  task: string;
  mm: MmId;
  /** Its notifier, of the same id with 'exclusive-' before it. */
  notifier: string;
  kind: 'interval' | 'plain';
  /** Whether its callback ignores what the device's own calls do. */
  owner_filter: boolean;
  /** What its interval notifier watches. */
  start: bigint;
  length: bigint;
  /** By page. */
  mappings: Map<number, DeviceMapping>;
  grants: Map<string, Grant>;
  next_grant: number;
  leaving: boolean;
}

export interface ExclusiveState {
  devices: Map<string, ExclusiveDevice>;
}

/** Taken in its callbacks, and around every change of its mappings. */
export const deviceMutex = (device: string): LockId => `mutex:exclusive:${device}`;

export function getDevice(host: Host, id: string): ExclusiveDevice {
  if (!host.profile.deviceExclusive)
    throw new Errno('ENODEV', `${host.profile.release} gives no page to a device alone`);
  const device = host.consumers.exclusive.devices.get(id);
  if (device === undefined) throw new NoSuchObject('exclusive device', id);
  return device;
}

/** A device that takes calls. ESRCH: its process has ended. EBUSY: it is being closed. */
export function getOpenDevice(host: Host, id: string): ExclusiveDevice {
  const device = getDevice(host, id);
  if (device.leaving) throw new Errno('EBUSY', `exclusive device '${id}' is being closed`);
  if (!host.mm.mms.has(device.mm)) throw new Errno('ESRCH', `exclusive device '${id}': its process has ended`);
  return device;
}

/** The device of a call that is under way, or of a notifier: it is there until they have ended. */
export const deviceOf = (host: Host, id: string): ExclusiveDevice =>
  host.consumers.exclusive.devices.get(id) as ExclusiveDevice;

export function getGrant(device: ExclusiveDevice, id: string): Grant {
  const grant = device.grants.get(id);
  if (grant === undefined) throw new NoSuchObject(`grant of exclusive device '${device.id}'`, id);
  return grant;
}

/** In whose name the device's calls are made: its task, as long as that lives in the device's mm. */
export const callerOf = (host: Host, { task, mm }: ExclusiveDevice): { task: string | null; mm: MmId } => ({
  task: host.mm.tasks.get(task)?.mm === mm ? task : null,
  mm,
});

/** What the page table must give for a mapping: the page, present or exclusive; for an atomic one, exclusive. */
export const secondaryOf = ({ pfn, access }: DeviceMapping): SecondaryMapping => ({
  pfn,
  writable: access !== 'read',
  exclusive: access === 'atomic' ? 'only' : 'too',
});

/** Pages of a device's mappings in a range; looks at the range or at all mappings, whichever are fewer. */
export function* mappedWithin(
  { mappings }: ExclusiveDevice,
  { start, end }: { start: number; end: number },
): Iterable<[number, DeviceMapping]> {
  if (mappings.size <= end - start) {
    for (const [page, mapping] of mappings) if (page >= start && page < end) yield [page, mapping];
    return;
  }
  for (let page = start; page < end; page++) {
    const mapping = mappings.get(page);
    if (mapping !== undefined) yield [page, mapping];
  }
}

/**
 * The pages of a request, as ioctls of such devices check it.
 * EINVAL: start or length not page aligned; length 0; the end is beyond 2^64. E2BIG: MAX_EXCLUSIVE_PAGES.
 */
export function requirePages(start: bigint, length: bigint): { page: number; npage: number } {
  if (!isPageAligned(start) || !isPageAligned(length))
    throw new Errno('EINVAL', `start ${hex(start)}, length ${hex(length)}: no whole pages`);
  if (length === 0n) throw new Errno('EINVAL', 'length: 0x0');
  if (start + length >= 2n ** 64n)
    throw new Errno('EINVAL', `start ${hex(start)} + length ${hex(length)} is beyond 2^64`);
  const npage = npageOf(length);
  if (npage > MAX_EXCLUSIVE_PAGES)
    throw new Errno('E2BIG', `length: ${npage} pages, a call takes ${MAX_EXCLUSIVE_PAGES} at most`);
  return { page: pageNumberOf(start), npage };
}

export type DeviceStep =
  | { do: 'exclusive_device_opened'; device: ExclusiveDevice; cleanup?: true }
  /** Where its notifier could not be removed, the device stays. */
  | { do: 'exclusive_device_closed'; device: string; cleanup: true };

export const deviceFields = ({
  id,
  task,
  mm,
  notifier,
  kind,
  owner_filter,
  start,
  length,
}: ExclusiveDevice): Fields => ({
  id,
  task,
  mm,
  notifier,
  kind,
  owner_filter,
  start: kind === 'interval' ? start : null,
  length: kind === 'interval' ? length : null,
});

/** EEXIST: the device was opened otherwise. */
function requireSameDevice(made: ExclusiveDevice, asked: ExclusiveDevice): void {
  for (const field of ['mm', 'kind', 'owner_filter', 'start', 'length'] as const)
    if (made[field] !== asked[field])
      throw new Errno('EEXIST', `exclusive device '${made.id}' is open with ${field} ${made[field]}`);
}

/**
 * A process opens the device, which watches its memory from then on.
 * ENODEV: the profile has none. ESRCH: the task has exited. EINVAL: owner_filter of a plain notifier, which sees every event. EEXIST: opened
 * otherwise; its notifier's id is taken. ENOSPC: MAX_EXCLUSIVE_DEVICES. EOVERFLOW: length 0, or start + length passes the end of the
 * space.
 */
export function putExclusiveDevice(
  host: Host,
  command: Extract<ExclusiveCommand, { op: 'put_exclusive_device' }>,
): Done {
  const { device: id, task, kind, owner_filter, start, length } = command;
  const { devices } = host.consumers.exclusive;
  if (!host.profile.deviceExclusive)
    throw new Errno('ENODEV', `${host.profile.release} gives no page to a device alone`);
  const { id: mm } = requireMm(host, task);
  if (kind === 'plain' && owner_filter)
    throw new Errno('EINVAL', 'owner_filter: a plain notifier has no sequence that its own events could spoil');
  const device: ExclusiveDevice = {
    id,
    task,
    mm,
    notifier: `exclusive-${id}`,
    kind,
    owner_filter,
    start,
    length,
    mappings: new Map(),
    grants: new Map(),
    next_grant: 1,
    leaving: false,
  };
  const made = devices.get(id);
  if (made !== undefined) {
    requireSameDevice(made, device);
    return { ret: 0, created: false, fields: deviceFields(made) };
  }
  if (devices.size >= MAX_EXCLUSIVE_DEVICES)
    throw new Errno('ENOSPC', `exclusive devices: the host has ${MAX_EXCLUSIVE_DEVICES}, the most it can hold`);
  const done = runOperation(
    host,
    { kind: 'put_exclusive_device', locals: { task, mm } },
    subscribe(host, device),
    null,
  );
  return { ...done, created: true };
}

function subscribe(host: Host, device: ExclusiveDevice): Step[] {
  const { mm, kind, start, length } = device;
  const id = newNotifierId(host, device.notifier);
  const handler = { kind: 'consumer', consumer: 'exclusive', of: device.id } as const;
  const opened: Step = { do: 'exclusive_device_opened', device };
  if (kind === 'interval') {
    const notifier = newIntervalNotifier(id, { mm, start, length, handler });
    host.mm.mmu_notifiers.set(id, notifier);
    return insertSteps(notifier, length, [opened]);
  }
  const callbacks = ['release', 'invalidate_range_start'] as const;
  host.mm.mmu_notifiers.set(id, newPlainNotifier(id, { mm, callbacks: [...callbacks], handler }, null));
  const lock = mmapLock(mm);
  return [
    { do: 'lock', lock, mode: 'W' },
    { do: 'register', mm, notifier: id, interrupted: false },
    opened,
    { do: 'unlock', lock, cleanup: true },
    { do: 'forget_unregistered', notifier: id, cleanup: true },
  ];
}

/** Whether a call of the device goes on. */
const isBusy = (host: Host, device: string): boolean =>
  [...host.operations.values()].some(
    ({ state, thread }) =>
      state !== 'done' && thread?.steps.some((step) => 'at' in step && isOf(step.at, device)) === true,
  );

const isOf = (at: unknown, device: string): boolean =>
  typeof at === 'object' && at !== null && 'device' in at && at.device === device;

/**
 * The device is closed: its notifier is removed, which may wait until the running invalidations end, and its mappings are gone.
 * EBUSY: a call of it goes on; it holds grants; it is being closed. EDEADLK: called inside a callback.
 */
export function deleteExclusiveDevice(
  host: Host,
  { device: id }: Extract<ExclusiveCommand, { op: 'delete_exclusive_device' }>,
): Done {
  const device = getDevice(host, id);
  if (device.leaving || isBusy(host, id)) throw new Errno('EBUSY', `exclusive device '${id}': a call of it goes on`);
  if (device.grants.size > 0)
    throw new Errno('EBUSY', `exclusive device '${id}' holds ${device.grants.size} grants`, {
      hint: 'drop them first',
    });
  const { kind, notifier } = device;
  device.leaving = true;
  const steps: Step[] =
    kind === 'interval'
      ? removeSteps(notifier)
      : [{ do: 'unregister', notifier }, { do: 'synchronize_srcu' }, { do: 'unregistered', notifier }];
  return runOperation(
    host,
    { kind: 'delete_exclusive_device', locals: callerOf(host, device) },
    [...steps, { do: 'exclusive_device_closed', device: id, cleanup: true }],
    null,
  );
}

export const deviceSteps: Handlers<DeviceStep> = {
  exclusive_device_opened(host, operation, { device }) {
    host.consumers.exclusive.devices.set(device.id, device);
    operation.thread.fields = deviceFields(device);
  },

  exclusive_device_closed(host, { thread }, { device: id }) {
    const device = deviceOf(host, id);
    if (thread.error === null) host.consumers.exclusive.devices.delete(id);
    else device.leaving = false;
    thread.fields = { id };
  },
};
