// Notifications on their way to handlers and back: webhooks over real sockets, the policy of where they may go, timeouts.

import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Webhook } from 'standardwebhooks';
import t from 'tap';
import type { Command, Delivery } from '../../src/kernel/command.ts';
import { systemClock } from '../../src/service/clock.ts';
import { MAX_WEBHOOK_RESPONSE_BYTES } from '../../src/service/limits.ts';
import { notifyReturnOf } from '../../src/service/notify-return.ts';
import type { Service } from '../../src/service/service.ts';
import { WebhookSender } from '../../src/service/webhook.ts';
import { type Address, WebhookPolicy, webhookAllowErrors } from '../../src/service/webhook-policy.ts';
import { MemoryStore } from '../../src/store/memory-store.ts';
import { ack, ManualClock, map, notifier, pin, settle, startService, stateOf, submit, unmap, unpin } from './bench.ts';

const SECRET = `whsec_${Buffer.from('a shared secret of 32 characters').toString('base64')}`;

interface Received {
  headers: IncomingMessage['headers'];
  method: string;
  url: string;
  body: string;
}

interface Receiver {
  url: string;
  port: number;
  received: Received[];
  server: Server;
}

type Teardown = { teardown(end: () => unknown): unknown };

/** A driver's web server; `answer` writes the response. */
async function receiver(
  t: Teardown,
  answer: (response: ServerResponse, request: Received) => unknown,
): Promise<Receiver> {
  const received: Received[] = [];
  const server = createServer(async (request, response) => {
    let body = '';
    for await (const chunk of request) body += chunk;
    const seen = { headers: request.headers, method: request.method ?? '', url: request.url ?? '', body };
    received.push(seen);
    await answer(response, seen);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    server.closeAllConnections();
    return new Promise((resolve) => server.close(resolve));
  });
  const { port } = server.address() as AddressInfo;
  return { url: `http://127.0.0.1:${port}/hook?x=1`, port, received, server };
}

const webhook = (url: string, secret = SECRET): Delivery => ({ kind: 'webhook', url, secret });

/** A host with three pinned pages and one notifier; real time, since sockets are real. */
async function ready(
  t: Teardown,
  delivery: Delivery,
  settings: Parameters<typeof startService>[1] = {},
): Promise<Service> {
  const store = new MemoryStore();
  await store.open();
  const service = await startService(store, { clock: systemClock, ...settings });
  t.teardown(() => service.stop());
  for (const command of [notifier(delivery), map(0n), pin(1, 2, 3)]) await submit(service, command);
  return service;
}

const commandsOf = async (service: Service): Promise<Command[]> =>
  (await service.journal('default', 0, 1000)).items.map(({ command }) => command);

const acksOf = async (service: Service): Promise<Command[]> =>
  (await commandsOf(service)).filter(({ op }) => op === 'ack_notification');

t.test('a webhook is a signed POST of the notification; its answer ends the handler', async (t) => {
  const hook = await receiver(t, async (response) => {
    await submit(service, unpin(1, 2, 3), { notification: 'notification-1' });
    response.setHeader('content-type', 'application/json');
    response.end('{"ret": "NOTIFY_OK"}');
  });
  const service = await ready(t, webhook(hook.url));
  const done = await submit(service, unmap(0n));
  t.match(done, { seq: 4, outcome: { ret: 0, fields: { size: 65536n, notifications: 1 } } });
  const [request, ...others] = hook.received;
  t.strictSame(others, []);
  t.match(request, { method: 'POST', url: '/hook?x=1', headers: { 'content-type': 'application/json' } });
  const verified = new Webhook(SECRET).verify(request?.body ?? '', request?.headers as Record<string, string>);
  t.strictSame(verified, {
    id: 'notification-1',
    device: 'mdev0',
    notifier: 'n1',
    event: 'DMA_UNMAP',
    iova: '0x0',
    size: '0x10000',
    container: 'vfio0',
    attempt: 1,
    seq: 4,
  });
  t.throws(() => new Webhook(SECRET).verify(`${request?.body} `, request?.headers as Record<string, string>));
  t.notMatch(request?.headers['webhook-id'], /\./, 'the signature separates its parts by dots');
  t.match(await acksOf(service), [{ notification: 'notification-1', ret: 1, reason: 'ack', detail: null }]);
});

t.test('each attempt is one call with an id of its own', async (t) => {
  const hook = await receiver(t, async (response) => {
    if (hook.received.length === 3) await submit(service, unpin(1, 2, 3));
    response.end();
  });
  const service = await ready(t, webhook(hook.url));
  await submit(service, unmap(0n));
  t.strictSame(
    hook.received.map(({ body }) => JSON.parse(body).attempt),
    [1, 2, 3],
  );
  t.equal(new Set(hook.received.map(({ headers }) => headers['webhook-id'])).size, 3);
});

t.test('an answer by number, by another name, without a body; a secret that is not base64', async (t) => {
  const answers = ['{"ret": 1}', '{"ret": "NOTIFY_DONE"}', ' \n'];
  const secret = 'not base64!';
  const hook = await receiver(t, async (response) => {
    if (hook.received.length === 3) await submit(service, unpin(1, 2, 3));
    response.statusCode = 202;
    response.end(answers[hook.received.length - 1]);
  });
  const service = await ready(t, webhook(hook.url, secret));
  await submit(service, unmap(0n));
  t.match(await acksOf(service), [
    { ret: 1, reason: 'ack' },
    { ret: 0, reason: 'ack' },
    { ret: 1, reason: 'ack' },
  ]);
  const raw = new Webhook(Buffer.from(secret), { format: 'raw' });
  for (const { body, headers } of hook.received) t.type(raw.verify(body, headers as Record<string, string>), 'object');
});

const failures: [string, (response: ServerResponse) => unknown, RegExp][] = [
  ['a server error', (response) => response.writeHead(500).end('{"ret": 1}'), /answered 500/],
  [
    'a redirect, which is not followed',
    (response) => response.writeHead(307, { location: '/elsewhere' }).end(),
    /answered 307/,
  ],
  ['a body that is no JSON', (response) => response.end('fine'), /no valid ret: fine/],
  ['a body without ret', (response) => response.end('{}'), /no valid ret/],
  ['an unknown name', (response) => response.end('{"ret": "NOTIFY_MAYBE"}'), /no valid ret/],
  ['a ret that is no int', (response) => response.end('{"ret": 1.5}'), /no valid ret/],
  [
    'a body beyond its limit',
    (response) => response.end(' '.repeat(MAX_WEBHOOK_RESPONSE_BYTES + 1)),
    /more than 65536 bytes/,
  ],
  ['a connection that breaks', (response) => response.destroy(), /./],
];

for (const [what, answer, detail] of failures) {
  t.test(`${what} counts as a handler that returned without unpinning`, async (t) => {
    const hook = await receiver(t, async (response) => {
      if (hook.received.length === 1) return answer(response);
      await submit(service, unpin(1, 2, 3));
      return response.end();
    });
    const service = await ready(t, webhook(hook.url));
    t.match(await submit(service, unmap(0n)), { outcome: { ret: 0, fields: { notifications: 2 } } });
    t.equal(hook.received.length, 2, 'one call for each attempt of the kernel, none repeated');
    const [failed, second] = await acksOf(service);
    t.match(failed, { notification: 'notification-1', ret: 0, reason: 'webhook_failed', detail });
    t.match(second, { notification: 'notification-2', reason: 'ack' });
    const { value } = await service.read('default', (host) => host.dmesg.since(0, 100).items.map(({ text }) => text));
    t.match(value.join('\n'), /notification-1/, 'dmesg tells of it');
  });
}

t.test('a webhook that does not answer is cut off by notification_timeout, and a late ack is refused', async (t) => {
  const hook = await receiver(t, (response) => {
    if (hook.received.length > 1) response.end();
  });
  const service = await ready(t, webhook(hook.url));
  await submit(service, { op: 'patch_host', notifier_timeout_ms: 50 });
  const closed = new Promise((resolve) => hook.server.once('connection', (socket) => socket.once('close', resolve)));
  const waiting = submit(service, unmap(0n));
  await closed;
  await submit(service, unpin(1, 2, 3));
  t.match(await waiting, { outcome: { ret: 0 } });
  const commands = await commandsOf(service);
  t.match(
    commands.filter(({ op }) => op === 'notification_timeout'),
    [{ notification: 'notification-1' }],
  );
  t.match(await submit(service, ack('notification-1')), { outcome: { refusal: { errno: 'EBUSY' } } });
});

t.test('poll: notifier_timeout_ms runs from the delivery; an answer in time stops it', async (t) => {
  const clock = new ManualClock();
  const service = await ready(t, { kind: 'poll' }, { clock });
  const waiting = submit(service, unmap(0n));
  t.equal(await stateOf(waiting), 'pending');
  clock.advance(9_999);
  await settle();
  t.equal((await commandsOf(service)).at(-1)?.op, 'unmap_dma');
  clock.advance(1);
  await settle();
  t.match((await commandsOf(service)).at(-1), { op: 'notification_timeout', notification: 'notification-1' });
  const [second] = await service.notifications('default', 'mdev0', 0, new AbortController().signal);
  t.match(second, { id: 'notification-2', attempt: 2 });
  clock.advance(5_000);
  await submit(service, unpin(1, 2, 3));
  await submit(service, ack('notification-2'));
  t.match(await waiting, { outcome: { fields: { notifications: 2 } } });
  clock.advance(60_000);
  await settle();
  t.equal((await commandsOf(service)).filter(({ op }) => op === 'notification_timeout').length, 1);
});

t.test('eleven timeouts are the emulated BUG: the client gets EIO, nothing is delivered any more', async (t) => {
  const clock = new ManualClock();
  const service = await ready(t, { kind: 'poll' }, { clock });
  const waiting = submit(service, unmap(0n));
  for (let i = 0; i < 11; i++) {
    t.equal(await stateOf(waiting), 'pending', `after ${i} timeouts`);
    clock.advance(10_000);
    await settle();
  }
  t.match(await waiting, { outcome: { refusal: { errno: 'EIO' } } });
  t.strictSame(await service.notifications('default', 'mdev0', 0, new AbortController().signal), []);
});

t.test('the builtin "slow" answers after delay_ms; the timeout does not hold for it', async (t) => {
  const clock = new ManualClock();
  const slow: Delivery = { kind: 'builtin', behavior: 'slow', n: 1, delay_ms: 30_000 };
  const service = await ready(t, slow, { clock });
  const waiting = submit(service, unmap(0n));
  t.equal(await stateOf(waiting), 'pending');
  clock.advance(29_999);
  t.equal(await stateOf(waiting), 'pending');
  clock.advance(1);
  t.match(await waiting, { outcome: { ret: 0, fields: { size: 65536n, notifications: 1 } } });
  t.match(await acksOf(service), [{ notification: 'notification-1', ret: 1, reason: 'slow_builtin' }]);
  t.equal((await service.read('default', ({ vfio }) => vfio.pfns.count)).value, 0);
});

t.test('a stop does not wait for a webhook; after the restart the same notification is delivered again', async (t) => {
  const hook = await receiver(t, async (response) => {
    if (hook.received.length === 1) return;
    await submit(second, unpin(1, 2, 3));
    response.end();
  });
  const store = new MemoryStore();
  await store.open();
  const first = await startService(store, { clock: systemClock });
  for (const command of [notifier(webhook(hook.url)), map(0n), pin(1, 2, 3)]) await submit(first, command);
  const called = new Promise((resolve) => hook.server.once('request', resolve));
  const parked = submit(first, unmap(0n), { key: 'k' });
  parked.catch(() => undefined);
  await called;
  await first.stop();
  await t.rejects(parked, { name: 'HostUnavailable', reason: 'draining' });
  await store.open();
  const second: Service = await startService(store, { clock: systemClock });
  t.teardown(() => second.stop());
  t.match(await submit(second, unmap(0n), { key: 'k' }), { seq: 4, replayed: true, outcome: { ret: 0 } });
  const ids = hook.received.map(({ headers }) => headers['webhook-id']);
  t.equal(ids.length, 2);
  t.equal(ids[0], ids[1], 'a redelivery keeps the id');
});

const policyOf = (entries: string[], names: Record<string, string[]> = {}): WebhookPolicy =>
  new WebhookPolicy(entries, async (name) =>
    (names[name] ?? []).map((address): Address => ({ address, family: address.includes(':') ? 6 : 4 })),
  );

t.test('loopback is always allowed, everything else only where it is listed', async (t) => {
  const names = {
    localhost: ['::1', '127.0.0.1'],
    'driver.test': ['10.0.0.7'],
    'rebound.test': ['127.0.0.1'],
    'mixed.test': ['169.254.169.254', '10.1.0.1'],
    'mapped.test': ['::ffff:10.2.0.1'],
    'public.test': ['93.184.216.34'],
  };
  const allowed = async (entries: string[], url: string): Promise<string[] | string> =>
    policyOf(entries, names)
      .addressesOf(new URL(url))
      .then(
        (addresses) => addresses.map(({ address }) => address),
        (error: Error) => error.name,
      );
  const cases: [string[], string, string[] | 'WebhookRefused'][] = [
    [[], 'http://127.0.0.1:9/', ['127.0.0.1']],
    [[], 'http://127.9.9.9/', ['127.9.9.9']],
    [[], 'http://[::1]/', ['::1']],
    [[], 'http://localhost/', ['::1', '127.0.0.1']],
    [[], 'http://rebound.test/', ['127.0.0.1']],
    [[], 'http://0x7f000001/', ['127.0.0.1']],
    [[], 'http://2130706433/', ['127.0.0.1']],
    [[], 'http://0177.0.0.1/', ['127.0.0.1']],
    [[], 'http://[::ffff:127.0.0.1]/', ['::ffff:7f00:1']],
    [[], 'http://10.0.0.7/', 'WebhookRefused'],
    [[], 'http://167772167/', 'WebhookRefused'],
    [[], 'http://012.0.0.7/', 'WebhookRefused'],
    [[], 'http://[::ffff:10.0.0.7]/', 'WebhookRefused'],
    [[], 'http://[::ffff:a00:7]/', 'WebhookRefused'],
    [[], 'http://0.0.0.0/', 'WebhookRefused'],
    [[], 'http://[::]/', 'WebhookRefused'],
    [[], 'http://169.254.169.254/', 'WebhookRefused'],
    [[], 'http://driver.test/', 'WebhookRefused'],
    [[], 'http://public.test/', 'WebhookRefused'],
    [[], 'http://unknown.test/', 'WebhookRefused'],
    [['driver.test'], 'http://driver.test/', ['10.0.0.7']],
    [['Driver.Test'], 'http://DRIVER.test./', ['10.0.0.7']],
    [['driver.test'], 'http://public.test/', 'WebhookRefused'],
    [['driver.test'], 'http://10.0.0.7/', 'WebhookRefused'],
    [['10.0.0.0/8'], 'http://driver.test/', ['10.0.0.7']],
    [['10.0.0.0/8'], 'http://mixed.test/', ['10.1.0.1']],
    [['10.0.0.0/8'], 'http://mapped.test/', ['::ffff:10.2.0.1']],
    [['10.0.0.0/8'], 'http://11.0.0.1/', 'WebhookRefused'],
    [['10.0.0.7'], 'http://10.0.0.7/', ['10.0.0.7']],
    [['10.0.0.7'], 'http://10.0.0.8/', 'WebhookRefused'],
    [['fd00::/8'], 'http://[fd12::1]/', ['fd12::1']],
    [['fd00::/8'], 'http://[fe80::1]/', 'WebhookRefused'],
  ];
  for (const [entries, url, wanted] of cases)
    t.strictSame(await allowed(entries, url), wanted, `${url} with [${entries}]`);
});

t.test('a malformed WEBHOOK_ALLOW is told entry by entry', async (t) => {
  t.strictSame(webhookAllowErrors(['driver', 'a.b-c.example', '10.0.0.0/8', 'fd00::/8', '10.0.0.7', '::1']), []);
  const bad = ['', '10.0.0.0/33', '10.0.0', '1.2.3.4.5', 'http://x', 'a b', '-x', '0x7f000001', '10.0.0.256'];
  t.equal(webhookAllowErrors(bad).length, bad.length, webhookAllowErrors(bad).join('; '));
  t.throws(() => new WebhookPolicy(['ok', '10.0.0.0/33']), /10\.0\.0\.0\/33/);
});

t.test('the address that was checked is the one connected to, whatever the name resolves to later', async (t) => {
  const hook = await receiver(t, (response) => response.end('{"ret": 32769}'));
  let resolutions = 0;
  const policy = new WebhookPolicy(['driver.test'], async () => {
    resolutions++;
    return [{ address: resolutions === 1 ? '127.0.0.1' : '203.0.113.1', family: 4 }];
  });
  const sender = new WebhookSender(policy, systemClock);
  const body = { id: 'notification-1', iova: '0xfffffffffffff000' };
  const answers = { retOf: notifyReturnOf, empty: 1 };
  const message = { url: `http://driver.test:${hook.port}/`, secret: SECRET, id: 'msg_1', body, ...answers };
  t.strictSame(await sender.send(message, new AbortController().signal), { ret: 0x8001 });
  t.equal(resolutions, 1);
  t.equal(hook.received[0]?.headers.host, `driver.test:${hook.port}`);
  t.match(hook.received[0]?.body, '"iova":"0xfffffffffffff000"');
  const refused = await sender.send({ ...message, url: 'ftp://driver.test/' }, new AbortController().signal);
  t.match(refused, { failure: /protocol/ });
  t.match(await sender.send({ ...message, secret: '' }, new AbortController().signal), { failure: /empty/ });
});
