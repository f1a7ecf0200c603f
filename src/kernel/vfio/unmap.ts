// Models vfio_dma_do_unmap() of drivers/vfio/vfio_iommu_type1.c: the loop that must not remove a mapping with pins in it.

import { type Command, UNMAP_ALL, UNMAP_GET_DIRTY_BITMAP, UNMAP_VADDR } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import {
  hex,
  isPageAligned,
  npageOf,
  PAGES_IN_U64,
  pageNumberOf,
  printRange,
  sizeOf,
  U64_MAX,
  wrappedEnd,
} from '../lib/u64.ts';
import { UNMAP_MAX_RETRIES } from '../limits.ts';
import { getTask, mmOf, requireMm } from '../mm/task.ts';
import { hasRoomForOperation, type Operation, requireRoomForOperation, startOperation } from '../operation.ts';
import type { Done, Fields } from '../outcome.ts';
import { killContainer } from './bug.ts';
import { type Container, getContainer, requireAlive, requireIommu } from './container.ts';
import { requireDeviceListLock } from './device-open.ts';
import { updateUserBitmap } from './dirty.ts';
import { type VfioDma, vfioFindDma, vfioFindDmaFirstNode } from './dma.ts';
import { type Iommu, vfioRemoveDma } from './iommu.ts';
import { enterChain, leaveChain, refuseDeadlock } from './notifier.ts';
import { blocksOf } from './notifier-chain.ts';
import { lockUp, type Walk, walkChain } from './unmap-walk.ts';
import { bitmapField, checkBitmap, DIRTY_PGSIZE, newBitmap, userBitmap } from './user-bitmap.ts';
import { invalidateVaddr, wakeVaddrWaiters } from './vaddr.ts';

type UnmapDma = Extract<Command, { op: 'unmap_dma' }>;

/** Sizes of struct vfio_iommu_type1_dma_unmap without and with the dirty bitmap. */
export const UNMAP_ARGSZ = 24;
export const UNMAP_BITMAP_ARGSZ = 48;

/** Locals of vfio_dma_do_unmap(). */
export interface UnmapLocals {
  container: string;
  iova: number;
  npage: number;
  flags: number;
  /** The caller's mm; null: a foreign one, which owns no mapping. */
  caller_mm: string | null;
  /** Pages removed so far, modulo 2^52 as their bytes are modulo 2^64: the running total that restarts keep. */
  unmapped: number;
  /** Mapping that was notified last, and how often in a row beyond the first. */
  dma_last: number;
  retries: number;
  restarted: boolean;
  /** Handler calls so far, over all listeners and tries. */
  notifications: number;
  /** Where the dirty bits go. */
  bitmap: { own: Uint8Array | null; addr?: bigint; task: string | null } | null;
  walk: Walk | null;
}

/**
 * VFIO_IOMMU_UNMAP_DMA. Fields: size (what was removed), notifications, warnings, bitmap. Blocks while handlers run.
 * ESRCH the named task has exited; EINVAL argsz below 24 or unknown flags; EINVAL GET_DIRTY_BITMAP with ALL or VADDR, argsz
 * below 48, bitmap too small or too large; EBUSY VADDR with an mdev group (6.x); EINVAL iova misaligned; EINVAL ALL with iova
 * or size; EINVAL size 0 or misaligned; EINVAL or EOVERFLOW wrapping; EINVAL dirty log not running; EDEADLK it would deadlock;
 * EINVAL the range bisects a mapping; EFAULT the bitmap can't be written; EIO BUG: pins left after 11 tries, or the
 * dirty log stopped meanwhile.
 */
export function unmapDma(host: Host, command: UnmapDma): Done {
  const container = getContainer(host, command.container);
  const task = command.task === null ? null : getTask(host, command.task);
  const iommu = requireIommu(container);
  if (task !== null) requireMm(host, task.id);
  checkIoctl(host, command);
  checkRange(host, iommu, command);
  const locals: UnmapLocals = {
    container: container.id,
    iova: pageNumberOf(command.iova),
    npage: npageOf(command.size),
    flags: command.flags,
    caller_mm: null,
    unmapped: 0,
    dma_last: 0,
    retries: 0,
    restarted: false,
    notifications: 0,
    bitmap: bitmapOf(command),
    walk: null,
  };
  const caller = task?.id ?? lowestOverlapping(host, iommu, locals)?.task ?? null;
  locals.caller_mm = caller === null ? null : (mmOf(host, caller)?.id ?? null);
  requireMayWalk(host, container, iommu, locals);
  return vfioDmaDoUnmap(host, container, iommu, locals, null);
}

/** The ioctl layer. */
function checkIoctl({ profile }: Host, { argsz, flags, size, bitmap }: UnmapDma): void {
  const given = argsz ?? (bitmap === null ? UNMAP_ARGSZ : UNMAP_BITMAP_ARGSZ);
  if (given < UNMAP_ARGSZ) throw new Errno('EINVAL', `argsz ${given} is less than ${UNMAP_ARGSZ}`);
  if ((flags & ~profile.unmapFlags) !== 0)
    throw new Errno('EINVAL', `flags ${hex(BigInt(flags >>> 0))} have unknown bits`);
  if ((flags & UNMAP_GET_DIRTY_BITMAP) === 0) return;
  if ((flags & (UNMAP_ALL | UNMAP_VADDR)) !== 0)
    throw new Errno('EINVAL', 'flags have GET_DIRTY_BITMAP together with ALL or VADDR');
  if (given < UNMAP_BITMAP_ARGSZ)
    throw new Errno('EINVAL', `argsz ${given} is less than ${UNMAP_BITMAP_ARGSZ}, which GET_DIRTY_BITMAP needs`);
  checkBitmap(size, bitmap ?? { pgsize: 0n, size: 0n });
}

/** vfio_dma_do_unmap() before its loop. */
function checkRange({ profile }: Host, iommu: Iommu, { iova, size, flags, bitmap }: UnmapDma): void {
  if ((flags & UNMAP_VADDR) !== 0 && profile.invalidVaddr === 'EBUSY' && iommu.external_groups.length > 0)
    throw new Errno('EBUSY', 'flag VADDR is refused while an mdev group is attached');
  if (!isPageAligned(iova)) throw new Errno('EINVAL', `iova ${hex(iova)} is not a multiple of the page size 0x1000`);
  if ((flags & UNMAP_ALL) !== 0) {
    if (iova !== 0n || size !== 0n)
      throw new Errno('EINVAL', `flag ALL goes with iova 0 and size 0, not ${hex(iova)} and ${hex(size)}`);
  } else if (size === 0n || !isPageAligned(size)) {
    throw new Errno('EINVAL', `size ${hex(size)} is 0 or not a multiple of the page size 0x1000`);
  } else if (profile.unmapWrapTest && iova + size - 1n > U64_MAX) {
    throw new Errno(profile.rangeOverflow, `iova ${hex(iova)} + size ${hex(size)} passes the end of the 64-bit space`);
  }
  if ((flags & UNMAP_GET_DIRTY_BITMAP) === 0) return;
  if (!iommu.dirty_page_tracking) throw new Errno('EINVAL', 'GET_DIRTY_BITMAP: dirty page tracking is not running');
  if (bitmap?.pgsize !== DIRTY_PGSIZE)
    throw new Errno('EINVAL', `pgsize ${hex(bitmap?.pgsize ?? 0n)} is not the smallest page size ${hex(DIRTY_PGSIZE)}`);
}

function bitmapOf({ flags, bitmap, task }: UnmapDma): UnmapLocals['bitmap'] {
  if ((flags & UNMAP_GET_DIRTY_BITMAP) === 0 || bitmap === null) return null;
  return { own: newBitmap(bitmap), task, ...(bitmap.addr === undefined ? {} : { addr: bitmap.addr }) };
}

/** One past the request as the loop compares it: ALL covers everything; a range that ends at 2^64 may have end 0. */
const endOf = ({ vfio: { dmas } }: Host, { flags, iova, npage }: UnmapLocals): number =>
  (flags & UNMAP_ALL) !== 0 ? PAGES_IN_U64 : dmas.end(iova, npage);

/**
 * The lowest mapping that overlaps the range, or null where the loop will come to none. Where ends wrap, one that ends at 2^64
 * overlaps nothing, and hides lower ones from the search of newer kernels.
 */
function lowestOverlapping(host: Host, iommu: Iommu, locals: UnmapLocals): VfioDma | null {
  const { dmas } = host.vfio;
  let lowest: VfioDma | null = null;
  for (let slot = firstSlot(host, iommu, locals); slot !== 0; slot = dmas.links.prev(slot)) {
    const dma = dmas.at(slot);
    const end = dmas.endOf(dma);
    if (end === 0) continue;
    if (end <= locals.iova) break;
    lowest = dma;
  }
  return lowest;
}

/**
 * Refuses, unexecuted, an unmap that would have to walk the listeners and can't. EDEADLK: inside a walk of the chain for which a
 * writer waits; from 6.0 on during any walk, since it would wait for device_list_lock with iommu->lock held. EBUSY:
 * MAX_PARKED_OPERATIONS.
 */
function requireMayWalk(host: Host, container: Container, iommu: Iommu, locals: UnmapLocals): void {
  const { head, readers, waiters } = iommu.notifier;
  if (head === null) return;
  const isOp = host.profile.listener === 'dma_unmap';
  const mustWait = (isOp ? readers : waiters).length > 0;
  if (!mustWait && hasRoomForOperation(host)) return;
  if (!meetsPinned(host, iommu, locals)) return;
  if (isOp) requireDeviceListLock(host, container, iommu, 'unmap_dma', 'vfio_notify_dma_unmap');
  else if (mustWait) refuseDeadlock(host, iommu.notifier, 'unmap_dma');
  requireRoomForOperation(host);
}

/** Whether the first pass of the loop comes to a mapping with records. */
function meetsPinned(host: Host, iommu: Iommu, locals: UnmapLocals): boolean {
  if ((locals.flags & UNMAP_VADDR) !== 0 || findBisected(host, iommu, locals) !== null) return false;
  for (const dma of wouldRemove(host, iommu, locals)) {
    if (isLoopEnd(host, iommu, locals, dma)) return false;
    if (dma.pfn_list.root !== 0) return true;
  }
  return false;
}

/** The mappings that the loop takes if it removes each, in its order. */
function* wouldRemove(host: Host, iommu: Iommu, locals: UnmapLocals): Iterable<VfioDma> {
  const { dmas } = host.vfio;
  if (host.profile.unmapOrder === 'ascending') {
    for (let slot = firstSlot(host, iommu, locals); slot !== 0; slot = dmas.links.next(slot)) yield dmas.at(slot);
    return;
  }
  // Which one is met next depends on the shape that the tree has by then.
  const sketch = dmas.sketch();
  const end = endOf(host, locals);
  let root = iommu.dma_list;
  for (;;) {
    const dma = vfioFindDma(sketch, root, locals.iova, end);
    if (dma === null) return;
    yield dma;
    root = sketch.links.erase(root, dma.slot);
  }
}

/** Whether the loop ends before a mapping: beyond the range, v1 and straddled by its start, or not the caller's mm. */
function isLoopEnd(host: Host, iommu: Iommu, locals: UnmapLocals, dma: VfioDma): boolean {
  if (dma.iova >= endOf(host, locals)) return true;
  if (!iommu.v2 && locals.iova > dma.iova) return true;
  if (host.profile.foreignMmUnmap === 'allowed') return false;
  return locals.caller_mm === null || mmOf(host, dma.task)?.id !== locals.caller_mm;
}

/**
 * The loop: bisect test, then removal; a mapping with records stops it for a walk over the listeners, with the lock dropped,
 * after which everything is looked up again.
 */
export function vfioDmaDoUnmap(
  host: Host,
  container: Container,
  iommu: Iommu,
  locals: UnmapLocals,
  started: Operation | null,
): Done {
  let operation = started;
  for (;;) {
    const invalid = iommu.vaddr_invalid_count;
    let pinned: VfioDma | null;
    try {
      pinned = removeUnpinned(host, container, iommu, locals);
    } finally {
      if (iommu.vaddr_invalid_count < invalid) wakeVaddrWaiters(host, iommu);
    }
    requireSameIommu(host, container, iommu);
    if (pinned === null) return { ret: 0, fields: resultOf(locals) };
    countTry(host, container, iommu, locals, pinned);
    const blocks = blocksOf(iommu.notifier);
    if (blocks.length === 0) continue;
    operation ??= startOperation(host, { kind: 'unmap_dma', locals });
    locals.walk = { blocks, at: 0, stopped: false, iova: pinned.iova, npage: pinned.npage, notification: null };
    if (!enterChain(host, iommu.notifier, operation) || !walkChain(host, operation, locals, locals.walk))
      return { ret: 0, fields: {}, parked: operation.id };
    const lockup = lockUp(host, container, iommu, locals.walk);
    if (lockup !== null) throw lockup;
    locals.walk = null;
    leaveChain(host, iommu.notifier, operation);
    requireSameIommu(host, container, iommu);
  }
}

/** EIO: the container died, or a call that this unmap let go on took the iommu object with it when it returned. */
export function requireSameIommu(host: Host, container: Container, iommu: Iommu): void {
  if (container.dead === null && container.iommu !== iommu)
    killContainer(host, container, 'vfio_dma_do_unmap', 'use-after-free: iommu freed under an unmap', [
      'vfio_iommu_type1_unmap_dma',
    ]);
  requireAlive(container);
}

/** Eleven tries for one mapping. EIO: BUG_ON(++retries > 10). */
function countTry(host: Host, container: Container, iommu: Iommu, locals: UnmapLocals, pinned: VfioDma): void {
  locals.restarted = true;
  if (pinned.id !== locals.dma_last) {
    locals.dma_last = pinned.id;
    locals.retries = 0;
    return;
  }
  locals.retries++;
  if (locals.retries > UNMAP_MAX_RETRIES) throw retriesExhausted(host, container, iommu, locals, pinned);
}

function resultOf(locals: UnmapLocals): Fields {
  const fields: Fields = { size: sizeOf(locals.unmapped), notifications: locals.notifications };
  if (locals.unmapped === 0) fields.warnings = ['NOTHING_UNMAPPED'];
  return { ...fields, ...bitmapField(locals.bitmap?.own ?? null) };
}

/**
 * One pass of the loop with the lock held: removes mappings until one has records (returned) or the range is through (null).
 * EINVAL: the range bisects a mapping; on a restart newer kernels end the call with what was removed. EFAULT: the bitmap. EIO:
 * it is gone.
 */
function removeUnpinned(host: Host, container: Container, iommu: Iommu, locals: UnmapLocals): VfioDma | null {
  const bisected = findBisected(host, iommu, locals);
  if (bisected !== null) {
    if (locals.restarted && host.profile.bisectOnRestart === 'success') return null;
    throw new Errno(
      'EINVAL',
      `${printRange(locals.iova, locals.npage)} cuts the mapping ${printRange(bisected.iova, bisected.npage)}`,
      { hint: 'TYPE1v2 unmaps whole mappings only' },
    );
  }
  const { dmas } = host.vfio;
  const invalidated: VfioDma[] = [];
  let slot = firstSlot(host, iommu, locals);
  while (slot !== 0) {
    const dma = dmas.at(slot);
    if (isLoopEnd(host, iommu, locals, dma)) break;
    if ((locals.flags & UNMAP_VADDR) !== 0) {
      invalidateVaddr(iommu, dma, invalidated);
      locals.unmapped = wrappedEnd(locals.unmapped, dma.npage);
      slot = dmas.links.next(slot);
      continue;
    }
    if (dma.pfn_list.root !== 0) return dma;
    if (locals.bitmap !== null) {
      if (dma.bitmap === null) throw withoutBitmap(host, container, locals, dma);
      const { own, addr, task } = locals.bitmap;
      updateUserBitmap(iommu, dma, locals.iova, userBitmap(host, own, addr, task));
    }
    const next = dmas.links.next(slot);
    locals.unmapped = wrappedEnd(locals.unmapped, dma.npage);
    vfioRemoveDma(host, container, iommu, dma, ['vfio_dma_do_unmap']);
    slot = host.profile.unmapOrder === 'ascending' ? next : firstSlot(host, iommu, locals);
  }
  return null;
}

/** The dirty log was stopped while the listeners ran: the kernel follows the pointer of a bitmap that is gone. */
function withoutBitmap(host: Host, container: Container, locals: UnmapLocals, dma: VfioDma): Errno {
  const what = `NULL pointer dereference: the dirty bitmap of ${printRange(dma.iova, dma.npage)} is gone`;
  killContainer(host, container, 'update_user_bitmap', what, ['vfio_dma_do_unmap', 'vfio_iommu_type1_unmap_dma']);
  return new Errno('EIO', `container '${container.id}' died: ${what}`, {
    hint: 'stop the dirty log when no unmap that reports it is waiting; see dmesg',
    left: { notifications: locals.notifications },
  });
}

/** The mapping that the loop takes first: the lowest one in the range, or in old kernels the one met first from the root. */
function firstSlot(host: Host, iommu: Iommu, locals: UnmapLocals): number {
  const { dmas } = host.vfio;
  const end = endOf(host, locals);
  if (host.profile.unmapOrder === 'ascending') return vfioFindDmaFirstNode(dmas, iommu.dma_list, locals.iova, end);
  return vfioFindDma(dmas, iommu.dma_list, locals.iova, end)?.slot ?? 0;
}

/** The mapping that the range's first or last page lies in without being its first or last, or null: v1 and ALL cut nothing. */
function findBisected(host: Host, iommu: Iommu, { iova, npage, flags }: UnmapLocals): VfioDma | null {
  if (!iommu.v2 || (flags & UNMAP_ALL) !== 0) return null;
  const { dmas } = host.vfio;
  const first = vfioFindDma(dmas, iommu.dma_list, iova, iova + 1);
  if (first !== null && first.iova !== iova) return first;
  const lastPage = (iova + npage - 1) % PAGES_IN_U64;
  const last = vfioFindDma(dmas, iommu.dma_list, lastPage, lastPage + 1);
  return last !== null && dmas.endOf(last) !== dmas.end(iova, npage) ? last : null;
}

/** BUG_ON(++retries > 10), with iommu->lock held. */
function retriesExhausted(host: Host, container: Container, iommu: Iommu, locals: UnmapLocals, dma: VfioDma): Errno {
  const blocks = blocksOf(iommu.notifier);
  const listeners = blocks.length === 0 ? 'nobody listens' : `listeners: ${blocks.join(', ')}`;
  const what = `unmap-retries-exhausted: ${dma.pfn_list.count} vfio_pfn still in ${container.id} ${printRange(dma.iova, dma.npage)} after ${UNMAP_MAX_RETRIES + 1} tries (${listeners})`;
  killContainer(host, container, 'vfio_dma_do_unmap', what, ['vfio_iommu_type1_unmap_dma', 'vfio_iommu_type1_ioctl']);
  return new Errno('EIO', `container '${container.id}' died: ${what}`, {
    hint: 'the handler must unpin every page of the announced range before it returns; see dmesg',
    left: { notifications: locals.notifications },
  });
}
