// Models vfio_pin_pages() of drivers/vfio/vfio.c and vfio_iommu_type1_pin_pages() with what lies below it.

import { type Command, WRITE } from '../command.ts';
import { Errno } from '../errno.ts';
import { shouldFail } from '../fault-rule.ts';
import { type Host, printk, splat } from '../host.ts';
import { addressOf, hex, pageNumberOf, U64_MAX } from '../lib/u64.ts';
import { PIN_PAGES_MAX_ENTRIES } from '../limits.ts';
import type { MmId } from '../mm/mm.ts';
import { isInvalidOrReserved } from '../mm/page.ts';
import { KIND_DEVICE } from '../mm/page-frames.ts';
import { getTask, taskRlimitPages } from '../mm/task.ts';
import { warnOnce } from '../mm/warn-once.ts';
import { isDone, type Operation, requireRoomForOperation, settle, startOperation } from '../operation.ts';
import type { Done } from '../outcome.ts';
import { abortThread, schedule, type ThreadOperation } from '../thread.ts';
import type { Container } from './container.ts';
import { type Device, getDevice, groupOf } from './device.ts';
import { assertDeviceOpen } from './device-open.ts';
import { markDirty } from './dirty.ts';
import { type VfioDma, vfioFindDmaOfPage } from './dma.ts';
import { faultIn, mayTakeThread, type Need, needOf } from './fault-in.ts';
import { dropContainerUser, holdContainerUser, vfioGroupAddContainerUser } from './group.ts';
import { type Iommu, type1Group } from './iommu.ts';
import { leakPages, ledgerPin } from './ledger.ts';
import { lockCapOf, mmOfDma, putPfn, vfioLockAcct, vfioUncharge } from './lock-acct.ts';
import { vfioFindVpfn, vfioLinkPfn } from './pfn-list.ts';
import { tracePages } from './traced-runs.ts';
import { vfioUnpinPageExternal } from './unpin.ts';
import { sleepForVaddr } from './vaddr.ts';
import { vaddrAt, vaddrGetPfn } from './vaddr-get.ts';

export type PinPages = Extract<Command, { op: 'pin_pages' }>;

/** What names the pages of a pin or an unpin. */
export type Entries = Pick<PinPages, 'contiguous' | 'user_pfn' | 'npage'>;

/** Locals of a pin that sleeps until a vaddr is valid again. */
export interface PinLocals {
  container: string;
  /** Group of the device: one of its users while the pin sleeps. */
  group: string;
  command: PinPages;
  /** The address space whose page it waits for. */
  mm?: MmId | null;
}

/** Page number of entry i. */
export const pageAt = ({ contiguous, user_pfn }: Entries, i: number): number =>
  contiguous === undefined ? (user_pfn[i] as number) : pageNumberOf(contiguous.iova) + i;

/** Byte offset in the page of every entry. */
export const offsetOf = ({ contiguous }: Entries): number =>
  contiguous === undefined ? 0 : Number(contiguous.iova & 0xfffn);

const printIova = (page: number, offset: number): string => hex(addressOf(page) + BigInt(offset));

/**
 * vfio_pin_pages(). Fields: phys_pfn.
 * EIO container dead; EINVAL npage 0; E2BIG more than 512 or negative; ENODEV device without group; EINVAL more than one
 * device in the group; EINVAL group without container or iommu; then those of vfioIommuType1PinPages. From 6.0 on: EINVAL npage
 * 0; EINVAL device not open, with a WARN; EINVAL driver without dma_unmap; E2BIG.
 */
export function pinPages(host: Host, command: PinPages): Done {
  const device = getDevice(host, command.device);
  const group = groupOf(host, device);
  try {
    requireForm(host, command);
    if (command.npage === 0) throw new Errno('EINVAL', 'npage is 0');
    if (host.profile.deviceOpenCheck) requireOpenDevice(host, device);
    requireCount(command);
    if (group === null) throw new Errno('ENODEV', `device '${device.id}' belongs to no vfio group`);
    if (host.profile.multiDeviceGroupPin === 'EINVAL' && group.devices.length > 1)
      throw new Errno('EINVAL', `group '${group.id}' has ${group.devices.length} devices; pinning needs exactly one`);
    const { container, iommu } = vfioGroupAddContainerUser(host, group);
    return vfioIommuType1PinPages(host, container, iommu, command, null);
  } catch (error) {
    throw withZeroedOutput(error, command);
  }
}

function requireOpenDevice(host: Host, device: Device): void {
  if (!assertDeviceOpen(host, device, 'vfio_pin_pages')) {
    splat(host, 'WARN', 'vfio_pin_pages', `device-not-open: ${device.id}`, []);
    throw new Errno('EINVAL', `device '${device.id}' is not open`);
  }
  if (device.listener === null)
    throw new Errno('EINVAL', `the driver of device '${device.id}' has no dma_unmap op`, {
      hint: 'register a notifier for the device',
    });
}

/** EOPNOTSUPP: the form of the other era. */
export function requireForm(host: Host, { contiguous }: Entries): void {
  const isArray = host.profile.pinForm === 'user_pfn';
  if (isArray === (contiguous === undefined)) return;
  if (isArray)
    throw new Errno('EOPNOTSUPP', 'this kernel takes an array of user_pfn, not iova and npage', {
      hint: 'send {"user_pfn": [...]}; iova and npage are the form of 6.0 and later',
    });
  throw new Errno('EOPNOTSUPP', 'this kernel takes iova and npage, not an array of user_pfn', {
    hint: 'send {"iova": ..., "npage": ...}; user_pfn is the form before 6.0',
  });
}

/** E2BIG: more than 512, or negative. EFAULT: more than the array has. */
export function requireCount({ contiguous, user_pfn, npage }: Entries): void {
  if (npage < 0 || npage > PIN_PAGES_MAX_ENTRIES)
    throw new Errno('E2BIG', `npage ${npage} exceeds ${PIN_PAGES_MAX_ENTRIES} entries a call`);
  if (contiguous === undefined && npage > user_pfn.length)
    throw new Errno('EFAULT', `npage ${npage} reads beyond the ${user_pfn.length} entries of user_pfn`);
}

/** The output array of a pin that did not succeed: zeros. */
export function zeroedOutput({ contiguous, user_pfn, npage }: PinPages): { phys_pfn: number[] } {
  const slots = contiguous === undefined ? user_pfn.length : Math.min(Math.max(npage, 0), PIN_PAGES_MAX_ENTRIES);
  return { phys_pfn: new Array<number>(slots).fill(0) };
}

function withZeroedOutput(error: unknown, command: PinPages): unknown {
  if (error instanceof Errno) error.extra.left = zeroedOutput(command);
  return error;
}

/**
 * vfio_iommu_type1_pin_pages(): all or nothing.
 * EACCES v1 container; EOVERFLOW iova + npage (6.18); EINVAL unmapped iova or sleep while some vaddr is invalid (EFAULT when the
 * container fd closes meanwhile), or EBUSY; EINVAL nobody listens; then per page those of pinOne. An error at entry i drops the
 * references that entries 0 .. i-1 took. `ready`: no page of it takes a thread.
 */
export function vfioIommuType1PinPages(
  host: Host,
  container: Container,
  iommu: Iommu,
  command: PinPages,
  waiting: Operation | null,
  ready = false,
): Done {
  if (!iommu.v2) throw new Errno('EACCES', `container '${container.id}' is TYPE1 (v1): pinning needs TYPE1v2`);
  requireInSpace(command);
  if (iommu.vaddr_invalid_count > 0) {
    if (host.profile.invalidVaddr === 'EBUSY') throw refuseInvalidVaddr(host, container, iommu);
    if (hasInvalidVaddr(host, iommu, command)) return waitForVaddr(host, container, iommu, command, waiting);
  }
  requireListener(host, container, iommu);
  if (!ready && mayTakeThread(host)) {
    const locals = { container: container.id, group: getDevice(host, command.device).group as string, command };
    if (pinNeed(host, locals, 0) !== null) return faultIn(host, { kind: 'pin_pages', locals }, waiting);
  }
  const { npage, device } = command;
  const offset = offsetOf(command);
  const phys_pfn = new Array<number>(npage);
  const { seq, request_id } = waiting ?? { seq: host.seq, request_id: host.call.request_id };
  const source = { seq, request_id };
  for (let i = 0; i < npage; i++) {
    const page = pageAt(command, i);
    try {
      phys_pfn[i] = pinOne(host, container, iommu, page, offset, command.prot);
    } catch (error) {
      if (error instanceof Errno) unwind(host, iommu, command, i, error);
      throw error;
    }
    ledgerPin(iommu, device, page, source);
  }
  notePinnedScope(iommu, getDevice(host, device).group);
  tracePages(host, 'pin', device, command, npage);
  return { ret: npage, fields: { phys_pfn } };
}

/** The first page from entry `at` on that a thread has to bring in; null: none before the entry that the pin ends at. */
export function pinNeed(host: Host, { container, command }: PinLocals, at: number): Need | null {
  const iommu = host.vfio.containers.get(container)?.iommu ?? null;
  if (iommu === null) return null;
  const { dmas, pfns } = host.vfio;
  const offset = offsetOf(command);
  for (let i = at; i < command.npage; i++) {
    const page = pageAt(command, i);
    const dma = vfioFindDmaOfPage(dmas, iommu.dma_list, page, offset);
    const mm =
      dma === null || dma.vaddr_invalid || (dma.prot & command.prot) !== command.prot ? null : mmOfDma(host, dma);
    if (dma === null || mm === null) return null;
    if (vfioFindVpfn(pfns, dma.pfn_list, page, offset) !== 0) continue;
    const need = needOf(host, mm, vaddrAt(dma.vaddr, page - dma.iova), (dma.prot & WRITE) !== 0, i);
    if (need === 'hole') return null;
    if (need !== null) return need;
  }
  return null;
}

/** The pin of a thread that has brought its pages in. EFAULT: the container has lost its iommu meanwhile; as the pin itself. */
export function pinAgain(host: Host, operation: ThreadOperation): Done {
  if (operation.kind !== 'pin_pages') throw new Error(`${operation.id} is no pin`);
  const { container: id, command } = operation.locals;
  try {
    const container = host.vfio.containers.get(id);
    if (container === undefined || container.iommu === null)
      throw new Errno('EFAULT', `container '${id}' was closed while the pin waited for a page`);
    return vfioIommuType1PinPages(host, container, container.iommu, command, operation, true);
  } catch (error) {
    throw withZeroedOutput(error, command);
  }
}

/** EOVERFLOW. */
function requireInSpace({ contiguous, npage }: PinPages): void {
  if (contiguous !== undefined && contiguous.iova + BigInt(npage) * 4096n - 1n > U64_MAX)
    throw new Errno('EOVERFLOW', `iova ${hex(contiguous.iova)} + ${npage} pages passes the end of the 64-bit space`);
}

function refuseInvalidVaddr(host: Host, container: Container, iommu: Iommu): Errno {
  const what = 'pin-with-invalid-vaddr: vfio_pin_pages not allowed with VFIO_UPDATE_VADDR';
  warnOnce(host, 'vfio_iommu_type1_pin_pages', what, ['vfio_pin_pages']);
  return new Errno('EBUSY', `container '${container.id}': ${iommu.vaddr_invalid_count} mappings have an invalid vaddr`);
}

/** EINVAL: nobody in the whole container listens; in the oldest kernels also: it has no mdev group. */
function requireListener(host: Host, container: Container, iommu: Iommu): void {
  if (host.profile.externalDomainNeeded && iommu.external_groups.length === 0)
    throw new Errno('EINVAL', `container '${container.id}' has no mdev group`);
  if (iommu.notifier.head === null)
    throw new Errno('EINVAL', `container '${container.id}' has no notifier registered`, {
      hint: 'register a DMA_UNMAP notifier before the first pin; any one of the container suffices',
    });
}

/** A group that pins dirties memory only where it pinned, from now on. */
function notePinnedScope(iommu: Iommu, id: string | null): void {
  const group = id === null ? undefined : type1Group(iommu, id);
  if (group === undefined || group.pinned_page_dirty_scope) return;
  group.pinned_page_dirty_scope = true;
  iommu.num_non_pinned_groups--;
}

/**
 * Pins one iova, or raises the reference of its record. Returns its pfn.
 * EINVAL no mapping; EPERM prot exceeds the mapping's; those of vfioPinPageExternal; EINVAL no struct page (6.x); ENOMEM no
 * record.
 */
function pinOne(host: Host, container: Container, iommu: Iommu, page: number, offset: number, prot: number): number {
  const { dmas, pfns } = host.vfio;
  const dma = vfioFindDmaOfPage(dmas, iommu.dma_list, page, offset);
  if (dma === null)
    throw new Errno('EINVAL', `iova ${printIova(page, offset)} is not mapped in container '${container.id}'`);
  if ((dma.prot & prot) !== prot)
    throw new Errno('EPERM', `prot ${prot} exceeds prot ${dma.prot} of the mapping of iova ${printIova(page, offset)}`);
  const record = vfioFindVpfn(pfns, dma.pfn_list, page, offset);
  if (record !== 0) {
    pfns.addRefCount(record, 1);
    return pfns.pfn(record);
  }
  const accounting = iommu.domain === null;
  const pfn = vfioPinPageExternal(host, dma, page, accounting);
  if (host.profile.pfnWithoutStructPage === 'EINVAL' && host.mm.pages.kind(pfn) === KIND_DEVICE)
    throw new Errno('EINVAL', `page ${pfn} behind iova ${printIova(page, offset)} has no struct page`);
  if (shouldFail(host, 'record_alloc')) throw failRecord(host, container, dma, pfn, accounting);
  vfioLinkPfn(pfns, dma.pfn_list, page, pfn, offset);
  markDirty(dma, page - dma.iova, 1);
  dmas.links.touch(dma.slot);
  return pfn;
}

/** No memory for the record: newer kernels return the page and its charge, old ones forget them. */
function failRecord(host: Host, container: Container, dma: VfioDma, pfn: number, accounting: boolean): Errno {
  if (host.profile.addRecordFailure === 'leak')
    leakPages(host, container, dma, [pfn], accounting && !isInvalidOrReserved(host, pfn) ? 1 : 0);
  else if (putPfn(host, pfn, dma.prot) && accounting) vfioUncharge(host, dma, 1);
  return new Errno('ENOMEM', `no memory for the record of page ${pfn}`);
}

/** pin_unwind: the entries before i drop the reference they took, in order. */
function unwind(host: Host, iommu: Iommu, command: PinPages, i: number, error: Errno): void {
  error.extra.at_index = i;
  const offset = offsetOf(command);
  for (let j = 0; j < i; j++) {
    const page = pageAt(command, j);
    const dma = vfioFindDmaOfPage(host.vfio.dmas, iommu.dma_list, page, offset);
    if (dma !== null) vfioUnpinPageExternal(host, iommu, dma, page, offset, command.device);
  }
}

/**
 * Models vfio_pin_page_external(): pins the host page behind an iova and, unless an IOMMU maps it already, charges it. Whether
 * it is a write pin is the mapping's prot, not the caller's.
 * ENODEV the mm is gone; EFAULT, as vaddrGetPfn; ENOMEM RLIMIT_MEMLOCK; EINTR killed while charging.
 */
function vfioPinPageExternal(host: Host, dma: VfioDma, page: number, accounting: boolean): number {
  const mm = mmOfDma(host, dma);
  if (mm === null) throw new Errno('ENODEV', `the mm of task '${dma.task}', which made the mapping, is gone`);
  const pfn = vaddrGetPfn(host, mm, vaddrAt(dma.vaddr, page - dma.iova), (dma.prot & WRITE) !== 0);
  if (isInvalidOrReserved(host, pfn)) return pfn;
  try {
    if (host.profile.limitTest === 'always') requireBelowLimit(host, dma, mm.locked_vm + 1);
    if (accounting) vfioLockAcct(host, dma, 1);
  } catch (error) {
    putPfn(host, pfn, dma.prot);
    if (error instanceof Errno && error.errno === 'ENOMEM') {
      const { id, pid } = getTask(host, dma.task);
      const limit = taskRlimitPages(host, id) * 4096;
      printk(host, 'warning', `vfio_pin_page_external: Task ${id} (${pid}) RLIMIT_MEMLOCK (${limit}) exceeded`);
    }
    throw error;
  }
  return pfn;
}

/** ENOMEM. */
function requireBelowLimit(host: Host, dma: VfioDma, locked_vm: number): void {
  const limit = taskRlimitPages(host, dma.task);
  if (!lockCapOf(host, dma) && (locked_vm < 0 || locked_vm > limit))
    throw new Errno(
      'ENOMEM',
      `task '${dma.task}': locked_vm ${locked_vm - 1} + 1 pages is over RLIMIT_MEMLOCK of ${limit} pages`,
    );
}

/** Whether one of the requested iovas has an invalid vaddr. EINVAL: an iova before it is not mapped. */
function hasInvalidVaddr(host: Host, iommu: Iommu, command: PinPages): boolean {
  for (let i = 0; i < command.npage; i++) {
    const page = pageAt(command, i);
    const dma = vfioFindDmaOfPage(host.vfio.dmas, iommu.dma_list, page);
    if (dma === null) throw new Errno('EINVAL', `iova ${printIova(page, 0)} is not mapped`, { at_index: i });
    if (dma.vaddr_invalid) return true;
  }
  return false;
}

/** The pin sleeps until a vaddr changes. EBUSY: MAX_PARKED_OPERATIONS. */
function waitForVaddr(
  host: Host,
  container: Container,
  iommu: Iommu,
  command: PinPages,
  waiting: Operation | null,
): Done {
  const operation = waiting ?? startWaiting(host, container, command);
  sleepForVaddr(host, iommu, operation);
  return { ret: 0, fields: {}, parked: operation.id };
}

function startWaiting(host: Host, container: Container, command: PinPages): Operation {
  requireRoomForOperation(host);
  const group = getDevice(host, command.device).group as string;
  holdContainerUser(host, group);
  return startOperation(host, { kind: 'pin_pages', locals: { container: container.id, group, command } });
}

/** A vaddr has changed: the pin looks at all of its iovas again. EFAULT: the container fd was closed, or it was killed. */
export function continuePin(host: Host, iommu: Iommu, operation: Operation, killed = false): void {
  if (operation.kind !== 'pin_pages') throw new Error(`${operation.id} is no pin`);
  const { container: id, group, command } = operation.locals;
  if (operation.thread !== undefined) {
    const cause = killed ? `${operation.id} was killed` : `container '${id}' was closed`;
    const error = new Errno('EFAULT', `${cause} while the pin waited for a vaddr`, { left: zeroedOutput(command) });
    if (killed || !iommu.container_open) abortThread(host, operation as ThreadOperation, error);
    else schedule(host, operation as ThreadOperation);
    return;
  }
  settle(host, operation, () => {
    try {
      const container = host.vfio.containers.get(id);
      if (killed) throw new Errno('EFAULT', `${operation.id} was killed while it waited for a vaddr`);
      if (container === undefined || !iommu.container_open)
        throw new Errno('EFAULT', `container '${id}' was closed while the pin waited for a vaddr`);
      return vfioIommuType1PinPages(host, container, iommu, command, operation);
    } catch (error) {
      throw withZeroedOutput(error, command);
    }
  });
  if (isDone(operation)) dropContainerUser(host, group);
}
