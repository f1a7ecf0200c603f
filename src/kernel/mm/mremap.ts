// Models mremap(MREMAP_MAYMOVE | MREMAP_FIXED) of mm/mremap.c: an area and its entries move to another address.

import type { Command } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { hex, isPageAligned, npageOf, pageNumberOf } from '../lib/u64.ts';
import { MAX_MAP_COUNT, TASK_SIZE } from '../limits.ts';
import { mmapLock } from '../lock.ts';
import type { Done } from '../outcome.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, runOperation } from '../thread.ts';
import { pageAlign } from './address.ts';
import { underLock } from './lock-steps.ts';
import { anyMm, type MmId, type MmStruct } from './mm.ts';
import type { PageRange } from './mmap.ts';
import { invalidation } from './mmu-notifier/invalidation.ts';
import { unmapSteps } from './munmap.ts';
import {
  clearPte,
  flagsAt,
  leafIndex,
  PTE_PRESENT,
  PTE_SOFT_DIRTY,
  PTE_TYPE_MASK,
  pfnAt,
  printPage,
  requirePageTables,
  setPte,
  walkPageRange,
} from './page-table.ts';
import { waitsForPtl } from './ptl.ts';
import { requireMm } from './task.ts';
import {
  isolateRange,
  linkVma,
  openVma,
  unlinkVmas,
  VM_DONTEXPAND,
  VM_PFNMAP,
  VM_SHARED,
  type Vma,
  vmaAt,
} from './vma.ts';

/** Where from, how much of it, and where to. */
interface Move {
  mm: MmId;
  old: PageRange;
  to: PageRange;
}

export type MremapStep =
  /** Both ends are clear: the area can move. */
  | ({ do: 'move_vma'; cleanup?: true } & Move)
  | { do: 'move_page_tables'; mm: MmId; start: number; end: number; to: number; cleanup?: true }
  | { do: 'drop_vmas'; mm: MmId; start: number; end: number; cleanup?: true };

/** EFAULT: no area, or the range leaves it. EINVAL: an old length of 0 of a private area. EFAULT: an area that may not grow. */
function vmaToResize(mm: MmStruct, { start, end }: PageRange, npage: number): Vma {
  const vma = vmaAt(mm, start);
  if (vma === null) throw new Errno('EFAULT', `vaddr ${printPage(start)}: nothing is mapped`);
  if (end === start && (vma.flags & VM_SHARED) === 0)
    throw new Errno('EINVAL', 'old_length: 0x0, and the area is private');
  if (end > vma.end) throw new Errno('EFAULT', `vaddr ${printPage(vma.end)}: the range leaves the area`);
  // An area that was laid out page by page has no more pages than that.
  if (npage > end - start && ((vma.flags & (VM_DONTEXPAND | VM_PFNMAP)) !== 0 || vma.layout !== null))
    throw new Errno('EFAULT', `vaddr ${printPage(start)}: the area may not grow`);
  return vma;
}

/** Makes the new area, with what the old one has behind its pages (copy_vma). */
function copyVma(host: Host, mm: MmStruct, vma: Vma, old: PageRange, to: PageRange): void {
  const origin = vma.kind === 'anon' ? 0 : vma.origin + (to.start - old.start);
  const copy = { ...vma, start: to.start, end: to.end, origin };
  linkVma(host, mm, copy);
  openVma(host, mm, copy, true);
}

/** Models move_ptes(). The page tables of the new place have been asked for. */
function moveEntries(host: Host, mm: MmStruct, start: number, end: number, to: number): void {
  walkPageRange(mm, start, end, (index, leaf, i, page) => {
    const flags = flagsAt(leaf, i);
    const pfn = pfnAt(leaf, i);
    clearPte(host, mm, index, leaf, i);
    const soft = (flags & PTE_TYPE_MASK) === PTE_PRESENT ? PTE_SOFT_DIRTY : 0;
    setPte(host, mm, to + (page - start), pfn, flags | soft);
  });
}

/** Leaves that the entries of [start, end) need at their new place, if all of them are missing. */
function leavesOf(mm: MmStruct, start: number, end: number, to: number): number {
  const needed = new Set<number>();
  walkPageRange(mm, start, end, (_index, _leaf, _i, page) => void needed.add(leafIndex(to + (page - start))));
  return [...needed].filter((index) => !mm.page_table.leaves.has(index)).length;
}

export const mremapSteps: Handlers<MremapStep> = {
  move_vma(host, operation, { mm: id, old, to }) {
    const mm = anyMm(host, id);
    const vma = vmaToResize(mm, old, to.end - to.start);
    const { start, end } = old;
    requirePageTables(host, leavesOf(mm, start, end, to.start));
    copyVma(host, mm, vma, old, to);
    operation.thread.fields = { addr: BigInt(to.start) << 12n };
    if (start === end) return;
    const range = { mm: id, start, end, event: 'UNMAP', blockable: true, owner: null } as const;
    pushSteps(operation, [
      ...invalidation(range, [
        { do: 'move_page_tables', mm: id, start, end, to: to.start, cleanup: true },
        { do: 'phase', phase: 'after_pte_set' },
      ]),
      { do: 'drop_vmas', mm: id, start, end, cleanup: true },
    ]);
  },

  move_page_tables(host, operation, step) {
    const { mm: id, start, end, to } = step;
    if (waitsForPtl(host, operation, step, step)) return;
    moveEntries(host, anyMm(host, id), start, end, to);
  },

  /** The old area has no entries any more, so nobody is told. */
  drop_vmas(host, operation, { mm: id, start, end }) {
    const mm = anyMm(host, id);
    const [first, past] = isolateRange(host, mm, { start, end }, 'unmap');
    pushSteps(operation, unlinkVmas(host, mm, first, past));
  },
};

/** EINVAL: addr or new_addr not page aligned; new_length 0; the new range beyond TASK_SIZE, or it overlaps the old one. */
function mremapRanges({ addr, old_length, new_length, new_addr }: Extract<Command, { op: 'mremap' }>): {
  old: PageRange;
  to: PageRange;
} {
  const [oldSize, newSize] = [pageAlign(old_length), pageAlign(new_length)];
  if (!isPageAligned(addr)) throw new Errno('EINVAL', `addr: ${hex(addr)} is not page aligned`);
  if (newSize === 0n) throw new Errno('EINVAL', `new_length: ${hex(new_length)}`);
  if (!isPageAligned(new_addr)) throw new Errno('EINVAL', `new_addr: ${hex(new_addr)} is not page aligned`);
  if (newSize > TASK_SIZE || new_addr > TASK_SIZE - newSize)
    throw new Errno('EINVAL', `new_addr ${hex(new_addr)} + new_length ${hex(new_length)} is beyond TASK_SIZE`);
  if (addr + oldSize > new_addr && new_addr + newSize > addr)
    throw new Errno('EINVAL', 'the old range and the new one overlap');
  const [start, to] = [pageNumberOf(addr), pageNumberOf(new_addr)];
  return {
    old: { start, end: start + npageOf(oldSize) },
    to: { start: to, end: to + npageOf(newSize) },
  };
}

/**
 * Moves [addr, addr + old_length) to new_addr, longer or shorter; what is mapped there, and what is cut off, is unmapped first.
 * Fields: addr. ESRCH: the task has exited. EINVAL: as mremapRanges(). EINTR: killed while it waited. ENOMEM: MAX_MAP_COUNT;
 * MAX_PAGE_TABLES. EFAULT, EINVAL: as vmaToResize(); what was unmapped before it stays so.
 */
export function mremap(host: Host, command: Extract<Command, { op: 'mremap' }>): Done {
  const { id: mm, vmas } = requireMm(host, command.task);
  const { old, to } = mremapRanges(command);
  if (vmas.areas.length + 2 >= MAX_MAP_COUNT - 3)
    throw new Errno('ENOMEM', `mm '${mm}' has ${vmas.areas.length} areas, the limit is ${MAX_MAP_COUNT}`);
  const kept = Math.min(old.end, old.start + (to.end - to.start));
  const steps: Step[] = [...unmapSteps(mm, to, false)];
  if (kept < old.end) steps.push(...unmapSteps(mm, { start: kept, end: old.end }, false));
  steps.push({ do: 'move_vma', mm, old: { start: old.start, end: kept }, to });
  return runOperation(
    host,
    { kind: 'mremap', locals: { task: command.task, mm } },
    underLock(mmapLock(mm), 'W', steps),
    command.stop_at ?? null,
  );
}
