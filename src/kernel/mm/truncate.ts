// Models truncate_pagecache() and truncate_pagecache_range() of mm/truncate.c: pages of a file go, and every entry that maps them.

import type { Command } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { hex, PAGE_SIZE } from '../lib/u64.ts';
import { type LockId, pageLock } from '../lock.ts';
import type { Done } from '../outcome.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, runOperation } from '../thread.ts';
import { dropFromCache, fileFields, getFile, MAX_LFS_FILESIZE, requireFileSize } from './file.ts';
import { anyMm, type MmId, type MmStruct } from './mm.ts';
import { invalidation } from './mmu-notifier/invalidation.ts';
import { writePage } from './page-bytes.ts';
import { KIND_FILE } from './page-frames.ts';
import {
  flagsAt,
  PTE_MIGRATION,
  PTE_PRESENT,
  PTE_SPECIAL,
  PTE_SWAP,
  PTE_TYPE_MASK,
  pfnAt,
  walkPageRange,
} from './page-table.ts';
import { waitsForPtl } from './ptl.ts';
import { areasOf, iMmapLock, inMm, under } from './rmap.ts';
import { underPageLock } from './unmap-page.ts';
import { vmaAt } from './vma.ts';
import { zapEntry } from './zap.ts';

/** Indices [first, end) of a file. */
interface Hole {
  file: string;
  first: number;
  end: number;
}

export type TruncateStep =
  | { do: 'truncate_setsize'; file: string; size: bigint; cleanup?: true }
  /** `even_cows`: private copies go too. */
  | { do: 'unmap_mapping_range'; hole: Hole; even_cows: boolean; cleanup?: true }
  | { do: 'unmap_mapping_each'; hole: Hole; even_cows: boolean; cleanup?: true }
  | { do: 'zap_mapping'; mm: MmId; start: number; end: number; file: string; even_cows: boolean; cleanup?: true }
  /** Zeros the bytes [from, to) of one page of a file. */
  | { do: 'zero_partial'; file: string; index: number; from: number; to: number; cleanup?: true }
  | { do: 'zero_locked'; file: string; index: number; from: number; to: number; cleanup?: true }
  | { do: 'truncate_pages'; hole: Hole; cleanup?: true }
  /** found[at] and what follows it: indices that were cached when they were looked up, ascending. */
  | { do: 'truncate_found'; hole: Hole; found: readonly number[]; at: number; cleanup?: true }
  | { do: 'truncate_page'; file: string; index: number; pfn: number; cleanup?: true }
  | { do: 'delete_from_page_cache'; file: string; index: number; cleanup?: true };

export const iRwsem = (file: string): LockId => `i_rwsem:${file}`;

/** Pages that one look at the cache finds: each look goes through all of the file's pages. */
const LOOKUP_PAGES = 4096;

const LAST = Number(MAX_LFS_FILESIZE >> 12n) + 1;

/**
 * Sets the size of a file and takes away what lies beyond it, private copies included: once before the pages go, for each page
 * that is mapped again by then, and once after.
 * EINVAL: size.
 */
export function truncate(host: Host, { file, size, stop_at }: Extract<Command, { op: 'truncate' }>): Done {
  getFile(host, file);
  requireFileSize(size, 'size');
  const hole = { file, first: Number((size + 4095n) >> 12n), end: LAST };
  const unmap = { do: 'unmap_mapping_range', hole, even_cows: true } as const;
  return runOperation(
    host,
    { kind: 'truncate', locals: { task: null, mm: null } },
    under([iRwsem(file)], 'W', [
      { do: 'truncate_setsize', file, size },
      unmap,
      ...(size % 4096n === 0n
        ? []
        : [
            {
              do: 'zero_partial',
              file,
              index: Number(size >> 12n),
              from: Number(size % 4096n),
              to: PAGE_SIZE,
            } as const,
          ]),
      { do: 'truncate_pages', hole },
      unmap,
    ]),
    stop_at ?? null,
  );
}

/** The parts of a hole that do not fill a page. */
function partialPages(file: string, offset: bigint, end: bigint): Step[] {
  const steps: Step[] = [];
  const zero = (from: bigint, to: bigint): void =>
    void steps.push({
      do: 'zero_partial',
      file,
      index: Number(from >> 12n),
      from: Number(from % 4096n),
      to: Number(to - ((from >> 12n) << 12n)),
    });
  const head = (offset + 4095n) & ~0xfffn;
  const tail = end & ~0xfffn;
  if (head > tail) zero(offset, end);
  else {
    if (offset < head) zero(offset, head);
    if (tail < end) zero(tail, end);
  }
  return steps;
}

/**
 * Punches a hole: whole pages inside it go, private copies of them stay; what is left at both ends is zeroed.
 * EINVAL: length 0; the end is beyond the largest file.
 */
export function punchHole(host: Host, command: Extract<Command, { op: 'punch_hole' }>): Done {
  const { file, offset, length, stop_at } = command;
  getFile(host, file);
  if (length === 0n) throw new Errno('EINVAL', 'length: 0x0');
  if (offset + length > MAX_LFS_FILESIZE)
    throw new Errno('EINVAL', `offset ${hex(offset)} + length ${hex(length)} is beyond the largest file`);
  const hole = { file, first: Number((offset + 4095n) >> 12n), end: Number((offset + length) >> 12n) };
  const whole: Step[] = [
    { do: 'unmap_mapping_range', hole, even_cows: false },
    { do: 'truncate_pages', hole },
  ];
  return runOperation(
    host,
    { kind: 'punch_hole', locals: { task: null, mm: null } },
    under([iRwsem(file)], 'W', [
      ...(hole.first < hole.end ? whole.slice(0, 1) : []),
      ...partialPages(file, offset, offset + length),
      ...(hole.first < hole.end ? whole.slice(1) : []),
    ]),
    stop_at ?? null,
  );
}

/** Whether an entry belongs to the mapping of the file, or is a private copy of it that goes too. */
function goes(host: Host, mm: MmStruct, page: number, word: { flags: number; pfn: number }, step: ZapMapping): boolean {
  const vma = vmaAt(mm, page);
  if (vma === null || vma.file !== step.file) return false;
  const { flags, pfn } = word;
  const type = flags & PTE_TYPE_MASK;
  if (type === PTE_SWAP || (flags & PTE_SPECIAL) !== 0) return step.even_cows;
  if (type !== PTE_PRESENT && type !== PTE_MIGRATION) return step.even_cows;
  return step.even_cows || host.mm.pages.kind(pfn) === KIND_FILE;
}

type ZapMapping = Extract<TruncateStep, { do: 'zap_mapping' }>;

export const truncateSteps: Handlers<TruncateStep> = {
  /** First of all: whoever faults from here on finds the end. */
  truncate_setsize(host, operation, { file: name, size }) {
    const file = getFile(host, name);
    file.size = size;
    file.version = host.seq;
    operation.thread.fields = fileFields(file);
  },

  unmap_mapping_range(host, operation, { hole, even_cows }) {
    pushSteps(
      operation,
      under([iMmapLock(hole.file)], host.profile.unmapMappingLock, [{ do: 'unmap_mapping_each', hole, even_cows }]),
    );
  },

  unmap_mapping_each(host, operation, { hole, even_cows }) {
    const { file, first, end } = hole;
    const pairs = areasOf(host, file, first, end).flatMap(({ mm: { id: mm }, vma }) => {
      const from = Math.max(vma.start, vma.origin + first);
      const to = Math.min(vma.end, vma.origin + end);
      const pair = invalidation({ mm, start: from, end: to, event: 'CLEAR', blockable: true, owner: null }, [
        { do: 'zap_mapping', mm, start: from, end: to, file, even_cows },
        { do: 'phase', phase: 'after_pte_clear' },
      ]);
      return inMm(host, mm, pair);
    });
    pushSteps(operation, pairs);
  },

  zap_mapping(host, operation, step) {
    const { mm: id, start, end } = step;
    if (waitsForPtl(host, operation, step, step)) return;
    const mm = anyMm(host, id);
    walkPageRange(mm, start, end, (index, leaf, i, page) => {
      if (goes(host, mm, page, { flags: flagsAt(leaf, i), pfn: pfnAt(leaf, i) }, step))
        zapEntry(host, mm, index, leaf, i);
    });
  },

  zero_partial(host, operation, step) {
    const { file: name, index, from, to } = step;
    const file = getFile(host, name);
    const stored = file.stored.get(index);
    if (stored !== undefined) {
      stored.fill(0, from, to);
      file.version = host.seq;
    }
    const pfn = file.pages.get(index);
    if (pfn !== undefined) pushSteps(operation, underPageLock(pfn, [{ ...step, do: 'zero_locked' }]));
  },

  zero_locked(host, _operation, { file, index, from, to }) {
    const pfn = getFile(host, file).pages.get(index);
    if (pfn === undefined || !host.mm.pages.bytes.has(pfn)) return;
    writePage(host, pfn, from, new Uint8Array(to - from));
    host.mm.pages.setPteDirty(pfn, host.seq);
  },

  /** The first pages of the hole, by index, and then again until it has none. */
  truncate_pages(host, operation, { hole }) {
    const file = getFile(host, hole.file);
    for (const index of file.stored.keys())
      if (index >= hole.first && index < hole.end) {
        file.stored.delete(index);
        file.version = host.seq;
      }
    const cached: number[] = [];
    for (const index of file.pages.keys()) if (index >= hole.first && index < hole.end) cached.push(index);
    if (cached.length === 0) return;
    const found = cached.sort((a, b) => a - b).slice(0, LOOKUP_PAGES);
    pushSteps(operation, [
      { do: 'truncate_found', hole, found, at: 0 },
      { do: 'truncate_pages', hole: { ...hole } },
    ]);
  },

  /** One page after the other; the thread holds its reference while it waits for its lock. */
  truncate_found(host, operation, { hole, found, at: start }) {
    const { pages } = getFile(host, hole.file);
    let at = start;
    while (at < found.length && !pages.has(found[at] as number)) at++;
    const index = found[at];
    const pfn = index === undefined ? undefined : pages.get(index);
    if (index === undefined || pfn === undefined) return;
    pushSteps(operation, [
      { do: 'get_page', pfn },
      { do: 'lock', lock: pageLock(pfn), mode: 'W' },
      { do: 'truncate_page', file: hole.file, index, pfn },
      { do: 'unlock', lock: pageLock(pfn), cleanup: true },
      { do: 'put_page', pfn, cleanup: true },
      { do: 'truncate_found', hole, found, at: at + 1 },
    ]);
  },

  /** A page that moved while it was waited for is looked up again. */
  truncate_page(host, operation, { file, index, pfn }) {
    if (getFile(host, file).pages.get(index) !== pfn) return;
    const hole = { file, first: index, end: index + 1 };
    pushSteps(operation, [
      ...(host.mm.pages.mapcount(pfn) === 0 ? [] : [{ do: 'unmap_mapping_range', hole, even_cows: false } as const]),
      { do: 'delete_from_page_cache', file, index },
    ]);
  },

  delete_from_page_cache(host, _operation, { file: name, index }) {
    const file = getFile(host, name);
    const pfn = file.pages.get(index);
    if (pfn !== undefined) host.mm.pages.clearDirty(pfn, host.seq);
    dropFromCache(host, file, index);
  },
};
