// Routes that look into a host: kernel log, trace, journal, invariants, leaks, and the rows for SQL.

import Type from 'typebox';
import type { Fields } from '../../kernel/outcome.ts';
import { invariants, leaks } from '../../kernel/view/host.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { DEFAULT_PAGE, MAX_PAGE } from '../limits.ts';
import { showPerfetto } from '../perfetto/perfetto.ts';
import { logBody, printLines, show, showLog } from '../reply.ts';
import { Count, closed, LogOf, Names, Path, SinceQuery } from '../schema.ts';
import { DmesgEntry, Invariants, JournalEntry, Leaks } from '../views/host.ts';
import { PerfettoTrace, TraceEntry } from '../views/trace.ts';

const host = { host: Path.host };
const refusalExample = { errno: 'NOT_FOUND', detail: "no host 'h9'" } as const;

const dmesg = describe({
  operationId: 'dmesg',
  tag: 'looking-in',
  summary: 'Kernel log',
  description:
    'A WARN or BUG is a splat in kernel style, with the request that caused it. `format=text` gives plain text.',
  does: 'read',
  params: host,
  query: { ...SinceQuery, format: Type.Optional(Names(['json', 'text'], 'json (default) or text')) },
  success: [
    {
      status: 200,
      description: 'Entries in order',
      schema: LogOf(DmesgEntry),
      example: {
        items: [
          {
            n: 1,
            seq: 12,
            at: 1700000000000,
            level: 'warning',
            text: 'WARNING: at notifier_chain_register',
            kind: 'WARN',
            where: 'notifier_chain_register',
            request_id: 'c9a1',
          },
        ],
      },
    },
    {
      status: 200,
      description: 'Entries in order',
      contentType: 'text/plain',
      schema: Type.String(),
      example: '[    0.000000] vfio: example\n',
    },
  ],
  refusalExample,
});

const trace = describe({
  operationId: 'trace',
  tag: 'looking-in',
  summary: 'Trace',
  description:
    'Every operation, phase, notifier call and lock event in one strict order. `format=perfetto` gives a document that https://ui.perfetto.dev opens: a track for each task, device and notifier, operations and pins as asynchronous slices, a flow from each event to its callbacks, counters. Without `since` that is about the newest entries.',
  does: 'read',
  params: host,
  query: {
    ...SinceQuery,
    limit: Type.Optional(
      Type.Integer({
        minimum: 1,
        maximum: MAX_PAGE,
        description: `Entries at most (default ${DEFAULT_PAGE}; of format=perfetto ${MAX_PAGE})`,
      }),
    ),
    format: Type.Optional(Names(['json', 'perfetto'], 'json (default) or perfetto')),
  },
  success: [
    {
      status: 200,
      description: 'Entries in order, or one document for the Perfetto UI',
      schema: Type.Union([LogOf(TraceEntry), PerfettoTrace]),
      example: {
        items: [
          {
            n: 1,
            seq: 1,
            at: 1700000000000,
            request_id: 'c9a1',
            event: 'operation',
            op: 'map_dma',
            ret: 0,
            errno: null,
            parked: null,
            task: 'qemu',
            device: null,
          },
        ],
      },
    },
  ],
  refusalExample,
});

const journal = describe({
  operationId: 'journal',
  tag: 'looking-in',
  summary: 'Journal',
  description:
    'The commands as accepted, with the digests of their outcomes: what a replay needs. A page may end before its `limit` where commands are large; only an empty page is the end.',
  does: 'read',
  params: host,
  query: SinceQuery,
  success: [
    {
      status: 200,
      description: 'Entries in order',
      schema: LogOf(JournalEntry),
      example: {
        items: [
          {
            n: 1,
            seq: 1,
            at: 1700000000000,
            request_id: 'c9a1',
            notification: null,
            op: 'open_device',
            command: { op: 'open_device', device: 'mdev0' },
            digest: '000102030405060708090a0b0c0d0e0f',
          },
        ],
      },
    },
  ],
  refusalExample,
});

const check = describe({
  operationId: 'invariants',
  tag: 'looking-in',
  summary: 'Invariants',
  description: 'Tree shapes, counters, references and charges, recomputed from scratch.',
  does: 'read',
  params: host,
  success: [
    {
      status: 200,
      description: 'What holds and what does not',
      schema: Invariants,
      example: { ok: true, violations: [] },
    },
  ],
  refusalExample,
});

const leak = describe({
  operationId: 'leaks',
  tag: 'looking-in',
  summary: 'Leaks',
  description: 'References that are left, per device and iova range, with the requests that took them.',
  does: 'read',
  params: host,
  success: [
    {
      status: 200,
      description: 'What is left',
      schema: Leaks,
      example: {
        items: [
          {
            device: 'mdev0',
            container: 'vfio0',
            iova: '0x10000',
            size: '0x2000',
            npage: 2,
            references: 1,
            first_pin: { seq: 3, request_id: 'c9a1' },
            last_pin: { seq: 3, request_id: 'c9a1' },
            notified: false,
            state: 'pinned',
            leaked_seq: null,
            warn: 'WARNING: at vfio_remove_dma: mapping [0x0, 0x10000000) of vfio0 removed with 2 vfio_pfn in it',
          },
        ],
        references: 2,
      },
    },
  ],
  refusalExample,
});

const sync = describe({
  operationId: 'sync',
  tag: 'looking-in',
  summary: 'Bring the rows for SQL up to now',
  description:
    'The relational rows follow the journal a little later; after this call they are true for `seq` at least.',
  does: 'host',
  params: host,
  body: closed({}),
  bodyExample: {},
  success: [
    {
      status: 200,
      description: 'Rows are true for seq',
      schema: closed({ ret: Count('0'), seq: Count('Position in the journal') }),
      example: { ret: 0, seq: 33 },
    },
  ],
  refusalExample,
});

export function lookingInRoutes(app: Api): void {
  const at = '/v1/hosts/:host';
  app.get(`${at}/dmesg`, { schema: dmesg }, async (request, reply) => {
    const { since = 0, limit = DEFAULT_PAGE, format } = request.query;
    const log = await showLog(request, (state) => state.dmesg.since(since, limit));
    return format === 'text' ? printLines(reply, log) : logBody(log);
  });
  app.get(`${at}/trace`, { schema: trace }, async (request) => {
    const { since, limit, format } = request.query;
    if (format === 'perfetto') return showPerfetto(request, since, limit ?? MAX_PAGE);
    return logBody(await showLog(request, (state) => state.trace.since(since ?? 0, limit ?? DEFAULT_PAGE)));
  });
  app.get(`${at}/journal`, { schema: journal }, async (request) => {
    const { since = 0, limit = DEFAULT_PAGE } = request.query;
    const { items, truncated } = await app.service.journal(request.params.host, since, limit);
    return logBody({ items: items as unknown as Fields[], truncated });
  });
  app.get(`${at}/invariants`, { schema: check }, (request) => show(request, invariants));
  app.get(`${at}/leaks`, { schema: leak }, (request) => show(request, leaks));
  app.post(`${at}/sync`, { schema: sync }, async (request) => ({
    ret: 0,
    ...(await app.service.sync(request.params.host)),
  }));
}
