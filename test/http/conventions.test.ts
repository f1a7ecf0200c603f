// What holds for every request: idempotency keys, request ids, paging, preferences, methods, logs, long polls.

import { Writable } from 'node:stream';
import { pino } from 'pino';
import t from 'tap';
import type { JournalRow } from '../../src/service/ports.ts';
import { MemoryStore } from '../../src/store/memory-store.ts';
import { Client, type Reply, startApp } from './client.ts';

const lines: Record<string, unknown>[] = [];
const sink = new Writable({
  write(chunk: Buffer, _encoding, done) {
    for (const line of chunk.toString().split('\n'))
      if (line !== '') lines.push(JSON.parse(line) as Record<string, unknown>);
    done();
  },
});
const app = await startApp({}, { logger: pino({ level: 'info' }, sink) });
const client = new Client(app);
t.teardown(() => app.close());

const MAP = { task: 'qemu', iova: '0x0', vaddr: '0x7f0000000000', size: '0x100000', flags: ['READ', 'WRITE'] };
const POLL = { id: 'n0', events: ['DMA_UNMAP'], delivery: { kind: 'poll' } };

/** A host with one pinned mapping and a poll listener. */
async function pinnedHost(id: string): Promise<string> {
  const at = await client.newHost(id, { notifier_timeout_ms: 600_000 });
  await client.ask('POST', `${at}/containers/vfio0/map_dma`, MAP);
  await client.ask('POST', `${at}/devices/mdev0/notifiers`, POLL);
  await client.ask('POST', `${at}/devices/mdev0/pin_pages`, { user_pfn: [1, 2], prot: ['READ'] });
  return at;
}

const logged = (request_id: string): Record<string, unknown>[] =>
  lines.filter((line) => line.request_id === request_id && line.msg === 'request');

t.test('Idempotency-Key: the same request again gets the first reply again and executes nothing', async (t) => {
  const at = await pinnedHost('keys');
  const headers = { 'idempotency-key': 'pin-1', 'x-request-id': 'first' };
  const body = { user_pfn: [3, 3], prot: ['READ'] };
  const first = await client.ask('POST', `${at}/devices/mdev0/pin_pages`, body, { headers });
  const again = await client.ask('POST', `${at}/devices/mdev0/pin_pages`, body, {
    headers: { ...headers, 'x-request-id': 'second' },
  });
  t.match(first, { status: 200, body: { ret: 2 } });
  t.notOk('idempotent-replayed' in first.headers);
  t.equal(again.headers['idempotent-replayed'], 'true');
  t.equal(again.headers['x-request-id'], 'second');
  t.same([again.status, again.body], [first.status, first.body]);
  const { body: records } = await client.ask('GET', `${at}/containers/vfio0/mappings/0x0/pfns`);
  t.match(records.items, [{}, {}, { iova: '0x3000', ref_count: 2 }]);

  const refused = { user_pfn: [999], prot: [] };
  const no = await client.ask('POST', `${at}/devices/mdev0/pin_pages`, refused, {
    headers: { 'idempotency-key': 'pin-2', 'x-request-id': 'no-1' },
  });
  const noAgain = await client.ask('POST', `${at}/devices/mdev0/pin_pages`, refused, {
    headers: { 'idempotency-key': 'pin-2', 'x-request-id': 'no-2' },
  });
  t.match(no, { status: 422, body: { instance: 'no-1' } });
  t.same(noAgain.body, no.body, 'a kernel refusal is a reply too');
  t.equal(noAgain.headers['idempotent-replayed'], 'true');

  const wrong = { headers: { 'idempotency-key': 'pin-3' } };
  t.equal((await client.ask('POST', `${at}/devices/mdev0/pin_pages`, { user_pfn: 'x' }, wrong)).status, 400);
  t.match(
    await client.ask('POST', `${at}/devices/mdev0/pin_pages`, { user_pfn: [4], prot: [] }, wrong),
    { status: 200, headers: { 'idempotent-replayed': undefined } },
    'a 400 is not kept',
  );
  const elsewhere = await client.ask('POST', `${at}/devices/mdev0/unpin_pages`, { user_pfn: [4] }, wrong);
  t.match(
    elsewhere,
    { status: 422, body: { type: '/docs/problems#idempotency-mismatch' } },
    'another path is another request',
  );
});

t.test(
  'Idempotency-Key: a retry while the first request waits gets its reply; a replayed 202 still leads to the operation',
  async (t) => {
    const at = await pinnedHost('waits');
    const headers = { 'idempotency-key': 'unmap-1' };
    const body = { iova: '0x0', size: '0x100000' };
    const first = client.ask('POST', `${at}/containers/vfio0/unmap_dma`, body, { headers });
    const retry = client.ask('POST', `${at}/containers/vfio0/unmap_dma`, body, { headers });
    const { body: polled } = await client.ask('GET', `${at}/devices/mdev0/notifications?wait_ms=10000`);
    const [{ id }] = polled.items as [{ id: string }];
    await client.ask('POST', `${at}/devices/mdev0/unpin_pages`, { user_pfn: [1, 2] });
    await client.ask('POST', `${at}/devices/mdev0/notifications/${id}/ack`, { ret: 'NOTIFY_OK' });
    const replies = await Promise.all([first, retry]);
    t.same(
      replies.map(({ status, body }) => [status, body.size]),
      [
        [200, '0x100000'],
        [200, '0x100000'],
      ],
    );
    t.same(replies.filter(({ headers }) => headers['idempotent-replayed'] === 'true').length, 1);

    const patient = await pinnedHost('patient');
    const ask = (): Promise<Reply> =>
      client.ask('POST', `${patient}/containers/vfio0/unmap_dma`, body, {
        headers: { ...headers, prefer: 'respond-async' },
      });
    const accepted = await ask();
    const replayed = await ask();
    t.same([accepted.status, replayed.status, replayed.headers.location], [202, 202, accepted.headers.location]);
    await client.ask('POST', `${patient}/reset`, {});
    t.equal((await ask()).status, 200, 'reset clears the keys: nothing is mapped now');
  },
);

t.test('X-Request-Id: accepted or made, returned, in log, journal, dmesg and problem', async (t) => {
  const at = await pinnedHost('ids');
  const headers = { 'x-request-id': 'trace-me/1' };
  const { body: problem, headers: returned } = await client.ask('POST', `${at}/containers/vfio0/map_dma`, MAP, {
    headers,
  });
  t.equal(returned['x-request-id'], 'trace-me/1');
  t.equal(problem.instance, 'trace-me/1');
  t.match(logged('trace-me/1'), [
    { method: 'POST', status: 409, host: 'ids', op: 'map_dma', seq: 4, ret: -17, errno: 'EEXIST', ms: Number },
  ]);
  const { body } = await client.ask('GET', `${at}/journal?since=3`);
  t.match(body, { items: [{ n: 4, seq: 4, op: 'map_dma', request_id: 'trace-me/1' }] });
  await client.ask('POST', `${at}/devices/mdev0/notifiers`, POLL, { headers: { 'x-request-id': 'twice' } });
  const { body: dmesg } = await client.ask('GET', `${at}/dmesg`);
  t.match(dmesg.items, [{ kind: 'WARN', where: 'notifier_chain_register', request_id: 'twice', text: /twice/ }]);
  t.match((await client.ask('GET', `${at}/dmesg?format=text`)).text, /^\[\d+\.\d{3}\] .*cut here/);
  const made = await client.ask('GET', '/v1/hosts');
  t.match(made.headers['x-request-id'], /^[0-9a-f-]{36}$/);
  for (const url of ['/nothing', '/v1/hosts/%zz', `/v1/hosts/${'x'.repeat(300)}`]) {
    const lost = await client.ask('GET', url, undefined, { headers: { 'x-request-id': 'lost' } });
    t.match(lost, { headers: { 'x-request-id': 'lost' }, body: { instance: 'lost' } }, url);
  }
});

t.test('the log has one line for each request, and neither bodies nor secrets', async (t) => {
  const at = await client.newHost('quiet');
  const headers = { 'x-request-id': 'hush', authorization: 'Bearer tok-3f9a' };
  const webhook = { kind: 'webhook', url: 'http://127.0.0.1:1/hook', secret: 'whsec_c2VjcmV0LTNmOWE=' };
  await client.ask('POST', `${at}/devices/mdev0/notifiers`, { ...POLL, delivery: webhook }, { headers });
  t.equal(logged('hush').length, 1);
  const text = JSON.stringify(lines);
  for (const secret of ['tok-3f9a', webhook.secret, '127.0.0.1:1/hook']) t.notMatch(text, secret);
  const { body } = await client.ask('GET', `${at}/devices/mdev0/notifiers/n0`);
  t.same(body.delivery, { kind: 'webhook', url: webhook.url });
});

t.test('the events word is an unsigned long: bits beyond the 32nd are left over too', async (t) => {
  const at = await client.newHost('events');
  const ask = (events: number): Promise<{ status: number; body: Record<string, unknown> }> =>
    client.ask('POST', `${at}/devices/mdev0/notifiers`, { events, delivery: { kind: 'poll' } });
  t.match(await ask(2 ** 32 + 1), { status: 422, body: { errno: 'EINVAL', events_left: 2 ** 32 } });
  t.match(await ask(2 ** 32), { status: 422, body: { errno: 'EINVAL', events_left: 2 ** 32, detail: /left over/ } });
  t.match(await ask(-1), { status: 422, body: { errno: 'EINVAL', events_left: -2 } });
  t.match(await ask(1), { status: 201, body: { events_left: 0 } });
});

t.test('lists: pages follow each other by key, also while the list changes', async (t) => {
  const at = await client.newHost('lists');
  for (const task of ['a', 'b', 'c', 'd']) await client.ask('PUT', `${at}/tasks/${task}`, {});
  const first = await client.ask('GET', `${at}/tasks?limit=2`);
  t.match(first.body, { items: [{ id: 'a' }, { id: 'b' }], next_cursor: String });
  await client.ask('PUT', `${at}/tasks/aa`, {});
  await client.ask('PUT', `${at}/tasks/bb`, {});
  const second = await client.ask('GET', `${at}/tasks?limit=3&cursor=${first.body.next_cursor}`);
  t.match(second.body, { items: [{ id: 'bb' }, { id: 'c' }, { id: 'd' }], next_cursor: String });
  const last = await client.ask('GET', `${at}/tasks?cursor=${second.body.next_cursor}`);
  t.match(last.body, { items: [{ id: 'qemu' }], next_cursor: null });
  t.equal((last.body.items as unknown[]).length, 1);

  for (const list of [
    'containers',
    'groups',
    'devices',
    'operations',
    'pages',
    'tasks/qemu/maps',
    'devices/mdev0/notifiers',
    'containers/vfio0/mappings',
  ])
    t.match((await client.ask('GET', `${at}/${list}`)).body, { items: Array, next_cursor: null }, list);
  for (const log of ['dmesg', 'trace', 'journal'])
    t.match((await client.ask('GET', `${at}/${log}?since=0&limit=1`)).body, { items: Array }, log);
  const hosts = await client.ask('GET', '/v1/hosts?limit=1');
  const rest = await client.ask('GET', `/v1/hosts?cursor=${hosts.body.next_cursor}`);
  const all = [...(hosts.body.items as { id: string }[]), ...(rest.body.items as { id: string }[])].map(({ id }) => id);
  t.same(all, [...all].sort());
  t.ok(all.includes('default') && all.includes('lists'));
});

t.test('a method that a path does not have is 405 with Allow, and not 404', async (t) => {
  const methods = ['GET', 'PUT', 'POST', 'PATCH', 'DELETE', 'OPTIONS'];
  for (const path of Object.keys(client.document.root.paths)) {
    const known = Object.keys(client.document.root.paths[path] ?? {}).map((method) => method.toUpperCase());
    const url = path.replace(/\{(\w+)\}/g, (_, name: string) =>
      name === 'iova' || name === 'pfn' || name === 'extension' ? '1' : 'a1',
    );
    for (const method of methods.filter((each) => !known.includes(each))) {
      const { status, headers, body } = await client.ask(method, url);
      t.equal(status, 405, `${method} ${url}`);
      t.same(
        String(headers.allow)
          .split(', ')
          .filter((each) => each !== 'HEAD'),
        [...known].sort(),
      );
      t.match(body, { title: 'Method not allowed', instance: String });
    }
  }
  const root = await client.ask('GET', '/');
  t.match(root, { status: 302, headers: { location: '/docs' } });
  for (const url of ['/v1', '/v1/', '/v1/hosts/default/', '/v1/hosts/default/nothing', '/V1/hosts'])
    t.equal((await client.ask('GET', url)).status, 404, url);
  t.match(await client.ask('HEAD', '/v1/hosts'), { status: 200, text: '' });
});

t.test('names of every kind of flag, type and value mean the same as their numbers', async (t) => {
  const at = await client.newHost('names');
  const pairs: [string, object, object][] = [
    ['containers/vfio0/map_dma', MAP, { ...MAP, flags: 3 }],
    ['containers/vfio0/unmap_dma', { iova: '0x0', size: '0x0', flags: ['ALL'] }, { iova: '0', size: '0', flags: 2 }],
    [
      'containers/vfio0/unmap_dma',
      { iova: '0x0', size: '0x0', flags: ['GET_DIRTY_BITMAP', 'VADDR'] },
      { iova: '0', size: '0', flags: 5 },
    ],
    ['containers/vfio0/set_iommu', { type: 'TYPE1' }, { type: 1 }],
    ['containers/vfio0/set_iommu', { type: 'TYPE1v2' }, { type: 3 }],
    ['devices/mdev0/pin_pages', { user_pfn: [1], prot: ['READ', 'WRITE'] }, { user_pfn: [1], prot: 3, npage: 1 }],
    ['devices/mdev0/notifiers', { ...POLL, type: 'GROUP' }, { ...POLL, events: 1, type: 1, priority: 0 }],
    ['devices/mdev0/notifications/none/ack', { ret: 'NOTIFY_BAD' }, { ret: 0x8002 }],
    [
      'tasks/qemu/mprotect',
      { addr: '0x7f0000000000', length: '0x1000', prot: ['READ'] },
      { addr: '139637976727552', length: '4096', prot: 1 },
    ],
  ];
  for (const [path, byName, byNumber] of pairs) {
    await client.ask('POST', `${at}/${path}`, byName);
    await client.ask('POST', `${at}/${path}`, byNumber);
  }
  const { body } = await client.ask('GET', `${at}/journal`);
  const commands = (body.items as { command: object }[]).map(({ command }) => command);
  t.equal(commands.length, pairs.length * 2);
  for (let i = 0; i < commands.length; i += 2) t.same(commands[i], commands[i + 1], `pair ${i / 2}`);
});

t.test('numbers are passed on as the kernel would see them', async (t) => {
  const at = await client.newHost('numbers');
  await client.ask('POST', `${at}/devices/mdev0/pin_pages`, undefined, {
    raw: '{"user_pfn":[-0,1],"prot":-1,"npage":-0}',
  });
  await client.ask('POST', `${at}/devices/mdev0/pin_pages`, { iova: '4096', npage: -2147483648, prot: 4294967303 });
  await client.ask('POST', `${at}/containers/vfio0/set_iommu`, { type: -7 });
  const { text } = await client.ask('GET', `${at}/journal`);
  const commands = (JSON.parse(text) as { items: { command: object }[] }).items.map(({ command }) => command);
  t.same(commands, [
    { op: 'pin_pages', device: 'mdev0', user_pfn: [0, 1], npage: 0, prot: 0xffffffff },
    { op: 'pin_pages', device: 'mdev0', user_pfn: [], npage: -2147483648, contiguous: { iova: '0x1000' }, prot: 7 },
    { op: 'set_iommu', container: 'vfio0', type: -7, task: null },
  ]);
});

t.test('long poll: answers when a notification arrives, after its time, or when the client leaves', async (t) => {
  const at = await pinnedHost('polls');
  const url = `${at}/devices/mdev0/notifications`;
  const started = Date.now();
  t.same((await client.ask('GET', `${url}?wait_ms=60`)).body, { items: [] });
  t.ok(Date.now() - started >= 50, 'it waited');
  const poll = client.ask('GET', `${url}?wait_ms=30000`);
  await client.ask(
    'POST',
    `${at}/containers/vfio0/unmap_dma`,
    { iova: '0x0', size: '0x100000' },
    { headers: { prefer: 'respond-async' } },
  );
  t.match((await poll).body, { items: [{ event: 'DMA_UNMAP', iova: '0x0', size: '0x100000', attempt: 1 }] });
  t.ok(Date.now() - started < 20_000);
  t.equal((await client.ask('GET', `${at}/devices/nobody/notifications?wait_ms=30000`)).status, 404);
});

t.test('metrics count what happened, with labels that clients can not invent', async (t) => {
  await client.ask('GET', '/nowhere/at/all');
  const { text } = await client.ask('GET', '/metrics');
  t.match(text, /emulator_commands_total\{op="map_dma",errno=""\} \d+/);
  t.match(text, /emulator_commands_total\{op="map_dma",errno="EEXIST"\} \d+/);
  t.match(text, /emulator_http_request_duration_seconds_count\{method="any",route="none",status="404"\} \d+/);
  t.match(text, /emulator_commits [1-9]/);
  t.match(
    text,
    new RegExp(`emulator_hosts ${((await client.ask('GET', '/v1/hosts')).body.items as unknown[]).length}\\b`),
  );
  t.notMatch(text, /nowhere|polls|numbers/);
});

t.test('requests that follow a long stop of the event loop are answered', async (t) => {
  // The delay is measured in windows of a second: here each is one block, and has no measurement in it.
  for (let i = 0; i < 4; i++) {
    const end = Date.now() + 1100;
    while (Date.now() < end);
    await new Promise((resolve) => setTimeout(resolve, 0));
    t.equal((await client.ask('GET', '/v1/hosts')).status, 200);
    t.equal((await client.ask('GET', '/healthz')).status, 200);
  }
});

/** A store whose journal a broken disk or another hand has changed. */
class TamperedStore extends MemoryStore {
  tampered = false;

  override async journal(host: string, generation: number, since: number, limit: number): Promise<JournalRow[]> {
    const rows = await super.journal(host, generation, since, limit);
    return this.tampered ? rows.map((row) => ({ ...row, digest: row.digest.map((byte) => byte ^ 1) })) : rows;
  }
}

t.test(
  'a quarantined host is 503 on its paths, listed in /readyz which is still 200, and can be looked at, reset and deleted',
  async (t) => {
    const store = new TamperedStore();
    const first = await startApp({}, { store });
    const before = new Client(first);
    await before.ask('PUT', '/v1/hosts/other', {});
    for (const host of ['default', 'other']) await before.ask('PUT', `/v1/hosts/${host}/tasks/t1`, {});
    // As a crash leaves it: no last checkpoint.
    await store.close();
    t.teardown(() => first.close().catch(() => {}));
    store.tampered = true;
    const second = await startApp({}, { store });
    t.teardown(() => second.close());
    store.tampered = false;
    const after = new Client(second);
    t.match(await after.ask('GET', '/v1/hosts/default/tasks'), {
      status: 503,
      headers: { 'retry-after': /^\d+$/ },
      body: { reason: 'quarantined' },
    });
    t.match(await after.ask('PUT', '/v1/hosts/default/tasks/t2', {}), { status: 503 });
    t.match(await after.ask('GET', '/readyz'), {
      status: 200,
      body: { ready: true, quarantined: [{ host: 'default', reason: String, revision: Number }, { host: 'other' }] },
    });
    t.match(await after.ask('GET', '/v1/hosts/default'), {
      status: 200,
      body: { state: 'quarantined', quarantined: { reason: String, revision: Number } },
    });
    t.match(await after.ask('GET', '/v1/hosts'), {
      status: 200,
      body: { items: [{ state: 'quarantined' }, { state: 'quarantined' }] },
    });
    t.match(await after.ask('POST', '/v1/hosts/default/reset', {}), {
      status: 200,
      body: { ret: 0, state: 'alive', seq: 0 },
    });
    t.match(await after.ask('DELETE', '/v1/hosts/other'), { status: 200, body: { ret: 0, items: null } });
    t.match(await after.ask('GET', '/readyz'), { status: 200, body: { quarantined: [] } });
    t.equal((await after.ask('GET', '/v1/hosts/default/tasks')).status, 200);
  },
);
