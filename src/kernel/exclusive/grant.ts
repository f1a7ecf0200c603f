// What a driver does with pages that it was given: it keeps their locks and references, maps them for its device, and drops both.

import { Errno } from '../errno.ts';
import { type Host, trace } from '../host.ts';
import { addressOf } from '../lib/u64.ts';
import { MAX_DEVICE_MAPPINGS, MAX_EXCLUSIVE_GRANTS } from '../limits.ts';
import { type HolderId, handLockTo, mmapLock, pageLock, releaseHolder } from '../lock.ts';
import { anyMm } from '../mm/mm.ts';
import { getMmuNotifier } from '../mm/mmu-notifier/call.ts';
import { getInterval } from '../mm/mmu-notifier/interval.ts';
import { checkWindow, isStale } from '../mm/mmu-notifier/secondary.ts';
import { under } from '../mm/rmap.ts';
import type { Done, Fields } from '../outcome.ts';
import type { Handlers } from '../steps.ts';
import { runOperation, runThreads, type ThreadOperation } from '../thread.ts';
import { report } from '../violation.ts';
import {
  callerOf,
  type DeviceMapping,
  deviceMutex,
  deviceOf,
  type ExclusiveDevice,
  type Grant,
  getDevice,
  getGrant,
  getOpenDevice,
  requirePages,
  type Slot,
  secondaryOf,
} from './device.ts';
import type { ExclusiveCommand } from './exclusive.ts';
import { type Asked, makeExclusiveSteps } from './make.ts';

export type GrantStep =
  /** The locks and references of the granted pages go over to the grant. */
  | { do: 'exclusive_keep'; at: Asked; cleanup?: true }
  /** Under the device's mutex. `sequence` null: whatever has happened since. */
  | { do: 'exclusive_program'; at: { device: string }; grant: string; sequence: number | null; cleanup?: true };

export const holderOf = (device: string, grant: string): HolderId => `grant:${device}/${grant}`;

const granted = ({ slots }: Grant): Slot[] => slots.filter((slot) => slot.granted);

export const slotFields = ({ page, pfn, granted: isGranted, reason }: Slot): Fields => ({
  addr: addressOf(page),
  granted: isGranted,
  reason,
  pfn: isGranted ? pfn : null,
});

/** ENOSPC: MAX_EXCLUSIVE_GRANTS. */
export function requireRoomForGrant({ consumers: { exclusive } }: Host): void {
  let grants = 0;
  for (const device of exclusive.devices.values()) grants += device.grants.size;
  if (grants >= MAX_EXCLUSIVE_GRANTS)
    throw new Errno('ENOSPC', `grants: the host has ${MAX_EXCLUSIVE_GRANTS}, the most it can hold`);
}

/** An id of a grant that the device does not have. */
export function newGrantId(device: ExclusiveDevice): string {
  let id: string;
  do id = `grant-${device.next_grant++}`;
  while (device.grants.has(id));
  return id;
}

/**
 * make_device_exclusive_range(). ret: pages that GUP has found, granted or not. Fields: grant (null where nothing is granted),
 * slots. The grant holds the locks and references of its pages until it is dropped.
 * ENODEV. EBUSY, ESRCH: the device. EINVAL, E2BIG: the range. EEXIST: the grant. ENOSPC: MAX_EXCLUSIVE_GRANTS. Then, where not even the first
 * page is found: EFAULT: no area, or one that may not be written; ENOMEM.
 */
export function makeDeviceExclusive(
  host: Host,
  command: Extract<ExclusiveCommand, { op: 'make_device_exclusive' }>,
): Done {
  const device = getOpenDevice(host, command.device);
  const { page, npage } = requirePages(command.start, command.length);
  if (command.grant !== undefined && device.grants.has(command.grant))
    throw new Errno('EEXIST', `grant '${command.grant}' of exclusive device '${device.id}' is held`);
  requireRoomForGrant(host);
  const { mm } = device;
  const at: Asked = { device: device.id, grant: command.grant ?? newGrantId(device), mm, page, npage };
  return runOperation(
    host,
    { kind: 'make_device_exclusive', locals: callerOf(host, device) },
    under([mmapLock(mm)], 'R', makeExclusiveSteps(at, [{ do: 'exclusive_keep', at }])),
    command.stop_at ?? null,
  );
}

/** EBUSY: the call that makes it goes on. */
function getIdleGrant(device: ExclusiveDevice, id: string): Grant {
  const grant = getGrant(device, id);
  if (grant.busy) throw new Errno('EBUSY', `grant '${id}' of exclusive device '${device.id}' is being made`);
  return grant;
}

/** unlock_page() and put_page() of every page: from here on the next access of a CPU takes the page back. EBUSY: it is being made. */
export function dropExclusiveGrant(
  host: Host,
  { device: id, grant: name }: Extract<ExclusiveCommand, { op: 'drop_exclusive_grant' }>,
): Done {
  const device = getDevice(host, id);
  const grant = getIdleGrant(device, name);
  const holder = holderOf(id, name);
  device.grants.delete(name);
  for (const { pfn } of granted(grant)) {
    const lock = pageLock(pfn);
    trace(host, 'lock', holder, { lock, mode: 'W', state: 'released' });
    releaseHolder(host, lock, holder);
    host.mm.pages.put(pfn, host.seq);
  }
  runThreads(host);
  return { ret: 0, fields: { id: name } };
}

/**
 * The driver maps the granted pages for atomic accesses of its device, under its mutex. With `sequence`, what read_begin() has
 * answered before the call that granted them, it looks first whether it has collided since; without, it does not look.
 * ret: pages mapped. Fields: collided.
 * EBUSY, ESRCH: the device. EBUSY: the grant is being made. EINVAL: a sequence of a device with a plain notifier. ENOMEM: MAX_DEVICE_MAPPINGS.
 */
export function mapExclusiveGrant(
  host: Host,
  { device: id, grant, sequence, stop_at }: Extract<ExclusiveCommand, { op: 'map_exclusive_grant' }>,
): Done {
  const device = getOpenDevice(host, id);
  getIdleGrant(device, grant);
  if (sequence !== undefined && device.kind === 'plain')
    throw new Errno('EINVAL', `sequence: exclusive device '${id}' has a plain notifier`);
  return runOperation(
    host,
    { kind: 'map_exclusive_grant', locals: callerOf(host, device) },
    [
      { do: 'phase', phase: 'before_insert' },
      { do: 'lock', lock: deviceMutex(id), mode: 'W' },
      { do: 'exclusive_program', at: { device: id }, grant, sequence: sequence ?? null },
      { do: 'unlock', lock: deviceMutex(id), cleanup: true },
    ],
    stop_at ?? null,
  );
}

/** Maps a page for the device. Precondition: the device's mutex is held. ENOMEM: MAX_DEVICE_MAPPINGS. */
export function addMapping(
  host: Host,
  operation: ThreadOperation,
  device: ExclusiveDevice,
  page: number,
  mapping: DeviceMapping,
): void {
  const { id, mappings, notifier } = device;
  if (mappings.size >= MAX_DEVICE_MAPPINGS && !mappings.has(page))
    throw new Errno('ENOMEM', `exclusive device '${id}' has mapped ${MAX_DEVICE_MAPPINGS} pages, the most it can`);
  mappings.set(page, mapping);
  checkWindow(host, operation, getMmuNotifier(host, notifier), page);
  if (isStale(anyMm(host, device.mm), page, secondaryOf(mapping)))
    report(
      host,
      operation,
      'STALE_SECONDARY',
      `${notifier} maps page ${mapping.pfn} for ${mapping.access} accesses, which the page table does not give any more`,
      [],
    );
}

/** Maps what was granted. Returns how many pages. */
export function programGrant(
  host: Host,
  operation: ThreadOperation,
  device: ExclusiveDevice,
  grant: Grant,
  checked: boolean,
): number {
  const slots = granted(grant);
  for (const { page, pfn } of slots) addMapping(host, operation, device, page, { pfn, access: 'atomic', checked });
  return slots.length;
}

export const grantSteps: Handlers<GrantStep> = {
  exclusive_keep(host, operation, { at }) {
    const { thread } = operation;
    const device = deviceOf(host, at.device);
    const grant = getGrant(device, at.grant);
    const given = granted(grant);
    for (const { pfn } of given) {
      handLockTo(host, operation, pageLock(pfn), holderOf(at.device, at.grant));
      thread.pages.splice(thread.pages.lastIndexOf(pfn), 1);
    }
    grant.busy = false;
    if (given.length === 0) device.grants.delete(grant.id);
    thread.fields = { grant: given.length === 0 ? null : grant.id, slots: grant.slots.map(slotFields) };
  },

  exclusive_program(host, operation, { at: { device: id }, grant: name, sequence }) {
    const device = deviceOf(host, id);
    const { thread } = operation;
    const collided = sequence !== null && getInterval(host, device.notifier).invalidate_seq !== sequence;
    thread.fields = { collided };
    // While the mutex was waited for, the grant may have been dropped.
    const grant = device.grants.get(name);
    if (collided || grant === undefined) return;
    thread.ret = programGrant(host, operation, device, grant, sequence !== null);
  },
};

/** Page references that grants hold: one for each granted page. While a call goes on, its thread has them. */
export function* grantReferences({ consumers: { exclusive } }: Host): Iterable<number> {
  for (const { grants } of exclusive.devices.values())
    for (const grant of grants.values()) if (!grant.busy) for (const { pfn } of granted(grant)) yield pfn;
}
