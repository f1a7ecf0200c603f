// Models the walk over the listeners that an unmap makes with its lock dropped: blocking_notifier_call_chain() up to 5.19,
// vfio_notify_dma_unmap() from 6.0 on.

import type { Errno } from '../errno.ts';
import { type Host, printk, trace } from '../host.ts';
import { addressOf, sizeOf } from '../lib/u64.ts';
import { block, type Operation, settle } from '../operation.ts';
import { softLockup } from './bug.ts';
import { finishSlowBuiltin, runBuiltin } from './builtin.ts';
import type { Container } from './container.ts';
import type { Iommu } from './iommu.ts';
import { ledgerNotified } from './ledger.ts';
import { leaveChain, NOTIFY_STOP_MASK, type NotifierBlock } from './notifier.ts';
import { blocksOf, isEndless } from './notifier-chain.ts';
import { requireSameIommu, type UnmapLocals, vfioDmaDoUnmap } from './unmap.ts';

/** A walk over the notifier chain for one vfio_dma: a copy of its range, as the kernel passes one on its stack. */
export interface Walk {
  blocks: string[];
  /** Index of the block that is being called, or called next. */
  at: number;
  /** A callback's result has ended it early. */
  stopped: boolean;
  iova: number;
  npage: number;
  /** The notification that waits for its handler; null before the first call. */
  notification: string | null;
}

/** How a handler's call ended. */
export interface HandlerReturn {
  notification: string;
  ret: number;
  reason: 'ack' | 'webhook_failed' | 'slow_builtin' | 'timeout';
  detail: string | null;
}

/** Calls the chain's blocks from walk.at on. True: the walk is over; false: a handler is running elsewhere. */
export function walkChain(host: Host, operation: Operation, locals: UnmapLocals, walk: Walk): boolean {
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
  // The dma_unmap op of a device has no result.
  walk.stopped = host.profile.listener === 'notifier' && (ret & NOTIFY_STOP_MASK) !== 0;
  return walk.stopped || walk.at === walk.blocks.length;
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

/** A walk that went through comes to no end where the chain is a loop: the container dies of it. EIO; null: it has ended. */
export function lockUp(host: Host, container: Container, iommu: Iommu, walk: Walk): Errno | null {
  return walk.stopped || !isEndless(iommu.notifier) ? null : softLockup(host, container, 'unmap_dma');
}

type Unmap = Extract<Operation, { kind: 'unmap_dma' }>;

/** A handler has returned: the walk and then the loop go on. */
export function continueUnmapWalk(host: Host, operation: Operation, answer: HandlerReturn): void {
  if (operation.kind !== 'unmap_dma') throw new Error(`${operation.id} is no unmap`);
  const { locals } = operation;
  const container = host.vfio.containers.get(locals.container) as Container;
  const iommu = container.iommu as Iommu;
  const walk = locals.walk as Walk;
  operation.state = 'running';
  const over = handlerReturned(host, iommu, operation, walk, answer);
  if (!over && !walkChain(host, operation, locals, walk)) return;
  if (lockUp(host, container, iommu, walk) !== null) return;
  leaveChain(host, iommu.notifier, operation);
  continueUnmapLoop(host, operation, iommu);
}

/** The chain's lock was granted: calls the blocks. True: the walk is over; false: a handler is running elsewhere, or it never ends. */
export function startGrantedWalk(host: Host, operation: Unmap): boolean {
  const { locals } = operation;
  const walk = locals.walk as Walk;
  const container = host.vfio.containers.get(locals.container) as Container;
  const iommu = container.iommu as Iommu;
  operation.state = 'running';
  // The chain may have changed while the walk waited for its lock.
  walk.blocks = blocksOf(iommu.notifier);
  return walkChain(host, operation, locals, walk) && lockUp(host, container, iommu, walk) === null;
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
