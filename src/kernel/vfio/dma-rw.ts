// Models vfio_dma_rw() and vfio_iommu_type1_dma_rw(): a vendor driver reads or writes what lies behind iovas, without a pin.

import { type Command, READ, WRITE } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { fromBase64, toBase64 } from '../lib/base64.ts';
import { hex, PAGE_SIZE, pageNumberOf, U64_MAX } from '../lib/u64.ts';
import { MAX_DMA_RW } from '../limits.ts';
import type { MmId } from '../mm/mm.ts';
import { getTask, mmOf } from '../mm/task.ts';
import { copyFromUser, copyToUser } from '../mm/user-copy.ts';
import { warnOnce } from '../mm/warn-once.ts';
import { isDone, type Operation, requireRoomForOperation, settle, startOperation } from '../operation.ts';
import type { Done } from '../outcome.ts';
import { abortThread, schedule, type ThreadOperation } from '../thread.ts';
import { getDevice, groupOf } from './device.ts';
import { assertDeviceOpen } from './device-open.ts';
import { markDirty } from './dirty.ts';
import { type VfioDma, vfioFindDma } from './dma.ts';
import { faultIn, mayTakeThread, type Need, needOf } from './fault-in.ts';
import { dropContainerUser, holdContainerUser, vfioGroupAddContainerUser } from './group.ts';
import type { Iommu } from './iommu.ts';
import { mmOfDma } from './lock-acct.ts';
import { sleepForVaddr } from './vaddr.ts';
import { vaddrAt } from './vaddr-get.ts';

type DmaRw = Extract<Command, { op: 'dma_rw' }>;

/** Locals of an access that sleeps until a vaddr is valid again. */
export interface DmaRwLocals {
  container: string;
  /** Group of the device: one of its users while the access sleeps. */
  group: string;
  command: DmaRw;
  /** Bytes to write, or read so far. */
  data: Uint8Array;
  done: number;
  /** The address space whose page it waits for. */
  mm?: MmId | null;
}

/**
 * vfio_dma_rw(). Fields: data (of a read), base64; a refusal has what was read before it.
 * EIO container dead; EOPNOTSUPP before 5.7; EINVAL length 0 or less; EINVAL device not open (6.x); ENODEV device without group;
 * EINVAL group without container or iommu; EBUSY a vaddr is invalid (6.x); then per mapping EINVAL none, EPERM prot, EPERM its mm
 * is gone, EFAULT the caller is of another mm, EFAULT the memory can't be reached.
 */
export function dmaRw(host: Host, command: DmaRw): Done {
  const { length, task } = command;
  const device = getDevice(host, command.device);
  const group = groupOf(host, device);
  if (task !== null) getTask(host, task);
  if (!host.profile.dmaRw) throw new Errno('EOPNOTSUPP', `kernel ${host.profile.name} has no vfio_dma_rw()`);
  if (length <= 0) throw new Errno('EINVAL', `length ${length} is not above 0`);
  if (host.profile.deviceOpenCheck && !assertDeviceOpen(host, device, 'vfio_dma_rw'))
    throw new Errno('EINVAL', `device '${device.id}' is not open`);
  if (group === null) throw new Errno('ENODEV', `device '${device.id}' belongs to no vfio group`);
  const { container, iommu } = vfioGroupAddContainerUser(host, group);
  if (length > MAX_DMA_RW) throw new Errno('E2BIG', `length ${length}: a call takes ${MAX_DMA_RW} bytes at most`);
  if (host.profile.invalidVaddr === 'EBUSY' && iommu.vaddr_invalid_count > 0) {
    warnOnce(
      host,
      'vfio_iommu_type1_dma_rw',
      'pin-with-invalid-vaddr: vfio_dma_rw not allowed with VFIO_UPDATE_VADDR',
      ['vfio_dma_rw'],
    );
    throw new Errno(
      'EBUSY',
      `container '${container.id}': ${iommu.vaddr_invalid_count} mappings have an invalid vaddr`,
    );
  }
  const locals = { container: container.id, group: group.id, command, data: bytesOf(command), done: 0 };
  return dmaRwChunks(host, iommu, locals, null);
}

/** EFAULT: fewer bytes than length says. */
function bytesOf({ write, length, data }: DmaRw): Uint8Array {
  if (!write) return new Uint8Array(length);
  const bytes = fromBase64(data ?? '');
  if (bytes === null || bytes.length < length)
    throw new Errno('EFAULT', `length ${length} reads beyond the ${bytes?.length ?? 0} bytes of data`);
  return bytes.subarray(0, length);
}

/** Chunk by chunk, each to the end of its mapping; `ready`: no page takes a thread. What was done before an error stays done. */
function dmaRwChunks(host: Host, iommu: Iommu, locals: DmaRwLocals, waiting: Operation | null, ready = false): Done {
  const { command, data } = locals;
  if (!ready && mayTakeThread(host) && dmaRwNeed(host, locals, 0) !== null)
    return faultIn(host, { kind: 'dma_rw', locals }, waiting);
  try {
    while (locals.done < command.length) {
      const iova = BigInt.asUintN(64, command.iova + BigInt(locals.done));
      const dma = findAt(host, iommu, iova);
      if (dma.vaddr_invalid) {
        const operation = waiting ?? startWaiting(host, locals);
        sleepForVaddr(host, iommu, operation);
        return { ret: 0, fields: {}, parked: operation.id };
      }
      locals.done += dmaRwChunk(host, iommu, dma, iova, locals);
    }
  } catch (error) {
    throw withReadSoFar(error, locals);
  }
  return { ret: 0, fields: command.write ? {} : { data: toBase64(data) } };
}

/** The first page from byte `at` on that a thread has to bring in; null: none before the byte that the access ends at. */
export function dmaRwNeed(host: Host, { container, command, done }: DmaRwLocals, at: number): Need | null {
  const iommu = host.vfio.containers.get(container)?.iommu ?? null;
  if (iommu === null) return null;
  for (let byte = Math.max(at, done); byte < command.length; ) {
    const iova = BigInt.asUintN(64, command.iova + BigInt(byte));
    const dma = vfioFindDma(host.vfio.dmas, iommu.dma_list, pageNumberOf(iova), pageNumberOf(iova) + 1);
    const mm = dma === null || dma.vaddr_invalid ? null : mmOfDma(host, dma);
    if (dma === null || mm === null || !mayAccess(dma, command)) return null;
    if (command.task !== null && mmOf(host, command.task) !== mm) return null;
    const next = byte + PAGE_SIZE - Number(iova & 0xfffn);
    const need = needOf(host, mm, vaddrAt(dma.vaddr, pageNumberOf(iova) - dma.iova), command.write, next - 1);
    if (need === 'hole') return null;
    if (need !== null) return need;
    byte = next;
  }
  return null;
}

/** The access of a thread that has brought its pages in. EFAULT: the container has lost its iommu meanwhile; as the access itself. */
export function dmaRwAgain(host: Host, operation: ThreadOperation): Done {
  if (operation.kind !== 'dma_rw') throw new Error(`${operation.id} is no dma_rw`);
  const { locals } = operation;
  const iommu = host.vfio.containers.get(locals.container)?.iommu ?? null;
  if (iommu === null) {
    const what = `container '${locals.container}' was closed while the access waited for a page`;
    throw withReadSoFar(new Errno('EFAULT', what), locals);
  }
  return dmaRwChunks(host, iommu, locals, operation, true);
}

/** EBUSY: MAX_PARKED_OPERATIONS. */
function startWaiting(host: Host, locals: DmaRwLocals): Operation {
  requireRoomForOperation(host);
  holdContainerUser(host, locals.group);
  return startOperation(host, { kind: 'dma_rw', locals });
}

/** What an access that did not succeed has read before it stopped. */
export const readSoFar = ({ command, data, done }: DmaRwLocals): { data?: string } =>
  command.write ? {} : { data: toBase64(data.subarray(0, done)) };

function withReadSoFar(error: unknown, locals: DmaRwLocals): unknown {
  if (error instanceof Errno && !locals.command.write) error.extra.left = readSoFar(locals);
  return error;
}

/** The mapping of one byte. EINVAL. */
function findAt({ vfio: { dmas } }: Host, iommu: Iommu, iova: bigint): VfioDma {
  const page = pageNumberOf(iova);
  const dma = vfioFindDma(dmas, iommu.dma_list, page, iova === U64_MAX ? dmas.end(page, 1) : page + 1);
  if (dma === null) throw new Errno('EINVAL', `iova ${hex(iova)} is not mapped`);
  return dma;
}

const mayAccess = ({ prot }: VfioDma, { write }: DmaRw): boolean =>
  (prot & READ) !== 0 && (!write || (prot & WRITE) !== 0);

/** Models vfio_iommu_type1_dma_rw_chunk(). Returns the bytes done. */
function dmaRwChunk(
  host: Host,
  iommu: Iommu,
  dma: VfioDma,
  iova: bigint,
  { command, data, done }: DmaRwLocals,
): number {
  const { write, task } = command;
  if (!mayAccess(dma, command))
    throw new Errno(
      'EPERM',
      `prot ${dma.prot} of the mapping of iova ${hex(iova)} does not permit ${write ? 'write' : 'read'}`,
    );
  const mm = mmOfDma(host, dma);
  if (mm === null) throw new Errno('EPERM', `the mm of task '${dma.task}', which made the mapping, is gone`);
  if (task !== null && mmOf(host, task) !== mm)
    throw new Errno('EFAULT', `task '${task}' lives in another mm than the mapping of iova ${hex(iova)}`);
  const offset = iova - (BigInt(dma.iova) << 12n);
  const room = (BigInt(dma.npage) << 12n) - offset;
  const count = Math.min(command.length - done, room > BigInt(MAX_DMA_RW) ? MAX_DMA_RW : Number(room));
  const vaddr = BigInt.asUintN(64, (BigInt(dma.vaddr) << 12n) + offset);
  const bytes = data.subarray(done, done + count);
  const missing = write ? copyToUser(host, mm, vaddr, bytes) : copyFromUser(host, mm, vaddr, bytes);
  if (missing > 0) throw new Errno('EFAULT', `vaddr ${hex(vaddr)}: ${missing} of ${count} bytes can't be reached`);
  if (write && iommu.dirty_page_tracking) markWritten(host, dma, offset, count);
  return count;
}

function markWritten(host: Host, dma: VfioDma, offset: bigint, count: number): void {
  const first = Number(offset >> 12n);
  const whole = host.profile.dmaRwDirties === 'whole';
  const npage = whole ? count >>> 12 : Number((offset + BigInt(count) - 1n) >> 12n) - first + 1;
  markDirty(dma, first, npage);
  host.vfio.dmas.links.touch(dma.slot);
}

/** A vaddr has changed: the access goes on where it stopped, or sleeps again. EFAULT: the container fd was closed, or it was killed. */
export function continueDmaRw(host: Host, iommu: Iommu, operation: Operation, killed = false): void {
  if (operation.kind !== 'dma_rw') throw new Error(`${operation.id} is no dma_rw`);
  const { locals } = operation;
  if (operation.thread !== undefined) {
    const why = killed ? `${operation.id} was killed` : `container '${locals.container}' was closed`;
    const error = new Errno('EFAULT', `${why} while the access waited for a vaddr`, { left: readSoFar(locals) });
    if (killed || !iommu.container_open) abortThread(host, operation as ThreadOperation, error);
    else schedule(host, operation as ThreadOperation);
    return;
  }
  settle(host, operation, () => {
    const cause = killed ? `${operation.id} was killed` : `container '${locals.container}' was closed`;
    if (killed || !iommu.container_open)
      throw withReadSoFar(new Errno('EFAULT', `${cause} while the access waited for a vaddr`), locals);
    return dmaRwChunks(host, iommu, locals, operation);
  });
  if (isDone(operation)) dropContainerUser(host, locals.group);
}
