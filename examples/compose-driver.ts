// A vendor driver as a REST client, for docker-compose.yml: it pins guest pages, is told by webhook that their mapping is
// going away, unpins inside that handler, and ends with 0 when nothing was left pinned.

import { randomBytes, randomUUID } from 'node:crypto';
import { createServer, type IncomingMessage, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Webhook } from 'standardwebhooks';

const EMULATOR = process.env.EMULATOR_URL ?? 'http://127.0.0.1:7180';
const DRIVER_HOST = process.env.DRIVER_HOST ?? '127.0.0.1';
const DRIVER_PORT = Number(process.env.DRIVER_PORT ?? 9000);
const TOKEN = process.env.API_TOKEN;

/** The emulated machine that this driver has for itself. */
const MACHINE = '/v1/hosts/compose-driver';
const DEVICE = 'gpu0';
/** Of the template `default`: the guest's memory in the task `qemu` starts here. */
const GUEST_MEMORY = '0x7f0000000000';
const MAPPING = { iova: '0x100000', size: '0x100000' };
const NPAGE = 16;

type Json = Record<string, unknown>;
/** The pfns that this driver has pinned and not unpinned. */
const pinned = new Set<number>();
const secret = `whsec_${randomBytes(24).toString('base64')}`;
const webhook = new Webhook(secret);

async function call(method: string, path: string, body?: Json, headers: Record<string, string> = {}): Promise<Json> {
  const response = await fetch(EMULATOR + path, {
    method,
    headers: {
      ...(body === undefined ? {} : { 'content-type': 'application/json' }),
      // A retried pin without a key would be a second reference.
      ...(method === 'POST' ? { 'idempotency-key': randomUUID() } : {}),
      ...(TOKEN ? { authorization: `Bearer ${TOKEN}` } : {}),
      ...headers,
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  const answer = (await response.json()) as Json;
  if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${JSON.stringify(answer)}`);
  return answer;
}

async function waitForEmulator(): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    const answer = await fetch(`${EMULATOR}/healthz`).catch(() => null);
    if (answer?.ok) return;
    if (attempt === 60) throw new Error(`${EMULATOR}/healthz did not answer within a minute`);
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

/** The DMA_UNMAP handler: every page of the announced range is unpinned before it returns. */
async function onDmaUnmap(notification: { id: string; iova: string; size: string }): Promise<void> {
  const first = Number(BigInt(notification.iova) >> 12n);
  const end = first + Number(BigInt(notification.size) >> 12n);
  const user_pfn = [...pinned].filter((pfn) => pfn >= first && pfn < end);
  if (user_pfn.length > 0) {
    await call('POST', `${MACHINE}/devices/${DEVICE}/unpin_pages`, { user_pfn }, { 'x-notification': notification.id });
  }
  for (const pfn of user_pfn) pinned.delete(pfn);
  console.log(`DMA_UNMAP ${notification.iova} + ${notification.size}: unpinned ${user_pfn.length} pages`);
}

async function textOf(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString('utf8');
}

function listen(): Promise<Server> {
  const server = createServer(async (request, response) => {
    try {
      const body = await textOf(request);
      await onDmaUnmap(
        webhook.verify(body, request.headers as Record<string, string>) as Parameters<typeof onDmaUnmap>[0],
      );
      response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify({ ret: 'NOTIFY_OK' }));
    } catch (error) {
      console.error(`webhook refused: ${(error as Error).message}`);
      response.writeHead(401).end();
    }
  });
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(DRIVER_PORT, () => resolve(server));
  });
}

function expect(name: string, value: unknown, wanted: unknown): void {
  const [seen, right] = [JSON.stringify(value), JSON.stringify(wanted)];
  if (seen !== right) throw new Error(`${name} is ${seen}, not ${right}`);
  console.log(`${name}: ${seen}`);
}

async function run(port: number): Promise<void> {
  await waitForEmulator();
  await call('PUT', MACHINE, { template: 'default' });
  await call('POST', `${MACHINE}/reset`);
  await call('PUT', `${MACHINE}/devices/${DEVICE}`, {
    container: 'vfio0',
    notifier: { events: ['DMA_UNMAP'], delivery: { kind: 'webhook', url: `http://${DRIVER_HOST}:${port}/`, secret } },
  });

  const vfio = `${MACHINE}/containers/vfio0`;
  await call('POST', `${vfio}/map_dma`, { task: 'qemu', vaddr: GUEST_MEMORY, flags: ['READ', 'WRITE'], ...MAPPING });
  const first = Number(BigInt(MAPPING.iova) >> 12n);
  const user_pfn = Array.from({ length: NPAGE }, (_, i) => first + i);
  const pin = await call('POST', `${MACHINE}/devices/${DEVICE}/pin_pages`, { user_pfn, prot: ['READ', 'WRITE'] });
  for (const pfn of user_pfn) pinned.add(pfn);
  expect('pages pinned', pin.ret, NPAGE);

  const unmap = await call('POST', `${vfio}/unmap_dma`, MAPPING);
  expect('bytes unmapped', unmap.size, MAPPING.size);
  expect('handler calls', unmap.notifications, 1);
  expect('pages still pinned', pinned.size, 0);
  const task = await call('GET', `${MACHINE}/tasks/qemu`);
  expect('locked_vm', task.locked_vm, 0);
  const invariants = await call('GET', `${MACHINE}/invariants`);
  expect('invariants hold', invariants.ok, true);
}

const server = await listen();
try {
  await run((server.address() as AddressInfo).port);
  console.log('ok: nothing was leaked');
} catch (error) {
  console.error(`failed: ${(error as Error).message}`);
  process.exitCode = 1;
} finally {
  server.close();
  server.closeAllConnections();
}
