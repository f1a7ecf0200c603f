// Models struct vfio_domain: the IOMMU-backed groups of a container, and what their IOMMU maps. All groups share one domain.

import type { AddressRange } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { PAGE_SIZE } from '../lib/u64.ts';
import { isInvalidOrReserved } from '../mm/page.ts';
import { killContainer } from './bug.ts';
import type { Container } from './container.ts';
import { mappingsOf, type PfnRun, type VfioDma, vfioFindDma } from './dma.ts';
import type { Group } from './group.ts';
import type { Iommu, Type1Group } from './iommu.ts';
import { cutToAperture, excludeReserved, expandToAperture, type IovaList, refreshReserved } from './iova-list.ts';
import { leakPages } from './ledger.ts';
import { changeCharge, vfioUncharge } from './lock-acct.ts';
import { firstPfn, nextPfn } from './pfn-list.ts';
import {
  type Caller,
  emptyBatch,
  putChunk,
  vfioBatchUnpin,
  vfioPinPagesRemote,
  vfioUnpinPagesRemote,
} from './pin-remote.ts';

export interface Domain {
  groups: Type1Group[];
  /** That of the group it was made for. */
  aperture: AddressRange;
}

/** Page sizes of the IOMMU: 4 KiB, 2 MiB, 1 GiB. */
export const DOMAIN_PGSIZES = 0x40201000n;

/** Records of a mapping whose page is counted. */
export function normalRecords(host: Host, dma: VfioDma): number {
  const { pfns } = host.vfio;
  let count = 0;
  for (let slot = firstPfn(pfns, dma.pfn_list); slot !== 0; slot = nextPfn(pfns, slot))
    if (!isInvalidOrReserved(host, pfns.pfn(slot))) count++;
  return count;
}

/** Pages of a mapping that the IOMMU path holds, counted ones only. */
export function normalMapped(host: Host, dma: VfioDma): number {
  let count = 0;
  for (const { pfn, npage } of dma.mapped)
    for (let i = 0; i < npage; i++) if (!isInvalidOrReserved(host, pfn + i)) count++;
  return count;
}

/** What a mapping should be charged for: its mapped pages where an IOMMU maps it, else its records. */
export const chargeOf = (host: Host, iommu: Iommu, dma: VfioDma): number =>
  iommu.domain === null ? normalRecords(host, dma) : normalMapped(host, dma);

/** Pages changed under a mapping, or a charge was lost: what differs from now on is known. */
const noteDrift = (host: Host, iommu: Iommu, dma: VfioDma): void => {
  dma.drift = dma.locked_vm - chargeOf(host, iommu, dma);
};

/**
 * Models vfio_pin_map_dma(): pins and charges a new mapping chunk by chunk and maps each.
 * The errors of vfioPinPagesRemote; the chunks before it are left to vfioRemoveDma.
 */
export function vfioPinMapDma(host: Host, caller: Caller, dma: VfioDma): void {
  const batch = emptyBatch();
  dma.iommu_mapped = true;
  try {
    for (let done = 0; done < dma.npage; ) {
      const chunk = vfioPinPagesRemote(host, caller, dma, dma.iova + done, dma.npage - done, batch);
      dma.mapped.push(chunk);
      done += chunk.npage;
    }
  } finally {
    vfioBatchUnpin(host, batch, dma.prot);
  }
}

/** Models vfio_unmap_unpin(): takes a mapping off the IOMMU and gives its pages back. Returns how many were counted. */
export function vfioUnmapUnpin(host: Host, iommu: Iommu, dma: VfioDma): number {
  if (iommu.domain === null) return 0;
  let unlocked = 0;
  for (const chunk of dma.mapped) unlocked += putChunk(host, dma, chunk).unlocked;
  dma.mapped = [];
  dma.iommu_mapped = false;
  return unlocked;
}

/** vfio_unmap_unpin() with accounting: all pages that are given back are uncharged, those with a record too. */
export function vfioUnmapUnpinUncharge(host: Host, iommu: Iommu, dma: VfioDma): void {
  vfioUncharge(host, dma, vfioUnmapUnpin(host, iommu, dma));
}

/**
 * Models vfio_iommu_aper_conflict() and vfio_iommu_resv_conflict(), and gives the ranges that are valid with a new group.
 * EINVAL: aperture disjoint from the ranges, or mappings outside it; mappings in a reserved region; no range is left.
 */
export function rangesWith(host: Host, iommu: Iommu, { id, aperture, reserved }: Group): IovaList {
  if (!host.profile.iovaRanges) return [];
  const { dmas } = host.vfio;
  const isMapped = (start: bigint, last: bigint): boolean =>
    vfioFindDma(dmas, iommu.dma_list, Number(start / BigInt(PAGE_SIZE)), Number(last / BigInt(PAGE_SIZE)) + 1) !== null;
  const [first, end] = [iommu.iova_list[0], iommu.iova_list.at(-1)];
  if (first !== undefined && end !== undefined) {
    const { start, last } = aperture;
    if (start > end.last || last < first.start)
      throw new Errno('EINVAL', `group '${id}': its aperture lies outside the valid iova ranges`);
    if (start > first.start && isMapped(first.start, start - 1n))
      throw new Errno('EINVAL', `group '${id}': mappings lie below its aperture`);
    if (last < end.last && isMapped(last + 1n, end.last))
      throw new Errno('EINVAL', `group '${id}': mappings lie beyond its aperture`);
  }
  if (reserved.some(({ start, last }) => isMapped(start, last)))
    throw new Errno('EINVAL', `group '${id}': mappings lie in one of its reserved regions`);
  const ranges = excludeReserved(cutToAperture(iommu.iova_list, aperture), reserved);
  if (ranges === null) throw new Errno('EINVAL', `group '${id}': no iova range is left`);
  return ranges;
}

/**
 * Models vfio_iommu_replay() for the first domain of a container: every mapping that exists is pinned and mapped.
 * EFAULT, ENOMEM, ESRCH, EINTR: as for pinning. What was done before it is undone, or leaks in old kernels.
 */
export function vfioIommuReplay(
  host: Host,
  container: Container,
  iommu: Iommu,
  caller: (dma: VfioDma) => Caller,
): void {
  const replayed: VfioDma[] = [];
  const batch = emptyBatch();
  try {
    for (const dma of mappingsOf(host.vfio.dmas, iommu.dma_list)) {
      if (dma.iommu_mapped) throw lookUpWithoutDomain(host, container, dma);
      replayed.push(dma);
      const end = host.vfio.dmas.endOf(dma);
      for (let iova: number = dma.iova; iova < end; ) {
        const chunk = vfioPinPagesRemote(host, caller(dma), dma, iova, end - iova, batch);
        dma.mapped.push(chunk);
        iova += chunk.npage;
      }
      vfioBatchUnpin(host, batch, dma.prot);
      if (host.profile.failedReplay === 'leak') dma.iommu_mapped = true;
    }
  } catch (error) {
    if (error instanceof Errno && container.dead === null) failReplay(host, container, iommu, replayed);
    throw error;
  }
  for (const dma of replayed) dma.iommu_mapped = true;
}

/** After a failed replay a mapping says that it is mapped, and no domain is there to ask. */
function lookUpWithoutDomain(host: Host, container: Container, dma: VfioDma): Errno {
  const what = `NULL pointer dereference: mapping at iova page ${dma.iova} is marked iommu_mapped and no domain exists`;
  killContainer(host, container, 'vfio_iommu_replay', what, [
    'vfio_iommu_type1_attach_group',
    'vfio_group_set_container',
  ]);
  return new Errno('EIO', `container '${container.id}' died: ${what}`, {
    hint: 'an attach failed before; this kernel does not undo it',
  });
}

function failReplay(host: Host, container: Container, iommu: Iommu, replayed: readonly VfioDma[]): void {
  for (const dma of [...replayed].reverse()) {
    const chunks = dma.mapped;
    dma.mapped = [];
    if (host.profile.failedReplay === 'undone') for (const chunk of chunks) vfioUnpinPagesRemote(host, dma, chunk);
    else leakChunks(host, container, dma, chunks);
    noteDrift(host, iommu, dma);
  }
}

/** The pages stay pinned, and charged to the mapping for ever. */
function leakChunks(host: Host, container: Container, dma: VfioDma, chunks: readonly PfnRun[]): void {
  const pfns = chunks.flatMap(({ pfn, npage }) => Array.from({ length: npage }, (_, i) => pfn + i));
  if (pfns.length > 0) leakPages(host, container, dma, pfns, 0);
}

/** The first IOMMU-backed group: its domain is made once every mapping is mapped in it. */
export function addDomain(host: Host, iommu: Iommu, group: Group, record: Type1Group, ranges: IovaList): void {
  iommu.domain = { groups: [record], aperture: { ...group.aperture } };
  iommu.iova_list = ranges;
  for (const dma of mappingsOf(host.vfio.dmas, iommu.dma_list)) noteDrift(host, iommu, dma);
}

/** Models vfio_iommu_unmap_unpin_reaccount(): the last domain goes and mdev groups stay: only records are charged from now on. */
export function vfioIommuUnmapUnpinReaccount(host: Host, iommu: Iommu): void {
  for (const dma of mappingsOf(host.vfio.dmas, iommu.dma_list)) {
    const unlocked = vfioUnmapUnpin(host, iommu, dma);
    changeCharge(host, dma, normalRecords(host, dma) - unlocked);
  }
}

/** The ranges after an IOMMU-backed group has left; `reserved` are the regions of those that stay. */
export function rangesWithout(host: Host, iommu: Iommu, isLast: boolean, reserved: readonly AddressRange[]): IovaList {
  if (!host.profile.iovaRanges) return [];
  const expanded = isLast ? expandToAperture(iommu.iova_list, null) : iommu.iova_list;
  return refreshReserved(expanded, reserved) ?? iommu.iova_list;
}
