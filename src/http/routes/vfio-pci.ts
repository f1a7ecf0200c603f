// Routes of vfio-pci devices: the device itself, its command register, its list and its locks.

import Type from 'typebox';
import { FAULT_VARIANTS, type VfioPciSpec } from '../../kernel/vfio-pci/device.ts';
import { listVfioPci, listVmaList, viewCommand, viewLocks, viewVfioPci } from '../../kernel/view/vfio-pci.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { DEFAULT_PAGE } from '../limits.ts';
import { decodeCursor, int, mask, u64 } from '../parse.ts';
import { show, showPage, submit } from '../reply.ts';
import {
  Caller,
  CInt,
  closed,
  Flags,
  Names,
  Nullable,
  PageOf,
  PageQuery,
  Path,
  ReplyOf,
  StopAt,
  U64,
} from '../schema.ts';
import {
  CommandView,
  commandExample,
  ListedVmaView,
  listedVmaExample,
  PciLocksView,
  pciLocksExample,
  VfioPciFields,
  VfioPciView,
  vfioPciExample,
} from '../views/vfio-pci.ts';

const pci = { host: Path.host, pci: Path.pci };
const nobody = { errno: 'NOT_FOUND', detail: "no vfio_pci 'nic9'" } as const;
const device = { ret: 0, ...vfioPciExample, seq: 41 };
const done = (description: string) => [{ status: 200, description, schema: ReplyOf(VfioPciFields), example: device }];

/** PCI_COMMAND_ without its prefix. */
const COMMAND_BITS = { IO: 1, MEMORY: 2, MASTER: 4, INTX_DISABLE: 0x400 };
const COMMAND_NAMES = ['IO', 'MEMORY', 'MASTER', 'INTX_DISABLE'] as const;
export const PCI_COMMAND = 4;

export const PciBody = {
  bars: Type.Optional(
    Type.Array(
      Nullable(
        closed({
          length: U64('Bytes'),
          kind: Type.Optional(Names(['mem', 'io'], 'Memory (default), or ports')),
          mmap: Type.Optional(Type.Boolean({ description: 'It can be mapped (default: memory of whole pages)' })),
          msix: Type.Optional(
            Nullable(closed({ offset: U64('First byte'), length: U64('Bytes') }), 'Where the MSI-X table lies'),
          ),
        }),
        'null: no BAR',
      ),
      { maxItems: 16, description: 'BAR0 and the following (default: one of 64 KiB)' },
    ),
  ),
  rom: Type.Optional(
    Nullable(closed({ length: U64('Bytes'), image: U64('Bytes of its image') }), 'null (default): no ROM'),
  ),
  vga: Type.Optional(Type.Boolean({ description: 'It has VGA regions (default false)' })),
  no_command_memory: Type.Optional(Type.Boolean({ description: 'A virtual function, or like one (default false)' })),
  resettable: Type.Optional(Type.Boolean({ description: 'VFIO_DEVICE_RESET works (default true)' })),
  flr: Type.Optional(Type.Boolean({ description: 'It has a function-level reset (default true)' })),
  command: Type.Optional(Flags(['IO', 'MEMORY'], 'PCI_COMMAND at first (default: both)')),
  variant: Type.Optional(
    Names(FAULT_VARIANTS, 'A fault that finds a lock taken: as merged (default), as in v1, as the mail proposes'),
  ),
};
const pciBody = closed(PciBody);

/** The device that a body describes. */
export function pciSpecOf(body: Type.Static<typeof pciBody>): VfioPciSpec {
  const bars = body.bars ?? [{ length: '0x10000' }];
  return {
    bars: bars.map((bar) => {
      if (bar === null) return null;
      const kind = bar.kind ?? 'mem';
      const length = u64(bar.length);
      const msix = bar.msix ?? null;
      return {
        length,
        kind,
        mmap: bar.mmap ?? (kind === 'mem' && length >= 0x1000n),
        msix: msix === null ? null : { offset: u64(msix.offset), length: u64(msix.length) },
      };
    }),
    rom:
      body.rom === undefined || body.rom === null ? null : { length: u64(body.rom.length), image: u64(body.rom.image) },
    vga: body.vga ?? false,
    no_command_memory: body.no_command_memory ?? false,
    resettable: body.resettable ?? true,
    flr: body.flr ?? true,
    command: mask(body.command ?? ['IO', 'MEMORY'], COMMAND_BITS),
    variant: body.variant ?? 'merged',
  };
}

const put = describe({
  operationId: 'put_vfio_pci',
  tag: 'vfio-pci',
  summary: 'Open a device',
  description:
    'A PCI device in the hands of vfio-pci. Its BARs are host pages without struct page, which tasks map with `mmaps` and touch with `access`. ENODEV before 5.8, which gates nothing.',
  does: 'command',
  params: pci,
  body: pciBody,
  bodyExample: {},
  success: [
    { status: 201, description: 'Opened', schema: ReplyOf(VfioPciFields), example: device },
    { status: 200, description: 'Exists with the same body: nothing changed', example: device },
  ],
  refusals: ['ENODEV', 'EINVAL', 'EOPNOTSUPP', 'EEXIST', 'ENOSPC'],
  refusalExample: { errno: 'ENODEV', detail: 'vfio-pci of 5.4 does not gate the memory of a device' },
});

const list = describe({
  operationId: 'list_vfio_pci',
  tag: 'vfio-pci',
  summary: 'Devices of vfio-pci',
  description: 'By id.',
  does: 'read',
  params: { host: Path.host },
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of devices',
      schema: PageOf(VfioPciView),
      example: { items: [vfioPciExample], next_cursor: null },
    },
  ],
  refusals: ['ENODEV'],
  refusalExample: { errno: 'NOT_FOUND', detail: "no host 'h9'" },
});

const get = describe({
  operationId: 'get_vfio_pci',
  tag: 'vfio-pci',
  summary: 'One device',
  description: 'Both halves of its command register, its regions, and what has happened to it.',
  does: 'read',
  params: pci,
  success: [{ status: 200, description: 'The device', schema: VfioPciView, example: vfioPciExample }],
  refusals: ['ENODEV'],
  refusalExample: nobody,
});

const getCommand = describe({
  operationId: 'vfio_pci_config_read',
  tag: 'vfio-pci',
  summary: 'Read PCI_COMMAND',
  description: 'A device without the memory bit shows the one that user space has written.',
  does: 'read',
  params: pci,
  success: [{ status: 200, description: 'The register', schema: CommandView, example: commandExample }],
  refusals: ['ENODEV'],
  refusalExample: nobody,
});

const putCommand = describe({
  operationId: 'vfio_pci_config_write',
  tag: 'vfio-pci',
  summary: 'Write PCI_COMMAND',
  description:
    'With MEMORY clear, whatever it was: every mapping is zapped first, one CLEAR pair an area; then memory_lock is taken for writing, and the bit changes. With MEMORY set: under memory_lock, without a zap. It waits while somebody holds a lock of the device, or the mmap_lock of a process that maps it. EIO (422): the device does not take it.',
  does: 'command',
  waits: true,
  params: pci,
  body: closed({
    value: Flags(COMMAND_NAMES, 'Bits of the register, or its bytes as a number'),
    offset: Type.Optional(CInt('Byte of config space (default 4, the register)')),
    count: Type.Optional(CInt('Bytes: 1, 2 (default) or 4')),
    task: Caller,
    stop_at: StopAt,
  }),
  bodyExample: { value: ['IO'] },
  success: done('Written'),
  refusals: ['ENODEV', 'EINVAL', 'EOPNOTSUPP', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'EINVAL', detail: 'offset 5, count 2: 1, 2 or 4 aligned bytes' },
});

const loseState = describe({
  operationId: 'vfio_pci_lose_state',
  tag: 'vfio-pci',
  summary: 'The device loses its registers',
  description:
    'As in a reset that vfio-pci knows nothing of: the hardware has lost its command register and its BARs, user space believes otherwise. The next write that enables what it believes enabled restores them.',
  does: 'command',
  params: pci,
  body: closed({}),
  bodyExample: {},
  success: done('Lost'),
  refusals: ['ENODEV'],
  refusalExample: nobody,
});

const vmaList = describe({
  operationId: 'list_vfio_pci_vmas',
  tag: 'vfio-pci',
  summary: 'Areas on vma_list',
  description:
    'Areas that were faulted in since the last zap, not all that map the device. Empty in 6.18, which keeps no list.',
  does: 'read',
  params: pci,
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of areas',
      schema: PageOf(ListedVmaView),
      example: { items: [listedVmaExample], next_cursor: null },
    },
  ],
  refusals: ['ENODEV'],
  refusalExample: nobody,
});

const locks = describe({
  operationId: 'get_vfio_pci_locks',
  tag: 'vfio-pci',
  summary: 'vma_lock and memory_lock',
  description: 'Who holds them, and who waits.',
  does: 'read',
  params: pci,
  success: [{ status: 200, description: 'Both locks', schema: PciLocksView, example: pciLocksExample }],
  refusals: ['ENODEV'],
  refusalExample: nobody,
});

export function vfioPciRoutes(app: Api): void {
  const all = '/v1/hosts/:host/vfio_pci';
  const one = `${all}/:pci`;
  app.put(one, { schema: put }, (request, reply) =>
    submit(request, reply, { op: 'put_vfio_pci', device: request.params.pci, ...pciSpecOf(request.body) }),
  );
  app.get(all, { schema: list }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    const after = decodeCursor(cursor, 'string');
    return showPage(request, (host) => listVfioPci(host, after, limit));
  });
  app.get(one, { schema: get }, (request) => show(request, (host) => viewVfioPci(host, request.params.pci)));
  app.get(`${one}/config/command`, { schema: getCommand }, (request) =>
    show(request, (host) => viewCommand(host, request.params.pci)),
  );
  app.put(`${one}/config/command`, { schema: putCommand }, (request, reply) => {
    const { value, offset = PCI_COMMAND, count = 2, ...rest } = request.body;
    return submit(request, reply, {
      op: 'vfio_pci_config_write',
      device: request.params.pci,
      offset: int(offset),
      count: int(count),
      value: mask(value, COMMAND_BITS),
      ...rest,
    });
  });
  app.post(`${one}/lose_state`, { schema: loseState }, (request, reply) =>
    submit(request, reply, { op: 'vfio_pci_lose_state', device: request.params.pci }),
  );
  app.get(`${one}/vma_list`, { schema: vmaList }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    const after = decodeCursor(cursor, 'number');
    return showPage(request, (host) => listVmaList(host, request.params.pci, after, limit));
  });
  app.get(`${one}/locks`, { schema: locks }, (request) => show(request, (host) => viewLocks(host, request.params.pci)));
}
