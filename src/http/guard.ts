// Who may call: whoever sends the token, where one is set.

import { createHash, timingSafeEqual } from 'node:crypto';
import type { FastifyRequest } from 'fastify';
import { Problem } from './problems.ts';

const digest = (text: string): Buffer => createHash('sha256').update(text).digest();

/** A hook that lets requests with `Authorization: Bearer <token>` through. The comparison takes the same time for every guess. */
export function bearerGuard(token: string): (request: FastifyRequest) => Promise<void> {
  const expected = digest(token);
  return async ({ headers }) => {
    const given = /^Bearer +(\S+)$/i.exec(headers.authorization ?? '')?.[1];
    if (given !== undefined && timingSafeEqual(digest(given), expected)) return;
    const detail = given === undefined ? 'Authorization: Bearer <API_TOKEN> is missing' : 'the token is wrong';
    throw new Problem('unauthorized', detail, {}, { 'www-authenticate': 'Bearer realm="vfio-mdev-emulator"' });
  };
}
