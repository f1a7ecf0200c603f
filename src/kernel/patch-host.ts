// Changes of a host's settings: the module parameter dma_entry_limit and the emulator's own timeouts.

import type { Command } from './command.ts';
import type { Host } from './host.ts';
import type { Done } from './outcome.ts';

/** dma_entry_limit holds for iommu objects made after the change, as the module parameter does. */
export function patchHost(host: Host, command: Extract<Command, { op: 'patch_host' }>): Done {
  const { op: _, ...changes } = command;
  Object.assign(host.options, changes);
  return { ret: 0, fields: { ...host.options, fixes: [...host.options.fixes] } };
}
