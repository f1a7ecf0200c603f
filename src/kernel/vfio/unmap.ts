// Models vfio_dma_do_unmap() of drivers/vfio/vfio_iommu_type1.c: the loop that must not remove a mapping with pins in it.

import { type Command, UNMAP_ALL, UNMAP_GET_DIRTY_BITMAP, UNMAP_VADDR } from '../command.ts';
import { Errno } from '../errno.ts';
import { type Host, printk, trace } from '../host.ts';
import {
  addressOf,
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
import { DIRTY_BITMAP_SIZE_MAX, UNMAP_MAX_RETRIES } from '../limits.ts';
import { getTask, mmOf, requireMm } from '../mm/task.ts';
import { block, type Operation, requireRoomForOperation, settle, startOperation } from '../operation.ts';
import type { Done, Fields } from '../outcome.ts';
import { killContainer } from './bug.ts';
import { finishSlowBuiltin, runBuiltin } from './builtin.ts';
import { type Container, getContainer, requireAlive, requireIommu } from './container.ts';
import { type VfioDma, vfioFindDma, vfioFindDmaFirstNode } from './dma.ts';
import { type Iommu, vfioRemoveDma } from './iommu.ts';
import { ledgerNotified } from './ledger.ts';
import { enterChain, leaveChain, NOTIFY_STOP_MASK, type NotifierBlock, refuseDeadlock } from './notifier.ts';
import { wakeVaddrWaiters } from './pin.ts';

type UnmapDma = Extract<Command, { op: 'unmap_dma' }>;

/** Sizes of struct vfio_iommu_type1_dma_unmap without and with the dirty bitmap. */
export const UNMAP_ARGSZ = 24;
export const UNMAP_BITMAP_ARGSZ = 48;
const KNOWN_FLAGS = UNMAP_GET_DIRTY_BITMAP | UNMAP_ALL | UNMAP_VADDR;

/** A walk over the notifier chain for one vfio_dma: a copy of its range, as the kernel passes one on its stack. */
interface Walk {
  blocks: string[];
  /** Index of the block that is being called, or called next. */
  at: number;
  iova: number;
  npage: number;
  /** The notification that waits for its handler; null before the first call. */
  notification: string | null;
}

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
  walk: Walk | null;
}

/** How a handler's call ended. */
export interface HandlerReturn {
  notification: string;
  ret: number;
  reason: 'ack' | 'webhook_failed' | 'slow_builtin' | 'timeout';
  detail: string | null;
}

/**
 * VFIO_IOMMU_UNMAP_DMA. Fields: size (what was removed), notifications, warnings. Blocks while handlers run.
 * ESRCH the named task has exited; EINVAL argsz below 24 or unknown flags; EINVAL GET_DIRTY_BITMAP with ALL or VADDR, argsz
 * below 48, bitmap too small or too large; EINVAL iova misaligned; EINVAL ALL with iova or size; EINVAL size 0, misaligned or
 * wrapping; EINVAL dirty log not running; EINVAL the range bisects a mapping; EIO BUG: pins left after 11 tries.
 */
export function unmapDma(host: Host, command: UnmapDma): Done {
  const container = getContainer(host, command.container);
  const task = command.task === null ? null : getTask(host, command.task);
  const iommu = requireIommu(container);
  if (task !== null) requireMm(host, task.id);
  checkIoctl(command);
  checkRange(command);
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
    walk: null,
  };
  const caller = task?.id ?? lowestOverlapping(host, iommu, locals)?.task ?? null;
  locals.caller_mm = caller === null ? null : (mmOf(host, caller)?.id ?? null);
  requireMayWalk(host, iommu, locals);
  return vfioDmaDoUnmap(host, container, iommu, locals, null);
}

/** The ioctl layer. */
function checkIoctl({ argsz, flags, size, bitmap }: UnmapDma): void {
  const given = argsz ?? (bitmap === null ? UNMAP_ARGSZ : UNMAP_BITMAP_ARGSZ);
  if (given < UNMAP_ARGSZ) throw new Errno('EINVAL', `argsz ${given} is less than ${UNMAP_ARGSZ}`);
  if ((flags & ~KNOWN_FLAGS) !== 0) throw new Errno('EINVAL', `flags ${hex(BigInt(flags >>> 0))} have unknown bits`);
  if ((flags & UNMAP_GET_DIRTY_BITMAP) === 0) return;
  if ((flags & (UNMAP_ALL | UNMAP_VADDR)) !== 0)
    throw new Errno('EINVAL', 'flags have GET_DIRTY_BITMAP together with ALL or VADDR');
  if (given < UNMAP_BITMAP_ARGSZ)
    throw new Errno('EINVAL', `argsz ${given} is less than ${UNMAP_BITMAP_ARGSZ}, which GET_DIRTY_BITMAP needs`);
  const pgsize = bitmap?.pgsize ?? 0n;
  const bytes = bitmap?.size ?? 0n;
  const npages = pgsize === 0n ? 0n : size / (pgsize & -pgsize);
  const needed = ((npages + 63n) / 64n) * 8n;
  if (npages === 0n || bytes === 0n || bytes > DIRTY_BITMAP_SIZE_MAX || bytes < needed)
    throw new Errno(
      'EINVAL',
      `bitmap size ${hex(bytes)} does not fit ${npages} pages: ${hex(needed)} to ${hex(DIRTY_BITMAP_SIZE_MAX)} bytes`,
    );
}

/** vfio_dma_do_unmap() before its loop. */
function checkRange({ iova, size, flags }: UnmapDma): void {
  if (!isPageAligned(iova)) throw new Errno('EINVAL', `iova ${hex(iova)} is not a multiple of the page size 0x1000`);
  if ((flags & UNMAP_ALL) !== 0) {
    if (iova !== 0n || size !== 0n)
      throw new Errno('EINVAL', `flag ALL goes with iova 0 and size 0, not ${hex(iova)} and ${hex(size)}`);
  } else if (size === 0n || !isPageAligned(size)) {
    throw new Errno('EINVAL', `size ${hex(size)} is 0 or not a multiple of the page size 0x1000`);
  } else if (iova + size - 1n > U64_MAX) {
    throw new Errno('EINVAL', `iova ${hex(iova)} + size ${hex(size)} passes the end of the 64-bit space`);
  }
  if ((flags & UNMAP_GET_DIRTY_BITMAP) !== 0)
    throw new Errno('EINVAL', 'GET_DIRTY_BITMAP: dirty page tracking is not running');
}

/** One past the request as the loop compares it: ALL covers everything; a range that ends at 2^64 has end 0. */
const endOf = ({ flags, iova, npage }: UnmapLocals): number =>
  (flags & UNMAP_ALL) !== 0 ? PAGES_IN_U64 : wrappedEnd(iova, npage);

function lowestOverlapping(host: Host, iommu: Iommu, locals: UnmapLocals): VfioDma | null {
  const slot = vfioFindDmaFirstNode(host.vfio.dmas, iommu.dma_list, locals.iova, endOf(locals));
  return slot === 0 ? null : host.vfio.dmas.at(slot);
}

/**
 * Refuses, unexecuted, an unmap that would have to walk the chain and can't. EDEADLK: it is nested in a walk of the chain,
 * for which a writer waits. EBUSY: MAX_PARKED_OPERATIONS.
 */
function requireMayWalk(host: Host, iommu: Iommu, locals: UnmapLocals): void {
  if (iommu.notifier.blocks.length === 0 || !meetsPinned(host, iommu, locals)) return;
  if (iommu.notifier.waiters.length > 0) refuseDeadlock(host, iommu.notifier, 'unmap_dma');
  requireRoomForOperation(host);
}

/** Whether the first pass of the loop comes to a mapping with records. */
function meetsPinned(host: Host, iommu: Iommu, locals: UnmapLocals): boolean {
  if ((locals.flags & UNMAP_VADDR) !== 0 || findBisected(host, iommu, locals) !== null) return false;
  const { dmas } = host.vfio;
  let slot = vfioFindDmaFirstNode(dmas, iommu.dma_list, locals.iova, endOf(locals));
  for (; slot !== 0 && !isLoopEnd(host, iommu, locals, dmas.at(slot)); slot = dmas.links.next(slot))
    if (dmas.at(slot).pfn_list.root !== 0) return true;
  return false;
}

/** Whether the loop ends before a mapping: beyond the range, v1 and straddled by its start, or not the caller's mm. */
function isLoopEnd(host: Host, iommu: Iommu, locals: UnmapLocals, dma: VfioDma): boolean {
  if (dma.iova >= endOf(locals)) return true;
  if (!iommu.v2 && locals.iova > dma.iova) return true;
  return locals.caller_mm === null || mmOf(host, dma.task)?.id !== locals.caller_mm;
}

/**
 * The loop: bisect test, then removal in ascending order; a mapping with records stops it for a walk over the notifier
 * chain, with the lock dropped, after which everything is looked up again.
 */
function vfioDmaDoUnmap(
  host: Host,
  container: Container,
  iommu: Iommu,
  locals: UnmapLocals,
  started: Operation | null,
): Done {
  let operation = started;
  for (;;) {
    const invalid = iommu.vaddr_invalid_count;
    const pinned = removeUnpinned(host, container, iommu, locals);
    if (iommu.vaddr_invalid_count < invalid) {
      wakeVaddrWaiters(host, iommu);
      requireSameIommu(host, container, iommu);
    }
    if (pinned === null) return { ret: 0, fields: resultOf(locals) };
    if (pinned.id === locals.dma_last) {
      locals.retries++;
      if (locals.retries > UNMAP_MAX_RETRIES) throw retriesExhausted(host, container, iommu, locals, pinned);
    } else {
      locals.dma_last = pinned.id;
      locals.retries = 0;
    }
    locals.restarted = true;
    if (iommu.notifier.blocks.length === 0) continue;
    operation ??= startOperation(host, { kind: 'unmap_dma', locals });
    locals.walk = {
      blocks: [...iommu.notifier.blocks],
      at: 0,
      iova: pinned.iova,
      npage: pinned.npage,
      notification: null,
    };
    if (!enterChain(host, iommu.notifier, operation) || !walkChain(host, operation, locals, locals.walk))
      return { ret: 0, fields: {}, parked: operation.id };
    locals.walk = null;
    leaveChain(host, iommu.notifier, operation);
    requireSameIommu(host, container, iommu);
  }
}

/** EIO: the container died, or a call that this unmap let go on took the iommu object with it when it returned. */
function requireSameIommu(host: Host, container: Container, iommu: Iommu): void {
  if (container.dead === null && container.iommu !== iommu)
    killContainer(host, container, 'vfio_dma_do_unmap', 'use-after-free: iommu freed under an unmap', [
      'vfio_iommu_type1_unmap_dma',
    ]);
  requireAlive(container);
}

function resultOf(locals: UnmapLocals): Fields {
  const fields: Fields = { size: sizeOf(locals.unmapped), notifications: locals.notifications };
  if (locals.unmapped === 0) fields.warnings = ['NOTHING_UNMAPPED'];
  return fields;
}

/**
 * One pass of the loop with the lock held: removes mappings until one has records (returned) or the range is through (null).
 * EINVAL: the range bisects a mapping, on the first pass; on a restart the call ends with what was removed.
 */
function removeUnpinned(host: Host, container: Container, iommu: Iommu, locals: UnmapLocals): VfioDma | null {
  const { dmas } = host.vfio;
  const end = endOf(locals);
  const bisected = findBisected(host, iommu, locals);
  if (bisected !== null) {
    if (locals.restarted && host.profile.bisectOnRestart === 'success') return null;
    throw new Errno(
      'EINVAL',
      `${printRange(locals.iova, locals.npage)} cuts the mapping ${printRange(bisected.iova, bisected.npage)}`,
      { hint: 'TYPE1v2 unmaps whole mappings only' },
    );
  }
  let slot = vfioFindDmaFirstNode(dmas, iommu.dma_list, locals.iova, end);
  const invalidated: VfioDma[] = [];
  while (slot !== 0) {
    const dma = dmas.at(slot);
    if (isLoopEnd(host, iommu, locals, dma)) break;
    if ((locals.flags & UNMAP_VADDR) !== 0) {
      invalidateVaddr(iommu, locals, dma, invalidated);
      slot = dmas.links.next(slot);
      continue;
    }
    if (dma.pfn_list.root !== 0) return dma;
    slot = dmas.links.next(slot);
    locals.unmapped = wrappedEnd(locals.unmapped, dma.npage);
    vfioRemoveDma(host, container, iommu, dma, ['vfio_dma_do_unmap']);
  }
  return null;
}

/** The mapping that the range's first or last page lies in without being its first or last, or null: v1 and ALL cut nothing. */
function findBisected(host: Host, iommu: Iommu, { iova, npage, flags }: UnmapLocals): VfioDma | null {
  if (!iommu.v2 || (flags & UNMAP_ALL) !== 0) return null;
  const { dmas } = host.vfio;
  const first = vfioFindDma(dmas, iommu.dma_list, iova, iova + 1);
  if (first !== null && first.iova !== iova) return first;
  const last = vfioFindDma(dmas, iommu.dma_list, iova + npage - 1, iova + npage);
  return last !== null && wrappedEnd(last.iova, last.npage) !== wrappedEnd(iova, npage) ? last : null;
}

/** FLAG_VADDR: marks one mapping; EINVAL when it is marked already, and then this call's marks are taken back. */
function invalidateVaddr(iommu: Iommu, locals: UnmapLocals, dma: VfioDma, invalidated: VfioDma[]): void {
  if (dma.vaddr_invalid) {
    for (const marked of invalidated) {
      marked.vaddr_invalid = false;
      iommu.vaddr_invalid_count--;
    }
    throw new Errno('EINVAL', `the vaddr of mapping ${printRange(dma.iova, dma.npage)} is invalid already`);
  }
  dma.vaddr_invalid = true;
  iommu.vaddr_invalid_count++;
  invalidated.push(dma);
  locals.unmapped = wrappedEnd(locals.unmapped, dma.npage);
}

/** BUG_ON(++retries > 10), with iommu->lock held. */
function retriesExhausted(host: Host, container: Container, iommu: Iommu, locals: UnmapLocals, dma: VfioDma): Errno {
  const listeners =
    iommu.notifier.blocks.length === 0 ? 'nobody listens' : `listeners: ${iommu.notifier.blocks.join(', ')}`;
  const what = `unmap-retries-exhausted: ${dma.pfn_list.count} vfio_pfn still in ${container.id} ${printRange(dma.iova, dma.npage)} after ${UNMAP_MAX_RETRIES + 1} tries (${listeners})`;
  killContainer(host, container, 'vfio_dma_do_unmap', what, ['vfio_iommu_type1_unmap_dma', 'vfio_iommu_type1_ioctl']);
  return new Errno('EIO', `container '${container.id}' died: ${what}`, {
    hint: 'the handler must unpin every page of the announced range before it returns; see dmesg',
    left: { notifications: locals.notifications },
  });
}

/** Calls the chain's blocks from walk.at on. True: the walk is over; false: a handler is running elsewhere. */
function walkChain(host: Host, operation: Operation, locals: UnmapLocals, walk: Walk): boolean {
  while (walk.at < walk.blocks.length) {
    const block = host.vfio.notifiers.get(walk.blocks[walk.at] as string) as NotifierBlock;
    const ret = callBlock(host, operation, locals, walk, block);
    if (ret === null) return false;
    if (returned(host, operation, walk, block.id, ret)) return true;
  }
  return true;
}

/** A block's callback has returned; true when that ends the walk. */
function returned(host: Host, operation: Operation, walk: Walk, notifier: string, ret: number): boolean {
  trace(host, 'notify_return', operation.id, { notifier, notification: walk.notification, ret });
  walk.notification = null;
  walk.at++;
  return (ret & NOTIFY_STOP_MASK) !== 0 || walk.at === walk.blocks.length;
}

/** Calls one block: a built-in driver answers at once (its result), anything else gets a notification (null). */
function callBlock(
  host: Host,
  operation: Operation,
  locals: UnmapLocals,
  walk: Walk,
  notifier: NotifierBlock,
): number | null {
  const { container, retries } = locals;
  const iommu = host.vfio.containers.get(container)?.iommu as Iommu;
  const id = `notification-${host.vfio.next_notification++}`;
  const attempt = retries + 1;
  locals.notifications++;
  walk.notification = id;
  ledgerNotified(iommu, notifier.device, walk.iova, walk.npage);
  const range = { iova: addressOf(walk.iova), size: sizeOf(walk.npage) };
  trace(host, 'notify', operation.id, {
    notifier: notifier.id,
    device: notifier.device,
    notification: id,
    attempt,
    ...range,
  });
  const { delivery } = notifier;
  if (delivery.kind === 'builtin' && delivery.behavior !== 'slow')
    return runBuiltin(host, iommu, notifier.device, delivery, walk, attempt);
  const notification = {
    id,
    device: notifier.device,
    notifier: notifier.id,
    event: 'DMA_UNMAP' as const,
    ...range,
    container,
    attempt,
    seq: host.seq,
  };
  host.vfio.notifications.set(id, { notification, operation: operation.id, delivery, at: host.call.at });
  host.emitted.push(id);
  block(host, operation, 'notify', `notification:${id}`);
  return null;
}

type Unmap = Extract<Operation, { kind: 'unmap_dma' }>;

/** A handler has returned: the walk and then the loop go on. */
export function continueUnmapWalk(host: Host, operation: Operation, answer: HandlerReturn): void {
  if (operation.kind !== 'unmap_dma') throw new Error(`${operation.id} is no unmap`);
  const { locals } = operation;
  const { iommu } = host.vfio.containers.get(locals.container) as { iommu: Iommu };
  const walk = locals.walk as Walk;
  operation.state = 'running';
  const over = handlerReturned(host, iommu, operation, walk, answer);
  if (!over && !walkChain(host, operation, locals, walk)) return;
  leaveChain(host, iommu.notifier, operation);
  continueUnmapLoop(host, operation, iommu);
}

/** The chain's lock was granted: calls the blocks. True: the walk is over; false: a handler is running elsewhere. */
export function startGrantedWalk(host: Host, operation: Unmap): boolean {
  const { locals } = operation;
  const walk = locals.walk as Walk;
  operation.state = 'running';
  // The chain may have changed while the walk waited for its lock.
  walk.blocks = [...((host.vfio.containers.get(locals.container) as Container).iommu as Iommu).notifier.blocks];
  return walkChain(host, operation, locals, walk);
}

/** The walk is over and the chain's lock dropped: the loop goes on with the iommu object that it has. */
export function continueUnmapLoop(host: Host, operation: Unmap, iommu: Iommu): void {
  const { locals } = operation;
  const container = host.vfio.containers.get(locals.container) as Container;
  locals.walk = null;
  settle(host, operation, () => {
    requireSameIommu(host, container, iommu);
    return vfioDmaDoUnmap(host, container, iommu, locals, operation);
  });
}

function handlerReturned(host: Host, iommu: Iommu, operation: Operation, walk: Walk, answer: HandlerReturn): boolean {
  const pending = host.vfio.notifications.get(answer.notification);
  host.vfio.notifications.delete(answer.notification);
  const { device, notifier } = pending?.notification ?? { device: '', notifier: '' };
  if (answer.reason === 'slow_builtin') finishSlowBuiltin(host, iommu, device, walk);
  if (answer.reason === 'timeout')
    printk(
      host,
      'warning',
      `notifier ${notifier} of ${device} did not answer ${answer.notification} within ${host.options.notifier_timeout_ms} ms: going on as if its handler had returned`,
    );
  if (answer.reason === 'webhook_failed')
    printk(
      host,
      'warning',
      `notifier ${notifier} of ${device}: the webhook of ${answer.notification} failed (${answer.detail ?? 'no detail'}): its handler counts as returned without unpinning`,
    );
  return returned(host, operation, walk, notifier, answer.ret);
}
