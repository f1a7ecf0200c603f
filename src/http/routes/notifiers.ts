// Routes of DMA_UNMAP notifiers: registration, and the notifications that a driver polls for and acknowledges.

import Type from 'typebox';
import { listNotifiers, viewNotifier } from '../../kernel/view/vfio.ts';
import { MAX_LONG_POLL_MS } from '../../service/limits.ts';
import { NOTIFY_RETURNS } from '../../service/notify-return.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { DEFAULT_PAGE } from '../limits.ts';
import { NotifierBody, notifierOf, notifierType } from '../notifier-spec.ts';
import { decodeCursor, numberOf, printedFields } from '../parse.ts';
import { endOf, show, showPage, submit } from '../reply.ts';
import { CInt, Count, closed, Names, PageOf, PageQuery, Path, ReplyOf } from '../schema.ts';
import { Notification, Notifier } from '../views/vfio.ts';

const device = { host: Path.host, device: Path.device };
const notifier = { ...device, notifier: Path.notifier };
const notification = {
  ...device,
  notification: Type.String({
    pattern: '^[a-zA-Z0-9][a-zA-Z0-9._-]{0,127}$',
    description: 'Notification',
    examples: ['notification-1'],
  }),
};
const blockExample = { id: 'n0', device: 'mdev0', type: 0, priority: 0, delivery: { kind: 'poll' }, registered: true };

const register = describe({
  operationId: 'register_notifier',
  tag: 'notifiers',
  summary: 'vfio_register_notifier()',
  description:
    'Puts a notifier block on the chain. Pinning needs one registered in the container. `events_left` is the events word after the call. The same id again is a second registration of the same block. From 6.0 on this gives the driver its dma_unmap op, effective at once if the device is open: one a device, without type and priority.',
  does: 'command',
  waits: true,
  params: device,
  body: NotifierBody,
  bodyExample: {
    id: 'n0',
    events: ['DMA_UNMAP'],
    type: 'IOMMU',
    priority: 0,
    delivery: { kind: 'builtin', behavior: 'unpin_all' },
  },
  success: [
    {
      status: 201,
      description: 'Registered',
      schema: ReplyOf({ id: Type.String(), events_left: Count('Bits that nobody knew') }),
      example: { ret: 0, id: 'n0', events_left: 0, seq: 5 },
    },
  ],
  refusals: ['EINVAL', 'ENODEV', 'ENOSPC', 'EOPNOTSUPP', 'EEXIST', 'EDEADLK', 'EBUSY', 'EIO'],
  refusalExample: { errno: 'EINVAL', detail: 'events has unknown bits: 2 is left over', events_left: 2 },
});

const unregister = describe({
  operationId: 'unregister_notifier',
  tag: 'notifiers',
  summary: 'vfio_unregister_notifier()',
  description:
    'Takes the block off the chain. Waits until running callbacks of the chain have returned; inside one it would deadlock.',
  does: 'command',
  waits: true,
  params: notifier,
  query: {
    type: Type.Optional(
      Type.Union([Names(['IOMMU', 'GROUP'], 'By name'), Type.Integer()], {
        description: 'By default the type it was registered with',
      }),
    ),
  },
  success: [
    {
      status: 200,
      description: 'Unregistered',
      schema: ReplyOf({ id: Type.String() }),
      example: { ret: 0, id: 'n0', seq: 6 },
    },
  ],
  refusals: ['ENOENT', 'EINVAL', 'ENODEV', 'EDEADLK', 'EBUSY', 'EIO'],
  refusalExample: { errno: 'ENOENT', detail: "notifier 'n0' is not registered" },
});

const list = describe({
  operationId: 'list_notifiers',
  tag: 'notifiers',
  summary: 'Notifier blocks of a device',
  description: 'The blocks that were registered through this device last, by id.',
  does: 'read',
  params: device,
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of blocks',
      schema: PageOf(Notifier),
      example: { items: [blockExample], next_cursor: null },
    },
  ],
  refusalExample: { errno: 'NOT_FOUND', detail: "no device 'mdev9'" },
});

const get = describe({
  operationId: 'get_notifier',
  tag: 'notifiers',
  summary: 'One notifier block',
  description: "A block and whether it is on a chain. A webhook's secret is never shown.",
  does: 'read',
  params: notifier,
  success: [{ status: 200, description: 'The block', schema: Notifier, example: blockExample }],
  refusalExample: { errno: 'NOT_FOUND', detail: "no notifier 'n9'" },
});

const poll = describe({
  operationId: 'list_notifications',
  tag: 'notifiers',
  summary: 'Notifications that wait for an answer',
  description:
    'Returns at once if a notification of this device is unanswered, otherwise when one arrives or `wait_ms` has passed.',
  does: 'read',
  params: device,
  query: {
    wait_ms: Type.Optional(
      Type.Integer({ minimum: 0, maximum: MAX_LONG_POLL_MS, default: 0, description: 'Longest wait' }),
    ),
  },
  success: [
    {
      status: 200,
      description: 'What is not acknowledged yet',
      schema: closed({ items: Type.Array(Notification) }),
      example: {
        items: [
          {
            id: 'notification-1',
            device: 'mdev0',
            notifier: 'n0',
            event: 'DMA_UNMAP',
            iova: '0x0',
            size: '0x10000000',
            container: 'vfio0',
            attempt: 1,
            seq: 7,
          },
        ],
      },
    },
  ],
  refusalExample: { errno: 'NOT_FOUND', detail: "no device 'mdev9'" },
});

const ack = describe({
  operationId: 'ack_notification',
  tag: 'notifiers',
  summary: 'The handler has returned',
  description:
    'Answers a notification with what the handler returned. A handler unpins before it acknowledges. NOTIFY_STOP and NOTIFY_BAD end the walk.',
  does: 'command',
  params: notification,
  body: closed({
    ret: Type.Union([Names(['NOTIFY_OK', 'NOTIFY_DONE', 'NOTIFY_STOP', 'NOTIFY_BAD'], 'By name'), CInt('By number')], {
      description: 'Return value of the handler',
    }),
  }),
  bodyExample: { ret: 'NOTIFY_OK' },
  success: [
    {
      status: 200,
      description: 'Taken',
      schema: ReplyOf({ id: Type.String() }),
      example: { ret: 0, id: 'notification-1', seq: 8 },
    },
  ],
  refusals: ['EBUSY', 'EIO'],
  refusalExample: {
    errno: 'EBUSY',
    detail: "notification 'notification-1' was answered already, timed out, or died with its container",
    hint: 'the kernel went on as if the handler had returned',
  },
});

export function notifierRoutes(app: Api): void {
  const all = '/v1/hosts/:host/devices/:device/notifiers';
  const notifications = '/v1/hosts/:host/devices/:device/notifications';
  app.post(all, { schema: register }, (request, reply) =>
    submit(request, reply, {
      op: 'register_notifier',
      device: request.params.device,
      notifier: notifierOf(request.body),
    }),
  );
  app.get(all, { schema: list }, (request) => {
    const { params, query } = request;
    const after = decodeCursor(query.cursor, 'string');
    return showPage(request, (host) => listNotifiers(host, params.device, after, query.limit ?? DEFAULT_PAGE));
  });
  app.get(`${all}/:notifier`, { schema: get }, (request) => {
    const { device, notifier } = request.params;
    return show(request, (host) => viewNotifier(host, device, notifier));
  });
  app.delete(`${all}/:notifier`, { schema: unregister }, (request, reply) => {
    const { device, notifier } = request.params;
    const { type } = request.query;
    return submit(request, reply, {
      op: 'unregister_notifier',
      device,
      notifier,
      type: type === undefined ? null : notifierType(type),
    });
  });
  app.get(notifications, { schema: poll }, async (request, reply) => {
    const { host, device } = request.params;
    const items = await app.service.notifications(host, device, request.query.wait_ms ?? 0, endOf(request, reply));
    return { items: items.map((item) => printedFields({ ...item })) };
  });
  app.post(`${notifications}/:notification/ack`, { schema: ack }, (request, reply) => {
    const { device, notification } = request.params;
    const ret = numberOf(request.body.ret, NOTIFY_RETURNS);
    return submit(request, reply, { op: 'ack_notification', device, notification, ret, reason: 'ack', detail: null });
  });
}
