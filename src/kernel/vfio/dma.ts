// Models struct vfio_dma and iommu->dma_list: one mapping per MAP_DMA call, in a red-black tree ordered by iova.

import { LEFT, RbLinks, RIGHT } from '../lib/rbtree.ts';
import { type PageNumber, wrappedEnd } from '../lib/u64.ts';
import type { MmId } from '../mm/mm.ts';
import { newPfnList, type PfnList } from './pfn-list.ts';

/** Consecutive iova pages that are mapped to consecutive host pages. */
export interface PfnRun {
  iova: number;
  pfn: number;
  npage: number;
}

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
  /** The task that mapped it, or the leader of its thread group: whose mm backs it and is charged. */
  task: string;
  /** The mm of that task when it mapped: looked at only where the mapping itself holds it (6.3 and later). */
  mm: MmId;
  /** Pages charged for it. */
  locked_vm: number;
  /** Pages by which its charge is known to differ from what its records and mapped pages say, after a lost charge. */
  drift: number;
  /** CAP_IPC_LOCK of the calling thread, sampled at MAP. */
  lock_cap: boolean;
  /** Invalidated by UNMAP with FLAG_VADDR, until MAP with FLAG_VADDR gives it a new one. */
  vaddr_invalid: boolean;
  /** Pinned and mapped for an IOMMU domain. */
  iommu_mapped: boolean;
  /** What the IOMMU domain maps it to, ascending: each run is one chunk of consecutive pfns. */
  mapped: PfnRun[];
  /** One bit a page, least significant first, in whole words of 64; null while the dirty log is not running. */
  bitmap: Uint32Array | null;
  pfn_list: PfnList;
}

/** All vfio_dma of a host; the trees of its containers link their slots. */
export class DmaTable {
  next_id = 1;
  /** Whether ends of ranges wrap to 0 at 2^64, as unsigned start + size does: such a mapping is never found. */
  hides_end_of_space = true;

  constructor(
    readonly links: RbLinks,
    readonly records: (VfioDma | undefined)[] = [],
  ) {}

  /** The same mappings in trees that can be changed without a trace: to see what would be met. */
  sketch(): DmaTable {
    const { links } = this;
    const chunks = Array.from({ length: links.chunkCount }, (_, chunk) => ({
      ...links.linkColumns(chunk),
      version: links.chunkVersion(chunk),
    }));
    const sketch = new DmaTable(RbLinks.restore(links.slotState(), chunks, links.stateVersion), this.records);
    sketch.hides_end_of_space = this.hides_end_of_space;
    return sketch;
  }

  at(slot: number): VfioDma {
    const dma = this.records[slot];
    if (dma === undefined) throw new Error(`no vfio_dma in slot ${slot}`);
    return dma;
  }

  /** One past the last page of a range as the kernel compares it. */
  end(iova: number, npage: number): number {
    return this.hides_end_of_space ? wrappedEnd(iova, npage) : iova + npage;
  }

  endOf({ iova, npage }: VfioDma): number {
    return this.end(iova, npage);
  }
}

/**
 * Models vfio_find_dma(): any mapping that overlaps [start, end). `end` is compared as given, so the caller decides
 * whether it wraps; a mapping that ends at 2^64 has end 0 and is never found.
 */
export function vfioFindDma(table: DmaTable, root: number, start: number, end: number): VfioDma | null {
  let slot = root;
  while (slot !== 0) {
    const dma = table.at(slot);
    if (end <= dma.iova) slot = table.links.left(slot);
    else if (start >= table.endOf(dma)) slot = table.links.right(slot);
    else return dma;
  }
  return null;
}

/**
 * The mapping that overlaps PAGE_SIZE bytes from one iova on, as pin and unpin look it up. Bytes from within a page touch the
 * next page too.
 */
export const vfioFindDmaOfPage = (table: DmaTable, root: number, iova: number, offset = 0): VfioDma | null =>
  vfioFindDma(table, root, iova, table.end(iova, offset === 0 ? 1 : 2));

/**
 * Models vfio_find_dma_first_node() of 5.12 and later: the lowest mapping that overlaps [start, end), 0 for none. It goes
 * right at a mapping that ends at 2^64, which hides lower ones behind it.
 */
export function vfioFindDmaFirstNode(table: DmaTable, root: number, start: number, end: number): number {
  let found = 0;
  let slot = root;
  while (slot !== 0) {
    const dma = table.at(slot);
    if (start < table.endOf(dma)) {
      found = slot;
      if (start >= dma.iova) break;
      slot = table.links.left(slot);
    } else {
      slot = table.links.right(slot);
    }
  }
  return found !== 0 && table.at(found).iova >= end ? 0 : found;
}

/** A mapping as it is made. */
export type NewDma = Pick<VfioDma, 'container' | 'iova' | 'npage' | 'vaddr' | 'prot' | 'task' | 'mm' | 'lock_cap'>;

/**
 * Models vfio_link_dma(): descends by iova without looking for overlap. The mapping is linked while its size is still 0, so
 * that one that ends at 2^64 has its place by iova too, and one of equal iova goes before the older. Returns the new root and
 * the mapping.
 */
export function vfioLinkDma(table: DmaTable, root: number, dma: NewDma): { root: number; dma: VfioDma } {
  const slot = table.links.alloc();
  let parent = 0;
  let left = false;
  for (let at = root; at !== 0; at = left ? table.links.left(at) : table.links.right(at)) {
    parent = at;
    left = dma.iova <= table.at(at).iova;
  }
  const record: VfioDma = {
    ...dma,
    slot,
    id: table.next_id++,
    locked_vm: 0,
    drift: 0,
    vaddr_invalid: false,
    iommu_mapped: false,
    mapped: [],
    bitmap: null,
    pfn_list: newPfnList(slot),
  };
  table.records[slot] = record;
  table.links.linkNode(slot, parent, left ? LEFT : RIGHT);
  return { root: table.links.insertColor(root, slot), dma: record };
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
