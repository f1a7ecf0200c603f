// Models the dirty bitmap of a vfio_dma: one bit a page while the log runs, set by pins and writes, reported to the user.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { MAX_DIRTY_BITMAPS } from '../limits.ts';
import { mappingsOf, type VfioDma } from './dma.ts';
import type { Iommu } from './iommu.ts';
import { firstPfn, nextPfn } from './pfn-list.ts';
import type { UserBitmap } from './user-bitmap.ts';

/** Most pages of a mapping that the log can follow (INT_MAX). */
const DIRTY_BITMAP_PAGES_MAX = 2 ** 31 - 1;
/** Bits of an unsigned long: bitmaps are whole ones. */
export const BITS_PER_LONG = 64;

const longsOf = (bits: number): number => Math.ceil(bits / BITS_PER_LONG);

/** Sets the bits [first, first + count) of a bitmap of 32-bit words. */
function bitmapSet(bitmap: Uint32Array, first: number, count: number): void {
  for (let bit = first; bit < first + count; ) {
    const word = bit >>> 5;
    const from = bit & 31;
    const to = Math.min(32, from + first + count - bit);
    const mask = to - from === 32 ? 0xffffffff : (((1 << (to - from)) - 1) << from) >>> 0;
    bitmap[word] = ((bitmap[word] ?? 0) | mask) >>> 0;
    bit += to - from;
  }
}

/** Clears the bits [0, count): those beyond it in the last word stay. */
function bitmapClear(bitmap: Uint32Array, count: number): void {
  bitmap.fill(0, 0, count >>> 5);
  const rest = count & 31;
  if (rest > 0) bitmap[count >>> 5] = ((bitmap[count >>> 5] as number) & ~((1 << rest) - 1)) >>> 0;
}

/** Models bitmap_shift_left() in place: `longs` words of 64 bits move up by 1 to 63 bits. */
function bitmapShiftLeft(bitmap: Uint32Array, shift: number, longs: number): void {
  const words = shift >>> 5;
  const bits = shift & 31;
  for (let k = 2 * longs - 1; k >= 0; k--) {
    const upper = bitmap[k - words] ?? 0;
    const lower = bits === 0 ? 0 : (bitmap[k - words - 1] ?? 0) >>> (32 - bits);
    bitmap[k] = ((upper << bits) | lower) >>> 0;
  }
}

function bitmapBytes(host: Host): number {
  let bytes = 0;
  for (const dma of host.vfio.dmas.records) bytes += dma?.bitmap?.byteLength ?? 0;
  return bytes;
}

/**
 * Models vfio_dma_bitmap_alloc(). EINVAL: more than INT_MAX pages. ENOMEM: the host's bitmaps are MAX_DIRTY_BITMAPS. `used` is
 * what they take before. Returns what they take now.
 */
export function vfioDmaBitmapAlloc(host: Host, dma: VfioDma, used = bitmapBytes(host)): number {
  if (dma.npage > DIRTY_BITMAP_PAGES_MAX)
    throw new Errno('EINVAL', `a mapping of ${dma.npage} pages is too large for the dirty log`);
  // One long more: a bitmap that is reported is shifted up to the caller's first page.
  const longs = longsOf(dma.npage) + 1;
  if (used + longs * 8 > MAX_DIRTY_BITMAPS)
    throw new Errno('ENOMEM', `the dirty bitmaps of this host would be more than ${MAX_DIRTY_BITMAPS} bytes`);
  dma.bitmap = new Uint32Array(2 * longs);
  return used + longs * 8;
}

/** Models vfio_dma_populate_bitmap(): pages that are pinned count as dirty. */
export function vfioDmaPopulateBitmap(host: Host, dma: VfioDma): void {
  const { pfns } = host.vfio;
  for (let slot = firstPfn(pfns, dma.pfn_list); slot !== 0; slot = nextPfn(pfns, slot))
    markDirty(dma, pfns.iova(slot) - dma.iova, 1);
}

/** Marks pages of a mapping, counted from its first one, if the log runs. A page before it lies in no bitmap. */
export function markDirty(dma: VfioDma, page: number, npage: number): void {
  if (dma.bitmap !== null && page >= 0) bitmapSet(dma.bitmap, page, npage);
}

/** Models vfio_dma_bitmap_alloc_all(). EINVAL, ENOMEM: then no mapping has a bitmap. */
export function startDirtyLog(host: Host, iommu: Iommu): void {
  let used = bitmapBytes(host);
  try {
    for (const dma of mappingsOf(host.vfio.dmas, iommu.dma_list)) {
      used = vfioDmaBitmapAlloc(host, dma, used);
      vfioDmaPopulateBitmap(host, dma);
    }
  } catch (error) {
    stopDirtyLog(host, iommu);
    throw error;
  }
  iommu.dirty_page_tracking = true;
}

export function stopDirtyLog(host: Host, iommu: Iommu): void {
  for (const dma of mappingsOf(host.vfio.dmas, iommu.dma_list)) dma.bitmap = null;
  iommu.dirty_page_tracking = false;
}

/** Models vfio_iommu_populate_bitmap_full(): a group has left that may have written anywhere. */
export function fillBitmaps(host: Host, iommu: Iommu): void {
  for (const dma of mappingsOf(host.vfio.dmas, iommu.dma_list)) markDirty(dma, 0, dma.npage);
}

/** Models update_user_bitmap(): adds the bits of one mapping to the user's bitmap, whose first bit is `base`. EFAULT. */
export function updateUserBitmap(iommu: Iommu, dma: VfioDma, base: number, user: UserBitmap): void {
  const bitmap = dma.bitmap as Uint32Array;
  const offset = dma.iova - base;
  const at = 8 * Math.floor(offset / BITS_PER_LONG);
  const shift = offset % BITS_PER_LONG;
  const longs = longsOf(dma.npage + shift);
  if (iommu.num_non_pinned_groups > 0 && dma.iommu_mapped) bitmapSet(bitmap, 0, dma.npage);
  if (shift > 0) {
    bitmapShiftLeft(bitmap, shift, longs);
    const before = new Uint32Array(2);
    user.read(at, new Uint8Array(before.buffer));
    bitmap[0] = ((bitmap[0] as number) | (before[0] as number)) >>> 0;
    bitmap[1] = ((bitmap[1] as number) | (before[1] as number)) >>> 0;
  }
  user.write(at, new Uint8Array(bitmap.buffer, bitmap.byteOffset, 8 * longs));
}

/** After a report only what is pinned stays dirty. Bits that the report shifted past the mapping's end stay, and show again. */
export function repopulateBitmap(host: Host, dma: VfioDma): void {
  bitmapClear(dma.bitmap as Uint32Array, dma.npage);
  vfioDmaPopulateBitmap(host, dma);
}
