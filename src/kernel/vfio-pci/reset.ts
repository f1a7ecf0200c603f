// Models VFIO_DEVICE_RESET, a function-level reset through config space, and VFIO_DEVICE_PCI_HOT_RESET of a set of devices.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import type { Done } from '../outcome.ts';
import type { Phase } from '../phase.ts';
import type { Handlers, Step } from '../steps.ts';
import { runOperation } from '../thread.ts';
import { deviceFields, getVfioPci, keepsVmaList, memoryLock, type VfioPciDevice, vmaLock } from './device.ts';
import { lockOrBusy, openDevice, unmapMappingRange, zapped } from './zap.ts';

/** What asks for a reset: the ioctl, or user space writing the FLR bit of the PCIe or AF capability. */
export type ResetBy = 'ioctl' | 'flr';

export type ResetCommand =
  | { op: 'vfio_pci_reset'; device: string; task?: string; by: ResetBy; stop_at?: Phase }
  | { op: 'vfio_pci_hot_reset'; devices: string[]; task?: string; stop_at?: Phase };

export type ResetStep =
  /** All that happens under memory_lock: the device is in reset until `vfio_pci_reset_done`. */
  | { do: 'vfio_pci_reset_start'; devices: string[]; cleanup?: true }
  | { do: 'vfio_pci_reset_done'; devices: string[]; cleanup: true };

const resetting = (devices: string[]): Step[] => [
  { do: 'vfio_pci_reset_start', devices },
  { do: 'phase', phase: 'in_reset' },
  { do: 'vfio_pci_reset_done', devices, cleanup: true },
];

/**
 * Resets a device, with all its mappings zapped. A device without the capability passes the FLR bit over.
 * ENODEV, NOT_FOUND: as getVfioPci(). EINVAL: the device cannot be reset.
 */
function reset(host: Host, command: Extract<ResetCommand, { op: 'vfio_pci_reset' }>): Done {
  const { op, task, by, stop_at } = command;
  const device = getVfioPci(host, command.device);
  const { resettable, flr } = device.spec;
  if (by === 'ioctl' && !resettable) throw new Errno('EINVAL', `${device.id} cannot be reset`);
  if (by === 'flr' && !flr) return { ret: 0, fields: { devices: [deviceFields(host, device)] } };
  const steps = zapped(host, device, resetting([device.id]));
  return runOperation(host, { kind: op, locals: { task: task ?? null, mm: null } }, steps, stop_at ?? null);
}

/** Every device is zapped before the first memory_lock is taken: they may be mapped in one address space. */
function listedSetSteps(devices: readonly VfioPciDevice[]): Step[] {
  return [
    ...devices.map(({ id }): Step => ({ do: 'vfio_pci_zap', device: id, try: true })),
    { do: 'phase', phase: 'after_zap' },
    ...devices.flatMap((device): Step[] => [
      ...lockOrBusy(memoryLock(device), 'W', true),
      { do: 'unlock', lock: vmaLock(device), cleanup: true },
    ]),
  ];
}

const unlistedSetSteps = (devices: readonly VfioPciDevice[]): Step[] =>
  devices.flatMap((device) => [...lockOrBusy(memoryLock(device), 'W', true), ...unmapMappingRange(device.id)]);

/**
 * Resets all devices of a bus or slot. Locks of several devices are only tried: at the first that is taken, everything is given
 * back, and what was zapped stays so.
 * EINVAL: no device, or one twice. ENODEV, NOT_FOUND: as getVfioPci(). EBUSY: a lock is taken.
 */
function hotReset(host: Host, command: Extract<ResetCommand, { op: 'vfio_pci_hot_reset' }>): Done {
  const { op, task, stop_at } = command;
  const devices = command.devices.map((id) => getVfioPci(host, id));
  if (devices.length === 0 || new Set(devices).size < devices.length)
    throw new Errno('EINVAL', `devices: [${command.devices.join(', ')}] is no set of devices`);
  const steps: Step[] = [
    ...(keepsVmaList(host) ? listedSetSteps(devices) : unlistedSetSteps(devices)),
    ...resetting(devices.map(({ id }) => id)),
    ...devices.flatMap((device): Step[] => [
      { do: 'unlock', lock: memoryLock(device), cleanup: true },
      { do: 'unlock', lock: vmaLock(device), cleanup: true },
    ]),
  ];
  return runOperation(host, { kind: op, locals: { task: task ?? null, mm: null } }, steps, stop_at ?? null);
}

export const resetCommands = { vfio_pci_reset: reset, vfio_pci_hot_reset: hotReset };

export const resetSteps: Handlers<ResetStep> = {
  vfio_pci_reset_start(host, _operation, { devices }) {
    for (const id of devices) {
      const device = openDevice(host, id);
      device.resetting = true;
      device.resets++;
      if (host.profile.vfioPciPowerGate) device.power_state = 0;
    }
  },

  /** The config space was saved before and is restored after it; user space's copy was never touched. */
  vfio_pci_reset_done(host, { thread }, { devices }) {
    const all = devices.map((id) => openDevice(host, id));
    for (const device of all) device.resetting = false;
    thread.fields = { devices: all.map((device) => deviceFields(host, device)) };
  },
};
