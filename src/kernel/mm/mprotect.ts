// Models mprotect() of mm/mprotect.c, 5.15.

import type { Command } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { hex, isPageAligned, npageOf, pageNumberOf } from '../lib/u64.ts';
import { MAX_MAP_COUNT } from '../limits.ts';
import type { Done } from '../outcome.ts';
import { pageAlign } from './address.ts';
import type { MmStruct } from './mm.ts';
import {
  flagsAt,
  PTE_DIRTY,
  PTE_PRESENT,
  PTE_SPECIAL,
  PTE_TYPE_MASK,
  PTE_WRITE,
  printPage,
  setPteFlags,
  walkPageRange,
} from './page-table.ts';
import { requireMm } from './task.ts';
import {
  canVmaMerge,
  isolateRange,
  VM_ACCESS_FLAGS,
  VM_PFNMAP,
  VM_SHARED,
  VM_WRITE,
  type Vma,
  vmaAt,
  vmaMerge,
} from './vma.ts';

/** PROT_READ, PROT_WRITE, PROT_EXEC, PROT_SEM. */
const PROT_BITS = 0xf;

/**
 * Gives the entries of [start, end) the permission of new flags of the area. A private page loses its write permission,
 * even where the area keeps it: the next write finds out whether it must be copied. A shared page that was written before
 * gets it back at once. The zero page stays read-only.
 */
function changeProtection(host: Host, mm: MmStruct, start: number, end: number, vmFlags: number): void {
  const mayWrite = (vmFlags & VM_WRITE) !== 0;
  walkPageRange(mm, start, end, (_index, leaf, i) => {
    const flags = flagsAt(leaf, i);
    if ((flags & PTE_TYPE_MASK) !== PTE_PRESENT) return;
    let write = false;
    if ((vmFlags & VM_PFNMAP) !== 0) write = mayWrite;
    else if ((flags & PTE_SPECIAL) === 0) write = mayWrite && (vmFlags & VM_SHARED) !== 0 && (flags & PTE_DIRTY) !== 0;
    setPteFlags(host, leaf, i, write ? flags | PTE_WRITE : flags & ~PTE_WRITE);
  });
}

/** ENOMEM: cutting [start, end) out of the area takes more areas than MAX_MAP_COUNT, and no neighbour takes it in. */
function requireSplits(mm: MmStruct, vma: Vma, start: number, end: number, flags: number): void {
  const { areas } = mm.vmas;
  const index = areas.indexOf(vma);
  const changed: Vma = { ...vma, start, end, flags };
  const before = areas[index - 1];
  const after = areas[index + 1];
  if (start === vma.start && before !== undefined && canVmaMerge(before, changed)) return;
  if (end === vma.end && after !== undefined && canVmaMerge(changed, after)) return;
  const splits = Number(start > vma.start) + Number(end < vma.end);
  if (splits > 0 && areas.length + splits > MAX_MAP_COUNT)
    throw new Errno('ENOMEM', `mm '${mm.id}' has ${areas.length} areas, the limit is ${MAX_MAP_COUNT}`);
}

/** Models mprotect_fixup(): one area, or the part of it in [start, end). */
function mprotectFixup(host: Host, mm: MmStruct, vma: Vma, start: number, end: number, flags: number): void {
  if (flags === vma.flags) return;
  requireSplits(mm, vma, start, end, flags);
  const [index] = isolateRange(host, mm, start, end);
  (mm.vmas.areas[index] as Vma).flags = flags;
  mm.vmas.changed(host.seq);
  changeProtection(host, mm, start, end, flags);
  vmaMerge(host, mm, index);
}

/**
 * Changes the permission of [addr, addr + length). Areas before a refusal stay changed.
 * ESRCH: the task has exited. EINVAL: addr is not page aligned. Length 0 succeeds. ENOMEM: the end is beyond 2^64.
 * EINVAL: unknown bits in prot. Then area by area: ENOMEM: a hole. EACCES: the area may never be accessed so. ENOMEM: MAX_MAP_COUNT.
 */
export function mprotect(host: Host, command: Extract<Command, { op: 'mprotect' }>): Done {
  const { addr, length, prot } = command;
  const mm = requireMm(host, command.task);
  if (!isPageAligned(addr)) throw new Errno('EINVAL', `addr: ${hex(addr)} is not page aligned`);
  if (length === 0n) return { ret: 0, fields: {} };
  const size = pageAlign(length);
  if (size === 0n || addr + size >= 2n ** 64n)
    throw new Errno('ENOMEM', `addr ${hex(addr)} + length ${hex(length)} is beyond 2^64`);
  if ((prot & ~PROT_BITS) !== 0) throw new Errno('EINVAL', `prot: unknown bits in 0x${(prot >>> 0).toString(16)}`);
  let start: number = pageNumberOf(addr);
  const end = start + npageOf(size);
  while (start < end) {
    const vma = vmaAt(mm, start);
    if (vma === null) throw new Errno('ENOMEM', `vaddr ${printPage(start)}: nothing is mapped`);
    const flags = (vma.flags & ~VM_ACCESS_FLAGS) | (prot & VM_ACCESS_FLAGS);
    if ((flags & ~(flags >> 4) & VM_ACCESS_FLAGS) !== 0)
      throw new Errno('EACCES', `vaddr ${printPage(start)}: the area may never be accessed so`);
    const stop = Math.min(vma.end, end);
    mprotectFixup(host, mm, vma, start, stop, flags);
    start = stop;
  }
  return { ret: 0, fields: {} };
}
