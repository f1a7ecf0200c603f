// Route of differential runs: the same commands under several kernels, and the first difference of each kind.

import Type, { type Static } from 'typebox';
import type { Fields } from '../../kernel/outcome.ts';
import { PROFILE_NAMES } from '../../kernel/profile.ts';
import type { Item, Plan } from '../../service/differential/item.ts';
import type { RecordedOn } from '../../service/differential/journal-plan.ts';
import type { Api } from '../api.ts';
import { CommandBody, commandOf } from '../command-json.ts';
import { describe } from '../describe.ts';
import { MAX_COMPARED_PROFILES, MAX_NOTIFICATION_ID, MAX_SENT_COMMANDS } from '../limits.ts';
import { printedFields } from '../parse.ts';
import { endOf } from '../reply.ts';
import { closed, Id, Int, Names, Nullable } from '../schema.ts';
import { DifferentialReport } from '../views/differential.ts';
import { HostBody, hostOptionsOf } from './hosts.ts';

const profiles = Type.Array(Names(PROFILE_NAMES, 'Kernel'), {
  minItems: 2,
  maxItems: MAX_COMPARED_PROFILES,
  description: 'Kernels to run the commands under: the first is compared with each of the others',
});
const causes = Type.Optional(
  Type.Boolean({ description: 'Whether the behaviours are looked for that make the differences (default true)' }),
);

/** An item of a journal, or a command alone. */
export const ItemBody = closed({
  command: CommandBody,
  notification: Type.Optional(
    Nullable(
      Type.String({ minLength: 1, maxLength: MAX_NOTIFICATION_ID }),
      'The notification inside whose handler the call is made; they are numbered as they are sent: notification-1, ...',
    ),
  ),
  n: Type.Optional(Int('Of a journal; not looked at')),
  seq: Type.Optional(Int('Of a journal; not looked at')),
  at: Type.Optional(Int('Milliseconds since the epoch', 0)),
  request_id: Type.Optional(Type.String({ description: 'Named in splats' })),
  op: Type.Optional(Type.String({ description: 'Of a journal; not looked at' })),
  digest: Type.Optional(Type.String({ description: 'Of a journal; not looked at' })),
});

const OfHost = closed({
  profiles,
  host: Id('Host whose journal is taken', 'default'),
  until: Type.Optional(Int('Last seq that is taken (default: all)', 0)),
  causes,
});
const OfCommands = closed({
  profiles,
  commands: Type.Array(ItemBody, {
    maxItems: MAX_SENT_COMMANDS,
    description: 'In order: items of a journal, or commands alone',
  }),
  options: Type.Optional(HostBody),
  causes,
});

const MAP = { op: 'map_dma', container: 'vfio0', task: 'qemu', iova: '0x0', vaddr: '0x7f0000000000', size: '0x10000' };
const unpin = { op: 'unpin_pages', device: 'mdev0', user_pfn: [1] };

const differential = describe({
  operationId: 'differential',
  tag: 'differential',
  summary: 'Run the same commands under several kernels',
  description:
    "The commands are a host's journal, or a list: items of a journal, or commands written by hand in its spelling, with what requests may leave out left out. `options` is what a host is made with; its `profile` is the kernel that the commands were written for (default: the first of `profiles`). Nothing is changed, and no host is made. Pins are said in the form of each kernel. A handler is played when a kernel calls it, whatever its notification is called there.",
  does: 'read',
  body: Type.Union([OfCommands, OfHost]),
  bodyExample: {
    profiles: ['5.15', '6.18'],
    options: { template: 'default' },
    commands: [
      { command: { ...MAP, flags: ['READ', 'WRITE'] } },
      {
        command: {
          op: 'register_notifier',
          device: 'mdev0',
          notifier: { id: 'n0', events: ['DMA_UNMAP'], delivery: { kind: 'builtin', behavior: 'unpin_all' } },
        },
      },
      { command: { op: 'pin_pages', device: 'mdev0', user_pfn: [1, 2], prot: ['READ'] } },
      { command: unpin },
    ],
  },
  success: [
    {
      status: 200,
      description: 'What differs',
      schema: DifferentialReport,
      example: {
        ret: 0,
        written_for: '5.15',
        profiles: ['5.15', '6.18'],
        commands: 4,
        equal: false,
        comparisons: [
          {
            profiles: ['5.15', '6.18'],
            equal: false,
            differences: [
              {
                kind: 'return-value',
                name: 'unpin_pages: ret',
                position: 4,
                command: { ...unpin, npage: 1 },
                notification: null,
                answers: [{ ret: 1 }, { ret: 0 }],
                times: 1,
                causes: [
                  {
                    behaviour: 'pinForm',
                    meaning: 'What a pin names: an array of user_pfn, or iova and npage of a contiguous range',
                    values: ['user_pfn', 'iova'],
                    proof: 'removes',
                  },
                ],
              },
            ],
            translated: [
              {
                profile: '6.18',
                what: 'unpin_pages: user_pfn as iova and npage',
                position: 4,
                command: { ...unpin, npage: 1 },
                times: 1,
              },
            ],
            left_out: [],
            handlers: [],
          },
        ],
      },
    },
  ],
  alsoStatuses: [404, 409, 413],
  refusalExample: { errno: 'NOT_FOUND', detail: "no host 'h9'" },
});

/** The command of an item, and who called it. */
export const itemOf = (
  { command, notification = null, at = 0, request_id }: Static<typeof ItemBody>,
  index: number,
): Item => ({
  command: commandOf(command),
  notification,
  at,
  request_id: request_id ?? `command-${index + 1}`,
});

function sourceOf(body: Static<typeof OfHost> | Static<typeof OfCommands>): Plan | RecordedOn {
  if ('host' in body) return { host: body.host, until: body.until ?? null };
  const options = hostOptionsOf({ ...body.options, profile: body.options?.profile ?? (body.profiles[0] as '5.15') });
  return { items: body.commands.map(itemOf), options };
}

export function differentialRoute(app: Api): void {
  app.post('/v1/differential', { schema: differential }, async (request, reply) => {
    const { profiles, causes = true } = request.body;
    const settings = { profiles, causes, signal: endOf(request, reply) };
    const report = await app.service.differential(sourceOf(request.body), settings);
    return { ret: 0, ...printedFields({ ...report } as unknown as Fields) };
  });
}
