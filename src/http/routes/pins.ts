// Routes of vfio_pin_pages() and vfio_unpin_pages(), in the forms of both eras.

import Type from 'typebox';
import { type Command, READ, WRITE } from '../../kernel/command.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { int, mask, u64 } from '../parse.ts';
import { submit } from '../reply.ts';
import { CInt, closed, Flags, PageFrames, Path, ReplyOf, U64 } from '../schema.ts';

const device = { host: Path.host, device: Path.device };
const prot = Flags(['READ', 'WRITE'], 'Rights asked for');
const user_pfn = PageFrames('Guest page frame numbers: iova / 4096');
const npage = CInt('Pages');
const entries = Type.Optional(CInt('Entries to take; by default all of user_pfn'));
const iova = U64('First byte, device side');

const pin = describe({
  operationId: 'pin_pages',
  tag: 'pins',
  summary: 'vfio_pin_pages()',
  description:
    'Pins guest pages through a device: all of them or none. Profiles before 6.0 take `user_pfn`; `iova` and `npage` are the form of 6.0 and later. A pin that meets an invalid vaddr waits for it, or is refused, as the profile does.',
  does: 'command',
  waits: true,
  params: device,
  body: Type.Union([closed({ user_pfn, prot, npage: entries }), closed({ iova, npage, prot })]),
  bodyExample: { user_pfn: [16, 17], prot: ['READ', 'WRITE'] },
  success: [
    {
      status: 200,
      description: 'Pinned; ret is the number of pages',
      schema: ReplyOf({ phys_pfn: PageFrames('Host page frame numbers') }),
      example: { ret: 2, phys_pfn: [1048576, 1048577], seq: 3 },
    },
  ],
  refusals: [
    'EINVAL',
    'EPERM',
    'EFAULT',
    'ENOMEM',
    'EINTR',
    'EOVERFLOW',
    'E2BIG',
    'EACCES',
    'ENODEV',
    'EOPNOTSUPP',
    'EBUSY',
    'EIO',
  ],
  refusalExample: {
    errno: 'EINVAL',
    detail: "container 'vfio0' has no notifier registered",
    hint: 'register a DMA_UNMAP notifier before the first pin; any one of the container suffices',
    phys_pfn: [0, 0],
  },
});

const unpin = describe({
  operationId: 'unpin_pages',
  tag: 'pins',
  summary: 'vfio_unpin_pages()',
  description:
    'Drops one reference for each entry and stops at the first page that is not mapped. What is mapped but not pinned counts as done. From 6.0 on ret is 0, and what went wrong is a WARN, named in `warnings`.',
  does: 'command',
  params: device,
  body: Type.Union([closed({ user_pfn, npage: entries }), closed({ iova, npage })]),
  bodyExample: { user_pfn: [16, 17] },
  success: [
    {
      status: 200,
      description: 'ret is the number of entries processed',
      schema: ReplyOf({}),
      example: { ret: 2, seq: 4 },
    },
  ],
  refusals: ['EINVAL', 'EFAULT', 'E2BIG', 'EACCES', 'EPERM', 'ENODEV', 'EOPNOTSUPP', 'EIO'],
  refusalExample: { errno: 'EINVAL', detail: "iova 0x10000 is not mapped in container 'vfio0'", at_index: 0 },
});

type Form = { user_pfn: number[]; npage?: number } | { iova: string; npage: number };

/** The operands that pin and unpin share, in either form. */
const operandsOf = (body: Form): Pick<Extract<Command, { op: 'pin_pages' }>, 'user_pfn' | 'npage' | 'contiguous'> =>
  'iova' in body
    ? { user_pfn: [], npage: int(body.npage), contiguous: { iova: u64(body.iova) } }
    : { user_pfn: body.user_pfn.map(int), npage: int(body.npage ?? body.user_pfn.length) };

export function pinRoutes(app: Api): void {
  app.post('/v1/hosts/:host/devices/:device/pin_pages', { schema: pin }, (request, reply) => {
    const { device } = request.params;
    const { prot } = request.body;
    return submit(request, reply, {
      op: 'pin_pages',
      device,
      ...operandsOf(request.body),
      prot: mask(prot, { READ, WRITE }),
    });
  });
  app.post('/v1/hosts/:host/devices/:device/unpin_pages', { schema: unpin }, (request, reply) => {
    const { device } = request.params;
    return submit(request, reply, { op: 'unpin_pages', device, ...operandsOf(request.body) });
  });
}
