// Models struct vfio_dma and iommu->dma_list: one mapping per MAP_DMA call, in a red-black tree ordered by iova.

import { LEFT, type RbLinks, RIGHT } from '../lib/rbtree.ts';
import { type PageNumber, wrappedEnd } from '../lib/u64.ts';
import { newPfnList, type PfnList } from './pfn-list.ts';

export interface VfioDma {
  /** Place in the host's DmaTable; reused after the mapping is gone. */
  slot: number;
  /** Identity that is never reused: `dma_last` of an unmap compares it. */
  id: number;
  container: string;
  iova: PageNumber;
  npage: number;
  vaddr: PageNumber;
  /** READ and WRITE bits of the MAP flags. */
  prot: number;
  /** Thread-group leader of the task that mapped it: whose mm backs it and is charged. */
  task: string;
  /** CAP_IPC_LOCK of the calling thread, sampled at MAP. */
  lock_cap: boolean;
  /** Invalidated by UNMAP with FLAG_VADDR, until MAP with FLAG_VADDR gives it a new one. */
  vaddr_invalid: boolean;
  pfn_list: PfnList;
}

/** All vfio_dma of a host; the trees of its containers link their slots. */
export class DmaTable {
  readonly records: (VfioDma | undefined)[] = [];
  next_id = 1;

  constructor(readonly links: RbLinks) {}

  at(slot: number): VfioDma {
    const dma = this.records[slot];
    if (dma === undefined) throw new Error(`no vfio_dma in slot ${slot}`);
    return dma;
  }
}

/** One past the mapping's last page as the kernel computes it: 0 for a mapping that ends at 2^64. */
const endOf = (dma: VfioDma): number => wrappedEnd(dma.iova, dma.npage);

/**
 * Models vfio_find_dma(): any mapping that overlaps [start, end). `end` is compared as given, so the caller decides
 * whether it wraps; a mapping that ends at 2^64 has end 0 and is never found.
 */
export function vfioFindDma(table: DmaTable, root: number, start: number, end: number): VfioDma | null {
  let slot = root;
  while (slot !== 0) {
    const dma = table.at(slot);
    if (end <= dma.iova) slot = table.links.left(slot);
    else if (start >= endOf(dma)) slot = table.links.right(slot);
    else return dma;
  }
  return null;
}

/** The mapping that contains one page, as pin and unpin look it up (start + PAGE_SIZE wraps for the last page). */
export const vfioFindDmaOfPage = (table: DmaTable, root: number, iova: number): VfioDma | null =>
  vfioFindDma(table, root, iova, wrappedEnd(iova, 1));

/**
 * Models vfio_find_dma_first_node() of 5.12 and later: the lowest mapping that overlaps [start, end), 0 for none. It goes
 * right at a mapping that ends at 2^64, which hides lower ones behind it.
 */
export function vfioFindDmaFirstNode(table: DmaTable, root: number, start: number, end: number): number {
  let found = 0;
  let slot = root;
  while (slot !== 0) {
    const dma = table.at(slot);
    if (start < endOf(dma)) {
      found = slot;
      if (start >= dma.iova) break;
      slot = table.links.left(slot);
    } else {
      slot = table.links.right(slot);
    }
  }
  return found !== 0 && table.at(found).iova >= end ? 0 : found;
}

/**
 * Models vfio_link_dma(): descends by iova without looking for overlap. The mapping is linked while its size is still 0, so
 * that one that ends at 2^64 has its place by iova too, and one of equal iova goes before the older. Returns the new root.
 */
export function vfioLinkDma(table: DmaTable, root: number, dma: Omit<VfioDma, 'slot' | 'id' | 'pfn_list'>): number {
  const slot = table.links.alloc();
  let parent = 0;
  let left = false;
  for (let at = root; at !== 0; at = left ? table.links.left(at) : table.links.right(at)) {
    parent = at;
    left = dma.iova <= table.at(at).iova;
  }
  table.records[slot] = { ...dma, slot, id: table.next_id++, pfn_list: newPfnList(slot) };
  table.links.linkNode(slot, parent, left ? LEFT : RIGHT);
  return table.links.insertColor(root, slot);
}

/** Models vfio_unlink_dma(). Returns the new root. */
export function vfioUnlinkDma(table: DmaTable, root: number, dma: VfioDma): number {
  const newRoot = table.links.erase(root, dma.slot);
  table.links.free(dma.slot);
  table.records[dma.slot] = undefined;
  return newRoot;
}

/** The mappings of a tree, ascending by iova. */
export function* mappingsOf(table: DmaTable, root: number): Iterable<VfioDma> {
  for (let slot = table.links.first(root); slot !== 0; slot = table.links.next(slot)) yield table.at(slot);
}
