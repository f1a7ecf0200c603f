// Models VFIO_IOMMU_DIRTY_PAGES: vfio_iommu_type1_dirty_pages() and vfio_iova_dirty_bitmap().

import { type Command, DIRTY_PAGES_GET_BITMAP, DIRTY_PAGES_START, DIRTY_PAGES_STOP } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { hex, isPageAligned, npageOf, pageNumberOf, printRange, U64_MAX } from '../lib/u64.ts';
import { getTask, requireMm } from '../mm/task.ts';
import type { Done } from '../outcome.ts';
import { getContainer, requireIommu } from './container.ts';
import { repopulateBitmap, startDirtyLog, stopDirtyLog, updateUserBitmap } from './dirty.ts';
import { mappingsOf, vfioFindDma } from './dma.ts';
import type { Iommu } from './iommu.ts';
import { bitmapField, checkBitmap, DIRTY_PGSIZE, newBitmap, userBitmap } from './user-bitmap.ts';

type DirtyPages = Extract<Command, { op: 'dirty_pages' }>;
type Range = NonNullable<DirtyPages['range']>;

/** Sizes of struct vfio_iommu_type1_dirty_bitmap, and of the range that follows it. */
export const DIRTY_ARGSZ = 8;
export const DIRTY_RANGE_ARGSZ = 40;
const KNOWN_FLAGS = DIRTY_PAGES_START | DIRTY_PAGES_STOP | DIRTY_PAGES_GET_BITMAP;

/**
 * START, STOP or GET_BITMAP. Fields: bitmap (GET_BITMAP without an address), base64.
 * ESRCH the named task has exited; ENOTTY before 5.8; EACCES v1 container; EINVAL argsz below 8, unknown flags, not exactly one;
 * then those of START (EINVAL, ENOMEM) or of GET_BITMAP.
 */
export function dirtyPages(host: Host, command: DirtyPages): Done {
  const { flags, task } = command;
  const container = getContainer(host, command.container);
  if (task !== null) getTask(host, task);
  const iommu = requireIommu(container);
  if (task !== null) requireMm(host, task);
  if (!host.profile.dirtyLog) throw new Errno('ENOTTY', `kernel ${host.profile.name} has no VFIO_IOMMU_DIRTY_PAGES`);
  if (!iommu.v2) throw new Errno('EACCES', `container '${container.id}' is TYPE1 (v1): it has no dirty log`);
  const argsz = command.argsz ?? (command.range === null ? DIRTY_ARGSZ : DIRTY_ARGSZ + DIRTY_RANGE_ARGSZ);
  if (argsz < DIRTY_ARGSZ) throw new Errno('EINVAL', `argsz ${argsz} is less than ${DIRTY_ARGSZ}`);
  if ((flags & ~KNOWN_FLAGS) !== 0) throw new Errno('EINVAL', `flags ${hex(BigInt(flags >>> 0))} have unknown bits`);
  if (flags === DIRTY_PAGES_START) {
    if (!iommu.dirty_page_tracking) startDirtyLog(host, iommu);
    return { ret: 0, fields: {} };
  }
  if (flags === DIRTY_PAGES_STOP) {
    if (iommu.dirty_page_tracking) stopDirtyLog(host, iommu);
    return { ret: 0, fields: {} };
  }
  if (flags !== DIRTY_PAGES_GET_BITMAP)
    throw new Errno('EINVAL', `flags ${flags}: exactly one of START, STOP, GET_BITMAP is taken`);
  if (argsz - DIRTY_ARGSZ < DIRTY_RANGE_ARGSZ)
    throw new Errno('EINVAL', `argsz ${argsz} is less than ${DIRTY_ARGSZ + DIRTY_RANGE_ARGSZ}, which GET_BITMAP needs`);
  if (command.range === null) throw new Errno('EFAULT', 'GET_BITMAP without a range');
  return getBitmap(host, iommu, command.range, task);
}

/**
 * EOVERFLOW, EINVAL the range passes the end of the space; EINVAL bitmap address or size; EINVAL page size, iova or size not of
 * the smallest page; EINVAL not running; EINVAL the range bisects a mapping; EFAULT the bitmap can't be written.
 */
function getBitmap(host: Host, iommu: Iommu, range: Range, task: string | null): Done {
  checkRange(host, range);
  const { iova, size, pgsize, bitmap_size, bitmap_addr } = range;
  const argument = { pgsize, size: bitmap_size, ...(bitmap_addr === undefined ? {} : { addr: bitmap_addr }) };
  checkBitmap(size, argument);
  if (pgsize !== DIRTY_PGSIZE)
    throw new Errno('EINVAL', `pgsize ${hex(pgsize)} is not the smallest page size ${hex(DIRTY_PGSIZE)}`);
  if (!isPageAligned(iova)) throw new Errno('EINVAL', `iova ${hex(iova)} is not a multiple of the page size`);
  if (!isPageAligned(size)) throw new Errno('EINVAL', `size ${hex(size)} is not a multiple of the page size`);
  if (!iommu.dirty_page_tracking) throw new Errno('EINVAL', 'dirty page tracking is not running');
  const own = newBitmap(argument);
  const first = pageNumberOf(iova);
  const npage = npageOf(size);
  refuseBisected(host, iommu, first, npage);
  const user = userBitmap(host, own, bitmap_addr, task);
  for (const dma of mappingsOf(host.vfio.dmas, iommu.dma_list)) {
    if (dma.iova < first) continue;
    if (dma.iova > first + npage - 1) break;
    updateUserBitmap(iommu, dma, first, user);
    repopulateBitmap(host, dma);
  }
  return { ret: 0, fields: bitmapField(own) };
}

function checkRange(host: Host, { iova, size }: Range): void {
  const { rangeOverflow } = host.profile;
  if (rangeOverflow === 'EOVERFLOW') {
    if (size === 0n) throw new Errno('EINVAL', 'size is 0');
    if (iova + size - 1n > U64_MAX)
      throw new Errno('EOVERFLOW', `iova ${hex(iova)} + size ${hex(size)} passes the end of the 64-bit space`);
  } else if (iova + size > U64_MAX)
    throw new Errno('EINVAL', `iova ${hex(iova)} + size ${hex(size)} reaches the end of the 64-bit space`);
}

/** The bisect test of an unmap. EINVAL. */
function refuseBisected(host: Host, iommu: Iommu, iova: number, npage: number): void {
  const { dmas } = host.vfio;
  const first = vfioFindDma(dmas, iommu.dma_list, iova, iova + 1);
  const last = vfioFindDma(dmas, iommu.dma_list, iova + npage - 1, iova + npage);
  const cut =
    first !== null && first.iova !== iova
      ? first
      : last !== null && dmas.endOf(last) !== dmas.end(iova, npage)
        ? last
        : null;
  if (cut !== null)
    throw new Errno('EINVAL', `${printRange(iova, npage)} cuts the mapping ${printRange(cut.iova, cut.npage)}`);
}
