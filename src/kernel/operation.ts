// The one kind of thing that waits: an operation is plain data in the host, so a restart in its middle resumes it.

import type { ConsumerCommand } from './consumers.ts';
import { Errno, NoSuchObject } from './errno.ts';
import { type Host, trace } from './host.ts';
import { KEPT_OPERATIONS, MAX_PARKED_OPERATIONS } from './limits.ts';
import type { MmId } from './mm/mm.ts';
import { type Done, type Outcome, refusalOf } from './outcome.ts';
import { schedule, type Thread, type ThreadOperation } from './thread.ts';
import type { AttachLocals } from './vfio/attach.ts';
import type { DmaRwLocals } from './vfio/dma-rw.ts';
import type { MapLocals } from './vfio/map.ts';
import type { RegistrationLocals } from './vfio/notifier.ts';
import type { PinLocals } from './vfio/pin.ts';
import type { UnmapLocals } from './vfio/unmap.ts';

/** What an operation must remember while it waits. */
export type Locals =
  | { kind: 'unmap_dma'; locals: UnmapLocals }
  | { kind: 'register_notifier' | 'unregister_notifier'; locals: RegistrationLocals }
  | { kind: 'pin_pages'; locals: PinLocals }
  | { kind: 'map_dma'; locals: MapLocals }
  | { kind: 'dma_rw'; locals: DmaRwLocals }
  | { kind: 'set_container'; locals: AttachLocals }
  | { kind: MemoryOp; locals: MemoryLocals };

/** Operations of the memory side: each is the command of that name, run as a thread; free_mmu_notifier and async_pf are the kernel's own. */
export type MemoryOp =
  | ConsumerCommand['op']
  | 'munmap'
  | 'access'
  | 'register_mmu_notifier'
  | 'unregister_mmu_notifier'
  | 'get_mmu_notifier'
  | 'put_mmu_notifier'
  | 'free_mmu_notifier'
  | 'async_pf'
  | 'insert_interval_notifier'
  | 'remove_interval_notifier'
  | 'interval_read_begin'
  | 'map_secondary'
  | 'invalidate'
  | 'mmu_call'
  | 'mmap'
  | 'mprotect'
  | 'mremap'
  | 'madvise'
  | 'mlock'
  | 'clear_soft_dirty'
  | 'oom_reap'
  | 'exit'
  | 'fork'
  | 'gup'
  | 'put_gup'
  | 'truncate'
  | 'punch_hole'
  | 'ksm_merge'
  | 'mkclean'
  | 'reclaim'
  | 'migrate'
  | 'migrate_vma'
  | 'lock';

/** Who runs the operation, and the address space it works on; null: nobody in particular, as in reclaim. */
export interface MemoryLocals {
  task: string | null;
  mm: MmId | null;
}

export type Operation = Locals & {
  /** `<kind>-<seq of the command that started it>`. */
  id: string;
  state: 'running' | 'stopped' | 'blocked' | 'done';
  phase: string;
  /** What it waits for, `<kind of thing>:<id>`; null while it does not wait. */
  blocked_on: string | null;
  seq: number;
  at: number;
  request_id: string;
  /** The notification inside whose handler the operation was started. */
  notification: string | null;
  /** Set when the operation is done; `finished_seq` is the command that finished it. */
  outcome: Outcome | null;
  finished_seq: number | null;
  /** Set where it runs as a thread, which can be stopped between any two steps. */
  thread?: Thread;
};

/** The container that an operation is about; null: it is one of the memory side. */
export const containerOf = ({ locals }: Operation): string | null => ('container' in locals ? locals.container : null);

/** The group whose container has one user more while the operation waits; null: none. */
export const containerUserOf = ({ kind, locals }: Operation): string | null =>
  kind !== 'set_container' && 'group' in locals ? locals.group : null;

export function getOperation(host: Host, id: string): Operation {
  const operation = host.operations.get(id);
  if (operation === undefined) throw new NoSuchObject('operation', id);
  return operation;
}

/** Whether only another request lets it go on: it is stopped, or waits for a lock or the like, and neither for an answer nor for a vaddr. */
export const isDetached = ({ thread, state, blocked_on }: Operation): boolean =>
  thread !== undefined &&
  (state === 'stopped' || (state === 'blocked' && !/^(notification|vaddr):/.test(blocked_on ?? '')));

/** A function, so that the compiler does not take the state for what it was before a part of the operation ran. */
export const isDone = ({ state }: Operation): boolean => state === 'done';

function parkedCount(host: Host): number {
  let parked = 0;
  for (const { state } of host.operations.values()) if (state !== 'done') parked++;
  return parked;
}

export const hasRoomForOperation = (host: Host): boolean =>
  host.operations.size < MAX_PARKED_OPERATIONS || parkedCount(host) < MAX_PARKED_OPERATIONS;

/** EBUSY: too many operations wait in the host already. */
export function requireRoomForOperation(host: Host): void {
  if (hasRoomForOperation(host)) return;
  const parked = parkedCount(host);
  throw new Errno('EBUSY', `${parked} operations wait in this host, the most it holds (${MAX_PARKED_OPERATIONS})`);
}

/** An operation of the command that is being executed. Nobody sees it before enlist(). */
export function newOperation(host: Host, started: Locals, thread?: Thread): Operation {
  return {
    ...started,
    id: `${started.kind}-${host.seq}`,
    state: 'running',
    phase: 'start',
    blocked_on: null,
    seq: host.seq,
    at: host.call.at,
    request_id: host.call.request_id,
    notification: host.call.notification,
    outcome: null,
    finished_seq: null,
    ...(thread === undefined ? {} : { thread }),
  };
}

/** Puts an operation where it can be seen, waited for and continued. */
export function enlist(host: Host, operation: Operation): void {
  if (host.operations.has(operation.id)) return;
  host.operations.set(operation.id, operation);
  host.started.push(operation);
}

/** Starts an operation of the command that is being executed; it is blocked until something continues it. */
export function startOperation(host: Host, started: Locals): Operation {
  const operation = newOperation(host, started);
  enlist(host, operation);
  return operation;
}

/** Parks an operation at a phase until what it waits for happens. */
export function block(host: Host, operation: Operation, phase: string, blockedOn: string): void {
  operation.state = 'blocked';
  operation.phase = phase;
  operation.blocked_on = blockedOn;
  enlist(host, operation);
  trace(host, 'phase', operation.id, { phase, blocked_on: blockedOn });
}

/** Ends an operation with its outcome; one that never had to wait is forgotten at once, the oldest finished ones beyond KEPT_OPERATIONS are forgotten. */
export function finishOperation(host: Host, operation: Operation, outcome: Outcome): void {
  operation.state = 'done';
  operation.phase = 'done';
  operation.blocked_on = null;
  operation.outcome = outcome;
  operation.finished_seq = host.seq;
  if (!host.operations.has(operation.id)) return;
  if (host.mm.zombies.size > 0) wakeThoseBehind(host, operation);
  host.finished.push(operation.id);
  trace(host, 'phase', operation.id, { phase: 'done', ret: outcome.ret, errno: outcome.refusal?.errno ?? null });
  if (host.operations.size <= KEPT_OPERATIONS) return;
  for (const old of host.operations.values()) {
    if (host.operations.size <= KEPT_OPERATIONS) break;
    if (old.state === 'done' && old.finished_seq !== host.seq) host.operations.delete(old.id);
  }
}

/** Those who wait for the end of an operation look again. */
function wakeThoseBehind(host: Host, { id }: Operation): void {
  for (const waiting of host.operations.values())
    if (waiting.blocked_on === `operation:${id}`) schedule(host, waiting as ThreadOperation);
}

/** Runs the next part of an operation and, unless it parks again, ends it with the outcome. */
export function settle(host: Host, operation: Operation, run: () => Done): void {
  let outcome: Outcome;
  try {
    const { parked, ...done } = run();
    if (parked !== undefined) return;
    outcome = { ...done, finished: [], emitted: [] };
  } catch (error) {
    outcome = { ...refusalOf(error), finished: [], emitted: [] };
  }
  if (operation.state !== 'done') finishOperation(host, operation, outcome);
}
