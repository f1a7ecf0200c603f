// Models vfio_unpin_pages() of drivers/vfio/vfio.c and vfio_iommu_type1_unpin_pages() with what lies below it.

import type { Command } from '../command.ts';
import { Errno } from '../errno.ts';
import { type Host, splat } from '../host.ts';
import { addressOf, hex, U64_MAX } from '../lib/u64.ts';
import { PIN_PAGES_MAX_ENTRIES } from '../limits.ts';
import type { Done } from '../outcome.ts';
import { killContainer } from './bug.ts';
import { type Container, getContainer } from './container.ts';
import { type Device, getDevice, groupOf } from './device.ts';
import { assertDeviceOpen } from './device-open.ts';
import { type VfioDma, vfioFindDmaOfPage } from './dma.ts';
import { type Group, vfioGroupAddContainerUser } from './group.ts';
import type { Iommu } from './iommu.ts';
import { ledgerUnpin } from './ledger.ts';
import { putPfn, vfioUncharge } from './lock-acct.ts';
import { vfioFindVpfn, vfioUnlinkPfn } from './pfn-list.ts';
import { type Entries, offsetOf, pageAt, requireCount, requireForm } from './pin.ts';
import { tracePages } from './traced-runs.ts';

type UnpinPages = Extract<Command, { op: 'unpin_pages' }>;

/**
 * vfio_unpin_pages(). ret: entries processed; from 6.0 on 0, and misuse is a WARN, named in the field warnings.
 * EIO container dead; EINVAL npage 0; E2BIG more than 512 or negative; ENODEV device without group; EINVAL group without
 * container or iommu; EACCES v1 container; EINVAL the first iova is not mapped.
 */
export function unpinPages(host: Host, command: UnpinPages): Done {
  const device = getDevice(host, command.device);
  const group = groupOf(host, device);
  requireForm(host, command);
  if (command.contiguous !== undefined) return unpinRange(host, command, device, group);
  if (command.npage === 0) throw new Errno('EINVAL', 'npage is 0');
  requireCount(command);
  if (group === null) throw new Errno('ENODEV', `device '${device.id}' belongs to no vfio group`);
  const { container, iommu } = vfioGroupAddContainerUser(host, group);
  if (!iommu.v2) throw new Errno('EACCES', `container '${container.id}' is TYPE1 (v1): it has no pins`);
  if (host.profile.externalDomainNeeded && iommu.external_groups.length === 0)
    throw new Errno('EINVAL', `container '${container.id}' has no mdev group`);
  const ret = vfioIommuType1UnpinPages(host, iommu, command.device, command);
  if (ret === 0) throw notMapped(container, command.user_pfn[0] as number);
  return { ret, fields: {} };
}

const notMapped = (container: Container, iova: number): Errno =>
  new Errno('EINVAL', `iova ${hex(addressOf(iova))} is not mapped in container '${container.id}'`, { at_index: 0 });

/** The form without a result: every misuse is a WARN, after which nothing, or what came before it, is done. */
function unpinRange(host: Host, command: UnpinPages, device: Device, group: Group | null): Done {
  const { npage, contiguous } = command;
  const warn = (where: string, label: string, detail: string): Done => {
    splat(host, 'WARN', where, `${label}: ${detail}`, ['vfio_unpin_pages']);
    return { ret: 0, fields: { warnings: [label] } };
  };
  if (!assertDeviceOpen(host, device, 'vfio_unpin_pages'))
    return warn('vfio_unpin_pages', 'device-not-open', device.id);
  if (device.listener === null) return warn('vfio_unpin_pages', 'device-without-unmap-callback', device.id);
  if (npage <= 0 || npage > PIN_PAGES_MAX_ENTRIES)
    return warn('vfio_device_container_unpin_pages', 'unpin-bad-count', `npage ${npage}`);
  if (group?.kind === 'noiommu') throw unpinWithoutOp(host, getContainer(host, group.container as string));
  const where = 'vfio_iommu_type1_unpin_pages';
  const { container, iommu } = vfioGroupAddContainerUser(host, group as Group);
  if (!iommu.v2) return warn(where, 'unpin-on-v1', container.id);
  const iova = contiguous?.iova ?? 0n;
  if (iova + BigInt(npage) * 4096n - 1n > U64_MAX)
    return warn(where, 'unpin-overflow', `iova ${hex(iova)} + ${npage} pages`);
  const done = vfioIommuType1UnpinPages(host, iommu, device.id, command);
  return done === npage
    ? { ret: 0, fields: {} }
    : warn(where, 'unpin-stopped-early', `${done} of ${npage} pages from iova ${hex(iova)}`);
}

/** The core asks whether a back end can pin, and not whether it can unpin. EIO: the container dies. */
function unpinWithoutOp(host: Host, container: Container): Errno {
  const what = 'NULL pointer dereference: the noiommu back end has no unpin_pages';
  killContainer(host, container, 'vfio_device_container_unpin_pages', what, ['vfio_unpin_pages']);
  return new Errno('EIO', `container '${container.id}' died: ${what}`, {
    hint: 'a device of a noiommu group has no pins',
  });
}

/**
 * vfio_iommu_type1_unpin_pages(): drops one reference an entry and stops at the first iova without mapping. An iova that is
 * mapped but not pinned counts as done. Returns the entries processed.
 */
export function vfioIommuType1UnpinPages(host: Host, iommu: Iommu, device: string, entries: Entries): number {
  const offset = offsetOf(entries);
  for (let i = 0; i < entries.npage; i++) {
    const page = pageAt(entries, i);
    const dma = vfioFindDmaOfPage(host.vfio.dmas, iommu.dma_list, page, offset);
    if (dma === null) {
      if (i > 0) tracePages(host, 'unpin', device, entries, i);
      return i;
    }
    vfioUnpinPageExternal(host, iommu, dma, page, offset, device);
  }
  tracePages(host, 'unpin', device, entries, entries.npage);
  return entries.npage;
}

/**
 * Models vfio_unpin_page_external() and vfio_iova_put_vfio_pfn(): one reference less; the last one puts the page, removes the
 * record and, where no IOMMU maps the page, uncharges it. An mm that is gone is not uncharged: its counter died with it.
 */
export function vfioUnpinPageExternal(
  host: Host,
  iommu: Iommu,
  dma: VfioDma,
  page: number,
  offset: number,
  device: string,
): void {
  const { dmas, pfns } = host.vfio;
  const record = vfioFindVpfn(pfns, dma.pfn_list, page, offset);
  if (record === 0) return;
  ledgerUnpin(iommu, device, page);
  if (pfns.addRefCount(record, -1) !== 0) return;
  const pfn = pfns.pfn(record);
  const unlocked = putPfn(host, pfn, dma.prot);
  vfioUnlinkPfn(pfns, dma.pfn_list, record);
  dmas.links.touch(dma.slot);
  if (unlocked && iommu.domain === null) vfioUncharge(host, dma, 1);
}
