// Routes of a task's memory: mmap, munmap, mprotect, and what its mm looks like.

import Type, { type Static } from 'typebox';
import { type Backing, type PfnRuns, READ, WRITE } from '../../kernel/command.ts';
import { listMaps, listPages } from '../../kernel/view/tasks.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { DEFAULT_PAGE, MAX_ARRAY, MAX_SHOWN_PAGES } from '../limits.ts';
import { decodeCursor, int, mask, u64 } from '../parse.ts';
import { show, showPage, submit } from '../reply.ts';
import { closed, Flags, Id, Int, MAX_PFN, PageOf, PageQuery, Path, ReplyOf, StopAt, U64, U64Out } from '../schema.ts';
import { Area, TaskPage } from '../views/tasks.ts';

const task = { host: Path.host, task: Path.task };
const PROT = { READ, WRITE };

const addr = U64('First byte');
const length = U64('Bytes');
const prot = Flags(['READ', 'WRITE'], 'Rights');

const Runs = Type.Unsafe<PfnRuns>(
  Type.Array(Type.Array(Type.Integer({ minimum: 0, maximum: MAX_PFN }), { minItems: 2, maxItems: 2 }), {
    maxItems: MAX_ARRAY,
    description: 'Runs of [first pfn, count] in address order',
  }),
);
const pfnmap = {
  kind: Type.Literal('pfnmap'),
  struct_page: Type.Optional(Type.Boolean({ description: 'Default false' })),
  reserved: Type.Optional(Type.Boolean({ description: 'Default true' })),
  ptes: Type.Optional(
    Type.Array(
      Type.Unsafe<'rw' | 'r' | 'lazy' | 'lazy-retry' | 'sigbus'>({
        type: 'string',
        enum: ['rw', 'r', 'lazy', 'lazy-retry', 'sigbus'],
      }),
      {
        maxItems: MAX_ARRAY,
        description: 'Page-table state of each page',
      },
    ),
  ),
};
export const BackingBody = Type.Union(
  [
    closed({ kind: Type.Literal('anon') }),
    closed({
      kind: Type.Literal('file'),
      file: Id('File: the same page of it at two addresses is one page', 'f1'),
      pgoff: Type.Optional(Int('First page of the file (default 0)', 0, MAX_PFN)),
      shared: Type.Optional(Type.Boolean({ description: 'MAP_SHARED (default true)' })),
    }),
    closed({ ...pfnmap, pfn: Int('First host page of consecutive ones', 0, MAX_PFN) }),
    closed({ ...pfnmap, pfns: Runs }),
    closed({ kind: Type.Literal('pages'), pfns: Runs }),
  ],
  { description: 'What lies behind the range (default anon)' },
);

const mmap = describe({
  operationId: 'mmap',
  tag: 'tasks',
  summary: 'mmap(MAP_FIXED)',
  description:
    'Maps a range afresh; what it overlaps is unmapped first, unless `noreplace` refuses that. An explicit page layout lays out memory to the page. It waits while an operation holds mmap_lock.',
  does: 'command',
  waits: true,
  params: task,
  body: closed({
    addr,
    length,
    prot,
    backing: Type.Optional(BackingBody),
    noreplace: Type.Optional(Type.Boolean({ description: 'EEXIST instead of unmapping (default false)' })),
    stop_at: StopAt,
  }),
  bodyExample: {
    addr: '0x600000000000',
    length: '0x5000',
    prot: ['READ', 'WRITE'],
    backing: {
      kind: 'pages',
      pfns: [
        [100, 4],
        [57, 1],
      ],
    },
  },
  success: [
    {
      status: 200,
      description: 'Mapped',
      schema: ReplyOf({ addr: U64Out('First byte') }),
      example: { ret: 0, addr: '0x600000000000', seq: 26 },
    },
  ],
  refusals: ['EINVAL', 'ENOMEM', 'EEXIST', 'ESRCH', 'EOVERFLOW', 'ENOSPC', 'E2BIG', 'EBUSY', 'EINTR', 'EDEADLK'],
  refusalExample: { errno: 'EEXIST', detail: 'addr: [0x7f0000000000, 0x7f0100000000) is mapped' },
});

const range = closed({ addr, length, stop_at: StopAt });

const munmap = describe({
  operationId: 'munmap',
  tag: 'tasks',
  summary: 'munmap()',
  description:
    'Unmaps a range; holes in it are no error. Pinned pages keep their references. Notifiers are told between `before_start` and `after_end`: UNMAP of the whole request.',
  does: 'command',
  waits: true,
  params: task,
  body: range,
  bodyExample: { addr: '0x600000000000', length: '0x5000' },
  success: [{ status: 200, description: 'Unmapped', schema: ReplyOf({}), example: { ret: 0, seq: 27 } }],
  refusals: ['EINVAL', 'ENOMEM', 'ESRCH', 'EINTR', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'EINVAL', detail: 'addr: 0x600000000800 is not page aligned' },
});

const mprotect = describe({
  operationId: 'mprotect',
  tag: 'tasks',
  summary: 'mprotect()',
  description:
    'Changes the rights of a range. Notifiers are told PROTECTION_VMA from the first address with page tables on; the areas have changed by then.',
  does: 'command',
  waits: true,
  params: task,
  body: closed({ addr, length, prot, stop_at: StopAt }),
  bodyExample: { addr: '0x7f0000000000', length: '0x1000', prot: ['READ'] },
  success: [{ status: 200, description: 'Changed', schema: ReplyOf({}), example: { ret: 0, seq: 28 } }],
  refusals: ['EINVAL', 'ENOMEM', 'EACCES', 'ESRCH', 'EINTR', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'ENOMEM', detail: 'vaddr 0x600000000000: nothing is mapped' },
});

const maps = describe({
  operationId: 'list_maps',
  tag: 'tasks',
  summary: 'Areas of a task',
  description: 'The VMAs of its mm, ascending, as in /proc/PID/maps.',
  does: 'read',
  params: task,
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of areas',
      schema: PageOf(Area),
      example: {
        items: [
          {
            addr: '0x7f0000000000',
            length: '0x100000000',
            prot: ['READ', 'WRITE'],
            flags: ['READ', 'WRITE', 'MAYREAD', 'MAYWRITE', 'MAYEXEC'],
            backing: { kind: 'anon' },
          },
        ],
        next_cursor: null,
      },
    },
  ],
  refusalExample: { errno: 'NOT_FOUND', detail: "no task 'nobody'" },
});

const pages = describe({
  operationId: 'list_pages',
  tag: 'tasks',
  summary: 'Pages behind a range',
  description:
    'One item for each page. `ref_count` is the raw counter, bias of pins included from 5.8 on; `pin_count` counts pins.',
  does: 'read',
  params: task,
  query: {
    addr: Type.String({
      pattern: '^(0[xX][0-9a-fA-F]+|[0-9]+)$',
      format: 'u64',
      maxLength: 66,
      description: 'First byte',
      examples: ['0x7f0000000000'],
    }),
    npage: Type.Optional(Type.Integer({ minimum: 0, maximum: MAX_SHOWN_PAGES, default: 1, description: 'Pages' })),
  },
  refusals: ['EINVAL'],
  success: [
    {
      status: 200,
      description: 'The pages',
      schema: closed({ items: Type.Array(TaskPage) }),
      example: {
        items: [
          {
            addr: '0x7f0000000000',
            pfn: 1048576,
            present: true,
            writable: true,
            ref_count: 1025,
            pin_count: 1,
            dirty: false,
            entry: 'present',
            flags: ['WRITE', 'DIRTY', 'YOUNG'],
            swap_slot: null,
            entry_pfn: null,
          },
        ],
      },
    },
  ],
  refusalExample: { errno: 'EINVAL', detail: 'addr: 0x7f0000000800 is not page aligned' },
});

export function backingOf(body: Static<typeof BackingBody> = { kind: 'anon' }): Backing {
  switch (body.kind) {
    case 'file':
      return { kind: 'file', file: body.file, pgoff: int(body.pgoff ?? 0), shared: body.shared ?? true };
    case 'pfnmap':
      return { struct_page: false, reserved: true, ...body };
    default:
      return body;
  }
}

export function memoryRoutes(app: Api): void {
  const one = '/v1/hosts/:host/tasks/:task';
  app.post(`${one}/mmap`, { schema: mmap }, (request, reply) => {
    const { addr, length, prot, backing, noreplace = false, ...rest } = request.body;
    return submit(request, reply, {
      op: 'mmap',
      task: request.params.task,
      addr: u64(addr),
      length: u64(length),
      prot: mask(prot, PROT),
      backing: backingOf(backing),
      noreplace,
      ...rest,
    });
  });
  app.post(`${one}/munmap`, { schema: munmap }, (request, reply) => {
    const { addr, length, ...rest } = request.body;
    return submit(request, reply, {
      op: 'munmap',
      task: request.params.task,
      addr: u64(addr),
      length: u64(length),
      ...rest,
    });
  });
  app.post(`${one}/mprotect`, { schema: mprotect }, (request, reply) => {
    const { addr, length, prot, ...rest } = request.body;
    return submit(request, reply, {
      op: 'mprotect',
      task: request.params.task,
      addr: u64(addr),
      length: u64(length),
      prot: mask(prot, PROT),
      ...rest,
    });
  });
  app.get(`${one}/maps`, { schema: maps }, (request) => {
    const { params, query } = request;
    const after = decodeCursor(query.cursor, 'bigint');
    return showPage(request, (host) => listMaps(host, params.task, after, query.limit ?? DEFAULT_PAGE));
  });
  app.get(`${one}/pages`, { schema: pages }, (request) => {
    const { params, query } = request;
    return show(request, (host) => ({ items: listPages(host, params.task, u64(query.addr), query.npage ?? 1) }));
  });
}
