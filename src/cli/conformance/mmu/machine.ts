// What the replayer of mmu notifier traces needs of an emulated machine, in process or over HTTP.

import type { Command, HostOptions } from '../../../kernel/command.ts';
import type { Splat } from '../machine.ts';
import type { State } from './trace.ts';

/** A value of a reply that the replayer looks at. */
export interface Returned {
  ret: number;
  errno: string | null;
  fields: { id?: string; sequence?: number };
}

/** A callback that waits for its handler. */
export interface PendingCallback {
  id: string;
  notifier: string;
  callback: string;
  event: string | null;
  start: string | null;
  end: string | null;
  blockable: boolean;
  cur_seq: number | null;
}

/** How an operation stands that a call has left behind. */
export type Standing =
  | { state: 'done'; returned: Returned }
  | { state: 'stopped' }
  /** `callback` null: it sleeps until another call wakes it. */
  | { state: 'blocked'; callback: PendingCallback | null };

/** One emulated host with the one address space of a trace. */
export interface MmuMachine {
  /** Its address space, and a task that lives in it. */
  readonly mm: string;
  readonly task: string;
  /** Executes a command; `inside` is the notification inside whose handler it is made. A string: the operation goes on. */
  call(command: Command, inside: string | null): Promise<Returned | string>;
  standing(operation: string): Promise<Standing>;
  /** Callbacks that wait for their handlers, in order, with the operations that called them. */
  pending(): Promise<{ operation: string; callback: PendingCallback }[]>;
  /** Splats since the last time, but for those that only name a broken rule of the contract. */
  splats(): Promise<(Splat & { what: string })[]>;
  state(): Promise<State>;
  end(): Promise<void>;
}

export interface MmuBackend {
  begin(options: HostOptions): Promise<MmuMachine>;
}
