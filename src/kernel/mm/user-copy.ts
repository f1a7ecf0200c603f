// Models copy_from_user() and copy_to_user(): the CPU reads or writes an address space, faulting pages in as it goes.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { PAGE_SIZE, pageNumberOf } from '../lib/u64.ts';
import { TASK_SIZE } from '../limits.ts';
import { handleMmFault } from './fault.ts';
import type { MmStruct } from './mm.ts';
import { readPage, writePage } from './page-bytes.ts';
import { PTE_PRESENT, PTE_TYPE_MASK, PTE_WRITE } from './page-table.ts';
import { VM_READ, VM_WRITE, vmaAt } from './vma.ts';

/** Models access_ok(): whether the bytes lie in the part of the address space that is the user's. */
export const accessOk = (address: bigint, size: bigint): boolean => address + size <= TASK_SIZE;

/** The page behind an address for an access by the CPU; null where it faults. */
function faultIn(host: Host, mm: MmStruct, page: number, write: boolean): number | null {
  const vma = vmaAt(mm, page);
  if (vma === null || (vma.flags & (write ? VM_WRITE : VM_READ)) === 0) return null;
  const flags = mm.page_table.flags(page);
  const suitable = (flags & PTE_TYPE_MASK) === PTE_PRESENT && (!write || (flags & PTE_WRITE) !== 0);
  try {
    if (!suitable) handleMmFault(host, mm, vma, page, write);
  } catch (error) {
    if (error instanceof Errno) return null;
    throw error;
  }
  return mm.page_table.pfn(page);
}

/** Walks the bytes page by page until one can't be reached. Returns the number that are left. */
function eachPart(
  host: Host,
  mm: MmStruct,
  address: bigint,
  length: number,
  write: boolean,
  visit: (pfn: number, offset: number, done: number, count: number) => boolean,
): number {
  if (!accessOk(address, BigInt(length))) return length;
  let done = 0;
  while (done < length) {
    const at = address + BigInt(done);
    const offset = Number(at & 0xfffn);
    const count = Math.min(PAGE_SIZE - offset, length - done);
    const pfn = faultIn(host, mm, pageNumberOf(at), write);
    if (pfn === null || !visit(pfn, offset, done, count)) break;
    done += count;
  }
  return length - done;
}

/** Returns the number of bytes that could not be copied. */
export const copyFromUser = (host: Host, mm: MmStruct, address: bigint, into: Uint8Array): number =>
  eachPart(host, mm, address, into.length, false, (pfn, offset, done, count) => {
    readPage(host, pfn, offset, into.subarray(done, done + count));
    return true;
  });

/** Returns the number of bytes that could not be copied; those before them stay written. */
export const copyToUser = (host: Host, mm: MmStruct, address: bigint, from: Uint8Array): number =>
  eachPart(host, mm, address, from.length, true, (pfn, offset, done, count) =>
    writePage(host, pfn, offset, from.subarray(done, done + count)),
  );
