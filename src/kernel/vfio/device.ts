// Models struct vfio_device of an mdev: a vendor driver's instance, opened through its group.

import type { Command, NotifierSpec } from '../command.ts';
import { Errno, NoSuchObject } from '../errno.ts';
import type { Host } from '../host.ts';
import { MAX_DEVICES } from '../limits.ts';
import type { Done } from '../outcome.ts';
import { containerOf, getContainer, putContainer, setIommu } from './container.ts';
import { registerDevice, unregisterDevice } from './device-open.ts';
import {
  type Group,
  getGroup,
  putGroup,
  requireGroupFd,
  requireMayDissolve,
  setContainer,
  vfioGroupAddContainerUser,
  vfioGroupTryDissolveContainer,
} from './group.ts';
import { registerNotifier } from './notifier.ts';

export interface Device {
  id: string;
  group: string | null;
  /** File descriptors of the device that are open. */
  open_count: number;
  /** Whether its driver can have a dma_unmap op (6.0 and later). */
  dma_unmap: boolean;
  /** The notifier that is its dma_unmap op; null: the driver has none. */
  listener: string | null;
  /** The body that the shortcut made it with; null when it was made step by step. */
  shortcut: { container: string; notifier: NotifierSpec | null } | null;
}

export function getDevice(host: Host, id: string): Device {
  const device = host.vfio.devices.get(id);
  if (device === undefined) throw new NoSuchObject('device', id);
  return device;
}

/** The group of a device, after the container behind it was found alive. EIO. */
export function groupOf(host: Host, device: Device): Group | null {
  if (device.group === null) return null;
  const group = getGroup(host, device.group);
  containerOf(host, group.container);
  return group;
}

function addDevice(host: Host, device: Device): Done {
  if (host.vfio.devices.size >= MAX_DEVICES)
    throw new Errno('ENOSPC', `devices: the host has ${MAX_DEVICES}, the most it can hold`);
  host.vfio.devices.set(device.id, device);
  if (device.group !== null) getGroup(host, device.group).devices.push(device.id);
  return { ret: 0, created: true, fields: { id: device.id } };
}

/** Makes a device in a group, closed. EEXIST: made with another body. ENOSPC: more than MAX_DEVICES. */
export function putDevice(host: Host, command: Extract<Command, { op: 'put_device' }>): Done {
  const { device: id, group, dma_unmap = true } = command;
  const existing = host.vfio.devices.get(id);
  if (existing === undefined) {
    if (group !== null) getGroup(host, group);
    return addDevice(host, { id, group, open_count: 0, dma_unmap, listener: null, shortcut: null });
  }
  if (existing.shortcut !== null || existing.group !== group || existing.dma_unmap !== dma_unmap)
    throw new Errno(
      'EEXIST',
      `device '${id}' exists with group ${existing.group ?? 'null'}, dma_unmap ${existing.dma_unmap}`,
    );
  return { ret: 0, created: false, fields: { id } };
}

/** Compared with the defaults applied: it does not matter which of them were named. */
function sameNotifier(a: NotifierSpec | null, b: NotifierSpec | null): boolean {
  const print = (spec: NotifierSpec): string => JSON.stringify({ ...spec, explicit: undefined });
  return a === b || (a !== null && b !== null && print(a) === print(b));
}

/**
 * The shortcut: makes the container (TYPE1v2) and an mdev group named after the device where they are missing, attaches,
 * registers the notifier and opens the device. Refusals are those of the steps; then nothing is left of them.
 */
export function putDeviceInContainer(host: Host, command: Extract<Command, { op: 'put_device_in_container' }>): Done {
  const { device: id, container, notifier } = command;
  const existing = host.vfio.devices.get(id);
  if (existing !== undefined) {
    const made = existing.shortcut;
    if (made === null || made.container !== container || !sameNotifier(made.notifier, notifier))
      throw new Errno('EEXIST', `device '${id}' exists with another body`);
    return { ret: 0, created: false, fields: { id, container, group: existing.group } };
  }
  const undo: (() => void)[] = [];
  try {
    const gone = host.vfio.containers.get(container);
    if (putContainer(host, { op: 'put_container', container }).created)
      undo.push(() => {
        if (gone === undefined) host.vfio.containers.delete(container);
        else host.vfio.containers.set(container, gone);
      });
    if (putGroup(host, { op: 'put_group', group: id, kind: 'mdev' }).created)
      undo.push(() => host.vfio.groups.delete(id));
    const group = getGroup(host, id);
    requireGroupFd(group);
    addDevice(host, {
      id,
      group: id,
      open_count: 0,
      dma_unmap: true,
      listener: null,
      shortcut: { container, notifier },
    });
    undo.push(() => {
      host.vfio.devices.delete(id);
      group.devices = group.devices.filter((other) => other !== id);
    });
    if (group.container !== container) {
      setContainer(host, { op: 'set_container', group: id, container, task: null });
      undo.push(() => vfioGroupTryDissolveContainer(host, group));
    }
    const open = getContainer(host, container);
    if (open.iommu === null) {
      setIommu(host, { op: 'set_iommu', container, type: 3, task: null });
      undo.push(() => {
        open.iommu = null;
      });
    }
    const registered =
      notifier === null ? null : registerNotifier(host, { op: 'register_notifier', device: id, notifier });
    openDevice(host, { op: 'open_device', device: id });
    return {
      ret: 0,
      created: true,
      fields: { id, container, group: id, notifier: registered?.fields.id ?? null },
      ...(registered?.parked === undefined ? {} : { parked: registered.parked }),
    };
  } catch (error) {
    for (const step of undo.reverse()) step();
    throw error;
  }
}

/**
 * Models vfio_group_get_device_fd(). From 6.0 on the first fd puts the device on the list of those that are told of unmaps.
 * EIO; ENODEV no group; EBADF group fd closed; EINVAL no container or no iommu; EDEADLK.
 */
export function openDevice(host: Host, { device: id }: Extract<Command, { op: 'open_device' }>): Done {
  const device = getDevice(host, id);
  const group = groupOf(host, device);
  if (group === null) throw new Errno('ENODEV', `device '${id}' belongs to no group`);
  requireGroupFd(group);
  if (group.kind === 'noiommu') requireNoiommu(host, group);
  else {
    const { container, iommu } = vfioGroupAddContainerUser(host, group);
    if (device.open_count === 0 && host.profile.listener === 'dma_unmap')
      registerDevice(host, container, iommu, device);
  }
  group.container_users++;
  device.open_count++;
  return { ret: 0, fields: { open_count: device.open_count } };
}

/** EINVAL: no container, or no back end. */
function requireNoiommu(host: Host, { id, container }: Group): void {
  if (containerOf(host, container)?.noiommu !== true)
    throw new Errno('EINVAL', `group '${id}' has no container with the noiommu back end`);
}

/** Models vfio_device_fops_release(): the driver's own clean-up is its caller's business. EIO; EBADF not open; EDEADLK. */
export function closeDevice(host: Host, { device: id }: Extract<Command, { op: 'close_device' }>): Done {
  const device = getDevice(host, id);
  const group = groupOf(host, device);
  if (device.open_count === 0 || group === null) throw new Errno('EBADF', `device '${id}' is not open`);
  if (device.open_count === 1 && host.profile.listener === 'dma_unmap' && group.kind !== 'noiommu') {
    const { container, iommu } = vfioGroupAddContainerUser(host, group);
    unregisterDevice(host, container, iommu, device);
  }
  requireMayDissolve(host, group, 'vfio_device_fops_release');
  device.open_count--;
  vfioGroupTryDissolveContainer(host, group);
  return { ret: 0, fields: { open_count: device.open_count } };
}
