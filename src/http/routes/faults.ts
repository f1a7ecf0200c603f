// Routes of fault rules: failures that the next call of an operation is to meet, as the kernel's fault injection forces them.

import Type from 'typebox';
import { NoSuchObject } from '../../kernel/errno.ts';
import { FAULT_POINTS, type FaultRule } from '../../kernel/fault-rule.ts';
import type { Host } from '../../kernel/host.ts';
import type { Fields } from '../../kernel/outcome.ts';
import { byId, listed } from '../../kernel/view/page.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { DEFAULT_PAGE } from '../limits.ts';
import { decodeCursor, int } from '../parse.ts';
import { show, showPage, submit } from '../reply.ts';
import { closed, Int, Names, PageOf, PageQuery, Path, ReplyOf } from '../schema.ts';
import { FaultFields, FaultView } from '../views/host.ts';

export const POINTS = FAULT_POINTS;
/** Operations that allocate records or lists, or charge locked_vm. */
export const CALLS = [
  'pin_pages',
  'unpin_pages',
  'map_dma',
  'unmap_dma',
  'set_container',
  'unset_container',
  'set_iommu',
  'register_mmu_notifier',
  'get_mmu_notifier',
  'insert_interval_notifier',
] as const;

const fault = { host: Path.host, fault: Path.fault };
const example = { id: 'f0', point: 'record_alloc', call: 'pin_pages', nth: 1 };

const put = describe({
  operationId: 'put_fault',
  tag: 'faults',
  summary: 'Let the next call of an operation fail',
  description:
    'Holds for the next call of `call` and is gone after it, met or not. `record_alloc`: the allocation of a vfio_pfn fails. `charge`: a fatal signal arrives while the lock of locked_vm is waited for. `subscriptions_alloc`: the first registration of an mm finds no memory for its list. The `nth` attempt of that call fails.',
  does: 'command',
  params: fault,
  body: closed({
    point: Names(FAULT_POINTS, 'What fails'),
    call: Names(CALLS, 'Operation whose next call meets it'),
    nth: Type.Optional(Int('Which attempt of that call fails, from 1 (default 1)')),
  }),
  bodyExample: { point: 'record_alloc', call: 'pin_pages', nth: 1 },
  success: [
    { status: 201, description: 'Set', schema: ReplyOf(FaultFields), example: { ret: 0, ...example, seq: 38 } },
    { status: 200, description: 'Is set so already: nothing changed', example: { ret: 0, ...example, seq: 39 } },
  ],
  refusals: ['EINVAL', 'EEXIST', 'ENOSPC'],
  refusalExample: { errno: 'EINVAL', detail: 'nth: 0 is not a count from 1' },
});

const list = describe({
  operationId: 'list_faults',
  tag: 'faults',
  summary: 'Fault rules of a host',
  description: 'Those that no call has met yet, by id.',
  does: 'read',
  params: { host: Path.host },
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of rules',
      schema: PageOf(FaultView),
      example: { items: [example], next_cursor: null },
    },
  ],
  refusalExample: { errno: 'NOT_FOUND', detail: "no host 'h9'" },
});

const get = describe({
  operationId: 'get_fault',
  tag: 'faults',
  summary: 'One fault rule',
  description: 'A rule that no call has met yet.',
  does: 'read',
  params: fault,
  success: [{ status: 200, description: 'The rule', schema: FaultView, example }],
  refusalExample: { errno: 'NOT_FOUND', detail: "no fault 'f9'" },
});

const remove = describe({
  operationId: 'delete_fault',
  tag: 'faults',
  summary: 'Take a fault rule back',
  description: 'Before a call has met it: afterwards it is gone.',
  does: 'command',
  params: fault,
  success: [
    {
      status: 200,
      description: 'Taken back',
      schema: ReplyOf({ id: Type.String() }),
      example: { ret: 0, id: 'f0', seq: 40 },
    },
  ],
  refusalExample: { errno: 'NOT_FOUND', detail: "no fault 'f9'" },
});

const shown = (rule: FaultRule): Fields => ({ ...rule });

function viewFault(host: Host, id: string): Fields {
  const rule = host.faults.get(id);
  if (rule === undefined) throw new NoSuchObject('fault', id);
  return shown(rule);
}

export function faultRoutes(app: Api): void {
  const all = '/v1/hosts/:host/faults';
  const one = `${all}/:fault`;
  app.put(one, { schema: put }, (request, reply) => {
    const { point, call, nth = 1 } = request.body;
    return submit(request, reply, { op: 'put_fault', fault: request.params.fault, point, call, nth: int(nth) });
  });
  app.get(all, { schema: list }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    const after = decodeCursor(cursor, 'string');
    return showPage(request, (host) => listed(byId(host.faults, after), limit, ({ id }) => id, shown));
  });
  app.get(one, { schema: get }, (request) => show(request, (host) => viewFault(host, request.params.fault)));
  app.delete(one, { schema: remove }, (request, reply) =>
    submit(request, reply, { op: 'delete_fault', fault: request.params.fault }),
  );
}
