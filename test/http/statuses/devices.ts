// Refusals of devices, pins and unpins.

import type { Test } from 'tap';
import { PIN } from '../fixtures.ts';
import { type Case, closedContainer, refusals } from './machine.ts';

/** One refusal for each documented status that is not provoked otherwise. */
const CASES: Case[] = [
  { operationId: 'pin_pages', status: 413, errno: 'E2BIG', body: { ...PIN, user_pfn: new Array(513).fill(1) } },
  { operationId: 'pin_pages', status: 422, errno: 'EOPNOTSUPP', body: { iova: '0x0', npage: 1, prot: 1 } },
  { operationId: 'unpin_pages', status: 413, errno: 'E2BIG', body: { user_pfn: [1], npage: -1 } },
  { operationId: 'unpin_pages', status: 422, errno: 'EOPNOTSUPP', body: { iova: '0x0', npage: 1 } },
  { operationId: 'put_device', status: 409, errno: 'EEXIST', body: { group: null } },
  {
    operationId: 'put_device',
    status: 422,
    errno: 'EBADF',
    before: [closedContainer],
    path: { device: 'mdev1' },
    body: { container: 'vfio0' },
  },
  { operationId: 'open_device', status: 422, errno: 'EBADF', before: [['POST', '/groups/26/close', {}]] },
  { operationId: 'close_device', status: 422, errno: 'EBADF', before: [['POST', '/devices/mdev0/close', {}]] },
];

export async function deviceRefusals(t: Test): Promise<void> {
  await t.test('409, 413, 422: one refusal of the emulated kernel for each', (t) => refusals(t, CASES));
}
