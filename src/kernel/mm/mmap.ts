// Models mmap(MAP_FIXED) and munmap() of mm/mmap.c.

import type { Backing, Command, PfnRuns } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { hex, isPageAligned, npageOf, pageNumberOf, printRange } from '../lib/u64.ts';
import { MAX_MAP_COUNT, TASK_SIZE } from '../limits.ts';
import type { Done } from '../outcome.ts';
import { pageAlign } from './address.ts';
import { openFile } from './file.ts';
import { type Layout, makeLayout } from './layout.ts';
import type { MmStruct } from './mm.ts';
import { populatePages, populatePfnmap, requireRoom } from './populate.ts';
import { requireMm } from './task.ts';
import {
  isolateRange,
  linkVma,
  unlinkVmas,
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
import { zapPageRange } from './zap.ts';

/** Pages in a file of the largest size (MAX_LFS_FILESIZE). */
const MAX_FILE_PAGES = 2 ** 51;

/** Where a request lies: whole pages in user space. */
interface PageRange {
  start: number;
  end: number;
}

/**
 * EINVAL: length 0. ENOMEM: length beyond 2^64 when rounded up to pages; the mm has more than MAX_MAP_COUNT areas; the end
 * is beyond TASK_SIZE. EINVAL: addr is not page aligned.
 */
function mmapRange(mm: MmStruct, addr: bigint, length: bigint): PageRange {
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
function requireSplit(mm: MmStruct, { start, end }: PageRange): void {
  const vma = mm.vmas.areas[mm.vmas.indexAfter(start)];
  const count = mm.vmas.areas.length;
  if (vma !== undefined && start > vma.start && end < vma.end && count >= MAX_MAP_COUNT)
    throw new Errno('ENOMEM', `mm '${mm.id}' has ${count} areas, the limit is ${MAX_MAP_COUNT}`);
}

/** Takes what is mapped in the range away, entries of the page table included. */
function unmapRange(host: Host, mm: MmStruct, { start, end }: PageRange): void {
  const [first, past] = isolateRange(host, mm, start, end);
  if (first === past) return;
  unlinkVmas(host, mm, first, past);
  zapPageRange(host, mm, start, end);
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

/**
 * Maps [addr, addr + length) afresh; what it overlaps is unmapped first. Nothing changes where it is refused.
 * ESRCH: the task has exited. Then as mmapRange(). EEXIST: an overlap with `noreplace`. EOVERFLOW: file offset.
 * EINVAL: a layout that does not fit. E2BIG: MAX_PFN_RUNS. ENOMEM: MAX_EAGER_PAGES; MAX_MAP_COUNT; no room for the pages.
 * ENOSPC: MAX_FILES.
 */
export function mmap(host: Host, command: Extract<Command, { op: 'mmap' }>): Done {
  const { addr, length, prot, backing, noreplace } = command;
  const mm = requireMm(host, command.task);
  const range = mmapRange(mm, addr, length);
  const { start, end } = range;
  const overlap = mm.vmas.areas[mm.vmas.indexAfter(start)];
  if (noreplace && overlap !== undefined && overlap.start < end)
    throw new Errno('EEXIST', `addr: ${printRange(overlap.start, overlap.end - overlap.start)} is mapped`);
  const flags = vmFlags(prot, backing);
  const layout = layoutOf(host, backing, flags, end - start);
  requireSplit(mm, range);
  if (layout !== null) requireRoom(host, mm, layout, start, backing.kind === 'pages');
  const file = backing.kind === 'file' ? openFile(host, backing.file).name : null;

  unmapRange(host, mm, range);
  const vma: Vma = { start, end, flags, kind: backing.kind, file, layout: null, origin: 0 };
  if (backing.kind === 'file') vma.origin = start - backing.pgoff;
  if (layout !== null) {
    vma.layout = host.mm.next_layout++;
    vma.origin = start;
    host.mm.layouts.set(vma.layout, layout);
  }
  linkVma(host, mm, vma);
  if (layout !== null && backing.kind === 'pages') populatePages(host, mm, vma, layout);
  if (layout !== null && backing.kind === 'pfnmap') populatePfnmap(host, mm, vma, layout, backing);
  return { ret: 0, fields: { addr } };
}

/**
 * Unmaps [addr, addr + length); holes in it are no error.
 * ESRCH: the task has exited. EINVAL: addr is not page aligned; the range is beyond TASK_SIZE; length 0. ENOMEM: MAX_MAP_COUNT.
 */
export function munmap(host: Host, command: Extract<Command, { op: 'munmap' }>): Done {
  const { addr, length } = command;
  const mm = requireMm(host, command.task);
  if (!isPageAligned(addr)) throw new Errno('EINVAL', `addr: ${hex(addr)} is not page aligned`);
  if (addr > TASK_SIZE || length > TASK_SIZE - addr)
    throw new Errno('EINVAL', `addr ${hex(addr)} + length ${hex(length)} is beyond TASK_SIZE ${hex(TASK_SIZE)}`);
  if (length === 0n) throw new Errno('EINVAL', 'length: 0x0');
  const start = pageNumberOf(addr);
  const range = { start, end: start + npageOf(pageAlign(length)) };
  requireSplit(mm, range);
  unmapRange(host, mm, range);
  return { ret: 0, fields: {} };
}

export { mprotect } from './mprotect.ts';
