// Takes a device's notifications as webhooks, signed as the Standard Webhooks scheme says: a small HTTP server that answers
// 401 to whatever is not signed with the secret, and the handler's return value to the rest.

import { randomBytes } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Webhook } from 'standardwebhooks';
import type { Delivery, Notification, NotifyReturn } from '../client.ts';
import type { Listener } from './vendor-driver.ts';

/** A notification is a few hundred bytes. */
const MAX_BODY_BYTES = 65_536;

type Handler = (notification: Notification) => Promise<NotifyReturn>;

export class WebhookListener implements Listener {
  #handler: Handler | null = null;

  private constructor(
    private readonly server: Server,
    private readonly webhook: Webhook,
    readonly delivery: Delivery,
  ) {}

  /** Listens on a free port; `host` is the name under which the service reaches this process. */
  static async listen(host: string): Promise<WebhookListener> {
    const secret = `whsec_${randomBytes(32).toString('base64')}`;
    const server = createServer();
    const loopback = host === '127.0.0.1' || host === 'localhost';
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(0, loopback ? '127.0.0.1' : undefined, resolve);
    });
    const { port } = server.address() as AddressInfo;
    const url = `http://${host}:${port}/dma_unmap`;
    const listener = new WebhookListener(server, new Webhook(secret), { kind: 'webhook', url, secret });
    server.on('request', (request, response) => void listener.#answer(request, response));
    return listener;
  }

  start(handler: Handler): void {
    this.#handler = handler;
  }

  async stop(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.server.close(() => resolve());
      this.server.closeIdleConnections();
    });
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const reply = (status: number, body: unknown) => {
      response.writeHead(status, { 'content-type': 'application/json', connection: 'close' }).end(JSON.stringify(body));
    };
    const body = await readBody(request).catch(() => null);
    if (body === null) return reply(413, { error: `body over ${MAX_BODY_BYTES} bytes` });
    let notification: Notification;
    try {
      notification = this.webhook.verify(body, request.headers as Record<string, string>) as Notification;
    } catch (error) {
      return reply(401, { error: String(error) });
    }
    if (this.#handler === null) return reply(503, { error: 'the driver does not listen yet' });
    reply(200, { ret: await this.#handler(notification) });
  }
}

async function readBody(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > MAX_BODY_BYTES) throw new Error('body too large');
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}
