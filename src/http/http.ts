// The HTTP server: what holds for every request, and every route in the order in which the document shows them.

import { getHeapStatistics } from 'node:v8';
import bearerAuth from '@fastify/bearer-auth';
import helmet, { type FastifyHelmetOptions } from '@fastify/helmet';
import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox';
import underPressure from '@fastify/under-pressure';
import Fastify, { type FastifyBaseLogger, type FastifyInstance, LogController, type RouteOptions } from 'fastify';
import type { Api, ServicePort } from './api.ts';
import { requestIdOf } from './context.ts';
import { type AnySpec, headersOf } from './describe.ts';
import { registerDocs } from './docs.ts';
import { sendError } from './errors.ts';
import {
  BODY_LIMIT,
  KEEP_ALIVE_TIMEOUT_MS,
  MAX_EVENT_LOOP_DELAY_MS,
  MAX_HEAP_SHARE,
  MAX_PARAM,
  REQUEST_TIMEOUT_MS,
  RETRY_AFTER_S,
} from './limits.ts';
import { notFound, Paths } from './method-not-allowed.ts';
import { Metrics } from './metrics.ts';
import { Problem } from './problems.ts';
import { accessRoutes } from './routes/accesses.ts';
import { containerRoutes } from './routes/containers.ts';
import { deviceRoutes } from './routes/devices.ts';
import { differentialRoute } from './routes/differential.ts';
import { dirtyPagesRoutes } from './routes/dirty-pages.ts';
import { dmaRoutes } from './routes/dma.ts';
import { exclusiveDeviceRoutes } from './routes/exclusive-devices.ts';
import { faultRoutes } from './routes/faults.ts';
import { fileRoutes } from './routes/files.ts';
import { groupRoutes } from './routes/groups.ts';
import { hostRoutes } from './routes/hosts.ts';
import { lockRoutes } from './routes/locks.ts';
import { lookingInRoutes } from './routes/looking-in.ts';
import { memoryRoutes } from './routes/memory.ts';
import { memoryOperationRoutes } from './routes/memory-operations.ts';
import { mmRoutes } from './routes/mms.ts';
import { mmuIntervalRoutes } from './routes/mmu-intervals.ts';
import { mmuNotifierRoutes } from './routes/mmu-notifiers.ts';
import { notifierRoutes } from './routes/notifiers.ts';
import { operationRoutes } from './routes/operations.ts';
import { pageOperationRoutes } from './routes/page-operations.ts';
import { pageRoutes } from './routes/pages.ts';
import { pinRoutes } from './routes/pins.ts';
import { metricsRoute, openProcessRoutes } from './routes/process.ts';
import { taskRoutes } from './routes/tasks.ts';
import { vfioPciRoutes } from './routes/vfio-pci.ts';
import { vfioPciAccessRoutes } from './routes/vfio-pci-accesses.ts';
import { vfioPciGateRoutes } from './routes/vfio-pci-gate.ts';
import { vhostDevRoutes } from './routes/vhost-devs.ts';
import { vmRoutes } from './routes/vms.ts';
import { schemaCompiler } from './validation.ts';

/** Plain http is served, so nothing may ask for https; headers for browsers that nobody runs are left out. */
const HEADERS: FastifyHelmetOptions = {
  contentSecurityPolicy: false,
  hsts: false,
  crossOriginOpenerPolicy: false,
  originAgentCluster: false,
  xDnsPrefetchControl: false,
  xDownloadOptions: false,
  xPermittedCrossDomainPolicies: false,
  xXssProtection: false,
};

export interface HttpSettings {
  service: ServicePort;
  logger: FastifyBaseLogger;
  /** Token that /v1 and /metrics want; null: everyone may call. */
  apiToken: string | null;
}

export async function buildHttp({ service, logger, apiToken }: HttpSettings): Promise<Api> {
  const app: Api = Fastify({
    loggerInstance: logger,
    logController: new LogController({ disableRequestLogging: true, requestIdLogLabel: 'request_id' }),
    genReqId: requestIdOf,
    bodyLimit: BODY_LIMIT,
    requestTimeout: REQUEST_TIMEOUT_MS,
    keepAliveTimeout: KEEP_ALIVE_TIMEOUT_MS,
    return503OnClosing: false,
    routerOptions: { maxParamLength: MAX_PARAM },
    frameworkErrors: sendError,
  }).withTypeProvider<TypeBoxTypeProvider>();
  const stopping = new AbortController();
  app.decorate('service', service);
  app.decorate('stopping', stopping.signal);
  app.decorateRequest('logged');
  app.setValidatorCompiler(schemaCompiler());
  app.setErrorHandler(sendError);
  acceptJson(app);
  everyRequest(app);
  const metrics = new Metrics(service);
  app.addHook('onResponse', async (request, reply) => {
    metrics.observe(request, reply);
    request.log.info(
      {
        method: request.method,
        url: request.url.slice(0, 500),
        status: reply.statusCode,
        ms: Math.round(reply.elapsedTime * 1000) / 1000,
        ...request.logged,
      },
      'request',
    );
  });
  // Long polls end at once; what waits for an operation is ended by the service, which stops next.
  app.addHook('preClose', async () => stopping.abort());

  const paths = new Paths();
  app.addHook('onRoute', (route) => {
    paths.add(route);
    addHeaders(route);
  });
  app.setNotFoundHandler(notFound(paths));
  await app.register(helmet, HEADERS);
  await app.register(underPressure, {
    maxEventLoopDelay: MAX_EVENT_LOOP_DELAY_MS,
    maxHeapUsedBytes: getHeapStatistics().heap_size_limit * MAX_HEAP_SHARE,
    pressureHandler: refuseUnderPressure,
  });
  await registerDocs(app);
  await app.register(async (guarded) => {
    if (apiToken !== null) await requireToken(guarded, apiToken);
    const api = guarded.withTypeProvider<TypeBoxTypeProvider>();
    for (const routes of [
      dmaRoutes,
      dirtyPagesRoutes,
      pinRoutes,
      notifierRoutes,
      deviceRoutes,
      containerRoutes,
      groupRoutes,
      taskRoutes,
      memoryRoutes,
      memoryOperationRoutes,
      accessRoutes,
      pageRoutes,
      pageOperationRoutes,
      fileRoutes,
      mmRoutes,
      mmuNotifierRoutes,
      mmuIntervalRoutes,
      vmRoutes,
      vhostDevRoutes,
      vfioPciRoutes,
      vfioPciGateRoutes,
      vfioPciAccessRoutes,
      exclusiveDeviceRoutes,
      operationRoutes,
      faultRoutes,
      lookingInRoutes,
      lockRoutes,
      hostRoutes,
      differentialRoute,
    ])
      routes(api);
    metricsRoute(api, metrics);
  });
  openProcessRoutes(app);
  return app;
}

/** After a window without any measurement the plug-in takes the delay for endless: nothing is known then. */
async function refuseUnderPressure(_request: unknown, _reply: unknown, type: string, value?: number): Promise<void> {
  if (value === Number.POSITIVE_INFINITY) return;
  const detail = `the process has too much to do: ${type} is ${Math.round(value ?? 0)}`;
  throw new Problem('unavailable', detail, {}, { 'retry-after': String(RETRY_AFTER_S) });
}

/** Everything in this scope wants `Authorization: Bearer <token>`; the comparison takes the same time for every guess. */
async function requireToken(scope: FastifyInstance, token: string): Promise<void> {
  await scope.register(bearerAuth, {
    keys: [token],
    addHook: false,
    specCompliance: 'rfc6749',
    verifyErrorLogLevel: 'debug',
  });
  scope.addHook('onRequest', (request, reply, done) => scope.verifyBearerAuth?.(request, reply, done));
}

/** Only JSON; a request without a body is one with no fields, whatever content type it names. */
function acceptJson(app: Api): void {
  const parse = app.getDefaultJsonParser('error', 'ignore');
  app.removeAllContentTypeParsers();
  app.addContentTypeParser('application/json', { parseAs: 'string' }, (request, body, done) => {
    if (body.length === 0) done(null, undefined);
    else parse(request, body as string, done);
  });
  app.addHook('preValidation', async (request) => {
    if (request.body === undefined && request.routeOptions.schema?.body !== undefined) request.body = {};
  });
}

function everyRequest(app: Api): void {
  app.addHook('onRequest', async (request, reply) => {
    request.logged = {};
    reply.header('x-request-id', request.id);
  });
}

/** The headers that an operation reads are part of its schema: a malformed one is a 400 that names it. */
function addHeaders({ schema, method }: RouteOptions): void {
  const spec = (schema as { 'x-spec'?: AnySpec } | undefined)?.['x-spec'];
  if (schema !== undefined && spec !== undefined) schema.headers = headersOf(spec, method === 'POST');
}
