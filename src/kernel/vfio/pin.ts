// Models vfio_pin_pages() of drivers/vfio/vfio.c and vfio_iommu_type1_pin_pages() with what lies below it.

import { type Command, WRITE } from '../command.ts';
import { Errno } from '../errno.ts';
import { type Host, printk } from '../host.ts';
import { addPages, addressOf, hex, type PageNumber } from '../lib/u64.ts';
import { PIN_PAGES_MAX_ENTRIES } from '../limits.ts';
import { accountLockedVm } from '../mm/accounting.ts';
import { followPfnmap, pinUserPage, unpinUserPage } from '../mm/gup.ts';
import type { MmStruct } from '../mm/mm.ts';
import { isInvalidOrReserved, isZeroPage } from '../mm/page.ts';
import { getTask, mmOf, taskRlimitPages } from '../mm/task.ts';
import { VM_PFNMAP, vmaAt } from '../mm/vma.ts';
import { block, type Operation, requireRoomForOperation, settle, startOperation } from '../operation.ts';
import type { Done } from '../outcome.ts';
import type { Container } from './container.ts';
import { getDevice, groupOf } from './device.ts';
import { type VfioDma, vfioFindDmaOfPage } from './dma.ts';
import { dropContainerUser, holdContainerUser, vfioGroupAddContainerUser } from './group.ts';
import type { Iommu } from './iommu.ts';
import { ledgerPin } from './ledger.ts';
import { vfioFindVpfn, vfioLinkPfn } from './pfn-list.ts';
import { vfioUnpinPageExternal } from './unpin.ts';

export type PinPages = Extract<Command, { op: 'pin_pages' }>;

/** Locals of a pin that sleeps until a vaddr is valid again. */
export interface PinLocals {
  container: string;
  /** Group of the device: one of its users while the pin sleeps. */
  group: string;
  command: PinPages;
}

/**
 * vfio_pin_pages(). Fields: phys_pfn.
 * EIO container dead; EINVAL npage 0; E2BIG more than 512 or negative; ENODEV device without group; EINVAL more than one
 * device in the group; EINVAL group without container or iommu; then those of vfioIommuType1PinPages.
 */
export function pinPages(host: Host, command: PinPages): Done {
  const device = getDevice(host, command.device);
  const group = groupOf(host, device);
  try {
    checkEntries(command);
    if (group === null) throw new Errno('ENODEV', `device '${device.id}' belongs to no vfio group`);
    if (host.profile.multiDeviceGroupPin === 'EINVAL' && group.devices.length > 1)
      throw new Errno('EINVAL', `group '${group.id}' has ${group.devices.length} devices; pinning needs exactly one`);
    const { container, iommu } = vfioGroupAddContainerUser(host, group);
    return vfioIommuType1PinPages(host, container, iommu, command, null);
  } catch (error) {
    throw withZeroedOutput(error, command);
  }
}

/** The array form and the length limit, for pin and unpin. EOPNOTSUPP the other era's form; EINVAL; E2BIG. */
export function checkEntries({
  contiguous,
  user_pfn,
  npage,
}: Pick<PinPages, 'contiguous' | 'user_pfn' | 'npage'>): void {
  if (contiguous !== undefined)
    throw new Errno('EOPNOTSUPP', 'this kernel takes an array of user_pfn, not iova and npage', {
      hint: 'send {"user_pfn": [...]}; iova and npage are the form of 6.0 and later',
    });
  if (npage === 0) throw new Errno('EINVAL', 'npage is 0');
  if (npage < 0 || npage > PIN_PAGES_MAX_ENTRIES)
    throw new Errno('E2BIG', `npage ${npage} exceeds ${PIN_PAGES_MAX_ENTRIES} entries a call`);
  if (npage > user_pfn.length)
    throw new Errno('EFAULT', `npage ${npage} reads beyond the ${user_pfn.length} entries of user_pfn`);
}

/** A refused pin leaves its output array as zeros. */
function withZeroedOutput(error: unknown, { user_pfn }: PinPages): unknown {
  if (error instanceof Errno) error.extra.left = { phys_pfn: new Array<number>(user_pfn.length).fill(0) };
  return error;
}

/**
 * vfio_iommu_type1_pin_pages(): all or nothing.
 * EACCES v1 container; EINVAL unmapped iova or sleep while some vaddr is invalid (EFAULT when the container fd closes
 * meanwhile); EINVAL nobody listens; then per page EINVAL no mapping, EPERM prot exceeds the mapping's, and the errors of
 * vfioPinPageExternal. An error at entry i drops the references that entries 0 .. i-1 took.
 */
export function vfioIommuType1PinPages(
  host: Host,
  container: Container,
  iommu: Iommu,
  command: PinPages,
  waiting: Operation | null,
): Done {
  const { user_pfn, npage, prot } = command;
  if (!iommu.v2) throw new Errno('EACCES', `container '${container.id}' is TYPE1 (v1): pinning needs TYPE1v2`);
  if (iommu.vaddr_invalid_count > 0) {
    const invalid = findInvalidVaddr(host, iommu, command);
    if (invalid !== null) return waitForVaddr(host, container, iommu, command, waiting);
  }
  if (iommu.notifier.blocks.length === 0)
    throw new Errno('EINVAL', `container '${container.id}' has no notifier registered`, {
      hint: 'register a DMA_UNMAP notifier before the first pin; any one of the container suffices',
    });
  const phys_pfn = new Array<number>(npage);
  const { seq, request_id } = waiting ?? { seq: host.seq, request_id: host.call.request_id };
  const source = { seq, request_id };
  for (let i = 0; i < npage; i++) {
    const iova = user_pfn[i] as PageNumber;
    try {
      phys_pfn[i] = pinOne(host, container, iommu, iova, prot);
    } catch (error) {
      if (error instanceof Errno) unwind(host, iommu, command, i, error);
      throw error;
    }
    ledgerPin(iommu, command.device, iova, source);
  }
  return { ret: npage, fields: { phys_pfn } };
}

/** Pins one iova, or raises the reference of its record. Returns its pfn. */
function pinOne(host: Host, container: Container, iommu: Iommu, iova: PageNumber, prot: number): number {
  const { dmas, pfns } = host.vfio;
  const dma = vfioFindDmaOfPage(dmas, iommu.dma_list, iova);
  if (dma === null)
    throw new Errno('EINVAL', `iova ${hex(addressOf(iova))} is not mapped in container '${container.id}'`);
  if ((dma.prot & prot) !== prot)
    throw new Errno('EPERM', `prot ${prot} exceeds prot ${dma.prot} of the mapping of iova ${hex(addressOf(iova))}`);
  const record = vfioFindVpfn(pfns, dma.pfn_list, iova);
  if (record !== 0) {
    pfns.addRefCount(record, 1);
    return pfns.pfn(record);
  }
  const pfn = vfioPinPageExternal(host, dma, iova);
  vfioLinkPfn(pfns, dma.pfn_list, iova, pfn);
  dmas.links.touch(dma.slot);
  return pfn;
}

/** pin_unwind: the entries before i drop the reference they took, in order. */
function unwind(host: Host, iommu: Iommu, { user_pfn, device }: PinPages, i: number, error: Errno): void {
  error.extra.at_index = i;
  for (let j = 0; j < i; j++) {
    const iova = user_pfn[j] as PageNumber;
    const dma = vfioFindDmaOfPage(host.vfio.dmas, iommu.dma_list, iova);
    if (dma !== null) vfioUnpinPageExternal(host, iommu, dma, iova, device);
  }
}

/**
 * Models vfio_pin_page_external() and vaddr_get_pfns(): pins the host page behind an iova and charges it. Whether it is a
 * write pin is the mapping's prot, not the caller's.
 * ENODEV the mm is gone; EFAULT hole, permission, or VM_PFNMAP page that is neither reserved nor without struct page; ENOMEM
 * RLIMIT_MEMLOCK.
 */
function vfioPinPageExternal(host: Host, dma: VfioDma, iova: PageNumber): number {
  const task = getTask(host, dma.task);
  const mm = mmOf(host, dma.task);
  if (mm === null) throw new Errno('ENODEV', `the mm of task '${dma.task}', which made the mapping, is gone`);
  const vaddr = addPages(dma.vaddr, iova - dma.iova);
  const write = (dma.prot & WRITE) !== 0;
  const pfn = vaddrGetPfn(host, mm, vaddr, write);
  if (isInvalidOrReserved(host, pfn)) return pfn;
  try {
    accountLockedVm(host, mm.id, task.id, 1, true, dma.lock_cap);
  } catch (error) {
    unpinUserPage(host, pfn, write);
    if (error instanceof Errno && error.errno === 'ENOMEM') {
      const limit = taskRlimitPages(host, task.id) * 4096;
      printk(
        host,
        'warning',
        `vfio_pin_page_external: Task ${task.id} (${task.pid}) RLIMIT_MEMLOCK (${limit}) exceeded`,
      );
    }
    throw error;
  }
  return pfn;
}

/** Models vaddr_get_pfns() for one page. EFAULT. */
function vaddrGetPfn(host: Host, mm: MmStruct, vaddr: PageNumber, write: boolean): number {
  const vma = vmaAt(mm, vaddr);
  if (vma === null || (vma.flags & VM_PFNMAP) === 0) {
    const pfn = pinUserPage(host, mm, vaddr, write);
    if (isZeroPage(host, pfn) && host.profile.zeroPagePin === 'released-at-once') unpinUserPage(host, pfn, false);
    return pfn;
  }
  const pfn = followPfnmap(host, mm, vaddr, write);
  if (!isInvalidOrReserved(host, pfn))
    throw new Errno(
      'EFAULT',
      `vaddr ${hex(addressOf(vaddr))} is VM_PFNMAP, but its page is neither reserved nor without struct page`,
    );
  return pfn;
}

/** The first requested iova whose mapping has an invalid vaddr, or null. EINVAL: an iova before it is not mapped. */
function findInvalidVaddr(host: Host, iommu: Iommu, { user_pfn, npage }: PinPages): VfioDma | null {
  for (let i = 0; i < npage; i++) {
    const dma = vfioFindDmaOfPage(host.vfio.dmas, iommu.dma_list, user_pfn[i] as number);
    if (dma === null)
      throw new Errno('EINVAL', `iova ${hex(addressOf(user_pfn[i] as number))} is not mapped`, { at_index: i });
    if (dma.vaddr_invalid) return dma;
  }
  return null;
}

/**
 * Models vfio_wait(): the lock is dropped and the pin sleeps until a vaddr changes. EFAULT: the container fd is closed.
 * EBUSY: MAX_PARKED_OPERATIONS.
 */
function waitForVaddr(
  host: Host,
  container: Container,
  iommu: Iommu,
  command: PinPages,
  waiting: Operation | null,
): Done {
  const operation = waiting ?? startWaiting(host, container, command);
  block(host, operation, 'wait_vaddr', `vaddr:${container.id}`);
  iommu.vaddr_wait.push(operation.id);
  return { ret: 0, fields: {}, parked: operation.id };
}

function startWaiting(host: Host, container: Container, command: PinPages): Operation {
  requireRoomForOperation(host);
  const group = getDevice(host, command.device).group as string;
  holdContainerUser(host, group);
  return startOperation(host, { kind: 'pin_pages', locals: { container: container.id, group, command } });
}

/** wake_up_all(&iommu->vaddr_wait): every sleeping pin looks again, oldest first. */
export function wakeVaddrWaiters(host: Host, iommu: Iommu): void {
  const woken = iommu.vaddr_wait;
  iommu.vaddr_wait = [];
  for (const id of woken) {
    const operation = host.operations.get(id);
    if (operation === undefined || operation.state === 'done' || operation.kind !== 'pin_pages') continue;
    const { container, group, command } = operation.locals;
    settle(host, operation, () => {
      try {
        return continuePin(host, container, iommu, command, operation);
      } catch (error) {
        throw withZeroedOutput(error, command);
      }
    });
    if (isDone(operation)) dropContainerUser(host, group);
  }
}

const isDone = ({ state }: Operation): boolean => state === 'done';

function continuePin(host: Host, container: string, iommu: Iommu, command: PinPages, operation: Operation): Done {
  const owner = host.vfio.containers.get(container);
  if (owner === undefined || !iommu.container_open)
    throw new Errno('EFAULT', `container '${container}' was closed while the pin waited for a vaddr`);
  return vfioIommuType1PinPages(host, owner, iommu, command, operation);
}
