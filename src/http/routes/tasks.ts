// Routes of tasks and their memory.

import Type, { type Static } from 'typebox';
import type { Backing, PfnRuns } from '../../kernel/command.ts';
import { READ, WRITE } from '../../kernel/command.ts';
import { listMaps, listPages, listTasks, viewTask } from '../../kernel/view/tasks.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { DEFAULT_PAGE, MAX_ARRAY, MAX_SHOWN_PAGES } from '../limits.ts';
import { decodeCursor, int, mask, u64 } from '../parse.ts';
import { show, showPage, submit } from '../reply.ts';
import { closed, Flags, Id, Int, MAX_PFN, Names, PageOf, PageQuery, Path, ReplyOf, U64, U64Out } from '../schema.ts';
import { Area, Task, TaskFields, TaskPage } from '../views.ts';

const task = { host: Path.host, task: Path.task };
const PROT = { READ, WRITE };

const rlimit_memlock = Type.Union([Type.Literal('unlimited'), U64('Bytes')], { description: 'RLIMIT_MEMLOCK' });
const cap_ipc_lock = Type.Boolean({ description: 'CAP_IPC_LOCK' });
const addr = U64('First byte');
const length = U64('Bytes');
const prot = Flags(['READ', 'WRITE'], 'Rights');

/** RLIMIT_MEMLOCK where PUT names none. */
const DEFAULT_RLIMIT = '0x4000000';

const example = {
  id: 'qemu', pid: 1000, mm: 'mm-1', thread_of: null, alive: true, rlimit_memlock: '0x40000000', cap_ipc_lock: false,
  locked_vm: 2, VmLck: 8, VmPin: 0, VmRSS: 8,
};

const put = describe({
  operationId: 'put_task',
  tag: 'tasks',
  summary: 'Start a task',
  description: 'A process with an mm of its own, or a thread in the process of `thread_of`, whose mm and limit it shares.',
  does: 'command',
  params: task,
  body: closed({
    rlimit_memlock: Type.Optional(rlimit_memlock),
    cap_ipc_lock: Type.Optional(cap_ipc_lock),
    thread_of: Type.Optional(Id('Task whose thread it is', 'qemu')),
  }),
  bodyExample: { rlimit_memlock: '0x4000000', cap_ipc_lock: false },
  success: [
    { status: 201, description: 'Started', schema: ReplyOf(TaskFields), example: { ret: 0, ...example, seq: 23 } },
    { status: 200, description: 'Exists with the same body: nothing changed', example: { ret: 0, ...example, seq: 24 } },
  ],
  refusals: ['EEXIST', 'EAGAIN', 'ESRCH'],
  refusalExample: { errno: 'EEXIST', detail: "task 'qemu' exists with cap_ipc_lock false, not true" },
});

const patch = describe({
  operationId: 'patch_task',
  tag: 'tasks',
  summary: 'Change limit or capability',
  description: 'The limit is the process\'s, the capability the thread\'s.',
  does: 'command',
  params: task,
  body: closed({ rlimit_memlock: Type.Optional(rlimit_memlock), cap_ipc_lock: Type.Optional(cap_ipc_lock) }),
  bodyExample: { rlimit_memlock: 'unlimited' },
  success: [{ status: 200, description: 'Changed', schema: ReplyOf(TaskFields), example: { ret: 0, ...example, rlimit_memlock: 'unlimited', seq: 25 } }],
  refusals: ['ESRCH'],
  refusalExample: { errno: 'ESRCH', detail: "task 'qemu' has exited" },
});

const list = describe({
  operationId: 'list_tasks',
  tag: 'tasks',
  summary: 'Tasks of a host',
  description: 'All tasks, by id.',
  does: 'read',
  params: { host: Path.host },
  query: PageQuery,
  success: [{ status: 200, description: 'One page of tasks', schema: PageOf(Task), example: { items: [example], next_cursor: null } }],
  refusalExample: { errno: 'NOT_FOUND', detail: "no host 'h9'" },
});

const get = describe({
  operationId: 'get_task',
  tag: 'tasks',
  summary: 'One task',
  description: 'Limits and accounting. `locked_vm` counts pages; VmLck, VmPin and VmRSS are kB, as in /proc/PID/status.',
  does: 'read',
  params: task,
  success: [{ status: 200, description: 'The task', schema: Task, example }],
  refusalExample: { errno: 'NOT_FOUND', detail: "no task 'nobody'" },
});

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
    Type.Array(Type.Unsafe<'rw' | 'r' | 'lazy' | 'lazy-retry' | 'sigbus'>({ type: 'string', enum: ['rw', 'r', 'lazy', 'lazy-retry', 'sigbus'] }), {
      maxItems: MAX_ARRAY,
      description: 'Page-table state of each page',
    }),
  ),
};
const BackingBody = Type.Union(
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
  description: 'Maps a range afresh; what it overlaps is unmapped first, unless `noreplace` refuses that. An explicit page layout lays out memory to the page.',
  does: 'command',
  params: task,
  body: closed({
    addr,
    length,
    prot,
    backing: Type.Optional(BackingBody),
    noreplace: Type.Optional(Type.Boolean({ description: 'EEXIST instead of unmapping (default false)' })),
  }),
  bodyExample: { addr: '0x600000000000', length: '0x5000', prot: ['READ', 'WRITE'], backing: { kind: 'pages', pfns: [[100, 4], [57, 1]] } },
  success: [{ status: 200, description: 'Mapped', schema: ReplyOf({ addr: U64Out('First byte') }), example: { ret: 0, addr: '0x600000000000', seq: 26 } }],
  refusals: ['EINVAL', 'ENOMEM', 'EEXIST', 'ESRCH', 'EOVERFLOW', 'ENOSPC', 'E2BIG', 'EBUSY'],
  refusalExample: { errno: 'EEXIST', detail: 'addr: [0x7f0000000000, 0x7f0100000000) is mapped' },
});

const range = closed({ addr, length });

const munmap = describe({
  operationId: 'munmap',
  tag: 'tasks',
  summary: 'munmap()',
  description: 'Unmaps a range; holes in it are no error. Pinned pages keep their references.',
  does: 'command',
  params: task,
  body: range,
  bodyExample: { addr: '0x600000000000', length: '0x5000' },
  success: [{ status: 200, description: 'Unmapped', schema: ReplyOf({}), example: { ret: 0, seq: 27 } }],
  refusals: ['EINVAL', 'ENOMEM', 'ESRCH'],
  refusalExample: { errno: 'EINVAL', detail: 'addr: 0x600000000800 is not page aligned' },
});

const mprotect = describe({
  operationId: 'mprotect',
  tag: 'tasks',
  summary: 'mprotect()',
  description: 'Changes the rights of a range.',
  does: 'command',
  params: task,
  body: closed({ addr, length, prot }),
  bodyExample: { addr: '0x7f0000000000', length: '0x1000', prot: ['READ'] },
  success: [{ status: 200, description: 'Changed', schema: ReplyOf({}), example: { ret: 0, seq: 28 } }],
  refusals: ['EINVAL', 'ENOMEM', 'EACCES', 'ESRCH'],
  refusalExample: { errno: 'ENOMEM', detail: 'vaddr 0x600000000000: nothing is mapped' },
});

const exit = describe({
  operationId: 'exit',
  tag: 'tasks',
  summary: 'Exit',
  description: 'Ends a thread made with `thread_of` alone, or a whole process. Containers, groups and devices stay open: they belong to no task.',
  does: 'command',
  params: task,
  body: closed({}),
  bodyExample: {},
  success: [{ status: 200, description: 'Exited', schema: ReplyOf({}), example: { ret: 0, seq: 29 } }],
  refusals: ['ESRCH'],
  refusalExample: { errno: 'ESRCH', detail: "task 'qemu' has exited" },
});

const adjust = describe({
  operationId: 'adjust_locked_vm',
  tag: 'tasks',
  summary: 'Somebody else changes locked_vm',
  description: 'Adds `delta` pages to the counter, as another driver or mlock() would.',
  does: 'command',
  params: task,
  body: closed({ delta: Int('Pages, may be negative') }),
  bodyExample: { delta: 16 },
  success: [{ status: 200, description: 'Changed', schema: ReplyOf({ locked_vm: Int('Pages after the call') }), example: { ret: 0, locked_vm: 18, seq: 30 } }],
  refusals: ['ESRCH', 'EOVERFLOW'],
  refusalExample: { errno: 'ESRCH', detail: "task 'qemu' has exited" },
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
  description: 'One item for each page. `ref_count` is the raw counter, bias of pins included from 5.8 on; `pin_count` counts pins.',
  does: 'read',
  params: task,
  query: {
    addr: Type.String({ pattern: '^(0[xX][0-9a-fA-F]+|[0-9]+)$', format: 'u64', maxLength: 66, description: 'First byte', examples: ['0x7f0000000000'] }),
    npage: Type.Optional(Type.Integer({ minimum: 0, maximum: MAX_SHOWN_PAGES, default: 1, description: 'Pages' })),
  },
  refusals: ['EINVAL'],
  success: [
    {
      status: 200,
      description: 'The pages',
      schema: closed({ items: Type.Array(TaskPage) }),
      example: {
        items: [{ addr: '0x7f0000000000', pfn: 1048576, present: true, writable: true, ref_count: 1025, pin_count: 1, dirty: false }],
      },
    },
  ],
  refusalExample: { errno: 'EINVAL', detail: 'addr: 0x7f0000000800 is not page aligned' },
});

const limitOf = (limit: Static<typeof rlimit_memlock>): bigint | 'unlimited' => (limit === 'unlimited' ? limit : u64(limit));

function backingOf(body: Static<typeof BackingBody> = { kind: 'anon' }): Backing {
  switch (body.kind) {
    case 'file':
      return { kind: 'file', file: body.file, pgoff: int(body.pgoff ?? 0), shared: body.shared ?? true };
    case 'pfnmap':
      return { struct_page: false, reserved: true, ...body };
    default:
      return body;
  }
}

export function taskRoutes(app: Api): void {
  const all = '/v1/hosts/:host/tasks';
  const one = `${all}/:task`;
  app.put(one, { schema: put }, (request, reply) => {
    const { rlimit_memlock = DEFAULT_RLIMIT, cap_ipc_lock = false, thread_of = null } = request.body;
    return submit(request, reply, { op: 'put_task', task: request.params.task, rlimit_memlock: limitOf(rlimit_memlock), cap_ipc_lock, thread_of });
  });
  app.patch(one, { schema: patch }, (request, reply) => {
    const { rlimit_memlock, ...rest } = request.body;
    const limit = rlimit_memlock === undefined ? {} : { rlimit_memlock: limitOf(rlimit_memlock) };
    return submit(request, reply, { op: 'patch_task', task: request.params.task, ...rest, ...limit });
  });
  app.get(all, { schema: list }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    const after = decodeCursor(cursor, 'string');
    return showPage(request, (host) => listTasks(host, after, limit));
  });
  app.get(one, { schema: get }, (request) => show(request, (host) => viewTask(host, request.params.task)));
  app.post(`${one}/mmap`, { schema: mmap }, (request, reply) => {
    const { addr, length, prot, backing, noreplace = false } = request.body;
    return submit(request, reply, {
      op: 'mmap',
      task: request.params.task,
      addr: u64(addr),
      length: u64(length),
      prot: mask(prot, PROT),
      backing: backingOf(backing),
      noreplace,
    });
  });
  app.post(`${one}/munmap`, { schema: munmap }, (request, reply) => {
    const { addr, length } = request.body;
    return submit(request, reply, { op: 'munmap', task: request.params.task, addr: u64(addr), length: u64(length) });
  });
  app.post(`${one}/mprotect`, { schema: mprotect }, (request, reply) => {
    const { addr, length, prot } = request.body;
    return submit(request, reply, { op: 'mprotect', task: request.params.task, addr: u64(addr), length: u64(length), prot: mask(prot, PROT) });
  });
  app.post(`${one}/exit`, { schema: exit }, (request, reply) => submit(request, reply, { op: 'exit', task: request.params.task }));
  app.post(`${one}/adjust_locked_vm`, { schema: adjust }, (request, reply) =>
    submit(request, reply, { op: 'adjust_locked_vm', task: request.params.task, delta: int(request.body.delta) }),
  );
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
