// Routes of what a task does with its memory and locks: accesses of the CPU, get_user_pages(), signals, locks between calls.

import Type from 'typebox';
import {
  FAULT_FLAG_ALLOW_RETRY,
  FAULT_FLAG_KILLABLE,
  FAULT_FLAG_REMOTE,
  FAULT_FLAG_RETRY_NOWAIT,
  FAULT_FLAG_TRIED,
  FAULT_FLAG_WRITE,
} from '../../kernel/mm/fault-flags.ts';
import {
  FOLL_FAST_ONLY,
  FOLL_FORCE,
  FOLL_GET,
  FOLL_HWPOISON,
  FOLL_LONGTERM,
  FOLL_NOFAULT,
  FOLL_NOWAIT,
  FOLL_PIN,
  FOLL_REMOTE,
  FOLL_TOUCH,
  FOLL_TRIED,
  FOLL_WRITE,
} from '../../kernel/mm/gup-flags.ts';
import { listGups, viewGup } from '../../kernel/view/gups.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { DEFAULT_PAGE } from '../limits.ts';
import { decodeCursor, int, mask, u64 } from '../parse.ts';
import { show, showPage, submit } from '../reply.ts';
import {
  Base64,
  Caller,
  CInt,
  closed,
  Flags,
  Id,
  Names,
  Nullable,
  PageFrame,
  PageOf,
  PageQuery,
  Path,
  ReplyOf,
  StopAt,
  U64,
} from '../schema.ts';
import { GupView, gupExample } from '../views/mm.ts';

const task = { host: Path.host, task: Path.task };

/** FAULT_FLAG_ without its prefix. */
export const FAULT_FLAGS = {
  WRITE: FAULT_FLAG_WRITE,
  ALLOW_RETRY: FAULT_FLAG_ALLOW_RETRY,
  RETRY_NOWAIT: FAULT_FLAG_RETRY_NOWAIT,
  KILLABLE: FAULT_FLAG_KILLABLE,
  TRIED: FAULT_FLAG_TRIED,
  REMOTE: FAULT_FLAG_REMOTE,
};
export const FAULT_FLAG_NAMES = Object.keys(FAULT_FLAGS) as (keyof typeof FAULT_FLAGS)[];
const FAULTS = ['NOPAGE', 'RETRY', 'OOM', 'SIGSEGV', 'SIGBUS', 'HWPOISON'] as const;

const access = describe({
  operationId: 'access',
  tag: 'tasks',
  summary: 'The CPU reads or writes',
  description:
    'One access, with the fault that it takes. Without `length` or `data` one byte is touched; a read takes `length`, a write `data`. With `flags` a fault that asks to be tried again is the answer, where the CPU would try again. A write that breaks COW tells notifiers CLEAR of its page.',
  does: 'command',
  waits: true,
  params: task,
  body: closed({
    addr: U64('First byte'),
    write: Type.Boolean({ description: 'Write or read' }),
    flags: Type.Optional(Flags(FAULT_FLAG_NAMES, 'FAULT_FLAG_ of the fault')),
    length: Type.Optional(U64('Bytes to read')),
    data: Type.Optional(Base64('Bytes to write')),
    stop_at: StopAt,
  }),
  bodyExample: { addr: '0x7f0000000000', write: true },
  success: [
    {
      status: 200,
      description: 'What the fault came to; only NOPAGE means that the access went through',
      schema: ReplyOf({
        fault: Names(FAULTS, 'VM_FAULT_ result'),
        pfn: Nullable(PageFrame('Host page'), 'What is mapped there now'),
        data: Type.Optional(Base64('What was read')),
        mmap_lock: Type.Optional(Names(['held', 'dropped'], 'After RETRY')),
      }),
      example: { ret: 0, fault: 'NOPAGE', pfn: 1048576, seq: 27 },
    },
  ],
  refusals: ['EINVAL', 'E2BIG', 'EFAULT', 'ENOMEM', 'EINTR', 'ESRCH', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'ESRCH', detail: "task 'qemu' has exited" },
});

/** FOLL_ without its prefix. */
export const FOLL = {
  WRITE: FOLL_WRITE,
  TOUCH: FOLL_TOUCH,
  GET: FOLL_GET,
  FORCE: FOLL_FORCE,
  NOWAIT: FOLL_NOWAIT,
  NOFAULT: FOLL_NOFAULT,
  HWPOISON: FOLL_HWPOISON,
  TRIED: FOLL_TRIED,
  REMOTE: FOLL_REMOTE,
  LONGTERM: FOLL_LONGTERM,
  PIN: FOLL_PIN,
  FAST_ONLY: FOLL_FAST_ONLY,
};
export const FOLL_NAMES = Object.keys(FOLL) as (keyof typeof FOLL)[];

const gup = describe({
  operationId: 'gup',
  tag: 'tasks',
  summary: 'get_user_pages(), pin_user_pages()',
  description:
    'Takes a reference (GET) or a pin (PIN) of each page of a range, faulting in what is not there. `ret` is the number of pages: a partial result hides the error, 0 means try again later. The pages are kept under `id` until DELETE .../gups/<id>.',
  does: 'command',
  waits: true,
  params: task,
  body: closed({
    addr: U64('First byte'),
    npage: CInt('Pages'),
    flags: Flags(FOLL_NAMES, 'FOLL_ flags'),
    gup: Type.Optional(Id('Id of the result; made when absent', 'g1')),
    stop_at: StopAt,
  }),
  bodyExample: { addr: '0x7f0000000000', npage: 2, flags: ['WRITE', 'PIN'], gup: 'g1' },
  success: [
    {
      status: 200,
      description: 'Got; ret is the number of pages',
      schema: ReplyOf({ id: Nullable(Type.String(), 'null: no page'), pfns: Type.Array(PageFrame('Host page')) }),
      example: { ret: 2, id: 'g1', pfns: [1048576, 1048577], seq: 28 },
    },
  ],
  refusals: [
    'EINVAL',
    'EFAULT',
    'ENOMEM',
    'EINTR',
    'EEXIST',
    'ENOSPC',
    'E2BIG',
    'EOPNOTSUPP',
    'EHWPOISON',
    'ESRCH',
    'EDEADLK',
    'EBUSY',
  ],
  refusalExample: { errno: 'EFAULT', detail: 'vaddr 0x600000000000: nothing is mapped' },
});

const listAll = describe({
  operationId: 'list_gups',
  tag: 'tasks',
  summary: 'Pages that are held',
  description: 'Results of get_user_pages() and pin_user_pages() that have not been released, by id.',
  does: 'read',
  params: { host: Path.host },
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of results',
      schema: PageOf(GupView),
      example: { items: [gupExample], next_cursor: null },
    },
  ],
  refusalExample: { errno: 'NOT_FOUND', detail: "no host 'h9'" },
});

const gupPath = { host: Path.host, gup: Path.gup };
const getOne = describe({
  operationId: 'get_gup',
  tag: 'tasks',
  summary: 'Pages of one call',
  description:
    'Which pages are held, and whether by references or pins. What is mapped at the address now may be another page.',
  does: 'read',
  params: gupPath,
  success: [{ status: 200, description: 'The pages', schema: GupView, example: gupExample }],
  refusalExample: { errno: 'NOT_FOUND', detail: "no gup 'g9'" },
});

export const DIRTY = ['no', 'set_page_dirty', 'set_page_dirty_lock'] as const;
const put = describe({
  operationId: 'put_gup',
  tag: 'tasks',
  summary: 'put_page(), unpin_user_page()',
  description:
    'Releases the pages of one call. `dirty` marks them first; set_page_dirty_lock takes each page lock, so it waits while somebody else holds one.',
  does: 'command',
  waits: true,
  params: gupPath,
  query: { dirty: Type.Optional(Names(DIRTY, 'How the pages are marked dirty (default no)')), task: Caller },
  success: [
    {
      status: 200,
      description: 'Released',
      schema: ReplyOf({}),
      example: { ret: 0, seq: 29 },
    },
  ],
  refusals: ['EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'NOT_FOUND', detail: "no gup 'g9'" },
});

const signal = describe({
  operationId: 'signal',
  tag: 'tasks',
  summary: 'A signal arrives',
  description:
    'It stays pending: what tests for signals is interrupted, a fatal one also ends waits that can be killed.',
  does: 'command',
  params: task,
  body: closed({ fatal: Type.Boolean({ description: 'SIGKILL, or one that is handled' }) }),
  bodyExample: { fatal: false },
  success: [
    {
      status: 200,
      description: 'Pending',
      schema: ReplyOf({ signal_pending: Type.Boolean(), fatal_signal_pending: Type.Boolean() }),
      example: { ret: 0, signal_pending: true, fatal_signal_pending: false, seq: 30 },
    },
  ],
  refusals: ['ESRCH'],
  refusalExample: { errno: 'ESRCH', detail: "task 'qemu' has exited" },
});

export const lockName = Type.String({
  pattern: '^(mutex:[a-zA-Z0-9._-]{1,63}|page_lock:(0|[1-9][0-9]{0,15}))$',
  description: '`mutex:<name>` (a lock of a driver) or `page_lock:<pfn>`',
});

const lock = describe({
  operationId: 'lock',
  tag: 'tasks',
  summary: 'Take a lock',
  description:
    'A thread of a driver takes a mutex of its own, or a page lock, and keeps it until `unlock` or its exit. It waits while somebody else holds it; that is 202 with the operation. A wait that could never end is refused, with the cycle.',
  does: 'command',
  waits: true,
  params: task,
  body: closed({ lock: lockName, stop_at: StopAt }),
  bodyExample: { lock: 'mutex:vq' },
  success: [
    {
      status: 200,
      description: 'Taken',
      schema: ReplyOf({}),
      example: { ret: 0, seq: 31 },
    },
  ],
  refusals: ['EINVAL', 'EINTR', 'ESRCH', 'ENOSPC', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'EINVAL', detail: 'lock: page 7 is not in use, or has no lock of its own' },
});

const unlock = describe({
  operationId: 'unlock',
  tag: 'tasks',
  summary: 'Release a lock',
  description: 'The lock goes to whoever has waited longest; its operation goes on at once.',
  does: 'command',
  params: task,
  body: closed({ lock: lockName }),
  bodyExample: { lock: 'mutex:vq' },
  success: [
    {
      status: 200,
      description: 'Released',
      schema: ReplyOf({}),
      example: { ret: 0, seq: 32 },
    },
  ],
  refusals: ['EINVAL', 'ESRCH'],
  refusalExample: { errno: 'EINVAL', detail: "task 'qemu' does not hold mutex:vq" },
});

/** Longer than a read may be: the kernel says so. */
const lengthOf = (length: string): number => Number(u64(length));

export function accessRoutes(app: Api): void {
  const one = '/v1/hosts/:host/tasks/:task';
  const gups = '/v1/hosts/:host/gups';
  app.post(`${one}/access`, { schema: access }, (request, reply) => {
    const { addr, flags, length, ...rest } = request.body;
    return submit(request, reply, {
      op: 'access',
      task: request.params.task,
      addr: u64(addr),
      ...(flags === undefined ? {} : { flags: mask(flags, FAULT_FLAGS) }),
      ...(length === undefined ? {} : { length: lengthOf(length) }),
      ...rest,
    });
  });
  app.post(`${one}/gup`, { schema: gup }, (request, reply) => {
    const { addr, npage, flags, ...rest } = request.body;
    return submit(request, reply, {
      op: 'gup',
      task: request.params.task,
      addr: u64(addr),
      npage: int(npage),
      flags: mask(flags, FOLL),
      ...rest,
    });
  });
  app.get(gups, { schema: listAll }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    const after = decodeCursor(cursor, 'string');
    return showPage(request, (host) => listGups(host, after, limit));
  });
  app.get(`${gups}/:gup`, { schema: getOne }, (request) => show(request, (host) => viewGup(host, request.params.gup)));
  app.delete(`${gups}/:gup`, { schema: put }, (request, reply) => {
    const { dirty = 'no', ...caller } = request.query;
    return submit(request, reply, { op: 'put_gup', gup: request.params.gup, dirty, ...caller });
  });
  app.post(`${one}/signal`, { schema: signal }, (request, reply) =>
    submit(request, reply, { op: 'signal', task: request.params.task, ...request.body }),
  );
  app.post(`${one}/lock`, { schema: lock }, (request, reply) =>
    submit(request, reply, { op: 'lock', task: request.params.task, ...request.body }),
  );
  app.post(`${one}/unlock`, { schema: unlock }, (request, reply) =>
    submit(request, reply, { op: 'unlock', task: request.params.task, ...request.body }),
  );
}
