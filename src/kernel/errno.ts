// Models include/uapi/asm-generic/errno-base.h and errno.h: one value per errno, thrown as an Errno.

import type { Fields } from './outcome.ts';

export const ERRNO = {
  EPERM: 1,
  ENOENT: 2,
  ESRCH: 3,
  EINTR: 4,
  EIO: 5,
  E2BIG: 7,
  EBADF: 9,
  EAGAIN: 11,
  ENOMEM: 12,
  EACCES: 13,
  EFAULT: 14,
  EBUSY: 16,
  EEXIST: 17,
  ENODEV: 19,
  EINVAL: 22,
  ENOTTY: 25,
  ENOSPC: 28,
  EDEADLK: 35,
  EOVERFLOW: 75,
  EBADFD: 77,
  EOPNOTSUPP: 95,
  EHWPOISON: 133,
} as const;

export type ErrnoName = keyof typeof ERRNO;

export interface ErrnoExtra {
  /** What the caller can do about it. */
  hint?: string;
  /** Index of the array entry that was refused. */
  at_index?: number;
  /** Fields of the reply that the kernel fills in even when it refuses (phys_pfn, events_left). */
  left?: Fields;
  /** EIO of a device that is there, not of a host or a container that has died. */
  io_error?: true;
}

/** A refusal of the emulated kernel. `detail` names the operand, the limit and the current value. */
export class Errno extends Error {
  constructor(
    readonly errno: ErrnoName,
    detail: string,
    readonly extra: ErrnoExtra = {},
  ) {
    super(detail);
    this.name = errno;
  }
}

/** The request names an object that does not exist: 404, not an errno of the kernel. */
export class NoSuchObject extends Error {
  constructor(
    readonly kind: string,
    readonly id: string,
  ) {
    super(`no ${kind} '${id}'`);
    this.name = 'NoSuchObject';
  }
}
