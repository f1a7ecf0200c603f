// Models struct vm_area_struct and the list of an mm: sorted, disjoint areas, split and merged as the kernel does.

import type { Host } from '../host.ts';
import { useLayout } from './layout.ts';
import type { MmStruct } from './mm.ts';

export const VM_READ = 0x1;
export const VM_WRITE = 0x2;
export const VM_EXEC = 0x4;
export const VM_SHARED = 0x8;
export const VM_MAYREAD = 0x10;
export const VM_MAYWRITE = 0x20;
export const VM_MAYEXEC = 0x40;
export const VM_MAYSHARE = 0x80;
export const VM_PFNMAP = 0x400;
export const VM_IO = 0x4000;
export const VM_DONTEXPAND = 0x40000;
export const VM_DONTDUMP = 0x4000000;
export const VM_ACCESS_FLAGS = VM_READ | VM_WRITE | VM_EXEC;

export type VmaKind = 'anon' | 'file' | 'pfnmap' | 'pages';

export interface Vma {
  /** First page. */
  start: number;
  /** One past the last page. */
  end: number;
  flags: number;
  kind: VmaKind;
  /** Name of the file of kind 'file'. */
  file: string | null;
  /** Layout of the kinds 'pfnmap' and 'pages'. */
  layout: number | null;
  /** Page - origin is the index of that page in the file or the layout. */
  origin: number;
}

export class VmaList {
  /** Sorted by address, disjoint. Changed only through splice(). */
  areas: Vma[] = [];
  /** seq of the last change. */
  version = 0;
  private cached: Vma | null = null;

  /** Index of the first area that ends after `page`; the number of areas where there is none. */
  indexAfter(page: number): number {
    let low = 0;
    let high = this.areas.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.areas[middle] as Vma).end <= page) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** The first area that ends after `page` (find_vma); it may begin after it. */
  find(page: number): Vma | null {
    const { cached } = this;
    if (cached !== null && page >= cached.start && page < cached.end) return cached;
    const vma = this.areas[this.indexAfter(page)];
    if (vma === undefined) return null;
    this.cached = vma;
    return vma;
  }

  splice(index: number, count: number, areas: Vma[], seq: number): void {
    this.areas.splice(index, count, ...areas);
    this.changed(seq);
  }

  changed(seq: number): void {
    this.cached = null;
    this.version = seq;
  }
}

/** Models find_vma(). */
export const findVma = (mm: MmStruct, page: number): Vma | null => mm.vmas.find(page);

/** Models vma_lookup(): the area that contains a page. */
export function vmaAt(mm: MmStruct, page: number): Vma | null {
  const vma = mm.vmas.find(page);
  return vma !== null && vma.start <= page ? vma : null;
}

/** Models __split_vma(): cuts the area at `index` in two at `page`. Precondition: start < page < end. */
function splitVma(host: Host, mm: MmStruct, index: number, page: number): void {
  const vma = mm.vmas.areas[index] as Vma;
  const tail: Vma = { ...vma, start: page };
  vma.end = page;
  if (tail.layout !== null) useLayout(host.mm, tail.layout, 1);
  mm.vmas.splice(index + 1, 0, [tail], host.seq);
}

/** Cuts the areas at both ends of [start, end); returns the indices [first, past] of those inside. */
export function isolateRange(host: Host, mm: MmStruct, start: number, end: number): [number, number] {
  const { vmas } = mm;
  let first = vmas.indexAfter(start);
  const head = vmas.areas[first];
  if (head !== undefined && head.start < start) splitVma(host, mm, first++, start);
  let past = vmas.indexAfter(end);
  const tail = vmas.areas[past];
  if (tail !== undefined && tail.start < end) splitVma(host, mm, past++, end);
  return [first, past];
}

/** Takes the areas with indices [first, past) off the list. */
export function unlinkVmas(host: Host, mm: MmStruct, first: number, past: number): void {
  for (let i = first; i < past; i++) {
    const { layout } = mm.vmas.areas[i] as Vma;
    if (layout !== null) useLayout(host.mm, layout, -1);
  }
  if (past > first) mm.vmas.splice(first, past - first, [], host.seq);
}

/** Whether two neighbours become one. Device areas never do (VM_SPECIAL), nor explicit layouts. */
export function canVmaMerge(a: Vma, b: Vma): boolean {
  if (a.end !== b.start || a.flags !== b.flags || a.kind !== b.kind) return false;
  if (a.kind === 'anon') return true;
  return a.kind === 'file' && a.file === b.file && a.origin === b.origin;
}

/** Models vma_merge(): joins the area at `index` with its neighbours where they are alike. */
export function vmaMerge(host: Host, mm: MmStruct, index: number): void {
  const { vmas } = mm;
  for (const left of [index, index - 1]) {
    const a = vmas.areas[left];
    const b = vmas.areas[left + 1];
    if (a === undefined || b === undefined || !canVmaMerge(a, b)) continue;
    a.end = b.end;
    vmas.splice(left + 1, 1, [], host.seq);
  }
}

/** Adds an area where nothing is mapped, and merges it. */
export function linkVma(host: Host, mm: MmStruct, vma: Vma): void {
  const index = mm.vmas.indexAfter(vma.start);
  if (vma.layout !== null) useLayout(host.mm, vma.layout, 1);
  mm.vmas.splice(index, 0, [vma], host.seq);
  vmaMerge(host, mm, index);
}
