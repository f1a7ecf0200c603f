// Routes of mmu notifiers: registration in all its forms, and the callbacks that a client answers.

import Type from 'typebox';
import type { Command } from '../../kernel/command.ts';
import { listMmuNotifiers, viewMmuNotifier } from '../../kernel/view/mm.ts';
import { MAX_LONG_POLL_MS } from '../../service/limits.ts';
import { mmuReturnOf } from '../../service/mmu-return.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { DEFAULT_PAGE } from '../limits.ts';
import { GetMmuNotifierBody, getOf, MmuNotifierBody, MmuReturn, registrationOf } from '../mmu-notifier-spec.ts';
import { decodeCursor, printedFields } from '../parse.ts';
import { endOf, look, show, showPage, submit } from '../reply.ts';
import { Caller, Count, closed, PageOf, PageQuery, Path, ReplyOf } from '../schema.ts';
import { MmuNotificationView, MmuNotifierView, mmuNotificationExample, mmuNotifierExample } from '../views/mm.ts';

const mm = { host: Path.host, mm: Path.mm };
const notifier = { ...mm, notifier: Path.mmuNotifier };
const registered = ReplyOf({
  id: Type.String(),
  users: Type.Optional(Count('Of a plain notifier: its users')),
});
const noNotifier = { errno: 'NOT_FOUND', detail: "no mmu notifier 'n9'" } as const;

const register = describe({
  operationId: 'register_mmu_notifier',
  tag: 'mmu-notifiers',
  summary: 'mmu_notifier_register(), mmu_interval_notifier_insert()',
  description:
    'A plain notifier is told of every range of the address space, an interval notifier of those that it intersects. `callbacks` says what each does, in a word (`ok`, `ignore`, `eagain`, `ebusy`, `sleep`, `take_lock:M`) or step by step; with `delivery` a client answers them. Registering takes mmap_lock for writing, so it waits while an operation holds it.',
  does: 'command',
  waits: true,
  params: mm,
  body: MmuNotifierBody,
  bodyExample: { id: 'n1', kind: 'plain', callbacks: { invalidate_range_start: 'ok', invalidate_range_end: 'ok' } },
  success: [{ status: 201, description: 'Registered', schema: registered, example: { ret: 0, id: 'n1', seq: 5 } }],
  refusals: ['EINVAL', 'EEXIST', 'EINTR', 'EOVERFLOW', 'ENODEV', 'EOPNOTSUPP', 'ENOSPC', 'ESRCH', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'EOVERFLOW', detail: 'length: 0x0' },
});

const getPut = describe({
  operationId: 'get_mmu_notifier',
  tag: 'mmu-notifiers',
  summary: 'mmu_notifier_get()',
  description:
    'The notifier of an ops table for an address space: made by alloc_notifier() at the first call, counted at later ones.',
  does: 'command',
  waits: true,
  params: mm,
  body: GetMmuNotifierBody,
  bodyExample: { ops: 'kvm_ops', callbacks: { invalidate_range_start: 'ok', release: 'ok' } },
  success: [
    { status: 201, description: 'Made', schema: registered, example: { ret: 0, id: 'kvm_ops-1', seq: 6 } },
    { status: 200, description: 'There already: one user more', example: { ret: 0, id: 'kvm_ops-1', seq: 7 } },
  ],
  refusals: ['EINVAL', 'ENOMEM', 'EINTR', 'EOVERFLOW', 'ENODEV', 'EOPNOTSUPP', 'ENOSPC', 'ESRCH', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'ENOMEM', detail: 'alloc_notifier() of kvm_ops failed' },
});

const list = describe({
  operationId: 'list_mmu_notifiers',
  tag: 'mmu-notifiers',
  summary: 'Notifiers of an address space',
  description: 'With the calls that each has had and what it maps for its device, by id.',
  does: 'read',
  params: mm,
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of notifiers',
      schema: PageOf(MmuNotifierView),
      example: { items: [mmuNotifierExample], next_cursor: null },
    },
  ],
  refusalExample: { errno: 'NOT_FOUND', detail: "no mm 'mm-99'" },
});

const get = describe({
  operationId: 'get_mmu_notifier_state',
  tag: 'mmu-notifiers',
  summary: 'One notifier',
  description: "What it does, how often it was called, what it maps. A webhook's secret is never shown.",
  does: 'read',
  params: notifier,
  success: [{ status: 200, description: 'The notifier', schema: MmuNotifierView, example: mmuNotifierExample }],
  refusalExample: noNotifier,
});

const unregister = describe({
  operationId: 'unregister_mmu_notifier',
  tag: 'mmu-notifiers',
  summary: 'mmu_notifier_unregister(), mmu_interval_notifier_remove()',
  description:
    'Takes a notifier off: a plain one is called with `release` first, and every running callback is waited for; an interval one waits for the end of the invalidations that it is in.',
  does: 'command',
  waits: true,
  params: notifier,
  query: { task: Caller },
  success: [{ status: 200, description: 'Off', schema: registered, example: { ret: 0, id: 'n1', seq: 8 } }],
  refusals: ['EINVAL', 'ENOENT', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'ENOENT', detail: "notifier 'n1' is not registered" },
});

const put = describe({
  operationId: 'put_mmu_notifier',
  tag: 'mmu-notifiers',
  summary: 'mmu_notifier_put()',
  description:
    'One user of a notifier made with mmu_notifier_get() less; with the last, it is freed when no callback runs any more. `release` is not called.',
  does: 'command',
  params: notifier,
  body: closed({ task: Caller }),
  bodyExample: {},
  success: [{ status: 200, description: 'Put', schema: registered, example: { ret: 0, id: 'kvm_ops-1', seq: 9 } }],
  refusals: ['EINVAL', 'ENOENT', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'EINVAL', detail: "notifier 'n1' was not made with mmu_notifier_get()" },
});

const poll = describe({
  operationId: 'list_mmu_notifications',
  tag: 'mmu-notifiers',
  summary: 'Callbacks that wait for an answer',
  description:
    'Returns at once if a callback of a notifier with delivery `poll` is unanswered, otherwise when one arrives or `wait_ms` has passed. What the handler does before it answers, it does with the header X-Notification.',
  does: 'read',
  params: mm,
  query: {
    wait_ms: Type.Optional(
      Type.Integer({ minimum: 0, maximum: MAX_LONG_POLL_MS, default: 0, description: 'Longest wait' }),
    ),
  },
  success: [
    {
      status: 200,
      description: 'What is not acknowledged yet',
      schema: closed({ items: Type.Array(MmuNotificationView) }),
      example: { items: [mmuNotificationExample] },
    },
  ],
  refusalExample: { errno: 'NOT_FOUND', detail: "no mm 'mm-99'" },
});

const ack = describe({
  operationId: 'ack_mmu_notification',
  tag: 'mmu-notifiers',
  summary: 'The callback has returned',
  description:
    'Answers a callback with its return value. When `notifier_timeout_ms` passes first, the emulated kernel goes on as if it had returned without doing anything.',
  does: 'command',
  params: {
    ...mm,
    notification: Type.String({
      pattern: '^[a-zA-Z0-9][a-zA-Z0-9._-]{0,127}$',
      description: 'Notification',
      examples: ['mmu-notification-1'],
    }),
  },
  body: closed({ ret: MmuReturn }),
  bodyExample: { ret: 0 },
  success: [
    { status: 200, description: 'Taken', schema: registered, example: { ret: 0, id: 'mmu-notification-1', seq: 8 } },
  ],
  refusals: ['EBUSY'],
  refusalExample: { errno: 'EBUSY', detail: "notification 'mmu-notification-1' was answered already, or timed out" },
});

/** Which call takes a notifier off depends on what it is. */
const REMOVALS = { plain: 'unregister_mmu_notifier', interval: 'remove_interval_notifier' } as const;

export function mmuNotifierRoutes(app: Api): void {
  const one = '/v1/hosts/:host/mms/:mm';
  const all = `${one}/notifiers`;
  app.post(all, { schema: register }, (request, reply) =>
    submit(request, reply, registrationOf(request.params.mm, request.body)),
  );
  app.post(`${one}/get_notifier`, { schema: getPut }, (request, reply) =>
    submit(request, reply, getOf(request.params.mm, request.body)),
  );
  app.get(all, { schema: list }, (request) => {
    const { params, query } = request;
    const after = decodeCursor(query.cursor, 'string');
    return showPage(request, (host) => listMmuNotifiers(host, params.mm, after, query.limit ?? DEFAULT_PAGE));
  });
  app.get(`${all}/:notifier`, { schema: get }, (request) => {
    const { mm, notifier } = request.params;
    return show(request, (host) => viewMmuNotifier(host, mm, notifier));
  });
  app.delete(`${all}/:notifier`, { schema: unregister }, async (request, reply) => {
    const { mm, notifier: id } = request.params;
    const { kind } = await look(request, (host) => viewMmuNotifier(host, mm, id));
    const op = REMOVALS[kind as keyof typeof REMOVALS];
    return submit(request, reply, { op, id, ...request.query } as Command);
  });
  app.post(`${all}/:notifier/put`, { schema: put }, (request, reply) => {
    const { mm, notifier: id } = request.params;
    return submit(request, reply, { op: 'put_mmu_notifier', mm, id, ...request.body });
  });
  app.get(`${one}/notifications`, { schema: poll }, async (request, reply) => {
    const { host, mm } = request.params;
    const { wait_ms = 0 } = request.query;
    const items = await app.service.mmuNotifications(host, mm, wait_ms, endOf(request, reply));
    return { items: items.map((item) => printedFields({ ...item })) };
  });
  app.post(`${one}/notifications/:notification/ack`, { schema: ack }, (request, reply) => {
    const { mm, notification } = request.params;
    const ret = mmuReturnOf(request.body.ret) ?? 0;
    return submit(request, reply, { op: 'ack_mmu_notification', mm, notification, ret, reason: 'ack', detail: null });
  });
}
