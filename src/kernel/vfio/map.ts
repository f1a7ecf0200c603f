// Models vfio_dma_do_map() of drivers/vfio/vfio_iommu_type1.c and the ioctl layer above it.

import { type Command, MAP_VADDR, READ, WRITE } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { hex, isPageAligned, npageOf, pageNumberOf, printRange, U64_MAX, wrappedEnd } from '../lib/u64.ts';
import { getTask, requireMm } from '../mm/task.ts';
import type { Done } from '../outcome.ts';
import { getContainer, requireIommu } from './container.ts';
import { vfioFindDma, vfioLinkDma } from './dma.ts';
import type { Iommu } from './iommu.ts';
import { wakeVaddrWaiters } from './pin.ts';

type MapDma = Extract<Command, { op: 'map_dma' }>;

/** Size of struct vfio_iommu_type1_dma_map. */
export const MAP_ARGSZ = 32;
const KNOWN_FLAGS = READ | WRITE | MAP_VADDR;

/**
 * VFIO_IOMMU_MAP_DMA. Nothing is pinned, charged or looked at: a bogus vaddr is noticed at the first pin.
 * ESRCH the calling task has exited; EINVAL argsz below 32 or unknown flags; EINVAL neither or both of R/W and VADDR; EINVAL
 * size 0 or misaligned iova, vaddr or size; EINVAL iova or vaddr wraps; EEXIST overlap; ENOSPC no entry left.
 */
export function mapDma(host: Host, command: MapDma): Done {
  const container = getContainer(host, command.container);
  const task = getTask(host, command.task);
  const iommu = requireIommu(container);
  requireMm(host, task.id);
  checkArguments(command);
  const iova = pageNumberOf(command.iova);
  const npage = npageOf(command.size);
  const overlapping = vfioFindDma(host.vfio.dmas, iommu.dma_list, iova, wrappedEnd(iova, npage));
  if ((command.flags & MAP_VADDR) !== 0) return updateVaddr(host, iommu, command, overlapping?.slot ?? 0);
  if (overlapping !== null)
    throw new Errno(
      'EEXIST',
      `iova ${printRange(iova, npage)} overlaps the mapping ${printRange(overlapping.iova, overlapping.npage)}`,
    );
  if (iommu.dma_avail === 0)
    throw new Errno(
      'ENOSPC',
      `dma_avail is 0: the container has ${iommu.dma_entry_limit} mappings, its dma_entry_limit`,
    );
  iommu.dma_avail--;
  iommu.dma_list = vfioLinkDma(host.vfio.dmas, iommu.dma_list, {
    container: container.id,
    iova,
    npage,
    vaddr: pageNumberOf(command.vaddr),
    prot: command.flags & (READ | WRITE),
    task: task.leader,
    lock_cap: task.cap_ipc_lock,
    vaddr_invalid: false,
  });
  return { ret: 0, fields: {} };
}

function checkArguments({ argsz, flags, iova, vaddr, size }: MapDma): void {
  if (argsz < MAP_ARGSZ) throw new Errno('EINVAL', `argsz ${argsz} is less than ${MAP_ARGSZ}`);
  if ((flags & ~KNOWN_FLAGS) !== 0) throw new Errno('EINVAL', `flags ${hex(BigInt(flags))} have unknown bits`);
  const prot = flags & (READ | WRITE);
  const vaddrOnly = (flags & MAP_VADDR) !== 0;
  if (prot === 0 && !vaddrOnly) throw new Errno('EINVAL', 'flags have neither READ nor WRITE');
  if (prot !== 0 && vaddrOnly) throw new Errno('EINVAL', 'flags have VADDR together with READ or WRITE');
  if (size === 0n) throw new Errno('EINVAL', 'size is 0');
  for (const [name, value] of Object.entries({ iova, vaddr, size }))
    if (!isPageAligned(value))
      throw new Errno('EINVAL', `${name} ${hex(value)} is not a multiple of the page size 0x1000`);
  for (const [name, value] of Object.entries({ iova, vaddr }))
    if (value + size - 1n > U64_MAX)
      throw new Errno('EINVAL', `${name} ${hex(value)} + size ${hex(size)} passes the end of the 64-bit space`);
}

/** FLAG_VADDR: gives an invalidated mapping its new address. ENOENT no mapping; EINVAL not invalidated or not identical. */
function updateVaddr(host: Host, iommu: Iommu, { iova, vaddr, size }: MapDma, slot: number): Done {
  if (slot === 0) throw new Errno('ENOENT', `no mapping overlaps iova ${hex(iova)} size ${hex(size)}`);
  const dma = host.vfio.dmas.at(slot);
  if (!dma.vaddr_invalid) throw new Errno('EINVAL', `the vaddr of mapping ${printRange(dma.iova, dma.npage)} is valid`);
  if (dma.iova !== pageNumberOf(iova) || dma.npage !== npageOf(size))
    throw new Errno('EINVAL', `iova ${hex(iova)} size ${hex(size)} is not exactly ${printRange(dma.iova, dma.npage)}`);
  dma.vaddr = pageNumberOf(vaddr);
  dma.vaddr_invalid = false;
  iommu.vaddr_invalid_count--;
  wakeVaddrWaiters(host, iommu);
  return { ret: 0, fields: {} };
}
