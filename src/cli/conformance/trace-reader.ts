// Reads recorded traces (.jsonl or .jsonl.gz), checks them field by field, and parts the input from what was recorded.

import type { TSchema } from 'typebox';
import { Compile, type Validator } from 'typebox/compile';
import type {
  Answer,
  AnswerEvent,
  InputOp,
  Output,
  OwnNotification,
  RecordedTrace,
  Script,
  ScriptSource,
} from './trace.ts';
import {
  ARGS,
  type Args,
  Expect,
  type MemoryModel,
  Operation,
  type TraceOp,
  Trace as TraceSchema,
} from './trace-format.ts';
import { Malformed, parseLines, requireSchema } from './trace-lines.ts';

const checkTrace = Compile(TraceSchema);
const checkOperation = Compile(Operation);
const checkExpect = Compile(Expect);
const checkArgs = Object.fromEntries(Object.entries(ARGS).map(([op, schema]) => [op, Compile(schema)])) as {
  [O in TraceOp]: Validator<Record<never, never>, TSchema>;
};

/** The traces of a file in order, one line at a time. Throws TraceError at the first line that is not a trace. */
export const readTraces = (file: string): Iterable<RecordedTrace> =>
  parseLines(file, (json, line) => parseTrace(file, line, json));

function parseTrace(file: string, line: number, json: unknown): RecordedTrace {
  requireSchema(checkTrace, json, 'trace');
  const { ops, era, seed, features, memory_model } = json as {
    ops: unknown[];
    era: string;
    seed: number;
    features: string[];
    memory_model: MemoryModel;
  };
  requireNames(memory_model);
  const parted = ops.map((op, i) => partOp(op, `ops[${i}]`));
  return {
    trace: { file, line, era, seed, features, memory_model, ops: parted.map(({ input }) => input) },
    recorded: { answers: parted.map(({ answer }) => answer) },
  };
}

/** Parts one operation, and those made inside its notifications, into input and recorded answer. */
function partOp(json: unknown, where: string): { input: InputOp; answer: Answer } {
  requireSchema(checkOperation, json, where);
  const { op, args, expect } = json as { op: TraceOp; args: Args<TraceOp>; expect: Expect };
  if (!Object.hasOwn(ARGS, op)) throw new Malformed(`${where}/op: no operation '${op}'`);
  requireSchema(checkArgs[op], args, `${where}/args`);
  if ('iovas' in args && 'iova_range' in args) throw new Malformed(`${where}/args: both iovas and iova_range`);
  requireSchema(checkExpect, expect, `${where}/expect`);
  const scripts: Script[] = [];
  const events: AnswerEvent[] = [];
  for (const [k, event] of expect.events.entries()) {
    if (event.type === 'notify' || event.type === 'wait') {
      const calls = event.calls.map((call, j) => partOp(call, `${where}/expect/events[${k}]/calls[${j}]`));
      const nested = calls.map(({ input, answer }) => ({ op: input.op, answer }));
      const returns = event.type === 'notify' ? event.returns : null;
      const killed = event.type === 'wait' && event.fatal_signal === true;
      scripts.push({ calls: calls.map(({ input }) => input), returns, killed });
      if (event.type === 'wait') events.push({ type: 'wait', calls: nested });
      else events.push({ type: 'notify', listener: event.listener, iova: event.iova, size: event.size, calls: nested });
    } else if (event.type === 'DEADLOCK') events.push({ type: 'DEADLOCK', what: event.lock });
    else events.push({ type: event.type, what: event.what });
  }
  const input = { op, args, scripts: sealScripts(scripts) } as InputOp;
  return { input, answer: { ret: expect.ret, out: outputOf(expect), events, state: expect.state } };
}

function outputOf(expect: Expect): Output {
  const { ret: _ret, err: _err, events: _events, state: _state, pages, ...rest } = expect;
  if (pages === undefined) return rest;
  // An untouched slot and a zeroed one look the same to a caller whose array starts as zeros.
  return { ...rest, pages: pages.map((page) => page ?? 0) };
}

const sealScripts = (scripts: Script[]): ScriptSource => ({
  exchange: (k: number, _own: OwnNotification | 'wait') => scripts[k] ?? null,
});

/** Refuses a memory model that names what it does not have. */
function requireNames(model: MemoryModel): void {
  for (const [device, { group }] of Object.entries(model.devices))
    if (group !== null && !Object.hasOwn(model.groups, group))
      throw new Malformed(`memory_model/devices/${device}: no group '${group}'`);
  for (const [name, { vmas }] of Object.entries(model.processes))
    for (const [i, { npages, pages, ptes }] of vmas.entries()) {
      const listed = pages.reduce((sum, [, count]) => sum + count, 0);
      const where = `memory_model/processes/${name}/vmas[${i}]`;
      if (listed !== npages) throw new Malformed(`${where}: npages is ${npages}, but ${listed} pages are listed`);
      if (ptes !== undefined && ptes.length !== npages)
        throw new Malformed(`${where}: npages is ${npages}, but ${ptes.length} ptes are listed`);
    }
}
