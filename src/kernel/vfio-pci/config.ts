// Models the command register in the virtual config space (vfio_basic_config_write), and the power state of the device.

import { Errno } from '../errno.ts';
import { shouldFail } from '../fault-rule.ts';
import type { Host } from '../host.ts';
import type { Done } from '../outcome.ts';
import type { Phase } from '../phase.ts';
import type { Handlers, Step } from '../steps.ts';
import { runOperation } from '../thread.ts';
import {
  DECODE_BITS,
  deviceFields,
  getVfioPci,
  memoryLock,
  PCI_COMMAND_INTX_DISABLE,
  PCI_COMMAND_MEMORY,
  type VfioPciDevice,
} from './device.ts';
import { openDevice, zapped } from './zap.ts';

/** Offset of PCI_COMMAND in config space. */
export const PCI_COMMAND = 4;
/** Bits of PCI_COMMAND that a device keeps; the others read as 0. */
const COMMAND_MASK = 0x7ff;

/** Without a task, somebody with the device's fd and no memory of interest does it. */
export interface ConfigWriteCommand {
  op: 'vfio_pci_config_write';
  device: string;
  task?: string;
  offset: number;
  /** 1, 2 or 4 bytes. */
  count: number;
  value: number;
  stop_at?: Phase;
}

export type ConfigCommand =
  | ConfigWriteCommand
  /** The device loses its command register and its BARs, as in a reset that vfio-pci knows nothing of. */
  | { op: 'vfio_pci_lose_state'; device: string }
  /** 0 (D0) to 3 (D3hot). */
  | { op: 'vfio_pci_set_power_state'; device: string; task?: string; state: number; stop_at?: Phase }
  /** VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY, or _EXIT. */
  | { op: 'vfio_pci_low_power'; device: string; task?: string; entry: boolean; stop_at?: Phase };

export type ConfigStep =
  | { do: 'vfio_pci_apply_command'; device: string; command: ConfigWriteCommand; cleanup?: true }
  | { do: 'vfio_pci_apply_power'; device: string; state: number; cleanup?: true }
  | { do: 'vfio_pci_apply_low_power'; device: string; entry: boolean; cleanup?: true };

/** memory_lock held for writing, and nothing zapped. */
export const underMemoryLock = (device: VfioPciDevice, steps: readonly Step[]): Step[] => [
  { do: 'lock', lock: memoryLock(device), mode: 'W' },
  { do: 'phase', phase: 'after_memory_lock' },
  ...steps,
  { do: 'unlock', lock: memoryLock(device), cleanup: true },
];

/** PCI_COMMAND as a read of config space gives it: a device without the memory bit shows the one that user space wrote. */
export function readCommand({ phys_command, vconfig_command, spec }: VfioPciDevice): number {
  const virtual = PCI_COMMAND_INTX_DISABLE | (spec.no_command_memory ? PCI_COMMAND_MEMORY : 0);
  return (phys_command & ~PCI_COMMAND_INTX_DISABLE) | (vconfig_command & virtual);
}

/** The value of the register after a write of some of its bytes. */
function written(device: VfioPciDevice, { offset, count, value }: ConfigWriteCommand): number {
  const old = readCommand(device);
  if (offset === PCI_COMMAND + 1) return ((old & 0xff) | ((value & 0xff) << 8)) & COMMAND_MASK;
  const bytes = count === 1 ? (old & ~0xff) | (value & 0xff) : value & 0xffff;
  return bytes & COMMAND_MASK;
}

/** EINVAL: not 1, 2 or 4 aligned bytes. EOPNOTSUPP: a register that is not modelled. */
function checkAccess({ offset, count }: { offset: number; count: number }): void {
  if ((count !== 1 && count !== 2 && count !== 4) || offset < 0 || offset % count !== 0)
    throw new Errno('EINVAL', `offset ${offset}, count ${count}: 1, 2 or 4 aligned bytes`);
  if (offset !== PCI_COMMAND && !(offset === PCI_COMMAND + 1 && count === 1))
    throw new Errno('EOPNOTSUPP', `offset: ${offset}`, { hint: `the command register at ${PCI_COMMAND} is modelled` });
}

/**
 * Writes the command register. One that begins at the register's first byte and leaves the memory bit clear zaps all mappings
 * first, whatever the bit was; any other that begins there excludes accesses, and restores BARs that the device has lost.
 * ENODEV, NOT_FOUND: as getVfioPci(). EINVAL, EOPNOTSUPP: as checkAccess(). EIO: the device does not take it; what was zapped
 * stays so.
 */
function configWrite(host: Host, command: ConfigWriteCommand): Done {
  const device = getVfioPci(host, command.device);
  checkAccess(command);
  const apply: Step[] = [{ do: 'vfio_pci_apply_command', device: device.id, command }];
  const disables = (command.value & PCI_COMMAND_MEMORY) === 0;
  const steps =
    command.offset !== PCI_COMMAND ? apply : disables ? zapped(host, device, apply) : underMemoryLock(device, apply);
  const locals = { task: command.task ?? null, mm: null };
  return runOperation(host, { kind: command.op, locals }, steps, command.stop_at ?? null);
}

/** User space wants a bit, believes it set, and the hardware has lost it. */
function hasLost({ vconfig_command, phys_command }: VfioPciDevice, wanted: number): boolean {
  const lost = wanted & vconfig_command & ~phys_command & DECODE_BITS;
  return lost !== 0;
}

/** NOT_FOUND, ENODEV: as getVfioPci(). */
function loseState(host: Host, id: string): Done {
  const device = getVfioPci(host, id);
  device.phys_command = 0;
  return { ret: 0, fields: deviceFields(host, device) };
}

/**
 * Moves the device to another power state. From D3hot on, where that disables the memory, all mappings are zapped first.
 * ENODEV, NOT_FOUND: as getVfioPci(). EINVAL: no state of 0 to 3.
 */
function setPowerState(host: Host, command: Extract<ConfigCommand, { op: 'vfio_pci_set_power_state' }>): Done {
  const { op, task, state, stop_at } = command;
  const device = getVfioPci(host, command.device);
  if (!Number.isInteger(state) || state < 0 || state > 3) throw new Errno('EINVAL', `state: ${state} is not 0 to 3`);
  const apply: Step[] = [{ do: 'vfio_pci_apply_power', device: device.id, state }];
  const gated = state === 3 ? zapped(host, device, apply) : underMemoryLock(device, apply);
  const steps = host.profile.vfioPciPowerGate ? gated : apply;
  return runOperation(host, { kind: op, locals: { task: task ?? null, mm: null } }, steps, stop_at ?? null);
}

/**
 * Lets the device sleep until an exit, or ends that. ENODEV, NOT_FOUND: as getVfioPci(). ENOTTY: no such feature in the profile.
 * EINVAL: an entry while it is engaged.
 */
function lowPower(host: Host, command: Extract<ConfigCommand, { op: 'vfio_pci_low_power' }>): Done {
  const { op, task, entry, stop_at } = command;
  const device = getVfioPci(host, command.device);
  if (!host.profile.vfioPciPowerGate)
    throw new Errno('ENOTTY', 'VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY is of later kernels');
  const apply: Step[] = [{ do: 'vfio_pci_apply_low_power', device: device.id, entry }];
  const steps = entry ? zapped(host, device, apply) : underMemoryLock(device, apply);
  return runOperation(host, { kind: op, locals: { task: task ?? null, mm: null } }, steps, stop_at ?? null);
}

export const configCommands = {
  vfio_pci_config_write: configWrite,
  vfio_pci_lose_state: (host: Host, { device }: { device: string }) => loseState(host, device),
  vfio_pci_set_power_state: setPowerState,
  vfio_pci_low_power: lowPower,
};

export const configSteps: Handlers<ConfigStep> = {
  vfio_pci_apply_command(host, operation, { device: id, command }) {
    const device = openDevice(host, id);
    const value = written(device, command);
    if (command.offset === PCI_COMMAND && hasLost(device, value)) device.bar_restores++;
    if (shouldFail(host, 'config_write'))
      throw new Errno('EIO', `${id}: the write does not reach the device`, { io_error: true });
    const hardwired = device.spec.no_command_memory ? DECODE_BITS : 0;
    device.phys_command = value & ~hardwired & ~PCI_COMMAND_INTX_DISABLE;
    const copied = command.offset === PCI_COMMAND ? DECODE_BITS : 0;
    const intx = command.count > 1 || command.offset !== PCI_COMMAND ? PCI_COMMAND_INTX_DISABLE : 0;
    const mask = copied | intx;
    device.vconfig_command = (device.vconfig_command & ~mask) | (value & mask);
    operation.thread.fields = deviceFields(host, device);
  },

  vfio_pci_apply_power(host, operation, { device: id, state }) {
    const device = openDevice(host, id);
    device.power_state = state;
    operation.thread.fields = deviceFields(host, device);
  },

  vfio_pci_apply_low_power(host, operation, { device: id, entry }) {
    const device = openDevice(host, id);
    if (entry && device.runtime_pm_engaged) throw new Errno('EINVAL', `${id}: it is in low power already`);
    device.runtime_pm_engaged = entry;
    operation.thread.fields = deviceFields(host, device);
  },
};
