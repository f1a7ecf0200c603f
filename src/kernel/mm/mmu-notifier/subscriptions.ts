// Models struct mmu_notifier_subscriptions: who wants to know of an mm's invalidations, and where its sequence stands.

import type { Delivery } from '../../command.ts';
import type { ConsumerName } from '../../consumers.ts';
import type { LockId } from '../../lock.ts';
import type { MmId, MmStruct } from '../mm.ts';

/** Callbacks of struct mmu_notifier_ops. */
export const PLAIN_CALLBACKS = [
  'release',
  'clear_flush_young',
  'clear_young',
  'test_young',
  'change_pte',
  'invalidate_range_start',
  'invalidate_range_end',
  'invalidate_range',
  'arch_invalidate_secondary_tlbs',
  'alloc_notifier',
  'free_notifier',
] as const;
/** `invalidate` is the one callback of struct mmu_interval_notifier_ops. */
export type CallbackName = (typeof PLAIN_CALLBACKS)[number] | 'invalidate';

/** What a scripted callback does before it returns, in order. Addresses are page numbers. */
export type Action =
  /** Takes a lock of the driver; `hold`: until a later `unlock`, otherwise until the callback returns. */
  | { action: 'lock'; lock: LockId; hold: boolean }
  | { action: 'unlock'; lock: LockId }
  | { action: 'sleep' }
  /** Allocates memory that may be reclaimed for. */
  | { action: 'alloc' }
  /** set_page_dirty_lock() and set_page_dirty() of the page that is mapped at an address now. */
  | { action: 'dirty_lock'; page: number }
  | { action: 'dirty'; page: number }
  /** Drops the subscriber's own secondary mappings in the range. */
  | { action: 'drop' }
  /** mmu_interval_set_seq(). */
  | { action: 'set_seq' };

/** What a callback does and returns: 0 or a negative errno; 0 or 1 for `invalidate` and the young callbacks. */
export interface Script {
  actions: Action[];
  returns: number;
}

/** How a subscriber's callbacks are carried out: by their scripts, or by a client. */
export type Handler =
  | { kind: 'script'; scripts: Partial<Record<CallbackName, Script>> }
  /** A subsystem of the host; `of`: its object that the notifier belongs to. */
  | { kind: 'consumer'; consumer: ConsumerName; of: string }
  | Exclude<Delivery, { kind: 'builtin' }>;

/** A page that a subscriber has mapped for its device: what KVM's SPTEs and the like are. */
export interface SecondaryMapping {
  pfn: number;
  writable: boolean;
  /** A device-exclusive entry of the page gives it too; `only`: nothing else does. */
  exclusive?: 'too' | 'only';
}

interface Subscriber {
  id: string;
  mm: MmId;
  /** It keeps its mm: from the registration until it is freed. */
  grabbed: boolean;
  /** Its unregistration, removal or last put has begun. */
  leaving: boolean;
  handler: Handler;
  /** Calls of each callback so far. */
  calls: Partial<Record<CallbackName, number>>;
  /** By page number. */
  mappings: Map<number, SecondaryMapping>;
}

export interface PlainNotifier extends Subscriber {
  kind: 'plain';
  callbacks: CallbackName[];
  /** Made by mmu_notifier_get(): its ops table; null: registered as a block. */
  ops: string | null;
  users: number;
  /** Starts that it has let pass, less the ends that it was told of. */
  open_starts: number;
  /** It has been reported that they do not match. */
  unbalanced: boolean;
}

export interface IntervalNotifier extends Subscriber {
  kind: 'interval';
  /** First byte, and the last one, included. */
  start: bigint;
  last: bigint;
  /** interval_sub->invalidate_seq: always odd. */
  invalidate_seq: number;
}

export type MmuNotifier = PlainNotifier | IntervalNotifier;

/** A range between its start and its end. */
export interface ActiveRange {
  /** The operation that invalidates. */
  operation: string;
  start: number;
  end: number;
  /** It counts in active_invalidate_ranges. */
  counted: boolean;
}

export interface Subscriptions {
  /** Plain notifiers in calling order: the one registered last is first. */
  list: string[];
  has_itree: boolean;
  /** Interval notifiers in the order of the tree: by start, equal ones in order of insertion. */
  intervals: string[];
  /** Inserts and removals that wait for the end of the invalidations, the one queued last first. */
  deferred: string[];
  invalidate_seq: number;
  active_invalidate_ranges: number;
  /** Ranges between start and end, also those that no interval notifier counts. */
  active: ActiveRange[];
  /** Operations that sleep until invalidate_seq changes, in order of arrival. */
  waiting: string[];
}

export const newSubscriptions = (): Subscriptions => ({
  list: [],
  has_itree: false,
  intervals: [],
  deferred: [],
  invalidate_seq: 2,
  active_invalidate_ranges: 0,
  active: [],
  waiting: [],
});

export const hasPlain = ({ subscriptions }: MmStruct): boolean => (subscriptions?.list.length ?? 0) > 0;
