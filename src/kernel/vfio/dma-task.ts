// What becomes of the mappings of a task when its address space is replaced.

import type { Host } from '../host.ts';
import type { MmId } from '../mm/mm.ts';
import { mappingsOf } from './dma.ts';
import { chargeOf } from './domain.ts';

/**
 * The mappings that a task backs are backed by its new address space, which has not been charged for them: what their records
 * say is owed there is known to differ from now on. A mapping that holds its own mm stays with that.
 */
export function followTask(host: Host, task: string, mm: MmId): void {
  if (host.profile.mmKept === 'mapping') return;
  const { dmas, containers } = host.vfio;
  for (const { iommu } of containers.values()) {
    if (iommu === null) continue;
    for (const dma of mappingsOf(dmas, iommu.dma_list)) {
      if (dma.task !== task) continue;
      dma.mm = mm;
      dma.locked_vm = 0;
      dma.drift = -chargeOf(host, iommu, dma);
      dmas.links.touch(dma.slot);
    }
  }
}
