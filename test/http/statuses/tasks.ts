// Refusals of tasks, memory and pages.

import type { Test } from 'tap';
import { mapped, type Step } from '../fixtures.ts';
import { type Case, client, machine, refusals } from './machine.ts';

const exited: Step = ['POST', '/tasks/qemu/exit', {}];
const TWO_RUNS = {
  addr: '0x600000000000',
  length: '0x2000',
  prot: ['READ'],
  backing: { kind: 'pages', pfns: [[5, 1]] },
};

/** One refusal for each documented status that is not provoked otherwise. */
const CASES: Case[] = [
  {
    operationId: 'put_page_contents',
    status: 409,
    errno: 'EBUSY',
    before: [mapped, ['POST', '/devices/mdev0/dma_rw', { iova: '0x1000', write: true, data: 'AQI=' }]],
  },
  { operationId: 'put_task', status: 409, errno: 'EEXIST', body: { cap_ipc_lock: true } },
  {
    operationId: 'put_task',
    status: 422,
    errno: 'ESRCH',
    before: [exited],
    path: { task: 'thread' },
    body: { thread_of: 'qemu' },
  },
  { operationId: 'patch_task', status: 422, errno: 'ESRCH', before: [exited] },
  {
    operationId: 'mmap',
    status: 409,
    errno: 'EEXIST',
    body: { ...TWO_RUNS, addr: '0x7f0000000000', backing: { kind: 'anon' }, noreplace: true },
  },
  { operationId: 'mmap', status: 422, errno: 'EINVAL', body: TWO_RUNS },
  { operationId: 'munmap', status: 422, errno: 'EINVAL', body: { addr: '0x1', length: '0x1000' } },
  {
    operationId: 'mprotect',
    status: 422,
    errno: 'ENOMEM',
    body: { addr: '0x600000000000', length: '0x1000', prot: ['READ'] },
  },
  { operationId: 'exec', status: 422, errno: 'ESRCH', before: [exited] },
  { operationId: 'exit', status: 422, errno: 'ESRCH', before: [exited] },
  { operationId: 'adjust_locked_vm', status: 422, errno: 'ESRCH', before: [exited] },
  { operationId: 'put_page', status: 409, errno: 'EEXIST', before: [['PUT', '/pages/100', { kind: 'device' }]] },
];

export async function taskRefusals(t: Test): Promise<void> {
  await t.test('409, 413, 422: one refusal of the emulated kernel for each', (t) => refusals(t, CASES));
  await t.test('422: pages of a task from an address inside a page', async (t) => {
    const { at } = await machine();
    const reply = await client.ask('GET', `${at}/tasks/qemu/pages?addr=0x7f0000000800`);
    t.match(reply, { status: 422, body: { errno: 'EINVAL', detail: /.{5}/, ret: -22 } });
  });
}
