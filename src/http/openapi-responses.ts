// The responses of every operation in the OpenAPI document: statuses, schemas, examples, headers.

import type { ErrnoName } from '../kernel/errno.ts';
import type { AnySpec, RefusalExample, Success } from './describe.ts';
import { CAUSES, type ProblemBody, problemOfCause, problemOfErrno, statusOfErrno } from './problems.ts';
import { Accepted, operationExample } from './views/host.ts';

export type Json = null | boolean | number | string | Json[] | JsonObject;
export interface JsonObject {
  [key: string]: Json;
}

const str: JsonObject = { type: 'string' };
const PROBLEM: JsonObject = {
  title: 'Problem',
  type: 'object',
  required: ['type', 'title', 'status', 'detail', 'instance'],
  properties: {
    type: { ...str, description: 'Path of the entry in the catalogue of problems' },
    title: str,
    status: { type: 'integer' },
    detail: { ...str, description: 'Names the operand, the limit and the current value' },
    instance: { ...str, description: 'Request id' },
    errno: { ...str, pattern: '^E[A-Z0-9]+$', description: 'What the emulated kernel answered' },
    ret: { type: 'integer', description: 'The same as a negative number' },
    op: { ...str, description: 'Command' },
    profile: { ...str, description: 'Kernel profile of the host' },
    seq: { type: 'integer', minimum: 0, description: "Position of the command in the host's journal" },
    at_index: { type: 'integer', minimum: 0, description: 'Entry that was refused' },
    hint: { ...str, description: 'What the caller can do about it' },
    reason: { ...str, description: 'Why the host or the service is not available' },
    limit: { type: 'integer', description: 'The bound that was reached' },
    accept: { ...str, description: 'Content type that is understood' },
    phys_pfn: {
      type: 'array',
      items: { type: 'integer', minimum: 0 },
      description: 'The output array of a refused pin, as the kernel leaves it',
    },
    notifications: { type: 'integer', minimum: 0, description: 'Handler calls before a refused unmap ended' },
    events_left: { type: 'integer', description: 'The events word after a refused registration' },
    data: { ...str, contentEncoding: 'base64', description: 'What a refused dma_rw has read before it stopped' },
    errors: {
      type: 'array',
      description: 'What does not fit the schema',
      items: {
        type: 'object',
        required: ['in', 'field', 'message'],
        properties: {
          in: { ...str, enum: ['body', 'query', 'path', 'header'] },
          field: { ...str, description: 'Path of the value, steps separated by "/"' },
          message: str,
          limit: { type: ['number', 'string'] },
          value: { type: ['string', 'number', 'boolean', 'null'] },
        },
        additionalProperties: false,
      },
    },
  },
  additionalProperties: false,
};

const header = (description: string): JsonObject => ({ description, schema: { type: 'string' } });
const REQUEST_ID: JsonObject = { 'X-Request-Id': { $ref: '#/components/headers/RequestId' } };
const RETRY_AFTER: JsonObject = { 'Retry-After': header('Seconds') };

/** Every status that an operation may answer with, beside its successes. */
function statusesOf(spec: AnySpec, method: string): number[] {
  const statuses = new Set(spec.alsoStatuses ?? []);
  for (const errno of spec.refusals ?? []) statuses.add(statusOfErrno(errno));
  if (spec.does !== 'process') {
    for (const status of [400, 401, 503]) statuses.add(status);
    if (spec.params !== undefined && !(spec.does === 'host' && method === 'put')) statuses.add(404);
    if (spec.body !== undefined) for (const status of [413, 415]) statuses.add(status);
    if (spec.does === 'command') statuses.add(410);
    if (spec.does === 'command' && method === 'post') statuses.add(422);
  }
  return [...statuses].sort((a, b) => a - b);
}

const errnosOf = (spec: AnySpec, status: number): ErrnoName[] =>
  (spec.refusals ?? []).filter((errno) => statusOfErrno(errno) === status);

const STATUS_WORDS: Record<number, string> = {
  400: 'The request does not fit its schema',
  401: 'Missing or wrong token',
  404: 'Something that the path or the body names does not exist',
  409: 'Exists, busy, in the wrong state, or would deadlock',
  410: 'The container, or the whole host, died of an emulated BUG',
  413: 'The body is too large, or has more entries than the kernel takes',
  415: 'The body is not application/json',
  422: 'The emulated kernel refuses',
  503: 'Draining, recovering, or the host is quarantined',
};

function problemExample(spec: AnySpec, status: number): ProblemBody {
  const { refusalExample: example } = spec;
  const about = { op: spec.operationId, profile: '5.15', seq: 41 };
  if (example !== undefined && statusOf(example) === status) {
    const { errno, detail, ...rest } = example;
    const extensions = spec.does === 'command' ? { ...about, ...rest } : rest;
    return errno === 'NOT_FOUND'
      ? problemOfCause('not-found', detail, 'c9a1', rest)
      : problemOfErrno(errno, detail, 'c9a1', extensions);
  }
  const [errno] = errnosOf(spec, status);
  if (errno !== undefined && status !== 413) return problemOfErrno(errno, STATUS_WORDS[status] ?? '', 'c9a1', about);
  const cause =
    (Object.keys(CAUSES) as (keyof typeof CAUSES)[]).find((key) => CAUSES[key].status === status) ?? 'request';
  return problemOfCause(cause, STATUS_WORDS[status] ?? '', 'c9a1');
}

const statusOf = ({ errno }: RefusalExample): number => (errno === 'NOT_FOUND' ? 404 : statusOfErrno(errno));

/** The responses that say the same of every operation. */
const SHARED = [400, 401, 404, 410, 413, 415, 503];

function problemResponse(spec: AnySpec, status: number, isShared = false): JsonObject {
  const errnos = errnosOf(spec, status);
  const isOwn = spec.refusalExample !== undefined && statusOf(spec.refusalExample) === status;
  if (SHARED.includes(status) && !isShared && !isOwn && (errnos.length === 0 || status === 410))
    return { $ref: `#/components/responses/${sharedName(status)}` };
  const words = STATUS_WORDS[status] ?? '';
  return {
    description: errnos.length === 0 ? words : `${words}: ${errnos.join(', ')}`,
    headers: {
      ...REQUEST_ID,
      ...(status === 503 ? RETRY_AFTER : {}),
      ...(status === 401 ? { 'WWW-Authenticate': header('Bearer') } : {}),
    },
    content: {
      'application/problem+json': {
        schema: PROBLEM,
        examples: { refusal: { value: problemExample(spec, status) as unknown as Json } },
      },
    },
  };
}

const sharedName = (status: number): string => `Problem${status}`;

const NO_OPERATION: AnySpec = {
  operationId: 'map_dma',
  tag: 'dma',
  summary: '',
  description: '',
  does: 'command',
  success: [],
};

/** What operations refer to. */
export function sharedComponents(): JsonObject {
  const responses: JsonObject = {};
  for (const status of SHARED)
    responses[sharedName(status)] = problemResponse(
      { ...NO_OPERATION, refusals: status === 410 ? ['EIO'] : [] },
      status,
      true,
    );
  responses.Waiting = {
    description:
      'It waits, and the client prefers not to; or it is stopped, or waits for a lock, and only another request lets it go on',
    headers: {
      ...REQUEST_ID,
      Location: header('Its operation'),
      'Preference-Applied': header('respond-async, where it was preferred'),
    },
    content: {
      'application/json': {
        schema: schemaJson(Accepted),
        examples: { waiting: { value: { ret: 0, ...operationExample } } },
      },
    },
  };
  return { responses, headers: { RequestId: header("The request's id") } };
}

function successResponse(
  spec: AnySpec,
  method: string,
  { description, schema, contentType, example }: Success,
): JsonObject {
  const media: JsonObject = {
    schema: schemaJson(schema ?? spec.success[0]?.schema),
    ...(example === undefined ? {} : { examples: { success: { value: example as Json } } }),
  };
  const replayed: JsonObject =
    spec.does === 'command' && method === 'post'
      ? { 'Idempotent-Replayed': header('true: the first reply to this key again') }
      : {};
  return {
    description,
    headers: { ...REQUEST_ID, ...replayed },
    content: { [contentType ?? 'application/json']: media },
  };
}

export const schemaJson = (schema: unknown): Json => JSON.parse(JSON.stringify(schema ?? {})) as Json;

export function responsesOf(spec: AnySpec, method: string): JsonObject {
  const responses: Record<string, JsonObject> = {};
  for (const success of spec.success) {
    const status = String(success.status);
    const response = successResponse(spec, method, success);
    const other = responses[status];
    if (other === undefined) responses[status] = response;
    else Object.assign(other.content as JsonObject, response.content);
  }
  if (spec.waits === true) responses['202'] = { $ref: '#/components/responses/Waiting' };
  for (const status of statusesOf(spec, method)) responses[status] ??= problemResponse(spec, status);
  return responses;
}
