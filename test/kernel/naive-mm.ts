// A naive model of the memory side, for comparison with the kernel's: one entry per virtual page, one object per host page.

import type { PageKind } from '../../src/kernel/command.ts';
import { WRITE } from '../../src/kernel/command.ts';

export const MOD_2_64 = 2n ** 64n;
/** RLIM_INFINITY in pages. */
const INFINITE_PAGES = (MOD_2_64 - 1n) >> 12n;

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
}

/** What lies at one virtual page. */
export interface NaiveSlot {
  prot: number;
  backing: 'anon' | NaivePage;
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

  page(pfn: number): NaivePage {
    const page = this.byPfn.get(pfn) ?? naivePage('normal', pfn);
    this.byPfn.set(pfn, page);
    return page;
  }

  putTask(id: string, rlimit: bigint | 'unlimited', cap: boolean, threadOf: string | null): boolean {
    const body = `${rlimit} ${cap} ${threadOf}`;
    const existing = this.tasks.get(id);
    if (existing !== undefined) {
      if (existing.body !== body) throw new Refused('EEXIST');
      return false;
    }
    if (threadOf === null) {
      this.limits.set(id, rlimit);
      this.tasks.set(id, { leader: id, mm: new NaiveMm(), cap, body });
    } else {
      const { leader } = this.task(threadOf);
      this.tasks.set(id, { leader, mm: this.live(threadOf), cap, body });
    }
    return true;
  }

  exit(id: string): void {
    const mm = this.live(id);
    for (const [other, task] of this.tasks) if (other === id || task.leader === id) task.mm = null;
    if ([...this.tasks.values()].some((task) => task.mm === mm)) return;
    for (const page of [...mm.slots.keys()]) this.unmapSlot(mm, page);
  }

  private unmapSlot(mm: NaiveMm, at: number): void {
    const pte = mm.slots.get(at)?.pte;
    mm.slots.delete(at);
    if (pte) this.dropMap(pte.page);
  }

  private dropMap(page: NaivePage): void {
    if (page.kind === 'zero') return;
    page.maps--;
    this.forget(page);
  }

  private forget(page: NaivePage): void {
    if (page.kind === 'anon' && page.maps === 0 && page.pins === 0) this.anon.delete(page);
  }

  mmap(id: string, at: number, npage: number, prot: number, pfns: number[] | null, noreplace: boolean): void {
    const mm = this.live(id);
    const range = Array.from({ length: npage }, (_, i) => at + i);
    if (noreplace && range.some((page) => mm.slots.has(page))) throw new Refused('EEXIST');
    for (const page of range) this.unmapSlot(mm, page);
    for (const [i, page] of range.entries()) {
      if (pfns === null) mm.slots.set(page, { prot, backing: 'anon', pte: null });
      else {
        const backing = this.page(pfns[i] as number);
        // A frame that was free is a new page now.
        if (!backing.declared && backing.maps + backing.pins === 0) backing.dirty = false;
        if (backing.kind !== 'zero') backing.maps++;
        const writable = (prot & WRITE) !== 0 && backing.kind !== 'zero';
        mm.slots.set(page, { prot, backing, pte: { page: backing, writable } });
      }
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

  /** get_user_pages: the page at a virtual page for reading or writing, with a pin on it. */
  gup(mm: NaiveMm, at: number, write: boolean): NaivePage {
    const slot = mm.slots.get(at);
    if (slot === undefined || (slot.prot & (write ? WRITE : 1)) === 0) throw new Refused('EFAULT');
    if (slot.pte === null)
      slot.pte = write ? { page: this.newAnon(), writable: true } : { page: this.zero, writable: false };
    else if (write && !slot.pte.writable) this.breakCow(slot, slot.pte);
    const { page } = slot.pte;
    page.pins++;
    return page;
  }

  private breakCow(slot: NaiveSlot, pte: { page: NaivePage; writable: boolean }): void {
    const { page } = pte;
    if (page.kind === 'anon' && page.maps === 1 && page.pins === 0) pte.writable = true;
    else {
      slot.pte = { page: this.newAnon(), writable: true };
      this.dropMap(page);
    }
  }

  private newAnon(): NaivePage {
    const page = naivePage('anon', null);
    page.maps = 1;
    this.anon.add(page);
    return page;
  }

  /** Returns a pin, with the dirty mark or not. */
  put(page: NaivePage, dirty: boolean): void {
    page.pins--;
    if (dirty) page.dirty = true;
    this.forget(page);
  }

  /** One page more on the account of an mm; whose limit: the task's. */
  charge(mm: NaiveMm, leader: string, bypass: boolean): void {
    const locked = (mm.locked_vm + 1n) % MOD_2_64;
    const rlimit = this.limits.get(leader) ?? 0n;
    const limit = rlimit === 'unlimited' ? INFINITE_PAGES : rlimit >> 12n;
    if (!bypass && locked > limit) throw new Refused('ENOMEM');
    mm.locked_vm = locked;
  }

  uncharge(mm: NaiveMm): void {
    mm.locked_vm = (mm.locked_vm + MOD_2_64 - 1n) % MOD_2_64;
  }

  putPage(pfn: number, kind: PageKind): boolean {
    const page = this.page(pfn);
    if (page.declared && page.kind === kind) return false;
    if (page.maps + page.pins > 0) throw new Refused('EBUSY');
    if (page.declared) throw new Refused('EEXIST');
    page.kind = kind;
    page.declared = true;
    return true;
  }
}
