// Routes of address spaces: what they are, who subscribes to them, and invalidations of no operation in particular.

import Type from 'typebox';
import { MMU_CALLS } from '../../kernel/command.ts';
import { MMU_EVENTS } from '../../kernel/mm/mmu-notifier/range.ts';
import { listMms, viewMm, viewSubscriptions } from '../../kernel/view/mm.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { DEFAULT_PAGE } from '../limits.ts';
import { decodeCursor, u64 } from '../parse.ts';
import { show, showPage, submit } from '../reply.ts';
import { Caller, closed, Id, Names, PageOf, PageQuery, Path, ReplyOf, StopAt, U64 } from '../schema.ts';
import { MmView, mmExample, SubscriptionsView } from '../views/mm.ts';

const mm = { host: Path.host, mm: Path.mm };
const noMm = { errno: 'NOT_FOUND', detail: "no mm 'mm-99'" } as const;

const list = describe({
  operationId: 'list_mms',
  tag: 'mms',
  summary: 'Address spaces of a host',
  description: 'Those with users, and those that a notifier still keeps, by id.',
  does: 'read',
  params: { host: Path.host },
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of address spaces',
      schema: PageOf(MmView),
      example: { items: [mmExample], next_cursor: null },
    },
  ],
  refusalExample: { errno: 'NOT_FOUND', detail: "no host 'h9'" },
});

const get = describe({
  operationId: 'get_mm',
  tag: 'mms',
  summary: 'One address space',
  description: 'struct mm_struct: users and references, counters, who lives in it and who watches it.',
  does: 'read',
  params: mm,
  success: [{ status: 200, description: 'The address space', schema: MmView, example: mmExample }],
  refusalExample: noMm,
});

const subscriptions = describe({
  operationId: 'get_subscriptions',
  tag: 'mms',
  summary: 'Who subscribes to an address space',
  description:
    'struct mmu_notifier_subscriptions: the list in calling order, the interval tree, the sequence with its active ranges, and who waits.',
  does: 'read',
  params: mm,
  success: [
    {
      status: 200,
      description: 'The subscriptions',
      schema: SubscriptionsView,
      example: {
        mm: 'mm-1',
        list: ['n1'],
        has_itree: false,
        intervals: [],
        deferred: [],
        invalidate_seq: 2,
        active_invalidate_ranges: 0,
        active: [{ operation: 'munmap-7', start: '0x7f0000000000', end: '0x7f0000002000' }],
        waiting: [],
        srcu_readers: [],
        synchronizing: [],
      },
    },
  ],
  refusalExample: noMm,
});

const invalidate = describe({
  operationId: 'invalidate',
  tag: 'mms',
  summary: 'A start and its end, and nothing between',
  description:
    'Calls the notifiers as an operation would, without changing a page table: what a test of a driver begins with. With `stop_at` `after_start` the range stays open until its operation is stepped on.',
  does: 'command',
  waits: true,
  params: mm,
  body: closed({
    start: U64('First byte'),
    end: U64('One past the last byte'),
    event: Names(MMU_EVENTS, 'Why'),
    blockable: Type.Optional(Type.Boolean({ description: 'Whether callbacks may sleep (default true)' })),
    owner: Type.Optional(Id('Who may ignore the event as its own', 'dmirror')),
    only_end: Type.Optional(
      Type.Boolean({ description: 'The end leaves `invalidate_range` out: the caller has called it (default false)' }),
    ),
    stop_at: StopAt,
    task: Caller,
  }),
  bodyExample: { start: '0x7f0000000000', end: '0x7f0000002000', event: 'UNMAP' },
  success: [{ status: 200, description: 'Started and ended', schema: ReplyOf({}), example: { ret: 0, seq: 40 } }],
  refusals: ['EINVAL', 'EAGAIN', 'ENODEV', 'EOPNOTSUPP', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'EINVAL', detail: 'start: 0x7f0000000800 is not page aligned' },
});

const call = describe({
  operationId: 'mmu_call',
  tag: 'mms',
  summary: 'One callback of every plain notifier',
  description:
    'Calls a callback that belongs to no start and end: the young callbacks as page aging does (`ret` is 1 where somebody answers yes), `invalidate_range` and `change_pte` as under the page-table lock.',
  does: 'command',
  waits: true,
  params: mm,
  body: closed({
    callback: Names(MMU_CALLS, 'Which'),
    start: U64('First byte'),
    end: Type.Optional(U64('One past the last byte (default: one page)')),
    task: Caller,
  }),
  bodyExample: { callback: 'test_young', start: '0x7f0000000000' },
  success: [{ status: 200, description: 'Called', schema: ReplyOf({}), example: { ret: 1, seq: 41 } }],
  refusals: ['EINVAL', 'EOPNOTSUPP', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'EOPNOTSUPP', detail: 'this kernel has no change_pte callback' },
});

export function mmRoutes(app: Api): void {
  const all = '/v1/hosts/:host/mms';
  const one = `${all}/:mm`;
  app.get(all, { schema: list }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    const after = decodeCursor(cursor, 'string');
    return showPage(request, (host) => listMms(host, after, limit));
  });
  app.get(one, { schema: get }, (request) => show(request, (host) => viewMm(host, request.params.mm)));
  app.get(`${one}/subscriptions`, { schema: subscriptions }, (request) =>
    show(request, (host) => viewSubscriptions(host, request.params.mm)),
  );
  app.post(`${one}/invalidate`, { schema: invalidate }, (request, reply) => {
    const { start, end, blockable = true, ...rest } = request.body;
    const { mm } = request.params;
    return submit(request, reply, { op: 'invalidate', mm, start: u64(start), end: u64(end), blockable, ...rest });
  });
  app.post(`${one}/call`, { schema: call }, (request, reply) => {
    const { callback, start, end, ...caller } = request.body;
    const until = end === undefined ? {} : { end: u64(end) };
    return submit(request, reply, {
      op: 'mmu_call',
      mm: request.params.mm,
      callback,
      start: u64(start),
      ...until,
      ...caller,
    });
  });
}
