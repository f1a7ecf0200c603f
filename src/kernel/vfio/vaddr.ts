// Models the invalidation of a mapping's vaddr (FLAG_VADDR of MAP_DMA and UNMAP_DMA) and what waits for a valid one.

import type { Command } from '../command.ts';
import { Errno } from '../errno.ts';
import { shouldFail } from '../fault-rule.ts';
import type { Host } from '../host.ts';
import { hex, npageOf, pageNumberOf, printRange } from '../lib/u64.ts';
import { accountLockedVm } from '../mm/accounting.ts';
import { getTask, requireMm } from '../mm/task.ts';
import { block, containerOf, getOperation, type Operation, settle } from '../operation.ts';
import type { Done } from '../outcome.ts';
import { continueAttach } from './attach.ts';
import type { Container } from './container.ts';
import type { VfioDma } from './dma.ts';
import { continueDmaRw } from './dma-rw.ts';
import { bind, type Group, vfioGroupTryDissolveContainer } from './group.ts';
import { type Iommu, iommuOf } from './iommu.ts';
import { mmOfDma } from './lock-acct.ts';
import { continuePin } from './pin.ts';

type MapDma = Extract<Command, { op: 'map_dma' }>;

/**
 * MAP_DMA with FLAG_VADDR: gives an invalidated mapping its new address. Where the mapping holds its own mm, owner and charge
 * move to the caller.
 * ENOENT no mapping; EINVAL not invalidated or not identical; ENOMEM, EINTR the caller can't be charged.
 */
export function updateVaddr(host: Host, iommu: Iommu, command: MapDma, dma: VfioDma | null): Done {
  const { iova, vaddr, size, task } = command;
  if (dma === null) throw new Errno('ENOENT', `no mapping overlaps iova ${hex(iova)} size ${hex(size)}`);
  if (!dma.vaddr_invalid) throw new Errno('EINVAL', `the vaddr of mapping ${printRange(dma.iova, dma.npage)} is valid`);
  if (dma.iova !== pageNumberOf(iova) || dma.npage !== npageOf(size))
    throw new Errno('EINVAL', `iova ${hex(iova)} size ${hex(size)} is not exactly ${printRange(dma.iova, dma.npage)}`);
  if (host.profile.mmKept === 'mapping') vfioChangeDmaOwner(host, dma, task);
  dma.vaddr = pageNumberOf(vaddr);
  dma.vaddr_invalid = false;
  iommu.vaddr_invalid_count--;
  wakeVaddrWaiters(host, iommu);
  return { ret: 0, fields: {} };
}

/** Models vfio_change_dma_owner(). ENOMEM the caller's limit; EINTR; then the old owner keeps mapping and charge. */
function vfioChangeDmaOwner(host: Host, dma: VfioDma, id: string): void {
  const task = getTask(host, id);
  const mm = requireMm(host, id);
  if (mm.id === dma.mm) return;
  const npage = dma.locked_vm;
  if (npage !== 0) {
    if (shouldFail(host, 'charge'))
      throw new Errno('EINTR', `killed while waiting to charge ${npage} pages to mm '${mm.id}'`);
    accountLockedVm(host, mm.id, task.leader, npage, true, task.cap_ipc_lock);
    const old = mmOfDma(host, dma);
    if (old !== null) accountLockedVm(host, old.id, dma.task, npage, false, dma.lock_cap);
  }
  dma.task = task.leader;
  dma.mm = mm.id;
  dma.lock_cap = task.cap_ipc_lock;
}

/** UNMAP_DMA with FLAG_VADDR: marks one mapping; EINVAL when it is marked already, and then this call's marks are taken back. */
export function invalidateVaddr(iommu: Iommu, dma: VfioDma, invalidated: VfioDma[]): void {
  if (dma.vaddr_invalid) {
    for (const marked of invalidated) marked.vaddr_invalid = false;
    iommu.vaddr_invalid_count -= invalidated.length;
    throw new Errno('EINVAL', `the vaddr of mapping ${printRange(dma.iova, dma.npage)} is invalid already`);
  }
  dma.vaddr_invalid = true;
  iommu.vaddr_invalid_count++;
  invalidated.push(dma);
}

/** Models vfio_wait(): the lock is dropped and the caller sleeps until a vaddr changes or the container fd is closed. */
export function sleepForVaddr(host: Host, iommu: Iommu, operation: Operation): void {
  block(host, operation, 'wait_vaddr', `vaddr:${containerOf(operation)}`);
  iommu.vaddr_wait.push(operation.id);
}

/** wake_up_all(&iommu->vaddr_wait): everyone who sleeps looks again, oldest first. */
export function wakeVaddrWaiters(host: Host, iommu: Iommu): void {
  const woken = iommu.vaddr_wait;
  iommu.vaddr_wait = [];
  for (const id of woken) {
    const operation = host.operations.get(id);
    if (operation === undefined || operation.state === 'done') continue;
    if (operation.kind === 'pin_pages') continuePin(host, iommu, operation);
    else if (operation.kind === 'dma_rw') continueDmaRw(host, iommu, operation);
    else continueAttach(host, operation, bindLate);
  }
}

/** The attach is done; a group fd that was closed meanwhile is released only now. */
function bindLate(host: Host, container: Container, group: Group): void {
  bind(container, group);
  if (!group.fd_open) vfioGroupTryDissolveContainer(host, group);
}

/** A fatal signal: the sleeper gives up with EFAULT. EINVAL: the operation does not sleep, or can't be killed in its sleep. */
export function killOperation(host: Host, { operation: id }: Extract<Command, { op: 'kill_operation' }>): Done {
  const operation = getOperation(host, id);
  const container = containerOf(operation);
  const iommu = container === null ? null : iommuOf(host, container);
  if (operation.state === 'done' || iommu === null || !iommu.vaddr_wait.includes(id))
    throw new Errno(
      'EINVAL',
      `operation '${id}' is ${operation.phase}: only a wait for a vaddr ends with a fatal signal`,
    );
  iommu.vaddr_wait = iommu.vaddr_wait.filter((waiting) => waiting !== id);
  if (operation.kind === 'pin_pages') continuePin(host, iommu, operation, true);
  else if (operation.kind === 'dma_rw') continueDmaRw(host, iommu, operation, true);
  else
    settle(host, operation, () => {
      throw new Errno('EFAULT', `${id} was killed while it waited for a vaddr`);
    });
  return { ret: 0, fields: { id } };
}
