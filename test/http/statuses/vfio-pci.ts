// Statuses of the operations of vfio-pci: each success, each that waits, each refusal.

import type { Test } from 'tap';
import { MAX_PARKED_OPERATIONS } from '../../../src/kernel/limits.ts';
import type { Step } from '../fixtures.ts';
import { type Case, client, inV1, machine, prepare, refusals } from './machine.ts';

const nic: Step = ['PUT', '/vfio_pci/nic0', {}];
const MAP = { task: 'qemu', addr: '0x600000000000', length: '0x4000', bar: 0 };
const touch: Step = ['POST', '/tasks/qemu/access', { addr: MAP.addr, write: true }];
const kick: Step = ['PUT', '/vfio_pci/nic0/ioeventfds/kick0', { bar: 0, pos: '0x10', data: 'AQAAAA==' }];
const path = { pci: 'nic0', region: '0', ioeventfd: 'kick0' };
const ours = inV1.filter(({ operation }) => operation.tags?.includes('vfio-pci'));
const waiting = ours.filter(({ operation }) => '202' in operation.responses);

const CASES: Case[] = [
  { operationId: 'put_vfio_pci', status: 409, errno: 'EEXIST', before: [nic], path, body: { vga: true } },
  { operationId: 'put_vfio_pci', status: 422, errno: 'EINVAL', path, body: { bars: [{ length: '0x0' }] } },
  {
    operationId: 'vfio_pci_config_write',
    status: 422,
    errno: 'EINVAL',
    before: [nic],
    path,
    body: { value: 0, count: 3 },
  },
  { operationId: 'vfio_pci_low_power', status: 422, errno: 'ENOTTY', before: [nic], path },
  {
    operationId: 'vfio_pci_reset',
    status: 422,
    errno: 'EINVAL',
    before: [['PUT', '/vfio_pci/nic0', { resettable: false }]],
    path,
  },
  { operationId: 'vfio_pci_hot_reset', status: 422, errno: 'EINVAL', path, body: { devices: [] } },
  {
    operationId: 'vfio_pci_set_irqs',
    status: 422,
    errno: 'EINVAL',
    before: [nic],
    path,
    body: { kind: 'msi', enable: false },
  },
  { operationId: 'vfio_pci_probe_rom', status: 422, errno: 'EINVAL', before: [nic], path },
  {
    operationId: 'vfio_pci_mmap',
    status: 422,
    errno: 'EINVAL',
    before: [nic],
    path,
    body: { ...MAP, shared: false },
  },
  { operationId: 'vfio_pci_read', status: 413, errno: 'E2BIG', before: [nic], path, body: { pos: '0', count: 65537 } },
  {
    operationId: 'vfio_pci_read',
    status: 422,
    errno: 'EIO',
    before: [nic, ['PUT', '/vfio_pci/nic0/config/command', { value: ['IO'] }]],
    path,
  },
  {
    operationId: 'vfio_pci_write',
    status: 413,
    errno: 'E2BIG',
    before: [nic],
    path,
    body: { pos: '0', count: 65537, data: 'AA==' },
  },
  { operationId: 'vfio_pci_write', status: 422, errno: 'EINVAL', before: [nic], path, body: { pos: '0', count: 4 } },
  {
    operationId: 'vfio_pci_put_ioeventfd',
    status: 422,
    errno: 'EINVAL',
    before: [nic],
    path,
    body: { bar: 9, pos: '0', data: 'AA==' },
  },
  {
    operationId: 'vfio_pci_put_ioeventfd',
    status: 409,
    errno: 'EEXIST',
    before: [nic, kick],
    path: { ...path, ioeventfd: 'kick1' },
  },
];

/** A stop in each operation that can stop, with what has to be there first. */
const STOPS: [operationId: string, body: object, ...before: Step[]][] = [
  ['vfio_pci_config_write', { value: ['IO'], stop_at: 'after_memory_lock' }],
  ['vfio_pci_set_power_state', { state: 'D3', stop_at: 'after_memory_lock' }],
  ['vfio_pci_low_power', { entry: true, stop_at: 'after_memory_lock' }],
  ['vfio_pci_reset', { stop_at: 'in_reset' }],
  ['vfio_pci_hot_reset', { devices: ['nic0'], stop_at: 'in_reset' }],
  ['vfio_pci_set_irqs', { kind: 'msi', enable: true, stop_at: 'after_memory_lock' }],
  ['vfio_pci_probe_rom', { stop_at: 'after_memory_lock' }],
  ['vfio_pci_mmap', { ...MAP, stop_at: 'before_start' }, ['POST', '/vfio_pci/nic0/mmaps', MAP]],
  ['vfio_pci_read', { pos: '0x0', count: 4, stop_at: 'before_unit' }],
  ['vfio_pci_write', { pos: '0x0', data: 'AA==', stop_at: 'before_unit' }],
  [
    'vfio_pci_signal_ioeventfd',
    {},
    kick,
    ['PUT', '/vfio_pci/nic0/config/command', { value: 3, stop_at: 'after_memory_lock' }],
  ],
];

async function successes(t: Test): Promise<void> {
  const { host, at } = await machine({ profile: '6.18' });
  await prepare(at, ['PUT', '/vfio_pci/nic1', { rom: { length: '0x2000', image: '0x100' } }]);
  const calls: [string, number, unknown?, Record<string, string>?][] = [
    ['put_vfio_pci', 201],
    ['put_vfio_pci', 200],
    ['list_vfio_pci', 200],
    ['vfio_pci_mmap', 200],
    ['get_vfio_pci', 200],
    ['vfio_pci_config_read', 200],
    ['vfio_pci_read', 200],
    ['vfio_pci_write', 200],
    ['vfio_pci_put_ioeventfd', 201],
    ['vfio_pci_put_ioeventfd', 200],
    ['list_ioeventfds', 200],
    ['vfio_pci_signal_ioeventfd', 200],
    ['vfio_pci_delete_ioeventfd', 200],
    ['vfio_pci_set_irqs', 200],
    ['vfio_pci_probe_rom', 200, undefined, { pci: 'nic1' }],
    ['vfio_pci_config_write', 200],
    ['vfio_pci_lose_state', 200],
    ['vfio_pci_low_power', 200],
    ['vfio_pci_set_power_state', 200],
    ['vfio_pci_reset', 200],
    ['vfio_pci_hot_reset', 200],
    ['list_vfio_pci_vmas', 200],
    ['get_vfio_pci_locks', 200],
  ];
  for (const [operationId, status, body, more] of calls) {
    const reply = await client.example(operationId, { host, path: { ...path, ...more }, body });
    t.match(reply, { status }, operationId);
  }
}

/** As many operations as a host takes wait already. */
async function full(): Promise<{ host: string; at: string }> {
  const made = await machine({ profile: '6.18' });
  await prepare(made.at, ['PUT', '/vfio_pci/nic0', { rom: { length: '0x1000', image: '0x0' } }], kick);
  const read: Step = ['POST', '/vfio_pci/nic0/bars/0/read', { pos: '0', count: 4, stop_at: 'before_unit' }];
  for (let i = 0; i < MAX_PARKED_OPERATIONS; i += 64)
    await Promise.all(Array.from({ length: 64 }, () => prepare(made.at, read)));
  return made;
}

export async function vfioPciStatuses(t: Test): Promise<void> {
  await t.test('2xx: every success', successes);
  await t.test('413, 422: one refusal of the emulated kernel for each', (t) => refusals(t, CASES));
  await t.test('422: ENODEV in a kernel that gates nothing', async (t) => {
    const { host } = await machine({ profile: '5.4' });
    for (const { operation } of ours) {
      const reply = await client.example(operation.operationId, { host, path });
      t.match(reply, { status: 422, body: { errno: 'ENODEV' } }, operation.operationId);
    }
  });
  await t.test('404: a device that there is not', async (t) => {
    const { host } = await machine();
    for (const { operation, path: url } of ours.filter((each) => each.path.includes('{pci}'))) {
      if (operation.operationId === 'put_vfio_pci') continue;
      t.match(await client.example(operation.operationId, { host, path }), { status: 404 }, url);
    }
  });
  await t.test('202: a stop, or a wait for a lock', async (t) => {
    t.same(STOPS.map(([each]) => each).sort(), waiting.map(({ operation }) => operation.operationId).sort());
    for (const [operationId, body, ...before] of STOPS) {
      const { host, at } = await machine({ profile: '6.18' });
      await prepare(at, ['PUT', '/vfio_pci/nic0', { rom: { length: '0x1000', image: '0x0' } }], ...before);
      const reply = await client.example(operationId, { host, path, body });
      t.match(reply, { status: 202, headers: { location: /operations/ } }, operationId);
    }
  });
  await t.test('409: EBUSY where too many operations wait already', async (t) => {
    const { host } = await full();
    for (const [operationId, body] of STOPS) {
      const stopping = { stop_at: 'before_unit', ...body };
      const reply = await client.example(operationId, { host, path, body: stopping });
      t.match(reply, { status: 409, body: { errno: 'EBUSY' } }, operationId);
    }
  });
  await t.test('a mapped BAR over HTTP: MEM=0 zaps it, and the access is SIGBUS', async (t) => {
    const { at } = await machine();
    await prepare(at, nic, ['POST', '/vfio_pci/nic0/mmaps', MAP], touch);
    const { body: listed } = await client.ask('GET', `${at}/vfio_pci/nic0/vma_list`);
    t.match(listed, { items: [{ addr: MAP.addr, length: MAP.length, alive: true }] });
    const { body: maps } = await client.ask('GET', `${at}/tasks/qemu/maps`);
    t.match((maps.items as unknown[])[0], { backing: { kind: 'device', consumer: 'vfio_pci', of: 'nic0' } });
    const write = await client.ask('PUT', `${at}/vfio_pci/nic0/config/command`, { value: ['IO'] });
    t.match(write, { status: 200, body: { ret: 0, enabled: false, command: { memory: false } } });
    const access = await client.ask('POST', `${at}/tasks/qemu/access`, { addr: MAP.addr, write: false });
    t.match(access, { status: 200, body: { fault: 'SIGBUS', pfn: null } });
    const { body: invariants } = await client.ask('GET', `${at}/invariants`);
    t.match(invariants, { violations: [] });
  });
}
