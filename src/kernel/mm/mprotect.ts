// Models mprotect() of mm/mprotect.c, 5.15.

import type { Command } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { hex, isPageAligned, npageOf, pageNumberOf } from '../lib/u64.ts';
import { mmapLock } from '../lock.ts';
import type { Done } from '../outcome.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, runOperation } from '../thread.ts';
import { pageAlign } from './address.ts';
import { underLock } from './lock-steps.ts';
import { anyMm, type MmId, type MmStruct } from './mm.ts';
import { invalidation } from './mmu-notifier/invalidation.ts';
import {
  flagsAt,
  leafIndex,
  PTE_DIRTY,
  PTE_PRESENT,
  PTE_SPECIAL,
  PTE_TYPE_MASK,
  PTE_WRITE,
  PTRS_PER_PTE,
  printPage,
  setPteFlags,
  walkPageRange,
} from './page-table.ts';
import { waitsForPtl } from './ptl.ts';
import { requireMm } from './task.ts';
import { setVmaFlags, VM_ACCESS_FLAGS, VM_PFNMAP, VM_SHARED, VM_WRITE, vmaAt } from './vma.ts';

/** PROT_READ, PROT_WRITE, PROT_EXEC, PROT_SEM. */
const PROT_BITS = 0xf;
/** Pages below one entry of a page upper directory: 1 GiB. */
const PAGES_PER_PUD = PTRS_PER_PTE * PTRS_PER_PTE;

/**
 * Gives the entries of [start, end) the permission of new flags of the area. A private page loses its write permission,
 * even where the area keeps it: the next write finds out whether it must be copied. A shared page that was written before
 * gets it back at once. The zero page stays read-only.
 */
function changeProtection(host: Host, mm: MmStruct, start: number, end: number, vmFlags: number): void {
  const mayWrite = (vmFlags & VM_WRITE) !== 0;
  walkPageRange(mm, start, end, (_index, leaf, i) => {
    const flags = flagsAt(leaf, i);
    if ((flags & PTE_TYPE_MASK) !== PTE_PRESENT) {
      // A page that migrates or that a device has comes back without the permission to be written.
      setPteFlags(host, leaf, i, flags & ~PTE_WRITE);
      return;
    }
    let write = false;
    if ((vmFlags & VM_PFNMAP) !== 0) write = mayWrite;
    else if ((flags & PTE_SPECIAL) === 0) write = mayWrite && (vmFlags & VM_SHARED) !== 0 && (flags & PTE_DIRTY) !== 0;
    setPteFlags(host, leaf, i, write ? flags | PTE_WRITE : flags & ~PTE_WRITE);
  });
}

type MprotectCommand = Extract<Command, { op: 'mprotect' }>;

export type MprotectStep =
  /** The area at `start`, and then those after it up to `end`. */
  | { do: 'mprotect_fixup'; mm: MmId; start: number; end: number; prot: number; cleanup?: true }
  /** The part of one upper-level table: one pair, if anything is populated. */
  | { do: 'change_pud'; mm: MmId; start: number; end: number; flags: number; cleanup?: true }
  | { do: 'change_protection'; mm: MmId; start: number; end: number; flags: number; cleanup?: true };

/** First page of [start, end) whose page of entries exists; null: none does. */
function firstPopulated({ page_table }: MmStruct, start: number, end: number): number | null {
  for (let index = leafIndex(start); index <= leafIndex(end - 1); index++)
    if (page_table.leaves.has(index)) return Math.max(start, index * PTRS_PER_PTE);
  return null;
}

/** The parts of [start, end) that lie in different upper-level tables (1 GiB each), where anything is populated now. */
function pudSteps(mm: MmStruct, start: number, end: number, flags: number): Step[] {
  const puds = new Set<number>();
  for (const index of mm.page_table.leaves.keys())
    if (index >= leafIndex(start) && index <= leafIndex(end - 1)) puds.add(Math.floor(index / PTRS_PER_PTE));
  return [...puds]
    .sort((a, b) => a - b)
    .map((pud) => ({
      do: 'change_pud',
      mm: mm.id,
      start: Math.max(start, pud * PAGES_PER_PUD),
      end: Math.min(end, (pud + 1) * PAGES_PER_PUD),
      flags,
    }));
}

export const mprotectSteps: Handlers<MprotectStep> = {
  /** The flags of the area change before anybody is told. ENOMEM: a hole; MAX_MAP_COUNT. EACCES. */
  mprotect_fixup(host, operation, { mm: id, start, end, prot }) {
    const mm = anyMm(host, id);
    const vma = vmaAt(mm, start);
    if (vma === null) throw new Errno('ENOMEM', `vaddr ${printPage(start)}: nothing is mapped`);
    const flags = (vma.flags & ~VM_ACCESS_FLAGS) | (prot & VM_ACCESS_FLAGS);
    if ((flags & ~(flags >> 4) & VM_ACCESS_FLAGS) !== 0)
      throw new Errno('EACCES', `vaddr ${printPage(start)}: the area may never be accessed so`);
    const stop = Math.min(vma.end, end);
    const rest: Step[] = stop < end ? [{ do: 'mprotect_fixup', mm: id, start: stop, end, prot }] : [];
    if (flags !== vma.flags) {
      setVmaFlags(host, mm, vma, { start, end: stop }, flags);
      rest.unshift(...pudSteps(mm, start, stop, flags));
    }
    pushSteps(operation, rest);
  },

  change_pud(host, operation, { mm, start, end, flags }) {
    const first = firstPopulated(anyMm(host, mm), start, end);
    if (first === null) return;
    const range = { mm, start: first, end, event: 'PROTECTION_VMA', blockable: true, owner: null } as const;
    const change: Step[] = [
      { do: 'change_protection', mm, start: first, end, flags, cleanup: true },
      { do: 'phase', phase: 'after_pte_set' },
    ];
    pushSteps(operation, invalidation(range, change));
  },

  change_protection(host, operation, step) {
    const { mm, start, end, flags } = step;
    if (!waitsForPtl(host, operation, step, step)) changeProtection(host, anyMm(host, mm), start, end, flags);
  },
};

/**
 * Changes the permission of [addr, addr + length). Areas before a refusal stay changed.
 * ESRCH: the task has exited. EINVAL: addr is not page aligned. Length 0 succeeds. ENOMEM: the end is beyond 2^64.
 * EINVAL: unknown bits in prot. EINTR: killed while it waited. Then area by area: ENOMEM: a hole. EACCES: the area may never be
 * accessed so. ENOMEM: MAX_MAP_COUNT.
 */
export function mprotect(host: Host, command: MprotectCommand): Done {
  const { task, addr, length, prot, stop_at } = command;
  const { id: mm } = requireMm(host, task);
  if (!isPageAligned(addr)) throw new Errno('EINVAL', `addr: ${hex(addr)} is not page aligned`);
  if (length === 0n) return { ret: 0, fields: {} };
  const size = pageAlign(length);
  if (size === 0n || addr + size >= 2n ** 64n)
    throw new Errno('ENOMEM', `addr ${hex(addr)} + length ${hex(length)} is beyond 2^64`);
  if ((prot & ~PROT_BITS) !== 0) throw new Errno('EINVAL', `prot: unknown bits in 0x${(prot >>> 0).toString(16)}`);
  const start = pageNumberOf(addr);
  const steps = underLock(mmapLock(mm), 'W', [{ do: 'mprotect_fixup', mm, start, end: start + npageOf(size), prot }]);
  return runOperation(host, { kind: 'mprotect', locals: { task, mm } }, steps, stop_at ?? null);
}
