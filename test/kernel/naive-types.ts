// What the naive model of a host consists of.

import type { Command } from '../../src/kernel/command.ts';
import type { NaivePage } from './naive-mm.ts';

export interface NaiveMapping {
  iova: bigint;
  size: bigint;
  vaddr: bigint;
  prot: number;
  /** Thread-group leader. */
  task: string;
  cap: boolean;
  pins: Map<bigint, { page: NaivePage; ref_count: number }>;
}

/** The rw-lock of a chain, fair: a waiting writer holds off new readers. */
export interface NaiveChain {
  blocks: string[];
  readers: NaiveOp[];
  queue: { op: NaiveOp; write: boolean }[];
}

export interface NaiveIommu {
  type: number;
  limit: number;
  avail: number;
  maps: NaiveMapping[];
  chain: NaiveChain;
}

export interface NaiveContainer {
  open: boolean;
  groups: string[];
  iommu: NaiveIommu | null;
  dead: boolean;
}

export interface NaiveGroup {
  open: boolean;
  container: string | null;
  users: number;
  devices: string[];
  chain: NaiveChain;
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

export interface NaiveOp {
  id: string;
  container: string;
  /** Number of the notification inside whose handler it was called. */
  inside: number | null;
  waits: 'notification' | 'lock' | null;
  /** Group whose user it holds while it sleeps. */
  holds: string | null;
  run: Generator<'notification' | 'lock', NaiveOutcome, number>;
  done: NaiveOutcome | null;
  notified: number;
  kind: string;
}

export interface NaiveResult extends NaiveOutcome {
  parked: string | null;
  finished: { id: string; outcome: NaiveOutcome }[];
  emitted: NaiveNotification[];
}

/** What a long random run must have met at least once. */
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
  | 'restart of the service inside an unmap'
  | 'tries counted anew for another mapping';

export type Of<O extends Command['op']> = Extract<Command, { op: O }>;
/** A call that sleeps where it yields; it is woken with a handler's return value. */
export type Sleeping = Generator<'notification' | 'lock', NaiveOutcome, number>;

export const PAGE = 4096n;
export const newChain = (): NaiveChain => ({ blocks: [], readers: [], queue: [] });
export const done = (fields: Record<string, unknown> = {}, ret = 0): NaiveOutcome => ({ ret, errno: null, fields });
