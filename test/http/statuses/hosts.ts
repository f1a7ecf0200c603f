// Refusals of hosts and of fault rules: other options, and the bounds of an emulated machine.

import type { Test } from 'tap';
import { MAX_DECLARED_PAGES, MAX_FAULTS, MAX_GROUPS } from '../../../src/kernel/limits.ts';
import { app, type Case, client, machine, refusals } from './machine.ts';

/** One refusal for each documented status that is not provoked otherwise. */
const CASES: Case[] = [
  {
    operationId: 'put_fault',
    status: 409,
    errno: 'EEXIST',
    before: [['PUT', '/faults/f0', { point: 'charge', call: 'pin_pages', nth: 9 }]],
  },
  { operationId: 'put_fault', status: 422, errno: 'EINVAL', body: { point: 'charge', call: 'map_dma', nth: 0 } },
];

export async function hostRefusals(t: Test): Promise<void> {
  await t.test('409, 413, 422: one refusal of the emulated kernel for each', (t) => refusals(t, CASES));
  await t.test('422: the bounds of an emulated machine', async (t) => {
    const crowded = await machine();
    const context = { request_id: 'crowd', notification: null, idempotency: null, respond_async: false };
    const groups = Array.from({ length: MAX_GROUPS - 1 }, (_, i) =>
      app.service.submit(crowded.host, { op: 'put_group', group: `g${i}`, kind: 'mdev' }, context),
    );
    await Promise.all(groups);
    t.match(await client.example('put_group', { host: crowded.host, path: { group: 'one-more' } }), {
      status: 422,
      body: { errno: 'ENOSPC' },
    });

    const faults = Array.from({ length: MAX_FAULTS }, (_, i) =>
      app.service.submit(
        crowded.host,
        { op: 'put_fault', fault: `x${i}`, point: 'charge', call: 'map_dma', nth: 1 },
        context,
      ),
    );
    await Promise.all(faults);
    t.match(await client.example('put_fault', { host: crowded.host }), { status: 422, body: { errno: 'ENOSPC' } });

    // A million PUTs would do the same.
    await app.service.read(crowded.host, ({ mm }) => {
      mm.pages.declared = MAX_DECLARED_PAGES;
    });
    t.match(await client.example('put_page', { host: crowded.host }), { status: 422, body: { errno: 'ENOSPC' } });
  });

  await t.test('409 of hosts: the same id with other options', async (t) => {
    const { host } = await machine();
    t.match(await client.ask('PUT', `/v1/hosts/${host}`, { template: 'empty' }), {
      status: 409,
      body: { errno: 'EEXIST' },
    });
  });
}
