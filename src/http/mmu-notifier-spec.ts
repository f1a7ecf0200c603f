// An mmu notifier as a request describes it: what its callbacks do, in a word or step by step, or who answers them.

import Type, { type Static } from 'typebox';
import type { Command } from '../kernel/command.ts';
import { ERRNO, type ErrnoName } from '../kernel/errno.ts';
import { defaultReturn } from '../kernel/mm/mmu-notifier/call.ts';
import {
  type Action,
  type CallbackName,
  type Handler,
  PLAIN_CALLBACKS,
  type Script,
} from '../kernel/mm/mmu-notifier/subscriptions.ts';
import { mmuReturnOf } from '../service/mmu-return.ts';
import { MAX_ACTIONS, MAX_SECRET, MAX_URL } from './limits.ts';
import { pageOf, u64 } from './parse.ts';
import { Caller, CInt, closed, Id, Names, PageFrame, U64 } from './schema.ts';

const DriverLock = Type.String({
  pattern: '^(mutex|spinlock):[a-zA-Z0-9._-]{1,63}$',
  description: 'A lock of the driver: `mutex:<name>` or `spinlock:<name>`',
});
const action = <const A extends string>(name: A, description: string) => Type.Literal(name, { description });
const addr = U64('Address in the mm of the notifier');

const ActionBody = Type.Union(
  [
    closed({
      action: action('lock', 'Takes a lock'),
      lock: DriverLock,
      hold: Type.Optional(
        Type.Boolean({ description: 'Until a later `unlock`; otherwise until the callback returns (default false)' }),
      ),
    }),
    closed({ action: action('unlock', 'Releases a lock'), lock: DriverLock }),
    closed({
      action: Names(
        ['sleep', 'alloc', 'drop', 'set_seq'],
        'Sleeps; allocates memory that may be reclaimed for; drops its secondary mappings in the range; mmu_interval_set_seq()',
      ),
    }),
    closed({
      action: Names(
        ['dirty', 'dirty_lock'],
        'set_page_dirty(), set_page_dirty_lock() of the page that is mapped at addr',
      ),
      addr,
    }),
  ],
  { description: 'One thing that the callback does' },
);

/** What a handler returned, by number, by the name of an errno, or as yes and no. */
export const MmuReturn = Type.Union(
  [
    CInt('0 or a negative errno; 0 or 1'),
    Type.Boolean({ description: 'Of invalidate and the young callbacks' }),
    Names(Object.keys(ERRNO) as ErrnoName[], 'Errno by name'),
  ],
  { title: 'CallbackReturn', description: 'Return value of the callback' },
);

const Behaviour = Type.Union(
  [
    Type.String({
      pattern: '^(ok|ignore|eagain|ebusy|sleep|take_lock:[a-zA-Z0-9._:-]{1,63})$',
      description:
        '`ok`: what a good driver does (drops its mappings; an interval notifier stores the sequence first); `ignore`: nothing; `eagain`, `ebusy`: returns that error (`invalidate`: false); `sleep`; `take_lock:M`: takes mutex M (or spinlock:M) until it returns',
    }),
    closed({
      actions: Type.Array(ActionBody, { maxItems: MAX_ACTIONS, description: 'In order' }),
      returns: Type.Optional(MmuReturn),
    }),
  ],
  { title: 'Behaviour', description: 'What the callback does, in a word or step by step' },
);

const Delivered = Type.Union(
  [
    closed({ kind: Type.Literal('poll') }),
    closed({
      kind: Type.Literal('webhook'),
      url: Type.String({
        pattern: '^https?://[^\\s]+$',
        maxLength: MAX_URL,
        description: 'Where callbacks are POSTed',
      }),
      secret: Type.String({
        minLength: 1,
        maxLength: MAX_SECRET,
        description: 'Key of the signature (Standard Webhooks)',
      }),
    }),
  ],
  { title: 'ClientDelivery', description: 'A client answers the callbacks' },
);

const id = Type.Optional(Id('Id of the notifier; made when absent', 'n1'));
const plain = { kind: Type.Literal('plain'), id, task: Caller };
const scripted = Type.Object(
  Object.fromEntries(PLAIN_CALLBACKS.map((name) => [name, Type.Optional(Behaviour)])) as Record<
    (typeof PLAIN_CALLBACKS)[number],
    ReturnType<typeof Type.Optional<typeof Behaviour>>
  >,
  { additionalProperties: false, title: 'ScriptedCallbacks', description: 'The callbacks it has, and what each does' },
);
export const CallbackNames = Type.Array(Names(PLAIN_CALLBACKS, 'Callback'), {
  maxItems: PLAIN_CALLBACKS.length,
  description: 'The callbacks it has',
});
const interrupted = Type.Optional(Type.Boolean({ description: 'A signal is pending: -EINTR (default false)' }));
const interval = {
  kind: Type.Literal('interval'),
  id,
  start: U64('First byte'),
  length: U64('Bytes'),
  task: Caller,
};

const callbacks = Type.Union([scripted, CallbackNames], {
  description: 'The callbacks it has. With `delivery` only their names count; without it a name alone means `ok`',
});
const delivery = Type.Optional(Delivered);

export const MmuNotifierBody = Type.Union([
  closed({ ...plain, callbacks, delivery, interrupted }),
  closed({
    ...interval,
    callbacks: Type.Optional(
      closed({ invalidate: Type.Optional(Behaviour) }, { description: 'What `invalidate` does (default ok)' }),
    ),
    delivery,
  }),
]);

const RecordedAction = Type.Union([
  closed({ action: Type.Literal('lock'), lock: DriverLock, hold: Type.Boolean() }),
  closed({ action: Type.Literal('unlock'), lock: DriverLock }),
  closed({ action: Names(['sleep', 'alloc', 'drop', 'set_seq'], 'As in a request') }),
  closed({ action: Names(['dirty', 'dirty_lock'], 'As in a request'), page: PageFrame('addr / 4096') }),
]);
const RecordedScript = closed(
  { actions: Type.Array(RecordedAction, { maxItems: MAX_ACTIONS, description: 'In order' }), returns: CInt('Number') },
  { title: 'CallbackScript', description: 'What a callback does and returns' },
);
const RECORDED_CALLBACKS = [...PLAIN_CALLBACKS, 'invalidate'] as const;

/** A handler as a command has it: every behaviour is spelt out. */
export const HandlerJson = Type.Union(
  [
    closed({
      kind: Type.Literal('script'),
      scripts: closed(
        Object.fromEntries(RECORDED_CALLBACKS.map((name) => [name, Type.Optional(RecordedScript)])) as Record<
          CallbackName,
          ReturnType<typeof Type.Optional<typeof RecordedScript>>
        >,
      ),
    }),
    ...Delivered.anyOf,
  ],
  { title: 'Handler', description: 'Who carries the callbacks out. By default each is `ok`' },
);

/** mmu_notifier_get(): one notifier for each ops table and mm. */
const got = {
  ops: Id('Name of the ops table', 'kvm_ops'),
  id: Type.Optional(Id('Id of what alloc_notifier() makes; made when absent', 'k1')),
  task: Caller,
  interrupted,
  alloc_fails: Type.Optional(Type.Boolean({ description: 'alloc_notifier() fails: -ENOMEM (default false)' })),
};
export const GetMmuNotifierBody = closed({ ...got, callbacks, delivery });

const DROPPING: readonly string[] = ['invalidate_range_start', 'invalidate_range', 'arch_invalidate_secondary_tlbs'];

/** What a good driver does: nothing may be mapped in the range any more when it returns. */
const goodActions = (callback: CallbackName): Action[] => {
  if (callback === 'invalidate') return [{ action: 'set_seq' }, { action: 'drop' }];
  return DROPPING.includes(callback) ? [{ action: 'drop' }] : [];
};

function actionOf(body: Static<typeof ActionBody>): Action {
  switch (body.action) {
    case 'lock':
      return { action: 'lock', lock: body.lock, hold: body.hold ?? false };
    case 'dirty':
    case 'dirty_lock':
      return { action: body.action, page: pageOf(u64(body.addr)) };
    default:
      return body;
  }
}

const lockNamed = (name: string): string => (name.includes(':') ? name : `mutex:${name}`);

function scriptOf(callback: CallbackName, body: Static<typeof Behaviour>): Script {
  const returns = defaultReturn(callback);
  if (typeof body !== 'string')
    return {
      actions: body.actions.map(actionOf),
      returns: body.returns === undefined ? returns : (mmuReturnOf(body.returns) ?? returns),
    };
  const fails = callback === 'invalidate' ? 0 : -ERRNO[body === 'ebusy' ? 'EBUSY' : 'EAGAIN'];
  if (body === 'ok') return { actions: goodActions(callback), returns };
  if (body === 'ignore') return { actions: [], returns };
  if (body === 'sleep') return { actions: [{ action: 'sleep' }], returns };
  if (body === 'eagain' || body === 'ebusy') return { actions: [], returns: fails };
  return { actions: [{ action: 'lock', lock: lockNamed(body.slice('take_lock:'.length)), hold: false }], returns };
}

type Callbacks = { [name in CallbackName]?: Static<typeof Behaviour> };

/** Which callbacks there are, and who carries them out. */
export function handlerOf(
  callbacks: CallbackName[] | Callbacks,
  delivery: Static<typeof Delivered> | undefined,
): { callbacks: CallbackName[]; handler: Handler } {
  if (Array.isArray(callbacks))
    return delivery === undefined
      ? handlerOf(Object.fromEntries(callbacks.map((name) => [name, 'ok'])), undefined)
      : { callbacks, handler: delivery };
  const names = Object.keys(callbacks) as CallbackName[];
  const scripts = Object.fromEntries(
    names.map((name) => [name, scriptOf(name, callbacks[name] as Static<typeof Behaviour>)]),
  );
  return { callbacks: names, handler: delivery ?? { kind: 'script', scripts } };
}

const namesOf = ({ id, task }: { id?: string; task?: string }): { id?: string; task?: string } => ({
  ...(id === undefined ? {} : { id }),
  ...(task === undefined ? {} : { task }),
});

/** The command that registers what a body describes. */
export function registrationOf(mm: string, body: Static<typeof MmuNotifierBody>): Command {
  const named = namesOf(body);
  const { delivery } = body;
  if (body.kind === 'interval') {
    const callbacks: Callbacks = { invalidate: 'ok', ...body.callbacks };
    const { handler } = handlerOf(callbacks, delivery);
    const { start, length } = body;
    return { op: 'insert_interval_notifier', mm, ...named, start: u64(start), length: u64(length), handler };
  }
  const interrupted = body.interrupted === true ? { interrupted: true } : {};
  return { op: 'register_mmu_notifier', mm, ...named, ...handlerOf(body.callbacks, delivery), ...interrupted };
}

/** mmu_notifier_get() of what a body describes. */
export function getOf(mm: string, body: Static<typeof GetMmuNotifierBody>): Command {
  const { ops, callbacks, interrupted, alloc_fails } = body;
  return {
    op: 'get_mmu_notifier',
    mm,
    ops,
    ...namesOf(body),
    ...handlerOf(callbacks, body.delivery),
    ...(interrupted === true ? { interrupted } : {}),
    ...(alloc_fails === true ? { alloc_fails } : {}),
  };
}
