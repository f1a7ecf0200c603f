// Routes of mediated devices.

import Type, { type Static } from 'typebox';
import type { Command } from '../../kernel/command.ts';
import { listDevices, viewDevice } from '../../kernel/view/vfio.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { DEFAULT_PAGE } from '../limits.ts';
import { NotifierBody, notifierOf } from '../notifier-spec.ts';
import { decodeCursor } from '../parse.ts';
import { show, showPage, submit } from '../reply.ts';
import { Count, closed, Id, Nullable, PageOf, PageQuery, Path, ReplyOf } from '../schema.ts';
import { Device } from '../views/vfio.ts';

const device = { host: Path.host, device: Path.device };
const example = { id: 'mdev0', group: '26', container: 'vfio0', open: true, open_count: 1 };

const InGroup = closed({
  group: Nullable(Id('Its group', '26'), 'null: a device that belongs to no vfio group'),
  dma_unmap: Type.Optional(
    Type.Boolean({ description: 'false: its driver has no dma_unmap op and never gets one (6.0 and later)' }),
  ),
});
const InContainer = closed({
  container: Id('Container to be in; made with TYPE1v2 when missing', 'vfio0'),
  notifier: Type.Optional(NotifierBody),
});

const put = describe({
  operationId: 'put_device',
  tag: 'devices',
  summary: 'Make a device',
  description:
    'With `group`: a closed device in that group. With `container`: the shortcut that makes what is missing (container, an mdev group named after the device), attaches it, registers the notifier and opens the device.',
  does: 'command',
  params: device,
  body: Type.Union([InGroup, InContainer]),
  bodyExample: { container: 'vfio0', notifier: { id: 'n1', events: ['DMA_UNMAP'], delivery: { kind: 'poll' } } },
  success: [
    {
      status: 201,
      description: 'Made',
      schema: ReplyOf({
        id: Type.String(),
        container: Type.Optional(Type.String()),
        group: Type.Optional(Nullable(Type.String(), 'Its group')),
        notifier: Type.Optional(Nullable(Type.String(), 'The block that was registered')),
      }),
      example: { ret: 0, id: 'mdev1', container: 'vfio0', group: 'mdev1', notifier: 'n1', seq: 9 },
    },
    {
      status: 200,
      description: 'Exists with the same body: nothing changed',
      example: { ret: 0, id: 'mdev1', container: 'vfio0', group: 'mdev1', seq: 10 },
    },
  ],
  refusals: ['EEXIST', 'ENOSPC', 'EINVAL', 'EPERM', 'EBADF', 'EDEADLK', 'EBUSY', 'EOPNOTSUPP', 'EIO'],
  refusalExample: { errno: 'EEXIST', detail: "device 'mdev0' exists with another body" },
});

const list = describe({
  operationId: 'list_devices',
  tag: 'devices',
  summary: 'Devices of a host',
  description: 'All devices, by id.',
  does: 'read',
  params: { host: Path.host },
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of devices',
      schema: PageOf(Device),
      example: { items: [example], next_cursor: null },
    },
  ],
  refusalExample: { errno: 'NOT_FOUND', detail: "no host 'h9'" },
});

const get = describe({
  operationId: 'get_device',
  tag: 'devices',
  summary: 'One device',
  description: 'Its group, the container behind it, and whether it is open.',
  does: 'read',
  params: device,
  success: [{ status: 200, description: 'The device', schema: Device, example }],
  refusalExample: { errno: 'NOT_FOUND', detail: "no device 'mdev9'" },
});

const OpenCount = ReplyOf({ open_count: Count('Open file descriptors after the call') });

const open = describe({
  operationId: 'open_device',
  tag: 'devices',
  summary: 'VFIO_GROUP_GET_DEVICE_FD',
  description:
    'Opens the device once more. Its group must be bound to a container with an iommu. From 6.0 on its driver is told of unmaps while it is open; opening it while an unmap tells the others would deadlock.',
  does: 'command',
  params: device,
  body: closed({}),
  bodyExample: {},
  success: [{ status: 200, description: 'Open', schema: OpenCount, example: { ret: 0, open_count: 1, seq: 11 } }],
  refusals: ['EINVAL', 'ENODEV', 'EBADF', 'EDEADLK', 'EIO'],
  refusalExample: { errno: 'EBADF', detail: "group '26': its file descriptor is closed" },
});

const close = describe({
  operationId: 'close_device',
  tag: 'devices',
  summary: 'Close a device file descriptor',
  description: "What a driver cleans up in its close callback is the caller's business: nothing is unpinned here.",
  does: 'command',
  params: device,
  body: closed({}),
  bodyExample: {},
  success: [
    { status: 200, description: 'Closed once', schema: OpenCount, example: { ret: 0, open_count: 0, seq: 12 } },
  ],
  refusals: ['EBADF', 'EDEADLK', 'EIO'],
  refusalExample: { errno: 'EBADF', detail: "device 'mdev0' is not open" },
});

const putCommand = (device: string, body: Static<typeof InGroup> | Static<typeof InContainer>): Command =>
  'group' in body
    ? {
        op: 'put_device',
        device,
        group: body.group,
        ...(body.dma_unmap === undefined ? {} : { dma_unmap: body.dma_unmap }),
      }
    : {
        op: 'put_device_in_container',
        device,
        container: body.container,
        notifier: body.notifier === undefined ? null : notifierOf(body.notifier),
      };

export function deviceRoutes(app: Api): void {
  const all = '/v1/hosts/:host/devices';
  app.put(`${all}/:device`, { schema: put }, (request, reply) =>
    submit(request, reply, putCommand(request.params.device, request.body)),
  );
  app.get(all, { schema: list }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    const after = decodeCursor(cursor, 'string');
    return showPage(request, (host) => listDevices(host, after, limit));
  });
  app.get(`${all}/:device`, { schema: get }, (request) => {
    const { device } = request.params;
    return show(request, (host) => viewDevice(host, device));
  });
  app.post(`${all}/:device/open`, { schema: open }, (request, reply) =>
    submit(request, reply, { op: 'open_device', device: request.params.device }),
  );
  app.post(`${all}/:device/close`, { schema: close }, (request, reply) =>
    submit(request, reply, { op: 'close_device', device: request.params.device }),
  );
}
