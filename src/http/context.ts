// What a request says about itself beside its command: its id, the handler it runs in, its idempotency key, its patience.

import { createHash, randomUUID } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import type { FastifyRequest } from 'fastify';
import type { RequestContext } from '../service/answer.ts';
import { MAX_REQUEST_ID } from './limits.ts';

const REQUEST_ID = new RegExp(`^[A-Za-z0-9._~:/+=@-]{1,${MAX_REQUEST_ID}}$`);

/** The client's X-Request-Id where it is one, otherwise a new id. A malformed one is refused later, by the schema. */
export function requestIdOf(raw: IncomingMessage): string {
  const given = raw.headers['x-request-id'];
  return typeof given === 'string' && REQUEST_ID.test(given) ? given : randomUUID();
}

const headerOf = (request: FastifyRequest, name: string): string | null => {
  const value = request.headers[name];
  return typeof value === 'string' ? value : null;
};

/** Preconditions: the headers fit their schema. */
export function contextOf(request: FastifyRequest): RequestContext {
  const key = request.method === 'POST' ? headerOf(request, 'idempotency-key') : null;
  return {
    request_id: request.id,
    notification: headerOf(request, 'x-notification'),
    idempotency: key === null ? null : { key, body_hash: hashOf(request) },
    respond_async: prefersAsync(headerOf(request, 'prefer')),
  };
}

/** Two requests are the same when method, path and body are. */
function hashOf(request: FastifyRequest): Uint8Array {
  const { method, url, body } = request;
  return createHash('sha256')
    .update(`${method} ${url}\n${JSON.stringify(body ?? null)}`)
    .digest();
}

/** RFC 7240: preferences are separated by commas, their parameters by semicolons; unknown ones are ignored. */
const prefersAsync = (prefer: string | null): boolean =>
  (prefer ?? '').split(',').some((preference) => preference.split(';', 1)[0]?.trim().toLowerCase() === 'respond-async');
