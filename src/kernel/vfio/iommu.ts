// Models struct vfio_iommu, the type1 back end's private data: made by SET_IOMMU, gone with the container's last group.

import { Errno } from '../errno.ts';
import { type Host, splat } from '../host.ts';
import { printRange } from '../lib/u64.ts';
import { killContainer } from './bug.ts';
import type { Container } from './container.ts';
import { fillBitmaps } from './dirty.ts';
import { mappingsOf, type VfioDma, vfioUnlinkDma } from './dma.ts';
import { type Domain, rangesWithout, vfioIommuUnmapUnpinReaccount, vfioUnmapUnpinUncharge } from './domain.ts';
import type { Group } from './group.ts';
import type { IovaList } from './iova-list.ts';
import { type DeviceLedger, leakMapping } from './ledger.ts';
import { blocksOf, emptyChain, type NotifierChain } from './notifier-chain.ts';
import { firstPfn, vfioUnlinkPfn } from './pfn-list.ts';

/** struct vfio_iommu_group: a group as the back end knows it. */
export interface Type1Group {
  id: string;
  /** Whether it dirties memory only through pins: an mdev group always, another one from its first pin on. */
  pinned_page_dirty_scope: boolean;
}

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
  /** The mdev groups (external_domain->group_list, later emulated_iommu_groups). */
  external_groups: Type1Group[];
  /** The IOMMU-backed groups; null without any. */
  domain: Domain | null;
  iova_list: IovaList;
  /** Groups that dirty memory in ways that only the IOMMU sees. */
  num_non_pinned_groups: number;
  dirty_page_tracking: boolean;
  /** Who is told of unmaps: a notifier chain, or the list of open devices with a dma_unmap op. */
  notifier: NotifierChain;
  vaddr_invalid_count: number;
  /** Cleared when the container fd is closed: pins that wait for a vaddr give up. */
  container_open: boolean;
  /** Operations that wait for a vaddr, oldest first. */
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
  domain: null,
  iova_list: [],
  num_non_pinned_groups: 0,
  dirty_page_tracking: false,
  notifier: emptyChain(),
  vaddr_invalid_count: 0,
  container_open: true,
  vaddr_wait: [],
  ledger: new Map(),
});

/** The record of a group in the back end. */
export const type1Group = (iommu: Iommu, id: string): Type1Group | undefined =>
  [...iommu.external_groups, ...(iommu.domain?.groups ?? [])].find((group) => group.id === id);

/**
 * Models vfio_iommu_type1_detach_group(). The last group to leave takes all mappings with it, without notification; what is
 * still pinned leaks. The last IOMMU-backed one to leave mdev groups behind takes its own pins with it and leaves theirs.
 */
export function vfioIommuType1DetachGroup(host: Host, container: Container, iommu: Iommu, group: Group): void {
  const unscoped = type1Group(iommu, group.id)?.pinned_page_dirty_scope === false;
  if (group.kind === 'mdev') detachExternal(host, container, iommu, group.id);
  else detachFromDomain(host, container, iommu, group.id);
  if (!unscoped) return;
  iommu.num_non_pinned_groups--;
  if (iommu.dirty_page_tracking && host.profile.dirtyFillOnDetach) fillBitmaps(host, iommu);
}

function detachExternal(host: Host, container: Container, iommu: Iommu, id: string): void {
  iommu.external_groups = iommu.external_groups.filter((group) => group.id !== id);
  if (iommu.external_groups.length > 0) return;
  const isLast = iommu.domain === null;
  if (host.profile.leftoverCheck === 'at-detach') vfioSanityCheckPfnList(host, container, iommu);
  else if (isLast) warnOfListeners(host, iommu);
  if (isLast) vfioIommuUnmapUnpinAll(host, container, iommu);
}

function detachFromDomain(host: Host, container: Container, iommu: Iommu, id: string): void {
  const domain = iommu.domain as Domain;
  domain.groups = domain.groups.filter((group) => group.id !== id);
  const isLast = domain.groups.length === 0;
  if (isLast) {
    if (iommu.external_groups.length === 0) {
      if (host.profile.leftoverCheck === 'at-removal') warnOfListeners(host, iommu);
      vfioIommuUnmapUnpinAll(host, container, iommu);
    } else vfioIommuUnmapUnpinReaccount(host, iommu);
    iommu.domain = null;
  }
  const reserved = domain.groups.flatMap((group) => host.vfio.groups.get(group.id)?.reserved ?? []);
  iommu.iova_list = rangesWithout(host, iommu, isLast, reserved);
}

/** Models vfio_sanity_check_pfn_list() of old kernels: what the last mdev group should not leave behind. */
function vfioSanityCheckPfnList(host: Host, container: Container, iommu: Iommu): void {
  for (const dma of mappingsOf(host.vfio.dmas, iommu.dma_list)) {
    if (dma.pfn_list.root === 0) continue;
    const { where, text } = leftoverWarning(host, container.id, dma, dma.pfn_list.count);
    splat(host, 'WARN', where, text, ['vfio_iommu_type1_detach_group', host.profile.detachFunction]);
    break;
  }
  warnOfListeners(host, iommu, 'vfio_sanity_check_pfn_list', ['vfio_iommu_type1_detach_group']);
}

function warnOfListeners(
  host: Host,
  iommu: Iommu,
  where = 'vfio_iommu_type1_detach_group',
  path: readonly string[] = [],
): void {
  const left = blocksOf(iommu.notifier);
  if (left.length === 0) return;
  const what = `listeners-left-at-detach: notifier chain or device list not empty (${left.join(', ')})`;
  splat(host, 'WARN', where, what, [...path, host.profile.detachFunction]);
}

/** Models vfio_iommu_unmap_unpin_all(). */
function vfioIommuUnmapUnpinAll(host: Host, container: Container, iommu: Iommu): void {
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
      [host.profile.detachFunction],
    );
}

/** The WARN of `count` records that are left in a mapping: old kernels look when the last mdev group leaves, newer ones at its removal. */
export function leftoverWarning(
  { profile }: Host,
  container: string,
  { iova, npage }: Pick<VfioDma, 'iova' | 'npage'>,
  count: number,
): { where: string; text: string } {
  const [where, label] =
    profile.leftoverCheck === 'at-detach'
      ? ['vfio_sanity_check_pfn_list', 'pins-left-at-detach']
      : ['vfio_remove_dma', 'mapping-removed-with-pins'];
  return { where, text: `${label}: ${count} vfio_pfn left in ${printRange(iova, npage)} of ${container}` };
}

/** Models vfio_remove_dma(): a mapping goes away with its pages; records that are still in it leak, in newer kernels with a WARN. */
export function vfioRemoveDma(host: Host, container: Container, iommu: Iommu, dma: VfioDma, path: string[]): void {
  const { vfio } = host;
  if (dma.pfn_list.root !== 0 && host.profile.leftoverCheck === 'at-removal') {
    const { where, text } = leftoverWarning(host, container.id, dma, dma.pfn_list.count);
    splat(host, 'WARN', where, text, path);
  }
  vfioUnmapUnpinUncharge(host, iommu, dma);
  leakMapping(host, container, dma, iommu);
  while (dma.pfn_list.root !== 0) vfioUnlinkPfn(vfio.pfns, dma.pfn_list, firstPfn(vfio.pfns, dma.pfn_list));
  iommu.dma_list = vfioUnlinkDma(vfio.dmas, iommu.dma_list, dma);
  if (dma.vaddr_invalid) iommu.vaddr_invalid_count--;
  iommu.dma_avail++;
}

/** The iommu object of a device's container; null where there is none. */
export const iommuOf = (host: Host, container: string | null): Iommu | null =>
  container === null ? null : (host.vfio.containers.get(container)?.iommu ?? null);

/** EBUSY: an attach of the group waits already. */
export function refuseSecondAttach(host: Host, group: string): void {
  for (const operation of host.operations.values())
    if (operation.kind === 'set_container' && operation.state !== 'done' && operation.locals.group === group)
      throw new Errno('EBUSY', `group '${group}': ${operation.id} is attaching it`);
}
