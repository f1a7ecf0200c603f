// What executing a command gives back: plain data, from which the HTTP reply, the journal digest and the deliveries follow.

import type { Delivery } from './command.ts';
import { ERRNO, Errno, type ErrnoName, NoSuchObject } from './errno.ts';

/** A value of a reply. Every bigint is a byte address or a byte size and is printed as hex; every number is a count. */
export type Value = null | boolean | number | bigint | string | Value[] | { [key: string]: Value };
export type Fields = { [key: string]: Value };

export interface Refusal {
  /** Name of the errno, or 'NOT_FOUND' when the request names an object that does not exist. */
  errno: ErrnoName | 'NOT_FOUND';
  detail: string;
  hint?: string;
  at_index?: number;
  /** Fields that the kernel fills in even when it refuses. */
  left?: Fields;
  /** EIO of a device that is there, not of a host or a container that has died. */
  io_error?: true;
}

/** A notifier call that waits for its handler: exactly what a client sees, plus how it is delivered. */
export interface Notification {
  id: string;
  device: string;
  notifier: string;
  event: 'DMA_UNMAP';
  iova: bigint;
  size: bigint;
  container: string;
  /** Starts at 1 for each vfio_dma. */
  attempt: number;
  /** Position in the journal of the command that emitted it. */
  seq: number;
}

/** A callback of an mmu notifier that waits for its handler: exactly what a client sees. */
export interface MmuNotification {
  id: string;
  mm: string;
  notifier: string;
  callback: string;
  event: string | null;
  /** First byte, and one past the last; null where the callback is about no range. */
  start: bigint | null;
  end: bigint | null;
  /** Whether the callback may sleep. */
  blockable: boolean;
  owner: string | null;
  /** For `invalidate`: the sequence to store. */
  cur_seq: number | null;
  /** For `change_pte`: the new page. */
  pfn: number | null;
  /** Position in the journal of the command that emitted it. */
  seq: number;
}

export interface PendingMmuNotification {
  notification: MmuNotification;
  delivery: Exclude<Delivery, { kind: 'builtin' }>;
  /** The operation that waits in the callback. */
  operation: string;
}

export interface Outcome {
  /** The kernel's return value: 0 or a count; negative errno for a refusal; 0 while an operation is parked. */
  ret: number;
  /** True where the command made a new object (201). */
  created?: boolean;
  fields: Fields;
  refusal?: Refusal;
  /** Id of the operation that the command started and that has not finished: its outcome comes later. */
  parked?: string;
  /** Operations that finished while this command ran, in order. Their outcomes are in the host's operation table. */
  finished: string[];
  /** Operations that this command left stopped, or waiting for a lock: only another request lets them go on. */
  detached?: string[];
  /** Notifications that were emitted by this command and wait for an answer, in order. */
  emitted: string[];
}

/** What a function that models one command returns when the kernel accepts it. */
export interface Done {
  ret: number;
  created?: boolean;
  fields: Fields;
  /** The operation that goes on after the command; its outcome comes later. */
  parked?: string;
}

/** The refusal that an error of the emulated kernel stands for; any other error is a defect of ours and is thrown on. */
export function refusalOf(error: unknown): { ret: number; fields: Fields; refusal: Refusal } {
  if (error instanceof NoSuchObject)
    return { ret: -ERRNO.ENOENT, fields: {}, refusal: { errno: 'NOT_FOUND', detail: error.message } };
  if (!(error instanceof Errno)) throw error;
  const { hint, at_index, left, io_error } = error.extra;
  const refusal: Refusal = { errno: error.errno, detail: error.message };
  if (hint !== undefined) refusal.hint = hint;
  if (at_index !== undefined) refusal.at_index = at_index;
  if (left !== undefined) refusal.left = left;
  if (io_error !== undefined) refusal.io_error = io_error;
  return { ret: -ERRNO[error.errno], fields: {}, refusal };
}
