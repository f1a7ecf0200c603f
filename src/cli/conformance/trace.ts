// A recorded trace in two parts that never meet before an answer exists: what to do (Trace) and what happened (Recorded).

import type { Args, LockedVm, MappingState, MemoryModel, State, TraceOp } from './trace-format.ts';

/** One operation to perform. It holds nothing of what the recorded kernel answered. */
export type InputOp = { [O in TraceOp]: { op: O; args: Args<O>; scripts: ScriptSource } }[TraceOp];

/** What a trace asks for, without any expectation. */
export interface Trace {
  file: string;
  line: number;
  era: string;
  seed: number;
  features: string[];
  memory_model: MemoryModel;
  ops: InputOp[];
}

/** One notifier call as the replayed machine made it. */
export interface OwnNotification {
  listener: string;
  iova: string;
  size: string;
}

/**
 * What happens while an operation is interrupted: the calls of a listener inside its callback and the value it returns, or
 * the calls of another thread while the operation sleeps.
 */
export interface Script {
  calls: InputOp[];
  /** null: nobody answers, the operation sleeps. */
  returns: number | null;
  /** The sleeper gets a fatal signal. */
  killed: boolean;
}

/**
 * Hands out what happened in the k-th interruption of one operation (from 0), only in exchange for the k-th interruption of
 * the replayed machine's own: its notification, or that it sleeps. null when the recording has no k-th.
 */
export interface ScriptSource {
  exchange(k: number, own: OwnNotification | 'wait'): Script | null;
}

/** The answer to one operation: the replayer makes one, the recording holds one, and only then they are compared. */
export interface Answer {
  /** null: the call never returned (BUG or deadlock). */
  ret: number | null;
  /** What the call gave back beside ret: size, pages, events_word, or the fields of get_info. */
  out: Output;
  events: AnswerEvent[];
  /** Read after a top-level operation. */
  state?: State;
}

export type Output = { [field: string]: unknown };

export type AnswerEvent =
  | ({ type: 'notify'; calls: NestedCall[] } & OwnNotification)
  | { type: 'wait'; calls: NestedCall[] }
  | { type: 'WARN' | 'BUG' | 'DEADLOCK'; what: string };

/** A call made while another one is interrupted; the answer is null where it could not be made. */
export interface NestedCall {
  op: TraceOp;
  answer: Answer | null;
}

/** What the recorded kernel answered, in the order of Trace.ops. Sealed until the replayer's own answer is there. */
export interface Recorded {
  answers: Answer[];
}

export interface RecordedTrace {
  trace: Trace;
  recorded: Recorded;
}

export type { LockedVm, MappingState, State };
