// Routes of what closes the gate of a vfio-pci device, or works behind it: resets, power, interrupts, the ROM.

import Type from 'typebox';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { submit } from '../reply.ts';
import { Caller, CInt, closed, Id, Names, Nullable, Path, ReplyOf, StopAt, U64 } from '../schema.ts';
import { VfioPciFields, VfioPciView, vfioPciExample } from '../views/vfio-pci.ts';

const pci = { host: Path.host, pci: Path.pci };
const nobody = { errno: 'NOT_FOUND', detail: "no vfio_pci 'nic9'" } as const;
const done = (description: string) => [
  { status: 200, description, schema: ReplyOf(VfioPciFields), example: { ret: 0, ...vfioPciExample, seq: 41 } },
];

const power = describe({
  operationId: 'vfio_pci_set_power_state',
  tag: 'vfio-pci',
  summary: 'Set the power state',
  description: 'D3 (D3hot) disables the memory in 6.18, and zaps it before; in older kernels it changes nothing else.',
  does: 'command',
  waits: true,
  params: pci,
  body: closed({ state: Names(['D0', 'D1', 'D2', 'D3'], 'New state'), task: Caller, stop_at: StopAt }),
  bodyExample: { state: 'D3' },
  success: done('Set'),
  refusals: ['ENODEV', 'EDEADLK', 'EBUSY'],
  refusalExample: nobody,
});

const lowPower = describe({
  operationId: 'vfio_pci_low_power',
  tag: 'vfio-pci',
  summary: 'Enter or leave low power',
  description:
    'VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY and _EXIT: while engaged, faults of its mappings are SIGBUS. ENOTTY before 6.18; EINVAL: entered already.',
  does: 'command',
  waits: true,
  params: pci,
  body: closed({ entry: Type.Boolean({ description: 'Enter, or leave' }), task: Caller, stop_at: StopAt }),
  bodyExample: { entry: true },
  success: done('Done'),
  refusals: ['ENODEV', 'ENOTTY', 'EINVAL', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'ENOTTY', detail: 'VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY is of later kernels' },
});

const devicesOf = { devices: Type.Array(VfioPciView, { description: 'The devices after it' }) };
const resetDone = (description: string) => [
  {
    status: 200,
    description,
    schema: ReplyOf(devicesOf),
    example: { ret: 0, devices: [{ ...vfioPciExample, resets: 1 }], seq: 42 },
  },
];

const reset = describe({
  operationId: 'vfio_pci_reset',
  tag: 'vfio-pci',
  summary: 'Reset a device',
  description:
    'VFIO_DEVICE_RESET (`ioctl`), or a write of the FLR bit (`flr`), which a device without it passes over. All mappings are zapped, and accesses wait until it is over.',
  does: 'command',
  waits: true,
  params: pci,
  body: closed({ by: Type.Optional(Names(['ioctl', 'flr'], 'Default: ioctl')), task: Caller, stop_at: StopAt }),
  bodyExample: {},
  success: resetDone('Reset'),
  refusals: ['ENODEV', 'EINVAL', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'EINVAL', detail: 'nic0 cannot be reset' },
});

const hotReset = describe({
  operationId: 'vfio_pci_hot_reset',
  tag: 'vfio-pci',
  summary: 'Reset a set of devices',
  description:
    'VFIO_DEVICE_PCI_HOT_RESET. Locks of the devices are only tried: at the first that is taken it is EBUSY, every lock is given back, and what was zapped stays so.',
  does: 'command',
  waits: true,
  params: { host: Path.host },
  body: closed({
    devices: Type.Array(Id('Device', 'nic0'), { maxItems: 256, description: 'All of a bus or slot' }),
    task: Caller,
    stop_at: StopAt,
  }),
  bodyExample: { devices: ['nic0'] },
  success: resetDone('All are reset'),
  refusals: ['ENODEV', 'EINVAL', 'EBUSY', 'EDEADLK'],
  refusalExample: { errno: 'EBUSY', detail: 'vma_lock:nic0 is taken' },
});

const irqs = describe({
  operationId: 'vfio_pci_set_irqs',
  tag: 'vfio-pci',
  summary: 'Set interrupts up, or take them down',
  description:
    'The work touches the memory of the device: under memory_lock the physical MEMORY bit is set, and restored after it. What user space sees of the register does not change, and nothing is zapped.',
  does: 'command',
  waits: true,
  params: pci,
  body: closed({
    kind: Names(['intx', 'msi', 'msix'], 'Kind'),
    enable: Type.Boolean({ description: 'Up, or down' }),
    task: Caller,
    stop_at: StopAt,
  }),
  bodyExample: { kind: 'msix', enable: true },
  success: [
    {
      status: 200,
      description: 'Done',
      schema: ReplyOf({ irq: Nullable(Names(['intx', 'msi', 'msix'], 'Kind'), 'What is set up now') }),
      example: { ret: 0, irq: 'msix', seq: 43 },
    },
  ],
  refusals: ['ENODEV', 'EINVAL', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'EINVAL', detail: 'kind: msi, the device has msix' },
});

const probeRom = describe({
  operationId: 'vfio_pci_probe_rom',
  tag: 'vfio-pci',
  summary: 'Size of the ROM',
  description: 'VFIO_DEVICE_GET_REGION_INFO of the ROM, with the physical MEMORY bit set for as long as it takes.',
  does: 'command',
  waits: true,
  params: pci,
  body: closed({ task: Caller, stop_at: StopAt }),
  bodyExample: {},
  success: [
    {
      status: 200,
      description: 'Found; size 0x0: it cannot be mapped',
      schema: ReplyOf({ region: CInt('Region'), size: U64('Bytes') }),
      example: { ret: 0, region: 6, size: '0x2000', seq: 44 },
    },
  ],
  refusals: ['ENODEV', 'EINVAL', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'EINVAL', detail: 'nic0 has no ROM' },
});

const POWER = ['D0', 'D1', 'D2', 'D3'];

export function vfioPciGateRoutes(app: Api): void {
  const one = '/v1/hosts/:host/vfio_pci/:pci';
  app.post(`${one}/power_state`, { schema: power }, (request, reply) => {
    const { state, ...rest } = request.body;
    const command = {
      op: 'vfio_pci_set_power_state',
      device: request.params.pci,
      state: POWER.indexOf(state),
    } as const;
    return submit(request, reply, { ...command, ...rest });
  });
  app.post(`${one}/low_power`, { schema: lowPower }, (request, reply) =>
    submit(request, reply, { op: 'vfio_pci_low_power', device: request.params.pci, ...request.body }),
  );
  app.post(`${one}/reset`, { schema: reset }, (request, reply) =>
    submit(request, reply, { op: 'vfio_pci_reset', device: request.params.pci, by: 'ioctl', ...request.body }),
  );
  app.post('/v1/hosts/:host/hot_resets', { schema: hotReset }, (request, reply) =>
    submit(request, reply, { op: 'vfio_pci_hot_reset', ...request.body }),
  );
  app.post(`${one}/irqs`, { schema: irqs }, (request, reply) =>
    submit(request, reply, { op: 'vfio_pci_set_irqs', device: request.params.pci, ...request.body }),
  );
  app.post(`${one}/probe_rom`, { schema: probeRom }, (request, reply) =>
    submit(request, reply, { op: 'vfio_pci_probe_rom', device: request.params.pci, ...request.body }),
  );
}
