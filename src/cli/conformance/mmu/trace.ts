// The recorded traces of the mmu notifiers: their form on disk, and the two parts that never meet before an answer exists.

import { type Static, type TProperties, Type } from 'typebox';

const strict = { additionalProperties: false } as const;
const object = <P extends TProperties>(properties: P) => Type.Object(properties, strict);
const Hex = Type.String({ pattern: '^0x[0-9a-f]{1,16}$' });
const Name = Type.String({ pattern: '^[A-Z][0-9]{1,4}$' });
const Integer = Type.Integer();
const Flag = Type.Optional(Type.Boolean());

export const EVENTS = [
  'UNMAP',
  'CLEAR',
  'PROTECTION_VMA',
  'PROTECTION_PAGE',
  'SOFT_DIRTY',
  'RELEASE',
  'MIGRATE',
  'EXCLUSIVE',
] as const;
const Event = Type.Union(EVENTS.map((name) => Type.Literal(name)));
export type EventName = (typeof EVENTS)[number];

/** Which callbacks the notifiers have; `young`: all three of them. */
export const Model = object({
  notifiers: Type.Record(Name, Type.Array(Type.String())),
  ops_tables: Type.Record(Name, Type.Array(Type.String())),
});
export type Model = Static<typeof Model>;

/** The arguments of each operation. */
export const ARGS = {
  register: object({ notifier: Name, interrupted: Flag }),
  unregister: object({ notifier: Name }),
  get: object({ ops: Name, interrupted: Flag }),
  put: object({ notifier: Name }),
  interval_insert: object({ interval: Name, start: Hex, length: Hex }),
  interval_remove: object({ interval: Name }),
  read_begin: object({ interval: Name }),
  read_retry: object({ interval: Name, seq: Integer }),
  check_retry: object({ interval: Name, seq: Integer }),
  set_seq: object({ interval: Name, seq: Integer }),
  invalidate_start: object({ range: Name, start: Hex, end: Hex, blockable: Type.Boolean(), event: Event }),
  invalidate_end: object({ range: Name, only_end: Flag }),
  invalidate_range: object({ start: Hex, end: Hex }),
  clear_flush_young: object({ start: Hex, end: Hex }),
  clear_young: object({ start: Hex, end: Hex }),
  test_young: object({ start: Hex }),
  change_pte: object({ start: Hex }),
  mm_release: object({}),
} as const;
export type MmuOp = keyof typeof ARGS;
export type Args<O extends MmuOp> = Static<(typeof ARGS)[O]>;

const State = object({
  mm_count: Integer,
  subscriptions: Type.Boolean(),
  has_intervals: Flag,
  seq: Type.Optional(Integer),
  active_ranges: Type.Optional(Integer),
  listeners: Type.Optional(Type.Array(Name)),
  intervals: Type.Optional(Type.Array(Name)),
  deferred: Type.Optional(Type.Array(Name)),
  interval_seq: Type.Optional(Type.Record(Name, Integer)),
  users: Type.Record(Name, Integer),
});
export type State = Static<typeof State>;

export const RecordedEvent = Type.Union([
  object({
    type: Type.Literal('callback'),
    callback: Type.String(),
    target: Type.Optional(Name),
    start: Type.Optional(Hex),
    end: Type.Optional(Hex),
    blockable: Flag,
    event: Type.Optional(Event),
    seq: Type.Optional(Integer),
    calls: Type.Array(Type.Unknown()),
    returns: Type.Union([Integer, Name]),
  }),
  object({ type: Type.Literal('wait'), calls: Type.Array(Type.Unknown()) }),
  object({
    type: Type.Union([Type.Literal('WARN'), Type.Literal('BUG'), Type.Literal('DEADLOCK')]),
    what: Type.String(),
  }),
]);
export type RecordedEvent = Static<typeof RecordedEvent>;

export const Expect = object({
  ret: Type.Union([Integer, Type.Null()]),
  err: Type.Optional(Type.String()),
  seq: Type.Optional(Integer),
  notifier: Type.Optional(Name),
  events: Type.Array(RecordedEvent),
  state: Type.Optional(State),
});
export type Expect = Static<typeof Expect>;

export const TraceLine = object({
  era: Type.String(),
  unit: Type.Literal('mmu-notifier'),
  seed: Integer,
  profile: Type.String(),
  features: Type.Array(Type.String()),
  model: Model,
  ops: Type.Array(Type.Unknown()),
});
export type TraceLine = Static<typeof TraceLine>;

export const Operation = object({ op: Type.String(), args: Type.Unknown(), expect: Type.Unknown() });

/** One operation to perform. It holds nothing of what the recorded kernel answered. */
export type InputOp = { [O in MmuOp]: { op: O; args: Args<O>; scripts: ScriptSource } }[MmuOp];

/** What a trace asks for, without any expectation. */
export interface MmuTrace {
  file: string;
  line: number;
  era: string;
  seed: number;
  features: string[];
  model: Model;
  /** Ranges whose end leaves invalidate_range out: both ends of a range are the caller's to choose. */
  only_end: ReadonlySet<string>;
  ops: InputOp[];
}

/** A callback as the replayed machine made it; fields that it is not told are absent. */
export interface OwnCallback {
  type: 'callback';
  callback: string;
  target?: string;
  start?: string;
  end?: string;
  blockable?: boolean;
  event?: string;
  seq?: number;
}

/** What a callback does and returns, or what another thread does while the operation sleeps (returns null). */
export interface Script {
  calls: InputOp[];
  /** A name: the object that alloc_notifier gives. */
  returns: number | string | null;
}

/** Hands out the k-th script, from 0, in exchange for the k-th interruption of the replayed machine's own. */
export interface ScriptSource {
  exchange(k: number, own: OwnCallback | 'wait'): Script | null;
}

export type AnswerEvent =
  | (OwnCallback & { calls: NestedCall[] })
  | { type: 'wait'; calls: NestedCall[] }
  | { type: 'WARN' | 'BUG' | 'DEADLOCK'; what: string };

export interface NestedCall {
  op: MmuOp;
  answer: Answer;
}

/** The answer to one operation: the replayer makes one, the recording holds one, and only then they are compared. */
export interface Answer {
  /** null: the call never returned (BUG or deadlock). */
  ret: number | null;
  seq?: number;
  notifier?: string;
  events: AnswerEvent[];
  /** Read after a top-level operation. */
  state?: State;
}
