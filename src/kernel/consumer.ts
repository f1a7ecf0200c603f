// What a subsystem is to a host that lives with its pages beside VFIO type1: KVM, vhost and the like.

import type { Host } from './host.ts';
import type { Fault } from './mm/fault-flags.ts';
import type { MmId, MmStruct } from './mm/mm.ts';
import type { CallbackFrame } from './mm/mmu-notifier/call.ts';
import type { CallbackName, MmuNotifier, SecondaryMapping } from './mm/mmu-notifier/subscriptions.ts';
import type { Vma } from './mm/vma.ts';
import type { Done } from './outcome.ts';
import type { Handlers, Step } from './steps.ts';
import type { ThreadOperation } from './thread.ts';

/** The steps that carry out one callback; they leave what it returns in `thread.returned`, which is 0 before them. */
export type ConsumerCallback = (
  host: Host,
  operation: ThreadOperation,
  notifier: MmuNotifier,
  frame: CallbackFrame,
  /** For `change_pte`: the new page. */
  pfn: number | null,
) => Step[];

/** struct vm_operations_struct of the areas that a consumer maps; `vma.ops` names it. */
export interface VmaOps {
  /** Nothing is mapped at the page: sets `thread.returned`, or pushes the steps that will. Precondition: mmap_lock is held for reading. */
  fault(host: Host, operation: ThreadOperation, fault: Fault, vma: Vma): void;
  /** The area is new: split off another, moved, or a child's. The steps that it takes; `vma.ops.id` is its own already. */
  open(host: Host, mm: MmStruct, vma: Vma): Step[];
  /** The area is off the list of its mm: the steps to do when its entries are gone too. */
  close(host: Host, mm: MmStruct, vma: Vma): Step[];
}

/** `C`: its commands. `S`: its steps. `T`: its state in a host, plain data. */
export interface Consumer<C extends { op: string }, S extends { do: string }, T> {
  newState(): T;
  commands: { [K in C['op']]: (host: Host, command: Extract<C, { op: K }>) => Done };
  steps: Handlers<S>;
  /** Commands whose operations are users of the mm that they work on until they end: its exit waits for them. */
  users?: readonly C['op'][];
  /** Of the notifiers with the handler `{ kind: 'consumer', consumer: <its name> }`. */
  callbacks: Partial<Record<CallbackName, ConsumerCallback>>;
  /** What is done before the notifiers of an exiting mm are released: its processes have closed their descriptors. */
  exit?(host: Host, mm: MmId): Step[];
  /** Told when no range of an mm is between its start and its end any more. */
  quiet?(host: Host, operation: ThreadOperation, mm: MmId): void;
  /** Of the areas that it maps; missing where it maps none. */
  vmaOps?: VmaOps;
  /** What it has mapped for its devices in [start, end) of the notifier's mm, by page number. */
  secondaries?(
    host: Host,
    notifier: MmuNotifier,
    range: { start: number; end: number },
  ): Iterable<[number, SecondaryMapping]>;
  /** Page references that it holds, one for each mention; and pins. */
  references?(host: Host): Iterable<number>;
  pins?(host: Host): Iterable<number>;
  /** After every command: looks at what has changed, and schedules the operations that it lets go on. */
  settle?(host: Host): void;
  /** Operations that the one which waits for `on` waits for; null: `on` is not of this consumer. */
  waitsFor?(host: Host, on: string): string[] | null;
  /** What must hold after every command, recomputed from scratch: every violation in words. */
  check(host: Host): string[];
}
