// Every success, and what waits: 2xx with the values of the examples, 202, a finished operation.

import type { Test } from 'tap';
import { listening, MAP, mapped, PIN, POLL, pinned, READ, UNMAP } from '../fixtures.ts';
import { client, machine, notificationOf, prepare, waitingUnmap } from './machine.ts';

export async function successes(t: Test): Promise<void> {
  await t.test('2xx: every success, with the values of its example', async (t) => {
    const { host, at } = await machine();
    await prepare(at, mapped, listening({ ...POLL, delivery: { kind: 'builtin', behavior: 'unpin_all' } }), pinned);
    const fresh = { notifier: 'n0', device: 'mdev1', container: 'vfio1', group: '27', task: 'other', pfn: '100' };
    const calls: [string, number, Record<string, string>?, unknown?][] = [
      ['put_container', 201, { container: fresh.container }],
      ['put_container', 200, { container: fresh.container }],
      ['put_group', 201, { group: fresh.group }],
      ['put_group', 200, { group: fresh.group }],
      ['put_task', 201, { task: fresh.task }],
      ['put_task', 200, { task: fresh.task }],
      ['put_page', 201],
      ['put_page', 200],
      ['list_mappings', 200],
      ['list_pfns', 200],
      ['get_tree', 200],
      ['unpin_pages', 200],
      ['pin_pages', 200],
      ['leaks', 200],
      ['list_notifiers', 200],
      ['get_notifier', 200],
      ['list_notifications', 200],
      ['unmap_dma', 200],
      ['map_dma', 200],
      ['dirty_pages', 200],
      ['dma_rw', 200],
      ['unregister_notifier', 200],
      ['register_notifier', 201],
      ['list_devices', 200],
      ['get_device', 200],
      ['list_containers', 200],
      ['get_container', 200],
      ['get_info', 200],
      ['check_extension', 200],
      ['list_groups', 200],
      ['get_group', 200],
      ['close_device', 200],
      ['unset_container', 200],
      ['set_container', 200],
      ['set_iommu', 200],
      ['open_device', 200],
      ['close_device', 200],
      ['close_group', 200],
      ['open_group', 200],
      ['put_device', 201, { device: fresh.device }],
      ['put_device', 200, { device: fresh.device }],
      ['close_container', 200, { container: fresh.container }],
      ['list_tasks', 200],
      ['get_task', 200],
      ['patch_task', 200],
      ['mmap', 200],
      ['put_page_contents', 201],
      ['put_page_contents', 200],
      ['get_page_contents', 200],
      ['put_fault', 201],
      ['put_fault', 200],
      ['list_faults', 200],
      ['get_fault', 200],
      ['delete_fault', 200],
      ['mprotect', 200],
      ['munmap', 200],
      ['adjust_locked_vm', 200],
      ['list_maps', 200],
      ['list_pages', 200],
      ['get_page', 200],
      ['list_host_pages', 200],
      ['exec', 200],
      ['exit', 200],
      ['list_operations', 200],
      ['dmesg', 200],
      ['trace', 200],
      ['journal', 200],
      ['invariants', 200],
      ['differential', 200],
      ['sync', 200],
      ['put_host', 201, { host: 'made' }],
      ['put_host', 200, { host: 'made' }],
      ['patch_host', 200],
      ['list_hosts', 200],
      ['get_host', 200],
      ['reset_host', 200],
      ['delete_host', 200, { host: 'made' }],
      ['healthz', 200],
      ['readyz', 200],
      ['metrics', 200],
    ];
    for (const [operationId, expected, path = {}, body] of calls) {
      const { status, text } = await client.example(operationId, { host, path, body });
      t.equal(status, expected, `${operationId}: ${text.slice(0, 300)}`);
    }
    const waiting = await waitingUnmap();
    t.equal((await client.ask('GET', String(waiting.unmap.headers.location))).status, 200);
    const text = await client.ask('GET', `${at}/dmesg?format=text`);
    t.match(text.headers['content-type'], /^text\/plain/);
  });

  await t.test('202: what waits answers at once where the client prefers it, with its operation', async (t) => {
    const { at, unmap } = await waitingUnmap();
    const headers = { prefer: 'wait=5, Respond-Async; foo=1' };
    t.match(unmap, {
      status: 202,
      headers: { location: /\/operations\/unmap_dma-\d+$/, 'preference-applied': 'respond-async' },
      body: { ret: 0, state: 'blocked', phase: 'notify', seq: Number },
    });
    const unregister = await client.ask('DELETE', `${at}/devices/mdev0/notifiers/n0`, undefined, { headers });
    t.match(unregister, { status: 202, body: { kind: 'unregister_notifier', state: 'blocked' } });
    const register = await client.ask('POST', `${at}/devices/mdev0/notifiers`, { ...POLL, id: 'n2' }, { headers });
    t.match(register, { status: 202, body: { kind: 'register_notifier' } });
    const ack = await client.ask('POST', `${at}/devices/mdev0/notifications/${await notificationOf(at)}/ack`, {
      ret: 'NOTIFY_OK',
    });
    t.equal(ack.status, 200);

    const sleeping = await machine();
    await prepare(sleeping.at, mapped, listening(POLL), [
      'POST',
      '/containers/vfio0/unmap_dma',
      { ...UNMAP, flags: ['VADDR'] },
    ]);
    const pin = await client.ask('POST', `${sleeping.at}/devices/mdev0/pin_pages`, PIN, { headers });
    t.match(pin, { status: 202, body: { kind: 'pin_pages', state: 'blocked' } });
    const read = await client.ask('POST', `${sleeping.at}/devices/mdev0/dma_rw`, READ, { headers });
    t.match(read, { status: 202, body: { kind: 'dma_rw', state: 'blocked' } });
    await prepare(sleeping.at, ['PUT', '/groups/40', { kind: 'iommu' }]);
    const attach = await client.ask(
      'POST',
      `${sleeping.at}/groups/40/set_container`,
      { container: 'vfio0' },
      { headers },
    );
    t.match(attach, { status: 202, body: { kind: 'set_container', state: 'blocked', blocked_on: 'vaddr:vfio0' } });
    const again = await client.ask(
      'POST',
      `${sleeping.at}/groups/40/set_container`,
      { container: 'vfio0' },
      { headers },
    );
    t.match(again, { status: 409, body: { errno: 'EBUSY' } });
    const kill = await client.ask('POST', `${attach.headers.location}/kill`, {});
    t.match(kill, { status: 200, body: { ret: 0, id: attach.body.id } });
    t.match((await client.ask('GET', String(attach.headers.location))).body, {
      state: 'done',
      problem: { errno: 'EFAULT', status: 422, op: 'set_container' },
    });
    t.match(await client.ask('POST', `${attach.headers.location}/kill`, {}), {
      status: 422,
      body: { errno: 'EINVAL' },
    });
    await prepare(sleeping.at, ['POST', '/containers/vfio0/map_dma', { ...MAP, flags: ['VADDR'] }]);
    t.match((await client.ask('GET', String(read.headers.location))).body, {
      state: 'done',
      result: { data: 'AAAAAA==' },
    });
    const done = await client.ask('GET', String(pin.headers.location));
    t.match(done.body, { state: 'done', result: { ret: 2, phys_pfn: [Number, Number] } });
  });

  await t.test('a finished operation that was refused has the whole problem inside', async (t) => {
    const { at } = await machine();
    await prepare(at, mapped, listening(POLL), pinned);
    const unmap = await client.ask('POST', `${at}/containers/vfio0/unmap_dma`, UNMAP, {
      headers: { prefer: 'respond-async', 'x-request-id': 'mine' },
    });
    for (let attempt = 1; attempt <= 11; attempt++)
      await client.ask('POST', `${at}/devices/mdev0/notifications/${await notificationOf(at)}/ack`, {
        ret: 'NOTIFY_DONE',
      });
    const { body } = await client.ask('GET', String(unmap.headers.location));
    t.match(body, {
      state: 'done',
      problem: { status: 410, errno: 'EIO', ret: -5, op: 'unmap_dma', profile: '5.15', instance: 'mine' },
    });
    t.match((await client.ask('GET', `${at}/operations`)).body, { items: [{ problem: { errno: 'EIO' } }] });
  });
}
