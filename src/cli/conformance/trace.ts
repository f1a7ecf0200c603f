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

/** What a listener does inside its callback: its calls, and the value it returns. */
export interface Script {
  calls: InputOp[];
  returns: number;
}

/**
 * Hands out what the listener did in the k-th notification of one operation (from 0), only in exchange for the k-th
 * notification that the replayed machine made; null when the recording has no k-th.
 */
export interface ScriptSource {
  exchange(k: number, own: OwnNotification): Script | null;
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
  | ({ type: 'notify'; calls: { op: TraceOp; answer: Answer | null }[] } & OwnNotification)
  | { type: 'WARN' | 'BUG' | 'DEADLOCK'; what: string }
  | { type: 'wait' };

/** What the recorded kernel answered, in the order of Trace.ops. Sealed until the replayer's own answer is there. */
export interface Recorded {
  answers: Answer[];
}

export interface RecordedTrace {
  trace: Trace;
  recorded: Recorded;
}

export type { LockedVm, MappingState, State };
