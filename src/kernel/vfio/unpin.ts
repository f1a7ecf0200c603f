// Models vfio_unpin_pages() of drivers/vfio/vfio.c and vfio_iommu_type1_unpin_pages() with what lies below it.

import { type Command, WRITE } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { addressOf, hex, type PageNumber } from '../lib/u64.ts';
import { accountLockedVm } from '../mm/accounting.ts';
import { unpinUserPage } from '../mm/gup.ts';
import { isInvalidOrReserved } from '../mm/page.ts';
import { mmOf } from '../mm/task.ts';
import type { Done } from '../outcome.ts';
import type { Container } from './container.ts';
import { getDevice, groupOf } from './device.ts';
import { type VfioDma, vfioFindDmaOfPage } from './dma.ts';
import { vfioGroupAddContainerUser } from './group.ts';
import type { Iommu } from './iommu.ts';
import { ledgerUnpin } from './ledger.ts';
import { vfioFindVpfn, vfioUnlinkPfn } from './pfn-list.ts';
import { checkEntries } from './pin.ts';

/**
 * vfio_unpin_pages(). ret: entries processed.
 * EIO container dead; EINVAL npage 0; E2BIG more than 512 or negative; ENODEV device without group; EINVAL group without
 * container or iommu; EACCES v1 container; EINVAL the first iova is not mapped.
 */
export function unpinPages(host: Host, command: Extract<Command, { op: 'unpin_pages' }>): Done {
  const device = getDevice(host, command.device);
  const group = groupOf(host, device);
  checkEntries(command);
  if (group === null) throw new Errno('ENODEV', `device '${device.id}' belongs to no vfio group`);
  const { container, iommu } = vfioGroupAddContainerUser(host, group);
  if (!iommu.v2) throw new Errno('EACCES', `container '${container.id}' is TYPE1 (v1): it has no pins`);
  const ret = vfioIommuType1UnpinPages(host, iommu, command.device, command.user_pfn, command.npage);
  if (ret === 0) throw notMapped(container, command.user_pfn[0] as number);
  return { ret, fields: {} };
}

const notMapped = (container: Container, iova: number): Errno =>
  new Errno('EINVAL', `iova ${hex(addressOf(iova))} is not mapped in container '${container.id}'`, { at_index: 0 });

/**
 * vfio_iommu_type1_unpin_pages(): drops one reference an entry and stops at the first iova without mapping. An iova that is
 * mapped but not pinned counts as done. Returns the entries processed.
 */
export function vfioIommuType1UnpinPages(
  host: Host,
  iommu: Iommu,
  device: string,
  user_pfn: readonly number[],
  npage: number,
): number {
  for (let i = 0; i < npage; i++) {
    const iova = user_pfn[i] as PageNumber;
    const dma = vfioFindDmaOfPage(host.vfio.dmas, iommu.dma_list, iova);
    if (dma === null) return i;
    vfioUnpinPageExternal(host, iommu, dma, iova, device);
  }
  return npage;
}

/**
 * Models vfio_unpin_page_external() and vfio_iova_put_vfio_pfn(): one reference less; the last one puts the page, removes the
 * record and uncharges it. An mm that is gone is not uncharged: its counter died with it.
 */
export function vfioUnpinPageExternal(host: Host, iommu: Iommu, dma: VfioDma, iova: PageNumber, device: string): void {
  const { dmas, pfns } = host.vfio;
  const record = vfioFindVpfn(pfns, dma.pfn_list, iova);
  if (record === 0) return;
  ledgerUnpin(iommu, device, iova);
  if (pfns.addRefCount(record, -1) !== 0) return;
  const pfn = pfns.pfn(record);
  vfioUnlinkPfn(pfns, dma.pfn_list, record);
  dmas.links.touch(dma.slot);
  if (isInvalidOrReserved(host, pfn)) return;
  unpinUserPage(host, pfn, (dma.prot & WRITE) !== 0);
  const mm = mmOf(host, dma.task);
  if (mm !== null) accountLockedVm(host, mm.id, dma.task, 1, false, dma.lock_cap);
}
