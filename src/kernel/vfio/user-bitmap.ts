// Models struct vfio_bitmap: the buffer of the caller into which dirty bits are copied.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { toBase64 } from '../lib/base64.ts';
import { hex, PAGE_SIZE } from '../lib/u64.ts';
import { DIRTY_BITMAP_SIZE_MAX, MAX_BITMAP_REPLY } from '../limits.ts';
import { mmOf } from '../mm/task.ts';
import { accessOk, copyFromUser, copyToUser } from '../mm/user-copy.ts';

/** What the caller says of its bitmap; `addr` lies in the caller's memory, without it the bitmap is the client's own. */
export interface BitmapArgument {
  pgsize: bigint;
  size: bigint;
  addr?: bigint;
}

/** Access to the bitmap. EFAULT where the caller's memory can't be read or written. */
export interface UserBitmap {
  read(offset: number, into: Uint8Array): void;
  write(offset: number, from: Uint8Array): void;
}

/** The smallest page size, the only one that the log takes. */
export const DIRTY_PGSIZE = BigInt(PAGE_SIZE);

/** access_ok() and verify_bitmap_size(), for a range of `size` bytes. EINVAL. */
export function checkBitmap(size: bigint, { pgsize, size: bytes, addr }: BitmapArgument): void {
  if (addr !== undefined && !accessOk(addr, bytes))
    throw new Errno('EINVAL', `bitmap ${hex(addr)} is no address of user space`);
  const npages = pgsize === 0n ? 0n : size / (pgsize & -pgsize);
  const needed = ((npages + 63n) / 64n) * 8n;
  if (npages === 0n || bytes === 0n || bytes > DIRTY_BITMAP_SIZE_MAX || bytes < needed)
    throw new Errno(
      'EINVAL',
      `bitmap size ${hex(bytes)} does not fit ${npages} pages: ${hex(needed)} to ${hex(DIRTY_BITMAP_SIZE_MAX)} bytes`,
    );
}

/** E2BIG: a bitmap of the client's own that is too large to be sent back. */
export function newBitmap({ size, addr }: BitmapArgument): Uint8Array | null {
  if (addr !== undefined) return null;
  if (size > BigInt(MAX_BITMAP_REPLY))
    throw new Errno('E2BIG', `bitmap size ${hex(size)}: a reply holds ${MAX_BITMAP_REPLY} bytes at most`, {
      hint: 'ask for a smaller range, or give the address of a bitmap in the memory of the task',
    });
  return new Uint8Array(Number(size));
}

/** The bitmap in the client's own buffer, or in the memory of the calling task. */
export function userBitmap(
  host: Host,
  own: Uint8Array | null,
  addr: bigint | undefined,
  task: string | null,
): UserBitmap {
  if (own !== null)
    return {
      read: (offset, into) => into.set(own.subarray(offset, offset + into.length)),
      // A mapping that ends at 2^64 passes every bisect test: what it has beyond the buffer is written past its end.
      write: (offset, from) => own.set(from.subarray(0, own.length - offset), offset),
    };
  const mm = task === null ? null : mmOf(host, task);
  const at = addr ?? 0n;
  const require = (left: number): void => {
    if (left > 0)
      throw new Errno('EFAULT', `the bitmap at ${hex(at)} can't be reached in the memory of task '${task ?? 'none'}'`);
  };
  return {
    read: (offset, into) => require(mm === null ? into.length : copyFromUser(host, mm, at + BigInt(offset), into)),
    write: (offset, from) => require(mm === null ? from.length : copyToUser(host, mm, at + BigInt(offset), from)),
  };
}

/** The field of a reply that carries the client's own bitmap. */
export const bitmapField = (own: Uint8Array | null): { bitmap?: string } =>
  own === null ? {} : { bitmap: toBase64(own) };
