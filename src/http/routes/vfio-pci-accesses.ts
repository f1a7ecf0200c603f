// Routes of the regions of a vfio-pci device: mappings of BARs, read() and write(), ioeventfds.

import Type from 'typebox';
import { listIoeventfds } from '../../kernel/view/vfio-pci.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { DEFAULT_PAGE } from '../limits.ts';
import { decodeCursor, int, mask, u64 } from '../parse.ts';
import { showPage, submit } from '../reply.ts';
import {
  Base64,
  Caller,
  CInt,
  closed,
  Flags,
  Id,
  PageOf,
  PageQuery,
  Path,
  ReplyOf,
  StopAt,
  U64,
  U64Out,
} from '../schema.ts';
import { IoeventfdFields, IoeventfdView, ioeventfdExample } from '../views/vfio-pci.ts';
import { MAP_FLAGS } from './dma.ts';

const pci = { host: Path.host, pci: Path.pci };
const nobody = { errno: 'NOT_FOUND', detail: "no vfio_pci 'nic9'" } as const;

const mmap = describe({
  operationId: 'vfio_pci_mmap',
  tag: 'vfio-pci',
  summary: 'Map a part of a BAR',
  description:
    'Whether the memory is enabled is not asked, and nothing is mapped before the first access. What the range overlaps is unmapped first, even where the device then refuses. EINVAL, in this order: private; a region that is no BAR; a BAR that cannot be mapped; beyond its end in whole pages.',
  does: 'command',
  waits: true,
  params: pci,
  body: closed({
    task: Id('Task', 'qemu'),
    addr: U64('First byte'),
    length: U64('Bytes'),
    bar: CInt('BAR'),
    offset: Type.Optional(U64('First byte in the BAR (default 0)')),
    prot: Type.Optional(Flags(['READ', 'WRITE'], 'Rights (default: both)')),
    shared: Type.Optional(Type.Boolean({ description: 'MAP_SHARED (default true)' })),
    stop_at: StopAt,
  }),
  bodyExample: { task: 'qemu', addr: '0x600000000000', length: '0x4000', bar: 0 },
  success: [
    {
      status: 200,
      description: 'Mapped',
      schema: ReplyOf({ addr: U64Out('First byte') }),
      example: { ret: 0, addr: '0x600000000000', seq: 45 },
    },
  ],
  refusals: ['ENODEV', 'ESRCH', 'EINVAL', 'ENOMEM', 'EINTR', 'EBUSY', 'EDEADLK'],
  refusalExample: { errno: 'EINVAL', detail: 'shared: false; the memory of a device is mapped shared' },
});

const region = { ...pci, region: Path.region };
const where = {
  pos: U64('First byte in the region'),
  task: Caller,
  buf: Type.Optional(U64('Buffer of the caller; may be a mapping of a BAR')),
  stop_at: StopAt,
};
const rwRefusals = [
  'ENODEV',
  'EINVAL',
  'ESRCH',
  'EFAULT',
  'ENOMEM',
  'EOPNOTSUPP',
  'E2BIG',
  'EBUSY',
  'EDEADLK',
] as const;

const read = describe({
  operationId: 'vfio_pci_read',
  tag: 'vfio-pci',
  summary: 'read() of a region',
  description:
    'In accesses of 4, 2 or 1 bytes, each a phase `before_unit`. Without `buf` the bytes come with the reply. EIO (422) while the memory is disabled: 5.8 holds memory_lock throughout, later kernels test before each access, and what was read before is lost. The MSI-X table and what lies behind the image of a ROM read as 0xff.',
  does: 'command',
  waits: true,
  params: region,
  body: closed({ ...where, count: CInt('Bytes') }),
  bodyExample: { pos: '0x0', count: 8 },
  success: [
    {
      status: 200,
      description: 'Read; ret is the number of bytes',
      schema: ReplyOf({ data: Type.Optional(Base64('What was read, where there is no buffer')) }),
      example: { ret: 8, data: 'AAAAAAAAAAA=', seq: 46 },
    },
  ],
  refusals: rwRefusals,
  refusalExample: { errno: 'EINVAL', detail: 'pos: 0x10000 is beyond the region of 0x10000' },
});

const write = describe({
  operationId: 'vfio_pci_write',
  tag: 'vfio-pci',
  summary: 'write() of a region',
  description: 'As read(). The bytes are `data`, or `count` bytes from `buf` of the task. The ROM cannot be written.',
  does: 'command',
  waits: true,
  params: region,
  body: closed({
    ...where,
    data: Type.Optional(Base64('Bytes to write')),
    count: Type.Optional(CInt('Bytes (default: those of data)')),
  }),
  bodyExample: { pos: '0x0', data: 'AQIDBA==' },
  success: [
    {
      status: 200,
      description: 'Written; ret is the number of bytes',
      schema: ReplyOf({}),
      example: { ret: 4, seq: 47 },
    },
  ],
  refusals: rwRefusals,
  refusalExample: { errno: 'EINVAL', detail: 'region: the ROM cannot be written' },
});

const ioeventfd = { ...pci, ioeventfd: Path.ioeventfd };
const ioeventfdReply = { ret: 0, ...ioeventfdExample, seq: 48 };

const putIoeventfd = describe({
  operationId: 'vfio_pci_put_ioeventfd',
  tag: 'vfio-pci',
  summary: 'Make an ioeventfd',
  description: 'VFIO_DEVICE_IOEVENTFD: a signal writes the bytes to the BAR, without user space in between.',
  does: 'command',
  params: ioeventfd,
  body: closed({ bar: CInt('BAR'), pos: U64('Byte in the BAR'), data: Base64('1, 2, 4 or 8 bytes, little-endian') }),
  bodyExample: { bar: 0, pos: '0x10', data: 'AQAAAA==' },
  success: [
    { status: 201, description: 'Made', schema: ReplyOf(IoeventfdFields), example: ioeventfdReply },
    { status: 200, description: 'Exists with the same write: nothing changed', example: ioeventfdReply },
  ],
  refusals: ['ENODEV', 'EINVAL', 'ENOMEM', 'ENOSPC', 'EEXIST', 'EBUSY'],
  refusalExample: { errno: 'EINVAL', detail: 'pos: 0x10 is in the MSI-X table' },
});

const deleteIoeventfd = describe({
  operationId: 'vfio_pci_delete_ioeventfd',
  tag: 'vfio-pci',
  summary: 'Take an ioeventfd back',
  description: 'A signal in flight is nobody’s any more.',
  does: 'command',
  params: ioeventfd,
  success: [
    {
      status: 200,
      description: 'Gone',
      schema: ReplyOf({ id: Type.String({ description: 'Id' }) }),
      example: { ret: 0, id: 'kick0', seq: 49 },
    },
  ],
  refusals: ['ENODEV'],
  refusalExample: { errno: 'NOT_FOUND', detail: "no ioeventfd of nic0 'kick9'" },
});

const listAll = describe({
  operationId: 'list_ioeventfds',
  tag: 'vfio-pci',
  summary: 'ioeventfds of a device',
  description: 'By id.',
  does: 'read',
  params: pci,
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of ioeventfds',
      schema: PageOf(IoeventfdView),
      example: { items: [ioeventfdExample], next_cursor: null },
    },
  ],
  refusals: ['ENODEV'],
  refusalExample: nobody,
});

const signal = describe({
  operationId: 'vfio_pci_signal_ioeventfd',
  tag: 'vfio-pci',
  summary: 'Signal an ioeventfd',
  description:
    'While the memory is disabled the write is dropped without a word from 5.15 on; in 5.8 it reaches the device. Where memory_lock is taken, a kernel thread waits for it.',
  does: 'command',
  waits: true,
  params: ioeventfd,
  body: closed({ stop_at: StopAt }),
  bodyExample: {},
  success: [
    {
      status: 200,
      description: 'Signalled',
      schema: ReplyOf({
        done: Type.Boolean({ description: 'Whether the device was written' }),
        deferred: Type.Boolean({ description: 'Whether a kernel thread did it' }),
      }),
      example: { ret: 0, done: true, deferred: false, seq: 50 },
    },
  ],
  refusals: ['ENODEV', 'ENOMEM', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'NOT_FOUND', detail: "no ioeventfd of nic0 'kick9'" },
});

type Where = { pos: string; buf?: string; task?: string; stop_at?: Type.Static<typeof StopAt> };

/** What both directions of a call have in common. */
const positionOf = ({ pos, buf, task, stop_at }: Where) => ({
  pos: u64(pos),
  ...(buf === undefined ? {} : { buf: u64(buf) }),
  ...(task === undefined ? {} : { task }),
  ...(stop_at === undefined ? {} : { stop_at }),
});

export function vfioPciAccessRoutes(app: Api): void {
  const one = '/v1/hosts/:host/vfio_pci/:pci';
  app.post(`${one}/mmaps`, { schema: mmap }, (request, reply) => {
    const { addr, length, bar, offset = '0', prot = ['READ', 'WRITE'], shared = true, ...rest } = request.body;
    return submit(request, reply, {
      op: 'vfio_pci_mmap',
      device: request.params.pci,
      addr: u64(addr),
      length: u64(length),
      region: int(bar),
      offset: u64(offset),
      prot: mask(prot, MAP_FLAGS),
      shared,
      ...rest,
    });
  });
  app.post(`${one}/bars/:region/read`, { schema: read }, (request, reply) => {
    const { pci: device, region: index } = request.params;
    const call = { op: 'vfio_pci_rw', device, region: index, write: false } as const;
    return submit(request, reply, { ...call, count: int(request.body.count), ...positionOf(request.body) });
  });
  app.post(`${one}/bars/:region/write`, { schema: write }, (request, reply) => {
    const { pci: device, region: index } = request.params;
    const { data, count = Buffer.byteLength(data ?? '', 'base64') } = request.body;
    return submit(request, reply, {
      ...({ op: 'vfio_pci_rw', device, region: index, write: true } as const),
      count: int(count),
      ...(data === undefined ? {} : { data }),
      ...positionOf(request.body),
    });
  });
  app.get(`${one}/ioeventfds`, { schema: listAll }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    const after = decodeCursor(cursor, 'string');
    return showPage(request, (host) => listIoeventfds(host, request.params.pci, after, limit));
  });
  app.put(`${one}/ioeventfds/:ioeventfd`, { schema: putIoeventfd }, (request, reply) => {
    const { pci: device, ioeventfd: id } = request.params;
    const { bar, pos, data } = request.body;
    const command = { op: 'vfio_pci_put_ioeventfd', device, ioeventfd: id } as const;
    return submit(request, reply, { ...command, bar: int(bar), pos: u64(pos), data });
  });
  app.delete(`${one}/ioeventfds/:ioeventfd`, { schema: deleteIoeventfd }, (request, reply) => {
    const { pci: device, ioeventfd: id } = request.params;
    return submit(request, reply, { op: 'vfio_pci_delete_ioeventfd', device, ioeventfd: id });
  });
  app.post(`${one}/ioeventfds/:ioeventfd/signal`, { schema: signal }, (request, reply) => {
    const { pci: device, ioeventfd: id } = request.params;
    return submit(request, reply, { op: 'vfio_pci_signal_ioeventfd', device, ioeventfd: id, ...request.body });
  });
}
