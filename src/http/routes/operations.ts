// Routes of operations: what waits, for what, and how it ended.

import Type from 'typebox';
import { listOperations, viewOperation } from '../../kernel/view/host.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { DEFAULT_PAGE } from '../limits.ts';
import { decodeCursor } from '../parse.ts';
import { showOperation, showOperations } from '../reply.ts';
import { PageOf, PageQuery, Path } from '../schema.ts';
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

const get = describe({
  operationId: 'get_operation',
  tag: 'operations',
  summary: 'One operation',
  description: 'A finished one has its result, or the problem it ended with, inside.',
  does: 'read',
  params: {
    host: Path.host,
    operation: Type.String({
      pattern: '^[a-z_]{1,64}-[0-9]{1,16}$',
      description: 'Operation',
      examples: ['unmap_dma-7'],
    }),
  },
  success: [{ status: 200, description: 'The operation', schema: OperationView, example: operationExample }],
  refusalExample: { errno: 'NOT_FOUND', detail: "no operation 'unmap_dma-99'" },
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
}
