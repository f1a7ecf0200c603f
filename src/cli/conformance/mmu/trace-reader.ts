// Reads recorded traces of the mmu notifiers, checks them field by field, and parts the input from what was recorded.

import type { TSchema } from 'typebox';
import { Compile, type Validator } from 'typebox/compile';
import { Malformed, parseLines, requireSchema } from '../trace-lines.ts';
import {
  type Answer,
  type AnswerEvent,
  ARGS,
  type Args,
  Expect,
  type InputOp,
  type MmuOp,
  type MmuTrace,
  Operation,
  type Script,
  TraceLine,
} from './trace.ts';

export interface RecordedMmuTrace {
  trace: MmuTrace;
  /** What the recorded kernel answered, in the order of the trace's ops. */
  recorded: Answer[];
}

type Check = Validator<Record<never, never>, TSchema>;
const checkTrace = Compile(TraceLine);
const checkOperation = Compile(Operation);
const checkExpect = Compile(Expect);
const checkArgs = Object.fromEntries(Object.entries(ARGS).map(([op, schema]) => [op, Compile(schema)])) as {
  [O in MmuOp]: Check;
};

/** The traces of a file in order. Throws TraceError at the first line that is not a trace. */
export const readMmuTraces = (file: string): Iterable<RecordedMmuTrace> =>
  parseLines(file, (json, line) => {
    requireSchema(checkTrace, json, 'trace');
    const { ops, era, seed, features, model } = json as TraceLine;
    const only_end = new Set<string>();
    const parted = ops.map((op, i) => partOp(op, `ops[${i}]`, only_end));
    return {
      trace: { file, line, era, seed, features, model, only_end, ops: parted.map(({ input }) => input) },
      recorded: parted.map(({ answer }) => answer),
    };
  });

/** Parts one operation, and those made inside its callbacks and waits, into input and recorded answer. */
function partOp(json: unknown, where: string, only_end: Set<string>): { input: InputOp; answer: Answer } {
  requireSchema(checkOperation, json, where);
  const { op, args, expect } = json as { op: MmuOp; args: Args<MmuOp>; expect: Expect };
  if (!Object.hasOwn(ARGS, op)) throw new Malformed(`${where}/op: no operation '${op}'`);
  requireSchema(checkArgs[op], args, `${where}/args`);
  requireSchema(checkExpect, expect, `${where}/expect`);
  if ('only_end' in args && args.only_end === true) only_end.add(args.range);
  const scripts: Script[] = [];
  const events = expect.events.map((event, k): AnswerEvent => {
    if (!('calls' in event)) return event;
    const calls = event.calls.map((call, j) => partOp(call, `${where}/expect/events[${k}]/calls[${j}]`, only_end));
    const nested = calls.map(({ input, answer }) => ({ op: input.op, answer }));
    scripts.push({ calls: calls.map(({ input }) => input), returns: event.type === 'wait' ? null : event.returns });
    if (event.type === 'wait') return { type: 'wait', calls: nested };
    const { returns: _, ...told } = event;
    return { ...told, calls: nested };
  });
  const input = { op, args, scripts: { exchange: (k: number) => scripts[k] ?? null } } as InputOp;
  const { err: _, ...answer } = expect;
  return { input, answer: { ...answer, events } };
}
