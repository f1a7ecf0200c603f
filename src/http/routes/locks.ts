// Routes of locks, of their order, and of violated contracts.

import Type from 'typebox';
import { listLockOrder, listLocks, violationsSince } from '../../kernel/view/locks.ts';
import { VIOLATION_CODES } from '../../kernel/violation.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { DEFAULT_PAGE } from '../limits.ts';
import { decodeCursor } from '../parse.ts';
import { logBody, showLog, showPage } from '../reply.ts';
import { LogOf, Names, PageOf, PageQuery, Path, SinceQuery } from '../schema.ts';
import { LockOrder, LockView, lockExample, ViolationView, violationExample } from '../views/mm.ts';

const host = { host: Path.host };
const refusalExample = { errno: 'NOT_FOUND', detail: "no host 'h9'" } as const;

const locks = describe({
  operationId: 'list_locks',
  tag: 'looking-in',
  summary: 'Locks',
  description: 'Every lock that an operation or a task holds or waits for, by id.',
  does: 'read',
  params: host,
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of locks',
      schema: PageOf(LockView),
      example: { items: [lockExample], next_cursor: null },
    },
  ],
  refusalExample,
});

const order = describe({
  operationId: 'list_lock_order',
  tag: 'looking-in',
  summary: 'Lock order',
  description:
    'What lockdep has learned: which class of locks was taken while which other was held, and where first. Two orders that contradict each other are a violation.',
  does: 'read',
  params: host,
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of orders',
      schema: PageOf(LockOrder),
      example: {
        items: [{ held: 'mmap_lock', taken: 'ptl', path: 'access-12 after_start', seq: 12 }],
        next_cursor: null,
      },
    },
  ],
  refusalExample,
});

const violations = describe({
  operationId: 'list_violations',
  tag: 'looking-in',
  summary: 'Violations of the mmu_notifier contract',
  description:
    'What a driver did against the rules, as data; the same is in dmesg as the kernel would print it. Each code has a section in docs/reference/violations.md.',
  does: 'read',
  params: host,
  query: { ...SinceQuery, code: Type.Optional(Names(VIOLATION_CODES, 'Only this code')) },
  success: [
    {
      status: 200,
      description: 'Entries in order',
      schema: LogOf(ViolationView),
      example: { items: [violationExample] },
    },
  ],
  refusalExample,
});

export function lockRoutes(app: Api): void {
  const at = '/v1/hosts/:host';
  app.get(`${at}/locks`, { schema: locks }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    const after = decodeCursor(cursor, 'string');
    return showPage(request, (state) => listLocks(state, after, limit));
  });
  app.get(`${at}/lock_order`, { schema: order }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    const after = decodeCursor(cursor, 'string');
    return showPage(request, (state) => listLockOrder(state, after, limit));
  });
  app.get(`${at}/violations`, { schema: violations }, async (request) => {
    const { since = 0, limit = DEFAULT_PAGE, code = null } = request.query;
    return logBody(await showLog(request, (state) => violationsSince(state, since, limit, code)));
  });
}
