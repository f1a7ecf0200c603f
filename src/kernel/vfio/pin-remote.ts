// Models vfio_pin_pages_remote(), vfio_unpin_pages_remote() and struct vfio_batch: pages pinned because an IOMMU maps them.

import { WRITE } from '../command.ts';
import { Errno } from '../errno.ts';
import { type Host, printk } from '../host.ts';
import { PAGE_SIZE } from '../lib/u64.ts';
import type { MmStruct } from '../mm/mm.ts';
import { isInvalidOrReserved } from '../mm/page.ts';
import { getTask, requireMm, taskRlimitPages } from '../mm/task.ts';
import type { PfnRun, VfioDma } from './dma.ts';
import { putPfn, vfioLockAcct, vfioUncharge } from './lock-acct.ts';
import { vfioFindVpfn } from './pfn-list.ts';
import { vaddrAt, vaddrGetPfns } from './vaddr-get.ts';

/** The calling process: whose address space is pinned, and whose limit is tested. */
export interface Caller {
  mm: MmStruct;
  limit: number;
  cap_ipc_lock: boolean;
}

/** ESRCH: the task has exited. */
export const callerOf = (host: Host, task: string): Caller => ({
  mm: requireMm(host, task),
  limit: taskRlimitPages(host, task),
  cap_ipc_lock: getTask(host, task).cap_ipc_lock,
});

/** Pages that were got and not yet used, from `offset` on: what one chunk leaves, the next begins with. */
export interface Batch {
  pfns: number[];
  offset: number;
}

export const emptyBatch = (): Batch => ({ pfns: [], offset: 0 });
const left = ({ pfns, offset }: Batch): number => pfns.length - offset;

/** Models vfio_batch_unpin(). */
export function vfioBatchUnpin(host: Host, batch: Batch, prot: number): void {
  for (; left(batch) > 0; batch.offset++) putPfn(host, batch.pfns[batch.offset] as number, prot);
}

/** A chunk while it grows: its first pfn, pages, pages to charge, and whether they are reserved. */
interface Chunk {
  pfn: number;
  npage: number;
  charged: number;
  rsvd: boolean;
}

/**
 * Pins and charges pages of a mapping from `iova` on, at most `npage`, as long as their pfns are consecutive and alike reserved
 * or not. Pages with a record are charged already. Returns the chunk.
 * EFAULT; ENOMEM RLIMIT_MEMLOCK of the caller; ESRCH, EINTR, ENOMEM when the chunk is charged. Then nothing of it is left.
 */
export function vfioPinPagesRemote(
  host: Host,
  { mm, limit, cap_ipc_lock }: Caller,
  dma: VfioDma,
  iova: number,
  npage: number,
  batch: Batch,
): PfnRun {
  const cap = host.profile.capIpcLock === 'map' ? dma.lock_cap : cap_ipc_lock;
  const chunk: Chunk = { pfn: 0, npage: 0, charged: 0, rsvd: false };
  let failure: Errno | null = null;
  try {
    growChunk(host, mm, { dma, iova, npage, batch }, chunk, cap ? null : limit);
  } catch (error) {
    if (!(error instanceof Errno)) throw error;
    const policy = error.errno === 'ENOMEM' ? host.profile.remotePinOverLimit : host.profile.remotePinFault;
    if (chunk.npage === 0 || policy === 'dropped') failure = error;
  }
  try {
    if (failure === null) vfioLockAcct(host, dma, chunk.charged, true);
  } catch (error) {
    if (!(error instanceof Errno)) throw error;
    failure = error;
  }
  // A single page that was got and not used may be one of VM_PFNMAP, which the batch can't keep.
  if (batch.pfns.length === 1) vfioBatchUnpin(host, batch, dma.prot);
  if (failure === null) return { iova, pfn: chunk.pfn, npage: chunk.npage };
  if (!chunk.rsvd) for (let i = 0; i < chunk.npage; i++) putPfn(host, chunk.pfn + i, dma.prot);
  vfioBatchUnpin(host, batch, dma.prot);
  throw failure;
}

interface Wanted {
  dma: VfioDma;
  iova: number;
  npage: number;
  batch: Batch;
}

/** `limit`: in pages; null where CAP_IPC_LOCK lifts it. */
function growChunk(
  host: Host,
  mm: MmStruct,
  { dma, iova, npage, batch }: Wanted,
  chunk: Chunk,
  limit: number | null,
): void {
  const write = (dma.prot & WRITE) !== 0;
  while (chunk.npage < npage) {
    const at = iova + chunk.npage;
    if (left(batch) === 0) {
      const wanted = Math.min(npage - chunk.npage, host.profile.remotePinBatch);
      batch.pfns = vaddrGetPfns(host, mm, vaddrAt(dma.vaddr, at - dma.iova), wanted, write);
      batch.offset = 0;
    }
    const pfn = batch.pfns[batch.offset] as number;
    const rsvd = isInvalidOrReserved(host, pfn);
    if (chunk.npage === 0) {
      chunk.pfn = pfn;
      chunk.rsvd = rsvd;
    } else if (pfn !== chunk.pfn + chunk.npage || rsvd !== chunk.rsvd) return;
    if (!rsvd && vfioFindVpfn(host.vfio.pfns, dma.pfn_list, at) === 0) {
      const locked_vm = mm.locked_vm + chunk.charged + 1;
      if (limit !== null && (locked_vm < 0 || locked_vm > limit)) throw overLimit(host, mm, limit);
      chunk.charged++;
    }
    chunk.npage++;
    batch.offset++;
  }
}

function overLimit(host: Host, mm: MmStruct, limit: number): Errno {
  printk(host, 'warning', `vfio_pin_pages_remote: RLIMIT_MEMLOCK (${limit * PAGE_SIZE}) exceeded`);
  return new Errno('ENOMEM', `mm '${mm.id}': locked_vm ${mm.locked_vm} is at RLIMIT_MEMLOCK of ${limit} pages`);
}

/** Gives the pages of a chunk back. Returns how many were counted, and how many of those have a record. */
export function putChunk(host: Host, dma: VfioDma, { iova, pfn, npage }: PfnRun): { unlocked: number; locked: number } {
  let unlocked = 0;
  let locked = 0;
  for (let i = 0; i < npage; i++) {
    if (!putPfn(host, pfn + i, dma.prot)) continue;
    unlocked++;
    if (vfioFindVpfn(host.vfio.pfns, dma.pfn_list, iova + i) !== 0) locked++;
  }
  return { unlocked, locked };
}

/** Models vfio_unpin_pages_remote() with accounting: pages with a record stay charged. */
export function vfioUnpinPagesRemote(host: Host, dma: VfioDma, chunk: PfnRun): void {
  const { unlocked, locked } = putChunk(host, dma, chunk);
  vfioUncharge(host, dma, unlocked - locked);
}
