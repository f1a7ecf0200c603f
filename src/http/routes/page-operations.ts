// Routes of what the kernel does to one host page with all its mappings: writeback, reclaim, migration.

import Type, { type TProperties } from 'typebox';
import type { ErrnoName } from '../../kernel/errno.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { submit } from '../reply.ts';
import { Count, closed, Nullable, PageFrame, Path, ReplyOf, StopAt } from '../schema.ts';

const page = { host: Path.host, pfn: Path.pfn };

interface About {
  op: 'mkclean' | 'reclaim' | 'migrate';
  summary: string;
  description: string;
  fields: TProperties;
  example: { ret: number; [field: string]: unknown };
  refusals: readonly ErrnoName[];
  refusal: { errno: ErrnoName; detail: string };
}

const OPERATIONS: readonly About[] = [
  {
    op: 'mkclean',
    summary: 'page_mkclean()',
    description:
      'Write-protects a page of a file before its writeback, in every shared mapping: notifiers are told PROTECTION_PAGE with the page lock held. `ret` counts the entries.',
    fields: { pfn: PageFrame('The page'), cleaned: Count('Entries that were made read-only') },
    example: { ret: 1, pfn: 100, cleaned: 1 },
    refusals: ['EINVAL', 'ENOENT', 'ENOSPC', 'EDEADLK', 'EBUSY'],
    refusal: { errno: 'EINVAL', detail: 'page 100 is no page of a file' },
  },
  {
    op: 'reclaim',
    summary: 'Reclaim a page',
    description:
      'Unmaps a page everywhere (CLEAR for each mapping area) and frees it, an anonymous one to swap. `ret` is 1 where it was freed; otherwise `kept` says why. A pinned page is refused before anybody is told.',
    fields: {
      freed: Type.Boolean(),
      kept: Nullable(Type.String(), 'Why it was not: locked, pinned, no_swap, mapped, dirty, referenced'),
    },
    example: { ret: 1, freed: true, kept: null },
    refusals: ['EINVAL', 'ENOENT', 'EDEADLK', 'EBUSY'],
    refusal: { errno: 'ENOENT', detail: 'page 100 is not in use' },
  },
  {
    op: 'migrate',
    summary: 'Migrate a page',
    description:
      'Moves a page to another frame: CLEAR for each mapping area while migration entries are put in; nothing when they become entries of the new page. A pin or other reference fails it with EAGAIN, after the callbacks.',
    fields: { pfn: PageFrame('The new page') },
    example: { ret: 0, pfn: 1048580 },
    refusals: ['EINVAL', 'ENOENT', 'ENOMEM', 'EAGAIN', 'EDEADLK', 'EBUSY'],
    refusal: { errno: 'EAGAIN', detail: 'page 1048576 has references that are no mappings' },
  },
];

const schemaOf = ({ op, summary, description, fields, example, refusals, refusal }: About) =>
  describe({
    operationId: op,
    tag: 'pages',
    summary,
    description,
    does: 'command',
    waits: true,
    params: page,
    body: closed({ stop_at: StopAt }),
    bodyExample: {},
    success: [
      {
        status: 200,
        description: 'Done',
        schema: ReplyOf(fields),
        example: { ...example, seq: 37 },
      },
    ],
    refusals,
    refusalExample: refusal,
  });

export function pageOperationRoutes(app: Api): void {
  for (const about of OPERATIONS)
    app.post(`/v1/hosts/:host/pages/:pfn/${about.op}`, { schema: schemaOf(about) }, (request, reply) =>
      submit(request, reply, { op: about.op, pfn: request.params.pfn, ...request.body }),
    );
}
