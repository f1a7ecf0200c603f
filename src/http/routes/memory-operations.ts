// Routes of what else is done to a task's memory: each is an operation that can be stopped at its phases.

import Type from 'typebox';
import type { Advice } from '../../kernel/command.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { u64 } from '../parse.ts';
import { submit } from '../reply.ts';
import { Count, closed, Id, Names, PageFrame, Path, ReplyOf, StopAt, U64, U64Out } from '../schema.ts';
import { TaskFields } from '../views/tasks.ts';
import { example as taskExample } from './tasks.ts';

const task = { host: Path.host, task: Path.task };
const addr = U64('First byte');
const length = U64('Bytes');
const exited = { errno: 'ESRCH', detail: "task 'qemu' has exited" } as const;
const done = (description: string) => [{ status: 200, description, schema: ReplyOf({}), example: { ret: 0, seq: 27 } }];

const mremap = describe({
  operationId: 'mremap',
  tag: 'tasks',
  summary: 'mremap(MREMAP_MAYMOVE | MREMAP_FIXED)',
  description:
    'Moves a range, longer or shorter. Notifiers are told UNMAP of the old range, and nothing of the new one; what the new range overlaps is unmapped first.',
  does: 'command',
  waits: true,
  params: task,
  body: closed({
    addr,
    old_length: U64('Bytes now'),
    new_length: U64('Bytes after'),
    new_addr: U64('Where to'),
    stop_at: StopAt,
  }),
  bodyExample: { addr: '0x7f0000000000', old_length: '0x2000', new_length: '0x2000', new_addr: '0x610000000000' },
  success: [
    {
      status: 200,
      description: 'Moved',
      schema: ReplyOf({ addr: U64Out('First byte') }),
      example: { ret: 0, addr: '0x610000000000', seq: 27 },
    },
  ],
  refusals: ['EINVAL', 'EFAULT', 'ENOMEM', 'EINTR', 'ESRCH', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'EINVAL', detail: 'the old range and the new one overlap' },
});

const fork = describe({
  operationId: 'fork',
  tag: 'tasks',
  summary: 'fork()',
  description:
    'Makes a task with a copy of the address space. Private pages become read-only on both sides, and notifiers of the parent are told PROTECTION_PAGE of each such area; a page that may be pinned is copied at once (5.8 and later).',
  does: 'command',
  waits: true,
  params: task,
  body: closed({ child: Id('Id of the new task', 'child'), stop_at: StopAt }),
  bodyExample: { child: 'child' },
  success: [
    {
      status: 200,
      description: 'Forked',
      schema: ReplyOf(TaskFields),
      example: { ret: 0, ...taskExample, id: 'child', pid: 1001, mm: 'mm-2', seq: 27 },
    },
  ],
  refusals: ['EEXIST', 'ENOMEM', 'EAGAIN', 'EINTR', 'ESRCH', 'EDEADLK', 'EBUSY'],
  refusalExample: exited,
});

export const ADVICE: readonly Advice[] = ['DONTNEED', 'FREE', 'DONTFORK', 'DOFORK', 'WIPEONFORK', 'KEEPONFORK'];
const madvise = describe({
  operationId: 'madvise',
  tag: 'tasks',
  summary: 'madvise()',
  description:
    'DONTNEED takes the pages of a range, FREE lets reclaim take them; notifiers are told CLEAR of each piece. The others mark areas for a later fork.',
  does: 'command',
  waits: true,
  params: task,
  body: closed({ addr, length, advice: Names(ADVICE, 'MADV_ without its prefix'), stop_at: StopAt }),
  bodyExample: { addr: '0x7f0000000000', length: '0x1000', advice: 'DONTNEED' },
  success: done('Done'),
  refusals: ['EINVAL', 'ENOMEM', 'EINTR', 'ESRCH', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'EINVAL', detail: 'addr: 0x7f0000000800 is not page aligned' },
});

const mlock = describe({
  operationId: 'mlock',
  tag: 'tasks',
  summary: 'mlock(), munlock()',
  description: 'Marks areas VM_LOCKED, or not. It waits while an operation holds mmap_lock.',
  does: 'command',
  waits: true,
  params: task,
  body: closed({ addr, length, lock: Type.Boolean({ description: 'true: mlock(), false: munlock()' }) }),
  bodyExample: { addr: '0x7f0000000000', length: '0x1000', lock: true },
  success: done('Marked'),
  refusals: ['EINVAL', 'ENOMEM', 'EINTR', 'ESRCH', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'ENOMEM', detail: 'vaddr 0x600000000000: nothing is mapped' },
});

const whole = closed({ stop_at: StopAt });

const clearSoftDirty = describe({
  operationId: 'clear_soft_dirty',
  tag: 'tasks',
  summary: 'Write 4 to /proc/PID/clear_refs',
  description:
    'Write-protects every page to find the next writes. Notifiers are told SOFT_DIRTY of the whole address space.',
  does: 'command',
  waits: true,
  params: task,
  body: whole,
  bodyExample: {},
  success: done('Cleared'),
  refusals: ['EINTR', 'ESRCH', 'EDEADLK', 'EBUSY'],
  refusalExample: exited,
});

const oomReap = describe({
  operationId: 'oom_reap',
  tag: 'tasks',
  summary: 'The OOM reaper',
  description:
    'Takes the pages of every anonymous or private area. It may not wait: mmap_lock is tried, and notifiers are told UNMAP that is not blockable; an area whose start is refused is left for a later try.',
  does: 'command',
  waits: true,
  params: task,
  body: whole,
  bodyExample: {},
  success: [
    {
      status: 200,
      description: 'Reaped',
      schema: ReplyOf({ refused: Count('Areas that are left') }),
      example: { ret: 0, refused: 0, seq: 27 },
    },
  ],
  refusals: ['EAGAIN', 'ESRCH', 'EBUSY'],
  refusalExample: { errno: 'EAGAIN', detail: 'a notifier refused a range that may not wait' },
});

const ksmMerge = describe({
  operationId: 'ksm_merge',
  tag: 'tasks',
  summary: 'KSM merges two pages',
  description:
    'Two anonymous pages of equal bytes become one that is never written in place. Notifiers are told CLEAR twice, with the page lock held: of the write-protecting, and of the replacing. Any pin or other reference of the page refuses it.',
  does: 'command',
  waits: true,
  params: task,
  body: closed({
    addr: U64('One page'),
    with: closed({ task: Id('Task', 'qemu'), addr: U64('The other page') }),
    stop_at: StopAt,
  }),
  bodyExample: { addr: '0x7f0000000000', with: { task: 'qemu', addr: '0x7f0000001000' } },
  success: [
    {
      status: 200,
      description: 'Merged',
      schema: ReplyOf({ pfn: PageFrame('The stable page') }),
      example: { ret: 0, pfn: 1048576, seq: 27 },
    },
  ],
  refusals: ['EINVAL', 'EFAULT', 'ENOMEM', 'EINTR', 'ESRCH', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'EFAULT', detail: 'page 1048576 has references that are no mappings' },
});

const migrateVma = describe({
  operationId: 'migrate_vma',
  tag: 'tasks',
  summary: 'migrate_vma_setup()',
  description:
    'A driver collects pages for its device: notifiers are told MIGRATE with the owner, who may ignore its own event.',
  does: 'command',
  waits: true,
  params: task,
  body: closed({ addr, length, owner: Id('Driver', 'dmirror'), stop_at: StopAt }),
  bodyExample: { addr: '0x7f0000000000', length: '0x1000', owner: 'dmirror' },
  success: [
    {
      status: 200,
      description: 'Collected',
      schema: ReplyOf({}),
      example: { ret: 0, seq: 27 },
    },
  ],
  refusals: ['EINVAL', 'ESRCH', 'EOPNOTSUPP', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'EINVAL', detail: 'addr: 0x7f0000000800 is not page aligned' },
});

export function memoryOperationRoutes(app: Api): void {
  const one = '/v1/hosts/:host/tasks/:task';
  app.post(`${one}/mremap`, { schema: mremap }, (request, reply) => {
    const { addr, old_length, new_length, new_addr, ...rest } = request.body;
    return submit(request, reply, {
      op: 'mremap',
      task: request.params.task,
      addr: u64(addr),
      old_length: u64(old_length),
      new_length: u64(new_length),
      new_addr: u64(new_addr),
      ...rest,
    });
  });
  app.post(`${one}/fork`, { schema: fork }, (request, reply) =>
    submit(request, reply, { op: 'fork', task: request.params.task, ...request.body }),
  );
  app.post(`${one}/madvise`, { schema: madvise }, (request, reply) => {
    const { addr, length, ...rest } = request.body;
    const { task } = request.params;
    return submit(request, reply, { op: 'madvise', task, addr: u64(addr), length: u64(length), ...rest });
  });
  app.post(`${one}/mlock`, { schema: mlock }, (request, reply) => {
    const { addr, length, lock } = request.body;
    const { task } = request.params;
    return submit(request, reply, { op: 'mlock', task, addr: u64(addr), length: u64(length), lock });
  });
  app.post(`${one}/clear_soft_dirty`, { schema: clearSoftDirty }, (request, reply) =>
    submit(request, reply, { op: 'clear_soft_dirty', task: request.params.task, ...request.body }),
  );
  app.post(`${one}/oom_reap`, { schema: oomReap }, (request, reply) =>
    submit(request, reply, { op: 'oom_reap', task: request.params.task, ...request.body }),
  );
  app.post(`${one}/ksm_merge`, { schema: ksmMerge }, (request, reply) => {
    const { addr, with: other, ...rest } = request.body;
    return submit(request, reply, {
      op: 'ksm_merge',
      task: request.params.task,
      addr: u64(addr),
      with: { task: other.task, addr: u64(other.addr) },
      ...rest,
    });
  });
  app.post(`${one}/migrate_vma`, { schema: migrateVma }, (request, reply) => {
    const { addr, length, ...rest } = request.body;
    const { task } = request.params;
    return submit(request, reply, { op: 'migrate_vma', task, addr: u64(addr), length: u64(length), ...rest });
  });
}
