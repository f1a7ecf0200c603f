// What the naive model of a host consists of.

import type { Command } from '../../src/kernel/command.ts';
import type { NaiveMm, NaivePage } from './naive-mm.ts';
import type { NaiveTree } from './naive-tree.ts';

export interface NaiveMapping {
  iova: bigint;
  size: bigint;
  vaddr: bigint;
  prot: number;
  /** The task that mapped it, or its thread-group leader. */
  task: string;
  /** The address space that it was mapped in. */
  mm: NaiveMm;
  /** CAP_IPC_LOCK of the calling thread when it mapped. */
  cap: boolean;
  pins: Map<bigint, { page: NaivePage; ref_count: number }>;
  /** Pages that are charged for it. */
  charged: number;
  invalid: boolean;
  /** Dirty bits, the first page's lowest; null while the log is not running. */
  dirty: bigint | null;
  /** Pages that the IOMMU path holds, by index. */
  backed: NaivePage[];
  /** Marked as mapped for an IOMMU. */
  marked: boolean;
}

/** The rw-lock of a chain, fair: a waiting writer holds off new readers. */
export interface NaiveChain {
  first: string | null;
  next: Map<string, string | null>;
  readers: NaiveOp[];
  queue: { op: NaiveOp; write: boolean }[];
}

export interface NaiveIommu {
  type: number;
  limit: number;
  avail: number;
  tree: NaiveTree<NaiveMapping>;
  /** The tree's mappings in order. */
  maps: NaiveMapping[];
  chain: NaiveChain;
  mdev: string[];
  /** IOMMU-backed groups; null: no domain. */
  domain: string[] | null;
  /** Valid iova ranges, first to last; empty: everything is valid. */
  ranges: [bigint, bigint][];
  /** Groups that may write anywhere. */
  unscoped: Set<string>;
  tracking: boolean;
  containerOpen: boolean;
  /** Calls that wait for a vaddr. */
  vaddrWait: NaiveOp[];
}

export interface NaiveContainer {
  open: boolean;
  groups: string[];
  iommu: NaiveIommu | null;
  dead: boolean;
}

export interface NaiveGroup {
  kind: 'mdev' | 'iommu';
  reserved: [bigint, bigint][];
  aperture: [bigint, bigint];
  open: boolean;
  container: string | null;
  users: number;
  devices: string[];
  chain: NaiveChain;
}

export interface NaiveDevice {
  group: string | null;
  open: number;
  /** From 6.0 on: whether its driver can have a dma_unmap op, and the one it has. */
  mayListen: boolean;
  op: string | null;
}

export interface NaiveOutcome {
  ret: number;
  errno: string | null;
  /** Fields of the reply, of a refusal too, that the model answers for. */
  fields: Record<string, unknown>;
}

export interface NaiveNotification {
  n: number;
  op: NaiveOp;
  device: string;
  notifier: string;
  iova: bigint;
  size: bigint;
  container: string;
  attempt: number;
}

export type Waits = 'notification' | 'lock' | 'vaddr';

export interface NaiveOp {
  id: string;
  container: string;
  /** Number of the notification inside whose handler it was called. */
  inside: number | null;
  waits: Waits | null;
  /** Group whose user it holds while it sleeps. */
  holds: string | null;
  run: Sleeping;
  done: NaiveOutcome | null;
  notified: number;
  kind: string;
}

export interface NaiveResult extends NaiveOutcome {
  parked: string | null;
  finished: { id: string; outcome: NaiveOutcome }[];
  emitted: NaiveNotification[];
  /** Labels of the splats that the call raises, in order. */
  splats: string[];
}

/** What a long random run must have met at least once, in the profiles where it can be met. */
export type Milestone =
  | 'rollback in the middle of a batch'
  | 'eleventh notification and BUG'
  | 'competing unmap inside a callback'
  | 'register waits for a callback'
  | 'unregister waits for a callback'
  | 'late ack'
  | 'restart whose range bisects'
  | 'ENOMEM of the limit'
  | 'nested call refused as a deadlock'
  | 'walk waits behind a writer'
  | 'attach or detach beside an unmap'
  | 'restart of the service inside an unmap'
  | 'tries counted anew for another mapping'
  | 'end at a mapping of another mm'
  | 'removal in another order than by iova'
  | 'a chain closed to a loop is walked'
  | 'double registration'
  | 'record without memory'
  | 'charge is killed'
  | 'pins left behind leak'
  | 'charge below zero'
  | 'capability changed since the mapping'
  | 'owner of a mapping exited, its process lives'
  | 'VM_PFNMAP page pinned'
  | 'write pin of a read-only VM_PFNMAP page'
  | 'zero page pinned'
  | 'range that passes the end of the space'
  | 'mapping that ends at 2^64 is not found'
  | 'unaligned record'
  | 'unpin ends with a WARN'
  | 'pin waits for a vaddr'
  | 'dma_rw waits for a vaddr'
  | 'pin refused while a vaddr is invalid'
  | 'vaddr of another process'
  | 'bitmap with a dirty page'
  | 'unmap reports its bitmap'
  | 'dma_rw across two mappings'
  | 'sub-page write'
  | 'replay on attach'
  | 'failed replay'
  | 'mapping refused by the IOMMU path'
  | 're-accounting on detach'
  | 'pin beside a domain'
  | 'iova in no valid range'
  | 'pin by one of several devices';

export type Of<O extends Command['op']> = Extract<Command, { op: O }>;
/** A call that sleeps where it yields; it is woken with a handler's return value. */
export type Sleeping = Generator<Waits, NaiveOutcome, number>;

export const PAGE = 4096n;
export const newChain = (): NaiveChain => ({ first: null, next: new Map(), readers: [], queue: [] });
export const done = (fields: Record<string, unknown> = {}, ret = 0): NaiveOutcome => ({ ret, errno: null, fields });

/** The blocks of a chain in calling order, each once, and whether the last one leads back into it. */
export function walkOf({ first, next }: NaiveChain): { blocks: string[]; endless: boolean } {
  const blocks: string[] = [];
  let at = first;
  while (at !== null && !blocks.includes(at)) {
    blocks.push(at);
    at = next.get(at) ?? null;
  }
  return { blocks, endless: at !== null };
}
