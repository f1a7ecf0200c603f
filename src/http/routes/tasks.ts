// Routes of tasks: processes and threads, their limit, their capability, their accounting.

import Type, { type Static } from 'typebox';
import { listTasks, viewTask } from '../../kernel/view/tasks.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { DEFAULT_PAGE } from '../limits.ts';
import { decodeCursor, int, u64 } from '../parse.ts';
import { show, showPage, submit } from '../reply.ts';
import { closed, Id, Int, PageOf, PageQuery, Path, ReplyOf, StopAt, U64 } from '../schema.ts';
import { Task, TaskFields } from '../views/tasks.ts';

const task = { host: Path.host, task: Path.task };

export const rlimit_memlock = Type.Union([Type.Literal('unlimited'), U64('Bytes')], { description: 'RLIMIT_MEMLOCK' });
const cap_ipc_lock = Type.Boolean({ description: 'CAP_IPC_LOCK' });
const cap_sys_rawio = Type.Boolean({ description: 'CAP_SYS_RAWIO, which noiommu groups ask for' });

/** RLIMIT_MEMLOCK where PUT names none. */
export const DEFAULT_RLIMIT = '0x4000000';

export const example = {
  id: 'qemu',
  pid: 1000,
  mm: 'mm-1',
  thread_of: null,
  alive: true,
  rlimit_memlock: '0x40000000',
  cap_ipc_lock: false,
  cap_sys_rawio: false,
  locked_vm: 2,
  VmLck: 8,
  VmPin: 0,
  VmRSS: 8,
};

const put = describe({
  operationId: 'put_task',
  tag: 'tasks',
  summary: 'Start a task',
  description:
    'A process with an mm of its own, or a thread in the process of `thread_of`, whose mm and limit it shares.',
  does: 'command',
  params: task,
  body: closed({
    rlimit_memlock: Type.Optional(rlimit_memlock),
    cap_ipc_lock: Type.Optional(cap_ipc_lock),
    cap_sys_rawio: Type.Optional(cap_sys_rawio),
    thread_of: Type.Optional(Id('Task whose thread it is', 'qemu')),
  }),
  bodyExample: { rlimit_memlock: '0x4000000', cap_ipc_lock: false },
  success: [
    { status: 201, description: 'Started', schema: ReplyOf(TaskFields), example: { ret: 0, ...example, seq: 23 } },
    {
      status: 200,
      description: 'Exists with the same body: nothing changed',
      example: { ret: 0, ...example, seq: 24 },
    },
  ],
  refusals: ['EEXIST', 'EAGAIN', 'ESRCH'],
  refusalExample: { errno: 'EEXIST', detail: "task 'qemu' exists with cap_ipc_lock false, not true" },
});

const patch = describe({
  operationId: 'patch_task',
  tag: 'tasks',
  summary: 'Change limit or capability',
  description: "The limit is the process's, the capability the thread's.",
  does: 'command',
  params: task,
  body: closed({
    rlimit_memlock: Type.Optional(rlimit_memlock),
    cap_ipc_lock: Type.Optional(cap_ipc_lock),
    cap_sys_rawio: Type.Optional(cap_sys_rawio),
  }),
  bodyExample: { rlimit_memlock: 'unlimited' },
  success: [
    {
      status: 200,
      description: 'Changed',
      schema: ReplyOf(TaskFields),
      example: { ret: 0, ...example, rlimit_memlock: 'unlimited', seq: 25 },
    },
  ],
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
  success: [
    {
      status: 200,
      description: 'One page of tasks',
      schema: PageOf(Task),
      example: { items: [example], next_cursor: null },
    },
  ],
  refusalExample: { errno: 'NOT_FOUND', detail: "no host 'h9'" },
});

const get = describe({
  operationId: 'get_task',
  tag: 'tasks',
  summary: 'One task',
  description:
    'Limits and accounting. `locked_vm` counts pages; VmLck, VmPin and VmRSS are kB, as in /proc/PID/status.',
  does: 'read',
  params: task,
  success: [{ status: 200, description: 'The task', schema: Task, example }],
  refusalExample: { errno: 'NOT_FOUND', detail: "no task 'nobody'" },
});

const exit = describe({
  operationId: 'exit',
  tag: 'tasks',
  summary: 'Exit',
  description:
    'Ends a thread made with `thread_of` alone, or a whole process; with `thread_only` also the first thread of a process alone. Containers, groups and devices stay open: they belong to no task. With the last user of an address space, interval notifiers are told RELEASE, plain ones are called with `release`, and its memory goes.',
  does: 'command',
  waits: true,
  params: task,
  body: closed({
    thread_only: Type.Optional(Type.Boolean({ description: 'Its other threads live on (default false)' })),
    stop_at: StopAt,
  }),
  bodyExample: {},
  success: [{ status: 200, description: 'Exited', schema: ReplyOf({}), example: { ret: 0, seq: 29 } }],
  refusals: ['ESRCH', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'ESRCH', detail: "task 'qemu' has exited" },
});

const exec = describe({
  operationId: 'exec',
  tag: 'tasks',
  summary: 'Exec',
  description:
    'The task runs another program: its address space is a new and empty one, the other threads of its process end, and it leads the process from now on. Mappings that it made stay. Up to 6.2 they are backed by the new address space, which they were never charged to: an unpin takes locked_vm below 0.',
  does: 'command',
  params: task,
  body: closed({}),
  bodyExample: {},
  success: [
    {
      status: 200,
      description: 'Another program runs',
      schema: ReplyOf({ id: Type.String(), pid: Int('Process id'), mm: Type.String() }),
      example: { ret: 0, id: 'qemu', pid: 1000, mm: 'mm-2', seq: 30 },
    },
  ],
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
  success: [
    {
      status: 200,
      description: 'Changed',
      schema: ReplyOf({ locked_vm: Int('Pages after the call') }),
      example: { ret: 0, locked_vm: 18, seq: 30 },
    },
  ],
  refusals: ['ESRCH', 'EOVERFLOW'],
  refusalExample: { errno: 'ESRCH', detail: "task 'qemu' has exited" },
});

const limitOf = (limit: Static<typeof rlimit_memlock>): bigint | 'unlimited' =>
  limit === 'unlimited' ? limit : u64(limit);

export function taskRoutes(app: Api): void {
  const all = '/v1/hosts/:host/tasks';
  const one = `${all}/:task`;
  app.put(one, { schema: put }, (request, reply) => {
    const { rlimit_memlock = DEFAULT_RLIMIT, cap_ipc_lock = false, cap_sys_rawio, thread_of = null } = request.body;
    return submit(request, reply, {
      op: 'put_task',
      task: request.params.task,
      rlimit_memlock: limitOf(rlimit_memlock),
      cap_ipc_lock,
      ...(cap_sys_rawio === true ? { cap_sys_rawio } : {}),
      thread_of,
    });
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
  app.post(`${one}/exit`, { schema: exit }, (request, reply) => {
    const { thread_only, ...rest } = request.body;
    return submit(request, reply, {
      op: 'exit',
      task: request.params.task,
      ...(thread_only === true ? { thread_only } : {}),
      ...rest,
    });
  });
  app.post(`${one}/exec`, { schema: exec }, (request, reply) =>
    submit(request, reply, { op: 'exec', task: request.params.task }),
  );
  app.post(`${one}/adjust_locked_vm`, { schema: adjust }, (request, reply) =>
    submit(request, reply, { op: 'adjust_locked_vm', task: request.params.task, delta: int(request.body.delta) }),
  );
}
