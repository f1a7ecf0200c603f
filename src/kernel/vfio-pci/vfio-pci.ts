// Models vfio-pci as far as it lives with the host's pages: BARs that tasks map, and the memory enable bit that gates them.

import type { Consumer } from '../consumer.ts';
import { checkVfioPci } from './check.ts';
import { type ConfigCommand, type ConfigStep, configCommands, configSteps } from './config.ts';
import { newVfioPciState, type PutVfioPciCommand, putVfioPci, type VfioPciState } from './device.ts';
import { type FaultStep, vfioPciFaultSteps, vfioPciVmaOps } from './fault.ts';
import { type IoeventfdCommand, type IoeventfdStep, ioeventfdCommands, ioeventfdSteps } from './ioeventfd.ts';
import { type IrqsCommand, type IrqsStep, irqsCommands, irqsSteps } from './irqs.ts';
import { type MmapCommand, type MmapStep, mmap, mmapSteps } from './mmap.ts';
import { type ResetCommand, type ResetStep, resetCommands, resetSteps } from './reset.ts';
import { type RwCommand, type RwStep, rwCommands, rwSteps } from './rw.ts';
import { type ZapStep, zapSteps } from './zap.ts';

export type { VfioPciState } from './device.ts';
export type VfioPciCommand =
  | PutVfioPciCommand
  | ConfigCommand
  | ResetCommand
  | IrqsCommand
  | MmapCommand
  | RwCommand
  | IoeventfdCommand;
export type VfioPciStep = ConfigStep | FaultStep | IoeventfdStep | IrqsStep | MmapStep | ResetStep | RwStep | ZapStep;

export const vfioPci: Consumer<VfioPciCommand, VfioPciStep, VfioPciState> = {
  newState: newVfioPciState,
  commands: {
    put_vfio_pci: putVfioPci,
    ...configCommands,
    ...resetCommands,
    ...irqsCommands,
    vfio_pci_mmap: mmap,
    ...rwCommands,
    ...ioeventfdCommands,
  },
  steps: {
    ...configSteps,
    ...vfioPciFaultSteps,
    ...ioeventfdSteps,
    ...irqsSteps,
    ...mmapSteps,
    ...resetSteps,
    ...rwSteps,
    ...zapSteps,
  },
  callbacks: {},
  users: [
    'vfio_pci_mmap',
    'vfio_pci_rw',
    'vfio_pci_config_write',
    'vfio_pci_set_power_state',
    'vfio_pci_low_power',
    'vfio_pci_reset',
    'vfio_pci_hot_reset',
  ],
  vmaOps: vfioPciVmaOps,
  check: checkVfioPci,
};
