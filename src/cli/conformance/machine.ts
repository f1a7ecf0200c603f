// What the replayer needs of an emulated machine, in process or over HTTP.

import type { Command, HostOptions } from '../../kernel/command.ts';
import type { Question } from './commands.ts';
import type { Output, State } from './trace.ts';
import type { MemoryModel } from './trace-format.ts';

/** A call that has come back. `errno` is set where it was refused. */
export interface Returned {
  ret: number;
  errno: string | null;
  out: Output;
}

/** A call that waits for a notification to be answered, or (null) sleeps until another call wakes it. */
export interface Parked {
  operation: string;
  notification: { id: string; device: string; listener: string; iova: string; size: string } | null;
}

export type Reply = Returned | Parked;
export const isParked = (reply: Reply): reply is Parked => 'operation' in reply;

/** A WARN, BUG or DEADLOCK of the kernel log. */
export interface Splat {
  kind: 'WARN' | 'BUG' | 'DEADLOCK';
  /** The kernel function that raised it. */
  where: string;
  /** The name that the text begins with, where it has one. */
  label?: string;
}

/** One emulated host with the container of a trace. */
export interface Machine {
  /** Executes a command; `inside` is the notification inside whose handler it is made. */
  call(command: Command, inside: string | null): Promise<Reply>;
  /** How a parked call stands now. */
  resume(operation: string): Promise<Reply>;
  ask(question: Question): Promise<Returned>;
  /** Splats since the last time. */
  splats(): Promise<Splat[]>;
  state(): Promise<State>;
  /** Ends the host. */
  end(): Promise<void>;
}

export interface Backend {
  readonly name: string;
  /** A new empty host. */
  begin(options: HostOptions, model: MemoryModel): Promise<Machine>;
  close(): Promise<void>;
}
