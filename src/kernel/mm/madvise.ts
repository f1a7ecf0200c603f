// Models madvise() of mm/madvise.c: DONTNEED and FREE give pages up; the others say what a fork is to do with an area.

import type { Advice, Command } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { hex, isPageAligned, npageOf, pageNumberOf } from '../lib/u64.ts';
import { isLockFree, mmapLock, pageLock } from '../lock.ts';
import type { Done } from '../outcome.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, runOperation } from '../thread.ts';
import { pageAlign } from './address.ts';
import { entryKindOf } from './entry-kinds.ts';
import { underLock } from './lock-steps.ts';
import { anyMm, type MmId, type MmStruct } from './mm.ts';
import { invalidation } from './mmu-notifier/invalidation.ts';
import { KIND_ANON } from './page-frames.ts';
import {
  clearPte,
  flagsAt,
  PTE_DIRTY,
  PTE_PRESENT,
  PTE_SPECIAL,
  PTE_SWAP,
  PTE_TYPE_MASK,
  PTE_YOUNG,
  pfnAt,
  printPage,
  setPteFlags,
  walkPageRange,
} from './page-table.ts';
import { waitsForPtl } from './ptl.ts';
import { requireMm } from './task.ts';
import { findVma, setVmaFlags, VM_DONTCOPY, VM_IO, VM_LOCKED, VM_PFNMAP, VM_WIPEONFORK, type Vma } from './vma.ts';

export type MadviseStep =
  /** The area at or after `start`, and then those after it up to `end`; `holes`: there was one. ENOMEM at the end, if so. */
  | {
      do: 'madvise_vmas';
      mm: MmId;
      start: number;
      end: number;
      advice: Advice;
      holes: boolean;
      cleanup?: true;
    }
  | { do: 'free_range'; mm: MmId; start: number; end: number; cleanup?: true };

/** Models can_madv_lru_vma(), without huge pages. */
export const canMadvLruVma = ({ flags }: Vma): boolean => (flags & (VM_LOCKED | VM_PFNMAP)) === 0;

const givesUp = (advice: Advice): boolean => advice === 'DONTNEED' || advice === 'FREE';

/** EINVAL: a locked area or one of device memory; FREE of one that is not anonymous. */
function requirePages(vma: Vma, start: number, advice: Advice): void {
  if (!canMadvLruVma(vma)) throw new Errno('EINVAL', `vaddr ${printPage(start)}: the area is VM_LOCKED or VM_PFNMAP`);
  if (advice === 'FREE' && vma.kind !== 'anon')
    throw new Errno('EINVAL', `vaddr ${printPage(start)}: the area is not anonymous`);
}

/** The flags of an area after the advice. EINVAL: device memory is forked never; a wipe of what is not anonymous and private. */
function advisedFlags({ flags, kind }: Vma, start: number, advice: Advice): number {
  switch (advice) {
    case 'DONTFORK':
      return flags | VM_DONTCOPY;
    case 'DOFORK':
      if ((flags & VM_IO) !== 0) throw new Errno('EINVAL', `vaddr ${printPage(start)}: the area is VM_IO`);
      return flags & ~VM_DONTCOPY;
    case 'WIPEONFORK':
      if (kind !== 'anon') throw new Errno('EINVAL', `vaddr ${printPage(start)}: the area is not anonymous`);
      return flags | VM_WIPEONFORK;
    default:
      return flags & ~VM_WIPEONFORK;
  }
}

/** Models madvise_free_pte_range(): what is only mapped here may be forgotten, unless it is written again. */
function freeRange(host: Host, mm: MmStruct, start: number, end: number): void {
  const { pages } = host.mm;
  walkPageRange(mm, start, end, (index, leaf, i) => {
    const flags = flagsAt(leaf, i);
    const pfn = pfnAt(leaf, i);
    if ((flags & PTE_TYPE_MASK) === PTE_SWAP) {
      clearPte(host, mm, index, leaf, i);
      entryKindOf(PTE_SWAP).drop(host, pfn);
      return;
    }
    if ((flags & (PTE_TYPE_MASK | PTE_SPECIAL)) !== PTE_PRESENT || pages.kind(pfn) !== KIND_ANON) return;
    if (pages.isDirty(pfn)) {
      if (!isLockFree(host, pageLock(pfn), 'W') || pages.mapcount(pfn) !== 1) return;
      pages.clearDirty(pfn, host.seq);
    }
    setPteFlags(host, leaf, i, flags & ~(PTE_YOUNG | PTE_DIRTY));
  });
}

export const madviseSteps: Handlers<MadviseStep> = {
  madvise_vmas(host, operation, { mm: id, start, end, advice, holes }) {
    const mm = anyMm(host, id);
    const vma = findVma(mm, start);
    if (vma === null || vma.start >= end) throw new Errno('ENOMEM', `vaddr ${printPage(start)}: nothing is mapped`);
    const first = Math.max(start, vma.start);
    const stop = Math.min(vma.end, end);
    const gap = holes || first > start;
    const rest: Step[] = [];
    if (givesUp(advice)) {
      requirePages(vma, first, advice);
      const range = { mm: id, start: first, end: stop, event: 'CLEAR', blockable: true, owner: null } as const;
      const change: Step = { do: advice === 'FREE' ? 'free_range' : 'zap', mm: id, start: first, end: stop };
      rest.push(...invalidation(range, [change, { do: 'phase', phase: 'after_pte_clear' }]));
    } else setVmaFlags(host, mm, vma, { start: first, end: stop }, advisedFlags(vma, first, advice));
    if (stop < end) rest.push({ do: 'madvise_vmas', mm: id, start: stop, end, advice, holes: gap });
    else if (gap) rest.push({ do: 'fail', errno: 'ENOMEM', detail: 'the range has holes; what is mapped is done' });
    pushSteps(operation, rest);
  },

  free_range(host, operation, step) {
    const { mm, start, end } = step;
    if (!waitsForPtl(host, operation, step, step)) freeRange(host, anyMm(host, mm), start, end);
  },
};

/**
 * Advice for [addr, addr + length), area by area; DONTNEED and FREE tell a CLEAR of each piece.
 * ESRCH: the task has exited. EINVAL: addr is not page aligned; the end is before addr. Length 0 succeeds. EINTR: killed while it
 * waited. Then area by area: EINVAL; MAX_MAP_COUNT is ENOMEM; and in the end ENOMEM: the range had holes.
 */
export function madvise(host: Host, command: Extract<Command, { op: 'madvise' }>): Done {
  const { task, addr, length, advice, stop_at } = command;
  const { id: mm } = requireMm(host, task);
  if (!isPageAligned(addr)) throw new Errno('EINVAL', `addr: ${hex(addr)} is not page aligned`);
  const size = pageAlign(length);
  if ((size === 0n && length > 0n) || addr + size >= 2n ** 64n)
    throw new Errno('EINVAL', `addr ${hex(addr)} + length ${hex(length)} is beyond 2^64`);
  if (size === 0n) return { ret: 0, fields: {} };
  const start = pageNumberOf(addr);
  const walk: Step = { do: 'madvise_vmas', mm, start, end: start + npageOf(size), advice, holes: false };
  const lock = mmapLock(mm);
  const steps: Step[] = givesUp(advice)
    ? [{ do: 'lock', lock, mode: 'R' }, walk, { do: 'unlock', lock, cleanup: true }]
    : underLock(lock, 'W', [walk]);
  return runOperation(host, { kind: 'madvise', locals: { task, mm } }, steps, stop_at ?? null);
}
