// Routes of vhost devices: who owns one, where its rings are, and what its worker does with them.

import Type from 'typebox';
import type { ErrnoName } from '../../kernel/errno.ts';
import { VIRTIO_F_ACCESS_PLATFORM, VIRTIO_RING_F_EVENT_IDX } from '../../kernel/vhost/device.ts';
import type { Switches } from '../../kernel/vhost/rules.ts';
import { listVhostDevs, listVqs, viewVhostDev, viewVhostMaps, viewVq } from '../../kernel/view/vhost.ts';
import type { Api } from '../api.ts';
import { describe, type Success } from '../describe.ts';
import { DEFAULT_PAGE } from '../limits.ts';
import { decodeCursor, int, mask, u64 } from '../parse.ts';
import { show, showPage, submit } from '../reply.ts';
import {
  Base64,
  CInt,
  Count,
  closed,
  Flags,
  Id,
  Int,
  Nullable,
  PageOf,
  PageQuery,
  Path,
  ReplyOf,
  StopAt,
  U64,
  U64Out,
} from '../schema.ts';
import { bool, str } from '../views/fields.ts';
import {
  AreaName,
  SwitchesBody,
  Variant,
  VhostDevView,
  VhostMapView,
  VqView,
  vhostDevExample,
  vhostMapExample,
  vqExample,
} from '../views/vhost.ts';

const dev = { host: Path.host, dev: Path.vhostDev };
const vq = { ...dev, vq: Path.vq };
const task = Id('Task that calls', 'qemu');
const CALLER: readonly ErrnoName[] = ['ENODEV', 'ESRCH', 'EPERM', 'EDEADLK', 'EBUSY'];
const notOwner = { errno: 'EPERM', detail: "task 'qemu' does not own vhost device 'v0'" } as const;
const noDevice = { errno: 'NOT_FOUND', detail: "no vhost device 'v9'" } as const;
const FEATURES = { EVENT_IDX: VIRTIO_RING_F_EVENT_IDX, ACCESS_PLATFORM: VIRTIO_F_ACCESS_PLATFORM };

/** Beyond 32 bits, so sums instead of a mask. */
export const featureBits = (value: readonly (keyof typeof FEATURES)[] | number): number =>
  typeof value === 'number' ? int(value) : [...new Set(value)].reduce((sum, name) => sum + FEATURES[name], 0);

export const VhostFeatures = Flags(
  ['EVENT_IDX', 'ACCESS_PLATFORM'],
  'EVENT_IDX makes the rings two bytes longer; with ACCESS_PLATFORM their addresses go through a device IOTLB (here one to one), and nothing is mapped',
);

const put = describe({
  operationId: 'put_vhost_dev',
  tag: 'vhost',
  summary: 'Open a vhost device',
  description:
    'A device that nobody owns yet. `variant` is the version of the feature that maps the metadata of rings into the kernel; `switches` turns single defects on or off. Compared with the body it was opened with: the same again is 200.',
  does: 'command',
  params: dev,
  body: closed({
    variant: Type.Optional(Variant),
    nvqs: Type.Optional(CInt('Virtqueues; default 2')),
    switches: Type.Optional(SwitchesBody),
  }),
  bodyExample: { variant: 'fixed', nvqs: 2 },
  success: [
    { status: 201, description: 'Open', schema: ReplyOf({ id: str('Id') }), example: { ret: 0, id: 'v0', seq: 5 } },
    { status: 200, description: 'It was open with this body', example: { ret: 0, id: 'v0', seq: 6 } },
  ],
  refusals: ['ENODEV', 'EOPNOTSUPP', 'EINVAL', 'EEXIST', 'ENOSPC'],
  refusalExample: { errno: 'ENODEV', detail: 'vhost of 4.10.0 maps no metadata of rings' },
});

const list = describe({
  operationId: 'list_vhost_devs',
  tag: 'vhost',
  summary: 'vhost devices',
  description: 'By id.',
  does: 'read',
  params: { host: Path.host },
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of devices',
      schema: PageOf(VhostDevView),
      example: { items: [vhostDevExample], next_cursor: null },
    },
  ],
});

const get = describe({
  operationId: 'get_vhost_dev',
  tag: 'vhost',
  summary: 'One vhost device',
  description: 'Its switches, its owner, who is inside one of its maps now.',
  does: 'read',
  params: dev,
  success: [{ status: 200, description: 'The device', schema: VhostDevView, example: vhostDevExample }],
  refusals: ['ENODEV', 'EBADF'],
  refusalExample: noDevice,
});

const setOwner = describe({
  operationId: 'vhost_set_owner',
  tag: 'vhost',
  summary: 'VHOST_SET_OWNER',
  description:
    "The rings lie in the caller's address space from now on; the device's notifier is registered first. EINTR where a signal is pending.",
  does: 'command',
  waits: true,
  params: dev,
  body: closed({ task, stop_at: StopAt }),
  bodyExample: { task: 'qemu' },
  success: [
    {
      status: 200,
      description: 'Owned',
      schema: ReplyOf({ id: str('Id'), notifier: str('Its notifier'), mm: str('Address space') }),
      example: { ret: 0, id: 'v0', notifier: 'vhost-v0', mm: 'mm-1', seq: 7 },
    },
  ],
  refusals: ['ENODEV', 'ESRCH', 'EINTR', 'ENOSPC', 'EBADF', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'EBUSY', detail: "vhost device 'v0' has an owner" },
});

const setFeatures = describe({
  operationId: 'vhost_set_features',
  tag: 'vhost',
  summary: 'VHOST_SET_FEATURES',
  description: 'The areas change their sizes with the next set_num or set_addr.',
  does: 'command',
  waits: true,
  params: dev,
  body: closed({ task, features: VhostFeatures }),
  bodyExample: { task: 'qemu', features: ['EVENT_IDX'] },
  success: [
    {
      status: 200,
      description: 'Set',
      schema: ReplyOf({ id: str('Id'), features: Count('Feature bits') }),
      example: { ret: 0, id: 'v0', features: 536870912, seq: 8 },
    },
  ],
  refusals: [...CALLER, 'EOPNOTSUPP', 'EBADF'],
  refusalExample: notOwner,
});

const close = describe({
  operationId: 'close_vhost_dev',
  tag: 'vhost',
  summary: 'Close a vhost device',
  description:
    'vhost_dev_cleanup(): the maps go first, the notifier is unregistered late. The id can be used again. EBUSY while a call of the device is under way.',
  does: 'command',
  waits: true,
  params: dev,
  body: closed({}),
  bodyExample: {},
  success: [
    {
      status: 200,
      description: 'Closed',
      schema: ReplyOf({ id: str('Id'), leaked_maps: Count('Structures of maps that are never freed') }),
      example: { ret: 0, id: 'v0', leaked_maps: 0, seq: 20 },
    },
  ],
  refusals: ['ENODEV', 'EBADF', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'EBUSY', detail: "vhost device 'v0': 1 calls are under way" },
});

const listOfVqs = describe({
  operationId: 'list_vhost_vqs',
  tag: 'vhost',
  summary: 'Virtqueues of a vhost device',
  description: 'By number.',
  does: 'read',
  params: dev,
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of virtqueues',
      schema: PageOf(VqView),
      example: { items: [vqExample], next_cursor: null },
    },
  ],
  refusals: ['ENODEV', 'EBADF'],
  refusalExample: noDevice,
});

const getVq = describe({
  operationId: 'get_vhost_vq',
  tag: 'vhost',
  summary: 'One virtqueue',
  description: 'Where its areas are, which of them is mapped, how many invalidations it counts.',
  does: 'read',
  params: vq,
  success: [{ status: 200, description: 'The virtqueue', schema: VqView, example: vqExample }],
  refusals: ['ENODEV', 'EBADF'],
  refusalExample: noDevice,
});

const maps = describe({
  operationId: 'list_vhost_maps',
  tag: 'vhost',
  summary: 'Maps of a virtqueue',
  description: "The kernel's addresses of its areas, and the pages behind them. At most one of each area.",
  does: 'read',
  params: vq,
  success: [
    {
      status: 200,
      description: 'The maps that are published',
      schema: closed({ items: Type.Array(VhostMapView) }),
      example: { items: [vhostMapExample] },
    },
  ],
  refusals: ['ENODEV', 'EBADF'],
  refusalExample: noDevice,
});

const ring: Success = {
  status: 200,
  description: 'Set',
  schema: ReplyOf({
    id: str('Device'),
    vq: Count('Virtqueue'),
    num: Count('Entries'),
    desc: U64Out('Address'),
    avail: U64Out('Address'),
    used: U64Out('Address'),
  }),
  example: {
    ret: 0,
    id: 'v0',
    vq: 0,
    num: 8,
    desc: '0x7f0000000000',
    avail: '0x7f0000001000',
    used: '0x7f0000002000',
    seq: 9,
  },
};

const setNum = describe({
  operationId: 'vhost_set_vring_num',
  tag: 'vhost',
  summary: 'VHOST_SET_VRING_NUM',
  description:
    'Entries of a ring: a power of two up to 0x8000, and no backend. All maps of the virtqueue go; as merged, the notifier is unregistered meanwhile (phase `after_unregister`).',
  does: 'command',
  waits: true,
  params: vq,
  body: closed({ task, num: Int('Entries'), stop_at: StopAt }),
  bodyExample: { task: 'qemu', num: 8 },
  success: [ring],
  refusals: [...CALLER, 'EINVAL', 'EINTR', 'EBADF'],
  refusalExample: notOwner,
});

const setAddr = describe({
  operationId: 'vhost_set_vring_addr',
  tag: 'vhost',
  summary: 'VHOST_SET_VRING_ADDR',
  description:
    'Where the three areas of a ring are: avail aligned to 2 bytes, used to 4. With a backend they must lie below TASK_SIZE; nobody looks whether anything is there. All maps of the virtqueue go.',
  does: 'command',
  waits: true,
  params: vq,
  body: closed({
    task,
    flags: Type.Optional(Flags(['LOG'], 'VHOST_VRING_F_; default: none')),
    desc: U64('Address of the descriptor table'),
    avail: U64('Address of the available ring'),
    used: U64('Address of the used ring'),
    stop_at: StopAt,
  }),
  bodyExample: { task: 'qemu', desc: '0x7f0000000000', avail: '0x7f0000001000', used: '0x7f0000002000' },
  success: [ring],
  refusals: [...CALLER, 'EOPNOTSUPP', 'EINVAL', 'EINTR', 'EBADF'],
  refusalExample: notOwner,
});

const setBackend = describe({
  operationId: 'vhost_set_backend',
  tag: 'vhost',
  summary: 'VHOST_NET_SET_BACKEND',
  description: 'Attaches the virtqueue to a backend, or takes it off: only with one does a round do anything.',
  does: 'command',
  waits: true,
  params: vq,
  body: closed({ task, active: Type.Boolean({ description: 'Attached or not' }) }),
  bodyExample: { task: 'qemu', active: true },
  success: [
    {
      status: 200,
      description: 'Set',
      schema: ReplyOf({ id: str('Device'), vq: Count('Virtqueue'), backend: bool('Attached') }),
      example: { ret: 0, id: 'v0', vq: 0, backend: true, seq: 10 },
    },
  ],
  refusals: [...CALLER, 'EFAULT', 'EBADF'],
  refusalExample: notOwner,
});

const round = describe({
  operationId: 'vhost_round',
  tag: 'vhost',
  summary: 'One round of the worker',
  description:
    'First every area that is not mapped is tried: a fast lookup that never faults, of which no reference is kept; a failure is silent. Then the available buffers are taken and given back, through the maps or by copy. Without a backend nothing happens.',
  does: 'command',
  waits: true,
  params: vq,
  body: closed({ stop_at: StopAt }),
  bodyExample: {},
  success: [
    {
      status: 200,
      description: 'Done',
      schema: ReplyOf({
        ran: bool('There was a backend'),
        heads: Type.Array(Count('Descriptor'), { description: 'Buffers taken and given back' }),
        copies: Count('Accesses without a map'),
        prefetch: Type.Record(Type.String(), Nullable(Int('0 or an errno'), 'Of each area: mapped, or why not')),
      }),
      example: { ret: 0, ran: true, heads: [], copies: 0, prefetch: { desc: 0, avail: 0, used: -14 }, seq: 11 },
    },
  ],
  refusals: ['ENODEV', 'EINVAL', 'EFAULT', 'ENOMEM', 'EBADF', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'EFAULT', detail: 'avail->idx is 20 ahead of 0, the ring has 8' },
});

const access = describe({
  operationId: 'vhost_access',
  tag: 'vhost',
  summary: 'The worker reads or writes a ring',
  description:
    "Bytes of one area: through the kernel's address where there is a map, which cannot fail; otherwise as copy_from_user() or copy_to_user(), which fault. `stop_at` `inside_map` leaves the worker inside the map: a start that takes it away has to wait.",
  does: 'command',
  waits: true,
  params: vq,
  body: closed({
    area: AreaName,
    off: CInt('First byte of the area'),
    write: Type.Boolean({ description: 'Write or read' }),
    length: Type.Optional(CInt('Bytes to read')),
    data: Type.Optional(Base64('Bytes to write')),
    stop_at: StopAt,
  }),
  bodyExample: { area: 'used', off: 2, write: true, data: 'AQA=' },
  success: [
    {
      status: 200,
      description: 'Done',
      schema: ReplyOf({
        through: str('`map` or `copy`'),
        data: Type.Optional(Base64('What was read')),
      }),
      example: { ret: 0, through: 'map', seq: 12 },
    },
  ],
  refusals: ['ENODEV', 'EPERM', 'EINVAL', 'EFAULT', 'ENOMEM', 'EBADF', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'EFAULT', detail: "the used area at 2 can't be written: SIGSEGV" },
});

export function vhostDevRoutes(app: Api): void {
  const all = '/v1/hosts/:host/vhost_devs';
  const one = `${all}/:dev`;
  const vqs = `${one}/vqs`;
  app.put(one, { schema: put }, (request, reply) => {
    const { variant = 'fixed', nvqs = 2 } = request.body;
    const switches = (request.body.switches ?? {}) as Partial<Switches>;
    return submit(request, reply, { op: 'put_vhost_dev', dev: request.params.dev, variant, nvqs: int(nvqs), switches });
  });
  app.get(all, { schema: list }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    return showPage(request, (host) => listVhostDevs(host, decodeCursor(cursor, 'string'), limit));
  });
  app.get(one, { schema: get }, (request) => show(request, (host) => viewVhostDev(host, request.params.dev)));
  app.post(`${one}/set_owner`, { schema: setOwner }, (request, reply) =>
    submit(request, reply, { op: 'vhost_set_owner', dev: request.params.dev, ...request.body }),
  );
  app.post(`${one}/set_features`, { schema: setFeatures }, (request, reply) => {
    const { task, features } = request.body;
    const { dev } = request.params;
    return submit(request, reply, { op: 'vhost_set_features', dev, task, features: featureBits(features) });
  });
  app.post(`${one}/close`, { schema: close }, (request, reply) =>
    submit(request, reply, { op: 'close_vhost_dev', dev: request.params.dev }),
  );
  app.get(vqs, { schema: listOfVqs }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    return showPage(request, (host) => listVqs(host, request.params.dev, decodeCursor(cursor, 'number'), limit));
  });
  app.get(`${vqs}/:vq`, { schema: getVq }, (request) => {
    const { dev, vq } = request.params;
    return show(request, (host) => viewVq(host, dev, vq));
  });
  app.get(`${vqs}/:vq/maps`, { schema: maps }, (request) => {
    const { dev, vq } = request.params;
    return show(request, (host) => viewVhostMaps(host, dev, vq));
  });
  ringRoutes(app, `${vqs}/:vq`);
}

const VRING_FLAGS = { LOG: 1 };

const vqOf = ({ params: { dev, vq } }: { params: { dev: string; vq: number } }) => ({ dev, vq });

function ringRoutes(app: Api, vq: string): void {
  app.put(`${vq}/num`, { schema: setNum }, (request, reply) => {
    const { num, ...body } = request.body;
    return submit(request, reply, { op: 'vhost_set_vring_num', ...vqOf(request), num: int(num), ...body });
  });
  app.put(`${vq}/addr`, { schema: setAddr }, (request, reply) => {
    const { flags = 0, desc, avail, used, ...body } = request.body;
    const at = { desc: u64(desc), avail: u64(avail), used: u64(used) };
    const bits = mask(flags, VRING_FLAGS);
    return submit(request, reply, { op: 'vhost_set_vring_addr', ...vqOf(request), flags: bits, ...at, ...body });
  });
  app.put(`${vq}/backend`, { schema: setBackend }, (request, reply) =>
    submit(request, reply, { op: 'vhost_set_backend', ...vqOf(request), ...request.body }),
  );
  app.post(`${vq}/rounds`, { schema: round }, (request, reply) =>
    submit(request, reply, { op: 'vhost_round', ...vqOf(request), ...request.body }),
  );
  app.post(`${vq}/access`, { schema: access }, (request, reply) => {
    const { off, ...body } = request.body;
    return submit(request, reply, { op: 'vhost_access', ...vqOf(request), off: int(off), ...body });
  });
}
