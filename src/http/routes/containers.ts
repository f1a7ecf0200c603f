// Routes of VFIO containers: opening and closing them, their back end, and what it says about itself.

import Type from 'typebox';
import { checkExtension, listContainers, viewContainer, viewInfo } from '../../kernel/view/vfio.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { DEFAULT_PAGE } from '../limits.ts';
import { decodeCursor, numberOf } from '../parse.ts';
import { show, showPage, submit } from '../reply.ts';
import { closed, Id, Int, Names, PageOf, PageQuery, Path, ReplyOf, UINT_MAX } from '../schema.ts';
import { Container, Info } from '../views/vfio.ts';

/** VFIO_TYPE1_IOMMU and VFIO_TYPE1v2_IOMMU. */
export const IOMMU_TYPES = { TYPE1: 1, TYPE1v2: 3 };
/** Bytes that hold every capability of VFIO_IOMMU_GET_INFO. */
const INFO_ARGSZ = 4096;

const container = { host: Path.host, container: Path.container };
const example = {
  id: 'vfio0',
  fd_open: true,
  iommu_type: 'TYPE1v2',
  dma_avail: 65535,
  groups: ['26'],
  notifiers: [],
  dirty_page_tracking: false,
  dead: null,
};

const put = describe({
  operationId: 'put_container',
  tag: 'containers',
  summary: 'Open a container',
  description: 'open("/dev/vfio/vfio"). A closed id can be used again once its iommu object is gone.',
  does: 'command',
  params: container,
  body: closed({}),
  bodyExample: {},
  success: [
    {
      status: 201,
      description: 'Open',
      schema: ReplyOf({ id: Type.String() }),
      example: { ret: 0, id: 'vfio1', seq: 13 },
    },
    { status: 200, description: 'Open already: nothing changed', example: { ret: 0, id: 'vfio1', seq: 14 } },
  ],
  refusals: ['EBADF', 'ENOSPC', 'EIO'],
  refusalExample: { errno: 'EBADF', detail: "container 'vfio1': its file descriptor is closed" },
});

const list = describe({
  operationId: 'list_containers',
  tag: 'containers',
  summary: 'Containers of a host',
  description: 'All containers, by id.',
  does: 'read',
  params: { host: Path.host },
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of containers',
      schema: PageOf(Container),
      example: { items: [example], next_cursor: null },
    },
  ],
  refusalExample: { errno: 'NOT_FOUND', detail: "no host 'h9'" },
});

const get = describe({
  operationId: 'get_container',
  tag: 'containers',
  summary: 'One container',
  description: 'Its back end, groups, notifier chain, and the BUG that killed it if one did.',
  does: 'read',
  params: container,
  success: [{ status: 200, description: 'The container', schema: Container, example }],
  refusalExample: { errno: 'NOT_FOUND', detail: "no container 'vfio9'" },
});

const info = describe({
  operationId: 'get_info',
  tag: 'containers',
  summary: 'VFIO_IOMMU_GET_INFO',
  description:
    "The struct with its own field names. The capability chain is the profile's: 1 iova ranges, if groups bound them; 2 migration; 3 entries that are left. Where `argsz` does not cover it, the reply says what would.",
  does: 'read',
  params: container,
  query: {
    argsz: Type.Optional(
      Type.Integer({
        minimum: 0,
        maximum: UINT_MAX,
        default: INFO_ARGSZ,
        description: 'Bytes that the caller has room for',
      }),
    ),
  },
  success: [
    {
      status: 200,
      description: 'The struct',
      schema: Info,
      example: {
        argsz: 4096,
        flags: 3,
        iova_pgsizes: '0xfffffffffffff000',
        cap_offset: 24,
        caps: [
          {
            id: 2,
            version: 1,
            name: 'MIGRATION',
            flags: 0,
            pgsize_bitmap: '0x1000',
            max_dirty_bitmap_size: '0x10000000',
          },
          { id: 3, version: 1, name: 'DMA_AVAIL', avail: 65535 },
          { id: 1, version: 1, name: 'IOVA_RANGE', iova_ranges: [{ start: '0x0', end: '0xfedfffff' }] },
        ],
      },
    },
  ],
  refusals: ['EINVAL', 'ENOTTY', 'EBADF'],
  refusalExample: { errno: 'EINVAL', detail: 'argsz 8 is less than 16' },
});

const extension = describe({
  operationId: 'check_extension',
  tag: 'containers',
  summary: 'VFIO_CHECK_EXTENSION',
  description: 'ret is 1 for what the back end supports, 0 for what it does not.',
  does: 'read',
  params: {
    ...container,
    extension: Type.Integer({
      minimum: Number.MIN_SAFE_INTEGER,
      maximum: Number.MAX_SAFE_INTEGER,
      description: 'Extension number',
      examples: [3],
    }),
  },
  success: [
    {
      status: 200,
      description: 'Whether it is supported',
      schema: closed({ ret: Int('0 or 1') }),
      example: { ret: 1 },
    },
  ],
  refusals: ['EINVAL', 'EBADF'],
  refusalExample: { errno: 'EINVAL', detail: "container 'vfio1' has no iommu", hint: 'attach a group, then SET_IOMMU' },
});

const setIommu = describe({
  operationId: 'set_iommu',
  tag: 'containers',
  summary: 'VFIO_SET_IOMMU',
  description:
    'Chooses the back end of a container that has a group. There is no way back but removing the last group.',
  does: 'command',
  params: container,
  body: closed({
    type: Type.Union([Names(['TYPE1', 'TYPE1v2'], 'By name'), Int('By number')], {
      description: 'TYPE1 (1), TYPE1v2 (3), or any number',
    }),
    task: Type.Optional(Id('Caller', 'qemu')),
  }),
  bodyExample: { type: 'TYPE1v2' },
  success: [{ status: 200, description: 'Set', schema: ReplyOf({}), example: { ret: 0, seq: 15 } }],
  refusals: ['EINVAL', 'ENODEV', 'EPERM', 'EBADF', 'EDEADLK', 'EIO'],
  refusalExample: { errno: 'EINVAL', detail: "container 'vfio0' has an iommu already: type 3" },
});

const close = describe({
  operationId: 'close_container',
  tag: 'containers',
  summary: 'Close a container file descriptor',
  description: 'The iommu object lives on until the last group leaves; until then the id answers EBADF.',
  does: 'command',
  params: container,
  body: closed({
    notify_only: Type.Optional(
      Type.Boolean({
        description: 'The back end is told of the close, and ioctls are taken all the same (default false)',
      }),
    ),
  }),
  bodyExample: {},
  success: [{ status: 200, description: 'Closed', schema: ReplyOf({}), example: { ret: 0, seq: 16 } }],
  refusals: ['EBADF', 'EIO'],
  refusalExample: { errno: 'EBADF', detail: "container 'vfio0': its file descriptor is closed" },
});

export function containerRoutes(app: Api): void {
  const all = '/v1/hosts/:host/containers';
  const one = `${all}/:container`;
  app.put(one, { schema: put }, (request, reply) =>
    submit(request, reply, { op: 'put_container', container: request.params.container }),
  );
  app.get(all, { schema: list }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    const after = decodeCursor(cursor, 'string');
    return showPage(request, (host) => listContainers(host, after, limit));
  });
  app.get(one, { schema: get }, (request) => show(request, (host) => viewContainer(host, request.params.container)));
  app.get(`${one}/info`, { schema: info }, (request) => {
    const { argsz = INFO_ARGSZ } = request.query;
    return show(request, (host) => viewInfo(host, request.params.container, argsz));
  });
  app.get(`${one}/extensions/:extension`, { schema: extension }, (request) => {
    const { container, extension } = request.params;
    return show(request, (host) => checkExtension(host, container, extension));
  });
  app.post(`${one}/set_iommu`, { schema: setIommu }, (request, reply) => {
    const { type, task = null } = request.body;
    return submit(request, reply, {
      op: 'set_iommu',
      container: request.params.container,
      type: numberOf(type, IOMMU_TYPES),
      task,
    });
  });
  app.post(`${one}/close`, { schema: close }, (request, reply) =>
    submit(request, reply, {
      op: 'close_container',
      container: request.params.container,
      ...(request.body.notify_only === true ? { notify_only: true } : {}),
    }),
  );
}
