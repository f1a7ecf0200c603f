// Routes of VFIO groups: their file descriptors and their binding to a container.

import Type, { type Static } from 'typebox';
import type { AddressRange } from '../../kernel/command.ts';
import { listGroups, viewGroup } from '../../kernel/view/vfio.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { DEFAULT_PAGE, MAX_RANGES } from '../limits.ts';
import { decodeCursor, u64 } from '../parse.ts';
import { show, showPage, submit } from '../reply.ts';
import { closed, Id, Names, PageOf, PageQuery, Path, ReplyOf, U64 } from '../schema.ts';
import { Group } from '../views/vfio.ts';

const group = { host: Path.host, group: Path.group };
const example = {
  id: '26',
  kind: 'mdev',
  fd_open: true,
  container: 'vfio0',
  container_users: 2,
  devices: ['mdev0'],
  notifiers: [],
};

export const Range = closed({ start: U64('First byte'), last: U64('Last byte') });
const rangeOf = ({ start, last }: Static<typeof Range>): AddressRange => ({ start: u64(start), last: u64(last) });

const put = describe({
  operationId: 'put_group',
  tag: 'groups',
  summary: 'Make a group and open it',
  description:
    'Open. `mdev`: a group of mediated devices. `iommu`: one behind an IOMMU, whose domain pins whatever is mapped; its reserved regions and its aperture bound the iovas of the container, in profiles that look at them. `noiommu`: one of devices without an IOMMU, which wants CAP_SYS_RAWIO, shares its container with no other kind, and maps and pins nothing; its iommu type is 8.',
  does: 'command',
  params: group,
  body: closed({
    kind: Type.Optional(Names(['mdev', 'iommu', 'noiommu'], 'Kind of its devices (default mdev)')),
    reserved: Type.Optional(
      Type.Array(Range, {
        maxItems: MAX_RANGES,
        description: 'iova ranges that can not be mapped (default of an iommu group: 0xfee00000 to 0xfeefffff)',
      }),
    ),
    aperture: Type.Optional(closed(Range.properties, { description: 'iova range of its IOMMU (default: 48 bits)' })),
  }),
  bodyExample: { kind: 'iommu', reserved: [{ start: '0xfee00000', last: '0xfeefffff' }] },
  success: [
    {
      status: 201,
      description: 'Made',
      schema: ReplyOf({ id: Type.String() }),
      example: { ret: 0, id: '27', seq: 17 },
    },
    { status: 200, description: 'Exists with the same body: nothing changed', example: { ret: 0, id: '27', seq: 18 } },
  ],
  refusals: ['EEXIST', 'EINVAL', 'E2BIG', 'ENOSPC'],
  refusalExample: {
    errno: 'EEXIST',
    detail: "group '27' exists with kind mdev, reserved , aperture 0x0-0xffffffffffff",
  },
});

const list = describe({
  operationId: 'list_groups',
  tag: 'groups',
  summary: 'Groups of a host',
  description: 'All groups, by id.',
  does: 'read',
  params: { host: Path.host },
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of groups',
      schema: PageOf(Group),
      example: { items: [example], next_cursor: null },
    },
  ],
  refusalExample: { errno: 'NOT_FOUND', detail: "no host 'h9'" },
});

const get = describe({
  operationId: 'get_group',
  tag: 'groups',
  summary: 'One group',
  description: 'Its binding, its users and its devices.',
  does: 'read',
  params: group,
  success: [{ status: 200, description: 'The group', schema: Group, example }],
  refusalExample: { errno: 'NOT_FOUND', detail: "no group '99'" },
});

const open = describe({
  operationId: 'open_group',
  tag: 'groups',
  summary: 'Open a group file descriptor',
  description: 'A group is open once at a time. A noiommu group refuses a `task` without CAP_SYS_RAWIO.',
  does: 'command',
  params: group,
  body: closed({ task: Type.Optional(Id('Caller', 'qemu')) }),
  bodyExample: {},
  success: [{ status: 200, description: 'Open', schema: ReplyOf({}), example: { ret: 0, seq: 19 } }],
  refusals: ['EPERM', 'EBUSY', 'EIO'],
  refusalExample: { errno: 'EBUSY', detail: "group '26' is open already" },
});

const close = describe({
  operationId: 'close_group',
  tag: 'groups',
  summary: 'Close a group file descriptor',
  description: 'With devices open, the binding to the container lives until the last of them closes.',
  does: 'command',
  params: group,
  body: closed({}),
  bodyExample: {},
  success: [{ status: 200, description: 'Closed', schema: ReplyOf({}), example: { ret: 0, seq: 20 } }],
  refusals: ['EBADF', 'EDEADLK', 'EIO'],
  refusalExample: { errno: 'EBADF', detail: "group '26': its file descriptor is closed" },
});

const set = describe({
  operationId: 'set_container',
  tag: 'groups',
  summary: 'VFIO_GROUP_SET_CONTAINER',
  description:
    'Binds the group to a container. The first iommu group of a container with mappings replays them: it pins all that is mapped, for `task` where it is given. While a vaddr is invalid the replay waits, or is refused, as the profile does.',
  does: 'command',
  waits: true,
  params: group,
  body: closed({ container: Id('Container', 'vfio0'), task: Type.Optional(Id('Caller', 'qemu')) }),
  bodyExample: { container: 'vfio0' },
  success: [{ status: 200, description: 'Bound', schema: ReplyOf({}), example: { ret: 0, seq: 21 } }],
  refusals: ['EINVAL', 'EPERM', 'EBADF', 'EBUSY', 'EFAULT', 'ENOMEM', 'EINTR', 'ESRCH', 'ENODEV', 'EDEADLK', 'EIO'],
  refusalExample: { errno: 'EINVAL', detail: "group '26' is bound to container 'vfio0' already" },
});

const unset = describe({
  operationId: 'unset_container',
  tag: 'groups',
  summary: 'VFIO_GROUP_UNSET_CONTAINER',
  description: 'Removes the binding. The last group takes the iommu object with it: mappings go, pins in them leak.',
  does: 'command',
  params: group,
  body: closed({}),
  bodyExample: {},
  success: [{ status: 200, description: 'Unbound', schema: ReplyOf({}), example: { ret: 0, seq: 22 } }],
  refusals: ['EBUSY', 'EINVAL', 'EBADF', 'EDEADLK', 'EIO'],
  refusalExample: { errno: 'EBUSY', detail: "group '26' has 1 open device" },
});

export function groupRoutes(app: Api): void {
  const all = '/v1/hosts/:host/groups';
  const one = `${all}/:group`;
  app.put(one, { schema: put }, (request, reply) => {
    const { kind = 'mdev', reserved, aperture } = request.body;
    return submit(request, reply, {
      op: 'put_group',
      group: request.params.group,
      kind,
      ...(reserved === undefined ? {} : { reserved: reserved.map(rangeOf) }),
      ...(aperture === undefined ? {} : { aperture: rangeOf(aperture) }),
    });
  });
  app.get(all, { schema: list }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    const after = decodeCursor(cursor, 'string');
    return showPage(request, (host) => listGroups(host, after, limit));
  });
  app.get(one, { schema: get }, (request) => show(request, (host) => viewGroup(host, request.params.group)));
  app.post(`${one}/open`, { schema: open }, (request, reply) =>
    submit(request, reply, { op: 'open_group', group: request.params.group, ...request.body }),
  );
  app.post(`${one}/close`, { schema: close }, (request, reply) =>
    submit(request, reply, { op: 'close_group', group: request.params.group }),
  );
  app.post(`${one}/set_container`, { schema: set }, (request, reply) => {
    const { container, task = null } = request.body;
    return submit(request, reply, { op: 'set_container', group: request.params.group, container, task });
  });
  app.post(`${one}/unset_container`, { schema: unset }, (request, reply) =>
    submit(request, reply, { op: 'unset_container', group: request.params.group }),
  );
}
