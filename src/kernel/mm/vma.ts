// Models struct vm_area_struct and the list of an mm: sorted, disjoint areas, split and merged as the kernel does.

import { type ConsumerName, vmaOpsOf } from '../consumers.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { MAX_MAP_COUNT } from '../limits.ts';
import type { Step } from '../steps.ts';
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
export const VM_LOCKED = 0x2000;
export const VM_IO = 0x4000;
export const VM_DONTCOPY = 0x20000;
export const VM_DONTEXPAND = 0x40000;
export const VM_WIPEONFORK = 0x2000000;
export const VM_DONTDUMP = 0x4000000;
export const VM_ACCESS_FLAGS = VM_READ | VM_WRITE | VM_EXEC;

export type VmaKind = 'anon' | 'file' | 'pfnmap' | 'pages' | 'device';

/** Whose operations an area has (vm_ops, vm_private_data). */
export interface VmaOpsRef {
  consumer: ConsumerName;
  /** The object of that consumer which is mapped. */
  of: string;
  /** The area itself, by number: one that is split off or copied has another. */
  id: number;
  /** Its entries came on a way that its consumer keeps no account of, as those that mremap() moved. */
  unaccounted: boolean;
}

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
  /** Page - origin is the index of that page in the file or the layout; of kind 'device' it is the pfn. */
  origin: number;
  /** The root of the reverse map of its anonymous pages, by number; null before the first of them. Forked areas share it. */
  anon_vma: number | null;
  /** Of kind 'device'; null: the area is ordinary memory. */
  ops: VmaOpsRef | null;
}

/** Models is_cow_mapping(): private, and writable now or later. */
export const isCowMapping = (flags: number): boolean => (flags & (VM_SHARED | VM_MAYWRITE)) === VM_MAYWRITE;

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

/** Gives a new area with operations its number, and opens it: what that takes is done when the step that made it is over. */
export function openVma(host: Host, mm: MmStruct, vma: Vma, moved = false): void {
  if (vma.ops === null) return;
  vma.ops = { ...vma.ops, id: host.mm.next_vma++, unaccounted: moved || vma.ops.unaccounted };
  host.opened.push(...vmaOpsOf(vma.ops.consumer).open(host, mm, vma));
}

/** Which part of an area that is cut is the new one (new_below of __split_vma): munmap() and the others cut from other sides. */
export type NewPart = 'below' | 'above';

/** Models __split_vma(): cuts the area at `index` in two at `page`. Precondition: start < page < end. */
function splitVma(host: Host, mm: MmStruct, index: number, page: number, fresh: NewPart): void {
  const vma = mm.vmas.areas[index] as Vma;
  const tail: Vma = { ...vma, start: page };
  vma.end = page;
  if (tail.layout !== null) useLayout(host.mm, tail.layout, 1);
  mm.vmas.splice(index + 1, 0, [tail], host.seq);
  openVma(host, mm, fresh === 'below' ? vma : tail);
}

/** Cuts the areas at both ends of [start, end), for good or to change them; returns the indices [first, past] of those inside. */
export function isolateRange(
  host: Host,
  mm: MmStruct,
  { start, end }: { start: number; end: number },
  to: 'unmap' | 'change',
): [number, number] {
  const { vmas } = mm;
  let first = vmas.indexAfter(start);
  const head = vmas.areas[first];
  if (head !== undefined && head.start < start) splitVma(host, mm, first++, start, to === 'unmap' ? 'above' : 'below');
  let past = vmas.indexAfter(end);
  const tail = vmas.areas[past];
  if (tail !== undefined && tail.start < end) splitVma(host, mm, past++, end, to === 'unmap' ? 'below' : 'above');
  return [first, past];
}

/** Takes the areas with indices [first, past) off the list; returns what is still to do when their entries are gone. */
export function unlinkVmas(host: Host, mm: MmStruct, first: number, past: number): Step[] {
  const closing: Step[] = [];
  for (let i = first; i < past; i++) {
    const vma = mm.vmas.areas[i] as Vma;
    if (vma.layout !== null) useLayout(host.mm, vma.layout, -1);
    if (vma.ops !== null) closing.push(...vmaOpsOf(vma.ops.consumer).close(host, mm, vma));
  }
  if (past > first) mm.vmas.splice(first, past - first, [], host.seq);
  return closing;
}

/** Whether two neighbours become one. Device areas never do (VM_SPECIAL), nor explicit layouts. */
export function canVmaMerge(a: Vma, b: Vma): boolean {
  if (a.end !== b.start || a.flags !== b.flags || a.kind !== b.kind) return false;
  if (a.anon_vma !== null && b.anon_vma !== null && a.anon_vma !== b.anon_vma) return false;
  if (a.kind === 'anon') return true;
  return a.kind === 'file' && a.file === b.file && a.origin === b.origin;
}

/** Models vma_merge(): joins the area at `index` with its neighbours where they are alike, with the one before it first. */
export function vmaMerge(host: Host, mm: MmStruct, index: number): void {
  const at = joinNext(host, mm, index - 1) ? index - 1 : index;
  joinNext(host, mm, at);
}

/** The area at `index` takes the next one in. False: they are not alike. */
function joinNext(host: Host, { vmas }: MmStruct, index: number): boolean {
  const a = vmas.areas[index];
  const b = vmas.areas[index + 1];
  if (a === undefined || b === undefined || !canVmaMerge(a, b)) return false;
  a.end = b.end;
  a.anon_vma ??= b.anon_vma;
  vmas.splice(index + 1, 1, [], host.seq);
  return true;
}

/** ENOMEM: cutting [start, end) out of the area takes more areas than MAX_MAP_COUNT, and no neighbour takes it in. */
function requireSplits(mm: MmStruct, vma: Vma, { start, end, flags }: Pick<Vma, 'start' | 'end' | 'flags'>): void {
  const { areas } = mm.vmas;
  const index = mm.vmas.indexAfter(vma.start);
  const changed: Vma = { ...vma, start, end, flags };
  const before = areas[index - 1];
  const after = areas[index + 1];
  if (start === vma.start && before !== undefined && canVmaMerge(before, changed)) return;
  if (end === vma.end && after !== undefined && canVmaMerge(changed, after)) return;
  const splits = Number(start > vma.start) + Number(end < vma.end);
  if (splits > 0 && areas.length + splits > MAX_MAP_COUNT)
    throw new Errno('ENOMEM', `mm '${mm.id}' has ${areas.length} areas, the limit is ${MAX_MAP_COUNT}`);
}

/** Gives a part of an area other flags: it is cut out, and merged where it can be. ENOMEM: MAX_MAP_COUNT. */
export function setVmaFlags(
  host: Host,
  mm: MmStruct,
  vma: Vma,
  { start, end }: { start: number; end: number },
  flags: number,
): void {
  if (flags === vma.flags) return;
  requireSplits(mm, vma, { start, end, flags });
  const [index] = isolateRange(host, mm, { start, end }, 'change');
  (mm.vmas.areas[index] as Vma).flags = flags;
  mm.vmas.changed(host.seq);
  vmaMerge(host, mm, index);
}

/** Whether two neighbours would be one but for what may be done with them now (anon_vma_compatible). */
function areCompatible(a: Vma, b: Vma): boolean {
  const flags = b.flags & ~VM_ACCESS_FLAGS;
  return canVmaMerge({ ...a, flags: a.flags & ~VM_ACCESS_FLAGS }, { ...b, flags, anon_vma: a.anon_vma });
}

/** Models anon_vma_prepare(): before its first anonymous page, an area gets a reverse map, that of a neighbour where it may. */
export function anonVmaPrepare(host: Host, mm: MmStruct, vma: Vma): void {
  if (vma.anon_vma !== null) return;
  const { areas } = mm.vmas;
  const index = mm.vmas.indexAfter(vma.start);
  const after = areas[index + 1];
  const before = areas[index - 1];
  if (after !== undefined && after.anon_vma !== null && areCompatible(vma, after)) vma.anon_vma = after.anon_vma;
  else if (before !== undefined && before.anon_vma !== null && areCompatible(before, vma))
    vma.anon_vma = before.anon_vma;
  else vma.anon_vma = host.mm.next_anon_vma++;
  mm.vmas.changed(host.seq);
}

/** Adds an area where nothing is mapped, as it is. */
export function linkVmaAlone(host: Host, mm: MmStruct, vma: Vma): void {
  if (vma.layout !== null) useLayout(host.mm, vma.layout, 1);
  mm.vmas.splice(mm.vmas.indexAfter(vma.start), 0, [vma], host.seq);
}

/** Adds an area where nothing is mapped, and merges it. */
export function linkVma(host: Host, mm: MmStruct, vma: Vma): void {
  const index = mm.vmas.indexAfter(vma.start);
  if (vma.layout !== null) useLayout(host.mm, vma.layout, 1);
  mm.vmas.splice(index, 0, [vma], host.seq);
  vmaMerge(host, mm, index);
}
