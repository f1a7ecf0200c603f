// Routes of devices that can have pages of a process to themselves: opening them, grants, and what they map and touch.

import Type from 'typebox';
import type { ErrnoName } from '../../kernel/errno.ts';
import {
  listDeviceMappings,
  listExclusiveDevices,
  listGrants,
  viewExclusiveDevice,
  viewGrant,
} from '../../kernel/view/exclusive.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { DEFAULT_PAGE } from '../limits.ts';
import { decodeCursor, u64 } from '../parse.ts';
import { show, showPage, submit } from '../reply.ts';
import { Base64, Count, closed, Id, Nullable, PageOf, PageQuery, Path, ReplyOf, StopAt, U64 } from '../schema.ts';
import {
  DeviceKind,
  DeviceMappingView,
  deviceMappingExample,
  ExclusiveDeviceFields,
  ExclusiveDeviceView,
  exclusiveDeviceExample,
  exclusiveDeviceReply,
  GrantView,
  grantExample,
  MirroredPages,
  Slots,
  slotsExample,
} from '../views/exclusive.ts';
import { bool, str } from '../views/fields.ts';

const device = { host: Path.host, device: Path.exclusiveDevice };
const grant = { ...device, grant: Path.grant };
const noDevice = { errno: 'NOT_FOUND', detail: "no exclusive device 'gpu9'" } as const;
const noGrant = { errno: 'NOT_FOUND', detail: "no grant of exclusive device 'gpu0' 'g9'" } as const;
const range = { start: U64('First byte, page aligned'), length: U64('Bytes, whole pages') };
const rangeExample = { start: '0x7f0000000000', length: '0x1000' };
const CALL: readonly ErrnoName[] = ['ENODEV', 'ESRCH', 'EINVAL', 'E2BIG', 'EBUSY', 'EDEADLK'];
/** As the test driver of HMM watches: all pages but the last. */
const ALL = 0xfffffffffffff000n;

const put = describe({
  operationId: 'put_exclusive_device',
  tag: 'exclusive',
  summary: 'Open a device',
  description:
    "A task opens a device that can have pages to itself; its notifier watches the task's memory from then on. An interval notifier (the default) has a sequence by which its driver sees that it has collided; with `owner_filter` (its default) the EXCLUSIVE of the device's own calls does not count. A plain one is told of everything. Compared with the body it was opened with: the same again is 200.",
  does: 'command',
  waits: true,
  params: device,
  body: closed({
    task: Id('Task', 'qemu'),
    kind: Type.Optional(DeviceKind),
    owner_filter: Type.Optional(ExclusiveDeviceFields.owner_filter),
    start: Type.Optional(U64('First byte that an interval notifier watches; default 0')),
    length: Type.Optional(U64('Bytes; default all')),
  }),
  bodyExample: { task: 'qemu' },
  success: [
    {
      status: 201,
      description: 'Open',
      schema: ReplyOf(ExclusiveDeviceFields),
      example: { ret: 0, ...exclusiveDeviceReply, seq: 5 },
    },
    { status: 200, description: 'It was open with this body', example: { ret: 0, ...exclusiveDeviceReply, seq: 6 } },
  ],
  refusals: ['ENODEV', 'ESRCH', 'EINVAL', 'EOVERFLOW', 'EEXIST', 'ENOSPC', 'ENOMEM', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'ENODEV', detail: '5.8.0 gives no page to a device alone' },
});

const list = describe({
  operationId: 'list_exclusive_devices',
  tag: 'exclusive',
  summary: 'Devices',
  description: 'By id.',
  does: 'read',
  params: { host: Path.host },
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of devices',
      schema: PageOf(ExclusiveDeviceView),
      example: { items: [exclusiveDeviceExample], next_cursor: null },
    },
  ],
});

const get = describe({
  operationId: 'get_exclusive_device',
  tag: 'exclusive',
  summary: 'One device',
  description: 'How it was opened, and how much it maps and holds.',
  does: 'read',
  params: device,
  success: [{ status: 200, description: 'The device', schema: ExclusiveDeviceView, example: exclusiveDeviceExample }],
  refusals: ['ENODEV'],
  refusalExample: noDevice,
});

const remove = describe({
  operationId: 'delete_exclusive_device',
  tag: 'exclusive',
  summary: 'Close a device',
  description:
    'Its notifier is removed, which waits until the running invalidations end; its mappings are gone. EBUSY while it holds grants or a call goes on. Entries that are exclusive stay so until somebody looks at them.',
  does: 'command',
  waits: true,
  params: device,
  success: [
    { status: 200, description: 'Closed', schema: ReplyOf({ id: str('Id') }), example: { ret: 0, id: 'gpu0', seq: 9 } },
  ],
  refusals: ['ENODEV', 'EBUSY', 'EDEADLK'],
  refusalExample: { errno: 'EBUSY', detail: "exclusive device 'gpu0' holds 1 grants" },
});

const make = describe({
  operationId: 'make_device_exclusive',
  tag: 'exclusive',
  summary: 'make_device_exclusive_range()',
  description:
    'GUP for writing, then page by page: trylock, anonymous or not, and every entry that maps the page becomes a device-exclusive one, with an EXCLUSIVE of the device each. `ret` counts what GUP has found; only the slots say what was granted. The grant holds the page lock and one reference of every granted page until it is dropped: whoever faults on one waits. Phase `after_gup`: between GUP and the walk, where pages can be replaced.',
  does: 'command',
  waits: true,
  params: device,
  body: closed({ ...range, grant: Type.Optional(Id('Id of the grant; made when absent', 'g0')), stop_at: StopAt }),
  bodyExample: { ...rangeExample, grant: 'g0' },
  success: [
    {
      status: 200,
      description: 'Pages that GUP has found',
      schema: ReplyOf({ grant: Nullable(str('Grant'), 'null: no page was granted'), slots: Slots }),
      example: { ret: 1, grant: 'g0', slots: slotsExample, seq: 7 },
    },
  ],
  refusals: [...CALL, 'EFAULT', 'ENOMEM', 'EEXIST', 'ENOSPC', 'EINTR'],
  refusalExample: { errno: 'EFAULT', detail: 'vaddr 0x7f0000000000: the area may not be written' },
});

const grants = describe({
  operationId: 'list_exclusive_grants',
  tag: 'exclusive',
  summary: 'Grants of a device',
  description: 'By id.',
  does: 'read',
  params: device,
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of grants',
      schema: PageOf(GrantView),
      example: { items: [grantExample], next_cursor: null },
    },
  ],
  refusals: ['ENODEV'],
  refusalExample: noDevice,
});

const getGrant = describe({
  operationId: 'get_exclusive_grant',
  tag: 'exclusive',
  summary: 'One grant',
  description: 'Its pages, granted or not.',
  does: 'read',
  params: grant,
  success: [{ status: 200, description: 'The grant', schema: GrantView, example: grantExample }],
  refusals: ['ENODEV'],
  refusalExample: noGrant,
});

const program = describe({
  operationId: 'map_exclusive_grant',
  tag: 'exclusive',
  summary: 'Map the granted pages for the device',
  description:
    "Under the device's mutex. With `sequence`, what `read_begin` of its notifier answered before the grant was asked for, the driver looks first whether it has collided, and maps nothing then; without, it does not look, and what it does wrong is found (`SPTE_IN_WINDOW`, `STALE_SECONDARY`). Phase `before_insert`: before the mutex is taken. `ret`: pages mapped.",
  does: 'command',
  waits: true,
  params: grant,
  body: closed({ sequence: Type.Optional(Count('What read_begin answered')), stop_at: StopAt }),
  bodyExample: {},
  success: [
    {
      status: 200,
      description: 'Mapped, or collided',
      schema: ReplyOf({ collided: bool('Something was invalidated since: nothing is mapped') }),
      example: { ret: 1, collided: false, seq: 8 },
    },
  ],
  refusals: ['ENODEV', 'ESRCH', 'EINVAL', 'ENOMEM', 'EBUSY', 'EDEADLK'],
  refusalExample: { errno: 'EBUSY', detail: "grant 'g0' of exclusive device 'gpu0' is being made" },
});

const drop = describe({
  operationId: 'drop_exclusive_grant',
  tag: 'exclusive',
  summary: 'Drop a grant',
  description:
    'unlock_page() and put_page() of every page: whoever waits goes on. From here on the next access of a CPU takes the page back.',
  does: 'command',
  params: grant,
  success: [
    { status: 200, description: 'Dropped', schema: ReplyOf({ id: str('Id') }), example: { ret: 0, id: 'g0', seq: 9 } },
  ],
  refusals: ['ENODEV', 'EBUSY'],
  refusalExample: noGrant,
});

const dmirror = describe({
  operationId: 'dmirror_exclusive',
  tag: 'exclusive',
  summary: 'HMM_DMIRROR_EXCLUSIVE',
  description:
    'What the test driver of HMM does: 64 pages at a time are made exclusive and mapped for atomic accesses under one hold of mmap_lock; locks and references are dropped at once. EBUSY where a page of a chunk was not granted; what was granted stays mapped. EINVAL once its process has ended.',
  does: 'command',
  waits: true,
  params: device,
  body: closed({ ...range, stop_at: StopAt }),
  bodyExample: rangeExample,
  success: [{ status: 200, description: 'All pages are mapped', schema: ReplyOf({}), example: { ret: 0, seq: 8 } }],
  refusals: ['ENODEV', 'EINVAL', 'E2BIG', 'ENOSPC', 'EBUSY', 'EDEADLK'],
  refusalExample: { errno: 'EBUSY', detail: 'start 0x7f0000000000: not all of 64 pages were granted' },
});

const atomic = describe({
  operationId: 'check_exclusive',
  tag: 'exclusive',
  summary: 'HMM_DMIRROR_CHECK_EXCLUSIVE',
  description:
    'Whether the device has lost its atomic mappings of all pages of a range: 0. EPERM: it may still use one of them atomically, because nobody else has looked at it.',
  does: 'command',
  params: device,
  body: closed(range),
  bodyExample: rangeExample,
  success: [{ status: 200, description: 'It has none', schema: ReplyOf({}), example: { ret: 0, seq: 8 } }],
  refusals: ['ENODEV', 'EINVAL', 'E2BIG', 'EPERM'],
  refusalExample: { errno: 'EPERM', detail: "exclusive device 'gpu0' may still use 0x7f0000000000 atomically" },
});

const mirror = describe({
  operationId: 'mirror_range',
  tag: 'exclusive',
  summary: 'hmm_range_fault()',
  description:
    'What the page table has, as the device sees it. A snapshot touches nothing: an exclusive page is not valid. With `fault` pages are brought in (an exclusive one is restored) and mapped for the device; with `write` so that it can write, EPERM where the area forbids that. A walk that collides begins again; EBUSY where it does so too often. Phases: `after_seq_snapshot`, `before_insert`. `ret`: pages that are valid.',
  does: 'command',
  waits: true,
  params: device,
  body: closed({
    ...range,
    fault: Type.Optional(Type.Boolean({ description: 'Bring pages in and map them; default false' })),
    write: Type.Optional(Type.Boolean({ description: 'The device wants to write; default false' })),
    stop_at: StopAt,
  }),
  bodyExample: { ...rangeExample, fault: true },
  success: [
    {
      status: 200,
      description: 'What was found',
      schema: ReplyOf({ pages: MirroredPages }),
      example: {
        ret: 1,
        pages: [{ addr: '0x7f0000000000', valid: true, writable: true, pfn: 1048576 }],
        seq: 8,
      },
    },
  ],
  refusals: [...CALL, 'EFAULT', 'EPERM', 'ENOMEM'],
  refusalExample: { errno: 'EPERM', detail: 'start 0x7f0000000000: the area may not be written' },
});

const access = describe({
  operationId: 'device_access',
  tag: 'exclusive',
  summary: 'The device reads or writes memory',
  description: 'Through what it has mapped, without a fault. EFAULT: it has not mapped a page, or not for that.',
  does: 'command',
  params: device,
  body: closed({
    addr: U64('First byte'),
    write: Type.Boolean({ description: 'Write or read' }),
    length: Type.Optional(U64('Bytes to read')),
    data: Type.Optional(Base64('Bytes to write')),
  }),
  bodyExample: { addr: '0x7f0000000000', write: true, data: 'AQA=' },
  success: [
    {
      status: 200,
      description: 'Done',
      schema: ReplyOf({ data: Type.Optional(Base64('What was read')) }),
      example: { ret: 0, seq: 8 },
    },
  ],
  refusals: ['ENODEV', 'EINVAL', 'E2BIG', 'EFAULT', 'ENOMEM'],
  refusalExample: { errno: 'EFAULT', detail: "exclusive device 'gpu0' has not mapped 0x7f0000000000 for reads" },
});

const mappings = describe({
  operationId: 'list_device_mappings',
  tag: 'exclusive',
  summary: 'Pages that the device has mapped',
  description: 'By address. None of them holds a reference.',
  does: 'read',
  params: device,
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of mappings',
      schema: PageOf(DeviceMappingView),
      example: { items: [deviceMappingExample], next_cursor: null },
    },
  ],
  refusals: ['ENODEV'],
  refusalExample: noDevice,
});

const rangeOf = ({ start, length }: { start: string; length: string }) => ({ start: u64(start), length: u64(length) });

export function exclusiveDeviceRoutes(app: Api): void {
  const all = '/v1/hosts/:host/exclusive_devices';
  const one = `${all}/:device`;
  app.put(one, { schema: put }, (request, reply) => {
    const { task, kind = 'interval', owner_filter = kind === 'interval', start, length } = request.body;
    const watched = { start: start === undefined ? 0n : u64(start), length: length === undefined ? ALL : u64(length) };
    const { device: id } = request.params;
    return submit(request, reply, { op: 'put_exclusive_device', device: id, task, kind, owner_filter, ...watched });
  });
  app.get(all, { schema: list }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    return showPage(request, (host) => listExclusiveDevices(host, decodeCursor(cursor, 'string'), limit));
  });
  app.get(one, { schema: get }, (request) => show(request, (host) => viewExclusiveDevice(host, request.params.device)));
  app.delete(one, { schema: remove }, (request, reply) =>
    submit(request, reply, { op: 'delete_exclusive_device', device: request.params.device }),
  );
  app.post(`${one}/exclusive`, { schema: dmirror }, (request, reply) => {
    const { start, length, ...body } = request.body;
    const { device: id } = request.params;
    return submit(request, reply, { op: 'dmirror_exclusive', device: id, ...rangeOf({ start, length }), ...body });
  });
  app.post(`${one}/atomic`, { schema: atomic }, (request, reply) =>
    submit(request, reply, { op: 'check_exclusive', device: request.params.device, ...rangeOf(request.body) }),
  );
  app.post(`${one}/mirror`, { schema: mirror }, (request, reply) => {
    const { start, length, fault = false, write = false, ...body } = request.body;
    const where = { device: request.params.device, ...rangeOf({ start, length }) };
    return submit(request, reply, { op: 'mirror_range', ...where, fault, write, ...body });
  });
  app.post(`${one}/access`, { schema: access }, (request, reply) => {
    const { addr, length, ...body } = request.body;
    const bytes = length === undefined ? {} : { length: Number(u64(length)) };
    const { device: id } = request.params;
    return submit(request, reply, { op: 'device_access', device: id, addr: u64(addr), ...bytes, ...body });
  });
  app.get(`${one}/mappings`, { schema: mappings }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    const { device: id } = request.params;
    return showPage(request, (host) => listDeviceMappings(host, id, decodeCursor(cursor, 'bigint'), limit));
  });
  grantRoutes(app, one);
}

function grantRoutes(app: Api, one: string): void {
  app.post(`${one}/ranges`, { schema: make }, (request, reply) => {
    const { start, length, ...body } = request.body;
    const { device: id } = request.params;
    return submit(request, reply, { op: 'make_device_exclusive', device: id, ...rangeOf({ start, length }), ...body });
  });
  app.get(`${one}/grants`, { schema: grants }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    const { device: id } = request.params;
    return showPage(request, (host) => listGrants(host, id, decodeCursor(cursor, 'string'), limit));
  });
  app.get(`${one}/grants/:grant`, { schema: getGrant }, (request) => {
    const { device: id, grant: name } = request.params;
    return show(request, (host) => viewGrant(host, id, name));
  });
  app.post(`${one}/grants/:grant/map`, { schema: program }, (request, reply) => {
    const { device: id, grant: name } = request.params;
    return submit(request, reply, { op: 'map_exclusive_grant', device: id, grant: name, ...request.body });
  });
  app.delete(`${one}/grants/:grant`, { schema: drop }, (request, reply) => {
    const { device: id, grant: name } = request.params;
    return submit(request, reply, { op: 'drop_exclusive_grant', device: id, grant: name });
  });
}
