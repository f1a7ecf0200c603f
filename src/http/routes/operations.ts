// Routes of operations: what waits, for what, and how it ended.

import Type from 'typebox';
import { listOperations, viewOperation } from '../../kernel/view/host.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { DEFAULT_PAGE } from '../limits.ts';
import { decodeCursor } from '../parse.ts';
import { showOperation, showOperations, submit } from '../reply.ts';
import { closed, PageOf, PageQuery, Path, ReplyOf } from '../schema.ts';
import { OperationView, operationExample } from '../views/host.ts';

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
    pattern: '^[a-z_]{1,64}-[0-9]{1,16}$',
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
  app.post(`${all}/:operation/kill`, { schema: kill }, (request, reply) =>
    submit(request, reply, { op: 'kill_operation', operation: request.params.operation }),
  );
}
