// A notifier call as an HTTP request: one POST, signed as Standard Webhooks says, one attempt, no redirect.

import type { LookupFunction } from 'node:net';
import { Webhook } from 'standardwebhooks';
import { Agent, type Dispatcher, request } from 'undici';
import type { Clock } from './clock.ts';
import {
  MAX_FAILURE_DETAIL,
  MAX_OUTSTANDING_WEBHOOKS,
  MAX_WEBHOOK_HEADER_BYTES,
  MAX_WEBHOOK_RESPONSE_BYTES,
} from './limits.ts';
import type { Address, WebhookPolicy } from './webhook-policy.ts';

export interface WebhookMessage {
  url: string;
  secret: string;
  /** Unique over all hosts and the same on every delivery of a notification; without a dot, which the signature separates by. */
  id: string;
  /** As the HTTP contract prints it. */
  body: object;
  /** The kernel's number for a `ret` of the response; null where it is none. */
  retOf: (ret: unknown) => number | null;
  /** What an empty response means. */
  empty: number;
}

/** What the handler answered, or why it counts as one that returned without unpinning. */
export type WebhookResult = { ret: number } | { failure: string };

/** Lets a bounded number of calls run at one time; the others wait in the order of their arrival. */
class Turns {
  private free: number;
  private readonly waiting: (() => void)[] = [];

  constructor(most: number) {
    this.free = most;
  }

  async take(): Promise<void> {
    if (this.free > 0) this.free--;
    else await new Promise<void>((resolve) => this.waiting.push(resolve));
  }

  give(): void {
    const next = this.waiting.shift();
    if (next === undefined) this.free++;
    else next();
  }
}

export class WebhookSender {
  private readonly turns = new Turns(MAX_OUTSTANDING_WEBHOOKS);

  constructor(
    private readonly policy: WebhookPolicy,
    private readonly clock: Clock,
  ) {}

  /** Never throws: whatever goes wrong is a failure with its reason. An aborted call ends at once. */
  async send(message: WebhookMessage, signal: AbortSignal): Promise<WebhookResult> {
    await this.turns.take();
    try {
      signal.throwIfAborted();
      return await this.post(message, signal);
    } catch (error) {
      return { failure: describe(error) };
    } finally {
      this.turns.give();
    }
  }

  private async post(message: WebhookMessage, signal: AbortSignal): Promise<WebhookResult> {
    const { url, secret, id } = message;
    const target = new URL(url);
    if (target.protocol !== 'http:' && target.protocol !== 'https:')
      return { failure: `'${target.protocol}' is not a protocol of webhooks` };
    const addresses = await this.policy.addressesOf(target);
    const body = JSON.stringify(message.body);
    const at = new Date(this.clock.now());
    // A connection of its own for each call: a kept one that the receiver just closed would fail a call that is never retried.
    const dispatcher = new Agent({
      connect: { lookup: fixedLookup(addresses), timeout: 0 },
      pipelining: 0,
      headersTimeout: 0,
      bodyTimeout: 0,
      maxHeaderSize: MAX_WEBHOOK_HEADER_BYTES,
    });
    try {
      const response = await request(target, {
        method: 'POST',
        dispatcher,
        signal,
        headers: {
          'content-type': 'application/json',
          'user-agent': 'vfio-mdev-emulator',
          'webhook-id': id,
          'webhook-timestamp': String(Math.floor(at.getTime() / 1000)),
          'webhook-signature': signerOf(secret).sign(id, at, body),
        },
        body,
      });
      return await resultOf(response, message);
    } finally {
      await dispatcher.destroy();
    }
  }
}

/** A receiver's library takes the secret as base64 with or without 'whsec_'; what is not base64 counts as it stands. */
function signerOf(secret: string): Webhook {
  try {
    return new Webhook(secret);
  } catch {
    return new Webhook(Buffer.from(secret), { format: 'raw' });
  }
}

/** Gives a connection the addresses that were checked, whatever the name has become since. */
function fixedLookup(addresses: Address[]): LookupFunction {
  return (_name, options, callback) => {
    const [first] = addresses;
    if (options.all) callback(null, addresses);
    else callback(null, first?.address ?? '', first?.family);
  };
}

async function resultOf(
  { statusCode, body }: Dispatcher.ResponseData,
  { retOf, empty }: WebhookMessage,
): Promise<WebhookResult> {
  if (statusCode < 200 || statusCode > 299) return { failure: `the webhook answered ${statusCode}` };
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of body as AsyncIterable<Buffer>) {
    size += chunk.byteLength;
    if (size > MAX_WEBHOOK_RESPONSE_BYTES)
      return { failure: `the webhook answered ${statusCode} with more than ${MAX_WEBHOOK_RESPONSE_BYTES} bytes` };
    chunks.push(chunk);
  }
  const text = Buffer.concat(chunks).toString('utf8');
  if (text.trim() === '') return { ret: empty };
  const ret = retOf(retIn(text));
  return ret === null
    ? { failure: `the webhook answered ${statusCode} with no valid ret: ${text}`.slice(0, MAX_FAILURE_DETAIL) }
    : { ret };
}

function retIn(text: string): unknown {
  try {
    const answer: unknown = JSON.parse(text);
    return typeof answer === 'object' && answer !== null && 'ret' in answer ? answer.ret : undefined;
  } catch {
    return undefined;
  }
}

function describe(error: unknown): string {
  const { code, message } = error as { code?: unknown; message?: unknown };
  const text = [code, message].filter((part) => typeof part === 'string' && part !== '').join(': ');
  return (text || String(error)).slice(0, MAX_FAILURE_DETAIL);
}
