// A naive model of the memory side, written from the rules and not from src/: one object a page, every count recounted.

export type Kind = 'normal' | 'reserved' | 'zero' | 'device';
export type State = 'rw' | 'r' | 'lazy' | 'lazy-retry' | 'sigbus';

interface Entry {
  pfn: number;
  write: boolean;
  dirty: boolean;
  /** Not counted: the zero page and device memory. */
  special: boolean;
}

interface Cell {
  prot: number;
  what: 'anon' | 'file' | 'pages' | 'pfnmap';
  shared: boolean;
  file: string;
  index: number;
  /** The page of an explicit layout. */
  pfn: number;
  state: State;
  entry: Entry | null;
}

export interface Area {
  what: Cell['what'];
  shared?: boolean;
  file?: string;
  pgoff?: number;
  pfns?: number[];
  states?: State[];
  /** What pages of a pfnmap are where nobody has decided. */
  kind?: Kind;
}

export class Refused extends Error {}
const refuse = (errno: string): never => {
  throw new Refused(errno);
};

const READ = 1;
const WRITE = 2;

export class Model {
  readonly mms = new Map<string, Map<number, Cell>>();
  readonly pins = new Map<number, number>();
  readonly cache = new Map<string, number>();
  /** Kinds that stay. */
  readonly kept = new Map<number, Kind>();
  readonly declared = new Set<number>();
  /** What a page in use is used as. */
  readonly use = new Map<number, 'anon' | 'file' | 'normal'>();
  readonly dirty = new Set<number>();
  zero: number | null = null;
  cursor: number;

  constructor(readonly total: number) {
    this.cursor = Math.max(1, Math.floor(total / 16));
  }

  mapcount(pfn: number): number {
    let count = 0;
    for (const cells of this.mms.values())
      for (const { entry } of cells.values()) if (entry !== null && !entry.special && entry.pfn === pfn) count++;
    return count;
  }

  refcount(pfn: number): number {
    const cached = [...this.cache.values()].filter((each) => each === pfn).length;
    return this.mapcount(pfn) + cached + 1024 * (this.pins.get(pfn) ?? 0);
  }

  kind(pfn: number): Kind {
    return this.kept.get(pfn) ?? 'normal';
  }

  private free(pfn: number): boolean {
    return this.refcount(pfn) === 0 && !this.kept.has(pfn);
  }

  /** Pages that are free now forget what they were; the dirty mark of an explicit page can be looked at on. */
  settle(): void {
    for (const [pfn, use] of this.use)
      if (this.free(pfn)) {
        this.use.delete(pfn);
        if (use !== 'normal') this.dirty.delete(pfn);
      }
  }

  private alloc(use: 'anon' | 'file'): number {
    this.settle();
    for (let i = 0; i < this.total; i++) {
      const pfn = (this.cursor + i) % this.total;
      if (!this.free(pfn)) continue;
      this.cursor = (pfn + 1) % this.total;
      this.use.set(pfn, use);
      this.dirty.delete(pfn);
      return pfn;
    }
    return refuse('ENOMEM');
  }

  private zeroPage(): number {
    if (this.zero === null) {
      let pfn = this.total;
      while (!this.free(pfn) || this.dirty.has(pfn)) pfn++;
      this.zero = pfn;
      this.kept.set(pfn, 'zero');
    }
    return this.zero;
  }

  private mapExplicit(pfn: number): void {
    if (this.use.has(pfn) || this.kept.has(pfn)) return;
    this.use.set(pfn, 'normal');
    this.dirty.delete(pfn);
  }

  put(pfn: number, kind: Kind): boolean {
    if (this.kept.get(pfn) === kind) return false;
    if (this.refcount(pfn) > 0) refuse('EBUSY');
    if (this.kept.has(pfn)) refuse(this.declared.has(pfn) ? 'EEXIST' : 'EBUSY');
    this.kept.set(pfn, kind);
    this.declared.add(pfn);
    return true;
  }

  mmap(mm: string, start: number, npage: number, prot: number, area: Area, noreplace: boolean): void {
    const cells = this.mms.get(mm) as Map<number, Cell>;
    if (noreplace) for (let i = 0; i < npage; i++) if (cells.has(start + i)) refuse('EEXIST');
    if (area.states?.includes('rw') && (prot & WRITE) === 0) refuse('EINVAL');
    if (area.what === 'pages') for (const pfn of area.pfns ?? []) if (this.kind(pfn) === 'device') refuse('EINVAL');
    this.munmap(mm, start, npage);
    for (let i = 0; i < npage; i++) {
      const pfn = area.pfns?.[i] ?? -1;
      const cell: Cell = {
        prot,
        what: area.what,
        shared: area.what === 'pages' || area.what === 'pfnmap' || area.shared === true,
        file: area.file ?? '',
        index: (area.pgoff ?? 0) + i,
        pfn,
        state: area.states?.[i] ?? ((prot & WRITE) === 0 ? 'r' : 'rw'),
        entry: null,
      };
      cells.set(start + i, cell);
      const write = (prot & WRITE) !== 0;
      if (area.what === 'pages') {
        this.mapExplicit(pfn);
        const zero = this.kind(pfn) === 'zero';
        cell.entry = { pfn, write: write && !zero, dirty: write && !zero, special: zero };
      }
      if (area.what === 'pfnmap') {
        if (!this.kept.has(pfn)) this.kept.set(pfn, this.use.has(pfn) ? 'normal' : (area.kind ?? 'device'));
        if (cell.state === 'rw' || cell.state === 'r')
          cell.entry = { pfn, write: cell.state === 'rw', dirty: false, special: true };
      }
    }
  }

  munmap(mm: string, start: number, npage: number): void {
    for (let i = 0; i < npage; i++) this.mms.get(mm)?.delete(start + i);
    this.settle();
  }

  mprotect(mm: string, start: number, npage: number, prot: number): void {
    const cells = this.mms.get(mm) as Map<number, Cell>;
    for (let i = 0; i < npage; i++) {
      const cell = cells.get(start + i) ?? refuse('ENOMEM');
      if (cell.prot === prot) continue;
      cell.prot = prot;
      if (cell.entry === null) continue;
      const write = (prot & WRITE) !== 0;
      if (cell.what === 'pfnmap') cell.entry.write = write;
      else cell.entry.write = write && cell.shared && !cell.entry.special && cell.entry.dirty;
    }
  }

  /** A CPU access. */
  access(mm: string, page: number, write: boolean): void {
    const cell = this.mms.get(mm)?.get(page) ?? refuse('EFAULT');
    if ((cell.prot & (write ? WRITE : READ)) === 0) refuse('EFAULT');
    const { entry } = cell;
    const own = (): Entry => ({ pfn: this.alloc('anon'), write: true, dirty: true, special: false });
    if (entry === null) this.firstTouch(cell, write, own);
    else if (!write || entry.write) entry.dirty ||= write;
    else if (cell.what === 'pfnmap') entry.write = true;
    else if (entry.special) cell.entry = own();
    else if (cell.shared) Object.assign(entry, { write: true, dirty: true });
    else if (this.use.get(entry.pfn) === 'anon' && this.refcount(entry.pfn) === 1)
      Object.assign(entry, { write: true, dirty: true });
    else cell.entry = own();
    this.settle();
  }

  private firstTouch(cell: Cell, write: boolean, own: () => Entry): void {
    const plain = (pfn: number): Entry => ({ pfn, write, dirty: write, special: false });
    if (cell.what === 'pfnmap') {
      if (cell.state === 'sigbus') refuse('EFAULT');
      cell.entry = { pfn: cell.pfn, write: (cell.prot & WRITE) !== 0, dirty: false, special: true };
    } else if (cell.what === 'pages') {
      throw new Error('an explicit page is always present');
    } else if (write && !cell.shared) {
      cell.entry = own();
    } else if (cell.what === 'anon') {
      cell.entry = { pfn: this.zeroPage(), write: false, dirty: false, special: true };
    } else {
      const key = `${cell.file}:${cell.index}`;
      let pfn = this.cache.get(key);
      if (pfn === undefined) {
        pfn = this.alloc('file');
        this.cache.set(key, pfn);
      }
      cell.entry = plain(pfn);
    }
  }

  /** A pin through GUP. */
  pin(mm: string, page: number, write: boolean): number {
    const cell = this.mms.get(mm)?.get(page) ?? refuse('EFAULT');
    if (cell.what === 'pfnmap') refuse('EFAULT');
    if ((cell.prot & (write ? WRITE : READ)) === 0) refuse('EFAULT');
    if (cell.entry === null || (write && !cell.entry.write)) this.access(mm, page, write);
    const { pfn } = cell.entry as Entry;
    this.pins.set(pfn, (this.pins.get(pfn) ?? 0) + 1);
    return pfn;
  }

  unpin(pfn: number, dirty: boolean): void {
    this.pins.set(pfn, (this.pins.get(pfn) as number) - 1);
    if (dirty) this.dirty.add(pfn);
    this.settle();
  }

  /** A lookup in a VM_PFNMAP area. */
  follow(mm: string, page: number, write: boolean): number {
    const cell = this.mms.get(mm)?.get(page);
    if (cell?.what !== 'pfnmap') return refuse('EFAULT');
    if (cell.entry === null) this.access(mm, page, write);
    const { pfn, write: writable } = cell.entry as Entry;
    return write && !writable ? refuse('EFAULT') : pfn;
  }
}
