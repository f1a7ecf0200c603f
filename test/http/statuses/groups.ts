// Refusals of groups.

import type { Test } from 'tap';
import { listening, mapped, POLL, pinned, UNMAP } from '../fixtures.ts';
import { type Case, client, machine, prepare, refusals } from './machine.ts';

/** One refusal for each documented status that is not provoked otherwise. */
const CASES: Case[] = [
  {
    operationId: 'put_group',
    status: 409,
    errno: 'EEXIST',
    path: { group: '26' },
    body: { kind: 'iommu' },
  },
  {
    operationId: 'put_group',
    status: 413,
    errno: 'E2BIG',
    path: { group: '40' },
    body: { kind: 'iommu', reserved: new Array(65).fill({ start: '0', last: '0xfff' }) },
  },
  {
    operationId: 'put_group',
    status: 422,
    errno: 'EINVAL',
    path: { group: '40' },
    body: { kind: 'iommu', aperture: { start: '0x1000', last: '0xfff' } },
  },
  { operationId: 'open_group', status: 409, errno: 'EBUSY' },
  {
    operationId: 'open_group',
    status: 422,
    errno: 'EPERM',
    before: [
      ['PUT', '/groups/40', { kind: 'noiommu' }],
      ['POST', '/groups/40/close', {}],
    ],
    path: { group: '40' },
    body: { task: 'qemu' },
  },
  { operationId: 'close_group', status: 422, errno: 'EBADF', before: [['POST', '/groups/26/close', {}]] },
  { operationId: 'set_container', status: 422, errno: 'EINVAL' },
  { operationId: 'unset_container', status: 409, errno: 'EBUSY' },
  {
    operationId: 'unset_container',
    status: 422,
    errno: 'EINVAL',
    before: [['PUT', '/groups/99', {}]],
    path: { group: '99' },
  },
];

export async function groupRefusals(t: Test): Promise<void> {
  await t.test('409, 413, 422: one refusal of the emulated kernel for each', (t) => refusals(t, CASES));
  await t.test('409 of attach and detach while a handler of 4.10 runs: it would deadlock', async (t) => {
    const { at } = await machine({ profile: '4.10', notifier_timeout_ms: 600_000 });
    await prepare(at, mapped, listening(POLL), pinned, ['PUT', '/groups/40', {}]);
    const headers = { prefer: 'respond-async' };
    t.equal((await client.ask('POST', `${at}/containers/vfio0/unmap_dma`, UNMAP, { headers })).status, 202);
    await prepare(at, ['POST', '/devices/mdev0/close', {}]);
    const calls: [string, unknown][] = [
      ['groups/40/set_container', { container: 'vfio0' }],
      ['groups/26/unset_container', {}],
      ['groups/26/close', {}],
      ['containers/vfio0/set_iommu', { type: 'TYPE1v2' }],
    ];
    for (const [path, body] of calls)
      t.match(await client.ask('POST', `${at}/${path}`, body), {
        status: 409,
        body: { errno: 'EDEADLK', profile: '4.10', hint: /dmesg/ },
      });
  });
}
