// Routes of what subscribers do between callbacks: the sequence protocol of interval notifiers, and their secondary mappings.

import Type from 'typebox';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { u64 } from '../parse.ts';
import { submit } from '../reply.ts';
import { Caller, Count, closed, Path, ReplyOf, U64 } from '../schema.ts';

const notifier = { host: Path.host, mm: Path.mm, notifier: Path.mmuNotifier };
const notInterval = { errno: 'EINVAL', detail: "notifier 'n1' is no interval notifier" } as const;
const sequence = closed({ sequence: Count('What read_begin returned') });

const begin = describe({
  operationId: 'interval_read_begin',
  tag: 'mmu-notifiers',
  summary: 'mmu_interval_read_begin()',
  description:
    'Begins a collision-retry read: gives the sequence to compare with later. Waits while the interval is being invalidated; the reply is then 202.',
  does: 'command',
  waits: true,
  params: notifier,
  body: closed({ task: Caller }),
  bodyExample: {},
  success: [
    {
      status: 200,
      description: 'Begun',
      schema: ReplyOf({ sequence: Count('interval_sub->invalidate_seq') }),
      example: { ret: 0, sequence: 1, seq: 12 },
    },
  ],
  refusals: ['EINVAL', 'EOPNOTSUPP', 'ENODEV', 'EDEADLK', 'EBUSY'],
  refusalExample: notInterval,
});

const CHECKS = {
  retry: {
    op: 'interval_read_retry',
    summary: 'mmu_interval_read_retry()',
    description:
      'Under the lock of the user: `ret` 1 where the interval was invalidated since, and the read must start over.',
  },
  check: {
    op: 'interval_check_retry',
    summary: 'mmu_interval_check_retry()',
    description: 'Without the lock: `ret` 1 is reliable, 0 is only a hint.',
  },
  set: {
    op: 'interval_set_seq',
    summary: 'mmu_interval_set_seq()',
    description: 'Stores a sequence as `invalidate` would do under the lock of the user.',
  },
} as const;

const checkOf = ({ op, summary, description }: (typeof CHECKS)[keyof typeof CHECKS]) =>
  describe({
    operationId: op,
    tag: 'mmu-notifiers',
    summary,
    description,
    does: 'command',
    params: notifier,
    body: sequence,
    bodyExample: { sequence: 1 },
    success: [{ status: 200, description: 'Answered', schema: ReplyOf({}), example: { ret: 0, seq: 13 } }],
    refusals: ['EINVAL', 'EOPNOTSUPP', 'ENODEV'],
    refusalExample: notInterval,
  });

const map = describe({
  operationId: 'map_secondary',
  tag: 'mmu-notifiers',
  summary: 'Map a page for the device',
  description:
    'Makes a secondary mapping of what the page table maps at an address now, as a fault handler of KVM or a GPU does. Between a start and its end that is SPTE_IN_WINDOW; one that is left after the end is STALE_SECONDARY.',
  does: 'command',
  params: notifier,
  body: closed({
    addr: U64('Address'),
    writable: Type.Boolean({ description: 'Whether the device may write' }),
    task: Caller,
  }),
  bodyExample: { addr: '0x7f0000000000', writable: true },
  success: [
    {
      status: 200,
      description: 'Mapped',
      schema: ReplyOf({ id: Type.String(), pfn: Count('Host page') }),
      example: { ret: 0, id: 'n1', pfn: 1048576, seq: 14 },
    },
  ],
  refusals: ['EFAULT', 'EINVAL'],
  refusalExample: { errno: 'EFAULT', detail: 'addr 0x7f0000000000: nothing is present' },
});

const unmap = describe({
  operationId: 'unmap_secondary',
  tag: 'mmu-notifiers',
  summary: 'Unmap a page from the device',
  description: 'Drops a secondary mapping outside of any callback.',
  does: 'command',
  params: notifier,
  body: closed({ addr: U64('Address') }),
  bodyExample: { addr: '0x7f0000000000' },
  success: [
    {
      status: 200,
      description: 'Unmapped',
      schema: ReplyOf({ id: Type.String() }),
      example: { ret: 0, id: 'n1', seq: 15 },
    },
  ],
  refusals: ['ENOENT', 'EINVAL'],
  refusalExample: { errno: 'ENOENT', detail: "notifier 'n1' maps nothing at 0x7f0000000000" },
});

export function mmuIntervalRoutes(app: Api): void {
  const one = '/v1/hosts/:host/mms/:mm/notifiers/:notifier';
  app.post(`${one}/read_begin`, { schema: begin }, (request, reply) => {
    const { mm, notifier: id } = request.params;
    return submit(request, reply, { op: 'interval_read_begin', mm, id, ...request.body });
  });
  const routes = { read_retry: CHECKS.retry, check_retry: CHECKS.check, set_seq: CHECKS.set };
  for (const [name, check] of Object.entries(routes))
    app.post(`${one}/${name}`, { schema: checkOf(check) }, (request, reply) => {
      const { mm, notifier: id } = request.params;
      return submit(request, reply, { op: check.op, mm, id, sequence: request.body.sequence });
    });
  app.post(`${one}/map`, { schema: map }, (request, reply) => {
    const { mm, notifier: id } = request.params;
    const { addr, ...rest } = request.body;
    return submit(request, reply, { op: 'map_secondary', mm, id, addr: u64(addr), ...rest });
  });
  app.post(`${one}/unmap`, { schema: unmap }, (request, reply) => {
    const { mm, notifier: id } = request.params;
    return submit(request, reply, { op: 'unmap_secondary', mm, id, addr: u64(request.body.addr) });
  });
}
