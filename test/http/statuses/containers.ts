// Refusals of containers.

import type { Test } from 'tap';
import { type Case, closedContainer, refusals } from './machine.ts';

/** One refusal for each documented status that is not provoked otherwise. */
const CASES: Case[] = [
  { operationId: 'put_container', status: 422, errno: 'EBADF', before: [closedContainer] },
  { operationId: 'get_info', status: 422, errno: 'EBADF', before: [closedContainer] },
  { operationId: 'check_extension', status: 422, errno: 'EBADF', before: [closedContainer] },
  { operationId: 'set_iommu', status: 422, errno: 'EINVAL' },
  { operationId: 'close_container', status: 422, errno: 'EBADF', before: [closedContainer] },
];

export async function containerRefusals(t: Test): Promise<void> {
  await t.test('409, 413, 422: one refusal of the emulated kernel for each', (t) => refusals(t, CASES));
}
