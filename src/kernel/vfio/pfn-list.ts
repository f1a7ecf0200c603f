// Models vfio_pfn and the pfn_list of a vfio_dma (drivers/vfio/vfio_iommu_type1.c): vfio_find_vpfn(), vfio_link_pfn(), vfio_unlink_pfn().
//
// - A record (vfio_pfn) is one pinned iova; it is a slot of the host's PfnSlab, in columns, without an object.
// - The key is the iova: its page number, then the offset in the page (only 6.x stores one that is not 0).
// - A PfnList belongs to one vfio_dma and orders its records in a red-black tree of the kernel's shape.
// - Records of one chunk of the slab belong to many vfio_dma; the dma column says which.

import {
  CHUNK_MASK,
  CHUNK_SHIFT,
  CHUNK_SIZE,
  checkRbTree,
  LEFT,
  type LinkColumns,
  RbLinks,
  RIGHT,
  type Side,
  type SlotState,
} from '../lib/rbtree.ts';

/** The pfn_list of one vfio_dma: plain data, made by newPfnList(). */
export interface PfnList {
  /** Slot of the vfio_dma. */
  dma: number;
  root: number;
  /** Number of records. */
  count: number;
  /**
   * The gap where the list changed last lies between hint and hint_next, neighbours in order; 0 is the end of the list.
   * hint is the record inserted last, or the one before the record unlinked last.
   */
  hint: number;
  hint_next: number;
}

export const newPfnList = (dma: number): PfnList => ({ dma, root: 0, count: 0, hint: 0, hint_next: 0 });

/** One chunk of the slab as a checkpoint keeps it: the links and every column. */
export interface PfnChunk extends LinkColumns {
  iova: Float64Array;
  pfn: Float64Array;
  ref_count: Uint32Array;
  dma: Uint32Array;
  /** null while every offset in the chunk is 0. */
  offset: Uint16Array | null;
}

export interface SlabSection {
  key: string;
  /** seq of the last change. */
  version: number;
  /** The data itself: whoever keeps it beyond this command makes a copy. */
  data: () => unknown;
}

const STATE_KEY = 'pfn/state';
const CHUNK_KEY = /^pfn\/(\d+)$/;

/** The vfio_pfn records of all vfio_dma of a host. */
export class PfnSlab {
  readonly links: RbLinks;
  private readonly iovas: Float64Array[] = [];
  private readonly pfns: Float64Array[] = [];
  private readonly ref_counts: Uint32Array[] = [];
  private readonly dmas: Uint32Array[] = [];
  private readonly offsets: (Uint16Array | null)[] = [];

  constructor(links = new RbLinks()) {
    this.links = links;
  }

  /** The seq of the command that is being executed. */
  set version(seq: number) {
    this.links.version = seq;
  }

  /** Number of records in all lists. */
  get count(): number {
    return this.links.liveCount;
  }

  /** A record with ref_count 1 that is in no list yet. */
  alloc(dma: number, iova: number, offset: number, pfn: number): number {
    const slot = this.links.alloc();
    const chunk = slot >>> CHUNK_SHIFT;
    const i = slot & CHUNK_MASK;
    if (chunk === this.iovas.length) this.addColumns();
    (this.iovas[chunk] as Float64Array)[i] = iova;
    (this.pfns[chunk] as Float64Array)[i] = pfn;
    (this.ref_counts[chunk] as Uint32Array)[i] = 1;
    (this.dmas[chunk] as Uint32Array)[i] = dma;
    if (offset !== 0 && this.offsets[chunk] === null) this.offsets[chunk] = new Uint16Array(CHUNK_SIZE);
    const offsets = this.offsets[chunk];
    if (offsets) offsets[i] = offset;
    return slot;
  }

  private addColumns(): void {
    this.iovas.push(new Float64Array(CHUNK_SIZE));
    this.pfns.push(new Float64Array(CHUNK_SIZE));
    this.ref_counts.push(new Uint32Array(CHUNK_SIZE));
    this.dmas.push(new Uint32Array(CHUNK_SIZE));
    this.offsets.push(null);
  }

  // Fields of a record

  /** Page number of the iova. */
  iova(slot: number): number {
    return (this.iovas[slot >>> CHUNK_SHIFT] as Float64Array)[slot & CHUNK_MASK] as number;
  }

  /** Byte offset of the iova in its page. */
  offset(slot: number): number {
    return this.offsets[slot >>> CHUNK_SHIFT]?.[slot & CHUNK_MASK] ?? 0;
  }

  pfn(slot: number): number {
    return (this.pfns[slot >>> CHUNK_SHIFT] as Float64Array)[slot & CHUNK_MASK] as number;
  }

  ref_count(slot: number): number {
    return (this.ref_counts[slot >>> CHUNK_SHIFT] as Uint32Array)[slot & CHUNK_MASK] as number;
  }

  /** Slot of the vfio_dma that the record belongs to. */
  dma(slot: number): number {
    return (this.dmas[slot >>> CHUNK_SHIFT] as Uint32Array)[slot & CHUNK_MASK] as number;
  }

  setPfn(slot: number, pfn: number): void {
    (this.pfns[slot >>> CHUNK_SHIFT] as Float64Array)[slot & CHUNK_MASK] = pfn;
    this.links.touch(slot);
  }

  /** Stores n modulo 2^32, as the kernel's unsigned int does. Returns what is stored. */
  setRefCount(slot: number, n: number): number {
    (this.ref_counts[slot >>> CHUNK_SHIFT] as Uint32Array)[slot & CHUNK_MASK] = n;
    this.links.touch(slot);
    return n >>> 0;
  }

  /** Adds to ref_count, modulo 2^32. Returns the new value. */
  addRefCount(slot: number, delta: number): number {
    return this.setRefCount(slot, this.ref_count(slot) + delta);
  }

  /** Less than 0 when the record's iova is below the given one, 0 when it is equal, more than 0 when it is above. */
  compareTo(slot: number, iova: number, offset: number): number {
    return this.iova(slot) - iova || this.offset(slot) - offset;
  }

  // Chunks

  get chunkCount(): number {
    return this.links.chunkCount;
  }

  /** A chunk has the slots firstSlot(chunk) <= slot < firstSlot(chunk + 1). */
  firstSlot(chunk: number): number {
    return chunk << CHUNK_SHIFT;
  }

  chunkVersion(chunk: number): number {
    return this.links.chunkVersion(chunk);
  }

  /** The live records of a chunk, by slot. */
  *slotsOfChunk(chunk: number): Iterable<number> {
    const first = this.firstSlot(chunk);
    for (let slot = first; slot < first + CHUNK_SIZE; slot++) if (this.links.isLive(slot)) yield slot;
  }

  private chunk(chunk: number): PfnChunk {
    return {
      ...this.links.linkColumns(chunk),
      iova: this.iovas[chunk] as Float64Array,
      pfn: this.pfns[chunk] as Float64Array,
      ref_count: this.ref_counts[chunk] as Uint32Array,
      dma: this.dmas[chunk] as Uint32Array,
      offset: this.offsets[chunk] ?? null,
    };
  }

  /** The whole slab for a checkpoint: the state of the slots, then one section per chunk. */
  *sections(): Iterable<SlabSection> {
    yield { key: STATE_KEY, version: this.links.stateVersion, data: () => this.links.slotState() };
    for (let chunk = 0; chunk < this.chunkCount; chunk++) {
      yield { key: `pfn/${chunk}`, version: this.chunkVersion(chunk), data: () => this.chunk(chunk) };
    }
  }

  /** The slab that gave these sections, in any order; sections with keys of others are passed over. The data is copied. */
  static restore(sections: Iterable<{ key: string; version: number; data: unknown }>): PfnSlab {
    const chunks: (PfnChunk & { version: number })[] = [];
    let state: SlotState = { high_water: 1, free_head: 0, free_count: 0 };
    let stateVersion = 0;
    for (const { key, version, data } of sections) {
      const number = CHUNK_KEY.exec(key)?.[1];
      if (number !== undefined) chunks[Number(number)] = { ...(data as PfnChunk), version };
      else if (key === STATE_KEY) [state, stateVersion] = [data as SlotState, version];
    }
    for (let chunk = 0; chunk < chunks.length; chunk++)
      if (!chunks[chunk]) throw new Error(`section pfn/${chunk} is missing`);
    const slab = new PfnSlab(RbLinks.restore(state, chunks, stateVersion));
    for (const { iova, pfn, ref_count, dma, offset } of chunks) {
      for (const column of [iova, pfn, ref_count, dma, offset]) {
        if (column !== null && column.length !== CHUNK_SIZE)
          throw new Error('a column of vfio_pfn records has the wrong length');
      }
      slab.iovas.push(iova.slice());
      slab.pfns.push(pfn.slice());
      slab.ref_counts.push(ref_count.slice());
      slab.dmas.push(dma.slice());
      slab.offsets.push(offset?.slice() ?? null);
    }
    return slab;
  }
}

/**
 * Whether an iova that is in no record of the list belongs into the gap of the hint. The links that are null are exactly
 * the gaps between neighbours in order, one link each, so that a descent from the root ends at the one of this gap.
 */
function isInHintGap(slab: PfnSlab, list: PfnList, iova: number, offset: number): boolean {
  if (list.hint !== 0 && slab.compareTo(list.hint, iova, offset) >= 0) return false;
  return list.hint_next === 0 || slab.compareTo(list.hint_next, iova, offset) > 0;
}

/** Models vfio_find_vpfn(): the record with exactly this iova, or 0. Changes nothing, not even the hint. */
export function vfioFindVpfn(slab: PfnSlab, list: PfnList, iova: number, offset = 0): number {
  const { hint, hint_next } = list;
  const lower = hint === 0 ? -1 : slab.compareTo(hint, iova, offset);
  if (lower === 0) return hint;
  const upper = hint_next === 0 ? 1 : slab.compareTo(hint_next, iova, offset);
  if (upper === 0) return hint_next;
  if (lower < 0 && upper > 0) return 0;
  const links = slab.links;
  let node = list.root;
  while (node !== 0) {
    const order = slab.compareTo(node, iova, offset);
    if (order === 0) return node;
    node = links.child(node, order > 0 ? LEFT : RIGHT);
  }
  return 0;
}

/**
 * Models vfio_link_pfn(), with the allocation of the record: ref_count is 1. Precondition: no record has this iova.
 *
 * Inserts at ascending iovas cost no descent: each belongs into the gap that the one before left as the hint. A descent
 * from the root ends at that gap too (isInHintGap), and a gap has one null link: the right one of its lower end, unless
 * that end has a right subtree; then its upper end is the first of that subtree and has no left child. Place and parent
 * being the same, so is the rebalancing, which is O(1) amortised as in any (2,4)-tree.
 */
export function vfioLinkPfn(slab: PfnSlab, list: PfnList, iova: number, pfn: number, offset = 0): number {
  if (!isInHintGap(slab, list, iova, offset)) moveHint(slab, list, iova, offset);
  const links = slab.links;
  const node = slab.alloc(list.dma, iova, offset, pfn);
  const { hint, hint_next } = list;
  const side: Side = hint !== 0 && links.right(hint) === 0 ? RIGHT : LEFT;
  links.linkNode(node, side === RIGHT ? hint : hint_next, side);
  list.root = links.insertColor(list.root, node);
  list.count++;
  list.hint = node;
  return node;
}

/** Descends from the root to the gap that an iova without record belongs into. */
function moveHint(slab: PfnSlab, list: PfnList, iova: number, offset: number): void {
  list.hint = 0;
  list.hint_next = 0;
  let node = list.root;
  while (node !== 0) {
    if (slab.compareTo(node, iova, offset) > 0) {
      list.hint_next = node;
      node = slab.links.left(node);
    } else {
      list.hint = node;
      node = slab.links.right(node);
    }
  }
}

/** Models vfio_unlink_pfn(), and frees the record. Precondition: the slot is in this list. */
export function vfioUnlinkPfn(slab: PfnSlab, list: PfnList, slot: number): void {
  const links = slab.links;
  list.hint = links.prev(slot);
  list.hint_next = links.next(slot);
  list.root = links.erase(list.root, slot);
  list.count--;
  links.free(slot);
}

/** The record with the lowest iova, or 0. */
export const firstPfn = (slab: PfnSlab, list: PfnList): number => slab.links.first(list.root);

/** The record with the next higher iova, or 0. */
export const nextPfn = (slab: PfnSlab, slot: number): number => slab.links.next(slot);

/** The first record whose iova is not below the given one, or 0. */
export function lowerBound(slab: PfnSlab, list: PfnList, iova: number, offset = 0): number {
  let found = 0;
  let node = list.root;
  while (node !== 0) {
    const above = slab.compareTo(node, iova, offset) >= 0;
    if (above) found = node;
    node = slab.links.child(node, above ? LEFT : RIGHT);
  }
  return found;
}

/** Every way in which a list is unsound (order, links, colours, black height, count, owner, hint): empty for a sound one. */
export function checkPfnList(slab: PfnSlab, list: PfnList): string[] {
  const { links } = slab;
  const isBefore = (a: number, b: number) => slab.compareTo(a, slab.iova(b), slab.offset(b)) < 0;
  const violations = checkRbTree(links, list.root, list.count, isBefore);
  if (violations.length > 0) return violations;
  let before = 0;
  let gap = list.hint === 0 && list.hint_next === firstPfn(slab, list);
  for (let slot = firstPfn(slab, list); slot !== 0; before = slot, slot = nextPfn(slab, slot)) {
    if (slab.dma(slot) !== list.dma)
      violations.push(`slot ${slot} belongs to vfio_dma ${slab.dma(slot)}, not ${list.dma}`);
    if (before !== 0 && list.hint === before) gap = list.hint_next === slot;
  }
  if (before !== 0 && list.hint === before) gap = list.hint_next === 0;
  if (!gap) violations.push(`hint ${list.hint} and ${list.hint_next} are not neighbours`);
  return violations;
}
