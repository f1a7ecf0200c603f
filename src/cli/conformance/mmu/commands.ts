// Translates an operation of an mmu notifier trace into the command that performs it.

import type { Command } from '../../../kernel/command.ts';
import { type CallbackName, PLAIN_CALLBACKS } from '../../../kernel/mm/mmu-notifier/subscriptions.ts';
import type { MmuMachine } from './machine.ts';
import type { InputOp, MmuTrace } from './trace.ts';

/** What the replayed machine calls the things of a trace. */
export interface Names {
  machine: Pick<MmuMachine, 'mm' | 'task'>;
  trace: Pick<MmuTrace, 'model' | 'only_end'>;
  /** The operation that keeps each range open. */
  ranges: ReadonlyMap<string, string>;
  readonly idOf: (name: string) => string;
}

const YOUNG: readonly CallbackName[] = ['clear_flush_young', 'clear_young', 'test_young'];
const HANDLER = { kind: 'poll' } as const;

function callbacksOf(names: readonly string[] | undefined): CallbackName[] {
  if (names === undefined) throw new Error('the model does not have the notifier');
  return names.flatMap((name) => {
    if (name === 'young') return YOUNG;
    const known = PLAIN_CALLBACKS.find((callback) => callback === name);
    if (known === undefined) throw new Error(`the model names a callback '${name}'`);
    return [known];
  });
}

/** The end of the range is the same operation going on. */
export function callOf({ op, args }: InputOp, { machine: { mm, task }, trace, ranges, idOf }: Names): Command {
  switch (op) {
    case 'register': {
      const { notifier: id, interrupted = false } = args;
      const callbacks = callbacksOf(trace.model.notifiers[id]);
      return { op: 'register_mmu_notifier', mm, id, callbacks, handler: HANDLER, interrupted };
    }
    case 'unregister':
      return { op: 'unregister_mmu_notifier', id: args.notifier };
    case 'get': {
      const { ops, interrupted = false } = args;
      const callbacks = [...callbacksOf(trace.model.ops_tables[ops]), 'alloc_notifier', 'free_notifier'] as const;
      return { op: 'get_mmu_notifier', mm, ops, callbacks: [...callbacks], handler: HANDLER, interrupted };
    }
    case 'put':
      return { op: 'put_mmu_notifier', id: idOf(args.notifier) };
    case 'interval_insert': {
      const [start, length] = [BigInt(args.start), BigInt(args.length)];
      return { op: 'insert_interval_notifier', mm, id: args.interval, start, length, handler: HANDLER };
    }
    case 'interval_remove':
      return { op: 'remove_interval_notifier', id: args.interval };
    case 'read_begin':
      return { op: 'interval_read_begin', id: args.interval };
    case 'read_retry':
      return { op: 'interval_read_retry', id: args.interval, sequence: args.seq };
    case 'check_retry':
      return { op: 'interval_check_retry', id: args.interval, sequence: args.seq };
    case 'set_seq':
      return { op: 'interval_set_seq', id: args.interval, sequence: args.seq };
    case 'invalidate_start': {
      const { range, event, blockable } = args;
      const [start, end] = [BigInt(args.start), BigInt(args.end)];
      const only_end = trace.only_end.has(range);
      return { op: 'invalidate', mm, start, end, event, blockable, only_end, stop_at: 'after_start' };
    }
    case 'invalidate_end':
      return { op: 'resume_operation', operation: ranges.get(args.range) ?? `range ${args.range}` };
    case 'test_young':
    case 'change_pte':
      return { op: 'mmu_call', mm, callback: op, start: BigInt(args.start) };
    case 'invalidate_range':
    case 'clear_flush_young':
    case 'clear_young':
      return { op: 'mmu_call', mm, callback: op, start: BigInt(args.start), end: BigInt(args.end) };
    case 'mm_release':
      return { op: 'exit', task, stop_at: 'before_start' };
  }
}
