// Models what vfio-pci does with a device's memory on its own account: setting interrupts up, and looking for a ROM.

import { Errno } from '../errno.ts';
import { shouldFail } from '../fault-rule.ts';
import type { Host } from '../host.ts';
import type { Done } from '../outcome.ts';
import type { Phase } from '../phase.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, runOperation } from '../thread.ts';
import { getVfioPci, type IrqKind, memoryLock, PCI_COMMAND_MEMORY, ROM_REGION, type VfioPciDevice } from './device.ts';
import { openDevice } from './zap.ts';

export type IrqsCommand =
  /** VFIO_DEVICE_SET_IRQS: sets interrupts of one kind up, or takes them down. */
  | { op: 'vfio_pci_set_irqs'; device: string; task?: string; kind: IrqKind; enable: boolean; stop_at?: Phase }
  /** VFIO_DEVICE_GET_REGION_INFO of the ROM, which has to be looked for in the device. */
  | { op: 'vfio_pci_probe_rom'; device: string; task?: string; stop_at?: Phase };

export type IrqsStep =
  /** The physical memory bit is set for as long as the work takes; then the register is as it was. */
  | { do: 'vfio_pci_force_memory'; device: string; work: Step[]; cleanup?: true }
  | { do: 'vfio_pci_restore_command'; device: string; phys_command: number; cleanup: true }
  | { do: 'vfio_pci_apply_irqs'; device: string; kind: IrqKind; enable: boolean; cleanup?: true }
  | { do: 'vfio_pci_map_rom'; device: string; cleanup?: true };

/** vfio_pci_memory_lock_and_enable(), the work, vfio_pci_memory_unlock_and_restore(). Nothing is zapped. */
const withMemoryOn = (device: VfioPciDevice, work: Step[]): Step[] => [
  { do: 'lock', lock: memoryLock(device), mode: 'W' },
  { do: 'vfio_pci_force_memory', device: device.id, work },
  { do: 'unlock', lock: memoryLock(device), cleanup: true },
];

/** ENODEV, NOT_FOUND: as getVfioPci(). EINVAL: interrupts of another kind are set up; none is, to be taken down. */
function setIrqs(host: Host, command: Extract<IrqsCommand, { op: 'vfio_pci_set_irqs' }>): Done {
  const { op, task, kind, enable, stop_at } = command;
  const device = getVfioPci(host, command.device);
  const { irq } = device;
  if (enable ? irq !== null && irq !== kind : irq !== kind)
    throw new Errno('EINVAL', `kind: ${kind}, the device has ${irq === null ? 'no interrupts' : irq}`);
  const steps = withMemoryOn(device, [{ do: 'vfio_pci_apply_irqs', device: device.id, kind, enable }]);
  return runOperation(host, { kind: op, locals: { task: task ?? null, mm: null } }, steps, stop_at ?? null);
}

/** Fields: size of the ROM, 0 where it cannot be mapped. ENODEV, NOT_FOUND: as getVfioPci(). EINVAL: the device has no ROM. */
function probeRom(
  host: Host,
  { op, device: id, task, stop_at }: Extract<IrqsCommand, { op: 'vfio_pci_probe_rom' }>,
): Done {
  const device = getVfioPci(host, id);
  if (device.spec.rom === null) throw new Errno('EINVAL', `${id} has no ROM`);
  const steps = withMemoryOn(device, [{ do: 'vfio_pci_map_rom', device: id }]);
  return runOperation(host, { kind: op, locals: { task: task ?? null, mm: null } }, steps, stop_at ?? null);
}

export const irqsCommands = { vfio_pci_set_irqs: setIrqs, vfio_pci_probe_rom: probeRom };

export const irqsSteps: Handlers<IrqsStep> = {
  vfio_pci_force_memory(host, operation, { device: id, work }) {
    const device = openDevice(host, id);
    const { phys_command } = device;
    if (!device.spec.no_command_memory) device.phys_command |= PCI_COMMAND_MEMORY;
    pushSteps(operation, [
      { do: 'phase', phase: 'after_memory_lock' },
      ...work,
      { do: 'vfio_pci_restore_command', device: id, phys_command, cleanup: true },
    ]);
  },

  vfio_pci_restore_command(host, _operation, { device, phys_command }) {
    openDevice(host, device).phys_command = phys_command;
  },

  vfio_pci_apply_irqs(host, operation, { device: id, kind, enable }) {
    const device = openDevice(host, id);
    device.irq = enable ? kind : null;
    operation.thread.fields = { irq: device.irq };
  },

  vfio_pci_map_rom(host, operation, { device: id }) {
    const { spec } = openDevice(host, id);
    const size = shouldFail(host, 'map_rom') || spec.rom === null ? 0n : spec.rom.length;
    operation.thread.fields = { region: ROM_REGION, size };
  },
};
