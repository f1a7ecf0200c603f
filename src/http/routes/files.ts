// Routes of files and their page cache, and of what is done to one host page with all its mappings.

import { listFiles, viewFile } from '../../kernel/view/files.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { DEFAULT_PAGE } from '../limits.ts';
import { decodeCursor, u64 } from '../parse.ts';
import { show, showPage, submit } from '../reply.ts';
import { closed, PageOf, PageQuery, Path, ReplyOf, StopAt, U64 } from '../schema.ts';
import { FileFields, FileView, fileExample } from '../views/mm.ts';

const file = { host: Path.host, file: Path.file };
const noFile = { errno: 'NOT_FOUND', detail: "no file 'f9'" } as const;

const put = describe({
  operationId: 'put_file',
  tag: 'files',
  summary: 'Make a file',
  description: 'Of a size: what lies beyond it is SIGBUS. A file that an mmap mentions first has no end.',
  does: 'command',
  params: file,
  body: closed({ size: U64('Bytes') }),
  bodyExample: { size: '0x10000' },
  success: [
    { status: 201, description: 'Made', schema: ReplyOf(FileFields), example: { ret: 0, ...fileExample, seq: 33 } },
    {
      status: 200,
      description: 'Exists with the same size: nothing changed',
      example: { ret: 0, ...fileExample, seq: 34 },
    },
  ],
  refusals: ['EINVAL', 'EEXIST', 'ENOSPC'],
  refusalExample: { errno: 'EEXIST', detail: "file 'f1' exists with size 0x10000, not 0x20000" },
});

const list = describe({
  operationId: 'list_files',
  tag: 'files',
  summary: 'Files of a host',
  description: 'Every file that was made or mapped, by name.',
  does: 'read',
  params: { host: Path.host },
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of files',
      schema: PageOf(FileView),
      example: { items: [fileExample], next_cursor: null },
    },
  ],
  refusalExample: { errno: 'NOT_FOUND', detail: "no host 'h9'" },
});

const get = describe({
  operationId: 'get_file',
  tag: 'files',
  summary: 'One file',
  description: 'Its size and how many of its pages are in the page cache.',
  does: 'read',
  params: file,
  success: [{ status: 200, description: 'The file', schema: FileView, example: fileExample }],
  refusalExample: noFile,
});

const truncate = describe({
  operationId: 'truncate',
  tag: 'files',
  summary: 'ftruncate()',
  description:
    'Sets the size. What lies beyond goes from every mapping, private copies included; notifiers are told CLEAR of each mapping area, then of each page that is mapped again, then once more.',
  does: 'command',
  waits: true,
  params: file,
  body: closed({ size: U64('Bytes'), stop_at: StopAt }),
  bodyExample: { size: '0x1000' },
  success: [
    {
      status: 200,
      description: 'Truncated',
      schema: ReplyOf(FileFields),
      example: { ret: 0, ...fileExample, size: '0x1000', seq: 35 },
    },
  ],
  refusals: ['EINVAL', 'EDEADLK', 'EBUSY'],
  refusalExample: noFile,
});

const punch = describe({
  operationId: 'punch_hole',
  tag: 'files',
  summary: 'fallocate(FALLOC_FL_PUNCH_HOLE)',
  description:
    'Takes whole pages out of a file; private copies of them stay. Notifiers are told CLEAR once for each mapping area.',
  does: 'command',
  waits: true,
  params: file,
  body: closed({ offset: U64('First byte'), length: U64('Bytes'), stop_at: StopAt }),
  bodyExample: { offset: '0x0', length: '0x1000' },
  success: [
    {
      status: 200,
      description: 'Punched',
      schema: ReplyOf({}),
      example: { ret: 0, seq: 36 },
    },
  ],
  refusals: ['EINVAL', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'EINVAL', detail: 'length: 0x0' },
});

export function fileRoutes(app: Api): void {
  const all = '/v1/hosts/:host/files';
  const one = `${all}/:file`;
  app.put(one, { schema: put }, (request, reply) =>
    submit(request, reply, { op: 'put_file', file: request.params.file, size: u64(request.body.size) }),
  );
  app.get(all, { schema: list }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    const after = decodeCursor(cursor, 'string');
    return showPage(request, (host) => listFiles(host, after, limit));
  });
  app.get(one, { schema: get }, (request) => show(request, (host) => viewFile(host, request.params.file)));
  app.post(`${one}/truncate`, { schema: truncate }, (request, reply) => {
    const { size, ...rest } = request.body;
    return submit(request, reply, { op: 'truncate', file: request.params.file, size: u64(size), ...rest });
  });
  app.post(`${one}/punch_hole`, { schema: punch }, (request, reply) => {
    const { offset, length, ...rest } = request.body;
    return submit(request, reply, {
      op: 'punch_hole',
      file: request.params.file,
      offset: u64(offset),
      length: u64(length),
      ...rest,
    });
  });
}
