// Statuses of virtual machines: successes, what stops and waits, refusals.

import type { Test } from 'tap';
import type { Step } from '../fixtures.ts';
import { type Case, client, machine, prepare, refusals } from './machine.ts';

const A = '0x7f0000000000';
const VM = '/vms/vm0';
const made: Step = ['PUT', VM, { task: 'qemu' }];
const SLOT = { guest_phys_addr: '0x100000', memory_size: '0x10000', userspace_addr: A };
const slot: Step = ['PUT', `${VM}/memslots/0`, SLOT];
const mapped: Step = ['POST', `${VM}/maps`, { gfn: 256, map: 'm0' }];
const ready: Step[] = [made, slot];
const device: Step = ['PUT', '/pages/100', { kind: 'zone_device' }];
const cached: Step = ['PUT', `${VM}/caches/c0`, { gfn: 256 }];

const CASES: Case[] = [
  { operationId: 'put_vm', status: 409, errno: 'EEXIST', before: ready, body: { task: 'qemu', early_put: true } },
  { operationId: 'put_vm', status: 422, errno: 'EOPNOTSUPP', body: { task: 'qemu', allow_unsafe_mappings: true } },
  { operationId: 'put_vm', status: 422, errno: 'ESRCH', before: [['POST', '/tasks/qemu/exit', {}]] },
  { operationId: 'delete_vm', status: 409, errno: 'EBUSY', before: [...ready, mapped] },
  {
    operationId: 'set_memory_region',
    status: 409,
    errno: 'EEXIST',
    before: ready,
    path: { slot: '1' },
  },
  {
    operationId: 'set_memory_region',
    status: 422,
    errno: 'EINVAL',
    before: ready,
    body: { ...SLOT, memory_size: '0x2000' },
  },
  { operationId: 'delete_memslot', status: 422, errno: 'EINVAL', before: [made] },
  {
    operationId: 'vcpu_fault',
    status: 422,
    errno: 'EFAULT',
    before: [...ready, ['POST', '/tasks/qemu/munmap', { addr: A, length: '0x1000' }]],
  },
  { operationId: 'vcpu_map', status: 422, errno: 'EINVAL', before: ready, body: { gfn: 1 } },
  { operationId: 'vcpu_map', status: 409, errno: 'EEXIST', before: [...ready, mapped] },
  { operationId: 'vcpu_map_rw', status: 422, errno: 'EINVAL', before: ready },
  { operationId: 'refresh_pfn_cache', status: 422, errno: 'EOPNOTSUPP', before: ready },
  { operationId: 'delete_pfn_cache', status: 422, errno: 'EINVAL', before: ready },
  { operationId: 'remove_device_pages', status: 422, errno: 'EINVAL' },
];

async function successful(t: Test): Promise<void> {
  const { host, at } = await machine();
  await prepare(at, device);
  const calls: [string, number, unknown?][] = [
    ['put_vm', 201],
    ['put_vm', 200],
    ['list_vms', 200],
    ['get_vm', 200],
    ['set_memory_region', 201],
    ['set_memory_region', 200, { ...SLOT, flags: ['LOG_DIRTY_PAGES'] }],
    ['list_memslots', 200],
    ['get_memslot', 200],
    ['vcpu_fault', 200],
    ['list_sptes', 200],
    ['get_mmu_state', 200],
    ['vcpu_map', 201],
    ['list_vcpu_maps', 200],
    ['vcpu_map_rw', 200],
    ['vcpu_map_rw', 200, { offset: 0, length: 3 }],
    ['vcpu_unmap', 200],
    ['list_pfn_caches', 200],
    ['remove_device_pages', 200],
  ];
  for (const [operationId, expected, body] of calls) {
    const { status, text } = await client.example(operationId, { host, body });
    t.equal(status, expected, `${operationId}: ${text.slice(0, 300)}`);
  }
  t.match((await client.ask('GET', `${at}${VM}/memslots/0`)).body, { flags: 1, dirty: [[256, 1]] });
  await prepare(at, mapped);
  t.match((await client.ask('DELETE', `${at}${VM}/maps/m0?dirty=true`)).body, { id: 'm0', unmapped: true });
  t.match((await client.ask('GET', `${at}${VM}/sptes`)).body, {
    items: [{ gfn: 256, hva: A, writable: true, stale: false }],
    next_cursor: null,
  });
  t.match((await client.ask('GET', `${at}/mms/mm-1/notifiers/kvm-vm0`)).body, {
    delivery: { kind: 'consumer', consumer: 'kvm', of: 'vm0' },
  });
  t.match(await client.ask('DELETE', `${at}/mms/mm-1/notifiers/kvm-vm0`), { status: 409, body: { errno: 'EBUSY' } });
  for (const operationId of ['delete_memslot', 'delete_vm'])
    t.equal((await client.example(operationId, { host })).status, 200, operationId);
  for (const operationId of ['get_vm', 'get_memslot', 'list_sptes', 'get_mmu_state', 'delete_vm', 'vcpu_fault'])
    t.equal((await client.example(operationId, { host })).status, 404, operationId);
  t.equal((await client.ask('GET', `${at}/vms?limit=1`)).status, 200);
}

async function stops(t: Test): Promise<void> {
  const { host, at } = await machine();
  await prepare(at, ...ready);
  const fault = await client.example('vcpu_fault', { host, body: { gfn: 256, write: true, stop_at: 'after_gup' } });
  t.match(fault, { status: 202, body: { state: 'stopped', phase: 'after_gup' } });
  t.match(await client.example('set_memory_region', { host, body: { ...SLOT, guest_phys_addr: '0x200000' } }), {
    status: 202,
    body: { blocked_on: 'kvm_srcu:vm0' },
  });
  t.match((await client.ask('GET', `${at}${VM}/mmu_state`)).body, { updaters: [/^set_memory_region-/] });
  await prepare(at, ['POST', `/operations/${fault.body.id}/resume`, {}]);
  t.match((await client.ask('GET', `${at}/operations/${fault.body.id}`)).body, { result: { ret: 0, result: 'FIXED' } });
  t.match((await client.ask('GET', `${at}${VM}/memslots/0`)).body, { guest_phys_addr: '0x200000' });
  const map = await client.example('vcpu_map', { host, body: { gfn: 512, stop_at: 'after_gup' } });
  t.match(map, { status: 202, body: { kind: 'vcpu_map' } });
  await prepare(at, ['POST', `/operations/${map.body.id}/resume`, {}], device);
  const open = { start: A, end: '0x7f0000001000', event: 'CLEAR', stop_at: 'after_start' };
  const { body } = await client.ask('POST', `${at}/mms/mm-1/invalidate`, open);
  t.match(await client.example('delete_memslot', { host }), {
    status: 202,
    body: { blocked_on: 'kvm_invalidations:vm0' },
  });
  t.match((await client.ask('GET', `${at}${VM}/mmu_state`)).body, {
    mmu_notifier_count: 1,
    mn_active_invalidate_count: 1,
    mmu_notifier_range: { unit: 'hva', start: A, end: '0x7f0000001000' },
  });
  await prepare(at, ['POST', `/operations/${body.id}/resume`, {}]);
  const backing = { kind: 'pages', pfns: [[100, 1]] };
  const area = { addr: '0x640000000000', length: '0x1000', prot: ['READ', 'WRITE'], backing };
  await prepare(
    at,
    ['POST', '/tasks/qemu/mmap', area],
    ['POST', '/tasks/qemu/gup', { addr: area.addr, npage: 1, flags: ['GET'], gup: 'g1' }],
  );
  const removal = await client.example('remove_device_pages', { host });
  t.match(removal, { status: 202, body: { blocked_on: 'page_idle:100' } });
  await prepare(at, ['DELETE', '/gups/g1']);
  t.match((await client.ask('GET', `${at}/operations/${removal.body.id}`)).body, { state: 'done' });
}

/** A host where somebody is inside the callback of a client, and a vm is being destroyed, which waits for it. */
async function leaving(t: Test): Promise<void> {
  const { host, at } = await machine({ notifier_timeout_ms: 600_000, profile: '6.18' });
  await prepare(at, ...ready, cached, [
    'POST',
    '/mms/mm-1/notifiers',
    { id: 'n1', kind: 'plain', callbacks: ['invalidate_range_start'], delivery: { kind: 'poll' } },
  ]);
  const headers = { prefer: 'respond-async' };
  const inside = await client.ask('POST', `${at}/tasks/qemu/munmap`, { addr: A, length: '0x1000' }, { headers });
  t.equal(inside.status, 202);
  t.match(await client.example('delete_vm', { host }), { status: 202, body: { blocked_on: 'srcu' } });
  for (const operationId of [
    'set_memory_region',
    'delete_memslot',
    'vcpu_fault',
    'vcpu_map',
    'refresh_pfn_cache',
    'delete_vm',
  ])
    t.match(await client.example(operationId, { host }), { status: 409, body: { errno: 'EBUSY' } }, operationId);
}

async function locked(t: Test): Promise<void> {
  const { host, at } = await machine();
  const mprotect = { addr: A, length: '0x1000', prot: ['READ'], stop_at: 'before_start' };
  await prepare(at, ['POST', '/tasks/qemu/access', { addr: A, write: true }]);
  const stopped = await client.ask('POST', `${at}/tasks/qemu/mprotect`, mprotect);
  t.match(await client.example('put_vm', { host }), { status: 202, body: { blocked_on: 'mmap_lock:mm-1' } });
  await prepare(at, ['POST', `/operations/${stopped.body.id}/resume`, {}]);
  t.equal((await client.example('get_vm', { host })).status, 200);
}

async function caches(t: Test): Promise<void> {
  const { host, at } = await machine({ profile: '6.18' });
  await prepare(at, ...ready);
  const stopped = await client.example('refresh_pfn_cache', { host, body: { gfn: 256, stop_at: 'after_gup' } });
  t.match(stopped, { status: 202, body: { phase: 'after_gup' } });
  t.match(await client.example('delete_pfn_cache', { host }), { status: 409, body: { errno: 'EBUSY' } });
  await prepare(at, ['POST', `/operations/${stopped.body.id}/resume`, {}]);
  t.match((await client.ask('GET', `${at}${VM}/caches`)).body, { items: [{ id: 'c0', valid: true }] });
  t.equal((await client.example('refresh_pfn_cache', { host })).status, 200);
  t.equal((await client.example('delete_pfn_cache', { host })).status, 200);
  t.equal((await client.example('refresh_pfn_cache', { host })).status, 201);
}

export async function kvmStatuses(t: Test): Promise<void> {
  await t.test('2xx: every success, with the values of its example', successful);
  await t.test('202: what stops, and what waits for it', stops);
  await t.test('202: a vm waits for mmap_lock', locked);
  await t.test('202 and 409: a vm that is being destroyed', leaving);
  await t.test('201, 200, 202, 409: gfn_to_pfn_caches', caches);
  await t.test('409, 422: one refusal of the emulated kernel for each', (t) => refusals(t, CASES));
}
