// Models vfio_dma_do_map() of drivers/vfio/vfio_iommu_type1.c and the ioctl layer above it.

import { type Command, MAP_VADDR, READ, WRITE } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { hex, isPageAligned, npageOf, pageNumberOf, printRange, U64_MAX } from '../lib/u64.ts';
import type { MmId } from '../mm/mm.ts';
import { getTask, mmOf, requireMm } from '../mm/task.ts';
import type { Done } from '../outcome.ts';
import { type Container, getContainer, requireIommu } from './container.ts';
import { vfioDmaBitmapAlloc } from './dirty.ts';
import { vfioFindDma, vfioLinkDma } from './dma.ts';
import { vfioPinMapDma } from './domain.ts';
import { faultIn, mayTakeThread, type Need, needOf } from './fault-in.ts';
import { type Iommu, vfioRemoveDma } from './iommu.ts';
import { isValidRange } from './iova-list.ts';
import { callerOf } from './pin-remote.ts';
import { updateVaddr } from './vaddr.ts';
import { vaddrAt } from './vaddr-get.ts';

type MapDma = Extract<Command, { op: 'map_dma' }>;

/** Size of struct vfio_iommu_type1_dma_map. */
export const MAP_ARGSZ = 32;

/**
 * VFIO_IOMMU_MAP_DMA. Without IOMMU-backed group nothing is pinned, charged or looked at: a bogus vaddr is noticed at the
 * first pin. With one, every page is pinned, charged and mapped, or the mapping is removed again.
 * ESRCH the calling task has exited; EINVAL argsz below 32 or unknown flags; EINVAL size 0; EINVAL or EOVERFLOW iova or vaddr
 * wraps; EINVAL neither or both of R/W and VADDR; EINVAL misaligned iova, vaddr or size; EEXIST overlap; ENOSPC no entry left;
 * EINVAL outside the valid iova ranges; EINVAL, ENOMEM no dirty bitmap; EFAULT, ENOMEM, ESRCH, EINTR of pinning. `ready`: no page
 * of it takes a thread.
 */
export function mapDma(host: Host, command: MapDma, ready = false): Done {
  const container = getContainer(host, command.container);
  const task = getTask(host, command.task);
  const iommu = requireIommu(container);
  const mm = requireMm(host, task.id);
  checkArguments(host, command);
  const { dmas } = host.vfio;
  const iova = pageNumberOf(command.iova);
  const npage = npageOf(command.size);
  const overlapping = vfioFindDma(dmas, iommu.dma_list, iova, dmas.end(iova, npage));
  if ((command.flags & MAP_VADDR) !== 0) return updateVaddr(host, iommu, command, overlapping);
  if (overlapping !== null)
    throw new Errno(
      'EEXIST',
      `iova ${printRange(iova, npage)} overlaps the mapping ${printRange(overlapping.iova, overlapping.npage)}`,
    );
  if (host.profile.dmaEntryLimit && iommu.dma_avail === 0)
    throw new Errno(
      'ENOSPC',
      `dma_avail is 0: the container has ${iommu.dma_entry_limit} mappings, its dma_entry_limit`,
    );
  if (!isValidRange(iommu.iova_list, command.iova, command.iova + command.size - 1n))
    throw new Errno(
      'EINVAL',
      `iova ${printRange(iova, npage)} lies in no valid iova range of container '${container.id}'`,
    );
  if (!ready && iommu.domain !== null && mayTakeThread(host) && mapNeed(host, command, 0) !== null)
    return faultIn(host, { kind: 'map_dma', locals: { container: container.id, command } }, null);
  iommu.dma_avail--;
  const { root, dma } = vfioLinkDma(dmas, iommu.dma_list, {
    container: container.id,
    iova,
    npage,
    vaddr: pageNumberOf(command.vaddr),
    prot: command.flags & (READ | WRITE),
    task: host.profile.taskKept === 'leader' ? task.leader : task.id,
    mm: mm.id,
    lock_cap: task.cap_ipc_lock,
  });
  iommu.dma_list = root;
  try {
    if (iommu.domain !== null) vfioPinMapDma(host, callerOf(host, task.id), dma);
    if (iommu.dirty_page_tracking) vfioDmaBitmapAlloc(host, dma);
  } catch (error) {
    if (error instanceof Errno) removeAgain(host, container, iommu, dma.slot);
    throw error;
  }
  return { ret: 0, fields: {} };
}

/** Locals of a map that brings pages in before the IOMMU pins them. */
export interface MapLocals {
  container: string;
  command: MapDma;
  /** The address space whose page it waits for. */
  mm?: MmId | null;
}

/** The first page from the one at index `at` on that a thread has to bring in; null: none before the first hole. */
export function mapNeed(host: Host, { task, vaddr, size, flags }: MapDma, at: number): Need | null {
  const mm = mmOf(host, task);
  if (mm === null) return null;
  for (let i = at; i < npageOf(size); i++) {
    const need = needOf(host, mm, vaddrAt(pageNumberOf(vaddr), i), (flags & WRITE) !== 0, i);
    if (need === 'hole') return null;
    if (need !== null) return need;
  }
  return null;
}

/** The map of a thread that has brought its pages in: all that it was called with is looked at again. */
export const mapAgain = (host: Host, command: MapDma): Done => mapDma(host, command, true);

function removeAgain(host: Host, container: Container, iommu: Iommu, slot: number): void {
  vfioRemoveDma(host, container, iommu, host.vfio.dmas.at(slot), ['vfio_pin_map_dma', 'vfio_dma_do_map']);
}

function checkArguments(host: Host, { argsz, flags, iova, vaddr, size }: MapDma): void {
  const { mapFlags, rangeOverflow } = host.profile;
  if (argsz < MAP_ARGSZ) throw new Errno('EINVAL', `argsz ${argsz} is less than ${MAP_ARGSZ}`);
  if ((flags & ~mapFlags) !== 0) throw new Errno('EINVAL', `flags ${hex(BigInt(flags >>> 0))} have unknown bits`);
  if (size === 0n) throw new Errno('EINVAL', 'size is 0');
  for (const [name, value] of Object.entries({ iova, vaddr }))
    if (value + size - 1n > U64_MAX)
      throw new Errno(rangeOverflow, `${name} ${hex(value)} + size ${hex(size)} passes the end of the 64-bit space`);
  const prot = flags & (READ | WRITE);
  const vaddrOnly = (flags & MAP_VADDR) !== 0;
  if (prot === 0 && !vaddrOnly) throw new Errno('EINVAL', 'flags have neither READ nor WRITE');
  if (prot !== 0 && vaddrOnly) throw new Errno('EINVAL', 'flags have VADDR together with READ or WRITE');
  for (const [name, value] of Object.entries({ iova, vaddr, size }))
    if (!isPageAligned(value))
      throw new Errno('EINVAL', `${name} ${hex(value)} is not a multiple of the page size 0x1000`);
}
