// Refusals of mappings, the dirty log and dma_rw.

import type { Test } from 'tap';
import { MAX_PARKED_OPERATIONS } from '../../../src/kernel/limits.ts';
import type { Reply } from '../client.ts';
import { listening, MAP, mapped, PIN, POLL, pinned, READ, type Step, UNMAP } from '../fixtures.ts';
import { type Case, client, machine, notificationOf, prepare, refusals } from './machine.ts';

/** One refusal for each documented status that is not provoked otherwise. */
const CASES: Case[] = [
  { operationId: 'map_dma', status: 409, errno: 'EEXIST', before: [mapped] },
  { operationId: 'map_dma', status: 422, errno: 'EINVAL', body: { ...MAP, size: '0' } },
  {
    operationId: 'unmap_dma',
    status: 422,
    errno: 'EINVAL',
    before: [mapped],
    body: { iova: '0x1000', size: '0x1000' },
  },
  { operationId: 'dirty_pages', status: 422, errno: 'EINVAL', body: { op: 3 } },
  {
    operationId: 'dirty_pages',
    status: 422,
    errno: 'EINVAL',
    body: { op: 'get', iova: '0', size: '0x1000', pgsize: '0x1000' },
  },
  {
    operationId: 'dirty_pages',
    status: 413,
    errno: 'E2BIG',
    before: [['POST', '/containers/vfio0/dirty_pages', { op: 'start' }]],
    body: { op: 'get', iova: '0', size: '0x1000', pgsize: '0x1000', bitmap_size: '0x10000000' },
  },
  { operationId: 'dma_rw', status: 413, errno: 'E2BIG', body: { iova: '0', length: '0xffffffffffffffff' } },
  { operationId: 'dma_rw', status: 422, errno: 'EINVAL', body: { iova: '0x5000', write: true, data: 'AQI=' } },
];

export async function dmaRefusals(t: Test): Promise<void> {
  await t.test('409, 413, 422: one refusal of the emulated kernel for each', (t) => refusals(t, CASES));
  await t.test('409 of an unmap inside a handler whose chain somebody else waits to change', async (t) => {
    const { at } = await machine({ notifier_timeout_ms: 600_000 });
    const second = { ...MAP, iova: '0x40000000', vaddr: '0x7f0010000000' };
    await prepare(at, mapped, ['POST', '/containers/vfio0/map_dma', second], listening(POLL), pinned);
    await prepare(at, ['POST', '/devices/mdev0/pin_pages', { ...PIN, user_pfn: [0x40000] }]);
    const patient = { headers: { prefer: 'respond-async' } };
    await client.ask('POST', `${at}/containers/vfio0/unmap_dma`, UNMAP, patient);
    t.equal((await client.ask('DELETE', `${at}/devices/mdev0/notifiers/n0`, undefined, patient)).status, 202);
    const nested = { ...UNMAP, iova: second.iova };
    const headers = { 'x-notification': await notificationOf(at) };
    t.match(await client.ask('POST', `${at}/containers/vfio0/unmap_dma`, nested, { headers }), {
      status: 409,
      body: { errno: 'EDEADLK' },
    });
    t.match((await client.ask('GET', `${at}/containers/vfio0/mappings`)).body, { items: [{}, { iova: second.iova }] });
  });

  await t.test('409 of a pin that would have to wait where MAX_PARKED_OPERATIONS wait', async (t) => {
    const { at } = await machine();
    const invalid: Step = ['POST', '/containers/vfio0/unmap_dma', { ...UNMAP, flags: ['VADDR'] }];
    await prepare(at, mapped, listening(POLL), invalid);
    const pin = (): Promise<Reply> =>
      client.ask('POST', `${at}/devices/mdev0/pin_pages`, PIN, { headers: { prefer: 'respond-async' } });
    for (let waiting = 0; waiting < MAX_PARKED_OPERATIONS; waiting++) t.equal((await pin()).status, 202);
    t.match(await pin(), { status: 409, body: { errno: 'EBUSY', phys_pfn: [0, 0] } });
    const read = await client.ask('POST', `${at}/devices/mdev0/dma_rw`, READ);
    t.match(read, { status: 409, body: { errno: 'EBUSY', data: '' } });
  });
}
