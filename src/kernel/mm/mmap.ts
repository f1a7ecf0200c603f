// Models mmap(MAP_FIXED) of mm/mmap.c.

import type { Backing, Command, PfnRuns } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { hex, isPageAligned, npageOf, pageNumberOf, printRange } from '../lib/u64.ts';
import { MAX_MAP_COUNT, TASK_SIZE } from '../limits.ts';
import { mmapLock } from '../lock.ts';
import type { Done } from '../outcome.ts';
import type { Handlers } from '../steps.ts';
import { pushSteps, runOperation } from '../thread.ts';
import { pageAlign } from './address.ts';
import { openFile } from './file.ts';
import { type Layout, makeLayout } from './layout.ts';
import { underLock } from './lock-steps.ts';
import { anyMm, type MmId, type MmStruct } from './mm.ts';
import { unmapSteps } from './munmap.ts';
import { populatePages, populatePfnmap, requireRoom } from './populate.ts';
import { requireMm } from './task.ts';
import {
  linkVma,
  VM_DONTDUMP,
  VM_DONTEXPAND,
  VM_EXEC,
  VM_IO,
  VM_MAYEXEC,
  VM_MAYREAD,
  VM_MAYSHARE,
  VM_MAYWRITE,
  VM_PFNMAP,
  VM_READ,
  VM_SHARED,
  VM_WRITE,
  type Vma,
} from './vma.ts';

/** Pages in a file of the largest size (MAX_LFS_FILESIZE). */
const MAX_FILE_PAGES = 2 ** 51;

/** Where a request lies: whole pages in user space. */
export interface PageRange {
  start: number;
  end: number;
}

/**
 * EINVAL: length 0. ENOMEM: length beyond 2^64 when rounded up to pages; the mm has more than MAX_MAP_COUNT areas; the end
 * is beyond TASK_SIZE. EINVAL: addr is not page aligned.
 */
export function mmapRange(mm: MmStruct, addr: bigint, length: bigint): PageRange {
  if (length === 0n) throw new Errno('EINVAL', 'length: 0x0');
  const size = pageAlign(length);
  if (size === 0n) throw new Errno('ENOMEM', `length: ${hex(length)} is beyond 2^64 in whole pages`);
  if (mm.vmas.areas.length > MAX_MAP_COUNT)
    throw new Errno('ENOMEM', `mm '${mm.id}' has ${mm.vmas.areas.length} areas, the limit is ${MAX_MAP_COUNT}`);
  if (size > TASK_SIZE || addr > TASK_SIZE - size)
    throw new Errno('ENOMEM', `addr ${hex(addr)} + length ${hex(size)} is beyond TASK_SIZE ${hex(TASK_SIZE)}`);
  if (!isPageAligned(addr)) throw new Errno('EINVAL', `addr: ${hex(addr)} is not page aligned`);
  const start = pageNumberOf(addr);
  return { start, end: start + npageOf(size) };
}

/** ENOMEM: unmapping [start, end) would cut a hole into an area, and the mm has MAX_MAP_COUNT of them. */
export function requireSplit(mm: MmStruct, { start, end }: PageRange): void {
  const vma = mm.vmas.areas[mm.vmas.indexAfter(start)];
  const count = mm.vmas.areas.length;
  if (vma !== undefined && start > vma.start && end < vma.end && count >= MAX_MAP_COUNT)
    throw new Errno('ENOMEM', `mm '${mm.id}' has ${count} areas, the limit is ${MAX_MAP_COUNT}`);
}

const calcVmProtBits = (prot: number): number => prot & (VM_READ | VM_WRITE | VM_EXEC);

function vmFlags(prot: number, backing: Backing): number {
  const flags = calcVmProtBits(prot) | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC;
  switch (backing.kind) {
    case 'anon':
      return flags;
    case 'file':
      return backing.shared ? flags | VM_SHARED | VM_MAYSHARE : flags;
    case 'pages':
      return flags | VM_SHARED | VM_MAYSHARE;
    case 'pfnmap':
      return flags | VM_SHARED | VM_MAYSHARE | VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP;
  }
}

/** The runs of a 'pfnmap' backing. EINVAL: neither or both of `pfn` and `pfns`. */
function pfnmapRuns(backing: Extract<Backing, { kind: 'pfnmap' }>, npage: number): PfnRuns {
  const { pfn, pfns } = backing;
  if (pfn !== undefined && pfns === undefined) return [[pfn, npage]];
  if (pfns !== undefined && pfn === undefined) return pfns;
  throw new Errno('EINVAL', 'backing: one of pfn and pfns, not both');
}

/** The layout of the backing, null where pages come with faults. EINVAL, E2BIG, ENOMEM as makeLayout(). EOVERFLOW: pgoff. */
function layoutOf(host: Host, backing: Backing, flags: number, npage: number): Layout | null {
  switch (backing.kind) {
    case 'anon':
      return null;
    case 'file':
      if (!Number.isSafeInteger(backing.pgoff) || backing.pgoff < 0 || backing.pgoff + npage > MAX_FILE_PAGES)
        throw new Errno('EOVERFLOW', `pgoff: ${backing.pgoff} + ${npage} pages is beyond the largest file`);
      return null;
    case 'pages':
      return makeLayout(backing.pfns, null, npage, host.seq);
    case 'pfnmap': {
      const layout = makeLayout(pfnmapRuns(backing, npage), backing.ptes ?? null, npage, host.seq);
      if ((flags & VM_WRITE) === 0 && backing.ptes?.includes('rw'))
        throw new Errno('EINVAL', "ptes: a state 'rw' in an area that may not be written");
      return layout;
    }
  }
}

type MmapCommand = Extract<Command, { op: 'mmap' }>;

export type MmapStep =
  /** Everything that can be refused; then what is mapped in the range is taken away. */
  | { do: 'mmap_checks'; mm: MmId; range: PageRange; command: MmapCommand; cleanup?: true }
  | { do: 'mmap_region'; mm: MmId; range: PageRange; command: MmapCommand; cleanup?: true };

/** EEXIST: an overlap with `noreplace`. EOVERFLOW, EINVAL, E2BIG, ENOMEM: as layoutOf(), requireSplit() and requireRoom(). ENOSPC: MAX_FILES. */
function checkMmap(host: Host, mm: MmStruct, range: PageRange, { prot, backing, noreplace }: MmapCommand): void {
  const { start, end } = range;
  const overlap = mm.vmas.areas[mm.vmas.indexAfter(start)];
  if (noreplace && overlap !== undefined && overlap.start < end)
    throw new Errno('EEXIST', `addr: ${printRange(overlap.start, overlap.end - overlap.start)} is mapped`);
  const layout = layoutOf(host, backing, vmFlags(prot, backing), end - start);
  requireSplit(mm, range);
  if (layout !== null) requireRoom(host, mm, layout, start, backing.kind === 'pages');
  if (backing.kind === 'file') openFile(host, backing.file);
}

/** Makes the area, where nothing is mapped any more. ENOMEM: room for its pages has gone meanwhile. */
function mmapRegion(host: Host, mm: MmStruct, { start, end }: PageRange, { prot, backing }: MmapCommand): void {
  const flags = vmFlags(prot, backing);
  const layout = layoutOf(host, backing, flags, end - start);
  if (layout !== null) requireRoom(host, mm, layout, start, backing.kind === 'pages');
  const file = backing.kind === 'file' ? backing.file : null;
  const vma: Vma = { start, end, flags, kind: backing.kind, file, layout: null, origin: 0, anon_vma: null, ops: null };
  if (backing.kind === 'file') vma.origin = start - backing.pgoff;
  if (layout !== null) {
    vma.layout = host.mm.next_layout++;
    vma.origin = start;
    host.mm.layouts.set(vma.layout, layout);
  }
  linkVma(host, mm, vma);
  if (layout !== null && backing.kind === 'pages') populatePages(host, mm, vma, layout);
  if (layout !== null && backing.kind === 'pfnmap') populatePfnmap(host, mm, vma, layout, backing);
}

export const mmapSteps: Handlers<MmapStep> = {
  mmap_checks(host, operation, { mm, range, command }) {
    checkMmap(host, anyMm(host, mm), range, command);
    pushSteps(operation, [...unmapSteps(mm, range, false), { do: 'mmap_region', mm, range, command }]);
  },
  mmap_region(host, operation, { mm, range, command }) {
    mmapRegion(host, anyMm(host, mm), range, command);
    operation.thread.fields = { addr: command.addr };
  },
};

/**
 * Maps [addr, addr + length) afresh; what it overlaps is unmapped first. Nothing changes where it is refused.
 * ESRCH: the task has exited. Then as mmapRange(). EINTR: killed while it waited. EEXIST: an overlap with `noreplace`.
 * EOVERFLOW: file offset. EINVAL: a layout that does not fit. E2BIG: MAX_PFN_RUNS. ENOMEM: MAX_EAGER_PAGES; MAX_MAP_COUNT; no
 * room for the pages. ENOSPC: MAX_FILES.
 */
export function mmap(host: Host, command: MmapCommand): Done {
  const { task, addr, length, stop_at } = command;
  const mm = requireMm(host, task);
  const range = mmapRange(mm, addr, length);
  const steps = underLock(mmapLock(mm.id), 'W', [{ do: 'mmap_checks', mm: mm.id, range, command }]);
  return runOperation(host, { kind: 'mmap', locals: { task, mm: mm.id } }, steps, stop_at ?? null);
}

/** A first mapping, before anybody can look or wait. */
export function mmapAtBoot(host: Host, command: MmapCommand): void {
  const mm = requireMm(host, command.task);
  mmapRegion(host, mm, mmapRange(mm, command.addr, command.length), command);
}
