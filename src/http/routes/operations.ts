// Routes of operations: what waits, for what, and how it ended.

import Type from 'typebox';
import { listOperations, viewOperation } from '../../kernel/view/host.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { DEFAULT_PAGE } from '../limits.ts';
import { decodeCursor } from '../parse.ts';
import { showOperation, showOperations, submit, submitStep } from '../reply.ts';
import { closed, PageOf, PageQuery, Path, ReplyOf, StopAt } from '../schema.ts';
import { OperationView, operationExample, Stepped, steppedExample } from '../views/host.ts';

const list = describe({
  operationId: 'list_operations',
  tag: 'operations',
  summary: 'Operations of a host',
  description: 'In the order in which they started; finished ones are kept for a while.',
  does: 'read',
  params: { host: Path.host },
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of operations',
      schema: PageOf(OperationView),
      example: { items: [operationExample], next_cursor: null },
    },
  ],
  refusalExample: { errno: 'NOT_FOUND', detail: "no host 'h9'" },
});

const operation = {
  host: Path.host,
  operation: Type.String({
    pattern: '^[a-zA-Z][a-zA-Z0-9._-]{0,127}$',
    description: 'Operation',
    examples: ['unmap_dma-7'],
  }),
};

const get = describe({
  operationId: 'get_operation',
  tag: 'operations',
  summary: 'One operation',
  description: 'A finished one has its result, or the problem it ended with, inside.',
  does: 'read',
  params: operation,
  success: [{ status: 200, description: 'The operation', schema: OperationView, example: operationExample }],
  refusalExample: { errno: 'NOT_FOUND', detail: "no operation 'unmap_dma-99'" },
});

const kill = describe({
  operationId: 'kill_operation',
  tag: 'operations',
  summary: 'A fatal signal for a thread that sleeps',
  description:
    'Ends an operation that waits for a valid vaddr: it returns EFAULT. Nothing else that waits can be killed.',
  does: 'command',
  params: operation,
  body: closed({}),
  bodyExample: {},
  success: [
    {
      status: 200,
      description: 'Killed',
      schema: ReplyOf({ id: Type.String() }),
      example: { ret: 0, id: 'pin_pages-7', seq: 37 },
    },
  ],
  refusals: ['EINVAL'],
  refusalExample: {
    errno: 'EINVAL',
    detail: "operation 'unmap_dma-7' is notify: only a wait for a vaddr ends with a fatal signal",
  },
});

const step = describe({
  operationId: 'step_operation',
  tag: 'operations',
  summary: 'One phase further',
  description:
    'Lets a stopped operation run to its next phase, or to its end. The reply is the operation as this step has left it, a finished one with its result or problem inside. It never waits: an operation that meets a lock or a callback of a client is `blocked`.',
  does: 'command',
  params: operation,
  body: closed({}),
  bodyExample: {},
  success: [{ status: 200, description: 'Gone on', schema: Stepped, example: { ret: 0, ...steppedExample, seq: 9 } }],
  refusals: ['EBUSY'],
  refusalExample: {
    errno: 'EBUSY',
    detail: "operation 'munmap-7' is done: only a stopped one can go on",
    hint: 'see GET of the operation',
  },
});

const resume = describe({
  operationId: 'resume_operation',
  tag: 'operations',
  summary: 'To the end, or to a phase',
  description:
    'Lets a stopped operation run on to its end, or to the next time that it comes to `stop_at`. Replies as a step does.',
  does: 'command',
  params: operation,
  body: closed({ stop_at: StopAt }),
  bodyExample: { stop_at: 'before_end' },
  success: [
    {
      status: 200,
      description: 'Gone on',
      schema: Stepped,
      example: { ret: 0, ...steppedExample, phase: 'before_end', seq: 10 },
    },
  ],
  refusals: ['EBUSY'],
  refusalExample: {
    errno: 'EBUSY',
    detail: "operation 'munmap-7' is blocked: only a stopped one can go on",
    hint: 'it waits for page_lock:42',
  },
});

export function operationRoutes(app: Api): void {
  const all = '/v1/hosts/:host/operations';
  app.get(all, { schema: list }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    const after = decodeCursor(cursor, 'number');
    return showOperations(request, (host) => listOperations(host, after, limit));
  });
  app.get(`${all}/:operation`, { schema: get }, (request) => {
    const { operation } = request.params;
    return showOperation(request, (host) => viewOperation(host, operation));
  });
  app.post(`${all}/:operation/step`, { schema: step }, (request, reply) =>
    submitStep(request, reply, { op: 'step_operation', operation: request.params.operation }),
  );
  app.post(`${all}/:operation/resume`, { schema: resume }, (request, reply) =>
    submitStep(request, reply, {
      op: 'resume_operation',
      operation: request.params.operation,
      ...request.body,
    }),
  );
  app.post(`${all}/:operation/kill`, { schema: kill }, (request, reply) =>
    submit(request, reply, { op: 'kill_operation', operation: request.params.operation }),
  );
}
