// Routes of hosts: one emulated Linux machine each, isolated from all others.

import Type, { type Static } from 'typebox';
import type { HostOptions } from '../../kernel/command.ts';
import { PROFILE_NAMES } from '../../kernel/profile.ts';
import { DEFAULT_HOST_OPTIONS } from '../../service/host-options.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { FIX_NAMES, fixesText } from '../fixes.ts';
import { DEFAULT_PAGE, MAX_FIXES, MAX_TIMEOUT_MS, MAX_TTL_S } from '../limits.ts';
import { decodeCursor, printedFields } from '../parse.ts';
import { pageOf, submit } from '../reply.ts';
import { closed, Int, MAX_PFN, Names, Nullable, PageOf, PageQuery, Path, ReplyOf, UINT_MAX } from '../schema.ts';
import { HostFields, HostOptionsFields, HostView, LeakFields } from '../views/host.ts';

const host = { host: Path.host };
const changeable = {
  dma_entry_limit: Type.Optional(Int('Module parameter of type1, for iommu objects made from now on', 0, UINT_MAX)),
  notifier_timeout_ms: Type.Optional(Int('Time that a poll or webhook handler has', 1, MAX_TIMEOUT_MS)),
  ttl_s: Type.Optional(
    Nullable(Int('Seconds', 1, MAX_TTL_S), 'An untouched host is deleted after this time; null: never'),
  ),
};
/** What a host is made with; every field has a default. */
export const HostBody = closed({
  profile: Type.Optional(Names(PROFILE_NAMES, 'Kernel to behave as')),
  template: Type.Optional(Names(['empty', 'default'], 'What it contains')),
  total_pages: Type.Optional(Int('Host pages', 1, MAX_PFN)),
  fixes: Type.Optional(
    Type.Array(Names(FIX_NAMES, 'Fix'), {
      maxItems: MAX_FIXES,
      description: 'Known defects of the profile to be without, in any order',
    }),
  ),
  ...changeable,
});
const options = { ...DEFAULT_HOST_OPTIONS, fixes: [] };

/** The options that a body asks for. */
export const hostOptionsOf = ({ fixes = [], ...body }: Static<typeof HostBody>): HostOptions => ({
  ...options,
  ...body,
  fixes: [...new Set(fixes)].sort(),
});
const example = {
  id: 'h1',
  ...options,
  release: '5.15.85',
  created_at: 1700000000000,
  seq: 0,
  state: 'alive',
  dead: null,
  counters: {
    tasks: 0,
    containers: 0,
    groups: 0,
    devices: 0,
    notifiers: 0,
    mappings: 0,
    pinned_records: 0,
    pinned_pages: 0,
    operations_waiting: 0,
  },
  quarantined: null,
};

const put = describe({
  operationId: 'put_host',
  tag: 'hosts',
  summary: 'Make a host',
  description: `Template \`default\`: task qemu (4 GiB at 0x7f0000000000), container vfio0, group 26 and open device mdev0, nothing mapped.

The profile is the kernel that the host behaves as, its known defects included. Each of \`fixes\` takes one of them away:

${fixesText()}`,
  does: 'host',
  params: host,
  body: HostBody,
  bodyExample: { profile: '5.15', template: 'default' },
  success: [
    { status: 201, description: 'Made', schema: ReplyOf(HostFields), example: { ret: 0, ...example } },
    { status: 200, description: 'Exists with the same body: nothing changed', example: { ret: 0, ...example } },
  ],
  alsoStatuses: [409],
  refusalExample: { errno: 'EEXIST', detail: "host 'h1' exists and was created with other options" },
});

const patch = describe({
  operationId: 'patch_host',
  tag: 'hosts',
  summary: "Change a host's settings",
  description: 'dma_entry_limit holds for iommu objects made after the change, as the module parameter does.',
  does: 'command',
  params: host,
  body: closed(changeable),
  bodyExample: { notifier_timeout_ms: 2000 },
  success: [
    {
      status: 200,
      description: 'Changed',
      schema: ReplyOf(HostOptionsFields),
      example: { ret: 0, ...options, notifier_timeout_ms: 2000, seq: 1 },
    },
  ],
  refusalExample: { errno: 'NOT_FOUND', detail: "no host 'h9'" },
});

const list = describe({
  operationId: 'list_hosts',
  tag: 'hosts',
  summary: 'Hosts',
  description: 'All hosts, by id.',
  does: 'read',
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of hosts',
      schema: PageOf(HostView),
      example: { items: [example], next_cursor: null },
    },
  ],
});

const get = describe({
  operationId: 'get_host',
  tag: 'hosts',
  summary: 'One host',
  description: 'Options, position in the journal, counters, and whether it is alive, dead or quarantined.',
  does: 'read',
  params: host,
  success: [{ status: 200, description: 'The host', schema: HostView, example }],
  refusalExample: { errno: 'NOT_FOUND', detail: "no host 'h9'" },
});

const remove = describe({
  operationId: 'delete_host',
  tag: 'hosts',
  summary: 'Delete a host',
  description: 'Answers with the leak report: what its drivers left pinned.',
  does: 'host',
  params: host,
  success: [
    {
      status: 200,
      description: 'Deleted',
      schema: closed({ ret: Int('0'), ...LeakFields }),
      example: { ret: 0, items: [], references: 0 },
    },
  ],
  refusalExample: { errno: 'NOT_FOUND', detail: "no host 'h9'" },
});

const reset = describe({
  operationId: 'reset_host',
  tag: 'hosts',
  summary: 'Reset a host',
  description: 'As its template made it; the journal, the logs and the idempotency keys begin again.',
  does: 'host',
  params: host,
  body: closed({}),
  bodyExample: {},
  success: [{ status: 200, description: 'As new', schema: ReplyOf(HostFields), example: { ret: 0, ...example } }],
  refusalExample: { errno: 'NOT_FOUND', detail: "no host 'h9'" },
});

export function hostRoutes(app: Api): void {
  const one = '/v1/hosts/:host';
  app.put(one, { schema: put }, async (request, reply) => {
    const { created, view } = await app.service.createHost(request.params.host, hostOptionsOf(request.body));
    reply.code(created ? 201 : 200);
    return { ret: 0, ...printedFields(view) };
  });
  app.patch(one, { schema: patch }, (request, reply) => submit(request, reply, { op: 'patch_host', ...request.body }));
  app.get('/v1/hosts', { schema: list }, async (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    return pageOf(await app.service.hosts(), decodeCursor(cursor, 'string'), limit);
  });
  app.get(one, { schema: get }, async (request) => printedFields(await app.service.host(request.params.host)));
  app.delete(one, { schema: remove }, async (request) => ({
    ret: 0,
    ...printedFields(await app.service.deleteHost(request.params.host)),
  }));
  app.post(`${one}/reset`, { schema: reset }, async (request) => ({
    ret: 0,
    ...printedFields(await app.service.resetHost(request.params.host)),
  }));
}
