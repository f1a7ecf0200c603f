// Models iommu->iova_list: the iova ranges that the IOMMU-backed groups of a container allow. An empty list allows all.

import type { AddressRange } from '../command.ts';
import { U64_MAX } from '../lib/u64.ts';

/** Sorted, disjoint. A list that is being changed is a copy until the change is known to succeed. */
export type IovaList = readonly AddressRange[];

/** Models vfio_iommu_aper_resize(): cuts the list to an aperture; an empty list becomes the aperture. */
export function cutToAperture(list: IovaList, { start, last }: AddressRange): IovaList {
  if (list.length === 0) return [{ start, last }];
  const kept: AddressRange[] = [];
  for (const node of list) {
    const first = node.start > start ? node.start : start;
    const end = node.last < last ? node.last : last;
    if (first < end) kept.push({ start: first, last: end });
  }
  return kept;
}

/** Models vfio_iommu_resv_exclude(): takes reserved regions out of the list. null: nothing is left (EINVAL). */
export function excludeReserved(list: IovaList, reserved: readonly AddressRange[]): IovaList | null {
  let kept = [...list];
  for (const { start, last } of reserved)
    kept = kept.flatMap((node) => {
      if (start > node.last || last < node.start) return [node];
      const pieces: AddressRange[] = [];
      if (start > node.start) pieces.push({ start: node.start, last: start - 1n });
      if (last < node.last) pieces.push({ start: last + 1n, last: node.last });
      return pieces;
    });
  return kept.length === 0 ? null : kept;
}

/** Models vfio_iommu_aper_expand(): the first and the last range reach to the ends of what the remaining domain allows. */
export function expandToAperture(list: IovaList, aperture: AddressRange | null): IovaList {
  const { start, last } = aperture ?? { start: 0n, last: U64_MAX };
  return list.map((node, i) => ({
    start: i === 0 ? start : node.start,
    last: i === list.length - 1 ? last : node.last,
  }));
}

/** The list from its first to its last address, without the regions that are reserved now; null: nothing is left. */
export function refreshReserved(list: IovaList, reserved: readonly AddressRange[]): IovaList | null {
  const [first, end] = [list[0], list.at(-1)];
  if (first === undefined || end === undefined) return null;
  return excludeReserved([{ start: first.start, last: end.last }], reserved);
}

/** Models vfio_iommu_iova_dma_valid(). */
export const isValidRange = (list: IovaList, start: bigint, last: bigint): boolean =>
  list.length === 0 || list.some((node) => start >= node.start && last <= node.last);
