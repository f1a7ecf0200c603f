// Routes of the dirty log of a container, and of reads and writes through a device that pin nothing.

import Type, { type Static } from 'typebox';
import { type Command, DIRTY_PAGES_GET_BITMAP, DIRTY_PAGES_START, DIRTY_PAGES_STOP } from '../../kernel/command.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { numberOf, u32, u64 } from '../parse.ts';
import { submit } from '../reply.ts';
import { Base64, closed, Id, Int, Names, Path, ReplyOf, U64, UINT_MAX } from '../schema.ts';

export const DIRTY_FLAGS = { start: DIRTY_PAGES_START, stop: DIRTY_PAGES_STOP, get: DIRTY_PAGES_GET_BITMAP };
/** Bits of a bitmap come in whole u64 words. */
const WORD_BITS = 64n;
const WORD_BYTES = 8n;

const argsz = Type.Optional(Int('Size that the caller gives the argument block', 0, UINT_MAX));
const caller = Type.Optional(Id('Caller, in whose memory bitmap_addr lies', 'qemu'));
const mask = Int('The flags word: 1 start, 2 stop, 4 get');
const Switch = closed({
  op: Type.Union([Names(['start', 'stop'], 'By name'), mask], { description: 'start or stop, or the flags word' }),
  argsz,
  task: caller,
});
const Get = closed({
  op: Type.Union([Names(['get', 'start', 'stop'], 'By name'), mask], { description: 'get, or the flags word' }),
  iova: U64('First byte'),
  size: U64('Bytes'),
  pgsize: U64('Bytes that one bit stands for'),
  bitmap_size: Type.Optional(U64('Bytes of the bitmap (default: what the range needs)')),
  bitmap_addr: Type.Optional(U64("Where in the caller's memory it is; without it the reply carries it")),
  argsz,
  task: caller,
});

const dirtyPages = describe({
  operationId: 'dirty_pages',
  tag: 'dma',
  summary: 'VFIO_IOMMU_DIRTY_PAGES',
  description:
    'Starts or stops the dirty log, or reads and clears it: one bit a page, base64 of little-endian u64. Pinned pages stay dirty; what an iommu group may have written is dirty throughout.',
  does: 'command',
  params: { host: Path.host, container: Path.container },
  body: Type.Union([Switch, Get]),
  bodyExample: { op: 'start' },
  success: [
    {
      status: 200,
      description: 'Done',
      schema: ReplyOf({ bitmap: Type.Optional(Base64('Dirty pages, one bit each: little-endian u64')) }),
      example: { ret: 0, bitmap: 'AwAAAAAAAAA=', seq: 33 },
    },
  ],
  refusals: ['EINVAL', 'ESRCH', 'ENOTTY', 'EACCES', 'ENOMEM', 'EFAULT', 'EOVERFLOW', 'E2BIG', 'EBADF', 'EIO'],
  refusalExample: { errno: 'EINVAL', detail: 'dirty page tracking is not running' },
});

const iova = U64('First byte');
const task = Type.Optional(Id('Caller (default: a kernel thread)', 'qemu'));
const Read = closed({
  iova,
  length: U64('Bytes'),
  write: Type.Optional(Type.Boolean({ description: 'Default false; a write without data is EFAULT' })),
  task,
});
const Write = closed({
  iova,
  write: Type.Literal(true),
  data: Base64('Bytes to write'),
  length: Type.Optional(U64('Bytes of it to write (default: all)')),
  task,
});

const dmaRw = describe({
  operationId: 'dma_rw',
  tag: 'pins',
  summary: 'vfio_dma_rw()',
  description:
    'Reads or writes what lies behind an iova, from mapping to mapping, without a pin. What was done before an error stays done. An access that meets an invalid vaddr waits for it, or is refused, as the profile does.',
  does: 'command',
  waits: true,
  params: { host: Path.host, device: Path.device },
  body: Type.Union([Read, Write]),
  bodyExample: { iova: '0x1000', length: '0x10' },
  success: [
    {
      status: 200,
      description: 'Done; what was read is in data',
      schema: ReplyOf({ data: Type.Optional(Base64('Bytes that were read')) }),
      example: { ret: 0, data: 'AAAAAAAAAAAAAAAAAAAAAA==', seq: 34 },
    },
  ],
  refusals: ['EINVAL', 'EPERM', 'EFAULT', 'ENODEV', 'ENOTTY', 'EOPNOTSUPP', 'EBUSY', 'E2BIG', 'EIO'],
  refusalExample: { errno: 'EINVAL', detail: 'iova 0x1000 is not mapped', data: '' },
});

/** Bytes that the kernel wants for the bits of a range. */
function bitmapBytes(size: bigint, pgsize: bigint): bigint {
  const pages = pgsize === 0n ? 0n : size / (pgsize & -pgsize);
  return ((pages + WORD_BITS - 1n) / WORD_BITS) * WORD_BYTES;
}

function rangeOf(body: Static<typeof Get>): Extract<Command, { op: 'dirty_pages' }>['range'] {
  const { iova, size, pgsize, bitmap_size, bitmap_addr } = body;
  return {
    iova: u64(iova),
    size: u64(size),
    pgsize: u64(pgsize),
    bitmap_size: bitmap_size === undefined ? bitmapBytes(u64(size), u64(pgsize)) : u64(bitmap_size),
    ...(bitmap_addr === undefined ? {} : { bitmap_addr: u64(bitmap_addr) }),
  };
}

/** A length beyond what a number holds is as much too long as the largest one. */
const lengthOf = (length: string): number => Math.min(Number(u64(length)), Number.MAX_SAFE_INTEGER);

const accessOf = (body: Static<typeof Read> | Static<typeof Write>): { length: number; data: string | null } => {
  if (!('data' in body)) return { length: lengthOf(body.length), data: null };
  const { data, length } = body;
  return { length: length === undefined ? Buffer.byteLength(data, 'base64') : lengthOf(length), data };
};

export function dirtyPagesRoutes(app: Api): void {
  app.post('/v1/hosts/:host/containers/:container/dirty_pages', { schema: dirtyPages }, (request, reply) => {
    const { body } = request;
    const { op, argsz = null, task = null } = body;
    return submit(request, reply, {
      op: 'dirty_pages',
      container: request.params.container,
      flags: u32(numberOf(op, DIRTY_FLAGS)),
      argsz,
      range: 'iova' in body ? rangeOf(body) : null,
      task,
    });
  });
  app.post('/v1/hosts/:host/devices/:device/dma_rw', { schema: dmaRw }, (request, reply) => {
    const { iova, write = false, task = null } = request.body;
    const { length, data } = accessOf(request.body);
    return submit(request, reply, {
      op: 'dma_rw',
      device: request.params.device,
      iova: u64(iova),
      length,
      write,
      data,
      task,
    });
  });
}
