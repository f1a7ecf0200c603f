// Routes of DMA mappings: MAP_DMA, UNMAP_DMA, and what is mapped and pinned.

import Type from 'typebox';
import { MAP_VADDR, READ, UNMAP_ALL, UNMAP_GET_DIRTY_BITMAP, UNMAP_VADDR, WRITE } from '../../kernel/command.ts';
import { listMappings, listPfns, viewTree } from '../../kernel/view/vfio.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { DEFAULT_PAGE, MAX_TREE_DEPTH } from '../limits.ts';
import { decodeCursor, mask, u32, u64 } from '../parse.ts';
import { show, showPage, submit } from '../reply.ts';
import { Base64, Count, closed, Flags, Id, Int, PageOf, PageQuery, Path, ReplyOf, U64, U64Out } from '../schema.ts';
import { Mapping, PfnRecord, Tree } from '../views/vfio.ts';

export const MAP_FLAGS = { READ, WRITE, VADDR: MAP_VADDR };
export const UNMAP_FLAGS = { GET_DIRTY_BITMAP: UNMAP_GET_DIRTY_BITMAP, ALL: UNMAP_ALL, VADDR: UNMAP_VADDR };
/** Size of struct vfio_iommu_type1_dma_map. */
export const MAP_ARGSZ = 32;
/** Levels of a tree that are shown unless asked for more. */
const SHOWN_DEPTH = 8;

const container = { host: Path.host, container: Path.container };
const mapping = {
  ...container,
  iova: Type.String({
    pattern: '^(0[xX][0-9a-fA-F]+|[0-9]+)$',
    format: 'u64',
    maxLength: 66,
    description: 'Start of the mapping',
    examples: ['0x0'],
  }),
};
const argsz = Type.Optional(Int('Size that the caller gives the argument block', 0, 2 ** 32 - 1));

const mapDma = describe({
  operationId: 'map_dma',
  tag: 'dma',
  summary: 'VFIO_IOMMU_MAP_DMA',
  description:
    'Maps a range of a task at an iova. Unless the container has an iommu group, nothing is pinned, charged or looked at: a bogus vaddr is noticed at the first pin.',
  does: 'command',
  params: container,
  body: closed({
    task: Id('Calling task, whose mm backs the mapping', 'qemu'),
    iova: U64('First byte, device side'),
    vaddr: U64('First byte, user side'),
    size: U64('Bytes'),
    flags: Type.Optional(Flags(['READ', 'WRITE', 'VADDR'], 'Default: none')),
    argsz,
  }),
  bodyExample: { task: 'qemu', iova: '0x0', vaddr: '0x7f0000000000', size: '0x10000000', flags: ['READ', 'WRITE'] },
  success: [{ status: 200, description: 'Mapped', schema: ReplyOf({}), example: { ret: 0, seq: 1 } }],
  refusals: [
    'EINVAL',
    'EEXIST',
    'ENOSPC',
    'ENOENT',
    'ESRCH',
    'EFAULT',
    'ENOMEM',
    'EINTR',
    'EOVERFLOW',
    'ENOTTY',
    'EBADF',
    'EIO',
  ],
  refusalExample: {
    errno: 'EEXIST',
    detail: "[0x0, 0x10000000) overlaps the mapping [0x0, 0x10000000) of container 'vfio0'",
  },
});

const unmapDma = describe({
  operationId: 'unmap_dma',
  tag: 'dma',
  summary: 'VFIO_IOMMU_UNMAP_DMA',
  description:
    'Removes whole mappings. Blocks until the notifier protocol of every pinned mapping has finished; a client that hangs up does not stop it. `size` is what was really removed.',
  does: 'command',
  waits: true,
  params: container,
  body: closed({
    iova: U64('First byte'),
    size: U64('Bytes'),
    flags: Type.Optional(Flags(['GET_DIRTY_BITMAP', 'ALL', 'VADDR'], 'Default: none')),
    task: Type.Optional(Id('Calling task; by default that of the lowest overlapping mapping', 'qemu')),
    argsz,
    bitmap: Type.Optional(
      closed({
        pgsize: U64('Bytes that one bit stands for'),
        size: U64('Bytes of the bitmap'),
        addr: Type.Optional(U64("Where in the caller's memory it is; without it the reply carries it")),
      }),
    ),
  }),
  bodyExample: { iova: '0x0', size: '0x10000000' },
  success: [
    {
      status: 200,
      description: 'Unmapped; unmapping nothing succeeds with size 0x0 and a warning',
      schema: ReplyOf({
        size: U64Out('Bytes removed'),
        notifications: Count('Handler calls over all listeners and tries'),
        bitmap: Type.Optional(Base64('Dirty pages, one bit each: little-endian u64')),
      }),
      example: { ret: 0, size: '0x10000000', notifications: 0, seq: 2 },
    },
  ],
  refusals: ['EINVAL', 'ESRCH', 'EFAULT', 'EOVERFLOW', 'E2BIG', 'ENOTTY', 'EBADF', 'EIO', 'EDEADLK', 'EBUSY'],
  refusalExample: {
    errno: 'EINVAL',
    detail: "[0x1000, 0x2000) bisects the mapping [0x0, 0x10000000) of container 'vfio0'",
  },
});

const list = describe({
  operationId: 'list_mappings',
  tag: 'dma',
  summary: 'Mappings of a container',
  description: 'The vfio_dma entries, ascending by iova.',
  does: 'read',
  params: container,
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of mappings',
      schema: PageOf(Mapping),
      example: {
        items: [
          {
            iova: '0x0',
            size: '0x10000000',
            vaddr: '0x7f0000000000',
            prot: ['READ', 'WRITE'],
            task: 'qemu',
            npinned: 2,
            vaddr_invalid: false,
            iommu_mapped: false,
          },
        ],
        next_cursor: null,
      },
    },
  ],
  refusalExample: { errno: 'NOT_FOUND', detail: "no container 'vfio9'" },
});

const pfns = describe({
  operationId: 'list_pfns',
  tag: 'dma',
  summary: 'Pinned pages of a mapping',
  description: 'The vfio_pfn records of the mapping that starts at `iova`, ascending.',
  does: 'read',
  params: mapping,
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of records',
      schema: PageOf(PfnRecord),
      example: { items: [{ iova: '0x1000', pfn: 1048576, ref_count: 1 }], next_cursor: null },
    },
  ],
  refusalExample: { errno: 'NOT_FOUND', detail: "no mapping '0x1000'" },
});

const tree = describe({
  operationId: 'get_tree',
  tag: 'dma',
  summary: 'Red-black tree of a mapping',
  description:
    'The tree of vfio_pfn records itself, from its root down to `depth` levels; what lies deeper is shown as "...".',
  does: 'read',
  params: mapping,
  query: {
    depth: Type.Optional(
      Type.Integer({ minimum: 1, maximum: MAX_TREE_DEPTH, default: SHOWN_DEPTH, description: 'Levels' }),
    ),
  },
  success: [
    {
      status: 200,
      description: 'The tree',
      schema: Tree,
      example: {
        count: 1,
        root: { iova: '0x1000', pfn: 1048576, ref_count: 1, color: 'black', left: null, right: null },
      },
    },
  ],
  refusalExample: { errno: 'NOT_FOUND', detail: "no mapping '0x1000'" },
});

const bitmapOf = ({ pgsize, size, addr }: { pgsize: string; size: string; addr?: string }) => ({
  pgsize: u64(pgsize),
  size: u64(size),
  ...(addr === undefined ? {} : { addr: u64(addr) }),
});

export function dmaRoutes(app: Api): void {
  app.post('/v1/hosts/:host/containers/:container/map_dma', { schema: mapDma }, (request, reply) => {
    const { task, iova, vaddr, size, flags = [], argsz = MAP_ARGSZ } = request.body;
    return submit(request, reply, {
      op: 'map_dma',
      container: request.params.container,
      task,
      iova: u64(iova),
      vaddr: u64(vaddr),
      size: u64(size),
      flags: mask(flags, MAP_FLAGS),
      argsz: u32(argsz),
    });
  });
  app.post('/v1/hosts/:host/containers/:container/unmap_dma', { schema: unmapDma }, (request, reply) => {
    const { iova, size, flags = [], task = null, argsz = null, bitmap } = request.body;
    return submit(request, reply, {
      op: 'unmap_dma',
      container: request.params.container,
      task,
      iova: u64(iova),
      size: u64(size),
      flags: mask(flags, UNMAP_FLAGS),
      argsz,
      bitmap: bitmap === undefined ? null : bitmapOf(bitmap),
    });
  });
  app.get('/v1/hosts/:host/containers/:container/mappings', { schema: list }, (request) => {
    const { params, query } = request;
    const after = decodeCursor(query.cursor, 'bigint');
    return showPage(request, (host) => listMappings(host, params.container, after, query.limit ?? DEFAULT_PAGE));
  });
  app.get('/v1/hosts/:host/containers/:container/mappings/:iova/pfns', { schema: pfns }, (request) => {
    const { params, query } = request;
    const after = decodeCursor(query.cursor, 'bigint');
    return showPage(request, (host) =>
      listPfns(host, params.container, u64(params.iova), after, query.limit ?? DEFAULT_PAGE),
    );
  });
  app.get('/v1/hosts/:host/containers/:container/mappings/:iova/tree', { schema: tree }, (request) => {
    const { params, query } = request;
    return show(request, (host) => viewTree(host, params.container, u64(params.iova), query.depth ?? SHOWN_DEPTH));
  });
}
