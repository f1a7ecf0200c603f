// Models struct page: what every host page frame is, who refers to it, and which frame is handed out next.

import { Errno } from '../errno.ts';
import { MAX_PAGE_CHUNKS } from '../limits.ts';

export const PAGES_PER_CHUNK = 512;
const SLOT_MASK = PAGES_PER_CHUNK - 1;

// A page's state word: four bits of kind, four flags, 24 bits of mapcount.
export const KIND_MASK = 0xf;
export const KIND_NONE = 0;
/** Mapped by an explicit layout, or declared so. */
export const KIND_NORMAL = 1;
export const KIND_ANON = 2;
export const KIND_FILE = 3;
export const KIND_RESERVED = 4;
export const KIND_ZERO = 5;
/** No struct page: never counted, never pinned. */
export const KIND_DEVICE = 6;
/** First page of what devices decode: no RAM is there. */
export const MMIO_PFN = 0x380000000;
/** Anonymous pages of equal bytes that KSM has merged into this one: never written in place. */
export const KIND_KSM = 7;
/** Memory of a device that has struct pages (ZONE_DEVICE): idle with one reference. Declared so. */
export const KIND_ZONE_DEVICE = 8;
/** The same after the removal of its device has begun: faults do not map it any more. */
export const KIND_REMOVED = 9;
/** The kind was declared by put_page; it stays for ever and the frame is never handed out. */
export const PG_DECLARED = 1 << 4;
/** The kind was decided by a VM_PFNMAP area or is the zero page's; it stays and the frame is never handed out. */
export const PG_CLAIMED = 1 << 5;
/** A pin was released with the dirty mark (set_page_dirty). */
export const PG_DIRTY = 1 << 6;
/** A dirty entry of a page table was cleared (A.6: the bit moves to the page). */
export const PG_PTE_DIRTY = 1 << 7;
const MAPCOUNT_SHIFT = 8;
const ONE_MAPPING = 1 << MAPCOUNT_SHIFT;
/** Largest mapcount before a new mapping is refused; below 2^24 by what one call can add to a page unchecked. */
export const MAX_MAPCOUNT = 0xffffff - 65536;

const KEPT = PG_DECLARED | PG_CLAIMED;

/** 512 consecutive page frames. */
export interface PageChunk {
  /** The raw counter, as the kernel's int: bias of pins included. */
  refcount: Int32Array;
  state: Uint32Array;
  /** Pins of each page; null while no page of the chunk has ever been pinned. */
  pins: Int32Array | null;
  /** Frames that cannot be handed out: referred to, declared or claimed. */
  busy: number;
  /** Frames about which anything is known. A chunk without any is dropped. */
  live: number;
  /** seq of the last change. */
  version: number;
}

export const chunkIndex = (pfn: number): number => Math.floor(pfn / PAGES_PER_CHUNK);

export class PageFrames {
  readonly chunks = new Map<number, PageChunk>();
  /** Frames below total_pages that cannot be handed out. */
  used = 0;
  /** Pages with at least one pin. */
  pinned = 0;
  /** Where the search for a free frame goes on. Low frames are left to explicit layouts. */
  cursor: number;
  /** Pages declared by put_page. */
  declared = 0;
  /** The shared zero page, chosen at its first use. */
  zero_pfn: number | null = null;
  /** One past the last page that a device has taken. */
  mmio_end = MMIO_PFN;
  /** Bytes of the pages that somebody wrote, with the seq of the last change. */
  readonly bytes = new Map<number, { data: Uint8Array; version: number }>();
  /** Pins returned so far (nr_foll_pin_released). */
  pins_released = 0;
  private last_index = -1;
  private last_chunk: PageChunk | undefined;

  constructor(readonly total_pages: number) {
    this.cursor = Math.max(1, Math.floor(total_pages / 16)) % total_pages;
  }

  chunk(index: number): PageChunk | undefined {
    if (index !== this.last_index) {
      this.last_chunk = this.chunks.get(index);
      this.last_index = index;
    }
    return this.last_chunk;
  }

  refcount(pfn: number): number {
    return this.chunk(chunkIndex(pfn))?.refcount[pfn & SLOT_MASK] ?? 0;
  }

  private state(pfn: number): number {
    return this.chunk(chunkIndex(pfn))?.state[pfn & SLOT_MASK] ?? 0;
  }

  /** Whether anything is known of a frame: it is in use, its kind is kept, or it was released dirty. */
  isKnown(pfn: number): boolean {
    return this.refcount(pfn) !== 0 || this.state(pfn) !== 0;
  }

  kind(pfn: number): number {
    const kind = this.state(pfn) & KIND_MASK;
    return kind === KIND_NONE && pfn >= MMIO_PFN && pfn < this.mmio_end ? KIND_DEVICE : kind;
  }

  /** Takes pages of the physical address space for a device: none of them has a struct page. Returns the first. */
  takeMmio(npage: number): number {
    const pfn = this.mmio_end;
    this.mmio_end += npage;
    return pfn;
  }

  mapcount(pfn: number): number {
    return this.state(pfn) >>> MAPCOUNT_SHIFT;
  }

  pinCount(pfn: number): number {
    return this.chunk(chunkIndex(pfn))?.pins?.[pfn & SLOT_MASK] ?? 0;
  }

  isDirty(pfn: number): boolean {
    return (this.state(pfn) & PG_DIRTY) !== 0;
  }

  /** Whether put_page declared it. */
  isDeclared(pfn: number): boolean {
    return (this.state(pfn) & PG_DECLARED) !== 0;
  }

  /** Whether its kind stays as it is, whoever uses the page. */
  isKept(pfn: number): boolean {
    return (this.state(pfn) & KEPT) !== 0;
  }

  /** Chunks that the frames [pfn, pfn + count) would add. */
  missingChunks(pfn: number, count: number): number {
    let missing = 0;
    for (let index = chunkIndex(pfn); index <= chunkIndex(pfn + count - 1); index++)
      if (!this.chunks.has(index)) missing++;
    return missing;
  }

  /** ENOMEM: `count` more chunks would be more than MAX_PAGE_CHUNKS. */
  requireChunks(count: number): void {
    if (this.chunks.size + count > MAX_PAGE_CHUNKS)
      throw new Errno('ENOMEM', `page frames in ${this.chunks.size + count} places, the limit is ${MAX_PAGE_CHUNKS}`);
  }

  private chunkFor(pfn: number): PageChunk {
    const index = chunkIndex(pfn);
    const existing = this.chunk(index);
    if (existing !== undefined) return existing;
    const chunk: PageChunk = {
      refcount: new Int32Array(PAGES_PER_CHUNK),
      state: new Uint32Array(PAGES_PER_CHUNK),
      pins: null,
      busy: 0,
      live: 0,
      version: 0,
    };
    this.chunks.set(index, chunk);
    this.last_chunk = chunk;
    return chunk;
  }

  /** Writes a frame's counter and state and keeps the counts of its chunk. */
  private write(chunk: PageChunk, pfn: number, refcount: number, state: number, seq: number): void {
    const i = pfn & SLOT_MASK;
    const oldRefcount = chunk.refcount[i] as number;
    const oldState = chunk.state[i] as number;
    chunk.refcount[i] = refcount;
    chunk.state[i] = state;
    chunk.version = seq;
    const busy = Number(refcount !== 0 || (state & KEPT) !== 0) - Number(oldRefcount !== 0 || (oldState & KEPT) !== 0);
    chunk.busy += busy;
    if (pfn < this.total_pages) this.used += busy;
    chunk.live += Number(refcount !== 0 || state !== 0) - Number(oldRefcount !== 0 || oldState !== 0);
    if (chunk.live > 0) return;
    this.chunks.delete(chunkIndex(pfn));
    this.last_index = -1;
  }

  /** A free frame with one reference. ENOMEM: all of total_pages are in use, or MAX_PAGE_CHUNKS. */
  alloc(kind: number, seq: number): number {
    if (this.used >= this.total_pages)
      throw new Errno('ENOMEM', `page: all ${this.total_pages} pages of the host are in use`);
    const pfn = this.nextFree();
    this.requireChunks(this.missingChunks(pfn, 1));
    this.cursor = pfn + 1 === this.total_pages ? 0 : pfn + 1;
    this.write(this.chunkFor(pfn), pfn, 1, kind, seq);
    return pfn;
  }

  /** First free frame at or after the cursor, around the end. Precondition: there is one. */
  private nextFree(): number {
    let pfn = this.cursor;
    for (;;) {
      const chunk = this.chunk(chunkIndex(pfn));
      if (chunk === undefined) return pfn;
      const i = pfn & SLOT_MASK;
      if (chunk.busy === PAGES_PER_CHUNK) pfn += PAGES_PER_CHUNK - i;
      else if (chunk.refcount[i] !== 0 || ((chunk.state[i] as number) & KEPT) !== 0) pfn++;
      else return pfn;
      if (pfn >= this.total_pages) pfn = 0;
    }
  }

  /** A new entry of a page table: mapcount and refcount + 1. A page that nobody used is 'normal' from here on. */
  addRmap(pfn: number, seq: number): void {
    const chunk = this.chunkFor(pfn);
    const i = pfn & SLOT_MASK;
    const refcount = chunk.refcount[i] as number;
    let state = chunk.state[i] as number;
    if ((state & KIND_MASK) === KIND_NONE) state = KIND_NORMAL;
    this.write(chunk, pfn, (refcount + 1) | 0, state + ONE_MAPPING, seq);
  }

  /** The first entry of a page that alloc() has just given: its one reference becomes the mapping's. */
  addNewAnonRmap(pfn: number, seq: number): void {
    const chunk = this.chunkFor(pfn);
    const i = pfn & SLOT_MASK;
    this.write(chunk, pfn, chunk.refcount[i] as number, (chunk.state[i] as number) + ONE_MAPPING, seq);
  }

  /** An entry of a page table goes, dirty or not: mapcount and refcount - 1. */
  removeRmap(pfn: number, dirty: boolean, seq: number): void {
    const chunk = this.chunkFor(pfn);
    const i = pfn & SLOT_MASK;
    const state = chunk.state[i] as number;
    if (state < ONE_MAPPING) throw new Error(`page ${pfn} is not mapped`);
    const settled = dirty ? state | PG_PTE_DIRTY : state;
    this.drop(chunk, pfn, 1, (settled >>> 0) - ONE_MAPPING, seq);
  }

  /** One reference more (get_page). */
  get(pfn: number, seq: number): void {
    const chunk = this.chunkFor(pfn);
    const i = pfn & SLOT_MASK;
    this.write(chunk, pfn, ((chunk.refcount[i] as number) + 1) | 0, chunk.state[i] as number, seq);
  }

  /** get_page() where the page may be free (try_get_page). False: its counter is not positive. */
  tryGet(pfn: number, seq: number): boolean {
    const chunk = this.chunkFor(pfn);
    const i = pfn & SLOT_MASK;
    const refcount = chunk.refcount[i] as number;
    // The reference that a zero page has from boot is not counted here.
    if (refcount < 0 || (refcount === 0 && ((chunk.state[i] as number) & KEPT) === 0)) return false;
    this.get(pfn, seq);
    return true;
  }

  /** One reference less (put_page). */
  put(pfn: number, seq: number): void {
    const chunk = this.chunkFor(pfn);
    this.drop(chunk, pfn, 1, chunk.state[pfn & SLOT_MASK] as number, seq);
  }

  /**
   * Takes the references of one pin (try_grab_page). False: the counter is not positive, as after an overflow.
   * Precondition: the page has a struct page.
   */
  pin(pfn: number, bias: number, seq: number): boolean {
    const chunk = this.chunkFor(pfn);
    const i = pfn & SLOT_MASK;
    const refcount = chunk.refcount[i] as number;
    // A zero page has no counted mapping, and a reference from boot that is not counted here either.
    if (refcount < 0 || (refcount === 0 && ((chunk.state[i] as number) & KEPT) === 0)) return false;
    chunk.refcount[i] = refcount + bias;
    chunk.pins ??= new Int32Array(PAGES_PER_CHUNK);
    const pins = chunk.pins[i] as number;
    chunk.pins[i] = pins + 1;
    if (pins === 0) this.pinned++;
    chunk.version = seq;
    return true;
  }

  /** Pins taken so far (nr_foll_pin_acquired): those returned, and those held, which are counted. */
  pinsAcquired(): number {
    let held = 0;
    for (const { pins } of this.chunks.values()) if (pins !== null) for (const count of pins) held += count;
    return this.pins_released + held;
  }

  /** Returns the references of one pin, after the dirty mark if asked (unpin_user_pages_dirty_lock). */
  unpin(pfn: number, bias: number, dirty: boolean, seq: number): void {
    const chunk = this.chunkFor(pfn);
    const i = pfn & SLOT_MASK;
    const pins = chunk.pins?.[i] ?? 0;
    if (chunk.pins === null || pins === 0) throw new Error(`page ${pfn} is not pinned`);
    chunk.pins[i] = pins - 1;
    this.pins_released++;
    if (pins === 1) this.pinned--;
    const state = chunk.state[i] as number;
    this.drop(chunk, pfn, bias, dirty ? state | PG_DIRTY : state, seq);
  }

  /**
   * Lowers the counter. At 0 the page is free: what it was is forgotten, but for a kind that was declared or claimed and
   * for the dirty mark of a page of an explicit layout, which can still be looked at until the frame is used again.
   */
  private drop(chunk: PageChunk, pfn: number, references: number, state: number, seq: number): void {
    const refcount = ((chunk.refcount[pfn & SLOT_MASK] as number) - references) | 0;
    let left = state >>> 0;
    if (refcount === 0) {
      if ((state & KEPT) === 0) this.bytes.delete(pfn);
      const kind = state & KIND_MASK;
      if ((state & KEPT) === 0) left = kind === KIND_NORMAL ? state & PG_DIRTY : 0;
    }
    this.write(chunk, pfn, refcount, left, seq);
  }

  /** Marks a page in use dirty (set_page_dirty). */
  setDirty(pfn: number, seq: number): void {
    const chunk = this.chunkFor(pfn);
    const i = pfn & SLOT_MASK;
    this.write(chunk, pfn, chunk.refcount[i] as number, ((chunk.state[i] as number) | PG_DIRTY) >>> 0, seq);
  }

  /** A dirty entry was made clean, or the page was redirtied without one: the mark moves to the page. */
  setPteDirty(pfn: number, seq: number): void {
    const chunk = this.chunkFor(pfn);
    const i = pfn & SLOT_MASK;
    this.write(chunk, pfn, chunk.refcount[i] as number, ((chunk.state[i] as number) | PG_PTE_DIRTY) >>> 0, seq);
  }

  /** Whether what the page holds is to be written back, whoever said so. Dirty entries have not told it yet. */
  needsWriteback(pfn: number): boolean {
    return (this.state(pfn) & (PG_DIRTY | PG_PTE_DIRTY)) !== 0;
  }

  /** A page in use becomes one of another kind. Precondition: its kind is not kept. */
  setKind(pfn: number, kind: number, seq: number): void {
    const chunk = this.chunkFor(pfn);
    const i = pfn & SLOT_MASK;
    const state = ((chunk.state[i] as number) & ~KIND_MASK) | kind;
    this.write(chunk, pfn, chunk.refcount[i] as number, state >>> 0, seq);
  }

  /** The page need not be written anywhere (ClearPageDirty). */
  clearDirty(pfn: number, seq: number): void {
    const chunk = this.chunkFor(pfn);
    const i = pfn & SLOT_MASK;
    const state = ((chunk.state[i] as number) & ~(PG_DIRTY | PG_PTE_DIRTY)) >>> 0;
    this.write(chunk, pfn, chunk.refcount[i] as number, state, seq);
  }

  /** Decides the kind of a page for ever. Precondition: it is not kept yet. */
  keep(pfn: number, kind: number, how: typeof PG_DECLARED | typeof PG_CLAIMED, seq: number): void {
    const chunk = this.chunkFor(pfn);
    const i = pfn & SLOT_MASK;
    const flags = (chunk.state[i] as number) & ~KIND_MASK;
    this.write(chunk, pfn, chunk.refcount[i] as number, (flags | kind | how) >>> 0, seq);
    if (how === PG_DECLARED) this.declared++;
  }

  /** A page whose kind is kept becomes one of another kind. */
  changeKept(pfn: number, kind: number, seq: number): void {
    const chunk = this.chunkFor(pfn);
    const i = pfn & SLOT_MASK;
    const state = (((chunk.state[i] as number) & ~KIND_MASK) | kind) >>> 0;
    this.write(chunk, pfn, chunk.refcount[i] as number, state, seq);
  }

  /** The zero page that untouched memory reads as: the first frame beyond memory of which nothing is known. */
  zeroPage(seq: number): number {
    if (this.zero_pfn !== null) return this.zero_pfn;
    let pfn = this.total_pages;
    while (this.state(pfn) !== 0 || this.refcount(pfn) !== 0) pfn++;
    this.requireChunks(this.missingChunks(pfn, 1));
    this.keep(pfn, KIND_ZERO, PG_CLAIMED, seq);
    this.zero_pfn = pfn;
    return pfn;
  }
}
