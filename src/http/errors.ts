// From what is thrown to the problem that the client gets.

import type { FastifyReply, FastifyRequest } from 'fastify';
import { Errno, NoSuchObject } from '../kernel/errno.ts';
import { refusalOf } from '../kernel/outcome.ts';
import {
  HostExists,
  HostUnavailable,
  IdempotencyMismatch,
  JournalIncomplete,
  NoSuchHost,
  TooMany,
  TooManyCommands,
} from '../service/errors.ts';
import { BODY_LIMIT, RETRY_AFTER_S } from './limits.ts';
import { type Cause, Problem, type ProblemBody, problemOfCause } from './problems.ts';
import { refused, sendProblem } from './reply.ts';

/** What an error is answered with. */
interface Answered {
  problem: ProblemBody;
  headers: Record<string, string>;
}

type FrameworkError = Error & { statusCode?: number; code?: string };

export function sendError(error: FrameworkError, request: FastifyRequest, reply: FastifyReply): FastifyReply {
  const { problem, headers } = answerTo(error, request);
  if (problem.status >= 500 && problem.status !== 503) request.log.error({ err: error }, 'a request failed');
  if (typeof problem.errno === 'string') request.logged = { ...request.logged, errno: problem.errno };
  return sendProblem(reply.header('x-request-id', request.id).headers(headers), problem);
}

function answerTo(error: FrameworkError, request: FastifyRequest): Answered {
  const { id } = request;
  const plain = (cause: Cause, detail: string, extensions = {}, headers = {}): Answered => ({
    problem: problemOfCause(cause, detail, id, extensions),
    headers,
  });
  const retry = (seconds: number) => ({ 'retry-after': String(seconds) });
  if (error instanceof Problem) return plain(error.kind, error.message, error.extensions, error.headers);
  if (error instanceof NoSuchHost) return plain('not-found', error.message);
  if (error instanceof HostExists) return plain('host-exists', error.message, { errno: 'EEXIST', ret: -17 });
  if (error instanceof JournalIncomplete) return plain('journal-incomplete', error.message);
  if (error instanceof TooManyCommands) return plain('too-many-commands', error.message, { limit: error.limit });
  if (error instanceof IdempotencyMismatch) return plain('idempotency-mismatch', error.message);
  if (error instanceof HostUnavailable)
    return plain('unavailable', error.message, { reason: error.reason }, retry(error.retry_after_s));
  if (error instanceof TooMany)
    return plain('too-many', error.message, { limit: error.limit }, retry(error.retry_after_s));
  if (error instanceof Errno || error instanceof NoSuchObject)
    return { problem: refused(refusalOf(error).refusal, opOf(request), id, {}), headers: {} };
  return frameworkAnswer(error, request, plain, retry(RETRY_AFTER_S));
}

/** The operation that a route declares. */
const opOf = (request: FastifyRequest): string =>
  (request.routeOptions.schema as { operationId?: string } | undefined)?.operationId ?? request.method;

function frameworkAnswer(
  error: FrameworkError,
  request: FastifyRequest,
  plain: (cause: Cause, detail: string, extensions?: object, headers?: object) => Answered,
  retry: Record<string, string>,
): Answered {
  switch (error.statusCode) {
    case 400:
      return plain(
        error instanceof SyntaxError || error.code === 'FST_ERR_CTP_INVALID_JSON_BODY' ? 'json' : 'request',
        error.message,
      );
    case 401:
      return plain('unauthorized', error.message, {}, { 'www-authenticate': 'Bearer realm="vfio-mdev-emulator"' });
    case 403:
      // Of the documents' pages: a path that leads out of them.
      return plain('not-found', `nothing is at ${request.url.slice(0, 200)}`);
    case 404:
      return plain('not-found', error.message);
    case 413:
      return plain('body-too-large', `the body is larger than ${BODY_LIMIT} bytes`, { limit: BODY_LIMIT });
    case 415:
      return plain('content-type', 'the body must be application/json', { accept: 'application/json' });
    case 503:
      return plain('unavailable', error.message, {}, retry);
    default:
      return plain('defect', 'a defect of the emulator: its log has the request id', {});
  }
}
