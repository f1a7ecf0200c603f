// An access of the CPU to a task's memory: what loads and stores do to the page table, and who is told of it.

import type { Command } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { fromBase64, toBase64 } from '../lib/base64.ts';
import { addressOf, hex, PAGE_SIZE, pageNumberOf } from '../lib/u64.ts';
import { MAX_DMA_RW, MAX_WRITTEN_PAGES, TASK_SIZE } from '../limits.ts';
import { holds, isDying, mmapLock } from '../lock.ts';
import type { Done } from '../outcome.ts';
import type { Handlers } from '../steps.ts';
import { pushSteps, runOperation, type ThreadOperation } from '../thread.ts';
import {
  FAULT_FLAG_DEFAULT,
  FAULT_FLAG_TRIED,
  VM_FAULT_ERROR,
  VM_FAULT_HWPOISON,
  VM_FAULT_OOM,
  VM_FAULT_RETRY,
  VM_FAULT_SIGBUS,
  VM_FAULT_SIGSEGV,
} from './fault-flags.ts';
import { anyMm, type MmId, type MmStruct } from './mm.ts';
import { readPage, writePage } from './page-bytes.ts';
import { PTE_DIRTY, PTE_PRESENT, PTE_SOFT_DIRTY, PTE_TYPE_MASK, PTE_WRITE, PTE_YOUNG, setPte } from './page-table.ts';
import { requireMm } from './task.ts';

type AccessCommand = Extract<Command, { op: 'access' }>;

/** What is read or written. */
export interface Access {
  mm: MmId;
  addr: bigint;
  write: boolean;
  /** Bytes to write, or read so far; null: only the page table is looked at. */
  data: Uint8Array | null;
  /** The caller chose the flags of the fault and is told its result; otherwise it goes on until it has got through. */
  once: boolean;
}

export type AccessStep =
  /** Goes on with byte `done`; `faults`: of this page so far. */
  | { do: 'access'; access: Access; done: number; flags: number; faults: number; cleanup?: true }
  | { do: 'faulted'; access: Access; done: number; flags: number; faults: number; cleanup?: true };

/** Faults of one page that come back without having made it accessible: a handler that never will. */
const MAX_FAULTS_OF_ACCESS = 1024;

/** Name of a result of a fault; 'NOPAGE': the page is mapped, the access goes through. */
function faultName(result: number): string {
  if ((result & VM_FAULT_RETRY) !== 0) return 'RETRY';
  if ((result & VM_FAULT_OOM) !== 0) return 'OOM';
  if ((result & VM_FAULT_SIGSEGV) !== 0) return 'SIGSEGV';
  if ((result & VM_FAULT_HWPOISON) !== 0) return 'HWPOISON';
  return (result & VM_FAULT_SIGBUS) !== 0 ? 'SIGBUS' : 'NOPAGE';
}

/** EINVAL: neither or both of length and data, as the direction says. E2BIG: MAX_DMA_RW. EFAULT: beyond TASK_SIZE. */
function bytesOf({ addr, write, length, data }: AccessCommand): Uint8Array | null {
  if (length === undefined && data === undefined) return null;
  if ((write ? data : length) === undefined || (write ? length : data) !== undefined)
    throw new Errno('EINVAL', `an access that ${write ? 'writes takes data' : 'reads takes length'}`);
  const bytes = write ? fromBase64(data as string) : new Uint8Array(Math.min(length as number, MAX_DMA_RW + 1));
  if (bytes === null || bytes.length === 0) throw new Errno('EINVAL', 'an access of no bytes');
  if (bytes.length > MAX_DMA_RW) throw new Errno('E2BIG', `an access takes ${MAX_DMA_RW} bytes at most`);
  if (addr + BigInt(bytes.length) > TASK_SIZE)
    throw new Errno('EFAULT', `addr ${hex(addr)} + ${bytes.length} bytes is beyond TASK_SIZE ${hex(TASK_SIZE)}`);
  return bytes;
}

/**
 * Reads or writes one byte, or those of `length` or `data`. With `flags` (FAULT_FLAG_*) a fault that asks for another attempt
 * is the answer, where the CPU would make it. Fields: fault, pfn, data (of a read); mmap_lock after a RETRY.
 * ESRCH: the task has exited. EINVAL, E2BIG, EFAULT: the bytes. EINTR: a fatal signal. ENOMEM: MAX_WRITTEN_PAGES.
 */
export function access(host: Host, command: AccessCommand): Done {
  const { task, addr, write, flags, stop_at } = command;
  const { id: mm } = requireMm(host, task);
  const data = bytesOf(command);
  const once = flags !== undefined;
  return runOperation(
    host,
    { kind: 'access', locals: { task, mm } },
    [
      { do: 'access', access: { mm, addr, write, data, once }, done: 0, flags: flags ?? FAULT_FLAG_DEFAULT, faults: 0 },
      { do: 'unlock', lock: mmapLock(mm), cleanup: true },
    ],
    stop_at ?? null,
  );
}

/** Whether the CPU needs no fault. */
export const isAccessible = (flags: number, write: boolean): boolean =>
  (flags & PTE_TYPE_MASK) === PTE_PRESENT && (!write || (flags & PTE_WRITE) !== 0);

/** The CPU marks the entry, and moves the bytes. Returns how many. ENOMEM: MAX_WRITTEN_PAGES. */
function moveBytes(host: Host, mm: MmStruct, page: number, { addr, write, data }: Access, done: number): number {
  const flags = mm.page_table.flags(page);
  const pfn = mm.page_table.pfn(page);
  setPte(host, mm, page, pfn, flags | PTE_YOUNG | (write ? PTE_DIRTY | PTE_SOFT_DIRTY : 0));
  if (data === null) return 1;
  const offset = Number((addr + BigInt(done)) & 0xfffn);
  const part = data.subarray(done, done + PAGE_SIZE - offset);
  if (!write) readPage(host, pfn, offset, part);
  else if (!writePage(host, pfn, offset, part))
    throw new Errno('ENOMEM', `${MAX_WRITTEN_PAGES} pages hold bytes of their own, the most a host keeps`);
  return part.length;
}

function answer({ thread }: ThreadOperation, fault: string, pfn: number | null, { data, write }: Access): void {
  thread.fields = { fault, pfn, ...(data === null || write || pfn === null ? {} : { data: toBase64(data) }) };
}

export const accessSteps: Handlers<AccessStep> = {
  /** The CPU looks at the page table without a lock; only its faults take one. */
  access(host, operation, { access: what, done, flags, faults }) {
    const mm = anyMm(host, what.mm);
    const { write, data } = what;
    const page = pageNumberOf(what.addr + BigInt(done));
    if (isAccessible(mm.page_table.flags(page), write)) {
      const pfn = mm.page_table.pfn(page);
      const after = done + moveBytes(host, mm, page, what, done);
      if (after < (data?.length ?? 1)) {
        const next = flags & ~FAULT_FLAG_TRIED;
        pushSteps(operation, [{ do: 'access', access: what, done: after, flags: next, faults: 0 }]);
      } else answer(operation, 'NOPAGE', pfn, what);
      return;
    }
    if (faults >= MAX_FAULTS_OF_ACCESS)
      throw new Errno('EFAULT', `vaddr ${hex(addressOf(page))}: ${faults} faults have not made it accessible`);
    const lock = mmapLock(what.mm);
    pushSteps(operation, [
      { do: 'lock', lock, mode: 'R', killable: true },
      { do: 'require_lock', lock },
      { do: 'fault', mm: what.mm, page, write, flags },
      { do: 'faulted', access: what, done, flags, faults: faults + 1 },
    ]);
  },

  faulted(host, operation, { access: what, done, flags, faults }) {
    const { returned } = operation.thread;
    const lock = mmapLock(what.mm);
    const held = holds(operation, lock);
    const retry = (returned & VM_FAULT_RETRY) !== 0;
    if ((returned & VM_FAULT_ERROR) !== 0 || (retry && what.once)) {
      answer(operation, faultName(returned), null, what);
      if (retry) operation.thread.fields.mmap_lock = held ? 'held' : 'dropped';
      return;
    }
    if (retry && isDying(host, operation)) throw new Errno('EINTR', `${operation.id} was killed while it waited`);
    pushSteps(operation, [
      { do: 'unlock', lock, cleanup: true },
      { do: 'access', access: what, done, flags: retry ? flags | FAULT_FLAG_TRIED : flags, faults },
    ]);
  },
};
