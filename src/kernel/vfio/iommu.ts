// Models struct vfio_iommu, the type1 back end's private data: made by SET_IOMMU, gone with the container's last group.

import { type Host, splat } from '../host.ts';
import { printRange } from '../lib/u64.ts';
import { killContainer } from './bug.ts';
import type { Container } from './container.ts';
import { mappingsOf, type VfioDma, vfioUnlinkDma } from './dma.ts';
import { type DeviceLedger, leakMapping } from './ledger.ts';
import { firstPfn, vfioUnlinkPfn } from './pfn-list.ts';

/** A blocking notifier chain: its blocks in calling order, and who holds or waits for its rw-lock. */
export interface NotifierChain {
  blocks: string[];
  /** Operations that are walking the chain: they hold the lock for reading. */
  readers: string[];
  /** Operations that wait for the lock, in order of arrival; a waiting writer holds off new readers. */
  waiters: string[];
}

export const emptyChain = (): NotifierChain => ({ blocks: [], readers: [], waiters: [] });

export interface Iommu {
  type: number;
  /** TYPE1v2 and NESTING; false for TYPE1, which has no pins. */
  v2: boolean;
  /** Root of dma_list in the host's DmaTable. */
  dma_list: number;
  /** vfio_dma entries that may still be made. */
  dma_avail: number;
  /** What dma_avail started with: the module parameter, sampled at SET_IOMMU. */
  dma_entry_limit: number;
  /** The mdev groups (external_domain->group_list). */
  external_groups: string[];
  notifier: NotifierChain;
  vaddr_invalid_count: number;
  /** Cleared when the container fd is closed: pins that wait for a vaddr give up. */
  container_open: boolean;
  /** Operations of pins that wait for a vaddr, oldest first. */
  vaddr_wait: string[];
  /** Who pinned what, by device: for the leak report and the built-in drivers; never decides an errno. */
  ledger: Map<string, DeviceLedger>;
}

/** Models vfio_iommu_type1_open(). */
export const vfioIommuType1Open = (type: number, v2: boolean, dma_entry_limit: number): Iommu => ({
  type,
  v2,
  dma_list: 0,
  dma_avail: dma_entry_limit,
  dma_entry_limit,
  external_groups: [],
  notifier: emptyChain(),
  vaddr_invalid_count: 0,
  container_open: true,
  vaddr_wait: [],
  ledger: new Map(),
});

/** Models vfio_iommu_type1_attach_group() for an mdev group, which always succeeds: mappings are usable at once. */
export function vfioIommuType1AttachGroup(iommu: Iommu, group: string): void {
  iommu.external_groups.push(group);
}

/**
 * Models vfio_iommu_type1_detach_group() for an mdev group: the last one to leave takes all mappings with it, without
 * notification; what is still pinned leaks.
 */
export function vfioIommuType1DetachGroup(host: Host, container: Container, iommu: Iommu, group: string): void {
  iommu.external_groups = iommu.external_groups.filter((id) => id !== group);
  if (iommu.external_groups.length > 0) return;
  if (iommu.notifier.blocks.length > 0) {
    const left = iommu.notifier.blocks.join(', ');
    splat(
      host,
      'WARN',
      'vfio_iommu_type1_detach_group',
      `listeners-left-at-detach: notifier chain not empty (${left})`,
      ['__vfio_group_unset_container'],
    );
  }
  for (const dma of [...mappingsOf(host.vfio.dmas, iommu.dma_list)])
    vfioRemoveDma(host, container, iommu, dma, ['vfio_iommu_unmap_unpin_all', 'vfio_iommu_type1_detach_group']);
}

/**
 * Models vfio_iommu_type1_release(): the object is freed with the last group. An operation that sleeps in it would go on
 * with freed memory: reported as a BUG of the container.
 */
export function vfioIommuType1Release(host: Host, container: Container, iommu: Iommu): void {
  container.iommu = null;
  const users = [...iommu.vaddr_wait, ...iommu.notifier.readers, ...iommu.notifier.waiters];
  if (users.length > 0)
    killContainer(
      host,
      container,
      'vfio_iommu_type1_release',
      `use-after-free: iommu freed under ${users.join(', ')}`,
      ['__vfio_group_unset_container'],
    );
}

/** What the WARN of a mapping that goes away with `count` records in it says. */
export const leftoverText = (
  container: string,
  { iova, npage }: Pick<VfioDma, 'iova' | 'npage'>,
  count: number,
): string => `mapping-removed-with-pins: ${count} vfio_pfn left in ${printRange(iova, npage)} of ${container}`;

/** Models vfio_remove_dma(): a mapping goes away; records that are still in it leak, with a WARN. */
export function vfioRemoveDma(host: Host, container: Container, iommu: Iommu, dma: VfioDma, path: string[]): void {
  const { vfio } = host;
  if (dma.pfn_list.root !== 0) {
    splat(host, 'WARN', 'vfio_remove_dma', leftoverText(container.id, dma, dma.pfn_list.count), path);
    leakMapping(host, container, iommu, dma);
    while (dma.pfn_list.root !== 0) vfioUnlinkPfn(vfio.pfns, dma.pfn_list, firstPfn(vfio.pfns, dma.pfn_list));
  }
  iommu.dma_list = vfioUnlinkDma(vfio.dmas, iommu.dma_list, dma);
  if (dma.vaddr_invalid) iommu.vaddr_invalid_count--;
  iommu.dma_avail++;
}
