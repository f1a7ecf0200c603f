// Refusals of notifiers: deadlocks, late answers, the dma_unmap op.

import type { Test } from 'tap';
import { listening, mapped, PIN, POLL, UNMAP } from '../fixtures.ts';
import { type Case, client, machine, notificationOf, prepare, refusals, waitingUnmap } from './machine.ts';

/** One refusal for each documented status that is not provoked otherwise. */
const CASES: Case[] = [
  { operationId: 'register_notifier', status: 422, errno: 'EINVAL', body: { ...POLL, events: 3 } },
  {
    operationId: 'unregister_notifier',
    status: 422,
    errno: 'ENOENT',
    before: [listening(POLL), ['DELETE', '/devices/mdev0/notifiers/n0']],
  },
];

export async function notifierRefusals(t: Test): Promise<void> {
  await t.test('409, 413, 422: one refusal of the emulated kernel for each', (t) => refusals(t, CASES));
  await t.test('409 of notifiers: a deadlock inside the handler, a late acknowledgement', async (t) => {
    const { at } = await waitingUnmap();
    const notification = await notificationOf(at);
    const headers = { 'x-notification': notification };
    const unregister = await client.ask('DELETE', `${at}/devices/mdev0/notifiers/n0`, undefined, { headers });
    t.match(unregister, { status: 409, body: { errno: 'EDEADLK', hint: /dmesg/ } });
    const register = await client.ask('POST', `${at}/devices/mdev0/notifiers`, { ...POLL, id: 'n3' }, { headers });
    t.match(register, { status: 409, body: { errno: 'EDEADLK' } });
    await prepare(
      at,
      ['POST', '/devices/mdev0/unpin_pages', { user_pfn: PIN.user_pfn }],
      ['POST', `/devices/mdev0/notifications/${notification}/ack`, { ret: 1 }],
    );
    const late = await client.ask('POST', `${at}/devices/mdev0/notifications/${notification}/ack`, { ret: 1 });
    t.match(late, { status: 409, body: { errno: 'EBUSY' } });
  });

  await t.test(
    '409 of the dma_unmap op: a second one, and what would deadlock with a walk over the devices',
    async (t) => {
      const { at } = await machine({ profile: '6.18', notifier_timeout_ms: 600_000 });
      const op = { events: ['DMA_UNMAP'], delivery: { kind: 'poll' } };
      await prepare(
        at,
        mapped,
        ['POST', '/devices/mdev0/notifiers', { ...op, id: 'n0' }],
        ['POST', '/devices/mdev0/pin_pages', { iova: '0x1000', npage: 1, prot: ['READ'] }],
        ['PUT', '/devices/mdev1', { container: 'vfio0', notifier: { ...op, id: 'n1' } }],
        ['PUT', '/devices/mdev2', { group: 'mdev1' }],
        ['POST', '/devices/mdev2/notifiers', { ...op, id: 'n2' }],
        ['PUT', '/devices/mdev3', { group: 'mdev1', dma_unmap: false }],
      );
      t.match(await client.ask('POST', `${at}/devices/mdev0/notifiers`, { ...op, id: 'n3' }), {
        status: 409,
        body: { errno: 'EEXIST' },
      });
      t.match(await client.ask('POST', `${at}/devices/mdev3/notifiers`, op), {
        status: 422,
        body: { errno: 'EOPNOTSUPP' },
      });
      for (const older of [{ type: 'GROUP' }, { priority: 1 }, { type: 'IOMMU' }, { type: 0 }, { priority: 0 }])
        t.match(await client.ask('POST', `${at}/devices/mdev2/notifiers`, { ...op, ...older }), {
          status: 422,
          body: { errno: 'EOPNOTSUPP' },
        });
      t.match(await client.ask('POST', `${at}/devices/mdev0/pin_pages`, PIN), {
        status: 422,
        body: { errno: 'EOPNOTSUPP' },
      });
      const wrong = await client.ask('POST', `${at}/devices/mdev0/unpin_pages`, { iova: '0x1000', npage: 0 });
      t.match(wrong, { status: 200, body: { ret: 0, warnings: ['unpin-bad-count'] } });
      const unmap = await client.ask('POST', `${at}/containers/vfio0/unmap_dma`, UNMAP, {
        headers: { prefer: 'respond-async' },
      });
      t.equal(unmap.status, 202);
      for (const call of ['devices/mdev2/open', 'devices/mdev0/close'])
        t.match(await client.ask('POST', `${at}/${call}`, {}), {
          status: 409,
          body: { errno: 'EDEADLK', hint: /dmesg/ },
        });
    },
  );
}
