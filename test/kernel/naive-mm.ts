// A naive model of the memory side, for comparison with the kernel's: one entry per virtual page, one object per host page.

import type { PageKind, PfnmapPte } from '../../src/kernel/command.ts';
import { READ, WRITE } from '../../src/kernel/command.ts';
import type { Rules } from './naive-rules.ts';

export const MOD_2_64 = 2n ** 64n;
/** RLIM_INFINITY in pages. */
const INFINITE_PAGES = (MOD_2_64 - 1n) >> 12n;
const PAGE_BYTES = 4096;

/** A refusal of the model. */
export class Refused extends Error {
  constructor(
    readonly errno: string,
    readonly left: Record<string, unknown> = {},
    readonly at_index: number | undefined = undefined,
  ) {
    super(errno);
  }
}

export interface NaivePage {
  kind: PageKind | 'anon';
  /** null until the kernel was seen to choose one. */
  pfn: number | null;
  maps: number;
  pins: number;
  dirty: boolean;
  declared: boolean;
  /** null: zeros. */
  bytes: Uint8Array | null;
}

/** What lies at one virtual page. */
export interface NaiveSlot {
  prot: number;
  backing: 'anon' | NaivePage;
  /** Of a page of device memory: its number in the area, the area's pages, and what the driver's fault handler does. */
  pfnmap: { index: number; pages: NaivePage[]; state: PfnmapPte } | null;
  pte: { page: NaivePage; writable: boolean } | null;
}

export class NaiveMm {
  slots = new Map<number, NaiveSlot>();
  /** Modulo 2^64. */
  locked_vm = 0n;
}

export interface NaiveTask {
  leader: string;
  mm: NaiveMm | null;
  cap: boolean;
  body: string;
}

export const naivePage = (kind: NaivePage['kind'], pfn: number | null): NaivePage => ({
  kind,
  pfn,
  maps: 0,
  pins: 0,
  dirty: false,
  declared: false,
  bytes: null,
});

/** "reserved or invalid" in the kernel's words: never charged, never put. */
export const isReserved = ({ kind }: NaivePage): boolean => kind === 'reserved' || kind === 'zero' || kind === 'device';

export class NaiveMemory {
  tasks = new Map<string, NaiveTask>();
  limits = new Map<string, bigint | 'unlimited'>();
  /** Pages that have a pfn of the test's choice. */
  byPfn = new Map<number, NaivePage>();
  zero = naivePage('zero', null);
  /** Every page that the kernel chose and that somebody still refers to. */
  anon = new Set<NaivePage>();

  constructor(private readonly rules: Rules) {}

  task(id: string): NaiveTask {
    const task = this.tasks.get(id);
    if (task === undefined) throw new Refused('NOT_FOUND');
    return task;
  }

  live(id: string): NaiveMm {
    const { mm } = this.task(id);
    if (mm === null) throw new Refused('ESRCH');
    return mm;
  }

  hasUsers(mm: NaiveMm): boolean {
    return [...this.tasks.values()].some((task) => task.mm === mm);
  }

  page(pfn: number): NaivePage {
    const page = this.byPfn.get(pfn) ?? naivePage('normal', pfn);
    this.byPfn.set(pfn, page);
    return page;
  }

  putTask(id: string, rlimit: bigint | 'unlimited', cap: boolean, threadOf: string | null): void {
    const body = `${rlimit} ${cap} ${threadOf}`;
    const existing = this.tasks.get(id);
    if (existing !== undefined) {
      if (existing.body !== body) throw new Refused('EEXIST');
    } else if (threadOf === null) {
      this.limits.set(id, rlimit);
      this.tasks.set(id, { leader: id, mm: new NaiveMm(), cap, body });
    } else {
      const { leader } = this.task(threadOf);
      this.tasks.set(id, { leader, mm: this.live(threadOf), cap, body });
    }
  }

  /** A leader takes its process along, unless it exits alone. */
  exit(id: string, alone: boolean): void {
    const mm = this.live(id);
    const process = !alone && this.task(id).leader === id;
    for (const [other, task] of this.tasks) if (other === id || (process && task.leader === id)) task.mm = null;
    if (this.hasUsers(mm)) return;
    for (const page of [...mm.slots.keys()]) this.unmapSlot(mm, page);
  }

  /** Somebody else changes locked_vm. A leader that has exited stands for its process. */
  adjust(id: string, delta: number): void {
    const task = this.task(id);
    const standsIn = [...this.tasks.values()].find(({ leader, mm }) => leader === id && mm !== null);
    const mm = task.mm ?? standsIn?.mm ?? this.live(id);
    mm.locked_vm = BigInt.asUintN(64, mm.locked_vm + BigInt(delta));
  }

  private unmapSlot(mm: NaiveMm, at: number): void {
    const slot = mm.slots.get(at);
    mm.slots.delete(at);
    if (slot?.pte && slot.pfnmap === null) this.dropMap(slot.pte.page);
  }

  private dropMap(page: NaivePage): void {
    if (page.kind === 'zero') return;
    page.maps--;
    this.forget(page);
  }

  private forget(page: NaivePage): void {
    if (page.kind === 'anon' && page.maps === 0 && page.pins === 0) this.anon.delete(page);
  }

  private place(id: string, at: number, npage: number, noreplace: boolean): NaiveMm {
    const mm = this.live(id);
    const range = Array.from({ length: npage }, (_, i) => at + i);
    if (noreplace && range.some((page) => mm.slots.has(page))) throw new Refused('EEXIST');
    for (const page of range) this.unmapSlot(mm, page);
    return mm;
  }

  mmap(id: string, at: number, npage: number, prot: number, pfns: number[] | null, noreplace: boolean): void {
    const mm = this.place(id, at, npage, noreplace);
    for (let i = 0; i < npage; i++) {
      if (pfns === null) {
        mm.slots.set(at + i, { prot, backing: 'anon', pfnmap: null, pte: null });
        continue;
      }
      const backing = this.page(pfns[i] as number);
      // A frame that was free is a new page now.
      if (!backing.declared && backing.maps + backing.pins === 0) Object.assign(backing, { dirty: false, bytes: null });
      if (backing.kind !== 'zero') backing.maps++;
      const writable = (prot & WRITE) !== 0 && backing.kind !== 'zero';
      mm.slots.set(at + i, { prot, backing, pfnmap: null, pte: { page: backing, writable } });
    }
  }

  /** Device memory: nobody counts its pages; what is present from the start, the states say. */
  mmapDevice(id: string, at: number, prot: number, first: number, states: readonly PfnmapPte[]): void {
    const mm = this.place(id, at, states.length, false);
    const pages = states.map((_, i) => this.page(first + i));
    for (const page of pages) page.declared = true;
    for (const [index, state] of states.entries()) {
      const page = pages[index] as NaivePage;
      const pte = state === 'rw' || state === 'r' ? { page, writable: state === 'rw' } : null;
      mm.slots.set(at + index, { prot, backing: page, pfnmap: { index, pages, state }, pte });
    }
  }

  munmap(id: string, at: number, npage: number): void {
    const mm = this.live(id);
    for (let page = at; page < at + npage; page++) this.unmapSlot(mm, page);
  }

  /** Stops at the first hole: what lies before it has changed. */
  mprotect(id: string, at: number, npage: number, prot: number): void {
    const mm = this.live(id);
    for (let page = at; page < at + npage; page++) {
      const slot = mm.slots.get(page);
      if (slot === undefined) throw new Refused('ENOMEM');
      slot.prot = prot;
      if (slot.pte && (prot & WRITE) === 0) slot.pte.writable = false;
    }
  }

  /** The page at a virtual page, brought in as a read or a write needs it. */
  private fault(mm: NaiveMm, at: number, write: boolean): NaivePage {
    const slot = mm.slots.get(at);
    if (slot === undefined || (slot.prot & (write ? WRITE : READ)) === 0) throw new Refused('EFAULT');
    if (slot.pfnmap !== null) return this.deviceFault(slot, slot.pfnmap, write);
    if (slot.pte === null)
      slot.pte = write ? { page: this.newAnon(null), writable: true } : { page: this.zero, writable: false };
    else if (write && !slot.pte.writable) this.breakCow(slot, slot.pte);
    return slot.pte.page;
  }

  private deviceFault(
    slot: NaiveSlot,
    { index, pages, state }: NonNullable<NaiveSlot['pfnmap']>,
    write: boolean,
  ): NaivePage {
    const page = pages[index] as NaivePage;
    if (slot.pte === null) {
      if (state === 'sigbus') throw new Refused('EFAULT');
      slot.pte = { page, writable: (slot.prot & WRITE) !== 0 };
    } else if (write) slot.pte.writable = true;
    return page;
  }

  /** Pages from a virtual page on for an IOMMU or a driver: with a pin each, or device memory without. */
  pin(mm: NaiveMm, at: number, write: boolean): NaivePage {
    const slot = mm.slots.get(at);
    const page = slot?.pfnmap ? this.lookUp(mm, at, slot, write) : this.fault(mm, at, write);
    if (slot?.pfnmap) {
      if (!isReserved(page)) throw new Refused('EFAULT');
      return page;
    }
    if (page.kind !== 'zero' || this.rules.zeroPage === 'kept') page.pins++;
    return page;
  }

  /** The page of device memory: counted from the area's first one, or what the page table has. */
  private lookUp(mm: NaiveMm, at: number, slot: NaiveSlot, write: boolean): NaivePage {
    const { index, pages } = slot.pfnmap as NonNullable<NaiveSlot['pfnmap']>;
    if (this.rules.countsPfnmapFromStart) return pages[index] as NaivePage;
    if (slot.pte === null) this.fault(mm, at, write);
    if (write && slot.pte?.writable === false && this.rules.refusesReadOnlyPfnmap) throw new Refused('EFAULT');
    return pages[index] as NaivePage;
  }

  private breakCow(slot: NaiveSlot, pte: { page: NaivePage; writable: boolean }): void {
    const { page } = pte;
    if (page.kind === 'anon' && page.maps === 1 && page.pins === 0) pte.writable = true;
    else {
      slot.pte = { page: this.newAnon(page.bytes), writable: true };
      this.dropMap(page);
    }
  }

  private newAnon(bytes: Uint8Array | null): NaivePage {
    const page = naivePage('anon', null);
    page.maps = 1;
    page.bytes = bytes?.slice() ?? null;
    this.anon.add(page);
    return page;
  }

  /** Returns a pin, with the dirty mark or not. */
  put(page: NaivePage, dirty: boolean): void {
    page.pins--;
    if (dirty) page.dirty = true;
    this.forget(page);
  }

  /** The CPU reads or writes memory; how many bytes it could, page by page. */
  copy(mm: NaiveMm, address: bigint, bytes: Uint8Array, write: boolean): number {
    let copied = 0;
    while (copied < bytes.length) {
      const at = address + BigInt(copied);
      const offset = Number(at % BigInt(PAGE_BYTES));
      const count = Math.min(PAGE_BYTES - offset, bytes.length - copied);
      let page: NaivePage;
      try {
        page = this.fault(mm, Number(at / BigInt(PAGE_BYTES)), write);
      } catch (error) {
        if (error instanceof Refused) return copied;
        throw error;
      }
      const part = bytes.subarray(copied, copied + count);
      if (write) {
        page.bytes ??= new Uint8Array(PAGE_BYTES);
        page.bytes.set(part, offset);
      } else if (page.bytes === null) part.fill(0);
      else part.set(page.bytes.subarray(offset, offset + count));
      copied += count;
    }
    return copied;
  }

  limitOf(id: string): bigint {
    const rlimit = this.limits.get(this.task(id).leader) ?? 0n;
    return rlimit === 'unlimited' ? INFINITE_PAGES : rlimit >> 12n;
  }

  /** Whether `npage` more pages on the account of an mm are over the limit of a task. */
  isOver(mm: NaiveMm, id: string, npage: number): boolean {
    return (mm.locked_vm + BigInt(npage)) % MOD_2_64 > this.limitOf(id);
  }

  putPage(pfn: number, kind: PageKind): void {
    const page = this.page(pfn);
    if (page.declared && page.kind === kind) return;
    if (page.maps + page.pins > 0) throw new Refused('EBUSY');
    if (page.declared) throw new Refused('EEXIST');
    page.kind = kind;
    page.declared = true;
  }
}
