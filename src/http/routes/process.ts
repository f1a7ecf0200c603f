// Routes of the process itself: is it there, does it accept work, how is it doing.

import Type from 'typebox';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import type { Metrics } from '../metrics.ts';
import { Count, closed } from '../schema.ts';

const health = describe({
  operationId: 'healthz',
  tag: 'process',
  summary: 'Is the process there',
  description: 'Answers as long as the process can answer at all. Works without a token.',
  does: 'process',
  success: [
    { status: 200, description: 'It is', schema: closed({ status: Type.Literal('ok') }), example: { status: 'ok' } },
  ],
});

const Readiness = closed(
  {
    ready: Type.Boolean({ description: 'Whether it accepts work' }),
    draining: Type.Boolean({ description: 'Whether it is stopping' }),
    quarantined: Type.Array(
      closed({
        host: Type.String(),
        reason: Type.String(),
        revision: Count('Semantics revision that wrote the journal'),
      }),
      {
        description: 'Hosts whose journal does not match: 503 on their paths',
      },
    ),
  },
  { title: 'Readiness' },
);

const ready = describe({
  operationId: 'readyz',
  tag: 'process',
  summary: 'Does it accept work',
  description: '200 also with quarantined hosts: they are listed. Works without a token.',
  does: 'process',
  success: [
    {
      status: 200,
      description: 'It does',
      schema: Readiness,
      example: { ready: true, draining: false, quarantined: [] },
    },
    {
      status: 503,
      description: 'Not yet, or not any more',
      schema: Readiness,
      example: { ready: false, draining: true, quarantined: [] },
    },
  ],
});

const metricsPage = describe({
  operationId: 'metrics',
  tag: 'process',
  summary: 'Prometheus metrics',
  description: 'Requests, latencies, commands, commits, and the numbers of the process.',
  does: 'process',
  success: [
    {
      status: 200,
      description: 'Text exposition format',
      contentType: 'text/plain',
      schema: Type.String(),
      example: 'emulator_commands_total{op="map_dma",errno=""} 1\n',
    },
  ],
  alsoStatuses: [401],
});

export function openProcessRoutes(app: Api): void {
  app.get('/healthz', { schema: health }, () => ({ status: 'ok' }));
  app.get('/readyz', { schema: ready }, (_request, reply) => {
    const { ready, draining, quarantined } = app.service.readiness();
    reply.code(ready ? 200 : 503).send({ ready, draining, quarantined });
  });
}

export function metricsRoute(app: Api, metrics: Metrics): void {
  app.get('/metrics', { schema: metricsPage }, async (_request, reply) => {
    reply.type(metrics.contentType);
    return metrics.text();
  });
}
