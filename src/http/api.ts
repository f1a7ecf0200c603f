// The type of the Fastify instance that routes are added to, and what they find on it.

import type { IncomingMessage, ServerResponse } from 'node:http';
import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox';
import type { FastifyBaseLogger, FastifyInstance, RawServerDefault } from 'fastify';
import type { Service } from '../service/service.ts';

/** What routes call: the service without its private parts. */
export type ServicePort = Pick<
  Service,
  | 'createHost'
  | 'hosts'
  | 'host'
  | 'deleteHost'
  | 'resetHost'
  | 'submit'
  | 'read'
  | 'journal'
  | 'notifications'
  | 'mmuNotifications'
  | 'sync'
  | 'differential'
  | 'readiness'
  | 'stats'
>;

/** The logger that the server is given. */
export type HttpLogger = FastifyBaseLogger;

export type Api = FastifyInstance<
  RawServerDefault,
  IncomingMessage,
  ServerResponse,
  FastifyBaseLogger,
  TypeBoxTypeProvider
>;

/** What the line of the request log says beyond method, path and status. */
export interface Logged {
  host?: string;
  op?: string;
  seq?: number;
  ret?: number;
  errno?: string;
}

declare module 'fastify' {
  interface FastifyInstance {
    service: ServicePort;
    /** Aborted when the server stops: ends long polls. */
    stopping: AbortSignal;
  }
  interface FastifyRequest {
    logged: Logged;
  }
}
