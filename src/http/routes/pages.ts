// Routes of host pages.

import Type from 'typebox';
import { listFrames, viewPage } from '../../kernel/view/tasks.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { DEFAULT_PAGE } from '../limits.ts';
import { decodeCursor } from '../parse.ts';
import { show, showPage, submit } from '../reply.ts';
import { closed, MAX_PFN, Names, PageFrame, PageOf, PageQuery, Path, ReplyOf } from '../schema.ts';
import { Page } from '../views/tasks.ts';

const page = {
  host: Path.host,
  pfn: Type.Integer({ minimum: 0, maximum: MAX_PFN, description: 'Host page frame number', examples: [100] }),
};
const example = {
  pfn: 100,
  kind: 'normal',
  struct_page: true,
  mapping: 'anon',
  ref_count: 1,
  mapcount: 1,
  pin_count: 0,
  dirty: false,
  needs_writeback: false,
  swap_slot: null,
  locked_by: null,
};
const KINDS = ['normal', 'reserved', 'zero', 'device', 'zone_device'] as const;

const put = describe({
  operationId: 'put_page',
  tag: 'pages',
  summary: 'Decide what a page is',
  description: 'Before its first use. `device`: a page frame without struct page.',
  does: 'command',
  params: page,
  body: closed({ kind: Names(KINDS, 'What it is') }),
  bodyExample: { kind: 'reserved' },
  success: [
    {
      status: 201,
      description: 'Decided',
      schema: ReplyOf({ pfn: PageFrame('Host page'), kind: Names(KINDS, 'What it is') }),
      example: { ret: 0, pfn: 100, kind: 'reserved', seq: 31 },
    },
    {
      status: 200,
      description: 'Is so already: nothing changed',
      example: { ret: 0, pfn: 100, kind: 'reserved', seq: 32 },
    },
  ],
  refusals: ['EBUSY', 'EEXIST', 'ENOSPC', 'ENOMEM'],
  refusalExample: { errno: 'EBUSY', detail: 'page 100 is in use: ref_count 1' },
});

const list = describe({
  operationId: 'list_host_pages',
  tag: 'pages',
  summary: 'Host pages',
  description: 'All pages of which anything is known: in use, declared, or released dirty; by pfn.',
  does: 'read',
  params: { host: Path.host },
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of pages',
      schema: PageOf(Page),
      example: { items: [example], next_cursor: null },
    },
  ],
  refusalExample: { errno: 'NOT_FOUND', detail: "no host 'h9'" },
});

const get = describe({
  operationId: 'get_page',
  tag: 'pages',
  summary: 'One host page',
  description: 'What it is and who refers to it.',
  does: 'read',
  params: page,
  success: [
    {
      status: 200,
      description: 'The page',
      schema: Page,
      example,
    },
  ],
  refusalExample: { errno: 'NOT_FOUND', detail: "no host 'h9'" },
});

const CONTENTS = ['zero', 'pattern'] as const;
const Contents = Names(CONTENTS, 'Zeros, or bytes that differ from page to page');

const putContents = describe({
  operationId: 'put_page_contents',
  tag: 'pages',
  summary: 'Decide what pages hold that nobody has written',
  description:
    'Of explicit page layouts, before the first write. `pattern`: byte i of page pfn is (7 * (pfn % 256) + 13 * i + 31 * (i >> 8)) % 256. Anonymous memory and files begin as zeros whatever is chosen.',
  does: 'command',
  params: { host: Path.host },
  body: closed({ contents: Contents }),
  bodyExample: { contents: 'pattern' },
  success: [
    {
      status: 201,
      description: 'Decided',
      schema: ReplyOf({ contents: Contents }),
      example: { ret: 0, contents: 'pattern', seq: 35 },
    },
    { status: 200, description: 'Is so already: nothing changed', example: { ret: 0, contents: 'pattern', seq: 36 } },
  ],
  refusals: ['EBUSY'],
  refusalExample: { errno: 'EBUSY', detail: 'contents: 1 pages have been written already' },
});

const getContents = describe({
  operationId: 'get_page_contents',
  tag: 'pages',
  summary: 'What pages hold that nobody has written',
  description: 'Zeros unless something else was decided.',
  does: 'read',
  params: { host: Path.host },
  success: [
    { status: 200, description: 'The contents', schema: closed({ contents: Contents }), example: { contents: 'zero' } },
  ],
  refusalExample: { errno: 'NOT_FOUND', detail: "no host 'h9'" },
});

export function pageRoutes(app: Api): void {
  const one = '/v1/hosts/:host/pages/:pfn';
  app.put(one, { schema: put }, (request, reply) =>
    submit(request, reply, { op: 'put_page', pfn: request.params.pfn, kind: request.body.kind }),
  );
  app.get('/v1/hosts/:host/pages', { schema: list }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    const after = decodeCursor(cursor, 'number');
    return showPage(request, (host) => listFrames(host, after, limit));
  });
  app.get(one, { schema: get }, (request) => show(request, (host) => viewPage(host, request.params.pfn)));
  const contents = '/v1/hosts/:host/page_contents';
  app.put(contents, { schema: putContents }, (request, reply) =>
    submit(request, reply, { op: 'put_page_contents', contents: request.body.contents }),
  );
  app.get(contents, { schema: getContents }, (request) => show(request, ({ mm }) => ({ contents: mm.contents })));
}
